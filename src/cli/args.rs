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
    /// Share, find and download: run a client, or have it do one command. Without COMMAND they come from
    /// a prompt, or from standard input, one a line.
    Client(Box<ClientArgs>),
    /// Show the settings of a client, and where they come from.
    Config(ConfigArgs),
    /// Show what a .mtorrent file says, or make a .torrent file of it.
    Inspect(InspectArgs),
    /// Hold a file against its .mtorrent file, without any network.
    Verify(VerifyArgs),
    /// Print what makes a shell complete the words of mtq.
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for every command.
    Man(ManArgs),
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

/// `mtq inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The metafile.
    #[arg(value_name = "FILE.mtorrent")]
    pub metafile: PathBuf,
    /// Print the hashes of all pieces instead, one a line: index, offset, length, SHA-1, BLAKE3.
    #[arg(long)]
    pub pieces: bool,
    /// Write a BitTorrent metainfo (version 1) of the file to standard output instead.
    #[arg(long, conflicts_with_all = ["pieces", "json"])]
    pub torrent: bool,
    /// Print one JSON object (JSON.md lists the shapes); with --pieces, pieces and all.
    #[arg(long)]
    pub json: bool,
}

/// `mtq verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// The metafile.
    #[arg(value_name = "FILE.mtorrent")]
    pub metafile: PathBuf,
    /// The file, or the directory it is in under its own name; an unfinished download, DEST/.mtq/*.part,
    /// can be checked too.
    pub path: PathBuf,
    /// Print one JSON object (JSON.md lists the shapes).
    #[arg(long)]
    pub json: bool,
}

/// `mtq completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell; its manual says where they go.
    pub shell: CompletionShell,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// For example: mtq completions bash > ~/.local/share/bash-completion/completions/mtq
    Bash,
    /// For example: mtq completions zsh > DIR/_mtq, with DIR in $fpath.
    Zsh,
    /// For example: mtq completions fish > ~/.config/fish/completions/mtq.fish
    Fish,
}

/// `mtq man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write mtq.1 and a page for every command to this directory, over older ones.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
