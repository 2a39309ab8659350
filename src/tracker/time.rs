//! Tracker time: the wall clock, except that it never steps back, nor behind any op.

use std::time::Duration;

use crate::clock::UnixMillis;

/// What the clocks of the machine say at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The wall clock, which somebody may set.
    pub wall: UnixMillis,
    /// What has passed since the start, whatever the wall clock did.
    pub passed: Duration,
}

/// Tracker time of one run.
#[derive(Debug)]
pub struct TrackerTime {
    micros: u64,
    passed: Duration,
}

impl TrackerTime {
    /// Begins at the wall clock, or at `least` where that is later.
    pub fn new(reading: Reading, least: UnixMillis) -> Self {
        Self { micros: micros(reading.wall.max(least)), passed: reading.passed }
    }

    /// The time now, when the latest op is of the time `latest`. While it is ahead of the wall
    /// clock it goes half as fast: it neither stands still, since tickets must end, nor stays wrong
    /// for good.
    pub fn read(&mut self, reading: Reading, latest: UnixMillis) -> UnixMillis {
        let elapsed = reading.passed.saturating_sub(self.passed).as_micros();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let wall = micros(reading.wall);
        let next = match wall >= self.micros.saturating_add(elapsed) {
            true => wall,
            false => self.micros.saturating_add(elapsed / 2).max(wall),
        };
        self.passed = reading.passed.max(self.passed);
        self.micros = next.max(micros(latest));
        UnixMillis(self.micros / 1_000)
    }
}

fn micros(time: UnixMillis) -> u64 {
    time.0.saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, passed: u64) -> Reading {
        Reading { wall: UnixMillis(wall), passed: Duration::from_millis(passed) }
    }

    const NO_OP: UnixMillis = UnixMillis(0);

    #[test]
    fn it_follows_the_wall_clock_and_never_steps_back() {
        let mut time = TrackerTime::new(at(1_000, 0), NO_OP);
        assert_eq!(time.read(at(1_500, 500), NO_OP), UnixMillis(1_500));
        assert_eq!(time.read(at(9_000, 600), NO_OP), UnixMillis(9_000), "set forward");
        assert_eq!(time.read(at(1_700, 700), NO_OP), UnixMillis(9_050), "set back");
        assert_eq!(time.read(at(3_700, 2_700), NO_OP), UnixMillis(10_050));
        // Having gone half as fast for long enough, it is right again.
        assert_eq!(time.read(at(21_000, 20_000), NO_OP), UnixMillis(21_000));
        assert_eq!(time.read(at(21_010, 20_010), NO_OP), UnixMillis(21_010));
    }

    #[test]
    fn it_is_never_before_an_op() {
        let mut time = TrackerTime::new(at(1_000, 0), UnixMillis(4_000));
        assert_eq!(time.read(at(1_100, 100), NO_OP), UnixMillis(4_050));
        assert_eq!(time.read(at(1_200, 200), UnixMillis(7_000)), UnixMillis(7_000));
        assert_eq!(time.read(at(1_300, 300), NO_OP), UnixMillis(7_050));
    }

    #[test]
    fn it_goes_on_however_often_it_is_asked() {
        let mut time = TrackerTime::new(at(1_000, 0), UnixMillis(5_000));
        let mut last = UnixMillis(0);
        for micros in (0..1_000_000u64).step_by(100) {
            let reading =
                Reading { wall: UnixMillis(1_000), passed: Duration::from_micros(micros) };
            last = time.read(reading, NO_OP);
        }
        assert!((5_499..=5_500).contains(&last.0), "{last:?}");
    }
}
