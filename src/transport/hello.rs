//! What hellos of every protocol share: room for fields of later versions.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_AGENT_LEN, MAX_EXTENSIONS};

/// A tagged field of a hello that older versions skip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// What it is.
    pub tag: u16,
    /// Its own encoding.
    pub body: Vec<u8>,
}

/// Whether the fields every hello has are within their limits.
pub fn is_bounded(agent: &str, extensions: &[Extension]) -> bool {
    agent.len() <= MAX_AGENT_LEN && extensions.len() <= MAX_EXTENSIONS
}
