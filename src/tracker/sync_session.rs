//! One connection with another tracker: what is sent, heard, asked and answered on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::feed::{Feed, OpBatch};
use super::ledger::{Essence, Merged};
use super::links::Link;
use super::op::Op;
use super::refusal::Refusal;
use super::remembered::Grants;
use super::session::Shared;
use super::store::Answered;
use super::sync_message::{SyncHello, SyncMessage, SyncReply, SyncRequest};
use super::vector::{Knowledge, Vector};
use crate::clock::{self, UnixMillis};
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::limits;
use crate::peer_id::PeerId;
use crate::transport::connection::{Connection, RecvStream, SendStream};
use crate::transport::frame::{FrameError, read_frame, read_frame_within, write_frame};
use crate::wire;

/// How often trackers tell each other who is online.
const GOSSIP_TICK: Duration = Duration::from_secs(1);

/// Things told of who is online in one message.
const GOSSIP_BATCH: usize = 1_000;

/// Bytes in one frame of everything a tracker knows.
const ESSENCE_PART: usize = 512 * 1024;

/// Why a connection to another tracker ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("its ops cannot be read: {0}")]
    Op(#[from] wire::DecodeError),
    #[error("what it said cannot be kept: {0}")]
    Store(#[from] Refusal),
    #[error("it said more at once than it may")]
    TooMuch,
}

impl LinkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Frame(error) => error.code(),
            Self::Op(_) => ErrorCode::Protocol,
            Self::Store(_) => ErrorCode::Internal,
            Self::TooMuch => ErrorCode::LimitReached,
        }
    }
}

/// Users whose last connection is gone were online until now.
pub(super) fn note_gone(shared: &Shared, users: Vec<crate::id::UserId>) {
    let now = clock::now();
    users.into_iter().for_each(|user| shared.store.note_seen(user, now));
}

/// What one connection works on.
struct Session {
    shared: Arc<Shared>,
    link: Link,
    tracker: PeerId,
    feed: Mutex<Feed>,
    /// The number of the last batch that was taken.
    heard: AtomicU64,
    /// Whether everything the other one knows is being fetched.
    absorbing: AtomicBool,
    /// What the other one had at the beginning.
    at_first: Knowledge,
    /// Something may be sent that could not be before.
    moved: Notify,
    /// Something was taken that the other one has not been told of.
    took: Notify,
}

/// A batch that the store was given.
struct Merging {
    number: u64,
    /// What is in it.
    sent: Vector,
    answered: Answered<Merged>,
}

/// A connection to another tracker on which both have said hello.
pub struct Established {
    session: Arc<Session>,
    control: SendStream,
    queue: mpsc::Receiver<SyncMessage>,
    pushes: RecvStream,
}

/// Greets another tracker, whoever dialled, and takes up the connection.
///
/// # Errors
/// Why it is closed again, in words.
pub async fn establish(
    shared: &Arc<Shared>,
    connection: Connection,
) -> Result<Established, String> {
    let tracker = connection.remote();
    let refuse = |code: ErrorCode, reason: String| {
        connection.close(code);
        reason
    };
    let listed = || shared.rosters.known().siblings().any(|entry| entry.peer_id() == tracker);
    let stranger = "not in the roster: `mtq tracker roster add` puts it there";
    if !listed() {
        return Err(refuse(ErrorCode::NotATracker, stranger.to_owned()));
    }
    let greeting = tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, greet(shared, &connection));
    let greeted = greeting.await.unwrap_or(Err(FrameError::TimedOut));
    let (control, pushes, hello) = greeted.map_err(|error| {
        let reason = match error.to_string() {
            reason if reason.contains(ErrorCode::NotATracker.sentence()) => {
                "this tracker is not in its roster: there, `mtq tracker roster add` puts it in"
                    .to_owned()
            }
            reason => reason,
        };
        refuse(error.code(), reason)
    })?;
    let (outbox, queue) = mpsc::channel(limits::SYNC_WINDOW * 4);
    let link = Link::new(connection.clone(), outbox);
    let now = clock::now();
    let said = (hello.knowledge.clone(), hello.time.0 as i64 - now.0 as i64);
    match shared.links.enter(shared.endpoint.identity().peer_id(), link.clone(), said, now) {
        (false, _) => {
            return Err(refuse(ErrorCode::Duplicate, ErrorCode::Duplicate.to_string()));
        }
        (true, Some(old)) => old.connection.close(ErrorCode::Duplicate),
        (true, None) => {}
    }
    // Whoever was taken out of the roster before this was not closed with the others.
    if !listed() {
        if shared.links.leave(&connection) {
            shared.links.siblings().forget(tracker);
        }
        return Err(refuse(ErrorCode::NotATracker, stranger.to_owned()));
    }
    let (short, address) = (tracker.short(), connection.remote_address());
    tracing::info!(tracker = %short, %address, agent = hello.agent, "tracker connected");
    let session = Session::start(shared.clone(), link, hello.knowledge);
    Ok(Established { session, control, queue, pushes })
}

impl Established {
    /// Goes on until the connection ends.
    pub async fn serve(self, stop: CancellationToken, tasks: TaskTracker) {
        let Self { session, control, queue, pushes } = self;
        let (shared, tracker) = (session.shared.clone(), session.tracker);
        let connection = session.link.connection.clone();
        let ended = session.run((control, queue), pushes, stop, tasks).await;
        let code = match ended {
            Ok(code) => code,
            Err(error) => {
                let tracker = tracker.short();
                tracing::warn!(%tracker, %error, "the connection to a tracker fails");
                error.code()
            }
        };
        connection.close(code);
        if shared.links.leave(&connection) {
            let now = clock::now();
            shared.presence.tracker_lost(tracker, now);
            shared.store.note_heard(tracker, now);
            tracing::info!(tracker = %tracker.short(), "tracker disconnected");
        }
    }
}

/// Both say hello at once.
async fn greet(
    shared: &Shared,
    connection: &Connection,
) -> Result<(SendStream, RecvStream, SyncHello), FrameError> {
    let mut control = connection.open_control().await?;
    let hello = SyncHello {
        features: 0,
        agent: crate::AGENT.to_owned(),
        time: clock::now(),
        knowledge: shared.store.knowledge(),
        extensions: Vec::new(),
    };
    write_frame(&mut control, &hello).await?;
    let mut pushes = connection.accept_control().await?;
    let hello: SyncHello = read_frame(&mut pushes, limits::MAX_FRAME_LEN).await?;
    if !hello.is_bounded() {
        return Err(wire::DecodeError::Malformed.into());
    }
    Ok((control, pushes, hello))
}

impl Session {
    fn start(shared: Arc<Shared>, link: Link, at_first: Knowledge) -> Arc<Self> {
        let log = shared.store.log();
        let feed = Feed::new(shared.store.origin(), at_first.clone(), log);
        Arc::new(Self {
            tracker: link.connection.remote(),
            shared,
            link,
            feed: Mutex::new(feed),
            heard: AtomicU64::new(0),
            absorbing: AtomicBool::new(false),
            at_first,
            moved: Notify::new(),
            took: Notify::new(),
        })
    }

    /// Everything that goes on on the connection; ends with it.
    async fn run(
        self: &Arc<Self>,
        (control, queue): (SendStream, mpsc::Receiver<SyncMessage>),
        pushes: RecvStream,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<ErrorCode, LinkError> {
        let (merging, merged) = mpsc::channel(limits::SYNC_WINDOW);
        tokio::select! {
            ended = write_all(control, queue) => ended.map_err(LinkError::from),
            ended = self.feed_log() => ended,
            ended = self.hear_all(pushes, merging, &tasks) => ended,
            ended = self.note_merged(merged) => ended,
            ended = self.answer_all(&tasks) => ended,
            () = self.gossip() => Ok(ErrorCode::Done),
            () = self.feel_pulse() => Ok(ErrorCode::TimedOut),
            () = self.keep_in_step() => Ok(ErrorCode::Done),
            () = self.tell_what_is_taken() => Ok(ErrorCode::Done),
            () = self.tell_roster() => Ok(ErrorCode::Done),
            () = self.go_in_order(&stop) => Ok(ErrorCode::GoingAway),
        }
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; waits while there is no room.
    async fn say(&self, message: SyncMessage) {
        let _ = self.link.outbox.send(message).await;
    }

    /// Says what is here.
    async fn say_have(&self) {
        let theirs = self.feed().known().clone();
        let (vector, behind) = self
            .shared
            .store
            .read_ledger(|ledger| (ledger.chains.vector(), ledger.is_behind_cut(&theirs)));
        let heard = self.heard.load(Ordering::Relaxed);
        self.say(SyncMessage::Have { heard, vector, time: clock::now(), behind }).await;
    }

    /// Says what is here, at first and whenever something was taken.
    async fn tell_what_is_taken(&self) {
        loop {
            self.say_have().await;
            self.took.notified().await;
        }
    }

    /// Says what the roster is, at first and whenever it changes.
    async fn tell_roster(&self) {
        let mut rosters = self.shared.rosters.watch();
        loop {
            let roster = rosters.borrow_and_update().bytes().map(<[u8]>::to_vec);
            if let Some(roster) = roster {
                self.say(SyncMessage::Roster(roster)).await;
            }
            if rosters.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Sends what the other one lacks, and then what is new.
    async fn feed_log(&self) -> Result<ErrorCode, LinkError> {
        let store = &self.shared.store;
        let mut places = store.places();
        loop {
            let end = *places.borrow_and_update();
            let theirs = self.feed().known().clone();
            // What the log lacks comes otherwise, and the rest follows on it.
            let behind = store.read_ledger(|ledger| ledger.is_behind_cut(&theirs));
            let wanted = self.feed().wants(end).filter(|_| !behind);
            let Some(wanted) = wanted else {
                tokio::select! {
                    () = self.moved.notified() => {}
                    changed = places.changed() => if changed.is_err() { return Ok(ErrorCode::Done) },
                }
                continue;
            };
            let entries = store.read_log(wanted.places.start, limits::SYNC_BATCH_BYTES).await?;
            let batch = self.feed().take(&wanted, &entries);
            if let Some(batch) = batch {
                self.say(SyncMessage::Ops(batch)).await;
            }
        }
    }

    async fn hear_all(
        self: &Arc<Self>,
        mut pushes: RecvStream,
        merging: mpsc::Sender<Merging>,
        tasks: &TaskTracker,
    ) -> Result<ErrorCode, LinkError> {
        loop {
            match read_frame(&mut pushes, limits::MAX_FRAME_LEN).await {
                Ok(SyncMessage::Ops(batch)) => {
                    let batch = self.take(batch).await?;
                    let _ = merging.send(batch).await;
                }
                Ok(message) => self.hear(message, tasks).await?,
                Err(FrameError::Connection(_) | FrameError::Ended) => return Ok(ErrorCode::Done),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn hear(
        self: &Arc<Self>,
        message: SyncMessage,
        tasks: &TaskTracker,
    ) -> Result<(), LinkError> {
        match message {
            // Have their own way.
            SyncMessage::Ops(_) => {}
            SyncMessage::Have { heard, vector, time, behind } => {
                let now = clock::now();
                let clock_ahead = time.0 as i64 - now.0 as i64;
                self.feed().heard(heard, &vector);
                self.shared.links.siblings().said(self.tracker, &vector, clock_ahead, now);
                self.moved.notify_one();
                self.settle();
                if behind && !self.absorbing.swap(true, Ordering::Relaxed) {
                    let session = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = session.absorb().await {
                            let tracker = session.tracker.short();
                            tracing::warn!(%tracker, %error, "cannot take over what it knows");
                            session.link.connection.close(error.code());
                        }
                        session.absorbing.store(false, Ordering::Relaxed);
                    });
                }
            }
            SyncMessage::Knows(knowledge) => {
                if !knowledge.is_bounded() {
                    return Err(LinkError::TooMuch);
                }
                self.feed().knows(&knowledge);
                self.shared.links.siblings().knows(self.tracker, &knowledge);
                self.moved.notify_one();
                self.settle();
            }
            SyncMessage::Digest { knowledge, digest } => self.compare(knowledge, digest).await,
            SyncMessage::Presence(news) => {
                if news.len() > GOSSIP_BATCH {
                    return Err(LinkError::TooMuch);
                }
                for news in news {
                    let gone = self.shared.presence.hear(self.tracker, news, clock::now());
                    note_gone(&self.shared, gone);
                }
            }
            SyncMessage::Roster(bytes) => {
                let rosters = self.shared.rosters.clone();
                // It writes a file.
                let offered = tokio::task::spawn_blocking(move || rosters.offer(&bytes)).await;
                match offered {
                    Ok(Ok(true)) => {
                        tracing::info!(tracker = %self.tracker.short(), "took its roster")
                    }
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(tracker = %self.tracker.short(), %error, "its roster is refused");
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands ops to the store. While it writes them the next ones are read, so that it finds
    /// several batches at once.
    async fn take(&self, batch: OpBatch) -> Result<Merging, LinkError> {
        let OpBatch { number, ops } = batch;
        if ops.len() > limits::SYNC_BATCH_OPS {
            return Err(LinkError::TooMuch);
        }
        let decoded: Result<Vec<_>, _> =
            ops.into_iter().map(|bytes| Ok((Op::decode(&bytes)?, bytes))).collect();
        let decoded = decoded.map_err(LinkError::Op)?;
        let sent: Vector = decoded.iter().map(|(op, _)| (op.origin, op.seq)).collect();
        let answered = self.shared.store.merge(decoded).await?;
        Ok(Merging { number, sent, answered })
    }

    /// Notes what was taken over once it is durable, in the order in which it came.
    async fn note_merged(
        &self,
        mut batches: mpsc::Receiver<Merging>,
    ) -> Result<ErrorCode, LinkError> {
        while let Some(Merging { number, sent, answered }) = batches.recv().await {
            let merged = answered.await.unwrap_or(Err(Refusal::Internal))?;
            // Whoever sends ops has them.
            self.feed().heard(0, &sent);
            self.shared.links.siblings().sent(self.tracker, &sent);
            if merged.forked > 0 {
                self.shared.counters.sync_alarm();
                tracing::error!(
                    tracker = %self.tracker.short(), ops = merged.forked,
                    "ALARM: ops contradict those that are known: two made them under one name"
                );
            }
            self.heard.fetch_max(number, Ordering::Relaxed);
            // Not here: who waits for room to speak does not listen, and two that do so are stuck.
            self.took.notify_one();
            self.settle();
        }
        Ok(ErrorCode::Done)
    }

    /// Notes who has what; with all that the other one had, names may be given away.
    fn settle(&self) {
        let ours = self.shared.store.knowledge();
        if ours.covers_all(&self.at_first) {
            self.shared.links.open_names();
        }
        settle(&self.shared, &ours, clock::now());
    }

    /// Takes over everything the other one knows.
    async fn absorb(&self) -> Result<(), LinkError> {
        let tracker = self.tracker.short();
        tracing::info!(%tracker, "too far behind for the log: taking over everything it knows");
        let mut recv = self.link.connection.ask(&SyncRequest::Essence).await?;
        let mut bytes = Vec::new();
        loop {
            match read_frame::<Vec<u8>>(&mut recv, limits::MAX_FRAME_LEN).await {
                Ok(part) if bytes.len() + part.len() > limits::MAX_ESSENCE_LEN => {
                    return Err(LinkError::TooMuch);
                }
                Ok(part) => bytes.extend_from_slice(&part),
                Err(FrameError::Ended) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let decoded =
            tokio::task::spawn_blocking(move || wire::decode::<(Essence, Grants)>(&bytes)).await;
        let (essence, granted) = decoded.map_err(|_| Refusal::Internal)?.map_err(LinkError::Op)?;
        self.shared.store.absorb(essence, granted).await?;
        tracing::info!(%tracker, "took over everything it knows");
        let knowledge = self.shared.store.knowledge();
        self.say(SyncMessage::Knows(knowledge)).await;
        self.settle();
        Ok(())
    }

    /// Compares what the same ops amount to here and there.
    async fn compare(&self, knowledge: Knowledge, digest: Blake3Hash) {
        let shared = self.shared.clone();
        let compare = move || {
            shared.store.read_ledger(|ledger| {
                let ours = ledger.chains.knowledge();
                let same = ours.covers_all(&knowledge) && knowledge.covers_all(&ours);
                same.then(|| ledger.digest())
            })
        };
        let Ok(Some(ours)) = tokio::task::spawn_blocking(compare).await else { return };
        let same = ours == digest;
        self.shared.links.siblings().compared(self.tracker, same, clock::now());
        if !same {
            self.shared.counters.sync_alarm();
            tracing::error!(
                tracker = %self.tracker.short(), %ours, theirs = %digest,
                "ALARM: the same ops, and another state: the trackers disagree"
            );
        }
    }

    /// Answers the other one's questions.
    async fn answer_all(self: &Arc<Self>, tasks: &TaskTracker) -> Result<ErrorCode, LinkError> {
        // QUIC's stream limit bounds how many run at once.
        while let Ok((send, recv)) = self.link.connection.accept_bi().await {
            let session = self.clone();
            tasks.spawn(async move {
                if let Err(error) = session.answer(send, recv).await {
                    let tracker = session.tracker.short();
                    tracing::debug!(%tracker, %error, "a question of a tracker got no answer");
                }
            });
        }
        Ok(ErrorCode::Done)
    }

    async fn answer(&self, mut send: SendStream, mut recv: RecvStream) -> Result<(), LinkError> {
        let deadline = limits::REQUEST_FRAME_DEADLINE;
        let request = read_frame_within(&mut recv, limits::MAX_HELLO_LEN, deadline).await?;
        let shared = &self.shared;
        match request {
            SyncRequest::Essence => {
                let shared = shared.clone();
                let encode = move || wire::encode(&shared.store.everything());
                let bytes = tokio::task::spawn_blocking(encode).await;
                for part in bytes.map_err(|_| Refusal::Internal)?.chunks(ESSENCE_PART) {
                    write_frame(&mut send, &part).await?;
                }
            }
            SyncRequest::Page { hash } => {
                let page = shared.store.page(hash).await?;
                write_frame(&mut send, &SyncReply::Page(page)).await?;
            }
            SyncRequest::Reserve { name, claim } => {
                let granted = shared.links.grant(&shared.store, self.tracker, &name, claim);
                write_frame(&mut send, &SyncReply::Reserved(granted)).await?;
            }
        }
        let _ = send.finish();
        // Dropping an unacknowledged stream is fine, losing the tail is not.
        let _ = tokio::time::timeout(limits::ANSWER_DEADLINE, send.stopped()).await;
        Ok(())
    }

    /// Ends when nothing has been heard for too long: long before QUIC gives the connection up.
    async fn feel_pulse(&self) {
        loop {
            tokio::time::sleep(limits::SYNC_PULSE / 2).await;
            if self.link.silent_for() >= limits::SYNC_SILENCE {
                return tracing::warn!(tracker = %self.tracker.short(), "tracker is silent");
            }
        }
    }

    /// Tells who is online here.
    async fn gossip(&self) {
        let journal = self.shared.presence.subscribe();
        loop {
            loop {
                let news = journal.take(&*self.shared.presence, GOSSIP_BATCH);
                if news.is_empty() {
                    break;
                }
                self.say(SyncMessage::Presence(news)).await;
            }
            tokio::time::sleep(GOSSIP_TICK).await;
        }
    }

    /// Now and then compares what was sent with what arrived, and what it amounts to.
    async fn keep_in_step(&self) {
        let mut since_digest = limits::DIGEST_TICK;
        loop {
            tokio::time::sleep(limits::SYNC_TICK).await;
            let (end, _) = self.shared.store.position();
            self.feed().tick(end);
            self.moved.notify_one();
            self.say_have().await;
            since_digest += limits::SYNC_TICK;
            if since_digest >= limits::DIGEST_TICK && self.is_level() {
                since_digest = Duration::ZERO;
                let shared = self.shared.clone();
                let digest =
                    move || shared.store.read_ledger(|l| (l.chains.knowledge(), l.digest()));
                if let Ok((knowledge, digest)) = tokio::task::spawn_blocking(digest).await {
                    self.say(SyncMessage::Digest { knowledge, digest }).await;
                }
            }
        }
    }

    /// Whether the other one has all that is here.
    fn is_level(&self) -> bool {
        let theirs = self.feed().known().clone();
        theirs.covers_all(&self.shared.store.knowledge())
    }

    /// Before this tracker ends, the other one gets what is on its way.
    async fn go_in_order(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        let level = async {
            while !self.is_level() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(limits::CLAIM_PATIENCE, level).await;
    }
}

async fn write_all(
    mut control: SendStream,
    mut queue: mpsc::Receiver<SyncMessage>,
) -> Result<ErrorCode, FrameError> {
    while let Some(message) = queue.recv().await {
        match write_frame(&mut control, &message).await {
            Ok(()) => {}
            Err(FrameError::Connection(_)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(ErrorCode::Done)
}

/// Notes who has all of `ours`, and says how much of the log everybody has.
pub fn settle(shared: &Shared, ours: &Knowledge, now: UnixMillis) {
    let own = shared.endpoint.identity().peer_id();
    let mut siblings = shared.links.siblings();
    siblings.settle(ours, now);
    // Still locked: of two that settle, the later one's is the one that stays.
    shared.store.set_horizon(siblings.horizon(own, ours, now));
}
