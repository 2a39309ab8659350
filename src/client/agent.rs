//! The agent: what a user can do, as functions. Shells, scripts and programs all call these.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::broadcast;

use super::batch::BatchRow;
pub use super::core::AgentConfig;
use super::core::Core;
use super::error::AgentError;
use super::library::{Entry, EntryState};
use super::looking::Looking;
use super::report::{DownloadRow, Notice, Overview};
use crate::id::RequestId;
use crate::name::{GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::swarm::meter::Progress;
use crate::swarm::rates::RateLimits;
use crate::swarm::session::SwarmKey;
use crate::tracker::message::{
    FileCursor, FileRow, GroupRow, Matching, MemberRow, Reply, Request, RequestRow, Written,
};

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

    /// What trackers say that a person may want to know, from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.core.notices.subscribe()
    }

    /// Makes a group; also says what became of it beyond the tracker that answered.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_group(
        &self,
        group: GroupName,
        hidden: bool,
    ) -> Result<Option<Written>, AgentError> {
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
        self.done(Request::JoinGroup { request_id: request_id(), group }).await?;
        Ok(())
    }

    /// Leaves a group and its swarms.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn leave_group(&self, group: GroupName) -> Result<(), AgentError> {
        let agent = self.clone();
        let leaving = async move {
            let request = Request::LeaveGroup { request_id: request_id(), group: group.clone() };
            // Forgotten first, so that being told of it is no news.
            let held = agent.core.groups().take(&group);
            if let Err(error) = agent.done(request).await {
                if let Some((id, held)) = held {
                    agent.core.groups().put_back(id, held);
                }
                return Err(error);
            }
            if let Some((id, _)) = held {
                agent.core.leave(id);
            }
            Ok(())
        };
        self.core.to_the_end(leaving).await
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
        self.done(Request::AcceptRequest { request_id: request_id(), group, user }).await?;
        Ok(())
    }

    /// Turns somebody away.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn reject_request(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::RejectRequest { request_id: request_id(), group, user }).await?;
        Ok(())
    }

    /// Ends somebody's membership in a group one owns.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn kick(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::Kick { request_id: request_id(), group, user }).await?;
        Ok(())
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
        self.done(Request::Nominate { request_id: request_id(), group, user }).await?;
        Ok(())
    }

    /// Makes another member the owner of a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn transfer_group(&self, group: GroupName, user: UserName) -> Result<(), AgentError> {
        self.done(Request::TransferGroup { request_id: request_id(), group, user }).await?;
        Ok(())
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
        self.done(Request::SetGroup { request_id: request_id(), group, offline_grace }).await?;
        Ok(())
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
        self.files(|after| Request::Search {
            pattern: pattern.to_owned(),
            matching,
            group: None,
            after,
        })
        .await
    }

    pub(super) async fn files(
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

    /// Looks at every whole file, so that the rows of those that changed or are missing say so.
    pub async fn look_for_changes(&self) {
        self.core.look_at_files(|_, _| true).await;
    }

    /// What is being hashed and checked now.
    pub fn looking(&self) -> Vec<Looking> {
        self.core.looks.all()
    }

    /// How many files are shared and downloaded, and what is not, and why.
    pub fn overview(&self) -> Overview {
        self.core.overview()
    }

    /// Everything shared and downloaded, in the order it was begun; of files that changed, what was
    /// noticed so far.
    pub fn downloads(&self) -> Vec<DownloadRow> {
        let entries = self.core.library().entries();
        entries.into_iter().map(|(key, entry)| self.row(key, entry)).collect()
    }

    /// The downloads under way.
    pub fn under_way(&self) -> Vec<DownloadRow> {
        let under_way = |_, entry: &Entry| entry.state.is_under_way();
        let entries = self.core.library().entries_where(under_way);
        entries.into_iter().map(|(key, entry)| self.row(key, entry)).collect()
    }

    /// The downloads under way that were asked for one by one, and how far those are that were asked for
    /// together.
    pub fn under_way_by_batch(&self) -> (Vec<DownloadRow>, Vec<BatchRow>) {
        let mut batches: Vec<BatchRow> = Vec::new();
        let singles = {
            let library = self.core.library();
            for (_, entry) in library.iter().filter(|(_, entry)| entry.state.is_under_way()) {
                let Some(batch) = &entry.batch else { continue };
                let known = batches.iter().position(|row| Arc::ptr_eq(&row.batch, batch));
                let at = known.unwrap_or_else(|| {
                    batches.push(BatchRow::over(batch.clone()));
                    batches.len() - 1
                });
                batches[at].under_way(entry.size(), entry.stored_bytes());
            }
            library.entries_where(|_, entry| entry.state.is_under_way() && entry.batch.is_none())
        };
        (singles.into_iter().map(|(key, entry)| self.row(key, entry)).collect(), batches)
    }

    /// The share or download that `file` means in a group.
    ///
    /// # Errors
    /// [`AgentError`] when there is none here.
    pub fn download(&self, group: &GroupName, file: &Selector) -> Result<DownloadRow, AgentError> {
        let key = self.held(group, file)?;
        self.row_of(key).ok_or_else(|| not_held(group, file))
    }

    pub(super) fn row_of(&self, key: SwarmKey) -> Option<DownloadRow> {
        let entry = self.core.library().find(key).cloned();
        entry.map(|entry| self.row(key, entry))
    }

    /// The swarm of the share or download that `file` means in a group.
    pub(super) fn held(&self, group: &GroupName, file: &Selector) -> Result<SwarmKey, AgentError> {
        self.core.library().select(group, file)?.ok_or_else(|| not_held(group, file))
    }

    pub(super) fn row(&self, key: SwarmKey, entry: Entry) -> DownloadRow {
        let mut progress = entry.meter.as_ref().map_or_else(Progress::default, |m| m.progress());
        progress.stored_bytes = entry.stored_bytes();
        DownloadRow {
            number: entry.number,
            path: entry.path(),
            content: key.content,
            size: entry.size(),
            progress,
            uploaded_bytes: self.core.registry.uploaded(key),
            uploads: self.core.registry.uploads(key),
            changed: entry.is_changed(),
            missing: entry.sight.absence().is_some(),
            asked: entry.asked,
            queued: entry.queued && entry.state == EntryState::Checking,
            group: entry.group,
            name: entry.name,
            state: entry.state,
        }
    }

    /// Waits until no download is under way; returns all rows.
    ///
    /// # Errors
    /// [`AgentError::Timeout`], or [`AgentError::Download`] naming the first that failed since
    /// the last wait.
    pub async fn wait(&self, timeout: Option<Duration>) -> Result<Vec<DownloadRow>, AgentError> {
        let under_way = || {
            let library = self.core.library();
            let count = library.iter().filter(|(_, entry)| entry.state.is_under_way()).count();
            Ok(count)
        };
        self.settled(timeout, under_way).await?;
        let rows = self.downloads();
        match self.core.library().take_failure() {
            Some((name, error)) => Err(AgentError::Download { name: name.to_string(), error }),
            None => Ok(rows),
        }
    }

    /// Waits until none of these downloads is under way; returns their rows, whatever became of them.
    ///
    /// # Errors
    /// [`AgentError::Timeout`], or that there is no such download.
    pub async fn wait_for(
        &self,
        group: &GroupName,
        files: &[Selector],
        timeout: Option<Duration>,
    ) -> Result<Vec<DownloadRow>, AgentError> {
        let keys = files.iter().map(|file| self.held(group, file));
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        // Those that are through are not looked at again and again.
        let first = AtomicUsize::new(0);
        let under_way = || {
            let library = self.core.library();
            let is_under_way = |key: &SwarmKey| match library.find(*key) {
                Some(entry) => entry.state.is_under_way(),
                None => false,
            };
            let from = first.load(Ordering::Relaxed);
            let through = keys[from..].iter().take_while(|key| !is_under_way(key)).count();
            first.store(from + through, Ordering::Relaxed);
            // Any of them may have been resumed since.
            Ok(match from + through == keys.len() {
                false => keys.len() - from - through,
                true => keys.iter().filter(|key| is_under_way(key)).count(),
            })
        };
        self.settled(timeout, under_way).await?;
        let rows = files.iter().zip(keys);
        rows.map(|(file, key)| self.row_of(key).ok_or_else(|| not_held(group, file))).collect()
    }

    /// Waits until `under_way` counts none.
    async fn settled(
        &self,
        timeout: Option<Duration>,
        under_way: impl Fn() -> Result<usize, AgentError>,
    ) -> Result<(), AgentError> {
        let settled = async {
            loop {
                let changed = self.core.changed.notified();
                if under_way()? == 0 {
                    return Ok(());
                }
                changed.await;
            }
        };
        let Some(timeout) = timeout else { return settled.await };
        match tokio::time::timeout(timeout, settled).await {
            Ok(settled) => settled,
            Err(_elapsed) => Err(AgentError::Timeout(under_way()?)),
        }
    }

    /// Changes the rate limits of everything together, or of one share or download; returns what
    /// they are now. They act at once, and end with the share or the agent.
    ///
    /// # Errors
    /// [`AgentError`] when no share or download of ours is meant.
    pub fn limit(
        &self,
        which: Option<&(GroupName, Selector)>,
        change: impl FnOnce(&mut RateLimits),
    ) -> Result<RateLimits, AgentError> {
        let of = which.map(|(group, file)| self.held(group, file)).transpose()?;
        let registry = &self.core.registry;
        let before = registry.rates().limits(of);
        let mut limits = before;
        change(&mut limits);
        if limits != before {
            registry.set_limits(of, limits);
        }
        Ok(limits)
    }

    /// The rate limits of everything together.
    pub fn limits(&self) -> RateLimits {
        self.core.registry.rates().limits(None)
    }

    /// Stops everything in order: downloads, peers, the tracker, the socket.
    pub async fn shutdown(&self) {
        self.core.shutdown().await;
    }

    /// Asks for a change that has no other answer than that it is made.
    pub(super) async fn done(&self, request: Request) -> Result<Option<Written>, AgentError> {
        let answer = self.core.line.ask(&request).await?;
        match answer.reply {
            Reply::Done => Ok(answer.written),
            _ => Err(AgentError::BadAnswer),
        }
    }
}

pub(super) fn not_held(group: &GroupName, file: &Selector) -> AgentError {
    AgentError::NotHere { file: file.to_string(), group: group.clone() }
}

pub(super) fn request_id() -> RequestId {
    RequestId::random(&mut fastrand::Rng::new())
}
