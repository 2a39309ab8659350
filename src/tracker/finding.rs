//! How a client finds files: which match a pattern, what selectors mean, their hash pages, and who
//! holds them.
//!
//! Questions about many files are one request: each is answered for as many of the first as fit into a
//! frame, and whoever asked asks for the rest. It changes nothing.

use std::sync::Arc;

use regex::RegexBuilder;
use serde::Serialize;

use super::message::{FileCursor, Matching, Reply};
use super::refusal::Refusal;
use super::session::{ClientSession, check_batch, live};
use super::state::{PUBLIC, State};
use super::view;
use crate::hash::Blake3Hash;
use crate::id::{GroupId, UserId};
use crate::limits::{self, MAX_FIND_BATCH};
use crate::manifest::ContentId;
use crate::name::{GroupName, Selector};
use crate::wire;

/// Items of an answer, as many as fit into a frame.
struct Fitting<T> {
    items: Vec<T>,
    room: usize,
}

impl<T: Serialize> Fitting<T> {
    fn new() -> Self {
        Self { items: Vec::new(), room: limits::MAX_FIND_BYTES }
    }

    /// Adds the next item, if it fits; the first always does.
    fn push(&mut self, item: T) -> bool {
        let len = wire::encode(&item).len();
        let fits = len <= self.room || self.items.is_empty();
        if fits {
            self.room = self.room.saturating_sub(len);
            self.items.push(item);
        }
        fits
    }
}

impl ClientSession {
    pub(super) async fn search(
        self: &Arc<Self>,
        pattern: &str,
        matching: Matching,
        group: Option<GroupName>,
        after: Option<FileCursor>,
    ) -> Result<Reply, Refusal> {
        self.user()?;
        if pattern.len() > limits::MAX_PATTERN_LEN {
            let max = limits::MAX_PATTERN_LEN as u64;
            return Err(Refusal::Limit { what: "bytes of a search pattern".into(), max });
        }
        let pattern = match matching {
            Matching::Contains => regex::escape(pattern),
            Matching::Prefix => format!("^{}", regex::escape(pattern)),
            Matching::Regex => pattern.to_owned(),
            Matching::Glob => glob(pattern),
        };
        let _place = self.shared.search_queue.try_acquire().map_err(|_| Refusal::Busy)?;
        let permit = self.shared.searches.acquire().await.map_err(|_| Refusal::Internal)?;
        // Off the threads that carry the traffic: it reads all names of the user's groups.
        let client = self.clone();
        let search = tokio::task::spawn_blocking(move || -> Result<_, Refusal> {
            let wanted = RegexBuilder::new(&pattern)
                .case_insensitive(true)
                .size_limit(limits::PATTERN_SIZE)
                .dfa_size_limit(limits::PATTERN_SIZE)
                .build()
                .map_err(|error| Refusal::BadPattern(one_line(&error.to_string())))?;
            let shared = &client.shared;
            shared.store.read(|state| {
                let user = client.enrolled(state)?;
                let groups = match &group {
                    Some(group) => vec![view::group_of_member(state, group, user)?],
                    None => own_groups(state, user),
                };
                Ok(live(&shared.presence, |live| {
                    let wanted = |name: &str| wanted.is_match(name);
                    view::files(state, groups.into_iter(), after.as_ref(), wanted, live)
                }))
            })
        });
        let (rows, more) = search.await.map_err(|_| Refusal::Internal)??;
        drop(permit);
        Ok(Reply::Files { rows, more })
    }

    /// What selectors mean in a group.
    pub(super) fn find_files(
        &self,
        group: &GroupName,
        files: &[Selector],
    ) -> Result<Reply, Refusal> {
        check_batch(files.len(), MAX_FIND_BATCH)?;
        self.read(|state, user| {
            let id = view::group_of_member(state, group, user)?;
            let mut found = Fitting::new();
            for file in files {
                if !found.push(view::find_file(state, id, group, file)) {
                    break;
                }
            }
            Ok(Reply::Found { files: found.items })
        })
    }

    /// Hash pages of files that are listed in a group.
    pub(super) async fn pages(
        &self,
        group: &GroupName,
        pages: Vec<(ContentId, u32)>,
    ) -> Result<Reply, Refusal> {
        check_batch(pages.len(), MAX_FIND_BATCH)?;
        let hashes: Vec<Option<Blake3Hash>> = self.read(|state, user| {
            let id = view::group_of_member(state, group, user)?;
            let hash = |(content, page): (ContentId, u32)| {
                state.head(id, content)?.page_hashes().get(page as usize).copied()
            };
            Ok(pages.into_iter().map(hash).collect())
        })?;
        let mut found = Fitting::new();
        for hash in hashes {
            let bytes = match hash {
                None => None,
                Some(hash) => match self.shared.store.page(hash).await? {
                    Some(bytes) => Some(bytes),
                    // Shared a moment ago on another tracker.
                    None => self.shared.links.fetch_page(hash).await,
                },
            };
            if !found.push(bytes) {
                break;
            }
        }
        Ok(Reply::Pages { pages: found.items })
    }

    /// Who is online with contents of a group.
    pub(super) fn peers(
        &self,
        group: &GroupName,
        contents: &[ContentId],
    ) -> Result<Reply, Refusal> {
        check_batch(contents.len(), MAX_FIND_BATCH)?;
        let id = self.own_group(group)?;
        let mut rng = fastrand::Rng::new();
        let mut found = Fitting::new();
        for content in contents {
            if !found.push(self.shared.presence.sample(id, *content, self.number, &mut rng)) {
                break;
            }
        }
        Ok(Reply::Peers { holders: found.items })
    }
}

/// The groups whose listings a user may search.
fn own_groups(state: &State, user: UserId) -> Vec<GroupId> {
    let mine = state.user_index(user).into_iter().flat_map(|user| &user.groups);
    let mut groups: Vec<_> = mine.map(|(group, _)| *group).chain([PUBLIC]).collect();
    groups.retain(|group| state.member(*group, user).is_some());
    groups.dedup();
    groups
}

/// The regular expression that means what a glob does.
fn glob(pattern: &str) -> String {
    let mut regex = "^".to_owned();
    for letter in pattern.chars() {
        match letter {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex + "$"
}

/// The last line says what is wrong; those before draw it.
fn one_line(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or(text);
    last.trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_means_whole_names() {
        let matches = |pattern: &str, name: &str| {
            let regex = RegexBuilder::new(&glob(pattern)).case_insensitive(true).build();
            regex.expect("a regular expression").is_match(name)
        };
        for (pattern, name, is_match) in [
            ("*", "a b", true),
            ("*.iso", "Image.ISO", true),
            ("*.iso", "image.iso.part", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a?c", "a\u{e9}c", true),
            ("[a].+(b)|$", "[a].+(b)|$", true),
            ("[a]", "a", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn an_answer_takes_what_fits_and_always_the_first() {
        let mut answer = Fitting::new();
        assert!(answer.push(vec![0_u8; limits::MAX_FIND_BYTES + 1]));
        assert!(!answer.push(vec![0]));
        let mut answer = Fitting::new();
        let count =
            (0..9).take_while(|_| answer.push(vec![0_u8; limits::MAX_FIND_BYTES / 4])).count();
        assert_eq!((count, answer.items.len()), (3, 3));
        // With the longest of everything one answer stays below what a frame may have.
        const { assert!(limits::MAX_FIND_BYTES + 256 * 1024 <= limits::MAX_FRAME_LEN) };
    }
}
