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
}

impl Answer {
    /// An answer.
    pub fn new(json: Value, text: impl Into<String>) -> Self {
        Self { json, text: text.into() }
    }
}

/// Prints a command's answer. A reader that went away is no failure of the command.
pub fn print(command: &str, result: &Result<Answer, Failure>, as_json: bool) {
    let mut out = std::io::stdout().lock();
    if as_json {
        let line = match result {
            Ok(answer) => json!({"v": 1, "command": command, "ok": true, "result": answer.json}),
            Err(failure) => {
                let mut error = json!({"code": failure.code, "message": failure.message});
                if let Some(hint) = &failure.hint {
                    error["hint"] = json!(hint);
                }
                json!({"v": 1, "command": command, "ok": false, "error": error})
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
