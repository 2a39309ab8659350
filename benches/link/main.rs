//! A link with delay, rate, queue and loss on this machine, and real `mtq` processes on both sides of it.
//!
//! `cargo bench --bench link -- fat|relay TRACKER|ceiling`, and `--help`. `fat` is what BENCHMARKS.md has
//! figures of; `relay` stands between a tracker and clients that somebody runs by hand; `ceiling` is what
//! the relay itself can carry.

mod ceiling;
mod direction;
mod fat;
mod relay;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use direction::{Counts, Shape};
use relay::Relay;

const USAGE: &str = "usage: link fat [options]        a download over a link, second by second
       link relay TRACKER [options]  stands between the tracker at TRACKER and clients: run the tracker
                               with --listen TRACKER, and give clients its link with the address
                               that this prints; until it is interrupted
       link ceiling            what a relay without delay and rate carries

  --rtt MS         there and back; of fat 50 and 200 one after the other [default of relay: 50]
  --rate MBIT      of each direction, with the headers of Ethernet, IPv4 and UDP [default: 1000]
  --queue KIB      before each direction; what does not fit is dropped [default: rate x rtt]
  --mtu BYTES      of the link, with the headers of IPv4 and UDP [default: 1500]
  --loss PERMILLE  datagrams lost by chance in each direction [default: 0]
  --seed N         decides which [default: 1]
  --listen ADDR    relay: where clients find it [default: a free port of 127.0.0.1]
  --size MIB       fat: of the file [default: what the link carries in 18 s]
  --congestion C   fat: of both clients [default: cubic]
  --dir DIR        fat: where its files are [default: the system's temporary directory]
  --mtq PROGRAM    fat: another build of mtq
  --keep           fat: leaves its files, with the logs of all processes; MTQ_LOG says how much these say";

/// What was asked for.
pub struct Options {
    rtt: Option<u64>,
    rate: u64,
    queue: Option<u64>,
    mtu: usize,
    loss: u16,
    seed: u64,
    listen: SocketAddr,
    size: Option<u64>,
    congestion: String,
    dir: PathBuf,
    mtq: PathBuf,
    keep: bool,
}

impl Options {
    /// The link with a round trip of so many milliseconds.
    fn shape(&self, rtt: u64) -> Shape {
        let delay = Duration::from_millis(rtt) / 2;
        let product = self.rate * 1_000_000 / 8 * rtt / 1_000;
        // A queue has room for some trains at the least.
        let queue = self.queue.map_or(product, |kib| kib * 1024).max(256 * 1024);
        let (rate, mtu) = (Some(self.rate * 1_000_000), Some(self.mtu));
        Shape { delay, rate, queue, mtu, loss: self.loss, seed: self.seed }
    }
}

fn main() -> ExitCode {
    let Some((what, tracker, options)) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match (&what[..], tracker) {
        ("help", _) => println!("{USAGE}"),
        ("ceiling", _) => ceiling::run(),
        ("relay", Some(tracker)) => relay(tracker, &options),
        ("fat", _) => {
            for rtt in options.rtt.map_or(vec![50, 200], |rtt| vec![rtt]) {
                fat::run(&options, rtt);
            }
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<(String, Option<SocketAddr>, Options)> {
    let (mut what, mut tracker) = (None, None);
    let mut options = Options {
        rtt: None,
        rate: 1_000,
        queue: None,
        mtu: 1_500,
        loss: 0,
        seed: 1,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        size: None,
        congestion: "cubic".to_owned(),
        dir: std::env::temp_dir(),
        mtq: env!("CARGO_BIN_EXE_mtq").into(),
        keep: false,
    };
    while let Some(arg) = args.next() {
        match &arg[..] {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--help" => what = Some("help".to_owned()),
            "--keep" => options.keep = true,
            "--rtt" => options.rtt = Some(args.next()?.parse().ok()?),
            "--rate" => options.rate = args.next()?.parse().ok().filter(|rate| *rate > 0)?,
            "--queue" => options.queue = Some(args.next()?.parse().ok()?),
            "--mtu" => options.mtu = args.next()?.parse().ok()?,
            "--loss" => options.loss = args.next()?.parse().ok().filter(|loss| *loss <= 1_000)?,
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--listen" => options.listen = args.next()?.parse().ok()?,
            "--size" => options.size = Some(args.next()?.parse().ok()?),
            "--congestion" => options.congestion = args.next()?,
            "--dir" => options.dir = args.next()?.into(),
            "--mtq" => options.mtq = args.next()?.into(),
            word if what.is_none() && !word.starts_with('-') => what = Some(arg),
            word if what.as_deref() == Some("relay") && tracker.is_none() => {
                tracker = Some(word.parse().ok()?);
            }
            _ => return None,
        }
    }
    Some((what.unwrap_or_else(|| "fat".to_owned()), tracker, options))
}

/// A relay for processes that somebody else runs; says every second what passed, while anything does.
fn relay(tracker: SocketAddr, options: &Options) {
    let shape = options.shape(options.rtt.unwrap_or(50));
    let relay = match Relay::start(options.listen, tracker, shape) {
        Ok(relay) => relay,
        Err(error) => return eprintln!("link: {}: {error}", options.listen),
    };
    println!("{}", relay.front());
    let mut before: Vec<Counts> = Vec::new();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let Some(told) = relay.told().last() else { continue };
        if told.sent != before {
            before.resize(told.sent.len(), Counts::default());
            let rows = told.sent.iter().zip(&before).enumerate().map(|(number, (now, before))| {
                let mbit = (now.bytes - before.bytes) as f64 * 8.0 / 1e6;
                let (dropped, lost) = (now.dropped - before.dropped, now.lost - before.lost);
                format!("client {number}: {mbit:.1} Mbit/s, {dropped} dropped, {lost} lost")
            });
            eprintln!("{}", rows.collect::<Vec<_>>().join("; "));
            before = told.sent;
        }
    }
}

/// CPU seconds of a process or thread by its `stat` in `/proc`; none when it is gone.
pub fn cpu_of(stat: &str) -> f64 {
    // Of /proc/PID/stat, on every Linux there is.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(stat).unwrap_or_default();
    let fields = text.rsplit(") ").next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}
