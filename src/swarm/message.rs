//! What two peers say to each other. PROTOCOL.md is the normative description.
//!
//! Enums only ever grow at their end: a variant's position is its number on the wire. A swarm
//! number always belongs to the side that sends it.

use serde::{Deserialize, Serialize};

use super::midstates::Midstates;
use crate::id::GroupId;
use crate::manifest::ContentId;
use crate::transport::hello::Extension;

/// Feature bit: the sender understands [`PieceHeader::Proven`].
pub const TAKES_MIDSTATES: u64 = 1;

/// First frame on each side's control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Bits of optional behaviour: [`TAKES_MIDSTATES`].
    pub features: u64,
    /// Program and version, for logs.
    pub agent: String,
    /// Fields of later versions.
    pub extensions: Vec<Extension>,
}

/// Frames on a control stream after the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// The sender's membership in a group; a newer one replaces an older.
    Ticket {
        /// Wire bytes of the ticket.
        ticket: Vec<u8>,
    },
    /// From now on `swarm` means this content in this group. A valid ticket came before.
    Open {
        /// The sender's number for it.
        swarm: u32,
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
    },
    /// What the sender holds; sent once both sides have opened.
    Bitfield {
        /// The sender's number.
        swarm: u32,
        /// Bits, most significant first.
        bits: Vec<u8>,
    },
    /// Pieces the sender holds since its bitfield.
    Have {
        /// The sender's number.
        swarm: u32,
        /// Piece indexes.
        pieces: Vec<u32>,
    },
    /// The sender no longer serves this swarm, or never did.
    Close {
        /// The *receiver's* number when its open is refused, else the sender's.
        swarm: u32,
        /// Whether `swarm` is the receiver's number.
        refused: bool,
        /// Why: a number of the code table.
        code: u32,
    },
    /// The sender shuts down; it finishes pieces under way and takes no new requests.
    GoingAway,
}

/// The one frame the requester writes on a piece stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRequest {
    /// The requester's number for the swarm.
    pub swarm: u32,
    /// Which piece.
    pub piece: u32,
}

/// How the bytes after a header are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As they are.
    Identity,
}

/// The first frame of an answer; after `Queued` another follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceHeader {
    /// The piece's bytes follow, then the end of the stream.
    Data {
        /// Their encoding.
        encoding: Encoding,
        /// How many follow.
        len: u32,
    },
    /// It will be served when a slot is free.
    Queued,
    /// It will not be served.
    Nack(Nack),
    /// As `Data`, of a piece of the full length, to who takes midstates: here they are.
    Proven {
        /// The encoding of the bytes that follow.
        encoding: Encoding,
        /// How many follow.
        len: u32,
        /// What is said of its SHA-1s.
        midstates: Box<Midstates>,
    },
}

/// Why a piece is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nack {
    /// The server lacks it; what it has, if that changed since it was last told.
    NotHave {
        /// The server's bitfield.
        bits: Option<Vec<u8>>,
    },
    /// The file changed on the server's disk.
    Changed,
    /// Too much is asked at once.
    Busy,
    /// The requester's ticket is void or over.
    Revoked,
    /// The server shuts down.
    GoingAway,
    /// The server has no such swarm open with the requester.
    NoSwarm,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_REQUEST_LEN;
    use crate::transport::frame::frame_bytes;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    #[test]
    fn golden_frames() {
        let hex = |bytes: Vec<u8>| hex::encode(bytes);
        // Length 3; swarm 5; piece 300 as a varint.
        assert_eq!(hex(frame_bytes(&PieceRequest { swarm: 5, piece: 300 })), "0300000005ac02");
        // Length 5; DATA; identity; 524,288 as a varint.
        let data = PieceHeader::Data { encoding: Encoding::Identity, len: 524_288 };
        assert_eq!(hex(frame_bytes(&data)), "050000000000808020");
        assert_eq!(hex(frame_bytes(&PieceHeader::Queued)), "0100000001");
        // NACK; CHANGED.
        assert_eq!(hex(frame_bytes(&PieceHeader::Nack(Nack::Changed))), "020000000201");
        // Length 625; PROVEN; identity; 524,288 as a varint; 620 bytes.
        let midstates = Box::new(Midstates([7; Midstates::LEN]));
        let proven = PieceHeader::Proven { encoding: Encoding::Identity, len: 524_288, midstates };
        let expected = format!("710200000300808020{}", "07".repeat(620));
        assert_eq!(hex(frame_bytes(&proven)), expected);
        round_trip(&proven);
        // HAVE; swarm 1; two pieces.
        let have = Control::Have { swarm: 1, pieces: vec![2, 3] };
        assert_eq!(hex(frame_bytes(&have)), "050000000301020203");
        let close = Control::Close { swarm: 1, refused: true, code: 10 };
        assert_eq!(hex(frame_bytes(&close)), "040000000401010a");
        let open = Control::Open { swarm: 0, group: GroupId([1; 16]), content: ContentId([2; 32]) };
        let expected = format!("320000000100{}{}", "01".repeat(16), "02".repeat(32));
        assert_eq!(hex(frame_bytes(&open)), expected);
    }

    #[test]
    fn messages_round_trip_and_truncations_fail() {
        round_trip(&PeerHello { features: 1, agent: "x".into(), extensions: Vec::new() });
        round_trip(&Control::Ticket { ticket: vec![1, 2, 3] });
        round_trip(&Control::Bitfield { swarm: 1, bits: vec![0xff; 9] });
        round_trip(&Control::GoingAway);
        round_trip(&PieceHeader::Nack(Nack::NotHave { bits: Some(vec![1]) }));
        let largest = PieceRequest { swarm: u32::MAX, piece: u32::MAX };
        round_trip(&largest);
        assert!(frame_bytes(&largest).len() <= MAX_REQUEST_LEN);
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = crate::wire::decode::<PeerHello>(&bytes);
            let _ = crate::wire::decode::<Control>(&bytes);
            let _ = crate::wire::decode::<PieceRequest>(&bytes);
            let _ = crate::wire::decode::<PieceHeader>(&bytes);
        }
    }
}
