//! One download: drives the scheduler, fetches pieces, stores them, tells others of them, and gives the
//! file its name.
//!
//! A single task owns the scheduler. Each piece request runs in a task of its own, on a stream of its
//! own; verifying, writing and everything else that may wait for a disk run on the blocking pool. A disk
//! that fails pauses the download, with the pieces that could not be written kept, until it is well again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::budget::Seat;
pub use super::depot::DownloadError;
use super::depot::{Depot, Outcome, Parcel};
use super::event::{Action, Cause, Event, NotServed, PeerKey, Why};
use super::fetch::{Came, Fetch, Fetched};
use super::hold::{Hold, Watch};
use super::link::{Ended, Link, Open};
use super::message::Nack;
use super::meter::{Meter, Source};
use super::registry::Registry;
use super::scheduler::Scheduler;
pub use super::session::Swarms;
use super::session::{News, Session, SwarmKey};
use super::storage::{PieceStore, Recovered};
use super::untold::Untold;
use crate::bitfield::Bitfield;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits::{DOWNLOAD_QUEUE, PIECE_LEN};
use crate::name::{FileName, UserName};
use crate::peer_id::PeerId;
use crate::piece::{PieceIndex, PieceLayout};

/// So long a download that is stopped may take to store what came.
const STORING: Duration = Duration::from_secs(1);

/// A download without any source asks for peers again after this.
const ASK_AGAIN_ALONE: Duration = Duration::from_secs(5);

/// A download with sources asks for more after this.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// How often it is looked which peers live, and what there is to show.
const PULSE: Duration = Duration::from_millis(500);

/// What a download says to whoever runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It could use more peers.
    PeersWanted,
    /// It does not move.
    Held(Hold),
    /// It moves again.
    Moves,
    /// Every piece is here; the whole file is checked and named.
    Finishing,
    /// Not every piece is here after all.
    Downloading,
}

/// What a download needs.
#[derive(Debug)]
pub struct Download {
    /// Which swarms.
    pub swarms: Arc<Swarms>,
    /// Where its bytes go.
    pub store: Arc<PieceStore>,
    /// The directory where it will be.
    pub directory: PathBuf,
    /// Its name there.
    pub name: FileName,
    /// News of its peers.
    pub news: mpsc::Receiver<(SwarmKey, News)>,
    /// Where it says what others should know or do.
    pub reports: mpsc::Sender<Report>,
    /// The sessions of the agent, and what all downloads share.
    pub registry: Arc<Registry>,
    /// Where progress is counted.
    pub meter: Arc<Meter>,
    /// Stops it.
    pub stop: CancellationToken,
    /// Decides among equals.
    pub seed: u64,
}

struct Driver {
    download: Download,
    layout: PieceLayout,
    scheduler: Scheduler,
    seat: Seat,
    peers: BTreeMap<PeerKey, Link>,
    next_fetch: u64,
    fetches: JoinSet<(PeerKey, PieceIndex, u64, Fetched)>,
    progress: (mpsc::Sender<Came>, mpsc::Receiver<Came>),
    depot: Depot,
    /// What was last said of room, and when credit for more is to be had.
    room: (u64, Option<u64>),
    credit_at: Option<Instant>,
    untold: Untold,
    /// When to ask for more peers.
    ask_at: Instant,
    pulse_at: Instant,
    watch: Watch,
    started: Instant,
}

impl Download {
    /// Runs until the file is whole, checked, and has its name; returns where it is.
    ///
    /// # Errors
    /// [`DownloadError`]; what was stored stays in the part file.
    pub async fn run(self) -> Result<PathBuf, DownloadError> {
        let have = self.store.bitfield();
        let manifest = self.store.manifest();
        let layout = manifest.layout();
        let outcasts = self.registry.banned(manifest.content_id());
        let scheduler = Scheduler::new(layout, &have, outcasts, self.seed);
        let now = clock::monotonic();
        let (directory, name) = (self.directory.clone(), self.name.clone());
        let shared = (self.registry.buffers().clone(), self.registry.sidecars().clone());
        let depot = Depot::new(self.store.clone(), directory, name, shared, self.stop.clone());
        let untold = Untold::new(self.registry.clone(), self.swarms.clone());
        let mut driver = Driver {
            seat: self.registry.budget().join(),
            download: self,
            layout,
            scheduler,
            peers: BTreeMap::new(),
            next_fetch: 0,
            fetches: JoinSet::new(),
            progress: mpsc::channel(DOWNLOAD_QUEUE),
            depot,
            room: (0, Some(0)),
            credit_at: None,
            untold,
            // The first round is the caller's own.
            ask_at: now + ASK_AGAIN_ALONE,
            pulse_at: now + PULSE,
            watch: Watch::default(),
            started: now,
        };
        let result = driver.run().await;
        if matches!(result, Err(DownloadError::Stopped)) {
            driver.stop().await;
        }
        result
    }
}

impl Driver {
    async fn run(&mut self) -> Result<PathBuf, DownloadError> {
        let mut limits = self.download.registry.rates().changed();
        loop {
            self.make_room();
            if self.depot.begin_due(clock::monotonic(), self.scheduler.is_complete()) {
                self.untold.tell();
                self.report(Report::Finishing);
            }
            let wake = tokio::time::Instant::from_std(self.wake());
            tokio::select! {
                () = self.download.stop.cancelled() => return Err(DownloadError::Stopped),
                outcome = self.depot.next() => {
                    if let Some(path) = self.came_of(outcome?) {
                        return Ok(path);
                    }
                }
                Some(done) = self.fetches.join_next() => self.fetched(done),
                Some((peer, piece, received)) = self.progress.1.recv() => {
                    self.step(Event::Progress { peer, piece, received });
                }
                news = self.download.news.recv() => match news {
                    Some((swarm, news)) => self.heard(swarm, news),
                    None => return Err(DownloadError::Stopped),
                },
                () = self.seat.changed() => {}
                _ = limits.changed() => {}
                () = tokio::time::sleep_until(wake) => self.on_time(),
            }
        }
    }

    /// Nothing more is asked for, and what came whole is stored, unless the disk is too slow for that.
    async fn stop(&mut self) {
        // Nobody may wait for this to hear more.
        self.download.news.close();
        self.step(Event::Pause);
        while let Some(done) = self.fetches.try_join_next() {
            self.fetched(done);
        }
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            self.forget(key);
        }
        let stored = async {
            while let Some(outcome) = self.depot.rest().await {
                self.came_of(outcome);
            }
        };
        let _ = tokio::time::timeout(STORING, stored).await;
        for Parcel { from, piece, .. } in self.depot.end() {
            let len = u64::from(self.layout.len(piece));
            self.count_of(from, |source| source.wasted.broken += len);
        }
    }

    /// When to look at the clock again.
    fn wake(&self) -> Instant {
        let tick = self.scheduler.next_timeout().map(|at| self.started + at);
        let pulse = (!self.peers.is_empty() || self.watch.is_held()).then_some(self.pulse_at);
        let all = [
            tick,
            self.untold.tell_at(),
            pulse,
            self.depot.wake(self.scheduler.is_complete()),
            self.credit_at,
            self.watch.wake(),
        ];
        all.into_iter().flatten().fold(self.ask_at, Instant::min)
    }

    /// Does what is due by now.
    fn on_time(&mut self) {
        let now = clock::monotonic();
        let tick = self.scheduler.next_timeout().is_some_and(|at| self.started + at <= now);
        // Nobody is judged by the time before it was looked whether he lives.
        if tick || self.pulse_at <= now {
            self.pulse_at = now + PULSE;
            self.pulse(now);
        }
        if tick {
            self.step(Event::Tick);
        }
        self.untold.tell_due(now);
        if self.ask_at <= now {
            let wait = if self.peers.is_empty() { ASK_AGAIN_ALONE } else { ASK_AGAIN };
            self.ask_at = now + wait;
            self.report(Report::PeersWanted);
        }
        self.look_for_hold(now);
    }

    fn step(&mut self, event: Event) {
        let now = self.started.elapsed();
        for action in self.scheduler.handle(now, event) {
            match action {
                Action::Request { peer, piece, why } => self.request(peer, piece, why),
                Action::Cancel { peer, piece, cause } => self.cancel(peer, piece, cause),
                Action::Ban { user } => self.ban(user),
                Action::SuspectManifest { piece } => tracing::warn!(%piece, "all send another"),
                Action::Complete => {}
            }
        }
    }

    /// Tells the scheduler how much may be under way, if that changed.
    fn make_room(&mut self) {
        self.seat.ask(self.scheduler.demand());
        let swarms = self.download.swarms.all();
        loop {
            let now = clock::monotonic();
            let credit = self.download.registry.rates().down_credit(&swarms, now);
            self.credit_at = credit.err().map(|wait| now + wait);
            let limited = credit.unwrap_or(true);
            // One piece at a time where there is a limit: what is asked for is taken from it.
            let credit = match credit {
                Ok(limited) => limited.then_some(u64::from(PIECE_LEN)),
                Err(_) => Some(0),
            };
            let room = (self.seat.share(), credit);
            let again = limited && credit != Some(0);
            if room == self.room && !again {
                return;
            }
            self.room = room;
            self.depot.set_room(room.0);
            let before = self.next_fetch;
            self.step(Event::Room { bytes: room.0, credit });
            if !again || self.next_fetch == before {
                return;
            }
        }
    }

    fn request(&mut self, key: PeerKey, piece: PieceIndex, why: Why) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let len = self.layout.len(piece);
        self.download.registry.rates().take_down(peer.swarm, u64::from(len), clock::monotonic());
        let number = self.next_fetch;
        self.next_fetch += 1;
        let received = Arc::new(AtomicU32::new(0));
        let fetch = Fetch {
            session: peer.session.clone(),
            peer: key,
            swarm: peer.swarm,
            piece,
            len,
            received: received.clone(),
            buffers: self.download.registry.buffers().clone(),
            progress: self.progress.0.clone(),
        };
        let task = self.fetches.spawn(async move { (key, piece, number, fetch.run().await) });
        peer.begin(piece, Open { number, task, len, received });
        self.count(key, |source| source.asked_for(why));
    }

    fn cancel(&mut self, key: PeerKey, piece: PieceIndex, cause: Cause) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let swarm = peer.swarm;
        if let Some(ended) = peer.stop(piece) {
            self.give_back(swarm, ended);
            self.count(key, |source| source.stopped(cause, ended.came));
        }
    }

    /// What was asked for and did not come does not count against the limits.
    fn give_back(&self, swarm: SwarmKey, ended: Ended) {
        let now = clock::monotonic();
        self.download.registry.rates().give_back_down(swarm, ended.left, now);
    }

    fn fetched(&mut self, done: Result<(PeerKey, PieceIndex, u64, Fetched), JoinError>) {
        // It was stopped.
        let Ok((key, piece, number, fetched)) = done else { return };
        // A peer that is gone, or a request that was stopped: it was counted then.
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(ended) = peer.ended(piece, number) else { return };
        let bytes = ended.came;
        let (from, swarm) = (peer.remote(), peer.swarm);
        let (session, user) = (peer.session.clone(), peer.user.clone());
        let late = self.scheduler.is_stored(piece);
        self.give_back(swarm, ended);
        self.count_of(from, |source| {
            source.received_bytes += bytes;
            match &fetched {
                Fetched::Bytes(..) if late => source.wasted.late += bytes,
                Fetched::Bytes(..) => {}
                Fetched::Refused(_) => source.requests.refused += 1,
                Fetched::Broken => {
                    source.wasted.broken += bytes;
                    source.requests.undone += 1;
                }
                Fetched::Misbehaved => {
                    source.wasted.bad += bytes;
                    source.bad_pieces += 1;
                }
            }
        });
        match fetched {
            Fetched::Bytes(chunks, midstates) => {
                let rtt = session.connection.rtt();
                self.step(Event::Received { peer: key, piece, rtt });
                if !late {
                    let parcel = Parcel { peer: key, from, user, piece, chunks, midstates };
                    self.depot.take(parcel);
                }
            }
            Fetched::Refused(nack) => self.refused(key, piece, nack),
            Fetched::Broken => {
                let reason = NotServed::Broken;
                self.step(Event::NotServed { peer: key, piece, reason });
            }
            Fetched::Misbehaved => {
                tracing::warn!(peer = %from.short(), %piece, "misbehaved");
                self.step(Event::Bad { peer: key, user, piece, received: false });
                session.connection.close(ErrorCode::Protocol);
            }
        }
    }

    fn refused(&mut self, peer: PeerKey, piece: PieceIndex, nack: Nack) {
        let (reason, bits) = match nack {
            Nack::Busy => (NotServed::Busy, None),
            Nack::NotHave { bits } => (NotServed::NotHave, bits),
            // None of these is about one piece.
            Nack::Changed | Nack::Revoked | Nack::GoingAway | Nack::NoSwarm => {
                (NotServed::Nothing, None)
            }
        };
        self.step(Event::NotServed { peer, piece, reason });
        // What it has instead, unless that contradicts the refusal.
        let pieces = bits.and_then(|bits| Bitfield::from_bytes(self.layout, &bits).ok());
        if let Some(pieces) = pieces.filter(|pieces| !pieces.contains(piece)) {
            self.step(Event::PeerPieces { peer, pieces });
        }
    }

    /// Acts on what came of work on the disk; where the file is, when that was the last of it.
    fn came_of(&mut self, outcome: Outcome) -> Option<PathBuf> {
        match outcome {
            Outcome::Stored(parcel) => self.stored(parcel),
            Outcome::Wrong(parcel, what) => {
                let Parcel { peer, from, user, piece, .. } = parcel;
                tracing::warn!(%user, peer = %from.short(), %piece, "{what} mismatch");
                let len = u64::from(self.layout.len(piece));
                self.count_of(from, |source| {
                    source.bad_pieces += 1;
                    source.wasted.bad += len;
                });
                self.step(Event::Bad { peer, user, piece, received: true });
            }
            Outcome::Paused => {
                self.step(Event::Pause);
                self.look_for_hold(clock::monotonic());
            }
            Outcome::Well(Recovered { lost, found }) => {
                self.lose(lost);
                if !found.is_empty() {
                    let bytes = self.bytes_of(&found);
                    self.download.meter.change(|progress| progress.stored_bytes += bytes);
                    self.step(Event::Found { pieces: found });
                    self.untold.tell_again();
                }
                self.step(Event::Resume);
                self.look_for_hold(clock::monotonic());
            }
            Outcome::Incomplete => {
                let have = self.download.store.bitfield();
                let lost = self.layout.pieces().filter(|piece| !have.contains(*piece)).collect();
                self.lose(lost);
                self.report(Report::Downloading);
            }
            Outcome::Finished(path) => return Some(path),
            Outcome::Nothing => {}
        }
        None
    }

    fn stored(&mut self, Parcel { from, user, piece, .. }: Parcel) {
        let len = u64::from(self.layout.len(piece));
        if self.scheduler.is_stored(piece) {
            self.count_of(from, |source| source.wasted.late += len);
            return;
        }
        self.download.meter.change(|progress| progress.stored_bytes += len);
        self.count_of(from, |source| {
            source.pieces += 1;
            source.bytes += len;
        });
        self.untold.add(piece);
        self.step(Event::Stored { user, piece });
    }

    /// Pieces that were here went bad: they are fetched again, and nobody believes that they are here.
    fn lose(&mut self, mut lost: Vec<PieceIndex>) {
        lost.retain(|piece| self.scheduler.is_stored(*piece));
        if lost.is_empty() {
            return;
        }
        tracing::warn!(count = lost.len(), "pieces were lost on the disk");
        let bytes = self.bytes_of(&lost);
        self.download.meter.change(|progress| progress.stored_bytes -= bytes);
        self.untold.forget(&lost);
        self.step(Event::Lost { pieces: lost });
        self.untold.tell_again();
    }

    fn bytes_of(&self, pieces: &[PieceIndex]) -> u64 {
        pieces.iter().map(|piece| u64::from(self.layout.len(*piece))).sum()
    }

    fn heard(&mut self, swarm: SwarmKey, news: News) {
        match news {
            News::Opened { session, user, pieces } => self.opened(swarm, session, user, pieces),
            News::Has { session, pieces } => {
                let key = PeerKey(session);
                let Some(peer) = self.peers.get_mut(&key) else { return };
                if peer.swarm == swarm {
                    self.step(Event::PeerHas { peer: key, pieces });
                } else if let Some(known) = peer.others.get_mut(&swarm) {
                    pieces.into_iter().for_each(|piece| _ = known.insert(piece));
                }
            }
            News::GoingAway { session } => {
                let (peer, pieces) = (PeerKey(session), Bitfield::none(self.layout));
                self.step(Event::PeerPieces { peer, pieces });
            }
            News::Closed { session, code } => self.closed(PeerKey(session), swarm, code),
        }
    }

    fn opened(&mut self, swarm: SwarmKey, session: Arc<Session>, user: UserName, pieces: Bitfield) {
        let key = PeerKey(session.number);
        if !self.download.swarms.all().contains(&swarm) {
            return;
        }
        if self.scheduler.is_banned(&user) {
            session.close(swarm, ErrorCode::Banned);
            return;
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            if peer.swarm == swarm {
                self.step(Event::PeerPieces { peer: key, pieces });
            } else {
                peer.others.insert(swarm, pieces);
            }
            return;
        }
        let connection = &session.connection;
        let (address, rtt) = (connection.remote_address(), connection.rtt());
        let from = connection.remote();
        self.download.meter.change(|progress| {
            let source = progress.sources.entry(from);
            let source = source.or_insert_with(|| Source::new(user.clone(), address));
            source.connected = true;
            source.address = address;
        });
        self.peers.insert(key, Link::new(session, user.clone(), swarm));
        self.step(Event::PeerJoined { peer: key, user, pieces, rtt });
    }

    /// A peer closed a swarm; it may have another one open.
    fn closed(&mut self, key: PeerKey, swarm: SwarmKey, code: Option<ErrorCode>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        tracing::debug!(peer = %peer.remote().short(), reason = ?code, "closed");
        if peer.swarm != swarm {
            peer.others.remove(&swarm);
            return;
        }
        let other = peer.others.pop_first();
        let (session, user) = (peer.session.clone(), peer.user.clone());
        let others = std::mem::take(&mut peer.others);
        self.forget(key);
        self.step(Event::PeerLeft { peer: key });
        if let Some((swarm, pieces)) = other.filter(|_| !session.connection.is_closed()) {
            self.opened(swarm, session, user, pieces);
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.others = others;
            }
        }
    }

    fn ban(&mut self, user: UserName) {
        tracing::warn!(%user, "banned: nothing more of this content is taken from this user");
        let content = self.download.store.manifest().content_id();
        self.download.registry.ban(content, user.clone());
        let theirs = self.peers.iter().filter(|(_, peer)| peer.user == user);
        for key in theirs.map(|(key, _)| *key).collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get(&key) {
                peer.swarms().for_each(|swarm| peer.session.close(swarm, ErrorCode::Banned));
            }
            self.forget(key);
        }
    }

    /// A peer is not asked any more; what it was asked for came to nothing.
    fn forget(&mut self, key: PeerKey) {
        let Some(mut peer) = self.peers.remove(&key) else { return };
        if self.peers.is_empty() {
            self.ask_at = self.ask_at.min(clock::monotonic() + ASK_AGAIN_ALONE);
        }
        let ((ended, undone), remote) = (peer.stop_all(), peer.remote());
        self.give_back(peer.swarm, ended);
        // A newer session with the same device may have taken its place.
        let replaced = self.peers.values().any(|other| other.remote() == remote);
        self.count_of(remote, |source| {
            source.connected = replaced;
            (source.asked, source.bytes_per_sec) = (0, 0);
            source.received_bytes += ended.came;
            source.wasted.broken += ended.came;
            source.requests.undone += undone;
        });
    }

    /// Lets go of swarms that this side has left: nobody says that they are closed.
    fn drop_strays(&mut self) {
        let ours = self.download.swarms.all();
        let mut strays = Vec::new();
        for (key, peer) in &mut self.peers {
            if !peer.keep_open(&ours) {
                strays.push((*key, peer.swarm));
            }
        }
        strays.into_iter().for_each(|(key, swarm)| self.closed(key, swarm, None));
    }

    /// Looks which peers live, and notes what there is to show.
    fn pulse(&mut self, now: Instant) {
        self.drop_strays();
        let looked = self.peers.iter_mut().filter_map(|(key, peer)| {
            peer.is_alive(now).then(|| (*key, peer.session.connection.rtt()))
        });
        let alive: Vec<_> = looked.collect();
        for (peer, rtt) in alive {
            self.step(Event::Alive { peer, rtt });
        }
        self.lose(self.download.store.take_lost());
        let scheduler = &self.scheduler;
        let peers = &self.peers;
        self.download.meter.change(|progress| {
            for (key, peer) in peers {
                let source = progress.sources.get_mut(&peer.remote());
                let (Some(source), Some((has, asked, rate))) = (source, scheduler.pulse(*key))
                else {
                    continue;
                };
                let rtt = peer.session.connection.rtt();
                (source.has, source.asked, source.rtt) = (has, asked as u32, rtt);
                source.bytes_per_sec = if asked == 0 { 0 } else { rate.unwrap_or(0.0) as u64 };
            }
        });
    }

    /// Says so when it does not move, and when it does again.
    fn look_for_hold(&mut self, now: Instant) {
        let stuck = self.scheduler.is_stuck() && self.depot.is_idle();
        let disk = self.depot.trouble().map(ToString::to_string);
        if let Some(hold) = self.watch.look(now, stuck, disk, &self.scheduler.suspected_here()) {
            self.download.meter.change(|progress| progress.hold.clone_from(&hold));
            self.report(hold.map_or(Report::Moves, Report::Held));
        }
    }

    /// Says something to whoever runs it. When too much is unread it does without: it is said again, or
    /// can be seen.
    fn report(&self, report: Report) {
        let _ = self.download.reports.try_send(report);
    }

    fn count(&self, key: PeerKey, count: impl FnOnce(&mut Source)) {
        if let Some(peer) = self.peers.get(&key) {
            self.count_of(peer.remote(), count);
        }
    }

    fn count_of(&self, from: PeerId, count: impl FnOnce(&mut Source)) {
        self.download.meter.change(|progress| {
            progress.sources.get_mut(&from).map(count);
        });
    }
}
