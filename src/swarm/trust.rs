//! Whose tickets a peer honours, and what time it is for them.

use std::collections::HashSet;

use crate::clock::UnixMillis;
use crate::id::MembershipId;
use crate::peer_id::PeerId;
use crate::ticket::{Ticket, TicketError};

/// Revocations remembered; older ones are covered by the tickets' own expiry.
const MAX_REVOKED: usize = 100_000;

/// The trackers of a client, its knowledge of their clock, and what they revoked.
#[derive(Debug, Default)]
pub struct Trust {
    trackers: HashSet<PeerId>,
    clock_offset: i64,
    revoked: HashSet<MembershipId>,
}

impl Trust {
    /// Honours tickets of these trackers.
    pub fn new(trackers: impl IntoIterator<Item = PeerId>) -> Self {
        Self { trackers: trackers.into_iter().collect(), ..Self::default() }
    }

    /// Learns tracker time less our own, in milliseconds.
    pub fn set_clock_offset(&mut self, offset: i64) {
        self.clock_offset = offset;
    }

    /// Tracker time when our own clock says `now`.
    pub fn tracker_time(&self, now: UnixMillis) -> UnixMillis {
        now.shifted(self.clock_offset)
    }

    /// Tickets of this membership are void from now on.
    pub fn revoke(&mut self, membership: MembershipId) {
        if self.revoked.len() >= MAX_REVOKED {
            self.revoked.clear();
        }
        self.revoked.insert(membership);
    }

    /// Whether this membership was revoked.
    pub fn is_revoked(&self, membership: MembershipId) -> bool {
        self.revoked.contains(&membership)
    }

    /// Verifies a ticket shown by the device `shown_by` when our own clock says `now`.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn verify(
        &self,
        bytes: &[u8],
        shown_by: PeerId,
        now: UnixMillis,
    ) -> Result<Ticket, TicketError> {
        let trusted = |id| self.trackers.contains(&id);
        Ticket::verify(bytes, shown_by, self.tracker_time(now), trusted)
    }

    /// Whether a ticket verified before still holds when our own clock says `now`.
    pub fn still_holds(&self, ticket: &Ticket, now: UnixMillis) -> bool {
        !ticket.is_expired(self.tracker_time(now)) && !self.is_revoked(ticket.holder().membership)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{TICKET_LEEWAY, TICKET_LIFE};
    use crate::peer_id::testing::key;
    use crate::ticket::testing::holder;

    #[test]
    fn tracker_time_and_revocations_count() {
        let (public, sign) = key(1);
        let peer = PeerId([3; 32]);
        let tracker_now = UnixMillis(1_700_000_000_000);
        let bytes = Ticket::sign(holder(peer), tracker_now, public, &sign);
        let mut trust = Trust::new([public.peer_id()]);
        // Our clock is an hour behind.
        let now = tracker_now.shifted(-3_600_000);
        assert!(trust.verify(&bytes, peer, now).is_err());
        trust.set_clock_offset(3_600_000);
        let ticket = trust.verify(&bytes, peer, now).expect("valid");
        assert!(trust.still_holds(&ticket, now));
        let later = now.plus(TICKET_LIFE + TICKET_LEEWAY).plus(std::time::Duration::from_secs(1));
        assert!(!trust.still_holds(&ticket, later));
        trust.revoke(ticket.holder().membership);
        assert!(!trust.still_holds(&ticket, now));
    }
}
