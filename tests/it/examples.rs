//! The programs of `examples/`, run as a reader runs them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use mtq::tracker_link::TrackerLink;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{DEADLINE, ended, mtq, run};

/// An example, where cargo puts it beside the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("a path");
    let profile = tests.parent().and_then(Path::parent).expect("a directory of the profile");
    let program: PathBuf = profile.join("examples").join(name);
    assert!(program.is_file(), "{} is missing: cargo build --examples", program.display());
    Command::new(program)
}

#[test]
fn a_file_goes_from_one_embedded_agent_to_another() {
    let child = example("share_and_fetch").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("it runs");
    assert!(ended(&mut child).success());
    let mut output = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
    let lines: Vec<_> = output.lines().collect();
    let place = |wanted: &str| {
        let found = lines.iter().position(|line| line.starts_with(wanted));
        found.unwrap_or_else(|| panic!("{wanted:?} is not in {lines:#?}"))
    };
    let story = [
        "alice is told: bob asks to join lab",
        "bob is told: you are now a member of lab",
        "alice shares noise.bin: ",
        "bob is told: alice shares noise.bin (8.0 MiB) in lab",
        "bob gets noise.bin, 8388608 bytes",
        "bob is told: noise.bin from lab is complete: ",
        "the copy is the same",
    ];
    assert!(story.map(place).is_sorted(), "{lines:#?}");
}

/// Runs the embedded tracker in `data_dir`, uses it as a client, and interrupts it; returns its link.
fn track_once(data_dir: &Path, command: &str) -> TrackerLink {
    let mut child = example("embedded_tracker")
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let (sender, lines) = channel();
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
    thread::spawn(move || while output.next().is_some_and(|line| sender.send(line).is_ok()) {});
    let line = lines.recv_timeout(DEADLINE).expect("a line").expect("text");
    let link: TrackerLink = line.parse().expect("a link");

    let file = data_dir.with_extension("txt");
    std::fs::write(&file, format!("{line}\n")).expect("written");
    let mut client = mtq();
    client.args(["client", "--listen", "127.0.0.1:0", "--data-dir"]);
    client.arg(data_dir.with_extension("client")).arg("--trackers").arg(&file);
    let answer = run(client.env("MTQ_PASSWORD", "a long secret").args(command.split(' ')));
    assert!(answer.status.success(), "{command}: {answer:?}");

    kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    assert!(ended(&mut child).success());
    assert_eq!(lines.recv_timeout(DEADLINE).expect("a line").expect("text"), "stopped");
    link
}

#[test]
fn an_embedded_tracker_serves_until_interrupted_and_is_the_same_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().join("tracker");
    let first = track_once(&data_dir, "create-user alice");
    let second = track_once(&data_dir, "login alice");
    assert_eq!(first.peer_id(), second.peer_id());
}
