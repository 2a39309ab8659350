//! How everything comes back: what was kept of a user is in the library again, files are looked at
//! and served, downloads go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, blocking};
use super::destination::Destination;
use super::error::{AgentError, DownloadFailure};
use super::library::{Entry, EntryState, Home, Sight};
use super::report::{Overview, Skipped};
use super::running::Begin;
use super::shelf::{self, Kept};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::swarm::session::SwarmKey;

/// A login waits so long for the first look at the files.
const FIRST_LOOK: Duration = Duration::from_secs(5);

impl Core {
    /// What was kept of `user` is at work again, also what was kept under the name `called`, by
    /// which the account went before. Whoever calls holds the account.
    ///
    /// # Errors
    /// [`AgentError::Library`]; nothing has come back then.
    pub(super) async fn restore(
        self: &Arc<Self>,
        called: &UserName,
        user: &UserName,
    ) -> Result<(), AgentError> {
        let own = self.kept(user).await?;
        let before = if called == user { Vec::new() } else { self.kept(called).await? };
        // What goes by the new name already is the later.
        let is_new = |key| !own.iter().any(|own| own.key == key);
        let moved = before.iter().map(|Kept { key, record, manifest }| {
            (*key, is_new(*key).then(|| (record.clone(), manifest.clone())))
        });
        if !before.is_empty() {
            self.keeper.rename(called, user, moved);
        }
        self.bring_back(user.clone(), own.into_iter().chain(before).collect());
        Ok(())
    }

    /// An account is called otherwise: what is kept of it goes by its new name, with what went by
    /// that before a crash. Whoever calls holds the account.
    pub(super) async fn rename_user(self: &Arc<Self>, from: &UserName, user: &UserName) {
        {
            let mut library = self.library();
            if library.user() != Some(from) || from == user {
                return;
            }
            let entries = library.entries().into_iter();
            let record = |(key, entry): (SwarmKey, Entry)| {
                (key, Some((entry.record(), entry.manifest.clone())))
            };
            self.keeper.rename(from, user, entries.map(record));
            library.set_user(Some(user.clone()));
        }
        match self.kept(user).await {
            Ok(kept) => self.bring_back(user.clone(), kept),
            Err(error) => tracing::warn!(%error, "what went by the new name is not known"),
        }
        self.keep_renamed(user).await;
    }

    /// The login goes by a new name as soon as the records do: a crash in between leaves both by the
    /// old one, which is heard of again.
    pub(super) async fn keep_renamed(&self, user: &UserName) {
        if let Err(message) = self.keeper.written().await {
            return tracing::warn!(%message, "the login keeps its old name for now");
        }
        if let Err(error) = self.keep_login(user).await {
            tracing::warn!(%error, "cannot keep the login");
        }
    }

    async fn kept(&self, user: &UserName) -> Result<Vec<Kept>, AgentError> {
        let (keeper, user) = (self.keeper.clone(), user.clone());
        let path = self.data_dir.join(shelf::FILE_NAME);
        let kept = blocking(move || keeper.kept(&user)).await;
        kept.map_err(|error| AgentError::Library { path, error })
    }

    /// Puts what was kept into the library, where that does not have it, and begins to look at what
    /// is there.
    pub(super) fn bring_back(self: &Arc<Self>, user: UserName, kept: Vec<Kept>) {
        tracing::info!(%user, count = kept.len(), "shares and downloads come back");
        let mut downloads: BTreeMap<(ContentId, Destination), (Vec<SwarmKey>, bool)> =
            BTreeMap::new();
        {
            let mut library = self.library();
            library.set_user(Some(user));
            for Kept { key, record, manifest } in kept {
                let entry = Entry::of_record(record, manifest);
                let (group, going) = (entry.group.clone(), entry.state == EntryState::Checking);
                let (home, fresh) = (entry.home.clone(), entry.fresh);
                if !library.add_kept(key, entry) {
                    continue;
                }
                self.groups().expect(key.group, &group);
                if let (true, Home::Part(to)) = (going, home) {
                    let download = downloads.entry((key.content, to));
                    let (keys, all_fresh) = download.or_insert((Vec::new(), true));
                    keys.push(key);
                    *all_fresh &= fresh;
                }
            }
        }
        for (keys, fresh) in downloads.values() {
            self.take_up(keys, *fresh, Begin::InTurn);
        }
        let core = self.clone();
        let look = async move {
            core.look_at_files(|_, entry| entry.sight == Sight::Unseen).await;
        };
        self.tasks.spawn(look);
    }

    /// Waits a moment until all files were looked at once.
    pub(super) async fn until_seen(&self) {
        let seen = self.until_checked(|_, entry| matches!(entry.home, Home::File { .. }));
        let _ = tokio::time::timeout(FIRST_LOOK, seen).await;
    }

    /// What is at work, and what is not.
    pub(super) fn overview(&self) -> Overview {
        let mut overview = Overview { skipped: self.lost().clone(), ..Overview::default() };
        let library = self.library();
        for (key, entry) in library.entries() {
            let path = entry.target();
            let trouble = match &entry.state {
                EntryState::Failed(failure) => Some(failure.clone()),
                EntryState::Seeding if entry.sight.absence().is_some() => {
                    let how = entry.sight.absence().unwrap_or_default();
                    let message = format!("{} {how}", path.display());
                    Some(DownloadFailure { code: "missing".to_owned(), message })
                }
                EntryState::Seeding if entry.is_changed() => Some(DownloadFailure {
                    code: "changed".to_owned(),
                    message: format!("{} is not what it was: share it again", path.display()),
                }),
                _ => library.trouble(key.group).cloned(),
            };
            match (trouble, &entry.state) {
                (Some(DownloadFailure { code, message }), _) => {
                    let (group, name) = (entry.group, entry.name);
                    overview.skipped.push(Skipped { group, name, path, code, message });
                }
                (None, EntryState::Seeding) => overview.sharing += 1,
                (None, EntryState::Paused) => overview.paused += 1,
                (None, _) => overview.downloading += 1,
            }
        }
        overview
    }
}
