//! Whose turn it is to be sent a piece: the queue, the slots and the rate limits at work.
//!
//! A request enters, waits for its turn, and leaves; it never waits while it could be served. No
//! task of its own: whatever changes who may be served lets in those who may, at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::message::Nack;
use super::rates::Rates;
use super::serving_queue::{Full, ServingQueue};
use super::session::SwarmKey;
use super::slots::{Body, Pace, Room, Slots, Stage};
use crate::clock;

/// The uploads of an agent: those that wait and those under way.
#[derive(Debug)]
pub struct Serving {
    state: Mutex<State>,
    rates: Arc<Rates>,
    started: Instant,
}

#[derive(Debug, Default)]
struct State {
    queue: ServingQueue<SwarmKey>,
    slots: Slots<SwarmKey>,
    pace: Pace,
    requests: HashMap<u64, Request>,
    next_id: u64,
    /// Nobody is let in any more.
    going_away: bool,
}

#[derive(Debug)]
struct Request {
    body: Body<SwarmKey>,
    piece: u32,
    state: Asked,
}

#[derive(Debug)]
enum Asked {
    /// Told when its turn comes, or why it never will.
    Waits(oneshot::Sender<Result<(), Nack>>),
    /// Has a slot.
    Served(Stage),
}

impl Serving {
    /// Nobody asks yet.
    pub fn new(rates: Arc<Rates>) -> Self {
        Self { state: Mutex::default(), rates, started: clock::monotonic() }
    }

    /// Asks for a turn to be sent `len` bytes of a piece.
    ///
    /// # Errors
    /// The answer to give, when it may not wait for one.
    pub fn enter(&self, body: Body<SwarmKey>, piece: u32, len: u32) -> Result<Turn<'_>, Nack> {
        let mut state = self.lock();
        if state.going_away {
            return Err(Nack::GoingAway);
        }
        let id = state.next_id;
        state.next_id += 1;
        let (user, key) = (body.user.clone(), body.content);
        state.queue.push(id, user, key, piece, len).map_err(|Full| Nack::Busy)?;
        state.slots.wait(&body);
        let (told, answer) = oneshot::channel();
        state.requests.insert(id, Request { body, piece, state: Asked::Waits(told) });
        self.let_in(&mut state);
        Ok(Turn { serving: self, id, answer, delivered: false })
    }

    /// Lets nobody in any more; those who wait are told.
    pub fn go_away(&self) {
        let mut state = self.lock();
        state.going_away = true;
        state.turn_away(|_| true, &Nack::GoingAway);
    }

    /// A swarm is served no more: those who wait for it are told.
    pub fn forget(&self, key: SwarmKey) {
        let mut state = self.lock();
        state.turn_away(|body| body.content == key, &Nack::NoSwarm);
        state.queue.forget(key);
    }

    /// Rate limits are others now.
    pub fn limits_changed(&self) {
        self.let_in(&mut self.lock());
    }

    /// Gives slots to those whose turn it is.
    fn let_in(&self, state: &mut State) {
        let now = self.now();
        let at_once = state.pace.at_once(now);
        let limited = self.rates.limits(None).up.is_some();
        // Looked at once: what a request may and what it takes follow from the same limits.
        let own = self.rates.limited_up();
        let stage = |body: &Body<SwarmKey>| match own.contains(&body.content) {
            false => Stage::Writing,
            true => Stage::Limited,
        };
        loop {
            let State { queue, slots, requests, .. } = &mut *state;
            // Mostly there is no room, and nobody need be looked at.
            let no_room = slots.is_full() || own.is_empty() && slots.filling() >= at_once;
            if no_room && !slots.any_far() {
                break;
            }
            let room = Room { at_once, limited, contended: slots.is_contended() };
            let user_may = |user: &_| !own.is_empty() || slots.any_may(user, room);
            let granted = |body: &_| slots.stage(body, stage(body), room);
            let request_may = |id| {
                let request: Option<&Request> = requests.get(&id);
                request.is_some_and(|Request { body, .. }| granted(body).is_some())
            };
            let Some(id) = queue.pop_where(user_may, request_may) else { break };
            let Some(Request { body, state, .. }) = requests.get_mut(&id) else { continue };
            let Some(stage) = granted(body) else { continue };
            slots.wait_no_more(body);
            slots.take(body, stage);
            if let Asked::Waits(told) = std::mem::replace(state, Asked::Served(stage)) {
                // Whoever does not listen any more is about to leave.
                let _ = told.send(Ok(()));
            }
        }
        state.pace.set_busy(now, state.slots.on_the_way() > 0);
    }

    fn now(&self) -> Duration {
        clock::monotonic().duration_since(self.started)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells those of the waiting that `which` means why they wait in vain.
    fn turn_away(&mut self, which: impl Fn(&Body<SwarmKey>) -> bool, nack: &Nack) {
        let waits = |request: &Request| matches!(request.state, Asked::Waits(_));
        let gone = self.requests.extract_if(|_, request| waits(request) && which(&request.body));
        for (id, request) in gone {
            self.queue.remove(id);
            self.slots.wait_no_more(&request.body);
            if let Asked::Waits(told) = request.state {
                let _ = told.send(Err(nack.clone()));
            }
        }
    }
}

/// A request that waits or is being served; dropped, it makes room for others.
#[derive(Debug)]
pub struct Turn<'a> {
    serving: &'a Serving,
    id: u64,
    answer: oneshot::Receiver<Result<(), Nack>>,
    delivered: bool,
}

impl Turn<'_> {
    /// What was decided, if it was already.
    pub fn decided(&mut self) -> Option<Result<(), Nack>> {
        self.answer.try_recv().ok()
    }

    /// Waits until it is decided.
    ///
    /// # Errors
    /// The answer to give, when it is never served.
    pub async fn wait(&mut self) -> Result<(), Nack> {
        // The other end is dropped with an answer only.
        (&mut self.answer).await.unwrap_or(Err(Nack::Busy))
    }

    /// All its bytes were handed over: others may be written. Returns after how long it is slow.
    pub fn is_sent(&self) -> Duration {
        self.change(|stage| match stage {
            Stage::Writing => Stage::Sent,
            Stage::Limited => Stage::Aside,
            other => other,
        });
        let state = self.serving.lock();
        state.pace.slow_after(state.slots.on_the_way())
    }

    /// Its reader holds it up: it need not be waited for to serve others.
    pub fn is_slow(&self) {
        self.change(|stage| match stage {
            Stage::Far | Stage::FarSlow => Stage::FarSlow,
            _ => Stage::Slow,
        });
    }

    fn change(&self, to: impl Fn(Stage) -> Stage) {
        let mut state = self.serving.lock();
        let State { slots, requests, .. } = &mut *state;
        let request = requests.get_mut(&self.id);
        if let Some(Request { body, state: Asked::Served(stage), .. }) = request {
            slots.change(body, *stage, to(*stage));
            *stage = to(*stage);
        }
        self.serving.let_in(&mut state);
    }

    /// Its bytes arrived.
    pub fn delivered(mut self, len: u32) {
        self.delivered = true;
        self.serving.lock().pace.arrived(self.serving.now(), u64::from(len));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.serving.lock();
        let State { queue, slots, requests, .. } = &mut *state;
        // Who was turned away has left already.
        let Some(Request { body, piece, state: asked }) = requests.remove(&self.id) else { return };
        match asked {
            Asked::Waits(_) => {
                queue.remove(self.id);
                slots.wait_no_more(&body);
            }
            Asked::Served(stage) => {
                slots.release(&body, stage);
                if !self.delivered {
                    queue.not_sent(body.content, piece);
                }
            }
        }
        self.serving.let_in(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::limits::{PIECE_LEN, UPLOAD_SLOTS_PER_SESSION};
    use crate::manifest::ContentId;
    use crate::swarm::rates::RateLimits;
    use crate::swarm::slots::Depth;

    fn body(user: &str, session: u64, content: u8) -> Body<SwarmKey> {
        let content = SwarmKey { group: GroupId([1; 16]), content: ContentId([content; 32]) };
        Body { user: user.parse().expect("a name"), session, content, depth: Depth::default() }
    }

    fn serving(up: Option<u64>) -> Serving {
        Serving::new(Arc::new(Rates::new(RateLimits { up, down: None })))
    }

    /// Requests of bob on one session until one has to wait.
    fn until_one_waits(serving: &Serving) -> (Vec<Turn<'_>>, Turn<'_>) {
        let mut served = Vec::new();
        loop {
            let mut turn = serving.enter(body("bob", 1, 1), 0, PIECE_LEN).expect("room");
            match turn.decided() {
                Some(decided) => decided.expect("a slot"),
                None => return (served, turn),
            }
            served.push(turn);
        }
    }

    #[test]
    fn whoever_leaves_lets_the_next_one_in() {
        let serving = serving(None);
        let (mut served, mut waits) = until_one_waits(&serving);
        assert_eq!(served.len(), UPLOAD_SLOTS_PER_SESSION);
        let mut also = serving.enter(body("bob", 1, 1), 1, PIECE_LEN).expect("room");
        served.remove(0).delivered(PIECE_LEN);
        // A piece never sent goes first; one that waits no more is in nobody's way.
        assert_eq!((waits.decided(), also.decided()), (None, Some(Ok(()))));
        drop((waits, also));
        drop(served);
        let state = serving.lock();
        assert!(state.requests.is_empty() && state.queue.is_empty());
        assert_eq!(state.slots.filling(), 0);
        let key = body("bob", 1, 1).content;
        assert_eq!((state.queue.sent(key, 0), state.queue.sent(key, 1)), (1, 0));
    }

    #[test]
    fn those_who_wait_in_vain_are_told_why() {
        let serving = serving(None);
        let (served, mut waits) = until_one_waits(&serving);
        serving.forget(body("bob", 1, 2).content);
        assert_eq!(waits.decided(), None);
        serving.forget(body("bob", 1, 1).content);
        assert_eq!(waits.decided(), Some(Err(Nack::NoSwarm)));
        let mut waits = serving.enter(body("bob", 1, 2), 0, PIECE_LEN).expect("room");
        serving.go_away();
        assert_eq!(waits.decided(), Some(Err(Nack::GoingAway)));
        let refused = serving.enter(body("bob", 1, 2), 0, PIECE_LEN);
        assert_eq!(refused.map(|_| ()), Err(Nack::GoingAway));
        drop((served, waits));
        assert!(serving.lock().requests.is_empty());
    }

    #[test]
    fn under_a_limit_the_next_one_is_written_when_one_is_sent_or_the_limit_lifted() {
        let serving = serving(Some(1024 * 1024));
        let (served, mut waits) = until_one_waits(&serving);
        assert_eq!(served.len(), 2);
        served[0].is_sent();
        assert_eq!(waits.decided(), Some(Ok(())));
        let mut waits = serving.enter(body("bob", 1, 1), 0, PIECE_LEN).expect("room");
        assert_eq!(waits.decided(), None);
        serving.rates.set(None, RateLimits::default(), clock::monotonic());
        serving.limits_changed();
        assert_eq!(waits.decided(), Some(Ok(())));
    }
}
