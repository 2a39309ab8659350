//! What goes to standard output: one JSON object a line, or text for people.

use std::io::Write as _;

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
}

impl Answer {
    /// An answer.
    pub fn new(json: Value, text: impl Into<String>) -> Self {
        Self { json, text: text.into(), warnings: Vec::new() }
    }

    /// The same with a warning, if there is one.
    pub fn warn_if(mut self, warning: Option<String>) -> Self {
        self.warnings.extend(warning);
        self
    }
}

/// Prints a command's answer. A reader that went away is no failure of the command.
pub fn print(command: &str, result: &Result<Answer, Failure>, as_json: bool) {
    let mut out = std::io::stdout().lock();
    if as_json {
        let line = match result {
            Ok(answer) => json!({"v": 1, "command": command, "ok": true, "result": answer.json}),
            Err(failure) => {
                json!({"v": 1, "command": command, "ok": false, "error": failure.json()})
            }
        };
        let _ = writeln!(out, "{line}");
    } else if let Ok(answer) = result
        && !answer.text.is_empty()
    {
        let _ = writeln!(out, "{}", answer.text);
    }
    let _ = out.flush();
}
