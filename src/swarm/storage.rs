//! Where the bytes of one content are: a part file that fills, or a whole file.
//!
//! One door in: [`PieceStore::write_piece`] verifies, then writes. A whole file is served only
//! while it looks as it did when it was hashed. Positioned reads and writes, never mmap. An
//! existing file is never opened for writing and never replaced.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FallocateFlags, RenameFlags};

use super::hashing::{self, Stamp};
use crate::bitfield::Bitfield;
use crate::limits::PIECE_LEN;
use crate::manifest::{Manifest, PieceHashes};
use crate::name::FileName;
use crate::piece::PieceIndex;

/// The directory inside a destination where part files are.
pub const PART_DIR: &str = ".mtq";

/// ` (number)` is tried up to this before giving up on a name.
const MAX_NUMBERED: u32 = 999;

/// A place that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The disk has not enough room.
    #[error("{path}: {needed} bytes are needed and the disk has no room for them")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes.
        needed: u64,
    },
    /// Another download writes the same part file.
    #[error("{0}: another download is writing this file")]
    InUse(PathBuf),
    /// Too many files of this name.
    #[error("{0}: this name and all its numbered forms are taken")]
    NamesTaken(PathBuf),
    /// The piece hashes are right and the file's SHA-1 is not: the publisher lied.
    #[error("every piece is right and the SHA-1 of the whole file is not: its manifest is false")]
    FalseManifest,
}

impl StorageError {
    fn io(path: &Path, needed: u64) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.clone(), needed }
            }
            _ => Self::Io { path: path.clone(), error },
        }
    }
}

/// A piece that was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The bytes are not the piece.
    #[error("{0} mismatch")]
    Wrong(&'static str),
    /// BLAKE3 is right and SHA-1 is not: the manifest contradicts itself, no peer is to blame.
    #[error("the manifest has a false SHA-1 for this piece")]
    FalseManifest,
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A piece that was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is not here.
    #[error("the piece is not here")]
    Missing,
    /// The file is not what it was.
    #[error("the file changed")]
    Changed,
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Part {
    file: File,
    path: PathBuf,
}

#[derive(Clone, Debug)]
enum Place {
    Part(Arc<Part>),
    Whole { path: PathBuf, stamp: Stamp },
    Changed { path: PathBuf },
}

#[derive(Debug)]
struct State {
    have: Bitfield,
    place: Place,
}

/// One content on this machine.
#[derive(Debug)]
pub struct PieceStore {
    manifest: Arc<Manifest>,
    state: Mutex<State>,
}

impl PieceStore {
    /// A whole file, hashed when it looked like `stamp`.
    pub fn whole(manifest: Arc<Manifest>, path: PathBuf, stamp: Stamp) -> Self {
        let have = Bitfield::all(manifest.layout());
        Self { manifest, state: Mutex::new(State { have, place: Place::Whole { path, stamp } }) }
    }

    /// The part file of `manifest` for a download into `directory`: made and its room reserved,
    /// or found from an earlier attempt, with every piece in it verified again. `progress` is
    /// told the bytes looked at.
    ///
    /// # Errors
    /// [`StorageError`]; nothing new is left behind then.
    pub fn part(
        manifest: Arc<Manifest>,
        directory: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<Self, StorageError> {
        let size = manifest.layout().size();
        let part_dir = directory.join(PART_DIR);
        let path = part_dir.join(format!("{}.part", manifest.content_id()));
        let mut attempts = 0;
        let result = loop {
            match fs::create_dir(&part_dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StorageError::io(directory, size)(error));
                }
                _ => {}
            }
            attempts += 1;
            match Self::open_part(manifest.clone(), &path, progress) {
                // Another download ended just now and took the empty directory with it.
                Err(StorageError::Io { error, .. })
                    if error.kind() == io::ErrorKind::NotFound && attempts < 100 => {}
                result => break result,
            }
        };
        if matches!(result, Err(StorageError::Io { .. } | StorageError::NoSpace { .. })) {
            // Fails while parts are in it, which is as it should be.
            let _ = fs::remove_dir(&part_dir);
        }
        result
    }

    fn open_part(
        manifest: Arc<Manifest>,
        path: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<Self, StorageError> {
        let layout = manifest.layout();
        let io = StorageError::io(path, layout.size());
        let mut options = File::options();
        options.read(true).write(true);
        let (file, new) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (options.open(path).map_err(&io)?, false)
            }
            Err(error) => return Err(io(error)),
        };
        let result = Self::fill_part(manifest, file, path, new, progress);
        if new && result.is_err() {
            // What an earlier attempt left stays: it is worth a later one.
            let _ = fs::remove_file(path);
        }
        result
    }

    fn fill_part(
        manifest: Arc<Manifest>,
        file: File,
        path: &Path,
        new: bool,
        progress: &dyn Fn(u64),
    ) -> Result<Self, StorageError> {
        let layout = manifest.layout();
        let io = StorageError::io(path, layout.size());
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StorageError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        file.set_len(layout.size()).map_err(&io)?;
        reserve(&file, layout.size()).map_err(&io)?;
        let part = Part { file, path: path.to_owned() };
        let have = if new {
            Bitfield::none(layout)
        } else {
            part.verified(&manifest, progress).map_err(&io)?
        };
        let place = Place::Part(Arc::new(part));
        Ok(Self { manifest, state: Mutex::new(State { have, place }) })
    }

    /// What the content is.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The pieces that are here.
    pub fn bitfield(&self) -> Bitfield {
        self.lock().have.clone()
    }

    /// Whether `piece` is here.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.lock().have.contains(piece)
    }

    /// Whether the file was found changed; looks at it.
    pub fn is_changed(&self) -> bool {
        let place = self.lock().place.clone();
        match place {
            Place::Part(_) => false,
            Place::Changed { .. } => true,
            Place::Whole { path, stamp } => {
                let same = fs::metadata(&path).is_ok_and(|now| Stamp::of(&now) == stamp);
                if !same {
                    self.mark_changed(path);
                }
                !same
            }
        }
    }

    /// Where the bytes are now.
    pub fn path(&self) -> PathBuf {
        match &self.lock().place {
            Place::Part(part) => part.path.clone(),
            Place::Whole { path, .. } | Place::Changed { path } => path.clone(),
        }
    }

    /// The one door in: verifies `bytes` against both hashes of `piece`, writes them, and only
    /// then counts the piece as here.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write_piece(&self, piece: PieceIndex, bytes: &[u8]) -> Result<(), WriteError> {
        let layout = self.manifest.layout();
        if bytes.len() != layout.len(piece) as usize {
            return Err(WriteError::Wrong("length"));
        }
        let (actual, expected) =
            (PieceHashes::of(layout, piece, bytes), self.manifest.piece(piece));
        match (actual.blake3 == expected.blake3, actual.sha1 == expected.sha1) {
            (true, true) => {}
            (true, false) => return Err(WriteError::FalseManifest),
            (false, true) => return Err(WriteError::Wrong("BLAKE3")),
            (false, false) => return Err(WriteError::Wrong("SHA-1")),
        }
        let place = self.lock().place.clone();
        let Place::Part(part) = place else { return Ok(()) };
        part.file
            .write_all_at(bytes, layout.offset(piece))
            .map_err(StorageError::io(&part.path, layout.size()))?;
        self.lock().have.insert(piece);
        Ok(())
    }

    /// The bytes of `piece`.
    ///
    /// # Errors
    /// [`ReadError`]; a whole file that no longer looks as it did is never served again.
    pub fn read_piece(&self, piece: PieceIndex) -> Result<Vec<u8>, ReadError> {
        let (have, place) = {
            let state = self.lock();
            (state.have.contains(piece), state.place.clone())
        };
        if !have {
            return Err(ReadError::Missing);
        }
        let layout = self.manifest.layout();
        let mut bytes = vec![0; layout.len(piece) as usize];
        match place {
            Place::Part(part) => part.file.read_exact_at(&mut bytes, layout.offset(piece))?,
            Place::Changed { .. } => return Err(ReadError::Changed),
            Place::Whole { path, stamp } => {
                // Opened for each piece: thousands of shares hold no descriptors, and a file put
                // in place of ours is noticed.
                let read = File::open(&path).and_then(|file| {
                    let before = Stamp::of(&file.metadata()?);
                    file.read_exact_at(&mut bytes, layout.offset(piece))?;
                    Ok(before == stamp && Stamp::of(&file.metadata()?) == stamp)
                });
                match read {
                    Ok(true) => {}
                    Ok(false) => return Err(self.mark_changed(path)),
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                        ) =>
                    {
                        return Err(self.mark_changed(path));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(bytes)
    }

    /// Gives a complete part file its name in `directory`: checks the whole file's SHA-1, brings
    /// it to the disk, renames without replacing. A taken name becomes `name (1)`.
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
        let place = self.lock().place.clone();
        let Place::Part(part) = place else { return Ok(self.path()) };
        let io = StorageError::io(&part.path, self.manifest.layout().size());
        // Reading it all and bringing it to the disk take about as long as each other.
        let (sha1, synced) = std::thread::scope(|scope| {
            let sync = scope.spawn(|| part.file.sync_all());
            let sha1 = hashing::sha1_of(&part.file, go_on);
            (sha1, sync.join().unwrap_or_else(|_| Err(io::Error::other("the sync failed"))))
        });
        if sha1.map_err(&io)? != self.manifest.head().sha1() {
            self.discard();
            return Err(StorageError::FalseManifest);
        }
        synced.map_err(&io)?;
        let path = rename_new(&part.path, directory, name)?;
        let io = StorageError::io(directory, 0);
        File::open(directory).and_then(|dir| dir.sync_all()).map_err(&io)?;
        let stamp = Stamp::of(&part.file.metadata().map_err(&io)?);
        self.lock().place = Place::Whole { path: path.clone(), stamp };
        // Fails while other parts are in it, which is as it should be.
        let _ = fs::remove_dir(directory.join(PART_DIR));
        Ok(path)
    }

    /// Removes the part file of a download nobody wants.
    pub fn discard(&self) {
        let Place::Part(part) = self.lock().place.clone() else { return };
        let _ = fs::remove_file(&part.path);
        if let Some(directory) = part.path.parent() {
            let _ = fs::remove_dir(directory);
        }
    }

    fn mark_changed(&self, path: PathBuf) -> ReadError {
        self.lock().place = Place::Changed { path };
        ReadError::Changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// The pieces of an old part file that are what they should be.
    fn verified(&self, manifest: &Manifest, progress: &dyn Fn(u64)) -> io::Result<Bitfield> {
        let layout = manifest.layout();
        let mut have = Bitfield::none(layout);
        let mut buffer = vec![0; PIECE_LEN as usize];
        for piece in layout.pieces() {
            let bytes = &mut buffer[..layout.len(piece) as usize];
            self.file.read_exact_at(bytes, layout.offset(piece))?;
            if PieceHashes::of(layout, piece, bytes) == manifest.piece(piece) {
                have.insert(piece);
            }
            progress(layout.offset(piece) + bytes.len() as u64);
        }
        Ok(have)
    }
}

/// Reserves room for `size` bytes where the filesystem can.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    // Asked first: a reservation that fails half-way would leave the disk full until it is undone.
    let free = rustix::fs::fstatvfs(file)?;
    let missing = size.saturating_sub(file.metadata()?.blocks() * 512);
    if missing > free.f_bavail.saturating_mul(free.f_frsize) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Renames `from` into `directory` under `name` or its first free numbered form.
fn rename_new(from: &Path, directory: &Path, name: &FileName) -> Result<PathBuf, StorageError> {
    for number in 0..=MAX_NUMBERED {
        let to = match number {
            0 => directory.join(name.as_str()),
            _ => directory.join(name.numbered(number)),
        };
        let renamed = match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            // A filesystem without it: a hard link is refused where a name is taken.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::hard_link(from, &to).and_then(|()| fs::remove_file(from))
            }
            result => result.map_err(io::Error::from),
        };
        match renamed {
            Ok(()) => return Ok(to),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StorageError::io(&to, 0)(error)),
        }
    }
    Err(StorageError::NamesTaken(directory.join(name.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::testing::manifest_of;

    const P: usize = PIECE_LEN as usize;

    fn content() -> Vec<u8> {
        (0..2 * P + 9).map(|i| (i ^ (i >> 9) ^ (i / P * 37)) as u8).collect()
    }

    fn name(text: &str) -> FileName {
        text.parse().expect("name")
    }

    fn part(dir: &Path) -> (PieceStore, Vec<u8>) {
        let bytes = content();
        let manifest = Arc::new(manifest_of(&bytes));
        (PieceStore::part(manifest, dir, &|_| {}).expect("opened"), bytes)
    }

    fn fill(store: &PieceStore, bytes: &[u8]) {
        for (piece, chunk) in store.manifest().layout().pieces().zip(bytes.chunks(P)) {
            store.write_piece(piece, chunk).expect("written");
        }
    }

    #[test]
    fn only_the_right_bytes_get_in() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, bytes) = part(dir.path());
        let piece = store.manifest().layout().piece(1).expect("exists");
        let good = &bytes[P..2 * P];
        let mut flipped = good.to_vec();
        flipped[77] ^= 1;
        for bad in [&flipped[..], &good[1..], &bytes[..P], &vec![0; P], &[]] {
            assert!(matches!(store.write_piece(piece, bad), Err(WriteError::Wrong(_))));
        }
        assert!(store.bitfield().is_empty());
        assert!(matches!(store.read_piece(piece), Err(ReadError::Missing)));
        store.write_piece(piece, good).expect("written");
        assert_eq!(store.read_piece(piece).expect("read"), good);
    }

    #[test]
    fn a_finished_file_has_its_name_and_replaces_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("a.iso"), "mine").expect("written");
        fs::write(dir.path().join("a (1).iso"), "mine too").expect("written");
        let (store, bytes) = part(dir.path());
        fill(&store, &bytes);
        let path = store.finish(dir.path(), &name("a.iso"), &|| true).expect("finished");
        assert_eq!(path, dir.path().join("a (2).iso"));
        assert_eq!(fs::read(&path).expect("read"), bytes);
        assert_eq!(fs::read(dir.path().join("a.iso")).expect("read"), b"mine");
        assert!(!dir.path().join(PART_DIR).exists());
        let piece = store.manifest().layout().piece(2).expect("exists");
        assert_eq!(store.read_piece(piece).expect("read"), &bytes[2 * P..]);
    }

    #[test]
    fn an_interrupted_download_goes_on_with_what_verifies() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (store, bytes) = part(dir.path());
        for index in [0, 2] {
            let piece = store.manifest().layout().piece(index).expect("exists");
            let end = (index as usize * P + P).min(bytes.len());
            store.write_piece(piece, &bytes[index as usize * P..end]).expect("written");
        }
        let again = PieceStore::part(store.manifest().clone(), dir.path(), &|_| {});
        assert!(matches!(again, Err(StorageError::InUse(_))));
        let path = store.path();
        drop(store);
        // A torn write into piece 2.
        let file = File::options().write(true).open(&path).expect("opens");
        file.write_all_at(&[9], 2 * P as u64).expect("written");
        drop(file);
        let (store, _) = part(dir.path());
        let have: Vec<_> = store.bitfield().iter().map(PieceIndex::get).collect();
        assert_eq!(have, [0]);
    }

    #[test]
    fn a_changed_or_missing_file_is_never_served() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let bytes = content();
        for change in [
            (|path: &Path| fs::write(path, "other").expect("written")) as fn(&Path),
            |path| fs::remove_file(path).expect("removed"),
            |path| {
                fs::copy(path, path.with_extension("new")).expect("copied");
                fs::rename(path.with_extension("new"), path).expect("renamed");
            },
        ] {
            fs::write(&path, &bytes).expect("written");
            let (manifest, stamp) = hashing::hash_file(&path, &|_| true).expect("hashed");
            let store = PieceStore::whole(Arc::new(manifest), path.clone(), stamp);
            let piece = store.manifest().layout().piece(0).expect("exists");
            assert_eq!(store.read_piece(piece).expect("read"), &bytes[..P]);
            change(&path);
            assert!(matches!(store.read_piece(piece), Err(ReadError::Changed)));
            assert!(store.is_changed());
            let _ = fs::write(&path, &bytes);
            assert!(matches!(store.read_piece(piece), Err(ReadError::Changed)));
        }
    }

    #[test]
    fn a_false_file_hash_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("temp dir");
        let bytes = content();
        let honest = manifest_of(&bytes);
        let false_sha1 = crate::hash::sha1(b"something else");
        let lie = Manifest::new(honest.layout(), false_sha1, honest.pieces().to_vec());
        let store = PieceStore::part(Arc::new(lie.expect("made")), dir.path(), &|_| {});
        let store = store.expect("opened");
        fill(&store, &bytes);
        let result = store.finish(dir.path(), &name("a"), &|| true);
        assert!(matches!(result, Err(StorageError::FalseManifest)));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
    }

    #[test]
    fn a_false_piece_sha1_blames_the_manifest() {
        let dir = tempfile::tempdir().expect("temp dir");
        let bytes = content();
        let honest = manifest_of(&bytes);
        let mut pieces = honest.pieces().to_vec();
        pieces[1].sha1 = crate::hash::sha1(b"something else");
        let lie = Manifest::new(honest.layout(), honest.head().sha1(), pieces).expect("made");
        let store = PieceStore::part(Arc::new(lie), dir.path(), &|_| {}).expect("opened");
        let piece = store.manifest().layout().piece(1).expect("exists");
        let result = store.write_piece(piece, &bytes[P..2 * P]);
        assert!(matches!(result, Err(WriteError::FalseManifest)));
    }

    #[test]
    fn an_empty_file_needs_no_piece() {
        let dir = tempfile::tempdir().expect("temp dir");
        let manifest = Arc::new(manifest_of(b""));
        let store = PieceStore::part(manifest, dir.path(), &|_| {}).expect("opened");
        let path = store.finish(dir.path(), &name("empty"), &|| true).expect("finished");
        assert_eq!(fs::metadata(path).expect("exists").len(), 0);
    }
}
