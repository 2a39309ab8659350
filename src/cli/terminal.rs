//! The terminal this program was started on: how large it is, and how it was found.
//!
//! It is left as it was found, whoever had it last.

use std::io::{self, IsTerminal as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::printer::{Kind, Printer, Stream};

/// Columns and rows of a terminal that does not say.
const SIZE: (usize, usize) = (80, 24);

/// Switches off what marks pasted text, which whoever edited a line may have switched on.
const NO_MARKED_PASTE: &str = "\x1b[?2004l";

/// The state in which the terminal was found; it is restored when this goes.
pub struct Terminal {
    found: Option<Termios>,
    printer: Printer,
}

impl Terminal {
    /// Remembers how the terminal is, if there is one.
    pub fn keep(printer: Printer) -> Self {
        let input = io::stdin();
        Self { found: input.is_terminal().then(|| tcgetattr(input).ok()).flatten(), printer }
    }

    /// From now on what is typed is not shown by the terminal itself, and kept as it is until somebody
    /// reads it; but keys that are signals stay signals.
    pub fn hush(&self) {
        if let Some(mut modes) = self.found.clone() {
            modes.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
            // A terminal that cannot do it only looks worse.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let (Some(found), Ok(now)) = (&self.found, tcgetattr(io::stdin())) else { return };
        let was_edited = !now.local_modes.contains(LocalModes::ICANON)
            && found.local_modes.contains(LocalModes::ICANON);
        if was_edited && io::stdout().is_terminal() {
            self.printer.put(Stream::Output, Kind::News, NO_MARKED_PASTE.to_owned());
            self.printer.settle();
        }
        if (now.local_modes, now.input_modes) != (found.local_modes, found.input_modes) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, found);
        }
    }
}

/// Whether a line can be edited on the terminal.
pub fn can_edit() -> bool {
    let is_able = |term: &std::ffi::OsStr| !["dumb", "cons25", "emacs"].iter().any(|t| term == *t);
    let able = std::env::var_os("TERM").is_none_or(|term| is_able(&term));
    able && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Columns and rows of the terminal.
pub fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stderr()).or_else(|_| tcgetwinsize(io::stdout()));
    let size = size.map_or((0, 0), |size| (size.ws_col.into(), size.ws_row.into()));
    let or = |given: usize, otherwise| if given > 0 { given } else { otherwise };
    (or(size.0, SIZE.0), or(size.1, SIZE.1))
}
