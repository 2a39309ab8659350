//! Whatever ends a client, all it shared and downloaded comes back with its user: after a kill, after
//! a logout, and nothing verified is fetched again.

use std::fs;
use std::path::Path;

use mtq::client::metafile::MetafileTo;
use serde_json::{Value, json};

use crate::net::{Net, group, password, user};
use crate::swarm::{MIB, P, complete, limit_up, until};
use crate::world::{Client, World, content, quoted, wait_for};

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn until_state(client: &mut Client, name: &str, state: &str) -> Value {
    wait_for(state, || Some(client.row(name)).filter(|row| row["state"] == state))
}

/// Alice shares `file.bin` at 4 MiB/s, of which bob has some; where it goes.
fn begun(world: &World, alice: &mut Client, bob: &mut Client, bytes: &[u8]) -> std::path::PathBuf {
    let path = world.write("file.bin", bytes);
    alice.ok("limit --up 4MiB");
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab file.bin {}", quoted(&dest)));
    stored(bob, 2 * MIB);
    dest
}

fn stored(client: &mut Client, bytes: u64) -> Value {
    wait_for("bytes", || {
        Some(client.row("file.bin")).filter(|row| number(row, "stored_bytes") >= bytes)
    })
}

/// Starts the client again; nothing is said to it.
fn again(world: &World, client: Client) -> Client {
    let name = client.name.clone();
    client.kill();
    world.client(&name)
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn a_sharer_that_was_killed_shares_again_by_being_started() {
    let world = World::new();
    let [alice, mut bob] = world.lab(["alice", "bob"]);
    let mut alice = alice;
    let bytes = content(5 * P + 9, 201);
    let path = world.write("file.bin", &bytes);
    let shared = alice.ok(&format!("share {} lab", quoted(&path)));
    assert_eq!(shared["warning"], Value::Null);
    let before = alice.row("file.bin");
    let mut alice = again(&world, alice);
    let dest = world.make_dir("dest");
    bob.ok(&format!("get lab file.bin {}", quoted(&dest)));
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    let now = alice.row("file.bin");
    for field in ["download", "state", "group", "path", "content_id", "size"] {
        assert_eq!(now[field], before[field], "{field}");
    }
    // What was downloaded is shared again as well.
    let mut bob = again(&world, bob);
    until_state(&mut bob, "file.bin", "seeding");
    wait_for("both to seed", || {
        (alice.ok("list-files lab")["files"][0]["seeders"] == 2).then_some(())
    });
    // Stopped, it stays so.
    alice.ok("stop-share lab file.bin");
    let mut alice = again(&world, alice);
    assert_eq!(alice.ok("downloads")["downloads"], json!([]));
    alice.quit();
    bob.quit();
}

#[test]
fn a_download_that_was_killed_goes_on_by_itself_and_fetches_nothing_twice() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(24 * MIB as usize, 202);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let had = number(&bob.row("file.bin"), "stored_bytes");
    let mut bob = again(&world, bob);
    let row = until_state(&mut bob, "file.bin", "downloading");
    assert!(number(&row, "stored_bytes") >= had, "{row}");
    alice.ok("limit --up none");
    bob.ok("wait --timeout 110");
    let row = bob.row("file.bin");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    let fetched = number(&row, "received_bytes");
    assert!(fetched <= bytes.len() as u64 - had, "{fetched} bytes came after {had} of them");
    assert_eq!(files(&dest), 1, "nothing is left beside it");
    bob.quit();
    alice.quit();
}

#[test]
fn a_paused_download_stays_so_until_it_is_resumed() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(12 * MIB as usize, 203);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let paused = bob.ok("pause lab file.bin");
    let had = number(&paused, "stored_bytes");
    assert_eq!((&paused["state"], had >= 2 * MIB), (&json!("paused"), true), "{paused}");
    assert_eq!(bob.ok("pause lab file.bin")["state"], "paused", "twice is fine");
    bob.ok("wait --timeout 1");
    wait_for("the sharer to see it", || {
        (alice.ok("list-files lab")["files"][0]["leechers"] == 0).then_some(())
    });
    assert_eq!(number(&bob.row("file.bin"), "stored_bytes"), had, "nothing comes");
    // Its part file is nobody's.
    let part = fs::File::open(paused["path"].as_str().expect("a path")).expect("there");
    part.try_lock().expect("let go");
    drop(part);

    let mut bob = again(&world, bob);
    let row = bob.row("file.bin");
    assert_eq!((&row["state"], number(&row, "stored_bytes")), (&json!("paused"), had));
    let known = bob.ok("login bob");
    assert_eq!((&known["paused"], &known["downloading"]), (&json!(1), &json!(0)), "{known}");
    bob.ok("wait --timeout 60");
    let resumed = bob.ok("resume lab file.bin");
    assert_eq!(resumed["state"], "downloading");
    assert_eq!(bob.err("resume lab file.bin"), "not-paused");
    alice.ok("limit --up none");
    bob.ok("wait --timeout 110");
    let row = bob.row("file.bin");
    assert_eq!(number(&row, "received_bytes") + had, bytes.len() as u64, "after a clean stop");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    for (line, code) in [
        ("pause lab file.bin", "not-downloading"),
        ("resume lab file.bin", "not-paused"),
        ("cancel lab file.bin", "not-downloading"),
        ("pause lab other", "not-here"),
    ] {
        assert_eq!(bob.err(line), code, "{line}");
    }
    assert_eq!(alice.err("cancel lab file.bin"), "not-downloading", "a share");
    bob.kill();
    alice.quit();
}

#[test]
fn pausing_and_resuming_in_one_run_loses_no_count() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(10 * MIB as usize, 204);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    for _ in 0..3 {
        let had = number(&bob.ok("pause lab file.bin"), "stored_bytes");
        assert_eq!(bob.ok("resume lab file.bin")["state"], "downloading");
        stored(&mut bob, had + P as u64);
    }
    bob.ok("wait --timeout 110");
    let row = bob.row("file.bin");
    let (received, wasted) = (number(&row, "received_bytes"), &row["wasted"]);
    let wasted: u64 =
        ["bad", "late", "stolen", "broken"].map(|why| number(wasted, why)).iter().sum();
    assert_eq!(received - wasted, bytes.len() as u64, "{row}");
    assert_eq!(row["wasted"]["bad"], 0);
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn what_is_cancelled_is_deleted_or_kept() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(16 * MIB as usize, 205);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let kept = bob.ok("cancel lab file.bin --keep");
    assert_eq!((&kept["state"], &kept["deleted_bytes"]), (&json!("downloading"), &json!(0)));
    assert_eq!(bob.ok("downloads")["downloads"], json!([]));
    let mut bob = again(&world, bob);
    assert_eq!(bob.ok("downloads")["downloads"], json!([]), "also after a restart");
    let get = format!("get lab file.bin {}", quoted(&dest));
    let begun = bob.ok(&get);
    assert!(number(&begun, "stored_bytes") >= 2 * MIB, "{begun}");
    stored(&mut bob, 3 * MIB);
    let cancelled = bob.ok("cancel lab file.bin");
    assert!(number(&cancelled, "deleted_bytes") >= 3 * MIB, "{cancelled}");
    assert_eq!(files(&dest), 0, "neither part nor directory");
    assert_eq!(bob.err("cancel lab file.bin"), "not-here");
    // Paused ones too.
    assert_eq!(bob.ok(&get)["stored_bytes"], 0);
    stored(&mut bob, MIB);
    bob.ok("pause lab file.bin");
    let mut bob = again(&world, bob);
    assert!(number(&bob.ok("cancel lab file.bin"), "deleted_bytes") >= MIB);
    assert_eq!(files(&dest), 0);
    bob.quit();
    alice.quit();
}

#[test]
fn a_login_brings_back_what_a_logout_stopped_and_nobody_elses() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(20 * MIB as usize, 206);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let own = world.write("own.bin", &content(P, 207));
    bob.ok(&format!("share {} lab", quoted(&own)));
    assert_eq!(bob.ok("logout")["stopped"], 2);
    let had = wait_for("both to be gone", || {
        assert_eq!(bob.ok("downloads")["downloads"], json!([]));
        let files = alice.ok("list-files lab")["files"].clone();
        let own = files.as_array()?.iter().find(|file| file["name"] == "own.bin")?.clone();
        (own["seeders"] == 0).then_some(2 * MIB)
    });
    // Somebody else at the same machine, in the same group.
    bob.ok("create-user carol carol-secret");
    let carol = bob.ok("login carol carol-secret");
    assert_eq!(
        (&carol["sharing"], &carol["downloading"], &carol["skipped"]),
        (&json!(0), &json!(0), &json!([]))
    );
    bob.ok("join-group lab");
    alice.ok("accept-request lab carol");
    assert_eq!(bob.ok("downloads")["downloads"], json!([]));
    let hers = world.write("hers.bin", &content(P, 208));
    bob.ok(&format!("share {} lab", quoted(&hers)));
    bob.ok("logout");
    let back = bob.ok("login bob bob-secret");
    assert_eq!((&back["sharing"], &back["downloading"]), (&json!(1), &json!(1)), "{back}");
    assert_eq!(bob.row("hers.bin"), Value::Null);
    alice.ok("limit --up none");
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    assert!(number(&bob.row("file.bin"), "received_bytes") <= bytes.len() as u64 - had);
    wait_for("all to seed", || {
        let files = alice.ok("list-files lab")["files"].clone();
        let seeders = |name: &str| {
            let files = files.as_array().expect("rows");
            let file = files.iter().find(|file| file["name"] == name);
            file.expect("listed")["seeders"].as_u64()
        };
        (seeders("own.bin") == Some(1) && seeders("file.bin") == Some(2)).then_some(())
    });
    bob.quit();
    alice.quit();
}

#[test]
fn without_any_tracker_all_is_there_and_waits() {
    let mut world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(12 * MIB as usize, 209);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    world.stop_tracker();
    let (mut alice, mut bob) = (again(&world, alice), again(&world, bob));
    until_state(&mut alice, "file.bin", "seeding");
    until_state(&mut bob, "file.bin", "downloading");
    bob.ok("pause lab file.bin");
    assert_eq!(bob.ok("resume lab file.bin")["state"], "downloading");
    world.start_tracker();
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn one_content_in_two_groups_is_one_download_after_a_restart_too() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(12 * MIB as usize, 210);
    alice.ok("create-group other");
    bob.ok("join-group other");
    alice.ok("accept-request other bob");
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let file = quoted(&world.path("file.bin"));
    alice.ok(&format!("share {file} other --name same.bin"));
    bob.ok(&format!("get other same.bin {}", quoted(&world.make_dir("elsewhere"))));
    let mut alice = again(&world, alice);
    let mut bob = again(&world, bob);
    until_state(&mut bob, "file.bin", "downloading");
    let other = until_state(&mut bob, "same.bin", "downloading");
    assert_eq!(bob.row("file.bin")["path"], other["path"], "one part file");
    bob.ok("pause other same.bin");
    assert_eq!(bob.row("file.bin")["state"], "paused", "in both groups");
    let mut bob = again(&world, bob);
    bob.ok("resume lab file.bin");
    // Cancelled in one group it goes on in the other.
    assert_eq!(bob.ok("cancel lab file.bin")["deleted_bytes"], 0);
    bob.ok("wait --timeout 110");
    let row = bob.row("same.bin");
    assert_eq!(row["state"], "seeding");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    let mut bob = again(&world, bob);
    bob.ok(&format!("get lab file.bin {}", quoted(&dest)));
    until_state(&mut bob, "file.bin", "seeding");
    let mut bob = again(&world, bob);
    for name in ["file.bin", "same.bin"] {
        let row = until_state(&mut bob, name, "seeding");
        assert_eq!(row["path"], dest.join("file.bin").to_str().expect("UTF-8"));
    }
    let seeders = |client: &mut Client, group: &str| {
        client.ok(&format!("list-files {group}"))["files"][0]["seeders"].clone()
    };
    wait_for("both to seed in both", || {
        let both = ["lab", "other"].map(|group| seeders(&mut alice, group));
        (both == [json!(2), json!(2)]).then_some(())
    });
    bob.quit();
    alice.quit();
}

#[test]
fn whoever_is_no_member_any_more_is_told_at_the_start() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let own = world.write("own.bin", &content(P, 211));
    bob.ok(&format!("share {} lab", quoted(&own)));
    bob.kill();
    alice.ok("kick lab bob");
    let mut bob = world.client("bob");
    let skipped = wait_for("the news", || {
        let known = bob.ok("login bob");
        known["skipped"].as_array().filter(|skipped| !skipped.is_empty()).cloned()
    });
    assert_eq!(
        (&skipped[0]["code"], &skipped[0]["name"]),
        (&json!("not-a-member"), &json!("own.bin"))
    );
    assert_eq!(bob.ok("downloads")["downloads"], json!([]));
    let mut bob = again(&world, bob);
    assert_eq!(bob.ok("login bob")["skipped"], json!([]), "told once");
    bob.quit();
    alice.quit();
}

#[test]
fn a_name_that_means_another_group_now_can_be_used_all_the_same() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let own = world.write("own.bin", &content(P, 212));
    bob.ok(&format!("share {} lab", quoted(&own)));
    bob.kill();
    // The group ends while he is away, another gets its name, and he is let in on another device.
    alice.ok("kick lab bob");
    alice.ok("leave-group lab");
    alice.ok("create-group lab");
    let mut second = world.client("second");
    second.ok("login bob bob-secret");
    second.ok("join-group lab");
    alice.ok("accept-request lab bob");
    second.quit();
    let mut bob = world.client("bob");
    let code = wait_for("the news", || {
        let known = bob.ok("login bob");
        known["skipped"][0]["code"].as_str().map(str::to_owned)
    });
    assert!(["other-group", "not-a-member"].contains(&code.as_str()), "{code}");
    assert_eq!(alice.ok("list-files lab")["files"], json!([]), "it is shared with nobody else");
    bob.ok(&format!("share {} lab", quoted(&own)));
    let dest = world.make_dir("dest");
    alice.ok(&format!("get lab own.bin {}", quoted(&dest)));
    alice.ok("wait --timeout 110");
    let mut bob = again(&world, bob);
    wait_for("both to seed", || {
        (bob.ok("list-files lab")["files"][0]["seeders"] == 2).then_some(())
    });
    bob.kill();
    alice.quit();
}

#[test]
fn a_signal_in_the_midst_of_all_loses_nothing() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(16 * MIB as usize, 213);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let had = number(&bob.row("file.bin"), "stored_bytes");
    assert_eq!((bob.terminate(), alice.terminate()), (130, 130));
    // A script is not to blame for what it did not begin.
    assert!(world.script("bob", &[], "downloads\n").status.success());
    let (alice, mut bob) = (world.client("alice"), world.client("bob"));
    let row = until_state(&mut bob, "file.bin", "downloading");
    assert!(number(&row, "stored_bytes") >= had, "{row}");
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    assert!(number(&bob.row("file.bin"), "received_bytes") <= bytes.len() as u64 - had);
    bob.quit();
    alice.quit();
}

#[test]
fn a_download_whose_disk_is_away_fails_and_does_not_begin_again_elsewhere() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(16 * MIB as usize, 214);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    let had = number(&bob.row("file.bin"), "stored_bytes");
    bob.kill();
    // As when a disk is not mounted: its mount point is empty.
    let aside = world.path("aside");
    fs::rename(&dest, &aside).expect("moved");
    fs::create_dir(&dest).expect("made");
    let mut bob = world.client("bob");
    let row = until_state(&mut bob, "file.bin", "failed");
    assert_eq!(row["error"]["code"], "not-found", "{row}");
    let known = bob.ok("login bob");
    assert_eq!(known["skipped"][0]["code"], "not-found", "{known}");
    assert_eq!(files(&dest), 0, "nothing is begun there");
    bob.ok("wait --timeout 60");
    fs::remove_dir(&dest).expect("removed");
    fs::rename(&aside, &dest).expect("back");
    // As when it is mounted: nobody says anything.
    let row = until_state(&mut bob, "file.bin", "downloading");
    assert!(number(&row, "stored_bytes") >= had, "{row}");
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn a_file_that_got_its_name_just_before_a_crash_is_not_fetched_again() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(6 * MIB as usize, 215);
    let dest = begun(&world, &mut alice, &mut bob, &bytes);
    bob.kill();
    // What was known while it was under way.
    let (library, old) = (world.path("bob.data/library.redb"), world.path("old.redb"));
    fs::copy(&library, &old).expect("copied");
    // Something else has its name by then.
    fs::write(dest.join("file.bin"), b"something else").expect("written");
    let mut bob = world.client("bob");
    bob.ok("wait --timeout 110");
    bob.kill();
    assert!(fs::read(dest.join("file (1).bin")).expect("arrived") == bytes);
    fs::copy(&old, &library).expect("put back");
    let mut bob = world.client("bob");
    let row = until_state(&mut bob, "file.bin", "seeding");
    assert_eq!(row["path"], dest.join("file (1).bin").to_str().expect("UTF-8"));
    assert_eq!(row["received_bytes"], 0, "{row}");
    assert_eq!(files(&dest), 2);
    bob.quit();
    alice.quit();
}

/// Begins something, and waits for it no longer than it takes to begin it.
async fn dropped<T: std::fmt::Debug>(begun: impl Future<Output = T>) {
    tokio::select! {
        biased;
        done = begun => panic!("too fast: {done:?}"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn a_login_or_logout_that_nobody_waits_for_is_not_left_half_done() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(P, 216)).await;
    dropped(alice.logout()).await;
    until("the end of the login", || alice.user().is_none().then_some(())).await;
    assert!(alice.downloads().is_empty());
    dropped(alice.login(user("alice"), password())).await;
    until("what she shared", || (alice.overview().sharing == 1).then_some(())).await;
    assert_eq!(alice.user(), Some(user("alice")));
    // Whatever she does now is kept.
    let path = net.path("second");
    fs::write(&path, b"second").expect("written");
    let shared = alice.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    assert_eq!(shared.warning, None);
    assert_eq!(alice.logout().await.expect("logged out"), 2);
    let back = alice.login(user("alice"), password()).await.expect("logged in");
    assert_eq!((back.overview.sharing, back.overview.skipped.len()), (2, 0));
    net.end([alice]).await;
}

#[tokio::test]
async fn logged_in_twice_at_once_a_download_goes_on_once() {
    let net = Net::new();
    let bytes = content(8 * MIB as usize, 217);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    net.begin("bob", &bob).await;
    let had = crate::swarm::stored(&bob, MIB).await.stored_bytes;
    assert_eq!(bob.logout().await.expect("logged out"), 1);
    let login = || bob.login(user("bob"), password());
    let (first, second) = tokio::join!(login(), login());
    assert_eq!(first.expect("logged in").user, second.expect("logged in").user);
    assert_eq!(bob.downloads().len(), 1);
    limit_up(&alice, 64 * MIB);
    let row = complete(&bob).await;
    let (received, _) = row.progress.received();
    assert!(received <= bytes.len() as u64 - had, "{row:?}");
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}
