//! Where a download goes: DEST is a directory, where the file keeps its name, or a new file path. To
//! find out blocks.

use std::path::{Path, PathBuf};

use super::error::AgentError;
use crate::name::FileName;

/// A directory that exists and the name a file will have in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The directory.
    pub directory: PathBuf,
    /// The name.
    pub name: FileName,
}

/// Resolves DEST for a file called `name`.
///
/// # Errors
/// [`AgentError`] when DEST is an existing file, or its directory does not exist.
pub fn resolve(dest: &Path, name: &FileName) -> Result<Destination, AgentError> {
    if dest.is_dir() {
        return Ok(Destination { directory: absolute(dest)?, name: name.clone() });
    }
    if dest.symlink_metadata().is_ok() {
        return Err(AgentError::Exists(dest.to_owned()));
    }
    // `a/b/` names a directory that is not there; `Path` would quietly drop the slash.
    if dest.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(AgentError::NoDestination(dest.to_owned()));
    }
    let parent = match dest.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(AgentError::NoDestination(dest.to_owned())),
    };
    if !parent.is_dir() {
        return Err(AgentError::NoDestination(parent.to_owned()));
    }
    let name = FileName::from_path(dest)
        .map_err(|error| AgentError::Name { path: dest.to_owned(), error })?;
    Ok(Destination { directory: absolute(parent)?, name })
}

/// Resolves DEST where it can only be a directory that is there.
///
/// # Errors
/// [`AgentError`] when it is anything else.
pub fn directory(dest: &Path) -> Result<PathBuf, AgentError> {
    match (dest.is_dir(), dest.symlink_metadata().is_ok()) {
        (true, _) => absolute(dest),
        (false, true) => Err(AgentError::Exists(dest.to_owned())),
        (false, false) => Err(AgentError::NoDestination(dest.to_owned())),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, AgentError> {
    path.canonicalize().map_err(|error| AgentError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_the_name_and_a_path_changes_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().canonicalize().expect("exists");
        let name: FileName = "a.iso".parse().expect("name");
        let kept = resolve(&root, &name).expect("resolved");
        assert_eq!(kept, Destination { directory: root.clone(), name: name.clone() });
        let renamed = resolve(&root.join("b c.iso"), &name).expect("resolved");
        assert_eq!(renamed.directory, root);
        assert_eq!(renamed.name.as_str(), "b c.iso");
    }

    #[test]
    fn nothing_existing_is_a_target_and_nothing_is_created() {
        let dir = tempfile::tempdir().expect("temp dir");
        let name: FileName = "a.iso".parse().expect("name");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("/nonexistent/x", &dangling).expect("linked");
        assert!(matches!(resolve(&file, &name), Err(AgentError::Exists(_))));
        assert!(matches!(resolve(&dangling, &name), Err(AgentError::Exists(_))));
        for missing in ["none/x", "none/", "none/deep/er"] {
            let result = resolve(&dir.path().join(missing), &name);
            assert!(matches!(result, Err(AgentError::NoDestination(_))), "{missing}");
        }
        assert!(resolve(&file.join("x"), &name).is_err());
    }
}
