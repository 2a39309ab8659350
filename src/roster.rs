//! The numbered list of trackers that are trusted for accounts, groups and tickets, and the book a
//! tracker or a client keeps of it.
//!
//! A [`Roster`] exists only verified: signed by a tracker that was trusted before. A [`RosterBook`]
//! takes another in place of its own only if that has a higher number, or on an equal number other
//! trackers and the greater hash: whatever reaches two books, they end with the same trackers. Who
//! signed does not matter for that, so a tracker may sign again what it hands on.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::hash::{Blake3Hash, blake3};
use crate::limits::{
    MAX_ADDRESSES, MAX_RETIRED_TRACKERS, MAX_ROSTER_LEN, MAX_TRACKERS, TICKET_LEEWAY, TICKET_LIFE,
};
use crate::peer_id::{PeerId, PublicKey, Signature};
use crate::signed::Signed;
use crate::tracker_link::{TrackerInfo, TrackerLink};
use crate::wire::{self, DecodeError};

/// What is signed begins with this, so that no other signature can pass for a roster's.
const DOMAIN: &[u8] = b"mtq roster 1\0";

/// One tracker of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterEntry {
    /// Where it can be reached, the best first; all name the one peer id, which pins its key.
    pub links: Vec<TrackerLink>,
}

impl RosterEntry {
    /// A tracker with one address.
    pub fn new(link: TrackerLink) -> Self {
        Self { links: vec![link] }
    }

    /// Its peer id; nothing for an entry without links, which no roster has.
    fn named(&self) -> Option<PeerId> {
        self.links.first().map(TrackerLink::peer_id)
    }

    /// Its peer id.
    ///
    /// # Panics
    /// Never for an entry of a verified roster.
    pub fn peer_id(&self) -> PeerId {
        self.named().expect("invariant: an entry has a link")
    }
}

/// The trackers of a file, each with the one address it has there.
fn entries_of(info: &TrackerInfo) -> Vec<RosterEntry> {
    info.links().iter().cloned().map(RosterEntry::new).collect()
}

/// Whether these can be the trackers of a network.
fn is_well_formed(entries: &[RosterEntry]) -> bool {
    (1..=MAX_TRACKERS).contains(&entries.len())
        && entries.iter().enumerate().all(|(index, entry)| {
            let id = entry.named();
            (1..=MAX_ADDRESSES).contains(&entry.links.len())
                && entry.links.iter().all(|link| Some(link.peer_id()) == id)
                && entries[..index].iter().all(|earlier| earlier.named() != id)
        })
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
    /// Over the length a roster can have.
    #[error("a roster of {0} bytes is over the limit of {MAX_ROSTER_LEN}")]
    TooLong(usize),
    /// Not the encoding.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Signed by a key that is no tracker of the roster before.
    #[error("the roster is signed by {}, which is not a trusted tracker", .0.short())]
    Untrusted(PeerId),
    /// The signature is not the signer's.
    #[error("the signature of the roster is wrong")]
    Signature,
    /// No entries, too many, an entry with too many addresses, one whose links name another, or
    /// one tracker twice.
    #[error("the roster's entries are not well formed")]
    Entries,
}

/// A verified roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    number: u64,
    signer: PeerId,
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
        if bytes.len() > MAX_ROSTER_LEN {
            return Err(RosterError::TooLong(bytes.len()));
        }
        let signed = Signed::parse(bytes)?;
        let body: Body = signed.body()?;
        let signer = body.signer.peer_id();
        if !trusted(signer) {
            return Err(RosterError::Untrusted(signer));
        }
        if !signed.is_by(&body.signer, DOMAIN) {
            return Err(RosterError::Signature);
        }
        if !is_well_formed(&body.entries) {
            return Err(RosterError::Entries);
        }
        Ok(Self { number: body.number, signer, entries: body.entries })
    }

    /// Its number: a later roster has a higher one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who signed it.
    pub fn signer(&self) -> PeerId {
        self.signer
    }

    /// The trackers.
    pub fn entries(&self) -> &[RosterEntry] {
        &self.entries
    }

    /// BLAKE3 of its number and entries: equal for equal rosters, whoever signed them.
    pub fn hash(&self) -> Blake3Hash {
        blake3(&wire::encode(&(self.number, &self.entries)))
    }

    /// What decides between two: the number, and between equal numbers the hash.
    fn rank(&self) -> (u64, Blake3Hash) {
        (self.number, self.hash())
    }
}

/// What a tracker or client knows of the trackers there are.
#[derive(Clone, Debug)]
pub struct RosterBook {
    /// The file it starts from.
    info: TrackerInfo,
    /// Whether that file says something else than when this book was last written.
    edited: bool,
    /// The present roster and its wire bytes.
    current: Option<(Roster, Vec<u8>)>,
    /// The trackers: those of the roster, without one those of the file.
    entries: Vec<RosterEntry>,
    /// Former trackers and when each went, the latest last.
    retired: Vec<(PeerId, UnixMillis)>,
}

/// A book as it is kept in a file.
#[derive(Serialize, Deserialize)]
struct Stored {
    base: Vec<TrackerLink>,
    roster: Option<Vec<u8>>,
    retired: Vec<(PeerId, UnixMillis)>,
}

impl Stored {
    /// What `bytes` hold, if they are the book of the network that `info` names too.
    fn read(bytes: &[u8], info: &TrackerInfo) -> Option<(Self, Option<Roster>)> {
        let mut stored: Self = wire::decode(bytes).ok()?;
        let roster = match &stored.roster {
            // It was trusted when it was taken.
            Some(bytes) => Some(Roster::verify(bytes, |_| true).ok()?),
            None => None,
        };
        stored.retired.truncate(MAX_RETIRED_TRACKERS);
        let listed = roster.iter().flat_map(|roster| roster.entries.iter().map(|e| e.peer_id()));
        let mut known = stored.base.iter().map(TrackerLink::peer_id).chain(listed);
        known.any(|id| info.find(id).is_some()).then_some((stored, roster))
    }
}

impl RosterBook {
    /// A book that starts from the file `info` and goes on with `stored`, what an earlier one
    /// encoded. Also says whether `stored` was left aside: because it cannot be read, or because
    /// it is of another network, none of whose trackers is in the file.
    pub fn new(info: TrackerInfo, stored: Option<&[u8]>) -> (Self, bool) {
        let entries = entries_of(&info);
        let read = stored.and_then(|bytes| Stored::read(bytes, &info));
        let ignored = stored.is_some() && read.is_none();
        let mut book = Self { info, edited: false, current: None, entries, retired: Vec::new() };
        if let Some((stored, roster)) = read {
            book.edited = stored.base != book.info.links();
            book.retired = stored.retired;
            if let Some((roster, bytes)) = roster.zip(stored.roster) {
                book.entries.clone_from(&roster.entries);
                book.current = Some((roster, bytes));
            }
        }
        (book, ignored)
    }

    /// Takes a roster that came from anywhere, if it is later than the present one; says whether
    /// it was. Trackers that are not in it are retired `now`.
    ///
    /// # Errors
    /// [`RosterError`] unless one of the present trackers signed it.
    pub fn offer(&mut self, bytes: &[u8], now: UnixMillis) -> Result<bool, RosterError> {
        let offered = Roster::verify(bytes, |id| self.find(id).is_some())?;
        let later = match self.roster() {
            Some(present) => offered.rank() > present.rank(),
            None => offered.number > 0,
        };
        if later {
            self.take(offered, bytes.to_vec(), now);
        }
        Ok(later)
    }

    /// What a tracker does at its start: where there is no roster yet, or the file was edited
    /// since, it makes the next one of the trackers in the file. One that is not in its own file
    /// waits for a roster of the others. Says whether there is a new roster.
    pub fn begin(
        &mut self,
        signer: PublicKey,
        sign: &dyn Fn(&[u8]) -> Signature,
        now: UnixMillis,
    ) -> bool {
        let edited = std::mem::take(&mut self.edited);
        let listed = entries_of(&self.info);
        let stale = match &self.current {
            None => true,
            Some(_) => edited && self.entries != listed,
        };
        if !stale || self.info.find(signer.peer_id()).is_none() {
            return false;
        }
        let bytes = self.amended(listed.clone(), signer, sign);
        let number = self.number().saturating_add(1);
        let roster = Roster { number, signer: signer.peer_id(), entries: listed };
        self.take(roster, bytes, now);
        true
    }

    fn take(&mut self, roster: Roster, bytes: Vec<u8>, now: UnixMillis) {
        let is_in = |id| roster.entries.iter().any(|entry| entry.peer_id() == id);
        self.retired.retain(|&(id, at)| now < honoured_until(at) && !is_in(id));
        let gone = self.entries.iter().map(RosterEntry::peer_id).filter(|&id| !is_in(id));
        self.retired.extend(gone.map(|id| (id, now)));
        let over = self.retired.len().saturating_sub(MAX_RETIRED_TRACKERS);
        self.retired.drain(..over);
        self.entries.clone_from(&roster.entries);
        self.current = Some((roster, bytes));
    }

    /// The wire bytes of the roster after the present one, with these trackers.
    pub fn amended(
        &self,
        entries: Vec<RosterEntry>,
        signer: PublicKey,
        sign: &dyn Fn(&[u8]) -> Signature,
    ) -> Vec<u8> {
        Roster::sign(self.number().saturating_add(1), entries, signer, sign)
    }

    /// The wire bytes of the present roster under another signature. Whoever trusts a tracker
    /// takes from it what that one signed, even when it knows none of the trackers before.
    pub fn signed_by(
        &self,
        signer: PublicKey,
        sign: &dyn Fn(&[u8]) -> Signature,
    ) -> Option<Vec<u8>> {
        let roster = self.roster()?;
        Some(Roster::sign(roster.number, roster.entries.clone(), signer, sign))
    }

    /// The present roster.
    pub fn roster(&self) -> Option<&Roster> {
        self.current.as_ref().map(|(roster, _)| roster)
    }

    /// Its wire bytes, as they came.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.current.as_ref().map(|(_, bytes)| bytes.as_slice())
    }

    /// Its number; 0 where there is none yet.
    pub fn number(&self) -> u64 {
        self.roster().map_or(0, Roster::number)
    }

    /// BLAKE3 of its number and entries.
    pub fn hash(&self) -> Option<Blake3Hash> {
        self.roster().map(Roster::hash)
    }

    /// The file the book starts from.
    pub fn info(&self) -> &TrackerInfo {
        &self.info
    }

    /// The trackers, in the order of preference.
    pub fn entries(&self) -> &[RosterEntry] {
        &self.entries
    }

    /// Their addresses in the order of preference: the first of each, then the further ones, then
    /// what the file says of the same trackers.
    pub fn links(&self) -> Vec<TrackerLink> {
        let mut links: Vec<TrackerLink> = Vec::new();
        let deepest = self.entries.iter().map(|entry| entry.links.len()).max().unwrap_or(0);
        let listed = (0..deepest)
            .flat_map(|depth| self.entries.iter().filter_map(move |entry| entry.links.get(depth)));
        let of_file = self.info.links().iter().filter(|link| self.find(link.peer_id()).is_some());
        for link in listed.chain(of_file) {
            if !links.contains(link) {
                links.push(link.clone());
            }
        }
        links
    }

    /// Their peer ids, in the order of preference.
    pub fn peer_ids(&self) -> Vec<PeerId> {
        self.entries.iter().map(RosterEntry::peer_id).collect()
    }

    /// The tracker with this peer id.
    pub fn find(&self, peer_id: PeerId) -> Option<&RosterEntry> {
        self.entries.iter().find(|entry| entry.peer_id() == peer_id)
    }

    /// Whether tickets of this tracker are honoured `now`: it is one, or was one until lately.
    pub fn trusts(&self, peer_id: PeerId, now: UnixMillis) -> bool {
        let mut retired = self.retired();
        self.find(peer_id).is_some() || retired.any(|(id, until)| id == peer_id && now < until)
    }

    /// Former trackers, each with the time until which its tickets are honoured.
    pub fn retired(&self) -> impl Iterator<Item = (PeerId, UnixMillis)> {
        self.retired.iter().map(|&(id, at)| (id, honoured_until(at)))
    }

    /// What [`RosterBook::new`] goes on with.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(&Stored {
            base: self.info.links().to_vec(),
            roster: self.bytes().map(<[u8]>::to_vec),
            retired: self.retired.clone(),
        })
    }
}

/// When the last ticket of a tracker that was retired `at` has ended.
fn honoured_until(at: UnixMillis) -> UnixMillis {
    at.plus(TICKET_LIFE + TICKET_LEEWAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_id::testing::key;
    use proptest::prelude::*;
    use std::time::Duration;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn id(seed: u8) -> PeerId {
        key(seed).0.peer_id()
    }

    fn link(seed: u8, port: u16) -> TrackerLink {
        TrackerLink::new(([10, 0, 0, seed], port).into(), id(seed))
    }

    fn entry(seed: u8) -> RosterEntry {
        RosterEntry::new(link(seed, 4000))
    }

    fn entries(seeds: &[u8]) -> Vec<RosterEntry> {
        seeds.iter().map(|&seed| entry(seed)).collect()
    }

    fn info(seeds: &[u8]) -> TrackerInfo {
        TrackerInfo::new(seeds.iter().map(|&seed| link(seed, 4000)).collect()).expect("valid")
    }

    fn book(seeds: &[u8]) -> RosterBook {
        RosterBook::new(info(seeds), None).0
    }

    fn signed(number: u64, seeds: &[u8], signer: u8) -> Vec<u8> {
        let (public, sign) = key(signer);
        Roster::sign(number, entries(seeds), public, &sign)
    }

    fn begin(book: &mut RosterBook, seed: u8) -> bool {
        let (public, sign) = key(seed);
        book.begin(public, &sign, NOW)
    }

    #[test]
    fn verifies_only_what_a_trusted_tracker_signed() {
        let (public, _) = key(1);
        let bytes = signed(4, &[1, 2], 1);
        let trusted = |id| id == public.peer_id();
        let roster = Roster::verify(&bytes, trusted).expect("valid");
        assert_eq!((roster.number(), roster.entries().len()), (4, 2));
        assert_eq!(roster.signer(), public.peer_id());
        assert_eq!(
            Roster::verify(&bytes, |_| false),
            Err(RosterError::Untrusted(public.peer_id()))
        );
        let forged = Roster::sign(4, entries(&[1]), public, &key(2).1);
        assert_eq!(Roster::verify(&forged, trusted), Err(RosterError::Signature));
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1;
            assert!(Roster::verify(&flipped, trusted).is_err(), "byte {index}");
            assert!(Roster::verify(&bytes[..index], trusted).is_err(), "prefix {index}");
        }
    }

    #[test]
    fn refuses_entries_that_are_not_well_formed() {
        let (public, sign) = key(1);
        let mixed = RosterEntry { links: vec![link(2, 1), link(3, 1)] };
        let everywhere =
            |count: u16| RosterEntry { links: (1..=count).map(|p| link(2, p)).collect() };
        let many: Vec<u8> = (1..=MAX_TRACKERS as u8 + 1).collect();
        for (case, entries) in [
            vec![],
            vec![mixed],
            vec![RosterEntry { links: vec![] }],
            vec![entry(1), entry(2), entry(1)],
            vec![everywhere(MAX_ADDRESSES as u16 + 1)],
            entries(&many),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = Roster::sign(1, entries, public, &sign);
            assert_eq!(Roster::verify(&bytes, |_| true), Err(RosterError::Entries), "{case}");
        }
        let long = vec![0; MAX_ROSTER_LEN + 1];
        assert_eq!(Roster::verify(&long, |_| true), Err(RosterError::TooLong(long.len())));
        let host = "h".repeat(253);
        let at = |seed, port| format!("mtq://{host}:{port}#{}", id(seed)).parse().expect("a link");
        let most = (1..=MAX_TRACKERS as u8)
            .map(|seed| RosterEntry {
                links: (1..=MAX_ADDRESSES as u16).map(|n| at(seed, 65_000 + n)).collect(),
            })
            .collect();
        let bytes = Roster::sign(u64::MAX, most, public, &sign);
        assert!(Roster::verify(&bytes, |_| true).is_ok(), "{} bytes", bytes.len());
    }

    #[test]
    fn a_book_takes_what_is_later_and_signed_by_one_of_its_trackers() {
        let mut book = book(&[1, 2]);
        assert_eq!((book.number(), book.hash(), book.bytes()), (0, None, None));
        assert_eq!(book.offer(&signed(0, &[1], 1), NOW), Ok(false));
        let second = signed(2, &[2, 1, 3], 1);
        assert_eq!(book.offer(&second, NOW), Ok(true));
        assert_eq!((book.number(), book.bytes()), (2, Some(second.as_slice())));
        assert_eq!(book.peer_ids(), [id(2), id(1), id(3)]);
        assert_eq!(book.offer(&second, NOW), Ok(false));
        assert_eq!(book.offer(&signed(1, &[1], 1), NOW), Ok(false), "earlier");
        assert_eq!(book.offer(&signed(2, &[2, 1, 3], 3), NOW), Ok(false), "the same by another");
        assert_eq!(book.bytes(), Some(second.as_slice()));
        assert_eq!(book.offer(&signed(9, &[4], 4), NOW), Err(RosterError::Untrusted(id(4))));
        assert_eq!(book.offer(&signed(3, &[3, 4], 3), NOW), Ok(true), "a new tracker's");
        assert_eq!(book.offer(&signed(4, &[1], 1), NOW), Err(RosterError::Untrusted(id(1))));
    }

    #[test]
    fn former_trackers_are_trusted_until_their_tickets_have_ended() {
        let mut book = book(&[1, 2]);
        book.offer(&signed(1, &[2], 1), NOW).expect("signed");
        let end = NOW.plus(TICKET_LIFE + TICKET_LEEWAY);
        let before = end.minus(Duration::from_millis(1));
        assert!(book.trusts(id(1), before) && !book.trusts(id(1), end));
        assert!(book.trusts(id(2), end) && !book.trusts(id(3), NOW));
        assert_eq!(book.retired().collect::<Vec<_>>(), [(id(1), end)]);
        // One that comes back is a tracker like any other.
        book.offer(&signed(2, &[1, 2], 2), before).expect("signed");
        assert!(book.trusts(id(1), end) && book.retired().count() == 0);
        // Those whose time is over are forgotten with the next change.
        book.offer(&signed(3, &[2], 2), NOW).expect("signed");
        book.offer(&signed(4, &[2, 3], 2), end).expect("signed");
        assert_eq!(book.retired().count(), 0);
    }

    #[test]
    fn no_more_former_trackers_are_known_than_the_limit() {
        let mut book = book(&[1, 2]);
        for number in 1..=MAX_RETIRED_TRACKERS as u64 + 10 {
            let other = 2 + number as u8;
            book.offer(&signed(number, &[1, other], 1), NOW).expect("signed");
        }
        assert_eq!(book.retired().count(), MAX_RETIRED_TRACKERS);
        let latest = 2 + MAX_RETIRED_TRACKERS as u8 + 9;
        assert!(book.trusts(id(latest), NOW) && !book.trusts(id(3), NOW));
        let (again, ignored) = RosterBook::new(info(&[1]), Some(&book.encode()));
        assert!(!ignored && again.retired().eq(book.retired()));
    }

    #[test]
    fn links_are_the_first_of_each_then_the_further_then_those_of_the_file() {
        let mut book = book(&[1, 2, 3]);
        let (public, sign) = key(1);
        let two = RosterEntry { links: vec![link(2, 1), link(2, 2)] };
        let one = RosterEntry { links: vec![link(1, 4000), link(1, 5000)] };
        book.offer(&Roster::sign(1, vec![two, one], public, &sign), NOW).expect("signed");
        let expected = [link(2, 1), link(1, 4000), link(2, 2), link(1, 5000), link(2, 4000)];
        assert_eq!(book.links(), expected, "and none of tracker 3, which the roster lacks");
    }

    #[test]
    fn a_tracker_makes_a_roster_of_its_file_once_and_when_the_file_was_edited() {
        let mut first = book(&[1, 2]);
        let mut second = book(&[1, 2]);
        assert!(begin(&mut first, 1) && begin(&mut second, 2));
        assert_eq!(first.hash(), second.hash(), "the same roster, whoever made it");
        let bytes = second.bytes().expect("made").to_vec();
        assert_eq!(first.offer(&bytes, NOW), Ok(false));

        let (mut again, ignored) = RosterBook::new(info(&[1, 2]), Some(&first.encode()));
        assert!(!ignored && !begin(&mut again, 1));
        assert_eq!(again.bytes(), first.bytes());
        // What came later stays, whatever the unedited file says.
        again.offer(&signed(2, &[1, 2, 3], 2), NOW).expect("signed");
        let (mut again, _) = RosterBook::new(info(&[1, 2]), Some(&again.encode()));
        assert!(!begin(&mut again, 1));
        assert_eq!((again.number(), again.entries().len()), (2, 3));

        let (mut edited, _) = RosterBook::new(info(&[1, 4]), Some(&again.encode()));
        assert!(begin(&mut edited, 1) && !begin(&mut edited, 1));
        assert_eq!((edited.number(), edited.peer_ids()), (3, vec![id(1), id(4)]));
        assert!(edited.trusts(id(3), NOW));
        // A sibling that has it already and whose file is edited too makes no other.
        let bytes = edited.signed_by(key(1).0, &key(1).1).expect("there is one");
        assert_eq!(again.offer(&bytes, NOW), Ok(true));
        let (mut again, _) = RosterBook::new(info(&[1, 4]), Some(&again.encode()));
        assert!(!begin(&mut again, 4));
        assert_eq!(again.hash(), edited.hash());

        let mut stranger = book(&[1, 2]);
        assert!(!begin(&mut stranger, 7));
        assert_eq!(stranger.number(), 0);
    }

    #[test]
    fn a_book_of_another_network_is_left_aside() {
        let mut old = book(&[1, 2]);
        old.offer(&signed(5, &[2, 3], 1), NOW).expect("signed");
        for (seeds, number) in [(&[1][..], 5), (&[3], 5), (&[9], 0)] {
            let (book, ignored) = RosterBook::new(info(seeds), Some(&old.encode()));
            assert_eq!((book.number(), ignored), (number, number == 0), "{seeds:?}");
        }
        let whole = old.encode();
        for len in 0..whole.len() {
            assert!(RosterBook::new(info(&[1]), Some(&whole[..len])).1, "prefix of {len}");
        }
    }

    #[test]
    fn what_a_tracker_signs_again_is_the_same_roster() {
        // Key 1 was replaced by 3, which made another roster: who missed that takes it from 2.
        let mut knows = book(&[1, 2]);
        knows.offer(&signed(1, &[3, 2], 1), NOW).expect("signed");
        let last = signed(2, &[3, 2, 4], 3);
        knows.offer(&last, NOW).expect("signed");
        let mut missed = book(&[1, 2]);
        assert_eq!(missed.offer(&last, NOW), Err(RosterError::Untrusted(id(3))));
        let (public, sign) = key(2);
        let bytes = knows.signed_by(public, &sign).expect("there is one");
        assert_eq!(missed.offer(&bytes, NOW), Ok(true));
        assert_eq!(missed.hash(), knows.hash());
        assert_eq!(missed.offer(&last, NOW), Ok(false));
        assert!(book(&[1]).signed_by(public, &sign).is_none());
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Roster::verify(&bytes, |_| true).is_err());
            let mut book = book(&[1]);
            prop_assert!(book.offer(&bytes, NOW).is_err());
            prop_assert!(RosterBook::new(info(&[1]), Some(&bytes)).1);
        }

        /// Trackers 1 and 2 sign, and are in every roster; others come and go.
        #[test]
        fn whatever_the_order_books_end_with_the_same_roster(
            offers in prop::collection::vec(
                (1u64..4, prop::sample::subsequence(vec![3u8, 4, 5], 0..=3), any::<bool>()),
                1..8,
            ),
            shuffle in any::<prop::sample::Index>(),
        ) {
            let rosters: Vec<_> = offers
                .iter()
                .map(|(number, others, by_first)| {
                    let seeds = [&[1, 2], others.as_slice()].concat();
                    signed(*number, &seeds, if *by_first { 1 } else { 2 })
                })
                .collect();
            let (mut one, mut other) = (book(&[1, 2]), book(&[2, 1]));
            for bytes in &rosters {
                one.offer(bytes, NOW).expect("signed");
            }
            let turn = shuffle.index(rosters.len());
            for bytes in rosters[turn..].iter().chain(&rosters[..turn]).rev() {
                other.offer(bytes, NOW).expect("signed");
            }
            prop_assert_eq!(one.hash(), other.hash());
            prop_assert_eq!(one.peer_ids(), other.peer_ids());
            let best = rosters
                .iter()
                .map(|bytes| Roster::verify(bytes, |_| true).expect("valid").rank())
                .max();
            prop_assert_eq!(one.roster().map(Roster::rank), best);
            let (again, ignored) = RosterBook::new(info(&[1]), Some(&one.encode()));
            prop_assert!(!ignored);
            prop_assert_eq!(again.hash(), one.hash());
        }
    }
}
