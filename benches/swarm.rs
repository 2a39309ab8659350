//! The scheduler of downloads: simulated swarms against what theory says is the best possible, and what
//! one event costs.
//!
//! `cargo bench --bench swarm -- theory|hetero|cost|all [--peers N] [--pieces M]`

use std::collections::BTreeSet;
use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use mtq::bitfield::Bitfield;
use mtq::clock;
use mtq::limits::PIECE_LEN;
use mtq::name::UserName;
use mtq::piece::{PieceIndex, PieceLayout};
use mtq::swarm::event::{Action, Event, PeerKey};
use mtq::swarm::picker::Picker;
use mtq::swarm::scheduler::Scheduler;
use mtq::swarm::sim_report::Report;
use mtq::swarm::sim_swarm::{Behaviour, Spec, Swarm};

const USAGE: &str = "usage: swarm [theory] [hetero] [cost] [all] [--peers N] [--pieces M]

theory  makespan of equal peers, one of which has the file, against M + log2 N piece-times
        (Mundinger, Weber and Weiss 2008); --peers one N, without it 10, 100 and 1,000
hetero  makespan of unlike peers against max(F/u_s, F/d_min, N F/sum u) (Kumar and Ross 2006)
cost    time the scheduler and the picker take for an event";

/// How many others a peer knows: what a tracker hands out.
const DEGREE: usize = 50;

const MB: f64 = 1e6;

/// A kind of link: bytes a second up and down, and half the round trip in milliseconds.
type Link = (f64, f64, u64);

const ADSL: Link = (0.125 * MB, MB, 20);
const CABLE: Link = (1.25 * MB, 12.5 * MB, 10);
const FIBRE: Link = (12.5 * MB, 12.5 * MB, 3);
const MOBILE: Link = (0.5 * MB, 2.5 * MB, 60);
const GIGABIT: Link = (125.0 * MB, 125.0 * MB, 1);
const FAST_ETHERNET: Link = (12.5 * MB, 12.5 * MB, 2);

/// Swarms of unlike peers: a name, the seed's link, and which part of the others has which.
type Mix = (&'static str, Link, &'static [(f64, Link)]);

const MIXES: &[Mix] = &[
    ("homes, slow seed", (0.5 * MB, 12.5 * MB, 10), &[(0.5, ADSL), (0.35, CABLE), (0.15, FIBRE)]),
    ("homes, fast seed", FIBRE, &[(0.5, ADSL), (0.35, CABLE), (0.15, FIBRE)]),
    ("cable", CABLE, &[(1.0, CABLE)]),
    ("office", GIGABIT, &[(0.2, GIGABIT), (0.8, FAST_ETHERNET)]),
    ("mobile and cable", (2.5 * MB, 12.5 * MB, 15), &[(0.5, MOBILE), (0.5, CABLE)]),
];

fn main() -> ExitCode {
    let (mut wanted, mut peers, mut pieces) = (Vec::new(), None, None);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|count| count.parse::<usize>().ok());
        match &arg[..] {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--help" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--peers" => match number() {
                Some(count) if count > 0 => peers = Some(count),
                _ => return usage(),
            },
            "--pieces" => match number() {
                Some(count) if count > 0 => pieces = Some(count),
                _ => return usage(),
            },
            "theory" | "hetero" | "cost" | "all" => wanted.push(arg),
            _ => return usage(),
        }
    }
    let all = wanted.is_empty() || wanted.iter().any(|name| name == "all");
    let is_wanted = |name: &str| all || wanted.iter().any(|other| other == name);
    let counts = peers.map_or(vec![10, 100, 1_000], |count| vec![count]);
    let pieces = pieces.unwrap_or(1_000);
    if is_wanted("theory") {
        theory(&counts, pieces);
    }
    if is_wanted("hetero") {
        hetero(&counts, pieces);
    }
    if is_wanted("cost") {
        cost();
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn layout(pieces: usize) -> PieceLayout {
    PieceLayout::new(pieces as u64 * u64::from(PIECE_LEN)).expect("a size that fits")
}

fn spec((up, down, latency): Link, stored: Bitfield) -> Spec {
    Spec {
        behaviour: Behaviour::Honest,
        up,
        down,
        latency: Duration::from_millis(latency),
        stored,
        joins: Duration::ZERO,
        away: Vec::new(),
        dies: false,
    }
}

/// Plays a swarm whose peer 0 has everything; prints how much longer it took than `best` seconds.
fn play(name: &str, layout: PieceLayout, peers: Vec<Spec>, best: f64) {
    let count = peers.len() - 1;
    let deadline = Duration::from_secs_f64(best * 10.0);
    let swarm = Swarm { layout, peers, degree: DEGREE, seed: 1, deadline, record: None };
    let began = clock::monotonic();
    let report = swarm.run();
    let took = clock::monotonic().duration_since(began).as_secs_f64();
    let ratio = report.makespan.map_or(f64::NAN, |makespan| makespan.as_secs_f64() / best);
    let files = report.peers[0].sent as f64 / layout.size() as f64;
    let own = 100.0 * report.wasted().own() as f64 / (layout.size() as f64 * count as f64);
    println!(
        "{name:18} {count:6} {:7} {best:9.1} {ratio:7.3} {:7.3} {files:9.2} {own:8.2} {:9.1} {took:8.1}",
        layout.piece_count(),
        median(&report) / best,
        report.told as f64 / 1e6,
    );
}

fn median(report: &Report) -> f64 {
    let mut times: Vec<_> = report.peers.iter().filter_map(|peer| peer.finished).collect();
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

fn head(title: &str) {
    println!("\n{title}\n");
    println!(
        "swarm               peers  pieces    best s   ratio  median  seed sent  waste %  M events   wall s"
    );
}

fn theory(counts: &[usize], pieces: usize) {
    head("equal uplinks of ten pieces a second, one seed, unlimited downlinks");
    for count in counts {
        let layout = layout(pieces);
        let link = (10.0 * f64::from(PIECE_LEN), 1e12, 10);
        let mut peers = vec![spec(link, Bitfield::all(layout))];
        peers.resize(count + 1, spec(link, Bitfield::none(layout)));
        let best = (pieces as f64 + f64::from(count.ilog2())) / 10.0;
        play("equal", layout, peers, best);
    }
}

fn hetero(counts: &[usize], pieces: usize) {
    head("unlike links, one seed");
    for (name, seed, classes) in MIXES {
        for count in counts {
            let layout = layout(pieces);
            let mut peers = vec![spec(*seed, Bitfield::all(layout))];
            for number in 0..*count {
                let place = (number as f64 + 0.5) / *count as f64;
                let mut sum = 0.0;
                let class = classes.iter().find(|(part, _)| {
                    sum += part;
                    place < sum
                });
                let link = class.map_or(CABLE, |(_, link)| *link);
                peers.push(spec(link, Bitfield::none(layout)));
            }
            let file = layout.size() as f64;
            let slowest = peers[1..].iter().map(|peer| peer.down).fold(f64::INFINITY, f64::min);
            let sum: f64 = peers.iter().map(|peer| peer.up).sum();
            let best = (file / seed.0).max(file / slowest).max(*count as f64 * file / sum);
            play(name, layout, peers, best);
        }
    }
}

/// Everything a download of so many pieces from so many peers goes through: nearly all peers are partial
/// and tell of new pieces as fast as we get ours.
fn cost() {
    println!("\ntime per event, in microseconds; picks from partial peers\n");
    println!("pieces  peers    events  a piece   mean    pick");
    for pieces in [1_000, 10_000, 100_000] {
        for peers in [10, 50, 200] {
            let (events, nanos) = stream(pieces, peers);
            println!(
                "{pieces:6} {peers:6} {events:9} {:8.1} {:6.2} {:7.3}",
                events as f64 / pieces as f64,
                nanos / 1e3,
                pick(pieces, peers) / 1e3,
            );
        }
    }
}

fn user(peer: u64) -> UserName {
    format!("u{peer}").parse().expect("a name")
}

/// Half of the pieces, another half for each.
fn half(layout: PieceLayout, rng: &mut fastrand::Rng) -> Bitfield {
    let mut field = Bitfield::none(layout);
    for piece in layout.pieces().filter(|_| rng.bool()) {
        field.insert(piece);
    }
    field
}

/// A whole download; how many events it took, and how many nanoseconds each.
fn stream(pieces: usize, peers: u64) -> (u64, f64) {
    let layout = layout(pieces);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut scheduler = Scheduler::new(layout, &Bitfield::none(layout), BTreeSet::new(), 7);
    let rtt = Duration::from_millis(10);
    let mut lacks: Vec<Vec<PieceIndex>> = Vec::new();
    let mut waiting = std::collections::VecDeque::new();
    let (mut now, mut events) = (Duration::ZERO, 0u64);
    let mut spent = Duration::ZERO;
    let mut complete = false;
    let mut tell = |now, event, waiting: &mut std::collections::VecDeque<_>| {
        let began = clock::monotonic();
        let actions = scheduler.handle(now, event);
        spent += clock::monotonic().duration_since(began);
        events += 1;
        for action in actions {
            match action {
                Action::Request { peer, piece, .. } => waiting.push_back((peer, piece)),
                Action::Cancel { peer, piece, .. } => {
                    waiting.retain(|asked| *asked != (peer, piece))
                }
                Action::Complete => complete = true,
                Action::Ban { .. } | Action::SuspectManifest { .. } => {}
            }
        }
        complete
    };
    for peer in 0..peers {
        let has = if peer == 0 { Bitfield::all(layout) } else { half(layout, &mut rng) };
        let mut rest: Vec<_> = layout.pieces().filter(|piece| !has.contains(*piece)).collect();
        rng.shuffle(&mut rest);
        lacks.push(rest);
        let joined = Event::PeerJoined { peer: PeerKey(peer), user: user(peer), pieces: has, rtt };
        tell(now, joined, &mut waiting);
    }
    // Five milliseconds a piece: 100 MB a second.
    let mut ticks = Duration::ZERO;
    while let Some((peer, piece)) = waiting.pop_front() {
        now += Duration::from_millis(5);
        tell(now, Event::Progress { peer, piece, received: 0 }, &mut waiting);
        tell(now, Event::Received { peer, piece, rtt }, &mut waiting);
        if tell(now, Event::Stored { user: user(peer.0), piece }, &mut waiting) {
            break;
        }
        // Each other peer gets one about as often as we do.
        for (peer, lacks) in (0..).zip(&mut lacks).filter(|_| rng.bool()) {
            if let Some(piece) = lacks.pop() {
                let pieces = vec![piece];
                tell(now, Event::PeerHas { peer: PeerKey(peer), pieces }, &mut waiting);
            }
        }
        if now > ticks {
            ticks = now + Duration::from_millis(500);
            for peer in 0..peers {
                tell(now, Event::Alive { peer: PeerKey(peer), rtt }, &mut waiting);
            }
            tell(now, Event::Tick, &mut waiting);
        }
    }
    (events, spent.as_nanos() as f64 / events as f64)
}

/// Nanoseconds a pick takes until nothing is missing.
fn pick(pieces: usize, peers: u64) -> f64 {
    let layout = layout(pieces);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut picker = Picker::new(layout, &Bitfield::none(layout), 7);
    let fields: Vec<_> = (0..peers).map(|_| half(layout, &mut rng)).collect();
    fields.iter().for_each(|field| picker.peer_joined(field));
    let began = clock::monotonic();
    let (mut picks, mut idle) = (0u32, 0);
    for field in fields.iter().cycle() {
        let useful = picker.missing_count() / 2 + 1;
        match black_box(picker.pick(field, useful, |_| false)) {
            Some(_) => (picks, idle) = (picks + 1, 0),
            None => idle += 1,
        }
        if idle == fields.len() {
            break;
        }
    }
    clock::monotonic().duration_since(began).as_nanos() as f64 / f64::from(picks.max(1))
}
