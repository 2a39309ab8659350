//! Who is asked for which piece: a pure state machine.
//!
//! Events in, actions out; time is an argument and chance is a seed, so the same events give the
//! same actions. It owns availability, what is in flight, how deep each peer's pipeline is, when a
//! peer counts as dead, and blame. It does no IO.
//!
//! Chief invariant: each piece is in exactly one of missing, in flight, stored; one in flight has one
//! holder, or two at the very end; nobody is asked for what they lack.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::blame::Blame;
use super::event::{Action, Cause, Event, NotServed, PeerKey};
use super::flights::Flights;
use super::peer::Peer;
use super::picker::{Picker, PieceState};
use super::pipe::Asked;
use super::room::Room;
use crate::bitfield::Bitfield;
use crate::limits::{DOWNLOAD_BYTES, PIECE_LEN};
use crate::name::UserName;
use crate::piece::{PieceIndex, PieceLayout};

/// A user who failed on a piece that nobody else has is asked for it again after this.
const RETRY: Duration = Duration::from_secs(10);

/// The scheduler of one download.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) layout: PieceLayout,
    pub(super) picker: Picker,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    pub(super) flights: Flights,
    pub(super) blame: Blame,
    /// Whose ban was told.
    banned: BTreeSet<UserName>,
    pub(super) room: Room,
    /// Bytes wasted by second copies and takeovers, as far as is known; of pieces that are asked of two
    /// peers now, all.
    pub(super) wasted: u64,
    pub(super) paused: bool,
    complete: bool,
    /// A peer could take more if there were room.
    pub(super) starved: bool,
    /// Who got room last, when there was too little for all.
    pub(super) turn: PeerKey,
    now: Duration,
    /// Nothing depends on time before this.
    pub(super) wake: Option<Duration>,
    /// Events since every count was checked.
    unchecked: u32,
}

/// Which peers an event may have made ready for more.
pub(super) enum Ready {
    All,
    One(PeerKey),
    /// One that has got these, which others were asked for.
    News(PeerKey, Vec<PieceIndex>),
    /// Nobody, unless room was short.
    Room,
    Nobody,
}

impl Scheduler {
    /// A download that has `stored` already; `seed` decides among equals, and nothing is taken from
    /// `outcasts`.
    pub fn new(
        layout: PieceLayout,
        stored: &Bitfield,
        outcasts: BTreeSet<UserName>,
        seed: u64,
    ) -> Self {
        Self {
            layout,
            picker: Picker::new(layout, stored, seed),
            peers: BTreeMap::new(),
            flights: Flights::default(),
            blame: Blame::new(outcasts),
            banned: BTreeSet::new(),
            room: Room::new(DOWNLOAD_BYTES),
            wasted: 0,
            paused: false,
            complete: false,
            starved: false,
            turn: PeerKey(0),
            now: Duration::ZERO,
            wake: None,
            unchecked: 0,
        }
    }

    /// Whether every piece is stored.
    pub fn is_complete(&self) -> bool {
        self.picker.is_complete()
    }

    /// Whether a piece is stored.
    pub fn is_stored(&self, piece: PieceIndex) -> bool {
        self.picker.state(piece) == PieceState::Stored
    }

    /// Whether nothing is taken from this user.
    pub fn is_banned(&self, user: &UserName) -> bool {
        self.blame.is_banned(user)
    }

    /// Pieces of which everybody sends something else than the manifest says.
    pub fn suspected(&self) -> &BTreeSet<PieceIndex> {
        self.blame.suspected()
    }

    /// Those of them that somebody has who is here.
    pub fn suspected_here(&self) -> BTreeSet<PieceIndex> {
        let has = |piece: &PieceIndex| self.peers.values().any(|peer| peer.pieces.contains(*piece));
        self.suspected().iter().copied().filter(has).collect()
    }

    /// Whether some piece is missing that no peer has which could be asked: what is in flight waits for
    /// peers that count as dead, or is tried once more though everybody fails on it.
    pub fn is_stuck(&self) -> bool {
        let is_dead = |holder| self.peers.get(holder).is_none_or(|peer| peer.silent);
        let hopeless = self.flights.iter().all(|(piece, flight)| {
            let dead = flight.verifying == 0 && flight.holders.iter().all(is_dead);
            dead || self.suspected().contains(&piece)
        });
        let could_give = |peer: &Peer| {
            let failed = |piece| self.blame.has_failed(&peer.user, piece);
            let mut missing = self.picker.missing().common(&peer.pieces);
            match self.suspected().is_empty() {
                true => peer.useful > 0,
                false => missing.any(|p| !self.suspected().contains(&p) || !failed(p)),
            }
        };
        hopeless
            && !self.is_complete()
            && !self.peers.values().any(|peer| !peer.silent && could_give(peer))
    }

    /// Pieces a peer has, pieces it is asked for, and bytes a second that it gives as far as is known.
    pub fn pulse(&self, peer: PeerKey) -> Option<(u32, usize, Option<f64>)> {
        let peer = self.peers.get(&peer)?;
        Some((peer.pieces.count(), peer.pipe.asked().len(), peer.pipe.rate()))
    }

    /// Bytes that could well be in flight now, if there were room.
    pub fn demand(&self) -> u64 {
        if self.paused || self.complete {
            return 0;
        }
        // Who rests leaves the room to other downloads.
        let live = self.peers.values().filter(|peer| !peer.silent && peer.rests_until.is_none());
        let busy = live.filter(|peer| peer.useful > 0 || peer.is_asked());
        let wanted: usize = busy.map(Peer::depth).sum();
        let pieces = self.picker.missing_count() as usize + self.flights.len();
        wanted.min(pieces) as u64 * self.unit()
    }

    /// When to send a [`Event::Tick`], if nothing else happens before.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.wake
    }

    /// Takes in one event at time `now` since the download began; returns what to do. What does not
    /// belong to this download's file is ignored.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if !event.fits(self.layout) {
            return actions;
        }
        let now = now.max(self.now);
        self.forgive_sleep(now);
        self.now = now;
        let ready = self.take_in(now, event, &mut actions);
        self.fill(now, ready, &mut actions);
        if self.picker.is_complete() && !std::mem::replace(&mut self.complete, true) {
            actions.push(Action::Complete);
        }
        self.complete = self.picker.is_complete();
        if cfg!(any(debug_assertions, fuzzing)) {
            // Checking looks at every piece of every peer: of the largest files now and then.
            self.unchecked += self.layout.piece_count() / 1_000 + 1;
            if self.unchecked > self.layout.piece_count() / 1_000 * 100 {
                self.unchecked = 0;
                self.check_invariants();
            }
        }
        actions
    }

    fn take_in(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) -> Ready {
        match event {
            Event::PeerJoined { peer, user, pieces, rtt } => {
                self.remove(peer);
                if self.is_banned(&user) {
                    return Ready::All;
                }
                self.picker.peer_joined(&pieces);
                let useful = self.useful(&pieces);
                let suspect = self.blame.is_suspect(&user).then_some(now + RETRY);
                suspect.into_iter().for_each(|at| self.wake_at(at));
                let mut known = Peer::new(user, pieces, useful, rtt);
                known.suspect = suspect;
                self.peers.insert(peer, known);
                Ready::All
            }
            Event::PeerPieces { peer, pieces } => {
                self.replace_pieces(peer, pieces);
                self.hear(now, peer);
                Ready::All
            }
            Event::PeerHas { peer, pieces } => {
                let mut asked_of_others = Vec::new();
                if let Some(known) = self.peers.get_mut(&peer) {
                    for piece in pieces {
                        if known.pieces.insert(piece) {
                            self.picker.peer_gained(piece, &known.pieces);
                            match self.picker.state(piece) {
                                PieceState::Missing => known.useful += 1,
                                PieceState::InFlight => asked_of_others.push(piece),
                                PieceState::Stored => {}
                            }
                        }
                    }
                }
                self.hear(now, peer);
                Ready::News(peer, asked_of_others)
            }
            Event::PeerLeft { peer } => {
                self.remove(peer);
                Ready::All
            }
            Event::Alive { peer, rtt } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.pipe.set_rtt(rtt);
                }
                if self.hear(now, peer) { Ready::One(peer) } else { Ready::Nobody }
            }
            Event::Progress { peer, piece, received } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.pipe.progress(now, piece, received);
                    self.watch_for_stall(peer);
                }
                if self.hear(now, peer) { Ready::One(peer) } else { Ready::Nobody }
            }
            Event::Received { peer, piece, rtt } => {
                self.received(now, peer, piece, rtt);
                self.hear(now, peer);
                Ready::One(peer)
            }
            Event::Stored { user, piece } => {
                let kept_up = self.room.keeps_up();
                self.stored(&user, piece, actions);
                // Nobody was asked meanwhile, not even who is asked for nothing.
                if !kept_up && self.room.keeps_up() { Ready::All } else { Ready::Room }
            }
            Event::Bad { peer, user, piece, received } => {
                if received {
                    self.verified(piece);
                } else {
                    self.drop_request(peer, piece);
                }
                self.settle(piece);
                self.fail(now, &user, piece, actions);
                Ready::All
            }
            Event::Lost { pieces } => {
                for piece in pieces {
                    if self.is_stored(piece) {
                        self.picker.lost(piece);
                        self.count_useful(piece, true);
                    }
                }
                Ready::All
            }
            Event::Found { pieces } => {
                pieces.into_iter().for_each(|piece| self.found(piece, actions));
                Ready::All
            }
            Event::NotServed { peer, piece, reason } => {
                self.not_served(now, peer, piece, reason, actions);
                Ready::All
            }
            Event::Room { bytes, credit } => {
                self.room.set(bytes, credit);
                Ready::Room
            }
            Event::Pause => {
                self.paused = true;
                Ready::Nobody
            }
            Event::Resume => {
                self.paused = false;
                Ready::All
            }
            // Only now: whoever is alive was heard of before, but not before other events.
            Event::Tick if self.wake.is_some_and(|at| at <= now) => {
                self.pass_time(now, actions);
                Ready::All
            }
            Event::Tick => Ready::Nobody,
        }
    }

    /// A piece is here and goes to be verified, also one that was not waited for any more.
    fn received(&mut self, now: Duration, key: PeerKey, piece: PieceIndex, rtt: Duration) {
        let known = self.peers.get_mut(&key);
        if let Some(asked) = known.and_then(|peer| {
            peer.did_well();
            peer.pipe.received(now, piece, rtt)
        }) {
            self.room.unask(asked.len);
        }
        if self.is_stored(piece) {
            return;
        }
        self.take_up(piece);
        self.flights.drop_holder(piece, key);
        self.flights.verify(piece);
        self.room.verify(self.layout.len(piece));
    }

    /// A piece comes, perhaps one that nobody was asked for: it is not missing any more.
    fn take_up(&mut self, piece: PieceIndex) {
        if self.picker.state(piece) == PieceState::Missing {
            self.picker.take(piece);
            self.count_useful(piece, false);
        }
    }

    /// A copy of a piece is not being verified any more.
    fn verified(&mut self, piece: PieceIndex) {
        if self.flights.verified(piece) {
            self.room.verified(self.layout.len(piece));
        }
    }

    fn stored(&mut self, user: &UserName, piece: PieceIndex, actions: &mut Vec<Action>) {
        if self.flights.of(piece).is_none_or(|flight| flight.verifying == 0) {
            return;
        }
        self.found(piece, actions);
        let was_suspected = self.blame.suspected().contains(&piece);
        self.blame.good(user, piece);
        if was_suspected {
            // Those who failed on it are to blame after all.
            let users: BTreeSet<_> = self.peers.values().map(|peer| peer.user.clone()).collect();
            users.iter().for_each(|user| self.judge(user, actions));
        }
    }

    /// A piece is there: nobody need bring it.
    fn found(&mut self, piece: PieceIndex, actions: &mut Vec<Action>) {
        self.take_up(piece);
        let flight = self.flights.remove(piece).unwrap_or_default();
        let mut spared = flight.doubled;
        self.room.verified(flight.verifying * self.layout.len(piece));
        for peer in flight.holders {
            if let Some(asked) = self.drop_request(peer, piece) {
                // A second copy that nobody began to send cost nothing; there is one at the most.
                if spared && !asked.begun {
                    spared = false;
                    self.wasted = self.wasted.saturating_sub(asked.len.into());
                }
                actions.push(Action::Cancel { peer, piece, cause: Cause::Late });
            }
        }
        self.picker.stored(piece);
    }

    fn not_served(
        &mut self,
        now: Duration,
        key: PeerKey,
        piece: PieceIndex,
        reason: NotServed,
        actions: &mut Vec<Action>,
    ) {
        self.drop_request(key, piece);
        self.settle(piece);
        self.hear(now, key);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match reason {
            NotServed::Nothing => self.replace_pieces(key, Bitfield::none(self.layout)),
            NotServed::NotHave => {
                if peer.pieces.remove(piece) {
                    let missing = self.picker.state(piece) == PieceState::Missing;
                    peer.useful -= u32::from(missing);
                    self.picker.peer_lost(piece, &peer.pieces);
                    let user = peer.user.clone();
                    self.blame.denied(&user);
                    self.judge(&user, actions);
                }
            }
            NotServed::Busy | NotServed::Broken => {
                let until = peer.rest(now);
                self.wake_at(until);
            }
        }
    }

    /// A user failed on a piece: it is to blame, or the manifest is.
    pub(super) fn fail(
        &mut self,
        now: Duration,
        user: &UserName,
        piece: PieceIndex,
        actions: &mut Vec<Action>,
    ) {
        self.blame.failed(user, piece);
        let holders = self.peers.values().filter(|peer| peer.pieces.contains(piece));
        let holders = holders.map(|peer| peer.user.clone()).collect();
        if self.blame.suspect(piece, &holders) {
            actions.push(Action::SuspectManifest { piece });
        }
        for peer in self.peers.values_mut().filter(|peer| peer.user == *user) {
            peer.suspect = Some(now + RETRY);
        }
        self.wake_at(now + RETRY);
        self.judge(user, actions);
    }

    /// Removes a user's peers if it is banned now.
    fn judge(&mut self, user: &UserName, actions: &mut Vec<Action>) {
        if !self.is_banned(user) {
            return;
        }
        let theirs = self.peers.iter().filter(|(_, peer)| peer.user == *user);
        let theirs: Vec<_> = theirs.map(|(key, _)| *key).collect();
        if self.banned.insert(user.clone()) || !theirs.is_empty() {
            actions.push(Action::Ban { user: user.clone() });
        }
        theirs.into_iter().for_each(|key| self.remove(key));
    }

    pub(super) fn cancel(
        &mut self,
        peer: PeerKey,
        piece: PieceIndex,
        cause: Cause,
        actions: &mut Vec<Action>,
    ) {
        if self.drop_request(peer, piece).is_some() {
            actions.push(Action::Cancel { peer, piece, cause });
        }
        self.settle(piece);
    }

    /// A peer is not waited for any more with this piece; what was known of it, if it was.
    pub(super) fn drop_request(&mut self, key: PeerKey, piece: PieceIndex) -> Option<Asked> {
        let asked = self.peers.get_mut(&key)?.pipe.forget(piece)?;
        self.room.unask(asked.len);
        self.flights.drop_holder(piece, key);
        Some(asked)
    }

    /// A piece in flight that nobody brings any more is missing again.
    fn settle(&mut self, piece: PieceIndex) {
        if self.flights.remove_idle(piece) {
            self.picker.give_back(piece);
            self.count_useful(piece, true);
        }
    }

    /// A piece became missing, or ceased to be.
    pub(super) fn count_useful(&mut self, piece: PieceIndex, missing: bool) {
        for peer in self.peers.values_mut().filter(|peer| peer.pieces.contains(piece)) {
            peer.useful = if missing { peer.useful + 1 } else { peer.useful - 1 };
        }
    }

    fn useful(&self, pieces: &Bitfield) -> u32 {
        if pieces.is_full() {
            return self.picker.missing_count();
        }
        self.picker.missing().common(pieces).count() as u32
    }

    fn replace_pieces(&mut self, key: PeerKey, pieces: Bitfield) {
        let useful = self.useful(&pieces);
        if let Some(peer) = self.peers.get_mut(&key) {
            self.picker.peer_left(&peer.pieces);
            self.picker.peer_joined(&pieces);
            (peer.pieces, peer.useful) = (pieces, useful);
        }
    }

    fn remove(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        self.picker.peer_left(&peer.pieces);
        for asked in peer.pipe.asked() {
            self.room.unask(asked.len);
            self.flights.drop_holder(asked.piece, key);
            self.settle(asked.piece);
        }
    }

    pub(super) fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Bytes of the largest piece.
    pub(super) fn unit(&self) -> u64 {
        self.layout.size().min(u64::from(PIECE_LEN))
    }

    /// Checks the chief invariant and every count.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        self.picker.check_invariants();
        let (mut asked_bytes, mut verifying_bytes, mut doubles) = (0, 0, 0);
        for (piece, flight) in self.flights.iter() {
            assert_eq!(self.picker.state(piece), PieceState::InFlight);
            assert!(flight.verifying > 0 || !flight.holders.is_empty(), "nobody brings {piece}");
            assert!(flight.holders.len() <= 2, "{piece} has many holders");
            doubles +=
                if flight.holders.len() == 2 { u64::from(self.layout.len(piece)) } else { 0 };
            for holder in &flight.holders {
                let asked = self.peers[holder].pipe.asked();
                assert_eq!(asked.iter().filter(|asked| asked.piece == piece).count(), 1);
            }
            verifying_bytes += u64::from(flight.verifying) * u64::from(self.layout.len(piece));
        }
        assert!(doubles <= self.wasted);
        for (key, peer) in &self.peers {
            assert!(!self.is_banned(&peer.user), "{} is banned", peer.user);
            assert_eq!(peer.useful, self.useful(&peer.pieces), "what is useful of {key:?}");
            for asked in peer.pipe.asked() {
                let flight = self.flights.of(asked.piece);
                assert!(flight.is_some_and(|f| f.holders.contains(key)), "{}", asked.piece);
                asked_bytes += u64::from(asked.len);
            }
        }
        assert_eq!((asked_bytes, verifying_bytes), self.room.in_flight());
        for piece in self.layout.pieces() {
            let in_flight = self.picker.state(piece) == PieceState::InFlight;
            assert_eq!(in_flight, self.flights.of(piece).is_some());
            let holders = self.peers.values().filter(|peer| peer.pieces.contains(piece)).count();
            assert_eq!(self.picker.availability(piece) as usize, holders);
        }
    }
}
