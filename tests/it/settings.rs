//! Settings of the real program: from flags, variables, the file and what was given before.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::world::{World, free_port, mtq, run, run_reading};

/// The program in a home of its own below the world's directory.
fn at_home(world: &World, words: &[&str]) -> Command {
    let mut command = mtq();
    command
        .args(words)
        .env("HOME", world.path("home"))
        .env("XDG_CONFIG_HOME", world.path("home/config"))
        .env("XDG_DATA_HOME", world.path("home/data"))
        .env("XDG_STATE_HOME", world.path("home/state"));
    command
}

/// The same in the home alone, without any XDG variable.
fn at_plain_home(world: &World, words: &[&str]) -> Command {
    let mut command = at_home(world, words);
    for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command
}

/// Runs a script at home.
fn script(world: &World, words: &[&str], lines: &str) -> Output {
    let input = world.write("script", lines.as_bytes());
    let mut command = at_home(world, words);
    run_reading(&mut command, fs::File::open(input).expect("opens"))
}

/// What `config show --json` says with these words and variables.
fn show(world: &World, words: &[&str], variables: &[(&str, &Path)]) -> Value {
    let mut command = at_home(world, &[&["config", "show", "--json"], words].concat());
    let output = run(command.envs(variables.iter().copied()));
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(answer["command"], "config-show");
    answer["result"].clone()
}

/// The row of one setting.
fn row(shown: &Value, name: &str) -> Value {
    let rows = shown["settings"].as_array().expect("rows");
    rows.iter().find(|row| row["setting"] == name).cloned().unwrap_or_default()
}

/// The one line of an error, and the status.
fn error(output: &Output) -> (String, i32) {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors = words.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{words}");
    assert!(words.lines().all(|line| line.starts_with("error: ") || line.starts_with("hint: ")));
    (words, output.status.code().expect("no signal killed it"))
}

#[test]
fn once_the_trackers_were_given_no_flag_is_needed() {
    let world = World::new();
    let (words, status) = error(&script(&world, &["client"], "whoami\n"));
    assert_eq!(status, 2);
    assert!(words.starts_with("error: no trackers are known\nhint: "), "{words}");
    assert!(words.contains("--trackers FILE"), "{words}");
    assert!(!world.path("home").exists(), "nothing was made for that");

    let trackers = world.trackers();
    let trackers = trackers.to_str().expect("UTF-8");
    let lines = "create-user alice secret\nlogin alice secret\ncreate-group lab\n";
    let output = script(&world, &["client", "--trackers", trackers], lines);
    assert!(output.status.success(), "{output:?}");
    let data = world.path("home/data/mtq");
    let mode = fs::metadata(&data).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(
        fs::read_to_string(data.join("trackers.txt")).expect("kept"),
        format!("{}\n", world.link())
    );

    // The file is not needed any more, nor anything else.
    fs::remove_file(trackers).expect("removed");
    let output = script(&world, &["client"], "list-groups\nwhoami\n");
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("lab") && stdout.contains("alice, on device "), "{stdout}");

    let kept = row(&show(&world, &[], &[]), "trackers");
    let path = data.join("trackers.txt");
    assert_eq!(
        kept,
        json!({"setting": "trackers", "value": [world.link().to_string()], "from": "kept",
            "name": path.to_str(), "line": null})
    );

    // Another data directory knows nothing of that.
    let other = world.path("other");
    let words = ["client", "--data-dir", other.to_str().expect("UTF-8")];
    let (words, status) = error(&script(&world, &words, "whoami\n"));
    assert!(status == 2 && words.contains("no trackers are known"), "{words}");
}

#[test]
fn trackers_come_from_the_file_the_environment_or_a_link() {
    let world = World::new();
    let link = world.link().to_string();
    let config = world.path("home/config/mtq/config.toml");
    let create = |user: &str| format!("create-user {user} secret\n");

    world.write("home/config/mtq/config.toml", format!("trackers = ['{link}']\n").as_bytes());
    assert!(script(&world, &["client"], &create("a")).status.success());

    fs::copy(world.trackers(), world.path("home/config/mtq/t.txt")).expect("copied");
    fs::write(&config, "trackers = 't.txt'\n").expect("written");
    assert!(script(&world, &["client"], &create("b")).status.success());

    fs::remove_file(&config).expect("removed");
    let fresh = world.path("fresh");
    let fresh = fresh.to_str().expect("UTF-8");
    let output =
        script(&world, &["client", "--trackers", &link, "--data-dir", fresh], &create("c"));
    assert!(output.status.success(), "{output:?}");

    let input = world.write("script", create("d").as_bytes());
    let output = run_reading(
        at_home(&world, &["client"])
            .env("MTQ_TRACKERS", world.trackers())
            .env("MTQ_DATA_DIR", world.path("fresh2"))
            .env("MTQ_JSON", "true"),
        fs::File::open(input).expect("opens"),
    );
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(answer["result"]["user"], "d");
    assert!(world.path("fresh2/trackers.txt").exists());

    // A file that is named and cannot be used is not passed over for what is kept.
    fs::write(&config, "\ntrackers = 'gone.txt'\n").expect("written");
    let (words, status) = error(&script(&world, &["client"], "whoami\n"));
    assert_eq!(status, 4, "{words}");
    let place = format!(
        "error: {}: line 2: {}",
        config.display(),
        config.with_file_name("gone.txt").display()
    );
    assert!(words.starts_with(&place), "{words}");
}

#[test]
fn trackers_of_another_network_take_the_place_of_those_kept() {
    let world = World::new();
    let trackers = world.trackers();
    let trackers = trackers.to_str().expect("UTF-8");
    let output = script(&world, &["client", "--trackers", trackers], "create-user alice secret\n");
    assert!(output.status.success(), "{output:?}");

    let nobody = format!("127.0.0.1:{}", free_port());
    assert!(
        run(mtq().args(["certs", "--out"]).arg(world.path("far")).arg(nobody)).status.success()
    );
    let far = world.path("far/tracker_info.txt");
    let output =
        script(&world, &["client", "--trackers", far.to_str().expect("UTF-8")], "list-groups\n");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let output = script(&world, &["client"], "list-groups\n");
    assert_eq!(output.status.code(), Some(5), "the other ones were given last: {output:?}");
    let output = script(&world, &["client", "--trackers", trackers], "login alice secret\n");
    assert!(output.status.success(), "{output:?}");

    // What was damaged is said, and given anew.
    fs::write(world.path("home/data/mtq/trackers.txt"), "nonsense\n").expect("written");
    let (words, status) = error(&script(&world, &["client"], "whoami\n"));
    assert_eq!(status, 1, "{words}");
    assert!(
        words.contains("trackers.txt: line 1: ") && words.contains("hint: give them again"),
        "{words}"
    );
    let output = script(&world, &["client", "--trackers", trackers], "whoami\n");
    assert!(output.status.success(), "{output:?}");
    assert!(script(&world, &["client"], "whoami\n").status.success());
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let world = World::without_tracker();
    let config = world.path("home/config/mtq/config.toml");
    let shown = show(&world, &[], &[]);
    assert_eq!(
        shown["config"],
        json!({"path": config.to_str(), "exists": false, "from": "default", "name": null})
    );
    let names: Vec<_> =
        shown["settings"].as_array().expect("rows").iter().map(|row| &row["setting"]).collect();
    assert_eq!(
        names,
        [
            "trackers",
            "data-dir",
            "listen",
            "log-file",
            "up",
            "down",
            "max-mtu",
            "congestion",
            "default-group",
            "mtorrent-dir",
            "on-event",
            "json",
            "history"
        ]
    );
    let data = world.path("home/data/mtq");
    let default = |name: &str, value: Value| json!({"setting": name, "value": value, "from": "default", "name": null, "line": null});
    assert_eq!(row(&shown, "data-dir"), default("data-dir", json!(data.to_str())));
    let history = world.path("home/state/mtq/history");
    assert_eq!(row(&shown, "history"), default("history", json!(history.to_str())));
    assert_eq!(row(&shown, "up"), default("up", Value::Null));
    assert_eq!(row(&shown, "trackers"), default("trackers", Value::Null));

    world.write(
        "home/config/mtq/config.toml",
        b"# mine\nup = '1MB'\ndown = '1MB'\ndefault-group = 'lab'\n",
    );
    let variables = [("MTQ_UP", Path::new("2MB")), ("MTQ_DOWN", Path::new("2MB"))];
    let shown = show(&world, &["--up", "3MB"], &variables);
    assert_eq!(shown["config"]["exists"], true);
    assert_eq!(
        row(&shown, "up"),
        json!({"setting": "up", "value": 3_000_000, "from": "flag", "name": "--up", "line": null})
    );
    assert_eq!(
        row(&shown, "down"),
        json!({"setting": "down", "value": 2_000_000, "from": "variable", "name": "MTQ_DOWN", "line": null})
    );
    assert_eq!(
        row(&shown, "default-group"),
        json!({"setting": "default-group", "value": "lab", "from": "config", "name": config.to_str(), "line": 4})
    );
    let output = run(&mut at_home(&world, &["config", "show"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let up = text.lines().find(|line| line.starts_with("up ")).expect("a line");
    assert!(up.contains("1000000 B/s") && up.ends_with("config.toml: line 2"), "{text}");
    assert!(text.starts_with("config "), "{text}");

    // Without XDG variables, below the home.
    let output = run(&mut at_plain_home(&world, &["config", "path"]));
    let path = world.path("home/.config/mtq/config.toml");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", path.display()));
    let output = run(at_home(&world, &["config", "path", "--json"]).env("MTQ_CONFIG", "/c.toml"));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(answer["result"], json!({"path": "/c.toml", "exists": false}));
    assert!(!data.exists(), "showing makes nothing");
}

#[test]
fn files_that_are_no_settings_get_one_line() {
    let world = World::without_tracker();
    let path = world.path("home/config/mtq/config.toml");
    for (content, status, words) in [
        (
            &b"uq = 1\n"[..],
            2,
            "config.toml: line 1: there is no setting uq\nhint: did you mean up?",
        ),
        (b"up = 1\nup = 2\n", 2, "config.toml: line 2: "),
        (b"up = 1\n", 2, "config.toml: line 1: up = 1: a rate is at least 16.0 KiB\nhint: "),
        (b"json = true\n\xff", 2, "config.toml: line 2: it is not valid UTF-8"),
        (&[b'#'; 70_000], 2, "config.toml: it is over the limit of 65536 bytes"),
    ] {
        world.write("home/config/mtq/config.toml", content);
        for verb in [&["client"][..], &["config", "show"]] {
            let (stderr, code) = error(&run(&mut at_home(&world, verb)));
            assert_eq!(code, status, "{stderr}");
            assert!(stderr.contains(words), "{stderr}");
        }
    }
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    let (stderr, code) = error(&run(&mut at_home(&world, &["config", "show"])));
    assert!(code == 2 && stderr.contains("config.toml: it is a directory"), "{stderr}");

    // Only a file that somebody named must be there.
    fs::remove_dir(&path).expect("removed");
    assert!(run(&mut at_home(&world, &["config", "show"])).status.success());
    let (stderr, code) =
        error(&run(&mut at_home(&world, &["config", "show", "--config", "/none"])));
    assert!(code == 4 && stderr.starts_with("error: --config: /none: "), "{stderr}");
    let (stderr, code) = error(&run(at_home(&world, &["client"]).env("MTQ_CONFIG", "/none")));
    assert!(code == 4 && stderr.starts_with("error: MTQ_CONFIG: /none: "), "{stderr}");

    let (stderr, code) = error(&run(at_home(&world, &["client"]).env("MTQ_UP", "fast")));
    assert!(code == 2 && stderr.starts_with("error: MTQ_UP=fast: a rate is bytes"), "{stderr}");
    let output = run(at_home(&world, &["config", "show", "--json"]).env("MTQ_LISTEN", "here"));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&answer["ok"], &answer["error"]["code"]), (&json!(false), &json!("usage")));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_home_is_needed_only_for_what_is_in_it() {
    let world = World::new();
    let homeless = |words: &[&str]| {
        let mut command = at_plain_home(&world, words);
        // Unset or empty, the system's list of users would give the real one of whoever runs this.
        command.env("HOME", "no/absolute/path");
        command
    };
    let (stderr, code) = error(&run(&mut homeless(&["client"])));
    assert!(code == 2 && stderr.contains("there is no home directory to keep data in"), "{stderr}");
    let (stderr, code) = error(&run(&mut homeless(&["config", "path"])));
    assert!(code == 2 && stderr.contains("--config FILE"), "{stderr}");

    let input = world.write("script", b"create-user alice secret\n");
    let output = run_reading(
        homeless(&["client", "--trackers"])
            .arg(world.trackers())
            .arg("--data-dir")
            .arg(world.path("data")),
        fs::File::open(input).expect("opens"),
    );
    assert!(output.status.success(), "{output:?}");
    assert!(!world.path("home").exists());
}
