//! Asks a person for a password, without showing or keeping it.

use std::borrow::Cow;

use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::{Config, Editor, Helper, completion, hint, history, validate};

/// Shows nothing of what is typed but how much it is.
struct Masked;

impl Highlighter for Masked {
    fn highlight<'l>(&self, line: &'l str, _pos: usize) -> Cow<'l, str> {
        Cow::Owned("*".repeat(line.chars().count()))
    }

    fn highlight_char(&self, _line: &str, _pos: usize, _kind: CmdKind) -> bool {
        true
    }
}

impl completion::Completer for Masked {
    type Candidate = String;
}

impl hint::Hinter for Masked {
    type Hint = String;
}

impl validate::Validator for Masked {}

impl Helper for Masked {}

/// Asks with these words; blocks. Nothing when the person does not want to.
pub fn ask(words: &str) -> Option<String> {
    let config =
        Config::builder().auto_add_history(false).color_mode(rustyline::ColorMode::Forced).build();
    let mut editor = Editor::with_history(config, history::MemHistory::new()).ok()?;
    editor.set_helper(Some(Masked));
    editor.readline(words).ok()
}
