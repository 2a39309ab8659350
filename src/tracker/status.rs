//! What a tracker is and holds at one moment: for its operator's eyes, and as gauges.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::census;
use super::counters::Gauges;
use super::session::Shared;
use super::state::Registration;
use crate::clock::UnixMillis;
use crate::peer_id::PeerId;

/// The answer to "how are you?".
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: &'static str,
    /// The tracker's key.
    pub peer_id: PeerId,
    /// The UDP address it listens on, if the system can say.
    pub address: Option<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// Seconds since it began.
    pub uptime_secs: u64,
    /// Who may make an account.
    pub registration: Registration,
    /// Whether there is a group `public`.
    pub public_group: bool,
    /// Accounts, disabled ones too.
    pub accounts: usize,
    /// Groups with members, and `public` where there is one.
    pub groups: usize,
    /// Contents listed, once for each group.
    pub files: usize,
    /// Shares: who lists what, where, under which name.
    pub shares: usize,
    /// Devices connected.
    pub connections: usize,
    /// Users logged in on any of them.
    pub users_online: usize,
    /// Contents that somebody online holds, once for each group.
    pub swarms: usize,
    /// Durable changes ever made.
    pub ops: u64,
    /// Time of the latest, if there is one.
    pub latest_op: Option<UnixMillis>,
    /// Hash pages kept for files.
    pub pages: u64,
    /// Their bytes.
    pub page_bytes: u64,
    /// Bytes of the store's file.
    pub store_bytes: u64,
    /// Whether changes can be stored; with a full disk they cannot.
    pub store_writable: bool,
    /// How often each limit was hit since the tracker began, those never hit left out.
    pub limits_hit: BTreeMap<&'static str, u64>,
}

impl Status {
    /// What `shared` is and holds now.
    pub fn of(shared: &Shared) -> Self {
        let (totals, rules) = shared.store.read(|state| (census::totals(state), state.rules));
        let (ops, latest) = shared.store.position();
        let (pages, page_bytes) = shared.store.page_size();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            peer_id: shared.endpoint.identity().peer_id(),
            address: shared.endpoint.local_address().ok(),
            metrics: shared.metrics,
            uptime_secs: shared.started.elapsed().as_secs(),
            registration: rules.registration,
            public_group: rules.public,
            accounts: totals.accounts,
            groups: totals.groups,
            files: totals.files,
            shares: totals.shares,
            connections: shared.presence.connection_count(),
            users_online: shared.presence.user_count(),
            swarms: shared.presence.swarm_count(),
            ops,
            latest_op: (ops > 0).then_some(latest),
            pages,
            page_bytes,
            store_bytes: std::fs::metadata(&shared.store_file).map_or(0, |file| file.len()),
            store_writable: shared.store.is_writable(),
            limits_hit: shared.counters.hits().into_iter().collect(),
        }
    }

    /// The numbers in it, as metrics have them. Limits have counters of their own.
    pub fn gauges(&self) -> Gauges {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let latest = self.latest_op.unwrap_or_default().0 / 1_000;
        vec![
            ("uptime_seconds", "Seconds since the tracker began", number(self.uptime_secs)),
            ("public_group", "Whether there is a group public", i64::from(self.public_group)),
            ("accounts", "Accounts, disabled ones too", count(self.accounts)),
            ("groups", "Groups that are not archived", count(self.groups)),
            ("files", "Contents listed, once for each group", count(self.files)),
            ("shares", "Shares", count(self.shares)),
            ("connections", "Devices connected", count(self.connections)),
            ("users_online", "Users logged in", count(self.users_online)),
            ("swarms", "Contents held by somebody online", count(self.swarms)),
            ("ops", "Durable changes ever made", number(self.ops)),
            ("latest_op_seconds", "Unix time of the latest durable change", number(latest)),
            ("pages", "Hash pages kept", number(self.pages)),
            ("page_bytes", "Bytes of hash pages kept", number(self.page_bytes)),
            ("store_bytes", "Bytes of the store's file", number(self.store_bytes)),
            ("store_writable", "Whether changes can be stored", i64::from(self.store_writable)),
        ]
    }
}
