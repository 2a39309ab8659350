//! The front door: parses the command line, runs the verb, ends with its status.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use super::args::{Cli, Verb};
use super::exit::Failure;
use super::{
    certs, client, config, demo, inspect, manual, operate, output, script, tracker, verify,
};

/// Runs the program.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if error.use_stderr() => {
            let failure = script::failure(&error);
            // What was to be printed as JSON is not known of a line that makes no sense but by this.
            if std::env::args_os().any(|word| word == "--json") {
                output::print("", &Err(failure.clone()), true);
            }
            failure.print();
            return ExitCode::from(failure.status);
        }
        // Help, and the version.
        Err(error) => error.exit(),
    };
    let result: Result<u8, Failure> = match cli.verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Certs(args) => certs::run(&args).map(|()| 0),
        Verb::Tracker(args) => match (args.verb, args.run) {
            (Some(verb), _) => operate::run(verb).map(|()| 0),
            (None, Some(args)) => tracker::run(&args),
            (None, None) => Err(Failure::usage("a tracker needs --data-dir DIR")
                .hint("mtq tracker --help lists options and commands")),
        },
        Verb::Client(args) => match matches.subcommand() {
            Some((_, matches)) => client::run(&args, matches),
            None => Err(Failure::usage("nothing to do")),
        },
        Verb::Config(args) => config::run(&args.verb).map(|()| 0),
        Verb::Inspect(args) => inspect::run(&args).map(|()| 0),
        Verb::Verify(args) => verify::run(&args),
        Verb::Completions(args) => manual::completions(&args).map(|()| 0),
        Verb::Man(args) => manual::man(&args).map(|()| 0),
    };
    ExitCode::from(result.unwrap_or_else(|failure| {
        failure.print();
        failure.status
    }))
}
