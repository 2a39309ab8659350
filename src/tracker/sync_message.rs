//! What trackers say to each other. PROTOCOL.md is the normative description.
//!
//! Enums only ever grow at their end: a variant's position is its number on the wire.

use serde::{Deserialize, Serialize};

use super::feed::OpBatch;
use super::gossip::News;
use super::reservations::{Claim, WantedName};
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::transport::hello::{self, Extension};

/// First frame of a tracker on its control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncHello {
    /// Bits of optional behaviour; none is defined yet.
    pub features: u64,
    /// Program and version, for logs.
    pub agent: String,
    /// Its wall clock.
    pub time: UnixMillis,
    /// The ops it has.
    pub knowledge: Knowledge,
    /// Fields of later versions.
    pub extensions: Vec<Extension>,
}

impl SyncHello {
    /// Whether its lists are within their limits.
    pub fn is_bounded(&self) -> bool {
        hello::is_bounded(&self.agent, &self.extensions) && self.knowledge.is_bounded()
    }
}

/// What follows on that stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMessage {
    /// Ops that the receiver lacks, as far as the sender knows.
    Ops(OpBatch),
    /// What the sender has.
    Have {
        /// The number of the last batch it took; 0 before the first.
        heard: u64,
        /// Its ops of origins that are not sealed.
        vector: Vector,
        /// Its wall clock.
        time: UnixMillis,
        /// Whether the receiver lacks ops that the sender's log does not have any more: it has to
        /// ask for everything the sender knows.
        behind: bool,
    },
    /// What its ops amount to.
    Digest {
        /// The ops.
        knowledge: Knowledge,
        /// Their digest, which is compared by whoever has exactly these.
        digest: Blake3Hash,
    },
    /// Who is online at the sender, in order.
    Presence(Vec<News>),
    /// The sender's roster.
    Roster(Vec<u8>),
    /// All that the sender has, now that it took over everything the receiver knew.
    Knows(Knowledge),
}

/// A question, on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncRequest {
    /// Everything the other one knows; the answer is frames of bytes up to the end of the stream.
    Essence,
    /// The bytes of a hash page.
    Page {
        /// Its BLAKE3.
        hash: Blake3Hash,
    },
    /// A name that the sender is about to register.
    Reserve {
        /// The name.
        name: WantedName,
        /// The wish for it.
        claim: Claim,
    },
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncReply {
    /// The page, if it is here.
    Page(Option<Vec<u8>>),
    /// Whether the name may be registered.
    Reserved(bool),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OriginId;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_and_truncations_fail() {
        let vector: Vector = [(OriginId([1; 16]), 300)].into_iter().collect();
        let knowledge = Knowledge { vector: vector.clone(), sealed: Vector::default() };
        round_trip(&SyncHello {
            features: 0,
            agent: "mtq/0".into(),
            time: UnixMillis(5),
            knowledge: knowledge.clone(),
            extensions: vec![Extension { tag: 1, body: vec![1] }],
        });
        round_trip(&SyncMessage::Ops(OpBatch { number: 3, ops: vec![vec![1, 2], vec![]] }));
        round_trip(&SyncMessage::Have { heard: 3, vector, time: UnixMillis(9), behind: true });
        round_trip(&SyncMessage::Digest { knowledge, digest: Blake3Hash([4; 32]) });
        let name = WantedName::Group("lab".parse().expect("a name"));
        round_trip(&SyncRequest::Reserve { name, claim: Claim { at: UnixMillis(7), id: [8; 16] } });
        round_trip(&SyncReply::Page(Some(vec![1])));
    }

    #[test]
    fn golden_bytes() {
        let vector = [(OriginId([1; 16]), 300)].into_iter().collect();
        let have = SyncMessage::Have { heard: 3, vector, time: UnixMillis(1), behind: false };
        let hex = hex::encode(crate::wire::encode(&have));
        assert_eq!(hex, format!("010301{}ac020100", "01".repeat(16)));
        let page = SyncRequest::Page { hash: Blake3Hash([2; 32]) };
        assert_eq!(hex::encode(crate::wire::encode(&page)), format!("01{}", "02".repeat(32)));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = crate::wire::decode::<SyncHello>(&bytes);
            let _ = crate::wire::decode::<SyncMessage>(&bytes);
            let _ = crate::wire::decode::<SyncRequest>(&bytes);
            let _ = crate::wire::decode::<SyncReply>(&bytes);
        }
    }
}
