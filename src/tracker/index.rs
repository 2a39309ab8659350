//! Ways into the facts: by name, by device, by group, by user. Derived from them and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::facts::{Account, Answer, Enrolment, Facts, Founded, Place, Share, ShareKey};
use super::lattice::{First, Stamp};
use crate::clock::UnixMillis;
use crate::id::{EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, ShareId, UserId};
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;

/// Before every other key of a share.
pub const LEAST_SHARE: ShareKey = (ShareId([0; 16]), MembershipId([0; 16]));

/// After every other key of a share.
pub const GREATEST_SHARE: ShareKey = (ShareId([0xff; 16]), MembershipId([0xff; 16]));

/// What makes tickets void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revoked {
    /// The membership ended.
    Membership(GroupId, MembershipId),
    /// The device was removed: its older tickets are void.
    Device(UserId, PeerId),
}

/// What belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupIndex {
    /// The name chosen and when; nothing while only others speak of the group.
    pub founded: Option<(GroupName, Stamp)>,
    /// Memberships.
    pub members: BTreeSet<(UserId, Stamp, MembershipId)>,
    /// Requests nobody has answered.
    pub requests: BTreeSet<(UserId, Stamp, JoinRequestId)>,
    /// Who was turned away, and when.
    pub rejected: BTreeSet<(UserId, UnixMillis, JoinRequestId)>,
    /// Shares in the order listings have.
    pub files: BTreeSet<(FileName, ContentId, ShareKey)>,
    /// Shares by what they share.
    pub contents: BTreeSet<(ContentId, ShareKey)>,
    /// How many different contents those are.
    pub file_count: usize,
}

impl GroupIndex {
    fn lists(&self, content: ContentId) -> bool {
        let mut shares = self.contents.range((content, LEAST_SHARE)..);
        shares.next().is_some_and(|(of, _)| *of == content)
    }
}

/// What belongs to a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserIndex {
    /// Enrolled devices.
    pub enrolments: BTreeSet<(Stamp, EnrolmentId)>,
    /// Memberships.
    pub groups: BTreeSet<(GroupId, MembershipId)>,
    /// Requests nobody has answered, in groups where somebody could.
    pub requests: BTreeSet<JoinRequestId>,
    /// Shares in all groups.
    pub share_count: usize,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Who chose a user name, the earliest first.
    pub user_names: BTreeSet<(UserName, Stamp, UserId)>,
    /// What has members and was given a group name, the earliest first.
    pub group_names: BTreeSet<(GroupName, Stamp, GroupId)>,
    /// Who used an invitation, the earliest first.
    pub invited: BTreeSet<(InviteId, Stamp, UserId)>,
    /// Enrolments of a device, the latest last.
    pub devices: BTreeSet<(PeerId, Stamp, EnrolmentId)>,
    /// Groups.
    pub groups: BTreeMap<GroupId, GroupIndex>,
    /// Users.
    pub users: BTreeMap<UserId, UserIndex>,
    /// Shares that end with a membership.
    pub membership_shares: BTreeSet<(MembershipId, ShareId)>,
    /// Heads in use, each kept once, with the number of shares of it.
    pub heads: BTreeMap<ContentId, (Arc<ManifestHead>, usize)>,
    /// Revocations in order of time, each with the id of what ended.
    pub revocations: BTreeSet<(UnixMillis, [u8; 16], Revoked)>,
}

impl Index {
    /// The index of `facts`.
    pub fn of(facts: &mut Facts) -> Self {
        let mut index = Self::default();
        facts.users.iter().for_each(|(id, user)| index.add_user(*id, user));
        facts.enrolments.iter().for_each(|(id, e)| index.add_enrolment(*id, e));
        facts.unenrolled.iter().for_each(|(id, tomb)| index.add_revoked_device(*id, tomb));
        facts.groups.iter().for_each(|(id, group)| index.add_group(*id, group));
        facts.memberships.iter().for_each(|(id, m)| index.add_membership(*id, m));
        facts.ended.iter().for_each(|(id, tomb)| index.add_ended(*id, tomb));
        facts.requests.iter().for_each(|(id, request)| index.add_request(*id, request));
        facts.answers.iter().for_each(|(id, answer)| index.add_answer(*id, answer));
        facts.shares.iter_mut().for_each(|(id, share)| index.add_share(*id, &mut share.value));
        index
    }

    pub(super) fn add_user(&mut self, id: UserId, user: &First<Account>) {
        self.user_names.insert((user.value.name.clone(), user.stamp, id));
        self.invited.extend(user.value.invite.map(|invite| (invite, user.stamp, id)));
    }

    pub(super) fn remove_user(&mut self, id: UserId, user: &First<Account>) {
        self.user_names.remove(&(user.value.name.clone(), user.stamp, id));
        if let Some(invite) = user.value.invite {
            self.invited.remove(&(invite, user.stamp, id));
        }
    }

    pub(super) fn add_enrolment(&mut self, id: EnrolmentId, enrolment: &First<Enrolment>) {
        let Enrolment { user, device } = enrolment.value;
        self.devices.insert((device, enrolment.stamp, id));
        self.users.entry(user).or_default().enrolments.insert((enrolment.stamp, id));
    }

    pub(super) fn remove_enrolment(&mut self, id: EnrolmentId, enrolment: &First<Enrolment>) {
        let Enrolment { user, device } = enrolment.value;
        self.devices.remove(&(device, enrolment.stamp, id));
        self.change_user(user, |u| u.enrolments.remove(&(enrolment.stamp, id)));
    }

    pub(super) fn add_revoked_device(&mut self, id: EnrolmentId, tomb: &First<Enrolment>) {
        let revoked = Revoked::Device(tomb.value.user, tomb.value.device);
        self.revocations.insert((tomb.stamp.at, id.0, revoked));
    }

    pub(super) fn remove_revoked_device(&mut self, id: EnrolmentId, tomb: &First<Enrolment>) {
        let revoked = Revoked::Device(tomb.value.user, tomb.value.device);
        self.revocations.remove(&(tomb.stamp.at, id.0, revoked));
    }

    pub(super) fn add_group(&mut self, id: GroupId, group: &First<Founded>) {
        let of = self.groups.entry(id).or_default();
        of.founded = Some((group.value.name.clone(), group.stamp));
        if !of.members.is_empty() {
            self.group_names.insert((group.value.name.clone(), group.stamp, id));
        }
    }

    pub(super) fn remove_group(&mut self, id: GroupId, group: &First<Founded>) {
        self.group_names.remove(&(group.value.name.clone(), group.stamp, id));
        self.change_group(id, |g| g.founded.take().is_some());
    }

    pub(super) fn add_membership(&mut self, id: MembershipId, membership: &First<Place>) {
        let Place { group, user } = membership.value;
        let of = self.groups.entry(group).or_default();
        if of.members.is_empty() {
            if let Some((name, stamp)) = &of.founded {
                self.group_names.insert((name.clone(), *stamp, group));
            }
            for (asker, _, request) in &of.requests {
                self.users.entry(*asker).or_default().requests.insert(*request);
            }
        }
        of.members.insert((user, membership.stamp, id));
        self.users.entry(user).or_default().groups.insert((group, id));
    }

    pub(super) fn remove_membership(&mut self, id: MembershipId, membership: &First<Place>) {
        let Place { group, user } = membership.value;
        self.change_group(group, |g| g.members.remove(&(user, membership.stamp, id)));
        self.change_user(user, |u| u.groups.remove(&(group, id)));
        // Nobody is left: the name is free, and requests wait for nobody.
        let archived = self.groups.get(&group).filter(|of| of.members.is_empty());
        if let Some((name, stamp)) = archived.and_then(|of| of.founded.clone()) {
            self.group_names.remove(&(name, stamp, group));
        }
        let unanswerable: Vec<_> =
            archived.into_iter().flat_map(|of| &of.requests).cloned().collect();
        for (asker, _, request) in unanswerable {
            self.change_user(asker, |u| u.requests.remove(&request));
        }
    }

    pub(super) fn add_ended(&mut self, id: MembershipId, tomb: &First<GroupId>) {
        self.revocations.insert((tomb.stamp.at, id.0, Revoked::Membership(tomb.value, id)));
    }

    pub(super) fn remove_ended(&mut self, id: MembershipId, tomb: &First<GroupId>) {
        self.revocations.remove(&(tomb.stamp.at, id.0, Revoked::Membership(tomb.value, id)));
    }

    pub(super) fn add_request(&mut self, id: JoinRequestId, request: &First<Place>) {
        let Place { group, user } = request.value;
        let of = self.groups.entry(group).or_default();
        of.requests.insert((user, request.stamp, id));
        if !of.members.is_empty() {
            self.users.entry(user).or_default().requests.insert(id);
        }
    }

    pub(super) fn remove_request(&mut self, id: JoinRequestId, request: &First<Place>) {
        let Place { group, user } = request.value;
        self.change_group(group, |g| g.requests.remove(&(user, request.stamp, id)));
        self.change_user(user, |u| u.requests.remove(&id));
    }

    pub(super) fn add_answer(&mut self, id: JoinRequestId, answer: &First<Answer>) {
        let Answer { place: Place { group, user }, accepted } = answer.value;
        if !accepted {
            let rejected = &mut self.groups.entry(group).or_default().rejected;
            rejected.insert((user, answer.stamp.at, id));
        }
    }

    pub(super) fn remove_answer(&mut self, id: JoinRequestId, answer: &First<Answer>) {
        let Place { group, user } = answer.value.place;
        self.change_group(group, |g| g.rejected.remove(&(user, answer.stamp.at, id)));
    }

    /// Enters a share, whose head becomes the one kept for its content.
    pub(super) fn add_share(&mut self, id: ShareKey, share: &mut Share) {
        let content = share.head.content_id();
        let (head, count) = self.heads.entry(content).or_insert((share.head.clone(), 0));
        *count += 1;
        share.head = head.clone();
        let group = self.groups.entry(share.group).or_default();
        group.files.insert((share.name.clone(), content, id));
        group.file_count += usize::from(!group.lists(content));
        group.contents.insert((content, id));
        self.membership_shares.insert((share.membership, id.0));
        self.users.entry(share.user).or_default().share_count += 1;
    }

    pub(super) fn remove_share(&mut self, id: ShareKey, share: &Share) {
        let content = share.head.content_id();
        if let Some((_, count)) = self.heads.get_mut(&content) {
            *count -= 1;
            if *count == 0 {
                self.heads.remove(&content);
            }
        }
        self.change_group(share.group, |g| {
            g.files.remove(&(share.name.clone(), content, id));
            let was = g.contents.remove(&(content, id));
            g.file_count -= usize::from(was && !g.lists(content));
            was
        });
        self.membership_shares.remove(&(share.membership, id.0));
        self.change_user(share.user, |u| {
            u.share_count -= 1;
            true
        });
    }

    /// Changes what belongs to a group; nothing is kept of one to which nothing belongs.
    fn change_group(&mut self, id: GroupId, change: impl FnOnce(&mut GroupIndex) -> bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        change(group);
        if *group == GroupIndex::default() {
            self.groups.remove(&id);
        }
    }

    fn change_user(&mut self, id: UserId, change: impl FnOnce(&mut UserIndex) -> bool) {
        let Some(user) = self.users.get_mut(&id) else { return };
        change(user);
        if *user == UserIndex::default() {
            self.users.remove(&id);
        }
    }
}
