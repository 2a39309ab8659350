//! Reading pieces for peers: what goes out is right.
//!
//! They are looked at each time, although a whole file is also held against its stamp: a write in the
//! same tick of the filesystem's clock, or through a mapping, changes bytes under an unchanged stamp,
//! and disks rot; a peer that was sent bad bytes would ban our user for a day. Where the CRC is known that
//! they had when their BLAKE3 was right, that is enough to see; else, and where it is another, their
//! BLAKE3 is taken.
//!
//! What the system has in memory is read by whoever asks, if the last piece was there too: to have
//! another thread do it takes longer than to do it, and leaves the bytes in the caches of another core. Only
//! where the filesystem says what is in memory: most over a network do not, and even to open a file there may
//! take for ever.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::buffers::{Buffer, Buffers};
use super::disk::{Disk, DiskFile};
use super::stamp::Stamp;
use super::storage::{PieceStore, Place, ReadError};
use super::storage_error::is_gone;
use crate::clock;
use crate::hash;
use crate::piece::PieceIndex;

impl PieceStore {
    /// Whether reading takes long: more should be begun at once then.
    pub fn is_slow(&self) -> bool {
        self.pace.is_slow()
    }

    /// Whether [`Self::read_at_once`] is likely to have something.
    pub fn is_quick(&self) -> bool {
        self.pace.is_quick()
    }

    /// The bytes of `piece`, which are right; `crc` is the one they had. Blocks.
    ///
    /// # Errors
    /// [`ReadError`]; a whole file that is no longer what it was is never served again, and a bad
    /// piece of a part file is one of [`Self::take_lost`].
    pub fn read_piece(
        &self,
        piece: PieceIndex,
        crc: Option<u64>,
        buffers: &Buffers,
    ) -> Result<Buffer, ReadError> {
        let place = self.place_of(piece).ok_or(ReadError::Missing)?;
        let layout = self.manifest().layout();
        let mut bytes = buffers.take(layout.len(piece));
        let began = clock::monotonic();
        let is_right = |file: &dyn DiskFile, bytes: &[u8]| {
            // By now they were read.
            self.note_read(began.elapsed(), file, layout.offset(piece));
            crc == Some(hash::crc64(bytes)) || self.manifest().is_piece(piece, bytes)
        };
        match place {
            Place::Part(filling) => {
                let part = filling.part();
                match part.read_bytes(layout, piece, bytes.as_mut()) {
                    Ok(true) if is_right(part.file(), bytes.as_ref()) => Ok(bytes),
                    Ok(_) => {
                        self.lose(&filling, piece);
                        Err(ReadError::Missing)
                    }
                    Err(error) => {
                        self.lock().unreadable.insert(piece);
                        Err(error.into())
                    }
                }
            }
            Place::Released(_) => Err(ReadError::Missing),
            Place::Changed { .. } => Err(ReadError::Changed),
            Place::Whole { path, stamp } => {
                let read = |file: &dyn DiskFile| {
                    file.read_exact_at(bytes.as_mut(), layout.offset(piece))?;
                    Ok(is_right(file, bytes.as_ref()))
                };
                match read_whole(&*self.disk, (&path, stamp), read) {
                    Ok(true) => Ok(bytes),
                    Ok(false) => Err(self.mark_changed(path)),
                    Err(error)
                        if is_gone(&error) || error.kind() == io::ErrorKind::UnexpectedEof =>
                    {
                        Err(self.mark_changed(path))
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// The same where they need not be waited for; nothing where they are not in memory, and where
    /// anything is not as it should be, which [`Self::read_piece`] will find out.
    pub fn read_at_once(&self, piece: PieceIndex, crc: u64, buffers: &Buffers) -> Option<Buffer> {
        let place = self.place_of(piece).filter(|_| self.is_quick())?;
        let layout = self.manifest().layout();
        let mut bytes = buffers.take(layout.len(piece));
        let began = clock::monotonic();
        let mut read = |file: &dyn DiskFile| {
            file.read_ready_at(bytes.as_mut(), layout.offset(piece))?;
            Ok(hash::crc64(bytes.as_ref()) == crc)
        };
        let result = match place {
            Place::Part(filling) => read(filling.part().file()),
            Place::Whole { path, stamp } => read_whole(&*self.disk, (&path, stamp), read),
            Place::Changed { .. } | Place::Released(_) => Ok(false),
        };
        match result {
            Ok(true) => {
                self.pace.note(began.elapsed());
                Some(bytes)
            }
            _ => {
                self.pace.note_wait();
                None
            }
        }
    }

    /// The bytes at `offset` were read within `took`. If that was quick, the next are likely to be read at once,
    /// where the filesystem says of these, which are in memory now, that they are.
    fn note_read(&self, took: Duration, file: &dyn DiskFile, offset: u64) {
        self.pace.note(took);
        if self.is_quick() && file.read_ready_at(&mut [0], offset).is_err() {
            self.pace.note_wait();
        }
    }

    /// Where the bytes of `piece` are, if it is here.
    fn place_of(&self, piece: PieceIndex) -> Option<Place> {
        let state = self.lock();
        state.have.contains(piece).then(|| state.place.clone())
    }
}

/// Lets `read` take bytes of a whole file; whether the file is still what it was, and they are right.
///
/// # Errors
/// As the system says.
fn read_whole(
    disk: &dyn Disk,
    (path, stamp): (&Path, Stamp),
    read: impl FnOnce(&dyn DiskFile) -> io::Result<bool>,
) -> io::Result<bool> {
    // Opened for each piece: thousands of shares hold no descriptors, and a file put in place of
    // ours is noticed.
    let file = disk.open_read(path)?;
    if file.stamp()? != stamp {
        return Ok(false);
    }
    Ok(read(&*file)? && file.stamp()? == stamp)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::swarm::disk::RealDisk;
    use crate::swarm::memory_disk::MemoryDisk;
    use crate::swarm::storage_faults::{bytes_of, dest, filled, indices, piece, read};

    fn at_once(store: &PieceStore, index: u32, crc: u64) -> Option<Vec<u8>> {
        let buffer = store.read_at_once(piece(index), crc, &Buffers::default());
        buffer.map(|buffer| buffer.as_ref().to_vec())
    }

    fn crc_of(index: u32) -> u64 {
        hash::crc64(bytes_of(piece(index)))
    }

    #[test]
    fn what_is_in_memory_is_read_at_once_if_the_last_was() {
        let store = filled(&MemoryDisk::with(dest()), 0..2);
        assert!(!store.is_quick() && !store.is_slow(), "nothing was read yet");
        assert_eq!(at_once(&store, 0, crc_of(0)), None);
        store.pace.note(Duration::ZERO);
        assert!(store.is_quick());
        for index in 0..2 {
            store.pace.note(Duration::ZERO);
            assert!(at_once(&store, index, crc_of(index)).expect("read") == bytes_of(piece(index)));
        }
        store.pace.note(Duration::from_secs(1));
        assert!(store.is_slow());
        assert_eq!(at_once(&store, 0, crc_of(0)), None);
    }

    #[test]
    fn what_would_be_waited_for_is_left_to_others_and_nothing_is_lost() {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, 0..2);
        disk.image().cold = true;
        store.pace.note(Duration::ZERO);
        assert_eq!(at_once(&store, 1, crc_of(1)), None);
        assert!(!store.is_quick(), "not tried again at once");
        assert_eq!(indices(&store.bitfield()), [0, 1]);
        assert!(read(&store, piece(1)).expect("read") == bytes_of(piece(1)));
    }

    #[test]
    fn only_a_filesystem_that_says_what_is_in_memory_is_read_at_once() {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, 0..1);
        let Some(Place::Part(filling)) = store.place_of(piece(0)) else { panic!("a part file") };
        let quickly = || store.note_read(Duration::ZERO, filling.part().file(), 0);
        quickly();
        assert!(store.is_quick());
        disk.image().cold = true;
        quickly();
        assert_eq!((store.is_quick(), store.is_slow()), (false, false));
    }

    #[test]
    fn what_is_missing_or_not_right_is_nothing() {
        let store = filled(&MemoryDisk::with(dest()), 0..1);
        for (index, crc) in [(1, crc_of(1)), (0, crc_of(0) ^ 1)] {
            store.pace.note(Duration::ZERO);
            assert_eq!(at_once(&store, index, crc), None);
        }
        assert_eq!(indices(&store.bitfield()), [0], "that is for others to judge");
        assert!(store.take_lost().is_empty());
    }

    #[test]
    fn a_whole_file_that_changed_is_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a");
        fs::write(&path, bytes_of(piece(0))).expect("written");
        let manifest = crate::manifest::testing::manifest_of(bytes_of(piece(0))).into();
        let stamp = RealDisk.open_read(&path).expect("opens").stamp().expect("known");
        let store = PieceStore::whole(manifest, path.clone(), stamp);
        store.pace.note(Duration::ZERO);
        // Not every filesystem says what is in memory.
        let had = at_once(&store, 0, crc_of(0));
        assert!(had.is_none_or(|bytes| bytes == bytes_of(piece(0))));
        fs::write(&path, [0; 7]).expect("written");
        store.pace.note(Duration::ZERO);
        assert_eq!(at_once(&store, 0, crc_of(0)), None);
        let later = store.read_piece(piece(0), None, &Buffers::default());
        assert!(matches!(later, Err(ReadError::Changed)));
    }
}
