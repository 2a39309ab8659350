//! The operator's hand on a running tracker, and on one that does not run.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::world::{DEADLINE, World, mtq, quoted, run, wait_for};

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// The row of a list whose `field` is `name`.
fn row(list: &Value, field: &str, name: &str) -> Value {
    let rows = list.as_array().expect("rows");
    rows.iter().find(|row| row[field] == name).unwrap_or_else(|| panic!("{name}: {list}")).clone()
}

/// Everything an export printed.
fn export(world: &World) -> Vec<Value> {
    let output = world.operate("export --json");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains("argon2"), "no password hashes");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn an_invitation_is_good_for_one_account_and_not_for_ever() {
    let world = World::with(&["--registration", "invite"]);
    assert_eq!(world.operated("status")["registration"], "invite");
    let (mut alice, mut bob) = (world.client("alice"), world.client("bob"));
    assert_eq!(alice.err("create-user alice alice-secret"), "invite-needed");
    let code = "create-user alice alice-secret --invite 00000-00000-00000-00000";
    assert_eq!(alice.err(code), "bad-invite");

    let invite = world.operated("invite");
    let code = text(&invite["code"]);
    alice.ok(&format!("create-user alice alice-secret --invite {code}"));
    alice.ok("login alice alice-secret");
    assert_eq!(bob.err(&format!("create-user bob bob-secret --invite {code}")), "bad-invite");

    // For people: the code alone on standard output, in whatever way it is typed.
    let output = world.operate("invite --expires 30d");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.starts_with("good for one account, until "), "{words}");
    let code = String::from_utf8_lossy(&output.stdout).trim().replace('-', "").to_lowercase();
    assert_eq!(code.len(), 20, "{code}");
    bob.ok(&format!("create-user bob bob-secret --invite {code}"));

    let short = world.operated("invite --expires 1s");
    let expires = humantime::parse_rfc3339(text(&short["expires"])).expect("a time");
    let expires = expires.duration_since(std::time::UNIX_EPOCH).expect("later").as_millis();
    let over = || (u128::from(mtq::clock::now().0) > expires).then_some(());
    wait_for("the end of the invitation", over);
    let late = format!("create-user carol carol-secret --invite {}", text(&short["code"]));
    assert_eq!(bob.err(&late), "bad-invite");
    for life in ["0", "366d"] {
        let refused = world.not_operated(&format!("invite --expires {life}"));
        assert_eq!(refused, ("usage".to_owned(), 2), "{life}");
    }
    assert_eq!(world.operated("status")["accounts"], 2);
}

#[test]
fn a_closed_tracker_takes_no_accounts_and_keeps_those_it_has() {
    let mut world = World::new();
    world.user("alice").quit();
    world.stop_tracker();
    world.tracker_options = vec!["--registration".to_owned(), "closed".to_owned()];
    world.start_tracker();
    let mut bob = world.client("bob");
    assert_eq!(bob.err("create-user bob bob-secret"), "registration-closed");
    bob.ok("login alice alice-secret");
    assert_eq!(world.operated("status")["registration"], "closed");
}

#[test]
fn a_disabled_user_is_out_at_once_and_comes_back_without_memberships() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let before = row(&world.operated("user list")["users"], "user", "bob");
    assert_eq!(before["disabled"], false);
    assert_eq!(before["online"], true);
    assert_eq!((&before["devices"], &before["groups"]), (&json!(1), &json!(1)));
    let first: Value = world.operated("status")["ops"].clone();

    let ended = world.operated("user disable bob");
    let expected = json!({"user": "bob", "memberships": 1, "devices": 1, "shares": 0});
    assert_eq!(ended, expected);
    assert!(world.operated("status")["ops"].as_u64() > first.as_u64(), "it is an op");
    assert_eq!(bob.err("list-groups"), "not-logged-in");
    assert_eq!(bob.err("login bob bob-secret"), "disabled");
    let members = alice.ok("list-members lab");
    assert_eq!(members["members"].as_array().expect("rows").len(), 1, "{members}");
    let after = row(&world.operated("user list")["users"], "user", "bob");
    assert_eq!((&after["disabled"], &after["online"]), (&json!(true), &json!(false)));
    let table = world.operate("user list");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.lines().any(|line| line.starts_with("bob    disabled  0 devices")), "{table}");

    world.operated("user enable bob");
    world.operated("user enable bob");
    bob.ok("login bob bob-secret");
    assert_eq!(bob.err("list-files lab"), "not-a-member");
    for verb in ["disable", "enable", "reset-password"] {
        let refused = world.not_operated(&format!("user {verb} nobody"));
        assert_eq!(refused, ("no-such-user".to_owned(), 4), "{verb}");
    }
    let output = world.operate("user disable nobody");
    let words = String::from_utf8_lossy(&output.stderr);
    let expected = "error: there is no user nobody\n\
                    hint: mtq tracker user list shows those there are\n";
    assert_eq!(words, expected);
}

#[test]
fn a_reset_password_is_the_only_one_and_signs_out_every_device() {
    let world = World::new();
    let mut bob = world.user("bob");
    let mut other = world.client("other");
    other.ok("login bob bob-secret");
    let reset = world.operated("user reset-password bob");
    assert_eq!(reset["devices"], 2);
    assert_eq!(bob.err("list-groups"), "not-logged-in");
    assert_eq!(other.err("list-groups"), "not-logged-in");
    assert_eq!(bob.err("login bob bob-secret"), "wrong-credentials");
    bob.ok(&format!("login bob {}", text(&reset["password"])));
    let log = fs::read_to_string(world.path("tracker.log")).expect("readable");
    assert!(!log.contains(text(&reset["password"])), "secrets are not logged");
}

#[test]
fn an_archived_group_is_gone_and_its_name_is_free() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    alice.ok("create-group secret --hidden");
    let file = world.write("f.bin", b"hello");
    bob.ok(&format!("share {} lab", quoted(&file)));
    let gone = world.operated("group archive lab");
    assert_eq!((&gone["memberships"], &gone["files"]), (&json!(2), &json!(1)));
    assert_eq!(alice.err("list-files lab"), "no-such-group");
    assert_eq!(bob.err("list-files lab"), "no-such-group");
    alice.ok("create-group lab");

    let groups = world.operated("group list")["groups"].clone();
    let names: Vec<_> =
        groups.as_array().expect("rows").iter().map(|g| text(&g["group"])).collect();
    assert_eq!(names, ["lab", "lab", "public", "secret"]);
    let archived = |group: &&Value| group["archived"] == true;
    let archived: Vec<_> = groups.as_array().expect("rows").iter().filter(archived).collect();
    assert_eq!(archived.len(), 1, "{groups}");
    assert_eq!(archived[0]["id"], gone["id"]);
    assert_eq!((&archived[0]["owner"], &archived[0]["members"]), (&Value::Null, &json!(0)));
    assert_eq!(row(&groups, "group", "secret")["hidden"], true);
    assert_eq!(row(&groups, "group", "public")["members"], 2);

    assert_eq!(world.not_operated("group archive public"), ("everybodys-group".to_owned(), 3));
    assert_eq!(world.not_operated("group archive none"), ("no-such-group".to_owned(), 4));
}

#[test]
fn a_tracker_can_be_without_the_group_of_everybody() {
    let world = World::with(&["--no-public-group"]);
    let mut alice = world.user("alice");
    assert_eq!(alice.err("list-files public"), "no-such-group");
    assert_eq!(world.operated("status")["public_group"], false);
    assert_eq!(world.operated("group list")["groups"], json!([]));
    let table = world.operate("group list");
    assert_eq!(String::from_utf8_lossy(&table.stdout), "no groups\n");
}

#[test]
fn status_counts_what_there_is() {
    let world = World::with(&["--max-connections-per-address", "2"]);
    let empty = world.operated("status");
    for field in ["accounts", "files", "shares", "connections", "users_online", "ops", "pages"] {
        assert_eq!(empty[field], 0, "{field}: {empty}");
    }
    assert_eq!((&empty["groups"], &empty["latest_op"]), (&json!(1), &Value::Null), "public only");
    assert_eq!(empty["limits_hit"], json!({}));
    assert_eq!(empty["address"], format!("127.0.0.1:{}", world.port));
    let links = fs::read_to_string(world.trackers()).expect("readable");
    assert!(links.contains(text(&empty["peer_id"])));

    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let file = world.write("f.bin", b"hello");
    alice.ok(&format!("share {} lab", quoted(&file)));
    alice.ok(&format!("share {} lab --name again", quoted(&file)));
    bob.ok(&format!("share {} public", quoted(&file)));
    let output = world.script("carol", &[], "create-user carol carol-secret\n");
    assert!(!output.status.success(), "a third connection is too many: {output:?}");
    let full = world.operated("status");
    for (field, count) in [
        ("accounts", 2),
        ("groups", 2),
        ("files", 2),
        ("shares", 3),
        ("connections", 2),
        ("users_online", 2),
        ("swarms", 2),
        ("pages", 1),
    ] {
        assert_eq!(full[field], count, "{field}: {full}");
    }
    assert!(full["ops"].as_u64() > Some(7), "{full}");
    assert!(full["store_bytes"].as_u64() > Some(0) && full["page_bytes"].as_u64() > Some(0));
    assert!(full["limits_hit"]["connections-per-address"].as_u64() > Some(0), "{full}");
    assert!(full["latest_op"].is_string() && full["uptime_secs"].is_u64(), "{full}");

    let words = world.operate("status");
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(words.lines().any(|line| line == "accounts      2"), "{words}");
    assert!(words.lines().any(|line| line == "files         2 (3 shares)"), "{words}");
}

#[test]
fn a_backup_of_a_running_tracker_becomes_another_tracker() {
    let mut world = World::new();
    let [mut alice, bob] = world.lab(["alice", "bob"]);
    let file = world.write("f.bin", b"hello");
    alice.ok(&format!("share {} lab", quoted(&file)));
    // A relative path is relative to whoever asks, not to the tracker.
    let copy = run(mtq()
        .current_dir(world.dir.path())
        .args(["tracker", "backup", "copy.redb", "--json", "--data-dir"])
        .arg(world.path("tracker")));
    let answer: Value = serde_json::from_slice(&copy.stdout).expect("JSON");
    let path = world.path("copy.redb");
    let len = fs::metadata(&path).expect("there").len();
    assert_eq!(answer["result"], json!({"path": path, "bytes": len}));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);

    // Never over a file, and nothing half-made.
    fs::write(world.path("mine"), b"mine").expect("written");
    for taken in ["mine", "copy.redb"] {
        let line = format!("backup {}", world.path(taken).display());
        assert_eq!(world.not_operated(&line), ("exists".to_owned(), 7));
    }
    assert_eq!(fs::read(world.path("mine")).expect("there"), b"mine");
    let nowhere = format!("backup {}", world.path("no/such/dir").display());
    assert_eq!(world.not_operated(&nowhere), ("not-found".to_owned(), 4));

    // What comes after the copy is not in it.
    alice.ok("create-group later");
    alice.quit();
    bob.quit();
    world.stop_tracker();
    world.tracker_dir = "restored".to_owned();
    let restored = world.make_dir("restored");
    fs::rename(&path, restored.join("tracker.redb")).expect("moved");
    world.start_tracker();
    let mut alice = world.client("alice");
    alice.ok("login alice alice-secret");
    assert_eq!(alice.ok("list-files lab")["files"][0]["name"], "f.bin");
    assert_eq!(alice.err("list-files later"), "no-such-group");
    alice.ok("create-group later");
    // A file is served by whoever shares it since the last start.
    alice.ok(&format!("share {} lab", quoted(&file)));
    let mut bob = world.client("bob");
    bob.ok("login bob bob-secret");
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab f.bin {}", quoted(&dest)));
    bob.ok("wait --timeout 110");
    assert_eq!(fs::read(dest.join("f.bin")).expect("arrived"), b"hello");
}

#[test]
fn a_stopped_tracker_can_be_copied_and_exported_but_not_made() {
    let mut world = World::new();
    world.user("alice").quit();
    world.stop_tracker();
    assert_eq!(world.not_operated("status"), ("no-tracker".to_owned(), 5));
    let copy = world.path("copy.redb");
    world.operated(&format!("backup {}", copy.display()));
    assert!(copy.is_file());

    // Whoever has the directory may be about to write.
    let lock = mtq::client::data_dir::lock(&world.path("tracker")).expect("locked");
    let other = format!("backup {}", world.path("other").display());
    assert_eq!(world.not_operated(&other), ("locked".to_owned(), 7));
    assert_eq!(world.operate("export").status.code(), Some(7));
    drop(lock);
    assert_eq!(export(&world).last().expect("an end")["kind"], "end");

    world.tracker_dir = "nowhere".to_owned();
    assert_eq!(world.not_operated(&other), ("not-found".to_owned(), 4));
    let words = world.operate("export");
    let stderr = String::from_utf8_lossy(&words.stderr);
    assert!(stderr.starts_with("error: there is no tracker's store in "), "{stderr}");
    assert!(words.stdout.is_empty());
    assert!(!world.path("nowhere").exists(), "nothing is made");
}

#[test]
fn an_export_is_the_same_whether_or_not_the_tracker_runs() {
    let mut world = World::with(&["--registration", "invite"]);
    let code = |world: &World| text(&world.operated("invite")["code"]).to_owned();
    let (mut alice, mut bob) = (world.client("alice"), world.client("bob"));
    for (name, client) in [("alice", &mut alice), ("bob", &mut bob)] {
        let invite = code(&world);
        client.ok(&format!("create-user {name} {name}-secret --invite {invite}"));
        client.ok(&format!("login {name} {name}-secret"));
    }
    code(&world);
    alice.ok("create-group lab");
    bob.ok("join-group lab");
    let file = world.write("f.bin", b"hello");
    let shared = alice.ok(&format!("share {} lab", quoted(&file)));
    let running = export(&world);
    let kinds: Vec<_> = running.iter().map(|line| text(&line["kind"])).collect();
    let expected = [
        "user",
        "user",
        "device",
        "device",
        "group",
        "membership",
        "request",
        "share",
        "invite",
        "invite",
        "invite",
        "end",
    ];
    assert_eq!(kinds, expected);
    assert!(running.iter().all(|line| line["v"] == 1));
    let of = |kind: &'static str| running.iter().filter(move |line| line["kind"] == kind);
    let share = of("share").next().expect("one");
    for field in ["content_id", "sha1", "info_hash", "blake3", "size", "name", "group"] {
        assert_eq!(share[field], shared[field], "{field}");
    }
    assert_eq!(share["user"], "alice");
    let request = of("request").next().expect("one");
    assert_eq!((&request["user"], &request["group"]), (&json!("bob"), &json!("lab")));
    let mut used: Vec<_> = of("invite").map(|invite| invite["used_by"].as_str()).collect();
    used.sort_unstable();
    assert_eq!(used, [None, Some("alice"), Some("bob")]);
    assert_eq!(running.last().expect("an end")["lines"], 11);
    let left: Vec<_> = fs::read_dir(world.path("tracker")).expect("readable").flatten().collect();
    let left: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("export")), "{left:?}");
    alice.quit();
    bob.quit();
    world.stop_tracker();
    assert_eq!(export(&world), running);
}

#[test]
fn the_socket_is_private_and_a_stale_one_is_replaced() {
    let mut world = World::new();
    let socket = world.path("tracker/control.sock");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    world.kill_tracker();
    assert!(socket.exists(), "it had no time to take it away");
    let output = world.operate("status");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5));
    let expected = format!("error: no tracker is running on {}\n", world.path("tracker").display());
    assert!(words.starts_with(&expected), "{words}");
    assert!(words.contains("\nhint: "), "{words}");
    world.start_tracker();
    assert_eq!(mode(&socket), 0o600);
    world.operated("status");
    world.stop_tracker();
    assert!(!socket.exists());
}

/// Says `request` to an HTTP server; returns all it answers.
fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("set");
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn metrics_move_with_what_happens() {
    let mut world = World::with(&["--metrics", "127.0.0.1:0"]);
    let status = world.operated("status");
    let address = text(&status["metrics"]);
    // Somebody who says nothing holds up nobody.
    let idle = TcpStream::connect(address).expect("connected");
    let before = http(address, "GET /metrics");
    assert!(before.starts_with("HTTP/1.1 200 OK\r\n"), "{before}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(before.contains(kind), "{before}");
    assert!(before.contains("\nmtq_tracker_accounts 0\n"), "{before}");
    assert!(before.ends_with("# EOF\n"), "{before}");

    let mut alice = world.user("alice");
    assert_eq!(alice.err("create-user alice alice-secret"), "user-exists");
    let after = http(address, "GET /metrics");
    for line in [
        "mtq_tracker_accounts 1",
        "mtq_tracker_users_online 1",
        "mtq_tracker_requests_total{request=\"create-user\",outcome=\"ok\"} 1",
        "mtq_tracker_requests_total{request=\"create-user\",outcome=\"user-exists\"} 1",
    ] {
        assert!(after.lines().any(|l| l == line), "{line} is not in\n{after}");
    }
    assert!(http(address, "GET /").starts_with("HTTP/1.1 404 "));
    let post = http(address, "POST /metrics");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET\r\n"), "{post}");
    assert!(http(address, "nonsense").starts_with("HTTP/1.1 400 "));
    alice.quit();
    world.stop_tracker();
    drop(idle);
}

#[test]
fn nonsense_on_the_socket_is_answered_and_others_are_served() {
    let world = World::new();
    let socket = world.path("tracker/control.sock");
    let connect = || {
        let stream = UnixStream::connect(&socket).expect("connected");
        stream.set_read_timeout(Some(DEADLINE)).expect("set");
        stream
    };
    let answer = |stream: &UnixStream| -> Value {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("answered");
        serde_json::from_str(&line).expect("JSON")
    };
    // Half a request, and then silence.
    let half = connect();
    write!(&half, "{{\"command\":").expect("written");
    let junk = connect();
    for line in ["hello", "", "{}", "[[[[", "{\"command\":\"dance\"}", "\u{0}\u{1}"] {
        writeln!(&junk, "{line}").expect("written");
        let answer = answer(&junk);
        assert_eq!((&answer["ok"], &answer["error"]["code"]), (&json!(false), &json!("usage")));
    }
    (&junk).write_all(b"\xff\xfe\n").expect("written");
    assert_eq!(answer(&junk)["ok"], false);
    writeln!(&junk, "{{\"command\":\"backup\",\"path\":\"relative\"}}").expect("written");
    assert_eq!(answer(&junk)["error"]["code"], "usage");
    writeln!(&junk, "{{\"v\":1,\"command\":\"status\"}}").expect("written");
    let status = answer(&junk);
    assert_eq!((&status["command"], &status["ok"]), (&json!("status"), &json!(true)));

    let long = connect();
    // The tracker may have hung up before all of it is written.
    let _ = (&long).write_all(&vec![b'x'; 1024 * 1024]);
    let refused = answer(&long);
    assert_eq!((&refused["command"], &refused["ok"]), (&json!(""), &json!(false)), "{refused}");
    let mut rest = Vec::new();
    let closed = (&long).read_to_end(&mut rest);
    assert!(closed.is_err() || rest.is_empty(), "nothing more comes");

    world.operated("status");
    writeln!(&half, "\"status\"}}").expect("written");
    assert_eq!(answer(&half)["ok"], true);
}

#[test]
fn a_log_in_json_has_one_object_a_line() {
    let mut world = World::with(&["--log-format", "json"]);
    world.user("alice").quit();
    world.operated("user disable alice");
    world.stop_tracker();
    let log = fs::read_to_string(world.path("tracker.log")).expect("readable");
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
    let disabled = "account disabled by the operator";
    let line = lines.iter().find(|line| line["message"] == disabled).expect("logged");
    assert_eq!((&line["user"], &line["level"]), (&json!("alice"), &json!("INFO")));
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{log}");
}
