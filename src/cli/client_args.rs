//! The grammar of `mtq client` and of what a user can say to one: the one grammar of script, prompt,
//! command line and control socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::rate::Rate;
use super::time::parse_time;
use crate::name::{FileName, GroupName, Selector, UserName};

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
        #[arg(long, value_name = "TIME", value_parser = parse_time, required = true)]
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
    /// Pause a download until resume, also over restarts.
    Pause {
        /// The group.
        group: GroupName,
        /// NAME, USER/NAME or id:HEX.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: Selector,
    },
    /// Go on with a download that was paused or has failed.
    Resume {
        /// The group.
        group: GroupName,
        /// NAME, USER/NAME or id:HEX.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: Selector,
    },
    /// End a download, forget it, and delete what is there of it.
    Cancel {
        /// The group.
        group: GroupName,
        /// NAME, USER/NAME or id:HEX.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: Selector,
        /// Keep what is there for a later get into the same directory.
        #[arg(long)]
        keep: bool,
    },
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
        #[arg(long, value_parser = parse_time)]
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
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Cancel { .. } => "cancel",
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
