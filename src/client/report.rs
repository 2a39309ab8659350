//! What the agent answers with: the results of its commands.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};

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
    /// Whether the file was not found; it is served again when it is back.
    pub missing: bool,
    /// Whether the user asked for it since the agent began; what came back by itself was not.
    pub asked: bool,
    /// Whether it waits for its turn.
    pub queued: bool,
}

/// A download that was cancelled.
#[derive(Clone, Debug)]
pub struct Cancelled {
    /// As it was.
    pub row: DownloadRow,
    /// Bytes the disk held for what was deleted.
    pub deleted_bytes: u64,
}

/// What of a user's shares and downloads is at work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Files that are served, or about to be.
    pub sharing: usize,
    /// Downloads under way.
    pub downloading: usize,
    /// Downloads that wait until they are resumed.
    pub paused: usize,
    /// What came to nothing, and why.
    pub skipped: Vec<Skipped>,
}

/// A finished `login`, and what came back with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// What trackers call the user.
    pub user: UserName,
    /// What came back.
    pub overview: Overview,
}

/// A share that is not served, or a download that does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The file, or where it was to be.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Stable code: `missing`, `changed`, `not-a-member`, `other-group`, or that of a failure.
    pub code: String,
    /// Why, in words.
    pub message: String,
}

/// Something that happened and that a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
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
        #[serde(serialize_with = "code_and_message")]
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
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// Whether it is one of many that were asked for at once.
        of_many: bool,
    },
    /// Of many downloads that were asked for at once the last is over.
    DownloadedMany {
        /// The group.
        group: GroupName,
        /// Where they are.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// How many are complete.
        files: usize,
        /// How many failed.
        failed: usize,
    },
    /// Many downloads began at once.
    StartedMany {
        /// The group.
        group: GroupName,
        /// Where they will be.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// How many.
        files: usize,
        /// Bytes of them all.
        size: u64,
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
    /// A download began.
    Started {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Where it will be.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes that were there already.
        stored_bytes: u64,
    },
    /// A file is shared.
    Shared {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// The file.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// A file is no longer shared, because the user said so.
    Stopped {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A download was paused by the user.
    Paused {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A download goes on that was paused, had failed, or came back with its user.
    Resumed {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A download was cancelled.
    Cancelled {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
    },
    /// A file we share is not there, and is not served.
    Missing {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Where it was.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// A file we share is there again as it was, and is served.
    Found {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// Where it is.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// Somebody logged in on this device.
    LoggedIn {
        /// Who.
        user: UserName,
    },
    /// The user logged out on this device.
    LoggedOut {
        /// Who.
        user: UserName,
    },
    /// What is shared and downloaded cannot be kept, and will not come back after a restart unless
    /// that changes.
    NotKept {
        /// Why.
        message: String,
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
            | Self::Missing { .. }
            | Self::Found { .. }
            | Self::NotKept { .. }
            | Self::TrackersLost
            | Self::TrackersBack => true,
            Self::JoinRequested { .. }
            | Self::RequestAnswered { .. }
            | Self::MemberJoined { .. }
            | Self::MemberLeft { .. }
            | Self::OwnerChanged { .. }
            | Self::FileListed { .. }
            | Self::Started { .. }
            | Self::Shared { .. }
            | Self::Stopped { .. }
            | Self::Paused { .. }
            | Self::Resumed { .. }
            | Self::Cancelled { .. }
            | Self::LoggedIn { .. }
            | Self::LoggedOut { .. }
            | Self::Downloaded { .. }
            | Self::DownloadedMany { .. }
            | Self::StartedMany { .. }
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
            Self::Downloaded { group, name, path, .. } => {
                write!(f, "{name} from {group} is complete: {}", path.display())
            }
            Self::DownloadedMany { group, path, files, failed: 0 } => {
                write!(f, "{files} files from {group} are complete in {}", path.display())
            }
            Self::DownloadedMany { group, path, files, failed } => {
                let path = path.display();
                write!(f, "{files} files from {group} are complete in {path}, {failed} failed")
            }
            Self::StartedMany { group, path, files, .. } => {
                write!(f, "downloading {files} files from {group} to {}", path.display())
            }
            Self::DownloadFailed { group, name, failure } => {
                write!(f, "{name} from {group} failed: {failure}")
            }
            Self::Started { group, name, path, .. } => {
                write!(f, "downloading {name} from {group} to {}", path.display())
            }
            Self::Shared { group, name, .. } => write!(f, "{name} is shared in {group}"),
            Self::Stopped { group, name } => write!(f, "{name} in {group} is no longer shared"),
            Self::Paused { group, name } => write!(f, "{name} from {group} is paused"),
            Self::Resumed { group, name } => write!(f, "{name} from {group} is resumed"),
            Self::Cancelled { group, name } => write!(f, "{name} from {group} is cancelled"),
            Self::Missing { group, name, path } => write!(
                f,
                "{name} in {group} is not served: {} is missing or cannot be read; it is served again when it is back",
                path.display()
            ),
            Self::Found { group, name, path } => {
                write!(f, "{name} in {group} is served again: {} is back", path.display())
            }
            Self::LoggedIn { user } => write!(f, "logged in as {user}"),
            Self::LoggedOut { user } => write!(f, "{user} is logged out"),
            Self::NotKept { message } => write!(
                f,
                "what is shared and downloaded cannot be kept and will not come back after a \
                 restart: {message}"
            ),
            Self::TrackersLost => {
                write!(f, "no tracker can be reached; transfers under way go on")
            }
            Self::TrackersBack => write!(f, "connected to a tracker again"),
        }
    }
}

/// A path as text, with marks for what is no Unicode.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn code_and_message<S: Serializer>(hold: &Hold, serializer: S) -> Result<S::Ok, S::Error> {
    let (code, message) = (hold.code().to_owned(), hold.to_string());
    DownloadFailure { code, message }.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_objects_with_a_name() {
        let (group, name): (GroupName, FileName) =
            ("lab".parse().expect("a name"), "f".parse().expect("a name"));
        let path: PathBuf = std::ffi::OsString::from_vec(b"/d/\xff".to_vec()).into();
        let json = |notice: &Notice| serde_json::to_value(notice).expect("JSON");
        let hold = Hold::NoSource;
        let held = Notice::Held { group: group.clone(), name: name.clone(), hold: hold.clone() };
        assert_eq!(
            json(&held),
            json!({
                "event": "held", "group": "lab", "name": "f",
                "hold": {"code": "no-source", "message": hold.to_string()},
            })
        );
        let failure = DownloadFailure { code: "disk".to_owned(), message: "broken".to_owned() };
        let failed = Notice::DownloadFailed { group: group.clone(), name: name.clone(), failure };
        assert_eq!(
            json(&failed),
            json!({
                "event": "download-failed", "group": "lab", "name": "f",
                "failure": {"code": "disk", "message": "broken"},
            })
        );
        let started = Notice::Started { group, name, path, size: 9, stored_bytes: 1 };
        assert_eq!(
            json(&started),
            json!({
                "event": "started", "group": "lab", "name": "f", "path": "/d/\u{fffd}",
                "size": 9, "stored_bytes": 1,
            })
        );
        assert_eq!(json(&Notice::TrackersLost), json!({"event": "trackers-lost"}));
        assert!(!started.is_grave() && held.is_grave());
    }
}
