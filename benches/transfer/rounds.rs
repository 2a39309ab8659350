//! Arrangements measured in turn, A B C A B C, so that whatever the machine does meanwhile it does to
//! all of them; and the table of what came of it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::Process;

/// Bytes that are written and deleted before a run that writes a file: memory the system gave back to
/// its host must be got back from there, and that is nobody's merit or fault.
const WARMED: u64 = 1280 << 20;

/// One way of moving bytes.
pub trait Arrangement {
    /// What it is called in the table.
    fn name(&self) -> &str;

    /// Moves its bytes once, to where there was nothing before; how long it took.
    fn run(&mut self) -> Duration;

    /// Bytes moved by one run, over all who receive.
    fn moved(&self) -> u64;

    /// The processes that send, and those that receive.
    fn processes(&self) -> (Vec<&Process>, Vec<&Process>);

    /// Whether it writes a file.
    fn writes(&self) -> bool;
}

/// What one arrangement took.
#[derive(Default)]
struct Taken {
    /// MB a second, one a round.
    rates: Vec<f64>,
    /// CPU seconds a GiB of those who send, and of those who receive.
    cpu: (Vec<f64>, Vec<f64>),
    /// The most memory any process of each side had.
    peak: (u64, u64),
}

/// Runs every arrangement once a round, after a round that does not count, and prints what came of it.
pub fn compare(title: &str, rounds: usize, scratch: &Path, all: &mut [Box<dyn Arrangement>]) {
    let mut taken: Vec<_> = all.iter().map(|_| Taken::default()).collect();
    for round in 0..=rounds {
        for (arrangement, taken) in all.iter_mut().zip(&mut taken) {
            let one = measure(arrangement.as_mut(), scratch);
            if round > 0 {
                taken.add(one);
            }
        }
    }
    println!("\n{title}, {rounds} rounds\n");
    println!(
        "{:34} {:>7} {:>15} {:>6} {:>6} {:>15} {:>15}",
        "", "MB/s", "least to most", "ratio", "CPU s", "(send, receive)", "peak MiB"
    );
    let first = taken[0].rate();
    for (arrangement, taken) in all.iter().zip(&taken) {
        taken.print(arrangement.name(), first);
    }
}

fn measure(arrangement: &mut dyn Arrangement, scratch: &Path) -> Taken {
    if arrangement.writes() {
        warm(&scratch.join("warm"));
    }
    let (send, receive) = arrangement.processes();
    send.iter().chain(&receive).for_each(|process| process.forget_peak());
    let before = cpu(arrangement);
    let took = arrangement.run();
    let after = cpu(arrangement);
    let gib = arrangement.moved() as f64 / f64::from(1 << 30);
    let (send, receive) = arrangement.processes();
    let peak = |side: &[&Process]| side.iter().map(|process| process.peak()).max().unwrap_or(0);
    Taken {
        rates: vec![arrangement.moved() as f64 / 1e6 / took.as_secs_f64()],
        cpu: (vec![(after.0 - before.0) / gib], vec![(after.1 - before.1) / gib]),
        peak: (peak(&send), peak(&receive)),
    }
}

fn cpu(arrangement: &dyn Arrangement) -> (f64, f64) {
    let sum = |side: &[&Process]| side.iter().map(|process| process.cpu()).sum();
    let (send, receive) = arrangement.processes();
    (sum(&send), sum(&receive))
}

fn warm(path: &PathBuf) {
    let mut file = File::create(path).expect("made");
    let bytes = vec![1; 1 << 20];
    for _ in 0..WARMED / bytes.len() as u64 {
        file.write_all(&bytes).expect("written");
    }
    fs::remove_file(path).expect("removed");
}

impl Taken {
    fn add(&mut self, one: Self) {
        self.rates.extend(one.rates);
        self.cpu.0.extend(one.cpu.0);
        self.cpu.1.extend(one.cpu.1);
        self.peak = (self.peak.0.max(one.peak.0), self.peak.1.max(one.peak.1));
    }

    fn rate(&self) -> f64 {
        median(&self.rates)
    }

    fn print(&self, name: &str, first: f64) {
        let least = self.rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.rates.iter().copied().fold(0.0, f64::max);
        let (send, receive) = (median(&self.cpu.0), median(&self.cpu.1));
        println!(
            "{name:34} {:7.0} {:>15} {:6.2} {:6.2} {:>15} {:>15}",
            self.rate(),
            format!("{least:.0} to {most:.0}"),
            self.rate() / first,
            send + receive,
            format!("({send:.2}, {receive:.2})"),
            format!("{}, {}", self.peak.0 >> 20, self.peak.1 >> 20),
        );
    }
}

fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
