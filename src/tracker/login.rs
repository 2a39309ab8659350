//! Accounts on one connection: who is made, who logs in and out, and by what.

use super::command::Command;
use super::index::Revoked;
use super::lattice::Stamp;
use super::message::{Password, Reply};
use super::push::Push;
use super::refusal::Refusal;
use super::reservations::WantedName;
use super::session::{ClientSession, Granted, invite_id};
use super::state::{PUBLIC, Registration, State};
use crate::clock;
use crate::id::{GroupId, RequestId, UserId};
use crate::limits;
use crate::name::UserName;

impl ClientSession {
    pub(super) async fn create_user(
        &self,
        id: RequestId,
        user: UserName,
        password: Password,
        invite: Option<String>,
    ) -> Result<Granted, Refusal> {
        // What can be refused is refused before a hash is spent on it; a repeat of this very
        // request passes and is recognised by the store.
        let store = &self.shared.store;
        if !store.has_granted(self.device, id) {
            let (taken, registration) =
                store.read(|state| (state.user_named(&user).is_some(), state.rules.registration));
            match (registration, &invite) {
                _ if user.parts().1.is_some() => return Err(Refusal::ReservedName),
                _ if taken => return Err(Refusal::UserExists(user)),
                (Registration::Closed, _) => return Err(Refusal::RegistrationClosed),
                (Registration::Invite, None) => return Err(Refusal::InviteNeeded),
                _ => {}
            }
        }
        self.shared.throttle.login(self.address.ip())?;
        let password = self.shared.passwords.hash(password).await?;
        let invite = invite.as_deref().map(invite_id);
        let command = Command::CreateUser { user: user.clone(), password, invite };
        let (name, taken) = (WantedName::User(user.clone()), Refusal::UserExists(user.clone()));
        let reserved = self.reserve(id, &command, name, taken).await?;
        store.propose(self.actor(), id, command).await?;
        tracing::info!(%user, address = %self.address, "account created");
        let provisional = reserved.is_some_and(|reserved| reserved.provisional);
        Ok(Granted { reply: Reply::Done, provisional })
    }

    /// Verifies a password; says whose it is and which one it was. Of several accounts that chose
    /// the name on trackers that could not ask each other, whichever it fits.
    async fn verify(
        &self,
        user: &UserName,
        password: Password,
    ) -> Result<(UserId, Stamp), Refusal> {
        // One at a time: who waits for the answer to a wrong guess guesses no more meanwhile.
        let mut failures = self.logins.try_lock().map_err(|_| Refusal::Busy)?;
        self.shared.throttle.login(self.address.ip())?;
        let known = self.shared.store.read(|state| {
            let ids: Vec<_> = match user.parts().1 {
                None => state.users_that_chose(user).take(limits::LOGIN_CANDIDATES).collect(),
                Some(_) => state.user_named(user).into_iter().collect(),
            };
            let passwords = &state.facts().passwords;
            let all = ids.into_iter().filter_map(|id| {
                let password = passwords.get(&id)?.last();
                Some((id, password.stamp, password.value.clone()))
            });
            all.collect::<Vec<_>>()
        });
        let mut fits = None;
        for (id, stamp, phc) in &known {
            if self.shared.passwords.verify(password.clone(), Some(phc.clone())).await? {
                fits = Some((*id, *stamp));
                break;
            }
        }
        if known.is_empty() {
            // It takes as long as for somebody who is known.
            let _ = self.shared.passwords.verify(password, None).await?;
        }
        if let Some(known) = fits {
            *failures = 0;
            return Ok(known);
        }
        *failures = failures.saturating_add(1);
        let delay = limits::LOGIN_DELAY_STEP.saturating_mul(*failures).min(limits::LOGIN_DELAY_MAX);
        let delay = delay.max(self.shared.throttle.login_failed(user));
        tokio::time::sleep(delay).await;
        Err(Refusal::WrongCredentials)
    }

    pub(super) async fn log_in(
        &self,
        request: RequestId,
        user: UserName,
        password: Password,
    ) -> Result<Reply, Refusal> {
        self.refuse_other(&user)?;
        let (id, verified) = self.verify(&user, password).await?;
        let command = Command::EnrolDevice { user: id, verified };
        self.shared.store.propose(self.actor(), request, command).await?;
        tracing::info!(%user, device = %self.device.short(), "logged in");
        // It may be called something else by now.
        let name = self.shared.store.read(|state| state.user_name(id)).unwrap_or(user);
        self.logged_in(id, name)
    }

    pub(super) fn log_in_by_key(&self) -> Result<Reply, Refusal> {
        let known = self.shared.store.read(|state| {
            let user = state.user_of(self.device)?;
            Some((user, state.user_name(user)?))
        });
        let (id, user) = known.ok_or(Refusal::UnknownDevice)?;
        self.refuse_other(&user)?;
        tracing::debug!(%user, device = %self.device.short(), "logged in by key");
        self.logged_in(id, user)
    }

    /// The user is known on this connection from now on, and hears what was revoked of late.
    fn logged_in(&self, id: UserId, user: UserName) -> Result<Reply, Refusal> {
        self.shared.presence.log_in(self.number, id, &user);
        // Removed a moment before it was known here, the device was not signed out.
        if self.read(|_, _| Ok(())).is_err() {
            self.shared.presence.log_out(self.number, clock::now());
            return Err(Refusal::UnknownDevice);
        }
        self.replay_revocations(None);
        self.tell_marked_groups(id);
        Ok(Reply::LoggedIn { user })
    }

    /// Says which of the user's groups are called other than they were made: it may have been
    /// away when that came about.
    fn tell_marked_groups(&self, user: UserId) {
        let marked = self.shared.store.read(|state| {
            let mine = state.user_index(user).into_iter().flat_map(|user| &user.groups);
            let named = mine.filter_map(|(id, _)| Some((*id, state.group_name(*id)?)));
            named.filter(|(_, name)| name.parts().1.is_some()).collect::<Vec<_>>()
        });
        for (id, group) in marked {
            self.shared.presence.push(self.number, Push::GroupRenamed { id, group });
        }
    }

    /// Repeats what was revoked of late in `only`, or in all groups of the user.
    pub(super) fn replay_revocations(&self, only: Option<GroupId>) {
        let Ok(id) = self.user() else { return };
        let concerns = |state: &State, group: GroupId| {
            only.is_none_or(|only| only == group) && state.member(group, id).is_some()
        };
        let lately =
            self.shared.store.time().minus(limits::TICKET_LIFE + 2 * limits::TICKET_LEEWAY);
        let (mut memberships, mut devices) = (Vec::new(), Vec::new());
        self.shared.store.read(|state| {
            for (at, revoked) in state.revoked_since(lately) {
                match revoked {
                    Revoked::Membership(group, membership) => {
                        if concerns(state, group) {
                            memberships.push(membership);
                        }
                    }
                    Revoked::Device(other, device) => {
                        let groups = state.user_index(other).into_iter().flat_map(|u| &u.groups);
                        let mut meet = groups.map(|(group, _)| *group).chain([PUBLIC]);
                        if meet.any(|group| concerns(state, group)) {
                            devices.push((device, at));
                        }
                    }
                }
            }
        });
        let push = |memberships: &[_], devices: &[_]| {
            let (memberships, devices) = (memberships.to_vec(), devices.to_vec());
            self.shared.presence.push(self.number, Push::Revoked { memberships, devices });
        };
        memberships.chunks(limits::MAX_REVOKED_BATCH).for_each(|batch| push(batch, &[]));
        devices.chunks(limits::MAX_REVOKED_BATCH).for_each(|batch| push(&[], batch));
    }

    fn refuse_other(&self, user: &UserName) -> Result<(), Refusal> {
        let Ok(id) = self.user() else { return Ok(()) };
        match self.shared.store.read(|state| state.user_name(id)) {
            Some(other) if other != *user => Err(Refusal::LoggedInAs(other)),
            _ => Ok(()),
        }
    }

    pub(super) async fn log_out(&self) -> Result<Reply, Refusal> {
        let actor = self.actor();
        let (user, name) = self
            .read(|state, user| Ok((user, state.user_name(user).ok_or(Refusal::NotLoggedIn)?)))?;
        // First here: whoever logs out need not be told that this device was signed out.
        self.shared.presence.log_out(self.number, clock::now());
        let id = RequestId::random(&mut fastrand::Rng::new());
        let command = Command::RemoveDevice { device: self.device };
        if let Err(refusal) = self.shared.store.propose(actor, id, command).await {
            // Still logged in, if the device still is enrolled.
            let _ = self.logged_in(user, name);
            return Err(refusal);
        }
        self.drop_unfinished().await;
        tracing::info!(user = %name, device = %self.device.short(), "logged out");
        Ok(Reply::Done)
    }

    pub(super) async fn change_password(
        &self,
        id: RequestId,
        old: Password,
        new: Password,
    ) -> Result<Reply, Refusal> {
        if self.shared.store.has_granted(self.device, id) {
            return Ok(Reply::Done);
        }
        let name = self.read(|state, user| state.user_name(user).ok_or(Refusal::NotLoggedIn))?;
        let (_, verified) = self.verify(&name, old).await?;
        let password = self.shared.passwords.hash(new).await?;
        let reply = self.change(id, Command::ChangePassword { password, verified }).await?;
        tracing::info!(user = %name, "password changed");
        Ok(reply)
    }
}
