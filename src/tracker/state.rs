//! Accounts, groups and listings: the fold of ops. What follows from it is in `derived`.
//!
//! Applying an op never fails and never judges: rights were judged when the op was made. In which
//! order ops come, and how often, makes no difference to the facts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

pub use super::facts::PUBLIC;
use super::facts::{Account, Answer, Enrolment, Facts, Founded, Place, Share, ShareKey};
use super::index::Index;
use super::lattice::{First, Last, RequestKey, Stamp, Word, Words};
use super::op::{Change, Op, Unenrolled};
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{EnrolmentId, GroupId, JoinRequestId, MembershipId, ShareId, UserId};
use crate::manifest::ManifestHead;
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;

/// The name of the group everybody is a member of.
pub const PUBLIC_NAME: &str = "public";

/// Who may make an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Anybody.
    #[default]
    Open,
    /// Whoever has an invitation of the operator's.
    Invite,
    /// Nobody.
    Closed,
}

/// What the operator of a tracker decides when starting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who may make an account.
    pub registration: Registration,
    /// Whether there is a group `public`.
    pub public: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { registration: Registration::Open, public: true }
    }
}

/// A user's living membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// The membership.
    pub membership: MembershipId,
    /// Since when.
    pub since: Stamp,
}

/// What applying an op changed, for those who keep things beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A share began.
    ShareBegan(Share),
    /// A share ended.
    ShareEnded(Share),
    /// A membership began.
    MemberJoined {
        /// The group.
        group: GroupId,
        /// Whose.
        user: UserId,
    },
    /// A membership ended.
    MemberLeft {
        /// The group.
        group: GroupId,
        /// Whose, if it is known.
        user: Option<UserId>,
        /// Which.
        membership: MembershipId,
    },
    /// A device may no longer act for a user.
    DeviceGone {
        /// The user.
        user: UserId,
        /// The device.
        device: PeerId,
    },
    /// A group has another owner.
    OwnerChanged {
        /// The group.
        group: GroupId,
        /// Who now; nobody when it has no members.
        owner: Option<UserId>,
    },
    /// An account is called something else than before.
    UserRenamed {
        /// Which.
        user: UserId,
    },
    /// A group is called something else than before.
    GroupRenamed {
        /// Which.
        group: GroupId,
    },
}

/// Everything a tracker must never forget.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) facts: Facts,
    pub(super) index: Index,
    /// What the operator decided.
    pub rules: Rules,
}

impl State {
    /// The state of these facts.
    pub fn new(mut facts: Facts, rules: Rules) -> Self {
        let unknown = std::mem::take(&mut facts.unknown);
        let index = Index::of(&mut facts);
        let mut state = Self { facts, index, rules };
        // This version may know what an earlier one did not.
        unknown.into_values().for_each(|op| drop(state.apply(&op)));
        state
    }

    /// What ops established.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What all trackers with the same ops, the latest of the time `latest`, agree on.
    pub fn digest(&self, latest: UnixMillis) -> Blake3Hash {
        self.facts.digest(latest)
    }

    /// Applies one op; returns what it changed.
    pub fn apply(&mut self, op: &Op) -> Vec<Effect> {
        let Some(change) = op.change() else {
            self.facts.unknown.insert((op.origin, op.seq), op.clone());
            return Vec::new();
        };
        let groups = groups_of(&change);
        let owners: Vec<_> = groups.iter().map(|group| self.owner(*group)).collect();
        let contested = self.contested(&change, &groups);
        let before = self.names(&contested);
        let suspended = self.suspended(&change);
        let mut effects = Vec::new();
        let Op { actor, request, .. } = op;
        self.apply_change(op.stamp(), (*actor, *request), change, &mut effects);
        for (group, before) in groups.into_iter().zip(owners) {
            let owner = self.owner(group);
            if before.is_some() && owner != before {
                effects.push(Effect::OwnerChanged { group, owner });
            }
        }
        effects.extend(self.renamed_since(before));
        effects.extend(suspended.into_iter().flat_map(|user| self.suspend(user)));
        effects
    }

    /// What distinguishes this state from an earlier one, whatever made it so.
    pub fn changes_since(&self, before: &Self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (now, was) = (&self.facts, &before.facts);
        for (id, place) in &was.memberships {
            if !now.memberships.contains_key(id) {
                let (group, user, membership) = (place.value.group, place.value.user, *id);
                effects.push(Effect::MemberLeft { group, user: Some(user), membership });
            }
        }
        for (id, enrolment) in &was.enrolments {
            let Enrolment { user, device } = enrolment.value;
            if !now.enrolments.contains_key(id) {
                effects.push(Effect::DeviceGone { user, device });
            }
        }
        for (key, share) in &was.shares {
            if now.shares.get(key).is_none_or(|share_now| share_now.value != share.value) {
                effects.push(Effect::ShareEnded(share.value.clone()));
            }
        }
        for (id, place) in &now.memberships {
            let Place { group, user } = place.value;
            if !was.memberships.contains_key(id) {
                effects.push(Effect::MemberJoined { group, user });
            }
        }
        for (key, share) in &now.shares {
            if was.shares.get(key).is_none_or(|share_was| share_was.value != share.value) {
                effects.push(Effect::ShareBegan(share.value.clone()));
            }
        }
        for group in was.groups.keys() {
            let (owner, old) = (self.owner(*group), before.owner(*group));
            if old.is_some() && owner != old {
                effects.push(Effect::OwnerChanged { group: *group, owner });
            }
        }
        let names = Names {
            users: was.users.keys().map(|user| (*user, before.user_name(*user))).collect(),
            groups: was.groups.keys().map(|group| (*group, before.group_name(*group))).collect(),
        };
        effects.extend(self.renamed_since(names));
        let disabled = was.users.keys().filter(|user| before.is_enabled(**user));
        let disabled: Vec<_> = disabled.filter(|user| !self.is_enabled(**user)).collect();
        effects.extend(disabled.into_iter().flat_map(|user| self.suspend(*user)));
        effects
    }

    /// Accounts and groups that a change may give another name: those that chose the same.
    fn contested(&self, change: &Change, groups: &[GroupId]) -> (Vec<UserId>, Vec<GroupId>) {
        let mut users = Vec::new();
        let mut rivals = Vec::new();
        if let Change::UserCreated { name, .. } = change {
            users.extend(self.users_that_chose(name));
        }
        if let Change::GroupCreated { name, .. } = change {
            rivals.extend(self.groups_that_chose(name));
        }
        for group in groups {
            let Some(made) = self.facts.groups.get(group) else { continue };
            let all: Vec<_> = self.groups_that_chose(&made.value.name).collect();
            // Alone, its name is its own whatever happens.
            rivals.extend(Some(all).filter(|all| all.len() > 1).into_iter().flatten());
        }
        (users, rivals)
    }

    fn names(&self, (users, groups): &(Vec<UserId>, Vec<GroupId>)) -> Names {
        Names {
            users: users.iter().map(|user| (*user, self.user_name(*user))).collect(),
            groups: groups.iter().map(|group| (*group, self.group_name(*group))).collect(),
        }
    }

    fn renamed_since(&self, before: Names) -> Vec<Effect> {
        let users = before.users.into_iter().filter(|(user, name)| self.user_name(*user) != *name);
        let users = users.map(|(user, _)| Effect::UserRenamed { user });
        let groups = before.groups.into_iter();
        let groups = groups
            .filter(|(group, name)| self.is_living(*group) && self.group_name(*group) != *name);
        users.chain(groups.map(|(group, _)| Effect::GroupRenamed { group })).collect()
    }

    /// The account that a change is about to disable: it used an invitation that another used
    /// before it.
    fn suspended(&self, change: &Change) -> Option<UserId> {
        let Change::UserCreated { invite: Some(invite), .. } = change else { return None };
        self.invited(*invite).filter(|user| self.is_enabled(*user))
    }

    /// What it means to a user's devices that the account may not be used any more.
    fn suspend(&self, user: UserId) -> Vec<Effect> {
        if self.is_enabled(user) {
            return Vec::new();
        }
        let mine = self.user_index(user).into_iter().flat_map(|user| &user.enrolments);
        let devices = mine.filter_map(|(_, id)| Some(self.facts.enrolments.get(id)?.value.device));
        devices.map(|device| Effect::DeviceGone { user, device }).collect()
    }

    fn apply_change(
        &mut self,
        stamp: Stamp,
        request: RequestKey,
        change: Change,
        effects: &mut Vec<Effect>,
    ) {
        match change {
            Change::OriginBegan { .. } => {}
            Change::UserCreated { user, name, password, invite } => {
                self.create_user(user, First { stamp, value: Account { name, invite } });
                say(&mut self.facts.passwords, user, Word { request, stamp, value: password });
            }
            Change::PasswordChanged { user, password, unenrolled } => {
                say(&mut self.facts.passwords, user, Word { request, stamp, value: password });
                self.unenrol(stamp, unenrolled, effects);
            }
            Change::UserDisabled { user, memberships, unenrolled } => {
                set(&mut self.facts.disabled, user, Last { stamp, value: true });
                self.unenrol(stamp, unenrolled, effects);
                for (membership, group) in memberships {
                    self.end_membership(stamp, group, membership, effects);
                }
            }
            Change::UserEnabled { user } => {
                set(&mut self.facts.disabled, user, Last { stamp, value: false });
            }
            Change::DeviceEnrolled { enrolment, user, device, unenrolled } => {
                self.unenrol(stamp, unenrolled, effects);
                self.enrol(enrolment, First { stamp, value: Enrolment { user, device } });
            }
            Change::DeviceRemoved { unenrolled } => self.unenrol(stamp, unenrolled, effects),
            Change::InviteMade { invite, expires } => {
                claim(&mut self.facts.invites, invite, First { stamp, value: expires });
            }
            Change::GroupCreated { group, name, hidden, user } => {
                self.create_group(group, First { stamp, value: Founded { name, hidden } });
                let membership = MembershipId(group.0);
                self.begin_membership(stamp, membership, Place { group, user }, effects);
                say(&mut self.facts.owners, group, Word { request, stamp, value: membership });
            }
            Change::GroupSet { group, offline_grace } => {
                say(&mut self.facts.graces, group, Word { request, stamp, value: offline_grace });
            }
            Change::JoinRequested { request, group, user } => {
                self.request(request, First { stamp, value: Place { group, user } });
            }
            Change::JoinAccepted { request, group, user, membership } => {
                let place = Place { group, user };
                self.answer(request, First { stamp, value: Answer { place, accepted: true } });
                self.begin_membership(stamp, membership, place, effects);
            }
            Change::JoinRejected { request, group, user } => {
                let place = Place { group, user };
                self.answer(request, First { stamp, value: Answer { place, accepted: false } });
            }
            Change::MembershipEnded { group, memberships, kicked: _ }
            | Change::GroupArchived { group, memberships } => {
                for membership in memberships {
                    self.end_membership(stamp, group, membership, effects);
                }
            }
            Change::NomineeSet { group, owner, nominee } => {
                say(&mut self.facts.owners, group, Word { request, stamp, value: owner });
                say(&mut self.facts.nominees, group, Word { request, stamp, value: nominee });
            }
            Change::OwnerAssigned { group, owner } => {
                say(&mut self.facts.owners, group, Word { request, stamp, value: owner });
            }
            Change::ShareAdded { share, group, membership, user, name, head } => {
                // What no manifest head is was never acknowledged to anybody.
                let Ok(head) = ManifestHead::parse(&head) else { return };
                let value = Share { group, membership, user, name, head: head.into() };
                self.add_share((share, membership), First { stamp, value }, effects);
            }
            Change::SharesWithdrawn { group: _, content: _, shares, by_owner: _ } => {
                for share in shares {
                    let known = self.facts.withdrawn.entry(share).or_insert(stamp);
                    *known = stamp.min(*known);
                    let first = (share, MembershipId([0; 16]));
                    let known = self.facts.shares.range(first..).map(|(key, _)| *key);
                    let gone: Vec<_> = known.take_while(|(id, _)| *id == share).collect();
                    gone.into_iter().for_each(|key| self.drop_share(key, effects));
                }
            }
        }
    }

    fn create_user(&mut self, id: UserId, user: First<Account>) {
        let Self { facts, index, .. } = self;
        settle(&mut facts.users, index, id, user, (Index::add_user, Index::remove_user));
    }

    fn enrol(&mut self, id: EnrolmentId, enrolment: First<Enrolment>) {
        let Self { facts, index, .. } = self;
        if !facts.unenrolled.contains_key(&id) {
            let way: Ways<_, _> = (Index::add_enrolment, Index::remove_enrolment);
            settle(&mut facts.enrolments, index, id, enrolment, way);
        }
    }

    fn unenrol(&mut self, stamp: Stamp, gone: Vec<Unenrolled>, effects: &mut Vec<Effect>) {
        let Self { facts, index, .. } = self;
        for Unenrolled { enrolment: id, user, device } in gone {
            if let Some(old) = facts.enrolments.remove(&id) {
                index.remove_enrolment(id, &old);
                effects.push(Effect::DeviceGone { user, device });
            }
            let tomb = First { stamp, value: Enrolment { user, device } };
            let way: Ways<_, _> = (Index::add_revoked_device, Index::remove_revoked_device);
            settle(&mut facts.unenrolled, index, id, tomb, way);
        }
    }

    fn create_group(&mut self, id: GroupId, group: First<Founded>) {
        let Self { facts, index, .. } = self;
        settle(&mut facts.groups, index, id, group, (Index::add_group, Index::remove_group));
    }

    fn begin_membership(
        &mut self,
        stamp: Stamp,
        id: MembershipId,
        place: Place,
        effects: &mut Vec<Effect>,
    ) {
        let Self { facts, index, .. } = self;
        if facts.ended.contains_key(&id) {
            return;
        }
        let way: Ways<_, _> = (Index::add_membership, Index::remove_membership);
        let membership = First { stamp, value: place };
        if settle(&mut facts.memberships, index, id, membership, way) == Settled::New {
            effects.push(Effect::MemberJoined { group: place.group, user: place.user });
        }
    }

    fn end_membership(
        &mut self,
        stamp: Stamp,
        group: GroupId,
        id: MembershipId,
        effects: &mut Vec<Effect>,
    ) {
        let was = self.facts.memberships.remove(&id);
        if let Some(was) = &was {
            self.index.remove_membership(id, was);
        }
        let shares = self.index.membership_shares.range((id, ShareId([0; 16]))..);
        let shares: Vec<_> = shares.take_while(|(of, _)| *of == id).map(|(_, s)| *s).collect();
        let mut user = was.map(|was| was.value.user);
        for share in shares {
            let share = (share, id);
            user = user.or(self.facts.shares.get(&share).map(|share| share.value.user));
            self.drop_share(share, effects);
        }
        let Self { facts, index, .. } = self;
        let way: Ways<_, _> = (Index::add_ended, Index::remove_ended);
        if settle(&mut facts.ended, index, id, First { stamp, value: group }, way) == Settled::New {
            effects.push(Effect::MemberLeft { group, user, membership: id });
        }
    }

    fn request(&mut self, id: JoinRequestId, request: First<Place>) {
        let Self { facts, index, .. } = self;
        if !facts.answers.contains_key(&id) {
            let way: Ways<_, _> = (Index::add_request, Index::remove_request);
            settle(&mut facts.requests, index, id, request, way);
        }
    }

    fn answer(&mut self, id: JoinRequestId, answer: First<Answer>) {
        let Self { facts, index, .. } = self;
        if let Some(old) = facts.requests.remove(&id) {
            index.remove_request(id, &old);
        }
        settle(&mut facts.answers, index, id, answer, (Index::add_answer, Index::remove_answer));
    }

    fn add_share(&mut self, id: ShareKey, mut share: First<Share>, effects: &mut Vec<Effect>) {
        let gone = self.facts.withdrawn.contains_key(&id.0) || self.facts.ended.contains_key(&id.1);
        if gone {
            return;
        }
        match self.facts.shares.get(&id) {
            Some(old) if !old.yields_to(share.stamp) => return,
            Some(old) => {
                effects.push(Effect::ShareEnded(old.value.clone()));
                self.index.remove_share(id, &old.value);
            }
            None => {}
        }
        self.index.add_share(id, &mut share.value);
        effects.push(Effect::ShareBegan(share.value.clone()));
        self.facts.shares.insert(id, share);
    }

    fn drop_share(&mut self, id: ShareKey, effects: &mut Vec<Effect>) {
        if let Some(share) = self.facts.shares.remove(&id) {
            self.index.remove_share(id, &share.value);
            effects.push(Effect::ShareEnded(share.value));
        }
    }
}

/// What accounts and groups were called.
struct Names {
    users: Vec<(UserId, Option<UserName>)>,
    groups: Vec<(GroupId, Option<GroupName>)>,
}

/// The groups whose owner a change may change.
fn groups_of(change: &Change) -> Vec<GroupId> {
    match change {
        Change::MembershipEnded { group, .. }
        | Change::NomineeSet { group, .. }
        | Change::OwnerAssigned { group, .. } => vec![*group],
        Change::JoinAccepted { group, .. } | Change::GroupArchived { group, .. } => vec![*group],
        Change::UserDisabled { memberships, .. } => {
            memberships.iter().map(|(_, group)| *group).collect()
        }
        _ => Vec::new(),
    }
}

/// How a thing enters the index, and how it leaves it.
type Ways<K, T> = (fn(&mut Index, K, &First<T>), fn(&mut Index, K, &First<T>));

/// What became of a claim.
#[derive(PartialEq, Eq)]
enum Settled {
    /// There was none.
    New,
    /// It came before the one there was.
    Earlier,
    /// It comes after the one there is.
    Late,
}

/// Enters a claim that there is none of yet, or none so early, into the facts and the index.
fn settle<K: Ord + Copy, T>(
    map: &mut BTreeMap<K, First<T>>,
    index: &mut Index,
    id: K,
    claim: First<T>,
    (add, remove): Ways<K, T>,
) -> Settled {
    let settled = match map.get(&id) {
        Some(known) if !known.yields_to(claim.stamp) => return Settled::Late,
        Some(known) => {
            remove(index, id, known);
            Settled::Earlier
        }
        None => Settled::New,
    };
    add(index, id, &claim);
    map.insert(id, claim);
    settled
}

fn set<K: Ord, T>(map: &mut BTreeMap<K, Last<T>>, key: K, word: Last<T>) {
    if map.get(&key).is_none_or(|known| known.yields_to(word.stamp)) {
        map.insert(key, word);
    }
}

fn say<K: Ord, T>(map: &mut BTreeMap<K, Words<T>>, key: K, word: Word<T>) {
    match map.entry(key) {
        Entry::Vacant(entry) => drop(entry.insert(Words::new(word))),
        Entry::Occupied(mut entry) => entry.get_mut().say(word),
    }
}

fn claim<K: Ord, T>(map: &mut BTreeMap<K, First<T>>, key: K, claim: First<T>) {
    if map.get(&key).is_none_or(|known| known.yields_to(claim.stamp)) {
        map.insert(key, claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blake3;
    use crate::id::{InviteId, OriginId, RequestId};
    use crate::manifest::testing::manifest_of;
    use crate::wire;
    use proptest::prelude::*;

    const LATEST: UnixMillis = UnixMillis(0);

    /// Ids out of a few, so that changes meet.
    fn id() -> impl Strategy<Value = [u8; 16]> {
        (0u8..4).prop_map(|n| [n; 16])
    }

    fn device() -> impl Strategy<Value = PeerId> {
        (0u8..3).prop_map(|n| PeerId([n; 32]))
    }

    fn unenrolled() -> impl Strategy<Value = Vec<Unenrolled>> {
        let one = (id(), id(), device()).prop_map(|(enrolment, user, device)| Unenrolled {
            enrolment: EnrolmentId(enrolment),
            user: UserId(user),
            device,
        });
        prop::collection::vec(one, 0..3)
    }

    fn memberships() -> impl Strategy<Value = Vec<MembershipId>> {
        prop::collection::vec(id().prop_map(MembershipId), 0..3)
    }

    fn change() -> impl Strategy<Value = Change> {
        let name = (0u8..3).prop_map(|n| format!("n{n}"));
        let text = "[a-c]";
        prop_oneof![
            (id(), name.clone(), text, prop::option::of(id())).prop_map(
                |(user, name, password, invite)| Change::UserCreated {
                    user: UserId(user),
                    name: name.parse().expect("name"),
                    password,
                    invite: invite.map(InviteId),
                }
            ),
            (id(), text, unenrolled()).prop_map(|(user, password, unenrolled)| {
                Change::PasswordChanged { user: UserId(user), password, unenrolled }
            }),
            (id(), memberships(), id(), unenrolled()).prop_map(
                |(user, memberships, group, unenrolled)| Change::UserDisabled {
                    user: UserId(user),
                    memberships: memberships.into_iter().map(|m| (m, GroupId(group))).collect(),
                    unenrolled,
                }
            ),
            id().prop_map(|user| Change::UserEnabled { user: UserId(user) }),
            (id(), id(), device(), unenrolled()).prop_map(
                |(enrolment, user, device, unenrolled)| Change::DeviceEnrolled {
                    enrolment: EnrolmentId(enrolment),
                    user: UserId(user),
                    device,
                    unenrolled,
                }
            ),
            unenrolled().prop_map(|unenrolled| Change::DeviceRemoved { unenrolled }),
            (id(), 0u64..9).prop_map(|(invite, at)| Change::InviteMade {
                invite: InviteId(invite),
                expires: UnixMillis(at),
            }),
            (id(), name, any::<bool>(), id()).prop_map(|(group, name, hidden, user)| {
                Change::GroupCreated {
                    group: GroupId(group),
                    name: name.parse().expect("name"),
                    hidden,
                    user: UserId(user),
                }
            }),
            (id(), 0u32..3).prop_map(|(group, offline_grace)| Change::GroupSet {
                group: GroupId(group),
                offline_grace,
            }),
            (id(), id(), id()).prop_map(|(request, group, user)| Change::JoinRequested {
                request: JoinRequestId(request),
                group: GroupId(group),
                user: UserId(user),
            }),
            (id(), id(), id(), id()).prop_map(|(request, group, user, membership)| {
                Change::JoinAccepted {
                    request: JoinRequestId(request),
                    group: GroupId(group),
                    user: UserId(user),
                    membership: MembershipId(membership),
                }
            }),
            (id(), id(), id()).prop_map(|(request, group, user)| Change::JoinRejected {
                request: JoinRequestId(request),
                group: GroupId(group),
                user: UserId(user),
            }),
            (id(), memberships(), any::<bool>()).prop_map(|(group, memberships, kicked)| {
                Change::MembershipEnded { group: GroupId(group), memberships, kicked }
            }),
            (id(), id(), prop::option::of(id())).prop_map(|(group, owner, nominee)| {
                Change::NomineeSet {
                    group: GroupId(group),
                    owner: MembershipId(owner),
                    nominee: nominee.map(MembershipId),
                }
            }),
            (id(), id()).prop_map(|(group, owner)| Change::OwnerAssigned {
                group: GroupId(group),
                owner: MembershipId(owner),
            }),
            (id(), id(), id(), id(), 0u8..3).prop_map(
                |(share, group, membership, user, content)| {
                    Change::ShareAdded {
                        share: ShareId(share),
                        group: GroupId(group),
                        membership: MembershipId(membership),
                        user: UserId(user),
                        name: format!("f{content}").parse().expect("name"),
                        head: manifest_of(&[content]).head().encode(),
                    }
                }
            ),
            (id(), prop::collection::vec(id().prop_map(ShareId), 0..3)).prop_map(
                |(group, shares)| Change::SharesWithdrawn {
                    group: GroupId(group),
                    content: manifest_of(&[1]).content_id(),
                    shares,
                    by_owner: false,
                }
            ),
            (id(), memberships()).prop_map(|(group, memberships)| Change::GroupArchived {
                group: GroupId(group),
                memberships,
            }),
        ]
    }

    /// Ops of three origins, each at its own time; some of a kind nobody knows.
    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let one = (change(), 0u8..3, any::<u32>(), 0u8..20);
        prop::collection::vec(one, 1..40).prop_map(|changes| {
            let mut ops: Vec<Op> = Vec::new();
            for (seq, (change, origin, clock, strange)) in (1u64..).zip(changes) {
                let (mut kind, body) = change.encode();
                if strange == 0 {
                    kind = 999;
                }
                ops.push(Op {
                    origin: OriginId([origin; 16]),
                    seq,
                    previous: blake3(b""),
                    // No two ops have the same stamp.
                    clock: UnixMillis(u64::from(clock) * 100 + seq),
                    actor: PeerId([origin; 32]),
                    request: RequestId([seq as u8; 16]),
                    kind,
                    body,
                });
            }
            ops
        })
    }

    fn fold<'a>(ops: impl IntoIterator<Item = &'a Op>) -> State {
        let mut state = State::default();
        ops.into_iter().for_each(|op| drop(state.apply(op)));
        state
    }

    /// What a person sees must follow from the facts too, whatever they are.
    fn look_at(state: &State) {
        for n in 0u8..4 {
            let (group, user) = (GroupId([n; 16]), UserId([n; 16]));
            let members: Vec<_> = state.members(group).collect();
            assert_eq!(state.owner(group).is_none(), members.is_empty(), "an owner while living");
            if let Some(owner) = state.owner(group) {
                assert!(members.iter().any(|member| member.user == owner), "a member owns it");
            }
            for member in members {
                assert_eq!(state.member(group, member.user), Some(member));
            }
            if let Some(name) = state.group_name(group).filter(|_| state.is_living(group)) {
                assert_eq!(state.group_named(&name), Some(group));
            }
            if let Some(name) = state.user_name(user) {
                assert_eq!(state.user_named(&name), Some(user));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_order_repetition_and_batching_of_the_same_ops_gives_the_same_digest(
            ops in ops(),
            seed in any::<u64>(),
        ) {
            let state = fold(&ops);
            state.check_invariants();
            look_at(&state);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut shuffled: Vec<_> = ops.iter().chain(ops.iter().filter(|_| rng.bool())).collect();
            rng.shuffle(&mut shuffled);
            let other = fold(shuffled);
            prop_assert_eq!(state.facts(), other.facts());
            prop_assert_eq!(state.digest(LATEST), other.digest(LATEST));
            prop_assert_eq!(&state.index, &other.index);
            // Half of them by way of a snapshot.
            let half = fold(&ops[..ops.len() / 2]);
            let bytes = wire::encode(half.facts());
            let facts = wire::decode(&bytes).expect("own encoding decodes");
            let mut resumed = State::new(facts, Rules::default());
            ops[ops.len() / 2..].iter().for_each(|op| drop(resumed.apply(op)));
            prop_assert_eq!(state.facts(), resumed.facts());
            resumed.check_invariants();
        }

        #[test]
        fn the_same_request_granted_by_two_trackers_counts_once(
            ops in ops(),
            seed in any::<u64>(),
        ) {
            // Another tracker granted some of them too, later.
            let mut rng = fastrand::Rng::with_seed(seed);
            let again = |op: &Op| Op {
                origin: OriginId([9; 16]),
                clock: UnixMillis(op.clock.0 + 50),
                ..op.clone()
            };
            let twice: Vec<_> = ops.iter().filter(|_| rng.bool()).map(again).collect();
            let mut both: Vec<_> = ops.iter().chain(&twice).collect();
            let state = fold(both.iter().copied());
            rng.shuffle(&mut both);
            let other = fold(both);
            prop_assert_eq!(state.facts(), other.facts());
            prop_assert_eq!(state.digest(LATEST), other.digest(LATEST));
            let once = fold(&ops);
            prop_assert_eq!(
                state.facts().users.keys().collect::<Vec<_>>(),
                once.facts().users.keys().collect::<Vec<_>>()
            );
            prop_assert_eq!(
                state.facts().memberships.keys().collect::<Vec<_>>(),
                once.facts().memberships.keys().collect::<Vec<_>>()
            );
            prop_assert_eq!(
                state.facts().shares.keys().collect::<Vec<_>>(),
                once.facts().shares.keys().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn of_two_that_chose_one_name_the_earlier_has_it_and_the_other_a_mark() {
        let created = |user: u8, at: u64| {
            let change = Change::UserCreated {
                user: UserId([user; 16]),
                name: "bob".parse().expect("name"),
                password: String::new(),
                invite: Some(InviteId([1; 16])),
            };
            let (kind, body) = change.encode();
            let (origin, request) = (OriginId([user; 16]), RequestId([user; 16]));
            let (clock, actor) = (UnixMillis(at), PeerId([user; 32]));
            let previous = blake3(b"");
            Op { origin, seq: 1, previous, clock, actor, request, kind, body }
        };
        let state = fold(&[created(0xab, 20), created(0xcd, 10)]);
        let named = |name: &str| state.user_named(&name.parse().expect("name"));
        assert_eq!(named("bob"), Some(UserId([0xcd; 16])));
        assert_eq!(named("bob~abab"), Some(UserId([0xab; 16])));
        assert_eq!(named("bob~cdcd"), None);
        let name = state.user_name(UserId([0xab; 16])).expect("named");
        assert_eq!(name.as_str(), "bob~abab");
        // One invitation for both: the later waits for the operator.
        assert!(state.is_enabled(UserId([0xcd; 16])));
        assert!(!state.is_enabled(UserId([0xab; 16])));
    }
}
