//! What asks this program from outside to stop what it does, or to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Failure;

/// Signals that were not heard yet.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal went away. Whoever does not need it need not care.
    hangup: Option<Signal>,
}

impl Signals {
    /// Hears them from now on; also that the terminal went away, where one is needed.
    ///
    /// # Errors
    /// [`Failure`] when the system refuses.
    pub fn new(needs_terminal: bool) -> Result<Self, Failure> {
        let hear = |kind| signal(kind).map_err(|error| Failure::new("internal", error.to_string()));
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hangup: needs_terminal.then(|| hear(SignalKind::hangup())).transpose()?,
        })
    }

    /// Returns when any of them came.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            () = end(&mut self.terminate, &mut self.hangup) => {}
        }
    }

    /// Returns when Ctrl-C was pressed: true; or when the program is to end.
    pub async fn is_interrupt(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            () = end(&mut self.terminate, &mut self.hangup) => false,
        }
    }

    /// Returns when the program is to end.
    pub async fn end(&mut self) {
        end(&mut self.terminate, &mut self.hangup).await;
    }
}

async fn end(terminate: &mut Signal, hangup: &mut Option<Signal>) {
    let hangup = async {
        match hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup => {}
    }
}
