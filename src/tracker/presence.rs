//! Who is connected, and which contents they hold: soft state that lives as long as connections.
//!
//! The newest session of a device wins. Nothing here is durable and nothing here waits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use dashmap::DashMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::address;
use super::message::{PeerRecord, Push};
use crate::id::GroupId;
use crate::limits::{MAX_DEVICES_PER_USER_IN_SAMPLE, MAX_PEERS_PER_ANSWER, MAX_SHARES_PER_USER};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;

/// A living connection, numbered by the server.
pub type ConnectionNumber = u64;

/// The way to a client.
#[derive(Debug)]
pub struct Outlet {
    /// Pushes wait here.
    pub pushes: mpsc::Sender<Push>,
    /// Cancelled for a client that leaves too many unread.
    pub cut_off: CancellationToken,
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
    /// Its user, once logged in.
    pub user: Option<UserName>,
    /// The way to it.
    pub outlet: Outlet,
    announced: HashSet<(GroupId, ContentId)>,
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
        Self { device, observed, declared, session, user: None, outlet, announced: HashSet::new() }
    }
}

#[derive(Clone, Debug)]
struct Seat {
    connection: ConnectionNumber,
    session: u64,
    user: UserName,
    complete: bool,
}

/// Everybody online.
#[derive(Debug, Default)]
pub struct Presence {
    clients: DashMap<ConnectionNumber, Client>,
    swarms: DashMap<(GroupId, ContentId), BTreeMap<PeerId, Seat>>,
    users: DashMap<UserName, BTreeSet<ConnectionNumber>>,
}

impl Presence {
    /// A connection came.
    pub fn enter(&self, connection: ConnectionNumber, client: Client) {
        self.clients.insert(connection, client);
    }

    /// A connection is gone, with all it announced.
    pub fn leave(&self, connection: ConnectionNumber) {
        self.log_out(connection);
        self.clients.remove(&connection);
    }

    /// A user is known on a connection.
    pub fn log_in(&self, connection: ConnectionNumber, user: &UserName) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        client.user = Some(user.clone());
        self.users.entry(user.clone()).or_default().insert(connection);
    }

    /// Nobody is known on a connection any more.
    pub fn log_out(&self, connection: ConnectionNumber) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        let user = client.user.take();
        let announced = std::mem::take(&mut client.announced);
        drop(client);
        for swarm in announced {
            self.remove_seat(swarm, connection);
        }
        let Some(user) = user else { return };
        if let Some(mut connections) = self.users.get_mut(&user) {
            connections.remove(&connection);
        }
        self.users.remove_if(&user, |_, connections| connections.is_empty());
    }

    /// The user logged in on a connection.
    pub fn user(&self, connection: ConnectionNumber) -> Option<UserName> {
        self.clients.get(&connection)?.user.clone()
    }

    /// Whether any device of `user` is connected.
    pub fn is_online(&self, user: &UserName) -> bool {
        self.users.contains_key(user)
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
        let Some(user) = client.user.clone() else { return true };
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
        seats.insert(device, Seat { connection, session, user: user.clone(), complete });
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
            let Some(peer) = self.record(connection, listener, &user, complete) else { continue };
            self.push(listener, Push::SwarmJoined { group, content, peer });
        }
        true
    }

    /// A connection no longer holds a content.
    pub fn withdraw(&self, connection: ConnectionNumber, group: GroupId, content: ContentId) {
        if let Some(mut client) = self.clients.get_mut(&connection) {
            client.announced.remove(&(group, content));
        }
        self.remove_seat((group, content), connection);
    }

    /// All connections of `user` no longer hold anything of `group`.
    pub fn expel(&self, user: &UserName, group: GroupId) {
        let connections = self.users.get(user).map(|c| c.clone()).unwrap_or_default();
        for connection in connections {
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

    /// A bounded random sample of who holds a content, for the client on `viewer`.
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
        let mut devices: BTreeMap<UserName, usize> = BTreeMap::new();
        let mut records = Vec::new();
        for (device, seat) in seats {
            if device == me {
                continue;
            }
            let count = devices.entry(seat.user.clone()).or_default();
            if *count >= MAX_DEVICES_PER_USER_IN_SAMPLE {
                continue;
            }
            *count += 1;
            records.extend(self.record(seat.connection, viewer, &seat.user, seat.complete));
            if records.len() == MAX_PEERS_PER_ANSWER {
                break;
            }
        }
        records
    }

    /// Sends a push to every connection of `users`.
    pub fn push_to_users<'a>(&self, users: impl IntoIterator<Item = &'a UserName>, push: &Push) {
        for user in users {
            let connections = self.users.get(user).map(|c| c.clone()).unwrap_or_default();
            for connection in connections {
                self.push(connection, push.clone());
            }
        }
    }

    fn push(&self, connection: ConnectionNumber, push: Push) {
        let Some(client) = self.clients.get(&connection) else { return };
        if client.outlet.pushes.try_send(push).is_err() {
            tracing::debug!(connection, "client does not read its pushes");
            client.outlet.cut_off.cancel();
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
        let viewer = self.clients.get(&viewer)?.observed;
        let client = self.clients.get(&connection)?;
        Some(PeerRecord {
            peer_id: client.device,
            user: user.clone(),
            addresses: address::for_viewer(client.observed, &client.declared, viewer),
            complete,
        })
    }

    fn remove_seat(&self, swarm: (GroupId, ContentId), connection: ConnectionNumber) {
        if let Some(mut seats) = self.swarms.get_mut(&swarm) {
            seats.retain(|_, seat| seat.connection != connection);
        }
        self.swarms.remove_if(&swarm, |_, seats| seats.is_empty());
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
        let (pushes, queue) = mpsc::channel(4);
        let outlet = Outlet { pushes, cut_off: CancellationToken::new() };
        let observed = format!("203.0.113.{device}:1").parse().expect("address");
        let id = PeerId([device; 32]);
        presence.enter(number, Client::new(id, observed, Vec::new(), session, outlet));
        presence.log_in(number, &name(user));
        queue
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
        presence.leave(1);
        assert_eq!(sample(&presence, 3), [PeerId([1; 32])]);
        presence.leave(2);
        assert!(sample(&presence, 3).is_empty());
        assert!(!presence.is_online(&name("a")));
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
        presence.expel(&name("a"), GROUP);
        assert_eq!(presence.holders(GROUP, CONTENT), (1, 0));
        presence.log_out(2);
        assert_eq!(presence.holders(GROUP, CONTENT), (0, 0));
        assert!(presence.swarms.is_empty());
        // Not logged in: nothing can be announced.
        presence.announce(2, GROUP, CONTENT, true);
        assert_eq!(presence.holders(GROUP, CONTENT), (0, 0));
    }

    #[test]
    fn a_client_that_never_reads_is_cut_off() {
        let presence = Presence::default();
        let _queue = enter(&presence, 1, 1, 1, "a");
        let push = Push::Revoked { membership: crate::id::MembershipId([1; 16]) };
        let cut_off = presence.clients.get(&1).expect("there").outlet.cut_off.clone();
        (0..4).for_each(|_| presence.push_to_users([&name("a")], &push));
        assert!(!cut_off.is_cancelled());
        presence.push_to_users([&name("a")], &push);
        assert!(cut_off.is_cancelled());
    }
}
