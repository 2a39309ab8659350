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
use super::slots::{Body, Kind, Pace, Slots, at_once};
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
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Told when its turn comes, or why it never will.
    Waiting(oneshot::Sender<Result<(), Nack>>),
    /// Has a slot.
    Sending(Kind),
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
        let (told, answer) = oneshot::channel();
        state.requests.insert(id, Request { body, piece, stage: Stage::Waiting(told) });
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
        let of_all = self.rates.limits(None).up;
        let most = state.pace.at_once(now, of_all);
        loop {
            let State { queue, slots, requests, .. } = &mut *state;
            let user_may = |user: &_| slots.user_may(user);
            let request_may = |id| {
                let Some(Request { body, .. }) = requests.get(&id) else { return false };
                match self.rates.limits(Some(body.content)).up {
                    None => slots.request_may(body, Kind::Filling, most),
                    Some(limit) => slots.request_may(body, Kind::Limited, at_once(limit).min(most)),
                }
            };
            let Some(id) = queue.pop_where(user_may, request_may) else { break };
            let Some(request) = requests.get_mut(&id) else { continue };
            let limited = self.rates.limits(Some(request.body.content)).up.is_some();
            let kind = if limited { Kind::Limited } else { Kind::Filling };
            slots.take(&request.body, kind);
            if let Stage::Waiting(told) =
                std::mem::replace(&mut request.stage, Stage::Sending(kind))
            {
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
        let waits = |request: &Request| matches!(request.stage, Stage::Waiting(_));
        let gone = self.requests.extract_if(|_, request| waits(request) && which(&request.body));
        for (id, request) in gone {
            self.queue.remove(id);
            if let Stage::Waiting(told) = request.stage {
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

    /// Its bytes were sent and are not acknowledged: it need not be waited for to serve others.
    pub fn is_slow(&self) {
        let mut state = self.serving.lock();
        let State { slots, requests, .. } = &mut *state;
        if let Some(Request { body, stage: Stage::Sending(kind), .. }) = requests.get_mut(&self.id)
        {
            slots.change(body, *kind, Kind::Slow);
            *kind = Kind::Slow;
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
        let Some(Request { body, piece, stage }) = requests.remove(&self.id) else { return };
        match stage {
            Stage::Waiting(_) => {
                queue.remove(self.id);
            }
            Stage::Sending(kind) => {
                slots.release(&body, kind);
                if !self.delivered {
                    queue.not_sent(body.content, piece);
                }
                self.serving.let_in(&mut state);
            }
        }
    }
}
