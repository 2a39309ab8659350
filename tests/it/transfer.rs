//! The main job: files of every size and name, from several peers at once.

use std::fs;

use crate::world::{World, content, quoted};

const P: usize = 524_288;

#[test]
fn every_edge_of_size_and_name_arrives_equal() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let dest = world.make_dir("dest");
    for (name, len) in [
        ("empty", 0),
        ("one byte", 1),
        ("-rf", P - 1),
        ("exactly one piece.bin", P),
        ("日本語 é.tar.gz", P + 1),
        ("it's \"quoted\" $HOME", 3 * P + 7),
        (".hidden", 5),
    ] {
        let bytes = content(len, len as u64);
        let path = world.write(&format!("src/{name}"), &bytes);
        let shared = alice.ok(&format!("share {} lab", quoted(&path)));
        assert_eq!(shared["size"], len);
        assert_eq!(shared["pieces"], len.div_ceil(P));
        bob.ok(&format!("get lab {} {}", quoted(name.as_ref()), quoted(&dest)));
        bob.ok("wait --timeout 100");
        assert!(fs::read(dest.join(name)).expect("arrived") == bytes, "{name} differs");
        let row = bob.row(name);
        assert_eq!((&row["state"], &row["stored_bytes"]), (&"seeding".into(), &len.into()));
    }
    assert!(!dest.join(".mtq").exists(), "no part directory is left");
    bob.quit();
    alice.quit();
}

#[test]
fn a_hundred_mebibytes_and_the_metafile() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(100 << 20, 1);
    let path = world.write("big.bin", &bytes);
    let shared = alice.ok(&format!("share {} lab", quoted(&path)));
    let metafile = world.path("big.bin.mtorrent");
    assert_eq!(shared["mtorrent"], metafile.to_str().expect("UTF-8"));
    let text = fs::read_to_string(&metafile).expect("a metafile");
    assert!(text.contains(&format!("sha1 = {}", shared["sha1"])));

    let copy = world.path("copy.bin");
    bob.ok(&format!("get {} {}", quoted(&metafile), quoted(&copy)));
    bob.ok("wait --timeout 110");
    assert!(fs::read(&copy).expect("arrived") == bytes);
    assert_eq!(bob.err(&format!("get lab big.bin {}", quoted(world.dir.path()))), "have");
    bob.quit();
    alice.quit();
}

/// Both leechers ask before any seeder is there, so that all begin together.
#[test]
fn two_leechers_take_from_three_seeders_and_from_each_other() {
    let world = World::new();
    let mut clients = world.lab(["a", "b", "c", "d", "e"]);
    let bytes = content(200 * P, 2);
    for seeder in ["a", "b", "c"] {
        world.write(&format!("{seeder}/film.mkv"), &bytes);
    }
    let share =
        |name: &str| format!("share {} lab", quoted(&world.path(format!("{name}/film.mkv"))));
    // Listed by a, who then goes.
    let [a, b, c, d, e] = &mut clients;
    a.ok(&share("a"));
    for leecher in [&mut *d, &mut *e] {
        let dest = world.make_dir(&leecher.name.clone());
        a.ok("logout");
        leecher.ok(&format!("get lab film.mkv {}", quoted(&dest)));
        let row = leecher.row("film.mkv");
        assert_eq!((&row["state"], &row["stored_bytes"]), (&"downloading".into(), &0.into()));
        a.ok("login a a-secret");
    }
    a.ok(&share("a"));
    b.say(&share("b"));
    c.say(&share("c"));
    for seeder in [&mut *b, &mut *c] {
        assert_eq!(seeder.answer()["ok"], true);
    }
    for leecher in [&mut *d, &mut *e] {
        leecher.ok("wait --timeout 110");
    }
    for (leecher, other) in [(d, "e"), (e, "d")] {
        let name = leecher.name.clone();
        let copy = fs::read(world.path(format!("{name}/film.mkv"))).expect("arrived");
        assert!(copy == bytes, "{name}'s copy differs");
        let row = leecher.row("film.mkv");
        let sources = row["sources"].as_array().expect("sources");
        let gave = |user: &str| {
            sources.iter().any(|s| s["user"] == user && s["pieces"].as_u64() > Some(0))
        };
        assert!(gave(other), "{name} got nothing from {other}: {sources:?}");
        assert!(["a", "b", "c"].iter().any(|user| gave(user)), "{sources:?}");
        let pieces: u64 = sources.iter().filter_map(|s| s["pieces"].as_u64()).sum();
        assert_eq!(pieces, 200, "every piece came once");
    }
    for client in clients {
        client.quit();
    }
}

#[test]
fn listings_are_labels_and_stop_share_withdraws_only_mine() {
    let world = World::new();
    let [mut alice, mut bob, mut carol] = world.lab(["alice", "bob", "carol"]);
    let same = content(2 * P, 3);
    let (ours, theirs) = (world.write("a/data.bin", &same), world.write("b/data.bin", &same));
    let other = world.write("c/data.bin", b"something else");
    let shared = alice.ok(&format!("share {} lab", quoted(&ours)));
    bob.ok(&format!("share {} lab", quoted(&theirs)));
    let files = carol.ok("list-files lab");
    assert_eq!(files["files"].as_array().map(Vec::len), Some(1), "one content, one row");
    assert_eq!(files["files"][0]["sharers"], serde_json::json!(["alice", "bob"]));
    assert_eq!(files["files"][0]["seeders"], 2);

    // The same name for something else: now the name alone means two files.
    carol.ok(&format!("share {} lab", quoted(&other)));
    let dest = world.make_dir("dest");
    assert_eq!(bob.err(&format!("get lab data.bin {}", quoted(&dest))), "ambiguous");
    bob.ok(&format!("get lab carol/data.bin {}", quoted(&dest)));
    bob.ok("wait --timeout 60");
    assert_eq!(fs::read(dest.join("data.bin")).expect("arrived"), b"something else");
    let id = shared["content_id"].as_str().expect("an id");
    carol.ok(&format!("get lab id:{} {}", &id[..8], quoted(&dest)));
    carol.ok("wait --timeout 60");
    assert!(fs::read(dest.join("data (1).bin")).expect("numbered, not replaced") == same);

    let metafile = world.path("a/data.bin.mtorrent");
    alice.ok(&format!("remove {}", quoted(&metafile)));
    assert!(!metafile.exists() && ours.exists(), "the metafile goes, the data stays");
    assert_eq!(alice.err("stop-share lab data.bin"), "not-shared");
    let files = alice.ok("list-files lab");
    let rows = files["files"].as_array().expect("rows");
    assert!(rows.iter().any(|row| row["sharers"] == serde_json::json!(["bob"])), "{rows:?}");
    assert_eq!(alice.ok("search ATA.b")["files"].as_array().map(Vec::len), Some(2));
    for client in [alice, bob, carol] {
        client.quit();
    }
}

#[test]
fn leaving_ends_membership_shares_and_serving() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let path = world.write("f", b"hello");
    bob.ok(&format!("share {} lab", quoted(&path)));
    bob.ok("leave-group lab");
    assert_eq!(bob.err("list-files lab"), "not-a-member");
    assert_eq!(bob.ok("downloads")["downloads"], serde_json::json!([]));
    assert_eq!(alice.ok("list-files lab")["files"], serde_json::json!([]));
    // The owner leaves: the group is nobody's, and its name is free again.
    alice.ok("leave-group lab");
    assert_eq!(bob.err("join-group lab"), "no-such-group");
    bob.ok("create-group lab");
    assert_eq!(alice.ok("list-groups")["groups"][0]["owner"], "bob");
    bob.quit();
    alice.quit();
}

#[test]
fn what_is_there_and_right_is_not_fetched_again_and_what_is_gone_is() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let bytes = content(3 * P + 1, 10);
    let path = world.write("f.bin", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    let get = format!("get lab f.bin {}", quoted(&dest));
    bob.ok(&get);
    bob.ok("wait --timeout 60");
    assert_eq!(bob.err(&get), "have");
    bob.quit();

    // Another session, the same command: a script that runs twice.
    let mut bob = world.client("bob");
    bob.ok("login bob bob-secret");
    assert_eq!(bob.ok(&get)["stored_bytes"], bytes.len());
    bob.ok("wait --timeout 60");
    assert_eq!(bob.row("f.bin")["state"], "seeding");
    assert_eq!(fs::read_dir(&dest).expect("readable").count(), 1);

    // Deleted, it is fetched; in its place something else, it is kept.
    fs::remove_file(dest.join("f.bin")).expect("removed");
    assert_eq!(bob.row("f.bin")["state"], "missing");
    bob.ok(&get);
    bob.ok("wait --timeout 60");
    assert!(fs::read(dest.join("f.bin")).expect("arrived") == bytes);
    fs::write(dest.join("f.bin"), vec![0; bytes.len()]).expect("overwritten");
    bob.ok(&get);
    bob.ok("wait --timeout 60");
    assert!(fs::read(dest.join("f (1).bin")).expect("arrived") == bytes);
    assert!(fs::read(dest.join("f.bin")).expect("kept") == vec![0; bytes.len()]);
    bob.quit();
    alice.quit();
}

#[test]
fn a_metafile_is_replaced_only_by_its_own_share() {
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    alice.ok("create-group other");
    let path = world.write("f", b"one");
    let metafile = world.path("f.mtorrent");
    alice.ok(&format!("share {} lab", quoted(&path)));
    let first = fs::read_to_string(&metafile).expect("written");
    let shared = alice.ok(&format!("share {} other", quoted(&path)));
    assert_eq!(shared["mtorrent"], serde_json::Value::Null);
    assert!(shared["warning"].as_str().expect("a warning").contains("exists"), "{shared}");
    assert_eq!(fs::read_to_string(&metafile).expect("kept"), first);
    fs::write(&path, b"two, longer").expect("changed");
    alice.ok(&format!("share {} lab", quoted(&path)));
    assert_ne!(fs::read_to_string(&metafile).expect("replaced"), first);
    // Its group gone, the metafile can still be removed.
    alice.ok("leave-group lab");
    alice.ok(&format!("remove {}", quoted(&metafile)));
    assert!(!metafile.exists());
    alice.quit();
}
