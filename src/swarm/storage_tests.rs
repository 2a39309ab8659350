//! The store on a real filesystem: what gets in, what is served, what a stop and a start keep.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::hashing;
use super::storage::{PART_DIR, PieceStore, ReadError, StorageError, WriteError};
use crate::limits::PIECE_LEN;
use crate::manifest::Manifest;
use crate::manifest::testing::manifest_of;
use crate::name::FileName;
use crate::piece::PieceIndex;

const P: usize = PIECE_LEN as usize;

fn content() -> Vec<u8> {
    (0..2 * P + 9).map(|i| (i ^ (i >> 9) ^ (i / P * 37)) as u8).collect()
}

fn name(text: &str) -> FileName {
    text.parse().expect("name")
}

fn part(dir: &Path) -> (PieceStore, Vec<u8>) {
    let bytes = content();
    let manifest = Arc::new(manifest_of(&bytes));
    (PieceStore::part(manifest, dir, &|_| {}).expect("opened"), bytes)
}

fn fill(store: &PieceStore, bytes: &[u8]) {
    for (piece, chunk) in store.manifest().layout().pieces().zip(bytes.chunks(P)) {
        store.write_piece(piece, chunk).expect("written");
    }
}

#[test]
fn only_the_right_bytes_get_in() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    let piece = store.manifest().layout().piece(1).expect("exists");
    let good = &bytes[P..2 * P];
    let mut flipped = good.to_vec();
    flipped[77] ^= 1;
    for bad in [&flipped[..], &good[1..], &bytes[..P], &vec![0; P], &[]] {
        assert!(matches!(store.write_piece(piece, bad), Err(WriteError::Wrong(_))));
    }
    assert!(store.bitfield().is_empty());
    assert!(matches!(store.read_piece(piece), Err(ReadError::Missing)));
    store.write_piece(piece, good).expect("written");
    assert_eq!(store.read_piece(piece).expect("read"), good);
}

#[test]
fn a_finished_file_has_its_name_and_replaces_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    fs::write(dir.path().join("a.iso"), "mine").expect("written");
    fs::write(dir.path().join("a (1).iso"), "mine too").expect("written");
    let (store, bytes) = part(dir.path());
    fill(&store, &bytes);
    let path = store.finish(dir.path(), &name("a.iso"), &|| true).expect("finished");
    assert_eq!(path, dir.path().join("a (2).iso"));
    assert_eq!(fs::read(&path).expect("read"), bytes);
    assert_eq!(fs::read(dir.path().join("a.iso")).expect("read"), b"mine");
    assert!(!dir.path().join(PART_DIR).exists());
    let piece = store.manifest().layout().piece(2).expect("exists");
    assert_eq!(store.read_piece(piece).expect("read"), &bytes[2 * P..]);
}

#[test]
fn an_interrupted_download_goes_on_with_what_verifies() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    for index in [0, 2] {
        let piece = store.manifest().layout().piece(index).expect("exists");
        let end = (index as usize * P + P).min(bytes.len());
        store.write_piece(piece, &bytes[index as usize * P..end]).expect("written");
    }
    let again = PieceStore::part(store.manifest().clone(), dir.path(), &|_| {});
    assert!(matches!(again, Err(StorageError::InUse(_))));
    let path = store.path();
    drop(store);
    // A torn write into piece 2.
    let file = File::options().write(true).open(&path).expect("opens");
    file.write_all_at(&[9], 2 * P as u64).expect("written");
    drop(file);
    let (store, _) = part(dir.path());
    let have: Vec<_> = store.bitfield().iter().map(PieceIndex::get).collect();
    assert_eq!(have, [0]);
}

#[test]
fn a_changed_or_missing_file_is_never_served() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("file");
    let bytes = content();
    for change in [
        (|path: &Path| fs::write(path, "other").expect("written")) as fn(&Path),
        |path| fs::remove_file(path).expect("removed"),
        |path| {
            fs::copy(path, path.with_extension("new")).expect("copied");
            fs::rename(path.with_extension("new"), path).expect("renamed");
        },
    ] {
        fs::write(&path, &bytes).expect("written");
        let (manifest, stamp) = hashing::hash_file(&path, &|_| true).expect("hashed");
        let store = PieceStore::whole(Arc::new(manifest), path.clone(), stamp);
        let piece = store.manifest().layout().piece(0).expect("exists");
        assert_eq!(store.read_piece(piece).expect("read"), &bytes[..P]);
        change(&path);
        assert!(matches!(store.read_piece(piece), Err(ReadError::Changed)));
        assert!(store.is_changed());
        let _ = fs::write(&path, &bytes);
        assert!(matches!(store.read_piece(piece), Err(ReadError::Changed)));
    }
}

#[test]
fn a_false_file_hash_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bytes = content();
    let honest = manifest_of(&bytes);
    let false_sha1 = crate::hash::sha1(b"something else");
    let lie = Manifest::new(honest.layout(), false_sha1, honest.pieces().to_vec());
    let store = PieceStore::part(Arc::new(lie.expect("made")), dir.path(), &|_| {});
    let store = store.expect("opened");
    fill(&store, &bytes);
    let result = store.finish(dir.path(), &name("a"), &|| true);
    assert!(matches!(result, Err(StorageError::FalseManifest)));
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
}

#[test]
fn a_false_piece_sha1_blames_the_manifest() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bytes = content();
    let honest = manifest_of(&bytes);
    let mut pieces = honest.pieces().to_vec();
    pieces[1].sha1 = crate::hash::sha1(b"something else");
    let lie = Manifest::new(honest.layout(), honest.head().sha1(), pieces).expect("made");
    let store = PieceStore::part(Arc::new(lie), dir.path(), &|_| {}).expect("opened");
    let piece = store.manifest().layout().piece(1).expect("exists");
    let result = store.write_piece(piece, &bytes[P..2 * P]);
    assert!(matches!(result, Err(WriteError::FalseManifest)));
}

#[test]
fn an_empty_file_needs_no_piece() {
    let dir = tempfile::tempdir().expect("temp dir");
    let manifest = Arc::new(manifest_of(b""));
    let store = PieceStore::part(manifest, dir.path(), &|_| {}).expect("opened");
    let path = store.finish(dir.path(), &name("empty"), &|| true).expect("finished");
    assert_eq!(fs::metadata(path).expect("exists").len(), 0);
}
