//! What is done to every piece and every frame: hashes, and the wire's encoding; and a whole file as it
//! is hashed to be shared, against what the cores could do at best.
//!
//! `cargo bench --bench micro -- [hash|share|frame]`. The scheduler and the picker have
//! `cargo bench --bench swarm -- cost`.

use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use aws_lc_rs::digest;
use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use mtq::bitfield::Bitfield;
use mtq::clock;
use mtq::hash::sha1;
use mtq::limits::PIECE_LEN;
use mtq::manifest::PieceHashes;
use mtq::piece::PieceLayout;
use mtq::swarm::hashing::hash_file;
use mtq::swarm::message::{Control, PieceRequest};
use mtq::transport::frame::{PREFIX_LEN, frame_bytes};
use mtq::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the file that is shared.
const FILE: u64 = 256 << 20;

/// Pieces of the file whose frames are measured: 1 GiB.
const PIECES: u32 = 2_000;

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
}

/// One piece of 512 KiB, which stays in the cache.
fn pieces(c: &mut Criterion) {
    let bytes = random(PIECE_LEN as usize);
    let layout = PieceLayout::new(2 * u64::from(PIECE_LEN)).expect("small");
    let piece = layout.piece(0).expect("there");
    let mut group = c.benchmark_group("hash/a piece");
    group.throughput(Throughput::Bytes(u64::from(PIECE_LEN)));
    group.bench_function("SHA-1", |b| b.iter(|| sha1(black_box(&bytes))));
    group.bench_function("SHA-1 of aws-lc-rs", |b| {
        b.iter(|| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, black_box(&bytes)));
    });
    group.bench_function("BLAKE3", |b| {
        b.iter(|| PieceHashes::blake3_of(layout, piece, black_box(&bytes)));
    });
    group.bench_function("both", |b| b.iter(|| PieceHashes::of(layout, piece, black_box(&bytes))));
    group.finish();
}

/// A cached file, hashed as `share` does it: every byte is SHA-1ed twice, so that half of what all cores
/// do at once is the most there can be. Both are measured in turn.
fn share(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("file.bin");
    let ratios = RefCell::new(Vec::new());
    let mut group = c.benchmark_group("share");
    group.throughput(Throughput::Bytes(FILE)).sampling_mode(SamplingMode::Flat);
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    group.bench_function("a file of 256 MiB", |b| {
        if !path.exists() {
            write_file(&path);
        }
        b.iter_custom(|times| {
            let each = (0..times).map(|_| {
                let best = FILE as f64 / all_cores() / 2.0;
                let begun = clock::monotonic();
                black_box(hash_file(&path, &|_| true).expect("hashed"));
                let took = begun.elapsed();
                ratios.borrow_mut().push(FILE as f64 / took.as_secs_f64() / best);
                took
            });
            each.sum()
        });
    });
    group.finish();
    let mut ratios = ratios.into_inner();
    ratios.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
        let median = ratios[ratios.len() / 2];
        println!(
            "of half the SHA-1 rate of all cores at once: median {median:.2} ({least:.2} to {most:.2}), {} times\n",
            ratios.len()
        );
    }
}

/// Seconds in which all cores together take the SHA-1 of as many bytes as the file has, in pieces that
/// stay in their caches.
fn all_cores() -> f64 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let each = FILE / u64::from(PIECE_LEN) / cores as u64;
    let buffers: Vec<_> = (0..cores).map(|_| random(PIECE_LEN as usize)).collect();
    let begun = clock::monotonic();
    thread::scope(|scope| {
        for buffer in &buffers {
            scope.spawn(move || {
                for _ in 0..each {
                    black_box(sha1(black_box(buffer)));
                }
            });
        }
    });
    begun.elapsed().as_secs_f64()
}

fn write_file(path: &Path) {
    let (mut file, mut rng) = (File::create(path).expect("made"), fastrand::Rng::with_seed(1));
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..FILE / bytes.len() as u64 {
        rng.fill(&mut bytes);
        file.write_all(&bytes).expect("written");
    }
}

fn frames(c: &mut Criterion) {
    let layout = PieceLayout::new(u64::from(PIECES) * u64::from(PIECE_LEN)).expect("small");
    let bits = Bitfield::all(layout).as_bytes().to_vec();
    let mut group = c.benchmark_group("frame");
    both_ways(&mut group, "PieceRequest", &PieceRequest { swarm: 3, piece: 1_234 });
    both_ways(&mut group, "Have, 1 piece", &Control::Have { swarm: 3, pieces: vec![1_234] });
    let many = Control::Have { swarm: 3, pieces: (0..64).map(|piece| piece * 31).collect() };
    both_ways(&mut group, "Have, 64 pieces", &many);
    both_ways(&mut group, "Bitfield, 2,000 pieces", &Control::Bitfield { swarm: 3, bits });
    group.finish();
}

fn both_ways<T: Serialize + DeserializeOwned>(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    message: &T,
) {
    group.bench_function(format!("encode {name}"), |b| b.iter(|| frame_bytes(black_box(message))));
    let frame = frame_bytes(message);
    group.bench_function(format!("decode {name}"), |b| {
        b.iter(|| wire::decode::<T>(black_box(&frame[PREFIX_LEN..])).expect("own encoding"));
    });
}

/// Short: what is measured takes nanoseconds, or the same every time.
fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = short(); targets = pieces, share, frames }
criterion_main!(benches);
