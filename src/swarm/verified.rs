//! A whole file, or what there is of one, held against its manifest: which of its pieces are right.
//!
//! The file is read once, in order, by all cores together, and never written. What it says holds for
//! the bytes that were read; whether they changed meanwhile is part of it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::hashing::{HashError, Hashed, each_piece};
use super::stamp::Stamp;
use crate::manifest::{Manifest, PieceHashes};
use crate::piece::PieceIndex;

/// What a piece of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// What the manifest says.
    Right,
    /// Something else.
    Wrong,
    /// Not there: the file ends before it does, or has nothing but zeros in its place, as files have
    /// where nothing was written yet.
    Missing,
    /// Its BLAKE3 is right and its SHA-1 is not: the manifest contradicts itself.
    Contradicted,
}

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Bytes in the file.
    pub len: u64,
    /// What each piece of the manifest is, in order.
    pub pieces: Vec<PieceState>,
    /// Whether the SHA-1 of the file is the manifest's; only when all pieces are right and nothing
    /// follows them.
    pub sha1_matches: Option<bool>,
    /// Whether the file changed while it was read.
    pub changed: bool,
}

impl Verified {
    /// Positions of the pieces in `state`, ascending, as ranges: first and last.
    pub fn ranges(&self, state: PieceState) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        // As many as a layout has, so positions fit.
        for (index, _) in (0u32..).zip(&self.pieces).filter(|(_, piece)| **piece == state) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => ranges.push((index, index)),
            }
        }
        ranges
    }

    /// How many pieces are in `state`.
    pub fn count(&self, state: PieceState) -> usize {
        self.pieces.iter().filter(|piece| **piece == state).count()
    }
}

/// Holds the file at `path` against `manifest`. `progress` is told the bytes read so far, about once a
/// piece, and stops the work by returning `false`.
///
/// # Errors
/// [`HashError`]; that it changed only when it shrank while it was read.
pub fn verify_file(
    path: &Path,
    manifest: &Manifest,
    progress: &dyn Fn(u64) -> bool,
) -> Result<Verified, HashError> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(HashError::NotAFile);
    }
    let mut file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let layout = manifest.layout();
    let is_there =
        |piece: &PieceIndex| layout.offset(*piece) + u64::from(layout.len(*piece)) <= stamp.size;
    // Fits: no more than the layout has.
    let count = layout.pieces().take_while(is_there).count() as u32;
    let whole = AtomicBool::new(stamp.size == layout.size());
    let check = |piece, bytes: &[u8], Hashed { hashes, .. }: Hashed| {
        let state = state_of(manifest, piece, bytes, hashes);
        if state != PieceState::Right {
            whole.store(false, Ordering::Relaxed);
        }
        state
    };
    let (sha1, mut pieces) = each_piece(&mut file, layout, count, &whole, &check, progress)?;
    pieces.resize(layout.piece_count() as usize, PieceState::Missing);
    let unchanged = Stamp::of(&file.metadata()?) == stamp
        && std::fs::metadata(path).is_ok_and(|now| Stamp::of(&now) == stamp);
    let sha1_matches = whole.into_inner().then(|| sha1 == manifest.head().sha1());
    Ok(Verified { len: stamp.size, pieces, sha1_matches, changed: !unchanged })
}

fn state_of(
    manifest: &Manifest,
    piece: PieceIndex,
    bytes: &[u8],
    actual: PieceHashes,
) -> PieceState {
    let expected = manifest.piece(piece);
    if actual == expected {
        PieceState::Right
    } else if actual.blake3 == expected.blake3 {
        PieceState::Contradicted
    } else if bytes.iter().all(|byte| *byte == 0) {
        PieceState::Missing
    } else {
        PieceState::Wrong
    }
}

#[cfg(test)]
mod tests {
    use super::PieceState::{Contradicted, Missing, Right, Wrong};
    use super::*;
    use crate::hash::{self, Sha1Hash};
    use crate::limits::PIECE_LEN;
    use crate::manifest::testing::manifest_of;

    const P: usize = PIECE_LEN as usize;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ (i >> 11)) as u8 | 1).collect()
    }

    fn verified(content: &[u8], manifest: &Manifest) -> Verified {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        std::fs::write(&path, content).expect("written");
        let verified = verify_file(&path, manifest, &|_| true).expect("read");
        assert_eq!((verified.len, verified.changed), (content.len() as u64, false));
        verified
    }

    #[test]
    fn what_is_right_is_right_at_every_edge() {
        for len in [0, 1, P - 1, P, P + 1, 9 * P + 77] {
            let content = content(len);
            let verified = verified(&content, &manifest_of(&content));
            assert!(verified.pieces.iter().all(|piece| *piece == Right), "{len}");
            assert_eq!(verified.pieces.len(), len.div_ceil(P));
            assert_eq!(verified.sha1_matches, Some(true), "{len}");
        }
    }

    #[test]
    fn wrong_missing_short_and_long_are_told_apart() {
        let good = content(5 * P + 9);
        let manifest = manifest_of(&good);
        let states = |bytes: &[u8]| {
            let verified = verified(bytes, &manifest);
            (verified.pieces, verified.sha1_matches)
        };
        let mut flipped = good.clone();
        flipped[P] ^= 1;
        flipped[5 * P + 8] ^= 1;
        assert_eq!(states(&flipped), (vec![Right, Wrong, Right, Right, Right, Wrong], None));
        let mut holes = good.clone();
        holes[..P].fill(0);
        holes[2 * P..4 * P].fill(0);
        assert_eq!(states(&holes), (vec![Missing, Right, Missing, Missing, Right, Right], None));
        assert_eq!(
            states(&good[..3 * P + 1]),
            (vec![Right, Right, Right, Missing, Missing, Missing], None)
        );
        assert_eq!(states(b""), (vec![Missing; 6], None));
        assert_eq!(states(&[&good[..], b"x"].concat()), (vec![Right; 6], None));
        // Zeros that belong there are right.
        let zeros = vec![0; 2 * P];
        assert_eq!(verified(&zeros, &manifest_of(&zeros)).pieces, [Right, Right]);
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_found_out() {
        let good = content(2 * P);
        let honest = manifest_of(&good);
        let mut pieces = honest.pieces().to_vec();
        pieces[1].sha1 = Sha1Hash([0; 20]);
        let false_piece =
            Manifest::new(honest.layout(), hash::sha1(&good), pieces).expect("as many");
        assert_eq!(verified(&good, &false_piece).pieces, [Right, Contradicted]);
        let pieces = honest.pieces().to_vec();
        let false_whole =
            Manifest::new(honest.layout(), Sha1Hash([0; 20]), pieces).expect("as many");
        let found = verified(&good, &false_whole);
        assert_eq!((found.pieces, found.sha1_matches), (vec![Right, Right], Some(false)));
    }

    #[test]
    fn ranges_are_the_pieces_of_a_state() {
        let pieces = vec![Wrong, Right, Wrong, Wrong, Missing, Wrong];
        let verified = Verified { len: 0, pieces, sha1_matches: None, changed: false };
        assert_eq!(verified.ranges(Wrong), [(0, 0), (2, 3), (5, 5)]);
        assert_eq!(verified.ranges(Missing), [(4, 4)]);
        assert_eq!(verified.ranges(Contradicted), []);
        assert_eq!((verified.count(Wrong), verified.count(Right)), (4, 1));
    }

    #[test]
    fn stops_when_told_sees_changes_and_refuses_what_is_no_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        // More than is read ahead.
        let good = content(100 * P);
        let manifest = manifest_of(&good);
        std::fs::write(&path, &good).expect("written");
        assert!(matches!(verify_file(&path, &manifest, &|_| false), Err(HashError::Stopped)));
        assert!(matches!(verify_file(dir.path(), &manifest, &|_| true), Err(HashError::NotAFile)));
        let set_len = |len: usize| {
            let file = File::options().write(true).open(&path).expect("opens");
            file.set_len(len as u64).expect("changed");
            true
        };
        let grown = verify_file(&path, &manifest, &|_| set_len(100 * P + 1)).expect("read");
        assert!(grown.changed);
        let shrunk = verify_file(&path, &manifest, &|_| set_len(P));
        assert!(matches!(shrunk, Err(HashError::Changed)), "{shrunk:?}");
    }
}
