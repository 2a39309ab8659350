//! The SHA-1 of a whole file that arrives in pieces, in any order, and with it those of its pieces.
//!
//! SHA-1 must see every byte in order. A piece that comes when it is the next one is taken from
//! memory; one that came too early is read back once the pieces before it are in. Both SHA-1s of a byte
//! are taken in one go, so this is where a piece with a false one is found out, though it is the piece.
//! A piece that came with [midstates](super::midstates) is not needed again: what it does to the SHA-1 is known.
//! It does no IO: who feeds it reads, and says from where the bytes came.

use std::collections::BTreeMap;

use super::midstates::Link;
use crate::bitfield::Bitfield;
use crate::hash::{self, Sha1Hash, Sha1Hasher};
use crate::limits::PIECE_LEN;
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

/// What comes of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// The piece need not be gone over, as far as is known.
    Taken,
    /// It was seen before.
    Seen,
    /// It does not begin where the SHA-1 is now: the piece has to be gone over.
    Astray,
}

/// A SHA-1 that has seen the first pieces of a file, which had the SHA-1s they should have.
#[derive(Clone)]
pub struct RunningSha1 {
    layout: PieceLayout,
    hasher: Sha1Hasher,
    next: u32,
    /// What later pieces do to it, each from a state that it need not come to.
    links: BTreeMap<PieceIndex, Link>,
    /// The pieces that it went on over by their links.
    followed: Bitfield,
    reread_bytes: u64,
}

impl RunningSha1 {
    /// One that has seen nothing.
    pub fn new(layout: PieceLayout) -> Self {
        let (hasher, links) = (Sha1Hasher::default(), BTreeMap::new());
        let followed = Bitfield::none(layout);
        Self { layout, hasher, next: 0, links, followed, reread_bytes: 0 }
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
        self.follow();
    }

    /// What a piece does to it, which had the SHA-1 it should have.
    pub fn link(&mut self, piece: PieceIndex, link: Link) -> Linked {
        if piece.get() < self.next {
            return Linked::Seen;
        }
        self.links.insert(piece, link);
        self.follow();
        match piece.get() < self.next || self.links.contains_key(&piece) {
            true => Linked::Taken,
            false => Linked::Astray,
        }
    }

    /// The pieces that it has not seen, but for those of which it is known what they do to it.
    pub fn unseen(&self) -> impl Iterator<Item = PieceIndex> {
        let rest = self.layout.pieces().skip(self.next as usize);
        rest.filter(|piece| !self.links.contains_key(piece))
    }

    /// The pieces that it went on over by their links: what was said of these is so.
    pub fn followed(&self) -> &Bitfield {
        &self.followed
    }

    /// Goes on over pieces of which it is known what they do to it. One of which something else was said
    /// has to be gone over.
    fn follow(&mut self) {
        while let Some(piece) = self.next()
            && let Some(link) = self.links.remove(&piece)
        {
            if Some(link.before) != self.hasher.state() {
                break;
            }
            self.followed.insert(piece);
            self.next += 1;
            self.hasher = Sha1Hasher::at(link.after, self.seen_bytes());
        }
    }

    /// Bytes of the pieces it has seen, where these have the full length.
    fn seen_bytes(&self) -> u64 {
        u64::from(self.next) * u64::from(PIECE_LEN)
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
    use crate::hash::Sha1State;
    use crate::swarm::midstates::midstates_of;

    #[test]
    fn pieces_with_links_are_not_needed_and_a_false_link_is_found_out() {
        let p = PIECE_LEN as usize;
        let content: Vec<u8> = (0..5 * p + 5).map(|i| (i ^ (i >> 8)) as u8).collect();
        let layout = PieceLayout::new(content.len() as u64).expect("fits");
        let pieces: Vec<_> = layout.pieces().collect();
        let bytes = |at: usize| &content[at * p..content.len().min((at + 1) * p)];
        let all = midstates_of(&content);
        let link = |at: usize| all[at].prove(bytes(at), hash::sha1(bytes(at))).expect("proven");
        let with = |at: usize| ((pieces[at], hash::sha1(bytes(at))), once(bytes(at)));
        let needs = |sha1: &RunningSha1| sha1.unseen().map(PieceIndex::get).collect::<Vec<_>>();
        let mut sha1 = RunningSha1::new(layout);
        assert_eq!(sha1.link(pieces[1], link(1)), Linked::Taken);
        assert_eq!(sha1.link(pieces[4], link(4)), Linked::Taken);
        assert_eq!((sha1.next(), needs(&sha1)), (Some(pieces[0]), vec![0, 2, 3, 5]));
        sha1.link(pieces[0], link(0));
        assert_eq!(sha1.next(), Some(pieces[2]));
        let elsewhere = Link { before: Sha1State::FIRST, ..link(2) };
        assert_eq!(sha1.link(pieces[2], elsewhere), Linked::Astray);
        // It leads from where the file never comes.
        sha1.link(pieces[3], Link { before: Sha1State::FIRST, ..link(3) });
        sha1.link(pieces[2], link(2));
        assert_eq!((sha1.next(), needs(&sha1)), (Some(pieces[3]), vec![3, 5]));
        assert_eq!(sha1.followed().iter().collect::<Vec<_>>(), pieces[..3]);
        let (piece, parts) = with(3);
        assert_eq!(sha1.feed(piece, parts, Source::Disk), Ok(true));
        assert_eq!(sha1.next(), Some(pieces[5]));
        let (piece, parts) = with(5);
        assert_eq!(sha1.feed(piece, parts, Source::Memory), Ok(true));
        assert_eq!(sha1.value(), Some(hash::sha1(&content)));
        assert_eq!(sha1.reread_bytes(), p as u64);
        assert_eq!(sha1.link(pieces[1], link(1)), Linked::Seen);
        assert_eq!(needs(&sha1), Vec::<u32>::new());
    }

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
