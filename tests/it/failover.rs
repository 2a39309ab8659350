//! A client that does not notice the loss of a tracker: silent, killed, troubled and renamed ones.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mtq::client::agent::{Agent, AgentConfig};
use mtq::client::metafile::MetafileTo;
use mtq::client::report::Notice;
use mtq::clock;
use mtq::id::GroupId;
use mtq::limits::DIAL_DEADLINE;
use mtq::name::GroupName;
use mtq::peer_id::PeerId;
use mtq::roster::{Roster, RosterEntry};
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::refusal::Refusal;
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::broadcast;

use crate::fake_tracker::{Answers, FakeTracker, GROUP, mute, willing};
use crate::net::{Net, group, loopback, password, soon, user};
use crate::world::{World, free_port};

/// Far more than losing a tracker may take, and far less than a deadline that would hide it.
const PROMPT: Duration = Duration::from_secs(8);

fn start(data_dir: PathBuf, links: &[TrackerLink]) -> Agent {
    let trackers = TrackerInfo::new(links.to_vec()).expect("trackers");
    let config = AgentConfig { listen: Some(loopback()), ..AgentConfig::new(data_dir, trackers) };
    Agent::start(config).expect("an agent")
}

/// An agent of a device on which bob logged in before, at these trackers.
fn bob(dir: &TempDir, trackers: &[&FakeTracker]) -> Agent {
    let data_dir = dir.path().join("bob.data");
    fs::create_dir_all(&data_dir).expect("made");
    if !data_dir.join("user").exists() {
        fs::write(data_dir.join("user"), "bob\n").expect("written");
    }
    let links: Vec<_> = trackers.iter().map(|tracker| tracker.link()).collect();
    start(data_dir, &links)
}

/// Waits until the agent stands with its trackers as `wanted` says.
async fn until(agent: &Agent, what: &str, wanted: impl Fn(&[(PeerId, bool, bool)]) -> bool) {
    soon(what, async {
        loop {
            let rows: Vec<_> = agent
                .trackers()
                .into_iter()
                .map(|row| (row.peer_id, row.connected && row.logged_in, row.in_use))
                .collect();
            if wanted(&rows) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Ends the agent; its data directory is free then.
async fn end(agent: Agent) {
    agent.shutdown().await;
}

async fn all_logged_in(agent: &Agent) {
    until(agent, "all connections", |rows| {
        rows.iter().all(|(_, logged_in, _)| *logged_in) && rows[0].2
    })
    .await;
}

async fn hear(news: &mut broadcast::Receiver<Notice>) -> Notice {
    soon("news", news.recv()).await.expect("news")
}

fn in_use(agent: &Agent) -> Option<PeerId> {
    agent.trackers().iter().find(|row| row.in_use).map(|row| row.peer_id)
}

#[tokio::test]
async fn a_tracker_that_never_answers_is_outrun_and_not_used_any_more() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (first, second) = (FakeTracker::start(mute), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    assert_eq!(in_use(&agent), Some(first.peer_id()));
    let begun = clock::monotonic();
    soon("an answer", agent.join_group(group())).await.expect("asked");
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    assert_eq!(in_use(&agent), Some(second.peer_id()));
    let join = |request: &Request| matches!(request, Request::JoinGroup { .. });
    let sent = first.asked("the request", join).await;
    assert_eq!(second.asked("the same request", join).await, sent, "under the same id");
    // The next one does not even begin there.
    agent.kick(group(), user("carol")).await.expect("asked");
    assert!(!first.requests().iter().any(|request| matches!(request, Request::Kick { .. })));
    // Both know one session.
    assert_eq!(first.hellos()[0].session, second.hellos()[0].session);
    end(agent).await;
}

#[tokio::test]
async fn a_trackers_own_trouble_is_not_the_clients() {
    let dir = tempfile::tempdir().expect("temp dir");
    let off: Answers = |request| match request {
        Request::LoginByKey => mute(request),
        _ => Some(Err(Refusal::ClockOff(60_000))),
    };
    let (first, second) = (FakeTracker::start(off), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    soon("an answer", agent.join_group(group())).await.expect("asked");
    let join = |request: &Request| matches!(request, Request::JoinGroup { .. });
    let sent = first.asked("the request", join).await;
    assert_eq!(second.asked("the same request", join).await, sent, "under the same id");
    end(agent).await;
    // Where all have it, it is told.
    let dir = tempfile::tempdir().expect("temp dir");
    let full: Answers = |request| match request {
        Request::LoginByKey => mute(request),
        _ => Some(Err(Refusal::StorageFull)),
    };
    let (first, second) = (FakeTracker::start(full), FakeTracker::start(full));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let refused = soon("an answer", agent.join_group(group())).await.expect_err("refused");
    assert_eq!(refused.code(), "storage-full");
    end(agent).await;
}

#[tokio::test]
async fn a_killed_tracker_costs_a_moment_and_nothing_else() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (mut first, second) = (FakeTracker::start(willing), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let mut news = agent.notices();
    first.kill();
    let begun = clock::monotonic();
    soon("an answer", agent.join_group(group())).await.expect("asked");
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    assert_eq!(in_use(&agent), Some(second.peer_id()));
    assert!(news.try_recv().is_err(), "nobody need know");
    end(agent).await;
}

#[tokio::test]
async fn a_password_is_not_repeated_at_another_tracker_while_the_first_lives() {
    let dir = tempfile::tempdir().expect("temp dir");
    let slow: Answers = |request| match request {
        Request::ChangePassword { .. } => {
            std::thread::sleep(Duration::from_secs(2));
            Some(Ok(Reply::Done))
        }
        _ => willing(request),
    };
    let (first, second) = (FakeTracker::start(slow), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    soon("an answer", agent.change_password(password(), password())).await.expect("changed");
    let change = |request: &Request| matches!(request, Request::ChangePassword { .. });
    assert!(first.requests().iter().any(change) && !second.requests().iter().any(change));
    assert_eq!(in_use(&agent), Some(first.peer_id()));
    end(agent).await;
}

#[tokio::test]
async fn a_dead_link_does_not_hold_up_the_start() {
    let net = Net::new();
    let nobody = TrackerLink::new(([127, 0, 0, 1], free_port()).into(), PeerId([9; 32]));
    let begun = clock::monotonic();
    let agent = start(net.path("ann.data"), &[nobody.clone(), net.link.clone()]);
    agent.create_user(user("ann"), password(), None).await.expect("created");
    agent.login(user("ann"), password()).await.expect("logged in");
    agent.create_group(group(), false).await.expect("created");
    assert!(begun.elapsed() < DIAL_DEADLINE, "it took {:?}", begun.elapsed());
    assert_eq!(in_use(&agent), Some(net.link.peer_id()));
    end(agent).await;
    // Nor does it end a login.
    let agent = start(net.path("ann.data"), &[nobody, net.link.clone()]);
    let known = agent.login_by_key(&user("ann")).await.expect("asked");
    assert_eq!(known.map(|known| known.user), Some(user("ann")));
    net.end([agent]).await;
}

#[tokio::test]
async fn no_tracker_at_all_is_said_and_what_was_begun_goes_on_when_one_is_back() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (mut first, mut second) = (FakeTracker::start(willing), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let mut news = agent.notices();
    first.kill();
    second.kill();
    let refused = soon("an answer", agent.join_group(group())).await.expect_err("nobody there");
    assert_eq!(refused.code(), "no-tracker");
    assert_eq!(hear(&mut news).await, Notice::TrackersLost);
    let second = FakeTracker::start_as(second.identity.clone(), second.address, willing);
    assert_eq!(hear(&mut news).await, Notice::TrackersBack);
    soon("an answer", agent.join_group(group())).await.expect("asked");
    assert_eq!(in_use(&agent), Some(second.peer_id()));
    assert!(news.try_recv().is_err(), "said once");
    end(agent).await;
}

#[tokio::test]
async fn news_of_two_trackers_are_told_once() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (first, second) = (FakeTracker::start(willing), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let mut news = agent.notices();
    let joined = |name: &str| Push::MemberJoined { group: group(), user: user(name) };
    let told = |name: &str| Notice::MemberJoined { group: group(), user: user(name) };
    for tracker in [&first, &second] {
        tracker.push(joined("ann"));
        tracker.push(joined(if tracker.peer_id() == first.peer_id() { "eve" } else { "fay" }));
    }
    let mut heard = [hear(&mut news).await, hear(&mut news).await, hear(&mut news).await];
    heard.sort_by_key(ToString::to_string);
    assert_eq!(heard, [told("ann"), told("eve"), told("fay")]);
    // It happened again.
    second.push(joined("ann"));
    assert_eq!(hear(&mut news).await, told("ann"));
    first.push(joined("ann"));
    first.push(joined("gus"));
    assert_eq!(hear(&mut news).await, told("gus"));
    end(agent).await;
}

#[tokio::test]
async fn another_name_is_no_logout() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (first, second) = (FakeTracker::start(willing), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let mut news = agent.notices();
    for tracker in [&second, &first] {
        tracker.push(Push::Renamed { user: user("bob~1a2b") });
    }
    let renamed = Notice::Renamed { from: user("bob"), user: user("bob~1a2b") };
    assert_eq!(hear(&mut news).await, renamed);
    assert_eq!(agent.user(), Some(user("bob~1a2b")));
    let lab = |mark: &str| format!("lab~{mark}").parse().expect("a name");
    for tracker in [&first, &second] {
        tracker.push(Push::GroupRenamed { id: GroupId([7; 16]), group: lab("1a2b") });
        tracker.push(Push::GroupRenamed { id: GroupId([8; 16]), group: lab("3c4d") });
    }
    for mark in ["1a2b", "3c4d"] {
        let renamed = Notice::GroupRenamed { from: group(), group: lab(mark) };
        assert_eq!(hear(&mut news).await, renamed);
    }
    end(agent).await;
    assert!(news.try_recv().is_err(), "told once each");
    assert_eq!(fs::read_to_string(dir.path().join("bob.data/user")).expect("kept"), "bob~1a2b\n");

    // A tracker that is behind says the old name; that changes nothing.
    let agent = bob(&dir, &[&first, &second]);
    let known = agent.login_by_key(&user("bob")).await.expect("asked");
    assert_eq!(known.map(|known| known.user), Some(user("bob~1a2b")));
    end(agent).await;
}

#[tokio::test]
async fn a_new_name_is_learned_when_the_login_is_taken_up() {
    let dir = tempfile::tempdir().expect("temp dir");
    let tracker = FakeTracker::start(|request| match request {
        Request::LoginByKey => Some(Ok(Reply::LoggedIn { user: user("bob~1a2b") })),
        _ => willing(request),
    });
    let agent = bob(&dir, &[&tracker]);
    let known = agent.login_by_key(&user("bob")).await.expect("asked");
    assert_eq!(known.map(|known| known.user), Some(user("bob~1a2b")));
    end(agent).await;
}

#[tokio::test]
async fn a_tracker_that_has_not_heard_of_the_login_does_not_end_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ignorant: Answers = |request| match request {
        Request::LoginByKey => Some(Err(Refusal::UnknownDevice)),
        _ => willing(request),
    };
    let (first, second) = (FakeTracker::start(ignorant), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first, &second]);
    let known = agent.login_by_key(&user("bob")).await.expect("asked");
    assert_eq!(
        (known.map(|known| known.user), in_use(&agent)),
        (Some(user("bob")), Some(second.peer_id()))
    );
    // It is asked again, and what is asked of the user's is not asked there.
    first.asked("the login", |request| *request == Request::LoginByKey).await;
    agent.join_group(group()).await.expect("asked");
    assert!(!first.requests().iter().any(|request| matches!(request, Request::JoinGroup { .. })));
    end(agent).await;
    // When both say so, it is over.
    let (first, second) = (FakeTracker::start(ignorant), FakeTracker::start(ignorant));
    let agent = bob(&dir, &[&first, &second]);
    let mut news = agent.notices();
    assert_eq!(hear(&mut news).await, Notice::SignedOut { user: user("bob") });
    assert_eq!(agent.user(), None);
    end(agent).await;
}

#[tokio::test]
async fn after_a_password_login_the_other_connections_follow_by_key_and_leave_with_the_logout() {
    let dir = tempfile::tempdir().expect("temp dir");
    let known: Answers = |request| match request {
        Request::Login { user, .. } => Some(Ok(Reply::LoggedIn { user: user.clone() })),
        _ => willing(request),
    };
    let (first, second) = (FakeTracker::start(known), FakeTracker::start(known));
    let data_dir = dir.path().join("new.data");
    let agent = start(data_dir.clone(), &[first.link(), second.link()]);
    first.welcomed(1).await;
    second.welcomed(1).await;
    for round in 1..=2 {
        until(&agent, "a connection", |rows| rows.iter().any(|(.., in_use)| *in_use)).await;
        agent.login(user("bob"), password()).await.expect("logged in");
        all_logged_in(&agent).await;
        agent.logout().await.expect("logged out");
        assert_eq!(agent.user(), None);
        assert!(!data_dir.join("user").exists());
        // The one that was told knows; the other connection is another.
        second.welcomed(round + 1).await;
        first.welcomed(1).await;
        assert!(agent.trackers().iter().all(|row| !row.logged_in));
    }
    let asked = |tracker: &FakeTracker, wanted: Request| {
        tracker.requests().iter().filter(|request| **request == wanted).count()
    };
    assert_eq!((asked(&first, Request::Logout), asked(&second, Request::Logout)), (2, 0));
    assert_eq!(asked(&second, Request::LoginByKey), 2);
    end(agent).await;
}

#[tokio::test]
async fn what_is_shared_is_announced_at_every_tracker_and_again_at_one_that_comes_back() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(b"bytes").await;
    end(alice).await;
    let mut fake = FakeTracker::start(|request| match request {
        Request::LoginByKey => Some(Ok(Reply::LoggedIn { user: user("alice") })),
        _ => willing(request),
    });
    let agent = start(net.path("alice.data"), &[net.link.clone(), fake.link()]);
    all_logged_in(&agent).await;
    let path = net.path("file.bin");
    agent.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    let announce = |request: &Request| {
        let held = vec![(manifest.content_id(), true)];
        *request == Request::Announce { group: group(), contents: held }
    };
    fake.asked("the announcement", announce).await;
    let again = fake.identity.clone();
    fake.kill();
    let fake = FakeTracker::start_as(again, fake.address, |request| match request {
        Request::LoginByKey => Some(Ok(Reply::LoggedIn { user: user("alice") })),
        _ => willing(request),
    });
    fake.asked("the announcement", announce).await;
    assert!(!fake.requests().iter().any(|request| matches!(request, Request::Ticket { .. })));
    assert_eq!(in_use(&agent), Some(net.link.peer_id()));
    net.end([agent]).await;
}

#[tokio::test]
async fn a_new_roster_is_followed_kept_and_said() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (first, second) = (FakeTracker::start(willing), FakeTracker::start(willing));
    let agent = bob(&dir, &[&first]);
    all_logged_in(&agent).await;
    let entry = |tracker: &FakeTracker| RosterEntry::new(tracker.link());
    let sign = |message: &[u8]| first.identity.sign(message);
    let entries = vec![entry(&second), entry(&first)];
    let bytes = Roster::sign(1, entries, first.identity.public_key(), &sign);
    let hash = Roster::verify(&bytes, |_| true).expect("valid").hash();
    // One that nobody trusted signed is not taken.
    let sign = |message: &[u8]| second.identity.sign(message);
    let forged = Roster::sign(5, vec![entry(&second)], second.identity.public_key(), &sign);
    first.push(Push::Roster { bytes: forged });
    first.push(Push::Roster { bytes });
    second.welcomed(1).await;
    until(&agent, "both", |rows| rows.len() == 2 && rows.iter().all(|row| row.1)).await;
    assert_eq!(in_use(&agent), Some(first.peer_id()), "what works is not changed");
    assert_eq!((first.hellos()[0].roster, second.hellos()[0].roster), (None, Some(hash)));
    end(agent).await;
    // After a restart too, whatever the file of links says.
    let agent = bob(&dir, &[&first]);
    second.welcomed(2).await;
    all_logged_in(&agent).await;
    assert_eq!(in_use(&agent), Some(second.peer_id()), "the first in order");
    // One that is no tracker any more is left.
    let sign = |message: &[u8]| first.identity.sign(message);
    let bytes = Roster::sign(2, vec![entry(&first)], first.identity.public_key(), &sign);
    second.push(Push::Roster { bytes });
    until(&agent, "the change", |rows| {
        rows.len() == 1 && rows[0].0 == first.peer_id() && rows[0].2
    })
    .await;
    end(agent).await;
}

#[tokio::test]
async fn a_share_survives_the_change_of_connection_in_its_middle() {
    let dir = tempfile::tempdir().expect("temp dir");
    // One takes the share, and fails when the pages come; the other was never told of it.
    let first = FakeTracker::start(|request| match request {
        Request::Share { .. } => Some(Ok(Reply::PagesMissing { pages: vec![0] })),
        Request::PutPage { .. } => Some(Err(Refusal::StorageFailed)),
        _ => willing(request),
    });
    let second = FakeTracker::start(|request| match request {
        Request::Share { .. } => Some(Ok(Reply::Shared { group: GROUP })),
        Request::PutPage { content, .. } => Some(Err(Refusal::NoSuchShare(*content))),
        _ => willing(request),
    });
    let agent = bob(&dir, &[&first, &second]);
    all_logged_in(&agent).await;
    let path = dir.path().join("file.bin");
    fs::write(&path, b"bytes").expect("written");
    soon("the share", agent.share(&path, group(), None, MetafileTo::Beside)).await.expect("shared");
    let share = |request: &Request| matches!(request, Request::Share { .. });
    let begun = first.asked("the share", share).await;
    assert_eq!(second.asked("the same share", share).await, begun, "under the same id");
    assert_eq!(in_use(&agent), Some(second.peer_id()));
    end(agent).await;
}

#[tokio::test]
async fn a_group_with_a_new_name_takes_along_what_is_shared_in_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let tracker = FakeTracker::start(|request| match request {
        Request::Share { .. } => Some(Ok(Reply::Shared { group: GROUP })),
        _ => willing(request),
    });
    let agent = bob(&dir, &[&tracker]);
    all_logged_in(&agent).await;
    let mut news = agent.notices();
    let path = dir.path().join("file.bin");
    fs::write(&path, b"bytes").expect("written");
    agent.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    assert!(matches!(hear(&mut news).await, Notice::Shared { .. }));
    let name: GroupName = "lab~0707".parse().expect("a name");
    tracker.push(Push::GroupRenamed { id: GROUP, group: name.clone() });
    let renamed = Notice::GroupRenamed { from: group(), group: name.clone() };
    assert_eq!(hear(&mut news).await, renamed);
    let groups: Vec<_> = agent.downloads().into_iter().map(|row| row.group).collect();
    assert_eq!(groups, std::slice::from_ref(&name));
    // What is said of it from now on is said under that name.
    agent.stop_share(name.clone(), "file.bin".parse().expect("a selector")).await.ok();
    tracker
        .asked(
            "its end",
            |request| matches!(request, Request::StopShare { group, .. } if *group == name),
        )
        .await;
    end(agent).await;
}

#[test]
fn status_says_how_the_client_stands_with_its_trackers() {
    let mut world = World::new();
    let mut ann = world.user("ann");
    let status = ann.ok("status");
    let link = world.link();
    assert_eq!(status["user"], "ann");
    assert!(status["clock_offset_ms"].is_i64(), "{status}");
    assert!(status.get("last_change").is_some(), "{status}");
    let [tracker] = status["trackers"].as_array().expect("rows").as_slice() else {
        panic!("one tracker: {status}")
    };
    assert_eq!(tracker["peer_id"], link.peer_id().to_string());
    assert_eq!(tracker["tracker"], link.to_string());
    for field in ["connected", "logged_in", "in_use"] {
        assert_eq!(tracker[field], true, "{field}: {status}");
    }
    assert!(tracker["rtt_ms"].is_u64() && tracker["error"].is_null(), "{status}");
    assert!(tracker.get("sync").is_some(), "{status}");

    world.kill_tracker();
    let status = ann.ok("status");
    assert_eq!((&status["user"], &status["clock_offset_ms"]), (&"ann".into(), &Value::Null));
    let tracker = &status["trackers"][0];
    for field in ["connected", "logged_in", "in_use"] {
        assert_eq!(tracker[field], false, "{field}: {status}");
    }
    assert!(tracker["rtt_ms"].is_null() && tracker["error"].is_string(), "{status}");
    ann.quit();

    // For people: nobody is logged in, and no tracker is there.
    let output = world.script("bob", &[], "status\n");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("nobody, on device "), "{output:?}");
    assert!(text.contains("does not answer"), "{output:?}");
}
