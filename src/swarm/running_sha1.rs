//! The SHA-1 of a whole file that arrives in pieces, in any order, and with it those of its pieces.
//!
//! SHA-1 must see every byte in order. A piece that comes when it is the next one is taken from
//! memory; one that came too early is read back once the pieces before it are in. Both SHA-1s of a byte
//! are taken in one go, so this is where a piece with a false one is found out, though it is the piece.
//! It does no IO: who feeds it reads, and says from where the bytes came.

use crate::hash::{self, Sha1Hash, Sha1Hasher};
use crate::piece::{PieceIndex, PieceLayout};

/// Where the bytes of a piece came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They had just arrived.
    Memory,
    /// They were read back.
    Disk,
}

/// The SHA-1 of this piece is not what the manifest says; if its bytes are right, the manifest is false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FalsePiece(pub PieceIndex);

/// A SHA-1 that has seen the first pieces of a file, which had the SHA-1s they should have.
#[derive(Clone)]
pub struct RunningSha1 {
    layout: PieceLayout,
    hasher: Sha1Hasher,
    next: u32,
    reread_bytes: u64,
}

impl RunningSha1 {
    /// One that has seen nothing.
    pub fn new(layout: PieceLayout) -> Self {
        Self { layout, hasher: Sha1Hasher::default(), next: 0, reread_bytes: 0 }
    }

    /// The piece it needs; `None` when it has seen all.
    pub fn next(&self) -> Option<PieceIndex> {
        self.layout.piece(self.next)
    }

    /// Adds the bytes of `piece`, which come in parts and should have this SHA-1, if that is the piece
    /// needed; whether it was.
    ///
    /// The bytes must have been verified once: what was added is never looked at again. A disk may have lost
    /// them since, and then no SHA-1 is right by accident.
    ///
    /// # Errors
    /// [`FalsePiece`]; nothing was added then.
    pub fn feed<'a>(
        &mut self,
        (piece, expected): (PieceIndex, Sha1Hash),
        parts: impl Iterator<Item = &'a [u8]> + Clone,
        source: Source,
    ) -> Result<bool, FalsePiece> {
        let len: usize = parts.clone().map(<[u8]>::len).sum();
        if self.next() != Some(piece) || len != self.layout.len(piece) as usize {
            return Ok(false);
        }
        let (mut own, mut further) = (Sha1Hasher::default(), self.hasher());
        parts.for_each(|part| hash::update_both(&mut own, &mut further, part));
        if own.finish() != expected {
            return Err(FalsePiece(piece));
        }
        self.advance(further);
        if source == Source::Disk {
            self.reread_bytes += len as u64;
        }
        Ok(true)
    }

    /// The state to be taken further over the piece it needs.
    pub fn hasher(&self) -> Sha1Hasher {
        self.hasher.clone()
    }

    /// Goes on with a state that has seen the piece it needed, which was right.
    pub fn advance(&mut self, hasher: Sha1Hasher) {
        self.hasher = hasher;
        self.next += 1;
    }

    /// The SHA-1 of the file, once every piece was seen.
    pub fn value(&self) -> Option<Sha1Hash> {
        self.next().is_none().then(|| self.hasher.clone().finish())
    }

    /// Bytes that were read back.
    pub fn reread_bytes(&self) -> u64 {
        self.reread_bytes
    }
}

impl std::fmt::Debug for RunningSha1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningSha1").field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;
    use crate::hash;
    use crate::limits::PIECE_LEN;

    #[test]
    fn takes_only_the_next_piece_and_ends_with_the_files_sha1() {
        let p = PIECE_LEN as usize;
        let content: Vec<u8> = (0..2 * p + 5).map(|i| (i ^ (i >> 8)) as u8).collect();
        let layout = PieceLayout::new(content.len() as u64).expect("fits");
        let [a, b, c] = [0, 1, 2].map(|index| layout.piece(index).expect("exists"));
        let mut sha1 = RunningSha1::new(layout);
        let with = |piece: PieceIndex, bytes| ((piece, hash::sha1(bytes)), once(bytes));
        let mut feed = |(piece, parts), source| sha1.feed(piece, parts, source);
        assert_eq!(feed(with(b, &content[p..2 * p]), Source::Memory), Ok(false));
        assert_eq!(feed(with(a, &content[..p - 1]), Source::Memory), Ok(false));
        let (_, first) = with(a, &content[..p]);
        assert_eq!(feed(((a, hash::sha1(b"x")), first), Source::Memory), Err(FalsePiece(a)));
        assert_eq!(feed(with(a, &content[..p]), Source::Memory), Ok(true));
        assert_eq!(feed(with(a, &content[..p]), Source::Memory), Ok(false));
        assert_eq!(feed(with(b, &content[p..2 * p]), Source::Disk), Ok(true));
        assert_eq!(feed(with(c, &content[2 * p..]), Source::Memory), Ok(true));
        assert_eq!(sha1.reread_bytes(), p as u64);
        assert_eq!((sha1.value(), sha1.next()), (Some(hash::sha1(&content)), None));
    }

    #[test]
    fn an_empty_file_has_a_value_at_once() {
        let sha1 = RunningSha1::new(PieceLayout::new(0).expect("fits"));
        assert_eq!(sha1.value(), Some(hash::sha1(b"")));
    }
}
