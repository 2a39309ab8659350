//! How many bodies are sent at once, and whose.
//!
//! Pieces sent one after the other finish earlier than pieces sent all at once, so no more are on
//! their way than fill the link: as many as arrive within a second, by what was measured
//! ([`Pace`]). Under a rate limit, two are written at a time. Only bodies that may fill the link
//! count: not one that its reader holds up, nor one of a share with a rate limit of its own; these
//! take a slot of the [`UPLOAD_SLOTS`] alone.
//!
//! On a long fat path more is on its way than one session may take of these. Bodies that the path of their
//! connection holds besides are *far*: they have the [`FAR_SLOTS`], and count neither among those that fill
//! our own link nor among the slots of their user; of the far ones too a user holds as many as are free.
//! On a near path a few are enough: what is read and does not go out yet only drives the rest out of the
//! processor's caches.
//!
//! Connections share a link, not users: so while several users are served, each is through one
//! connection at a time and has at most half of what fills the link. And who holds slots and gives
//! none back leaves others theirs: a user may hold as many as are free besides, half of them when it
//! is alone, and a session that leaves two bodies unread gets no third.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pipe::SHORT;
use crate::limits::{
    FAR_SLOTS, LIMITED_WRITERS, PIECE_LEN, SESSION_STINT, SLOW_BODY, UPLOAD_SLOTS,
    UPLOAD_SLOTS_PER_SESSION, UPLOADS_AT_ONCE_MIN, UPLOADS_AT_ONCE_START, UPLOADS_SPAN,
};
use crate::name::UserName;

/// Busy time over which the pace is measured.
const SAMPLE: Duration = UPLOADS_SPAN;

/// No connection carries more, in bytes a second: it is what quinn comes to through loopback, from memory to memory.
const FASTEST: u128 = 4_000_000_000;

/// Unread bodies with which a session gets no more.
const MAX_SLOW: usize = 2;

/// Who is sent what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body<C> {
    /// The user it goes to.
    pub user: UserName,
    /// The session it goes through.
    pub session: u64,
    /// Of what.
    pub content: C,
    /// What the path of the session holds.
    pub depth: Depth,
}

/// How many bodies a session may have on their way, as far as its path goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Of those that may fill our link.
    pub near: usize,
    /// In all, on a long path that holds more; none on another.
    pub far: usize,
}

impl Default for Depth {
    fn default() -> Self {
        Self { near: UPLOAD_SLOTS_PER_SESSION, far: 0 }
    }
}

impl Depth {
    /// Of a path on which `window` bytes may be under way: what fills it, half of it more so that it can grow,
    /// less what would only wait in its queues, as its smoothed and its shortest round trip tell. A window that
    /// no loss ever bounded says nothing, and grows without end. A path that holds no more than half of
    /// what any session may take is no long one. On a short one another body is written while the end of
    /// those before it is acknowledged; a disk that `is_slow` is kept as busy as any session may.
    pub fn of(window: u64, (smoothed, shortest): (Duration, Duration), is_slow: bool) -> Self {
        let (micros, least) = (smoothed.as_micros().max(1), shortest.as_micros());
        let capacity = u128::from(window) * least.min(micros) / micros;
        let capacity = capacity.min(FASTEST * least / 1_000_000);
        let bodies = (capacity + capacity / 2).div_ceil(u128::from(PIECE_LEN));
        let bodies = usize::try_from(bodies).unwrap_or(usize::MAX);
        let usual = Self::default();
        // Such a path is full with what any session may take: 8 MiB in that time are 6.7 Gbit/s.
        if shortest < SHORT {
            let near = if is_slow { usual.near } else { bodies.max(1).saturating_add(1) };
            return Self { near: near.min(usual.near), ..usual };
        }
        let is_long = bodies > UPLOAD_SLOTS_PER_SESSION / 2;
        Self { far: if is_long { bodies } else { 0 }, ..usual }
    }
}

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bodies that fill the link.
    pub at_once: usize,
    /// Whether there is a rate limit on everything.
    pub limited: bool,
    /// Whether several users are served or wait; see [`Slots::is_contended`].
    pub contended: bool,
}

/// How far a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is handed to QUIC, as fast as the rate limits let it.
    Writing,
    /// The same, under a rate limit of its share's own.
    Limited,
    /// All of it was handed over; it is on its way.
    Sent,
    /// It is held up by its reader, or is on its way for long, or under a limit of its share's own:
    /// it does not fill the link.
    Aside,
    /// The same, and so for long.
    Slow,
    /// It is written or on its way through a long path.
    Far,
    /// It is held up by its reader, or is on its way through a long path for long.
    FarSlow,
}

/// Slots taken, and by whom they are awaited.
#[derive(Clone, Debug)]
pub struct Slots<C> {
    taken: usize,
    far: usize,
    filling: usize,
    /// Those that fill the link, and those that are far and on their way as they should be.
    on_the_way: usize,
    writing: usize,
    users: BTreeMap<UserName, Held>,
    limited: BTreeMap<C, usize>,
}

/// What one user holds and waits for.
#[derive(Clone, Debug, Default)]
struct Held {
    sessions: BTreeMap<u64, Tally>,
    /// Bodies taken for one session after the other.
    stint: (u64, u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    waiting: usize,
    writing: usize,
    limited: usize,
    sent: usize,
    aside: usize,
    slow: usize,
    far: usize,
    far_slow: usize,
    /// What its path holds, as far as was known when the last one was asked for.
    depth: Depth,
}

impl Tally {
    fn held(self) -> usize {
        self.writing + self.limited + self.sent + self.aside + self.slow
    }

    fn held_far(self) -> usize {
        self.far + self.far_slow
    }

    fn is_idle(self) -> bool {
        self.waiting + self.held() + self.held_far() == 0
    }

    /// Whether the session may have one more, as far as what it holds goes.
    fn may_more(self) -> bool {
        self.held() < UPLOAD_SLOTS_PER_SESSION && self.reads()
    }

    /// The same for one that is far.
    fn may_more_far(self) -> bool {
        self.busy() < self.depth.far && self.reads()
    }

    fn reads(self) -> bool {
        self.slow + self.far_slow < MAX_SLOW
    }

    fn filling(self) -> usize {
        self.writing + self.sent
    }

    /// Bodies that are on their way as they should be.
    fn busy(self) -> usize {
        self.filling() + self.far
    }

    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Writing => &mut self.writing,
            Stage::Limited => &mut self.limited,
            Stage::Sent => &mut self.sent,
            Stage::Aside => &mut self.aside,
            Stage::Slow => &mut self.slow,
            Stage::Far => &mut self.far,
            Stage::FarSlow => &mut self.far_slow,
        }
    }
}

impl Held {
    fn sum(&self, of: impl Fn(Tally) -> usize) -> usize {
        self.sessions.values().map(|tally| of(*tally)).sum()
    }

    /// Whether a session may go on while others of the same user wait: it is the one that is
    /// served, and not for too long.
    fn is_turn_of(&self, session: u64) -> bool {
        let others = self.sessions.iter().filter(|(other, _)| **other != session);
        let (mut served, mut wait) = (false, false);
        for (_, tally) in others {
            served |= tally.busy() > 0;
            wait |= tally.waiting > 0;
        }
        let own = self.sessions.get(&session).copied().unwrap_or_default();
        let long = self.stint.0 == session && self.stint.1 >= SESSION_STINT;
        !served && (own.busy() == 0 || !wait || !long)
    }
}

impl<C> Default for Slots<C> {
    fn default() -> Self {
        let (users, limited) = (BTreeMap::new(), BTreeMap::new());
        Self { taken: 0, far: 0, filling: 0, on_the_way: 0, writing: 0, users, limited }
    }
}

impl<C: Copy + Ord> Slots<C> {
    /// A request waits for a slot.
    pub fn wait(&mut self, body: &Body<C>) {
        self.tally(body, |tally| {
            tally.waiting += 1;
            tally.depth = body.depth;
        });
    }

    /// One that waited does not any more.
    pub fn wait_no_more(&mut self, body: &Body<C>) {
        self.tally(body, |tally| tally.waiting = tally.waiting.saturating_sub(1));
    }

    /// Whether more than one user waits or fills the link.
    pub fn is_contended(&self) -> bool {
        let busy = |held: &&Held| held.sum(|tally| tally.waiting + tally.busy()) > 0;
        self.users.values().filter(busy).count() > 1
    }

    /// Whether a user may have another slot that is not far.
    pub fn user_may(&self, user: &UserName) -> bool {
        let held = self.users.get(user).map_or(0, |held| held.sum(Tally::held));
        held < UPLOAD_SLOTS - self.taken
    }

    /// Whether all slots are taken but those of far bodies.
    pub fn is_full(&self) -> bool {
        self.taken >= UPLOAD_SLOTS
    }

    /// Whether a session that waits has a path which holds more.
    pub fn any_far(&self) -> bool {
        let mut sessions = self.users.values().flat_map(|held| held.sessions.values());
        self.far < FAR_SLOTS && sessions.any(|tally| tally.waiting > 0 && tally.may_more_far())
    }

    /// Whether any session of a user that waits may have a body [`Stage::Writing`] or [`Stage::Far`].
    pub fn any_may(&self, user: &UserName, room: Room) -> bool {
        let sessions = self.users.get(user).map(|held| &held.sessions).into_iter().flatten();
        let mut waiting = sessions.filter(|(_, tally)| tally.waiting > 0);
        waiting.any(|(session, _)| self.session_stage(user, *session, room).is_some())
    }

    /// What a request's body is if it gets a slot now: `stage`, which is [`Stage::Writing`] or
    /// [`Stage::Limited`], or [`Stage::Far`] instead of the first; nothing when it gets none.
    pub fn stage(&self, body: &Body<C>, stage: Stage, room: Room) -> Option<Stage> {
        if stage == Stage::Writing {
            return self.session_stage(&body.user, body.session, room);
        }
        let (held, session) = self.held(&body.user, body.session);
        let of_share = self.limited.get(&body.content).copied().unwrap_or(0);
        let own = held.map_or(0, |held| held.sum(|tally| tally.limited));
        let may = self.user_may(&body.user)
            && session.may_more()
            && of_share < LIMITED_WRITERS
            && !(room.contended && own > 0);
        may.then_some(stage)
    }

    fn session_stage(&self, user: &UserName, session: u64, room: Room) -> Option<Stage> {
        if self.session_may(user, session, room) {
            return Some(Stage::Writing);
        }
        let (held, tally) = self.held(user, session);
        let held_far = held.map_or(0, |held| held.sum(Tally::held_far));
        let turn = !room.contended || held.is_none_or(|held| held.is_turn_of(session));
        let may = !room.limited
            && turn
            && tally.may_more_far()
            && held_far < FAR_SLOTS.saturating_sub(self.far);
        may.then_some(Stage::Far)
    }

    fn session_may(&self, user: &UserName, session: u64, room: Room) -> bool {
        let (held, tally) = self.held(user, session);
        let sum = |of: fn(Tally) -> usize| held.map_or(0, |held| held.sum(of));
        let fills = tally.filling() >= tally.depth.near;
        if fills || !tally.may_more() || !self.user_may(user) {
            return false;
        }
        if room.limited {
            let own = sum(|tally| tally.writing);
            if self.writing >= LIMITED_WRITERS || room.contended && own > 0 {
                return false;
            }
        }
        let (least, turn) = match room.contended {
            true => (1, held.is_none_or(|held| held.is_turn_of(session))),
            false => (UPLOADS_AT_ONCE_MIN - 1, true),
        };
        let most = least.max(room.at_once / 2);
        turn && self.filling < room.at_once && sum(Tally::filling) < most
    }

    fn held(&self, user: &UserName, session: u64) -> (Option<&Held>, Tally) {
        let held = self.users.get(user);
        let tally = held.and_then(|held| held.sessions.get(&session)).copied();
        (held, tally.unwrap_or_default())
    }

    /// Takes one.
    pub fn take(&mut self, body: &Body<C>, stage: Stage) {
        self.count(body, stage, 1);
        if let Some(held) = self.users.get_mut(&body.user) {
            let (session, count) = held.stint;
            let count = if session == body.session { count.saturating_add(1) } else { 1 };
            held.stint = (body.session, count);
        }
    }

    /// A body is further, or back.
    pub fn change(&mut self, body: &Body<C>, from: Stage, to: Stage) {
        self.count(body, to, 1);
        self.count(body, from, -1);
    }

    /// Gives one back.
    pub fn release(&mut self, body: &Body<C>, stage: Stage) {
        self.count(body, stage, -1);
        if let Some(held) = self.users.get_mut(&body.user)
            && held.sum(Tally::busy) == 0
        {
            // Whoever is first may be next.
            held.stint = Default::default();
        }
    }

    /// Bodies that may fill the link.
    pub fn filling(&self) -> usize {
        self.filling
    }

    /// Bodies that may fill the link, and those on long paths.
    pub fn on_the_way(&self) -> usize {
        self.on_the_way
    }

    fn count(&mut self, body: &Body<C>, stage: Stage, by: isize) {
        self.tally(body, |tally| {
            let count = tally.of(stage);
            *count = count.saturating_add_signed(by);
        });
        let pool = if matches!(stage, Stage::Far | Stage::FarSlow) {
            &mut self.far
        } else {
            &mut self.taken
        };
        *pool = pool.saturating_add_signed(by);
        match stage {
            Stage::Writing => self.writing = self.writing.saturating_add_signed(by),
            Stage::Limited => {
                let count = self.limited.entry(body.content).or_default();
                *count = count.saturating_add_signed(by);
                if *count == 0 {
                    self.limited.remove(&body.content);
                }
            }
            Stage::Sent | Stage::Aside | Stage::Slow | Stage::Far | Stage::FarSlow => {}
        }
        if matches!(stage, Stage::Writing | Stage::Sent) {
            self.filling = self.filling.saturating_add_signed(by);
        }
        if matches!(stage, Stage::Writing | Stage::Sent | Stage::Far) {
            self.on_the_way = self.on_the_way.saturating_add_signed(by);
        }
    }

    fn tally(&mut self, body: &Body<C>, change: impl Fn(&mut Tally)) {
        let held = self.users.entry(body.user.clone()).or_default();
        let tally = held.sessions.entry(body.session).or_default();
        change(tally);
        if tally.is_idle() {
            held.sessions.remove(&body.session);
        }
        if held.sessions.is_empty() {
            self.users.remove(&body.user);
        }
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

    /// How many bodies are to be on their way at once.
    pub fn at_once(&mut self, now: Duration) -> usize {
        self.look(now);
        if self.busy >= 2 * SAMPLE {
            // Nothing arrives.
            self.learn();
        }
        let bytes = self.bytes_per_sec.saturating_mul(UPLOADS_SPAN.as_secs());
        let bodies = usize::try_from(bytes / u64::from(PIECE_LEN)).unwrap_or(usize::MAX);
        bodies.clamp(UPLOADS_AT_ONCE_MIN, UPLOAD_SLOTS)
    }

    /// How long after it was sent a body is slow, when so many fill the link.
    pub fn slow_after(&self, filling: usize) -> Duration {
        let bytes = filling as u64 * u64::from(PIECE_LEN);
        let millis = bytes.saturating_mul(1_000) / self.bytes_per_sec.max(1);
        let (least, most) = SLOW_BODY;
        Duration::from_millis(millis.saturating_mul(3)).clamp(least, most)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(user: &str, session: u64, content: u8) -> Body<u8> {
        Body { user: user.parse().expect("a name"), session, content, depth: Depth::default() }
    }

    fn room(at_once: usize, contended: bool) -> Room {
        Room { at_once, limited: false, contended }
    }

    /// Takes one if it may.
    fn take(slots: &mut Slots<u8>, body: &Body<u8>, stage: Stage, room: Room) -> bool {
        let granted = slots.stage(body, stage, room);
        granted.into_iter().for_each(|stage| slots.take(body, stage));
        granted == Some(stage)
    }

    /// Takes slots for a user's devices until there is none for it.
    fn take_all(slots: &mut Slots<u8>, user: &str, devices: std::ops::Range<u64>) -> usize {
        let bodies = devices.map(|session| body(user, session, 0));
        let all = room(UPLOAD_SLOTS, false);
        bodies
            .map(|body| {
                std::iter::repeat_with(|| take(slots, &body, Stage::Writing, all))
                    .take_while(|taken| *taken)
                    .count()
            })
            .sum()
    }

    #[test]
    fn who_gives_no_slot_back_leaves_others_theirs() {
        let mut slots = Slots::default();
        // One device a quarter, one user half of all, and each further one less.
        assert_eq!(take_all(&mut slots, "eve", 0..1), 16);
        assert_eq!(take_all(&mut slots, "eve", 1..9), 16);
        assert_eq!(take_all(&mut slots, "mallory", 10..19), 16);
        assert_eq!(take_all(&mut slots, "oscar", 20..29), 8);
        assert!(slots.user_may(&body("bob", 1, 0).user));
        assert_eq!(slots.filling(), 56);
    }

    #[test]
    fn a_session_that_leaves_bodies_unread_gets_no_more_until_it_reads() {
        let mut slots = Slots::default();
        let (eve, bob) = (body("eve", 1, 0), body("bob", 2, 0));
        for _ in 0..MAX_SLOW {
            assert!(take(&mut slots, &eve, Stage::Writing, room(2, false)));
            slots.change(&eve, Stage::Writing, Stage::Slow);
        }
        assert!(!take(&mut slots, &eve, Stage::Writing, room(2, false)));
        assert!(take(&mut slots, &body("eve", 3, 0), Stage::Writing, room(2, false)));
        assert!(take(&mut slots, &bob, Stage::Writing, room(2, true)));
        slots.release(&eve, Stage::Slow);
        slots.release(&bob, Stage::Writing);
        assert!(take(&mut slots, &eve, Stage::Writing, room(2, false)));
    }

    #[test]
    fn users_who_compete_are_served_through_one_connection_each() {
        let mut slots = Slots::default();
        let (first, second) = (body("eve", 1, 0), body("eve", 2, 0));
        let bob = body("bob", 3, 0);
        assert!(!slots.is_contended());
        for body in [&first, &second, &bob] {
            slots.wait(body);
        }
        assert!(slots.is_contended());
        let both = room(64, true);
        let granted = (0..20).filter(|_| take(&mut slots, &first, Stage::Writing, both)).count();
        // The other device's turn comes once this one has had enough and is done.
        assert_eq!(granted, SESSION_STINT as usize);
        assert!(!take(&mut slots, &second, Stage::Writing, both));
        for _ in 0..granted {
            assert!(!take(&mut slots, &second, Stage::Writing, both));
            slots.release(&first, Stage::Writing);
        }
        assert!(take(&mut slots, &second, Stage::Writing, both));
        assert!(take(&mut slots, &bob, Stage::Writing, both));
        // Nobody has more than half of a slow link, and somebody alone has all.
        let mut slots = Slots::default();
        assert!(take(&mut slots, &first, Stage::Writing, room(2, true)));
        assert!(!take(&mut slots, &first, Stage::Writing, room(2, true)));
        assert!(take(&mut slots, &second, Stage::Writing, room(2, false)));
        slots.release(&first, Stage::Writing);
        slots.release(&second, Stage::Writing);
        assert!(slots.users.is_empty());
    }

    #[test]
    fn under_a_limit_two_are_written_at_a_time_by_different_users_if_they_compete() {
        let mut slots = Slots::default();
        let (eve, bob) = (body("eve", 1, 0), body("bob", 3, 0));
        let limited = |contended| Room { at_once: 64, limited: true, contended };
        assert!(take(&mut slots, &eve, Stage::Writing, limited(false)));
        assert!(!take(&mut slots, &eve, Stage::Writing, limited(true)));
        assert!(take(&mut slots, &eve, Stage::Writing, limited(false)));
        assert!(!take(&mut slots, &bob, Stage::Writing, limited(true)));
        slots.change(&eve, Stage::Writing, Stage::Sent);
        assert!(take(&mut slots, &bob, Stage::Writing, limited(true)));
    }

    /// A session whose path holds so many bodies takes what it gets; how many of these are far.
    fn take_all_far(slots: &mut Slots<u8>, user: &str, session: u64, far: usize) -> (usize, usize) {
        let depth = Depth { far, ..Depth::default() };
        let body = Body { depth, ..body(user, session, 0) };
        let all = room(UPLOAD_SLOTS, false);
        slots.wait(&body);
        let mut taken = (0, 0);
        while let Some(stage) = slots.stage(&body, Stage::Writing, all) {
            slots.take(&body, stage);
            if stage == Stage::Far { taken.1 += 1 } else { taken.0 += 1 }
        }
        taken
    }

    #[test]
    fn a_long_fat_path_is_filled_besides() {
        let mut slots = Slots::default();
        // 1 Gbit/s at 200 ms holds 48 bodies, and half of that more.
        let ms = Duration::from_millis;
        let holds = |bytes| Depth::of(bytes, (ms(200), ms(200)), false).far;
        let depth = holds(25_000_000);
        assert_eq!((depth, holds(2_800_000), holds(2_600_000)), (72, 9, 0));
        // What waits in a queue fills nothing, and nothing that is near is long.
        assert_eq!(Depth::of(50_000_000, (ms(400), ms(200)), true).far, depth);
        assert_eq!(Depth::of(50_000_000, (ms(9), ms(9)), false), Depth::default());
        assert_eq!(take_all_far(&mut slots, "eve", 1, depth), (16, 56));
        assert_eq!((slots.filling(), slots.on_the_way(), slots.any_far()), (16, 72, false));
        // Whoever is near finds all that was there before.
        assert_eq!(take_all(&mut slots, "bob", 2..3), 16);
        // Of the rest a user gets as many as are free besides, whatever its path holds.
        assert_eq!(take_all_far(&mut slots, "mallory", 3, usize::MAX), (16, 36));
        assert_eq!(take_all_far(&mut slots, "mallory", 4, usize::MAX), (0, 0));
        assert_eq!(take_all_far(&mut slots, "oscar", 5, depth), (8, 18));
    }

    #[test]
    fn on_a_near_path_no_more_go_out_at_once_than_fill_it() {
        let us = Duration::from_micros;
        let near = |bytes, times| Depth::of(bytes, times, false).near;
        // Loopback, whose window holds what waits for the other process, or grows without end.
        assert_eq!(near(4_000_000, (us(2_000), us(100))), 2);
        assert_eq!(near(900_000_000, (us(900), us(40))), 2);
        assert_eq!(near(u64::MAX, (us(0), us(0))), 2);
        // A first datagram; 10 Gbit/s at 1 ms, and at 5 ms.
        assert_eq!(near(36_000, (us(100), us(100))), 2);
        assert_eq!(near(1_250_000, (us(1_000), us(1_000))), 5);
        assert_eq!(near(6_250_000, (us(5_000), us(5_000))), 16);
        assert_eq!(Depth::of(36_000, (us(100), us(100)), true), Depth::default());
        let depth = Depth { near: 3, far: 0 };
        let eve = Body { depth, ..body("eve", 1, 0) };
        let mut slots = Slots::default();
        let all = room(UPLOAD_SLOTS, false);
        slots.wait(&eve);
        let granted = (0..9).filter(|_| take(&mut slots, &eve, Stage::Writing, all)).count();
        assert_eq!(granted, 3);
        // Whoever holds them up, or has them under a limit of their own, keeps nobody waiting.
        assert!(take(&mut slots, &eve, Stage::Limited, all));
        assert!(!take(&mut slots, &eve, Stage::Writing, all));
        slots.change(&eve, Stage::Writing, Stage::Slow);
        assert!(take(&mut slots, &eve, Stage::Writing, all));
    }

    #[test]
    fn far_bodies_that_nobody_reads_take_nothing_from_those_who_are_near() {
        let mut slots = Slots::default();
        let depth = Depth { far: 1_000, ..Depth::default() };
        let eve = Body { depth, ..body("eve", 1, 0) };
        assert_eq!(take_all_far(&mut slots, "eve", 1, 1_000), (16, 64));
        for _ in 0..64 {
            slots.change(&eve, Stage::Far, Stage::FarSlow);
        }
        for _ in 0..16 {
            slots.change(&eve, Stage::Writing, Stage::Slow);
        }
        assert_eq!((slots.filling(), slots.on_the_way()), (0, 0));
        assert_eq!(slots.stage(&eve, Stage::Writing, room(64, false)), None);
        assert_eq!(take_all(&mut slots, "bob", 2..3), 16);
        assert_eq!(take_all_far(&mut slots, "bob", 3, 72), (8, 32));
    }

    #[test]
    fn far_bodies_keep_to_one_connection_of_a_user_and_to_rate_limits() {
        let mut slots = Slots::default();
        let depth = Depth { far: 40, ..Depth::default() };
        let first = Body { depth, ..body("eve", 1, 0) };
        let second = Body { depth, ..body("eve", 2, 0) };
        let bob = body("bob", 3, 0);
        for body in [&first, &second, &bob] {
            slots.wait(body);
        }
        let both = room(2, true);
        let stages = [(); 3].map(|()| {
            let stage = slots.stage(&first, Stage::Writing, both);
            stage.into_iter().for_each(|stage| slots.take(&first, stage));
            stage
        });
        assert_eq!(stages, [Some(Stage::Writing), Some(Stage::Far), Some(Stage::Far)]);
        assert_eq!(slots.stage(&second, Stage::Writing, both), None);
        assert_eq!(slots.stage(&bob, Stage::Writing, both), Some(Stage::Writing));
        let limited = Room { at_once: 64, limited: true, contended: false };
        assert_eq!(slots.stage(&first, Stage::Writing, limited), Some(Stage::Writing));
        slots.take(&first, Stage::Writing);
        assert_eq!(slots.stage(&first, Stage::Writing, limited), None);
    }

    #[test]
    fn a_share_with_a_limit_of_its_own_keeps_nobody_from_the_link() {
        let mut slots = Slots::default();
        let (slow, fast) = (body("bob", 1, 7), body("bob", 1, 8));
        let room = room(2, false);
        assert!(take(&mut slots, &slow, Stage::Limited, room));
        assert!(take(&mut slots, &slow, Stage::Limited, room));
        assert!(!take(&mut slots, &slow, Stage::Limited, room));
        assert!(take(&mut slots, &fast, Stage::Writing, room));
        slots.change(&slow, Stage::Limited, Stage::Aside);
        assert!(take(&mut slots, &slow, Stage::Limited, room));
        assert_eq!(slots.filling(), 1);
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
            at_once = pace.at_once(now);
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
        assert_eq!(on_a_link(1_000_000, ms(40), 120), UPLOADS_AT_ONCE_MIN);
        assert!((20..=40).contains(&on_a_link(12_500_000, ms(40), 60)));
        assert_eq!(on_a_link(125_000_000, ms(200), 5), UPLOAD_SLOTS);
        assert_eq!(on_a_link(1_000_000_000, ms(1), 2), UPLOAD_SLOTS);
        assert_eq!(Pace::default().at_once(SECOND), UPLOADS_AT_ONCE_START);
    }

    #[test]
    fn a_pace_that_fell_while_nobody_read_comes_back_within_seconds() {
        let mut pace = Pace::default();
        pace.set_busy(Duration::ZERO, true);
        let mut now = Duration::ZERO;
        for _ in 0..20 {
            now += 2 * SECOND;
            pace.at_once(now);
        }
        assert_eq!(pace.at_once(now), UPLOADS_AT_ONCE_MIN);
        assert_eq!(pace.slow_after(3), SLOW_BODY.1);
        for _ in 0..100 {
            now += SECOND / 40;
            pace.arrived(now, 2 * P);
        }
        assert_eq!(pace.at_once(now), UPLOAD_SLOTS);
        assert_eq!(pace.slow_after(UPLOAD_SLOTS), SLOW_BODY.0);
        // Time in which nothing was on its way does not count.
        pace.set_busy(now, false);
        now += 1000 * SECOND;
        pace.set_busy(now, true);
        assert_eq!(pace.at_once(now), UPLOAD_SLOTS);
    }

    proptest! {
        #[test]
        fn what_is_taken_and_given_back_adds_up(
            ops in prop::collection::vec((0u8..3, 0u64..4, 0u8..2, 0usize..7, any::<u8>()), 1..200),
        ) {
            let stages = [
                Stage::Writing,
                Stage::Limited,
                Stage::Sent,
                Stage::Aside,
                Stage::Slow,
                Stage::Far,
                Stage::FarSlow,
            ];
            let mut slots = Slots::default();
            let mut held: Vec<(Body<u8>, Stage)> = Vec::new();
            for (user, session, content, stage, which) in ops {
                let mut body = body(["a", "b", "c"][usize::from(user)], session, content);
                let which = usize::from(which);
                body.depth = Depth { near: 1 + which % 16, far: which % 20 };
                let room =
                    Room { at_once: 8, limited: which % 2 == 0, contended: slots.is_contended() };
                if which % 3 == 0 && !held.is_empty() {
                    let (body, stage) = held.swap_remove(which % held.len());
                    slots.release(&body, stage);
                } else if which % 3 == 1 && !held.is_empty() {
                    let at = which % held.len();
                    let to = match held[at].1 {
                        Stage::Far | Stage::FarSlow => stages[5 + stage % 2],
                        _ => stages[stage % 5],
                    };
                    slots.change(&held[at].0, held[at].1, to);
                    held[at].1 = to;
                } else {
                    slots.wait(&body);
                    if let Some(stage) = slots.stage(&body, stages[stage % 2], room) {
                        slots.take(&body, stage);
                        held.push((body.clone(), stage));
                    }
                    slots.wait_no_more(&body);
                }
                let is_far = |(_, stage): &&(_, Stage)| matches!(stage, Stage::Far | Stage::FarSlow);
                let far = held.iter().filter(is_far).count();
                prop_assert!(held.len() - far < UPLOAD_SLOTS && far < FAR_SLOTS);
                prop_assert_eq!((slots.taken, slots.far), (held.len() - far, far));
                let fills = |stage| matches!(stage, Stage::Writing | Stage::Sent);
                prop_assert_eq!(slots.filling(), held.iter().filter(|(_, s)| fills(*s)).count());
            }
            for (body, stage) in held {
                slots.release(&body, stage);
            }
            prop_assert!(slots.users.is_empty() && slots.limited.is_empty());
            prop_assert_eq!((slots.taken, slots.far, slots.on_the_way), (0, 0, 0));
            prop_assert_eq!((slots.filling, slots.writing), (0, 0));
        }
    }
}
