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
use crate::id::OriginId;
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

/// Places of the log that are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub places: Range<u64>,
    /// Whether they were read before, and are compared with what arrived.
    again: bool,
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
    /// The places where what was sent is still to be compared with what arrived.
    sweep: Option<Range<u64>>,
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

    /// Which places of the log, which ends at `end`, are to be read for it now; nothing while
    /// enough is under way.
    pub fn wants(&self, end: u64) -> Option<Wanted> {
        let again = self.sweep.is_some();
        let places = self.sweep.clone().unwrap_or(self.cursor..end);
        let room = self.unheard.len() < SYNC_WINDOW && !places.is_empty();
        room.then_some(Wanted { places, again })
    }

    /// Takes what was read of the `wanted` places, in order, with none left out; returns what is
    /// to be sent of it. What it did not take it will want again. Meanwhile it may have wanted
    /// something else: then nothing follows from this but what is sent.
    pub fn take(&mut self, wanted: &Wanted, entries: &[LogEntry]) -> Option<OpBatch> {
        let Wanted { places, again } = wanted;
        let sweeps = *again && self.sweep.as_ref().is_some_and(|sweep| sweep == places);
        // Whether everything up to here is known to have arrived.
        let mut whole = sweeps && places.start == self.floor;
        let (mut ops, mut bytes, mut from) = (Vec::new(), 0, None);
        // With nothing there it was cut meanwhile: everybody has it.
        let mut next = places.end;
        for entry in entries.iter().filter(|entry| places.contains(&entry.place)) {
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
        if sweeps {
            if whole {
                self.floor = self.floor.max(next);
            }
            self.sweep = (next < places.end).then_some(next..places.end);
        } else if !again && self.cursor == places.start {
            self.cursor = next;
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

    /// The other one took over all that was known here.
    pub fn knows(&mut self, knowledge: &Knowledge) {
        self.known.vector.join(&knowledge.vector);
        self.known.sealed.join(&knowledge.sealed);
    }

    /// Some seconds later; the log ends at `end` now.
    pub fn tick(&mut self, end: u64) {
        self.tick += 1;
        self.relay_below = self.seen_end;
        self.seen_end = end;
        let lost = self.tick.saturating_sub(LOST_AFTER);
        self.unheard.retain(|batch| batch.tick > lost || self.tick <= LOST_AFTER);
        let sent = self.unheard.front().map_or(self.cursor, |batch| batch.from.min(self.cursor));
        self.sweep = (self.floor < sent).then_some(self.floor..sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OpId;

    const OWN: OriginId = OriginId([1; 16]);
    const OTHER: OriginId = OriginId([2; 16]);

    /// A log of ops with these origins; each has its number in its origin as its bytes.
    fn log(origins: &[OriginId]) -> Vec<LogEntry> {
        let mut log: Vec<LogEntry> = Vec::new();
        for (place, origin) in (0u64..).zip(origins) {
            let seq = 1 + log.iter().filter(|entry| entry.op.origin == *origin).count() as u64;
            let op = OpId { origin: *origin, seq };
            log.push(LogEntry { place, op, bytes: vec![origin.0[0], seq as u8] });
        }
        log
    }

    /// Everything that is sent now, as (origin, number).
    fn sent(feed: &mut Feed, log: &[LogEntry]) -> Vec<(u8, u8)> {
        let mut all = Vec::new();
        let end = log.len() as u64;
        while let Some(wanted) = feed.wants(end) {
            let entries: Vec<_> =
                log.iter().filter(|e| e.place >= wanted.places.start).cloned().collect();
            let batch = feed.take(&wanted, &entries);
            all.extend(batch.into_iter().flat_map(|b| b.ops).map(|op| (op[0], op[1])));
        }
        all
    }

    fn vector(own: u64, other: u64) -> Vector {
        [(OWN, own), (OTHER, other)].into_iter().filter(|(_, seq)| *seq > 0).collect()
    }

    #[test]
    fn it_sends_what_is_lacking_then_its_own_and_others_only_when_they_do_not_come() {
        let mut ops = vec![OWN, OTHER, OWN, OTHER];
        let known = Knowledge { vector: vector(1, 0), sealed: Vector::default() };
        let mut feed = Feed::new(OWN, known, 0..4);
        assert_eq!(sent(&mut feed, &log(&ops)), [(2, 1), (1, 2), (2, 2)], "what is lacking");
        feed.heard(1, &vector(2, 2));
        ops.extend([OTHER, OWN]);
        assert_eq!(sent(&mut feed, &log(&ops)), [(1, 3)], "its own; the other comes by itself");
        feed.heard(2, &vector(3, 2));
        feed.tick(6);
        assert_eq!(sent(&mut feed, &log(&ops)), [], "perhaps it is on its way");
        feed.tick(6);
        assert_eq!(sent(&mut feed, &log(&ops)), [(2, 3)], "it is not");
        feed.heard(3, &vector(3, 3));
        feed.tick(6);
        assert_eq!(sent(&mut feed, &log(&ops)), []);
        assert_eq!(feed.floor, 6);
    }

    #[test]
    fn what_is_lost_is_sent_again_and_what_is_under_way_is_not() {
        let ops = vec![OWN; 3];
        let mut feed = Feed::new(OWN, Knowledge::default(), 0..0);
        assert_eq!(sent(&mut feed, &log(&ops)), [(1, 1), (1, 2), (1, 3)]);
        for _ in 0..LOST_AFTER {
            feed.tick(3);
            assert_eq!(sent(&mut feed, &log(&ops)), []);
        }
        feed.tick(3);
        assert_eq!(sent(&mut feed, &log(&ops)), [(1, 1), (1, 2), (1, 3)]);
        // It was heard, and something in it could not be taken.
        feed.heard(2, &vector(1, 0));
        feed.tick(3);
        assert_eq!(sent(&mut feed, &log(&ops)), [(1, 2), (1, 3)]);
    }

    #[test]
    fn a_tick_while_the_log_is_read_loses_nothing() {
        let ops = [OTHER, OWN, OWN, OWN];
        let whole = log(&ops);
        // It has its maker's op from elsewhere soon; of ours it has none yet.
        let mut feed = Feed::new(OWN, Knowledge::default(), 0..0);
        assert_eq!(
            sent(&mut feed, &whole[..3]),
            [(1, 1), (1, 2)],
            "the other one's comes by itself"
        );
        feed.heard(1, &vector(2, 0));
        feed.tick(3);
        feed.tick(3);
        feed.sweep = None;
        let wanted = feed.wants(4).expect("the last one");
        feed.tick(4);
        feed.heard(1, &vector(3, 0));
        assert_eq!(feed.take(&wanted, &whole[3..]), None, "it has that by now");
        assert_eq!(feed.floor, 0, "the first one is still lacking");
        assert_eq!(sent(&mut feed, &whole), [(2, 1)]);
    }

    #[test]
    fn little_is_under_way_at_once_and_a_log_cut_under_it_stops_nothing() {
        let ops = vec![OWN; SYNC_BATCH_OPS * (SYNC_WINDOW + 2)];
        let whole = log(&ops);
        let mut feed = Feed::new(OWN, Knowledge::default(), 0..0);
        assert_eq!(sent(&mut feed, &whole).len(), SYNC_BATCH_OPS * SYNC_WINDOW);
        let most = (SYNC_BATCH_OPS * SYNC_WINDOW) as u64;
        feed.heard(SYNC_WINDOW as u64, &vector(most, 0));
        feed.tick(whole.len() as u64);
        // Everything that was heard is cut meanwhile.
        let rest = whole[most as usize..].to_vec();
        let mut more = Vec::new();
        while let Some(wanted) = feed.wants(whole.len() as u64) {
            let entries: Vec<_> =
                rest.iter().filter(|e| e.place >= wanted.places.start).cloned().collect();
            more.extend(feed.take(&wanted, &entries).into_iter().flat_map(|batch| batch.ops));
        }
        assert_eq!(more.len(), 2 * SYNC_BATCH_OPS);
        let mut level =
            Feed::new(OWN, Knowledge { vector: vector(9, 0), sealed: Vector::default() }, 0..9);
        let wanted = level.wants(9).expect("not looked at yet");
        assert_eq!(level.take(&wanted, &[]), None);
        assert_eq!(level.wants(9), None, "nothing is left of the log");
    }
}
