//! How a download is paused, resumed and cancelled.

use std::time::Duration;

use super::agent::{Agent, not_held};
use super::error::AgentError;
use super::library::{Entry, EntryState, Home};
use super::report::{Cancelled, DownloadRow, Notice};
use super::running::Begin;
use crate::error_code::ErrorCode;
use crate::name::{GroupName, Selector};

/// An answer waits so long for a part file to be opened: after a clean stop it takes no time.
const OPENING: Duration = Duration::from_secs(1);

impl Agent {
    /// Pauses a download, also over restarts, in all groups in which it is one download: peers are
    /// told, and its part file is let go with a clean record.
    ///
    /// # Errors
    /// [`AgentError::NotDownloading`], or what says that there is no such download.
    pub async fn pause(
        &self,
        group: &GroupName,
        file: &Selector,
    ) -> Result<DownloadRow, AgentError> {
        let (agent, group, file) = (self.clone(), group.clone(), file.clone());
        self.core.to_the_end(async move { agent.do_pause(&group, &file).await }).await
    }

    async fn do_pause(
        &self,
        group: &GroupName,
        file: &Selector,
    ) -> Result<DownloadRow, AgentError> {
        let key = self.held(group, file)?;
        let (keys, transfer) = {
            let mut library = self.core.library();
            let entry = library.find(key).ok_or_else(|| not_held(group, file))?;
            let is_part = matches!(entry.home, Home::Part(_));
            match entry.state {
                EntryState::Paused => return Ok(self.row(key, entry.clone())),
                _ if entry.state.is_under_way() && is_part => {}
                _ => return Err(AgentError::NotDownloading(entry.name.to_string())),
            }
            let transfer = entry.transfer.clone();
            let is_checking = entry.state == EntryState::Checking;
            let mut keys = library.companions(key);
            keys.retain(|key| library.find(*key).is_some_and(|e| e.state.is_under_way()));
            for key in &keys {
                if let Some(entry) = library.find_mut(*key) {
                    entry.kept_bytes = entry.stored_bytes();
                    entry.state = EntryState::Paused;
                }
                self.core.registry.rest_swarm(*key, ErrorCode::GoingAway);
            }
            // What is being checked is let go as soon as that is done.
            let transfer = transfer.filter(|_| !is_checking);
            transfer.iter().for_each(|transfer| transfer.stop.cancel());
            (keys, transfer)
        };
        self.core.save(&keys);
        self.core.changed.notify_waiters();
        self.core.until_let_go(Vec::from_iter(transfer)).await;
        for key in keys {
            self.core.withdraw_soon(key);
            self.core.notify_of(key, |group, name| Notice::Paused { group, name });
        }
        // Where it cannot be written, a notice says so.
        let _ = self.core.keeper.written().await;
        self.row_of(key).ok_or_else(|| not_held(group, file))
    }

    /// Goes on with a download that was paused or has failed, in all groups in which it is one.
    ///
    /// # Errors
    /// [`AgentError::NotPaused`], or what says that there is no such download, or that one is no
    /// member any more.
    pub async fn resume(
        &self,
        group: &GroupName,
        file: &Selector,
    ) -> Result<DownloadRow, AgentError> {
        let (agent, group, file) = (self.clone(), group.clone(), file.clone());
        self.core.to_the_end(async move { agent.do_resume(&group, &file).await }).await
    }

    async fn do_resume(
        &self,
        group: &GroupName,
        file: &Selector,
    ) -> Result<DownloadRow, AgentError> {
        let key = self.held(group, file)?;
        let stopped = |entry: &Entry| {
            let waits = matches!(entry.state, EntryState::Paused | EntryState::Failed(_));
            waits && matches!(entry.home, Home::Part(_))
        };
        let entry = self.core.library().find(key).cloned();
        let entry = entry.ok_or_else(|| not_held(group, file))?;
        if !stopped(&entry) {
            return Err(AgentError::NotPaused(entry.name.to_string()));
        }
        if !self.core.groups().contains(key.group) && self.core.ticket(group).await? != key.group {
            return Err(AgentError::OtherGroup(group.clone()));
        }
        // One that was just stopped lets go first.
        self.core.until_let_go(Vec::from_iter(entry.transfer.clone())).await;
        let still = self.core.library().find(key).is_some_and(stopped);
        let joined = still && self.rejoin(key);
        if joined {
            // Nothing else will ever need what came of it before.
            self.core.drop_part(key.content, &entry).await;
        }
        let mut resumed = vec![key];
        if !joined {
            let mut library = self.core.library();
            let mut keys = library.companions(key);
            // Others that failed did so for a reason of their own.
            keys.retain(|other| {
                let entry = library.find(*other);
                entry
                    .is_some_and(|e| e.state == EntryState::Paused || (*other == key && stopped(e)))
            });
            // It is being checked still: only what becomes of it then has changed.
            let mut transfers = keys.iter().filter_map(|key| library.find(*key)?.transfer.as_ref());
            let is_checked = transfers.any(|transfer| !transfer.stop.is_cancelled());
            for key in &keys {
                let Some(entry) = library.find_mut(*key) else { continue };
                (entry.told, entry.asked) = (false, true);
                if is_checked {
                    entry.state = EntryState::Checking;
                }
            }
            drop(library);
            if !is_checked && !keys.is_empty() {
                self.core.take_up(&keys, true, Begin::Now);
            }
            resumed = keys;
        }
        self.core.save(&resumed);
        self.core.changed.notify_waiters();
        let opened = self.core.until_checked(|other, _| other == key);
        let _ = tokio::time::timeout(OPENING, opened).await;
        let _ = self.core.keeper.written().await;
        self.row_of(key).ok_or_else(|| not_held(group, file))
    }

    /// Ends a download and forgets it, in this group; where it is not wanted in another one either,
    /// its part file is deleted, unless it is to be kept.
    ///
    /// # Errors
    /// [`AgentError::NotDownloading`], or what says that there is no such download.
    pub async fn cancel(
        &self,
        group: &GroupName,
        file: &Selector,
        keep: bool,
    ) -> Result<Cancelled, AgentError> {
        let (agent, group, file) = (self.clone(), group.clone(), file.clone());
        self.core.to_the_end(async move { agent.do_cancel(&group, &file, keep).await }).await
    }

    async fn do_cancel(
        &self,
        group: &GroupName,
        file: &Selector,
        keep: bool,
    ) -> Result<Cancelled, AgentError> {
        let key = self.held(group, file)?;
        let (entry, row) = {
            let mut library = self.core.library();
            let entry = library.find(key).ok_or_else(|| not_held(group, file))?.clone();
            if !matches!(entry.home, Home::Part(_)) {
                return Err(AgentError::NotDownloading(entry.name.to_string()));
            }
            let row = self.row(key, entry.clone());
            library.remove(key);
            (entry, row)
        };
        self.core.registry.remove_swarm(key, ErrorCode::GoingAway);
        self.core.save(&[key]);
        self.core.changed.notify_waiters();
        let deleted_bytes = match keep {
            true => {
                self.core.until_let_go(Vec::from_iter(entry.transfer.clone())).await;
                0
            }
            false => self.core.drop_part(key.content, &entry).await,
        };
        self.core.drop_sidecar(key.content).await;
        self.core.withdraw_soon(key);
        self.core.notify(Notice::Cancelled { group: entry.group, name: entry.name });
        let _ = self.core.keeper.written().await;
        Ok(Cancelled { row, deleted_bytes })
    }
}
