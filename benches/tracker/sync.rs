//! Two trackers that keep each other up to date, both real processes on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mtq::clock;
use mtq::manifest::ManifestHead;
use mtq::name::{FileName, Selector};
use mtq::tracker::command::Command;
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::store::Horizon;
use mtq::tracker::vector::Knowledge;
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::identity::{FILE_NAME, Identity};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{
    Client, ROUNDS, Scene, Tracker, change, close, file_name, free_address, granted, lab, ms,
    one_round, own_group, percentile, request_id, thousands, user_name,
};

/// Changes whose way to the other tracker is timed.
const TIMED: usize = 2_000;

/// Changes that a tracker has missed.
const MISSED: usize = 100_000;

/// How often a tracker that catches up is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A scene on the first tracker, and a second tracker that knows nothing yet.
struct Pair {
    first: Scene,
    links: [TrackerLink; 2],
    trackers: PathBuf,
    second: TempDir,
}

impl Pair {
    fn new(first: Scene) -> Self {
        let second = empty();
        let identity = Identity::load_or_create(&second.path().join(FILE_NAME)).expect("made");
        let links = [first.tracker.peer_id(), identity.peer_id()]
            .map(|id| TrackerLink::new(free_address(), id));
        let trackers = first.dir.path().join("tracker_info.txt");
        let info = TrackerInfo::new(links.to_vec()).expect("two links");
        fs::write(&trackers, info.to_string()).expect("written");
        Self { first, links, trackers, second }
    }

    fn start_first(&self) -> Tracker {
        Tracker::start_at(self.first.dir.path(), self.links[0].clone(), Some(&self.trackers))
    }

    fn start_second(&self) -> Tracker {
        Tracker::start_at(self.second.path(), self.links[1].clone(), Some(&self.trackers))
    }

    /// The second tracker forgets everything except who it is.
    fn empty_second(&mut self) {
        let next = empty();
        fs::copy(self.second.path().join(FILE_NAME), next.path().join(FILE_NAME)).expect("copied");
        self.second = next;
    }

    /// Opens the store of the first, which keeps everything for the second.
    async fn store(&self) -> Arc<mtq::tracker::store::Store> {
        let store = self.first.store().await;
        let roster = self.links.iter().map(TrackerLink::peer_id).collect();
        store.set_horizon(Some(Horizon { everybody: Knowledge::default(), roster }));
        store
    }

    /// What a client of the first hears of the second: whether they are connected, and by how many
    /// ops it is behind.
    async fn second_is(&self, client: &Client) -> (bool, u64) {
        let reply = granted(&client.line, &Request::Trackers { op: None }).await;
        let Reply::Trackers { rows } = reply else { panic!("{reply:?}") };
        let row = rows.iter().find(|row| row.peer_id == self.links[1].peer_id());
        let row = row.expect("it is in the roster");
        (row.connected, row.behind)
    }

    /// Waits until the second has everything; when they were connected, and when it had.
    async fn level(&self, client: &Client) -> (Instant, Instant) {
        let mut connected = None;
        loop {
            let (is_connected, behind) = self.second_is(client).await;
            let now = clock::monotonic();
            if is_connected {
                let connected = *connected.get_or_insert(now);
                if behind == 0 {
                    return (connected, now);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Both say the same of what they know.
    fn assert_same(&self) {
        let digests = [self.first.dir.path(), self.second.path()].map(digest);
        assert_eq!(digests[0], digests[1], "the trackers know the same");
    }
}

fn empty() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn digest(dir: &Path) -> String {
    let output = Process::new(env!("CARGO_BIN_EXE_mtq"))
        .args(["tracker", "status", "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .expect("mtq runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find(|line| line.starts_with("digest")).expect("a digest");
    line.to_owned()
}

/// From the answer at one tracker to the push at the other.
pub async fn latency(count: usize) {
    println!("\nsync, latency: a file listed at one tracker, heard of by a member at the other");
    let scene = Scene::new(count + 2).await;
    let store = scene.store().await;
    // Only the one who shares and the one who hears of it are in it.
    let (sharer, hearer) = (scene.actors[count], scene.actors[count + 1]);
    for (actor, command) in [
        (sharer, Command::CreateGroup { group: lab(), hidden: false }),
        (hearer, Command::JoinGroup { group: lab() }),
        (sharer, Command::AcceptRequest { group: lab(), user: user_name(count + 1) }),
    ] {
        store.propose(actor, request_id(), command).await.expect("granted");
    }
    let head = scene.make_groups(&store).await.encode();
    close(store).await;
    let pair = Pair::new(scene);
    let first = pair.start_first();
    let mut writers = pair.first.connect(&first).await;
    writers.pop();
    let sharer = writers.pop().expect("one more");
    let second = pair.start_second();
    pair.level(&sharer).await;
    let mut hearer = Client::open(
        pair.first.devices[count + 1].clone(),
        std::net::Ipv4Addr::new(127, 3, 0, 1),
        &second.link,
    )
    .await;
    granted(&hearer.line, &Request::LoginByKey).await;
    let writers = Arc::new(writers);
    timed("one change at a time", &sharer, &mut hearer, &head).await;
    for some in [16, count] {
        let (stop, mut tasks) = (tokio_util::sync::CancellationToken::new(), JoinSet::new());
        for number in 0..some {
            let (writers, stop, head) = (writers.clone(), stop.clone(), head.clone());
            tasks.spawn(async move {
                let mut steps = 0;
                // A pair begun stays one pair.
                while !stop.is_cancelled() || steps % 2 == 1 {
                    granted(&writers[number].line, &change(number, steps, head.clone())).await;
                    steps += 1;
                }
                steps
            });
        }
        let begun = clock::monotonic();
        timed(&format!("{some} clients write at once"), &sharer, &mut hearer, &head).await;
        let elapsed = begun.elapsed().as_secs_f64();
        stop.cancel();
        let steps: u64 = tasks.join_all().await.into_iter().sum();
        println!("    beside {} changes/s", thousands(steps as f64 / elapsed));
    }
    pair.level(&sharer).await;
    pair.assert_same();
}

/// Lists files and withdraws them, one after the other, and hears of them at the other tracker.
async fn timed(what: &str, sharer: &Client, hearer: &mut Client, head: &[u8]) {
    let (mut after_answer, mut after_request, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..TIMED {
        let file: FileName = format!("file {number}").parse().expect("a name");
        let (group, name, head) = (lab(), file.clone(), head.to_vec());
        let share = Request::Share { request_id: request_id(), group, name, head };
        let asked = clock::monotonic();
        let answered = async {
            granted(&sharer.line, &share).await;
            clock::monotonic()
        };
        let heard = async {
            loop {
                let push = hearer.pushes.next().await.expect("connected");
                if matches!(&push, Push::FileListed { name, .. } if *name == file) {
                    return clock::monotonic();
                }
            }
        };
        let (answered, heard) = tokio::join!(answered, heard);
        answers.push(answered - asked);
        after_request.push(heard - asked);
        // It may be heard before the answer is.
        after_answer.push(heard.saturating_duration_since(answered));
        let (request_id, group, file) = (request_id(), lab(), Selector::Name(file));
        granted(&sharer.line, &Request::StopShare { request_id, group, file }).await;
        // One account may change 500 things a second.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    println!("  {what}: {TIMED} timed");
    for (from, mut took) in [
        ("answer after request", answers),
        ("heard after request", after_request),
        ("heard after answer", after_answer),
    ] {
        let (p50, p99) = (percentile(&mut took, 50), percentile(&mut took, 99));
        let most = took.last().copied().unwrap_or_default();
        println!(
            "    {from:20}  p50 {:.2} ms  p99 {:.2} ms  most {:.1} ms",
            ms(p50),
            ms(p99),
            ms(most)
        );
    }
}

/// A tracker that was away, or is new.
pub async fn catch_up(count: usize) {
    println!(
        "\nsync, catching up: {MISSED} ops, from \"connected\" until the other one has them durably"
    );
    let scene = Scene::new(count).await;
    let mut pair = Pair::new(scene);
    let store = pair.store().await;
    let head = pair.first.make_groups(&store).await;
    fill(&pair.first, &store, &head).await;
    close(store).await;
    let first = pair.start_first();
    let clients = pair.first.connect(&first).await;
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 {
            pair.empty_second();
        }
        let second = pair.start_second();
        let cpu = (first.cpu(), second.cpu());
        let (connected, level) = pair.level(&clients[0]).await;
        let cpu = (first.cpu() - cpu.0, second.cpu() - cpu.1);
        pair.assert_same();
        let seconds = (level - connected).as_secs_f64();
        rates.push(MISSED as f64 / seconds);
        println!(
            "  {seconds:.2} s: {} ops/s; CPU {:.2} s at the one that has them, {:.2} s at the other",
            thousands(MISSED as f64 / seconds),
            cpu.0,
            cpu.1
        );
        second.end();
        // So that the next is not taken for this one.
        while pair.second_is(&clients[0]).await.0 {
            tokio::time::sleep(LOOK).await;
        }
    }
    rates.sort_by(f64::total_cmp);
    println!("  median {} ops/s", thousands(rates[rates.len() / 2]));
}

/// Everybody lists a file and withdraws it again, until there are enough ops.
async fn fill(scene: &Scene, store: &Arc<mtq::tracker::store::Store>, head: &Arc<ManifestHead>) {
    let mut tasks = JoinSet::new();
    let each = MISSED.div_ceil(scene.actors.len()).next_multiple_of(2);
    for (client, actor) in scene.actors.iter().copied().enumerate() {
        let (store, head) = (store.clone(), head.clone());
        tasks.spawn(async move {
            for step in 0..each {
                let (group, name, head) = (own_group(client), file_name(), head.clone());
                let command = match step % 2 {
                    0 => Command::Share { group, name, head },
                    _ => Command::StopShare { group, file: Selector::Name(name) },
                };
                store.propose(actor, request_id(), command).await.expect("granted");
            }
        });
    }
    tasks.join_all().await;
}

/// What a second tracker costs the first.
pub async fn cost(count: usize) {
    println!(
        "\nsync, cost: {count} clients write at one tracker, with another beside it and without"
    );
    let scene = Scene::new(count).await;
    let store = scene.store().await;
    let head = scene.make_groups(&store).await.encode();
    close(store).await;
    let pair = Pair::new(scene);
    let first = pair.start_first();
    let clients = Arc::new(pair.first.connect(&first).await);
    let lines: Vec<_> = clients.iter().map(|client| client.line.clone()).collect();
    let thing = Arc::new(move |client: usize, step: u64| {
        let (line, head) = (lines[client].clone(), head.clone());
        async move {
            granted(&line, &change(client, step, head)).await;
        }
    });
    let mut step = 0;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for with in [false, true] {
            let second = with.then(|| pair.start_second());
            if with {
                pair.level(&clients[0]).await;
            }
            let cpu = (first.cpu(), second.as_ref().map_or(0.0, Tracker::cpu));
            let begun = clock::monotonic();
            let done = one_round(count, u64::MAX, step, &thing).await;
            let elapsed = begun.elapsed().as_secs_f64();
            let things: usize = done.iter().map(|(_, took)| took.len()).sum();
            step = done.iter().map(|(step, _)| *step).max().unwrap_or(0).next_multiple_of(2);
            if with {
                pair.level(&clients[0]).await;
            }
            let behind = begun.elapsed().as_secs_f64() - elapsed;
            let thousand = things as f64 / 1000.0;
            let first_cpu = 1000.0 * (first.cpu() - cpu.0) / thousand;
            let second_cpu = second.as_ref().map_or(0.0, |s| 1000.0 * (s.cpu() - cpu.1) / thousand);
            if let Some(second) = second {
                second.end();
            }
            while pair.second_is(&clients[0]).await.0 {
                tokio::time::sleep(LOOK).await;
            }
            // The first pair of rounds warms up.
            if round > 0 {
                let row = (things as f64 / elapsed, first_cpu, second_cpu, behind);
                if with { &mut beside } else { &mut alone }.push(row);
            }
        }
    }
    for (what, rows) in [("without", &mut alone), ("with", &mut beside)] {
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, first, second, behind) = rows[rows.len() / 2];
        println!(
            "  {what:8} {:>8} ops/s ({} to {})  CPU per 1,000: {first:.0} ms, the other one {second:.0} \
             ms; level {behind:.2} s after the last answer",
            thousands(rate),
            thousands(rows[0].0),
            thousands(rows[rows.len() - 1].0),
        );
    }
    let ratio = beside[beside.len() / 2].0 / alone[alone.len() / 2].0;
    println!("  ratio {ratio:.2}");
}
