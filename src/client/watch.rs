//! Looks after what is on the disk: whole files that changed or went are served no longer, those that
//! are back as they were are served again, and part files that are back are gone on with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::core::{Core, blocking};
use super::library::{Entry, EntryState, Home, Sight};
use super::report::Notice;
use super::running::Begin;
use crate::id::GroupId;
use crate::manifest::ContentId;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::PieceStore;

/// Whoever wants to know what became of files waits so long at most; what a slower disk says is acted
/// on when it comes.
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
    /// The disk does not say, for this reason.
    Unknown(io::ErrorKind),
}

impl Core {
    /// Looks at whole files; tells of those that are not what they were, and serves those that are.
    pub(super) async fn look_at_files(self: &Arc<Self>, which: impl Fn(SwarmKey, &Entry) -> bool) {
        let mut by_directory: BTreeMap<PathBuf, Vec<Watched>> = BTreeMap::new();
        for (key, entry) in self.library().iter() {
            let Home::File { path, stamp } = &entry.home else { continue };
            if entry.state != EntryState::Seeding || !which(key, entry) {
                continue;
            }
            let (path, stamp) = (path.clone(), *stamp);
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            let store = entry.store.clone();
            by_directory.entry(directory).or_default().push(Watched { key, path, stamp, store });
        }
        let mut looks = Vec::new();
        for (directory, files) in by_directory {
            let core = self.clone();
            let work = move || files.into_iter().map(|file| (look(&file), file)).collect();
            let act = move |seen: Vec<_>| core.seen(seen);
            looks.extend(self.look_in(directory, work, act));
        }
        let all = async {
            for look in looks {
                // One that failed in itself has said so.
                let _ = look.await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("a disk does not answer yet; what it says is heard when it does");
        }
    }

    /// Takes up downloads whose part file could not be opened and is there again, as when a disk is
    /// mounted again. Waits for no disk.
    pub(super) fn look_for_parts(self: &Arc<Self>) {
        let mut by_directory: BTreeMap<PathBuf, Vec<(SwarmKey, PathBuf)>> = BTreeMap::new();
        for (key, entry) in self.library().entries_where(|_, entry| waits(entry)) {
            let path = entry.path();
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            by_directory.entry(directory).or_default().push((key, path));
        }
        for (directory, parts) in by_directory {
            let core = self.clone();
            let work = move || -> Vec<_> {
                parts.into_iter().filter(|(_, path)| path.exists()).map(|(key, _)| key).collect()
            };
            let act = move |there: Vec<SwarmKey>| {
                there.into_iter().for_each(|key| core.take_up_waiting(key));
            };
            // It goes on by itself.
            drop(self.look_in(directory, work, act));
        }
    }

    /// Goes on with a download that waits for its part file, in all groups where it is one.
    fn take_up_waiting(self: &Arc<Self>, key: SwarmKey) {
        let keys = {
            let library = self.library();
            let mut keys = library.companions(key);
            keys.retain(|key| library.find(*key).is_some_and(waits));
            keys
        };
        if !keys.is_empty() {
            self.take_up(&keys, false, Begin::Now);
        }
    }

    /// Looks at what is in a directory, as soon as there is a seat for that, and acts on what was
    /// seen, however late that is. Nothing where it is being looked at already: a disk that hangs
    /// keeps one thread, and one seat.
    fn look_in<T: Send + 'static>(
        self: &Arc<Self>,
        directory: PathBuf,
        work: impl FnOnce() -> T + Send + 'static,
        act: impl FnOnce(T) + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let turn = Turn::take(&self.watched, directory)?;
        let core = self.clone();
        Some(self.tasks.spawn(async move {
            let look = async {
                let seat = core.lookers.acquire().await;
                let seen = blocking(move || {
                    let _turn = turn;
                    work()
                });
                let seen = seen.await;
                drop(seat);
                seen
            };
            tokio::select! {
                () = core.stop.cancelled() => {}
                seen = look => act(seen),
            }
        }))
    }

    /// Acts on what was seen.
    fn seen(self: &Arc<Self>, files: Vec<(Seen, Watched)>) {
        let mut found: BTreeMap<GroupId, Vec<(ContentId, bool)>> = BTreeMap::new();
        let (mut notices, mut gone, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (seen, Watched { key, path, stamp, .. }) in files {
            let mut library = self.library();
            // What was said of a file that another has replaced since says nothing of that one.
            let looked_at = Home::File { path: path.clone(), stamp };
            let is_it = |e: &&Entry| e.state == EntryState::Seeding && e.home == looked_at;
            let Some(known) = library.find(key).filter(is_it) else { continue };
            let comes_back = matches!(seen, Seen::Here(_)) && !known.is_served();
            // Served because of another group, it is one file.
            let shared = comes_back.then(|| {
                library.of_content(key.content).into_iter().find_map(|other| {
                    let other = library.find(other).filter(|other| other.is_served())?;
                    other.store.clone().filter(|store| store.path() == path)
                })
            });
            let shared = shared.flatten();
            let Some(entry) = library.find_mut(key) else { continue };
            let (group, name) = (entry.group.clone(), entry.name.clone());
            let before = entry.sight;
            match seen {
                // A disk that is in trouble now may have what it had.
                Seen::Unknown(_) if before != Sight::Unseen => {}
                Seen::Unknown(why) => {
                    entry.sight = Sight::Unreadable(why);
                    notices.push(Notice::Missing { group, name, path });
                }
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
        // Nobody is to be sent here for files that are not served any more.
        gone.into_iter().for_each(|key| self.withdraw_soon(key));
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

/// Whether an entry waits for its part file to be there again.
fn waits(entry: &Entry) -> bool {
    let failed = matches!(entry.state, EntryState::Failed(_));
    failed && entry.waits.is_some() && entry.transfer.is_none()
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
            why => Seen::Unknown(why),
        },
    }
}
