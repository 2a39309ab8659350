//! A set of pieces of one layout, as bits; most significant bit first, spare bits zero.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::piece::{PieceIndex, PieceLayout};

/// Bytes that are no bitfield of the layout at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitfieldError {
    /// Too short or too long.
    #[error("a bitfield of {actual} bytes where {expected} are needed")]
    Len {
        /// Bytes it has.
        actual: usize,
        /// Bytes it must have.
        expected: usize,
    },
    /// A bit is set for a piece that does not exist.
    #[error("a bitfield with spare bits set")]
    SpareBits,
}

/// A set of pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitfield {
    layout: PieceLayout,
    bytes: Vec<u8>,
    set_count: u32,
}

impl Bitfield {
    /// The empty set.
    pub fn none(layout: PieceLayout) -> Self {
        Self { layout, bytes: vec![0; byte_len(layout.piece_count())], set_count: 0 }
    }

    /// All pieces.
    pub fn all(layout: PieceLayout) -> Self {
        let mut field = Self::none(layout);
        for piece in layout.pieces() {
            field.insert(piece);
        }
        field
    }

    /// Parses wire bytes.
    ///
    /// # Errors
    /// [`BitfieldError`] unless the length is exact and the spare bits are zero.
    pub fn from_bytes(layout: PieceLayout, bytes: &[u8]) -> Result<Self, BitfieldError> {
        let piece_count = layout.piece_count();
        let expected = byte_len(piece_count);
        if bytes.len() != expected {
            return Err(BitfieldError::Len { actual: bytes.len(), expected });
        }
        let spare = expected as u32 * 8 - piece_count;
        if bytes.last().is_some_and(|last| last.trailing_zeros() < spare) {
            return Err(BitfieldError::SpareBits);
        }
        let set_count = bytes.iter().map(|b| b.count_ones()).sum();
        Ok(Self { layout, bytes: bytes.to_vec(), set_count })
    }

    /// The layout it belongs to.
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// Wire bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `piece` is in the set.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        let (byte, mask) = place(piece);
        self.bytes.get(byte).is_some_and(|b| b & mask != 0)
    }

    /// Adds `piece`; whether it was new.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        let (byte, mask) = place(piece);
        let new = self.bytes[byte] & mask == 0;
        self.bytes[byte] |= mask;
        self.set_count += u32::from(new);
        new
    }

    /// Removes `piece`; whether it was there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let (byte, mask) = place(piece);
        let was = self.bytes[byte] & mask != 0;
        self.bytes[byte] &= !mask;
        self.set_count -= u32::from(was);
        was
    }

    /// The pieces in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.layout.pieces().filter(|piece| self.contains(*piece))
    }

    /// The pieces that are in both sets, which are of one layout, ascending; in time that grows
    /// with a sixty-fourth of the pieces, and with those in both.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PieceIndex> + 'a {
        let words = self.words().zip(other.words()).map(|(a, b)| a & b).enumerate();
        let layout = self.layout;
        words.filter(|(_, word)| *word != 0).flat_map(move |(number, word)| {
            let rest = |word: u64| (word != 0).then_some(word);
            let bits = std::iter::successors(Some(word), move |word| {
                rest(word & !(1 << (63 - word.leading_zeros())))
            });
            bits.filter_map(move |word| layout.piece(number as u32 * 64 + word.leading_zeros()))
        })
    }

    /// The bits, 64 at a time, the first piece in the highest bit.
    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let (whole, rest) = self.bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let last = (!rest.is_empty()).then_some(last);
        whole.iter().copied().chain(last).map(u64::from_be_bytes)
    }

    /// Pieces in the set.
    pub fn count(&self) -> u32 {
        self.set_count
    }

    /// Whether every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.set_count == self.layout.piece_count()
    }

    /// Whether no piece is in the set.
    pub fn is_empty(&self) -> bool {
        self.set_count == 0
    }
}

/// The file's size and the wire bytes: for logs, where no layout is at hand.
impl Serialize for Bitfield {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.layout.size(), &self.bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bitfield {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (size, bytes) = <(u64, Vec<u8>)>::deserialize(deserializer)?;
        let layout = PieceLayout::new(size).map_err(D::Error::custom)?;
        Self::from_bytes(layout, &bytes).map_err(D::Error::custom)
    }
}

fn byte_len(piece_count: u32) -> usize {
    piece_count.div_ceil(8) as usize
}

fn place(piece: PieceIndex) -> (usize, u8) {
    (piece.as_usize() / 8, 0x80 >> (piece.get() % 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_LEN;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn layout(count: u32) -> PieceLayout {
        PieceLayout::new(u64::from(count) * u64::from(PIECE_LEN)).expect("fits")
    }

    #[test]
    fn refuses_wrong_length_and_spare_bits() {
        let l = layout(9);
        assert!(Bitfield::from_bytes(l, &[0xff, 0x80]).expect("valid").is_full());
        assert_eq!(Bitfield::from_bytes(l, &[0, 0x40]), Err(BitfieldError::SpareBits));
        assert_eq!(
            Bitfield::from_bytes(l, &[0]),
            Err(BitfieldError::Len { actual: 1, expected: 2 })
        );
        assert!(Bitfield::from_bytes(l, &[0; 3]).is_err());
        assert!(Bitfield::from_bytes(layout(0), &[]).expect("valid").is_full());
        assert!(Bitfield::from_bytes(layout(0), &[0]).is_err());
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(count in 1u32..80, ops in prop::collection::vec((any::<bool>(), 0u32..80), 0..200)) {
            let l = layout(count);
            let mut field = Bitfield::none(l);
            let mut model = BTreeSet::new();
            for (add, index) in ops {
                let Some(piece) = l.piece(index) else { continue };
                if add {
                    prop_assert_eq!(field.insert(piece), model.insert(piece));
                } else {
                    prop_assert_eq!(field.remove(piece), model.remove(&piece));
                }
            }
            prop_assert_eq!(field.count() as usize, model.len());
            for piece in l.pieces() {
                prop_assert_eq!(field.contains(piece), model.contains(&piece));
            }
            prop_assert_eq!(field.is_full(), model.len() == count as usize);
            prop_assert_eq!(Bitfield::from_bytes(l, field.as_bytes()), Ok(field.clone()));
        }

        #[test]
        fn common_pieces_are_those_in_both(
            count in 1u32..200,
            a in prop::collection::btree_set(0u32..200, 0..60),
            b in prop::collection::btree_set(0u32..200, 0..60),
        ) {
            let l = layout(count);
            let field = |set: &BTreeSet<u32>| {
                let mut field = Bitfield::none(l);
                set.iter().filter_map(|index| l.piece(*index)).for_each(|p| { field.insert(p); });
                field
            };
            let (a, b) = (field(&a), field(&b));
            let expected: Vec<_> = a.iter().filter(|p| b.contains(*p)).collect();
            prop_assert_eq!(a.common(&b).collect::<Vec<_>>(), expected);
            let bytes = crate::wire::encode(&a);
            prop_assert_eq!(crate::wire::decode::<Bitfield>(&bytes), Ok(a));
        }

        #[test]
        fn junk_never_panics(count in 0u32..70, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let _ = Bitfield::from_bytes(layout(count), &bytes);
        }
    }
}
