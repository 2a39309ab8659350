//! How a file is shared: hashed, listed, served, and no longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::agent::{Agent, request_id};
use super::core::Core;
use super::error::AgentError;
use super::library::{Entry, EntryState, Home, Sight};
use super::looking::{Looking, LookingKind, Note};
use super::metafile::{self, MetafileTo};
use super::report::{Notice, Shared};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::manifest::Manifest;
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName, Selector};
use crate::swarm::hashing;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::{PieceStore, StorageError, remove_part};
use crate::tracker::message::{Reply, Request};
use crate::tracker::refusal::Refusal;

/// How often a share is begun at most: twice where all goes well, and once more for each
/// connection lost in between.
const SHARE_ROUNDS: usize = 8;

/// How often, and how long after each other, the part file of a download that just ended is tried to
/// be removed: whoever reads from it keeps it open.
const REMOVING: (usize, Duration) = (30, Duration::from_millis(100));

/// A file that is about to be served.
pub(super) struct Serving {
    pub(super) group: GroupName,
    pub(super) name: FileName,
    pub(super) manifest: Arc<Manifest>,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    pub(super) metafile: Option<PathBuf>,
    /// Whether it is shared from here, rather than having been downloaded before.
    pub(super) shared: bool,
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
        let file_error = |error| AgentError::File { path: path.to_owned(), error };
        let path = &path.canonicalize().map_err(file_error)?;
        let name = match name {
            Some(name) => name,
            None => FileName::from_path(path)
                .map_err(|error| AgentError::Name { path: path.clone(), error })?,
        };
        // A refusal comes before an hour of hashing, not after.
        let id = self.core.ticket(&group).await?;
        let look = self.core.looks.begin(Looking {
            kind: LookingKind::Hashing,
            group: group.clone(),
            name: name.clone(),
            path: path.clone(),
            done_bytes: 0,
            size: fs::metadata(path).map_or(0, |metadata| metadata.len()),
        });
        let (manifest, stamp) = self.hash(path, look.note()).await?;
        drop(look);
        let meta = Metainfo {
            trackers: self.core.line.places().into_iter().map(|(_, link)| link).collect(),
            group: group.clone(),
            name: name.clone(),
            manifest,
        };
        let metafile_path = metafile.path(path, &name);
        let is_new = metafile_path.symlink_metadata().is_err();
        let (written, mut warning) = match metafile::write(&metafile_path, &meta) {
            Ok(()) => (Some(metafile_path), None),
            Err(error) if matches!(metafile, MetafileTo::File(_)) => return Err(error),
            Err(error) => {
                (None, Some(format!("no metafile was written ({error}); --mtorrent names another")))
            }
        };
        let manifest = Arc::new(meta.manifest);
        if let Err(error) = self.list(&group, &name, &manifest).await {
            // A metafile of something that is not listed helps nobody.
            if let Some(metafile) = written.filter(|_| is_new) {
                let _ = fs::remove_file(metafile);
            }
            return Err(error);
        }

        let key = SwarmKey { group: id, content: manifest.content_id() };
        let serving = Serving {
            group: group.clone(),
            name: name.clone(),
            manifest: manifest.clone(),
            path: path.clone(),
            stamp,
            metafile: written.as_deref().map(metafile::canonical),
            shared: true,
        };
        self.serve(key, serving).await;
        if let Some(not_kept) = self.not_kept().await {
            warning =
                Some(warning.map_or(not_kept.clone(), |other| format!("{other}; {not_kept}")));
        }
        self.core.announce(key.group, &[(key.content, true)]).await?;
        let size = manifest.layout().size();
        let notice =
            Notice::Shared { group: group.clone(), name: name.clone(), path: path.clone(), size };
        self.core.notify(notice);
        Ok(Shared { group, name, path: path.clone(), manifest, metafile: written, warning })
    }

    /// What a person should know when what was just done is not on the disk.
    pub(super) async fn not_kept(&self) -> Option<String> {
        let message = self.core.keeper.written().await.err()?;
        Some(format!("this cannot be kept and will not come back after a restart: {message}"))
    }

    pub(super) async fn hash(
        &self,
        path: &Path,
        note: Note,
    ) -> Result<(Manifest, Stamp), AgentError> {
        let (owned, stop) = (path.to_owned(), self.core.stop.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            hashing::hash_file(&owned, &|done| note.done(done) && !stop.is_cancelled())
        });
        let hashed = hashed.await.unwrap_or(Err(hashing::HashError::Stopped));
        hashed.map_err(|error| AgentError::Hash { path: path.to_owned(), error })
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
        let request = Request::StopShare {
            request_id: request_id(),
            group: group.clone(),
            file: file.clone(),
        };
        let local = self.core.library().select(&group, &file);
        let key = match (self.core.line.call(&request).await, local) {
            (Ok(Reply::Stopped { still_shared: true, .. }), _) => return Ok(()),
            (Ok(Reply::Stopped { group, content, .. }), _) => SwarmKey { group, content },
            // A file that was downloaded is served without being listed by us.
            (Err(AgentError::Refused(Refusal::NotShared { .. })), Some(key)) => key,
            (Err(error), _) => return Err(error),
            _ => return Err(AgentError::BadAnswer),
        };
        self.drop_entry(key).await;
        self.core.withdraw(key).await
    }

    /// Takes an entry out of the library, also over restarts: peers are told that we go, and what
    /// they are asked for, or ask for, is theirs again at once.
    async fn drop_entry(&self, key: SwarmKey) {
        let entry = self.core.library().remove(key);
        self.core.registry.remove_swarm(key, ErrorCode::GoingAway);
        self.core.save(&[key]);
        self.core.changed.notify_waiters();
        if let Some(Entry { group, name, transfer, .. }) = entry {
            self.core.until_let_go(Vec::from_iter(transfer)).await;
            self.core.notify(Notice::Stopped { group, name });
        }
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
        let file_error = |error| AgentError::File { path: path.to_owned(), error };
        let known = {
            let library = self.core.library();
            let key = library.with_metafile(&metafile::canonical(path));
            key.and_then(|key| Some((key, library.find(key)?.clone())))
        };
        let (group, name, content) = match (metafile::read(path), known) {
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
        let is_here = self.core.library().select(&group, &file).is_some();
        match self.stop_share(group.clone(), file.clone()).await {
            Ok(()) => {}
            // What is over already need not be stopped; what never was is somebody else's.
            Err(AgentError::Refused(
                Refusal::NoSuchGroup(_) | Refusal::NotAMember(_) | Refusal::NotShared { .. },
            )) if is_here => {}
            Err(AgentError::Refused(Refusal::NotShared { .. })) => {
                return Err(AgentError::NotHere { file: name.to_string(), group });
            }
            Err(error) => return Err(error),
        }
        // What is left of it here, such as a download that failed.
        let left = self.core.library().select(&group, &file);
        if let Some(key) = left {
            self.drop_entry(key).await;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error(error)),
            _ => Ok((group, name)),
        }
    }

    /// Takes part in a swarm with a whole file, in place of whatever there was; returns the entry's
    /// number.
    pub(super) async fn serve(&self, key: SwarmKey, serving: Serving) -> u64 {
        let Serving { group, name, manifest, path, stamp, metafile, shared } = serving;
        let home = Home::File { path: path.clone(), stamp };
        let old = {
            let mut library = self.core.library();
            let old = library.find_mut(key);
            if let Some(old) = old.filter(|old| old.is_served() && old.home == home) {
                // Shared again, it is the same share.
                (old.name, old.asked) = (name, true);
                old.shared |= shared;
                old.metafile = metafile.or(old.metafile.take());
                let number = old.number;
                drop(library);
                self.core.save(&[key]);
                return number;
            }
            library.remove(key)
        };
        if let Some(old) = old {
            // A download of the same content is not needed any more.
            self.drop_part(key, &old).await;
        }
        let store = Arc::new(PieceStore::whole(manifest.clone(), path, stamp));
        let swarm = Swarm { key, store: store.clone(), news: None };
        self.core.registry.add_swarm(Arc::new(swarm));
        let entry = Entry {
            number: 0,
            since: clock::now(),
            group,
            name,
            publisher: self.user(),
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
            transfer: None,
        };
        let number = self.core.library().add(key, entry);
        self.core.save(&[key]);
        self.core.registry.tell_again(key);
        self.core.changed.notify_waiters();
        number
    }

    /// Deletes the part file of an entry that was taken out of the library, unless another entry
    /// needs it; returns the bytes that the disk held for it.
    pub(super) async fn drop_part(&self, key: SwarmKey, old: &Entry) -> u64 {
        let Home::Part(to) = &old.home else { return 0 };
        self.core.until_let_go(Vec::from_iter(old.transfer.clone())).await;
        if self.core.library().needs_part(key.content, &to.directory) {
            return 0;
        }
        let (times, pause) = REMOVING;
        for _ in 0..times {
            let directory = to.directory.clone();
            let removed = tokio::task::spawn_blocking(move || remove_part(&directory, key.content));
            match removed.await {
                Ok(Ok(bytes)) => return bytes,
                Ok(Err(StorageError::InUse(_))) => tokio::time::sleep(pause).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a part file stays");
                    return 0;
                }
                // Fails only with the runtime.
                Err(_) => return 0,
            }
        }
        // Somebody is still looking at it, which may take long.
        let (core, directory) = (self.core.clone(), to.directory.clone());
        self.core.tasks.spawn(async move {
            tokio::select! {
                () = core.stop.cancelled() => {}
                () = remove_later(&core, key, &directory) => {}
            }
        });
        0
    }
}

/// Removes a part file as soon as nobody has it open, unless it is wanted again before.
async fn remove_later(core: &Core, key: SwarmKey, directory: &Path) {
    loop {
        tokio::time::sleep(REMOVING.1 * 10).await;
        if core.library().needs_part(key.content, directory) {
            return;
        }
        let part = directory.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_part(&part, key.content)).await;
        if !matches!(removed, Ok(Err(StorageError::InUse(_)))) {
            return;
        }
    }
}
