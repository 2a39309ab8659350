//! What may be read of the state, and by whom. Every listing is bounded and resumable.

use std::collections::BTreeSet;

use super::facts::{Share, ShareKey};
use super::index::{GREATEST_SHARE, LEAST_SHARE};
use super::lattice::First;
use super::message::{
    DeviceRow, FileCursor, FileRow, FoundFile, GroupRow, MemberRow, RequestRow, Standing,
};
use super::refusal::Refusal;
use super::state::{PUBLIC, PUBLIC_NAME, State};
use crate::clock::UnixMillis;
use crate::id::{GroupId, ShareId, UserId};
use crate::limits::{MAX_CANDIDATES, MAX_LIST_ROWS};
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::ticket::Holder;

/// Sharers named in one row; the count says how many there are.
const NAMED_SHARERS: usize = 8;

/// Names read ahead of the one that is matched; more gain nothing.
const READ_AHEAD: usize = 32;

/// What rows say of who is online.
#[derive(Clone, Copy)]
pub struct Live<'a> {
    /// Devices online that hold a content wholly, and in part.
    pub holders: &'a dyn Fn(GroupId, ContentId) -> (u32, u32),
    /// Whether any device of a user is connected.
    pub online: &'a dyn Fn(UserId) -> bool,
    /// When a user's last device went.
    pub last_seen: &'a dyn Fn(UserId) -> Option<UnixMillis>,
}

/// A living group. Hidden ones too: whoever knows the name may ask to join.
pub(super) fn group(state: &State, name: &GroupName) -> Result<GroupId, Refusal> {
    state.group_named(name).ok_or_else(|| Refusal::NoSuchGroup(name.clone()))
}

/// A group `user` is a member of.
pub fn group_of_member(state: &State, name: &GroupName, user: UserId) -> Result<GroupId, Refusal> {
    let id = group(state, name)?;
    match state.member(id, user) {
        Some(_) => Ok(id),
        None => Err(Refusal::NotAMember(name.clone())),
    }
}

/// A group `user` owns.
pub fn group_of_owner(state: &State, name: &GroupName, user: UserId) -> Result<GroupId, Refusal> {
    match group_of_member(state, name, user)? {
        PUBLIC => Err(Refusal::EverybodysGroup(name.clone())),
        id if state.owner(id) == Some(user) => Ok(id),
        _ => Err(Refusal::NotTheOwner(name.clone())),
    }
}

/// Groups after `after` that `user` may see, and whether more follow.
pub fn groups(state: &State, user: UserId, after: Option<&GroupName>) -> (Vec<GroupRow>, bool) {
    let public: Option<GroupName> = PUBLIC_NAME.parse().ok().filter(|_| state.rules.public);
    let mut rows: Vec<_> = public
        .filter(|name| after.is_none_or(|after| name > after))
        .and_then(|name| group_row(state, user, name, PUBLIC))
        .into_iter()
        .collect();
    // Names that two chose come in the order they were chosen; a page ends between names.
    let mut last: Option<&GroupName> = None;
    for (chosen, id) in state.group_names(after) {
        if rows.len() > MAX_LIST_ROWS && last != Some(chosen) {
            break;
        }
        if !state.is_living(id) {
            continue;
        }
        let Some(name) = state.group_name(id) else { continue };
        if after.is_none_or(|after| name.parts() > after.parts()) {
            rows.extend(group_row(state, user, name, id));
            last = Some(chosen);
        }
    }
    rows.sort_by(|a, b| a.name.parts().cmp(&b.name.parts()));
    let more = rows.len() > MAX_LIST_ROWS;
    rows.truncate(MAX_LIST_ROWS);
    (rows, more)
}

fn group_row(state: &State, user: UserId, name: GroupName, id: GroupId) -> Option<GroupRow> {
    let owner = state.owner(id);
    let standing = if owner == Some(user) {
        Standing::Owner
    } else if state.member(id, user).is_some() {
        Standing::Member
    } else if state.join_request(id, user).is_some() {
        Standing::Requested
    } else {
        Standing::None
    };
    if state.is_hidden(id) && standing == Standing::None {
        return None;
    }
    Some(GroupRow {
        name,
        owner: owner.and_then(|owner| state.user_name(owner)),
        member_count: state.member_count(id) as u32,
        standing,
        hidden: state.is_hidden(id),
    })
}

/// Requests waiting in a group, the longest-waiting first.
pub fn requests(state: &State, group: GroupId) -> Vec<RequestRow> {
    let waiting = state.group_index(group).into_iter().flat_map(|group| &group.requests);
    let mut rows: Vec<_> = waiting
        .filter(|(user, ..)| state.is_enabled(*user) && state.member(group, *user).is_none())
        .filter_map(|(user, stamp, _)| {
            Some(RequestRow { user: state.user_name(*user)?, at: stamp.at })
        })
        .collect();
    rows.sort_by(|a, b| (a.at, &a.user).cmp(&(b.at, &b.user)));
    rows
}

/// Members after `after` in order of name, and whether more follow.
pub fn members(
    state: &State,
    group: GroupId,
    after: Option<&UserName>,
    live: Live<'_>,
) -> (Vec<MemberRow>, bool) {
    let (owner, nominee) = (state.owner(group), state.nominee(group));
    let row = |user: UserId, name: UserName| {
        let since = state.member(group, user)?.since.at;
        let online = (live.online)(user);
        let last_seen = if online { None } else { (live.last_seen)(user) };
        let (owner, nominee) = (owner == Some(user), nominee == Some(user) && owner != nominee);
        Some(MemberRow { user: name, since, owner, nominee, online, last_seen })
    };
    let comes = |name: &UserName| after.is_none_or(|after| name.parts() > after.parts());
    let mut named = Vec::new();
    if group == PUBLIC {
        let mut last: Option<&UserName> = None;
        for (chosen, user) in state.user_names(after) {
            if named.len() > MAX_LIST_ROWS && last != Some(chosen) {
                break;
            }
            let name = state.user_name(user).filter(|name| comes(name) && state.is_enabled(user));
            named.extend(name.map(|name| (name, user)));
            last = Some(chosen);
        }
    } else {
        let all = state.members(group);
        named.extend(all.filter_map(|m| Some((state.user_name(m.user)?, m.user))));
        named.retain(|(name, _)| comes(name));
    }
    named.sort_by(|a, b| a.0.parts().cmp(&b.0.parts()));
    let more = named.len() > MAX_LIST_ROWS;
    named.truncate(MAX_LIST_ROWS);
    (named.into_iter().filter_map(|(name, user)| row(user, name)).collect(), more)
}

/// The devices enrolled for a user, the longest enrolled first.
pub fn devices(state: &State, user: UserId, online: impl Fn(PeerId) -> bool) -> Vec<DeviceRow> {
    let all = state.user_index(user).into_iter().flat_map(|user| &user.enrolments);
    let rows = all.filter_map(|(stamp, enrolment)| {
        let device = state.facts().enrolments.get(enrolment)?.value.device;
        Some(DeviceRow { peer_id: device, since: stamp.at, online: online(device) })
    });
    rows.collect()
}

/// Files of `groups` after `after` whose name `wanted` accepts, in order of group, name, content.
pub fn files(
    state: &State,
    groups: impl Iterator<Item = GroupId>,
    after: Option<&FileCursor>,
    wanted: impl Fn(&str) -> bool,
    live: Live<'_>,
) -> (Vec<FileRow>, bool) {
    let named = groups.filter_map(|id| Some((state.group_name(id)?, id)));
    let mut groups: Vec<_> =
        named.filter(|(name, _)| after.is_none_or(|after| *name >= after.group)).collect();
    groups.sort();
    let mut rows: Vec<FileRow> = Vec::new();
    for (group, id) in groups {
        let Some(index) = state.group_index(id) else { continue };
        let all: Box<dyn Iterator<Item = &Listed>> =
            match after.filter(|after| after.group == group) {
                None => Box::new(index.files.iter()),
                Some(after) => {
                    let last = (after.name.clone(), after.content, GREATEST_SHARE);
                    Box::new(index.files.range(last..).skip_while(move |(name, content, _)| {
                        (name, content) == (&after.name, &after.content)
                    }))
                }
            };
        let mut row: Option<Row<'_>> = None;
        for (name, content, share) in read_ahead(all) {
            if row.as_ref().is_some_and(|row| (row.name, row.content) != (name, *content)) {
                rows.extend(row.take().and_then(|row| row.finish(state, &group, id, live)));
                if rows.len() > MAX_LIST_ROWS {
                    break;
                }
            }
            if row.is_none() {
                if !wanted(name.as_str()) {
                    continue;
                }
                row = Some(Row { name, content: *content, shares: Vec::new() });
            }
            if let (Some(row), Some((_, share))) = (&mut row, state.share(*share)) {
                row.shares.push(share);
            }
        }
        rows.extend(row.and_then(|row| row.finish(state, &group, id, live)));
        if rows.len() > MAX_LIST_ROWS {
            rows.truncate(MAX_LIST_ROWS);
            return (rows, true);
        }
    }
    (rows, false)
}

/// One share in the order of a listing.
type Listed = (FileName, ContentId, ShareKey);

/// The same rows, read a few ahead. Names lie all over memory: touched together, the machine
/// waits for many of them at once and not, with a pattern matched in between, for each in turn.
fn read_ahead<'a>(mut rows: impl Iterator<Item = &'a Listed>) -> impl Iterator<Item = &'a Listed> {
    std::iter::from_fn(move || {
        let ahead: Vec<_> = rows.by_ref().take(READ_AHEAD).collect();
        let ends = ahead.iter().map(|(name, ..)| name.as_str().as_bytes());
        let ends = ends.filter_map(|name| Some(name.first()? ^ name.last()?));
        std::hint::black_box(ends.fold(0, |all, end| all ^ end));
        (!ahead.is_empty()).then_some(ahead)
    })
    .flatten()
}

/// One content under one name, while its shares are gathered.
struct Row<'a> {
    name: &'a FileName,
    content: ContentId,
    shares: Vec<&'a First<Share>>,
}

impl Row<'_> {
    fn finish(
        self,
        state: &State,
        group: &GroupName,
        id: GroupId,
        live: Live<'_>,
    ) -> Option<FileRow> {
        let head = &self.shares.first()?.value.head;
        let sharers: BTreeSet<UserId> = self.shares.iter().map(|share| share.value.user).collect();
        let mut names: Vec<_> = sharers
            .iter()
            .take(10 * NAMED_SHARERS)
            .filter_map(|user| state.user_name(*user))
            .collect();
        names.sort();
        names.truncate(NAMED_SHARERS);
        let (seeders, leechers) = (live.holders)(id, self.content);
        let last_seen = match seeders {
            0 => sharers.iter().filter_map(|user| (live.last_seen)(*user)).max(),
            _ => None,
        };
        Some(FileRow {
            group: group.clone(),
            name: self.name.clone(),
            content: self.content,
            size: head.layout().size(),
            sharer_count: sharers.len() as u32,
            sharers: names,
            seeders,
            leechers,
            since: self.shares.iter().map(|share| share.stamp.at).min()?,
            last_seen,
        })
    }
}

/// The shares of a group that `file` means, by content.
pub(super) fn selected<'a>(
    state: &'a State,
    group: GroupId,
    file: &'a Selector,
) -> Box<dyn Iterator<Item = (ContentId, ShareId, &'a First<Share>)> + 'a> {
    let Some(index) = state.group_index(group) else { return Box::new(std::iter::empty()) };
    let named = |name: &'a FileName| {
        let first = (name.clone(), ContentId([0; 32]), LEAST_SHARE);
        let all = index.files.range(first..).take_while(move |(of, ..)| of == name);
        all.filter_map(|(_, content, id)| state.share(*id).map(|(id, share)| (*content, id, share)))
    };
    match file {
        Selector::Name(name) => Box::new(named(name)),
        Selector::UserName(user, name) => {
            let user = state.user_named(user);
            Box::new(named(name).filter(move |(.., share)| Some(share.value.user) == user))
        }
        Selector::Id(prefix) => {
            let all = index.contents.range((prefix.least(), LEAST_SHARE)..);
            let all = all.take_while(|(content, _)| prefix.matches(*content));
            Box::new(all.filter_map(|(content, id)| {
                state.share(*id).map(|(id, share)| (*content, id, share))
            }))
        }
    }
}

/// The one content that `file` means in a group.
///
/// # Errors
/// [`Refusal::NoSuchFile`] or [`Refusal::Ambiguous`] with candidates.
pub fn find_file(
    state: &State,
    group: GroupId,
    group_name: &GroupName,
    file: &Selector,
) -> Result<FoundFile, Refusal> {
    let mut hits: Vec<_> = selected(state, group, file).collect();
    hits.sort_by_key(|(_, id, share)| (share.stamp, *id));
    let Some((content, _, share)) = hits.first() else {
        return Err(Refusal::NoSuchFile { file: file.to_string(), group: group_name.clone() });
    };
    if hits.iter().any(|(other, ..)| other != content) {
        return Err(ambiguous(file, group_name, hits.iter().map(|(content, ..)| *content)));
    }
    Ok(FoundFile {
        group,
        name: share.value.name.clone(),
        head: share.value.head.encode(),
        sharer: state.user_name(share.value.user).ok_or(Refusal::Internal)?,
    })
}

/// The refusal that names the candidates.
pub(super) fn ambiguous(
    file: &Selector,
    group: &GroupName,
    contents: impl Iterator<Item = ContentId>,
) -> Refusal {
    let candidates: BTreeSet<_> = contents.collect();
    Refusal::Ambiguous {
        file: file.to_string(),
        group: group.clone(),
        candidates: candidates
            .into_iter()
            .take(MAX_CANDIDATES)
            .map(|c| format!("id:{c}"))
            .collect(),
    }
}

/// What a ticket may say of `user` on `device`.
///
/// # Errors
/// [`Refusal`] unless the user is a member.
pub fn ticket_holder(
    state: &State,
    name: &GroupName,
    user: UserId,
    device: PeerId,
) -> Result<Holder, Refusal> {
    let group = group_of_member(state, name, user)?;
    let member = state.member(group, user).ok_or_else(|| Refusal::NotAMember(name.clone()))?;
    Ok(Holder {
        peer_id: device,
        user: state.user_name(user).ok_or(Refusal::NotLoggedIn)?,
        group,
        group_name: name.clone(),
        membership: member.membership,
        offline_grace: state.offline_grace(group),
    })
}
