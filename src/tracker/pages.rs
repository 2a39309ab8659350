//! Hash pages of shared files, stored once each, counted against whoever shares them.
//!
//! A page is kept while a share names it, or while the connection that put it has not finished
//! its share. Every page was checked against a manifest head before it got here.

use std::collections::HashMap;
use std::sync::Arc;

use super::message::Refusal;
use crate::hash::Blake3Hash;
use crate::limits::PAGE_QUOTA_PER_USER;
use crate::manifest::{ManifestHead, PIECE_HASHES_LEN};
use crate::name::UserName;

#[derive(Debug)]
struct Page {
    bytes: Arc<[u8]>,
    holders: u32,
}

/// The pages of a tracker.
#[derive(Debug, Default)]
pub struct Pages {
    by_hash: HashMap<Blake3Hash, Page>,
    used: HashMap<UserName, u64>,
}

impl Pages {
    /// Whether the page is here.
    pub fn contains(&self, hash: &Blake3Hash) -> bool {
        self.by_hash.contains_key(hash)
    }

    /// The page's bytes.
    pub fn find(&self, hash: &Blake3Hash) -> Option<Arc<[u8]>> {
        self.by_hash.get(hash).map(|page| page.bytes.clone())
    }

    /// Keeps a page for `user` until [`Self::release`].
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota.
    pub fn put(&mut self, user: &UserName, hash: Blake3Hash, bytes: &[u8]) -> Result<(), Refusal> {
        let used = self.used(user) + bytes.len() as u64;
        over_quota(used)?;
        self.used.insert(user.clone(), used);
        let page =
            self.by_hash.entry(hash).or_insert_with(|| Page { bytes: bytes.into(), holders: 0 });
        page.holders += 1;
        Ok(())
    }

    /// Whether `user` may hold all pages of `head` for another share.
    ///
    /// # Errors
    /// [`Refusal::Limit`] over the user's quota.
    pub fn check_quota(&self, user: &UserName, head: &ManifestHead) -> Result<(), Refusal> {
        over_quota(self.used(user) + weight(head))
    }

    /// Keeps all pages of `head`, which are here, for a share of `user`.
    pub fn hold(&mut self, user: &UserName, head: &ManifestHead) {
        for hash in head.page_hashes() {
            if let Some(page) = self.by_hash.get_mut(hash) {
                page.holders += 1;
            }
        }
        *self.used.entry(user.clone()).or_default() += weight(head);
    }

    /// Ends what [`Self::hold`] began.
    pub fn let_go(&mut self, user: &UserName, head: &ManifestHead) {
        head.page_hashes().iter().for_each(|hash| self.drop_holder(hash));
        self.credit(user, weight(head));
    }

    /// Ends what [`Self::put`] began for each of `hashes`; a page nobody holds goes.
    pub fn release(&mut self, user: &UserName, hashes: &[Blake3Hash]) {
        for hash in hashes {
            let len = self.by_hash.get(hash).map_or(0, |page| page.bytes.len() as u64);
            self.drop_holder(hash);
            self.credit(user, len);
        }
    }

    fn drop_holder(&mut self, hash: &Blake3Hash) {
        let Some(page) = self.by_hash.get_mut(hash) else { return };
        page.holders -= 1;
        if page.holders == 0 {
            self.by_hash.remove(hash);
        }
    }

    fn used(&self, user: &UserName) -> u64 {
        self.used.get(user).copied().unwrap_or(0)
    }

    fn credit(&mut self, user: &UserName, len: u64) {
        let used = self.used(user).saturating_sub(len);
        match used {
            0 => drop(self.used.remove(user)),
            _ => drop(self.used.insert(user.clone(), used)),
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
    use crate::manifest::testing::manifest_of;

    #[test]
    fn a_page_stays_while_anybody_holds_it() {
        let (alice, bob): (UserName, UserName) =
            ("alice".parse().expect("name"), "bob".parse().expect("name"));
        let manifest = manifest_of(&[1; 10]);
        let (page, hash) = (manifest.page(0), manifest.head().page_hashes()[0]);
        assert_eq!(blake3(&page), hash);
        let mut pages = Pages::default();
        pages.put(&alice, hash, &page).expect("under quota");
        pages.hold(&alice, manifest.head());
        pages.release(&alice, &[hash]);
        pages.hold(&bob, manifest.head());
        pages.let_go(&alice, manifest.head());
        assert_eq!(pages.find(&hash).as_deref(), Some(&page[..]));
        pages.let_go(&bob, manifest.head());
        assert!(!pages.contains(&hash));
        assert!(pages.used.is_empty());
    }

    #[test]
    fn the_quota_is_per_user() {
        let (alice, bob): (UserName, UserName) =
            ("alice".parse().expect("name"), "bob".parse().expect("name"));
        let mut pages = Pages::default();
        pages.used.insert(alice.clone(), PAGE_QUOTA_PER_USER - 3);
        assert!(pages.put(&alice, blake3(b"abcd"), b"abcd").is_err());
        assert!(!pages.contains(&blake3(b"abcd")));
        assert!(pages.put(&alice, blake3(b"abc"), b"abc").is_ok());
        assert!(pages.put(&bob, blake3(b"abcd"), b"abcd").is_ok());
        // A share of pages that somebody else put counts as well.
        let manifest = manifest_of(&[1; 10]);
        assert!(pages.check_quota(&alice, manifest.head()).is_err());
        assert!(pages.check_quota(&bob, manifest.head()).is_ok());
    }
}
