//! What is said on a client's control socket: requests and answers, one JSON object a line.
//!
//! A request names a command in the words of a script line; JSON.md has the shapes of the answers.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{self, Answer};
use crate::clock::UnixMillis;
use crate::tracker::message::Password;

/// The version of the lines.
const VERSION: u64 = 1;

/// What ties an answer to its request: whatever the request said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestId {
    /// A number.
    Number(u64),
    /// A word.
    Word(String),
}

/// A line from somebody who wants something.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// The version; 1 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v: Option<u64>,
    /// Comes back with the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
    /// The command and its arguments, each a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Instead of `args`: the same as one line, quoted as in a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Instead of both: the id of a request on this connection that is no longer wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel: Option<RequestId>,
    /// What relative paths start from; the agent's own directory when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// The group of a `share` that names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_group: Option<String>,
    /// Where metafiles go instead of beside the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtorrent_dir: Option<PathBuf>,
    /// What stands on the standard input of whoever asks, for a command that reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The password, for a command that needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
    /// The new one, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_password: Option<Password>,
    /// Whether the answer is to carry words for people too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub text: bool,
}

impl fmt::Debug for Request {
    /// Says nothing of the words: one of them may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Request {
    /// Reads a line.
    ///
    /// # Errors
    /// [`Failure`], with the id the line named, if it named one.
    pub fn parse(line: &[u8]) -> Result<Self, (Option<RequestId>, Failure)> {
        let nonsense = |id, error: serde_json::Error| {
            let hint = r#"for example {"id":1,"args":["list-files","lab"]}"#;
            (id, Failure::usage(format!("not a request: {error}")).hint(hint))
        };
        let value: Value = serde_json::from_slice(line).map_err(|error| nonsense(None, error))?;
        let id: Option<RequestId> = match serde_json::from_value(value["id"].clone()) {
            Ok(id) => id,
            Err(_) => return Err((None, Failure::usage("an id is a number or a string"))),
        };
        match value.get("v").map(Value::as_u64) {
            None | Some(Some(VERSION)) => {}
            _ => {
                let message =
                    format!("a request of version {}; this agent knows {VERSION}", value["v"]);
                return Err((id, Failure::usage(message)));
            }
        }
        let request: Self =
            serde_json::from_value(value).map_err(|error| nonsense(id.clone(), error))?;
        if request.cwd.as_ref().is_some_and(|cwd| !cwd.is_absolute()) {
            return Err((id, Failure::usage("cwd is an absolute path")));
        }
        let asked = [request.args.is_some(), request.line.is_some(), request.cancel.is_some()];
        if asked.into_iter().filter(|is| *is).count() != 1 {
            let message = "a request has one of args, line and cancel";
            return Err((id, Failure::usage(message)));
        }
        Ok(request)
    }

    /// The line that asks for it, without its end.
    ///
    /// # Errors
    /// [`Failure`] when a path in it is not Unicode.
    pub fn line(&self) -> Result<String, Failure> {
        serde_json::to_string(self)
            .map_err(|_| Failure::usage("the current directory's path is not Unicode"))
    }
}

/// The line that answers `command`, without its end; with `text`, also words for people.
pub fn answer(
    id: Option<&RequestId>,
    command: &str,
    result: &Result<Answer, Failure>,
    text: bool,
) -> String {
    let (done, failure) = match result {
        Ok(answer) => (Some(&answer.json), answer.failure.as_ref()),
        Err(failure) => (None, Some(failure)),
    };
    let mut line = output::line(command, done, failure);
    if let Some(id) = id {
        line["id"] = json!(id);
    }
    if let Ok(answer) = result
        && text
    {
        line["text"] = json!(answer.text);
        line["warnings"] = json!(answer.warnings);
    }
    line.to_string()
}

/// Events were lost on the way to somebody who reads too slowly.
pub fn lagged(missed: u64) -> Value {
    let message = format!("{missed} events were missed: they came faster than they were read");
    json!({"event": "lagged", "missed": missed, "message": message, "grave": true})
}

/// The line that tells of an event: an object with `event` in it.
pub fn event(mut event: Value, at: UnixMillis) -> String {
    event["v"] = json!(VERSION);
    event["at"] = json!(at);
    event.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> Option<RequestId> {
        Some(RequestId::Number(number))
    }

    #[test]
    fn requests_are_written_and_read_back() {
        let request = Request {
            id: Some(RequestId::Word("a".to_owned())),
            args: Some(vec!["share".to_owned(), "b\nc".to_owned()]),
            cwd: Some("/home/bob".into()),
            password: Some(Password("pä\"ss".to_owned())),
            text: true,
            ..Request::default()
        };
        let line = request.line().expect("written");
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(Request::parse(line.as_bytes()), Ok(request.clone()));
        assert!(!format!("{request:?}").contains("ss"), "{request:?}");
        let short = br#"{"line":"wait"}"#;
        let wait = Request { line: Some("wait".to_owned()), ..Request::default() };
        assert_eq!(Request::parse(short), Ok(wait));
    }

    #[test]
    fn nonsense_is_a_failure_that_carries_its_id() {
        for (line, carried) in [
            ("", None),
            ("hello", None),
            ("[1]", None),
            ("7", None),
            ("{}", None),
            (r#"{"id":7}"#, id(7)),
            (r#"{"id":-7,"line":"wait"}"#, None),
            (r#"{"id":7,"v":2,"line":"wait"}"#, id(7)),
            (r#"{"id":7,"v":"1","line":"wait"}"#, id(7)),
            (r#"{"id":7,"lines":"wait"}"#, id(7)),
            (r#"{"id":7,"line":"wait","args":["wait"]}"#, id(7)),
            (r#"{"id":7,"args":"wait"}"#, id(7)),
            (r#"{"id":7,"args":["wait"],"cwd":"here"}"#, id(7)),
            (r#"{"id":7,"args":["wait",3]}"#, id(7)),
        ] {
            let (named, failure) = Request::parse(line.as_bytes()).expect_err(line);
            assert_eq!((&named, failure.code.as_str()), (&carried, "usage"), "{line}");
            let answer = answer(named.as_ref(), "", &Err(failure), false);
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!((&answer["ok"], &answer["v"]), (&json!(false), &json!(1)));
        }
        assert!(Request::parse(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn answers_carry_what_was_asked_for() {
        let answer = Answer::new(json!({"a": 1}), "one").warn_if(Some("two".to_owned()));
        let plain = super::answer(id(3).as_ref(), "x", &Ok(answer.clone()), false);
        assert_eq!(plain, r#"{"command":"x","id":3,"ok":true,"result":{"a":1},"v":1}"#);
        let with_text = super::answer(None, "x", &Ok(answer), true);
        assert!(with_text.contains(r#""text":"one""#), "{with_text}");
        assert!(with_text.contains(r#""warnings":["two"]"#), "{with_text}");
        let failure = Failure::new("no-such-file", "there is no file b");
        let in_part = Answer::new(json!({"a": 1}), "").fail_if(Some(failure));
        let in_part = super::answer(None, "x", &Ok(in_part), false);
        let both = r#"{"command":"x","error":{"code":"no-such-file","message":"there is no file b"},"ok":false,"result":{"a":1},"v":1}"#;
        assert_eq!(in_part, both);
    }
}
