//! The grammar of `mtq tracker` and of what an operator can say to one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::time::parse_time;
use crate::name::{GroupName, UserName};
use crate::tracker_link::TrackerLink;
use crate::transport::tuning::{Congestion, Mtu};

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
    /// Send datagrams of at most so many bytes, 1200 to 16250; every connection keeps room for ten.
    #[arg(long, value_name = "BYTES", default_value_t = Mtu::TRACKER)]
    pub max_mtu: Mtu,
    /// Congestion control of what is sent: cubic, or bbr for links that lose packets without being
    /// full.
    #[arg(long, value_name = "NAME", default_value_t)]
    pub congestion: Congestion,
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
        #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_time)]
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
