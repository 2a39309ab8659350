//! One command a process: with an agent that runs, with none, ten at once, and on the bare socket.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::world::{
    DEADLINE, Watch, World, content, ended, mtq, outcome, run, run_reading, terminate, wait_for,
};

/// The command line of one command of a user.
fn command(world: &World, user: &str, words: &[&str]) -> Command {
    let mut command = mtq();
    command
        .arg("client")
        .args(words)
        .arg("--trackers")
        .arg(world.trackers())
        .arg("--data-dir")
        .arg(world.path(format!("{user}.data")))
        .env("MTQ_LISTEN", "127.0.0.1:0")
        .env("MTQ_PASSWORD", format!("{user}-secret"))
        .current_dir(world.dir.path());
    command
}

/// Runs one command; what it printed, and its exit status.
fn one(world: &World, user: &str, words: &[&str]) -> (String, String, i32) {
    told(&run(&mut command(world, user, words)))
}

fn told(output: &Output) -> (String, String, i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().expect("no signal killed it"))
}

/// Runs one command that must succeed; its result.
fn ok(world: &World, user: &str, words: &[&str]) -> Value {
    let (stdout, stderr, status) = one(world, user, &[words, &["--json"]].concat());
    assert_eq!(status, 0, "{words:?}: {stdout}{stderr}");
    let answer: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!(answer["ok"], true, "{words:?}: {answer}");
    answer["result"].clone()
}

/// A process that ends with its test.
struct Running(Child);

impl Running {
    /// Starts one command, and returns when it says `words` on standard error.
    fn start(mut command: Command, words: &str) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mtq runs");
        let _watch = Watch::over(&child);
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let said = lines.by_ref().map_while(Result::ok).find(|line| line.contains(words));
        assert!(said.is_some(), "it ended without {words}");
        // What else it says is read, or it would wait for a reader.
        thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    /// Starts what says far more than a pipe holds, which nobody reads before its end.
    fn unread(mut command: Command) -> Self {
        command.env("MTQ_LOG", "trace").stdin(Stdio::null()).stderr(Stdio::piped());
        Self(command.stdout(Stdio::null()).spawn().expect("mtq runs"))
    }

    fn daemon(world: &World, user: &str) -> Self {
        Self::start(command(world, user, &["daemon"]), "the agent is up")
    }

    fn end(mut self) -> i32 {
        terminate(&self.0);
        ended(&mut self.0).code().expect("no signal killed it")
    }
}

/// Bytes that a full pipe holds at least, where lines leave room at the ends of its pages.
const PIPE: usize = 32 * 1024;

#[test]
fn whoever_does_not_read_what_is_said_holds_up_nobody() {
    let world = World::without_tracker();
    let tracker = Running::unread(world.tracker_command());
    wait_for("the tracker", || world.operate("status").status.success().then_some(()));
    let agent = Running::unread(command(&world, "alice", &["daemon"]));
    let socket = world.path("alice.data/control.sock");
    wait_for("the agent", || UnixStream::connect(&socket).ok());
    ok(&world, "alice", &["create-user", "alice"]);
    ok(&world, "alice", &["login", "alice"]);
    for index in 0..20 {
        let name = format!("file{index}");
        world.write(&name, &content(100, index));
        ok(&world, "alice", &["share", &name, "public"]);
    }
    for (mut process, expected) in [(agent, 130), (tracker, 0)] {
        terminate(&process.0);
        assert_eq!(ended(&mut process.0).code(), Some(expected));
        let mut said = Vec::new();
        let unread = process.0.stderr.as_mut().expect("piped");
        unread.read_to_end(&mut said).expect("read");
        assert!(said.len() >= PIPE, "only {} bytes", said.len());
    }
}

#[test]
fn events_end_with_their_reader() {
    let world = World::new();
    let daemon = Running::daemon(&world, "alice");
    ok(&world, "alice", &["create-user", "alice"]);
    ok(&world, "alice", &["login", "alice"]);
    let mut events = command(&world, "alice", &["events", "--json"]);
    let mut events = Running(events.stdout(Stdio::piped()).spawn().expect("mtq runs"));
    drop(events.0.stdout.take());
    let mut count = 0;
    let status = wait_for("the end", || {
        // It may not have listened to the first yet.
        count += 1;
        let name = world.write(&format!("file{count}"), &content(100, count));
        ok(&world, "alice", &["share", name.to_str().expect("text"), "public"]);
        events.0.try_wait().expect("reaped")
    });
    assert_eq!(status.code(), Some(0));
    assert_eq!(daemon.end(), 130);
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Alice, who owns `lab`, and bob, who is in it; neither has an agent.
fn lab() -> World {
    let world = World::new();
    for user in ["alice", "bob"] {
        ok(&world, user, &["create-user", user]);
        ok(&world, user, &["login", user]);
    }
    ok(&world, "alice", &["create-group", "lab"]);
    ok(&world, "bob", &["join-group", "lab"]);
    ok(&world, "alice", &["accept-request", "lab", "bob"]);
    world
}

#[test]
fn without_an_agent_each_command_runs_one_for_as_long_as_it_takes() {
    let world = lab();
    let bytes = content(3_000_000, 1);
    world.write("a b.bin", &bytes);
    let share =
        Running::start(command(&world, "alice", &["share", "a b.bin", "lab"]), "sharing until");
    wait_for("the seeder", || {
        let files = ok(&world, "bob", &["list-files", "lab"]);
        (files["files"][0]["seeders"] == 1).then_some(())
    });
    world.make_dir("in");
    let (stdout, stderr, status) = one(&world, "bob", &["get", "lab", "a b.bin", "in"]);
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.contains("downloading a b.bin") && stdout.contains("complete"), "{stdout}");
    assert_eq!(fs::read(world.path("in/a b.bin")).expect("there"), bytes);
    assert_eq!(share.end(), 130);
    wait_for("its end", || {
        let files = ok(&world, "bob", &["list-files", "lab"]);
        (files["files"][0]["seeders"] == 0).then_some(())
    });
}

#[test]
fn ten_processes_at_once_with_an_agent_and_without() {
    let world = lab();
    for with_agent in [true, false] {
        let agent = with_agent.then(|| Running::daemon(&world, "alice"));
        for number in 0..4 {
            let name = format!("{with_agent}{number}.bin");
            world.write(&name, &content(700_000 + number, number as u64));
        }
        let names: Vec<_> = (0..4).map(|number| format!("{with_agent}{number}.bin")).collect();
        let mut lines: Vec<Vec<&str>> = vec![
            vec!["list-files", "lab"],
            vec!["list-groups"],
            vec!["whoami"],
            vec!["status"],
            vec!["list-members", "lab"],
            vec!["downloads"],
        ];
        if with_agent {
            lines.extend(names.iter().map(|name| vec!["share", name.as_str(), "lab"]));
        } else {
            lines.extend([vec!["search", "true"], vec!["devices"], vec!["limit"], vec!["peers"]]);
        }
        let children: Vec<_> = lines
            .iter()
            .map(|words| {
                let mut command = command(&world, "alice", words);
                let child = command.stdin(Stdio::null()).stdout(Stdio::piped());
                child.stderr(Stdio::piped()).spawn().expect("mtq runs")
            })
            .collect();
        for (child, words) in children.into_iter().zip(&lines) {
            let (stdout, stderr, status) = told(&outcome(child));
            assert_eq!(status, 0, "{words:?}: {stdout}{stderr}");
        }
        if let Some(agent) = agent {
            let rows = ok(&world, "alice", &["downloads"]);
            assert_eq!(rows["downloads"].as_array().expect("rows").len(), 4);
            assert_eq!(one(&world, "alice", &["quit"]).2, 0);
            drop(agent);
        }
    }
}

#[test]
fn a_data_directory_has_one_agent_and_everybody_finds_it() {
    let world = lab();
    let daemon = Running::daemon(&world, "alice");
    let (_, stderr, status) = one(&world, "alice", &["daemon"]);
    assert_eq!(status, 7, "{stderr}");
    assert!(stderr.contains(&format!("is in use by process {}", daemon.0.id())), "{stderr}");
    // A script asks the agent that is there, from its own directory.
    let elsewhere = world.make_dir("elsewhere");
    fs::write(elsewhere.join("f.bin"), content(10, 1)).expect("written");
    let script = world.write("script", b"share f.bin lab\nwhoami\n");
    let script = fs::File::open(script).expect("there");
    let output = run_reading(command(&world, "alice", &["--json"]).current_dir(&elsewhere), script);
    let (stdout, stderr, status) = told(&output);
    assert_eq!(status, 0, "{stdout}{stderr}");
    let path = elsewhere.canonicalize().expect("there").join("f.bin");
    assert_eq!(ok(&world, "alice", &["downloads"])["downloads"][0]["path"], json!(path));
    // Killed, it leaves its socket; the next command does not mind.
    let mut daemon = daemon;
    daemon.0.kill().expect("killed");
    daemon.0.wait().expect("reaped");
    assert!(world.path("alice.data/control.sock").exists());
    ok(&world, "alice", &["whoami"]);
    let (stdout, stderr, status) = one(&world, "alice", &["quit", "--json"]);
    assert_eq!(status, 1, "{stdout}{stderr}");
    assert!(stderr.contains("no agent runs"), "{stderr}");
}

#[test]
fn passwords_come_from_whoever_asks_and_never_from_the_command_line() {
    let world = World::new();
    let daemon = Running::daemon(&world, "alice");
    ok(&world, "alice", &["create-user", "alice"]);
    let mut wrong = command(&world, "alice", &["login", "alice"]);
    let (_, stderr, status) = told(&run(wrong.env("MTQ_PASSWORD", "another")));
    assert_eq!(status, 3, "{stderr}");
    let (_, stderr, status) =
        told(&run(command(&world, "alice", &["login", "alice"]).env_remove("MTQ_PASSWORD")));
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("MTQ_PASSWORD"), "{stderr}");
    ok(&world, "alice", &["login", "alice"]);
    for words in [&["login", "alice", "alice-secret"][..], &["passwd", "a", "b"]] {
        let (_, stderr, status) = one(&world, "alice", words);
        assert_eq!(status, 2, "{stderr}");
        assert!(!stderr.contains("secret"), "{stderr}");
    }
    assert_eq!(daemon.end(), 130);
}

#[test]
fn each_kind_of_failure_has_its_exit_status() {
    let mut world = lab();
    let daemon = Running::daemon(&world, "alice");
    world.write("f.bin", &content(100, 1));
    world.write("junk.mtorrent", b"junk");
    let full = "/proc/none/f.bin";
    for (words, expected) in [
        (&["whoami"][..], 0),
        (&["wait", "lab", "nothing"], 4),
        (&["cancel-everything"], 2),
        (&["share", "f.bin"], 2),
        (&["get", "lab", "x"], 2),
        (&["kick", "lab", "alice"], 3),
        (&["list-files", "nowhere"], 4),
        (&["share", "none.bin", "lab"], 4),
        (&["get", "junk.mtorrent", "."], 6),
        (&["share", ".", "lab"], 1),
        (&["share", "f.bin", "lab", "--mtorrent", full], 4),
    ] {
        let (stdout, stderr, status) = one(&world, "alice", words);
        assert_eq!(status, expected, "{words:?}: {stdout}{stderr}");
        let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, usize::from(expected != 0), "{words:?}: {stderr}");
    }
    ok(&world, "alice", &["logout"]);
    assert_eq!(one(&world, "alice", &["list-files", "lab"]).2, 3);
    drop(daemon);
    world.stop_tracker();
    let (_, stderr, status) = one(&world, "alice", &["list-groups"]);
    assert_eq!(status, 5, "{stderr}");
    let mut waits = command(&world, "alice", &["events"]);
    let waits = Running(waits.stdin(Stdio::null()).spawn().expect("mtq runs"));
    let socket = world.path("alice.data/control.sock");
    wait_for("its agent", || UnixStream::connect(&socket).ok());
    assert_eq!(waits.end(), 130);
}

/// A connection to an agent's socket, as any program may have one.
struct Socket {
    write: UnixStream,
    read: BufReader<UnixStream>,
}

impl Socket {
    fn connect(world: &World, user: &str) -> Self {
        let path = world.path(format!("{user}.data/control.sock"));
        let write = UnixStream::connect(path).expect("connected");
        write.set_read_timeout(Some(DEADLINE)).expect("set");
        let read = BufReader::new(write.try_clone().expect("cloned"));
        let mut socket = Self { write, read };
        let hello = socket.next();
        assert_eq!((&hello["event"], &hello["lasts"]), (&json!("hello"), &json!(true)));
        socket
    }

    fn say(&mut self, line: &str) {
        writeln!(self.write, "{line}").expect("written");
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.read.read_line(&mut line).expect("read");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ask(&mut self, line: &str) -> Value {
        self.say(line);
        self.next()
    }
}

#[test]
fn the_socket_takes_any_line_and_goes_on() {
    let world = lab();
    let _daemon = Running::daemon(&world, "alice");
    let mut socket = Socket::connect(&world, "alice");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(world.path("alice.data/control.sock")).expect("there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    for (line, id) in [
        ("hello".to_owned(), Value::Null),
        ("{}".to_owned(), Value::Null),
        ("\u{0}\u{1}".to_owned(), Value::Null),
        (r#"{"id":7,"args":[]}"#.to_owned(), json!(7)),
        (r#"{"id":"x","args":["dance"]}"#.to_owned(), json!("x")),
        (r#"{"id":8,"args":["get","lab"]}"#.to_owned(), json!(8)),
        (r#"{"id":9,"line":"list-files 'lab"}"#.to_owned(), json!(9)),
        (r#"{"id":10,"v":9,"line":"whoami"}"#.to_owned(), json!(10)),
        (r#"{"id":11,"word":"whoami"}"#.to_owned(), json!(11)),
        ("x".repeat(2_000_000), Value::Null),
        (r#"{"id":12,"args":["login","bob"]}"#.to_owned(), json!(12)),
    ] {
        let answer = socket.ask(&line);
        assert_eq!((&answer["ok"], &answer["id"]), (&json!(false), &id), "{answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|m| !m.contains('\n')), "{answer}");
    }
    let answer = socket.ask(r#"{"id":1,"line":"list-groups","text":true}"#);
    assert!(answer["text"].as_str().expect("words").contains("lab"), "{answer}");
    let help = socket.ask(r#"{"args":["help"]}"#);
    assert!(help["result"]["text"].as_str().expect("words").contains("list-files"), "{help}");
    // Whoever asks and closes their end is answered all the same.
    socket.say(r#"{"id":2,"args":["list-members","lab"]}"#);
    socket.write.shutdown(Shutdown::Write).expect("closed");
    let answer = socket.next();
    assert_eq!((&answer["ok"], &answer["id"]), (&json!(true), &json!(2)), "{answer}");
}

#[test]
fn requests_run_side_by_side_and_can_be_given_up() {
    let world = lab();
    let _daemon = Running::daemon(&world, "alice");
    let mut socket = Socket::connect(&world, "alice");
    world.make_dir("in");
    // Bob lists a file and goes: a download of it waits.
    let slow = world.write("slow.bin", &content(2_000_000, 3));
    ok(&world, "alice", &["logout"]);
    ok(&world, "alice", &["login", "alice"]);
    {
        let share = command(&world, "bob", &["share", slow.to_str().expect("UTF-8"), "lab"]);
        Running::start(share, "sharing until").end();
    }
    let dest = world.path("in");
    let get = json!({"id": 1, "args": ["get", "lab", "slow.bin", dest]});
    assert_eq!(socket.ask(&get.to_string())["ok"], true);
    socket.say(r#"{"id":2,"args":["wait"]}"#);
    let answer = socket.ask(r#"{"id":2,"args":["whoami"]}"#);
    assert_eq!((&answer["ok"], &answer["id"]), (&json!(false), &json!(2)), "in use: {answer}");
    let answer = socket.ask(r#"{"id":3,"args":["whoami"]}"#);
    assert_eq!((&answer["ok"], &answer["id"]), (&json!(true), &json!(3)), "{answer}");
    socket.say(r#"{"id":4,"cancel":2}"#);
    let mut answers = [socket.next(), socket.next()];
    answers.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(answers[0]["error"]["code"], "cancelled", "{answers:?}");
    assert_eq!(answers[1]["result"]["found"], true, "{answers:?}");
    assert_eq!(socket.ask(r#"{"id":5,"cancel":2}"#)["result"]["found"], false);
    // One who hears events hears of bob.
    assert_eq!(socket.ask(r#"{"id":6,"args":["events"]}"#)["ok"], true);
    world.write("new.bin", &content(10, 4));
    let share = command(&world, "bob", &["share", "new.bin", "lab"]);
    let _share = Running::start(share, "sharing until");
    let listed = loop {
        let event = socket.next();
        if event["event"] == "file-listed" {
            break event;
        }
    };
    assert_eq!((&listed["name"], &listed["user"]), (&json!("new.bin"), &json!("bob")));
    assert!(listed["message"].is_string() && listed["at"].is_string(), "{listed}");
}

#[test]
fn a_program_is_run_for_every_event() {
    let world = lab();
    let told = world.path("told");
    let mut daemon = command(&world, "alice", &["daemon"]);
    daemon.env("MTQ_ON_EVENT", format!("cat >> '{}'", told.display()));
    let daemon = Running::start(daemon, "the agent is up");
    world.write("f.bin", &content(1_000_000, 5));
    world.make_dir("in");
    ok(&world, "alice", &["share", "f.bin", "lab"]);
    ok(&world, "alice", &["stop-share", "lab", "f.bin"]);
    world.write("g.bin", &content(1_000_000, 6));
    let share = command(&world, "bob", &["share", "g.bin", "lab"]);
    let _share = Running::start(share, "sharing until");
    ok(&world, "alice", &["get", "lab", "g.bin", "in", "--wait"]);
    assert_eq!(daemon.end(), 130);
    let events = read_events(&told);
    for expected in ["shared", "stopped", "file-listed", "started", "downloaded"] {
        assert!(events.iter().any(|event| event["event"] == expected), "{expected}: {events:?}");
    }
}

fn read_events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("written");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn when_the_one_that_runs_the_agent_ends_another_takes_over() {
    let world = lab();
    for (name, seed) in [("one.bin", 1), ("two.bin", 2)] {
        world.write(name, &content(500_000, seed));
    }
    let share = |name: &str| command(&world, "alice", &["share", name, "lab"]);
    let first = Running::start(share("one.bin"), "sharing until");
    let second = Running::start(share("two.bin"), "sharing until");
    assert_eq!(ok(&world, "alice", &["downloads"])["downloads"].as_array().map(Vec::len), Some(2));
    assert_eq!(first.end(), 130);
    // Both are shared by the second.
    wait_for("both", || {
        let files = ok(&world, "bob", &["list-files", "lab"]);
        let files = files["files"].as_array().expect("files").clone();
        files.iter().all(|file| file["seeders"] == 1).then_some(())
    });
    // Its agent ends when somebody says so.
    let mut second = second;
    let (_, stderr, status) = one(&world, "alice", &["quit"]);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(ended(&mut second.0).code(), Some(1));
}

#[test]
fn a_daemon_has_everything_again_that_it_had() {
    let world = lab();
    let daemon = Running::daemon(&world, "alice");
    world.write("kept.bin", &content(500_000, 1));
    world.write("gone.bin", &content(500_000, 2));
    ok(&world, "alice", &["share", "kept.bin", "lab"]);
    ok(&world, "alice", &["share", "gone.bin", "lab"]);
    assert_eq!(daemon.end(), 130);
    fs::remove_file(world.path("gone.bin")).expect("removed");
    let daemon = Running::daemon(&world, "alice");
    let rows = ok(&world, "alice", &["downloads"]);
    let states: Vec<_> =
        rows["downloads"].as_array().expect("rows").iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["seeding", "missing"]);
    let login = ok(&world, "alice", &["login", "alice"]);
    assert_eq!((&login["sharing"], &login["skipped"][0]["name"]), (&json!(1), &json!("gone.bin")));
    assert_eq!(daemon.end(), 130);
}

#[test]
fn one_user_on_two_devices_has_two_libraries_and_one_account() {
    let world = lab();
    let laptop = "laptop";
    let (at_laptop, desk) = (
        |words: &[&str]| {
            let mut command = command(&world, laptop, words);
            told(&run(command.env("MTQ_PASSWORD", "alice-secret")))
        },
        Running::daemon(&world, "alice"),
    );
    assert_eq!(at_laptop(&["login", "alice"]).2, 0);
    let mut second = command(&world, laptop, &["daemon"]);
    second.env("MTQ_PASSWORD", "alice-secret");
    let second = Running::start(second, "alice is logged in");
    let bytes = content(1_500_000, 9);
    world.write("f.bin", &bytes);
    ok(&world, "alice", &["share", "f.bin", "lab"]);
    world.make_dir("in");
    // A device fetches from another of the same user.
    let (stdout, stderr, status) = at_laptop(&["get", "lab", "f.bin", "in", "--wait"]);
    assert_eq!(status, 0, "{stdout}{stderr}");
    assert_eq!(fs::read(world.path("in/f.bin")).expect("there"), bytes);
    let devices = ok(&world, "alice", &["devices"]);
    assert_eq!(devices["devices"].as_array().map(Vec::len), Some(2));
    wait_for("both seeders", || {
        let files = ok(&world, "bob", &["list-files", "lab"]);
        (files["files"][0]["seeders"] == 2).then_some(())
    });
    // One logs out; the other goes on, also after a restart.
    assert_eq!(at_laptop(&["logout"]).2, 0);
    assert_eq!(desk.end(), 130);
    let _desk = Running::daemon(&world, "alice");
    wait_for("the one that is left", || {
        let files = ok(&world, "bob", &["list-files", "lab"]);
        (files["files"][0]["seeders"] == 1).then_some(())
    });
    assert_eq!(at_laptop(&["list-groups"]).2, 3);
    drop(second);
}

#[test]
fn metafiles_go_where_they_are_configured_to_and_a_default_group_is_meant() {
    let world = lab();
    let metafiles = world.make_dir("metafiles");
    let config = format!(
        "default-group = \"lab\"\nmtorrent-dir = \"{}\"\n",
        metafiles.to_str().expect("UTF-8")
    );
    let config = world.write("config.toml", config.as_bytes());
    let _daemon = Running::daemon(&world, "alice");
    world.write("f.bin", &content(10, 1));
    let share = |words: &[&str]| {
        let mut command = command(&world, "alice", words);
        told(&run(command.arg("--config").arg(&config)))
    };
    let (stdout, stderr, status) = share(&["share", "f.bin"]);
    assert_eq!(status, 0, "{stdout}{stderr}");
    assert!(metafiles.join("f.bin.mtorrent").exists(), "{stdout}");
    assert!(!world.path("f.bin.mtorrent").exists());
    fs::remove_dir_all(&metafiles).expect("removed");
    world.write("g.bin", &content(10, 2));
    let (stdout, stderr, status) = share(&["share", "g.bin"]);
    assert_eq!(status, 0, "it is shared all the same: {stdout}{stderr}");
    assert!(stderr.contains("no metafile was written"), "{stderr}");
}

/// What fields an object has, those of the objects in it too; an array's are its first element's.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
        }
        Value::Array(elements) => elements.first().map(shape).into_iter().collect(),
        _ => Value::Null,
    }
}

/// Whether one shape is the other, but for what may be null, or empty.
fn is_alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => true,
        (Value::Array(one), Value::Array(other)) => match (one.first(), other.first()) {
            (Some(one), Some(other)) => is_alike(one, other),
            _ => true,
        },
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(name, one)| other.get(name).is_some_and(|other| is_alike(one, other)))
        }
        _ => false,
    }
}

#[test]
fn the_page_of_shapes_is_true() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/JSON.md")).expect("there");
    let client = page.split("## The operator's commands").next().expect("the client's part");
    let mut examples: Vec<Value> =
        client.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    examples.retain(|example| example["ok"] == true && example.get("id").is_none());
    let world = lab();
    let _daemon = Running::daemon(&world, "alice");
    world.write("mine.bin", &content(100, 1));
    world.make_dir("in");
    world.write("bobs.bin", &content(3_000_000, 2));
    let _bob =
        Running::start(command(&world, "bob", &["share", "bobs.bin", "lab"]), "sharing until");
    let mut seen = 0;
    for words in [
        &["login", "alice"][..],
        &["whoami"],
        &["devices"],
        &["list-groups"],
        &["list-requests", "lab"],
        &["list-members", "lab"],
        &["nominate", "lab", "bob"],
        &["set-group", "lab", "--offline-grace", "1h"],
        &["share", "mine.bin", "lab"],
        &["list-files", "lab"],
        &["search", "bin"],
        &["limit", "--down", "1MiB", "lab", "mine.bin"],
        &["get", "lab", "bobs.bin", "in"],
        &["wait"],
        &["downloads"],
        &["status"],
        &["stop-share", "lab", "bobs.bin"],
        &["remove", "mine.bin.mtorrent"],
        &["logout"],
    ] {
        let result = shape(&ok(&world, "alice", words));
        let name = words[0];
        let known = examples.iter().filter(|example| example["command"] == name);
        let known: Vec<_> = known.map(|example| shape(&example["result"])).collect();
        assert!(!known.is_empty(), "{name} has no example");
        for known in known {
            assert!(is_alike(&result, &known), "{name}: {result} is written down as {known}");
            seen += 1;
        }
    }
    assert!(seen >= 19, "{seen}");
}
