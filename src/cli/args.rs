//! The grammar: help texts and shapes, nothing else. Defaults are decided where they are used.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::rate::Rate;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::tracker_link::TrackerLink;

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
    Client(ClientArgs),
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

/// `mtq tracker`: with a command, about a tracker; without, the tracker itself.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "mtq tracker --data-dir <DIR> [OPTIONS]\n       mtq tracker <COMMAND>"
)]
pub struct TrackerArgs {
    /// What to do with a tracker.
    #[command(subcommand)]
    pub verb: Option<OperatorVerb>,
    /// How to run one.
    #[command(flatten)]
    pub run: Option<RunArgs>,
}

/// The options of a tracker that runs.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The tracker's private key (made by `mtq certs`); without it one is kept in the data
    /// directory.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// tracker_info.txt; the tracker finds its own address in it. Needed unless --listen is given.
    #[arg(long, value_name = "FILE", required_unless_present = "listen")]
    pub trackers: Option<PathBuf>,
    /// Directory for everything the tracker keeps.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// UDP address to listen on, where it differs from the one in tracker_info.txt.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Who may make an account: anybody; whoever has a code of `mtq tracker invite`; nobody.
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub registration: RegistrationMode,
    /// Have no group public, of which every account is a member.
    #[arg(long)]
    pub no_public_group: bool,
    /// Connections taken from one address [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_address: Option<u32>,
    /// Serve metrics for Prometheus at http://ADDR/metrics, for example on 127.0.0.1:9100. They
    /// are for whoever can reach the address.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Append the log to this file instead of standard error.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Form of the log: lines for people, or one JSON object a line.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Who may make an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RegistrationMode {
    /// Anybody.
    #[default]
    Open,
    /// Whoever has an invitation.
    Invite,
    /// Nobody.
    Closed,
}

/// What a log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What an operator can do with a tracker.
#[derive(Debug, Subcommand)]
pub enum OperatorVerb {
    /// How the tracker is: how much it keeps, who is online, which limits were hit.
    Status {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
    },
    /// Make an invitation: prints a code for one create-user --invite CODE.
    Invite {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// How long it is good for, for example 12h or 30d; at most 365d.
        #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_timeout)]
        expires: Duration,
    },
    /// See to accounts.
    #[command(subcommand)]
    User(UserVerb),
    /// See to groups.
    #[command(subcommand)]
    Group(GroupVerb),
    /// See to the roster: the trackers that all trackers and clients of the network count on.
    Roster(RosterArgs),
    /// Copy the store to a new file, also while the tracker runs.
    ///
    /// The copy is whole and consistent: put it as tracker.redb into a new data directory and
    /// start a tracker there. The tracker's identity key is not in it: keep that apart, and start
    /// the new one with it, or hand out a new tracker_info.txt. The file holds password hashes and
    /// is readable by its owner only.
    Backup {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// Where to; it must not exist.
        file: PathBuf,
    },
    /// Print everything the tracker keeps, except password hashes, as JSON lines.
    ///
    /// One object a line, of the kinds that JSON.md lists, and last one of the kind end, without
    /// which the export is not complete. JSON is the only format: --json changes nothing.
    Export {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
    },
}

/// What an operator can do with accounts.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// All accounts.
    List {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
    },
    /// End a user's memberships and sign out all devices; the name stays taken.
    Disable {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// The account.
        user: UserName,
    },
    /// Let a disabled account log in again; its memberships do not come back.
    Enable {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// The account.
        user: UserName,
    },
    /// Give an account a new password, printed once, and sign out all its devices.
    ResetPassword {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// The account.
        user: UserName,
    },
}

/// What an operator can do with groups.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// All groups, hidden and archived ones too.
    List {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
    },
    /// End all memberships and listings of a group; its name becomes free.
    Archive {
        /// Which tracker.
        #[command(flatten)]
        place: Place,
        /// The group.
        group: GroupName,
    },
}

/// `mtq tracker roster`: with a command, changes it; without, shows it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "mtq tracker roster --data-dir <DIR> [--json]\n       mtq tracker roster <COMMAND>"
)]
pub struct RosterArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub verb: Option<RosterVerb>,
    /// Which tracker, to show its roster.
    #[command(flatten)]
    pub place: Option<Place>,
}

/// What an operator can do with the roster. The tracker signs it, and the others and all clients
/// learn of it by themselves.
#[derive(Debug, Subcommand)]
pub enum RosterVerb {
    /// Add a tracker.
    Add {
        /// Which tracker to tell.
        #[command(flatten)]
        place: Place,
        /// The new one: mtq://HOST:PORT#PEERID.
        link: TrackerLink,
    },
    /// Remove a tracker; tickets it made are honoured until they have ended.
    Remove {
        /// Which tracker to tell.
        #[command(flatten)]
        place: Place,
        /// Its peer id, or the first 8 or more digits of it.
        #[arg(value_name = "PEERID")]
        tracker: String,
    },
    /// Give a tracker another key, or with the same peer id another address.
    Replace {
        /// Which tracker to tell.
        #[command(flatten)]
        place: Place,
        /// Its peer id so far, or the first 8 or more digits of it.
        #[arg(value_name = "PEERID")]
        tracker: String,
        /// What it has now: mtq://HOST:PORT#PEERID.
        link: TrackerLink,
    },
}

/// Which tracker an operator means, and how its answer is printed.
#[derive(Debug, Args)]
pub struct Place {
    /// The data directory of the tracker.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Print the answer as one JSON object (JSON.md lists the shapes).
    #[arg(long)]
    pub json: bool,
}

/// `mtq client`.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// tracker_info.txt, as the operator of the trackers hands it out.
    #[arg(long, value_name = "FILE")]
    pub trackers: PathBuf,
    /// Directory for this client's identity; one running client at a time.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// UDP address for everything; all addresses and a free port by default.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Append the log to this file instead of standard error.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Print one JSON object a command (JSON.md lists the shapes).
    #[arg(long)]
    pub json: bool,
    /// Go on after a command that failed; the exit status is still the first failure's.
    #[arg(long)]
    pub keep_going: bool,
    /// After the last command go on sharing and downloading until interrupted.
    #[arg(long)]
    pub stay: bool,
    /// Send at most so much a second, for example 2MiB or 500KB; none or 0 is no limit.
    #[arg(long, value_name = "RATE", default_value = "none")]
    pub up: Rate,
    /// Receive at most so much a second.
    #[arg(long, value_name = "RATE", default_value = "none")]
    pub down: Rate,
    /// Commands do not go here.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// One line of a script or of the prompt.
#[derive(Debug, Parser)]
#[command(
    name = "",
    no_binary_name = true,
    disable_version_flag = true,
    override_usage = "COMMAND [ARGUMENTS]",
    help_template = "{subcommands}"
)]
pub struct Line {
    /// The command.
    #[command(subcommand)]
    pub command: ClientCommand,
}

/// What a user can say to a client.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Make an account. Without PASSWORD: MTQ_PASSWORD, or a prompt.
    #[command(alias = "create_user")]
    CreateUser {
        /// The account.
        user: UserName,
        /// Its password.
        #[arg(allow_hyphen_values = true)]
        password: Option<String>,
        /// The code of an invitation, where the operator asks for one.
        #[arg(long, value_name = "CODE", allow_hyphen_values = true)]
        invite: Option<String>,
    },
    /// Log in, and stay so over restarts of this client until logout. Without PASSWORD: the key of
    /// this device while it is logged in from before, MTQ_PASSWORD, or a prompt.
    Login {
        /// The account.
        user: UserName,
        /// Its password.
        #[arg(allow_hyphen_values = true)]
        password: Option<String>,
    },
    /// Log out; stops all sharing and downloading.
    Logout,
    /// Who is logged in.
    Whoami,
    /// Change your password; all your other devices have to log in again. Without OLD and NEW:
    /// MTQ_PASSWORD and MTQ_NEW_PASSWORD, or prompts.
    Passwd {
        /// The password so far.
        #[arg(allow_hyphen_values = true, requires = "new")]
        old: Option<String>,
        /// The new one.
        #[arg(allow_hyphen_values = true)]
        new: Option<String>,
    },
    /// Devices that may act for you.
    Devices,
    /// Forget a device of yours: it is logged out, and its transfers stop.
    #[command(alias = "remove_device")]
    RemoveDevice {
        /// The beginning of its id, as devices shows it.
        device: String,
    },
    /// Make a group and own it.
    #[command(alias = "create_group")]
    CreateGroup {
        /// Its name.
        group: GroupName,
        /// Show it to its members only.
        #[arg(long)]
        hidden: bool,
    },
    /// Groups there are.
    #[command(alias = "list_groups")]
    ListGroups,
    /// Ask to join a group; its owner decides.
    #[command(alias = "join_group")]
    JoinGroup {
        /// The group.
        group: GroupName,
    },
    /// Leave a group. The last one out archives it: its list is gone, and its name is free.
    #[command(alias = "leave_group")]
    LeaveGroup {
        /// The group.
        group: GroupName,
    },
    /// Who asks to join a group of yours.
    #[command(aliases = ["list_requests", "requests"])]
    ListRequests {
        /// The group.
        group: GroupName,
    },
    /// Let somebody into a group of yours.
    #[command(alias = "accept_request")]
    AcceptRequest {
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// Turn somebody away from a group of yours, for a day at least.
    #[command(alias = "reject_request")]
    RejectRequest {
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// End somebody's membership in a group of yours.
    Kick {
        /// The group.
        group: GroupName,
        /// Who goes.
        user: UserName,
    },
    /// Say who shall own a group of yours when you leave it.
    Nominate {
        /// The group.
        group: GroupName,
        /// Who; without, the longest-standing member.
        user: Option<UserName>,
    },
    /// Make another member the owner of a group of yours.
    #[command(alias = "transfer_group")]
    TransferGroup {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// Change a setting of a group of yours.
    #[command(alias = "set_group")]
    SetGroup {
        /// The group.
        group: GroupName,
        /// How long running transfers go on when no tracker can be reached (0, or 90s, 12h, 1d;
        /// 1d unless set).
        #[arg(long, value_name = "TIME", value_parser = parse_timeout, required = true)]
        offline_grace: Duration,
    },
    /// Take a file off the list of a group of yours, whoever shares it.
    Unlist {
        /// The group.
        group: GroupName,
        /// NAME, USER/NAME or id:HEX.
        #[arg(allow_hyphen_values = true)]
        file: Selector,
    },
    /// Members of a group.
    #[command(alias = "list_members")]
    ListMembers {
        /// The group.
        group: GroupName,
    },
    /// Share a file in a group, and write its metafile.
    #[command(alias = "upload_file")]
    Share {
        /// The file.
        path: PathBuf,
        /// The group.
        group: GroupName,
        /// List it under this name instead of its own.
        #[arg(long, value_parser = parse_file_name, allow_hyphen_values = true)]
        name: Option<FileName>,
        /// Write the metafile here instead of beside the file.
        #[arg(long, value_name = "FILE")]
        mtorrent: Option<PathBuf>,
    },
    /// Files of a group.
    #[command(alias = "list_files")]
    ListFiles {
        /// The group.
        group: GroupName,
    },
    /// Files of all your groups whose name contains PATTERN.
    Search {
        /// Part of a name, in any case.
        #[arg(allow_hyphen_values = true)]
        pattern: String,
        /// PATTERN is how the name begins.
        #[arg(long, conflicts_with = "regex")]
        prefix: bool,
        /// PATTERN is a regular expression.
        #[arg(long)]
        regex: bool,
    },
    /// Download: get GROUP NAME DEST, or get FILE.mtorrent DEST. NAME may be USER/NAME or id:HEX.
    #[command(
        alias = "download_file",
        override_usage = "get GROUP NAME DEST\n       get FILE.mtorrent DEST"
    )]
    Get {
        /// DEST is an existing directory, where the file keeps its name (or gets a number when it
        /// is taken), or a new file path.
        #[arg(value_name = "GROUP NAME DEST", num_args = 2..=3, required = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Downloads and shares, one row each.
    #[command(alias = "show_downloads", about = "What is being downloaded [D] and shared [S]")]
    Downloads,
    /// Stop sharing a file.
    #[command(alias = "stop_share")]
    StopShare {
        /// The group.
        group: GroupName,
        /// NAME, USER/NAME or id:HEX.
        #[arg(allow_hyphen_values = true)]
        file: Selector,
    },
    /// Stop sharing or downloading what a metafile describes, and delete the metafile; the data stays.
    Remove {
        /// The metafile.
        #[arg(value_name = "FILE.mtorrent")]
        metafile: PathBuf,
    },
    /// Wait until every download is complete or failed.
    Wait {
        /// Give up after this many seconds (or 10m, 2h).
        #[arg(long, value_parser = parse_timeout)]
        timeout: Option<Duration>,
    },
    /// Show or change the rate limits of everything together, or of one share or download.
    Limit {
        /// Send at most so much a second, for example 2MiB or 500KB; none or 0 is no limit.
        #[arg(long, value_name = "RATE")]
        up: Option<Rate>,
        /// Receive at most so much a second.
        #[arg(long, value_name = "RATE")]
        down: Option<Rate>,
        /// The group of the one share or download meant.
        #[arg(requires = "file")]
        group: Option<GroupName>,
        /// NAME, USER/NAME or id:HEX.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: Option<Selector>,
    },
    /// With whom pieces are exchanged, how fast, and what became of every byte.
    Peers {
        /// The group of the one share or download meant.
        #[arg(requires = "file")]
        group: Option<GroupName>,
        /// NAME, USER/NAME or id:HEX.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: Option<Selector>,
    },
    /// How this client stands with its trackers, they with each other, and what it moves.
    Status,
    /// End the client.
    #[command(alias = "exit")]
    Quit,
}

fn parse_file_name(text: &str) -> Result<FileName, crate::name::NameError> {
    FileName::normalized(text)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

impl ClientCommand {
    /// Its name, as JSON output has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateUser { .. } => "create-user",
            Self::Login { .. } => "login",
            Self::Logout => "logout",
            Self::Whoami => "whoami",
            Self::Passwd { .. } => "passwd",
            Self::Devices => "devices",
            Self::RemoveDevice { .. } => "remove-device",
            Self::CreateGroup { .. } => "create-group",
            Self::ListGroups => "list-groups",
            Self::JoinGroup { .. } => "join-group",
            Self::LeaveGroup { .. } => "leave-group",
            Self::ListRequests { .. } => "list-requests",
            Self::AcceptRequest { .. } => "accept-request",
            Self::RejectRequest { .. } => "reject-request",
            Self::Kick { .. } => "kick",
            Self::Nominate { .. } => "nominate",
            Self::TransferGroup { .. } => "transfer-group",
            Self::SetGroup { .. } => "set-group",
            Self::Unlist { .. } => "unlist",
            Self::ListMembers { .. } => "list-members",
            Self::Share { .. } => "share",
            Self::ListFiles { .. } => "list-files",
            Self::Search { .. } => "search",
            Self::Get { .. } => "get",
            Self::Downloads => "downloads",
            Self::StopShare { .. } => "stop-share",
            Self::Remove { .. } => "remove",
            Self::Wait { .. } => "wait",
            Self::Limit { .. } => "limit",
            Self::Peers { .. } => "peers",
            Self::Status => "status",
            Self::Quit => "quit",
        }
    }
}
