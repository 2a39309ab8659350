//! Many files with one command: by a pattern, by a list, several paths; what goes wrong with some of them,
//! and doing it again.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::world::{Client, World, content, mtq, outcome, wait_for};

const FILES: usize = 40;

/// The name of a file, and what is in it: two of five have several pieces, one nothing.
fn file(number: usize) -> (String, Vec<u8>) {
    let len = match number % 5 {
        0 => 600_000 + number,
        1 => 1_100_000 + number,
        2 if number == 2 => 0,
        _ => 30_000 + number,
    };
    (format!("set {number:02}.bin"), content(len, number as u64))
}

/// Alice shares the files with one command; bob is in her group.
fn shared(world: &World) -> [Client; 2] {
    let [mut alice, bob] = world.lab(["alice", "bob"]);
    let paths = (0..FILES).map(|number| {
        let (name, bytes) = file(number);
        let path = world.write(&format!("src/{name}"), &bytes);
        format!("'{}'", path.display())
    });
    let paths = paths.collect::<Vec<_>>().join(" ");
    let missing = world.path("src/missing.bin");
    let line = format!("share {paths} '{}' lab", missing.display());
    alice.say(&line);
    let answer = alice.answer();
    assert_eq!(answer["ok"], false, "{answer}");
    assert_eq!(answer["error"]["code"], "not-found", "{answer}");
    assert_eq!(answer["result"]["count"], FILES, "all others are shared");
    let rows = answer["result"]["shares"].as_array().expect("rows");
    assert_eq!(rows.len(), FILES + 1);
    assert_eq!(rows[FILES]["error"]["code"], "not-found");
    assert!(rows[..FILES].iter().all(|row| row["error"].is_null()), "{answer}");
    let listed = alice.ok("list-files lab");
    assert_eq!(listed["files"].as_array().expect("files").len(), FILES);
    [alice, bob]
}

fn check(directory: &Path, numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        let (name, bytes) = file(number);
        assert!(fs::read(directory.join(&name)).expect(&name) == bytes, "{name}");
    }
}

fn names(answer: &Value) -> Vec<&str> {
    let files = answer["files"].as_array().expect("files");
    files.iter().map(|file| file["name"].as_str().expect("a name")).collect()
}

#[test]
fn a_pattern_fetches_all_that_match_and_what_is_there_is_not_fetched_again() {
    let world = World::new();
    let [alice, mut bob] = shared(&world);
    let into = world.make_dir("in");
    let begun = bob.ok(&format!("get --glob lab 'SET 0?.*' {} --wait", into.display()));
    let expected: Vec<_> = (0..10).map(|number| file(number).0).collect();
    assert_eq!(names(&begun), expected);
    assert_eq!((&begun["count"], &begun["group"]), (&10.into(), &"lab".into()));
    let size: usize = (0..10).map(|number| file(number).1.len()).sum();
    assert_eq!(begun["size"], size);
    let rows = begun["downloads"].as_array().expect("waited for");
    assert!(rows.len() == 10 && rows.iter().all(|row| row["state"] == "seeding"), "{begun}");
    check(&into, 0..10);
    assert_eq!(fs::read_dir(&into).expect("a directory").count(), 10, "no part files are left");

    // The same again, and with it the rest.
    let again = bob.ok(&format!("get --regex lab '^set [0-3]\\d' {} --wait", into.display()));
    assert_eq!((&again["count"], names(&again).len()), (&FILES.into(), FILES));
    assert_eq!(again["stored_bytes"], size, "what is there is not fetched again");
    check(&into, 0..FILES);
    assert_eq!(fs::read_dir(&into).expect("a directory").count(), FILES);
    let received: u64 = again["downloads"].as_array().expect("rows")[..10]
        .iter()
        .map(|row| row["received_bytes"].as_u64().expect("a number"))
        .sum();
    assert_eq!(received, size as u64, "once");

    assert_eq!(bob.err(&format!("get --glob lab '*.iso' {}", into.display())), "no-such-file");
    assert_eq!(bob.err(&format!("get --regex lab '(' {}", into.display())), "bad-pattern");
    assert_eq!(bob.err(&format!("get --glob lab '*' {}/none", into.display())), "no-destination");
    assert_eq!(bob.err(&format!("get --glob lab '*' '{}/set 01.bin'", into.display())), "exists");
    assert_eq!(bob.err("get --glob lab '*'"), "usage");
    assert_eq!(bob.err(&format!("get --list lab - {}", into.display())), "usage");
    drop((alice, bob));
}

/// Runs one command of bob's with `input` on its standard input.
fn one(world: &World, words: &[&str], input: &str) -> (Value, String, i32) {
    let mut child = mtq()
        .arg("client")
        .args(words)
        .arg("--trackers")
        .arg(world.trackers())
        .arg("--data-dir")
        .arg(world.path("bob.data"))
        .env("MTQ_LISTEN", "127.0.0.1:0")
        .current_dir(world.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mtq runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("read");
    let Output { status, stdout, stderr } = outcome(child);
    let json = serde_json::from_slice(&stdout).unwrap_or_default();
    let words = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
    (json, words, status.code().expect("no signal killed it"))
}

#[test]
fn a_list_fetches_what_it_names_and_says_of_each_of_the_others_why_not() {
    let world = World::new();
    let [alice, bob] = shared(&world);
    bob.quit();
    world.make_dir("in");
    let list = "set 03.bin\nnobody's.bin\n\nalice/set 04.bin\nset 03.bin\nid:00000000\n";
    let get = ["get", "--list", "lab", "-", "in"];
    let (json, _, status) = one(&world, &[&get[..], &["--json"]].concat(), list);
    assert_eq!(status, 4, "{json}");
    assert_eq!((&json["ok"], &json["error"]["code"]), (&false.into(), &"no-such-file".into()));
    let result = &json["result"];
    assert_eq!(result["count"], 2, "{result}");
    let codes: Vec<_> = result["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| (file["asked"].as_str().expect("a name"), file["error"]["code"].as_str()))
        .collect();
    let no = Some("no-such-file");
    let expected = [
        ("set 03.bin", None),
        ("nobody's.bin", no),
        ("alice/set 04.bin", None),
        ("id:00000000", no),
    ];
    assert_eq!(codes, expected);
    let states = result["downloads"].as_array().expect("waited for");
    assert!(states.len() == 2 && states.iter().all(|row| row["state"] == "seeding"), "{result}");
    check(&world.path("in"), 3..5);

    // For a person: each failure a line, the last the command's.
    let (_, words, status) = one(&world, &get, list);
    assert_eq!(status, 4, "{words}");
    assert!(words.contains("2 files are already in"), "{words}");
    let error = words.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(error.contains("2 of 4 files are not downloaded"), "{words}");
    assert!(words.contains("hint: list-files GROUP"), "{words}");

    // From a file, relative to where the command is given.
    fs::write(world.path("list.txt"), "set 05.bin\nset 06.bin\n").expect("written");
    let (_, words, status) = one(&world, &["get", "--list", "lab", "list.txt", "in"], "");
    assert_eq!(status, 0, "{words}");
    assert!(words.contains("2 files complete in"), "{words}");
    check(&world.path("in"), 3..7);
    drop(alice);
}

#[test]
fn more_than_there_are_turns_for_come_back_after_a_kill_and_are_completed() {
    let world = World::new();
    let [mut alice, mut bob] = shared(&world);
    // So slow that most wait for their turn, or are half there.
    bob.ok("limit --down 2MiB");
    let into = world.make_dir("in");
    bob.ok(&format!("get --glob lab '*' {}", into.display()));
    let is_whole = |row: &Value| row["state"] == "seeding";
    wait_for("some files", || {
        let rows = bob.ok("downloads")["downloads"].clone();
        let rows = rows.as_array().expect("rows");
        assert_eq!(rows.len(), FILES);
        (rows.iter().any(is_whole) && !rows.iter().all(is_whole)).then_some(())
    });
    bob.kill();
    let mut bob = world.client("bob");
    bob.ok("login bob bob-secret");
    let again = bob.ok(&format!("get --glob lab '*' {} --wait", into.display()));
    assert_eq!(names(&again).len(), FILES);
    check(&into, 0..FILES);
    assert_eq!(fs::read_dir(&into).expect("a directory").count(), FILES, "nothing twice");
    // Peers are told of what is whole, many at once.
    wait_for("seeders", || {
        let files = alice.ok("list-files lab")["files"].clone();
        let files = files.as_array().expect("files");
        files.iter().all(|file| file["seeders"] == 2).then_some(())
    });
}
