//! The warm connections of an agent: one task a tracker, which dials it, logs in by key, hears what
//! it says, and dials it again.
//!
//! Which of them is in use is for [`super::failover`] to say; requests are sent by
//! [`super::line`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::failover::{Fleet, Login, Named, Number};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::id::OpId;
use crate::limits;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::swarm::registry::Registry;
use crate::tracker::greeting::Hello;
use crate::tracker::message::{Reply, Request};
use crate::tracker::push::Push;
use crate::tracker::refusal::Refusal;
use crate::tracker::stub::{CallError, ConnectError, PushQueue, TrackerConnection};
use crate::tracker_link::TrackerLink;
use crate::transport::endpoint::{DialError, Endpoint};

/// A login that is not known yet is asked for again after the first of these, twice as long each
/// time up to the second.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the agent hears from its trackers.
#[derive(Debug)]
pub enum LineEvent {
    /// A tracker pushed something.
    Push {
        /// Which tracker.
        tracker: PeerId,
        /// On which connection.
        number: Number,
        /// What.
        push: Push,
    },
    /// A connection acts for the user now: what this device holds is to be announced on it.
    LoggedIn {
        /// Which.
        number: Number,
    },
    /// No tracker knows this device any more; the user must log in again.
    LoggedOut {
        /// Who was logged in.
        user: UserName,
    },
    /// The account has another name now.
    Renamed {
        /// The name so far.
        from: UserName,
        /// The name now.
        user: UserName,
    },
}

/// A tracker and where it is.
pub type Place = (PeerId, Vec<TrackerLink>);

/// A tracker that was not reached.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) reason: String,
    /// Whether somebody else answered in its place.
    pub(super) stranger: bool,
}

/// The task of one tracker.
#[derive(Debug)]
struct Keeper {
    links: Vec<TrackerLink>,
    /// Cancelled when the tracker is none any more.
    gone: CancellationToken,
    /// Dial now.
    nudge: Arc<Notify>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) fleet: Fleet,
    pub(super) connections: HashMap<Number, Arc<TrackerConnection>>,
    pub(super) missed: HashMap<PeerId, Missed>,
    /// Whom connections log in as.
    pub(super) user: Option<UserName>,
    /// A logout is under way: being signed out is no news.
    pub(super) leaving: bool,
    /// The connection in use when it was last looked at.
    chosen: Option<Number>,
    /// Since when it is in use.
    pub(super) in_use_since: Duration,
    /// The op of the latest change this agent made.
    pub(super) last_write: Option<OpId>,
    keepers: HashMap<PeerId, Keeper>,
    order: Vec<PeerId>,
    roster: Option<Blake3Hash>,
    last_number: Number,
    /// Connections up to this one were left with the login, except the second.
    left: (Number, Option<Number>),
}

/// The connections and what is known of them.
#[derive(Debug)]
pub struct Warm {
    endpoint: Endpoint,
    registry: Arc<Registry>,
    /// The same on all connections of this run, and higher than those of earlier runs.
    session: u64,
    begun: Instant,
    state: Mutex<State>,
    /// Changes whenever the state does.
    changed: watch::Sender<u64>,
    events: mpsc::Sender<LineEvent>,
    pub(super) tasks: TaskTracker,
    stop: CancellationToken,
}

impl Warm {
    /// Begins to dial `places`; `events` hears of everything unasked.
    pub(super) fn start(
        endpoint: Endpoint,
        registry: Arc<Registry>,
        user: Option<UserName>,
        events: mpsc::Sender<LineEvent>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let state = State {
            fleet: Fleet::new(Vec::new(), user.is_some()),
            connections: HashMap::new(),
            missed: HashMap::new(),
            user,
            leaving: false,
            chosen: None,
            in_use_since: Duration::ZERO,
            last_write: None,
            keepers: HashMap::new(),
            order: Vec::new(),
            roster: None,
            last_number: 0,
            left: (0, None),
        };
        Arc::new(Self {
            endpoint,
            registry,
            session: clock::now().0,
            begun: clock::monotonic(),
            state: Mutex::new(state),
            changed: watch::channel(0).0,
            events,
            tasks,
            stop: CancellationToken::new(),
        })
    }

    /// The trackers are these now, in this order; `roster` is the hash of what says so.
    pub(super) fn set_places(self: &Arc<Self>, places: Vec<Place>, roster: Option<Blake3Hash>) {
        let mut new = Vec::new();
        self.update(|state| {
            state.roster = roster;
            state.order = places.iter().map(|(id, _)| *id).collect();
            let order = state.order.clone();
            state.keepers.retain(|id, keeper| {
                let stays = order.contains(id);
                if !stays {
                    keeper.gone.cancel();
                }
                stays
            });
            state.missed.retain(|id, _| order.contains(id));
            state.fleet.set_order(order);
            for (id, links) in places {
                if let Some(keeper) = state.keepers.get_mut(&id) {
                    keeper.links = links;
                    continue;
                }
                let (gone, nudge) = (self.stop.child_token(), Arc::new(Notify::new()));
                new.push((id, gone.clone(), nudge.clone()));
                state.keepers.insert(id, Keeper { links, gone, nudge });
            }
        });
        for (id, gone, nudge) in new {
            self.tasks.spawn(self.clone().keep(id, gone, nudge));
        }
    }

    /// The trackers, in order, each with its first address.
    pub(super) fn places(&self) -> Vec<(PeerId, TrackerLink)> {
        let state = self.lock();
        let first = |id: &PeerId| Some((*id, state.keepers.get(id)?.links.first()?.clone()));
        state.order.iter().filter_map(first).collect()
    }

    /// Time since the agent began.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of changes of the state.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes the state; whoever waits for a change hears of it.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        self.settle(&mut state);
        drop(state);
        self.changed.send_modify(|version| *version += 1);
        result
    }

    /// Chooses the connection in use anew where time alone may have changed it.
    pub(super) fn refresh(&self) {
        let mut state = self.lock();
        let before = state.fleet.in_use();
        self.settle(&mut state);
        let changed = state.fleet.in_use() != before;
        drop(state);
        if changed {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Tickets go by the clock of the tracker in use.
    fn settle(&self, state: &mut State) {
        let (before, now) = (state.chosen, self.now());
        state.fleet.settle(now);
        state.chosen = state.fleet.in_use();
        if state.chosen != before
            && let Some(tracker) = state.chosen.and_then(|number| state.connections.get(&number))
        {
            state.in_use_since = now;
            self.registry.tracker_reached(tracker.clock_offset());
        }
    }

    /// Every tracker that is not connected is dialled now.
    pub(super) fn nudge(&self) {
        let state = self.lock();
        for (id, keeper) in &state.keepers {
            if state.fleet.connection(*id).is_none() {
                keeper.nudge.notify_one();
            }
        }
    }

    /// Nobody is logged in any more: all connections are begun anew but `kept`, on which the
    /// tracker knows it. What comes on them still is not heard.
    pub(super) fn leave(&self, kept: Option<Number>) {
        self.update(|state| {
            state.user = None;
            state.leaving = false;
            state.left = (state.last_number, kept);
            state.fleet.logged_out();
            let others: Vec<_> =
                state.connections.keys().copied().filter(|n| Some(*n) != kept).collect();
            for number in others {
                Self::close(state, number, ErrorCode::Done);
            }
        });
    }

    /// Closes a connection, which is not asked any more.
    pub(super) fn close(state: &mut State, number: Number, code: ErrorCode) {
        if let Some(tracker) = state.connections.remove(&number) {
            state.fleet.lost(tracker.link().peer_id());
            tracker.close(code);
        }
    }

    /// Whether what comes on a connection concerns the user that is logged in.
    pub(super) fn is_current(&self, number: Number) -> bool {
        let (last, kept) = self.lock().left;
        number > last || Some(number) == kept
    }

    /// Ends every connection and every task, and the waiting of everybody.
    pub(super) fn end(&self) {
        self.stop.cancel();
        let connections: Vec<_> = self.update(|state| state.connections.drain().collect());
        connections.iter().for_each(|(_, tracker)| tracker.close(ErrorCode::Done));
    }

    /// Whether it is of no use to wait for a tracker any more: it is past `until`, or the agent ends.
    pub(super) fn is_over(&self, until: Duration) -> bool {
        self.stop.is_cancelled() || self.now() >= until
    }

    /// Returns after this time, or when the agent ends.
    pub(super) async fn pause(&self, span: Duration) {
        let _ = tokio::time::timeout(span, self.stop.cancelled()).await;
    }

    /// Keeps a connection with one tracker.
    async fn keep(self: Arc<Self>, id: PeerId, gone: CancellationToken, nudge: Arc<Notify>) {
        let mut wait = limits::TRACKER_REDIAL.0;
        while !gone.is_cancelled() {
            let opened = tokio::select! {
                () = gone.cancelled() => return,
                opened = self.dial(id) => opened,
            };
            match opened {
                Err(missed) => self.miss(id, missed),
                Ok((tracker, pushes)) => {
                    let tracker = Arc::new(tracker);
                    let (begun, number) = (self.now(), self.enter(id, tracker.clone()));
                    tokio::select! {
                        () = gone.cancelled() => tracker.close(ErrorCode::Done),
                        () = self.serve(id, number, &tracker, pushes) => {}
                    }
                    self.exit(id, number);
                    if self.now().saturating_sub(begun) >= limits::TRACKER_PATIENCE {
                        wait = limits::TRACKER_REDIAL.0;
                    }
                }
            }
            tokio::select! {
                () = gone.cancelled() => return,
                () = nudge.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(limits::TRACKER_REDIAL.1);
        }
    }

    /// Dials a tracker at each of its addresses.
    async fn dial(&self, id: PeerId) -> Result<(TrackerConnection, PushQueue), Missed> {
        let (links, roster) = {
            let state = self.lock();
            let links = state.keepers.get(&id).map(|keeper| keeper.links.clone());
            (links.unwrap_or_default(), state.roster)
        };
        let hello = Hello {
            features: 0,
            agent: crate::AGENT.to_owned(),
            session: self.session,
            addresses: Vec::new(),
            roster,
            extensions: Vec::new(),
        };
        let (mut reasons, mut stranger) = (Vec::new(), false);
        for link in &links {
            match TrackerConnection::open(&self.endpoint, link, &hello).await {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    tracing::debug!(tracker = %link, %error, "tracker not reached");
                    stranger |= matches!(error, ConnectError::Dial(DialError::WrongPeer { .. }));
                    reasons.push(error.to_string());
                }
            }
        }
        Err(Missed { reason: reasons.join("; "), stranger })
    }

    fn miss(&self, id: PeerId, missed: Missed) {
        let now = self.now();
        self.update(|state| {
            if state.keepers.contains_key(&id) {
                state.missed.insert(id, missed);
                state.fleet.missed(id, now);
            }
        });
    }

    fn enter(&self, id: PeerId, tracker: Arc<TrackerConnection>) -> Number {
        let (number, first) = self.update(|state| {
            let first = !state.fleet.is_any_connected();
            state.last_number += 1;
            let number = state.last_number;
            state.connections.insert(number, tracker);
            state.fleet.connected(id, number);
            state.missed.remove(&id);
            (number, first)
        });
        tracing::debug!(tracker = %id.short(), number, "connected to a tracker");
        if first {
            // The network is back, or was never gone: the others are there too.
            self.nudge();
        }
        number
    }

    fn exit(&self, id: PeerId, number: Number) {
        let lost = self.update(|state| {
            state.connections.remove(&number);
            // It may have been closed here, and its tracker be away since.
            if state.fleet.connection(id).is_some_and(|(known, _)| known == number) {
                state.fleet.lost(id);
            }
            if state.keepers.contains_key(&id) {
                let reason = "the connection was lost".to_owned();
                state.missed.insert(id, Missed { reason, stranger: false });
            }
            !state.fleet.is_any_connected()
        });
        tracing::debug!(tracker = %id.short(), number, "the connection to a tracker is gone");
        if lost && !self.stop.is_cancelled() {
            self.registry.trackers_lost();
        }
    }

    /// Hears a connection and keeps it logged in, until it is gone.
    async fn serve(
        &self,
        id: PeerId,
        number: Number,
        tracker: &TrackerConnection,
        mut pushes: PushQueue,
    ) {
        let hear = async {
            while let Some(push) = pushes.next().await {
                let event = LineEvent::Push { tracker: id, number, push };
                if self.events.send(event).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = hear => {}
            () = self.stay_logged_in(id, number, tracker) => tracker.close(ErrorCode::Done),
        }
    }

    /// Logs in by key whenever somebody is to be logged in; returns when the connection is of no
    /// use any more.
    async fn stay_logged_in(&self, id: PeerId, number: Number, tracker: &TrackerConnection) {
        let mut changes = self.changes();
        let mut wait = ASK_AGAIN.0;
        loop {
            changes.borrow_and_update();
            let (known, user, chosen) = {
                let state = self.lock();
                (state.fleet.connection(id), state.user.clone(), state.fleet.in_use().is_some())
            };
            let user = match (known, user) {
                // It was closed here.
                (None, _) => return,
                (Some((known, _)), _) if known != number => return,
                (Some((_, Login::Asking | Login::Unknown)), Some(user)) => user,
                (Some(_), _) => {
                    wait = ASK_AGAIN.0;
                    tokio::select! {
                        _ = changes.changed() => {}
                        () = tokio::time::sleep(limits::TRACKER_PREFERENCE), if !chosen => {
                            self.refresh();
                        }
                    }
                    continue;
                }
            };
            let pause = match tracker.call(&Request::LoginByKey).await {
                Ok(Reply::LoggedIn { user: found }) => {
                    if !self.found(number, &user, found).await {
                        return;
                    }
                    continue;
                }
                Err(CallError::Refused(Refusal::UnknownDevice)) => {
                    self.unknown(number).await;
                    wait
                }
                Err(CallError::Refused(Refusal::RateLimited { retry_after_ms })) => {
                    Duration::from_millis(retry_after_ms).max(wait)
                }
                Err(CallError::Refused(refusal)) => {
                    tracing::debug!(tracker = %id.short(), %refusal, "not logged in by key");
                    wait
                }
                Ok(_) | Err(_) => return,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => wait = (wait * 2).min(ASK_AGAIN.1),
                () = self.login_changes(&mut changes, &user) => wait = ASK_AGAIN.0,
            }
        }
    }

    /// Resolves when somebody else, or nobody, is to be logged in.
    async fn login_changes(&self, changes: &mut watch::Receiver<u64>, user: &UserName) {
        while self.lock().user.as_ref() == Some(user) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// A tracker knows this device as `found`'s; says whether the connection can be used.
    async fn found(&self, number: Number, asked_for: &UserName, found: UserName) -> bool {
        let named = self.update(|state| {
            // Whoever logged in or out meanwhile does not want this one.
            if state.leaving || state.user.as_ref() != Some(asked_for) {
                return None;
            }
            let named = Named::of(asked_for, &found);
            if named != Named::Other {
                state.fleet.settled(number);
            }
            if named == Named::Renamed {
                state.user = Some(found.clone());
            }
            Some(named)
        });
        match named {
            None | Some(Named::Other) => {
                if named.is_some() {
                    self.unknown(number).await;
                }
                // The tracker takes this connection for somebody else's.
                self.update(|state| Self::close(state, number, ErrorCode::Done));
                return false;
            }
            Some(Named::Same) => {}
            Some(Named::Renamed) => {
                let from = asked_for.clone();
                let _ = self.events.send(LineEvent::Renamed { from, user: found }).await;
            }
        }
        let _ = self.events.send(LineEvent::LoggedIn { number }).await;
        true
    }

    /// A tracker does not know this device; perhaps the login is over with that.
    async fn unknown(&self, number: Number) {
        let now = self.now();
        let over = self.update(|state| {
            state.fleet.unknown(number, now);
            if !state.fleet.is_login_over(now) {
                return None;
            }
            state.fleet.logged_out();
            state.user.take()
        });
        if let Some(user) = over {
            let _ = self.events.send(LineEvent::LoggedOut { user }).await;
        }
    }
}
