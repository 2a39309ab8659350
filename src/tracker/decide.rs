//! Who may do what: turns a command into ops, or refuses it. Judged once, here.

use std::sync::Arc;

use super::message::Refusal;
use super::op::Op;
use super::pages::Pages;
use super::state::{Group, State};
use super::view;
use crate::clock::UnixMillis;
use crate::id::{GroupId, JoinRequestId, MembershipId, RequestId, ShareId};
use crate::limits;
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
    },
    /// Enrol the actor's device for a user whose password was just verified.
    EnrolDevice {
        /// The user.
        user: UserName,
    },
    /// Forget the actor's device.
    RemoveDevice,
    /// Make a group.
    CreateGroup {
        /// Its name.
        group: GroupName,
        /// Whether only members see it.
        hidden: bool,
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
}

/// Who wants it.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The device, proven by TLS.
    pub device: PeerId,
    /// The user logged in on its connection.
    pub user: Option<UserName>,
}

/// What became of a granted command.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Judges `command`, which was not granted before; returns the ops it means and what to answer.
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
) -> Result<(Vec<Op>, Outcome), Refusal> {
    let created = request.created(actor.device);
    let done = |op: Op| Ok((vec![op], Outcome::Done));
    match command {
        Command::CreateUser { user, password } => {
            if state.users.contains_key(user) {
                return Err(Refusal::UserExists(user.clone()));
            }
            limit(state.users.len(), limits::MAX_USERS, "accounts")?;
            done(Op::UserCreated { user: user.clone(), password: password.clone() })
        }
        Command::EnrolDevice { user } => {
            let account = state.users.get(user).ok_or(Refusal::WrongCredentials)?;
            let mut ops = Vec::new();
            if !account.devices.contains_key(&actor.device) {
                // The oldest enrolment makes room: a login must not fail for the sake of old ones.
                if account.devices.len() >= limits::MAX_DEVICES_PER_USER {
                    let oldest = account.devices.iter().min_by_key(|(id, at)| (**at, **id));
                    ops.extend(oldest.map(|(device, _)| Op::DeviceRemoved { device: *device }));
                }
                ops.push(Op::DeviceEnrolled { user: user.clone(), device: actor.device, at: now });
            }
            Ok((ops, Outcome::Done))
        }
        Command::RemoveDevice => {
            Ok((vec![Op::DeviceRemoved { device: actor.device }], Outcome::Done))
        }
        Command::CreateGroup { group, hidden } => {
            let user = logged_in(actor)?;
            // The second can only be an old request, repeated after it was forgotten.
            let taken = state.groups.contains_key(&GroupId(created));
            if state.group_named(group).is_some() || taken {
                return Err(Refusal::GroupExists(group.clone()));
            }
            limit(state.groups.len(), limits::MAX_GROUPS, "groups")?;
            limit_groups(state, user)?;
            done(Op::GroupCreated {
                group: GroupId(created),
                name: group.clone(),
                hidden: *hidden,
                user: user.clone(),
                membership: MembershipId(created),
                at: now,
            })
        }
        Command::JoinGroup { group } => {
            let user = logged_in(actor)?;
            let (id, found) = view::group(state, group)?;
            if found.members.contains_key(user) {
                return Err(Refusal::AlreadyAMember(group.clone()));
            }
            if found.requests.contains_key(user) {
                return Err(Refusal::AlreadyRequested(group.clone()));
            }
            if let Some(at) = found.rejected.get(user) {
                let after = at.plus(limits::REJECTED_WAIT);
                if now < after {
                    return Err(Refusal::RejectedLately { group: group.clone(), after });
                }
            }
            limit(found.requests.len(), limits::MAX_REQUESTS_PER_GROUP, "pending requests")?;
            limit_groups(state, user)?;
            let request = JoinRequestId(created);
            done(Op::JoinRequested { group: id, request, user: user.clone(), at: now })
        }
        Command::LeaveGroup { group } => {
            let user = logged_in(actor)?;
            let (id, found) = view::group_of_member(state, group, user)?;
            // The lookup above found this very member.
            let membership = found.members[user].membership;
            done(Op::MembershipEnded { group: id, membership })
        }
        Command::AcceptRequest { group, user } => {
            let (id, found, join) = pending(state, actor, group, user)?;
            limit(found.members.len(), limits::MAX_MEMBERS_PER_GROUP, "members")?;
            limit_groups(state, user)?;
            let membership = MembershipId(created);
            done(Op::JoinAccepted { group: id, request: join, membership, at: now })
        }
        Command::RejectRequest { group, user } => {
            let (id, _, join) = pending(state, actor, group, user)?;
            done(Op::JoinRejected { group: id, request: join, at: now })
        }
        Command::Share { group, name, head } => {
            let user = logged_in(actor)?;
            let (id, found) = view::group_of_member(state, group, user)?;
            let shared = Outcome::Shared { group: id };
            let listing = found.listings.get(&head.content_id());
            let already = listing
                .is_some_and(|l| l.shares.values().any(|s| s.user == *user && s.name == *name));
            if already {
                return Ok((Vec::new(), shared));
            }
            let shares = state.users.get(user).map_or(0, |account| account.share_count);
            limit(shares, limits::MAX_SHARES_PER_USER, "shares")?;
            let missing: Vec<u32> = (0u32..)
                .zip(head.page_hashes())
                .filter(|(_, hash)| !pages.contains(hash))
                .map(|(page, _)| page)
                .collect();
            if !missing.is_empty() {
                return Ok((Vec::new(), Outcome::PagesMissing { pages: missing }));
            }
            pages.check_quota(user, head)?;
            let op = Op::ShareAdded {
                group: id,
                share: ShareId(created),
                user: user.clone(),
                name: name.clone(),
                head: head.clone(),
                at: now,
            };
            Ok((vec![op], shared))
        }
        Command::StopShare { group, file } => {
            let user = logged_in(actor)?;
            let (id, found) = view::group_of_member(state, group, user)?;
            stop_share(id, found, user, group, file)
        }
    }
}

/// Withdraws the shares of `user` that `file` means; they must all be of one content.
fn stop_share(
    id: GroupId,
    group: &Group,
    user: &UserName,
    group_name: &GroupName,
    file: &Selector,
) -> Result<(Vec<Op>, Outcome), Refusal> {
    let mut mine = Vec::new();
    for (content, listing) in &group.listings {
        for (share, row) in &listing.shares {
            if row.user == *user && view::selects(file, *content, row) {
                mine.push((*content, *share));
            }
        }
    }
    let Some((content, _)) = mine.first().copied() else {
        let (file, group) = (file.to_string(), group_name.clone());
        return Err(Refusal::NotShared { file, group });
    };
    if mine.iter().any(|(other, _)| *other != content) {
        return Err(view::ambiguous(file, group_name, mine.into_iter().map(|(c, _)| c)));
    }
    let all = group.listings[&content].shares.values().filter(|s| s.user == *user).count();
    let still_shared = all > mine.len();
    let ops = mine
        .into_iter()
        .map(|(content, share)| Op::ShareWithdrawn { group: id, content, share })
        .collect();
    Ok((ops, Outcome::Stopped { group: id, content, still_shared }))
}

/// The user behind the actor.
pub(super) fn logged_in(actor: &Actor) -> Result<&UserName, Refusal> {
    actor.user.as_ref().ok_or(Refusal::NotLoggedIn)
}

/// The request of `user` that the actor, as owner, may answer.
fn pending<'a>(
    state: &'a State,
    actor: &Actor,
    group: &GroupName,
    user: &UserName,
) -> Result<(GroupId, &'a Group, JoinRequestId), Refusal> {
    let owner = logged_in(actor)?;
    let (id, found) = view::group_of_owner(state, group, owner)?;
    let request = found
        .requests
        .get(user)
        .ok_or_else(|| Refusal::NoSuchRequest { user: user.clone(), group: group.clone() })?;
    Ok((id, found, request.id))
}

fn limit_groups(state: &State, user: &UserName) -> Result<(), Refusal> {
    let count = state.users.get(user).map_or(0, |account| account.groups.len());
    limit(count, limits::MAX_GROUPS_PER_USER, "groups of one user")
}

fn limit(count: usize, max: usize, what: &str) -> Result<(), Refusal> {
    if count < max {
        return Ok(());
    }
    Err(Refusal::Limit { what: what.to_owned(), max: max as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::testing::manifest_of;
    use std::time::Duration;

    /// A tracker's judgement and state, and a clock.
    #[derive(Default)]
    struct Court {
        state: State,
        pages: Pages,
        now: u64,
    }

    fn user(name: &str) -> UserName {
        name.parse().expect("name")
    }

    fn lab() -> GroupName {
        "lab".parse().expect("name")
    }

    fn device(name: &str) -> PeerId {
        PeerId(crate::hash::blake3(name.as_bytes()).0)
    }

    impl Court {
        fn with_users<const N: usize>(names: [&str; N]) -> Self {
            let mut court = Self::default();
            for name in names {
                let command = Command::CreateUser { user: user(name), password: "phc".into() };
                court.propose(name, command).expect("created");
            }
            court
        }

        fn as_request(
            &mut self,
            name: &str,
            request: u8,
            command: Command,
        ) -> Result<Outcome, Refusal> {
            self.now += 1000;
            let actor = Actor { device: device(name), user: Some(user(name)) };
            let id = RequestId([request; 16]);
            let now = UnixMillis(self.now);
            let (ops, outcome) = decide(&self.state, &actor, id, &command, now, &self.pages)?;
            ops.iter().for_each(|op| self.state.apply(op));
            Ok(outcome)
        }

        fn propose(&mut self, name: &str, command: Command) -> Result<Outcome, Refusal> {
            let request = (self.now / 1000) as u8;
            self.as_request(name, request, command)
        }

        /// Makes `names` members of `lab`, owned by the first.
        fn lab<const N: usize>(names: [&str; N]) -> Self {
            let mut court = Self::with_users(names);
            let create = Command::CreateGroup { group: lab(), hidden: false };
            court.propose(names[0], create).expect("created");
            for name in &names[1..] {
                court.propose(name, Command::JoinGroup { group: lab() }).expect("asked");
                let accept = Command::AcceptRequest { group: lab(), user: user(name) };
                court.propose(names[0], accept).expect("accepted");
            }
            court
        }

        fn owner(&self) -> Option<UserName> {
            self.state.group_named(&lab())?.1.owner().cloned()
        }
    }

    #[test]
    fn ownership_passes_to_the_longest_standing_member() {
        let mut court = Court::lab(["alice", "bob", "carol"]);
        let leave = || Command::LeaveGroup { group: lab() };
        court.propose("alice", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("bob")));
        // She comes back as anybody would.
        court.propose("alice", Command::JoinGroup { group: lab() }).expect("asked");
        let accept = |name| Command::AcceptRequest { group: lab(), user: user(name) };
        assert_eq!(court.propose("carol", accept("alice")), Err(Refusal::NotTheOwner(lab())));
        court.propose("bob", accept("alice")).expect("accepted");
        court.propose("bob", leave()).expect("left");
        assert_eq!(court.owner(), Some(user("carol")));
        court.propose("carol", leave()).expect("left");
        court.propose("alice", leave()).expect("left");
        assert_eq!(court.owner(), None);
        assert!(court.state.groups.is_empty() && court.state.group_names.is_empty());
    }

    #[test]
    fn a_rejected_user_waits_a_day() {
        let mut court = Court::with_users(["alice", "bob"]);
        let create = Command::CreateGroup { group: lab(), hidden: false };
        court.propose("alice", create).expect("created");
        let join = || Command::JoinGroup { group: lab() };
        court.propose("bob", join()).expect("asked");
        assert_eq!(court.propose("bob", join()), Err(Refusal::AlreadyRequested(lab())));
        let reject = Command::RejectRequest { group: lab(), user: user("bob") };
        court.propose("alice", reject).expect("rejected");
        assert!(matches!(court.propose("bob", join()), Err(Refusal::RejectedLately { .. })));
        court.now += Duration::from_secs(24 * 3600).as_millis() as u64;
        court.propose("bob", join()).expect("asked again");
    }

    #[test]
    fn an_old_request_repeated_takes_no_group_over() {
        let mut court = Court::with_users(["eve", "bob"]);
        let create =
            |name: &str| Command::CreateGroup { group: name.parse().expect("name"), hidden: false };
        court.as_request("eve", 77, create("lab")).expect("created");
        court.propose("bob", Command::JoinGroup { group: lab() }).expect("asked");
        let accept = Command::AcceptRequest { group: lab(), user: user("bob") };
        court.propose("eve", accept).expect("accepted");
        court.propose("eve", Command::LeaveGroup { group: lab() }).expect("left");
        assert!(court.as_request("eve", 77, create("other")).is_err());
        assert_eq!(court.owner(), Some(user("bob")));
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
        let hash = manifest.head().page_hashes()[0];
        court.pages.put(&user("bob"), hash, &manifest.page(0)).expect("put");
        assert!(matches!(court.propose("bob", share()), Ok(Outcome::Shared { .. })));
        assert!(matches!(court.propose("alice", share()), Ok(Outcome::Shared { .. })));
        assert_eq!(court.state.users[&user("bob")].share_count, 1);
        let stop = Command::StopShare { group: lab(), file: "bob/f".parse().expect("selector") };
        assert!(matches!(court.propose("alice", stop), Err(Refusal::NotShared { .. })));
        court.propose("bob", Command::LeaveGroup { group: lab() }).expect("left");
        assert_eq!(court.state.users[&user("bob")].share_count, 0);
        let listing = &court.state.group_named(&lab()).expect("there").1.listings;
        assert_eq!(listing[&manifest.content_id()].shares.len(), 1, "alice's stays");
    }

    #[test]
    fn the_oldest_device_makes_room() {
        let mut court = Court::with_users(["alice"]);
        for number in 0..=limits::MAX_DEVICES_PER_USER as u8 {
            court.now += 1000;
            let actor = Actor { device: PeerId([number; 32]), user: None };
            let command = Command::EnrolDevice { user: user("alice") };
            let id = RequestId([number; 16]);
            let now = UnixMillis(court.now);
            let (ops, _) =
                decide(&court.state, &actor, id, &command, now, &court.pages).expect("enrolled");
            ops.iter().for_each(|op| court.state.apply(op));
        }
        let devices = &court.state.users[&user("alice")].devices;
        assert_eq!(devices.len(), limits::MAX_DEVICES_PER_USER);
        assert!(!devices.contains_key(&PeerId([0; 32])));
        assert_eq!(court.state.devices.len(), devices.len());
    }
}
