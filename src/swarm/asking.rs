//! Whom a scheduler asks next, and for what: everybody in turn, first for what nobody is asked for, then
//! for what others would bring much later.

use std::ops::Bound;
use std::time::Duration;

use super::event::{Action, Cause, PeerKey, Why};
use super::peer::Peer;
use super::rescue::{Rescue, Scene};
use super::scheduler::{Ready, Scheduler};
use crate::name::UserName;
use crate::piece::PieceIndex;

/// Pieces' worth of bytes that second copies and takeovers may waste as far as is known, or that part of
/// the file if it is more: with what is on its way when a request is stopped, 4 pieces or 2 %.
const WASTE: (u64, u64) = (2, 64);

/// A peer that could take over something, but is not much faster, is looked at again after the first
/// of these when everything is asked for, else after the second: then nobody waits for any one piece.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

impl Scheduler {
    /// Asks those who may be ready for more, until none can take more.
    pub(super) fn fill(&mut self, now: Duration, ready: Ready, actions: &mut Vec<Action>) {
        if self.paused {
            return;
        }
        match ready {
            Ready::Nobody => return,
            Ready::All => return self.ask_in_turn(now, true, actions),
            Ready::One(_) | Ready::News(..) | Ready::Room => {}
        }
        if self.starved && self.room.has(self.unit(), false) {
            self.ask_in_turn(now, false, actions);
        }
        if let Ready::One(peer) | Ready::News(peer, _) = ready {
            while self.ask(now, peer, actions) {}
        }
        if let Ready::News(peer, pieces) = ready {
            for piece in pieces {
                if self.peers.get(&peer).is_some_and(|peer| peer.is_ready() && peer.useful == 0) {
                    self.take_over(now, peer, Some(piece), actions);
                }
            }
        }
    }

    /// Asks peers in turn, one piece each, until none can take more; while there is room, or also those
    /// that need none.
    fn ask_in_turn(&mut self, now: Duration, without_room: bool, actions: &mut Vec<Action>) {
        self.starved = false;
        let (mut last, mut refused) = (self.turn, 0);
        while refused < self.peers.len() {
            if !without_room && !self.room.has(self.unit(), false) {
                self.starved = true;
                return;
            }
            let after = (Bound::Excluded(last), Bound::Unbounded);
            let next = self.peers.range(after).next().or_else(|| self.peers.first_key_value());
            let Some(key) = next.map(|(key, _)| *key) else { return };
            last = key;
            refused += 1;
            if self.ask(now, key, actions) {
                (self.turn, refused) = (key, 0);
            }
        }
    }

    /// Asks a peer for one piece more, if it can take one and has one for us.
    fn ask(&mut self, now: Duration, key: PeerKey, actions: &mut Vec<Action>) -> bool {
        let Some(peer) = self.peers.get(&key) else { return false };
        if !peer.is_ready() {
            return false;
        }
        if peer.useful > 0 && !self.room.has(self.unit(), !peer.is_asked()) {
            self.starved = true;
            return false;
        }
        if let Some(piece) = self.pick(now, key) {
            self.count_useful(piece, false);
            self.flights.ask(piece, key, None);
            self.begin(now, key, piece, Why::Missing, actions);
            return true;
        }
        if self.peers.get(&key).is_some_and(|peer| peer.looks_again > now) {
            return false;
        }
        if self.take_over(now, key, None, actions) {
            return true;
        }
        // While this machine does not keep up nothing is learnt by looking: all are asked once it does.
        let learns = self.room.keeps_up() && !self.flights.is_empty();
        if let Some(peer) = self.peers.get_mut(&key).filter(|_| learns) {
            let at_end = self.picker.missing_count() == 0;
            let span = if at_end { LOOK_AGAIN.0 } else { LOOK_AGAIN.1 };
            // All at the same times, so that there are few.
            let spans = now.as_millis() / span.as_millis() + 1;
            let at = span * u32::try_from(spans).unwrap_or(u32::MAX);
            peer.looks_again = at;
            self.wake_at(at);
        }
        false
    }

    /// The missing piece to ask a peer for.
    fn pick(&mut self, now: Duration, key: PeerKey) -> Option<PieceIndex> {
        let (peer, blame) = (self.peers.get(&key)?, &self.blame);
        let Some(retry_at) = peer.suspect else {
            return self.picker.pick(&peer.pieces, peer.useful, |_| false);
        };
        let failed = |piece| blame.has_failed(&peer.user, piece);
        let others = |piece| {
            let has = |other: &Peer| other.pieces.contains(piece);
            self.peers.values().any(|other| has(other) && !blame.has_failed(&other.user, piece))
        };
        let early = now < retry_at;
        self.picker
            .pick(&peer.pieces, peer.useful, |piece| failed(piece) && (early || others(piece)))
    }

    /// A peer with nothing else to do takes over something from another one, of all or of a piece
    /// that it has only just got.
    fn take_over(
        &mut self,
        now: Duration,
        key: PeerKey,
        only: Option<PieceIndex>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let at_end = self.picker.missing_count() == 0;
        let may_waste = (WASTE.0 * self.unit()).max(self.layout.size() / WASTE.1);
        let is_asked = self.peers.get(&key).is_some_and(Peer::is_asked);
        let has_room = self.room.has(self.unit(), !is_asked);
        let spare = if at_end { may_waste.saturating_sub(self.wasted) } else { 0 };
        let failed = |user: &UserName, piece| self.blame.has_failed(user, piece);
        let scene = Scene { peers: &self.peers, flights: &self.flights, at_end, spare };
        match scene.rescue(now, key, only, failed) {
            Rescue::Steal { piece, from } => {
                let asked = self.drop_request(from, piece);
                self.wasted += asked.map_or(0, |asked| asked.waste());
                actions.push(Action::Cancel { peer: from, piece, cause: Cause::Stolen });
                self.flights.ask(piece, key, Some(from));
                self.begin(now, key, piece, Why::Stolen, actions);
                true
            }
            Rescue::Duplicate { piece } if has_room => {
                self.wasted += u64::from(self.layout.len(piece));
                self.flights.double(piece, key);
                self.begin(now, key, piece, Why::Endgame, actions);
                true
            }
            Rescue::Duplicate { .. } | Rescue::Nothing => false,
        }
    }

    fn begin(
        &mut self,
        now: Duration,
        key: PeerKey,
        piece: PieceIndex,
        why: Why,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Request { peer: key, piece, why });
        let len = self.layout.len(piece);
        self.room.ask(len);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.listen(now);
            peer.pipe.ask(now, piece, len);
            let end = peer.silence_ends();
            self.wake_at(end);
        }
    }
}
