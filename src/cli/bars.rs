//! Bars of what is under way, drawn into memory: a line each.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
use serde_json::Value;
use unicode_width::UnicodeWidthChar as _;

use super::{progress, text};

/// Bars shown at once; what is more is counted.
pub const MAX_BARS: usize = 8;

/// Bars.
#[derive(Default)]
pub struct Bars(Vec<Bar>);

impl Bars {
    /// These items are this far, all others are done.
    pub fn set<'a>(&mut self, items: impl Iterator<Item = &'a Value>) {
        let mut old = std::mem::take(&mut self.0);
        for item in items {
            let key = key(item);
            let bar = match old.iter().position(|bar| bar.key == key) {
                Some(at) => old.swap_remove(at),
                None => Bar::new(key, item),
            };
            bar.set(item);
            self.0.push(bar);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lines, at most so many, each at most so wide.
    pub fn lines(&self, columns: usize, room: usize) -> Vec<String> {
        let most = MAX_BARS.min(room);
        let line = |bar: &Bar| cut(bar.line.text().trim_end(), columns);
        if self.0.len() <= most {
            return self.0.iter().map(line).collect();
        }
        let shown = if room > MAX_BARS { MAX_BARS } else { most.saturating_sub(1) };
        let mut lines: Vec<_> = self.0.iter().take(shown).map(line).collect();
        if room > 0 {
            lines.push(cut(&format!("... and {} more", self.0.len() - shown), columns));
        }
        lines
    }
}

/// What makes an item the same one as before.
fn key(item: &Value) -> String {
    format!("{} {} {}", item["state"] == "hashing", item["group"], item["name"])
}

struct Bar {
    key: String,
    bar: ProgressBar,
    line: Line,
}

impl Bar {
    fn new(key: String, item: &Value) -> Self {
        let line = Line::default();
        let style = match item["note"].as_str() {
            Some(_) => progress::noted(),
            None => progress::counting(),
        };
        // Nothing is ever drawn on the terminal by itself.
        let target = ProgressDrawTarget::term_like(Box::new(line.clone()));
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style);
        Self { key, bar, line }
    }

    fn set(&self, item: &Value) {
        let word = |field: &str| text::printable(item[field].as_str().unwrap_or(""));
        let verb = match item["state"].as_str() {
            Some(state @ ("hashing" | "checking")) => format!("{state} "),
            _ => String::new(),
        };
        self.bar.set_length(item["size"].as_u64().unwrap_or(0));
        let name = match item["files_done"].as_u64() {
            Some(done) => format!("{done} of {}", word("name")),
            None => cut(&word("name"), 40),
        };
        self.bar.set_message(format!("{verb}{name}"));
        self.bar.set_prefix(word("note"));
        self.bar.set_position(item["done_bytes"].as_u64().unwrap_or(0));
        self.bar.tick();
    }
}

/// A terminal of one line that is only remembered.
#[derive(Clone, Debug, Default)]
struct Line(Arc<Mutex<String>>);

impl Line {
    fn text(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TermLike for Line {
    fn width(&self) -> u16 {
        // It is cut where it is shown.
        500
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, words: &str) -> io::Result<()> {
        self.write_str(words)
    }

    fn write_str(&self, words: &str) -> io::Result<()> {
        match words {
            // The line begins anew.
            "\r" => self.text().clear(),
            words => self.text().push_str(words),
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.text().clear();
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// As much of a line as fits into so many columns.
fn cut(line: &str, columns: usize) -> String {
    let mut left = columns;
    let fits = line.chars().take_while(|c| {
        let width = c.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    });
    fits.collect()
}
