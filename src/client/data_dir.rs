//! A data directory belongs to one running process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::AgentError;
use crate::name::UserName;
use crate::tracker_link::TrackerInfo;

/// Whose lock is that of the directory; the number of its process stands in it.
const LOCK_FILE: &str = "lock";

/// Where the sidecar files are of what is shared.
pub const SIDECARS: &str = "sidecars";

/// Makes the directory if needed, for its owner only, and locks it as long as the file lives.
///
/// # Errors
/// [`AgentError::Locked`] names who holds it.
pub fn lock(path: &Path) -> Result<File, AgentError> {
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file_error)?;
    let lock_path = path.join(LOCK_FILE);
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(file_error)?;
    if lock.try_lock().is_err() {
        let holder = match holder(path) {
            None => "another client".to_owned(),
            Some(pid) => format!("process {pid}"),
        };
        return Err(AgentError::Locked { path: path.to_owned(), holder });
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(file_error)?;
    Ok(lock)
}

/// Whether a running process has the directory. Makes and changes nothing.
pub fn is_locked(path: &Path) -> bool {
    let lock = File::open(path.join(LOCK_FILE));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The number of the process that had the directory last, or has it, as far as it says.
pub fn holder(path: &Path) -> Option<String> {
    let mut pid = String::new();
    let _ = File::open(path.join(LOCK_FILE)).ok()?.take(64).read_to_string(&mut pid);
    pid.truncate(pid.trim_end().len());
    (!pid.is_empty()).then_some(pid)
}

/// Who is logged in on this data directory, over restarts.
const USER_FILE: &str = "user";

/// Who logged in and has not logged out.
///
/// # Errors
/// [`AgentError::File`].
pub fn user(path: &Path) -> Result<Option<UserName>, AgentError> {
    let path = path.join(USER_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(user) => Ok(Some(user)),
            Err(_) => {
                tracing::warn!(path = %path.display(), "not a user name; log in again");
                Ok(None)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::File { path, error }),
    }
}

/// Keeps who is logged in.
///
/// # Errors
/// [`AgentError::File`].
pub fn keep_user(path: &Path, user: &UserName) -> Result<(), AgentError> {
    replace(path, USER_FILE, format!("{user}\n").as_bytes())
}

/// Nobody is logged in any more.
///
/// # Errors
/// [`AgentError::File`].
pub fn forget_user(path: &Path) -> Result<(), AgentError> {
    let path = path.join(USER_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AgentError::File { path, error })
        }
        _ => Ok(()),
    }
}

/// What is known of the trackers there are.
const ROSTER_FILE: &str = "roster";

/// What was kept of the trackers there are.
///
/// # Errors
/// [`AgentError::File`].
pub fn roster(path: &Path) -> Result<Option<Vec<u8>>, AgentError> {
    let path = path.join(ROSTER_FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::File { path, error }),
    }
}

/// Keeps what is known of the trackers there are.
///
/// # Errors
/// [`AgentError::File`].
pub fn keep_roster(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    replace(path, ROSTER_FILE, bytes)
}

/// The trackers that were given last.
const TRACKERS_FILE: &str = "trackers.txt";

/// Where the trackers that were given last are kept.
pub fn trackers_path(path: &Path) -> PathBuf {
    path.join(TRACKERS_FILE)
}

/// Keeps the trackers that were given, for when none are. Nothing is written when they are kept
/// already.
///
/// # Errors
/// [`AgentError::File`].
pub fn keep_trackers(path: &Path, trackers: &TrackerInfo) -> Result<(), AgentError> {
    let text = trackers.to_string();
    match fs::read(trackers_path(path)) {
        Ok(kept) if kept == text.as_bytes() => Ok(()),
        _ => replace(path, TRACKERS_FILE, text.as_bytes()),
    }
}

/// Puts a file in the place of another: whoever reads it finds the one or the other, whole.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), AgentError> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, &path));
    written.map_err(|error| AgentError::File { path, error })
}
