//! The answers to the latest granted requests.

use std::collections::{HashMap, VecDeque};

use super::command::Outcome;
use crate::id::RequestId;
use crate::limits::MAX_REMEMBERED_REQUESTS;
use crate::peer_id::PeerId;

/// What was answered to the latest granted requests, so that a repeat changes nothing and gets the
/// same answer.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    outcomes: HashMap<(PeerId, RequestId), Outcome>,
    order: VecDeque<(PeerId, RequestId)>,
}

impl Remembered {
    /// What was answered to a request.
    pub fn outcome(&self, request: &(PeerId, RequestId)) -> Option<&Outcome> {
        self.outcomes.get(request)
    }

    /// Keeps an answer; the oldest makes room.
    pub fn keep(&mut self, request: (PeerId, RequestId), outcome: Outcome) {
        if self.outcomes.insert(request, outcome).is_none() {
            self.order.push_back(request);
        }
        if self.order.len() > MAX_REMEMBERED_REQUESTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> Vec<((PeerId, RequestId), Outcome)> {
        let known = self.order.iter();
        known.filter_map(|key| Some((*key, self.outcomes.get(key)?.clone()))).collect()
    }
}
