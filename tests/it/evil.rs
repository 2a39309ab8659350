//! Peers and clients that cheat, at the level of frames: refused with a code, others served.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mtq::client::agent::{Agent, AgentConfig};
use mtq::clock;
use mtq::error_code::ErrorCode;
use mtq::id::MembershipId;
use mtq::manifest::{ContentId, Manifest};
use mtq::name::Selector;
use mtq::swarm::message::{Control, Encoding, Nack, PieceHeader};
use mtq::ticket::{Holder, Ticket};
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{Password, Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::refusal::Refusal;
use mtq::tracker::stub::CallError;
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::connection::ConnectionError;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{frame_bytes, write_frame};
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;

use crate::net::{Net, group, loopback, password, request_id, soon, user};
use crate::raw_peer::{RawPeer, peer_of, serve_pieces, ticket};
use crate::world::{DEADLINE, content};

const P: usize = 524_288;

#[tokio::test]
async fn without_a_valid_ticket_a_seeder_gives_nothing() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(2 * P, 1)).await;
    let content = manifest.content_id();
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let (lab, good) = ticket(&line).await;
    let at = peer_of(&line, content).await;
    let open = Control::Open { swarm: 0, group: lab, content };
    let refused = Control::Close { swarm: 0, refused: true, code: ErrorCode::NoTicket.number() };

    // No ticket at all: refused, and a request is told nothing but that.
    let mut peer = RawPeer::dial(&endpoint, at).await;
    peer.say(&open).await;
    assert_eq!(peer.hear().await, refused);
    let answer = peer.request(0, 0).await.expect("an answer");
    assert_eq!(answer, PieceHeader::Nack(Nack::NoSwarm));
    peer.connection.close(ErrorCode::Done);

    // A ticket of another group opens nothing here.
    let holder = |peer_id, group| Holder {
        peer_id,
        user: user("mallory"),
        group,
        group_name: "lab".parse().expect("a name"),
        membership: MembershipId([1; 16]),
        offline_grace: 0,
    };
    let me = endpoint.identity().clone();
    let mine = |group| {
        let sign = |message: &[u8]| me.sign(message);
        let now = clock::now();
        Ticket::sign(holder(me.peer_id(), group), now, now, me.public_key(), &sign)
    };
    // Signed by ourselves instead of a tracker.
    let mut peer = RawPeer::dial(&endpoint, at).await;
    peer.say(&Control::Ticket { ticket: mine(lab) }).await;
    peer.say(&open).await;
    assert_eq!(peer.hear().await, refused);
    peer.connection.close(ErrorCode::Done);

    // Stolen: a good ticket shown by another device ends the connection.
    let thief =
        Endpoint::bind(Arc::new(Identity::generate()), loopback(), &[Alpn::Peer]).expect("bound");
    let mut peer = RawPeer::dial(&thief, at).await;
    peer.say(&Control::Ticket { ticket: good.clone() }).await;
    assert_eq!(peer.close_code().await, Some(ErrorCode::NoTicket));

    // Tampered with.
    let mut peer = RawPeer::dial(&endpoint, at).await;
    let mut tampered = good.clone();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    peer.say(&Control::Ticket { ticket: tampered }).await;
    assert_eq!(peer.close_code().await, Some(ErrorCode::NoTicket));

    // The good one works; a content nobody shares does not.
    let mut peer = RawPeer::dial(&endpoint, at).await;
    peer.say(&Control::Ticket { ticket: good }).await;
    peer.say(&Control::Open { swarm: 7, group: lab, content: ContentId([9; 32]) }).await;
    let unknown = Control::Close { swarm: 7, refused: true, code: ErrorCode::NotFound.number() };
    assert_eq!(peer.hear().await, unknown);
    peer.say(&Control::Open { swarm: 8, group: lab, content }).await;
    assert!(matches!(peer.hear().await, Control::Ticket { .. }));
    assert!(matches!(peer.hear().await, Control::Open { .. }));
    assert!(matches!(peer.hear().await, Control::Bitfield { .. }));
    let header = peer.request(8, 1).await.expect("an answer");
    assert_eq!(header, PieceHeader::Data { encoding: Encoding::Identity, len: P as u32 });

    // Once the membership ends, the ticket is void at once.
    line.call(&Request::LeaveGroup { request_id: request_id(), group: group() })
        .await
        .expect("left");
    loop {
        if matches!(peer.hear().await, Control::Close { refused: false, .. }) {
            break;
        }
    }
    let answer = peer.request(8, 0).await.expect("an answer");
    assert!(matches!(answer, PieceHeader::Nack(Nack::NoSwarm | Nack::Revoked)), "{answer:?}");
    net.end([alice]).await;
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_cut_off_and_others_are_served() {
    let net = Net::new();
    let bytes = content(3 * P + 5, 2);
    let (alice, manifest) = net.seeder(&bytes).await;
    let content = manifest.content_id();
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let (lab, good) = ticket(&line).await;
    let at = peer_of(&line, content).await;

    // Raw bytes on the control stream, and what the connection must end with.
    let huge_prefix = u32::MAX.to_le_bytes().to_vec();
    let unknown_variant = vec![1, 0, 0, 0, 99];
    let mut trailing = frame_bytes(&Control::GoingAway);
    trailing[0] += 1;
    trailing.push(0);
    for (junk, code) in [
        (huge_prefix, ErrorCode::FrameTooLarge),
        (unknown_variant, ErrorCode::Protocol),
        (trailing, ErrorCode::Protocol),
        (frame_bytes(&Control::Ticket { ticket: vec![7; 2000] }), ErrorCode::NoTicket),
    ] {
        let mut peer = RawPeer::dial(&endpoint, at).await;
        peer.writer.write_all(&junk).await.expect("written");
        assert_eq!(peer.close_code().await, Some(code), "{junk:?}");
    }
    // Frames that are well formed and make no sense in a swarm that is open.
    let (all, spare) = (vec![0xf0], vec![0xff]);
    for (message, code) in [
        (Control::Bitfield { swarm: 0, bits: spare }, ErrorCode::Protocol),
        (Control::Bitfield { swarm: 0, bits: vec![0; 2] }, ErrorCode::Protocol),
        (Control::Have { swarm: 0, pieces: vec![4] }, ErrorCode::Protocol),
        (Control::Have { swarm: 0, pieces: vec![0; 5000] }, ErrorCode::LimitReached),
        (Control::Open { swarm: 0, group: lab, content }, ErrorCode::Protocol),
    ] {
        let mut peer = RawPeer::dial(&endpoint, at).await;
        peer.say(&Control::Ticket { ticket: good.clone() }).await;
        peer.say(&Control::Open { swarm: 0, group: lab, content }).await;
        // Numbers never opened are skipped: they may be a close under way.
        peer.say(&Control::Bitfield { swarm: 77, bits: all.clone() }).await;
        peer.say(&message).await;
        assert_eq!(peer.close_code().await, Some(code), "{message:?}");
    }
    // A piece that does not exist.
    let mut peer = RawPeer::dial(&endpoint, at).await;
    peer.say(&Control::Ticket { ticket: good.clone() }).await;
    peer.say(&Control::Open { swarm: 0, group: lab, content }).await;
    while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
    assert!(peer.request(0, 4).await.is_err());
    assert_eq!(peer.close_code().await, Some(ErrorCode::Protocol));

    // Meanwhile everybody else is served.
    let bob = net.member("bob", &alice).await;
    let dest = net.path("dest");
    fs::create_dir(&dest).expect("made");
    let file: Selector = "file.bin".parse().expect("a selector");
    bob.get(group(), file, &dest).await.expect("begun");
    bob.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn a_publisher_whose_manifest_lies_is_named_and_nothing_is_left() {
    let net = Net::new();
    let alice = net.agent("alice").await;
    alice.create_group(group(), false).await.expect("created");
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let bytes = content(2 * P, 4);
    // The pieces are right and the SHA-1 of the file is not.
    let path = net.path("file.bin");
    fs::write(&path, &bytes).expect("written");
    let (honest, _) = mtq::swarm::hashing::hash_file(&path, &|_| true).expect("hashed");
    let false_sha1 = mtq::hash::sha1(b"something else");
    let lie = Manifest::new(honest.layout(), false_sha1, honest.pieces().to_vec()).expect("made");
    let share = Request::Share {
        request_id: request_id(),
        group: group(),
        name: "film".parse().expect("a name"),
        head: lie.head().encode(),
    };
    let missing = line.call(&share).await.expect("granted");
    assert_eq!(missing, Reply::PagesMissing { pages: vec![0] });
    let put = |bytes| Request::PutPage { content: lie.content_id(), page: 0, bytes };
    let refused = line.call(&put(vec![0; 104])).await;
    assert!(matches!(refused, Err(CallError::Refused(Refusal::BadManifest(_)))), "{refused:?}");
    line.call(&put(lie.page(0))).await.expect("put");
    assert!(matches!(line.call(&share).await, Ok(Reply::Shared { .. })));
    let contents = vec![(lie.content_id(), true)];
    line.call(&Request::Announce { group: group(), contents }).await.expect("announced");
    let shown = ticket(&line).await;
    let served = Arc::new(lie);
    let header = |_| PieceHeader::Data { encoding: Encoding::Identity, len: P as u32 };
    let evil = serve_pieces(endpoint, shown, served, bytes, header);
    let evil = tokio::task::JoinSet::from_iter([evil]);

    let dest = net.path("dest");
    fs::create_dir(&dest).expect("made");
    let file: Selector = "mallory/film".parse().expect("a selector");
    alice.get(group(), file, &dest).await.expect("begun");
    let error = alice.wait(Some(DEADLINE)).await.expect_err("a lie");
    assert_eq!(error.code(), "false-manifest");
    assert!(error.to_string().contains("published by mallory"), "{error}");
    assert_eq!(fs::read_dir(&dest).expect("readable").count(), 0);
    alice.wait(Some(DEADLINE)).await.expect("nobody is told twice");
    // The failed attempt holds nothing that a new one needs.
    let file: Selector = "mallory/film".parse().expect("a selector");
    alice.get(group(), file, &dest).await.expect("begun again");
    drop(evil);
    net.end([alice]).await;
}

#[tokio::test]
async fn a_tracker_grants_nothing_that_is_not_ones_own() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(P, 5)).await;
    let (_endpoint, line, _pushes) = net.intruder().await;
    let code = async |request: Request| match line.call(&request).await {
        Err(CallError::Refused(refusal)) => refusal.code(),
        other => panic!("{request:?}: {other:?}"),
    };
    let content = manifest.content_id();
    let everything = || {
        [
            Request::ListFiles { group: group(), after: None },
            Request::FindFiles { group: group(), files: vec![Selector::Id(content.into())] },
            Request::Pages { group: group(), pages: vec![(content, 0)] },
            Request::Peers { group: group(), contents: vec![content] },
            Request::Ticket { group: group() },
            Request::Announce { group: group(), contents: vec![(content, true)] },
            Request::ListMembers { group: group(), after: None },
            Request::ListRequests { group: group() },
            Request::AcceptRequest { request_id: request_id(), group: group(), user: user("eve") },
            Request::Share {
                request_id: request_id(),
                group: group(),
                name: "x".parse().expect("a name"),
                head: manifest.head().encode(),
            },
        ]
    };
    for request in everything() {
        assert_eq!(code(request).await, "not-logged-in");
    }
    assert_eq!(code(Request::LoginByKey).await, "unknown-device");
    line.call(&Request::CreateUser {
        request_id: request_id(),
        user: user("eve"),
        password: password(),
        invite: None,
    })
    .await
    .expect("created");
    let wrong =
        Request::Login { request_id: request_id(), user: user("alice"), password: password() };
    // Alice's password happens to be the same here; eve still needs to know it.
    let guess = Request::Login {
        request_id: request_id(),
        user: user("alice"),
        password: Password("guess".to_owned()),
    };
    assert_eq!(code(guess).await, "wrong-credentials");
    line.call(&Request::Login {
        request_id: request_id(),
        user: user("eve"),
        password: password(),
    })
    .await
    .expect("in");
    assert_eq!(code(wrong).await, "logged-in-as-other");
    for request in everything() {
        assert_eq!(code(request).await, "not-a-member");
    }
    // A member who is not the owner.
    line.call(&Request::JoinGroup { request_id: request_id(), group: group() })
        .await
        .expect("asked");
    let own =
        Request::AcceptRequest { request_id: request_id(), group: group(), user: user("eve") };
    assert_eq!(code(own.clone()).await, "not-a-member");
    alice.accept_request(group(), user("eve")).await.expect("accepted");
    assert_eq!(code(own).await, "not-the-owner");
    let stop = Request::StopShare {
        request_id: request_id(),
        group: group(),
        file: "file.bin".parse().expect("a selector"),
    };
    assert_eq!(code(stop).await, "not-shared", "alice's share is not eve's");
    // A page nobody asked for, a page number beyond the last.
    let put = Request::PutPage { content, page: 0, bytes: manifest.page(0) };
    assert_eq!(code(put).await, "no-such-share");
    let beyond = Request::Pages { group: group(), pages: vec![(content, 1)] };
    let pages = line.call(&beyond).await.expect("a member's question");
    assert_eq!(pages, Reply::Pages { pages: vec![None] });
    let most = mtq::limits::MAX_FIND_BATCH;
    let too_many = Request::Pages { group: group(), pages: vec![(content, 0); most + 1] };
    assert_eq!(code(too_many).await, "limit");
    let too_many = Request::Peers { group: group(), contents: vec![content; most + 1] };
    assert_eq!(code(too_many).await, "limit");
    let files = vec![Selector::Id(content.into()); most + 1];
    assert_eq!(code(Request::FindFiles { group: group(), files }).await, "limit");
    net.end([alice]).await;
}

#[tokio::test]
async fn a_repeated_request_is_applied_once() {
    let net = Net::new();
    let (_endpoint, line, _pushes) = net.intruder().await;
    let create = Request::CreateUser {
        request_id: request_id(),
        user: user("eve"),
        password: password(),
        invite: None,
    };
    for _ in 0..3 {
        assert!(matches!(line.call(&create).await, Ok(Reply::Done)));
    }
    line.call(&Request::Login {
        request_id: request_id(),
        user: user("eve"),
        password: password(),
    })
    .await
    .expect("in");
    let make = Request::CreateGroup { request_id: request_id(), group: group(), hidden: false };
    for _ in 0..3 {
        assert!(matches!(line.call(&make).await, Ok(Reply::Done)));
    }
    let again = Request::CreateGroup { request_id: request_id(), group: group(), hidden: false };
    let refused = line.call(&again).await;
    assert!(matches!(refused, Err(CallError::Refused(Refusal::GroupExists(_)))));
    let groups = line.call(&Request::ListGroups { after: None }).await.expect("listed");
    let Reply::Groups { rows, more: false } = groups else { panic!("{groups:?}") };
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["lab", "public"]);
    net.end([]).await;
}

#[tokio::test]
async fn members_hear_of_newcomers_and_revocations() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(P, 6)).await;
    let (_endpoint, line, mut pushes) = net.insider("bob", &alice).await;
    let contents = vec![(manifest.content_id(), false)];
    line.call(&Request::Announce { group: group(), contents: contents.clone() })
        .await
        .expect("announced");
    let (_other_endpoint, other, _other_pushes) = net.insider("carol", &alice).await;
    other.call(&Request::Announce { group: group(), contents }).await.expect("announced");
    soon("the newcomer", async {
        loop {
            if let Push::SwarmJoined { content, peer, .. } = pushes.next().await.expect("a push") {
                assert_eq!((content, peer.user), (manifest.content_id(), user("carol")));
                return;
            }
        }
    })
    .await;
    other
        .call(&Request::LeaveGroup { request_id: request_id(), group: group() })
        .await
        .expect("left");
    soon("the revocation", async {
        while !matches!(pushes.next().await.expect("a push"), Push::Revoked { .. }) {}
    })
    .await;
    net.end([alice]).await;
}

#[tokio::test]
async fn a_tracker_survives_junk_and_serves_on() {
    let net = Net::new();
    let (endpoint, line, _pushes) = net.intruder().await;
    // Junk instead of a hello, on connections of their own.
    for junk in [vec![0xff; 64], vec![4, 0, 0, 0, 1, 2, 3, 4], vec![0, 0, 0, 0]] {
        let dialled = endpoint.dial(address(&net.link), Alpn::Tracker, net.link.peer_id()).await;
        let connection = dialled.expect("dialled");
        let mut control = connection.open_control().await.expect("a stream");
        let _ = control.write_all(&junk).await;
        let end = soon("the end", connection.closed()).await;
        assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "{end}");
    }
    // The wrong protocol for this port.
    let wrong = endpoint.dial(address(&net.link), Alpn::Peer, net.link.peer_id()).await;
    assert!(wrong.is_err());
    // A request that is none.
    let dialled = endpoint.dial(address(&net.link), Alpn::Tracker, net.link.peer_id()).await;
    let connection = dialled.expect("dialled");
    let mut control = connection.open_control().await.expect("a stream");
    let hello = Hello {
        features: u64::MAX,
        agent: "evil".to_owned(),
        session: 2,
        addresses: Vec::new(),
        roster: None,
        extensions: Vec::new(),
    };
    write_frame(&mut control, &hello).await.expect("written");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&[1, 0, 0, 0, 200]).await.expect("written");
    let end = soon("the end", connection.closed()).await;
    assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "{end}");
    // Everybody else goes on.
    let created = Request::CreateUser {
        request_id: request_id(),
        user: user("bob"),
        password: password(),
        invite: None,
    };
    line.call(&created).await.expect("created");
    net.end([]).await;
}

fn address(link: &TrackerLink) -> SocketAddr {
    format!("{}:{}", link.host(), link.port()).parse().expect("an address")
}

#[tokio::test]
async fn after_a_shutdown_the_directory_and_the_port_are_free() {
    let net = Net::new();
    let agent = net.agent("alice").await;
    let data_dir = agent.data_dir().to_owned();
    agent.shutdown().await;
    drop(agent);
    let trackers = TrackerInfo::new(vec![net.link.clone()]).expect("one tracker");
    let listen = Some(loopback());
    let again = soon("the lock", async {
        loop {
            let config =
                AgentConfig { listen, ..AgentConfig::new(data_dir.clone(), trackers.clone()) };
            match Agent::start(config) {
                Ok(agent) => return agent,
                Err(error) => assert_eq!(error.code(), "locked"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Its login outlives it.
    assert_eq!(again.user(), Some(user("alice")));
    assert_eq!(
        again.login_by_key(&user("alice")).await.expect("asked").map(|known| known.user),
        Some(user("alice"))
    );
    let port = net.tracker.local_address().expect("an address");
    net.end([again]).await;
    soon("the port", async {
        while std::net::UdpSocket::bind(port).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
