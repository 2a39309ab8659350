//! The agent's line to its trackers: one connection in use, had again when it is lost.
//!
//! A request whose connection is lost is repeated once on a new one, with the same request id, so
//! that it is never applied twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::error::AgentError;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits;
use crate::name::UserName;
use crate::tracker::message::{Hello, Reply, Request};
use crate::tracker::push::Push;
use crate::tracker::refusal::Refusal;
use crate::tracker::stub::{CallError, ConnectError, TrackerConnection};
use crate::tracker_link::TrackerInfo;
use crate::transport::endpoint::{DialError, Endpoint};

/// What the agent hears from its line.
#[derive(Debug)]
pub enum LineEvent {
    /// A tracker pushed news.
    Push(Push),
    /// There is a connection, new or again.
    Connected {
        /// Tracker time less our own, in milliseconds.
        clock_offset: i64,
        /// Higher for every connection.
        session: u64,
    },
    /// The connection is gone.
    Lost {
        /// Which.
        session: u64,
    },
    /// The tracker no longer knows this device; the user must log in again.
    LoggedOut {
        /// Who was logged in.
        user: UserName,
    },
}

/// What became of dialling.
#[derive(Debug, Default)]
struct Current {
    tracker: Option<Arc<TrackerConnection>>,
    /// The last attempt in vain, and when it ended.
    failure: Option<(Instant, DialFailure)>,
}

/// Why no tracker was reached.
#[derive(Clone, Debug)]
enum DialFailure {
    NoTracker(String),
    WrongTracker(String),
}

impl From<DialFailure> for AgentError {
    fn from(failure: DialFailure) -> Self {
        match failure {
            DialFailure::NoTracker(reasons) => Self::NoTracker(reasons),
            DialFailure::WrongTracker(reason) => Self::WrongTracker(reason),
        }
    }
}

/// The line.
#[derive(Debug)]
pub struct TrackerLine {
    endpoint: Endpoint,
    trackers: TrackerInfo,
    /// The connection in use; the lock makes one caller dial and the others wait.
    current: tokio::sync::Mutex<Current>,
    user: Mutex<Option<UserName>>,
    sessions: AtomicU64,
    events: mpsc::Sender<LineEvent>,
    tasks: TaskTracker,
}

impl TrackerLine {
    /// A line that is not connected yet; `events` hears of everything unasked.
    pub fn new(
        endpoint: Endpoint,
        trackers: TrackerInfo,
        events: mpsc::Sender<LineEvent>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            endpoint,
            trackers,
            current: tokio::sync::Mutex::default(),
            user: Mutex::new(None),
            // Sessions of later runs are higher than those of earlier ones.
            sessions: AtomicU64::new(clock::now().0),
            events,
            tasks,
        }
    }

    /// Whom we log in as again on every new connection.
    pub fn user(&self) -> Option<UserName> {
        self.user.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whom we log in as.
    pub fn set_user(&self, user: Option<UserName>) {
        *self.user.lock().unwrap_or_else(PoisonError::into_inner) = user;
    }

    /// Asks the tracker; connects first where needed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call(&self, request: &Request) -> Result<Reply, AgentError> {
        let mut waited = Duration::ZERO;
        loop {
            let refusal = match self.ask(request).await {
                Err(AgentError::Refused(refusal)) => refusal,
                answered => return answered,
            };
            // Too fast is slowed down, up to what a person would wait.
            let pause = match refusal {
                Refusal::RateLimited { retry_after_ms } => Duration::from_millis(retry_after_ms),
                refusal => return Err(refusal.into()),
            };
            waited += pause;
            if waited > limits::RATE_PATIENCE {
                return Err(refusal.into());
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, AgentError> {
        let tracker = self.connection().await?;
        match tokio::time::timeout(patience(request), tracker.call(request)).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(CallError::Lost(reason))) => {
                tracing::debug!(%reason, "repeating a request");
            }
            Ok(Err(error)) => return Err(answer_error(error)),
            Err(_elapsed) => tracing::debug!("no answer; repeating a request"),
        }
        tracker.close(ErrorCode::TimedOut);
        let tracker = self.connection().await?;
        tracker.call(request).await.map_err(answer_error)
    }

    /// The living connection, dialled now if there is none.
    ///
    /// # Errors
    /// [`AgentError::NoTracker`], [`AgentError::WrongTracker`].
    pub async fn connection(&self) -> Result<Arc<TrackerConnection>, AgentError> {
        let asked = clock::monotonic();
        let mut current = self.current.lock().await;
        if let Some(tracker) = current.tracker.as_ref().filter(|tracker| !tracker.is_closed()) {
            return Ok(tracker.clone());
        }
        // Whoever waited while another caller dialled in vain need not try the same again.
        if let Some((at, failure)) = &current.failure
            && *at >= asked
        {
            return Err(failure.clone().into());
        }
        current.tracker = None;
        let tracker = match self.dial().await {
            Ok(tracker) => tracker,
            Err(failure) => {
                current.failure = Some((clock::monotonic(), failure.clone()));
                return Err(failure.into());
            }
        };
        if let Some(user) = self.user() {
            match tracker.call(&Request::LoginByKey).await {
                Ok(Reply::LoggedIn { user: found }) if found == user => {}
                Ok(_) | Err(CallError::Refused(Refusal::UnknownDevice)) => {
                    self.set_user(None);
                    let _ = self.events.send(LineEvent::LoggedOut { user }).await;
                }
                Err(error) => {
                    tracker.close(ErrorCode::Done);
                    return Err(answer_error(error));
                }
            }
        }
        current.tracker = Some(tracker.clone());
        Ok(tracker)
    }

    /// Closes the connection in order.
    pub async fn close(&self) {
        if let Some(tracker) = self.current.lock().await.tracker.take() {
            tracker.close(ErrorCode::Done);
        }
    }

    /// Tries the trackers in order.
    async fn dial(&self) -> Result<Arc<TrackerConnection>, DialFailure> {
        let mut errors = Vec::new();
        let mut stranger = None;
        for link in self.trackers.links() {
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            let hello = Hello {
                features: 0,
                agent: crate::AGENT.to_owned(),
                session,
                addresses: Vec::new(),
                roster: None,
                extensions: Vec::new(),
            };
            match TrackerConnection::open(&self.endpoint, link, &hello).await {
                Ok((tracker, mut pushes)) => {
                    let clock_offset = tracker.clock_offset();
                    let _ = self.events.send(LineEvent::Connected { clock_offset, session }).await;
                    let events = self.events.clone();
                    self.tasks.spawn(async move {
                        while let Some(push) = pushes.next().await {
                            if events.send(LineEvent::Push(push)).await.is_err() {
                                return;
                            }
                        }
                        let _ = events.send(LineEvent::Lost { session }).await;
                    });
                    return Ok(Arc::new(tracker));
                }
                Err(error) => {
                    tracing::debug!(tracker = %link, %error, "tracker not reached");
                    if matches!(&error, ConnectError::Dial(DialError::WrongPeer { .. })) {
                        stranger.get_or_insert(error.to_string());
                    }
                    errors.push(error.to_string());
                }
            }
        }
        Err(match stranger {
            Some(stranger) => DialFailure::WrongTracker(stranger),
            None => DialFailure::NoTracker(errors.join("; ")),
        })
    }
}

/// How long an answer may take before the connection is believed to be dead. Passwords take
/// their time at the tracker, large frames on the way.
fn patience(request: &Request) -> Duration {
    match request {
        Request::CreateUser { .. }
        | Request::Login { .. }
        | Request::ChangePassword { .. }
        | Request::Search { .. }
        | Request::Share { .. }
        | Request::PutPage { .. }
        | Request::Page { .. }
        | Request::Announce { .. } => limits::TRACKER_REQUEST_DEADLINE,
        _ => limits::TRACKER_PATIENCE,
    }
}

fn answer_error(error: CallError) -> AgentError {
    match error {
        CallError::Refused(refusal) => AgentError::Refused(refusal),
        CallError::Lost(reason) => AgentError::TrackerLost(reason),
        CallError::Unexpected => AgentError::BadAnswer,
    }
}
