//! Who may no longer is served no longer: kicked members, removed devices, disabled users.

use mtq::client::agent::Agent;
use mtq::error_code::ErrorCode;
use mtq::id::RequestId;
use mtq::manifest::ContentId;
use mtq::swarm::message::{Control, Nack, PieceHeader};
use mtq::tracker::command::{Actor, Command};
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::stub::{CallError, PushQueue, TrackerConnection};
use mtq::transport::endpoint::Endpoint;

use crate::net::{Net, granted, group, password, refused, request_id, sign_up, soon, user};
use crate::raw_peer::{RawPeer, peer_of, ticket};
use crate::world::content;

const P: usize = 524_288;

/// A member who has a swarm of alice's open and gets pieces of it.
struct Served {
    line: TrackerConnection,
    pushes: PushQueue,
    endpoint: Endpoint,
    peer: RawPeer,
    ticket: Vec<u8>,
    content: ContentId,
}

impl Served {
    async fn new(net: &Net, alice: &Agent, content: ContentId) -> Self {
        let (endpoint, line, pushes) = net.insider("bob", alice).await;
        let (lab, ticket) = ticket(&line).await;
        let mut peer = RawPeer::dial(&endpoint, peer_of(&line, content).await).await;
        peer.say(&Control::Ticket { ticket: ticket.clone() }).await;
        peer.say(&Control::Open { swarm: 0, group: lab, content }).await;
        // Her ticket, her opening of the same swarm, and what she has.
        while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
        let header = peer.request(0, 0).await.expect("an answer");
        assert!(matches!(header, PieceHeader::Data { .. }), "{header:?}");
        Self { line, pushes, endpoint, peer, ticket, content }
    }

    /// The seeder ends the swarm with REVOKED, serves nothing more, and takes the ticket no more.
    async fn is_cut_off(&mut self, net: &Net) {
        soon("the end of the swarm", async {
            loop {
                if let Control::Close { code, .. } = self.peer.hear().await {
                    assert_eq!(code, ErrorCode::Revoked.number());
                    return;
                }
            }
        })
        .await;
        let header = self.peer.request(0, 1).await.expect("an answer");
        assert!(matches!(header, PieceHeader::Nack(Nack::Revoked | Nack::NoSwarm)), "{header:?}");
        let (_endpoint, line, _pushes) = net.intruder().await;
        sign_up(&line, "carol").await;
        let at = (self.peer.connection.remote(), self.peer.connection.remote_address());
        let mut again = RawPeer::dial(&self.endpoint, at).await;
        again.say(&Control::Ticket { ticket: self.ticket.clone() }).await;
        let group = net.tracker.shared().store.read(|s| s.group_named(&group())).expect("lab");
        again.say(&Control::Open { swarm: 0, group, content: self.content }).await;
        let code = ErrorCode::NoTicket.number();
        assert_eq!(again.hear().await, Control::Close { swarm: 0, refused: true, code });
    }
}

#[tokio::test]
async fn a_kicked_member_is_served_no_longer() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(2 * P, 31)).await;
    let mut bob = Served::new(&net, &alice, manifest.content_id()).await;
    alice.kick(group(), user("bob")).await.expect("kicked");
    bob.is_cut_off(&net).await;
    assert_eq!(refused(&bob.line, Request::Ticket { group: group() }).await, "not-a-member");
    soon("the news", async {
        while !matches!(bob.pushes.next().await.expect("a push"), Push::Removed { .. }) {}
    })
    .await;
    // Let in again, under another membership, bob is served again.
    granted(&bob.line, Request::JoinGroup { request_id: request_id(), group: group() }).await;
    alice.accept_request(group(), user("bob")).await.expect("accepted");
    let (lab, fresh) = ticket(&bob.line).await;
    let at = (bob.peer.connection.remote(), bob.peer.connection.remote_address());
    let mut peer = RawPeer::dial(&bob.endpoint, at).await;
    peer.say(&Control::Ticket { ticket: fresh }).await;
    peer.say(&Control::Open { swarm: 3, group: lab, content: bob.content }).await;
    while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
    let header = peer.request(3, 1).await.expect("an answer");
    assert!(matches!(header, PieceHeader::Data { .. }), "{header:?}");
    net.end([alice]).await;
}

#[tokio::test]
async fn a_removed_device_is_signed_out_and_served_no_longer() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(2 * P, 32)).await;
    let mut bob = Served::new(&net, &alice, manifest.content_id()).await;
    // Bob's other device removes the one that downloads.
    let (_other, line, _pushes) = net.intruder().await;
    granted(
        &line,
        Request::Login { request_id: request_id(), user: user("bob"), password: password() },
    )
    .await;
    let Reply::Devices { rows } = granted(&line, Request::ListDevices).await else {
        panic!("no devices")
    };
    assert_eq!(rows.len(), 2);
    let device = bob.endpoint.identity().peer_id();
    granted(&line, Request::RemoveDevice { request_id: request_id(), device }).await;
    bob.is_cut_off(&net).await;
    soon("the news", async {
        while bob.pushes.next().await.expect("a push") != Push::SignedOut {}
    })
    .await;
    assert_eq!(refused(&bob.line, Request::Ticket { group: group() }).await, "not-logged-in");
    assert_eq!(refused(&bob.line, Request::LoginByKey).await, "unknown-device");
    // Enrolled again with the password, the same device gets tickets that hold.
    granted(
        &bob.line,
        Request::Login { request_id: request_id(), user: user("bob"), password: password() },
    )
    .await;
    let (lab, fresh) = ticket(&bob.line).await;
    let at = (bob.peer.connection.remote(), bob.peer.connection.remote_address());
    let mut peer = RawPeer::dial(&bob.endpoint, at).await;
    peer.say(&Control::Ticket { ticket: fresh }).await;
    peer.say(&Control::Open { swarm: 0, group: lab, content: bob.content }).await;
    while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
    net.end([alice]).await;
}

#[tokio::test]
async fn a_disabled_user_is_gone_at_once() {
    let net = Net::new();
    let (alice, manifest) = net.seeder(&content(2 * P, 33)).await;
    let mut bob = Served::new(&net, &alice, manifest.content_id()).await;
    let shared = net.tracker.shared();
    let operator = Actor::Operator(shared.endpoint.identity().peer_id());
    let id = RequestId::random(&mut fastrand::Rng::new());
    let disable = Command::DisableUser { user: user("bob") };
    shared.store.propose(operator, id, disable).await.expect("disabled");
    bob.is_cut_off(&net).await;
    let login =
        Request::Login { request_id: request_id(), user: user("bob"), password: password() };
    let answer = soon("an answer", bob.line.call(&login)).await;
    let Err(CallError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.code(), "disabled");
    net.end([alice]).await;
}

#[tokio::test]
async fn a_device_whose_password_changed_elsewhere_is_signed_out() {
    let net = Net::new();
    let alice = net.agent("alice").await;
    let (_endpoint, line, mut pushes) = net.intruder().await;
    granted(
        &line,
        Request::Login { request_id: request_id(), user: user("alice"), password: password() },
    )
    .await;
    let new = mtq::tracker::message::Password("another".to_owned());
    let wrong = mtq::tracker::message::Password("wrong".to_owned());
    let refused = alice.change_password(wrong, new.clone()).await.expect_err("wrong");
    assert_eq!(refused.code(), "wrong-credentials");
    alice.change_password(password(), new).await.expect("changed");
    soon("the news", async { while pushes.next().await.expect("a push") != Push::SignedOut {} })
        .await;
    let old =
        Request::Login { request_id: request_id(), user: user("alice"), password: password() };
    assert_eq!(crate::net::refused(&line, old).await, "wrong-credentials");
    alice.list_groups().await.expect("still logged in");
    net.end([alice]).await;
}

#[tokio::test]
async fn whoever_was_away_hears_what_was_revoked_meanwhile() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(P, 34)).await;
    let (endpoint, line, _pushes) = net.insider("bob", &alice).await;
    let (_carols, _line, _queue) = net.insider("carol", &alice).await;
    line.close(ErrorCode::Done);
    alice.kick(group(), user("carol")).await.expect("kicked");
    // Bob is back, by his key.
    let (line, mut pushes) = net.reconnect(&endpoint).await;
    granted(&line, Request::LoginByKey).await;
    soon("the revocation", async {
        loop {
            if let Push::Revoked { memberships, devices } = pushes.next().await.expect("a push") {
                assert_eq!((memberships.len(), devices.len()), (1, 0));
                return;
            }
        }
    })
    .await;
    net.end([alice]).await;
}

/// An agent whose device was removed stops sharing, and says so.
#[tokio::test]
async fn an_agent_that_is_signed_out_stops_everything() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(P, 35)).await;
    let mut notices = alice.notices();
    let (_endpoint, line, _pushes) = net.intruder().await;
    granted(
        &line,
        Request::Login { request_id: request_id(), user: user("alice"), password: password() },
    )
    .await;
    let device = alice.peer_id();
    granted(&line, Request::RemoveDevice { request_id: request_id(), device }).await;
    soon("the news", async {
        use mtq::client::report::Notice;
        while !matches!(notices.recv().await.expect("news"), Notice::SignedOut { .. }) {}
    })
    .await;
    assert!(alice.user().is_none());
    assert!(alice.downloads().is_empty());
    let error = alice.list_groups().await.expect_err("not logged in");
    assert_eq!(error.code(), "not-logged-in");
    net.end([alice]).await;
}

#[tokio::test]
async fn whoever_waits_for_a_download_hears_that_the_membership_ended() {
    let net = Net::new();
    let (alice, bob) = (net.agent("alice").await, net.agent("bob").await);
    alice.create_group(group(), false).await.expect("created");
    bob.join_group(group()).await.expect("asked");
    alice.accept_request(group(), user("bob")).await.expect("accepted");
    // Listed, and nobody has it: the download waits.
    let (_endpoint, line, _pushes) = net.insider("carol", &alice).await;
    crate::listings::list(&line, "ghost", 1).await;
    let dest = net.path("dest");
    std::fs::create_dir(&dest).expect("made");
    let file = "ghost".parse().expect("a selector");
    bob.get(group(), file, &dest).await.expect("started");
    alice.kick(group(), user("bob")).await.expect("kicked");
    let error = bob.wait(Some(crate::world::DEADLINE)).await.expect_err("it will not come");
    assert_eq!(error.code(), "not-a-member");
    let again = bob.get(group(), "ghost".parse().expect("a selector"), &dest).await;
    assert_eq!(again.expect_err("not a member").code(), "not-a-member");
    net.end([alice, bob]).await;
}
