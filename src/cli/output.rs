//! What goes to standard output: one JSON object a line, or text for people.

use std::io::{BufWriter, Write as _};

use serde::Serialize;
use serde_json::{Value, json};

use super::exit::Failure;

/// What a command has to say: the same in both forms.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For scripts.
    pub json: Value,
    /// For people; may be several lines, without the last line end.
    pub text: String,
    /// For people, on standard error: what to mind.
    pub warnings: Vec<String>,
    /// What of it went wrong: all else was done.
    pub failure: Option<Failure>,
}

impl Answer {
    /// An answer.
    pub fn new(json: Value, text: impl Into<String>) -> Self {
        Self { json, text: text.into(), warnings: Vec::new(), failure: None }
    }

    /// The same with a warning, if there is one.
    pub fn warn_if(mut self, warning: Option<String>) -> Self {
        self.warnings.extend(warning);
        self
    }

    /// The same of something that went wrong in part, if it did.
    pub fn fail_if(self, failure: Option<Failure>) -> Self {
        Self { failure, ..self }
    }
}

/// Prints a command's answer. A reader that went away is no failure of the command.
pub fn print(command: &str, result: &Result<Answer, Failure>, as_json: bool) {
    let mut out = std::io::stdout().lock();
    if as_json {
        let (json, failure) = (result.as_ref().map(|answer| &answer.json), result.as_ref().err());
        let _ = writeln!(out, "{}", line(command, json.ok(), failure));
    } else if let Ok(answer) = result
        && !answer.text.is_empty()
    {
        let _ = writeln!(out, "{}", answer.text);
    }
    let _ = out.flush();
}

/// The line of a command: what came of it, why it failed, or both, where there is something to say
/// of a failure besides.
pub fn line(command: &str, result: Option<&Value>, failure: Option<&Failure>) -> Value {
    let mut line = json!({"v": 1, "command": command, "ok": failure.is_none()});
    if let Some(failure) = failure {
        line["error"] = failure.json();
    }
    if let Some(result) = result {
        line["result"] = result.clone();
    }
    line
}

/// Prints the line of a command that succeeded while it is made: for results too large to be copied.
pub fn print_streamed(command: &str, result: &impl Serialize) {
    #[derive(Serialize)]
    struct Line<'a, R> {
        command: &'a str,
        ok: bool,
        result: &'a R,
        v: u8,
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    // A reader that went away is no failure of the command.
    let _ = serde_json::to_writer(&mut out, &Line { command, ok: true, result, v: 1 });
    let _ = writeln!(out).and_then(|()| out.flush());
}
