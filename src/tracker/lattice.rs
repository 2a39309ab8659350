//! What makes the fold of ops come out alike in any order: values that only ever move one way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::vector::Knowledge;
use crate::clock::UnixMillis;
use crate::id::{OpId, OriginId, RequestId};
use crate::peer_id::PeerId;

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

impl Stamp {
    /// Before every other.
    pub const EARLIEST: Self = Self { at: UnixMillis(0), origin: OriginId([0; 16]), seq: 0 };

    /// After every other.
    pub const LATEST: Self =
        Self { at: UnixMillis(u64::MAX), origin: OriginId([0xff; 16]), seq: u64::MAX };

    /// Which op has it.
    pub fn op(&self) -> OpId {
        OpId { origin: self.origin, seq: self.seq }
    }
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

/// Who asked for something, under which id: a request is granted once.
pub type RequestKey = (PeerId, RequestId);

/// A value of which the latest word counts, when every word has a request of its own.
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

/// One word of a register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word<T> {
    /// The request that was granted.
    pub request: RequestKey,
    /// When.
    pub stamp: Stamp,
    /// What.
    pub value: T,
}

/// A register: the latest word counts. A request that two trackers granted is one word, of the
/// time at which it was granted first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words<T> {
    last: Word<T>,
    /// What would count if the last one turned out to be older.
    others: BTreeMap<RequestKey, Word<T>>,
}

impl<T> Words<T> {
    /// The first word.
    pub fn new(word: Word<T>) -> Self {
        Self { last: word, others: BTreeMap::new() }
    }

    /// The word that counts.
    pub fn last(&self) -> &Word<T> {
        &self.last
    }

    /// Hears a word.
    pub fn say(&mut self, word: Word<T>) {
        if word.request == self.last.request {
            if word.stamp < self.last.stamp {
                self.last = word;
                self.choose();
            }
            return;
        }
        if let Some(known) = self.others.get_mut(&word.request) {
            if word.stamp < known.stamp {
                *known = word;
            }
            return;
        }
        let older = match word.stamp > self.last.stamp {
            true => std::mem::replace(&mut self.last, word),
            false => word,
        };
        self.others.insert(older.request, older);
    }

    /// The latest word becomes the one that counts.
    fn choose(&mut self) {
        let latest = self.others.values().max_by_key(|word| word.stamp);
        let latest = latest.filter(|word| word.stamp > self.last.stamp).map(|word| word.request);
        if let Some(word) = latest.and_then(|request| self.others.remove(&request)) {
            let older = std::mem::replace(&mut self.last, word);
            self.others.insert(older.request, older);
        }
    }

    /// Forgets words that can never count any more, everybody knowing what `known` has.
    pub fn settle(&mut self, known: &Knowledge) {
        if !known.covers(self.last.stamp.op()) {
            return;
        }
        self.others.retain(|_, word| !known.covers(word.stamp.op()));
    }

    /// All words, in no order.
    pub fn into_all(self) -> impl Iterator<Item = Word<T>> {
        std::iter::once(self.last).chain(self.others.into_values())
    }

    /// Whether any word is not in `known`.
    pub fn is_news(&self, known: &Knowledge) -> bool {
        !known.covers(self.last.stamp.op())
            || self.others.values().any(|word| !known.covers(word.stamp.op()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(all: &[(u8, u64)]) -> Words<u64> {
        let word = |&(request, at): &(u8, u64)| Word {
            request: (PeerId([1; 32]), RequestId([request; 16])),
            stamp: Stamp { at: UnixMillis(at), origin: OriginId([2; 16]), seq: at },
            value: at * 256 + u64::from(request),
        };
        let mut words = Words::new(word(&all[0]));
        all[1..].iter().for_each(|said| words.say(word(said)));
        words
    }

    #[test]
    fn a_request_granted_twice_counts_from_the_first_time() {
        // Request 1 was granted at 5; its repeat at 20 comes after request 2 and changes nothing.
        assert_eq!(words(&[(1, 20), (2, 10), (1, 5)]).last().stamp.at, UnixMillis(10));
        assert_eq!(words(&[(2, 10), (1, 20)]).last().stamp.at, UnixMillis(20));
        assert_eq!(words(&[(1, 5), (2, 10), (1, 20)]).last().stamp.at, UnixMillis(10));
    }

    proptest! {
        #[test]
        fn the_order_of_words_makes_no_difference(
            mut said in prop::collection::vec((0u8..4, 0u64..50), 1..20),
            seed in any::<u64>(),
        ) {
            // No two words have the same stamp.
            said.sort_by_key(|(_, at)| *at);
            said.dedup_by_key(|(_, at)| *at);
            let one = words(&said);
            let mut rng = fastrand::Rng::with_seed(seed);
            let again = said.clone();
            said.extend(again.into_iter().filter(|_| rng.bool()));
            rng.shuffle(&mut said);
            prop_assert_eq!(one, words(&said));
        }
    }
}
