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
