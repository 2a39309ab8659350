//! The store on a real filesystem: what gets in, what is served, what a stop and a start keep.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::hashing;
use super::running_sha1::FalsePiece;
use super::storage::{PART_DIR, PieceStore, ReadError, Recovered, StorageError, WriteError};
use super::storage_faults::read;
use crate::hash;
use crate::limits::PIECE_LEN;
use crate::manifest::Manifest;
use crate::manifest::testing::manifest_of;
use crate::name::FileName;
use crate::piece::PieceIndex;

pub(super) const P: usize = PIECE_LEN as usize;

pub(super) fn content() -> Vec<u8> {
    (0..2 * P + 9).map(|i| (i ^ (i >> 9) ^ (i / P * 37)) as u8).collect()
}

pub(super) fn name(text: &str) -> FileName {
    text.parse().expect("name")
}

pub(super) fn part(dir: &Path) -> (PieceStore, Vec<u8>) {
    let bytes = content();
    let manifest = Arc::new(manifest_of(&bytes));
    (PieceStore::part(manifest, dir, &|_| true).expect("opened"), bytes)
}

pub(super) fn fill(store: &PieceStore, bytes: &[u8]) {
    for (piece, chunk) in store.manifest().layout().pieces().zip(bytes.chunks(P)) {
        store.write_piece(piece, (&chunk.into(), None), drop).expect("written");
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
        assert!(matches!(
            store.write_piece(piece, (&bad.into(), None), drop),
            Err(WriteError::Wrong(_))
        ));
    }
    assert!(store.bitfield().is_empty());
    assert!(matches!(read(&store, piece), Err(ReadError::Missing)));
    store.write_piece(piece, (&good.into(), None), drop).expect("written");
    assert_eq!(read(&store, piece).expect("read"), good);
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
    assert_eq!(read(&store, piece).expect("read"), &bytes[2 * P..]);
}

#[test]
fn an_opening_that_nobody_wants_any_more_lets_go_and_leaves_all_as_it_was() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    fill(&store, &bytes);
    let manifest = store.manifest().clone();
    // As after a crash: all of it is looked at.
    drop(store);
    let looked_at = AtomicU64::new(0);
    let one = |_| looked_at.fetch_add(1, Ordering::Relaxed) == 5;
    let stopped = PieceStore::part(manifest.clone(), dir.path(), &one);
    assert!(matches!(stopped, Err(StorageError::Released(_))), "{stopped:?}");
    assert_eq!(looked_at.into_inner(), 1, "it ends at once");
    let again = PieceStore::part(manifest, dir.path(), &|_| true).expect("it is free");
    assert_eq!(indices(&again), [0, 1, 2]);
    // One that was only made for it is gone again; zeros are there before anything is written.
    let other = tempfile::tempdir().expect("temp dir");
    let zeros = Arc::new(manifest_of(&vec![0; 2 * P]));
    let stopped = PieceStore::part(zeros, other.path(), &|_| false);
    assert!(matches!(stopped, Err(StorageError::Released(_))), "{stopped:?}");
    assert!(!other.path().join(PART_DIR).exists());
}

#[test]
fn an_interrupted_download_goes_on_with_what_verifies() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    for index in [0, 2] {
        let piece = store.manifest().layout().piece(index).expect("exists");
        let end = (index as usize * P + P).min(bytes.len());
        store
            .write_piece(piece, (&bytes[index as usize * P..end].into(), None), drop)
            .expect("written");
    }
    let again = PieceStore::part(store.manifest().clone(), dir.path(), &|_| true);
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
        assert_eq!(read(&store, piece).expect("read"), &bytes[..P]);
        change(&path);
        assert!(matches!(read(&store, piece), Err(ReadError::Changed)));
        assert!(store.is_changed());
        let _ = fs::write(&path, &bytes);
        assert!(matches!(read(&store, piece), Err(ReadError::Changed)));
    }
}

#[test]
fn a_false_file_hash_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bytes = content();
    let honest = manifest_of(&bytes);
    let false_sha1 = hash::sha1(b"something else");
    let lie = Manifest::new(honest.layout(), false_sha1, honest.pieces().to_vec());
    let store = PieceStore::part(Arc::new(lie.expect("made")), dir.path(), &|_| true);
    let store = store.expect("opened");
    fill(&store, &bytes);
    let result = store.finish(dir.path(), &name("a"), &|| true);
    assert!(matches!(result, Err(StorageError::FalseManifest)));
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
}

#[test]
fn a_false_piece_sha1_blames_the_manifest_whenever_the_piece_comes() {
    let bytes = content();
    let honest = manifest_of(&bytes);
    let mut pieces = honest.pieces().to_vec();
    pieces[1].sha1 = hash::sha1(b"something else");
    let lie = Manifest::new(honest.layout(), honest.head().sha1(), pieces).expect("made");
    let lie = Arc::new(lie);
    let [zero, one, two] = [0, 1, 2].map(|index| lie.layout().piece(index).expect("exists"));
    let opened = |dir: &Path| PieceStore::part(lie.clone(), dir, &|_| true).expect("opened");

    // In order.
    let dir = tempfile::tempdir().expect("temp dir");
    let store = opened(dir.path());
    write(&store, &bytes, 0).expect("right");
    assert!(matches!(write(&store, &bytes, 1), Err(WriteError::FalseManifest)));
    assert_eq!(indices(&store), [0]);

    // Too early: when the pieces before it are here, from memory and from the disk.
    for kept in [vec![(one, bytes[P..2 * P].into())], Vec::new()] {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = opened(dir.path());
        for index in [1, 0] {
            write(&store, &bytes, index).expect("right, as far as is known");
        }
        assert_eq!(store.next_to_hash(), Some(one));
        assert_eq!(store.hash_ahead(&kept), Err(FalsePiece(one)));
    }

    // At the end, also where that is all that is left to be done.
    for order in [[2, 1, 0], [1, 2, 0]] {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = opened(dir.path());
        for index in order {
            write(&store, &bytes, index).expect("right, as far as is known");
        }
        let result = store.finish(dir.path(), &name("a"), &|| true);
        assert!(matches!(result, Err(StorageError::FalsePiece(piece)) if piece == one));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
    }

    // What a clean stop kept is not trusted any further.
    let dir = tempfile::tempdir().expect("temp dir");
    let store = opened(dir.path());
    for index in [1, 2] {
        write(&store, &bytes, index).expect("right, as far as is known");
    }
    store.close().expect("safe");
    drop(store);
    let (store, _) = open_again(&lie, dir.path());
    assert!(store.has(one) && store.has(two) && !store.has(zero));
    write(&store, &bytes, 0).expect("right");
    let result = store.finish(dir.path(), &name("a"), &|| true);
    assert!(matches!(result, Err(StorageError::FalsePiece(piece)) if piece == one));
}

#[test]
fn an_empty_file_needs_no_piece() {
    let dir = tempfile::tempdir().expect("temp dir");
    let manifest = Arc::new(manifest_of(b""));
    let store = PieceStore::part(manifest, dir.path(), &|_| true).expect("opened");
    let path = store.finish(dir.path(), &name("empty"), &|| true).expect("finished");
    assert_eq!(fs::metadata(path).expect("exists").len(), 0);
}

/// Opens the part file again, and says how many bytes were looked at.
pub(super) fn open_again(manifest: &Arc<Manifest>, dir: &Path) -> (PieceStore, u64) {
    let looked_at = AtomicU64::new(0);
    let note = |done| {
        looked_at.store(done, Ordering::Relaxed);
        true
    };
    let store = PieceStore::part(manifest.clone(), dir, &note).expect("opened");
    (store, looked_at.into_inner())
}

pub(super) fn write(store: &PieceStore, bytes: &[u8], index: u32) -> Result<(), WriteError> {
    let piece = store.manifest().layout().piece(index).expect("exists");
    let start = index as usize * P;
    store
        .write_piece(piece, (&bytes[start..(start + P).min(bytes.len())].into(), None), drop)
        .map(drop)
}

fn indices(store: &PieceStore) -> Vec<u32> {
    store.bitfield().iter().map(PieceIndex::get).collect()
}

#[test]
fn a_clean_stop_is_believed_and_an_unclean_one_is_looked_at() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    write(&store, &bytes, 1).expect("written");
    store.checkpoint().expect("safe");
    write(&store, &bytes, 2).expect("written");
    let manifest = store.manifest().clone();
    drop(store);
    let (store, looked_at) = open_again(&manifest, dir.path());
    assert_eq!(indices(&store), [1, 2], "written, though never claimed");
    assert_eq!(looked_at, bytes.len() as u64);
    store.close().expect("stopped");
    drop(store);
    let (store, looked_at) = open_again(&manifest, dir.path());
    assert_eq!((indices(&store), looked_at), (vec![1, 2], 0));
    drop(store);
    let (store, looked_at) = open_again(&manifest, dir.path());
    assert_eq!(looked_at, 0, "nothing was written since");
    // Somebody writes into it while nobody looks.
    let path = store.path();
    drop(store);
    File::options()
        .write(true)
        .open(&path)
        .expect("opens")
        .write_all_at(b"x", P as u64)
        .expect("written");
    let (store, looked_at) = open_again(&manifest, dir.path());
    assert_eq!((indices(&store), looked_at), (vec![2], bytes.len() as u64));
    fill(&store, &bytes);
    let path = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    assert!(fs::read(path).expect("read") == bytes);
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1, "the record went too");
}

#[test]
fn garbage_where_the_part_file_and_its_record_belong_is_no_piece() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    write(&store, &bytes, 0).expect("written");
    store.close().expect("stopped");
    let (path, manifest) = (store.path(), store.manifest().clone());
    drop(store);
    let record = path.with_extension("resume");
    let good = fs::read(&record).expect("there");
    // The record of another content, in this one's place, beside a file of junk.
    let other = Arc::new(manifest_of(&content()[1..]));
    let store = PieceStore::part(other, dir.path(), &|_| true).expect("opened");
    store.close().expect("stopped");
    let foreign = fs::read(store.path().with_extension("resume")).expect("there");
    store.discard();
    for junk_len in [0, 10, bytes.len(), bytes.len() + P] {
        for words in [&foreign[..], &good[..good.len() - 1], &good, b"", b"junk"] {
            fs::write(&path, vec![7; junk_len]).expect("written");
            fs::write(&record, words).expect("written");
            let (store, _) = open_again(&manifest, dir.path());
            assert!(store.bitfield().is_empty(), "{junk_len}");
        }
    }
    let (store, _) = open_again(&manifest, dir.path());
    fill(&store, &bytes);
    let path = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    assert!(fs::read(path).expect("read") == bytes);
}

#[test]
fn a_part_file_that_was_deleted_is_made_again_with_all_it_had() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    write(&store, &bytes, 0).expect("written");
    write(&store, &bytes, 2).expect("written");
    store.checkpoint().expect("safe");
    fs::remove_file(store.path()).expect("removed");
    let error = store.checkpoint().expect_err("gone");
    assert!(matches!(error, StorageError::Gone(_)) && error.can_heal(), "{error}");
    assert_eq!(store.recover().expect("made again"), Recovered::default());
    assert_eq!(indices(&store), [0, 2]);
    store.checkpoint().expect("safe");
    let manifest = store.manifest().clone();
    drop(store);
    let (store, _) = open_again(&manifest, dir.path());
    assert_eq!(indices(&store), [0, 2]);
}

#[test]
fn a_destination_that_was_removed_is_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let dest = dir.path().join("dest");
    fs::create_dir(&dest).expect("made");
    let (store, bytes) = part(&dest);
    write(&store, &bytes, 0).expect("written");
    fs::remove_dir_all(&dest).expect("removed");
    write(&store, &bytes, 1).expect("what is open takes pieces");
    assert!(store.checkpoint().expect_err("gone").can_heal());
    assert!(store.recover().expect_err("still gone").can_heal());
    assert!(!dest.exists(), "it is not ours to make");
    fs::create_dir(&dest).expect("made");
    assert_eq!(store.recover().expect("back"), Recovered::default());
    write(&store, &bytes, 2).expect("written");
    fs::remove_dir_all(&dest).expect("removed again");
    assert!(store.finish(&dest, &name("a"), &|| true).expect_err("gone").can_heal());
    fs::create_dir(&dest).expect("made");
    assert_eq!(store.recover().expect("back"), Recovered::default());
    let path = store.finish(&dest, &name("a"), &|| true).expect("finished");
    assert!(fs::read(path).expect("read") == bytes);
}

#[test]
fn a_directory_that_takes_no_files_is_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    let part_dir = dir.path().join(PART_DIR);
    let allow = |mode| fs::set_permissions(&part_dir, Permissions::from_mode(mode)).expect("set");
    allow(0o500);
    if File::create(part_dir.join("try")).is_ok() {
        // The superuser may write everywhere; there is nothing to see then.
        eprintln!("not tried: this user may write where nobody may");
        return;
    }
    write(&store, &bytes, 0).expect("what is open takes pieces");
    let error = store.checkpoint().expect_err("no record can be written");
    assert!(error.can_heal() && error.to_string().ends_with("permission denied"), "{error}");
    assert!(store.recover().is_err());
    allow(0o700);
    assert_eq!(store.recover().expect("usable"), Recovered::default());
    assert_eq!(indices(&store), [0]);
    store.checkpoint().expect("safe");
}

#[test]
fn nothing_false_is_served_from_a_file_that_changes_all_the_time() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("file");
    let bytes = content();
    for round in 0..20 {
        fs::write(&path, &bytes).expect("written");
        let (manifest, stamp) = hashing::hash_file(&path, &|_| true).expect("hashed");
        let store = PieceStore::whole(Arc::new(manifest), path.clone(), stamp);
        std::thread::scope(|scope| {
            let change = scope.spawn(|| {
                let file = File::options().write(true).open(&path).expect("opens");
                match round % 3 {
                    0 => file.set_len(round).expect("cut"),
                    1 => file.write_all_at(&[round as u8; 3 * 4096], P as u64).expect("written"),
                    _ => fs::remove_file(&path).expect("removed"),
                }
            });
            let mut served = 0;
            loop {
                let ended = change.is_finished();
                match read(&store, store.manifest().layout().piece(1).expect("exists")) {
                    Ok(piece) => assert!(piece == bytes[P..2 * P], "round {round}: {served}"),
                    Err(error) => {
                        assert!(matches!(error, ReadError::Changed), "{error}");
                        break;
                    }
                }
                served += 1;
                assert!(!ended, "round {round}: a change was not noticed");
            }
        });
    }
}

#[test]
fn a_pipe_in_a_files_place_is_a_change_and_not_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("file");
    fs::write(&path, content()).expect("written");
    let (manifest, stamp) = hashing::hash_file(&path, &|_| true).expect("hashed");
    let store = PieceStore::whole(Arc::new(manifest), path.clone(), stamp);
    fs::remove_file(&path).expect("removed");
    assert!(Command::new("mkfifo").arg(&path).status().expect("runs").success());
    let piece = store.manifest().layout().piece(0).expect("exists");
    assert!(matches!(read(&store, piece), Err(ReadError::Changed)));
}

#[test]
fn who_opens_while_another_finishes_never_holds_the_finished_file() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bytes = content();
    let manifest = Arc::new(manifest_of(&bytes));
    for _ in 0..30 {
        let (first, _) = part(dir.path());
        fill(&first, &bytes);
        let finished = std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                loop {
                    match PieceStore::part(manifest.clone(), dir.path(), &|_| true) {
                        Ok(second) => return second,
                        Err(StorageError::InUse(_)) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            let path = first.finish(dir.path(), &name("a"), &|| true).expect("finished");
            drop(first);
            let second = opening.join().expect("opens");
            assert!(second.bitfield().is_empty(), "it is a new file");
            assert!(second.path().exists());
            second.discard();
            path
        });
        assert!(fs::read(&finished).expect("read") == bytes);
        fs::remove_file(finished).expect("removed");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
}

#[test]
fn a_part_file_with_a_second_name_is_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    let (path, manifest) = (store.path(), store.manifest().clone());
    drop(store);
    let precious = dir.path().join("precious");
    fs::remove_file(&path).expect("removed");
    fs::write(&precious, "mine").expect("written");
    fs::hard_link(&precious, &path).expect("linked");
    let (store, _) = open_again(&manifest, dir.path());
    fill(&store, &bytes);
    let done = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    assert!(fs::read(done).expect("read") == bytes);
    assert_eq!(fs::read(precious).expect("read"), b"mine");
}

#[test]
fn a_part_file_of_another_owner_is_begun_anew() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    fill(&store, &bytes);
    store.close().expect("stopped");
    let (path, manifest) = (store.path(), store.manifest().clone());
    drop(store);
    if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
        eprintln!("not tried: this user cannot give files away");
        return;
    }
    let theirs = File::open(&path).expect("opens");
    let (store, _) = open_again(&manifest, dir.path());
    assert!(store.bitfield().is_empty());
    let same = theirs.metadata().expect("known").ino() == fs::metadata(&path).expect("known").ino();
    assert!(!same);
    store.discard();
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0, "no probe stays");
}

#[test]
fn a_link_in_place_of_the_part_directory_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (dest, elsewhere) = (dir.path().join("dest"), dir.path().join("elsewhere"));
    fs::create_dir(&dest).expect("made");
    fs::create_dir(&elsewhere).expect("made");
    std::os::unix::fs::symlink(&elsewhere, dest.join(PART_DIR)).expect("linked");
    let manifest = Arc::new(manifest_of(&content()));
    let error = PieceStore::part(manifest.clone(), &dest, &|_| true).expect_err("refused");
    assert!(error.to_string().contains("not a directory of its own"), "{error}");
    assert_eq!(fs::read_dir(&elsewhere).expect("read").count(), 0);
    // A destination that is a link itself is as good as any.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&elsewhere, &link).expect("linked");
    PieceStore::part(manifest, &link, &|_| true).expect("opened");
}

#[test]
fn a_name_that_can_never_be_given_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    fill(&store, &bytes);
    let other = Path::new("/dev/shm");
    let inside = |path| fs::metadata(path).map(|metadata| metadata.dev());
    if inside(other).ok().is_none_or(|device| inside(dir.path()).ok() == Some(device)) {
        eprintln!("not tried: there is no second filesystem");
        return;
    }
    let shared = tempfile::tempdir_in(other).expect("temp dir");
    let error = store.finish(shared.path(), &name("a"), &|| true).expect_err("elsewhere");
    assert!(matches!(error, StorageError::CannotName { .. }) && !error.can_heal(), "{error}");
    store.finish(dir.path(), &name("a"), &|| true).expect("finished");
}
