//! A scheduler that is told anything, in any order. Bytes are taken as they come: whatever they are, they
//! mean some event.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mtq::bitfield::Bitfield;
use mtq::limits::PIECE_LEN;
use mtq::name::UserName;
use mtq::piece::{PieceIndex, PieceLayout};
use mtq::swarm::event::{Action, Event, NotServed, PeerKey};
use mtq::swarm::scheduler::Scheduler;

/// Bytes that run out: then they are zeros.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u32) -> u32 {
        let number = u32::from(self.next()) << 8 | u32::from(self.next());
        number % bound.max(1)
    }

    fn piece(&mut self, layout: PieceLayout) -> PieceIndex {
        let index = self.below(layout.piece_count());
        layout.piece(index).expect("below the count")
    }

    fn peer(&mut self) -> PeerKey {
        PeerKey(u64::from(self.next() % 6))
    }

    fn span(&mut self) -> Duration {
        // From a microsecond to some minutes.
        Duration::from_micros(1 << (self.next() % 28))
    }

    fn pieces(&mut self, layout: PieceLayout) -> Bitfield {
        let kind = self.next();
        let mut field = Bitfield::none(layout);
        for piece in layout.pieces() {
            if kind == 0 || self.next() & 1 == 1 {
                field.insert(piece);
            }
        }
        field
    }
}

fn user_of(peer: PeerKey) -> UserName {
    format!("u{}", peer.0 % 4).parse().expect("a name")
}

/// What was asked of whom and is not answered, as a driver would know it.
type Open = BTreeSet<(PeerKey, PieceIndex)>;

fn event(bytes: &mut Bytes<'_>, layout: PieceLayout, open: &mut Open) -> Event {
    let kind = bytes.next() % 20;
    // Most answers are to what was asked.
    let (peer, piece) = match bytes.next() {
        at @ 0..240 if !open.is_empty() => {
            let nth = usize::from(at) % open.len();
            *open.iter().nth(nth).expect("below the count")
        }
        _ => (bytes.peer(), bytes.piece(layout)),
    };
    let (user, rtt) = (user_of(peer), Duration::from_millis(bytes.next().into()));
    match kind {
        0 | 1 => {
            let peer = bytes.peer();
            open.retain(|(other, _)| *other != peer);
            Event::PeerJoined { peer, user: user_of(peer), pieces: bytes.pieces(layout), rtt }
        }
        2 => Event::PeerPieces { peer, pieces: bytes.pieces(layout) },
        3 | 4 => {
            let count = bytes.next() % 4;
            let pieces = (0..count).map(|_| bytes.piece(layout)).collect();
            Event::PeerHas { peer, pieces }
        }
        5 => {
            open.retain(|(other, _)| *other != peer);
            Event::PeerLeft { peer }
        }
        6 => Event::Alive { peer, rtt },
        7 | 8 => {
            let received = bytes.below(u32::from(u16::MAX)) * 16;
            Event::Progress { peer, piece, received }
        }
        9 | 10 => {
            open.remove(&(peer, piece));
            Event::Received { peer, piece, rtt }
        }
        11 | 12 => Event::Stored { user, piece },
        13 => {
            let received = bytes.next() & 1 == 0;
            if !received {
                open.remove(&(peer, piece));
            }
            Event::Bad { peer, user, piece, received }
        }
        14 => Event::Found { pieces: vec![piece] },
        15 => Event::Lost { pieces: vec![piece] },
        16 => {
            let reasons =
                [NotServed::NotHave, NotServed::Nothing, NotServed::Busy, NotServed::Broken];
            open.remove(&(peer, piece));
            Event::NotServed { peer, piece, reason: reasons[usize::from(bytes.next() % 4)] }
        }
        17 => {
            let bytes_at_once = u64::from(bytes.next()) * u64::from(PIECE_LEN) / 2;
            let credit = (bytes.next() & 1 == 0).then(|| u64::from(bytes.next()) << 14);
            Event::Room { bytes: bytes_at_once, credit }
        }
        18 => [Event::Pause, Event::Resume, Event::Resume][usize::from(bytes.next() % 3)].clone(),
        _ => Event::Tick,
    }
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let size = u64::from(bytes.below(80)) * u64::from(PIECE_LEN) + u64::from(bytes.next());
    let layout = PieceLayout::new(size).expect("small");
    if layout.is_empty() {
        return;
    }
    let seed = bytes.next().into();
    let stored = bytes.pieces(layout);
    let mut scheduler = Scheduler::new(layout, &stored, BTreeSet::new(), seed);
    let mut open = Open::new();
    let mut said: BTreeMap<PeerKey, BTreeSet<PieceIndex>> = BTreeMap::new();
    let mut now = Duration::ZERO;
    while !bytes.0.is_empty() {
        now = match bytes.next() % 4 {
            0 => now + bytes.span(),
            1 => scheduler.next_timeout().unwrap_or(now).max(now),
            _ => now,
        };
        let event = event(&mut bytes, layout, &mut open);
        match &event {
            Event::PeerJoined { peer, pieces, .. } | Event::PeerPieces { peer, pieces } => {
                said.entry(*peer).or_default().extend(pieces.iter());
            }
            Event::PeerHas { peer, pieces } => said.entry(*peer).or_default().extend(pieces),
            _ => {}
        }
        for action in scheduler.handle(now, event) {
            match action {
                Action::Request { peer, piece, .. } => {
                    assert!(said[&peer].contains(&piece), "asked for what it never said to have");
                    assert!(open.insert((peer, piece)), "asked twice");
                }
                Action::Cancel { peer, piece, .. } => {
                    assert!(open.remove(&(peer, piece)), "nobody was asked");
                }
                Action::Ban { user } => open.retain(|(peer, _)| user_of(*peer) != user),
                Action::SuspectManifest { .. } => {}
                Action::Complete => assert!(scheduler.is_complete()),
            }
        }
        scheduler.check_invariants();
    }
});
