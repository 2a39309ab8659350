//! What may be chosen of how this side sends: the largest datagram, and who finds out how fast.
//!
//! Both matter to this side alone; the other end need not choose the same.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::limits::{JUMBO_MTU, LARGE_MTUS, MAX_MTU, MIN_MTU, TRACKER_MTU};

/// How this side of every connection sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Datagrams are never larger.
    pub max_mtu: Mtu,
    /// What decides how much may be under way.
    pub congestion: Congestion,
}

impl Tuning {
    /// The same for a connection with a peer at `address` beside so many others: no link between machines carries
    /// more than `JUMBO_MTU`, and to find out what this machine does is only worth it for a few.
    pub fn towards(self, address: IpAddr, others: usize) -> Self {
        if address.to_canonical().is_loopback() && others < LARGE_MTUS {
            return self;
        }
        self.between_machines()
    }

    /// The same for whatever is, or may as well be, on another machine.
    pub fn between_machines(self) -> Self {
        Self { max_mtu: Mtu(self.max_mtu.get().min(JUMBO_MTU)), ..self }
    }
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
        assert_eq!((Mtu::default().get(), Mtu::TRACKER.get()), (16_250, 1452));
        for (text, bytes) in [("1200", 1200), ("1452", 1452), ("16250", 16_250)] {
            let mtu: Mtu = text.parse().expect(text);
            assert_eq!((mtu.get(), mtu.to_string().as_str()), (bytes, text));
        }
        for wrong in ["", "0", "1199", "16251", "65536", "-1", "1.5", "1452B", "many"] {
            let error = wrong.parse::<Mtu>().expect_err(wrong);
            assert_eq!(error, "an MTU is 1200 to 16250 bytes");
        }
    }

    #[test]
    fn only_within_this_machine_datagrams_are_larger_than_jumbo_frames() {
        let tuned = |mtu| Tuning { max_mtu: Mtu(mtu), congestion: Congestion::Bbr };
        for (address, mtus) in [
            ("127.0.0.1", [1452, 8952, 16_250]),
            ("127.8.0.9", [1452, 8952, 16_250]),
            ("::1", [1452, 8952, 16_250]),
            ("::ffff:127.0.0.1", [1452, 8952, 16_250]),
            ("192.0.2.1", [1452, 8952, 8952]),
            ("::ffff:192.0.2.1", [1452, 8952, 8952]),
            ("2001:db8::1", [1452, 8952, 8952]),
        ] {
            let address = address.parse().expect(address);
            let towards = [1452, 8952, 16_250].map(|mtu| tuned(mtu).towards(address, 7));
            assert_eq!(towards, mtus.map(tuned), "{address}");
        }
        let many = tuned(16_250).towards(IpAddr::from([127, 0, 0, 1]), 8);
        assert_eq!(many, tuned(8952));
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
