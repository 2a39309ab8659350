//! Trackers are killed at random while clients write and download: no download fails, nothing that
//! was acknowledged is lost, and in the end the trackers have one state.
//!
//! Raw writers turn to either tracker and repeat a request, under its id, until one grants it. Real
//! agents fetch files from each other all the while. For longer runs: `MTQ_SECONDS=120
//! MTQ_KILL_EVERY=5`.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mtq::client::agent::{Agent, AgentConfig};
use mtq::client::error::AgentError;
use mtq::client::library::EntryState;
use mtq::client::metafile::MetafileTo;
use mtq::clock;
use mtq::id::RequestId;
use mtq::name::{GroupName, Selector};
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::refusal::Refusal;
use mtq::tracker::stub::CallError;
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Device, Line, file, named, small};
use crate::net::{group, loopback, password, soon, user};
use crate::world::{DEADLINE, content};

const WRITERS: usize = 14;
const AGENTS: usize = 6;
/// Files that each agent shares, and the size of one.
const FILES: usize = 2;
const FILE_LEN: usize = 3 << 20;
/// A writer turns elsewhere when it has no answer after this, as agents do.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two requests of a writer: two cores are enough for all of this then.
const PAUSE: Duration = Duration::from_millis(20);
/// Open requests to join that a writer has at most; trackers take 100.
const MOST_OPEN: usize = 60;

fn seconds(name: &str, default: f64) -> Duration {
    let text = env::var(name).ok();
    Duration::from_secs_f64(text.map_or(default, |text| text.parse().expect("a number")))
}

/// What was acknowledged of one group.
#[derive(Clone, Debug, Default)]
struct Page {
    owner: usize,
    asking: BTreeSet<usize>,
    members: BTreeSet<usize>,
    files: BTreeSet<String>,
}

/// What was acknowledged, and what it took.
#[derive(Debug, Default)]
struct Ledger {
    pages: Mutex<BTreeMap<String, Page>>,
    closed: AtomicBool,
    acknowledged: AtomicU64,
    repeats: AtomicU64,
    downloads: AtomicU64,
    early: AtomicU64,
}

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<String, Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

fn name_of(writer: usize) -> String {
    format!("w{writer}")
}

/// One kind of write.
#[derive(Clone, Debug)]
enum Deed {
    Create(String),
    Share(String, String),
    Join(String),
    Accept(String, usize),
}

/// Writes with one user, at either tracker.
struct Writer {
    number: usize,
    device: Arc<Device>,
    links: Vec<TrackerLink>,
    at: usize,
    line: Option<Line>,
    rng: fastrand::Rng,
    made: usize,
}

impl Writer {
    async fn run(mut self, ledger: Arc<Ledger>) {
        while !ledger.is_closed() {
            let Some(deed) = self.choose(&ledger) else { continue };
            let id = RequestId::random(&mut self.rng);
            self.carry_out(&deed, id, &ledger).await;
            self.acknowledge(deed, &ledger);
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn choose(&mut self, ledger: &Ledger) -> Option<Deed> {
        let pages = ledger.pages();
        let own: Vec<_> = pages.iter().filter(|(_, page)| page.owner == self.number).collect();
        self.made += 1;
        if own.is_empty() || self.rng.u8(..12) == 0 {
            return Some(Deed::Create(format!("{}.{}", name_of(self.number), self.made)));
        }
        let waiting: Vec<_> = own
            .iter()
            .flat_map(|(name, page)| page.asking.iter().map(|who| ((*name).clone(), *who)))
            .collect();
        if self.rng.bool()
            && let Some((group, who)) = self.rng.choice(waiting)
        {
            return Some(Deed::Accept(group, who));
        }
        let open = pages.values().filter(|page| page.asking.contains(&self.number)).count();
        if self.rng.u8(..3) == 0 && open < MOST_OPEN {
            let strange = |page: &Page| {
                page.owner != self.number
                    && !page.asking.contains(&self.number)
                    && !page.members.contains(&self.number)
            };
            let others = pages.iter().filter(|(_, page)| strange(page)).map(|(name, _)| name);
            return self.rng.choice(others.collect::<Vec<_>>()).cloned().map(Deed::Join);
        }
        let (group, _) = self.rng.choice(own)?;
        Some(Deed::Share(group.clone(), format!("{}.{}", name_of(self.number), self.made)))
    }

    fn acknowledge(&self, deed: Deed, ledger: &Ledger) {
        ledger.acknowledged.fetch_add(1, Ordering::Relaxed);
        let mut pages = ledger.pages();
        match deed {
            Deed::Create(group) => pages.entry(group).or_default().owner = self.number,
            Deed::Share(group, file) => drop(pages.entry(group).or_default().files.insert(file)),
            Deed::Join(group) => drop(pages.entry(group).or_default().asking.insert(self.number)),
            Deed::Accept(group, who) => {
                let page = pages.entry(group).or_default();
                page.asking.remove(&who);
                page.members.insert(who);
            }
        }
    }

    /// A connection on which this user is logged in, to whichever tracker has one for us.
    async fn line(&mut self) -> &Line {
        while self.line.is_none() {
            let link = self.links[self.at].clone();
            let dialled = tokio::time::timeout(PATIENCE, self.device.reach(&link)).await;
            if let Ok(Some(line)) = dialled {
                let login = line.line.call(&Request::LoginByKey);
                match tokio::time::timeout(PATIENCE, login).await {
                    Ok(Ok(_)) => self.line = Some(line),
                    Ok(Err(CallError::Refused(refusal))) => panic!("not logged in: {refusal}"),
                    _ => {}
                }
            }
            if self.line.is_none() {
                self.at = (self.at + 1) % self.links.len();
            }
        }
        self.line.as_ref().expect("just made")
    }

    /// Asks until a tracker grants it.
    async fn grant(&mut self, request: &Request, ledger: &Ledger) -> Option<Reply> {
        let begun = clock::monotonic();
        loop {
            assert!(begun.elapsed() < DEADLINE, "{}: {request:?}", name_of(self.number));
            let answer = tokio::time::timeout(PATIENCE, self.line().await.line.call(request)).await;
            match answer {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(CallError::Refused(refusal))) => match refusal {
                    // A share begun at the other tracker, or on a connection before.
                    Refusal::NoSuchShare(_) => return None,
                    // What the other tracker took has not come here yet.
                    Refusal::NoSuchGroup(_)
                    | Refusal::NotAMember(_)
                    | Refusal::NotTheOwner(_)
                    | Refusal::NoSuchRequest { .. }
                    | Refusal::Busy
                    | Refusal::RateLimited { .. } => {
                        ledger.early.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(2 * PAUSE).await;
                    }
                    refusal => panic!("{}: {request:?}: {refusal}", name_of(self.number)),
                },
                _ => {
                    ledger.repeats.fetch_add(1, Ordering::Relaxed);
                    self.line = None;
                    self.at = (self.at + 1) % self.links.len();
                }
            }
        }
    }

    async fn carry_out(&mut self, deed: &Deed, request_id: RequestId, ledger: &Ledger) {
        let request = match deed {
            Deed::Create(group) => {
                Request::CreateGroup { request_id, group: named(group), hidden: false }
            }
            Deed::Join(group) => Request::JoinGroup { request_id, group: named(group) },
            Deed::Accept(group, who) => {
                let user = user(&name_of(*who));
                Request::AcceptRequest { request_id, group: named(group), user }
            }
            Deed::Share(group, name) => {
                let head = small(name).head().encode();
                Request::Share { request_id, group: named(group), name: file(name), head }
            }
        };
        loop {
            match (self.grant(&request, ledger).await.expect("not a page"), deed) {
                (Reply::PagesMissing { .. }, Deed::Share(_, name)) => {
                    let manifest = small(name);
                    let (content, bytes) = (manifest.content_id(), manifest.page(0));
                    self.grant(&Request::PutPage { content, page: 0, bytes }, ledger).await;
                }
                (Reply::Done | Reply::Shared { .. }, _) => return,
                (other, _) => panic!("{deed:?}: {other:?}"),
            }
        }
    }
}

/// An agent in this process.
async fn agent(cluster: &Cluster, number: usize) -> Agent {
    let links = (0..2).map(|number| cluster.link(number)).collect();
    let trackers = TrackerInfo::new(links).expect("two trackers");
    let data_dir = cluster.path(format!("a{number}.data"));
    let config = AgentConfig { listen: Some(loopback()), ..AgentConfig::new(data_dir, trackers) };
    let agent = Agent::start(config).expect("an agent");
    let name = user(&format!("a{number}"));
    agent.create_user(name.clone(), password(), None).await.expect("created");
    agent.login(name, password()).await.expect("logged in");
    agent
}

fn bytes_of(owner: usize, file: usize) -> Vec<u8> {
    content(FILE_LEN, (owner * FILES + file) as u64 + 1)
}

fn file_of(owner: usize, file: usize) -> String {
    format!("a{owner}.{file}")
}

/// Fetches one file after the other from the other agents, and forgets each again.
async fn fetch(agent: Agent, own: usize, place: PathBuf, ledger: Arc<Ledger>) {
    let mut rng = fastrand::Rng::new();
    let mut slowest = Duration::ZERO;
    while !ledger.is_closed() {
        let owner = rng.usize(..AGENTS);
        if owner == own {
            continue;
        }
        let index = rng.usize(..FILES);
        let label: Selector = file_of(owner, index).parse().expect("a selector");
        let begun = clock::monotonic();
        let copy = place.join("copy");
        let failed = |error: AgentError| -> ! { panic!("a{own}: {label}: failed: {error}") };
        if let Err(error) = agent.get(group(), label.clone(), &copy).await {
            failed(error);
        }
        if let Err(error) = agent.wait(Some(DEADLINE)).await {
            failed(error);
        }
        slowest = slowest.max(begun.elapsed());
        let row =
            agent.downloads().into_iter().find(|row| row.name == file(&file_of(owner, index)));
        let row = row.expect("a row");
        assert_eq!(row.state, EntryState::Seeding, "a{own}: {label}");
        assert!(fs::read(&row.path).expect("arrived") == bytes_of(owner, index), "{label} differs");
        ledger.downloads.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = agent.stop_share(group(), label.clone()).await {
            failed(error);
        }
        fs::remove_file(&row.path).expect("removed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("the slowest download of a{own} took {slowest:?}");
}

/// Compares a tracker with what was acknowledged: no more and no less.
async fn compare(cluster: &Cluster, number: usize, devices: &[Arc<Device>], ledger: &Ledger) {
    let mut lines = Vec::new();
    for device in devices {
        lines.push(device.known_at(&cluster.link(number)).await);
    }
    let pages = ledger.pages().clone();
    for (name, page) in &pages {
        let (line, group): (_, GroupName) = (&lines[page.owner], named(name));
        let mut members: Vec<_> = page.members.iter().map(|who| (name_of(*who), false)).collect();
        members.push((name_of(page.owner), true));
        members.sort();
        assert_eq!(line.members(&group).await, members, "{name} on tracker {number}");
        let mine = |file: &String| (file.clone(), vec![name_of(page.owner)]);
        let files: Vec<_> = page.files.iter().map(mine).collect();
        assert_eq!(line.files(&group).await, files, "{name} on tracker {number}");
        let asking = line.granted(Request::ListRequests { group }).await;
        let Reply::Requests { rows } = asking else { panic!("{asking:?}") };
        let asking: BTreeSet<_> = rows.iter().map(|row| row.user.to_string()).collect();
        let expected: BTreeSet<_> = page.asking.iter().map(|who| name_of(*who)).collect();
        assert_eq!(asking, expected, "{name} on tracker {number}");
    }
}

#[test]
fn trackers_killed_at_random_cost_no_download_and_no_acknowledged_change() {
    let (long, every) = (seconds("MTQ_SECONDS", 25.0), seconds("MTQ_KILL_EVERY", 2.5));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut cluster = Cluster::new(2);
    let ledger = Arc::new(Ledger::default());
    let mut agents = Vec::new();
    let mut devices = Vec::new();
    runtime.block_on(soon("the clients", async {
        for number in 0..AGENTS {
            let agent = agent(&cluster, number).await;
            match number {
                0 => drop(agent.create_group(group(), false).await.expect("created")),
                _ => agent.join_group(group()).await.expect("asked"),
            }
            agents.push(agent);
            if number > 0 {
                let name = user(&format!("a{number}"));
                agents[0].accept_request(group(), name).await.expect("accepted");
            }
            for index in 0..FILES {
                let path = cluster.write(&file_of(number, index), &bytes_of(number, index));
                agents[number]
                    .share(&path, group(), None, MetafileTo::Beside)
                    .await
                    .expect("shared");
            }
        }
        for number in 0..WRITERS {
            devices.push(Arc::new(Device::of(&name_of(number), &cluster.link(0)).await.0));
        }
    }));
    cluster.wait_level();

    let mut tasks = JoinSet::new();
    for (number, device) in devices.iter().enumerate() {
        let writer = Writer {
            number,
            device: device.clone(),
            links: (0..2).map(|number| cluster.link(number)).collect(),
            at: number % 2,
            line: None,
            rng: fastrand::Rng::new(),
            made: 0,
        };
        tasks.spawn_on(writer.run(ledger.clone()), runtime.handle());
    }
    for (number, agent) in agents.iter().enumerate() {
        let place = cluster.path(format!("a{number}.files"));
        fs::create_dir_all(&place).expect("made");
        tasks.spawn_on(fetch(agent.clone(), number, place, ledger.clone()), runtime.handle());
    }
    let mut rng = fastrand::Rng::new();
    let begun = clock::monotonic();
    let mut kills = 0;
    while begun.elapsed() < long {
        std::thread::sleep(every.mul_f64(0.5 + rng.f64() / 2.0));
        let victim = rng.usize(..2);
        cluster.kill(victim);
        kills += 1;
        // Sometimes at once, sometimes late.
        std::thread::sleep(every.mul_f64(rng.f64() / 2.0));
        cluster.start(victim);
        // Whoever ends by itself found something wrong.
        if let Some(ended) = tasks.try_join_next() {
            runtime.block_on(async { ended.expect("goes on") });
        }
    }
    ledger.closed.store(true, Ordering::Relaxed);
    runtime.block_on(soon("the clients' end", async {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("ended in order");
        }
    }));
    let counted = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{kills} kills in {:?}: {} downloads, {} changes acknowledged, {} of them asked for again, \
         {} asked for before the tracker knew enough",
        begun.elapsed(),
        counted(&ledger.downloads),
        counted(&ledger.acknowledged),
        counted(&ledger.repeats),
        counted(&ledger.early),
    );
    let ended = clock::monotonic();
    cluster.wait_agreed();
    println!("one digest after {:?}", ended.elapsed());
    cluster.wait_level();
    runtime.block_on(soon("the comparison", async {
        for number in 0..2 {
            compare(&cluster, number, &devices, &ledger).await;
            assert_eq!(cluster.status(number).expect("up")["sync_alarms"], 0);
        }
        for agent in &agents {
            agent.shutdown().await;
        }
    }));
    assert!(counted(&ledger.downloads) > kills && counted(&ledger.acknowledged) > 50 * kills);
}
