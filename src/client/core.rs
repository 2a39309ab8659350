//! What an agent consists of, and what it does unasked: hears pushes, runs downloads, brings a lost
//! line back, renews tickets.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::data_dir;
use super::destination::Destination;
use super::error::{AgentError, DownloadFailure};
use super::library::{Entry, EntryState, Library};
use super::line::{LineEvent, TrackerLine};
use super::report::Notice;
use crate::clock::UnixMillis;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::ContentId;
use crate::name::{GroupName, UserName};
use crate::swarm::download::{Download, DownloadError};
use crate::swarm::hub::Hub;
use crate::swarm::registry::Registry;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::trust::Trust;
use crate::tracker::message::{Reply, Request};
use crate::tracker::push::Push;
use crate::tracker::refusal::Refusal;
use crate::tracker_link::TrackerInfo;
use crate::transport::endpoint::{Endpoint, any_address};
use crate::transport::identity::{FILE_NAME as IDENTITY_FILE, Identity};
use crate::transport::tls::Alpn;

/// How often tickets are looked at for renewal, and shared files for change.
const WATCH: Duration = Duration::from_secs(10);

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

#[derive(Debug)]
pub(super) struct Core {
    pub(super) data_dir: PathBuf,
    pub(super) endpoint: Endpoint,
    pub(super) registry: Arc<Registry>,
    pub(super) hub: Hub,
    pub(super) line: TrackerLine,
    pub(super) trackers: TrackerInfo,
    pub(super) library: Mutex<Library>,
    /// Groups we hold tickets for, with the tracker time to renew each.
    pub(super) groups: Mutex<HashMap<GroupName, (GroupId, UnixMillis)>>,
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
        let trackers = config.trackers;
        let trust = Trust::new(trackers.links().iter().map(|link| link.peer_id()));
        let registry = Arc::new(Registry::new(trust));
        let hub = Hub::start(endpoint.clone(), registry.clone());
        let (events, queue) = mpsc::channel(limits::PUSH_QUEUE);
        let tasks = TaskTracker::new();
        let line = TrackerLine::new(endpoint.clone(), trackers.clone(), events, tasks.clone());
        line.set_user(data_dir::user(&config.data_dir)?);
        let core = Arc::new(Self {
            data_dir: config.data_dir,
            endpoint,
            registry,
            hub,
            line,
            trackers,
            library: Mutex::default(),
            groups: Mutex::default(),
            changed: Notify::new(),
            notices: broadcast::channel(limits::PUSH_QUEUE).0,
            stop: CancellationToken::new(),
            tasks: tasks.clone(),
            _lock: lock,
        });
        tasks.spawn(core.clone().hear(queue));
        tasks.spawn(core.clone().watch());
        if core.line.user().is_some() {
            // Whoever is logged in from before is online from now on.
            tasks.spawn(core.clone().come_back());
        }
        Ok(core)
    }

    /// Stops everything in order: downloads, peers, the tracker, the socket.
    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.hub.shutdown().await;
        self.line.close().await;
        self.tasks.close();
        self.endpoint.close(ErrorCode::GoingAway).await;
        self.tasks.wait().await;
    }

    pub(super) fn library(&self) -> MutexGuard<'_, Library> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, HashMap<GroupName, (GroupId, UnixMillis)>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.groups().insert(group.clone(), (id, verified.renew_at()));
        self.registry.set_ticket(id, ticket);
        Ok(id)
    }

    pub(super) async fn announce(
        &self,
        group: &GroupName,
        contents: &[(ContentId, bool)],
    ) -> Result<(), AgentError> {
        for batch in contents.chunks(limits::MAX_ANNOUNCE_BATCH) {
            let request = Request::Announce { group: group.clone(), contents: batch.to_vec() };
            match self.line.call(&request).await? {
                Reply::Done => {}
                _ => return Err(AgentError::BadAnswer),
            }
        }
        Ok(())
    }

    /// Takes an announcement back.
    pub(super) async fn withdraw(&self, group: GroupName, key: SwarmKey) -> Result<(), AgentError> {
        let request = Request::Withdraw { group, contents: vec![key.content] };
        match self.line.call(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Connects to everybody the tracker knows to hold a content.
    pub(super) async fn find_peers(&self, group: &GroupName, key: SwarmKey) {
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
    pub(super) async fn run_download(
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
                let wanted = stop.clone();
                let named = tokio::task::spawn_blocking(move || {
                    let go_on = || !wanted.is_cancelled();
                    finishing.finish(&destination.directory, &destination.name, &go_on)
                });
                match named.await {
                    Ok(named) => named.map_err(DownloadError::from),
                    Err(_panicked) => Err(DownloadError::Stopped),
                }
            }
            Err(error) => Err(error),
        };
        meter.end();
        if stop.is_cancelled() {
            // Whoever stopped it has taken it out of the library, and perhaps put another in.
            self.changed.notify_waiters();
            return;
        }
        match result {
            Ok(path) => {
                tracing::info!(%group, path = %path.display(), "download complete");
                self.registry.unwant(key);
                let swarm = Swarm { key, store, news: None };
                self.registry.add_swarm(Arc::new(swarm));
                self.library().set_state(key, EntryState::Seeding);
                self.changed.notify_waiters();
                if let Err(error) = self.announce(&group, &[(key.content, true)]).await {
                    tracing::debug!(%error, "announce failed; it is repeated later");
                }
            }
            Err(error) => {
                tracing::error!(%group, %error, "download failed");
                if matches!(error, DownloadError::FalseManifest(_)) {
                    store.discard();
                }
                self.registry.remove_swarm(key, ErrorCode::Done);
                self.fail(key, DownloadFailure::from(&error));
                self.changed.notify_waiters();
                // What cannot be said now ends with the connection.
                let _ = self.withdraw(group, key).await;
            }
        }
    }

    /// Marks a download as failed; a false manifest is its publisher's doing.
    fn fail(&self, key: SwarmKey, mut failure: DownloadFailure) {
        let mut library = self.library();
        let publisher = library.find(key).and_then(|entry| entry.publisher.clone());
        if let ("false-manifest", Some(user)) = (failure.code, publisher) {
            failure = DownloadFailure::false_manifest(&failure, &user);
        }
        library.set_state(key, EntryState::Failed(failure));
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

    /// Hears what trackers say unasked, and brings a lost line back.
    async fn hear(self: Arc<Self>, mut queue: mpsc::Receiver<LineEvent>) {
        let mut current = 0;
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = queue.recv() => event,
            };
            match event {
                None => return,
                Some(LineEvent::Connected { clock_offset, session }) => {
                    current = session;
                    self.registry.tracker_reached(clock_offset);
                }
                Some(LineEvent::Push(push)) => self.hear_push(push).await,
                Some(LineEvent::LoggedOut { user }) => self.signed_out(user),
                // Of an earlier one it may be heard after the next one stands.
                Some(LineEvent::Lost { session }) if session < current => {}
                Some(LineEvent::Lost { .. }) => {
                    self.registry.trackers_lost();
                    if self.line.user().is_some() {
                        tracing::warn!("the connection to the tracker is lost; dialling again");
                        self.tasks.spawn(self.clone().come_back());
                    }
                }
            }
        }
    }

    async fn hear_push(self: &Arc<Self>, push: Push) {
        match push {
            Push::SwarmJoined { group, content, peer } => {
                let key = SwarmKey { group, content };
                let wants = self.library().find(key).is_some_and(|e| e.state.is_under_way());
                if wants {
                    self.hub.connect(peer.peer_id, peer.addresses, key);
                }
            }
            Push::SwarmLeft { group, content, peer_id } => {
                self.registry.unwant_from(peer_id, SwarmKey { group, content });
            }
            Push::Revoked { memberships, devices } => self.registry.revoke(&memberships, &devices),
            Push::SignedOut => {
                if let Some(user) = self.line.user() {
                    self.signed_out(user);
                }
            }
            // Not here: it asks the tracker, whose pushes would wait meanwhile.
            Push::Lagged => drop(self.tasks.spawn(self.clone().find_all_peers())),
            Push::Removed { group, id } => self.removed(group, Some(id)),
            Push::Unlisted { group, content } => {
                let key = SwarmKey { group, content };
                let entry = self.library().find(key).cloned();
                if let Some(entry) = entry.filter(|entry| entry.state == EntryState::Seeding) {
                    self.library().remove(key);
                    self.registry.remove_swarm(key, ErrorCode::Done);
                    self.notify(Notice::Unlisted { group: entry.group, name: entry.name });
                }
            }
            // The roster and names that changed.
            Push::Roster { .. } | Push::Renamed { .. } | Push::GroupRenamed { .. } => {}
            Push::JoinRequested { group, user } => {
                self.notify(Notice::JoinRequested { group, user });
            }
            Push::RequestAnswered { group, accepted } => {
                self.notify(Notice::RequestAnswered { group, accepted });
            }
            Push::MemberJoined { group, user } => {
                self.notify(Notice::MemberJoined { group, user });
            }
            Push::MemberLeft { group, user } => self.notify(Notice::MemberLeft { group, user }),
            Push::OwnerChanged { group, owner } => {
                self.notify(Notice::OwnerChanged { group, owner });
            }
            Push::FileListed { group, name, size, user, content: _ } => {
                if self.line.user().as_ref() != Some(&user) {
                    self.notify(Notice::FileListed { group, name, size, user });
                }
            }
        }
    }

    /// Tells whoever listens; nobody need.
    fn notify(&self, notice: Notice) {
        tracing::info!(%notice, "news");
        let _ = self.notices.send(notice);
    }

    /// Trackers do not let this device act for its user any more: everything stops.
    fn signed_out(&self, user: UserName) {
        self.forget_login();
        self.drop_entries(|_| true, ErrorCode::LoggedOut);
        self.groups().clear();
        self.notify(Notice::SignedOut { user });
    }

    /// Our membership in a group is over. Told when it was not this device that ended it.
    fn removed(&self, group: GroupName, id: Option<GroupId>) {
        let held = self.groups().contains_key(&group);
        if held {
            // Whoever waits for a download must hear that it will not come; its part file stays.
            let under_way = self.library().entries().into_iter();
            let under_way = under_way.filter(|(_, e)| e.group == group && e.state.is_under_way());
            for (key, entry) in under_way {
                entry.stop.cancel();
                let message = format!("you are no longer a member of {group}");
                self.fail(key, DownloadFailure { code: "not-a-member", message });
            }
        }
        self.leave(&group, id);
        if held {
            self.notify(Notice::Removed { group });
        }
    }

    /// Nobody is logged in any more, also after a restart.
    pub(super) fn forget_login(&self) {
        self.line.set_user(None);
        if let Err(error) = data_dir::forget_user(&self.data_dir) {
            tracing::warn!(%error, "cannot forget the login");
        }
    }

    /// Leaves the swarms of a group, and its ticket.
    pub(super) fn leave(&self, group: &GroupName, id: Option<GroupId>) {
        let entries = self.library().entries().into_iter();
        for (key, entry) in entries.filter(|(_, entry)| entry.group == *group) {
            self.registry.remove_swarm(key, ErrorCode::Done);
            // What failed stays to be seen.
            if !matches!(entry.state, EntryState::Failed(_)) {
                self.library().remove(key);
            }
        }
        self.changed.notify_waiters();
        let held = self.groups().remove(group).map(|(id, _)| id);
        if let Some(id) = id.or(held) {
            self.registry.forget_ticket(id);
        }
    }

    /// Looks for peers for everything under way.
    async fn find_all_peers(self: Arc<Self>) {
        let entries = self.library().entries();
        for (key, entry) in entries.into_iter().filter(|(_, entry)| entry.state.is_under_way()) {
            self.find_peers(&entry.group, key).await;
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
        if self.line.user().is_some() {
            tracing::info!("connected to a tracker again");
            self.announce_all().await;
        }
    }

    /// Announces everything we hold, and looks for peers for what is under way.
    pub(super) async fn announce_all(&self) {
        // Peers that answer the announcement are to see tickets that hold.
        self.renew_due().await;
        let mut by_group: HashMap<GroupName, Vec<(SwarmKey, bool)>> = HashMap::new();
        for (key, entry) in self.library().entries() {
            let complete = entry.state == EntryState::Seeding && !entry.store.is_changed();
            if complete || entry.state.is_under_way() {
                by_group.entry(entry.group).or_default().push((key, complete));
            }
        }
        for (group, held) in by_group {
            let contents: Vec<_> = held.iter().map(|(key, whole)| (key.content, *whole)).collect();
            match self.announce(&group, &contents).await {
                Ok(()) => {}
                Err(AgentError::Refused(Refusal::NotAMember(_) | Refusal::NoSuchGroup(_))) => {
                    self.removed(group, None);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%group, %error, "cannot announce");
                    continue;
                }
            }
            for (key, _) in held.iter().filter(|(_, complete)| !complete) {
                self.find_peers(&group, *key).await;
            }
        }
    }

    /// Renews tickets half-way through their life, and takes back what changed on disk.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(WATCH) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = async { self.renew_due().await; self.withdraw_changed().await } => {}
            }
        }
    }

    /// Nobody is to be sent here for files that are not served any more; the user is told.
    async fn withdraw_changed(&self) {
        let changed: Vec<_> = {
            let mut library = self.library();
            let entries = library.entries().into_iter();
            let changed: Vec<_> = entries
                .filter(|(_, entry)| entry.state == EntryState::Seeding && !entry.told)
                .filter(|(_, entry)| entry.store.is_changed())
                .collect();
            changed.iter().for_each(|(key, _)| library.set_told(*key));
            changed
        };
        for (key, entry) in changed {
            let (group, name) = (entry.group, entry.name);
            tracing::warn!(%group, %name, "changed on disk, no longer served: share it again");
            if let Err(error) = self.withdraw(group, key).await {
                tracing::debug!(%error, "withdraw failed; it ends with the connection");
            }
        }
    }

    /// Renews the tickets that are due.
    async fn renew_due(&self) {
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
                // What nobody could tell us while we were away.
                Err(AgentError::Refused(Refusal::NotAMember(_) | Refusal::NoSuchGroup(_))) => {
                    self.removed(group, None);
                }
                Err(AgentError::Refused(refusal)) => {
                    tracing::warn!(%group, %refusal, "no ticket any more");
                    self.groups().remove(&group);
                }
                Err(error) => tracing::debug!(%group, %error, "ticket not renewed yet"),
            }
        }
    }
}
