//! The agent: what a user can do, as functions. Shells, scripts and programs all call these.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use super::core::AgentConfig;
use super::core::Core;
use super::data_dir;
use super::error::AgentError;
use super::library::{Entry, EntryState};
use super::metafile;
use super::report::{DownloadRow, Notice, Shared};
use crate::error_code::ErrorCode;
use crate::id::RequestId;
use crate::manifest::Manifest;
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::swarm::download::Progress;
use crate::swarm::hashing;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::storage::PieceStore;
use crate::tracker::message::{
    DeviceRow, FileCursor, FileRow, GroupRow, Matching, MemberRow, Password, Reply, Request,
    RequestRow,
};
use crate::tracker::refusal::Refusal;

/// A running agent.
#[derive(Clone, Debug)]
pub struct Agent {
    pub(super) core: Arc<Core>,
}

impl Agent {
    /// Starts an agent on its data directory. Needs a tokio runtime; does not wait for a tracker.
    ///
    /// # Errors
    /// [`AgentError`] when the directory is in use, the identity bad or the socket taken.
    pub fn start(config: AgentConfig) -> Result<Self, AgentError> {
        Ok(Self { core: Core::start(config)? })
    }

    /// This device's peer id.
    pub fn peer_id(&self) -> PeerId {
        self.core.endpoint.identity().peer_id()
    }

    /// Where this agent keeps its identity.
    pub fn data_dir(&self) -> &Path {
        &self.core.data_dir
    }

    /// The user logged in.
    pub fn user(&self) -> Option<UserName> {
        self.core.line.user()
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_user(
        &self,
        user: UserName,
        password: Password,
        invite: Option<String>,
    ) -> Result<(), AgentError> {
        self.done(Request::CreateUser { request_id: request_id(), user, password, invite }).await
    }

    /// Logs in, and stays so over restarts until [`Self::logout`]. As the user one already is, is
    /// fine.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn login(&self, user: UserName, password: Password) -> Result<(), AgentError> {
        if let Some(other) = self.user().filter(|other| *other != user) {
            return Err(Refusal::LoggedInAs(other).into());
        }
        match self.core.line.call(&Request::Login { user, password }).await? {
            Reply::LoggedIn { user } => {
                self.core.line.set_user(Some(user.clone()));
                data_dir::keep_user(&self.core.data_dir, &user)?;
                self.core.announce_all().await;
                Ok(())
            }
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Logs in as whoever logged in with a password on this device before, by its key; returns
    /// whether that is still possible.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn login_by_key(&self, user: &UserName) -> Result<bool, AgentError> {
        if self.user().as_ref() != Some(user) {
            return Ok(false);
        }
        // A new connection logs in by itself.
        self.core.line.connection().await?;
        Ok(self.user().as_ref() == Some(user))
    }

    /// What trackers say that a person may want to know, from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.core.notices.subscribe()
    }

    /// Logs out and stops all sharing and downloading; returns how many of them there were.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn logout(&self) -> Result<usize, AgentError> {
        // Here first: whatever the tracker says, nothing is served any more.
        let stopped = self.core.drop_entries(|_| true, ErrorCode::LoggedOut);
        self.core.groups().clear();
        match self.done(Request::Logout).await {
            Ok(()) => {}
            // A tracker that could not store it still has us logged in.
            Err(error @ AgentError::Refused(_)) if error.code() != "not-logged-in" => {
                return Err(error);
            }
            Err(error) => {
                self.core.forget_login();
                self.core.line.close().await;
                return Err(error);
            }
        }
        self.core.forget_login();
        Ok(stopped)
    }

    /// Changes one's password; all other devices have to log in anew.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn change_password(&self, old: Password, new: Password) -> Result<(), AgentError> {
        self.done(Request::ChangePassword { request_id: request_id(), old, new }).await
    }

    /// The devices enrolled for one's account.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn devices(&self) -> Result<Vec<DeviceRow>, AgentError> {
        match self.core.line.call(&Request::ListDevices).await? {
            Reply::Devices { rows } => Ok(rows),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// Forgets another device of one's own.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn remove_device(&self, device: PeerId) -> Result<(), AgentError> {
        self.done(Request::RemoveDevice { request_id: request_id(), device }).await
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
        let request = |last: Option<&GroupRow>| Request::ListGroups {
            after: last.map(|row| row.name.clone()),
        };
        self.all_rows(request, |reply| match reply {
            Reply::Groups { rows, more } => Some((rows, more)),
            _ => None,
        })
        .await
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
        // Forgotten first, so that being told of it is no news.
        let held = self.core.groups().remove(&group);
        if let Err(error) = self.done(request).await {
            self.core.groups().extend(held.map(|held| (group, held)));
            return Err(error);
        }
        self.core.leave(&group, held.map(|(id, _)| id));
        Ok(())
    }

    /// Who asks to join a group one owns.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_requests(&self, group: GroupName) -> Result<Vec<RequestRow>, AgentError> {
        match self.core.line.call(&Request::ListRequests { group }).await? {
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

    /// Ends somebody's membership in a group one owns.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn kick(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::Kick { request_id: request_id(), group, user }).await
    }

    /// Says who shall own a group when one leaves it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn nominate(
        &self,
        group: GroupName,
        user: Option<UserName>,
    ) -> Result<(), AgentError> {
        self.done(Request::Nominate { request_id: request_id(), group, user }).await
    }

    /// Makes another member the owner of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn transfer_group(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::TransferGroup { request_id: request_id(), group, user }).await
    }

    /// Says how long seeders cut off from all trackers go on with running transfers of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_group(
        &self,
        group: GroupName,
        offline_grace: Duration,
    ) -> Result<(), AgentError> {
        let offline_grace = u32::try_from(offline_grace.as_secs()).unwrap_or(u32::MAX);
        self.done(Request::SetGroup { request_id: request_id(), group, offline_grace }).await
    }

    /// Takes a file off the list of a group one owns, whoever shares it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn unlist(&self, group: GroupName, file: Selector) -> Result<(), AgentError> {
        let request = Request::Unlist { request_id: request_id(), group, file };
        match self.core.line.call(&request).await? {
            Reply::Stopped { .. } => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }

    /// All members of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_members(&self, group: GroupName) -> Result<Vec<MemberRow>, AgentError> {
        let request = |last: Option<&MemberRow>| {
            let after = last.map(|row| row.user.clone());
            Request::ListMembers { group: group.clone(), after }
        };
        self.all_rows(request, |reply| match reply {
            Reply::Members { rows, more } => Some((rows, more)),
            _ => None,
        })
        .await
    }

    /// All files of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_files(&self, group: GroupName) -> Result<Vec<FileRow>, AgentError> {
        self.files(|after| Request::ListFiles { group: group.clone(), after }).await
    }

    /// Files of all one's groups whose name matches `pattern`, whatever the case.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn search(
        &self,
        pattern: &str,
        matching: Matching,
    ) -> Result<Vec<FileRow>, AgentError> {
        self.files(|after| Request::Search { pattern: pattern.to_owned(), matching, after }).await
    }

    async fn files(
        &self,
        request: impl Fn(Option<FileCursor>) -> Request,
    ) -> Result<Vec<FileRow>, AgentError> {
        let request = |last: Option<&FileRow>| {
            request(last.map(|row| FileCursor {
                group: row.group.clone(),
                name: row.name.clone(),
                content: row.content,
            }))
        };
        self.all_rows(request, |reply| match reply {
            Reply::Files { rows, more } => Some((rows, more)),
            _ => None,
        })
        .await
    }

    /// All rows of a listing: asks page by page, each after the last row seen.
    async fn all_rows<T>(
        &self,
        request: impl Fn(Option<&T>) -> Request,
        rows_of: impl Fn(Reply) -> Option<(Vec<T>, bool)>,
    ) -> Result<Vec<T>, AgentError> {
        let mut all = Vec::new();
        loop {
            let reply = self.core.line.call(&request(all.last())).await?;
            let (rows, more) = rows_of(reply).ok_or(AgentError::BadAnswer)?;
            let go_on = more && !rows.is_empty();
            all.extend(rows);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// Hashes a file, writes its metafile, lists it in a group and serves it. `progress` is told
    /// bytes hashed and bytes in all. The metafile goes to `metafile_path`, or beside the file; only
    /// in the first case is it an error when it cannot be written.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is listed then.
    pub async fn share(
        &self,
        path: &Path,
        group: GroupName,
        name: Option<FileName>,
        metafile_path: Option<PathBuf>,
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
        let id = self.core.ticket(&group).await?;
        let (manifest, stamp) = self.hash(path, progress).await?;
        let meta = Metainfo {
            trackers: self.core.trackers.links().to_vec(),
            group: group.clone(),
            name: name.clone(),
            manifest,
        };
        let chosen = metafile_path.is_some();
        let metafile_path = metafile_path.unwrap_or_else(|| metafile::beside(path));
        let is_new = metafile_path.symlink_metadata().is_err();
        let (metafile, warning) = match metafile::write(&metafile_path, &meta) {
            Ok(()) => (Some(metafile_path), None),
            Err(error) if chosen => return Err(error),
            Err(error) => {
                (None, Some(format!("no metafile was written ({error}); --mtorrent names another")))
            }
        };
        let manifest = Arc::new(meta.manifest);
        if let Err(error) = self.list(&group, &name, &manifest).await {
            // A metafile of something that is not listed helps nobody.
            if let Some(metafile) = metafile.filter(|_| is_new) {
                let _ = fs::remove_file(metafile);
            }
            return Err(error);
        }

        let key = SwarmKey { group: id, content: manifest.content_id() };
        let serving =
            self.core.library().find(key).is_some_and(|entry| {
                entry.state == EntryState::Seeding && !entry.store.is_changed()
            });
        if !serving {
            let store = Arc::new(PieceStore::whole(manifest.clone(), path.clone(), stamp));
            // A download of the same content that is under way is not needed any more.
            if let Some(old) = self.core.library().remove(key) {
                old.store.discard();
            }
            self.serve(&group, key, &name, store);
        }
        self.core.announce(&group, &[(key.content, true)]).await?;
        tracing::info!(%group, %name, content = %key.content.short(), "shared");
        Ok(Shared { group, name, path: path.clone(), manifest, metafile, warning })
    }

    pub(super) async fn hash(
        &self,
        path: &Path,
        progress: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(Manifest, hashing::Stamp), AgentError> {
        let (owned, stop) = (path.to_owned(), self.core.stop.clone());
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
            match self.core.line.call(&share).await? {
                Reply::Shared { .. } => return Ok(()),
                Reply::PagesMissing { pages } => {
                    for page in pages {
                        let bytes = manifest.page(page);
                        let put = Request::PutPage { content: manifest.content_id(), page, bytes };
                        match self.core.line.call(&put).await {
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

    /// Withdraws one's listing of a file, stops serving it, and stops its download.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn stop_share(&self, group: GroupName, file: Selector) -> Result<(), AgentError> {
        let request = Request::StopShare {
            request_id: request_id(),
            group: group.clone(),
            file: file.clone(),
        };
        let local = self.core.library().select(&group, &file);
        let key = match (self.core.line.call(&request).await, local) {
            (Ok(Reply::Stopped { still_shared: true, .. }), _) => return Ok(()),
            (Ok(Reply::Stopped { group, content, .. }), _) => SwarmKey { group, content },
            // A file that was downloaded is served without being listed by us.
            (Err(AgentError::Refused(Refusal::NotShared { .. })), Some(key)) => key,
            (Err(error), _) => return Err(error),
            _ => return Err(AgentError::BadAnswer),
        };
        self.core.library().remove(key);
        self.core.registry.remove_swarm(key, ErrorCode::Done);
        self.core.withdraw(group, key).await
    }

    /// Stops sharing and downloading what a metafile describes and deletes the metafile, never
    /// the data; returns group and name.
    ///
    /// # Errors
    /// [`AgentError`]; the metafile stays then.
    pub async fn remove(&self, path: &Path) -> Result<(GroupName, FileName), AgentError> {
        let meta = metafile::read(path)?;
        let content = meta.manifest.content_id();
        match self.stop_share(meta.group.clone(), Selector::Id(content.into())).await {
            // What is over already need not be stopped.
            Ok(())
            | Err(AgentError::Refused(
                Refusal::NoSuchGroup(_) | Refusal::NotAMember(_) | Refusal::NotShared { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        fs::remove_file(path).map_err(|error| AgentError::File { path: path.to_owned(), error })?;
        Ok((meta.group, meta.name))
    }

    /// Takes part in a swarm with a whole file; returns the entry's number.
    pub(super) fn serve(
        &self,
        group: &GroupName,
        key: SwarmKey,
        name: &FileName,
        store: Arc<PieceStore>,
    ) -> u64 {
        let swarm = Swarm { key, store: store.clone(), news: None };
        self.core.registry.add_swarm(Arc::new(swarm));
        let entry = Entry {
            number: 0,
            group: group.clone(),
            name: name.clone(),
            publisher: self.user(),
            store,
            meter: None,
            state: EntryState::Seeding,
            told: false,
            stop: CancellationToken::new(),
        };
        let number = self.core.library().add(key, entry);
        self.core.registry.tell_again(key);
        number
    }

    /// Everything shared and downloaded, in the order it was begun.
    pub fn downloads(&self) -> Vec<DownloadRow> {
        let entries = self.core.library().entries();
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
                    uploaded_bytes: self.core.registry.uploaded(key),
                    changed: entry.store.is_changed(),
                }
            })
            .collect()
    }

    /// Waits until no download is under way; returns all rows.
    ///
    /// # Errors
    /// [`AgentError::Timeout`], or [`AgentError::Download`] naming the first that failed since
    /// the last wait.
    pub async fn wait(&self, timeout: Option<Duration>) -> Result<Vec<DownloadRow>, AgentError> {
        let settled = async {
            loop {
                let changed = self.core.changed.notified();
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
        match self.core.library().take_failure() {
            Some((name, error)) => Err(AgentError::Download { name: name.to_string(), error }),
            None => Ok(rows),
        }
    }

    /// Stops everything in order: downloads, peers, the tracker, the socket.
    pub async fn shutdown(&self) {
        self.core.shutdown().await;
    }

    async fn done(&self, request: Request) -> Result<(), AgentError> {
        match self.core.line.call(&request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::BadAnswer),
        }
    }
}

fn request_id() -> RequestId {
    RequestId::random(&mut fastrand::Rng::new())
}
