//! The grammar of `mtq client` and of what a user can say to one: the one grammar of script, prompt,
//! command line and control socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};

use super::rate::Rate;
use super::time::parse_time;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::transport::tuning::{Congestion, Mtu};

/// `mtq client`.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Its settings.
    #[command(flatten)]
    pub options: ClientOptions,
    /// Go on after a command that failed; the exit status is still the first failure's.
    #[arg(long)]
    pub keep_going: bool,
    /// After the last command go on sharing and downloading until interrupted.
    #[arg(long)]
    pub stay: bool,
    /// What to do; without, commands come from the prompt or from standard input.
    #[command(subcommand)]
    pub verb: Option<ClientVerb>,
}

/// What comes behind `mtq client`.
#[derive(Debug, Subcommand)]
pub enum ClientVerb {
    /// Run the agent alone, until a signal or quit; commands find it by its data directory.
    Daemon(AgentOptions),
    /// A command for the agent that runs on the data directory, or for one that runs as long as it
    /// takes.
    #[command(flatten)]
    Command(ClientCommand),
}

/// Settings of a client as flags. What is not given here comes from the variable in brackets, then
/// from config.toml, then from a default.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientOptions {
    /// tracker_info.txt, as the operator of the trackers hands it out, or one link; remembered, so
    /// it is needed once [env: MTQ_TRACKERS].
    #[arg(long, value_name = "FILE", global = true)]
    pub trackers: Option<PathBuf>,
    /// Directory for this client's identity, one running client at a time [env: MTQ_DATA_DIR;
    /// default: $XDG_DATA_HOME/mtq].
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Settings [env: MTQ_CONFIG; default: $XDG_CONFIG_HOME/mtq/config.toml].
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// UDP address for everything [env: MTQ_LISTEN; default: all addresses and a free port].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Append the log to this file instead of standard error [env: MTQ_LOG_FILE].
    #[arg(long, value_name = "FILE", global = true)]
    pub log_file: Option<PathBuf>,
    /// Print one JSON object a command; JSON.md lists the shapes [env: MTQ_JSON].
    #[arg(long, global = true)]
    pub json: bool,
    /// Send at most so much a second, for example 2MiB or 500KB; none or 0 is no limit [env: MTQ_UP].
    #[arg(long, value_name = "RATE")]
    pub up: Option<Rate>,
    /// Receive at most so much a second [env: MTQ_DOWN].
    #[arg(long, value_name = "RATE")]
    pub down: Option<Rate>,
    /// Send datagrams of at most so many bytes, 1200 to 16250; over 8952 only within this machine
    /// [env: MTQ_MAX_MTU; default: 16250].
    #[arg(long, value_name = "BYTES")]
    pub max_mtu: Option<Mtu>,
    /// Congestion control of what is sent: cubic, or bbr for links that lose packets without being
    /// full [env: MTQ_CONGESTION; default: cubic].
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<Congestion>,
    /// The group of a share that names none [env: MTQ_DEFAULT_GROUP].
    #[arg(long, value_name = "GROUP")]
    pub default_group: Option<GroupName>,
    /// Where metafiles go instead of beside the file shared [env: MTQ_MTORRENT_DIR].
    #[arg(long, value_name = "DIR")]
    pub mtorrent_dir: Option<PathBuf>,
    /// Run this for every event, which stands as JSON on its standard input [env: MTQ_ON_EVENT].
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub on_event: Option<String>,
    /// Keep what is typed at the prompt here [env: MTQ_HISTORY; default: $XDG_STATE_HOME/mtq/history,
    /// or history in the directory of --data-dir].
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
}

/// Settings of the agent itself, behind `daemon`.
#[derive(Clone, Debug, Default, Args)]
pub struct AgentOptions {
    /// UDP address for everything.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Send at most so much a second, for example 2MiB or 500KB; none or 0 is no limit.
    #[arg(long, value_name = "RATE")]
    pub up: Option<Rate>,
    /// Receive at most so much a second.
    #[arg(long, value_name = "RATE")]
    pub down: Option<Rate>,
    /// Send datagrams of at most so many bytes, 1200 to 16250; over 8952 only within this machine.
    #[arg(long, value_name = "BYTES")]
    pub max_mtu: Option<Mtu>,
    /// Congestion control of what is sent: cubic, or bbr for links that lose packets without being
    /// full.
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<Congestion>,
    /// Run this for every event, which stands as JSON on its standard input.
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub on_event: Option<String>,
}

impl ClientOptions {
    /// These, and in their place what stands behind `daemon`.
    pub fn and(&self, behind: &AgentOptions) -> Self {
        let AgentOptions { listen, up, down, max_mtu, congestion, on_event } = behind.clone();
        let own = self.clone();
        Self {
            listen: listen.or(own.listen),
            up: up.or(own.up),
            down: down.or(own.down),
            max_mtu: max_mtu.or(own.max_mtu),
            congestion: congestion.or(own.congestion),
            on_event: on_event.or(own.on_event),
            ..own
        }
    }
}

/// `mtq config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What is asked.
    #[command(subcommand)]
    pub verb: ConfigVerb,
}

/// Questions about the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// The settings a client with the same options would have, and where each comes from.
    Show(Box<ClientOptions>),
    /// Where config.toml is looked for.
    Path {
        /// Settings [env: MTQ_CONFIG].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
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
#[derive(Clone, Debug, Subcommand)]
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
    /// Share files in a group, and write their metafiles.
    #[command(
        alias = "upload_file",
        override_usage = "share PATH... GROUP\n       share PATH\n       share --group GROUP PATH..."
    )]
    Share {
        /// The file, or several, and behind them the group; the configured default group when there is
        /// one file and nothing else.
        #[arg(value_name = "PATH", required = true)]
        words: Vec<PathBuf>,
        /// The group: then every word is a file.
        #[arg(long)]
        group: Option<GroupName>,
        /// List it under this name instead of its own; of one file.
        #[arg(long, value_parser = parse_file_name, allow_hyphen_values = true)]
        name: Option<FileName>,
        /// Write the metafile here instead of beside the file; of one file.
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
        #[arg(long, conflicts_with_all = ["regex", "glob"])]
        prefix: bool,
        /// PATTERN is a regular expression.
        #[arg(long)]
        regex: bool,
        /// PATTERN is the whole name, where * stands for any characters and ? for one.
        #[arg(long, conflicts_with = "regex")]
        glob: bool,
    },
    /// Download: get GROUP NAME DEST, or get FILE.mtorrent DEST. NAME may be USER/NAME or id:HEX; with
    /// --glob or --regex it is a pattern, with --list a file of names, and many files are downloaded.
    #[command(
        alias = "download_file",
        override_usage = "get GROUP NAME DEST [--wait]\n       get --glob GROUP PATTERN DEST [--wait]\n       get --list GROUP FILE DEST [--wait]\n       get FILE.mtorrent DEST [--wait]"
    )]
    Get {
        /// The group, or a metafile, which takes the place of GROUP and NAME.
        #[arg(value_name = "GROUP", allow_hyphen_values = true)]
        source: String,
        /// NAME, USER/NAME or id:HEX; or what --glob, --regex or --list says.
        #[arg(value_name = "NAME", allow_hyphen_values = true)]
        file: String,
        /// An existing directory, where the file keeps its name (or gets a number when it is taken),
        /// or a new file path. Many files go into a directory.
        #[arg(allow_hyphen_values = true)]
        dest: Option<String>,
        /// All files whose whole name is like NAME, where * stands for any characters and ? for one, in
        /// any case. A shell keeps its hands off what is in quotes.
        #[arg(long, conflicts_with_all = ["regex", "list"])]
        glob: bool,
        /// All files whose name NAME matches as a regular expression, as in search.
        #[arg(long, conflicts_with = "list")]
        regex: bool,
        /// All files that the file NAME names, one a line: NAME, USER/NAME or id:HEX; - is standard
        /// input.
        #[arg(long)]
        list: bool,
        /// Wait until it is complete.
        #[arg(long)]
        wait: bool,
    },
    /// Downloads and shares, one row each.
    #[command(alias = "show_downloads", about = "What is being downloaded [D] and shared [S]")]
    Downloads {
        /// Show it anew every second until interrupted.
        #[arg(long)]
        watch: bool,
    },
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
    /// Wait until every download is complete, paused or failed, or until one is.
    Wait {
        /// The group of the downloads meant.
        #[arg(requires = "files")]
        group: Option<GroupName>,
        /// NAME, USER/NAME or id:HEX, or several; behind -- also those that begin with a dash.
        #[arg(value_name = "NAME")]
        files: Vec<Selector>,
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
    /// Say what happens, as it happens, until interrupted.
    Events {
        /// Also how far everything under way is, five times a second.
        #[arg(long)]
        progress: bool,
    },
    /// End the session; as mtq client quit, the agent that runs on the data directory.
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
            Self::Downloads { .. } => "downloads",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Cancel { .. } => "cancel",
            Self::StopShare { .. } => "stop-share",
            Self::Remove { .. } => "remove",
            Self::Wait { .. } => "wait",
            Self::Limit { .. } => "limit",
            Self::Peers { .. } => "peers",
            Self::Status => "status",
            Self::Events { .. } => "events",
            Self::Quit => "quit",
        }
    }

    /// Paths in it that are relative start from `cwd`.
    pub fn start_from(&mut self, cwd: &Path) {
        let place = |path: &mut PathBuf| *path = cwd.join(&path);
        match self {
            Self::Share { words, group, mtorrent, .. } => {
                // The last of several is the group.
                let paths = if group.is_some() { words.len() } else { (words.len() - 1).max(1) };
                words[..paths].iter_mut().for_each(place);
                mtorrent.iter_mut().for_each(place);
            }
            Self::Remove { metafile } => place(metafile),
            Self::Get { source, file, dest, list, .. } => {
                let place = |path: &mut String| {
                    if let Some(whole) = cwd.join(&path).to_str() {
                        *path = whole.to_owned();
                    }
                };
                if *list && file != "-" {
                    place(file);
                }
                match dest {
                    Some(dest) => place(dest),
                    None => {
                        place(source);
                        place(file);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether it carries a password.
    pub fn has_password(&self) -> bool {
        match self {
            Self::CreateUser { password, .. } | Self::Login { password, .. } => password.is_some(),
            Self::Passwd { old, new } => old.is_some() || new.is_some(),
            _ => false,
        }
    }

    /// Whether it may take long only because it waits for something.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Wait { .. } | Self::Events { .. } | Self::Get { wait: true, .. })
    }

    /// Whether doing it twice is doing it once.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Login { .. }
            | Self::Whoami
            | Self::Devices
            | Self::ListGroups
            | Self::ListRequests { .. }
            | Self::ListMembers { .. }
            | Self::Share { .. }
            | Self::ListFiles { .. }
            | Self::Search { .. }
            | Self::Downloads { .. }
            | Self::Wait { .. }
            | Self::Peers { .. }
            | Self::Status
            | Self::Events { .. } => true,
            Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Cancel { .. }
            | Self::CreateUser { .. }
            | Self::Logout
            | Self::Passwd { .. }
            | Self::RemoveDevice { .. }
            | Self::CreateGroup { .. }
            | Self::JoinGroup { .. }
            | Self::LeaveGroup { .. }
            | Self::AcceptRequest { .. }
            | Self::RejectRequest { .. }
            | Self::Kick { .. }
            | Self::Nominate { .. }
            | Self::TransferGroup { .. }
            | Self::SetGroup { .. }
            | Self::Unlist { .. }
            | Self::Get { .. }
            | Self::StopShare { .. }
            | Self::Remove { .. }
            | Self::Limit { .. }
            | Self::Quit => false,
        }
    }
}
