//! The front door: parses the command line, runs the verb, ends with its status.

use std::process::ExitCode;

use clap::Parser as _;

use super::args::{Cli, Verb};
use super::exit::Failure;
use super::{certs, client, demo, tracker};

/// Runs the program.
pub fn main() -> ExitCode {
    let result: Result<u8, Failure> = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Certs(args) => certs::run(&args).map(|()| 0),
        Verb::Tracker(args) => tracker::run(&args).map(|()| 0),
        Verb::Client(args) => client::run(&args),
    };
    ExitCode::from(result.unwrap_or_else(|failure| {
        failure.print();
        failure.status
    }))
}
