//! What `help` says: all commands, by what they are about.

use clap::CommandFactory as _;

use super::client_args::Line;
use super::text::table;

/// The commands, in the order in which a newcomer needs them.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Accounts",
        &["create-user", "login", "logout", "whoami", "passwd", "devices", "remove-device"],
    ),
    ("Groups", &["create-group", "list-groups", "join-group", "leave-group", "list-members"]),
    (
        "Your own groups",
        &[
            "list-requests",
            "accept-request",
            "reject-request",
            "kick",
            "nominate",
            "transfer-group",
            "set-group",
            "unlist",
        ],
    ),
    ("Files", &["share", "list-files", "search", "get", "stop-share", "remove"]),
    ("Downloads and shares", &["downloads", "pause", "resume", "cancel", "wait", "limit", "peers"]),
    ("Session", &["status", "events", "help", "quit"]),
];

/// All commands, each with a line on what it does.
pub fn all() -> String {
    let grammar = Line::command();
    let mut parts = Vec::new();
    for (title, names) in GROUPS {
        let rows: Vec<_> = names
            .iter()
            .map(|name| {
                let about = grammar.find_subcommand(name).and_then(clap::Command::get_about);
                let about = match *name {
                    "help" => "This list, or with COMMAND all about one".to_owned(),
                    _ => about.map(ToString::to_string).unwrap_or_default(),
                };
                // The first sentence; help COMMAND has the others.
                let first = about.split(". ").next().unwrap_or("").to_owned();
                vec![format!("  {name}"), first]
            })
            .collect();
        parts.push(format!("{title}\n{}", table(&rows)));
    }
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let mut named: Vec<_> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        named.sort_unstable();
        let grammar = Line::command();
        let mut known: Vec<_> = grammar.get_subcommands().map(clap::Command::get_name).collect();
        known.push("help");
        known.sort_unstable();
        known.dedup();
        assert_eq!(named, known);
        let help = all();
        assert!(help.contains("\n  list-files  ") && help.starts_with("Accounts\n"), "{help}");
        assert!(help.lines().all(|line| !line.trim_end().ends_with('-')), "{help}");
    }
}
