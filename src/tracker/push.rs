//! What a tracker says unasked. PROTOCOL.md is the normative description.

use serde::{Deserialize, Serialize};

use super::message::PeerRecord;
use crate::clock::UnixMillis;
use crate::id::{GroupId, MembershipId};
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;

/// What a tracker says unasked, on its control stream after the welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// A device now holds a content that this client announced too.
    SwarmJoined {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// The device.
        peer: PeerRecord,
    },
    /// Tickets of these are void from now on.
    Revoked {
        /// Memberships that ended.
        memberships: Vec<MembershipId>,
        /// Devices that were removed: their tickets of that time and before.
        devices: Vec<(PeerId, UnixMillis)>,
    },
    /// A device no longer holds a content that this client announced too.
    SwarmLeft {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// The device.
        peer_id: PeerId,
    },
    /// This device may no longer act for its user: it was removed, the password changed, or the
    /// account was disabled. Nobody is logged in on this connection any more.
    SignedOut,
    /// News were left out because this client read too slowly: what it follows it asks for again.
    Lagged,
    /// Somebody asks to join a group one owns.
    JoinRequested {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// One's own request to join was answered.
    RequestAnswered {
        /// The group.
        group: GroupName,
        /// How.
        accepted: bool,
    },
    /// A group one is in has another member.
    MemberJoined {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// A group one is in has a member less.
    MemberLeft {
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// One's own membership ended, by whomever and on whatever device.
    Removed {
        /// The group.
        group: GroupName,
        /// Its id.
        id: GroupId,
    },
    /// A group one is in has another owner.
    OwnerChanged {
        /// The group.
        group: GroupName,
        /// Who.
        owner: UserName,
    },
    /// Somebody shares a file in a group one is in.
    FileListed {
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// The content.
        content: ContentId,
        /// Bytes.
        size: u64,
        /// Who.
        user: UserName,
    },
    /// The owner of the group took a file off its list: it is not to be served there any more.
    Unlisted {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
    },
    /// The trackers are these now.
    Roster {
        /// The signed roster.
        bytes: Vec<u8>,
    },
    /// One's own account is called this now: another one of the same name was made earlier, on a
    /// tracker that could not be asked.
    Renamed {
        /// The name.
        user: UserName,
    },
    /// A group one is in is called this now, for the same reason. Also said after a login, when the
    /// name has a mark.
    GroupRenamed {
        /// Which.
        id: GroupId,
        /// The name.
        group: GroupName,
    },
}

impl Push {
    /// Whether what it says can be asked for as well.
    pub fn is_news(&self) -> bool {
        match self {
            Self::Revoked { .. }
            | Self::SignedOut
            | Self::Removed { .. }
            | Self::Unlisted { .. }
            | Self::Roster { .. }
            | Self::Renamed { .. }
            | Self::GroupRenamed { .. } => false,
            Self::SwarmJoined { .. }
            | Self::SwarmLeft { .. }
            | Self::Lagged
            | Self::JoinRequested { .. }
            | Self::RequestAnswered { .. }
            | Self::MemberJoined { .. }
            | Self::MemberLeft { .. }
            | Self::OwnerChanged { .. }
            | Self::FileListed { .. } => true,
        }
    }
}
