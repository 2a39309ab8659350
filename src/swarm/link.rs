//! One peer of one download: its session, the swarms it has open there, and the requests to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::session::{Session, SwarmKey};
use crate::bitfield::Bitfield;
use crate::clock;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::piece::PieceIndex;

/// A peer that was asked and of which nothing came for so long is given something to acknowledge.
const POKE: Duration = Duration::from_secs(1);

/// A request under way.
#[derive(Debug)]
pub struct Open {
    /// No two requests of a download have the same.
    pub number: u64,
    /// Its task.
    pub task: AbortHandle,
    /// Bytes it is about, and those that are here.
    pub len: u32,
    /// See `len`.
    pub received: Arc<AtomicU32>,
}

/// What became of requests that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    /// Bytes that had come, and bytes that had not.
    pub came: u64,
    /// See `came`.
    pub left: u64,
}

/// One peer of one download.
#[derive(Debug)]
pub struct Link {
    /// The session with it.
    pub session: Arc<Session>,
    /// Whose device it is.
    pub user: UserName,
    /// The swarm in which it is asked.
    pub swarm: SwarmKey,
    /// Other swarms of the same content that it has open, and what it has there.
    pub others: BTreeMap<SwarmKey, Bitfield>,
    requests: HashMap<PieceIndex, Open>,
    /// Datagrams that had come from it when it was looked last, and since when there were no more.
    datagrams: u64,
    quiet_since: Instant,
}

impl Link {
    /// A peer that opened `swarm`, of which nothing is asked yet.
    pub fn new(session: Arc<Session>, user: UserName, swarm: SwarmKey) -> Self {
        let datagrams = session.connection.received();
        let (others, requests) = (BTreeMap::new(), HashMap::new());
        let quiet_since = clock::monotonic();
        Self { session, user, swarm, others, requests, datagrams, quiet_since }
    }

    /// The device.
    pub fn remote(&self) -> PeerId {
        self.session.connection.remote()
    }

    /// All swarms it has open.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmKey> + '_ {
        std::iter::once(self.swarm).chain(self.others.keys().copied())
    }

    /// Forgets swarms that this side has left, as `ours` says: nobody says that they are closed.
    /// Whether the one in which it is asked is still open.
    pub fn keep_open(&mut self, ours: &[SwarmKey]) -> bool {
        let session = &self.session;
        let open = |swarm| ours.contains(&swarm) && session.our_number(swarm).is_some();
        self.others.retain(|swarm, _| open(*swarm));
        open(self.swarm)
    }

    /// A request to it begins.
    pub fn begin(&mut self, piece: PieceIndex, open: Open) {
        if self.requests.is_empty() {
            self.quiet_since = clock::monotonic();
        }
        self.requests.insert(piece, open);
    }

    /// A request ended by itself, unless it was stopped before.
    pub fn ended(&mut self, piece: PieceIndex, number: u64) -> Option<Ended> {
        self.requests.get(&piece).filter(|open| open.number == number)?;
        self.requests.remove(&piece).map(|open| open.ended())
    }

    /// Stops a request.
    pub fn stop(&mut self, piece: PieceIndex) -> Option<Ended> {
        let open = self.requests.remove(&piece)?;
        open.task.abort();
        Some(open.ended())
    }

    /// Stops all requests; also says how many there were.
    pub fn stop_all(&mut self) -> (Ended, u64) {
        let count = self.requests.len() as u64;
        let mut all = Ended::default();
        for (_, open) in self.requests.drain() {
            open.task.abort();
            let one = open.ended();
            (all.came, all.left) = (all.came + one.came, all.left + one.left);
        }
        (all, count)
    }

    /// Looks whether anything came from it since this was asked last. When it is asked for something and
    /// was quiet for long, it is given something to acknowledge.
    pub fn is_alive(&mut self, now: Instant) -> bool {
        let datagrams = self.session.connection.received();
        if datagrams != self.datagrams {
            (self.datagrams, self.quiet_since) = (datagrams, now);
            return true;
        }
        if !self.requests.is_empty() && now.duration_since(self.quiet_since) >= POKE {
            // Nothing new, but it must be acknowledged.
            self.session.tell_pieces(self.swarm, &[]);
        }
        false
    }
}

impl Open {
    fn ended(&self) -> Ended {
        let came = self.received.load(Ordering::Relaxed);
        Ended { came: came.into(), left: self.len.saturating_sub(came).into() }
    }
}
