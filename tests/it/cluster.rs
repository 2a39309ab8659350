//! Trackers of one network as real processes, which can be ended, killed, started again and cut off
//! from each other, and raw clients' devices with a connection to any of them.

use std::collections::HashMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mtq::clock;
use mtq::hash::sha1;
use mtq::manifest::{Manifest, PieceHashes};
use mtq::name::{FileName, GroupName};
use mtq::peer_id::PeerId;
use mtq::piece::PieceLayout;
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{Answer, PeerRecord, Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::refusal::Refusal;
use mtq::tracker::stub::{CallError, PushQueue, TrackerConnection};
use mtq::tracker_link::TrackerLink;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use serde_json::Value;
use tempfile::TempDir;

use crate::net::{hello, loopback, request_id, sign_up, soon};
use crate::world::{
    Client, ended, free_port, mtq, operate_at, operated_at, run, terminate, wait_for,
    wait_until_up, write_file,
};

/// How the digests of trackers that are level are compared.
const LOOK: Duration = Duration::from_millis(50);

/// A tracker, running or not.
struct Node {
    /// Where clients and the other trackers find it.
    link: TrackerLink,
    /// Its own file of links, key, data directory and log.
    trackers: PathBuf,
    identity: PathBuf,
    place: PathBuf,
    log: PathBuf,
    /// Where it listens when that is not what its link says.
    listen: Option<SocketAddr>,
    options: Vec<String>,
    child: Option<Child>,
}

impl Node {
    fn launch(&mut self) {
        let _ = fs::remove_file(&self.log);
        let mut command = mtq();
        command.arg("tracker").arg("--identity").arg(&self.identity);
        command.arg("--trackers").arg(&self.trackers).arg("--data-dir").arg(&self.place);
        command.arg("--log-file").arg(&self.log).args(&self.options);
        if let Some(address) = self.listen {
            command.arg("--listen").arg(address.to_string());
        }
        self.child = Some(command.stdin(Stdio::null()).spawn().expect("mtq runs"));
    }
}

/// Trackers of one roster, numbered from 0, and a directory.
pub struct Cluster {
    pub dir: TempDir,
    nodes: Vec<Node>,
    gates: Vec<Gate>,
}

impl Cluster {
    /// That many trackers, all up.
    pub fn new(count: usize) -> Self {
        Self::with(count, &[])
    }

    /// The same, started with these options.
    pub fn with(count: usize, options: &[&str]) -> Self {
        let mut cluster = Self::not_started(count, options);
        (0..count).for_each(|number| cluster.launch(number));
        (0..count).for_each(|number| cluster.wait_until_up(number));
        cluster.wait_level();
        cluster
    }

    /// Two trackers that reach each other only through gates, which can be shut; raw clients reach
    /// them in any case.
    pub fn with_gates(options: &[&str]) -> Self {
        let mut cluster = Self::not_started(2, options);
        for node in &mut cluster.nodes {
            let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let port = node.link.port();
            cluster.gates.push(Gate::start(SocketAddr::from(([127, 0, 0, 1], port)), listen));
            node.listen = Some(listen);
            node.launch();
        }
        (0..2).for_each(|number| cluster.wait_until_up(number));
        cluster.wait_level();
        cluster
    }

    fn not_started(count: usize, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut cluster = Self { dir, nodes: Vec::new(), gates: Vec::new() };
        let ports: Vec<_> = (0..count).map(|_| free_port()).collect();
        let net = cluster.path("net");
        make_certs(&net, &ports);
        for (index, port) in ports.into_iter().enumerate() {
            let identity = net.join(format!("tracker{}.pem", index + 1));
            cluster.add(&net.join("tracker_info.txt"), &identity, port, options);
        }
        cluster
    }

    /// Takes up a tracker that was made apart; it is not started.
    pub fn add(&mut self, trackers: &Path, identity: &Path, port: u16, options: &[&str]) -> usize {
        let number = self.nodes.len();
        let peer_id = Identity::load(identity).expect("made").peer_id();
        self.nodes.push(Node {
            link: TrackerLink::new(([127, 0, 0, 1], port).into(), peer_id),
            trackers: trackers.to_owned(),
            identity: identity.to_owned(),
            place: self.path(format!("place{number}")),
            log: self.path(format!("tracker{number}.log")),
            listen: None,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            child: None,
        });
        number
    }

    /// Makes the key of one more tracker, whose file of links names the others too; it is not in
    /// their roster and not started.
    pub fn newcomer(&mut self, name: &str) -> usize {
        let (port, net) = (free_port(), self.path(name));
        make_certs(&net, &[port]);
        let file = net.join("tracker_info.txt");
        let mut text = fs::read_to_string(&file).expect("made");
        for node in &self.nodes {
            text.push_str(&format!("{}\n", node.link));
        }
        fs::write(&file, text).expect("written");
        self.add(&file, &net.join("tracker1.pem"), port, &[])
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in the directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write_file(self.path(name), bytes)
    }

    /// The file of links that clients are given.
    pub fn trackers(&self) -> PathBuf {
        self.path("net/tracker_info.txt")
    }

    /// A tracker's link, as the roster has it.
    pub fn link(&self, number: usize) -> TrackerLink {
        self.nodes[number].link.clone()
    }

    /// Where clients reach a tracker even when its gate is shut.
    pub fn door(&self, number: usize) -> TrackerLink {
        let node = &self.nodes[number];
        let listen = node.listen.map(|address| TrackerLink::new(address, node.link.peer_id()));
        listen.unwrap_or_else(|| node.link.clone())
    }

    /// A tracker's peer id.
    pub fn peer_id(&self, number: usize) -> PeerId {
        self.nodes[number].link.peer_id()
    }

    /// A tracker's key.
    pub fn identity(&self, number: usize) -> Identity {
        Identity::load(&self.nodes[number].identity).expect("made")
    }

    /// A tracker's data directory.
    pub fn place(&self, number: usize) -> PathBuf {
        self.nodes[number].place.clone()
    }

    /// What a tracker logged since it was last started.
    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(&self.nodes[number].log).unwrap_or_default()
    }

    /// Starts a tracker and waits until it is up.
    pub fn start(&mut self, number: usize) {
        self.launch(number);
        self.wait_until_up(number);
    }

    /// Starts a tracker and does not wait for it.
    pub fn launch(&mut self, number: usize) {
        assert!(self.nodes[number].child.is_none(), "tracker {number} is running");
        self.nodes[number].launch();
    }

    /// Waits until a tracker that was launched is up.
    pub fn wait_until_up(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        wait_until_up(node.child.as_mut().expect("launched"), &node.log);
    }

    /// Kills a tracker at once.
    pub fn kill(&mut self, number: usize) {
        let mut child = self.nodes[number].child.take().expect("running");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// Ends a tracker in order.
    pub fn stop(&mut self, number: usize) {
        let mut child = self.nodes[number].child.take().expect("running");
        terminate(&child);
        assert!(ended(&mut child).success());
    }

    /// Lets nothing through between trackers with gates.
    pub fn cut(&self) {
        self.gates.iter().for_each(|gate| gate.shut.store(true, Ordering::Relaxed));
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.gates.iter().for_each(|gate| gate.shut.store(false, Ordering::Relaxed));
    }

    /// Runs `mtq tracker` with the words of `line` on a tracker, which must succeed.
    pub fn operated(&self, number: usize, line: &str) -> Value {
        operated_at(&self.nodes[number].place, line)
    }

    /// The status of a tracker; nothing when it does not answer, as while it starts.
    pub fn status(&self, number: usize) -> Option<Value> {
        let output: Output = operate_at(&self.nodes[number].place, "status --json");
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        (answer["ok"] == true).then(|| answer["result"].clone())
    }

    /// The digest when all trackers that run are connected, have the same ops and pages, and know
    /// it; what they say otherwise.
    fn level(&self) -> Result<String, String> {
        let running = |node: &&Node| node.child.is_some();
        let ids: Vec<_> = self.nodes.iter().filter(running).map(|n| n.link.peer_id()).collect();
        let mut digests = Vec::new();
        let mut words = String::new();
        let mut level = true;
        for number in (0..self.nodes.len()).filter(|number| self.nodes[*number].child.is_some()) {
            let Some(status) = self.status(number) else { return Err("no answer".to_owned()) };
            let siblings = status["siblings"].as_array().expect("siblings");
            let here = |sibling: &&Value| ids.iter().any(|id| sibling["peer_id"] == id.to_string());
            let met: Vec<_> = siblings.iter().filter(here).collect();
            level &= met.len() + 1 == ids.len() && status["pages_missing"] == 0;
            level &= met.iter().all(|sibling| {
                sibling["connected"] == true
                    && sibling["behind_ops"] == 0
                    && sibling["ahead_ops"] == 0
            });
            digests.push(status["digest"].as_str().expect("a digest").to_owned());
            words.push_str(&format!("{number}: {status}\n"));
        }
        level &= digests.windows(2).all(|pair| pair[0] == pair[1]);
        if level { Ok(digests.pop().expect("somebody runs")) } else { Err(words) }
    }

    /// Waits until all trackers that run have one digest, whether or not they know it.
    pub fn wait_agreed(&self) {
        wait_for("one digest", || {
            let running = (0..self.nodes.len()).filter(|n| self.nodes[*n].child.is_some());
            let digests = running.map(|n| Some(self.status(n)?["digest"].clone()));
            let digests = digests.collect::<Option<Vec<_>>>()?;
            digests.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        });
    }

    /// Waits until all trackers that run are connected and agree; returns their digest.
    pub fn wait_level(&self) -> String {
        let begun = clock::monotonic();
        loop {
            match self.level() {
                Ok(digest) => return digest,
                Err(words) => {
                    let late = begun.elapsed() > crate::world::DEADLINE;
                    assert!(!late, "the trackers do not come level:\n{words}");
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// The command line of a client with its own data directory.
    fn client_command(&self, name: &str) -> Command {
        let mut command = mtq();
        command.args(["client", "--listen", "127.0.0.1:0", "--trackers"]);
        command.arg(self.trackers()).arg("--data-dir").arg(self.path(format!("{name}.data")));
        command
    }

    /// Starts a client that answers in JSON.
    pub fn client(&self, name: &str) -> Client {
        let log = self.path(format!("{name}.log"));
        Client::start(name, self.client_command(name), &log)
    }

    /// Starts clients for `names`, all members of `lab`, which the first owns, and waits until all
    /// trackers know.
    pub fn lab<const N: usize>(&self, names: [&str; N]) -> [Client; N] {
        let mut clients = names.map(|name| self.client(name));
        clients.iter_mut().for_each(Client::sign_up);
        let (owner, others) = clients.split_first_mut().expect("somebody");
        owner.ok("create-group lab");
        for other in others {
            other.ok("join-group lab");
            owner.ok(&format!("accept-request lab {}", other.name));
        }
        self.wait_level();
        clients
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for gate in &mut self.gates {
            gate.end();
        }
    }
}

fn make_certs(out: &Path, ports: &[u16]) {
    let addresses = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    let made = run(mtq().arg("certs").arg("--out").arg(out).args(addresses));
    assert!(made.status.success(), "{made:?}");
}

/// A UDP port behind which is another, as long as the gate is open.
struct Gate {
    shut: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a gate's threads wait before they look whether they are still wanted.
const GATE_TICK: Duration = Duration::from_millis(100);

fn gate_socket(address: SocketAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind(address).expect("a port");
    socket.set_read_timeout(Some(GATE_TICK)).expect("a timeout");
    Arc::new(socket)
}

impl Gate {
    fn start(front: SocketAddr, behind: SocketAddr) -> Self {
        let front = gate_socket(front);
        let (shut, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (closed, over) = (shut.clone(), ended.clone());
        let thread = thread::spawn(move || {
            let mut backs: HashMap<SocketAddr, (Arc<UdpSocket>, JoinHandle<()>)> = HashMap::new();
            let mut buffer = [0; 65_536];
            while !over.load(Ordering::Relaxed) {
                let Ok((len, from)) = front.recv_from(&mut buffer) else { continue };
                let (back, _) = backs.entry(from).or_insert_with(|| {
                    let back = gate_socket(loopback());
                    back.connect(behind).expect("connected");
                    let (from_back, front) = (back.clone(), front.clone());
                    let (closed, over) = (closed.clone(), over.clone());
                    let thread = thread::spawn(move || {
                        let mut buffer = [0; 65_536];
                        while !over.load(Ordering::Relaxed) {
                            let Ok(len) = from_back.recv(&mut buffer) else { continue };
                            if !closed.load(Ordering::Relaxed) {
                                let _ = front.send_to(&buffer[..len], from);
                            }
                        }
                    });
                    (back, thread)
                });
                if !closed.load(Ordering::Relaxed) {
                    let _ = back.send(&buffer[..len]);
                }
            }
            for (_, (_, thread)) in backs {
                thread.join().expect("a gate ends");
            }
        });
        Self { shut, ended, thread: Some(thread) }
    }

    fn end(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A raw client's device.
pub struct Device {
    pub endpoint: Endpoint,
    session: AtomicU64,
}

impl Device {
    pub fn new() -> Self {
        let identity = Arc::new(Identity::generate());
        let endpoint = Endpoint::bind(identity, loopback(), &[Alpn::Peer]).expect("bound");
        Self { endpoint, session: AtomicU64::new(1) }
    }

    /// A connection to a tracker, of the same session as its other ones.
    pub async fn reach(&self, link: &TrackerLink) -> Option<Line> {
        let hello =
            Hello { agent: "raw".to_owned(), ..hello(self.session.load(Ordering::Relaxed)) };
        let opened = TrackerConnection::open(&self.endpoint, link, &hello).await;
        let (line, pushes) = opened.ok()?;
        Some(Line { line, pushes })
    }

    /// The same to one that is up.
    pub async fn at(&self, link: &TrackerLink) -> Line {
        self.reach(link).await.expect("the tracker is up")
    }

    /// A connection on which the device's user is logged in by its key.
    pub async fn known_at(&self, link: &TrackerLink) -> Line {
        let line = self.at(link).await;
        let reply = line.granted(Request::LoginByKey).await;
        assert!(matches!(reply, Reply::LoggedIn { .. }), "{reply:?}");
        line
    }

    /// A device with a new account.
    pub async fn of(name: &str, link: &TrackerLink) -> (Self, Line) {
        let device = Self::new();
        let line = device.at(link).await;
        sign_up(&line.line, name).await;
        (device, line)
    }
}

/// A raw client's connection to one tracker.
pub struct Line {
    pub line: TrackerConnection,
    pub pushes: PushQueue,
}

impl Line {
    /// Asks until the tracker has time.
    pub async fn ask(&self, request: &Request) -> Result<Answer, Refusal> {
        loop {
            match soon("an answer", self.line.ask(request)).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Refused(Refusal::RateLimited { retry_after_ms })) => {
                    tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
                }
                Err(CallError::Refused(Refusal::Busy)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(CallError::Refused(refusal)) => return Err(refusal),
                Err(error) => panic!("{request:?}: {error}"),
            }
        }
    }

    /// Asks for what must be granted.
    pub async fn granted(&self, request: Request) -> Reply {
        match self.ask(&request).await {
            Ok(answer) => answer.reply,
            Err(refusal) => panic!("{request:?}: {refusal}"),
        }
    }

    /// Makes a group.
    pub async fn create(&self, group: &GroupName) -> Answer {
        let (request_id, group) = (request_id(), group.clone());
        let request = Request::CreateGroup { request_id, group, hidden: false };
        self.ask(&request).await.expect("granted")
    }

    /// Asks to join a group.
    pub async fn join(&self, group: &GroupName) {
        let (request_id, group) = (request_id(), group.clone());
        self.granted(Request::JoinGroup { request_id, group }).await;
    }

    /// Lets somebody in.
    pub async fn accept(&self, group: &GroupName, name: &str) {
        let (request_id, group) = (request_id(), group.clone());
        let user = crate::net::user(name);
        self.granted(Request::AcceptRequest { request_id, group, user }).await;
    }

    /// Leaves a group.
    pub async fn leave(&self, group: &GroupName) {
        let (request_id, group) = (request_id(), group.clone());
        self.granted(Request::LeaveGroup { request_id, group }).await;
    }

    /// Shares a small file of that name.
    pub async fn share(&self, group: &GroupName, name: &str) {
        let manifest = small(name);
        let (request_id, head) = (request_id(), manifest.head().encode());
        let share = Request::Share { request_id, group: group.clone(), name: file(name), head };
        loop {
            match self.granted(share.clone()).await {
                Reply::Shared { .. } => return,
                Reply::PagesMissing { pages } => {
                    assert_eq!(pages, [0]);
                    let (content, bytes) = (manifest.content_id(), manifest.page(0));
                    self.granted(Request::PutPage { content, page: 0, bytes }).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Members of a group, each with whether they own it.
    pub async fn members(&self, group: &GroupName) -> Vec<(String, bool)> {
        let request = Request::ListMembers { group: group.clone(), after: None };
        let Reply::Members { rows, more: false } = self.granted(request).await else { panic!() };
        rows.into_iter().map(|row| (row.user.to_string(), row.owner)).collect()
    }

    /// Files of a group, each with those who share it.
    pub async fn files(&self, group: &GroupName) -> Vec<(String, Vec<String>)> {
        let (mut files, mut after) = (Vec::new(), None);
        loop {
            let request = Request::ListFiles { group: group.clone(), after: after.take() };
            let Reply::Files { rows, more } = self.granted(request).await else { panic!() };
            after = rows.last().map(|row| mtq::tracker::message::FileCursor {
                group: row.group.clone(),
                name: row.name.clone(),
                content: row.content,
            });
            files.extend(rows.into_iter().map(|row| {
                (row.name.to_string(), row.sharers.iter().map(ToString::to_string).collect())
            }));
            if !more {
                return files;
            }
        }
    }

    /// Who holds the small file of that name.
    pub async fn peers(&self, group: &GroupName, name: &str) -> Vec<PeerRecord> {
        let content = small(name).content_id();
        match self.granted(Request::Peers { group: group.clone(), contents: vec![content] }).await {
            Reply::Peers { mut holders } => holders.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a push of this kind.
    pub async fn pushed<T>(&mut self, what: &str, wanted: impl Fn(&Push) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let push = self.pushes.next().await.expect("the connection stays");
                if let Some(found) = wanted(&push) {
                    return found;
                }
            }
        })
        .await
    }
}

/// A name of a group.
pub fn named(name: &str) -> GroupName {
    name.parse().expect("a name")
}

/// A name of a file.
pub fn file(name: &str) -> FileName {
    name.parse().expect("a name")
}

/// The manifest of a file of a few bytes, which are its name.
pub fn small(name: &str) -> Manifest {
    let layout = PieceLayout::new(name.len() as u64).expect("small");
    let pieces = layout.pieces().map(|piece| PieceHashes::of(layout, piece, name.as_bytes()));
    let pieces = pieces.collect();
    Manifest::new(layout, sha1(name.as_bytes()), pieces).expect("consistent")
}

/// Waits until `event` happens on an answer that is asked for again and again.
pub async fn until<T>(what: &str, mut event: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = event().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Waits until a client stands with its trackers as `wanted` says.
pub fn client_until(client: &mut Client, what: &str, wanted: impl Fn(&[Value]) -> bool) {
    wait_for(what, || {
        let status = client.ok("status");
        wanted(status["trackers"].as_array().expect("trackers")).then_some(())
    });
}
