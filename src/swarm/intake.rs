//! Pieces on their way into the store: which is verified next, and what goes on beside it.
//!
//! Whoever verifies a piece also writes it, before the next: so it is still in the caches of that core.
//!
//! The SHA-1 of the whole file sees the pieces in order. The piece that it needs is hashed for both in
//! one go; one that is verified apart is gone through a second time. So the pieces wait for their turn;
//! only of many do others help from the far end. Only what came with midstates, as most pieces do, waits for
//! nobody. Of these the newest is next: it is still in the processor's caches, and those that are not
//! have nothing to lose.

use super::ahead::Ahead;
use super::chunks::Chunks;
use super::event::PeerKey;
use super::midstates::Midstates;
use super::room::MAX_VERIFYING;
use super::storage::Written;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::piece::PieceIndex;

/// Of the bytes a download may have in flight, this part may wait in memory for the pieces before
/// them, to be hashed as a whole; what came even earlier is read back.
const WAITING_PART: u64 = 4;

/// With so many pieces waiting for the one that is being hashed in order, other cores help: half as many
/// as there are when no more is asked for.
const BACKLOG: usize = MAX_VERIFYING / 2;

/// A piece on its way into the store.
#[derive(Debug)]
pub struct Parcel {
    /// From which session.
    pub peer: PeerKey,
    /// From which device.
    pub from: PeerId,
    /// Whose it is.
    pub user: UserName,
    /// Which piece.
    pub piece: PieceIndex,
    /// Its bytes, not verified.
    pub chunks: Chunks,
    /// What was said with them of its SHA-1s.
    pub midstates: Option<Box<Midstates>>,
}

/// Something to be done.
#[derive(Debug)]
pub enum Task {
    /// Verifying a piece and then writing it.
    Write(Parcel),
    /// Taking the whole file's SHA-1 further over pieces that were written before.
    Hash(Vec<(PieceIndex, Chunks)>),
}

/// What waits, and what is being done.
#[derive(Debug)]
pub struct Intake {
    pending: Vec<Parcel>,
    /// Pieces being verified or written, and how many there may be.
    under_way: usize,
    at_once: usize,
    /// The one of them that takes the whole file's SHA-1 further as well.
    in_order: Option<PieceIndex>,
    /// Those that wait for the whole file's SHA-1.
    ahead: Ahead,
    /// Whether a few that were not kept may be read back for it, which they may for each that is stored.
    may_read_back: bool,
    halted: bool,
}

impl Intake {
    /// Nothing waits, and the whole file's SHA-1 needs this piece. Of so many cores one is left to the
    /// network.
    pub fn new(next: Option<PieceIndex>, cores: usize) -> Self {
        Self {
            pending: Vec::new(),
            under_way: 0,
            at_once: cores.saturating_sub(1).max(1),
            in_order: None,
            ahead: Ahead::new(next),
            may_read_back: false,
            halted: false,
        }
    }

    /// Whether a piece that comes now waits for so long that it should keep no datagrams: as many wait as they
    /// came as wait before no more is asked for.
    pub fn is_crowded(&self) -> bool {
        self.pending.len() >= MAX_VERIFYING
    }

    /// A piece came.
    pub fn add(&mut self, parcel: Parcel) {
        self.pending.push(parcel);
    }

    /// From now on so many bytes may wait in memory to be hashed as a whole, of a download that may have
    /// so many in flight.
    pub fn set_room(&mut self, in_flight: u64) {
        self.ahead.set_room(in_flight / WAITING_PART);
    }

    /// What is to be begun now, if anything is; `has` says which pieces were written.
    pub fn next(&mut self, has: impl Fn(PieceIndex) -> bool) -> Option<Task> {
        if self.halted {
            return None;
        }
        let may_hash = self.may_read_back || self.ahead.has_next();
        if self.in_order.is_none() && may_hash && self.ahead.next().is_some_and(has) {
            self.may_read_back = false;
            return Some(Task::Hash(self.ahead.begin()));
        }
        if self.under_way >= self.at_once {
            return None;
        }
        let is_hashing = self.in_order.is_some() || self.ahead.is_running();
        let waits = is_hashing && self.pending.len() < BACKLOG;
        let proven = self.pending.iter().rposition(|parcel| parcel.midstates.is_some());
        let others = self.pending.iter().enumerate();
        let others = others.filter(|(_, parcel)| parcel.midstates.is_none());
        let others = others.map(|(place, parcel)| (parcel.piece, place));
        let place_of = |(_, place)| place;
        let place = match is_hashing {
            true => proven.or_else(|| others.filter(|_| !waits).max().map(place_of))?,
            false => others.min().map(place_of).or(proven)?,
        };
        let parcel = self.pending.remove(place);
        let is_next = !is_hashing && self.ahead.next() == Some(parcel.piece);
        if is_next && parcel.midstates.is_none() {
            self.in_order = Some(parcel.piece);
        }
        self.under_way += 1;
        Some(Task::Write(parcel))
    }

    /// A piece is right, and is being written.
    pub fn verified(&mut self, piece: PieceIndex, written: Written) {
        self.judged(piece);
        if let Written::Hashed(next) | Written::Proven(Some(next)) = written {
            self.ahead.seen(next);
        }
    }

    /// A piece is wrong.
    pub fn wrong(&mut self, piece: PieceIndex) {
        self.judged(piece);
        self.under_way -= 1;
    }

    /// A piece that was verified is on the disk. Its bytes, if the whole file's SHA-1 has not seen them.
    pub fn stored(&mut self, piece: PieceIndex, unseen: Option<Chunks>) {
        self.under_way -= 1;
        self.may_read_back = true;
        if let Some(chunks) = unseen {
            self.ahead.add(piece, chunks);
        }
    }

    /// A piece that was verified could not be written: nothing is begun until it [goes on](Self::go_on).
    pub fn failed(&mut self, parcel: Parcel) {
        self.under_way -= 1;
        self.halted = true;
        self.pending.push(parcel);
    }

    /// The whole file's SHA-1 was taken so far that it needs this piece next.
    pub fn hashed(&mut self, next: Option<PieceIndex>) {
        self.ahead.hashed(next);
    }

    /// Nothing more is begun for now.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// Nothing more is begun at all; what waits.
    pub fn end(&mut self) -> (Vec<Parcel>, Ahead) {
        self.halted = true;
        (std::mem::take(&mut self.pending), std::mem::replace(&mut self.ahead, Ahead::new(None)))
    }

    /// Goes on.
    pub fn go_on(&mut self) {
        self.halted = false;
    }

    /// Whether nothing waits and nothing is being done.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.under_way == 0 && !self.ahead.is_running()
    }

    fn judged(&mut self, piece: PieceIndex) {
        self.in_order = self.in_order.filter(|in_order| *in_order != piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_LEN;
    use crate::piece::PieceLayout;

    fn piece(index: u32) -> PieceIndex {
        PieceLayout::new(100 * u64::from(PIECE_LEN)).expect("fits").piece(index).expect("exists")
    }

    fn parcel(index: u32) -> Parcel {
        Parcel {
            peer: PeerKey(1),
            from: PeerId([1; 32]),
            user: "bob".parse().expect("a name"),
            piece: piece(index),
            chunks: vec![0; 10].into(),
            midstates: None,
        }
    }

    /// One on this many cores that these pieces came to.
    fn intake(cores: usize, pieces: impl IntoIterator<Item = u32>) -> Intake {
        let mut intake = Intake::new(Some(piece(0)), cores);
        intake.set_room(100 * u64::from(PIECE_LEN));
        pieces.into_iter().for_each(|index| intake.add(parcel(index)));
        intake
    }

    fn next(intake: &mut Intake) -> Option<u32> {
        match intake.next(|_| false)? {
            Task::Write(parcel) => Some(parcel.piece.get()),
            Task::Hash(_) => panic!("nothing was written"),
        }
    }

    #[test]
    fn one_is_hashed_in_order_while_the_one_before_is_written() {
        let mut intake = intake(3, [2, 1, 0]);
        assert_eq!(next(&mut intake), Some(0));
        assert_eq!(next(&mut intake), None, "the next is hashed after it");
        intake.verified(piece(0), Written::Hashed(Some(piece(1))));
        assert_eq!(next(&mut intake), Some(1));
        intake.verified(piece(1), Written::Hashed(Some(piece(2))));
        assert_eq!(next(&mut intake), None, "one core is left to the network");
        intake.stored(piece(0), None);
        assert_eq!(next(&mut intake), Some(2));
        intake.wrong(piece(2));
        assert!(!intake.is_idle());
        intake.stored(piece(1), None);
        assert!(intake.is_idle());
    }

    #[test]
    fn a_core_that_verified_a_piece_writes_it_before_the_next() {
        let mut intake = intake(2, [0, 1]);
        assert_eq!(next(&mut intake), Some(0));
        intake.verified(piece(0), Written::Hashed(Some(piece(1))));
        assert_eq!(next(&mut intake), None);
        intake.stored(piece(0), None);
        assert_eq!(next(&mut intake), Some(1));
    }

    #[test]
    fn of_many_others_are_verified_apart_and_hashed_as_a_whole_later() {
        let mut intake = intake(3, 0..8);
        assert_eq!(next(&mut intake), Some(0));
        assert_eq!(next(&mut intake), None, "seven wait to be next");
        intake.add(parcel(16));
        assert_eq!(next(&mut intake), Some(16));
        intake.verified(piece(16), Written::Apart);
        intake.stored(piece(16), Some(Chunks::default()));
        intake.verified(piece(0), Written::Hashed(Some(piece(16))));
        let Some(Task::Hash(run)) = intake.next(|has| has == piece(16)) else {
            panic!("it is next")
        };
        assert_eq!(run.len(), 1);
        assert_eq!(next(&mut intake), None, "all others wait to be next");
        intake.hashed(Some(piece(17)));
        assert_eq!(next(&mut intake), Some(1), "it is written all the same");
    }

    #[test]
    fn what_came_with_midstates_waits_for_nobody_and_is_not_needed_again() {
        let proven = |index| {
            let midstates = Some(Box::new(Midstates([0; Midstates::LEN])));
            Parcel { midstates, ..parcel(index) }
        };
        let mut intake = intake(3, [0, 1]);
        intake.add(proven(7));
        assert_eq!(next(&mut intake), Some(0));
        assert_eq!(next(&mut intake), Some(7), "while the other is hashed in order");
        intake.verified(piece(7), Written::Proven(Some(Some(piece(0)))));
        intake.stored(piece(7), None);
        assert_eq!(next(&mut intake), None, "this one needs order");
        intake.verified(piece(0), Written::Hashed(Some(piece(1))));
        intake.stored(piece(0), None);
        intake.add(proven(2));
        assert_eq!(next(&mut intake), Some(1));
        intake.verified(piece(1), Written::Hashed(Some(piece(2))));
        assert_eq!(next(&mut intake), Some(2));
        assert_eq!(intake.in_order, None);
        intake.verified(piece(2), Written::Proven(Some(Some(piece(3)))));
        assert_eq!(intake.ahead.next(), Some(piece(3)));
    }

    #[test]
    fn of_those_that_need_no_order_the_newest_is_next() {
        let mut intake = intake(2, []);
        for index in [5, 9, 3, 8] {
            let midstates = Some(Box::new(Midstates([0; Midstates::LEN])));
            intake.add(Parcel { midstates, ..parcel(index) });
        }
        intake.add(parcel(7));
        for expected in [7, 8, 3, 9, 5] {
            assert_eq!(next(&mut intake), Some(expected));
            intake.verified(piece(expected), Written::Apart);
            intake.stored(piece(expected), None);
        }
    }

    #[test]
    fn nothing_is_written_to_a_disk_that_failed_and_nothing_is_lost() {
        let mut intake = intake(2, [0, 1]);
        let Some(Task::Write(first)) = intake.next(|_| false) else { panic!("it waits") };
        intake.verified(piece(0), Written::Hashed(Some(piece(1))));
        intake.failed(first);
        assert!(next(&mut intake).is_none() && !intake.is_idle());
        intake.go_on();
        assert_eq!(next(&mut intake), Some(0));
        intake.verified(piece(0), Written::Apart);
        intake.stored(piece(0), None);
        assert_eq!(next(&mut intake), Some(1));
    }

    #[test]
    fn only_a_few_wait_as_they_came() {
        let mut intake = intake(2, 1..MAX_VERIFYING as u32);
        assert!(!intake.is_crowded());
        intake.add(parcel(50));
        assert!(intake.is_crowded());
    }

    #[test]
    fn at_the_end_nothing_is_kept_or_begun() {
        let mut intake = intake(2, 0..3);
        let Some(Task::Write(first)) = intake.next(|_| false) else { panic!("it waits") };
        let (pending, _) = intake.end();
        assert_eq!(pending.len(), 2);
        intake.verified(first.piece, Written::Hashed(Some(piece(1))));
        intake.stored(first.piece, None);
        assert!(intake.next(|_| true).is_none() && intake.is_idle());
    }
}
