//! What came of a simulated swarm: who got what from whom, when, and what was sent for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::{Action, Event};
use crate::bitfield::Bitfield;

/// Bytes that were sent for nothing, by what made them so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waste {
    /// Another copy was first.
    pub late: u64,
    /// Another peer was asked instead.
    pub stolen: u64,
    /// They were not what they should be.
    pub bad: u64,
    /// The peer fell silent, or kept us waiting, or was banned.
    pub given_up: u64,
    /// The peer left, or we did.
    pub left: u64,
}

impl Waste {
    /// What the scheduler alone is to answer for.
    pub fn own(&self) -> u64 {
        self.late + self.stolen
    }

    /// All of it.
    pub fn all(&self) -> u64 {
        self.own() + self.bad + self.given_up + self.left
    }
}

/// What came of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerReport {
    /// When it had every piece, since the beginning of the simulation; nothing for one that had
    /// them from the beginning, or never.
    pub finished: Option<Duration>,
    /// Bytes it received and kept.
    pub kept: u64,
    /// Bytes sent to it for nothing.
    pub wasted: Waste,
    /// Bytes kept, by who sent them.
    pub from: BTreeMap<usize, u64>,
    /// Bytes it sent.
    pub sent: u64,
    /// Requests it made, and how many of them took a piece from another peer, and how many were for
    /// a second copy.
    pub asked: (u32, u32, u32),
    /// Whom it banned, and when.
    pub banned: BTreeMap<usize, Duration>,
}

/// What came of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One for each peer.
    pub peers: Vec<PeerReport>,
    /// When the last honest peer had every piece; nothing when one never had.
    pub makespan: Option<Duration>,
    /// When the simulation ended.
    pub end: Duration,
    /// Events that schedulers were told.
    pub told: u64,
    /// What the peer that is recorded was told and did, since it came last.
    pub record: Option<Record>,
}

/// What one scheduler was told, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What decided among equals.
    pub seed: u64,
    /// What it had.
    pub stored: Bitfield,
    /// When it was told what, and what it wanted done.
    pub steps: Vec<(Duration, Event, Vec<Action>)>,
}

impl Report {
    /// Bytes kept by all.
    pub fn kept(&self) -> u64 {
        self.peers.iter().map(|peer| peer.kept).sum()
    }

    /// Bytes wasted by all.
    pub fn wasted(&self) -> Waste {
        self.peers.iter().map(|peer| peer.wasted).fold(Waste::default(), |a, b| Waste {
            late: a.late + b.late,
            stolen: a.stolen + b.stolen,
            bad: a.bad + b.bad,
            given_up: a.given_up + b.given_up,
            left: a.left + b.left,
        })
    }

    /// Bytes that `peer` gave, by who kept them.
    pub fn given(&self, peer: usize) -> BTreeMap<usize, u64> {
        let to = self.peers.iter().enumerate();
        to.filter_map(|(to, report)| Some((to, *report.from.get(&peer)?))).collect()
    }
}
