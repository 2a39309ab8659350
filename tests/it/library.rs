//! What a client keeps: files that are missing or changed, metafiles, and a library that is damaged or
//! cannot be written.

use std::fs;
use std::path::Path;

use mtq::client::agent::Agent;
use mtq::client::looking::LookingKind;
use mtq::client::metafile::MetafileTo;
use mtq::client::report::Notice;
use mtq::error_code::ErrorCode;
use mtq::swarm::message::{Control, Nack, PieceHeader};
use serde_json::json;

use crate::net::{Net, group, soon};
use crate::raw_peer::{RawPeer, peer_of, ticket};
use crate::swarm::{MIB, P, begin, complete, gave, limit_up, progress, stored, until};
use crate::world::{Client, World, content, quoted, wait_for};

/// Waits for news of a kind.
async fn heard(
    notices: &mut tokio::sync::broadcast::Receiver<Notice>,
    what: &str,
    is_it: impl Fn(&Notice) -> bool,
) {
    soon(what, async { while !is_it(&notices.recv().await.expect("news")) {} }).await;
}

#[test]
fn missing_and_changed_files_are_named_at_login_and_one_that_returns_is_served() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(2 * P + 5, 221);
    for name in ["kept", "gone", "changed"] {
        let path = world.write(&format!("src/{name}"), &[name.as_bytes(), &bytes].concat());
        alice.ok(&format!("share {} lab", quoted(&path)));
    }
    alice.kill();
    let (gone, aside) = (world.path("src/gone"), world.path("aside"));
    fs::rename(&gone, &aside).expect("moved");
    fs::write(world.path("src/changed"), b"something else").expect("changed");
    let mut alice = world.client("alice");
    let known = alice.ok("login alice");
    assert_eq!(known["sharing"], 1, "{known}");
    let skipped = known["skipped"].as_array().expect("an array").clone();
    let codes: Vec<_> = skipped.iter().map(|one| (&one["name"], &one["code"])).collect();
    let (missing, changed) = (json!("missing"), json!("changed"));
    assert_eq!(codes, [(&json!("gone"), &missing), (&json!("changed"), &changed)]);
    assert_eq!(skipped[0]["path"], gone.to_str().expect("UTF-8"));
    assert_eq!(alice.row("gone")["state"], "missing");
    assert_eq!(alice.row("changed")["state"], "changed");
    wait_for("the listing", || {
        let files = bob.ok("list-files lab")["files"].clone();
        let seeders: Vec<_> =
            files.as_array()?.iter().map(|file| file["seeders"].clone()).collect();
        (seeders == [json!(0), json!(0), json!(1)]).then_some(())
    });
    // As when a disk is mounted again: nobody says anything.
    fs::rename(&aside, &gone).expect("back");
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab gone {}", quoted(&dest)));
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("gone")).expect("arrived") == [b"gone", &bytes[..]].concat());
    assert_eq!(alice.row("gone")["state"], "seeding");
    // In words, too.
    alice.quit();
    let output = world.script("alice", &[], "login alice\n");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.contains("2 shared"), "{words}");
    assert!(words.contains("skipped changed in lab: "), "{words}");
    bob.quit();
}

#[tokio::test]
async fn files_that_go_and_come_back_are_news() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(P, 222)).await;
    let mut notices = alice.notices();
    let (path, aside) = (net.path("file.bin"), net.path("aside"));
    fs::rename(&path, &aside).expect("moved");
    alice.look_for_changes().await;
    heard(&mut notices, "missing", |notice| matches!(notice, Notice::Missing { .. })).await;
    let row = alice.downloads().remove(0);
    assert!(row.missing && !row.changed);
    assert_eq!(alice.overview().skipped[0].code, "missing");
    fs::rename(&aside, &path).expect("back");
    alice.look_for_changes().await;
    heard(&mut notices, "found", |notice| matches!(notice, Notice::Found { .. })).await;
    assert!(!alice.downloads()[0].missing);
    assert_eq!((alice.overview().sharing, alice.overview().skipped.len()), (1, 0));
    let bob = net.member("bob", &alice).await;
    net.begin("bob", &bob).await;
    complete(&bob).await;
    net.end([alice, bob]).await;
}

#[test]
fn a_share_is_removed_by_a_metafile_that_is_gone_already() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    let path = world.write("f.bin", b"hello");
    alice.ok(&format!("share {} lab", quoted(&path)));
    alice.ok(&format!("share {} lab", quoted(&path)));
    assert_eq!(alice.ok("downloads")["downloads"].as_array().map(Vec::len), Some(1), "one share");
    alice.kill();
    let metafile = world.path("f.bin.mtorrent");
    // Something else in its place is not deleted.
    fs::write(&metafile, b"not a metafile").expect("written");
    let mut alice = world.client("alice");
    assert_eq!(alice.err(&format!("remove {}", quoted(&metafile))), "bad-metafile");
    alice.kill();
    fs::remove_file(&metafile).expect("removed");
    let mut alice = world.client("alice");
    let removed = alice.ok(&format!("remove {}", quoted(&world.path("net/../f.bin.mtorrent"))));
    assert_eq!((&removed["group"], &removed["name"]), (&json!("lab"), &json!("f.bin")));
    assert_eq!(alice.ok("downloads")["downloads"], json!([]));
    assert_eq!(alice.ok("list-files lab")["files"], json!([]));
    assert_eq!(fs::read(&path).expect("the data stays"), b"hello");
    assert_eq!(alice.err(&format!("remove {}", quoted(&metafile))), "not-found");
    alice.quit();
}

#[tokio::test]
async fn a_share_removed_in_the_midst_of_a_transfer_costs_nobody_anything() {
    let net = Net::new();
    let bytes = content(12 * MIB as usize, 223);
    let (alice, _) = net.seeder(&bytes).await;
    let carol = net.second_seeder("carol", &alice).await;
    for seeder in [&alice, &carol] {
        limit_up(seeder, 2 * MIB);
    }
    let bob = net.member("bob", &alice).await;
    net.begin("bob", &bob).await;
    until("pieces of both", || {
        let now = progress(&bob);
        (gave(&now, "alice") > 0 && gave(&now, "carol") > 0).then_some(())
    })
    .await;
    let asked = |agent: &Agent, name: &str| {
        crate::swarm::source(&progress(agent), name).map_or(0, |source| source.asked)
    };
    alice.remove(&net.path("file.bin.mtorrent")).await.expect("removed");
    until("her pieces to be asked of the other", || (asked(&bob, "alice") == 0).then_some(()))
        .await;
    let of_alice = gave(&progress(&bob), "alice");
    limit_up(&carol, 64 * MIB);
    let row = complete(&bob).await;
    let source = crate::swarm::source(&row.progress, "alice").expect("a source");
    assert_eq!(
        (source.bad_pieces, source.connected),
        (0, false),
        "she is not to blame: {source:?}"
    );
    assert!(gave(&row.progress, "alice") <= of_alice + 4 * P as u64);
    assert!(alice.downloads().is_empty() && !net.path("file.bin.mtorrent").exists());
    assert!(fs::read(net.path("file.bin")).expect("the data stays") == bytes);
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes);
    net.end([alice, bob, carol]).await;
}

#[tokio::test]
async fn peers_see_that_a_removed_share_goes_away() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(3 * P, 225)).await;
    let content = manifest.content_id();
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let (group, ticket) = ticket(&line).await;
    let mut peer = RawPeer::dial(&endpoint, peer_of(&line, content).await).await;
    peer.say(&Control::Ticket { ticket }).await;
    peer.say(&Control::Open { swarm: 1, group, content }).await;
    while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
    alice.remove(&net.path("file.bin.mtorrent")).await.expect("removed");
    let code = loop {
        if let Control::Close { refused: false, code, .. } = peer.hear().await {
            break code;
        }
    };
    assert_eq!(ErrorCode::from_number(code.into()), Some(ErrorCode::GoingAway));
    let answer = peer.request(1, 0).await.expect("an answer");
    assert!(matches!(answer, PieceHeader::Nack(Nack::NoSwarm)), "{answer:?}");
    net.end([alice]).await;
}

#[tokio::test]
async fn a_download_removed_in_its_midst_leaves_its_part_file() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(8 * MIB as usize, 224)).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    let metafile = net.path("copy.mtorrent");
    fs::copy(net.path("file.bin.mtorrent"), &metafile).expect("copied");
    let dest = net.path("bob");
    fs::create_dir(&dest).expect("made");
    bob.get_metafile(&metafile, &dest).await.expect("begun");
    let had = stored(&bob, MIB).await.stored_bytes;
    fs::remove_file(&metafile).expect("removed");
    bob.remove(&metafile).await.expect("removed");
    assert!(bob.downloads().is_empty());
    let again = begin(&bob, group(), "file.bin", &dest).await;
    assert!(again.stored_bytes >= had);
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn what_is_hashed_is_shown_and_ends_when_nobody_waits_for_it() {
    let net = Net::new();
    let alice = net.agent("alice").await;
    alice.create_group(group(), false).await.expect("created");
    let path = net.path("large");
    let file = fs::File::create(&path).expect("made");
    file.set_len(4 << 30).expect("sparse");
    let share = alice.share(&path, group(), None, MetafileTo::Beside);
    let looked = tokio::select! {
        shared = share => panic!("too fast: {shared:?}"),
        looked = until("the file to be looked at", || {
            alice.looking().into_iter().find(|looking| looking.done_bytes > 0)
        }) => looked,
    };
    assert_eq!((looked.kind, looked.size), (LookingKind::Hashing, 4 << 30));
    assert_eq!(looked.path, path.canonicalize().expect("there"));
    assert!(alice.looking().is_empty(), "dropped, it is not looked at any more");
    assert!(alice.downloads().is_empty() && !net.path("large.mtorrent").exists());
    // The thread behind it is free: a shutdown waits for it.
    soon("the end", net.end([alice])).await;
}

#[test]
fn a_damaged_library_is_named_and_can_be_moved_away() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    let path = world.write("f.bin", b"hello");
    alice.ok(&format!("share {} lab", quoted(&path)));
    alice.quit();
    let library = world.path("alice.data/library.redb");
    fs::write(&library, vec![0x5a; 8192]).expect("damaged");
    let output = world.script("alice", &[], "whoami\n");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{words}");
    assert!(words.contains("library.redb: it is damaged: "), "{words}");
    assert!(words.contains("hint: move this file away"), "{words}");
    assert_eq!(words.lines().count(), 2, "{words}");
    fs::rename(&library, world.path("alice.data/old")).expect("moved");
    let mut alice = world.client("alice");
    assert_eq!(alice.ok("login alice")["sharing"], 0);
    alice.ok(&format!("share {} lab", quoted(&path)));
    alice.kill();
    assert_eq!(world.client("alice").row("f.bin")["state"], "seeding");
}

#[test]
fn on_a_full_disk_commands_work_and_warn_and_are_kept_once_there_is_room() {
    let world = World::new();
    let data_dir = world.make_dir("alice.data");
    let Some(mut alice) = world.client_on_small_disk("alice", &data_dir, 6) else { return };
    alice.sign_up();
    alice.ok("create-group lab");
    let inside = format!("/proc/{}/root{}", alice.id(), data_dir.display());
    let ballast = Path::new(&inside).join("ballast");
    // The last page of it, too.
    let full = || fs::write(&ballast, vec![0; 8 << 20]).expect_err("full");
    full();
    let mut warned = Vec::new();
    for number in 0..40 {
        let path = world.write(&format!("src/{number}"), &content(1000 + number, number as u64));
        let shared = alice.ok(&format!("share {} lab", quoted(&path)));
        warned.extend(shared["warning"].as_str().map(str::to_owned));
        assert_eq!(alice.row(&number.to_string())["state"], "seeding", "it is shared all the same");
    }
    let warning = warned.first().expect("at some share there is no room");
    assert!(warning.contains("will not come back after a restart: the disk is full"), "{warning}");
    fs::remove_file(&ballast).expect("removed");
    // It is written by itself; the next share hears so.
    let path = world.write("src/last", b"last");
    wait_for("the library", || {
        let shared = alice.ok(&format!("share {} lab", quoted(&path)));
        shared["warning"].is_null().then_some(())
    });
    let copy = world.make_dir("copy.data");
    for name in ["library.redb", "identity.pem", "user"] {
        let from = Path::new(&inside).join(name);
        if from.exists() {
            fs::copy(from, copy.join(name)).expect("copied");
        }
    }
    alice.kill();
    let mut alice = world.client("copy");
    let rows = alice.ok("downloads")["downloads"].as_array().map(Vec::len);
    assert_eq!(rows, Some(41), "all of them were kept");
}

#[test]
fn on_a_full_disk_whoever_logs_in_anew_loses_nothing() {
    let world = World::new();
    let data_dir = world.make_dir("alice.data");
    let Some(mut alice) = world.client_on_small_disk("alice", &data_dir, 6) else { return };
    alice.sign_up();
    alice.ok("create-group lab");
    let mut shared = 0;
    let mut share = |alice: &mut Client| {
        let path = world.write(&format!("src/{shared}"), &content(1000 + shared, shared as u64));
        shared += 1;
        alice.ok(&format!("share {} lab", quoted(&path)))["warning"].is_string()
    };
    assert!(!share(&mut alice), "there is room");
    let ballast = format!("/proc/{}/root{}/ballast", alice.id(), data_dir.display());
    fs::write(&ballast, vec![0; 8 << 20]).expect_err("full");
    wait_for("the disk to be too full", || share(&mut alice).then_some(()));
    alice.ok("logout");
    assert_eq!(alice.ok("downloads")["downloads"], json!([]));
    // It works, or it is said that it does not: what cannot be read is not taken for nothing.
    let rows = |alice: &mut Client| alice.ok("downloads")["downloads"].as_array().map(Vec::len);
    alice.say("login alice alice-secret");
    let answer = alice.answer();
    match answer["ok"] == true {
        true => assert_eq!(rows(&mut alice), Some(shared), "{answer}"),
        false => assert_eq!(alice.ok("whoami")["user"], json!(null), "{answer}"),
    }
    fs::remove_file(&ballast).expect("removed");
    alice.ok("login alice alice-secret");
    assert_eq!(rows(&mut alice), Some(shared), "all of them");
    alice.kill();
}

#[test]
fn of_two_downloads_of_one_name_none_is_cancelled_unless_it_is_said_which() {
    let world = World::new();
    let [mut alice, mut bob, mut carol] = world.lab(["alice", "bob", "carol"]);
    let bytes = [(&mut alice, 226), (&mut carol, 227)].map(|(client, seed)| {
        let bytes = content(8 * MIB as usize, seed);
        let path = world.write(&format!("{}/f", client.name), &bytes);
        client.ok("limit --up 1MiB");
        client.ok(&format!("share {} lab", quoted(&path)));
        bytes
    });
    let dests = ["of alice", "of carol"].map(|name| world.make_dir(name));
    bob.ok(&format!("get lab alice/f {}", quoted(&dests[0])));
    bob.ok(&format!("get lab carol/f {}", quoted(&dests[1])));
    for line in ["cancel lab f", "pause lab f", "stop-share lab f"] {
        assert_eq!(bob.err(line), "ambiguous", "{line}");
    }
    assert_eq!(bob.ok("downloads")["downloads"].as_array().map(Vec::len), Some(2));
    assert!(dests.iter().all(|dest| dest.join(".mtq").is_dir()), "both part files are there");
    bob.ok("cancel lab alice/f");
    assert!(!dests[0].join(".mtq").exists() && dests[1].join(".mtq").is_dir());
    carol.ok("limit --up none");
    bob.ok("wait --timeout 110");
    assert!(fs::read(dests[1].join("f")).expect("arrived") == bytes[1]);
    bob.kill();
    carol.quit();
    alice.quit();
}

#[tokio::test]
async fn two_gets_at_once_are_one_download_and_the_other_leaves_nothing() {
    let net = Net::new();
    let bytes = content(4 * MIB as usize, 228);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, MIB);
    let bob = net.member("bob", &alice).await;
    let [a, b] = ["a", "b"].map(|name| {
        fs::create_dir(net.path(name)).expect("made");
        net.path(name)
    });
    let get = |dest| bob.get(group(), "file.bin".parse().expect("a selector"), dest);
    let (first, second) = tokio::join!(get(&a), get(&b));
    let (begun, refused, empty) = match (first, second) {
        (Ok(begun), Err(error)) => (begun, error, &b),
        (Err(error), Ok(begun)) => (begun, error, &a),
        both => panic!("one of them: {both:?}"),
    };
    assert_eq!(refused.code(), "downloading", "{refused}");
    let rows = bob.downloads();
    assert_eq!((rows.len(), rows[0].number), (1, begun.number));
    assert_eq!(fs::read_dir(empty).expect("there").count(), 0, "no part file of nobody");
    limit_up(&alice, 64 * MIB);
    complete(&bob).await;
    assert!(fs::read(&begun.path).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}

#[test]
fn a_get_that_nobody_waits_for_any_more_leaves_no_part_file() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let net = runtime.block_on(async {
        let net = Net::new();
        let sparse = |path: &Path, bytes: &[u8]| {
            let mut file = fs::File::create(path).expect("made");
            std::io::Write::write_all(&mut file, bytes).expect("written");
            file.set_len(256 << 20).expect("sparse");
        };
        let alice = net.agent("alice").await;
        alice.create_group(group(), false).await.expect("created");
        let path = net.path("file.bin");
        sparse(&path, b"right");
        alice.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
        let bob = net.member("bob", &alice).await;
        // Of the same size, it has to be looked at first.
        let dest = net.path("dest");
        fs::create_dir(&dest).expect("made");
        sparse(&dest.join("file.bin"), b"wrong");
        tokio::select! {
            begun = bob.get(group(), "file.bin".parse().expect("a selector"), &dest) => {
                panic!("too fast: {begun:?}")
            }
            () = until("it to be looked at", || {
                bob.looking().iter().any(|looking| looking.done_bytes > 0).then_some(())
            }) => {}
        }
        assert!(bob.looking().is_empty() && bob.downloads().is_empty());
        bob.shutdown().await;
        alice.shutdown().await;
        net.tracker.shutdown().await;
        net
    });
    // Waits for the thread that looked.
    drop(runtime);
    assert!(!net.path("dest/.mtq").exists(), "what was made for it is gone");
    assert_eq!(fs::read_dir(net.path("dest")).expect("there").count(), 1);
}
