//! Which pieces of a whole file were found right lately: while its stamp stays, they are not gone through
//! each time one is sent.
//!
//! A stamp does not show everything: a disk rots, and a program may change bytes through a mapping. So
//! nothing is taken on trust for long.

use std::time::{Duration, Instant};

use crate::bitfield::Bitfield;
use crate::piece::{PieceIndex, PieceLayout};

/// What was found right is gone through again when it is sent later than this.
const TRUSTED: Duration = Duration::from_secs(600);

/// Pieces that were found right, and since when.
#[derive(Debug)]
pub struct Checked {
    pieces: Bitfield,
    /// When the first of them was gone through.
    since: Instant,
}

impl Checked {
    /// None so far.
    pub fn none(layout: PieceLayout, now: Instant) -> Self {
        Self { pieces: Bitfield::none(layout), since: now }
    }

    /// All of a file that was hashed from then on.
    pub fn all(layout: PieceLayout, since: Instant) -> Self {
        Self { pieces: Bitfield::all(layout), since }
    }

    /// Whether `piece` need not be gone through now.
    pub fn has(&self, piece: PieceIndex, now: Instant) -> bool {
        self.pieces.contains(piece) && !self.is_over(now)
    }

    /// It was, and is right.
    pub fn add(&mut self, piece: PieceIndex, now: Instant) {
        if self.is_over(now) {
            *self = Self::none(self.pieces.layout(), now);
        }
        self.pieces.insert(piece);
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= TRUSTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::swarm::testing::layout;

    #[test]
    fn nothing_is_trusted_for_long() {
        let (layout, start) = (layout(3), clock::monotonic());
        let [first, second, third] = [0, 1, 2].map(|index| layout.piece(index).expect("exists"));
        let mut checked = Checked::all(layout, start);
        let late = start + TRUSTED;
        assert!(checked.has(third, late - Duration::from_secs(1)) && !checked.has(third, late));
        checked.add(first, late);
        assert!(checked.has(first, late) && !checked.has(second, late));
        let later = late + TRUSTED / 2;
        checked.add(second, later);
        assert!(checked.has(second, later));
        assert!(!checked.has(second, late + TRUSTED), "all go with the first");
        assert!(!Checked::none(layout, start).has(first, start));
    }
}
