//! What an agent consists of, and how it does what all its commands need: tickets, announcements,
//! peers, records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::crier::{Crier, Cry};
use super::data_dir;
use super::error::AgentError;
use super::groups::Groups;
use super::keeper::Keeper;
use super::library::{Entry, EntryState, Library};
use super::line::TrackerLine;
use super::looking::Looks;
use super::report::{Notice, Skipped};
use super::shelf::{self, Shelf};
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::ContentId;
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;
use crate::roster::RosterBook;
use crate::swarm::hub::Hub;
use crate::swarm::rates::RateLimits;
use crate::swarm::registry::Registry;
use crate::swarm::session::SwarmKey;
use crate::swarm::sidecars::Sidecars;
use crate::swarm::trust::Trust;
use crate::tracker::message::{Reply, Request};
use crate::tracker_link::TrackerInfo;
use crate::transport::endpoint::{Endpoint, any_address};
use crate::transport::identity::{FILE_NAME as IDENTITY_FILE, Identity};
use crate::transport::tls::Alpn;
use crate::transport::tuning::Tuning;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where it keeps its identity, the login, and what is shared and downloaded; one agent at a
    /// time.
    pub data_dir: PathBuf,
    /// The trackers, in the order they are tried.
    pub trackers: TrackerInfo,
    /// The UDP address; all addresses and a free port when not given.
    pub listen: Option<SocketAddr>,
    /// Rate limits of everything together, to begin with.
    pub limits: RateLimits,
    /// How it sends.
    pub tuning: Tuning,
}

impl AgentConfig {
    /// An agent at any address, without limits.
    pub fn new(data_dir: PathBuf, trackers: TrackerInfo) -> Self {
        let (limits, tuning) = (RateLimits::default(), Tuning::default());
        Self { data_dir, trackers, listen: None, limits, tuning }
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
    /// Brings changes of the library to the disk.
    pub(super) keeper: Keeper,
    /// What is being hashed and checked.
    pub(super) looks: Looks,
    /// Held by whoever changes who is logged in, or what that user is called.
    pub(super) account: tokio::sync::Mutex<()>,
    /// Held by whoever keeps what the trackers are.
    pub(super) roster_turn: tokio::sync::Mutex<()>,
    /// What trackers are to be told.
    pub(super) crier: Crier,
    /// Turns of downloads that begin when others are through.
    pub(super) turns: Arc<Semaphore>,
    /// Seats of those who look at files for changes.
    pub(super) lookers: Semaphore,
    /// Directories whose files are being looked at for changes.
    pub(super) watched: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// What was taken from the user since the login: it is in the library no more.
    pub(super) lost: Mutex<Vec<Skipped>>,
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
    /// The keeper's: it ends after all others.
    last_task: TaskTracker,
    /// Held as long as the agent lives.
    _lock: File,
}

impl Core {
    /// Locks the data directory, binds the socket, starts everything.
    pub(super) fn start(config: AgentConfig) -> Result<Arc<Self>, AgentError> {
        let lock = data_dir::lock(&config.data_dir)?;
        let identity = Identity::load_or_create(&config.data_dir.join(IDENTITY_FILE))?;
        let user = data_dir::user(&config.data_dir)?;
        let library_error = |error| {
            let path = config.data_dir.join(shelf::FILE_NAME);
            AgentError::Library { path, error }
        };
        let mut shelf = Shelf::open(&config.data_dir).map_err(library_error)?;
        let library = Library::new(shelf.last_number().map_err(library_error)?);
        let contents = shelf.contents().map_err(library_error)?;
        let keeper = Keeper::new(shelf);
        let held = match &user {
            Some(user) => keeper.kept(user).map_err(library_error)?,
            None => Vec::new(),
        };
        let listen = config.listen.unwrap_or_else(|| any_address(0));
        let identity = Arc::new(identity);
        let endpoint = Endpoint::bind_tuned(identity, listen, &[Alpn::Peer], config.tuning)?;
        let kept = data_dir::roster(&config.data_dir)?;
        let (book, ignored) = RosterBook::new(config.trackers, kept.as_deref());
        if ignored {
            tracing::warn!("what was kept of the trackers is of another network; it is left aside");
        }
        let sidecars = Sidecars::new(config.data_dir.join(data_dir::SIDECARS));
        sidecars.retain(&contents);
        let registry = Registry::new(Trust::default(), config.limits).with_sidecars(sidecars);
        let registry = Arc::new(registry);
        registry.set_trackers(book.peer_ids(), book.retired());
        let hub = Hub::start(endpoint.clone(), registry.clone());
        let (events, queue) = mpsc::channel(limits::PUSH_QUEUE);
        let tasks = TaskTracker::new();
        let line = TrackerLine::new(
            endpoint.clone(),
            registry.clone(),
            user.clone(),
            events,
            tasks.clone(),
        );
        let core = Arc::new(Self {
            data_dir: config.data_dir,
            endpoint,
            registry,
            hub,
            line,
            book: Mutex::new(book),
            library: Mutex::new(library),
            keeper,
            looks: Looks::default(),
            account: tokio::sync::Mutex::default(),
            roster_turn: tokio::sync::Mutex::default(),
            crier: Crier::default(),
            turns: Arc::new(Semaphore::new(limits::DOWNLOADS_AT_ONCE)),
            lookers: Semaphore::new(limits::LOOKERS),
            watched: Arc::default(),
            lost: Mutex::default(),
            groups: Mutex::default(),
            announced: Notify::new(),
            changed: Notify::new(),
            notices: broadcast::channel(limits::PUSH_QUEUE).0,
            stop: CancellationToken::new(),
            tasks: tasks.clone(),
            last_task: TaskTracker::new(),
            _lock: lock,
        });
        core.last_task.spawn(core.keeper.clone().run(core.notices.clone()));
        if let Some(user) = user {
            core.bring_back(user, held);
        }
        tasks.spawn(core.clone().hear(queue));
        tasks.spawn(core.clone().watch());
        tasks.spawn(core.clone().renew_tickets());
        tasks.spawn(core.clone().repeat_announcements());
        tasks.spawn(core.clone().cry());
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
        let tasks_end = tokio::time::timeout(limits::LAST_WRITES, self.tasks.wait()).await;
        // Only now nobody has anything to keep any more.
        self.keeper.end();
        self.last_task.close();
        let kept = tokio::time::timeout(limits::LAST_WRITES, self.last_task.wait()).await;
        if tasks_end.and(kept).is_err() {
            tracing::error!("a disk does not answer; the next start looks at what is there");
        }
    }

    /// Does what must not stop midway, whatever becomes of who waits for it. The end of the agent
    /// gives it a moment more.
    ///
    /// # Errors
    /// Those of `work`; [`AgentError::TrackerLost`] when the agent ended first.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> Result<T, AgentError> {
        let stop = self.stop.clone();
        let done = self.tasks.spawn(async move {
            let over = async {
                stop.cancelled().await;
                tokio::time::sleep(limits::DRAIN).await;
            };
            tokio::select! {
                done = work => done,
                () = over => Err(AgentError::TrackerLost("this client ends".to_owned())),
            }
        });
        joined(done).await
    }

    pub(super) fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lost(&self) -> MutexGuard<'_, Vec<Skipped>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
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
        self: &Arc<Self>,
        id: GroupId,
        contents: &[(ContentId, bool)],
    ) -> Result<(), AgentError> {
        let Some(group) = self.groups().name_of(id) else { return Ok(()) };
        for batch in contents.chunks(limits::MAX_ANNOUNCE_BATCH) {
            let (group, contents) = (group.clone(), batch.to_vec());
            self.everywhere(id, Request::Announce { group, contents }).await?;
        }
        self.announced.notify_one();
        Ok(())
    }

    /// Takes an announcement back.
    pub(super) async fn withdraw(self: &Arc<Self>, key: SwarmKey) -> Result<(), AgentError> {
        let Some(group) = self.groups().name_of(key.group) else { return Ok(()) };
        let contents = vec![key.content];
        self.everywhere(key.group, Request::Withdraw { group, contents }).await
    }

    /// Asks the tracker in use, and tells the others, what is held of a group.
    async fn everywhere(
        self: &Arc<Self>,
        group: GroupId,
        request: Request,
    ) -> Result<(), AgentError> {
        let in_use = self.line.in_use();
        for number in self.line.logged_in().into_iter().filter(|n| Some(*n) != in_use) {
            let (core, request) = (self.clone(), request.clone());
            self.tasks.spawn(async move {
                match core.line.ask_on(number, &request).await {
                    Ok(_) => core.say_what_changed(group, &request),
                    Err(error) => {
                        tracing::debug!(number, %error, "another tracker does not know yet");
                    }
                }
            });
        }
        let reply = self.line.call(&request).await?;
        self.say_what_changed(group, &request);
        match reply {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Has said again what is held otherwise than was just announced or withdrawn. Requests overtake each
    /// other: who says how it was may be heard after who says how it is.
    pub(super) fn say_what_changed(&self, group: GroupId, request: &Request) {
        let say = |content, said| {
            let key = SwarmKey { group, content };
            if self.held(key) != said {
                self.crier.put(key, Cry::HELD);
            }
        };
        match request {
            Request::Announce { contents, .. } => {
                contents.iter().for_each(|(content, complete)| say(*content, Some(*complete)));
            }
            Request::Withdraw { contents, .. } => {
                contents.iter().for_each(|content| say(*content, None));
            }
            _ => {}
        }
    }

    /// Connects to everybody the tracker knows to hold these contents.
    pub(super) async fn find_peers(&self, group: GroupId, contents: &[ContentId]) {
        let mut rest = contents;
        while !rest.is_empty() {
            let Some(name) = self.groups().name_of(group) else { return };
            let batch = rest[..rest.len().min(limits::MAX_FIND_BATCH)].to_vec();
            let holders =
                match self.line.call(&Request::Peers { group: name, contents: batch }).await {
                    Ok(Reply::Peers { holders }) => holders,
                    Ok(_) => return,
                    Err(error) => return tracing::debug!(%error, "no peers from the tracker"),
                };
            let count = holders.len().min(rest.len());
            for (content, mut peers) in rest.iter().zip(holders) {
                // Those that may be gone are tried last.
                peers.sort_by_key(|peer| peer.doubtful);
                let key = SwarmKey { group, content: *content };
                for peer in peers {
                    self.hub.connect(peer.peer_id, peer.addresses, key);
                }
            }
            if count == 0 {
                return;
            }
            rest = &rest[count..];
        }
    }

    /// Says that we have a content, with whatever else there is to say; waits until it is said, or
    /// cannot be.
    pub(super) async fn present(&self, key: SwarmKey) {
        let generation = self.crier.put(key, Cry::HELD);
        tokio::select! {
            () = self.crier.until_told(generation) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Says what is put to the crier, and looks for who has what is wanted.
    pub(super) async fn cry(self: Arc<Self>) {
        let work = async {
            loop {
                let (keys, generation) = self.crier.next().await;
                let mut said: BTreeMap<GroupId, Vec<(ContentId, bool)>> = BTreeMap::new();
                let mut wanted: BTreeMap<GroupId, Vec<ContentId>> = BTreeMap::new();
                for (key, cry) in keys {
                    // As it is when it is said.
                    let Some(complete) = self.held(key) else {
                        if cry.announces {
                            self.withdraw_soon(key);
                        }
                        continue;
                    };
                    if cry.announces {
                        said.entry(key.group).or_default().push((key.content, complete));
                    }
                    if cry.seeks && !complete {
                        wanted.entry(key.group).or_default().push(key.content);
                    }
                }
                for (group, contents) in said {
                    if let Err(error) = self.announce(group, &contents).await {
                        tracing::debug!(%error, "announced again with the next connection");
                    }
                }
                self.crier.told(generation);
                // First present, then looking: two that begin together find each other.
                for (group, contents) in wanted {
                    let core = self.clone();
                    self.tasks.spawn(async move { core.find_peers(group, &contents).await });
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Whether a content is held wholly, if it is held and peers may be told.
    pub(super) fn held(&self, key: SwarmKey) -> Option<bool> {
        let library = self.library();
        let entry = library.find(key)?;
        let complete = entry.is_served();
        (complete || entry.is_fetched()).then_some(complete)
    }

    /// Takes an announcement back without waiting for a tracker: where there is none, it ends with the
    /// connection.
    pub(super) fn withdraw_soon(self: &Arc<Self>, key: SwarmKey) {
        let core = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = core.withdraw(key).await {
                tracing::debug!(%error, "withdraw failed; it ends with the connection");
            }
        });
    }

    /// Keeps what has become of these entries; waits for nothing.
    pub(super) fn save(&self, keys: &[SwarmKey]) {
        self.save_of(&self.library(), keys);
    }

    /// The same, before anybody else can change the library.
    pub(super) fn save_of(&self, library: &Library, keys: &[SwarmKey]) {
        let Some(user) = library.user() else {
            if !keys.is_empty() {
                tracing::error!(count = keys.len(), "nobody is logged in to keep this for");
            }
            return;
        };
        for key in keys {
            let entry = library.find(*key);
            let record = entry.map(|entry| (entry.record(), entry.manifest.clone()));
            self.keeper.put(user, *key, record);
        }
    }

    /// Nobody's shares and downloads are at work any more, and peers are told; what is kept of them
    /// stays. Returns them.
    pub(super) fn leave_all(&self) -> Vec<Entry> {
        let mut library = self.library();
        let entries = library.entries();
        for (key, _) in &entries {
            library.remove(*key);
            self.registry.remove_swarm(*key, ErrorCode::LoggedOut);
        }
        library.set_user(None);
        drop(library);
        self.changed.notify_waiters();
        self.groups().clear().into_iter().for_each(|id| self.registry.forget_ticket(id));
        self.lost().clear();
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Tells whoever listens; nobody need.
    pub(super) fn notify(&self, notice: Notice) {
        tracing::info!(%notice, "news");
        let _ = self.notices.send(notice);
    }

    /// Nobody is logged in any more, also after a restart.
    pub(super) async fn forget_login(&self) {
        let data_dir = self.data_dir.clone();
        if let Err(error) = blocking(move || data_dir::forget_user(&data_dir)).await {
            tracing::warn!(%error, "cannot forget the login");
        }
    }

    /// This user is logged in, also after a restart.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub(super) async fn keep_login(&self, user: &UserName) -> Result<(), AgentError> {
        let (data_dir, user) = (self.data_dir.clone(), user.clone());
        blocking(move || data_dir::keep_user(&data_dir, &user)).await
    }

    /// Forgets what is kept beside a content, unless it is here still. What that leaves, the next start finds.
    pub(super) async fn drop_sidecar(&self, content: ContentId) {
        if self.library().iter().all(|(key, _)| key.content != content) {
            let sidecars = self.registry.sidecars().clone();
            blocking(move || sidecars.remove(content)).await;
        }
    }

    /// Leaves the swarms of a group, and its ticket.
    pub(super) fn leave(&self, group: GroupId) {
        let keys = self.library().of_group(group);
        for key in &keys {
            self.registry.remove_swarm(*key, ErrorCode::Done);
            let mut library = self.library();
            // What failed stays to be seen.
            if !library.find(*key).is_some_and(|e| matches!(e.state, EntryState::Failed(_))) {
                library.remove(*key);
            }
        }
        self.save(&keys);
        self.changed.notify_waiters();
        self.groups().remove(group);
        self.registry.forget_ticket(group);
    }

    /// Looks for peers for everything under way.
    pub(super) async fn find_all_peers(&self) {
        let mut by_group: BTreeMap<GroupId, Vec<ContentId>> = BTreeMap::new();
        for (key, _) in self.library().iter().filter(|(_, entry)| entry.is_fetched()) {
            by_group.entry(key.group).or_default().push(key.content);
        }
        for (group, contents) in by_group {
            self.find_peers(group, &contents).await;
        }
    }
}

/// Does what may wait for a disk where nobody else has to wait for it.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

/// What a task of ours gives, which nobody aborts.
async fn joined<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}
