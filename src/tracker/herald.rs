//! Tells clients what durable changes mean to them, in log order, on their own connections.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::op::Change;
use super::presence::Presence;
use super::push::Push;
use super::state::{Effect, PUBLIC, State};
use super::store::Listener;
use crate::clock;
use crate::id::{GroupId, MembershipId, UserId};
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;

/// Passes changes on to whoever is online.
#[derive(Debug)]
pub struct Herald(pub Arc<Presence>);

impl Listener for Herald {
    fn committed(&self, state: &State, change: Option<&Change>, effects: &[Effect], fresh: bool) {
        // First who may no longer: nothing that follows is for them.
        let mut gone = Vec::new();
        for effect in effects {
            match effect {
                Effect::MemberLeft { group, user, membership } => {
                    self.member_left(state, *group, *user, *membership, fresh);
                }
                Effect::DeviceGone { user, device } => gone.push((*user, *device)),
                _ => {}
            }
        }
        self.devices_gone(state, &gone);
        for effect in effects {
            match effect {
                Effect::MemberJoined { group, user } if fresh => {
                    self.member_joined(state, *group, *user);
                }
                Effect::OwnerChanged { group, owner: Some(owner) } if fresh => {
                    let Some((group_name, owner)) = names(state, *group, *owner) else { continue };
                    let push = Push::OwnerChanged { group: group_name, owner };
                    self.tell_members(state, *group, None, &push);
                }
                Effect::UserRenamed { user } => {
                    let Some(name) = state.user_name(*user) else { continue };
                    self.0.rename(*user, &name);
                    self.0.push_to_users([*user], &Push::Renamed { user: name });
                }
                Effect::GroupRenamed { group } => {
                    let Some(name) = state.group_name(*group) else { continue };
                    let push = Push::GroupRenamed { id: *group, group: name };
                    self.tell_members(state, *group, None, &push);
                }
                _ => {}
            }
        }
        let Some(change) = change else { return };
        match change {
            // Under another name it may be listed still.
            Change::SharesWithdrawn { group, content, by_owner: true, .. }
                if state.head(*group, *content).is_none() =>
            {
                let push = Push::Unlisted { group: *group, content: *content };
                self.0.push_to_swarm(*group, *content, &push);
                self.0.end_swarm(*group, *content);
            }
            // What another tracker made long ago is no news.
            _ if !fresh => {}
            Change::JoinRequested { group, user, .. } => {
                let Some((group_name, user)) = names(state, *group, *user) else { return };
                let push = Push::JoinRequested { group: group_name, user };
                self.0.push_to_users(state.owner(*group), &push);
            }
            Change::JoinAccepted { group, user, .. } => self.answered(state, *group, *user, true),
            Change::JoinRejected { group, user, .. } => self.answered(state, *group, *user, false),
            Change::ShareAdded { group, user, .. } => {
                let shares = effects.iter().filter_map(|effect| match effect {
                    Effect::ShareBegan(share) => Some(share),
                    _ => None,
                });
                for share in shares {
                    let Some((group_name, sharer)) = names(state, *group, *user) else { continue };
                    let push = Push::FileListed {
                        group: group_name,
                        name: share.name.clone(),
                        content: share.head.content_id(),
                        size: share.head.layout().size(),
                        user: sharer,
                    };
                    self.tell_members(state, *group, Some(*user), &push);
                }
            }
            _ => {}
        }
    }
}

impl Herald {
    fn member_left(
        &self,
        state: &State,
        group: GroupId,
        user: Option<UserId>,
        membership: MembershipId,
        fresh: bool,
    ) {
        let push = Push::Revoked { memberships: vec![membership], devices: Vec::new() };
        self.tell_seeders(state, group, &push);
        // Another membership may have begun since, or have been there beside it.
        let user = user.filter(|user| state.member(group, *user).is_none());
        let Some(user) = user else { return };
        self.0.expel(user, group);
        let Some((group_name, name)) = names(state, group, user) else { return };
        // To all devices, also of whoever left by one of them.
        let push = Push::Removed { group: group_name.clone(), id: group };
        self.0.push_to_users([user], &push);
        if group != PUBLIC && fresh {
            let push = Push::MemberLeft { group: group_name, user: name };
            self.tell_members(state, group, None, &push);
        }
    }

    /// One push for all devices, once to everybody it may concern.
    fn devices_gone(&self, state: &State, gone: &[(UserId, PeerId)]) {
        // One that was enrolled anew since acts by that.
        let gone = gone.iter().filter(|(user, device)| state.user_of(*device) != Some(*user));
        let gone: Vec<_> = gone.copied().collect();
        if gone.is_empty() {
            return;
        }
        let now = clock::now();
        let at = |device: &PeerId| state.revoked_at(*device).unwrap_or(now);
        let devices = gone.iter().map(|(_, device)| (*device, at(device))).collect();
        let push = Push::Revoked { memberships: Vec::new(), devices };
        let users = gone.iter().map(|(user, _)| *user).collect::<BTreeSet<_>>();
        let groups = users.iter().filter_map(|user| state.user_index(*user));
        let groups: BTreeSet<_> = groups.flat_map(|user| &user.groups).map(|(g, _)| *g).collect();
        let members = groups.iter().flat_map(|group| state.members(*group));
        let members: BTreeSet<_> = members.map(|member| member.user).collect();
        self.0.push_to_users(members, &push);
        self.tell_seeders(state, PUBLIC, &push);
        gone.iter().for_each(|(user, device)| self.0.sign_out(*user, *device, now));
    }

    fn member_joined(&self, state: &State, group: GroupId, user: UserId) {
        let Some((group_name, name)) = names(state, group, user) else { return };
        let push = Push::MemberJoined { group: group_name, user: name };
        self.tell_members(state, group, Some(user), &push);
    }

    fn answered(&self, state: &State, group: GroupId, user: UserId, accepted: bool) {
        let Some(group_name) = state.group_name(group) else { return };
        let push = Push::RequestAnswered { group: group_name, accepted };
        self.0.push_to_users([user], &push);
    }

    /// Tells everybody who may serve tickets of a group.
    fn tell_seeders(&self, state: &State, group: GroupId, push: &Push) {
        match group {
            // Everybody is a member, few take part.
            PUBLIC => self.0.push_to_active(group, push),
            _ => self.0.push_to_users(state.members(group).map(|member| member.user), push),
        }
    }

    fn tell_members(&self, state: &State, group: GroupId, but: Option<UserId>, push: &Push) {
        match group {
            PUBLIC => self.0.push_to_all(push),
            _ => {
                let members = state.members(group).map(|member| member.user);
                self.0.push_to_users(members.filter(|user| Some(*user) != but), push);
            }
        }
    }
}

fn names(state: &State, group: GroupId, user: UserId) -> Option<(GroupName, UserName)> {
    Some((state.group_name(group)?, state.user_name(user)?))
}
