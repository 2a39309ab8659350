//! Whose tickets a peer honours, and what time it is for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::clock::UnixMillis;
use crate::id::MembershipId;
use crate::peer_id::PeerId;
use crate::ticket::{Ticket, TicketError};

/// Revocations and holders remembered; older ones are covered by the tickets' own expiry.
const MAX_REMEMBERED: usize = 100_000;

/// The trackers of a client, its knowledge of their clock, and what they revoked.
#[derive(Debug, Default)]
pub struct Trust {
    judge: Judge,
    memberships: Lately<MembershipId, ()>,
    /// Devices whose tickets as of that tracker time and before are void.
    devices: Lately<PeerId, UnixMillis>,
    /// Since when, in tracker time, no tracker is reached.
    cut_off: Option<UnixMillis>,
    /// Whose tickets were honoured before that: theirs are the transfers that go on.
    honoured: Lately<(PeerId, MembershipId), ()>,
}

/// Whose signatures count, and when.
#[derive(Clone, Debug, Default)]
struct Judge {
    trackers: HashSet<PeerId>,
    /// Former trackers, and until when by our own clock their tickets are honoured.
    retired: HashMap<PeerId, UnixMillis>,
    clock_offset: i64,
}

impl Judge {
    /// Whether tickets of this tracker are honoured when it is `at` in tracker time.
    fn trusts(&self, tracker: PeerId, at: UnixMillis) -> bool {
        let until = self.retired.get(&tracker).map(|until| until.shifted(self.clock_offset));
        self.trackers.contains(&tracker) || until.is_some_and(|until| at < until)
    }
}

/// Looks at tickets at one moment; made by [`Trust::verifier`].
#[derive(Debug)]
pub struct Verifier {
    judge: Judge,
    /// In tracker time.
    now: UnixMillis,
    cut_off: Option<UnixMillis>,
}

/// A ticket signed by a tracker that counts; [`Trust::honour`] says whether it is honoured.
#[derive(Debug)]
pub struct Seen {
    ticket: Ticket,
    /// It is over; honoured only of those whose tickets were before, or this is the error.
    only_if_known: Option<TicketError>,
}

impl Verifier {
    /// Looks at a ticket shown by the device `shown_by`.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn verify(&self, bytes: &[u8], shown_by: PeerId) -> Result<Seen, TicketError> {
        let trusts = |tracker, at| self.judge.trusts(tracker, at);
        let verify = |at| Ticket::verify(bytes, shown_by, at, |tracker| trusts(tracker, at));
        match (verify(self.now), self.cut_off) {
            // By the time its ticket has expired, a retired tracker is no longer trusted.
            (Err(error @ (TicketError::Expired(_) | TicketError::Untrusted(_))), Some(since)) => {
                let ticket = verify(since)?;
                if !in_grace(&ticket, since, self.now) {
                    return Err(error);
                }
                Ok(Seen { ticket, only_if_known: Some(error) })
            }
            (verified, _) => Ok(Seen { ticket: verified?, only_if_known: None }),
        }
    }
}

/// The latest few of very many things.
#[derive(Debug)]
struct Lately<K, V> {
    known: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Lately<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Lately<K, V> {
    fn insert(&mut self, key: K, value: V) {
        if self.known.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key)
    }

    fn contains(&self, key: &K) -> bool {
        self.known.contains_key(key)
    }
}

impl Trust {
    /// Honours tickets of these trackers.
    pub fn new(trackers: impl IntoIterator<Item = PeerId>) -> Self {
        let mut trust = Self::default();
        trust.set_trackers(trackers, []);
        trust
    }

    /// Honours tickets of other trackers from now on: of the `current` ones, and of each `retired`
    /// one until our own clock says its time. Tickets verified before are not touched.
    pub fn set_trackers(
        &mut self,
        current: impl IntoIterator<Item = PeerId>,
        retired: impl IntoIterator<Item = (PeerId, UnixMillis)>,
    ) {
        self.judge.trackers = current.into_iter().collect();
        self.judge.retired = retired.into_iter().collect();
    }

    /// A tracker is reached; learns tracker time less our own, in milliseconds.
    pub fn reached(&mut self, clock_offset: i64) {
        self.judge.clock_offset = clock_offset;
        self.cut_off = None;
    }

    /// No tracker is reached any more since our own clock said `now`.
    pub fn cut_off(&mut self, now: UnixMillis) {
        let now = self.tracker_time(now);
        self.cut_off.get_or_insert(now);
    }

    /// Tracker time when our own clock says `now`.
    pub fn tracker_time(&self, now: UnixMillis) -> UnixMillis {
        now.shifted(self.judge.clock_offset)
    }

    /// Tickets of this membership are void from now on.
    pub fn revoke(&mut self, membership: MembershipId) {
        self.memberships.insert(membership, ());
    }

    /// Tickets of this device that rest on nothing later than `at` are void.
    pub fn revoke_device(&mut self, device: PeerId, at: UnixMillis) {
        let known = self.devices.get(&device).copied().unwrap_or(at);
        self.devices.insert(device, at.max(known));
    }

    /// Whether a tracker has said that this ticket is void.
    pub fn is_void(&self, ticket: &Ticket) -> bool {
        let holder = ticket.holder();
        self.memberships.contains(&holder.membership)
            || self.devices.get(&holder.peer_id).is_some_and(|at| ticket.as_of() <= *at)
    }

    /// Verifies a ticket shown by the device `shown_by` when our own clock says `now`.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn verify(
        &mut self,
        bytes: &[u8],
        shown_by: PeerId,
        now: UnixMillis,
    ) -> Result<Ticket, TicketError> {
        let seen = self.verifier(now).verify(bytes, shown_by)?;
        self.honour(seen)
    }

    /// What it takes to look at tickets, which is work, without the rest.
    pub fn verifier(&self, now: UnixMillis) -> Verifier {
        let (judge, cut_off) = (self.judge.clone(), self.cut_off);
        let now = self.tracker_time(now);
        Verifier { judge, now, cut_off }
    }

    /// The ticket that was looked at, if it is to be honoured.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn honour(&mut self, seen: Seen) -> Result<Ticket, TicketError> {
        let Seen { ticket, only_if_known } = seen;
        let known = (ticket.holder().peer_id, ticket.holder().membership);
        if let Some(error) = only_if_known.filter(|_| !self.honoured.contains(&known)) {
            return Err(error);
        }
        if self.is_void(&ticket) {
            return Err(TicketError::Revoked);
        }
        if self.cut_off.is_none() {
            self.honoured.insert(known, ());
        }
        Ok(ticket)
    }

    /// Whether a ticket verified before still holds when our own clock says `now`.
    pub fn still_holds(&self, ticket: &Ticket, now: UnixMillis) -> bool {
        let now = self.tracker_time(now);
        let known = (ticket.holder().peer_id, ticket.holder().membership);
        let in_time = !ticket.is_expired(now)
            || self.cut_off.is_some_and(|since| {
                self.honoured.contains(&known)
                    && !ticket.is_expired(since)
                    && in_grace(ticket, since, now)
            });
        in_time && !self.is_void(ticket)
    }
}

/// Whether a ticket that held when the last tracker went goes on holding: a transfer outlives its
/// trackers for as long as the owner of the group lets it.
fn in_grace(ticket: &Ticket, since: UnixMillis, now: UnixMillis) -> bool {
    now < since.plus(Duration::from_secs(ticket.holder().offline_grace.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{TICKET_LEEWAY, TICKET_LIFE};
    use crate::peer_id::testing::key;
    use crate::ticket::testing::holder;

    const PEER: PeerId = PeerId([3; 32]);
    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn ticket(grace: Duration) -> (Vec<u8>, Trust) {
        let (public, sign) = key(1);
        let holder =
            crate::ticket::Holder { offline_grace: grace.as_secs() as u32, ..holder(PEER) };
        (Ticket::sign(holder, NOW, NOW, public, &sign), Trust::new([public.peer_id()]))
    }

    #[test]
    fn tracker_time_counts() {
        let (bytes, mut trust) = ticket(HOUR);
        // Our clock is an hour behind.
        let now = NOW.shifted(-3_600_000);
        assert!(trust.verify(&bytes, PEER, now).is_err());
        trust.reached(3_600_000);
        let ticket = trust.verify(&bytes, PEER, now).expect("valid");
        assert!(trust.still_holds(&ticket, now));
        let later = now.plus(TICKET_LIFE + TICKET_LEEWAY).plus(Duration::from_secs(1));
        assert!(!trust.still_holds(&ticket, later));
    }

    #[test]
    fn what_was_revoked_is_void() {
        let (bytes, mut trust) = ticket(HOUR);
        let ticket = trust.verify(&bytes, PEER, NOW).expect("valid");
        // Issued after the removal: the device was enrolled again.
        trust.revoke_device(PEER, NOW.minus(Duration::from_millis(1)));
        assert!(trust.still_holds(&ticket, NOW));
        trust.revoke_device(PEER, NOW);
        trust.revoke_device(PEER, UnixMillis(5));
        assert!(!trust.still_holds(&ticket, NOW));
        assert_eq!(trust.verify(&bytes, PEER, NOW), Err(TicketError::Revoked));

        let (bytes, mut trust) = self::ticket(HOUR);
        let ticket = trust.verify(&bytes, PEER, NOW).expect("valid");
        trust.revoke(ticket.holder().membership);
        assert!(!trust.still_holds(&ticket, NOW));
        assert_eq!(trust.verify(&bytes, PEER, NOW), Err(TicketError::Revoked));
    }

    #[test]
    fn transfers_outlive_their_trackers_for_the_grace_of_the_group() {
        let (bytes, mut trust) = ticket(HOUR);
        let ticket = trust.verify(&bytes, PEER, NOW).expect("valid");
        let lost = NOW.plus(Duration::from_secs(60));
        trust.cut_off(lost);
        trust.cut_off(lost.plus(HOUR));
        let almost = lost.plus(HOUR).minus(Duration::from_millis(1));
        assert!(trust.still_holds(&ticket, almost));
        assert!(trust.verify(&bytes, PEER, almost).is_ok(), "also when it dials again");
        assert!(!trust.still_holds(&ticket, lost.plus(HOUR)));
        assert!(trust.verify(&bytes, PEER, lost.plus(HOUR)).is_err());
        trust.reached(0);
        assert!(!trust.still_holds(&ticket, almost), "a tracker could have renewed it");
    }

    #[test]
    fn trackers_come_and_go_and_the_tickets_of_a_retired_one_are_honoured_for_a_while() {
        let (bytes, mut trust) = ticket(HOUR);
        let tracker = key(1).0.peer_id();
        let other = key(2).0.peer_id();
        let untrusted = Err(TicketError::Untrusted(tracker));
        // Our clock is an hour behind; the end is by that clock.
        trust.reached(3_600_000);
        let now = NOW.shifted(-3_600_000);
        let end = now.plus(Duration::from_secs(300));
        let before = end.minus(Duration::from_millis(1));
        trust.set_trackers([other], [(tracker, end)]);
        let ticket = trust.verify(&bytes, PEER, before).expect("valid");
        assert_eq!(trust.verify(&bytes, PEER, end), untrusted);
        assert!(trust.still_holds(&ticket, end), "what was verified stays so until it expires");
        trust.set_trackers([other, tracker], []);
        assert!(trust.verify(&bytes, PEER, end).is_ok());

        // The grace of the group is also for the tickets of one that was retired before the end.
        trust.set_trackers([other], [(tracker, end)]);
        trust.cut_off(before);
        assert!(trust.verify(&bytes, PEER, end).is_ok());
        assert!(trust.verify(&bytes, PEER, before.plus(HOUR)).is_err());
        trust.set_trackers([other], []);
        assert_eq!(trust.verify(&bytes, PEER, before), untrusted);
    }

    #[test]
    fn the_grace_is_for_known_peers_and_the_owner_may_refuse_it() {
        let late = NOW.plus(TICKET_LIFE + 2 * TICKET_LEEWAY);
        let (bytes, mut trust) = ticket(HOUR);
        trust.cut_off(NOW);
        let stranger = trust.verify(&bytes, PEER, NOW).expect("in time");
        assert!(trust.still_holds(&stranger, NOW) && !trust.still_holds(&stranger, late));
        assert!(matches!(trust.verify(&bytes, PEER, late), Err(TicketError::Expired(_))));

        let (bytes, mut trust) = ticket(Duration::ZERO);
        let ticket = trust.verify(&bytes, PEER, NOW).expect("valid");
        trust.cut_off(NOW);
        assert!(trust.still_holds(&ticket, NOW), "as long as it lives");
        assert!(!trust.still_holds(&ticket, late));

        // One that had expired when the trackers went gets no grace.
        let (bytes, mut trust) = self::ticket(HOUR);
        let ticket = trust.verify(&bytes, PEER, NOW).expect("valid");
        trust.cut_off(late);
        assert!(!trust.still_holds(&ticket, late.plus(Duration::from_secs(1))));
    }
}
