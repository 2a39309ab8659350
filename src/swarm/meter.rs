//! How far a download is, and where every byte of it came from; counted by its driver, read by whoever
//! shows it.
//!
//! Every byte that was read from a peer is kept, wasted for a reason, or still on its way.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Cause, Why};
use super::hold::Hold;
use crate::clock;
use crate::name::UserName;
use crate::peer_id::PeerId;

/// Time over which the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// Bytes that came and were of no use, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waste {
    /// They were not what they should be.
    pub bad: u64,
    /// Another peer was first.
    pub late: u64,
    /// The rest was asked of a faster peer instead.
    pub stolen: u64,
    /// The rest did not come: the stream broke, or the peer fell silent or went.
    pub broken: u64,
}

impl Waste {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.bad + self.late + self.stolen + self.broken
    }

    fn add(&mut self, other: &Self) {
        self.bad += other.bad;
        self.late += other.late;
        self.stolen += other.stolen;
        self.broken += other.broken;
    }
}

/// Requests by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// All that were made.
    pub made: u64,
    /// Made because another peer would have needed much longer.
    pub stealing: u64,
    /// Made as a second copy, at the end.
    pub second: u64,
    /// Refused by the peer.
    pub refused: u64,
    /// Stopped by us, or broken off: what was asked for had to be asked for again.
    pub undone: u64,
}

impl Requests {
    fn add(&mut self, other: &Self) {
        self.made += other.made;
        self.stealing += other.stealing;
        self.second += other.second;
        self.refused += other.refused;
        self.undone += other.undone;
    }
}

/// What one peer gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its user.
    pub user: UserName,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is connected now.
    pub connected: bool,
    /// Pieces it has.
    pub has: u32,
    /// Pieces it is asked for now.
    pub asked: u32,
    /// Round-trip time to it.
    pub rtt: Duration,
    /// Bytes a second that it gives, as far as is known.
    pub bytes_per_sec: u64,
    /// Pieces verified and stored.
    pub pieces: u32,
    /// Bytes verified and stored.
    pub bytes: u64,
    /// Pieces that were not what they should be.
    pub bad_pieces: u32,
    /// Bytes that were read from it, whatever became of them.
    pub received_bytes: u64,
    /// Bytes that were of no use.
    pub wasted: Waste,
    /// Requests made to it.
    pub requests: Requests,
}

impl Source {
    /// A peer that gave nothing yet.
    pub fn new(user: UserName, address: SocketAddr) -> Self {
        Self {
            user,
            address,
            connected: true,
            has: 0,
            asked: 0,
            rtt: Duration::ZERO,
            bytes_per_sec: 0,
            pieces: 0,
            bytes: 0,
            bad_pieces: 0,
            received_bytes: 0,
            wasted: Waste::default(),
            requests: Requests::default(),
        }
    }

    /// It is asked for a piece.
    pub fn asked_for(&mut self, why: Why) {
        self.requests.made += 1;
        self.requests.stealing += u64::from(why == Why::Stolen);
        self.requests.second += u64::from(why == Why::Endgame);
    }

    /// A request to it was stopped when so many bytes were here.
    pub fn stopped(&mut self, cause: Cause, bytes: u64) {
        self.received_bytes += bytes;
        match cause {
            Cause::Stolen => self.wasted.stolen += bytes,
            Cause::Late => self.wasted.late += bytes,
            Cause::Silent | Cause::Stalled => self.wasted.broken += bytes,
        }
        self.requests.undone += u64::from(cause != Cause::Late);
    }
}

/// How far a download is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes verified and stored, those of an earlier attempt included.
    pub stored_bytes: u64,
    /// Bytes a second over the last seconds.
    pub bytes_per_sec: u64,
    /// Time from its begin to its end, or to now.
    pub elapsed: Duration,
    /// Why it does not move, if it does not.
    pub hold: Option<Hold>,
    /// What each peer gave.
    pub sources: BTreeMap<PeerId, Source>,
}

impl Progress {
    /// Bytes that were read from peers, and what of them was of no use.
    pub fn received(&self) -> (u64, Waste) {
        let mut wasted = Waste::default();
        self.sources.values().for_each(|source| wasted.add(&source.wasted));
        (self.sources.values().map(|source| source.received_bytes).sum(), wasted)
    }

    /// Requests made to all peers.
    pub fn requests(&self) -> Requests {
        let mut requests = Requests::default();
        self.sources.values().for_each(|source| requests.add(&source.requests));
        requests
    }
}

/// Counts a download's progress.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    inner: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    progress: Progress,
    /// Bytes stored at some moments of the last seconds, oldest first.
    samples: VecDeque<(Instant, u64)>,
    ended: bool,
}

impl Meter {
    /// A meter that starts at `stored_bytes`.
    pub fn new(stored_bytes: u64) -> Self {
        let progress = Progress { stored_bytes, ..Progress::default() };
        let started = clock::monotonic();
        let samples = VecDeque::from([(started, stored_bytes)]);
        Self { started, inner: Mutex::new(Counts { progress, samples, ended: false }) }
    }

    /// The download is over; its time stands still.
    pub fn end(&self) {
        let mut counts = self.lock();
        counts.progress.elapsed = self.started.elapsed();
        counts.progress.bytes_per_sec = 0;
        counts.progress.hold = None;
        counts.ended = true;
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        let mut counts = self.lock();
        if !counts.ended {
            let now = clock::monotonic();
            counts.forget_old(now);
            counts.progress.elapsed = now.duration_since(self.started);
            counts.progress.bytes_per_sec = counts.samples.front().map_or(0, |(at, bytes)| {
                let seconds = now.duration_since(*at).as_secs_f64().max(0.001);
                (counts.progress.stored_bytes.saturating_sub(*bytes) as f64 / seconds) as u64
            });
        }
        counts.progress.clone()
    }

    /// Bytes verified and stored, those of an earlier attempt included.
    pub fn stored_bytes(&self) -> u64 {
        self.lock().progress.stored_bytes
    }

    /// Changes what is counted.
    pub fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut counts = self.lock();
        let now = clock::monotonic();
        // Thirty samples a window are enough, and bound their number.
        let spacing = RATE_WINDOW / 30;
        if counts.samples.back().is_none_or(|(at, _)| now.duration_since(*at) > spacing) {
            counts.forget_old(now);
            let stored = counts.progress.stored_bytes;
            counts.samples.push_back((now, stored));
        }
        change(&mut counts.progress);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Forgets samples that are older than the window, but for the youngest of them.
    fn forget_old(&mut self, now: Instant) {
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }
}
