//! What follows from the facts: names, memberships, owners, listings. Never kept, always worked out.

use std::ops::Bound;

use super::facts::{Share, ShareKey};
use super::index::{GroupIndex, Index, LEAST_SHARE, Revoked, UserIndex};
use super::lattice::{First, Stamp};
use super::state::{Member, PUBLIC, PUBLIC_NAME, State};
use crate::clock::UnixMillis;
use crate::id::{EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, ShareId, UserId};
use crate::limits::OFFLINE_GRACE;
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;

impl State {
    /// The account of this name. Of several that chose it, the earliest has it; the others have it
    /// with a mark.
    pub fn user_named(&self, name: &UserName) -> Option<UserId> {
        let (chosen, mark) = name.parts();
        let mut claims = self.users_that_chose(&chosen);
        let first = claims.next()?;
        match mark {
            None => Some(first),
            Some(_) => claims.find(|id| chosen.marked(&id.0) == *name),
        }
    }

    /// Accounts that chose a name, the earliest first.
    pub fn users_that_chose(&self, name: &UserName) -> impl Iterator<Item = UserId> {
        let chosen = name.parts().0;
        let first = (chosen.clone(), Stamp::EARLIEST, UserId([0; 16]));
        let all = self.index.user_names.range(first..);
        all.take_while(move |(n, ..)| *n == chosen).map(|(.., id)| *id)
    }

    /// Groups with members that chose a name, the earliest first.
    pub fn groups_that_chose(&self, name: &GroupName) -> impl Iterator<Item = GroupId> {
        let chosen = name.parts().0;
        let first = (chosen.clone(), Stamp::EARLIEST, GroupId([0; 16]));
        let all = self.index.group_names.range(first..);
        all.take_while(move |(n, ..)| *n == chosen).map(|(.., id)| *id)
    }

    /// The name of an account.
    pub fn user_name(&self, user: UserId) -> Option<UserName> {
        let chosen = &self.facts.users.get(&user)?.value.name;
        let first = self.user_named(chosen)?;
        Some(if first == user { chosen.clone() } else { chosen.marked(&user.0) })
    }

    /// Whether the account exists and may be used. Of several accounts made with one invitation,
    /// the earliest may, unless the operator says otherwise.
    pub fn is_enabled(&self, user: UserId) -> bool {
        let Some(account) = self.facts.users.get(&user) else { return false };
        if let Some(said) = self.facts.disabled.get(&user) {
            return !said.value;
        }
        account.value.invite.is_none_or(|invite| self.invited(invite) == Some(user))
    }

    /// Who used an invitation first.
    pub fn invited(&self, invite: InviteId) -> Option<UserId> {
        let mut all = self.index.invited.range((invite, Stamp::EARLIEST, UserId([0; 16]))..);
        all.next().filter(|(of, ..)| *of == invite).map(|(.., user)| *user)
    }

    /// The user a device is enrolled for, if that account may be used.
    pub fn user_of(&self, device: PeerId) -> Option<UserId> {
        let enrolment = self.enrolments_of(device).next_back()?;
        let user = self.facts.enrolments.get(&enrolment)?.value.user;
        self.is_enabled(user).then_some(user)
    }

    /// The enrolments of a device, the latest last.
    pub fn enrolments_of(&self, device: PeerId) -> impl DoubleEndedIterator<Item = EnrolmentId> {
        let (first, last) = (EnrolmentId([0; 16]), EnrolmentId([0xff; 16]));
        let all = self
            .index
            .devices
            .range((device, Stamp::EARLIEST, first)..=(device, Stamp::LATEST, last));
        all.map(|(.., enrolment)| *enrolment)
    }

    /// What belongs to a user, if anything does.
    pub fn user_index(&self, user: UserId) -> Option<&UserIndex> {
        self.index.users.get(&user)
    }

    /// What belongs to a group, if anything does.
    pub fn group_index(&self, group: GroupId) -> Option<&GroupIndex> {
        self.index.groups.get(&group)
    }

    /// Groups with members or anything else that belongs to them, and `public` with shares.
    pub fn group_indexes(&self) -> impl Iterator<Item = (GroupId, &GroupIndex)> {
        self.index.groups.iter().map(|(id, group)| (*id, group))
    }

    /// Names of accounts from `from` on, with whose they are; those that have it first.
    pub fn user_names(&self, from: Option<&UserName>) -> impl Iterator<Item = (&UserName, UserId)> {
        let start = from.map(|name| (name.parts().0, Stamp::EARLIEST, UserId([0; 16])));
        let start = start.map_or(Bound::Unbounded, Bound::Included);
        let all = self.index.user_names.range((start, Bound::Unbounded));
        all.map(|(name, _, id)| (name, *id))
    }

    /// Group names from `from` on, with what has each.
    pub fn group_names(
        &self,
        from: Option<&GroupName>,
    ) -> impl Iterator<Item = (&GroupName, GroupId)> {
        let start = from.map(|name| (name.parts().0, Stamp::EARLIEST, GroupId([0; 16])));
        let start = start.map_or(Bound::Unbounded, Bound::Included);
        let all = self.index.group_names.range((start, Bound::Unbounded));
        all.map(|(name, _, id)| (name, *id))
    }

    /// The living group of this name: the earliest that chose it, or the one with the mark.
    pub fn group_named(&self, name: &GroupName) -> Option<GroupId> {
        if name.as_str() == PUBLIC_NAME {
            return self.rules.public.then_some(PUBLIC);
        }
        let (chosen, mark) = name.parts();
        let claims = self.groups_that_chose(&chosen);
        let mut living = claims.filter(|id| self.is_living(*id));
        let first = living.next()?;
        match mark {
            None => Some(first),
            Some(_) => living.find(|id| chosen.marked(&id.0) == *name),
        }
    }

    /// The name of a group.
    pub fn group_name(&self, group: GroupId) -> Option<GroupName> {
        if group == PUBLIC {
            return PUBLIC_NAME.parse().ok();
        }
        let chosen = &self.facts.groups.get(&group)?.value.name;
        let first = self.group_named(chosen);
        Some(match first == Some(group) || !self.is_living(group) {
            true => chosen.clone(),
            false => chosen.marked(&group.0),
        })
    }

    /// How many groups have members.
    pub fn group_count(&self) -> usize {
        self.index.group_names.len()
    }

    /// Whether a group has members; without any it is archived.
    pub fn is_living(&self, group: GroupId) -> bool {
        match group {
            PUBLIC => self.rules.public,
            _ => self.facts.groups.contains_key(&group) && self.members(group).next().is_some(),
        }
    }

    /// Whether only members see a group.
    pub fn is_hidden(&self, group: GroupId) -> bool {
        self.facts.groups.get(&group).is_some_and(|group| group.value.hidden)
    }

    /// The memberships of a group that count, in order of user. Not of `public`, whose members
    /// are all accounts.
    pub fn members(&self, group: GroupId) -> impl Iterator<Item = Member> + '_ {
        let mut last = None;
        let all = self.index.groups.get(&group).into_iter().flat_map(|group| &group.members);
        all.filter_map(move |(user, stamp, membership)| {
            // Accepted on both sides of a split: the first counts.
            if last.replace(*user) == Some(*user) || !self.is_enabled(*user) {
                return None;
            }
            Some(Member { user: *user, membership: *membership, since: *stamp })
        })
    }

    /// How many memberships a group has.
    pub fn member_count(&self, group: GroupId) -> usize {
        match group {
            PUBLIC => self.facts.users.len(),
            _ => self.index.groups.get(&group).map_or(0, |group| group.members.len()),
        }
    }

    /// A user's membership in a group.
    pub fn member(&self, group: GroupId, user: UserId) -> Option<Member> {
        if !self.is_enabled(user) {
            return None;
        }
        if group == PUBLIC {
            let account = self.facts.users.get(&user).filter(|_| self.rules.public)?;
            let membership = self.public_membership(user);
            return Some(Member { user, membership, since: account.stamp });
        }
        let (_, since, membership) = *self.places(group, user).next()?;
        Some(Member { user, membership, since })
    }

    /// All memberships of a user in a group, the one that counts first.
    pub fn places(
        &self,
        group: GroupId,
        user: UserId,
    ) -> impl Iterator<Item = &(UserId, Stamp, MembershipId)> {
        let group = self.index.groups.get(&group);
        let from = (user, Stamp::EARLIEST, MembershipId([0; 16]));
        let all = group.into_iter().flat_map(move |group| group.members.range(from..));
        all.take_while(move |(of, ..)| *of == user)
    }

    /// A user's membership in `public`: another one after the account was disabled.
    pub fn public_membership(&self, user: UserId) -> MembershipId {
        self.facts.public_membership(user)
    }

    /// The owner of a group: whom it was last given to, else the nominee, else the
    /// longest-standing member. Nobody owns `public`, and nobody a group without members.
    pub fn owner(&self, group: GroupId) -> Option<UserId> {
        let assigned = self.facts.owners.get(&group);
        let assigned = assigned.and_then(|words| self.user_in(group, words.last().value));
        let longest = || {
            let first = self.members(group).min_by_key(|m| (m.since, m.membership))?;
            Some(first.user)
        };
        assigned.or_else(|| self.nominee(group)).or_else(longest)
    }

    /// The owner's choice of who follows, if that one is a member.
    pub fn nominee(&self, group: GroupId) -> Option<UserId> {
        self.user_in(group, self.facts.nominees.get(&group)?.last().value?)
    }

    /// Whose a membership in a group is, if it counts.
    fn user_in(&self, group: GroupId, membership: MembershipId) -> Option<UserId> {
        let place = self.facts.memberships.get(&membership)?.value;
        (place.group == group && self.is_enabled(place.user)).then_some(place.user)
    }

    /// The open request of a user to join a group.
    pub fn join_request(
        &self,
        group: GroupId,
        user: UserId,
    ) -> Option<(JoinRequestId, UnixMillis)> {
        let requests = &self.index.groups.get(&group)?.requests;
        let mut mine = requests.range((user, Stamp::EARLIEST, JoinRequestId([0; 16]))..);
        let (_, stamp, id) = mine.next().filter(|(of, ..)| *of == user)?;
        Some((*id, stamp.at))
    }

    /// When a user was last turned away from a group.
    pub fn rejected(&self, group: GroupId, user: UserId) -> Option<UnixMillis> {
        let rejected = &self.index.groups.get(&group)?.rejected;
        let end = (user, UnixMillis(u64::MAX), JoinRequestId([0xff; 16]));
        let (of, at, _) = rejected.range(..=end).next_back()?;
        (*of == user).then_some(*at)
    }

    /// How long seeders cut off from all trackers go on with running transfers of a group.
    pub fn offline_grace(&self, group: GroupId) -> u32 {
        let default = OFFLINE_GRACE.as_secs() as u32;
        self.facts.graces.get(&group).map_or(default, |words| words.last().value)
    }

    /// The head of a content listed in a group.
    pub fn head(&self, group: GroupId, content: ContentId) -> Option<&ManifestHead> {
        self.shares_of(group, content).next()?;
        self.index.heads.get(&content).map(|(head, _)| &**head)
    }

    /// Who shares a content in a group.
    pub fn shares_of(
        &self,
        group: GroupId,
        content: ContentId,
    ) -> impl Iterator<Item = (ShareId, &First<Share>)> {
        let group = self.index.groups.get(&group);
        let from = (content, LEAST_SHARE);
        let all = group.into_iter().flat_map(move |group| group.contents.range(from..));
        let all = all.take_while(move |(of, _)| *of == content);
        all.filter_map(|(_, id)| self.share(*id))
    }

    /// A share of somebody whose account may be used, if the membership it rests on is there.
    pub fn share(&self, id: ShareKey) -> Option<(ShareId, &First<Share>)> {
        let share = self.facts.shares.get(&id)?;
        (self.is_enabled(share.value.user) && self.facts.is_founded(&id, &share.value))
            .then_some((id.0, share))
    }

    /// What was revoked at or after `since`, with the time of each.
    pub fn revoked_since(&self, since: UnixMillis) -> impl Iterator<Item = (UnixMillis, Revoked)> {
        let least = Revoked::Membership(GroupId([0; 16]), MembershipId([0; 16]));
        let all = self.index.revocations.range((since, [0; 16], least)..);
        all.map(|(at, _, revoked)| (*at, *revoked))
    }

    /// When a device was last removed, if that is remembered.
    pub fn revoked_at(&self, device: PeerId) -> Option<UnixMillis> {
        let removals = self.index.revocations.iter().rev();
        let mut of_device =
            removals.filter(|(.., what)| matches!(what, Revoked::Device(_, d) if *d == device));
        of_device.next().map(|(at, ..)| *at)
    }

    /// Every head in use.
    pub fn heads(&self) -> impl Iterator<Item = &ManifestHead> {
        self.index.heads.values().map(|(head, _)| &**head)
    }

    /// Asserts that the index is what follows from the facts.
    ///
    /// # Panics
    /// When it is not.
    pub fn check_invariants(&self) {
        let mut facts = self.facts.clone();
        assert_eq!(self.index, Index::of(&mut facts), "the index follows from the facts");
    }
}
