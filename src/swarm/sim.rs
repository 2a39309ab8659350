//! A whole swarm in virtual time: many real schedulers and serving queues on simulated links.
//!
//! Deterministic: the same [`Swarm`] gives the same [`Report`]. Capacity is honest: no link is faster
//! than it is, and what was sent for nothing is counted as sent. It does no IO and knows no clock; what
//! a driver would feed a scheduler it feeds, and what the scheduler wants done it does.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::event::{Action, Cause, Event, PeerKey, Why};
use super::scheduler::Scheduler;
use super::sim_report::{Record, Report};
use super::sim_swarm::{Behaviour, Swarm};
use super::sim_world::{Due, Lost, PROGRESS, What, World, key, node_of};
use crate::bitfield::Bitfield;
use crate::limits::IDLE_TIMEOUT;

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
}

impl World<'_> {
    pub(super) fn happen(&mut self, what: What) {
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

    pub(super) fn join(&mut self, node: usize) {
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

    pub(super) fn meet(&mut self, node: usize, life: u32) {
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

    pub(super) fn introduce(&mut self, node: usize, to: usize) {
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

    pub(super) fn leave(&mut self, node: usize) {
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
    pub(super) fn lose(&mut self, node: usize, which: impl Fn(PeerKey) -> bool, why: Lost) {
        let open = self.nodes[node].open.iter().filter(|((peer, _), _)| which(*peer));
        let open: Vec<_> = open.map(|(key, id)| (*key, *id)).collect();
        for (key, id) in open {
            self.nodes[node].open.remove(&key);
            self.give_up(id, why);
        }
    }

    pub(super) fn tick(&mut self, node: usize) {
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
    pub(super) fn tell(&mut self, node: usize, event: Event) {
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

    pub(super) fn set_tick(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        let Some(due) = me.scheduler.as_ref().and_then(Scheduler::next_timeout) else { return };
        let due = due.max(self.now + Duration::from_nanos(1));
        if me.tick.is_none_or(|tick| due < tick) {
            me.tick = Some(due);
            self.at(due, What::Tick(node));
        }
    }

    pub(super) fn act(&mut self, node: usize, action: Action) {
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
}
