//! What is known of the other trackers: which ops they have, when they were heard, whether their
//! clocks and digests agree.

use std::collections::BTreeMap;

use super::store::Horizon;
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::id::OpId;
use crate::limits::{ABSENT, CLOCK_TOLERANCE, CLOCK_WINDOW};
use crate::peer_id::PeerId;

/// By how many milliseconds a wall clock is ahead of ours. What it says arrives late, sometimes
/// very late, and then it seems to be behind: of several words the greatest is nearest to the truth.
#[derive(Clone, Copy, Debug, Default)]
struct ClockAhead {
    lately: Option<i64>,
    before: Option<i64>,
    since: UnixMillis,
}

impl ClockAhead {
    fn hear(&mut self, ahead: i64, now: UnixMillis) {
        // Our own clock may have been set.
        if now < self.since || now.since(self.since) >= CLOCK_WINDOW {
            *self = Self { lately: None, before: self.lately, since: now };
        }
        self.lately = Some(self.lately.map_or(ahead, |known| known.max(ahead)));
    }

    fn ahead(&self) -> Option<i64> {
        self.lately.max(self.before)
    }
}

/// One other tracker.
#[derive(Clone, Debug, Default)]
pub struct Sibling {
    /// Whether there is a connection to it.
    pub connected: bool,
    /// What it said to have.
    pub known: Knowledge,
    /// What it had when we had all of it: whatever it made without knowing these ops is here.
    settled: Knowledge,
    /// When it was last heard, if it was in this run.
    pub heard: Option<UnixMillis>,
    /// From when on it is absent if it is not heard.
    since: UnixMillis,
    /// Since when it has not had everything that is here.
    pub behind_since: Option<UnixMillis>,
    clock: ClockAhead,
    /// When its digest was last compared and the same.
    pub agreed: Option<UnixMillis>,
    /// Whether it was another when it was last compared.
    pub disagrees: bool,
}

/// All other trackers of the roster.
#[derive(Debug, Default)]
pub struct Siblings(BTreeMap<PeerId, Sibling>);

impl Sibling {
    /// Milliseconds its wall clock is ahead of ours, while there is a connection to it.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.clock.ahead()
    }
}

impl Siblings {
    /// The roster has these others; those not heard of before count as heard at `now`.
    pub fn set_roster(
        &mut self,
        others: &[PeerId],
        heard: impl Fn(PeerId) -> Option<UnixMillis>,
        now: UnixMillis,
    ) {
        self.0.retain(|id, _| others.contains(id));
        for id in others {
            self.0.entry(*id).or_insert_with(|| {
                let since = heard(*id).unwrap_or(now);
                Sibling { since, ..Sibling::default() }
            });
        }
    }

    /// There is a connection to one, which said at its beginning what it has and what time it is.
    /// That can be before [`Siblings::set_roster`] is told of it.
    pub fn connected(&mut self, id: PeerId, known: Knowledge, clock_ahead: i64, now: UnixMillis) {
        let sibling = self.0.entry(id).or_default();
        sibling.connected = true;
        sibling.known = known;
        // It may have come back old.
        sibling.settled = sibling.settled.meet(&sibling.known);
        sibling.clock = ClockAhead::default();
        sibling.clock.hear(clock_ahead, now);
        sibling.heard = Some(now);
    }

    /// One is not in the roster after all.
    pub fn forget(&mut self, id: PeerId) {
        self.0.remove(&id);
    }

    /// One said what it has.
    pub fn said(&mut self, id: PeerId, vector: &Vector, clock_ahead: i64, now: UnixMillis) {
        let Some(sibling) = self.0.get_mut(&id) else { return };
        sibling.known.vector.join(vector);
        sibling.clock.hear(clock_ahead, now);
        sibling.heard = Some(now);
    }

    /// One took over everything that was known here.
    pub fn knows(&mut self, id: PeerId, knowledge: &Knowledge) {
        if let Some(sibling) = self.0.get_mut(&id) {
            sibling.known.vector.join(&knowledge.vector);
            sibling.known.sealed.join(&knowledge.sealed);
        }
    }

    /// One sent ops, which it therefore has.
    pub fn sent(&mut self, id: PeerId, ops: &Vector) {
        if let Some(sibling) = self.0.get_mut(&id) {
            sibling.known.vector.join(ops);
        }
    }

    /// There is no connection to one any more.
    pub fn lost(&mut self, id: PeerId) {
        if let Some(sibling) = self.0.get_mut(&id) {
            sibling.connected = false;
            sibling.clock = ClockAhead::default();
        }
    }

    /// What one's digest was, compared with ours.
    pub fn compared(&mut self, id: PeerId, same: bool, now: UnixMillis) {
        let Some(sibling) = self.0.get_mut(&id) else { return };
        sibling.disagrees = !same;
        if same {
            sibling.agreed = Some(now);
        }
    }

    /// Notes who has all that is in `ours`, and who was behind since when.
    pub fn settle(&mut self, ours: &Knowledge, now: UnixMillis) {
        for sibling in self.0.values_mut() {
            if ours.covers_all(&sibling.known) {
                sibling.settled = sibling.known.clone();
            }
            match sibling.known.covers_all(ours) {
                true => sibling.behind_since = None,
                false => drop(sibling.behind_since.get_or_insert(now)),
            }
        }
    }

    /// What all of them have; nothing when there are none.
    pub fn horizon(&self, own: PeerId, ours: &Knowledge, now: UnixMillis) -> Option<Horizon> {
        if self.0.is_empty() {
            return None;
        }
        let here = self.0.values().filter(|sibling| {
            sibling.connected || now.since(sibling.heard.unwrap_or(sibling.since)) < ABSENT
        });
        let everybody = here.fold(ours.clone(), |all, sibling| all.meet(&sibling.settled));
        Some(Horizon { everybody, roster: self.0.keys().copied().chain([own]).collect() })
    }

    /// How many there are, and how many of them have an op.
    pub fn having(&self, op: OpId) -> (u32, u32) {
        let having = self.0.values().filter(|sibling| sibling.known.covers(op)).count();
        (self.0.len() as u32, having as u32)
    }

    /// By how many milliseconds our wall clock differs from the middle one of all trackers'; of two,
    /// the slower counts. Nothing while it is within what is tolerated, or nobody is there to compare.
    pub fn clock_off(&self) -> Option<u64> {
        let others = self.0.values().filter(|sibling| sibling.connected);
        let mut clocks: Vec<i64> = others.filter_map(|sibling| sibling.clock.ahead()).collect();
        clocks.push(0);
        clocks.sort_unstable();
        let agreed = clocks[(clocks.len() - 1) / 2];
        let off = agreed.unsigned_abs();
        (off > CLOCK_TOLERANCE.as_millis() as u64).then_some(off)
    }

    /// One of them.
    pub fn get(&self, id: PeerId) -> Option<&Sibling> {
        self.0.get(&id)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (PeerId, &Sibling)> {
        self.0.iter().map(|(id, sibling)| (*id, sibling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OriginId;

    fn id(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn known(all: &[(u8, u64)]) -> Knowledge {
        let vector = all.iter().map(|(origin, seq)| (OriginId([*origin; 16]), *seq)).collect();
        Knowledge { vector, sealed: Vector::default() }
    }

    fn siblings(others: &[u8]) -> Siblings {
        let mut siblings = Siblings::default();
        let others: Vec<_> = others.iter().map(|n| id(*n)).collect();
        siblings.set_roster(&others, |_| None, UnixMillis(1_000));
        siblings
    }

    #[test]
    fn one_that_connects_before_the_roster_is_taken_up_is_connected() {
        let mut siblings = Siblings::default();
        siblings.connected(id(2), known(&[(2, 1)]), 0, UnixMillis(1_000));
        siblings.set_roster(&[id(2)], |_| None, UnixMillis(1_001));
        let sibling = siblings.get(id(2)).expect("known");
        assert!(sibling.connected);
        assert_eq!((&sibling.known, sibling.heard), (&known(&[(2, 1)]), Some(UnixMillis(1_000))));
    }

    #[test]
    fn nothing_is_cut_that_somebody_may_lack_until_that_one_is_given_up() {
        let mut siblings = siblings(&[2, 3]);
        let (ours, now) = (known(&[(1, 9), (2, 4)]), UnixMillis(2_000));
        let everybody = |siblings: &Siblings, now| {
            siblings.horizon(id(1), &ours, now).expect("siblings").everybody
        };
        assert_eq!(everybody(&siblings, now), known(&[]));
        siblings.connected(id(2), known(&[(1, 9), (2, 4)]), 0, now);
        siblings.connected(id(3), known(&[(1, 5), (3, 1)]), 0, now);
        siblings.settle(&ours, now);
        // The third has ops of its own that are not here yet: what it has does not count.
        assert_eq!(everybody(&siblings, now), known(&[]));
        let ours = known(&[(1, 9), (2, 4), (3, 1)]);
        siblings.settle(&ours, now);
        let horizon = siblings.horizon(id(1), &ours, now).expect("siblings");
        assert_eq!(horizon.everybody, known(&[(1, 5)]));
        assert_eq!(siblings.get(id(2)).and_then(|s| s.behind_since), Some(now));
        siblings.lost(id(3));
        let later = now.plus(ABSENT);
        let horizon = siblings.horizon(id(1), &ours, later).expect("siblings");
        assert_eq!(horizon.everybody, known(&[(1, 9), (2, 4)]));
        assert_eq!(siblings.having(OpId { origin: OriginId([1; 16]), seq: 6 }), (2, 1));
    }

    #[test]
    fn whose_clock_is_off_is_what_most_say_and_of_two_the_faster() {
        let off = |others: &[i64]| {
            let mut siblings = siblings(&[2, 3, 4]);
            for (n, ahead) in (2..).zip(others) {
                siblings.connected(id(n), known(&[]), *ahead, UnixMillis(0));
            }
            siblings.clock_off()
        };
        assert_eq!(off(&[]), None);
        assert_eq!(off(&[4_000]), None);
        assert_eq!(off(&[60_000]), None, "we are the slower");
        assert_eq!(off(&[-60_000]), Some(60_000));
        assert_eq!(off(&[60_000, 60_000]), Some(60_000), "both others say so");
        assert_eq!(off(&[60_000, 0]), None);
    }

    #[test]
    fn words_that_come_late_do_not_make_a_clock_wrong() {
        let mut siblings = siblings(&[2]);
        let at = |seconds: u64| UnixMillis(seconds * 1_000);
        siblings.connected(id(2), known(&[]), 0, at(100));
        let mut say = |ahead: i64, now| {
            siblings.said(id(2), &Vector::default(), ahead, now);
            siblings.clock_off()
        };
        assert_eq!(say(-20_000, at(105)), None, "that one took long");
        assert_eq!(say(-20_000, at(125)), None);
        // But when it says nothing else, it is so.
        assert_eq!(say(-20_000, at(135)), None);
        assert_eq!(say(-20_000, at(165)), Some(20_000));
        assert_eq!(say(-10, at(170)), None, "mended");
    }
}
