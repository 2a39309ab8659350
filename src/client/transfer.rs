//! A download under way, as its library entries hold it: one of them, or one in each of several groups
//! where the same content is wanted. Its bytes are fetched and stored once.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::swarm::download::Swarms;
use crate::swarm::session::{News, SwarmKey};

/// What ties entries to their download.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The swarms it takes part in.
    pub swarms: Arc<Swarms>,
    /// Where it hears of peers.
    pub news: mpsc::Sender<(SwarmKey, News)>,
    /// Ends it.
    pub stop: CancellationToken,
}

impl Transfer {
    /// It is not wanted in a swarm any more: it goes on for the others, or ends.
    pub fn leave(&self, key: SwarmKey) {
        if self.swarms.remove(key) {
            self.stop.cancel();
        }
    }
}
