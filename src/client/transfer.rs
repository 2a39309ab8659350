//! A download, as its library entries hold it: one of them, or one in each of several groups where
//! the same content is wanted. Its bytes are fetched and stored once.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::swarm::download::Swarms;
use crate::swarm::session::{News, SwarmKey};

/// Where a download hears of its peers.
pub type Queue = mpsc::Receiver<(SwarmKey, News)>;

/// What ties entries to their download, from when its part file is opened to when that is let go.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The swarms it takes part in.
    pub swarms: Arc<Swarms>,
    /// Where it hears of peers.
    pub news: mpsc::Sender<(SwarmKey, News)>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Cancelled once its part file was let go.
    pub over: CancellationToken,
}

impl Transfer {
    /// A download in these swarms, which ends with `parent`.
    pub fn new(keys: &[SwarmKey], parent: &CancellationToken) -> (Self, Queue) {
        let swarms = Arc::new(Swarms::default());
        keys.iter().for_each(|key| swarms.add(*key));
        let (news, queue) = mpsc::channel(limits::DOWNLOAD_QUEUE);
        let (stop, over) = (parent.child_token(), CancellationToken::new());
        (Self { swarms, news, stop, over }, queue)
    }

    /// Whether both are the same download.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.swarms, &other.swarms)
    }

    /// It is not wanted in a swarm any more: it goes on for the others, or ends.
    pub fn leave(&self, key: SwarmKey) {
        if self.swarms.remove(key) {
            self.stop.cancel();
        }
    }
}
