//! `mtq demo`: a tracker and clients as real processes on this machine move a real file.
//!
//! Nothing here knows more than a user does: it makes keys with `mtq certs`, starts `mtq tracker`
//! and `mtq client --json`, writes commands to them and reads their answers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use indicatif::MultiProgress;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::args::DemoArgs;
use super::exit::{Failure, status};
use super::progress::{REDRAW, bytes_bar};
use super::text::{self, table};
use crate::hash::{Sha1Hash, Sha1Hasher};
use crate::swarm::hashing;

/// Names of the first clients; the rest are numbered.
const NAMES: [&str; 8] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];

/// The group they meet in.
const GROUP: &str = "demo";

/// The file they share.
const FILE: &str = "demo file.bin";

/// A started process answers its first command within this, or never.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A file is hashed within this, however slow the disk.
const HASH_LIMIT: Duration = Duration::from_secs(3600);

/// A process that was told to end has this long.
const END_LIMIT: Duration = Duration::from_secs(15);

/// Runs the demo; the status is 0 only when every copy equals the source.
///
/// # Errors
/// [`Failure`] when any step fails.
pub fn run(args: &DemoArgs) -> Result<u8, Failure> {
    let home = Home::new(args.keep.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("cannot start", &error))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|error| failed("cannot wait for signals", &error))?;
        tokio::select! {
            result = play(args, &home.path) => result,
            _ = tokio::signal::ctrl_c() => Ok(status::INTERRUPTED),
            _ = terminate.recv() => Ok(status::INTERRUPTED),
        }
    })
}

/// The directory everything happens in; removed at the end unless it is kept.
struct Home {
    path: PathBuf,
    temporary: bool,
}

impl Home {
    fn new(keep: Option<&Path>) -> Result<Self, Failure> {
        let temporary = keep.is_none();
        let default = || std::env::temp_dir().join(format!("mtq-demo-{}", std::process::id()));
        let path = keep.map_or_else(default, Path::to_owned);
        let result = fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
            .and_then(|()| fs::create_dir(&path))
            .and_then(|()| path.canonicalize());
        match result {
            Ok(path) => Ok(Self { path, temporary }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Failure::new("exists", format!("{} exists already", text::path(&path)))
                    .hint("name a new directory"))
            }
            Err(error) => Err(failed(&text::path(&path), &error)),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

async fn play(args: &DemoArgs, home: &Path) -> Result<u8, Failure> {
    let count = usize::from(args.peers);
    let size = args.size.as_u64();
    println!(
        "{count} clients, one tracker, one file of {}; everything is in {}",
        text::size(size),
        text::path(home)
    );
    let mut tracker = start_tracker(home).await?;
    let mut clients = Vec::new();
    for index in 0..count {
        clients.push(ClientProcess::start(home, index)?);
    }
    println!("accounts and a group");
    for client in &mut clients {
        client.ask(&format!("create-user {} {}-secret", client.name, client.name)).await?;
        client.ask(&format!("login {} {}-secret", client.name, client.name)).await?;
    }
    let (first, others) = clients.split_at_mut(1);
    let first = &mut first[0];
    first.ask(&format!("create-group {GROUP}")).await?;
    for client in others.iter_mut() {
        client.ask(&format!("join-group {GROUP}")).await?;
        first.ask(&format!("accept-request {GROUP} {}", client.name)).await?;
    }

    println!("{} makes and shares the file", first.name);
    let source = first.dir.join(FILE);
    let sha1 = generate(&source, size).map_err(|error| failed(&text::path(&source), &error))?;
    let share = format!("share {} {GROUP}", quote(&source));
    first.ask_within(HASH_LIMIT, &share).await?;

    println!("everybody else gets it, all at once");
    for client in others.iter_mut() {
        let dest = quote(&client.dir);
        client.ask(&format!("get {GROUP} {} {dest}", quote(Path::new(FILE)))).await?;
    }
    let bars = MultiProgress::new();
    let mut watched = JoinSet::new();
    for mut client in clients.drain(1..) {
        let bar = bars.add(bytes_bar(size, format!("{:6}", client.name)));
        watched.spawn(async move { client.watch(&bar).await.map(|row| (client, row)) });
    }
    let mut fetched = Vec::new();
    while let Some(done) = watched.join_next().await {
        fetched.push(done.map_err(|error| failed("a watcher failed", &error))??);
    }
    fetched.sort_by_key(|(client, _)| client.index);

    let rows: Vec<_> = fetched.iter().map(|(client, row)| (client, row)).collect();
    let equal = report(&clients[0], &rows, &source, sha1, size)?;
    for client in clients.iter_mut().chain(fetched.iter_mut().map(|(client, _)| client)) {
        client.quit().await;
    }
    end(&mut tracker).await;
    if equal {
        println!("all copies are equal to the source");
        Ok(0)
    } else {
        println!("the copies differ from the source");
        Ok(status::INTEGRITY)
    }
}

/// Prints who got what from whom, and the SHA-1 of every copy; whether all are equal.
fn report(
    first: &ClientProcess,
    rows: &[(&ClientProcess, &Fetched)],
    source: &Path,
    sha1: Sha1Hash,
    size: u64,
) -> Result<bool, Failure> {
    let givers = || std::iter::once(first).chain(rows.iter().map(|(client, _)| *client));
    let mut lines = vec![
        ["peer", "seconds", "MB/s"].map(str::to_owned).to_vec(),
        vec![first.name.clone(), "shares".to_owned(), "-".to_owned()],
    ];
    lines[0].extend(givers().map(|giver| format!("from {}", giver.name)));
    lines[0].extend(["peak MiB".to_owned(), "SHA-1 of its copy".to_owned()]);
    lines[1].extend(givers().map(|_| "-".to_owned()));
    lines[1].extend([first.peak_memory(), file_sha1(source)?.to_string()]);
    let mut equal = file_sha1(source)? == sha1;
    for (client, row) in rows {
        let copy = file_sha1(&row.path)?;
        equal &= copy == sha1;
        let seconds = row.elapsed.as_secs_f64();
        let mut line = vec![
            client.name.clone(),
            format!("{seconds:.2}"),
            format!("{:.0}", size as f64 / 1e6 / seconds.max(0.001)),
        ];
        line.extend(givers().map(|giver| match row.pieces_from.get(&giver.name) {
            Some(pieces) => pieces.to_string(),
            None => "-".to_owned(),
        }));
        line.extend([client.peak_memory(), copy.to_string()]);
        lines.push(line);
    }
    println!("\npieces received, by peer:\n{}\n", table(&lines));
    Ok(equal)
}

/// What one client got.
struct Fetched {
    elapsed: Duration,
    path: PathBuf,
    pieces_from: BTreeMap<String, u64>,
}

/// A running `mtq client --json`.
struct ClientProcess {
    index: usize,
    name: String,
    dir: PathBuf,
    log: PathBuf,
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl ClientProcess {
    fn start(home: &Path, index: usize) -> Result<Self, Failure> {
        let name = NAMES.get(index).map_or_else(|| format!("peer{}", index + 1), |n| n.to_string());
        let dir = home.join(&name);
        fs::create_dir(&dir).map_err(|error| failed(&text::path(&dir), &error))?;
        let log = dir.join("client.log");
        let mut child = program()?
            .args(["client", "--json", "--listen", "127.0.0.1:0", "--trackers"])
            .arg(home.join("certs/tracker_info.txt"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--log-file")
            .arg(&log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed("cannot start a client", &error))?;
        let (Some(input), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new("internal", "a client without pipes"));
        };
        let answers = BufReader::new(answers).lines();
        Ok(Self { index, name, dir, log, child, input, answers })
    }

    /// Writes a command and reads its answer, which comes soon.
    async fn ask(&mut self, line: &str) -> Result<Value, Failure> {
        self.ask_within(START_LIMIT, line).await
    }

    /// Writes a command and reads its answer within `limit`.
    async fn ask_within(&mut self, limit: Duration, line: &str) -> Result<Value, Failure> {
        let died = || {
            Failure::new("internal", format!("client {} died", self.name))
                .hint(format!("run again with --keep DIR and see {}", text::path(&self.log)))
        };
        let exchange = async {
            self.input.write_all(format!("{line}\n").as_bytes()).await?;
            self.input.flush().await?;
            self.answers.next_line().await
        };
        let answer = match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(Some(answer))) => answer,
            Ok(_) => return Err(died()),
            Err(_elapsed) => {
                return Err(Failure::new("timeout", format!("{}: no answer to {line}", self.name)));
            }
        };
        let answer: Value =
            serde_json::from_str(&answer).map_err(|error| failed("an answer", &error))?;
        if answer["ok"] == true {
            return Ok(answer["result"].clone());
        }
        let message = answer["error"]["message"].as_str().unwrap_or("failed");
        Err(Failure::new("internal", format!("{}: {line}: {message}", self.name)))
    }

    /// Follows the one download until it is complete.
    async fn watch(&mut self, bar: &indicatif::ProgressBar) -> Result<Fetched, Failure> {
        loop {
            let answer = self.ask("downloads").await?;
            let row = &answer["downloads"][0];
            bar.set_position(row["stored_bytes"].as_u64().unwrap_or(0));
            match row["state"].as_str() {
                Some("seeding") => {
                    bar.finish();
                    let pieces = row["sources"].as_array().into_iter().flatten().map(|source| {
                        let user = source["user"].as_str().unwrap_or("?").to_owned();
                        (user, source["pieces"].as_u64().unwrap_or(0))
                    });
                    return Ok(Fetched {
                        elapsed: Duration::from_millis(row["elapsed_ms"].as_u64().unwrap_or(0)),
                        path: row["path"].as_str().unwrap_or("").into(),
                        pieces_from: pieces.collect(),
                    });
                }
                Some("downloading" | "finishing") => tokio::time::sleep(REDRAW).await,
                _ => {
                    let message = row["error"]["message"].as_str().unwrap_or("failed");
                    return Err(Failure::new("internal", format!("{}: {message}", self.name)));
                }
            }
        }
    }

    /// The most memory the process ever had, in MiB, where the system tells.
    fn peak_memory(&self) -> String {
        let peak = || {
            let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some((kib / 1024).to_string())
        };
        peak().unwrap_or_else(|| "-".to_owned())
    }

    async fn quit(&mut self) {
        let _ = self.ask("quit").await;
        wait_or_kill(&mut self.child).await;
    }
}

/// Makes keys and starts the tracker on a free port; waits until it is up.
async fn start_tracker(home: &Path) -> Result<Child, Failure> {
    let port = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map_err(|error| failed("no UDP port on 127.0.0.1", &error))?
        .port();
    let certs = home.join("certs");
    let made = program()?
        .args(["certs", "--out"])
        .arg(&certs)
        .arg(format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .map_err(|error| failed("cannot run mtq certs", &error))?;
    if !made.success() {
        return Err(Failure::new("internal", format!("mtq certs failed: {made}")));
    }
    let log = home.join("tracker.log");
    let mut tracker = program()?
        .args(["tracker", "--identity"])
        .arg(certs.join("tracker1.pem"))
        .arg("--trackers")
        .arg(certs.join("tracker_info.txt"))
        .arg("--data-dir")
        .arg(home.join("tracker"))
        .arg("--log-file")
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed("cannot start the tracker", &error))?;
    let up = async {
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.contains("tracker is up") {
                return true;
            }
            if !matches!(tracker.try_wait(), Ok(None)) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(START_LIMIT, up).await {
        Ok(true) => Ok(tracker),
        _ => Err(Failure::new("internal", "the tracker did not come up")
            .hint(format!("run again with --keep DIR and see {}", text::path(&log)))),
    }
}

/// This very program, ended when we end.
fn program() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|error| failed("cannot find mtq", &error))?;
    let mut command = Command::new(path);
    command.kill_on_drop(true);
    Ok(command)
}

/// Ends a process in order.
async fn end(child: &mut Child) {
    let id = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    if let Some(id) = id {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
    }
    wait_or_kill(child).await;
}

async fn wait_or_kill(child: &mut Child) {
    if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Writes `size` random bytes to a new file; returns their SHA-1.
fn generate(path: &Path, size: u64) -> io::Result<Sha1Hash> {
    let bar = bytes_bar(size, "generating".to_owned());
    let mut file = File::create_new(path)?;
    let (mut rng, mut sha1) = (fastrand::Rng::new(), Sha1Hasher::default());
    let mut buffer = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let len = left.min(buffer.len() as u64) as usize;
        rng.fill(&mut buffer[..len]);
        sha1.update(&buffer[..len]);
        file.write_all(&buffer[..len])?;
        left -= len as u64;
        bar.inc(len as u64);
    }
    bar.finish_and_clear();
    Ok(sha1.finish())
}

fn file_sha1(path: &Path) -> Result<Sha1Hash, Failure> {
    let sha1 = File::open(path).and_then(|file| hashing::sha1_of(&file, &|| true));
    sha1.map_err(|error| failed(&text::path(path), &error))
}

/// A path as one word of a script line.
fn quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), |quoted| quoted.to_string())
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new("disk", format!("{what}: {error}"))
}
