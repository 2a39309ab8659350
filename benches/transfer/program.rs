//! The program itself as an arrangement: real processes of `mtq tracker` and `mtq client daemon`, and
//! commands as a user gives them.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use mtq::clock;
use serde_json::Value;

use super::process::Process;
use super::rounds::Arrangement;

/// A tracker and agents, all members of `lab`.
pub struct World {
    dir: PathBuf,
    mtu: String,
    _tracker: Process,
    agents: Vec<Agent>,
}

/// An agent that runs.
struct Agent {
    user: String,
    process: Process,
}

/// A file that is shared: its content id, its length, and where it is.
#[derive(Clone)]
pub struct Shared {
    selector: String,
    path: PathBuf,
    len: u64,
}

impl World {
    /// A tracker and so many agents, in a new directory.
    pub fn new(dir: PathBuf, mtu: &str, agents: usize) -> Self {
        fs::create_dir(&dir).expect("made");
        let tracker = start_tracker(&dir);
        let mut world = Self { dir, mtu: mtu.to_owned(), _tracker: tracker, agents: Vec::new() };
        for number in 0..agents {
            let user = format!("u{number}");
            let process = world.start_agent(&user);
            world.agents.push(Agent { user: user.clone(), process });
            world.done(number, &["create-user", &user]);
            world.done(number, &["login", &user]);
            if number == 0 {
                world.done(0, &["create-group", "lab"]);
            } else {
                world.done(number, &["join-group", "lab"]);
                world.done(0, &["accept-request", "lab", &user]);
            }
        }
        world
    }

    /// Has each of `agents` share `path` under its own name.
    pub fn share(&self, path: &Path, agents: &[usize]) -> Shared {
        let mut selector = String::new();
        for agent in agents {
            // A directory of its own, where its metafile has room; the bytes are the same.
            let dir = self.dir.join(format!("shared{agent}"));
            fs::create_dir_all(&dir).expect("made");
            let own = dir.join(path.file_name().expect("a name"));
            fs::hard_link(path, &own).expect("linked");
            let shared = self.done(*agent, &["share", own.to_str().expect("UTF-8"), "lab"]);
            selector = format!("id:{}", shared["content_id"].as_str().expect("an id"));
        }
        let len = fs::metadata(path).expect("the file").len();
        Shared { selector, path: path.to_owned(), len }
    }

    fn command(&self, user: &str, words: &[&str]) -> Command {
        let mut command = mtq();
        command
            .arg("client")
            .args(words)
            .arg("--data-dir")
            .arg(self.dir.join(format!("{user}.data")))
            .env("MTQ_PASSWORD", format!("{user}-secret"))
            .stdin(Stdio::null());
        command
    }

    fn start_agent(&self, user: &str) -> Process {
        let words = ["daemon", "--listen", "127.0.0.1:0", "--max-mtu", &self.mtu];
        let mut command = self.command(user, &words);
        command.arg("--trackers").arg(self.dir.join("net/tracker_info.txt"));
        let mut process = Process::start(command.stderr(Stdio::piped()));
        let said = process.child().stderr.take().expect("piped");
        let mut said = BufReader::new(said).lines().map_while(Result::ok);
        assert!(said.any(|line| line.contains("the agent is up")), "an agent ended");
        // What else it says is read, or it would wait for a reader.
        thread::spawn(move || said.for_each(drop));
        process
    }

    /// Begins a command of an agent.
    fn begin(&self, agent: usize, words: &[&str]) -> Child {
        let mut command = self.command(&self.agents[agent].user, words);
        command.arg("--json").stdout(Stdio::piped()).spawn().expect("mtq runs")
    }

    /// Does a command of an agent, which must succeed; its result.
    fn done(&self, agent: usize, words: &[&str]) -> Value {
        let output = self.begin(agent, words).wait_with_output().expect("it ends");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(answer["ok"], true, "{words:?}: {answer}");
        answer["result"].clone()
    }
}

/// The program, which finds nothing of whoever runs the benchmark: no variables, no files.
fn mtq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mtq"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MTQ_") || text.starts_with("XDG_") {
            command.env_remove(&name);
        }
    }
    command.env("HOME", "/nonexistent/mtq-benches");
    command
}

fn start_tracker(dir: &Path) -> Process {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address").to_string();
    drop(socket);
    let made = mtq().arg("certs").arg("--out").arg(dir.join("net")).arg(address).output();
    assert!(made.expect("mtq runs").status.success(), "keys are made");
    let log = dir.join("tracker.log");
    let mut process = Process::start(
        mtq()
            .args(["tracker", "--identity"])
            .arg(dir.join("net/tracker1.pem"))
            .arg("--trackers")
            .arg(dir.join("net/tracker_info.txt"))
            .arg("--data-dir")
            .arg(dir.join("tracker"))
            .arg("--log-file")
            .arg(&log)
            .stdin(Stdio::null()),
    );
    while !fs::read_to_string(&log).unwrap_or_default().contains("tracker is up") {
        assert!(matches!(process.child().try_wait(), Ok(None)), "the tracker ended");
        thread::sleep(Duration::from_millis(10));
    }
    process
}

/// Some agents get some files, all at once, from some others.
pub struct Program {
    name: String,
    world: Rc<World>,
    files: Vec<Shared>,
    seeders: Vec<usize>,
    leechers: Vec<usize>,
}

impl Program {
    /// `leechers` get `files`, which `seeders` share.
    pub fn new(
        name: &str,
        world: &Rc<World>,
        files: Vec<Shared>,
        seeders: &[usize],
        leechers: &[usize],
    ) -> Self {
        let (seeders, leechers) = (seeders.to_vec(), leechers.to_vec());
        Self { name: name.to_owned(), world: world.clone(), files, seeders, leechers }
    }

    fn dest(&self, leecher: usize) -> PathBuf {
        self.world.dir.join(format!("got{leecher}"))
    }
}

impl Arrangement for Program {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self) -> Duration {
        for leecher in &self.leechers {
            fs::create_dir(self.dest(*leecher)).expect("made");
        }
        let begun = clock::monotonic();
        let mut commands = Vec::new();
        for leecher in &self.leechers {
            let dest = self.dest(*leecher);
            for file in &self.files {
                let dest = dest.to_str().expect("UTF-8");
                let words = ["get", "lab", &file.selector, dest, "--wait"];
                commands.push(self.world.begin(*leecher, &words));
            }
        }
        for mut command in commands {
            assert!(command.wait().expect("it ends").success(), "a download failed");
        }
        let took = begun.elapsed();
        for leecher in &self.leechers {
            for file in &self.files {
                let got = self.dest(*leecher).join(file.path.file_name().expect("a name"));
                assert!(are_same(&file.path, &got), "{} is not what was shared", got.display());
                self.world.done(*leecher, &["stop-share", "lab", &file.selector]);
            }
            fs::remove_dir_all(self.dest(*leecher)).expect("removed");
        }
        took
    }

    fn moved(&self) -> u64 {
        let all: u64 = self.files.iter().map(|file| file.len).sum();
        all * self.leechers.len() as u64
    }

    fn processes(&self) -> (Vec<&Process>, Vec<&Process>) {
        let of = |agents: &[usize]| {
            agents.iter().map(|agent| &self.world.agents[*agent].process).collect()
        };
        (of(&self.seeders), of(&self.leechers))
    }

    fn writes(&self) -> bool {
        true
    }
}

fn are_same(one: &Path, other: &Path) -> bool {
    let open = |path| File::open(path).expect("there");
    let (mut one, mut other) = (open(one), open(other));
    let (mut bytes, mut others) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = one.read(&mut bytes).expect("read");
        if len == 0 {
            return other.read(&mut others).expect("read") == 0;
        }
        if other.read_exact(&mut others[..len]).is_err() || bytes[..len] != others[..len] {
            return false;
        }
    }
}
