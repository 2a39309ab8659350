//! Trackers in memory on a network that loses, repeats and reorders, with clocks that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::command::{Actor, Command};
use super::disk::LogEntry;
use super::feed::{Feed, OpBatch};
use super::ledger::{Essence, Ledger, Run};
use super::op::Op;
use super::pages::Pages;
use super::remembered::{Grants, Remembered};
use super::reservations::{Claim, Reservations, WantedName};
use super::siblings::Siblings;
use super::state::Rules;
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::blake3;
use crate::id::{OpId, OriginId, RequestId, UserId};
use crate::limits::{CLAIM_PATIENCE, NAMES_WAIT, SYNC_BATCH_BYTES, SYNC_TICK};
use crate::manifest::testing::manifest_of;
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;

pub(super) const USERS: usize = 6;
pub(super) const GROUPS: usize = 4;
pub(super) const FILES: u8 = 3;

pub(super) static PAGES: LazyLock<Pages> = LazyLock::new(|| {
    let mut pages = Pages::default();
    for file in 0..FILES {
        let manifest = manifest_of(&[file]);
        for hash in manifest.head().page_hashes() {
            pages.put(UserId([0xfe; 16]), *hash, 52);
        }
    }
    pages
});

pub(super) fn user(n: usize) -> UserName {
    format!("u{n}").parse().expect("name")
}

pub(super) fn group(n: usize) -> GroupName {
    format!("g{n}").parse().expect("name")
}

pub(super) fn file(n: u8) -> FileName {
    format!("f{n}").parse().expect("name")
}

pub(super) fn device(n: usize) -> PeerId {
    PeerId(blake3(&[n as u8]).0)
}

pub(super) fn tracker(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 32])
}

/// What survives a crash.
#[derive(Clone, Default)]
pub(super) struct SimDisk {
    pub(super) snapshot: (u64, Essence, Vector),
    pub(super) granted: Remembered,
    pub(super) log: BTreeMap<u64, (OpId, Vec<u8>)>,
    pub(super) position: u64,
}

impl SimDisk {
    pub(super) fn append(&mut self, op: &Op, bytes: &[u8]) {
        self.log.insert(self.position, (op.id(), bytes.to_vec()));
        self.position += 1;
    }

    pub(super) fn start(&self) -> u64 {
        self.log.keys().next().copied().unwrap_or(self.position)
    }

    pub(super) fn load(&self) -> Ledger {
        let (at, essence, cut) = self.snapshot.clone();
        let mut ledger = Ledger::new(essence, cut, Rules::default());
        for (_, bytes) in self.log.range(at..).map(|(_, entry)| entry) {
            let op = Op::decode(bytes).expect("own op");
            ledger.follow(&op, bytes).expect("the log holds together");
        }
        ledger
    }

    pub(super) fn read(&self, from: u64) -> Vec<LogEntry> {
        let (mut entries, mut read) = (Vec::new(), 0);
        for (place, (op, bytes)) in self.log.range(from..) {
            entries.push(LogEntry { place: *place, op: *op, bytes: bytes.clone() });
            read += bytes.len();
            if read >= SYNC_BATCH_BYTES.min(2_000) {
                break;
            }
        }
        entries
    }
}

/// One side of a connection.
pub(super) struct Link {
    pub(super) feed: Option<Feed>,
    pub(super) heard: u64,
}

pub(super) struct Running {
    pub(super) ledger: Ledger,
    pub(super) run: Run,
    pub(super) siblings: Siblings,
    pub(super) reservations: Reservations,
    pub(super) links: BTreeMap<usize, Link>,
    pub(super) names_from: u64,
    pub(super) wanting: Vec<Wanting>,
}

/// A name that is being reserved.
pub(super) struct Wanting {
    pub(super) name: WantedName,
    pub(super) claim: Claim,
    pub(super) order: Order,
    pub(super) waiting: BTreeSet<usize>,
    pub(super) until: u64,
    pub(super) provisional: bool,
    pub(super) refused: bool,
}

#[derive(Clone)]
pub(super) struct Order {
    pub(super) device: usize,
    pub(super) operator: bool,
    pub(super) request: RequestId,
    pub(super) command: Command,
}

#[derive(Clone)]
pub(super) enum Message {
    Hello { knowledge: Knowledge },
    Ops(OpBatch),
    Have { heard: u64, vector: Vector, behind: bool },
    AskEssence,
    Essence(Box<(Essence, Grants)>),
    Knows(Knowledge),
    Reserve { name: WantedName, claim: Claim },
    Reserved { name: WantedName, claim: Claim, granted: bool },
}

pub(super) struct Envelope {
    pub(super) at: u64,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) epoch: u64,
    pub(super) message: Message,
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    pub(super) next_tick: u64,
    pub(super) disks: Vec<SimDisk>,
    pub(super) backups: Vec<SimDisk>,
    pub(super) skew: Vec<u64>,
    pub(super) running: Vec<Option<Running>>,
    /// Pairs that cannot speak.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// The number of the connection of each pair.
    pub(super) epochs: BTreeMap<(usize, usize), u64>,
    pub(super) mail: Vec<Envelope>,
    pub(super) lossy: bool,
    /// Every op ever made.
    pub(super) ops: BTreeMap<OpId, Op>,
    /// Granted and answered.
    pub(super) acknowledged: BTreeSet<OpId>,
    /// Names given away that no tracker was left out of.
    pub(super) sure: BTreeMap<[u8; 16], WantedName>,
    pub(super) absorbed: bool,
    /// Names that two wanted at once and one got.
    pub(super) races: usize,
    pub(super) retries: Vec<Order>,
    pub(super) trace: bool,
}

pub(super) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(2..=5);
        let skew = (0..count).map(|_| rng.u64(..8_000)).collect();
        let mut world = Self {
            rng,
            now: 1_000_000_000,
            next_tick: 0,
            disks: vec![SimDisk::default(); count],
            backups: vec![SimDisk::default(); count],
            skew,
            running: (0..count).map(|_| None).collect(),
            cut: BTreeSet::new(),
            epochs: BTreeMap::new(),
            mail: Vec::new(),
            lossy: true,
            ops: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            sure: BTreeMap::new(),
            absorbed: false,
            races: 0,
            retries: Vec::new(),
            trace,
        };
        (0..count).for_each(|n| world.start(n));
        world.lossy = false;
        world.pass(6_000);
        for who in 0..USERS {
            let n = world.rng.usize(..count);
            for _ in 0..2 {
                world.settle_in(n, who);
                world.pass(1_500);
            }
        }
        world.lossy = true;
        world
    }

    pub(super) fn count(&self) -> usize {
        self.disks.len()
    }

    pub(super) fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{} {}", self.now, text());
        }
    }

    pub(super) fn wall(&self, n: usize) -> UnixMillis {
        UnixMillis(self.now + self.skew[n])
    }

    pub(super) fn start(&mut self, n: usize) {
        if self.running[n].is_some() {
            return;
        }
        self.say(|| format!("{n} starts"));
        let ledger = self.disks[n].load();
        let run = Run { tracker: tracker(n), origin: OriginId::random(&mut self.rng) };
        let mut siblings = Siblings::default();
        let others: Vec<_> = (0..self.count()).filter(|m| *m != n).map(tracker).collect();
        siblings.set_roster(&others, |_| None, self.wall(n));
        let names_from = self.now + NAMES_WAIT.as_millis() as u64;
        self.running[n] = Some(Running {
            ledger,
            run,
            siblings,
            reservations: Reservations::default(),
            links: BTreeMap::new(),
            names_from,
            wanting: Vec::new(),
        });
        (0..self.count()).for_each(|m| self.connect(n, m));
    }

    pub(super) fn crash(&mut self, n: usize) {
        self.say(|| format!("{n} crashes"));
        self.running[n] = None;
        (0..self.count()).for_each(|m| self.disconnect(n, m));
    }

    /// A connection, if both are up and can speak.
    pub(super) fn connect(&mut self, a: usize, b: usize) {
        if a == b || self.cut.contains(&pair(a, b)) {
            return;
        }
        if self.running[a].is_none() || self.running[b].is_none() {
            return;
        }
        *self.epochs.entry(pair(a, b)).or_default() += 1;
        for (from, to) in [(a, b), (b, a)] {
            let Some(me) = &mut self.running[from] else { continue };
            me.links.insert(to, Link { feed: None, heard: 0 });
            let knowledge = me.ledger.chains.knowledge();
            // The first thing said on a connection, before anything else.
            self.send_at(0, from, to, Message::Hello { knowledge });
        }
    }

    pub(super) fn disconnect(&mut self, a: usize, b: usize) {
        *self.epochs.entry(pair(a, b)).or_default() += 1;
        for (from, to) in [(a, b), (b, a)] {
            let Some(me) = &mut self.running[from] else { continue };
            if me.links.remove(&to).is_some() {
                me.siblings.lost(tracker(to));
            }
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.lossy {
            if self.rng.u8(..20) == 0 {
                return;
            }
            while self.rng.u8(..10) == 0 {
                let delay = self.rng.u64(..3_000);
                self.send_at(delay, from, to, message.clone());
            }
        }
        let delay = self.rng.u64(1..200);
        self.send_at(delay, from, to, message);
    }

    pub(super) fn send_at(&mut self, delay: u64, from: usize, to: usize, message: Message) {
        let epoch = self.epochs.get(&pair(from, to)).copied().unwrap_or(0);
        self.mail.push(Envelope { at: self.now + delay, from, to, epoch, message });
    }

    /// Lets time pass, and what is due happen.
    pub(super) fn pass(&mut self, millis: u64) {
        let end = self.now + millis;
        loop {
            let due = self.mail.iter().enumerate().filter(|(_, e)| e.at <= end);
            let due = due.min_by_key(|(n, e)| (e.at, *n)).map(|(n, e)| (n, e.at));
            match due {
                Some((n, at)) if at <= self.next_tick => {
                    self.now = at.max(self.now);
                    let envelope = self.mail.swap_remove(n);
                    self.deliver(envelope);
                }
                _ if self.next_tick <= end => {
                    self.now = self.next_tick.max(self.now);
                    self.next_tick = self.now + SYNC_TICK.as_millis() as u64;
                    (0..self.count()).for_each(|n| self.tick(n));
                }
                _ => break,
            }
            (0..self.count()).for_each(|n| self.pump(n));
        }
        self.now = end;
        (0..self.count()).for_each(|n| self.pump(n));
    }

    pub(super) fn tick(&mut self, n: usize) {
        let (end, wall) = (self.disks[n].position, self.wall(n));
        let Some(me) = &mut self.running[n] else { return };
        let ours = me.ledger.chains.knowledge();
        me.siblings.settle(&ours, wall);
        let mut haves = Vec::new();
        for (to, link) in &mut me.links {
            if let Some(feed) = &mut link.feed {
                feed.tick(end);
                let behind = me.ledger.is_behind_cut(feed.known());
                haves.push((*to, link.heard, behind));
            }
        }
        for (to, heard, behind) in haves {
            let vector = ours.vector.clone();
            self.send(n, to, Message::Have { heard, vector, behind });
        }
        if self.rng.u8(..8) == 0 {
            self.snapshot(n);
        }
    }

    pub(super) fn snapshot(&mut self, n: usize) {
        let wall = self.wall(n);
        let Some(me) = &mut self.running[n] else { return };
        let ours = me.ledger.chains.knowledge();
        let horizon = me.siblings.horizon(tracker(n), &ours, wall).expect("siblings");
        let everybody = horizon.everybody.meet(&ours);
        let disk = &mut self.disks[n];
        let mut cut = BTreeMap::new();
        let mut cut_at = disk.position;
        for (place, (op, _)) in &disk.log {
            if !everybody.covers(*op) {
                cut_at = *place;
                break;
            }
            cut.insert(op.origin, op.seq);
        }
        let _ = me.ledger.condense(&cut, &everybody, me.run.origin, |_| false);
        disk.snapshot = (disk.position, me.ledger.essence(), me.ledger.cut.clone());
        disk.log = disk.log.split_off(&cut_at);
        me.ledger.state.check_invariants();
    }

    /// Sends what the log has for others, and ends reservations.
    pub(super) fn pump(&mut self, n: usize) {
        let Some(me) = &mut self.running[n] else { return };
        let mut out = Vec::new();
        for (to, link) in &mut me.links {
            let Some(feed) = &mut link.feed else { continue };
            if me.ledger.is_behind_cut(feed.known()) {
                continue;
            }
            while let Some(wanted) = feed.wants(self.disks[n].position) {
                let entries = self.disks[n].read(wanted.places.start);
                out.extend(feed.take(&wanted, &entries).map(|batch| (*to, batch)));
            }
        }
        for (to, batch) in out {
            self.send(n, to, Message::Ops(batch));
        }
        let Some(me) = &mut self.running[n] else { return };
        let now = self.now;
        let (done, wait) = std::mem::take(&mut me.wanting)
            .into_iter()
            .partition(|w| w.refused || w.waiting.is_empty() || w.until <= now);
        me.wanting = wait;
        let done: Vec<Wanting> = done;
        for mut wanting in done {
            wanting.provisional |= !wanting.waiting.is_empty();
            let wall = self.wall(n);
            let Some(me) = &mut self.running[n] else { return };
            let stands = me.reservations.stands(&wanting.name, wanting.claim, wall);
            me.reservations.end(&wanting.name, wanting.claim);
            if stands && !wanting.refused {
                let made = self.commit(n, &wanting.order);
                if made && !wanting.provisional {
                    self.sure.insert(wanting.claim.id, wanting.name.clone());
                }
            }
        }
    }

    pub(super) fn deliver(&mut self, envelope: Envelope) {
        let Envelope { from, to, epoch, message, .. } = envelope;
        if self.epochs.get(&pair(from, to)) != Some(&epoch) {
            return;
        }
        let (now, wall) = (self.now, self.wall(to));
        let clock_ahead = self.skew[from] as i64 - self.skew[to] as i64;
        let log = self.disks[to].start()..self.disks[to].position;
        let Some(me) = &mut self.running[to] else { return };
        let Some(link) = me.links.get_mut(&from) else { return };
        match message {
            Message::Hello { knowledge } => {
                me.siblings.connected(tracker(from), knowledge.clone(), clock_ahead, wall);
                let behind = me.ledger.is_behind_cut(&knowledge);
                link.feed = Some(Feed::new(me.run.origin, knowledge, log));
                me.names_from = me.names_from.min(now + 1_000);
                let vector = me.ledger.chains.vector();
                self.send(to, from, Message::Have { heard: 0, vector, behind });
            }
            Message::AskEssence => {
                let essence = me.ledger.essence();
                let granted = self.disks[to].granted.all();
                let delay = self.rng.u64(1..500);
                self.send_at(delay, to, from, Message::Essence(Box::new((essence, granted))));
            }
            Message::Essence(everything) => {
                self.absorbed = true;
                let (essence, granted) = *everything;
                let _ = me.ledger.absorb(essence);
                self.disks[to].granted.keep_all(granted);
                me.ledger.state.check_invariants();
                let disk = &mut self.disks[to];
                disk.snapshot = (disk.position, me.ledger.essence(), me.ledger.cut.clone());
                let knowledge = me.ledger.chains.knowledge();
                self.say(|| format!("{to} takes over what {from} knows"));
                self.send(to, from, Message::Knows(knowledge));
            }
            Message::Knows(knowledge) => {
                me.siblings.knows(tracker(from), &knowledge);
                if let Some(feed) = &mut link.feed {
                    feed.knows(&knowledge);
                }
            }
            Message::Ops(batch) => {
                let ops = batch.ops.into_iter();
                let ops = ops.map(|bytes| (Op::decode(&bytes).expect("an op"), bytes)).collect();
                let (merged, entries) = me.ledger.merge(ops);
                assert_eq!(merged.forked, 0, "nobody forks a chain");
                link.heard = link.heard.max(batch.number);
                for entry in &entries {
                    self.disks[to].append(&entry.op, &entry.bytes);
                    let op = &entry.op;
                    if let Some(change) = op.change() {
                        let state = &me.ledger.state;
                        let outcome = super::command::Outcome::of(&change, op.actor, state);
                        let key = (op.actor, op.request);
                        self.disks[to].granted.keep(key, outcome, op.id());
                    }
                }
                let (heard, vector) = (link.heard, me.ledger.chains.vector());
                self.send(to, from, Message::Have { heard, vector, behind: false });
            }
            Message::Have { heard, vector, behind } => {
                me.siblings.said(tracker(from), &vector, clock_ahead, wall);
                if let Some(feed) = &mut link.feed {
                    feed.heard(heard, &vector);
                }
                if behind {
                    self.send(to, from, Message::AskEssence);
                }
            }
            Message::Reserve { name, claim } => {
                let taken = name.is_taken(&me.ledger.state, claim);
                let by = tracker(from);
                let granted = me.reservations.ask(by, &name, claim, taken, wall);
                self.send(to, from, Message::Reserved { name, claim, granted });
            }
            Message::Reserved { name, claim, granted } => {
                let mut all = me.wanting.iter_mut();
                if let Some(wanting) = all.find(|w| w.name == name && w.claim == claim) {
                    wanting.waiting.remove(&from);
                    wanting.refused |= !granted;
                }
            }
        }
    }

    /// Judges and stores; returns whether it was granted.
    pub(super) fn commit(&mut self, n: usize, order: &Order) -> bool {
        let wall = self.wall(n);
        let Some(me) = &mut self.running[n] else { return false };
        let device = if order.operator { tracker(n) } else { device(order.device) };
        let actor = match order.operator {
            true => Actor::Operator(device),
            false => Actor::Client { device, user: me.ledger.state.user_of(device) },
        };
        if self.disks[n].granted.outcome(&(device, order.request)).is_some() {
            return false;
        }
        let asked = (&actor, order.request);
        let judged = me.ledger.judge(&me.run, asked, &order.command, wall, &PAGES);
        let Ok((outcome, entries)) = judged else { return false };
        if entries.is_empty() {
            return false;
        }
        if self.lossy && self.rng.u8(..40) == 0 {
            // Before it was stored.
            self.crash(n);
            return false;
        }
        for entry in &entries {
            self.ops.insert(entry.op.id(), entry.op.clone());
            self.disks[n].append(&entry.op, &entry.bytes);
        }
        let op = entries.last().expect("at least one").op.id();
        self.disks[n].granted.keep((device, order.request), outcome, op);
        self.say(|| format!("{n} grants {:?} to {}", order.command, order.device));
        if self.lossy && self.rng.u8(..40) == 0 {
            // Stored, and nobody told: the client repeats it elsewhere.
            self.crash(n);
            self.retries.push(order.clone());
            return false;
        }
        self.acknowledged.extend(entries.iter().map(|entry| entry.op.id()));
        if self.rng.u8(..6) == 0 {
            // The answer did not arrive in time.
            self.retries.push(order.clone());
        }
        true
    }

    pub(super) fn propose(&mut self, n: usize, order: Order) {
        let name = match &order.command {
            Command::CreateUser { user, .. } => WantedName::User(user.clone()),
            Command::CreateGroup { group, .. } => WantedName::Group(group.clone()),
            _ => {
                self.commit(n, &order);
                return;
            }
        };
        let (now, wall) = (self.now, self.wall(n));
        let count = self.count();
        let Some(me) = &mut self.running[n] else { return };
        if now < me.names_from {
            return;
        }
        let id = order.request.created(device(order.device));
        let claim = Claim { at: wall.max(me.ledger.latest), id };
        if !me.reservations.begin(&name, claim, wall) {
            return;
        }
        let waiting: BTreeSet<_> =
            me.links.iter().filter(|(_, link)| link.feed.is_some()).map(|(to, _)| *to).collect();
        let provisional = waiting.len() + 1 < count;
        let until = now + CLAIM_PATIENCE.as_millis() as u64;
        let refused = false;
        let others: Vec<_> = waiting.iter().copied().collect();
        let wanted = name.clone();
        me.wanting.push(Wanting { name, claim, order, waiting, until, provisional, refused });
        for to in others {
            self.send(n, to, Message::Reserve { name: wanted.clone(), claim });
        }
    }

    /// A tracker comes back with an old backup: what only it had is lost for good.
    pub(super) fn restore(&mut self, n: usize) {
        self.crash(n);
        self.say(|| format!("{n} comes back old"));
        self.disks[n] = self.backups[n].clone();
        let known: Vec<_> = self.disks.iter().map(|disk| disk.load().chains.knowledge()).collect();
        self.ops.retain(|op, _| known.iter().any(|known| known.covers(*op)));
        self.acknowledged.retain(|op| known.iter().any(|known| known.covers(*op)));
        self.sure.clear();
        self.start(n);
    }

    pub(super) fn heal(&mut self) {
        self.say(|| "all is healed".to_owned());
        self.lossy = false;
        self.cut.clear();
        for n in 0..self.count() {
            self.start(n);
            for m in 0..n {
                self.disconnect(n, m);
                self.connect(n, m);
            }
        }
        self.pass(6 * SYNC_TICK.as_millis() as u64);
    }
}
