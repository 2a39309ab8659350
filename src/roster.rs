//! The numbered list of trackers that are trusted for accounts, groups and tickets.
//!
//! A [`Roster`] exists only verified: signed by a tracker that was trusted before. Whoever keeps one
//! takes another in its place only if that has a higher number.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_ADDRESSES, MAX_TRACKERS};
use crate::peer_id::{PeerId, PublicKey, Signature};
use crate::signed::Signed;
use crate::tracker_link::TrackerLink;
use crate::wire::DecodeError;

/// What is signed begins with this, so that no other signature can pass for a roster's.
const DOMAIN: &[u8] = b"mtq roster 1\0";

/// One tracker of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterEntry {
    /// Its key; the peer id follows from it.
    pub public_key: PublicKey,
    /// Where it can be reached.
    pub links: Vec<TrackerLink>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    number: u64,
    signer: PublicKey,
    entries: Vec<RosterEntry>,
}

/// Bytes that are not a roster to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RosterError {
    /// Not the encoding.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Signed by a key that is no tracker of the roster before.
    #[error("the roster is signed by {}, which is not a trusted tracker", .0.short())]
    Untrusted(PeerId),
    /// The signature is not the signer's.
    #[error("the signature of the roster is wrong")]
    Signature,
    /// No entries, too many, an entry with too many addresses, or one whose links name another.
    #[error("the roster's entries are not well formed")]
    Entries,
}

/// A verified roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    number: u64,
    entries: Vec<RosterEntry>,
}

impl Roster {
    /// Signs a roster; returns its wire bytes.
    pub fn sign(
        number: u64,
        entries: Vec<RosterEntry>,
        signer: PublicKey,
        sign: &dyn Fn(&[u8]) -> Signature,
    ) -> Vec<u8> {
        Signed::seal(DOMAIN, &Body { number, signer, entries }, sign)
    }

    /// Verifies wire bytes; `trusted` says which peer ids are trackers now.
    ///
    /// # Errors
    /// [`RosterError`] unless a trusted tracker signed exactly these bytes.
    pub fn verify(bytes: &[u8], trusted: impl Fn(PeerId) -> bool) -> Result<Self, RosterError> {
        let signed = Signed::parse(bytes)?;
        let body: Body = signed.body()?;
        let signer = body.signer.peer_id();
        if !trusted(signer) {
            return Err(RosterError::Untrusted(signer));
        }
        if !signed.is_by(&body.signer, DOMAIN) {
            return Err(RosterError::Signature);
        }
        let well_formed = (1..=MAX_TRACKERS).contains(&body.entries.len())
            && body.entries.iter().all(|entry| {
                let id = entry.public_key.peer_id();
                (1..=MAX_ADDRESSES).contains(&entry.links.len())
                    && entry.links.iter().all(|link| link.peer_id() == id)
            });
        if !well_formed {
            return Err(RosterError::Entries);
        }
        Ok(Self { number: body.number, entries: body.entries })
    }

    /// Its number: a later roster has a higher one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The trackers.
    pub fn entries(&self) -> &[RosterEntry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_id::testing::key;
    use proptest::prelude::*;

    fn entry(seed: u8) -> RosterEntry {
        let public_key = key(seed).0;
        let address = "10.0.0.1:4000".parse().expect("address");
        RosterEntry { public_key, links: vec![TrackerLink::new(address, public_key.peer_id())] }
    }

    #[test]
    fn verifies_only_what_a_trusted_tracker_signed() {
        let (public, sign) = key(1);
        let bytes = Roster::sign(4, vec![entry(1), entry(2)], public, &sign);
        let trusted = |id| id == public.peer_id();
        let roster = Roster::verify(&bytes, trusted).expect("valid");
        assert_eq!((roster.number(), roster.entries().len()), (4, 2));
        assert_eq!(
            Roster::verify(&bytes, |_| false),
            Err(RosterError::Untrusted(public.peer_id()))
        );
        let forged = Roster::sign(4, vec![entry(1)], public, &key(2).1);
        assert_eq!(Roster::verify(&forged, trusted), Err(RosterError::Signature));
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1;
            assert!(Roster::verify(&flipped, trusted).is_err(), "byte {index}");
            assert!(Roster::verify(&bytes[..index], trusted).is_err(), "prefix {index}");
        }
    }

    #[test]
    fn refuses_entries_whose_links_name_another_tracker() {
        let (public, sign) = key(1);
        let mixed = RosterEntry { public_key: key(3).0, ..entry(2) };
        for entries in [vec![], vec![mixed]] {
            let bytes = Roster::sign(1, entries, public, &sign);
            assert_eq!(Roster::verify(&bytes, |_| true), Err(RosterError::Entries));
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Roster::verify(&bytes, |_| true).is_err());
        }
    }
}
