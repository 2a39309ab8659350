//! What the agent answers with: the results of its commands.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::DownloadFailure;
use super::library::EntryState;
use crate::manifest::{ContentId, Manifest};
use crate::name::{FileName, GroupName, UserName};
use crate::swarm::hold::Hold;
use crate::swarm::meter::Progress;
use crate::swarm::upload_counts::UploadCounts;

/// A finished `share`.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its metafile, if one could be written.
    pub metafile: Option<PathBuf>,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// An accepted `get`.
#[derive(Clone, Debug)]
pub struct Started {
    /// The download's number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where it will be; a name that is taken by then gets a number.
    pub path: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Bytes there already, of an earlier attempt.
    pub stored_bytes: u64,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// One row of `downloads`.
#[derive(Clone, Debug)]
pub struct DownloadRow {
    /// Its number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where its bytes are now.
    pub path: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Where it is in its life.
    pub state: EntryState,
    /// How far it is, and who gave what.
    pub progress: Progress,
    /// Bytes sent to others.
    pub uploaded_bytes: u64,
    /// What each user was sent, those who are gone too.
    pub uploads: Vec<(UserName, UploadCounts)>,
    /// Whether the file was found changed and is no longer served.
    pub changed: bool,
}

/// Something a tracker said unasked that a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Somebody asks to join a group of ours.
    JoinRequested {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// Our request to join was answered.
    RequestAnswered {
        /// The group.
        group: GroupName,
        /// How.
        accepted: bool,
    },
    /// Somebody is a member now.
    MemberJoined {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// Somebody is a member no more.
    MemberLeft {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// We are a member no more, and did not leave.
    Removed {
        /// The group.
        group: GroupName,
    },
    /// A group has another owner.
    OwnerChanged {
        /// The group.
        group: GroupName,
        /// Who.
        owner: UserName,
    },
    /// Somebody shares a file.
    FileListed {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Bytes.
        size: u64,
        /// Who.
        user: UserName,
    },
    /// The owner of a group took a file we shared off its list.
    Unlisted {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A file we share is not what it was, and is no longer served.
    Changed {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// This device may not act for its user any more.
    SignedOut {
        /// Whose it was.
        user: UserName,
    },
    /// One's own account has another name: an earlier one has the name it had.
    Renamed {
        /// The name so far.
        from: UserName,
        /// The name now.
        user: UserName,
    },
    /// A group one is in has another name, for the same reason.
    GroupRenamed {
        /// The name so far.
        from: GroupName,
        /// The name now.
        group: GroupName,
    },
    /// A download does not move.
    Held {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Why.
        hold: Hold,
    },
    /// A download that did not move does again.
    Moves {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A download is complete.
    Downloaded {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Where it is.
        path: PathBuf,
    },
    /// A download ended without its file.
    DownloadFailed {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Why.
        failure: DownloadFailure,
    },
    /// No tracker is reached any more.
    TrackersLost,
    /// A tracker is reached again.
    TrackersBack,
}

impl Notice {
    /// Whether a script's user must know too: something was taken, or is not what it was.
    pub fn is_grave(&self) -> bool {
        match self {
            Self::Removed { .. }
            | Self::Unlisted { .. }
            | Self::Changed { .. }
            | Self::SignedOut { .. }
            | Self::Renamed { .. }
            | Self::GroupRenamed { .. }
            | Self::Held { .. }
            | Self::Moves { .. }
            | Self::TrackersLost
            | Self::TrackersBack => true,
            Self::JoinRequested { .. }
            | Self::RequestAnswered { .. }
            | Self::MemberJoined { .. }
            | Self::MemberLeft { .. }
            | Self::OwnerChanged { .. }
            | Self::FileListed { .. }
            | Self::Downloaded { .. }
            | Self::DownloadFailed { .. } => false,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinRequested { group, user } => {
                write!(f, "{user} asks to join {group}: accept-request {group} {user}")
            }
            Self::RequestAnswered { group, accepted: true } => {
                write!(f, "you are now a member of {group}")
            }
            Self::RequestAnswered { group, accepted: false } => {
                write!(f, "your request to join {group} was rejected")
            }
            Self::MemberJoined { group, user } => write!(f, "{user} is now a member of {group}"),
            Self::MemberLeft { group, user } => {
                write!(f, "{user} is no longer a member of {group}")
            }
            Self::Removed { group } => write!(f, "you are no longer a member of {group}"),
            Self::OwnerChanged { group, owner } => write!(f, "{owner} now owns {group}"),
            Self::FileListed { group, name, size, user } => {
                write!(f, "{user} shares {name} ({}) in {group}", bytesize::ByteSize(*size))
            }
            Self::Unlisted { group, name } => {
                write!(f, "the owner of {group} took {name} off its list; it is no longer served")
            }
            Self::Changed { group, name } => {
                write!(
                    f,
                    "{name} in {group} changed on disk and is no longer served: share it again"
                )
            }
            Self::SignedOut { user } => {
                write!(f, "this device may no longer act for {user}: log in again")
            }
            Self::Renamed { from, user } => {
                write!(f, "your account {from} is called {user} now: an earlier one has that name")
            }
            Self::GroupRenamed { from, group } => {
                write!(f, "your group {from} is called {group} now: an earlier one has that name")
            }
            Self::Held { group, name, hold } => {
                write!(f, "{name} from {group} does not move: {hold}")
            }
            Self::Moves { group, name } => write!(f, "{name} from {group} goes on"),
            Self::Downloaded { group, name, path } => {
                write!(f, "{name} from {group} is complete: {}", path.display())
            }
            Self::DownloadFailed { group, name, failure } => {
                write!(f, "{name} from {group} failed: {failure}")
            }
            Self::TrackersLost => {
                write!(f, "no tracker can be reached; transfers under way go on")
            }
            Self::TrackersBack => write!(f, "connected to a tracker again"),
        }
    }
}
