//! How a file is shared: hashed, listed, served, and no longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::agent::{Agent, request_id};
use super::core::blocking;
use super::error::AgentError;
use super::library::{Entry, EntryState, Home, Sight};
use super::looking::{Looking, LookingKind, Note};
use super::metafile::{self, MetafileTo};
use super::report::{Notice, Shared};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::{ContentId, Manifest};
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::swarm::hashing;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::sidecars::NewSidecar;
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::PieceStore;
use crate::tracker::message::{Reply, Request};
use crate::tracker::refusal::Refusal;

/// How often a share is begun at most: twice where all goes well, and once more for each
/// connection lost in between.
const SHARE_ROUNDS: usize = 8;

/// A file that is about to be served.
pub(super) struct Serving {
    pub(super) group: GroupName,
    pub(super) name: FileName,
    pub(super) publisher: Option<UserName>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    pub(super) metafile: Option<PathBuf>,
    /// Whether it is shared from here, rather than having been downloaded before.
    pub(super) shared: bool,
}

/// A file that was hashed to be shared.
struct Hashed {
    meta: Metainfo,
    path: PathBuf,
    stamp: Stamp,
    sidecar: Option<NewSidecar>,
}

impl Agent {
    /// Hashes a file, writes its metafile, lists it in a group and serves it, also after a restart.
    /// How far hashing is, [`Agent::looking`] says; it ends when this is dropped. Only a metafile
    /// whose path was chosen must be written.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is listed then.
    pub async fn share(
        &self,
        path: &Path,
        group: GroupName,
        name: Option<FileName>,
        metafile: MetafileTo,
    ) -> Result<Shared, AgentError> {
        // A refusal comes before an hour of hashing, not after.
        let id = self.core.ticket(&group).await?;
        let hashed = self.hashed(path, group, name).await?;
        // Listed and not served, or half written, it helps nobody.
        let agent = self.clone();
        let publishing = async move { agent.publish(id, hashed, metafile).await };
        self.core.to_the_end(publishing).await
    }

    /// Shares several files in one group, each as [`Agent::share`] does: they are hashed one after the
    /// other and listed side by side, and what goes wrong with one keeps no other from being shared.
    ///
    /// # Errors
    /// [`AgentError`] when nothing can be shared in the group.
    pub async fn share_many(
        &self,
        paths: &[PathBuf],
        group: GroupName,
        metafile: &MetafileTo,
    ) -> Result<Vec<Result<Shared, AgentError>>, AgentError> {
        let id = self.core.ticket(&group).await?;
        let turns = Arc::new(Semaphore::new(limits::MAX_UNFINISHED_SHARES));
        let mut listing = JoinSet::new();
        let mut all: Vec<_> = paths.iter().map(|_| None).collect();
        for (number, path) in paths.iter().enumerate() {
            let turn = turns.clone().acquire_owned().await;
            let hashed = match self.hashed(path, group.clone(), None).await {
                Ok(hashed) => hashed,
                Err(error) => {
                    all[number] = Some(Err(error));
                    continue;
                }
            };
            let (agent, to) = (self.clone(), metafile.clone());
            let publishing = async move { agent.publish(id, hashed, to).await };
            let core = self.core.clone();
            listing.spawn(async move {
                let shared = core.to_the_end(publishing).await;
                drop(turn);
                (number, shared)
            });
        }
        while let Some(listed) = listing.join_next().await {
            let (number, shared) = listed.map_err(|_| AgentError::BadAnswer)?;
            all[number] = Some(shared);
        }
        Ok(all.into_iter().map(|one| one.unwrap_or(Err(AgentError::BadAnswer))).collect())
    }

    /// Hashes a file that is to be shared.
    async fn hashed(
        &self,
        path: &Path,
        group: GroupName,
        name: Option<FileName>,
    ) -> Result<Hashed, AgentError> {
        let (given, error_path) = (path.to_owned(), path.to_owned());
        let found = move || Ok((given.canonicalize()?, fs::metadata(&given)?.len()));
        let file_error = |error| AgentError::File { path: error_path, error };
        let (path, size) = blocking(found).await.map_err(file_error)?;
        let name = match name {
            Some(name) => name,
            None => FileName::from_path(&path)
                .map_err(|error| AgentError::Name { path: path.clone(), error })?,
        };
        let look = self.core.looks.begin(Looking {
            kind: LookingKind::Hashing,
            group: group.clone(),
            name: name.clone(),
            path: path.clone(),
            done_bytes: 0,
            size,
        });
        let (manifest, stamp, sidecar) = self.hash(&path, size, look.note()).await?;
        drop(look);
        let trackers = self.core.line.places().into_iter().map(|(_, link)| link).collect();
        Ok(Hashed { meta: Metainfo { trackers, group, name, manifest }, path, stamp, sidecar })
    }

    /// Lists a file that was hashed, and serves it.
    async fn publish(
        &self,
        id: GroupId,
        Hashed { meta, path, stamp, sidecar }: Hashed,
        to: MetafileTo,
    ) -> Result<Shared, AgentError> {
        let metafile = to.path(&path, &meta.name);
        let (place, text) = (metafile.clone(), meta.clone());
        let (unnamed, mut warning) = match blocking(move || metafile::write(&place, &text)).await {
            Ok(unnamed) => (Some(unnamed), None),
            Err(error) if matches!(to, MetafileTo::File(_)) => return Err(error),
            Err(error) => (None, Some(not_written(&error))),
        };
        let Metainfo { group, name, manifest, .. } = meta;
        let manifest = Arc::new(manifest);
        // A metafile of something that is not listed helps nobody: it is dropped with an error.
        self.list(&group, &name, &manifest).await?;
        let mut known = None;
        if let Some(unnamed) = unnamed {
            match blocking(move || unnamed.name()).await {
                Ok(path) => known = Some(path),
                Err(error) => warning = Some(not_written(&error)),
            }
        }
        let key = SwarmKey { group: id, content: manifest.content_id() };
        let written = known.is_some().then_some(metafile);
        let serving = Serving {
            group: group.clone(),
            name: name.clone(),
            publisher: self.user(),
            manifest: manifest.clone(),
            path: path.clone(),
            stamp,
            metafile: known,
            shared: true,
        };
        self.serve(key, serving)?;
        if let Some(sidecar) = sidecar {
            blocking(move || sidecar.keep(key.content)).await;
        }
        if let Some(not_kept) = self.not_kept().await {
            warning =
                Some(warning.map_or(not_kept.clone(), |other| format!("{other}; {not_kept}")));
        }
        // It is listed and served by now, whoever has heard of it.
        self.core.present(key).await;
        let size = manifest.layout().size();
        let notice =
            Notice::Shared { group: group.clone(), name: name.clone(), path: path.clone(), size };
        self.core.notify(notice);
        Ok(Shared { group, name, path, manifest, metafile: written, warning })
    }

    /// What a person should know when what was just done is not on the disk.
    pub(super) async fn not_kept(&self) -> Option<String> {
        let message = self.core.keeper.written().await.err()?;
        Some(format!("this cannot be kept and will not come back after a restart: {message}"))
    }

    async fn hash(
        &self,
        path: &Path,
        size: u64,
        note: Note,
    ) -> Result<(Manifest, Stamp, Option<NewSidecar>), AgentError> {
        let (owned, stop) = (path.to_owned(), self.core.stop.clone());
        let sidecars = self.core.registry.sidecars().clone();
        let hashed = blocking(move || {
            let goes_on = |done| note.done(done) && !stop.is_cancelled();
            let new = sidecars.begin(size);
            let (manifest, stamp) = hashing::hash_and_mark(&owned, new.as_ref(), &goes_on)?;
            Ok((manifest, stamp, new))
        });
        hashed.await.map_err(|error| AgentError::Hash { path: path.to_owned(), error })
    }

    /// Lists a manifest in a group, putting the pages the tracker lacks.
    async fn list(
        &self,
        group: &GroupName,
        name: &FileName,
        manifest: &Manifest,
    ) -> Result<(), AgentError> {
        let share = Request::Share {
            request_id: request_id(),
            group: group.clone(),
            name: name.clone(),
            head: manifest.head().encode(),
        };
        for _ in 0..SHARE_ROUNDS {
            match self.core.line.call(&share).await? {
                Reply::Shared { .. } => return Ok(()),
                Reply::PagesMissing { pages } => {
                    for page in pages {
                        let bytes = manifest.page(page);
                        let put = Request::PutPage { content: manifest.content_id(), page, bytes };
                        match self.core.line.call(&put).await {
                            Ok(_) => {}
                            // Another connection is in use now, where it is begun anew.
                            Err(AgentError::Refused(Refusal::NoSuchShare(_))) => break,
                            Err(error) => return Err(error),
                        }
                    }
                }
                _ => return Err(AgentError::BadAnswer),
            }
        }
        Err(AgentError::BadAnswer)
    }

    /// Withdraws one's listing of a file, stops serving it, and stops its download. Data and part
    /// files stay.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn stop_share(&self, group: GroupName, file: Selector) -> Result<(), AgentError> {
        let agent = self.clone();
        self.core.to_the_end(async move { agent.do_stop_share(group, file).await }).await
    }

    async fn do_stop_share(&self, group: GroupName, file: Selector) -> Result<(), AgentError> {
        let request = Request::StopShare {
            request_id: request_id(),
            group: group.clone(),
            file: file.clone(),
        };
        let key = match self.core.line.call(&request).await {
            Ok(Reply::Stopped { still_shared: true, .. }) => return Ok(()),
            Ok(Reply::Stopped { group, content, .. }) => SwarmKey { group, content },
            // A file that was downloaded is served without being listed by us.
            Err(refused @ AgentError::Refused(Refusal::NotShared { .. })) => {
                let local = self.core.library().select(&group, &file)?;
                local.ok_or(refused)?
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(AgentError::BadAnswer),
        };
        self.drop_entry(key).await;
        self.core.withdraw_soon(key);
        Ok(())
    }

    /// Takes an entry out of the library, also over restarts: peers are told that we go, and what
    /// they are asked for, or ask for, is theirs again at once.
    async fn drop_entry(&self, key: SwarmKey) {
        let entry = {
            let mut library = self.core.library();
            let entry = library.remove(key);
            self.core.save_of(&library, &[key]);
            entry
        };
        self.core.registry.remove_swarm(key, ErrorCode::GoingAway);
        self.core.changed.notify_waiters();
        if let Some(Entry { group, name, transfer, .. }) = entry {
            self.core.until_let_go(Vec::from_iter(transfer)).await;
            self.core.notify(Notice::Stopped { group, name });
        }
        self.core.drop_sidecar(key.content).await;
        // Where it cannot be written, a notice says so.
        let _ = self.core.keeper.written().await;
    }

    /// Stops sharing and downloading what a metafile describes, forgets it and deletes the metafile,
    /// never the data; returns group and name. The metafile may be gone already, if it is that of a
    /// share or download of ours.
    ///
    /// # Errors
    /// [`AgentError`]; the metafile stays then.
    pub async fn remove(&self, path: &Path) -> Result<(GroupName, FileName), AgentError> {
        let (agent, path) = (self.clone(), path.to_owned());
        self.core.to_the_end(async move { agent.do_remove(path).await }).await
    }

    async fn do_remove(&self, path: PathBuf) -> Result<(GroupName, FileName), AgentError> {
        let place = path.clone();
        let read = move || (metafile::canonical(&place), metafile::read_file(&place));
        let (canonical, read) = blocking(read).await;
        let known = {
            let library = self.core.library();
            let key = library.with_metafile(&canonical);
            key.and_then(|key| Some((key, library.find(key)?.clone())))
        };
        let (group, name, content) = match (read, known) {
            // The group may be called otherwise by now.
            (Ok(meta), Some((key, entry))) if key.content == meta.manifest.content_id() => {
                (entry.group, entry.name, key.content)
            }
            (Ok(meta), _) => (meta.group, meta.name, meta.manifest.content_id()),
            (Err(AgentError::File { error, .. }), Some((key, entry)))
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                (entry.group, entry.name, key.content)
            }
            // What is no metafile any more is not ours to delete.
            (Err(error), _) => return Err(error),
        };
        let file = Selector::Id(content.into());
        let is_here = self.core.library().select(&group, &file)?.is_some();
        match self.do_stop_share(group.clone(), file.clone()).await {
            Ok(()) => {}
            // What is over already need not be stopped: a metafile of no group is of use to nobody.
            Err(AgentError::Refused(Refusal::NoSuchGroup(_))) => {}
            // What never was ours is somebody else's.
            Err(AgentError::Refused(Refusal::NotAMember(_) | Refusal::NotShared { .. }))
                if is_here => {}
            Err(AgentError::Refused(Refusal::NotShared { .. })) => {
                return Err(AgentError::NotHere { file: name.to_string(), group });
            }
            Err(error) => return Err(error),
        }
        // What is left of it here, such as a download that failed.
        let left = self.core.library().select(&group, &file)?;
        if let Some(key) = left {
            self.drop_entry(key).await;
        }
        let removed = blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(AgentError::File { path, error })
            }
            _ => Ok(()),
        });
        removed.await.map(|()| (group, name))
    }

    /// Takes part in a swarm with a whole file, in place of whatever there was; returns what is
    /// served. A part file that is not needed any more is deleted afterwards.
    ///
    /// # Errors
    /// [`Refusal::NotLoggedIn`]: nobody is there any more to serve it for.
    pub(super) fn serve(&self, key: SwarmKey, serving: Serving) -> Result<Entry, AgentError> {
        let Serving { group, name, publisher, manifest, path, stamp, metafile, shared } = serving;
        let home = Home::File { path: path.clone(), stamp };
        let mut library = self.core.library();
        if library.user().is_none() {
            return Err(Refusal::NotLoggedIn.into());
        }
        let same = |old: &&mut Entry| old.is_served() && old.home == home;
        if let Some(old) = library.find_mut(key).filter(same) {
            // Shared again, it is the same share.
            (old.name, old.asked) = (name, true);
            if shared {
                (old.shared, old.publisher) = (true, publisher);
            }
            old.metafile = metafile.or(old.metafile.take());
            let entry = old.clone();
            self.core.save_of(&library, &[key]);
            return Ok(entry);
        }
        let old = library.remove(key);
        let store = Arc::new(PieceStore::whole(manifest.clone(), path, stamp));
        self.core.registry.unwant(key);
        let swarm = Swarm { key, store: store.clone(), news: None };
        self.core.registry.add_swarm(Arc::new(swarm));
        let entry = Entry {
            number: 0,
            since: clock::now(),
            group,
            name,
            publisher,
            shared,
            metafile,
            kept_bytes: manifest.layout().size(),
            manifest,
            home,
            sight: Sight::Here,
            store: Some(store),
            meter: None,
            state: EntryState::Seeding,
            told: false,
            asked: true,
            waits: None,
            fresh: false,
            queued: false,
            batch: None,
            transfer: None,
        };
        let number = library.add(key, entry.clone());
        self.core.save_of(&library, &[key]);
        drop(library);
        self.core.registry.tell_again(key);
        self.core.changed.notify_waiters();
        self.drop_part_soon(key.content, old);
        Ok(Entry { number, ..entry })
    }

    /// Deletes the part file of an entry in whose place there is another one now, unless it is needed.
    pub(super) fn drop_part_soon(&self, content: ContentId, old: Option<Entry>) {
        if let Some(old) = old.filter(|old| matches!(old.home, Home::Part(_))) {
            let core = self.core.clone();
            self.core.tasks.spawn(async move { core.drop_part(content, &old).await });
        }
    }
}

fn not_written(error: &AgentError) -> String {
    format!("no metafile was written ({error}); --mtorrent names another")
}
