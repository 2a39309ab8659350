//! What an agent consists of, and how it does what all its commands need: tickets, announcements,
//! peers, downloads.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::data_dir;
use super::error::{AgentError, DownloadFailure};
use super::groups::Groups;
use super::library::{Entry, EntryState, Library};
use super::line::TrackerLine;
use super::report::Notice;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::ContentId;
use crate::name::GroupName;
use crate::peer_id::PeerId;
use crate::roster::RosterBook;
use crate::swarm::download::{Download, DownloadError, Report, Swarms};
use crate::swarm::hub::Hub;
use crate::swarm::rates::RateLimits;
use crate::swarm::registry::Registry;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::PieceStore;
use crate::swarm::trust::Trust;
use crate::tracker::message::{Reply, Request};
use crate::tracker_link::TrackerInfo;
use crate::transport::endpoint::{Endpoint, any_address};
use crate::transport::identity::{FILE_NAME as IDENTITY_FILE, Identity};
use crate::transport::tls::Alpn;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where it keeps its identity; one agent at a time.
    pub data_dir: PathBuf,
    /// The trackers, in the order they are tried.
    pub trackers: TrackerInfo,
    /// The UDP address; all addresses and a free port when not given.
    pub listen: Option<SocketAddr>,
    /// Rate limits of everything together, to begin with.
    pub limits: RateLimits,
}

impl AgentConfig {
    /// An agent at any address, without limits.
    pub fn new(data_dir: PathBuf, trackers: TrackerInfo) -> Self {
        Self { data_dir, trackers, listen: None, limits: RateLimits::default() }
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) data_dir: PathBuf,
    pub(super) endpoint: Endpoint,
    pub(super) registry: Arc<Registry>,
    pub(super) hub: Hub,
    pub(super) line: TrackerLine,
    /// The trackers there are.
    pub(super) book: Mutex<RosterBook>,
    pub(super) library: Mutex<Library>,
    /// Groups we hold tickets for.
    pub(super) groups: Mutex<Groups>,
    /// Notified when something was announced or listed that trackers may not all know yet.
    pub(super) announced: Notify,
    /// Notified when an entry's state changes.
    pub(super) changed: Notify,
    /// What trackers say that a person may want to know.
    pub(super) notices: broadcast::Sender<Notice>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Held as long as the agent lives.
    _lock: File,
}

impl Core {
    /// Locks the data directory, binds the socket, starts everything.
    pub(super) fn start(config: AgentConfig) -> Result<Arc<Self>, AgentError> {
        let lock = data_dir::lock(&config.data_dir)?;
        let identity = Identity::load_or_create(&config.data_dir.join(IDENTITY_FILE))?;
        let listen = config.listen.unwrap_or_else(|| any_address(0));
        let endpoint = Endpoint::bind(Arc::new(identity), listen, &[Alpn::Peer])?;
        let kept = data_dir::roster(&config.data_dir)?;
        let (book, ignored) = RosterBook::new(config.trackers, kept.as_deref());
        if ignored {
            tracing::warn!("what was kept of the trackers is of another network; it is left aside");
        }
        let registry = Arc::new(Registry::new(Trust::default(), config.limits));
        registry.set_trackers(book.peer_ids(), book.retired());
        let hub = Hub::start(endpoint.clone(), registry.clone());
        let (events, queue) = mpsc::channel(limits::PUSH_QUEUE);
        let tasks = TaskTracker::new();
        let user = data_dir::user(&config.data_dir)?;
        let line =
            TrackerLine::new(endpoint.clone(), registry.clone(), user, events, tasks.clone());
        let core = Arc::new(Self {
            data_dir: config.data_dir,
            endpoint,
            registry,
            hub,
            line,
            book: Mutex::new(book),
            library: Mutex::default(),
            groups: Mutex::default(),
            announced: Notify::new(),
            changed: Notify::new(),
            notices: broadcast::channel(limits::PUSH_QUEUE).0,
            stop: CancellationToken::new(),
            tasks: tasks.clone(),
            _lock: lock,
        });
        tasks.spawn(core.clone().hear(queue));
        tasks.spawn(core.clone().watch());
        tasks.spawn(core.clone().repeat_announcements());
        core.follow_book();
        Ok(core)
    }

    /// Stops everything in order: downloads, peers, the tracker, the socket.
    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.hub.shutdown().await;
        self.line.close();
        self.tasks.close();
        self.endpoint.close(ErrorCode::GoingAway).await;
        self.tasks.wait().await;
    }

    pub(super) fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn book(&self) -> MutexGuard<'_, RosterBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials and trusts the trackers that the book names.
    pub(super) fn follow_book(&self) {
        let book = self.book();
        self.registry.set_trackers(book.peer_ids(), book.retired());
        let links = book.links();
        let place = |id: PeerId| {
            let own = links.iter().filter(|link| link.peer_id() == id);
            (id, own.cloned().collect())
        };
        self.line.set_places(book.peer_ids().into_iter().map(place).collect(), book.hash());
    }

    /// Gets a fresh ticket for a group; returns the group's id.
    pub(super) async fn ticket(&self, group: &GroupName) -> Result<GroupId, AgentError> {
        let request = Request::Ticket { group: group.clone() };
        let Reply::Ticket { group: id, ticket } = self.line.call(&request).await? else {
            return Err(AgentError::BadAnswer);
        };
        let me = self.endpoint.identity().peer_id();
        let verified = self.registry.verify(&ticket, me).map_err(|error| {
            tracing::error!(%error, "the tracker's ticket does not verify");
            AgentError::BadAnswer
        })?;
        if verified.holder().group != id {
            return Err(AgentError::BadAnswer);
        }
        if !self.groups().hold(id, group, verified.renew_at()) {
            return Err(AgentError::OtherGroup(group.clone()));
        }
        self.registry.set_ticket(id, ticket);
        Ok(id)
    }

    /// Says at every tracker what this device holds of a group.
    pub(super) async fn announce(
        &self,
        group: GroupId,
        contents: &[(ContentId, bool)],
    ) -> Result<(), AgentError> {
        let Some(group) = self.groups().name_of(group) else { return Ok(()) };
        for batch in contents.chunks(limits::MAX_ANNOUNCE_BATCH) {
            let (group, contents) = (group.clone(), batch.to_vec());
            self.everywhere(Request::Announce { group, contents }).await?;
        }
        self.announced.notify_one();
        Ok(())
    }

    /// Takes an announcement back.
    pub(super) async fn withdraw(&self, key: SwarmKey) -> Result<(), AgentError> {
        let Some(group) = self.groups().name_of(key.group) else { return Ok(()) };
        self.everywhere(Request::Withdraw { group, contents: vec![key.content] }).await
    }

    /// Asks the tracker in use, and tells the others.
    async fn everywhere(&self, request: Request) -> Result<(), AgentError> {
        let in_use = self.line.in_use();
        for number in self.line.logged_in().into_iter().filter(|n| Some(*n) != in_use) {
            let (line, request) = (self.line.clone(), request.clone());
            self.tasks.spawn(async move {
                if let Err(error) = line.ask_on(number, &request).await {
                    tracing::debug!(number, %error, "another tracker does not know yet");
                }
            });
        }
        match self.line.call(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Connects to everybody the tracker knows to hold a content.
    pub(super) async fn find_peers(&self, key: SwarmKey) {
        let Some(group) = self.groups().name_of(key.group) else { return };
        match self.line.call(&Request::Peers { group, content: key.content }).await {
            Ok(Reply::Peers { mut peers }) => {
                // Those that may be gone are tried last.
                peers.sort_by_key(|peer| peer.doubtful);
                for peer in peers {
                    self.hub.connect(peer.peer_id, peer.addresses, key);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "no peers from the tracker"),
        }
    }

    /// A download from its first peer to its name on disk.
    pub(super) async fn run_download(
        self: Arc<Self>,
        download: Download,
        mut reports: mpsc::Receiver<Report>,
    ) {
        let (swarms, store) = (download.swarms.clone(), download.store.clone());
        let (stop, meter) = (download.stop.clone(), download.meter.clone());
        for key in swarms.all() {
            self.tasks.spawn(self.clone().seek(key));
        }
        let attend = async {
            while let Some(report) = reports.recv().await {
                self.attend(&swarms, report);
            }
        };
        let result = tokio::select! {
            result = download.run() => result,
            () = async { attend.await; std::future::pending().await } => return,
        };
        meter.end();
        if result.is_err() {
            // What is there is kept for a later attempt, which need not look at it again.
            let discard = matches!(result, Err(DownloadError::FalseManifest(_)));
            let closing = store.clone();
            let let_go = move || if discard { closing.discard() } else { closing.release() };
            if let Err(error) = tokio::task::spawn_blocking(let_go).await {
                tracing::error!(%error, "letting go of a part file failed in itself");
            }
        }
        if stop.is_cancelled() {
            // Whoever stopped it has taken it out of the library, and perhaps put another in.
            self.changed.notify_waiters();
            return;
        }
        match result {
            Ok(path) => self.complete(&swarms, &store, &path).await,
            Err(error) => {
                tracing::error!(%error, "download failed");
                let keys = self.fail(|| swarms.all(), &DownloadFailure::from(&error));
                self.changed.notify_waiters();
                for key in keys {
                    // What cannot be said now ends with the connection.
                    let _ = self.withdraw(key).await;
                }
            }
        }
    }

    /// A download is whole and has its name: it is served from there.
    async fn complete(&self, swarms: &Swarms, store: &Arc<PieceStore>, path: &Path) {
        tracing::info!(path = %path.display(), "download complete");
        let keys = {
            // Nobody joins the download between this and its end.
            let mut library = self.library();
            let keys = swarms.all();
            for key in &keys {
                self.registry.unwant(*key);
                let swarm = Swarm { key: *key, store: store.clone(), news: None };
                self.registry.add_swarm(Arc::new(swarm));
                library.set_state(*key, EntryState::Seeding);
            }
            keys
        };
        for key in &keys {
            let entry = self.library().find(*key).cloned();
            if let Some(Entry { group, name, .. }) = entry {
                self.notify(Notice::Downloaded { group, name, path: path.to_owned() });
            }
        }
        self.changed.notify_waiters();
        for key in keys {
            self.present(key).await;
        }
    }

    /// Says that we have a content.
    pub(super) async fn present(&self, key: SwarmKey) {
        if let Err(error) = self.announce(key.group, &[(key.content, true)]).await {
            tracing::debug!(%error, "announce failed; it is repeated with the next connection");
        }
    }

    /// Says that we want a content, and looks for who has it.
    pub(super) async fn seek(self: Arc<Self>, key: SwarmKey) {
        // First present, then looking: two that begin together find each other.
        if let Err(error) = self.announce(key.group, &[(key.content, false)]).await {
            tracing::debug!(%error, "announce failed; it is repeated with the next connection");
        }
        self.find_peers(key).await;
    }

    /// Does what a download wants done, and passes on what it says.
    fn attend(self: &Arc<Self>, swarms: &Swarms, report: Report) {
        for key in swarms.all() {
            let entry = self.library().find(key).cloned();
            let Some(Entry { group, name, .. }) = entry else { continue };
            match &report {
                Report::PeersWanted => {
                    let core = self.clone();
                    self.tasks.spawn(async move { core.find_peers(key).await });
                }
                Report::Held(hold) => {
                    self.notify(Notice::Held { group, name, hold: hold.clone() });
                }
                Report::Moves => self.notify(Notice::Moves { group, name }),
                Report::Finishing => self.library().set_stage(key, EntryState::Finishing),
                Report::Downloading => self.library().set_stage(key, EntryState::Downloading),
            }
        }
    }

    /// Marks downloads as failed, and leaves their swarms; a false manifest is its publisher's doing.
    /// Nobody joins them between `which` being asked and that. Returns which they were.
    pub(super) fn fail(
        &self,
        which: impl FnOnce() -> Vec<SwarmKey>,
        failure: &DownloadFailure,
    ) -> Vec<SwarmKey> {
        let mut library = self.library();
        let keys = which();
        let mut notices = Vec::new();
        for key in &keys {
            self.registry.remove_swarm(*key, ErrorCode::Done);
            let Some(entry) = library.find(*key).cloned() else { continue };
            let failure = match (failure.code, &entry.publisher) {
                ("false-manifest", Some(user)) => DownloadFailure::false_manifest(failure, user),
                _ => failure.clone(),
            };
            if let Some(transfer) = &entry.transfer {
                transfer.leave(*key);
            }
            library.set_state(*key, EntryState::Failed(failure.clone()));
            let Entry { group, name, .. } = entry;
            notices.push(Notice::DownloadFailed { group, name, failure });
        }
        drop(library);
        notices.into_iter().for_each(|notice| self.notify(notice));
        keys
    }

    /// Takes entries out of the library and their swarms out of the registry.
    pub(super) fn drop_entries(&self, which: impl Fn(&Entry) -> bool, code: ErrorCode) -> usize {
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

    /// Tells whoever listens; nobody need.
    pub(super) fn notify(&self, notice: Notice) {
        tracing::info!(%notice, "news");
        let _ = self.notices.send(notice);
    }

    /// Nobody is logged in any more, also after a restart.
    pub(super) fn forget_login(&self) {
        if let Err(error) = data_dir::forget_user(&self.data_dir) {
            tracing::warn!(%error, "cannot forget the login");
        }
    }

    /// Leaves the swarms of a group, and its ticket.
    pub(super) fn leave(&self, group: GroupId) {
        let entries = self.library().entries().into_iter();
        for (key, entry) in entries.filter(|(key, _)| key.group == group) {
            self.registry.remove_swarm(key, ErrorCode::Done);
            // What failed stays to be seen.
            if !matches!(entry.state, EntryState::Failed(_)) {
                self.library().remove(key);
            }
        }
        self.changed.notify_waiters();
        self.groups().remove(group);
        self.registry.forget_ticket(group);
    }

    /// Looks for peers for everything under way.
    pub(super) async fn find_all_peers(&self) {
        let entries = self.library().entries();
        for (key, _) in entries.into_iter().filter(|(_, entry)| entry.state.is_under_way()) {
            self.find_peers(key).await;
        }
    }
}
