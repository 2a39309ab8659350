//! Which ops somebody has: a number for each origin, and the origins that are complete for good.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{OpId, OriginId};
use crate::limits::{MAX_ORIGINS, MAX_SEALED};

/// A version vector: the ops of each origin up to a number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector(BTreeMap<OriginId, u64>);

impl Vector {
    /// Up to which number the ops of an origin are in it; 0 for none.
    pub fn get(&self, origin: OriginId) -> u64 {
        self.0.get(&origin).copied().unwrap_or(0)
    }

    /// Ops of `origin` up to `seq` are in it from now on.
    pub fn raise(&mut self, origin: OriginId, seq: u64) {
        let known = self.0.entry(origin).or_default();
        *known = seq.max(*known);
    }

    /// What is in `other` is in it from now on.
    pub fn join(&mut self, other: &Self) {
        other.iter().for_each(|(origin, seq)| self.raise(origin, seq));
    }

    /// Nothing of an origin is in it any more.
    pub fn forget(&mut self, origin: OriginId) {
        self.0.remove(&origin);
    }

    /// Every origin in it, and its number.
    pub fn iter(&self) -> impl Iterator<Item = (OriginId, u64)> {
        self.0.iter().map(|(origin, seq)| (*origin, *seq))
    }

    /// How many ops are in `self` and not in `other`.
    pub fn ahead_of(&self, other: &Knowledge) -> u64 {
        self.iter().map(|(origin, seq)| seq.saturating_sub(other.get(origin))).sum()
    }
}

impl FromIterator<(OriginId, u64)> for Vector {
    fn from_iter<I: IntoIterator<Item = (OriginId, u64)>>(all: I) -> Self {
        let mut vector = Self::default();
        all.into_iter().for_each(|(origin, seq)| vector.raise(origin, seq));
        vector
    }
}

/// All the ops somebody has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// Of origins that may still grow, or that somebody still misses something of.
    pub vector: Vector,
    /// Origins that ended and that everybody has whole, with their last numbers.
    pub sealed: Vector,
}

impl Knowledge {
    /// Up to which number the ops of an origin are known; 0 for none.
    pub fn get(&self, origin: OriginId) -> u64 {
        self.vector.get(origin).max(self.sealed.get(origin))
    }

    /// Whether an op is known.
    pub fn covers(&self, op: OpId) -> bool {
        op.seq <= self.get(op.origin)
    }

    /// Whether everything in `other` is known.
    pub fn covers_all(&self, other: &Self) -> bool {
        let mut all = other.vector.iter().chain(other.sealed.iter());
        all.all(|(origin, seq)| seq <= self.get(origin))
    }

    /// What both know.
    pub fn meet(&self, other: &Self) -> Self {
        let all = self.vector.iter().chain(self.sealed.iter());
        let both = all.map(|(origin, seq)| (origin, seq.min(other.get(origin))));
        Self { vector: both.filter(|(_, seq)| *seq > 0).collect(), sealed: Vector::default() }
    }

    /// Whether it is no larger than what mtq keeps.
    pub fn is_bounded(&self) -> bool {
        self.vector.0.len() <= MAX_ORIGINS && self.sealed.0.len() <= MAX_SEALED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(all: &[(u8, u64)]) -> Vector {
        all.iter().map(|(origin, seq)| (OriginId([*origin; 16]), *seq)).collect()
    }

    #[test]
    fn sealed_origins_count_as_known() {
        let mine = Knowledge { vector: vector(&[(1, 5), (2, 3)]), sealed: vector(&[(3, 9)]) };
        let theirs = Knowledge { vector: vector(&[(1, 4), (3, 9)]), sealed: vector(&[(2, 3)]) };
        assert!(mine.covers_all(&theirs));
        assert!(!theirs.covers_all(&mine));
        assert_eq!(mine.vector.ahead_of(&theirs), 1);
        let both = mine.meet(&theirs);
        assert_eq!(both.vector, vector(&[(1, 4), (2, 3), (3, 9)]));
        assert!(mine.covers(OpId { origin: OriginId([3; 16]), seq: 9 }));
        assert!(!mine.covers(OpId { origin: OriginId([3; 16]), seq: 10 }));
        assert!(!mine.covers(OpId { origin: OriginId([4; 16]), seq: 1 }));
    }
}
