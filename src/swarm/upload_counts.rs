//! What was sent, to whom, and what became of it.
//!
//! Kept by swarm and user: a peer that is gone leaves its sums. Forgotten with the swarm.

use std::collections::{BTreeMap, HashMap};

use super::message::Nack;
use super::session::SwarmKey;
use crate::limits::MAX_COUNTED_USERS;
use crate::name::UserName;

/// Sums of one user in one swarm, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadCounts {
    /// Pieces delivered whole.
    pub pieces: u64,
    /// Bytes of pieces handed to QUIC.
    pub sent_bytes: u64,
    /// Of those, bytes of pieces that were acknowledged whole.
    pub delivered_bytes: u64,
    /// Of those, bytes of pieces that were reset before; what is neither is on its way.
    pub cut_off_bytes: u64,
    /// Requests refused.
    pub refused: Refusals,
}

/// Requests refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// The piece is not here.
    pub not_have: u64,
    /// The file changed.
    pub changed: u64,
    /// Too much was asked at once, or the piece could not be read.
    pub busy: u64,
    /// The ticket did not hold any more.
    pub revoked: u64,
    /// We were shutting down.
    pub going_away: u64,
    /// The swarm was not open, or not any more.
    pub no_swarm: u64,
}

impl Refusals {
    /// Counts one.
    pub fn count(&mut self, nack: &Nack) {
        *match nack {
            Nack::NotHave { .. } => &mut self.not_have,
            Nack::Changed => &mut self.changed,
            Nack::Busy => &mut self.busy,
            Nack::Revoked => &mut self.revoked,
            Nack::GoingAway => &mut self.going_away,
            Nack::NoSwarm => &mut self.no_swarm,
        } += 1;
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        let Self { not_have, changed, busy, revoked, going_away, no_swarm } = self;
        not_have + changed + busy + revoked + going_away + no_swarm
    }
}

/// The sums of all swarms.
#[derive(Debug, Default)]
pub struct Uploads {
    swarms: HashMap<SwarmKey, OfSwarm>,
}

#[derive(Debug, Default)]
struct OfSwarm {
    all: UploadCounts,
    users: BTreeMap<UserName, UploadCounts>,
}

impl Uploads {
    /// Counts something for a user in a swarm.
    pub fn count(&mut self, key: SwarmKey, user: &UserName, count: impl Fn(&mut UploadCounts)) {
        let swarm = self.swarms.entry(key).or_default();
        count(&mut swarm.all);
        if let Some(counts) = swarm.users.get_mut(user) {
            count(counts);
        } else if swarm.users.len() < MAX_COUNTED_USERS {
            count(swarm.users.entry(user.clone()).or_default());
        }
    }

    /// The sums of a swarm.
    pub fn all(&self, key: SwarmKey) -> UploadCounts {
        self.swarms.get(&key).map(|swarm| swarm.all).unwrap_or_default()
    }

    /// The sums of each user in a swarm, by name.
    pub fn users(&self, key: SwarmKey) -> Vec<(UserName, UploadCounts)> {
        let users = self.swarms.get(&key).map(|swarm| swarm.users.iter());
        let users = users.into_iter().flatten();
        users.map(|(user, counts)| (user.clone(), *counts)).collect()
    }

    /// Forgets a swarm.
    pub fn forget(&mut self, key: SwarmKey) {
        self.swarms.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::manifest::ContentId;

    #[test]
    fn users_beyond_the_bound_are_in_the_sum_alone() {
        let key = SwarmKey { group: GroupId([1; 16]), content: ContentId([2; 32]) };
        let mut uploads = Uploads::default();
        for number in 0..MAX_COUNTED_USERS + 10 {
            let user = format!("u{number}").parse().expect("a name");
            uploads.count(key, &user, |counts| counts.pieces += 1);
            uploads.count(key, &user, |counts| counts.refused.count(&Nack::Busy));
        }
        assert_eq!(uploads.users(key).len(), MAX_COUNTED_USERS);
        let all = uploads.all(key);
        assert_eq!((all.pieces, all.refused.all()), (1_010, 1_010));
        uploads.forget(key);
        assert_eq!(uploads.all(key), UploadCounts::default());
    }
}
