//! What is remembered of a line that was typed: never a password.

use super::client_args::ClientCommand;
use super::script::{self, Parsed};

/// Commands behind which a password may stand.
const SECRETIVE: &[&str] = &["login", "create-user", "create_user", "passwd"];

/// So many slips make another word of one of them.
const SLIPS: usize = 2;

/// What is remembered of a line, if anything.
pub fn remembered(line: &str) -> Option<String> {
    let line = line.trim();
    match script::parse(line) {
        Parsed::Nothing => None,
        Parsed::Help(_) => Some(line.to_owned()),
        Parsed::Command(command) if command.has_password() => Some(match command {
            ClientCommand::Login { user, .. } => format!("login {user}"),
            ClientCommand::CreateUser { user, .. } => format!("create-user {user}"),
            command => command.name().to_owned(),
        }),
        Parsed::Command(_) => Some(line.to_owned()),
        // What does not make sense may be meant as something with a password.
        Parsed::Wrong(first, _) => {
            let first: String = first.chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
            let first = first.to_lowercase();
            let is_secretive = SECRETIVE.iter().any(|name| distance(&first, name) <= SLIPS);
            (!is_secretive).then(|| line.to_owned())
        }
    }
}

/// How many letters are to be put in, left out or changed to make one word the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.pop().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_remembered() {
        for (line, expected) in [
            ("login bob hush-hush", Some("login bob")),
            ("login bob 'hush hush'", Some("login bob")),
            ("create_user bob hush --invite x", Some("create-user bob")),
            ("passwd hush hush2", Some("passwd")),
            ("login bob", Some("login bob")),
            ("create-user bob --invite code", Some("create-user bob --invite code")),
            // Nobody can tell what these mean.
            ("login bob hush hush", None),
            ("login bob 'hush", None),
            ("'login bob hush", None),
            ("login 'no good' hush", None),
            ("passwd hush", None),
            ("logni bob hush", None),
            ("create-usr bob hush", None),
            ("paswd hush hush2", None),
            ("LOGIN bob hush", None),
            // These cannot be meant so.
            ("shaer a.iso lab", Some("shaer a.iso lab")),
            ("get lab 'a.iso", Some("get lab 'a.iso")),
            ("  list-groups ", Some("list-groups")),
            ("help login", Some("help login")),
            ("# hush", None),
            ("", None),
        ] {
            assert_eq!(remembered(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn slips_are_counted() {
        assert_eq!(distance("login", "login"), 0);
        assert_eq!(distance("logni", "login"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
