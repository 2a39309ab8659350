//! What the agent answers with: the results of its commands.

use std::path::PathBuf;
use std::sync::Arc;

use super::library::EntryState;
use crate::manifest::{ContentId, Manifest};
use crate::name::{FileName, GroupName};
use crate::swarm::download::Progress;

/// A finished `share`.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its metafile, if one could be written.
    pub metafile: Option<PathBuf>,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// An accepted `get`.
#[derive(Clone, Debug)]
pub struct Started {
    /// The download's number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where it will be; a name that is taken by then gets a number.
    pub path: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Bytes there already, of an earlier attempt.
    pub stored_bytes: u64,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// One row of `downloads`.
#[derive(Clone, Debug)]
pub struct DownloadRow {
    /// Its number.
    pub number: u64,
    /// The group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Where its bytes are now.
    pub path: PathBuf,
    /// What it is.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Where it is in its life.
    pub state: EntryState,
    /// How far it is, and who gave what.
    pub progress: Progress,
    /// Bytes sent to others.
    pub uploaded_bytes: u64,
    /// Whether the file was found changed and is no longer served.
    pub changed: bool,
}
