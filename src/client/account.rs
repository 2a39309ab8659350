//! Accounts: who is made, who logs in and out on this device, and which devices one has.

use std::sync::Arc;

use super::agent::{Agent, request_id};
use super::core::Core;
use super::error::AgentError;
use super::report::{LoggedIn, Notice};
use crate::name::UserName;
use crate::peer_id::PeerId;
use crate::tracker::message::{DeviceRow, Password, Reply, Request, Written};
use crate::tracker::refusal::Refusal;

impl Agent {
    /// Makes an account; also says what became of it beyond the tracker that answered.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_user(
        &self,
        user: UserName,
        password: Password,
        invite: Option<String>,
    ) -> Result<Option<Written>, AgentError> {
        self.done(Request::CreateUser { request_id: request_id(), user, password, invite }).await
    }

    /// Logs in, and stays so over restarts until [`Self::logout`]. As the user one already is, is
    /// fine. What this user shared and downloaded with this data directory comes back.
    ///
    /// # Errors
    /// [`AgentError`]; nobody is logged in then who was not before. Once begun it goes on to its
    /// end, whatever becomes of who waits for it.
    pub async fn login(&self, user: UserName, password: Password) -> Result<LoggedIn, AgentError> {
        let core = self.core.clone();
        let found = self.core.to_the_end(async move {
            let found = core.log_in(user, password).await?;
            core.resume().await;
            Ok(found)
        });
        let found = found.await?;
        Ok(self.logged_in(found).await)
    }

    /// Logs in as whoever logged in with a password on this device before, by its key, also when
    /// the account was given a mark since, if that is still possible.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn login_by_key(&self, user: &UserName) -> Result<Option<LoggedIn>, AgentError> {
        let is_meant = |kept: UserName| *user == kept || *user == kept.parts().0;
        if !self.user().is_some_and(is_meant) {
            return Ok(None);
        }
        // A new connection logs in by itself.
        self.core.line.ready().await?;
        match self.user() {
            Some(user) => Ok(Some(self.logged_in(user).await)),
            None => Ok(None),
        }
    }

    /// What came back with a user, as soon as files were looked at.
    async fn logged_in(&self, user: UserName) -> LoggedIn {
        self.core.until_seen().await;
        LoggedIn { user, overview: self.core.overview() }
    }

    /// Logs out and stops all sharing and downloading until the next login; returns how many files
    /// that were. Once begun it goes on to its end, whatever becomes of who waits for it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn logout(&self) -> Result<usize, AgentError> {
        let core = self.core.clone();
        self.core.to_the_end(async move { core.log_out().await }).await
    }

    /// Changes one's password; all other devices have to log in anew.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn change_password(&self, old: Password, new: Password) -> Result<(), AgentError> {
        self.done(Request::ChangePassword { request_id: request_id(), old, new }).await?;
        Ok(())
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
        self.done(Request::RemoveDevice { request_id: request_id(), device }).await?;
        Ok(())
    }
}

impl Core {
    /// Logs in with a password, and brings back what the user had; returns what trackers call him.
    async fn log_in(
        self: &Arc<Self>,
        user: UserName,
        password: Password,
    ) -> Result<UserName, AgentError> {
        let _account = self.account.lock().await;
        if let Some(other) = self.line.user().filter(|other| *other != user) {
            return Err(Refusal::LoggedInAs(other).into());
        }
        let found = self.line.log_in(user.clone(), password).await?;
        if found != user {
            self.notify(Notice::Renamed { from: user.clone(), user: found.clone() });
        }
        let before = self.library().user().cloned();
        match before {
            Some(before) if before == found => self.keep_login(&found).await?,
            Some(before) if before == user => self.rename_user(&before, &found).await,
            // Whoever was logged in before is so no more, and that was not heard of yet.
            before => {
                before.iter().for_each(|_| drop(self.leave_all()));
                if let Err(error) = self.begin_anew(&user, &found).await {
                    // Who is logged in without what is his would lose all he does from here on.
                    self.leave_all();
                    if let Err(error) = self.line.log_out().await {
                        tracing::warn!(%error, "the tracker does not know that the login failed");
                    }
                    self.forget_login().await;
                    return Err(error);
                }
            }
        }
        self.notify(Notice::LoggedIn { user: found.clone() });
        Ok(found)
    }

    /// Brings back what `found` had, also by the name `user`, and keeps who is logged in: by the name
    /// that the records on the disk go by.
    async fn begin_anew(
        self: &Arc<Self>,
        user: &UserName,
        found: &UserName,
    ) -> Result<(), AgentError> {
        self.restore(user, found).await?;
        let moved = user == found || self.keeper.written().await.is_ok();
        self.keep_login(if moved { found } else { user }).await
    }

    /// Logs out; returns how many files were shared or downloaded until then.
    async fn log_out(self: &Arc<Self>) -> Result<usize, AgentError> {
        let _account = self.account.lock().await;
        let user = self.line.user();
        // Here first: whatever the tracker says, nothing is served any more.
        let stopped = self.leave_all();
        let transfers = stopped.iter().filter_map(|entry| entry.transfer.clone()).collect();
        self.until_let_go(transfers).await;
        let over = self.line.log_out().await;
        // A tracker that could not store it still has us logged in.
        match self.line.user() {
            None => {
                self.leave_all();
                self.forget_login().await;
                if let Some(user) = user {
                    self.notify(Notice::LoggedOut { user });
                }
            }
            Some(user) => {
                self.restore(&user, &user).await?;
                self.resume().await;
            }
        }
        over.map(|()| stopped.len())
    }

    /// Trackers do not let this device act for its user any more: everything stops, and comes back
    /// with the next login.
    pub(super) fn signed_out(self: &Arc<Self>, user: UserName) {
        // Somebody may have logged in since.
        if self.line.user().is_none() {
            self.leave_all();
        }
        self.notify(Notice::SignedOut { user });
        let core = self.clone();
        self.tasks.spawn(async move {
            // A login that was just under way is over, too.
            let _account = core.account.lock().await;
            if core.line.user().is_none() {
                core.leave_all();
                core.forget_login().await;
            }
        });
    }

    /// Our own account is called otherwise.
    pub(super) fn renamed(self: &Arc<Self>, from: UserName, user: UserName) {
        self.notify(Notice::Renamed { from: from.clone(), user: user.clone() });
        let core = self.clone();
        self.tasks.spawn(async move {
            let _account = core.account.lock().await;
            core.rename_user(&from, &user).await;
        });
    }
}
