//! The disk side of one download: pieces on their way into the store, checkpoints, the finished file.
//!
//! Everything that may wait for a disk runs on the blocking pool. A disk that fails pauses the download:
//! pieces that could not be written are kept, and the disk is tried every few seconds until it is well.
//! It knows no peers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
pub use super::intake::Parcel;
use super::intake::{Intake, Task};
use super::running_sha1::FalsePiece;
use super::sidecars::{PieceRecord, Sidecars};
use super::storage::{PieceStore, Recovered, StorageError, WriteError, Written};
use crate::clock;
use crate::limits::PIECE_LEN;
use crate::name::FileName;

/// What was written is brought to the disk, and then claimed, this often.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// Or, if that is sooner, after as many bytes as are missing, but at least and at most so many: little is left
/// for the end, which waits for the disk.
const CHECKPOINT_BYTES: (u64, u64) = (16 * 1024 * 1024, 128 * 1024 * 1024);

/// What came of jobs that waits to be heard; jobs wait then too.
const OUTCOMES: usize = 64;

/// A disk that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// Why a download ended without its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The disk, in a way that does not heal.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It was stopped.
    #[error("stopped")]
    Stopped,
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

enum Done {
    /// A piece was verified and written, or is wrong.
    Stored(Parcel),
    Wrong(Parcel, &'static str),
    /// A piece is what it should be, and its SHA-1 is not.
    False(FalsePiece),
    /// The whole file's SHA-1 was taken further.
    Hashed,
    /// One could not be written, and waits.
    NotWritten(StorageError),
    Checkpoint(Result<(), StorageError>),
    Recovered(Result<Recovered, StorageError>),
    Finished(Result<PathBuf, StorageError>),
    /// Work ended without an end.
    Broken,
}

#[derive(Debug)]
enum Health {
    Well,
    /// It failed like this, and is tried again then.
    Ill(StorageError, Instant),
    /// It is being tried.
    Recovering(StorageError),
}

/// What the jobs of a download share.
#[derive(Debug)]
struct Works {
    store: Arc<PieceStore>,
    intake: Mutex<Intake>,
    /// Where the bytes of pieces are brought together.
    buffers: Buffers,
    /// Where is kept what was proven of them.
    sidecars: Sidecars,
    done: mpsc::Sender<Done>,
    runtime: Handle,
}

/// One download's way to the disk.
#[derive(Debug)]
pub struct Depot {
    works: Arc<Works>,
    done: mpsc::Receiver<Done>,
    directory: PathBuf,
    name: FileName,
    stop: CancellationToken,
    health: Health,
    /// Bytes written since the last checkpoint began, and when the next one is due at the latest.
    dirty: u64,
    checkpoint_at: Instant,
    checkpointing: bool,
    finishing: bool,
    failed_to_finish: bool,
    /// Not tried before this: pieces were missing at the last attempt.
    finish_at: Instant,
    /// Pieces that were taken, and of which nothing was heard yet.
    unheard: usize,
}

impl Works {
    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all begun that is to be begun now, each by a thread of its own, which then goes on by itself.
    fn begin(self: &Arc<Self>) {
        loop {
            let task = self.intake().next(|piece| self.store.has(piece));
            let Some(task) = task else { return };
            self.run(move |works| works.go_on(task));
        }
    }

    /// Runs what may wait for the disk.
    fn run(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let works = self.clone();
        // It ends by itself, and says how.
        self.runtime.spawn_blocking(move || {
            let _guard = Guard(&works.done);
            job(&works);
        });
    }

    /// Does one thing after the other until there is none.
    fn go_on(self: &Arc<Self>, first: Task) {
        let mut task = Some(first);
        while let Some(now) = task {
            match now {
                Task::Write(parcel) => self.write(parcel),
                Task::Hash(run) => {
                    let hashed = self.store.hash_ahead(&run).map(|next| self.intake().hashed(next));
                    self.tell(hashed.map_or_else(Done::False, |()| Done::Hashed));
                }
            }
            task = self.intake().next(|piece| self.store.has(piece));
            if task.is_some() {
                self.begin();
            }
        }
    }

    fn write(self: &Arc<Self>, mut parcel: Parcel) {
        let piece = parcel.piece;
        if parcel.midstates.is_some() {
            parcel.chunks.gather(&self.buffers);
        }
        let (chunks, midstates) = (&parcel.chunks, parcel.midstates.as_deref());
        let mut proven = None;
        let result = self.store.write_piece(piece, (chunks, midstates), |written| {
            if matches!(written, Written::Proven(_)) {
                let parts = midstates.zip(chunks.joined());
                proven = parts.map(|(midstates, bytes)| PieceRecord::of(*midstates, bytes));
            }
            self.intake().verified(piece, written);
            self.begin();
        });
        let done = match result {
            Ok(written) => {
                let mut chunks = std::mem::take(&mut parcel.chunks);
                if let Some(record) = proven {
                    self.sidecars.put(self.store.manifest().content_id(), piece, &record);
                }
                let unseen = (written == Written::Apart).then(|| {
                    chunks.gather(&self.buffers);
                    chunks
                });
                self.intake().stored(piece, unseen);
                Done::Stored(parcel)
            }
            Err(WriteError::Wrong(what)) => {
                self.intake().wrong(piece);
                Done::Wrong(parcel, what)
            }
            Err(WriteError::FalseManifest) => {
                self.intake().wrong(piece);
                Done::False(FalsePiece(piece))
            }
            Err(WriteError::Storage(error)) => {
                parcel.chunks.gather(&self.buffers);
                self.intake().failed(parcel);
                Done::NotWritten(error)
            }
        };
        self.tell(done);
    }

    /// Says what came of a job; nobody is there to hear it once the download has ended.
    fn tell(&self, done: Done) {
        let _ = self.done.blocking_send(done);
    }
}

/// Says so when a job ends by a panic.
struct Guard<'a>(&'a mpsc::Sender<Done>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.blocking_send(Done::Broken);
        }
    }
}

impl Depot {
    /// The way into `store`, whose file will be `name` in `directory`. `stop` ends what takes long.
    pub fn new(
        store: Arc<PieceStore>,
        directory: PathBuf,
        name: FileName,
        (buffers, sidecars): (Buffers, Sidecars),
        stop: CancellationToken,
    ) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let intake = Mutex::new(Intake::new(store.next_to_hash(), cores));
        let (sender, done) = mpsc::channel(OUTCOMES);
        let runtime = Handle::current();
        let works = Works { store, intake, buffers, sidecars, done: sender, runtime };
        Self {
            works: Arc::new(works),
            done,
            directory,
            name,
            stop,
            health: Health::Well,
            dirty: 0,
            checkpoint_at: clock::monotonic() + CHECKPOINT,
            checkpointing: false,
            finishing: false,
            failed_to_finish: false,
            finish_at: clock::monotonic(),
            unheard: 0,
        }
    }

    /// Verifies and writes a piece, now or when the disk is well again.
    pub fn take(&mut self, mut parcel: Parcel) {
        let is_crowded = self.works.intake().is_crowded();
        if is_crowded || !self.is_well() {
            // What waits keeps no datagrams: of memory in such bits much is lost.
            parcel.chunks.gather(&self.works.buffers);
        }
        self.unheard += 1;
        self.works.intake().add(parcel);
        self.works.begin();
    }

    /// From now on so many bytes may be in flight, of which some may wait in memory.
    pub fn set_room(&mut self, in_flight: u64) {
        self.works.intake().set_room(in_flight);
    }

    /// Begins what is due. Once every piece is there, as `complete` says, the file is checked and named;
    /// whether that begins now.
    pub fn begin_due(&mut self, now: Instant, complete: bool) -> bool {
        match std::mem::replace(&mut self.health, Health::Well) {
            Health::Ill(error, retry_at) if retry_at <= now => {
                self.health = Health::Recovering(error);
                self.works.run(|works| works.tell(Done::Recovered(works.store.recover())));
            }
            other => self.health = other,
        }
        if !self.is_well() {
            return false;
        }
        if complete && self.may_finish() && self.finish_at <= now {
            self.finish();
            return true;
        }
        let (least, most) = CHECKPOINT_BYTES;
        let is_much = || {
            let missing = u64::from(self.works.store.missing_count()) * u64::from(PIECE_LEN);
            self.dirty >= missing.clamp(least, most)
        };
        let may_settle = self.dirty > 0 && !self.checkpointing && !self.finishing;
        if may_settle && (self.checkpoint_at <= now || is_much()) {
            (self.dirty, self.checkpointing) = (0, true);
            self.works.run(|works| works.tell(Done::Checkpoint(works.store.checkpoint())));
        }
        false
    }

    fn finish(&mut self) {
        self.finishing = true;
        let (directory, name, stop) =
            (self.directory.clone(), self.name.clone(), self.stop.clone());
        self.works.run(move |works| {
            let goes_on = || !stop.is_cancelled();
            let finished = works.store.finish(&directory, &name, &goes_on);
            if finished.is_ok() {
                // Of the rest nobody knows whether it is so.
                let (manifest, followed) = (works.store.manifest(), works.store.followed());
                works.sidecars.keep_only(manifest.content_id(), manifest.layout(), &followed);
            }
            works.tell(Done::Finished(finished));
        });
    }

    /// When something is due, if nothing happens before; once every piece is there, as `complete` says.
    pub fn wake(&self, complete: bool) -> Option<Instant> {
        match self.health {
            Health::Ill(_, retry_at) => Some(retry_at),
            Health::Recovering(_) => None,
            Health::Well if self.finishing => None,
            Health::Well if complete => self.may_finish().then_some(self.finish_at),
            Health::Well => (self.dirty > 0 && !self.checkpointing).then_some(self.checkpoint_at),
        }
    }

    /// Whether nothing is left to be written; what is being synced, the end waits for by itself.
    fn may_finish(&self) -> bool {
        !self.finishing && self.works.intake().is_idle()
    }

    /// Whether nothing is on its way to the disk.
    pub fn is_idle(&self) -> bool {
        !self.checkpointing
            && !self.finishing
            && !matches!(self.health, Health::Recovering(_))
            && self.works.intake().is_idle()
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
        match self.done.recv().await {
            Some(done) => self.came_of(done),
            // The jobs have the other end, and so has this.
            None => std::future::pending().await,
        }
    }

    /// What came of a piece that was taken before the download was stopped; nothing once it is known of all, or
    /// the rest cannot be written.
    pub async fn rest(&mut self) -> Option<Outcome> {
        while self.unheard > 0 {
            let done = match self.is_well() {
                true => self.done.recv().await?,
                false => self.done.try_recv().ok()?,
            };
            match self.came_of(done).ok()? {
                Outcome::Nothing => {}
                outcome => return Some(outcome),
            }
        }
        None
    }

    /// The end: nothing else is begun. The pieces that were taken and are not written.
    pub fn end(&mut self) -> Vec<Parcel> {
        // What else waits goes when the lock is free again.
        let (pending, _ahead) = self.works.intake().end();
        pending
    }

    fn came_of(&mut self, done: Done) -> Result<Outcome, DownloadError> {
        match done {
            Done::Stored(parcel) => {
                self.unheard -= 1;
                let layout = self.works.store.manifest().layout();
                self.dirty += u64::from(layout.len(parcel.piece));
                Ok(Outcome::Stored(parcel))
            }
            Done::Hashed => Ok(Outcome::Nothing),
            Done::Wrong(parcel, what) => {
                self.unheard -= 1;
                Ok(Outcome::Wrong(parcel, what))
            }
            Done::False(piece) => Err(StorageError::from(piece).into()),
            Done::NotWritten(error) => self.fall_ill(error),
            Done::Broken => {
                let error = std::io::Error::other("work on it broke off");
                Err(StorageError::Io { path: self.works.store.path(), error }.into())
            }
            Done::Checkpoint(result) => {
                self.checkpointing = false;
                self.checkpoint_at = clock::monotonic() + CHECKPOINT;
                match result {
                    Ok(()) => Ok(Outcome::Nothing),
                    Err(error) => {
                        self.dirty = self.dirty.max(1);
                        if self.finishing || self.failed_to_finish {
                            // The end syncs all of it again, and says how that went.
                            tracing::debug!(%error, "a checkpoint failed beside the end");
                            return Ok(Outcome::Nothing);
                        }
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
                self.failed_to_finish = false;
                self.be_well();
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
                    self.be_well();
                    return Ok(Outcome::Well(Recovered::default()));
                }
                self.failed_to_finish = true;
                self.fall_ill(error)
            }
        }
    }

    fn be_well(&mut self) {
        self.health = Health::Well;
        self.works.intake().go_on();
        self.works.begin();
    }

    fn fall_ill(&mut self, error: StorageError) -> Result<Outcome, DownloadError> {
        if !error.can_heal() {
            return Err(error.into());
        }
        let was_well = self.is_well();
        self.works.intake().halt();
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

impl Drop for Depot {
    /// What is under way ends, be it late; nothing else begins, and nothing that waits is kept for it.
    fn drop(&mut self) {
        self.end();
    }
}
