//! A tracker's connections to the others, and what they are asked: whether a name is free, the
//! bytes of a page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::message::TrackerRow;
use super::reservations::{Claim, Reservations, WantedName};
use super::siblings::Siblings;
use super::store::Store;
use super::sync_message::{SyncMessage, SyncReply, SyncRequest};
use super::vector::Knowledge;
use crate::clock::{self, UnixMillis};
use crate::hash::{Blake3Hash, blake3};
use crate::id::OpId;
use crate::limits;
use crate::peer_id::PeerId;
use crate::roster::RosterEntry;
use crate::transport::connection::Connection;
use crate::transport::frame::{FrameError, read_frame_within};

/// A connection to another tracker.
#[derive(Clone, Debug)]
pub struct Link {
    /// Which.
    pub connection: Connection,
    /// Messages wait here to be written.
    pub outbox: mpsc::Sender<SyncMessage>,
    /// How many datagrams had come when it was last looked at, and when there was a new one.
    pulse: Arc<Mutex<(u64, Instant)>>,
}

impl Link {
    /// A connection that has just been made.
    pub fn new(connection: Connection, outbox: mpsc::Sender<SyncMessage>) -> Self {
        let pulse = Arc::new(Mutex::new((0, clock::monotonic())));
        Self { connection, outbox, pulse }
    }

    /// For how long nothing was heard on it. Something always is, while the other one lives.
    pub fn silent_for(&self) -> Duration {
        let (received, now) = (self.connection.received(), clock::monotonic());
        let mut last = lock(&self.pulse);
        if received != last.0 {
            *last = (received, now);
        }
        now.saturating_duration_since(last.1)
    }
}

/// All of them, and what is known by them.
#[derive(Debug)]
pub struct Links {
    siblings: Mutex<Siblings>,
    reservations: Mutex<Reservations>,
    live: Mutex<HashMap<PeerId, Link>>,
    /// Whether this tracker has heard enough of the others to give names away.
    names_open: watch::Sender<bool>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            siblings: Mutex::default(),
            reservations: Mutex::default(),
            live: Mutex::default(),
            names_open: watch::Sender::new(false),
        }
    }
}

/// A name that somebody else has, or is about to have.
#[derive(Debug)]
pub struct NameTaken;

/// A name that is reserved until this is dropped.
pub struct Reserved<'a> {
    links: &'a Links,
    name: WantedName,
    claim: Claim,
    /// Not all other trackers could be asked.
    pub provisional: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        lock(&self.links.reservations).end(&self.name, self.claim);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// What is known of the others.
    pub fn siblings(&self) -> MutexGuard<'_, Siblings> {
        lock(&self.siblings)
    }

    /// Names may be given away from now on.
    pub fn open_names(&self) {
        self.names_open.send_if_modified(|open| !std::mem::replace(open, true));
    }

    /// The connection to a tracker, if it lives.
    pub fn live(&self, tracker: PeerId) -> Option<Link> {
        lock(&self.live).get(&tracker).filter(|link| !link.connection.is_closed()).cloned()
    }

    /// All living connections.
    fn all_live(&self) -> Vec<Link> {
        let live = lock(&self.live);
        live.values().filter(|link| !link.connection.is_closed()).cloned().collect()
    }

    /// Takes up a connection to a tracker that has what is `known` and whose clock is ahead by so
    /// many milliseconds. Of two to one tracker, the one stays that was begun by the lower peer id;
    /// of two begun by the same, the later. Returns whether it is this one, and the other.
    pub fn enter(
        &self,
        own: PeerId,
        link: Link,
        (known, clock_ahead): (Knowledge, i64),
        now: UnixMillis,
    ) -> (bool, Option<Link>) {
        let tracker = link.connection.remote();
        let mut live = lock(&self.live);
        let by_lower = link.connection.dialled() == (own < tracker);
        let stays = live.get(&tracker).is_some_and(|old| {
            !old.connection.is_closed()
                && !by_lower
                && old.connection.dialled() != link.connection.dialled()
        });
        if stays {
            return (false, None);
        }
        // With the map held: whatever became of an earlier connection comes before or after both.
        self.siblings().connected(tracker, known, clock_ahead, now);
        (true, live.insert(tracker, link))
    }

    /// A connection has ended; returns whether it was the one in use.
    pub fn leave(&self, connection: &Connection) -> bool {
        let mut live = lock(&self.live);
        let tracker = connection.remote();
        let current = live
            .get(&tracker)
            .is_some_and(|link| link.connection.stable_id() == connection.stable_id());
        if current {
            live.remove(&tracker);
            self.siblings().lost(tracker);
        }
        current
    }

    /// Reserves a name at all trackers that can be asked, for what shall have the id `id`.
    ///
    /// # Errors
    /// [`NameTaken`].
    pub async fn reserve(
        &self,
        store: &Store,
        name: WantedName,
        id: [u8; 16],
    ) -> Result<Reserved<'_>, NameTaken> {
        // Opened after a while in any case.
        let _ = self.names_open.subscribe().wait_for(|open| *open).await;
        let claim = Claim { at: store.time(), id };
        if !lock(&self.reservations).begin(&name, claim, store.time()) {
            return Err(NameTaken);
        }
        let mut reserved = Reserved { links: self, name: name.clone(), claim, provisional: false };
        let live = self.all_live();
        reserved.provisional = live.len() < self.siblings().all().count();
        let mut asked = JoinSet::new();
        for link in live {
            let request = SyncRequest::Reserve { name: name.clone(), claim };
            asked.spawn(async move {
                tokio::select! {
                    answer = ask(&link.connection, &request, limits::CLAIM_PATIENCE) => match answer {
                        Ok(SyncReply::Reserved(granted)) => Some(granted),
                        _ => None,
                    },
                    () = silence(&link) => None,
                }
            });
        }
        while let Some(answer) = asked.join_next().await {
            match answer.ok().flatten() {
                Some(true) => {}
                Some(false) => return Err(NameTaken),
                None => reserved.provisional = true,
            }
        }
        match lock(&self.reservations).stands(&name, claim, store.time()) {
            true => Ok(reserved),
            false => Err(NameTaken),
        }
    }

    /// Another tracker is about to register a name; returns whether it may.
    pub fn grant(&self, store: &Store, by: PeerId, name: &WantedName, claim: Claim) -> bool {
        // Held all along: what was reserved here and is registered by now must be seen as that.
        let mut reservations = lock(&self.reservations);
        let taken = store.read(|state| name.is_taken(state, claim));
        reservations.ask(by, name, claim, taken, store.time())
    }

    /// The bytes of a page from whoever has it.
    pub async fn fetch_page(&self, hash: Blake3Hash) -> Option<Vec<u8>> {
        for link in self.all_live() {
            let request = SyncRequest::Page { hash };
            let answer = ask(&link.connection, &request, limits::TRACKER_REQUEST_DEADLINE).await;
            if let Ok(SyncReply::Page(Some(bytes))) = answer {
                if blake3(&bytes) == hash {
                    return Some(bytes);
                }
                tracing::error!(
                    tracker = %link.connection.remote().short(),
                    "a hash page from another tracker is damaged"
                );
            }
        }
        None
    }

    /// How a tracker of the roster stands to this one, and whether it has `op`.
    pub fn row(
        &self,
        own: PeerId,
        entry: &RosterEntry,
        op: Option<OpId>,
        ours: &Knowledge,
        now: UnixMillis,
    ) -> TrackerRow {
        let peer_id = entry.peer_id();
        let links = entry.links.clone();
        let mut row = TrackerRow {
            peer_id,
            links,
            own: peer_id == own,
            connected: peer_id == own,
            behind: 0,
            behind_ms: 0,
            heard: None,
            has_op: None,
        };
        if row.own {
            row.has_op = op.map(|op| ours.covers(op));
            return row;
        }
        if let Some(sibling) = self.siblings().get(peer_id) {
            row.connected = sibling.connected;
            row.behind = ours.vector.ahead_of(&sibling.known);
            row.behind_ms = match (row.behind, sibling.behind_since) {
                (1.., Some(since)) => now.since(since).as_millis() as u64,
                _ => 0,
            };
            row.heard = sibling.heard;
            row.has_op = op.map(|op| sibling.known.covers(op));
        }
        row
    }
}

/// Waits until nothing was heard on a connection for as long as an answer is waited for; what is
/// asked now has a moment in any case.
async fn silence(link: &Link) {
    loop {
        tokio::time::sleep(limits::SYNC_PULSE / 4).await;
        if link.silent_for() >= limits::CLAIM_PATIENCE {
            return;
        }
    }
}

/// Asks one thing on a stream of its own.
///
/// # Errors
/// [`FrameError`], also when it takes longer than `patience`.
pub async fn ask(
    connection: &Connection,
    request: &SyncRequest,
    patience: Duration,
) -> Result<SyncReply, FrameError> {
    let exchange = async {
        let mut recv = connection.ask(request).await?;
        read_frame_within(&mut recv, limits::MAX_FRAME_LEN, patience).await
    };
    tokio::time::timeout(patience, exchange).await.unwrap_or(Err(FrameError::TimedOut))
}
