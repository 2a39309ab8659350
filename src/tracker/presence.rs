//! Who is connected, and which contents they hold: soft state that lives as long as connections.
//!
//! The newest session of a device wins. Clients of other trackers are kept like those connected here,
//! only that nothing is said to them (`remote` lets them in and out). Nothing here is durable and
//! nothing here waits.
//!
//! Locks are taken in this order, and never two of one map: a journal that is read, or what siblings
//! told; `clients`; then one of `swarms`, `locals`, or `users` and after it `seen`. Journals may be
//! noted in whatever is held. So nobody is told anything while a swarm or a client is held: who listens
//! is found out then, and told once both are let go.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dashmap::{DashMap, Entry};

use super::gossip::{Heard, Here, Journals, SwarmId};
use super::message::PeerRecord;
use super::outlet::Outlet;
use super::push::Push;
use super::seats::{ConnectionNumber, Login, SeatChange, SeatNews, Swarm};
use crate::clock::UnixMillis;
use crate::id::{GroupId, UserId};
use crate::limits::MAX_SHARES_PER_USER;
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;

/// What a connection says of a content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    complete: bool,
    /// The list it was last told in or after, if a sibling tells it.
    pub(super) round: u32,
}

/// What is known of a connection.
#[derive(Debug)]
pub struct Client {
    device: PeerId,
    observed: SocketAddr,
    declared: Vec<SocketAddr>,
    session: u64,
    /// The way to it, if it is connected here.
    outlet: Option<Outlet>,
    /// Its user, once logged in.
    pub(super) login: Option<Arc<Login>>,
    /// What it holds. There is a claim in each of these swarms: both change while the client is
    /// held. Claims of a login that is over are taken away a moment later.
    pub(super) announced: HashMap<SwarmId, Held>,
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
        let outlet = Some(outlet);
        Self { declared, outlet, ..Self::elsewhere(device, observed, session) }
    }

    /// A client of another tracker.
    pub(super) fn elsewhere(device: PeerId, observed: SocketAddr, session: u64) -> Self {
        Self {
            device,
            observed,
            declared: Vec::new(),
            session,
            outlet: None,
            login: None,
            announced: HashMap::new(),
            ticketed: HashSet::new(),
        }
    }

    fn user(&self) -> Option<UserId> {
        self.login.as_ref().map(|login| login.user)
    }

    fn send(&self, push: Push) {
        if let Some(outlet) = &self.outlet {
            outlet.send(push);
        }
    }

    /// Whether what is decided here ends what it does: it is connected here, or its own tracker is
    /// lost. Otherwise that tracker decides the same, and says so; what it says later than that is
    /// true again, and must not be undone by who decides late.
    fn is_ours(&self) -> bool {
        self.login.as_ref().is_none_or(|login| login.is_local() || login.doubtful)
    }
}

/// A login that is over, and what it held.
struct Ended {
    login: Arc<Login>,
    announced: HashMap<SwarmId, Held>,
    /// Whether its user has no other.
    last: bool,
    /// The newest session the device is logged in with here after it.
    rest: Option<u64>,
}

/// Everybody online.
#[derive(Debug, Default)]
pub struct Presence {
    pub(super) clients: DashMap<ConnectionNumber, Client>,
    swarms: DashMap<SwarmId, Swarm>,
    users: DashMap<UserId, BTreeSet<ConnectionNumber>>,
    /// The logins over connections of this tracker, and their sessions.
    locals: DashMap<PeerId, BTreeMap<ConnectionNumber, u64>>,
    /// When users whose devices are all gone were last online.
    seen: DashMap<UserId, UnixMillis>,
    numbers: AtomicU64,
    connections: AtomicUsize,
    /// What other trackers told. Outermost of all locks.
    pub(super) heard: Mutex<BTreeMap<PeerId, Heard>>,
    pub(super) journals: Journals,
}

impl Presence {
    /// Nobody online; `seen` says when users last were.
    pub fn new(seen: impl IntoIterator<Item = (UserId, UnixMillis)>) -> Self {
        Self { seen: seen.into_iter().collect(), ..Self::default() }
    }

    /// A number for a connection; each is given once, later ones are higher.
    pub fn next_number(&self) -> ConnectionNumber {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection came.
    pub fn enter(&self, connection: ConnectionNumber, client: Client) {
        if client.outlet.is_some() {
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        self.clients.insert(connection, client);
    }

    /// A connection is gone, with all it announced. Returns its user, when that was the last.
    pub fn leave(&self, connection: ConnectionNumber, now: UnixMillis) -> Option<UserId> {
        let Entry::Occupied(mut entry) = self.clients.entry(connection) else { return None };
        let ended = self.end_login(entry.get_mut());
        let client = entry.remove();
        if client.outlet.is_some() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.finish(ended?, now)
    }

    /// A user is known on a connection.
    pub fn log_in(&self, connection: ConnectionNumber, user: UserId, name: &UserName) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        let ended = match client.user() {
            Some(known) if known == user => {
                drop(client);
                return self.describe(connection, |login| login.name = name.clone());
            }
            _ => self.end_login(&mut client),
        };
        let login = Login {
            connection,
            device: client.device,
            session: client.session,
            user,
            name: name.clone(),
            observed: client.observed,
            declared: client.declared.clone(),
            via: None,
            doubtful: false,
        };
        self.begin_login(&mut client, login);
        drop(client);
        if let Some(ended) = ended {
            self.settle(&ended);
        }
    }

    /// Begins a login, while its client is held.
    pub(super) fn begin_login(&self, client: &mut Client, login: Login) {
        let mut connections = self.users.entry(login.user).or_default();
        connections.insert(login.connection);
        self.seen.remove(&login.user);
        drop(connections);
        let device = login.device;
        if login.is_local() {
            let mut locals = self.locals.entry(device).or_default();
            locals.insert(login.connection, login.session);
            drop(locals);
            client.login = Some(Arc::new(login));
            self.journals.note_device(device, false);
        } else {
            client.login = Some(Arc::new(login));
        }
    }

    /// Nobody is known on a connection any more. Returns who was, when that was the last of that
    /// user's connections.
    pub fn log_out(&self, connection: ConnectionNumber, now: UnixMillis) -> Option<UserId> {
        let mut client = self.clients.get_mut(&connection)?;
        let ended = self.end_login(&mut client);
        drop(client);
        self.finish(ended?, now)
    }

    /// Ends a login, while its client is held. Its claims are still there.
    fn end_login(&self, client: &mut Client) -> Option<Ended> {
        client.ticketed.clear();
        let announced = std::mem::take(&mut client.announced);
        let login = client.login.take()?;
        if let Some(mut connections) = self.users.get_mut(&login.user) {
            connections.remove(&login.connection);
        }
        let none = |_: &UserId, connections: &BTreeSet<_>| connections.is_empty();
        let last = self.users.remove_if(&login.user, none).is_some();
        let mut rest = None;
        if login.is_local() {
            if let Some(mut locals) = self.locals.get_mut(&login.device) {
                locals.remove(&login.connection);
                rest = locals.values().max().copied();
            }
            self.locals.remove_if(&login.device, |_, locals| locals.is_empty());
        }
        Some(Ended { login, announced, last, rest })
    }

    /// Takes the claims of an ended login away. Returns its user, when it has no other.
    fn finish(&self, ended: Ended, now: UnixMillis) -> Option<UserId> {
        self.settle(&ended);
        let user = ended.login.user;
        if !ended.last {
            return None;
        }
        self.seen.insert(user, now);
        Some(user)
    }

    fn settle(&self, Ended { login, announced, rest, .. }: &Ended) {
        // Siblings know what the newest session holds. Held by it over another connection, it is
        // held still; otherwise all of it is gone, and is not told one by one.
        let one_by_one = *rest == Some(login.session);
        for swarm in announced.keys() {
            let client = self.clients.get(&login.connection);
            if client.as_ref().is_some_and(|client| client.announced.contains_key(swarm)) {
                // Logged in and announced again since.
                continue;
            }
            let change = self.release(*swarm, login);
            drop(client);
            self.tell(*swarm, &change);
            if one_by_one && change.to_be_told {
                self.journals.note_content(login.device, *swarm);
            }
        }
        if login.is_local() && rest.is_none_or(|rest| rest <= login.session) {
            self.journals.note_device(login.device, !one_by_one);
        }
    }

    /// The user logged in on a connection.
    pub fn user(&self, connection: ConnectionNumber) -> Option<UserId> {
        self.clients.get(&connection)?.user()
    }

    /// Whether any device of `user` is connected, here or elsewhere.
    pub fn is_online(&self, user: UserId) -> bool {
        self.users.contains_key(&user)
    }

    /// When `user`, who is not online, last was.
    pub fn last_seen(&self, user: UserId) -> Option<UnixMillis> {
        self.seen.get(&user).map(|at| *at)
    }

    /// Users online, here or elsewhere.
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    /// Contents somebody holds, in their groups.
    pub fn swarm_count(&self) -> usize {
        self.swarms.len()
    }

    /// Connections of this tracker now alive.
    pub fn connection_count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The devices a user is logged in with now, here or elsewhere.
    pub fn devices(&self, user: UserId) -> HashSet<PeerId> {
        let connections = self.connections(user);
        connections.iter().filter_map(|c| Some(self.clients.get(c)?.device)).collect()
    }

    /// A user is called `name` now.
    pub fn rename(&self, user: UserId, name: &UserName) {
        for connection in self.connections(user) {
            self.describe(connection, |login| login.name = name.clone());
        }
    }

    /// Changes how a login is described.
    pub(super) fn describe(&self, connection: ConnectionNumber, alter: impl FnOnce(&mut Login)) {
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        let Some(before) = &client.login else { return };
        let mut login = (**before).clone();
        alter(&mut login);
        if login == **before {
            return;
        }
        let login = Arc::new(login);
        client.login = Some(login.clone());
        let mut changes = Vec::new();
        for id in client.announced.keys() {
            let Some(mut swarm) = self.swarms.get_mut(id) else { continue };
            let change = swarm.describe(&login);
            drop(swarm);
            changes.extend(change.news.is_some().then_some((*id, change)));
        }
        drop(client);
        changes.iter().for_each(|(swarm, change)| self.tell(*swarm, change));
        if login.is_local() {
            self.journals.note_device(login.device, false);
        }
    }

    /// A device may no longer act for a user: it is told, and nobody on its connections.
    pub fn sign_out(&self, user: UserId, device: PeerId, now: UnixMillis) {
        for connection in self.connections(user) {
            let client = self.clients.get(&connection);
            if client.is_some_and(|client| client.device == device && client.is_ours()) {
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
            if self.clients.get(&connection).is_some_and(|client| client.is_ours()) {
                self.withdraw(connection, group, content);
            }
        }
    }

    /// The connections that hold a content in a group, here or elsewhere.
    fn seated(&self, group: GroupId, content: ContentId) -> Vec<ConnectionNumber> {
        let swarm = self.swarms.get(&(group, content));
        let claims = swarm.iter().flat_map(|swarm| swarm.claims());
        claims.map(|claim| claim.login.connection).collect()
    }

    fn connections(&self, user: UserId) -> BTreeSet<ConnectionNumber> {
        self.users.get(&user).map(|connections| connections.clone()).unwrap_or_default()
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
        self.hold(connection, (group, content), complete, 0)
    }

    /// A connection holds a content; if a sibling tells it, in which `round`.
    pub(super) fn hold(
        &self,
        connection: ConnectionNumber,
        swarm: SwarmId,
        complete: bool,
        round: u32,
    ) -> bool {
        let Some(mut client) = self.clients.get_mut(&connection) else { return true };
        let Some(login) = client.login.clone() else { return true };
        let full = client.announced.len() >= MAX_SHARES_PER_USER;
        if full && !client.announced.contains_key(&swarm) {
            return false;
        }
        let before = client.announced.insert(swarm, Held { complete, round });
        if before.is_some_and(|before| before.complete == complete) {
            return true;
        }
        let change = self.swarms.entry(swarm).or_default().claim(&login, complete);
        drop(client);
        self.tell(swarm, &change);
        if change.to_be_told {
            self.journals.note_content(login.device, swarm);
        }
        true
    }

    /// A connection no longer holds a content.
    pub fn withdraw(&self, connection: ConnectionNumber, group: GroupId, content: ContentId) {
        let swarm = (group, content);
        let Some(mut client) = self.clients.get_mut(&connection) else { return };
        if client.announced.remove(&swarm).is_none() {
            return;
        }
        let Some(login) = client.login.clone() else { return };
        let change = self.release(swarm, &login);
        drop(client);
        self.tell(swarm, &change);
        if change.to_be_told {
            self.journals.note_content(login.device, swarm);
        }
    }

    /// Takes a claim away.
    fn release(&self, id: SwarmId, login: &Login) -> SeatChange {
        let Some(mut swarm) = self.swarms.get_mut(&id) else { return SeatChange::default() };
        let change = swarm.release(login.device, login.connection);
        drop(swarm);
        self.swarms.remove_if(&id, |_, swarm| swarm.is_empty());
        change
    }

    /// Tells the listeners of a swarm what became of a seat.
    fn tell(&self, (group, content): SwarmId, change: &SeatChange) {
        let Some(news) = &change.news else { return };
        for listener in &change.listeners {
            let Some(client) = self.clients.get(listener) else { continue };
            client.send(match news {
                SeatNews::Joined(claim) => {
                    let peer = claim.record(client.observed, client.user());
                    Push::SwarmJoined { group, content, peer }
                }
                SeatNews::Left(peer_id) => Push::SwarmLeft { group, content, peer_id: *peer_id },
            });
        }
    }

    /// All connections of `user` no longer hold anything of `group`.
    pub fn expel(&self, user: UserId, group: GroupId) {
        for connection in self.connections(user) {
            let Some(client) = self.clients.get(&connection) else { continue };
            if !client.is_ours() {
                continue;
            }
            let announced = client.announced.keys().filter(|(g, _)| *g == group);
            let contents: Vec<_> = announced.copied().collect();
            drop(client);
            for (_, content) in contents {
                self.withdraw(connection, group, content);
            }
        }
    }

    /// Devices that hold a content wholly, and in part.
    pub fn holders(&self, group: GroupId, content: ContentId) -> (u32, u32) {
        self.swarms.get(&(group, content)).map_or((0, 0), |swarm| swarm.holders())
    }

    /// A bounded random sample of who holds a content, for the client on `viewer`.
    pub fn sample(
        &self,
        group: GroupId,
        content: ContentId,
        viewer: ConnectionNumber,
        rng: &mut fastrand::Rng,
    ) -> Vec<PeerRecord> {
        let viewer = self.clients.get(&viewer).map(|it| (it.device, it.observed, it.user()));
        let Some((me, address, user)) = viewer else { return Vec::new() };
        let swarm = self.swarms.get(&(group, content));
        let chosen = swarm.map(|swarm| swarm.sample(me, rng)).unwrap_or_default();
        chosen.iter().map(|claim| claim.record(address, user)).collect()
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
        let hears = |client: &Client| client.login.is_some() && client.outlet.is_some();
        for client in self.clients.iter().filter(|client| hears(client)) {
            client.send(push.clone());
        }
    }

    /// Sends a push to every connection, whether somebody is logged in or not.
    pub fn push_to_every(&self, push: &Push) {
        for client in &self.clients {
            client.send(push.clone());
        }
    }

    /// Sends a push to every connection that takes part in a group: has a ticket for it, or has
    /// announced something in it.
    pub fn push_to_active(&self, group: GroupId, push: &Push) {
        for client in self.clients.iter().filter(|client| client.outlet.is_some()) {
            let announced = || client.announced.keys().any(|(of, _)| *of == group);
            if client.ticketed.contains(&group) || announced() {
                client.send(push.clone());
            }
        }
    }

    /// Sends a push to every connection that holds a content in a group.
    pub fn push_to_swarm(&self, group: GroupId, content: ContentId, push: &Push) {
        for connection in self.seated(group, content) {
            self.push(connection, push.clone());
        }
    }

    /// Sends a push to one connection; one of another tracker hears nothing.
    pub fn push(&self, connection: ConnectionNumber, push: Push) {
        if let Some(client) = self.clients.get(&connection) {
            client.send(push);
        }
    }
}

impl Here for Presence {
    fn devices(&self) -> Vec<PeerId> {
        self.locals.iter().map(|locals| *locals.key()).collect()
    }

    fn login(&self, device: PeerId) -> Option<Arc<Login>> {
        loop {
            let locals = self.locals.get(&device)?;
            let (newest, _) = locals.iter().max_by_key(|(number, session)| (*session, *number))?;
            let newest = *newest;
            drop(locals);
            // Logged out just now? Then that is known there now, too.
            if let Some(login) = self.clients.get(&newest).and_then(|it| it.login.clone()) {
                return Some(login);
            }
        }
    }

    fn contents(&self, device: PeerId, session: u64) -> Vec<SwarmId> {
        let locals = self.locals.get(&device).map(|locals| locals.clone()).unwrap_or_default();
        let of_session = locals.into_iter().filter(|(_, of)| *of == session);
        let clients = of_session.filter_map(|(number, _)| self.clients.get(&number));
        clients.flat_map(|client| client.announced.keys().copied().collect::<Vec<_>>()).collect()
    }

    fn held(&self, device: PeerId, swarm: SwarmId) -> Option<(u64, bool)> {
        self.swarms.get(&swarm)?.local(device)
    }
}

#[cfg(test)]
impl Presence {
    /// What is kept in several places is the same in all of them.
    pub(super) fn check_invariants(&self) {
        let (mut claims, mut logins, mut locals) = (0, 0, 0);
        for client in &self.clients {
            assert!(client.login.is_some() || client.announced.is_empty());
            let Some(login) = &client.login else { continue };
            assert_eq!((login.connection, login.device), (*client.key(), client.device));
            assert_eq!(login.is_local(), client.outlet.is_some());
            for (swarm, held) in &client.announced {
                let swarm = self.swarms.get(swarm).expect("a swarm");
                let mut all = swarm.claims();
                let claim = all.find(|claim| claim.login.connection == login.connection);
                let claim = claim.expect("a claim");
                assert!(Arc::ptr_eq(&claim.login, login) && claim.complete == held.complete);
                claims += 1;
            }
            assert!(self.users.get(&login.user).is_some_and(|it| it.contains(client.key())));
            logins += 1;
            locals += usize::from(login.is_local());
        }
        assert_eq!(self.swarms.iter().map(|swarm| swarm.claims().count()).sum::<usize>(), claims);
        assert!(self.swarms.iter().all(|swarm| !swarm.is_empty()));
        assert_eq!(self.users.iter().map(|user| user.len()).sum::<usize>(), logins);
        assert_eq!(self.locals.iter().map(|local| local.len()).sum::<usize>(), locals);
        assert!(self.users.iter().all(|user| !user.is_empty()));
        assert!(self.locals.iter().all(|local| !local.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_DEVICES_PER_USER_IN_SAMPLE, MAX_PEERS_PER_ANSWER, PUSH_QUEUE};
    use tokio::sync::mpsc;

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
    fn another_user_on_a_connection_holds_nothing_yet() {
        let presence = Presence::default();
        let _queue = enter(&presence, 1, 1, 1, "a");
        presence.announce(1, GROUP, CONTENT, true);
        presence.log_in(1, id_of("a"), &name("a"));
        assert_eq!(presence.holders(GROUP, CONTENT), (1, 0), "logged in once more");
        presence.log_in(1, id_of("b"), &name("b"));
        assert_eq!(presence.holders(GROUP, CONTENT), (0, 0));
        assert!(!presence.is_online(id_of("a")) && presence.is_online(id_of("b")));
        presence.check_invariants();
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
        let outlet = presence.clients.get(&1).expect("there").outlet.clone().expect("local");
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
