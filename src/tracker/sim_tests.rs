//! Trackers in memory on a network that loses, repeats and reorders, with clocks that differ:
//! commands, partitions, crashes, old backups. When all is healed they must agree, and nothing
//! that was acknowledged may be lost or back.
//!
//! `MTQ_SEED=n` runs one seed and tells what happens, `MTQ_SEEDS=n` so many from there on.

use std::collections::{BTreeMap, BTreeSet};

use super::lattice::{RequestKey, Stamp};
use super::op::{Change, Op};
use super::reservations::WantedName;
use super::sim_world::*;
use super::state::{PUBLIC, State};
use crate::id::{EnrolmentId, GroupId, MembershipId, ShareId, UserId};
use crate::seeds;

/// Seeds of an ordinary run.
const SEEDS: u64 = 1_200;
/// What happens before all is healed.
const STEPS: usize = 400;

impl World {
    fn check(&self) {
        let all: Vec<_> = self.running.iter().flatten().map(|me| &me.ledger).collect();
        let first = all[0];
        let known = first.chains.knowledge();
        for (n, ledger) in all.iter().enumerate() {
            ledger.state.check_invariants();
            let theirs = ledger.chains.knowledge();
            self.say(|| {
                format!(
                    "{n} has {:?}, cut {:?}, log from {}",
                    theirs,
                    ledger.cut,
                    self.disks[n].start()
                )
            });
            assert!(theirs.covers_all(&known) && known.covers_all(&theirs), "{n} has the same ops");
            for (origin, _) in known.vector.iter().filter(|(o, _)| theirs.vector.get(*o) > 0) {
                assert_eq!(ledger.chains.tip(origin).hash, first.chains.tip(origin).hash);
            }
            assert_eq!(ledger.latest, first.latest, "{n} has the same time");
            assert_eq!(ledger.digest(), first.digest(), "{n} agrees");
            // What is on its disk is the same once more.
            assert_eq!(self.disks[n].load().digest(), first.digest(), "{n} agrees after a restart");
        }
        for op in &self.acknowledged {
            assert!(known.covers(*op), "an acknowledged op is lost: {:?}", self.ops.get(op));
        }
        let survived = self.ops.iter().filter(|(id, _)| known.covers(**id)).map(|(_, op)| op);
        let survived: Vec<_> = survived.collect();
        if !self.absorbed {
            // Nothing was ever forgotten that mattered, and nothing counted twice.
            let mut reference = State::default();
            survived.iter().for_each(|op| drop(reference.apply(op)));
            assert_eq!(reference.digest(first.latest), first.digest(), "as if it were one tracker");
        }
        self.nothing_is_back(&first.state, &survived);
        the_first_time_counts(&first.state, &survived);
        names_are_unique(&first.state);
        self.no_sure_name_is_marked(&first.state);
    }

    fn nothing_is_back(&self, state: &State, survived: &[&Op]) {
        let facts = state.facts();
        let mut ended: BTreeSet<MembershipId> = BTreeSet::new();
        let mut unenrolled: BTreeSet<EnrolmentId> = BTreeSet::new();
        let mut withdrawn: BTreeSet<ShareId> = BTreeSet::new();
        let mut made = BTreeSet::new();
        for op in survived {
            match op.change() {
                Some(Change::MembershipEnded { memberships, .. }) => ended.extend(memberships),
                Some(Change::UserDisabled { memberships, unenrolled: gone, .. }) => {
                    ended.extend(memberships.iter().map(|(id, _)| *id));
                    unenrolled.extend(gone.iter().map(|gone| gone.enrolment));
                }
                Some(
                    Change::DeviceRemoved { unenrolled: gone }
                    | Change::PasswordChanged { unenrolled: gone, .. }
                    | Change::DeviceEnrolled { unenrolled: gone, .. },
                ) => unenrolled.extend(gone.iter().map(|gone| gone.enrolment)),
                Some(Change::SharesWithdrawn { shares, .. }) => withdrawn.extend(shares),
                Some(Change::JoinAccepted { membership, .. }) => drop(made.insert(membership)),
                Some(Change::GroupCreated { group, .. }) => {
                    made.insert(MembershipId(group.0));
                }
                _ => {}
            }
        }
        for id in facts.memberships.keys() {
            assert!(!ended.contains(id), "a membership that ended is back");
            assert!(made.contains(id), "a membership that nobody accepted");
        }
        assert!(facts.enrolments.keys().all(|id| !unenrolled.contains(id)), "a device is back");
        assert!(facts.shares.keys().all(|(id, _)| !withdrawn.contains(id)), "a share is back");
        let groups: BTreeSet<_> = facts.memberships.values().map(|m| m.value.group).collect();
        for group in groups.into_iter().filter(|group| *group != PUBLIC) {
            let members = state.members(group).count();
            assert_eq!(state.owner(group).is_some(), members > 0, "an owner while it lives");
        }
    }

    fn no_sure_name_is_marked(&self, state: &State) {
        let mut holders: BTreeMap<String, u32> = BTreeMap::new();
        for (id, name) in &self.sure {
            let chosen = match name {
                WantedName::User(name) if state.facts().users.contains_key(&UserId(*id)) => {
                    format!("user {name}")
                }
                WantedName::Group(name) if state.is_living(GroupId(*id)) => format!("group {name}"),
                _ => continue,
            };
            *holders.entry(chosen).or_default() += 1;
        }
        for (name, count) in holders {
            assert_eq!(count, 1, "{name} was given to several, each time for sure");
        }
    }
}

/// Of what was asked for more than once, the first time counts; of all, the last.
fn the_first_time_counts(state: &State, survived: &[&Op]) {
    let mut said: BTreeMap<GroupId, BTreeMap<RequestKey, (Stamp, u32)>> = BTreeMap::new();
    for op in survived {
        if let Some(Change::GroupSet { group, offline_grace }) = op.change() {
            let word = (op.stamp(), offline_grace);
            let known = said.entry(group).or_default().entry((op.actor, op.request));
            known.and_modify(|known| *known = word.min(*known)).or_insert(word);
        }
    }
    for (group, words) in said.into_iter().filter(|(group, _)| state.is_living(*group)) {
        let last = words.values().max().map(|(_, grace)| *grace);
        assert_eq!(Some(state.offline_grace(group)), last, "a change was made twice");
    }
}

fn names_are_unique(state: &State) {
    let mut users = BTreeSet::new();
    for id in state.facts().users.keys() {
        let name = state.user_name(*id).expect("named");
        assert_eq!(state.user_named(&name), Some(*id), "{name}");
        assert!(users.insert(name.clone()), "{name} has two holders");
    }
    let mut groups = BTreeSet::new();
    for id in state.facts().groups.keys().filter(|id| state.is_living(**id)) {
        let name = state.group_name(*id).expect("named");
        assert_eq!(state.group_named(&name), Some(*id), "{name}");
        assert!(groups.insert(name.clone()), "{name} has two holders");
    }
}

/// How much of what is to be tested happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    acknowledged: usize,
    absorbed: usize,
    marked: usize,
    sealed: usize,
    cut: usize,
    ended: usize,
    shares: usize,
    races: usize,
}

impl Tally {
    fn of(world: &World) -> Self {
        let me = world.running.iter().flatten().next().expect("a tracker");
        let (state, known) = (&me.ledger.state, me.ledger.chains.knowledge());
        let facts = state.facts();
        let users = facts.users.keys().filter_map(|id| state.user_name(*id));
        let groups = facts.groups.keys().filter_map(|id| state.group_name(*id));
        let marked = users.filter(|name| name.parts().1.is_some()).count()
            + groups.filter(|name| name.parts().1.is_some()).count();
        Self {
            acknowledged: world.acknowledged.len(),
            absorbed: usize::from(world.absorbed),
            marked,
            sealed: known.sealed.iter().count(),
            cut: usize::from(me.ledger.cut.iter().next().is_some()),
            ended: facts.ended.len() + facts.unenrolled.len(),
            shares: facts.shares.len(),
            races: world.races,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            absorbed: self.absorbed + other.absorbed,
            marked: self.marked + other.marked,
            sealed: self.sealed + other.sealed,
            cut: self.cut + other.cut,
            ended: self.ended + other.ended,
            shares: self.shares + other.shares,
            races: self.races + other.races,
        }
    }

    /// What never happens proves nothing.
    fn is_worth(&self, seeds: u64) -> bool {
        let all = [self.acknowledged, self.sealed, self.cut, self.ended, self.shares];
        all.iter().all(|count| *count as u64 > seeds / 4)
            && self.absorbed > 0
            && self.marked > 0
            && self.races > 0
    }
}

fn run(seed: u64, trace: bool) -> Tally {
    let mut world = World::new(seed, trace);
    (0..STEPS).for_each(|_| world.step());
    world.heal();
    world.check();
    Tally::of(&world)
}

#[test]
fn trackers_agree_after_whatever_happened() {
    let (count, tally) = seeds::run(SEEDS, run, Tally::and);
    assert!(count < 100 || tally.is_worth(count), "{tally:?}");
}
