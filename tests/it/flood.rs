//! Floods: refused with a code, memory flat, others served.

use std::collections::BTreeMap;
use std::sync::Arc;

use mtq::error_code::ErrorCode;
use mtq::limits;
use mtq::tracker::message::{Password, Request};
use mtq::tracker::state::Rules;
use mtq::tracker::stub::{CallError, TrackerConnection};
use mtq::transport::code::quic_code;
use mtq::transport::connection::ConnectionError;
use mtq::transport::tls::Alpn;
use tokio::task::JoinSet;

use crate::net::{
    Net, granted, group, hello, intruder_at, loopback, refused, request_id, sign_up, soon, user,
};
use crate::world::World;

const MIB: u64 = 1024 * 1024;

/// Asks `count` times on each of `lines`, as many at once as QUIC lets it; counts the codes.
async fn storm(
    lines: &[Arc<TrackerConnection>],
    count: usize,
    request: impl Fn(usize) -> Request,
) -> BTreeMap<String, usize> {
    let mut storm = JoinSet::new();
    for (index, line) in lines.iter().enumerate() {
        for number in 0..count {
            let (line, request) = (line.clone(), request(index * count + number));
            storm.spawn(async move {
                match line.call(&request).await {
                    Ok(_) => "ok".to_owned(),
                    Err(CallError::Refused(refusal)) => refusal.code().to_owned(),
                    Err(error) => format!("{error}"),
                }
            });
        }
    }
    let mut codes = BTreeMap::new();
    while let Some(code) = soon("an answer", storm.join_next()).await {
        *codes.entry(code.expect("no panic")).or_insert(0) += 1;
    }
    codes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wrong_logins_are_refused_and_nobody_else_notices() {
    let world = World::new();
    let link = world.link();
    let (_bob, bob, _pushes) = intruder_at(&link, "127.0.0.1:0").await.expect("connected");
    sign_up(&bob, "bob").await;
    // Each hash takes 19 MiB; what they cost is in the figure to begin with.
    let wrong = Request::Login {
        request_id: request_id(),
        user: user("nobody"),
        password: Password("wrong".to_owned()),
    };
    let (_first, line, _pushes) = intruder_at(&link, "127.0.0.3:0").await.expect("connected");
    assert_eq!(refused(&line, wrong).await, "wrong-credentials");
    let before = world.tracker_rss();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(intruder_at(&link, "127.0.0.2:0").await.expect("connected"));
    }
    let mut lines = Vec::new();
    let mut kept = Vec::new();
    for (endpoint, line, pushes) in clients {
        kept.push((endpoint, pushes));
        lines.push(Arc::new(line));
    }
    let served = async {
        let mut served = 0;
        for _ in 0..50 {
            granted(&bob, Request::ListGroups { after: None }).await;
            served += 1;
        }
        // His own login goes through in the middle of it, from another address.
        let (_endpoint, line, _pushes) =
            intruder_at(&link, "127.0.0.4:0").await.expect("connected");
        let login = Request::Login {
            request_id: request_id(),
            user: user("bob"),
            password: crate::net::password(),
        };
        granted(&line, login).await;
        served
    };
    let attack = storm(&lines, 500, |number| Request::Login {
        request_id: request_id(),
        // Some aim at an account that exists.
        user: if number % 2 == 0 { user("bob") } else { user(&format!("u{number}")) },
        password: Password(format!("guess {number}")),
    });
    let (codes, served) = tokio::join!(attack, soon("bob's answers", served));
    assert_eq!(served, 50);
    let known = ["busy", "rate-limited", "wrong-credentials"];
    assert!(codes.keys().all(|code| known.contains(&code.as_str())), "{codes:?}");
    assert_eq!(codes.values().sum::<usize>(), 10_000);
    // A hash was spent on few of them.
    let (_, burst) = limits::ADDRESS_LOGINS;
    assert!(codes["wrong-credentials"] < 4 * burst as usize, "{codes:?}");
    let grown = world.tracker_rss().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more for {codes:?}", grown / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_streams_and_requests_are_bounded_and_others_are_served() {
    let world = World::new();
    let link = world.link();
    let (_bob, bob, _pushes) = intruder_at(&link, "127.0.0.1:0").await.expect("connected");
    sign_up(&bob, "bob").await;
    let (endpoint, line, _pushes) = intruder_at(&link, "127.0.0.2:0").await.expect("connected");
    sign_up(&line, "eve").await;
    let before = world.tracker_rss();
    // More requests than anybody needs: told to slow down.
    let lines = [Arc::new(line)];
    let codes = storm(&lines, 20_000, |_| Request::ListGroups { after: None }).await;
    assert!(codes["ok"] >= limits::CONNECTION_REQUESTS.1 as usize, "{codes:?}");
    let known = ["ok", "rate-limited"];
    assert!(codes.keys().all(|code| known.contains(&code.as_str())), "{codes:?}");
    granted(&bob, Request::ListGroups { after: None }).await;
    // More changes than an account may make.
    let codes = storm(&lines, 5_000, |number| Request::CreateGroup {
        request_id: request_id(),
        group: format!("g{number}").parse().expect("a name"),
        hidden: true,
    })
    .await;
    assert!((500..=limits::MAX_GROUPS_PER_USER).contains(&codes["ok"]), "{codes:?}");
    let known = ["ok", "rate-limited", "limit"];
    assert!(codes.keys().all(|code| known.contains(&code.as_str())), "{codes:?}");
    granted(&bob, Request::ListGroups { after: None }).await;
    // Streams opened and reset as fast as they come, and some that say half a frame and wait.
    let address = (link.host(), link.port());
    let at = tokio::net::lookup_host(address).await.expect("resolved").next().expect("one");
    let raw = endpoint.dial(at, Alpn::Tracker, link.peer_id()).await.expect("dialled");
    let mut control = raw.open_control().await.expect("a stream");
    mtq::transport::frame::write_frame(&mut control, &hello(7)).await.expect("written");
    for number in 0..20_000u32 {
        let Ok((mut send, mut recv)) = raw.open_bi().await else { break };
        let _ = send.write_all(&number.to_le_bytes()[..1]).await;
        let _ =
            (send.reset(quic_code(ErrorCode::Cancelled)), recv.stop(quic_code(ErrorCode::Done)));
    }
    granted(&bob, Request::ListGroups { after: None }).await;
    let mut slow = Vec::new();
    for _ in 0..40 {
        let (mut send, recv) = raw.open_bi().await.expect("a stream");
        send.write_all(&[3]).await.expect("written");
        slow.push((send, recv));
    }
    granted(&bob, Request::ListGroups { after: None }).await;
    // Each is given up after its deadline; the connection is not.
    for (_send, mut recv) in slow {
        let mut byte = [0];
        let end = soon("the reset", recv.read(&mut byte)).await;
        assert!(end.is_err(), "{end:?}");
    }
    assert!(!raw.is_closed());
    let grown = world.tracker_rss().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let net = Net::with(Rules::default(), 3);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(net.intruder().await);
    }
    let (endpoint, ..) = &clients[0];
    let at = net.tracker.local_address().expect("an address");
    let one_more = endpoint.dial(at, Alpn::Tracker, net.link.peer_id()).await.expect("dialled");
    match soon("the end", one_more.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            let code = ErrorCode::from_number(close.error_code.into_inner());
            assert_eq!(code, Some(ErrorCode::LimitReached));
        }
        other => panic!("{other}"),
    }
    // Other addresses are served, and places come back.
    let (_other, line, _pushes) = intruder_at(&net.link, "127.0.0.2:0").await.expect("connected");
    sign_up(&line, "bob").await;
    let (_gone, line, _pushes) = clients.pop().expect("three");
    line.close(ErrorCode::Done);
    soon("a place", async {
        while intruder_at(&net.link, &loopback().to_string()).await.is_err() {}
    })
    .await;
    let hits = net.tracker.shared().counters.hits();
    assert!(hits.iter().any(|(name, count)| *name == "connections-per-address" && *count > 0));
    let refusal = refused(&clients[0].1, Request::ListMembers { group: group(), after: None });
    assert_eq!(refusal.await, "not-logged-in");
    net.end([]).await;
}
