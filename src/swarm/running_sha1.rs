//! The SHA-1 of a whole file that arrives in pieces, in any order.
//!
//! SHA-1 must see every byte in order. A piece that comes when it is the next one is taken from
//! memory; one that came too early is read back once the pieces before it are in. It does no IO: who
//! feeds it reads, and says from where the bytes came.

use crate::hash::{Sha1Hash, Sha1Hasher};
use crate::piece::{PieceIndex, PieceLayout};

/// Where the bytes of a piece came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They had just arrived.
    Memory,
    /// They were read back.
    Disk,
}

/// A SHA-1 that has seen the first pieces of a file.
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

    /// Adds the bytes of `piece`, which come in parts, if that is the one needed; whether it was.
    ///
    /// The bytes must have been verified: what was added is never looked at again.
    pub fn feed<'a>(
        &mut self,
        piece: PieceIndex,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
        source: Source,
    ) -> bool {
        let len: usize = parts.clone().map(<[u8]>::len).sum();
        if self.next() != Some(piece) || len != self.layout.len(piece) as usize {
            return false;
        }
        parts.for_each(|part| self.hasher.update(part));
        self.next += 1;
        if source == Source::Disk {
            self.reread_bytes += len as u64;
        }
        true
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
        assert!(!sha1.feed(b, once(&content[p..2 * p]), Source::Memory));
        assert!(!sha1.feed(a, once(&content[..p - 1]), Source::Memory));
        assert!(sha1.feed(a, once(&content[..p]), Source::Memory));
        assert!(!sha1.feed(a, once(&content[..p]), Source::Memory));
        assert!(sha1.feed(b, once(&content[p..2 * p]), Source::Disk));
        assert_eq!((sha1.value(), sha1.reread_bytes()), (None, p as u64));
        assert!(sha1.feed(c, once(&content[2 * p..]), Source::Memory));
        assert_eq!((sha1.value(), sha1.next()), (Some(hash::sha1(&content)), None));
    }

    #[test]
    fn an_empty_file_has_a_value_at_once() {
        let sha1 = RunningSha1::new(PieceLayout::new(0).expect("fits"));
        assert_eq!(sha1.value(), Some(hash::sha1(b"")));
    }
}
