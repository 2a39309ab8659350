//! Metafiles on disk: read with a bound, written whole or not at all.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::error::AgentError;
use crate::limits;
use crate::metainfo::{Metainfo, MetainfoError};
use crate::name::FileName;

/// Where the metafile of a share goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetafileTo {
    /// Beside the file: `a.iso.mtorrent` beside `a.iso`.
    #[default]
    Beside,
    /// Into this directory: `DIR/NAME.mtorrent`, by the name the share is listed under.
    Directory(PathBuf),
    /// To this very path.
    File(PathBuf),
}

impl MetafileTo {
    /// The metafile's path for a file that is listed as `name`.
    pub fn path(&self, file: &Path, name: &FileName) -> PathBuf {
        match self {
            Self::Beside => beside(file),
            Self::Directory(directory) => beside(&directory.join(name.as_str())),
            Self::File(path) => path.clone(),
        }
    }
}

/// `a.iso` -> `a.iso.mtorrent`.
pub fn beside(path: &Path) -> PathBuf {
    let mut metafile = path.as_os_str().to_owned();
    metafile.push(".mtorrent");
    metafile.into()
}

/// The one path by which a metafile is known, whether or not it is still there.
pub fn canonical(path: &Path) -> PathBuf {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return path.to_owned(),
    };
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Reads and checks a metafile.
///
/// # Errors
/// [`AgentError`].
pub fn read(path: &Path) -> Result<Metainfo, AgentError> {
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    let mut text = String::new();
    let limit = limits::MAX_METAFILE_LEN;
    let file = File::open(path).map_err(file_error)?;
    // What is too large to be one is not read first; a pipe has no length and is read to the limit.
    let len = file.metadata().map_err(file_error)?.len();
    let read = match len > limit {
        true => Ok(usize::MAX),
        false => file.take(limit + 1).read_to_string(&mut text),
    };
    let bad = |error| AgentError::Metafile { path: path.to_owned(), error };
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let error = MetainfoError::Syntax("it is not text".to_owned());
            Err(bad(error))
        }
        Err(error) => Err(file_error(error)),
        Ok(len) if len as u64 > limit => {
            let message = format!("it is over the limit of {limit} bytes");
            Err(bad(MetainfoError::Syntax(message)))
        }
        Ok(_) => Metainfo::parse(&text).map_err(bad),
    }
}

/// Writes a metafile whole or not at all. An older one of the same share (group and name) is
/// replaced, anything else is not.
///
/// # Errors
/// [`AgentError`].
pub fn write(path: &Path, meta: &Metainfo) -> Result<(), AgentError> {
    let same = |old: Metainfo| old.group == meta.group && old.name == meta.name;
    if path.symlink_metadata().is_ok() && !read(path).is_ok_and(same) {
        return Err(AgentError::Exists(path.to_owned()));
    }
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let written = File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(meta.to_text().as_bytes()))
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        file_error(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_beside_the_file_or_where_one_says() {
        let (file, name) = (Path::new("/d/a b.iso"), "x".parse().expect("a name"));
        let path = |to: MetafileTo| to.path(file, &name);
        assert_eq!(path(MetafileTo::Beside), Path::new("/d/a b.iso.mtorrent"));
        assert_eq!(path(MetafileTo::Directory("/m".into())), Path::new("/m/x.mtorrent"));
        assert_eq!(path(MetafileTo::File("/m/y".into())), Path::new("/m/y"));
    }

    #[test]
    fn one_that_is_gone_is_known_by_the_same_path() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().canonicalize().expect("there");
        std::os::unix::fs::symlink(&root, root.join("link")).expect("linked");
        let path = root.join("f.mtorrent");
        assert_eq!(canonical(&root.join("link/f.mtorrent")), path);
        std::fs::write(&path, "x").expect("written");
        assert_eq!(canonical(&root.join("link/../f.mtorrent")).file_name(), path.file_name());
        assert_eq!(canonical(&path), path);
    }
}
