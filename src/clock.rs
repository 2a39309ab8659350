//! Wall-clock time as a number, and the only place that reads a clock.
//!
//! Rules take [`UnixMillis`] or an [`Instant`] as an argument; acting files ask here.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time and `span` more; the end of time is its own successor.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    /// This time and `span` less; never before 1970.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }

    /// Time from `earlier` to this; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This time shifted by a signed clock difference in milliseconds.
    pub fn shifted(self, offset_millis: i64) -> Self {
        Self(self.0.saturating_add_signed(offset_millis))
    }
}

impl fmt::Display for UnixMillis {
    /// RFC 3339, UTC, milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The year 9999 is where RFC 3339 ends and humantime refuses.
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(253_402_300_799_999));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock now.
#[allow(clippy::disallowed_methods)]
pub fn now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
}

/// The monotonic clock now.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_and_survives_the_ends_of_time() {
        assert_eq!(UnixMillis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMillis(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(UnixMillis(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(UnixMillis(5).minus(Duration::from_secs(9)), UnixMillis(0));
        assert_eq!(UnixMillis(u64::MAX).plus(Duration::MAX), UnixMillis(u64::MAX));
        assert_eq!(UnixMillis(100).shifted(-30), UnixMillis(70));
        assert_eq!(UnixMillis(100).since(UnixMillis(300)), Duration::ZERO);
    }
}
