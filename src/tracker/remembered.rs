//! The answers to the latest granted requests.

use std::collections::{HashMap, VecDeque};

use super::command::Outcome;
use super::lattice::RequestKey;
use crate::id::OpId;
use crate::limits::MAX_REMEMBERED_REQUESTS;

/// Granted requests, the oldest first, with their answers and what they became.
pub type Grants = Vec<(RequestKey, Outcome, OpId)>;

/// What was answered to the latest granted requests, so that a repeat changes nothing and gets the
/// same answer.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    outcomes: HashMap<RequestKey, (Outcome, OpId)>,
    order: VecDeque<RequestKey>,
}

impl Remembered {
    /// What was answered to a request.
    pub fn outcome(&self, request: &RequestKey) -> Option<&Outcome> {
        self.outcomes.get(request).map(|(outcome, _)| outcome)
    }

    /// The op that a granted request became.
    pub fn op(&self, request: &RequestKey) -> Option<OpId> {
        self.outcomes.get(request).map(|(_, op)| *op)
    }

    /// Keeps the first answer to a request; the oldest of all makes room.
    pub fn keep(&mut self, request: RequestKey, outcome: Outcome, op: OpId) {
        if self.outcomes.contains_key(&request) {
            return;
        }
        self.outcomes.insert(request, (outcome, op));
        self.order.push_back(request);
        if self.order.len() > MAX_REMEMBERED_REQUESTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }

    /// Keeps what another tracker remembers.
    pub fn keep_all(&mut self, grants: Grants) {
        grants.into_iter().for_each(|(request, outcome, op)| self.keep(request, outcome, op));
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> Grants {
        let known = self.order.iter();
        let all = known.filter_map(|key| {
            let (outcome, op) = self.outcomes.get(key)?;
            Some((*key, outcome.clone(), *op))
        });
        all.collect()
    }
}
