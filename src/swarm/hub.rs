//! The peer side of an agent at work: accepts and dials peers, runs their sessions.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control;
use super::message::{Control, PeerHello, TAKES_MIDSTATES};
use super::rate::Bucket;
use super::registry::{Admission, Registry, tell_download};
use super::session::{News, Outgoing, Session, SwarmKey};
use super::strangers::Strangers;
use super::upload;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits;
use crate::peer_id::PeerId;
use crate::transport::connection::{Connection, RecvStream, SendStream};
use crate::transport::endpoint::Endpoint;
use crate::transport::frame::{FrameError, read_frame, write_frame};
use crate::transport::hello;
use crate::transport::tls::Alpn;

/// Runs the sessions of one agent.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    registry: Arc<Registry>,
    next_session: AtomicU64,
    dialling: Mutex<HashSet<PeerId>>,
    strangers: Mutex<(Strangers, HashMap<u64, CancellationToken>)>,
    /// No new sessions.
    draining: CancellationToken,
    /// No sessions.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Hub {
    /// Starts accepting peers on `endpoint`.
    pub fn start(endpoint: Endpoint, registry: Arc<Registry>) -> Self {
        let shared = Arc::new(Shared {
            endpoint,
            registry,
            next_session: AtomicU64::new(1),
            dialling: Mutex::default(),
            strangers: Mutex::default(),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(accept(shared.clone()));
        Self { shared }
    }

    /// Opens a swarm with a peer: on the session there is, or on one dialled now at one of
    /// `addresses`.
    pub fn connect(&self, peer: PeerId, addresses: Vec<SocketAddr>, key: SwarmKey) {
        if self.shared.registry.want(peer, &addresses, key) || addresses.is_empty() {
            return;
        }
        let Some(dialling) = Dialling::begin(self, peer) else { return };
        if !self.shared.tasks.is_closed() {
            self.shared.tasks.spawn(dial(self.shared.clone(), dialling, addresses));
        }
    }

    /// Tells peers that we go, lets pieces under way finish, and ends every task.
    pub async fn shutdown(&self) {
        self.shared.draining.cancel();
        self.shared.tasks.close();
        self.shared.registry.serving().go_away();
        for session in self.shared.registry.sessions() {
            session.send(Control::GoingAway);
        }
        let _ = tokio::time::timeout(limits::DRAIN, self.shared.tasks.wait()).await;
        self.shared.stop.cancel();
        self.shared.tasks.wait().await;
    }

    fn dialling(&self) -> MutexGuard<'_, HashSet<PeerId>> {
        self.shared.dialling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer being dialled, from the first packet until its session stands or is given up.
struct Dialling {
    hub: Hub,
    peer: PeerId,
}

impl Dialling {
    /// Nothing when the peer is being dialled already, or there are connections enough.
    fn begin(hub: &Hub, peer: PeerId) -> Option<Self> {
        let mut dialling = hub.dialling();
        let count = hub.shared.endpoint.connection_count() + dialling.len();
        let new = !dialling.contains(&peer)
            && (count < limits::MAX_PEER_CONNECTIONS || hub.shared.make_room())
            && dialling.insert(peer);
        drop(dialling);
        new.then(|| Self { hub: hub.clone(), peer })
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.hub.dialling().remove(&self.peer);
    }
}

/// A connection that somebody else began, until a valid ticket is shown on it.
struct Stranger {
    shared: Arc<Shared>,
    number: u64,
    /// Cancelled when it has to make room for others.
    goes: CancellationToken,
}

impl Stranger {
    fn arrives(shared: &Arc<Shared>, from: SocketAddr) -> Self {
        let goes = CancellationToken::new();
        let mut strangers = shared.strangers();
        let (known, tokens) = &mut *strangers;
        let (number, evicted) = known.arrive(from.ip());
        tokens.insert(number, goes.clone());
        if let Some(evicted) = evicted.and_then(|evicted| tokens.remove(&evicted)) {
            evicted.cancel();
        }
        drop(strangers);
        Self { shared: shared.clone(), number, goes }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut strangers = self.shared.strangers();
        strangers.0.leave(self.number);
        strangers.1.remove(&self.number);
    }
}

impl Shared {
    /// Connections are full: ends the session that is least useful; whether there is one to end.
    fn make_room(&self) -> bool {
        let Some(session) = self.registry.least_useful() else { return false };
        tracing::debug!(peer = %session.connection.remote().short(), "makes room for others");
        session.connection.close(ErrorCode::LimitReached);
        true
    }

    fn strangers(&self) -> MutexGuard<'_, (Strangers, HashMap<u64, CancellationToken>)> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(shared: Arc<Shared>) {
    loop {
        let incoming = tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            incoming = shared.endpoint.accept_where(limits::MAX_PEER_CONNECTIONS, || shared.make_room()) => {
                incoming
            }
        };
        let Some(incoming) = incoming else { return };
        // While strangers crowd in, addresses nobody is at count for nothing.
        let crowded = shared.strangers().0.is_crowded();
        let proven = if crowded { incoming.proven() } else { Some(incoming) };
        let Some(incoming) = proven else { continue };
        let stranger = Stranger::arrives(&shared, incoming.remote_address());
        let shared = shared.clone();
        shared.tasks.clone().spawn(async move {
            let connection = tokio::select! {
                () = shared.draining.cancelled() => return,
                () = stranger.goes.cancelled() => return,
                connection = incoming.finish() => connection,
            };
            if let Some(connection) = connection {
                run_session(shared, connection, Begun::There(stranger)).await;
            }
        });
    }
}

/// Dials all addresses of a peer at once; the first that answers as the right peer is used.
async fn dial(shared: Arc<Shared>, dialling: Dialling, addresses: Vec<SocketAddr>) {
    let peer = dialling.peer;
    let mut attempts = JoinSet::new();
    for address in addresses.into_iter().take(limits::MAX_ADDRESSES) {
        let endpoint = shared.endpoint.clone();
        attempts.spawn(async move { endpoint.dial(address, Alpn::Peer, peer).await });
    }
    let mut connected = None;
    loop {
        let done = tokio::select! {
            () = shared.draining.cancelled() => None,
            done = attempts.join_next() => done,
        };
        let Some(done) = done else { break };
        match done {
            Ok(Ok(connection)) => {
                connected = Some(connection);
                break;
            }
            Ok(Err(error)) => tracing::debug!(peer = %peer.short(), %error, "dial failed"),
            Err(_aborted) => {}
        }
    }
    drop(attempts);
    if let Some(connection) = connected {
        run_session(shared, connection, Begun::Here(dialling)).await;
    }
}

/// How fast one thing is taken from a session.
struct Pace {
    bucket: Bucket,
    begun: Instant,
}

impl Pace {
    /// So much a second, and so much at once.
    fn new((rate, burst): (u64, u64)) -> Self {
        Self { bucket: Bucket::with_burst(Some(rate), burst), begun: clock::monotonic() }
    }

    /// Something was taken, on credit if need be.
    fn take(&mut self, cost: u64) {
        self.bucket.take(self.begun.elapsed(), cost);
    }

    /// Waits until more may be taken.
    async fn ready(&self) {
        let wait = self.bucket.wait(self.begun.elapsed());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Where a connection was begun.
enum Begun {
    Here(Dialling),
    There(Stranger),
}

/// A session from hello to end.
async fn run_session(shared: Arc<Shared>, connection: Connection, begun: Begun) {
    let peer = connection.remote().short();
    let (dialling, stranger) = match begun {
        Begun::Here(dialling) => (Some(dialling), None),
        Begun::There(stranger) => (None, Some(stranger)),
    };
    let crowded_out = async {
        match &stranger {
            Some(stranger) => stranger.goes.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let greeted = tokio::select! {
        () = shared.draining.cancelled() => return connection.close(ErrorCode::GoingAway),
        () = crowded_out => return connection.close(ErrorCode::LimitReached),
        greeted = tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, greet(&connection)) => greeted,
    };
    let (mut writer, mut reader, said) = match greeted.unwrap_or(Err(FrameError::TimedOut)) {
        Ok(streams) => streams,
        Err(error) => {
            tracing::debug!(%peer, %error, "no proper hello");
            connection.close(error.code());
            return;
        }
    };
    let (control, mut queue) = mpsc::channel(limits::CONTROL_QUEUE);
    let number = shared.next_session.fetch_add(1, Ordering::Relaxed);
    let session = Arc::new(Session::new(number, connection.clone(), &said, control));
    let me = shared.endpoint.identity().peer_id();
    match shared.registry.add_session(me, &session) {
        Admission::Stays { instead_of } => {
            if let Some(old) = instead_of {
                old.connection.close(ErrorCode::Duplicate);
            }
        }
        Admission::Duplicate => {
            connection.close(ErrorCode::Duplicate);
            return;
        }
    }
    drop(dialling);
    tracing::debug!(%peer, address = %connection.remote_address(), "session begins");

    let write = async {
        while let Some(Outgoing { frame, last }) = queue.recv().await {
            if writer.write_all(&frame).await.is_err() {
                break;
            }
            session.written(frame.len());
            if last {
                return ErrorCode::GoingAway;
            }
        }
        ErrorCode::Done
    };
    let read = async {
        let mut pace = Pace::new(limits::SESSION_CONTROL);
        loop {
            let message = match read_frame(&mut reader, limits::MAX_FRAME_LEN).await {
                Ok(message) => message,
                Err(error) => break error.code(),
            };
            // Those that cost too much wait on their stream, and what follows them.
            pace.take(control::cost(&message));
            if let Err(code) = control::handle(&shared.registry, &session, message).await {
                break code;
            }
            pace.ready().await;
        }
    };
    let requests = TaskTracker::new();
    let serve = async {
        let mut order = 0u32;
        let mut pace = Pace::new(limits::SESSION_REQUESTS);
        while let Ok(streams) = connection.accept_bi().await {
            order = order.wrapping_add(1);
            let served = upload::serve(shared.registry.clone(), session.clone(), streams, order);
            let connection = connection.clone();
            requests.spawn(async move {
                if let Err(code) = served.await {
                    connection.close(code);
                }
            });
            // Those that come too fast wait in their streams, of which there are few.
            pace.take(1);
            pace.ready().await;
        }
        ErrorCode::Done
    };
    let mut serve = pin!(serve);
    let ticketless = async {
        // Whom we dialled is known: it proved to be whom we wanted.
        let Some(stranger) = stranger else { std::future::pending().await };
        tokio::select! {
            () = session.introduced.cancelled() => {
                drop(stranger);
                std::future::pending().await
            }
            () = stranger.goes.cancelled() => ErrorCode::LimitReached,
            () = tokio::time::sleep(limits::TICKET_DEADLINE) => ErrorCode::NoTicket,
        }
    };
    let code = tokio::select! {
        code = ticketless => code,
        code = write => code,
        code = read => code,
        code = &mut serve => code,
        error = connection.closed() => {
            tracing::debug!(%peer, %error, "session ends");
            ErrorCode::Done
        }
        () = shared.stop.cancelled() => ErrorCode::GoingAway,
    };
    requests.close();
    if code == ErrorCode::GoingAway {
        // Pieces under way go out; who asks for more is told that there are none.
        tokio::select! {
            () = requests.wait() => {}
            _ = &mut serve => {}
            () = shared.stop.cancelled() => {}
        }
    }
    tracing::debug!(%peer, path = ?connection.path(), "what it carried");
    connection.close(code);
    requests.wait().await;
    for swarm in shared.registry.remove_session(&session) {
        tell_download(&swarm, News::Closed { session: number, code: Some(code) }).await;
    }
}

/// Exchanges hellos.
async fn greet(connection: &Connection) -> Result<(SendStream, RecvStream, PeerHello), FrameError> {
    let mut writer = connection.open_control().await?;
    let agent = crate::AGENT.to_owned();
    let ours = PeerHello { features: TAKES_MIDSTATES, agent, extensions: Vec::new() };
    write_frame(&mut writer, &ours).await?;
    let mut reader = connection.accept_control().await?;
    let theirs: PeerHello = read_frame(&mut reader, limits::MAX_HELLO_LEN).await?;
    if !hello::is_bounded(&theirs.agent, &theirs.extensions) {
        return Err(crate::wire::DecodeError::Malformed.into());
    }
    Ok((writer, reader, theirs))
}
