//! The part file of one download in `DEST/.mtq`, and the files beside it.
//!
//! It is opened locked, so that one download in the whole system writes it; it is written only
//! while it is this very file; everything found in it is verified again unless the record of a
//! clean stop vouches for it. It does not know which pieces are wanted, nor when to write records.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::chunks::Chunks;
use super::disk::{Disk, DiskFile, RealDisk};
use super::hashing;
use super::record::{CleanStop, Record};
use super::stamp::Stamp;
use super::storage_error::{StorageError, is_gone};
use crate::bitfield::Bitfield;
use crate::hash;
use crate::limits::PIECE_LEN;
use crate::manifest::{ContentId, Manifest};
use crate::name::FileName;
use crate::piece::{PieceIndex, PieceLayout};

/// The directory inside a destination where part files are.
pub const PART_DIR: &str = ".mtq";

/// What the record beside a part file ends with, and the next record.
const RECORD: &str = "resume";
const FRESH_RECORD: &str = "resume-new";

/// ` (number)` is tried up to this before giving up on a name.
pub const MAX_NUMBERED: u32 = 999;

/// How often opening begins again because another download took the directory or the file away
/// just then: each time somebody else got something done.
const MAX_ATTEMPTS: u32 = 100;

/// A part file that is open and locked.
#[derive(Debug)]
pub struct Part {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    inode: (u64, u64),
    directory: PathBuf,
    path: PathBuf,
    discarded: AtomicBool,
    /// Whether the name of the part directory itself has reached the disk.
    rooted: AtomicBool,
}

/// A part file that is neither open nor locked any more.
#[derive(Clone, Debug)]
pub struct Left {
    path: PathBuf,
    inode: (u64, u64),
}

impl Left {
    /// Where it was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is said to those who want to go on with it.
    pub fn error(&self) -> StorageError {
        StorageError::Released(self.path.clone())
    }

    /// Removes it and all that is beside it, unless another download has taken it up.
    pub fn remove(&self, disk: &dyn Disk) {
        let Ok(file) = disk.open(&self.path) else { return };
        let same = |stamp: io::Result<Stamp>| stamp.is_ok_and(|stamp| stamp.inode == self.inode);
        let free = file.try_lock().is_ok_and(|free| free);
        if free && same(file.stamp()) && same(disk.stamp(&self.path)) {
            let _ = disk.remove(&self.path);
            clean_up(disk, &self.path);
        }
    }
}

/// Where the part file of a content is while it is downloaded into `directory`.
pub fn part_path(directory: &Path, content: ContentId) -> PathBuf {
    directory.join(PART_DIR).join(format!("{content}.part"))
}

/// Removes the part file of a content that nobody downloads into `directory` any more, and all that
/// is beside it; returns the bytes that the disk held for it, 0 when there is none.
///
/// # Errors
/// [`StorageError`], also when a download has it open.
pub fn remove_part(directory: &Path, content: ContentId) -> Result<u64, StorageError> {
    let (disk, path) = (RealDisk, part_path(directory, content));
    let removed = || -> io::Result<Option<u64>> {
        let file = disk.open(&path)?;
        if !file.try_lock()? {
            return Ok(None);
        }
        let bytes = file.allocated()?;
        disk.remove(&path)?;
        Ok(Some(bytes))
    };
    let bytes = match removed() {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(StorageError::InUse(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(StorageError::io(&path, 0)(error)),
    };
    clean_up(&disk, &path);
    Ok(bytes)
}

/// Removes what is beside a part file, and its directory unless other parts are in it.
fn clean_up(disk: &dyn Disk, part: &Path) {
    let _ = disk.remove(&part.with_extension(FRESH_RECORD));
    let _ = disk.remove(&part.with_extension(RECORD));
    let _ = part.parent().map(|directory| disk.remove_dir(directory));
}

/// A part file and what was found in it.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub part: Part,
    /// The pieces that are in it.
    pub have: Bitfield,
    /// The record beside it.
    pub record: Option<Record>,
    /// Whether the record was believed and nothing was looked at: nothing may be written, not even
    /// reserved, before the record says so.
    pub trusted: bool,
    /// Whether it was made just now.
    pub new: bool,
}

impl Part {
    /// Opens the part file of `manifest` in `directory`, which must exist; makes it if there is
    /// none. `progress` is told the bytes looked at, and ends that by returning `false`.
    ///
    /// # Errors
    /// [`StorageError`]; nothing new is left behind then.
    pub fn open(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        manifest: &Manifest,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<Opened, StorageError> {
        let part_dir = directory.join(PART_DIR);
        let path = part_path(directory, manifest.content_id());
        let size = manifest.layout().size();
        let mut attempts = 0;
        let (file, inode, new) = loop {
            attempts += 1;
            match disk.create_dir(&part_dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StorageError::io(directory, size)(error));
                }
                _ => {}
            }
            let locking = match disk.is_dir_in(&part_dir, directory) {
                Ok(true) => lock_file(&**disk, &path),
                // Somebody's link would lead us elsewhere, and another filesystem would keep the
                // file from ever getting its name.
                Ok(false) => return Err(StorageError::io(&part_dir, size)(not_ours())),
                Err(error) => Err(error),
            };
            match locking {
                Ok(Locking::Locked { file, inode, new }) => break (file, inode, new),
                Ok(Locking::InUse) => return Err(StorageError::InUse(path)),
                Ok(Locking::Moved) if attempts < MAX_ATTEMPTS => {}
                // Another download ended just now and took the empty directory with it.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && attempts < MAX_ATTEMPTS => {}
                Ok(Locking::Moved) => return Err(StorageError::InUse(path)),
                Err(error) => {
                    let _ = disk.remove_dir(&part_dir);
                    return Err(StorageError::io(&path, size)(error));
                }
            }
        };
        let part = Self {
            disk: disk.clone(),
            file,
            inode,
            directory: directory.to_owned(),
            path,
            discarded: AtomicBool::new(false),
            rooted: AtomicBool::new(false),
        };
        match part.look(manifest, new, progress) {
            Ok((have, record, trusted)) => Ok(Opened { part, have, record, trusted, new }),
            Err(error) => {
                // What an earlier attempt left stays: it is worth a later one.
                if new {
                    part.discard();
                }
                Err(error)
            }
        }
    }

    /// What is left of it when it is closed.
    pub fn left(&self) -> Left {
        Left { path: self.path.clone(), inode: self.inode }
    }

    /// Where it is, or was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The destination that the part directory is in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it was given up.
    pub fn is_discarded(&self) -> bool {
        self.discarded.load(Ordering::Acquire)
    }

    /// Checks that the file at its path is still this one.
    ///
    /// # Errors
    /// [`StorageError::Gone`], or what the system says.
    pub fn here(&self) -> Result<(), StorageError> {
        match self.disk.stamp(&self.path) {
            Ok(stamp) if stamp.inode == self.inode => Ok(()),
            Ok(_) => Err(StorageError::Gone(self.path.clone())),
            Err(error) if is_gone(&error) => Err(StorageError::Gone(self.path.clone())),
            Err(error) => Err(StorageError::io(&self.path, 0)(error)),
        }
    }

    /// What it looks like now.
    ///
    /// # Errors
    /// As the system says.
    pub fn stamp(&self) -> Result<Stamp, StorageError> {
        self.file.stamp().map_err(StorageError::io(&self.path, 0))
    }

    /// Gives it the size of the content and reserves the room; whether it had another size.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`] before anything is written, where that can be known.
    pub fn reserve(&self, layout: PieceLayout) -> Result<bool, StorageError> {
        let size = layout.size();
        let resized = self.stamp()?.size != size;
        if resized {
            self.file.set_len(size).map_err(self.full(size))?;
        }
        self.file.reserve(size).map_err(self.full(size))?;
        Ok(resized)
    }

    /// Whether it takes less room than it has bytes, or that is not known: where room was reserved
    /// once, somebody has cut it short since. Filesystems that compress have holes at any time.
    pub fn has_holes(&self, layout: PieceLayout) -> bool {
        !self.file.allocated().is_ok_and(|allocated| allocated >= layout.size())
    }

    /// Writes a piece, which the caller has verified.
    ///
    /// # Errors
    /// As the system says; the piece must not be counted then.
    pub fn write(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        chunks: &Chunks,
    ) -> Result<(), StorageError> {
        self.file.write_chunks_at(chunks, layout.offset(piece)).map_err(self.full(layout.size()))
    }

    /// Reads a piece into `buffer`, which is as long; whether it is what it should be.
    ///
    /// # Errors
    /// When it cannot be read. A file that ends too early is merely wrong.
    pub fn read(
        &self,
        manifest: &Manifest,
        piece: PieceIndex,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let is_there = self.read_bytes(manifest.layout(), piece, buffer)?;
        Ok(is_there && manifest.is_piece(piece, buffer))
    }

    /// Its bytes, those of each piece in their place.
    pub fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    /// Reads the bytes in the place of a piece into `buffer`, which is as long; whether there are as many.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_bytes(
        &self,
        layout: PieceLayout,
        piece: PieceIndex,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        match self.file.read_exact_at(buffer, layout.offset(piece)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Those of `candidates` that are in it and right.
    ///
    /// # Errors
    /// When nothing can be read, or `progress` says that nobody wants to know any more.
    pub fn check(
        &self,
        manifest: &Manifest,
        candidates: &[PieceIndex],
        progress: &dyn Fn(usize) -> bool,
    ) -> Result<Bitfield, StorageError> {
        let layout = manifest.layout();
        let read = |piece, bytes: &mut [u8]| self.file.read_exact_at(bytes, layout.offset(piece));
        hashing::check_pieces(manifest, candidates, &read, progress)
            .map_err(StorageError::io(&self.path, 0))?
            .ok_or_else(|| self.left().error())
    }

    /// Brings its content to the disk; with `times`, all there is to know of it.
    ///
    /// # Errors
    /// As the system says; what was written since the last time is in doubt then.
    pub fn sync(&self, times: bool) -> Result<(), StorageError> {
        let synced = if times { self.file.sync_all() } else { self.file.sync_data() };
        synced.map_err(self.full(u64::from(PIECE_LEN)))
    }

    /// Replaces the record, whole and durably.
    ///
    /// # Errors
    /// As the system says; the old or the new record is there then.
    pub fn save_record(&self, manifest: &Manifest, record: &Record) -> Result<(), StorageError> {
        if self.is_discarded() {
            return Ok(());
        }
        let bytes = record.encode(manifest.content_id(), manifest.layout());
        let (path, fresh) = (self.record_path(), self.fresh_record_path());
        let _ = self.disk.remove(&fresh);
        let written = self
            .disk
            .create_new(&fresh)
            .and_then(|file| file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()))
            .and_then(|()| self.disk.rename(&fresh, &path));
        if written.is_err() {
            let _ = self.disk.remove(&fresh);
        }
        let rooted = || {
            if !self.rooted.load(Ordering::Acquire) {
                self.disk.sync_dir(&self.directory)?;
                self.rooted.store(true, Ordering::Release);
            }
            self.disk.sync_dir(&self.part_dir())
        };
        let result =
            written.and_then(|()| rooted()).map_err(StorageError::io(&path, bytes.len() as u64));
        if self.is_discarded() {
            self.clean_up();
        }
        result
    }

    /// Gives it `name`, or the first free numbered form of it, in `directory`.
    ///
    /// # Errors
    /// [`StorageError`]; it keeps its place then.
    pub fn rename(&self, directory: &Path, name: &FileName) -> Result<PathBuf, StorageError> {
        self.here()?;
        for number in 0..=MAX_NUMBERED {
            let to = match number {
                0 => directory.join(name.as_str()),
                _ => directory.join(name.numbered(number)),
            };
            match self.disk.rename_new(&self.path, &to) {
                Ok(()) => return Ok(to),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StorageError::CannotName { path: to, error }),
            }
        }
        Err(StorageError::NamesTaken(directory.join(name.as_str())))
    }

    /// Removes it and all that is beside it.
    pub fn discard(&self) {
        self.discarded.store(true, Ordering::Release);
        // Another file in its place is somebody's.
        if !self.disk.stamp(&self.path).is_ok_and(|stamp| stamp.inode != self.inode) {
            let _ = self.disk.remove(&self.path);
            self.clean_up();
        }
    }

    /// Removes what is beside it, and the directory unless other parts are in it.
    pub fn clean_up(&self) {
        clean_up(&*self.disk, &self.path);
    }

    /// What is in the file: pieces, record, and whether the record was believed.
    fn look(
        &self,
        manifest: &Manifest,
        new: bool,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<(Bitfield, Option<Record>, bool), StorageError> {
        let layout = manifest.layout();
        let _ = self.disk.remove(&self.fresh_record_path());
        let record = if new {
            // Left by a crash; it speaks of another file.
            let _ = self.disk.remove(&self.record_path());
            None
        } else {
            let bytes = self.disk.read(&self.record_path(), Record::encoded_len(layout) + 1);
            bytes.ok().and_then(|bytes| Record::parse(&bytes, manifest.content_id(), layout))
        };
        let stamp = self.stamp()?;
        if let Some(Record { claimed, clean: Some(stop) }) = &record
            && *stop == CleanStop::at(stamp)
            && stamp.size == layout.size()
        {
            return Ok((claimed.clone(), record, true));
        }
        self.reserve(layout)?;
        let candidates = self.candidates(manifest, new)?;
        let untouched = u64::from(layout.piece_count()) - candidates.len() as u64;
        let have = self.check(manifest, &candidates, &|looked_at| {
            let done = (untouched + looked_at as u64) * u64::from(PIECE_LEN);
            progress(done.min(layout.size()))
        })?;
        let claimed = record.iter().flat_map(|record| record.claimed.iter());
        let lost = claimed.filter(|piece| !have.contains(*piece)).count();
        if lost > 0 {
            tracing::warn!(
                path = %self.path.display(),
                pieces = lost,
                "the disk lost pieces it had said were safe; they are fetched again"
            );
        }
        Ok((have, record, false))
    }

    /// The pieces that may be in the file: those in ranges that were ever written, and those that
    /// are all zeros, which are there in a range that never was.
    fn candidates(&self, manifest: &Manifest, new: bool) -> Result<Vec<PieceIndex>, StorageError> {
        let layout = manifest.layout();
        let piece_len = u64::from(PIECE_LEN);
        let mut candidates = Bitfield::none(layout);
        let mut at = 0;
        while !new && at < layout.size() {
            let range = self.file.next_data(at).map_err(StorageError::io(&self.path, 0))?;
            let Some(range) = range.filter(|range| range.end > at) else { break };
            // The end is after a byte of the last piece; both fit, for the size does.
            let (first, last) = (range.start / piece_len, (range.end - 1) / piece_len);
            for piece in (first..=last).filter_map(|index| layout.piece(index as u32)) {
                candidates.insert(piece);
            }
            at = range.end;
        }
        // All pieces but the last have one length.
        let mut of_zeros = None;
        for piece in layout.pieces() {
            let len = layout.len(piece);
            let sha1 = match of_zeros {
                Some((of, sha1)) if of == len => sha1,
                _ => hash::sha1(&vec![0; len as usize]),
            };
            of_zeros = Some((len, sha1));
            if manifest.piece(piece).sha1 == sha1 {
                candidates.insert(piece);
            }
        }
        Ok(candidates.iter().collect())
    }

    /// An error while `size` bytes are needed in all.
    fn full(&self, size: u64) -> impl Fn(io::Error) -> StorageError {
        move |error| {
            let held = self.file.allocated().unwrap_or(0);
            // A disk that copies on write needs room for what it already holds.
            let missing = size.saturating_sub(held).max(u64::from(PIECE_LEN).min(size));
            StorageError::io(&self.path, missing)(error)
        }
    }

    fn part_dir(&self) -> PathBuf {
        self.directory.join(PART_DIR)
    }

    fn record_path(&self) -> PathBuf {
        self.path.with_extension(RECORD)
    }

    /// The next record, until it has the other's name.
    fn fresh_record_path(&self) -> PathBuf {
        self.path.with_extension(FRESH_RECORD)
    }
}

enum Locking {
    Locked { file: Box<dyn DiskFile>, inode: (u64, u64), new: bool },
    InUse,
    Moved,
}

/// Opens and locks the file at `path`, or makes it; what was made is not left behind by an error.
fn lock_file(disk: &dyn Disk, path: &Path) -> io::Result<Locking> {
    let (file, new) = match disk.create_new(path) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (disk.open(path)?, false),
        Err(error) => return Err(error),
    };
    lock(disk, path, file, new).inspect_err(|_| {
        if new {
            let _ = disk.remove(path);
        }
    })
}

fn lock(disk: &dyn Disk, path: &Path, file: Box<dyn DiskFile>, new: bool) -> io::Result<Locking> {
    if !file.try_lock()? {
        return Ok(Locking::InUse);
    }
    // Whoever held the lock until now may have finished: what we hold is then somebody's whole
    // file under another name, which must not be written.
    let inode = file.stamp()?.inode;
    match disk.stamp(path) {
        Ok(stamp) if stamp.inode == inode => {}
        Ok(_) => return Ok(Locking::Moved),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Locking::Moved),
        Err(error) => return Err(error),
    }
    if !new && !is_ours_alone(disk, path, &*file)? {
        tracing::warn!(path = %path.display(), "shared with somebody: it is begun anew");
        disk.remove(path)?;
        return Ok(Locking::Moved);
    }
    Ok(Locking::Locked { file, inode, new })
}

/// Whether nobody else has a name for a file found at `path`, or owns it: what we write would get
/// into his file, and what he writes into ours.
fn is_ours_alone(disk: &dyn Disk, path: &Path, file: &dyn DiskFile) -> io::Result<bool> {
    let (names, owner) = file.names_and_owner()?;
    if names > 1 || owner == rustix::process::geteuid().as_raw() {
        return Ok(names <= 1);
    }
    // Some filesystems give all files one owner, whoever makes them.
    let probe = path.with_extension("owner");
    let _ = disk.remove(&probe);
    let (_, made_by_us) = disk.create_new(&probe)?.names_and_owner()?;
    disk.remove(&probe)?;
    Ok(owner == made_by_us)
}

fn not_ours() -> io::Error {
    let text = "not a directory of its own on the filesystem of the destination";
    io::Error::new(io::ErrorKind::NotADirectory, text)
}
