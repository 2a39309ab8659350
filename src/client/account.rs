//! Accounts: who is made, who logs in and out on this device, and which devices one has.

use super::agent::{Agent, request_id};
use super::data_dir;
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
    /// [`AgentError`].
    pub async fn login(&self, user: UserName, password: Password) -> Result<LoggedIn, AgentError> {
        if let Some(other) = self.user().filter(|other| *other != user) {
            return Err(Refusal::LoggedInAs(other).into());
        }
        let found = self.core.line.log_in(user.clone(), password).await?;
        if found != user {
            self.core.notify(Notice::Renamed { from: user.clone(), user: found.clone() });
        }
        data_dir::keep_user(&self.core.data_dir, &found)?;
        let before = self.core.library().user().cloned();
        match before {
            Some(before) if before == user || before == found => {
                self.core.rename_user(&before, &found);
            }
            // Whoever was logged in before is so no more, and that was not heard of yet.
            before => {
                before.iter().for_each(|_| drop(self.core.leave_all()));
                self.core.restore(&user, &found).await?;
            }
        }
        self.core.notify(Notice::LoggedIn { user: found.clone() });
        self.core.resume().await;
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
    /// that were.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn logout(&self) -> Result<usize, AgentError> {
        let user = self.user();
        // Here first: whatever the tracker says, nothing is served any more.
        let stopped = self.core.leave_all();
        let transfers = stopped.iter().filter_map(|entry| entry.transfer.clone()).collect();
        self.core.until_let_go(transfers).await;
        let over = self.core.line.log_out().await;
        // A tracker that could not store it still has us logged in.
        match self.user() {
            None => {
                self.core.forget_login();
                if let Some(user) = user {
                    self.core.notify(Notice::LoggedOut { user });
                }
            }
            Some(user) => {
                self.core.restore(&user, &user).await?;
                self.core.resume().await;
            }
        }
        over.map(|()| stopped.len())
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
