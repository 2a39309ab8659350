//! A Unix socket in a data directory that only its owner can open, and the lines said on it.
//!
//! A tracker's operator and a client's commands come through one. What the lines mean is not known here.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::limits;

/// Name of the socket in a data directory.
const SOCKET_NAME: &str = "control.sock";

/// Name it has until nobody else can open it.
const NEW_SOCKET_NAME: &str = "control.sock.new";

/// Bytes of a path that every Unix lets a socket have.
const SOCKET_PATH_LEN: usize = 100;

/// A name by which a socket in a directory can be reached, however long the directory's own is.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// What a short name stands for must stay open.
    _directory: Option<File>,
}

impl SocketPath {
    /// Of the control socket in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn of(directory: &Path) -> io::Result<Self> {
        Self::named(directory, SOCKET_NAME)
    }

    fn named(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        if path.as_os_str().len() <= SOCKET_PATH_LEN {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
        Ok(Self { path, _directory: Some(directory) })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The socket, listening; its file goes when this does.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket in `directory`, in place of one that a killed process left. To be called
    /// by whoever holds the directory's lock, in a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let new = directory.join(NEW_SOCKET_NAME);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(SocketPath::named(directory, NEW_SOCKET_NAME)?.path())?;
        // Nobody can connect before it listens, and by then nobody else may.
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        let listener = socket.listen(limits::CONTROL_BACKLOG)?;
        let path = directory.join(SOCKET_NAME);
        fs::rename(&new, &path)?;
        Ok(Self { listener, path })
    }

    /// The next one who connects.
    ///
    /// # Errors
    /// When the system refuses; it can be tried again.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What came on a socket up to the end of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A line, without its end.
    Line(Vec<u8>),
    /// A line over this limit; it is skipped.
    TooLong(usize),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "{}", String::from_utf8_lossy(line)),
            Self::TooLong(limit) => write!(f, "a line is over the limit of {limit} bytes"),
        }
    }
}

/// Lines of at most so many bytes. Of a longer one no more than that is kept in memory.
#[derive(Debug)]
pub struct Lines<R> {
    read: R,
    limit: usize,
    /// The rest of a line that was too long comes first.
    skipping: bool,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// Lines of `read`.
    pub fn new(read: R, limit: usize) -> Self {
        Self { read, limit, skipping: false }
    }

    /// What they are read from.
    pub fn into_inner(self) -> R {
        self.read
    }

    /// The next one, or nothing at the end. One that is too long is told at once; the rest of it is
    /// skipped next.
    ///
    /// # Errors
    /// When reading fails.
    pub async fn next(&mut self) -> io::Result<Option<Said>> {
        while self.skipping {
            let buffer = self.read.fill_buf().await?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(buffer.len(), |at| at + 1);
            self.skipping = end.is_none() && !buffer.is_empty();
            self.read.consume(len);
        }
        let mut line = Vec::new();
        let mut bounded = (&mut self.read).take(self.limit as u64 + 1);
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > self.limit {
            self.skipping = true;
            return Ok(Some(Said::TooLong(self.limit)));
        }
        // The last one has no end.
        Ok(Some(Said::Line(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lines_are_skipped_and_the_next_ones_are_read() {
        let read: &[u8] = b"one\n\n0123456789\n012345\n0123456\nlast";
        let (mut lines, mut said) = (Lines::new(read, 6), Vec::new());
        while let Some(next) = lines.next().await.expect("memory") {
            said.push(next);
        }
        let line = |text: &str| Said::Line(text.as_bytes().to_vec());
        let long = || Said::TooLong(6);
        assert_eq!(said, [line("one"), line(""), long(), line("012345"), long(), line("last")]);
    }

    #[tokio::test]
    async fn a_socket_has_its_name_only_when_it_is_private() {
        let dir = tempfile::tempdir().expect("temp dir");
        // Longer than any socket's name may be.
        let deep = dir.path().join("d".repeat(150));
        fs::create_dir(&deep).expect("made");
        for directory in [dir.path(), &deep] {
            fs::write(directory.join(SOCKET_NAME), "stale").expect("written");
            fs::write(directory.join(NEW_SOCKET_NAME), "stale").expect("written");
            let socket = ControlSocket::bind(directory).expect("bound");
            let mode = fs::metadata(&socket.path).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
            assert!(!directory.join(NEW_SOCKET_NAME).exists());
            let path = SocketPath::of(directory).expect("a path");
            UnixStream::connect(path.path()).await.expect("connected");
            drop(socket);
            assert!(!directory.join(SOCKET_NAME).exists());
        }
    }
}
