//! Clients of other trackers, as those tell of them.
//!
//! What one tracker tells is heard in order, from one connection at a time; each tracker's words are
//! kept apart, and count for as long as it can be heard. Of one that is lost they count a while
//! longer, marked as doubtful. Trackers trust each other as to who is who; how much one may tell is
//! bounded all the same.

use std::sync::Arc;

use super::gossip::{Heard, Journal, Known, News, SwarmId, lock};
use super::presence::{Client, Presence};
use super::seats::Login;
use crate::clock::UnixMillis;
use crate::id::UserId;
use crate::limits::{GOSSIP_JOURNAL, MAX_ADDRESSES, MAX_TRACKER_CONNECTIONS, PRESENCE_GRACE};
use crate::peer_id::PeerId;

impl Presence {
    /// What one sibling is to be told from now on: everything, then what changes. Ends when dropped.
    pub fn subscribe(&self) -> Arc<Journal> {
        self.journals.open(GOSSIP_JOURNAL)
    }

    /// A tracker told something. Returns the users whose last connection went by it.
    pub fn hear(&self, from: PeerId, news: News, now: UnixMillis) -> Vec<UserId> {
        let mut all = lock(&self.heard);
        let heard = all.entry(from).or_default();
        let mut gone = Vec::new();
        match news {
            News::Begin => {
                heard.round = heard.round.wrapping_add(1);
                heard.listing = true;
            }
            News::Online { device, session, user, name, observed, mut declared } => {
                declared.truncate(MAX_ADDRESSES);
                let login = Login {
                    connection: 0,
                    device,
                    session,
                    user,
                    name,
                    observed,
                    declared,
                    via: Some(from),
                    doubtful: false,
                };
                gone.extend(self.come(heard, login, now));
            }
            News::Offline { device, session } => {
                let known = self.known(heard, device);
                if known.is_none_or(|(_, login)| login.session <= session) {
                    gone.extend(self.drop_known(heard, device, now));
                }
            }
            News::Holds { device, session, group, content, complete } => {
                if let Some(login) = self.known_in(heard, device, session) {
                    // One too many is nobody's loss but its own, as it is here.
                    self.hold(login.connection, (group, content), complete, heard.round);
                }
            }
            News::Lets { device, session, group, content } => {
                if let Some(login) = self.known_in(heard, device, session) {
                    self.withdraw(login.connection, group, content);
                }
            }
            News::End if heard.listing => {
                heard.listing = false;
                gone.extend(self.drop_unheard(heard, now));
            }
            News::End => {}
        }
        gone
    }

    /// A tracker can no longer be heard: what it told is doubtful, and ends after a while unless it
    /// tells it again. To be called before a newer connection to it is listened to, or not at all.
    pub fn tracker_lost(&self, from: PeerId, now: UnixMillis) {
        let mut all = lock(&self.heard);
        let Some(heard) = all.get_mut(&from) else { return };
        heard.listing = false;
        for known in heard.devices.values_mut().filter(|known| known.until.is_none()) {
            known.until = Some(now.plus(PRESENCE_GRACE));
            self.describe(known.connection, |login| login.doubtful = true);
        }
    }

    /// Ends what is doubtful for too long. Returns the users whose last connection went by it.
    pub fn expire(&self, now: UnixMillis) -> Vec<UserId> {
        let mut gone = Vec::new();
        for heard in lock(&self.heard).values_mut() {
            let over = |known: &Known| known.until.is_some_and(|until| until <= now);
            gone.extend(self.drop_where(heard, over, now));
        }
        gone
    }

    /// A tracker is none any more: what it told is nothing. Returns the users whose last
    /// connection went by it.
    pub fn forget_tracker(&self, from: PeerId, now: UnixMillis) -> Vec<UserId> {
        let heard = lock(&self.heard).remove(&from);
        heard.map(|mut heard| self.drop_where(&mut heard, |_| true, now)).unwrap_or_default()
    }

    /// A device as it was told; not if it was signed out here since.
    fn known(&self, heard: &Heard, device: PeerId) -> Option<(Known, Arc<Login>)> {
        let known = *heard.devices.get(&device)?;
        let login = self.clients.get(&known.connection)?.login.clone()?;
        Some((known, login))
    }

    fn known_in(&self, heard: &Heard, device: PeerId, session: u64) -> Option<Arc<Login>> {
        let (_, login) = self.known(heard, device)?;
        (login.session == session).then_some(login)
    }

    /// A device is there, or is described anew.
    fn come(&self, heard: &mut Heard, mut login: Login, now: UnixMillis) -> Option<UserId> {
        let (device, round) = (login.device, heard.round);
        match self.known(heard, device) {
            Some((known, before))
                if (before.session, before.user) == (login.session, login.user) =>
            {
                let known = Known { round, until: None, ..known };
                heard.devices.insert(device, known);
                login.connection = known.connection;
                self.describe(known.connection, |before| *before = login);
                None
            }
            _ => {
                let is_new = !heard.devices.contains_key(&device);
                if is_new && heard.devices.len() >= MAX_TRACKER_CONNECTIONS {
                    return None;
                }
                login.connection = self.next_number();
                let known = Known { connection: login.connection, round, until: None };
                let mut client = Client::elsewhere(device, login.observed, login.session);
                self.begin_login(&mut client, login);
                self.enter(known.connection, client);
                // Now, so that its user is not gone in between.
                let before = heard.devices.insert(device, known)?;
                self.leave(before.connection, now)
            }
        }
    }

    /// A list is over: what was not in it is gone.
    fn drop_unheard(&self, heard: &mut Heard, now: UnixMillis) -> Vec<UserId> {
        let round = heard.round;
        let gone = self.drop_where(heard, |known| known.round != round, now);
        for known in heard.devices.values() {
            let Some(client) = self.clients.get(&known.connection) else { continue };
            let unheard = client.announced.iter().filter(|(_, held)| held.round != round);
            let unheard: Vec<SwarmId> = unheard.map(|(swarm, _)| *swarm).collect();
            drop(client);
            for (group, content) in unheard {
                self.withdraw(known.connection, group, content);
            }
        }
        gone
    }

    fn drop_known(&self, heard: &mut Heard, device: PeerId, now: UnixMillis) -> Option<UserId> {
        self.leave(heard.devices.remove(&device)?.connection, now)
    }

    fn drop_where(
        &self,
        heard: &mut Heard,
        over: impl Fn(&Known) -> bool,
        now: UnixMillis,
    ) -> Vec<UserId> {
        let dropped = heard.devices.extract_if(|_, known| over(known));
        dropped.filter_map(|(_, known)| self.leave(known.connection, now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::id::GroupId;
    use crate::limits::MAX_SHARES_PER_USER;
    use crate::manifest::ContentId;
    use crate::name::UserName;
    use crate::tracker::outlet::Outlet;
    use crate::tracker::push::Push;

    const GROUP: GroupId = GroupId([1; 16]);
    const CONTENT: ContentId = ContentId([2; 32]);
    const NOW: UnixMillis = UnixMillis(77);
    /// Two other trackers.
    const B: PeerId = PeerId([0xb; 32]);
    const C: PeerId = PeerId([0xc; 32]);

    fn name(text: &str) -> UserName {
        text.parse().expect("name")
    }

    fn id_of(user: &str) -> UserId {
        UserId(crate::id::derived(&[user.as_bytes()]))
    }

    fn peer(device: u8) -> PeerId {
        PeerId([device; 32])
    }

    /// A client connected here, in session 5, seen at port 1.
    fn enter(presence: &Presence, device: u8, user: &str) -> (u64, mpsc::Receiver<Push>) {
        let (outlet, queue) = Outlet::new();
        let observed = format!("203.0.113.{device}:1").parse().expect("address");
        let number = presence.next_number();
        presence.enter(number, Client::new(peer(device), observed, Vec::new(), 5, outlet));
        presence.log_in(number, id_of(user), &name(user));
        (number, queue)
    }

    /// A tracker's word that a device is connected to it, seen at `port`.
    fn online(device: u8, session: u64, user: &str, port: u16) -> News {
        News::Online {
            device: peer(device),
            session,
            user: id_of(user),
            name: name(user),
            observed: ([203, 0, 113, device], port).into(),
            declared: Vec::new(),
        }
    }

    fn offline(device: u8, session: u64) -> News {
        News::Offline { device: peer(device), session }
    }

    fn holds(device: u8, session: u64, complete: bool) -> News {
        let device = peer(device);
        News::Holds { device, session, group: GROUP, content: CONTENT, complete }
    }

    fn lets(device: u8, session: u64) -> News {
        News::Lets { device: peer(device), session, group: GROUP, content: CONTENT }
    }

    fn hear(presence: &Presence, from: PeerId, all: impl IntoIterator<Item = News>) -> Vec<UserId> {
        let gone = all.into_iter().flat_map(|news| presence.hear(from, news, NOW)).collect();
        presence.check_invariants();
        gone
    }

    /// Who holds the content, as a client connected for that sees it: `2# 3. 4#?` is a complete
    /// holder, one in part, and a doubtful complete one; each with the port it is seen at.
    fn picture(presence: &Presence) -> String {
        let (viewer, _queue) = enter(presence, 99, "viewer");
        let mut rng = fastrand::Rng::with_seed(1);
        let peers = presence.sample(GROUP, CONTENT, viewer, &mut rng);
        presence.leave(viewer, NOW);
        let (complete, partial) = presence.holders(GROUP, CONTENT);
        assert_eq!((complete + partial) as usize, peers.len());
        let mut peers: Vec<_> = peers
            .iter()
            .map(|peer| {
                let (id, port) = (peer.peer_id.0[0], peer.addresses[0].port());
                let complete = if peer.complete { '#' } else { '.' };
                let doubtful = if peer.doubtful { "?" } else { "" };
                (peer.doubtful, id, format!("{id}{complete}{doubtful}:{port}"))
            })
            .collect();
        assert!(peers.is_sorted_by_key(|(doubtful, ..)| *doubtful), "doubtful ones last");
        peers.sort();
        peers.into_iter().map(|(.., text)| text).collect::<Vec<_>>().join(" ")
    }

    /// What a leecher was told since: `+2:7` who came, seen at which port, `-2` who left.
    fn pushed(queue: &mut mpsc::Receiver<Push>) -> String {
        let mut words = Vec::new();
        while let Ok(push) = queue.try_recv() {
            words.push(match push {
                Push::SwarmJoined { peer, .. } => {
                    format!("+{}:{}", peer.peer_id.0[0], peer.addresses[0].port())
                }
                Push::SwarmLeft { peer_id, .. } => format!("-{}", peer_id.0[0]),
                other => format!("{other:?}"),
            });
        }
        words.join(" ")
    }

    #[test]
    fn a_client_of_another_tracker_is_a_holder_like_any_other() {
        let presence = Presence::default();
        let (leecher, mut queue) = enter(&presence, 1, "a");
        presence.announce(leecher, GROUP, CONTENT, false);
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true)]);
        assert_eq!(picture(&presence), "1.:1 2#:7");
        assert_eq!(pushed(&mut queue), "+2:7");
        assert!(presence.is_online(id_of("b")) && presence.devices(id_of("b")).contains(&peer(2)));
        assert_eq!((presence.user_count(), presence.connection_count()), (2, 1));
        // Nobody says anything to it from here.
        presence.push_to_users([id_of("b")], &Push::SignedOut);
        presence.push_to_all(&Push::Lagged);
        presence.push_to_active(GROUP, &Push::Lagged);
        presence.push_to_swarm(GROUP, CONTENT, &Push::Lagged);
        assert_eq!(pushed(&mut queue), "Lagged Lagged Lagged");
        hear(&presence, B, [lets(2, 5)]);
        assert_eq!((picture(&presence), pushed(&mut queue)), ("1.:1".into(), "-2".into()));
        assert_eq!(hear(&presence, B, [offline(2, 5)]), [id_of("b")]);
        assert_eq!(presence.last_seen(id_of("b")), Some(NOW));
        assert!(presence.clients.iter().all(|client| client.login.as_ref().unwrap().is_local()));
    }

    #[test]
    fn a_device_at_several_trackers_has_one_seat_and_leaves_when_the_last_lets_go() {
        let presence = Presence::default();
        let (leecher, mut queue) = enter(&presence, 1, "a");
        presence.announce(leecher, GROUP, CONTENT, false);
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, false)]);
        let (here, _queue) = enter(&presence, 2, "b");
        // Of one session, what is said here counts.
        presence.announce(here, GROUP, CONTENT, true);
        hear(&presence, C, [online(2, 5, "b", 8), holds(2, 5, false)]);
        assert_eq!(picture(&presence), "1.:1 2#:1");
        assert_eq!(presence.leave(here, NOW), None, "still online elsewhere");
        assert_eq!(picture(&presence), "1.:1 2.:8");
        assert_eq!(hear(&presence, C, [offline(2, 5)]), []);
        assert_eq!(picture(&presence), "1.:1 2.:7");
        assert_eq!(hear(&presence, B, [offline(2, 5)]), [id_of("b")]);
        assert_eq!(pushed(&mut queue), "+2:7 +2:1 +2:8 +2:7 -2");
    }

    #[test]
    fn the_newest_session_counts_wherever_it_is_and_the_older_one_when_it_is_gone() {
        let presence = Presence::default();
        let (here, _queue) = enter(&presence, 2, "b");
        presence.announce(here, GROUP, CONTENT, true);
        hear(&presence, B, [online(2, 6, "b", 7), holds(2, 6, false)]);
        hear(&presence, C, [online(2, 4, "b", 8), holds(2, 4, true)]);
        assert_eq!(picture(&presence), "2.:7");
        // A doubtful one of a newer session still counts before older ones.
        presence.tracker_lost(B, NOW);
        assert_eq!(picture(&presence), "2.?:7");
        hear(&presence, B, [offline(2, 6)]);
        assert_eq!(picture(&presence), "2#:1");
        presence.leave(here, NOW);
        assert_eq!(picture(&presence), "2#:8");
    }

    #[test]
    fn of_two_connections_here_in_one_session_the_later_counts() {
        let presence = Presence::default();
        let (old, _old) = enter(&presence, 2, "b");
        let (new, _new) = enter(&presence, 2, "b");
        presence.announce(new, GROUP, CONTENT, true);
        presence.announce(old, GROUP, CONTENT, false);
        assert_eq!(picture(&presence), "2#:1");
        presence.leave(new, NOW);
        assert_eq!(picture(&presence), "2.:1");
    }

    #[test]
    fn clients_of_a_lost_tracker_are_doubtful_come_last_and_end_after_the_grace() {
        let presence = Presence::default();
        let (leecher, mut queue) = enter(&presence, 1, "a");
        presence.announce(leecher, GROUP, CONTENT, false);
        let two =
            [online(2, 5, "b", 7), holds(2, 5, true), online(3, 5, "c", 7), holds(3, 5, true)];
        hear(&presence, B, two);
        hear(&presence, C, [online(3, 5, "c", 8), holds(3, 5, true)]);
        assert_eq!(pushed(&mut queue), "+2:7 +3:7 +3:8");
        presence.tracker_lost(B, NOW);
        presence.tracker_lost(B, NOW.plus(PRESENCE_GRACE));
        assert_eq!(picture(&presence), "1.:1 3#:8 2#?:7");
        assert_eq!(pushed(&mut queue), "", "they may be there still");
        let over = NOW.plus(PRESENCE_GRACE);
        assert_eq!(presence.expire(UnixMillis(over.0 - 1)), []);
        assert_eq!(presence.expire(over), [id_of("b")]);
        assert_eq!(picture(&presence), "1.:1 3#:8");
        assert_eq!(pushed(&mut queue), "-2");
        assert_eq!(presence.last_seen(id_of("b")), Some(over));
        presence.check_invariants();
    }

    #[test]
    fn doubt_moves_a_seat_to_who_is_sure() {
        let presence = Presence::default();
        let (leecher, mut queue) = enter(&presence, 1, "a");
        presence.announce(leecher, GROUP, CONTENT, false);
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true)]);
        hear(&presence, C, [online(2, 5, "b", 8), holds(2, 5, true)]);
        presence.tracker_lost(C, NOW);
        assert_eq!(picture(&presence), "1.:1 2#:7");
        hear(&presence, C, [News::Begin, online(2, 5, "b", 8), holds(2, 5, true), News::End]);
        assert_eq!(picture(&presence), "1.:1 2#:8");
        assert_eq!(pushed(&mut queue), "+2:7 +2:8 +2:7 +2:8");
    }

    #[test]
    fn a_list_clears_the_doubt_of_what_it_repeats_and_ends_the_rest() {
        let presence = Presence::default();
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true), online(3, 5, "c", 7)]);
        hear(&presence, B, [holds(3, 5, true), online(4, 5, "d", 7), holds(4, 5, true)]);
        presence.tracker_lost(B, NOW);
        assert_eq!(picture(&presence), "2#?:7 3#?:7 4#?:7");
        // The third is not repeated, the second not with what it held.
        hear(&presence, B, [News::Begin, online(2, 5, "b", 7), online(3, 5, "c", 7)]);
        hear(&presence, B, [holds(2, 5, true)]);
        assert_eq!(picture(&presence), "2#:7 3#:7 4#?:7");
        assert_eq!(hear(&presence, B, [News::End]), [id_of("d")]);
        assert_eq!(picture(&presence), "2#:7");
        assert!(presence.is_online(id_of("c")));
        assert_eq!(presence.expire(UnixMillis(u64::MAX)), []);
        // Begun and broken off, a list ends nothing; nor does an end without a beginning.
        hear(&presence, B, [News::Begin]);
        presence.tracker_lost(B, NOW);
        hear(&presence, B, [News::End]);
        assert_eq!(picture(&presence), "2#?:7");
        hear(&presence, B, [News::Begin, News::Begin, online(2, 5, "b", 7), News::End]);
        assert_eq!(picture(&presence), "");
    }

    #[test]
    fn what_fits_nothing_is_ignored() {
        let presence = Presence::default();
        hear(&presence, B, [holds(2, 5, true), lets(2, 5), offline(2, 5), News::End]);
        assert!(presence.clients.is_empty());
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true)]);
        // Others' words, and words of other sessions.
        hear(&presence, C, [lets(2, 5), offline(2, 5), holds(2, 5, false)]);
        hear(&presence, B, [lets(2, 4), holds(2, 6, false), offline(2, 4)]);
        assert_eq!(picture(&presence), "2#:7");
        presence.tracker_lost(C, NOW);
        assert_eq!(picture(&presence), "2#:7");
        hear(&presence, B, [offline(2, 6)]);
        assert!(presence.clients.is_empty());
    }

    #[test]
    fn another_session_holds_nothing_yet_and_the_same_keeps_what_it_holds() {
        let presence = Presence::default();
        let (leecher, mut queue) = enter(&presence, 1, "a");
        presence.announce(leecher, GROUP, CONTENT, false);
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true), online(2, 5, "b", 8)]);
        assert_eq!(picture(&presence), "1.:1 2#:8");
        assert_eq!(hear(&presence, B, [online(2, 6, "b", 8)]), [], "its user was there all along");
        assert_eq!(picture(&presence), "1.:1");
        hear(&presence, B, [holds(2, 6, false)]);
        assert_eq!(pushed(&mut queue), "+2:7 +2:8 -2 +2:8");
        // Another user is another login, whatever the session.
        assert_eq!(hear(&presence, B, [online(2, 6, "c", 8)]), [id_of("b")]);
        assert_eq!(picture(&presence), "1.:1");
    }

    #[test]
    fn what_is_decided_here_ends_what_is_here_and_what_is_doubtful() {
        let presence = Presence::default();
        type End = fn(&Presence);
        let ends: [(&str, End); 3] = [
            ("expel", |presence| presence.expel(id_of("b"), GROUP)),
            ("sign out", |presence| presence.sign_out(id_of("b"), peer(2), NOW)),
            ("end swarm", |presence| presence.end_swarm(GROUP, CONTENT)),
        ];
        for (what, end) in ends {
            let (here, _queue) = enter(&presence, 2, "b");
            presence.announce(here, GROUP, CONTENT, true);
            hear(&presence, B, [News::Begin, online(2, 5, "b", 7), holds(2, 5, false), News::End]);
            end(&presence);
            // Its own tracker decides the same and says so.
            assert_eq!(picture(&presence), "2.:7", "{what}");
            presence.tracker_lost(B, NOW);
            end(&presence);
            assert_eq!(picture(&presence), "", "{what}");
            presence.leave(here, NOW);
            // Unless it says otherwise.
            hear(&presence, B, [News::Begin, online(2, 5, "b", 7), holds(2, 5, true), News::End]);
            assert_eq!(picture(&presence), "2#:7", "{what}");
        }
        hear(&presence, B, [offline(2, 5)]);
        assert!(presence.clients.is_empty());
    }

    #[test]
    fn a_renamed_user_is_called_so_at_once_and_told_so() {
        let presence = Presence::default();
        let (here, _queue) = enter(&presence, 2, "b");
        presence.announce(here, GROUP, CONTENT, true);
        hear(&presence, B, [online(3, 5, "b", 7), holds(3, 5, true)]);
        let journal = presence.subscribe();
        assert_eq!(journal.take(&presence, 10).len(), 4);
        presence.rename(id_of("b"), &name("bee"));
        let (viewer, _queue) = enter(&presence, 9, "viewer");
        let peers = presence.sample(GROUP, CONTENT, viewer, &mut fastrand::Rng::with_seed(1));
        assert_eq!(peers.len(), 2);
        assert!(peers.iter().all(|peer| peer.user == name("bee")));
        let told = journal.take(&presence, 10);
        let of_b = |news: &&News| matches!(news, News::Online { device, .. } if *device == peer(2));
        let Some(News::Online { name: now, .. }) = told.iter().find(of_b) else { panic!() };
        assert_eq!(*now, name("bee"));
    }

    #[test]
    fn only_own_clients_that_are_logged_in_are_told() {
        let presence = Presence::default();
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true)]);
        let (nobody, _queue) = enter(&presence, 3, "c");
        presence.log_out(nobody, NOW);
        let journal = presence.subscribe();
        assert_eq!(journal.take(&presence, 10), [News::Begin, News::End]);
        hear(&presence, B, [lets(2, 5), holds(2, 5, false), online(2, 6, "b", 9)]);
        presence.rename(id_of("b"), &name("bee"));
        presence.tracker_lost(B, NOW);
        presence.forget_tracker(B, NOW);
        assert_eq!(journal.take(&presence, 10), []);
    }

    #[test]
    fn who_is_no_tracker_any_more_told_nothing() {
        let presence = Presence::default();
        hear(&presence, B, [online(2, 5, "b", 7), holds(2, 5, true)]);
        assert_eq!(presence.forget_tracker(B, NOW), [id_of("b")]);
        assert_eq!(presence.forget_tracker(B, NOW), []);
        assert!(presence.clients.is_empty() && picture(&presence).is_empty());
    }

    #[test]
    fn how_much_a_tracker_may_tell_is_bounded() {
        let presence = Presence::default();
        let mut first = online(2, 5, "b", 7);
        if let News::Online { declared, .. } = &mut first {
            declared.extend((0..99).map(|i| std::net::SocketAddr::from(([10, 0, 0, i], 1))));
        }
        presence.hear(B, first, NOW);
        let login = |client: &Client| client.login.clone().expect("in");
        let declared = presence.clients.iter().map(|client| login(&client).declared.len()).max();
        assert_eq!(declared, Some(MAX_ADDRESSES));
        let device = peer(2);
        let content = |i: usize| ContentId(crate::hash::blake3(&i.to_le_bytes()).0);
        for content in (0..=MAX_SHARES_PER_USER).map(content) {
            let (session, group, complete) = (5, GROUP, true);
            presence.hear(B, News::Holds { device, session, group, content, complete }, NOW);
        }
        assert_eq!(presence.swarm_count(), MAX_SHARES_PER_USER);
        for i in 0..=MAX_TRACKER_CONNECTIONS {
            let mut news = online(3, 5, "c", 7);
            let News::Online { device, .. } = &mut news else { panic!() };
            device.0[..8].copy_from_slice(&(i as u64).to_le_bytes());
            presence.hear(B, news, NOW);
        }
        assert_eq!(presence.clients.len(), MAX_TRACKER_CONNECTIONS);
    }

    /// Connections that come, announce, withdraw and go on several threads, while what they do is told:
    /// in the end all of it was.
    #[test]
    fn what_changes_while_it_is_told_is_told_after_it() {
        const THREADS: u64 = 3;
        const USERS: [&str; 3] = ["a", "b", "c"];
        let here = Arc::new(Presence::default());
        let there = Presence::default();
        let journal = here.journals.open(50);
        let hear = |all: Vec<News>| {
            let some = !all.is_empty();
            all.into_iter().for_each(|news| drop(there.hear(B, news, UnixMillis(1))));
            some
        };
        let work = |thread: u64| {
            let here = here.clone();
            move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                let mut mine = Vec::new();
                for _ in 0..10_000 {
                    let swarm = (GROUP, ContentId([rng.u8(..6); 32]));
                    let at = rng.usize(..=mine.len());
                    match (rng.u8(..12), mine.get(at).copied()) {
                        (_, None) => {
                            let (device, session) = (rng.u8(..3), rng.u64(1..3));
                            let user = USERS[usize::from(device)];
                            let observed = std::net::SocketAddr::from(([203, 0, 113, device], 1));
                            // Its pushes are of no interest.
                            let (outlet, _) = Outlet::new();
                            let client =
                                Client::new(peer(device), observed, Vec::new(), session, outlet);
                            let number = here.next_number();
                            here.enter(number, client);
                            here.log_in(number, id_of(user), &name(user));
                            mine.push(number);
                        }
                        (0..7, Some(number)) => {
                            here.announce(number, swarm.0, swarm.1, rng.bool());
                        }
                        (7..9, Some(number)) => here.withdraw(number, swarm.0, swarm.1),
                        (9, Some(_)) => here.expel(id_of(USERS[rng.usize(..3)]), swarm.0),
                        (10, Some(_)) => here.end_swarm(swarm.0, swarm.1),
                        (_, Some(number)) => {
                            here.leave(number, UnixMillis(1));
                            mine.swap_remove(at);
                        }
                    }
                }
                // What superseded sessions hold is not told.
                for number in mine {
                    let client = here.clients.get(&number).expect("there");
                    let old = client.login.as_ref().is_some_and(|login| login.session == 1);
                    drop(client);
                    if old {
                        here.leave(number, UnixMillis(1));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                hear(journal.take(&*here, 20));
            }
        });
        while hear(journal.take(&*here, 20)) {}
        here.check_invariants();
        there.check_invariants();
        for swarm in (0..6).map(|i| (GROUP, ContentId([i; 32]))) {
            let holders = |presence: &Presence| presence.holders(swarm.0, swarm.1);
            assert_eq!(holders(&here), holders(&there));
        }
        for user in USERS.map(id_of) {
            assert_eq!(here.devices(user), there.devices(user));
        }
    }
}
