//! Hash pages of shared files, stored once each, counted against whoever shares them.
//!
//! A page is kept while a share names it, or while the connection that put it has not finished
//! its share. Every page was checked against a manifest head before it got here.

use std::collections::HashMap;
use std::sync::Arc;

use super::message::Refusal;
use crate::hash::Blake3Hash;
use crate::limits::PAGE_QUOTA_PER_USER;
use crate::manifest::ManifestHead;
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
        self.charge(user, bytes.len() as u64)?;
        let page =
            self.by_hash.entry(hash).or_insert_with(|| Page { bytes: bytes.into(), holders: 0 });
        page.holders += 1;
        Ok(())
    }

    /// Keeps all pages of `head`, which are here, for a share of `user`. Never refused: they were
    /// under the quota when they were put, or another sharer's were.
    pub fn hold(&mut self, user: &UserName, head: &ManifestHead) {
        for hash in head.page_hashes() {
            if let Some(page) = self.by_hash.get_mut(hash) {
                page.holders += 1;
                *self.used.entry(user.clone()).or_default() += page.bytes.len() as u64;
            }
        }
    }

    /// Ends one holding of each of `hashes` by `user`; a page nobody holds goes.
    pub fn release<'a>(
        &mut self,
        user: &UserName,
        hashes: impl IntoIterator<Item = &'a Blake3Hash>,
    ) {
        for hash in hashes {
            let Some(page) = self.by_hash.get_mut(hash) else { continue };
            page.holders -= 1;
            let len = page.bytes.len() as u64;
            if page.holders == 0 {
                self.by_hash.remove(hash);
            }
            if let Some(used) = self.used.get_mut(user) {
                *used = used.saturating_sub(len);
                if *used == 0 {
                    self.used.remove(user);
                }
            }
        }
    }

    fn charge(&mut self, user: &UserName, len: u64) -> Result<(), Refusal> {
        let used = self.used.get(user).copied().unwrap_or(0) + len;
        if used > PAGE_QUOTA_PER_USER {
            let what = "bytes of hash pages of one user".to_owned();
            return Err(Refusal::Limit { what, max: PAGE_QUOTA_PER_USER });
        }
        self.used.insert(user.clone(), used);
        Ok(())
    }
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
        pages.release(&alice, [&hash]);
        pages.hold(&bob, manifest.head());
        pages.release(&alice, [&hash]);
        assert_eq!(pages.find(&hash).as_deref(), Some(&page[..]));
        pages.release(&bob, [&hash]);
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
    }
}
