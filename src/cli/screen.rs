//! What a person sees: results, words, and below them a bar for everything under way.
//!
//! Bars are drawn where a terminal is and nowhere else. Whatever is said goes above them, whole lines at
//! a time, also while a person is typing at the prompt.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
use serde_json::Value;
use unicode_width::UnicodeWidthChar as _;

use super::{progress, text};

/// Bars shown at once; what is more is counted.
const MAX_BARS: usize = 8;

/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;

/// Which news are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// None.
    None,
    /// What was taken, or is not what it was.
    Grave,
    /// All.
    All,
    /// All, as objects on standard output.
    Json,
}

/// Whether something under way gets a bar.
pub type Which = fn(&Value) -> bool;

/// Where lines go above a prompt.
pub type Prompt = Box<dyn FnMut(String) + Send>;

/// A terminal, or whatever stands in its place.
pub struct Screen {
    state: Mutex<State>,
}

struct State {
    news: News,
    which: Option<Which>,
    prompt: Option<Prompt>,
    has_bars: bool,
    bars: Vec<Bar>,
    /// Lines of bars above the cursor.
    drawn: usize,
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").finish_non_exhaustive()
    }
}

impl Screen {
    /// Standard output and standard error.
    pub fn new(news: News) -> Self {
        let has_bars = io::stderr().is_terminal();
        let state = State { news, which: None, prompt: None, has_bars, bars: Vec::new(), drawn: 0 };
        Self { state: Mutex::new(state) }
    }

    /// From now on these news are told.
    pub fn set_news(&self, news: News) {
        self.lock().news = news;
    }

    /// From now on lines go above a prompt.
    pub fn set_prompt(&self, prompt: Prompt) {
        self.lock().prompt = Some(prompt);
    }

    /// Whether bars can be seen.
    pub fn has_bars(&self) -> bool {
        self.lock().has_bars
    }

    /// From now on these get bars.
    pub fn show(&self, which: Which) {
        self.lock().which = Some(which);
    }

    /// No bars from now on.
    pub fn hide(&self) {
        let mut state = self.lock();
        (state.which, state.bars) = (None, Vec::new());
        state.draw("");
    }

    /// A line was typed at the prompt: the bars that stood above it are gone.
    pub fn typed(&self) {
        self.lock().drawn = 0;
    }

    /// How many lines of bars stand above the cursor.
    pub fn drawn(&self) -> usize {
        self.lock().drawn
    }

    /// Says something on standard error.
    pub fn say(&self, words: &str) {
        let mut state = self.lock();
        match state.is_drawing() {
            true => state.draw(&format!("{words}\n")),
            false => eprintln!("{words}"),
        }
    }

    /// Prints a result on standard output; a reader that went away is nobody's fault.
    pub fn print(&self, result: &str) {
        if result.is_empty() {
            return;
        }
        let mut state = self.lock();
        if state.prompt.is_some() && io::stdout().is_terminal() {
            return state.draw(&format!("{result}\n"));
        }
        if state.drawn > 0 {
            let bars = std::mem::take(&mut state.bars);
            state.draw("");
            state.bars = bars;
        }
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{result}").and_then(|()| out.flush());
    }

    /// Hears an event of an agent.
    pub fn hear(&self, event: &Value) {
        if event["event"] == "progress" {
            return self.lock().progress(&event["items"]);
        }
        let news = self.lock().news;
        let message = event["message"].as_str().map(text::printable);
        match (news, message) {
            (News::Json, Some(_)) => self.print(&event.to_string()),
            (News::All, Some(message)) => self.say(&format!("* {message}")),
            (News::Grave, Some(message)) if event["grave"] == true => {
                self.say(&format!("* {message}"));
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_drawing(&self) -> bool {
        self.drawn > 0 || self.prompt.is_some()
    }

    /// Everything that gets a bar is this far.
    fn progress(&mut self, items: &Value) {
        let Some(which) = self.which.filter(|_| self.has_bars) else { return };
        let wanted: Vec<_> = items.as_array().into_iter().flatten().filter(|i| which(i)).collect();
        let mut old = std::mem::take(&mut self.bars);
        for item in wanted {
            let key = key(item);
            let bar = match old.iter().position(|bar| bar.key == key) {
                Some(at) => old.swap_remove(at),
                None => Bar::new(key, item),
            };
            bar.set(item);
            self.bars.push(bar);
        }
        self.draw("");
    }

    /// Puts whole lines where the bars were, and the bars below them.
    fn draw(&mut self, lines: &str) {
        let rows: Vec<_> = self.bars.iter().map(Bar::row).collect();
        let more = rows.len().saturating_sub(MAX_BARS);
        let mut out = String::new();
        if self.drawn > 0 {
            out += &format!("\x1b[{}A\r\x1b[J", self.drawn);
        }
        out += lines;
        let columns = columns();
        for row in rows.iter().take(MAX_BARS) {
            out += &cut(row, columns.saturating_sub(1));
            out += "\n";
        }
        if more > 0 {
            out += &format!("... and {more} more\n");
        }
        if out.is_empty() {
            return;
        }
        let had = std::mem::replace(&mut self.drawn, rows.len().min(MAX_BARS) + more.min(1));
        match &mut self.prompt {
            Some(prompt) => {
                if had > 0 && self.drawn == 0 && lines.is_empty() {
                    // What goes above a prompt ends with a line end.
                    out += "\x1b[A\n";
                }
                prompt(out);
            }
            None => {
                let mut err = io::stderr().lock();
                let _ = err.write_all(out.as_bytes()).and_then(|()| err.flush());
            }
        }
    }
}

/// What makes an item the same one as before.
fn key(item: &Value) -> String {
    format!("{} {} {}", item["state"] == "hashing", item["group"], item["name"])
}

/// One bar, drawn into memory.
struct Bar {
    key: String,
    bar: ProgressBar,
    line: Line,
}

impl Bar {
    fn new(key: String, item: &Value) -> Self {
        let line = Line::default();
        let bar = match item["note"].as_str() {
            Some(_) => progress::noted_bar(),
            None => progress::bytes_bar(0, String::new()),
        };
        bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(line.clone())));
        Self { key, bar, line }
    }

    fn set(&self, item: &Value) {
        let word = |field: &str| text::printable(item[field].as_str().unwrap_or(""));
        let verb = match item["state"].as_str() {
            Some(state @ ("hashing" | "checking")) => format!("{state} "),
            _ => String::new(),
        };
        self.bar.set_length(item["size"].as_u64().unwrap_or(0));
        self.bar.set_message(format!("{verb}{}", cut(&word("name"), 40)));
        self.bar.set_prefix(word("note"));
        self.bar.set_position(item["done_bytes"].as_u64().unwrap_or(0));
        self.bar.tick();
    }

    fn row(&self) -> String {
        self.line.text().trim_end().to_owned()
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

/// How wide the terminal is.
pub fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok().map(|size| size.ws_col.into()).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use serde_json::json;

    use super::*;

    fn screen() -> (Screen, Receiver<String>) {
        let screen = Screen::new(News::All);
        let (sender, lines) = channel();
        screen.set_prompt(Box::new(move |line| sender.send(line).expect("heard")));
        screen.lock().has_bars = true;
        screen.show(|item| item["state"] != "hashing");
        (screen, lines)
    }

    fn progress(names: &[&str]) -> Value {
        let item = |name: &&str| {
            json!({
                "state": "downloading", "group": "lab", "name": name, "done_bytes": 1 << 20,
                "size": 1 << 21, "note": "1 peer",
            })
        };
        json!({"event": "progress", "items": names.iter().map(item).collect::<Value>()})
    }

    #[test]
    fn words_go_above_the_bars_and_bars_go_when_all_is_done() {
        let (screen, lines) = screen();
        screen.hear(&progress(&["a.iso", "b.iso"]));
        let drawn = lines.recv().expect("drawn");
        let rows: Vec<_> = drawn.lines().collect();
        assert_eq!(rows.len(), 2, "{drawn}");
        assert!(rows[0].starts_with("a.iso [==========>"), "{drawn}");
        assert!(rows[0].ends_with("1.00 MiB/2.00 MiB 1 peer"), "{drawn}");
        screen.hear(
            &json!({"event": "file-listed", "message": "bob shares \u{1b}c", "grave": false}),
        );
        let drawn = lines.recv().expect("drawn");
        assert!(drawn.starts_with("\x1b[2A\r\x1b[J* bob shares \\u{1b}c\na.iso"), "{drawn:?}");
        assert!(drawn.ends_with('\n'));
        screen.hear(&progress(&[]));
        assert_eq!(lines.recv().expect("drawn"), "\x1b[2A\r\x1b[J\x1b[A\n");
        screen.hear(&progress(&[]));
        assert!(lines.try_recv().is_err(), "nothing to draw, nothing drawn");
    }

    #[test]
    fn many_bars_are_counted_and_long_lines_cut() {
        let (screen, lines) = screen();
        let names: Vec<_> = (0..20).map(|n| format!("{n} {}", "日".repeat(100))).collect();
        screen.hear(&progress(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let drawn = lines.recv().expect("drawn");
        assert_eq!(drawn.lines().count(), MAX_BARS + 1);
        assert!(drawn.ends_with("... and 12 more\n"), "{drawn}");
        let wide = |line: &str| line.chars().filter_map(|c| c.width()).sum::<usize>();
        assert!(drawn.lines().all(|line| wide(line) < columns()), "{drawn}");
    }
}
