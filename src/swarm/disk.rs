//! The few operations on a directory, a part file and its record that storage needs.
//!
//! [`Disk`] and [`DiskFile`] are the seam: [`RealDisk`] is the machine's, tests have one that fails
//! and loses power. Everything here blocks. It decides nothing.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev};

use super::chunks::Chunks;
use super::stamp::Stamp;

/// Names and directories.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a directory in one that exists; `AlreadyExists` when it is there.
    ///
    /// # Errors
    /// As the system says, here and below.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Whether `path` is a directory itself, no link to one, on the filesystem that `parent` is on.
    ///
    /// # Errors
    /// As the system says.
    fn is_dir_in(&self, path: &Path, parent: &Path) -> io::Result<bool>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Fails while anything is in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a file for reading and writing; `AlreadyExists` when the name is taken.
    ///
    /// # Errors
    /// As the system says.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a part file for reading and writing; a link or anything but a file is refused.
    ///
    /// # Errors
    /// As the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens any file for reading, never waiting for it.
    ///
    /// # Errors
    /// As the system says.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The first bytes of a file, at most `limit`.
    ///
    /// # Errors
    /// As the system says.
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;

    /// What the file at `path` looks like; links are followed.
    ///
    /// # Errors
    /// As the system says.
    fn stamp(&self, path: &Path) -> io::Result<Stamp>;

    /// Renames; what has the name `to` is replaced at once.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames; `AlreadyExists` when the name `to` is taken.
    ///
    /// # Errors
    /// As the system says.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Brings the names in a directory to the disk.
    ///
    /// # Errors
    /// As the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Takes the lock that one holder in the whole system can have; whether it was free.
    ///
    /// # Errors
    /// As the system says, here and below.
    fn try_lock(&self) -> io::Result<bool>;

    /// How many names it has, and the number of its owner.
    ///
    /// # Errors
    /// As the system says.
    fn names_and_owner(&self) -> io::Result<(u64, u32)>;

    /// What it looks like.
    ///
    /// # Errors
    /// As the system says.
    fn stamp(&self) -> io::Result<Stamp>;

    /// Bytes the disk holds for it.
    ///
    /// # Errors
    /// As the system says.
    fn allocated(&self) -> io::Result<u64>;

    /// Cuts or extends it.
    ///
    /// # Errors
    /// As the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for its first `size` bytes where the filesystem can.
    ///
    /// # Errors
    /// `StorageFull` when there is not enough, as far as that can be known.
    fn reserve(&self, size: u64) -> io::Result<()>;

    /// Reads exactly `bytes.len()` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` when it ends before.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// The same, if that needs no waiting for the disk.
    ///
    /// # Errors
    /// Also when it does, or when that cannot be known.
    fn read_ready_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// Any part of `bytes` may have been written then.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `chunks`, one after the other.
    ///
    /// # Errors
    /// As [`Self::write_all_at`].
    fn write_chunks_at(&self, chunks: &Chunks, mut offset: u64) -> io::Result<()> {
        for part in chunks.parts() {
            self.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Brings content and size to the disk; after a failure what was written before is in doubt.
    ///
    /// # Errors
    /// As the system says.
    fn sync_data(&self) -> io::Result<()>;

    /// Brings everything to the disk, times too.
    ///
    /// # Errors
    /// As [`Self::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// The first range at or after `offset` that was ever written; where the system cannot tell,
    /// all there is.
    ///
    /// # Errors
    /// As the system says.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
}

/// The machine's filesystems.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn is_dir_in(&self, path: &Path, parent: &Path) -> io::Result<bool> {
        let found = fs::symlink_metadata(path)?;
        Ok(found.is_dir() && found.dev() == fs::metadata(parent)?.dev())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::options().read(true).write(true).create_new(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        // A link would lead our writes into somebody's file.
        let file = careful(OFlags::NOFOLLOW).write(true).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Box::new(file))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(careful(OFlags::empty()).open(path)?))
    }

    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = careful(OFlags::NOFOLLOW).open(path)?;
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        Ok(Stamp::of(&fs::metadata(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(error) if NO_FLAG.contains(&error) => link_new(from, to),
            result => Ok(result?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match rustix::fs::fsync(File::open(path)?) {
            // A filesystem that cannot, such as some over a network, keeps names in its own way.
            Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// As many parts go into one write as every system takes.
const MAX_SLICES: usize = 1_024;

/// What a filesystem says that cannot rename without replacing. The last two are one on Linux.
const NO_FLAG: [Errno; 4] = [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP];

/// Renames by way of a hard link, which is refused where a name is taken.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::link(from, to) {
        // How Linux says that the filesystem has no hard links.
        Err(Errno::PERM) => return Err(io::ErrorKind::Unsupported.into()),
        result => result?,
    }
    fs::remove_file(from).inspect_err(|_| _ = fs::remove_file(to))
}

/// Opening that never waits, as it would for a pipe somebody put in a file's place.
fn careful(flags: OFlags) -> OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags((flags | OFlags::NONBLOCK).bits().cast_signed());
    options
}

impl DiskFile for File {
    fn try_lock(&self) -> io::Result<bool> {
        match Self::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn names_and_owner(&self) -> io::Result<(u64, u32)> {
        let metadata = self.metadata()?;
        Ok((metadata.nlink(), metadata.uid()))
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.metadata()?))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks() * 512)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        // Asked first: a reservation that fails half-way would leave the disk full until it is
        // undone.
        let free = rustix::fs::fstatvfs(self)?;
        let missing = size.saturating_sub(self.allocated()?);
        // Some filesystems over a network do not say how large they are.
        let known = free.f_blocks > 0;
        if known && missing > free.f_bavail.saturating_mul(free.f_frsize) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, size) {
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            result => Ok(result?),
        }
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn read_ready_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        read_ready(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn write_chunks_at(&self, chunks: &Chunks, mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<_> = chunks.parts().map(IoSlice::new).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match pwritev(self, &left[..left.len().min(MAX_SLICES)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => {
                    IoSlice::advance_slices(&mut left, len);
                    offset += len as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }

    #[cfg(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"))]
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        // Reads and writes say where they go: the position that this moves is nobody's.
        let start = match seek(self, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(rest(offset, self.metadata()?.len())),
            Err(error) => return Err(error.into()),
        };
        let end = seek(self, SeekFrom::Hole(start))?;
        Ok(Some(start..end))
    }

    #[cfg(not(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd")))]
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(rest(offset, self.metadata()?.len()))
    }
}

/// Reads exactly `bytes.len()` bytes, if that needs no waiting for the disk.
///
/// # Errors
/// Also when it does, or when that cannot be known.
#[cfg(target_os = "linux")]
pub fn read_ready(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let into = &mut [IoSliceMut::new(bytes)];
        match rustix::io::preadv2(file, into, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                bytes = &mut bytes[len..];
                offset += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Only Linux says.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn read_ready(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// All of a file of `len` bytes from `offset` on.
fn rest(offset: u64, len: u64) -> Option<Range<u64>> {
    (offset < len).then_some(offset..len)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_just_written_is_ready_where_the_filesystem_says_so() {
        let file = tempfile::tempfile().expect("made");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        DiskFile::write_all_at(&file, &bytes, 0).expect("written");
        let mut read = vec![0; 70_000];
        match file.read_ready_at(&mut read, 7) {
            Ok(()) => {
                assert!(read == bytes[7..70_007]);
                let end = file.read_ready_at(&mut read, 50_000).expect_err("too short");
                assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
            }
            Err(error) => {
                let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::Unsupported];
                assert!(kinds.contains(&error.kind()), "{error}");
            }
        }
    }

    #[test]
    fn what_was_never_written_is_skipped_where_the_system_can_tell() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let file = RealDisk.create_new(&path).expect("made");
        let mib = 1 << 20;
        file.set_len(64 * mib).expect("extended");
        file.reserve(64 * mib).expect("reserved");
        file.write_all_at(&[1; 4096], 32 * mib).expect("written");
        let mut seen = 0;
        let mut at = 0;
        let mut found = false;
        while let Some(range) = file.next_data(at).expect("told") {
            assert!(range.start >= at && range.end > range.start);
            found |= range.contains(&(32 * mib));
            seen += range.end - range.start;
            at = range.end;
        }
        assert!(found, "what was written is never skipped");
        // A filesystem that cannot tell shows everything.
        assert!(seen <= mib || seen == 64 * mib, "{seen}");
    }

    #[test]
    fn chunks_are_written_as_one_however_many() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let file = RealDisk.create_new(&path).expect("made");
        let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
        for part in [bytes.len(), 1_100] {
            let mut chunks = Chunks::default();
            bytes.chunks(part).for_each(|part| chunks.push(part.to_vec().into()));
            file.write_chunks_at(&chunks, 3).expect("written");
            assert!(fs::read(&path).expect("read")[3..] == bytes, "in parts of {part}");
            file.set_len(0).expect("cut");
        }
        file.write_chunks_at(&Chunks::default(), 0).expect("nothing is written");
    }

    #[test]
    fn links_and_pipes_are_no_part_files_and_nothing_waits_for_them() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (target, link) = (dir.path().join("mine"), dir.path().join("link"));
        fs::write(&target, "precious").expect("written");
        std::os::unix::fs::symlink(&target, &link).expect("linked");
        assert!(RealDisk.open(&link).is_err());
        assert!(RealDisk.open(dir.path()).is_err());
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("runs");
        assert!(made.success());
        assert!(RealDisk.open(&pipe).is_err());
        let opened = RealDisk.open_read(&pipe).expect("opens at once");
        assert_eq!(opened.stamp().expect("stamped").size, 0);
    }

    #[test]
    fn a_new_name_replaces_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").expect("written");
        fs::write(&b, "b").expect("written");
        let taken = RealDisk.rename_new(&a, &b).expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&b).expect("read"), b"b");
        RealDisk.rename(&a, &b).expect("renamed");
        assert_eq!(fs::read(&b).expect("read"), b"a");
        assert_eq!(RealDisk.read(&b, 0).expect("read"), b"");
    }

    #[test]
    fn a_new_name_by_a_link_replaces_nothing_and_leaves_no_second_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (inner, out) = (dir.path().join("inner"), dir.path().join("out"));
        fs::create_dir(&inner).expect("made");
        let a = inner.join("a");
        fs::write(&a, "a").expect("written");
        fs::write(&out, "mine").expect("written");
        assert_eq!(link_new(&a, &out).expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&out).expect("read"), b"mine");
        fs::remove_file(&out).expect("removed");
        let allow = |mode| fs::set_permissions(&inner, Permissions::from_mode(mode)).expect("set");
        allow(0o500);
        // The superuser may remove it from there all the same.
        let stays = File::create(inner.join("try")).is_err();
        if stays {
            assert!(link_new(&a, &out).is_err());
            assert!(a.exists() && !out.exists());
        }
        allow(0o700);
        if stays {
            link_new(&a, &out).expect("renamed");
        } else {
            eprintln!("not tried: this user may write where nobody may");
        }
    }
}
