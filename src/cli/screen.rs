//! What a person sees: results, words, and below them a bar for everything under way.
//!
//! Bars are drawn where a terminal is and nowhere else. They stand below the cursor, which is therefore
//! always where the next line begins: nothing about them has to be remembered, and a terminal may change
//! its size at any time. While a person types at the prompt, lines appear above it and bars below it; what
//! is being typed is painted again between them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use unicode_width::UnicodeWidthChar as _;

use tokio_util::sync::CancellationToken;

use super::bars::Bars;
use super::printer::{Kind, LeftOut, Printer, Stream};
use super::{colour, request, terminal, text};
use crate::{clock, limits};

/// The distance between the stops of a tabulator, as the editor has it.
const TAB: usize = 8;

/// Which news are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// What was taken, or is not what it was.
    Grave,
    /// All.
    All,
    /// All but what one does oneself, for those who see the answers to that.
    Others,
    /// All, as objects on standard output.
    Json,
}

/// Whether something under way gets a bar.
pub type Which = fn(&Value) -> bool;

/// A terminal, or whatever stands in its place.
pub struct Screen {
    state: Mutex<State>,
}

struct State {
    news: News,
    which: Option<Which>,
    mode: Mode,
    /// Whether standard error is a terminal: words and bars can be drawn on it.
    has_bars: bool,
    colours: bool,
    bars: Bars,
    /// Whether there are bars below the cursor.
    drawn: bool,
    printer: Printer,
    left_out: LeftOut,
    /// What was said while the terminal stood still, and somebody typed: it would be drawn over what they see
    /// by then.
    behind: Waiting,
    /// Columns and rows of the terminal.
    size: fn() -> (usize, usize),
}

/// Who has the terminal.
enum Mode {
    /// Nobody else.
    Free,
    /// Somebody types a line.
    Typing(Typing),
    /// Somebody who must not be disturbed.
    Held(Waiting),
}

/// What the editor shows, or is just about to show.
#[derive(Default)]
struct Typing {
    /// With its colours.
    prompt: String,
    /// Without.
    plain: String,
    line: String,
    /// Bytes of the line before the cursor.
    position: usize,
    is_shown: bool,
    /// Set while the editor lists what a word may become.
    listing: Option<Waiting>,
}

/// Lines that are said later.
#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    lost: usize,
}

impl Waiting {
    fn push(&mut self, lines: &str) {
        if self.lines.len() == limits::SCREEN_LINES {
            self.lines.pop_front();
            self.lost += 1;
        }
        self.lines.push_back(lines.to_owned());
    }

    fn take(self) -> String {
        let lost = match self.lost {
            0 => String::new(),
            lost => left_out(lost) + "\n",
        };
        self.lines.into_iter().fold(lost, |all, lines| all + &lines)
    }
}

/// What is said of lines that are not shown.
pub fn left_out(lines: usize) -> String {
    format!("... {} left out", text::count(lines, "line"))
}

/// A terminal that is left alone as long as this is kept.
pub struct Hold<'a>(&'a Screen);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.lock().release();
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").finish_non_exhaustive()
    }
}

impl Screen {
    /// Standard output and standard error.
    pub fn new(printer: Printer, news: News) -> Self {
        let has_bars = io::stderr().is_terminal();
        Self::over(printer, news, has_bars, colour::is_on(&io::stderr()), terminal::size)
    }

    fn over(
        printer: Printer,
        news: News,
        has_bars: bool,
        colours: bool,
        size: fn() -> (usize, usize),
    ) -> Self {
        let state = State {
            news,
            which: None,
            mode: Mode::Free,
            has_bars,
            colours,
            bars: Bars::default(),
            drawn: false,
            printer,
            left_out: LeftOut::default(),
            behind: Waiting::default(),
            size,
        };
        Self { state: Mutex::new(state) }
    }

    /// From now on these news are told.
    pub fn set_news(&self, news: News) {
        self.lock().news = news;
    }

    /// Whether bars can be seen.
    pub fn has_bars(&self) -> bool {
        let state = self.lock();
        state.has_bars && state.news != News::Json
    }

    /// From now on these get bars.
    pub fn show(&self, which: Which) {
        self.lock().which = Some(which);
    }

    /// No bars from now on, and nobody types any more.
    pub fn hide(&self) {
        let mut state = self.lock();
        (state.which, state.bars) = (None, Bars::default());
        state.release();
        state.end_typing();
        state.paint(Kind::News, "");
    }

    /// Leaves the terminal alone: what is said meanwhile is said afterwards.
    pub fn hold(&self) -> Hold<'_> {
        let mut state = self.lock();
        state.erase();
        state.printer.settle();
        state.mode = Mode::Held(Waiting::default());
        Hold(self)
    }

    /// Says something on standard error.
    pub fn say(&self, words: &str) {
        self.lock().say(Kind::News, words);
    }

    /// The same, of what is a part of a result.
    pub fn insist(&self, words: &str) {
        self.lock().say(Kind::Result, words);
    }

    /// Prints a result on standard output.
    pub fn print(&self, result: &str) {
        self.lock().print(Kind::Result, result);
    }

    /// Cancelled when nobody reads results any more.
    pub fn unread(&self) -> CancellationToken {
        self.lock().printer.unread()
    }

    /// Returns when somebody has read all results.
    pub async fn until_taken(&self) {
        let printer = self.lock().printer.clone();
        printer.until_taken().await;
    }

    /// Empties the terminal.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.drawn = false;
        state.write(Kind::News, "\x1b[H\x1b[2J", 0);
    }

    /// Hears an event of an agent.
    pub fn hear(&self, event: &Value) {
        let news = self.lock().news;
        if event["event"] == "progress" {
            return match news {
                News::Json => self.lock().print(Kind::News, &event.to_string()),
                _ => self.lock().progress(&event["items"]),
            };
        }
        let message = event["message"].as_str().map(text::printable);
        match (news, message) {
            (News::Json, Some(_)) => self.lock().print(Kind::News, &event.to_string()),
            (News::All, Some(message)) => self.say(&format!("* {message}")),
            (News::Others, Some(message)) if !is_ones_own(event) => {
                self.say(&format!("* {message}"));
            }
            (News::Grave, Some(message)) if event["grave"] == true => {
                self.say(&format!("* {message}"));
            }
            _ => {}
        }
    }

    /// From now on a line is edited where the cursor is.
    pub fn begin_typing(&self) {
        let mut state = self.lock();
        state.erase();
        state.printer.settle();
        state.mode = Mode::Typing(Typing::default());
    }

    /// The editor is about to show this prompt, coloured if it is `own`; what it is to write instead.
    pub fn shown_prompt(&self, prompt: &str, own: bool) -> String {
        let mut state = self.lock();
        let coloured = match own && state.colours {
            true => colour::prompt(prompt),
            false => prompt.to_owned(),
        };
        let Mode::Typing(typing) = &mut state.mode else { return coloured };
        (typing.prompt, typing.plain) = (coloured.clone(), prompt.to_owned());
        match typing.listing.take() {
            // The cursor stands where the prompt begins.
            Some(waiting) => format!("\x1b[J{}{coloured}", waiting.take()),
            None => coloured,
        }
    }

    /// The editor is about to show this line, its cursor behind so many bytes.
    pub fn shown_line(&self, line: &str, position: usize) {
        if let Mode::Typing(typing) = &mut self.lock().mode {
            (typing.line, typing.position, typing.is_shown) = (line.to_owned(), position, true);
        }
    }

    /// What the editor is to write behind the line: what stands below it.
    pub fn shown_below(&self) -> String {
        let mut state = self.lock();
        let (columns, rows) = (state.size)();
        let Mode::Typing(typing) = &state.mode else { return String::new() };
        let end = typing.place(typing.line.len(), columns);
        let below = state.below(columns, rows.saturating_sub(end.row + 2));
        match end.is_wrapped() {
            // The editor goes to the next row itself, only later.
            true => format!("\n{below}\x1b[A"),
            false => below,
        }
    }

    /// The editor is about to list what a word may become, and shows its prompt anew afterwards.
    pub fn lists(&self) {
        if let Mode::Typing(typing) = &mut self.lock().mode {
            typing.listing.get_or_insert_default();
        }
    }

    /// The line is typed, the cursor stands below it.
    pub fn end_typing(&self) {
        let mut state = self.lock();
        if let Mode::Typing(typing) = std::mem::replace(&mut state.mode, Mode::Free) {
            state.erase();
            state.paint(Kind::News, &typing.listing.unwrap_or_default().take());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Everything that gets a bar is this far.
    fn progress(&mut self, items: &Value) {
        let Some(which) = self.which.filter(|_| self.has_bars) else { return };
        self.bars.set(items.as_array().into_iter().flatten().filter(|item| which(item)));
        // Nobody wants to see all that they did not see.
        if self.bars.is_empty() || !self.printer.stands_still() {
            self.paint(Kind::News, "");
        }
    }

    fn say(&mut self, kind: Kind, words: &str) {
        if self.has_bars {
            let words = if self.colours { colour::marked(words) } else { words.to_owned() };
            self.paint(kind, &format!("{words}\n"));
        } else {
            self.put((Stream::Error, kind), format!("{words}\n"), words.lines().count());
        }
    }

    fn print(&mut self, kind: Kind, result: &str) {
        if result.is_empty() {
            return;
        }
        let lines = format!("{result}\n");
        if !matches!(self.mode, Mode::Free) && io::stdout().is_terminal() {
            return self.paint(kind, &lines);
        }
        self.erase();
        self.put((Stream::Output, kind), lines, result.lines().count());
    }

    /// Puts whole lines where the cursor is, and the bars below them.
    fn paint(&mut self, kind: Kind, lines: &str) {
        if matches!(self.mode, Mode::Typing(_)) && self.printer.stands_still() {
            if !lines.is_empty() {
                self.behind.push(lines);
            }
            return;
        }
        let lines = &(std::mem::take(&mut self.behind).take() + lines);
        let has_news = !lines.is_empty() || !self.bars.is_empty() || self.drawn;
        let (columns, rows) = (self.size)();
        let mut out = String::new();
        match &mut self.mode {
            Mode::Held(waiting) => {
                if !lines.is_empty() {
                    waiting.push(lines);
                }
            }
            Mode::Typing(Typing { listing: Some(waiting), .. }) => {
                if !lines.is_empty() {
                    waiting.push(lines);
                }
            }
            // The editor begins where the cursor is.
            Mode::Typing(typing) if !typing.is_shown => out += lines,
            Mode::Typing(typing) if has_news => {
                let cursor = typing.place(typing.position, columns);
                let end = typing.place(typing.line.len(), columns);
                let shown = format!("{}{}", typing.prompt, typing.line);
                out += &format!("{}\r\x1b[J{lines}{shown}", up(cursor.row));
                if end.is_wrapped() {
                    out += "\n";
                }
                out += &self.below(columns, rows.saturating_sub(end.row + 2));
                out += &up(end.row - cursor.row);
                out += "\r";
                if cursor.column > 0 {
                    out += &format!("\x1b[{}C", cursor.column);
                }
            }
            Mode::Free if self.drawn || !self.bars.is_empty() => {
                let below = self.below(columns, rows.saturating_sub(2));
                out = format!("\r\x1b[J{lines}{below}\r");
            }
            Mode::Typing(_) | Mode::Free => out += lines,
        }
        self.write(kind, &out, lines.lines().count());
        if matches!(self.mode, Mode::Typing(_)) {
            // The editor writes next, and by itself.
            self.printer.settle();
        }
    }

    /// What puts the bars below the cursor and leaves it in its row.
    fn below(&mut self, columns: usize, room: usize) -> String {
        let lines = self.bars.lines(columns.saturating_sub(1), room);
        self.drawn = !lines.is_empty();
        let text = lines.iter().fold(String::new(), |text, line| text + "\n" + line);
        format!("\x1b[J{text}{}", up(lines.len()))
    }

    /// Takes away the bars below the cursor.
    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            self.write(Kind::News, "\r\x1b[J", 0);
        }
    }

    /// Whoever wanted to be left alone no longer does.
    fn release(&mut self) {
        if matches!(self.mode, Mode::Held(_))
            && let Mode::Held(waiting) = std::mem::replace(&mut self.mode, Mode::Free)
        {
            self.paint(Kind::News, &waiting.take());
        }
    }

    /// Goes below a line that is being typed and will never be finished.
    fn end_typing(&mut self) {
        let Mode::Typing(typing) = &self.mode else { return };
        if typing.is_shown {
            let (columns, _) = (self.size)();
            let (end, cursor) = (typing.line.len(), typing.position);
            let down = typing.place(end, columns).row - typing.place(cursor, columns).row;
            self.drawn = false;
            self.write(Kind::News, &format!("{}\r\x1b[J", "\n".repeat(down + 1)), 0);
        }
        self.mode = Mode::Free;
    }

    /// Writes where everything is drawn; so many of the lines are news.
    fn write(&mut self, kind: Kind, text: &str, lines: usize) {
        let to = if self.has_bars { Stream::Error } else { Stream::Output };
        if !text.is_empty() {
            self.put((to, kind), text.to_owned(), lines);
        }
    }

    /// Prints something in which there are so many lines.
    fn put(&mut self, to: (Stream, Kind), text: String, lines: usize) {
        let news = self.news;
        self.left_out.put(&self.printer, to, (text, lines), |missed| match news {
            News::Json => {
                let lagged = request::lagged(missed as u64);
                (Stream::Output, request::event(lagged, clock::now()))
            }
            _ => (Stream::Error, left_out(missed)),
        });
    }
}

impl Typing {
    /// Where the cursor is behind so many bytes of the line, from where the prompt begins.
    fn place(&self, position: usize, columns: usize) -> Place {
        let before = self.line.get(..position).unwrap_or(&self.line);
        Place::default().behind(&self.plain, columns).behind(before, columns).settled(columns)
    }
}

/// A place on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    row: usize,
    column: usize,
    /// Whether the row above is full to its end.
    is_full: bool,
}

impl Place {
    fn behind(mut self, text: &str, columns: usize) -> Self {
        for c in text.chars() {
            let width = match c {
                '\n' => {
                    (self.row, self.column) = (self.row + 1, 0);
                    continue;
                }
                '\t' => TAB - self.column % TAB,
                c => c.width().unwrap_or(0),
            };
            self.column += width;
            if self.column > columns {
                (self.row, self.column) = (self.row + 1, width);
            }
        }
        self
    }

    /// Behind a full row the cursor belongs into the next one.
    fn settled(self, columns: usize) -> Self {
        match self.column == columns {
            true => Self { row: self.row + 1, column: 0, is_full: true },
            false => self,
        }
    }

    /// Whether a terminal left to itself would still be in the row above.
    fn is_wrapped(self) -> bool {
        self.is_full
    }
}

fn up(rows: usize) -> String {
    match rows {
        0 => String::new(),
        rows => format!("\x1b[{rows}A"),
    }
}

/// Whether an event is what became of a command.
fn is_ones_own(event: &Value) -> bool {
    let name = event["event"].as_str().unwrap_or("");
    let own = [
        "shared",
        "stopped",
        "started",
        "paused",
        "cancelled",
        "logged-in",
        "logged-out",
        "started-many",
    ];
    // Of many that were asked for together it is said when all are there.
    own.contains(&name) || event["of_many"] == true
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// A terminal of 40 columns and 12 rows.
    #[derive(Clone)]
    struct Glass {
        parser: Arc<Mutex<vt100::Parser>>,
        /// What the editor has drawn: rows above the cursor, and below it.
        drawn: (usize, usize),
        /// What writes to it, of whoever looks at it.
        printer: Option<Printer>,
    }

    impl Write for Glass {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Terminals go to the first column with every line end.
            let text = String::from_utf8_lossy(bytes).replace('\n', "\r\n");
            self.parser.lock().expect("whole").process(text.as_bytes());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn size(count: u16) -> std::num::NonZeroU16 {
        count.try_into().expect("some")
    }

    impl Glass {
        fn new() -> (Self, Screen) {
            let parser = Arc::new(Mutex::new(vt100::Parser::new(size(12), size(40), 0)));
            let mut glass = Self { parser, drawn: (0, 0), printer: None };
            let drawn = || Box::new(glass.clone());
            let printer = Printer::over(drawn(), drawn(), Duration::from_secs(60));
            let printer = printer.expect("started");
            let screen = Screen::over(printer.clone(), News::All, true, false, || (40, 12));
            glass.printer = Some(printer);
            screen.show(|item| item["state"] != "hashing");
            (glass, screen)
        }

        fn rows(&self) -> Vec<String> {
            self.printer.as_ref().expect("ours").settle();
            let parser = self.parser.lock().expect("whole");
            let rows = parser.screen().rows(0, 40).map(|row| row.trim_end().to_owned());
            let mut rows: Vec<_> = rows.collect();
            while rows.last().is_some_and(String::is_empty) {
                rows.pop();
            }
            rows
        }

        fn cursor(&self) -> (u16, u16) {
            self.printer.as_ref().expect("ours").settle();
            self.parser.lock().expect("whole").screen().cursor_position()
        }

        /// Draws as the editor does.
        fn edit(&mut self, screen: &Screen, line: &str, position: usize) {
            let prompt = screen.shown_prompt("mtq> ", true);
            screen.shown_line(line, position);
            let below = screen.shown_below();
            let place = |text: &str| Place::default().behind(text, 40).settled(40);
            let end = place(&format!("mtq> {line}"));
            let cursor = place(&format!("mtq> {}", &line[..position]));
            let wrap = if end.is_wrapped() { "\n" } else { "" };
            let column = format!("\x1b[{}C", cursor.column);
            let column = if cursor.column > 0 { column } else { String::new() };
            let back = up(end.row - cursor.row);
            let (above, under) =
                std::mem::replace(&mut self.drawn, (cursor.row, end.row - cursor.row));
            let down = if under > 0 { format!("\x1b[{under}B") } else { String::new() };
            let clear = down + &"\r\x1b[K\x1b[A".repeat(above + under) + "\r\x1b[K";
            write!(self, "{clear}{prompt}{line}{below}{wrap}{back}\r{column}").expect("drawn");
        }
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

    fn news(message: &str) -> Value {
        json!({"event": "notice", "message": message, "grave": false})
    }

    #[test]
    fn bars_stand_below_words_and_go_when_all_is_done() {
        let (glass, screen) = Glass::new();
        screen.hear(&progress(&["a.iso", "b.iso"]));
        let rows = glass.rows();
        assert_eq!(rows.len(), 3, "{rows:?}");
        assert!(rows[1].starts_with("a.iso [==========>"), "{rows:?}");
        screen.hear(&news("bob shares \u{1b}c"));
        let rows = glass.rows();
        assert_eq!((rows[0].as_str(), rows.len()), ("* bob shares \\u{1b}c", 4), "{rows:?}");
        screen.hear(&progress(&["b.iso"]));
        let rows = glass.rows();
        assert_eq!((rows[2].starts_with("b.iso"), rows.len()), (true, 3), "{rows:?}");
        screen.hear(&progress(&[]));
        assert_eq!(glass.rows(), ["* bob shares \\u{1b}c"]);
        assert_eq!(glass.cursor(), (1, 0));
    }

    #[test]
    fn what_is_typed_stays_between_news_and_bars() {
        let (mut glass, screen) = Glass::new();
        screen.begin_typing();
        screen.hear(&news("early"));
        glass.edit(&screen, "get lab", 3);
        screen.hear(&progress(&["a.iso"]));
        screen.hear(&news("bob joins"));
        let rows = glass.rows();
        assert_eq!(rows[..3], ["* early", "* bob joins", "mtq> get lab"], "{rows:?}");
        assert!(rows[3].starts_with("a.iso ["), "{rows:?}");
        assert_eq!(glass.cursor(), (2, 8));
        // Lines of every length, also those that fill rows to their ends.
        for len in 1..=120 {
            let line = "0123456789".repeat(12)[..len].to_owned();
            for position in [0, len / 2, len] {
                let (mut glass, screen) = Glass::new();
                screen.begin_typing();
                glass.edit(&screen, &line, position);
                let (rows, cursor) = (glass.rows(), glass.cursor());
                screen.hear(&news("one"));
                screen.hear(&progress(&["a.iso", "b.iso"]));
                glass.edit(&screen, &line, position);
                screen.hear(&news("two"));
                let now = glass.rows();
                let height = (5 + len).div_ceil(40);
                assert_eq!(now[..2], ["* one", "* two"], "{len} {now:?}");
                assert_eq!(now[2..2 + height], rows[..height], "{len} {now:?}");
                assert!(now[now.len() - 2].starts_with("a.iso"), "{len} {now:?}");
                assert_eq!(glass.cursor(), (cursor.0 + 2, cursor.1), "{len} {position}");
            }
        }
    }

    #[test]
    fn what_is_said_meanwhile_is_said_when_there_is_room() {
        let (mut glass, screen) = Glass::new();
        let hold = screen.hold();
        screen.hear(&news("one"));
        screen.hear(&progress(&["a.iso"]));
        assert!(glass.rows().is_empty());
        drop(hold);
        assert_eq!(glass.rows()[0], "* one");
        screen.begin_typing();
        glass.edit(&screen, "ge", 2);
        screen.lists();
        screen.hear(&news("two"));
        assert!(!glass.rows().contains(&"* two".to_owned()), "{:?}", glass.rows());
        write!(glass, "\n\x1b[Kget  \x1b[Kgetter\n").expect("drawn");
        glass.edit(&screen, "get", 3);
        let rows = glass.rows();
        assert_eq!(rows[..5], ["* one", "mtq> ge", "get  getter", "* two", "mtq> get"]);
        screen.hide();
        assert_eq!(glass.rows().len(), 5, "{:?}", glass.rows());
        assert_eq!(glass.cursor(), (5, 0));
        let mut waiting = Waiting::default();
        for n in 0..=limits::SCREEN_LINES {
            waiting.push(&format!("{n}\n"));
        }
        assert!(waiting.take().starts_with("... 1 line left out\n1\n"));
    }

    #[test]
    fn many_bars_are_counted_and_long_lines_cut() {
        let (glass, screen) = Glass::new();
        let names: Vec<_> = (0..20).map(|n| format!("{n} {}", "日".repeat(100))).collect();
        screen.hear(&progress(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let rows = glass.rows();
        assert_eq!(rows.len(), 10, "{rows:?}");
        assert_eq!(rows[9], "... and 12 more");
        let mut bars = Bars::default();
        bars.set(progress(&["a", "b", "c"])["items"].as_array().expect("items").iter());
        let lines = |room| bars.lines(39, room).len();
        assert_eq!([0, 1, 2, 3, 4].map(lines), [0, 1, 2, 3, 3]);
        assert_eq!(bars.lines(39, 2)[1], "... and 2 more");
    }
}
