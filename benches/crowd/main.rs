//! Many peers and many files: a real `mtq tracker`, and agents that are real `mtq client daemon` processes,
//! on this machine and in one directory.
//!
//! `cargo bench --bench crowd -- leechers|files|huge|all [--count N] [--dir DIR]`. `leechers`: N of them
//! (50) fetch one file of 64 MiB from one seeder at once. `files`: N files of 64 KiB (2,000) are shared with
//! one command and fetched with one. `huge`: one sparse file of N GiB (16), of which a leecher fetches
//! what it can in a few seconds, is killed and goes on; DIR needs room for N GiB beside it, which are
//! reserved and for the most part never written. It asserts that what came is right; it judges no figure.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mtq::clock;
use mtq::limits::PIECE_LEN;
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

/// How long the huge file is watched while it is fetched.
const WATCHED: Duration = Duration::from_secs(10);

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// Of `/proc/PID/stat`, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

const USAGE: &str = "usage: crowd [leechers] [files] [huge] [all] [--count N] [--dir DIR]";

fn main() -> ExitCode {
    let (mut wanted, mut count, mut parent) = (Vec::new(), None, env::temp_dir());
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match &arg[..] {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--count" => match args.next().and_then(|count| count.parse().ok()) {
                Some(number) => count = Some(number),
                None => return usage(),
            },
            "--dir" => match args.next() {
                Some(dir) => parent = dir.into(),
                None => return usage(),
            },
            "leechers" | "files" | "huge" | "all" => wanted.push(arg),
            _ => return usage(),
        }
    }
    let all = wanted.is_empty() || wanted.iter().any(|name| name == "all");
    let is_wanted = |name: &str| all || wanted.iter().any(|other| other == name);
    if is_wanted("files") {
        files(&Place::new(&parent), count.unwrap_or(2_000));
    }
    if is_wanted("leechers") {
        leechers(&Place::new(&parent), count.unwrap_or(50));
    }
    if is_wanted("huge") {
        huge(&Place::new(&parent), count.unwrap_or(16));
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// A directory with a tracker in it.
struct Place {
    dir: TempDir,
    tracker: Running,
}

impl Place {
    fn new(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).expect("a directory");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("bound").port();
        drop(socket);
        let net = dir.path().join("net");
        let made =
            mtq().arg("certs").arg("--out").arg(&net).arg(format!("127.0.0.1:{port}")).output();
        assert!(made.expect("mtq runs").status.success(), "no identity for the tracker");
        let mut command = mtq();
        command.arg("tracker").arg("--identity").arg(net.join("tracker1.pem"));
        command.arg("--trackers").arg(net.join("tracker_info.txt"));
        command.arg("--data-dir").arg(dir.path().join("tracker"));
        let tracker = Running::start(command, "tracker is up");
        Self { dir, tracker }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, user: &str) -> Command {
        let mut command = mtq();
        command.arg("client").arg("--trackers").arg(self.path("net/tracker_info.txt"));
        command.arg("--data-dir").arg(self.path(format!("{user}.data")));
        command.env("MTQ_LISTEN", "127.0.0.1:0").env("MTQ_PASSWORD", "secret of the benchmark");
        command.current_dir(self.dir.path());
        command
    }

    fn daemon(&self, user: &str) -> Running {
        let mut command = self.client(user);
        command.arg("daemon");
        Running::start(command, "the agent is up")
    }

    /// Has the agent of a user do one command, which must succeed; its result.
    fn ask(&self, user: &str, words: &[&str]) -> Value {
        let output = self.client(user).arg("--json").args(words).output().expect("mtq runs");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let words: Vec<_> = words.iter().take(4).collect();
        assert_eq!(answer["ok"], true, "{user}: {words:?}: {}", answer["error"]);
        answer["result"].clone()
    }

    /// An agent of a new user; the first one's owns the group `lab`, the others are in it.
    fn member(&self, user: &str) -> Running {
        let agent = self.daemon(user);
        self.ask(user, &["create-user", user]);
        self.ask(user, &["login", user]);
        if user == "owner" {
            self.ask(user, &["create-group", "lab"]);
        } else {
            self.ask(user, &["join-group", "lab"]);
            self.ask("owner", &["accept-request", "lab", user]);
        }
        agent
    }
}

fn mtq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mtq"));
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    /// Starts one, and returns when it says `words`.
    fn start(mut command: Command, words: &str) -> Self {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mtq runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let said = lines.by_ref().map_while(Result::ok).find(|line| line.contains(words));
        assert!(said.is_some(), "it ended without {words}");
        // What else it says is read, or it would wait for a reader.
        thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<_> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
        (ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }

    /// MiB of memory, now (`VmRSS`) or at most so far (`VmHWM`).
    fn memory(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(which)).expect("a size");
        let kib = line.split_whitespace().nth(1).expect("a number");
        kib.parse::<u64>().expect("a number") / 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_random(path: &Path, len: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut file = File::create(path).expect("made");
    let mut bytes = vec![0; 64 * 1024];
    for _ in 0..len / bytes.len() as u64 {
        rng.fill(&mut bytes);
        file.write_all(&bytes).expect("written");
    }
}

fn assert_same(one: &Path, other: &Path) {
    let same = fs::read(one).expect("there") == fs::read(other).expect("there");
    assert!(same, "{} is not {}", other.display(), one.display());
}

fn report(what: &str, begun: Instant, agents: &[(&str, &Running, f64)]) {
    println!("{what}: {:.2} s", begun.elapsed().as_secs_f64());
    for (name, agent, before) in agents {
        let (cpu, peak) = (agent.cpu() - before, agent.memory("VmHWM"));
        println!("    {name}: {cpu:.2} s of CPU, {peak} MiB at most");
    }
}

/// Many small files, shared with one command and fetched with one.
fn files(place: &Place, count: u64) {
    println!("{count} files of 64 KiB");
    fs::create_dir(place.path("src")).expect("made");
    fs::create_dir(place.path("dst")).expect("made");
    let names: Vec<_> = (0..count).map(|number| format!("f{number:06}.bin")).collect();
    for (number, name) in names.iter().enumerate() {
        write_random(&place.path("src").join(name), 64 * 1024, number as u64);
    }
    let (owner, bob) = (place.member("owner"), place.member("bob"));
    let before = (owner.cpu(), place.tracker.cpu());
    let begun = clock::monotonic();
    let paths: Vec<_> = names.iter().map(|name| format!("src/{name}")).collect();
    let words =
        [&["share", "--group", "lab"][..], &paths.iter().map(String::as_str).collect::<Vec<_>>()];
    let shared = place.ask("owner", &words.concat());
    assert_eq!(shared["count"], count);
    report("share", begun, &[("sharer", &owner, before.0), ("tracker", &place.tracker, before.1)]);
    for what in ["get", "get again"] {
        let before = (owner.cpu(), bob.cpu(), place.tracker.cpu());
        let begun = clock::monotonic();
        let got = place.ask("bob", &["get", "--wait", "--glob", "lab", "*", "dst"]);
        assert_eq!(got["count"], count);
        let agents = [
            ("seeder", &owner, before.0),
            ("leecher", &bob, before.1),
            ("tracker", &place.tracker, before.2),
        ];
        report(what, begun, &agents);
    }
    names.iter().for_each(|name| {
        assert_same(&place.path("src").join(name), &place.path("dst").join(name));
    });
}

/// Many leechers of one file, and one seeder.
fn leechers(place: &Place, count: u64) {
    const SIZE: u64 = 64 * MIB;
    println!("{count} leechers of one file of 64 MiB, one seeder");
    write_random(&place.path("file.bin"), SIZE, 1);
    let owner = place.member("owner");
    let users: Vec<_> = (0..count).map(|number| format!("u{number}")).collect();
    let agents: Vec<_> = users.iter().map(|user| place.member(user)).collect();
    place.ask("owner", &["share", "file.bin", "lab"]);
    let before: f64 = agents.iter().map(Running::cpu).sum();
    let own = (owner.cpu(), place.tracker.cpu());
    let begun = clock::monotonic();
    let times: Vec<_> = thread::scope(|scope| {
        let one = |user: &String| {
            let dest = format!("dst-{user}");
            fs::create_dir(place.path(&dest)).expect("made");
            let user = user.clone();
            scope.spawn(move || {
                place.ask(&user, &["get", "--wait", "lab", "file.bin", &dest]);
                begun.elapsed().as_secs_f64()
            })
        };
        let all: Vec<_> = users.iter().map(one).collect();
        all.into_iter().map(|one| one.join().expect("done")).collect()
    });
    let rows = [("seeder", &owner, own.0), ("tracker", &place.tracker, own.1)];
    report("all complete", begun, &rows);
    let first = times.iter().copied().fold(f64::INFINITY, f64::min);
    let last = times.iter().copied().fold(0.0, f64::max);
    let cpu: f64 = agents.iter().map(Running::cpu).sum::<f64>() - before;
    let peak = agents.iter().map(|agent| agent.memory("VmHWM")).max().unwrap_or(0);
    println!("    leechers: {cpu:.2} s of CPU together, {peak} MiB at most each");
    println!("    first complete after {first:.2} s, last after {last:.2} s");
    println!("    {:.0} MB/s into all of them", count as f64 * SIZE as f64 / last / 1e6);
    let shared = place.ask("owner", &["downloads"]);
    let sent = shared["downloads"][0]["uploaded_bytes"].as_u64().expect("a number");
    println!("    the seeder sent {:.2} times the file", sent as f64 / SIZE as f64);
    for user in &users {
        assert_same(&place.path("file.bin"), &place.path(format!("dst-{user}")).join("file.bin"));
    }
}

/// One huge file: its begin, its middle and a restart.
fn huge(place: &Place, gib: u64) {
    let size = gib * 1024 * MIB;
    let pieces = size / u64::from(PIECE_LEN);
    println!("one sparse file of {gib} GiB, {pieces} pieces");
    let path = place.path("huge.bin");
    let file = File::create(&path).expect("made");
    file.set_len(size).expect("room");
    for piece in 0..pieces {
        // No two are alike, and none is all zeros.
        file.write_all_at(&(piece + 1).to_le_bytes(), piece * u64::from(PIECE_LEN))
            .expect("written");
    }
    drop(file);
    fs::create_dir(place.path("dst")).expect("made");
    let (owner, bob) = (place.member("owner"), place.member("bob"));
    let before = (owner.cpu(), place.tracker.cpu());
    let begun = clock::monotonic();
    place.ask("owner", &["share", "huge.bin", "lab"]);
    report("share", begun, &[("sharer", &owner, before.0), ("tracker", &place.tracker, before.1)]);
    let before = bob.cpu();
    let begun = clock::monotonic();
    place.ask("bob", &["get", "lab", "huge.bin", "dst"]);
    println!("get answered: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let stored = || {
        let rows = place.ask("bob", &["downloads"]);
        rows["downloads"][0]["stored_bytes"].as_u64().expect("a number")
    };
    let more_than = |bytes: u64| {
        while stored() <= bytes {
            thread::sleep(LOOK);
        }
    };
    more_than(0);
    println!("first piece: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let watched = clock::monotonic();
    let (from, cpu) = (stored(), (owner.cpu(), bob.cpu()));
    thread::sleep(WATCHED);
    let came = stored() - from;
    println!(
        "{:.0} MB/s; {:.2} s of CPU a GB at the leecher, {:.2} at the seeder",
        came as f64 / watched.elapsed().as_secs_f64() / 1e6,
        (bob.cpu() - cpu.1) / (came as f64 / 1e9),
        (owner.cpu() - cpu.0) / (came as f64 / 1e9),
    );
    report("get so far", begun, &[("seeder", &owner, cpu.0), ("leecher", &bob, before)]);
    let kept = stored();
    drop(bob);
    let begun = clock::monotonic();
    let bob = place.daemon("bob");
    println!("killed and started again: up after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    more_than(kept);
    report("goes on, all that was there verified again", begun, &[("leecher", &bob, 0.0)]);
    println!("    {} MiB now", bob.memory("VmRSS"));
}
