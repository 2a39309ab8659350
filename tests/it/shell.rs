//! The prompt as a person meets it: on a terminal, with keys, looking at what stands there.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::world::{World, content, ended, run, terminate, wait_for};

const ROWS: u16 = 40;
const COLUMNS: u16 = 100;

const ENTER: &str = "\r";
const TAB: &str = "\t";
const UP: &str = "\x1b[A";
const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_U: &str = "\x15";

/// What the terminal shows, and everything that was written to it.
struct Shown {
    parser: vt100::Parser,
    written: Vec<u8>,
}

/// Somebody at a terminal where the program runs.
struct Person {
    child: Child,
    terminal: File,
    shown: Arc<Mutex<Shown>>,
    found: Termios,
}

impl Person {
    /// Sits down where `command` is run.
    fn start(command: &Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("its other side");
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("sized");
        let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("ASCII");
        let side =
            || Stdio::from(OpenOptions::new().read(true).write(true).open(&name).expect("open"));
        let terminal = File::from(terminal);
        let found = tcgetattr(&terminal).expect("modes");
        // Keys become signals only for those whose terminal it is.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            session.current_dir(directory);
        }
        let child = session.stdin(side()).stdout(side()).stderr(side()).spawn().expect("it runs");
        let count = |count: u16| count.try_into().expect("some");
        let parser = vt100::Parser::new(count(ROWS), count(COLUMNS), 0);
        let shown = Arc::new(Mutex::new(Shown { parser, written: Vec::new() }));
        let (screen, mut output) = (shown.clone(), terminal.try_clone().expect("shared"));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                let mut screen = screen.lock().expect("whole");
                screen.parser.process(&bytes[..len]);
                screen.written.extend(&bytes[..len]);
            }
        });
        Self { child, terminal, shown, found }
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).expect("typed");
    }

    fn rows(&self) -> Vec<String> {
        let shown = self.shown.lock().expect("whole");
        let rows = shown.parser.screen().rows(0, COLUMNS).map(|row| row.trim_end().to_owned());
        let mut rows: Vec<_> = rows.collect();
        while rows.last().is_some_and(String::is_empty) {
            rows.pop();
        }
        rows
    }

    /// The row with the cursor and the columns before it.
    fn cursor(&self) -> (usize, usize) {
        let (row, column) = self.shown.lock().expect("whole").parser.screen().cursor_position();
        (row.into(), column.into())
    }

    /// Whether this was ever written.
    fn was_written(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.shown.lock().expect("whole").written).contains(text)
    }

    /// Waits until the rows look so.
    fn sees(&self, what: &str, look: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut last = Vec::new();
        let mut begun = mtq::clock::monotonic();
        wait_for(what, || {
            let rows = self.rows();
            if rows != last {
                (begun, last) = (mtq::clock::monotonic(), rows.clone());
            }
            // What stands still for long is worth a look.
            assert!(begun.elapsed() < crate::world::DEADLINE / 2, "{what} in {rows:#?}");
            look(&rows).then_some(rows)
        })
    }

    /// Waits until a row with the cursor is this.
    fn sees_line(&self, line: &str) {
        self.sees(line, |rows| rows.get(self.cursor().0).is_some_and(|row| row == line));
    }

    /// Waits until a row is this.
    fn sees_row(&self, row: &str) {
        self.sees(row, |rows| rows.iter().any(|shown| shown == row));
    }

    /// Waits until a row has this in it.
    fn sees_words(&self, words: &str) {
        self.sees(words, |rows| rows.iter().any(|shown| shown.contains(words)));
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.terminal).expect("modes").local_modes
    }

    /// Waits until a command runs and no line is edited.
    fn sees_work(&self) {
        wait_for("a command", || self.modes().contains(LocalModes::ISIG).then_some(()));
    }

    /// Waits for the end; the terminal must be as it was found.
    fn ends(mut self) -> i32 {
        let status = ended(&mut self.child).code().expect("no signal killed it");
        let now = tcgetattr(&self.terminal).expect("modes");
        assert_eq!(now.local_modes, self.found.local_modes);
        assert_eq!(now.input_modes, self.found.input_modes);
        status
    }

    /// Ends as people do.
    fn leaves(mut self) {
        self.types(CTRL_D);
        assert_eq!(self.ends(), 0);
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Somebody at the prompt of a client with its own data directory, in the world's directory.
    fn person(&self, name: &str, options: &[&str]) -> Person {
        Person::start(&self.prompt_command(name, options))
    }

    fn prompt_command(&self, name: &str, options: &[&str]) -> Command {
        let mut command = self.client_command(name);
        command.args(options).current_dir(self.dir.path());
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command
    }

    fn history(&self, name: &str) -> String {
        fs::read_to_string(self.path(format!("{name}.data/history"))).expect("a history")
    }
}

#[test]
fn words_are_completed_from_grammar_agent_and_directories() {
    let world = World::new();
    let [mut alice, bob] = world.lab(["alice", "bob"]);
    let (data, other) = (content(900_000, 1), content(3_000, 2));
    for (name, data) in [("set one.iso", &data), ("set two.iso", &other)] {
        let path = world.write(&format!("out/{name}"), data);
        alice.ok(&format!("share '{}' lab", path.display()));
    }
    alice.ok("create-group den --hidden");
    world.make_dir("in box");
    bob.quit();
    let mut bob = world.person("bob", &[]);
    bob.sees_line("bob>");
    bob.types(&format!("list-gr{TAB}"));
    bob.sees_line("bob> list-groups");
    bob.types(ENTER);
    bob.sees_words("owner alice");
    bob.sees_line("bob>");
    bob.types(&format!("list-files l{TAB}"));
    bob.sees_line("bob> list-files lab");
    bob.types(&format!("{CTRL_U}kick lab {TAB}"));
    bob.sees_line("bob> kick lab");
    bob.sees_row("alice  bob");
    bob.types(&format!("{CTRL_U}list-members lab --{TAB}{CTRL_U}search --p{TAB}"));
    bob.sees_line("bob> search --prefix");
    // Two files, as far as they are the same, then the one.
    bob.types(&format!("{CTRL_U}get lab s{TAB}"));
    bob.sees_line("bob> get lab 'set");
    bob.sees_row("set one.iso  set two.iso");
    bob.types(&format!("o{TAB}"));
    bob.sees_line("bob> get lab 'set one.iso'");
    bob.types(&format!("in{TAB}"));
    bob.sees_line("bob> get lab 'set one.iso' 'in box/");
    // A word that is not whole yet is no command.
    bob.types(ENTER);
    bob.sees_row("error: a quote is not closed");
    bob.types(&format!("{UP}'{ENTER}"));
    let got = world.path("in box/set one.iso");
    wait_for("the file", || (fs::read(&got).ok()? == data).then_some(()));
    bob.sees_words("complete");
    bob.types(&format!("stop-share lab {TAB}"));
    bob.sees_line("bob> stop-share lab 'set one.iso'");
    bob.types(&format!("{CTRL_U}shar{TAB}out/{TAB}o{TAB}"));
    bob.sees_line("bob> share 'out/set one.iso");
    bob.types(&format!("{CTRL_U}nonsense{ENTER}"));
    bob.sees_row("error: unrecognized command 'nonsense'");
    bob.sees_row("hint: help lists the commands");
    bob.sees_line("bob>");
    // Ctrl-C takes with it what was typed ahead, as on any terminal.
    bob.types("half a li");
    bob.sees_line("bob> half a li");
    bob.types(CTRL_C);
    bob.sees_line("bob>");
    bob.leaves();
}

#[test]
fn a_slow_agent_is_waited_for_until_something_else_is_typed() {
    let world = World::new();
    let [mut bob] = world.lab(["bob"]);
    let path = world.write("set one.iso", &content(3_000, 1));
    bob.ok(&format!("share '{}' lab", path.display()));
    bob.quit();
    let agent = world.person("bob", &["daemon"]);
    agent.sees_words("the agent is up");
    let signal = |signal| kill_process(Pid::from_child(&agent.child), signal).expect("signalled");
    let mut bob = world.person("bob", &[]);
    bob.sees_line("bob>");
    signal(Signal::STOP);
    bob.types(&format!("stop-share lab {TAB}"));
    wait_for("what is typed", || {
        bob.types("x");
        bob.rows().iter().any(|row| row.starts_with("bob> stop-share lab x")).then_some(())
    });
    bob.types(&format!("{CTRL_U}stop-share lab s"));
    bob.sees_line("bob> stop-share lab s");
    bob.types(TAB);
    // It is slower than anybody who asks it for the first time waits.
    let output = run(world.client_command("bob").arg("whoami"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"), "{output:?}");
    bob.sees_line("bob> stop-share lab s");
    signal(Signal::CONT);
    bob.sees_line("bob> stop-share lab 'set one.iso'");
    bob.types(CTRL_U);
    bob.leaves();
    terminate(&agent.child);
    assert_eq!(agent.ends(), 130);
}

#[test]
fn lines_typed_ahead_are_done_in_order() {
    let world = World::new();
    let mut bob = world.person("bob", &[]);
    bob.types(&format!("create-user bob bob-secret{ENTER}login bob bob-secret{ENTER}create-gr"));
    bob.sees_line("bob> create-gr");
    bob.types(&format!("oup den{ENTER}whoami{ENTER}"));
    bob.sees_row("group den created; you own it");
    bob.sees_words("bob, on device");
    // What is pasted at once is a line each.
    bob.types(&format!("\x1b[200~list-members den\nlist-files den\n\x1b[201~{ENTER}"));
    bob.sees_words("owner  online");
    bob.sees_row("no files");
    bob.leaves();
}

#[test]
fn what_is_waited_for_can_be_given_up() {
    let world = World::new();
    let [mut alice, bob] = world.lab(["alice", "bob"]);
    let path = world.write("out/big.iso", &content(3_000_000, 1));
    alice.ok(&format!("share '{}' lab", path.display()));
    // Nobody who has it is there.
    alice.quit();
    world.make_dir("in");
    bob.quit();
    let mut bob = world.person("bob", &[]);
    bob.sees_line("bob>");
    bob.types(&format!("get lab big.iso in{ENTER}"));
    bob.sees_words("big.iso [");
    bob.types(&format!("wait{ENTER}"));
    bob.sees_work();
    bob.types(CTRL_C);
    bob.sees_row("given up");
    bob.sees_line("bob>");
    bob.types(&format!("downloads --watch{ENTER}"));
    bob.sees_words("[D]  lab  big.iso");
    bob.sees_work();
    bob.types(CTRL_C);
    bob.sees_row("given up");
    bob.types(&format!("events{ENTER}"));
    bob.sees_row("what happens is shown here as it happens");
    bob.types(CTRL_D);
    bob.sees_row("1 download is not finished; it goes on with the next client");
    assert_eq!(bob.ends(), 0);
}

#[test]
fn bars_and_news_leave_what_is_typed_alone() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let mut carol = world.user("carol");
    let path = world.write("out/big.iso", &content(30_000_000, 1));
    alice.ok(&format!("share '{}' lab", path.display()));
    world.make_dir("in");
    bob.ok("create-group den");
    bob.quit();
    let mut bob = world.person("bob", &["--down", "64KiB"]);
    bob.sees_line("bob>");
    bob.types(&format!("get lab big.iso in{ENTER}"));
    bob.sees_words("big.iso [");
    bob.types("list-requests de");
    bob.sees_line("bob> list-requests de");
    let bar = |rows: &[String]| rows.iter().rposition(|row| row.starts_with("big.iso ["));
    let rows = bob.sees("a bar", |rows| bar(rows).is_some());
    let first = rows[bar(&rows).expect("seen")].clone();
    bob.types(&format!("n{CTRL_A}"));
    // The bar grows, and stands right below the line.
    let rows = bob.sees("more", |rows| bar(rows).is_some_and(|at| rows[at] != first));
    let at = bar(&rows).expect("seen");
    assert_eq!(rows[at - 1], "bob> list-requests den", "{rows:#?}");
    assert_eq!(at, rows.len() - 1, "one bar: {rows:#?}");
    carol.ok("join-group den");
    let rows = bob.sees("news", |rows| {
        let news = rows.iter().position(|row| row.starts_with("* carol asks to join den"));
        news.is_some_and(|at| rows.get(at + 1).is_some_and(|row| row.starts_with("bob> list")))
    });
    let typed = rows.iter().filter(|row| row.contains("list-requests")).count();
    assert_eq!(typed, 1, "{rows:#?}");
    bob.sees("the cursor", |rows| bob.cursor() == (bar(rows).map_or(0, |at| at - 1), 5));
    bob.types(ENTER);
    bob.sees_words("carol  since");
    bob.sees_line("bob>");
    // A narrower terminal.
    let size = Winsize { ws_row: ROWS, ws_col: 30, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&bob.terminal, size).expect("sized");
    bob.sees("a short bar", |rows| bar(rows).is_some_and(|at| rows[at].len() < 30));
    bob.types("whoami");
    bob.sees_line("bob> whoami");
    bob.types(&format!("{CTRL_U}{CTRL_D}"));
    bob.sees_words("1 download is not finished");
    assert_eq!(bob.ends(), 0);
    alice.quit();
}

#[test]
fn passwords_are_neither_shown_nor_remembered() {
    let world = World::new();
    let mut dave = world.person("dave", &[]);
    dave.sees_line("mtq>");
    dave.types(&format!("create-user dave{ENTER}"));
    dave.sees_line("password:");
    dave.types(&format!("hush-hush{ENTER}"));
    dave.sees_line("again:");
    dave.types(&format!("hush-hush{ENTER}"));
    dave.sees_row("user dave created");
    dave.sees_line("mtq>");
    dave.types(&format!("login dave{ENTER}"));
    dave.sees_line("password:");
    dave.types(&format!("hu{CTRL_C}"));
    dave.sees_row("given up");
    dave.sees_line("mtq>");
    dave.types(&format!("{UP}{ENTER}"));
    dave.sees("a password", |rows| rows.last().is_some_and(|row| row == "password:"));
    dave.types("hush");
    dave.sees_line("password: ****");
    dave.types(&format!("-hush{ENTER}"));
    dave.sees_row("logged in as dave");
    dave.sees_line("dave>");
    assert!(!dave.was_written("hush"), "it was shown");
    dave.types(&format!("login dave hush-hush{ENTER}"));
    dave.sees_line("dave>");
    dave.types(&format!("login dave hush hush{ENTER}"));
    dave.sees_row("error: there are words after the password");
    dave.types(&format!("passwd hush-hush more-hush{ENTER}"));
    dave.sees_words("password changed");
    dave.leaves();
    let history = world.history("dave");
    let lines: Vec<_> = history.lines().skip(1).collect();
    assert_eq!(lines, ["create-user dave", "login dave", "passwd"], "{history}");
    let modes = fs::metadata(world.path("dave.data/history")).expect("there").permissions();
    assert_eq!(modes.mode() & 0o777, 0o600);
    // The next prompt knows them.
    let mut dave = world.person("dave", &[]);
    dave.sees_line("dave>");
    dave.types(UP);
    dave.sees_line("dave> passwd");
    dave.types(UP);
    dave.sees_line("dave> login dave");
    dave.types(CTRL_U);
    dave.leaves();
}

#[test]
fn colours_are_for_who_wants_them() {
    let world = World::new();
    let mut plain = world.prompt_command("plain", &[]);
    plain.env("NO_COLOR", "1");
    for (command, wanted) in [(plain, false), (world.prompt_command("gay", &[]), true)] {
        let mut person = Person::start(&command);
        person.sees_line("mtq>");
        person.types(&format!("nonsense{ENTER}"));
        person.sees_row("error: unrecognized command 'nonsense'");
        person.sees_line("mtq>");
        assert_eq!(person.was_written("\x1b[1;31merror:\x1b[0m"), wanted);
        assert_eq!(person.was_written("\x1b[1;32mmtq> \x1b[0m"), wanted);
        person.leaves();
    }
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let world = World::new();
    world.user("bob").quit();
    let mut bob = world.person("bob", &[]);
    bob.sees_line("bob>");
    bob.types("half a li");
    bob.sees_line("bob> half a li");
    assert!(!bob.modes().contains(LocalModes::ISIG));
    terminate(&bob.child);
    bob.sees_words("ending in order");
    assert_eq!(bob.ends(), 130);
    // Also while somebody is asked, in the prompt and for one command.
    let mut carol = world.person("carol", &[]);
    carol.sees_line("mtq>");
    carol.types(&format!("login carol{ENTER}"));
    carol.sees_line("password:");
    terminate(&carol.child);
    assert_eq!(carol.ends(), 130);
    let carol = world.person("carol", &["login", "carol"]);
    carol.sees_line("password:");
    terminate(&carol.child);
    assert_eq!(carol.ends(), 130);
}

#[test]
fn a_terminal_that_can_do_nothing_takes_lines() {
    let world = World::new();
    let mut command = world.prompt_command("bob", &[]);
    command.env("TERM", "dumb");
    let mut bob = Person::start(&command);
    bob.types("nonsense\nwhoami\n");
    bob.sees_words("error: line 1: unrecognized command 'nonsense'");
    bob.sees_words("nobody, on device");
    bob.types(CTRL_D);
    assert_eq!(bob.ends(), 2);
}
