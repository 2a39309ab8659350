//! One's own end of a connection to an agent: asks, and hears what the agent says unasked.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::output::Answer;
use super::request::{self, Request, RequestId};
use super::screen::Screen;
use super::text;
use crate::clock;
use crate::control_socket::{Lines, Said, SocketPath};
use crate::limits;

/// An agent greets at once.
const GREETING: Duration = Duration::from_secs(5);

/// How often it is tried to connect where many do.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);

/// What an agent answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The command's name.
    pub command: String,
    /// The answer as scripts get it.
    pub json: Value,
    /// Words for people, or what went wrong.
    pub result: Result<String, Failure>,
    /// Words for people of what was done although something went wrong.
    pub done: String,
    /// What to mind.
    pub warnings: Vec<String>,
}

impl Reply {
    /// An answer for which no agent was asked.
    pub fn here(command: &str, result: Result<Answer, Failure>) -> Self {
        let json = request::answer(None, command, &result, true);
        Self::of(serde_json::from_str(&json).unwrap_or_default())
    }

    /// The answer to a call for help.
    pub fn help(words: String) -> Self {
        Self::here("help", Ok(Answer::new(json!({"text": words}), words)))
    }

    /// Says it, an error behind `place`; returns the command's exit status.
    pub fn tell(&self, screen: &Screen, as_json: bool, place: &str) -> u8 {
        for warning in &self.warnings {
            screen.insist(&format!("warning: {warning}"));
        }
        match (&self.result, as_json) {
            (_, true) => screen.print(&self.json.to_string()),
            (Ok(words), false) => screen.print(words),
            (Err(_), false) if self.done.is_empty() => {}
            (Err(_), false) => screen.print(&self.done),
        }
        match &self.result {
            Ok(_) => 0,
            Err(failure) => {
                screen.insist(&failure.words(&format!("error: {place}")));
                failure.status
            }
        }
    }

    /// The answer to a request for words.
    fn of(mut json: Value) -> Self {
        let mut take = |field: &str| json.as_object_mut().and_then(|object| object.remove(field));
        take("id");
        let words = match take("text") {
            Some(Value::String(words)) => words,
            _ => String::new(),
        };
        let warnings = match take("warnings") {
            Some(Value::Array(warnings)) => warnings,
            _ => Vec::new(),
        };
        let warnings = warnings.iter().filter_map(Value::as_str).map(text::printable).collect();
        let (result, done) = match json["ok"] == true {
            true => (Ok(words), String::new()),
            false => (Err(Failure::of_json(&json["error"])), words),
        };
        let command = json["command"].as_str().unwrap_or("").to_owned();
        Self { command, json, result, done, warnings }
    }
}

/// The agent ended, or went away, before it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentEnded {
    /// Whether it may have heard what was asked.
    pub said: bool,
    /// Whether it told before that it would end.
    pub in_order: bool,
}

impl AgentEnded {
    /// Whether another agent may be asked the same: nothing was done yet, or what was can be done
    /// again.
    pub fn may_ask_again(self, front: &Front, command: &ClientCommand) -> bool {
        // One that was to end for good is not run again for those who only watched.
        let for_good = self.in_order && front.lasts();
        !self.said || (command.is_repeatable() && !for_good)
    }

    /// What is said when it may not.
    pub fn failure() -> Failure {
        let message = "the agent ended before it answered; it may have been done";
        Failure::new("agent-ended", message).hint("mtq client status shows how things stand")
    }
}

/// Why there is no talking to whoever has the socket.
#[derive(Debug)]
pub enum NoGreeting {
    /// It is just ending.
    Ended,
    /// It says nothing.
    Silent,
    /// It does not want to.
    Refused(Failure),
}

fn silent(directory: &Path) -> Failure {
    let message = format!("the agent on {} does not answer", text::path(directory));
    Failure::new("agent-silent", message).hint("is it stopped, or is it a tracker's directory?")
}

/// Who is told what an agent says unasked.
pub type Hear = Box<dyn Fn(&Value) + Send + Sync>;

/// A connection to an agent.
#[derive(Debug)]
pub struct Front {
    shared: Arc<Shared>,
    lines: mpsc::Sender<Zeroizing<String>>,
    hello: Value,
    _tasks: TaskTracker,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Shared {
    /// Who waits for an answer; they get none for what was not heard.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<Value>>>>,
    next_id: AtomicU64,
    ending: CancellationToken,
    over: CancellationToken,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<Value>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Front {
    /// Connects to the agent that runs on a data directory, if one does.
    ///
    /// # Errors
    /// [`Failure`] when there is one and it cannot be used.
    pub async fn find(directory: &Path, hear: Hear) -> Result<Option<Self>, Failure> {
        let begun = clock::monotonic();
        let stream = loop {
            let connected = match SocketPath::of(directory) {
                Ok(path) => UnixStream::connect(path.path()).await,
                Err(error) => Err(error),
            };
            let error = match connected {
                Ok(stream) => break stream,
                Err(error) => error,
            };
            match error.kind() {
                // So many connect that this one has to wait.
                io::ErrorKind::WouldBlock if begun.elapsed() < GREETING => {
                    tokio::time::sleep(CONNECT_AGAIN).await;
                }
                kind => {
                    return match kind {
                        // Refused: a killed agent left its socket.
                        io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::ConnectionRefused => Ok(None),
                        io::ErrorKind::WouldBlock => Err(silent(directory)),
                        io::ErrorKind::PermissionDenied => {
                            let message = format!(
                                "the agent on {} is not yours to use",
                                text::path(directory)
                            );
                            Err(Failure::new("permission-denied", message)
                                .hint("use a data directory of your own: --data-dir DIR"))
                        }
                        _ => {
                            Err(Failure::new("disk", format!("{}: {error}", text::path(directory))))
                        }
                    };
                }
            }
        };
        match Self::over(stream, hear).await {
            Ok(front) => Ok(Some(front)),
            Err(NoGreeting::Ended) => Ok(None),
            Err(NoGreeting::Silent) => Err(silent(directory)),
            Err(NoGreeting::Refused(failure)) => Err(failure),
        }
    }

    /// Talks over `stream`, in a tokio runtime.
    ///
    /// # Errors
    /// [`NoGreeting`].
    pub async fn over(stream: UnixStream, hear: Hear) -> Result<Self, NoGreeting> {
        let (read, write) = stream.into_split();
        let mut read = Lines::new(BufReader::new(read), limits::MAX_REPLY_LINE);
        let line = match tokio::time::timeout(GREETING, read.next()).await {
            Ok(Ok(Some(Said::Line(line)))) => line,
            Ok(_) => return Err(NoGreeting::Ended),
            Err(_) => return Err(NoGreeting::Silent),
        };
        let hello: Value = serde_json::from_slice(&line).unwrap_or_default();
        if hello["event"] != "hello" {
            return Err(NoGreeting::Refused(Failure::of_json(&hello["error"])));
        }
        let (lines, queue) = mpsc::channel(limits::CONTROL_LINES);
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(converse(shared.clone(), read, write, queue, hear, stop.clone()));
        Ok(Self { shared, lines, hello, _tasks: tasks, _stop: stop.drop_guard() })
    }

    /// Whether the agent goes on without this connection.
    pub fn lasts(&self) -> bool {
        self.hello["lasts"] == true
    }

    /// Who was logged in at the agent when it was found.
    pub fn user(&self) -> Option<String> {
        self.hello["user"].as_str().map(text::printable)
    }

    /// Whether the agent can no longer be asked.
    pub fn is_over(&self) -> bool {
        self.shared.over.is_cancelled() || self.shared.ending.is_cancelled()
    }

    /// Returns when the agent is gone.
    pub async fn gone(&self) {
        self.shared.over.cancelled().await;
    }

    /// Returns when the agent can no longer be asked.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.shared.over.cancelled() => {}
            () = self.shared.ending.cancelled() => {}
        }
    }

    /// Asks for something. Dropping the future gives it up.
    ///
    /// # Errors
    /// [`AgentEnded`].
    pub async fn ask(&self, mut request: Request) -> Result<Reply, AgentEnded> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        (request.id, request.text) = (Some(RequestId::Number(id)), true);
        let unsaid = AgentEnded { said: false, in_order: true };
        let line = request.line().map_err(|_| unsaid)?;
        let (sender, answer) = oneshot::channel();
        self.shared.waiting().insert(id, sender);
        let asked = Asked { front: self, id };
        if self.is_over() {
            return Err(unsaid);
        }
        let line = Zeroizing::new(line + "\n");
        self.lines.send(line).await.map_err(|_| unsaid)?;
        // At the end those who still wait are forgotten.
        let answer = answer.await;
        drop(asked);
        let in_order = self.shared.ending.is_cancelled();
        match answer {
            Ok(Some(answer)) => Ok(Reply::of(answer)),
            Ok(None) => Err(unsaid),
            Err(_) => Err(AgentEnded { said: true, in_order }),
        }
    }
}

/// A request that is given up when this goes before its answer.
struct Asked<'a> {
    front: &'a Front,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.front.shared.waiting().remove(&self.id).is_some() {
            let cancel = Some(RequestId::Number(self.id));
            // An answer that belongs to nothing would be the end of the connection.
            let id = self.front.shared.next_id.fetch_add(1, Ordering::Relaxed);
            let request = Request { id: Some(RequestId::Number(id)), cancel, ..Request::default() };
            if let Ok(line) = request.line() {
                // An agent that takes nothing more does not do it for long.
                let _ = self.front.lines.try_send(Zeroizing::new(line + "\n"));
            }
        }
    }
}

/// Writes what is asked and reads what comes, until either side ends.
async fn converse(
    shared: Arc<Shared>,
    mut read: Lines<BufReader<OwnedReadHalf>>,
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Zeroizing<String>>,
    hear: Hear,
    stop: CancellationToken,
) {
    let writing = async {
        while let Some(line) = queue.recv().await {
            if write.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        // What is still to be read is read.
        std::future::pending::<()>().await;
    };
    let reading = async {
        while let Ok(Some(said)) = read.next().await {
            // An answer that cannot be taken is never given: those who wait must not wait for it.
            let Said::Line(line) = said else { return };
            let Ok(json) = serde_json::from_slice::<Value>(&line) else { return };
            match (json["event"].as_str(), json["id"].as_u64()) {
                (Some("ending"), _) => {
                    shared.ending.cancel();
                    let under_way = json["under_way"].as_array().cloned().unwrap_or_default();
                    let mut waiting = shared.waiting();
                    let unheard = |id: &u64| !under_way.iter().any(|heard| *heard == json!(id));
                    let ids: Vec<_> = waiting.keys().copied().filter(unheard).collect();
                    for sender in ids.into_iter().filter_map(|id| waiting.remove(&id)) {
                        // Whoever asked may have given it up.
                        let _ = sender.send(None);
                    }
                }
                (Some(_), _) => hear(&json),
                (None, Some(id)) => {
                    let waiting = shared.waiting().remove(&id);
                    // Whoever asked may have given it up.
                    let _ = waiting.map(|waiting| waiting.send(Some(json)));
                }
                (None, None) => return,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reading => {}
        () = writing => {}
    }
    shared.over.cancel();
    shared.waiting().clear();
}
