//! Turns a line of text into a command: words split as a shell does, then the one grammar.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, Parser as _};

use super::client_args::{ClientCommand, Line};
use super::exit::Failure;
use super::help;

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
    match shlex::split(line) {
        Some(words) => parse_words(words),
        None => Parsed::Wrong(first, Failure::usage("a quote is not closed")),
    }
}

/// Parses the words of a line.
pub fn parse_words(mut words: Vec<String>) -> Parsed {
    let first = words.first().cloned().unwrap_or_default();
    if first.is_empty() {
        let failure = Failure::usage("there is no command").hint("help lists the commands");
        return Parsed::Wrong(first, failure);
    }
    // The seeds' two-word form.
    if words.len() >= 2 && words[0] == "show" && words[1] == "downloads" {
        words.splice(..2, ["downloads".to_owned()]);
    }
    if matches!(words.as_slice(), [word] if ["help", "--help", "-h"].contains(&word.as_str())) {
        return Parsed::Help(help::all());
    }
    match Line::try_parse_from(words) {
        Ok(line) => Parsed::Command(line.command),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => Parsed::Help(error.to_string().trim_end().to_owned()),
            // What stands behind a user name may be a password: it is not repeated.
            ErrorKind::UnknownArgument
                if ["login", "create-user", "create_user", "passwd"].contains(&first.as_str()) =>
            {
                let failure = Failure::usage("there are words after the password")
                    .hint("a password with blanks is put in quotes");
                Parsed::Wrong(first, failure)
            }
            _ => Parsed::Wrong(first, failure(&error)),
        },
    }
}

/// The words of a command that was parsed as a part of a longer line: those which [`parse_words`]
/// understands as the same. `matches` are those of the command.
///
/// # Errors
/// [`Failure`] when one is not Unicode.
pub fn words_of(name: &str, matches: &ArgMatches) -> Result<Vec<String>, Failure> {
    let grammar = Line::command();
    let command = grammar.find_subcommand(name).map(clap::Command::get_arguments);
    let mut words = vec![name.to_owned()];
    let mut positionals = vec!["--".to_owned()];
    for arg in command.into_iter().flatten() {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let mut values = Vec::new();
        for value in matches.get_raw(id).into_iter().flatten() {
            let value = value.to_str().ok_or_else(|| {
                let value = super::text::printable(&value.to_string_lossy());
                Failure::usage(format!("{value}: not Unicode"))
                    .hint("rename it, or use a link with another name")
            })?;
            values.push(value.to_owned());
        }
        match arg.get_long() {
            None => positionals.extend(values),
            Some(long) if arg.get_action().takes_values() => {
                words.extend(values.iter().map(|value| format!("--{long}={value}")));
            }
            Some(long) => words.push(format!("--{long}")),
        }
    }
    if positionals.len() > 1 {
        words.append(&mut positionals);
    }
    Ok(words)
}

/// A clap error as one line and a hint.
pub fn failure(error: &clap::Error) -> Failure {
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
    let failure = Failure::usage(super::text::printable(&message));
    let suggested = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    let nearest = suggested.into_iter().find_map(|kind| match error.get(kind)? {
        ContextValue::String(word) => Some(word.clone()),
        // The nearest comes last.
        ContextValue::Strings(words) => words.last().cloned(),
        _ => None,
    });
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
    match (error.kind(), nearest, usage) {
        (_, Some(nearest), _) => failure.hint(format!("did you mean {nearest}?")),
        (ErrorKind::InvalidSubcommand, ..) | (_, _, None) => {
            failure.hint("help lists the commands")
        }
        (_, _, Some(usage)) => failure.hint(format!("usage: {}", usage.trim())),
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
        let get = |line: &str| match command(line) {
            ClientCommand::Get { source, file, dest, .. } => (source, file, dest),
            other => panic!("not a get: {other:?}"),
        };
        let word = str::to_owned;
        let expected = (word("lab"), word("a b.iso"), Some(word("/tmp/x y")));
        assert_eq!(get(r#"get lab "a b.iso" '/tmp/x y'"#), expected);
        assert_eq!(get("get lab -rf . --wait"), (word("lab"), word("-rf"), Some(word("."))));
        assert_eq!(get("get x.mtorrent ."), (word("x.mtorrent"), word("."), None));
        let ClientCommand::Share { words, name, .. } = command("share ./-rf lab --name '-r f'")
        else {
            panic!("not a share");
        };
        assert_eq!(words, ["./-rf", "lab"].map(std::path::PathBuf::from));
        assert_eq!(name.expect("a name").as_str(), "-r f");
    }

    #[test]
    fn many_files_are_one_command_and_paths_start_where_it_is_given() {
        let started = |line: &str| {
            let mut command = command(line);
            command.start_from(std::path::Path::new("/here"));
            command
        };
        let words_of = |line: &str| match started(line) {
            ClientCommand::Share { words, group, .. } => {
                let words = words.iter().map(|word| word.display().to_string());
                (words.collect::<Vec<_>>().join(" "), group.map(|group| group.to_string()))
            }
            other => panic!("not a share: {other:?}"),
        };
        for (line, words, group) in [
            ("share a", "/here/a", None),
            ("share a lab", "/here/a lab", None),
            ("share a /b c lab", "/here/a /b /here/c lab", None),
            ("share --group lab a b", "/here/a /here/b", Some("lab")),
        ] {
            assert_eq!(words_of(line), (words.to_owned(), group.map(str::to_owned)), "{line}");
        }
        for (line, file, dest) in [
            ("get --list lab names in", "/here/names", "/here/in"),
            ("get --list lab - in", "-", "/here/in"),
            ("get --glob lab *.fa in --wait", "*.fa", "/here/in"),
            ("get --regex lab -x in", "-x", "/here/in"),
        ] {
            let ClientCommand::Get { source, file: own, dest: to, .. } = started(line) else {
                panic!("not a get")
            };
            assert_eq!((&source[..], &own[..], to.as_deref()), ("lab", file, Some(dest)), "{line}");
        }
        for nonsense in ["get --glob --regex lab a in", "get --glob --list lab a in", "share"] {
            assert_eq!(wrong(nonsense).code, "usage", "{nonsense}");
        }
        let ClientCommand::Wait { files, .. } = command("wait lab a b/c id:00ff00ff") else {
            panic!("not a wait")
        };
        assert_eq!(files.len(), 3);
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
    fn a_command_behind_the_program_has_the_same_words() {
        use super::super::args::Cli;
        for (typed, words) in [
            ("downloads", vec!["downloads"]),
            ("share --name=-x a/b lab", vec!["share", "--name=-x", "--", "a/b", "lab"]),
            ("get lab -rf . --wait", vec!["get", "--wait", "--", "lab", "-rf", "."]),
            ("search --prefix -- --regex", vec!["search", "--prefix", "--", "--regex"]),
            ("limit --up 2MiB", vec!["limit", "--up=2MiB"]),
            ("share a -- b lab", vec!["share", "--", "a", "b", "lab"]),
            ("get --glob lab * in", vec!["get", "--glob", "--", "lab", "*", "in"]),
            ("wait lab a b", vec!["wait", "--", "lab", "a", "b"]),
        ] {
            let program = ["mtq", "client", "--trackers", "t", "--data-dir", "d"];
            let matches = Cli::command()
                .try_get_matches_from(program.into_iter().chain(typed.split(' ')))
                .expect(typed);
            let (_, client) = matches.subcommand().expect("client");
            let (name, command) = client.subcommand().expect("a command");
            let found = words_of(name, command).expect("Unicode");
            assert_eq!(found, words);
            assert!(matches!(parse_words(found), Parsed::Command(_)), "{typed}");
        }
    }

    #[test]
    fn nonsense_gets_one_line_and_a_hint() {
        let failure = wrong("create-usr a b");
        assert_eq!(failure.code, "usage");
        assert_eq!(failure.message.lines().count(), 1);
        assert_eq!(wrong("list-files").message, "missing <GROUP>");
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
