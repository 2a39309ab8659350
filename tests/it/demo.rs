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
fn kept_demos_never_mix() {
    let dir = tempfile::tempdir().expect("temp dir");
    let keep = dir.path().join("kept");
    let demo = || run(mtq().args(["demo", "--peers", "2", "--size", "1MiB", "--keep"]).arg(&keep));
    assert!(demo().status.success());
    assert!(keep.join("bob/demo file.bin").exists());
    assert!(keep.join("tracker.log").exists());
    assert_eq!(demo().status.code(), Some(7), "an existing directory is refused");
}
