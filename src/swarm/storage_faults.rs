//! The store on a disk that fails, fills, rots and loses power, at every operation it makes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::buffers::Buffers;
use super::memory_disk::{Fault, MemoryDisk, Plan};
use super::storage::{PART_DIR, PieceStore, ReadError, Recovered, StorageError, WriteError};
use crate::bitfield::Bitfield;
use crate::limits::PIECE_LEN;
use crate::manifest::Manifest;
use crate::manifest::testing::manifest_of;
use crate::name::FileName;
use crate::piece::PieceIndex;

pub(super) const P: usize = PIECE_LEN as usize;

/// Four pieces, the last of them short.
pub(super) static CONTENT: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..3 * P + 9_999).map(|i| (i ^ (i >> 7) ^ (i / P * 91)) as u8 | 1).collect());
pub(super) static MANIFEST: LazyLock<Arc<Manifest>> =
    LazyLock::new(|| Arc::new(manifest_of(&CONTENT)));

pub(super) fn dest() -> &'static Path {
    Path::new("/dest")
}

pub(super) fn name() -> FileName {
    "film.mkv".parse().expect("a name")
}

pub(super) fn part_path() -> PathBuf {
    dest().join(PART_DIR).join(format!("{}.part", MANIFEST.content_id()))
}

pub(super) fn piece(index: u32) -> PieceIndex {
    MANIFEST.layout().piece(index).expect("exists")
}

pub(super) fn bytes_of(piece: PieceIndex) -> &'static [u8] {
    let start = MANIFEST.layout().offset(piece) as usize;
    &CONTENT[start..start + MANIFEST.layout().len(piece) as usize]
}

pub(super) fn open(disk: &MemoryDisk) -> Result<PieceStore, StorageError> {
    PieceStore::part_on(disk.seam(), MANIFEST.clone(), dest(), &|_| true)
}

pub(super) fn write(store: &PieceStore, index: u32) -> Result<(), StorageError> {
    match store.write_piece(piece(index), (&bytes_of(piece(index)).into(), None), drop) {
        Ok(_) => Ok(()),
        Err(WriteError::Storage(error)) => Err(error),
        Err(error) => panic!("right bytes were refused: {error}"),
    }
}

pub(super) fn read(store: &PieceStore, piece: PieceIndex) -> Result<Vec<u8>, ReadError> {
    store.read_piece(piece, None, &Buffers::default()).map(|buffer| buffer.as_ref().to_vec())
}

/// A part file in which these pieces are.
pub(super) fn filled(disk: &MemoryDisk, pieces: impl IntoIterator<Item = u32>) -> PieceStore {
    let store = open(disk).expect("opened");
    for index in pieces {
        write(&store, index).expect("written");
    }
    store
}

pub(super) fn indices(pieces: &Bitfield) -> Vec<u32> {
    pieces.iter().map(PieceIndex::get).collect()
}

/// Everything counted as here is right, read past the store.
pub(super) fn check(disk: &MemoryDisk, store: &PieceStore) {
    let content = disk.content(&store.path()).expect("a file");
    for piece in store.bitfield().iter() {
        let start = MANIFEST.layout().offset(piece) as usize;
        let right = bytes_of(piece);
        assert!(&content[start..start + right.len()] == right, "piece {piece} is not right");
    }
}

/// Fetches what is missing, gives the file its name, and looks that nothing else is left.
pub(super) fn complete(disk: &MemoryDisk, store: &PieceStore) {
    for piece in MANIFEST.layout().pieces().filter(|piece| !store.has(*piece)) {
        write(store, piece.get()).expect("written");
    }
    let path = store.finish(dest(), &name(), &|| true).expect("finished");
    assert!(disk.content(&path).as_deref() == Some(&CONTENT[..]));
    assert_eq!(disk.names(), [dest().to_owned(), path]);
}

/// A download with its checkpoints and its end; stops at the first fault. What it was told is safe.
fn download(disk: &MemoryDisk, safe: &mut Bitfield) -> Result<(), StorageError> {
    let store = open(disk)?;
    for order in [[2, 0], [1, 3]] {
        for index in order.into_iter().filter(|index| !store.has(piece(*index))) {
            write(&store, index)?;
        }
        store.checkpoint()?;
        *safe = store.bitfield();
    }
    store.close()?;
    drop(store);
    let store = open(disk)?;
    store.finish(dest(), &name(), &|| true)?;
    Ok(())
}

/// Operations of a download in which nothing fails.
fn operations() -> usize {
    let disk = MemoryDisk::with(dest());
    download(&disk, &mut Bitfield::none(MANIFEST.layout())).expect("nothing fails");
    assert!(disk.image().syncs > 8);
    disk.image().operations
}

/// A store as a machine finds it after a power cut, and the disk it is on.
pub(super) fn start_again(
    disk: &MemoryDisk,
    seed: u64,
    safe: &Bitfield,
) -> Option<(MemoryDisk, PieceStore)> {
    let disk = disk.after_power_cut(seed);
    if let Some(content) = disk.content(&dest().join("film.mkv")) {
        assert!(content == *CONTENT, "a file with its name is whole");
        return None;
    }
    let store = open(&disk).expect("opens");
    check(&disk, &store);
    for piece in safe.iter() {
        assert!(store.has(piece), "piece {piece} was safe");
    }
    Some((disk, store))
}

#[test]
fn a_power_cut_at_any_operation_takes_back_nothing_that_was_safe() {
    for cut_at in 1..=operations() {
        for seed in 0..5 {
            let disk = MemoryDisk::with(dest());
            disk.plan(Plan { cut_at: Some(cut_at), ..Plan::default() });
            let mut safe = Bitfield::none(MANIFEST.layout());
            let _ = download(&disk, &mut safe);
            if let Some((disk, store)) = start_again(&disk, seed, &safe) {
                complete(&disk, &store);
            }
        }
    }
}

#[test]
fn a_second_power_cut_while_starting_again_takes_back_nothing_either() {
    let all = operations();
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut disk = MemoryDisk::with(dest());
        let mut safe = Bitfield::none(MANIFEST.layout());
        for _ in 0..3 {
            let cut_at = rng.usize(1..all);
            disk.plan(Plan { cut_at: Some(cut_at), ..Plan::default() });
            let mut more = Bitfield::none(MANIFEST.layout());
            let _ = download(&disk, &mut more);
            more.iter().for_each(|piece| _ = safe.insert(piece));
            disk = disk.after_power_cut(rng.u64(..));
        }
        if let Some((disk, store)) = start_again(&disk, seed, &safe) {
            complete(&disk, &store);
        }
    }
}

#[test]
fn a_finished_download_survives_a_power_cut_under_its_name() {
    for seed in 0..100 {
        let disk = MemoryDisk::with(dest());
        let store = open(&disk).expect("opened");
        complete(&disk, &store);
        let after = disk.after_power_cut(seed);
        assert!(after.content(&dest().join("film.mkv")).as_deref() == Some(&CONTENT[..]));
    }
}

#[test]
fn a_killed_process_fetches_nothing_again() {
    let all = operations();
    for cut_at in 1..=all {
        let disk = MemoryDisk::with(dest());
        disk.plan(Plan { cut_at: Some(cut_at), ..Plan::default() });
        let mut written = Vec::new();
        if let Ok(store) = open(&disk) {
            for index in [3, 1, 0, 2] {
                if write(&store, index).is_ok() {
                    written.push(index);
                }
                let _ = store.checkpoint();
            }
        }
        // Killed: what it wrote is in the page cache, and stays there.
        disk.plan(Plan::default());
        if written.is_empty() {
            continue;
        }
        written.sort_unstable();
        let store = open(&disk).expect("opens");
        assert_eq!(indices(&store.bitfield()), written, "killed at {cut_at}");
        check(&disk, &store);
        complete(&disk, &store);
    }
}

/// Drives a download as its owner would: an error that can heal pauses it, the fault goes, it
/// recovers and goes on. The pieces that were stored, once for each time.
fn drive(disk: &MemoryDisk, seed: u64) -> Vec<u32> {
    let mut stored = Vec::new();
    let store = loop {
        match open(disk) {
            Ok(store) => break store,
            Err(error) => {
                assert!(error.can_heal(), "{error}");
                disk.plan(Plan::default());
            }
        }
    };
    let pause = |error: StorageError| {
        assert!(error.can_heal(), "{error}");
        let before = indices(&store.bitfield());
        if let Ok(early) = store.recover() {
            assert_eq!(early.lost, []);
        }
        assert_eq!(indices(&store.bitfield()), before, "a disk that fails loses nothing");
        check(disk, &store);
        disk.plan(Plan::default());
        let recovered = store.recover().expect("the fault is gone");
        assert_eq!(recovered.lost, []);
        assert_eq!(indices(&store.bitfield()), before);
    };
    loop {
        let missing = [2, 0, 3, 1].into_iter().find(|index| !store.has(piece(*index)));
        let done = match missing {
            Some(index) => write(&store, index).map(|()| stored.push(index)),
            None => break,
        };
        if let Err(error) = done.and_then(|()| store.checkpoint()) {
            pause(error);
        }
    }
    // All that a checkpoint after a fault says is safe, is.
    while let Err(error) = store.checkpoint() {
        pause(error);
    }
    let again = start_again(disk, seed, &Bitfield::all(MANIFEST.layout()));
    assert!(again.expect("has no name yet").1.bitfield().is_full());
    while let Err(error) = store.close() {
        pause(error);
    }
    while let Err(error) = store.finish(dest(), &name(), &|| true) {
        pause(error);
    }
    let content = disk.content(&dest().join("film.mkv")).expect("named");
    assert!(content == *CONTENT);
    let after = disk.after_power_cut(seed);
    assert!(after.content(&dest().join("film.mkv")).as_deref() == Some(&CONTENT[..]));
    stored
}

#[test]
fn an_opening_that_failed_leaves_nothing_new() {
    for at in 1.. {
        let disk = MemoryDisk::with(dest());
        disk.plan(Plan { fail: Some((at, Fault::Eio)), ..Plan::default() });
        match open(&disk) {
            Err(_) => assert_eq!(disk.names(), [dest()], "{at}"),
            Ok(_) if disk.image().operations >= at => {}
            Ok(_) => {
                assert!(at > 6, "{at}");
                break;
            }
        }
    }
}

#[test]
fn any_failing_operation_pauses_and_nothing_is_fetched_twice() {
    let disk = MemoryDisk::with(dest());
    drive(&disk, 0);
    let all = disk.image().operations;
    assert!(all > 60, "{all}");
    for at in 1..=all {
        for fault in [Fault::Eio, Fault::Full, Fault::Short] {
            for for_good in [false, true] {
                let disk = MemoryDisk::with(dest());
                disk.plan(Plan { fail: Some((at, fault)), for_good, cut_at: None });
                let mut stored = drive(&disk, at as u64);
                stored.sort_unstable();
                assert_eq!(stored, [0, 1, 2, 3], "{fault:?} at {at}, for good: {for_good}");
            }
        }
    }
}

#[test]
fn pieces_in_any_order_from_several_threads_end_with_the_right_sha1() {
    let content: Vec<u8> = (0..12 * P + 5).map(|i| (i ^ (i >> 9) ^ (i / P)) as u8).collect();
    let manifest = Arc::new(manifest_of(&content));
    for seed in 0..60 {
        let disk = MemoryDisk::with(dest());
        let store =
            PieceStore::part_on(disk.seam(), manifest.clone(), dest(), &|_| true).expect("opened");
        let mut order: Vec<_> = manifest.layout().pieces().collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        let threads = 1 + seed as usize % 4;
        std::thread::scope(|scope| {
            for lane in 0..threads {
                let (store, content, order) = (&store, &content, &order);
                scope.spawn(move || {
                    for piece in order.iter().skip(lane).step_by(threads) {
                        let start = manifest_offset(store, *piece);
                        let end = (start + P).min(content.len());
                        let chunks = content[start..end].into();
                        store.write_piece(*piece, (&chunks, None), drop).expect("written");
                        store.hash_ahead(&[(*piece, chunks)]).expect("true");
                        store.checkpoint().expect("safe");
                    }
                });
            }
        });
        let path = store.finish(dest(), &name(), &|| true).expect("finished");
        assert!(disk.content(&path).as_deref() == Some(&content[..]));
        assert!(store.reread_bytes() <= content.len() as u64, "none is read back twice");
    }
}

pub(super) fn manifest_offset(store: &PieceStore, piece: PieceIndex) -> usize {
    store.manifest().layout().offset(piece) as usize
}

#[test]
fn what_comes_in_order_is_never_read_back() {
    let disk = MemoryDisk::with(dest());
    let store = open(&disk).expect("opened");
    complete(&disk, &store);
    assert_eq!((store.reread_bytes(), disk.image().bytes_read), (0, 0));
}

#[test]
fn what_came_early_is_read_back_once_while_the_rest_arrives() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [1, 2, 0]);
    assert_eq!(store.next_to_hash(), Some(piece(1)));
    let kept = [(piece(1), bytes_of(piece(1)).into())];
    assert_eq!(store.hash_ahead(&kept), Ok(Some(piece(3))));
    assert_eq!(store.reread_bytes(), P as u64, "one was kept in memory, one was not");
    complete(&disk, &store);
    assert_eq!(store.reread_bytes(), P as u64);
}

#[test]
fn after_a_clean_stop_nothing_is_looked_at() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [1, 3]);
    store.close().expect("stopped");
    drop(store);
    let disk = disk.after_power_cut(1);
    let store = open(&disk).expect("opened");
    assert_eq!(indices(&store.bitfield()), [1, 3]);
    assert_eq!(disk.image().bytes_read, 0);
    // Opened and closed again, it is still clean: nothing was written.
    drop(store);
    let store = open(&disk).expect("opened");
    assert_eq!(disk.image().bytes_read, 0);
    complete(&disk, &store);
}

#[test]
fn a_write_after_a_clean_stop_makes_it_unclean_first() {
    let disk = MemoryDisk::with(dest());
    // The filesystem's clock is too coarse to tell that anything was written.
    disk.image().frozen = true;
    let store = filled(&disk, [1]);
    store.close().expect("stopped");
    write(&store, 2).expect("written");
    drop(store);
    let store = open(&disk).expect("opened");
    assert_eq!(indices(&store.bitfield()), [1, 2]);
    assert!(disk.image().bytes_read >= P as u64, "it looked");
    // The same, when the record cannot be made unclean: then nothing is written.
    store.close().expect("stopped");
    disk.plan(Plan { fail: Some((1, Fault::Eio)), for_good: true, cut_at: None });
    assert!(write(&store, 0).is_err());
    disk.plan(Plan::default());
    drop(store);
    let store = open(&disk).expect("opened");
    assert_eq!(indices(&store.bitfield()), [1, 2]);
    check(&disk, &store);
}

#[test]
fn a_clean_stop_that_failed_half_way_is_not_believed_later() {
    for at in 1.. {
        let disk = MemoryDisk::with(dest());
        disk.image().frozen = true;
        let store = filled(&disk, [1]);
        disk.plan(Plan { fail: Some((at, Fault::Eio)), ..Plan::default() });
        let closed = store.close();
        let operations = disk.image().operations;
        disk.plan(Plan::default());
        write(&store, 2).expect("written");
        drop(store);
        let store = open(&disk).expect("opens");
        assert_eq!(indices(&store.bitfield()), [1, 2], "{at}: {closed:?}");
        if operations < at {
            assert!(at > 6, "{at}");
            break;
        }
    }
}

#[test]
fn what_is_here_is_not_written_again() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    let before = disk.image().operations;
    write(&store, 0).expect("a duplicate of the endgame");
    assert_eq!(disk.image().operations, before);
}

#[test]
fn a_file_written_after_a_clean_stop_is_looked_at_again() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, 0..4);
    store.close().expect("stopped");
    drop(store);
    let mut old = disk.content(&part_path()).expect("there");
    old[P + 7] ^= 1;
    disk.put(&part_path(), &old);
    let store = open(&disk).expect("opened");
    assert_eq!(indices(&store.bitfield()), [0, 2, 3]);
    complete(&disk, &store);
}

#[test]
fn the_last_step_can_be_tried_again_whatever_failed_in_it() {
    for at in 1.. {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, [1, 0, 3, 2]);
        disk.plan(Plan { fail: Some((at, Fault::Eio)), ..Plan::default() });
        let first = store.finish(dest(), &name(), &|| true);
        let operations = disk.image().operations;
        disk.plan(Plan::default());
        if let Err(error) = first {
            assert!(error.can_heal(), "{error}");
            assert_eq!(store.recover().expect("well again"), Recovered::default());
        }
        let path = store.finish(dest(), &name(), &|| true).expect("finished");
        assert_eq!(path, dest().join("film.mkv"));
        for seed in 0..5 {
            let after = disk.after_power_cut(seed);
            assert!(after.content(&path).as_deref() == Some(&CONTENT[..]), "{at}");
        }
        if operations < at {
            assert!(at > 8, "{at}");
            break;
        }
    }
}

#[test]
fn a_record_that_a_crash_left_half_written_goes() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    store.checkpoint().expect("safe");
    drop(store);
    disk.put(&part_path().with_extension("resume-new"), b"half");
    disk.put(&part_path().with_extension("resume"), b"junk");
    let store = open(&disk).expect("opened");
    assert_eq!(indices(&store.bitfield()), [0]);
    assert!(!disk.names().contains(&part_path().with_extension("resume-new")));
    complete(&disk, &store);
}

#[test]
fn pieces_of_zeros_are_there_in_a_file_that_was_never_written() {
    let mut content = vec![0; 3 * P + 100];
    content[P] = 1;
    let manifest = Arc::new(manifest_of(&content));
    let disk = MemoryDisk::with(dest());
    let store =
        PieceStore::part_on(disk.seam(), manifest.clone(), dest(), &|_| true).expect("opened");
    assert_eq!(indices(&store.bitfield()), [0, 2, 3]);
    let second = manifest.layout().piece(1).expect("exists");
    store.write_piece(second, (&content[P..2 * P].into(), None), drop).expect("written");
    let path = store.finish(dest(), &name(), &|| true).expect("finished");
    assert!(disk.content(&path).as_deref() == Some(&content[..]));
}
