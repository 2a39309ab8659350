//! Who sent what they should not have: suspects, bans, and pieces for which the manifest is suspected.
//!
//! A piece comes from one peer on one authenticated stream, so blame is certain: the first offence makes
//! a user suspect, the second banned for this content. When everybody who has a piece sends something
//! else than the manifest says, it is the manifest that is suspected, and nobody is blamed for that piece.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::UserName;
use crate::piece::PieceIndex;

/// Offences that make a user banned for this content: the first only makes it suspect.
const OFFENCES_TO_BAN: u32 = 2;

/// Pieces a user may deny that it said to have, beyond a few for each that it gave: one that lost its
/// disk tells so before it is asked much more.
const DENIALS: u32 = 16;

#[derive(Debug, Default)]
struct Record {
    /// Pieces of which something else was sent, or none of which was within reason.
    failed: BTreeMap<PieceIndex, u32>,
    denied: u32,
    good: u32,
}

/// What is held against the users of one download.
#[derive(Debug, Default)]
pub struct Blame {
    records: BTreeMap<UserName, Record>,
    /// Banned before this download began.
    outcasts: BTreeSet<UserName>,
    /// Pieces that everybody fails.
    suspected: BTreeSet<PieceIndex>,
}

impl Blame {
    /// Nothing held against anybody, but that `outcasts` are banned.
    pub fn new(outcasts: BTreeSet<UserName>) -> Self {
        Self { outcasts, ..Self::default() }
    }

    /// A user failed on a piece.
    pub fn failed(&mut self, user: &UserName, piece: PieceIndex) {
        *self.record(user).failed.entry(piece).or_default() += 1;
    }

    /// A user denied a piece that it had said to have.
    pub fn denied(&mut self, user: &UserName) {
        self.record(user).denied += 1;
    }

    /// A piece of this user was verified. Whoever failed on it is to blame after all.
    pub fn good(&mut self, user: &UserName, piece: PieceIndex) {
        self.record(user).good += 1;
        self.suspected.remove(&piece);
    }

    /// Looks at a piece that was failed, and that `holders` have: whether the manifest is suspected
    /// for it from now on.
    pub fn suspect(&mut self, piece: PieceIndex, holders: &BTreeSet<UserName>) -> bool {
        let failers = self.records.iter().filter(|(_, record)| record.failed.contains_key(&piece));
        let failers: BTreeSet<_> = failers.map(|(user, _)| user).collect();
        // One alone may simply lie.
        let everybody = failers.len() >= 2 && holders.iter().all(|user| failers.contains(user));
        everybody && self.suspected.insert(piece)
    }

    /// Whether a user failed on a piece.
    pub fn has_failed(&self, user: &UserName, piece: PieceIndex) -> bool {
        self.records.get(user).is_some_and(|record| record.failed.contains_key(&piece))
    }

    /// Whether a user failed on any piece.
    pub fn is_suspect(&self, user: &UserName) -> bool {
        self.offences(user) > 0
    }

    /// Whether nothing is taken from a user any more.
    pub fn is_banned(&self, user: &UserName) -> bool {
        self.outcasts.contains(user)
            || self.offences(user) >= OFFENCES_TO_BAN
            || self.records.get(user).is_some_and(|r| r.denied > DENIALS + 4 * r.good)
    }

    /// Pieces that everybody fails.
    pub fn suspected(&self) -> &BTreeSet<PieceIndex> {
        &self.suspected
    }

    fn offences(&self, user: &UserName) -> u32 {
        let failed = self.records.get(user).into_iter().flat_map(|record| &record.failed);
        failed.filter(|(piece, _)| !self.suspected.contains(piece)).map(|(_, count)| count).sum()
    }

    fn record(&mut self, user: &UserName) -> &mut Record {
        // Not `entry`: most users are known, and a name is a string to clone.
        if !self.records.contains_key(user) {
            self.records.insert(user.clone(), Record::default());
        }
        self.records.get_mut(user).expect("invariant: inserted above where it was not")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::testing::layout;

    fn user(name: &str) -> UserName {
        name.parse().expect("a name")
    }

    fn users(names: &[&str]) -> BTreeSet<UserName> {
        names.iter().map(|name| user(name)).collect()
    }

    fn pieces() -> [PieceIndex; 2] {
        [0, 1].map(|index| layout(2).piece(index).expect("exists"))
    }

    #[test]
    fn one_offence_makes_suspect_and_two_ban() {
        let mut blame = Blame::new(users(&["outcast"]));
        let [a, b] = pieces();
        assert!(blame.is_banned(&user("outcast")) && !blame.is_banned(&user("eve")));
        blame.failed(&user("eve"), a);
        assert!(blame.is_suspect(&user("eve")) && !blame.is_banned(&user("eve")));
        assert!(!blame.suspect(a, &users(&["eve"])), "one alone may lie");
        blame.failed(&user("eve"), b);
        assert!(blame.is_banned(&user("eve")));
    }

    #[test]
    fn what_everybody_fails_is_nobodys_fault_until_somebody_has_it() {
        let mut blame = Blame::default();
        let [a, b] = pieces();
        for name in ["ann", "bob"] {
            blame.failed(&user(name), a);
            blame.failed(&user(name), b);
        }
        assert!(blame.is_banned(&user("ann")));
        assert!(!blame.suspect(a, &users(&["ann", "bob", "cid"])), "cid was not asked yet");
        assert!(blame.suspect(a, &users(&["ann", "bob"])));
        assert!(blame.suspect(b, &users(&[])) && !blame.suspect(b, &users(&[])));
        assert!(!blame.is_suspect(&user("ann")) && !blame.is_banned(&user("bob")));
        blame.good(&user("cid"), a);
        assert!(blame.is_suspect(&user("ann")) && !blame.is_banned(&user("ann")));
        blame.good(&user("cid"), b);
        assert!(blame.is_banned(&user("ann")) && blame.suspected().is_empty());
    }

    #[test]
    fn who_denies_nearly_everything_it_said_to_have_is_banned() {
        let mut blame = Blame::default();
        let [a, _] = pieces();
        blame.good(&user("ann"), a);
        for _ in 0..DENIALS {
            blame.denied(&user("eve"));
            blame.denied(&user("ann"));
        }
        assert!(!blame.is_banned(&user("eve")));
        blame.denied(&user("eve"));
        blame.denied(&user("ann"));
        assert!(blame.is_banned(&user("eve")) && !blame.is_banned(&user("ann")));
    }
}
