//! A tracker is killed again and again while clients write at full rate: what it acknowledged is
//! there afterwards, once, and nothing else is.
//!
//! Every acknowledgement goes into a log kept here, outside the tracker. One group has one write
//! under way at a time, so that the log alone says what the tracker's lists must be.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::env;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mtq::clock;
use mtq::error_code::ErrorCode;
use mtq::hash::sha1;
use mtq::id::{OriginId, RequestId};
use mtq::limits::SNAPSHOT_AFTER;
use mtq::manifest::{Manifest, PieceHashes};
use mtq::name::{FileName, GroupName, Selector, UserName};
use mtq::peer_id::PeerId;
use mtq::piece::PieceLayout;
use mtq::tracker::command::{Actor, Command};
use mtq::tracker::disk::Disk;
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{GroupRow, MemberRow, Reply, Request, Standing};
use mtq::tracker::op::Change;
use mtq::tracker::refusal::Refusal;
use mtq::tracker::state::{Effect, Rules, State};
use mtq::tracker::store::{Listener, Store, StoreConfig};
use mtq::tracker::stub::{CallError, TrackerConnection};
use mtq::tracker::time::Reading;
use mtq::tracker_link::TrackerLink;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::net::{loopback, request_id, sign_up, soon, user};
use crate::world::World;

const CLIENTS: usize = 6;
/// Writes a client has under way at once; no more than a connection may have unfinished shares.
const WRITERS: usize = 4;
/// More than there are writers, so that one is always free.
const GROUPS: usize = 40;
const FILES: usize = 12;
/// Writes after which the tracker writes its first snapshot.
const UNTIL_SNAPSHOT: u64 = 2_000;
/// Who was there before, with a hidden group of the same name.
const ELDER: &str = "elder";

/// A number from the environment, to replay a plan or to make it longer.
fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_there_twice() {
    let seed = number("MTQ_SEED", fastrand::u64(..));
    let kills = number("MTQ_KILLS", 50);
    println!("MTQ_SEED={seed} MTQ_KILLS={kills}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::without_tracker();
    // Its very first start is interrupted too.
    for _ in 0..3 {
        stillborn(&mut world, &mut rng);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (place, tracker) = (world.path("tracker"), world.link().peer_id());
    runtime.block_on(grow_old(&place, tracker, SNAPSHOT_AFTER as u64 - UNTIL_SNAPSHOT));
    world.start_tracker();
    let (run, up) = watch::channel(Some(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| runtime.block_on(Client::sign_up(number, world.link(), up.clone())))
        .collect();
    let ledger = Arc::new(Ledger::default());
    let mut writers = JoinSet::new();
    for client in &clients {
        for _ in 0..WRITERS {
            let rng = fastrand::Rng::with_seed(rng.u64(..));
            writers.spawn_on(write(client.clone(), ledger.clone(), rng), runtime.handle());
        }
    }
    for kill in 1..=kills {
        pause(&mut rng, 20..400);
        world.kill_tracker();
        run.send_replace(None);
        while rng.u8(..3) == 0 {
            stillborn(&mut world, &mut rng);
        }
        world.start_tracker();
        run.send_replace(Some(kill));
        // A writer only ever ends by itself when something was wrong.
        if let Some(ended) = writers.try_join_next() {
            ended.expect("a writer goes on");
        }
    }
    ledger.closed.store(true, Ordering::Relaxed);
    runtime.block_on(soon("the writers", async {
        while let Some(ended) = writers.join_next().await {
            ended.expect("a writer ends in order");
        }
    }));

    world.kill_tracker();
    world.start_tracker();
    run.send_replace(Some(kills + 1));
    runtime.block_on(soon("the comparison", ledger.compare(&clients)));
    let (acknowledged, repeats) = (ledger.len(), ledger.repeats.load(Ordering::Relaxed));
    println!("{acknowledged} acknowledged, {repeats} of them asked for again");
    assert!(acknowledged > 10 * kills, "only {acknowledged} writes in all");
    for client in &clients {
        runtime.block_on(client.close());
    }
    world.stop_tracker();
    let disk = Disk::open(&world.path("tracker")).expect("whole");
    no_request_twice(&disk);
    let snapshot_at = disk.snapshot().expect("whole").position;
    assert!(snapshot_at > 0 || acknowledged < UNTIL_SNAPSHOT, "no snapshot was ever written");
}

/// Makes so many changes in the store of a tracker that is not running: with `SNAPSHOT_AFTER` of
/// them comes a snapshot.
pub async fn grow_old(place: &Path, tracker: PeerId, changes: u64) {
    let disk = Disk::open(place).expect("opened");
    let config = StoreConfig {
        tracker,
        rules: Rules::default(),
        origin: OriginId::random(&mut fastrand::Rng::new()),
        clock: Box::new(|| Reading { wall: clock::now(), passed: Duration::ZERO }),
    };
    let store = Arc::new(Store::start(disk, config, Nobody).expect("started"));
    let device = Identity::generate().peer_id();
    let stranger = Actor::Client { device, user: None };
    let (user, password) = (user(ELDER), "no password has this hash".to_owned());
    let create = Command::CreateUser { user: user.clone(), password, invite: None };
    store.propose(stranger, request_id(), create).await.expect("granted");
    let (user, verified) = store.read(|state| {
        let id = state.user_named(&user).expect("created");
        (id, state.facts().passwords[&id].last().stamp)
    });
    let enrol = Command::EnrolDevice { user, verified };
    store.propose(stranger, request_id(), enrol).await.expect("granted");
    let elder = Actor::Client { device, user: Some(user) };
    let group: GroupName = ELDER.parse().expect("a name");
    let create = Command::CreateGroup { group: group.clone(), hidden: true };
    store.propose(elder, request_id(), create).await.expect("granted");
    let mut tasks = JoinSet::new();
    for offline_grace in 0..changes as u32 {
        let (store, group) = (store.clone(), group.clone());
        tasks.spawn(async move {
            let set = Command::SetGroup { group, offline_grace };
            store.propose(elder, request_id(), set).await.expect("granted");
        });
    }
    tasks.join_all().await;
    store.close().await;
}

struct Nobody;

impl Listener for Nobody {
    fn committed(&self, _: &State, _: Option<&Change>, _: &[Effect], _: bool) {}
}

/// A tracker killed while it starts.
fn stillborn(world: &mut World, rng: &mut fastrand::Rng) {
    world.launch_tracker();
    pause(rng, 5..60);
    world.kill_tracker();
}

fn pause(rng: &mut fastrand::Rng, millis: std::ops::Range<u64>) {
    thread::sleep(Duration::from_millis(rng.u64(millis)));
}

/// The log in the tracker's own file has every write once.
fn no_request_twice(disk: &Disk) {
    let position = disk.snapshot().expect("whole").position;
    let mut seen = HashSet::new();
    for (op, _) in disk.ops(position).expect("whole") {
        assert!(seen.insert((op.actor, op.request)), "twice in the log: {op:?}");
    }
}

/// Writes until the ledger is closed: each request is repeated until it is answered.
async fn write(client: Arc<Client>, ledger: Arc<Ledger>, mut rng: fastrand::Rng) {
    while !ledger.closed.load(Ordering::Relaxed) {
        let number = rng.usize(..GROUPS);
        let Ok(mut page) = ledger.pages[number].try_lock() else {
            tokio::task::yield_now().await;
            continue;
        };
        let possible = page.group.possible(client.number, &mut rng);
        let Some(deed) = rng.choice(possible) else { continue };
        let id = RequestId::random(&mut rng);
        if let Err(wrong) = client.carry_out(number, deed, id, &ledger).await {
            panic!("u{} {deed:?} in g{number:02}: {wrong}; {:?}", client.number, page.log);
        }
        page.acknowledge(client.number, deed);
    }
}

/// One kind of write.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Create { hidden: bool },
    Join,
    Accept(usize),
    Leave,
    Nominate(Option<usize>),
    Share(usize),
    StopShare(usize),
}

/// What acknowledged writes made of a group. Clients and files are numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    hidden: bool,
    /// By the order of joining.
    members: BTreeMap<usize, usize>,
    joined: usize,
    waiting: BTreeSet<usize>,
    /// Memberships; what is said of one that ended no longer counts.
    assigned: usize,
    nominee: Option<usize>,
    shares: BTreeSet<(usize, usize)>,
}

impl Group {
    fn is_living(&self) -> bool {
        !self.members.is_empty()
    }

    fn place(&self, who: usize) -> Option<usize> {
        self.members.iter().find(|(_, member)| **member == who).map(|(place, _)| *place)
    }

    fn owner(&self) -> Option<usize> {
        let assigned = self.members.get(&self.assigned);
        let longest = || self.members.values().next().copied();
        assigned.copied().or_else(|| self.successor()).or_else(longest)
    }

    fn successor(&self) -> Option<usize> {
        self.members.get(&self.nominee?).copied()
    }

    /// What `who` may do here now.
    fn possible(&self, who: usize, rng: &mut fastrand::Rng) -> Vec<Deed> {
        if !self.is_living() {
            return vec![Deed::Create { hidden: rng.bool() }];
        }
        if self.place(who).is_none() {
            return if self.waiting.contains(&who) { Vec::new() } else { vec![Deed::Join] };
        }
        let mut deeds = Vec::new();
        // Rarer than the rest, or groups would have nobody in them.
        if rng.u8(..4) == 0 {
            deeds.push(Deed::Leave);
        }
        let file = rng.usize(..FILES);
        deeds.push(match self.shares.contains(&(file, who)) {
            true => Deed::StopShare(file),
            false => Deed::Share(file),
        });
        if self.owner() == Some(who) {
            deeds.extend(self.waiting.iter().map(|other| Deed::Accept(*other)));
            let others = self.members.values().map(|other| Some(*other).filter(|o| *o != who));
            deeds.extend(rng.choice(others.collect::<Vec<_>>()).map(Deed::Nominate));
        }
        deeds
    }

    fn apply(&mut self, who: usize, deed: Deed) {
        match deed {
            Deed::Create { hidden } => {
                *self = Self { hidden, ..Self::default() };
                self.enter(who);
            }
            Deed::Join => drop(self.waiting.insert(who)),
            Deed::Accept(other) => {
                self.waiting.remove(&other);
                self.enter(other);
            }
            Deed::Leave => {
                self.members.retain(|_, member| *member != who);
                self.shares.retain(|(_, sharer)| *sharer != who);
            }
            Deed::Nominate(other) => {
                self.assigned = self.place(who).expect("a member");
                self.nominee = other.and_then(|other| self.place(other));
            }
            Deed::Share(file) => drop(self.shares.insert((file, who))),
            Deed::StopShare(file) => drop(self.shares.remove(&(file, who))),
        }
    }

    fn enter(&mut self, who: usize) {
        self.members.insert(self.joined, who);
        self.joined += 1;
    }
}

/// What was acknowledged of one group, in order.
#[derive(Debug, Default)]
struct Page {
    log: Vec<(usize, Deed)>,
    group: Group,
}

impl Page {
    fn acknowledge(&mut self, who: usize, deed: Deed) {
        self.log.push((who, deed));
        self.group.apply(who, deed);
    }
}

/// The log of acknowledgements, a page for each group.
#[derive(Debug)]
struct Ledger {
    pages: Vec<Mutex<Page>>,
    closed: AtomicBool,
    repeats: AtomicU64,
}

impl Default for Ledger {
    fn default() -> Self {
        let pages = (0..GROUPS).map(|_| Mutex::default()).collect();
        Self { pages, closed: AtomicBool::new(false), repeats: AtomicU64::new(0) }
    }
}

impl Ledger {
    fn page(&self, number: usize) -> tokio::sync::MutexGuard<'_, Page> {
        self.pages[number].try_lock().expect("nobody writes any more")
    }

    fn len(&self) -> u64 {
        (0..GROUPS).map(|number| self.page(number).log.len() as u64).sum()
    }

    /// Whether the tracker's lists are what the log says, no more and no less.
    async fn compare(&self, clients: &[Arc<Client>]) {
        let groups: Vec<_> = (0..GROUPS).map(|number| self.page(number).group.clone()).collect();
        for client in clients {
            let expected = expected_groups(&groups, client.number);
            assert_eq!(client.groups().await, expected, "groups as u{} sees them", client.number);
        }
        for (number, group) in groups.iter().enumerate() {
            let Some(owner) = group.owner() else {
                let request = Request::ListMembers { group: group_name(number), after: None };
                let none = Err(Refusal::NoSuchGroup(group_name(number)));
                assert_eq!(clients[0].ask(&request).await, none);
                continue;
            };
            let owner = &clients[owner];
            let history = || format!("g{number:02}: {:?}", self.page(number).log);
            assert_eq!(owner.members(number).await, expected_members(group), "{}", history());
            let waiting: BTreeSet<_> = group.waiting.iter().map(|who| name_of(*who)).collect();
            assert_eq!(owner.waiting(number).await, waiting, "{}", history());
            assert_eq!(owner.files(number).await, expected_files(group), "{}", history());
        }
    }
}

type GroupLine = (String, Option<UserName>, u32, Standing, bool);

fn expected_groups(groups: &[Group], viewer: usize) -> Vec<GroupLine> {
    let mut lines = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let standing = if group.owner() == Some(viewer) {
            Standing::Owner
        } else if group.place(viewer).is_some() {
            Standing::Member
        } else if group.waiting.contains(&viewer) {
            Standing::Requested
        } else {
            Standing::None
        };
        if group.is_living() && !(group.hidden && standing == Standing::None) {
            let (owner, count) = (group.owner().map(name_of), group.members.len() as u32);
            lines.push((group_name(number).to_string(), owner, count, standing, group.hidden));
        }
    }
    lines.push(("public".to_owned(), None, CLIENTS as u32 + 1, Standing::Member, false));
    lines
}

/// Who, whether the owner, whether the one to follow.
type MemberLine = (UserName, bool, bool);

fn expected_members(group: &Group) -> Vec<MemberLine> {
    let whole: BTreeSet<_> = group.members.values().copied().collect();
    let line = |who| {
        let owner = group.owner() == Some(who);
        (name_of(who), owner, group.successor() == Some(who) && !owner)
    };
    whole.into_iter().map(line).collect()
}

/// The name, and who shares it.
type FileLine = (FileName, Vec<UserName>);

fn expected_files(group: &Group) -> Vec<FileLine> {
    let mut lines: BTreeMap<FileName, Vec<UserName>> = BTreeMap::new();
    for (file, who) in &group.shares {
        lines.entry(file_name(*file)).or_default().push(name_of(*who));
    }
    lines.into_iter().collect()
}

fn name_of(who: usize) -> UserName {
    user(&format!("u{who}"))
}

fn group_name(number: usize) -> GroupName {
    format!("g{number:02}").parse().expect("a name")
}

fn file_name(file: usize) -> FileName {
    format!("f{file:02}").parse().expect("a name")
}

/// A file of a few bytes, the same in whatever group it is: its one hash page is shared, let go
/// and put again all the time.
fn manifest(file: usize) -> Manifest {
    let content = format!("content {file}");
    let layout = PieceLayout::new(content.len() as u64).expect("small");
    let pieces = layout.pieces().map(|piece| PieceHashes::of(layout, piece, content.as_bytes()));
    let pieces = pieces.collect();
    Manifest::new(layout, sha1(content.as_bytes()), pieces).expect("consistent")
}

/// A run of the tracker: the number of kills before it.
type Run = u64;

/// A device of one user.
struct Client {
    number: usize,
    endpoint: Endpoint,
    link: TrackerLink,
    /// The run of the tracker that is up.
    up: watch::Receiver<Option<Run>>,
    line: Mutex<Option<(Run, Arc<TrackerConnection>)>>,
    tasks: TaskTracker,
}

impl Client {
    /// A client with a new account; from now on its key alone logs it in.
    async fn sign_up(
        number: usize,
        link: TrackerLink,
        up: watch::Receiver<Option<Run>>,
    ) -> Arc<Self> {
        let identity = Arc::new(Identity::generate());
        let endpoint = Endpoint::bind(identity, loopback(), &[Alpn::Peer]).expect("bound");
        let (line, tasks) = (Mutex::new(None), TaskTracker::new());
        let client = Self { number, endpoint, link, up, line, tasks };
        let first = client.dial().await.expect("the tracker is up");
        sign_up(&first, name_of(number).as_str()).await;
        first.close(ErrorCode::Done);
        Arc::new(client)
    }

    async fn close(&self) {
        self.endpoint.close(ErrorCode::Done).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn dial(&self) -> Option<TrackerConnection> {
        let session = clock::now().0;
        let (agent, addresses, extensions) = ("writer".to_owned(), Vec::new(), Vec::new());
        let hello = Hello { features: 0, agent, session, addresses, roster: None, extensions };
        let opened = TrackerConnection::open(&self.endpoint, &self.link, &hello).await;
        let (line, mut pushes) = opened.ok()?;
        // Who leaves them unread is cut off.
        self.tasks.spawn(async move { while pushes.next().await.is_some() {} });
        Some(line)
    }

    /// Waits for `future` while that run of the tracker lives.
    async fn during<T>(&self, run: Run, future: impl Future<Output = T>) -> Option<T> {
        let mut up = self.up.clone();
        tokio::select! {
            answer = future => Some(answer),
            _ = up.wait_for(|now| *now != Some(run)) => None,
        }
    }

    /// A connection to the tracker that is up, logged in by key.
    async fn line(&self) -> (Run, Arc<TrackerConnection>) {
        let mut line = self.line.lock().await;
        loop {
            let run = *self.up.clone().wait_for(Option::is_some).await.expect("kept open");
            let run = run.expect("waited for");
            match &*line {
                Some((of, open)) if *of == run && !open.is_closed() => return (run, open.clone()),
                _ => *line = None,
            }
            let Some(Some(open)) = self.during(run, self.dial()).await else { continue };
            match self.during(run, open.call(&Request::LoginByKey)).await {
                Some(Ok(Reply::LoggedIn { user })) => {
                    assert_eq!(user, name_of(self.number));
                    *line = Some((run, Arc::new(open)));
                }
                Some(Err(CallError::Refused(refusal))) => panic!("not logged in: {refusal}"),
                _ => {}
            }
        }
    }

    /// Asks until there is an answer, over as many runs of the tracker as it takes.
    async fn ask(&self, request: &Request) -> Result<Reply, Refusal> {
        self.ask_counting(request, &AtomicU64::new(0)).await
    }

    async fn ask_counting(&self, request: &Request, lost: &AtomicU64) -> Result<Reply, Refusal> {
        loop {
            let (run, line) = self.line().await;
            match self.during(run, line.call(request)).await {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(CallError::Refused(Refusal::RateLimited { retry_after_ms }))) => {
                    tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
                }
                Some(Err(CallError::Refused(refusal))) => return Err(refusal),
                // The answer, if there was one, died with the tracker.
                _ => drop(lost.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    /// Makes one write and has it acknowledged.
    async fn carry_out(
        &self,
        number: usize,
        deed: Deed,
        request_id: RequestId,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let group = group_name(number);
        let request = match deed {
            Deed::Create { hidden } => Request::CreateGroup { request_id, group, hidden },
            Deed::Join => Request::JoinGroup { request_id, group },
            Deed::Accept(other) => {
                Request::AcceptRequest { request_id, group, user: name_of(other) }
            }
            Deed::Leave => Request::LeaveGroup { request_id, group },
            Deed::Nominate(other) => {
                Request::Nominate { request_id, group, user: other.map(name_of) }
            }
            Deed::Share(file) => {
                let head = manifest(file).head().encode();
                Request::Share { request_id, group, name: file_name(file), head }
            }
            Deed::StopShare(file) => {
                let file = Selector::Name(file_name(file));
                Request::StopShare { request_id, group, file }
            }
        };
        let words = |refusal: Refusal| refusal.to_string();
        loop {
            match (self.ask_counting(&request, &ledger.repeats).await.map_err(words)?, deed) {
                (Reply::PagesMissing { pages }, Deed::Share(file)) => {
                    assert_eq!(pages, [0]);
                    self.put_page(&manifest(file)).await?;
                }
                (Reply::Shared { .. }, Deed::Share(_)) => return Ok(()),
                (Reply::Stopped { content, still_shared, .. }, Deed::StopShare(file)) => {
                    let expected = (manifest(file).content_id(), false);
                    assert_eq!((content, still_shared), expected);
                    return Ok(());
                }
                (Reply::Done, _) => return Ok(()),
                (other, _) => return Err(format!("answered by {other:?}")),
            }
        }
    }

    async fn put_page(&self, manifest: &Manifest) -> Result<(), String> {
        let (content, bytes) = (manifest.content_id(), manifest.page(0));
        match self.ask(&Request::PutPage { content, page: 0, bytes }).await {
            // Begun on a connection that is gone, or finished meanwhile by another writer.
            Ok(_) | Err(Refusal::NoSuchShare(_)) => Ok(()),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    async fn groups(&self) -> Vec<GroupLine> {
        let (mut lines, mut after) = (Vec::new(), None);
        loop {
            let reply = self.ask(&Request::ListGroups { after: after.take() }).await;
            let Ok(Reply::Groups { rows, more }) = reply else { panic!("{reply:?}") };
            after = rows.last().map(|row| row.name.clone());
            lines.extend(rows.into_iter().map(|row: GroupRow| {
                (row.name.to_string(), row.owner, row.member_count, row.standing, row.hidden)
            }));
            if !more {
                return lines;
            }
        }
    }

    async fn members(&self, number: usize) -> Vec<MemberLine> {
        let (mut lines, mut after) = (Vec::new(), None);
        loop {
            let request = Request::ListMembers { group: group_name(number), after: after.take() };
            let reply = self.ask(&request).await;
            let Ok(Reply::Members { rows, more }) = reply else { panic!("{reply:?}") };
            after = rows.last().map(|row| row.user.clone());
            lines.extend(rows.into_iter().map(|row: MemberRow| (row.user, row.owner, row.nominee)));
            if !more {
                return lines;
            }
        }
    }

    async fn waiting(&self, number: usize) -> BTreeSet<UserName> {
        let reply = self.ask(&Request::ListRequests { group: group_name(number) }).await;
        let Ok(Reply::Requests { rows }) = reply else { panic!("{reply:?}") };
        let count = rows.len();
        let waiting: BTreeSet<_> = rows.into_iter().map(|row| row.user).collect();
        assert_eq!(waiting.len(), count, "somebody waits twice");
        waiting
    }

    /// The files of a group, each with the page it was shared with.
    async fn files(&self, number: usize) -> Vec<FileLine> {
        let group = group_name(number);
        let request = Request::ListFiles { group: group.clone(), after: None };
        let reply = self.ask(&request).await;
        let Ok(Reply::Files { rows, more: false }) = reply else { panic!("{reply:?}") };
        let mut lines = Vec::new();
        for row in rows {
            let file = (0..FILES).find(|file| file_name(*file) == row.name).expect("ours");
            let manifest = manifest(file);
            let (content, page) = (manifest.content_id(), 0);
            assert_eq!(row.content, content);
            assert_eq!(row.sharer_count as usize, row.sharers.len());
            let kept = self
                .ask(&Request::Pages { group: group.clone(), pages: vec![(content, page)] })
                .await;
            assert_eq!(kept, Ok(Reply::Pages { pages: vec![Some(manifest.page(0))] }));
            lines.push((row.name, row.sharers));
        }
        lines
    }
}
