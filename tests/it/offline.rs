//! What needs no network: metafiles shown, files held against them, completions, manual pages.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mtq::hash;
use mtq::limits::{MAX_METAFILE_LEN, PIECE_LEN};
use mtq::manifest::{Manifest, PieceHashes};
use mtq::metainfo::Metainfo;
use mtq::piece::PieceLayout;
use mtq::swarm::hashing;
use mtq::torrent::Torrent;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{content, ended, mtq, outcome, run, wait_for, write_file};

const P: usize = PIECE_LEN as usize;

/// A file of four pieces and a bit, its metafile beside it, and nothing that runs.
struct Desk {
    dir: TempDir,
    content: Vec<u8>,
    meta: Metainfo,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let content = content(4 * P + 9, 5);
        let file = write_file(dir.path().join("data é.bin"), &content);
        let (manifest, _) = hashing::hash_file(&file, &|_| true).expect("hashed");
        let meta = meta("data é.bin", manifest);
        write_file(dir.path().join("data é.bin.mtorrent"), meta.to_text().as_bytes());
        Self { dir, content, meta }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        write_file(self.path(name), bytes)
    }

    fn metafile(&self) -> PathBuf {
        self.path("data é.bin.mtorrent")
    }

    /// Verifies with `--json`; the one line, and the exit status.
    fn verified(&self, path: &Path) -> (Value, i32) {
        let output = run(mtq().arg("verify").arg("--json").arg(self.metafile()).arg(path));
        (one_line(&output), status(&output))
    }
}

fn meta(name: &str, manifest: Manifest) -> Metainfo {
    let link = format!("mtq://tracker.example:4433#{}", "01".repeat(32));
    Metainfo {
        trackers: vec![link.parse().expect("a link")],
        group: "lab".parse().expect("name"),
        name: name.parse().expect("name"),
        manifest,
    }
}

fn one_line(output: &Output) -> Value {
    let text = text(&output.stdout);
    assert_eq!(text.lines().count(), 1, "{output:?}");
    let line: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(line["v"], 1);
    line
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("no signal killed it")
}

/// Runs what must fail, with nothing on standard output; returns its words and its status.
fn fails(command: &mut Command) -> (String, i32) {
    let output = run(command);
    assert!(output.stdout.is_empty(), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.starts_with("error: "), "{words}");
    assert_eq!(words.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{words}");
    (words, status(&output))
}

fn inspect(path: impl AsRef<OsStr>) -> Command {
    let mut command = mtq();
    command.arg("inspect").arg(path);
    command
}

#[test]
fn a_metafile_is_shown_to_people_and_to_scripts() {
    let desk = Desk::new();
    let head = desk.meta.manifest.head();
    let torrent = Torrent::new(&desk.meta.name, &desk.meta.manifest);
    let shown = run(&mut inspect(desk.metafile()));
    assert!(shown.status.success(), "{shown:?}");
    let link = desk.meta.trackers[0].to_string();
    let shown = text(&shown.stdout);
    for (label, value) in [
        ("name", "data é.bin"),
        ("group", "lab"),
        ("size", "2.0 MiB (2097161 bytes)"),
        ("pieces", "5 of 512.0 KiB"),
        ("SHA-1", &hash::sha1(&desk.content).to_string()),
        ("info hash", &head.info_hash().to_string()),
        ("BLAKE3", &hash::blake3(&desk.content).to_string()),
        ("content id", &desk.meta.manifest.content_id().to_string()),
        ("BitTorrent info hash", &torrent.info_hash().to_string()),
        ("trackers", &link),
    ] {
        let line = format!("{label:22}{value}");
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in\n{shown}");
    }

    let pieces = run(inspect(desk.metafile()).arg("--pieces"));
    let pieces = text(&pieces.stdout);
    let last = desk.meta.manifest.pieces()[4];
    assert_eq!(pieces.lines().count(), 5);
    let expected = format!("4 2097152 9 {} {}", last.sha1, last.blake3);
    assert_eq!(pieces.lines().last(), Some(expected.as_str()));

    let mut expected = json!({
        "name": "data é.bin",
        "group": "lab",
        "size": 2097161,
        "pieces": 5,
        "piece_length": 524288,
        "sha1": hash::sha1(&desk.content),
        "info_hash": head.info_hash(),
        "blake3": hash::blake3(&desk.content),
        "content_id": desk.meta.manifest.content_id(),
        "torrent_info_hash": torrent.info_hash(),
        "trackers": [link],
        "piece_hashes": null,
    });
    let line = one_line(&run(inspect(desk.metafile()).arg("--json")));
    assert_eq!(line, json!({"v": 1, "command": "inspect", "ok": true, "result": expected}));
    let line = one_line(&run(inspect(desk.metafile()).args(["--json", "--pieces"])));
    let rows = line["result"]["piece_hashes"].as_array().expect("rows").clone();
    expected["piece_hashes"] = json!(rows);
    assert_eq!(line["result"], expected);
    assert_eq!(rows.len(), 5);
    assert_eq!(
        rows[4],
        json!({"index": 4, "offset": 2097152, "length": 9, "sha1": last.sha1, "blake3": last.blake3})
    );
}

#[test]
fn what_is_no_metafile_gets_one_clear_line() {
    let desk = Desk::new();
    let good = desk.meta.to_text();
    let cut = desk.write("cut.mtorrent", &good.as_bytes()[..good.len() / 2]);
    let damaged = desk.write("bad.mtorrent", good.replace("size = 2097161", "size = 5").as_bytes());
    let later = desk.write("later.mtorrent", good.replace("version = 1", "version = 9").as_bytes());
    let huge = desk.path("huge.mtorrent");
    let file = File::create_new(&huge).expect("made");
    file.set_len(MAX_METAFILE_LEN + 1).expect("sparse");
    let book = desk.write("book.mtorrent", "a = 1\n".repeat(100_000).as_bytes());
    let odd = desk.dir.path().join(OsStr::from_bytes(b"odd \xff\x1b[2J.mtorrent"));
    fs::write(&odd, "nonsense").expect("written");
    for (path, words, exit) in [
        (&cut, "cut.mtorrent: not a .mtorrent file: ", 6),
        (&damaged, "bad.mtorrent: hash-string is not hex of 1 hashes", 6),
        (&later, "later.mtorrent: version 9 of the .mtorrent format is not known, only 1", 6),
        (&huge, "huge.mtorrent: not a .mtorrent file: it is over the limit of ", 6),
        (&book, "book.mtorrent: not a .mtorrent file: it has over 262144 bytes that are no ", 6),
        (&odd, "odd \u{fffd}\\u{1b}[2J.mtorrent: not a .mtorrent file: ", 6),
        (&desk.path("data é.bin"), "data é.bin: not a .mtorrent file: it is not text", 6),
        (&desk.path("none.mtorrent"), "none.mtorrent: No such file", 4),
        (&desk.path(""), "a directory, not a .mtorrent file", 1),
    ] {
        let (shown, status) = fails(&mut inspect(path));
        assert!(shown.contains(words), "{words}: {shown}");
        assert_eq!(status, exit, "{shown}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
        let (shown, status) = fails(mtq().arg("verify").arg(path).arg(desk.path("")));
        assert!(shown.contains(words), "{words}: {shown}");
        assert_eq!(status, exit, "{shown}");
    }
    let (shown, _) = fails(&mut inspect(desk.path("data é.bin")));
    assert!(shown.contains("\nhint: its metafile is ") && shown.contains(".bin.mtorrent\n"));
    let output = run(inspect(&damaged).arg("--json"));
    assert_eq!(one_line(&output)["error"]["code"], "bad-metafile");
    assert_eq!(status(&output), 6);
    for wrong in [vec!["inspect"], vec!["verify", "a"], vec!["verify", "a", "b", "c"]] {
        assert_eq!(status(&run(mtq().args(&wrong))), 2, "{wrong:?}");
    }
    let both = run(inspect(desk.metafile()).args(["--torrent", "--json"]));
    assert_eq!(status(&both), 2);
}

#[test]
fn a_torrent_goes_into_a_file_and_not_to_a_terminal() {
    let desk = Desk::new();
    let target = desk.path("data.torrent");
    let file = File::create_new(&target).expect("made");
    let written = inspect(desk.metafile()).arg("--torrent").stdout(file).status().expect("runs");
    assert!(written.success());
    let torrent = Torrent::new(&desk.meta.name, &desk.meta.manifest);
    assert_eq!(fs::read(&target).expect("written"), torrent.as_bytes());

    // An empty file makes one too, with a word of warning.
    let layout = PieceLayout::new(0).expect("fits");
    let manifest = Manifest::new(layout, hash::sha1(b""), Vec::new()).expect("as many");
    let empty = desk.write("empty.mtorrent", meta("empty", manifest).to_text().as_bytes());
    let output = run(inspect(empty).arg("--torrent"));
    assert!(output.stdout.ends_with(b"4:name5:empty12:piece lengthi524288e6:pieces0:ee"));
    assert!(text(&output.stderr).starts_with("warning: the file is empty"), "{output:?}");

    // The near end of a new pseudo-terminal is a terminal as well.
    let terminal = File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal");
    let refused = inspect(desk.metafile())
        .arg("--torrent")
        .stdout(terminal)
        .stderr(Stdio::piped())
        .spawn()
        .map(outcome)
        .expect("runs");
    assert_eq!(status(&refused), 2);
    let words = text(&refused.stderr);
    assert!(words.starts_with("error: a .torrent file is binary"), "{words}");
    assert!(words.contains("\nhint: put it in a file: mtq inspect --torrent "), "{words}");

    // A disk that is full is not passed over.
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let failed = inspect(desk.metafile())
        .arg("--torrent")
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .map(outcome)
        .expect("runs");
    assert_eq!(status(&failed), 7, "{failed:?}");
}

#[test]
fn a_file_that_is_right_is_ok_wherever_it_is() {
    let desk = Desk::new();
    let elsewhere = desk.write("elsewhere/another name", &desk.content);
    for path in [desk.path("data é.bin"), desk.path(""), elsewhere] {
        let output = run(mtq().arg("verify").arg(desk.metafile()).arg(&path));
        assert_eq!(status(&output), 0, "{output:?}");
        let words = text(&output.stdout);
        assert!(words.starts_with("ok: ") && words.ends_with(": 5 pieces, 2097161 bytes\n"));
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    let (line, exit) = desk.verified(&desk.path(""));
    assert_eq!(exit, 0);
    let result = json!({
        "path": desk.path("data é.bin"),
        "name": "data é.bin",
        "content_id": desk.meta.manifest.content_id(),
        "size": 2097161,
        "actual_size": 2097161,
        "pieces": 5,
        "good_pieces": 5,
        "good_bytes": 2097161,
        "wrong_pieces": 0,
        "wrong": [],
        "missing_pieces": 0,
        "missing": [],
        "sha1_matches": true,
    });
    assert_eq!(line, json!({"v": 1, "command": "verify", "ok": true, "result": result}));

    // An empty file, under a name that is not Unicode.
    let empty = desk.dir.path().join(OsStr::from_bytes(b"empty \xff"));
    fs::write(&empty, b"").expect("written");
    let (manifest, _) = hashing::hash_file(&empty, &|_| true).expect("hashed");
    let metafile = desk.write("empty.mtorrent", meta("empty", manifest).to_text().as_bytes());
    let output = run(mtq().arg("verify").arg(&metafile).arg(&empty));
    assert_eq!(status(&output), 0, "{output:?}");
    assert!(text(&output.stdout).ends_with("empty \u{fffd}: 0 pieces, 0 bytes\n"), "{output:?}");
}

#[test]
fn a_file_that_is_not_right_is_told_apart() {
    let desk = Desk::new();
    let range = |first: u32, last: u32| json!({"first": first, "last": last});
    let good = &desk.content;
    let mut wrong = good.clone();
    wrong[P] ^= 1;
    wrong[2 * P] ^= 1;
    wrong[4 * P] ^= 1;
    let mut part = good.clone();
    part[P..3 * P].fill(0);
    let mut both = part.clone();
    both[0] ^= 1;
    let longer = [good.as_slice(), b"xyz"].concat();
    let none = Vec::new();
    for (bytes, code, wrong, missing, good_bytes) in [
        (&wrong, "mismatch", vec![range(1, 2), range(4, 4)], vec![], 2 * P),
        (&both, "mismatch", vec![range(0, 0)], vec![range(1, 2)], P + 9),
        (&part, "incomplete", vec![], vec![range(1, 2)], 2 * P + 9),
        (&good[..3 * P + 1].to_vec(), "incomplete", vec![], vec![range(3, 4)], 3 * P),
        (&none, "incomplete", vec![], vec![range(0, 4)], 0),
        (&longer, "mismatch", vec![], vec![], 4 * P + 9),
    ] {
        let path = desk.write("copy", bytes);
        let (line, exit) = desk.verified(&path);
        assert_eq!((exit, &line["ok"]), (6, &json!(false)), "{line}");
        assert_eq!(line["error"]["code"], code, "{line}");
        let result = &line["result"];
        assert_eq!(result["wrong"], json!(wrong), "{line}");
        assert_eq!(result["missing"], json!(missing), "{line}");
        assert_eq!(result["good_bytes"], good_bytes, "{line}");
        assert_eq!(result["actual_size"], bytes.len(), "{line}");
        assert_eq!(result["sha1_matches"], Value::Null, "{line}");
        assert_eq!(&fs::read(&path).expect("there"), bytes, "it is only read");
    }
    for (bytes, words) in [
        (&wrong, "copy: 3 of 5 pieces wrong\n"),
        (&both, "copy: 1 of 5 pieces wrong, 2 missing\n"),
        (&part, "copy: 2 of 5 pieces missing, none wrong\n"),
        (
            &good[..3 * P].to_vec(),
            "copy: 2 of 5 pieces missing, none wrong, 524297 bytes too short\n",
        ),
        (&longer, "copy is 3 bytes too long; its first 2097161 are right\n"),
    ] {
        let path = desk.write("copy", bytes);
        let output = run(mtq().arg("verify").arg(desk.metafile()).arg(path));
        assert_eq!(status(&output), 6);
        assert!(text(&output.stderr).ends_with(words), "{words}: {output:?}");
    }
    let path = desk.write("copy", &both);
    let table = run(mtq().arg("verify").arg(desk.metafile()).arg(path));
    assert_eq!(
        text(&table.stdout),
        "right    2 of 5 pieces  524297 of 2097161 bytes\nwrong    1              0\n\
         missing  2              1-2\n"
    );
}

#[test]
fn an_unfinished_download_can_be_checked() {
    let desk = Desk::new();
    let name = format!("dest/.mtq/{}.part", desk.meta.manifest.content_id());
    let mut bytes = desk.content.clone();
    bytes[..3 * P].fill(0);
    let part = desk.write(&name, &bytes);
    let (line, exit) = desk.verified(&part);
    assert_eq!((exit, &line["error"]["code"]), (6, &json!("incomplete")), "{line}");
    assert_eq!(line["error"]["hint"], "the same get goes on with it");
    let result = &line["result"];
    let counts = [&result["good_pieces"], &result["wrong_pieces"], &result["missing_pieces"]];
    assert_eq!(counts, [2, 0, 3]);
    // Whoever names the destination is shown the way.
    let (line, exit) = desk.verified(&desk.path("dest"));
    assert_eq!((exit, &line["error"]["code"]), (4, &json!("not-found")), "{line}");
    let hint = line["error"]["hint"].as_str().expect("a hint");
    assert_eq!(hint, format!("what there is of it is {}", part.display()));
}

#[test]
fn mistakes_with_files_have_their_codes() {
    let desk = Desk::new();
    for (path, code, exit) in [
        (desk.path("none"), "not-found", 4),
        (desk.path("data é.bin/x"), "disk", 7),
        (PathBuf::from("/dev/null"), "not-a-file", 1),
    ] {
        let (line, status) = desk.verified(&path);
        assert_eq!((&line["error"]["code"], status), (&json!(code), exit), "{line}");
        assert_eq!(line.get("result"), None, "{line}");
    }
    // A directory in which the name is a directory.
    fs::create_dir_all(desk.path("dir/data é.bin")).expect("made");
    let (line, _) = desk.verified(&desk.path("dir"));
    assert_eq!(line["error"]["code"], "not-a-file");
    // The wrong way round.
    let swapped = run(mtq().arg("verify").arg(desk.path("data é.bin")).arg(desk.metafile()));
    assert_eq!(status(&swapped), 6);
    let words = text(&swapped.stderr);
    assert!(words.contains("\nhint: the metafile comes first: mtq verify "), "{words}");
    assert!(
        words.ends_with(
            "data é.bin.mtorrent {}\n"
                .replace("{}", &desk.path("data é.bin").display().to_string())
                .as_str()
        ),
        "{words}"
    );
}

#[test]
fn false_hashes_are_laid_to_the_metafile() {
    let desk = Desk::new();
    let honest = &desk.meta.manifest;
    let pieces = honest.pieces().to_vec();
    let whole = Manifest::new(honest.layout(), hash::sha1(b"other"), pieces).expect("as many");
    let mut pieces = honest.pieces().to_vec();
    pieces[2].sha1 = hash::sha1(b"other");
    let piece = Manifest::new(honest.layout(), hash::sha1(b"other"), pieces).expect("as many");
    for (manifest, words) in
        [(whole, "every piece is right and the SHA-1 of the whole is not"), (piece, "piece 2 of ")]
    {
        let metafile = desk.write("false", meta("x", manifest).to_text().as_bytes());
        let data = desk.path("data é.bin");
        let output = run(mtq().args(["verify", "--json"]).arg(metafile).arg(data));
        let line = one_line(&output);
        assert_eq!((&line["error"]["code"], status(&output)), (&json!("false-manifest"), 6));
        assert!(line["error"]["message"].as_str().expect("words").contains(words), "{line}");
        assert!(line["error"]["message"].as_str().expect("words").ends_with("are false"), "{line}");
    }
}

#[test]
fn a_signal_ends_it_with_130_and_no_result() {
    let desk = Desk::new();
    // 16 GiB of nothing: far more than can be hashed before the signal comes.
    let count = 32 * 1024;
    let layout = PieceLayout::new(count * u64::from(PIECE_LEN)).expect("fits");
    let hashes = PieceHashes { sha1: hash::sha1(b""), blake3: hash::blake3(b"") };
    let manifest =
        Manifest::new(layout, hash::sha1(b""), vec![hashes; count as usize]).expect("as many");
    let metafile = desk.write("long.mtorrent", meta("long", manifest).to_text().as_bytes());
    let file = File::create_new(desk.path("long")).expect("made");
    file.set_len(layout.size()).expect("sparse");
    let child = mtq()
        .args(["verify", "--json"])
        .arg(&metafile)
        .arg(desk.path("long"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mtq runs");
    // From when it reads the file it handles signals.
    let open = format!("/proc/{}/fd", child.id());
    wait_for("the file to be read", || {
        let descriptors = fs::read_dir(&open).ok()?.flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target == desk.path("long")).then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    let output = outcome(child);
    assert_eq!(status(&output), 130, "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(text(&output.stderr), "interrupted\n");
}

#[test]
fn completions_know_every_verb() {
    for (shell, sign) in
        [("bash", "complete -F _mtq"), ("zsh", "#compdef mtq"), ("fish", "complete -c mtq")]
    {
        let output = run(mtq().args(["completions", shell]));
        assert!(output.status.success(), "{output:?}");
        let script = text(&output.stdout);
        assert!(script.contains(sign), "{shell}");
        for word in
            ["inspect", "verify", "tracker", "completions", "list-files", "torrent", "roster"]
        {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if shell == "bash" && Command::new("bash").arg("--version").output().is_ok() {
            let mut check = Command::new("bash");
            let mut check = check.arg("-n").stdin(Stdio::piped()).spawn().expect("bash is here");
            let mut input = check.stdin.take().expect("piped");
            input.write_all(script.as_bytes()).expect("bash reads");
            drop(input);
            assert!(ended(&mut check).success());
        }
    }
    assert_eq!(status(&run(mtq().args(["completions", "tcsh"]))), 2);
}

#[test]
fn every_command_has_a_manual_page() {
    let root = run(mtq().arg("man"));
    assert!(root.status.success());
    let root = text(&root.stdout);
    let titled = |page: &str, name: &str| {
        // Two requests of roff's own stand before the title.
        let title = page.lines().find(|line| !line.starts_with(".ie") && !line.starts_with(".el"));
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(".TH {name} 1 \" \" \"mtq {version}\" \"mtq manual\"");
        assert_eq!(title, Some(expected.as_str()));
    };
    titled(&root, "mtq");
    for words in ["mtq\\-verify(1)", "mtq\\-tracker(1)", ".SH \"EXIT STATUS\"", "interrupted"] {
        assert!(root.contains(words), "{words}: {root}");
    }
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("man/man1");
    for _ in 0..2 {
        let made = run(mtq().args(["man", "--out"]).arg(&out));
        assert!(made.status.success(), "{made:?}");
    }
    assert_eq!(fs::read_to_string(out.join("mtq.1")).expect("there"), root);
    for name in [
        "mtq-inspect",
        "mtq-verify",
        "mtq-man",
        "mtq-completions",
        "mtq-certs",
        "mtq-demo",
        "mtq-tracker",
        "mtq-tracker-user-reset-password",
        "mtq-tracker-roster-add",
        "mtq-client",
        "mtq-client-list-files",
        "mtq-client-get",
    ] {
        let page = fs::read_to_string(out.join(format!("{name}.1"))).expect(name);
        titled(&page, name);
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{page}");
    }
    assert!(!out.join("mtq-help.1").exists() && !out.join("mtq-client-help.1").exists());
    let taken = dir.path().join("man/man1/mtq.1");
    let (words, exit) = fails(mtq().args(["man", "--out"]).arg(taken));
    assert_eq!(exit, 7, "{words}");
}
