//! What a file looked like at one moment; a file that looks otherwise has changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

/// Size, time of the last write, and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds since 1970 of the last write, as the filesystem tells them.
    pub modified: (i64, i64),
    /// Device and number: which file it is, whatever its name.
    pub inode: (u64, u64),
}

impl Stamp {
    /// The stamp of an open file or a path.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        }
    }

    /// Whether it is the same file unchanged, as far as can be told after a restart: a disk that was
    /// mounted again may be another device.
    pub fn is_still(&self, earlier: &Self) -> bool {
        let Self { size, modified, inode: (_, number) } = *self;
        (size, modified, number) == (earlier.size, earlier.modified, earlier.inode.1)
    }
}
