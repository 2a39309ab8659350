//! A rate limit as people write it.

use std::str::FromStr;

use bytesize::ByteSize;

use crate::limits::MIN_RATE;

/// Bytes a second; nothing for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        let size = text.strip_suffix("/s").unwrap_or(text);
        let rate = size.parse::<ByteSize>().map_err(|_| {
            "a rate is bytes a second, for example 2MiB or 500KB, or none".to_owned()
        })?;
        match rate.as_u64() {
            0 => Ok(Self(None)),
            rate if rate < MIN_RATE => Err(format!("a rate is at least {}", ByteSize(MIN_RATE))),
            rate => Ok(Self(Some(rate))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        let rate = |text: &str| text.parse::<Rate>().map(|rate| rate.0);
        assert_eq!(rate("2MiB"), Ok(Some(2 * 1024 * 1024)));
        assert_eq!(rate("500KB"), Ok(Some(500_000)));
        assert_eq!(rate("1.5 MB/s"), Ok(Some(1_500_000)));
        assert_eq!((rate("0"), rate("none"), rate("None")), (Ok(None), Ok(None), Ok(None)));
        assert_eq!(rate("100"), Err("a rate is at least 16.0 KiB".to_owned()));
        for wrong in ["", "fast", "-1MB", "1MB/h", "2MiB 3"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
