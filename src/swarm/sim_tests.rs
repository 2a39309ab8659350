//! Whole swarms in virtual time: random ones, in which nobody honest may fail to finish, and some that
//! are known to be hard.
//!
//! `MTQ_SEED=n` runs one seed and tells what came of it, `MTQ_SEEDS=n` so many from there on.

use std::collections::BTreeSet;
use std::time::Duration;

use super::scheduler::Scheduler;
use super::sim_report::Report;
use super::sim_swarm::{Behaviour, Spec, Swarm};
use super::testing::layout;
use crate::bitfield::Bitfield;
use crate::limits::PIECE_LEN;
use crate::piece::PieceLayout;
use crate::seeds;

/// Seeds of an ordinary run.
const SEEDS: u64 = 40;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const PIECE: f64 = PIECE_LEN as f64;
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// An honest peer with nothing, at `up` and `down` pieces a second.
fn leecher(layout: PieceLayout, up: f64, down: f64) -> Spec {
    Spec {
        behaviour: Behaviour::Honest,
        up: up * PIECE,
        down: down * PIECE,
        latency: 5 * MS,
        stored: Bitfield::none(layout),
        joins: Duration::ZERO,
        away: Vec::new(),
        dies: false,
    }
}

/// One with everything, at `up` pieces a second.
fn seeder(layout: PieceLayout, up: f64) -> Spec {
    Spec { stored: Bitfield::all(layout), ..leecher(layout, up, up) }
}

fn swarm(layout: PieceLayout, peers: Vec<Spec>) -> Swarm {
    Swarm { layout, peers, degree: 50, seed: 1, deadline: FOR_EVER, record: None }
}

fn finish(swarm: &Swarm) -> (Report, f64) {
    let report = swarm.run();
    let makespan = report.makespan.expect("everybody finishes");
    (report, makespan.as_secs_f64())
}

/// Files a peer sent.
fn files_sent(swarm: &Swarm, report: &Report, peer: usize) -> f64 {
    report.peers[peer].sent as f64 / swarm.layout.size() as f64
}

/// What kinds of swarms there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Everybody is honest and stays.
    Calm,
    /// Everybody is honest, and they come and go.
    Churn,
    /// Some are evil.
    Evil,
}

/// A random swarm. Peer 0 has everything and stays, and from it everybody honest who stays is reached
/// through others like it.
fn random(seed: u64) -> (Kind, Swarm) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let kind = [Kind::Calm, Kind::Churn, Kind::Evil][(seed % 3) as usize];
    let most = 10 + rng.usize(..140) * rng.usize(..=100) / 100;
    let layout = layout(most);
    let count = 5 + rng.usize(..25) * rng.usize(..=100) / 100;
    let mut rate = |least: f64| least * 10f64.powf(3.0 * rng.f64()) / PIECE;
    let rates: Vec<_> = (0..count).map(|_| (rate(50_000.0), rate(2_000_000.0))).collect();
    let mut peers: Vec<_> = rates.iter().map(|(up, down)| leecher(layout, *up, *down)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.latency = Duration::from_secs_f64(0.0005 * 10f64.powf(2.5 * rng.f64()));
        peer.joins = SECOND.mul_f64(rng.f64() * 5.0);
        if number == 0 || rng.u32(..6) == 0 {
            peer.stored = Bitfield::all(layout);
        } else if rng.u32(..3) == 0 {
            let has: Vec<_> = layout.pieces().filter(|_| rng.bool()).collect();
            for piece in has {
                peer.stored.insert(piece);
            }
        }
        if number > 0 && kind == Kind::Churn && rng.bool() {
            let leaves = SECOND.mul_f64(rng.f64() * 60.0);
            peer.away = vec![(leaves, leaves + SECOND.mul_f64(rng.f64() * 60.0))];
            peer.dies = rng.bool();
        }
        if number > 0 && kind == Kind::Evil && rng.u32(..3) == 0 {
            peer.stored = Bitfield::none(layout);
            peer.behaviour =
                [Behaviour::Liar, Behaviour::Silent, Behaviour::Dribbler, Behaviour::Denier]
                    [rng.usize(..4)];
        }
    }
    let degree = if rng.bool() { count } else { 4 };
    let mut swarm = Swarm { seed, degree, ..swarm(layout, peers) };
    while !is_connected(&swarm) {
        swarm.degree += 1;
    }
    (kind, swarm)
}

fn is_connected(swarm: &Swarm) -> bool {
    let known = swarm.neighbours();
    let honest = |peer: &usize| swarm.peers[*peer].behaviour == Behaviour::Honest;
    let (mut reached, mut new) = (BTreeSet::from([0]), vec![0]);
    while let Some(peer) = new.pop() {
        new.extend(known[peer].iter().filter(|other| honest(other) && reached.insert(**other)));
    }
    (0..swarm.peers.len()).filter(honest).all(|peer| reached.contains(&peer))
}

/// When even a swarm in which peer 0 alone gives anything would be done.
fn bound(swarm: &Swarm) -> Duration {
    let file = swarm.layout.size() as f64;
    let slowest = swarm.peers.iter().map(|peer| peer.down).fold(f64::INFINITY, f64::min);
    let each = file * swarm.peers.len() as f64 / swarm.peers[0].up;
    // Some of what is on its way when somebody leaves, or turns out to be evil, is waited for.
    Duration::from_secs_f64(300.0 + 2.0 * (each + file / slowest))
}

/// How much of what is to be tested happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    finished: usize,
    bans: usize,
    stolen: u32,
    second: u32,
    left: usize,
}

fn check(kind: Kind, swarm: &Swarm, report: &Report) -> Tally {
    let size = swarm.layout.size();
    let known = swarm.neighbours();
    let is_evil = |peer: usize| swarm.peers[peer].behaviour != Behaviour::Honest;
    let mut tally = Tally::default();
    for (number, peer) in report.peers.iter().enumerate() {
        let spec = &swarm.peers[number];
        if is_evil(number) || spec.stored.is_full() {
            assert_eq!(peer.kept, 0);
            continue;
        }
        let has = spec.stored.iter().map(|piece| u64::from(swarm.layout.len(piece)));
        assert_eq!(has.sum::<u64>() + peer.kept, size, "{number} has everything");
        let finished = peer.finished.unwrap_or_else(|| panic!("{number} does not finish"));
        assert!(finished < bound(swarm), "{number} takes {finished:?}");
        assert!(
            peer.from.keys().all(|from| !is_evil(*from)),
            "{number} has it from {:?}",
            peer.from
        );
        assert!(peer.banned.keys().all(|other| is_evil(*other)), "{number} banned an honest peer");
        if kind == Kind::Calm {
            let most = (size / 50).max(4 * u64::from(PIECE_LEN));
            assert!(peer.wasted.own() <= most, "{number} of {size}: {:?}", peer.wasted);
            assert_eq!(peer.wasted.own(), peer.wasted.all());
        }
        let time = finished.saturating_sub(spec.joins).as_secs_f64();
        for other in &known[number] {
            let them = &swarm.peers[*other];
            // A turn of theirs, if everybody they know asks; twice as long for what is under way.
            let turn = known[*other].len() as f64 * PIECE / them.up;
            let late = them.joins.saturating_sub(spec.joins).as_secs_f64();
            let lacking = swarm.layout.piece_count() - spec.stored.count();
            if is_evil(*other) && time > late + 4.0 * turn + 90.0 && lacking > 60 {
                assert!(peer.banned.contains_key(other), "{number} bears with {other}: {them:?}");
            }
            // Who comes when all is asked for may find nothing to do.
            let useful = them.stored.is_full()
                && them.joins <= spec.joins
                && lacking as usize > 4 * known[number].len();
            if kind == Kind::Calm && useful && time > 4.0 * turn + 2.0 {
                assert!(peer.from.contains_key(other), "{number} got nothing from {other}");
            }
        }
        tally.finished += 1;
        tally.bans += peer.banned.len();
        (tally.stolen, tally.second) = (tally.stolen + peer.asked.1, tally.second + peer.asked.2);
        tally.left += usize::from(peer.wasted.left > 0);
    }
    tally
}

fn run(seed: u64, trace: bool) -> Tally {
    let (kind, swarm) = random(seed);
    let report = swarm.run();
    if trace {
        println!("{kind:?} {} pieces, bound {:?}", swarm.layout.piece_count(), bound(&swarm));
        for (number, (spec, peer)) in swarm.peers.iter().zip(&report.peers).enumerate() {
            let stored = spec.stored.count();
            println!(
                "{number}: {:?} {:.2} up {:.2} down {:?} after {:?} had {stored} away {:?} {peer:?}",
                spec.behaviour,
                spec.up / PIECE,
                spec.down / PIECE,
                spec.latency,
                spec.joins,
                spec.away,
            );
        }
    }
    check(kind, &swarm, &report)
}

#[test]
fn everybody_honest_finishes_whatever_happens() {
    let (count, tally) = seeds::run(SEEDS, run, Tally::and);
    assert!(count < SEEDS || tally.is_worth(count as usize), "{tally:?}");
}

impl Tally {
    fn and(self, other: Self) -> Self {
        Self {
            finished: self.finished + other.finished,
            bans: self.bans + other.bans,
            stolen: self.stolen + other.stolen,
            second: self.second + other.second,
            left: self.left + other.left,
        }
    }

    /// What never happens proves nothing.
    fn is_worth(&self, seeds: usize) -> bool {
        let some =
            [self.finished, self.bans, self.stolen as usize, self.second as usize, self.left];
        some.iter().all(|count| *count > seeds / 4)
    }
}

#[test]
fn a_recorded_log_gives_the_same_actions_again() {
    for seed in 0..6 {
        let (_, mut swarm) = random(seed);
        let wants = |peer: &&Spec| peer.behaviour == Behaviour::Honest && !peer.stored.is_full();
        let leecher = swarm.peers.iter().position(|peer| wants(&peer)).expect("a leecher");
        let report = swarm.run();
        swarm.record = Some(leecher);
        let again = swarm.run();
        let record = again.record.clone().expect("a record");
        assert_eq!(again, Report { record: again.record.clone(), ..report }, "the same once more");
        assert!(record.steps.len() > 20);
        let mut scheduler =
            Scheduler::new(swarm.layout, &record.stored, BTreeSet::new(), record.seed);
        for (now, event, actions) in record.steps {
            assert_eq!(scheduler.handle(now, event), actions);
        }
    }
}

#[test]
fn a_seeder_throttled_to_a_hundredth_costs_no_more_than_it_gives() {
    let l = layout(100);
    for (down, what) in [(20.0, "the downlink"), (1000.0, "the uplinks")] {
        let time = |last: f64| {
            let us = leecher(l, 1.0, down);
            finish(&swarm(l, vec![seeder(l, 10.0), seeder(l, 10.0), seeder(l, last), us])).1
        };
        let fair = if down > 30.0 { 30.0 / 20.1 } else { 1.0 };
        let (all, throttled) = (time(10.0), time(0.1));
        assert!(throttled < 1.3 * fair * all, "{all} and {throttled} s, bound by {what}");
    }
}

#[test]
fn a_slow_seeder_with_fifty_leechers_uploads_each_piece_about_once() {
    let l = layout(24);
    // 64 KiB a second.
    let mut peers = vec![seeder(l, 0.125)];
    peers.extend((0..50).map(|_| leecher(l, 2.0, 20.0)));
    let swarm = swarm(l, peers);
    let (report, makespan) = finish(&swarm);
    let sent = files_sent(&swarm, &report, 0);
    assert!(sent < 1.5, "{sent} files");
    assert!(makespan < 1.5 * 24.0 / 0.125, "{makespan} s");
}

#[test]
fn two_leechers_share_what_a_slow_seeder_gives() {
    // What is asked for at first, of a peer of which nothing is known, may be sent to both.
    for pieces in [20, 50, 100] {
        let l = layout(pieces);
        let peers = vec![seeder(l, 0.5), leecher(l, 20.0, 20.0), leecher(l, 20.0, 20.0)];
        let swarm = swarm(l, peers);
        let (report, makespan) = finish(&swarm);
        let sent = files_sent(&swarm, &report, 0);
        let least = pieces as f64 / 0.5;
        assert!(sent < 1.5, "{sent} files");
        assert!(makespan < 1.5 * least + 2.0, "{makespan} s, not {least}");
    }
}

#[test]
fn a_seeder_that_dies_is_not_waited_for() {
    let l = layout(60);
    let dying = Spec { away: vec![(3 * SECOND, FOR_EVER)], dies: true, ..seeder(l, 10.0) };
    let swarm = swarm(l, vec![seeder(l, 10.0), dying, leecher(l, 10.0, 100.0)]);
    let (report, makespan) = finish(&swarm);
    // 60 pieces at 20 a second until then, at 10 after.
    assert!(makespan < 3.0 + 1.0 + SECOND.as_secs_f64() * 2.5, "{makespan} s");
    assert!(report.peers[2].banned.is_empty());
    assert!(report.peers[2].wasted.all() <= 8 * u64::from(PIECE_LEN), "{:?}", report.peers[2]);
}

#[test]
fn when_everybody_leaves_and_comes_back_the_rest_is_fetched() {
    let l = layout(40);
    let gone = |spec: Spec| Spec { away: vec![(4 * SECOND, 200 * SECOND)], ..spec };
    let peers = vec![
        gone(seeder(l, 5.0)),
        leecher(l, 5.0, 50.0),
        gone(leecher(l, 5.0, 50.0)),
        gone(leecher(l, 5.0, 50.0)),
    ];
    let swarm = swarm(l, peers);
    let (report, makespan) = finish(&swarm);
    assert!(makespan > 200.0 && makespan < 200.0 + 40.0 / 5.0 + 4.0, "{makespan} s");
    // What it had before it needs no second time.
    let wasted = report.peers[1].wasted.all() - report.peers[1].wasted.left;
    assert!(wasted <= 4 * u64::from(PIECE_LEN), "{:?}", report.peers[1]);
}
