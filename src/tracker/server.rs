//! The running tracker: accepts connections, reads their requests, writes answers and pushes.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::counters::{Counters, Limit};
use super::disk::{self, Disk, DiskError};
use super::greeting::{Hello, Welcome};
use super::herald::Herald;
use super::links::Links;
use super::metrics;
use super::operator;
use super::outlet::Outlet;
use super::password::Passwords;
use super::presence::{Client, Presence};
use super::push::Push;
use super::rosters::{Known, Rosters, RostersError};
use super::seats::ConnectionNumber;
use super::session::{ClientSession, Shared};
use super::state::Rules;
use super::store::{Store, StoreConfig};
use super::sync;
use super::sync_session::establish;
use super::throttle::Throttle;
use super::time::Reading;
use crate::clock;
use crate::control_socket::ControlSocket;
use crate::error_code::ErrorCode;
use crate::id::OriginId;
use crate::limits::{self, MAX_TRACKER_CONNECTIONS};
use crate::tracker_link::{TrackerInfo, TrackerLink};
use crate::transport::code::quic_code;
use crate::transport::connection::{Connection, RecvStream, SendStream};
use crate::transport::endpoint::{BindError, Endpoint, Incoming};
use crate::transport::frame::{FrameError, read_frame_within, write_frame};
use crate::transport::identity::{FILE_NAME as IDENTITY_FILE, Identity, IdentityError};
use crate::transport::tls::Alpn;
use crate::transport::tuning::{Mtu, Tuning};

/// What a tracker is started with.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    /// Its key.
    pub identity: Arc<Identity>,
    /// The UDP address it serves.
    pub address: SocketAddr,
    /// The trackers the operator names; without, it is alone until told otherwise.
    pub trackers: Option<TrackerInfo>,
    /// What the operator decided.
    pub rules: Rules,
    /// Connections it takes from one address.
    pub connections_per_address: usize,
    /// The TCP address to serve metrics on over HTTP.
    pub metrics: Option<SocketAddr>,
    /// How it sends.
    pub tuning: Tuning,
}

impl TrackerConfig {
    /// A tracker as most operators want it, alone.
    pub fn new(identity: Arc<Identity>, address: SocketAddr) -> Self {
        let connections_per_address = limits::CONNECTIONS_PER_ADDRESS;
        let rules = Rules::default();
        let tuning = Tuning { max_mtu: Mtu::TRACKER, ..Tuning::default() };
        let (trackers, metrics) = (None, None);
        Self { identity, address, trackers, rules, connections_per_address, metrics, tuning }
    }

    /// The same, with the key that is kept in `data_dir`. The directory, for its owner only, and the
    /// key are made where they are not there.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(data_dir: &Path, address: SocketAddr) -> Result<Self, IdentityError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        made.map_err(|error| IdentityError::Io { path: data_dir.to_owned(), error })?;
        let identity = Identity::load_or_create(&data_dir.join(IDENTITY_FILE))?;
        Ok(Self::new(Arc::new(identity), address))
    }
}

/// A tracker that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The roster.
    #[error(transparent)]
    Roster(#[from] RostersError),
    /// The socket for the operator.
    #[error("cannot make the control socket in {directory}: {error}")]
    Control {
        /// The data directory.
        directory: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The address for metrics.
    #[error("cannot listen on TCP {address}: {error}")]
    Metrics {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// A tracker that serves until told to stop, or until its runtime ends: one that is merely dropped goes
/// on.
#[derive(Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What goes on with other trackers, which ends last: they get what clients still change.
    sync: (CancellationToken, TaskTracker),
}

impl Tracker {
    /// Loads what is in `data_dir`, which must exist, binds the address and starts serving. Needs a
    /// tokio runtime. Clients can connect as soon as this returns.
    ///
    /// # Errors
    /// [`StartError`], also when another tracker uses the directory.
    pub fn start(config: TrackerConfig, data_dir: &Path) -> Result<Self, StartError> {
        let alpns = [Alpn::Tracker, Alpn::Sync];
        let endpoint =
            Endpoint::bind_tuned(config.identity, config.address, &alpns, config.tuning)?;
        let disk = Disk::open(data_dir)?;
        // Whoever has the store has the directory: what is in the socket's place is stale.
        let control = ControlSocket::bind(data_dir)
            .map_err(|error| StartError::Control { directory: data_dir.to_owned(), error })?;
        let bind = |address| {
            metrics::bind(address).map_err(|error| StartError::Metrics { address, error })
        };
        let scraped = config.metrics.map(bind).transpose()?;
        let address = endpoint.local_address().unwrap_or(config.address);
        let identity = endpoint.identity().clone();
        let rosters = Rosters::open(data_dir, identity, config.trackers, address)?;
        let changes = rosters.watch();
        let seen = disk.seen()?;
        let presence = Arc::new(Presence::new(seen));
        let store = StoreConfig {
            tracker: endpoint.identity().peer_id(),
            rules: config.rules,
            origin: OriginId::random(&mut fastrand::Rng::new()),
            clock: clocks(),
        };
        let store = Store::start(disk, store, Herald(presence.clone()))?;
        let counters = Arc::new(Counters::default());
        let throttle = Throttle::new(counters.clone(), config.connections_per_address);
        let shared = Arc::new(Shared {
            endpoint,
            store,
            presence,
            rosters: Arc::new(rosters),
            links: Links::default(),
            passwords: Passwords::new(),
            throttle: Arc::new(throttle),
            counters,
            searches: Semaphore::new(limits::SEARCHES_AT_ONCE),
            search_queue: Semaphore::new(limits::SEARCH_QUEUE),
            started: clock::monotonic(),
            store_file: data_dir.join(disk::FILE_NAME),
            metrics: scraped.as_ref().map(|(_, address)| *address),
        });
        let heard = sync::begin(&shared);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let sync = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(shared.clone(), stop.clone(), tasks.clone(), sync.clone()));
        tasks.spawn(tidy(shared.clone(), stop.clone()));
        sync.1.spawn(sync::run(shared.clone(), heard, sync.0.clone(), sync.1.clone()));
        tasks.spawn(proclaim(shared.clone(), changes, stop.clone()));
        tasks.spawn(operator::serve(shared.clone(), control, stop.clone(), tasks.clone()));
        if let Some((listener, address)) = scraped {
            tracing::info!(%address, "metrics are served");
            tasks.spawn(metrics::serve(shared.clone(), listener, stop.clone(), tasks.clone()));
        }
        Ok(Self { shared, stop, tasks, sync })
    }

    /// What its sessions share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_address()
    }

    /// Where clients find it, and whom they must find there. Its address is the bound one: others
    /// cannot use that of a tracker that listens on all addresses.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn link(&self) -> io::Result<TrackerLink> {
        Ok(TrackerLink::new(self.local_address()?, self.shared.endpoint.identity().peer_id()))
    }

    /// Clients now connected.
    pub fn connection_count(&self) -> usize {
        self.shared.presence.connection_count()
    }

    /// Stops accepting, lets answers under way go out, closes every connection, waits for all
    /// tasks, and closes the store.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        // Whoever waits for that is answered.
        self.shared.links.open_names();
        self.tasks.close();
        if tokio::time::timeout(limits::DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        let (stop, tasks) = &self.sync;
        stop.cancel();
        tasks.close();
        let _ = tokio::time::timeout(limits::DRAIN, tasks.wait()).await;
        self.shared.endpoint.close(ErrorCode::GoingAway).await;
        self.tasks.wait().await;
        tasks.wait().await;
        self.shared.store.close().await;
    }
}

/// The clocks of this machine.
fn clocks() -> Box<dyn Fn() -> Reading + Send + Sync> {
    let began = clock::monotonic();
    Box::new(move || Reading { wall: clock::now(), passed: began.elapsed() })
}

/// Forgets, now and then, who asked long ago.
async fn tidy(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(limits::FAILURES_FORGOTTEN) => shared.throttle.tidy(),
        }
    }
}

/// Tells every client of a changed roster.
async fn proclaim(
    shared: Arc<Shared>,
    mut changes: watch::Receiver<Arc<Known>>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let known = changes.borrow_and_update().clone();
        if let Some(bytes) = known.bytes() {
            shared.presence.push_to_every(&Push::Roster { bytes: bytes.to_vec() });
        }
    }
}

async fn accept(
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    sync: (CancellationToken, TaskTracker),
) {
    let one_too_many = || shared.counters.hit(Limit::Connections);
    loop {
        let incoming = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            incoming = shared.endpoint.accept(MAX_TRACKER_CONNECTIONS, one_too_many) => incoming,
        };
        let Some(incoming) = incoming else { return };
        tasks.spawn(serve(shared.clone(), incoming, stop.clone(), sync.clone()));
    }
}

/// One client, or another tracker, from handshake to end.
async fn serve(
    shared: Arc<Shared>,
    incoming: Incoming,
    stop: CancellationToken,
    sync: (CancellationToken, TaskTracker),
) {
    let address = incoming.remote_address();
    // Whoever has proven to be there counts from now on; others could say that they are anybody.
    let mut place = match incoming.is_validated() {
        false => None,
        true => match shared.throttle.admit(address.ip()) {
            None => return incoming.refuse(),
            place => place,
        },
    };
    let Some(connection) = incoming.finish().await else {
        tracing::debug!(%address, "handshake failed");
        return;
    };
    // Trackers do not count among clients, behind whatever address.
    if connection.alpn() == Alpn::Sync {
        let tracker = connection.remote();
        match establish(&shared, connection).await {
            Ok(link) => drop(sync.1.spawn(link.serve(sync.0, sync.1.clone()))),
            Err(reason) => tracing::debug!(%tracker, %address, reason, "a tracker is turned away"),
        }
        return;
    }
    if place.is_none() {
        place = shared.throttle.admit(address.ip());
    }
    let Some(_place) = place else {
        tracing::warn!(%address, "too many connections from this address");
        connection.close(ErrorCode::LimitReached);
        return;
    };
    let number = shared.presence.next_number();
    let (outlet, queue) = Outlet::new();
    let greeting = greet(&shared, &connection, number, outlet.clone());
    let greeted = tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, greeting).await;
    let control = match greeted.unwrap_or(Err(FrameError::TimedOut)) {
        Ok(control) => control,
        Err(error) => {
            tracing::debug!(%address, %error, "no proper hello");
            if error.is_misbehaviour() {
                shared.counters.hit(Limit::Frame);
            }
            connection.close(error.code());
            shared.presence.leave(number, clock::now());
            return;
        }
    };
    tracing::debug!(%address, device = %connection.remote().short(), "connected");
    let client = Arc::new(ClientSession::new(shared.clone(), connection.remote(), address, number));
    let requests = TaskTracker::new();
    let code = tokio::select! {
        code = push_all(control, queue, &outlet) => code,
        code = accept_requests(&shared, &client, &connection, &requests) => code,
        () = outlet.cut_off.cancelled() => {
            shared.counters.hit(Limit::PushQueue);
            ErrorCode::LimitReached
        }
        () = stop.cancelled() => ErrorCode::GoingAway,
    };
    // Requests under way get their answer; a connection that is gone makes them fail at once.
    requests.close();
    let _ = tokio::time::timeout(limits::DRAIN, requests.wait()).await;
    connection.close(code);
    requests.wait().await;
    client.drop_unfinished().await;
    let now = clock::now();
    if let Some(user) = shared.presence.leave(number, now) {
        shared.store.note_seen(user, now);
    }
    tracing::debug!(%address, device = %connection.remote().short(), "disconnected");
}

/// Reads the hello, enters the client into presence, sends the welcome and the roster if the
/// client knows another.
async fn greet(
    shared: &Shared,
    connection: &Connection,
    number: ConnectionNumber,
    outlet: Outlet,
) -> Result<(SendStream, RecvStream), FrameError> {
    let mut stream = connection.accept_control().await?;
    let hello: Hello =
        crate::transport::frame::read_frame(&mut stream, limits::MAX_HELLO_LEN).await?;
    if !hello.is_bounded() {
        return Err(crate::wire::DecodeError::Malformed.into());
    }
    let observed = connection.remote_address();
    let mut control = connection.open_control().await?;
    let welcome = Welcome {
        features: 0,
        agent: crate::AGENT.to_owned(),
        time: shared.store.time(),
        observed,
        extensions: Vec::new(),
    };
    // Present before welcomed: what the client asks next may already push to it.
    let client = Client::new(connection.remote(), observed, hello.addresses, hello.session, outlet);
    shared.presence.enter(number, client);
    write_frame(&mut control, &welcome).await?;
    // A change from here on is pushed to it as to everybody present.
    let known = shared.rosters.known();
    if let Some(bytes) = known.bytes().filter(|_| known.hash() != hello.roster) {
        write_frame(&mut control, &Push::Roster { bytes: bytes.to_vec() }).await?;
    }
    Ok((control, stream))
}

/// Writes pushes until the queue ends (the client was cut off) or the client is gone. The
/// client's own control stream is kept, unread: it says nothing after its hello.
async fn push_all(
    (mut control, _hello): (SendStream, RecvStream),
    mut queue: mpsc::Receiver<Push>,
    outlet: &Outlet,
) -> ErrorCode {
    while let Some(push) = queue.recv().await {
        if write_frame(&mut control, &push).await.is_err() {
            return ErrorCode::Done;
        }
        // It reads again: now it can be told that it missed something.
        let caught_up = queue.is_empty() && outlet.lagging.swap(false, Ordering::Relaxed);
        if caught_up && write_frame(&mut control, &Push::Lagged).await.is_err() {
            return ErrorCode::Done;
        }
    }
    ErrorCode::LimitReached
}

async fn accept_requests(
    shared: &Arc<Shared>,
    client: &Arc<ClientSession>,
    connection: &Connection,
    requests: &TaskTracker,
) -> ErrorCode {
    // QUIC's stream limit bounds how many run at once.
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let (shared, client) = (shared.clone(), client.clone());
        let connection = connection.clone();
        requests.spawn(async move {
            // Large frames are for users: what anybody may say before is short.
            let limit = match client.user() {
                Ok(_) => limits::MAX_FRAME_LEN,
                Err(_) => limits::MAX_HELLO_LEN,
            };
            let request = read_frame_within(&mut recv, limit, limits::REQUEST_FRAME_DEADLINE);
            match request.await {
                Ok(request) => {
                    let answer = client.answer(request).await;
                    let deliver = async {
                        if write_frame(&mut send, &answer).await.is_ok() {
                            let _ = send.finish();
                            // Dropping an unacknowledged stream is fine, losing the tail is not.
                            let _ = send.stopped().await;
                        }
                    };
                    // Who asks and does not read keeps the answer in our memory.
                    if tokio::time::timeout(limits::ANSWER_DEADLINE, deliver).await.is_err() {
                        shared.counters.hit(Limit::UnreadAnswer);
                        connection.close(ErrorCode::LimitReached);
                    }
                }
                Err(error) => {
                    let _ = send.reset(quic_code(error.code()));
                    let _ = recv.stop(quic_code(error.code()));
                    if error.is_misbehaviour() {
                        shared.counters.hit(Limit::Frame);
                        tracing::debug!(device = %client.device().short(), %error, "misbehaved");
                        connection.close(error.code());
                    }
                }
            }
        });
    }
    ErrorCode::Done
}
