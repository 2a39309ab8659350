//! Looks after what is on the disk: whole files that changed or went are served no longer, those that
//! are back as they were are served again, and part files that are back are gone on with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::core::Core;
use super::library::{Entry, EntryState, Home, Sight};
use super::report::Notice;
use crate::id::GroupId;
use crate::manifest::ContentId;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::PieceStore;

/// Files of one directory are looked at for so long at most; a disk that hangs is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file to be looked at.
struct Watched {
    key: SwarmKey,
    path: PathBuf,
    stamp: Stamp,
    store: Option<Arc<PieceStore>>,
}

/// What became of a file.
enum Seen {
    /// It is what it was, and looks like this.
    Here(Stamp),
    Missing,
    Changed,
    /// The disk does not say.
    Unknown,
}

impl Core {
    /// Looks at whole files; tells of those that are not what they were, and serves those that are.
    pub(super) async fn look_at_files(self: &Arc<Self>, which: impl Fn(SwarmKey, &Entry) -> bool) {
        let mut by_directory: BTreeMap<PathBuf, Vec<Watched>> = BTreeMap::new();
        for (key, entry) in self.library().entries() {
            let Home::File { path, stamp } = entry.home.clone() else { continue };
            if entry.state != EntryState::Seeding || !which(key, &entry) {
                continue;
            }
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            let store = entry.store;
            by_directory.entry(directory).or_default().push(Watched { key, path, stamp, store });
        }
        let mut looks = JoinSet::new();
        for (directory, files) in by_directory {
            // One look at a time: a disk that hangs keeps one thread, not all of them.
            let Some(turn) = Turn::take(&self.watched, directory) else { continue };
            looks.spawn_blocking(move || {
                let _turn = turn;
                files.into_iter().map(|file| (look(&file), file)).collect::<Vec<_>>()
            });
        }
        let all = async {
            while let Some(seen) = looks.join_next().await {
                self.seen(seen.unwrap_or_default());
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("a disk does not answer; its files are looked at again later");
            looks.detach_all();
        }
    }

    /// Takes up downloads whose part file could not be opened and is there again, as when a disk is
    /// mounted again.
    pub(super) async fn look_for_parts(self: &Arc<Self>) {
        let waits = |entry: &Entry| {
            let failed = matches!(entry.state, EntryState::Failed(_));
            failed && entry.waits.is_some() && entry.transfer.is_none()
        };
        let entries = self.library().entries();
        for (key, entry) in entries.into_iter().filter(|(_, entry)| waits(entry)) {
            let path = entry.path();
            let Some(turn) = Turn::take(&self.watched, path.clone()) else { continue };
            let look = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                path.exists()
            });
            if !matches!(tokio::time::timeout(PATIENCE, look).await, Ok(Ok(true))) {
                continue;
            }
            let keys = {
                let library = self.library();
                let mut keys = library.companions(key);
                keys.retain(|key| library.find(*key).is_some_and(waits));
                keys
            };
            self.take_up(&keys, false);
        }
    }

    /// Acts on what was seen.
    fn seen(self: &Arc<Self>, files: Vec<(Seen, Watched)>) {
        let mut found: BTreeMap<GroupId, Vec<(ContentId, bool)>> = BTreeMap::new();
        let (mut notices, mut gone, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (seen, Watched { key, path, .. }) in files {
            let mut library = self.library();
            // Served because of another group, it is one file.
            let shared = library.of_content(key.content).into_iter().find_map(|other| {
                let other = library.find(other).filter(|other| other.is_served())?;
                other.store.clone().filter(|store| store.path() == path)
            });
            let Some(entry) = library.find_mut(key) else { continue };
            let is_it = matches!(&entry.home, Home::File { path: now, .. } if *now == path);
            if entry.state != EntryState::Seeding || !is_it {
                continue;
            }
            let (group, name) = (entry.group.clone(), entry.name.clone());
            let before = entry.sight;
            match seen {
                Seen::Unknown => {}
                Seen::Here(_) if entry.is_served() => {}
                Seen::Here(stamp) => {
                    let whole = || PieceStore::whole(entry.manifest.clone(), path.clone(), stamp);
                    let store = shared.unwrap_or_else(|| Arc::new(whole()));
                    entry.home = Home::File { path: path.clone(), stamp };
                    (entry.sight, entry.store) = (Sight::Here, Some(store.clone()));
                    self.registry.add_swarm(Arc::new(Swarm { key, store, news: None }));
                    found.entry(key.group).or_default().push((key.content, true));
                    kept.push(key);
                    if before != Sight::Unseen {
                        notices.push(Notice::Found { group, name, path });
                    }
                }
                Seen::Missing if before == Sight::Missing => {}
                Seen::Missing => {
                    entry.sight = Sight::Missing;
                    notices.push(Notice::Missing { group, name, path });
                    gone.push(key);
                }
                Seen::Changed if before == Sight::Changed => {}
                Seen::Changed => {
                    entry.sight = Sight::Changed;
                    notices.push(Notice::Changed { group, name });
                    gone.push(key);
                }
            }
        }
        self.save(&kept);
        kept.iter().for_each(|key| self.registry.tell_again(*key));
        notices.into_iter().for_each(|notice| self.notify(notice));
        self.changed.notify_waiters();
        for (group, contents) in found {
            // Without a ticket nobody could be served; all is announced once there is one.
            if self.groups().is_proven(group) {
                let core = self.clone();
                self.tasks.spawn(async move {
                    if let Err(error) = core.announce(group, &contents).await {
                        tracing::debug!(%error, "it is announced with the next connection");
                    }
                });
            }
        }
        for key in gone {
            // Nobody is to be sent here for files that are not served any more.
            let core = self.clone();
            self.tasks.spawn(async move {
                if let Err(error) = core.withdraw(key).await {
                    tracing::debug!(%error, "withdraw failed; it ends with the connection");
                }
            });
        }
    }
}

/// The right to look at the files of a directory.
struct Turn {
    all: Arc<Mutex<BTreeSet<PathBuf>>>,
    directory: PathBuf,
}

impl Turn {
    fn take(all: &Arc<Mutex<BTreeSet<PathBuf>>>, directory: PathBuf) -> Option<Self> {
        let is_free = all.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.clone());
        is_free.then(|| Self { all: all.clone(), directory })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.directory);
    }
}

fn look(Watched { path, stamp, store, .. }: &Watched) -> Seen {
    // One that is served has its own stamp, and is marked when it is not that.
    if store.as_ref().is_some_and(|store| !store.is_changed()) {
        return Seen::Here(*stamp);
    }
    match fs::metadata(path) {
        Ok(metadata) => match Stamp::of(&metadata) {
            now if metadata.is_file() && now.is_still(stamp) => Seen::Here(now),
            _ => Seen::Changed,
        },
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Seen::Missing,
            _ => Seen::Unknown,
        },
    }
}
