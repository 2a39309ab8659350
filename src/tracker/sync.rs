//! A tracker among others: keeps a connection to each, brings them and itself up to date, and
//! notices when they are lost, behind, or of another opinion.

use std::collections::HashMap;
use std::net::SocketAddr;
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
use super::session::Shared;
use super::store::Answered;
use super::sync_message::{SyncHello, SyncMessage, SyncReply, SyncRequest};
use super::vector::{Knowledge, Vector};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::limits;
use crate::peer_id::PeerId;
use crate::transport::connection::{Connection, RecvStream, SendStream};
use crate::transport::endpoint::DialError;
use crate::transport::frame::{FrameError, read_frame, read_frame_within, write_frame};
use crate::transport::tls::Alpn;
use crate::wire;

/// A lost tracker is dialled again after this, twice as long each time up to the second.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The tracker with the higher peer id waits to be dialled for so long, then dials itself.
const DIALLED_WITHIN: Duration = Duration::from_secs(2);

/// How often trackers tell each other who is online.
const GOSSIP_TICK: Duration = Duration::from_secs(1);

/// Things told of who is online in one message.
const GOSSIP_BATCH: usize = 1_000;

/// How often the disk hears that another tracker was heard.
const HEARD_TICK: Duration = Duration::from_secs(3600);

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

/// Keeps this tracker together with the others of the roster until `stop`.
pub async fn run(shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    let own = shared.endpoint.identity().peer_id();
    let mut rosters = shared.rosters.watch();
    let heard = shared.store.disk().heard().unwrap_or_else(|error| {
        tracing::warn!(%error, "when other trackers were last heard is not known");
        Default::default()
    });
    let mut dialling: HashMap<PeerId, CancellationToken> = HashMap::new();
    tasks.spawn(oversee(shared.clone(), stop.clone()));
    tasks.spawn(fetch_pages(shared.clone(), stop.clone()));
    loop {
        let known = rosters.borrow_and_update().clone();
        let others: Vec<_> = known.siblings().map(|entry| entry.peer_id()).collect();
        let last = |tracker: PeerId| heard.get(&tracker).copied();
        shared.links.siblings().set_roster(&others, last, clock::now());
        if others.is_empty() {
            shared.links.open_names();
        }
        dialling.retain(|tracker, ended| {
            let stays = others.contains(tracker);
            if !stays {
                ended.cancel();
                if let Some(link) = shared.links.live(*tracker) {
                    link.connection.close(ErrorCode::NotATracker);
                }
                note_gone(&shared, shared.presence.forget_tracker(*tracker, clock::now()));
            }
            stays
        });
        for tracker in others {
            dialling.entry(tracker).or_insert_with(|| {
                let ended = stop.child_token();
                tasks.spawn(keep(
                    shared.clone(),
                    tracker,
                    own < tracker,
                    ended.clone(),
                    tasks.clone(),
                ));
                ended
            });
        }
        tell_all(&shared, known.bytes());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = rosters.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells every tracker of the roster.
fn tell_all(shared: &Shared, roster: Option<&[u8]>) {
    let Some(roster) = roster else { return };
    for (_, link) in shared.links.all_live() {
        // Whoever has no room for it hears of it when it is connected again.
        let _ = link.outbox.try_send(SyncMessage::Roster(roster.to_vec()));
    }
}

/// Users whose last connection is gone were online until now.
fn note_gone(shared: &Shared, users: Vec<crate::id::UserId>) {
    let now = clock::now();
    users.into_iter().for_each(|user| shared.store.note_seen(user, now));
}

/// Keeps a connection to one tracker.
async fn keep(
    shared: Arc<Shared>,
    tracker: PeerId,
    lower: bool,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let mut wait = REDIAL.0;
    let mut reported = false;
    loop {
        if let Some(link) = shared.links.live(tracker) {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = link.connection.closed() => {}
            }
            wait = REDIAL.0;
            reported = false;
        }
        let pause = if lower { wait } else { wait.max(DIALLED_WITHIN) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => wait = (wait * 2).min(REDIAL.1),
        }
        if shared.links.live(tracker).is_some() {
            continue;
        }
        let dialled = tokio::select! {
            () = stop.cancelled() => return,
            dialled = dial(&shared, tracker) => dialled,
        };
        let reason = match dialled {
            Ok(connection) => match establish(&shared, connection).await {
                Ok(link) => {
                    tasks.spawn(link.serve(stop.clone(), tasks.clone()));
                    continue;
                }
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        match reported {
            true => tracing::debug!(tracker = %tracker.short(), reason, "tracker not reached"),
            false => {
                tracing::warn!(tracker = %tracker.short(), reason, "tracker not reached; trying on");
                reported = true;
            }
        }
    }
}

/// Dials the addresses of a tracker until one answers as it.
async fn dial(shared: &Shared, tracker: PeerId) -> Result<Connection, String> {
    let known = shared.rosters.known();
    let links = known.book().find(tracker).map(|entry| entry.links.clone()).unwrap_or_default();
    let mut last = "it has no address".to_owned();
    for link in links {
        let found = tokio::net::lookup_host((link.host(), link.port())).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(addresses) => addresses.take(limits::MAX_ADDRESSES).collect(),
            Err(error) => {
                last = format!("{}: {error}", link.host());
                continue;
            }
        };
        for address in addresses {
            match shared.endpoint.dial(address, Alpn::Sync, tracker).await {
                Ok(connection) => return Ok(connection),
                Err(error @ DialError::WrongPeer { .. }) => {
                    tracing::warn!(%error, "another tracker answers");
                    last = error.to_string();
                }
                Err(error) => last = error.to_string(),
            }
        }
    }
    Err(last)
}

/// What one connection works on.
struct Session {
    shared: Arc<Shared>,
    connection: Connection,
    tracker: PeerId,
    outbox: mpsc::Sender<SyncMessage>,
    feed: Mutex<Feed>,
    /// The number of the last batch that was taken.
    heard: AtomicU64,
    /// Whether everything the other one knows is being fetched.
    absorbing: AtomicBool,
    /// What the other one had at the beginning.
    at_first: Knowledge,
    /// Something may be sent that could not be before.
    moved: Notify,
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
    if shared.rosters.known().siblings().all(|entry| entry.peer_id() != tracker) {
        let reason = "not in the roster: `mtq tracker roster add` puts it there";
        return Err(refuse(ErrorCode::NotATracker, reason.to_owned()));
    }
    let greeting = tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, greet(shared, &connection));
    let greeted = greeting.await.unwrap_or(Err(FrameError::TimedOut));
    let (control, pushes, hello) =
        greeted.map_err(|error| refuse(error.code(), error.to_string()))?;
    let (outbox, queue) = mpsc::channel(limits::SYNC_WINDOW * 4);
    let link = Link::new(connection.clone(), outbox.clone());
    match shared.links.enter(shared.endpoint.identity().peer_id(), link) {
        (false, _) => {
            return Err(refuse(ErrorCode::Duplicate, ErrorCode::Duplicate.to_string()));
        }
        (true, Some(old)) => old.connection.close(ErrorCode::Duplicate),
        (true, None) => {}
    }
    let (short, address) = (tracker.short(), connection.remote_address());
    tracing::info!(tracker = %short, %address, agent = hello.agent, "tracker connected");
    let now = clock::now();
    let clock_ahead = hello.time.0 as i64 - now.0 as i64;
    shared.links.siblings().connected(tracker, hello.knowledge.clone(), clock_ahead, now);
    let session = Session::start(shared.clone(), connection, outbox, hello.knowledge);
    Ok(Established { session, control, queue, pushes })
}

impl Established {
    /// Goes on until the connection ends.
    pub async fn serve(self, stop: CancellationToken, tasks: TaskTracker) {
        let Self { session, control, queue, pushes } = self;
        let (shared, tracker) = (session.shared.clone(), session.tracker);
        let connection = session.connection.clone();
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
            shared.links.siblings().lost(tracker);
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
        knowledge: shared.store.read_ledger(|ledger| ledger.chains.knowledge()),
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
    fn start(
        shared: Arc<Shared>,
        connection: Connection,
        outbox: mpsc::Sender<SyncMessage>,
        at_first: Knowledge,
    ) -> Arc<Self> {
        let log = shared.store.log();
        let feed = Feed::new(shared.store.origin(), at_first.clone(), log);
        Arc::new(Self {
            tracker: connection.remote(),
            shared,
            connection,
            outbox,
            feed: Mutex::new(feed),
            heard: AtomicU64::new(0),
            absorbing: AtomicBool::new(false),
            at_first,
            moved: Notify::new(),
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
        if let Some(roster) = self.shared.rosters.known().bytes() {
            self.say(SyncMessage::Roster(roster.to_vec())).await;
        }
        self.say_have().await;
        let (merging, merged) = mpsc::channel(limits::SYNC_WINDOW);
        tokio::select! {
            ended = write_all(control, queue) => ended.map_err(LinkError::from),
            ended = self.feed_log() => ended,
            ended = self.hear_all(pushes, merging, &tasks) => ended,
            ended = self.note_merged(merged) => ended,
            ended = self.answer_all(&tasks) => ended,
            () = self.gossip() => Ok(ErrorCode::Done),
            () = self.keep_in_step() => Ok(ErrorCode::Done),
            () = self.go_in_order(&stop) => Ok(ErrorCode::GoingAway),
        }
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; waits while there is no room.
    async fn say(&self, message: SyncMessage) {
        let _ = self.outbox.send(message).await;
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

    /// Sends what the other one lacks, and then what is new.
    async fn feed_log(&self) -> Result<ErrorCode, LinkError> {
        let store = &self.shared.store;
        let mut places = store.places();
        loop {
            let end = *places.borrow_and_update();
            let theirs = self.feed().known().clone();
            // What the log lacks comes otherwise, and the rest follows on it.
            let behind = store.read_ledger(|ledger| ledger.is_behind_cut(&theirs));
            let wanted = self.feed().wants().filter(|wanted| !behind && wanted.start < end);
            let Some(wanted) = wanted else {
                tokio::select! {
                    () = self.moved.notified() => {}
                    changed = places.changed() => if changed.is_err() { return Ok(ErrorCode::Done) },
                }
                continue;
            };
            let entries = store.read_log(wanted.start, limits::SYNC_BATCH_BYTES).await?;
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
                            session.connection.close(error.code());
                        }
                        session.absorbing.store(false, Ordering::Relaxed);
                    });
                }
            }
            SyncMessage::Digest { knowledge, digest } => self.compare(knowledge, digest),
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

    /// Says what was taken over once it is durable, in the order in which it came.
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
            self.say_have().await;
            self.settle();
        }
        Ok(ErrorCode::Done)
    }

    /// Notes who has what; with all that the other one had, names may be given away.
    fn settle(&self) {
        let ours = self.shared.store.read_ledger(|ledger| ledger.chains.knowledge());
        if ours.covers_all(&self.at_first) {
            self.shared.links.open_names();
        }
        self.shared.links.siblings().settle(&ours, clock::now());
    }

    /// Takes over everything the other one knows.
    async fn absorb(&self) -> Result<(), LinkError> {
        let tracker = self.tracker.short();
        tracing::info!(%tracker, "too far behind for the log: taking over everything it knows");
        let (mut send, mut recv) =
            self.connection.open_bi().await.map_err(FrameError::Connection)?;
        write_frame(&mut send, &SyncRequest::Essence).await?;
        let _ = send.finish();
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
        let decoded = tokio::task::spawn_blocking(move || wire::decode::<Essence>(&bytes)).await;
        let essence = decoded.map_err(|_| Refusal::Internal)?.map_err(LinkError::Op)?;
        self.shared.store.absorb(essence).await?;
        tracing::info!(%tracker, "took over everything it knows");
        self.say_have().await;
        self.settle();
        Ok(())
    }

    fn compare(&self, knowledge: Knowledge, digest: Blake3Hash) {
        let ours = self.shared.store.read_ledger(|ledger| {
            let ours = ledger.chains.knowledge();
            let same = ours.covers_all(&knowledge) && knowledge.covers_all(&ours);
            same.then(|| ledger.digest())
        });
        let Some(ours) = ours else { return };
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
        while let Ok((send, recv)) = self.connection.accept_bi().await {
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
                let encode = move || wire::encode(&shared.store.read_ledger(|l| l.essence()));
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
        theirs.covers_all(&self.shared.store.read_ledger(|ledger| ledger.chains.knowledge()))
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

/// What is to be seen to whether or not there are connections.
async fn oversee(shared: Arc<Shared>, stop: CancellationToken) {
    let own = shared.endpoint.identity().peer_id();
    let began = clock::monotonic();
    let mut ticks = tokio::time::interval(GOSSIP_TICK);
    let mut was_off = None;
    let mut noted = clock::monotonic();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = clock::now();
        note_gone(&shared, shared.presence.expire(now));
        let ours = shared.store.read_ledger(|ledger| ledger.chains.knowledge());
        let (horizon, off, connected) = {
            let mut siblings = shared.links.siblings();
            siblings.settle(&ours, now);
            let connected: Vec<_> =
                siblings.all().filter(|(_, s)| s.connected).map(|(tracker, _)| tracker).collect();
            (siblings.horizon(own, &ours, now), siblings.clock_off(), connected)
        };
        shared.store.set_horizon(horizon);
        if began.elapsed() >= limits::NAMES_WAIT {
            shared.links.open_names();
        }
        if noted.elapsed() >= HEARD_TICK {
            noted = clock::monotonic();
            connected.into_iter().for_each(|tracker| shared.store.note_heard(tracker, now));
        }
        if off.is_some() != was_off.is_some() {
            match off {
                Some(millis) => {
                    shared.counters.sync_alarm();
                    tracing::error!(
                        millis,
                        "ALARM: this tracker's clock differs from the others'; it takes no changes"
                    );
                }
                None => tracing::info!("this tracker's clock agrees with the others' again"),
            }
        }
        was_off = off;
    }
}

/// Fetches the pages of shares that other trackers took.
async fn fetch_pages(shared: Arc<Shared>, stop: CancellationToken) {
    let mut places = shared.store.places();
    let mut from = Blake3Hash([0; 32]);
    loop {
        let missing = shared.store.missing_pages(from, limits::PAGES_IN_FLIGHT);
        let Some(last) = missing.last().copied() else {
            let retry = shared.store.missing_page_count() > 0;
            from = Blake3Hash([0; 32]);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = places.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(limits::SYNC_TICK), if retry => {}
            }
            continue;
        };
        for hash in missing {
            let fetched = tokio::select! {
                () = stop.cancelled() => return,
                fetched = shared.links.fetch_page(hash) => fetched,
            };
            if let Some(bytes) = fetched
                && let Err(refusal) = shared.store.keep_page(hash, bytes).await
            {
                tracing::warn!(%refusal, "a hash page of another tracker cannot be kept");
            }
        }
        from = after(last);
    }
}

/// The hash after `hash`, or the first.
fn after(hash: Blake3Hash) -> Blake3Hash {
    let mut next = hash.0;
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    Blake3Hash(next)
}
