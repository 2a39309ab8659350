//! The groups an agent holds tickets for: what each is called now, and when its ticket is due.
//!
//! A group is its id; names may move from one group to another, and never take anything with them.

use std::collections::HashMap;

use crate::clock::UnixMillis;
use crate::id::GroupId;
use crate::limits::TICKET_LIFE;
use crate::name::GroupName;

/// What is known of a group.
#[derive(Debug)]
pub struct Held {
    name: GroupName,
    /// Higher for each naming: of two groups of one name, the later named is meant.
    named: u64,
    renew_at: UnixMillis,
    /// Whether a ticket ever came; until then its name is hearsay.
    proven: bool,
}

/// Groups and their tickets.
#[derive(Debug, Default)]
pub struct Groups {
    held: HashMap<GroupId, Held>,
    namings: u64,
}

impl Groups {
    /// The group of this name.
    pub fn id_of(&self, name: &GroupName) -> Option<GroupId> {
        let called = self.held.iter().filter(|(_, held)| held.name == *name);
        called.max_by_key(|(_, held)| held.named).map(|(id, _)| *id)
    }

    /// What this group is called, when a ticket said so.
    pub fn name_of(&self, id: GroupId) -> Option<GroupName> {
        self.held.get(&id).filter(|held| held.proven).map(|held| held.name.clone())
    }

    /// Whether a ticket ever came for this group.
    pub fn is_proven(&self, id: GroupId) -> bool {
        self.held.get(&id).is_some_and(|held| held.proven)
    }

    /// This group was called `name` when it was last heard of; a ticket for it is due at once.
    pub fn expect(&mut self, id: GroupId, name: &GroupName) {
        self.namings += 1;
        let (named, renew_at) = (self.namings, UnixMillis::default());
        let held = Held { name: name.clone(), named, renew_at, proven: false };
        self.held.entry(id).or_insert(held);
    }

    /// Whether this group is held.
    pub fn contains(&self, id: GroupId) -> bool {
        self.held.contains_key(&id)
    }

    /// A ticket came for the group that is called `name` now, to be renewed at `renew_at`. Not
    /// taken when another group is known by that name: its new name has not come yet.
    pub fn hold(&mut self, id: GroupId, name: &GroupName, renew_at: UnixMillis) -> bool {
        if self.id_of(name).is_some_and(|known| known != id && self.is_proven(known)) {
            return false;
        }
        self.namings += 1;
        let named = self.namings;
        let held = Held { name: name.clone(), named, renew_at, proven: true };
        self.held.insert(id, held);
        true
    }

    /// The group is called `name` now; returns what it was called, if that is something else.
    pub fn rename(&mut self, id: GroupId, name: &GroupName) -> Option<GroupName> {
        let held = self.held.get_mut(&id).filter(|held| held.name != *name)?;
        self.namings += 1;
        held.named = self.namings;
        Some(std::mem::replace(&mut held.name, name.clone()))
    }

    /// The ticket of a group is due at `now`, if not before.
    pub fn make_due(&mut self, id: GroupId, now: UnixMillis) {
        if let Some(held) = self.held.get_mut(&id) {
            held.renew_at = held.renew_at.min(now);
        }
    }

    /// Groups whose ticket is due at `now`.
    pub fn due(&self, now: UnixMillis) -> Vec<(GroupId, GroupName)> {
        let due = self.held.iter().filter(|(_, held)| !held.proven || held.renew_at <= now);
        due.map(|(id, held)| (*id, held.name.clone())).collect()
    }

    /// Whether the ticket of a group was due for longer than any ticket lives.
    pub fn is_over(&self, id: GroupId, now: UnixMillis) -> bool {
        let over = |held: &Held| held.proven && held.renew_at.plus(TICKET_LIFE) <= now;
        self.held.get(&id).is_some_and(over)
    }

    /// Forgets the group of this name; returns what was known of it.
    pub fn take(&mut self, name: &GroupName) -> Option<(GroupId, Held)> {
        let id = self.id_of(name)?;
        Some((id, self.held.remove(&id)?))
    }

    /// Knows again what was taken.
    pub fn put_back(&mut self, id: GroupId, held: Held) {
        self.held.entry(id).or_insert(held);
    }

    /// Forgets a group; says whether it was held.
    pub fn remove(&mut self, id: GroupId) -> bool {
        self.held.remove(&id).is_some()
    }

    /// Forgets all; returns which they were.
    pub fn clear(&mut self) -> Vec<GroupId> {
        self.held.drain().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: GroupId = GroupId([1; 16]);
    const TWO: GroupId = GroupId([2; 16]);

    fn name(text: &str) -> GroupName {
        text.parse().expect("a name")
    }

    #[test]
    fn a_name_that_means_another_group_takes_nothing_with_it() {
        let mut groups = Groups::default();
        assert!(groups.hold(ONE, &name("lab"), UnixMillis(5)));
        assert!(!groups.hold(TWO, &name("lab"), UnixMillis(5)), "the push has not come yet");
        assert_eq!(groups.rename(ONE, &name("lab~1a2b")), Some(name("lab")));
        assert_eq!(groups.rename(ONE, &name("lab~1a2b")), None, "said by the other tracker");
        assert!(groups.hold(TWO, &name("lab"), UnixMillis(9)));
        assert_eq!(groups.id_of(&name("lab")), Some(TWO));
        assert_eq!(groups.id_of(&name("lab~1a2b")), Some(ONE));
        assert_eq!(groups.due(UnixMillis(5)), [(ONE, name("lab~1a2b"))]);
    }

    #[test]
    fn two_groups_may_swap_their_names() {
        let mut groups = Groups::default();
        groups.hold(ONE, &name("a"), UnixMillis(1));
        groups.hold(TWO, &name("b"), UnixMillis(1));
        groups.rename(ONE, &name("b"));
        assert_eq!(groups.id_of(&name("b")), Some(ONE), "named so later");
        groups.rename(TWO, &name("a"));
        assert_eq!((groups.id_of(&name("a")), groups.id_of(&name("b"))), (Some(TWO), Some(ONE)));
    }

    #[test]
    fn a_name_from_before_is_hearsay_until_a_ticket_comes() {
        let mut groups = Groups::default();
        groups.expect(ONE, &name("lab"));
        assert!(groups.contains(ONE) && !groups.is_proven(ONE));
        assert_eq!(groups.name_of(ONE), None, "nothing is said of it yet");
        assert_eq!(groups.due(UnixMillis(0)), [(ONE, name("lab"))]);
        assert!(!groups.is_over(ONE, UnixMillis(u64::MAX)), "however long that takes");
        // The name is another group's now.
        assert!(groups.hold(TWO, &name("lab"), UnixMillis(9)));
        assert_eq!(groups.id_of(&name("lab")), Some(TWO));
        assert_eq!(groups.rename(ONE, &name("lab~1a2b")), Some(name("lab")));
        assert!(groups.hold(ONE, &name("lab~1a2b"), UnixMillis(9)));
        assert_eq!(groups.name_of(ONE), Some(name("lab~1a2b")));
        groups.expect(ONE, &name("old"));
        assert_eq!(groups.name_of(ONE), Some(name("lab~1a2b")), "a ticket knows better");
    }

    #[test]
    fn a_ticket_that_cannot_be_renewed_is_over_some_day() {
        let mut groups = Groups::default();
        groups.hold(ONE, &name("lab"), UnixMillis(5));
        let end = UnixMillis(5).plus(TICKET_LIFE);
        assert!(!groups.is_over(ONE, UnixMillis(end.0 - 1)) && groups.is_over(ONE, end));
        assert!(groups.remove(ONE) && !groups.remove(ONE));
        groups.hold(TWO, &name("b"), UnixMillis(5));
        assert_eq!((groups.clear(), groups.contains(TWO)), (vec![TWO], false));
    }
}
