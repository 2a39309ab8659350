//! The durable changes of tracker state. State is nothing but the fold of these.

use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::id::{GroupId, JoinRequestId, MembershipId, ShareId};
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;

/// One change, with everything needed to apply it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// An account came to be.
    UserCreated {
        /// Its name.
        user: UserName,
        /// Its Argon2id PHC string.
        password: String,
    },
    /// A device may act for a user without the password.
    DeviceEnrolled {
        /// The user.
        user: UserName,
        /// The device.
        device: PeerId,
        /// When.
        at: UnixMillis,
    },
    /// A device may no longer.
    DeviceRemoved {
        /// The device.
        device: PeerId,
    },
    /// A group came to be, with its first member.
    GroupCreated {
        /// Its id.
        group: GroupId,
        /// Its name.
        name: GroupName,
        /// Whether only members see it.
        hidden: bool,
        /// Its first member.
        user: UserName,
        /// The first membership.
        membership: MembershipId,
        /// When.
        at: UnixMillis,
    },
    /// Somebody asks to join.
    JoinRequested {
        /// The group.
        group: GroupId,
        /// The request.
        request: JoinRequestId,
        /// Who.
        user: UserName,
        /// When.
        at: UnixMillis,
    },
    /// A request was granted.
    JoinAccepted {
        /// The group.
        group: GroupId,
        /// The request.
        request: JoinRequestId,
        /// The membership it became.
        membership: MembershipId,
        /// When.
        at: UnixMillis,
    },
    /// A request was turned down.
    JoinRejected {
        /// The group.
        group: GroupId,
        /// The request.
        request: JoinRequestId,
        /// When.
        at: UnixMillis,
    },
    /// A membership ended.
    MembershipEnded {
        /// The group.
        group: GroupId,
        /// The membership.
        membership: MembershipId,
    },
    /// A user shares a content under a name.
    ShareAdded {
        /// The group.
        group: GroupId,
        /// The share.
        share: ShareId,
        /// Who.
        user: UserName,
        /// Under which name.
        name: FileName,
        /// What.
        head: Arc<ManifestHead>,
        /// When.
        at: UnixMillis,
    },
    /// A share was withdrawn.
    ShareWithdrawn {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// The share.
        share: ShareId,
    },
}
