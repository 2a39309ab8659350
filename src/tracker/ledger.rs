//! What the ops of a log amount to: the state, the ends of the chains, what the log still holds.
//! Judges commands into ops, and takes over the ops and the states of other trackers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::{Actor, Command, Outcome};
use super::decide::{Decision, decide};
use super::facts::Facts;
use super::lattice::RequestKey;
use super::op::{BrokenChain, Chains, Change, Op, Standing};
use super::pages::Pages;
use super::refusal::Refusal;
use super::state::{Effect, Rules, State};
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::Blake3Hash;
use crate::id::{OriginId, RequestId};
use crate::peer_id::PeerId;

/// One run of one tracker: who makes ops.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The tracker.
    pub tracker: PeerId,
    /// The run's origin.
    pub origin: OriginId,
}

/// An op on its way into the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The op.
    pub op: Op,
    /// Its log bytes.
    pub bytes: Vec<u8>,
    /// What it changed.
    pub effects: Vec<Effect>,
}

/// Everything somebody knows, without the ops it came by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Essence {
    /// Where each origin has come to.
    pub chains: Chains,
    /// Time of the latest op.
    pub latest: UnixMillis,
    /// What the ops established.
    pub facts: Facts,
}

/// What became of the ops of another tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Ops that were new.
    pub new: usize,
    /// Ops that were known.
    pub known: usize,
    /// Ops before which others are missing; they were left out.
    pub early: usize,
    /// Ops that another op of the same number contradicts; they were left out.
    pub forked: usize,
}

/// The state and the chains that ops made.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The state.
    pub state: State,
    /// Where each origin has come to.
    pub chains: Chains,
    /// Ops that are in the state and no longer in the log.
    pub cut: Vector,
    /// Time of the latest op.
    pub latest: UnixMillis,
    /// The next op made here is not before this: it comes after all of other trackers.
    floor: UnixMillis,
}

impl Ledger {
    /// What these facts and chains are.
    pub fn new(essence: Essence, cut: Vector, rules: Rules) -> Self {
        let Essence { chains, latest, facts } = essence;
        let floor = latest.plus(Duration::from_millis(1));
        Self { state: State::new(facts, rules), chains, cut, latest, floor }
    }

    /// What it amounts to.
    pub fn essence(&self) -> Essence {
        let facts = self.state.facts().clone();
        Essence { chains: self.chains.clone(), latest: self.latest, facts }
    }

    /// What two trackers with the same ops agree on.
    pub fn digest(&self) -> Blake3Hash {
        self.state.digest(self.latest)
    }

    /// Folds in the op that is next in its chain; returns what it changed.
    ///
    /// # Errors
    /// [`BrokenChain`]; nothing changed then.
    pub fn follow(&mut self, op: &Op, encoded: &[u8]) -> Result<Vec<Effect>, BrokenChain> {
        self.chains.extend(op, encoded)?;
        self.latest = self.latest.max(op.clock);
        Ok(self.state.apply(op))
    }

    /// Judges a command that was not granted before, at tracker time `now`. What is granted is in
    /// the state when this returns, and the ops it took are to be stored.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub fn judge(
        &mut self,
        run: &Run,
        (actor, request): (&Actor, RequestId),
        command: &Command,
        now: UnixMillis,
        pages: &Pages,
    ) -> Result<(Outcome, Vec<Entry>), Refusal> {
        let now = now.max(self.latest);
        let change = match decide(&self.state, actor, request, command, now, pages)? {
            Decision::Change(change) => change,
            Decision::Nothing(outcome) => return Ok((outcome, Vec::new())),
        };
        let mut entries = Vec::new();
        if self.chains.tip(run.origin).seq == 0 {
            let vector = self.chains.vector().iter().collect();
            self.come_after_all();
            let began = Change::OriginBegan { tracker: run.tracker, vector };
            entries.push(self.make(run, (run.tracker, RequestId(run.origin.0)), &began, now));
        }
        if matches!(change, Change::DeviceEnrolled { .. }) {
            // After what was revoked before: its tickets are told from older ones by the time.
            self.come_after_all();
        }
        let device = actor.device();
        entries.push(self.make(run, (device, request), &change, now));
        Ok((Outcome::of(&change, device, &self.state), entries))
    }

    /// Makes an op of `change` and folds it in.
    fn make(
        &mut self,
        run: &Run,
        (actor, request): RequestKey,
        change: &Change,
        now: UnixMillis,
    ) -> Entry {
        let tip = self.chains.tip(run.origin);
        let (kind, body) = change.encode();
        let op = Op {
            origin: run.origin,
            seq: tip.seq + 1,
            previous: tip.hash,
            clock: now.max(self.latest).max(self.floor),
            actor,
            request,
            kind,
            body,
        };
        let bytes = op.encode();
        let effects = self.follow(&op, &bytes).expect("invariant: it was made to follow the tip");
        Entry { op, bytes, effects }
    }

    /// Folds in those of another tracker's ops that are new and whose predecessors are here; they
    /// are to be stored in this order.
    pub fn merge(&mut self, ops: Vec<(Op, Vec<u8>)>) -> (Merged, Vec<Entry>) {
        let (mut merged, mut entries) = (Merged::default(), Vec::new());
        for (op, bytes) in ops {
            match self.chains.standing(&op) {
                Standing::Known => merged.known += 1,
                Standing::Early => merged.early += 1,
                Standing::Forked => merged.forked += 1,
                Standing::Next => {
                    let effects = self.follow(&op, &bytes);
                    let effects = effects.expect("invariant: its standing was looked at");
                    entries.push(Entry { op, bytes, effects });
                    merged.new += 1;
                }
            }
        }
        if merged.new > 0 {
            self.come_after_all();
        }
        (merged, entries)
    }

    /// What is made here from now on is later than everything so far, whoever made that. Ops of one
    /// origin have their numbers for that, and mostly need no time of their own.
    pub fn come_after_all(&mut self) {
        self.floor = self.latest.plus(Duration::from_millis(1));
    }

    /// Takes over everything another tracker knows; returns what changed. The log does not have
    /// the ops it came by: they count as cut.
    pub fn absorb(&mut self, theirs: Essence) -> Vec<Effect> {
        let (we_know, they_know) = (self.chains.knowledge(), theirs.chains.knowledge());
        let mut facts = self.state.facts().clone();
        facts.absorb(theirs.facts, &we_know, &they_know);
        let rules = self.state.rules;
        let state = State::new(facts, rules);
        let effects = state.changes_since(&self.state);
        self.state = state;
        self.chains.absorb(&theirs.chains);
        self.latest = self.latest.max(theirs.latest);
        for (origin, seq) in they_know.vector.iter().filter(|(o, seq)| *seq > we_know.get(*o)) {
            self.cut.raise(origin, seq);
        }
        self.drop_sealed();
        self.come_after_all();
        effects
    }

    /// Whether somebody with this knowledge misses ops that the log does not have any more.
    pub fn is_behind_cut(&self, them: &Knowledge) -> bool {
        let mut gone = self.cut.iter().chain(self.chains.sealed());
        gone.any(|(origin, seq)| them.get(origin) < seq)
    }

    /// The log no longer has these ops, which `everybody` has: what only mattered to whoever lacks
    /// them is forgotten, and origins that ended are sealed. Returns what is no longer kept.
    pub fn condense(
        &mut self,
        cut: &BTreeMap<OriginId, u64>,
        everybody: &Knowledge,
        own: OriginId,
        gone: impl Fn(PeerId) -> bool,
    ) -> Vec<Effect> {
        cut.iter().for_each(|(origin, seq)| self.cut.raise(*origin, *seq));
        let mut facts = self.state.facts().clone();
        let sealed = self.chains.sealed().collect();
        // Only what the log does not have either: whoever comes back without it must be seen to.
        let gone_by = Knowledge { vector: self.cut.clone(), sealed }.meet(everybody);
        facts.forget_removals(self.latest, &gone_by);
        let kept = facts.shares.keys().copied().collect::<BTreeSet<_>>();
        let dropped = self.state.facts().shares.iter().filter(|(key, _)| !kept.contains(key));
        let dropped = dropped.map(|(_, share)| Effect::ShareEnded(share.value.clone())).collect();
        self.state = State::new(facts, self.state.rules);
        self.chains.seal(&gone_by, own, gone, self.latest);
        self.drop_sealed();
        dropped
    }

    fn drop_sealed(&mut self) {
        self.chains.sealed().for_each(|(origin, _)| self.cut.forget(origin));
    }

    /// How many ops are known, in the log or not.
    pub fn op_count(&self) -> u64 {
        self.chains.vector().iter().chain(self.chains.sealed()).map(|(_, seq)| seq).sum()
    }
}
