//! The agent: what a user can do, as functions. Shells, scripts and programs all call these.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::data_dir;
use super::destination::{self, Destination};
use super::error::{AgentError, DownloadFailure};
use super::library::{Entry, EntryState, Library};
use super::line::{LineEvent, TrackerLine};
use crate::clock::UnixMillis;
use crate::error_code::ErrorCode;
use crate::id::{GroupId, RequestId};
use crate::limits;
use crate::manifest::{ContentId, Manifest, ManifestHead};
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::swarm::download::{Download, DownloadError, Meter, Progress};
use crate::swarm::hashing;
use crate::swarm::hub::Hub;
use crate::swarm::registry::Registry;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::PieceStore;
use crate::swarm::trust::Trust;
use crate::tracker::message::{
    FileCursor, FileRow, GroupRow, MemberRow, Password, Push, Refusal, Reply, Request, RequestRow,
};
use crate::tracker_link::TrackerInfo;
use crate::transport::endpoint::{Endpoint, any_address};
use crate::transport::identity::{FILE_NAME as IDENTITY_FILE, Identity};
use crate::transport::tls::Alpn;

/// How often tickets are looked at for renewal.
const RENEWAL_CHECK: Duration = Duration::from_secs(15);

/// A lost tracker is dialled again after this, twice as long each time up to the second.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where it keeps its identity; one agent at a time.
    pub data_dir: PathBuf,
    /// The trackers, in the order they are tried.
    pub trackers: TrackerInfo,
    /// The UDP address; all addresses and a free port when not given.
    pub listen: Option<SocketAddr>,
}

/// A finished `share`.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its metafile, if one could be written.
    pub metafile: Option<PathBuf>,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// An accepted `get`.
#[derive(Clone, Debug)]
pub struct Started {
    /// The download's number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where it will be.
    pub directory: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Bytes there already, of an earlier attempt.
    pub stored_bytes: u64,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// One row of `downloads`.
#[derive(Clone, Debug)]
pub struct DownloadRow {
    /// Its number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where its bytes are now.
    pub path: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Where it is in its life.
    pub state: EntryState,
    /// How far it is, and who gave what.
    pub progress: Progress,
    /// Bytes sent to others.
    pub uploaded_bytes: u64,
    /// Whether the file was found changed and is no longer served.
    pub changed: bool,
}

/// A running agent.
#[derive(Clone, Debug)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    endpoint: Endpoint,
    registry: Arc<Registry>,
    hub: Hub,
    line: TrackerLine,
    trackers: TrackerInfo,
    library: Mutex<Library>,
    /// Groups we hold tickets for, with the tracker time to renew each.
    groups: Mutex<HashMap<GroupName, (GroupId, UnixMillis)>>,
    /// Notified when an entry's state changes.
    changed: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Held as long as the agent lives.
    _lock: File,
}

impl Agent {
    /// Starts an agent on its data directory. Needs a tokio runtime; does not wait for a tracker.
    ///
    /// # Errors
    /// [`AgentError`] when the directory is in use, the identity bad or the socket taken.
    pub fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let lock = data_dir::lock(&config.data_dir)?;
        let identity = Identity::load_or_create(&config.data_dir.join(IDENTITY_FILE))?;
        let listen = config.listen.unwrap_or_else(|| any_address(0));
        let endpoint = Endpoint::bind(Arc::new(identity), listen, Alpn::Peer)?;
        let trackers = config.trackers;
        let trust = Trust::new(trackers.links().iter().map(|link| link.peer_id()));
        let registry = Arc::new(Registry::new(trust));
        let hub = Hub::start(endpoint.clone(), registry.clone());
        let (events, queue) = mpsc::channel(limits::CONTROL_QUEUE);
        let tasks = TaskTracker::new();
        let line = TrackerLine::new(endpoint.clone(), trackers.clone(), events, tasks.clone());
        let inner = Arc::new(Inner {
            data_dir: config.data_dir,
            endpoint,
            registry,
            hub,
            line,
            trackers,
            library: Mutex::default(),
            groups: Mutex::default(),
            changed: Notify::new(),
            stop: CancellationToken::new(),
            tasks: tasks.clone(),
            _lock: lock,
        });
        tasks.spawn(inner.clone().hear(queue));
        tasks.spawn(inner.clone().renew_tickets());
        Ok(Self { inner })
    }

    /// This device's peer id.
    pub fn peer_id(&self) -> PeerId {
        self.inner.endpoint.identity().peer_id()
    }

    /// Where this agent keeps its identity.
    pub fn data_dir(&self) -> &Path {
        &self.inner.data_dir
    }

    /// The user logged in.
    pub fn user(&self) -> Option<UserName> {
        self.inner.line.user()
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_user(&self, user: UserName, password: Password) -> Result<(), AgentError> {
        self.done(Request::CreateUser { request_id: request_id(), user, password }).await
    }

    /// Logs in. As the user one already is, is fine.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn login(&self, user: UserName, password: Password) -> Result<(), AgentError> {
        if let Some(other) = self.user().filter(|other| *other != user) {
            return Err(Refusal::LoggedInAs(other).into());
        }
        match self.inner.line.call(&Request::Login { user, password }).await? {
            Reply::LoggedIn { user } => {
                self.inner.line.set_user(Some(user));
                Ok(())
            }
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Logs out and stops all sharing and downloading; returns how many of them there were.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn logout(&self) -> Result<usize, AgentError> {
        self.done(Request::Logout).await?;
        self.inner.line.set_user(None);
        Ok(self.inner.drop_entries(|_| true, ErrorCode::LoggedOut))
    }

    /// Makes a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_group(&self, group: GroupName, hidden: bool) -> Result<(), AgentError> {
        self.done(Request::CreateGroup { request_id: request_id(), group, hidden }).await
    }

    /// All groups one may see.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_groups(&self) -> Result<Vec<GroupRow>, AgentError> {
        let mut all: Vec<GroupRow> = Vec::new();
        loop {
            let after = all.last().map(|row| row.name.clone());
            let Reply::Groups { rows, more } =
                self.inner.line.call(&Request::ListGroups { after }).await?
            else {
                return Err(AgentError::BadAnswer);
            };
            let go_on = more && !rows.is_empty();
            all.extend(rows);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// Asks to join a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn join_group(&self, group: GroupName) -> Result<(), AgentError> {
        self.done(Request::JoinGroup { request_id: request_id(), group }).await
    }

    /// Leaves a group and its swarms.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn leave_group(&self, group: GroupName) -> Result<(), AgentError> {
        let request = Request::LeaveGroup { request_id: request_id(), group: group.clone() };
        self.done(request).await?;
        self.inner.drop_entries(|entry| entry.group == group, ErrorCode::Done);
        if let Some((id, _)) = self.inner.groups().remove(&group) {
            self.inner.registry.forget_ticket(id);
        }
        Ok(())
    }

    /// Who asks to join a group one owns.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_requests(&self, group: GroupName) -> Result<Vec<RequestRow>, AgentError> {
        match self.inner.line.call(&Request::ListRequests { group }).await? {
            Reply::Requests { rows } => Ok(rows),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Lets somebody in.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn accept_request(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::AcceptRequest { request_id: request_id(), group, user }).await
    }

    /// Turns somebody away.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn reject_request(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::RejectRequest { request_id: request_id(), group, user }).await
    }

    /// All members of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_members(&self, group: GroupName) -> Result<Vec<MemberRow>, AgentError> {
        let mut all: Vec<MemberRow> = Vec::new();
        loop {
            let after = all.last().map(|row| row.user.clone());
            let request = Request::ListMembers { group: group.clone(), after };
            let Reply::Members { rows, more } = self.inner.line.call(&request).await? else {
                return Err(AgentError::BadAnswer);
            };
            let go_on = more && !rows.is_empty();
            all.extend(rows);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// All files of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_files(&self, group: GroupName) -> Result<Vec<FileRow>, AgentError> {
        self.files(|after| Request::ListFiles { group: group.clone(), after }).await
    }

    /// Files of all one's groups whose name contains `pattern`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn search(&self, pattern: &str) -> Result<Vec<FileRow>, AgentError> {
        self.files(|after| Request::Search { pattern: pattern.to_owned(), after }).await
    }

    async fn files(
        &self,
        request: impl Fn(Option<FileCursor>) -> Request,
    ) -> Result<Vec<FileRow>, AgentError> {
        let mut all: Vec<FileRow> = Vec::new();
        loop {
            let after = all.last().map(|row| FileCursor {
                group: row.group.clone(),
                name: row.name.clone(),
                content: row.content,
            });
            let Reply::Files { rows, more } = self.inner.line.call(&request(after)).await? else {
                return Err(AgentError::BadAnswer);
            };
            let go_on = more && !rows.is_empty();
            all.extend(rows);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// Hashes a file, writes its metafile, lists it in a group and serves it. `progress` is told
    /// bytes hashed and bytes in all. The metafile goes to `metafile`, or beside the file; only
    /// in the first case is it an error when it cannot be written.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is listed then.
    pub async fn share(
        &self,
        path: &Path,
        group: GroupName,
        name: Option<FileName>,
        metafile: Option<PathBuf>,
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
        let id = self.inner.ticket(&group).await?;
        let (manifest, stamp) = self.hash(path, progress).await?;
        let manifest = Arc::new(manifest);

        let meta = Metainfo {
            trackers: self.inner.trackers.links().to_vec(),
            group: group.clone(),
            name: name.clone(),
            manifest: (*manifest).clone(),
        };
        let chosen = metafile.is_some();
        let metafile = metafile.unwrap_or_else(|| beside(path));
        let written = write_metafile(&metafile, &meta);
        let (metafile, warning) = match written {
            Ok(()) => (Some(metafile), None),
            Err(error) if chosen => return Err(error),
            Err(error) => (None, Some(format!("no metafile was written: {error}"))),
        };
        self.list(&group, &name, &manifest).await?;

        let key = SwarmKey { group: id, content: manifest.content_id() };
        let known = self.inner.library().find(key).map(|entry| entry.state.clone());
        if !known.is_some_and(|state| state == EntryState::Seeding) {
            let store = Arc::new(PieceStore::whole(manifest.clone(), path.clone(), stamp));
            // A download of the same content that is under way is not needed any more.
            if let Some(old) = self.inner.library().remove(key) {
                old.store.discard();
            }
            let swarm = Swarm { key, store: store.clone(), news: None };
            self.inner.registry.add_swarm(Arc::new(swarm));
            let entry = Entry {
                number: 0,
                group: group.clone(),
                name: name.clone(),
                publisher: self.user(),
                store,
                meter: None,
                state: EntryState::Seeding,
                stop: CancellationToken::new(),
            };
            self.inner.library().add(key, entry);
        }
        self.inner.announce(&group, &[(key.content, true)]).await?;
        tracing::info!(%group, %name, content = %key.content.short(), "shared");
        Ok(Shared { group, name, path: path.clone(), manifest, metafile, warning })
    }

    async fn hash(
        &self,
        path: &Path,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(Manifest, hashing::Stamp), AgentError> {
        let (owned, stop) = (path.to_owned(), self.inner.stop.clone());
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
        // Twice, and once more when the connection was lost in between.
        for _ in 0..3 {
            match self.inner.line.call(&share).await? {
                Reply::Shared { .. } => return Ok(()),
                Reply::PagesMissing { pages } => {
                    for page in pages {
                        let bytes = manifest.page(page);
                        let put = Request::PutPage { content: manifest.content_id(), page, bytes };
                        match self.inner.line.call(&put).await {
                            Ok(_) => {}
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

    /// Withdraws one's listing of a file and stops serving it; returns its name.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn stop_share(&self, group: GroupName, file: Selector) -> Result<(), AgentError> {
        let request = Request::StopShare {
            request_id: request_id(),
            group: group.clone(),
            file: file.clone(),
        };
        let local = self.inner.library().select(&group, &file);
        let key = match (self.inner.line.call(&request).await, local) {
            (Ok(Reply::Stopped { still_shared: true, .. }), _) => return Ok(()),
            (Ok(Reply::Stopped { group, content, .. }), _) => SwarmKey { group, content },
            // A file that was downloaded is served without being listed by us.
            (Err(AgentError::Refused(Refusal::NotShared { .. })), Some(key)) => key,
            (Err(error), _) => return Err(error),
            _ => return Err(AgentError::BadAnswer),
        };
        self.inner.library().remove(key);
        self.inner.registry.remove_swarm(key, ErrorCode::Done);
        let contents = vec![key.content];
        self.done(Request::Withdraw { group, contents }).await
    }

    /// Starts downloading a listed file.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get(
        &self,
        group: GroupName,
        file: Selector,
        dest: &Path,
    ) -> Result<Started, AgentError> {
        let request = Request::FindFile { group: group.clone(), file };
        let Reply::File(found) = self.inner.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        let destination = destination::resolve(dest, &found.name)?;
        let head = ManifestHead::parse(&found.head).map_err(|_| AgentError::BadAnswer)?;
        let content = head.content_id();
        self.refuse_known(SwarmKey { group: found.group, content })?;
        let mut pages = Vec::new();
        for page in 0..head.layout().page_count() {
            let request = Request::Page { group: group.clone(), content, page };
            match self.inner.line.call(&request).await? {
                Reply::Page { bytes } => pages.push(bytes),
                _ => return Err(AgentError::BadAnswer),
            }
        }
        let manifest = Manifest::assemble(head, &pages).map_err(|error| AgentError::Download {
            name: found.name.to_string(),
            error: DownloadFailure { code: "false-manifest", message: error.to_string() },
        })?;
        self.start_download(group, found.name, Some(found.sharer), manifest, destination, None)
            .await
    }

    /// Starts downloading what a metafile describes.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left behind then.
    pub async fn get_metafile(&self, metafile: &Path, dest: &Path) -> Result<Started, AgentError> {
        let meta = read_metafile(metafile)?;
        let destination = destination::resolve(dest, &meta.name)?;
        let content = meta.manifest.content_id();
        let file = Selector::Id(content.into());
        let request = Request::FindFile { group: meta.group.clone(), file };
        let Reply::File(found) = self.inner.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        self.refuse_known(SwarmKey { group: found.group, content })?;
        let ours = |link| self.inner.trackers.find(link).is_some();
        let foreign = !meta.trackers.iter().any(|link| ours(link.peer_id()));
        let warning = foreign.then(|| "none of the metafile's trackers is one of yours".to_owned());
        let publisher = Some(found.sharer);
        self.start_download(meta.group, meta.name, publisher, meta.manifest, destination, warning)
            .await
    }

    fn refuse_known(&self, key: SwarmKey) -> Result<(), AgentError> {
        let library = self.inner.library();
        match library.find(key) {
            Some(entry) if entry.state.is_under_way() => {
                Err(AgentError::Downloading(entry.name.to_string()))
            }
            Some(entry) if entry.state == EntryState::Seeding && !entry.store.is_changed() => {
                Err(AgentError::Have(entry.store.path()))
            }
            _ => Ok(()),
        }
    }

    async fn start_download(
        &self,
        group: GroupName,
        name: FileName,
        publisher: Option<UserName>,
        manifest: Manifest,
        destination: Destination,
        warning: Option<String>,
    ) -> Result<Started, AgentError> {
        let id = self.inner.ticket(&group).await?;
        let manifest = Arc::new(manifest);
        let key = SwarmKey { group: id, content: manifest.content_id() };
        let directory = destination.directory.clone();
        let opened = manifest.clone();
        let store =
            tokio::task::spawn_blocking(move || PieceStore::part(opened, &directory, &|_| {}));
        let store = Arc::new(store.await.map_err(|_| AgentError::BadAnswer)??);
        let layout = manifest.layout();
        let stored_bytes = store.bitfield().iter().map(|piece| u64::from(layout.len(piece))).sum();
        let meter = Arc::new(Meter::new(stored_bytes));
        let (news_sender, news) = mpsc::channel(limits::DOWNLOAD_QUEUE);
        let stop = self.inner.stop.child_token();
        let entry = Entry {
            number: 0,
            group: group.clone(),
            name: name.clone(),
            publisher,
            store: store.clone(),
            meter: Some(meter.clone()),
            state: EntryState::Downloading,
            stop: stop.clone(),
        };
        let swarm = Swarm { key, store: store.clone(), news: Some(news_sender) };
        self.inner.registry.add_swarm(Arc::new(swarm));
        let number = self.inner.library().add(key, entry);
        let (peers_wanted, wanted) = mpsc::channel(1);
        let download = Download {
            key,
            store,
            news,
            peers_wanted,
            registry: self.inner.registry.clone(),
            meter,
            stop,
            seed: fastrand::u64(..),
        };
        tracing::info!(%group, %name, content = %key.content.short(), "download begins");
        let (directory, size) = (destination.directory.clone(), layout.size());
        let work = self.inner.clone().run_download(group.clone(), download, destination, wanted);
        self.inner.tasks.spawn(work);
        let content = key.content;
        Ok(Started { number, group, name, directory, content, size, stored_bytes, warning })
    }

    /// Everything shared and downloaded, in the order it was begun.
    pub fn downloads(&self) -> Vec<DownloadRow> {
        let entries = self.inner.library().entries();
        entries
            .into_iter()
            .map(|(key, entry)| {
                let size = entry.store.manifest().layout().size();
                let whole = Progress { stored_bytes: size, ..Progress::default() };
                DownloadRow {
                    number: entry.number,
                    group: entry.group,
                    name: entry.name,
                    path: entry.store.path(),
                    content: key.content,
                    size,
                    state: entry.state,
                    progress: entry.meter.map_or(whole, |meter| meter.progress()),
                    uploaded_bytes: self.inner.registry.uploaded(key),
                    changed: entry.store.is_changed(),
                }
            })
            .collect()
    }

    /// Waits until no download is under way; returns all rows.
    ///
    /// # Errors
    /// [`AgentError::Timeout`], or [`AgentError::Download`] naming the first that failed.
    pub async fn wait(&self, timeout: Option<Duration>) -> Result<Vec<DownloadRow>, AgentError> {
        let settled = async {
            loop {
                let changed = self.inner.changed.notified();
                let rows = self.downloads();
                if !rows.iter().any(|row| row.state.is_under_way()) {
                    return rows;
                }
                changed.await;
            }
        };
        let rows = match timeout {
            None => settled.await,
            Some(timeout) => match tokio::time::timeout(timeout, settled).await {
                Ok(rows) => rows,
                Err(_elapsed) => {
                    let rows = self.downloads();
                    let left = rows.iter().filter(|row| row.state.is_under_way()).count();
                    return Err(AgentError::Timeout(left));
                }
            },
        };
        for row in &rows {
            if let EntryState::Failed(error) = &row.state {
                let error = error.clone();
                return Err(AgentError::Download { name: row.name.to_string(), error });
            }
        }
        Ok(rows)
    }

    /// Stops everything in order: downloads, peers, the tracker, the socket.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.hub.shutdown().await;
        inner.line.close().await;
        inner.tasks.close();
        inner.endpoint.close(ErrorCode::GoingAway).await;
        inner.tasks.wait().await;
    }

    async fn done(&self, request: Request) -> Result<(), AgentError> {
        match self.inner.line.call(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }
}

impl Inner {
    fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<GroupName, (GroupId, UnixMillis)>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a fresh ticket for a group; returns the group's id.
    async fn ticket(&self, group: &GroupName) -> Result<GroupId, AgentError> {
        let request = Request::Ticket { group: group.clone() };
        let Reply::Ticket { group: id, ticket } = self.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        let me = self.endpoint.identity().peer_id();
        let verified = self.registry.verify(&ticket, me).map_err(|error| {
            tracing::error!(%error, "the tracker's ticket does not verify");
            AgentError::BadAnswer
        })?;
        self.groups().insert(group.clone(), (id, verified.renew_at()));
        self.registry.set_ticket(id, ticket);
        Ok(id)
    }

    async fn announce(
        &self,
        group: &GroupName,
        contents: &[(ContentId, bool)],
    ) -> Result<(), AgentError> {
        let request = Request::Announce { group: group.clone(), contents: contents.to_vec() };
        match self.line.call(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Connects to everybody the tracker knows to hold a content.
    async fn find_peers(&self, group: &GroupName, key: SwarmKey) {
        let request = Request::Peers { group: group.clone(), content: key.content };
        match self.line.call(&request).await {
            Ok(Reply::Peers { peers }) => {
                for peer in peers {
                    self.hub.connect(peer.peer_id, peer.addresses, key);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "no peers from the tracker"),
        }
    }

    /// A download from its first peer to its name on disk.
    async fn run_download(
        self: Arc<Self>,
        group: GroupName,
        download: Download,
        destination: Destination,
        mut wanted: mpsc::Receiver<()>,
    ) {
        let (key, store, stop) = (download.key, download.store.clone(), download.stop.clone());
        let meter = download.meter.clone();
        let find = async {
            // First present, then looking: two that begin together find each other.
            if let Err(error) = self.announce(&group, &[(key.content, false)]).await {
                tracing::debug!(%error, "announce failed; it is repeated with the next connection");
            }
            self.find_peers(&group, key).await;
            while let Some(()) = wanted.recv().await {
                self.find_peers(&group, key).await;
            }
        };
        let result = tokio::select! {
            result = download.run() => result,
            () = async { find.await; std::future::pending().await } => Err(DownloadError::Stopped),
        };
        let result = match result {
            Ok(()) => {
                self.library().set_state(key, EntryState::Finishing);
                let finishing = store.clone();
                let named = tokio::task::spawn_blocking(move || {
                    finishing.finish(&destination.directory, &destination.name)
                });
                match named.await {
                    Ok(named) => named.map_err(DownloadError::from),
                    Err(_panicked) => Err(DownloadError::Stopped),
                }
            }
            Err(error) => Err(error),
        };
        meter.end();
        match result {
            Ok(path) => {
                tracing::info!(%group, path = %path.display(), "download complete");
                let swarm = Swarm { key, store, news: None };
                self.registry.add_swarm(Arc::new(swarm));
                self.library().set_state(key, EntryState::Seeding);
                self.changed.notify_waiters();
                if let Err(error) = self.announce(&group, &[(key.content, true)]).await {
                    tracing::debug!(%error, "announce failed; it is repeated later");
                }
            }
            // Whoever stopped it has taken it out of the library.
            Err(DownloadError::Stopped) if stop.is_cancelled() => self.changed.notify_waiters(),
            Err(error) => {
                tracing::error!(%group, %error, "download failed");
                if matches!(error, DownloadError::FalseManifest(_)) {
                    store.discard();
                }
                self.registry.remove_swarm(key, ErrorCode::Done);
                let failure = DownloadFailure::from(&error);
                self.library().set_state(key, EntryState::Failed(failure));
                self.changed.notify_waiters();
                let request = Request::Withdraw { group, contents: vec![key.content] };
                let _ = self.line.call(&request).await;
            }
        }
    }

    /// Takes entries out of the library and their swarms out of the registry.
    fn drop_entries(&self, which: impl Fn(&Entry) -> bool, code: ErrorCode) -> usize {
        let mut library = self.library();
        let keys: Vec<_> = library
            .entries()
            .into_iter()
            .filter(|(_, entry)| which(entry))
            .map(|(key, _)| key)
            .collect();
        for key in &keys {
            library.remove(*key);
            self.registry.remove_swarm(*key, code);
        }
        drop(library);
        self.changed.notify_waiters();
        keys.len()
    }

    /// Hears what trackers say unasked, and brings a lost line back.
    async fn hear(self: Arc<Self>, mut queue: mpsc::Receiver<LineEvent>) {
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = queue.recv() => event,
            };
            match event {
                None => return,
                Some(LineEvent::Connected { clock_offset }) => {
                    self.registry.set_clock_offset(clock_offset);
                }
                Some(LineEvent::Push(Push::SwarmJoined { group, content, peer })) => {
                    let key = SwarmKey { group, content };
                    let wants = self.library().find(key).is_some_and(|e| e.state.is_under_way());
                    if wants {
                        self.hub.connect(peer.peer_id, peer.addresses, key);
                    }
                }
                Some(LineEvent::Push(Push::Revoked { membership })) => {
                    self.registry.revoke(membership);
                }
                Some(LineEvent::LoggedOut) => {
                    tracing::warn!("the tracker no longer knows this device; log in again");
                }
                Some(LineEvent::Lost) => {
                    if self.line.user().is_some() {
                        tracing::warn!("the connection to the tracker is lost; dialling again");
                        self.tasks.spawn(self.clone().come_back());
                    }
                }
            }
        }
    }

    /// Dials until there is a line again, then announces everything anew.
    async fn come_back(self: Arc<Self>) {
        let mut wait = REDIAL.0;
        loop {
            let dialled = tokio::select! {
                () = self.stop.cancelled() => return,
                dialled = self.line.connection() => dialled,
            };
            match dialled {
                Ok(_) => break,
                Err(error) => tracing::debug!(%error, "tracker still away"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(REDIAL.1),
            }
        }
        if self.line.user().is_none() {
            return;
        }
        tracing::info!("connected to a tracker again");
        let mut by_group: HashMap<GroupName, Vec<(SwarmKey, bool)>> = HashMap::new();
        for (key, entry) in self.library().entries() {
            let complete = entry.state == EntryState::Seeding;
            if complete || entry.state.is_under_way() {
                by_group.entry(entry.group).or_default().push((key, complete));
            }
        }
        for (group, held) in by_group {
            let contents: Vec<_> = held.iter().map(|(key, whole)| (key.content, *whole)).collect();
            if let Err(error) = self.announce(&group, &contents).await {
                tracing::warn!(%group, %error, "cannot announce");
                continue;
            }
            for (key, _) in held.iter().filter(|(_, complete)| !complete) {
                self.find_peers(&group, *key).await;
            }
        }
    }

    /// Renews tickets half-way through their life.
    async fn renew_tickets(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(RENEWAL_CHECK) => {}
            }
            let now = self.registry.tracker_time();
            let due: Vec<_> = self
                .groups()
                .iter()
                .filter(|(_, (_, renew_at))| *renew_at <= now)
                .map(|(group, _)| group.clone())
                .collect();
            for group in due {
                match self.ticket(&group).await {
                    Ok(_) => tracing::debug!(%group, "ticket renewed"),
                    Err(AgentError::Refused(refusal)) => {
                        tracing::warn!(%group, %refusal, "no ticket any more");
                        self.groups().remove(&group);
                    }
                    Err(error) => tracing::debug!(%group, %error, "ticket not renewed yet"),
                }
            }
        }
    }
}

fn request_id() -> RequestId {
    RequestId::random(&mut fastrand::Rng::new())
}

/// `a.iso` -> `a.iso.mtorrent`.
fn beside(path: &Path) -> PathBuf {
    let mut metafile = path.as_os_str().to_owned();
    metafile.push(".mtorrent");
    metafile.into()
}

/// Reads and checks a metafile.
///
/// # Errors
/// [`AgentError`].
pub fn read_metafile(path: &Path) -> Result<Metainfo, AgentError> {
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    let mut text = String::new();
    let limit = limits::MAX_METAFILE_LEN;
    let file = File::open(path).map_err(file_error)?;
    let read = file.take(limit + 1).read_to_string(&mut text);
    let bad = |error| AgentError::Metafile { path: path.to_owned(), error };
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let error = crate::metainfo::MetainfoError::Syntax("it is not text".to_owned());
            Err(bad(error))
        }
        Err(error) => Err(file_error(error)),
        Ok(len) if len as u64 > limit => {
            let message = format!("it is over the limit of {limit} bytes");
            Err(bad(crate::metainfo::MetainfoError::Syntax(message)))
        }
        Ok(_) => Metainfo::parse(&text).map_err(bad),
    }
}

/// Writes a metafile whole or not at all. An older metafile is replaced, anything else is not.
fn write_metafile(path: &Path, meta: &Metainfo) -> Result<(), AgentError> {
    if path.try_exists().unwrap_or(true) && read_metafile(path).is_err() {
        return Err(AgentError::Exists(path.to_owned()));
    }
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let written = File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(meta.to_text().as_bytes()))
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        file_error(error)
    })
}
