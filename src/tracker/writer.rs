//! The one thread that writes a tracker's state.
//!
//! It judges the commands that wait against the pending state, commits their ops together, and only
//! then lets readers see them, listeners hear of them, and callers have their answers, in log
//! order. What a failed commit held is forgotten, and its callers are told.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use super::command::{Actor, Command, Outcome};
use super::disk::{Batch, Disk, DiskError, Snapshot};
use super::lattice::RequestKey;
use super::ledger::{Entry, Essence, Ledger, Merged, Run};
use super::op::{Change, Op};
use super::pages::Pages;
use super::refusal::Refusal;
use super::remembered::{Grants, Remembered};
use super::state::{Effect, Rules, State};
use super::time::{Reading, TrackerTime};
use super::vector::Knowledge;
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{RequestId, UserId};
use crate::limits::{NEWS_AGE, SEAL_ABOVE, SEAL_AFTER, SNAPSHOT_AFTER, STORE_BATCH};
use crate::peer_id::PeerId;

/// Hears of changes once they are durable and visible, in log order. Must not wait.
pub trait Listener: Send + 'static {
    /// `change` was made; `state` has it. Without one, the state of another tracker was taken over.
    /// It is `fresh` unless it was made long ago, on another tracker.
    fn committed(&self, state: &State, change: Option<&Change>, effects: &[Effect], fresh: bool);
}

/// What every tracker of the roster is known to have, and which trackers those are.
#[derive(Clone, Debug)]
pub struct Horizon {
    /// Ops that all of them have.
    pub everybody: Knowledge,
    /// All of them.
    pub roster: Vec<PeerId>,
}

/// Tracker time as it is read.
pub(super) struct Clock {
    pub(super) read: Box<dyn Fn() -> Reading + Send + Sync>,
    pub(super) time: Mutex<TrackerTime>,
}

impl Clock {
    /// The time now, never before `latest`.
    pub(super) fn now(&self, latest: UnixMillis) -> UnixMillis {
        let mut time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        time.read((self.read)(), latest)
    }
}

/// What readers see.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) ledger: Ledger,
    pub(super) pages: Pages,
    pub(super) granted: Remembered,
    /// The place of the next op in the log.
    pub(super) position: u64,
}

/// What a store will answer; nothing when it ended.
pub type Answered<T> = oneshot::Receiver<Result<T, Refusal>>;

pub(super) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

#[derive(Debug)]
pub(super) enum Job {
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
        granted: Grants,
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

/// Snapshot and tail as one state; and the place of the snapshot.
pub(super) fn load(disk: &Disk, rules: Rules) -> Result<(Published, u64), DiskError> {
    let Snapshot { position: snapshot_at, essence, cut, granted } = disk.snapshot()?;
    let mut published = Published {
        ledger: Ledger::new(essence, cut, rules),
        pages: Pages::default(),
        granted: Remembered::default(),
        position: snapshot_at,
    };
    published.granted.keep_all(granted);
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
pub(super) struct Work {
    /// What is published and the ops of the batch under way.
    pub(super) pending: Ledger,
    pub(super) pending_pages: Pages,
    /// Place of the latest snapshot.
    pub(super) snapshot_at: u64,
    /// The last commit failed: nothing is judged before the disk works again.
    pub(super) failed: bool,
    /// The pending state holds what a failed commit held.
    pub(super) stale: bool,
    /// Whether the disk takes changes, for whoever asks how the tracker is.
    pub(super) writable: Arc<AtomicBool>,
    /// Pages to let go of, asked for while the disk failed.
    pub(super) unreleased: Vec<(UserId, Vec<Blake3Hash>)>,
    pub(super) disk: Arc<Disk>,
    pub(super) published: Arc<RwLock<Published>>,
    pub(super) run: Run,
    pub(super) horizon: Arc<Mutex<Option<Horizon>>>,
    /// Tells of the place of the next op.
    pub(super) place: watch::Sender<u64>,
    pub(super) clock: Arc<Clock>,
    pub(super) listener: Box<dyn Listener>,
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
    Follow(Vec<Effect>),
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
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        while queue.blocking_recv_many(&mut jobs, STORE_BATCH) > 0 {
            let stop = jobs.iter().position(|job| matches!(job, Job::Stop));
            jobs.truncate(stop.unwrap_or(jobs.len()));
            let mut left = std::mem::take(&mut jobs);
            while let Some(at) = left.iter().position(|job| matches!(job, Job::Absorb { .. })) {
                let after = left.split_off(at + 1);
                let absorb = left.pop();
                self.round(std::mem::replace(&mut left, after));
                if let Some(Job::Absorb { essence, granted, answer }) = absorb {
                    drop(answer.send(self.absorb(*essence, granted)));
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
                    _ => None,
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
                for entry in entries {
                    // Whoever asks for it again in this very round is answered as well.
                    if let Some(change) = entry.op.change() {
                        let (actor, state) = (entry.op.actor, &self.pending.state);
                        let known = round.granted.entry((actor, entry.op.request));
                        known.or_insert_with(|| Outcome::of(&change, actor, state));
                    }
                    self.add(round, entry);
                }
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
        let (now, asked) = (self.clock.now(self.pending.latest), (actor, request));
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
        round.page_moves.push(PageMove::Follow(effects));
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
        for page_move in page_moves {
            match page_move {
                PageMove::Put(user, hash, len) => drop(published.pages.put(user, hash, len)),
                PageMove::Release(user, hashes) => drop(published.pages.release(user, &hashes)),
                PageMove::Arrive(hash) => drop(published.pages.arrive(&hash)),
                PageMove::Follow(effects) => drop(published.pages.follow(&effects)),
            }
        }
        drop(published);
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now(published.ledger.latest);
        for ((op, _), effects) in ops.zip(&effects) {
            if let Some(change) = op.change() {
                let fresh = now.since(op.clock) < NEWS_AGE;
                self.listener.committed(&published.ledger.state, Some(&change), effects, fresh);
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
        let mut page_moves = Vec::new();
        for (op, bytes) in ops.iter().zip(&bytes) {
            page_moves.push(PageMove::Follow(ledger.follow(op, bytes)?));
        }
        self.publish(ops.iter().zip(&bytes), page_moves);
        if self.stale || !ops.is_empty() {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            ledger.come_after_all();
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
            let new = published.position - self.snapshot_at;
            // Origins that ended leave the vector with a snapshot.
            let many = published.ledger.chains.count() > SEAL_ABOVE;
            new >= things as u64 || (many && new >= SEAL_AFTER)
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
    fn absorb(&mut self, essence: Essence, granted: Grants) -> Result<(), Refusal> {
        if self.failed {
            self.recover().map_err(|error| refusal_of(&error))?;
        }
        let (mut ledger, position, mut remembered) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            (published.ledger.clone(), published.position, published.granted.clone())
        };
        let effects = ledger.absorb(essence);
        remembered.keep_all(granted);
        let (essence, cut) = (ledger.essence(), ledger.cut.clone());
        let snapshot = Snapshot { position, essence, cut, granted: remembered.all() };
        if let Err(error) = self.disk.replace_snapshot(&snapshot, 0) {
            tracing::error!(%error, "cannot store the state of another tracker");
            self.failed = true;
            self.stale = true;
            self.try_reopen();
            return Err(refusal_of(&error));
        }
        self.snapshot_at = position;
        let pages = self.adopt(ledger, &effects);
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.granted = remembered;
        drop(published);
        if !pages.is_empty()
            && let Err(error) = self.disk.commit(&pages)
        {
            tracing::error!(%error, "pages that nobody needs stay until the next start");
            self.failed = true;
            self.try_reopen();
        }
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        self.listener.committed(&published.ledger.state, None, &effects, false);
        self.place.send_replace(published.position);
        Ok(())
    }

    /// What is published and pending becomes `ledger`; returns the pages that are not needed then.
    fn adopt(&mut self, ledger: Ledger, effects: &[Effect]) -> Batch {
        let gone = self.pending_pages.follow(effects);
        self.pending = ledger.clone();
        self.pending.come_after_all();
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
