//! Two processes of `side`, one that serves and one that fetches, as an arrangement.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use mtq::clock;

use super::process::Process;
use super::rounds::Arrangement;
use super::side::{Fetch, How, Reading, Serve, Side};

/// The way that `lab` takes; `transfer -- variants` compares it with others.
pub const USUAL: How = How {
    depth: 16,
    together: false,
    reading: Reading::Thread,
    writers: 1,
    copied: false,
    sha1_crate: false,
};

/// A file to be sent, and what it must be.
pub struct Source<'a> {
    /// The file.
    pub path: &'a Path,
    /// The SHA-1 of every piece, one after the other.
    pub hashes: &'a Path,
}

/// Both sides, connected.
pub struct Lab {
    name: String,
    len: u64,
    /// Where files go; nothing where bytes are dropped.
    dest: Option<PathBuf>,
    serving: Process,
    fetching: Process,
    /// As long as it is open the side that serves goes on.
    _serving_in: ChildStdin,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Lab {
    /// Bytes from memory to nowhere, `depth` pieces at once, or on one stream.
    pub fn from_memory(name: &str, mtu: &str, len: u64, depth: usize) -> Self {
        let how = How { depth, ..USUAL };
        Self::start(name, Serve { mtu: mtu.to_owned(), source: None, how }, len, None)
    }

    /// A file to a file in `dest`, pieces checked.
    pub fn from_file(name: &str, mtu: &str, source: &Source<'_>, dest: &Path, how: How) -> Self {
        let len = fs::metadata(source.path).expect("the source").len();
        let serve = Serve { mtu: mtu.to_owned(), source: Some(source.path.to_owned()), how };
        Self::start(name, serve, len, Some((source.hashes, dest)))
    }

    fn start(name: &str, serve: Serve, len: u64, to: Option<(&Path, &Path)>) -> Self {
        let (mtu, how) = (serve.mtu.clone(), serve.how);
        let mut serving = start(&Side::Serve(serve));
        let said = line(&mut BufReader::new(serving.child().stdout.take().expect("piped")));
        let (address, peer) = said.split_once(' ').expect("address and peer id");
        let (address, peer) = (address.parse().expect("an address"), peer.to_owned());
        let hashes = to.map(|(hashes, _)| hashes.to_owned());
        let mut fetching = start(&Side::Fetch(Fetch { mtu, address, peer, len, hashes, how }));
        let mut answers = BufReader::new(fetching.child().stdout.take().expect("piped"));
        assert_eq!(line(&mut answers), "connected");
        Self {
            name: name.to_owned(),
            len,
            dest: to.map(|(_, dest)| dest.join("lab.out")),
            _serving_in: serving.child().stdin.take().expect("piped"),
            orders: fetching.child().stdin.take().expect("piped"),
            serving,
            fetching,
            answers,
        }
    }
}

fn start(side: &Side) -> Process {
    let side = serde_json::to_string(side).expect("JSON");
    Process::start(
        Command::new(env::current_exe().expect("this program"))
            .args(["--side", &side])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    )
}

fn line(from: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a line");
    assert!(line.ends_with('\n'), "it ended");
    line.trim().to_owned()
}

impl Arrangement for Lab {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self) -> Duration {
        let dest = self.dest.as_deref().unwrap_or(Path::new("nowhere"));
        let begun = clock::monotonic();
        writeln!(self.orders, "{}", dest.display()).expect("it runs");
        assert_eq!(line(&mut self.answers), "complete");
        let took = begun.elapsed();
        if let Some(dest) = &self.dest {
            fs::remove_file(dest).expect("removed");
        }
        took
    }

    fn moved(&self) -> u64 {
        self.len
    }

    fn processes(&self) -> (Vec<&Process>, Vec<&Process>) {
        (vec![&self.serving], vec![&self.fetching])
    }

    fn writes(&self) -> bool {
        self.dest.is_some()
    }
}
