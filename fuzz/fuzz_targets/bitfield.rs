//! A bitfield of any layout from any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtq::bitfield::Bitfield;
use mtq::limits::PIECE_LEN;
use mtq::piece::PieceLayout;

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (pieces, rest, bytes) = input;
    let size = u64::from(pieces) * u64::from(PIECE_LEN) + u64::from(rest);
    let Ok(layout) = PieceLayout::new(size) else { return };
    let Ok(field) = Bitfield::from_bytes(layout, bytes) else { return };
    assert_eq!(field.as_bytes(), bytes);
    assert_eq!(field.iter().count(), field.count() as usize);
    assert!(field.common(&field).eq(field.iter()));
});
