//! How everything comes back: what was kept of a user is in the library again, files are looked at
//! and served, downloads go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::destination::Destination;
use super::error::{AgentError, DownloadFailure};
use super::library::{Entry, EntryState, Home, Sight};
use super::report::{Overview, Skipped};
use super::shelf::{self, Kept};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::swarm::session::SwarmKey;

/// A login waits so long for the first look at the files.
const FIRST_LOOK: Duration = Duration::from_secs(5);

impl Core {
    /// What was kept of `user` is at work again, also what was kept under the name `called`, by
    /// which the account went before. Waits until files were looked at.
    pub(super) async fn restore(
        self: &Arc<Self>,
        called: &UserName,
        user: &UserName,
    ) -> Result<(), AgentError> {
        let (keeper, names) = (self.keeper.clone(), [called.clone(), user.clone()]);
        let read = move || {
            let [called, user] = &names;
            let own = keeper.kept(user)?;
            let before = if called == user { Vec::new() } else { keeper.kept(called)? };
            Ok((own, before))
        };
        let path = self.data_dir.join(shelf::FILE_NAME);
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
        let (own, before) = read.map_err(|error| AgentError::Library { path, error })?;
        let moved: Vec<_> = before.iter().map(|kept| kept.key).collect();
        moved.iter().for_each(|key| self.keeper.put(called, *key, None));
        self.bring_back(user.clone(), own.into_iter().chain(before).collect());
        self.save(&moved);
        self.until_seen().await;
        Ok(())
    }

    /// Puts what was kept into the library, and begins to look at what is there.
    pub(super) fn bring_back(self: &Arc<Self>, user: UserName, kept: Vec<Kept>) {
        tracing::info!(%user, count = kept.len(), "shares and downloads come back");
        self.lost().clear();
        let mut downloads: BTreeMap<(ContentId, Destination), Vec<SwarmKey>> = BTreeMap::new();
        {
            let mut library = self.library();
            library.set_user(Some(user));
            for Kept { key, record, manifest } in kept {
                let entry = Entry::of_record(record, manifest);
                self.groups().expect(key.group, &entry.group);
                if let (EntryState::Checking, Home::Part(to)) = (&entry.state, &entry.home) {
                    downloads.entry((key.content, to.clone())).or_default().push(key);
                }
                library.add_kept(key, entry);
            }
        }
        for keys in downloads.values() {
            self.take_up(keys, false);
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
                EntryState::Seeding if entry.sight == Sight::Missing => Some(DownloadFailure {
                    code: "missing".to_owned(),
                    message: format!("{} is missing", path.display()),
                }),
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
