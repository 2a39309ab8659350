//! How long reading from a disk takes, as of the last read.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A piece that was not in memory takes so long to be read, where the disk is not a quick one.
const SLOW: Duration = Duration::from_millis(5);

/// One that was in memory takes less.
const QUICK: Duration = Duration::from_millis(1);

/// The pace of one file; neither slow nor quick as long as nothing was read.
#[derive(Debug)]
pub struct Pace {
    micros: AtomicU32,
}

impl Default for Pace {
    fn default() -> Self {
        let pace = Self { micros: AtomicU32::new(0) };
        pace.note(QUICK);
        pace
    }
}

impl Pace {
    /// The last read took so long.
    pub fn note(&self, took: Duration) {
        self.micros.store(u32::try_from(took.as_micros()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// What should have been read at once would have had to wait.
    pub fn note_wait(&self) {
        self.note(QUICK);
    }

    /// Whether more should be begun at once, so that the disk is never idle.
    pub fn is_slow(&self) -> bool {
        self.last() >= SLOW
    }

    /// Whether the next is likely to be in memory too.
    pub fn is_quick(&self) -> bool {
        self.last() < QUICK
    }

    fn last(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_the_last_read() {
        let pace = Pace::default();
        assert_eq!((pace.is_slow(), pace.is_quick()), (false, false), "nothing is known");
        for (micros, expected) in [
            (0, (false, true)),
            (999, (false, true)),
            (1_000, (false, false)),
            (4_999, (false, false)),
            (5_000, (true, false)),
            (u64::MAX, (true, false)),
            (150, (false, true)),
        ] {
            pace.note(Duration::from_micros(micros));
            assert_eq!((pace.is_slow(), pace.is_quick()), expected, "{micros}");
        }
        pace.note_wait();
        assert_eq!((pace.is_slow(), pace.is_quick()), (false, false));
    }
}
