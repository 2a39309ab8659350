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
        let stage = |body: &Body<SwarmKey>| match self.rates.limits(Some(body.content)).up {
            None => Stage::Writing,
            Some(_) => Stage::Limited,
        };
        loop {
            let State { queue, slots, requests, .. } = &mut *state;
            let room = Room { at_once, limited, contended: slots.is_contended() };
            let user_may = |user: &_| slots.user_may(user);
            let request_may = |id| {
                let request: Option<&Request> = requests.get(&id);
                request
                    .is_some_and(|Request { body, .. }| slots.request_may(body, stage(body), room))
            };
            let Some(id) = queue.pop_where(user_may, request_may) else { break };
            let Some(Request { body, state, .. }) = requests.get_mut(&id) else { continue };
            slots.wait_no_more(body);
            slots.take(body, stage(body));
            if let Asked::Waits(told) = std::mem::replace(state, Asked::Served(stage(body))) {
                // Whoever does not listen any more is about to leave.
                let _ = told.send(Ok(()));
            }
        }
        state.pace.set_busy(now, state.slots.filling() > 0);
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

    /// All its bytes were handed over: others may be written.
    pub fn is_sent(&self) {
        self.change(|stage| match stage {
            Stage::Writing => Stage::Sent,
            Stage::Limited => Stage::Aside,
            other => other,
        });
    }

    /// Its reader holds it up: it need not be waited for to serve others.
    pub fn is_slow(&self) {
        self.change(|_| Stage::Slow);
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
