//! Failures as the command line sees them, and their exit statuses.

use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::colour;
use crate::client::error::AgentError;

/// Exit statuses; README.md lists them.
pub mod status {
    /// Failed for any other reason.
    pub const FAILED: u8 = 1;
    /// The command line or a script line makes no sense.
    pub const USAGE: u8 = 2;
    /// Not logged in, or refused.
    pub const REFUSED: u8 = 3;
    /// Something named does not exist.
    pub const NOT_FOUND: u8 = 4;
    /// No tracker reachable.
    pub const NO_TRACKER: u8 = 5;
    /// Data is not what it should be.
    pub const INTEGRITY: u8 = 6;
    /// The disk or a file cannot be used.
    pub const DISK: u8 = 7;
    /// Interrupted by a signal.
    pub const INTERRUPTED: u8 = 130;
}

/// A failed command: a stable code, a sentence, perhaps a next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// A next step.
    pub hint: Option<String>,
    /// Exit status.
    pub status: u8,
}

impl Failure {
    /// A line or option that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: "usage".to_owned(),
            message: message.into(),
            hint: None,
            status: status::USAGE,
        }
    }

    /// A failure of another kind.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: None, status: status_of(code) }
    }

    /// Whoever asked for it does not want it any more.
    pub fn interrupted() -> Self {
        Self { status: status::INTERRUPTED, ..Self::new("interrupted", "interrupted") }
    }

    /// The same with a next step.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The `error` of an answer.
    pub fn json(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(hint) = &self.hint {
            error["hint"] = json!(hint);
        }
        error
    }

    /// What the `error` of an answer says.
    pub fn of_json(error: &Value) -> Self {
        let word = |field: &str| error[field].as_str();
        let failure = Self::new(
            word("code").unwrap_or("internal"),
            super::text::printable(word("message").unwrap_or("")),
        );
        Self { hint: word("hint").map(super::text::printable), ..failure }
    }

    /// Says it on standard error.
    pub fn print(&self) {
        let _ = writeln!(io::stderr(), "{}", self.shown());
    }

    /// What is said of it on standard error.
    pub fn shown(&self) -> String {
        let words = self.words("error: ");
        if colour::is_on(&io::stderr()) { colour::marked(&words) } else { words }
    }

    /// It and its hint, as a person reads them.
    pub fn words(&self, prefix: &str) -> String {
        let hint = self.hint.as_ref().map_or(String::new(), |hint| format!("\nhint: {hint}"));
        format!("{prefix}{}{hint}", self.message)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let failure = Self::new(error.code(), super::text::printable(&error.to_string()));
        Self { hint: error.hint().map(str::to_owned), ..failure }
    }
}

fn status_of(code: &str) -> u8 {
    match code {
        "no-tracker" | "wrong-tracker" | "tracker-lost" => status::NO_TRACKER,
        "no-such-group" | "no-such-user" | "no-such-member" | "no-such-device" | "no-such-file"
        | "no-such-request" | "no-such-tracker" | "not-shared" | "not-here" | "ambiguous"
        | "not-found" | "no-destination" => status::NOT_FOUND,
        "bad-metafile" | "false-manifest" | "changed" | "mismatch" | "incomplete" | "store"
        | "library" => status::INTEGRITY,
        "disk" | "no-space" | "in-use" | "exists" | "permission-denied" | "locked" | "identity" => {
            status::DISK
        }
        "user-exists"
        | "wrong-credentials"
        | "bad-password"
        | "not-logged-in"
        | "logged-in-as-other"
        | "unknown-device"
        | "group-exists"
        | "not-a-member"
        | "already-a-member"
        | "already-requested"
        | "rejected-lately"
        | "not-the-owner"
        | "limit"
        | "busy"
        | "rate-limited"
        | "disabled"
        | "registration-closed"
        | "invite-needed"
        | "bad-invite"
        | "everybodys-group"
        | "tracker-exists"
        | "last-tracker"
        | "not-in-roster"
        | "no-address"
        | "yourself" => status::REFUSED,
        "usage" | "bad-name" | "bad-pattern" | "bad-config" | "no-trackers" | "password-needed" => {
            status::USAGE
        }
        "interrupted" => status::INTERRUPTED,
        _ => status::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_codes_is_true() {
        let table = include_str!("../../JSON.md");
        let rows = table.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let (_, code, status) = (cells.next()?, cells.next()?, cells.next()?);
            let code = code.strip_prefix('`')?.strip_suffix('`')?;
            Some((code, status.parse::<u8>().ok()?))
        });
        let rows: Vec<_> = rows.collect();
        assert!(rows.len() > 80, "{}", rows.len());
        for (code, status) in rows {
            assert_eq!(status_of(code), status, "{code}");
        }
    }
}
