//! The list of trackers: changed by an operator, kept by the tracker, told to everybody connected.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mtq::clock;
use mtq::limits::MAX_TRACKERS;
use mtq::peer_id::PeerId;
use mtq::roster::{Roster, RosterBook, RosterEntry};
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::stub::{PushQueue, TrackerConnection};
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::identity::Identity;
use serde_json::{Value, json};

use crate::net::{Net, hello, soon};
use crate::world::{World, mtq, run};

/// Another tracker, which is not running.
fn other(id: u8, port: u16) -> TrackerLink {
    TrackerLink::new(([127, 0, 0, 1], port).into(), PeerId([id; 32]))
}

/// The links of a roster as an operator sees it.
fn links(roster: &Value) -> Vec<&str> {
    let trackers = roster["trackers"].as_array().expect("trackers");
    let links = trackers.iter().flat_map(|tracker| tracker["links"].as_array().expect("links"));
    links.map(|link| link.as_str().expect("text")).collect()
}

fn log(world: &World) -> String {
    fs::read_to_string(world.path("tracker.log")).expect("readable")
}

#[test]
fn an_operator_changes_the_roster_and_the_tracker_keeps_it() {
    let mut world = World::new();
    let own = world.link();
    let first = world.operated("roster");
    assert_eq!((&first["number"], &first["listed"]), (&json!(1), &json!(true)), "{first}");
    assert_eq!(links(&first), [own.to_string()]);
    assert_eq!(first["trackers"][0]["peer_id"], own.peer_id().to_string());
    assert_eq!(first["trackers"][0]["own"], true);

    let (b, c) = (other(0xb1, 4001), other(0xc1, 4002));
    let added = world.operated(&format!("roster add {b}"));
    assert_eq!((&added["number"], &added["peer_id"]), (&json!(2), &json!(b.peer_id())));
    world.operated(&format!("roster add {c}"));
    let moved = other(0xb1, 5001);
    let replaced = world.operated(&format!("roster replace b1b1b1b1 {moved}"));
    assert_eq!(links(&replaced), [own.to_string(), moved.to_string(), c.to_string()]);
    let renewed = other(0xd1, 4002);
    world.operated(&format!("roster replace {} {renewed}", c.peer_id()));
    let removed = world.operated("roster remove b1b1b1b1b1");
    assert_eq!((&removed["number"], &removed["trackers"][1]["own"]), (&json!(6), &json!(false)));
    assert_eq!(links(&removed), [own.to_string(), renewed.to_string()]);

    let table = String::from_utf8(world.operate("roster").stdout).expect("UTF-8");
    let short = own.peer_id().short();
    assert_eq!(table, format!("roster 6\n{short}  {own}  this tracker\nd1d1d1d1  {renewed}\n"));
    let kept = fs::metadata(world.path("tracker/roster")).expect("kept").permissions().mode();
    assert_eq!(kept & 0o777, 0o600);

    world.kill_tracker();
    world.start_tracker();
    let mut again = world.operated("roster");
    again["peer_id"] = removed["peer_id"].clone();
    assert_eq!(again, removed, "after a restart");
    assert!(log(&world).contains("the roster number=6"), "{}", log(&world));
    assert!(!log(&world).contains("WARN"), "{}", log(&world));
}

#[test]
fn an_edited_file_makes_the_next_roster() {
    let mut world = World::new();
    let (own, b, c) = (world.link(), other(0xb1, 4001), other(0xc1, 4002));
    world.operated(&format!("roster add {b}"));
    world.stop_tracker();
    fs::write(world.trackers(), format!("{c}\n{own}\n")).expect("written");
    world.start_tracker();
    let edited = world.operated("roster");
    assert_eq!(
        (&edited["number"], links(&edited)),
        (&json!(3), vec![&*c.to_string(), &own.to_string()])
    );
    world.stop_tracker();
    world.start_tracker();
    assert_eq!(world.operated("roster"), edited, "once");

    // A file of another network says nothing of this one's roster.
    world.stop_tracker();
    let path = world.path("tracker/roster");
    let stranger = TrackerInfo::new(vec![b]).expect("valid");
    fs::write(&path, RosterBook::new(stranger, None).0.encode()).expect("written");
    world.start_tracker();
    assert_eq!(world.operated("roster")["number"], 1);
    assert!(log(&world).contains("left aside"), "{}", log(&world));
}

#[test]
fn a_later_roster_stays_whatever_the_file_says_and_the_log_tells() {
    let mut world = World::without_tracker();
    let sibling = Identity::generate();
    let b = TrackerLink::new(([127, 0, 0, 1], 4001).into(), sibling.peer_id());
    let (own, c) = (world.link(), other(0xc1, 4002));
    let file = TrackerInfo::new(vec![own.clone(), b.clone(), c.clone()]).expect("valid");
    fs::write(world.trackers(), file.to_string()).expect("written");
    world.start_tracker();
    assert_eq!(world.operated("roster")["number"], 1);
    world.stop_tracker();

    // The sibling took the third one out meanwhile.
    let path = world.path("tracker/roster");
    let (mut book, _) = RosterBook::new(file, Some(&fs::read(&path).expect("kept")));
    let entries = [own, b].map(RosterEntry::new).to_vec();
    let sign = |message: &[u8]| sibling.sign(message);
    let later = Roster::sign(9, entries, sibling.public_key(), &sign);
    assert_eq!(book.offer(&later, clock::now()), Ok(true));
    fs::write(&path, book.encode()).expect("written");
    world.start_tracker();
    let roster = world.operated("roster");
    assert_eq!((&roster["number"], links(&roster).len()), (&json!(9), 2));
    let warned = format!(
        "a tracker of tracker_info.txt is not in the roster, which is a later one number=9 link={c}"
    );
    assert!(log(&world).contains(&warned), "{}", log(&world));
}

#[test]
fn what_an_operator_cannot_do_to_the_roster() {
    let world = World::new();
    let own = world.link();
    let fails = |line: &str| world.not_operated(&format!("roster {line}"));
    let code = |code: &str, status: i32| (code.to_owned(), status);
    assert_eq!(fails(&format!("add {own}")), code("tracker-exists", 3));
    assert_eq!(fails(&format!("remove {}", own.peer_id())), code("last-tracker", 3));
    assert_eq!(fails("remove 01234567"), code("no-such-tracker", 4));
    assert_eq!(fails(&format!("replace 01234567 {own}")), code("no-such-tracker", 4));
    assert_eq!(fails("remove 0123"), code("usage", 2));
    assert_eq!(fails("remove lab"), code("usage", 2));
    let nowhere = format!("mtq://0.0.0.0:4000#{}", PeerId([7; 32]));
    assert_eq!(fails(&format!("add {nowhere}")), code("no-address", 3));
    let nonsense = world.operate("roster add mtq://here:1");
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");
    let words = world.operate(&format!("roster add {own}"));
    let words = String::from_utf8_lossy(&words.stderr).into_owned();
    let short = own.peer_id().short();
    let expected = format!(
        "error: tracker {short} is in the roster already\n\
         hint: mtq tracker roster replace gives it another address\n"
    );
    assert_eq!(words, expected);
    assert_eq!(world.operated("roster")["number"], 1, "nothing changed");

    for id in 1..MAX_TRACKERS as u8 {
        // The last two begin alike.
        let mut peer_id = PeerId([id; 32]);
        peer_id.0[..4].fill(id.min(MAX_TRACKERS as u8 - 2));
        let link = TrackerLink::new(([127, 0, 0, 1], 4000).into(), peer_id);
        world.operated(&format!("roster add {link}"));
    }
    assert_eq!(fails(&format!("add {}", other(0xff, 1))), code("limit", 3));
    assert_eq!(fails("remove 0e0e0e0e"), code("ambiguous", 4));

    let gone = world.operate(&format!("roster remove {short}"));
    let words = String::from_utf8_lossy(&gone.stderr);
    assert!(
        words.starts_with("warning: this tracker itself is no longer in the roster"),
        "{words}"
    );
    assert_eq!(world.operated("roster")["listed"], false);
    assert_eq!(fails("remove 01010101"), code("not-in-roster", 3));
    assert!(log(&world).contains("this tracker is not in the roster"));
}

#[test]
fn a_tracker_outside_its_own_file_makes_no_roster() {
    let mut world = World::without_tracker();
    let made = world.path("other");
    let certs =
        run(mtq().arg("certs").arg("--out").arg(&made).args(["127.0.0.1:1", "127.0.0.1:2"]));
    assert!(certs.status.success(), "{certs:?}");
    fs::copy(made.join("tracker_info.txt"), world.trackers()).expect("copied");
    world.tracker_options = vec!["--listen".to_owned(), world.link().authority()];
    world.start_tracker();
    let roster = world.operated("roster");
    let expected = (&json!(0), &json!(false), &Value::Null);
    assert_eq!((&roster["number"], &roster["listed"], &roster["hash"]), expected);
    assert_eq!(links(&roster).len(), 2);
    assert!(log(&world).contains("this tracker is not in the roster"));
    let stranger = Identity::generate().peer_id();
    let link = TrackerLink::new(([127, 0, 0, 1], 3).into(), stranger);
    assert_eq!(world.not_operated(&format!("roster add {link}")).0, "not-in-roster");
}

/// The next push, which must be a roster.
async fn pushed(pushes: &mut PushQueue) -> Vec<u8> {
    match soon("a push", pushes.next()).await {
        Some(Push::Roster { bytes }) => bytes,
        other => panic!("not a roster: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_of_a_roster_they_do_not_know() {
    let net = Net::new();
    let rosters = net.tracker.shared().rosters.clone();
    let info = TrackerInfo::new(vec![net.link.clone()]).expect("valid");
    let (mut book, _) = RosterBook::new(info, None);

    // There is none yet: the first push is that of the first change. Nobody need log in.
    let (endpoint, line, mut pushes) = net.intruder().await;
    rosters.add(other(2, 2)).expect("added");
    let first = pushed(&mut pushes).await;
    assert_eq!(book.offer(&first, clock::now()), Ok(true));
    assert_eq!(book.hash(), rosters.known().hash());
    assert_eq!(book.peer_ids(), [net.link.peer_id(), PeerId([2; 32])]);

    let answer = line.call(&Request::Trackers { op: None }).await;
    let Ok(Reply::Trackers { rows }) = answer else { panic!("{answer:?}") };
    let told: Vec<_> = rows.iter().map(|row| (row.peer_id, row.own, row.links.len())).collect();
    assert_eq!(told, [(net.link.peer_id(), true, 1), (PeerId([2; 32]), false, 1)]);

    let (one, mut ignorant) = net.reconnect(&endpoint).await;
    assert_eq!(pushed(&mut ignorant).await, first, "who knows none");
    let knowing = Hello { roster: book.hash(), ..hello(3) };
    let opened = TrackerConnection::open(&endpoint, &net.link, &knowing).await;
    let (two, mut informed) = opened.expect("connected");
    two.call(&Request::Trackers { op: None }).await.expect("answered");
    rosters.remove(PeerId([2; 32])).expect("removed");
    let second = pushed(&mut informed).await;
    assert_eq!(book.offer(&second, clock::now()), Ok(true), "was told nothing it knew");
    for queue in [&mut pushes, &mut ignorant] {
        assert_eq!(pushed(queue).await, second, "everybody hears of a change");
    }
    let (three, mut late) = {
        let opened = TrackerConnection::open(&endpoint, &net.link, &knowing).await;
        opened.expect("connected")
    };
    assert_eq!(pushed(&mut late).await, second, "who knows an old one");
    drop((line, one, two, three));
    net.end([]).await;
}
