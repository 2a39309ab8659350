//! Brings changes of records to the disk, one after the other, and says when they are there.
//!
//! What cannot be written is kept here and tried again until it can; only the latest of each record
//! matters. Whoever puts a change never waits for the disk, unless he asks to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::record::{Place, Record};
use super::report::Notice;
use super::shelf::{Change, Changes, Kept, Owned, Shelf, ShelfError};
use crate::limits;
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::swarm::session::SwarmKey;

/// A library that cannot be written is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Pending {
    changes: Changes,
    /// Those that are just being written, which are older.
    writing: Changes,
    generation: u64,
}

impl Pending {
    /// What is not known to be on the disk, the later after the earlier.
    fn waiting(&self) -> impl Iterator<Item = (&Owned, &Change)> {
        self.writing.iter().chain(&self.changes)
    }
}

/// What came of writing so far.
#[derive(Clone, Debug, Default)]
struct Tried {
    generation: u64,
    failure: Option<String>,
}

#[derive(Debug)]
struct Inner {
    shelf: Mutex<Shelf>,
    pending: Mutex<Pending>,
    put: Notify,
    tried: watch::Sender<Tried>,
    end: CancellationToken,
}

/// Keeps records.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<Inner>);

impl Keeper {
    /// A keeper that writes to `shelf` as long as [`Self::run`] runs.
    pub fn new(shelf: Shelf) -> Self {
        Self(Arc::new(Inner {
            shelf: Mutex::new(shelf),
            pending: Mutex::default(),
            put: Notify::new(),
            tried: watch::Sender::new(Tried::default()),
            end: CancellationToken::new(),
        }))
    }

    /// What is kept of a user; blocks, also while something is being written.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn kept(&self, user: &UserName) -> Result<Vec<Kept>, ShelfError> {
        // Held while the rest is read: what is just being written is in one of them.
        let mut shelf = self.shelf();
        let mut kept = shelf.kept(user)?;
        // What was not written yet is as true as what was.
        let pending = self.pending();
        for ((_, key), change) in pending.waiting().filter(|((owner, _), _)| owner == user) {
            kept.retain(|kept| kept.key != *key);
            if let Some((record, manifest)) = change.clone() {
                kept.push(Kept { key: *key, record, manifest });
            }
        }
        kept.sort_by_key(|kept| kept.record.number);
        Ok(kept)
    }

    /// Whether anybody's record needs the part file of a content below a directory; blocks, as
    /// [`Self::kept`] does.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn needs_part(&self, content: ContentId, directory: &Path) -> Result<bool, ShelfError> {
        let mut shelf = self.shelf();
        let mut records: BTreeMap<_, _> = shelf.of_content(content)?.into_iter().collect();
        let pending = self.pending();
        for (owner, change) in pending.waiting().filter(|((_, key), _)| key.content == content) {
            match change {
                Some((record, _)) => _ = records.insert(owner.clone(), record.clone()),
                None => _ = records.remove(owner),
            }
        }
        let needs = |record: &Record| matches!(&record.place, Place::Part { directory: own, .. } if own.0 == directory);
        Ok(records.values().any(needs))
    }

    /// An account is called otherwise: what was kept of it by the name `from` is these records of
    /// `to` now, all at once. Records without a successor are only taken from `from`.
    pub fn rename(
        &self,
        from: &UserName,
        to: &UserName,
        records: impl IntoIterator<Item = (SwarmKey, Change)>,
    ) {
        let mut pending = self.pending();
        for (key, record) in records {
            pending.changes.insert((from.clone(), key), None);
            if record.is_some() {
                pending.changes.insert((to.clone(), key), record);
            }
        }
        pending.generation += 1;
        drop(pending);
        self.0.put.notify_one();
    }

    /// From now on this is what is kept of a user's share or download.
    pub fn put(&self, user: &UserName, key: SwarmKey, record: Change) {
        let mut pending = self.pending();
        pending.changes.insert((user.clone(), key), record);
        pending.generation += 1;
        drop(pending);
        self.0.put.notify_one();
    }

    /// Waits until all that was put so far is on the disk, for a disk that answers.
    ///
    /// # Errors
    /// Why it is not, in words; it is tried again.
    pub async fn written(&self) -> Result<(), String> {
        let generation = self.pending().generation;
        let mut receiver = self.0.tried.subscribe();
        let tried = receiver.wait_for(|tried| tried.generation >= generation);
        let Ok(tried) = tokio::time::timeout(limits::KEEP_PATIENCE, tried).await else {
            return Err("the disk does not answer".to_owned());
        };
        let tried = tried.expect("invariant: this end holds the sender");
        tried.failure.clone().map_or(Ok(()), Err)
    }

    /// Writes what is put until [`Self::end`]; tells when it cannot.
    pub async fn run(self, notices: broadcast::Sender<Notice>) {
        loop {
            let failing = self.0.tried.borrow().failure.is_some();
            tokio::select! {
                () = self.0.put.notified() => {}
                () = self.0.end.cancelled() => {}
                () = tokio::time::sleep(RETRY), if failing => {}
            }
            let over = self.0.end.is_cancelled();
            if let Some(message) = self.write().await
                && !failing
            {
                let notice = Notice::NotKept { message };
                tracing::warn!(%notice, "news");
                let _ = notices.send(notice);
            }
            if over {
                return;
            }
        }
    }

    /// Writes what waits; why that failed, if it did.
    async fn write(&self) -> Option<String> {
        let (changes, generation) = {
            let mut pending = self.pending();
            pending.writing = std::mem::take(&mut pending.changes);
            (pending.writing.clone(), pending.generation)
        };
        if changes.is_empty() {
            // Whoever put nothing waits for nothing.
            self.0.tried.send_if_modified(|tried| {
                let is_later = tried.generation < generation;
                tried.generation = tried.generation.max(generation);
                is_later
            });
            return None;
        }
        let (keeper, count) = (self.clone(), changes.len());
        let written = tokio::task::spawn_blocking(move || keeper.shelf().write(&changes));
        let failure = match written.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panicked) => Some(panicked.to_string()),
        };
        {
            let mut pending = self.pending();
            let mut tried = std::mem::take(&mut pending.writing);
            if failure.is_some() {
                // What was put since is later.
                tried.append(&mut pending.changes);
                pending.changes = tried;
            }
        }
        tracing::debug!(count, ?failure, "records written");
        self.0.tried.send_replace(Tried { generation, failure: failure.clone() });
        failure
    }

    /// Writes what still waits, and ends.
    pub fn end(&self) {
        self.0.end.cancel();
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::task::JoinSet;

    use super::*;
    use crate::client::record::{KeptPath, Stage};
    use crate::clock::UnixMillis;
    use crate::hash::sha1;
    use crate::id::GroupId;
    use crate::manifest::Manifest;
    use crate::piece::PieceLayout;

    fn part_of(directory: &str) -> (Record, Arc<Manifest>) {
        let layout = PieceLayout::new(0).expect("small");
        let manifest = Manifest::new(layout, sha1(b""), Vec::new()).expect("consistent");
        let record = Record {
            number: 1,
            since: UnixMillis(1),
            group: "lab".parse().expect("a name"),
            name: "f".parse().expect("a name"),
            publisher: None,
            shared: false,
            metafile: None,
            place: Place::Part {
                directory: KeptPath(directory.into()),
                name: "f".parse().expect("a name"),
                stored_bytes: 0,
                stage: Stage::Paused,
            },
        };
        (record, Arc::new(manifest))
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_until_it_can_and_is_true_all_the_same() {
        let dir = tempfile::tempdir().expect("temp dir");
        let place = dir.path().join("not mounted");
        let keeper = Keeper::new(Shelf::open(&place).expect("tried again later"));
        let (notices, mut news) = broadcast::channel(9);
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.clone().run(notices));
        keeper.written().await.expect("nothing to be written");

        let (record, manifest) = part_of("/d");
        let key = SwarmKey { group: GroupId([1; 16]), content: manifest.content_id() };
        let user = "ann".parse().expect("a name");
        keeper.put(&user, key, Some((record.clone(), manifest.clone())));
        keeper.written().await.expect_err("there is no directory");
        let notice = news.recv().await.expect("news");
        assert!(matches!(notice, Notice::NotKept { .. }), "{notice}");
        assert_eq!(keeper.kept(&user).expect("readable").len(), 1);
        keeper.put(&user, key, Some((record.clone(), manifest.clone())));
        keeper.written().await.expect_err("still not");
        assert!(news.try_recv().is_err(), "told once");

        fs::create_dir(&place).expect("made");
        let later = SwarmKey { group: GroupId([2; 16]), ..key };
        keeper.put(&user, later, Some((Record { number: 2, ..record.clone() }, manifest.clone())));
        keeper.written().await.expect("written with what waited");
        // What is put last is written before the end.
        keeper.put(&user, later, Some((Record { number: 3, ..record }, manifest)));
        keeper.end();
        while tasks.join_next().await.is_some() {}
        drop(keeper);
        let kept = Shelf::open(&place).and_then(|mut shelf| shelf.kept(&user)).expect("readable");
        let numbers: Vec<_> = kept.iter().map(|kept| kept.record.number).collect();
        assert_eq!(numbers, [1, 3]);
    }

    #[tokio::test]
    async fn whoever_put_nothing_waits_for_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let keeper = Keeper::new(Shelf::open(dir.path()).expect("made"));
        let [ann, new]: [UserName; 2] = ["ann", "ann~1a2b"].map(|n| n.parse().expect("a name"));
        keeper.rename(&ann, &new, []);
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.clone().run(broadcast::channel(1).0));
        assert_eq!(keeper.written().await, Ok(()));
        keeper.end();
        tasks.join_all().await;
    }

    #[test]
    fn a_rename_moves_all_records_in_one_step_and_part_files_are_everybodys() {
        let dir = tempfile::tempdir().expect("temp dir");
        let keeper = Keeper::new(Shelf::open(dir.path()).expect("made"));
        let (record, manifest) = part_of("/d");
        let key = |group| SwarmKey { group: GroupId([group; 16]), content: manifest.content_id() };
        let [ann, new]: [UserName; 2] = ["ann", "ann~1a2b"].map(|n| n.parse().expect("a name"));
        keeper.put(&ann, key(1), Some((record.clone(), manifest.clone())));
        keeper.put(&ann, key(2), Some((record.clone(), manifest.clone())));
        let changes = std::mem::take(&mut keeper.pending().changes);
        keeper.shelf().write(&changes).expect("written");
        let (content, d) = (manifest.content_id(), Path::new("/d"));
        assert!(keeper.needs_part(content, d).expect("readable"));
        assert!(!keeper.needs_part(content, Path::new("/e")).expect("readable"));

        keeper.rename(&ann, &new, [(key(1), Some((record, manifest.clone()))), (key(2), None)]);
        let changes = keeper.pending().changes.clone();
        assert_eq!(changes.len(), 3, "what one write does: {changes:?}");
        let kept = |user| keeper.kept(user).expect("readable").into_iter().map(|kept| kept.key);
        assert_eq!(kept(&ann).count(), 0);
        assert_eq!(kept(&new).collect::<Vec<_>>(), [key(1)]);
        keeper.put(&new, key(1), None);
        assert!(!keeper.needs_part(content, d).expect("readable"), "nobody's any more");
    }
}
