//! Requests that were understood and not granted: one variant a cause, each with a stable code.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::limits;
use crate::manifest::{ContentId, ManifestError};
use crate::name::{GroupName, UserName};

/// A request that was understood and not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The name is taken.
    #[error("user {0} exists already")]
    UserExists(UserName),
    /// Wrong user or password; which of both is not said.
    #[error("wrong user name or password")]
    WrongCredentials,
    /// The password is too short or too long.
    #[error("a password has {} to {} bytes", limits::MIN_PASSWORD_LEN, limits::MAX_PASSWORD_LEN)]
    BadPassword,
    /// Nobody is logged in on this connection.
    #[error("not logged in")]
    NotLoggedIn,
    /// Somebody else is logged in on this connection.
    #[error("logged in as {0}")]
    LoggedInAs(UserName),
    /// This device is enrolled for nobody.
    #[error("this device is not enrolled for any user")]
    UnknownDevice,
    /// The name is taken.
    #[error("group {0} exists already")]
    GroupExists(GroupName),
    /// There is none.
    #[error("there is no group {0}")]
    NoSuchGroup(GroupName),
    /// Only members may.
    #[error("you are not a member of {0}")]
    NotAMember(GroupName),
    /// Nothing to ask for.
    #[error("you are a member of {0} already")]
    AlreadyAMember(GroupName),
    /// Asked before and not answered yet.
    #[error("you have asked to join {0} already; its owner has not answered yet")]
    AlreadyRequested(GroupName),
    /// Rejected not long ago.
    #[error("your request to join {group} was rejected; you may ask again after {after}")]
    RejectedLately {
        /// The group.
        group: GroupName,
        /// When asking is allowed again.
        after: UnixMillis,
    },
    /// Only the owner may.
    #[error("only the owner of {0} may do that")]
    NotTheOwner(GroupName),
    /// There is no such request.
    #[error("{user} has not asked to join {group}")]
    NoSuchRequest {
        /// Who.
        user: UserName,
        /// Where.
        group: GroupName,
    },
    /// No file answers to it.
    #[error("there is no file {file} in {group}")]
    NoSuchFile {
        /// The selector.
        file: String,
        /// Where.
        group: GroupName,
    },
    /// Several contents answer to it.
    #[error("{file} in {group} means several files: {}", .candidates.join(", "))]
    Ambiguous {
        /// The selector.
        file: String,
        /// Where.
        group: GroupName,
        /// Selectors that mean one of them.
        candidates: Vec<String>,
    },
    /// One's own share does not exist.
    #[error("you do not share {file} in {group}")]
    NotShared {
        /// The selector.
        file: String,
        /// Where.
        group: GroupName,
    },
    /// The manifest is not consistent.
    #[error("the manifest is refused: {0}")]
    BadManifest(String),
    /// A page of a share that was not begun on this connection.
    #[error("no share of {} was begun on this connection", .0.short())]
    NoSuchShare(ContentId),
    /// Too many of something.
    #[error("over the limit of {max} {what}")]
    Limit {
        /// What there are too many of.
        what: String,
        /// How many there may be.
        max: u64,
    },
    /// Too much to do just now.
    #[error("the tracker is busy")]
    Busy,
    /// The tracker failed in itself.
    #[error("the tracker had an internal error")]
    Internal,
    /// Asked too often.
    #[error("too many requests; ask again in {retry_after_ms} ms")]
    RateLimited {
        /// When asking again is worth it.
        retry_after_ms: u64,
    },
    /// The tracker's disk is full: nothing can be changed until there is room.
    #[error("the tracker's storage is full; nothing was changed")]
    StorageFull,
    /// The tracker's disk failed: the change may or may not have been made.
    #[error("the tracker could not store the change")]
    StorageFailed,
    /// The account may not be used.
    #[error("the account {0} is disabled")]
    Disabled(UserName),
    /// Nobody may make an account.
    #[error("this network takes no new accounts")]
    RegistrationClosed,
    /// Only whoever is invited may make an account.
    #[error("a new account needs an invitation")]
    InviteNeeded,
    /// No such invitation, or not any more.
    #[error("the invitation is not valid, was used, or has expired")]
    BadInvite,
    /// A name with `~`.
    #[error("~ in a name is reserved for the system")]
    ReservedName,
    /// What goes for other groups does not for the one of everybody.
    #[error("everybody is a member of {0}, and nobody owns it")]
    EverybodysGroup(GroupName),
    /// There is no such account.
    #[error("there is no user {0}")]
    NoSuchUser(UserName),
    /// Somebody else is not a member.
    #[error("{user} is not a member of {group}")]
    NoSuchMember {
        /// Who.
        user: UserName,
        /// Where.
        group: GroupName,
    },
    /// Aimed at oneself.
    #[error("{0} is you yourself")]
    Yourself(UserName),
    /// One has no such device.
    #[error("you have no device {0}")]
    NoSuchDevice(String),
    /// The search pattern cannot be used.
    #[error("bad search pattern: {0}")]
    BadPattern(String),
    /// The tracker's clock differs from that of the others: it changes nothing until it agrees.
    #[error("this tracker's clock is off by {0} ms; it takes no changes until that is mended")]
    ClockOff(u64),
}

impl Refusal {
    /// The stable name of this cause, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UserExists(_) => "user-exists",
            Self::WrongCredentials => "wrong-credentials",
            Self::BadPassword => "bad-password",
            Self::NotLoggedIn => "not-logged-in",
            Self::LoggedInAs(_) => "logged-in-as-other",
            Self::UnknownDevice => "unknown-device",
            Self::GroupExists(_) => "group-exists",
            Self::NoSuchGroup(_) => "no-such-group",
            Self::NotAMember(_) => "not-a-member",
            Self::AlreadyAMember(_) => "already-a-member",
            Self::AlreadyRequested(_) => "already-requested",
            Self::RejectedLately { .. } => "rejected-lately",
            Self::NotTheOwner(_) => "not-the-owner",
            Self::NoSuchRequest { .. } => "no-such-request",
            Self::NoSuchFile { .. } => "no-such-file",
            Self::Ambiguous { .. } => "ambiguous",
            Self::NotShared { .. } => "not-shared",
            Self::BadManifest(_) => "bad-manifest",
            Self::NoSuchShare(_) => "no-such-share",
            Self::Limit { .. } => "limit",
            Self::Busy => "busy",
            Self::Internal => "internal",
            Self::RateLimited { .. } => "rate-limited",
            Self::StorageFull => "storage-full",
            Self::StorageFailed => "storage-failed",
            Self::Disabled(_) => "disabled",
            Self::RegistrationClosed => "registration-closed",
            Self::InviteNeeded => "invite-needed",
            Self::BadInvite => "bad-invite",
            Self::ReservedName => "bad-name",
            Self::EverybodysGroup(_) => "everybodys-group",
            Self::NoSuchUser(_) => "no-such-user",
            Self::NoSuchMember { .. } => "no-such-member",
            Self::Yourself(_) => "yourself",
            Self::NoSuchDevice(_) => "no-such-device",
            Self::BadPattern(_) => "bad-pattern",
            Self::ClockOff(_) => "clock-off",
        }
    }
}

impl Refusal {
    /// Whether the cause is the tracker's own trouble, which another tracker may not have.
    pub fn is_trackers_own(&self) -> bool {
        matches!(self, Self::Internal | Self::StorageFull | Self::StorageFailed | Self::ClockOff(_))
    }
}

impl From<ManifestError> for Refusal {
    fn from(error: ManifestError) -> Self {
        Self::BadManifest(error.to_string())
    }
}
