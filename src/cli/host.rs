//! The agent's side of its control socket: whoever connects is greeted, and what they ask is done.
//!
//! Requests of a connection run side by side and are answered as they are done. What a connection asked
//! for and did not wait for is finished, unless it is gone altogether.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::output::Answer;
use super::request::{self, Request, RequestId};
use super::script::{self, Parsed};
use super::{command, events, hook};
use crate::client::agent::Agent;
use crate::clock;
use crate::control_socket::{ControlSocket, Lines, Said};
use crate::limits;

/// How often those who asked for it are told how far everything is.
const PROGRESS: Duration = Duration::from_millis(200);

/// How often it is looked whether somebody who asks nothing more is still there.
const STILL_THERE: Duration = Duration::from_secs(1);

/// An agent that can be asked for things.
#[derive(Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    agent: Agent,
    /// Whether it goes on without anybody who asks for something.
    lasts: bool,
    /// Somebody wants the agent to end.
    quit: CancellationToken,
    /// No more requests are taken.
    draining: CancellationToken,
    /// Nothing is answered any more.
    stop: CancellationToken,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    /// There will be no more events.
    quiet: CancellationToken,
    hooks: TaskTracker,
}

impl Host {
    /// Serves `socket` for `agent`, and runs `hook` for every event. `lasts` says whether the agent goes
    /// on by itself; `quit` is cancelled when somebody wants it to end. In a tokio runtime.
    pub fn start(
        agent: Agent,
        socket: ControlSocket,
        hook: Option<String>,
        lasts: bool,
        quit: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            agent,
            lasts,
            quit,
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(limits::CONTROL_CLIENTS)),
            quiet: CancellationToken::new(),
            hooks: TaskTracker::new(),
        });
        shared.tasks.spawn(accept(shared.clone(), socket));
        if let Some(hook) = hook {
            let work = hook::run(hook, shared.agent.notices(), shared.quiet.clone());
            shared.hooks.spawn(work);
        }
        Self { shared }
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.shared.agent
    }

    /// A connection from within this process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.shared.tasks.spawn(converse(self.shared.clone(), theirs));
        Ok(ours)
    }

    /// Ends it in order: no more requests are taken, those under way are answered as far as that does
    /// not take long, and the agent stops.
    pub async fn end(&self) {
        let shared = &self.shared;
        shared.draining.cancel();
        shared.tasks.close();
        let _ = tokio::time::timeout(limits::DRAIN, shared.tasks.wait()).await;
        shared.stop.cancel();
        shared.agent.shutdown().await;
        shared.tasks.wait().await;
        shared.quiet.cancel();
        shared.hooks.close();
        shared.hooks.wait().await;
    }
}

/// Takes connections until there is an end; the socket's file goes with it.
async fn accept(shared: Arc<Shared>, socket: ControlSocket) {
    loop {
        let accepted = tokio::select! {
            () = shared.draining.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(stream) => match shared.places.clone().try_acquire_owned() {
                Ok(place) => {
                    let conversation = converse(shared.clone(), stream);
                    shared.tasks.spawn(async move {
                        conversation.await;
                        drop(place);
                    });
                }
                Err(_) => refuse(&stream),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells one connection too many so, and lets it go.
fn refuse(stream: &UnixStream) {
    let message = format!("{} connections are open to the agent", limits::CONTROL_CLIENTS);
    let failure = Failure::new("busy", message).hint("close some of them");
    let line = request::answer(None, "", &Err(failure), false) + "\n";
    // There is room for it: nothing was written before.
    let _ = stream.try_write(line.as_bytes());
}

/// What waits to be written: it may hold secrets.
type Line = Zeroizing<String>;

/// Answers one connection until it ends.
async fn converse(shared: Arc<Shared>, stream: UnixStream) {
    let (read, write) = stream.into_split();
    let (sender, lines) = mpsc::channel(limits::CONTROL_LINES);
    let gone = shared.stop.child_token();
    let talk = Arc::new(Talk {
        shared: shared.clone(),
        sender,
        gone: gone.clone(),
        room: Arc::new(Semaphore::new(limits::CONTROL_REQUESTS)),
        running: Mutex::default(),
    });
    talk.tell(talk.greeting()).await;
    let written = write_lines(write, lines, gone.clone());
    let asked = async {
        let mut lines = Lines::new(BufReader::new(read), limits::MAX_REQUEST_LINE);
        talk.listen(&mut lines).await;
        if shared.draining.is_cancelled() {
            // Whoever asked for anything else is told by this that it was not heard.
            let under_way: Vec<_> = talk.running().keys().cloned().collect();
            let ending = json!({"event": "ending", "under_way": under_way});
            talk.tell(request::event(ending, clock::now())).await;
        }
        // What is under way holds it too; when that is done, there is nothing more to write.
        drop(talk);
        hung_up(&lines.into_inner().into_inner()).await;
    };
    tokio::pin!(written);
    tokio::select! {
        () = &mut written => {}
        () = asked => {}
    }
    gone.cancel();
}

async fn write_lines(
    mut write: OwnedWriteHalf,
    mut lines: mpsc::Receiver<Line>,
    gone: CancellationToken,
) {
    let work = async {
        while let Some(line) = lines.recv().await {
            if write.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = gone.cancelled() => {}
        () = work => {}
    }
}

/// Returns when the other side is gone, not only silent.
async fn hung_up(read: &OwnedReadHalf) {
    loop {
        tokio::time::sleep(STILL_THERE).await;
        if read.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed()) {
            return;
        }
    }
}

/// One connection and what it asked for.
struct Talk {
    shared: Arc<Shared>,
    sender: mpsc::Sender<Line>,
    /// Nobody is there any more.
    gone: CancellationToken,
    room: Arc<Semaphore>,
    /// What is under way, by the id it was given.
    running: Mutex<HashMap<RequestId, CancellationToken>>,
}

impl Talk {
    fn greeting(&self) -> String {
        let agent = &self.shared.agent;
        let hello = json!({
            "event": "hello", "agent": crate::AGENT, "pid": std::process::id(),
            "lasts": self.shared.lasts, "peer_id": agent.peer_id(), "user": agent.user(),
        });
        request::event(hello, clock::now())
    }

    fn running(&self) -> MutexGuard<'_, HashMap<RequestId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a line to the connection; one that nobody reads waits.
    async fn tell(&self, line: String) {
        // When it ended nobody wants to know.
        let _ = self.sender.send(Zeroizing::new(line + "\n")).await;
    }

    /// Takes requests until there are no more.
    async fn listen(self: &Arc<Self>, lines: &mut Lines<BufReader<OwnedReadHalf>>) {
        loop {
            let said = tokio::select! {
                () = self.shared.draining.cancelled() => return,
                () = self.gone.cancelled() => return,
                said = lines.next() => said,
            };
            match said {
                Ok(Some(Said::Line(line))) => {
                    let line = Zeroizing::new(line);
                    if !line.trim_ascii().is_empty() {
                        self.hear(&line).await;
                    }
                }
                Ok(Some(said @ Said::TooLong(_))) => {
                    let failure = Failure::usage(said.to_string());
                    self.tell(request::answer(None, "", &Err(failure), false)).await;
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Begins what a line asks for.
    async fn hear(self: &Arc<Self>, line: &[u8]) {
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err((id, failure)) => {
                return self.tell(request::answer(id.as_ref(), "", &Err(failure), false)).await;
            }
        };
        if let Some(which) = &request.cancel {
            let found = self.running().get(which).map(CancellationToken::cancel).is_some();
            let answer = Answer::new(json!({"found": found}), "");
            let id = request.id.as_ref();
            return self.tell(request::answer(id, "cancel", &Ok(answer), request.text)).await;
        }
        let refuse = |failure: Failure| {
            self.tell(request::answer(request.id.as_ref(), "", &Err(failure), request.text))
        };
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            let message = format!("{} requests are under way", limits::CONTROL_REQUESTS);
            return refuse(Failure::new("busy", message).hint("wait for an answer first")).await;
        };
        let wanted = self.gone.child_token();
        let is_new = match &request.id {
            None => true,
            Some(id) => match self.running().entry(id.clone()) {
                Entry::Occupied(_) => false,
                Entry::Vacant(vacant) => {
                    vacant.insert(wanted.clone());
                    true
                }
            },
        };
        if !is_new {
            return refuse(Failure::usage("a request with this id is under way")).await;
        }
        let talk = self.clone();
        self.shared.tasks.spawn(async move {
            talk.answer(request, wanted).await;
            drop(room);
        });
    }

    /// Does what is asked and answers it; when nobody answers any more, not even that.
    async fn answer(self: &Arc<Self>, mut request: Request, wanted: CancellationToken) {
        let parsed = match (request.args.take(), request.line.take()) {
            (Some(words), _) => script::parse_words(words),
            (_, line) => script::parse(&Zeroizing::new(line.unwrap_or_default())),
        };
        let id = request.id.clone();
        let (name, result, told) = match parsed {
            Parsed::Nothing => {
                (String::new(), Err(Failure::usage("a request without a command")), None)
            }
            Parsed::Help(text) => {
                ("help".to_owned(), Ok(Answer::new(json!({"text": text}), text)), None)
            }
            Parsed::Wrong(name, failure) => (super::text::printable(&name), Err(failure), None),
            Parsed::Command(mut command) => {
                if let Some(cwd) = &request.cwd {
                    command.start_from(cwd);
                    request.mtorrent_dir = request.mtorrent_dir.map(|dir| cwd.join(dir));
                }
                let name = command.name().to_owned();
                let told = match command {
                    ClientCommand::Events { progress } => Some(progress),
                    _ => None,
                };
                let quits = matches!(command, ClientCommand::Quit);
                // What only waits is not waited for at the end; whoever asked can ask another agent.
                let over = match command.waits() {
                    true => self.shared.draining.clone(),
                    false => self.gone.clone(),
                };
                let result = tokio::select! {
                    result = command::run(&self.shared.agent, &request, command) => result,
                    () = over.cancelled() => return self.forget(id.as_ref()),
                    () = wanted.cancelled() => Err(cancelled()),
                };
                if quits {
                    self.shared.quit.cancel();
                }
                (name, result, told)
            }
        };
        if let Err(failure) = &result {
            tracing::debug!(command = name, code = failure.code, "a request failed");
        }
        let notices = self.shared.agent.notices();
        self.tell(request::answer(id.as_ref(), &name, &result, request.text)).await;
        if let Some(progress) = told {
            tokio::select! {
                () = self.shared.draining.cancelled() => {}
                () = wanted.cancelled() => {
                    let over = Err(cancelled());
                    self.tell(request::answer(id.as_ref(), &name, &over, request.text)).await;
                }
                () = self.tell_news(notices) => {}
                () = self.tell_progress(), if progress => {}
            }
        }
        self.forget(id.as_ref());
    }

    fn forget(&self, id: Option<&RequestId>) {
        if let Some(id) = id {
            self.running().remove(id);
        }
    }

    async fn tell_news(&self, mut notices: broadcast::Receiver<crate::client::report::Notice>) {
        loop {
            let event = match notices.recv().await {
                Ok(notice) => events::json(&notice),
                Err(broadcast::error::RecvError::Lagged(missed)) => request::lagged(missed),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            self.tell(request::event(event, clock::now())).await;
        }
    }

    /// Tells how far everything under way is, and once that nothing is.
    async fn tell_progress(&self) {
        let mut was_empty = true;
        loop {
            let items = events::under_way(&self.shared.agent);
            let is_empty = items.as_array().is_some_and(Vec::is_empty);
            if !(is_empty && was_empty) {
                let event = json!({"event": "progress", "items": items});
                self.tell(request::event(event, clock::now())).await;
            }
            was_empty = is_empty;
            tokio::time::sleep(PROGRESS).await;
        }
    }
}

fn cancelled() -> Failure {
    Failure::new("cancelled", "given up, as was asked for")
}
