//! A download over a long fat link, second by second: a tracker, a seeder and a leecher, all real
//! processes, with a relay between them.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use mtq::clock;
use mtq::limits::PIECE_LEN;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::relay::Relay;
use super::{Options, cpu_of};

/// What is aimed at is to be reached by then, in seconds.
const FIRST: f64 = 10.0;

/// How many seconds the default file takes at the full rate.
const SPAN: u64 = 18;

/// A process may take so long until it is up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Plays one download, and prints what came of it.
pub fn run(options: &Options, rtt: u64) {
    let bytes_per_sec = options.rate * 1_000_000 / 8;
    let size = options.size.map_or(bytes_per_sec * SPAN, |mib| mib * 1024 * 1024);
    let made = tempfile::Builder::new().prefix("mtq-link-").tempdir_in(&options.dir);
    let dir = made.expect("a directory");
    let world = World::new(options, dir.path(), rtt);
    let played = world.download(size);
    println!(
        "\n{rtt} ms, {} Mbit/s, a queue of {:.1} MB, an MTU of {}, {} per mille lost; {:.0} MB by {}",
        options.rate,
        options.shape(rtt).queue as f64 / 1e6,
        options.mtu,
        options.loss,
        size as f64 / 1e6,
        options.congestion,
    );
    played.print(bytes_per_sec as f64);
    world.print(&played);
    world.end();
    if options.keep {
        println!("  all files: {}", dir.keep().display());
    }
}

/// A download from its command to its end.
struct Played {
    size: u64,
    /// Seconds since the command, and bytes that were stored by then.
    samples: Vec<(f64, u64)>,
    took: f64,
    /// CPU seconds of seeder and leecher.
    cpu: [f64; 2],
}

impl Played {
    fn print(&self, link: f64) {
        let percent = |bytes: f64, seconds: f64| 100.0 * bytes / seconds / link;
        let whole = self.samples.iter().find(|(_, bytes)| *bytes >= self.size);
        let last = whole.map_or(self.took, |(at, _)| *at);
        let second = |number: u64| self.stored(number as f64 + 1.0) - self.stored(number as f64);
        let seconds: Vec<f64> = (0..last as u64).map(second).collect();
        for (tens, row) in seconds.chunks(10).enumerate() {
            let line = |what: &str, cell: &dyn Fn(usize) -> String| {
                let cells: String = (0..row.len()).map(|at| format!("{:>7}", cell(at))).collect();
                println!("  {what:8}{cells}");
            };
            line("second", &|at| (10 * tens + at + 1).to_string());
            line("MB/s", &|at| format!("{:.1}", row[at] / 1e6));
            line("%", &|at| format!("{:.1}", percent(row[at], 1.0)));
        }
        let first = FIRST.min(last);
        let mut told =
            format!("{:.1} % in the first {first:.0} s", percent(self.stored(first), first));
        if last > FIRST {
            let rest = self.size as f64 - self.stored(FIRST);
            told += &format!(", {:.1} % after that", percent(rest, last - FIRST));
        }
        for aim in [80.0, 90.0] {
            let reached = seconds.iter().position(|bytes| percent(*bytes, 1.0) >= aim);
            told += &match reached {
                Some(second) => format!("; {aim} % in second {}", second + 1),
                None => format!("; {aim} % never"),
            };
        }
        println!("  {told}\n  every piece after {last:.1} s, the file after {:.1} s", self.took);
    }

    /// Bytes stored by then, between what was told before and after.
    fn stored(&self, second: f64) -> f64 {
        let after = self.samples.iter().position(|(at, _)| *at >= second);
        let Some(after) = after else { return self.size as f64 };
        let (at, bytes) = self.samples[after];
        let before = after.checked_sub(1).map_or((0.0, 0), |before| self.samples[before]);
        let part = (second - before.0) / (at - before.0).max(1e-9);
        before.1 as f64 + bytes.saturating_sub(before.1) as f64 * part
    }
}

/// All processes, and the directory they live in.
struct World<'a> {
    options: &'a Options,
    dir: &'a Path,
    relay: Relay,
    tracker: Running,
    seeder: Running,
    leecher: Running,
}

impl<'a> World<'a> {
    fn new(options: &'a Options, dir: &'a Path, rtt: u64) -> Self {
        let tracker_at = free_address();
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let relay = Relay::start(anywhere, tracker_at, options.shape(rtt)).expect("a relay");
        // Clients are told, and hear, that the tracker is at the front, and nowhere else.
        let mut certs = mtq(options);
        certs.arg("certs").arg("--out").arg(dir.join("net")).arg(relay.front().to_string());
        let made = certs.output().expect("mtq runs");
        assert!(made.status.success(), "{made:?}");
        let mut tracker = mtq(options);
        tracker.args(["tracker", "--listen", &tracker_at.to_string(), "--identity"]);
        tracker.arg(dir.join("net/tracker1.pem")).arg("--data-dir").arg(dir.join("tracker"));
        tracker.arg("--trackers").arg(dir.join("net/tracker_info.txt"));
        // It says that it is up whatever others are to log.
        tracker.env_remove("MTQ_LOG");
        let tracker = Running::start(tracker, &dir.join("tracker.log"), "tracker is up");
        let daemon = |user: &str| {
            let mut daemon = client(options, dir, user);
            daemon.args(["daemon", "--listen", "127.0.0.1:0"]);
            daemon.args(["--congestion", &options.congestion]);
            Running::start(daemon, &dir.join(format!("{user}.log")), "the agent is up")
        };
        let (seeder, leecher) = (daemon("alice"), daemon("bob"));
        Self { options, dir, relay, tracker, seeder, leecher }
    }

    /// One command, which must succeed.
    fn one(&self, user: &str, words: &[&str]) {
        let output = client(self.options, self.dir, user).args(words).output().expect("mtq runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    fn download(&self, size: u64) -> Played {
        let file = self.dir.join("file.bin");
        write_file(&file, size).expect("a file");
        let dest = self.dir.join("in");
        fs::create_dir(&dest).expect("made");
        for user in ["alice", "bob"] {
            self.one(user, &["create-user", user]);
            self.one(user, &["login", user]);
        }
        self.one("alice", &["create-group", "lab"]);
        self.one("bob", &["join-group", "lab"]);
        self.one("alice", &["accept-request", "lab", "bob"]);
        self.one("alice", &["share", &file.to_string_lossy(), "lab"]);
        let (events, told) = self.progress();
        let before = [&self.seeder, &self.leecher].map(Running::cpu);
        let begun = clock::monotonic();
        self.one("bob", &["get", "lab", "file.bin", &dest.to_string_lossy(), "--wait"]);
        let took = begun.elapsed().as_secs_f64();
        let after = [&self.seeder, &self.leecher].map(Running::cpu);
        drop(events);
        let samples = told.iter().filter(|(at, _)| *at > begun);
        let samples = samples.map(|(at, bytes)| (at.duration_since(begun).as_secs_f64(), bytes));
        let cpu = [after[0] - before[0], after[1] - before[1]];
        Played { size, samples: samples.collect(), took, cpu }
    }

    /// What the leecher tells of its downloads, as long as the first is there.
    fn progress(&self) -> (Running, Receiver<(Instant, u64)>) {
        let mut command = client(self.options, self.dir, "bob");
        command.args(["events", "--progress", "--json"]).stdout(Stdio::piped());
        let mut child = command.stdin(Stdio::null()).spawn().expect("mtq runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (teller, told) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                let items = event["items"].as_array().filter(|_| event["event"] == "progress");
                let done = items.into_iter().flatten().find_map(|item| item["done_bytes"].as_u64());
                let Some(done) = done else { continue };
                if teller.send((clock::monotonic(), done)).is_err() {
                    break;
                }
            }
        });
        (Running(child), told)
    }

    /// What it cost, and what the link made of it.
    fn print(&self, played: &Played) {
        let [seeder, leecher] = played.cpu;
        let [seeder_peak, leecher_peak] =
            [&self.seeder, &self.leecher].map(|process| process.peak() as f64 / 1024.0);
        println!(
            "  CPU: seeder {seeder:.1} s, leecher {leecher:.1} s; peak memory {seeder_peak:.0} and \
             {leecher_peak:.0} MiB"
        );
        // What it told last is at most a second old.
        thread::sleep(Duration::from_millis(1_100));
        if let Some(told) = self.relay.told().last() {
            let sent = told.sent.first().copied().unwrap_or_default();
            println!(
                "  relay: {} datagrams of the seeder passed ({:.1} % more bytes than the file), {} found \
                 no room, {} were lost by chance; CPU {:.1} s",
                sent.passed,
                100.0 * (sent.bytes as f64 / played.size as f64 - 1.0),
                sent.dropped,
                sent.lost,
                told.cpu,
            );
        }
    }

    fn end(self) {
        // The tracker last: clients tell it that they go.
        [self.leecher, self.seeder, self.tracker].into_iter().for_each(Running::end);
    }
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    /// Starts one, and waits until it says `words`, in its log or otherwise.
    fn start(mut command: Command, log: &Path, words: &str) -> Self {
        let said = log.with_extension("err");
        let errors = File::create(&said).expect("a file");
        let child = command.arg("--log-file").arg(log).stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = Self(child.stderr(errors).spawn().expect("mtq runs"));
        let begun = clock::monotonic();
        let says = |file: &Path| fs::read_to_string(file).unwrap_or_default().contains(words);
        while !says(log) && !says(&said) {
            assert!(matches!(running.0.try_wait(), Ok(None)), "{}: it ended", log.display());
            assert!(begun.elapsed() < PATIENCE, "{}: it is not up", log.display());
            thread::sleep(Duration::from_millis(10));
        }
        running
    }

    fn cpu(&self) -> f64 {
        cpu_of(&format!("/proc/{}/stat", self.0.id()))
    }

    /// KiB of memory it held at most.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// Ends it in order.
    fn end(mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, which finds nothing of whoever runs this but how much to log.
fn mtq(options: &Options) -> Command {
    let mut command = Command::new(&options.mtq);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("XDG_") || text.starts_with("MTQ_") && text != "MTQ_LOG" {
            command.env_remove(&name);
        }
    }
    command.env("HOME", "/nonexistent");
    command
}

/// A client of a user with a data directory of its own; the verb follows.
fn client(options: &Options, dir: &Path, user: &str) -> Command {
    let mut command = mtq(options);
    command.args(["client", "--trackers"]).arg(dir.join("net/tracker_info.txt"));
    command.arg("--data-dir").arg(dir.join(user)).env("MTQ_PASSWORD", "secret");
    command
}

/// Bytes that differ from piece to piece; those of zeros would never be fetched.
fn write_file(path: &Path, size: u64) -> io::Result<()> {
    let mut block = vec![0; PIECE_LEN as usize];
    fastrand::Rng::with_seed(1).fill(&mut block);
    let mut file = File::create(path)?;
    for piece in 0..size.div_ceil(PIECE_LEN.into()) {
        block[..8].copy_from_slice(&piece.to_le_bytes());
        let left = size - piece * u64::from(PIECE_LEN);
        file.write_all(&block[..left.min(PIECE_LEN.into()) as usize])?;
    }
    Ok(())
}

fn free_address() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}
