//! A whole swarm in virtual time: many real schedulers and serving queues on simulated links.
//!
//! Deterministic: the same [`Swarm`] gives the same [`Report`]. Capacity is honest: no link is faster
//! than it is, and what was sent for nothing is counted as sent. It does no IO and knows no clock; what
//! a driver would feed a scheduler it feeds, and what the scheduler wants done it does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use super::event::{Action, Cause, Event, NotServed, PeerKey, Why};
use super::scheduler::Scheduler;
use super::serving_queue::ServingQueue;
use super::sim_net::{Downlink, Uplink};
use super::sim_report::{PeerReport, Record, Report};
use crate::bitfield::Bitfield;
use crate::limits::IDLE_TIMEOUT;
use crate::name::UserName;
use crate::piece::{PieceIndex, PieceLayout};

/// New pieces are told together with those of so long after.
const HAVE_BATCH: Duration = Duration::from_millis(20);

/// How long verifying and writing a piece takes.
const VERIFY: Duration = Duration::from_millis(2);

/// How often a scheduler hears of the bytes of a piece.
const PROGRESS: Duration = Duration::from_millis(500);

/// How a peer behaves to those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Honest,
    /// Says to have everything, and sends other bytes.
    Liar,
    /// Says to have everything, promises bytes, and sends none.
    Silent,
    /// Says to have everything, and sends a byte a second.
    Dribbler,
    /// Says to have everything, and denies each piece.
    Denier,
}

/// One peer. Only honest ones download.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Bytes a second it sends at most; more than zero.
    pub up: f64,
    /// Bytes a second it receives at most; any number.
    pub down: f64,
    /// Half the round-trip time to the middle of the network.
    pub latency: Duration,
    /// What it has at the beginning.
    pub stored: Bitfield,
    /// When it comes.
    pub joins: Duration,
    /// When it goes away, and when it is back.
    pub away: Vec<(Duration, Duration)>,
    /// When it goes, it says nothing: its connections die.
    pub dies: bool,
}

/// A swarm to simulate.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// The file.
    pub layout: PieceLayout,
    /// Who takes part.
    pub peers: Vec<Spec>,
    /// How many others a peer knows, in the mean.
    pub degree: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// The simulation ends then, whoever is not done.
    pub deadline: Duration,
    /// Whose events are recorded.
    pub record: Option<usize>,
}

impl Swarm {
    /// Plays it to its end: when every honest peer has everything, or at the deadline.
    ///
    /// # Panics
    /// When a scheduler asks a peer for what it never said to have.
    pub fn run(&self) -> Report {
        let mut world = World::new(self);
        while !world.is_done() {
            let Some(Reverse(Due { at, what, .. })) = world.heap.pop() else { break };
            if at > self.deadline {
                break;
            }
            world.now = at;
            world.happen(what);
        }
        world.report()
    }

    /// Who knows whom: everybody where there are few, else the same number of others for each, at
    /// random.
    pub fn neighbours(&self) -> Vec<BTreeSet<usize>> {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let count = self.peers.len();
        let mut known = vec![BTreeSet::new(); count];
        for me in 0..count {
            let mut found = 0;
            while found < self.degree.div_ceil(2) && known[me].len() + 1 < count {
                let other = rng.usize(..count);
                if other != me && known[me].insert(other) {
                    known[other].insert(me);
                    found += 1;
                }
            }
            if self.degree + 1 >= count {
                known[me].extend((0..count).filter(|other| *other != me));
            }
        }
        known
    }
}

/// Something that is due.
#[derive(Debug)]
struct Due {
    at: Duration,
    number: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[derive(Debug)]
enum What {
    /// A peer comes, or is back.
    Join(usize),
    /// Its connections stand.
    Meet(usize, u32),
    /// It goes.
    Leave(usize),
    /// The others notice.
    Left(usize, u32),
    /// A scheduler wants to know that time passed.
    Tick(usize),
    /// A peer tells what it has got.
    Tell(usize),
    /// The others hear of it.
    Has(usize, u32, Vec<PieceIndex>),
    /// A request is at the peer that is asked.
    Asked(u64),
    /// Its cancellation is.
    Cancelled(u64),
    /// A refusal is here.
    Refused(u64, NotServed),
    /// The header is here.
    Promised(u64),
    /// It is time to look how far a body is.
    Look(u64),
    /// A dribbler's next byte is here.
    Drop(u64, u32),
    /// The first of a peer's bodies may be sent whole.
    Sent(usize, u32),
    /// A body is here.
    Arrived(u64),
    /// It is verified.
    Verified(u64),
}

/// Where a request is in its life, as the peer sees it that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    OnItsWay,
    Waiting,
    Sending,
    Sent,
}

/// One request.
#[derive(Clone, Copy, Debug)]
struct Request {
    id: u64,
    server: usize,
    client: usize,
    /// In which of their lives.
    lives: (u32, u32),
    piece: PieceIndex,
    stage: Stage,
    /// When its body began, and when it will be through, once it is sent.
    times: (Duration, Duration),
    /// Why nobody waits for it any more.
    given_up: Option<Lost>,
}

/// Why bytes are wasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Late,
    Stolen,
    GivenUp,
    Left,
}

struct Node {
    user: UserName,
    neighbours: Vec<usize>,
    /// How often it came; what belongs to an earlier life is nothing to it.
    life: u32,
    online: bool,
    /// Its connections of this life stand.
    met: bool,
    have: Bitfield,
    /// Pieces it has not told of yet.
    news: Vec<PieceIndex>,
    scheduler: Option<Scheduler>,
    tick: Option<Duration>,
    /// When its scheduler last heard who is alive.
    listened: Duration,
    /// What it waits for.
    open: BTreeMap<(PeerKey, PieceIndex), u64>,
    uplink: Uplink,
    /// Which look at the uplink counts.
    look: u32,
    queue: ServingQueue<()>,
    report: PeerReport,
}

struct World<'a> {
    swarm: &'a Swarm,
    now: Duration,
    heap: BinaryHeap<Reverse<Due>>,
    number: u64,
    nodes: Vec<Node>,
    downlinks: Vec<Downlink>,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    last_id: u64,
    rng: fastrand::Rng,
    unfinished: usize,
    told: u64,
    record: Option<Record>,
    mean_latency: Duration,
}

impl<'a> World<'a> {
    fn new(swarm: &'a Swarm) -> Self {
        let known = swarm.neighbours();
        let node = |(number, (spec, known)): (usize, (&Spec, BTreeSet<usize>))| Node {
            user: format!("u{number}").parse().expect("invariant: a name"),
            neighbours: known.into_iter().collect(),
            life: 0,
            online: false,
            met: false,
            have: spec.stored.clone(),
            news: Vec::new(),
            scheduler: None,
            tick: None,
            listened: Duration::ZERO,
            open: BTreeMap::new(),
            uplink: Uplink::new(spec.up),
            look: 0,
            queue: ServingQueue::new(),
            report: PeerReport::default(),
        };
        let nodes: Vec<_> = swarm.peers.iter().zip(known).enumerate().map(node).collect();
        let wants = |spec: &&Spec| spec.behaviour == Behaviour::Honest && !spec.stored.is_full();
        let latency: Duration = swarm.peers.iter().map(|spec| spec.latency).sum();
        let mut world = Self {
            swarm,
            now: Duration::ZERO,
            heap: BinaryHeap::new(),
            number: 0,
            nodes,
            downlinks: swarm.peers.iter().map(|spec| Downlink::new(spec.down)).collect(),
            requests: Vec::new(),
            free: Vec::new(),
            last_id: 0,
            rng: fastrand::Rng::with_seed(swarm.seed),
            unfinished: swarm.peers.iter().filter(wants).count(),
            told: 0,
            record: None,
            mean_latency: latency / swarm.peers.len().max(1) as u32,
        };
        for (node, spec) in swarm.peers.iter().enumerate() {
            world.at(spec.joins, What::Join(node));
            for (leaves, returns) in &spec.away {
                world.at(*leaves, What::Leave(node));
                world.at(*returns, What::Join(node));
            }
        }
        world
    }

    fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    fn report(mut self) -> Report {
        let nodes = self.nodes.iter_mut();
        let peers = nodes.map(|node| {
            node.report.sent = node.uplink.sent();
            std::mem::take(&mut node.report)
        });
        let peers: Vec<_> = peers.collect();
        let last = peers.iter().filter_map(|peer| peer.finished).max();
        Report {
            makespan: last.filter(|_| self.unfinished == 0),
            peers,
            end: self.now,
            told: self.told,
            record: self.record,
        }
    }

    fn at(&mut self, at: Duration, what: What) {
        self.number += 1;
        self.heap.push(Reverse(Due { at, number: self.number, what }));
    }

    fn spec(&self, node: usize) -> &'a Spec {
        &self.swarm.peers[node]
    }

    fn path(&self, a: usize, b: usize) -> Duration {
        self.spec(a).latency + self.spec(b).latency
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Join(node) => self.join(node),
            What::Meet(node, life) => self.meet(node, life),
            What::Leave(node) => self.leave(node),
            What::Left(node, life) => {
                let gone = key(node, life);
                for other in self.nodes[node].neighbours.clone() {
                    self.lose(other, |peer| peer == gone, Lost::Left);
                    self.tell(other, Event::PeerLeft { peer: gone });
                }
            }
            What::Tick(node) => self.tick(node),
            What::Tell(node) => {
                let me = &mut self.nodes[node];
                let news = std::mem::take(&mut me.news);
                let life = me.life;
                let at = self.now + self.spec(node).latency + self.mean_latency;
                self.at(at, What::Has(node, life, news));
            }
            What::Has(node, life, pieces) => {
                let neighbours = std::mem::take(&mut self.nodes[node].neighbours);
                for other in &neighbours {
                    if self.nodes[*other].scheduler.is_some() {
                        let (peer, pieces) = (key(node, life), pieces.clone());
                        self.tell(*other, Event::PeerHas { peer, pieces });
                    }
                }
                self.nodes[node].neighbours = neighbours;
            }
            What::Asked(id) => self.asked(id),
            What::Cancelled(id) => self.cancelled(id),
            What::Refused(id, reason) => {
                let Some(request) = self.close(id) else { return };
                let (peer, piece) = (request.peer(), request.piece);
                self.tell(request.client, Event::NotServed { peer, piece, reason });
            }
            What::Promised(id) => self.progress(id, 0),
            What::Drop(id, bytes) => {
                self.progress(id, bytes);
                if self.request(id).is_some_and(|request| request.given_up.is_none()) {
                    self.at(self.now + 2 * PROGRESS, What::Drop(id, bytes + 1));
                }
            }
            What::Look(id) => self.look(id),
            What::Sent(node, look) if self.nodes[node].look == look => self.sent(node),
            What::Sent(..) => {}
            What::Arrived(id) => self.arrived(id),
            What::Verified(id) => self.verified(id),
        }
    }

    fn join(&mut self, node: usize) {
        let seed = self.rng.u64(..);
        let layout = self.swarm.layout;
        let spec = self.spec(node);
        let me = &mut self.nodes[node];
        if me.online {
            return;
        }
        (me.life, me.online, me.met) = (me.life + 1, true, false);
        if spec.behaviour == Behaviour::Honest && !me.have.is_full() {
            me.scheduler = Some(Scheduler::new(layout, &me.have, BTreeSet::new(), seed));
        }
        if self.swarm.record == Some(node) {
            self.record = Some(Record { seed, stored: me.have.clone(), steps: Vec::new() });
        }
        let life = self.nodes[node].life;
        // Two round trips: a handshake, and what each has.
        self.at(self.now + 4 * (spec.latency + self.mean_latency), What::Meet(node, life));
    }

    fn meet(&mut self, node: usize, life: u32) {
        if !self.nodes[node].online || self.nodes[node].life != life {
            return;
        }
        self.nodes[node].met = true;
        for other in self.nodes[node].neighbours.clone() {
            if self.nodes[other].met {
                self.introduce(node, other);
                self.introduce(other, node);
            }
        }
    }

    fn introduce(&mut self, node: usize, to: usize) {
        if self.nodes[to].scheduler.is_none() {
            return;
        }
        let peer = &self.nodes[node];
        let all = || Bitfield::all(self.swarm.layout);
        let honest = self.spec(node).behaviour == Behaviour::Honest;
        let event = Event::PeerJoined {
            peer: key(node, peer.life),
            user: peer.user.clone(),
            pieces: if honest { peer.have.clone() } else { all() },
            rtt: 2 * self.path(node, to),
        };
        self.tell(to, event);
    }

    fn leave(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        if !me.online {
            return;
        }
        (me.online, me.met, me.scheduler, me.tick) = (false, false, None, None);
        let (life, queue) = (me.life, std::mem::take(&mut me.queue));
        drop(queue);
        me.news.clear();
        me.look += 1;
        for (id, sent) in self.nodes[node].uplink.clear(self.now, &mut self.downlinks) {
            // Those who asked give it up when they notice.
            if let Some(request) = self.remove(id) {
                let why = request.given_up.unwrap_or(Lost::Left);
                self.waste(request.client, why, sent);
            }
        }
        let notice = if self.spec(node).dies { IDLE_TIMEOUT } else { Duration::ZERO };
        self.at(self.now + notice + self.mean_latency, What::Left(node, life));
        self.lose(node, |_| true, Lost::Left);
    }

    /// A peer gives up what it waits for from `which`.
    fn lose(&mut self, node: usize, which: impl Fn(PeerKey) -> bool, why: Lost) {
        let open = self.nodes[node].open.iter().filter(|((peer, _), _)| which(*peer));
        let open: Vec<_> = open.map(|(key, id)| (*key, *id)).collect();
        for (key, id) in open {
            self.nodes[node].open.remove(&key);
            self.give_up(id, why);
        }
    }

    fn tick(&mut self, node: usize) {
        if self.nodes[node].tick != Some(self.now) {
            return;
        }
        self.nodes[node].tick = None;
        let due = self.nodes[node].scheduler.as_ref().and_then(Scheduler::next_timeout);
        if due.is_some_and(|due| due <= self.now) {
            let me = &mut self.nodes[node];
            let mut asked = Vec::new();
            if me.listened + PROGRESS <= self.now {
                me.listened = self.now;
                asked.extend(me.open.keys().map(|(peer, _)| *peer));
                asked.dedup();
            }
            for peer in asked {
                let other = &self.nodes[node_of(peer)];
                if other.online && key(node_of(peer), other.life) == peer {
                    let rtt = 2 * self.path(node, node_of(peer));
                    self.tell(node, Event::Alive { peer, rtt });
                }
            }
            self.tell(node, Event::Tick);
        } else {
            self.set_tick(node);
        }
    }

    /// Tells a peer's scheduler, and does what it wants.
    fn tell(&mut self, node: usize, event: Event) {
        let Some(scheduler) = &mut self.nodes[node].scheduler else { return };
        self.told += 1;
        let record = self.record.as_mut().filter(|_| self.swarm.record == Some(node));
        let actions = match record {
            None => scheduler.handle(self.now, event),
            Some(record) => {
                let actions = scheduler.handle(self.now, event.clone());
                record.steps.push((self.now, event, actions.clone()));
                actions
            }
        };
        for action in actions {
            self.act(node, action);
        }
        self.set_tick(node);
    }

    fn set_tick(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        let Some(due) = me.scheduler.as_ref().and_then(Scheduler::next_timeout) else { return };
        let due = due.max(self.now + Duration::from_nanos(1));
        if me.tick.is_none_or(|tick| due < tick) {
            me.tick = Some(due);
            self.at(due, What::Tick(node));
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Request { peer, piece, why } => {
                let server = node_of(peer);
                let honest = self.spec(server).behaviour == Behaviour::Honest;
                assert!(!honest || self.nodes[server].have.contains(piece), "{server}: {piece}");
                let asked = &mut self.nodes[node].report.asked;
                asked.0 += 1;
                asked.1 += u32::from(why == Why::Stolen);
                asked.2 += u32::from(why == Why::Endgame);
                let id = self.ask(node, peer, piece);
                self.nodes[node].open.insert((peer, piece), id);
                self.at(self.now + self.path(node, server), What::Asked(id));
            }
            Action::Cancel { peer, piece, cause } => {
                let why = match cause {
                    Cause::Late => Lost::Late,
                    Cause::Stolen => Lost::Stolen,
                    Cause::Silent | Cause::Stalled => Lost::GivenUp,
                };
                if let Some(id) = self.nodes[node].open.remove(&(peer, piece)) {
                    self.give_up(id, why);
                }
            }
            Action::Ban { user } => {
                let banned: usize = user.as_str()[1..].parse().expect("invariant: a number");
                self.nodes[node].report.banned.entry(banned).or_insert(self.now);
                self.lose(node, |peer| node_of(peer) == banned, Lost::GivenUp);
            }
            Action::SuspectManifest { .. } => {}
            Action::Complete => {
                let me = &mut self.nodes[node];
                me.report.finished = Some(self.now);
                me.scheduler = None;
                self.unfinished -= 1;
                self.lose(node, |_| true, Lost::Late);
            }
        }
    }

    /// A new request.
    fn ask(&mut self, client: usize, peer: PeerKey, piece: PieceIndex) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() - 1
        });
        self.last_id += 1;
        let id = self.last_id << 32 | place as u64;
        let lives = ((peer.0 >> 32) as u32, self.nodes[client].life);
        let (server, stage) = (node_of(peer), Stage::OnItsWay);
        let times = (self.now, self.now);
        let request = Request { id, server, client, lives, piece, stage, times, given_up: None };
        self.requests[place] = Some(request);
        id
    }

    fn request(&mut self, id: u64) -> Option<&mut Request> {
        let slot = self.requests[place_of(id)].as_mut();
        slot.filter(|request| request.id == id)
    }

    fn remove(&mut self, id: u64) -> Option<Request> {
        let request = *self.request(id)?;
        self.requests[place_of(id)] = None;
        self.free.push(place_of(id));
        Some(request)
    }

    /// Takes out a request that got its answer, unless nobody waits for it any more.
    fn close(&mut self, id: u64) -> Option<Request> {
        let request = self.remove(id)?;
        if request.given_up.is_some() {
            return None;
        }
        self.nodes[request.client].open.remove(&(request.peer(), request.piece));
        Some(request)
    }

    fn give_up(&mut self, id: u64, why: Lost) {
        let Some(request) = self.request(id) else { return };
        request.given_up = Some(why);
        let (client, server) = (request.client, request.server);
        self.at(self.now + self.path(client, server), What::Cancelled(id));
    }

    fn waste(&mut self, client: usize, why: Lost, bytes: u64) {
        let waste = &mut self.nodes[client].report.wasted;
        let sum = match why {
            Lost::Late => &mut waste.late,
            Lost::Stolen => &mut waste.stolen,
            Lost::GivenUp => &mut waste.given_up,
            Lost::Left => &mut waste.left,
        };
        *sum += bytes;
    }

    fn asked(&mut self, id: u64) {
        let Some(&mut request) = self.request(id) else { return };
        let Request { server, client, lives, piece, .. } = request;
        let back = self.now + self.path(client, server);
        if !self.nodes[server].online || self.nodes[server].life != lives.0 {
            self.remove(id);
            return;
        }
        match self.spec(server).behaviour {
            Behaviour::Honest | Behaviour::Liar => {
                let user = self.nodes[client].user.clone();
                let len = self.swarm.layout.len(piece);
                let queue = &mut self.nodes[server].queue;
                if queue.push(id, user, (), piece.get(), len).is_err() {
                    self.at(back, What::Refused(id, NotServed::Busy));
                    return;
                }
                self.set_stage(id, Stage::Waiting);
                self.let_in(server);
            }
            Behaviour::Silent => self.at(back, What::Promised(id)),
            Behaviour::Dribbler => self.at(back, What::Drop(id, 0)),
            Behaviour::Denier => self.at(back, What::Refused(id, NotServed::NotHave)),
        }
    }

    fn set_stage(&mut self, id: u64, stage: Stage) {
        if let Some(request) = self.request(id) {
            request.stage = stage;
        }
    }

    fn cancelled(&mut self, id: u64) {
        let Some(&mut Request { server, client, stage, given_up, .. }) = self.request(id) else {
            return;
        };
        let why = given_up.unwrap_or(Lost::Left);
        match stage {
            Stage::Sending => {
                let sent = self.nodes[server]
                    .uplink
                    .remove(self.now, id, &mut self.downlinks)
                    .unwrap_or(0);
                self.waste(client, why, sent);
                self.downlinks[client].take(self.now, sent);
            }
            Stage::Waiting => {
                self.nodes[server].queue.remove(id);
            }
            // It is accounted for when it arrives.
            Stage::Sent => return,
            Stage::OnItsWay => {}
        }
        self.remove(id);
        self.let_in(server);
    }

    /// Begins the bodies there is room for.
    fn let_in(&mut self, server: usize) {
        let at = self.now;
        loop {
            let (requests, nodes) = (&self.requests, &mut self.nodes);
            let client_of = |id: u64| requests[place_of(id)].as_ref().map(|request| request.client);
            let Node { queue, uplink, .. } = &mut nodes[server];
            if queue.is_empty() || !uplink.has_room(None) {
                break;
            }
            let may = |id| client_of(id).is_some_and(|to| uplink.has_room(Some(to)));
            let Some(id) = queue.pop_where(|_| true, may) else { break };
            let Some(client) = client_of(id) else { break };
            if let Some(request) = self.request(id) {
                (request.stage, request.times.0) = (Stage::Sending, at);
            }
            let piece = self.request(id).map(|request| request.piece);
            let len = piece.map_or(0, |piece| self.swarm.layout.len(piece));
            self.nodes[server].uplink.add(self.now, id, client, len, &mut self.downlinks);
            self.at(self.now + self.path(client, server), What::Promised(id));
            self.at(self.now + PROGRESS, What::Look(id));
        }
        self.watch(server);
    }

    /// Finds out when the next body is sent whole.
    fn watch(&mut self, server: usize) {
        let me = &mut self.nodes[server];
        me.look += 1;
        if let Some(end) = me.uplink.next_end() {
            let look = me.look;
            self.at(end, What::Sent(server, look));
        }
    }

    /// Bodies of a peer are sent whole.
    fn sent(&mut self, server: usize) {
        for id in self.nodes[server].uplink.take_ended(self.now, &mut self.downlinks) {
            let Some(&mut Request { client, piece, .. }) = self.request(id) else { continue };
            let at = self.now + self.path(client, server);
            let len = self.swarm.layout.len(piece);
            let here = self.downlinks[client].take(at, u64::from(len));
            if let Some(request) = self.request(id) {
                (request.stage, request.times.1) = (Stage::Sent, here);
            }
            self.at(here, What::Arrived(id));
        }
        self.let_in(server);
    }

    /// Tells how far a body is, as its receiver sees it: what waits for its downlink comes little by
    /// little, with all else that does.
    fn look(&mut self, id: u64) {
        let Some(&mut request) = self.request(id) else { return };
        let Request { server, client, piece, stage, times: (began, through), .. } = request;
        let took = self.now.saturating_sub(began).as_secs_f64();
        let here = match stage {
            Stage::OnItsWay | Stage::Waiting => return,
            Stage::Sending => {
                let late = self.path(client, server).max(self.downlinks[client].backlog(self.now));
                let sent = self.nodes[server].uplink.progress(self.now, id).unwrap_or(0.0);
                // Its peer may take more by now, or less.
                self.nodes[server].uplink.share(&mut self.downlinks);
                self.let_in(server);
                sent * took / (took + late.as_secs_f64())
            }
            Stage::Sent if through <= self.now => return,
            Stage::Sent => {
                let span = through.saturating_sub(began).as_secs_f64();
                f64::from(self.swarm.layout.len(piece)) * took / span
            }
        };
        if here >= 1.0 {
            self.progress(id, here as u32);
        }
        self.at(self.now + PROGRESS, What::Look(id));
    }

    fn progress(&mut self, id: u64, received: u32) {
        let Some(&mut request) = self.request(id) else { return };
        if request.given_up.is_none() {
            let (peer, piece) = (request.peer(), request.piece);
            self.tell(request.client, Event::Progress { peer, piece, received });
        }
    }

    fn arrived(&mut self, id: u64) {
        let Some(&mut request) = self.request(id) else { return };
        let len = u64::from(self.swarm.layout.len(request.piece));
        if let Some(why) = request.given_up {
            self.remove(id);
            self.waste(request.client, why, len);
            return;
        }
        let (peer, piece) = (request.peer(), request.piece);
        self.nodes[request.client].open.remove(&(peer, piece));
        let rtt = 2 * self.path(request.client, request.server);
        self.at(self.now + VERIFY, What::Verified(id));
        self.tell(request.client, Event::Received { peer, piece, rtt });
    }

    fn verified(&mut self, id: u64) {
        let Some(request) = self.remove(id) else { return };
        let Request { server, client, piece, .. } = request;
        let len = u64::from(self.swarm.layout.len(piece));
        if !self.nodes[client].online || self.nodes[client].life != request.lives.1 {
            self.waste(client, Lost::Left, len);
            return;
        }
        let (peer, user) = (request.peer(), self.nodes[server].user.clone());
        if self.spec(server).behaviour == Behaviour::Liar {
            self.nodes[client].report.wasted.bad += len;
            self.tell(client, Event::Bad { peer, user, piece, received: true });
            return;
        }
        if !self.nodes[client].have.insert(piece) {
            self.waste(client, Lost::Late, len);
            self.tell(client, Event::Stored { user, piece });
            return;
        }
        let me = &mut self.nodes[client];
        me.report.kept += len;
        *me.report.from.entry(server).or_default() += len;
        me.news.push(piece);
        if me.news.len() == 1 {
            self.at(self.now + HAVE_BATCH, What::Tell(client));
        }
        self.tell(client, Event::Stored { user, piece });
    }
}

impl Request {
    /// The peer that is asked, as the one that asks knows it.
    fn peer(&self) -> PeerKey {
        key(self.server, self.lives.0)
    }
}

/// How others know a node in one of its lives.
fn key(node: usize, life: u32) -> PeerKey {
    PeerKey(u64::from(life) << 32 | node as u64)
}

fn node_of(peer: PeerKey) -> usize {
    (peer.0 & 0xffff_ffff) as usize
}

fn place_of(id: u64) -> usize {
    (id & 0xffff_ffff) as usize
}
