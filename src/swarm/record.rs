//! The resume record of a part file, as bytes: which pieces the disk has safely.
//!
//! It stands beside the part file and is replaced whole. Bytes that are torn, foreign, old or junk
//! are no record; then everything is looked at again. It does no IO.

use super::stamp::Stamp;
use crate::bitfield::Bitfield;
use crate::hash;
use crate::manifest::ContentId;
use crate::piece::PieceLayout;

/// First bytes of every record: what it is and the version of its layout.
pub const RECORD_TAG: &[u8; 16] = b"mtq resume   1\r\n";

/// Bytes before the pieces: tag, content id, size, clean, seconds, nanoseconds, inode.
const FIXED_LEN: usize = 16 + 32 + 8 + 1 + 8 + 8 + 8;

/// Bytes of the BLAKE3 at the end.
const CHECK_LEN: usize = 32;

/// How a part file looked when its download stopped in order.
///
/// The device is left out: its number may be another after a restart, and the record stands on the
/// same device anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanStop {
    /// Seconds and nanoseconds since 1970 of the last write.
    pub modified: (i64, i64),
    /// Number of the inode.
    pub inode: u64,
}

impl CleanStop {
    /// What a later [`Stamp`] must match.
    pub fn at(stamp: Stamp) -> Self {
        Self { modified: stamp.modified, inode: stamp.inode.1 }
    }
}

/// What is known of a part file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The pieces that reached the disk before this record did.
    pub claimed: Bitfield,
    /// Set when nothing was written after.
    pub clean: Option<CleanStop>,
}

impl Record {
    /// Bytes of every record of `layout`.
    pub fn encoded_len(layout: PieceLayout) -> usize {
        FIXED_LEN + layout.piece_count().div_ceil(8) as usize + CHECK_LEN
    }

    /// Tag, content id, size (u64 LE), clean (0 or 1), seconds and nanoseconds (i64 LE), inode
    /// (u64 LE), bitfield, BLAKE3 of all that.
    pub fn encode(&self, content: ContentId, layout: PieceLayout) -> Vec<u8> {
        let stop = self.clean.unwrap_or(CleanStop { modified: (0, 0), inode: 0 });
        let mut bytes = Vec::with_capacity(Self::encoded_len(layout));
        bytes.extend_from_slice(RECORD_TAG);
        bytes.extend_from_slice(content.as_bytes());
        bytes.extend_from_slice(&layout.size().to_le_bytes());
        bytes.push(u8::from(self.clean.is_some()));
        bytes.extend_from_slice(&stop.modified.0.to_le_bytes());
        bytes.extend_from_slice(&stop.modified.1.to_le_bytes());
        bytes.extend_from_slice(&stop.inode.to_le_bytes());
        bytes.extend_from_slice(self.claimed.as_bytes());
        let check = hash::blake3(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes
    }

    /// The record that `bytes` are, if they are one of this content.
    pub fn parse(bytes: &[u8], content: ContentId, layout: PieceLayout) -> Option<Self> {
        if bytes.len() != Self::encoded_len(layout) {
            return None;
        }
        let (body, check) = bytes.split_last_chunk::<CHECK_LEN>()?;
        if hash::blake3(body).as_bytes() != check {
            return None;
        }
        let (tag, rest) = body.split_first_chunk::<16>()?;
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (clean, rest) = rest.split_first_chunk::<1>()?;
        let (seconds, rest) = rest.split_first_chunk::<8>()?;
        let (nanos, rest) = rest.split_first_chunk::<8>()?;
        let (inode, pieces) = rest.split_first_chunk::<8>()?;
        if tag != RECORD_TAG
            || id != content.as_bytes()
            || u64::from_le_bytes(*size) != layout.size()
        {
            return None;
        }
        let stop = CleanStop {
            modified: (i64::from_le_bytes(*seconds), i64::from_le_bytes(*nanos)),
            inode: u64::from_le_bytes(*inode),
        };
        let clean = match clean {
            [0] => None,
            [1] => Some(stop),
            _ => return None,
        };
        Some(Self { claimed: Bitfield::from_bytes(layout, pieces).ok()?, clean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(count: u32) -> PieceLayout {
        PieceLayout::new(u64::from(count) * u64::from(crate::limits::PIECE_LEN)).expect("fits")
    }

    const CONTENT: ContentId = ContentId([7; 32]);

    fn record(layout: PieceLayout, pieces: &[u32], clean: bool) -> Record {
        let mut claimed = Bitfield::none(layout);
        for piece in pieces.iter().filter_map(|index| layout.piece(*index)) {
            claimed.insert(piece);
        }
        let stop = CleanStop { modified: (-1, 999), inode: u64::MAX };
        Record { claimed, clean: clean.then_some(stop) }
    }

    #[test]
    fn golden() {
        let l = layout(9);
        let expected = concat!(
            "6d747120726573756d65202020310d0a", // tag
            "0707070707070707070707070707070707070707070707070707070707070707", // content id
            "0000480000000000",                 // size
            "01",                               // clean
            "ffffffffffffffffe703000000000000", // seconds, nanoseconds
            "ffffffffffffffff",                 // inode
            "8180",                             // pieces 0, 7, 8
        );
        let hex = hex::encode(record(l, &[0, 7, 8], true).encode(CONTENT, l));
        assert_eq!(hex.split_at(hex.len() - 64).0, expected);
    }

    #[test]
    fn of_another_content_or_size_it_is_none() {
        let l = layout(3);
        let bytes = record(l, &[1], false).encode(CONTENT, l);
        assert!(Record::parse(&bytes, CONTENT, l).is_some());
        assert_eq!(Record::parse(&bytes, ContentId([8; 32]), l), None);
        let shorter = PieceLayout::new(l.size() - 1).expect("fits");
        assert_eq!(Record::parse(&bytes, CONTENT, shorter), None);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            count in 0u32..70,
            pieces in prop::collection::vec(0u32..70, 0..70),
            clean in any::<bool>(),
        ) {
            let l = layout(count);
            let record = record(l, &pieces, clean);
            let bytes = record.encode(CONTENT, l);
            prop_assert_eq!(bytes.len(), Record::encoded_len(l));
            prop_assert_eq!(Record::parse(&bytes, CONTENT, l), Some(record));
        }

        #[test]
        fn torn_it_is_none(cut in 0usize..160, flip in 0usize..160, bit in 0u8..8) {
            let l = layout(70);
            let bytes = record(l, &[3, 69], true).encode(CONTENT, l);
            prop_assert_eq!(Record::parse(&bytes[..cut.min(bytes.len() - 1)], CONTENT, l), None);
            let mut zeroed = bytes.clone();
            zeroed[cut.min(bytes.len() - 1)..].fill(0);
            prop_assert_eq!(Record::parse(&zeroed, CONTENT, l), None);
            let mut flipped = bytes;
            let at = flip % flipped.len();
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(Record::parse(&flipped, CONTENT, l), None);
        }

        #[test]
        fn junk_never_panics(
            count in 0u32..70,
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            right_check in any::<bool>(),
        ) {
            let l = layout(count);
            bytes.resize(Record::encoded_len(l) - usize::from(!right_check), 0);
            if right_check {
                let at = bytes.len() - CHECK_LEN;
                let check = hash::blake3(&bytes[..at]);
                bytes[at..].copy_from_slice(check.as_bytes());
            }
            prop_assert_eq!(Record::parse(&bytes, CONTENT, l), None);
        }
    }
}
