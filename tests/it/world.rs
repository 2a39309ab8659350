//! A small world of real processes: a tracker and clients, in a directory of their own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use mtq::peer_id::PeerId;
use mtq::tracker_link::TrackerLink;
use mtq::transport::identity::Identity;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before the test fails. Generous: it only bounds a hang.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Where the program under test finds itself at home: nowhere.
const NO_HOME: &str = "/nonexistent/mtq-tests";

/// The program under test. It finds nothing of whoever runs the tests: no variables, no files.
pub fn mtq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mtq"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MTQ_") || text.starts_with("XDG_") {
            command.env_remove(&name);
        }
    }
    command.env("HOME", NO_HOME);
    command
}

/// Runs a command to its end, with nothing to read.
pub fn run(command: &mut Command) -> Output {
    run_reading(command, Stdio::null())
}

/// Runs a command to its end, with this to read.
pub fn run_reading(command: &mut Command, input: impl Into<Stdio>) -> Output {
    let command = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    outcome(command.spawn().expect("mtq runs"))
}

/// What a process says until its end.
pub fn outcome(child: Child) -> Output {
    let _watch = Watch::over(&child);
    child.wait_with_output().expect("reaped")
}

/// How a process ends.
pub fn ended(child: &mut Child) -> ExitStatus {
    wait_for("the end of a process", || child.try_wait().expect("reaped"))
}

/// Kills a process that somebody waits for beyond the deadline; they see that it was killed.
pub struct Watch {
    _until: Sender<()>,
}

impl Watch {
    /// Begins now.
    pub fn over(child: &Child) -> Self {
        let (process, (until, is_over)) = (Pid::from_child(child), channel());
        thread::spawn(move || {
            if is_over.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(process, Signal::KILL);
            }
        });
        Self { _until: until }
    }
}

/// A free UDP port on loopback, below those that systems give to whoever asks for any: it is still
/// free when its tracker is started again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id() * 101 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (next % 20_000) as u16;
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Content that differs from piece to piece.
pub fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Writes a file, in directories that need not be there yet.
pub fn write_file(path: PathBuf, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    fs::write(&path, bytes).expect("written");
    path
}

/// A directory, a tracker, and whatever clients a test starts.
pub struct World {
    pub dir: TempDir,
    pub port: u16,
    /// The name of the tracker's data directory.
    pub tracker_dir: String,
    /// What the tracker is started with besides.
    pub tracker_options: Vec<String>,
    identity: PeerId,
    tracker: Option<Child>,
}

impl World {
    /// A world whose tracker is up.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// A world whose tracker was started with these options.
    pub fn with(options: &[&str]) -> Self {
        let mut world = Self::without_tracker();
        world.tracker_options = options.iter().map(|option| (*option).to_owned()).collect();
        world.start_tracker();
        world
    }

    /// A world whose tracker was never started.
    pub fn without_tracker() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let port = free_port();
        let out = dir.path().join("net");
        let made = run(mtq().arg("certs").arg("--out").arg(&out).arg(format!("127.0.0.1:{port}")));
        assert!(made.status.success(), "{made:?}");
        let identity = Identity::load(&out.join("tracker1.pem")).expect("made").peer_id();
        let (tracker_dir, tracker_options) = ("tracker".to_owned(), Vec::new());
        Self { dir, port, tracker_dir, tracker_options, identity, tracker: None }
    }

    /// A path in the world.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory in the world.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("made");
        path
    }

    /// Writes a file in the world.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write_file(self.path(name), bytes)
    }

    /// The file of tracker links.
    pub fn trackers(&self) -> PathBuf {
        self.path("net/tracker_info.txt")
    }

    /// Where raw clients find the tracker.
    pub fn link(&self) -> TrackerLink {
        TrackerLink::new(([127, 0, 0, 1], self.port).into(), self.identity)
    }

    /// Starts the tracker and waits until it is up.
    pub fn start_tracker(&mut self) {
        self.launch_tracker();
        let log = self.path("tracker.log");
        wait_until_up(self.tracker.as_mut().expect("launched"), &log);
    }

    /// The command line of the tracker.
    pub fn tracker_command(&self) -> Command {
        let mut command = mtq();
        command
            .args(["tracker", "--identity"])
            .arg(self.path("net/tracker1.pem"))
            .arg("--trackers")
            .arg(self.trackers())
            .arg("--data-dir")
            .arg(self.path(&self.tracker_dir));
        command
    }

    /// Starts the tracker and does not wait for it.
    pub fn launch_tracker(&mut self) {
        let log = self.path("tracker.log");
        let _ = fs::remove_file(&log);
        let child = self
            .tracker_command()
            .arg("--log-file")
            .arg(&log)
            .args(&self.tracker_options)
            .stdin(Stdio::null())
            .spawn()
            .expect("mtq runs");
        self.tracker = Some(child);
    }

    /// Bytes of memory the tracker holds now.
    pub fn tracker_rss(&self) -> u64 {
        let id = self.tracker.as_ref().expect("a tracker").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("running");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        let kib = line.split_whitespace().nth(1).expect("a number");
        kib.parse::<u64>().expect("a number") * 1024
    }

    /// Kills the tracker at once.
    pub fn kill_tracker(&mut self) {
        let mut tracker = self.tracker.take().expect("a tracker");
        tracker.kill().expect("killed");
        tracker.wait().expect("reaped");
    }

    /// Ends the tracker in order; it must say so with status 0.
    pub fn stop_tracker(&mut self) {
        let mut tracker = self.tracker.take().expect("a tracker");
        terminate(&tracker);
        assert!(ended(&mut tracker).success());
    }

    /// Runs `mtq tracker` with the words of `line` on the tracker's data directory.
    pub fn operate(&self, line: &str) -> Output {
        operate_at(&self.path(&self.tracker_dir), line)
    }

    /// The same, which must succeed; returns its result.
    pub fn operated(&self, line: &str) -> Value {
        operated_at(&self.path(&self.tracker_dir), line)
    }

    /// The same, which must fail; returns its error's code and the exit status.
    pub fn not_operated(&self, line: &str) -> (String, i32) {
        let output = self.operate(&format!("{line} --json"));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(answer["ok"], false, "{line}: {answer}");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.starts_with("error: "), "{line}: {words}");
        let code = answer["error"]["code"].as_str().expect("a code").to_owned();
        (code, output.status.code().expect("no signal killed it"))
    }

    /// The command line of a client with its own data directory.
    pub fn client_command(&self, name: &str) -> Command {
        let mut command = mtq();
        command
            .args(["client", "--listen", "127.0.0.1:0", "--trackers"])
            .arg(self.trackers())
            .arg("--data-dir")
            .arg(self.path(format!("{name}.data")));
        command
    }

    /// Runs a script to its end; standard output, standard error and status are the caller's.
    pub fn script(&self, name: &str, options: &[&str], lines: &str) -> Output {
        let mut child = self
            .client_command(name)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mtq runs");
        let mut input = child.stdin.take().expect("piped");
        // A client that stopped early no longer reads.
        let _ = input.write_all(lines.as_bytes());
        drop(input);
        outcome(child)
    }

    /// Starts a client that answers in JSON.
    pub fn client(&self, name: &str) -> Client {
        let log = self.path(format!("{name}.log"));
        Client::start(name, self.client_command(name), &log)
    }

    /// Starts a client that answers in JSON, with these options.
    pub fn client_with(&self, name: &str, options: &[&str]) -> Client {
        let mut command = self.client_command(name);
        command.args(options);
        Client::start(name, command, &self.path(format!("{name}.log")))
    }

    /// A client that has a small filesystem of its own at `place`; nothing where the system does not allow
    /// that.
    pub fn client_on_small_disk(&self, name: &str, place: &Path, mib: u64) -> Option<Client> {
        let on_small_disk = |command: &Command| {
            let script = format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" && exec \"$@\"");
            let mut unshare = Command::new("unshare");
            unshare.args(["-Urm", "sh", "-c"]).arg(script).arg(place);
            unshare.arg(command.get_program()).args(command.get_args());
            unshare
        };
        let tried = on_small_disk(&Command::new("true")).output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            println!("skipped: this system gives no filesystem to whoever asks: {tried:?}");
            return None;
        }
        let command = on_small_disk(&self.client_command(name));
        Some(Client::start(name, command, &self.path(format!("{name}.log"))))
    }

    /// Starts a client, makes its account and logs in.
    pub fn user(&self, name: &str) -> Client {
        let mut client = self.client(name);
        client.sign_up();
        client
    }

    /// Starts clients for `names`, all members of `lab`, which the first owns.
    pub fn lab<const N: usize>(&self, names: [&str; N]) -> [Client; N] {
        let mut clients = names.map(|name| self.user(name));
        let (owner, others) = clients.split_first_mut().expect("somebody");
        owner.ok("create-group lab");
        for other in others {
            other.ok("join-group lab");
            owner.ok(&format!("accept-request lab {}", other.name));
        }
        clients
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(tracker) = &mut self.tracker {
            let _ = tracker.kill();
            let _ = tracker.wait();
        }
    }
}

/// Waits until `event` gives something.
pub fn wait_for<T>(what: &str, mut event: impl FnMut() -> Option<T>) -> T {
    let begun = mtq::clock::monotonic();
    loop {
        if let Some(found) = event() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited too long for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the tracker that was launched last says so in its log.
pub fn wait_until_up(tracker: &mut Child, log: &Path) {
    wait_for("the tracker", || {
        assert!(matches!(tracker.try_wait(), Ok(None)), "the tracker ended");
        fs::read_to_string(log).unwrap_or_default().contains("tracker is up").then_some(())
    });
}

/// Runs `mtq tracker` with the words of `line` on a tracker's data directory.
pub fn operate_at(place: &Path, line: &str) -> Output {
    let words = line.split_whitespace();
    run(mtq().arg("tracker").args(words).arg("--data-dir").arg(place))
}

/// The same, which must succeed; returns its result.
pub fn operated_at(place: &Path, line: &str) -> Value {
    let output = operate_at(place, &format!("{line} --json"));
    assert!(output.status.success(), "{line}: {output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&answer["v"], &answer["ok"]), (&1.into(), &true.into()), "{line}: {answer}");
    answer["result"].clone()
}

/// Asks a process to end in order.
pub fn terminate(child: &Child) {
    let id = Pid::from_child(child);
    kill_process(id, Signal::TERM).expect("signalled");
}

/// A running `mtq client --json`.
pub struct Client {
    pub name: String,
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    failed: bool,
}

impl Client {
    /// Starts a client by its command line.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let mut child = command
            .args(["--json", "--keep-going", "--log-file"])
            .arg(log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("mtq runs");
        let (sender, answers) = channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { name: name.to_owned(), child, input, answers, failed: false }
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("signalled");
    }

    /// Makes the account of its name and logs in.
    pub fn sign_up(&mut self) {
        let name = self.name.clone();
        self.ok(&format!("create-user {name} {name}-secret"));
        self.ok(&format!("login {name} {name}-secret"));
    }

    /// Writes a command without waiting for its answer.
    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the client reads");
    }

    /// The next answer.
    pub fn answer(&mut self) -> Value {
        let line = self.answers.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|_| panic!("{} did not answer", self.name));
        let answer: Value = serde_json::from_str(&line).expect("an answer is JSON");
        assert_eq!(answer["v"], 1);
        self.failed |= answer["ok"] == false;
        answer
    }

    /// Runs a command that must succeed; returns its result.
    pub fn ok(&mut self, line: &str) -> Value {
        self.say(line);
        let answer = self.answer();
        assert_eq!(answer["ok"], true, "{}: {line}: {answer}", self.name);
        answer["result"].clone()
    }

    /// Runs a command that must fail; returns its error's code.
    pub fn err(&mut self, line: &str) -> String {
        self.say(line);
        let answer = self.answer();
        assert_eq!(answer["ok"], false, "{}: {line}: {answer}", self.name);
        answer["error"]["code"].as_str().expect("a code").to_owned()
    }

    /// The one row of `downloads` for a name.
    pub fn row(&mut self, name: &str) -> Value {
        let result = self.ok("downloads");
        let rows = result["downloads"].as_array().expect("rows");
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_default()
    }

    /// Ends the client in order; its status must be 0 unless a command failed.
    pub fn quit(mut self) {
        self.ok("quit");
        assert_eq!(ended(&mut self.child).success(), !self.failed);
    }

    /// Ends the client as Ctrl-C or a service manager does; returns its exit status.
    pub fn terminate(mut self) -> i32 {
        terminate(&self.child);
        ended(&mut self.child).code().expect("no signal killed it")
    }

    /// Kills the client at once.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path as one word of a script line.
pub fn quoted(path: &Path) -> String {
    shlex::try_quote(path.to_str().expect("UTF-8")).expect("no NUL").into_owned()
}
