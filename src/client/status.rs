//! How the agent stands with its trackers.

use super::agent::Agent;
use super::line::LineRow;
use crate::clock::UnixMillis;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::tracker::message::{Reply, Request, TrackerRow};

/// How the agent stands with its trackers.
#[derive(Clone, Debug)]
pub struct Status {
    /// Who is logged in.
    pub user: Option<UserName>,
    /// This device.
    pub peer_id: PeerId,
    /// Tracker time less our own, in milliseconds, when a tracker is in use.
    pub clock_offset_ms: Option<i64>,
    /// The trackers, in order of preference.
    pub trackers: Vec<TrackerStatus>,
    /// The latest change this agent made, if it made one and a tracker can be asked.
    pub last_change: Option<LastChange>,
}

/// One tracker.
#[derive(Clone, Debug)]
pub struct TrackerStatus {
    /// What there is with it.
    pub line: LineRow,
    /// What the tracker in use says of it, when it says something.
    pub sync: Option<SyncStatus>,
}

/// What one tracker knows of another, or says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncStatus {
    /// Whether they are connected; always with itself.
    pub connected: bool,
    /// Changes it is behind.
    pub behind: u64,
    /// Milliseconds for which it has been behind.
    pub behind_ms: u64,
    /// When it was last heard; nothing of itself.
    pub heard: Option<UnixMillis>,
}

/// Where the latest change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastChange {
    /// Trackers that have it.
    pub on: usize,
    /// Trackers there are.
    pub of: usize,
}

impl Agent {
    /// What there is with every tracker, as of now.
    pub fn trackers(&self) -> Vec<LineRow> {
        self.core.line.report().0
    }

    /// How the agent stands with its trackers; asks the one in use, if there is one.
    pub async fn status(&self) -> Status {
        let line = &self.core.line;
        // Nobody to be asked is an answer as well.
        let reached = line.ready().await.is_ok();
        line.tried().await;
        let op = line.last_write();
        let rows = match reached {
            true => match line.call(&Request::Trackers { op }).await {
                Ok(Reply::Trackers { rows }) => rows,
                _ => Vec::new(),
            },
            false => Vec::new(),
        };
        let (lines, clock_offset_ms) = line.report();
        let sync = |id: PeerId| rows.iter().find(|row| row.peer_id == id).map(sync_status);
        let trackers = lines
            .into_iter()
            .map(|line| TrackerStatus { sync: sync(line.peer_id), line })
            .collect();
        let on = rows.iter().filter(|row| row.has_op == Some(true)).count();
        let last_change =
            op.filter(|_| !rows.is_empty()).map(|_| LastChange { on, of: rows.len() });
        Status {
            user: self.user(),
            peer_id: self.peer_id(),
            clock_offset_ms,
            trackers,
            last_change,
        }
    }
}

fn sync_status(row: &TrackerRow) -> SyncStatus {
    SyncStatus {
        connected: row.connected || row.own,
        behind: row.behind,
        behind_ms: row.behind_ms,
        heard: row.heard,
    }
}
