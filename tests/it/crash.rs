//! Things die at bad moments: nothing verified is lost, and what can go on goes on.

use std::fs;

use crate::world::{Client, World, content, quoted, wait_for};

const P: usize = 524_288;

fn stored(client: &mut Client, name: &str) -> u64 {
    client.row(name)["stored_bytes"].as_u64().unwrap_or(0)
}

#[test]
fn a_killed_leecher_goes_on_with_what_it_had() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(300 * P, 4);
    let path = world.write("film.mkv", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    let get = format!("get lab film.mkv {}", quoted(&dest));
    bob.ok(&get);
    wait_for("some pieces", || (stored(&mut bob, "film.mkv") >= 20 * P as u64).then_some(()));
    bob.kill();

    let mut bob = world.client("bob");
    bob.ok("login bob bob-secret");
    let again = bob.ok(&get);
    let kept = again["stored_bytes"].as_u64().expect("a number");
    assert!(kept >= 20 * P as u64, "only {kept} bytes were kept");
    bob.ok("wait --timeout 110");
    let row = bob.row("film.mkv");
    let fetched = row["sources"][0]["bytes"].as_u64().expect("a number");
    assert_eq!(fetched + kept, bytes.len() as u64, "nothing verified came twice");
    assert!(fs::read(dest.join("film.mkv")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn what_a_crash_left_in_the_part_directory_is_used_where_right_and_never_trusted() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(6 * P + 77, 14);
    let path = world.write("film.mkv", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let id = alice.row("film.mkv")["content_id"].as_str().expect("an id").to_owned();
    // Two pieces reached the disk, one of them torn, and the file is too long; the record is junk,
    // and the next one was never given its name.
    let mut left = vec![0x5a; bytes.len() + 4096];
    left[P..2 * P].copy_from_slice(&bytes[P..2 * P]);
    left[3 * P..3 * P + 9000].copy_from_slice(&bytes[3 * P..3 * P + 9000]);
    world.write(&format!("dest/.mtq/{id}.part"), &left);
    world.write(&format!("dest/.mtq/{id}.resume"), &[0xff; 145]);
    world.write(&format!("dest/.mtq/{id}.resume-new"), b"mtq resume");
    let dest = world.make_dir("dest");
    let answer = bob.ok(&format!("get lab film.mkv {}", quoted(&dest)));
    assert_eq!(answer["stored_bytes"], P);
    bob.ok("wait --timeout 110");
    let fetched = bob.row("film.mkv")["sources"][0]["bytes"].as_u64().expect("a number");
    assert_eq!(fetched, (bytes.len() - P) as u64, "what was right is not fetched");
    assert!(fs::read(dest.join("film.mkv")).expect("arrived") == bytes);
    assert_eq!(fs::read_dir(&dest).expect("read").count(), 1, "nothing is left beside it");
    bob.quit();
    alice.quit();
}

#[test]
fn a_download_without_seeders_waits_and_goes_on_when_one_returns() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(300 * P, 5);
    let path = world.write("film.mkv", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab film.mkv {}", quoted(&dest)));
    wait_for("some pieces", || (stored(&mut bob, "film.mkv") >= 10 * P as u64).then_some(()));
    alice.kill();
    let mut alice = world.client("alice");
    alice.ok("login alice alice-secret");
    alice.ok(&format!("share {} lab", quoted(&path)));
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("film.mkv")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn a_transfer_outlives_its_tracker() {
    let mut world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(300 * P, 6);
    let path = world.write("film.mkv", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab film.mkv {}", quoted(&dest)));
    wait_for("a piece", || (stored(&mut bob, "film.mkv") > 0).then_some(()));
    world.kill_tracker();
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("film.mkv")).expect("arrived") == bytes);
    assert_eq!(bob.err("list-groups"), "no-tracker");
    // Killed, it forgot nothing: the device logs in by its key, and both are seeders.
    world.start_tracker();
    wait_for("the tracker", || {
        bob.say("list-files lab");
        let answer = bob.answer();
        let file = &answer["result"]["files"][0];
        (file["name"] == "film.mkv" && file["seeders"] == 2).then_some(())
    });
    world.stop_tracker();
}

#[test]
fn a_signal_ends_a_client_in_order() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let path = world.write("f", &content(40 * P, 7));
    alice.ok(&format!("share {} lab", quoted(&path)));
    assert_eq!(bob.ok("list-files lab")["files"][0]["seeders"], 1);
    assert_eq!(alice.terminate(), 130);
    wait_for("the tracker to see it", || {
        (bob.ok("list-files lab")["files"][0]["seeders"] == 0).then_some(())
    });
    bob.quit();
}

#[test]
fn a_file_changed_on_disk_is_never_served() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let path = world.write("f.bin", &content(4 * P, 8));
    alice.ok(&format!("share {} lab", quoted(&path)));
    fs::write(&path, content(4 * P, 9)).expect("changed");
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab f.bin {}", quoted(&dest)));
    wait_for("the seeder to notice", || (alice.row("f.bin")["state"] == "changed").then_some(()));
    assert_eq!(bob.row("f.bin")["stored_bytes"], 0);
    assert_eq!(bob.err("wait --timeout 1"), "timeout");
    wait_for("the listing to say so", || {
        (bob.ok("list-files lab")["files"][0]["seeders"] == 0).then_some(())
    });
    // Put back as it was and shared again, it is served to those who still wait.
    fs::write(&path, content(4 * P, 8)).expect("changed back");
    alice.ok(&format!("share {} lab", quoted(&path)));
    assert_eq!(alice.row("f.bin")["state"], "seeding");
    bob.ok("wait --timeout 100");
    assert!(fs::read(dest.join("f.bin")).expect("arrived") == content(4 * P, 8));
    bob.quit();
    alice.quit();
}

#[test]
fn a_reconnecting_peer_with_hundreds_of_swarms_is_served() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let dest = world.make_dir("dest");
    const COUNT: usize = 400;
    for number in 0..COUNT {
        let path = world.write(&format!("src/{number}"), format!("file {number}").as_bytes());
        alice.ok(&format!("share {} lab", quoted(&path)));
    }
    // Nobody serves while all of them are asked for; then all open at once.
    alice.ok("logout");
    for number in 0..COUNT {
        bob.ok(&format!("get lab {number} {}", quoted(&dest)));
    }
    alice.ok("login alice alice-secret");
    for number in 0..COUNT {
        alice.ok(&format!("share {} lab", quoted(&world.path(format!("src/{number}")))));
    }
    bob.ok("wait --timeout 110");
    for number in 0..COUNT {
        let copy = fs::read_to_string(dest.join(number.to_string())).expect("arrived");
        assert_eq!(copy, format!("file {number}"));
    }
    bob.quit();
    alice.quit();
}
