//! A data directory belongs to one running process at a time.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::error::AgentError;

/// Makes the directory if needed, for its owner only, and locks it as long as the file lives.
///
/// # Errors
/// [`AgentError::Locked`] names who holds it.
pub fn lock(path: &Path) -> Result<File, AgentError> {
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file_error)?;
    let lock_path = path.join("lock");
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(file_error)?;
    if lock.try_lock().is_err() {
        let mut holder = String::new();
        let _ = lock.take(64).read_to_string(&mut holder);
        let holder = match holder.trim() {
            "" => "another client".to_owned(),
            pid => format!("process {pid}"),
        };
        return Err(AgentError::Locked { path: path.to_owned(), holder });
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(file_error)?;
    Ok(lock)
}
