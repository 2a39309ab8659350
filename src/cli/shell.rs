//! The prompt: a person types commands, sees what happens meanwhile, and goes on typing.
//!
//! Sharing and downloading are begun and answered when they are; everything else is waited for, and Ctrl-C
//! gives it up. What runs goes on while a line is edited: editing has a thread of its own.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::client_args::ClientCommand;
use super::editor::{Advice, Input, Reader};
use super::exit::{Failure, status};
use super::front::{AgentEnded, Front, Reply};
use super::request::Request;
use super::script::{self, Parsed};
use super::seat::Seat;
use super::signals::Signals;
use super::{secret, stdin, text, watch};

/// Who has logged in at the agent, or nobody, in front of the line.
const NOBODY: &str = "mtq";

/// Something that was begun and is answered later.
struct Begun {
    command: ClientCommand,
    request: Request,
    front: Arc<Front>,
    answer: Result<Reply, AgentEnded>,
}

/// How something that is waited for came out.
enum Outcome<T> {
    Done(T),
    /// Ctrl-C.
    GivenUp,
    /// The program is to end.
    End,
}

/// The prompt and what was begun at it.
struct Shell<'a> {
    seat: &'a mut Seat,
    signals: &'a mut Signals,
    begun: JoinSet<Begun>,
    /// The agent's user, as far as is known.
    user: Option<String>,
    /// The last agent that was found.
    front: Option<Arc<Front>>,
    /// Whether it was said that something would be lost.
    is_warned: bool,
}

/// Lets a person type commands; returns the exit status, or nothing when a signal ended it.
///
/// # Errors
/// [`Failure`] when there is no agent to begin with.
pub async fn run(seat: &mut Seat, signals: &mut Signals) -> Result<Option<u8>, Failure> {
    let advice = Advice::new(Handle::current());
    let history = seat.plan().settings().history.value.clone();
    let front = seat.front().await?;
    seat.screen().show(|_| true);
    let reader = Reader::start(seat.screen().clone(), advice.clone(), history);
    let mut reader = reader.map_err(|error| Failure::new("internal", error.to_string()))?;
    let user = front.user();
    let front = Some(front);
    let begun = JoinSet::new();
    let mut shell = Shell { seat, signals, begun, user, front, is_warned: false };
    loop {
        shell.find().await;
        advice.ask_at(shell.front.clone());
        reader.prompt(&format!("{}> ", shell.user.as_deref().unwrap_or(NOBODY)));
        let Some(input) = shell.meanwhile(&mut reader, &advice).await else { return Ok(None) };
        let lines = match input {
            Input::GivenUp => continue,
            Input::End => "quit".to_owned(),
            Input::Line(lines) => lines,
        };
        for line in lines.lines() {
            if let Some(ended) = shell.enter(line).await {
                return Ok(ended);
            }
        }
    }
}

impl Shell<'_> {
    /// Waits for what a person does, and tells what happens meanwhile; nothing when it is to end.
    async fn meanwhile(&mut self, reader: &mut Reader, advice: &Advice) -> Option<Input> {
        loop {
            let ended = async {
                match &self.front {
                    Some(front) => front.ended().await,
                    None => std::future::pending().await,
                }
            };
            let quit = self.seat.quit();
            tokio::select! {
                input = reader.input() => return Some(input),
                Some(Ok(begun)) = self.begun.join_next() => self.answered(begun).await,
                () = self.signals.end() => return None,
                () = quit.cancelled() => {
                    self.seat.screen().say("another client ends this agent");
                    return Some(Input::End);
                }
                () = ended => {
                    self.find().await;
                    advice.ask_at(self.front.clone());
                }
            }
        }
    }

    /// Looks for an agent, and runs one where there is none.
    async fn find(&mut self) {
        let found = match self.seat.front().await {
            Ok(front) => Some(front),
            Err(failure) => {
                self.seat.screen().say(&failure.words("error: "));
                None
            }
        };
        let is_same = match (&found, &self.front) {
            (Some(found), Some(known)) => Arc::ptr_eq(found, known),
            _ => false,
        };
        if let Some(front) = found.as_ref().filter(|_| !is_same) {
            self.user = front.user();
        }
        self.front = found;
    }

    /// Has a line done. Returns how the session ended, if it did.
    async fn enter(&mut self, line: &str) -> Option<Option<u8>> {
        let reply = match script::parse(line) {
            Parsed::Nothing => return None,
            Parsed::Help(text) => Reply::help(text),
            Parsed::Wrong(name, failure) => Reply::here(&text::printable(&name), Err(failure)),
            Parsed::Command(ClientCommand::Quit) => return self.may_end().then_some(Some(0)),
            Parsed::Command(ClientCommand::Events { .. }) => {
                self.seat.screen().say("what happens is shown here as it happens");
                return None;
            }
            Parsed::Command(command) => {
                self.is_warned = false;
                let request = self.seat.plan().request_line(line.to_owned());
                return match command {
                    ClientCommand::Share { .. } | ClientCommand::Get { wait: false, .. } => {
                        self.begin(command, request).await;
                        None
                    }
                    command => match self.wait(command, request).await {
                        Outcome::Done(()) => None,
                        Outcome::GivenUp => {
                            self.seat.screen().say("given up");
                            None
                        }
                        Outcome::End => Some(None),
                    },
                };
            }
        };
        reply.tell(self.seat.screen(), false, "");
        None
    }

    /// Begins something that is answered later.
    async fn begin(&mut self, command: ClientCommand, request: Request) {
        self.find().await;
        let Some(front) = self.front.clone() else { return };
        self.begun.spawn(async move {
            let answer = front.ask(request.clone()).await;
            Begun { command, request, front, answer }
        });
    }

    /// Something that was begun is answered, or is to be begun anew.
    async fn answered(&mut self, begun: Begun) {
        let Begun { command, request, front, answer } = begun;
        match answer {
            Ok(reply) => {
                reply.tell(self.seat.screen(), false, "");
            }
            Err(ended) if ended.may_ask_again(&front, &command) => {
                self.begin(command, request).await;
            }
            Err(_) => self.seat.screen().say(&AgentEnded::failure().words("error: ")),
        }
    }

    /// Has a command done while somebody waits for it.
    async fn wait(&mut self, command: ClientCommand, request: Request) -> Outcome<()> {
        let Self { seat, signals, begun, .. } = self;
        let screen = seat.screen().clone();
        let asked = async {
            match &command {
                ClientCommand::Downloads { watch: true } => {
                    watch::run(seat, &command, request, false).await.map(|_| None)
                }
                _ => seat.ask(&command, request, Some(secret::ask)).await.map(Some),
            }
        };
        let mut early = Vec::new();
        let outcome = interruptible(asked, signals, begun, |begun| match begun.answer {
            Ok(reply) => {
                reply.tell(&screen, false, "");
            }
            Err(_) => early.push(begun),
        });
        let outcome = match outcome.await {
            Outcome::GivenUp => Outcome::GivenUp,
            Outcome::End => Outcome::End,
            Outcome::Done(Ok(reply)) => {
                if let Some(reply) = reply {
                    reply.tell(&screen, false, "");
                    self.heard_of(&command, &reply);
                }
                Outcome::Done(())
            }
            Outcome::Done(Err(failure)) if failure.status == status::INTERRUPTED => {
                Outcome::GivenUp
            }
            Outcome::Done(Err(failure)) => {
                screen.say(&failure.words("error: "));
                Outcome::Done(())
            }
        };
        for begun in early {
            self.answered(begun).await;
        }
        outcome
    }

    /// Who is logged in after a command.
    fn heard_of(&mut self, command: &ClientCommand, reply: &Reply) {
        match command {
            ClientCommand::Logout if reply.result.is_ok() => self.user = None,
            ClientCommand::Login { .. } | ClientCommand::Whoami | ClientCommand::Status
                if reply.result.is_ok() =>
            {
                self.user = reply.json["result"]["user"].as_str().map(str::to_owned);
            }
            _ => {}
        }
    }

    /// Whether the session may end now; says what would be lost, once.
    fn may_end(&mut self) -> bool {
        let screen = self.seat.screen();
        let open = self.begun.len();
        if open > 0 && !std::mem::replace(&mut self.is_warned, true) {
            let words = if open == 1 { "share or get is" } else { "shares or gets are" };
            screen.say(&format!("{open} {words} not begun yet: quit or Ctrl-D once more gives up"));
            return false;
        }
        stdin::unfinished(self.seat);
        true
    }
}

/// Waits for `work` and hands on what was begun before, until it is done or somebody interrupts it.
async fn interruptible<T>(
    work: impl Future<Output = T>,
    signals: &mut Signals,
    begun: &mut JoinSet<Begun>,
    mut answered: impl FnMut(Begun),
) -> Outcome<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Outcome::Done(done),
            Some(Ok(begun)) = begun.join_next() => answered(begun),
            is_interrupt = signals.is_interrupt() => {
                return if is_interrupt { Outcome::GivenUp } else { Outcome::End };
            }
        }
    }
}
