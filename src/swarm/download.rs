//! One download: drives the scheduler, fetches pieces, stores them, tells others of them.
//!
//! A single task owns the scheduler. Each piece request runs in a task of its own, on a stream of
//! its own; verifying and writing run on the blocking pool.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::event::{Action, Event, NotServed, PeerKey};
use super::message::{Encoding, Nack, PieceHeader, PieceRequest};
use super::registry::Registry;
use super::scheduler::Scheduler;
use super::session::{News, Session, SwarmKey};
use super::storage::{PieceStore, StorageError, WriteError};
use crate::bitfield::Bitfield;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits::{MAX_FRAME_LEN, MAX_HAVE_BATCH, PIECE_DEADLINE};
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::piece::PieceIndex;
use crate::transport::code::quic_code;
use crate::transport::connection::RecvStream;
use crate::transport::frame::{FrameError, read_frame, write_frame};

/// New pieces are told to others this long after the first of a batch.
const TELL_DELAY: Duration = Duration::from_millis(20);

/// A download without any source asks for peers again after this.
const ASK_AGAIN_ALONE: Duration = Duration::from_secs(5);

/// A download with sources asks for more after this.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Why a download ended without its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A piece with the right BLAKE3 and a false SHA-1: the publisher lied.
    #[error("piece {0} contradicts the manifest: its publisher made a false one")]
    FalseManifest(PieceIndex),
    /// It was stopped.
    #[error("stopped")]
    Stopped,
}

/// What one peer gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its user.
    pub user: UserName,
    /// Pieces verified and stored.
    pub pieces: u32,
    /// Bytes verified and stored.
    pub bytes: u64,
    /// Pieces that were not what they should be.
    pub bad_pieces: u32,
    /// Whether it is connected now.
    pub connected: bool,
}

/// How far a download is; read by whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes verified and stored, those of an earlier attempt included.
    pub stored_bytes: u64,
    /// Bytes a second over the last seconds.
    pub bytes_per_sec: u64,
    /// Time from its begin to its end, or to now.
    pub elapsed: Duration,
    /// What each peer gave.
    pub sources: BTreeMap<PeerId, Source>,
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

/// Time over which the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(3);

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
                ((counts.progress.stored_bytes - bytes) as f64 / seconds) as u64
            });
        }
        counts.progress.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
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

/// What a download needs.
#[derive(Debug)]
pub struct Download {
    /// Which swarm.
    pub key: SwarmKey,
    /// Where its bytes go.
    pub store: Arc<PieceStore>,
    /// News of its peers.
    pub news: mpsc::Receiver<News>,
    /// Signals that more peers are wanted.
    pub peers_wanted: mpsc::Sender<()>,
    /// The sessions of the agent, and its piece buffers.
    pub registry: Arc<Registry>,
    /// Where progress is counted.
    pub meter: Arc<Meter>,
    /// Stops it.
    pub stop: CancellationToken,
    /// Decides among equals.
    pub seed: u64,
}

/// What became of one request.
enum Fetched {
    Bytes(Vec<u8>),
    NotServed(NotServed),
    /// The peer broke the protocol on this stream.
    Misbehaved,
}

struct Peer {
    session: Arc<Session>,
    user: UserName,
    fetches: HashMap<PieceIndex, AbortHandle>,
}

struct Driver {
    download: Download,
    scheduler: Scheduler,
    peers: HashMap<PeerKey, Peer>,
    fetches: JoinSet<(PeerKey, PieceIndex, Fetched)>,
    stores: JoinSet<(PeerKey, PeerId, UserName, PieceIndex, Result<(), WriteError>)>,
    /// Stored and not yet told to others.
    untold: Vec<u32>,
    tell_at: Option<Instant>,
    /// When to ask for more peers.
    ask_at: Instant,
    started: Instant,
}

impl Download {
    /// Runs until every piece is stored.
    ///
    /// # Errors
    /// [`DownloadError`]; what was stored stays in the part file.
    pub async fn run(self) -> Result<(), DownloadError> {
        let have = self.store.bitfield();
        let layout = self.store.manifest().layout();
        let scheduler = Scheduler::new(layout, &have, BTreeSet::new(), self.seed);
        if scheduler.is_complete() {
            return Ok(());
        }
        let driver = Driver {
            download: self,
            scheduler,
            peers: HashMap::new(),
            fetches: JoinSet::new(),
            stores: JoinSet::new(),
            untold: Vec::new(),
            tell_at: None,
            // The first round is the caller's own.
            ask_at: clock::monotonic() + ASK_AGAIN_ALONE,
            started: clock::monotonic(),
        };
        driver.run().await
    }
}

impl Driver {
    async fn run(mut self) -> Result<(), DownloadError> {
        loop {
            let tick = self.scheduler.next_timeout().map(|at| self.started + at);
            let wake = [tick, self.tell_at].into_iter().flatten().fold(self.ask_at, Instant::min);
            let wake = tokio::time::Instant::from_std(wake);
            let event = tokio::select! {
                () = self.download.stop.cancelled() => return Err(DownloadError::Stopped),
                Some(done) = self.stores.join_next() => match done {
                    Ok((key, peer, user, piece, result)) => Some(self.stored(key, peer, user, piece, result)?),
                    Err(_aborted) => None,
                },
                Some(done) = self.fetches.join_next() => match done {
                    Ok((peer, piece, fetched)) => self.fetched(peer, piece, fetched),
                    Err(_aborted) => None,
                },
                news = self.download.news.recv() => match news {
                    Some(news) => {
                        for event in self.heard(news) {
                            self.step(event);
                        }
                        None
                    }
                    None => return Err(DownloadError::Stopped),
                },
                () = tokio::time::sleep_until(wake) => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.step(event);
            }
            let now = clock::monotonic();
            if self.tell_at.is_some_and(|at| at <= now) || self.untold.len() >= MAX_HAVE_BATCH {
                self.tell();
            }
            if self.ask_at <= now {
                let wait = if self.peers.is_empty() { ASK_AGAIN_ALONE } else { ASK_AGAIN };
                self.ask_at = now + wait;
                // A full queue means that it is being done.
                let _ = self.download.peers_wanted.try_send(());
            }
            if self.scheduler.is_complete() {
                self.tell();
                return Ok(());
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.started.elapsed();
        for action in self.scheduler.handle(now, event) {
            match action {
                Action::Request { peer, piece, .. } => self.request(peer, piece),
                Action::Cancel { peer, piece, .. } => {
                    if let Some(peer) = self.peers.get_mut(&peer)
                        && let Some(fetch) = peer.fetches.remove(&piece)
                    {
                        fetch.abort();
                    }
                }
                Action::Ban { user } => self.ban(&user),
                // The loop sees it.
                Action::SuspectManifest { .. } | Action::Complete => {}
            }
        }
    }

    fn request(&mut self, key: PeerKey, piece: PieceIndex) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let session = peer.session.clone();
        let len = self.download.store.manifest().layout().len(piece);
        let swarm = self.download.key;
        let handle = self
            .fetches
            .spawn(async move { (key, piece, fetch(&session, swarm, piece, len).await) });
        peer.fetches.insert(piece, handle);
    }

    fn fetched(&mut self, key: PeerKey, piece: PieceIndex, fetched: Fetched) -> Option<Event> {
        // A peer that is gone: its pieces were given back when it left.
        let peer = self.peers.get_mut(&key)?;
        peer.fetches.remove(&piece);
        let session = peer.session.clone();
        match fetched {
            Fetched::Bytes(bytes) => {
                let (store, user) = (self.download.store.clone(), peer.user.clone());
                let from = session.connection.remote();
                self.stores.spawn(async move {
                    let written =
                        tokio::task::spawn_blocking(move || store.write_piece(piece, &bytes)).await;
                    // A writer that failed in itself is no peer's fault.
                    let result = written.unwrap_or_else(|error| {
                        let error = std::io::Error::other(error);
                        Err(StorageError::Io { path: PathBuf::new(), error }.into())
                    });
                    (key, from, user, piece, result)
                });
                Some(Event::Received { peer: key, piece, rtt: session.connection.rtt() })
            }
            Fetched::NotServed(reason) => Some(Event::NotServed { peer: key, piece, reason }),
            Fetched::Misbehaved => {
                tracing::warn!(peer = %session.connection.remote().short(), %piece, "misbehaved");
                session.connection.close(ErrorCode::Protocol);
                Some(Event::NotServed { peer: key, piece, reason: NotServed::Broken })
            }
        }
    }

    fn stored(
        &mut self,
        key: PeerKey,
        from: PeerId,
        user: UserName,
        piece: PieceIndex,
        result: Result<(), WriteError>,
    ) -> Result<Event, DownloadError> {
        let len = u64::from(self.download.store.manifest().layout().len(piece));
        match result {
            Ok(()) => {
                self.download.meter.change(|progress| {
                    progress.stored_bytes += len;
                    let source = source(progress, from, &user);
                    source.pieces += 1;
                    source.bytes += len;
                });
                self.untold.push(piece.get());
                self.tell_at.get_or_insert_with(|| clock::monotonic() + TELL_DELAY);
                Ok(Event::Stored { user, piece })
            }
            Err(WriteError::Wrong(what)) => {
                tracing::warn!(%user, peer = %from.short(), %piece, "{what} mismatch");
                self.download.meter.change(|progress| {
                    source(progress, from, &user).bad_pieces += 1;
                });
                Ok(Event::Bad { peer: key, user, piece, received: true })
            }
            Err(WriteError::FalseManifest) => Err(DownloadError::FalseManifest(piece)),
            Err(WriteError::Storage(error)) => Err(error.into()),
        }
    }

    fn heard(&mut self, news: News) -> Vec<Event> {
        match news {
            News::Opened { session, user, pieces } => {
                let key = PeerKey(session.number);
                if self.scheduler.is_banned(&user) {
                    session.close(self.download.key, ErrorCode::Banned);
                    return Vec::new();
                }
                if self.peers.contains_key(&key) {
                    return vec![Event::PeerPieces { peer: key, pieces }];
                }
                let from = session.connection.remote();
                self.download.meter.change(|progress| {
                    source(progress, from, &user).connected = true;
                });
                let peer = Peer { session, user: user.clone(), fetches: HashMap::new() };
                self.peers.insert(key, peer);
                let rtt = self.peers[&key].session.connection.rtt();
                vec![Event::PeerJoined { peer: key, user, pieces, rtt }]
            }
            News::Has { session, pieces } => {
                let peer = PeerKey(session);
                vec![Event::PeerHas { peer, pieces }]
            }
            News::GoingAway { session } => {
                let pieces = Bitfield::none(self.download.store.manifest().layout());
                vec![Event::PeerPieces { peer: PeerKey(session), pieces }]
            }
            News::Closed { session, code } => {
                let key = PeerKey(session);
                if let Some(peer) = self.peers.get(&key) {
                    let remote = peer.session.connection.remote().short();
                    tracing::debug!(peer = %remote, reason = ?code, "closed the swarm");
                }
                self.forget(key);
                vec![Event::PeerLeft { peer: key }]
            }
        }
    }

    fn ban(&mut self, user: &UserName) {
        tracing::warn!(%user, "banned for false pieces");
        let theirs: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.user == *user)
            .map(|(key, peer)| (*key, peer.session.clone()))
            .collect();
        for (key, session) in theirs {
            session.close(self.download.key, ErrorCode::Banned);
            self.forget(key);
        }
    }

    fn forget(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        if self.peers.is_empty() {
            self.ask_at = self.ask_at.min(clock::monotonic() + ASK_AGAIN_ALONE);
        }
        peer.fetches.values().for_each(AbortHandle::abort);
        let from = peer.session.connection.remote();
        self.download.meter.change(|progress| {
            source(progress, from, &peer.user).connected = false;
        });
    }

    /// Tells the peers of this swarm which pieces came.
    fn tell(&mut self) {
        self.tell_at = None;
        for batch in self.untold.chunks(MAX_HAVE_BATCH) {
            // All sessions, not only our sources: who asks us may have nothing for us yet.
            for session in self.download.registry.sessions() {
                session.tell_pieces(self.download.key, batch);
            }
        }
        self.untold.clear();
    }
}

fn source<'a>(progress: &'a mut Progress, peer: PeerId, user: &UserName) -> &'a mut Source {
    progress.sources.entry(peer).or_insert_with(|| Source {
        user: user.clone(),
        pieces: 0,
        bytes: 0,
        bad_pieces: 0,
        connected: true,
    })
}

/// Stops the answer when the request is dropped before its end.
struct StopOnDrop(RecvStream);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // A stream that ended has nothing to stop.
        let _ = self.0.stop(quic_code(ErrorCode::Cancelled));
    }
}

/// Asks for one piece and reads the answer.
async fn fetch(session: &Session, swarm: SwarmKey, piece: PieceIndex, len: u32) -> Fetched {
    let Some(number) = session.our_number(swarm) else {
        return Fetched::NotServed(NotServed::Broken);
    };
    let exchange = async {
        let (mut send, recv) = session.connection.open_bi().await?;
        let mut recv = StopOnDrop(recv);
        write_frame(&mut send, &PieceRequest { swarm: number, piece: piece.get() }).await?;
        let _ = send.finish();
        let header = loop {
            match read_frame(&mut recv.0, MAX_FRAME_LEN).await? {
                PieceHeader::Queued => {}
                header => break header,
            }
        };
        match header {
            PieceHeader::Data { encoding: Encoding::Identity, len: promised } => {
                if promised != len {
                    return Ok(Fetched::Misbehaved);
                }
            }
            PieceHeader::Nack(nack) => return Ok(Fetched::NotServed(not_served(&nack))),
            PieceHeader::Queued => return Ok(Fetched::NotServed(NotServed::Busy)),
        }
        let mut bytes = Vec::with_capacity(len as usize);
        while let Some(chunk) = recv.0.read_chunk(usize::MAX, true).await? {
            if bytes.len() + chunk.bytes.len() > len as usize {
                return Ok(Fetched::Misbehaved);
            }
            bytes.extend_from_slice(&chunk.bytes);
        }
        if bytes.len() == len as usize {
            Ok(Fetched::Bytes(bytes))
        } else {
            Ok(Fetched::Misbehaved)
        }
    };
    let exchanged = tokio::time::timeout(PIECE_DEADLINE, exchange).await;
    exchanged.unwrap_or(Err(FrameError::TimedOut)).unwrap_or_else(|error| {
        if error.is_misbehaviour() {
            Fetched::Misbehaved
        } else {
            Fetched::NotServed(NotServed::Broken)
        }
    })
}

fn not_served(nack: &Nack) -> NotServed {
    match nack {
        Nack::Busy => NotServed::Busy,
        Nack::NotHave { .. } => NotServed::NotHave,
        // None of these is about one piece.
        Nack::Changed | Nack::Revoked | Nack::GoingAway | Nack::NoSwarm => NotServed::Nothing,
    }
}
