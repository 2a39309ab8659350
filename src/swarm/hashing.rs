//! Hashes a file into its manifest, or holds one against its manifest, with all cores and a few
//! dozen buffers.
//!
//! One thread reads ahead, one takes the whole-file SHA-1, which must see every byte in order, and the
//! others hash pieces, many at once where the processor can; where they are behind, it takes the SHA-1
//! of a piece in the same go. The file must stay what it is meanwhile: its stamp is compared at the end.
//! Checking pieces needs no order: every thread reads for itself.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::midstates::{Midstates, PART_LEN, PARTS};
use super::sidecars::{NewSidecar, PieceRecord};
pub use super::stamp::Stamp;
use crate::bitfield::Bitfield;
use crate::hash::{self, Sha1Hash, Sha1Hasher, Sha1State};
use crate::limits::PIECE_LEN;
use crate::manifest::{Manifest, ManifestError, PieceHashes};
use crate::piece::{PieceIndex, PieceLayout, TooLarge};

/// A file that could not be hashed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is a directory, a device, a socket or a pipe.
    #[error("not a regular file")]
    NotAFile,
    /// It is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// It changed while it was read.
    #[error("the file changed while it was hashed")]
    Changed,
    /// The caller no longer wants it.
    #[error("stopped")]
    Stopped,
    /// The hashes do not make a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Hashes the file at `path`. `progress` is told the bytes read so far, about once a piece, and
/// stops the work by returning `false`.
///
/// # Errors
/// [`HashError`].
pub fn hash_file(
    path: &Path,
    progress: &dyn Fn(u64) -> bool,
) -> Result<(Manifest, Stamp), HashError> {
    hash_and_mark(path, None, progress)
}

/// The same, and fills what may become its sidecar.
///
/// # Errors
/// [`HashError`].
pub fn hash_and_mark(
    path: &Path,
    sidecar: Option<&NewSidecar>,
    progress: &dyn Fn(u64) -> bool,
) -> Result<(Manifest, Stamp), HashError> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(HashError::NotAFile);
    }
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let stamp = Stamp::of(&metadata);
    let layout = PieceLayout::new(metadata.len())?;
    let hash = |piece: PieceIndex, bytes: &[u8], Hashed { hashes, midstates }: Hashed| {
        if let Some((sidecar, midstates)) = sidecar.zip(midstates) {
            sidecar.put(piece, &PieceRecord::of(midstates, bytes));
        }
        hashes
    };
    let whole = AtomicBool::new(true);
    let (sha1, pieces) =
        each_piece(&mut file, layout, layout.piece_count(), &whole, &hash, progress)?;
    let unchanged = Stamp::of(&file.metadata()?) == stamp
        && std::fs::metadata(path).is_ok_and(|now| Stamp::of(&now) == stamp);
    if !unchanged {
        return Err(HashError::Changed);
    }
    Ok((Manifest::new(layout, sha1, pieces)?, stamp))
}

type Work = (PieceIndex, Vec<u8>);

/// A SHA-1, and its states on the way.
type Marked = (Sha1Hash, Vec<Sha1State>);

/// A piece that was read.
struct Taken {
    work: Work,
    /// The states of the file's SHA-1 before each part of it.
    file: Vec<Sha1State>,
    /// Its own, where that was taken already.
    own: Option<Marked>,
}

/// What a piece was hashed to.
pub(super) struct Hashed {
    pub(super) hashes: PieceHashes,
    /// Of a piece of the full length, where the whole file was gone over so far.
    pub(super) midstates: Option<Midstates>,
}

/// What is done with a piece, its bytes and their hashes.
pub(super) type Task<'a, T> = &'a (dyn Fn(PieceIndex, &[u8], Hashed) -> T + Sync);

/// Reads the first `count` pieces in order, hashes them and does `task` with each, on all cores: what came
/// of it, in order, and the SHA-1 of their bytes. That is worth something only as long as `whole` says so,
/// and not computed any further once a task has changed that.
///
/// # Errors
/// [`HashError`]; that it changed when the file ends too early.
pub(super) fn each_piece<T: Send>(
    file: &mut File,
    layout: PieceLayout,
    count: u32,
    whole: &AtomicBool,
    task: Task<'_, T>,
    progress: &dyn Fn(u64) -> bool,
) -> Result<(Sha1Hash, Vec<T>), HashError> {
    // One that takes many pieces at once is faster than the SHA-1 of the whole, which one thread takes.
    let lanes = hash::sha1_lanes();
    let workers = thread::available_parallelism().map_or(1, usize::from).div_ceil(lanes);
    let buffers = 2 * workers * lanes + workers;
    let (work, queue) = sync_channel::<Taken>(buffers);
    let (give_back, free) = sync_channel::<Vec<u8>>(buffers);
    for _ in 0..buffers {
        // The channel has room for all of them.
        let _ = give_back.send(Vec::new());
    }
    let (queue, queued) = (Mutex::new(queue), AtomicUsize::new(0));
    thread::scope(|scope| {
        let begin =
            |_| scope.spawn(|| work_off(layout, (&queue, &queued, lanes), &give_back, task));
        let handles: Vec<_> = (0..workers).map(begin).collect();
        let wanted = layout.pieces().take(count as usize);
        let (ahead, read) = sync_channel(buffers);
        scope.spawn(move || read_ahead(file, layout, wanted, &free, &ahead));
        let behind = workers * (lanes - 1);
        let taken = take_in(layout, read, whole, (work, &queued, behind), progress);
        // Whoever reads ahead may wait for a buffer when nothing is taken any more.
        let _ = give_back.try_send(Vec::new());
        let mut pieces: Vec<_> = handles
            .into_iter()
            .flat_map(|handle| handle.join().expect("invariant: hashing a piece cannot panic"))
            .collect();
        pieces.sort_by_key(|(piece, _)| *piece);
        Ok((taken?, pieces.into_iter().map(|(_, result)| result).collect()))
    })
}

/// Reads pieces in order into free buffers, until nobody wants them or one cannot be read.
fn read_ahead(
    file: &mut File,
    layout: PieceLayout,
    wanted: impl Iterator<Item = PieceIndex>,
    free: &Receiver<Vec<u8>>,
    ahead: &SyncSender<io::Result<Work>>,
) {
    for piece in wanted {
        let Ok(mut buffer) = free.recv() else { return };
        buffer.resize(layout.len(piece) as usize, 0);
        let read = file.read_exact(&mut buffer).map(|()| (piece, buffer));
        let failed = read.is_err();
        if ahead.send(read).is_err() || failed {
            return;
        }
    }
}

/// Takes the SHA-1 of pieces as they were read, and hands them on. As long as more than `behind` wait to be
/// hashed by others it takes that of the piece as well: both at once are little more work than one.
fn take_in(
    layout: PieceLayout,
    read: Receiver<io::Result<Work>>,
    whole: &AtomicBool,
    (work, queued, behind): (SyncSender<Taken>, &AtomicUsize, usize),
    progress: &dyn Fn(u64) -> bool,
) -> Result<Sha1Hash, HashError> {
    let mut sha1 = Sha1Hasher::default();
    for next in read {
        let (piece, buffer) = next.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => HashError::Changed,
            _ => HashError::Io(error),
        })?;
        let mut file = Vec::new();
        let mut own = None;
        if whole.load(Ordering::Relaxed) {
            let is_behind = queued.load(Ordering::Relaxed) > behind;
            let (mut of_piece, mut marks) = (Sha1Hasher::default(), Vec::new());
            for part in buffer.chunks(PART_LEN) {
                file.extend(sha1.state());
                if is_behind {
                    hash::update_both(&mut of_piece, &mut sha1, part);
                    marks.extend(of_piece.state());
                } else {
                    sha1.update(part);
                }
            }
            own = is_behind.then(|| (of_piece.finish(), marks));
        }
        let done = layout.offset(piece) + u64::from(layout.len(piece));
        queued.fetch_add(1, Ordering::Relaxed);
        let taken = Taken { work: (piece, buffer), file, own };
        work.send(taken).map_err(|_| HashError::Stopped)?;
        if !progress(done) {
            return Err(HashError::Stopped);
        }
    }
    Ok(sha1.finish())
}

/// Hashes pieces, so many at once, and does the task with them until the queue ends.
fn work_off<T>(
    layout: PieceLayout,
    (queue, queued, lanes): (&Mutex<Receiver<Taken>>, &AtomicUsize, usize),
    give_back: &SyncSender<Vec<u8>>,
    task: Task<'_, T>,
) -> Vec<(PieceIndex, T)> {
    let mut results = Vec::new();
    loop {
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<Taken> = queue.iter().take(lanes).collect();
        drop(queue);
        if batch.is_empty() {
            return results;
        }
        queued.fetch_sub(batch.len(), Ordering::Relaxed);
        let left: Vec<&[u8]> = batch
            .iter()
            .filter(|taken| taken.own.is_none())
            .map(|taken| &taken.work.1[..])
            .collect();
        let mut taken = hash::sha1_of_each(&left, PART_LEN).into_iter();
        for Taken { work: (piece, buffer), file, own } in batch {
            let own = own.or_else(|| taken.next());
            let (sha1, marks) = own.expect("invariant: one for each that had none");
            let blake3 = PieceHashes::blake3_of(layout, piece, &buffer);
            let hashes = PieceHashes { sha1, blake3 };
            let is_full = buffer.len() == PIECE_LEN as usize;
            let own = marks.get(..PARTS - 1).filter(|_| is_full);
            let midstates = own.and_then(|own| Midstates::new(own, &file));
            results.push((piece, task(piece, &buffer, Hashed { hashes, midstates })));
            // The reader may have stopped; then nobody needs the buffer.
            let _ = give_back.send(buffer);
        }
    }
}

/// Which of `candidates` are the pieces of `manifest`, as their BLAKE3 says: `read` fills the buffer with
/// the bytes of a piece, from several threads. `progress` is told how many candidates were looked
/// at.
///
/// A piece that cannot be read is not here: it is fetched again, and so written again. But when
/// nothing at all can be read, the fault is the disk's.
///
/// # Errors
/// When no piece could be read, the first refusal.
pub fn check_pieces(
    manifest: &Manifest,
    candidates: &[PieceIndex],
    read: &(dyn Fn(PieceIndex, &mut [u8]) -> io::Result<()> + Sync),
    progress: &dyn Fn(usize) -> bool,
) -> io::Result<Option<Bitfield>> {
    let layout = manifest.layout();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(candidates.iter());
    let check = |results: &SyncSender<(PieceIndex, io::Result<bool>)>| {
        let mut buffer = vec![0; PIECE_LEN as usize];
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(piece) = next.copied() else { return };
            let bytes = &mut buffer[..layout.len(piece) as usize];
            let right = read(piece, bytes).map(|()| manifest.is_piece(piece, bytes));
            if results.send((piece, right)).is_err() {
                return;
            }
        }
    };
    let mut have = Bitfield::none(layout);
    let (mut looked_at, mut failures, mut first_failure) = (0, 0, None);
    let mut goes_on = true;
    thread::scope(|scope| {
        let (results, checked) = sync_channel(2 * cores);
        for _ in 0..cores.min(candidates.len()) {
            let results = results.clone();
            scope.spawn(move || check(&results));
        }
        drop(results);
        for (piece, right) in checked {
            match right {
                Ok(true) => {
                    have.insert(piece);
                }
                Ok(false) => {}
                Err(error) => {
                    failures += 1;
                    first_failure.get_or_insert(error);
                }
            }
            looked_at += 1;
            if !progress(looked_at) {
                // The results are dropped with this, and who has another one ends.
                goes_on = false;
                break;
            }
        }
    });
    if !goes_on {
        return Ok(None);
    }
    match first_failure {
        Some(error) if failures == looked_at => Err(error),
        Some(error) => {
            tracing::warn!(%error, pieces = failures, "pieces cannot be read");
            Ok(Some(have))
        }
        None => Ok(Some(have)),
    }
}

/// SHA-1 of all of `file`, from its start, as long as `go_on` says so.
///
/// # Errors
/// When reading fails or is given up.
pub fn sha1_of(mut file: &File, go_on: &dyn Fn() -> bool) -> io::Result<Sha1Hash> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
    let mut sha1 = Sha1Hasher::default();
    let mut buffer = vec![0; PIECE_LEN as usize];
    loop {
        if !go_on() {
            return Err(io::Error::other("stopped"));
        }
        match file.read(&mut buffer)? {
            0 => return Ok(sha1.finish()),
            len => sha1.update(&buffer[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::testing::manifest_of;
    use crate::swarm::midstates::midstates_of;
    use crate::swarm::sidecars::Sidecars;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn agrees_with_hashing_in_memory_and_reports_every_byte() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let sidecars = Sidecars::new(dir.path().join("sidecars"));
        let p = PIECE_LEN as usize;
        for len in [0, 1, p - 1, p, p + 1, 9 * p + 77, 40 * p] {
            let content: Vec<u8> = (0..len).map(|i| (i ^ (i >> 11)) as u8).collect();
            std::fs::write(&path, &content).expect("written");
            let last = AtomicU64::new(0);
            let note = |done| {
                last.store(done, Ordering::Relaxed);
                true
            };
            let new = sidecars.begin(len as u64);
            let (manifest, _) = hash_and_mark(&path, new.as_ref(), &note).expect("hashed");
            new.into_iter().for_each(|new| new.keep(manifest.content_id()));
            assert_eq!(manifest, manifest_of(&content), "{len}");
            let midstates = midstates_of(&content);
            for (piece, bytes) in manifest.layout().pieces().zip(content.chunks(p)) {
                let midstates = midstates.get(piece.get() as usize).copied();
                let expected = midstates.map(|midstates| PieceRecord::of(midstates, bytes));
                assert_eq!(
                    sidecars.get(manifest.content_id(), piece),
                    expected,
                    "{piece} of {len}"
                );
            }
            assert_eq!(last.into_inner(), len as u64);
            let file = File::open(&path).expect("opens");
            assert_eq!(sha1_of(&file, &|| true).expect("read"), manifest.head().sha1());
        }
    }

    #[test]
    fn a_file_that_grows_or_shrinks_meanwhile_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        for new_len in [10u64, 3 * u64::from(PIECE_LEN), 300 * u64::from(PIECE_LEN)] {
            std::fs::write(&path, vec![1; 100 * PIECE_LEN as usize]).expect("written");
            let change = |_| {
                let file = File::options().write(true).open(&path).expect("opens");
                file.set_len(new_len).expect("changed");
                true
            };
            let result = hash_file(&path, &change);
            assert!(matches!(result, Err(HashError::Changed)), "{new_len}: {result:?}");
        }
    }

    #[test]
    fn stops_when_told_and_refuses_what_is_no_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 50 * PIECE_LEN as usize]).expect("written");
        assert!(matches!(hash_file(&path, &|_| false), Err(HashError::Stopped)));
        assert!(matches!(hash_file(dir.path(), &|_| true), Err(HashError::NotAFile)));
        let missing = hash_file(&dir.path().join("none"), &|_| true);
        assert!(matches!(missing, Err(HashError::Io(_))));
    }
}
