//! The one door to durable state: `propose` a command, or `read` a view.
//!
//! What is asked to be changed waits for the thread of `writer`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::command::{Actor, Command, Outcome};
use super::decide::decide;
use super::disk::{Disk, DiskError, LogEntry};
use super::ledger::{Essence, Ledger, Merged, Run};
use super::op::Op;
use super::refusal::Refusal;
use super::remembered::Grants;
use super::state::{Rules, State};
use super::time::{Reading, TrackerTime};
use super::vector::Knowledge;
use super::writer::{Answer, Clock, Job, Published, Work, load};
pub use super::writer::{Answered, Horizon, Listener};
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{OpId, OriginId, RequestId, UserId};
use crate::limits::{PAGES_IN_FLIGHT, STORE_QUEUE};
use crate::peer_id::PeerId;

/// What a store is started with.
pub struct StoreConfig {
    /// The tracker whose ops these are.
    pub tracker: PeerId,
    /// What its operator decided.
    pub rules: Rules,
    /// The run's origin.
    pub origin: OriginId,
    /// The clocks.
    pub clock: Box<dyn Fn() -> Reading + Send + Sync>,
}

/// A tracker's durable state.
pub struct Store {
    disk: Arc<Disk>,
    origin: OriginId,
    clock: Arc<Clock>,
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
        let least = published.ledger.latest.plus(Duration::from_millis(1));
        let time = Mutex::new(TrackerTime::new(clock(), least));
        let clock = Arc::new(Clock { read: clock, time });
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
            clock: clock.clone(),
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
            clock,
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
        let command = Box::new(command);
        self.done(|answer| Job::Propose { actor, request, command, answer }).await
    }

    /// Takes over ops of another tracker, after those of earlier calls; what was new is durable
    /// when the answer is there.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then. The same in the answer, except perhaps with
    /// [`Refusal::StorageFailed`].
    pub async fn merge(&self, ops: Vec<(Op, Vec<u8>)>) -> Result<Answered<Merged>, Refusal> {
        self.ask(|answer| Job::Merge { ops, answer }).await
    }

    /// Takes over everything another tracker knows; durable when this returns.
    ///
    /// # Errors
    /// [`Refusal`], as with [`Self::merge`].
    pub async fn absorb(&self, essence: Essence, granted: Grants) -> Result<(), Refusal> {
        let essence = Box::new(essence);
        self.done(|answer| Job::Absorb { essence, granted, answer }).await
    }

    /// Keeps the bytes of a page that a share names.
    ///
    /// # Errors
    /// Storage refusals.
    pub async fn keep_page(&self, hash: Blake3Hash, bytes: Vec<u8>) -> Result<(), Refusal> {
        let _permit = self.page_permits.acquire().await.map_err(|_| Refusal::Internal)?;
        let bytes = bytes.into();
        self.done(|answer| Job::KeepPage { hash, bytes, answer }).await
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

    /// Everything this tracker knows, for another one.
    pub fn everything(&self) -> (Essence, Grants) {
        self.published(|published| (published.ledger.essence(), published.granted.all()))
    }

    /// All the ops that are known.
    pub fn knowledge(&self) -> Knowledge {
        self.read_ledger(|ledger| ledger.chains.knowledge())
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
        self.clock.now(latest)
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
        let bytes = bytes.into();
        self.done(|answer| Job::PutPage { user, hash, bytes, answer }).await
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

    /// Queues a job; waits while there is no room.
    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<Answered<T>, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| Refusal::Internal)?;
        Ok(answered)
    }

    /// Has a job done.
    async fn done<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, Refusal> {
        self.ask(job).await?.await.unwrap_or(Err(Refusal::Internal))
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
    let ops = published.ledger.op_count();
    Ok((published.ledger.state, ops))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blake3;
    use crate::limits::SNAPSHOT_AFTER;
    use crate::manifest::Manifest;
    use crate::manifest::testing::manifest_of;
    use crate::name::{GroupName, UserName};
    use crate::tracker::disk::testing::FaultDisk;
    use crate::tracker::op::Change;
    use crate::tracker::state::Effect;
    use crate::tracker::view;
    use std::sync::atomic::AtomicU64;

    struct Nobody;

    impl Listener for Nobody {
        fn committed(&self, _: &State, _: Option<&Change>, _: &[Effect], _: bool) {}
    }

    fn clock() -> Reading {
        // Stands still: the store must order what happens by itself.
        Reading { wall: UnixMillis(1_000), passed: Duration::ZERO }
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
