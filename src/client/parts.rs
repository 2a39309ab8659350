//! Part files that no download needs any more: deleted once nobody has them open.
//!
//! One that any user's record needs stays, whoever is logged in. It never deletes a whole file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, blocking};
use super::library::{Entry, Home};
use crate::manifest::ContentId;
use crate::swarm::storage::{StorageError, remove_part};

/// How often, and how long after each other, the part file of a download that just ended is tried to
/// be removed: whoever reads from it keeps it open.
const REMOVING: (usize, Duration) = (30, Duration::from_millis(100));

impl Core {
    /// Deletes the part file of an entry that was taken out of the library, unless it is needed;
    /// returns the bytes that the disk held for it.
    pub(super) async fn drop_part(self: &Arc<Self>, content: ContentId, old: &Entry) -> u64 {
        let Home::Part(to) = &old.home else { return 0 };
        self.until_let_go(Vec::from_iter(old.transfer.clone())).await;
        self.drop_part_in(content, to.directory.clone()).await
    }

    /// Deletes the part file of a content below a directory, unless it is needed; returns the bytes
    /// that the disk held for it.
    pub(super) async fn drop_part_in(
        self: &Arc<Self>,
        content: ContentId,
        directory: PathBuf,
    ) -> u64 {
        let (times, pause) = REMOVING;
        for _ in 0..times {
            match self.remove_unneeded(content, &directory).await {
                Err(StorageError::InUse(_)) => tokio::time::sleep(pause).await,
                Ok(bytes) => return bytes,
                Err(error) => {
                    tracing::warn!(%error, "a part file stays");
                    return 0;
                }
            }
        }
        // Somebody is still looking at it, which may take long.
        let core = self.clone();
        let removing = async move {
            while let Err(StorageError::InUse(_)) = core.remove_unneeded(content, &directory).await
            {
                tokio::time::sleep(pause * 10).await;
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = removing => {}
            }
        });
        0
    }

    async fn remove_unneeded(
        &self,
        content: ContentId,
        directory: &Path,
    ) -> Result<u64, StorageError> {
        if self.library().needs_part(content, directory) {
            return Ok(0);
        }
        let (keeper, directory) = (self.keeper.clone(), directory.to_owned());
        let remove = move || match keeper.needs_part(content, &directory) {
            Ok(false) => remove_part(&directory, content),
            Ok(true) => Ok(0),
            Err(error) => {
                tracing::warn!(%error, "whether a part file is needed is not known; it stays");
                Ok(0)
            }
        };
        blocking(remove).await
    }
}
