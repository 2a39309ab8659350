//! The one door to durable state: `propose` a command, or `read` a view.
//!
//! This store keeps everything in memory. What it promises is the order: decide against the
//! current state, apply, and only then let anybody see or hear of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::decide::{Actor, Command, Outcome, decide};
use super::message::Refusal;
use super::op::Op;
use super::pages::Pages;
use super::state::State;
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{GroupId, MembershipId, RequestId};
use crate::limits::MAX_REMEMBERED_REQUESTS;
use crate::manifest::ManifestHead;
use crate::name::UserName;
use crate::peer_id::PeerId;

#[derive(Debug, Default)]
struct Inner {
    state: State,
    pages: Pages,
    granted: Remembered,
    /// Time of the latest change. Each is later than the one before, also when several fall into
    /// one millisecond or the wall clock steps back: who came first must never be a matter of luck.
    latest: UnixMillis,
}

/// What was answered to the latest granted changes, so that a repeat changes nothing and gets the
/// same answer.
#[derive(Debug, Default)]
struct Remembered {
    outcomes: HashMap<(PeerId, RequestId), Outcome>,
    order: VecDeque<(PeerId, RequestId)>,
}

impl Remembered {
    fn keep(&mut self, request: (PeerId, RequestId), outcome: Outcome) {
        if self.outcomes.insert(request, outcome).is_none() {
            self.order.push_back(request);
        }
        if self.order.len() > MAX_REMEMBERED_REQUESTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }
}

/// A tracker's state and its pages.
#[derive(Debug, Default)]
pub struct Store(Mutex<Inner>);

/// A granted command.
#[derive(Debug)]
pub struct Granted {
    /// What to answer.
    pub outcome: Outcome,
    /// For each membership that ended: whose, and who else is in the group.
    pub ended: Vec<Ended>,
}

/// A membership that ended.
#[derive(Debug)]
pub struct Ended {
    /// Whose it was.
    pub user: UserName,
    /// The group.
    pub group: GroupId,
    /// The membership.
    pub membership: MembershipId,
    /// Who must hear of it: the members left.
    pub members: Vec<UserName>,
}

impl Store {
    /// Judges and applies a command.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub async fn propose(
        &self,
        actor: &Actor,
        request: RequestId,
        command: &Command,
        now: UnixMillis,
    ) -> Result<Granted, Refusal> {
        let mut inner = self.lock();
        let Inner { state, pages, granted, latest } = &mut *inner;
        if let Some(outcome) = granted.outcomes.get(&(actor.device, request)) {
            return Ok(Granted { outcome: outcome.clone(), ended: Vec::new() });
        }
        let now = now.max(latest.plus(Duration::from_millis(1)));
        let (ops, outcome) = decide(state, actor, request, command, now, pages)?;
        let mut ended = Vec::new();
        for op in &ops {
            let leaver = leaver(state, op);
            let withdrawn = withdrawn_pages(state, op);
            state.apply(op);
            if let Op::ShareAdded { user, head, .. } = op {
                pages.hold(user, head);
            }
            for (user, head) in &withdrawn {
                pages.let_go(user, head);
            }
            if let Some((user, group, membership)) = leaver {
                let members = state
                    .groups
                    .get(&group)
                    .map(|g| g.members.keys().cloned().collect())
                    .unwrap_or_default();
                ended.push(Ended { user, group, membership, members });
            }
        }
        if !ops.is_empty() {
            *latest = now;
            granted.keep((actor.device, request), outcome.clone());
        }
        Ok(Granted { outcome, ended })
    }

    /// Whether this device was granted this request before.
    pub fn has_granted(&self, actor: PeerId, request: RequestId) -> bool {
        self.lock().granted.outcomes.contains_key(&(actor, request))
    }

    /// Reads the state.
    pub fn read<R>(&self, view: impl FnOnce(&State) -> R) -> R {
        view(&self.lock().state)
    }

    /// Keeps a checked page for a share that `user` is about to finish.
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota.
    pub fn put_page(&self, user: &UserName, hash: Blake3Hash, bytes: &[u8]) -> Result<(), Refusal> {
        self.lock().pages.put(user, hash, bytes)
    }

    /// Lets go of pages kept by [`Self::put_page`].
    pub fn release_pages(&self, user: &UserName, hashes: &[Blake3Hash]) {
        self.lock().pages.release(user, hashes);
    }

    /// The bytes of a page.
    pub fn page(&self, hash: &Blake3Hash) -> Option<Arc<[u8]>> {
        self.lock().pages.find(hash)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose membership `op` ends.
fn leaver(state: &State, op: &Op) -> Option<(UserName, GroupId, MembershipId)> {
    let Op::MembershipEnded { group, membership } = op else { return None };
    let members = &state.groups.get(group)?.members;
    let (user, _) = members.iter().find(|(_, m)| m.membership == *membership)?;
    Some((user.clone(), *group, *membership))
}

/// The page holdings that `op` ends, by user.
fn withdrawn_pages(state: &State, op: &Op) -> Vec<(UserName, Arc<ManifestHead>)> {
    let mut ended = Vec::new();
    match op {
        Op::ShareWithdrawn { group, content, share } => {
            let listing = state.groups.get(group).and_then(|g| g.listings.get(content));
            if let Some((listing, row)) = listing.and_then(|l| Some((l, l.shares.get(share)?))) {
                ended.push((row.user.clone(), listing.head.clone()));
            }
        }
        Op::MembershipEnded { group, .. } => {
            let user = leaver(state, op).map(|(user, ..)| user);
            let listings = state.groups.get(group).into_iter().flat_map(|g| g.listings.values());
            for listing in listings {
                for row in listing.shares.values().filter(|row| Some(&row.user) == user.as_ref()) {
                    ended.push((row.user.clone(), listing.head.clone()));
                }
            }
        }
        _ => {}
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::GroupName;

    #[tokio::test]
    async fn the_founder_stays_the_owner_within_one_millisecond_and_when_the_clock_steps_back() {
        let lab: GroupName = "lab".parse().expect("name");
        // The founder's and the other's ids in both orders: a tie would fall either way.
        for seed in 0..8 {
            let store = Store::default();
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut propose = async |name: &str, command: Command, now: u64| {
                let user: UserName = name.parse().expect("name");
                let device = PeerId(crate::hash::blake3(name.as_bytes()).0);
                let actor = Actor { device, user: Some(user) };
                let id = RequestId::random(&mut rng);
                store.propose(&actor, id, &command, UnixMillis(now)).await.expect("granted")
            };
            for name in ["alice", "bob"] {
                let user = name.parse().expect("name");
                let command = Command::CreateUser { user, password: "phc".to_owned() };
                propose(name, command, 1000).await;
            }
            let bob = "bob".parse().expect("name");
            let create = Command::CreateGroup { group: lab.clone(), hidden: false };
            propose("alice", create, 1000).await;
            propose("bob", Command::JoinGroup { group: lab.clone() }, 1000).await;
            let accept = Command::AcceptRequest { group: lab.clone(), user: bob };
            propose("alice", accept, 7).await;
            let owner = store.read(|state| state.group_named(&lab)?.1.owner().cloned());
            assert_eq!(owner, Some("alice".parse().expect("name")));
        }
    }
}
