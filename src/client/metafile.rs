//! Metafiles on disk: read with a bound, written whole and durably or not at all. All of it blocks.

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

/// Reads and checks a metafile, and waits for nobody who may be at the other end of a pipe.
///
/// # Errors
/// [`AgentError`].
pub fn read_file(path: &Path) -> Result<Metainfo, AgentError> {
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    if !fs::metadata(path).map_err(file_error)?.is_file() {
        let error = MetainfoError::Syntax("it is no regular file".to_owned());
        return Err(AgentError::Metafile { path: path.to_owned(), error });
    }
    read(path)
}

/// A metafile that is written and does not have its name yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Unnamed {
    unfinished: PathBuf,
    path: PathBuf,
}

impl Unnamed {
    /// Gives it its name, in place of an older one; returns the one path by which it is known.
    ///
    /// # Errors
    /// [`AgentError::File`]; an older one is there then.
    pub fn name(self) -> Result<PathBuf, AgentError> {
        let file_error = |error| AgentError::File { path: self.path.clone(), error };
        fs::rename(&self.unfinished, &self.path).map_err(file_error)?;
        if let Some(parent) = self.path.parent() {
            // A filesystem that cannot do this still has the file.
            let _ = File::open(parent).and_then(|directory| directory.sync_all());
        }
        Ok(canonical(&self.path))
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // Named, it is there no more.
        let _ = fs::remove_file(&self.unfinished);
    }
}

/// Writes a metafile beside where it is to be. An older one of the same share (group and name) may be
/// replaced, anything else may not.
///
/// # Errors
/// [`AgentError`].
pub fn write(path: &Path, meta: &Metainfo) -> Result<Unnamed, AgentError> {
    let same = |old: Metainfo| old.group == meta.group && old.name == meta.name;
    if path.symlink_metadata().is_ok() && !read_file(path).is_ok_and(same) {
        return Err(AgentError::Exists(path.to_owned()));
    }
    let file_error = |error| AgentError::File { path: path.to_owned(), error };
    let mut unfinished = path.as_os_str().to_owned();
    // Two may be on their way to one path.
    unfinished.push(format!(".{:016x}", fastrand::u64(..)));
    let unfinished = PathBuf::from(unfinished);
    // What was there already is not ours to remove.
    let mut file = File::create_new(&unfinished).map_err(file_error)?;
    let unnamed = Unnamed { unfinished, path: path.to_owned() };
    let written = file.write_all(meta.to_text().as_bytes()).and_then(|()| file.sync_all());
    written.map(|()| unnamed).map_err(file_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::hashing;

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
        let parent = root.parent().expect("a parent").join("f.mtorrent");
        assert_eq!(canonical(&root.join("link/../f.mtorrent")), parent, "as the system goes up");
        assert_eq!(canonical(&path), path);
    }

    #[test]
    fn an_older_one_stays_until_the_new_one_has_its_name_and_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().canonicalize().expect("there").join("f.mtorrent");
        let meta = |text: &str| {
            let file = dir.path().join("f");
            fs::write(&file, text).expect("written");
            let (manifest, _) = hashing::hash_file(&file, &|_| true).expect("hashed");
            fs::remove_file(&file).expect("removed");
            let (group, name) = ("lab".parse().expect("a name"), "f".parse().expect("a name"));
            Metainfo { trackers: Vec::new(), group, name, manifest }
        };
        let content = |meta: &Metainfo| meta.manifest.content_id();
        let (old, new) = (meta("old"), meta("new"));
        assert_eq!(write(&path, &old).and_then(Unnamed::name).expect("named"), path);
        drop(write(&path, &new).expect("written"));
        assert_eq!(content(&read_file(&path).expect("whole")), content(&old));
        write(&path, &new).and_then(Unnamed::name).expect("named");
        assert_eq!(content(&read_file(&path).expect("whole")), content(&new));
        let left = fs::read_dir(dir.path()).expect("there").count();
        assert_eq!(left, 1, "nothing unfinished is left");
        let foreign = Metainfo { name: "g".parse().expect("a name"), ..new };
        assert!(matches!(write(&path, &foreign), Err(AgentError::Exists(_))));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("made");
        assert!(matches!(read_file(&pipe), Err(AgentError::Metafile { .. })));
    }
}
