//! What a download's scheduler knows of one peer.

use std::time::Duration;

use super::pipe::{Asked, Pipe};
use crate::bitfield::Bitfield;
use crate::name::UserName;
use crate::piece::PieceIndex;

/// A peer that answered BUSY is asked again after the first of these, after twice as long each further
/// time in a row, up to the second.
const BUSY_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A peer that was asked and of which nothing at all came for so long, or for four round trips,
/// counts as dead.
const SILENCE: Duration = Duration::from_secs(2);

/// One session with one peer.
#[derive(Debug)]
pub struct Peer {
    /// Whose device it is.
    pub user: UserName,
    /// What it has.
    pub pieces: Bitfield,
    /// How many of them are missing here.
    pub useful: u32,
    /// What is under way from it.
    pub pipe: Pipe,
    /// It counts as dead, until something comes.
    pub silent: bool,
    /// Not asked before this.
    pub rests_until: Option<Duration>,
    /// Its user failed on a piece, and is not asked for that one again before this.
    pub suspect: Option<Duration>,
    /// When there was nothing to ask it for: not before this is it looked again for what it could take
    /// over from others.
    pub looks_again: Duration,
    /// How often in a row it had to rest.
    rests: u32,
    /// When something came from it last, or it was first asked after a pause.
    heard: Duration,
}

impl Peer {
    /// A peer with these pieces, `useful` of them missing here.
    pub fn new(user: UserName, pieces: Bitfield, useful: u32, rtt: Duration) -> Self {
        Self {
            user,
            pieces,
            useful,
            pipe: Pipe::new(rtt),
            silent: false,
            rests_until: None,
            suspect: None,
            looks_again: Duration::ZERO,
            rests: 0,
            heard: Duration::ZERO,
        }
    }

    /// Whether something is under way from it.
    pub fn is_asked(&self) -> bool {
        !self.pipe.asked().is_empty()
    }

    /// Pieces it is asked for at once: of a suspect, only one.
    pub fn depth(&self) -> usize {
        if self.suspect.is_some() { 1 } else { self.pipe.depth() }
    }

    /// Whether it may be asked for one piece more.
    pub fn is_ready(&self) -> bool {
        let waits = self.silent || self.rests_until.is_some();
        !waits && self.pipe.asked().len() < self.depth()
    }

    /// Something came from it; whether it had counted as dead.
    pub fn hear(&mut self, now: Duration) -> bool {
        self.heard = now;
        std::mem::take(&mut self.silent)
    }

    /// It is asked for something: from now on it is listened for.
    pub fn listen(&mut self, now: Duration) {
        if !self.is_asked() {
            self.heard = now;
        }
    }

    /// When it counts as dead unless something comes.
    pub fn silence_ends(&self) -> Duration {
        self.heard + SILENCE.max(4 * self.pipe.rtt())
    }

    /// What it was asked for, the last first, and how long until it should be here.
    pub fn expectations(&self, now: Duration) -> impl Iterator<Item = (&Asked, Duration)> {
        let silent = self.silent;
        let expectations = self.pipe.expectations(now);
        expectations
            .map(move |(asked, expected)| (asked, if silent { Duration::MAX } else { expected }))
    }

    /// The same for one piece, if it was asked for that.
    pub fn expected(&self, now: Duration, piece: PieceIndex) -> Option<(&Asked, Duration)> {
        self.expectations(now).find(|(asked, _)| asked.piece == piece)
    }

    /// It gave a piece: what it could not do before is forgotten, and it may have time for more.
    pub fn did_well(&mut self) {
        self.rests = 0;
        self.looks_again = Duration::ZERO;
    }

    /// It could not do what it was asked for: not asked for a while. Until when; several refusals
    /// while it rests are one.
    pub fn rest(&mut self, now: Duration) -> Duration {
        *self.rests_until.get_or_insert_with(|| {
            let wait = BUSY_WAIT.0 * (1 << self.rests.min(8));
            self.rests += 1;
            now + wait.min(BUSY_WAIT.1)
        })
    }

    /// Time stood still for us: nothing that was waited for is so much later.
    pub fn shift(&mut self, span: Duration) {
        self.heard += span;
        self.pipe.shift(span);
    }
}
