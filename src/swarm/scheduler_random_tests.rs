//! Random swarms in which the scheduler's invariants must hold, and whose logs must replay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::event::{Action, Event, NotServed, PeerKey, Why};
use super::scheduler::Scheduler;
use super::testing::layout;
use crate::bitfield::Bitfield;
use crate::limits::PIECE_LEN;
use crate::name::UserName;
use crate::piece::PieceIndex;
use crate::wire;

const MS: Duration = Duration::from_millis(1);

/// One step of a random swarm.
#[derive(Clone, Debug)]
enum Step {
    Join(u8, Vec<bool>),
    Leave(u8),
    Has(u8, u8),
    Pieces(u8, Vec<bool>),
    Answer(prop::sample::Index, u8),
    Progress(prop::sample::Index, u32),
    Alive(u8),
    Lost(u8),
    Found(u8),
    Room(u8, Option<u8>),
    Pause(bool),
    Pass(u16),
}

const COUNT: usize = 70;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bits = || prop::collection::vec(prop::bool::weighted(0.7), COUNT);
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        2 => (0u8..4, bits()).prop_map(|(p, b)| Step::Join(p, b)),
        1 => (0u8..4).prop_map(Step::Leave),
        2 => (0u8..4, 0..COUNT as u8).prop_map(|(p, i)| Step::Has(p, i)),
        1 => (0u8..4, bits()).prop_map(|(p, b)| Step::Pieces(p, b)),
        12 => (index(), 0u8..12).prop_map(|(i, a)| Step::Answer(i, a)),
        3 => (index(), 0..PIECE_LEN).prop_map(|(i, len)| Step::Progress(i, len)),
        2 => (0u8..4).prop_map(Step::Alive),
        1 => (0..COUNT as u8).prop_map(Step::Lost),
        1 => (0..COUNT as u8).prop_map(Step::Found),
        1 => (0u8..40, any::<Option<u8>>()).prop_map(|(r, c)| Step::Room(r, c)),
        1 => any::<bool>().prop_map(Step::Pause),
        3 => (0u16..5000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..200)
}

fn field(bits: &[bool]) -> Bitfield {
    let layout = layout(COUNT);
    let mut field = Bitfield::none(layout);
    for (piece, _) in layout.pieces().zip(bits).filter(|(_, bit)| **bit) {
        field.insert(piece);
    }
    field
}

/// A random swarm at play: what it was told, what it did, and what it must have asked whom for.
struct Play {
    scheduler: Scheduler,
    now: Duration,
    open: BTreeSet<(PeerKey, PieceIndex)>,
    has: BTreeMap<PeerKey, Bitfield>,
    log: Vec<(Duration, Event)>,
    done: Vec<Action>,
}

fn name_of(peer: PeerKey) -> UserName {
    format!("u{}", peer.0 % 3).parse().expect("name")
}

impl Play {
    fn new(seed: u64) -> Self {
        let l = layout(COUNT);
        Self {
            scheduler: Scheduler::new(l, &Bitfield::none(l), BTreeSet::new(), seed),
            now: Duration::ZERO,
            open: BTreeSet::new(),
            has: BTreeMap::new(),
            log: Vec::new(),
            done: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        let actions = self.scheduler.handle(self.now, event.clone());
        self.scheduler.check_invariants();
        self.log.push((self.now, event));
        for action in &actions {
            match action {
                Action::Request { peer, piece, why } => {
                    assert!(self.has[peer].contains(*piece), "asked for what it lacks");
                    let others = self.open.iter().filter(|(_, other)| other == piece).count();
                    assert_eq!(others, usize::from(*why == Why::Endgame), "{action:?}");
                    assert!(self.open.insert((*peer, *piece)), "asked twice");
                }
                Action::Cancel { peer, piece, .. } => {
                    assert!(self.open.remove(&(*peer, *piece)), "{action:?} of nothing");
                }
                Action::Ban { user } => self.open.retain(|(peer, _)| name_of(*peer) != *user),
                Action::SuspectManifest { .. } => {}
                Action::Complete => assert!(self.scheduler.is_complete()),
            }
        }
        self.done.extend(actions);
    }

    fn pick_open(&self, index: prop::sample::Index) -> Option<(PeerKey, PieceIndex)> {
        let open: Vec<_> = self.open.iter().collect();
        (!open.is_empty()).then(|| *open[index.index(open.len())])
    }

    fn step(&mut self, step: Step) {
        let key = |p: u8| PeerKey(u64::from(p));
        let piece = |i: u8| layout(COUNT).piece(u32::from(i)).expect("exists");
        match step {
            Step::Join(p, bits) => {
                let (peer, pieces) = (key(p), field(&bits));
                self.open.retain(|(other, _)| *other != peer);
                self.has.insert(peer, pieces.clone());
                self.tell(Event::PeerJoined { peer, user: name_of(peer), pieces, rtt: 20 * MS });
            }
            Step::Leave(p) => {
                self.open.retain(|(other, _)| *other != key(p));
                self.tell(Event::PeerLeft { peer: key(p) });
            }
            Step::Has(p, i) => {
                if let Some(pieces) = self.has.get_mut(&key(p)) {
                    pieces.insert(piece(i));
                }
                self.tell(Event::PeerHas { peer: key(p), pieces: vec![piece(i)] });
            }
            Step::Pieces(p, bits) => {
                self.has.insert(key(p), field(&bits));
                self.tell(Event::PeerPieces { peer: key(p), pieces: field(&bits) });
            }
            Step::Answer(index, answer) => {
                let Some((peer, piece)) = self.pick_open(index) else { return };
                self.open.remove(&(peer, piece));
                self.answer(peer, piece, answer);
            }
            Step::Progress(index, received) => {
                let Some((peer, piece)) = self.pick_open(index) else { return };
                self.tell(Event::Progress { peer, piece, received });
            }
            Step::Alive(p) => self.tell(Event::Alive { peer: key(p), rtt: 30 * MS }),
            Step::Lost(i) => self.tell(Event::Lost { pieces: vec![piece(i)] }),
            Step::Found(i) => self.tell(Event::Found { pieces: vec![piece(i)] }),
            Step::Room(pieces, credit) => {
                let bytes = u64::from(pieces) * u64::from(PIECE_LEN);
                let credit = credit.map(|c| u64::from(c) * u64::from(PIECE_LEN) / 16);
                self.tell(Event::Room { bytes, credit });
            }
            Step::Pause(pause) => self.tell(if pause { Event::Pause } else { Event::Resume }),
            Step::Pass(millis) => {
                self.now += MS * u32::from(millis);
                self.tell(Event::Tick);
            }
        }
    }

    fn answer(&mut self, peer: PeerKey, piece: PieceIndex, answer: u8) {
        let user = name_of(peer);
        let refused = match answer {
            0 => Some(NotServed::NotHave),
            1 => Some(NotServed::Busy),
            2 => Some(NotServed::Nothing),
            3 => Some(NotServed::Broken),
            _ => None,
        };
        match (refused, answer) {
            (Some(reason), _) => {
                if let Some(pieces) = self.has.get_mut(&peer) {
                    match reason {
                        NotServed::NotHave => {
                            pieces.remove(piece);
                        }
                        NotServed::Nothing => *pieces = Bitfield::none(layout(COUNT)),
                        NotServed::Busy | NotServed::Broken => {}
                    }
                }
                self.tell(Event::NotServed { peer, piece, reason });
            }
            (None, 4) => self.tell(Event::Bad { peer, user, piece, received: false }),
            (None, _) => {
                self.tell(Event::Received { peer, piece, rtt: 10 * MS });
                match answer {
                    5 => self.tell(Event::Bad { peer, user, piece, received: true }),
                    6 => {}
                    _ => self.tell(Event::Stored { user, piece }),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_sequence_of_events_keeps_the_invariants_and_its_log_replays(
        steps in steps(),
        seed in 0u64..50,
    ) {
        let mut play = Play::new(seed);
        steps.into_iter().for_each(|step| play.step(step));
        let log = wire::encode(&play.log);
        let log: Vec<(Duration, Event)> = wire::decode(&log).expect("own log decodes");
        let l = layout(COUNT);
        let mut again = Scheduler::new(l, &Bitfield::none(l), BTreeSet::new(), seed);
        let done: Vec<_> = log.into_iter().flat_map(|(now, event)| again.handle(now, event)).collect();
        prop_assert_eq!(done, play.done);
    }

    #[test]
    fn junk_logs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(log) = wire::decode::<Vec<(u32, Event)>>(&bytes) {
            let l = layout(9);
            let mut scheduler = Scheduler::new(l, &Bitfield::none(l), BTreeSet::new(), 1);
            for (now, event) in log {
                scheduler.handle(MS * now, event);
                scheduler.check_invariants();
            }
        }
    }
}
