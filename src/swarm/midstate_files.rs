//! The midstates of what is shared here, on the disk: a file for each content, a record for each piece.
//!
//! They save peers work and are worth nothing else: whatever fails with them is as if there were none, and
//! a record that was not written, or only in part, is found out by its check.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, process};

use super::midstates::Midstates;
use crate::hash;
use crate::manifest::ContentId;
use crate::piece::PieceIndex;

/// Bytes of the check that follows the midstates of a piece.
const CHECK_LEN: usize = 8;

const RECORD_LEN: usize = Midstates::LEN + CHECK_LEN;

/// What a file is called until its content is known.
const NEW: &str = "new-";

/// Where they are kept, if anywhere.
#[derive(Clone, Debug, Default)]
pub struct MidstateFiles {
    directory: Option<PathBuf>,
}

/// Those of a file that is being hashed; gone again unless it [gets](Self::keep) its place.
#[derive(Debug)]
pub struct NewMidstates {
    file: File,
    path: PathBuf,
    directory: PathBuf,
}

impl MidstateFiles {
    /// Those in `directory`, which is made for its owner only. What was begun there and not ended is
    /// deleted: nobody else may be at work in it.
    pub fn new(directory: PathBuf) -> Self {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        if let Err(error) = made {
            tracing::warn!(path = %directory.display(), %error, "keeps no SHA-1 midstates");
            return Self::default();
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(NEW) {
                logged(&entry.path(), fs::remove_file(entry.path()));
            }
        }
        Self { directory: Some(directory) }
    }

    /// The midstates of a piece, if they are kept.
    pub fn get(&self, content: ContentId, piece: PieceIndex) -> Option<Midstates> {
        let file = File::open(self.path(content)?).ok()?;
        let mut bytes = [0; RECORD_LEN];
        file.read_exact_at(&mut bytes, offset(piece)).ok()?;
        let (midstates, check) = bytes.split_first_chunk()?;
        let midstates = Midstates(*midstates);
        (check == check_of(&midstates)).then_some(midstates)
    }

    /// Keeps the midstates of a piece, which are so.
    pub fn put(&self, content: ContentId, piece: PieceIndex, midstates: &Midstates) {
        let Some(path) = self.path(content) else { return };
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        logged(&path, file.and_then(|file| write(&file, piece, midstates)));
    }

    /// Forgets those of some pieces, which are not so after all.
    pub fn forget(&self, content: ContentId, pieces: &[PieceIndex]) {
        let Some(path) = self.path(content).filter(|_| !pieces.is_empty()) else { return };
        let nothing = [0; RECORD_LEN];
        logged(
            &path,
            File::options().write(true).open(&path).and_then(|file| {
                pieces.iter().try_for_each(|piece| file.write_all_at(&nothing, offset(*piece)))
            }),
        );
    }

    /// Forgets those of a content.
    pub fn remove(&self, content: ContentId) {
        let Some(path) = self.path(content) else { return };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => logged(&path, removed),
        }
    }

    /// A place for those of a file that is about to be hashed.
    pub fn begin(&self) -> Option<NewMidstates> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let directory = self.directory.clone()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{NEW}{}-{number}", process::id()));
        match File::create_new(&path) {
            Ok(file) => Some(NewMidstates { file, path, directory }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no SHA-1 midstates");
                None
            }
        }
    }

    fn path(&self, content: ContentId) -> Option<PathBuf> {
        Some(place(self.directory.as_ref()?, content))
    }
}

impl NewMidstates {
    /// Keeps the midstates of a piece.
    pub fn put(&self, piece: PieceIndex, midstates: &Midstates) {
        logged(&self.path, write(&self.file, piece, midstates));
    }

    /// They are those of this content.
    pub fn keep(self, content: ContentId) {
        // Where this fails they go, with this.
        logged(&self.path, fs::rename(&self.path, place(&self.directory, content)));
    }
}

impl Drop for NewMidstates {
    fn drop(&mut self) {
        // Once renamed there is nothing to delete.
        let _ = fs::remove_file(&self.path);
    }
}

fn place(directory: &Path, content: ContentId) -> PathBuf {
    directory.join(content.to_string())
}

fn offset(piece: PieceIndex) -> u64 {
    u64::from(piece.get()) * RECORD_LEN as u64
}

fn check_of(midstates: &Midstates) -> [u8; CHECK_LEN] {
    let hash = hash::blake3(midstates.as_bytes()).0;
    std::array::from_fn(|at| hash[at])
}

fn write(file: &File, piece: PieceIndex, midstates: &Midstates) -> io::Result<()> {
    let mut bytes = [0; RECORD_LEN];
    bytes[..Midstates::LEN].copy_from_slice(midstates.as_bytes());
    bytes[Midstates::LEN..].copy_from_slice(&check_of(midstates));
    file.write_all_at(&bytes, offset(piece))
}

fn logged(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(path = %path.display(), %error, "SHA-1 midstates");
    }
}
