//! Trackers in memory on a network that loses, repeats and reorders, with clocks that differ:
//! commands, partitions, crashes, old backups. When all is healed they must agree, and nothing
//! that was acknowledged may be lost or back.
//!
//! `MTQ_SEED=n` runs one seed, `MTQ_SEEDS=n` so many from there on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::command::{Actor, Command};
use super::disk::LogEntry;
use super::feed::{Feed, OpBatch};
use super::ledger::{Essence, Ledger, Run};
use super::op::{Change, Op};
use super::pages::Pages;
use super::remembered::Remembered;
use super::reservations::{Claim, Reservations, WantedName};
use super::siblings::Siblings;
use super::state::{PUBLIC, Rules, State};
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::blake3;
use crate::id::{EnrolmentId, GroupId, MembershipId, OpId, OriginId, RequestId, ShareId, UserId};
use crate::limits::{CLAIM_PATIENCE, NAMES_WAIT, SYNC_BATCH_BYTES, SYNC_TICK};
use crate::manifest::testing::manifest_of;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;

/// Seeds of an ordinary run; more with `MTQ_SEEDS`.
const SEEDS: u64 = 1_200;
const STEPS: usize = 400;
const USERS: usize = 6;
const GROUPS: usize = 4;
const FILES: u8 = 3;

static PAGES: LazyLock<Pages> = LazyLock::new(|| {
    let mut pages = Pages::default();
    for file in 0..FILES {
        let manifest = manifest_of(&[file]);
        for hash in manifest.head().page_hashes() {
            pages.put(UserId([0xfe; 16]), *hash, 52);
        }
    }
    pages
});

fn user(n: usize) -> UserName {
    format!("u{n}").parse().expect("name")
}

fn group(n: usize) -> GroupName {
    format!("g{n}").parse().expect("name")
}

fn file(n: u8) -> FileName {
    format!("f{n}").parse().expect("name")
}

fn device(n: usize) -> PeerId {
    PeerId(blake3(&[n as u8]).0)
}

fn tracker(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 32])
}

/// What survives a crash.
#[derive(Clone, Default)]
struct SimDisk {
    snapshot: (u64, Essence, Vector),
    granted: Remembered,
    log: BTreeMap<u64, (OpId, Vec<u8>)>,
    position: u64,
}

impl SimDisk {
    fn append(&mut self, op: &Op, bytes: &[u8]) {
        self.log.insert(self.position, (op.id(), bytes.to_vec()));
        self.position += 1;
    }

    fn start(&self) -> u64 {
        self.log.keys().next().copied().unwrap_or(self.position)
    }

    fn load(&self) -> Ledger {
        let (at, essence, cut) = self.snapshot.clone();
        let mut ledger = Ledger::new(essence, cut, Rules::default());
        for (_, bytes) in self.log.range(at..).map(|(_, entry)| entry) {
            let op = Op::decode(bytes).expect("own op");
            ledger.follow(&op, bytes).expect("the log holds together");
        }
        ledger
    }

    fn read(&self, from: u64) -> Vec<LogEntry> {
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
struct Link {
    feed: Option<Feed>,
    heard: u64,
}

struct Running {
    ledger: Ledger,
    run: Run,
    siblings: Siblings,
    reservations: Reservations,
    links: BTreeMap<usize, Link>,
    names_from: u64,
    wanting: Vec<Wanting>,
}

/// A name that is being reserved.
struct Wanting {
    name: WantedName,
    claim: Claim,
    order: Order,
    waiting: BTreeSet<usize>,
    until: u64,
    provisional: bool,
    refused: bool,
}

#[derive(Clone)]
struct Order {
    device: usize,
    operator: bool,
    request: RequestId,
    command: Command,
}

#[derive(Clone)]
enum Message {
    Hello { knowledge: Knowledge },
    Ops(OpBatch),
    Have { heard: u64, vector: Vector, behind: bool },
    AskEssence,
    Essence(Box<Essence>),
    Reserve { name: WantedName, claim: Claim },
    Reserved { name: WantedName, claim: Claim, granted: bool },
}

struct Envelope {
    at: u64,
    from: usize,
    to: usize,
    epoch: u64,
    message: Message,
}

struct World {
    rng: fastrand::Rng,
    now: u64,
    next_tick: u64,
    disks: Vec<SimDisk>,
    backups: Vec<SimDisk>,
    skew: Vec<u64>,
    running: Vec<Option<Running>>,
    /// Pairs that cannot speak.
    cut: BTreeSet<(usize, usize)>,
    /// The number of the connection of each pair.
    epochs: BTreeMap<(usize, usize), u64>,
    mail: Vec<Envelope>,
    lossy: bool,
    /// Every op ever made.
    ops: BTreeMap<OpId, Op>,
    /// Granted and answered.
    acknowledged: BTreeSet<OpId>,
    /// Names given away that no tracker was left out of.
    sure: BTreeMap<[u8; 16], WantedName>,
    absorbed: bool,
    retries: Vec<Order>,
    trace: bool,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
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

    fn count(&self) -> usize {
        self.disks.len()
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{} {}", self.now, text());
        }
    }

    fn wall(&self, n: usize) -> UnixMillis {
        UnixMillis(self.now + self.skew[n])
    }

    fn start(&mut self, n: usize) {
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

    fn crash(&mut self, n: usize) {
        self.say(|| format!("{n} crashes"));
        self.running[n] = None;
        (0..self.count()).for_each(|m| self.disconnect(n, m));
    }

    /// A connection, if both are up and can speak.
    fn connect(&mut self, a: usize, b: usize) {
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

    fn disconnect(&mut self, a: usize, b: usize) {
        *self.epochs.entry(pair(a, b)).or_default() += 1;
        for (from, to) in [(a, b), (b, a)] {
            let Some(me) = &mut self.running[from] else { continue };
            if me.links.remove(&to).is_some() {
                me.siblings.lost(tracker(to));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
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

    fn send_at(&mut self, delay: u64, from: usize, to: usize, message: Message) {
        let epoch = self.epochs.get(&pair(from, to)).copied().unwrap_or(0);
        self.mail.push(Envelope { at: self.now + delay, from, to, epoch, message });
    }

    /// Lets time pass, and what is due happen.
    fn pass(&mut self, millis: u64) {
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

    fn tick(&mut self, n: usize) {
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

    fn snapshot(&mut self, n: usize) {
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
    fn pump(&mut self, n: usize) {
        let Some(me) = &mut self.running[n] else { return };
        let mut out = Vec::new();
        for (to, link) in &mut me.links {
            let Some(feed) = &mut link.feed else { continue };
            if me.ledger.is_behind_cut(feed.known()) {
                continue;
            }
            while let Some(wanted) = feed.wants() {
                let entries = self.disks[n].read(wanted.start);
                match feed.take(&wanted, &entries) {
                    Some(batch) => out.push((*to, batch)),
                    None if entries.is_empty() || feed.wants() == Some(wanted.clone()) => break,
                    None => {}
                }
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

    fn deliver(&mut self, envelope: Envelope) {
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
                let delay = self.rng.u64(1..500);
                self.send_at(delay, to, from, Message::Essence(Box::new(essence)));
            }
            Message::Essence(essence) => {
                self.absorbed = true;
                let _ = me.ledger.absorb(*essence);
                me.ledger.state.check_invariants();
                let disk = &mut self.disks[to];
                disk.snapshot = (disk.position, me.ledger.essence(), me.ledger.cut.clone());
                let (heard, vector) = (link.heard, me.ledger.chains.vector());
                self.say(|| format!("{to} takes over what {from} knows"));
                self.send(to, from, Message::Have { heard, vector, behind: false });
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
                let taken = match &name {
                    WantedName::User(name) => {
                        me.ledger.state.user_named(name).is_some_and(|user| user.0 != claim.id)
                    }
                    WantedName::Group(name) => {
                        me.ledger.state.group_named(name).is_some_and(|group| group.0 != claim.id)
                    }
                };
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
    fn commit(&mut self, n: usize, order: &Order) -> bool {
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

    fn propose(&mut self, n: usize, order: Order) {
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

    /// Makes an account, then enrols its device.
    fn settle_in(&mut self, n: usize, who: usize) {
        let request = RequestId::random(&mut self.rng);
        let Some(me) = &self.running[n] else { return };
        let state = &me.ledger.state;
        let command = match state.user_named(&user(who)) {
            Some(user) => {
                let verified = state.facts().passwords[&user].last().stamp;
                Command::EnrolDevice { user, verified }
            }
            None => {
                let password = format!("{who}");
                Command::CreateUser { user: user(who), password, invite: None }
            }
        };
        self.propose(n, Order { device: who, operator: false, request, command });
    }

    fn random_order(&mut self, n: usize) -> Option<Order> {
        let rng = &mut self.rng;
        let (who, whom) = (rng.usize(..USERS), rng.usize(..USERS));
        let (group, name) = (group(rng.usize(..GROUPS)), user(whom));
        let content = rng.u8(..FILES);
        let (what, some, hidden) = (rng.u8(..60), rng.bool(), rng.bool());
        let mut offline_grace = rng.u32(..5);
        let request = RequestId::random(rng);
        let state = &self.running[n].as_ref()?.ledger.state;
        let own = state.user_of(device(who));
        let verified = |user: UserId| Some(state.facts().passwords.get(&user)?.last().stamp);
        let operator = what >= 58;
        let command = match what {
            0..6 => match own {
                None => match state.user_named(&user(who)) {
                    Some(user) => Command::EnrolDevice { user, verified: verified(user)? },
                    None => {
                        let password = format!("{who}{offline_grace}");
                        Command::CreateUser { user: user(who), password, invite: None }
                    }
                },
                Some(_) => Command::CreateGroup { group, hidden },
            },
            6..9 => Command::CreateGroup { group, hidden },
            9..18 => Command::JoinGroup { group },
            18..28 => {
                // Somebody who really asks.
                let id = state.group_named(&group)?;
                let waiting = state.group_index(id)?.requests.first()?.0;
                Command::AcceptRequest { group, user: state.user_name(waiting)? }
            }
            28 | 29 => Command::RejectRequest { group, user: name },
            30..34 => Command::LeaveGroup { group },
            34..37 => Command::Kick { group, user: name },
            37..40 => Command::Nominate { group, user: some.then_some(name) },
            40..43 => Command::TransferGroup { group, user: name },
            43..49 => {
                let head = manifest_of(&[content]).head().clone().into();
                Command::Share { group, name: file(content), head }
            }
            49..52 => Command::StopShare { group, file: Selector::Name(file(content)) },
            52 | 53 => {
                offline_grace += 1;
                Command::SetGroup { group, offline_grace }
            }
            54 => {
                let verified = verified(own?)?;
                Command::ChangePassword { password: format!("p{offline_grace}"), verified }
            }
            55..58 => Command::RemoveDevice { device: device(who) },
            58 => Command::DisableUser { user: name },
            _ => Command::EnableUser { user: name },
        };
        Some(Order { device: who, operator, request, command })
    }

    fn step(&mut self) {
        let n = self.rng.usize(..self.count());
        match self.rng.u8(..100) {
            0..60 => {
                if let Some(order) = self.random_order(n) {
                    self.propose(n, order);
                }
            }
            60..66 => {
                let at = self.rng.usize(..self.retries.len().max(1));
                if at < self.retries.len() {
                    let order = self.retries.swap_remove(at);
                    self.say(|| format!("{n} is asked again for {:?}", order.command));
                    self.propose(n, order);
                }
            }
            66..70 => {
                let m = self.rng.usize(..self.count());
                if m != n && self.cut.insert(pair(n, m)) {
                    self.say(|| format!("{n} and {m} are cut off from each other"));
                    self.disconnect(n, m);
                }
            }
            70..76 => {
                let cut: Vec<_> = self.cut.iter().copied().collect();
                if let Some((a, b)) = self.rng.choice(cut) {
                    self.cut.remove(&(a, b));
                    self.say(|| format!("{a} and {b} speak again"));
                    self.connect(a, b);
                }
            }
            76..79 => self.crash(n),
            79..86 => self.start(n),
            86 => self.backups[n] = self.disks[n].clone(),
            87 if self.rng.u8(..4) == 0 => self.restore(n),
            88 if self.rng.u8(..4) == 0 => {
                // Long enough for removals to be forgotten.
                self.pass(1_000);
                self.now += 2 * 3600 * 1000;
                self.next_tick = self.now;
            }
            89 => self.skew[n] = self.rng.u64(..8_000),
            90..93 => self.snapshot(n),
            _ => {
                let millis = self.rng.u64(..8_000);
                self.pass(millis);
            }
        }
        let millis = self.rng.u64(..300);
        self.pass(millis);
    }

    /// A tracker comes back with an old backup: what only it had is lost for good.
    fn restore(&mut self, n: usize) {
        self.crash(n);
        self.say(|| format!("{n} comes back old"));
        self.disks[n] = self.backups[n].clone();
        let known: Vec<_> = self.disks.iter().map(|disk| disk.load().chains.knowledge()).collect();
        self.ops.retain(|op, _| known.iter().any(|known| known.covers(*op)));
        self.acknowledged.retain(|op| known.iter().any(|known| known.covers(*op)));
        self.sure.clear();
        self.start(n);
    }

    fn heal(&mut self) {
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

fn run(seed: u64, trace: bool) -> (usize, bool) {
    let mut world = World::new(seed, trace);
    (0..STEPS).for_each(|_| world.step());
    world.heal();
    world.check();
    (world.acknowledged.len(), world.absorbed)
}

#[test]
fn trackers_agree_after_whatever_happened() {
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let (first, count) = match (number("MTQ_SEED"), number("MTQ_SEEDS")) {
        (Some(seed), None) => (seed, 1),
        (seed, count) => (seed.unwrap_or(0), count.unwrap_or(SEEDS)),
    };
    let next = std::sync::atomic::AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let began = std::time::Instant::now();
    let (ops, absorbed) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut ops, mut absorbed) = (0, 0);
                    loop {
                        let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if seed >= first + count {
                            return (ops, absorbed);
                        }
                        let one = std::panic::catch_unwind(|| run(seed, count == 1));
                        let one = one.unwrap_or_else(|panic| {
                            println!("MTQ_SEED={seed} replays what failed");
                            std::panic::resume_unwind(panic)
                        });
                        ops += one.0;
                        absorbed += usize::from(one.1);
                    }
                })
            })
            .collect();
        let sum = |(ops, absorbed), (more, taken)| (ops + more, absorbed + taken);
        workers.into_iter().map(|w| w.join().expect("no seed fails")).fold((0, 0), sum)
    });
    println!(
        "{count} seeds, {ops} ops, {absorbed} times a tracker took over a state; {:?}",
        began.elapsed()
    );
    // What never happens proves nothing.
    assert!(count < 100 || (ops as u64 > 20 * count && absorbed > 0), "{ops} ops, {absorbed}");
}
