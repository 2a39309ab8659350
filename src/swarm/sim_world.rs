//! What a simulated swarm consists of while it is played: nodes, links, requests, and what is due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use super::event::{NotServed, PeerKey};
use super::scheduler::Scheduler;
use super::serving_queue::ServingQueue;
use super::sim_net::{Downlink, Uplink};
use super::sim_report::{PeerReport, Record, Report};
use super::sim_swarm::{Behaviour, Spec, Swarm};
use crate::bitfield::Bitfield;
use crate::name::UserName;
use crate::piece::PieceIndex;

/// New pieces are told together with those of so long after.
pub(super) const HAVE_BATCH: Duration = Duration::from_millis(20);

/// How long verifying and writing a piece takes.
pub(super) const VERIFY: Duration = Duration::from_millis(2);

/// How often a scheduler hears of the bytes of a piece.
pub(super) const PROGRESS: Duration = Duration::from_millis(500);

/// Something that is due.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) at: Duration,
    pub(super) number: u64,
    pub(super) what: What,
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
pub(super) enum What {
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
pub(super) enum Stage {
    OnItsWay,
    Waiting,
    Sending,
    Sent,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) server: usize,
    pub(super) client: usize,
    /// In which of their lives.
    pub(super) lives: (u32, u32),
    pub(super) piece: PieceIndex,
    pub(super) stage: Stage,
    /// When its body began, and when it will be through, once it is sent.
    pub(super) times: (Duration, Duration),
    /// Why nobody waits for it any more.
    pub(super) given_up: Option<Lost>,
}

/// Why bytes are wasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    Late,
    Stolen,
    GivenUp,
    Left,
}

pub(super) struct Node {
    pub(super) user: UserName,
    pub(super) neighbours: Vec<usize>,
    /// How often it came; what belongs to an earlier life is nothing to it.
    pub(super) life: u32,
    pub(super) online: bool,
    /// Its connections of this life stand.
    pub(super) met: bool,
    pub(super) have: Bitfield,
    /// Pieces it has not told of yet.
    pub(super) news: Vec<PieceIndex>,
    pub(super) scheduler: Option<Scheduler>,
    pub(super) tick: Option<Duration>,
    /// When its scheduler last heard who is alive.
    pub(super) listened: Duration,
    /// What it waits for.
    pub(super) open: BTreeMap<(PeerKey, PieceIndex), u64>,
    pub(super) uplink: Uplink,
    /// Which look at the uplink counts.
    pub(super) look: u32,
    pub(super) queue: ServingQueue<()>,
    pub(super) report: PeerReport,
}

pub(super) struct World<'a> {
    pub(super) swarm: &'a Swarm,
    pub(super) now: Duration,
    pub(super) heap: BinaryHeap<Reverse<Due>>,
    pub(super) number: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) downlinks: Vec<Downlink>,
    pub(super) requests: Vec<Option<Request>>,
    pub(super) free: Vec<usize>,
    pub(super) last_id: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) unfinished: usize,
    pub(super) told: u64,
    pub(super) record: Option<Record>,
    pub(super) mean_latency: Duration,
}

impl<'a> World<'a> {
    pub(super) fn new(swarm: &'a Swarm) -> Self {
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

    pub(super) fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    pub(super) fn report(mut self) -> Report {
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

    pub(super) fn at(&mut self, at: Duration, what: What) {
        self.number += 1;
        self.heap.push(Reverse(Due { at, number: self.number, what }));
    }

    pub(super) fn spec(&self, node: usize) -> &'a Spec {
        &self.swarm.peers[node]
    }

    pub(super) fn path(&self, a: usize, b: usize) -> Duration {
        self.spec(a).latency + self.spec(b).latency
    }

    /// A new request.
    pub(super) fn ask(&mut self, client: usize, peer: PeerKey, piece: PieceIndex) -> u64 {
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

    pub(super) fn request(&mut self, id: u64) -> Option<&mut Request> {
        let slot = self.requests[place_of(id)].as_mut();
        slot.filter(|request| request.id == id)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Request> {
        let request = *self.request(id)?;
        self.requests[place_of(id)] = None;
        self.free.push(place_of(id));
        Some(request)
    }

    /// Takes out a request that got its answer, unless nobody waits for it any more.
    pub(super) fn close(&mut self, id: u64) -> Option<Request> {
        let request = self.remove(id)?;
        if request.given_up.is_some() {
            return None;
        }
        self.nodes[request.client].open.remove(&(request.peer(), request.piece));
        Some(request)
    }

    pub(super) fn give_up(&mut self, id: u64, why: Lost) {
        let Some(request) = self.request(id) else { return };
        request.given_up = Some(why);
        let (client, server) = (request.client, request.server);
        self.at(self.now + self.path(client, server), What::Cancelled(id));
    }

    pub(super) fn waste(&mut self, client: usize, why: Lost, bytes: u64) {
        let waste = &mut self.nodes[client].report.wasted;
        let sum = match why {
            Lost::Late => &mut waste.late,
            Lost::Stolen => &mut waste.stolen,
            Lost::GivenUp => &mut waste.given_up,
            Lost::Left => &mut waste.left,
        };
        *sum += bytes;
    }
}

impl Request {
    /// The peer that is asked, as the one that asks knows it.
    pub(super) fn peer(&self) -> PeerKey {
        key(self.server, self.lives.0)
    }
}

/// How others know a node in one of its lives.
pub(super) fn key(node: usize, life: u32) -> PeerKey {
    PeerKey(u64::from(life) << 32 | node as u64)
}

pub(super) fn node_of(peer: PeerKey) -> usize {
    (peer.0 & 0xffff_ffff) as usize
}

pub(super) fn place_of(id: u64) -> usize {
    (id & 0xffff_ffff) as usize
}
