//! What one other tracker is sent of the log, and when: first everything it lacks, then what is new.
//!
//! Ops go in numbered batches, a few under way at once. Those this tracker makes are sent as they
//! come; those of others come from their makers, and are passed on only when the other tracker
//! still lacks them a while later. Now and then what was sent is compared with what the other one
//! says to have, and sent again where it did not arrive.

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::disk::LogEntry;
use super::vector::{Knowledge, Vector};
use crate::id::{OpId, OriginId};
use crate::limits::{SYNC_BATCH_BYTES, SYNC_BATCH_OPS, SYNC_WINDOW};

/// Ticks after which a batch that nobody speaks of is taken for lost.
const LOST_AFTER: u64 = 3;

/// Ops on their way to another tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpBatch {
    /// Its number on this connection, from 1.
    pub number: u64,
    /// Encoded ops.
    pub ops: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Unheard {
    number: u64,
    from: u64,
    tick: u64,
}

/// One direction of one connection between trackers.
#[derive(Debug)]
pub struct Feed {
    own: OriginId,
    /// What the other one said to have.
    known: Knowledge,
    /// The place that is read next.
    cursor: u64,
    /// The other one has everything before this place.
    floor: u64,
    /// Up to which place what was sent is compared with what arrived; nothing when that is done.
    sweep: Option<u64>,
    unheard: VecDeque<Unheard>,
    last_number: u64,
    /// Ops of others before this place are passed on.
    relay_below: u64,
    /// The end of the log at the last tick.
    seen_end: u64,
    tick: u64,
}

impl Feed {
    /// Feeds somebody who has what is `known`, from a log that reaches from `log.start` to
    /// `log.end` now; ops of the origin `own` are this tracker's.
    pub fn new(own: OriginId, known: Knowledge, log: Range<u64>) -> Self {
        Self {
            own,
            known,
            cursor: log.start,
            floor: log.start,
            sweep: None,
            unheard: VecDeque::new(),
            last_number: 0,
            relay_below: log.end,
            seen_end: log.end,
            tick: 0,
        }
    }

    /// What the other one is known to have.
    pub fn known(&self) -> &Knowledge {
        &self.known
    }

    /// Which places of the log are to be read for it now; nothing while enough is under way.
    pub fn wants(&self) -> Option<Range<u64>> {
        if self.unheard.len() >= SYNC_WINDOW {
            return None;
        }
        Some(match self.sweep {
            Some(end) => self.floor..end,
            None => self.cursor..u64::MAX,
        })
    }

    /// Takes what was read of the `wanted` places, in order, with none left out; returns what is
    /// to be sent of it. What it did not take it will want again.
    pub fn take(&mut self, wanted: &Range<u64>, entries: &[LogEntry]) -> Option<OpBatch> {
        let sweeping = self.sweep.is_some();
        let (mut ops, mut bytes, mut from) = (Vec::new(), 0, None);
        let mut next = wanted.start;
        let mut whole = sweeping;
        if sweeping && !entries.iter().any(|entry| wanted.contains(&entry.place)) {
            // Cut meanwhile: everybody has it.
            self.floor = self.floor.max(wanted.end);
            self.sweep = None;
            return None;
        }
        for entry in entries.iter().filter(|entry| wanted.contains(&entry.place)) {
            if ops.len() >= SYNC_BATCH_OPS || bytes >= SYNC_BATCH_BYTES {
                break;
            }
            next = entry.place + 1;
            if self.known.covers(entry.op) {
                if whole {
                    self.floor = next;
                }
                continue;
            }
            whole = false;
            if entry.op.origin == self.own || entry.place < self.relay_below {
                bytes += entry.bytes.len();
                from.get_or_insert(entry.place);
                ops.push(entry.bytes.clone());
            }
        }
        match self.sweep {
            None => self.cursor = next,
            // Once around: what was sent again is looked at after the next tick.
            Some(end) if !ops.is_empty() || next >= end => self.sweep = None,
            Some(_) if !whole => self.sweep = None,
            Some(_) => {}
        }
        let from = from?;
        self.last_number += 1;
        let number = self.last_number;
        self.unheard.push_back(Unheard { number, from, tick: self.tick });
        Some(OpBatch { number, ops })
    }

    /// The other one said which batch it took last, and what it has.
    pub fn heard(&mut self, number: u64, vector: &Vector) {
        self.known.vector.join(vector);
        self.unheard.retain(|batch| batch.number > number);
    }

    /// Some seconds later; the log ends at `end` now.
    pub fn tick(&mut self, end: u64) {
        self.tick += 1;
        self.relay_below = self.seen_end;
        self.seen_end = end;
        let lost = self.tick.saturating_sub(LOST_AFTER);
        self.unheard.retain(|batch| batch.tick > lost || self.tick <= LOST_AFTER);
        let sent = self.unheard.front().map_or(self.cursor, |batch| batch.from.min(self.cursor));
        self.sweep = (self.floor < sent).then_some(sent);
    }

    /// Whether an op is known to have arrived.
    pub fn has(&self, op: OpId) -> bool {
        self.known.covers(op)
    }
}
