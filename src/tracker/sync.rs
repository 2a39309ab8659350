//! A tracker among others: keeps a connection to each of the roster, sees to what they lack, and
//! notices when they are lost or of another opinion.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::session::Shared;
use super::sync_session::{establish, note_gone, settle};
use crate::clock::{self, UnixMillis};
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::limits;
use crate::peer_id::PeerId;
use crate::transport::connection::Connection;
use crate::transport::endpoint::DialError;
use crate::transport::tls::Alpn;

/// A lost tracker is dialled again after this, twice as long each time up to the second.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The tracker with the higher peer id waits to be dialled for so long, then dials itself.
const DIALLED_WITHIN: Duration = Duration::from_secs(2);

/// A connection that lasted for so long was a good one.
const LASTING: Duration = Duration::from_secs(5);

/// How often there is a look at all that.
const LOOK: Duration = Duration::from_secs(1);

/// How often the disk hears that another tracker was heard.
const HEARD_TICK: Duration = Duration::from_secs(3600);

/// When each other tracker was last heard.
pub type Heard = BTreeMap<PeerId, UnixMillis>;

/// Takes up the other trackers there are: before anything is written here, since the log is cut by
/// what they have. Returns when they were last heard.
pub fn begin(shared: &Shared) -> Heard {
    let heard = shared.store.disk().heard().unwrap_or_else(|error| {
        tracing::warn!(%error, "when other trackers were last heard is not known");
        Default::default()
    });
    let now = clock::now();
    take_up(shared, &heard, now);
    settle(shared, &shared.store.knowledge(), now);
    heard
}

/// The other trackers are those of the roster.
fn take_up(shared: &Shared, heard: &Heard, now: UnixMillis) -> Vec<PeerId> {
    let known = shared.rosters.known();
    let others: Vec<_> = known.siblings().map(|entry| entry.peer_id()).collect();
    // From when on a tracker that never comes is absent.
    for tracker in others.iter().filter(|tracker| !heard.contains_key(*tracker)) {
        shared.store.note_heard(*tracker, now);
    }
    let last = |tracker: PeerId| heard.get(&tracker).copied();
    shared.links.siblings().set_roster(&others, last, now);
    others
}

/// Keeps this tracker together with the others of the roster until `stop`; [`begin`] said when
/// they were `heard`.
pub async fn run(shared: Arc<Shared>, heard: Heard, stop: CancellationToken, tasks: TaskTracker) {
    let own = shared.endpoint.identity().peer_id();
    let mut rosters = shared.rosters.watch();
    let mut dialling: HashMap<PeerId, CancellationToken> = HashMap::new();
    tasks.spawn(oversee(shared.clone(), stop.clone()));
    tasks.spawn(fetch_pages(shared.clone(), stop.clone()));
    loop {
        rosters.mark_unchanged();
        let others = take_up(&shared, &heard, clock::now());
        if others.is_empty() {
            shared.links.open_names();
        }
        dialling.retain(|tracker, ended| {
            let stays = others.contains(tracker);
            if !stays {
                ended.cancel();
                if let Some(link) = shared.links.live(*tracker) {
                    link.connection.close(ErrorCode::NotATracker);
                }
                note_gone(&shared, shared.presence.forget_tracker(*tracker, clock::now()));
            }
            stays
        });
        for tracker in others {
            dialling.entry(tracker).or_insert_with(|| {
                let ended = stop.child_token();
                tasks.spawn(keep(
                    shared.clone(),
                    tracker,
                    own < tracker,
                    ended.clone(),
                    tasks.clone(),
                ));
                ended
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = rosters.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps a connection to one tracker.
async fn keep(
    shared: Arc<Shared>,
    tracker: PeerId,
    lower: bool,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let mut wait = REDIAL.0;
    let mut reported = false;
    loop {
        if let Some(link) = shared.links.live(tracker) {
            let began = clock::monotonic();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = link.connection.closed() => {}
            }
            // One that ends as soon as it is made is not made again and again at once.
            if clock::monotonic().saturating_duration_since(began) >= LASTING {
                wait = REDIAL.0;
            }
            reported = false;
        }
        let pause = if lower { wait } else { wait.max(DIALLED_WITHIN) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => wait = (wait * 2).min(REDIAL.1),
        }
        if shared.links.live(tracker).is_some() {
            continue;
        }
        let dialled = tokio::select! {
            () = stop.cancelled() => return,
            dialled = dial(&shared, tracker) => dialled,
        };
        let reason = match dialled {
            Ok(connection) => match establish(&shared, connection).await {
                Ok(link) => {
                    tasks.spawn(link.serve(stop.clone(), tasks.clone()));
                    continue;
                }
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        match reported {
            true => tracing::debug!(tracker = %tracker.short(), reason, "tracker not reached"),
            false => {
                tracing::warn!(tracker = %tracker.short(), reason, "tracker not reached; trying on");
                reported = true;
            }
        }
    }
}

/// Dials the addresses of a tracker until one answers as it.
async fn dial(shared: &Shared, tracker: PeerId) -> Result<Connection, String> {
    let known = shared.rosters.known();
    let links = known.book().find(tracker).map(|entry| entry.links.clone()).unwrap_or_default();
    let mut last = "it has no address".to_owned();
    for link in links {
        let found = tokio::net::lookup_host((link.host(), link.port())).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(addresses) => addresses.take(limits::MAX_ADDRESSES).collect(),
            Err(error) => {
                last = format!("{}: {error}", link.host());
                continue;
            }
        };
        for address in addresses {
            match shared.endpoint.dial(address, Alpn::Sync, tracker).await {
                Ok(connection) => return Ok(connection),
                Err(error @ DialError::WrongPeer { .. }) => {
                    tracing::warn!(%error, "another tracker answers");
                    last = error.to_string();
                }
                Err(error) => last = error.to_string(),
            }
        }
    }
    Err(last)
}

/// What is to be seen to whether or not there are connections.
async fn oversee(shared: Arc<Shared>, stop: CancellationToken) {
    let began = clock::monotonic();
    let mut ticks = tokio::time::interval(LOOK);
    let mut was_off = None;
    let mut noted = clock::monotonic();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = clock::now();
        note_gone(&shared, shared.presence.expire(now));
        settle(&shared, &shared.store.knowledge(), now);
        let (off, connected) = {
            let siblings = shared.links.siblings();
            let connected: Vec<_> =
                siblings.all().filter(|(_, s)| s.connected).map(|(tracker, _)| tracker).collect();
            (siblings.clock_off(), connected)
        };
        if began.elapsed() >= limits::NAMES_WAIT {
            shared.links.open_names();
        }
        if noted.elapsed() >= HEARD_TICK {
            noted = clock::monotonic();
            connected.into_iter().for_each(|tracker| shared.store.note_heard(tracker, now));
        }
        if off.is_some() != was_off.is_some() {
            match off {
                Some(millis) => {
                    shared.counters.sync_alarm();
                    tracing::error!(
                        millis,
                        "ALARM: this tracker's clock differs from the others'; it takes no changes"
                    );
                }
                None => tracing::info!("this tracker's clock agrees with the others' again"),
            }
        }
        was_off = off;
    }
}

/// Fetches the pages of shares that other trackers took.
async fn fetch_pages(shared: Arc<Shared>, stop: CancellationToken) {
    let mut places = shared.store.places();
    let mut from = Blake3Hash([0; 32]);
    loop {
        let missing = shared.store.missing_pages(from, limits::PAGES_IN_FLIGHT);
        let Some(last) = missing.last().copied() else {
            let retry = shared.store.missing_page_count() > 0;
            from = Blake3Hash([0; 32]);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = places.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(limits::SYNC_TICK), if retry => {}
            }
            continue;
        };
        for hash in missing {
            let fetched = tokio::select! {
                () = stop.cancelled() => return,
                fetched = shared.links.fetch_page(hash) => fetched,
            };
            if let Some(bytes) = fetched
                && let Err(refusal) = shared.store.keep_page(hash, bytes).await
            {
                tracing::warn!(%refusal, "a hash page of another tracker cannot be kept");
            }
        }
        from = after(last);
    }
}

/// The hash after `hash`, or the first.
fn after(hash: Blake3Hash) -> Blake3Hash {
    let mut next = hash.0;
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    Blake3Hash(next)
}
