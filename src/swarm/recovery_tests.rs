//! The store where the disk rots, fills up, or is not the same any more.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use super::memory_disk::{Fault, MemoryDisk, Plan};
use super::storage::{PART_DIR, PieceStore, ReadError, Recovered, StorageError};
use super::storage_faults::{
    CONTENT, MANIFEST, P, bytes_of, check, complete, dest, filled, indices, manifest_offset, name,
    open, part_path, piece, read, start_again, write,
};
use crate::manifest::testing::manifest_of;

#[test]
fn a_full_disk_is_tried_with_a_whole_piece() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    disk.image().full = true;
    assert!(matches!(write(&store, 1), Err(StorageError::NoSpace { .. })));
    let error = store.recover().expect_err("no room for a piece");
    assert!(matches!(error, StorageError::NoSpace { needed, .. } if needed >= P as u64), "{error}");
    assert_eq!(indices(&store.bitfield()), [0]);
    disk.image().full = false;
    assert_eq!(store.recover().expect("room"), Recovered::default());
    check(&disk, &store);
    complete(&disk, &store);
}

#[test]
fn a_file_that_another_process_finished_just_before_the_lock_is_left_alone() {
    let disk = MemoryDisk::with(dest());
    disk.make_directory(&dest().join(PART_DIR));
    disk.put(&part_path(), &CONTENT);
    let finished = dest().join("theirs");
    disk.image().finished_as = Some(finished.clone());
    let store = open(&disk).expect("a new one");
    assert!(store.bitfield().is_empty());
    for index in 0..4 {
        write(&store, index).expect("written");
    }
    disk.rot(&part_path(), 0);
    assert!(disk.content(&finished).as_deref() == Some(&CONTENT[..]));
}

#[test]
fn a_rotten_piece_is_not_served_and_comes_again() {
    for seed in 0..20 {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, [3, 1]);
        store.checkpoint().expect("safe");
        disk.rot(&part_path(), P + 1);
        assert_eq!(read(&store, piece(3)).expect("right"), bytes_of(piece(3)));
        assert!(matches!(read(&store, piece(1)), Err(ReadError::Missing)));
        assert_eq!(indices(&store.bitfield()), [3]);
        assert_eq!((store.take_lost(), store.take_lost()), (vec![piece(1)], vec![]));
        // What comes again is not on the disk because what went bad was.
        write(&store, 1).expect("written");
        store.checkpoint().expect("safe");
        let (disk, store) = start_again(&disk, seed, &store.bitfield()).expect("a part file");
        assert_eq!(indices(&store.bitfield()), [1, 3]);
        complete(&disk, &store);
    }
}

#[test]
fn rot_found_at_the_end_blames_nobody() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, 0..4);
    store.close().expect("stopped");
    drop(store);
    disk.rot(&part_path(), 5);
    disk.rot(&part_path(), 2 * P + 5);
    let store = open(&disk).expect("opened");
    assert!(store.bitfield().is_full(), "a clean stop is believed");
    let error = store.finish(dest(), &name(), &|| true).expect_err("rotten");
    assert!(matches!(error, StorageError::Incomplete { count: 2, .. }), "{error}");
    assert!(error.can_heal());
    assert_eq!(store.recover().expect("the disk takes writes").lost, [piece(0), piece(2)]);
    complete(&disk, &store);
}

#[test]
fn a_sector_that_cannot_be_read_costs_its_piece_and_no_other() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [1, 2, 3]);
    store.checkpoint().expect("safe");
    disk.break_block(&part_path(), 2 * P + 4096);
    assert!(matches!(read(&store, piece(2)), Err(ReadError::Io(_))));
    assert!(store.has(piece(2)), "it may be readable again");
    write(&store, 0).expect("written");
    let error = store.finish(dest(), &name(), &|| true).expect_err("unreadable");
    assert!(error.can_heal(), "{error}");
    assert_eq!(store.recover().expect("the disk takes writes").lost, [piece(2)]);
    complete(&disk, &store);
    // Also when the SHA-1 has had the piece and would not read it again.
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, 0..4);
    disk.break_block(&part_path(), 2 * P + 4096);
    assert!(matches!(read(&store, piece(2)), Err(ReadError::Io(_))));
    let error = store.finish(dest(), &name(), &|| true).expect_err("unreadable");
    assert!(error.can_heal(), "{error}");
    assert_eq!(store.recover().expect("the disk takes writes").lost, [piece(2)]);
    complete(&disk, &store);
    // Found when the file is opened, it is simply not there.
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [1, 2]);
    drop(store);
    disk.break_block(&part_path(), P);
    assert_eq!(indices(&open(&disk).expect("opens").bitfield()), [2]);
    // But when nothing can be read at all, the disk is to blame, and all of it is kept.
    disk.break_block(&part_path(), 2 * P);
    assert!(open(&disk).expect_err("unreadable").can_heal());
}

#[test]
fn writers_checkpoints_and_recoveries_at_the_same_time_lose_nothing() {
    let content: Vec<u8> = (0..24 * P).map(|i| (i ^ (i >> 9) ^ (i / P)) as u8).collect();
    let manifest = Arc::new(manifest_of(&content));
    let disk = MemoryDisk::with(dest());
    let store =
        PieceStore::part_on(disk.seam(), manifest.clone(), dest(), &|_| true).expect("opened");
    std::thread::scope(|scope| {
        for lane in 0..3 {
            let (store, content) = (&store, &content);
            scope.spawn(move || {
                for piece in store.manifest().layout().pieces().skip(lane).step_by(3) {
                    let start = manifest_offset(store, piece);
                    store
                        .write_piece(piece, (&content[start..start + P].into(), None), drop)
                        .expect("written");
                    assert!(read(store, piece).expect("here") == content[start..start + P]);
                    let _ = store.checkpoint();
                }
            });
        }
        for _ in 0..10 {
            disk.remove_tree(dest());
            disk.make_directory(dest());
            assert_eq!(store.recover().expect("usable"), Recovered::default());
        }
    });
    let path = store.finish(dest(), &name(), &|| true).expect("finished");
    assert!(disk.content(&path).as_deref() == Some(&content[..]));
}

#[test]
fn checkpoints_beside_the_end_leave_nothing_behind() {
    for seed in 0..20 {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, 0..4);
        std::thread::scope(|scope| {
            // It may find the file gone.
            scope.spawn(|| store.checkpoint());
            complete(&disk, &store);
        });
        let path = store.path();
        assert_eq!(disk.names(), [dest().to_owned(), path.clone()]);
        let after = disk.after_power_cut(seed);
        assert!(after.content(&path).as_deref() == Some(&CONTENT[..]));
    }
}

#[test]
fn a_directory_that_went_and_came_back_costs_no_piece() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0, 2]);
    store.checkpoint().expect("safe");
    disk.remove_tree(dest());
    assert!(matches!(store.checkpoint(), Err(StorageError::Gone(_))));
    // It is not ours to make.
    let error = store.recover().expect_err("gone");
    assert!(matches!(&error, StorageError::Io { path, .. } if path == dest()), "{error}");
    write(&store, 3).expect("what is open still takes pieces");
    disk.make_directory(dest());
    assert_eq!(store.recover().expect("back").lost, []);
    assert_eq!(indices(&store.bitfield()), [0, 2, 3]);
    let (_, again) = start_again(&disk, 1, &store.bitfield()).expect("a part file");
    assert_eq!(indices(&again.bitfield()), [0, 2, 3], "and they are safe there");
    complete(&disk, &store);
}

#[test]
fn an_empty_mount_point_is_no_place_to_go_on() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0, 1, 3]);
    store.checkpoint().expect("safe");
    // The drive drops: what is open gives nothing any more, and below it is an empty directory.
    let mounted = Path::new("/mounted");
    for offset in [0, P, 3 * P] {
        disk.break_block(&part_path(), offset);
    }
    disk.move_tree(dest(), mounted);
    disk.make_directory(dest());
    let error = store.recover().expect_err("nothing can be read");
    assert!(error.can_heal(), "{error}");
    assert_eq!(indices(&store.bitfield()), [0, 1, 3]);
    assert!(!disk.names().contains(&dest().join(PART_DIR)), "{:?}", disk.names());
    // It comes back.
    disk.remove_tree(dest());
    disk.move_tree(mounted, dest());
    disk.mend(&part_path());
    assert_eq!(store.recover().expect("back"), Recovered::default());
    complete(&disk, &store);
}

#[test]
fn a_directory_that_goes_during_the_last_step_is_waited_for() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, 0..4);
    disk.remove_tree(dest());
    let error = store.finish(dest(), &name(), &|| true).expect_err("gone");
    assert!(error.can_heal(), "{error}");
    disk.make_directory(dest());
    assert_eq!(store.recover().expect("back").lost, []);
    complete(&disk, &store);
}

#[test]
fn an_older_part_file_in_place_of_ours_is_used_and_filled_up() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0, 2, 3]);
    // Another filesystem is mounted there; ours is below it, and bad in one place by now.
    disk.move_tree(&dest().join(PART_DIR), Path::new("/below"));
    disk.rot(&Path::new("/below").join(part_path().file_name().expect("named")), 3 * P);
    disk.make_directory(&dest().join(PART_DIR));
    let mut older = vec![0; CONTENT.len()];
    older[P..2 * P].copy_from_slice(bytes_of(piece(1)));
    older[2 * P..2 * P + 50].copy_from_slice(&bytes_of(piece(2))[..50]);
    disk.put(&part_path(), &older);
    assert!(matches!(store.checkpoint(), Err(StorageError::Gone(_))));
    let recovered = store.recover().expect("usable");
    assert_eq!((recovered.lost, recovered.found), (vec![piece(3)], vec![piece(1)]));
    assert_eq!(indices(&store.bitfield()), [0, 1, 2]);
    check(&disk, &store);
    write(&store, 3).expect("written");
    store.finish(dest(), &name(), &|| true).expect("finished");
    assert!(disk.content(&dest().join("film.mkv")).as_deref() == Some(&CONTENT[..]));
}

#[test]
fn somebody_elses_file_at_our_path_is_neither_named_nor_removed() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, 0..4);
    disk.put(&part_path(), b"mine");
    assert!(matches!(store.finish(dest(), &name(), &|| true), Err(StorageError::Gone(_))));
    store.discard();
    assert_eq!(disk.content(&part_path()).as_deref(), Some(&b"mine"[..]));
}

#[test]
fn a_discarded_download_leaves_nothing_whatever_comes_late() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    store.checkpoint().expect("safe");
    store.discard();
    assert_eq!(disk.names(), [dest()]);
    assert!(!write(&store, 1).expect_err("given up").can_heal());
    store.checkpoint().expect("nothing to do");
    store.close().expect("nothing to do");
    assert!(!store.recover().expect_err("given up").can_heal());
    assert!(!store.finish(dest(), &name(), &|| true).expect_err("given up").can_heal());
    assert_eq!(disk.names(), [dest()]);
}

#[test]
fn a_download_let_go_is_free_for_another_whoever_still_has_the_store() {
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0, 2]);
    assert!(matches!(open(&disk), Err(StorageError::InUse(_))));
    store.release();
    assert_eq!(store.path(), part_path());
    assert!(matches!(read(&store, piece(0)), Err(ReadError::Missing)));
    let read = disk.image().bytes_read;
    let next = open(&disk).expect("free");
    assert_eq!(disk.image().bytes_read, read, "it was a clean stop");
    assert_eq!(indices(&next.bitfield()), [0, 2]);
    // Nothing that comes late gets into the other's file.
    for error in [
        write(&store, 1).expect_err("given up"),
        store.recover().expect_err("given up"),
        store.finish(dest(), &name(), &|| true).expect_err("given up"),
    ] {
        assert!(!error.can_heal(), "{error}");
    }
    store.discard();
    complete(&disk, &next);
    // Given up for good afterwards, what was left goes too.
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    store.release();
    assert!(disk.names().contains(&part_path()));
    store.discard();
    assert_eq!(disk.names(), [dest()]);
    // A disk that fails holds nobody up.
    let disk = MemoryDisk::with(dest());
    let store = filled(&disk, [0]);
    disk.plan(Plan { fail: Some((1, Fault::Eio)), for_good: true, cut_at: None });
    store.release();
    disk.plan(Plan::default());
    assert_eq!(indices(&open(&disk).expect("free").bitfield()), [0]);
}

#[test]
fn a_store_given_up_during_the_last_step_gets_no_name() {
    for give_up in [PieceStore::discard as fn(&PieceStore), PieceStore::release] {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, 0..4);
        store.close().expect("stopped");
        drop(store);
        let store = open(&disk).expect("opened");
        let late = || {
            give_up(&store);
            true
        };
        let error = store.finish(dest(), &name(), &late).expect_err("given up");
        assert!(matches!(error, StorageError::Released(_)), "{error}");
        assert!(!disk.names().contains(&dest().join("film.mkv")));
    }
}

#[test]
fn a_piece_that_comes_again_during_the_last_step_is_on_the_disk_under_the_name() {
    for seed in 0..20 {
        let disk = MemoryDisk::with(dest());
        let store = filled(&disk, 0..4);
        store.close().expect("stopped");
        drop(store);
        let store = open(&disk).expect("opened");
        let (syncs, asked) = (disk.image().syncs, Cell::new(0));
        let rot_the_first = || {
            asked.set(asked.get() + 1);
            if asked.get() == 4 {
                while disk.image().syncs == syncs {
                    std::thread::yield_now();
                }
                disk.rot(&part_path(), 5);
                assert!(matches!(read(&store, piece(0)), Err(ReadError::Missing)));
                write(&store, 0).expect("written");
            }
            true
        };
        let path = store.finish(dest(), &name(), &rot_the_first).expect("finished");
        let after = disk.after_power_cut(seed);
        assert!(after.content(&path).as_deref() == Some(&CONTENT[..]));
    }
}

#[test]
fn a_disk_that_does_not_answer_is_no_change() {
    let path = dest().join("whole");
    let disk = MemoryDisk::with(dest());
    disk.put(&path, &CONTENT);
    let stamp = disk.seam().stamp(&path).expect("there");
    let store = PieceStore::whole_on(disk.seam(), MANIFEST.clone(), path.clone(), stamp);
    disk.plan(Plan { fail: Some((1, Fault::Eio)), ..Plan::default() });
    assert!(!store.is_changed());
    assert!(!store.is_changed() && !store.known_changed());
    assert_eq!(read(&store, piece(1)).expect("right"), bytes_of(piece(1)));
    disk.remove_tree(&path);
    assert!(!store.known_changed(), "it looks at nothing");
    assert!(store.is_changed() && store.known_changed());
}

#[test]
fn a_whole_file_changed_within_a_tick_of_the_clock_is_not_served() {
    let path = dest().join("whole");
    let disk = MemoryDisk::with(dest());
    disk.put(&path, &CONTENT);
    let stamp = disk.seam().stamp(&path).expect("there");
    let store = PieceStore::whole_on(disk.seam(), MANIFEST.clone(), path.clone(), stamp);
    assert_eq!(read(&store, piece(1)).expect("right"), bytes_of(piece(1)));
    disk.rot(&path, P + 5);
    assert_eq!(disk.seam().stamp(&path).expect("there"), stamp, "it looks the same");
    assert!(matches!(read(&store, piece(1)), Err(ReadError::Changed)));
    assert!(matches!(read(&store, piece(0)), Err(ReadError::Changed)), "never again");
    assert!(store.is_changed());
}
