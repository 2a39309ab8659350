//! What a client and a tracker say to each other first. PROTOCOL.md is the normative description.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::limits;
use crate::transport::hello::{self, Extension};

/// First frame of a client on its control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Bits of optional behaviour; none is defined yet.
    pub features: u64,
    /// Program and version, for logs.
    pub agent: String,
    /// One number for each run of the device's agent, on all its connections to all trackers, and
    /// higher than those of earlier runs: the newest wins.
    pub session: u64,
    /// Where the client believes to be reachable; private addresses only are of use.
    pub addresses: Vec<SocketAddr>,
    /// BLAKE3 of the number and entries of the roster the client knows; it is sent the tracker's
    /// if that is another.
    pub roster: Option<Blake3Hash>,
    /// Fields of later versions.
    pub extensions: Vec<Extension>,
}

impl Hello {
    /// Whether its lists are within their limits.
    pub fn is_bounded(&self) -> bool {
        hello::is_bounded(&self.agent, &self.extensions)
            && self.addresses.len() <= limits::MAX_ADDRESSES
    }
}

/// First frame of a tracker on its control stream; pushes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Bits of optional behaviour; none is defined yet.
    pub features: u64,
    /// Program and version, for logs.
    pub agent: String,
    /// The tracker's clock, for the life of tickets.
    pub time: UnixMillis,
    /// Where the tracker sees the client.
    pub observed: SocketAddr,
    /// Fields of later versions.
    pub extensions: Vec<Extension>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    #[test]
    fn greetings_round_trip_and_truncations_fail() {
        round_trip(&Hello {
            features: 0,
            agent: "mtq/0".into(),
            session: 3,
            addresses: vec!["10.0.0.1:3".parse().expect("address")],
            roster: Some(Blake3Hash([7; 32])),
            extensions: vec![Extension { tag: 1, body: vec![1] }],
        });
        round_trip(&Welcome {
            features: 0,
            agent: "mtq/0".into(),
            time: UnixMillis(7),
            observed: "10.0.0.1:3".parse().expect("address"),
            extensions: Vec::new(),
        });
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = crate::wire::decode::<Hello>(&bytes);
            let _ = crate::wire::decode::<Welcome>(&bytes);
        }
    }
}
