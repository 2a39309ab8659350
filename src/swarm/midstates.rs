//! SHA-1 midstates of a piece: they prove its SHA-1, and take the file's over it, in any order.
//!
//! A SHA-1 must see its bytes in order: each block needs the state that the one before it left. Whoever
//! is told the states at a few marks can go over the parts between them at once, and out of
//! order, and sees whether each part leads from its state to the next. So nothing of what is told
//! need be believed: states that are not so prove nothing, and those that are prove as much as going over
//! all bytes from the start.

use crate::hash::{self, Sha1Hash, Sha1Hasher, Sha1State, fixed_bytes};
use crate::limits::PIECE_LEN;

/// Parts of a piece.
pub const PARTS: usize = 16;

/// Bytes of a part.
pub const PART_LEN: usize = PIECE_LEN as usize / PARTS;

fixed_bytes! {
    /// Of a piece of the full length: the states of its own SHA-1 after each part but the last, then those
    /// of the file's SHA-1 before each part.
    Midstates, (2 * PARTS - 1) * Sha1State::LEN
}

/// From which state to which a piece takes the file's SHA-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Before it.
    pub before: Sha1State,
    /// After it.
    pub after: Sha1State,
}

impl Midstates {
    /// The states of a piece's SHA-1 after each part but the last, and of the file's before each part;
    /// nothing when they are not as many.
    pub fn new(own: &[Sha1State], file: &[Sha1State]) -> Option<Self> {
        let mut all = [0; Self::LEN];
        if (own.len(), file.len()) != (PARTS - 1, PARTS) {
            return None;
        }
        for (bytes, state) in all.chunks_exact_mut(Sha1State::LEN).zip(own.iter().chain(file)) {
            bytes.copy_from_slice(&state.to_bytes());
        }
        Some(Self(all))
    }

    /// Goes over a piece whose SHA-1 should be `sha1`. Where the states are so, its SHA-1 is, and this is
    /// what it does to the file's.
    pub fn prove(&self, piece: &[u8], sha1: Sha1Hash) -> Option<Link> {
        if piece.len() != PIECE_LEN as usize {
            return None;
        }
        let before = self.before_each();
        let mut states = before;
        let parts = std::array::from_fn(|part| &piece[part * PART_LEN..][..PART_LEN]);
        hash::advance_pairs(&mut states, parts);
        let [own, after] = states[PARTS - 1];
        let leads_on = states[..PARTS - 1] == before[1..];
        let is_right = Sha1Hasher::at(own, PIECE_LEN.into()).finish() == sha1;
        let [_, before] = before[0];
        (leads_on && is_right).then_some(Link { before, after })
    }

    /// The piece's own state and the file's before each part.
    fn before_each(&self) -> [[Sha1State; 2]; PARTS] {
        let (states, _) = self.0.as_chunks();
        let state = |at: usize| Sha1State::from_bytes(states[at]);
        let own = |part| if part == 0 { Sha1State::FIRST } else { state(part - 1) };
        std::array::from_fn(|part| [own(part), state(PARTS - 1 + part)])
    }
}

/// The midstates of the first pieces of a file, as they are when one goes over all of it.
#[cfg(test)]
pub fn midstates_of(content: &[u8]) -> Vec<Midstates> {
    let mut file = Sha1Hasher::default();
    let (pieces, _) = content.as_chunks::<{ PIECE_LEN as usize }>();
    let of_piece = |piece: &[u8; PIECE_LEN as usize]| {
        let mut own = Sha1Hasher::default();
        let (mut owns, mut files) = (Vec::new(), Vec::new());
        for part in piece.chunks(PART_LEN) {
            owns.extend(own.state());
            files.extend(file.state());
            own.update(part);
            file.update(part);
        }
        Midstates::new(&owns[1..], &files).expect("as many")
    };
    pieces.iter().map(of_piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Vec<u8> {
        (0..3 * PIECE_LEN as usize + 5).map(|i| (i ^ (i >> 8)) as u8).collect()
    }

    #[test]
    fn a_piece_is_proven_and_leads_from_its_neighbour_to_its_neighbour() {
        let content = content();
        let all = midstates_of(&content);
        let pieces: Vec<_> = content.chunks(PIECE_LEN as usize).collect();
        let mut file = Sha1State::FIRST;
        for (midstates, piece) in all.iter().zip(&pieces) {
            let link = midstates.prove(piece, hash::sha1(piece)).expect("they are so");
            assert_eq!(link.before, file);
            file = link.after;
        }
        let mut rest = Sha1Hasher::at(file, 3 * u64::from(PIECE_LEN));
        rest.update(pieces[3]);
        assert_eq!(rest.finish(), hash::sha1(&content));
    }

    #[test]
    fn what_is_not_so_proves_nothing() {
        let content = content();
        let piece = &content[..PIECE_LEN as usize];
        let sha1 = hash::sha1(piece);
        let midstates = midstates_of(&content)[0];
        for at in (0..Midstates::LEN).step_by(7) {
            let mut wrong = midstates;
            wrong.0[at] ^= 1;
            assert_eq!(wrong.prove(piece, sha1), None, "{at}");
        }
        assert_eq!(midstates.prove(piece, hash::sha1(b"x")), None);
        assert_eq!(midstates.prove(&piece[1..], sha1), None);
        let mut other = piece.to_vec();
        other[300_000] ^= 1;
        assert_eq!(midstates.prove(&other, sha1), None);
    }
}
