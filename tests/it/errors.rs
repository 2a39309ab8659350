//! Wrong input of every kind: one clear line, a hint where there is a next step, the right exit
//! status, and nothing half-made left behind.

use std::fs;
use std::process::Output;

use crate::world::{World, free_port, mtq, quoted, run, run_reading};

/// Standard error and the exit status.
fn words(output: &Output) -> (String, i32) {
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap_or(-1))
}

#[test]
fn each_mistake_has_its_code_and_status() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let carol = world.user("carol");
    carol.quit();
    let file = world.write("f.bin", b"hello");
    alice.ok(&format!("share {} lab", quoted(&file)));
    let dest = world.make_dir("dest");
    let junk = world.write("junk.mtorrent", b"not a metafile");
    let taken = world.write("dest/taken", b"mine");
    let login = "login carol carol-secret\n";
    let (file, dest_text) = (quoted(&file), quoted(&dest));
    for (line, code, status) in [
        ("login carol wrong".to_owned(), "wrong-credentials", 3),
        ("login nobody wrong".to_owned(), "wrong-credentials", 3),
        ("create-user carol again".to_owned(), "user-exists", 3),
        ("create-user dave abc".to_owned(), "bad-password", 3),
        ("list-files lab".to_owned(), "not-logged-in", 3),
        (format!("{login}login bob bob-secret"), "logged-in-as-other", 3),
        (format!("{login}create-group lab"), "group-exists", 3),
        (format!("{login}list-files lab"), "not-a-member", 3),
        (format!("{login}share {file} lab"), "not-a-member", 3),
        (format!("{login}get lab f.bin {dest_text}"), "not-a-member", 3),
        (format!("{login}accept-request lab carol"), "not-a-member", 3),
        (format!("{login}list-files nowhere"), "no-such-group", 4),
        (format!("{login}join-group nowhere"), "no-such-group", 4),
        (format!("{login}get {} {dest_text}", quoted(&junk)), "bad-metafile", 6),
        (format!("{login}get /no/such.mtorrent {dest_text}"), "not-found", 4),
        ("frobnicate".to_owned(), "usage", 2),
        ("share 'unclosed".to_owned(), "usage", 2),
        ("get lab".to_owned(), "usage", 2),
        ("get a b c".to_owned(), "not-logged-in", 3),
        ("join-group 'No Such!'".to_owned(), "usage", 2),
        ("create-user dave".to_owned(), "password-needed", 2),
    ] {
        // Each begins with nobody logged in.
        let _ = fs::remove_file(world.path("carol.data/user"));
        let output = world.script("carol", &["--json"], &format!("{line}\nwhoami\n"));
        let (stderr, actual) = words(&output);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last = stdout.lines().last().unwrap_or("");
        assert!(last.contains(&format!("\"code\":\"{code}\"")), "{line}: {stdout}{stderr}");
        assert_eq!(actual, status, "{line}: {stderr}");
        assert!(!stdout.contains("whoami"), "{line}: the script went on");
        let errors = stderr.lines().filter(|l| l.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{line}: {stderr}");
    }
    // For a member.
    let missing = world.path("none/deep");
    for (line, code) in [
        ("share /no/such/file lab".to_owned(), "not-found"),
        (format!("share {dest_text} lab"), "not-a-file"),
        (format!("share {file} lab --name '../x'"), "usage"),
        (format!("share {file} lab --name '/etc/x'"), "usage"),
        (format!("get lab none {dest_text}"), "no-such-file"),
        (format!("get lab f.bin {}", quoted(&missing)), "no-destination"),
        (format!("get lab f.bin {}", quoted(&taken)), "exists"),
        ("get lab f.bin /proc".to_owned(), "not-found"),
        ("accept-request lab zoe".to_owned(), "not-the-owner"),
        ("stop-share lab f.bin".to_owned(), "not-shared"),
    ] {
        assert_eq!(bob.err(&line), code, "{line}");
    }
    assert_eq!(alice.err("accept-request lab zoe"), "no-such-request");
    assert_eq!(fs::read(&taken).expect("still there"), b"mine");
    let left: Vec<_> = fs::read_dir(&dest).expect("readable").collect();
    assert_eq!(left.len(), 1, "nothing half-made: {left:?}");
    bob.quit();
    alice.quit();
}

#[test]
fn control_characters_in_a_name_are_refused_and_never_printed() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    let path = world.write("evil\x1b[2J", b"x");
    alice.say(&format!("share {} lab", quoted(&path)));
    let answer = alice.answer();
    assert_eq!(answer["error"]["code"], "bad-name");
    assert!(!answer.to_string().contains('\x1b'));
    alice.ok(&format!("share {} lab --name tame", quoted(&path)));
    // A directory whose name is not Unicode, reached by one that is.
    use std::os::unix::ffi::OsStrExt as _;
    let odd = world.path(std::ffi::OsStr::from_bytes(b"odd \xff"));
    fs::create_dir(&odd).expect("made");
    std::os::unix::fs::symlink(&odd, world.path("plain")).expect("linked");
    fs::write(odd.join("f"), b"y").expect("written");
    alice.ok(&format!("share {} lab", quoted(&world.path("plain/f"))));
    alice.ok("downloads");
    alice.quit();
}

#[test]
fn a_script_stops_at_the_first_failure_unless_told_to_go_on() {
    let world = World::new();
    let script = "# a comment\n\ncreate-user alice secret\nlogin alice wrong\nlogin alice secret\n\
                  list-files nowhere\nwhoami\nquit\n";
    let output = world.script("alice", &[], script);
    let (stderr, status) = words(&output);
    assert_eq!(status, 3);
    assert_eq!(stderr, "error: line 4: wrong user name or password\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "user alice created\n");

    let script = script.replace("create-user", "#");
    let output = world.script("alice", &["--keep-going"], &script);
    let (stderr, status) = words(&output);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(status, 3, "the first failure's");
    assert!(stderr.contains("hint: list-groups shows those there are"), "{stderr}");
    assert!(stdout.starts_with("logged in as alice\nalice, on device "), "{stdout}");
}

#[test]
fn passwords_come_from_the_environment_too() {
    let world = World::new();
    let mut command = world.client_command("alice");
    let input = world.write("script", b"create-user alice\nlogin alice\nquit\n");
    let input = fs::File::open(input).expect("opens");
    let output = run_reading(command.env("MTQ_PASSWORD", "from the environment"), input);
    assert!(output.status.success(), "{output:?}");
    let login = world.script("alice", &[], "login alice 'from the environment'\n");
    assert!(login.status.success());
}

#[test]
fn no_tracker_and_the_wrong_tracker_are_told_apart() {
    let world = World::new();
    let output = run(mtq().args(["certs", "--out"]).arg(world.path("other")).arg("127.0.0.1:9"));
    assert!(output.status.success());
    let stranger = fs::read_to_string(world.path("other/tracker_info.txt")).expect("readable");
    // The stranger's identity at our tracker's address.
    let swapped = stranger.replace("127.0.0.1:9", &format!("127.0.0.1:{}", world.port));
    fs::write(world.trackers(), swapped).expect("written");
    let output = world.script("alice", &[], "create-user alice secret\n");
    let (stderr, status) = words(&output);
    assert_eq!(status, 5);
    assert!(stderr.contains("it answers as"), "{stderr}");
    assert!(stderr.contains("hint: ask the operator"), "{stderr}");

    let nobody = stranger.replace("127.0.0.1:9", &format!("127.0.0.1:{}", free_port()));
    fs::write(world.trackers(), nobody).expect("written");
    let output = world.script("alice", &["--json"], "create-user alice secret\n");
    let (stderr, status) = words(&output);
    assert_eq!(status, 5);
    assert!(stderr.starts_with("error: line 1: no tracker can be reached: "), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"code\":\"no-tracker\""));

    fs::write(world.trackers(), "mtq://nonsense\n").expect("written");
    let (stderr, status) = words(&world.script("alice", &[], "whoami\n"));
    assert_ne!(status, 0);
    assert!(stderr.contains("tracker_info.txt: line 1: "), "{stderr}");
}

#[test]
fn identities_are_never_overwritten_and_never_exposed() {
    let world = World::new();
    let again = run(mtq().args(["certs", "--out"]).arg(world.path("net")).arg("127.0.0.1:9"));
    assert_eq!(again.status.code(), Some(7));
    let bad = run(mtq().args(["certs", "--out"]).arg(world.path("new")).arg("no-port"));
    assert_eq!(bad.status.code(), Some(2));
    assert!(!world.path("new").exists(), "nothing half-made");

    use std::os::unix::fs::PermissionsExt as _;
    let key = world.path("net/tracker1.pem");
    let mode = fs::metadata(&key).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("chmod");
    let exposed = run(mtq()
        .args(["tracker", "--listen", "127.0.0.1:0", "--identity"])
        .arg(&key)
        .arg("--data-dir")
        .arg(world.path("t2")));
    let (stderr, status) = words(&exposed);
    assert_eq!(status, 7, "{stderr}");
    assert!(stderr.contains("hint: chmod 600"), "{stderr}");
}

#[test]
fn lines_too_long_and_not_text_are_refused_and_the_next_one_is_read() {
    let world = World::new();
    let mut script = b"whoami \xff\n".to_vec();
    script.extend(std::iter::repeat_n(b'x', 100_000));
    script.extend(b"\nwhoami\n");
    let path = world.write("script", &script);
    let output = run_reading(
        world.client_command("alice").args(["--json", "--keep-going"]),
        fs::File::open(path).expect("opens"),
    );
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let oks: Vec<_> = stdout.lines().map(|line| line.contains("\"ok\":true")).collect();
    assert_eq!(oks, [false, false, true], "{stdout}");
    assert_eq!(output.status.code(), Some(2));
}
