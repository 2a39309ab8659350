//! What several trackers say of the same event, told once.
//!
//! Equal news are told as often as the tracker that said them most often has said them. Pure: time
//! comes in as an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::hash::{Blake3Hash, blake3};
use crate::limits::{ECHO_KEPT, MAX_ECHOES, MAX_TRACKERS};
use crate::peer_id::PeerId;

/// How often something was said, and told.
#[derive(Debug, Default)]
struct Count {
    told: u32,
    said: Vec<(PeerId, u32)>,
    /// When it was last said.
    last: Duration,
}

/// What was said of late.
#[derive(Debug, Default)]
pub struct Echo {
    counts: HashMap<Blake3Hash, Count>,
    /// Each count with when it was last said as of then, in order of time.
    order: VecDeque<(Duration, Blake3Hash)>,
}

impl Echo {
    /// Whether news that `tracker` says at `now`, in these bytes, are to be told.
    pub fn is_new(&mut self, tracker: PeerId, news: &[u8], now: Duration) -> bool {
        self.forget(now);
        let key = blake3(news);
        let count = self.counts.entry(key).or_default();
        count.last = now;
        self.order.push_back((now, key));
        let place = match count.said.iter().position(|(id, _)| *id == tracker) {
            Some(place) => place,
            // More trackers than there can be: those that came and went meanwhile.
            None if count.said.len() >= 2 * MAX_TRACKERS => return false,
            None => {
                count.said.push((tracker, 0));
                count.said.len() - 1
            }
        };
        let said = &mut count.said[place].1;
        *said = said.saturating_add(1);
        let new = *said > count.told;
        if new {
            count.told = *said;
        }
        new
    }

    /// Forgets what was not said for long, and the oldest of too many.
    fn forget(&mut self, now: Duration) {
        while let Some((at, key)) = self.order.front().copied() {
            if now.saturating_sub(at) < ECHO_KEPT && self.order.len() < MAX_ECHOES {
                return;
            }
            self.order.pop_front();
            if self.counts.get(&key).is_some_and(|count| count.last <= at) {
                self.counts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_two_trackers_say_is_told_once_and_what_happens_twice_is_told_twice() {
        let mut echo = Echo::default();
        assert!(echo.is_new(A, b"ann joined", at(0)));
        assert!(!echo.is_new(B, b"ann joined", at(1)));
        assert!(echo.is_new(B, b"ann left", at(2)));
        assert!(echo.is_new(B, b"ann joined", at(2)), "she came again; B said so first");
        assert!(!echo.is_new(A, b"ann left", at(3)));
        assert!(!echo.is_new(A, b"ann joined", at(3)));
        assert!(echo.is_new(A, b"ann joined", at(4)));
    }

    #[test]
    fn counts_are_forgotten_a_minute_after_the_last() {
        let mut echo = Echo::default();
        assert!(echo.is_new(A, b"x", at(0)));
        assert!(echo.is_new(A, b"x", at(50)));
        assert!(!echo.is_new(B, b"x", at(100)));
        assert!(!echo.is_new(B, b"x", at(159)), "said 59 s before");
        assert!(echo.is_new(B, b"x", at(219)), "forgotten");
        assert!(!echo.is_new(A, b"x", at(219)));
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let mut echo = Echo::default();
        for number in 0..3 * MAX_ECHOES {
            assert!(echo.is_new(A, &number.to_le_bytes(), at(1)));
            assert!(echo.counts.len() <= MAX_ECHOES && echo.order.len() <= MAX_ECHOES);
        }
    }

    proptest! {
        // Within a minute: told as often as the most talkative tracker said it.
        #[test]
        fn told_as_often_as_the_one_that_said_it_most(
            said in prop::collection::vec((0u8..3, 0u8..2), 0..60)
        ) {
            let mut echo = Echo::default();
            let mut told = [0; 2];
            let mut counts = [[0; 3]; 2];
            for (tracker, news) in said {
                counts[news as usize][tracker as usize] += 1;
                told[news as usize] += u32::from(echo.is_new(PeerId([tracker; 32]), &[news], at(1)));
            }
            for news in 0..2 {
                prop_assert_eq!(Some(told[news]), counts[news].iter().max().copied());
            }
        }
    }
}
