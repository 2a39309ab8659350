//! Transfers over loopback: a raw QUIC stream, a transfer without a program around it, and real
//! processes, each beside the others in the same run.
//!
//! `cargo bench --bench transfer -- raw|full|many|variants|all [--rounds N] [--size MIB] [--mtu BYTES]`.
//! This program starts itself anew for the processes that are not mtq.

mod process;
mod rounds;
mod side;
mod lab;
mod program;

use std::env;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use mtq::hash::sha1;
use mtq::transport::tuning::Mtu;

use lab::{Lab, Source, USUAL};
use program::{Program, World};
use rounds::{Arrangement, compare};
use side::{How, PIECE, Reading, Side};

const USAGE: &str =
    "usage: transfer [raw] [full] [many] [variants] [all] [--rounds N] [--size MIB] [--mtu BYTES]

raw       memory to nowhere: one bulk stream, and a stream a piece
full      one file from one to one: without a program around it (lab), and real processes of mtq
many      real processes: 1 -> 1, 3 -> 1, 1 -> 4, 8 files at once
variants  other ways to arrange what lab is; not part of all

--rounds  how often each is run, in turn, after a round that does not count; 5
--size    MiB a file, of 8 files together; 1024 for full and variants, 256 for the others
--mtu     the largest datagrams; without it 16250, 8952, 1452";

struct Options {
    rounds: usize,
    /// Bytes of a file, where it was said.
    size: Option<u64>,
    mtus: Vec<String>,
}

fn main() -> ExitCode {
    let mtus = ["16250", "8952", "1452"].map(str::to_owned).to_vec();
    let (mut wanted, mut options) = (Vec::new(), Options { rounds: 5, size: None, mtus });
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match &arg[..] {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--help" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            // How this program starts itself.
            "--side" => {
                let side: Side = serde_json::from_str(&args.next().expect("a side")).expect("JSON");
                side.run();
                return ExitCode::SUCCESS;
            }
            "--rounds" => match args.next().and_then(|count| count.parse().ok()) {
                Some(count) if count > 0 => options.rounds = count,
                _ => return usage(),
            },
            "--size" => match args.next().and_then(|mib| mib.parse::<u64>().ok()) {
                Some(mib) if mib > 0 => options.size = Some(mib << 20),
                _ => return usage(),
            },
            "--mtu" => match args.next() {
                Some(mtu) if mtu.parse::<Mtu>().is_ok() => options.mtus = vec![mtu],
                _ => return usage(),
            },
            "raw" | "full" | "many" | "variants" | "all" => wanted.push(arg),
            _ => return usage(),
        }
    }
    let all = wanted.is_empty() || wanted.iter().any(|name| name == "all");
    let is_named = |name: &str| wanted.iter().any(|other| other == name);
    let is_wanted = |name: &str| all || is_named(name);
    // Where the build is: a temporary directory may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for mtu in &options.mtus {
        // Each leaves its files in a directory of its own until all are done.
        let own = |name: &str| {
            let own = dir.path().join(format!("{name}-{mtu}"));
            std::fs::create_dir(&own).expect("made");
            own
        };
        if is_wanted("raw") {
            raw(&options, mtu, &own("raw"));
        }
        if is_wanted("full") {
            full(&options, mtu, &own("full"));
        }
        if is_wanted("many") {
            many(&options, mtu, &own("many"));
        }
        if is_named("variants") {
            variants(&options, mtu, &own("variants"));
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn raw(options: &Options, mtu: &str, dir: &Path) {
    let len = options.size.unwrap_or(256 << 20);
    let mut all: Vec<Box<dyn Arrangement>> = vec![
        Box::new(Lab::from_memory("raw: one stream", mtu, len, 0)),
        Box::new(Lab::from_memory("pieces: a stream each", mtu, len, USUAL.depth)),
    ];
    compare(
        &format!("memory to nowhere, {} MiB, MTU {mtu}", len >> 20),
        options.rounds,
        dir,
        &mut all,
    );
}

fn full(options: &Options, mtu: &str, dir: &Path) {
    let len = options.size.unwrap_or(1024 << 20);
    let (path, hashes) = random_file(dir, "source.bin", len, 1);
    let source = Source { path: &path, hashes: &hashes };
    let world = Rc::new(World::new(dir.join("world"), mtu, 2));
    let file = world.share(&path, &[0]);
    let mut all: Vec<Box<dyn Arrangement>> = vec![
        Box::new(Lab::from_file("lab", mtu, &source, dir, USUAL)),
        Box::new(Program::new("mtq", &world, vec![file], &[0], &[1])),
    ];
    compare(&format!("1 -> 1, {} MiB, MTU {mtu}", len >> 20), options.rounds, dir, &mut all);
}

fn many(options: &Options, mtu: &str, dir: &Path) {
    let len = options.size.unwrap_or(256 << 20);
    // Three that may seed, and four that may not.
    let world = Rc::new(World::new(dir.join("world"), mtu, 7));
    let share = |name: &str, len, seed, agents: &[usize]| {
        world.share(&random_file(dir, name, len, seed).0, agents)
    };
    let one = share("one.bin", len, 1, &[0]);
    let three = share("three.bin", len, 2, &[0, 1, 2]);
    let eight = (0..8).map(|number| share(&format!("{number}.bin"), len / 8, 3 + number, &[0]));
    let eight = eight.collect();
    let program = |name: &str, files, seeders: &[usize], leechers: &[usize]| {
        Box::new(Program::new(name, &world, files, seeders, leechers)) as Box<dyn Arrangement>
    };
    let mut all = vec![
        program("1 -> 1", vec![one.clone()], &[0], &[3]),
        program("3 -> 1", vec![three], &[0, 1, 2], &[3]),
        program("1 -> 4, sum", vec![one], &[0], &[3, 4, 5, 6]),
        program("8 files at once", eight, &[0], &[3]),
    ];
    let title = format!("mtq, {} MiB (8 files together), MTU {mtu}", len >> 20);
    compare(&title, options.rounds, dir, &mut all);
}

fn variants(options: &Options, mtu: &str, dir: &Path) {
    let len = options.size.unwrap_or(1024 << 20);
    let (path, hashes) = random_file(dir, "source.bin", len, 1);
    let source = Source { path: &path, hashes: &hashes };
    let lab = |name: &str, how| -> Box<dyn Arrangement> {
        Box::new(Lab::from_file(name, mtu, &source, dir, how))
    };
    let mut all = vec![
        lab("lab", USUAL),
        lab("4 pieces asked for at once", How { depth: 4, ..USUAL }),
        lab("32 at once", How { depth: 32, ..USUAL }),
        lab("two threads write", How { writers: 2, ..USUAL }),
        lab("copied into a piece's buffer", How { copied: true, ..USUAL }),
        lab("the same, two threads write", How { copied: true, writers: 2, ..USUAL }),
        lab("SHA-1 of the crate sha1", How { sha1_crate: true, ..USUAL }),
        lab("read by the transport's thread", How { reading: Reading::Inline, ..USUAL }),
        lab("pieces advance together", How { together: true, ..USUAL }),
    ];
    let title = format!("ways from a file to a file, {} MiB, MTU {mtu}", len >> 20);
    compare(&title, options.rounds, dir, &mut all);
}

/// A file of bytes that repeat nowhere, and one of the SHA-1s of its pieces.
fn random_file(dir: &Path, name: &str, len: u64, seed: u64) -> (PathBuf, PathBuf) {
    let (path, hashes) = (dir.join(name), dir.join(format!("{name}.sha1")));
    let mut out = BufWriter::new(File::create_new(&path).expect("made"));
    let mut out_hashes = BufWriter::new(File::create_new(&hashes).expect("made"));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; PIECE as usize];
    let mut left = len;
    while left > 0 {
        let piece = &mut bytes[..left.min(PIECE) as usize];
        rng.fill(piece);
        out.write_all(piece).expect("written");
        out_hashes.write_all(&sha1(piece).0).expect("written");
        left -= piece.len() as u64;
    }
    out.flush().and_then(|()| out_hashes.flush()).expect("written");
    (path, hashes)
}
