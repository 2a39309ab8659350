//! What ops establish: sets of things that came to be, the removals that beat them, and registers.
//!
//! Everything here only ever moves one way, so the same ops in any order, repeated or not, leave
//! the same facts. Who may do what, who owns what, and what is alive is derived, never kept.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lattice::{First, Last, Stamp, Word, Words};
use super::op::Op;
use super::vector::Knowledge;
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{
    EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, OriginId, ShareId, UserId, derived,
};
use crate::limits::{REJECTED_WAIT, REMOVALS_KEPT};
use crate::manifest::ManifestHead;
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;
use crate::wire;

/// The id of the group everybody is a member of, on every tracker: the ASCII bytes
/// `mtq public group`.
pub const PUBLIC: GroupId = GroupId(*b"mtq public group");

/// Names the rules of the fold: digests are compared only between equals.
const RULES: &[u8] = b"mtq fold 2\0";

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
    pub passwords: BTreeMap<UserId, Words<String>>,
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
    pub graces: BTreeMap<GroupId, Words<u32>>,
    /// Memberships.
    pub memberships: BTreeMap<MembershipId, First<Place>>,
    /// Memberships that ended.
    pub ended: BTreeMap<MembershipId, First<GroupId>>,
    /// Join requests.
    pub requests: BTreeMap<JoinRequestId, First<Place>>,
    /// Join requests that were answered.
    pub answers: BTreeMap<JoinRequestId, First<Answer>>,
    /// Whom each group was last given to.
    pub owners: BTreeMap<GroupId, Words<MembershipId>>,
    /// Who was last named to follow.
    pub nominees: BTreeMap<GroupId, Words<Option<MembershipId>>>,
    /// Shares.
    pub shares: BTreeMap<ShareKey, First<Share>>,
    /// Shares that were withdrawn.
    pub withdrawn: BTreeMap<ShareId, Stamp>,
    /// Ops of kinds this version does not know; a later one folds them.
    pub unknown: BTreeMap<(OriginId, u64), Op>,
}

impl Facts {
    /// What two trackers that hold the same ops agree on, the latest of which is of the time
    /// `latest`: everything that counts, and nothing that one of them may have forgotten already.
    pub fn digest(&self, latest: UnixMillis) -> Blake3Hash {
        let mut sum = Sum::new();
        let living = self.living_groups();
        sum.all(&self.users, |_, _| true);
        sum.last_words(&self.passwords, |_| true);
        sum.all(&self.disabled, |_, _| true);
        sum.all(&self.invites, |_, invite| invite.value >= latest);
        sum.all(&self.enrolments, |_, _| true);
        sum.all(&self.groups, |id, _| living.contains(id));
        sum.last_words(&self.graces, |id| living.contains(id));
        sum.all(&self.memberships, |_, place| living.contains(&place.value.group));
        sum.all(&self.requests, |_, place| living.contains(&place.value.group));
        sum.last_words(&self.owners, |id| living.contains(id));
        sum.last_words(&self.nominees, |id| living.contains(id));
        sum.all(&self.shares, |key, share| self.is_founded(key, &share.value));
        sum.all(&self.unknown, |_, _| true);
        sum.finish()
    }

    /// Groups that were made and have members.
    fn living_groups(&self) -> BTreeSet<GroupId> {
        let members = self.memberships.values().map(|place| place.value.group);
        members.filter(|group| self.groups.contains_key(group)).collect()
    }

    /// Whether the membership that a share rests on is there.
    pub fn is_founded(&self, (_, membership): &ShareKey, share: &Share) -> bool {
        if share.group == PUBLIC {
            return *membership == self.public_membership(share.user);
        }
        self.memberships.get(membership).is_some_and(|place| {
            place.value.group == share.group && self.groups.contains_key(&share.group)
        })
    }

    /// A user's membership in the group of everybody: another one after the account was disabled.
    pub fn public_membership(&self, user: UserId) -> MembershipId {
        let since = self.disabled.get(&user).map_or(Stamp::EARLIEST, |said| said.stamp);
        let at = since.at.0.to_le_bytes();
        let seq = since.seq.to_le_bytes();
        let parts: [&[u8]; 5] = [b"mtq public member\0", &user.0, &at, &since.origin.0, &seq];
        MembershipId(derived(&parts))
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

    /// How many things that ended are remembered.
    pub fn tombstone_count(&self) -> usize {
        self.unenrolled.len() + self.ended.len() + self.answers.len() + self.withdrawn.len()
    }

    /// Forgets, at the time of the latest op, what ended long enough ago, and what rests on
    /// something that is not there. Only of ops in `known`, which everybody has: nobody can make
    /// anything any more that would have to be told that it ended.
    pub fn forget_removals(&mut self, latest: UnixMillis, known: &Knowledge) {
        let news = |stamp: Stamp| !known.covers(stamp.op());
        let before = latest.minus(REMOVALS_KEPT);
        let rejected = latest.minus(REJECTED_WAIT);
        let kept = |stamp: Stamp| stamp.at >= before || news(stamp);
        self.unenrolled.retain(|_, tomb| kept(tomb.stamp));
        self.ended.retain(|_, tomb| kept(tomb.stamp));
        self.answers.retain(|_, answer| {
            kept(answer.stamp) || (!answer.value.accepted && answer.stamp.at >= rejected)
        });
        self.withdrawn.retain(|_, stamp| news(*stamp));
        self.invites.retain(|_, invite| invite.value >= latest || news(invite.stamp));
        // Of groups nobody is a member of, or was lately.
        let members = self.memberships.values().map(|place| place.value.group);
        let of_use: BTreeSet<_> =
            members.chain(self.ended.values().map(|tomb| tomb.value)).collect();
        self.groups.retain(|id, group| of_use.contains(id) || news(group.stamp));
        let groups = &self.groups;
        let there = |id: &GroupId| groups.contains_key(id);
        self.memberships.retain(|_, m| there(&m.value.group) || news(m.stamp));
        self.requests.retain(|_, request| there(&request.value.group) || news(request.stamp));
        self.graces.retain(|id, words| there(id) || words.is_news(known));
        self.owners.retain(|id, words| there(id) || words.is_news(known));
        self.nominees.retain(|id, words| there(id) || words.is_news(known));
        let loose: Vec<_> = self
            .shares
            .iter()
            .filter(|(key, share)| !news(share.stamp) && !self.is_founded(key, &share.value))
            .map(|(key, _)| *key)
            .collect();
        loose.iter().for_each(|key| drop(self.shares.remove(key)));
        self.graces.values_mut().for_each(|words| words.settle(known));
        self.owners.values_mut().for_each(|words| words.settle(known));
        self.nominees.values_mut().for_each(|words| words.settle(known));
        self.passwords.values_mut().for_each(|words| words.settle(known));
    }

    /// Takes over what another tracker established, whose ops are `they_know`, these being of
    /// ops that `we_know`. What one of both lacks though it knows the op that made it, ended there.
    pub fn absorb(&mut self, theirs: Self, we_know: &Knowledge, they_know: &Knowledge) {
        let ctx = Meeting { we_know, they_know };
        // What ended, first: it beats whatever it ends.
        ctx.tombs(&mut self.unenrolled, theirs.unenrolled);
        ctx.tombs(&mut self.ended, theirs.ended);
        ctx.tombs(&mut self.answers, theirs.answers);
        for (share, stamp) in theirs.withdrawn {
            let known = self.withdrawn.entry(share).or_insert(stamp);
            *known = stamp.min(*known);
        }
        ctx.claims(&mut self.users, theirs.users);
        ctx.claims(&mut self.invites, theirs.invites);
        ctx.claims(&mut self.enrolments, theirs.enrolments);
        ctx.claims(&mut self.groups, theirs.groups);
        ctx.claims(&mut self.memberships, theirs.memberships);
        ctx.claims(&mut self.requests, theirs.requests);
        ctx.claims(&mut self.shares, theirs.shares);
        for (user, said) in theirs.disabled {
            match self.disabled.get(&user) {
                Some(known) if !known.yields_to(said.stamp) => {}
                _ => drop(self.disabled.insert(user, said)),
            }
        }
        ctx.words(&mut self.passwords, theirs.passwords);
        ctx.words(&mut self.graces, theirs.graces);
        ctx.words(&mut self.owners, theirs.owners);
        ctx.words(&mut self.nominees, theirs.nominees);
        self.unknown.extend(theirs.unknown);
        self.enrolments.retain(|id, _| !self.unenrolled.contains_key(id));
        self.memberships.retain(|id, _| !self.ended.contains_key(id));
        self.requests.retain(|id, _| !self.answers.contains_key(id));
        self.shares.retain(|(share, membership), _| {
            !self.withdrawn.contains_key(share) && !self.ended.contains_key(membership)
        });
    }
}

/// Two trackers' facts that become one.
struct Meeting<'a> {
    we_know: &'a Knowledge,
    they_know: &'a Knowledge,
}

impl Meeting<'_> {
    fn claims<K: Ord, T>(&self, mine: &mut BTreeMap<K, First<T>>, theirs: BTreeMap<K, First<T>>) {
        mine.retain(|id, claim| {
            theirs.contains_key(id) || !self.they_know.covers(claim.stamp.op())
        });
        for (id, claim) in theirs {
            match mine.get(&id) {
                Some(known) if !known.yields_to(claim.stamp) => {}
                None if self.we_know.covers(claim.stamp.op()) => {}
                _ => drop(mine.insert(id, claim)),
            }
        }
    }

    fn tombs<K: Ord, T>(&self, mine: &mut BTreeMap<K, First<T>>, theirs: BTreeMap<K, First<T>>) {
        for (id, tomb) in theirs {
            if mine.get(&id).is_none_or(|known| known.yields_to(tomb.stamp)) {
                mine.insert(id, tomb);
            }
        }
    }

    fn words<K: Ord + Copy, T>(
        &self,
        mine: &mut BTreeMap<K, Words<T>>,
        theirs: BTreeMap<K, Words<T>>,
    ) {
        let mut met = BTreeMap::new();
        let mut say = |id: K, word: Word<T>| match met.entry(id) {
            Entry::Vacant(entry) => drop(entry.insert(Words::new(word))),
            Entry::Occupied(mut entry) => entry.get_mut().say(word),
        };
        let ours = std::mem::take(mine);
        let mut theirs: BTreeMap<K, Vec<Word<T>>> =
            theirs.into_iter().map(|(id, words)| (id, words.into_all().collect())).collect();
        for (id, words) in ours {
            let other = theirs.remove(&id).unwrap_or_default();
            let ours: Vec<_> = words.into_all().collect();
            let same =
                |all: &[Word<T>], word: &Word<T>| all.iter().any(|w| w.request == word.request);
            let keep: Vec<_> = ours
                .iter()
                .map(|word| same(&other, word) || !self.they_know.covers(word.stamp.op()))
                .collect();
            let take: Vec<_> = other
                .iter()
                .map(|word| same(&ours, word) || !self.we_know.covers(word.stamp.op()))
                .collect();
            let ours = ours.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(word, _)| word);
            let other = other.into_iter().zip(take).filter(|(_, take)| *take).map(|(word, _)| word);
            for word in ours.chain(other) {
                say(id, word);
            }
        }
        for (id, words) in theirs {
            for word in words.into_iter().filter(|w| !self.we_know.covers(w.stamp.op())) {
                say(id, word);
            }
        }
        *mine = met;
    }
}

/// A hash over things in order.
struct Sum(blake3::Hasher);

impl Sum {
    fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(RULES);
        Self(hasher)
    }

    /// The entries that count, encoded one after the other, and how many they are.
    fn all<K: Serialize, V: Serialize>(
        &mut self,
        map: &BTreeMap<K, V>,
        counts: impl Fn(&K, &V) -> bool,
    ) {
        let mut count = 0u64;
        for entry in map.iter().filter(|(key, value)| counts(key, value)) {
            self.0.update(&wire::encode(&entry));
            count += 1;
        }
        self.0.update(&count.to_le_bytes());
    }

    fn last_words<K: Serialize + Ord, T: Serialize>(
        &mut self,
        map: &BTreeMap<K, Words<T>>,
        counts: impl Fn(&K) -> bool,
    ) {
        let mut count = 0u64;
        for (key, words) in map.iter().filter(|(key, _)| counts(key)) {
            let Word { request: _, stamp, value } = words.last();
            self.0.update(&wire::encode(&(key, stamp, value)));
            count += 1;
        }
        self.0.update(&count.to_le_bytes());
    }

    fn finish(self) -> Blake3Hash {
        Blake3Hash(self.0.finalize().into())
    }
}
