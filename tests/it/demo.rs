//! The README's first command.

use crate::world::{mtq, run};

#[test]
fn the_demo_ends_with_equal_copies_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("temp dir");
    let output =
        run(mtq().args(["demo", "--peers", "3", "--size", "9MiB"]).env("TMPDIR", dir.path()));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("all copies are equal to the source"), "{stdout}");
    let table: Vec<_> = stdout.lines().skip_while(|line| !line.starts_with("peer")).collect();
    assert!(table[0].starts_with("peer   seconds  MB/s"), "{stdout}");
    let sha1 = |row: &str| row.split_whitespace().last().unwrap_or("").to_owned();
    assert_eq!(sha1(table[1]).len(), 40, "{stdout}");
    assert!(table[1..4].iter().all(|row| sha1(row) == sha1(table[1])), "{stdout}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}

#[test]
fn a_tracker_killed_in_the_middle_is_missed_by_nobody() {
    let dir = tempfile::tempdir().expect("temp dir");
    let output = run(mtq()
        .args(["demo", "--scenario", "failover", "--peers", "3", "--size", "24MiB"])
        .env("TMPDIR", dir.path()));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    // Each line begins with the time.
    let lines: Vec<_> = stdout.lines().filter_map(|line| line.split_once(" s  ")).collect();
    let place = |word: &str| {
        let found = lines.iter().position(|(_, what)| what.contains(word));
        found.unwrap_or_else(|| panic!("{word}: {stdout}"))
    };
    let order = ["the one in use, is KILLED", "none failed", "is up again", "both are level"];
    assert!(order.map(place).is_sorted(), "{stdout}");
    assert!(
        lines[place("downloads: ")].1.ends_with("2 of 48 pieces each, every piece once, none bad")
    );
    let ends: Vec<_> =
        ["  tracker 1: ", "  tracker 2: "].map(|tracker| lines[place(tracker)].1).into();
    let digest = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
    assert_eq!(digest(ends[0]).len(), 64, "{stdout}");
    assert_eq!(digest(ends[0]), digest(ends[1]), "{stdout}");
    assert!(
        stdout.ends_with("all copies are equal to the source, and both trackers know the same\n")
    );
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}

#[test]
fn kept_demos_never_mix() {
    let dir = tempfile::tempdir().expect("temp dir");
    let keep = dir.path().join("kept");
    let demo = || run(mtq().args(["demo", "--peers", "2", "--size", "1MiB", "--keep"]).arg(&keep));
    assert!(demo().status.success());
    assert!(keep.join("bob/demo file.bin").exists());
    assert!(keep.join("tracker1.log").exists());
    assert_eq!(demo().status.code(), Some(7), "an existing directory is refused");
}
