//! Several trackers as real processes, of which some are down for a while, new, lost or from an old
//! backup: what one acknowledged, all have in the end.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use mtq::clock;
use mtq::error_code::ErrorCode;
use mtq::limits::SNAPSHOT_AFTER;
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::refusal::Refusal;
use mtq::tracker::server::{Tracker, TrackerConfig};
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::identity::Identity;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Device, Line, client_until, named, small, until};
use crate::durable::grow_old;
use crate::net::{loopback, request_id, user};
use crate::world::{content, free_port, quoted, wait_for};

/// A tracker that was away is level within this; really it is a second or two.
const LEVEL_WITHIN: Duration = Duration::from_secs(15);

/// Writes `count` changes of a user's own group at one tracker: files and settings.
async fn write(line: &Line, name: &str, count: usize) {
    let group = named(name);
    line.create(&group).await;
    for number in 0..count - 1 {
        match number % 4 {
            0 => line.share(&group, &format!("{name}.{number}")).await,
            _ => {
                let (request_id, offline_grace) = (request_id(), number as u32);
                let group = group.clone();
                line.granted(Request::SetGroup { request_id, group, offline_grace }).await;
            }
        }
    }
}

/// The files that [`write`] shared.
fn written(name: &str, count: usize) -> Vec<String> {
    let mut names: Vec<_> =
        (0..count - 1).filter(|n| n % 4 == 0).map(|n| format!("{name}.{n}")).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracker_that_was_down_is_level_at_once_when_it_is_back() {
    const WRITERS: usize = 8;
    const EACH: usize = 125;
    let mut cluster = Cluster::new(2);
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        writers.push(Device::of(&format!("u{number}"), &cluster.link(0)).await);
    }
    cluster.wait_level();
    cluster.kill(1);
    let before = cluster.status(0).expect("up")["ops"].as_u64().expect("a count");
    let begun = clock::monotonic();
    let mut tasks = JoinSet::new();
    for (number, (device, line)) in writers.into_iter().enumerate() {
        tasks.spawn(async move {
            write(&line, &format!("u{number}"), EACH).await;
            (device, line)
        });
    }
    let writers = tasks.join_all().await;
    let ops = cluster.status(0).expect("up")["ops"].as_u64().expect("a count") - before;
    assert_eq!(ops, (WRITERS * EACH) as u64);
    println!("{ops} ops on one tracker took {:?}", begun.elapsed());

    cluster.start(1);
    let up = clock::monotonic();
    cluster.wait_agreed();
    let took = up.elapsed();
    println!("level {took:?} after the other one was up");
    assert!(took < LEVEL_WITHIN, "it took {took:?}");
    cluster.wait_level();
    for (device, _) in &writers {
        let line = device.known_at(&cluster.link(1)).await;
        let Reply::LoggedIn { user } = line.granted(Request::LoginByKey).await else { panic!() };
        let files = line.files(&named(user.as_str())).await;
        let names: Vec<_> = files.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, written(user.as_str(), EACH));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_trackers_any_one_is_enough() {
    const EACH: usize = 60;
    let mut cluster = Cluster::new(3);
    let mut users = Vec::new();
    for name in ["u0", "u1", "u2"] {
        users.push((name, Device::of(name, &cluster.link(0)).await.0));
    }
    cluster.wait_level();
    cluster.kill(1);
    cluster.kill(2);
    for (alive, (name, device)) in users.iter().enumerate() {
        let line = device.known_at(&cluster.link(alive)).await;
        write(&line, name, EACH).await;
        // The next one alive knows nothing of this.
        cluster.kill(alive);
        if alive < 2 {
            cluster.start(alive + 1);
        }
    }
    (0..3).for_each(|number| cluster.launch(number));
    (0..3).for_each(|number| cluster.wait_until_up(number));
    let up = clock::monotonic();
    cluster.wait_agreed();
    println!("three that never met are level after {:?}", up.elapsed());
    cluster.wait_level();
    for number in 0..3 {
        for (name, device) in &users {
            let line = device.known_at(&cluster.link(number)).await;
            let names = line.files(&named(name)).await.into_iter().map(|(name, _)| name);
            assert_eq!(names.collect::<Vec<_>>(), written(name, EACH), "{name} on {number}");
        }
        assert_eq!(cluster.status(number).expect("up")["sync_alarms"], 0);
    }
}

/// A device that holds a listed file at the first of two trackers, and one that looks at the other.
async fn held_at_one(cluster: &Cluster) -> (Device, Line, Device, Line) {
    let lab = named("lab");
    let (seeder, at_first) = Device::of("alice", &cluster.link(0)).await;
    at_first.create(&lab).await;
    at_first.share(&lab, "held").await;
    let (looker, line) = Device::of("bob", &cluster.link(0)).await;
    line.join(&lab).await;
    at_first.accept(&lab, "bob").await;
    cluster.wait_level();
    let at_second = looker.known_at(&cluster.link(1)).await;
    assert!(at_second.peers(&lab, "held").await.is_empty());
    let contents = vec![(small("held").content_id(), true)];
    at_first.granted(Request::Announce { group: lab.clone(), contents }).await;
    let begun = clock::monotonic();
    let seen = until("the seeder at the other tracker", async || {
        at_second.peers(&lab, "held").await.pop()
    })
    .await;
    println!("a seeder is seen at the other tracker after {:?}", begun.elapsed());
    assert_eq!(seen.peer_id, seeder.endpoint.identity().peer_id());
    assert!(seen.complete && !seen.doubtful && !seen.addresses.is_empty(), "{seen:?}");
    (seeder, at_first, looker, at_second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_online_at_one_tracker_is_known_at_the_other() {
    let cluster = Cluster::new(2);
    let lab = named("lab");
    let (seeder, at_first, _looker, at_second) = held_at_one(&cluster).await;
    let request = Request::ListFiles { group: lab.clone(), after: None };
    let Reply::Files { rows, .. } = at_second.granted(request).await else { panic!() };
    assert_eq!((rows[0].seeders, rows[0].leechers), (1, 0));

    let begun = clock::monotonic();
    at_first.line.close(ErrorCode::Done);
    until("its end at the other tracker", async || {
        at_second.peers(&lab, "held").await.is_empty().then_some(())
    })
    .await;
    let took = begun.elapsed();
    println!("its end is seen after {took:?}");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    seeder.endpoint.close(ErrorCode::Done).await;
}

/// Until the mark only, which takes a few seconds; with `MTQ_LONG` until the end of the grace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_online_at_a_lost_tracker_stays_in_doubt_for_a_while() {
    let mut cluster = Cluster::new(2);
    let lab = named("lab");
    let (_seeder, _at_first, _looker, at_second) = held_at_one(&cluster).await;
    cluster.kill(0);
    let begun = clock::monotonic();
    until("the mark", async || {
        let peers = at_second.peers(&lab, "held").await;
        let [peer] = &peers[..] else { panic!("gone without grace") };
        peer.doubtful.then_some(())
    })
    .await;
    println!("in doubt {:?} after its tracker was killed", begun.elapsed());
    if std::env::var_os("MTQ_LONG").is_some() {
        let marked = clock::monotonic();
        until("its end", async || at_second.peers(&lab, "held").await.is_empty().then_some(()))
            .await;
        println!("gone {:?} later", marked.elapsed());
        assert!(marked.elapsed() > Duration::from_secs(25), "there is a grace");
    }
}

#[test]
fn a_hash_page_is_where_its_tracker_is_not() {
    let mut cluster = Cluster::new(2);
    let [mut alice, mut bob] = cluster.lab(["alice", "bob"]);
    let bytes = content(3 << 20, 1);
    let path = cluster.write("film.mkv", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    cluster.wait_level();
    cluster.kill(0);
    let copy = cluster.path("copy.mkv");
    bob.ok(&format!("get lab film.mkv {}", quoted(&copy)));
    bob.ok("wait --timeout 100");
    assert!(fs::read(&copy).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn trackers_are_added_and_replaced_under_running_clients() {
    let mut cluster = Cluster::new(2);
    let [mut alice, mut bob] = cluster.lab(["alice", "bob"]);
    let bytes = content(2 << 20, 2);
    let path = cluster.write("one.bin", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));

    let third = cluster.newcomer("third");
    cluster.operated(0, &format!("roster add {}", cluster.link(third)));
    cluster.start(third);
    cluster.wait_level();
    // The second one's key was lost, say.
    cluster.stop(1);
    let fourth = cluster.newcomer("fourth");
    let replace = format!("roster replace {} {}", cluster.peer_id(1), cluster.link(fourth));
    let roster = cluster.operated(0, &replace);
    cluster.start(fourth);
    cluster.wait_level();
    assert_eq!(cluster.operated(fourth, "roster")["number"], roster["number"]);

    let wanted = [cluster.peer_id(0), cluster.peer_id(fourth), cluster.peer_id(third)];
    let wanted = wanted.map(|id| id.to_string());
    for client in [&mut alice, &mut bob] {
        client_until(client, "a client at all three", |rows| {
            let ready =
                rows.iter().filter(|row| row["connected"] == true && row["logged_in"] == true);
            let ready: Vec<_> = ready.filter_map(|row| row["peer_id"].as_str()).collect();
            ready == wanted
        });
    }
    cluster.stop(0);
    cluster.stop(fourth);
    // Only the one is left that no client was ever started with.
    let copy = cluster.path("one.copy");
    bob.ok(&format!("get lab one.bin {}", quoted(&copy)));
    bob.ok("wait --timeout 100");
    assert!(fs::read(&copy).expect("arrived") == bytes);
    let path = cluster.write("two.bin", &content(1 << 20, 3));
    alice.ok(&format!("share {} lab", quoted(&path)));
    bob.ok(&format!("get lab two.bin {}", quoted(&cluster.path("two.copy"))));
    bob.ok("wait --timeout 100");
    // Nor does it take a roster of old to come back.
    bob.quit();
    let mut bob = cluster.client("bob");
    wait_for("bob again", || (bob.ok("whoami")["user"] == "bob").then_some(()));
    assert_eq!(bob.ok("list-files lab")["files"].as_array().map(Vec::len), Some(2));
    bob.quit();
    alice.quit();
}

/// Changes after which a tracker that has made all but these writes a snapshot and cuts its log.
const UNTIL_SNAPSHOT: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_takes_over_everything_and_brings_nobody_back() {
    let mut cluster = Cluster::new(2);
    let lab = named("lab");
    let (owner, alice) = Device::of("alice", &cluster.link(0)).await;
    let (_device, carol) = Device::of("carol", &cluster.link(0)).await;
    let (thrown_out, bob) = Device::of("bob", &cluster.link(0)).await;
    alice.create(&lab).await;
    for line in [&bob, &carol] {
        line.join(&lab).await;
    }
    alice.accept(&lab, "bob").await;
    bob.share(&lab, "bobs").await;
    cluster.wait_level();
    let backup = cluster.path("backup.redb");
    cluster.operated(1, &format!("backup {}", backup.display()));

    let (id, group) = (request_id(), lab.clone());
    alice.granted(Request::Kick { request_id: id, group, user: user("bob") }).await;
    alice.accept(&lab, "carol").await;
    cluster.wait_level();
    cluster.stop(0);
    cluster.stop(1);
    let count = SNAPSHOT_AFTER as u64 - UNTIL_SNAPSHOT;
    grow_old(&cluster.place(0), cluster.peer_id(0), count).await;
    cluster.start(0);
    cluster.start(1);
    let up = clock::monotonic();
    cluster.wait_agreed();
    println!("{count} ops came over in {:?}", up.elapsed());
    cluster.wait_level();
    let alice = owner.known_at(&cluster.link(0)).await;
    write(&alice, "news", UNTIL_SNAPSHOT as usize).await;
    for offline_grace in 0..UNTIL_SNAPSHOT as u32 {
        let (request_id, group) = (request_id(), lab.clone());
        alice.granted(Request::SetGroup { request_id, group, offline_grace }).await;
    }
    let log = cluster.status(0).expect("up")["log_ops"].as_u64().expect("a count");
    assert!(log < 2 * UNTIL_SNAPSHOT, "{log} ops are in the log");
    cluster.wait_level();

    cluster.kill(1);
    fs::copy(&backup, cluster.place(1).join("tracker.redb")).expect("put in its place");
    cluster.start(1);
    let up = clock::monotonic();
    cluster.wait_agreed();
    println!("an old backup is level after {:?}", up.elapsed());
    cluster.wait_level();
    assert!(cluster.log(1).contains("took over everything it knows"), "{}", cluster.log(1));
    let (alice, bob) =
        (owner.known_at(&cluster.link(1)).await, thrown_out.known_at(&cluster.link(1)).await);
    let members = [("alice".to_owned(), true), ("carol".to_owned(), false)];
    assert_eq!(alice.members(&lab).await, members);
    assert_eq!(alice.files(&lab).await, []);
    let ask = Request::ListFiles { group: lab.clone(), after: None };
    assert_eq!(bob.ask(&ask).await, Err(Refusal::NotAMember(lab.clone())));
    // It takes writes again, and the other one takes them from it.
    alice.share(&lab, "afterwards").await;
    cluster.wait_level();
    let alice = owner.known_at(&cluster.link(0)).await;
    let afterwards = ("afterwards".to_owned(), vec!["alice".to_owned()]);
    assert_eq!(alice.files(&lab).await, [afterwards]);
    let sum = |number| cluster.status(number).expect("up")["sync_alarms"].as_u64();
    assert_eq!((sum(0), sum(1)), (Some(0), Some(0)));
}

/// Before anything can be written: what the others lack would be cut from the log otherwise.
#[tokio::test]
async fn a_tracker_knows_of_the_others_as_soon_as_it_is_started() {
    let dir = tempfile::tempdir().expect("temp dir");
    let identity = Arc::new(Identity::generate());
    let port = free_port();
    let link = |port: u16, id| TrackerLink::new(([127, 0, 0, 1], port).into(), id);
    let (own, other) = (identity.peer_id(), Identity::generate().peer_id());
    let links = vec![link(port, own), link(free_port(), other)];
    let config = TrackerConfig {
        trackers: Some(TrackerInfo::new(links).expect("two")),
        ..TrackerConfig::new(identity, loopback())
    };
    // On one thread, nothing that was spawned has run yet.
    let tracker = Tracker::start(config, dir.path()).expect("a tracker");
    let known: Vec<_> = tracker.shared().links.siblings().all().map(|(id, _)| id).collect();
    assert_eq!(known, [other]);
    tracker.shutdown().await;
}
