//! Requests in a simulated swarm: how they wait, are served, arrive, or come to nothing.

use super::event::{Event, NotServed};
use super::sim_swarm::Behaviour;
use super::sim_world::{
    HAVE_BATCH, Lost, Node, PROGRESS, Request, Stage, VERIFY, What, World, place_of,
};

impl World<'_> {
    pub(super) fn asked(&mut self, id: u64) {
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

    pub(super) fn set_stage(&mut self, id: u64, stage: Stage) {
        if let Some(request) = self.request(id) {
            request.stage = stage;
        }
    }

    pub(super) fn cancelled(&mut self, id: u64) {
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
    pub(super) fn let_in(&mut self, server: usize) {
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
    pub(super) fn watch(&mut self, server: usize) {
        let me = &mut self.nodes[server];
        me.look += 1;
        if let Some(end) = me.uplink.next_end() {
            let look = me.look;
            self.at(end, What::Sent(server, look));
        }
    }

    /// Bodies of a peer are sent whole.
    pub(super) fn sent(&mut self, server: usize) {
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
    pub(super) fn look(&mut self, id: u64) {
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

    pub(super) fn progress(&mut self, id: u64, received: u32) {
        let Some(&mut request) = self.request(id) else { return };
        if request.given_up.is_none() {
            let (peer, piece) = (request.peer(), request.piece);
            self.tell(request.client, Event::Progress { peer, piece, received });
        }
    }

    pub(super) fn arrived(&mut self, id: u64) {
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

    pub(super) fn verified(&mut self, id: u64) {
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
