//! What is kept beside the contents that are shared here: a file for each, with a record for each of its pieces.
//!
//! Sidecars save work, peers' and ours, and are worth nothing else: whatever fails with them is as if there
//! were none, and a record that was not written, or only in part, is found out by its check.
//!
//! All of this may wait for the disk but [`Sidecars::get_at_once`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{io, process};

use super::disk::read_ready;
use super::midstates::Midstates;
use crate::bitfield::Bitfield;
use crate::hash;
use crate::limits::PIECE_LEN;
use crate::manifest::ContentId;
use crate::piece::{PieceIndex, PieceLayout};

/// Bytes of the CRC of a piece, and of the check of its record.
const CRC_LEN: usize = 8;
const CHECK_LEN: usize = 8;

const RECORD_LEN: usize = Midstates::LEN + CRC_LEN + CHECK_LEN;

/// What a file is called until its content is known.
const NEW: &str = "new-";

/// What is kept of a piece, which has the full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceRecord {
    /// The states of its SHA-1s on the way.
    pub midstates: Midstates,
    /// The [CRC](hash::crc64) of its bytes when they were hashed.
    pub crc: u64,
}

/// Where they are kept, if anywhere.
#[derive(Clone, Debug, Default)]
pub struct Sidecars {
    directory: Option<PathBuf>,
    /// Whether the filesystem says what is in memory, and what was read last was.
    is_quick: Arc<AtomicBool>,
}

/// That of a file that is being hashed; gone again unless it [gets](Self::keep) its place.
#[derive(Debug)]
pub struct NewSidecar {
    file: File,
    path: PathBuf,
    directory: PathBuf,
}

impl Sidecars {
    /// Those in `directory`, which is made for its owner only.
    pub fn new(directory: PathBuf) -> Self {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        if let Err(error) = made {
            tracing::warn!(path = %directory.display(), %error, "keeps no sidecars");
            return Self::default();
        }
        Self { directory: Some(directory), ..Self::default() }
    }

    /// What is kept of a piece, if anything.
    pub fn get(&self, content: ContentId, piece: PieceIndex) -> Option<PieceRecord> {
        let file = File::open(self.path(content)?).ok()?;
        let mut bytes = [0; RECORD_LEN];
        file.read_exact_at(&mut bytes, offset(piece)).ok()?;
        // It is in memory now: where the filesystem cannot say so, it never can.
        let is_quick = read_ready(&file, &mut [0], offset(piece)).is_ok();
        self.is_quick.store(is_quick, Ordering::Relaxed);
        PieceRecord::decode(piece, &bytes)
    }

    /// The same, if it need not be waited for, which is known of the last that was looked for.
    pub fn get_at_once(
        &self,
        content: ContentId,
        piece: PieceIndex,
    ) -> Option<Option<PieceRecord>> {
        let path = self.path(content).filter(|_| self.is_quick.load(Ordering::Relaxed))?;
        let Ok(file) = File::open(path) else { return Some(None) };
        let mut bytes = [0; RECORD_LEN];
        match read_ready(&file, &mut bytes, offset(piece)) {
            Ok(()) => Some(PieceRecord::decode(piece, &bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(None),
            Err(_) => {
                self.is_quick.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Keeps what is so of a piece.
    pub fn put(&self, content: ContentId, piece: PieceIndex, record: &PieceRecord) {
        let Some(path) = self.path(content) else { return };
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        logged(&path, file.and_then(|file| write(&file, piece, record)));
    }

    /// Forgets what was kept of all pieces but these.
    pub fn keep_only(&self, content: ContentId, layout: PieceLayout, kept: &Bitfield) {
        let Some(path) = self.path(content) else { return };
        let Ok(file) = File::options().read(true).write(true).open(&path) else { return };
        let records = file.metadata().map_or(0, |metadata| metadata.len());
        let others = layout.pieces().filter(|piece| !kept.contains(*piece));
        for piece in others.take_while(|piece| offset(*piece) < records) {
            logged(&path, file.write_all_at(&[0; RECORD_LEN], offset(piece)));
        }
    }

    /// Forgets all contents but these, and what was begun and not ended: nobody may be at work.
    pub fn retain(&self, needed: &BTreeSet<ContentId>) {
        let directory = self.directory.iter().filter_map(|directory| fs::read_dir(directory).ok());
        for entry in directory.flatten().flatten() {
            let content = entry.file_name().to_string_lossy().parse();
            if !content.is_ok_and(|content| needed.contains(&content)) {
                logged(&entry.path(), fs::remove_file(entry.path()));
            }
        }
    }

    /// Forgets that of a content.
    pub fn remove(&self, content: ContentId) {
        let Some(path) = self.path(content) else { return };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => logged(&path, removed),
        }
    }

    /// One for a file of so many bytes that is about to be hashed; a short one has no piece to keep
    /// anything of.
    pub fn begin(&self, size: u64) -> Option<NewSidecar> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let directory = self.directory.clone().filter(|_| size >= u64::from(PIECE_LEN))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{NEW}{}-{number}", process::id()));
        match File::create_new(&path) {
            Ok(file) => Some(NewSidecar { file, path, directory }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no sidecar");
                None
            }
        }
    }

    fn path(&self, content: ContentId) -> Option<PathBuf> {
        Some(place(self.directory.as_ref()?, content))
    }
}

impl NewSidecar {
    /// Keeps what is so of a piece.
    pub fn put(&self, piece: PieceIndex, record: &PieceRecord) {
        logged(&self.path, write(&self.file, piece, record));
    }

    /// It is that of this content.
    pub fn keep(self, content: ContentId) {
        // Where this fails it goes, with this.
        logged(&self.path, fs::rename(&self.path, place(&self.directory, content)));
    }
}

impl Drop for NewSidecar {
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

impl PieceRecord {
    /// Of these bytes, and the midstates that they have.
    pub fn of(midstates: Midstates, bytes: &[u8]) -> Self {
        Self { midstates, crc: hash::crc64(bytes) }
    }

    /// Its bytes; the check is over its place too.
    fn encode(&self, piece: PieceIndex) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        let (body, check) = bytes.split_at_mut(RECORD_LEN - CHECK_LEN);
        body[..Midstates::LEN].copy_from_slice(self.midstates.as_bytes());
        body[Midstates::LEN..].copy_from_slice(&self.crc.to_be_bytes());
        let checked = [&piece.get().to_be_bytes(), &*body].concat();
        check.copy_from_slice(&hash::blake3(&checked).as_bytes()[..CHECK_LEN]);
        bytes
    }

    fn decode(piece: PieceIndex, bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let (midstates, rest) = bytes.split_first_chunk()?;
        let (crc, _) = rest.split_first_chunk()?;
        let (midstates, crc) = (Midstates(*midstates), u64::from_be_bytes(*crc));
        Some(Self { midstates, crc }).filter(|record| record.encode(piece) == *bytes)
    }
}

fn write(file: &File, piece: PieceIndex, record: &PieceRecord) -> io::Result<()> {
    file.write_all_at(&record.encode(piece), offset(piece))
}

fn logged(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(path = %path.display(), %error, "sidecar");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::piece::PieceLayout;

    const CONTENT: ContentId = ContentId([7; 32]);

    fn layout() -> PieceLayout {
        PieceLayout::new(100 * u64::from(PIECE_LEN)).expect("fits")
    }

    fn piece(index: u32) -> PieceIndex {
        layout().piece(index).expect("exists")
    }

    fn of(byte: u8) -> PieceRecord {
        PieceRecord::of(Midstates([byte; Midstates::LEN]), &[byte])
    }

    #[test]
    fn what_was_put_is_there_until_it_is_forgotten() {
        let dir = tempfile::tempdir().expect("temp dir");
        let sidecars = Sidecars::new(dir.path().join("a/b"));
        let mut kept = Bitfield::none(layout());
        assert_eq!(sidecars.get(CONTENT, piece(0)), None);
        sidecars.keep_only(CONTENT, layout(), &kept);
        for index in [5, 2, 9] {
            sidecars.put(CONTENT, piece(index), &of(index as u8));
        }
        // The same after a restart.
        let sidecars = Sidecars::new(dir.path().join("a/b"));
        for index in [2, 5, 30] {
            kept.insert(piece(index));
        }
        sidecars.keep_only(CONTENT, layout(), &kept);
        for index in 0..12 {
            let expected = [2, 5].contains(&index).then(|| of(index as u8));
            assert_eq!(sidecars.get(CONTENT, piece(index)), expected, "{index}");
        }
        sidecars.remove(CONTENT);
        sidecars.remove(CONTENT);
        assert_eq!(sidecars.get(CONTENT, piece(5)), None);
        assert_eq!(fs::read_dir(dir.path().join("a/b")).expect("read").count(), 0);
    }

    #[test]
    fn what_is_in_memory_is_there_at_once_where_the_filesystem_says_so() {
        let dir = tempfile::tempdir().expect("temp dir");
        let sidecars = Sidecars::new(dir.path().to_owned());
        let at_once = |index| sidecars.get_at_once(CONTENT, piece(index));
        sidecars.put(CONTENT, piece(1), &of(1));
        assert_eq!(at_once(1), None, "nothing is known of the filesystem");
        assert_eq!(sidecars.get(CONTENT, piece(1)), Some(of(1)));
        let says_so = sidecars.is_quick.load(Ordering::Relaxed);
        for index in [0, 1, 2, 1] {
            let expected = says_so.then(|| (index == 1).then(|| of(1)));
            assert_eq!(at_once(index), expected, "{index}");
        }
        let other = sidecars.get_at_once(ContentId([8; 32]), piece(1));
        assert_eq!(other, says_so.then_some(None));
        assert_eq!(sidecars.is_quick.load(Ordering::Relaxed), says_so, "nothing was waited for");
    }

    #[test]
    fn what_is_damaged_or_cut_short_is_not_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let sidecars = Sidecars::new(dir.path().to_owned());
        sidecars.put(CONTENT, piece(0), &of(1));
        sidecars.put(CONTENT, piece(1), &of(2));
        let path = dir.path().join(CONTENT.to_string());
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        bytes.pop();
        fs::write(&path, &bytes).expect("written");
        assert_eq!(
            (sidecars.get(CONTENT, piece(0)), sidecars.get(CONTENT, piece(1))),
            (None, None)
        );
        // Nor is what stands in another's place.
        sidecars.put(CONTENT, piece(0), &of(1));
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, bytes[..RECORD_LEN].repeat(2)).expect("written");
        let read = (sidecars.get(CONTENT, piece(0)), sidecars.get(CONTENT, piece(1)));
        assert_eq!(read, (Some(of(1)), None));
    }

    #[test]
    fn what_is_not_kept_goes_also_after_a_crash() {
        let dir = tempfile::tempdir().expect("temp dir");
        let sidecars = Sidecars::new(dir.path().to_owned());
        let begin = || sidecars.begin(PIECE_LEN.into());
        assert!(sidecars.begin(u64::from(PIECE_LEN) - 1).is_none());
        let (kept, dropped) = (begin().expect("made"), begin().expect("made"));
        kept.put(piece(3), &of(3));
        kept.keep(CONTENT);
        drop(dropped);
        assert_eq!(sidecars.get(CONTENT, piece(3)), Some(of(3)));
        std::mem::forget(begin());
        let other = ContentId([8; 32]);
        sidecars.put(other, piece(0), &of(1));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 3);
        sidecars.retain(&BTreeSet::from([CONTENT]));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
        assert_eq!(sidecars.get(CONTENT, piece(3)), Some(of(3)));
    }

    #[test]
    fn without_a_directory_there_are_none() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("file"), b"in its place").expect("written");
        let sidecars = Sidecars::new(dir.path().join("file"));
        sidecars.put(CONTENT, piece(0), &of(1));
        assert_eq!(
            (sidecars.get(CONTENT, piece(0)), sidecars.begin(PIECE_LEN.into()).is_none()),
            (None, true)
        );
    }
}
