//! What ops establish: sets of things that came to be, the removals that beat them, and registers.
//!
//! Everything here only ever moves one way, so the same ops in any order, repeated or not, leave
//! the same facts. Who may do what, who owns what, and what is alive is derived, never kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lattice::{First, Last};
use super::op::Op;
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{
    EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, OriginId, ShareId, UserId,
};
use crate::limits::{REJECTED_WAIT, REMOVALS_KEPT};
use crate::manifest::ManifestHead;
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;
use crate::wire;

/// Names the rules of the fold: digests are compared only between equals.
const RULES: &[u8] = b"mtq fold 1\0";

/// An account as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name chosen.
    pub name: UserName,
    /// The invitation used.
    pub invite: Option<InviteId>,
}

/// A device that may act for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: PeerId,
}

/// A group as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founded {
    /// The name chosen.
    pub name: GroupName,
    /// Whether only members see it.
    pub hidden: bool,
}

/// One user's time in a group, or wish for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The group.
    pub group: GroupId,
    /// The user.
    pub user: UserId,
}

/// What became of a join request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whose and where it was.
    pub place: Place,
    /// Whether it was granted.
    pub accepted: bool,
}

/// A share and the membership it rests on: should one request have been granted twice, by trackers
/// that knew different memberships, each lives as long as its own.
pub type ShareKey = (ShareId, MembershipId);

/// One user's share of a content under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The group.
    pub group: GroupId,
    /// The membership it rests on and ends with.
    pub membership: MembershipId,
    /// Who.
    pub user: UserId,
    /// Under which name.
    pub name: FileName,
    /// What.
    #[serde(serialize_with = "write_head", deserialize_with = "read_head")]
    pub head: Arc<ManifestHead>,
}

fn write_head<S: Serializer>(head: &Arc<ManifestHead>, serializer: S) -> Result<S::Ok, S::Error> {
    head.encode().serialize(serializer)
}

fn read_head<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<ManifestHead>, D::Error> {
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    ManifestHead::parse(&bytes).map(Arc::new).map_err(serde::de::Error::custom)
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Accounts.
    pub users: BTreeMap<UserId, First<Account>>,
    /// Their Argon2id PHC strings.
    pub passwords: BTreeMap<UserId, Last<String>>,
    /// What the operator last said: `true` is disabled.
    pub disabled: BTreeMap<UserId, Last<bool>>,
    /// Invitations, with the time each ends.
    pub invites: BTreeMap<InviteId, First<UnixMillis>>,
    /// Enrolled devices.
    pub enrolments: BTreeMap<EnrolmentId, First<Enrolment>>,
    /// Enrolments that ended, whether or not their beginning is known yet.
    pub unenrolled: BTreeMap<EnrolmentId, First<Enrolment>>,
    /// Groups.
    pub groups: BTreeMap<GroupId, First<Founded>>,
    /// Seconds of offline grace of groups where it is not the default.
    pub graces: BTreeMap<GroupId, Last<u32>>,
    /// Memberships.
    pub memberships: BTreeMap<MembershipId, First<Place>>,
    /// Memberships that ended.
    pub ended: BTreeMap<MembershipId, First<GroupId>>,
    /// Join requests.
    pub requests: BTreeMap<JoinRequestId, First<Place>>,
    /// Join requests that were answered.
    pub answers: BTreeMap<JoinRequestId, First<Answer>>,
    /// Whom each group was last given to.
    pub owners: BTreeMap<GroupId, Last<MembershipId>>,
    /// Who was last named to follow.
    pub nominees: BTreeMap<GroupId, Last<Option<MembershipId>>>,
    /// Shares.
    pub shares: BTreeMap<ShareKey, First<Share>>,
    /// Shares that were withdrawn.
    pub withdrawn: BTreeSet<ShareId>,
    /// Ops of kinds this version does not know; a later one folds them.
    pub unknown: BTreeMap<(OriginId, u64), Op>,
}

impl Facts {
    /// What two trackers that hold the same ops agree on.
    pub fn digest(&self) -> Blake3Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(RULES);
        hasher.update(&wire::encode(self));
        Blake3Hash(hasher.finalize().into())
    }

    /// How many things there are: what a snapshot costs.
    pub fn len(&self) -> usize {
        self.users.len()
            + self.enrolments.len()
            + self.groups.len()
            + self.memberships.len()
            + self.requests.len()
            + self.shares.len()
            + self.tombstone_count()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tombstone_count(&self) -> usize {
        self.unenrolled.len() + self.ended.len() + self.answers.len() + self.withdrawn.len()
    }

    /// Forgets, at the time of the latest op, what ended long enough ago, and groups nobody is a
    /// member of. Only for ops that nobody can still be missing.
    pub fn forget_removals(&mut self, latest: UnixMillis) {
        let before = latest.minus(REMOVALS_KEPT);
        let living: BTreeSet<_> = self.memberships.values().map(|m| m.value.group).collect();
        self.groups.retain(|id, _| living.contains(id));
        self.graces.retain(|id, _| self.groups.contains_key(id));
        self.owners.retain(|id, _| self.groups.contains_key(id));
        self.nominees.retain(|id, _| self.groups.contains_key(id));
        self.requests.retain(|_, request| self.groups.contains_key(&request.value.group));
        self.unenrolled.retain(|_, tomb| tomb.stamp.at >= before);
        self.ended.retain(|_, tomb| tomb.stamp.at >= before);
        let rejected = latest.minus(REJECTED_WAIT);
        self.answers.retain(|_, a| {
            !a.value.accepted
                && a.stamp.at >= rejected
                && self.groups.contains_key(&a.value.place.group)
        });
        self.withdrawn.clear();
        self.invites.retain(|_, invite| invite.value >= latest);
    }
}
