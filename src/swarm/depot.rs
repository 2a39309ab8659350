//! The disk side of one download: pieces on their way into the store, checkpoints, the finished file.
//!
//! Everything that may wait for a disk runs on the blocking pool. A disk that fails pauses the download:
//! pieces that could not be written are kept, and the disk is tried every few seconds until it is well.
//! It knows no peers.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::buffers::Buffers;
use super::chunks::Chunks;
use super::event::PeerKey;
use super::storage::{PieceStore, Recovered, StorageError, WriteError, Written};
use crate::clock;
use crate::name::{FileName, UserName};
use crate::peer_id::PeerId;
use crate::piece::PieceIndex;

/// What was written is brought to the disk, and then claimed, this often.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// Or after so many bytes, if that is sooner: what is left for the end takes a fast disk a twentieth of a
/// second.
const CHECKPOINT_BYTES: u64 = 128 * 1024 * 1024;

/// Of the bytes a download may have in flight, this part may wait in memory for the pieces before
/// them, to be hashed as a whole; what came even earlier is read back.
const WAITING_PART: u64 = 4;

/// With so many pieces waiting for the one that is being hashed in order, other cores help.
const BACKLOG: usize = 16;

/// So many pieces may be on their way to the disk while others are hashed.
const WRITERS: usize = 1;

/// A disk that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// Why a download ended without its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The disk, in a way that does not heal.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A piece with the right BLAKE3 and a false SHA-1: the publisher lied.
    #[error("piece {0} contradicts the manifest: its publisher made a false one")]
    FalseManifest(PieceIndex),
    /// It was stopped.
    #[error("stopped")]
    Stopped,
}

/// A piece on its way into the store.
#[derive(Debug)]
pub struct Parcel {
    /// From which session.
    pub peer: PeerKey,
    /// From which device.
    pub from: PeerId,
    /// Whose it is.
    pub user: UserName,
    /// Which piece.
    pub piece: PieceIndex,
    /// Its bytes, not verified.
    pub chunks: Chunks,
}

/// Something that came of what was done.
#[derive(Debug)]
pub enum Outcome {
    /// A piece was verified and written.
    Stored(Parcel),
    /// A piece is not what it should be, in this.
    Wrong(Parcel, &'static str),
    /// The disk failed: nothing more should come until it is well.
    Paused,
    /// It is well again.
    Well(Recovered),
    /// Not every piece is there, after all.
    Incomplete,
    /// The file has its name.
    Finished(PathBuf),
    /// Nothing that matters.
    Nothing,
}

/// A piece that is right, and what the whole file's SHA-1 made of it.
type Verified = (PieceIndex, Written);

enum Done {
    /// The whole file's SHA-1 needs this piece next.
    Hashed(Option<PieceIndex>),
    Stored(Parcel, Result<Written, WriteError>),
    Checkpoint(Result<(), StorageError>),
    Recovered(Result<Recovered, StorageError>),
    Finished(Result<PathBuf, StorageError>),
}

#[derive(Debug)]
enum Health {
    Well,
    /// It failed like this, and is tried again then.
    Ill(StorageError, Instant),
    /// It is being tried.
    Recovering(StorageError),
}

/// One download's way to the disk.
#[derive(Debug)]
pub struct Depot {
    store: Arc<PieceStore>,
    directory: PathBuf,
    name: FileName,
    stop: CancellationToken,
    work: JoinSet<Done>,
    health: Health,
    /// Pieces that are not being written yet: it is not their turn, or the disk failed.
    pending: Vec<Parcel>,
    /// Where their bytes are brought together.
    buffers: Buffers,
    /// Jobs that verify a piece and then write it, and those that have not verified it yet; how many
    /// of these there may be.
    jobs: usize,
    verifying: usize,
    verifiers: usize,
    /// Where they say that they have.
    verified: (mpsc::Sender<Verified>, mpsc::Receiver<Verified>),
    /// The one of them that takes the whole file's SHA-1 further as well.
    in_order: Option<PieceIndex>,
    /// Those that wait for the whole file's SHA-1.
    ahead: Ahead,
    /// Bytes written since the last checkpoint began, and when the next one is due at the latest.
    dirty: u64,
    checkpoint_at: Instant,
    checkpointing: bool,
    finishing: bool,
    failed_to_finish: bool,
    /// Not tried before this: pieces were missing at the last attempt.
    finish_at: Instant,
}

impl Depot {
    /// The way into `store`, whose file will be `name` in `directory`. `stop` ends what takes long.
    pub fn new(
        store: Arc<PieceStore>,
        directory: PathBuf,
        name: FileName,
        buffers: Buffers,
        stop: CancellationToken,
    ) -> Self {
        let next = store.next_to_hash();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // One core is left to the network.
        let verifiers = cores.saturating_sub(1).max(1);
        Self {
            store,
            directory,
            name,
            stop,
            work: JoinSet::new(),
            health: Health::Well,
            buffers,
            pending: Vec::new(),
            jobs: 0,
            verifying: 0,
            verifiers,
            verified: mpsc::channel(verifiers + WRITERS),
            in_order: None,
            ahead: Ahead::new(next),
            dirty: 0,
            checkpoint_at: clock::monotonic() + CHECKPOINT,
            checkpointing: false,
            finishing: false,
            failed_to_finish: false,
            finish_at: clock::monotonic(),
        }
    }

    /// Verifies and writes a piece, now or when the disk is well again.
    pub fn take(&mut self, parcel: Parcel) {
        self.pending.push(parcel);
        self.write();
        // What has to wait keeps no datagrams: of memory in such bits much is lost.
        self.pending.iter_mut().for_each(|parcel| parcel.chunks.gather(&self.buffers));
    }

    /// Begins to write what it is time for: the piece that the whole file's SHA-1 needs, which is then
    /// hashed twice in one go, or others side by side. While that one is being hashed the rest wait
    /// to be the next, since apart their bytes are gone through twice; of many the last do not. While
    /// it is being written, the next is hashed.
    fn write(&mut self) {
        while self.is_well()
            && self.verifying < self.verifiers
            && self.jobs < self.verifiers + WRITERS
        {
            let lane = self.in_order.is_some() || self.ahead.is_running();
            if lane && self.pending.len() < BACKLOG {
                return;
            }
            let places = self.pending.iter().enumerate();
            let place = match lane {
                true => places.max_by_key(|(_, parcel)| parcel.piece),
                false => places.min_by_key(|(_, parcel)| parcel.piece),
            };
            let Some((place, _)) = place else { return };
            let parcel = self.pending.swap_remove(place);
            if !lane && self.ahead.next() == Some(parcel.piece) {
                self.in_order = Some(parcel.piece);
            }
            (self.jobs, self.verifying) = (self.jobs + 1, self.verifying + 1);
            let (store, verified) = (self.store.clone(), self.verified.0.clone());
            self.work.spawn_blocking(move || {
                let piece = parcel.piece;
                let result = store.write_piece(piece, &parcel.chunks, |written| {
                    // There is room for each job's; whoever is gone does not care.
                    let _ = verified.try_send((piece, written));
                });
                Done::Stored(parcel, result)
            });
        }
    }

    /// A piece was verified, or is wrong: another may be.
    fn verified(&mut self, piece: PieceIndex) {
        self.verifying -= 1;
        self.in_order = self.in_order.filter(|in_order| *in_order != piece);
    }

    /// From now on so many bytes may wait in memory to be hashed as a whole.
    pub fn set_room(&mut self, bytes: u64) {
        self.ahead.set_room(bytes / WAITING_PART);
    }

    /// Takes the whole file's SHA-1 further, unless that is being done.
    fn hash_ahead(&mut self) {
        let is_free = self.in_order.is_none();
        if is_free && self.ahead.next().is_some_and(|next| self.store.has(next)) {
            let (store, written) = (self.store.clone(), self.ahead.begin());
            self.work.spawn_blocking(move || Done::Hashed(store.hash_ahead(&written)));
        }
    }

    /// Begins what is due. Once every piece is there, as `complete` says, the file is checked and named;
    /// whether that begins now.
    pub fn begin_due(&mut self, now: Instant, complete: bool) -> bool {
        match std::mem::replace(&mut self.health, Health::Well) {
            Health::Ill(error, retry_at) if retry_at <= now => {
                let store = self.store.clone();
                self.health = Health::Recovering(error);
                self.work.spawn_blocking(move || Done::Recovered(store.recover()));
            }
            other => self.health = other,
        }
        if !self.is_well() {
            return false;
        }
        if complete && !self.finishing && self.is_idle() && self.finish_at <= now {
            self.finish();
            return true;
        }
        let due = self.checkpoint_at <= now || self.dirty >= CHECKPOINT_BYTES;
        if self.dirty > 0 && !self.checkpointing && !self.finishing && due {
            let store = self.store.clone();
            (self.dirty, self.checkpointing) = (0, true);
            self.work.spawn_blocking(move || Done::Checkpoint(store.checkpoint()));
        }
        false
    }

    fn finish(&mut self) {
        self.finishing = true;
        let (directory, name) = (self.directory.clone(), self.name.clone());
        let (store, stop) = (self.store.clone(), self.stop.clone());
        self.work.spawn_blocking(move || {
            Done::Finished(store.finish(&directory, &name, &|| !stop.is_cancelled()))
        });
    }

    /// When something is due, if nothing happens before; once every piece is there, as `complete` says.
    pub fn wake(&self, complete: bool) -> Option<Instant> {
        match self.health {
            Health::Ill(_, retry_at) => Some(retry_at),
            Health::Recovering(_) => None,
            Health::Well if self.finishing => None,
            Health::Well if complete => self.is_idle().then_some(self.finish_at),
            Health::Well => (self.dirty > 0 && !self.checkpointing).then_some(self.checkpoint_at),
        }
    }

    /// Whether nothing is on its way to the disk.
    pub fn is_idle(&self) -> bool {
        self.work.is_empty() && self.pending.is_empty()
    }

    /// What keeps the disk from being written.
    pub fn trouble(&self) -> Option<&StorageError> {
        match &self.health {
            Health::Well => None,
            Health::Ill(error, _) | Health::Recovering(error) => Some(error),
        }
    }

    /// What came of something that was begun; waits for ever while there is nothing.
    ///
    /// # Errors
    /// [`DownloadError`]: the download cannot go on.
    pub async fn next(&mut self) -> Result<Outcome, DownloadError> {
        let done = tokio::select! {
            // What a job says first is heard first.
            biased;
            Some((piece, written)) = self.verified.1.recv() => {
                self.verified(piece);
                if let Written::Hashed(next) = written {
                    self.ahead.hashed(next);
                    self.hash_ahead();
                }
                self.write();
                return Ok(Outcome::Nothing);
            }
            Some(done) = self.work.join_next() => done.map_err(|error| {
                // Nobody aborts a job: it failed in itself.
                let (path, error) = (self.store.path(), std::io::Error::other(error));
                StorageError::Io { path, error }
            })?,
        };
        if let Done::Stored(parcel, result) = &done {
            self.jobs -= 1;
            if matches!(result, Err(WriteError::Wrong(_) | WriteError::FalseManifest)) {
                self.verified(parcel.piece);
            }
        }
        let outcome = self.came_of(done);
        self.write();
        outcome
    }

    fn came_of(&mut self, done: Done) -> Result<Outcome, DownloadError> {
        match done {
            Done::Stored(mut parcel, Ok(written)) => {
                self.dirty += parcel.chunks.len() as u64;
                let mut chunks = std::mem::take(&mut parcel.chunks);
                if written == Written::Apart {
                    chunks.gather(&self.buffers);
                    self.ahead.add(parcel.piece, chunks);
                }
                self.hash_ahead();
                Ok(Outcome::Stored(parcel))
            }
            Done::Hashed(next) => {
                self.ahead.hashed(next);
                if self.ahead.has_next() {
                    self.hash_ahead();
                }
                Ok(Outcome::Nothing)
            }
            Done::Stored(parcel, Err(WriteError::Wrong(what))) => Ok(Outcome::Wrong(parcel, what)),
            Done::Stored(parcel, Err(WriteError::FalseManifest)) => {
                Err(DownloadError::FalseManifest(parcel.piece))
            }
            Done::Stored(parcel, Err(WriteError::Storage(error))) => {
                self.pending.push(parcel);
                self.fall_ill(error)
            }
            Done::Checkpoint(result) => {
                self.checkpointing = false;
                self.checkpoint_at = clock::monotonic() + CHECKPOINT;
                match result {
                    Ok(()) => Ok(Outcome::Nothing),
                    Err(error) => {
                        self.dirty = self.dirty.max(1);
                        self.fall_ill(error)
                    }
                }
            }
            // Another process may hold what is there now, for a while.
            Done::Recovered(Err(error))
                if error.can_heal() || matches!(error, StorageError::InUse(_)) =>
            {
                self.health = Health::Ill(error, clock::monotonic() + RETRY);
                Ok(Outcome::Nothing)
            }
            Done::Recovered(Err(error)) => Err(error.into()),
            // It is well when what failed succeeds: the last of all has to be seen to.
            Done::Recovered(Ok(recovered))
                if self.failed_to_finish && recovered.lost.is_empty() =>
            {
                self.finish();
                Ok(Outcome::Nothing)
            }
            Done::Recovered(Ok(recovered)) => {
                let (lost, found) = (recovered.lost.len(), recovered.found.len());
                tracing::info!(lost, found, "the disk is well again");
                (self.health, self.failed_to_finish) = (Health::Well, false);
                Ok(Outcome::Well(recovered))
            }
            Done::Finished(Ok(path)) => Ok(Outcome::Finished(path)),
            Done::Finished(Err(error)) => {
                self.finishing = false;
                if self.stop.is_cancelled() {
                    return Err(DownloadError::Stopped);
                }
                if matches!(error, StorageError::Incomplete { .. }) {
                    tracing::warn!(%error, "they are fetched again");
                    self.finish_at = clock::monotonic() + RETRY;
                    self.failed_to_finish = false;
                    if self.is_well() {
                        return Ok(Outcome::Incomplete);
                    }
                    // It will be found incomplete once more when all are heard again.
                    self.health = Health::Well;
                    return Ok(Outcome::Well(Recovered::default()));
                }
                self.failed_to_finish = true;
                self.fall_ill(error)
            }
        }
    }

    fn fall_ill(&mut self, error: StorageError) -> Result<Outcome, DownloadError> {
        if !error.can_heal() {
            return Err(error.into());
        }
        let was_well = self.is_well();
        if was_well {
            tracing::info!(%error, "paused");
        }
        // What was begun before says nothing of a recovery that is under way, but for the finish, which
        // is part of it.
        if !matches!(self.health, Health::Recovering(_)) || self.failed_to_finish {
            self.health = Health::Ill(error, clock::monotonic() + RETRY);
        }
        Ok(if was_well { Outcome::Paused } else { Outcome::Nothing })
    }

    fn is_well(&self) -> bool {
        matches!(self.health, Health::Well)
    }
}
