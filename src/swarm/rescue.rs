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
use super::pipe::Asked;
use crate::name::UserName;
use crate::piece::PieceIndex;

/// A piece is taken from a peer that would need so many times longer.
const STEAL_RATIO: u32 = 3;

/// How often one piece may be taken from somebody, in one flight: then it is left where it is.
const MAX_STEALS: usize = 3;

/// A second copy must come so many times earlier than the first.
const DUPLICATE_RATIO: u32 = 2;

/// When nothing may be wasted any more, what is on its way is still taken from a peer that would need
/// so much longer.
const HOPELESS: Duration = Duration::from_secs(60);

/// Time that a peer has to answer, beside two round trips.
const ANSWER: Duration = Duration::from_millis(50);

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
    /// Nothing now.
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
    /// Bytes that may still be wasted.
    pub spare: u64,
}

impl Scene<'_> {
    /// What the peer `key` takes over now, of all or of a piece that it has only just got. `failed`
    /// says who failed on which piece.
    pub fn rescue(
        &self,
        now: Duration,
        key: PeerKey,
        only: Option<PieceIndex>,
        failed: impl Fn(&UserName, PieceIndex) -> bool,
    ) -> Rescue {
        let Some(peer) = self.peers.get(&key) else { return Rescue::Nothing };
        // As long as its answer may be on its way, nothing is known of a request.
        let patience = |holder| {
            self.peers.get(&holder).map_or(Duration::ZERO, |holder| 2 * holder.pipe.rtt() + ANSWER)
        };
        let may = |holder: PeerKey, asked: &Asked| {
            let fits = peer.pieces.contains(asked.piece)
                && (self.at_end || !asked.begun)
                && (asked.begun || asked.at + patience(holder) <= now)
                && (peer.suspect.is_none() || !failed(&peer.user, asked.piece));
            fits && holder != key
                && self.flights.of(asked.piece).is_some_and(|flight| {
                    let alone = flight.verifying == 0 && flight.holders == [holder];
                    alone && (is_stealable(flight, key) || self.spare > 0)
                })
        };
        let latest = match only {
            Some(piece) => self.flights.of(piece).and_then(|flight| {
                let holder = *flight.holders.first()?;
                let (asked, expected) = self.peers.get(&holder)?.expected(now, piece)?;
                may(holder, asked).then_some((holder, *asked, expected))
            }),
            None => {
                let mut latest: Option<(PeerKey, Asked, Duration)> = None;
                for (holder, other) in self.peers {
                    let before = latest.map_or(Duration::ZERO, |(.., expected)| expected);
                    let mut later =
                        other.expectations(now).take_while(|(_, expected)| *expected > before);
                    if let Some((asked, expected)) = later.find(|(asked, _)| may(*holder, asked)) {
                        latest = Some((*holder, *asked, expected));
                    }
                }
                latest
            }
        };
        let Some((from, asked, theirs)) = latest else { return Rescue::Nothing };
        let piece = asked.piece;
        let ours = peer.pipe.expected_next(now, asked.len);
        let ratio = if self.at_end && !asked.begun { 1 } else { STEAL_RATIO };
        let affordable = asked.waste() <= self.spare || theirs > STEAL_RATIO * ours + HOPELESS;
        let stealable = self.flights.of(piece).is_some_and(|flight| is_stealable(flight, key));
        if stealable && affordable && theirs > ratio * ours + WORTHWHILE {
            return Rescue::Steal { piece, from };
        }
        let affordable = u64::from(asked.len) <= self.spare;
        if affordable && theirs > DUPLICATE_RATIO * ours + WORTHWHILE {
            return Rescue::Duplicate { piece };
        }
        Rescue::Nothing
    }
}

/// Whether a peer may take a piece away from whoever has it: not one that lost it, nor for ever.
fn is_stealable(flight: &Flight, thief: PeerKey) -> bool {
    flight.stolen_from.len() < MAX_STEALS && !flight.stolen_from.contains(&thief)
}
