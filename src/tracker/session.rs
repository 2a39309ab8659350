//! One connected client: answers its requests.
//!
//! A thin shell: who may do what is decided in `decide`, what may be read in `view`, who is
//! online in `presence`, how often in `throttle`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use super::command::{Actor, Command, Outcome};
use super::counters::{Counters, Limit};
use super::links::{Links, Reserved};
use super::message::{Answer, Reply, Request, TrackerRow, Written};
use super::password::Passwords;
use super::presence::Presence;
use super::refusal::Refusal;
use super::reservations::WantedName;
use super::rosters::Rosters;
use super::seats::ConnectionNumber;
use super::state::State;
use super::store::Store;
use super::throttle::{ConnectionThrottle, Throttle};
use super::view::{self, Live};
use crate::clock;
use crate::hash::Blake3Hash;
use crate::id::{GroupId, InviteId, OpId, RequestId, UserId, derived};
use crate::limits;
use crate::manifest::{ContentId, ManifestHead};
use crate::name::{FileName, GroupName};
use crate::peer_id::PeerId;
use crate::ticket::Ticket;
use crate::transport::endpoint::Endpoint;

/// What all sessions of a tracker share.
#[derive(Debug)]
pub struct Shared {
    /// The socket.
    pub endpoint: Endpoint,
    /// What is durable.
    pub store: Store,
    /// Who is online.
    pub presence: Arc<Presence>,
    /// Which trackers there are.
    pub rosters: Arc<Rosters>,
    /// The connections to the others.
    pub links: Links,
    /// Computes password hashes.
    pub passwords: Passwords,
    /// How often anybody may ask.
    pub throttle: Arc<Throttle>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Searches under way.
    pub searches: Semaphore,
    /// Searches under way and waiting.
    pub search_queue: Semaphore,
    /// When the tracker began.
    pub started: Instant,
    /// The file of the store.
    pub store_file: PathBuf,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
}

/// The trackers there are, and which of them have `op`.
pub fn tracker_rows(shared: &Shared, op: Option<OpId>) -> Vec<TrackerRow> {
    let own = shared.endpoint.identity().peer_id();
    let known = shared.rosters.known();
    let ours = shared.store.knowledge();
    let rows = known.book().entries().iter();
    rows.map(|entry| shared.links.row(own, entry, op, &ours, clock::now())).collect()
}

/// The id of the invitation with this code, however a person wrote it: in which case, with or
/// without the dashes, and with letters for the digits they look like.
pub fn invite_id(code: &str) -> InviteId {
    let letters = code.chars().filter(char::is_ascii_alphanumeric);
    let plain: String = letters
        .map(|letter| match letter.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        })
        .collect();
    InviteId(derived(&[b"mtq invite\0", plain.as_bytes()]))
}

/// The answer to a request that was not refused.
pub(super) struct Granted {
    pub(super) reply: Reply,
    /// Not all other trackers could be asked whether the name is free.
    pub(super) provisional: bool,
}

/// A share whose pages are not all here yet, and what was put for it.
struct Unfinished {
    head: ManifestHead,
    user: UserId,
    put: Vec<Blake3Hash>,
    /// When anything was last asked of it.
    touched: Instant,
}

/// One connected client and what it has begun.
pub struct ClientSession {
    pub(super) shared: Arc<Shared>,
    pub(super) device: PeerId,
    pub(super) address: SocketAddr,
    pub(super) number: ConnectionNumber,
    throttle: ConnectionThrottle,
    /// Failed logins so far; held by the login under way.
    pub(super) logins: tokio::sync::Mutex<u32>,
    unfinished: Mutex<HashMap<ContentId, Unfinished>>,
}

impl ClientSession {
    /// A client that has just said hello.
    pub fn new(
        shared: Arc<Shared>,
        device: PeerId,
        address: SocketAddr,
        number: ConnectionNumber,
    ) -> Self {
        let throttle = shared.throttle.connection();
        Self {
            shared,
            device,
            address,
            number,
            throttle,
            logins: tokio::sync::Mutex::new(0),
            unfinished: Mutex::default(),
        }
    }

    /// The device.
    pub fn device(&self) -> PeerId {
        self.device
    }

    /// The user logged in.
    ///
    /// # Errors
    /// [`Refusal::NotLoggedIn`].
    pub fn user(&self) -> Result<UserId, Refusal> {
        self.shared.presence.user(self.number).ok_or(Refusal::NotLoggedIn)
    }

    /// Answers one request, and counts it.
    pub async fn answer(self: &Arc<Self>, request: Request) -> Result<Answer, Refusal> {
        let (name, id) = (request.name(), request.id());
        let answer = match self.shared.throttle.request(&self.throttle) {
            Ok(()) => self.dispatch(request).await,
            Err(refusal) => Err(refusal),
        };
        match &answer {
            Err(Refusal::Limit { .. }) => self.shared.counters.hit(Limit::Quota),
            Err(Refusal::Busy) => self.shared.counters.hit(Limit::PasswordQueue),
            _ => {}
        }
        self.shared.counters.request(name, answer.as_ref().map_or_else(Refusal::code, |_| "ok"));
        let Granted { reply, provisional } = answer?;
        let op = id.and_then(|id| self.shared.store.op_of(self.device, id));
        let written = op.map(|op| {
            let (siblings, having) = self.shared.links.siblings().having(op);
            Written { op, siblings, having, provisional }
        });
        Ok(Answer { reply, written })
    }

    /// Whether this tracker takes changes now.
    pub(super) fn check_clock(&self) -> Result<(), Refusal> {
        match self.shared.links.siblings().clock_off() {
            Some(millis) => Err(Refusal::ClockOff(millis)),
            None => Ok(()),
        }
    }

    /// Reserves a name for what a command is about to make, at all trackers that can be asked.
    /// What is refused in any case is not asked of others, nor what was granted before.
    pub(super) async fn reserve(
        &self,
        id: RequestId,
        command: &Command,
        name: WantedName,
        taken: Refusal,
    ) -> Result<Option<Reserved<'_>>, Refusal> {
        let shared = &self.shared;
        if shared.store.check(&self.actor(), id, command)? {
            return Ok(None);
        }
        let reserved = shared.links.reserve(&shared.store, name, id.created(self.device)).await;
        reserved.map(Some).map_err(|_| taken)
    }

    async fn create_group(
        &self,
        id: RequestId,
        group: GroupName,
        hidden: bool,
    ) -> Result<Granted, Refusal> {
        let command = Command::CreateGroup { group: group.clone(), hidden };
        let taken = Refusal::GroupExists(group.clone());
        let reserved = self.reserve(id, &command, WantedName::Group(group), taken).await?;
        let reply = self.change(id, command).await?;
        Ok(Granted { reply, provisional: reserved.is_some_and(|reserved| reserved.provisional) })
    }

    async fn dispatch(self: &Arc<Self>, request: Request) -> Result<Granted, Refusal> {
        if request.id().is_some() || matches!(request, Request::Logout) {
            self.check_clock()?;
        }
        let reply = match request {
            Request::CreateUser { request_id, user, password, invite } => {
                return self.create_user(request_id, user, password, invite).await;
            }
            Request::CreateGroup { request_id, group, hidden } => {
                return self.create_group(request_id, group, hidden).await;
            }
            Request::Login { request_id, user, password } => {
                self.log_in(request_id, user, password).await
            }
            Request::LoginByKey => self.log_in_by_key(),
            Request::Logout => self.log_out().await,
            Request::ChangePassword { request_id, old, new } => {
                self.change_password(request_id, old, new).await
            }
            Request::RemoveDevice { request_id, device } => {
                self.change(request_id, Command::RemoveDevice { device }).await
            }
            Request::SetGroup { request_id, group, offline_grace } => {
                self.change(request_id, Command::SetGroup { group, offline_grace }).await
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
            Request::Kick { request_id, group, user } => {
                self.change(request_id, Command::Kick { group, user }).await
            }
            Request::Nominate { request_id, group, user } => {
                self.change(request_id, Command::Nominate { group, user }).await
            }
            Request::TransferGroup { request_id, group, user } => {
                self.change(request_id, Command::TransferGroup { group, user }).await
            }
            Request::Share { request_id, group, name, head } => {
                self.share(request_id, group, name, &head).await
            }
            Request::PutPage { content, page, bytes } => self.put_page(content, page, bytes).await,
            Request::StopShare { request_id, group, file } => {
                self.change(request_id, Command::StopShare { group, file }).await
            }
            Request::Unlist { request_id, group, file } => {
                self.change(request_id, Command::Unlist { group, file }).await
            }
            Request::Search { pattern, matching, group, after } => {
                self.search(&pattern, matching, group, after).await
            }
            Request::FindFiles { group, files } => self.find_files(&group, &files),
            Request::Pages { group, pages } => self.pages(&group, pages).await,
            Request::Announce { group, contents } => self.announce(&group, contents),
            Request::Withdraw { group, contents } => {
                check_batch(contents.len(), limits::MAX_ANNOUNCE_BATCH)?;
                let id = self.own_group(&group)?;
                for content in contents {
                    self.shared.presence.withdraw(self.number, id, content);
                }
                Ok(Reply::Done)
            }
            Request::Peers { group, contents } => self.peers(&group, &contents),
            Request::Ticket { group } => self.ticket(&group),
            Request::Trackers { op } => {
                Ok(Reply::Trackers { rows: tracker_rows(&self.shared, op) })
            }
            list => self.read(|state, user| self.list(state, user, list)),
        };
        reply.map(|reply| Granted { reply, provisional: false })
    }

    /// Answers what only reads the state.
    fn list(&self, state: &State, user: UserId, request: Request) -> Result<Reply, Refusal> {
        let presence = &self.shared.presence;
        Ok(match request {
            Request::ListGroups { after } => {
                let (rows, more) = view::groups(state, user, after.as_ref());
                Reply::Groups { rows, more }
            }
            Request::ListRequests { group } => {
                let group = view::group_of_owner(state, &group, user)?;
                Reply::Requests { rows: view::requests(state, group) }
            }
            Request::ListMembers { group, after } => {
                let group = view::group_of_member(state, &group, user)?;
                let (rows, more) =
                    live(presence, |live| view::members(state, group, after.as_ref(), live));
                Reply::Members { rows, more }
            }
            Request::ListFiles { group, after } => {
                let group = view::group_of_member(state, &group, user)?;
                let one = std::iter::once(group);
                let (rows, more) =
                    live(presence, |live| view::files(state, one, after.as_ref(), |_| true, live));
                Reply::Files { rows, more }
            }
            Request::ListDevices => {
                let online = presence.devices(user);
                let rows = view::devices(state, user, |device| online.contains(&device));
                Reply::Devices { rows }
            }
            // Everything else was answered before it came here.
            _ => return Err(Refusal::Internal),
        })
    }

    pub(super) fn read<R>(
        &self,
        view: impl FnOnce(&State, UserId) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        self.shared.store.read(|state| view(state, self.enrolled(state)?))
    }

    /// The user logged in, if this device is still enrolled: presence may be a moment behind what
    /// was revoked.
    pub(super) fn enrolled(&self, state: &State) -> Result<UserId, Refusal> {
        let user = self.user()?;
        match state.user_of(self.device) {
            Some(enrolled) if enrolled == user => Ok(user),
            _ => Err(Refusal::NotLoggedIn),
        }
    }

    /// The id of a group the user is a member of.
    pub(super) fn own_group(&self, group: &GroupName) -> Result<GroupId, Refusal> {
        self.read(|state, user| view::group_of_member(state, group, user))
    }

    pub(super) fn actor(&self) -> Actor {
        Actor::Client { device: self.device, user: self.shared.presence.user(self.number) }
    }

    pub(super) async fn change(&self, id: RequestId, command: Command) -> Result<Reply, Refusal> {
        let listing = matches!(
            command,
            Command::Share { .. } | Command::StopShare { .. } | Command::Unlist { .. }
        );
        self.shared.throttle.change(self.user()?, !listing)?;
        Ok(match self.shared.store.propose(self.actor(), id, command).await? {
            Outcome::Done => Reply::Done,
            Outcome::Shared { group } => Reply::Shared { group },
            Outcome::PagesMissing { pages } => Reply::PagesMissing { pages },
            Outcome::Stopped { group, content, still_shared } => {
                Reply::Stopped { group, content, still_shared }
            }
        })
    }

    fn ticket(&self, group: &GroupName) -> Result<Reply, Refusal> {
        let (holder, as_of) = self.shared.store.read_as_of(|state, as_of| {
            let user = self.enrolled(state)?;
            Ok::<_, Refusal>((view::ticket_holder(state, group, user, self.device)?, as_of))
        })?;
        let identity = self.shared.endpoint.identity();
        let group = holder.group;
        if self.shared.presence.note_ticket(self.number, group) {
            // Perhaps it was not there to hear of what was revoked here before.
            self.replay_revocations(Some(group));
        }
        let sign = |message: &[u8]| identity.sign(message);
        let now = self.shared.store.time();
        let ticket = Ticket::sign(holder, as_of, now, identity.public_key(), &sign);
        Ok(Reply::Ticket { group, ticket })
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
        let now = clock::monotonic();
        let done = {
            let mut unfinished = self.lock_unfinished();
            match &reply {
                Reply::PagesMissing { .. } => {
                    let full = !unfinished.contains_key(&content)
                        && unfinished.len() >= limits::MAX_UNFINISHED_SHARES;
                    // One that was finished elsewhere, or given up, makes room.
                    let oldest = unfinished.iter().min_by_key(|(_, share)| share.touched);
                    let idle = oldest.filter(|(_, share)| {
                        now.saturating_duration_since(share.touched)
                            >= limits::TRACKER_REQUEST_DEADLINE
                    });
                    let idle = idle.map(|(content, _)| *content);
                    let gone = match (full, idle) {
                        (false, _) => None,
                        (true, Some(idle)) => unfinished.remove(&idle),
                        (true, None) => {
                            let what = "unfinished shares on one connection".to_owned();
                            let max = limits::MAX_UNFINISHED_SHARES as u64;
                            return Err(Refusal::Limit { what, max });
                        }
                    };
                    let begun = Unfinished { head, user, put: Vec::new(), touched: now };
                    unfinished.entry(content).or_insert(begun).touched = now;
                    gone
                }
                _ => unfinished.remove(&content),
            }
        };
        if let Some(done) = done {
            self.shared.store.release_pages(done.user, done.put).await;
        }
        Ok(reply)
    }

    async fn put_page(
        &self,
        content: ContentId,
        page: u32,
        bytes: Vec<u8>,
    ) -> Result<Reply, Refusal> {
        let (user, hash) = {
            let mut unfinished = self.lock_unfinished();
            let share = unfinished.get_mut(&content).ok_or(Refusal::NoSuchShare(content))?;
            share.head.check_page(page, &bytes)?;
            share.touched = clock::monotonic();
            let hash = share.head.page_hashes()[page as usize];
            if share.put.contains(&hash) {
                return Ok(Reply::Done);
            }
            (share.user, hash)
        };
        let put = self.shared.store.put_page(user, hash, bytes).await;
        // Noted once it is there: nobody lets go of what was never held.
        let let_go = {
            let mut unfinished = self.lock_unfinished();
            match (&put, unfinished.get_mut(&content)) {
                (Ok(()), Some(share)) if !share.put.contains(&hash) => {
                    share.put.push(hash);
                    Vec::new()
                }
                // Finished or given up meanwhile, or put twice at once.
                (Ok(()), _) => vec![hash],
                // It cannot be finished: what was put for it goes.
                (Err(_), _) => {
                    unfinished.remove(&content).map(|share| share.put).unwrap_or_default()
                }
            }
        };
        self.shared.store.release_pages(user, let_go).await;
        put.map(|()| Reply::Done)
    }

    fn announce(
        &self,
        group: &GroupName,
        contents: Vec<(ContentId, bool)>,
    ) -> Result<Reply, Refusal> {
        check_batch(contents.len(), limits::MAX_ANNOUNCE_BATCH)?;
        let (id, listed) = self.read(|state, user| {
            let id = view::group_of_member(state, group, user)?;
            let listed = |content: &ContentId| state.head(id, *content).is_some();
            let listed: Vec<_> = contents.into_iter().filter(|(c, _)| listed(c)).collect();
            Ok((id, listed))
        })?;
        let announced: Vec<_> = listed.iter().map(|(content, _)| *content).collect();
        // What is not listed (any more) is nobody's to look for.
        let room = listed.into_iter().all(|(content, complete)| {
            self.shared.presence.announce(self.number, id, content, complete)
        });
        // Whose membership ended meanwhile was expelled before some of these came.
        if let Err(refusal) = self.own_group(group) {
            announced.iter().for_each(|content| {
                self.shared.presence.withdraw(self.number, id, *content);
            });
            return Err(refusal);
        }
        if !room {
            let max = limits::MAX_SHARES_PER_USER as u64;
            return Err(Refusal::Limit { what: "announced contents".into(), max });
        }
        Ok(Reply::Done)
    }

    /// Lets go of the pages of shares that were not finished.
    pub async fn drop_unfinished(&self) {
        let all: Vec<_> = self.lock_unfinished().drain().map(|(_, share)| share).collect();
        for share in all {
            self.shared.store.release_pages(share.user, share.put).await;
        }
    }

    fn lock_unfinished(&self) -> MutexGuard<'_, HashMap<ContentId, Unfinished>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What views are told of who is online.
pub(super) fn live<R>(presence: &Presence, view: impl FnOnce(Live<'_>) -> R) -> R {
    view(Live {
        holders: &|group, content| presence.holders(group, content),
        online: &|user| presence.is_online(user),
        last_seen: &|user| presence.last_seen(user),
    })
}

pub(super) fn check_batch(count: usize, most: usize) -> Result<(), Refusal> {
    match count <= most {
        true => Ok(()),
        false => Err(Refusal::Limit { what: "contents at once".into(), max: most as u64 }),
    }
}
