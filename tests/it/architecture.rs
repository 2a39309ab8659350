//! The house checks itself: imports point down, pure files are pure, dependencies have one home.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that do no IO, no async, and read no clock and no randomness.
const PURE: &[&str] = &[
    "limits.rs",
    "wire.rs",
    "hash.rs",
    "piece.rs",
    "bitfield.rs",
    "manifest.rs",
    "peer_id.rs",
    "name.rs",
    "signed.rs",
    "id.rs",
    "tracker_link.rs",
    "roster.rs",
    "ticket.rs",
    "metainfo.rs",
    "torrent.rs",
    "error_code.rs",
    "transport/tuning.rs",
    "transport/hello.rs",
    "tracker/refusal.rs",
    "tracker/greeting.rs",
    "tracker/message.rs",
    "tracker/push.rs",
    "tracker/address.rs",
    "tracker/vector.rs",
    "tracker/lattice.rs",
    "tracker/op.rs",
    "tracker/facts.rs",
    "tracker/index.rs",
    "tracker/state.rs",
    "tracker/derived.rs",
    "tracker/command.rs",
    "tracker/remembered.rs",
    "tracker/decide.rs",
    "tracker/ledger.rs",
    "tracker/view.rs",
    "tracker/census.rs",
    "tracker/control.rs",
    "tracker/pages.rs",
    "tracker/feed.rs",
    "tracker/time.rs",
    "tracker/siblings.rs",
    "tracker/reservations.rs",
    "tracker/seats.rs",
    "tracker/gossip.rs",
    "tracker/sync_message.rs",
    "swarm/midstates.rs",
    "swarm/message.rs",
    "swarm/event.rs",
    "swarm/picker.rs",
    "swarm/pipe.rs",
    "swarm/blame.rs",
    "swarm/peer.rs",
    "swarm/flights.rs",
    "swarm/rescue.rs",
    "swarm/room.rs",
    "swarm/scheduler.rs",
    "swarm/record.rs",
    "swarm/buffers.rs",
    "swarm/chunks.rs",
    "swarm/running_sha1.rs",
    "swarm/ahead.rs",
    "swarm/intake.rs",
    "swarm/asking.rs",
    "swarm/overdue.rs",
    "swarm/sim_net.rs",
    "swarm/sim_report.rs",
    "swarm/sim_swarm.rs",
    "swarm/sim_world.rs",
    "swarm/sim_transfer.rs",
    "swarm/sim.rs",
    "swarm/trust.rs",
    "swarm/allowance.rs",
    "swarm/rate.rs",
    "swarm/serving_queue.rs",
    "swarm/slots.rs",
    "swarm/strangers.rs",
    "swarm/upload_counts.rs",
    "client/echo.rs",
    "client/failover.rs",
    "client/groups.rs",
    "client/library.rs",
    "client/record.rs",
    "cli/rate.rs",
    "cli/time.rs",
    "cli/client_args.rs",
    "cli/config_file.rs",
    "cli/settings.rs",
    "cli/operator_args.rs",
    "cli/args.rs",
    "cli/help.rs",
    "cli/script.rs",
    "cli/request.rs",
    "cli/history.rs",
    "cli/complete.rs",
];

/// What a pure file may not say.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::io::",
    "std::env",
    "UdpSocket",
    "tokio::",
    "async fn",
    "Instant",
    "SystemTime",
    "clock::now",
    "clock::monotonic",
    "Rng::new()",
    "fastrand::u",
    "println!",
    "tracing::",
];

/// Where alone a dependency may be named: one place, or two.
const HOMES: &[(&str, &str)] = &[
    ("quinn::", "transport/"),
    ("quinn_proto::", "transport/"),
    ("rustls::", "transport/"),
    ("rcgen::", "transport/"),
    ("socket2::", "transport/"),
    ("clap::", "cli/"),
    ("clap_complete::", "cli/manual.rs"),
    ("clap_mangen::", "cli/manual.rs"),
    ("indicatif::", "cli/"),
    ("rustyline::", "cli/editor.rs cli/secret.rs"),
    ("rpassword::", "cli/secret.rs"),
    ("argon2::", "tracker/password.rs"),
    ("redb::", "tracker/disk.rs client/shelf.rs"),
    ("governor::", "tracker/throttle.rs"),
    ("prometheus_client::", "tracker/counters.rs"),
    ("hyper::", "tracker/metrics.rs"),
    ("hyper_util::", "tracker/metrics.rs"),
    ("http_body_util::", "tracker/metrics.rs"),
    ("regex::", "tracker/finding.rs"),
    ("toml::", "metainfo.rs cli/config_file.rs"),
    ("etcetera::", "cli/config.rs"),
    ("postcard::", "wire.rs"),
];

struct File {
    /// Path below src.
    name: String,
    /// Its text up to its tests.
    code: String,
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files() -> Vec<File> {
    let mut found = Vec::new();
    let mut directories = vec![source()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("readable");
                let code = text.split("\n#[cfg(test)]").next().unwrap_or("").to_owned();
                let name = path.strip_prefix(source()).expect("below src");
                found.push(File { name: name.to_string_lossy().into_owned(), code });
            }
        }
    }
    assert!(found.len() > 40, "the tree was read");
    found
}

/// `pub mod x;` lines of a table of contents, in order.
fn floors(table: &str) -> Vec<String> {
    let text = fs::read_to_string(source().join(table)).expect("readable");
    let modules = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod "));
    modules.map(|line| line.trim_end_matches(';').to_owned()).collect()
}

/// Lines of code, comments left out.
fn lines(code: &str) -> impl Iterator<Item = &str> {
    code.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

/// The module paths named after `prefix`, such as `crate::`.
fn named_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    line.match_indices(prefix).flat_map(move |(at, _)| {
        let rest = &line[at + prefix.len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or("").split(',').collect::<Vec<_>>(),
            None => vec![rest],
        };
        names
            .into_iter()
            .map(|name| {
                let end = |c: char| !(c.is_alphanumeric() || c == '_');
                name.trim().split(end).next().unwrap_or("").to_owned()
            })
            .collect::<Vec<_>>()
    })
}

#[test]
fn imports_point_down() {
    let top = floors("lib.rs");
    let height: HashMap<_, _> = top.iter().enumerate().map(|(i, m)| (m.as_str(), i)).collect();
    let mut rooms: HashMap<String, Vec<String>> = HashMap::new();
    for room in ["transport", "tracker", "swarm", "client", "cli"] {
        rooms.insert(room.to_owned(), floors(&format!("{room}/mod.rs")));
    }
    let mut wrong = Vec::new();
    for File { name, code } in files() {
        if name == "lib.rs" || name == "main.rs" {
            continue;
        }
        let (room, file) = match name.split_once('/') {
            Some((room, file)) => (room.to_owned(), Some(file.trim_end_matches(".rs").to_owned())),
            None => (name.trim_end_matches(".rs").to_owned(), None),
        };
        let own = height[room.as_str()];
        for line in lines(&code) {
            for target in named_after(line, "crate::") {
                if height.get(target.as_str()).is_some_and(|other| *other > own) {
                    wrong.push(format!("{name} uses crate::{target}, which stands above it"));
                }
                let neighbours =
                    [room.as_str(), target.as_str()] == ["swarm", "tracker"] as [&str; 2];
                if neighbours {
                    wrong.push(format!("{name}: swarm and tracker do not know each other"));
                }
            }
            let Some(file) = file.as_deref().filter(|file| *file != "mod") else { continue };
            let inside = &rooms[&room];
            let place = |module: &str| inside.iter().position(|m| m == module);
            let own_place = place(file).unwrap_or_else(|| panic!("{name} is in no mod.rs"));
            for target in named_after(line, "super::") {
                if place(&target).is_some_and(|other| other >= own_place) {
                    wrong.push(format!("{name} uses super::{target}, which stands above it"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_files_are_pure() {
    let files = files();
    for pure in PURE {
        let file = files.iter().find(|file| file.name == *pure);
        let file = file.unwrap_or_else(|| panic!("{pure} is not there"));
        for line in lines(&file.code) {
            for word in IMPURE {
                assert!(!line.contains(word), "{pure} is pure and says {word}: {line}");
            }
        }
    }
}

#[test]
fn dependencies_have_one_home() {
    for File { name, code } in files() {
        for line in lines(&code) {
            for (word, home) in HOMES {
                let begins = |at: usize| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                };
                let named = line.match_indices(word).any(|(at, _)| begins(at));
                let at_home = home.split(' ').any(|home| name.starts_with(home));
                assert!(!named || at_home, "{name} names {word}: {line}");
            }
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for File { name, code } in files() {
        assert!(code.starts_with("//!"), "{name} does not say what it is");
        let count = code.lines().count();
        assert!(count <= 650, "{name} has {count} lines before its tests");
    }
}
