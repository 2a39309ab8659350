//! The line editor of the prompt: a thread that reads lines from the terminal, one when one is wanted.
//!
//! It paints what is below the line with every stroke and tells the screen what it shows, which is how
//! lines and bars appear while somebody types.

use std::borrow::Cow;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustyline::completion::{Completer, Pair};
use rustyline::config::{BellStyle, CompletionType};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hint, Hinter};
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, Config, Context, Editor, Helper};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::complete::{self, Groups, Typed, Wanted};
use super::front::Front;
use super::history;
use super::request::Request;
use super::screen::Screen;
use super::text;
use crate::limits;

/// A person who pressed Tab and goes on typing waits no longer than this before what was typed is shown.
const PATIENCE: Duration = Duration::from_millis(700);

/// What a person did at the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a line, or several that were pasted.
    Line(String),
    /// Does not want the line (Ctrl-C).
    GivenUp,
    /// Wants to end (Ctrl-D), or is gone.
    End,
}

/// Whom to ask what a word may become; nobody while there is no agent.
#[derive(Clone, Debug)]
pub struct Advice {
    front: Arc<Mutex<Option<Arc<Front>>>>,
    runtime: Handle,
    tasks: TaskTracker,
}

impl Advice {
    /// Nobody's yet; asks in this runtime.
    pub fn new(runtime: Handle) -> Self {
        Self { front: Arc::default(), runtime, tasks: TaskTracker::new() }
    }

    /// From now on this agent's.
    pub fn ask_at(&self, front: Option<Arc<Front>>) {
        *self.front.lock().unwrap_or_else(PoisonError::into_inner) = front;
    }

    /// What the agent answers to these words, if it does so soon or as long as nothing else is typed.
    /// Blocks.
    fn answer(&self, words: &[&str]) -> Value {
        let front = self.front.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(front) = front else { return Value::Null };
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let request = Request { args: Some(words), ..Request::default() };
        let (sender, answer) = mpsc::sync_channel(1);
        let asking = async move {
            if let Ok(mut reply) = front.ask(request).await {
                // Who asked may have lost patience.
                let _ = sender.try_send(reply.json["result"].take());
            }
        };
        let asking = self.tasks.spawn_on(asking, &self.runtime);
        let answer = loop {
            match answer.recv_timeout(PATIENCE) {
                Err(RecvTimeoutError::Timeout) if !is_typed_ahead() => {}
                answer => break answer.unwrap_or_default(),
            }
        };
        asking.abort();
        answer
    }

    /// Whatever `wanted` means, as far as it begins with `partial`; whole words.
    fn words(&self, wanted: Wanted, partial: &str) -> Vec<String> {
        let names = |answer: Value, list: &str, which: &dyn Fn(&Value) -> bool, name: &str| {
            let rows = answer[list].as_array().into_iter().flatten().filter(|row| which(row));
            rows.filter_map(|row| row[name].as_str().map(str::to_owned)).collect()
        };
        let mut words: Vec<String> = match wanted {
            Wanted::Words(words) => words,
            Wanted::Group(groups) => {
                let which = |row: &Value| match groups {
                    Groups::Any => true,
                    Groups::Mine => row["standing"] == "member" || row["standing"] == "owner",
                    Groups::Own => row["standing"] == "owner",
                };
                names(self.answer(&["list-groups"]), "groups", &which, "group")
            }
            Wanted::Member(group) => {
                let answer = self.answer(&["list-members", "--", &group]);
                names(answer, "members", &|_| true, "user")
            }
            Wanted::Asker(group) => {
                let answer = self.answer(&["list-requests", "--", &group]);
                names(answer, "requests", &|_| true, "user")
            }
            Wanted::Listed(group) if partial.is_empty() => {
                names(self.answer(&["list-files", "--", &group]), "files", &|_| true, "name")
            }
            Wanted::Listed(group) => {
                let answer = self.answer(&["search", "--prefix", "--", partial]);
                names(answer, "files", &|row| row["group"] == *group, "name")
            }
            Wanted::Local(group) => {
                let answer = self.answer(&["downloads"]);
                names(answer, "downloads", &|row| row["group"] == *group, "name")
            }
            Wanted::Nothing | Wanted::GroupOrMetafile | Wanted::Path | Wanted::Metafile => {
                Vec::new()
            }
        };
        words.retain(|word| word.starts_with(partial));
        words
    }

    /// What may stand in the place of the word at the cursor.
    fn choices(&self, typed: &Typed) -> Vec<Pair> {
        let partial = typed.partial.as_str();
        let (words, paths) = match complete::wanted(&typed.words, partial) {
            Wanted::Path => (Vec::new(), paths(partial, false)),
            Wanted::Metafile => (Vec::new(), paths(partial, true)),
            Wanted::GroupOrMetafile => {
                let groups = self.words(Wanted::Group(Groups::Mine), partial);
                (groups, paths(partial, true))
            }
            wanted => (self.words(wanted, partial), Vec::new()),
        };
        let mut words: Vec<_> = words.into_iter().map(|word| (word.clone(), word)).collect();
        words.sort();
        words.dedup();
        words.extend(paths);
        // A name that could do something to the terminal is not for typing.
        words.retain(|(_, word)| text::printable(word) == *word);
        words.truncate(limits::CHOICES);
        let pair = |(display, word): (String, String)| {
            let replacement = complete::written(&word, word.ends_with('/'));
            Pair { display, replacement }
        };
        words.into_iter().map(pair).collect()
    }
}

/// Whether something was typed that nobody has read, or the terminal is gone.
fn is_typed_ahead() -> bool {
    rustix::io::ioctl_fionread(io::stdin()).map_or(true, |len| len > 0)
}

/// Paths that begin so, by their last names: metafiles and directories, or everything.
fn paths(partial: &str, only_metafiles: bool) -> Vec<(String, String)> {
    let (directory, begun) = match partial.rfind('/') {
        Some(at) => partial.split_at(at + 1),
        None => ("", partial),
    };
    let place = if directory.is_empty() { Path::new(".") } else { Path::new(directory) };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(begun) || (name.starts_with('.') && !begun.starts_with('.')) {
            continue;
        }
        let is_directory = entry.path().is_dir();
        if is_directory {
            name.push('/');
        }
        if is_directory || !only_metafiles || name.ends_with(".mtorrent") {
            found.push((is_directory && only_metafiles, name));
        }
    }
    found.sort();
    found.into_iter().map(|(_, name)| (name.clone(), format!("{directory}{name}"))).collect()
}

/// What the editor is helped with.
struct Help {
    screen: Arc<Screen>,
    advice: Advice,
}

impl Completer for Help {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = Typed::read(line.get(..position).unwrap_or(line));
        let choices = self.advice.choices(&typed);
        if choices.len() > 1 {
            self.screen.lists();
        }
        Ok((typed.start, choices))
    }
}

/// What stands below the line; nothing that is written into it.
struct Below;

impl Hint for Below {
    fn display(&self) -> &str {
        // Takes no room; what is written in its place leaves the cursor where it was.
        "\u{200b}"
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Help {
    type Hint = Below;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<Below> {
        // Behind a line end the editor loses count.
        (!line.ends_with('\n')).then_some(Below)
    }
}

impl Highlighter for Help {
    fn highlight<'l>(&self, line: &'l str, position: usize) -> Cow<'l, str> {
        self.screen.shown_line(line, position);
        Cow::Borrowed(line)
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, own: bool) -> Cow<'b, str> {
        Cow::Owned(self.screen.shown_prompt(prompt, own))
    }

    fn highlight_hint<'h>(&self, _: &'h str) -> Cow<'h, str> {
        Cow::Owned(self.screen.shown_below())
    }

    fn highlight_candidate<'c>(&self, candidate: &'c str, _: CompletionType) -> Cow<'c, str> {
        // Over bars.
        Cow::Owned(format!("\x1b[K{candidate}"))
    }

    fn highlight_char(&self, _: &str, _: usize, _: CmdKind) -> bool {
        // The screen must know where the cursor is.
        true
    }
}

impl Validator for Help {}

impl Helper for Help {}

/// The thread that reads lines.
#[derive(Debug)]
pub struct Reader {
    wanted: mpsc::Sender<String>,
    inputs: tokio::sync::mpsc::Receiver<Input>,
}

impl Reader {
    /// Starts it; what is typed is remembered at `history`.
    ///
    /// # Errors
    /// When there is no terminal to read from.
    pub fn start(screen: Arc<Screen>, advice: Advice, history: PathBuf) -> io::Result<Self> {
        let config = Config::builder()
            .auto_add_history(false)
            .max_history_size(limits::HISTORY_LINES)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(io::Error::other)?
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .bell_style(BellStyle::None)
            // Bars come in as if they were colours; whether there are any is decided elsewhere.
            .color_mode(ColorMode::Forced)
            .build();
        let mut editor = Editor::with_config(config).map_err(io::Error::other)?;
        editor.set_helper(Some(Help { screen: screen.clone(), advice }));
        let history = prepare(&history)
            .and_then(|()| editor.load_history(&history).map_err(io::Error::other))
            .map(|()| history.clone())
            .map_err(|error| {
                let path = text::path(&history);
                screen.say(&format!("warning: nothing typed will be remembered: {path}: {error}"));
            });
        let (wanted, wants) = mpsc::channel::<String>();
        let (sender, inputs) = tokio::sync::mpsc::channel(1);
        std::thread::Builder::new().name("prompt".to_owned()).spawn(move || {
            let mut lines = Lines { editor, screen, history: history.ok() };
            for prompt in wants {
                if sender.blocking_send(lines.read(&prompt)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { wanted, inputs })
    }

    /// Begins to read a line behind this prompt.
    pub fn prompt(&self, prompt: &str) {
        // A thread that is gone says so itself.
        let _ = self.wanted.send(prompt.to_owned());
    }

    /// What came.
    pub async fn input(&mut self) -> Input {
        self.inputs.recv().await.unwrap_or(Input::End)
    }
}

/// Makes the file that remembers what is typed; nobody else reads it.
fn prepare(history: &Path) -> io::Result<()> {
    if let Some(directory) = history.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(history).map(drop)
}

/// The editor, on its thread.
struct Lines {
    editor: Editor<Help, FileHistory>,
    screen: Arc<Screen>,
    history: Option<PathBuf>,
}

impl Lines {
    fn read(&mut self, prompt: &str) -> Input {
        self.screen.begin_typing();
        let read = self.editor.readline(prompt);
        self.screen.end_typing();
        match read {
            Ok(line) => {
                self.remember(&line);
                Input::Line(line)
            }
            Err(ReadlineError::Interrupted) => Input::GivenUp,
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                self.screen.say("error: what was typed is not valid UTF-8");
                Input::GivenUp
            }
            // A terminal that went away gives nothing any more.
            Err(_) => Input::End,
        }
    }

    fn remember(&mut self, typed: &str) {
        for line in typed.lines().filter_map(history::remembered) {
            let _ = self.editor.add_history_entry(line);
        }
        if let Some(path) = &self.history
            && let Err(error) = self.editor.append_history(path)
        {
            let path = text::path(path);
            self.screen.say(&format!("warning: nothing typed is remembered: {path}: {error}"));
            self.history = None;
        }
    }
}
