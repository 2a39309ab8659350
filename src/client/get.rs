//! How a download begins: what is wanted, where it goes, what is there already.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agent::Agent;
use super::core::blocking;
use super::crier::Cry;
use super::destination::{self, Destination};
use super::error::AgentError;
use super::library::{Entry, EntryState, Home, Library, Sight};
use super::looking::{Looking, LookingKind};
use super::metafile;
use super::report::{Notice, Started};
use super::running::{self, Found};
use super::share::Serving;
use super::transfer::Transfer;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::{ContentId, Manifest};
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::swarm::hashing::HashError;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::PieceStore;
use crate::tracker::refusal::Refusal;

/// A file of a group, and where it is to go.
pub(super) struct Wanted {
    pub(super) group: GroupName,
    pub(super) id: GroupId,
    pub(super) name: FileName,
    pub(super) publisher: Option<UserName>,
    pub(super) metafile: Option<PathBuf>,
    pub(super) to: Destination,
}

impl Agent {
    /// Starts downloading a listed file, which goes on after a restart. What may be there already is
    /// looked at first; how far that is, [`Agent::looking`] says, and it ends when this is dropped.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get(
        &self,
        group: GroupName,
        file: Selector,
        dest: &Path,
    ) -> Result<Started, AgentError> {
        let listed = self.find_file(&group, &file).await?;
        let to = resolve(dest, &listed.found.name).await?;
        let content = listed.head.content_id();
        if let Some(started) =
            self.known(SwarmKey { group: listed.found.group, content }, &to).await?
        {
            return Ok(started);
        }
        let mut manifests = self.manifests(&group, &[&listed]).await?;
        let manifest = manifests.pop().ok_or(AgentError::BadAnswer)??;
        let found = listed.found;
        let publisher = Some(found.sharer);
        let (id, name, metafile) = (found.group, found.name, None);
        let wanted = Wanted { group, id, name, publisher, metafile, to };
        self.start_download(wanted, manifest, None).await
    }

    /// Starts downloading what a metafile describes; as [`Agent::get`].
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get_metafile(&self, path: &Path, dest: &Path) -> Result<Started, AgentError> {
        let place = path.to_owned();
        let read = move || (metafile::read_file(&place), metafile::canonical(&place));
        let (meta, canonical) = blocking(read).await;
        let meta = meta?;
        let to = resolve(dest, &meta.name).await?;
        let content = meta.manifest.content_id();
        let file = Selector::Id(content.into());
        let found = self.find_file(&meta.group, &file).await?.found;
        if let Some(started) = self.known(SwarmKey { group: found.group, content }, &to).await? {
            return Ok(started);
        }
        let places = self.core.line.places();
        let ours = |id| places.iter().any(|(known, _)| *known == id);
        let foreign = !meta.trackers.iter().any(|link| ours(link.peer_id()));
        let warning = foreign.then(|| "none of the metafile's trackers is one of yours".to_owned());
        let (group, publisher) = (meta.group, Some(found.sharer));
        let (id, name, metafile) = (found.group, meta.name, Some(canonical));
        let wanted = Wanted { group, id, name, publisher, metafile, to };
        self.start_download(wanted, meta.manifest, warning).await
    }

    /// What there is already of a content that is wanted: what came back by itself is what a script
    /// that runs twice asks for. Nothing when it has to be begun.
    async fn known(&self, key: SwarmKey, to: &Destination) -> Result<Option<Started>, AgentError> {
        // One that is known to be checked for long is under way all the same.
        let _ = self.checked(|other, _| other == key).await;
        self.core.look_at_files(|other, _| other == key).await;
        self.known_seen(key, to, false).await
    }

    /// The same of one whose file was just looked at; `again` also of what was asked for before in this
    /// run.
    pub(super) async fn known_seen(
        &self,
        key: SwarmKey,
        to: &Destination,
        again: bool,
    ) -> Result<Option<Started>, AgentError> {
        let Some(mut entry) = self.core.library().find(key).cloned() else { return Ok(None) };
        if entry.state == EntryState::Paused && entry.goes_to(to) {
            let file = Selector::Id(key.content.into());
            self.resume(&entry.group, &file).await?;
            let _ = self.checked(|other, _| other == key).await;
            entry.asked = false;
        }
        let entry = {
            let mut library = self.core.library();
            let was_asked = entry.asked;
            let Some(entry) = library.find_mut(key) else { return Ok(None) };
            let usable = entry.is_served() || entry.state.is_under_way();
            if usable && entry.goes_to(to) && (again || !was_asked) {
                entry.asked = true;
                let started = started(key, entry);
                let stored_bytes = match was_asked {
                    true => entry.stored_bytes(),
                    false => started.stored_bytes,
                };
                return Ok(Some(Started { stored_bytes, ..started }));
            }
            entry.clone()
        };
        if entry.is_unseen() {
            return Err(AgentError::Checking(entry.name.to_string()));
        }
        entry.is_replaceable()?;
        // An attempt that failed, or a file that changed, is forgotten as soon as another begins.
        self.core.until_let_go(Vec::from_iter(entry.transfer)).await;
        Ok(None)
    }

    /// Waits until what came back is known, as long as a person would.
    pub(super) async fn checked(
        &self,
        which: impl Fn(SwarmKey, &Entry) -> bool,
    ) -> Result<(), AgentError> {
        let checked = self.core.until_checked(&which);
        if tokio::time::timeout(limits::LOOK_PATIENCE, checked).await.is_ok() {
            return Ok(());
        }
        let slow = self.core.library().find_where(&which).map(|entry| entry.name.to_string());
        slow.map_or(Ok(()), |name| Err(AgentError::Checking(name)))
    }

    async fn start_download(
        &self,
        wanted: Wanted,
        manifest: Manifest,
        warning: Option<String>,
    ) -> Result<Started, AgentError> {
        // The name may have moved to another group since the file was found.
        if self.core.ticket(&wanted.group).await? != wanted.id {
            return Err(AgentError::OtherGroup(wanted.group));
        }
        let key = SwarmKey { group: wanted.id, content: manifest.content_id() };
        let entry = self.begin(key, wanted, Arc::new(manifest)).await?;
        let begun = started(key, &entry);
        let Started { group, name, path, size, stored_bytes, .. } = begun.clone();
        self.core.notify(Notice::Started { group, name, path, size, stored_bytes });
        if entry.state == EntryState::Seeding {
            // It was here already.
            let Started { group, name, path, .. } = begun.clone();
            self.core.notify(Notice::Downloaded { group, name, path, of_many: false });
        }
        let not_kept = self.not_kept().await;
        let warnings: Vec<_> = warning.into_iter().chain(not_kept).collect();
        let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        Ok(Started { warning, ..begun })
    }

    async fn begin(
        &self,
        key: SwarmKey,
        wanted: Wanted,
        manifest: Arc<Manifest>,
    ) -> Result<Entry, AgentError> {
        let content = key.content;
        // In another group it may be about to go on.
        self.checked(|other, _| other.content == content).await?;
        if let Some(entry) = self.join_elsewhere(&wanted, key)? {
            return Ok(entry);
        }
        let look = self.core.looks.begin(Looking {
            kind: LookingKind::Checking,
            group: wanted.group.clone(),
            name: wanted.name.clone(),
            path: wanted.to.directory.join(wanted.to.name.as_str()),
            done_bytes: 0,
            size: manifest.layout().size(),
        });
        let found = self.core.open(&manifest, &wanted.to, look.note(), true).await;
        drop(look);
        // What is here already may have taken long to look at, and much can happen meanwhile.
        let found = match (found, self.core.library().find(key)) {
            (Err(error), None) => return Err(error.into()),
            // Somebody else may have begun the same, and have the part file.
            (Err(error), Some(entry)) => {
                return Err(entry.is_replaceable().err().unwrap_or(error.into()));
            }
            (Ok(found), _) => found,
        };
        let part = match found {
            Found::Whole(store) => return self.adopt(wanted, key, &store).await,
            Found::Part(part) => part,
        };
        let begun = self.start_with(key, wanted, manifest, &part.store());
        match &begun {
            Ok(_) => part.claim(),
            Err(_) => blocking(move || drop(part)).await,
        }
        begun
    }

    /// Begins to download into a part file that is open, unless that cannot be any more.
    fn start_with(
        &self,
        key: SwarmKey,
        wanted: Wanted,
        manifest: Arc<Manifest>,
        store: &Arc<PieceStore>,
    ) -> Result<Entry, AgentError> {
        let content = key.content;
        let (transfer, queue) = Transfer::new(&[key], &self.core.stop);
        let Wanted { group, name, publisher, metafile, to, .. } = wanted;
        let entry = Entry {
            number: 0,
            since: clock::now(),
            group: group.clone(),
            name: name.clone(),
            publisher,
            shared: false,
            metafile,
            manifest,
            home: Home::Part(to.clone()),
            sight: Sight::Unseen,
            store: Some(store.clone()),
            meter: None,
            kept_bytes: running::stored_bytes(store),
            state: EntryState::Checking,
            told: false,
            asked: true,
            waits: None,
            fresh: false,
            queued: false,
            batch: None,
            transfer: Some(transfer.clone()),
        };
        let mut library = self.core.library();
        if !self.core.groups().contains(key.group) {
            return Err(Refusal::NotAMember(group).into());
        }
        let old = library.vacate(key)?;
        if old.is_some() {
            // Peers that have the swarm open tell anew what they have.
            self.core.registry.remove_swarm(key, ErrorCode::Done);
        }
        let number = library.add(key, entry.clone());
        self.core.save_of(&library, &[key]);
        drop(library);
        tracing::info!(%group, %name, content = %content.short(), "download begins");
        self.core.start_download(&transfer, queue, store, to, None, None);
        self.drop_part_soon(content, old);
        Ok(Entry { number, ..entry })
    }

    /// What is here, or on its way, because of another group is stored once, and served in both.
    pub(super) fn join_elsewhere(
        &self,
        wanted: &Wanted,
        key: SwarmKey,
    ) -> Result<Option<Entry>, AgentError> {
        // Held until all is in place: the other download may become complete at any moment.
        let mut library = self.core.library();
        let Some(other) = library.elsewhere(key).cloned() else { return Ok(None) };
        let old = library.vacate(key)?;
        if old.is_some() {
            self.core.registry.remove_swarm(key, ErrorCode::Done);
        }
        let entry = Entry {
            since: clock::now(),
            group: wanted.group.clone(),
            name: wanted.name.clone(),
            publisher: wanted.publisher.clone(),
            metafile: wanted.metafile.clone(),
            shared: false,
            asked: true,
            told: false,
            ..other
        };
        library.add(key, entry);
        let joined = self.join(&mut library, key);
        self.core.save_of(&library, &[key]);
        drop(library);
        self.drop_part_soon(key.content, old);
        // Not what was here when the other began.
        Ok(joined.map(|entry| Entry { kept_bytes: entry.stored_bytes(), ..entry }))
    }

    /// An entry that was made of one in another group takes part in its swarm: by the download of
    /// both, or with the whole file of both.
    fn join(&self, library: &mut Library, key: SwarmKey) -> Option<Entry> {
        let entry = library.find(key)?.clone();
        let news = entry.transfer.as_ref().map(|transfer| {
            transfer.swarms.add(key);
            transfer.news.clone()
        });
        let is_complete = news.is_none();
        let store = entry.store.clone()?;
        self.core.registry.add_swarm(Arc::new(Swarm { key, store, news }));
        self.core.registry.tell_again(key);
        self.core.crier.put(key, if is_complete { Cry::HELD } else { Cry::WANTED });
        Some(entry)
    }

    /// Joins an entry to the download or file of the same content in another group, if there is one.
    pub(super) fn rejoin(&self, key: SwarmKey) -> bool {
        let mut library = self.core.library();
        let Some(other) = library.elsewhere(key).cloned() else { return false };
        let Some(entry) = library.find_mut(key) else { return false };
        let Entry { home, sight, store, meter, kept_bytes, state, transfer, .. } = other;
        (entry.home, entry.sight, entry.store, entry.meter) = (home, sight, store, meter);
        (entry.kept_bytes, entry.state, entry.transfer) = (kept_bytes, state, transfer);
        self.join(&mut library, key).is_some()
    }

    /// Serves a file that is already at the destination, being exactly the one wanted: a script that
    /// runs twice does not fetch twice.
    async fn adopt(
        &self,
        wanted: Wanted,
        key: SwarmKey,
        store: &PieceStore,
    ) -> Result<Entry, AgentError> {
        let path = store.path();
        let changed = || AgentError::Hash { path: path.clone(), error: HashError::Changed };
        let serving = Serving {
            group: wanted.group,
            name: wanted.name,
            publisher: wanted.publisher,
            manifest: store.manifest().clone(),
            path: path.clone(),
            stamp: store.stamp().ok_or_else(changed)?,
            metafile: wanted.metafile,
            shared: false,
        };
        if !self.core.groups().contains(key.group) {
            return Err(Refusal::NotAMember(serving.group).into());
        }
        let entry = self.serve(key, serving)?;
        let core = self.core.clone();
        self.core.tasks.spawn(async move {
            // What came of it before, and is of no use now.
            core.drop_part_in(key.content, wanted.to.directory).await;
        });
        // The file is here, whoever knows of it.
        self.core.present(key).await;
        Ok(entry)
    }
}

async fn resolve(dest: &Path, name: &FileName) -> Result<Destination, AgentError> {
    let (dest, name) = (dest.to_owned(), name.clone());
    blocking(move || destination::resolve(&dest, &name)).await
}

/// An answer for what was begun, now or before.
pub(super) fn started(key: SwarmKey, entry: &Entry) -> Started {
    let content: ContentId = key.content;
    Started {
        number: entry.number,
        group: entry.group.clone(),
        name: entry.name.clone(),
        path: entry.target(),
        content,
        size: entry.size(),
        // Not what came since.
        stored_bytes: entry.kept_bytes,
        warning: None,
    }
}
