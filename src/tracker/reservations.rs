//! Names that are about to be registered: of two trackers asked for one name at once, one gives it.
//!
//! A tracker that is about to register a name tells the others. Whoever hears of an earlier claim
//! gives up its own unanswered one; a later one is refused, and so is a name that is taken.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::state::State;
use crate::clock::UnixMillis;
use crate::limits::{CLAIM_LIFE, MAX_CLAIMS};
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;

/// A name that two could want.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WantedName {
    /// Of an account.
    User(UserName),
    /// Of a group.
    Group(GroupName),
}

impl WantedName {
    /// Whether something else than `claim` is for has it.
    pub fn is_taken(&self, state: &State, claim: Claim) -> bool {
        match self {
            Self::User(name) => state.user_named(name).is_some_and(|id| id.0 != claim.id),
            Self::Group(name) => state.group_named(name).is_some_and(|id| id.0 != claim.id),
        }
    }
}

/// One wish for it; the earlier comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Claim {
    /// When it was made.
    pub at: UnixMillis,
    /// What shall have the name: the same when a client asks two trackers for one thing.
    pub id: [u8; 16],
}

#[derive(Clone, Copy, Debug)]
struct Held {
    claim: Claim,
    /// The tracker that asked; nothing for this one.
    by: Option<PeerId>,
    until: UnixMillis,
}

/// The names reserved at one tracker.
#[derive(Debug, Default)]
pub struct Reservations(HashMap<WantedName, Held>);

impl Reservations {
    /// This tracker is about to ask the others. Returns whether nobody else here or there has
    /// reserved the name.
    pub fn begin(&mut self, name: &WantedName, claim: Claim, now: UnixMillis) -> bool {
        let other = self.holder(name, now).filter(|held| held.claim.id != claim.id);
        if other.is_some() || self.is_full(now) {
            return false;
        }
        let until = now.plus(CLAIM_LIFE);
        self.0.insert(name.clone(), Held { claim, by: None, until });
        true
    }

    /// Another tracker asks for a name; `taken` says whether it is registered here. Returns
    /// whether it may have it.
    pub fn ask(
        &mut self,
        by: PeerId,
        name: &WantedName,
        claim: Claim,
        taken: bool,
        now: UnixMillis,
    ) -> bool {
        if taken {
            return false;
        }
        let stands = self.holder(name, now).is_some_and(|held| {
            // The same thing asked of two trackers, and another try of the same tracker.
            held.claim.id != claim.id && held.by != Some(by) && held.claim < claim
        });
        if stands || self.is_full(now) {
            return false;
        }
        let until = now.plus(CLAIM_LIFE);
        self.0.insert(name.clone(), Held { claim, by: Some(by), until });
        true
    }

    /// Whether this tracker's claim still stands: nobody had an earlier one, and it is not over.
    pub fn stands(&self, name: &WantedName, claim: Claim, now: UnixMillis) -> bool {
        self.holder(name, now).is_some_and(|held| held.claim.id == claim.id)
    }

    /// This tracker's claim is done with, granted or not.
    pub fn end(&mut self, name: &WantedName, claim: Claim) {
        if self.0.get(name).is_some_and(|held| held.claim == claim && held.by.is_none()) {
            self.0.remove(name);
        }
    }

    fn holder(&self, name: &WantedName, now: UnixMillis) -> Option<&Held> {
        self.0.get(name).filter(|held| now < held.until)
    }

    fn is_full(&mut self, now: UnixMillis) -> bool {
        if self.0.len() >= MAX_CLAIMS {
            self.0.retain(|_, held| now < held.until);
        }
        self.0.len() >= MAX_CLAIMS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000);

    fn name() -> WantedName {
        WantedName::Group("lab".parse().expect("a name"))
    }

    fn claim(at: u64, id: u8) -> Claim {
        Claim { at: UnixMillis(at), id: [id; 16] }
    }

    fn tracker(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn of_two_claims_the_earlier_wins_whoever_hears_of_it_first() {
        let (early, late) = (claim(10, 7), claim(11, 3));
        let (mut a, mut b) = (Reservations::default(), Reservations::default());
        assert!(a.begin(&name(), early, NOW));
        assert!(b.begin(&name(), late, NOW));
        assert!(!a.ask(tracker(2), &name(), late, false, NOW));
        assert!(b.ask(tracker(1), &name(), early, false, NOW));
        assert!(a.stands(&name(), early, NOW));
        assert!(!b.stands(&name(), late, NOW));
    }

    #[test]
    fn what_is_registered_beats_what_is_reserved() {
        let mut a = Reservations::default();
        assert!(!a.ask(tracker(2), &name(), claim(1, 1), true, NOW));
        assert!(a.begin(&name(), claim(5, 2), NOW));
    }

    #[test]
    fn a_claim_is_over_after_a_while_and_one_that_is_held_stops_others() {
        let mut a = Reservations::default();
        assert!(a.ask(tracker(2), &name(), claim(9, 1), false, NOW));
        assert!(!a.begin(&name(), claim(5, 2), NOW), "it was given to another tracker");
        assert!(a.ask(tracker(2), &name(), claim(12, 4), false, NOW), "which tries again");
        let later = NOW.plus(CLAIM_LIFE);
        assert!(a.begin(&name(), claim(20, 2), later));
        assert!(!a.stands(&name(), claim(20, 2), later.plus(CLAIM_LIFE)));
        a.end(&name(), claim(20, 2));
        assert!(!a.stands(&name(), claim(20, 2), later));
    }

    #[test]
    fn one_thing_asked_of_two_trackers_is_no_contest() {
        let (mut a, mut b) = (Reservations::default(), Reservations::default());
        assert!(a.begin(&name(), claim(10, 7), NOW));
        assert!(b.begin(&name(), claim(12, 7), NOW));
        assert!(a.ask(tracker(2), &name(), claim(12, 7), false, NOW));
        assert!(b.ask(tracker(1), &name(), claim(10, 7), false, NOW));
        assert!(a.stands(&name(), claim(10, 7), NOW) && b.stands(&name(), claim(12, 7), NOW));
    }
}
