//! What trackers are soon to be told, or asked: contents that this device has come to hold, or wants.
//!
//! What is put while one request is under way goes with the next, so that thousands of files cost a few
//! requests. Whoever puts something waits for nothing, unless he asks to. It knows no tracker.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::swarm::session::SwarmKey;

/// What there is to say of a content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cry {
    /// That it is held, wholly or in part.
    pub announces: bool,
    /// That peers are wanted for it.
    pub seeks: bool,
}

impl Cry {
    /// It is held.
    pub const HELD: Self = Self { announces: true, seeks: false };
    /// It is wanted.
    pub const WANTED: Self = Self { announces: true, seeks: true };
    /// More peers are wanted.
    pub const PEERS: Self = Self { announces: false, seeks: true };
}

/// What was put, and how often.
#[derive(Debug, Default)]
struct Pending {
    keys: BTreeMap<SwarmKey, Cry>,
    generation: u64,
}

/// What is to be said.
#[derive(Debug)]
pub struct Crier {
    pending: Mutex<Pending>,
    put: Notify,
    told: watch::Sender<u64>,
}

impl Default for Crier {
    fn default() -> Self {
        Self { pending: Mutex::default(), put: Notify::new(), told: watch::Sender::new(0) }
    }
}

impl Crier {
    /// Something is to be said of a content. What [`Self::until_told`] takes.
    pub fn put(&self, key: SwarmKey, cry: Cry) -> u64 {
        let mut pending = self.pending();
        let all = pending.keys.entry(key).or_default();
        (all.announces, all.seeks) = (all.announces | cry.announces, all.seeks | cry.seeks);
        pending.generation += 1;
        let generation = pending.generation;
        drop(pending);
        self.put.notify_one();
        generation
    }

    /// Waits for something to be said: all there is by then, and what [`Self::told`] takes once it was
    /// said.
    pub async fn next(&self) -> (BTreeMap<SwarmKey, Cry>, u64) {
        loop {
            let put = self.put.notified();
            {
                let mut pending = self.pending();
                if !pending.keys.is_empty() {
                    return (std::mem::take(&mut pending.keys), pending.generation);
                }
            }
            put.await;
        }
    }

    /// It was said, or could not be.
    pub fn told(&self, generation: u64) {
        self.told.send_replace(generation);
    }

    /// Waits until what was put was said, or could not be.
    pub async fn until_told(&self, generation: u64) {
        let mut told = self.told.subscribe();
        // This end holds the sender.
        let _ = told.wait_for(|told| *told >= generation).await;
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::manifest::ContentId;

    #[tokio::test]
    async fn what_comes_up_meanwhile_goes_together_and_whoever_waits_hears_of_his() {
        let crier = Crier::default();
        let key = |content| SwarmKey { group: GroupId([1; 16]), content: ContentId([content; 32]) };
        crier.put(key(1), Cry::WANTED);
        let (first, said) = crier.next().await;
        assert_eq!(first, BTreeMap::from([(key(1), Cry::WANTED)]));
        crier.put(key(2), Cry::HELD);
        crier.put(key(2), Cry::PEERS);
        let third = crier.put(key(3), Cry::HELD);
        crier.put(key(2), Cry::HELD);
        crier.told(said);
        let waiting = crier.until_told(third);
        tokio::pin!(waiting);
        let early = tokio::select! {
            biased;
            () = &mut waiting => true,
            () = std::future::ready(()) => false,
        };
        assert!(!early, "it was not said yet");
        let (second, said) = crier.next().await;
        assert_eq!(second, BTreeMap::from([(key(2), Cry::WANTED), (key(3), Cry::HELD)]));
        crier.told(said);
        waiting.await;
    }
}
