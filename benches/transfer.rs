//! One seeder to one leecher over loopback, against a raw QUIC stream in the same run.
//!
//! `transfer/raw stream` is one bulk stream on one connection with mtq's own transport settings,
//! memory to nowhere. `transfer/agents` is the whole program: two agents and a tracker, tickets,
//! a stream a piece, both hashes, the file written, checked as a whole and named. The ratio of the
//! two is the figure to quote; BENCHMARKS.md has some.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use mtq::client::agent::{Agent, AgentConfig};
use mtq::client::metafile::MetafileTo;
use mtq::clock;
use mtq::manifest::ContentId;
use mtq::name::{GroupName, Selector};
use mtq::tracker::message::Password;
use mtq::tracker::server::{Tracker, TrackerConfig};
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::connection::Connection;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use tokio::runtime::{Builder, Runtime};

/// Bytes moved an iteration: enough that handshakes do not count.
const SIZE: usize = 256 << 20;

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A side of the transfer: its own thread of events, as a process of its own has.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn endpoint() -> Endpoint {
    Endpoint::bind(Arc::new(Identity::generate()), loopback(), &[Alpn::Peer]).expect("bound")
}

/// A connection of two endpoints, each on its own runtime.
fn connected(sender: &Runtime, receiver: &Runtime) -> (Connection, Connection) {
    let listening = sender.block_on(async { endpoint() });
    let address = listening.local_address().expect("an address");
    let id = listening.identity().peer_id();
    let dialled = receiver
        .spawn(async move { endpoint().dial(address, Alpn::Peer, id).await.expect("dialled") });
    let accepted = sender.block_on(async {
        let incoming = listening.accept(10, || {}).await.expect("a dialler");
        incoming.finish().await.expect("a handshake")
    });
    (accepted, receiver.block_on(dialled).expect("dialled"))
}

fn raw_stream(c: &mut Criterion) {
    let (sender, receiver) = (runtime(), runtime());
    let (from, to) = connected(&sender, &receiver);
    let chunk = Bytes::from(vec![7; 1 << 20]);
    let mut group = c.benchmark_group("transfer");
    group.throughput(Throughput::Bytes(SIZE as u64)).sampling_mode(SamplingMode::Flat);
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    group.bench_function("raw stream", |b| {
        b.iter(|| {
            let (from, chunk) = (from.clone(), chunk.clone());
            let sent = sender.spawn(async move {
                let (mut send, _recv) = from.open_bi().await.expect("a stream");
                for _ in 0..SIZE / chunk.len() {
                    send.write_chunk(chunk.clone()).await.expect("written");
                }
                send.finish().expect("open");
                let _ = send.stopped().await;
            });
            let received = receiver.block_on(async {
                let (_send, mut recv) = to.accept_bi().await.expect("a stream");
                let mut len = 0;
                while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.expect("read") {
                    len += chunk.bytes.len();
                }
                len
            });
            assert_eq!(received, SIZE);
            sender.block_on(sent).expect("sent");
        });
    });
    group.finish();
}

/// An agent on a runtime of its own, logged in.
struct Side {
    runtime: Runtime,
    agent: Agent,
}

impl Side {
    fn new(dir: &Path, name: &str, link: &TrackerLink) -> Self {
        let runtime = runtime();
        let trackers = TrackerInfo::new(vec![link.clone()]).expect("one tracker");
        let config =
            AgentConfig { listen: Some(loopback()), ..AgentConfig::new(dir.join(name), trackers) };
        let agent = runtime.block_on(async {
            let agent = Agent::start(config).expect("an agent");
            let user = || name.parse().expect("a name");
            let password = || Password("secret".to_owned());
            agent.create_user(user(), password(), None).await.expect("created");
            agent.login(user(), password()).await.expect("logged in");
            agent
        });
        Self { runtime, agent }
    }
}

/// A tracker, a seeder of `SIZE` bytes and a leecher.
struct Swarm {
    dir: tempfile::TempDir,
    tracker: (Runtime, Tracker),
    seeder: Side,
    leecher: Side,
    content: ContentId,
}

fn lab() -> GroupName {
    "lab".parse().expect("a name")
}

impl Swarm {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let tracker_runtime = runtime();
        let identity = Arc::new(Identity::generate());
        let id = identity.peer_id();
        let tracker = tracker_runtime
            .block_on(async {
                Tracker::start(TrackerConfig::new(identity, loopback()), dir.path())
            })
            .expect("a tracker");
        let link = TrackerLink::new(tracker.local_address().expect("an address"), id);
        let seeder = Side::new(dir.path(), "alice", &link);
        let leecher = Side::new(dir.path(), "bob", &link);
        let path = dir.path().join("file.bin");
        let mut bytes = vec![0; SIZE];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        fs::write(&path, &bytes).expect("written");
        let content = seeder.runtime.block_on(async {
            seeder.agent.create_group(lab(), false).await.expect("created");
            let shared = seeder.agent.share(&path, lab(), None, MetafileTo::Beside).await;
            shared.expect("shared").manifest.content_id()
        });
        leecher.runtime.block_on(leecher.agent.join_group(lab())).expect("asked");
        let accept = seeder.agent.accept_request(lab(), "bob".parse().expect("a name"));
        seeder.runtime.block_on(accept).expect("accepted");
        Self { dir, tracker: (tracker_runtime, tracker), seeder, leecher, content }
    }

    /// Gets the file into a new directory; returns the time from the command to its end.
    fn get(&self, number: u32) -> Duration {
        let dest: PathBuf = self.dir.path().join(number.to_string());
        fs::create_dir(&dest).expect("made");
        let agent = &self.leecher.agent;
        let file = || Selector::Id(self.content.into());
        let begun = clock::monotonic();
        self.leecher.runtime.block_on(async {
            agent.get(lab(), file(), &dest).await.expect("begun");
            agent.wait(None).await.expect("complete");
        });
        let took = begun.elapsed();
        self.leecher.runtime.block_on(agent.stop_share(lab(), file())).expect("forgotten");
        fs::remove_dir_all(dest).expect("removed");
        took
    }

    fn end(self) {
        self.leecher.runtime.block_on(self.leecher.agent.shutdown());
        self.seeder.runtime.block_on(self.seeder.agent.shutdown());
        self.tracker.0.block_on(self.tracker.1.shutdown());
    }
}

fn agents(c: &mut Criterion) {
    let swarm = Swarm::new();
    let number = Cell::new(0);
    let mut group = c.benchmark_group("transfer");
    group.throughput(Throughput::Bytes(SIZE as u64)).sampling_mode(SamplingMode::Flat);
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    group.bench_function("agents", |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| {
                    number.set(number.get() + 1);
                    swarm.get(number.get())
                })
                .sum()
        });
    });
    group.finish();
    swarm.end();
}

criterion_group!(benches, raw_stream, agents);
criterion_main!(benches);
