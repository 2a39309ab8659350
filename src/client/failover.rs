//! Which of several tracker connections is in use, when a request is repeated on another, and when
//! a login is over: rules.
//!
//! Pure: connections are numbers, and time is a span since the agent began.

use std::collections::HashMap;
use std::time::Duration;

use crate::limits::{
    KEEP_ALIVE, SYNC_PATIENCE, TRACKER_PATIENCE, TRACKER_PREFERENCE, TRACKER_REQUEST_DEADLINE,
    TRACKER_SILENCE,
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
        /// It left a request unanswered that another tracker answered.
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

    /// A connection left a request unanswered for too long that connection `by` answered: that one
    /// takes its place.
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
    pub fn is_waiting(&self) -> bool {
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
        let silence = if self.alive { KEEP_ALIVE + TRACKER_SILENCE } else { TRACKER_SILENCE };
        (self.heard + silence).min(self.asked + TRACKER_REQUEST_DEADLINE)
    }
}
