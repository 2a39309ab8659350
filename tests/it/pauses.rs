//! Downloads that cannot go on say why, wait, and go on by themselves; what was here stays here.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use mtq::client::library::EntryState;
use mtq::client::report::Notice;
use mtq::clock;
use mtq::swarm::hold::Hold;

use crate::net::{Net, group, soon};
use crate::swarm::{
    MIB, P, agent_in, begin, complete, gave, held, limit_up, moves, progress, stored, until,
};
use crate::world::{Client, DEADLINE, World, content, quoted, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_seeders_a_download_waits_and_says_so() {
    let world = World::new();
    let [mut alice, mut owner] = world.lab(["alice", "owner"]);
    alice.ok("transfer-group lab owner");
    let bytes = content(16 * MIB as usize, 61);
    let path = world.write("file.bin", &bytes);
    alice.ok("limit --up 4MiB");
    let share = format!("share {} lab", quoted(&path));
    alice.ok(&share);
    let bob = agent_in(&world, "bob", &mut owner).await;
    let mut notices = bob.notices();
    begin(&bob, group(), "file.bin", &world.path("bob")).await;
    stored(&bob, 4 * MIB).await;
    alice.kill();
    let killed = clock::monotonic();
    assert_eq!(held(&mut notices).await, Hold::NoSource);
    println!("said after {:.1?}", killed.elapsed());
    let now = progress(&bob);
    assert_eq!(now.hold, Some(Hold::NoSource));
    assert!(now.stored_bytes < bytes.len() as u64);
    let mut alice = world.client("alice");
    alice.ok("login alice");
    alice.ok(&share);
    moves(&mut notices).await;
    let row = complete(&bob).await;
    // One device, whichever process it runs in.
    assert_eq!(gave(&row.progress, "alice"), bytes.len() as u64);
    assert_eq!(row.progress.hold, None);
    println!("{:?}", row.progress.received().1);
    assert!(fs::read(world.path("bob/file.bin")).expect("arrived") == bytes);
    bob.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_cut_short_and_deleted_while_they_are_sent_stop_alone() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    alice.ok("limit --up 4MiB");
    let files = [("cut", 66), ("gone", 67), ("kept", 68)].map(|(name, seed)| {
        let bytes = content(8 * MIB as usize, seed);
        let path = world.write(&format!("src/{name}"), &bytes);
        alice.ok(&format!("share {} lab", quoted(&path)));
        (name, path, bytes)
    });
    let bob = agent_in(&world, "bob", &mut alice).await;
    let mut notices = bob.notices();
    for (name, ..) in &files {
        begin(&bob, group(), name, &world.path("bob")).await;
    }
    until("a piece of each", || {
        bob.downloads().iter().all(|row| row.progress.stored_bytes > 0).then_some(())
    })
    .await;
    let [(_, cut, _), (_, gone, _), _] = &files;
    let file = File::options().write(true).open(cut).expect("opened");
    file.set_len(P as u64 + 1).expect("cut short");
    fs::remove_file(gone).expect("deleted");
    for _ in 0..2 {
        assert_eq!(held(&mut notices).await, Hold::NoSource);
    }
    until("the third", || {
        let rows = bob.downloads();
        let whole = rows.iter().find(|row| row.name.as_str() == "kept").expect("a row");
        (whole.state == EntryState::Seeding).then_some(())
    })
    .await;
    // The sharer lives, and is told which.
    for (name, state) in [("cut", "changed"), ("gone", "missing"), ("kept", "seeding")] {
        assert_eq!(alice.row(name)["state"], state, "{name}");
    }
    let before: Vec<_> = bob.downloads().iter().map(|row| row.progress.stored_bytes).collect();
    assert!(before[0] < 8 * MIB && before[1] < 8 * MIB, "{before:?}");
    for (_, path, bytes) in &files[..2] {
        fs::write(path, bytes).expect("put back");
        alice.ok(&format!("share {} lab", quoted(path)));
    }
    let rows = bob.wait(Some(DEADLINE)).await.expect("complete");
    for row in &rows {
        assert_eq!(gave(&row.progress, "alice"), 8 * MIB, "{} came twice", row.name);
        let bad: u32 = row.progress.sources.values().map(|source| source.bad_pieces).sum();
        assert_eq!(bad, 0, "{}", row.name);
    }
    for (name, _, bytes) in &files {
        assert!(fs::read(world.path("bob").join(name)).expect("arrived") == *bytes, "{name}");
    }
    bob.shutdown().await;
    alice.quit();
}

#[tokio::test]
async fn a_file_changed_before_it_is_asked_for_is_not_sent_and_its_sharer_is_told() {
    let net = Net::new();
    let bytes = content(4 * P, 70);
    let (alice, _) = net.seeder(&bytes).await;
    let bob = net.member("bob", &alice).await;
    let (mut of_alice, mut of_bob) = (alice.notices(), bob.notices());
    fs::write(net.path("file.bin"), content(4 * P, 71)).expect("changed");
    net.begin("bob", &bob).await;
    assert_eq!(held(&mut of_bob).await, Hold::NoSource);
    assert_eq!(progress(&bob).received().0, 0, "not a byte of it is sent");
    soon("the news", async {
        while !matches!(of_alice.recv().await.expect("news"), Notice::Changed { .. }) {}
    })
    .await;
    assert!(alice.downloads()[0].changed);
    fs::write(net.path("file.bin"), &bytes).expect("put back");
    net.share_too("again", &alice).await;
    complete(&bob).await;
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}

/// Does something to the place of a download in its midst; what makes it whole again, if it does not
/// heal by itself.
async fn interrupt(number: u64, harm: impl Fn(&Path), mend: impl Fn(&Path)) {
    let net = Net::new();
    let bytes = content(16 * MIB as usize, number);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    let mut notices = bob.notices();
    net.begin("bob", &bob).await;
    stored(&bob, 3 * MIB).await;
    let place = net.path("bob");
    harm(&place);
    match held(&mut notices).await {
        Hold::Disk(words) => {
            println!("{words}");
            assert!(words.contains(place.to_str().expect("UTF-8")), "{words}");
        }
        other => panic!("{other}"),
    }
    let row = &bob.downloads()[0];
    assert_eq!(row.state, EntryState::Downloading);
    mend(&place);
    moves(&mut notices).await;
    let row = complete(&bob).await;
    assert_eq!(gave(&row.progress, "alice"), bytes.len() as u64);
    assert_eq!(row.progress.received().1.total(), 0, "nothing came in vain: {:?}", row.progress);
    assert!(fs::read(place.join("file.bin")).expect("arrived") == bytes);
    assert!(!place.join(".mtq").exists(), "no part directory is left");
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn a_download_whose_directory_is_removed_goes_on_when_it_is_there_again() {
    let remove = |place: &Path| fs::remove_dir_all(place).expect("removed");
    interrupt(62, remove, |place| fs::create_dir(place).expect("made")).await;
}

#[tokio::test]
async fn a_download_whose_part_file_is_deleted_goes_on_with_all_it_had() {
    let remove = |place: &Path| fs::remove_dir_all(place.join(".mtq")).expect("removed");
    interrupt(63, remove, |_| {}).await;
}

#[tokio::test]
async fn a_download_whose_directory_is_another_disk_for_a_while_goes_on() {
    // As when a disk is taken out: its mount point is empty, and then it is back.
    let aside = |place: &Path| place.with_extension("aside");
    let swap = |place: &Path| {
        fs::rename(place, aside(place)).expect("moved");
        fs::write(place, b"no directory").expect("written");
    };
    interrupt(64, swap, |place| {
        fs::remove_file(place).expect("removed");
        fs::rename(aside(place), place).expect("back");
    })
    .await;
}

#[tokio::test]
async fn a_paused_download_can_be_stopped_and_begun_again() {
    let net = Net::new();
    let bytes = content(8 * MIB as usize, 72);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    let mut notices = bob.notices();
    net.begin("bob", &bob).await;
    stored(&bob, 2 * MIB).await;
    // Moved away with all that is in it.
    let (place, aside) = (net.path("bob"), net.path("aside"));
    fs::rename(&place, &aside).expect("moved");
    assert!(matches!(held(&mut notices).await, Hold::Disk(_)));
    let kept = progress(&bob).stored_bytes;
    bob.stop_share(group(), "file.bin".parse().expect("a selector")).await.expect("stopped");
    assert!(bob.downloads().is_empty());
    let again = begin(&bob, group(), "file.bin", &aside).await;
    // What came while the disk was away could be written all the same, to the file that was open.
    assert!(again.stored_bytes >= kept, "{} of {kept}", again.stored_bytes);
    let row = complete(&bob).await;
    assert_eq!(gave(&row.progress, "alice") + again.stored_bytes, bytes.len() as u64);
    assert!(fs::read(aside.join("file.bin")).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn a_part_file_cut_short_by_somebody_is_made_whole() {
    let net = Net::new();
    let bytes = content(8 * MIB as usize, 73);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    net.begin("bob", &bob).await;
    stored(&bob, 3 * MIB).await;
    let part = bob.downloads()[0].path.clone();
    let file = File::options().write(true).open(part).expect("opened");
    file.set_len(MIB).expect("cut short");
    complete(&bob).await;
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}

#[test]
fn a_full_disk_pauses_a_download_until_there_is_room() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    let place = world.make_dir("small");
    let Some(mut bob) = world.client_on_small_disk("bob", &place, 24) else { return };
    bob.sign_up();
    bob.ok("join-group lab");
    alice.ok("accept-request lab bob");
    let bytes = content(16 * MIB as usize, 65);
    for name in ["file.bin", "too large"] {
        let bytes = if name == "file.bin" { bytes.clone() } else { content(25 << 20, 69) };
        let path = world.write(&format!("src/{name}"), &bytes);
        alice.ok(&format!("share {} lab", quoted(&path)));
    }
    // What does not fit at all is refused before a byte comes.
    assert_eq!(bob.err(&format!("get lab 'too large' {}", quoted(&place))), "no-space");
    alice.ok("limit --up 2MiB");
    bob.ok(&format!("get lab file.bin {}", quoted(&place)));
    let stored = |bob: &mut Client| bob.row("file.bin")["stored_bytes"].as_u64().expect("a number");
    wait_for("some pieces", || (stored(&mut bob) >= 2 * MIB).then_some(()));
    // As it sees it, the disk is elsewhere.
    let inside = format!("/proc/{}/root{}", bob.id(), place.display());
    let inside = Path::new(&inside);
    let ballast = inside.join("ballast");
    let mut file = File::create(&ballast).expect("made");
    let full = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    wait_for("the pause", || {
        let hold = bob.row("file.bin")["hold"].clone();
        let message = hold["message"].as_str().unwrap_or_default();
        (hold["code"] == "disk" && message.contains("the disk is full")).then_some(())
    });
    assert_eq!(bob.row("file.bin")["state"], "downloading");
    assert!(stored(&mut bob) < bytes.len() as u64);
    drop(file);
    fs::remove_file(&ballast).expect("removed");
    bob.ok("wait --timeout 110");
    assert!(fs::read(inside.join("file.bin")).expect("arrived") == bytes);
    let row = bob.row("file.bin");
    assert_eq!(row["sources"][0]["bytes"], bytes.len(), "nothing came twice");
    bob.quit();
    alice.quit();
}
