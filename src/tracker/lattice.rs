//! What makes the fold of ops come out alike in any order: values that only ever move one way.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::OriginId;

/// When and by whom an op was made, and its number there. No two ops have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The op's clock.
    pub at: UnixMillis,
    /// Its origin.
    pub origin: OriginId,
    /// Its number in that origin.
    pub seq: u64,
}

/// A value of which the earliest claim counts: something that came to be once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct First<T> {
    /// When.
    pub stamp: Stamp,
    /// What.
    pub value: T,
}

impl<T> First<T> {
    /// Whether a claim of `stamp` comes before this one.
    pub fn yields_to(&self, stamp: Stamp) -> bool {
        stamp < self.stamp
    }
}

/// A value of which the latest word counts: a register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last<T> {
    /// When.
    pub stamp: Stamp,
    /// What.
    pub value: T,
}

impl<T> Last<T> {
    /// Whether a word of `stamp` comes after this one.
    pub fn yields_to(&self, stamp: Stamp) -> bool {
        stamp > self.stamp
    }
}
