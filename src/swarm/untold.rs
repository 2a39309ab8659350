//! The pieces of one download that came and that others have not been told of yet.
//!
//! They are told in batches, to every session of the agent. It does not know which pieces are here:
//! who is told from scratch hears that from the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Registry;
use super::session::Swarms;
use crate::clock;
use crate::limits::MAX_HAVE_BATCH;
use crate::piece::PieceIndex;

/// New pieces are told to others this long after the first of a batch.
const TELL_DELAY: Duration = Duration::from_millis(20);

/// What one download has to tell.
#[derive(Debug)]
pub struct Untold {
    registry: Arc<Registry>,
    swarms: Arc<Swarms>,
    pieces: Vec<u32>,
    tell_at: Option<Instant>,
}

impl Untold {
    /// Nothing yet, for those who have one of `swarms` open.
    pub fn new(registry: Arc<Registry>, swarms: Arc<Swarms>) -> Self {
        Self { registry, swarms, pieces: Vec::new(), tell_at: None }
    }

    /// A piece came.
    pub fn add(&mut self, piece: PieceIndex) {
        self.pieces.push(piece.get());
        self.tell_at.get_or_insert_with(|| clock::monotonic() + TELL_DELAY);
        if self.pieces.len() >= MAX_HAVE_BATCH {
            self.tell();
        }
    }

    /// Pieces that came are not here any more.
    pub fn forget(&mut self, lost: &[PieceIndex]) {
        self.pieces.retain(|index| lost.iter().all(|piece| piece.get() != *index));
    }

    /// When there is something to tell.
    pub fn tell_at(&self) -> Option<Instant> {
        self.tell_at
    }

    /// Tells what has waited long enough by `now`.
    pub fn tell_due(&mut self, now: Instant) {
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell();
        }
    }

    /// Tells everybody which pieces came.
    pub fn tell(&mut self) {
        self.tell_at = None;
        let swarms = self.swarms.all();
        for batch in self.pieces.chunks(MAX_HAVE_BATCH) {
            // All sessions, not only our sources: who asks us may have nothing for us yet.
            for session in self.registry.sessions() {
                swarms.iter().for_each(|swarm| session.tell_pieces(*swarm, batch));
            }
        }
        self.pieces.clear();
    }

    /// Tells everybody from scratch what is here.
    pub fn tell_again(&self) {
        self.swarms.all().into_iter().for_each(|swarm| self.registry.tell_again(swarm));
    }
}
