//! Which of several tracker connections is in use, when a request is repeated on another, and when
//! a login is over: rules.
//!
//! Pure: connections are numbers, and time is a span since the agent began.

use std::collections::HashMap;
use std::time::Duration;

use crate::limits::{
    SYNC_PATIENCE, TRACKER_KEEP_ALIVE, TRACKER_PATIENCE, TRACKER_PREFERENCE,
    TRACKER_REQUEST_DEADLINE, TRACKER_SILENCE,
};
use crate::name::UserName;
use crate::peer_id::PeerId;

/// A connection; higher for every further one.
pub type Number = u64;

/// Whether a connection acts for the user that is logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// It does, or nobody is logged in and it acts for nobody.
    Settled,
    /// The tracker was asked and has not answered yet.
    Asking,
    /// The tracker does not know this device, or knows it as another user's.
    Unknown,
}

/// What there is with one tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// It was not reached yet, and not missed either.
    New,
    /// Its connection is gone; it was not dialled again yet.
    Lost,
    /// It was dialled in vain, at last at that time.
    Missed(Duration),
    /// There is a connection.
    Up {
        number: Number,
        login: Login,
        /// It did not answer a request, or could not grant it, that another tracker answered.
        suspect: bool,
    },
}

/// The trackers there are and the connections with them.
///
/// Invariant: the one in use is connected and settled.
#[derive(Debug)]
pub struct Fleet {
    /// In order of preference.
    order: Vec<PeerId>,
    seats: HashMap<PeerId, Seat>,
    in_use: Option<Number>,
    /// Until then a tracker earlier in order is waited for.
    hold: Option<Duration>,
    /// Whether somebody is logged in.
    wanted: bool,
    /// When the user logged in with a password, in this run of the agent.
    login_at: Option<Duration>,
    /// Since when a tracker does not know this device, over several connections.
    unknown: HashMap<PeerId, Duration>,
}

impl Fleet {
    /// Trackers in order of preference, none of them reached.
    pub fn new(order: Vec<PeerId>, wanted: bool) -> Self {
        let seats = order.iter().map(|id| (*id, Seat::New)).collect();
        let unknown = HashMap::new();
        Self { order, seats, in_use: None, hold: None, wanted, login_at: None, unknown }
    }

    /// The trackers are these now.
    pub fn set_order(&mut self, order: Vec<PeerId>) {
        self.seats.retain(|id, _| order.contains(id));
        self.unknown.retain(|id, _| order.contains(id));
        for id in &order {
            self.seats.entry(*id).or_insert(Seat::New);
        }
        self.order = order;
    }

    /// There is a connection with a tracker.
    pub fn connected(&mut self, tracker: PeerId, number: Number) {
        let login = if self.wanted { Login::Asking } else { Login::Settled };
        if let Some(seat) = self.seats.get_mut(&tracker) {
            *seat = Seat::Up { number, login, suspect: false };
        }
    }

    /// The connection with a tracker is gone.
    pub fn lost(&mut self, tracker: PeerId) {
        if let Some(seat) = self.seats.get_mut(&tracker) {
            *seat = Seat::Lost;
        }
    }

    /// A tracker was dialled in vain.
    pub fn missed(&mut self, tracker: PeerId, now: Duration) {
        if let Some(seat) = self.seats.get_mut(&tracker) {
            *seat = Seat::Missed(now);
        }
    }

    /// Whether every tracker was tried.
    pub fn is_tried(&self) -> bool {
        !self.seats.values().any(|seat| *seat == Seat::New)
    }

    /// Whether there is only one tracker.
    pub fn is_single(&self) -> bool {
        self.order.len() == 1
    }

    /// A tracker and the login of a connection with it, for changing it.
    fn login(&mut self, wanted: Number) -> Option<(PeerId, &mut Login)> {
        self.seats.iter_mut().find_map(|(id, seat)| match seat {
            Seat::Up { number, login, .. } if *number == wanted => Some((*id, login)),
            _ => None,
        })
    }

    /// A connection acts for the user now.
    pub fn settled(&mut self, number: Number) {
        if let Some((tracker, login)) = self.login(number) {
            *login = Login::Settled;
            self.unknown.remove(&tracker);
        }
    }

    /// The tracker at the other end does not know this device.
    pub fn unknown(&mut self, number: Number, now: Duration) {
        if let Some((tracker, login)) = self.login(number) {
            *login = Login::Unknown;
            self.unknown.entry(tracker).or_insert(now);
        }
    }

    /// Somebody logged in with a password on connection `number`; the others are to follow.
    pub fn logged_in(&mut self, number: Number, now: Duration) {
        self.wanted = true;
        self.login_at = Some(now);
        self.all_logins(Login::Asking);
        self.settled(number);
    }

    /// Nobody is logged in any more.
    pub fn logged_out(&mut self) {
        self.wanted = false;
        self.login_at = None;
        self.all_logins(Login::Settled);
    }

    fn all_logins(&mut self, new: Login) {
        self.unknown.clear();
        for seat in self.seats.values_mut() {
            if let Seat::Up { login, .. } = seat {
                *login = new;
            }
        }
    }

    /// Whether the other trackers may not have heard of the password login yet.
    pub fn is_fresh_login(&self, now: Duration) -> bool {
        self.login_at.is_some_and(|at| now.saturating_sub(at) < SYNC_PATIENCE)
    }

    /// Whether the login is over: trackers say so, and none contradicts them, be it by its silence.
    /// One that cannot be asked is waited for, and so is what they hear from each other.
    pub fn is_login_over(&self, now: Duration) -> bool {
        if !self.wanted {
            return false;
        }
        let is = |id: &PeerId, wanted: Login| matches!(self.seats.get(id), Some(Seat::Up { login, .. }) if *login == wanted);
        if self.order.iter().any(|id| is(id, Login::Settled)) {
            return false;
        }
        let unknown = self.order.iter().filter(|id| is(id, Login::Unknown));
        let since = unknown.clone().filter_map(|id| self.unknown.get(id)).min();
        let patient = unknown.count() < self.order.len() || self.is_fresh_login(now);
        since.is_some_and(|at| !patient || now.saturating_sub(*at) >= SYNC_PATIENCE)
    }

    /// The connection with a tracker, and its login.
    pub fn connection(&self, tracker: PeerId) -> Option<(Number, Login)> {
        match self.seats.get(&tracker) {
            Some(Seat::Up { number, login, .. }) => Some((*number, *login)),
            _ => None,
        }
    }

    /// Whether any tracker is connected.
    pub fn is_any_connected(&self) -> bool {
        self.seats.values().any(|seat| matches!(seat, Seat::Up { .. }))
    }

    /// Whether every tracker was dialled in vain since `begun`.
    pub fn is_hopeless(&self, begun: Duration) -> bool {
        self.seats.values().all(|seat| matches!(seat, Seat::Missed(at) if *at >= begun))
    }

    /// The connections that may be asked: the one in use, then the others in order, those last
    /// that left something unanswered.
    pub fn usable(&self) -> Vec<Number> {
        let mut usable: Vec<(bool, bool, Number)> = self
            .order
            .iter()
            .filter_map(|id| match self.seats.get(id) {
                Some(Seat::Up { number, login: Login::Settled, suspect }) => {
                    Some((Some(*number) != self.in_use, *suspect, *number))
                }
                _ => None,
            })
            .collect();
        usable.sort_by_key(|(other, suspect, _)| (*other, *suspect));
        usable.into_iter().map(|(.., number)| number).collect()
    }

    /// The connection in use.
    pub fn in_use(&self) -> Option<Number> {
        self.in_use
    }

    /// Chooses the connection in use: the one that was, as long as it can be; else the first in
    /// order, for which is waited a moment when it was not tried yet.
    pub fn settle(&mut self, now: Duration) {
        let usable = self.usable();
        if self.in_use.is_some_and(|number| usable.contains(&number)) {
            return;
        }
        self.in_use = None;
        let Some(best) = usable.first().copied() else { return };
        let before = self.order.iter().take_while(
            |id| !matches!(self.seats.get(id), Some(Seat::Up { number, .. }) if *number == best),
        );
        let coming = |id: &PeerId| match self.seats.get(id) {
            Some(Seat::New) => true,
            Some(Seat::Up { login, .. }) => *login == Login::Asking,
            _ => false,
        };
        let hold = *self.hold.get_or_insert(now + TRACKER_PREFERENCE);
        if now >= hold || !before.into_iter().any(coming) {
            self.in_use = Some(best);
        }
    }

    /// A connection answered.
    pub fn answered(&mut self, answered: Number) {
        self.set_suspect(answered, false);
    }

    /// A connection left a request unanswered for too long, or could not grant it for a reason of
    /// its own, and connection `by` answered: that one takes its place.
    pub fn outrun(&mut self, late: Number, by: Number) {
        self.set_suspect(late, true);
        if self.in_use == Some(late) && self.usable().contains(&by) {
            self.in_use = Some(by);
        }
    }

    fn set_suspect(&mut self, wanted: Number, new: bool) {
        for seat in self.seats.values_mut() {
            if let Seat::Up { number, suspect, .. } = seat
                && *number == wanted
            {
                *suspect = new;
            }
        }
    }
}

/// What a tracker's name for us means for the login we keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// It is the one we keep; or one it had before, and that tracker has not heard yet.
    Same,
    /// Our account was given a mark: that is its name now.
    Renamed,
    /// Somebody else: that tracker has not heard of our login yet.
    Other,
}

impl Named {
    /// `kept` is the name we know, `said` the tracker's.
    pub fn of(kept: &UserName, said: &UserName) -> Self {
        let ((kept_base, kept_mark), (said_base, said_mark)) = (kept.parts(), said.parts());
        match (kept_base == said_base, kept_mark, said_mark) {
            (false, ..) => Self::Other,
            (_, Some(kept), Some(said)) if kept == said => Self::Same,
            (_, _, Some(_)) => Self::Renamed,
            // Marks come and never go.
            (_, _, None) => Self::Same,
        }
    }
}

/// One time a request was sent.
#[derive(Debug)]
struct Try {
    number: Number,
    asked: Duration,
    /// Packets that had come on that connection, and when that was last seen to grow.
    received: u64,
    heard: Duration,
    /// Whether anything came since it was asked.
    alive: bool,
    waiting: bool,
}

/// What to do about a request next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send it on this connection.
    Ask(Number),
    /// This connection is dead: close it.
    Close(Number),
    /// Wait for an answer, until then at most.
    Wait(Duration),
    /// Nobody is left to be asked.
    Nobody,
}

/// One request on its way to an answer.
#[derive(Debug)]
pub struct Attempts {
    /// Whether its answer rightly takes longer than others.
    slow: bool,
    tries: Vec<Try>,
}

impl Attempts {
    /// A request not sent yet; `slow` if its answer rightly takes long.
    pub fn new(slow: bool) -> Self {
        Self { slow, tries: Vec::new() }
    }

    /// What to do at `now`, when the connections in `usable` may be asked, the best first, and
    /// `received` says how many packets came on each so far.
    pub fn step(
        &mut self,
        now: Duration,
        usable: &[Number],
        received: impl Fn(Number) -> u64,
    ) -> Step {
        for attempt in self.tries.iter_mut().filter(|attempt| attempt.waiting) {
            let count = received(attempt.number);
            if count > attempt.received {
                (attempt.received, attempt.heard, attempt.alive) = (count, now, true);
            }
            if now >= attempt.dead_at() {
                attempt.waiting = false;
                return Step::Close(attempt.number);
            }
        }
        let tried = |number: &Number| self.tries.iter().any(|attempt| attempt.number == *number);
        let next = usable.iter().copied().find(|number| !tried(number));
        let newest = self.tries.iter().rev().find(|attempt| attempt.waiting);
        let due = newest.map(|newest| newest.due(self.slow));
        match (due, next) {
            (None, None) => Step::Nobody,
            (Some(due), Some(_)) if now < due => Step::Wait(due.min(self.first_dead())),
            (_, Some(number)) => {
                let (received, heard, asked) = (received(number), now, now);
                let (alive, waiting) = (false, true);
                self.tries.push(Try { number, asked, received, heard, alive, waiting });
                Step::Ask(number)
            }
            (Some(due), None) if now < due => Step::Wait(due.min(self.first_dead())),
            (Some(_), None) => Step::Wait(self.first_dead()),
        }
    }

    /// When the first connection asked is to be looked at again.
    fn first_dead(&self) -> Duration {
        let waiting = self.tries.iter().filter(|attempt| attempt.waiting);
        waiting.map(Try::dead_at).min().unwrap_or(Duration::MAX)
    }

    /// A connection asked is gone, or its tracker cannot answer for a reason of its own.
    pub fn failed(&mut self, number: Number) {
        for attempt in self.tries.iter_mut().filter(|attempt| attempt.number == number) {
            attempt.waiting = false;
        }
    }

    /// Whether an answer may still come.
    #[cfg(test)]
    fn is_waiting(&self) -> bool {
        self.tries.iter().any(|attempt| attempt.waiting)
    }

    /// How often it was sent.
    pub fn count(&self) -> usize {
        self.tries.len()
    }

    /// The connections that left it unanswered for too long when `by` answered at `now`.
    pub fn outrun(&self, by: Number, now: Duration) -> Vec<Number> {
        let late = |attempt: &&Try| {
            attempt.number != by && attempt.waiting && now >= attempt.due(self.slow)
        };
        self.tries.iter().filter(late).map(|attempt| attempt.number).collect()
    }
}

impl Try {
    /// When it is repeated elsewhere.
    fn due(&self, slow: bool) -> Duration {
        match (slow, self.alive) {
            (true, true) => self.dead_at(),
            _ => self.asked + TRACKER_PATIENCE,
        }
    }

    /// When the connection is given up: nothing came on it for longer than a living one is silent,
    /// or no answer for longer than any takes.
    fn dead_at(&self) -> Duration {
        let silence =
            if self.alive { TRACKER_KEEP_ALIVE + TRACKER_SILENCE } else { TRACKER_SILENCE };
        (self.heard + silence).min(self.asked + TRACKER_REQUEST_DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);
    const C: PeerId = PeerId([3; 32]);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Trackers A and B with connections 1 and 2, and nobody logged in.
    fn pair() -> Fleet {
        let mut fleet = Fleet::new(vec![A, B], false);
        fleet.connected(B, 2);
        fleet.connected(A, 1);
        fleet.settle(ms(0));
        fleet
    }

    #[test]
    fn the_first_in_order_is_used_unless_it_is_late() {
        let mut fleet = Fleet::new(vec![A, B], false);
        fleet.connected(B, 2);
        fleet.settle(ms(100));
        assert_eq!(fleet.in_use(), None, "A may come any moment");
        fleet.connected(A, 1);
        fleet.settle(ms(150));
        assert_eq!((fleet.in_use(), fleet.usable()), (Some(1), vec![1, 2]));

        let mut fleet = Fleet::new(vec![A, B], false);
        fleet.connected(B, 2);
        fleet.settle(ms(100));
        fleet.settle(ms(100) + TRACKER_PREFERENCE);
        assert_eq!(fleet.in_use(), Some(2));
        fleet.connected(A, 1);
        fleet.settle(ms(900));
        assert_eq!(fleet.in_use(), Some(2), "what works is not changed");
        fleet.lost(B);
        fleet.settle(ms(901));
        assert_eq!(fleet.in_use(), Some(1));

        // One that is known to be away is not waited for.
        let mut fleet = Fleet::new(vec![A, B], false);
        fleet.missed(A, ms(10));
        fleet.connected(B, 2);
        fleet.settle(ms(11));
        assert_eq!(fleet.in_use(), Some(2));
    }

    #[test]
    fn who_stays_silent_loses_its_place_and_is_asked_last() {
        let mut fleet = pair();
        fleet.outrun(1, 2);
        fleet.settle(ms(1));
        assert_eq!((fleet.in_use(), fleet.usable()), (Some(2), vec![2, 1]));
        fleet.set_order(vec![A, B, C]);
        fleet.connected(C, 3);
        assert_eq!(fleet.usable(), [2, 3, 1]);
        fleet.answered(1);
        fleet.settle(ms(2));
        assert_eq!((fleet.in_use(), fleet.usable()), (Some(2), vec![2, 1, 3]));
        fleet.set_order(vec![C, A]);
        fleet.settle(ms(3));
        assert_eq!((fleet.in_use(), fleet.usable()), (Some(3), vec![3, 1]));
    }

    #[test]
    fn trackers_are_all_tried_before_there_is_none() {
        let mut fleet = pair();
        assert!(!fleet.is_hopeless(ms(0)));
        fleet.lost(A);
        fleet.missed(B, ms(7));
        assert!(!fleet.is_hopeless(ms(5)), "A was not dialled again");
        fleet.missed(A, ms(8));
        assert!(fleet.is_hopeless(ms(5)) && !fleet.is_hopeless(ms(8)) && fleet.is_tried());
    }

    #[test]
    fn a_login_is_over_only_when_no_tracker_contradicts() {
        let later = SYNC_PATIENCE;
        // After a login the others may not know of it for long.
        let mut fleet = pair();
        fleet.logged_in(1, ms(0));
        assert_eq!(fleet.usable(), [1], "the other one does not act for the user yet");
        fleet.unknown(2, ms(1));
        assert!(!fleet.is_login_over(later * 9));
        // The one that knew is gone: the patience has an end.
        fleet.lost(A);
        assert!(!fleet.is_login_over(later) && fleet.is_login_over(ms(1) + later));
        fleet.settled(2);
        assert!(!fleet.is_login_over(later * 9));
        assert_eq!(fleet.usable(), [2]);

        // At the start: one knows nothing, the other cannot be asked or was not yet.
        let mut fleet = Fleet::new(vec![A, B], true);
        fleet.connected(A, 1);
        fleet.unknown(1, ms(5));
        assert!(!fleet.is_login_over(ms(6)));
        // Dialled anew it counts from the first time.
        fleet.lost(A);
        fleet.connected(A, 3);
        assert!(!fleet.is_login_over(later * 2), "it was not asked yet");
        fleet.unknown(3, later);
        assert!(!fleet.is_login_over(ms(4) + later) && fleet.is_login_over(ms(5) + later));
        // All say so.
        fleet.connected(B, 4);
        fleet.unknown(4, ms(7));
        assert!(fleet.is_login_over(ms(8)));
        fleet.logged_out();
        assert!(!fleet.is_login_over(later * 9));
        assert_eq!(fleet.usable(), [3, 4]);
    }

    #[test]
    fn a_mark_is_a_new_name_and_another_base_another_user() {
        let named = |kept: &str, said: &str| {
            Named::of(&kept.parse().expect("a name"), &said.parse().expect("a name"))
        };
        assert_eq!(named("bob", "bob"), Named::Same);
        assert_eq!(named("bob", "bob~1a2b"), Named::Renamed);
        assert_eq!(named("bob~1a2b", "bob~1a2b"), Named::Same);
        assert_eq!(named("bob~1a2b", "bob"), Named::Same, "that tracker is behind");
        assert_eq!(named("bob", "alice"), Named::Other);
        assert_eq!(named("bob", "alice~1a2b"), Named::Other);
    }

    #[test]
    fn a_request_goes_elsewhere_after_a_second_and_waits_where_there_is_nobody_else() {
        let mut attempts = Attempts::new(false);
        assert_eq!(attempts.step(ms(0), &[1, 2], |_| 5), Step::Ask(1));
        assert_eq!(attempts.step(ms(1), &[1, 2], |_| 6), Step::Wait(TRACKER_PATIENCE));
        assert_eq!(attempts.step(TRACKER_PATIENCE, &[1, 2], |_| 6), Step::Ask(2));
        assert_eq!(attempts.outrun(2, ms(1_500)), [1]);
        assert_eq!(attempts.outrun(1, ms(1_500)), [0; 0], "2 had no time yet");
        // Dead is who says nothing at all; alive, whoever acknowledges.
        let received = |number| if number == 1 { 5 } else { 7 };
        let mut attempts = Attempts::new(false);
        attempts.step(ms(0), &[1], |_| 5);
        assert_eq!(attempts.step(TRACKER_PATIENCE, &[1], received), Step::Wait(TRACKER_SILENCE));
        assert_eq!(attempts.step(TRACKER_SILENCE, &[1], received), Step::Close(1));
        assert_eq!(attempts.step(TRACKER_SILENCE, &[1], received), Step::Nobody);
        assert_eq!(attempts.step(TRACKER_SILENCE, &[3], received), Step::Ask(3));
        assert_eq!((attempts.count(), attempts.is_waiting()), (2, true));
        attempts.failed(3);
        assert!(!attempts.is_waiting());
    }

    #[test]
    fn a_slow_request_is_repeated_only_when_the_tracker_is_dead_or_much_too_late() {
        let mut attempts = Attempts::new(true);
        assert_eq!(attempts.step(ms(0), &[1, 2], |_| 5), Step::Ask(1));
        assert_eq!(attempts.step(TRACKER_PATIENCE, &[1, 2], |_| 5), Step::Ask(2), "not a packet");

        let mut attempts = Attempts::new(true);
        attempts.step(ms(0), &[1, 2], |_| 5);
        let (mut now, mut packets) = (TRACKER_PATIENCE, 5);
        let end = loop {
            packets += 1;
            match attempts.step(now, &[1, 2], |_| packets) {
                Step::Wait(until) => now = until,
                other => break (now, other),
            }
        };
        assert_eq!(end, (TRACKER_REQUEST_DEADLINE, Step::Close(1)));
        assert_eq!(attempts.step(end.0, &[2], |_| packets), Step::Ask(2));
    }

    proptest! {
        // Whatever happens, the one in use can be used, and there is one whenever there can be.
        #[test]
        fn the_one_in_use_can_be_used(events in prop::collection::vec((0u8..8, 0u8..3), 0..80)) {
            let trackers = [A, B, C];
            let mut fleet = Fleet::new(trackers.to_vec(), false);
            let (mut number, mut now) = (0, ms(0));
            for (what, tracker) in events {
                now += ms(300);
                let id = trackers[tracker as usize];
                let known = fleet.connection(id).map(|(number, _)| number);
                match (what, known) {
                    (0 | 1, None) => {
                        number += 1;
                        fleet.connected(id, number);
                    }
                    (2, Some(_)) => fleet.lost(id),
                    (2, None) => fleet.missed(id, now),
                    (3, Some(known)) => fleet.settled(known),
                    (4, Some(known)) => fleet.unknown(known, now),
                    (5, Some(known)) => fleet.logged_in(known, now),
                    (6, _) => fleet.logged_out(),
                    (7, Some(known)) => {
                        if let Some(by) = fleet.usable().into_iter().find(|by| *by != known) {
                            fleet.outrun(known, by);
                        }
                    }
                    _ => {}
                }
                fleet.settle(now);
                let usable = fleet.usable();
                let hold = fleet.hold.is_some_and(|hold| now < hold);
                match fleet.in_use() {
                    Some(in_use) => prop_assert_eq!(usable.first(), Some(&in_use)),
                    None => prop_assert!(usable.is_empty() || hold),
                }
            }
        }

        // Every step gets on: nothing is asked twice, and some day nobody is left.
        #[test]
        fn a_request_comes_to_an_end(slow: bool, packets in prop::collection::vec(0u64..3, 1..9)) {
            let mut attempts = Attempts::new(slow);
            let mut now = ms(0);
            let mut asked = Vec::new();
            let mut steps = 0;
            loop {
                steps += 1;
                prop_assert!(steps < 200);
                let received = |number: Number| {
                    now.as_secs() * packets[(number as usize + steps) % packets.len()]
                };
                match attempts.step(now, &[1, 2, 3], received) {
                    Step::Ask(number) => {
                        prop_assert!(!asked.contains(&number));
                        asked.push(number);
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now);
                        now = until;
                    }
                    Step::Close(_) => {}
                    Step::Nobody => break,
                }
            }
            prop_assert_eq!(asked, [1, 2, 3]);
            prop_assert!(now <= 3 * TRACKER_REQUEST_DEADLINE);
        }
    }
}
