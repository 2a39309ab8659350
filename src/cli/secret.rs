//! Asks a person for a password, without showing or keeping it.

use std::borrow::Cow;

use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::{ColorMode, Config, Editor, Helper, completion, hint, history, validate};

use super::terminal;

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
    if !terminal::can_edit() {
        return rpassword::prompt_password(words).ok();
    }
    // Masking is what the editor takes for a colour.
    let config = Config::builder().auto_add_history(false).color_mode(ColorMode::Forced).build();
    let mut editor = Editor::with_history(config, history::MemHistory::new()).ok()?;
    editor.set_helper(Some(Masked));
    editor.readline(words).ok()
}
