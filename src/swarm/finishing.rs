//! The last step of a part file: all of it is checked and brought to the disk, and it gets its name.
//!
//! Nothing gets a name that is not whole, right, and on the disk. When it fails, the part file stays where
//! it was, unless the manifest is false, and it can be tried again once the cause is gone.

use std::io;
use std::iter::once;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::buffers::{Buffer, Buffers};
use super::claims::Settling;
use super::filling::Filling;
use super::running_sha1::RunningSha1;
use super::storage::{PieceStore, Place};
use super::storage_error::StorageError;
use crate::hash::Sha1Hash;
use crate::name::FileName;
use crate::piece::PieceIndex;

/// Pieces read ahead of the SHA-1.
const READ_AHEAD: usize = 4;

impl PieceStore {
    /// Gives a complete part file its name in `directory`: takes what is left of the SHA-1s of its pieces
    /// and of the whole, brings the file to the disk, renames without replacing. A taken name becomes
    /// `name (1)`. It can be tried again after an error that can heal.
    ///
    /// # Errors
    /// [`StorageError`]; the part file stays, but for a false manifest. `go_on` is asked about
    /// once a piece.
    pub fn finish(
        &self,
        directory: &Path,
        name: &FileName,
        go_on: &dyn Fn() -> bool,
    ) -> Result<PathBuf, StorageError> {
        let (place, losses) = {
            let state = self.lock();
            (state.place.clone(), state.losses)
        };
        if let Place::Released(left) = place {
            return Err(left.error());
        }
        if let Place::Part(filling) = place {
            self.clear_doubts(&filling)?;
            self.complete(&filling)?;
            for piece in filling.lost_in_holes()? {
                self.lose(&filling, piece);
            }
            self.complete(&filling)?;
            // Reading what is left and bringing all to the disk take about as long as each other.
            let (sha1, synced) = thread::scope(|scope| {
                let sync = scope.spawn(|| self.sync(&filling));
                let sha1 = self.rest_of_sha1(&filling, go_on);
                (sha1, sync.join().expect("invariant: a sync reports, it does not panic"))
            });
            let sha1 = sha1.and_then(|sha1| match sha1 == self.manifest().head().sha1() {
                true => Ok(()),
                false => Err(StorageError::FalseManifest),
            });
            if sha1.as_ref().is_err_and(StorageError::is_false_manifest) {
                // Every byte that was added was verified: the disk is not to blame.
                self.discard();
            }
            sha1.and(synced)?;
            self.give_name(&filling, losses, directory, name)?;
        }
        let unsynced = self.lock().unsynced_name.clone();
        if let Some(directory) = unsynced {
            self.disk.sync_dir(&directory).map_err(StorageError::io(&directory, 0))?;
            self.lock().unsynced_name = None;
        }
        Ok(self.path())
    }

    fn give_name(
        &self,
        filling: &Arc<Filling>,
        losses: u64,
        directory: &Path,
        name: &FileName,
    ) -> Result<(), StorageError> {
        let _gate = self.close_gate();
        self.lock().still(filling)?;
        self.clear_doubts(filling)?;
        self.complete(filling)?;
        if self.losses() != losses {
            // What went bad meanwhile has come again, perhaps after the sync.
            self.sync(filling)?;
        }
        // A checkpoint that waits finds the file gone, and writes no record of it.
        let _claims = filling.lock_claims();
        self.complete(filling)?;
        let stamp = filling.part().stamp()?;
        let path = filling.part().rename(directory, name)?;
        let mut state = self.lock();
        state.place = Place::Whole { path, stamp };
        state.unsynced_name = Some(directory.to_owned());
        drop(state);
        filling.part().clean_up();
        Ok(())
    }

    /// Reads what could not be read before: it gets no name while nobody knows whether it is right.
    fn clear_doubts(&self, filling: &Arc<Filling>) -> Result<(), StorageError> {
        let doubtful: Vec<_> = self.lock().unreadable.iter().copied().collect();
        let buffers = Buffers::default();
        for piece in doubtful {
            let mut buffer = buffers.take(self.manifest().layout().len(piece));
            match filling.part().read(self.manifest(), piece, buffer.as_mut()) {
                Ok(true) => _ = self.lock().unreadable.remove(&piece),
                Ok(false) => self.lose(filling, piece),
                Err(error) => return Err(StorageError::io(filling.part().path(), 0)(error)),
            }
        }
        Ok(())
    }

    fn complete(&self, filling: &Filling) -> Result<(), StorageError> {
        match self.missing_count() {
            0 => Ok(()),
            count => {
                Err(StorageError::Incomplete { path: filling.part().path().to_owned(), count })
            }
        }
    }

    fn sync(&self, filling: &Arc<Filling>) -> Result<(), StorageError> {
        self.with_claims(filling, |claims| {
            // Only now, when nobody else can sync.
            let have = self.bitfield();
            claims.sync(filling.part(), self.manifest(), &have, Settling::Clean)
        })
    }

    /// Feeds the running SHA-1 what it has not seen, which is read ahead of it; it checks those of the
    /// pieces, so that their BLAKE3 is taken again only where one is wrong.
    fn rest_of_sha1(
        &self,
        filling: &Arc<Filling>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Sha1Hash, StorageError> {
        let mut sha1 = self.lock_sha1();
        if let Some(value) = sha1.value() {
            return Ok(value);
        }
        let (rest, buffers): (Vec<_>, _) = (sha1.unseen().collect(), Buffers::default());
        let path = filling.part().path();
        let mut count = 0;
        thread::scope(|scope| -> Result<(), StorageError> {
            let (ahead, read) = sync_channel(READ_AHEAD);
            let reader = buffers.clone();
            scope.spawn(move || read_each(filling, rest, &reader, &ahead));
            let look_at = |sha1: &mut RunningSha1, read: Read| {
                if !go_on() {
                    return Err(StorageError::io(path, 0)(io::Error::other("stopped")));
                }
                self.take_back(filling, sha1, read)
            };
            for read in read.into_iter().map(Some).chain(once(None)) {
                // After a bad piece the rest is still looked at, to find all that are.
                while count == 0
                    && let Some(skipped) = sha1.next()
                {
                    if read.as_ref().is_some_and(|(piece, _)| *piece <= skipped) {
                        break;
                    }
                    // Something was said of it that is not so.
                    let again = (skipped, filling.read(skipped, &buffers));
                    count += u32::from(!look_at(&mut sha1, again)?);
                }
                if let Some(read) = read {
                    count += u32::from(!look_at(&mut sha1, read)?);
                }
            }
            Ok(())
        })?;
        sha1.value().ok_or_else(|| StorageError::Incomplete { path: path.to_owned(), count })
    }

    /// Feeds the SHA-1 a piece that was read; whether it is still the piece.
    fn take_back(
        &self,
        filling: &Arc<Filling>,
        sha1: &mut RunningSha1,
        (piece, result): Read,
    ) -> Result<bool, StorageError> {
        self.lock().still(filling)?;
        let is_right = match result {
            Ok(Some(buffer)) => self.feed_back(sha1, piece, buffer.as_ref())?,
            Ok(None) => false,
            Err(error) => {
                self.lock().unreadable.insert(piece);
                return Err(StorageError::io(filling.part().path(), 0)(error));
            }
        };
        if !is_right {
            self.lose(filling, piece);
        }
        Ok(is_right)
    }
}

/// A piece that was read, with its bytes if they are there.
type Read = (PieceIndex, io::Result<Option<Buffer>>);

/// Reads these pieces, until one cannot be read or nobody wants them.
fn read_each(
    filling: &Filling,
    pieces: Vec<PieceIndex>,
    buffers: &Buffers,
    ahead: &SyncSender<Read>,
) {
    for piece in pieces {
        let read = filling.read(piece, buffers);
        let failed = read.is_err();
        if ahead.send((piece, read)).is_err() || failed {
            return;
        }
    }
}
