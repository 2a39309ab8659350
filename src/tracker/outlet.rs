//! The way to a client connected here: a bounded queue of pushes, written by its connection.
//!
//! Nobody waits for a client that does not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::push::Push;
use crate::limits::PUSH_QUEUE;

/// The way to a client.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Pushes wait here.
    pub pushes: mpsc::Sender<Push>,
    /// News were left out because the client reads too slowly; it is told once it reads again.
    pub lagging: Arc<AtomicBool>,
    /// Cancelled for a client that leaves too many unread.
    pub cut_off: CancellationToken,
}

impl Outlet {
    /// A way to a client, and the queue to be written to it.
    pub fn new() -> (Self, mpsc::Receiver<Push>) {
        let (pushes, queue) = mpsc::channel(PUSH_QUEUE);
        let outlet = Self { pushes, lagging: Arc::default(), cut_off: CancellationToken::new() };
        (outlet, queue)
    }

    /// Queues a push. What can be asked for as well is left out when the queue is half full; who
    /// leaves no room for the rest either is cut off.
    pub fn send(&self, push: Push) {
        if push.is_news() && self.pushes.capacity() < self.pushes.max_capacity() / 2 {
            self.lagging.store(true, Ordering::Relaxed);
        } else if self.pushes.try_send(push).is_err() {
            tracing::debug!("client does not read its pushes");
            self.cut_off.cancel();
        }
    }
}
