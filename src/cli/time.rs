//! A length of time as people write it.

use std::time::Duration;

/// A length of time: seconds, or as `10m` and `2h`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "a time is seconds, or for example 90s, 10m or 2h".to_owned()),
    }
}
