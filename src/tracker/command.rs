//! What can be changed, by whom, and what becomes of it.

use std::sync::Arc;

use super::lattice::Stamp;
use super::op::Change;
use super::state::State;
use crate::clock::UnixMillis;
use crate::id::{GroupId, InviteId, UserId};
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;

/// A change somebody wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make an account.
    CreateUser {
        /// Its name.
        user: UserName,
        /// Its Argon2id PHC string.
        password: String,
        /// The invitation shown.
        invite: Option<InviteId>,
    },
    /// Change one's password, whose old one was just verified; every other device has to log in
    /// anew.
    ChangePassword {
        /// The new Argon2id PHC string.
        password: String,
        /// Which password was verified.
        verified: Stamp,
    },
    /// Enrol the actor's device for a user whose password was just verified.
    EnrolDevice {
        /// The user.
        user: UserId,
        /// Which password was verified.
        verified: Stamp,
    },
    /// Forget a device of one's own.
    RemoveDevice {
        /// Which.
        device: PeerId,
    },
    /// Make a group.
    CreateGroup {
        /// Its name.
        group: GroupName,
        /// Whether only members see it.
        hidden: bool,
    },
    /// Change a group's settings.
    SetGroup {
        /// The group.
        group: GroupName,
        /// Seconds of offline grace.
        offline_grace: u32,
    },
    /// Ask to join.
    JoinGroup {
        /// The group.
        group: GroupName,
    },
    /// Leave.
    LeaveGroup {
        /// The group.
        group: GroupName,
    },
    /// Let somebody in.
    AcceptRequest {
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// Turn somebody away.
    RejectRequest {
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// End somebody's membership.
    Kick {
        /// The group.
        group: GroupName,
        /// Whose.
        user: UserName,
    },
    /// Say who shall own a group when one leaves.
    Nominate {
        /// The group.
        group: GroupName,
        /// Who; nobody in particular otherwise.
        user: Option<UserName>,
    },
    /// Make somebody else the owner.
    TransferGroup {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// List a file.
    Share {
        /// The group.
        group: GroupName,
        /// Under which name.
        name: FileName,
        /// What.
        head: Arc<ManifestHead>,
    },
    /// Withdraw one's own listing.
    StopShare {
        /// The group.
        group: GroupName,
        /// Which file.
        file: Selector,
    },
    /// As owner, withdraw a listing whoever shares it.
    Unlist {
        /// The group.
        group: GroupName,
        /// Which file.
        file: Selector,
    },
    /// The operator invites somebody.
    MakeInvite {
        /// The invitation.
        invite: InviteId,
        /// Until when.
        expires: UnixMillis,
    },
    /// The operator disables an account.
    DisableUser {
        /// Which.
        user: UserName,
    },
    /// The operator enables an account.
    EnableUser {
        /// Which.
        user: UserName,
    },
    /// The operator replaces a password.
    ResetPassword {
        /// Whose.
        user: UserName,
        /// The new Argon2id PHC string.
        password: String,
    },
    /// The operator ends a group.
    ArchiveGroup {
        /// Which.
        group: GroupName,
    },
}

/// Who wants it.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// A client.
    Client {
        /// The device, proven by TLS.
        device: PeerId,
        /// The user logged in on its connection.
        user: Option<UserId>,
    },
    /// Whoever runs the tracker with this identity.
    Operator(PeerId),
}

impl Actor {
    /// The device that acts.
    pub fn device(&self) -> PeerId {
        match self {
            Self::Client { device, .. } | Self::Operator(device) => *device,
        }
    }
}

/// What became of a granted command.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The file is listed in this group.
    Shared {
        /// The group.
        group: GroupId,
    },
    /// These pages are missing before it can be listed.
    PagesMissing {
        /// Page numbers.
        pages: Vec<u32>,
    },
    /// The listing was withdrawn.
    Stopped {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// Whether the user still shares it there under another name.
        still_shared: bool,
    },
}

impl Outcome {
    /// What a change means to whoever asked for it on `device`, once `state` has it.
    pub fn of(change: &Change, device: PeerId, state: &State) -> Self {
        match change {
            Change::ShareAdded { group, .. } => Self::Shared { group: *group },
            Change::SharesWithdrawn { group, content, .. } => {
                let user = state.user_of(device);
                let mut left = state.shares_of(*group, *content);
                let still_shared = left.any(|(_, share)| Some(share.value.user) == user);
                Self::Stopped { group: *group, content: *content, still_shared }
            }
            _ => Self::Done,
        }
    }
}
