//! How a file is shared: hashed, listed, served, and no longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agent::{Agent, request_id};
use super::error::AgentError;
use super::library::{Entry, EntryState};
use super::metafile;
use super::report::Shared;
use crate::error_code::ErrorCode;
use crate::manifest::Manifest;
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName, Selector};
use crate::swarm::hashing;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::PieceStore;
use crate::tracker::message::{Reply, Request};
use crate::tracker::refusal::Refusal;

/// How often a share is begun at most: twice where all goes well, and once more for each
/// connection lost in between.
const SHARE_ROUNDS: usize = 8;

impl Agent {
    /// Hashes a file, writes its metafile, lists it in a group and serves it. `progress` is told
    /// bytes hashed and bytes in all. The metafile goes to `metafile_path`, or beside the file; only
    /// in the first case is it an error when it cannot be written.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is listed then.
    pub async fn share(
        &self,
        path: &Path,
        group: GroupName,
        name: Option<FileName>,
        metafile_path: Option<PathBuf>,
        progress: impl Fn(u64, u64) + Send + 'static,
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
        let (manifest, stamp) = self.hash(path, progress).await?;
        let meta = Metainfo {
            trackers: self.core.line.places().into_iter().map(|(_, link)| link).collect(),
            group: group.clone(),
            name: name.clone(),
            manifest,
        };
        let chosen = metafile_path.is_some();
        let metafile_path = metafile_path.unwrap_or_else(|| metafile::beside(path));
        let is_new = metafile_path.symlink_metadata().is_err();
        let (metafile, warning) = match metafile::write(&metafile_path, &meta) {
            Ok(()) => (Some(metafile_path), None),
            Err(error) if chosen => return Err(error),
            Err(error) => {
                (None, Some(format!("no metafile was written ({error}); --mtorrent names another")))
            }
        };
        let manifest = Arc::new(meta.manifest);
        if let Err(error) = self.list(&group, &name, &manifest).await {
            // A metafile of something that is not listed helps nobody.
            if let Some(metafile) = metafile.filter(|_| is_new) {
                let _ = fs::remove_file(metafile);
            }
            return Err(error);
        }

        let key = SwarmKey { group: id, content: manifest.content_id() };
        let serving =
            self.core.library().find(key).is_some_and(|entry| {
                entry.state == EntryState::Seeding && !entry.store.is_changed()
            });
        if !serving {
            let store = Arc::new(PieceStore::whole(manifest.clone(), path.clone(), stamp));
            // A download of the same content that is under way is not needed any more.
            let old = {
                let mut library = self.core.library();
                library.remove(key).filter(|old| !library.holds(&old.store))
            };
            if let Some(old) = old {
                // Fails only with the runtime, whose end is the download's too.
                let _ = tokio::task::spawn_blocking(move || old.store.discard()).await;
            }
            self.serve(&group, key, &name, store);
        }
        self.core.announce(key.group, &[(key.content, true)]).await?;
        tracing::info!(%group, %name, content = %key.content.short(), "shared");
        Ok(Shared { group, name, path: path.clone(), manifest, metafile, warning })
    }

    pub(super) async fn hash(
        &self,
        path: &Path,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(Manifest, hashing::Stamp), AgentError> {
        let (owned, stop) = (path.to_owned(), self.core.stop.clone());
        let size = fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
        let hashed = tokio::task::spawn_blocking(move || {
            hashing::hash_file(&owned, &|done| {
                progress(done, size);
                !stop.is_cancelled()
            })
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

    /// Withdraws one's listing of a file, stops serving it, and stops its download.
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
        self.core.library().remove(key);
        self.core.registry.remove_swarm(key, ErrorCode::Done);
        self.core.withdraw(key).await
    }

    /// Stops sharing and downloading what a metafile describes and deletes the metafile, never
    /// the data; returns group and name.
    ///
    /// # Errors
    /// [`AgentError`]; the metafile stays then.
    pub async fn remove(&self, path: &Path) -> Result<(GroupName, FileName), AgentError> {
        let meta = metafile::read(path)?;
        let content = meta.manifest.content_id();
        match self.stop_share(meta.group.clone(), Selector::Id(content.into())).await {
            // What is over already need not be stopped.
            Ok(())
            | Err(AgentError::Refused(
                Refusal::NoSuchGroup(_) | Refusal::NotAMember(_) | Refusal::NotShared { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        fs::remove_file(path).map_err(|error| AgentError::File { path: path.to_owned(), error })?;
        Ok((meta.group, meta.name))
    }

    /// Takes part in a swarm with a whole file; returns the entry's number.
    pub(super) fn serve(
        &self,
        group: &GroupName,
        key: SwarmKey,
        name: &FileName,
        store: Arc<PieceStore>,
    ) -> u64 {
        let swarm = Swarm { key, store: store.clone(), news: None };
        self.core.registry.add_swarm(Arc::new(swarm));
        let entry = Entry {
            number: 0,
            group: group.clone(),
            name: name.clone(),
            publisher: self.user(),
            store,
            meter: None,
            state: EntryState::Seeding,
            told: false,
            transfer: None,
            path: None,
        };
        let number = self.core.library().add(key, entry);
        self.core.registry.tell_again(key);
        number
    }
}
