//! What a tracker is and holds at one moment: for its operator's eyes, and as gauges.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::census;
use super::counters::Gauges;
use super::session::Shared;
use super::siblings::Sibling;
use super::state::Registration;
use crate::clock::{self, UnixMillis};
use crate::peer_id::PeerId;
use crate::tracker_link::TrackerLink;

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
    /// Durable changes that are known, wherever they were made.
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
    /// The number of the roster; 0 without one.
    pub roster: u64,
    /// Whether this tracker is in it: clients and other trackers count on those only.
    pub listed: bool,
    /// The other trackers.
    pub siblings: Vec<SiblingStatus>,
    /// Hash pages that are to be fetched from them.
    pub pages_missing: usize,
    /// Ops in the log, which are kept until all trackers have them.
    pub log_ops: u64,
    /// Ended things that are remembered until all trackers know.
    pub tombstones: usize,
    /// By how many milliseconds this tracker's clock is off, if it is: it takes no changes then.
    pub clock_off_ms: Option<u64>,
    /// Times that trackers disagreed: digests, ops, clocks.
    pub sync_alarms: u64,
}

/// Another tracker, as this one sees it.
#[derive(Clone, Debug, Serialize)]
pub struct SiblingStatus {
    /// Which.
    pub peer_id: PeerId,
    /// Where.
    pub links: Vec<TrackerLink>,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Milliseconds for which nothing was heard on that; something is every 400.
    pub silent_ms: u64,
    /// Ops that are here and that it has not said to have.
    pub behind_ops: u64,
    /// Milliseconds for which it has been behind.
    pub behind_ms: u64,
    /// Ops that it has said to have and that are not here.
    pub ahead_ops: u64,
    /// When it was last heard.
    pub heard: Option<UnixMillis>,
    /// Milliseconds its clock is ahead of this one's.
    pub clock_ahead_ms: Option<i64>,
    /// When both last had the same ops and the same digest.
    pub agreed: Option<UnixMillis>,
    /// Whether they had the same ops and another digest when they last compared: a fault.
    pub disagrees: bool,
}

impl SiblingStatus {
    fn all(shared: &Shared) -> Vec<Self> {
        let own = shared.endpoint.identity().peer_id();
        let ours = shared.store.knowledge();
        let known = shared.rosters.known();
        let now = clock::now();
        let siblings = known.siblings().map(|entry| {
            let row = shared.links.row(own, entry, None, &ours, now);
            let siblings = shared.links.siblings();
            let sibling = siblings.get(row.peer_id);
            Self {
                peer_id: row.peer_id,
                links: row.links,
                connected: row.connected,
                silent_ms: shared.links.live(row.peer_id).map_or(0, |link| {
                    u64::try_from(link.silent_for().as_millis()).unwrap_or(u64::MAX)
                }),
                behind_ops: row.behind,
                behind_ms: row.behind_ms,
                ahead_ops: sibling.map_or(0, |s| s.known.vector.ahead_of(&ours)),
                heard: row.heard,
                clock_ahead_ms: sibling.and_then(Sibling::clock_ahead),
                agreed: sibling.and_then(|s| s.agreed),
                disagrees: sibling.is_some_and(|s| s.disagrees),
            }
        });
        siblings.collect()
    }
}

impl Status {
    /// What `shared` is and holds now.
    pub fn of(shared: &Shared) -> Self {
        let (totals, rules) = shared.store.read(|state| (census::totals(state), state.rules));
        let (ops, latest) = shared.store.read_ledger(|l| (l.op_count(), l.latest));
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
            roster: shared.rosters.known().book().number(),
            listed: shared.rosters.known().is_listed(),
            siblings: SiblingStatus::all(shared),
            pages_missing: shared.store.missing_page_count(),
            log_ops: {
                let log = shared.store.log();
                log.end - log.start
            },
            tombstones: shared.store.read(|state| state.facts().tombstone_count()),
            clock_off_ms: shared.links.siblings().clock_off(),
            sync_alarms: shared.counters.sync_alarms(),
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
            ("siblings", "Other trackers", count(self.siblings.len())),
            ("siblings_connected", "Other trackers there is a connection to", {
                count(self.siblings.iter().filter(|sibling| sibling.connected).count())
            }),
            ("siblings_disagreeing", "Other trackers whose digest is another", {
                count(self.siblings.iter().filter(|sibling| sibling.disagrees).count())
            }),
            ("sync_behind_ops", "Ops the tracker furthest behind lacks", {
                number(self.siblings.iter().map(|s| s.behind_ops).max().unwrap_or(0))
            }),
            ("sync_behind_seconds", "For how long the tracker furthest behind has been", {
                number(self.siblings.iter().map(|s| s.behind_ms).max().unwrap_or(0) / 1_000)
            }),
            ("sync_agreed_seconds", "Unix time of the oldest last agreement of digests", {
                let agreed = self.siblings.iter().map(|s| s.agreed.unwrap_or_default().0);
                number(agreed.min().unwrap_or(0) / 1_000)
            }),
            ("clock_off_ms", "Milliseconds this tracker's clock is off", {
                number(self.clock_off_ms.unwrap_or(0))
            }),
            ("pages_missing", "Hash pages to be fetched", count(self.pages_missing)),
            ("log_ops", "Ops in the log", number(self.log_ops)),
            ("tombstones", "Ended things remembered", count(self.tombstones)),
            ("store_writable", "Whether changes can be stored", i64::from(self.store_writable)),
        ]
    }
}
