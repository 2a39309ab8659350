//! Accounts, groups and listings as plain ordered maps: the fold of ops.
//!
//! Applying an op never fails and never judges: rights were judged when the op was made. An op
//! that names something gone changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::op::Op;
use crate::clock::UnixMillis;
use crate::id::{GroupId, JoinRequestId, MembershipId, ShareId};
use crate::limits::REJECTED_WAIT;
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;

/// An account.
#[derive(Clone, Debug)]
pub struct User {
    /// Argon2id PHC string.
    pub password: String,
    /// Devices that may act for it, with the time each was enrolled.
    pub devices: BTreeMap<PeerId, UnixMillis>,
    /// Groups it is a member of.
    pub groups: BTreeSet<GroupId>,
    /// Shares it holds over all groups.
    pub share_count: usize,
}

/// One user's time in a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub membership: MembershipId,
    /// Since when.
    pub since: UnixMillis,
}

/// A request waiting for the owner.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Its id.
    pub id: JoinRequestId,
    /// Since when.
    pub at: UnixMillis,
}

/// One user's share of a content under a name.
#[derive(Clone, Debug)]
pub struct Share {
    /// Who.
    pub user: UserName,
    /// Under which name.
    pub name: FileName,
    /// Since when.
    pub at: UnixMillis,
}

/// A content listed in a group, with everybody who shares it.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What it is.
    pub head: Arc<ManifestHead>,
    /// Who shares it, and how it is called.
    pub shares: BTreeMap<ShareId, Share>,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Whether only members see it.
    pub hidden: bool,
    /// Who is in it.
    pub members: BTreeMap<UserName, Member>,
    /// Who asks to be.
    pub requests: BTreeMap<UserName, JoinRequest>,
    /// Who was turned away, and when.
    pub rejected: BTreeMap<UserName, UnixMillis>,
    /// What is shared.
    pub listings: BTreeMap<ContentId, Listing>,
}

impl Group {
    /// The owner: the longest-standing member, ties by membership id. A group without members
    /// has none and is archived.
    pub fn owner(&self) -> Option<&UserName> {
        self.members
            .iter()
            .min_by_key(|(_, member)| (member.since, member.membership))
            .map(|(user, _)| user)
    }
}

/// Everything a tracker must never forget.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Accounts by name.
    pub users: BTreeMap<UserName, User>,
    /// Enrolled devices.
    pub devices: BTreeMap<PeerId, UserName>,
    /// Groups by id.
    pub groups: BTreeMap<GroupId, Group>,
    /// Group names in use.
    pub group_names: BTreeMap<GroupName, GroupId>,
}

impl State {
    /// The living group of this name.
    pub fn group_named(&self, name: &GroupName) -> Option<(GroupId, &Group)> {
        let id = *self.group_names.get(name)?;
        let group = self.groups.get(&id)?;
        (!group.members.is_empty()).then_some((id, group))
    }

    /// Applies one op.
    pub fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::UserCreated { user, password } => {
                let (devices, groups) = (BTreeMap::new(), BTreeSet::new());
                let account = User { password, devices, groups, share_count: 0 };
                self.users.entry(user).or_insert(account);
            }
            Op::DeviceEnrolled { user, device, at } => self.enrol(user, device, at),
            Op::DeviceRemoved { device } => self.remove_device(device),
            Op::GroupCreated { group, name, hidden, user, membership, at } => {
                if self.groups.contains_key(&group) {
                    return;
                }
                self.group_names.insert(name.clone(), group);
                let members = BTreeMap::from([(user.clone(), Member { membership, since: at })]);
                let created = Group {
                    name,
                    hidden,
                    members,
                    requests: BTreeMap::new(),
                    rejected: BTreeMap::new(),
                    listings: BTreeMap::new(),
                };
                self.groups.insert(group, created);
                self.user_mut(&user, |account| account.groups.insert(group));
            }
            Op::JoinRequested { group, request, user, at } => {
                self.group_mut(group, |g| {
                    g.rejected.remove(&user);
                    g.requests.insert(user, JoinRequest { id: request, at });
                });
            }
            Op::JoinAccepted { group, request, membership, at } => {
                let user = self.group_mut(group, |g| {
                    let user = take_request(g, request)?;
                    g.members.insert(user.clone(), Member { membership, since: at });
                    Some(user)
                });
                if let Some(user) = user.flatten() {
                    self.user_mut(&user, |account| account.groups.insert(group));
                }
            }
            Op::JoinRejected { group, request, at } => {
                self.group_mut(group, |g| {
                    g.rejected.retain(|_, then| at.since(*then) < REJECTED_WAIT);
                    if let Some(user) = take_request(g, request) {
                        g.rejected.insert(user, at);
                    }
                });
            }
            Op::MembershipEnded { group, membership } => self.end_membership(group, membership),
            Op::ShareAdded { group, share, user, name, head, at } => {
                self.group_mut(group, |g| {
                    let listing = Listing { head: head.clone(), shares: BTreeMap::new() };
                    let listing = g.listings.entry(head.content_id()).or_insert(listing);
                    listing.shares.insert(share, Share { user: user.clone(), name, at });
                });
                self.user_mut(&user, |account| account.share_count += 1);
            }
            Op::ShareWithdrawn { group, content, share } => {
                self.withdraw(group, content, |id, _| id == share);
            }
        }
    }

    fn enrol(&mut self, user: UserName, device: PeerId, at: UnixMillis) {
        self.remove_device(device);
        if let Some(account) = self.users.get_mut(&user) {
            account.devices.insert(device, at);
            self.devices.insert(device, user);
        }
    }

    fn remove_device(&mut self, device: PeerId) {
        if let Some(user) = self.devices.remove(&device) {
            self.user_mut(&user, |account| account.devices.remove(&device));
        }
    }

    fn end_membership(&mut self, group: GroupId, membership: MembershipId) {
        let user = self.group_mut(group, |g| {
            let user = g.members.iter().find(|(_, m)| m.membership == membership)?.0.clone();
            g.members.remove(&user);
            Some(user)
        });
        let Some(user) = user.flatten() else { return };
        self.user_mut(&user, |account| account.groups.remove(&group));
        let contents: Vec<_> = self
            .groups
            .get(&group)
            .map(|g| g.listings.keys().copied().collect())
            .unwrap_or_default();
        for content in contents {
            self.withdraw(group, content, |_, share| share.user == user);
        }
        // Without members a group is nobody's to come back to.
        if self.groups.get(&group).is_some_and(|g| g.members.is_empty())
            && let Some(archived) = self.groups.remove(&group)
            && self.group_names.get(&archived.name) == Some(&group)
        {
            self.group_names.remove(&archived.name);
        }
    }

    /// Removes the shares of `content` that `gone` picks, and the listing with its last share.
    fn withdraw(
        &mut self,
        group: GroupId,
        content: ContentId,
        gone: impl Fn(ShareId, &Share) -> bool,
    ) {
        let mut users = Vec::new();
        self.group_mut(group, |g| {
            let Some(listing) = g.listings.get_mut(&content) else { return };
            listing.shares.retain(|id, share| {
                let goes = gone(*id, share);
                if goes {
                    users.push(share.user.clone());
                }
                !goes
            });
            if listing.shares.is_empty() {
                g.listings.remove(&content);
            }
        });
        for user in users {
            self.user_mut(&user, |account| account.share_count -= 1);
        }
    }

    fn group_mut<R>(&mut self, id: GroupId, change: impl FnOnce(&mut Group) -> R) -> Option<R> {
        self.groups.get_mut(&id).map(change)
    }

    fn user_mut<R>(&mut self, name: &UserName, change: impl FnOnce(&mut User) -> R) {
        if let Some(account) = self.users.get_mut(name) {
            change(account);
        }
    }
}

fn take_request(group: &mut Group, request: JoinRequestId) -> Option<UserName> {
    let user = group.requests.iter().find(|(_, r)| r.id == request)?.0.clone();
    group.requests.remove(&user);
    Some(user)
}
