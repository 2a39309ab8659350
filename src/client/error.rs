//! What can go wrong for a user, each with a stable code and, where there is one, a next step.

use std::io;
use std::path::PathBuf;

use super::shelf::ShelfError;
use crate::metainfo::MetainfoError;
use crate::name::{GroupName, NameError, UserName};
use crate::swarm::download::DownloadError;
use crate::swarm::hashing::HashError;
use crate::swarm::storage::StorageError;
use crate::tracker::refusal::Refusal;
use crate::transport::endpoint::BindError;
use crate::transport::identity::IdentityError;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A tracker understood and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No tracker could be reached.
    #[error("no tracker can be reached: {0}")]
    NoTracker(String),
    /// Somebody else answers at a tracker's address.
    #[error("{0}")]
    WrongTracker(String),
    /// The connection was lost and could not be had again.
    #[error("the connection to the tracker was lost: {0}")]
    TrackerLost(String),
    /// A name that stood for one group stands for another, and what the first is called now has not
    /// been said yet.
    #[error("{0} is another group now than before")]
    OtherGroup(GroupName),
    /// The tracker's answer made no sense.
    #[error("the tracker gave an answer this version does not understand")]
    BadAnswer,
    /// A file cannot be used.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file cannot be shared.
    #[error("{path}: {error}")]
    Hash {
        /// Which.
        path: PathBuf,
        /// Why.
        error: HashError,
    },
    /// A file's own name cannot be its label.
    #[error("{path}: {error}")]
    Name {
        /// Which.
        path: PathBuf,
        /// Why.
        error: NameError,
    },
    /// Not a metafile.
    #[error("{path}: {error}")]
    Metafile {
        /// Which.
        path: PathBuf,
        /// Why.
        error: MetainfoError,
    },
    /// The destination does not exist.
    #[error("{0}: no such directory")]
    NoDestination(PathBuf),
    /// The destination is an existing file.
    #[error("{0} exists and is never overwritten")]
    Exists(PathBuf),
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A download that was waited for is paused.
    #[error("{0} is paused")]
    Paused(String),
    /// There is no such share or download on this device.
    #[error("{file} in {group} is neither shared nor downloaded here")]
    NotHere {
        /// What was meant.
        file: String,
        /// The group.
        group: GroupName,
    },
    /// This content is being downloaded already.
    #[error("{0} is being downloaded already")]
    Downloading(String),
    /// What is here of it is not known yet.
    #[error("{0} is still being looked at")]
    Checking(String),
    /// This content is here already.
    #[error("you have this file already: {0}")]
    Have(PathBuf),
    /// Only a download can be paused and cancelled.
    #[error("{0} is not being downloaded")]
    NotDownloading(String),
    /// Only what is paused or failed can be resumed.
    #[error("{0} is neither paused nor failed")]
    NotPaused(String),
    /// The records of what is shared and downloaded cannot be used.
    #[error("{path}: {error}")]
    Library {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ShelfError,
    },
    /// The data directory belongs to a running agent.
    #[error("{path} is in use by {holder}")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The socket cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A wait was not long enough.
    #[error("not finished yet: {0} under way")]
    Timeout(usize),
    /// A download failed.
    #[error("{name}: {error}")]
    Download {
        /// Which.
        name: String,
        /// Why.
        error: DownloadFailure,
    },
}

/// Why a download failed; kept as long as the download is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{message}")]
pub struct DownloadFailure {
    /// Stable code.
    pub code: String,
    /// What happened.
    pub message: String,
}

impl DownloadFailure {
    /// A manifest that is false, in the way `why` says: its publisher's doing.
    pub fn false_manifest(why: &dyn std::fmt::Display, publisher: &UserName) -> Self {
        let message = format!("{why}; it was published by {publisher}");
        Self { code: "false-manifest".to_owned(), message }
    }
}

impl From<&StorageError> for DownloadFailure {
    fn from(error: &StorageError) -> Self {
        Self { code: storage_code(error).to_owned(), message: error.to_string() }
    }
}

impl From<&DownloadError> for DownloadFailure {
    fn from(error: &DownloadError) -> Self {
        let code = match error {
            DownloadError::Storage(error) => storage_code(error),
            DownloadError::Stopped => "stopped",
        };
        Self { code: code.to_owned(), message: error.to_string() }
    }
}

fn file_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "not-found",
        io::ErrorKind::PermissionDenied => "permission-denied",
        _ => "disk",
    }
}

fn storage_code(error: &StorageError) -> &'static str {
    match error {
        StorageError::NoSpace { .. } => "no-space",
        StorageError::InUse(_) => "in-use",
        StorageError::FalseManifest | StorageError::FalsePiece(_) => "false-manifest",
        StorageError::Io { error, .. } => file_code(error),
        StorageError::NamesTaken(_) => "exists",
        StorageError::Gone(_) => "not-found",
        StorageError::Incomplete { .. }
        | StorageError::CannotName { .. }
        | StorageError::Released(_) => "disk",
    }
}

impl AgentError {
    /// The stable name of this cause, for scripts.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NoTracker(_) => "no-tracker",
            Self::WrongTracker(_) => "wrong-tracker",
            Self::TrackerLost(_) => "tracker-lost",
            Self::OtherGroup(_) => "other-group",
            Self::BadAnswer => "bad-answer",
            Self::File { error, .. } | Self::Hash { error: HashError::Io(error), .. } => {
                file_code(error)
            }
            Self::Hash { error: HashError::NotAFile, .. } => "not-a-file",
            Self::Hash { error: HashError::Changed, .. } => "changed",
            Self::Hash { error: HashError::TooLarge(_), .. } => "too-large",
            Self::Hash { error: HashError::Stopped, .. } => "stopped",
            Self::Hash { error: HashError::Manifest(_), .. } => "internal",
            Self::Name { .. } => "bad-name",
            Self::Metafile { .. } => "bad-metafile",
            Self::NoDestination(_) => "no-destination",
            Self::Exists(_) => "exists",
            Self::Storage(error) => storage_code(error),
            Self::Paused(_) => "paused",
            Self::NotHere { .. } => "not-here",
            Self::Downloading(_) => "downloading",
            Self::Checking(_) => "checking",
            Self::Have(_) => "have",
            Self::Locked { .. } => "locked",
            Self::Identity(_) => "identity",
            Self::Bind(_) => "bind",
            Self::Timeout(_) => "timeout",
            Self::Download { error, .. } => &error.code,
            Self::NotDownloading(_) => "not-downloading",
            Self::NotPaused(_) => "not-paused",
            Self::Library { error, .. } => match error {
                ShelfError::Full => "no-space",
                ShelfError::Io(error) => file_code(error),
                ShelfError::Format(_) | ShelfError::Damaged(_) => "library",
            },
        }
    }

    /// A next step, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Refused(refusal) => return refusal_hint(refusal),
            Self::NoTracker(_) => "is the tracker running, and is its address in --trackers right?",
            Self::WrongTracker(_) => "ask the operator for the current tracker_info.txt",
            Self::OtherGroup(_) => "list-groups shows what your groups are called now",
            Self::Name { .. } => "give the share a name of its own: --name NAME",
            Self::Hash { error: HashError::NotAFile, .. } => {
                "only single files can be shared; pack a directory first, for example with tar"
            }
            Self::Hash { error: HashError::Changed, .. } => "share it again once it stays as it is",
            Self::NoDestination(_) => "create the directory first",
            Self::Paused(_) => "resume GROUP NAME goes on with it",
            Self::NotHere { .. } => "downloads shows what is",
            Self::Exists(_) => "name a directory, or another file",
            Self::Have(_) => "to get it anew, stop-share GROUP NAME first",
            Self::Checking(_) => "downloads shows how far that is; try again once it is done",
            Self::Downloading(_) => "downloads shows how far it is; cancel GROUP NAME ends it",
            Self::NotDownloading(_) => "stop-share GROUP NAME ends a share",
            Self::NotPaused(_) => "downloads shows what is paused or failed",
            Self::Library { error: ShelfError::Damaged(_), .. } => {
                "move this file away to start without it: what was shared stays on the disk and has \
                 to be shared again, the same get goes on with each download"
            }
            Self::Library { error: ShelfError::Format(_), .. } => {
                "a later version of mtq wrote it: use that one, or another --data-dir"
            }
            Self::Locked { .. } => "mtq client quit ends another agent; or use another --data-dir",
            Self::Bind(_) => "another process may use the port: --listen names another",
            Self::Identity(IdentityError::Exposed { .. }) => "chmod 600 the key file",
            Self::Timeout(_) => "they go on as long as the client runs; wait again",
            Self::Storage(StorageError::NoSpace { .. }) => "make room and get it again",
            Self::Download { error, .. } if error.code == "no-space" => {
                "make room and get it again: what is there is kept"
            }
            _ => return None,
        })
    }
}

fn refusal_hint(refusal: &Refusal) -> Option<&'static str> {
    Some(match refusal {
        Refusal::NotLoggedIn | Refusal::UnknownDevice => "log in first: login USER",
        Refusal::LoggedInAs(_) => "log out first: logout",
        Refusal::NoSuchGroup(_) => "list-groups shows those there are",
        Refusal::NotAMember(_) => "ask to join: join-group GROUP",
        Refusal::NoSuchFile { .. } => "list-files GROUP shows those there are",
        Refusal::Ambiguous { .. } => "choose one by USER/NAME, or by id:HEX as list-files shows it",
        Refusal::NoSuchRequest { .. } => "list-requests GROUP shows those there are",
        Refusal::Busy | Refusal::RateLimited { .. } => "try again in a moment",
        Refusal::StorageFull | Refusal::StorageFailed => "tell the operator of the tracker",
        Refusal::InviteNeeded => {
            "the operator of the tracker makes one: create-user USER --invite CODE"
        }
        Refusal::BadInvite => "ask the operator of the tracker for another",
        Refusal::NoSuchMember { .. } => "list-members GROUP shows who is one",
        Refusal::Yourself(_) => "leave-group ends your own membership",
        Refusal::Disabled(_) => "ask the operator of the tracker",
        _ => return None,
    })
}
