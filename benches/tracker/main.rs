//! A tracker under load: a real `mtq tracker` process on a directory of its own, with raw clients
//! in this process; and its store without the network, as the upper bound.
//!
//! `cargo bench --bench tracker -- ops|announce|idle|search|argon2|sync|all [--clients N]`; `sync` is
//! `latency`, `catch-up` and `cost`.

mod sync;

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mtq::clock;
use mtq::hash::sha1;
use mtq::id::{OriginId, RequestId};
use mtq::limits::MAX_ANNOUNCE_BATCH;
use mtq::manifest::{ContentId, Manifest, ManifestHead, PieceHashes};
use mtq::name::{FileName, GroupName, Selector, UserName};
use mtq::peer_id::PeerId;
use mtq::piece::PieceLayout;
use mtq::tracker::command::{Actor, Command, Outcome};
use mtq::tracker::disk::Disk;
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{Matching, Password, Reply, Request};
use mtq::tracker::op::Change;
use mtq::tracker::password::Passwords;
use mtq::tracker::refusal::Refusal;
use mtq::tracker::state::{Effect, Rules, State};
use mtq::tracker::store::{Listener, Store, StoreConfig};
use mtq::tracker::stub::{CallError, PushQueue, TrackerConnection};
use mtq::tracker::time::Reading;
use mtq::tracker_link::TrackerLink;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::identity::{FILE_NAME, Identity};
use mtq::transport::tls::Alpn;
use tempfile::TempDir;
use tokio::task::JoinSet;

/// How often each rate is measured; the median counts.
const ROUNDS: usize = 5;

/// How long one round lasts.
const ROUND: Duration = Duration::from_secs(3);

/// Files listed for the search.
const LISTINGS: usize = 100_000;

/// Searches of each kind.
const SEARCHES: usize = 300;

/// How long idle clients are watched.
const IDLE: Duration = Duration::from_secs(30);

/// Of `/proc/PID/stat`, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

const USAGE: &str = "usage: tracker [ops] [announce] [idle] [search] [argon2] [sync] [latency] [catch-up] [cost] [all] [--clients N]";

fn main() -> ExitCode {
    let (mut wanted, mut clients) = (Vec::new(), None);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match &arg[..] {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--help" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--clients" => match args.next().and_then(|count| count.parse().ok()) {
                Some(count) => clients = Some(count),
                None => return usage(),
            },
            "ops" | "announce" | "idle" | "search" | "argon2" | "sync" | "latency" | "catch-up"
            | "cost" | "all" => wanted.push(arg),
            _ => return usage(),
        }
    }
    let all = wanted.is_empty() || wanted.iter().any(|name| name == "all");
    let is_wanted = |name: &str| all || wanted.iter().any(|other| other == name);
    raise_descriptors();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        if is_wanted("ops") {
            let counts = clients.map_or(vec![1, 16, 256], |count| vec![count]);
            ops(&counts).await;
        }
        if is_wanted("announce") {
            announce(clients.unwrap_or(16)).await;
        }
        if is_wanted("idle") {
            for count in clients.map_or(vec![2_000, 10_000], |count| vec![count]) {
                idle(count).await;
            }
        }
        if is_wanted("search") {
            search().await;
        }
        if is_wanted("argon2") {
            argon2(clients.unwrap_or(32)).await;
        }
        let writers = clients.unwrap_or(256);
        if is_wanted("sync") || is_wanted("latency") {
            sync::latency(writers).await;
        }
        if is_wanted("sync") || is_wanted("catch-up") {
            sync::catch_up(writers).await;
        }
        if is_wanted("sync") || is_wanted("cost") {
            sync::cost(writers).await;
        }
    });
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Every client has a socket of its own.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Durable changes: files listed and withdrawn, through the store alone and over QUIC.
async fn ops(counts: &[usize]) {
    println!("\ndurable changes: share and stop-share in turn, each client one at a time");
    for &count in counts {
        // One account may change 500 things a second after a burst of 2,000.
        let most = if count == 1 { 380 } else { u64::MAX };
        let scene = Scene::new(count).await;
        let store = scene.store().await;
        let head = scene.make_groups(&store).await;
        let (writing, actors) = (store.clone(), scene.actors.clone());
        let alone = rounds(count, most, &scene.dir, None, move |client, step| {
            let (store, actor, head) = (writing.clone(), actors[client], head.clone());
            async move {
                let (group, name) = (own_group(client), file_name());
                let command = match step % 2 {
                    0 => Command::Share { group, name, head },
                    _ => Command::StopShare { group, file: Selector::Name(name) },
                };
                store.propose(actor, request_id(), command).await.expect("granted");
            }
        });
        let alone = alone.await;
        alone.print(&format!("store alone, {count} tasks"), "ops");
        close(store).await;

        let scene = Scene::new(count).await;
        let store = scene.store().await;
        let head = scene.make_groups(&store).await.encode();
        close(store).await;
        let (tracker, clients) = scene.open().await;
        let quic = rounds(count, most, &scene.dir, Some(&tracker), move |client, step| {
            let (line, head) = (clients[client].line.clone(), head.clone());
            async move {
                granted(&line, &change(client, step, head)).await;
            }
        });
        let quic = quic.await;
        quic.print(&format!("over QUIC, {count} clients"), "ops");
        println!("  ratio {:.2}", quic.rate / alone.rate);
    }
}

/// A client's own file is listed, and withdrawn at the next step.
fn change(client: usize, step: u64, head: Vec<u8>) -> Request {
    let (request_id, group, name) = (request_id(), own_group(client), file_name());
    match step % 2 {
        0 => Request::Share { request_id, group, name, head },
        _ => Request::StopShare { request_id, group, file: Selector::Name(name) },
    }
}

fn own_group(client: usize) -> GroupName {
    format!("g{client}").parse().expect("a name")
}

fn file_name() -> FileName {
    "a file".parse().expect("a name")
}

/// Announcements of one content each, and of as many as one request takes.
async fn announce(count: usize) {
    println!("\nannounces: {count} clients, contents held wholly");
    let mut scene = Scene::new(count).await;
    let store = scene.store().await;
    scene.make_lab(&store).await;
    let names = (0..MAX_ANNOUNCE_BATCH).map(|number| format!("file {number}"));
    let contents = Arc::new(list_files(&store, scene.actors[0], names).await);
    close(store).await;
    let (tracker, clients) = scene.open().await;
    let clients = Arc::new(clients);
    for (batch, what) in [(1, "one content a request"), (MAX_ANNOUNCE_BATCH, "1,000 a request")] {
        let (clients, contents) = (clients.clone(), contents.clone());
        let rate = rounds(count, u64::MAX, &scene.dir, Some(&tracker), move |client, step| {
            let (clients, contents) = (clients.clone(), contents.clone());
            async move {
                let from = (step as usize * batch) % contents.len();
                let contents = contents[from..from + batch].iter().map(|id| (*id, true)).collect();
                let request = Request::Announce { group: lab(), contents };
                granted(&clients[client].line, &request).await;
            }
        });
        let rate = rate.await;
        rate.print(what, "requests");
        println!("  {} contents/s", thousands(rate.rate * batch as f64));
    }
}

/// What clients cost that do nothing.
async fn idle(count: usize) {
    println!("\nidle: {count} clients, each its own device and account, logged in by key");
    let scene = Scene::new(count).await;
    let tracker = scene.start();
    let before = tracker.resident();
    let begun = clock::monotonic();
    let clients = scene.connect(&tracker).await;
    println!("  {:.1} s to connect and log in", begun.elapsed().as_secs_f64());
    // Until path MTU discovery and the first keep-alives are over.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (after, cpu) = (tracker.resident(), tracker.cpu());
    tokio::time::sleep(IDLE).await;
    let cpu = tracker.cpu() - cpu;
    assert!(clients.iter().all(|client| !client.line.is_closed()), "somebody was lost");
    println!(
        "  resident {} KiB before, {} KiB after: {:.1} KiB a client; {cpu:.2} s of CPU in {} s",
        before,
        after,
        (after - before) as f64 / count as f64,
        IDLE.as_secs(),
    );
}

/// Searches over many listings in one group.
async fn search() {
    let mut scene = Scene::new(1).await;
    let store = scene.store().await;
    scene.make_lab(&store).await;
    let mut rng = fastrand::Rng::with_seed(1);
    let names = (0..LISTINGS).map(|number| title(number, &mut rng));
    list_files(&store, scene.actors[0], names).await;
    close(store).await;
    let (tracker, clients) = scene.open().await;
    println!(
        "\nsearch: {LISTINGS} listings in one group, one client, {SEARCHES} of each, tracker {} MiB",
        tracker.resident() / 1024
    );
    for (what, matching, pattern) in [
        ("contains, rare", Matching::Contains, "needle"),
        ("contains, none", Matching::Contains, "no such file"),
        ("contains, common", Matching::Contains, "1080p"),
        ("begins with", Matching::Prefix, "lecture 07"),
        ("regular expression", Matching::Regex, r"(river|harbour).*\b19[0-9]{2}\b.*2160p"),
        ("regular expression, rare", Matching::Regex, r"^n[a-z]+le-\d+\.iso$"),
    ] {
        let request = Request::Search { pattern: pattern.to_owned(), matching, after: None };
        let (mut took, mut found) = (Vec::new(), (0, false));
        for _ in 0..SEARCHES {
            let begun = clock::monotonic();
            let reply = granted(&clients[0].line, &request).await;
            took.push(begun.elapsed());
            let Reply::Files { rows, more } = reply else { panic!("{reply:?}") };
            found = (rows.len(), more);
        }
        let (p50, p99) = (percentile(&mut took, 50), percentile(&mut took, 99));
        let (rows, more) = (found.0, if found.1 { "+" } else { "" });
        println!(
            "  {what:26} {rows:4}{more:1} rows  p50 {:6.2} ms  p99 {:6.2} ms",
            ms(p50),
            ms(p99)
        );
    }
}

/// Logins by password.
async fn argon2(count: usize) {
    println!("\npassword logins: {count} clients at once, each from an address of its own");
    let password = || Password("correct horse".to_owned());
    let phc = Passwords::new().hash(password()).await.expect("hashed");
    let scene = Scene::with_password(count, &phc).await;
    let tracker = scene.start();
    let mut clients = Vec::new();
    for (number, identity) in scene.devices.iter().enumerate() {
        let address = Ipv4Addr::new(127, 2, (number / 250) as u8, (number % 250) as u8 + 1);
        clients.push(Client::open(identity.clone(), address, &tracker.link).await);
    }
    let clients = Arc::new(clients);
    let rate = rounds(count, u64::MAX, &scene.dir, Some(&tracker), move |client, _| {
        let clients = clients.clone();
        async move {
            let request = Request::Login {
                request_id: request_id(),
                user: user_name(client),
                password: password(),
            };
            granted(&clients[client].line, &request).await;
        }
    });
    rate.await.print("login", "logins");
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn percentile(all: &mut [Duration], part: usize) -> Duration {
    all.sort();
    all.get((all.len() * part / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Digits in groups of three.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The medians of some rounds.
struct Rate {
    rate: f64,
    spread: (f64, f64),
    p50: Duration,
    p99: Duration,
    /// CPU seconds of the tracker and of this process for a thousand.
    cpu: (f64, f64),
}

impl Rate {
    fn print(&self, what: &str, unit: &str) {
        println!(
            "  {what:26} {:>8} {unit}/s ({} to {})  p50 {:.2} ms  p99 {:.2} ms  \
             CPU per 1,000: tracker {:.0} ms, clients {:.0} ms",
            thousands(self.rate),
            thousands(self.spread.0),
            thousands(self.spread.1),
            ms(self.p50),
            ms(self.p99),
            1000.0 * self.cpu.0,
            1000.0 * self.cpu.1,
        );
    }
}

/// Lets `count` tasks do one `thing` after the other, at most `most` each, for some rounds.
async fn rounds<F, T>(
    count: usize,
    most: u64,
    dir: &TempDir,
    tracker: Option<&Tracker>,
    thing: F,
) -> Rate
where
    F: Fn(usize, u64) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send,
{
    assert!(dir.path().is_dir(), "kept until the end");
    let thing = Arc::new(thing);
    let (mut rates, mut took, mut cpu, mut total) = (Vec::new(), Vec::new(), (0.0, 0.0), 0);
    let mut first_step = 0;
    // The first round warms up and does not count.
    for round in 0..=ROUNDS {
        let before = (tracker.map_or(0.0, Tracker::cpu), cpu_of("self"));
        let begun = clock::monotonic();
        let done = one_round(count, most, first_step, &thing).await;
        let elapsed = begun.elapsed().as_secs_f64();
        let after = (tracker.map_or(0.0, Tracker::cpu), cpu_of("self"));
        // A pair begun stays one pair.
        first_step = done.iter().map(|(step, _)| step.next_multiple_of(2)).max().unwrap_or(0);
        if round == 0 {
            continue;
        }
        let things: usize = done.iter().map(|(_, took)| took.len()).sum();
        rates.push(things as f64 / elapsed);
        took.extend(done.into_iter().flat_map(|(_, took)| took));
        cpu = (cpu.0 + after.0 - before.0, cpu.1 + after.1 - before.1);
        total += things;
    }
    rates.sort_by(f64::total_cmp);
    let thousand = total as f64 / 1000.0;
    Rate {
        rate: rates[rates.len() / 2],
        spread: (rates[0], rates[rates.len() - 1]),
        p50: percentile(&mut took, 50),
        p99: percentile(&mut took, 99),
        cpu: (cpu.0 / thousand, cpu.1 / thousand),
    }
}

/// One round: up to which step each task came, and what each of its things took.
async fn one_round<F, T>(
    count: usize,
    most: u64,
    first_step: u64,
    thing: &Arc<F>,
) -> Vec<(u64, Vec<Duration>)>
where
    F: Fn(usize, u64) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send,
{
    let begun = clock::monotonic();
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let thing = thing.clone();
        tasks.spawn(async move {
            let (mut step, mut took) = (first_step, Vec::new());
            while begun.elapsed() < ROUND && step - first_step < most {
                let asked = clock::monotonic();
                thing(number, step).await;
                took.push(asked.elapsed());
                step += 1;
            }
            (step, took)
        });
    }
    tasks.join_all().await
}

fn request_id() -> RequestId {
    RequestId::random(&mut fastrand::Rng::new())
}

fn lab() -> GroupName {
    "lab".parse().expect("a name")
}

fn user_name(number: usize) -> UserName {
    format!("u{number}").parse().expect("a name")
}

/// A data directory with accounts, each with an enrolled device.
struct Scene {
    dir: TempDir,
    tracker: Arc<Identity>,
    devices: Vec<Arc<Identity>>,
    actors: Vec<Actor>,
}

struct Nobody;

impl Listener for Nobody {
    fn committed(&self, _: &State, _: Option<&Change>, _: &[Effect], _: bool) {}
}

impl Scene {
    async fn new(count: usize) -> Self {
        Self::with_password(count, "no password has this hash").await
    }

    async fn with_password(count: usize, phc: &str) -> Self {
        // Where the build is: a temporary directory may be in memory, and syncs free.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let tracker = Identity::load_or_create(&dir.path().join(FILE_NAME)).expect("made");
        let devices: Vec<_> = (0..count).map(|_| Arc::new(Identity::generate())).collect();
        let mut scene = Self { dir, tracker: Arc::new(tracker), devices, actors: Vec::new() };
        let store = scene.store().await;
        let mut accounts = JoinSet::new();
        for (number, device) in scene.devices.iter().enumerate() {
            let (store, device, password) = (store.clone(), device.peer_id(), phc.to_owned());
            accounts
                .spawn(async move { (number, account(&store, number, device, password).await) });
        }
        let mut actors = accounts.join_all().await;
        actors.sort_by_key(|(number, _)| *number);
        scene.actors = actors.into_iter().map(|(_, actor)| actor).collect();
        close(store).await;
        scene
    }

    async fn store(&self) -> Arc<Store> {
        let disk = Disk::open(self.dir.path()).expect("opened");
        let config = StoreConfig {
            tracker: self.tracker.peer_id(),
            rules: Rules::default(),
            origin: OriginId::random(&mut fastrand::Rng::new()),
            clock: Box::new(|| Reading { wall: clock::now(), passed: Duration::ZERO }),
        };
        Arc::new(Store::start(disk, config, Nobody).expect("started"))
    }

    /// Makes everybody a member of `lab`, which the first owns.
    async fn make_lab(&mut self, store: &Store) {
        let propose = |actor, command| store.propose(actor, request_id(), command);
        let create = Command::CreateGroup { group: lab(), hidden: false };
        propose(self.actors[0], create).await.expect("granted");
        for (number, actor) in self.actors.iter().enumerate().skip(1) {
            propose(*actor, Command::JoinGroup { group: lab() }).await.expect("granted");
            let accept = Command::AcceptRequest { group: lab(), user: user_name(number) };
            propose(self.actors[0], accept).await.expect("granted");
        }
    }

    /// Makes a group for everybody, with a file in it whose content stays listed: more of it needs
    /// no pages.
    async fn make_groups(&self, store: &Store) -> Arc<ManifestHead> {
        let manifest = manifest(b"the content of all files");
        let head = Arc::new(manifest.head().clone());
        let Actor::Client { user: Some(first), .. } = self.actors[0] else { panic!("a user") };
        let page = store.put_page(first, head.page_hashes()[0], manifest.page(0));
        page.await.expect("granted");
        for (number, actor) in self.actors.iter().enumerate() {
            let (group, hidden) = (own_group(number), false);
            let create = Command::CreateGroup { group: group.clone(), hidden };
            store.propose(*actor, request_id(), create).await.expect("granted");
            let name = "another".parse().expect("a name");
            let share = Command::Share { group, name, head: head.clone() };
            store.propose(*actor, request_id(), share).await.expect("granted");
        }
        head
    }

    fn start(&self) -> Tracker {
        Tracker::start(self.dir.path(), self.tracker.peer_id())
    }

    /// Connects all clients and logs them in.
    async fn connect(&self, tracker: &Tracker) -> Vec<Client> {
        let mut opening = JoinSet::new();
        let mut clients = Vec::new();
        for (number, identity) in self.devices.iter().enumerate() {
            // So many from one address are let in.
            let address = Ipv4Addr::new(127, 1, (number / 256) as u8, 1);
            let (identity, link) = (identity.clone(), tracker.link.clone());
            opening.spawn(async move {
                let client = Client::open(identity, address, &link).await;
                granted(&client.line, &Request::LoginByKey).await;
                (number, client)
            });
            if opening.len() >= 32 {
                clients.extend(opening.join_next().await.map(|opened| opened.expect("opened")));
            }
        }
        clients.extend(opening.join_all().await);
        clients.sort_by_key(|(number, _)| *number);
        clients.into_iter().map(|(_, client)| client).collect()
    }

    async fn open(&self) -> (Tracker, Vec<Client>) {
        let tracker = self.start();
        let clients = self.connect(&tracker).await;
        (tracker, clients)
    }
}

async fn account(store: &Store, number: usize, device: PeerId, password: String) -> Actor {
    let stranger = Actor::Client { device, user: None };
    let create = Command::CreateUser { user: user_name(number), password, invite: None };
    store.propose(stranger, request_id(), create).await.expect("granted");
    let (user, verified) = store.read(|state| {
        let user = state.user_named(&user_name(number)).expect("created");
        (user, state.facts().passwords[&user].last().stamp)
    });
    let enrol = Command::EnrolDevice { user, verified };
    store.propose(stranger, request_id(), enrol).await.expect("granted");
    Actor::Client { device, user: Some(user) }
}

/// Closes a store that another process will open.
async fn close(store: Arc<Store>) {
    store.close().await;
    assert!(Arc::into_inner(store).is_some(), "nobody else has it");
}

/// Lists a small file of its own content under each name.
async fn list_files(
    store: &Arc<Store>,
    sharer: Actor,
    names: impl Iterator<Item = String>,
) -> Vec<ContentId> {
    let Actor::Client { user: Some(user), .. } = sharer else { panic!("a user shares") };
    let mut contents = Vec::new();
    let mut listing = JoinSet::new();
    for name in names {
        let manifest = manifest(name.as_bytes());
        contents.push(manifest.content_id());
        let store = store.clone();
        listing.spawn(async move {
            let head = manifest.head().clone();
            let pages = head.page_hashes().to_vec();
            store.put_page(user, pages[0], manifest.page(0)).await.expect("granted");
            let name: FileName = name.parse().expect("a name");
            let command = Command::Share { group: lab(), name, head: Arc::new(head) };
            let shared = store.propose(sharer, request_id(), command).await.expect("granted");
            assert!(matches!(shared, Outcome::Shared { .. }), "{shared:?}");
            store.release_pages(user, pages).await;
        });
        if listing.len() >= 1_000 {
            listing.join_next().await.expect("some").expect("listed");
        }
    }
    listing.join_all().await;
    contents
}

fn manifest(content: &[u8]) -> Manifest {
    let layout = PieceLayout::new(content.len() as u64).expect("small");
    let pieces = layout.pieces().map(|piece| PieceHashes::of(layout, piece, content)).collect();
    Manifest::new(layout, sha1(content), pieces).expect("consistent")
}

/// A name as people give them; every one another.
fn title(number: usize, rng: &mut fastrand::Rng) -> String {
    const WORDS: &[&str] = &[
        "Silent", "River", "Autumn", "Harbour", "Midnight", "Glass", "Mountain", "Paper", "Golden",
        "Winter", "Garden", "Electric", "Distant", "Crimson", "Island", "Northern", "Station",
        "Hollow", "Summer", "Engine",
    ];
    const TOPICS: &[&str] =
        &["Linear Algebra", "Databases", "Compilers", "Statistics", "Organic Chemistry", "History"];
    let mut word = || WORDS[rng.usize(..WORDS.len())];
    let (first, second, third) = (word(), word(), word());
    let year = 1960 + rng.u32(..66);
    let resolution = ["720p", "1080p", "2160p"][rng.usize(..3)];
    match number % 20_000 {
        // A handful of the hundred thousand.
        19_999 => format!("needle-{number}.iso"),
        rest => match rest % 10 {
            0 | 1 => {
                let topic = TOPICS[rng.usize(..TOPICS.len())];
                format!("Lecture {:02} - {topic} ({year}) [{number}].mp4", rng.u32(1..31))
            }
            2 => format!("{first}_{second}_dataset_v{}.{number}.tar.zst", rng.u32(1..20)),
            3 => format!("IMG_{year}{:04}_{number}.jpg", rng.u32(101..1232)),
            4 => format!("{first} {second} - {third} ({year}) - {number:05}.flac"),
            5 => {
                format!("backup-{year}-{:02}-{:02}-{number}.img.xz", rng.u32(1..13), rng.u32(1..29))
            }
            _ => format!("The {first} {second} ({year}) {resolution} WEB-DL x265 {number}.mkv"),
        },
    }
}

/// A running `mtq tracker`.
struct Tracker {
    child: Child,
    link: TrackerLink,
}

impl Tracker {
    fn start(dir: &Path, id: PeerId) -> Self {
        Self::start_at(dir, TrackerLink::new(free_address(), id), None)
    }

    /// Starts one where `link` says, with the other trackers that a file names.
    fn start_at(dir: &Path, link: TrackerLink, trackers: Option<&Path>) -> Self {
        let address = format!("{}:{}", link.host(), link.port());
        let log = dir.join("log");
        // What an earlier one said.
        let _ = fs::remove_file(&log);
        let child = Process::new(env!("CARGO_BIN_EXE_mtq"))
            .arg("tracker")
            .args(trackers.into_iter().flat_map(|file| [Path::new("--trackers"), file]))
            .args(["--listen", &address, "--data-dir"])
            .arg(dir)
            .arg("--log-file")
            .arg(&log)
            .env_remove("MTQ_LOG")
            .stdin(Stdio::null())
            .spawn()
            .expect("mtq runs");
        let mut tracker = Self { child, link };
        while !fs::read_to_string(&log).unwrap_or_default().contains("tracker is up") {
            assert!(matches!(tracker.child.try_wait(), Ok(None)), "the tracker ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        tracker
    }

    /// Ends it in order, so that nobody waits for it.
    fn end(mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// CPU seconds so far.
    fn cpu(&self) -> f64 {
        cpu_of(&self.child.id().to_string())
    }

    /// KiB of memory.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

fn free_address() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds of a process, of its own and of the system for it.
fn cpu_of(process: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // After the name, which may hold anything, fields 14 and 15 of all are the times.
    let (_, fields) = stat.rsplit_once(')').expect("Linux");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    ticks as f64 / TICKS_PER_SECOND
}

/// A device connected to the tracker.
struct Client {
    line: Arc<TrackerConnection>,
    pushes: PushQueue,
    _endpoint: Endpoint,
}

impl Client {
    async fn open(identity: Arc<Identity>, address: Ipv4Addr, link: &TrackerLink) -> Self {
        let address = SocketAddr::new(IpAddr::V4(address), 0);
        let endpoint = Endpoint::bind(identity, address, &[Alpn::Peer]).expect("bound");
        let (agent, addresses, extensions) = ("bench".to_owned(), Vec::new(), Vec::new());
        let hello = Hello { features: 0, agent, session: 1, addresses, roster: None, extensions };
        let opened = TrackerConnection::open(&endpoint, link, &hello).await;
        let (line, pushes) = opened.expect("connected");
        Self { line: Arc::new(line), pushes, _endpoint: endpoint }
    }
}

/// Asks, again when told to come back later.
async fn granted(line: &TrackerConnection, request: &Request) -> Reply {
    loop {
        match line.call(request).await {
            Ok(reply) => return reply,
            Err(CallError::Refused(Refusal::RateLimited { retry_after_ms })) => {
                tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
            }
            Err(error) => panic!("{}: {error}", request.name()),
        }
    }
}
