//! Pictures of what the scheduler does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::{Action, Cause, Event, NotServed, PeerKey, Why};
use super::scheduler::Scheduler;
use super::testing::{layout, row};
use crate::bitfield::Bitfield;
use crate::limits::{PIECE_LEN, PIPELINE_START};
use crate::name::UserName;
use crate::piece::{PieceIndex, PieceLayout};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn user(name: &str) -> UserName {
    name.parse().expect("name")
}

/// A scheduler, its layout, and how late it is.
struct Stage {
    layout: PieceLayout,
    scheduler: Scheduler,
    now: Duration,
}

/// A swarm in which we have what `us` shows.
fn stage(us: &str) -> Stage {
    let layout = layout(us.len());
    let scheduler = Scheduler::new(layout, &row(layout, us), BTreeSet::new(), 1);
    Stage { layout, scheduler, now: Duration::ZERO }
}

impl Stage {
    fn piece(&self, index: u32) -> PieceIndex {
        self.layout.piece(index).expect("exists")
    }

    /// Whether a peer was asked for something that is not here yet.
    fn is_asked(&self, key: u64) -> bool {
        self.scheduler.pulse(PeerKey(key)).is_some_and(|(_, asked, _)| asked > 0)
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let actions = self.scheduler.handle(self.now, event);
        self.scheduler.check_invariants();
        actions
    }

    fn join(&mut self, key: u64, name: &str, picture: &str) -> Vec<(u64, u32)> {
        let pieces = row(self.layout, picture);
        let event = Event::PeerJoined { peer: PeerKey(key), user: user(name), pieces, rtt: MS };
        requests(&self.handle(event))
    }

    fn received(&mut self, key: u64, index: u32) -> Vec<Action> {
        let piece = self.piece(index);
        self.handle(Event::Received { peer: PeerKey(key), piece, rtt: MS })
    }

    fn stored(&mut self, name: &str, index: u32) -> Vec<Action> {
        let piece = self.piece(index);
        self.handle(Event::Stored { user: user(name), piece })
    }

    /// A piece comes and is verified.
    fn comes(&mut self, key: u64, name: &str, index: u32) -> Vec<Action> {
        let mut actions = self.received(key, index);
        actions.extend(self.stored(name, index));
        actions
    }

    fn bad(&mut self, key: u64, name: &str, index: u32) -> Vec<Action> {
        let mut actions = self.received(key, index);
        let (peer, piece) = (PeerKey(key), self.piece(index));
        actions.extend(self.handle(Event::Bad { peer, user: user(name), piece, received: true }));
        actions
    }

    fn refused(&mut self, key: u64, index: u32, reason: NotServed) -> Vec<Action> {
        let piece = self.piece(index);
        self.handle(Event::NotServed { peer: PeerKey(key), piece, reason })
    }

    fn has(&mut self, key: u64, indexes: &[u32]) -> Vec<Action> {
        let pieces = indexes.iter().map(|index| self.piece(*index)).collect();
        self.handle(Event::PeerHas { peer: PeerKey(key), pieces })
    }

    fn progress(&mut self, key: u64, index: u32, received: u32) -> Vec<Action> {
        let piece = self.piece(index);
        self.handle(Event::Progress { peer: PeerKey(key), piece, received })
    }

    fn alive(&mut self, key: u64) -> Vec<Action> {
        self.handle(Event::Alive { peer: PeerKey(key), rtt: MS })
    }

    /// Ticks as often as the scheduler wants until so much later; the peers `alive` are heard of
    /// twice a second.
    fn pass(&mut self, span: Duration, alive: &[u64]) -> Vec<Action> {
        let end = self.now + span;
        let mut actions = Vec::new();
        while self.now < end {
            self.now = end.min(self.now + 500 * MS);
            for key in alive {
                actions.extend(self.alive(*key));
            }
            actions.extend(self.handle(Event::Tick));
        }
        actions
    }
}

fn requests(actions: &[Action]) -> Vec<(u64, u32)> {
    let requests = actions.iter().filter_map(|action| match action {
        Action::Request { peer, piece, .. } => Some((peer.0, piece.get())),
        _ => None,
    });
    requests.collect()
}

fn cancels(actions: &[Action]) -> Vec<(u64, u32, Cause)> {
    let cancels = actions.iter().filter_map(|action| match action {
        Action::Cancel { peer, piece, cause } => Some((peer.0, piece.get(), *cause)),
        _ => None,
    });
    cancels.collect()
}

#[test]
fn a_peer_is_asked_only_for_what_it_has_and_we_lack() {
    let mut s = stage("#..#....");
    let mut asked = s.join(1, "bob", "##.#...#");
    asked.sort();
    assert_eq!(asked, [(1, 1), (1, 7)]);
    assert!(s.join(2, "alice", "##.#...#").is_empty(), "1 and 7 are in flight");
}

#[test]
fn a_new_peer_gets_a_full_pipeline_and_no_more() {
    let mut s = stage(&".".repeat(20));
    assert_eq!(s.join(1, "alice", &"#".repeat(20)).len(), PIPELINE_START);
    assert_eq!(s.join(2, "bob", &"#".repeat(20)).len(), PIPELINE_START);
}

#[test]
fn the_rarest_piece_is_asked_for_first() {
    let mut s = stage("........");
    s.handle(Event::Pause);
    s.join(1, "alice", "########");
    s.join(2, "bob", ".#.#####");
    s.join(3, "cid", ".#.###..");
    let room = Event::Room { bytes: u64::from(PIECE_LEN), credit: None };
    s.handle(room);
    // Only alice has 0 and 2.
    let rarest: Vec<_> = requests(&s.handle(Event::Resume));
    let alice: Vec<_> = rarest.into_iter().filter(|(peer, _)| *peer == 1).collect();
    assert!(matches!(alice[..], [(1, 0 | 2)]), "{alice:?}");
}

#[test]
fn every_peer_has_something_to_do_even_when_there_is_too_little_room() {
    let mut s = stage(&".".repeat(40));
    s.handle(Event::Room { bytes: 2 * u64::from(PIECE_LEN), credit: None });
    let all = "#".repeat(40);
    let mut asked = BTreeMap::new();
    for key in 1..6 {
        for (peer, _) in s.join(key, &format!("user{key}"), &all) {
            *asked.entry(peer).or_insert(0) += 1;
        }
    }
    assert_eq!(asked, BTreeMap::from([(1, 2), (2, 1), (3, 1), (4, 1), (5, 1)]));
    // And nobody when there is none, until there is.
    let mut s = stage(&".".repeat(40));
    s.handle(Event::Room { bytes: 0, credit: None });
    assert!(s.join(1, "alice", &all).is_empty());
    let room = s.handle(Event::Room { bytes: 10 * u64::from(PIECE_LEN), credit: Some(1) });
    assert_eq!(requests(&room).len(), 1, "credit for one");
    let room = s.handle(Event::Room { bytes: 10 * u64::from(PIECE_LEN), credit: None });
    assert_eq!(requests(&room).len(), PIPELINE_START - 1);
}

#[test]
fn nobody_is_asked_while_this_machine_does_not_keep_up_and_everybody_once_it_does() {
    let mut s = stage(&".".repeat(100));
    let all = "#".repeat(100);
    let mut asked: Vec<_> = (1..4).flat_map(|key| s.join(key, "alice", &all)).collect();
    // Nothing of what comes is verified.
    let mut received = Vec::new();
    while let Some((peer, piece)) = asked.pop() {
        asked.extend(requests(&s.received(peer, piece)));
        received.push(piece);
    }
    assert!((17..17 + 3 * PIPELINE_START).contains(&received.len()), "{}", received.len());
    // Little room is enough for one of each, as soon as it does.
    s.handle(Event::Room { bytes: u64::from(PIECE_LEN), credit: None });
    let late = received.len() - 16;
    for (number, piece) in received.into_iter().take(late).enumerate() {
        let requests = requests(&s.stored("alice", piece));
        let peers: BTreeSet<_> = requests.into_iter().map(|(peer, _)| peer).collect();
        let is_last = number + 1 == late;
        assert_eq!(peers, if is_last { BTreeSet::from([1, 2, 3]) } else { BTreeSet::new() });
    }
}

#[test]
fn a_leaver_gives_back_and_the_others_take_over() {
    let mut s = stage("..");
    assert_eq!(s.join(1, "alice", "##").len(), 2);
    assert!(s.join(2, "bob", "##").len() <= 1, "nothing is left to begin");
    let actions = s.handle(Event::PeerLeft { peer: PeerKey(1) });
    let taken: BTreeSet<_> = requests(&actions).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(taken, BTreeSet::from([2]));
    assert!(s.is_asked(2));
}

#[test]
fn completion_is_said_once() {
    let mut s = stage(".#");
    s.join(1, "alice", "##");
    s.received(1, 0);
    assert_eq!(s.stored("alice", 0), [Action::Complete]);
    assert!(s.stored("alice", 0).is_empty());
    assert!(s.scheduler.is_complete());
}

#[test]
fn a_stored_piece_that_is_lost_is_fetched_again() {
    let mut s = stage("##");
    assert!(s.join(1, "alice", "##").is_empty());
    let lost = s.piece(1);
    assert_eq!(requests(&s.handle(Event::Lost { pieces: vec![lost] })), [(1, 1)]);
    assert!(!s.scheduler.is_complete());
    assert_eq!(s.comes(1, "alice", 1), [Action::Complete]);
}

#[test]
fn one_bad_piece_makes_suspect_and_two_ban_the_user_on_all_devices() {
    let mut s = stage("........");
    let first = s.join(1, "eve", "########");
    s.join(2, "eve", "########");
    assert!(s.bad(1, "eve", first[0].1).iter().all(|a| !matches!(a, Action::Ban { .. })));
    // A suspect gets one piece at a time, never the one it failed on.
    assert!(s.join(3, "eve", "########").iter().all(|(_, piece)| *piece != first[0].1));
    let actions = s.bad(1, "eve", first[1].1);
    assert!(actions.contains(&Action::Ban { user: user("eve") }), "{actions:?}");
    assert!(s.join(4, "eve", "########").is_empty());
    assert_eq!(s.join(5, "alice", "########").len(), PIPELINE_START);
}

#[test]
fn a_false_form_counts_like_false_bytes() {
    let mut s = stage("...");
    s.join(1, "eve", "###");
    for index in [0, 1] {
        let (peer, piece) = (PeerKey(1), s.piece(index));
        s.handle(Event::Bad { peer, user: user("eve"), piece, received: false });
    }
    assert!(s.scheduler.is_banned(&user("eve")));
}

#[test]
fn what_one_failed_on_another_is_asked_for() {
    let mut s = stage(".");
    assert_eq!(s.join(1, "eve", "#"), [(1, 0)]);
    assert!(requests(&s.bad(1, "eve", 0)).is_empty(), "not again at once");
    assert_eq!(s.join(2, "alice", "#"), [(2, 0)]);
    assert_eq!(s.comes(2, "alice", 0), [Action::Complete]);
}

#[test]
fn the_only_source_gets_a_second_chance() {
    let mut s = stage(".");
    s.join(1, "alice", "#");
    s.bad(1, "alice", 0);
    let actions = s.pass(11 * SECOND, &[1]);
    assert_eq!(requests(&actions), [(1, 0)]);
    assert_eq!(s.comes(1, "alice", 0), [Action::Complete]);
}

#[test]
fn when_everybody_fails_on_a_piece_the_manifest_is_suspected_and_nobody_banned() {
    let mut s = stage("..");
    s.join(1, "ann", "#.");
    s.bad(1, "ann", 0);
    assert_eq!(s.join(2, "bob", "#."), [(2, 0)]);
    let actions = s.bad(2, "bob", 0);
    assert!(actions.contains(&Action::SuspectManifest { piece: s.piece(0) }), "{actions:?}");
    assert!(s.scheduler.is_stuck(), "nobody has the right one");
    let actions = s.pass(11 * SECOND, &[1, 2]);
    let (again, _) = requests(&actions)[0];
    assert!(s.scheduler.is_stuck(), "trying once more is not moving");
    let name = if again == 1 { "ann" } else { "bob" };
    s.bad(again, name, 0);
    assert!(!s.scheduler.is_banned(&user("ann")) && !s.scheduler.is_banned(&user("bob")));
    assert_eq!(s.scheduler.suspected_here().len(), 1);
    // Somebody has it after all: then they are to blame.
    s.join(3, "cid", "##");
    s.pass(11 * SECOND, &[1, 2, 3]);
    s.comes(3, "cid", 0);
    assert!(s.scheduler.suspected().is_empty());
    assert!(s.scheduler.is_banned(&user(name)));
}

#[test]
fn a_busy_peer_rests_twice_as_long_each_time_and_is_asked_again() {
    let mut s = stage(".");
    s.join(1, "alice", "#");
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let until = s.now + seconds * SECOND;
        assert!(s.refused(1, 0, NotServed::Busy).is_empty());
        while s.now < until {
            let at = s.scheduler.next_timeout().expect("a timeout");
            assert!(at > s.now && at <= until);
            s.now = at;
            let asked = requests(&s.handle(Event::Tick));
            assert_eq!(!asked.is_empty(), s.now == until, "{asked:?}");
        }
    }
}

#[test]
fn a_piece_denied_is_not_asked_again_until_the_peer_has_it() {
    let mut s = stage(".");
    s.join(1, "alice", "#");
    assert!(s.refused(1, 0, NotServed::NotHave).is_empty());
    assert!(s.scheduler.is_stuck());
    assert_eq!(requests(&s.has(1, &[0])), [(1, 0)]);
}

#[test]
fn who_denies_what_it_says_to_have_again_and_again_is_banned() {
    let mut s = stage(".");
    s.join(1, "eve", "#");
    for _ in 0..100 {
        s.refused(1, 0, NotServed::NotHave);
        s.has(1, &[0]);
    }
    assert!(s.scheduler.is_banned(&user("eve")));
}

#[test]
fn a_dead_peer_gives_back_what_others_have_and_is_asked_again_when_it_lives() {
    let mut s = stage("........");
    assert_eq!(s.join(1, "alice", "####....").len(), 4);
    assert_eq!(s.join(2, "bob", "###.####").len(), 4);
    let mut freed = cancels(&s.pass(3 * SECOND, &[2]));
    freed.sort_by_key(|(_, piece, _)| *piece);
    assert_eq!(freed, [0, 1, 2].map(|piece| (1, piece, Cause::Silent)));
    // What only alice has stays with her; she is asked for more once she is heard of.
    assert!(s.is_asked(1));
    let mut asked: Vec<_> = [4, 5, 6].map(|piece| requests(&s.comes(2, "bob", piece))).concat();
    assert!(!asked.is_empty() && asked.iter().all(|(peer, _)| *peer == 2), "{asked:?}");
    let again = requests(&s.alive(1));
    assert!(!again.is_empty() && again.iter().all(|(peer, _)| *peer == 1), "{again:?}");
    asked.extend(again);
    let pieces: BTreeSet<_> = asked.into_iter().map(|(_, piece)| piece).collect();
    assert_eq!(pieces, BTreeSet::from([0, 1, 2]));
}

#[test]
fn nothing_moves_while_all_that_is_asked_for_is_asked_of_the_dead() {
    let mut s = stage("......");
    s.join(1, "alice", "######");
    assert!(!s.scheduler.is_stuck());
    s.received(1, 0);
    s.pass(3 * SECOND, &[]);
    assert!(!s.scheduler.is_stuck(), "a piece is being verified");
    s.stored("alice", 0);
    assert!(s.scheduler.is_stuck() && s.is_asked(1));
    s.alive(1);
    assert!(!s.scheduler.is_stuck());
    // One that lives and has something else is another matter.
    s.pass(3 * SECOND, &[]);
    assert!(s.scheduler.is_stuck());
    s.join(2, "bob", ".....#");
    assert!(!s.scheduler.is_stuck());
}

#[test]
fn who_is_alive_and_slow_is_not_dead() {
    let mut s = stage("..");
    s.join(1, "alice", "##");
    let actions = s.pass(20 * SECOND, &[1]);
    assert!(actions.is_empty(), "{actions:?}");
}

#[test]
fn who_promises_bytes_and_gives_none_is_banned_though_alive() {
    let mut s = stage("....");
    s.join(1, "eve", "####");
    s.progress(1, 0, 0);
    s.progress(1, 1, 0);
    for second in 0..29 {
        let dribble = s.progress(1, 0, second);
        assert!(dribble.is_empty());
        assert!(s.pass(SECOND, &[1]).is_empty());
    }
    let actions = s.pass(2 * SECOND, &[1]);
    assert!(actions.contains(&Action::Ban { user: user("eve") }), "{actions:?}");
}

#[test]
fn a_slow_link_that_moves_is_borne_with() {
    let mut s = stage("....");
    s.join(1, "alice", "####");
    // 1 KiB/s.
    for second in 0..120 {
        assert!(s.progress(1, 0, second * 1024).is_empty());
        assert!(s.pass(SECOND, &[1]).is_empty());
    }
}

#[test]
fn when_our_own_link_is_busy_a_small_share_is_enough() {
    let mut s = stage(&".".repeat(400));
    s.handle(Event::Room { bytes: 400 * u64::from(PIECE_LEN), credit: None });
    let all = "#".repeat(400);
    let mut asked = Vec::new();
    for key in 1..=60 {
        let count = if key == 60 { 2 } else { 1 };
        asked.extend(s.join(key, &format!("u{key}"), &all).into_iter().take(count));
    }
    assert_eq!(asked.len(), 61);
    let alive: Vec<_> = (1..=60).collect();
    for second in 0..90 {
        for (key, piece) in &asked {
            // 200 bytes a second each, but one byte of the last.
            let received = if *key == 60 { second } else { 200 * second };
            s.progress(*key, *piece, received);
        }
        s.pass(SECOND, &alive);
    }
    let banned = |key: u64| s.scheduler.is_banned(&user(&format!("u{key}")));
    assert!((1..60).all(|key| !banned(key)) && banned(60));
}

#[test]
fn when_we_slept_nobody_else_is_to_blame() {
    let mut s = stage("....");
    s.join(1, "alice", "##..");
    s.join(2, "bob", "####");
    s.progress(1, 0, 0);
    s.progress(1, 1, 0);
    s.pass(SECOND, &[1, 2]);
    s.now += 60 * SECOND;
    let actions = s.handle(Event::Tick);
    assert!(cancels(&actions).is_empty(), "{actions:?}");
}

#[test]
fn an_idle_peer_steals_the_piece_that_would_come_last_from_a_slow_one() {
    // Nobody has the last piece, so this is not the end.
    let mut s = stage(".....");
    let slow = s.join(1, "slow", "####.");
    assert_eq!(slow.len(), 4);
    assert!(s.join(2, "fast", "####.").is_empty(), "slow may have answered");
    let actions = s.pass(5 * SECOND, &[1, 2]);
    let taken: Vec<_> = cancels(&actions);
    let last = slow[3].1;
    assert_eq!(taken[0], (1, last, Cause::Stolen));
    let stolen = Action::Request { peer: PeerKey(2), piece: s.piece(last), why: Why::Stolen };
    assert!(actions.contains(&stolen), "{actions:?}");
    // As it turns out how slow slow is, fast takes all it has not begun, the latest first.
    s.progress(1, slow[0].1, PIECE_LEN / 8);
    let mut taken: Vec<_> = taken.into_iter().map(|(_, piece, _)| piece).collect();
    for (_, piece) in requests(&actions) {
        s.now += 20 * MS;
        let actions = s.comes(2, "fast", piece);
        taken.extend(cancels(&actions).into_iter().map(|(_, piece, _)| piece));
    }
    assert_eq!(taken, [slow[3].1, slow[2].1, slow[1].1]);
    // And nothing of it goes back.
    assert!(requests(&s.pass(60 * SECOND, &[1, 2])).iter().all(|(peer, _)| *peer != 1));
}

#[test]
fn what_a_peer_has_just_got_it_takes_from_one_that_has_not_begun_it() {
    let mut s = stage("......");
    let seed = s.join(1, "seed", "######");
    assert!(s.join(2, "alice", "......").is_empty());
    s.progress(1, seed[0].1, 0);
    s.now = 20 * SECOND;
    s.progress(1, seed[0].1, 1);
    // At once, not when it is looked for.
    let actions = s.has(2, &[seed[0].1]);
    assert!(cancels(&actions).is_empty(), "begun, and nobody waits for it: {actions:?}");
    let actions = s.has(2, &[seed[2].1]);
    assert_eq!(cancels(&actions), [(1, seed[2].1, Cause::Stolen)]);
    assert_eq!(requests(&actions)[0], (2, seed[2].1));
}

#[test]
fn nobody_is_judged_before_it_was_asked_who_lives() {
    let mut s = stage("........");
    s.join(1, "alice", "########");
    s.join(2, "bob", "########");
    // Later than both should have been heard of; only the tick counts.
    s.now = 2500 * MS;
    assert!(cancels(&s.alive(1)).is_empty());
    assert!(cancels(&s.alive(2)).is_empty());
    assert!(cancels(&s.handle(Event::Tick)).is_empty());
    s.now = 5 * SECOND;
    assert!(cancels(&s.alive(2)).is_empty());
    let freed = cancels(&s.handle(Event::Tick));
    assert_eq!(freed.len(), PIPELINE_START, "{freed:?}");
    assert!(freed.iter().all(|(peer, _, cause)| (*peer, *cause) == (1, Cause::Silent)));
}

#[test]
fn the_last_pieces_have_two_holders_at_most_and_the_slower_is_stopped() {
    let mut s = stage("##########.");
    s.join(1, "slow", "###########");
    // The bytes flow, so it is not worth taking it from slow altogether, but a second copy is.
    s.progress(1, 10, PIECE_LEN / 2);
    s.now = 700 * MS;
    s.progress(1, 10, PIECE_LEN / 2 + 1);
    let second = s.join(2, "fast", "###########");
    let third = s.join(3, "third", "###########");
    let asked: Vec<_> = second.into_iter().chain(third).collect();
    assert!(asked.len() <= 1, "{asked:?}");
    if let [(key, 10)] = asked[..] {
        let actions = s.comes(key, "fast", 10);
        assert_eq!(cancels(&actions), [(1, 10, Cause::Late)]);
        assert!(actions.contains(&Action::Complete));
    }
}

#[test]
fn nothing_more_is_asked_for_while_paused() {
    let mut s = stage("......");
    s.join(1, "alice", "######");
    s.handle(Event::Pause);
    assert!(s.received(1, 0).is_empty());
    assert!(s.pass(SECOND, &[1]).is_empty());
    assert!(!requests(&s.handle(Event::Resume)).is_empty());
}

#[test]
fn an_event_of_another_file_is_ignored() {
    let mut s = stage("..");
    let other = layout(3);
    let pieces = Bitfield::all(other);
    let event = Event::PeerJoined { peer: PeerKey(1), user: user("a"), pieces, rtt: MS };
    assert!(s.handle(event).is_empty());
    let piece = other.piece(2).expect("exists");
    assert!(s.handle(Event::Lost { pieces: vec![piece] }).is_empty());
}
