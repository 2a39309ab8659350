//! The store with what peers and sidecars say of pieces: order does not matter, and lies cost time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffers::Buffers;
use super::midstates::midstates_of;
use super::storage::{PieceStore, ReadError, StorageError, Written};
use super::storage_tests::{P, content, fill, name, open_again, part, write};
use crate::hash;
use crate::manifest::Manifest;
use crate::manifest::testing::manifest_of;
use crate::piece::PieceIndex;

#[test]
fn a_crc_that_fits_is_enough_and_one_that_does_not_decides_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    fill(&store, &bytes);
    let piece = store.manifest().layout().piece(1).expect("exists");
    let crc = hash::crc64(&bytes[P..2 * P]);
    let read = |crc| {
        let buffer = store.read_piece(piece, crc, &Buffers::default());
        buffer.map(|buffer| buffer.as_ref().to_vec())
    };
    for crc in [Some(crc), Some(crc ^ 1), None] {
        assert!(read(crc).expect("right") == bytes[P..2 * P]);
    }
    let file = File::options().write(true).open(store.path()).expect("opens");
    file.write_all_at(b"rotten", P as u64 + 77).expect("written");
    assert!(matches!(read(Some(crc)), Err(ReadError::Missing)));
    assert_eq!(store.take_lost(), [piece]);
}

#[test]
fn with_midstates_no_order_is_needed_and_nothing_read_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, bytes) = part(dir.path());
    let all = midstates_of(&bytes);
    let of = |index: usize| store.manifest().layout().piece(index as u32).expect("exists");
    let write_proven = |index: usize, midstates| {
        let chunks = (&bytes[index * P..(index + 1) * P]).into();
        store.write_piece(of(index), (&chunks, Some(midstates)), drop).expect("right")
    };
    assert_eq!(write_proven(1, &all[1]), Written::Proven(Some(Some(of(0)))));
    assert_eq!(write_proven(0, &all[0]), Written::Proven(Some(Some(of(2)))));
    write(&store, &bytes, 2).expect("written");
    let path = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    assert!(fs::read(path).expect("there") == bytes);
    assert_eq!((store.reread_bytes(), store.followed().count()), (0, 2));
}

#[test]
fn false_midstates_cost_time_and_nothing_else() {
    let bytes = content();
    let all = midstates_of(&bytes);
    // States that are a file's before the piece, if another one came before it.
    let mut other = vec![7; P];
    other.extend_from_slice(&bytes[P..2 * P]);
    let astray = midstates_of(&other)[1];
    let mut wrong = all[1];
    wrong.0[99] ^= 1;
    for midstates in [astray, wrong, all[0]] {
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
            // That it leads from elsewhere is seen at once only where it is the next.
            let seems_so = midstates == astray && order[0] != 0;
            let dir = tempfile::tempdir().expect("temp dir");
            let (store, _) = part(dir.path());
            let one = store.manifest().layout().piece(1).expect("exists");
            for index in order {
                if index != 1 {
                    write(&store, &bytes, index).expect("written");
                    continue;
                }
                let chunks = (&bytes[P..2 * P]).into();
                let written = store.write_piece(one, (&chunks, Some(&midstates)), drop);
                let is_proven = matches!(written.expect("the bytes are right"), Written::Proven(_));
                assert_eq!(is_proven, seems_so, "{order:?}");
            }
            let path = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
            assert!(fs::read(path).expect("there") == bytes);
            assert!(store.reread_bytes() >= P as u64, "{order:?}");
            assert!(store.followed().is_empty(), "{order:?}");
        }
    }
}

#[test]
fn what_leads_from_elsewhere_is_gone_over_at_the_end_and_what_fails_then_ends_it() {
    let bytes: Vec<u8> = (0..4 * P + 9).map(|i| (i ^ (i >> 9) ^ (i / P * 37)) as u8).collect();
    let mut other = bytes.clone();
    other[..P].fill(7);
    let astray = midstates_of(&other);
    let manifest = Arc::new(manifest_of(&bytes));
    // Opened again, so that the SHA-1 has seen nothing; then links that are found out one after the other.
    let opened = |dir: &Path| {
        let store = PieceStore::part(manifest.clone(), dir, &|_| true).expect("opened");
        write(&store, &bytes, 0).expect("written");
        store.close().expect("safe");
        drop(store);
        let (store, _) = open_again(&manifest, dir);
        for (index, piece) in manifest.layout().pieces().enumerate().skip(1) {
            let chunks = bytes[index * P..bytes.len().min((index + 1) * P)].into();
            let midstates = astray.get(index).filter(|_| [1, 2].contains(&index));
            store.write_piece(piece, (&chunks, midstates), drop).expect("right");
        }
        store
    };
    let dir = tempfile::tempdir().expect("temp dir");
    let store = opened(dir.path());
    let path = store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    assert!(fs::read(path).expect("there") == bytes);
    assert_eq!((store.reread_bytes(), store.followed().count()), (bytes.len() as u64, 0));

    // One that went bad, read first or because of a link; and an end before the end.
    for bad in [0, 1] {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = opened(dir.path());
        let file = File::options().write(true).open(store.path()).expect("opens");
        file.write_all_at(b"rotten", bad * P as u64).expect("written");
        let result = store.finish(dir.path(), &name("a"), &|| true);
        assert!(matches!(result, Err(StorageError::Incomplete { count: 1, .. })), "{result:?}");
        let lost: Vec<_> = store.take_lost().into_iter().map(PieceIndex::get).collect();
        assert_eq!(lost, [bad as u32]);
        write(&store, &bytes, bad as u32).expect("it came again");
        store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    }
    for ends_at in [0, 1, 2] {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = opened(dir.path());
        let asked = AtomicU64::new(0);
        let go_on = || asked.fetch_add(1, Ordering::Relaxed) < ends_at;
        store.finish(dir.path(), &name("a"), &go_on).expect_err("stopped");
        store.finish(dir.path(), &name("a"), &|| true).expect("finished");
    }
}

#[test]
fn midstates_do_not_hide_a_false_manifest() {
    let bytes = content();
    let honest = manifest_of(&bytes);
    let all = midstates_of(&bytes);
    let mut pieces = honest.pieces().to_vec();
    pieces[1].sha1 = hash::sha1(b"something else");
    let false_piece = Manifest::new(honest.layout(), honest.head().sha1(), pieces);
    let other = hash::sha1(b"something else");
    let false_file = Manifest::new(honest.layout(), other, honest.pieces().to_vec());
    for lie in [false_piece, false_file] {
        let dir = tempfile::tempdir().expect("temp dir");
        let lie = Arc::new(lie.expect("made"));
        let store = PieceStore::part(lie.clone(), dir.path(), &|_| true).expect("opened");
        for (piece, chunk) in lie.layout().pieces().zip(bytes.chunks(P)) {
            let midstates = all.get(piece.get() as usize);
            store.write_piece(piece, (&chunk.into(), midstates), drop).expect("as far as is known");
        }
        let error = store.finish(dir.path(), &name("a"), &|| true).expect_err("a lie");
        assert!(error.is_false_manifest(), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}
