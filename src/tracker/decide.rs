//! Who may do what: turns a command into a change, or refuses it. Judged once, here.

use std::sync::Arc;

use super::command::{Actor, Command, Outcome};
use super::facts::Share;
use super::lattice::{First, Stamp};
use super::op::{Change, Unenrolled};
use super::pages::Pages;
use super::refusal::Refusal;
use super::state::{Member, PUBLIC, Registration, State};
use super::view;
use crate::clock::UnixMillis;
use crate::id::{
    EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, RequestId, ShareId, UserId,
};
use crate::limits;
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, Selector, UserName};

/// A command that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It changes this.
    Change(Change),
    /// There is nothing to change.
    Nothing(Outcome),
}

/// Judges `command`, which was not granted before.
///
/// # Errors
/// [`Refusal`] names the rule that forbids it.
pub fn decide(
    state: &State,
    actor: &Actor,
    request: RequestId,
    command: &Command,
    now: UnixMillis,
    pages: &Pages,
) -> Result<Decision, Refusal> {
    let created = request.created(actor.device());
    let case = Case { state, actor, created, now };
    let change = match command {
        Command::CreateUser { user, password, invite } => {
            case.create_user(user, password, *invite)?
        }
        Command::EnrolDevice { user, verified } => return case.enrol(*user, *verified),
        Command::ChangePassword { password, verified } => {
            let user = case.user()?;
            case.verified(user, *verified)?;
            let mut unenrolled = case.devices(user);
            unenrolled.retain(|gone| gone.device != actor.device());
            Change::PasswordChanged { user, password: password.clone(), unenrolled }
        }
        Command::RemoveDevice { device } => {
            let user = case.user()?;
            let mut unenrolled = case.devices(user);
            unenrolled.retain(|gone| gone.device == *device);
            if unenrolled.is_empty() {
                return Err(Refusal::NoSuchDevice(device.short()));
            }
            Change::DeviceRemoved { unenrolled }
        }
        Command::CreateGroup { group, hidden } => case.create_group(group, *hidden)?,
        Command::SetGroup { group, offline_grace } => {
            let (group, _) = case.owned(group)?;
            if state.offline_grace(group) == *offline_grace {
                return Ok(Decision::Nothing(Outcome::Done));
            }
            Change::GroupSet { group, offline_grace: *offline_grace }
        }
        Command::JoinGroup { group } => case.join(group)?,
        Command::LeaveGroup { group } => {
            let user = case.user()?;
            let id = view::group_of_member(state, group, user)?;
            not_public(id, group)?;
            Change::MembershipEnded { group: id, memberships: case.places(id, user), kicked: false }
        }
        Command::AcceptRequest { group, user } => {
            let (id, user, request) = case.pending(group, user)?;
            limit(state.member_count(id), limits::MAX_MEMBERS_PER_GROUP, "members")?;
            case.limit_groups(user)?;
            let membership = MembershipId(created);
            Change::JoinAccepted { request, group: id, user, membership }
        }
        Command::RejectRequest { group, user } => {
            let (group, user, request) = case.pending(group, user)?;
            Change::JoinRejected { request, group, user }
        }
        Command::Kick { group, user } => {
            let (id, _, member) = case.other_member(group, user)?;
            let memberships = case.places(id, member.user);
            Change::MembershipEnded { group: id, memberships, kicked: true }
        }
        Command::Nominate { group, user } => {
            let (id, owner, nominee) = match user {
                Some(user) => {
                    let (id, owner, member) = case.other_member(group, user)?;
                    (id, owner, Some(member.membership))
                }
                None => case.owned(group).map(|(id, owner)| (id, owner, None))?,
            };
            Change::NomineeSet { group: id, owner: owner.membership, nominee }
        }
        Command::TransferGroup { group, user } => {
            let (group, _, member) = case.other_member(group, user)?;
            Change::OwnerAssigned { group, owner: member.membership }
        }
        Command::Share { group, name, head } => return case.share(group, name, head, pages),
        Command::StopShare { group, file } => {
            let user = case.user()?;
            let id = view::group_of_member(state, group, user)?;
            let none = |file, group| Refusal::NotShared { file, group };
            let (content, shares) =
                case.selected(id, group, file, |share| share.user == user, none)?;
            Change::SharesWithdrawn { group: id, content, shares, by_owner: false }
        }
        Command::Unlist { group, file } => {
            let (id, _) = case.owned(group)?;
            let none = |file, group| Refusal::NoSuchFile { file, group };
            let (content, shares) = case.selected(id, group, file, |_| true, none)?;
            Change::SharesWithdrawn { group: id, content, shares, by_owner: true }
        }
        Command::MakeInvite { invite, expires } => {
            case.operator()?;
            Change::InviteMade { invite: *invite, expires: *expires }
        }
        Command::DisableUser { user } => {
            case.operator()?;
            let user = case.user_named(user)?;
            // Said of a disabled account too: what an invitation spent twice disabled so far is
            // the operator's word from now on.
            Change::UserDisabled {
                user,
                memberships: case.all_places(user),
                unenrolled: case.devices(user),
            }
        }
        Command::EnableUser { user } => {
            case.operator()?;
            let user = case.user_named(user)?;
            if state.is_enabled(user) {
                return Ok(Decision::Nothing(Outcome::Done));
            }
            Change::UserEnabled { user }
        }
        Command::ResetPassword { user, password } => {
            case.operator()?;
            let user = case.user_named(user)?;
            let unenrolled = case.devices(user);
            Change::PasswordChanged { user, password: password.clone(), unenrolled }
        }
        Command::ArchiveGroup { group } => {
            case.operator()?;
            let id = view::group(state, group)?;
            not_public(id, group)?;
            let members = state.group_index(id).into_iter().flat_map(|group| &group.members);
            let memberships = members.map(|(_, _, membership)| *membership).collect();
            Change::GroupArchived { group: id, memberships }
        }
    };
    Ok(Decision::Change(change))
}

/// One command before the judge.
struct Case<'a> {
    state: &'a State,
    actor: &'a Actor,
    /// The id of what it creates.
    created: [u8; 16],
    now: UnixMillis,
}

impl Case<'_> {
    /// The user behind the actor, whose device is still enrolled.
    fn user(&self) -> Result<UserId, Refusal> {
        match *self.actor {
            Actor::Client { device, user: Some(user) }
                if self.state.user_of(device) == Some(user) =>
            {
                Ok(user)
            }
            _ => Err(Refusal::NotLoggedIn),
        }
    }

    fn operator(&self) -> Result<(), Refusal> {
        match self.actor {
            Actor::Operator(_) => Ok(()),
            Actor::Client { .. } => Err(Refusal::NotLoggedIn),
        }
    }

    fn user_named(&self, name: &UserName) -> Result<UserId, Refusal> {
        self.state.user_named(name).ok_or_else(|| Refusal::NoSuchUser(name.clone()))
    }

    fn create_user(
        &self,
        name: &UserName,
        password: &str,
        invite: Option<InviteId>,
    ) -> Result<Change, Refusal> {
        let state = self.state;
        let (user, password) = (UserId(self.created), password.to_owned());
        if name.parts().1.is_some() {
            return Err(Refusal::ReservedName);
        }
        // The second can only be an old request, repeated after it was forgotten.
        if state.user_named(name).is_some() || state.facts().users.contains_key(&user) {
            return Err(Refusal::UserExists(name.clone()));
        }
        match (state.rules.registration, invite) {
            (Registration::Closed, _) => return Err(Refusal::RegistrationClosed),
            (Registration::Invite, None) => return Err(Refusal::InviteNeeded),
            _ => {}
        }
        if let Some(invite) = invite {
            let known = state.facts().invites.get(&invite);
            let valid = known.is_some_and(|invite| self.now < invite.value);
            if !valid || state.invited(invite).is_some() {
                return Err(Refusal::BadInvite);
            }
        }
        limit(state.facts().users.len(), limits::MAX_USERS, "accounts")?;
        Ok(Change::UserCreated { user, name: name.clone(), password, invite })
    }

    /// Whether `verified` is still the user's password.
    fn verified(&self, user: UserId, verified: Stamp) -> Result<(), Refusal> {
        let password = self.state.facts().passwords.get(&user);
        if password.is_some_and(|password| password.last().stamp == verified) {
            return Ok(());
        }
        Err(Refusal::WrongCredentials)
    }

    fn enrol(&self, user: UserId, verified: Stamp) -> Result<Decision, Refusal> {
        let state = self.state;
        self.verified(user, verified)?;
        if !state.is_enabled(user) {
            let name = state.user_name(user).ok_or(Refusal::WrongCredentials)?;
            return Err(Refusal::Disabled(name));
        }
        let device = self.actor.device();
        if state.user_of(device) == Some(user) {
            return Ok(Decision::Nothing(Outcome::Done));
        }
        // A device acts for one user at a time.
        let mut unenrolled: Vec<_> = state
            .enrolments_of(device)
            .filter_map(|enrolment| self.unenrolled(enrolment))
            .collect();
        // The oldest enrolment makes room: a login must not fail for the sake of old ones.
        let mine = self.devices(user);
        if mine.len() >= limits::MAX_DEVICES_PER_USER {
            unenrolled.extend(&mine[..=mine.len() - limits::MAX_DEVICES_PER_USER]);
        }
        let enrolment = EnrolmentId(self.created);
        Ok(Decision::Change(Change::DeviceEnrolled { enrolment, user, device, unenrolled }))
    }

    /// A user's devices, the longest enrolled first.
    fn devices(&self, user: UserId) -> Vec<Unenrolled> {
        let all = self.state.user_index(user).into_iter().flat_map(|user| &user.enrolments);
        all.filter_map(|(_, enrolment)| self.unenrolled(*enrolment)).collect()
    }

    fn unenrolled(&self, enrolment: EnrolmentId) -> Option<Unenrolled> {
        let known = self.state.facts().enrolments.get(&enrolment)?.value;
        Some(Unenrolled { enrolment, user: known.user, device: known.device })
    }

    fn create_group(&self, name: &GroupName, hidden: bool) -> Result<Change, Refusal> {
        let user = self.user()?;
        let group = GroupId(self.created);
        if name.parts().1.is_some() {
            return Err(Refusal::ReservedName);
        }
        let taken = name.as_str() == super::state::PUBLIC_NAME
            || self.state.group_named(name).is_some()
            || self.state.facts().groups.contains_key(&group);
        if taken {
            return Err(Refusal::GroupExists(name.clone()));
        }
        limit(self.state.group_count(), limits::MAX_GROUPS, "groups")?;
        self.limit_groups(user)?;
        Ok(Change::GroupCreated { group, name: name.clone(), hidden, user })
    }

    fn join(&self, group: &GroupName) -> Result<Change, Refusal> {
        let user = self.user()?;
        let id = view::group(self.state, group)?;
        if self.state.member(id, user).is_some() {
            return Err(Refusal::AlreadyAMember(group.clone()));
        }
        if self.state.join_request(id, user).is_some() {
            return Err(Refusal::AlreadyRequested(group.clone()));
        }
        if let Some(at) = self.state.rejected(id, user) {
            let after = at.plus(limits::REJECTED_WAIT);
            if self.now < after {
                return Err(Refusal::RejectedLately { group: group.clone(), after });
            }
        }
        let waiting = self.state.group_index(id).map_or(0, |group| group.requests.len());
        limit(waiting, limits::MAX_REQUESTS_PER_GROUP, "requests to join one group")?;
        let mine = self.state.user_index(user).map_or(0, |user| user.requests.len());
        limit(mine, limits::MAX_REQUESTS_PER_USER, "open requests of one user")?;
        self.limit_groups(user)?;
        Ok(Change::JoinRequested { request: JoinRequestId(self.created), group: id, user })
    }

    /// A group the actor owns, and the owner's membership.
    fn owned(&self, group: &GroupName) -> Result<(GroupId, Member), Refusal> {
        let user = self.user()?;
        let id = view::group_of_owner(self.state, group, user)?;
        let member = self.state.member(id, user).ok_or(Refusal::NotLoggedIn)?;
        Ok((id, member))
    }

    /// Another member of a group the actor owns, after the owner.
    fn other_member(
        &self,
        group: &GroupName,
        name: &UserName,
    ) -> Result<(GroupId, Member, Member), Refusal> {
        let (id, owner) = self.owned(group)?;
        let nobody = || Refusal::NoSuchMember { user: name.clone(), group: group.clone() };
        let user = self.state.user_named(name).ok_or_else(nobody)?;
        if user == owner.user {
            return Err(Refusal::Yourself(name.clone()));
        }
        let member = self.state.member(id, user).ok_or_else(nobody)?;
        Ok((id, owner, member))
    }

    /// The request of `user` that the actor, as owner, may answer.
    fn pending(
        &self,
        group: &GroupName,
        name: &UserName,
    ) -> Result<(GroupId, UserId, JoinRequestId), Refusal> {
        let (id, _) = self.owned(group)?;
        let none = || Refusal::NoSuchRequest { user: name.clone(), group: group.clone() };
        let user = self.state.user_named(name).ok_or_else(none)?;
        if !self.state.is_enabled(user) {
            return Err(none());
        }
        let (request, _) = self.state.join_request(id, user).ok_or_else(none)?;
        Ok((id, user, request))
    }

    /// All memberships of a user in a group.
    fn places(&self, group: GroupId, user: UserId) -> Vec<MembershipId> {
        self.state.places(group, user).map(|(.., membership)| *membership).collect()
    }

    /// All memberships of a user, also that in `public`.
    fn all_places(&self, user: UserId) -> Vec<(MembershipId, GroupId)> {
        let groups = self.state.user_index(user).into_iter().flat_map(|user| &user.groups);
        let mut all: Vec<_> = groups.map(|(group, membership)| (*membership, *group)).collect();
        all.push((self.state.public_membership(user), PUBLIC));
        all
    }

    fn share(
        &self,
        group: &GroupName,
        name: &FileName,
        head: &Arc<ManifestHead>,
        pages: &Pages,
    ) -> Result<Decision, Refusal> {
        let (state, user) = (self.state, self.user()?);
        let id = view::group_of_member(state, group, user)?;
        let mut shares = state.shares_of(id, head.content_id());
        if shares.any(|(_, share)| share.value.user == user && share.value.name == *name) {
            return Ok(Decision::Nothing(Outcome::Shared { group: id }));
        }
        let count = state.user_index(user).map_or(0, |user| user.share_count);
        limit(count, limits::MAX_SHARES_PER_USER, "shares of one user")?;
        limit(state.facts().shares.len(), limits::MAX_SHARES, "shares")?;
        let missing: Vec<u32> = (0u32..)
            .zip(head.page_hashes())
            .filter(|(_, hash)| !pages.contains(hash))
            .map(|(page, _)| page)
            .collect();
        if !missing.is_empty() {
            return Ok(Decision::Nothing(Outcome::PagesMissing { pages: missing }));
        }
        pages.check_quota(user, head)?;
        let membership = state.member(id, user).ok_or(Refusal::NotLoggedIn)?.membership;
        Ok(Decision::Change(Change::ShareAdded {
            share: ShareId(self.created),
            group: id,
            membership,
            user,
            name: name.clone(),
            head: head.encode(),
        }))
    }

    /// The shares among `whose` that `file` means; they must all be of one content.
    fn selected(
        &self,
        id: GroupId,
        group: &GroupName,
        file: &Selector,
        whose: impl Fn(&Share) -> bool,
        none: impl Fn(String, GroupName) -> Refusal,
    ) -> Result<(ContentId, Vec<ShareId>), Refusal> {
        let selected = view::selected(self.state, id, file);
        let mine: Vec<(ContentId, ShareId)> = selected
            .filter(|(_, _, First { value, .. })| whose(value))
            .map(|(content, share, _)| (content, share))
            .collect();
        let Some((content, _)) = mine.first().copied() else {
            return Err(none(file.to_string(), group.clone()));
        };
        if mine.iter().any(|(other, _)| *other != content) {
            return Err(view::ambiguous(file, group, mine.into_iter().map(|(c, _)| c)));
        }
        Ok((content, mine.into_iter().map(|(_, share)| share).collect()))
    }

    fn limit_groups(&self, user: UserId) -> Result<(), Refusal> {
        let count = self.state.user_index(user).map_or(0, |user| user.groups.len());
        limit(count, limits::MAX_GROUPS_PER_USER, "groups of one user")
    }
}

fn not_public(id: GroupId, name: &GroupName) -> Result<(), Refusal> {
    if id == PUBLIC { Err(Refusal::EverybodysGroup(name.clone())) } else { Ok(()) }
}

fn limit(count: usize, max: usize, what: &str) -> Result<(), Refusal> {
    if count < max {
        return Ok(());
    }
    Err(Refusal::Limit { what: what.to_owned(), max: max as u64 })
}

#[cfg(test)]
pub(crate) mod testing {
    //! A tracker's judgement and state without disk or wire, and a clock.

    use super::*;
    use crate::hash::{Blake3Hash, blake3};
    use crate::id::OriginId;
    use crate::peer_id::PeerId;
    use crate::tracker::op::Op;

    /// Judges and folds.
    #[derive(Clone, Default)]
    pub(crate) struct Court {
        pub(crate) state: State,
        pub(crate) pages: Pages,
        pub(crate) now: u64,
        pub(crate) log: Vec<Op>,
    }

    pub(crate) fn user(name: &str) -> UserName {
        name.parse().expect("name")
    }

    pub(crate) fn lab() -> GroupName {
        "lab".parse().expect("name")
    }

    pub(crate) fn device(name: &str) -> PeerId {
        PeerId(blake3(name.as_bytes()).0)
    }

    impl Court {
        pub(crate) fn with_users<const N: usize>(names: [&str; N]) -> Self {
            let mut court = Self::default();
            names.iter().for_each(|name| court.create(name));
            court
        }

        /// Makes an account and enrols the device of the same name.
        pub(crate) fn create(&mut self, name: &str) {
            let (user, password) = (user(name), "phc".to_owned());
            let command = Command::CreateUser { user, password, invite: None };
            self.propose(name, command).expect("created");
            self.enrol(name, name).expect("enrolled");
        }

        pub(crate) fn enrol(&mut self, name: &str, device: &str) -> Result<Outcome, Refusal> {
            let user = self.id(name);
            let verified = self.state.facts().passwords[&user].last().stamp;
            self.propose(device, Command::EnrolDevice { user, verified })
        }

        pub(crate) fn id(&self, name: &str) -> UserId {
            self.state.user_named(&user(name)).expect("exists")
        }

        pub(crate) fn judge(
            &mut self,
            actor: Actor,
            request: RequestId,
            command: &Command,
        ) -> Result<Outcome, Refusal> {
            self.now += 1000;
            let now = UnixMillis(self.now);
            let change = match decide(&self.state, &actor, request, command, now, &self.pages)? {
                Decision::Nothing(outcome) => return Ok(outcome),
                Decision::Change(change) => change,
            };
            let (kind, body) = change.encode();
            let previous = self.log.last().map_or(Blake3Hash([0; 32]), |op| blake3(&op.encode()));
            let op = Op {
                origin: OriginId([1; 16]),
                seq: self.log.len() as u64 + 1,
                previous,
                clock: now,
                actor: actor.device(),
                request,
                kind,
                body,
            };
            self.pages.follow(&self.state.apply(&op));
            self.log.push(op);
            Ok(Outcome::of(&change, actor.device(), &self.state))
        }

        pub(crate) fn as_request(
            &mut self,
            name: &str,
            request: u8,
            command: Command,
        ) -> Result<Outcome, Refusal> {
            let device = device(name);
            let actor = Actor::Client { device, user: self.state.user_of(device) };
            self.judge(actor, RequestId([request; 16]), &command)
        }

        pub(crate) fn propose(&mut self, name: &str, command: Command) -> Result<Outcome, Refusal> {
            let request = RequestId(crate::id::derived(&[&self.now.to_le_bytes()]));
            let device = device(name);
            let actor = Actor::Client { device, user: self.state.user_of(device) };
            self.judge(actor, request, &command)
        }

        pub(crate) fn operate(&mut self, command: Command) -> Result<Outcome, Refusal> {
            let request = RequestId(crate::id::derived(&[&self.now.to_le_bytes()]));
            self.judge(Actor::Operator(PeerId([0xee; 32])), request, &command)
        }

        pub(crate) fn join(&mut self, owner: &str, name: &str) {
            self.propose(name, Command::JoinGroup { group: lab() }).expect("asked");
            let accept = Command::AcceptRequest { group: lab(), user: user(name) };
            self.propose(owner, accept).expect("accepted");
        }

        /// Makes `names` members of `lab`, owned by the first.
        pub(crate) fn lab<const N: usize>(names: [&str; N]) -> Self {
            let mut court = Self::with_users(names);
            let create = Command::CreateGroup { group: lab(), hidden: false };
            court.propose(names[0], create).expect("created");
            names[1..].iter().for_each(|name| court.join(names[0], name));
            court
        }

        pub(crate) fn owner(&self) -> Option<UserName> {
            self.state.user_name(self.state.owner(self.state.group_named(&lab())?)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::manifest::testing::manifest_of;
    use std::time::Duration;

    fn leave() -> Command {
        Command::LeaveGroup { group: lab() }
    }

    fn join() -> Command {
        Command::JoinGroup { group: lab() }
    }

    fn accept(name: &str) -> Command {
        Command::AcceptRequest { group: lab(), user: user(name) }
    }

    #[test]
    fn ownership_passes_to_the_longest_standing_member() {
        let mut court = Court::lab(["alice", "bob", "carol"]);
        court.propose("alice", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("bob")));
        // She comes back as anybody would.
        court.propose("alice", join()).expect("asked");
        assert_eq!(court.propose("carol", accept("alice")), Err(Refusal::NotTheOwner(lab())));
        assert_eq!(court.propose("alice", accept("alice")), Err(Refusal::NotAMember(lab())));
        court.propose("bob", accept("alice")).expect("accepted");
        court.propose("bob", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("carol")));
        court.propose("carol", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("alice")));
        court.propose("alice", leave()).expect("left");
        assert_eq!(court.owner(), None);
        // Archived: nobody sees it, and its name is free.
        assert_eq!(court.propose("bob", join()), Err(Refusal::NoSuchGroup(lab())));
        let create = Command::CreateGroup { group: lab(), hidden: false };
        court.propose("bob", create).expect("created");
        assert_eq!(court.owner(), Some(user("bob")));
    }

    #[test]
    fn the_nominee_follows_and_a_transfer_is_at_once() {
        let mut court = Court::lab(["alice", "bob", "carol", "dave"]);
        let nominate = |name: &str| Command::Nominate { group: lab(), user: Some(user(name)) };
        assert_eq!(court.propose("bob", nominate("bob")), Err(Refusal::NotTheOwner(lab())));
        assert_eq!(
            court.propose("alice", nominate("alice")),
            Err(Refusal::Yourself(user("alice")))
        );
        let nobody = Refusal::NoSuchMember { user: user("eve"), group: lab() };
        assert_eq!(court.propose("alice", nominate("eve")), Err(nobody));
        court.propose("alice", nominate("carol")).expect("nominated");
        assert_eq!(court.owner(), Some(user("alice")), "not yet");
        court.propose("alice", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("carol")));
        // An owner by succession nominates too, and stays the owner.
        court.propose("carol", nominate("dave")).expect("nominated");
        assert_eq!(court.owner(), Some(user("carol")));
        let transfer = Command::TransferGroup { group: lab(), user: user("bob") };
        court.propose("carol", transfer).expect("transferred");
        assert_eq!(court.owner(), Some(user("bob")));
        let kick = |name: &str| Command::Kick { group: lab(), user: user(name) };
        assert_eq!(court.propose("carol", kick("bob")), Err(Refusal::NotTheOwner(lab())));
        assert_eq!(court.propose("bob", kick("bob")), Err(Refusal::Yourself(user("bob"))));
        court.propose("bob", kick("dave")).expect("kicked");
        court.propose("bob", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("carol")), "the nominee was gone");
        court.state.check_invariants();
    }

    #[test]
    fn a_rejected_user_waits_a_day() {
        let mut court = Court::with_users(["alice", "bob"]);
        let create = Command::CreateGroup { group: lab(), hidden: false };
        court.propose("alice", create).expect("created");
        court.propose("bob", join()).expect("asked");
        assert_eq!(court.propose("bob", join()), Err(Refusal::AlreadyRequested(lab())));
        let reject = Command::RejectRequest { group: lab(), user: user("bob") };
        court.propose("alice", reject).expect("rejected");
        assert!(matches!(court.propose("bob", join()), Err(Refusal::RejectedLately { .. })));
        court.now += Duration::from_secs(24 * 3600).as_millis() as u64;
        court.propose("bob", join()).expect("asked again");
    }

    #[test]
    fn requests_to_groups_that_ended_do_not_count() {
        let mut court = Court::with_users(["alice", "bob"]);
        for number in 0..=limits::MAX_REQUESTS_PER_USER {
            let group: GroupName = format!("g{number}").parse().expect("name");
            let create = Command::CreateGroup { group: group.clone(), hidden: false };
            court.propose("alice", create).expect("created");
            court.propose("bob", Command::JoinGroup { group: group.clone() }).expect("asked");
            court.propose("alice", Command::LeaveGroup { group }).expect("left");
        }
        // Those that somebody may still answer do.
        for number in 0..=limits::MAX_REQUESTS_PER_USER {
            let group: GroupName = format!("h{number}").parse().expect("name");
            let create = Command::CreateGroup { group: group.clone(), hidden: false };
            court.propose("alice", create).expect("created");
            let asked = court.propose("bob", Command::JoinGroup { group });
            assert_eq!(asked.is_ok(), number < limits::MAX_REQUESTS_PER_USER, "{asked:?}");
        }
        let index = crate::tracker::index::Index::of(&mut court.state.facts().clone());
        let bob = court.id("bob");
        assert_eq!(index.users.get(&bob), court.state.user_index(bob));
    }

    #[test]
    fn an_old_request_repeated_takes_no_group_over() {
        let mut court = Court::with_users(["eve", "bob"]);
        let create =
            |name: &str| Command::CreateGroup { group: name.parse().expect("name"), hidden: false };
        court.as_request("eve", 77, create("lab")).expect("created");
        court.join("eve", "bob");
        court.propose("eve", leave()).expect("left");
        assert!(court.as_request("eve", 77, create("other")).is_err());
        assert_eq!(court.owner(), Some(user("bob")));
    }

    #[test]
    fn nobody_acts_for_another_or_after_their_device_was_removed() {
        let mut court = Court::lab(["alice", "bob"]);
        // A connection that says it is alice, from bob's device.
        let forged = Actor::Client { device: device("bob"), user: Some(court.id("alice")) };
        let kick = Command::Kick { group: lab(), user: user("bob") };
        let answer = court.judge(forged, RequestId([9; 16]), &kick);
        assert_eq!(answer, Err(Refusal::NotLoggedIn));
        let operate = Command::DisableUser { user: user("alice") };
        assert_eq!(court.propose("bob", operate), Err(Refusal::NotLoggedIn));
        court.enrol("alice", "alice's other").expect("enrolled");
        let remove = Command::RemoveDevice { device: device("alice's other") };
        let not_bobs = Refusal::NoSuchDevice(device("alice's other").short());
        assert_eq!(court.propose("bob", remove.clone()), Err(not_bobs));
        court.propose("alice", remove).expect("removed");
        assert_eq!(court.propose("alice's other", kick), Err(Refusal::NotLoggedIn));
    }

    #[test]
    fn a_new_password_ends_every_other_login() {
        let mut court = Court::with_users(["alice"]);
        court.enrol("alice", "laptop").expect("enrolled");
        let alice = court.id("alice");
        let verified = court.state.facts().passwords[&alice].last().stamp;
        let change = Command::ChangePassword { password: "new".into(), verified };
        court.propose("laptop", change.clone()).expect("changed");
        assert_eq!(court.state.user_of(device("alice")), None);
        assert_eq!(court.state.user_of(device("laptop")), Some(alice));
        // What was verified before the change counts no more.
        assert_eq!(court.propose("laptop", change), Err(Refusal::WrongCredentials));
        let enrol = Command::EnrolDevice { user: alice, verified };
        assert_eq!(court.propose("alice", enrol), Err(Refusal::WrongCredentials));
    }

    #[test]
    fn a_disabled_user_is_gone_and_comes_back_without_memberships() {
        let mut court = Court::lab(["alice", "bob"]);
        let bobs_public = court.state.public_membership(court.id("bob"));
        court.operate(Command::DisableUser { user: user("alice") }).expect("disabled");
        assert_eq!(court.owner(), Some(user("bob")));
        assert_eq!(court.propose("alice", join()), Err(Refusal::NotLoggedIn));
        assert_eq!(court.enrol("alice", "alice"), Err(Refusal::Disabled(user("alice"))));
        let before = court.state.public_membership(court.id("alice"));
        court.operate(Command::EnableUser { user: user("alice") }).expect("enabled");
        court.enrol("alice", "alice").expect("enrolled");
        assert_ne!(court.state.public_membership(court.id("alice")), before);
        assert_eq!(court.state.public_membership(court.id("bob")), bobs_public);
        assert_eq!(court.state.members(court.state.group_named(&lab()).expect("it")).count(), 1);
        court.propose("alice", join()).expect("asked");
        court.state.check_invariants();
    }

    #[test]
    fn invitations_are_used_once_and_in_time() {
        let mut court = Court::with_users(["alice"]);
        court.state.rules.registration = Registration::Invite;
        let create = |name: &str, invite: Option<u8>| Command::CreateUser {
            user: user(name),
            password: "phc".into(),
            invite: invite.map(|i| InviteId([i; 16])),
        };
        assert_eq!(court.propose("bob", create("bob", None)), Err(Refusal::InviteNeeded));
        assert_eq!(court.propose("bob", create("bob", Some(1))), Err(Refusal::BadInvite));
        let make =
            |number, expires| Command::MakeInvite { invite: InviteId([number; 16]), expires };
        let later = UnixMillis(court.now + 10_000);
        assert_eq!(court.propose("alice", make(1, later)), Err(Refusal::NotLoggedIn));
        court.operate(make(1, later)).expect("made");
        court.operate(make(2, later)).expect("made");
        court.propose("bob", create("bob", Some(1))).expect("created");
        assert_eq!(court.propose("carol", create("carol", Some(1))), Err(Refusal::BadInvite));
        court.now = later.0;
        assert_eq!(court.propose("carol", create("carol", Some(2))), Err(Refusal::BadInvite));
        court.state.rules.registration = Registration::Closed;
        assert_eq!(court.propose("x", create("x", None)), Err(Refusal::RegistrationClosed));
    }

    #[test]
    fn everybody_is_in_public_and_nobody_owns_it() {
        let public: GroupName = "public".parse().expect("name");
        let mut court = Court::with_users(["alice", "bob"]);
        let group = || public.clone();
        let everybodys = Err(Refusal::EverybodysGroup(group()));
        let create = Command::CreateGroup { group: group(), hidden: false };
        assert_eq!(court.propose("alice", create.clone()), Err(Refusal::GroupExists(group())));
        assert_eq!(court.propose("alice", Command::LeaveGroup { group: group() }), everybodys);
        let kick = Command::Kick { group: group(), user: user("bob") };
        assert_eq!(court.propose("alice", kick), everybodys);
        assert_eq!(court.operate(Command::ArchiveGroup { group: group() }), everybodys);
        let asked = court.propose("alice", Command::JoinGroup { group: group() });
        assert_eq!(asked, Err(Refusal::AlreadyAMember(group())));
        court.state.rules.public = false;
        let asked = court.propose("alice", Command::JoinGroup { group: group() });
        assert_eq!(asked, Err(Refusal::NoSuchGroup(group())));
        assert_eq!(court.propose("alice", create), Err(Refusal::GroupExists(group())));
    }

    #[test]
    fn a_share_needs_its_pages_and_ends_with_the_membership() {
        let mut court = Court::lab(["alice", "bob"]);
        let manifest = manifest_of(b"hello");
        let share = || Command::Share {
            group: lab(),
            name: "f".parse().expect("name"),
            head: Arc::new(manifest.head().clone()),
        };
        let missing = Outcome::PagesMissing { pages: vec![0] };
        assert_eq!(court.propose("bob", share()), Ok(missing));
        let (hash, bob) = (manifest.head().page_hashes()[0], court.id("bob"));
        court.pages.put(bob, hash, manifest.page(0).len() as u64);
        assert!(matches!(court.propose("bob", share()), Ok(Outcome::Shared { .. })));
        assert!(matches!(court.propose("alice", share()), Ok(Outcome::Shared { .. })));
        assert_eq!(court.state.user_index(bob).map(|u| u.share_count), Some(1));
        let stop = Command::StopShare { group: lab(), file: "bob/f".parse().expect("selector") };
        assert!(matches!(court.propose("alice", stop), Err(Refusal::NotShared { .. })));
        let unlist = Command::Unlist { group: lab(), file: "f".parse().expect("selector") };
        assert_eq!(court.propose("bob", unlist.clone()), Err(Refusal::NotTheOwner(lab())));
        court.propose("bob", leave()).expect("left");
        assert_eq!(court.state.user_index(bob).map_or(0, |u| u.share_count), 0);
        let group = court.state.group_named(&lab()).expect("there");
        let left = court.state.shares_of(group, manifest.content_id()).count();
        assert_eq!(left, 1, "alice's stays");
        court.propose("alice", unlist).expect("unlisted");
        assert_eq!(court.state.heads().count(), 0);
        court.state.check_invariants();
    }

    #[test]
    fn the_oldest_device_makes_room() {
        let mut court = Court::with_users(["alice"]);
        for number in 0..limits::MAX_DEVICES_PER_USER {
            court.enrol("alice", &format!("device {number}")).expect("enrolled");
        }
        let alice = court.id("alice");
        let devices = court.state.user_index(alice).map(|user| user.enrolments.len());
        assert_eq!(devices, Some(limits::MAX_DEVICES_PER_USER));
        assert_eq!(court.state.user_of(device("alice")), None);
        assert_eq!(court.state.user_of(device("device 0")), Some(alice));
    }
}
