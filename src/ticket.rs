//! A tracker's signed, short-lived statement: this peer id is user U under membership M in group G.
//!
//! A [`Ticket`] exists only verified. A seeder verifies it offline, against its own list of
//! trackers and the peer id that TLS proved.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::{GroupId, MembershipId};
use crate::limits::{MAX_TICKET_LEN, TICKET_LEEWAY, TICKET_LIFE};
use crate::name::{GroupName, UserName};
use crate::peer_id::{PeerId, PublicKey, Signature};
use crate::signed::Signed;
use crate::wire::DecodeError;

/// What is signed begins with this, so that no other signature can pass for a ticket's.
const DOMAIN: &[u8] = b"mtq ticket 1\0";

/// Who a ticket speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The device; TLS proves it.
    pub peer_id: PeerId,
    /// Its user.
    pub user: UserName,
    /// The group.
    pub group: GroupId,
    /// The group's name when the ticket was made.
    pub group_name: GroupName,
    /// The membership it rests on; revoking that revokes the ticket.
    pub membership: MembershipId,
    /// Seconds for which a seeder that reaches no tracker goes on honouring this ticket.
    pub offline_grace: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    holder: Holder,
    as_of: UnixMillis,
    issued: UnixMillis,
    expires: UnixMillis,
    signer: PublicKey,
}

/// Bytes that are not a ticket to be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// Over the length a ticket can have.
    #[error("a ticket of {0} bytes is over the limit of {MAX_TICKET_LEN}")]
    TooLong(usize),
    /// Not the encoding.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Signed by a key that is no tracker of ours.
    #[error("the ticket is signed by {}, which is not a tracker of ours", .0.short())]
    Untrusted(PeerId),
    /// The signature is not the signer's.
    #[error("the signature of the ticket is wrong")]
    Signature,
    /// It speaks of another device than the one that showed it.
    #[error("the ticket belongs to peer {}", .0.short())]
    OtherPeer(PeerId),
    /// Its time is over, or it lives longer than any ticket may.
    #[error("the ticket expired at {0}")]
    Expired(UnixMillis),
    /// A tracker has said that it is void.
    #[error("the ticket was revoked")]
    Revoked,
    /// It is from the future.
    #[error("the ticket is valid from {0}")]
    NotYet(UnixMillis),
}

/// A verified ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    holder: Holder,
    as_of: UnixMillis,
    issued: UnixMillis,
    expires: UnixMillis,
}

impl Ticket {
    /// Signs a ticket for `holder`, which the tracker knew by the changes up to `as_of`, valid for
    /// [`TICKET_LIFE`] from `now`; returns its wire bytes.
    pub fn sign(
        holder: Holder,
        as_of: UnixMillis,
        now: UnixMillis,
        signer: PublicKey,
        sign: &dyn Fn(&[u8]) -> Signature,
    ) -> Vec<u8> {
        let body = Body { holder, as_of, issued: now, expires: now.plus(TICKET_LIFE), signer };
        Signed::seal(DOMAIN, &body, sign)
    }

    /// Verifies wire bytes shown by the device `shown_by` at tracker time `now`; `trusted` says
    /// which peer ids are trackers.
    ///
    /// # Errors
    /// [`TicketError`] unless a trusted tracker said this of that device and it still holds.
    pub fn verify(
        bytes: &[u8],
        shown_by: PeerId,
        now: UnixMillis,
        trusted: impl Fn(PeerId) -> bool,
    ) -> Result<Self, TicketError> {
        if bytes.len() > MAX_TICKET_LEN {
            return Err(TicketError::TooLong(bytes.len()));
        }
        let signed = Signed::parse(bytes)?;
        let body: Body = signed.body()?;
        let signer = body.signer.peer_id();
        if !trusted(signer) {
            return Err(TicketError::Untrusted(signer));
        }
        if !signed.is_by(&body.signer, DOMAIN) {
            return Err(TicketError::Signature);
        }
        if body.holder.peer_id != shown_by {
            return Err(TicketError::OtherPeer(body.holder.peer_id));
        }
        let Body { holder, as_of, issued, expires, signer: _ } = body;
        let ticket = Self { holder, as_of, issued, expires };
        if ticket.is_expired(now) || expires > issued.plus(TICKET_LIFE) {
            return Err(TicketError::Expired(expires));
        }
        if issued > now.plus(TICKET_LEEWAY) {
            return Err(TicketError::NotYet(issued));
        }
        Ok(ticket)
    }

    /// Who it speaks of.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Whether it is over at tracker time `now`, leeway included.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        now > self.expires.plus(TICKET_LEEWAY)
    }

    /// Time of the latest change its tracker knew: what was revoked then or later voids it.
    pub fn as_of(&self) -> UnixMillis {
        self.as_of
    }

    /// When a new one should be asked for: half-way through its life.
    pub fn renew_at(&self) -> UnixMillis {
        self.issued.plus(self.expires.since(self.issued) / 2)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Holders for tests of everything that shows tickets.

    use super::*;

    /// A membership of `peer_id`.
    pub(crate) fn holder(peer_id: PeerId) -> Holder {
        Holder {
            peer_id,
            user: "alice".parse().expect("name"),
            group: GroupId([5; 16]),
            group_name: "lab".parse().expect("name"),
            membership: MembershipId([6; 16]),
            offline_grace: 86_400,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::holder;
    use super::*;
    use crate::peer_id::testing::key;
    use proptest::prelude::*;
    use std::time::Duration;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
    const PEER: PeerId = PeerId([9; 32]);

    fn ticket(signer: u8, now: UnixMillis) -> Vec<u8> {
        let (public, sign) = key(signer);
        Ticket::sign(holder(PEER), now.minus(Duration::from_secs(1)), now, public, &sign)
    }

    fn verify(bytes: &[u8], peer: PeerId, now: UnixMillis) -> Result<Ticket, TicketError> {
        Ticket::verify(bytes, peer, now, |id| id == key(1).0.peer_id())
    }

    #[test]
    fn a_good_ticket_verifies_and_renews_at_half_life() {
        let t = verify(&ticket(1, NOW), PEER, NOW).expect("valid");
        assert_eq!(t.holder(), &holder(PEER));
        assert_eq!(t.renew_at(), NOW.plus(TICKET_LIFE / 2));
    }

    /// The same bytes stand in PROTOCOL.md, field by field.
    #[test]
    fn golden() {
        let expected = concat!(
            "7f",
            "0909090909090909090909090909090909090909090909090909090909090909",
            "05616c696365",
            "05050505050505050505050505050505",
            "036c6162",
            "06060606060606060606060606060606",
            "80a305",
            "98c895ffbc31",
            "80d095ffbc31",
            "c09fbaffbc31",
            "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
            "1e5794c9eccfb4544a3cf0555d40bde7d632841fc37ca217ecb3a1ee452ef597",
            "145ab9710bc3b0291afa4dac2dbcfaf283507862c542b93528d313cb6c2f4208",
        );
        assert_eq!(hex::encode(ticket(1, NOW)), expected);
    }

    #[test]
    fn forged_stolen_expired_and_future_tickets_are_refused() {
        let good = ticket(1, NOW);
        let stolen = verify(&good, PeerId([8; 32]), NOW);
        assert_eq!(stolen, Err(TicketError::OtherPeer(PEER)));
        let other = verify(&ticket(2, NOW), PEER, NOW);
        assert_eq!(other, Err(TicketError::Untrusted(key(2).0.peer_id())));
        let forged = Ticket::sign(holder(PEER), NOW, NOW, key(1).0, &key(2).1);
        assert_eq!(verify(&forged, PEER, NOW), Err(TicketError::Signature));
        let edge = NOW.plus(TICKET_LIFE + TICKET_LEEWAY);
        assert!(verify(&good, PEER, edge).is_ok());
        let late = edge.plus(Duration::from_millis(1));
        assert!(matches!(verify(&good, PEER, late), Err(TicketError::Expired(_))));
        let early = NOW.minus(TICKET_LEEWAY + Duration::from_millis(1));
        assert!(matches!(verify(&good, PEER, early), Err(TicketError::NotYet(_))));
    }

    #[test]
    fn every_flipped_bit_and_truncation_is_refused() {
        let good = ticket(1, NOW);
        assert!(good.len() <= MAX_TICKET_LEN / 2);
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert!(verify(&bad, PEER, NOW).is_err(), "byte {index}");
            assert!(verify(&good[..index], PEER, NOW).is_err(), "prefix {index}");
        }
        assert_eq!(
            verify(&vec![0; MAX_TICKET_LEN + 1], PEER, NOW),
            Err(TicketError::TooLong(MAX_TICKET_LEN + 1))
        );
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(&bytes, PEER, NOW).is_err());
        }
    }
}
