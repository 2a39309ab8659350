//! Who holds one content in one group: all claims to a seat, and which of them counts.
//!
//! A device has one seat in a swarm, however many connections, here and at other trackers, claim it:
//! the newest session counts, and of one session the claim nearest at hand. The others are kept, since
//! the one that counts may vanish before them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::address;
use super::message::PeerRecord;
use crate::id::UserId;
use crate::limits::{MAX_DEVICES_PER_USER_IN_SAMPLE, MAX_PEERS_PER_ANSWER};
use crate::name::UserName;
use crate::peer_id::PeerId;

/// A living connection, numbered by this tracker; so is what another tracker sees of a device.
pub type ConnectionNumber = u64;

/// A user logged in with a device over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The connection.
    pub connection: ConnectionNumber,
    /// The device.
    pub device: PeerId,
    /// Which run of the device's agent: a later one has a higher number.
    pub session: u64,
    /// The user.
    pub user: UserId,
    /// What the user is called.
    pub name: UserName,
    /// Where the tracker it is connected to sees it.
    pub observed: SocketAddr,
    /// Where it says it is.
    pub declared: Vec<SocketAddr>,
    /// The tracker it is connected to, if that is another.
    pub via: Option<PeerId>,
    /// That tracker is lost: the device may be gone as well.
    pub doubtful: bool,
}

impl Login {
    /// Whether it is connected here.
    pub fn is_local(&self) -> bool {
        self.via.is_none()
    }

    /// Of several claims to one seat, the one with the highest rank counts.
    fn rank(&self) -> (u64, bool, bool, ConnectionNumber) {
        (self.session, self.is_local(), !self.doubtful, self.connection)
    }

    fn is_reached_like(&self, other: &Self) -> bool {
        (self.observed, &self.declared) == (other.observed, &other.declared)
    }
}

/// What one login says of one content.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who.
    pub login: Arc<Login>,
    /// Whether it holds all of it.
    pub complete: bool,
}

impl Claim {
    /// What a client seen at `viewer`, where `user` is logged in, may know of it.
    pub fn record(&self, viewer: SocketAddr, user: Option<UserId>) -> PeerRecord {
        let login = &self.login;
        PeerRecord {
            peer_id: login.device,
            user: login.name.clone(),
            addresses: address::for_viewer(login.observed, &login.declared, viewer),
            complete: self.complete,
            own: user == Some(login.user),
            doubtful: login.doubtful,
        }
    }
}

/// What a swarm's members are told.
#[derive(Clone, Debug)]
pub enum SeatNews {
    /// A device is new, or is reached in another way.
    Joined(Claim),
    /// A device holds nothing any more.
    Left(PeerId),
}

/// What a changed claim means to others.
#[derive(Clone, Debug, Default)]
pub struct SeatChange {
    /// What is told, if anything.
    pub news: Option<SeatNews>,
    /// Whom: connections here that look for peers.
    pub listeners: Vec<ConnectionNumber>,
    /// Whether what other trackers are told of the device is another now.
    pub to_be_told: bool,
}

/// All claims to seats of one content in one group.
#[derive(Debug, Default)]
pub struct Swarm {
    claims: BTreeMap<(PeerId, ConnectionNumber), Claim>,
}

impl Swarm {
    /// Whether nobody claims anything.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// A login claims a seat, or says something else of it.
    pub fn claim(&mut self, login: &Arc<Login>, complete: bool) -> SeatChange {
        let claim = Claim { login: login.clone(), complete };
        self.change(login.device, |claims| {
            claims.insert((login.device, login.connection), claim);
        })
    }

    /// A login is described anew; what it claims stays.
    pub fn describe(&mut self, login: &Arc<Login>) -> SeatChange {
        self.change(login.device, |claims| {
            if let Some(claim) = claims.get_mut(&(login.device, login.connection)) {
                claim.login = login.clone();
            }
        })
    }

    /// A connection claims nothing any more.
    pub fn release(&mut self, device: PeerId, connection: ConnectionNumber) -> SeatChange {
        self.change(device, |claims| {
            claims.remove(&(device, connection));
        })
    }

    fn change(
        &mut self,
        device: PeerId,
        change: impl FnOnce(&mut BTreeMap<(PeerId, ConnectionNumber), Claim>),
    ) -> SeatChange {
        let (best, local) = (self.best(device).cloned(), self.local(device));
        change(&mut self.claims);
        let to_be_told = self.local(device) != local;
        let news = match (best, self.best(device)) {
            (Some(_), None) => SeatNews::Left(device),
            // A device that merely finished is known to those it serves.
            (Some(before), Some(now)) if before.login.is_reached_like(&now.login) => {
                return SeatChange { to_be_told, ..SeatChange::default() };
            }
            (_, Some(now)) => SeatNews::Joined(now.clone()),
            (None, None) => return SeatChange::default(),
        };
        // Complete holders look for nobody.
        let listening = |seat: &&Claim| seat.login.is_local() && !seat.complete;
        let others = self.seats().filter(|seat| seat.login.device != device);
        let listeners = others.filter(listening).map(|seat| seat.login.connection).collect();
        SeatChange { news: Some(news), listeners, to_be_told }
    }

    /// All claims, also those that do not count.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.values()
    }

    fn of(&self, device: PeerId) -> impl Iterator<Item = &Claim> {
        let keys = (device, ConnectionNumber::MIN)..=(device, ConnectionNumber::MAX);
        self.claims.range(keys).map(|(_, claim)| claim)
    }

    /// The claim of a device that counts.
    fn best(&self, device: PeerId) -> Option<&Claim> {
        self.of(device).max_by_key(|claim| claim.login.rank())
    }

    /// What the newest session of a device here says: which session that is, and whether it holds
    /// all.
    pub fn local(&self, device: PeerId) -> Option<(u64, bool)> {
        let here = self.of(device).filter(|claim| claim.login.is_local());
        let best = here.max_by_key(|claim| claim.login.rank())?;
        Some((best.login.session, best.complete))
    }

    /// The claims that count, one for each device.
    fn seats(&self) -> impl Iterator<Item = &Claim> {
        let mut claims = self.claims.iter().peekable();
        std::iter::from_fn(move || {
            let ((device, _), mut best) = claims.next()?;
            while let Some((_, other)) = claims.next_if(|((other, _), _)| other == device) {
                if other.login.rank() > best.login.rank() {
                    best = other;
                }
            }
            Some(best)
        })
    }

    /// Devices that hold the content wholly, and in part.
    pub fn holders(&self) -> (u32, u32) {
        self.seats().fold((0, 0), |(complete, partial), seat| match seat.complete {
            true => (complete + 1, partial),
            false => (complete, partial + 1),
        })
    }

    /// A bounded random sample for the device `me`: of those who hold the content wholly and of
    /// those who hold it in part, half each where there are enough; doubtful ones last, and only
    /// where there are not enough others.
    pub fn sample(&self, me: PeerId, rng: &mut fastrand::Rng) -> Vec<Claim> {
        let mut seats: Vec<_> = self.seats().filter(|seat| seat.login.device != me).collect();
        rng.shuffle(&mut seats);
        seats.sort_by_key(|seat| seat.login.doubtful);
        let mut devices: BTreeMap<UserId, usize> = BTreeMap::new();
        seats.retain(|seat| {
            let count = devices.entry(seat.login.user).or_default();
            *count += 1;
            *count <= MAX_DEVICES_PER_USER_IN_SAMPLE
        });
        let (doubtful, sure) = seats.into_iter().partition(|seat| seat.login.doubtful);
        let mut chosen = both_kinds(sure, MAX_PEERS_PER_ANSWER);
        let room = MAX_PEERS_PER_ANSWER - chosen.len();
        chosen.extend(both_kinds(doubtful, room));
        chosen
    }
}

/// The first of both kinds, `max` at most.
fn both_kinds(seats: Vec<&Claim>, max: usize) -> Vec<Claim> {
    let (complete, partial): (Vec<_>, Vec<_>) = seats.into_iter().partition(|seat| seat.complete);
    let take = (max / 2).max(max.saturating_sub(partial.len()));
    let rest = max - take.min(complete.len());
    complete.into_iter().take(take).chain(partial.into_iter().take(rest)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims as `device/session/connection` and signs: `h` here, `?` doubtful, `#` complete.
    fn swarm(claims: &[&str]) -> Swarm {
        let mut swarm = Swarm::default();
        for text in claims {
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '/').unwrap_or(text.len());
            let numbers: Vec<u64> = text[..end].split('/').map(|n| n.parse().unwrap()).collect();
            let [device, session, connection] = numbers[..] else { panic!("{text}") };
            let login = Login {
                connection,
                device: PeerId([device as u8; 32]),
                session,
                user: UserId([device as u8; 16]),
                name: "bob".parse().expect("name"),
                observed: ([203, 0, 113, 1], connection as u16).into(),
                declared: Vec::new(),
                via: (!text.contains('h')).then_some(PeerId([0xb; 32])),
                doubtful: text.contains('?'),
            };
            swarm.claim(&Arc::new(login), text.contains('#'));
        }
        swarm
    }

    /// The connection whose claim counts.
    fn best(claims: &[&str]) -> ConnectionNumber {
        let there = swarm(claims);
        let best = there.best(PeerId([1; 32])).expect("claimed").login.connection;
        assert_eq!(there.seats().next().expect("a seat").login.connection, best);
        best
    }

    #[test]
    fn session_then_nearness_then_certainty_then_number_decide() {
        assert_eq!(best(&["1/5/1h#", "1/6/2?"]), 2);
        assert_eq!(best(&["1/5/1h", "1/5/2"]), 1);
        assert_eq!(best(&["1/5/1", "1/5/2?"]), 1);
        assert_eq!(best(&["1/5/1h", "1/5/2h"]), 2);
        assert_eq!(best(&["1/5/1", "1/5/2", "2/9/3"]), 2);
    }

    #[test]
    fn devices_are_counted_by_the_claim_that_counts() {
        let there = swarm(&["1/5/1h#", "1/6/2", "2/1/3#", "3/1/4", "3/1/5#"]);
        assert_eq!(there.holders(), (2, 1));
        assert_eq!(there.local(PeerId([1; 32])), Some((5, true)));
        assert_eq!(there.local(PeerId([2; 32])), None);
    }

    #[test]
    fn doubtful_ones_are_sampled_last_and_only_where_others_are_few() {
        let sure = (1..=30).map(|i| format!("{i}/1/{i}{}", if i % 2 == 0 { "#" } else { "" }));
        let doubtful = (31..=130).map(|i| format!("{i}/1/{i}?{}", if i < 40 { "#" } else { "" }));
        let all: Vec<_> = sure.chain(doubtful).collect();
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let mut rng = fastrand::Rng::with_seed(1);
        let sample = swarm(&all).sample(PeerId([1; 32]), &mut rng);
        assert_eq!(sample.len(), MAX_PEERS_PER_ANSWER);
        assert!(sample.is_sorted_by_key(|claim| claim.login.doubtful));
        let doubtful: Vec<_> = sample.iter().filter(|claim| claim.login.doubtful).collect();
        assert_eq!(doubtful.len(), MAX_PEERS_PER_ANSWER - 29, "not the asker itself");
        assert_eq!(doubtful.iter().filter(|claim| claim.complete).count(), 9);
    }
}
