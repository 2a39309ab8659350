//! A part file being filled: its bytes and what its record claims, kept in step.
//!
//! After a clean stop it sleeps: before anything is written the record is made to say so. When the
//! disk failed it finds out whether the same file takes writes again, or moves to another. It does
//! not count pieces: which are here is what the store says.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffers::{Buffer, Buffers};
use super::chunks::Chunks;
use super::claims::{Claims, Settling};
use super::disk::Disk;
use super::part::{Opened, Part};
use super::running_sha1::RunningSha1;
use super::storage_error::{StorageError, WriteError};
use crate::bitfield::Bitfield;
use crate::manifest::{Manifest, PieceHashes};
use crate::piece::PieceIndex;

/// What became of a part file whose disk failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Pieces that were here and are not any more: they must be fetched again, and nobody told
    /// that they are here.
    pub lost: Vec<PieceIndex>,
    /// Pieces that were not here and are now: the file was found in an older state.
    pub found: Vec<PieceIndex>,
}

/// A part file being filled.
#[derive(Debug)]
pub struct Filling {
    manifest: Arc<Manifest>,
    part: Part,
    claims: Mutex<Claims>,
    asleep: AtomicBool,
}

/// What goes on in place of a part file that is gone.
#[derive(Debug)]
pub struct Replacement {
    /// The new part file.
    pub filling: Filling,
    /// The pieces in it.
    pub have: Bitfield,
    /// The pieces that the old one had and no longer gives.
    pub lost: Vec<PieceIndex>,
}

impl Filling {
    /// Of a part file just opened.
    pub fn of(opened: Opened, manifest: Arc<Manifest>) -> Self {
        let claims = Mutex::new(Claims::of(&opened, manifest.layout()));
        Self { manifest, part: opened.part, claims, asleep: AtomicBool::new(opened.trusted) }
    }

    /// The file.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// What its record may claim; whoever holds this may be waiting for the disk.
    pub fn lock_claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a piece, which the caller has [verified](verify).
    ///
    /// # Errors
    /// [`StorageError`]; the piece must not be counted then.
    pub fn write(&self, piece: PieceIndex, chunks: &Chunks) -> Result<(), StorageError> {
        self.wake()?;
        self.part.write(self.manifest.layout(), piece, chunks)
    }

    /// From here on nothing is written before the record says that it is.
    pub fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Release);
    }

    /// Tries whether the file, still at its path, takes writes again. Nobody else may be writing.
    /// The pieces of `have` that went bad: none is looked for unless one of `doubtful`, which could
    /// not be read, is.
    ///
    /// # Errors
    /// [`StorageError`]: not yet.
    pub fn revive(
        &self,
        have: &Bitfield,
        doubtful: &[PieceIndex],
    ) -> Result<Vec<PieceIndex>, StorageError> {
        let mut claims = self.lock_claims();
        claims.begin(&self.part, &self.manifest)?;
        let resized = self.part.reserve(self.manifest.layout())?;
        claims.probe(&self.part, &self.manifest, have)?;
        self.asleep.store(false, Ordering::Release);
        drop(claims);
        let buffers = Buffers::default();
        let mut is_bad = |piece: &PieceIndex| {
            let mut buffer = buffers.take(self.manifest.layout().len(*piece));
            let read = self.part.read(&self.manifest, *piece, buffer.as_mut());
            !read.is_ok_and(|right| right)
        };
        if !resized && !doubtful.iter().any(&mut is_bad) {
            return Ok(Vec::new());
        }
        // One is bad for good: better all at once than a pause for each.
        self.wrong(have.iter().collect())
    }

    /// Opens or makes the part file that belongs where this one was, and copies into it what this
    /// one has of `have`.
    ///
    /// # Errors
    /// [`StorageError`]: not yet. So it is, and nothing new is left behind, when there is no other
    /// file and this one cannot be read: the drive it is on was taken away, and may come back.
    pub fn replacement(
        &self,
        disk: &Arc<dyn Disk>,
        have: &Bitfield,
    ) -> Result<Replacement, StorageError> {
        let opened = Part::open(disk, self.part.directory(), &self.manifest, &|_| true)?;
        let made = opened.new;
        let mut copied = opened.have.clone();
        let new = Self::of(opened, self.manifest.clone());
        let mut lost = Vec::new();
        let buffers = Buffers::default();
        for piece in have.iter() {
            if copied.contains(piece) {
                continue;
            }
            let mut buffer = buffers.take(self.manifest.layout().len(piece));
            let right = match self.part.read(&self.manifest, piece, buffer.as_mut()) {
                Err(error) if made => {
                    new.part.discard();
                    return Err(StorageError::io(self.part.path(), 0)(error));
                }
                read => read.is_ok_and(|right| right),
            };
            if right {
                new.write(piece, &Chunks::from(buffer))?;
                copied.insert(piece);
            } else {
                lost.push(piece);
            }
        }
        new.lock_claims().settle(&new.part, &self.manifest, &copied, Settling::Healing)?;
        tracing::info!(
            path = %new.part.path().display(),
            pieces = copied.count(),
            lost = lost.len(),
            "the download goes on in a new part file"
        );
        Ok(Replacement { filling: new, have: copied, lost })
    }

    /// The pieces of a complete file that are not in it any more because somebody cut it short: what
    /// was written since made it as long again, with holes. Nothing is read where there are none.
    ///
    /// # Errors
    /// [`StorageError`]; it can be asked again.
    pub fn lost_in_holes(&self) -> Result<Vec<PieceIndex>, StorageError> {
        let layout = self.manifest.layout();
        if !self.part.has_holes(layout) {
            return Ok(Vec::new());
        }
        self.wrong(layout.pieces().collect())
    }

    /// Before the first write after a clean stop: the record is made to say so, and the room
    /// reserved, in this order.
    fn wake(&self) -> Result<(), StorageError> {
        if !self.asleep.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut claims = self.lock_claims();
        claims.begin(&self.part, &self.manifest)?;
        self.part.reserve(self.manifest.layout())?;
        self.asleep.store(false, Ordering::Release);
        Ok(())
    }

    /// Those of `pieces` that are not in the file, or not right.
    fn wrong(&self, mut pieces: Vec<PieceIndex>) -> Result<Vec<PieceIndex>, StorageError> {
        let right = self.part.check(&self.manifest, &pieces, &|_| true)?;
        pieces.retain(|piece| !right.contains(*piece));
        Ok(pieces)
    }

    /// The bytes in the place of a piece, if they are there; whether they are right, nobody says.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, piece: PieceIndex, buffers: &Buffers) -> io::Result<Option<Buffer>> {
        let layout = self.manifest.layout();
        let mut buffer = buffers.take(layout.len(piece));
        let is_there = self.part.read_bytes(layout, piece, buffer.as_mut())?;
        Ok(is_there.then_some(buffer))
    }
}

/// Whether `chunks` are `piece`, which its BLAKE3 says. Where `ahead` is given it is one that needs this very
/// piece: it is taken further over them in the same go, and the SHA-1 of the piece checked.
///
/// # Errors
/// [`WriteError::Wrong`], or [`WriteError::FalseManifest`] when the hashes contradict each other; `ahead` is
/// as it was then.
pub fn verify(
    manifest: &Manifest,
    piece: PieceIndex,
    chunks: &Chunks,
    ahead: Option<&mut RunningSha1>,
) -> Result<(), WriteError> {
    let (layout, expected) = (manifest.layout(), manifest.piece(piece));
    if chunks.len() != layout.len(piece) as usize {
        return Err(WriteError::Wrong("length"));
    }
    let Some(sha1) = ahead else {
        let blake3 = PieceHashes::blake3_of_parts(layout, piece, chunks.parts());
        return if blake3 == expected.blake3 { Ok(()) } else { Err(WriteError::Wrong("BLAKE3")) };
    };
    let mut further = sha1.hasher();
    let actual = PieceHashes::of_parts(layout, piece, chunks.parts(), Some(&mut further));
    if actual.blake3 != expected.blake3 {
        return Err(WriteError::Wrong("BLAKE3"));
    }
    if actual.sha1 != expected.sha1 {
        return Err(WriteError::FalseManifest);
    }
    sha1.advance(further);
    Ok(())
}
