//! The running tracker: accepts connections, answers requests, pushes news.
//!
//! A thin shell: who may do what is decided in `decide`, what may be read in `view`, who is
//! online in `presence`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::decide::{Actor, Command, Outcome};
use super::message::{Hello, Password, Push, Refusal, Reply, Request, Welcome};
use super::password::Passwords;
use super::presence::{Client, ConnectionNumber, Outlet, Presence};
use super::store::{Granted, Store};
use super::view;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::hash::Blake3Hash;
use crate::id::{GroupId, RequestId};
use crate::limits;
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName, UserName};
use crate::ticket::Ticket;
use crate::transport::code::quic_code;
use crate::transport::connection::{Connection, RecvStream, SendStream};
use crate::transport::endpoint::{BindError, Endpoint, Incoming};
use crate::transport::frame::{FrameError, read_frame_within, write_frame};
use crate::transport::identity::Identity;
use crate::transport::tls::Alpn;

/// A tracker that serves until told to stop.
#[derive(Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    store: Store,
    presence: Presence,
    passwords: Passwords,
    next_connection: AtomicU64,
}

impl Tracker {
    /// Binds `address` and starts serving.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn start(identity: Arc<Identity>, address: SocketAddr) -> Result<Self, BindError> {
        let shared = Arc::new(Shared {
            endpoint: Endpoint::bind(identity, address, Alpn::Tracker)?,
            store: Store::default(),
            presence: Presence::default(),
            passwords: Passwords::new(),
            next_connection: AtomicU64::new(1),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(shared.clone(), stop.clone(), tasks.clone()));
        Ok(Self { shared, stop, tasks })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_address()
    }

    /// Clients now connected.
    pub fn connection_count(&self) -> usize {
        self.shared.presence.connection_count()
    }

    /// Stops accepting, lets answers under way go out, closes every connection and waits for all
    /// tasks.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(limits::DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        self.shared.endpoint.close(ErrorCode::GoingAway).await;
        self.tasks.wait().await;
    }
}

async fn accept(shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let incoming = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            incoming = shared.endpoint.accept(limits::MAX_TRACKER_CONNECTIONS) => incoming,
        };
        let Some(incoming) = incoming else { return };
        tasks.spawn(serve(shared.clone(), incoming, stop.clone()));
    }
}

/// One client, from handshake to end.
async fn serve(shared: Arc<Shared>, incoming: Incoming, stop: CancellationToken) {
    let address = incoming.remote_address();
    let Some(connection) = incoming.finish().await else {
        tracing::debug!(%address, "handshake failed");
        return;
    };
    let number = shared.next_connection.fetch_add(1, Ordering::Relaxed);
    let (pushes, queue) = mpsc::channel(limits::PUSH_QUEUE);
    let cut_off = CancellationToken::new();
    let outlet = Outlet { pushes, cut_off: cut_off.clone() };
    let control = match greet(&shared, &connection, number, outlet).await {
        Ok(control) => control,
        Err(error) => {
            tracing::debug!(%address, %error, "no proper hello");
            connection.close(error.code());
            return;
        }
    };
    tracing::debug!(%address, device = %connection.remote().short(), "connected");
    let client = Arc::new(ClientSession {
        device: connection.remote(),
        number,
        logins: tokio::sync::Mutex::new(0),
        unfinished: std::sync::Mutex::new(HashMap::new()),
        shared: shared.clone(),
    });
    let requests = TaskTracker::new();
    let code = tokio::select! {
        code = push_all(control, queue) => code,
        code = accept_requests(&client, &connection, &requests) => code,
        () = cut_off.cancelled() => ErrorCode::LimitReached,
        () = stop.cancelled() => ErrorCode::GoingAway,
    };
    // Requests under way get their answer; a connection that is gone makes them fail at once.
    requests.close();
    let _ = tokio::time::timeout(limits::DRAIN, requests.wait()).await;
    connection.close(code);
    requests.wait().await;
    client.drop_unfinished();
    shared.presence.leave(number);
    tracing::debug!(%address, device = %connection.remote().short(), "disconnected");
}

/// Reads the hello, sends the welcome, enters the client into presence.
async fn greet(
    shared: &Shared,
    connection: &Connection,
    number: ConnectionNumber,
    outlet: Outlet,
) -> Result<(SendStream, RecvStream), FrameError> {
    let first = async {
        let mut stream = connection.accept_control().await?;
        let hello: Hello =
            crate::transport::frame::read_frame(&mut stream, limits::MAX_HELLO_LEN).await?;
        Ok::<_, FrameError>((stream, hello))
    };
    let (stream, hello) = tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, first)
        .await
        .unwrap_or(Err(FrameError::TimedOut))?;
    if !hello.is_bounded() {
        return Err(crate::wire::DecodeError::Malformed.into());
    }
    let observed = connection.remote_address();
    let mut control = connection.open_control().await?;
    let welcome = Welcome {
        features: 0,
        agent: crate::AGENT.to_owned(),
        time: clock::now(),
        observed,
        extensions: Vec::new(),
    };
    // Present before welcomed: what the client asks next may already push to it.
    let client = Client::new(connection.remote(), observed, hello.addresses, hello.session, outlet);
    shared.presence.enter(number, client);
    if let Err(error) = write_frame(&mut control, &welcome).await {
        shared.presence.leave(number);
        return Err(error);
    }
    Ok((control, stream))
}

/// Writes pushes until the queue ends (the client was cut off) or the client is gone. The
/// client's own control stream is kept, unread: it says nothing after its hello.
async fn push_all(
    (mut control, _hello): (SendStream, RecvStream),
    mut queue: mpsc::Receiver<Push>,
) -> ErrorCode {
    while let Some(push) = queue.recv().await {
        if write_frame(&mut control, &push).await.is_err() {
            return ErrorCode::Done;
        }
    }
    ErrorCode::LimitReached
}

async fn accept_requests(
    client: &Arc<ClientSession>,
    connection: &Connection,
    requests: &TaskTracker,
) -> ErrorCode {
    // QUIC's stream limit bounds how many run at once.
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let client = client.clone();
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
                    if write_frame(&mut send, &answer).await.is_ok() {
                        let _ = send.finish();
                        // Dropping an unacknowledged stream is fine, losing the tail is not.
                        let _ = send.stopped().await;
                    }
                }
                Err(error) => {
                    let _ = send.reset(quic_code(error.code()));
                    let _ = recv.stop(quic_code(error.code()));
                    if error.is_misbehaviour() {
                        tracing::debug!(device = %client.device.short(), %error, "misbehaved");
                        connection.close(error.code());
                    }
                }
            }
        });
    }
    ErrorCode::Done
}

/// A share whose pages are not all here yet, and what was put for it.
struct Unfinished {
    head: ManifestHead,
    user: UserName,
    put: Vec<Blake3Hash>,
}

/// One connected client and what it has begun.
struct ClientSession {
    device: crate::peer_id::PeerId,
    number: ConnectionNumber,
    /// Failed logins so far; the lock makes logins wait for each other.
    logins: tokio::sync::Mutex<u32>,
    unfinished: std::sync::Mutex<HashMap<ContentId, Unfinished>>,
    shared: Arc<Shared>,
}

impl ClientSession {
    async fn answer(&self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::CreateUser { request_id, user, password } => {
                self.create_user(request_id, user, password).await
            }
            Request::Login { user, password } => self.log_in(user, password).await,
            Request::LoginByKey => self.log_in_by_key(),
            Request::Logout => self.log_out().await,
            Request::CreateGroup { request_id, group, hidden } => {
                self.change(request_id, Command::CreateGroup { group, hidden }).await
            }
            Request::JoinGroup { request_id, group } => {
                self.change(request_id, Command::JoinGroup { group }).await
            }
            Request::LeaveGroup { request_id, group } => {
                self.change(request_id, Command::LeaveGroup { group }).await
            }
            Request::AcceptRequest { request_id, group, user } => {
                self.change(request_id, Command::AcceptRequest { group, user }).await
            }
            Request::RejectRequest { request_id, group, user } => {
                self.change(request_id, Command::RejectRequest { group, user }).await
            }
            Request::Share { request_id, group, name, head } => {
                self.share(request_id, group, name, &head).await
            }
            Request::PutPage { content, page, bytes } => self.put_page(content, page, &bytes),
            Request::StopShare { request_id, group, file } => {
                self.change(request_id, Command::StopShare { group, file }).await
            }
            Request::ListGroups { after } => {
                let user = self.user()?;
                let (rows, more) =
                    self.shared.store.read(|state| view::groups(state, &user, after.as_ref()));
                Ok(Reply::Groups { rows, more })
            }
            Request::ListRequests { group } => {
                let user = self.user()?;
                self.shared.store.read(|state| {
                    let (_, group) = view::group_of_owner(state, &group, &user)?;
                    Ok(Reply::Requests { rows: view::requests(group) })
                })
            }
            Request::ListMembers { group, after } => {
                let user = self.user()?;
                let online = |user: &UserName| self.shared.presence.is_online(user);
                self.shared.store.read(|state| {
                    let (_, group) = view::group_of_member(state, &group, &user)?;
                    let (rows, more) = view::members(group, after.as_ref(), online);
                    Ok(Reply::Members { rows, more })
                })
            }
            Request::ListFiles { group, after } => {
                let user = self.user()?;
                let holders = |group, content| self.shared.presence.holders(group, content);
                self.shared.store.read(|state| {
                    let found = view::group_of_member(state, &group, &user)?;
                    let one = std::iter::once(found);
                    let (rows, more) = view::files(one, after.as_ref(), |_| true, holders);
                    Ok(Reply::Files { rows, more })
                })
            }
            Request::Search { pattern, after } => self.search(&pattern, after.as_ref()),
            Request::FindFile { group, file } => {
                let user = self.user()?;
                self.shared.store.read(|state| {
                    let (id, found) = view::group_of_member(state, &group, &user)?;
                    Ok(Reply::File(view::find_file(id, found, &group, &file)?))
                })
            }
            Request::Page { group, content, page } => self.page(&group, content, page),
            Request::Announce { group, contents } => self.announce(&group, contents),
            Request::Withdraw { group, contents } => {
                let id = self.own_group(&group)?;
                for content in contents {
                    self.shared.presence.withdraw(self.number, id, content);
                }
                Ok(Reply::Done)
            }
            Request::Peers { group, content } => {
                let id = self.own_group(&group)?;
                let mut rng = fastrand::Rng::new();
                let peers = self.shared.presence.sample(id, content, self.number, &mut rng);
                Ok(Reply::Peers { peers })
            }
            Request::Ticket { group } => {
                let user = self.user()?;
                let holder = self
                    .shared
                    .store
                    .read(|state| view::ticket_holder(state, &group, &user, self.device))?;
                let identity = self.shared.endpoint.identity();
                let group = holder.group;
                let sign = |message: &[u8]| identity.sign(message);
                let ticket = Ticket::sign(holder, clock::now(), identity.public_key(), &sign);
                Ok(Reply::Ticket { group, ticket })
            }
        }
    }

    fn user(&self) -> Result<UserName, Refusal> {
        self.shared.presence.user(self.number).ok_or(Refusal::NotLoggedIn)
    }

    /// The id of a group the user is a member of.
    fn own_group(&self, group: &GroupName) -> Result<GroupId, Refusal> {
        let user = self.user()?;
        self.shared.store.read(|state| Ok(view::group_of_member(state, group, &user)?.0))
    }

    fn actor(&self) -> Actor {
        Actor { device: self.device, user: self.shared.presence.user(self.number) }
    }

    async fn propose(&self, id: RequestId, command: &Command) -> Result<Granted, Refusal> {
        let granted = self.shared.store.propose(&self.actor(), id, command, clock::now()).await?;
        for ended in &granted.ended {
            self.shared.presence.expel(&ended.user, ended.group);
            let push = Push::Revoked { membership: ended.membership };
            self.shared.presence.push_to_users(&ended.members, &push);
        }
        Ok(granted)
    }

    async fn change(&self, id: RequestId, command: Command) -> Result<Reply, Refusal> {
        Ok(match self.propose(id, &command).await?.outcome {
            Outcome::Done => Reply::Done,
            Outcome::Shared { group } => Reply::Shared { group },
            Outcome::PagesMissing { pages } => Reply::PagesMissing { pages },
            Outcome::Stopped { group, content, still_shared } => {
                Reply::Stopped { group, content, still_shared }
            }
        })
    }

    async fn create_user(
        &self,
        id: RequestId,
        user: UserName,
        password: Password,
    ) -> Result<Reply, Refusal> {
        // A taken name is refused before a hash is spent on it; a repeat of this very request
        // passes and is recognised by the store.
        let store = &self.shared.store;
        let taken = store.read(|state| state.users.contains_key(&user))
            && !store.has_granted(self.device, id);
        if taken {
            return Err(Refusal::UserExists(user));
        }
        let password = self.shared.passwords.hash(password).await?;
        let reply = self.change(id, Command::CreateUser { user: user.clone(), password }).await?;
        tracing::info!(%user, "account created");
        Ok(reply)
    }

    async fn log_in(&self, user: UserName, password: Password) -> Result<Reply, Refusal> {
        let mut failures = self.logins.lock().await;
        self.refuse_other(&user)?;
        let phc =
            self.shared.store.read(|state| state.users.get(&user).map(|u| u.password.clone()));
        if !self.shared.passwords.verify(password, phc).await? {
            *failures = failures.saturating_add(1);
            let delay = limits::LOGIN_DELAY_STEP.saturating_mul(*failures);
            tokio::time::sleep(delay.min(limits::LOGIN_DELAY_MAX)).await;
            return Err(Refusal::WrongCredentials);
        }
        *failures = 0;
        // Enrolling is idempotent, so its request id need not come from the client.
        let id = RequestId::random(&mut fastrand::Rng::new());
        self.propose(id, &Command::EnrolDevice { user: user.clone() }).await?;
        self.shared.presence.log_in(self.number, &user);
        tracing::info!(%user, device = %self.device.short(), "logged in");
        Ok(Reply::LoggedIn { user })
    }

    fn log_in_by_key(&self) -> Result<Reply, Refusal> {
        let user = self.shared.store.read(|state| state.devices.get(&self.device).cloned());
        let user = user.ok_or(Refusal::UnknownDevice)?;
        self.refuse_other(&user)?;
        self.shared.presence.log_in(self.number, &user);
        tracing::info!(%user, device = %self.device.short(), "logged in by key");
        Ok(Reply::LoggedIn { user })
    }

    fn refuse_other(&self, user: &UserName) -> Result<(), Refusal> {
        match self.shared.presence.user(self.number) {
            Some(other) if other != *user => Err(Refusal::LoggedInAs(other)),
            _ => Ok(()),
        }
    }

    async fn log_out(&self) -> Result<Reply, Refusal> {
        let user = self.user()?;
        let id = RequestId::random(&mut fastrand::Rng::new());
        self.propose(id, &Command::RemoveDevice).await?;
        self.shared.presence.log_out(self.number);
        self.drop_unfinished();
        tracing::info!(%user, device = %self.device.short(), "logged out");
        Ok(Reply::Done)
    }

    async fn share(
        &self,
        id: RequestId,
        group: GroupName,
        name: FileName,
        head: &[u8],
    ) -> Result<Reply, Refusal> {
        let user = self.user()?;
        let head = ManifestHead::parse(head)?;
        let content = head.content_id();
        let command = Command::Share { group, name, head: Arc::new(head.clone()) };
        let reply = self.change(id, command).await?;
        let mut unfinished = self.lock_unfinished();
        match &reply {
            Reply::PagesMissing { .. } => {
                if !unfinished.contains_key(&content)
                    && unfinished.len() >= limits::MAX_UNFINISHED_SHARES
                {
                    let what = "unfinished shares on one connection".to_owned();
                    let max = limits::MAX_UNFINISHED_SHARES as u64;
                    return Err(Refusal::Limit { what, max });
                }
                let begun = Unfinished { head, user, put: Vec::new() };
                unfinished.entry(content).or_insert(begun);
            }
            _ => {
                if let Some(done) = unfinished.remove(&content) {
                    self.shared.store.release_pages(&done.user, &done.put);
                }
            }
        }
        Ok(reply)
    }

    fn put_page(&self, content: ContentId, page: u32, bytes: &[u8]) -> Result<Reply, Refusal> {
        let mut unfinished = self.lock_unfinished();
        let share = unfinished.get_mut(&content).ok_or(Refusal::NoSuchShare(content))?;
        share.head.check_page(page, bytes)?;
        let hash = share.head.page_hashes()[page as usize];
        if !share.put.contains(&hash) {
            if let Err(refusal) = self.shared.store.put_page(&share.user, hash, bytes) {
                // It cannot be finished: what was put for it goes.
                if let Some(given_up) = unfinished.remove(&content) {
                    self.shared.store.release_pages(&given_up.user, &given_up.put);
                }
                return Err(refusal);
            }
            share.put.push(hash);
        }
        Ok(Reply::Done)
    }

    fn page(&self, group: &GroupName, content: ContentId, page: u32) -> Result<Reply, Refusal> {
        let user = self.user()?;
        let missing = || Refusal::NoSuchFile {
            file: format!("page {page} of id:{content}"),
            group: group.clone(),
        };
        let hash = self.shared.store.read(|state| {
            let (_, found) = view::group_of_member(state, group, &user)?;
            let listing = found.listings.get(&content).ok_or_else(missing)?;
            listing.head.page_hashes().get(page as usize).copied().ok_or_else(missing)
        })?;
        let bytes = self.shared.store.page(&hash).ok_or_else(missing)?;
        Ok(Reply::Page { bytes: bytes.to_vec() })
    }

    fn announce(
        &self,
        group: &GroupName,
        contents: Vec<(ContentId, bool)>,
    ) -> Result<Reply, Refusal> {
        let user = self.user()?;
        let (id, listed) = self.shared.store.read(|state| {
            let (id, found) = view::group_of_member(state, group, &user)?;
            let listed = |content: &ContentId| found.listings.contains_key(content);
            let listed: Vec<_> = contents.into_iter().filter(|(c, _)| listed(c)).collect();
            Ok::<_, Refusal>((id, listed))
        })?;
        // What is not listed (any more) is nobody's to look for.
        for (content, complete) in listed {
            if !self.shared.presence.announce(self.number, id, content, complete) {
                let max = limits::MAX_SHARES_PER_USER as u64;
                return Err(Refusal::Limit { what: "announced contents".into(), max });
            }
        }
        Ok(Reply::Done)
    }

    fn search(
        &self,
        pattern: &str,
        after: Option<&super::message::FileCursor>,
    ) -> Result<Reply, Refusal> {
        let user = self.user()?;
        if pattern.len() > limits::MAX_PATTERN_LEN {
            let max = limits::MAX_PATTERN_LEN as u64;
            return Err(Refusal::Limit { what: "bytes of a search pattern".into(), max });
        }
        let pattern = pattern.to_lowercase();
        let holders = |group, content| self.shared.presence.holders(group, content);
        self.shared.store.read(|state| {
            let mine = state.users.get(&user).into_iter().flat_map(|account| &account.groups);
            let groups = mine.filter_map(|id| Some((*id, state.groups.get(id)?)));
            let wanted = |name: &FileName| name.as_str().to_lowercase().contains(&pattern);
            let (rows, more) = view::files(groups, after, wanted, holders);
            Ok(Reply::Files { rows, more })
        })
    }

    fn drop_unfinished(&self) {
        for (_, share) in self.lock_unfinished().drain() {
            self.shared.store.release_pages(&share.user, &share.put);
        }
    }

    fn lock_unfinished(&self) -> std::sync::MutexGuard<'_, HashMap<ContentId, Unfinished>> {
        self.unfinished.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
