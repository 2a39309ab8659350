//! The grammar of the program: help texts and shapes, nothing else. Defaults are decided where they are
//! used.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::client_args::{ClientArgs, ConfigArgs};
use super::operator_args::TrackerArgs;

/// Move large files inside a group, over encrypted QUIC, with every member a source.
#[derive(Debug, Parser)]
#[command(name = "mtq", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs of the program.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show it working: real processes on this machine share and fetch a file.
    Demo(DemoArgs),
    /// Make tracker identities and the tracker_info.txt that clients need.
    Certs(CertsArgs),
    /// Run a tracker, or see to one that runs.
    Tracker(Box<TrackerArgs>),
    /// Run a client; commands come from standard input, one a line ("help" lists them).
    Client(Box<ClientArgs>),
    /// Show the settings of a client, and where they come from.
    Config(ConfigArgs),
}

/// `mtq demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What is shown.
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub scenario: Scenario,
    /// Clients in all; the first shares, the others fetch at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=32))]
    pub peers: u16,
    /// Size of the generated file [default: 256MiB; 512MiB for failover].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Keep everything (files, logs, keys) in this new directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// What a demo shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// One tracker; a file goes to everybody at once, and all copies are compared.
    #[default]
    Plain,
    /// Two trackers; the one in use is killed in the middle of downloads and of commands, which go
    /// on; then it comes back, and both come to know the same.
    Failover,
}

/// `mtq certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// Directory to write tracker1.pem, tracker2.pem, ... and tracker_info.txt to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// HOST:PORT of each tracker, as clients reach it.
    #[arg(required = true, value_name = "ADDR")]
    pub addresses: Vec<String>,
}
