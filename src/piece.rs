//! How a file divides into pieces, and the index that proves a piece exists.
//!
//! A [`PieceIndex`] is minted only by the [`PieceLayout`] it belongs to.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PIECE_COUNT, PAGE_PIECES, PIECE_LEN};

/// A file too large to describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file of {size} bytes is over the limit of {} bytes", PieceLayout::MAX_SIZE)]
pub struct TooLarge {
    /// The size asked for, in bytes.
    pub size: u64,
}

/// The division of a file of a known size into pieces of [`PIECE_LEN`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceLayout {
    size: u64,
}

/// Position of a piece in its file; smaller than its layout's piece count. One read from a log is
/// checked against the layout by whoever replays it; the wire carries plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PieceIndex(u32);

impl PieceLayout {
    /// Bytes of the largest file.
    pub const MAX_SIZE: u64 = MAX_PIECE_COUNT as u64 * PIECE_LEN as u64;

    /// The layout of a file of `size` bytes.
    ///
    /// # Errors
    /// [`TooLarge`] above [`Self::MAX_SIZE`].
    pub fn new(size: u64) -> Result<Self, TooLarge> {
        if size > Self::MAX_SIZE { Err(TooLarge { size }) } else { Ok(Self { size }) }
    }

    /// Bytes in the file.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Pieces in the file; an empty file has none.
    pub fn piece_count(self) -> u32 {
        // Fits: `new` bounds the size.
        self.size.div_ceil(u64::from(PIECE_LEN)) as u32
    }

    /// Hash pages of the file; an empty file has none.
    pub fn page_count(self) -> u32 {
        self.piece_count().div_ceil(PAGE_PIECES)
    }

    /// Pieces that page `page` describes; empty beyond the last page.
    pub fn page_pieces(self, page: u32) -> Range<u32> {
        let count = self.piece_count();
        let start = page.saturating_mul(PAGE_PIECES).min(count);
        start..start.saturating_add(PAGE_PIECES).min(count)
    }

    /// The piece at position `index`, if there is one.
    pub fn piece(self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count()).then_some(PieceIndex(index))
    }

    /// All pieces in ascending order.
    pub fn pieces(self) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// Whether `piece` is one of this layout.
    pub fn contains(self, piece: PieceIndex) -> bool {
        piece.0 < self.piece_count()
    }

    /// Bytes from the start of the file to the start of `piece`.
    pub fn offset(self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(PIECE_LEN)
    }

    /// Bytes in `piece`.
    pub fn len(self, piece: PieceIndex) -> u32 {
        // At most PIECE_LEN, so it fits.
        (self.size - self.offset(piece)).min(u64::from(PIECE_LEN)) as u32
    }

    /// Whether the file has no bytes.
    pub fn is_empty(self) -> bool {
        self.size == 0
    }
}

impl PieceIndex {
    /// The position as a number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The position as an index into a `Vec`.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        let p = u64::from(PIECE_LEN);
        for (size, count, last) in
            [(0, 0, 0), (1, 1, 1), (p - 1, 1, p - 1), (p, 1, p), (p + 1, 2, 1), (3 * p, 3, p)]
        {
            let layout = PieceLayout::new(size).expect("fits");
            assert_eq!(layout.piece_count(), count, "{size}");
            assert_eq!(layout.piece(count), None);
            if let Some(piece) = layout.pieces().next_back() {
                assert_eq!(u64::from(layout.len(piece)), last, "{size}");
            }
        }
        assert!(PieceLayout::new(PieceLayout::MAX_SIZE).is_ok());
        assert!(PieceLayout::new(PieceLayout::MAX_SIZE + 1).is_err());
    }

    proptest! {
        #[test]
        fn pieces_tile_the_file(size in 0..PieceLayout::MAX_SIZE / 1000) {
            let layout = PieceLayout::new(size).expect("fits");
            let mut end = 0;
            for piece in layout.pieces() {
                prop_assert_eq!(layout.offset(piece), end);
                prop_assert!(layout.len(piece) > 0);
                end += u64::from(layout.len(piece));
            }
            prop_assert_eq!(end, size);
            let paged: usize = (0..layout.page_count()).map(|p| layout.page_pieces(p).len()).sum();
            prop_assert_eq!(paged, layout.pieces().len());
            prop_assert!(layout.page_pieces(layout.page_count()).is_empty());
        }
    }
}
