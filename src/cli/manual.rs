//! `mtq completions` and `mtq man`: what shells and manual readers are told of the grammar.
//!
//! Both follow from the grammar alone, the commands of a client included, so they are never behind it.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::{Cli, CompletionShell, CompletionsArgs, ManArgs};
use super::client_args::Line;
use super::exit::{Failure, status};
use super::text;

/// What the last section of mtq(1) says of exit statuses.
const STATUSES: &[(u8, &str)] = &[
    (0, "done"),
    (status::FAILED, "failed for any other reason"),
    (status::USAGE, "the command line or a line of a script makes no sense"),
    (status::REFUSED, "not logged in, or refused"),
    (status::NOT_FOUND, "something named does not exist"),
    (status::NO_TRACKER, "no tracker reachable"),
    (status::INTEGRITY, "data is not what it should be"),
    (status::DISK, "the disk or a file cannot be used"),
    (status::INTERRUPTED, "interrupted by a signal"),
];

/// Prints completions.
///
/// # Errors
/// [`Failure`] when standard output takes no more.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar(), "mtq", &mut script);
    print(&script)
}

/// Prints mtq(1), or writes all pages to a directory, over older ones.
///
/// # Errors
/// [`Failure`].
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut root = grammar();
    root.build();
    let Some(out) = &args.out else { return print(&page(root)) };
    fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
    let mut commands = vec![root];
    let mut count = 0;
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().filter(|below| is_shown(below)).cloned());
        let path = out.join(format!("{}.1", name(&command)));
        fs::write(&path, page(command)).map_err(|error| unwritable(&path, &error))?;
        count += 1;
    }
    eprintln!("{count} pages in {}", text::path(out));
    Ok(())
}

/// The grammar of the program, with the commands of a client below `mtq client`.
fn grammar() -> Command {
    let with_commands = |client: Command| match client.has_subcommands() {
        true => client,
        false => client.subcommands(Line::command().get_subcommands().cloned()),
    };
    Cli::command().disable_help_subcommand(true).mut_subcommand("client", with_commands)
}

/// Whether a command has a page of its own; `help` has not.
fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

/// `mtq-tracker-user-list`, of a built command.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// The page of a built command.
fn page(command: Command) -> Vec<u8> {
    let is_root = command.get_name() == "mtq";
    let mut bytes = Vec::new();
    // An empty date would not be written, and what follows would be taken for it.
    let man = Man::new(command)
        .date(" ")
        .source(concat!("mtq ", env!("CARGO_PKG_VERSION")))
        .manual("mtq manual");
    man.render(&mut bytes).expect("invariant: memory takes every byte");
    if is_root {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        for (status, words) in STATUSES {
            roff.control("TP", []);
            roff.text([roman(status.to_string())]);
            roff.text([roman(*words)]);
        }
        bytes.extend_from_slice(roff.to_roff().as_bytes());
    }
    bytes
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // A reader that went away has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("disk", format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => "permission-denied",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no-space",
        _ => "disk",
    };
    Failure::new(code, format!("{}: {error}", text::path(path)))
}
