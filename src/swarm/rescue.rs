//! What a peer with nothing else to do takes over from others, so that no download waits for its slowest
//! source.
//!
//! It takes the piece that is expected last, from a peer that would need much longer for it. When nothing
//! is left to begin, it also takes what its holder has not begun to send, which costs nothing; and of the
//! very last pieces it may bring a second copy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::PeerKey;
use super::flights::{Flight, Flights};
use super::peer::Peer;
use crate::name::UserName;
use crate::piece::PieceIndex;

/// A piece is taken from a peer that would need so many times longer.
const STEAL_RATIO: u32 = 3;

/// How often one piece may be taken from somebody, in one flight: then it is left where it is.
const MAX_STEALS: usize = 3;

/// A second copy must come so many times earlier than the first.
const DUPLICATE_RATIO: u32 = 2;

/// What taking over must save to be worth it at all.
const WORTHWHILE: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescue {
    /// Ask for a piece, and stop asking `from`.
    Steal {
        /// Which piece.
        piece: PieceIndex,
        /// From whom it is taken.
        from: PeerKey,
    },
    /// Ask for a piece that somebody else is asked for too.
    Duplicate {
        /// Which piece.
        piece: PieceIndex,
    },
    /// Nothing yet: look again a little later.
    Later,
    /// Nothing: nobody is asked for what this peer has.
    Nothing,
}

/// What it depends on.
#[derive(Debug)]
pub struct Scene<'a> {
    /// All peers.
    pub peers: &'a BTreeMap<PeerKey, Peer>,
    /// What is in flight.
    pub flights: &'a Flights,
    /// Whether nothing is left to begin.
    pub at_end: bool,
    /// How many second copies may still be asked for.
    pub duplicates_left: u32,
}

impl Scene<'_> {
    /// What the peer `key` takes over now. `failed` says who failed on which piece.
    pub fn rescue(
        &self,
        now: Duration,
        key: PeerKey,
        len: impl Fn(PieceIndex) -> u32,
        failed: impl Fn(&UserName, PieceIndex) -> bool,
    ) -> Rescue {
        let Some(peer) = self.peers.get(&key) else { return Rescue::Nothing };
        let mut latest: Option<(Duration, PieceIndex, PeerKey, &Flight)> = None;
        for (holder, other) in self.peers.iter().filter(|(holder, _)| **holder != key) {
            // What a peer was asked for last comes last.
            for asked in other.pipe.asked().iter().rev() {
                let expected = other.expected(now, asked.piece);
                if latest.is_some_and(|(theirs, ..)| theirs >= expected) {
                    break;
                }
                let fits = peer.pieces.contains(asked.piece)
                    && (peer.suspect.is_none() || !failed(&peer.user, asked.piece));
                let flight = self.flights.of(asked.piece).filter(|flight| {
                    fits && (self.at_end || !asked.begun) && flight.verifying == 0 && flight.holders == [*holder]
                });
                if let Some(flight) = flight {
                    latest = Some((expected, asked.piece, *holder, flight));
                    break;
                }
            }
        }
        let Some((theirs, piece, from, flight)) = latest else { return Rescue::Nothing };
        let ours = peer.pipe.expected_next(now, len(piece));
        let untouched = !self.peers.get(&from).is_some_and(|peer| peer.pipe.has_begun(piece));
        let ratio = if self.at_end && untouched { 1 } else { STEAL_RATIO };
        if is_stealable(flight, key) && theirs > ratio * ours + WORTHWHILE {
            return Rescue::Steal { piece, from };
        }
        if self.duplicates_left > 0 && theirs > DUPLICATE_RATIO * ours + WORTHWHILE {
            return Rescue::Duplicate { piece };
        }
        Rescue::Later
    }
}

/// Whether a peer may take a piece away from whoever has it: not one that lost it, nor for ever.
fn is_stealable(flight: &Flight, thief: PeerKey) -> bool {
    flight.stolen_from.len() < MAX_STEALS && !flight.stolen_from.contains(&thief)
}
