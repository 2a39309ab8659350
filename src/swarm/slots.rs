//! How many bodies are sent at once, and whose.
//!
//! Pieces sent one after the other finish earlier than pieces sent all at once, so no more are on
//! their way than fill the link: as many as arrive within a second, by what was measured
//! ([`Pace`]) or by the rate limit. Only bodies that may fill it count: one that is not
//! acknowledged for long waits for a slow or malicious reader, and one of a share with a rate limit
//! of its own for its share; these take a slot of the [`UPLOAD_SLOTS`] alone.
//!
//! Who holds slots and gives none back leaves others theirs: a user may hold as many as are free
//! besides, half of them when it is alone; and of those that fill the link half, or one while it
//! has slow ones.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::{
    PIECE_LEN, UPLOAD_SLOTS, UPLOAD_SLOTS_PER_SESSION, UPLOADS_AT_ONCE_MIN, UPLOADS_AT_ONCE_START,
    UPLOADS_SPAN,
};
use crate::name::UserName;

/// Busy time over which the pace is measured.
const SAMPLE: Duration = UPLOADS_SPAN;

/// Who sends what to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body<C> {
    /// The user it goes to.
    pub user: UserName,
    /// The session it goes through.
    pub session: u64,
    /// Of what.
    pub content: C,
}

/// What a body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The link.
    Filling,
    /// The rate limit of its share.
    Limited,
    /// Its reader.
    Slow,
}

/// Slots taken.
#[derive(Clone, Debug)]
pub struct Slots<C> {
    taken: usize,
    filling: usize,
    users: BTreeMap<UserName, Held>,
    sessions: BTreeMap<u64, usize>,
    limited: BTreeMap<C, usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    filling: usize,
    limited: usize,
    slow: usize,
}

impl Held {
    fn all(self) -> usize {
        self.filling + self.limited + self.slow
    }
}

impl<C> Default for Slots<C> {
    fn default() -> Self {
        let (users, sessions, limited) = Default::default();
        Self { taken: 0, filling: 0, users, sessions, limited }
    }
}

impl<C: Copy + Ord> Slots<C> {
    /// Whether a user may have another one.
    pub fn user_may(&self, user: &UserName) -> bool {
        let held = self.users.get(user).copied().unwrap_or_default();
        held.all() < UPLOAD_SLOTS - self.taken
    }

    /// Whether a user who may gets another one on this session for this content, when the link is
    /// full with `at_once` bodies; or when its share is, if that has a limit of its own.
    pub fn request_may(&self, body: &Body<C>, kind: Kind, at_once: usize) -> bool {
        let of_session = self.sessions.get(&body.session).copied().unwrap_or(0);
        let room = match kind {
            Kind::Limited => self.limited.get(&body.content).copied().unwrap_or(0) < at_once,
            Kind::Filling | Kind::Slow => {
                let held = self.users.get(&body.user).copied().unwrap_or_default();
                let most = if held.slow > 0 { 1 } else { UPLOADS_AT_ONCE_MIN.max(at_once / 2) };
                self.filling < at_once && held.filling < most
            }
        };
        of_session < UPLOAD_SLOTS_PER_SESSION && room
    }

    /// Takes one.
    pub fn take(&mut self, body: &Body<C>, kind: Kind) {
        self.taken += 1;
        *self.sessions.entry(body.session).or_default() += 1;
        self.count(body, kind, 1);
    }

    /// What a body waits for has changed.
    pub fn change(&mut self, body: &Body<C>, from: Kind, to: Kind) {
        self.count(body, to, 1);
        self.count(body, from, -1);
    }

    /// Gives one back.
    pub fn release(&mut self, body: &Body<C>, kind: Kind) {
        self.taken -= 1;
        add(&mut self.sessions, body.session, -1);
        self.count(body, kind, -1);
    }

    /// Bodies that may fill the link.
    pub fn filling(&self) -> usize {
        self.filling
    }

    fn count(&mut self, body: &Body<C>, kind: Kind, by: isize) {
        let held = self.users.entry(body.user.clone()).or_default();
        let of_user = match kind {
            Kind::Filling => &mut held.filling,
            Kind::Limited => &mut held.limited,
            Kind::Slow => &mut held.slow,
        };
        *of_user = of_user.saturating_add_signed(by);
        if held.all() == 0 {
            self.users.remove(&body.user);
        }
        match kind {
            Kind::Filling => self.filling = self.filling.saturating_add_signed(by),
            Kind::Limited => add(&mut self.limited, body.content, by),
            Kind::Slow => {}
        }
    }
}

/// Adds to a count that is kept as long as there is something.
fn add<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, by: isize) {
    let left = counts.get(&key).copied().unwrap_or(0).saturating_add_signed(by);
    if left == 0 {
        counts.remove(&key);
    } else {
        counts.insert(key, left);
    }
}

/// How fast bodies arrive, while any is on its way.
///
/// Measured from one arrival to another, so that pieces that arrive together, as those sent
/// together do, are not taken for a fast link.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_sec: u64,
    /// Bytes that arrived in the sample that is being taken, and how long it was busy.
    bytes: u64,
    busy: Duration,
    /// Since when it is busy.
    since: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        let start = UPLOADS_AT_ONCE_START as u64 * u64::from(PIECE_LEN);
        let bytes_per_sec = start / UPLOADS_SPAN.as_secs().max(1);
        Self { bytes_per_sec, bytes: 0, busy: Duration::ZERO, since: None }
    }
}

impl Pace {
    /// Whether bodies are on their way that may fill the link.
    pub fn set_busy(&mut self, now: Duration, busy: bool) {
        self.look(now);
        self.since = busy.then_some(now);
    }

    /// A body arrived.
    pub fn arrived(&mut self, now: Duration, bytes: u64) {
        self.look(now);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.busy >= SAMPLE {
            self.learn();
        }
    }

    /// How many bodies are to be on their way at once, under a rate limit.
    pub fn at_once(&mut self, now: Duration, limit: Option<u64>) -> usize {
        self.look(now);
        if self.busy >= 2 * SAMPLE {
            // Nothing arrives.
            self.learn();
        }
        at_once(limit.map_or(self.bytes_per_sec, |limit| limit.min(self.bytes_per_sec)))
    }

    fn look(&mut self, now: Duration) {
        if let Some(since) = &mut self.since {
            self.busy += now.saturating_sub(*since);
            *since = now.max(*since);
        }
    }

    /// More is believed at once, less by and by: perhaps nobody asked for more.
    fn learn(&mut self) {
        let millis = u64::try_from(self.busy.as_millis()).unwrap_or(u64::MAX).max(1);
        let sample = self.bytes.saturating_mul(1_000) / millis;
        self.bytes_per_sec = sample.max(self.bytes_per_sec.midpoint(sample));
        (self.bytes, self.busy) = (0, Duration::ZERO);
    }
}

/// How many bodies are sent at once at this rate.
pub fn at_once(bytes_per_sec: u64) -> usize {
    let bytes = bytes_per_sec.saturating_mul(UPLOADS_SPAN.as_secs());
    let bodies = usize::try_from(bytes / u64::from(PIECE_LEN)).unwrap_or(usize::MAX);
    bodies.clamp(UPLOADS_AT_ONCE_MIN, UPLOAD_SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(user: &str, session: u64, content: u8) -> Body<u8> {
        Body { user: user.parse().expect("a name"), session, content }
    }

    /// Takes slots for a user, each device one session, until there is none for it.
    fn take_all(
        slots: &mut Slots<u8>,
        user: &str,
        devices: u64,
        kind: Kind,
        at_once: usize,
    ) -> usize {
        let mut count = 0;
        for session in 0..devices {
            let body = body(user, 1000 * user.len() as u64 + session, 0);
            while slots.user_may(&body.user) && slots.request_may(&body, kind, at_once) {
                slots.take(&body, kind);
                if kind == Kind::Filling {
                    // It is not acknowledged for long.
                    slots.change(&body, Kind::Filling, Kind::Slow);
                }
                count += 1;
            }
        }
        count
    }

    #[test]
    fn readers_that_do_not_read_leave_slots_to_others() {
        let mut slots = Slots::default();
        // One device a quarter, one user half, and each further one less.
        assert_eq!(take_all(&mut slots, "eve", 1, Kind::Filling, 2), 16);
        assert_eq!(take_all(&mut slots, "eve", 9, Kind::Filling, 2), 16);
        assert_eq!(take_all(&mut slots, "mallory", 9, Kind::Filling, 2), 16);
        assert_eq!(take_all(&mut slots, "oscar12", 9, Kind::Filling, 2), 8);
        let bob = body("bob", 1, 0);
        assert!(slots.user_may(&bob.user) && slots.request_may(&bob, Kind::Filling, 2));
        assert_eq!(slots.filling(), 0);
    }

    #[test]
    fn who_has_slow_bodies_fills_one_slot_and_others_the_rest() {
        let mut slots = Slots::default();
        let (eve, bob) = (body("eve", 1, 0), body("bob", 2, 0));
        slots.take(&eve, Kind::Filling);
        assert!(slots.request_may(&eve, Kind::Filling, 2), "alone it has all");
        slots.change(&eve, Kind::Filling, Kind::Slow);
        slots.take(&eve, Kind::Filling);
        assert!(!slots.request_may(&eve, Kind::Filling, 2));
        assert!(slots.request_may(&bob, Kind::Filling, 2));
        slots.take(&bob, Kind::Filling);
        assert!(!slots.request_may(&bob, Kind::Filling, 2), "the link is full");
        slots.release(&eve, Kind::Slow);
        slots.release(&eve, Kind::Filling);
        assert!(slots.request_may(&eve, Kind::Filling, 2));
    }

    #[test]
    fn a_share_with_a_limit_of_its_own_keeps_nobody_from_the_link() {
        let mut slots = Slots::default();
        let (slow, fast) = (body("bob", 1, 7), body("bob", 1, 8));
        slots.take(&slow, Kind::Limited);
        slots.take(&slow, Kind::Limited);
        assert!(!slots.request_may(&slow, Kind::Limited, 2));
        assert!(slots.request_may(&fast, Kind::Filling, 2));
        slots.release(&slow, Kind::Limited);
        assert!(slots.request_may(&slow, Kind::Limited, 2));
    }

    const SECOND: Duration = Duration::from_secs(1);
    const P: u64 = PIECE_LEN as u64;

    /// A link of so many bytes a second and this round trip, always asked for more: what is sent
    /// at once after a while.
    fn on_a_link(bytes_per_sec: u64, round_trip: Duration, seconds: u64) -> usize {
        let mut pace = Pace::default();
        let (mut now, mut at_once) = (Duration::ZERO, 0);
        pace.set_busy(now, true);
        while now < seconds as u32 * SECOND {
            // All that are on their way arrive together, as those of several connections do.
            at_once = pace.at_once(now, None);
            let bytes = at_once as u64 * P;
            now += round_trip.max(Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64));
            (0..at_once).for_each(|_| pace.arrived(now, P));
        }
        at_once
    }

    #[test]
    fn as_many_bodies_are_sent_at_once_as_the_link_takes_in_a_second() {
        let ms = Duration::from_millis;
        // 1 MB/s; 100 Mbit/s; 1 Gbit/s and 200 ms; loopback.
        assert_eq!(on_a_link(1_000_000, ms(40), 120), 2);
        assert!((20..=40).contains(&on_a_link(12_500_000, ms(40), 60)));
        assert_eq!(on_a_link(125_000_000, ms(200), 5), UPLOAD_SLOTS);
        assert_eq!(on_a_link(1_000_000_000, ms(1), 2), UPLOAD_SLOTS);
        assert_eq!(Pace::default().at_once(SECOND, None), UPLOADS_AT_ONCE_START);
    }

    #[test]
    fn a_pace_that_fell_while_nobody_read_comes_back_within_seconds() {
        let mut pace = Pace::default();
        pace.set_busy(Duration::ZERO, true);
        let mut now = Duration::ZERO;
        for _ in 0..20 {
            now += 2 * SECOND;
            pace.at_once(now, None);
        }
        assert_eq!(pace.at_once(now, None), UPLOADS_AT_ONCE_MIN);
        for _ in 0..100 {
            now += SECOND / 40;
            pace.arrived(now, 2 * P);
        }
        assert_eq!(pace.at_once(now, None), UPLOAD_SLOTS);
        // Time in which nothing was on its way does not count.
        pace.set_busy(now, false);
        now += 1000 * SECOND;
        pace.set_busy(now, true);
        assert_eq!(pace.at_once(now, None), UPLOAD_SLOTS);
        // A limit does.
        assert_eq!(pace.at_once(now, Some(5 * P)), 5);
        assert_eq!(pace.at_once(now, Some(1)), UPLOADS_AT_ONCE_MIN);
    }

    proptest! {
        #[test]
        fn what_is_taken_and_given_back_adds_up(
            ops in prop::collection::vec((0u8..3, 0u64..4, 0u8..2, 0u8..3, any::<u8>()), 1..200),
        ) {
            let kinds = [Kind::Filling, Kind::Limited, Kind::Slow];
            let mut slots = Slots::default();
            let mut held: Vec<(Body<u8>, Kind)> = Vec::new();
            for (user, session, content, kind, which) in ops {
                let (body, kind) =
                    (body(["a", "b", "c"][usize::from(user)], session, content), kinds[usize::from(kind)]);
                let which = usize::from(which);
                if which % 3 == 0 && !held.is_empty() {
                    let (body, kind) = held.swap_remove(which % held.len());
                    slots.release(&body, kind);
                } else if which % 3 == 1 && !held.is_empty() {
                    let at = which % held.len();
                    slots.change(&held[at].0, held[at].1, kind);
                    held[at].1 = kind;
                } else if slots.user_may(&body.user) && slots.request_may(&body, kind, 8) {
                    slots.take(&body, kind);
                    held.push((body, kind));
                }
                prop_assert!(held.len() < UPLOAD_SLOTS);
                prop_assert_eq!(slots.taken, held.len());
                let filling = held.iter().filter(|(_, kind)| *kind == Kind::Filling).count();
                prop_assert_eq!(slots.filling(), filling);
            }
            for (body, kind) in held {
                slots.release(&body, kind);
            }
            prop_assert!(slots.users.is_empty() && slots.sessions.is_empty());
            prop_assert!(slots.limited.is_empty() && slots.taken == 0);
        }
    }
}
