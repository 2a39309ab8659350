//! The connections that others began and on which no valid ticket was shown yet.
//!
//! Anybody can begin them, so there are few, and when there are too many, one of the address with
//! the most of them goes: the oldest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::limits::MAX_STRANGERS;

/// Who they are, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Strangers {
    from: BTreeMap<u64, IpAddr>,
    next: u64,
}

impl Strangers {
    /// One more came; returns its number, and that of the one that has to go.
    pub fn arrive(&mut self, from: IpAddr) -> (u64, Option<u64>) {
        let number = self.next;
        self.next += 1;
        self.from.insert(number, from.to_canonical());
        let goes = (self.from.len() > MAX_STRANGERS).then(|| self.oldest_of_the_most()).flatten();
        if let Some(goes) = goes {
            self.from.remove(&goes);
        }
        (number, goes)
    }

    /// One is gone, or known now.
    pub fn leave(&mut self, number: u64) {
        self.from.remove(&number);
    }

    /// Whether there are so many that further ones first prove to be where they say.
    pub fn is_crowded(&self) -> bool {
        self.from.len() >= MAX_STRANGERS / 2
    }

    fn oldest_of_the_most(&self) -> Option<u64> {
        let mut of_address: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (number, from) in &self.from {
            of_address.entry(*from).or_insert((0, *number)).0 += 1;
        }
        // Of addresses with as many, the one that came first.
        let most = of_address.values().max_by_key(|(count, oldest)| (*count, u64::MAX - oldest));
        most.map(|(_, oldest)| *oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_crowd_from_one_address_pushes_out_its_own() {
        let mut strangers = Strangers::default();
        let honest = strangers.arrive(ip(1)).0;
        let mut gone = Vec::new();
        for _ in 0..2 * MAX_STRANGERS {
            gone.extend(strangers.arrive(ip(2)).1);
        }
        let expected: Vec<_> = (1..=MAX_STRANGERS as u64 + 1).collect();
        assert_eq!(gone, expected);
        assert!(!gone.contains(&honest));
        assert!(strangers.is_crowded());
    }

    #[test]
    fn of_many_addresses_the_oldest_goes_unless_it_is_known() {
        let mut strangers = Strangers::default();
        for last in 0..MAX_STRANGERS as u8 {
            assert_eq!(strangers.arrive(ip(last)), (u64::from(last), None));
        }
        strangers.leave(0);
        assert_eq!(strangers.arrive(ip(100)).1, None);
        assert_eq!(strangers.arrive(ip(101)).1, Some(1));
        assert_eq!(strangers.arrive(ip(102)).1, Some(2));
    }
}
