//! Standard output and standard error, written by a thread of their own.
//!
//! A terminal that stands still, after Ctrl-S or behind a connection that went down, and a reader that does
//! not read hold up nobody for longer than a moment: what is said meanwhile waits, and goes on in order.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::text;
use crate::limits::UNREAD_OUTPUT;

/// Whoever prints something waits so long for it to be written: as long as all goes well nothing else is
/// written before.
const MOMENT: Duration = Duration::from_millis(200);

/// Where something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// What becomes of it where nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// When too much waits it is left out, and counted.
    News,
    /// It is waited for, and so is room for it.
    Result,
}

/// Prints; a clone is the same one.
#[derive(Clone)]
pub struct Printer {
    owner: Arc<Owner>,
    moment: Duration,
}

/// The thread ends with the last of those that own it, when all is written.
struct Owner(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    unread: CancellationToken,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Stream, Kind, String)>,
    /// Bytes of these, and of what is being written.
    bytes: usize,
    /// Results among them.
    results: usize,
    /// How many there ever were, and how many were written.
    put: u64,
    written: u64,
    /// Lines that were left out, of which nothing was said yet.
    left_out: usize,
    /// Whether something was not written within a moment, and not all is since.
    stands_still: bool,
    /// Why a result could not be written.
    lost: Option<io::Error>,
    is_over: bool,
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").finish_non_exhaustive()
    }
}

impl Printer {
    /// On standard output and standard error.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn start() -> io::Result<Self> {
        Self::over(Box::new(io::stdout()), Box::new(io::stderr()), MOMENT)
    }

    /// On these, waiting so long.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn over(
        output: Box<dyn Write + Send>,
        error: Box<dyn Write + Send>,
        moment: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let owner = Arc::new(Owner(shared.clone()));
        let work = move || shared.work(output, error);
        thread::Builder::new().name("printer".to_owned()).spawn(work)?;
        Ok(Self { owner, moment })
    }

    /// Prints something, as it is.
    pub fn put(&self, stream: Stream, kind: Kind, text: String) {
        let shared = self.shared();
        let mut queue = shared.lock();
        if kind == Kind::News && queue.is_full(text.len()) {
            queue.left_out += text.lines().count();
            return;
        }
        queue = shared.wait_while(queue, |queue| queue.is_full(text.len()));
        queue.say_left_out();
        queue.push(stream, kind, text);
        shared.changed.notify_all();
        let mine = queue.put;
        let unwritten = |queue: &mut Queue| queue.written < mine && !queue.stands_still;
        let waited = shared.changed.wait_timeout_while(queue, self.moment, unwritten);
        let (mut queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.stands_still |= waited.timed_out();
    }

    /// Whether something is not written that should be by now.
    pub fn stands_still(&self) -> bool {
        self.shared().lock().stands_still
    }

    /// Waits until all results are written, and all else that goes within a moment.
    pub fn finish(&self) {
        let shared = self.shared();
        let queue = shared.wait_while(shared.lock(), |queue| queue.results > 0);
        let unwritten = |queue: &mut Queue| queue.written < queue.put && !queue.stands_still;
        drop(shared.changed.wait_timeout_while(queue, self.moment, unwritten));
    }

    /// Cancelled when nobody reads results any more, which is nobody's fault.
    pub fn unread(&self) -> CancellationToken {
        self.shared().unread.clone()
    }

    /// Why else results could not be written, if they could not.
    pub fn take_lost(&self) -> Option<io::Error> {
        self.shared().lock().lost.take()
    }

    fn shared(&self) -> &Shared {
        &self.owner.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn work(&self, mut output: Box<dyn Write + Send>, mut error: Box<dyn Write + Send>) {
        let mut queue = self.lock();
        loop {
            if queue.waiting.is_empty() {
                queue.say_left_out();
            }
            let Some((stream, kind, text)) = queue.waiting.pop_front() else {
                if queue.is_over {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let to = match stream {
                Stream::Output => &mut output,
                Stream::Error => &mut error,
            };
            let written = to.write_all(text.as_bytes()).and_then(|()| to.flush());
            queue = self.lock();
            queue.bytes -= text.len();
            queue.written += 1;
            queue.results -= usize::from(kind == Kind::Result);
            queue.stands_still &= queue.written < queue.put;
            match written {
                Err(error) if kind == Kind::Result => {
                    if error.kind() == io::ErrorKind::BrokenPipe {
                        self.unread.cancel();
                    } else {
                        queue.lost.get_or_insert(error);
                    }
                }
                // Whoever does not want to know is not told.
                _ => {}
            }
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        queue: MutexGuard<'a, Queue>,
        mut condition: impl FnMut(&Queue) -> bool,
    ) -> MutexGuard<'a, Queue> {
        let waited = self.changed.wait_while(queue, |queue| condition(queue));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Whether there is no room for so many bytes more; for something there is, however long it is.
    fn is_full(&self, len: usize) -> bool {
        self.bytes > 0 && self.bytes + len > UNREAD_OUTPUT
    }

    fn push(&mut self, stream: Stream, kind: Kind, text: String) {
        self.bytes += text.len();
        self.results += usize::from(kind == Kind::Result);
        self.put += 1;
        self.waiting.push_back((stream, kind, text));
    }

    fn say_left_out(&mut self) {
        if self.left_out > 0 {
            let lines = text::count(std::mem::take(&mut self.left_out), "line");
            self.push(Stream::Error, Kind::News, format!("... {lines} left out\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Long enough for any machine.
    const LONG: Duration = Duration::from_secs(60);

    /// A terminal that takes something each time it is told to, and then says what.
    struct Stuck {
        goes_on: mpsc::Receiver<io::Result<()>>,
        taken: mpsc::Sender<(Stream, String)>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever no longer holds it up has let it go.
            self.goes_on.recv().unwrap_or(Ok(()))?;
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            let _ = self.taken.send((Stream::Output, text));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Standard error, which never stands still.
    struct Open(mpsc::Sender<(Stream, String)>);

    impl Write for Open {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            let _ = self.0.send((Stream::Error, text));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Taken = mpsc::Receiver<(Stream, String)>;

    /// A printer over one that stands still, what lets it go on, and what it took.
    fn stuck(moment: Duration) -> (Printer, mpsc::Sender<io::Result<()>>, Taken) {
        let (let_go, goes_on) = mpsc::channel();
        let (taken, took) = mpsc::channel();
        let stuck = Stuck { goes_on, taken: taken.clone() };
        let printer = Printer::over(Box::new(stuck), Box::new(Open(taken)), moment);
        (printer.expect("started"), let_go, took)
    }

    fn output(printer: &Printer, kind: Kind, text: &str) {
        printer.put(Stream::Output, kind, text.to_owned());
    }

    fn texts(taken: &Taken) -> Vec<String> {
        taken.iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn what_was_printed_is_there_as_long_as_all_goes_well() {
        let (printer, let_go, taken) = stuck(LONG);
        for text in ["a\n", "b\n"] {
            let_go.send(Ok(())).expect("waits for it");
            output(&printer, Kind::News, text);
            assert_eq!(taken.try_recv().expect("written").1, text);
            assert!(!printer.stands_still());
        }
    }

    #[test]
    fn a_terminal_that_stands_still_holds_up_nobody_and_gets_everything_in_the_end() {
        let (printer, let_go, taken) = stuck(Duration::ZERO);
        output(&printer, Kind::News, "a\n");
        output(&printer, Kind::Result, "b\n");
        printer.put(Stream::Error, Kind::News, "c\n".to_owned());
        assert!(printer.stands_still() && taken.try_recv().is_err());
        drop(let_go);
        printer.finish();
        drop(printer);
        assert_eq!(texts(&taken), ["a\n", "b\n", "c\n"]);
    }

    #[test]
    fn of_too_much_news_are_left_out_and_counted_and_results_wait_for_room() {
        let (printer, let_go, taken) = stuck(Duration::ZERO);
        let long = "x".repeat(UNREAD_OUTPUT);
        output(&printer, Kind::News, &long);
        output(&printer, Kind::News, "a\nb\n");
        output(&printer, Kind::News, "c\n");
        let waits = printer.clone();
        let waiting = thread::spawn(move || output(&waits, Kind::Result, "d\n"));
        assert!(taken.try_recv().is_err());
        drop(let_go);
        waiting.join().expect("it has room");
        printer.finish();
        drop(printer);
        assert_eq!(texts(&taken), [long.as_str(), "... 3 lines left out\n", "d\n"]);
    }

    #[test]
    fn news_that_nobody_reads_are_not_waited_for_at_the_end() {
        let (printer, let_go, taken) = stuck(Duration::ZERO);
        output(&printer, Kind::News, "a\n");
        printer.finish();
        assert!(taken.try_recv().is_err());
        drop(let_go);
    }

    #[test]
    fn a_reader_that_went_away_is_nobodys_fault_but_a_full_disk_is_told() {
        let (printer, let_go, _taken) = stuck(LONG);
        let fail = |kind: Kind, error: io::ErrorKind| {
            let_go.send(Err(error.into())).expect("waits for it");
            output(&printer, kind, "a\n");
            let lost = printer.take_lost().map(|error| error.kind());
            (printer.unread().is_cancelled(), lost)
        };
        assert_eq!(fail(Kind::News, io::ErrorKind::StorageFull), (false, None));
        let full = io::ErrorKind::StorageFull;
        assert_eq!(fail(Kind::Result, full), (false, Some(full)));
        assert_eq!(fail(Kind::Result, io::ErrorKind::BrokenPipe), (true, None));
    }
}
