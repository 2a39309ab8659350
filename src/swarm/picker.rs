//! Which missing piece to ask for next: the rarest, random among equals.
//!
//! Missing pieces stand in one vector ordered by availability, with the end of each block of equal
//! availability known, so that every change is a few swaps. Peers that hold everything make every
//! piece equally more common and are counted apart; while there are no others, nobody gains by
//! variety, and pieces are picked from the first on, so that the file can be hashed as it comes.

use crate::bitfield::Bitfield;
use crate::piece::{PieceIndex, PieceLayout};

/// Where a piece is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// Nobody is asked for it.
    Missing,
    /// Somebody is asked for it, or it is being verified.
    InFlight,
    /// Verified and written.
    Stored,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: PieceState,
    /// Partial peers that have it.
    availability: u32,
    /// Where it stands in `order`, while missing.
    position: u32,
}

/// The pieces of one download.
#[derive(Debug)]
pub struct Picker {
    slots: Vec<Slot>,
    /// Missing pieces, rarest first.
    order: Vec<PieceIndex>,
    /// `ends[a]` is where the block of availability `a` ends in `order`.
    ends: Vec<usize>,
    /// The same pieces as in `order`.
    missing: Bitfield,
    /// No piece before this one is missing.
    first: u32,
    /// Peers that hold everything, and peers that do not.
    seeds: u32,
    partial: u32,
    in_flight: u32,
    stored: u32,
    rng: fastrand::Rng,
}

impl Picker {
    /// All pieces of `layout` missing but those `stored`; `seed` decides among equals.
    pub fn new(layout: PieceLayout, stored: &Bitfield, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut order: Vec<_> = layout.pieces().filter(|p| !stored.contains(*p)).collect();
        rng.shuffle(&mut order);
        let mut slots: Vec<_> = layout
            .pieces()
            .map(|_| Slot { state: PieceState::Stored, availability: 0, position: 0 })
            .collect();
        for (position, piece) in order.iter().enumerate() {
            slots[piece.as_usize()].state = PieceState::Missing;
            slots[piece.as_usize()].position = position as u32;
        }
        let ends = vec![order.len()];
        let mut missing = Bitfield::none(layout);
        order.iter().for_each(|piece| {
            missing.insert(*piece);
        });
        let stored = stored.count();
        let (first, seeds, partial, in_flight) = (0, 0, 0, 0);
        Self { slots, order, ends, missing, first, seeds, partial, in_flight, stored, rng }
    }

    /// Where `piece` is in its life.
    pub fn state(&self, piece: PieceIndex) -> PieceState {
        self.slots[piece.as_usize()].state
    }

    /// How many peers have `piece`.
    pub fn availability(&self, piece: PieceIndex) -> u32 {
        self.slots[piece.as_usize()].availability + self.seeds
    }

    /// Pieces nobody is asked for.
    pub fn missing_count(&self) -> u32 {
        self.order.len() as u32
    }

    /// Pieces nobody is asked for.
    pub fn missing(&self) -> &Bitfield {
        &self.missing
    }

    /// Whether every piece is stored.
    pub fn is_complete(&self) -> bool {
        self.stored as usize == self.slots.len()
    }

    /// A peer with these pieces came.
    pub fn peer_joined(&mut self, pieces: &Bitfield) {
        if pieces.is_full() {
            self.seeds += 1;
        } else {
            self.partial += 1;
            self.for_each(pieces, Self::more_common);
        }
    }

    /// A peer with these pieces left.
    pub fn peer_left(&mut self, pieces: &Bitfield) {
        if pieces.is_full() {
            self.seeds -= 1;
        } else {
            self.partial -= 1;
            self.for_each(pieces, Self::rarer);
        }
    }

    /// A peer got `piece` and now has `pieces`.
    pub fn peer_gained(&mut self, piece: PieceIndex, pieces: &Bitfield) {
        self.more_common(piece);
        if pieces.is_full() {
            self.for_each(pieces, Self::rarer);
            (self.seeds, self.partial) = (self.seeds + 1, self.partial - 1);
        }
    }

    /// A peer turned out to lack `piece` and now has `pieces`.
    pub fn peer_lost(&mut self, piece: PieceIndex, pieces: &Bitfield) {
        if pieces.count() as usize + 1 == self.slots.len() {
            (self.seeds, self.partial) = (self.seeds - 1, self.partial + 1);
            self.for_each(pieces, Self::more_common);
        } else {
            self.rarer(piece);
        }
    }

    /// The missing piece to ask a peer for that has `pieces`, `useful` of them missing, and shall not be
    /// asked for those that `avoid` says; it is in flight from now on.
    pub fn pick(
        &mut self,
        pieces: &Bitfield,
        useful: u32,
        avoid: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let fits = |piece: &PieceIndex| pieces.contains(*piece) && !avoid(*piece);
        let missing = self.order.len();
        let piece = if useful == 0 {
            None
        } else if self.partial == 0 {
            self.skip_present();
            let layout = self.missing.layout();
            let from = (self.first..layout.piece_count()).filter_map(|index| layout.piece(index));
            from.into_iter().find(|piece| self.missing.contains(*piece) && fits(piece))
        } else if missing / useful as usize <= missing / 64 + useful as usize {
            self.order.iter().copied().find(fits)
        } else {
            // Few of very many: looking at those alone is less work. They are met in order of the
            // file, so equals are drawn for.
            self.rarest_of(pieces, &avoid)
        }?;
        self.take(piece);
        Some(piece)
    }

    /// A missing piece is in flight from now on.
    pub fn take(&mut self, piece: PieceIndex) {
        if self.state(piece) == PieceState::Missing {
            self.unlist(piece);
            self.missing.remove(piece);
            self.slots[piece.as_usize()].state = PieceState::InFlight;
            self.in_flight += 1;
        }
    }

    /// The rarest missing piece among `pieces`, each of equals as likely as the others.
    fn rarest_of(
        &mut self,
        pieces: &Bitfield,
        avoid: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let mut best: Option<(u32, PieceIndex)> = None;
        let mut equals = 0;
        for piece in self.missing.common(pieces).filter(|piece| !avoid(*piece)) {
            let availability = self.slots[piece.as_usize()].availability;
            match best {
                Some((least, _)) if least < availability => {}
                Some((least, _)) if least == availability => {
                    equals += 1;
                    if self.rng.u32(..equals) == 0 {
                        best = Some((availability, piece));
                    }
                }
                _ => (best, equals) = (Some((availability, piece)), 1),
            }
        }
        best.map(|(_, piece)| piece)
    }

    /// Moves `first` to the first missing piece, or the end.
    fn skip_present(&mut self) {
        let present = |slot: &&Slot| slot.state != PieceState::Missing;
        self.first += self.slots[self.first as usize..].iter().take_while(present).count() as u32;
    }

    /// A piece in flight came to nothing; it is missing again.
    pub fn give_back(&mut self, piece: PieceIndex) {
        if self.state(piece) == PieceState::InFlight {
            self.in_flight -= 1;
            self.lack(piece);
        }
    }

    /// A stored piece is not there any more.
    pub fn lost(&mut self, piece: PieceIndex) {
        if self.state(piece) == PieceState::Stored {
            self.stored -= 1;
            self.lack(piece);
        }
    }

    fn lack(&mut self, piece: PieceIndex) {
        self.slots[piece.as_usize()].state = PieceState::Missing;
        self.missing.insert(piece);
        self.first = self.first.min(piece.get());
        self.list(piece);
    }

    /// A piece in flight is verified and written.
    pub fn stored(&mut self, piece: PieceIndex) {
        if self.state(piece) == PieceState::InFlight {
            self.slots[piece.as_usize()].state = PieceState::Stored;
            self.in_flight -= 1;
            self.stored += 1;
        }
    }

    fn for_each(&mut self, pieces: &Bitfield, change: fn(&mut Self, PieceIndex)) {
        let all: Vec<_> = pieces.iter().collect();
        all.into_iter().for_each(|piece| change(self, piece));
    }

    fn more_common(&mut self, piece: PieceIndex) {
        let old = self.slots[piece.as_usize()].availability as usize;
        self.slots[piece.as_usize()].availability += 1;
        if self.state(piece) == PieceState::Missing {
            self.block(old + 1);
            self.ends[old] -= 1;
            self.swap(piece, self.ends[old]);
        }
    }

    fn rarer(&mut self, piece: PieceIndex) {
        let old = self.slots[piece.as_usize()].availability as usize;
        self.slots[piece.as_usize()].availability -= 1;
        if self.state(piece) == PieceState::Missing {
            self.swap(piece, self.ends[old - 1]);
            self.ends[old - 1] += 1;
        }
    }

    /// Takes a missing piece out of `order`: to the end of its block, block by block.
    fn unlist(&mut self, piece: PieceIndex) {
        for block in self.slots[piece.as_usize()].availability as usize..self.ends.len() {
            self.ends[block] -= 1;
            self.swap(piece, self.ends[block]);
        }
        self.order.pop();
    }

    /// Puts a missing piece into its block of `order`, at a random place.
    fn list(&mut self, piece: PieceIndex) {
        let block = self.slots[piece.as_usize()].availability as usize;
        self.block(block);
        self.slots[piece.as_usize()].position = self.order.len() as u32;
        self.order.push(piece);
        for later in (block + 1..self.ends.len()).rev() {
            self.ends[later] += 1;
            self.swap(piece, self.ends[later - 1]);
        }
        self.ends[block] += 1;
        let start = if block == 0 { 0 } else { self.ends[block - 1] };
        let place = self.rng.usize(start..self.ends[block]);
        self.swap(piece, place);
    }

    /// Makes sure that block `availability` exists.
    fn block(&mut self, availability: usize) {
        let end = self.ends.last().copied().unwrap_or(0);
        if self.ends.len() <= availability {
            self.ends.resize(availability + 1, end);
        }
    }

    fn swap(&mut self, piece: PieceIndex, place: usize) {
        let from = self.slots[piece.as_usize()].position as usize;
        let other = self.order[place];
        self.order.swap(from, place);
        self.slots[other.as_usize()].position = from as u32;
        self.slots[piece.as_usize()].position = place as u32;
    }

    /// Recomputes every cached count.
    ///
    /// # Panics
    /// When one of them is wrong.
    pub fn check_invariants(&self) {
        let count = |state| self.slots.iter().filter(|slot| slot.state == state).count();
        assert_eq!(count(PieceState::Missing), self.order.len());
        assert_eq!(count(PieceState::InFlight), self.in_flight as usize);
        assert_eq!(count(PieceState::Stored), self.stored as usize);
        assert_eq!(self.ends.last(), Some(&self.order.len()));
        assert_eq!(self.missing.count() as usize, self.order.len());
        assert!(self.ends.is_sorted());
        for (position, piece) in self.order.iter().enumerate() {
            let slot = self.slots[piece.as_usize()];
            assert_eq!(slot.state, PieceState::Missing);
            assert!(self.missing.contains(*piece) && piece.get() >= self.first);
            assert_eq!(slot.position as usize, position);
            let block = slot.availability as usize;
            let start = if block == 0 { 0 } else { self.ends[block - 1] };
            assert!((start..self.ends[block]).contains(&position), "piece {piece} out of order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::testing::{layout, row};
    use proptest::prelude::*;

    fn pick(picker: &mut Picker, pieces: &Bitfield) -> Option<u32> {
        let useful = picker.missing().common(pieces).count() as u32;
        picker.pick(pieces, useful, |_| false).map(PieceIndex::get)
    }

    #[test]
    fn the_rarest_piece_goes_first() {
        let l = layout(4);
        let mut picker = Picker::new(l, &row(l, "#..."), 1);
        picker.peer_joined(&row(l, "####"));
        picker.peer_joined(&row(l, ".##."));
        picker.peer_joined(&row(l, ".#.."));
        picker.check_invariants();
        let all = row(l, "####");
        let picked: Vec<_> = std::iter::from_fn(|| pick(&mut picker, &all)).collect();
        assert_eq!(picked, [3, 2, 1]);
    }

    #[test]
    fn only_what_the_peer_has_is_picked_from_it() {
        let l = layout(4);
        let mut picker = Picker::new(l, &row(l, "...."), 1);
        let bob = row(l, "..#.");
        picker.peer_joined(&bob);
        assert_eq!(pick(&mut picker, &bob), Some(2));
        assert_eq!(pick(&mut picker, &bob), None);
    }

    #[test]
    fn where_nobody_gains_by_variety_the_file_comes_in_order() {
        let l = layout(4);
        let mut picker = Picker::new(l, &row(l, "...."), 1);
        let all = row(l, "####");
        picker.peer_joined(&all);
        picker.peer_joined(&all);
        assert_eq!([pick(&mut picker, &all), pick(&mut picker, &all)], [Some(0), Some(1)]);
        picker.give_back(l.piece(0).expect("exists"));
        assert_eq!([pick(&mut picker, &all), pick(&mut picker, &all)], [Some(0), Some(2)]);
        picker.check_invariants();
    }

    #[test]
    fn what_shall_be_avoided_is() {
        let l = layout(3);
        let mut picker = Picker::new(l, &row(l, "..."), 1);
        let all = row(l, "###");
        picker.peer_joined(&all);
        assert_eq!(picker.pick(&all, 3, |p| p.get() < 2).map(PieceIndex::get), Some(2));
        assert_eq!(picker.pick(&all, 2, |_| true), None);
    }

    #[test]
    fn the_few_of_very_many_are_found_and_drawn_for() {
        let l = layout(5000);
        let mut bob = Bitfield::none(l);
        for index in [7, 2000, 4999] {
            bob.insert(l.piece(index).expect("exists"));
        }
        let mut firsts = std::collections::BTreeSet::new();
        for seed in 0..30 {
            let mut picker = Picker::new(l, &Bitfield::none(l), seed);
            picker.peer_joined(&bob);
            let picked: Vec<_> = std::iter::from_fn(|| pick(&mut picker, &bob)).collect();
            firsts.insert(picked[0]);
            let sorted: std::collections::BTreeSet<_> = picked.into_iter().collect();
            assert_eq!(sorted.into_iter().collect::<Vec<_>>(), [7, 2000, 4999]);
            picker.check_invariants();
        }
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn equals_are_picked_in_an_order_that_depends_on_the_seed() {
        let l = layout(64);
        let order = |seed| {
            let mut picker = Picker::new(l, &Bitfield::none(l), seed);
            let all = Bitfield::all(l);
            picker.peer_joined(&all);
            picker.peer_joined(&Bitfield::none(l));
            std::iter::from_fn(|| pick(&mut picker, &all)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    proptest! {
        /// Against the obvious model: recount availability from scratch and take the minimum.
        #[test]
        fn agrees_with_a_naive_model(
            rows in prop::collection::vec(prop::collection::vec(any::<bool>(), 12), 1..6),
            steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..80),
        ) {
            let l = layout(12);
            let fields: Vec<Bitfield> = rows.iter().map(|bits| {
                let mut field = Bitfield::none(l);
                l.pieces().zip(bits).filter(|(_, b)| **b).for_each(|(p, _)| { field.insert(p); });
                field
            }).collect();
            let mut joined = vec![false; fields.len()];
            let mut in_flight = Vec::new();
            let mut stored = Bitfield::none(l);
            let mut picker = Picker::new(l, &stored, 7);
            for (step, index) in steps {
                let peer = index.index(fields.len());
                match step {
                    0 if !joined[peer] => { picker.peer_joined(&fields[peer]); joined[peer] = true; }
                    1 if joined[peer] => { picker.peer_left(&fields[peer]); joined[peer] = false; }
                    2 => {
                        let rarity = |p: PieceIndex| {
                            (0..fields.len()).filter(|i| joined[*i] && fields[*i].contains(p)).count()
                        };
                        let best = l.pieces()
                            .filter(|p| fields[peer].contains(*p))
                            .filter(|p| !stored.contains(*p) && !in_flight.contains(p))
                            .map(rarity).min();
                        let useful = picker.missing().common(&fields[peer]).count() as u32;
                        let picked = picker.pick(&fields[peer], useful, |_| false);
                        prop_assert_eq!(picked.map(rarity), best);
                        in_flight.extend(picked);
                    }
                    3 if !in_flight.is_empty() => {
                        picker.give_back(in_flight.swap_remove(index.index(in_flight.len())));
                    }
                    4 if !in_flight.is_empty() => {
                        let piece = in_flight.swap_remove(index.index(in_flight.len()));
                        picker.stored(piece);
                        stored.insert(piece);
                    }
                    5 if !stored.is_empty() => {
                        let piece = stored.iter().nth(index.index(stored.count() as usize));
                        let piece = piece.expect("exists");
                        picker.lost(piece);
                        stored.remove(piece);
                    }
                    _ => {}
                }
                picker.check_invariants();
                let missing = l.piece_count() - stored.count() - in_flight.len() as u32;
                prop_assert_eq!(picker.missing_count(), missing);
                prop_assert_eq!(picker.is_complete(), stored.is_full());
            }
        }
    }
}
