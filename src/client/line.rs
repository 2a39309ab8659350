//! The agent's line to its trackers: sends each request to the one in use, and to another when
//! that one does not answer.
//!
//! A request is repeated as it is, with its request id, so that it is never applied twice; none is
//! cancelled that was sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::error::AgentError;
use super::failover::{Attempts, Login, Named, Number, Step};
pub use super::warm::{LineEvent, Place};
use super::warm::{State, Warm};
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::id::OpId;
use crate::id::RequestId;
use crate::limits;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::swarm::registry::Registry;
use crate::tracker::message::{Answer, Password, Reply, Request};
use crate::tracker::refusal::Refusal;
use crate::tracker::stub::{CallError, TrackerConnection};
use crate::tracker_link::TrackerLink;
use crate::transport::endpoint::Endpoint;

/// How long a request waits for a tracker that can be asked.
const REACH: Duration = limits::DIAL_DEADLINE.saturating_add(limits::SYNC_PATIENCE);

/// What there is with one tracker, for people.
#[derive(Clone, Debug)]
pub struct LineRow {
    /// Which.
    pub peer_id: PeerId,
    /// Where.
    pub link: TrackerLink,
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether the connection acts for the user.
    pub logged_in: bool,
    /// Whether requests go there.
    pub in_use: bool,
    /// The round-trip time.
    pub rtt: Option<Duration>,
    /// Why there is no connection.
    pub missed: Option<String>,
}

/// The line.
#[derive(Clone, Debug)]
pub struct TrackerLine {
    warm: Arc<Warm>,
}

impl TrackerLine {
    /// A line that is not connected yet; `events` hears of everything unasked.
    pub fn new(
        endpoint: Endpoint,
        registry: Arc<Registry>,
        user: Option<UserName>,
        events: mpsc::Sender<LineEvent>,
        tasks: TaskTracker,
    ) -> Self {
        Self { warm: Warm::start(endpoint, registry, user, events, tasks) }
    }

    /// The trackers are these now, in this order; `roster` is the hash of what says so.
    pub fn set_places(&self, places: Vec<Place>, roster: Option<Blake3Hash>) {
        self.warm.set_places(places, roster);
    }

    /// The trackers, in order, each with its first address.
    pub fn places(&self) -> Vec<(PeerId, TrackerLink)> {
        self.warm.places()
    }

    /// Hears of changes of what follows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.warm.changes()
    }

    /// Time since the agent began.
    pub fn now(&self) -> Duration {
        self.warm.now()
    }

    /// Who is logged in.
    pub fn user(&self) -> Option<UserName> {
        self.warm.lock().user.clone()
    }

    /// The connection in use.
    pub fn in_use(&self) -> Option<Number> {
        self.warm.lock().fleet.in_use()
    }

    /// Whether any tracker is connected.
    pub fn is_connected(&self) -> bool {
        self.warm.lock().fleet.is_any_connected()
    }

    /// Whether there is only one tracker.
    pub fn is_single(&self) -> bool {
        self.warm.lock().fleet.is_single()
    }

    /// The connections that act for the user.
    pub fn logged_in(&self) -> Vec<Number> {
        let state = self.warm.lock();
        match state.user {
            Some(_) => state.fleet.usable(),
            None => Vec::new(),
        }
    }

    /// Whether what comes on a connection concerns the user that is logged in.
    pub fn is_current(&self, number: Number) -> bool {
        self.warm.is_current(number)
    }

    /// The op of the latest change this agent made.
    pub fn last_write(&self) -> Option<OpId> {
        self.warm.lock().last_write
    }

    /// What there is with every tracker, and tracker time less our own in milliseconds.
    pub fn report(&self) -> (Vec<LineRow>, Option<i64>) {
        let places = self.warm.places();
        let state = self.warm.lock();
        let in_use = state.fleet.in_use();
        let row = |(peer_id, link): (PeerId, TrackerLink)| {
            let known = state.fleet.connection(peer_id);
            let tracker = known.and_then(|(number, _)| state.connections.get(&number));
            let settled = known.is_some_and(|(_, login)| login == Login::Settled);
            LineRow {
                peer_id,
                link: tracker.map_or(link, |tracker| tracker.link().clone()),
                connected: tracker.is_some(),
                logged_in: settled && state.user.is_some(),
                in_use: in_use.is_some() && known.map(|(number, _)| number) == in_use,
                rtt: tracker.map(|tracker| tracker.rtt()),
                missed: state.missed.get(&peer_id).map(|missed| missed.reason.clone()),
            }
        };
        let offset = in_use.and_then(|number| state.connections.get(&number));
        let offset = offset.map(|tracker| tracker.clock_offset());
        (places.into_iter().map(row).collect(), offset)
    }

    /// Asks the trackers; waits for one where needed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call(&self, request: &Request) -> Result<Reply, AgentError> {
        self.ask(request).await.map(|answer| answer.reply)
    }

    /// The same, with what became of a change.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ask(&self, request: &Request) -> Result<Answer, AgentError> {
        self.ask_which(request).await.map(|(answer, _)| answer)
    }

    /// The same, with the connection that answered.
    async fn ask_which(&self, request: &Request) -> Result<(Answer, Number), AgentError> {
        let request = Arc::new(request.clone());
        unhurried(&self.warm, || self.ask_once(&request)).await
    }

    /// Asks one tracker after the other until one answers.
    async fn ask_once(&self, request: &Arc<Request>) -> Result<(Answer, Number), AgentError> {
        let warm = &self.warm;
        let begun = warm.now();
        let mut changes = warm.changes();
        let mut attempts = Attempts::new(is_slow(request));
        // Each tracker may be asked again on another connection, once.
        let most = 2 * warm.places().len().max(1);
        let (sender, mut answers) = mpsc::channel(most + 1);
        let (mut own_trouble, mut in_trouble) = (None, Vec::new());
        let (mut lost, mut nudged) = (None, false);
        loop {
            changes.borrow_and_update();
            warm.refresh();
            let step = {
                let state = warm.lock();
                let usable = match state.fleet.in_use() {
                    Some(_) if attempts.count() < most => state.fleet.usable(),
                    _ => Vec::new(),
                };
                let received =
                    |number| state.connections.get(&number).map_or(0, |tracker| tracker.received());
                attempts.step(warm.now(), &usable, received)
            };
            let until = match step {
                Step::Ask(number) => {
                    self.send(number, request, sender.clone());
                    continue;
                }
                Step::Close(number) => {
                    tracing::debug!(number, "a tracker is silent; its connection is begun anew");
                    warm.update(|state| Warm::close(state, number, ErrorCode::TimedOut));
                    lost = Some("no answer".to_owned());
                    continue;
                }
                Step::Wait(until) => until,
                Step::Nobody => {
                    if let Some(refusal) = own_trouble {
                        return Err(AgentError::Refused(refusal));
                    }
                    let state = warm.lock();
                    let over = attempts.count() >= most || warm.is_over(begun + REACH);
                    if over || state.fleet.is_hopeless(begun) {
                        return Err(unreachable(&state, lost.filter(|_| over)));
                    }
                    drop(state);
                    if !nudged {
                        warm.nudge();
                        nudged = true;
                    }
                    begun + REACH
                }
            };
            let left = until.saturating_sub(warm.now());
            let (number, answer) = tokio::select! {
                // This end holds a sender too.
                Some(answer) = answers.recv() => answer,
                _ = changes.changed() => continue,
                () = tokio::time::sleep(left) => continue,
            };
            match answer {
                Err(CallError::Lost(reason)) => {
                    tracing::debug!(%reason, "repeating a request");
                    attempts.failed(number);
                    lost = Some(reason);
                    // It is not asked again, whoever hears of its end first.
                    warm.update(|state| Warm::close(state, number, ErrorCode::TimedOut));
                }
                Err(CallError::Refused(refusal)) if refusal.is_trackers_own() => {
                    tracing::debug!(%refusal, "asking another tracker");
                    attempts.failed(number);
                    own_trouble = Some(refusal);
                    in_trouble.push(number);
                }
                answer => {
                    let mut late = attempts.outrun(number, warm.now());
                    late.append(&mut in_trouble);
                    if !late.is_empty() {
                        warm.update(|state| {
                            late.iter().for_each(|late| state.fleet.outrun(*late, number));
                        });
                    }
                    let answer = answer.map_err(answer_error)?;
                    if let Some(written) = answer.written {
                        warm.lock().last_write = Some(written.op);
                    }
                    return Ok((answer, number));
                }
            }
        }
    }

    /// Sends a request on one connection. It goes on whatever becomes of who asked.
    fn send(
        &self,
        number: Number,
        request: &Arc<Request>,
        answers: mpsc::Sender<(Number, Result<Answer, CallError>)>,
    ) {
        let Some(tracker) = self.connection(number) else {
            let gone = CallError::Lost("the connection was lost".to_owned());
            let _ = answers.try_send((number, Err(gone)));
            return;
        };
        let (warm, request) = (self.warm.clone(), request.clone());
        self.warm.tasks.spawn(async move {
            let answer = tracker.ask(&request).await;
            let in_trouble = match &answer {
                Err(CallError::Refused(refusal)) => refusal.is_trackers_own(),
                Err(CallError::Lost(_)) => true,
                _ => false,
            };
            if !in_trouble {
                warm.lock().fleet.answered(number);
            }
            // Nobody may wait for it any more.
            let _ = answers.try_send((number, answer));
        });
    }

    fn connection(&self, number: Number) -> Option<Arc<TrackerConnection>> {
        self.warm.lock().connections.get(&number).cloned()
    }

    /// Asks on one connection and no other.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ask_on(&self, number: Number, request: &Request) -> Result<Reply, AgentError> {
        let lost = || AgentError::TrackerLost("the connection was lost".to_owned());
        let tracker = self.connection(number).ok_or_else(lost)?;
        let ask = || async { tracker.call(request).await.map_err(answer_error) };
        unhurried(&self.warm, ask).await
    }

    /// Waits until a tracker can be asked, or is known not to be reached.
    ///
    /// # Errors
    /// [`AgentError::NoTracker`], [`AgentError::WrongTracker`].
    pub async fn ready(&self) -> Result<(), AgentError> {
        let begun = self.warm.now();
        let mut changes = self.warm.changes();
        self.warm.nudge();
        loop {
            changes.borrow_and_update();
            self.warm.refresh();
            {
                let state = self.warm.lock();
                if state.fleet.in_use().is_some() {
                    return Ok(());
                }
                if state.fleet.is_hopeless(begun) || self.warm.is_over(begun + REACH) {
                    return Err(unreachable(&state, None));
                }
            }
            let left = (begun + REACH).saturating_sub(self.warm.now());
            let _ = tokio::time::timeout(left, changes.changed()).await;
        }
    }

    /// Logs in with a password; returns the name trackers know the user by. The other connections
    /// follow by key.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn log_in(&self, user: UserName, password: Password) -> Result<UserName, AgentError> {
        let request_id = RequestId::random(&mut fastrand::Rng::new());
        let login = Request::Login { request_id, user, password };
        let (answer, number) = self.ask_which(&login).await?;
        let Reply::LoggedIn { user } = answer.reply else { return Err(AgentError::BadAnswer) };
        let now = self.warm.now();
        self.warm.update(|state| {
            state.user = Some(user.clone());
            state.fleet.logged_in(number, now);
        });
        Ok(user)
    }

    /// Logs out at a tracker, and here at all.
    ///
    /// # Errors
    /// [`AgentError`]; a tracker that could not store it still has us logged in.
    pub async fn log_out(&self) -> Result<(), AgentError> {
        // Connections made while leaving log in no more.
        if let Err(error) = self.ready().await {
            self.warm.leave(None);
            return Err(error);
        }
        let had = self.warm.update(|state| {
            state.leaving = state.user.is_some();
            state.leaving
        });
        match self.ask_which(&Request::Logout).await {
            Ok((_, number)) => {
                self.warm.leave(Some(number));
                Ok(())
            }
            // Another tracker had it from the one that answered too late.
            Err(AgentError::Refused(Refusal::NotLoggedIn)) if had => {
                self.warm.leave(None);
                Ok(())
            }
            Err(error @ AgentError::Refused(_)) if error.code() != "not-logged-in" => {
                self.warm.update(|state| state.leaving = false);
                Err(error)
            }
            Err(error) => {
                self.warm.leave(None);
                Err(error)
            }
        }
    }

    /// A tracker says on a connection that this device may not act for its user any more. Returns
    /// who is logged out with that: nobody, when it rests on what was before the present login.
    pub fn signed_out(&self, number: Number) -> Option<UserName> {
        let over = {
            let mut state = self.warm.lock();
            let user = state.user.clone().filter(|_| !state.leaving)?;
            // One that lags behind may tell of a login before; it is asked anew. If it is so, the
            // one in use says it too.
            let of_before = state.fleet.in_use().is_some_and(|in_use| in_use != number);
            if of_before {
                Warm::close(&mut state, number, ErrorCode::Done);
            }
            (!of_before).then_some(user)
        };
        match over {
            Some(_) => self.warm.leave(Some(number)),
            None => self.warm.update(|_| ()),
        }
        over
    }

    /// A tracker says that our account is called `user` now; returns what it was called, if that
    /// is something else.
    pub fn renamed(&self, user: &UserName) -> Option<UserName> {
        self.warm.update(|state| {
            let kept = state.user.as_ref()?;
            let renamed = Named::of(kept, user) == Named::Renamed;
            renamed.then(|| state.user.replace(user.clone())).flatten()
        })
    }

    /// Whether what the tracker in use does not know is not there: it is the only one, or has been
    /// in use for so long that it has heard of it.
    pub fn is_settled(&self) -> bool {
        let state = self.warm.lock();
        let long = self.warm.now().saturating_sub(state.in_use_since) >= limits::SYNC_PATIENCE;
        state.fleet.in_use().is_some() && (state.fleet.is_single() || long)
    }

    /// Waits a moment until every tracker was tried at least once.
    pub async fn tried(&self) {
        let mut changes = self.warm.changes();
        let all = async {
            while !self.warm.lock().fleet.is_tried() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limits::TRACKER_PATIENCE, all).await;
    }

    /// Ends every connection in order.
    pub fn close(&self) {
        self.warm.end();
    }
}

/// Asks again what was asked too fast, up to what a person would wait.
async fn unhurried<T, F>(warm: &Warm, ask: impl Fn() -> F) -> Result<T, AgentError>
where
    F: Future<Output = Result<T, AgentError>>,
{
    let mut waited = Duration::ZERO;
    loop {
        let refused = match ask().await {
            Err(AgentError::Refused(Refusal::RateLimited { retry_after_ms })) => retry_after_ms,
            answered => return answered,
        };
        let pause = Duration::from_millis(refused);
        waited += pause;
        if waited > limits::RATE_PATIENCE {
            return Err(Refusal::RateLimited { retry_after_ms: refused }.into());
        }
        warm.pause(pause).await;
    }
}

/// Whether the answer to a request rightly takes longer than others: passwords take their time at
/// the tracker, large frames on the way.
fn is_slow(request: &Request) -> bool {
    matches!(
        request,
        Request::CreateUser { .. }
            | Request::Login { .. }
            | Request::ChangePassword { .. }
            | Request::Search { .. }
            | Request::Share { .. }
            | Request::PutPage { .. }
            | Request::Page { .. }
            | Request::Announce { .. }
    )
}

/// Why nobody can be asked.
fn unreachable(state: &State, lost: Option<String>) -> AgentError {
    if let Some(reason) = lost {
        return AgentError::TrackerLost(reason);
    }
    let stranger = state.missed.values().find(|missed| missed.stranger);
    match stranger {
        Some(missed) => AgentError::WrongTracker(missed.reason.clone()),
        None => {
            let reasons: Vec<_> =
                state.missed.values().map(|missed| missed.reason.as_str()).collect();
            AgentError::NoTracker(reasons.join("; "))
        }
    }
}

fn answer_error(error: CallError) -> AgentError {
    match error {
        CallError::Refused(refusal) => AgentError::Refused(refusal),
        CallError::Lost(reason) => AgentError::TrackerLost(reason),
        CallError::Unexpected => AgentError::BadAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::rates::RateLimits;
    use crate::swarm::trust::Trust;
    use crate::transport::identity::Identity;
    use crate::transport::tls::Alpn;

    #[tokio::test]
    async fn nobody_waits_for_a_tracker_once_the_agent_ends() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = silent.local_addr().expect("bound");
        let (me, tracker) = (Arc::new(Identity::generate()), Identity::generate().peer_id());
        let endpoint = Endpoint::bind(me, ([127, 0, 0, 1], 0).into(), &[Alpn::Peer]);
        let registry = Arc::new(Registry::new(Trust::default(), RateLimits::default()));
        let (events, _queue) = mpsc::channel(1);
        let endpoint = endpoint.expect("bound");
        let line = TrackerLine::new(endpoint, registry, None, events, TaskTracker::new());
        line.set_places(vec![(tracker, vec![TrackerLink::new(address, tracker)])], None);
        let request = Request::ListGroups { after: None };
        let all = async { tokio::join!(line.call(&request), line.ready(), async { line.close() }) };
        let (asked, ready, ()) =
            tokio::time::timeout(limits::DIAL_DEADLINE, all).await.expect("no waiting");
        assert!(asked.is_err() && ready.is_err());
    }
}
