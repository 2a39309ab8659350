//! The tracker's file: a log of ops, the snapshot it starts from, and the hash pages beside it.
//!
//! Every commit is two-phase and durable when it returns. A file is made under another name and
//! renamed when it is whole. After a failure the file has to be opened anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, CommitError, Database, DatabaseError, Key, ReadTransaction, ReadableDatabase as _,
    ReadableTable as _, StorageError, TableDefinition, TableError, TransactionError, Value,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::command::Outcome;
use super::lattice::RequestKey;
use super::ledger::Essence;
use super::op::{BrokenChain, Op};
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::{Blake3Hash, blake3};
use crate::id::{OpId, OriginId, UserId};
use crate::limits::STORE_CACHE;
use crate::peer_id::PeerId;
use crate::wire;

/// Name of the file in a tracker's data directory.
pub const FILE_NAME: &str = "tracker.redb";

/// Version of what the tables mean.
const FORMAT: u64 = 2;

/// Bytes of one part of a snapshot.
const PART_LEN: usize = 1024 * 1024;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Encoded ops by their place in the log.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Parts of the encoded snapshot, then its BLAKE3.
const SNAPSHOT: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("snapshot");
/// Hash pages by their BLAKE3.
const PAGES: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("pages");
/// When each user was last online; soft, but better than nothing after a restart.
const SEEN: TableDefinition<'_, [u8; 16], u64> = TableDefinition::new("seen");
/// When each other tracker was last heard.
const HEARD: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("heard");

/// A tracker file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// There is no room.
    #[error("the disk is full")]
    Full,
    /// The system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another process has it open.
    #[error("the store is in use by another process")]
    InUse,
    /// It is from a later version.
    #[error("the store has format {0}, this version knows {FORMAT}")]
    Format(u64),
    /// What is in it cannot be.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A copy was not finished because there was no more time.
    #[error("stopped before the copy was complete")]
    Stopped,
    /// It failed before and is not open.
    #[error("the store failed and could not be opened again")]
    Closed,
}

impl From<StorageError> for DiskError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io(error) => {
                let full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                match error.kind() {
                    _ if full => Self::Full,
                    io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
                    _ => Self::Io(error),
                }
            }
            StorageError::PreviousIo | StorageError::DatabaseClosed => Self::Closed,
            error => Self::Damaged(error.to_string()),
        }
    }
}

macro_rules! through_storage {
    ($($error:ident),*) => {
        $(impl From<$error> for DiskError {
            fn from(error: $error) -> Self {
                match error {
                    $error::Storage(error) => error.into(),
                    error => Self::Damaged(error.to_string()),
                }
            }
        })*
    };
}

through_storage!(TableError, TransactionError, CommitError);

impl From<DatabaseError> for DiskError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            DatabaseError::Storage(error) => error.into(),
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl From<BrokenChain> for DiskError {
    fn from(error: BrokenChain) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// One op in the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its place.
    pub place: u64,
    /// Which op.
    pub op: OpId,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Everything up to a place in the log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The place in the log up to which ops are in it. Some before it may be in the log still, for
    /// other trackers.
    pub position: u64,
    /// What they amount to.
    pub essence: Essence,
    /// Ops that are in it and not in the log.
    pub cut: Vector,
    /// What was answered to the latest granted requests.
    pub granted: Vec<(RequestKey, Outcome, OpId)>,
}

/// What one commit writes.
#[derive(Debug, Default)]
pub struct Batch {
    /// Encoded ops, the first at `position`.
    pub ops: Vec<Vec<u8>>,
    /// Where in the log they go.
    pub position: u64,
    /// Pages that come and pages that go.
    pub pages: BTreeMap<Blake3Hash, Option<Arc<[u8]>>>,
    /// When users were last online.
    pub seen: BTreeMap<UserId, UnixMillis>,
    /// When other trackers were last heard.
    pub heard: BTreeMap<PeerId, UnixMillis>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
            && self.pages.is_empty()
            && self.seen.is_empty()
            && self.heard.is_empty()
    }
}

/// How a database is opened; again after a failure.
type Opener = Box<dyn Fn() -> Result<Database, DiskError> + Send + Sync>;

/// The file.
pub struct Disk {
    opener: Opener,
    database: RwLock<Option<Arc<Database>>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// Opens the file in `directory`, or makes it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        let path = directory.join(FILE_NAME);
        if !path.try_exists()? {
            create(&path)?;
        }
        Self::open_file(path)
    }

    /// Opens the file at `path`, which may also be a copy that [`Self::backup`] made.
    ///
    /// # Errors
    /// [`DiskError`], also when there is none.
    pub fn open_file(path: PathBuf) -> Result<Self, DiskError> {
        Self::with_opener(Box::new(move || Ok(builder().open(&path)?)))
    }

    /// Opens whatever `opener` opens, again after each failure.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn with_opener(opener: Opener) -> Result<Self, DiskError> {
        let database = Arc::new(opener()?);
        prepare(&database)?;
        Ok(Self { opener, database: RwLock::new(Some(database)) })
    }

    /// Closes the database and opens it anew.
    ///
    /// # Errors
    /// [`DiskError`]; it stays closed then.
    pub fn reopen(&self) -> Result<(), DiskError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Readers under way keep the old one open, and it must be closed first.
        if let Some(old) = database.take() {
            drop(Arc::try_unwrap(old).map_err(|old| *database = Some(old)));
        }
        if database.is_some() {
            return Err(DiskError::Closed);
        }
        let opened = Arc::new((self.opener)()?);
        prepare(&opened)?;
        *database = Some(opened);
        Ok(())
    }

    fn database(&self) -> Result<Arc<Database>, DiskError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or(DiskError::Closed)
    }

    fn begin(&self) -> Result<WriteTransaction, DiskError> {
        begin(&*self.database()?)
    }

    /// Whether it is open, whether or not it works.
    pub fn is_open(&self) -> bool {
        self.database().is_ok()
    }

    /// Whether it takes writes.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn probe(&self) -> Result<(), DiskError> {
        let transaction = self.begin()?;
        transaction.open_table(META)?.insert("probe", 0)?;
        Ok(transaction.commit()?)
    }

    /// The snapshot; an empty one in a new file.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn snapshot(&self) -> Result<Snapshot, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(SNAPSHOT)?;
        let mut bytes = Vec::new();
        for row in table.iter()? {
            bytes.extend_from_slice(row?.1.value());
        }
        if bytes.is_empty() {
            return Ok(Snapshot::default());
        }
        let (body, sum) = bytes.split_at(bytes.len().saturating_sub(Blake3Hash::LEN));
        if blake3(body).0 != *sum {
            return Err(DiskError::Damaged("the snapshot does not match its checksum".to_owned()));
        }
        wire::decode(body).map_err(|error| DiskError::Damaged(format!("the snapshot: {error}")))
    }

    /// The ops from `position` on, with their bytes.
    ///
    /// # Errors
    /// [`DiskError`], also when one is missing.
    pub fn ops(&self, position: u64) -> Result<Vec<(Op, Vec<u8>)>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let mut ops = Vec::new();
        for (expected, row) in (position..).zip(table.range(position..)?) {
            let (place, bytes) = row?;
            if place.value() != expected {
                return Err(DiskError::Damaged(format!("op {expected} of the log is missing")));
            }
            let bytes = bytes.value().to_vec();
            let op = Op::decode(&bytes).map_err(|error| {
                DiskError::Damaged(format!("op {expected} of the log: {error}"))
            })?;
            ops.push((op, bytes));
        }
        Ok(ops)
    }

    /// The place of the first op in the log, if there is any.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn first_place(&self) -> Result<Option<u64>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let first = table.first()?.map(|(place, _)| place.value());
        Ok(first)
    }

    /// Ops from the place `from` on, up to about `bytes` of them, and at least one if there is one.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn read_log(&self, from: u64, bytes: usize) -> Result<Vec<LogEntry>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let (mut entries, mut read) = (Vec::new(), 0);
        for row in table.range(from..)? {
            let (place, encoded) = row?;
            let (place, encoded) = (place.value(), encoded.value().to_vec());
            read += encoded.len();
            let op = Op::decode(&encoded)
                .map_err(|error| DiskError::Damaged(format!("op {place} of the log: {error}")))?;
            entries.push(LogEntry { place, op: op.id(), bytes: encoded });
            if read >= bytes {
                break;
            }
        }
        Ok(entries)
    }

    /// The place up to which the log, from its beginning and before `end`, has only ops that are
    /// in `known`; and the last of each origin among them.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn known_prefix(
        &self,
        known: &Knowledge,
        end: u64,
    ) -> Result<(u64, BTreeMap<OriginId, u64>), DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let mut last = BTreeMap::new();
        for row in table.range(..end)? {
            let (place, encoded) = row?;
            let place = place.value();
            let op = Op::decode(encoded.value())
                .map_err(|error| DiskError::Damaged(format!("op {place} of the log: {error}")))?;
            if !known.covers(op.id()) {
                return Ok((place, last));
            }
            last.insert(op.origin, op.seq);
        }
        Ok((end, last))
    }

    /// When users were last online.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn seen(&self) -> Result<BTreeMap<UserId, UnixMillis>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let mut seen = BTreeMap::new();
        for row in transaction.open_table(SEEN)?.iter()? {
            let (user, at) = row?;
            seen.insert(UserId(user.value()), UnixMillis(at.value()));
        }
        Ok(seen)
    }

    /// When other trackers were last heard.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn heard(&self) -> Result<BTreeMap<PeerId, UnixMillis>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let mut heard = BTreeMap::new();
        for row in transaction.open_table(HEARD)?.iter()? {
            let (tracker, at) = row?;
            heard.insert(PeerId(tracker.value()), UnixMillis(at.value()));
        }
        Ok(heard)
    }

    /// A hash page.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn page(&self, hash: &Blake3Hash) -> Result<Option<Vec<u8>>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let table = transaction.open_table(PAGES)?;
        Ok(table.get(hash.0)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Writes a batch; durable when it returns.
    ///
    /// # Errors
    /// [`DiskError`]; the batch may or may not be there then, but never in part.
    pub fn commit(&self, batch: &Batch) -> Result<(), DiskError> {
        let transaction = self.begin()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for (place, op) in (batch.position..).zip(&batch.ops) {
                log.insert(place, &op[..])?;
            }
            if !batch.pages.is_empty() {
                let mut pages = transaction.open_table(PAGES)?;
                for (hash, bytes) in &batch.pages {
                    match bytes {
                        Some(bytes) => drop(pages.insert(hash.0, &bytes[..])?),
                        None => drop(pages.remove(hash.0)?),
                    }
                }
            }
            if !batch.seen.is_empty() {
                let mut seen = transaction.open_table(SEEN)?;
                for (user, at) in &batch.seen {
                    seen.insert(user.0, at.0)?;
                }
            }
            if !batch.heard.is_empty() {
                let mut heard = transaction.open_table(HEARD)?;
                for (tracker, at) in &batch.heard {
                    heard.insert(tracker.0, at.0)?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes a snapshot and cuts the log below the place `cut`.
    ///
    /// # Errors
    /// [`DiskError`]; the old snapshot and the log stay then.
    pub fn replace_snapshot(&self, snapshot: &Snapshot, cut: u64) -> Result<(), DiskError> {
        let mut bytes = wire::encode(snapshot);
        let sum = blake3(&bytes);
        bytes.extend_from_slice(&sum.0);
        let transaction = self.begin()?;
        transaction.delete_table(SNAPSHOT)?;
        {
            let mut table = transaction.open_table(SNAPSHOT)?;
            for (number, part) in (0u32..).zip(bytes.chunks(PART_LEN)) {
                table.insert(number, part)?;
            }
            let mut log = transaction.open_table(LOG)?;
            log.retain_in(..cut.min(snapshot.position), |_, _| false)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Removes pages that `keep` does not name: what shares begun and never finished left. Returns
    /// those that stay.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn sweep_pages(&self, keep: &BTreeSet<Blake3Hash>) -> Result<Vec<Blake3Hash>, DiskError> {
        let transaction = self.database()?.begin_read()?;
        let (mut stay, mut strays) = (Vec::new(), Vec::new());
        for row in transaction.open_table(PAGES)?.iter()? {
            let hash = Blake3Hash(row?.0.value());
            match keep.contains(&hash) {
                true => stay.push(hash),
                false => strays.push(hash),
            }
        }
        drop(transaction);
        if !strays.is_empty() {
            let pages = strays.iter().map(|hash| (*hash, None)).collect();
            self.commit(&Batch { pages, ..Batch::default() })?;
        }
        Ok(stay)
    }

    /// Copies everything, as it is now, to a new file at `target`; the hash pages too with
    /// `pages`, without which no tracker can start on the copy. Gives up once `stopped`.
    ///
    /// # Errors
    /// [`DiskError`], also when `target` exists; nothing is left then.
    pub fn backup(
        &self,
        target: &Path,
        pages: bool,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        // Said before the work is done; should it appear meanwhile, renaming refuses it.
        if target.symlink_metadata().is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
        }
        let whole = |target: &Path| -> Result<(), DiskError> {
            let from = self.database()?.begin_read()?;
            let database = builder().create(target)?;
            let to = begin(&database)?;
            copy(&from, &to, META, stopped)?;
            copy(&from, &to, LOG, stopped)?;
            copy(&from, &to, SNAPSHOT, stopped)?;
            copy(&from, &to, SEEN, stopped)?;
            copy(&from, &to, HEARD, stopped)?;
            match pages {
                true => copy(&from, &to, PAGES, stopped)?,
                false => drop(to.open_table(PAGES)?),
            }
            to.commit()?;
            Ok(())
        };
        make_whole(target, ".mtq-backup", whole)
    }
}

fn copy<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
    stopped: &dyn Fn() -> bool,
) -> Result<(), DiskError> {
    let mut copy = to.open_table(table)?;
    for row in from.open_table(table)?.iter()? {
        if stopped() {
            return Err(DiskError::Stopped);
        }
        let (key, value) = row?;
        copy.insert(key.value(), value.value())?;
    }
    Ok(())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(STORE_CACHE);
    builder
}

fn begin(database: &Database) -> Result<WriteTransaction, DiskError> {
    let mut transaction = database.begin_write()?;
    // Two-phase, and no reading of the whole file after a crash.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Makes every table exist, and checks what the file is.
fn prepare(database: &Database) -> Result<(), DiskError> {
    let known = {
        let transaction = database.begin_read()?;
        match transaction.open_table(META) {
            Ok(meta) => meta.get("format")?.map(|format| format.value()),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        }
    };
    match known {
        Some(FORMAT) => return Ok(()),
        Some(other) => return Err(DiskError::Format(other)),
        None => {}
    }
    let transaction = begin(database)?;
    {
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(LOG)?;
        transaction.open_table(SNAPSHOT)?;
        transaction.open_table(PAGES)?;
        transaction.open_table(SEEN)?;
        transaction.open_table(HEARD)?;
    }
    transaction.commit()?;
    Ok(())
}

/// A crash while a file is made leaves one that cannot be opened, so it gets its name last.
fn create(path: &Path) -> Result<(), DiskError> {
    make_whole(path, ".new", |new| prepare(&builder().create(new)?))
}

/// Makes a file under its name and `suffix`, of which nobody but a crash leaves any, and then
/// gives it its name, unless that is taken.
fn make_whole(
    path: &Path,
    suffix: &str,
    make: impl FnOnce(&Path) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    private(&new)?;
    let made = make(&new).and_then(|()| {
        File::open(&new)?.sync_all()?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &new,
            rustix::fs::CWD,
            path,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .map_err(io::Error::from)?;
        Ok(File::open(directory_of(path))?.sync_all()?)
    });
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

/// It holds password hashes: nobody else may read it.
fn private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A disk in memory that fails, fills up and loses power when told to.

    use super::*;
    use redb::StorageBackend;
    use std::sync::{Mutex, MutexGuard};

    /// What the disk holds and how it behaves.
    #[derive(Debug, Default)]
    pub(crate) struct Image {
        bytes: Vec<u8>,
        /// What a power cut would leave.
        durable: Vec<u8>,
        /// Operations so far.
        pub(crate) operations: usize,
        /// Syncs so far.
        pub(crate) syncs: usize,
        /// The operation that fails.
        pub(crate) fail_at: Option<usize>,
        /// The sync at which the power goes: nothing after the one before is durable.
        pub(crate) power_cut_at: Option<usize>,
        /// It may not grow.
        pub(crate) full: bool,
    }

    /// A handle to the disk, which outlives every database on it.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FaultDisk(Arc<Mutex<Image>>);

    impl FaultDisk {
        pub(crate) fn image(&self) -> MutexGuard<'_, Image> {
            self.0.lock().expect("no panic")
        }

        /// Opens what is on it.
        pub(crate) fn open(&self) -> Result<Disk, DiskError> {
            let disk = self.clone();
            Disk::with_opener(Box::new(move || Ok(builder().create_with_backend(disk.clone())?)))
        }

        /// What a machine finds after the power cut.
        pub(crate) fn after_power_cut(&self) -> Self {
            let durable = self.image().durable.clone();
            let image = Image { bytes: durable.clone(), durable, ..Image::default() };
            Self(Arc::new(Mutex::new(image)))
        }

        fn operate(&self) -> io::Result<MutexGuard<'_, Image>> {
            let mut image = self.image();
            image.operations += 1;
            if image.fail_at == Some(image.operations) {
                return Err(io::Error::other("injected"));
            }
            Ok(image)
        }
    }

    impl StorageBackend for FaultDisk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.operate()?.bytes.len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let image = self.operate()?;
            let at = offset as usize;
            let bytes = image.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            let mut image = self.operate()?;
            if image.full && len as usize > image.bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            image.bytes.resize(len as usize, 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            let mut image = self.operate()?;
            image.syncs += 1;
            if image.power_cut_at.is_none_or(|at| image.syncs < at) {
                image.durable = image.bytes.clone();
            }
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let mut image = self.operate()?;
            let at = offset as usize;
            image.bytes[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }
    }
}
