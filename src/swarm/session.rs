//! One connection with one peer: which swarms both sides opened on it, and whose tickets were
//! shown.
//!
//! Tables and a queue; who acts on them is in `control`, `upload` and `download`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::message::{Control, PeerHello, TAKES_MIDSTATES};
use super::storage::PieceStore;
use crate::bitfield::Bitfield;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits::{CONTROL_QUEUE_BYTES, MAX_SWARMS_PER_CONNECTION};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::piece::PieceIndex;
use crate::ticket::Ticket;
use crate::transport::connection::Connection;
use crate::transport::frame::frame_bytes;

/// Refusals say what is left here at most this often: a bitfield has up to 8 KiB for 32 GiB.
const BITS_AGAIN: Duration = Duration::from_secs(1);

/// One content in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmKey {
    /// The group.
    pub group: GroupId,
    /// The content.
    pub content: ContentId,
}

/// A swarm this agent takes part in.
#[derive(Debug)]
pub struct Swarm {
    /// Which.
    pub key: SwarmKey,
    /// Its bytes here.
    pub store: Arc<PieceStore>,
    /// The download that wants news of it; nothing for a mere seeder.
    pub news: Option<mpsc::Sender<(SwarmKey, News)>>,
}

/// The swarms a download takes part in: its content, in one group or in several.
#[derive(Debug, Default)]
pub struct Swarms(Mutex<Vec<SwarmKey>>);

impl Swarms {
    /// One swarm.
    pub fn new(key: SwarmKey) -> Self {
        Self(Mutex::new(vec![key]))
    }

    /// Takes part in one more.
    pub fn add(&self, key: SwarmKey) {
        let mut keys = self.lock();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    /// Takes no part in one any more; whether none is left.
    pub fn remove(&self, key: SwarmKey) -> bool {
        let mut keys = self.lock();
        keys.retain(|known| *known != key);
        keys.is_empty()
    }

    /// All of them, the longest-standing first.
    pub fn all(&self) -> Vec<SwarmKey> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SwarmKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a download hears of its peers.
#[derive(Debug)]
pub enum News {
    /// A peer has these pieces.
    Opened {
        /// Which session.
        session: Arc<Session>,
        /// Whose device.
        user: UserName,
        /// What it has.
        pieces: Bitfield,
    },
    /// A peer has more pieces.
    Has {
        /// Which session.
        session: u64,
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// A peer takes no more requests; what was asked before still comes.
    GoingAway {
        /// Which session.
        session: u64,
    },
    /// A peer is gone, or has closed the swarm.
    Closed {
        /// Which session.
        session: u64,
        /// Why, when it said so.
        code: Option<ErrorCode>,
    },
}

#[derive(Debug)]
struct Ours {
    number: u32,
    /// Whether our bitfield was sent: from then on pieces are told as they come.
    told: bool,
    /// What had gone bad by then, and when a refusal last said what is left.
    losses: u64,
    refused_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Their tickets, verified, and the bytes of each.
    tickets: HashMap<GroupId, (Ticket, Vec<u8>)>,
    /// Groups our ticket was shown for.
    shown: HashSet<GroupId>,
    ours: HashMap<SwarmKey, Ours>,
    theirs: HashMap<u32, SwarmKey>,
    next_number: u32,
    /// When it was last of use, and requests for which it is now.
    touched: Option<Instant>,
    uses: usize,
}

/// A connection with a peer that said hello.
#[derive(Debug)]
pub struct Session {
    /// A number no other session of this process has.
    pub number: u64,
    /// The connection.
    pub connection: Connection,
    /// Whether the peer understands midstates.
    pub takes_midstates: bool,
    control: mpsc::Sender<Outgoing>,
    /// Bytes of frames that wait to be written.
    queued_bytes: AtomicUsize,
    /// Cancelled once the peer showed a valid ticket: it is no stranger any more.
    pub introduced: CancellationToken,
    /// Counts how often tickets of this peer were revoked.
    pub voided: watch::Sender<u64>,
    began: Instant,
    tables: Mutex<Tables>,
    allowance: Mutex<Allowance>,
}

/// A control frame ready to be written.
#[derive(Debug)]
pub struct Outgoing {
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Whether it says that we go away: nothing follows it.
    pub last: bool,
}

impl Session {
    /// A session with a peer that said this, whose control frames go through `control`.
    pub fn new(
        number: u64,
        connection: Connection,
        said: &PeerHello,
        control: mpsc::Sender<Outgoing>,
    ) -> Self {
        let queued_bytes = AtomicUsize::new(0);
        let introduced = CancellationToken::new();
        let (voided, _) = watch::channel(0);
        let (began, tables) = (clock::monotonic(), Mutex::default());
        Self {
            number,
            connection,
            takes_midstates: said.features & TAKES_MIDSTATES != 0,
            control,
            queued_bytes,
            introduced,
            voided,
            began,
            tables,
            allowance: Mutex::default(),
        }
    }

    /// Sends a control frame. A peer that does not read its control stream is cut off.
    pub fn send(&self, message: Control) {
        let (frame, last) = (frame_bytes(&message), message == Control::GoingAway);
        let queued = self.queued_bytes.fetch_add(frame.len(), Ordering::Relaxed) + frame.len();
        let sent = self.control.try_send(Outgoing { frame, last });
        let full = matches!(sent, Err(mpsc::error::TrySendError::Full(_)));
        if full || queued > CONTROL_QUEUE_BYTES {
            tracing::debug!(peer = %self.connection.remote().short(), "does not read; cut off");
            self.connection.close(ErrorCode::LimitReached);
        }
    }

    /// A queued frame of `len` bytes was written.
    pub fn written(&self, len: usize) {
        self.queued_bytes.fetch_sub(len, Ordering::Relaxed);
    }

    /// Opens a swarm from our side, showing `ticket` first; nothing when it is open already.
    pub fn open(&self, key: SwarmKey, ticket: &[u8]) {
        let mut tables = self.lock();
        if tables.ours.contains_key(&key) || tables.ours.len() >= MAX_SWARMS_PER_CONNECTION {
            return;
        }
        if tables.shown.insert(key.group) {
            self.send(Control::Ticket { ticket: ticket.to_vec() });
        }
        let number = tables.next_number;
        tables.next_number += 1;
        tables.ours.insert(key, Ours { number, told: false, losses: 0, refused_at: None });
        self.send(Control::Open { swarm: number, group: key.group, content: key.content });
    }

    /// Shows a renewed ticket, if an older one of its group was shown.
    pub fn renew(&self, group: GroupId, ticket: &[u8]) {
        if self.lock().shown.contains(&group) {
            self.send(Control::Ticket { ticket: ticket.to_vec() });
        }
    }

    /// Forgets that we opened a swarm, without a word.
    pub fn forget(&self, key: SwarmKey) {
        self.lock().ours.remove(&key);
    }

    /// Ends a swarm on this session, both ways.
    pub fn close(&self, key: SwarmKey, code: ErrorCode) {
        let mut tables = self.lock();
        tables.theirs.retain(|_, theirs| *theirs != key);
        if let Some(ours) = tables.ours.remove(&key) {
            self.send(Control::Close { swarm: ours.number, refused: false, code: code.number() });
        }
    }

    /// Sends our bitfield; whoever is told it once is told every later piece.
    pub fn tell(&self, key: SwarmKey, store: &PieceStore) {
        let mut tables = self.lock();
        let Some(ours) = tables.ours.get_mut(&key) else { return };
        // First told, then read: a piece that comes in between is told twice rather than never.
        (ours.told, ours.losses) = (true, store.losses());
        let bits = store.bitfield().as_bytes().to_vec();
        self.send(Control::Bitfield { swarm: ours.number, bits });
    }

    /// What a refusal of a piece says besides: our bitfield, if pieces of it went bad since it was
    /// told; at most once a second.
    pub fn bits_for_refusal(&self, key: SwarmKey, store: &PieceStore) -> Option<Vec<u8>> {
        let (now, losses) = (clock::monotonic(), store.losses());
        let mut tables = self.lock();
        let ours = tables.ours.get_mut(&key).filter(|ours| ours.told && ours.losses != losses)?;
        if ours.refused_at.is_some_and(|at| now.duration_since(at) < BITS_AGAIN) {
            return None;
        }
        (ours.losses, ours.refused_at) = (losses, Some(now));
        Some(store.bitfield().as_bytes().to_vec())
    }

    /// Sends our bitfield anew, if it was sent before.
    pub fn tell_again(&self, key: SwarmKey, store: &PieceStore) {
        if self.lock().ours.get(&key).is_some_and(|ours| ours.told) {
            self.tell(key, store);
        }
    }

    /// Tells of new pieces, if our bitfield was sent.
    pub fn tell_pieces(&self, key: SwarmKey, pieces: &[u32]) {
        if let Some(ours) = self.lock().ours.get(&key).filter(|ours| ours.told) {
            self.send(Control::Have { swarm: ours.number, pieces: pieces.to_vec() });
        }
    }

    /// Our number for a swarm opened from our side.
    pub fn our_number(&self, key: SwarmKey) -> Option<u32> {
        self.lock().ours.get(&key).map(|ours| ours.number)
    }

    /// The swarm the peer opened under `number`.
    pub fn their_swarm(&self, number: u32) -> Option<SwarmKey> {
        self.lock().theirs.get(&number).copied()
    }

    /// The peer opened a swarm.
    ///
    /// # Errors
    /// [`ErrorCode::Protocol`] for a number in use, [`ErrorCode::LimitReached`] for too many.
    pub fn add_theirs(&self, number: u32, key: SwarmKey) -> Result<(), ErrorCode> {
        let mut tables = self.lock();
        if tables.theirs.len() >= MAX_SWARMS_PER_CONNECTION {
            return Err(ErrorCode::LimitReached);
        }
        if tables.theirs.contains_key(&number) {
            return Err(ErrorCode::Protocol);
        }
        // Opened anew, under one number at a time.
        tables.theirs.retain(|_, theirs| *theirs != key);
        tables.theirs.insert(number, key);
        Ok(())
    }

    /// The peer ended the swarm it had opened under `number`.
    pub fn closed_by_peer(&self, number: u32) -> Option<SwarmKey> {
        let mut tables = self.lock();
        let key = tables.theirs.remove(&number)?;
        tables.ours.remove(&key);
        Some(key)
    }

    /// The peer refused the swarm we had opened under `number`.
    pub fn refused(&self, number: u32) -> Option<SwarmKey> {
        let mut tables = self.lock();
        let key =
            tables.ours.iter().find(|(_, ours)| ours.number == number).map(|(key, _)| *key)?;
        tables.ours.remove(&key);
        // Perhaps it was the ticket: the next attempt shows it again.
        tables.shown.remove(&key.group);
        Some(key)
    }

    /// Every swarm either side opened.
    pub fn swarms(&self) -> HashSet<SwarmKey> {
        let tables = self.lock();
        tables.ours.keys().chain(tables.theirs.values()).copied().collect()
    }

    /// Keeps a verified ticket of the peer, and the bytes in which it was shown.
    pub fn keep_ticket(&self, ticket: Ticket, bytes: &[u8]) {
        self.lock().tickets.insert(ticket.holder().group, (ticket, bytes.to_vec()));
        self.introduced.cancel();
    }

    /// The group for which these very bytes were shown last, and kept.
    pub fn shows_again(&self, bytes: &[u8]) -> Option<GroupId> {
        let tables = self.lock();
        tables.tickets.iter().find(|(_, (_, kept))| kept == bytes).map(|(group, _)| *group)
    }

    /// Whose device the peer is, by the tickets it showed.
    pub fn user(&self) -> Option<UserName> {
        self.lock().tickets.values().next().map(|(ticket, _)| ticket.holder().user.clone())
    }

    /// The peer's ticket for a group.
    pub fn ticket(&self, group: GroupId) -> Option<Ticket> {
        self.lock().tickets.get(&group).map(|(ticket, _)| ticket.clone())
    }

    /// Whether `holds` is true of any ticket of the peer.
    pub fn any_ticket(&self, holds: impl Fn(&Ticket) -> bool) -> bool {
        self.lock().tickets.values().any(|(ticket, _)| holds(ticket))
    }

    /// It is of use: there is news of pieces.
    pub fn touch(&self) {
        self.lock().touched = Some(clock::monotonic());
    }

    /// It is of use until this is dropped: a piece is asked for.
    pub fn in_use(&self) -> InUse<'_> {
        self.lock().uses += 1;
        InUse(self)
    }

    /// Lets the peer send a piece of `len` bytes; whoever asks for it drops this when it is here, or will
    /// not come.
    pub fn expect(&self, len: u32) -> Expected<'_> {
        let mut allowance = self.allowance();
        // Under the lock, so that the latest window is the largest.
        if let Some(window) = allowance.ask(len) {
            self.connection.allow(window);
        }
        Expected { session: self, len }
    }

    /// For how long it has been of no use.
    pub fn idle(&self) -> Duration {
        let tables = self.lock();
        match tables.uses {
            0 => tables.touched.unwrap_or(self.began).elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece that is asked for.
#[derive(Debug)]
pub struct Expected<'a> {
    session: &'a Session,
    len: u32,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.session.allowance().done(self.len);
    }
}

/// A request under way, asked by either side of a session.
#[derive(Debug)]
pub struct InUse<'a>(&'a Session);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut tables = self.0.lock();
        tables.uses -= 1;
        tables.touched = Some(clock::monotonic());
    }
}
