//! Which hash pages of shared files are kept, each once, and whom they count against.
//!
//! A page is kept while a share names it, or while the connection that put it has not finished
//! its share. The bytes are on the disk; every page was checked against a manifest head before.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Share;
use super::refusal::Refusal;
use super::state::Effect;
use crate::hash::Blake3Hash;
use crate::id::UserId;
use crate::limits::{PAGE_PIECES, PAGE_QUOTA_PER_USER};
use crate::manifest::{ManifestHead, PIECE_HASHES_LEN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    len: u64,
    holders: u32,
    /// Whether its bytes are on the disk.
    here: bool,
}

/// The pages of a tracker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    by_hash: BTreeMap<Blake3Hash, Page>,
    /// Named by a share that another tracker made, and not fetched yet.
    missing: BTreeSet<Blake3Hash>,
    used: BTreeMap<UserId, u64>,
}

impl Pages {
    /// The pages that `shares` name; none of them here yet.
    pub fn of<'a>(shares: impl Iterator<Item = &'a Share>) -> Self {
        let mut pages = Self::default();
        shares.for_each(|share| pages.hold(share.user, &share.head));
        pages
    }

    /// Whether the page is here.
    pub fn contains(&self, hash: &Blake3Hash) -> bool {
        self.by_hash.get(hash).is_some_and(|page| page.here)
    }

    /// All pages that somebody holds, here or not.
    pub fn hashes(&self) -> BTreeSet<Blake3Hash> {
        self.by_hash.keys().copied().collect()
    }

    /// A page is here now; returns whether anybody holds it.
    pub fn arrive(&mut self, hash: &Blake3Hash) -> bool {
        let Some(page) = self.by_hash.get_mut(hash) else { return false };
        page.here = true;
        self.missing.remove(hash);
        true
    }

    /// Pages that somebody holds and that are not here, from `from` on.
    pub fn missing(&self, from: Blake3Hash) -> impl Iterator<Item = Blake3Hash> {
        self.missing.range(from..).copied()
    }

    /// How many pages are not here.
    pub fn missing_count(&self) -> usize {
        self.missing.len()
    }

    /// How many pages are here, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        let here = self.by_hash.values().filter(|page| page.here);
        here.fold((0, 0), |(count, bytes), page| (count + 1, bytes + page.len))
    }

    /// Whether `user` may put a page of `len` bytes.
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota.
    pub fn check_put(&self, user: UserId, len: u64) -> Result<(), Refusal> {
        over_quota(self.used(user) + len)
    }

    /// Keeps a page for `user` until [`Self::release`]; returns whether it was not here yet.
    pub fn put(&mut self, user: UserId, hash: Blake3Hash, len: u64) -> bool {
        *self.used.entry(user).or_default() += len;
        let page = self.by_hash.entry(hash).or_insert(Page { len, holders: 0, here: false });
        page.holders += 1;
        self.missing.remove(&hash);
        !std::mem::replace(&mut page.here, true)
    }

    /// Whether `user` may hold all pages of `head` for another share.
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota.
    pub fn check_quota(&self, user: UserId, head: &ManifestHead) -> Result<(), Refusal> {
        over_quota(self.used(user) + weight(head))
    }

    /// Ends what [`Self::put`] began for each of `hashes`; returns the pages nobody holds now.
    pub fn release(&mut self, user: UserId, hashes: &[Blake3Hash]) -> Vec<Blake3Hash> {
        let mut gone = Vec::new();
        for hash in hashes {
            let len = self.by_hash.get(hash).map_or(0, |page| page.len);
            self.drop_holder(hash, &mut gone);
            self.credit(user, len);
        }
        gone
    }

    /// Follows what an op changed; returns the pages nobody holds now.
    pub fn follow(&mut self, effects: &[Effect]) -> Vec<Blake3Hash> {
        let mut gone = Vec::new();
        for effect in effects {
            match effect {
                Effect::ShareBegan(share) => self.hold(share.user, &share.head),
                Effect::ShareEnded(share) => {
                    let hashes = share.head.page_hashes();
                    hashes.iter().for_each(|hash| self.drop_holder(hash, &mut gone));
                    self.credit(share.user, weight(&share.head));
                }
                _ => {}
            }
        }
        gone
    }

    fn hold(&mut self, user: UserId, head: &ManifestHead) {
        let pieces = u64::from(head.layout().piece_count());
        for (index, hash) in (0u64..).zip(head.page_hashes()) {
            let first = index * u64::from(PAGE_PIECES);
            let len = (pieces - first).min(u64::from(PAGE_PIECES)) * PIECE_HASHES_LEN as u64;
            let page = self.by_hash.entry(*hash).or_insert(Page { len, holders: 0, here: false });
            page.holders += 1;
            if !page.here {
                self.missing.insert(*hash);
            }
        }
        *self.used.entry(user).or_default() += weight(head);
    }

    fn drop_holder(&mut self, hash: &Blake3Hash, gone: &mut Vec<Blake3Hash>) {
        let Some(page) = self.by_hash.get_mut(hash) else { return };
        page.holders -= 1;
        if page.holders == 0 {
            self.by_hash.remove(hash);
            self.missing.remove(hash);
            gone.push(*hash);
        }
    }

    fn used(&self, user: UserId) -> u64 {
        self.used.get(&user).copied().unwrap_or(0)
    }

    fn credit(&mut self, user: UserId, len: u64) {
        let used = self.used(user).saturating_sub(len);
        match used {
            0 => drop(self.used.remove(&user)),
            _ => drop(self.used.insert(user, used)),
        }
    }
}

/// What a share of `head` counts against the quota: its pages and itself.
fn weight(head: &ManifestHead) -> u64 {
    let layout = head.layout();
    let pages = u64::from(layout.piece_count()) * PIECE_HASHES_LEN as u64;
    pages + head.encoded_len() as u64
}

fn over_quota(used: u64) -> Result<(), Refusal> {
    if used <= PAGE_QUOTA_PER_USER {
        return Ok(());
    }
    let what = "bytes of manifests of one user".to_owned();
    Err(Refusal::Limit { what, max: PAGE_QUOTA_PER_USER })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blake3;
    use crate::id::{GroupId, MembershipId};
    use crate::manifest::Manifest;
    use crate::manifest::testing::manifest_of;

    const ALICE: UserId = UserId([1; 16]);
    const BOB: UserId = UserId([2; 16]);

    fn share(user: UserId, manifest: &Manifest) -> Share {
        Share {
            group: GroupId([1; 16]),
            membership: MembershipId([1; 16]),
            user,
            name: "f".parse().expect("name"),
            head: manifest.head().clone().into(),
        }
    }

    #[test]
    fn a_page_stays_while_anybody_holds_it() {
        let manifest = manifest_of(&[1; 10]);
        let (page, hash) = (manifest.page(0), manifest.head().page_hashes()[0]);
        let mut pages = Pages::default();
        assert!(pages.put(ALICE, hash, page.len() as u64));
        let (alices, bobs) = (share(ALICE, &manifest), share(BOB, &manifest));
        assert!(pages.follow(&[Effect::ShareBegan(alices.clone())]).is_empty());
        assert!(pages.release(ALICE, &[hash]).is_empty());
        let mut others = Pages::of([&alices].into_iter());
        assert!(!others.contains(&hash), "named, and not here");
        assert_eq!(others.missing(Blake3Hash([0; 32])).collect::<Vec<_>>(), [hash]);
        assert!(others.arrive(&hash));
        assert_eq!(pages, others);
        assert!(pages.follow(&[Effect::ShareBegan(bobs.clone())]).is_empty());
        assert!(pages.follow(&[Effect::ShareEnded(alices)]).is_empty());
        assert!(pages.contains(&hash));
        assert_eq!(pages.follow(&[Effect::ShareEnded(bobs)]), [hash]);
        assert_eq!(pages, Pages::default());
    }

    #[test]
    fn the_quota_is_per_user() {
        let mut pages = Pages::default();
        pages.used.insert(ALICE, PAGE_QUOTA_PER_USER - 3);
        assert!(pages.check_put(ALICE, 4).is_err());
        assert!(pages.check_put(ALICE, 3).is_ok());
        assert!(pages.check_put(BOB, 4).is_ok());
        assert!(pages.put(ALICE, blake3(b"abc"), 3));
        // A share of pages that somebody else put counts as well.
        let manifest = manifest_of(&[1; 10]);
        assert!(pages.check_quota(ALICE, manifest.head()).is_err());
        assert!(pages.check_quota(BOB, manifest.head()).is_ok());
    }
}
