//! The pieces of a download that are in flight: who is asked for each, and what is being verified.

use std::collections::BTreeMap;

use super::event::PeerKey;
use crate::piece::PieceIndex;

/// One piece in flight.
#[derive(Debug, Default)]
pub struct Flight {
    /// Who is asked for it: nobody, one, or at the very end two.
    pub holders: Vec<PeerKey>,
    /// Copies of it that are being verified.
    pub verifying: u32,
    /// From whom it was taken.
    pub stolen_from: Vec<PeerKey>,
    /// Whether a second copy was asked for.
    pub doubled: bool,
}

/// All pieces in flight.
#[derive(Debug, Default)]
pub struct Flights {
    pieces: BTreeMap<PieceIndex, Flight>,
}

impl Flights {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// All of them, in order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (PieceIndex, &Flight)> {
        self.pieces.iter().map(|(piece, flight)| (*piece, flight))
    }

    /// The flight of a piece, if it is in flight.
    pub fn of(&self, piece: PieceIndex) -> Option<&Flight> {
        self.pieces.get(&piece)
    }

    /// A peer is asked for a piece; when `stolen`, instead of who was before.
    pub fn ask(&mut self, piece: PieceIndex, peer: PeerKey, stolen_from: Option<PeerKey>) {
        let flight = self.pieces.entry(piece).or_default();
        flight.holders.push(peer);
        flight.stolen_from.extend(stolen_from);
    }

    /// A second peer is asked for a piece.
    pub fn double(&mut self, piece: PieceIndex, peer: PeerKey) {
        self.ask(piece, peer, None);
        if let Some(flight) = self.pieces.get_mut(&piece) {
            flight.doubled = true;
        }
    }

    /// A peer is not asked for a piece any more.
    pub fn drop_holder(&mut self, piece: PieceIndex, peer: PeerKey) {
        if let Some(flight) = self.pieces.get_mut(&piece) {
            flight.holders.retain(|holder| *holder != peer);
        }
    }

    /// A copy of a piece goes to be verified.
    pub fn verify(&mut self, piece: PieceIndex) {
        self.pieces.entry(piece).or_default().verifying += 1;
    }

    /// A copy of a piece is not being verified any more; whether one was.
    pub fn verified(&mut self, piece: PieceIndex) -> bool {
        match self.pieces.get_mut(&piece) {
            Some(flight) if flight.verifying > 0 => {
                flight.verifying -= 1;
                true
            }
            _ => false,
        }
    }

    /// A piece is not in flight any more.
    pub fn remove(&mut self, piece: PieceIndex) -> Option<Flight> {
        self.pieces.remove(&piece)
    }

    /// Removes a piece that nobody brings any more; whether it was one.
    pub fn remove_idle(&mut self, piece: PieceIndex) -> bool {
        let idle = |flight: &Flight| flight.holders.is_empty() && flight.verifying == 0;
        let idle = self.pieces.get(&piece).is_some_and(idle);
        if idle {
            self.pieces.remove(&piece);
        }
        idle
    }
}
