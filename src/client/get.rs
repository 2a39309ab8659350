//! How a download begins: what is wanted, where it goes, what is there already.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::agent::Agent;
use super::destination::{self, Destination};
use super::error::{AgentError, DownloadFailure};
use super::library::{Entry, EntryState};
use super::metafile;
use super::report::Started;
use super::transfer::Transfer;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::{Manifest, ManifestHead};
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::swarm::download::{Download, Swarms};
use crate::swarm::meter::Meter;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::{PieceStore, StorageError};
use crate::tracker::message::{Reply, Request};
use crate::tracker::refusal::Refusal;

/// Told bytes looked at, and bytes in all.
type Note = dyn Fn(u64, u64) + Send + Sync;

/// Where a file goes, and who is told how far looking at what is there has come.
struct Looking {
    destination: Destination,
    progress: Arc<Note>,
}

/// A download that was stopped has let go of its part file after this: what was being written is, and
/// the record says so.
const LETTING_GO: Duration = Duration::from_secs(1);

/// A file of a group.
struct Wanted {
    group: GroupName,
    id: GroupId,
    name: FileName,
    publisher: Option<UserName>,
}

impl Agent {
    /// Starts downloading a listed file. What may be there already is looked at first; `progress` is
    /// told bytes looked at and bytes in all.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get(
        &self,
        group: GroupName,
        file: Selector,
        dest: &Path,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Started, AgentError> {
        let request = Request::FindFile { group: group.clone(), file: file.clone() };
        let Reply::File(found) = self.core.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        let destination = destination::resolve(dest, &found.name)?;
        let head = ManifestHead::parse(&found.head).map_err(|_| AgentError::BadAnswer)?;
        let content = head.content_id();
        if matches!(&file, Selector::Id(id) if !id.matches(content)) {
            return Err(AgentError::BadAnswer);
        }
        self.refuse_known(SwarmKey { group: found.group, content })?;
        let mut pages = Vec::new();
        for page in 0..head.layout().page_count() {
            let request = Request::Page { group: group.clone(), content, page };
            match self.core.line.call(&request).await? {
                Reply::Page { bytes } => pages.push(bytes),
                _ => return Err(AgentError::BadAnswer),
            }
        }
        let manifest = Manifest::assemble(head, &pages).map_err(|error| AgentError::Download {
            name: found.name.to_string(),
            error: DownloadFailure::false_manifest(&error, &found.sharer),
        })?;
        let publisher = Some(found.sharer);
        let wanted = Wanted { group, id: found.group, name: found.name, publisher };
        let looking = Looking { destination, progress: Arc::new(progress) };
        self.start_download(wanted, manifest, looking, None).await
    }

    /// Starts downloading what a metafile describes; `progress` as in [`Agent::get`].
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get_metafile(
        &self,
        path: &Path,
        dest: &Path,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Started, AgentError> {
        let meta = metafile::read(path)?;
        let destination = destination::resolve(dest, &meta.name)?;
        let content = meta.manifest.content_id();
        let file = Selector::Id(content.into());
        let request = Request::FindFile { group: meta.group.clone(), file };
        let Reply::File(found) = self.core.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        self.refuse_known(SwarmKey { group: found.group, content })?;
        let places = self.core.line.places();
        let ours = |id| places.iter().any(|(known, _)| *known == id);
        let foreign = !meta.trackers.iter().any(|link| ours(link.peer_id()));
        let warning = foreign.then(|| "none of the metafile's trackers is one of yours".to_owned());
        let (group, publisher) = (meta.group, Some(found.sharer));
        let wanted = Wanted { group, id: found.group, name: meta.name, publisher };
        let looking = Looking { destination, progress: Arc::new(progress) };
        self.start_download(wanted, meta.manifest, looking, warning).await
    }

    fn refuse_known(&self, key: SwarmKey) -> Result<(), AgentError> {
        let mut library = self.core.library();
        match library.find(key) {
            Some(entry) if entry.state.is_under_way() => {
                Err(AgentError::Downloading(entry.name.to_string()))
            }
            Some(entry) if entry.state == EntryState::Seeding && !entry.store.is_changed() => {
                Err(AgentError::Have(entry.store.path()))
            }
            _ => {
                // An attempt that failed, or a file that changed, is forgotten: it lets go of its
                // part file, and peers that have the swarm open tell anew what they have.
                library.remove(key);
                drop(library);
                self.core.registry.remove_swarm(key, ErrorCode::Done);
                Ok(())
            }
        }
    }

    async fn start_download(
        &self,
        wanted: Wanted,
        manifest: Manifest,
        Looking { destination, progress }: Looking,
        warning: Option<String>,
    ) -> Result<Started, AgentError> {
        // The name may have moved to another group since the file was found.
        if self.core.ticket(&wanted.group).await? != wanted.id {
            return Err(AgentError::OtherGroup(wanted.group));
        }
        let manifest = Arc::new(manifest);
        let key = SwarmKey { group: wanted.id, content: manifest.content_id() };
        if let Some(started) = self.join_elsewhere(&wanted, key) {
            return Ok(Started { warning, ..started });
        }
        let Wanted { group, id, name, publisher } = wanted;
        let note = progress.clone();
        if let Some(started) = self.adopt(&group, key, &name, &manifest, &destination, note).await {
            return Ok(Started { warning, ..started });
        }
        let store = self.open_part(&manifest, &destination.directory, &progress).await?;
        let layout = manifest.layout();
        let stored_bytes = store.bitfield().iter().map(|piece| u64::from(layout.len(piece))).sum();
        let meter = Arc::new(Meter::new(stored_bytes));
        let path = destination.directory.join(destination.name.as_str());
        let (news_sender, news) = mpsc::channel(limits::DOWNLOAD_QUEUE);
        let stop = self.core.stop.child_token();
        let swarms = Arc::new(Swarms::new(key));
        let transfer =
            Transfer { swarms: swarms.clone(), news: news_sender.clone(), stop: stop.clone() };
        let entry = Entry {
            number: 0,
            group: group.clone(),
            name: name.clone(),
            publisher,
            store: store.clone(),
            meter: Some(meter.clone()),
            state: EntryState::Downloading,
            told: false,
            transfer: Some(transfer),
            path: Some(path.clone()),
        };
        let swarm = Swarm { key, store: store.clone(), news: Some(news_sender) };
        self.core.registry.add_swarm(Arc::new(swarm));
        let number = self.core.library().add(key, entry);
        // What is here already may have taken long to check, and much can happen meanwhile.
        if !self.core.groups().contains(id) {
            self.core.drop_entries(|entry| entry.number == number, ErrorCode::Done);
            return Err(Refusal::NotAMember(group).into());
        }
        let (reports, heard) = mpsc::channel(limits::REPORT_QUEUE);
        let download = Download {
            swarms,
            store,
            directory: destination.directory,
            name: destination.name,
            news,
            reports,
            registry: self.core.registry.clone(),
            meter,
            stop,
            seed: fastrand::u64(..),
        };
        tracing::info!(%group, %name, content = %key.content.short(), "download begins");
        let size = layout.size();
        self.core.tasks.spawn(self.core.clone().run_download(download, heard));
        let content = key.content;
        Ok(Started { number, group, name, path, content, size, stored_bytes, warning })
    }

    /// Opens the part file of a download. One that was stopped a moment ago may still have it: that
    /// lets go of it soon.
    async fn open_part(
        &self,
        manifest: &Arc<Manifest>,
        directory: &Path,
        progress: &Arc<Note>,
    ) -> Result<Arc<PieceStore>, AgentError> {
        let begun = clock::monotonic();
        loop {
            let (manifest, directory) = (manifest.clone(), directory.to_owned());
            let (progress, size) = (progress.clone(), manifest.layout().size());
            let opened = tokio::task::spawn_blocking(move || {
                PieceStore::part(manifest, &directory, &|done| progress(done, size))
            });
            match opened.await.map_err(|_| AgentError::BadAnswer)? {
                Err(StorageError::InUse(_)) if begun.elapsed() < LETTING_GO => {
                    tokio::time::sleep(LETTING_GO / 50).await;
                }
                opened => return Ok(Arc::new(opened?)),
            }
        }
    }

    /// What is here, or on its way, because of another group is stored once, and served in both.
    fn join_elsewhere(&self, wanted: &Wanted, key: SwarmKey) -> Option<Started> {
        let Wanted { group, name, publisher, .. } = wanted;
        // Held until all is in place: the other download may become complete at any moment.
        let mut library = self.core.library();
        let other = library.elsewhere(key).cloned()?;
        let (store, content) = (other.store.clone(), key.content);
        let size = store.manifest().layout().size();
        let path = other.path.clone().unwrap_or_else(|| store.path());
        let stored_bytes = other.meter.as_ref().map_or(size, |meter| meter.progress().stored_bytes);
        let news = other.transfer.as_ref().map(|transfer| {
            transfer.swarms.add(key);
            transfer.news.clone()
        });
        let is_complete = news.is_none();
        self.core.registry.add_swarm(Arc::new(Swarm { key, store, news }));
        let (group, name) = (group.clone(), name.clone());
        let entry = Entry {
            group: group.clone(),
            name: name.clone(),
            publisher: publisher.clone(),
            told: false,
            ..other
        };
        let number = library.add(key, entry);
        drop(library);
        self.core.registry.tell_again(key);
        let core = self.core.clone();
        self.core.tasks.spawn(async move {
            match is_complete {
                true => core.present(key).await,
                false => core.seek(key).await,
            }
        });
        Some(Started { number, group, name, path, content, size, stored_bytes, warning: None })
    }

    /// Serves a file that is already at the destination, if it is exactly the one wanted: a script
    /// that runs twice does not fetch twice.
    async fn adopt(
        &self,
        group: &GroupName,
        key: SwarmKey,
        name: &FileName,
        manifest: &Arc<Manifest>,
        destination: &Destination,
        progress: Arc<Note>,
    ) -> Option<Started> {
        let path = destination.directory.join(destination.name.as_str());
        let size = manifest.layout().size();
        let metadata = fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() != size {
            return None;
        }
        let (found, stamp) = self.hash(&path, move |done, size| progress(done, size)).await.ok()?;
        // Looking may have taken long, and much can happen meanwhile.
        if found.content_id() != key.content || !self.core.groups().contains(key.group) {
            return None;
        }
        let store = Arc::new(PieceStore::whole(manifest.clone(), path.clone(), stamp));
        let number = self.serve(group, key, name, store);
        // The file is here, whoever knows of it.
        self.core.present(key).await;
        let (group, name, content) = (group.clone(), name.clone(), key.content);
        let warning = None;
        Some(Started { number, group, name, path, content, size, stored_bytes: size, warning })
    }
}
