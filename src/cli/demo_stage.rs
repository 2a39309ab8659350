//! What demos are made of: a directory, trackers and clients as real processes, a file of random
//! bytes, and the table of who got what.
//!
//! Nothing here knows more than a user does: it makes keys with `mtq certs`, starts `mtq tracker`
//! and `mtq client --json`, writes commands to them and reads their answers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::config_file::KEYS;
use super::exit::Failure;
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
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// A file is hashed within this, however slow the disk.
const HASH_LIMIT: Duration = Duration::from_secs(3600);

/// A process that was told to end has this long.
const END_LIMIT: Duration = Duration::from_secs(15);

/// The directory everything happens in; removed at the end unless it is kept.
#[derive(Debug)]
pub struct Home {
    /// Where.
    pub path: PathBuf,
    temporary: bool,
}

impl Home {
    /// A new directory, at `keep` or a temporary one.
    ///
    /// # Errors
    /// [`Failure`]; what exists already is refused.
    pub fn new(keep: Option<&Path>) -> Result<Self, Failure> {
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

/// Gives everybody an account, and makes them members of one group, which the first owns.
///
/// # Errors
/// [`Failure`].
pub async fn meet(clients: &mut [ClientProcess]) -> Result<(), Failure> {
    for client in clients.iter_mut() {
        client.enter().await?;
    }
    let Some((first, others)) = clients.split_first_mut() else { return Ok(()) };
    first.ask(&format!("create-group {GROUP}")).await?;
    for client in others {
        client.ask(&format!("join-group {GROUP}")).await?;
        first.ask(&format!("accept-request {GROUP} {}", client.name)).await?;
    }
    Ok(())
}

/// The file that is shared.
#[derive(Debug)]
pub struct Source {
    /// Where.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Of all of it.
    pub sha1: Sha1Hash,
    /// Pieces it has.
    pub pieces: u64,
}

impl Source {
    /// Has `owner` share a new file of `size` random bytes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn share(owner: &mut ClientProcess, size: u64) -> Result<Self, Failure> {
        let path = owner.dir.join(FILE);
        let sha1 = generate(&path, size).map_err(|error| failed(&text::path(&path), &error))?;
        let share = format!("share {} {GROUP}", quote(&path));
        let shared = owner.ask_within(HASH_LIMIT, &share).await?;
        Ok(Self { path, size, sha1, pieces: shared["pieces"].as_u64().unwrap_or(0) })
    }
}

/// Prints who got what from whom, and the SHA-1 of every copy; whether all are equal.
///
/// # Errors
/// [`Failure`] when a copy cannot be read.
pub fn report(
    first: &ClientProcess,
    rows: &[(ClientProcess, Fetched)],
    source: &Source,
) -> Result<bool, Failure> {
    let givers = || std::iter::once(first).chain(rows.iter().map(|(client, _)| client));
    let mut lines = vec![
        ["peer", "seconds", "MB/s"].map(str::to_owned).to_vec(),
        vec![first.name.clone(), "shares".to_owned(), "-".to_owned()],
    ];
    lines[0].extend(givers().map(|giver| format!("from {}", giver.name)));
    lines[0].extend(["peak MiB".to_owned(), "SHA-1 of its copy".to_owned()]);
    lines[1].extend(givers().map(|_| "-".to_owned()));
    lines[1].extend([first.peak_memory(), file_sha1(&source.path)?.to_string()]);
    let mut equal = file_sha1(&source.path)? == source.sha1;
    for (client, row) in rows {
        let copy = file_sha1(&row.path)?;
        equal &= copy == source.sha1;
        let seconds = row.elapsed.as_secs_f64();
        let mut line = vec![
            client.name.clone(),
            format!("{seconds:.2}"),
            format!("{:.0}", source.size as f64 / 1e6 / seconds.max(0.001)),
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
#[derive(Debug)]
pub struct Fetched {
    /// From the first request to the end.
    pub elapsed: Duration,
    /// Its copy.
    pub path: PathBuf,
    /// Pieces by the user who gave them.
    pub pieces_from: BTreeMap<String, u64>,
    /// Pieces that were not what they should be.
    pub bad_pieces: u64,
}

/// A running `mtq client --json`.
#[derive(Debug)]
pub struct ClientProcess {
    /// Its place among the clients.
    pub index: usize,
    /// Its user.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    log: PathBuf,
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl ClientProcess {
    /// Starts the client with this place among all.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn start(home: &Path, index: usize) -> Result<Self, Failure> {
        let name = NAMES.get(index).map_or_else(|| format!("peer{}", index + 1), |n| n.to_string());
        let dir = home.join(&name);
        fs::create_dir(&dir).map_err(|error| failed(&text::path(&dir), &error))?;
        let log = dir.join("client.log");
        let mut child = program()?
            .args(["client", "--json", "--config", "/dev/null", "--listen", "127.0.0.1:0"])
            .arg("--trackers")
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

    /// Makes its account and logs in.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn enter(&mut self) -> Result<(), Failure> {
        self.ask(&format!("create-user {} {}-secret", self.name, self.name)).await?;
        self.ask(&format!("login {} {}-secret", self.name, self.name)).await.map(drop)
    }

    /// Writes a command and reads its answer, which comes soon.
    ///
    /// # Errors
    /// [`Failure`] when it fails or there is no answer.
    pub async fn ask(&mut self, line: &str) -> Result<Value, Failure> {
        self.ask_within(START_LIMIT, line).await
    }

    /// Writes a command and reads its answer within `limit`.
    ///
    /// # Errors
    /// [`Failure`] when it fails or there is no answer.
    pub async fn ask_within(&mut self, limit: Duration, line: &str) -> Result<Value, Failure> {
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

    /// Begins to download the file.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&mut self) -> Result<(), Failure> {
        let get = format!("get {GROUP} {} {}", quote(Path::new(FILE)), quote(&self.dir));
        self.ask(&get).await.map(drop)
    }

    /// Follows the one download until it is complete; tells `seen` the bytes there are.
    ///
    /// # Errors
    /// [`Failure`] when it fails.
    pub async fn watch(&mut self, seen: impl Fn(u64)) -> Result<Fetched, Failure> {
        loop {
            let answer = self.ask("downloads").await?;
            let row = &answer["downloads"][0];
            seen(row["stored_bytes"].as_u64().unwrap_or(0));
            match row["state"].as_str() {
                Some("seeding") => {
                    let sources = row["sources"].as_array().into_iter().flatten();
                    let mut pieces_from = BTreeMap::new();
                    let mut bad_pieces = 0;
                    for source in sources {
                        let user = source["user"].as_str().unwrap_or("?").to_owned();
                        let pieces = source["pieces"].as_u64().unwrap_or(0);
                        *pieces_from.entry(user).or_default() += pieces;
                        bad_pieces += source["bad_pieces"].as_u64().unwrap_or(0);
                    }
                    return Ok(Fetched {
                        elapsed: Duration::from_millis(row["elapsed_ms"].as_u64().unwrap_or(0)),
                        path: row["path"].as_str().unwrap_or("").into(),
                        pieces_from,
                        bad_pieces,
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

    /// Ends it in order.
    pub async fn quit(&mut self) {
        let _ = self.ask("quit").await;
        wait_or_kill(&mut self.child).await;
    }
}

/// A tracker, running or not.
#[derive(Debug)]
pub struct TrackerProcess {
    /// Its place among the trackers, from 1.
    pub number: usize,
    /// Where it listens.
    pub address: SocketAddr,
    home: PathBuf,
    child: Option<Child>,
}

impl TrackerProcess {
    /// Makes keys for `count` trackers on free ports, and starts them; all are up then.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start_all(home: &Path, count: usize) -> Result<Vec<Self>, Failure> {
        let sockets: io::Result<Vec<_>> =
            (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect();
        let addresses: io::Result<Vec<_>> =
            sockets.and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect());
        let addresses = addresses.map_err(|error| failed("no UDP port on 127.0.0.1", &error))?;
        let made = program()?
            .args(["certs", "--out"])
            .arg(home.join("certs"))
            .args(addresses.iter().map(SocketAddr::to_string))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .map_err(|error| failed("cannot run mtq certs", &error))?;
        if !made.success() {
            return Err(Failure::new("internal", format!("mtq certs failed: {made}")));
        }
        let mut trackers = Vec::new();
        for (index, address) in addresses.into_iter().enumerate() {
            let mut tracker =
                Self { number: index + 1, address, home: home.to_owned(), child: None };
            tracker.start().await?;
            trackers.push(tracker);
        }
        Ok(trackers)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.home.join(format!("tracker{}{kind}", self.number))
    }

    /// Starts it, where it left off if it ran before; waits until it is up.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start(&mut self) -> Result<(), Failure> {
        let log = self.file(".log");
        let logged = fs::metadata(&log).map_or(0, |log| log.len()) as usize;
        let certs = self.home.join("certs");
        let mut child = program()?
            .args(["tracker", "--identity"])
            .arg(certs.join(format!("tracker{}.pem", self.number)))
            .arg("--trackers")
            .arg(certs.join("tracker_info.txt"))
            .arg("--data-dir")
            .arg(self.file(""))
            .arg("--log-file")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed("cannot start the tracker", &error))?;
        let up = async {
            loop {
                let text = fs::read(&log).unwrap_or_default();
                let new = text.get(logged..).unwrap_or_default();
                if String::from_utf8_lossy(new).contains("tracker is up") {
                    return true;
                }
                if !matches!(child.try_wait(), Ok(None)) {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(START_LIMIT, up).await {
            Ok(true) => self.child = Some(child),
            _ => {
                return Err(Failure::new("internal", "the tracker did not come up")
                    .hint(format!("run again with --keep DIR and see {}", text::path(&log))));
            }
        }
        Ok(())
    }

    /// What `mtq tracker status` says of it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn status(&self) -> Result<Value, Failure> {
        let output = program()?
            .args(["tracker", "status", "--json", "--data-dir"])
            .arg(self.file(""))
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| failed("cannot run mtq tracker status", &error))?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| failed("the answer of mtq tracker status", &error))?;
        if answer["ok"] == true {
            return Ok(answer["result"].clone());
        }
        let message = answer["error"]["message"].as_str().unwrap_or("failed");
        Err(Failure::new("internal", format!("tracker {}: {message}", self.number)))
    }

    /// Kills it with SIGKILL, which it does not get to see; it is gone when this returns.
    ///
    /// # Errors
    /// [`Failure`] when it does not run.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else {
            return Err(Failure::new("internal", "the tracker does not run"));
        };
        child.kill().await.map_err(|error| failed("cannot kill the tracker", &error))
    }

    /// Ends it in order.
    pub async fn end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let id = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        wait_or_kill(&mut child).await;
    }
}

/// This very program, ended when we end. The settings of whoever looks on are not its own.
fn program() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|error| failed("cannot find mtq", &error))?;
    let mut command = Command::new(path);
    command.kill_on_drop(true);
    for key in KEYS {
        command.env_remove(key.variable);
    }
    Ok(command)
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

/// What went wrong with what.
pub fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new("disk", format!("{what}: {error}"))
}
