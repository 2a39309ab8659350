//! What can go wrong with a place for bytes, in words for people: the cause, then the path.

use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use super::running_sha1::FalsePiece;
use crate::piece::PieceIndex;

/// A place that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The system refused.
    #[error("{}: {}", path.display(), plain(error))]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The disk has not enough room.
    #[error("the disk is full: {} are needed at {}", ByteSize(*needed), path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes.
        needed: u64,
    },
    /// The part file was removed, or another file is in its place.
    #[error("{}: the part file is gone", .0.display())]
    Gone(PathBuf),
    /// Pieces that were here went bad, or were never here: they are fetched again.
    #[error("{}: {count} pieces are missing or went bad on the disk", path.display())]
    Incomplete {
        /// The part file.
        path: PathBuf,
        /// Pieces.
        count: u32,
    },
    /// The download was given up here.
    #[error("{}: this download has ended", .0.display())]
    Released(PathBuf),
    /// Another download writes the same part file.
    #[error("{}: another download is writing this file", .0.display())]
    InUse(PathBuf),
    /// A complete file was refused its name.
    #[error("{}: cannot be given its name: {}", path.display(), plain(error))]
    CannotName {
        /// The name.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Too many files of this name.
    #[error("{}: this name and all its numbered forms are taken", .0.display())]
    NamesTaken(PathBuf),
    /// The piece hashes are right and the file's SHA-1 is not: the publisher lied.
    #[error("every piece is right and the SHA-1 of the whole file is not: its manifest is false")]
    FalseManifest,
    /// A piece has the right BLAKE3 and a false SHA-1: the publisher lied.
    #[error("piece {0} contradicts the manifest: its publisher made a false one")]
    FalsePiece(PieceIndex),
}

impl From<FalsePiece> for StorageError {
    fn from(FalsePiece(piece): FalsePiece) -> Self {
        Self::FalsePiece(piece)
    }
}

impl StorageError {
    /// Whether the publisher lied, so that nothing of it is worth keeping.
    pub fn is_false_manifest(&self) -> bool {
        matches!(self, Self::FalseManifest | Self::FalsePiece(_))
    }

    /// Tells a full disk from every other refusal; `needed` bytes were still to come.
    pub(super) fn io(path: &Path, needed: u64) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.clone(), needed }
            }
            _ => Self::Io { path: path.clone(), error },
        }
    }

    /// Whether the cause may go away by itself or by somebody's hand, so that waiting and trying
    /// again is right. What is false, taken or too large for the filesystem stays so.
    pub fn can_heal(&self) -> bool {
        match self {
            Self::Io { error, .. } => error.kind() != io::ErrorKind::FileTooLarge,
            Self::CannotName { error, .. } => !is_for_good(error.kind()),
            Self::NoSpace { .. } | Self::Gone(_) | Self::Incomplete { .. } => true,
            Self::Released(_) | Self::InUse(_) | Self::NamesTaken(_) => false,
            Self::FalseManifest | Self::FalsePiece(_) => false,
        }
    }
}

/// Whether the system says that there is no such file, rather than nothing of it.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a name is refused for what it is, or for where it is, whenever it is tried.
fn is_for_good(refusal: io::ErrorKind) -> bool {
    matches!(
        refusal,
        io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::CrossesDevices
            | io::ErrorKind::Unsupported
    )
}

/// The system's words, in lower case and without the number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
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
    /// It is not here, or no longer.
    #[error("the piece is not here")]
    Missing,
    /// The file is not what it was.
    #[error("the file changed")]
    Changed,
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_cause_is_one_plain_line() {
        let path = Path::new("/d/.mtq/a.part");
        let said = |number| {
            StorageError::io(path, 12 << 20)(io::Error::from_raw_os_error(number)).to_string()
        };
        assert_eq!(said(Errno::ROFS.raw_os_error()), "/d/.mtq/a.part: read-only file system");
        assert_eq!(
            said(Errno::NOSPC.raw_os_error()),
            "the disk is full: 12.0 MiB are needed at /d/.mtq/a.part"
        );
        assert_eq!(
            said(Errno::DQUOT.raw_os_error()),
            "the disk is full: 12.0 MiB are needed at /d/.mtq/a.part"
        );
        let error = Errno::INVAL.into();
        let unnamed = StorageError::CannotName { path: PathBuf::from("/d/a"), error };
        assert_eq!(unnamed.to_string(), "/d/a: cannot be given its name: invalid argument");
        let gone = StorageError::Gone(path.to_owned());
        assert_eq!(gone.to_string(), "/d/.mtq/a.part: the part file is gone");
    }

    #[test]
    fn what_is_false_or_taken_does_not_heal() {
        let path = || PathBuf::from("/d");
        let io = |kind: io::ErrorKind| StorageError::io(&path(), 1)(kind.into());
        let naming = |errno: Errno| StorageError::CannotName { path: path(), error: errno.into() };
        for heals in [
            io(io::ErrorKind::StorageFull),
            io(io::ErrorKind::NotFound),
            io(io::ErrorKind::ReadOnlyFilesystem),
            io(io::ErrorKind::PermissionDenied),
            io(io::ErrorKind::Other),
            naming(Errno::NOSPC),
            naming(Errno::NOENT),
            naming(Errno::ROFS),
            naming(Errno::ACCESS),
            naming(Errno::IO),
            StorageError::Gone(path()),
            StorageError::Incomplete { path: path(), count: 1 },
        ] {
            assert!(heals.can_heal(), "{heals}");
        }
        for stays in [
            io(io::ErrorKind::FileTooLarge),
            naming(Errno::INVAL),
            naming(Errno::NAMETOOLONG),
            naming(Errno::XDEV),
            naming(Errno::OPNOTSUPP),
            StorageError::CannotName { path: path(), error: io::ErrorKind::Unsupported.into() },
            StorageError::InUse(path()),
            StorageError::Released(path()),
            StorageError::NamesTaken(path()),
            StorageError::FalseManifest,
        ] {
            assert!(!stays.can_heal(), "{stays}");
        }
    }
}
