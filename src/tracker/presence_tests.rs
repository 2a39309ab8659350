//! Trackers that tell each other of their clients, against what those clients really are.
//!
//! Clients come, go, hold and let go; trackers hear of each other late and in lots, lose each other,
//! return, restart; journals overflow. When it is quiet, every tracker must see the union of all
//! clients, as the newest session has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::gossip::{Journal, News, SwarmId};
use super::message::PeerRecord;
use super::outlet::Outlet;
use super::presence::{Client, Presence};
use super::push::Push;
use super::seats::ConnectionNumber;
use crate::clock::UnixMillis;
use crate::id::{GroupId, UserId};
use crate::limits::PRESENCE_GRACE;
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;

const DEVICES: u8 = 5;
/// Two users for each two devices: a user has two devices at most, so that no sample is cut.
const USERS: u8 = 6;
/// The device, and the user, of the client of each tracker that looks for everything.
const LEECHER: u8 = 100;

fn swarms() -> impl Iterator<Item = SwarmId> {
    (1..=2).flat_map(|g| (1..=3).map(move |c| (GroupId([g; 16]), ContentId([c; 32]))))
}

fn peer(device: u8) -> PeerId {
    PeerId([device; 32])
}

fn user_id(user: u8) -> UserId {
    UserId([user; 16])
}

fn called(user: u8, version: u32) -> UserName {
    format!("u{user}.{version}").parse().expect("a name")
}

/// A connection as it really is.
struct Conn {
    number: ConnectionNumber,
    device: u8,
    session: u64,
    observed: SocketAddr,
    user: Option<u8>,
    holds: BTreeMap<SwarmId, bool>,
    pushes: mpsc::Receiver<Push>,
}

/// A durable change, as it reaches one tracker after the other.
#[derive(Clone, Copy, Debug)]
enum Op {
    Expel(u8, GroupId),
    SignOut(u8, u8),
    EndSwarm(SwarmId),
    Rename(u8, u32),
}

struct Tracker {
    presence: Presence,
    conns: Vec<Conn>,
    ops: VecDeque<Op>,
    names: BTreeMap<u8, u32>,
    /// Users that were seen online here.
    ever: BTreeSet<u8>,
    /// What its leecher knows by samples and pushes alone.
    told: BTreeMap<SwarmId, BTreeMap<PeerId, Vec<SocketAddr>>>,
}

/// What one tracker tells another.
#[derive(Default)]
struct Link {
    journal: Option<Arc<Journal>>,
    flight: VecDeque<News>,
}

struct World {
    rng: fastrand::Rng,
    now: UnixMillis,
    trackers: Vec<Tracker>,
    /// By teller and hearer.
    links: BTreeMap<(usize, usize), Link>,
    /// The run of each device's agent, and whose device it is.
    runs: [u64; DEVICES as usize],
    owners: [u8; DEVICES as usize],
}

/// What a device says in a swarm, as one tracker should see it.
struct Expected {
    session: u64,
    local: bool,
    complete: bool,
    name: UserName,
    observed: SocketAddr,
}

impl Tracker {
    fn new(names: BTreeMap<u8, u32>, ops: VecDeque<Op>) -> Self {
        let presence = Presence::default();
        let (conns, ever, told) = Default::default();
        Self { presence, conns, ops, names, ever, told }
    }

    fn connect(&mut self, place: usize, device: u8, session: u64) -> usize {
        let (outlet, pushes) = Outlet::new();
        let number = self.presence.next_number();
        let port = 1000 + number as u16 % 60_000;
        let observed = SocketAddr::from(([203, 0, 113 + place as u8, device], port));
        let client = Client::new(peer(device), observed, Vec::new(), session, outlet);
        self.presence.enter(number, client);
        let holds = BTreeMap::new();
        self.conns.push(Conn { number, device, session, observed, user: None, holds, pushes });
        self.conns.len() - 1
    }

    fn log_in(&mut self, conn: usize, user: u8) {
        let version = self.names.get(&user).copied().unwrap_or_default();
        let conn = &mut self.conns[conn];
        self.presence.log_in(conn.number, user_id(user), &called(user, version));
        conn.user = Some(user);
    }

    fn announce(&mut self, conn: usize, swarm: SwarmId, complete: bool) {
        let conn = &mut self.conns[conn];
        assert!(self.presence.announce(conn.number, swarm.0, swarm.1, complete));
        if conn.user.is_some() {
            conn.holds.insert(swarm, complete);
        }
    }

    fn sample(&self, swarm: SwarmId, seed: u64) -> Vec<PeerRecord> {
        let mut rng = fastrand::Rng::with_seed(seed);
        self.presence.sample(swarm.0, swarm.1, self.conns[0].number, &mut rng)
    }

    /// Its leecher looks for a content.
    fn look(&mut self, swarm: SwarmId) {
        self.read_pushes();
        self.announce(0, swarm, false);
        let known = self.sample(swarm, 1).into_iter().map(|peer| (peer.peer_id, peer.addresses));
        self.told.insert(swarm, known.collect());
    }

    fn read_pushes(&mut self) {
        let Some(leecher) = self.conns.first_mut() else { return };
        while let Ok(push) = leecher.pushes.try_recv() {
            match push {
                Push::SwarmJoined { group, content, peer } => {
                    let known = self.told.entry((group, content)).or_default();
                    known.insert(peer.peer_id, peer.addresses);
                }
                Push::SwarmLeft { group, content, peer_id } => {
                    let known = self.told.entry((group, content)).or_default();
                    assert!(known.remove(&peer_id).is_some(), "left and never joined");
                }
                other => panic!("{other:?}"),
            }
        }
        // Others need not read, and are not cut off for it here.
        for conn in &mut self.conns {
            while conn.pushes.try_recv().is_ok() {}
        }
    }

    fn apply(&mut self, op: Op, now: UnixMillis) {
        match op {
            Op::Expel(user, group) => {
                self.presence.expel(user_id(user), group);
                for conn in self.conns.iter_mut().filter(|conn| conn.user == Some(user)) {
                    conn.holds.retain(|(of, _), _| *of != group);
                }
            }
            Op::SignOut(user, device) => {
                self.presence.sign_out(user_id(user), peer(device), now);
                let theirs = |conn: &&mut Conn| conn.user == Some(user) && conn.device == device;
                for conn in self.conns.iter_mut().filter(theirs) {
                    (conn.user, conn.holds) = (None, BTreeMap::new());
                }
            }
            Op::EndSwarm(swarm) => {
                self.presence.end_swarm(swarm.0, swarm.1);
                self.conns.iter_mut().for_each(|conn| {
                    conn.holds.remove(&swarm);
                });
                self.look(swarm);
            }
            Op::Rename(user, version) => {
                self.names.insert(user, version);
                self.presence.rename(user_id(user), &called(user, version));
            }
        }
    }

    fn leave(&mut self, conn: usize, now: UnixMillis) {
        let conn = self.conns.remove(conn);
        let gone = self.presence.leave(conn.number, now);
        assert!(gone.is_none_or(|user| conn.user.map(user_id) == Some(user)));
        assert!(gone.is_none_or(|user| !self.presence.is_online(user)));
    }

    /// The newest login of each device here.
    fn newest(&self) -> BTreeMap<u8, &Conn> {
        let mut newest: BTreeMap<u8, &Conn> = BTreeMap::new();
        for conn in self.conns.iter().filter(|conn| conn.user.is_some()) {
            let best = newest.entry(conn.device).or_insert(conn);
            if (conn.session, conn.number) > (best.session, best.number) {
                *best = conn;
            }
        }
        newest
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(2..=3);
        let trackers = (0..count).map(|_| Tracker::new(BTreeMap::new(), VecDeque::new()));
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let links = pairs.filter(|(a, b)| a != b).map(|pair| (pair, Link::default())).collect();
        let owners = std::array::from_fn(|device| device as u8 / 2);
        let (now, trackers) = (UnixMillis(1_000), trackers.collect());
        let mut world = Self { rng, now, trackers, links, runs: [1; DEVICES as usize], owners };
        (0..count).for_each(|place| world.begin(place));
        world
    }

    /// The leecher of a tracker comes.
    fn begin(&mut self, place: usize) {
        let tracker = &mut self.trackers[place];
        let id = LEECHER + place as u8;
        let conn = tracker.connect(place, id, self.now.0);
        tracker.log_in(conn, id);
        swarms().for_each(|swarm| tracker.look(swarm));
    }

    fn swarm(&mut self) -> SwarmId {
        let all: Vec<_> = swarms().collect();
        all[self.rng.usize(..all.len())]
    }

    fn step(&mut self) {
        let place = self.rng.usize(..self.trackers.len());
        let swarm = self.swarm();
        let now = self.now;
        let count = self.trackers[place].conns.len();
        // Not the leecher.
        let conn = (count > 1).then(|| self.rng.usize(1..count));
        let choice = self.rng.u32(..100);
        let tracker = &mut self.trackers[place];
        match (choice, conn) {
            (0..8, _) => {
                let device = self.rng.u8(..DEVICES);
                let run = &mut self.runs[usize::from(device)];
                *run += u64::from(self.rng.u8(..4) == 0);
                let conn = tracker.connect(place, device, *run);
                if self.rng.u8(..5) > 0 {
                    tracker.log_in(conn, self.owners[usize::from(device)]);
                }
            }
            (8..12, Some(conn)) if tracker.conns[conn].user.is_none() => {
                let device = tracker.conns[conn].device;
                tracker.log_in(conn, self.owners[usize::from(device)]);
            }
            (12..36, Some(conn)) => tracker.announce(conn, swarm, self.rng.bool()),
            (36..44, Some(conn)) => {
                let conn = &mut tracker.conns[conn];
                tracker.presence.withdraw(conn.number, swarm.0, swarm.1);
                conn.holds.remove(&swarm);
            }
            (44..47, Some(conn)) => {
                let conn = &mut tracker.conns[conn];
                tracker.presence.log_out(conn.number, now);
                (conn.user, conn.holds) = (None, BTreeMap::new());
            }
            (47..51, Some(conn)) => tracker.leave(conn, now),
            (51..55, _) => self.issue(place, swarm),
            (55..60, _) => {
                if let Some(op) = tracker.ops.pop_front() {
                    tracker.apply(op, now);
                }
            }
            (60..94, _) => {
                let pairs: Vec<_> = self.links.keys().copied().collect();
                let pair = pairs[self.rng.usize(..pairs.len())];
                match choice {
                    60..65 => self.up(pair),
                    65..67 => self.down(pair),
                    67..81 => {
                        self.carry(pair);
                    }
                    _ => (0..self.rng.usize(..12)).for_each(|_| self.deliver(pair)),
                }
            }
            (94..98, _) => {
                self.now = now.plus(Duration::from_secs(self.rng.u64(..20)));
                self.expire();
            }
            (98, _) => {
                let pairs: Vec<_> = self.links.keys().copied().collect();
                for pair in pairs.into_iter().filter(|(a, b)| *a == place || *b == place) {
                    self.down(pair);
                }
                if self.rng.bool() {
                    let tracker = &mut self.trackers[place];
                    let (names, ops) = (tracker.names.clone(), std::mem::take(&mut tracker.ops));
                    *tracker = Tracker::new(names, ops);
                    self.begin(place);
                }
            }
            _ => {
                let other = (place + 1) % self.trackers.len();
                if self.links[&(other, place)].journal.is_none() {
                    let gone = self.trackers[place].presence.forget_tracker(tracker_id(other), now);
                    self.check_gone(place, &gone);
                }
            }
        }
        for tracker in &mut self.trackers {
            tracker.read_pushes();
            let online = (0..USERS).filter(|user| tracker.presence.is_online(user_id(*user)));
            tracker.ever.extend(online);
        }
    }

    /// Something durable happens at `place`, and gets to the others in time.
    fn issue(&mut self, place: usize, swarm: SwarmId) {
        let (user, device) = (self.rng.u8(..USERS), self.rng.u8(..DEVICES));
        let op = match self.rng.u8(..4) {
            0 => Op::Expel(user, swarm.0),
            1 => {
                let owner = &mut self.owners[usize::from(device)];
                let op = Op::SignOut(*owner, device);
                *owner = device / 2 + [0, 3][self.rng.usize(..2)];
                op
            }
            2 => Op::EndSwarm(swarm),
            _ => Op::Rename(user, self.rng.u32(..100)),
        };
        self.trackers.iter_mut().for_each(|tracker| tracker.ops.push_back(op));
        while let Some(op) = self.trackers[place].ops.pop_front() {
            self.trackers[place].apply(op, self.now);
        }
    }

    fn up(&mut self, pair: (usize, usize)) {
        let bound = self.rng.usize(2..40);
        let link = self.links.get_mut(&pair).expect("there");
        if link.journal.is_none() {
            link.journal = Some(self.trackers[pair.0].presence.journals.open(bound));
        }
    }

    fn down(&mut self, pair: (usize, usize)) {
        let link = self.links.get_mut(&pair).expect("there");
        if link.journal.is_some() {
            *link = Link::default();
            self.trackers[pair.1].presence.tracker_lost(tracker_id(pair.0), self.now);
        }
    }

    /// What one has to tell is sent; returns whether there was anything.
    fn carry(&mut self, pair: (usize, usize)) -> bool {
        let max = self.rng.usize(1..9);
        let link = self.links.get_mut(&pair).expect("there");
        let Some(journal) = &link.journal else { return false };
        let news = journal.take(&self.trackers[pair.0].presence, max);
        assert!(news.len() <= max.max(2));
        link.flight.extend(news);
        !link.flight.is_empty()
    }

    fn deliver(&mut self, pair: (usize, usize)) {
        let link = self.links.get_mut(&pair).expect("there");
        let Some(news) = link.flight.pop_front() else { return };
        let gone = self.trackers[pair.1].presence.hear(tracker_id(pair.0), news, self.now);
        self.check_gone(pair.1, &gone);
    }

    fn check_gone(&self, place: usize, gone: &[UserId]) {
        let presence = &self.trackers[place].presence;
        for user in gone {
            assert!(!presence.is_online(*user));
            assert_eq!(presence.last_seen(*user), Some(self.now));
        }
    }

    fn expire(&mut self) {
        for place in 0..self.trackers.len() {
            let gone = self.trackers[place].presence.expire(self.now);
            self.check_gone(place, &gone);
        }
    }

    /// Everything on its way arrives, what is lost stays lost, what died times out.
    fn settle(&mut self) {
        for tracker in &mut self.trackers {
            while let Some(op) = tracker.ops.pop_front() {
                tracker.apply(op, self.now);
            }
            loop {
                let newest = tracker.newest();
                let superseded = tracker.conns.iter().position(|conn| {
                    conn.user.is_some() && conn.session < newest[&conn.device].session
                });
                let Some(conn) = superseded else { break };
                tracker.leave(conn, self.now);
            }
        }
        let pairs: Vec<_> = self.links.keys().copied().collect();
        for pair in &pairs {
            match self.rng.u8(..6) {
                0 => self.down(*pair),
                _ => self.up(*pair),
            }
        }
        self.drain(&pairs);
        self.now = self.now.plus(PRESENCE_GRACE);
        self.expire();
        for pair in &pairs {
            assert!(!self.carry(*pair), "told of what it heard");
        }
        self.trackers.iter_mut().for_each(Tracker::read_pushes);
    }

    fn drain(&mut self, pairs: &[(usize, usize)]) {
        for pair in pairs {
            while self.carry(*pair) {
                while !self.links[pair].flight.is_empty() {
                    self.deliver(*pair);
                }
                self.trackers[pair.1].read_pushes();
            }
        }
    }

    /// Whether `place` hears `of`.
    fn hears(&self, place: usize, of: usize) -> bool {
        place == of || self.links[&(of, place)].journal.is_some()
    }

    fn check(&self, place: usize) {
        let tracker = &self.trackers[place];
        let heard: Vec<_> = (0..self.trackers.len()).filter(|of| self.hears(place, *of)).collect();
        let mut online: BTreeMap<u8, BTreeSet<PeerId>> = BTreeMap::new();
        for of in &heard {
            for (device, conn) in self.trackers[*of].newest() {
                online.entry(conn.user.expect("in")).or_default().insert(peer(device));
            }
        }
        let presence = &tracker.presence;
        assert_eq!(presence.user_count(), online.len());
        assert_eq!(presence.connection_count(), tracker.conns.len());
        for user in (0..USERS).chain((0..3).map(|place| LEECHER + place)) {
            let devices: BTreeSet<_> = presence.devices(user_id(user)).into_iter().collect();
            assert_eq!(devices, online.get(&user).cloned().unwrap_or_default());
            assert_eq!(presence.is_online(user_id(user)), online.contains_key(&user));
            let was = tracker.ever.contains(&user) && !online.contains_key(&user);
            assert!(!was || presence.last_seen(user_id(user)).is_some());
        }
        for swarm in swarms() {
            self.check_swarm(place, swarm, &heard);
        }
        presence.check_invariants();
    }

    fn check_swarm(&self, place: usize, swarm: SwarmId, heard: &[usize]) {
        let tracker = &self.trackers[place];
        let mut expected: BTreeMap<PeerId, Vec<Expected>> = BTreeMap::new();
        for of in heard {
            for (device, newest) in self.trackers[*of].newest() {
                let same = |conn: &&Conn| {
                    (conn.device, conn.session, conn.user) == (device, newest.session, newest.user)
                };
                let conns = self.trackers[*of].conns.iter().filter(same);
                let held = conns.filter(|conn| conn.holds.contains_key(&swarm));
                let Some(conn) = held.max_by_key(|conn| conn.number) else { continue };
                let user = newest.user.expect("in");
                let names = &self.trackers[*of].names;
                expected.entry(peer(device)).or_default().push(Expected {
                    session: newest.session,
                    local: *of == place,
                    complete: conn.holds[&swarm],
                    name: called(user, names.get(&user).copied().unwrap_or_default()),
                    // Others are told of one connection.
                    observed: if *of == place { conn.observed } else { newest.observed },
                });
            }
        }
        for claims in expected.values_mut() {
            let newest = claims.iter().map(|claim| claim.session).max();
            claims.retain(|claim| Some(claim.session) == newest);
            if claims.iter().any(|claim| claim.local) {
                claims.retain(|claim| claim.local);
            }
        }
        let holders = tracker.presence.holders(swarm.0, swarm.1);
        assert_eq!((holders.0 + holders.1) as usize, expected.len());
        let whole = expected.values().filter(|claims| claims.iter().all(|claim| claim.complete));
        let any = expected.values().filter(|claims| claims.iter().any(|claim| claim.complete));
        assert!((whole.count()..=any.count()).contains(&(holders.0 as usize)));
        let sample = tracker.sample(swarm, self.now.0);
        let mut known = BTreeMap::new();
        for record in &sample {
            let right = expected[&record.peer_id].iter().any(|claim| {
                claim.complete == record.complete
                    && claim.name == record.user
                    && record.addresses == [claim.observed]
            });
            assert!(right && !record.doubtful, "{record:?}");
            known.insert(record.peer_id, record.addresses.clone());
        }
        // The leecher is not in its own sample.
        assert_eq!(sample.len() + 1, expected.len());
        assert_eq!(tracker.told[&swarm], known, "what pushes told");
    }
}

fn tracker_id(place: usize) -> PeerId {
    peer(200 + place as u8)
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..3 {
        for _ in 0..world.rng.usize(..150) {
            world.step();
        }
        world.settle();
        (0..world.trackers.len()).for_each(|place| world.check(place));
    }
}

#[test]
fn when_it_is_quiet_every_tracker_sees_what_the_clients_are() {
    for seed in 0..1_000 {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            panic!("seed {seed}");
        }
    }
}
