//! Who is connected, and which contents they hold: soft state that lives as long as connections.
//!
//! The newest session of a device wins. Nothing here is durable and nothing here waits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::address;
use super::message::PeerRecord;
use super::push::Push;
use crate::clock::UnixMillis;
use crate::id::{GroupId, UserId};
use crate::limits::{
    MAX_DEVICES_PER_USER_IN_SAMPLE, MAX_PEERS_PER_ANSWER, MAX_SHARES_PER_USER, PUSH_QUEUE,
};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;

/// A living connection, numbered by the server.
pub type ConnectionNumber = u64;

/// The way to a client.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// Pushes wait here.
    pub pushes: mpsc::Sender<Push>,
    /// News were left out because the client reads too slowly; it is told once it reads again.
    pub lagging: Arc<AtomicBool>,
    /// Cancelled for a client that leaves too many unread.
    pub cut_off: CancellationToken,
}

impl Outlet {
    /// A way to a client, and the queue to be written to it.
    pub fn new() -> (Self, mpsc::Receiver<Push>) {
        let (pushes, queue) = mpsc::channel(PUSH_QUEUE);
        let outlet = Self { pushes, lagging: Arc::default(), cut_off: CancellationToken::new() };
        (outlet, queue)
    }

    /// Queues a push. What can be asked for as well is left out when the queue is half full; who
    /// leaves no room for the rest either is cut off.
    fn send(&self, push: Push) {
        if push.is_news() && self.pushes.capacity() < self.pushes.max_capacity() / 2 {
            self.lagging.store(true, Ordering::Relaxed);
        } else if self.pushes.try_send(push).is_err() {
            tracing::debug!("client does not read its pushes");
            self.cut_off.cancel();
        }
    }
}

/// What is known of a connection.
#[derive(Debug)]
pub struct Client {
    /// The device.
    pub device: PeerId,
    /// Where the tracker sees it.
    pub observed: SocketAddr,
    /// Where it says it is.
    pub declared: Vec<SocketAddr>,
    /// Its session number.
    pub session: u64,
    /// Its user, once logged in, and the user's name.
    pub user: Option<(UserId, UserName)>,
    /// The way to it.
    pub outlet: Outlet,
    announced: HashSet<(GroupId, ContentId)>,
    /// Groups it got tickets for on this connection.
    ticketed: HashSet<GroupId>,
}

impl Client {
    /// A client that has just said hello.
    pub fn new(
        device: PeerId,
        observed: SocketAddr,
        declared: Vec<SocketAddr>,
        session: u64,
        outlet: Outlet,
    ) -> Self {
        Self {
            device,
            observed,
            declared,
            session,
            user: None,
            outlet,
            announced: HashSet::new(),
            ticketed: HashSet::new(),
        }
    }
}

#[derive(Clone, Debug)]
struct Seat {
    connection: ConnectionNumber,
    session: u64,
    user: UserId,
    complete: bool,
}

/// Everybody online.
#[derive(Debug, Default)]
pub struct Presence {
    clients: DashMap<ConnectionNumber, Client>,
    swarms: DashMap<(GroupId, ContentId), BTreeMap<PeerId, Seat>>,
    users: DashMap<UserId, BTreeSet<ConnectionNumber>>,
    /// When users whose devices are all gone were last online.
    seen: DashMap<UserId, UnixMillis>,
}

impl Presence {
    /// Nobody online; `seen` says when users last were.
    pub fn new(seen: impl IntoIterator<Item = (UserId, UnixMillis)>) -> Self {
        Self { seen: seen.into_iter().collect(), ..Self::default() }
    }

    /// A connection came.
    pub fn enter(&self, connection: ConnectionNumber, client: Client) {
        self.clients.insert(connection, client);
    }

    /// A connection is gone, with all it announced. Returns its user, when that was the last.
    pub fn leave(&self, connection: ConnectionNumber, now: UnixMillis) -> Option<UserId> {
        let gone = self.log_out(connection, now);
        self.clients.remove(&connection);
        gone
    }

    /// A user is known on a connection.
    pub fn log_in(&self, connection: ConnectionNumber, user: UserId, name: &UserName) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        let before = client.user.replace((user, name.clone()));
        if let Some((other, _)) = before.filter(|(other, _)| *other != user) {
            self.disconnect(other, connection);
        }
        self.users.entry(user).or_default().insert(connection);
        self.seen.remove(&user);
    }

    /// Nobody is known on a connection any more. Returns who was, when that was the last of that
    /// user's connections.
    pub fn log_out(&self, connection: ConnectionNumber, now: UnixMillis) -> Option<UserId> {
        let mut client = self.clients.get_mut(&connection)?;
        let user = client.user.take().map(|(user, _)| user);
        let announced = std::mem::take(&mut client.announced);
        client.ticketed.clear();
        let device = client.device;
        drop(client);
        for swarm in announced {
            self.remove_seat(swarm, connection, device);
        }
        let user = user?;
        if !self.disconnect(user, connection) {
            return None;
        }
        self.seen.insert(user, now);
        Some(user)
    }

    /// A connection is not this user's any more; returns whether it was the last.
    fn disconnect(&self, user: UserId, connection: ConnectionNumber) -> bool {
        if let Some(mut connections) = self.users.get_mut(&user) {
            connections.remove(&connection);
        }
        self.users.remove_if(&user, |_, connections| connections.is_empty()).is_some()
    }

    /// The user logged in on a connection.
    pub fn user(&self, connection: ConnectionNumber) -> Option<UserId> {
        Some(self.clients.get(&connection)?.user.as_ref()?.0)
    }

    /// Whether any device of `user` is connected.
    pub fn is_online(&self, user: UserId) -> bool {
        self.users.contains_key(&user)
    }

    /// When `user`, who is not online, last was.
    pub fn last_seen(&self, user: UserId) -> Option<UnixMillis> {
        self.seen.get(&user).map(|at| *at)
    }

    /// Users online.
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    /// Contents somebody holds, in their groups.
    pub fn swarm_count(&self) -> usize {
        self.swarms.len()
    }

    /// The devices a user is logged in with now.
    pub fn devices(&self, user: UserId) -> HashSet<PeerId> {
        let connections = self.connections(user);
        connections.iter().filter_map(|c| Some(self.clients.get(c)?.device)).collect()
    }

    /// A device may no longer act for a user: it is told, and nobody on its connections.
    pub fn sign_out(&self, user: UserId, device: PeerId, now: UnixMillis) {
        for connection in self.connections(user) {
            if self.clients.get(&connection).is_some_and(|client| client.device == device) {
                self.log_out(connection, now);
                self.push(connection, Push::SignedOut);
            }
        }
    }

    /// A connection gets a ticket for a group: it hears of what is revoked there from now on.
    /// Returns whether it is the first there.
    pub fn note_ticket(&self, connection: ConnectionNumber, group: GroupId) -> bool {
        let client = self.clients.get_mut(&connection);
        client.is_some_and(|mut client| client.ticketed.insert(group))
    }

    /// Nobody holds a content in a group any more.
    pub fn end_swarm(&self, group: GroupId, content: ContentId) {
        for connection in self.seated(group, content) {
            self.withdraw(connection, group, content);
        }
    }

    /// The connections that hold a content in a group.
    fn seated(&self, group: GroupId, content: ContentId) -> Vec<ConnectionNumber> {
        let seats = self.swarms.get(&(group, content));
        seats.iter().flat_map(|seats| seats.values()).map(|seat| seat.connection).collect()
    }

    fn connections(&self, user: UserId) -> BTreeSet<ConnectionNumber> {
        self.users.get(&user).map(|connections| connections.clone()).unwrap_or_default()
    }

    /// Connections now alive.
    pub fn connection_count(&self) -> usize {
        self.clients.len()
    }

    /// A connection holds a content, and those who announced it before hear of it. Returns
    /// whether there was room for it.
    pub fn announce(
        &self,
        connection: ConnectionNumber,
        group: GroupId,
        content: ContentId,
        complete: bool,
    ) -> bool {
        let Some(mut client) = self.clients.get_mut(&connection) else { return true };
        let Some((user, name)) = client.user.clone() else { return true };
        let room = client.announced.len() < MAX_SHARES_PER_USER;
        if !room && !client.announced.contains(&(group, content)) {
            return false;
        }
        client.announced.insert((group, content));
        let (device, session) = (client.device, client.session);

        let mut seats = self.swarms.entry((group, content)).or_default();
        let older = seats.get(&device).cloned();
        if older.as_ref().is_some_and(|seat| seat.session > session) {
            return true;
        }
        seats.insert(device, Seat { connection, session, user, complete });
        // A device that merely finished is known to those it serves; a new one is news.
        let news = older.is_none_or(|seat| seat.connection != connection);
        // Complete holders look for nobody.
        let listeners: Vec<_> = seats
            .iter()
            .filter(|(id, seat)| news && **id != device && !seat.complete)
            .map(|(_, seat)| seat.connection)
            .collect();
        // Seated while the client is held: who leaves meanwhile leaves this seat too.
        drop(seats);
        drop(client);
        for listener in listeners {
            let Some(peer) = self.record(connection, listener, &name, complete) else { continue };
            self.push(listener, Push::SwarmJoined { group, content, peer });
        }
        true
    }

    /// A connection no longer holds a content.
    pub fn withdraw(&self, connection: ConnectionNumber, group: GroupId, content: ContentId) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        client.announced.remove(&(group, content));
        let device = client.device;
        drop(client);
        self.remove_seat((group, content), connection, device);
    }

    /// All connections of `user` no longer hold anything of `group`.
    pub fn expel(&self, user: UserId, group: GroupId) {
        for connection in self.connections(user) {
            let contents: Vec<_> = self
                .clients
                .get(&connection)
                .map(|client| {
                    client.announced.iter().filter(|(g, _)| *g == group).copied().collect()
                })
                .unwrap_or_default();
            for (_, content) in contents {
                self.withdraw(connection, group, content);
            }
        }
    }

    /// Devices that hold a content wholly, and in part.
    pub fn holders(&self, group: GroupId, content: ContentId) -> (u32, u32) {
        self.swarms.get(&(group, content)).map_or((0, 0), |seats| {
            let complete = seats.values().filter(|seat| seat.complete).count();
            (complete as u32, (seats.len() - complete) as u32)
        })
    }

    /// A bounded random sample of who holds a content, for the client on `viewer`: of those who
    /// hold it wholly and of those who hold it in part, half each where there are enough.
    pub fn sample(
        &self,
        group: GroupId,
        content: ContentId,
        viewer: ConnectionNumber,
        rng: &mut fastrand::Rng,
    ) -> Vec<PeerRecord> {
        let Some(me) = self.clients.get(&viewer).map(|client| client.device) else {
            return Vec::new();
        };
        let mut seats: Vec<_> = self
            .swarms
            .get(&(group, content))
            .map(|seats| seats.iter().map(|(id, seat)| (*id, seat.clone())).collect())
            .unwrap_or_default();
        rng.shuffle(&mut seats);
        let mut devices: BTreeMap<UserId, usize> = BTreeMap::new();
        seats.retain(|(device, seat)| {
            let count = devices.entry(seat.user).or_default();
            *count += usize::from(*device != me);
            *device != me && *count <= MAX_DEVICES_PER_USER_IN_SAMPLE
        });
        let (complete, partial): (Vec<_>, Vec<_>) =
            seats.into_iter().partition(|(_, seat)| seat.complete);
        let half = MAX_PEERS_PER_ANSWER / 2;
        let take = half.max(MAX_PEERS_PER_ANSWER.saturating_sub(partial.len()));
        let rest = MAX_PEERS_PER_ANSWER - take.min(complete.len());
        let chosen = complete.into_iter().take(take).chain(partial.into_iter().take(rest));
        let records = chosen.filter_map(|(_, seat)| {
            let name = self.clients.get(&seat.connection)?.user.clone()?.1;
            self.record(seat.connection, viewer, &name, seat.complete)
        });
        records.collect()
    }

    /// Sends a push to every connection of `users`.
    pub fn push_to_users(&self, users: impl IntoIterator<Item = UserId>, push: &Push) {
        for user in users {
            for connection in self.connections(user) {
                self.push(connection, push.clone());
            }
        }
    }

    /// Sends a push to every connection with somebody logged in.
    pub fn push_to_all(&self, push: &Push) {
        for client in self.clients.iter().filter(|client| client.user.is_some()) {
            client.outlet.send(push.clone());
        }
    }

    /// Sends a push to every connection, whether somebody is logged in or not.
    pub fn push_to_every(&self, push: &Push) {
        for client in &self.clients {
            client.outlet.send(push.clone());
        }
    }

    /// Sends a push to every connection that takes part in a group: has a ticket for it, or has
    /// announced something in it.
    pub fn push_to_active(&self, group: GroupId, push: &Push) {
        for client in &self.clients {
            let announced = || client.announced.iter().any(|(of, _)| *of == group);
            if client.ticketed.contains(&group) || announced() {
                client.outlet.send(push.clone());
            }
        }
    }

    /// Sends a push to every connection that holds a content in a group.
    pub fn push_to_swarm(&self, group: GroupId, content: ContentId, push: &Push) {
        for connection in self.seated(group, content) {
            self.push(connection, push.clone());
        }
    }

    /// Sends a push to one connection.
    pub fn push(&self, connection: ConnectionNumber, push: Push) {
        if let Some(client) = self.clients.get(&connection) {
            client.outlet.send(push);
        }
    }

    /// What the client on `viewer` may know of the one on `connection`.
    fn record(
        &self,
        connection: ConnectionNumber,
        viewer: ConnectionNumber,
        user: &UserName,
        complete: bool,
    ) -> Option<PeerRecord> {
        let (viewer, me) = {
            let viewer = self.clients.get(&viewer)?;
            (viewer.observed, viewer.user.clone())
        };
        let client = self.clients.get(&connection)?;
        Some(PeerRecord {
            peer_id: client.device,
            user: user.clone(),
            addresses: address::for_viewer(client.observed, &client.declared, viewer),
            complete,
            own: me.is_some_and(|(_, name)| name == *user),
            doubtful: false,
        })
    }

    /// Takes a seat away, and those who hold the content in part hear of it.
    fn remove_seat(
        &self,
        swarm: (GroupId, ContentId),
        connection: ConnectionNumber,
        device: PeerId,
    ) {
        let Some(mut seats) = self.swarms.get_mut(&swarm) else { return };
        let before = seats.len();
        seats.retain(|_, seat| seat.connection != connection);
        let listeners: Vec<_> = match seats.len() < before {
            true => seats.values().filter(|s| !s.complete).map(|s| s.connection).collect(),
            false => Vec::new(),
        };
        drop(seats);
        self.swarms.remove_if(&swarm, |_, seats| seats.is_empty());
        let (group, content) = swarm;
        for listener in listeners {
            self.push(listener, Push::SwarmLeft { group, content, peer_id: device });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId([1; 16]);
    const CONTENT: ContentId = ContentId([2; 32]);

    fn name(text: &str) -> UserName {
        text.parse().expect("name")
    }

    /// A client on connection `number`, with device `device`, logged in as `user`.
    fn enter(
        presence: &Presence,
        number: u64,
        device: u8,
        session: u64,
        user: &str,
    ) -> mpsc::Receiver<Push> {
        let (outlet, queue) = Outlet::new();
        let observed = format!("203.0.113.{device}:1").parse().expect("address");
        let id = PeerId([device; 32]);
        presence.enter(number, Client::new(id, observed, Vec::new(), session, outlet));
        presence.log_in(number, id_of(user), &name(user));
        queue
    }

    const NOW: UnixMillis = UnixMillis(77);

    fn id_of(user: &str) -> UserId {
        UserId(crate::id::derived(&[user.as_bytes()]))
    }

    fn sample(presence: &Presence, viewer: u64) -> Vec<PeerId> {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut ids: Vec<_> = presence
            .sample(GROUP, CONTENT, viewer, &mut rng)
            .into_iter()
            .map(|peer| peer.peer_id)
            .collect();
        ids.sort();
        ids
    }

    #[test]
    fn leechers_hear_of_newcomers_and_seeders_do_not() {
        let presence = Presence::default();
        let mut seeder = enter(&presence, 1, 1, 1, "a");
        let mut leecher = enter(&presence, 2, 2, 1, "b");
        let _third = enter(&presence, 3, 3, 1, "c");
        presence.announce(1, GROUP, CONTENT, true);
        presence.announce(2, GROUP, CONTENT, false);
        presence.announce(3, GROUP, CONTENT, false);
        assert!(seeder.try_recv().is_err());
        let Ok(Push::SwarmJoined { peer, .. }) = leecher.try_recv() else { panic!("no push") };
        assert_eq!(peer.peer_id, PeerId([3; 32]));
        // Finishing is no news.
        presence.announce(3, GROUP, CONTENT, true);
        assert!(leecher.try_recv().is_err());
        assert_eq!(presence.holders(GROUP, CONTENT), (2, 1));
        assert_eq!(sample(&presence, 2), [PeerId([1; 32]), PeerId([3; 32])]);
    }

    #[test]
    fn the_newest_session_wins_and_the_old_ones_end_does_not_matter() {
        let presence = Presence::default();
        let _old = enter(&presence, 1, 1, 5, "a");
        let _new = enter(&presence, 2, 1, 6, "a");
        let _viewer = enter(&presence, 3, 3, 1, "c");
        presence.announce(2, GROUP, CONTENT, true);
        presence.announce(1, GROUP, CONTENT, false);
        assert_eq!(presence.holders(GROUP, CONTENT), (1, 0));
        presence.leave(1, NOW);
        assert_eq!(sample(&presence, 3), [PeerId([1; 32])]);
        assert_eq!(presence.leave(2, NOW), Some(id_of("a")));
        assert_eq!(presence.last_seen(id_of("a")), Some(NOW));
        assert!(sample(&presence, 3).is_empty());
        assert!(!presence.is_online(id_of("a")));
    }

    #[test]
    fn a_sample_counts_users_not_devices() {
        let presence = Presence::default();
        let _queues: Vec<_> = (1..=9).map(|i| enter(&presence, i, i as u8, 1, "many")).collect();
        for i in 1..=9 {
            presence.announce(i, GROUP, CONTENT, true);
        }
        let _viewer = enter(&presence, 20, 20, 1, "viewer");
        assert_eq!(sample(&presence, 20).len(), MAX_DEVICES_PER_USER_IN_SAMPLE);
    }

    #[test]
    fn who_leaves_the_group_or_logs_out_is_gone_from_its_swarms() {
        let presence = Presence::default();
        let _a = enter(&presence, 1, 1, 1, "a");
        let _b = enter(&presence, 2, 2, 1, "b");
        presence.announce(1, GROUP, CONTENT, true);
        presence.announce(2, GROUP, CONTENT, true);
        presence.expel(id_of("a"), GROUP);
        assert_eq!(presence.holders(GROUP, CONTENT), (1, 0));
        presence.log_out(2, NOW);
        assert_eq!(presence.holders(GROUP, CONTENT), (0, 0));
        assert!(presence.swarms.is_empty());
        // Not logged in: nothing can be announced.
        presence.announce(2, GROUP, CONTENT, true);
        assert_eq!(presence.holders(GROUP, CONTENT), (0, 0));
    }

    #[test]
    fn a_sample_has_both_kinds_and_marks_own_devices() {
        let presence = Presence::default();
        let count = MAX_PEERS_PER_ANSWER as u64;
        let queues: Vec<_> =
            (1..=2 * count).map(|i| enter(&presence, i, i as u8, 1, &format!("u{i}"))).collect();
        for i in 1..=2 * count {
            presence.announce(i, GROUP, CONTENT, i > 10);
        }
        let _viewer = enter(&presence, 200, 200, 1, "u1");
        let mut rng = fastrand::Rng::with_seed(3);
        let peers = presence.sample(GROUP, CONTENT, 200, &mut rng);
        assert_eq!(peers.len(), MAX_PEERS_PER_ANSWER);
        assert_eq!(peers.iter().filter(|peer| !peer.complete).count(), 10);
        let own: Vec<_> = peers.iter().filter(|peer| peer.own).collect();
        assert!(own.len() == 1 && own[0].user == name("u1"));
        drop(queues);
    }

    #[test]
    fn leechers_hear_who_leaves_and_a_removed_device_is_signed_out() {
        let presence = Presence::default();
        let mut leecher = enter(&presence, 1, 1, 1, "a");
        let mut gone = enter(&presence, 2, 2, 1, "b");
        presence.announce(1, GROUP, CONTENT, false);
        presence.announce(2, GROUP, CONTENT, true);
        assert!(matches!(leecher.try_recv(), Ok(Push::SwarmJoined { .. })));
        presence.sign_out(id_of("b"), PeerId([9; 32]), NOW);
        assert!(presence.is_online(id_of("b")), "another device");
        presence.sign_out(id_of("b"), PeerId([2; 32]), NOW);
        assert_eq!(gone.try_recv(), Ok(Push::SignedOut));
        let peer_id = PeerId([2; 32]);
        let left = Push::SwarmLeft { group: GROUP, content: CONTENT, peer_id };
        assert_eq!(leecher.try_recv(), Ok(left));
        assert!(!presence.is_online(id_of("b")));
    }

    #[test]
    fn a_client_that_never_reads_loses_news_and_is_cut_off() {
        let presence = Presence::default();
        let _queue = enter(&presence, 1, 1, 1, "a");
        let outlet = presence.clients.get(&1).expect("there").outlet.clone();
        let peer_id = PeerId([2; 32]);
        let news = Push::SwarmLeft { group: GROUP, content: CONTENT, peer_id };
        (0..PUSH_QUEUE).for_each(|_| presence.push(1, news.clone()));
        assert!(outlet.lagging.load(Ordering::Relaxed));
        assert!(!outlet.cut_off.is_cancelled());
        let room = outlet.pushes.capacity();
        assert!(room >= PUSH_QUEUE / 2 - 1);
        (0..room).for_each(|_| presence.push_to_users([id_of("a")], &Push::SignedOut));
        assert!(!outlet.cut_off.is_cancelled());
        presence.push_to_users([id_of("a")], &Push::SignedOut);
        assert!(outlet.cut_off.is_cancelled());
    }
}
