//! What may be read of the state, and by whom. Every listing is bounded and resumable.

use std::collections::{BTreeMap, BTreeSet};

use super::message::{
    FileCursor, FileRow, FoundFile, GroupRow, MemberRow, Refusal, RequestRow, Standing,
};
use super::state::{Group, Share, State};
use crate::clock::UnixMillis;
use crate::id::GroupId;
use crate::limits::{MAX_CANDIDATES, MAX_LIST_ROWS};
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::ticket::Holder;

/// Sharers named in one row; the count says how many there are.
const NAMED_SHARERS: usize = 8;

/// A living group. Hidden ones too: whoever knows the name may ask to join.
pub(super) fn group<'a>(
    state: &'a State,
    name: &GroupName,
) -> Result<(GroupId, &'a Group), Refusal> {
    state.group_named(name).ok_or_else(|| Refusal::NoSuchGroup(name.clone()))
}

/// A group `user` is a member of.
pub fn group_of_member<'a>(
    state: &'a State,
    name: &GroupName,
    user: &UserName,
) -> Result<(GroupId, &'a Group), Refusal> {
    let (id, found) = group(state, name)?;
    if found.members.contains_key(user) {
        Ok((id, found))
    } else {
        Err(Refusal::NotAMember(name.clone()))
    }
}

/// A group `user` owns.
pub fn group_of_owner<'a>(
    state: &'a State,
    name: &GroupName,
    user: &UserName,
) -> Result<(GroupId, &'a Group), Refusal> {
    let (id, found) = group_of_member(state, name, user)?;
    if found.owner() == Some(user) {
        Ok((id, found))
    } else {
        Err(Refusal::NotTheOwner(name.clone()))
    }
}

/// Groups after `after` that `user` may see, and whether more follow.
pub fn groups(state: &State, user: &UserName, after: Option<&GroupName>) -> (Vec<GroupRow>, bool) {
    let mut rows =
        state.group_names.keys().filter(|name| after.is_none_or(|after| *name > after)).filter_map(
            |name| {
                let (_, group) = state.group_named(name)?;
                let owner = group.owner()?.clone();
                let standing = standing(group, user);
                if group.hidden && standing == Standing::None {
                    return None;
                }
                Some(GroupRow {
                    name: name.clone(),
                    standing,
                    member_count: group.members.len() as u32,
                    hidden: group.hidden,
                    owner,
                })
            },
        );
    page(&mut rows)
}

fn standing(group: &Group, user: &UserName) -> Standing {
    if group.owner() == Some(user) {
        Standing::Owner
    } else if group.members.contains_key(user) {
        Standing::Member
    } else if group.requests.contains_key(user) {
        Standing::Requested
    } else {
        Standing::None
    }
}

/// Requests waiting in a group, the longest-waiting first.
pub fn requests(group: &Group) -> Vec<RequestRow> {
    let mut rows: Vec<_> = group
        .requests
        .iter()
        .map(|(user, request)| RequestRow { user: user.clone(), at: request.at })
        .collect();
    rows.sort_by(|a, b| (a.at, &a.user).cmp(&(b.at, &b.user)));
    rows
}

/// Members after `after`, and whether more follow. `online` says who is connected.
pub fn members(
    group: &Group,
    after: Option<&UserName>,
    online: impl Fn(&UserName) -> bool,
) -> (Vec<MemberRow>, bool) {
    let owner = group.owner();
    let mut rows =
        group.members.iter().filter(|(user, _)| after.is_none_or(|after| *user > after)).map(
            |(user, member)| MemberRow {
                user: user.clone(),
                since: member.since,
                owner: owner == Some(user),
                online: online(user),
            },
        );
    page(&mut rows)
}

/// Files of `groups` after `after` whose name `wanted` accepts, in order of group, name, content.
/// `holders` counts the devices online that hold a content wholly and in part.
pub fn files<'a>(
    groups: impl Iterator<Item = (GroupId, &'a Group)>,
    after: Option<&FileCursor>,
    wanted: impl Fn(&FileName) -> bool,
    holders: impl Fn(GroupId, ContentId) -> (u32, u32),
) -> (Vec<FileRow>, bool) {
    let mut groups: Vec<_> =
        groups.filter(|(_, group)| after.is_none_or(|after| group.name >= after.group)).collect();
    groups.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let mut rows = Vec::new();
    for (id, group) in groups {
        let mut labels: BTreeMap<(&FileName, ContentId), Vec<&Share>> = BTreeMap::new();
        for (content, listing) in &group.listings {
            for share in listing.shares.values().filter(|share| wanted(&share.name)) {
                labels.entry((&share.name, *content)).or_default().push(share);
            }
        }
        for ((name, content), shares) in labels {
            let seen = after
                .is_some_and(|a| (&group.name, name, &content) <= (&a.group, &a.name, &a.content));
            if seen {
                continue;
            }
            if rows.len() == MAX_LIST_ROWS {
                return (rows, true);
            }
            let sharers: BTreeSet<_> = shares.iter().map(|share| &share.user).collect();
            let (seeders, leechers) = holders(id, content);
            rows.push(FileRow {
                group: group.name.clone(),
                name: name.clone(),
                content,
                size: group.listings[&content].head.layout().size(),
                sharer_count: sharers.len() as u32,
                sharers: sharers.into_iter().take(NAMED_SHARERS).cloned().collect(),
                seeders,
                leechers,
                since: shares.iter().map(|share| share.at).min().unwrap_or(UnixMillis(0)),
            });
        }
    }
    (rows, false)
}

/// The one content that `file` means in a group.
///
/// # Errors
/// [`Refusal::NoSuchFile`] or [`Refusal::Ambiguous`] with candidates.
pub fn find_file(
    id: GroupId,
    group: &Group,
    group_name: &GroupName,
    file: &Selector,
) -> Result<FoundFile, Refusal> {
    let mut hits = group.listings.iter().filter_map(|(content, listing)| {
        let share = listing
            .shares
            .values()
            .filter(|share| selects(file, *content, share))
            .min_by(|a, b| (a.at, &a.user).cmp(&(b.at, &b.user)))?;
        Some((*content, listing, share))
    });
    let Some((content, listing, share)) = hits.next() else {
        return Err(Refusal::NoSuchFile { file: file.to_string(), group: group_name.clone() });
    };
    let others: Vec<_> = hits.map(|(content, ..)| content).collect();
    if !others.is_empty() {
        return Err(ambiguous(file, group_name, std::iter::once(content).chain(others)));
    }
    Ok(FoundFile {
        group: id,
        name: share.name.clone(),
        head: listing.head.encode(),
        sharer: share.user.clone(),
    })
}

/// Whether `file` means this share of `content`.
pub(super) fn selects(file: &Selector, content: ContentId, share: &Share) -> bool {
    match file {
        Selector::Id(id) => id.matches(content),
        Selector::Name(name) => share.name == *name,
        Selector::UserName(user, name) => share.user == *user && share.name == *name,
    }
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
    user: &UserName,
    device: PeerId,
) -> Result<Holder, Refusal> {
    let (id, group) = group_of_member(state, name, user)?;
    Ok(Holder {
        peer_id: device,
        user: user.clone(),
        group: id,
        group_name: name.clone(),
        membership: group.members[user].membership,
    })
}

fn page<T>(rows: &mut dyn Iterator<Item = T>) -> (Vec<T>, bool) {
    let page: Vec<_> = rows.take(MAX_LIST_ROWS).collect();
    let more = rows.next().is_some();
    (page, more)
}
