//! Standard output and standard error, written by a thread of their own.
//!
//! A terminal that stands still, after Ctrl-S or behind a connection that went down, and a reader that does
//! not read hold up nobody: what is printed meanwhile waits, and goes on in order.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::limits::UNREAD_OUTPUT;

/// What is not written within this stands still.
const MOMENT: Duration = Duration::from_millis(200);

/// At the end news have so many moments.
const LAST: u32 = 10;

/// Whoever waited in vain does not wait again for so long.
const WEARY: Duration = Duration::from_secs(5);

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
    /// Where too much waits it is left out, and at the end it is waited for only shortly.
    News,
    /// It waits for its reader.
    Result,
}

/// Prints; a clone is the same one.
#[derive(Clone)]
pub struct Printer {
    owner: Arc<Owner>,
    moment: Duration,
}

/// How many lines of somebody's were left out, of which nothing was said yet.
#[derive(Debug, Default)]
pub struct LeftOut(usize);

/// The thread ends with the last of those that own it, when all is written.
struct Owner(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    written: Notify,
    unread: CancellationToken,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Stream, Kind, String)>,
    /// Bytes of these, and of what is being written.
    bytes: usize,
    /// Results among them.
    results: usize,
    /// Since when one is being written.
    begun: Option<Instant>,
    /// When somebody last waited in vain.
    in_vain: Option<Instant>,
    /// Why something could not be written to standard output.
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

    /// On these, of which what is not written within `moment` stands still.
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

    /// Prints something, as it is, and waits for nothing; false where it is left out.
    pub fn put(&self, stream: Stream, kind: Kind, text: String) -> bool {
        let shared = self.shared();
        let mut queue = shared.lock();
        // Something there is room for, however long it is.
        let is_full = queue.bytes > 0 && queue.bytes + text.len() > UNREAD_OUTPUT;
        if kind == Kind::News && is_full {
            return false;
        }
        queue.bytes += text.len();
        queue.results += usize::from(kind == Kind::Result);
        queue.waiting.push_back((stream, kind, text));
        shared.changed.notify_all();
        true
    }

    /// Waits until all is written, but only for a moment, and not again soon after that was in vain: for whoever
    /// writes to the terminal next.
    pub fn settle(&self) {
        let shared = self.shared();
        let queue = shared.lock();
        if queue.in_vain.is_some_and(|when| when.elapsed() < WEARY) {
            return;
        }
        let waited =
            shared.changed.wait_timeout_while(queue, self.moment, |queue| !queue.is_written());
        let (mut queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.in_vain = waited.timed_out().then(clock::monotonic);
    }

    /// Whether something is being written for longer than it should take.
    pub fn stands_still(&self) -> bool {
        self.shared().lock().begun.is_some_and(|begun| begun.elapsed() > self.moment)
    }

    /// Whether results wait for their reader.
    pub fn has_results(&self) -> bool {
        self.shared().lock().results > 0
    }

    /// Returns when all results are written.
    pub async fn until_taken(&self) {
        self.shared().until(|queue| queue.results == 0).await;
    }

    /// Returns when all results are written, and all else that goes soon.
    pub async fn finish(&self) {
        self.until_taken().await;
        let all = self.shared().until(Queue::is_written);
        let _ = tokio::time::timeout(self.moment * LAST, all).await;
    }

    /// Cancelled when nobody reads standard output any more, which is nobody's fault.
    pub fn unread(&self) -> CancellationToken {
        self.shared().unread.clone()
    }

    /// Why else something could not be written there, if it could not.
    pub fn take_lost(&self) -> Option<io::Error> {
        self.shared().lock().lost.take()
    }

    fn shared(&self) -> &Shared {
        &self.owner.0
    }
}

impl Queue {
    /// Whether all is written.
    fn is_written(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_none()
    }
}

impl LeftOut {
    /// Prints something in which there are so many lines, behind what is to be said, and where, of those that
    /// were left out before.
    pub fn put(
        &mut self,
        printer: &Printer,
        (stream, kind): (Stream, Kind),
        (text, lines): (String, usize),
        say: impl FnOnce(usize) -> (Stream, String),
    ) {
        if self.0 > 0 {
            let (stream, words) = say(self.0);
            if printer.put(stream, Kind::News, words + "\n") {
                self.0 = 0;
            }
        }
        if !printer.put(stream, kind, text) {
            self.0 += lines;
        }
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
            let Some((stream, kind, text)) = queue.waiting.pop_front() else {
                if queue.is_over {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.begun = Some(clock::monotonic());
            drop(queue);
            let to = match stream {
                Stream::Output => &mut output,
                Stream::Error => &mut error,
            };
            let written = to.write_all(text.as_bytes()).and_then(|()| to.flush());
            queue = self.lock();
            queue.begun = None;
            queue.bytes -= text.len();
            queue.results -= usize::from(kind == Kind::Result);
            match written {
                Err(error) if stream == Stream::Output => {
                    if error.kind() == io::ErrorKind::BrokenPipe {
                        self.unread.cancel();
                    } else {
                        queue.lost.get_or_insert(error);
                    }
                }
                // There is nowhere left to say so.
                _ => {}
            }
            self.changed.notify_all();
            self.written.notify_waiters();
        }
    }

    async fn until(&self, condition: impl Fn(&Queue) -> bool) {
        loop {
            let written = self.written.notified();
            if condition(&self.lock()) {
                return;
            }
            written.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn output(printer: &Printer, kind: Kind, text: &str) -> bool {
        printer.put(Stream::Output, kind, text.to_owned())
    }

    fn texts(taken: &Taken) -> Vec<String> {
        taken.iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn what_was_printed_is_there_for_whoever_waits() {
        let (printer, let_go, taken) = stuck(LONG);
        for text in ["a\n", "b\n"] {
            let_go.send(Ok(())).expect("waits for it");
            assert!(output(&printer, Kind::News, text));
            printer.settle();
            assert_eq!(taken.try_recv().expect("written").1, text);
            assert!(!printer.stands_still());
        }
    }

    #[tokio::test]
    async fn a_terminal_that_stands_still_holds_up_nobody_and_gets_everything_in_the_end() {
        let (printer, let_go, taken) = stuck(Duration::ZERO);
        assert!(output(&printer, Kind::News, "a\n"));
        assert!(output(&printer, Kind::Result, "b\n"));
        assert!(printer.put(Stream::Error, Kind::News, "c\n".to_owned()));
        while !printer.stands_still() {
            thread::yield_now();
        }
        printer.settle();
        assert!(taken.try_recv().is_err() && printer.has_results());
        drop(let_go);
        printer.finish().await;
        assert!(!printer.stands_still() && !printer.has_results());
        drop(printer);
        assert_eq!(texts(&taken), ["a\n", "b\n", "c\n"]);
    }

    #[tokio::test]
    async fn of_too_much_news_are_left_out_and_results_are_not() {
        let (printer, let_go, taken) = stuck(LONG);
        let long = "x".repeat(UNREAD_OUTPUT);
        assert!(output(&printer, Kind::News, &long));
        assert!(!output(&printer, Kind::News, "a\n"));
        assert!(output(&printer, Kind::Result, "b\n"));
        drop(let_go);
        printer.until_taken().await;
        assert!(output(&printer, Kind::News, "c\n"));
        printer.finish().await;
        drop(printer);
        assert_eq!(texts(&taken), [long.as_str(), "b\n", "c\n"]);
    }

    #[tokio::test]
    async fn news_that_nobody_reads_are_not_waited_for_at_the_end() {
        let (printer, let_go, taken) = stuck(Duration::ZERO);
        assert!(output(&printer, Kind::News, "a\n"));
        printer.finish().await;
        assert!(taken.try_recv().is_err());
        drop(let_go);
    }

    #[test]
    fn a_reader_that_went_away_is_nobodys_fault_but_a_full_disk_is_told() {
        let (printer, let_go, _taken) = stuck(LONG);
        let fail = |kind: Kind, error: io::ErrorKind| {
            let_go.send(Err(error.into())).expect("waits for it");
            output(&printer, kind, "a\n");
            printer.settle();
            let lost = printer.take_lost().map(|error| error.kind());
            (printer.unread().is_cancelled(), lost)
        };
        let full = io::ErrorKind::StorageFull;
        assert_eq!(fail(Kind::Result, full), (false, Some(full)));
        assert_eq!(fail(Kind::News, full), (false, Some(full)));
        assert_eq!(fail(Kind::News, io::ErrorKind::BrokenPipe), (true, None));
    }
}
