//! What may be chosen of how this side sends: the largest datagram, and who finds out how fast.
//!
//! Both matter to this side alone; the other end need not choose the same.

use std::fmt;
use std::str::FromStr;

use crate::limits::{MAX_MTU, MIN_MTU, TRACKER_MTU};

/// How this side of every connection sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Datagrams are never larger.
    pub max_mtu: Mtu,
    /// What decides how much may be under way.
    pub congestion: Congestion,
}

/// Bytes of UDP payload, from `MIN_MTU` to `MAX_MTU`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// What a tracker sends unless it is told otherwise.
    pub const TRACKER: Self = Self(TRACKER_MTU);

    /// In bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Mtu {
    fn default() -> Self {
        Self(MAX_MTU)
    }
}

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(bytes @ MIN_MTU..=MAX_MTU) => Ok(Self(bytes)),
            _ => Err(format!("an MTU is {MIN_MTU} to {MAX_MTU} bytes")),
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The way of deciding how much may be under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Takes every loss for a full queue (RFC 9438), as most of the internet does.
    #[default]
    Cubic,
    /// Measures rate and round trip; for links that lose packets without being full. Slower than
    /// cubic where none are lost.
    Bbr,
}

impl FromStr for Congestion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cubic" => Ok(Self::Cubic),
            "bbr" => Ok(Self::Bbr),
            _ => Err("congestion control is cubic or bbr".to_owned()),
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_within_its_bounds() {
        assert_eq!((Mtu::default().get(), Mtu::TRACKER.get()), (8952, 1452));
        for (text, bytes) in [("1200", 1200), ("1452", 1452), ("8952", 8952)] {
            let mtu: Mtu = text.parse().expect(text);
            assert_eq!((mtu.get(), mtu.to_string().as_str()), (bytes, text));
        }
        for wrong in ["", "0", "1199", "8953", "65536", "-1", "1.5", "1452B", "many"] {
            let error = wrong.parse::<Mtu>().expect_err(wrong);
            assert_eq!(error, "an MTU is 1200 to 8952 bytes");
        }
    }

    #[test]
    fn congestion_is_one_of_two() {
        assert_eq!(Congestion::default(), Congestion::Cubic);
        for congestion in [Congestion::Cubic, Congestion::Bbr] {
            assert_eq!(congestion.to_string().parse(), Ok(congestion));
        }
        for wrong in ["", "BBR", "reno"] {
            assert!(wrong.parse::<Congestion>().is_err(), "{wrong}");
        }
    }
}
