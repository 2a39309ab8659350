//! A place at an agent: the one that runs on the data directory, or else one run here.
//!
//! Several may want one at the same time where none runs: one of them runs it, the others use it, and
//! when the first has what it wanted another takes over.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::client_args::ClientCommand;
use super::command::PASSWORD_NEEDED;
use super::exit::Failure;
use super::front::{AgentEnded, Front, Reply};
use super::host::Host;
use super::plan::Plan;
use super::request::Request;
use super::screen::Screen;
use crate::client::data_dir;
use crate::clock;
use crate::control_socket::ControlSocket;
use crate::limits::{MAX_LINE_LEN, MAX_REQUEST_LINE};
use crate::tracker::message::Password;

/// One agent that is just beginning or ending is waited for so long: what it was asked, its transfers and
/// its program for events have a drain each at its end, and on a busy machine its last writes, or its
/// first reads, take as long again.
const HANDOVER: Duration = Duration::from_secs(30);

/// How often it is tried anew meanwhile.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Asks a person for a secret; blocks. Nothing when they do not want to.
pub type Ask = fn(&str) -> Option<String>;

/// A place at an agent.
#[derive(Debug)]
pub struct Seat {
    plan: Plan,
    screen: Arc<Screen>,
    /// Whether an agent that is run here goes on by itself.
    lasts: bool,
    quit: CancellationToken,
    front: Option<Arc<Front>>,
    host: Option<Host>,
    warned: bool,
    tells_progress: bool,
}

impl Seat {
    /// A place that is taken when it is needed.
    pub fn new(plan: Plan, screen: Arc<Screen>, lasts: bool) -> Self {
        let quit = CancellationToken::new();
        let (front, host) = (None, None);
        let (warned, tells_progress) = (false, false);
        Self { plan, screen, lasts, quit, front, host, warned, tells_progress }
    }

    /// Cancelled when somebody wants the agent that is run here to end.
    pub fn quit(&self) -> CancellationToken {
        self.quit.clone()
    }

    /// Where results and words go.
    pub fn screen(&self) -> &Arc<Screen> {
        &self.screen
    }

    /// The agent that is run here, if one is.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Runs the agent here, when one that is just ending has ended.
    ///
    /// # Errors
    /// [`Failure`], also when one runs on the data directory.
    pub async fn run_next_agent(&mut self) -> Result<&Host, Failure> {
        match self.settle().await? {
            // One that can be asked is not ending.
            Some(_) => self.run_agent(),
            None => Ok(self.host.as_ref().expect("invariant: it was just run")),
        }
    }

    /// Waits until no agent runs on the data directory, or one that does not end yet.
    pub async fn until_free(&self) {
        let (directory, mut handover) = (self.plan.data_dir(), Handover::default());
        while data_dir::is_locked(directory)
            && matches!(self.connect().await, Ok(None))
            && handover.waits(directory).await
        {}
    }

    /// Connects to the agent there is, or else runs one here, when one that is just beginning or ending
    /// has.
    async fn settle(&mut self) -> Result<Option<Front>, Failure> {
        let mut handover = Handover::default();
        loop {
            if let Some(front) = self.connect().await? {
                return Ok(Some(front));
            }
            match self.run_agent() {
                Ok(_) => return Ok(None),
                Err(failure) if failure.code == "locked" => {
                    if !handover.waits(self.plan.data_dir()).await {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Runs the agent here, unless one runs on the data directory already.
    fn run_agent(&mut self) -> Result<&Host, Failure> {
        let agent = self.plan.agent()?;
        let socket = ControlSocket::bind(agent.data_dir()).map_err(|error| {
            let directory = super::text::path(agent.data_dir());
            Failure::new("disk", format!("the control socket in {directory}: {error}"))
        })?;
        let hook = self.plan.settings().on_event.value.clone();
        let host = Host::start(agent, socket, hook, self.lasts, self.quit.clone());
        Ok(self.host.insert(host))
    }

    /// Sees to it that there is an agent, until one that was to go on by itself has ended: that is not run
    /// again for those who only watch it.
    ///
    /// # Errors
    /// [`Failure`], at that latest.
    pub async fn stay(&mut self) -> Result<Infallible, Failure> {
        loop {
            self.front().await?.ended().await;
            self.goes_on()?;
        }
    }

    /// Whether there is an agent, or may be run one.
    ///
    /// # Errors
    /// [`Failure`] when the one that was used was to go on by itself, and has ended.
    pub fn goes_on(&self) -> Result<(), Failure> {
        let used = self.front.as_ref();
        let is_ended = used.is_some_and(|front| front.lasts() && front.is_over());
        match self.host.is_none() && is_ended {
            true => Err(Failure::new("agent-ended", "the agent has ended")),
            false => Ok(()),
        }
    }

    /// Has everything under way told, whoever sees it.
    pub fn tell_progress(&mut self) {
        self.tells_progress = true;
    }

    /// The connection to the agent; makes one, and an agent, where there is none.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn front(&mut self) -> Result<Arc<Front>, Failure> {
        if let Some(front) = self.front.as_ref().filter(|front| !front.is_over()) {
            return Ok(front.clone());
        }
        let front = loop {
            if let Some(front) = self.settle().await? {
                break Arc::new(front);
            }
        };
        let mut words = vec!["events".to_owned()];
        if self.tells_progress || self.screen.has_bars() {
            words.push("--progress".to_owned());
        }
        // One that just ended is noticed by whoever asks next.
        let _ = front.ask(Request { args: Some(words), ..Request::default() }).await;
        if self.host.is_none() && !std::mem::replace(&mut self.warned, true) {
            for flag in self.plan.unused_flags() {
                let message = format!("the agent runs already: {flag} changes nothing");
                self.screen.say(&format!("warning: {message}"));
            }
        }
        self.front = Some(front.clone());
        Ok(front)
    }

    /// Connects to the agent, wherever it runs, if one does.
    async fn connect(&self) -> Result<Option<Front>, Failure> {
        let screen = self.screen.clone();
        let hear = Box::new(move |event: &serde_json::Value| screen.hear(event));
        match &self.host {
            None => Front::find(self.plan.data_dir(), hear).await,
            Some(host) => {
                let failed = |why: &dyn std::fmt::Display| {
                    Failure::new("internal", format!("the agent does not listen: {why}"))
                };
                let stream = host.connect().map_err(|error| failed(&error))?;
                let front = Front::over(stream, hear).await;
                Ok(Some(front.map_err(|_| failed(&"it ends"))?))
            }
        }
    }

    /// Whether an agent that was found, or is to be, goes on without this program.
    pub fn is_lasting(&self) -> bool {
        self.lasts || self.front.as_ref().is_some_and(|front| front.lasts())
    }

    /// What goes with every request.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The agent that runs on the data directory, if one does.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be used.
    pub async fn found(&self) -> Result<Option<Front>, Failure> {
        self.connect().await
    }

    /// Has a command done, as `request` says it. `ask` gets passwords from a person, where there is one.
    ///
    /// # Errors
    /// [`Failure`] when there is no agent to do it; what went wrong with the command itself is in the
    /// answer.
    pub async fn ask(
        &mut self,
        command: &ClientCommand,
        mut request: Request,
        ask: Option<Ask>,
    ) -> Result<Reply, Failure> {
        if request.args.iter().flatten().map(String::len).sum::<usize>() > MAX_LINE_LEN {
            let message = format!("a command is over the limit of {MAX_LINE_LEN} bytes");
            return Err(Failure::usage(message));
        }
        loop {
            if request.line()?.len() > MAX_REQUEST_LINE {
                let message = format!("a request is over the limit of {MAX_REQUEST_LINE} bytes");
                return Err(Failure::usage(message));
            }
            let front = self.front().await?;
            match front.ask(request.clone()).await {
                Ok(reply) => match &reply.result {
                    Err(failure)
                        if failure.code == PASSWORD_NEEDED && request.password.is_none() =>
                    {
                        // What is said meanwhile would be read as a part of the question.
                        let _hold = ask.map(|_| self.screen.hold());
                        let Some(said) = secrets(command, ask).await? else { return Ok(reply) };
                        (request.password, request.new_password) = said;
                    }
                    _ => return Ok(reply),
                },
                Err(ended) if ended.may_ask_again(&front, command) => {}
                Err(_) => return Err(AgentEnded::failure()),
            }
        }
    }

    /// Ends the agent, if it is run here.
    pub async fn end(&mut self) {
        self.front = None;
        if let Some(host) = &self.host {
            host.end().await;
        }
    }
}

/// The patience with agents that are just beginning or ending. Where many want one, each may be another:
/// whoever waits has patience with every one of them.
#[derive(Debug, Default)]
struct Handover {
    /// Who was found on the data directory last, and since when.
    found: Option<(Option<String>, Instant)>,
}

impl Handover {
    /// Waits a moment; not when it was one and the same for too long.
    async fn waits(&mut self, directory: &Path) -> bool {
        let now = clock::monotonic();
        let holder = data_dir::holder(directory);
        let since = match self.found.take() {
            Some((known, since)) if known == holder => since,
            _ => now,
        };
        self.found = Some((holder, since));
        let goes_on = now - since < HANDOVER;
        if goes_on {
            tokio::time::sleep(TRY_AGAIN).await;
        }
        goes_on
    }
}

/// A password, and a new one where there are two.
type Secrets = (Option<Password>, Option<Password>);

/// The passwords a command needs: from the environment, or from a person, a new one twice.
async fn secrets(command: &ClientCommand, ask: Option<Ask>) -> Result<Option<Secrets>, Failure> {
    let (first_is_new, has_second) = match command {
        ClientCommand::CreateUser { .. } => (true, false),
        ClientCommand::Passwd { .. } => (false, true),
        _ => (false, false),
    };
    let words = if has_second { "old password: " } else { "password: " };
    let Some(first) = secret("MTQ_PASSWORD", words, first_is_new, ask).await? else {
        return Ok(None);
    };
    let second = match has_second {
        false => None,
        true => match secret("MTQ_NEW_PASSWORD", "new password: ", true, ask).await? {
            Some(second) => Some(second),
            None => return Ok(None),
        },
    };
    Ok(Some((Some(first), second)))
}

async fn secret(
    variable: &str,
    words: &'static str,
    is_new: bool,
    ask: Option<Ask>,
) -> Result<Option<Password>, Failure> {
    match std::env::var(variable) {
        Ok(password) if !password.is_empty() => return Ok(Some(Password(password))),
        Err(std::env::VarError::NotUnicode(_)) => {
            return Err(Failure::usage(format!("{variable}: not Unicode")));
        }
        // An empty variable is none.
        Ok(_) | Err(std::env::VarError::NotPresent) => {}
    }
    let Some(ask) = ask else { return Ok(None) };
    // A person takes time; everything else goes on meanwhile.
    let asked = tokio::task::spawn_blocking(move || {
        let password = ask(words).map(Password)?;
        let same = !is_new || ask("again: ").map(Password).as_ref() == Some(&password);
        Some((password, same))
    });
    match asked.await {
        Ok(Some((password, true))) => Ok(Some(password)),
        Ok(Some((_, false))) => Err(Failure::usage("the two passwords differ")),
        Ok(None) | Err(_) => Err(Failure::interrupted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn patience_is_with_each_agent_anew() {
        let dir = tempfile::tempdir().expect("temp dir");
        let lock = data_dir::lock(dir.path()).expect("free");
        assert!(data_dir::is_locked(dir.path()));
        let me = data_dir::holder(dir.path());
        assert_eq!(me, Some(std::process::id().to_string()));
        let long_ago = clock::monotonic().checked_sub(HANDOVER).expect("up for longer");
        for (known, goes_on) in [(me, false), (Some("1".to_owned()), true), (None, true)] {
            let mut handover = Handover { found: Some((known.clone(), long_ago)) };
            assert_eq!(handover.waits(dir.path()).await, goes_on, "{known:?}");
            assert_eq!(handover.waits(dir.path()).await, goes_on, "{known:?}");
        }
        assert!(Handover::default().waits(dir.path()).await);
        drop(lock);
        assert!(!data_dir::is_locked(dir.path()));
    }
}
