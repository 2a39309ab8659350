//! Pieces that were written and wait in memory for the whole file's SHA-1, which takes them in order.
//!
//! It keeps what comes soon after the piece that is needed, as far as there is room; what it does not
//! keep is read back from the disk in time. It hashes nothing.

use std::collections::BTreeMap;

use super::chunks::Chunks;
use crate::piece::PieceIndex;

/// Pieces in memory, and which is needed.
#[derive(Debug)]
pub struct Ahead {
    waiting: BTreeMap<PieceIndex, Chunks>,
    room: u64,
    /// The piece that the SHA-1 needs; nothing when it has seen all.
    next: Option<PieceIndex>,
    running: bool,
}

impl Ahead {
    /// Nothing waits, and the SHA-1 needs this piece.
    pub fn new(next: Option<PieceIndex>) -> Self {
        Self { waiting: BTreeMap::new(), room: 0, next, running: false }
    }

    /// From now on so many bytes may wait.
    pub fn set_room(&mut self, bytes: u64) {
        self.room = bytes;
        self.make_room();
    }

    /// A piece was written. Where there is not enough room the last go: they are needed last.
    pub fn add(&mut self, piece: PieceIndex, chunks: Chunks) {
        if self.next.is_some_and(|next| next <= piece) {
            self.waiting.insert(piece, chunks);
            self.make_room();
        }
    }

    /// The piece that is needed, unless the SHA-1 is just being taken further.
    pub fn next(&self) -> Option<PieceIndex> {
        self.next.filter(|_| !self.running)
    }

    /// Whether the SHA-1 is just being taken further.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Whether the piece that is needed waits here.
    pub fn has_next(&self) -> bool {
        self.next.is_some_and(|next| self.waiting.contains_key(&next))
    }

    /// The SHA-1 is taken further from now on: over these, which follow each other.
    pub fn begin(&mut self) -> Vec<(PieceIndex, Chunks)> {
        self.running = true;
        let mut run: Vec<(PieceIndex, Chunks)> = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            let follows = match run.last() {
                None => self.next == Some(*first.key()),
                Some((last, _)) => last.get() + 1 == first.key().get(),
            };
            if !follows {
                break;
            }
            run.push(first.remove_entry());
        }
        run
    }

    /// It was taken further over what it [began](Self::begin) with, and needs this piece next.
    pub fn hashed(&mut self, next: Option<PieceIndex>) {
        self.running = false;
        self.seen(next);
    }

    /// It was taken so far that it needs this piece next; whoever says so late says nothing new.
    pub fn seen(&mut self, next: Option<PieceIndex>) {
        self.next = self.next.zip(next).map(|(known, next)| known.max(next));
        self.waiting.retain(|piece, _| self.next.is_some_and(|next| next <= *piece));
    }

    /// Bytes that wait: of few pieces, so that they are counted when that matters.
    fn bytes(&self) -> u64 {
        self.waiting.values().map(|chunks| chunks.len() as u64).sum()
    }

    fn make_room(&mut self) {
        // The one that is needed goes on at once, and takes no room for long.
        while self.bytes() > self.room && self.waiting.len() > usize::from(self.has_next()) {
            self.waiting.pop_last();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_LEN;
    use crate::piece::PieceLayout;

    const P: u64 = PIECE_LEN as u64;

    fn piece(index: u32) -> PieceIndex {
        PieceLayout::new(20 * P).expect("fits").piece(index).expect("exists")
    }

    fn add(ahead: &mut Ahead, index: u32) {
        ahead.add(piece(index), Chunks::from(vec![index as u8; P as usize]));
    }

    fn begun(ahead: &mut Ahead) -> Vec<u32> {
        ahead.begin().into_iter().map(|(piece, _)| piece.get()).collect()
    }

    #[test]
    fn what_follows_goes_on_together_and_the_last_go_first() {
        let mut ahead = Ahead::new(Some(piece(0)));
        ahead.set_room(3 * P);
        [2, 1, 5].into_iter().for_each(|index| add(&mut ahead, index));
        assert!(!ahead.has_next());
        add(&mut ahead, 0);
        assert_eq!(begun(&mut ahead), [0, 1, 2], "the fifth had to go");
        assert_eq!(ahead.next(), None, "it is being taken further");
        [2, 3, 6].into_iter().for_each(|index| add(&mut ahead, index));
        ahead.hashed(Some(piece(3)));
        assert_eq!((ahead.next(), ahead.has_next()), (Some(piece(3)), true));
        assert_eq!(begun(&mut ahead), [3]);
        ahead.hashed(Some(piece(4)));
        add(&mut ahead, 2);
        assert_eq!(ahead.bytes(), P, "the sixth; what was seen is not kept");
        ahead.hashed(None);
        assert_eq!((ahead.bytes(), ahead.next()), (0, None));
    }

    #[test]
    fn without_room_only_what_is_needed_is_kept() {
        let mut ahead = Ahead::new(Some(piece(7)));
        [6, 8].into_iter().for_each(|index| add(&mut ahead, index));
        assert_eq!(ahead.bytes(), 0);
        add(&mut ahead, 7);
        add(&mut ahead, 8);
        assert_eq!((ahead.bytes(), begun(&mut ahead)), (P, vec![7]));
    }
}
