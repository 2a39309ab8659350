//! A token bucket in bytes: how much may go through now, or when more may.
//!
//! Over any span of time no more than `rate × span + burst` bytes and the last take go through,
//! also while the rate changes. Time comes in as the `Duration` since some moment and never runs
//! backwards; one that seems to is taken for no time at all.

use std::time::Duration;

use crate::limits::PIECE_LEN;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// A token bucket. Without a rate everything goes through at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    rate: Option<u64>,
    /// At least so much may be saved up, however low the rate.
    least_burst: u64,
    /// Bytes that may go through now, times [`SECOND`]; less than nothing after a take on credit.
    credit: i128,
    /// When that was so.
    at: Duration,
}

impl Bucket {
    /// A full bucket that is filled with `rate` bytes a second and holds those of a second, and a
    /// piece at least.
    pub fn new(rate: Option<u64>) -> Self {
        Self::with_burst(rate, u64::from(PIECE_LEN))
    }

    /// One that holds another number of bytes at least.
    pub fn with_burst(rate: Option<u64>, least_burst: u64) -> Self {
        let mut bucket = Self { rate, least_burst, credit: 0, at: Duration::ZERO };
        bucket.credit = bucket.burst();
        bucket
    }

    /// Bytes a second; nothing when there is no limit.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Another rate from `now` on. What was saved up stays, as far as the new rate lets it; what
    /// was borrowed is still owed, unless there is no limit any more.
    pub fn set_rate(&mut self, now: Duration, rate: Option<u64>) {
        self.fill(now);
        let limited = self.rate.is_some();
        self.rate = rate;
        // Whoever had no limit has saved up nothing.
        self.credit = if limited { self.credit.min(self.burst()) } else { 0 };
    }

    /// Lets `bytes` through, on credit if need be.
    pub fn take(&mut self, now: Duration, bytes: u64) {
        self.fill(now);
        if self.rate.is_some() {
            self.credit -= i128::from(bytes) * SECOND as i128;
        }
    }

    /// Of what was taken, `bytes` did not go through after all.
    pub fn give_back(&mut self, now: Duration, bytes: u64) {
        self.fill(now);
        if self.rate.is_some() {
            let credit = self.credit.saturating_add(i128::from(bytes) * SECOND as i128);
            self.credit = credit.min(self.burst());
        }
    }

    /// How long until something may go through; zero when it may now.
    pub fn wait(&self, now: Duration) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let credit = self.credit + self.filled(now);
        if credit > 0 {
            return Duration::ZERO;
        }
        // The first byte must be there, whole.
        let missing = (SECOND as i128 - credit).unsigned_abs();
        let nanos = missing.div_ceil(u128::from(rate.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What may be saved up.
    fn burst(&self) -> i128 {
        self.rate.map_or(0, |rate| i128::from(rate.max(self.least_burst)) * SECOND as i128)
    }

    fn filled(&self, now: Duration) -> i128 {
        let nanos = now.saturating_sub(self.at).as_nanos() as i128;
        self.rate.map_or(0, |rate| i128::from(rate).saturating_mul(nanos))
    }

    fn fill(&mut self, now: Duration) {
        if self.rate.is_some() {
            self.credit = self.credit.saturating_add(self.filled(now)).min(self.burst());
        }
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1024 * 1024;

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = Bucket::new(None);
        bucket.take(MS, u64::MAX);
        assert_eq!(bucket.wait(MS), Duration::ZERO);
    }

    #[test]
    fn a_full_bucket_gives_a_second_at_once_and_then_the_rate() {
        let mut bucket = Bucket::new(Some(MIB));
        bucket.take(Duration::ZERO, MIB);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::from_nanos(954));
        bucket.take(Duration::ZERO, MIB / 2);
        assert!(bucket.wait(400 * MS) > Duration::ZERO);
        assert_eq!(bucket.wait(501 * MS), Duration::ZERO);
        // However long it was idle, no more than a second's worth was saved up.
        bucket.take(3_600_000 * MS, MIB);
        assert!(bucket.wait(3_600_000 * MS) > Duration::ZERO);
    }

    #[test]
    fn a_slow_rate_still_lets_a_whole_piece_through_at_once() {
        let mut bucket = Bucket::new(Some(1024));
        bucket.take(Duration::ZERO, u64::from(PIECE_LEN) - 1);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_new_rate_acts_at_once() {
        let mut bucket = Bucket::new(Some(MIB));
        bucket.take(Duration::ZERO, 11 * MIB);
        assert!(bucket.wait(Duration::ZERO) > 9_900 * MS);
        bucket.set_rate(Duration::ZERO, Some(100 * MIB));
        assert!(bucket.wait(Duration::ZERO) < 101 * MS);
        bucket.set_rate(Duration::ZERO, None);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::ZERO);
        // Being without a limit saves nothing up for the time after.
        bucket.set_rate(9_000 * MS, Some(MIB));
        assert!(bucket.wait(9_000 * MS) > Duration::ZERO);
        assert_eq!(bucket.wait(9_001 * MS), Duration::ZERO);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Sleep(u64),
        /// Wait until something may go through, then let so much through.
        Take(u32),
        Rate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..2_000_000).prop_map(Step::Sleep),
            (1u32..=65_536).prop_map(Step::Take),
            (1_000u64..100_000_000).prop_map(Step::Rate),
        ]
    }

    proptest! {
        #[test]
        fn no_window_lets_more_through_than_its_rate_and_a_burst(
            first in 1_000u64..100_000_000,
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut bucket = Bucket::new(Some(first));
            let mut now = Duration::ZERO;
            // When, how many bytes, and what the rates amounted to until then (bytes).
            let mut taken: Vec<(u64, f64)> = Vec::new();
            let (mut rate, mut flowed, mut highest) = (first, 0.0, first);
            for step in steps {
                match step {
                    Step::Sleep(micros) => {
                        now += Duration::from_micros(micros);
                        flowed += rate as f64 * micros as f64 / 1e6;
                    }
                    Step::Take(bytes) => {
                        let wait = bucket.wait(now);
                        now += wait;
                        flowed += rate as f64 * wait.as_secs_f64();
                        prop_assert_eq!(bucket.wait(now), Duration::ZERO, "it waited long enough");
                        bucket.take(now, u64::from(bytes));
                        taken.push((u64::from(bytes), flowed));
                    }
                    Step::Rate(new) => {
                        bucket.set_rate(now, Some(new));
                        (rate, highest) = (new, highest.max(new));
                    }
                }
            }
            let burst = highest.max(u64::from(PIECE_LEN)) as f64;
            for begin in 0..taken.len() {
                let mut sum = 0;
                for (bytes, flowed) in &taken[begin..] {
                    let window = flowed - taken[begin].1;
                    // All but the last take fit in what flowed and what was saved up.
                    prop_assert!(sum as f64 <= window + burst + 1.0);
                    sum += bytes;
                }
            }
        }
    }
}
