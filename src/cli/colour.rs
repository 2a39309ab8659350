//! Colours: whether there are any, and the few there are.
//!
//! None where `NO_COLOR` is set, on a dumb terminal, and where there is no terminal.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether what is written to `stream` may have colours.
pub fn is_on(stream: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name);
    stream.is_terminal() && is_wanted(variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
}

fn is_wanted(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term != Some(OsStr::new("dumb"))
}

/// Words whose kind is seen at a glance: an error, a warning.
pub fn marked(words: &str) -> String {
    for (kind, colour) in [("error:", "1;31"), ("warning:", "33")] {
        if let Some(rest) = words.strip_prefix(kind) {
            return format!("\x1b[{colour}m{kind}\x1b[0m{rest}");
        }
    }
    words.to_owned()
}

/// The prompt, unlike what stands around it.
pub fn prompt(words: &str) -> String {
    format!("\x1b[1;32m{words}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_want_colours_gets_none() {
        let wanted = |no_color: Option<&'static str>, term: Option<&'static str>| {
            is_wanted(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(wanted(None, Some("xterm")));
        assert!(wanted(Some(""), None), "an empty variable is none");
        assert!(!wanted(Some("1"), Some("xterm")));
        assert!(!wanted(None, Some("dumb")));
    }

    #[test]
    fn only_the_kind_is_coloured() {
        assert_eq!(marked("error: no\nhint: go"), "\x1b[1;31merror:\x1b[0m no\nhint: go");
        assert_eq!(marked("* bob shares error: x"), "* bob shares error: x");
    }
}
