//! Who is asked for which piece: a pure state machine.
//!
//! Events in, actions out; time is an argument and chance is a seed, so the same events give the
//! same actions. It owns availability, what is in flight, how deep each peer's pipeline is, and
//! blame. It does no IO.
//!
//! Chief invariant: each piece is in exactly one of missing, in flight, stored; nobody is asked
//! for what they lack.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::picker::{Picker, PieceState};
use crate::bitfield::Bitfield;
use crate::limits::{MAX_IN_FLIGHT, PEER_STREAMS, PIECE_LEN, PIPELINE_MIN, PIPELINE_START};
use crate::name::UserName;
use crate::piece::{PieceIndex, PieceLayout};

/// Time at the serving side between a request and its first byte that the network does not show:
/// a disk read and some waiting for a core.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// A peer that answered BUSY is asked again after this.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// Bad pieces that make a user banned for this content: the first only makes it suspect.
const BAD_PIECES_TO_BAN: u32 = 2;

/// One session with one peer, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerKey(pub u64);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer came with these pieces.
    PeerJoined {
        /// Which session.
        peer: PeerKey,
        /// Whose device it is.
        user: UserName,
        /// What it has.
        pieces: Bitfield,
    },
    /// A peer has these pieces and no others.
    PeerPieces {
        /// Which session.
        peer: PeerKey,
        /// What it has.
        pieces: Bitfield,
    },
    /// A peer has one more piece.
    PeerHas {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
    },
    /// A peer is gone; what it was asked for is free again.
    PeerLeft {
        /// Which session.
        peer: PeerKey,
    },
    /// A piece's bytes are all here, not yet verified.
    Received {
        /// From which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// The connection's round-trip time now.
        rtt: Duration,
    },
    /// A received piece was verified and written.
    Stored {
        /// Which piece.
        piece: PieceIndex,
    },
    /// A received piece was not what it should be.
    Bad {
        /// Who sent it.
        user: UserName,
        /// Which piece.
        piece: PieceIndex,
    },
    /// A peer will not serve this piece.
    NotServed {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// Why.
        reason: NotServed,
    },
    /// Time passed.
    Tick,
}

/// Why a piece is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// The peer does not have it.
    NotHave,
    /// The peer serves nothing, until it tells anew what it has.
    Nothing,
    /// The peer has too much to do.
    Busy,
    /// The stream broke; nothing is known of the peer.
    Broken,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a peer for a piece, on a stream of its own.
    Request {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
    },
    /// Take nothing more from a user who sends false pieces.
    Ban {
        /// The user.
        user: UserName,
    },
    /// Every piece is stored.
    Complete,
}

#[derive(Debug)]
struct Peer {
    user: UserName,
    pieces: Bitfield,
    /// Asked and not yet received, with the time each was asked.
    asked: BTreeMap<PieceIndex, Duration>,
    depth: usize,
    /// Bytes a second, smoothed; zero until the first piece.
    rate: f64,
    last_received: Duration,
    /// Not asked before this.
    rests_until: Option<Duration>,
}

/// The scheduler of one download.
#[derive(Debug)]
pub struct Scheduler {
    layout: PieceLayout,
    picker: Picker,
    peers: BTreeMap<PeerKey, Peer>,
    bad: BTreeMap<UserName, u32>,
    complete: bool,
}

impl Scheduler {
    /// A download that has `stored` already; `seed` decides among equals.
    pub fn new(layout: PieceLayout, stored: &Bitfield, seed: u64) -> Self {
        Self {
            layout,
            picker: Picker::new(layout, stored, seed),
            peers: BTreeMap::new(),
            bad: BTreeMap::new(),
            complete: false,
        }
    }

    /// Whether every piece is stored.
    pub fn is_complete(&self) -> bool {
        self.picker.is_complete()
    }

    /// Whether this user sent false pieces.
    pub fn is_banned(&self, user: &UserName) -> bool {
        self.bad.get(user).is_some_and(|count| *count >= BAD_PIECES_TO_BAN)
    }

    /// Takes in one event at time `now` since the download began; returns what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let rested = self.end_rests(now);
        let mut ready = Ready::All;
        match event {
            Event::PeerJoined { peer, user, pieces } => {
                self.remove(peer);
                if !self.is_banned(&user) {
                    self.picker.peer_joined(&pieces);
                    self.peers.insert(peer, Peer::new(user, pieces));
                    ready = Ready::One(peer);
                }
            }
            Event::PeerPieces { peer, pieces } => self.replace_pieces(peer, pieces),
            Event::PeerHas { peer, piece } => {
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.pieces.insert(piece)
                {
                    self.picker.peer_gained(piece, &known.pieces);
                }
                ready = Ready::One(peer);
            }
            Event::PeerLeft { peer } => self.remove(peer),
            Event::Received { peer, piece, rtt } => {
                let len = self.layout.len(piece);
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.received(now, piece, len, rtt);
                }
                ready = Ready::One(peer);
            }
            Event::Stored { piece } => {
                self.picker.stored(piece);
                if self.picker.is_complete() && !self.complete {
                    self.complete = true;
                    actions.push(Action::Complete);
                }
            }
            Event::Bad { user, piece } => {
                self.picker.give_back(piece);
                let count = self.bad.entry(user.clone()).or_default();
                *count += 1;
                if *count == BAD_PIECES_TO_BAN {
                    let theirs: Vec<_> = self
                        .peers
                        .iter()
                        .filter(|(_, peer)| peer.user == user)
                        .map(|(key, _)| *key)
                        .collect();
                    theirs.into_iter().for_each(|key| self.remove(key));
                    actions.push(Action::Ban { user });
                }
            }
            Event::NotServed { peer, piece, reason } => {
                let asked = self.peers.get_mut(&peer).and_then(|p| p.asked.remove(&piece));
                if asked.is_some() {
                    self.picker.give_back(piece);
                }
                match (self.peers.get_mut(&peer), reason) {
                    (None, _) => {}
                    (Some(_), NotServed::Nothing) => {
                        self.replace_pieces(peer, Bitfield::none(self.layout));
                    }
                    (Some(known), NotServed::NotHave) => {
                        if known.pieces.remove(piece) {
                            self.picker.peer_lost(piece, &known.pieces);
                        }
                    }
                    (Some(known), NotServed::Busy | NotServed::Broken) => {
                        known.rests_until = Some(now + BUSY_WAIT);
                    }
                }
            }
            Event::Tick => {}
        }
        self.fill(now, if rested { Ready::All } else { ready }, &mut actions);
        if cfg!(debug_assertions) && self.layout.piece_count() <= 256 {
            self.check_invariants();
        }
        actions
    }

    /// Ends the rests that are over; whether there were any.
    fn end_rests(&mut self, now: Duration) -> bool {
        let mut any = false;
        for peer in self.peers.values_mut() {
            if peer.rests_until.is_some_and(|until| until <= now) {
                peer.rests_until = None;
                any = true;
            }
        }
        any
    }

    /// When to send a [`Event::Tick`], if nothing else happens before.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.picker.missing_count() == 0 {
            return None;
        }
        self.peers.values().filter_map(|peer| peer.rests_until).min()
    }

    /// Asks ready peers in turn, one piece each, until none can take more.
    fn fill(&mut self, now: Duration, ready: Ready, actions: &mut Vec<Action>) {
        let mut keys: Vec<_> = match ready {
            Ready::All => self.peers.keys().copied().collect(),
            Ready::One(peer) => vec![peer],
        };
        while !keys.is_empty() {
            keys.retain(|key| match self.ask(now, *key) {
                Some(piece) => {
                    actions.push(Action::Request { peer: *key, piece });
                    true
                }
                None => false,
            });
        }
    }

    fn ask(&mut self, now: Duration, key: PeerKey) -> Option<PieceIndex> {
        let peer = self.peers.get_mut(&key)?;
        let asked_of_all = self.picker.in_flight_count() as usize;
        // The bound on all peers together never starves one: each may have its minimum.
        let within = peer.asked.len() < PIPELINE_MIN || asked_of_all < MAX_IN_FLIGHT;
        if peer.asked.len() >= peer.depth || !within || peer.rests_until.is_some() {
            return None;
        }
        let piece = self.picker.pick(&peer.pieces)?;
        peer.asked.insert(piece, now);
        Some(piece)
    }

    fn replace_pieces(&mut self, key: PeerKey, pieces: Bitfield) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.picker.peer_left(&peer.pieces);
            self.picker.peer_joined(&pieces);
            peer.pieces = pieces;
        }
    }

    fn remove(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        self.picker.peer_left(&peer.pieces);
        peer.asked.into_keys().for_each(|piece| self.picker.give_back(piece));
    }

    /// Checks the chief invariant and every count.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        self.picker.check_invariants();
        let mut asked: Vec<_> = self.peers.values().flat_map(|peer| peer.asked.keys()).collect();
        let count = asked.len();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), count, "a piece has two holders");
        assert!(asked.iter().all(|piece| self.picker.state(**piece) == PieceState::InFlight));
        for piece in self.layout.pieces() {
            let holders = self.peers.values().filter(|peer| peer.pieces.contains(piece)).count();
            assert_eq!(self.picker.availability(piece) as usize, holders);
        }
    }
}

/// Which peers an event may have made ready for more.
enum Ready {
    All,
    One(PeerKey),
}

impl Peer {
    fn new(user: UserName, pieces: Bitfield) -> Self {
        Self {
            user,
            pieces,
            asked: BTreeMap::new(),
            depth: PIPELINE_START,
            rate: 0.0,
            last_received: Duration::ZERO,
            rests_until: None,
        }
    }

    /// Measures the rate by a piece that came, and makes the pipeline as deep as rate and round
    /// trip ask for, half as much again so that it can grow.
    fn received(&mut self, now: Duration, piece: PieceIndex, len: u32, rtt: Duration) {
        let Some(asked) = self.asked.remove(&piece) else { return };
        let took = now.saturating_sub(asked.max(self.last_received)).as_secs_f64().max(1e-6);
        let sample = f64::from(len) / took;
        self.rate = if self.rate == 0.0 { sample } else { 0.75 * self.rate + 0.25 * sample };
        self.last_received = now;
        let in_transit = self.rate * (rtt + SERVICE_TIME).as_secs_f64() / f64::from(PIECE_LEN);
        let depth = (1.5 * in_transit).ceil() as usize + PIPELINE_MIN;
        self.depth = depth.min(PEER_STREAMS as usize);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Pictures of swarms: one row a peer, one character a piece, `#` for a piece it has.

    use super::*;

    /// A layout of `count` whole pieces.
    pub(crate) fn layout(count: usize) -> PieceLayout {
        PieceLayout::new(count as u64 * u64::from(PIECE_LEN)).expect("fits")
    }

    /// The pieces drawn in `picture`.
    pub(crate) fn row(layout: PieceLayout, picture: &str) -> Bitfield {
        assert_eq!(picture.len(), layout.piece_count() as usize);
        let mut field = Bitfield::none(layout);
        for (piece, _) in layout.pieces().zip(picture.bytes()).filter(|(_, c)| *c == b'#') {
            field.insert(piece);
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{layout, row};
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn user(name: &str) -> UserName {
        name.parse().expect("name")
    }

    fn join(s: &mut Scheduler, key: u64, name: &str, picture: &str) -> Vec<(u64, u32)> {
        let pieces = row(s.layout, picture);
        let event = Event::PeerJoined { peer: PeerKey(key), user: user(name), pieces };
        requests(&s.handle(Duration::ZERO, event))
    }

    fn requests(actions: &[Action]) -> Vec<(u64, u32)> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Request { peer, piece } => Some((peer.0, piece.get())),
                _ => None,
            })
            .collect()
    }

    fn scheduler(us: &str) -> Scheduler {
        let l = layout(us.len());
        Scheduler::new(l, &row(l, us), 1)
    }

    fn piece(s: &Scheduler, index: u32) -> PieceIndex {
        s.layout.piece(index).expect("exists")
    }

    #[test]
    fn a_peer_is_asked_only_for_what_it_has_and_we_lack() {
        let mut s = scheduler("#..#....");
        assert_eq!(join(&mut s, 1, "bob", "##.#...#").len(), 2);
        let asked = join(&mut s, 2, "alice", "##.#...#");
        assert!(asked.is_empty(), "pieces 1 and 7 are in flight: {asked:?}");
    }

    #[test]
    fn a_new_peer_gets_a_full_pipeline_and_no_more() {
        let mut s = scheduler(&".".repeat(20));
        assert_eq!(join(&mut s, 1, "alice", &"#".repeat(20)).len(), PIPELINE_START);
        assert_eq!(join(&mut s, 2, "bob", &"#".repeat(20)).len(), PIPELINE_START);
    }

    #[test]
    fn a_leaver_gives_back_and_the_others_take_over() {
        let mut s = scheduler("..");
        let first = join(&mut s, 1, "alice", "##");
        assert_eq!(first.len(), 2);
        assert!(join(&mut s, 2, "bob", "##").is_empty());
        let actions = s.handle(MS, Event::PeerLeft { peer: PeerKey(1) });
        let mut taken = requests(&actions);
        taken.sort();
        assert_eq!(taken, [(2, 0), (2, 1)]);
    }

    #[test]
    fn completion_is_said_once() {
        let mut s = scheduler(".#");
        join(&mut s, 1, "alice", "##");
        let p = piece(&s, 0);
        s.handle(MS, Event::Received { peer: PeerKey(1), piece: p, rtt: MS });
        assert_eq!(s.handle(MS, Event::Stored { piece: p }), [Action::Complete]);
        assert!(s.handle(MS, Event::Stored { piece: p }).is_empty());
        assert!(s.is_complete());
    }

    #[test]
    fn one_bad_piece_makes_suspect_and_two_ban_the_user_on_all_devices() {
        let mut s = scheduler("........");
        join(&mut s, 1, "eve", "########");
        join(&mut s, 2, "eve", "########");
        for (round, index) in [(0, 0u32), (1, 1)] {
            let p = piece(&s, index);
            let holder =
                [1, 2].map(PeerKey).into_iter().find(|k| s.peers[k].asked.contains_key(&p));
            let peer = holder.expect("asked");
            s.handle(MS, Event::Received { peer, piece: p, rtt: MS });
            let actions = s.handle(MS, Event::Bad { user: user("eve"), piece: p });
            assert_eq!(actions.contains(&Action::Ban { user: user("eve") }), round == 1);
        }
        assert!(s.peers.is_empty());
        assert!(join(&mut s, 3, "eve", "########").is_empty());
        assert_eq!(join(&mut s, 4, "alice", "########").len(), PIPELINE_START);
    }

    #[test]
    fn a_busy_peer_rests_and_is_asked_again() {
        let mut s = scheduler(".");
        join(&mut s, 1, "alice", "#");
        let p = piece(&s, 0);
        let busy = Event::NotServed { peer: PeerKey(1), piece: p, reason: NotServed::Busy };
        assert!(s.handle(MS, busy).is_empty());
        let at = s.next_timeout().expect("a timeout");
        assert!(s.handle(at - MS, Event::Tick).is_empty());
        assert_eq!(requests(&s.handle(at, Event::Tick)), [(1, 0)]);
    }

    #[test]
    fn a_piece_denied_is_not_asked_again_until_the_peer_has_it() {
        let mut s = scheduler(".");
        join(&mut s, 1, "alice", "#");
        let p = piece(&s, 0);
        let denied = Event::NotServed { peer: PeerKey(1), piece: p, reason: NotServed::NotHave };
        assert!(s.handle(MS, denied).is_empty());
        let has = Event::PeerHas { peer: PeerKey(1), piece: p };
        assert_eq!(requests(&s.handle(MS, has)), [(1, 0)]);
    }

    #[test]
    fn the_pipeline_follows_rate_and_round_trip() {
        let mut peer = Peer::new(user("a"), Bitfield::none(layout(1)));
        let l = layout(1000);
        let rtt = Duration::from_millis(50);
        // 1 Gbit/s at 50 ms: a piece every 4.2 ms.
        let mut now = Duration::ZERO;
        for p in l.pieces().take(60) {
            peer.asked.insert(p, now);
            now += Duration::from_micros(4200);
            peer.received(now, p, PIECE_LEN, rtt);
        }
        assert!((16..=32).contains(&peer.depth), "{}", peer.depth);
        // 64 KiB/s: one piece in 8 s.
        for p in l.pieces().skip(60).take(60) {
            peer.asked.insert(p, now);
            now += Duration::from_secs(8);
            peer.received(now, p, PIECE_LEN, rtt);
        }
        assert!(peer.depth <= PIPELINE_MIN + 1, "{}", peer.depth);
    }

    /// One step of a random swarm.
    #[derive(Clone, Debug)]
    enum Step {
        Join(u8, Vec<bool>),
        Leave(u8),
        Has(u8, u8),
        Pieces(u8, Vec<bool>),
        Answer(prop::sample::Index, u8),
        Tick,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bits = || prop::collection::vec(any::<bool>(), 10);
        let step = prop_oneof![
            (0u8..4, bits()).prop_map(|(p, b)| Step::Join(p, b)),
            (0u8..4).prop_map(Step::Leave),
            (0u8..4, 0u8..10).prop_map(|(p, i)| Step::Has(p, i)),
            (0u8..4, bits()).prop_map(|(p, b)| Step::Pieces(p, b)),
            (any::<prop::sample::Index>(), 0u8..6).prop_map(|(i, a)| Step::Answer(i, a)),
            Just(Step::Tick),
        ];
        prop::collection::vec(step, 0..150)
    }

    /// Plays `steps`, with every invariant checked after each; returns all actions.
    fn play(steps: &[Step], seed: u64) -> Vec<Action> {
        let l = layout(10);
        let mut s = Scheduler::new(l, &Bitfield::none(l), seed);
        let mut open: Vec<(PeerKey, PieceIndex)> = Vec::new();
        let mut log = Vec::new();
        let field = |bits: &[bool]| {
            let mut field = Bitfield::none(l);
            l.pieces().zip(bits).filter(|(_, b)| **b).for_each(|(p, _)| {
                field.insert(p);
            });
            field
        };
        for (tick, step) in steps.iter().enumerate() {
            let now = MS * tick as u32;
            let name = |p: u8| user(&format!("u{}", p % 3));
            let events: Vec<Event> = match step {
                Step::Join(p, bits) => {
                    open.retain(|(peer, _)| peer.0 != u64::from(*p));
                    let peer = PeerKey(u64::from(*p));
                    vec![Event::PeerJoined { peer, user: name(*p), pieces: field(bits) }]
                }
                Step::Leave(p) => {
                    open.retain(|(peer, _)| peer.0 != u64::from(*p));
                    vec![Event::PeerLeft { peer: PeerKey(u64::from(*p)) }]
                }
                Step::Has(p, i) => {
                    let piece = l.piece(u32::from(*i)).expect("exists");
                    vec![Event::PeerHas { peer: PeerKey(u64::from(*p)), piece }]
                }
                Step::Pieces(p, bits) => {
                    vec![Event::PeerPieces { peer: PeerKey(u64::from(*p)), pieces: field(bits) }]
                }
                Step::Answer(index, _) if open.is_empty() => {
                    let _ = index;
                    vec![Event::Tick]
                }
                Step::Answer(index, answer) => {
                    let (peer, piece) = open.swap_remove(index.index(open.len()));
                    let received = Event::Received { peer, piece, rtt: MS };
                    match answer {
                        0 => vec![Event::NotServed { peer, piece, reason: NotServed::NotHave }],
                        1 => vec![Event::NotServed { peer, piece, reason: NotServed::Busy }],
                        3 => vec![Event::NotServed { peer, piece, reason: NotServed::Nothing }],
                        2 => vec![received, Event::Bad { user: name(peer.0 as u8), piece }],
                        _ => vec![received, Event::Stored { piece }],
                    }
                }
                Step::Tick => vec![Event::Tick],
            };
            for event in events {
                let actions = s.handle(now, event);
                s.check_invariants();
                for action in &actions {
                    match action {
                        Action::Request { peer, piece } => {
                            assert!(
                                s.peers[peer].pieces.contains(*piece),
                                "asked for what it lacks"
                            );
                            open.push((*peer, *piece));
                        }
                        Action::Ban { user } => {
                            assert!(s.peers.values().all(|peer| peer.user != *user));
                            open.retain(|(peer, _)| s.peers.contains_key(peer));
                        }
                        Action::Complete => assert!(s.is_complete()),
                    }
                }
                log.extend(actions);
            }
        }
        log
    }

    proptest! {
        #[test]
        fn any_sequence_of_events_keeps_the_invariants_and_replays(steps in steps(), seed in 0u64..50) {
            prop_assert_eq!(play(&steps, seed), play(&steps, seed));
        }
    }
}
