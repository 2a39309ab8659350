//! What an agent's peer side knows: its swarms, its sessions, its tickets and whom it trusts.
//!
//! Maps behind short locks, never held across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::Budget;
use super::buffers::Buffers;
use super::rates::{RateLimits, Rates};
use super::serving::Serving;
use super::session::{News, Session, Swarm, SwarmKey};
use super::sidecars::Sidecars;
use super::trust::Trust;
use super::upload_counts::{UploadCounts, Uploads};
use crate::clock::{self, UnixMillis};
use crate::error_code::ErrorCode;
use crate::id::{GroupId, MembershipId};
use crate::limits::{
    BAN, DOWNLOAD_BYTES, MAX_BANS, MAX_SESSIONS_PER_USER, TICKET_DEADLINE, USELESS_AFTER,
};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::ticket::{Ticket, TicketError};

#[derive(Debug, Default)]
struct Maps {
    trust: Trust,
    tickets: HashMap<GroupId, Vec<u8>>,
    swarms: HashMap<SwarmKey, Arc<Swarm>>,
    sessions: HashMap<PeerId, Arc<Session>>,
    /// Swarms to open with a peer as soon as there is a session.
    wanted: HashMap<PeerId, HashSet<SwarmKey>>,
    uploads: Uploads,
    /// Users from whom nothing of a content is taken, and until when.
    banned: BTreeMap<(ContentId, UserName), UnixMillis>,
}

impl Maps {
    fn unwant(&mut self, key: SwarmKey) {
        self.wanted.retain(|_, keys| {
            keys.remove(&key);
            !keys.is_empty()
        });
    }
}

/// What became of a new session.
#[derive(Debug)]
pub enum Admission {
    /// It is the one with its peer now.
    Stays {
        /// The session that has to give way to it.
        instead_of: Option<Arc<Session>>,
    },
    /// Another session with the same peer stays.
    Duplicate,
}

/// The shared state of an agent's peer side.
#[derive(Debug)]
pub struct Registry {
    maps: Mutex<Maps>,
    rates: Arc<Rates>,
    serving: Serving,
    budget: Budget,
    buffers: Buffers,
    sidecars: Sidecars,
}

impl Registry {
    /// An empty registry that honours tickets as `trust` says, under these rate limits.
    pub fn new(trust: Trust, limits: RateLimits) -> Self {
        let rates = Arc::new(Rates::new(limits));
        Self {
            maps: Mutex::new(Maps { trust, ..Maps::default() }),
            serving: Serving::new(rates.clone()),
            rates,
            budget: Budget::new(DOWNLOAD_BYTES),
            buffers: Buffers::default(),
            sidecars: Sidecars::default(),
        }
    }

    /// The same, which keeps these sidecars.
    pub fn with_sidecars(self, sidecars: Sidecars) -> Self {
        Self { sidecars, ..self }
    }

    /// What is kept beside what is shared.
    pub fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// The rate limits and what they let through; [`Registry::set_limits`] changes them.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Other rate limits from now on, for all together or for one swarm.
    pub fn set_limits(&self, of: Option<SwarmKey>, limits: RateLimits) {
        self.rates.set(of, limits, clock::monotonic());
        self.serving.limits_changed();
    }

    /// Where the bytes of pieces are, on their way from the disk or to it.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Whose turn it is to be served.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Honours tickets of other trackers from now on; see [`Trust::set_trackers`].
    pub fn set_trackers(
        &self,
        current: impl IntoIterator<Item = PeerId>,
        retired: impl IntoIterator<Item = (PeerId, UnixMillis)>,
    ) {
        self.lock().trust.set_trackers(current, retired);
    }

    /// A tracker is reached; learns tracker time less our own, in milliseconds.
    pub fn tracker_reached(&self, clock_offset: i64) {
        self.lock().trust.reached(clock_offset);
    }

    /// No tracker is reached any more.
    pub fn trackers_lost(&self) {
        self.lock().trust.cut_off(clock::now());
    }

    /// Tracker time now.
    pub fn tracker_time(&self) -> UnixMillis {
        self.lock().trust.tracker_time(clock::now())
    }

    /// Our ticket for a group is this one now; peers in use are shown it.
    pub fn set_ticket(&self, group: GroupId, ticket: Vec<u8>) {
        let mut maps = self.lock();
        maps.sessions.values().for_each(|session| session.renew(group, &ticket));
        maps.tickets.insert(group, ticket);
    }

    /// Our ticket for a group, if there is one.
    pub fn ticket(&self, group: GroupId) -> Option<Vec<u8>> {
        self.lock().tickets.get(&group).cloned()
    }

    /// Forgets our ticket for a group: we are no longer a member.
    pub fn forget_ticket(&self, group: GroupId) {
        self.lock().tickets.remove(&group);
    }

    /// Verifies a ticket a peer showed.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn verify(&self, ticket: &[u8], shown_by: PeerId) -> Result<Ticket, TicketError> {
        // Signatures are looked at while others use the maps.
        let verifier = self.lock().trust.verifier(clock::now());
        let seen = verifier.verify(ticket, shown_by)?;
        self.lock().trust.honour(seen)
    }

    /// The user behind a session, if its ticket for the group still holds.
    pub fn member(&self, session: &Session, group: GroupId) -> Option<UserName> {
        let ticket = session.ticket(group)?;
        let holds = self.lock().trust.still_holds(&ticket, clock::now());
        holds.then(|| ticket.holder().user.clone())
    }

    /// A tracker revoked memberships, and tickets of devices up to a time: sessions that rest on
    /// them lose their swarms at once, with the pieces on their way.
    pub fn revoke(&self, memberships: &[MembershipId], devices: &[(PeerId, UnixMillis)]) {
        let mut maps = self.lock();
        memberships.iter().for_each(|membership| maps.trust.revoke(*membership));
        devices.iter().for_each(|(device, at)| maps.trust.revoke_device(*device, *at));
        for session in maps.sessions.values() {
            let void = |key: &SwarmKey| {
                session.ticket(key.group).is_some_and(|ticket| maps.trust.is_void(&ticket))
            };
            let swarms: Vec<_> = session.swarms().into_iter().filter(void).collect();
            swarms.iter().for_each(|key| session.close(*key, ErrorCode::Revoked));
            if !swarms.is_empty() {
                session.voided.send_modify(|count| *count += 1);
            }
        }
    }

    /// Resolves when the peer's ticket for a group does not hold any more because a tracker said
    /// so.
    pub async fn revoked(&self, session: &Session, group: GroupId) {
        let mut voided = session.voided.subscribe();
        while self.member(session, group).is_some() {
            // The session holds the other end.
            let _ = voided.changed().await;
        }
    }

    /// The bytes that all downloads together may have in flight.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes nothing of a content from a user for a day.
    pub fn ban(&self, content: ContentId, user: UserName) {
        let now = clock::now();
        let mut maps = self.lock();
        maps.banned.retain(|_, until| *until > now);
        if maps.banned.len() < MAX_BANS {
            maps.banned.insert((content, user), now.plus(BAN));
        }
    }

    /// From whom nothing of a content is taken.
    pub fn banned(&self, content: ContentId) -> BTreeSet<UserName> {
        let now = clock::now();
        let maps = self.lock();
        let banned = maps.banned.iter().filter(|((of, _), until)| *of == content && **until > now);
        banned.map(|((_, user), _)| user.clone()).collect()
    }

    /// A peer no longer has a swarm: it need not be opened with it.
    pub fn unwant_from(&self, peer: PeerId, key: SwarmKey) {
        let mut maps = self.lock();
        if let Some(keys) = maps.wanted.get_mut(&peer) {
            keys.remove(&key);
            if keys.is_empty() {
                maps.wanted.remove(&peer);
            }
        }
    }

    /// Takes part in a swarm.
    pub fn add_swarm(&self, swarm: Arc<Swarm>) {
        self.lock().swarms.insert(swarm.key, swarm);
    }

    /// The swarm, if we take part in it.
    pub fn swarm(&self, key: SwarmKey) -> Option<Arc<Swarm>> {
        self.lock().swarms.get(&key).cloned()
    }

    /// Leaves a swarm; its peers are told why. Its rate limits go.
    pub fn remove_swarm(&self, key: SwarmKey, code: ErrorCode) {
        self.rest_swarm(key, code);
        self.rates.forget(key);
    }

    /// Leaves a swarm for a while; its peers are told why. Its rate limits stay.
    pub fn rest_swarm(&self, key: SwarmKey, code: ErrorCode) {
        let mut maps = self.lock();
        maps.swarms.remove(&key);
        maps.uploads.forget(key);
        maps.unwant(key);
        maps.sessions.values().for_each(|session| session.close(key, code));
        drop(maps);
        self.serving.forget(key);
    }

    /// Wants a swarm opened with a peer that is at `addresses`: now if there is a session, else
    /// with the next one. Returns whether there is one worth keeping: one that we dialled where
    /// the peer no longer is belongs to a process that is gone.
    pub fn want(&self, peer: PeerId, addresses: &[SocketAddr], key: SwarmKey) -> bool {
        let mut maps = self.lock();
        maps.wanted.entry(peer).or_default().insert(key);
        let Some(session) = maps.sessions.get(&peer).cloned() else { return false };
        if let Some(ticket) = maps.tickets.get(&key.group) {
            session.open(key, ticket);
        }
        let connection = &session.connection;
        !connection.is_closed()
            && (!connection.dialled() || addresses.contains(&connection.remote_address()))
    }

    /// A swarm need not be opened with anybody any more: it is complete here.
    pub fn unwant(&self, key: SwarmKey) {
        self.lock().unwant(key);
    }

    /// Tells everybody who has a swarm open what we have of it, from scratch.
    pub fn tell_again(&self, key: SwarmKey) {
        let maps = self.lock();
        let Some(swarm) = maps.swarms.get(&key) else { return };
        maps.sessions.values().for_each(|session| session.tell_again(key, &swarm.store));
    }

    /// Adds a session unless another one with the same peer stays. Both sides decide alike: the
    /// connection begun by the lower peer id stays, and of two begun by the same side the newer.
    pub fn add_session(&self, me: PeerId, session: &Arc<Session>) -> Admission {
        let mut maps = self.lock();
        let peer = session.connection.remote();
        if let Some(old) = maps.sessions.get(&peer)
            && !old.connection.is_closed()
            && !newer_stays(me, peer, old.connection.dialled(), session.connection.dialled())
        {
            return Admission::Duplicate;
        }
        let old = maps.sessions.insert(peer, session.clone());
        let wanted: Vec<_> = maps.wanted.get(&peer).into_iter().flatten().copied().collect();
        for key in wanted {
            if let Some(ticket) = maps.tickets.get(&key.group) {
                session.open(key, ticket);
            }
        }
        Admission::Stays { instead_of: old }
    }

    /// A session ended; downloads hear of it.
    pub fn remove_session(&self, session: &Arc<Session>) -> Vec<Arc<Swarm>> {
        let mut maps = self.lock();
        let peer = session.connection.remote();
        if maps.sessions.get(&peer).is_some_and(|known| known.number == session.number) {
            maps.sessions.remove(&peer);
        }
        session.swarms().iter().filter_map(|key| maps.swarms.get(key).cloned()).collect()
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// The session to end when connections are full: one without any ticket that holds, or else the
    /// one that has been of no use for longest, if that is long.
    pub fn least_useful(&self) -> Option<Arc<Session>> {
        let now = clock::now();
        let maps = self.lock();
        let open = maps.sessions.values().filter(|session| !session.connection.is_closed());
        let rank = |session: &Arc<Session>| {
            let member = session.any_ticket(|ticket| maps.trust.still_holds(ticket, now));
            let idle = session.idle();
            // One that was just begun may be about to show its ticket.
            let stranger =
                !member && (session.introduced.is_cancelled() || idle >= TICKET_DEADLINE);
            (stranger || idle >= USELESS_AFTER).then(|| ((stranger, idle), session.clone()))
        };
        open.filter_map(rank).max_by_key(|(rank, _)| *rank).map(|(_, session)| session)
    }

    /// The session to end because its user has too many: the oldest.
    pub fn one_too_many(&self, user: &UserName) -> Option<Arc<Session>> {
        let maps = self.lock();
        let theirs = maps.sessions.values().filter(|session| session.user().as_ref() == Some(user));
        let theirs: Vec<_> = theirs.collect();
        let oldest = theirs.iter().min_by_key(|session| session.number)?;
        (theirs.len() > MAX_SESSIONS_PER_USER).then(|| Arc::clone(oldest))
    }

    /// Counts something that was sent to a user or refused, as long as we take part in the swarm.
    pub fn count_upload(&self, key: SwarmKey, user: &UserName, count: impl Fn(&mut UploadCounts)) {
        let mut maps = self.lock();
        if maps.swarms.contains_key(&key) {
            maps.uploads.count(key, user, count);
        }
    }

    /// Bytes delivered in a swarm.
    pub fn uploaded(&self, key: SwarmKey) -> u64 {
        self.lock().uploads.all(key).delivered_bytes
    }

    /// What each user was sent in a swarm, also those who are gone.
    pub fn uploads(&self, key: SwarmKey) -> Vec<(UserName, UploadCounts)> {
        self.lock().uploads.users(key)
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes news to the download of a swarm, if it has one.
pub async fn tell_download(swarm: &Swarm, news: News) {
    if let Some(queue) = &swarm.news {
        // A download that ended needs no news.
        let _ = queue.send((swarm.key, news)).await;
    }
}

/// Whether of two connections between `me` and `peer` the newer one stays.
fn newer_stays(me: PeerId, peer: PeerId, old_dialled: bool, new_dialled: bool) -> bool {
    if old_dialled == new_dialled {
        return true;
    }
    new_dialled == (me < peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_keep_the_same_connection() {
        let (low, high) = (PeerId([1; 32]), PeerId([2; 32]));
        // Each side sees its own dial first, then the other's.
        assert!(!newer_stays(low, high, true, false));
        assert!(newer_stays(high, low, true, false));
        // Or the other way round.
        assert!(newer_stays(low, high, false, true));
        assert!(!newer_stays(high, low, false, true));
        // A peer that dials again has lost its old connection.
        assert!(newer_stays(low, high, false, false));
        assert!(newer_stays(low, high, true, true));
    }
}
