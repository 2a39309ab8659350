//! What the operator may read of the state: accounts and groups by the page, totals, and
//! everything there is, for an export.
//!
//! Never password hashes. Rows are in order of id, which no rename and no removal disturbs.

use std::ops::Bound;

use serde::Serialize;
use serde_json::{Value, json};

use super::state::{PUBLIC, State};
use crate::clock::UnixMillis;
use crate::id::{GroupId, UserId};
use crate::limits::CONTROL_ROWS;
use crate::name::{GroupName, UserName};

/// An account, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserRow {
    /// Its name.
    pub user: UserName,
    /// Its id.
    pub id: UserId,
    /// When it was made.
    pub created: UnixMillis,
    /// Whether it may not be used.
    pub disabled: bool,
    /// Devices enrolled.
    pub devices: usize,
    /// Memberships, that in `public` not counted.
    pub groups: usize,
    /// Shares in all groups.
    pub shares: usize,
    /// Whether any of its devices is connected.
    pub online: bool,
    /// When the last of its devices went, if none is connected and it is known.
    pub last_seen: Option<UnixMillis>,
}

/// A group, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupRow {
    /// Its name.
    pub group: GroupName,
    /// Its id.
    pub id: GroupId,
    /// When it was made; nobody made `public`.
    pub created: Option<UnixMillis>,
    /// Who owns it; nobody owns `public`, and nobody an archived group.
    pub owner: Option<UserName>,
    /// Members.
    pub members: usize,
    /// Contents listed.
    pub files: usize,
    /// Whether only members see it.
    pub hidden: bool,
    /// Whether it has no members any more.
    pub archived: bool,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accounts, disabled ones too.
    pub accounts: usize,
    /// Groups with members, and `public` where there is one.
    pub groups: usize,
    /// Contents listed, once for each group.
    pub files: usize,
    /// Shares.
    pub shares: usize,
}

/// What rows say of who is online.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Whether any device of a user is connected.
    pub online: &'a dyn Fn(UserId) -> bool,
    /// When a user's last device went.
    pub last_seen: &'a dyn Fn(UserId) -> Option<UnixMillis>,
}

/// Counts everything.
pub fn totals(state: &State) -> Totals {
    let mut totals = Totals {
        accounts: state.facts().users.len(),
        groups: usize::from(state.rules.public),
        files: 0,
        shares: state.facts().shares.len(),
    };
    for (_, group) in state.group_indexes() {
        totals.groups += usize::from(!group.members.is_empty());
        totals.files += group.file_count;
    }
    totals
}

/// Accounts after `after`, and whether more follow.
pub fn users(state: &State, after: Option<UserId>, seen: Seen<'_>) -> (Vec<UserRow>, bool) {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut all = state.facts().users.range((from, Bound::Unbounded)).map(|(id, _)| *id);
    let rows = all.by_ref().take(CONTROL_ROWS).filter_map(|id| user(state, id, seen)).collect();
    (rows, all.next().is_some())
}

/// One account.
pub fn user(state: &State, id: UserId, seen: Seen<'_>) -> Option<UserRow> {
    let index = state.user_index(id);
    let online = (seen.online)(id);
    Some(UserRow {
        user: state.user_name(id)?,
        id,
        created: state.facts().users.get(&id)?.stamp.at,
        disabled: !state.is_enabled(id),
        devices: index.map_or(0, |user| user.enrolments.len()),
        groups: index.map_or(0, |user| user.groups.len()),
        shares: index.map_or(0, |user| user.share_count),
        online,
        last_seen: if online { None } else { (seen.last_seen)(id) },
    })
}

/// Groups after `after`, archived ones too, and whether more follow. `public` comes first.
pub fn groups(state: &State, after: Option<GroupId>) -> (Vec<GroupRow>, bool) {
    let public = Some(PUBLIC).filter(|_| after.is_none() && state.rules.public);
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let made = state.facts().groups.range((from, Bound::Unbounded)).map(|(id, _)| *id);
    let mut all = public.into_iter().chain(made);
    let rows = all.by_ref().take(CONTROL_ROWS).filter_map(|id| group(state, id)).collect();
    (rows, all.next().is_some())
}

/// One group.
pub fn group(state: &State, id: GroupId) -> Option<GroupRow> {
    Some(GroupRow {
        group: state.group_name(id)?,
        id,
        created: state.facts().groups.get(&id).map(|group| group.stamp.at),
        owner: state.owner(id).and_then(|owner| state.user_name(owner)),
        members: state.member_count(id),
        files: state.group_index(id).map_or(0, |group| group.file_count),
        hidden: state.is_hidden(id),
        archived: !state.is_living(id),
    })
}

/// Gives everything to `line`, one object a thing, until it fails.
///
/// # Errors
/// Those of `line`.
pub fn export<E>(
    state: &State,
    mut line: impl FnMut(&'static str, Value) -> Result<(), E>,
) -> Result<(), E> {
    let facts = state.facts();
    let user_name = |id: UserId| state.user_name(id);
    let group_name = |id: GroupId| state.group_name(id);
    for (id, account) in &facts.users {
        line(
            "user",
            json!({
                "id": id, "user": user_name(*id), "created": account.stamp.at,
                "disabled": !state.is_enabled(*id), "invite_id": account.value.invite,
            }),
        )?;
    }
    for (id, enrolment) in &facts.enrolments {
        let (user, device) = (enrolment.value.user, enrolment.value.device);
        line(
            "device",
            json!({
                "id": id, "user_id": user, "user": user_name(user), "peer_id": device,
                "since": enrolment.stamp.at,
            }),
        )?;
    }
    for (id, founded) in &facts.groups {
        let owner = state.owner(*id).and_then(user_name);
        let nominee = state.nominee(*id).and_then(user_name);
        line(
            "group",
            json!({
                "id": id, "group": group_name(*id), "created": founded.stamp.at,
                "hidden": founded.value.hidden, "archived": !state.is_living(*id),
                "owner": owner, "nominee": nominee,
                "offline_grace_secs": state.offline_grace(*id),
            }),
        )?;
    }
    for (id, membership) in &facts.memberships {
        let place = membership.value;
        line(
            "membership",
            json!({
                "id": id, "group_id": place.group, "group": group_name(place.group),
                "user_id": place.user, "user": user_name(place.user),
                "since": membership.stamp.at,
            }),
        )?;
    }
    for (id, request) in &facts.requests {
        let place = request.value;
        line(
            "request",
            json!({
                "id": id, "group_id": place.group, "group": group_name(place.group),
                "user_id": place.user, "user": user_name(place.user), "at": request.stamp.at,
            }),
        )?;
    }
    for ((id, _), share) in &facts.shares {
        let (of, head) = (&share.value, &share.value.head);
        line(
            "share",
            json!({
                "id": id, "group_id": of.group, "group": group_name(of.group),
                "user_id": of.user, "user": user_name(of.user), "membership_id": of.membership,
                "name": of.name, "size": head.layout().size(), "content_id": head.content_id(),
                "sha1": head.sha1(), "info_hash": head.info_hash(), "blake3": head.blake3(),
                "head": hex::encode(head.encode()), "since": share.stamp.at,
            }),
        )?;
    }
    for (id, invite) in &facts.invites {
        line(
            "invite",
            json!({
                "id": id, "created": invite.stamp.at, "expires": invite.value,
                "used_by": state.invited(*id).and_then(user_name),
            }),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::id::OriginId;
    use crate::tracker::facts::{Account, Facts, Founded};
    use crate::tracker::lattice::{First, Stamp};
    use crate::tracker::state::Rules;

    fn first<T>(value: T) -> First<T> {
        First { stamp: Stamp { at: UnixMillis(7), origin: OriginId([1; 16]), seq: 1 }, value }
    }

    fn state(count: usize, rules: Rules) -> State {
        let mut facts = Facts::default();
        for number in 0..count {
            let id = (number as u128).to_be_bytes();
            let name = format!("n{number}");
            let account = Account { name: name.parse().expect("name"), invite: None };
            facts.users.insert(UserId(id), first(account));
            // All of one name: archived ones keep what they were called.
            let founded = Founded { name: "lab".parse().expect("name"), hidden: false };
            facts.groups.insert(GroupId(id), first(founded));
        }
        State::new(facts, rules)
    }

    fn nobody(view: impl FnOnce(Seen<'_>)) {
        view(Seen { online: &|_| false, last_seen: &|_| None });
    }

    #[test]
    fn pages_have_everything_once() {
        for count in [0, 1, CONTROL_ROWS - 1, CONTROL_ROWS, CONTROL_ROWS + 1, 2 * CONTROL_ROWS + 5]
        {
            let state = state(count, Rules::default());
            assert_eq!(totals(&state).accounts, count);
            nobody(|seen| {
                let (mut known, mut more) = (Vec::new(), true);
                while more {
                    let (rows, follow) = users(&state, known.last().copied(), seen);
                    assert!(rows.len() <= CONTROL_ROWS);
                    known.extend(rows.into_iter().map(|row| row.id));
                    more = follow;
                }
                let expected: Vec<_> = state.facts().users.keys().copied().collect();
                assert_eq!(known, expected);
            });
            let (mut known, mut more) = (Vec::new(), true);
            while more {
                let (rows, follow) = groups(&state, known.last().copied());
                assert!(rows.len() <= CONTROL_ROWS);
                assert!(rows.iter().all(|row| row.archived == (row.id != PUBLIC)));
                known.extend(rows.into_iter().map(|row| row.id));
                more = follow;
            }
            assert_eq!(known.len(), count + 1, "public too");
            assert_eq!(known.first(), Some(&PUBLIC));
        }
        let without = state(0, Rules { public: false, ..Rules::default() });
        assert_eq!(groups(&without, None), (Vec::new(), false));
        assert_eq!(totals(&without), Totals::default());
    }
}
