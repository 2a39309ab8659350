//! `library.redb`: the records of what users of a data directory share and download, and the
//! manifests they need.
//!
//! Every write is durable when it returns, whole or not at all. The file is made under another name
//! and renamed when it is whole; after a failure it is opened anew with the next use, and what cannot
//! be read is never taken for nothing. It does not know what the records are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Builder, CommitError, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _,
    StorageError, TableDefinition, TableError, TransactionError, WriteTransaction,
};

use super::record::Record;
use crate::id::GroupId;
use crate::limits::SHELF_CACHE;
use crate::manifest::{ContentId, Manifest, ManifestHead};
use crate::name::UserName;
use crate::swarm::session::SwarmKey;

/// Name of the file in an agent's data directory.
pub const FILE_NAME: &str = "library.redb";

/// Version of what the tables mean.
const FORMAT: u64 = 1;

/// User, group, content.
type RecordKey<'a> = (&'a str, [u8; 16], [u8; 32]);

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Encoded records.
const RECORDS: TableDefinition<'_, RecordKey<'static>, &[u8]> = TableDefinition::new("records");
/// Heads of manifests by content.
const HEADS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("heads");
/// Their pages.
const PAGES: TableDefinition<'_, ([u8; 32], u32), &[u8]> = TableDefinition::new("pages");

/// A library that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShelfError {
    /// There is no room.
    #[error("the disk is full")]
    Full,
    /// The system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is from a later version.
    #[error("it has format {0}, this version knows {FORMAT}")]
    Format(u64),
    /// What is in it cannot be.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl From<StorageError> for ShelfError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
                // A file that ends too early, or begins with something else.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    Self::Damaged(error.to_string())
                }
                _ => Self::Io(error),
            },
            StorageError::PreviousIo => Self::Io(io::Error::other("it failed before")),
            error => Self::Damaged(error.to_string()),
        }
    }
}

macro_rules! through_storage {
    ($($error:ident),*) => {
        $(impl From<$error> for ShelfError {
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

impl From<DatabaseError> for ShelfError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Storage(error) => error.into(),
            // By something that is no agent: those have a lock of their own.
            DatabaseError::DatabaseAlreadyOpen => Self::Io(io::ErrorKind::ResourceBusy.into()),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// What becomes of records.
pub type Changes = BTreeMap<Owned, Change>;

/// Whose record it is, and of which swarm.
pub type Owned = (UserName, SwarmKey);

/// What is now in the place of a record: nothing, or a record with the manifest it needs.
pub type Change = Option<(Record, Arc<Manifest>)>;

/// A record as it was found.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Of which swarm.
    pub key: SwarmKey,
    /// What was kept.
    pub record: Record,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
}

/// What is done where there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// It is made.
    Make,
    /// Nothing: there is no database.
    Leave,
}

/// How the database is opened; again after a failure.
type Opener = Box<dyn Fn(Absent) -> Result<Option<Database>, ShelfError> + Send>;

/// The file.
pub struct Shelf {
    opener: Opener,
    database: Option<Database>,
    /// Whether it was ever open: from then on there is a file, wherever it may be just now.
    was_open: bool,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shelf")
    }
}

impl Shelf {
    /// Opens the file in `directory`. Where there is none and none can be made now, that is tried
    /// again with each write. One that was open and goes away, as when its disk is taken out, is not
    /// made anew beside the one that will come back.
    ///
    /// # Errors
    /// [`ShelfError`] of a file that is there.
    pub fn open(directory: &Path) -> Result<Self, ShelfError> {
        let path = directory.join(FILE_NAME);
        let is_there = path.try_exists()?;
        let opener: Opener = Box::new(move |absent| {
            match (path.try_exists()?, absent) {
                (true, _) => {}
                (false, Absent::Make) => create(&path)?,
                (false, Absent::Leave) => return Ok(None),
            }
            Ok(Some(builder().open(&path)?))
        });
        match Self::with_opener(opener) {
            (shelf, Err(error)) if !is_there => {
                tracing::warn!(%error, "no library can be made yet");
                Ok(shelf)
            }
            (shelf, opened) => opened.map(|()| shelf),
        }
    }

    fn with_opener(opener: Opener) -> (Self, Result<(), ShelfError>) {
        let mut shelf = Self { opener, database: None, was_open: false };
        let opened = shelf.database(Absent::Make).map(drop);
        (shelf, opened)
    }

    /// The database, opened again where it was closed; nothing where there never was one.
    fn database(&mut self, absent: Absent) -> Result<Option<&Database>, ShelfError> {
        if self.database.is_none() {
            let absent = if self.was_open { Absent::Leave } else { absent };
            let opened = guarded(|| {
                let Some(database) = (self.opener)(absent)? else { return Ok(None) };
                prepare(&database)?;
                Ok(Some(database))
            })?;
            if opened.is_none() && self.was_open {
                return Err(io::Error::new(io::ErrorKind::NotFound, "it went away").into());
            }
            self.was_open |= opened.is_some();
            self.database = opened;
        }
        Ok(self.database.as_ref())
    }

    /// The highest number of any record; 0 without one.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn last_number(&mut self) -> Result<u64, ShelfError> {
        let Some(database) = self.database(Absent::Leave)? else { return Ok(0) };
        guarded(|| {
            let transaction = database.begin_read()?;
            let mut last = 0;
            for row in transaction.open_table(RECORDS)?.iter()? {
                last = last.max(decode(row?.1.value())?.number);
            }
            Ok(last)
        })
    }

    /// What is kept of a user, in the order in which it was begun.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn kept(&mut self, user: &UserName) -> Result<Vec<Kept>, ShelfError> {
        let Some(database) = self.database(Absent::Leave)? else { return Ok(Vec::new()) };
        guarded(|| kept(database, user))
    }

    /// The contents that there are records of, whoever's.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn contents(&mut self) -> Result<BTreeSet<ContentId>, ShelfError> {
        let Some(database) = self.database(Absent::Leave)? else { return Ok(BTreeSet::new()) };
        guarded(|| {
            let heads = database.begin_read()?.open_table(HEADS)?;
            heads.iter()?.map(|row| Ok(ContentId(row?.0.value()))).collect()
        })
    }

    /// Every record of a content, whoever's it is.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn of_content(&mut self, content: ContentId) -> Result<Vec<(Owned, Record)>, ShelfError> {
        let Some(database) = self.database(Absent::Leave)? else { return Ok(Vec::new()) };
        guarded(|| {
            let transaction = database.begin_read()?;
            let mut found = Vec::new();
            for row in transaction.open_table(RECORDS)?.iter()? {
                let (key, bytes) = row?;
                let (owner, group, of) = key.value();
                if of == content.0 {
                    let damaged = |_| ShelfError::Damaged("a record of nobody".to_owned());
                    let owner = owner.parse().map_err(damaged)?;
                    let key = SwarmKey { group: GroupId(group), content };
                    found.push(((owner, key), decode(bytes.value())?));
                }
            }
            Ok(found)
        })
    }

    /// Writes changes; durable when it returns. Manifests that no record needs any more go with the
    /// last that did.
    ///
    /// # Errors
    /// [`ShelfError`]; the changes may or may not be there then, but never in part, and writing them
    /// again is fine.
    pub fn write(&mut self, changes: &Changes) -> Result<(), ShelfError> {
        let database = self.database(Absent::Make)?;
        let database = database.expect("invariant: it was made where there was none");
        let written = guarded(|| write(database, changes));
        if written.is_err() {
            self.close();
        }
        written
    }

    fn close(&mut self) {
        let database = self.database.take();
        // Closing reads and writes, too.
        let closed = guarded(|| {
            drop(database);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "the library was not closed in order");
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.close();
    }
}

fn kept(database: &Database, user: &UserName) -> Result<Vec<Kept>, ShelfError> {
    let transaction = database.begin_read()?;
    let (heads, pages) = (transaction.open_table(HEADS)?, transaction.open_table(PAGES)?);
    let mut manifests: BTreeMap<ContentId, Arc<Manifest>> = BTreeMap::new();
    let mut all = Vec::new();
    let first = (user.as_str(), [0; 16], [0; 32]);
    for row in transaction.open_table(RECORDS)?.range(first..)? {
        let (key, bytes) = row?;
        let (owner, group, content) = key.value();
        if owner != user.as_str() {
            break;
        }
        let content = ContentId(content);
        let manifest = match manifests.get(&content) {
            Some(manifest) => manifest.clone(),
            None => {
                let missing = || ShelfError::Damaged(format!("{content} is not described"));
                let head = heads.get(content.0)?.ok_or_else(missing)?;
                let head = ManifestHead::parse(head.value()).map_err(|_| missing())?;
                let mut found = Vec::new();
                for page in 0..head.layout().page_count() {
                    let page = pages.get((content.0, page))?.ok_or_else(missing)?;
                    found.push(page.value().to_vec());
                }
                let manifest = Manifest::assemble(head, &found).map_err(|_| missing())?;
                if manifest.content_id() != content {
                    return Err(missing());
                }
                manifests.entry(content).or_insert(Arc::new(manifest)).clone()
            }
        };
        let key = SwarmKey { group: GroupId(group), content };
        all.push(Kept { key, record: decode(bytes.value())?, manifest });
    }
    all.sort_by_key(|kept| kept.record.number);
    Ok(all)
}

/// Does what reads the file. The database trusts what it reads where its checksums were not looked
/// at, and panics over what cannot be: that is damage, and no fault of ours.
fn guarded<T>(read: impl FnOnce() -> Result<T, ShelfError>) -> Result<T, ShelfError> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    result.unwrap_or_else(|_| Err(ShelfError::Damaged("it cannot be read".to_owned())))
}

fn write(database: &Database, changes: &Changes) -> Result<(), ShelfError> {
    let transaction = begin(database)?;
    {
        let mut records = transaction.open_table(RECORDS)?;
        let mut heads = transaction.open_table(HEADS)?;
        let mut pages = transaction.open_table(PAGES)?;
        let mut perhaps_unused = BTreeSet::new();
        for ((user, SwarmKey { group, content }), change) in changes {
            let key = (user.as_str(), group.0, content.0);
            let Some((record, manifest)) = change else {
                records.remove(key)?;
                perhaps_unused.insert(content.0);
                continue;
            };
            records.insert(key, &record.encode()[..])?;
            if heads.get(content.0)?.is_none() {
                heads.insert(content.0, &manifest.head().encode()[..])?;
                for page in 0..manifest.layout().page_count() {
                    pages.insert((content.0, page), &manifest.page(page)[..])?;
                }
            }
        }
        if !perhaps_unused.is_empty() {
            for row in records.iter()? {
                let (_, _, content) = row?.0.value();
                perhaps_unused.remove(&content);
            }
        }
        for content in perhaps_unused {
            heads.remove(content)?;
            pages.retain_in((content, 0)..=(content, u32::MAX), |_, _| false)?;
        }
    }
    Ok(transaction.commit()?)
}

fn decode(bytes: &[u8]) -> Result<Record, ShelfError> {
    Record::decode(bytes).map_err(|error| ShelfError::Damaged(format!("a record: {error}")))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(SHELF_CACHE);
    builder
}

fn begin(database: &Database) -> Result<WriteTransaction, ShelfError> {
    let mut transaction = database.begin_write()?;
    // Two-phase, and no reading of the whole file after a crash.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Makes every table exist, and checks what the file is.
fn prepare(database: &Database) -> Result<(), ShelfError> {
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
        Some(other) => return Err(ShelfError::Format(other)),
        None => {}
    }
    let transaction = begin(database)?;
    {
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(HEADS)?;
        transaction.open_table(PAGES)?;
    }
    Ok(transaction.commit()?)
}

/// A crash while the file is made leaves one that cannot be opened, so it gets its name last. It
/// says what somebody shares: nobody else may read it.
fn create(path: &Path) -> Result<(), ShelfError> {
    let new: PathBuf = path.with_extension("redb.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let made = File::options().write(true).create_new(true).mode(0o600).open(&new);
    let made = made.map_err(ShelfError::from).and_then(|_| {
        prepare(&builder().create(&new)?)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, path)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Ok(File::open(directory)?.sync_all()?)
    });
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard};

    use redb::StorageBackend;

    use super::*;
    use crate::client::record::{KeptPath, Place, Stage};
    use crate::clock::UnixMillis;
    use crate::hash::sha1;
    use crate::manifest::PieceHashes;
    use crate::piece::PieceLayout;

    fn user(name: &str) -> UserName {
        name.parse().expect("a name")
    }

    fn manifest(text: &str) -> Arc<Manifest> {
        let layout = PieceLayout::new(text.len() as u64).expect("small");
        let hashes = |piece| PieceHashes::of(layout, piece, text.as_bytes());
        let pieces = layout.pieces().map(hashes).collect();
        Arc::new(Manifest::new(layout, sha1(text.as_bytes()), pieces).expect("consistent"))
    }

    fn key(group: u8, manifest: &Manifest) -> SwarmKey {
        SwarmKey { group: GroupId([group; 16]), content: manifest.content_id() }
    }

    fn record(number: u64) -> Record {
        Record {
            number,
            since: UnixMillis(number),
            group: "lab".parse().expect("a name"),
            name: format!("file {number}").parse().expect("a name"),
            publisher: None,
            shared: false,
            metafile: None,
            place: Place::Part {
                directory: KeptPath("/d".into()),
                name: "f".parse().expect("a name"),
                stored_bytes: 0,
                stage: Stage::Going,
            },
        }
    }

    /// One change: a record of `user`, or none, in the place of the swarm.
    fn change(who: &str, group: u8, manifest: &Arc<Manifest>, number: Option<u64>) -> Changes {
        let put = number.map(|number| (record(number), manifest.clone()));
        Changes::from([((user(who), key(group, manifest)), put)])
    }

    fn numbers(shelf: &mut Shelf, who: &str) -> Vec<u64> {
        let kept = shelf.kept(&user(who)).expect("readable");
        kept.iter().map(|kept| kept.record.number).collect()
    }

    fn manifests(shelf: &Shelf) -> usize {
        let transaction = shelf.database.as_ref().expect("open").begin_read().expect("begun");
        let heads = transaction.open_table(HEADS).expect("there").iter().expect("read").count();
        let pages = transaction.open_table(PAGES).expect("there").iter().expect("read").count();
        assert_eq!(heads, pages, "one page each");
        heads
    }

    #[test]
    fn users_have_their_own_and_manifests_are_kept_once_and_as_long_as_needed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (manifest("a"), manifest("b"));
        let mut shelf = Shelf::open(dir.path()).expect("made");
        assert_eq!(shelf.last_number().expect("read"), 0);
        for changes in [
            change("ann", 2, &a, Some(2)),
            change("ann", 1, &a, Some(1)),
            change("ann~1a2b", 1, &b, Some(7)),
            change("an", 1, &a, Some(4)),
        ] {
            shelf.write(&changes).expect("written");
        }
        drop(shelf);
        let mut shelf = Shelf::open(dir.path()).expect("opened");
        assert_eq!(shelf.last_number().expect("read"), 7);
        assert_eq!(numbers(&mut shelf, "ann"), [1, 2], "in the order they were begun");
        assert_eq!(numbers(&mut shelf, "ann~1a2b"), [7]);
        assert_eq!(numbers(&mut shelf, "nobody"), [0; 0]);
        assert_eq!(shelf.kept(&user("ann")).expect("read")[1].manifest, a);
        assert_eq!(manifests(&shelf), 2);
        shelf.write(&change("ann", 2, &a, None)).expect("written");
        shelf.write(&change("an", 1, &a, None)).expect("written");
        shelf.write(&change("an", 1, &a, None)).expect("twice is fine");
        assert_eq!((numbers(&mut shelf, "ann"), manifests(&shelf)), (vec![1], 2));
        // Removed and put by one write, it stays.
        let moved = [change("ann", 1, &a, None), change("ann", 3, &a, Some(1))];
        shelf.write(&moved.into_iter().flatten().collect()).expect("written");
        assert_eq!((numbers(&mut shelf, "ann"), manifests(&shelf)), (vec![1], 2));
        shelf.write(&change("ann", 3, &a, None)).expect("written");
        assert_eq!((numbers(&mut shelf, "ann"), manifests(&shelf)), (vec![], 1));
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = fs::metadata(dir.path().join(FILE_NAME)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_library_is_said_to_be_damaged_and_a_later_format_is_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join(FILE_NAME);
        drop(Shelf::open(dir.path()).expect("made"));
        let whole = fs::read(&path).expect("there");
        let mut junk = vec![0x5a; 9000];
        for bytes in [&junk[..], &junk[..3], &[], &whole[..100], &whole[..5000]] {
            fs::write(&path, bytes).expect("written");
            let error = Shelf::open(dir.path()).expect_err("not one");
            assert!(matches!(error, ShelfError::Damaged(_)), "{} bytes: {error}", bytes.len());
        }
        junk.truncate(0);
        fs::write(&path, &whole).expect("put back");
        let database = Builder::new().open(&path).expect("opened");
        let transaction = database.begin_write().expect("begun");
        transaction.open_table(META).expect("there").insert("format", 2).expect("put");
        transaction.commit().expect("committed");
        drop(database);
        let error = Shelf::open(dir.path()).expect_err("later");
        assert!(matches!(error, ShelfError::Format(2)), "{error}");
        // A record that is none is no reason to panic.
        fs::write(&path, &whole).expect("put back");
        let database = Builder::new().open(&path).expect("opened");
        let transaction = database.begin_write().expect("begun");
        let row = ("ann", [1; 16], [2; 32]);
        transaction.open_table(RECORDS).expect("there").insert(row, &[7][..]).expect("put");
        transaction.commit().expect("committed");
        drop(database);
        let mut shelf = Shelf::open(dir.path()).expect("opened");
        assert!(matches!(shelf.last_number(), Err(ShelfError::Damaged(_))));
        assert!(matches!(shelf.kept(&user("ann")), Err(ShelfError::Damaged(_))));
    }

    #[test]
    fn whatever_is_flipped_in_it_is_damage_and_nothing_worse() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join(FILE_NAME);
        let mut shelf = Shelf::open(dir.path()).expect("made");
        for number in 0..20 {
            let manifest = manifest(&number.to_string());
            shelf.write(&change("ann", 1, &manifest, Some(number))).expect("written");
        }
        drop(shelf);
        let whole = fs::read(&path).expect("there");
        // Nearly all of it is empty.
        let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut damaged = 0;
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..4) {
                bytes[used[rng.usize(0..used.len())]] ^= rng.u8(1..);
            }
            fs::write(&path, &bytes).expect("written");
            let read = Shelf::open(dir.path())
                .and_then(|mut shelf| Ok((shelf.last_number()?, shelf.kept(&user("ann"))?.len())));
            match read {
                Err(ShelfError::Damaged(_)) => damaged += 1,
                Err(ShelfError::Format(_) | ShelfError::Io(_)) => {}
                // Where nothing of use was hit, or the bytes cannot be told from right ones.
                Ok((_, count)) => assert_eq!(count, 20),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(damaged > 0, "something was found");
    }

    /// A disk in memory that may fail an operation, fill up, or lose power.
    #[derive(Debug, Default)]
    struct Image {
        bytes: Vec<u8>,
        /// What a power cut would leave.
        durable: Vec<u8>,
        operations: usize,
        fail_at: Option<usize>,
        full: bool,
    }

    #[derive(Clone, Debug, Default)]
    struct FaultDisk(Arc<Mutex<Image>>);

    impl FaultDisk {
        fn image(&self) -> MutexGuard<'_, Image> {
            self.0.lock().expect("no panic")
        }

        fn shelf(&self) -> (Shelf, Result<(), ShelfError>) {
            let disk = self.clone();
            Shelf::with_opener(Box::new(move |_| {
                Ok(Some(builder().create_with_backend(disk.clone())?))
            }))
        }

        fn operate(&self) -> io::Result<MutexGuard<'_, Image>> {
            let mut image = self.image();
            image.operations += 1;
            match image.fail_at {
                Some(at) if at == image.operations => Err(io::Error::other("injected")),
                _ => Ok(image),
            }
        }

        /// What a machine finds after the power was cut now.
        fn after_power_cut(&self) -> Self {
            let durable = self.image().durable.clone();
            let image = Image { bytes: durable.clone(), durable, ..Image::default() };
            Self(Arc::new(Mutex::new(image)))
        }
    }

    impl StorageBackend for FaultDisk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.operate()?.bytes.len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let image = self.operate()?;
            let at = offset as usize;
            out.copy_from_slice(&image.bytes[at..at + out.len()]);
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
            image.durable = image.bytes.clone();
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let mut image = self.operate()?;
            if image.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let at = offset as usize;
            image.bytes[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn whichever_operation_fails_a_write_is_there_or_not_and_the_next_one_heals() {
        let (a, b) = (manifest("a"), manifest("b"));
        for fail_at in 1.. {
            let disk = FaultDisk::default();
            let (mut shelf, opened) = disk.shelf();
            opened.expect("made");
            shelf.write(&change("ann", 1, &a, Some(1))).expect("written");
            let before = disk.image().operations;
            disk.image().fail_at = Some(before + fail_at);
            let both = [change("ann", 1, &a, None), change("ann", 2, &b, Some(2))];
            let both: Changes = both.into_iter().flatten().collect();
            let written = shelf.write(&both);
            let was_hit = disk.image().operations >= before + fail_at;
            disk.image().fail_at = None;
            // Power goes as well: what was acknowledged is there.
            let (mut found, opened) = disk.after_power_cut().shelf();
            opened.expect("opened");
            let now = numbers(&mut found, "ann");
            assert!(now == [2] || (written.is_err() && now == [1]), "{fail_at}: {now:?}");
            assert_eq!(manifests(&found), 1, "{fail_at}");
            shelf.write(&both).expect("healed");
            assert_eq!(numbers(&mut shelf, "ann"), [2], "{fail_at}");
            if !was_hit {
                assert!(fail_at > 10, "something was written");
                return;
            }
        }
    }

    #[test]
    fn a_full_disk_is_told_and_written_once_there_is_room() {
        let disk = FaultDisk::default();
        let (mut shelf, opened) = disk.shelf();
        opened.expect("made");
        let a = manifest("a");
        disk.image().full = true;
        let error = shelf.write(&change("ann", 1, &a, Some(1))).expect_err("no room");
        assert!(matches!(error, ShelfError::Full), "{error}");
        disk.image().full = false;
        shelf.write(&change("ann", 1, &a, Some(1))).expect("written");
        assert_eq!(numbers(&mut shelf, "ann"), [1]);
    }

    #[test]
    fn after_a_failed_write_what_was_there_is_read_and_never_taken_for_nothing() {
        let disk = FaultDisk::default();
        let (mut shelf, opened) = disk.shelf();
        opened.expect("made");
        let (a, b) = (manifest("a"), manifest("b"));
        shelf.write(&change("ann", 1, &a, Some(1))).expect("written");
        disk.image().full = true;
        shelf.write(&change("ann", 1, &b, Some(2))).expect_err("no room");
        let read = shelf.kept(&user("ann")).map(|kept| kept.len());
        assert!(!matches!(read, Ok(0)), "{read:?}");
        assert!(!matches!(shelf.last_number(), Ok(0)));
        disk.image().full = false;
        assert_eq!(numbers(&mut shelf, "ann"), [1]);
    }

    #[test]
    fn one_that_goes_away_is_not_made_anew_beside_the_one_that_comes_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (place, aside) = (dir.path().join("disk"), dir.path().join("aside"));
        fs::create_dir(&place).expect("made");
        let (a, b) = (manifest("a"), manifest("b"));
        let mut shelf = Shelf::open(&place).expect("made");
        shelf.write(&change("ann", 1, &a, Some(1))).expect("written");
        shelf.close();
        // As when its disk is taken out: the mount point is empty.
        fs::rename(&place, &aside).expect("moved");
        fs::create_dir(&place).expect("made");
        let error = shelf.kept(&user("ann")).expect_err("gone");
        assert!(matches!(error, ShelfError::Io(_)), "{error}");
        shelf.write(&change("ann", 1, &b, Some(2))).expect_err("gone");
        fs::remove_dir(&place).expect("nothing was made there");
        fs::rename(&aside, &place).expect("back");
        shelf.write(&change("ann", 1, &b, Some(2))).expect("written");
        assert_eq!(numbers(&mut shelf, "ann"), [1, 2]);
    }

    #[test]
    fn records_of_a_content_are_found_whoever_has_them() {
        let (disk, a, b) = (FaultDisk::default(), manifest("a"), manifest("b"));
        let (mut shelf, opened) = disk.shelf();
        opened.expect("made");
        for changes in [change("ann", 1, &a, Some(1)), change("bob", 2, &a, Some(2))] {
            shelf.write(&changes).expect("written");
        }
        shelf.write(&change("ann", 1, &b, Some(3))).expect("written");
        let found = shelf.of_content(a.content_id()).expect("readable");
        let owners: Vec<_> = found.iter().map(|((owner, _), _)| owner.as_str()).collect();
        assert_eq!(owners, ["ann", "bob"]);
    }
}
