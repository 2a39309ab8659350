//! How much the peer of one connection may send us before we read it: room for control, and for what it is
//! asked for.
//!
//! Nobody gets room for what it was never asked for, and what is asked for is bounded over all downloads; so
//! however many peers there are, and whatever they send, what waits to be read is bounded too. It always has
//! room for everything that was asked for and [`WINDOW_HEADROOM`] more, and grows in few steps. It never
//! shrinks: QUIC cannot take back what the other side was allowed.

use crate::limits::{CONTROL_WINDOW, PEER_WINDOW, WINDOW_HEADROOM};

/// The window of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Bytes asked for and not here yet.
    asked: u64,
    window: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { asked: 0, window: CONTROL_WINDOW }
    }
}

impl Allowance {
    /// `len` bytes more are asked for. The window that this needs, if it is a larger one.
    pub fn ask(&mut self, len: u32) -> Option<u64> {
        self.asked += u64::from(len);
        let needed = self.asked + WINDOW_HEADROOM;
        if needed <= self.window {
            return None;
        }
        // A power of two, so that it seldom changes; more than is ever queued for us is of no use.
        let window = needed.next_power_of_two().min(PEER_WINDOW).max(self.window);
        (std::mem::replace(&mut self.window, window) != window).then_some(window)
    }

    /// `len` bytes that were asked for are here, or will not come.
    pub fn done(&mut self, len: u32) {
        self.asked = self.asked.saturating_sub(u64::from(len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{PIECE_LEN, PIPELINE_MAX};
    use proptest::prelude::*;

    #[test]
    fn a_pipeline_grows_its_window_in_few_steps_and_to_a_bound() {
        let mut allowance = Allowance::default();
        let windows: Vec<_> =
            (0..2 * PIPELINE_MAX).filter_map(|_| allowance.ask(PIECE_LEN)).collect();
        let mib = |count: u64| count * 1024 * 1024;
        assert_eq!(windows, [mib(4), mib(8), mib(16), mib(32), mib(64), PEER_WINDOW]);
        (0..2 * PIPELINE_MAX).for_each(|_| allowance.done(PIECE_LEN));
        assert_eq!(allowance.ask(PIECE_LEN), None, "what was allowed stays so");
    }

    #[test]
    fn who_is_asked_for_little_is_allowed_no_more_than_control_needs() {
        let mut allowance = Allowance::default();
        for _ in 0..1_000 {
            assert_eq!((allowance.ask(PIECE_LEN), allowance.ask(PIECE_LEN)), (None, None));
            allowance.done(PIECE_LEN);
            allowance.done(PIECE_LEN);
        }
    }

    proptest! {
        #[test]
        fn there_is_room_for_what_is_asked_for_and_at_most_as_much_again(
            steps in prop::collection::vec((any::<bool>(), 1..=PIECE_LEN), 1..400),
        ) {
            let (mut allowance, mut open) = (Allowance::default(), Vec::new());
            let (mut window, mut most) = (CONTROL_WINDOW, 0);
            for (ask, len) in steps {
                if ask && open.len() < PIPELINE_MAX {
                    open.push(len);
                    if let Some(larger) = allowance.ask(len) {
                        prop_assert!(larger > window);
                        window = larger;
                    }
                } else if let Some(len) = open.pop() {
                    allowance.done(len);
                }
                let asked: u64 = open.iter().copied().map(u64::from).sum();
                most = most.max(asked);
                prop_assert!(asked + WINDOW_HEADROOM <= window);
                prop_assert!(window <= CONTROL_WINDOW.max(2 * (most + WINDOW_HEADROOM)));
            }
        }
    }
}
