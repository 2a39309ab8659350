//! One direction of a link: a queue that forgets what does not fit, a wire of some rate behind it, and the
//! time a datagram takes to the other end.
//!
//! Datagrams come in trains, all of one size but the last, as the system hands them over; what is left of
//! a train stays one. Time is an argument and chance a seed: the same trains at the same times fare alike.
//! It does no IO.

use std::collections::VecDeque;
use std::time::Duration;

/// Bytes of Ethernet, IPv4 and UDP before a datagram's own: what `tc` counts of a packet besides.
pub const HEADERS: usize = 14 + 20 + 8;

/// Those of them that count for the MTU of a link.
const INNER: usize = 20 + 8;

/// What a direction is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// From the end of the wire to the other end of the link.
    pub delay: Duration,
    /// Bits a second with all headers; no bound when there is none.
    pub rate: Option<u64>,
    /// Bytes with all headers that wait for the wire at most.
    pub queue: u64,
    /// Bytes of the largest packet, with the headers of IPv4 and UDP; no bound when there is none.
    pub mtu: Option<usize>,
    /// Of 1,000 datagrams so many are lost by chance.
    pub loss: u16,
    /// Decides which.
    pub seed: u64,
}

/// What became of the datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that came to the other end, and their bytes with all headers.
    pub passed: u64,
    /// See `passed`.
    pub bytes: u64,
    /// Datagrams for which the queue had no room.
    pub dropped: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams larger than the link takes.
    pub too_large: u64,
}

/// Datagrams on their way, and to where, as the caller says it.
#[derive(Debug)]
pub struct Train<T> {
    /// Where they go.
    pub to: T,
    /// Bytes of each datagram but the last, which may be shorter.
    pub stride: usize,
    /// Their bytes.
    pub bytes: Vec<u8>,
    due: Duration,
}

/// The direction.
#[derive(Debug)]
pub struct Direction<T> {
    shape: Shape,
    random: fastrand::Rng,
    /// When the wire is free.
    free: Duration,
    trains: VecDeque<Train<T>>,
    /// Buffers of trains that arrived.
    spare: Vec<Vec<u8>>,
    counts: Counts,
}

impl<T> Direction<T> {
    /// Nothing is on its way.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            random: fastrand::Rng::with_seed(shape.seed),
            free: Duration::ZERO,
            trains: VecDeque::new(),
            spare: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// A train enters at `now`, which never goes back.
    pub fn enter(&mut self, now: Duration, to: T, stride: usize, datagrams: &[u8]) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        for datagram in datagrams.chunks(stride.max(1)) {
            if self.shape.loss > 0 && self.random.u16(0..1000) < self.shape.loss {
                self.counts.lost += 1;
                continue;
            }
            if self.shape.mtu.is_some_and(|mtu| datagram.len() + INNER > mtu) {
                self.counts.too_large += 1;
                continue;
            }
            let len = (datagram.len() + HEADERS) as u64;
            if let Some(rate) = self.shape.rate {
                let waiting = self.free.saturating_sub(now).as_nanos() * u128::from(rate);
                if waiting / 8_000_000_000 + u128::from(len) > u128::from(self.shape.queue) {
                    self.counts.dropped += 1;
                    continue;
                }
                let span = Duration::from_nanos(len * 8_000_000_000 / rate);
                self.free = self.free.max(now) + span;
            }
            self.counts.passed += 1;
            self.counts.bytes += len;
            bytes.extend_from_slice(datagram);
        }
        let due = self.free.max(now) + self.shape.delay;
        match bytes.is_empty() {
            true => self.spare.push(bytes),
            false => self.trains.push_back(Train { to, stride, bytes, due }),
        }
    }

    /// The next train that is through by `now`, left where it is.
    pub fn through(&self, now: Duration) -> Option<&Train<T>> {
        self.trains.front().filter(|train| train.due <= now)
    }

    /// Takes that one out.
    pub fn take(&mut self) {
        if let Some(Train { mut bytes, .. }) = self.trains.pop_front() {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// When the next train is through.
    pub fn due(&self) -> Option<Duration> {
        self.trains.front().map(|train| train.due)
    }

    /// What became of all datagrams so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
