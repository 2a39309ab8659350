//! Pictures of swarms for tests: one row a peer, one character a piece, `#` for a piece it has.

use crate::bitfield::Bitfield;
use crate::limits::PIECE_LEN;
use crate::piece::PieceLayout;

/// A layout of `count` whole pieces.
pub(crate) fn layout(count: usize) -> PieceLayout {
    PieceLayout::new(count as u64 * u64::from(PIECE_LEN)).expect("fits")
}

/// The pieces drawn in `picture`.
pub(crate) fn row(layout: PieceLayout, picture: &str) -> Bitfield {
    assert_eq!(picture.len(), layout.piece_count() as usize);
    let mut field = Bitfield::none(layout);
    for (piece, _) in layout.pieces().zip(picture.bytes()).filter(|(_, c)| *c == b'#') {
        field.insert(piece);
    }
    field
}
