//! Turns a line of text into a command: words split as a shell does, then the one grammar.

use clap::Parser as _;
use clap::error::ErrorKind;

use super::client_args::{ClientCommand, Line};
use super::exit::Failure;

/// What a line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Nothing: it is blank or a comment.
    Nothing,
    /// A command.
    Command(ClientCommand),
    /// Help, which is already text.
    Help(String),
    /// Nothing that makes sense; the word it began with.
    Wrong(String, Failure),
}

/// Parses one line.
pub fn parse(line: &str) -> Parsed {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Parsed::Nothing;
    }
    let first = line.split_whitespace().next().unwrap_or("").to_owned();
    let Some(mut words) = shlex::split(line) else {
        return Parsed::Wrong(first, Failure::usage("a quote is not closed"));
    };
    // The seeds' two-word form.
    if words.len() >= 2 && words[0] == "show" && words[1] == "downloads" {
        words.splice(..2, ["downloads".to_owned()]);
    }
    match Line::try_parse_from(words) {
        Ok(line) => Parsed::Command(line.command),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => Parsed::Help(error.to_string().trim_end().to_owned()),
            // What stands behind a user name may be a password: it is not repeated.
            ErrorKind::UnknownArgument
                if ["login", "create-user", "create_user"].contains(&first.as_str()) =>
            {
                let failure = Failure::usage("there are words after the password")
                    .hint("a password with blanks is put in quotes");
                Parsed::Wrong(first, failure)
            }
            _ => Parsed::Wrong(first, failure(&error)),
        },
    }
}

/// A clap error as one line and a hint.
fn failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let message = text
        .lines()
        .next()
        .unwrap_or("")
        .trim_start_matches("error: ")
        .replace("subcommand", "command");
    let missing: Vec<_> = match error.kind() {
        ErrorKind::MissingRequiredArgument => text
            .lines()
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| line.trim())
            .collect(),
        _ => Vec::new(),
    };
    let message = match missing.as_slice() {
        [] => message,
        missing => format!("missing {}", missing.join(" ")),
    };
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let failure = Failure::usage(super::text::printable(&message));
    match (error.kind(), usage) {
        (ErrorKind::InvalidSubcommand, _) | (_, None) => failure.hint("help lists the commands"),
        (_, Some(usage)) => failure.hint(format!("usage: {}", usage.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> ClientCommand {
        match parse(line) {
            Parsed::Command(command) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn wrong(line: &str) -> Failure {
        match parse(line) {
            Parsed::Wrong(_, failure) => failure,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn quotes_and_dashes_as_in_a_shell() {
        let ClientCommand::Get { args } = command(r#"get lab "a b.iso" '/tmp/x y'"#) else {
            panic!("not a get");
        };
        assert_eq!(args, ["lab", "a b.iso", "/tmp/x y"]);
        let ClientCommand::Get { args } = command("get lab -rf .") else { panic!("not a get") };
        assert_eq!(args, ["lab", "-rf", "."]);
        let ClientCommand::Share { path, name, .. } = command("share ./-rf lab --name '-r f'")
        else {
            panic!("not a share");
        };
        assert_eq!(path.to_str(), Some("./-rf"));
        assert_eq!(name.expect("a name").as_str(), "-r f");
    }

    #[test]
    fn the_seeds_own_commands_are_understood() {
        for (line, name) in [
            ("create_user alice secret", "create-user"),
            ("create_group g", "create-group"),
            ("join_group g", "join-group"),
            ("leave_group g", "leave-group"),
            ("list_groups", "list-groups"),
            ("requests g", "list-requests"),
            ("list_requests g", "list-requests"),
            ("accept_request g u", "accept-request"),
            ("reject_request g u", "reject-request"),
            ("upload_file /a g", "share"),
            ("list_files g", "list-files"),
            ("download_file g f d", "get"),
            ("get f.mtorrent d", "get"),
            ("show_downloads", "downloads"),
            ("show downloads", "downloads"),
            ("stop_share g f", "stop-share"),
            ("remove f.mtorrent", "remove"),
            ("exit", "quit"),
        ] {
            assert_eq!(command(line).name(), name, "{line}");
        }
    }

    #[test]
    fn nonsense_gets_one_line_and_a_hint() {
        let failure = wrong("create-usr a b");
        assert_eq!(failure.code, "usage");
        assert_eq!(failure.message.lines().count(), 1);
        assert_eq!(wrong("share onlypath").message, "missing <GROUP>");
        assert_eq!(wrong("share a 'b").message, "a quote is not closed");
        assert!(wrong("login 'no good'").message.contains("1 to 32"));
        assert!(wrong("wait --timeout soon").hint.is_some());
        let failure = wrong("login bob my secret words");
        assert!(!format!("{failure:?}").contains("secret"), "{failure:?}");
        assert!(matches!(
            command("login bob -dash"),
            ClientCommand::Login { password: Some(_), .. }
        ));
        assert!(matches!(parse("  # comment"), Parsed::Nothing));
        assert!(matches!(parse(""), Parsed::Nothing));
        for line in ["help", "--help", "help get", "get --help", "share -h"] {
            assert!(matches!(parse(line), Parsed::Help(_)), "{line}");
        }
    }
}
