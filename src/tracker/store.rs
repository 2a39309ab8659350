//! The one door to durable state: `propose` a command, or `read` a view.
//!
//! One thread writes. It judges the commands that wait against the pending state, commits their
//! ops together, and only then lets readers see them, listeners hear of them, and callers have
//! their answers, in log order. What a failed commit held is forgotten, and its callers are told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::command::{Actor, Command, Outcome};
use super::decide::decide;
use super::disk::{Batch, Disk, DiskError, LogEntry, Snapshot};
use super::lattice::RequestKey;
use super::ledger::{Entry, Essence, Ledger, Merged, Run};
use super::op::{Change, Op};
use super::pages::Pages;
use super::refusal::Refusal;
use super::remembered::Remembered;
use super::state::{Effect, Rules, State};
use super::vector::Knowledge;
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{OpId, OriginId, RequestId, UserId};
use crate::limits::{PAGES_IN_FLIGHT, SNAPSHOT_AFTER, STORE_BATCH, STORE_QUEUE};
use crate::peer_id::PeerId;

/// Hears of changes once they are durable and visible, in log order. Must not wait.
pub trait Listener: Send + 'static {
    /// `change` was made; `state` has it. Without one, the state of another tracker was taken over.
    fn committed(&self, state: &State, change: Option<&Change>, effects: &[Effect]);
}

/// What a store is started with.
pub struct StoreConfig {
    /// The tracker whose ops these are.
    pub tracker: PeerId,
    /// What its operator decided.
    pub rules: Rules,
    /// The run's origin.
    pub origin: OriginId,
    /// A clock that never steps back.
    pub clock: Box<dyn Fn() -> UnixMillis + Send + Sync>,
}

/// Tracker time: the clock, or ahead of it where the log was when the run began.
type Time = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// What every tracker of the roster is known to have, and which trackers those are.
#[derive(Clone, Debug)]
pub struct Horizon {
    /// Ops that all of them have.
    pub everybody: Knowledge,
    /// All of them.
    pub roster: Vec<PeerId>,
}

/// A tracker's durable state.
pub struct Store {
    disk: Arc<Disk>,
    origin: OriginId,
    time: Time,
    published: Arc<RwLock<Published>>,
    horizon: Arc<Mutex<Option<Horizon>>>,
    places: watch::Receiver<u64>,
    jobs: mpsc::Sender<Job>,
    page_permits: Semaphore,
    writable: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

/// What readers see.
#[derive(Debug, Default)]
struct Published {
    ledger: Ledger,
    pages: Pages,
    granted: Remembered,
    /// The place of the next op in the log.
    position: u64,
}

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// What a store will answer; nothing when it ended.
pub type Answered<T> = oneshot::Receiver<Result<T, Refusal>>;

#[derive(Debug)]
enum Job {
    Propose {
        actor: Actor,
        request: RequestId,
        command: Box<Command>,
        answer: Answer<Outcome>,
    },
    PutPage {
        user: UserId,
        hash: Blake3Hash,
        bytes: Arc<[u8]>,
        answer: Answer<()>,
    },
    ReleasePages {
        user: UserId,
        hashes: Vec<Blake3Hash>,
    },
    Seen {
        user: UserId,
        at: UnixMillis,
    },
    Heard {
        tracker: PeerId,
        at: UnixMillis,
    },
    /// Ops of another tracker.
    Merge {
        ops: Vec<(Op, Vec<u8>)>,
        answer: Answer<Merged>,
    },
    /// Everything another tracker knows.
    Absorb {
        essence: Box<Essence>,
        answer: Answer<()>,
    },
    /// The bytes of a page that another tracker had.
    KeepPage {
        hash: Blake3Hash,
        bytes: Arc<[u8]>,
        answer: Answer<()>,
    },
    Stop,
}

impl Store {
    /// Loads what `disk` holds and starts writing to it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn start(
        disk: Disk,
        config: StoreConfig,
        listener: impl Listener,
    ) -> Result<Self, DiskError> {
        let disk = Arc::new(disk);
        let (mut published, snapshot_at) = load(&disk, config.rules)?;
        for hash in disk.sweep_pages(&published.pages.hashes())? {
            published.pages.arrive(&hash);
        }
        let (jobs, queue) = mpsc::channel(STORE_QUEUE);
        let writable = Arc::new(AtomicBool::new(true));
        // After everything of former runs, even if the wall clock was set back meanwhile.
        let StoreConfig { tracker, rules: _, origin, clock } = config;
        let ahead = published.ledger.latest.plus(Duration::from_millis(1)).since(clock());
        let time: Time = Arc::new(move || clock().plus(ahead));
        let horizon = Arc::new(Mutex::new(None));
        let (place, places) = watch::channel(published.position);
        let work = Work {
            pending: published.ledger.clone(),
            pending_pages: published.pages.clone(),
            snapshot_at,
            failed: false,
            stale: false,
            writable: writable.clone(),
            unreleased: Vec::new(),
            disk: disk.clone(),
            published: Arc::new(RwLock::new(published)),
            run: Run { tracker, origin },
            horizon: horizon.clone(),
            place,
            time: time.clone(),
            listener: Box::new(listener),
        };
        let published = work.published.clone();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work.run(queue))
            .map_err(DiskError::Io)?;
        let page_permits = Semaphore::new(PAGES_IN_FLIGHT);
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            disk,
            origin,
            time,
            published,
            horizon,
            places,
            jobs,
            page_permits,
            writable,
            thread,
        })
    }

    /// Writes what waits and ends; later commands fail.
    pub async fn close(&self) {
        let _ = self.jobs.send(Job::Stop).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        if !matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(()))) {
            tracing::error!("the store's thread panicked");
        }
    }

    /// Judges and applies a command; what it changed is durable when this returns.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then, except perhaps with [`Refusal::StorageFailed`].
    pub async fn propose(
        &self,
        actor: Actor,
        request: RequestId,
        command: Command,
    ) -> Result<Outcome, Refusal> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Propose { actor, request, command: Box::new(command), answer };
        self.jobs.send(job).await.map_err(|_| Refusal::Internal)?;
        answered.await.unwrap_or(Err(Refusal::Internal))
    }

    /// Takes over ops of another tracker, after those of earlier calls; what was new is durable
    /// when the answer is there.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then. The same in the answer, except perhaps with
    /// [`Refusal::StorageFailed`].
    pub async fn merge(&self, ops: Vec<(Op, Vec<u8>)>) -> Result<Answered<Merged>, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Merge { ops, answer }).await.map_err(|_| Refusal::Internal)?;
        Ok(answered)
    }

    /// Takes over everything another tracker knows; durable when this returns.
    ///
    /// # Errors
    /// [`Refusal`], as with [`Self::merge`].
    pub async fn absorb(&self, essence: Essence) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Absorb { essence: Box::new(essence), answer };
        self.jobs.send(job).await.map_err(|_| Refusal::Internal)?;
        answered.await.unwrap_or(Err(Refusal::Internal))
    }

    /// Keeps the bytes of a page that a share names.
    ///
    /// # Errors
    /// Storage refusals.
    pub async fn keep_page(&self, hash: Blake3Hash, bytes: Vec<u8>) -> Result<(), Refusal> {
        let _permit = self.page_permits.acquire().await.map_err(|_| Refusal::Internal)?;
        let (answer, answered) = oneshot::channel();
        let job = Job::KeepPage { hash, bytes: bytes.into(), answer };
        self.jobs.send(job).await.map_err(|_| Refusal::Internal)?;
        answered.await.unwrap_or(Err(Refusal::Internal))
    }

    /// Says what all trackers of the roster have; nothing when there is only this one.
    pub fn set_horizon(&self, horizon: Option<Horizon>) {
        *self.horizon.lock().unwrap_or_else(PoisonError::into_inner) = horizon;
    }

    /// The run's origin.
    pub fn origin(&self) -> OriginId {
        self.origin
    }

    /// The places of the log: from its first op to the next one to come.
    pub fn log(&self) -> Range<u64> {
        let (end, _) = self.position();
        let first = self.disk.first_place().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the log");
            None
        });
        first.unwrap_or(end)..end
    }

    /// The place of the next op in the log, whenever it changes.
    pub fn places(&self) -> watch::Receiver<u64> {
        self.places.clone()
    }

    /// Reads everything that ops made.
    pub fn read_ledger<R>(&self, view: impl FnOnce(&Ledger) -> R) -> R {
        self.published(|published| view(&published.ledger))
    }

    /// Ops in the log from the place `from` on, about `bytes` of them.
    ///
    /// # Errors
    /// [`Refusal::StorageFailed`].
    pub async fn read_log(&self, from: u64, bytes: usize) -> Result<Vec<LogEntry>, Refusal> {
        let disk = self.disk.clone();
        let read = tokio::task::spawn_blocking(move || disk.read_log(from, bytes)).await;
        read.map_err(|_| Refusal::Internal)?.map_err(|error| {
            tracing::error!(%error, "cannot read the log");
            Refusal::StorageFailed
        })
    }

    /// The op that a granted request became.
    pub fn op_of(&self, actor: PeerId, request: RequestId) -> Option<OpId> {
        self.published(|published| published.granted.op(&(actor, request)))
    }

    /// Pages that shares name and that are not here, from `from` on, at most `most`.
    pub fn missing_pages(&self, from: Blake3Hash, most: usize) -> Vec<Blake3Hash> {
        self.published(|published| published.pages.missing(from).take(most).collect())
    }

    /// How many pages are named and not here.
    pub fn missing_page_count(&self) -> usize {
        self.published(|published| published.pages.missing_count())
    }

    /// Judges a command without carrying it out; returns whether it was granted before, so that
    /// asking for it again changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(
        &self,
        actor: &Actor,
        request: RequestId,
        command: &Command,
    ) -> Result<bool, Refusal> {
        if self.has_granted(actor.device(), request) {
            return Ok(true);
        }
        let now = self.time();
        self.published(|published| {
            decide(&published.ledger.state, actor, request, command, now, &published.pages)
        })?;
        Ok(false)
    }

    /// Whether this device was granted this request before.
    pub fn has_granted(&self, actor: PeerId, request: RequestId) -> bool {
        self.published(|published| published.granted.outcome(&(actor, request)).is_some())
    }

    /// Reads the state.
    pub fn read<R>(&self, view: impl FnOnce(&State) -> R) -> R {
        self.published(|published| view(&published.ledger.state))
    }

    /// Reads the state, with the time of the latest op in it.
    pub fn read_as_of<R>(&self, view: impl FnOnce(&State, UnixMillis) -> R) -> R {
        self.published(|published| view(&published.ledger.state, published.ledger.latest))
    }

    /// Tracker time: never before that of any op.
    pub fn time(&self) -> UnixMillis {
        let (_, latest) = self.position();
        (self.time)().max(latest)
    }

    /// Whether the last change asked for could be stored, as far as the disk goes.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// How many ops there are, and the time of the latest.
    pub fn position(&self) -> (u64, UnixMillis) {
        self.published(|published| (published.position, published.ledger.latest))
    }

    /// How many hash pages there are, and their bytes.
    pub fn page_size(&self) -> (u64, u64) {
        self.published(|published| published.pages.size())
    }

    /// The file.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Keeps a checked page for a share that `user` is about to finish.
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota; storage refusals.
    pub async fn put_page(
        &self,
        user: UserId,
        hash: Blake3Hash,
        bytes: Vec<u8>,
    ) -> Result<(), Refusal> {
        let _permit = self.page_permits.acquire().await.map_err(|_| Refusal::Internal)?;
        let (answer, answered) = oneshot::channel();
        let job = Job::PutPage { user, hash, bytes: bytes.into(), answer };
        self.jobs.send(job).await.map_err(|_| Refusal::Internal)?;
        answered.await.unwrap_or(Err(Refusal::Internal))
    }

    /// Lets go of pages kept by [`Self::put_page`].
    pub async fn release_pages(&self, user: UserId, hashes: Vec<Blake3Hash>) {
        if !hashes.is_empty() {
            let _ = self.jobs.send(Job::ReleasePages { user, hashes }).await;
        }
    }

    /// Notes when a user was last online. Soft: forgotten when there is too much to do.
    pub fn note_seen(&self, user: UserId, at: UnixMillis) {
        let _ = self.jobs.try_send(Job::Seen { user, at });
    }

    /// Notes when another tracker was last heard. Soft, too.
    pub fn note_heard(&self, tracker: PeerId, at: UnixMillis) {
        let _ = self.jobs.try_send(Job::Heard { tracker, at });
    }

    /// The bytes of a page.
    pub async fn page(&self, hash: Blake3Hash) -> Result<Option<Vec<u8>>, Refusal> {
        let disk = self.disk.clone();
        match tokio::task::spawn_blocking(move || disk.page(&hash)).await {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot read a hash page");
                Err(Refusal::StorageFailed)
            }
            Err(_panicked) => Err(Refusal::Internal),
        }
    }

    fn published<R>(&self, view: impl FnOnce(&Published) -> R) -> R {
        view(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The state that `disk` holds, for reading, and how many ops made it.
///
/// # Errors
/// [`DiskError`].
pub fn stored(disk: &Disk) -> Result<(State, u64), DiskError> {
    let (published, ..) = load(disk, Rules::default())?;
    Ok((published.ledger.state, published.position))
}

/// Snapshot and tail as one state; and the place of the snapshot.
fn load(disk: &Disk, rules: Rules) -> Result<(Published, u64), DiskError> {
    let Snapshot { position: snapshot_at, essence, cut, granted } = disk.snapshot()?;
    let mut published = Published {
        ledger: Ledger::new(essence, cut, rules),
        pages: Pages::default(),
        granted: Remembered::default(),
        position: snapshot_at,
    };
    for (request, outcome, op) in granted {
        published.granted.keep(request, outcome, op);
    }
    for (op, bytes) in disk.ops(snapshot_at)? {
        published.fold(&op, &bytes)?;
    }
    let shares = published.ledger.state.facts().shares.values();
    published.pages = Pages::of(shares.map(|share| &share.value));
    Ok((published, snapshot_at))
}

impl Published {
    fn fold(&mut self, op: &Op, bytes: &[u8]) -> Result<Vec<Effect>, DiskError> {
        let effects = self.ledger.follow(op, bytes)?;
        self.position += 1;
        if let Some(change) = op.change() {
            let outcome = Outcome::of(&change, op.actor, &self.ledger.state);
            self.granted.keep((op.actor, op.request), outcome, op.id());
        }
        Ok(effects)
    }
}

/// What the writing thread works on.
struct Work {
    /// What is published and the ops of the batch under way.
    pending: Ledger,
    pending_pages: Pages,
    /// Place of the latest snapshot.
    snapshot_at: u64,
    /// The last commit failed: nothing is judged before the disk works again.
    failed: bool,
    /// The pending state holds what a failed commit held.
    stale: bool,
    /// Whether the disk takes changes, for whoever asks how the tracker is.
    writable: Arc<AtomicBool>,
    /// Pages to let go of, asked for while the disk failed.
    unreleased: Vec<(UserId, Vec<Blake3Hash>)>,
    disk: Arc<Disk>,
    published: Arc<RwLock<Published>>,
    run: Run,
    horizon: Arc<Mutex<Option<Horizon>>>,
    /// Tells of the place of the next op.
    place: watch::Sender<u64>,
    time: Time,
    listener: Box<dyn Listener>,
}

/// One batch on its way.
struct Round {
    batch: Batch,
    ops: Vec<Op>,
    granted: HashMap<RequestKey, Outcome>,
    /// Pages put and let go, in order, to be repeated once they are durable.
    page_moves: Vec<PageMove>,
    answers: Vec<Pending>,
}

enum PageMove {
    Put(UserId, Blake3Hash, u64),
    Release(UserId, Vec<Blake3Hash>),
    Arrive(Blake3Hash),
}

/// Somebody's answer, held back until the batch is durable.
enum Pending {
    Outcome(Answer<Outcome>, Result<Outcome, Refusal>),
    Page(Answer<()>, Result<(), Refusal>),
    Merged(Answer<Merged>, Result<Merged, Refusal>),
}

impl Pending {
    fn give(self) {
        // Whoever asked may have gone; what was asked is done all the same.
        match self {
            Self::Outcome(answer, outcome) => drop(answer.send(outcome)),
            Self::Page(answer, outcome) => drop(answer.send(outcome)),
            Self::Merged(answer, outcome) => drop(answer.send(outcome)),
        }
    }

    fn fail(self, refusal: Refusal) {
        match self {
            Self::Outcome(answer, _) => drop(answer.send(Err(refusal))),
            Self::Page(answer, _) => drop(answer.send(Err(refusal))),
            Self::Merged(answer, _) => drop(answer.send(Err(refusal))),
        }
    }
}

impl Work {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        while queue.blocking_recv_many(&mut jobs, STORE_BATCH) > 0 {
            let stop = jobs.iter().position(|job| matches!(job, Job::Stop));
            jobs.truncate(stop.unwrap_or(jobs.len()));
            let mut left = std::mem::take(&mut jobs);
            while let Some(at) = left.iter().position(|job| matches!(job, Job::Absorb { .. })) {
                let after = left.split_off(at + 1);
                let absorb = left.pop();
                self.round(std::mem::replace(&mut left, after));
                if let Some(Job::Absorb { essence, answer }) = absorb {
                    drop(answer.send(self.absorb(*essence)));
                }
            }
            self.round(left);
            self.writable.store(!self.failed, Ordering::Relaxed);
            if stop.is_some() {
                return;
            }
            self.snapshot_if_due();
        }
    }

    /// Judges `jobs`, commits what they change, and answers them.
    fn round(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() && self.unreleased.is_empty() {
            return;
        }
        if self.failed
            && let Err(error) = self.recover()
        {
            let refusal = refusal_of(&error);
            jobs.into_iter().for_each(|job| match job {
                Job::Propose { answer, .. } => drop(answer.send(Err(refusal.clone()))),
                Job::PutPage { answer, .. } | Job::KeepPage { answer, .. } => {
                    drop(answer.send(Err(refusal.clone())));
                }
                Job::Absorb { answer, .. } => drop(answer.send(Err(refusal.clone()))),
                Job::Merge { answer, .. } => drop(answer.send(Err(refusal.clone()))),
                Job::ReleasePages { user, hashes } => self.unreleased.push((user, hashes)),
                Job::Seen { .. } | Job::Heard { .. } | Job::Stop => {}
            });
            return;
        }
        let position = self.published.read().unwrap_or_else(PoisonError::into_inner).position;
        let mut round = Round {
            batch: Batch { position, ..Batch::default() },
            ops: Vec::new(),
            granted: HashMap::new(),
            page_moves: Vec::new(),
            answers: Vec::new(),
        };
        for (user, hashes) in std::mem::take(&mut self.unreleased) {
            self.take(&mut round, Job::ReleasePages { user, hashes });
        }
        jobs.into_iter().for_each(|job| self.take(&mut round, job));
        let Round { batch, ops, page_moves, answers, .. } = round;
        if !batch.is_empty()
            && let Err(error) = self.disk.commit(&batch)
        {
            tracing::error!(%error, commands = answers.len(), "cannot store; nothing was granted");
            self.failed = true;
            self.stale = true;
            self.unreleased.extend(page_moves.into_iter().filter_map(
                |page_move| match page_move {
                    PageMove::Release(user, hashes) => Some((user, hashes)),
                    PageMove::Put(..) | PageMove::Arrive(_) => None,
                },
            ));
            let refusal = refusal_of(&error);
            answers.into_iter().for_each(|answer| answer.fail(refusal.clone()));
            self.try_reopen();
            return;
        }
        let bytes = batch.ops;
        self.publish(ops.iter().zip(&bytes), page_moves);
        answers.into_iter().for_each(Pending::give);
    }

    /// Takes one job into the round.
    fn take(&mut self, round: &mut Round, job: Job) {
        match job {
            Job::Propose { actor, request, command, answer } => {
                let outcome = self.judge(round, &actor, request, &command);
                round.answers.push(Pending::Outcome(answer, outcome));
            }
            Job::PutPage { user, hash, bytes, answer } => {
                let len = bytes.len() as u64;
                let put = self.pending_pages.check_put(user, len).map(|()| {
                    if self.pending_pages.put(user, hash, len) {
                        round.batch.pages.insert(hash, Some(bytes));
                    }
                    round.page_moves.push(PageMove::Put(user, hash, len));
                });
                round.answers.push(Pending::Page(answer, put));
            }
            Job::ReleasePages { user, hashes } => {
                let gone = self.pending_pages.release(user, &hashes);
                round.batch.pages.extend(gone.into_iter().map(|hash| (hash, None)));
                round.page_moves.push(PageMove::Release(user, hashes));
            }
            Job::Seen { user, at } => drop(round.batch.seen.insert(user, at)),
            Job::Heard { tracker, at } => drop(round.batch.heard.insert(tracker, at)),
            Job::Merge { ops, answer } => {
                let (merged, entries) = self.pending.merge(ops);
                entries.into_iter().for_each(|entry| self.add(round, entry));
                round.answers.push(Pending::Merged(answer, Ok(merged)));
            }
            Job::KeepPage { hash, bytes, answer } => {
                // Nobody may want it any more.
                if self.pending_pages.arrive(&hash) {
                    round.batch.pages.insert(hash, Some(bytes));
                    round.page_moves.push(PageMove::Arrive(hash));
                }
                round.answers.push(Pending::Page(answer, Ok(())));
            }
            // Between rounds, and after them.
            Job::Absorb { .. } | Job::Stop => {}
        }
    }

    fn judge(
        &mut self,
        round: &mut Round,
        actor: &Actor,
        request: RequestId,
        command: &Command,
    ) -> Result<Outcome, Refusal> {
        let key = (actor.device(), request);
        if let Some(outcome) = round.granted.get(&key) {
            return Ok(outcome.clone());
        }
        {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(outcome) = published.granted.outcome(&key) {
                return Ok(outcome.clone());
            }
        }
        let (now, asked) = ((self.time)(), (actor, request));
        let judged = self.pending.judge(&self.run, asked, command, now, &self.pending_pages);
        let (outcome, entries) = judged?;
        if !entries.is_empty() {
            round.granted.insert(key, outcome.clone());
        }
        entries.into_iter().for_each(|entry| self.add(round, entry));
        Ok(outcome)
    }

    /// Takes an op of the pending state into the batch.
    fn add(&mut self, round: &mut Round, Entry { op, bytes, effects }: Entry) {
        let gone = self.pending_pages.follow(&effects);
        round.batch.pages.extend(gone.into_iter().map(|hash| (hash, None)));
        round.batch.ops.push(bytes);
        round.ops.push(op);
    }

    /// Lets readers see durable ops and listeners hear of them.
    fn publish<'a>(
        &mut self,
        ops: impl Iterator<Item = (&'a Op, &'a Vec<u8>)> + Clone,
        page_moves: Vec<PageMove>,
    ) {
        if ops.clone().next().is_none() && page_moves.is_empty() {
            return;
        }
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        let fold = |(op, bytes): (&Op, &Vec<u8>)| {
            published.fold(op, bytes).expect("invariant: the pending chains took it")
        };
        let effects: Vec<_> = ops.clone().map(fold).collect();
        for effects in &effects {
            published.pages.follow(effects);
        }
        for page_move in page_moves {
            match page_move {
                PageMove::Put(user, hash, len) => drop(published.pages.put(user, hash, len)),
                PageMove::Release(user, hashes) => drop(published.pages.release(user, &hashes)),
                PageMove::Arrive(hash) => drop(published.pages.arrive(&hash)),
            }
        }
        drop(published);
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        for ((op, _), effects) in ops.zip(&effects) {
            if let Some(change) = op.change() {
                self.listener.committed(&published.ledger.state, Some(&change), effects);
            }
        }
        self.place.send_replace(published.position);
    }

    /// Opens the file anew. What a failed commit left in it after all, counts.
    fn reopen(&mut self) -> Result<(), DiskError> {
        self.disk.reopen()?;
        let (position, mut ledger) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            (published.position, published.ledger.clone())
        };
        let (ops, bytes): (Vec<_>, Vec<_>) = self.disk.ops(position)?.into_iter().unzip();
        // Nothing is published of what does not follow.
        for (op, bytes) in ops.iter().zip(&bytes) {
            ledger.follow(op, bytes)?;
        }
        self.publish(ops.iter().zip(&bytes), Vec::new());
        if self.stale || !ops.is_empty() {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            self.pending = ledger;
            self.pending_pages = published.pages.clone();
            self.stale = false;
        }
        Ok(())
    }

    /// Readers of pages need the file open, whether or not it takes more.
    fn try_reopen(&mut self) {
        if let Err(error) = self.reopen() {
            tracing::error!(%error, "the store stays closed for now");
        }
    }

    /// After a failure: whether the disk takes writes again.
    fn recover(&mut self) -> Result<(), DiskError> {
        if self.stale || !self.disk.is_open() {
            self.reopen()?;
        }
        if let Err(error) = self.disk.probe() {
            self.try_reopen();
            return Err(error);
        }
        tracing::info!("the store takes changes again");
        self.failed = false;
        Ok(())
    }

    /// Writes a snapshot when the log has grown long enough for it.
    fn snapshot_if_due(&mut self) {
        let due = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            let things = published.ledger.state.facts().len().max(SNAPSHOT_AFTER);
            published.position - self.snapshot_at >= things as u64
        };
        if due && !self.failed {
            self.snapshot();
        }
    }

    /// Writes a snapshot, cuts the log below what everybody has, and forgets what only mattered to
    /// those who had not.
    fn snapshot(&mut self) {
        let (mut ledger, position, granted) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            (published.ledger.clone(), published.position, published.granted.all())
        };
        let horizon = self.horizon.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let everybody = match &horizon {
            Some(horizon) => horizon.everybody.meet(&ledger.chains.knowledge()),
            None => ledger.chains.knowledge(),
        };
        let cut = self.disk.known_prefix(&everybody, position);
        let (cut_at, cut) = cut.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the log; it is not cut");
            (0, BTreeMap::new())
        });
        let gone = |tracker: PeerId| {
            horizon.as_ref().is_some_and(|horizon| !horizon.roster.contains(&tracker))
        };
        let dropped = ledger.condense(&cut, &everybody, self.run.origin, gone);
        let (essence, cut) = (ledger.essence(), ledger.cut.clone());
        let snapshot = Snapshot { position, essence, cut, granted };
        // Before it is written: nothing is lost, since the log is cut with it only.
        let pages = self.adopt(ledger, &dropped);
        let written = self.disk.replace_snapshot(&snapshot, cut_at);
        match written.and_then(|()| self.disk.commit(&pages)) {
            Ok(()) => {
                self.snapshot_at = position;
                tracing::debug!(position, cut_at, "snapshot written");
            }
            Err(error) => {
                tracing::error!(%error, "cannot write a snapshot; the log stays");
                self.snapshot_at = position;
                self.failed = true;
                self.try_reopen();
            }
        }
    }

    /// Takes over everything another tracker knows.
    fn absorb(&mut self, essence: Essence) -> Result<(), Refusal> {
        if self.failed {
            self.recover().map_err(|error| refusal_of(&error))?;
        }
        let (mut ledger, position, granted) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            (published.ledger.clone(), published.position, published.granted.all())
        };
        let effects = ledger.absorb(essence);
        let (essence, cut) = (ledger.essence(), ledger.cut.clone());
        let snapshot = Snapshot { position, essence, cut, granted };
        if let Err(error) = self.disk.replace_snapshot(&snapshot, 0) {
            tracing::error!(%error, "cannot store the state of another tracker");
            self.failed = true;
            self.stale = true;
            self.try_reopen();
            return Err(refusal_of(&error));
        }
        self.snapshot_at = position;
        let pages = self.adopt(ledger, &effects);
        if !pages.is_empty()
            && let Err(error) = self.disk.commit(&pages)
        {
            tracing::error!(%error, "pages that nobody needs stay until the next start");
            self.failed = true;
            self.try_reopen();
        }
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        self.listener.committed(&published.ledger.state, None, &effects);
        self.place.send_replace(published.position);
        Ok(())
    }

    /// What is published and pending becomes `ledger`; returns the pages that are not needed then.
    fn adopt(&mut self, ledger: Ledger, effects: &[Effect]) -> Batch {
        let gone = self.pending_pages.follow(effects);
        self.pending = ledger.clone();
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.pages.follow(effects);
        let old = std::mem::replace(&mut published.ledger, ledger);
        drop(published);
        // Large, and readers need not wait for its end.
        drop(old);
        let pages = gone.into_iter().map(|hash| (hash, None)).collect();
        Batch { pages, ..Batch::default() }
    }
}

fn refusal_of(error: &DiskError) -> Refusal {
    match error {
        DiskError::Full => Refusal::StorageFull,
        _ => Refusal::StorageFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blake3;
    use crate::manifest::Manifest;
    use crate::manifest::testing::manifest_of;
    use crate::name::{GroupName, UserName};
    use crate::tracker::disk::testing::FaultDisk;
    use crate::tracker::view;
    use std::sync::atomic::AtomicU64;

    struct Nobody;

    impl Listener for Nobody {
        fn committed(&self, _: &State, _: Option<&Change>, _: &[Effect]) {}
    }

    fn clock() -> UnixMillis {
        // Stands still: the store must order what happens by itself.
        UnixMillis(1_000)
    }

    fn start(disk: Disk) -> Result<Store, DiskError> {
        static ORIGINS: AtomicU64 = AtomicU64::new(1);
        let origin = u128::from(ORIGINS.fetch_add(1, Ordering::Relaxed)).to_le_bytes();
        let config = StoreConfig {
            tracker: PeerId([0xaa; 32]),
            rules: Rules::default(),
            origin: OriginId(origin),
            clock: Box::new(clock),
        };
        Store::start(disk, config, Nobody)
    }

    const DEVICE: PeerId = PeerId([1; 32]);

    fn group(number: usize) -> GroupName {
        format!("g{number}").parse().expect("name")
    }

    fn request(number: usize) -> RequestId {
        RequestId((number as u128).to_le_bytes())
    }

    async fn create_user(store: &Store, name: &str) -> Result<UserId, Refusal> {
        let name: UserName = name.parse().expect("name");
        let create =
            Command::CreateUser { user: name.clone(), password: "phc".into(), invite: None };
        let actor = Actor::Client { device: DEVICE, user: None };
        store.propose(actor, request(1_000_001), create).await?;
        let known = store.read(|state| {
            let user = state.user_named(&name).expect("created");
            (user, state.facts().passwords[&user].last().stamp)
        });
        let enrol = Command::EnrolDevice { user: known.0, verified: known.1 };
        store.propose(actor, request(1_000_002), enrol).await?;
        Ok(known.0)
    }

    async fn create_group(store: &Store, user: UserId, number: usize) -> Result<Outcome, Refusal> {
        let actor = Actor::Client { device: DEVICE, user: Some(user) };
        let command = Command::CreateGroup { group: group(number), hidden: false };
        store.propose(actor, request(number), command).await
    }

    fn groups(store: &Store, user: UserId) -> Vec<String> {
        let rows = store.read(|state| view::groups(state, user, None).0);
        rows.into_iter().map(|row| row.name.to_string()).filter(|name| name != "public").collect()
    }

    async fn share(
        store: &Store,
        user: UserId,
        number: usize,
        manifest: &Manifest,
    ) -> Result<Outcome, Refusal> {
        let page = manifest.page(0);
        store.put_page(user, blake3(&page), page).await?;
        let actor = Actor::Client { device: DEVICE, user: Some(user) };
        let command = Command::Share {
            group: group(0),
            name: format!("f{number}").parse().expect("name"),
            head: Arc::new(manifest.head().clone()),
        };
        let shared = store.propose(actor, request(2_000_000 + number), command).await;
        store.release_pages(user, vec![manifest.head().page_hashes()[0]]).await;
        shared
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart_and_repeats_change_nothing() {
        let disk = FaultDisk::default();
        let store = start(disk.open().expect("opened")).expect("started");
        let user = create_user(&store, "ann").await.expect("created");
        for number in 0..20 {
            create_group(&store, user, number).await.expect("created");
        }
        let manifest = manifest_of(b"hello");
        share(&store, user, 1, &manifest).await.expect("shared");
        store.note_seen(user, UnixMillis(77));
        let (position, latest) = store.position();
        assert_eq!(position, 24);
        assert_eq!(latest, UnixMillis(1_001), "a millisecond for the enrolment");
        let digest = store.read_ledger(Ledger::digest);
        store.close().await;
        drop(store);

        let store = start(disk.open().expect("opened")).expect("started");
        assert_eq!(store.read_ledger(Ledger::digest), digest);
        let seen = store.disk().seen().expect("readable");
        assert_eq!(seen.get(&user), Some(&UnixMillis(77)));
        assert_eq!(groups(&store, user).len(), 20);
        create_group(&store, user, 7).await.expect("granted before");
        assert_eq!(store.position().0, position, "a repeat is no op");
        let page = store.page(blake3(&manifest.page(0))).await.expect("readable");
        assert_eq!(page, Some(manifest.page(0)));
        create_group(&store, user, 99).await.expect("created");
        // The op itself, and the first of this run's origin, after everything before.
        assert_eq!(store.position(), (position + 2, UnixMillis(1_002)));
        store.read(State::check_invariants);
    }

    #[tokio::test]
    async fn the_founder_stays_the_owner_when_all_happens_in_one_millisecond() {
        // With request ids in every order: a tie would fall either way.
        for seed in 0..8 {
            let store = start(FaultDisk::default().open().expect("opened")).expect("started");
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut propose = async |device: u8, command: Command| {
                let device = PeerId([device; 32]);
                let user = store.read(|state| state.user_of(device));
                let actor = Actor::Client { device, user };
                store.propose(actor, RequestId::random(&mut rng), command).await.expect("granted");
            };
            let names: [UserName; 2] = ["ann", "bob"].map(|name| name.parse().expect("name"));
            for (device, name) in (1..).zip(&names) {
                let (user, password) = (name.clone(), "phc".to_owned());
                propose(device, Command::CreateUser { user, password, invite: None }).await;
                let (user, verified) = store.read(|state| {
                    let user = state.user_named(name).expect("created");
                    (user, state.facts().passwords[&user].last().stamp)
                });
                propose(device, Command::EnrolDevice { user, verified }).await;
            }
            propose(1, Command::CreateGroup { group: group(0), hidden: false }).await;
            propose(2, Command::JoinGroup { group: group(0) }).await;
            let user = names[1].clone();
            propose(1, Command::AcceptRequest { group: group(0), user: user.clone() }).await;
            let id = store.read(|state| state.group_named(&group(0))).expect("there");
            // Whom it was given to leaves and comes back: the longest-standing member owns it.
            propose(1, Command::TransferGroup { group: group(0), user }).await;
            propose(2, Command::LeaveGroup { group: group(0) }).await;
            propose(2, Command::JoinGroup { group: group(0) }).await;
            let user = names[1].clone();
            propose(1, Command::AcceptRequest { group: group(0), user }).await;
            let owner = store.read(|state| state.user_name(state.owner(id)?));
            assert_eq!(owner, Some(names[0].clone()));
            store.close().await;
        }
    }

    #[tokio::test]
    async fn snapshots_bound_the_log_and_forget_nothing() {
        let disk = FaultDisk::default();
        let store = start(disk.open().expect("opened")).expect("started");
        let user = create_user(&store, "ann").await.expect("created");
        let actor = Actor::Client { device: DEVICE, user: Some(user) };
        create_group(&store, user, 0).await.expect("created");
        let mut waiting = Vec::new();
        for number in 1..=SNAPSHOT_AFTER / 2 + 100 {
            // There and gone again, so that the state stays small and the log does not.
            let command = Command::CreateGroup { group: group(number), hidden: false };
            waiting.push(store.propose(actor, request(number), command));
            let command = Command::LeaveGroup { group: group(number) };
            waiting.push(store.propose(actor, request(5_000_000 + number), command));
            if waiting.len() > 500 {
                let done = futures_join(std::mem::take(&mut waiting)).await;
                assert!(done.iter().all(Result::is_ok), "{done:?}");
            }
        }
        futures_join(waiting).await;
        create_group(&store, user, 999_999).await.expect("created");
        let (digest, (position, _)) = (store.read_ledger(Ledger::digest), store.position());
        let kept = store.disk().ops(0).map(|ops| ops.len());
        assert!(kept.is_err(), "the log begins later");
        let snapshot = store.disk().snapshot().expect("readable");
        assert!(snapshot.position as usize > SNAPSHOT_AFTER);
        let tail = store.disk().ops(snapshot.position).expect("readable").len() as u64;
        assert_eq!(snapshot.position + tail, position);
        store.close().await;
        drop(store);
        let store = start(disk.open().expect("opened")).expect("started");
        assert_eq!(store.read_ledger(Ledger::digest), digest);
        assert_eq!(groups(&store, user), ["g0", "g999999"]);
        // Requests of before the snapshot are still known.
        create_group(&store, user, 3).await.expect("granted before");
        assert_eq!(store.position().0, position);
        store.read(State::check_invariants);
    }

    async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
        // In the order they were made, all under way at once: each waits for its batch.
        let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
        let mut results: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
        std::future::poll_fn(|context| {
            let mut ready = true;
            for (future, result) in pinned.iter_mut().zip(&mut results) {
                if result.is_none() {
                    match future.as_mut().poll(context) {
                        std::task::Poll::Ready(output) => *result = Some(output),
                        std::task::Poll::Pending => ready = false,
                    }
                }
            }
            if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        results.into_iter().flatten().collect()
    }

    /// Creates groups and a share, each until it is granted; nothing granted may be missing.
    async fn persist(store: &Store, granted: &mut Vec<usize>) -> Option<UserId> {
        let mut user = None;
        for _ in 0..5 {
            if let Ok(created) = create_user(store, "ann").await {
                user = Some(created);
                break;
            }
        }
        let user = user?;
        for number in 0..6 {
            for _ in 0..5 {
                if create_group(store, user, number).await.is_ok() {
                    granted.push(number);
                    break;
                }
            }
        }
        for _ in 0..5 {
            if share(store, user, 0, &manifest_of(b"page")).await.is_ok() {
                break;
            }
        }
        Some(user)
    }

    #[tokio::test]
    async fn every_single_io_failure_is_survived_and_loses_nothing() {
        let clean = FaultDisk::default();
        let store = start(clean.open().expect("opened")).expect("started");
        let made = clean.image().operations;
        persist(&store, &mut Vec::new()).await.expect("works");
        store.close().await;
        drop(store);
        let all = clean.image().operations;
        assert!(all > made + 50, "{made} to {all}");
        for fail_at in 1..=all {
            let disk = FaultDisk::default();
            disk.image().fail_at = Some(fail_at);
            let mut granted = Vec::new();
            // Before it is made, a store that cannot be made says so.
            let started = disk.open().and_then(start);
            if let Ok(store) = started {
                let user = persist(&store, &mut granted).await.expect("one failure is survived");
                assert_eq!(granted.len(), 6, "operation {fail_at}");
                assert_eq!(groups(&store, user).len(), 6, "operation {fail_at}");
                store.read(State::check_invariants);
                store.close().await;
            }
            disk.image().fail_at = None;
            // A file whose very making failed has no name yet; every other one opens.
            let Ok(opened) = disk.open() else {
                assert!(granted.is_empty(), "operation {fail_at}");
                continue;
            };
            let store = start(opened).expect("started");
            let groups = store.read(|state| state.facts().groups.len());
            assert_eq!(groups, granted.len(), "operation {fail_at}");
            store.read(State::check_invariants);
        }
    }

    #[tokio::test]
    async fn a_power_cut_at_any_sync_loses_nothing_acknowledged() {
        let clean = FaultDisk::default();
        let store = start(clean.open().expect("opened")).expect("started");
        let made = clean.image().syncs;
        persist(&store, &mut Vec::new()).await.expect("works");
        store.close().await;
        drop(store);
        let all = clean.image().syncs;
        for cut_at in made + 1..=all {
            let disk = FaultDisk::default();
            disk.image().power_cut_at = Some(cut_at);
            let store = start(disk.open().expect("opened")).expect("started");
            // What is acknowledged while the power is still there.
            let mut acknowledged = 0;
            if let Ok(user) = create_user(&store, "ann").await {
                for number in 0..6 {
                    let done = create_group(&store, user, number).await;
                    if disk.image().syncs >= cut_at {
                        break;
                    }
                    acknowledged += usize::from(done.is_ok());
                }
            }
            store.close().await;
            drop(store);
            let after = disk.after_power_cut();
            let store = start(after.open().expect("opens")).expect("started");
            let groups = store.read(|state| state.facts().groups.len());
            assert!(groups >= acknowledged, "sync {cut_at}: {groups} of {acknowledged}");
            store.read(State::check_invariants);
            // And once more while it was being recovered.
            store.close().await;
            drop(store);
            let again = after.after_power_cut();
            let store = start(again.open().expect("opens")).expect("started");
            assert!(store.read(|state| state.facts().groups.len()) >= acknowledged);
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_changes_serves_reads_and_recovers() {
        let disk = FaultDisk::default();
        let store = start(disk.open().expect("opened")).expect("started");
        let user = create_user(&store, "ann").await.expect("created");
        create_group(&store, user, 0).await.expect("created");
        let first = manifest_of(b"first");
        share(&store, user, 0, &first).await.expect("shared");
        disk.image().full = true;
        // Pages of some size, until the file would have to grow.
        let mut refused = None;
        for number in 0..200usize {
            let bytes = vec![number as u8; 200_000];
            match store.put_page(user, blake3(&bytes), bytes).await {
                Ok(()) => {}
                Err(refusal) => {
                    refused = Some(refusal);
                    break;
                }
            }
        }
        assert_eq!(refused, Some(Refusal::StorageFull));
        // Reads go on, also of pages.
        assert_eq!(groups(&store, user), ["g0"]);
        let page = store.page(blake3(&first.page(0))).await.expect("readable");
        assert_eq!(page, Some(first.page(0)));
        disk.image().full = false;
        let bytes = vec![0xff; 200_000];
        store.put_page(user, blake3(&bytes), bytes).await.expect("there is room again");
        create_group(&store, user, 1).await.expect("created");
        assert_eq!(groups(&store, user), ["g0", "g1"]);
        store.close().await;
        drop(store);
        let store = start(disk.open().expect("opened")).expect("started");
        assert_eq!(groups(&store, user), ["g0", "g1"]);
        // What was put and never shared is swept at the start.
        let strays = store.page(blake3(&vec![0xff; 200_000])).await.expect("readable");
        assert_eq!(strays, None);
    }
}
