//! The uploading side: shares of users who flood, rate limits, and how a seeder stops.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mtq::clock;
use mtq::error_code::ErrorCode;
use mtq::id::{GroupId, MembershipId};
use mtq::limits::{
    CONTROL_COST, CONTROL_WINDOW, MAX_PEER_CONNECTIONS, MAX_SESSIONS_PER_USER, MAX_STRANGERS,
    PEER_STREAMS, SESSION_CONTROL, SLOW_WRITE, TICKET_DEADLINE,
};
use mtq::manifest::ContentId;
use mtq::swarm::hashing::hash_file;
use mtq::swarm::hub::Hub;
use mtq::swarm::message::{Control, Nack, PieceHeader, PieceRequest};
use mtq::swarm::rates::RateLimits;
use mtq::swarm::registry::Registry;
use mtq::swarm::session::{Swarm, SwarmKey};
use mtq::swarm::storage::PieceStore;
use mtq::swarm::trust::Trust;
use mtq::swarm::upload_counts::UploadCounts;
use mtq::ticket::{Holder, Ticket};
use mtq::transport::code::quic_code;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{read_frame, write_frame};
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::net::{loopback, soon, user};
use crate::raw_peer::RawPeer;
use crate::world::{Client, World, content, quoted};

const P: usize = 524_288;
const MIB: u64 = 1024 * 1024;
const LAB: GroupId = GroupId([7; 16]);

/// A seeder of one file with nothing around it: whoever the test says has a ticket.
struct Seeder {
    _dir: TempDir,
    tracker: Identity,
    endpoint: Endpoint,
    registry: Arc<Registry>,
    hub: Hub,
    key: SwarmKey,
}

impl Seeder {
    fn new(pieces: usize, limits: RateLimits) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file.bin");
        fs::write(&path, content(pieces * P, 1)).expect("written");
        let (manifest, stamp) = hash_file(&path, &|_| true).expect("hashed");
        let manifest = Arc::new(manifest);
        let key = SwarmKey { group: LAB, content: manifest.content_id() };
        let tracker = Identity::generate();
        let endpoint = device();
        let registry = Arc::new(Registry::new(Trust::new([tracker.peer_id()]), limits));
        let store = Arc::new(PieceStore::whole(manifest, path, stamp));
        registry.add_swarm(Arc::new(Swarm { key, store, news: None }));
        let hub = Hub::start(endpoint.clone(), registry.clone());
        let seeder = Self { _dir: dir, tracker, endpoint, registry, hub, key };
        let own = seeder.ticket(&seeder.endpoint, "alice");
        seeder.registry.set_ticket(LAB, own);
        seeder
    }

    fn ticket(&self, device: &Endpoint, name: &str) -> Vec<u8> {
        let holder = Holder {
            peer_id: device.identity().peer_id(),
            user: user(name),
            group: LAB,
            group_name: "lab".parse().expect("a name"),
            membership: MembershipId([name.len() as u8; 16]),
            offline_grace: 0,
        };
        let (now, key) = (clock::now(), self.tracker.public_key());
        Ticket::sign(holder, now, now, key, &|message| self.tracker.sign(message))
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address().expect("an address")
    }

    /// A new device of a user.
    async fn stranger(&self) -> (Endpoint, RawPeer) {
        let device = device();
        let at = (self.endpoint.identity().peer_id(), self.address());
        let peer = RawPeer::dial(&device, at).await;
        (device, peer)
    }

    /// A new device of a user that has the swarm open as number 0.
    async fn member(&self, name: &str) -> (Endpoint, RawPeer) {
        let (device, mut peer) = self.stranger().await;
        peer.say(&Control::Ticket { ticket: self.ticket(&device, name) }).await;
        peer.say(&Control::Open { swarm: 0, group: LAB, content: self.key.content }).await;
        while !matches!(peer.hear().await, Control::Bitfield { .. }) {}
        (device, peer)
    }

    fn counts(&self, name: &str) -> UploadCounts {
        let users = self.registry.uploads(self.key);
        let found = users.into_iter().find(|(known, _)| *known == user(name));
        found.map(|(_, counts)| counts).unwrap_or_default()
    }

    async fn end(self) {
        self.hub.shutdown().await;
        self.endpoint.close(ErrorCode::GoingAway).await;
    }
}

fn device() -> Endpoint {
    Endpoint::bind(Arc::new(Identity::generate()), loopback(), &[Alpn::Peer]).expect("bound")
}

/// Asks for a piece and reads all of it; the header when it is not served.
async fn fetch(peer: &mtq::transport::connection::Connection, piece: u32) -> Result<usize, Nack> {
    let (mut send, mut recv) = peer.open_bi().await.expect("a stream");
    write_frame(&mut send, &PieceRequest { swarm: 0, piece }).await.expect("asked");
    let _ = send.finish();
    loop {
        match soon("a header", read_frame(&mut recv, 64)).await.expect("a header") {
            PieceHeader::Queued => {}
            PieceHeader::Nack(nack) => return Err(nack),
            PieceHeader::Proven { .. } => panic!("the hello did not say that it takes midstates"),
            PieceHeader::Data { len, .. } => {
                let body = soon("the body", recv.read_to_end(P + 1)).await.expect("a body");
                assert_eq!(body.len(), len as usize);
                return Ok(body.len());
            }
        }
    }
}

/// What a flooding device does with its streams.
#[derive(Clone, Copy)]
enum Flood {
    /// Reads everything.
    Reads,
    /// Stops each answer as soon as it is asked for.
    Stops,
    /// Stops it before that.
    Churns,
    /// Reads nothing.
    Ignores,
}

/// Keeps every stream of a device busy until it is dropped; counts the requests.
async fn flood(peer: RawPeer, how: Flood, asked: Arc<AtomicU64>) {
    let mut streams = JoinSet::new();
    for number in 0..PEER_STREAMS {
        let (connection, asked) = (peer.connection.clone(), asked.clone());
        streams.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let Ok((mut send, mut recv)) = connection.open_bi().await else { return };
                let piece = (asked.fetch_add(1, Ordering::Relaxed) as u32 + number) % 40;
                if write_frame(&mut send, &PieceRequest { swarm: 0, piece }).await.is_err() {
                    return;
                }
                let _ = send.finish();
                match how {
                    Flood::Reads => {
                        let _ = recv.read_to_end(2 * P).await;
                    }
                    Flood::Stops => {
                        // The header shows that it was being served.
                        let _: Result<PieceHeader, _> = read_frame(&mut recv, 64).await;
                        let _ = recv.stop(quic_code(ErrorCode::Cancelled));
                    }
                    Flood::Churns => {
                        let _ = recv.stop(quic_code(ErrorCode::Cancelled));
                        tokio::task::yield_now().await;
                    }
                    Flood::Ignores => kept.push(recv),
                }
            }
        });
    }
    while streams.join_next().await.is_some() {}
    drop(peer);
}

/// Requests after which a flood is one.
const FLOOD: u64 = 500;

/// Bob gets 40 pieces, some at a time, beside mallory's flood; his share of what was sent.
async fn share_beside_a_flood(limits: RateLimits) -> f64 {
    let seeder = Seeder::new(40, limits);
    let (_device, bob) = seeder.member("bob").await;
    let (asked, mut floods) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let mut devices = Vec::new();
    for how in [Flood::Reads, Flood::Reads, Flood::Stops, Flood::Churns, Flood::Ignores] {
        let (device, peer) = seeder.member("mallory").await;
        devices.push(device);
        floods.spawn(flood(peer, how, asked.clone()));
    }
    soon("the flood", async {
        while asked.load(Ordering::Relaxed) < FLOOD || seeder.counts("mallory").pieces == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let before = seeder.counts("mallory").sent_bytes;
    let next = Arc::new(AtomicU64::new(0));
    let mut fetches = JoinSet::new();
    for _ in 0..8 {
        let (connection, next) = (bob.connection.clone(), next.clone());
        fetches.spawn(async move {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed) as u32;
                if piece >= 40 {
                    return;
                }
                assert_eq!(fetch(&connection, piece).await, Ok(P));
            }
        });
    }
    // While fewer than eight are left he does not ask for all he could.
    let bob_sent = || seeder.counts("bob").sent_bytes;
    soon("most of the file", async {
        while bob_sent() < 32 * P as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let (his, hers) = (bob_sent(), seeder.counts("mallory").sent_bytes - before);
    while let Some(done) = soon("the rest", fetches.join_next()).await {
        done.expect("all of it came");
    }
    soon("the last acknowledgement", async {
        while seeder.counts("bob").delivered_bytes < 40 * P as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    floods.shutdown().await;
    drop((bob, devices));
    seeder.end().await;
    his as f64 / (his + hers) as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_over_many_devices_leaves_others_their_share() {
    for up in [None, Some(16 * MIB)] {
        let share = share_beside_a_flood(RateLimits { up, down: None }).await;
        assert!(share >= 0.4, "bob got {share} of what was sent, limit {up:?}");
    }
}

/// A seeder so slow that what it has begun is under way for half a minute, and bob, who asks for
/// all eight pieces: what comes of each.
async fn slow_seeder() -> (Seeder, RawPeer, JoinSet<Result<usize, Nack>>) {
    let seeder = Seeder::new(8, RateLimits { up: Some(32 * 1024), down: None });
    let (_device, bob) = seeder.member("bob").await;
    // What the limit had saved up.
    assert_eq!(fetch(&bob.connection, 0).await, Ok(P));
    let answers = ask_for(&bob, 0..8);
    soon("bytes under way", async {
        while seeder.counts("bob").sent_bytes <= P as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    (seeder, bob, answers)
}

fn ask_for(peer: &RawPeer, pieces: std::ops::Range<u32>) -> JoinSet<Result<usize, Nack>> {
    let connection = &peer.connection;
    let ask = |piece| (connection.clone(), piece);
    JoinSet::from_iter(
        pieces.map(ask).map(|(connection, piece)| async move { fetch(&connection, piece).await }),
    )
}

#[tokio::test]
async fn who_waits_for_a_share_that_is_stopped_is_told_and_what_is_under_way_arrives() {
    let (seeder, bob, mut answers) = slow_seeder().await;
    seeder.registry.remove_swarm(seeder.key, ErrorCode::Done);
    for _ in 0..6 {
        let answer = soon("an answer", answers.join_next()).await.expect("an answer");
        assert_eq!(answer.expect("no panic"), Err(Nack::NoSwarm));
    }
    // Two were being written; nothing holds them up any more.
    seeder.registry.set_limits(None, RateLimits::default());
    while let Some(answer) = soon("an answer", answers.join_next()).await {
        assert_eq!(answer.expect("no panic"), Ok(P));
    }
    assert_eq!(fetch(&bob.connection, 0).await, Err(Nack::NoSwarm));
    seeder.end().await;
}

#[tokio::test]
async fn a_seeder_that_goes_away_says_so_and_finishes_what_is_under_way() {
    let (seeder, mut bob, mut answers) = slow_seeder().await;
    let hub = seeder.hub.clone();
    let mut going = JoinSet::from_iter([async move { hub.shutdown().await }]);
    while bob.hear().await != Control::GoingAway {}
    for _ in 0..6 {
        let answer = soon("an answer", answers.join_next()).await.expect("an answer");
        assert_eq!(answer.expect("no panic"), Err(Nack::GoingAway));
    }
    assert_eq!(fetch(&bob.connection, 7).await, Err(Nack::GoingAway));
    seeder.registry.set_limits(None, RateLimits::default());
    while let Some(answer) = soon("an answer", answers.join_next()).await {
        assert_eq!(answer.expect("no panic"), Ok(P));
    }
    assert_eq!(bob.close_code().await, Some(ErrorCode::GoingAway));
    soon("the end", going.join_next()).await;
    let counts = seeder.counts("bob");
    assert_eq!((counts.pieces, counts.refused.going_away), (3, 7));
    seeder.end().await;
}

#[tokio::test]
async fn a_peer_that_takes_not_even_a_header_holds_up_nobody() {
    // Two bodies are written at once.
    let seeder = Seeder::new(20, RateLimits { up: Some(64 * MIB), down: None });
    // She was dialled: she lets a few pieces come, reads none, and no header fits behind them.
    let device = device();
    let (peer, address) = (device.identity().peer_id(), device.local_address().expect("bound"));
    seeder.hub.connect(peer, vec![address], seeder.key);
    let incoming = soon("the seeder", device.accept(1, || {})).await.expect("open");
    let mut mallory = RawPeer::greet(incoming.finish().await.expect("a connection")).await;
    mallory.say(&Control::Ticket { ticket: seeder.ticket(&device, "mallory") }).await;
    mallory.say(&Control::Open { swarm: 0, group: LAB, content: seeder.key.content }).await;
    while !matches!(mallory.hear().await, Control::Bitfield { .. }) {}
    let mut unread = Vec::new();
    for piece in 0..20 {
        let (mut send, recv) = mallory.connection.open_bi().await.expect("a stream");
        write_frame(&mut send, &PieceRequest { swarm: 0, piece }).await.expect("asked");
        unread.push((send, recv));
    }
    let fit = CONTROL_WINDOW / P as u64 - 1;
    soon("a full window", async {
        while seeder.counts("mallory").pieces < fit {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    // The next ones stand still, until they are known to.
    tokio::time::sleep(3 * SLOW_WRITE).await;
    let (_device, bob) = seeder.member("bob").await;
    let mut answers = ask_for(&bob, 0..20);
    while let Some(answer) = soon("an answer", answers.join_next()).await {
        assert_eq!(answer.expect("no panic"), Ok(P));
    }
    drop((unread, mallory));
    seeder.end().await;
}

#[tokio::test]
async fn strangers_do_not_fill_the_connections_of_an_agent() {
    let seeder = Seeder::new(1, RateLimits::default());
    let (_device, bob) = seeder.member("bob").await;
    let mut strangers = Vec::new();
    let begun = clock::monotonic();
    for _ in 0..=MAX_STRANGERS {
        strangers.push(seeder.stranger().await);
    }
    assert!(begun.elapsed() < TICKET_DEADLINE, "too slow to tell");
    let (_, first) = strangers.remove(0);
    assert_eq!(first.close_code().await, Some(ErrorCode::LimitReached));
    // Whoever showed a ticket is none of them, and the others may still do it.
    assert_eq!(fetch(&bob.connection, 0).await, Ok(P));
    assert!(strangers.iter().all(|(_, peer)| !peer.connection.is_closed()));
    drop(strangers);
    seeder.end().await;
}

#[tokio::test]
async fn full_of_connections_an_agent_ends_one_without_a_ticket_for_who_has_one() {
    let seeder = Seeder::new(1, RateLimits::default());
    let (_device, mallory) = seeder.member("mallory").await;
    let mut members = Vec::new();
    for number in 1..MAX_PEER_CONNECTIONS {
        members.push(seeder.member(&format!("u{:02}", number % 20)).await);
    }
    // All are of use, or were lately: there is no room.
    let one_more = device();
    let at = || (seeder.endpoint.identity().peer_id(), seeder.address());
    assert!(one_more.dial(at().1, Alpn::Peer, at().0).await.is_err());
    // She is a member no more.
    seeder.registry.revoke(&[MembershipId(["mallory".len() as u8; 16])], &[]);
    let (_device, bob) = seeder.member("bob").await;
    assert_eq!(mallory.close_code().await, Some(ErrorCode::LimitReached));
    assert_eq!(fetch(&bob.connection, 0).await, Ok(P));
    assert!(members.iter().all(|(_, peer)| !peer.connection.is_closed()));
    drop(members);
    seeder.end().await;
}

#[tokio::test]
async fn floods_of_costly_frames_wait_and_are_no_crime() {
    let seeder = Seeder::new(1, RateLimits::default());
    let (device, mut mallory) = seeder.member("mallory").await;
    let ticket = seeder.ticket(&device, "mallory");
    let (_, burst) = SESSION_CONTROL;
    // What is known already costs no signature, but the same.
    for _ in 0..burst / CONTROL_COST.1 + 100 {
        mallory.say(&Control::Ticket { ticket: ticket.clone() }).await;
    }
    let begun = clock::monotonic();
    let unknown = Control::Open { swarm: 1, group: LAB, content: ContentId([9; 32]) };
    mallory.say(&unknown).await;
    while !matches!(mallory.hear().await, Control::Close { swarm: 1, .. }) {}
    // Some of them came at the pace that is allowed; a tenth of a second is far from all.
    assert!(begun.elapsed() > Duration::from_millis(100), "{:?}", begun.elapsed());
    assert_eq!(fetch(&mallory.connection, 0).await, Ok(P));
    seeder.end().await;
}

#[tokio::test]
async fn a_user_has_a_session_for_each_device_and_no_more() {
    let seeder = Seeder::new(1, RateLimits::default());
    let (_device, bob) = seeder.member("bob").await;
    let mut devices = Vec::new();
    for _ in 0..=MAX_SESSIONS_PER_USER {
        devices.push(seeder.member("mallory").await);
    }
    let (_, oldest) = devices.remove(0);
    assert_eq!(oldest.close_code().await, Some(ErrorCode::LimitReached));
    for (_, peer) in &devices {
        assert_eq!(fetch(&peer.connection, 0).await, Ok(P));
    }
    assert_eq!(fetch(&bob.connection, 0).await, Ok(P));
    drop(devices);
    seeder.end().await;
}

#[test]
fn rate_limits_hold_and_change_while_it_runs() {
    let world = World::new();
    let [mut owner, mut bob] = world.lab(["owner", "bob"]);
    // Alice is another client, started with a limit.
    let mut command = world.client_command("alice");
    command.args(["--up", "1MiB", "--down", "none"]);
    let mut alice = Client::start("alice", command, &world.path("alice.log"));
    alice.sign_up();
    alice.ok("join-group lab");
    owner.ok("accept-request lab alice");
    let limits = alice.ok("limit");
    let both = |up: Value, down: Value| (up, down);
    let of = |limits: &Value| {
        both(limits["up_bytes_per_sec"].clone(), limits["down_bytes_per_sec"].clone())
    };
    assert_eq!(of(&limits), both(MIB.into(), Value::Null));

    let bytes = content(2 * MIB as usize, 1);
    let path = world.write("two.bin", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    let get = |name: &str| format!("get lab {name} {}", quoted(&dest));
    let begun = clock::monotonic();
    bob.ok(&get("two.bin"));
    bob.ok("wait --timeout 100");
    // A second's worth goes at once, and the last chunk on credit.
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(fs::read(dest.join("two.bin")).expect("arrived") == bytes);

    // One share so slow that it would take minutes; another is not touched by that.
    for (name, seed) in [("slow.bin", 2), ("fast.bin", 3)] {
        let path = world.write(name, &content(4 << 20, seed));
        alice.ok(&format!("share {} lab", quoted(&path)));
    }
    assert_eq!(of(&alice.ok("limit --up 16KiB lab slow.bin")), both(16_384.into(), Value::Null));
    assert_eq!(of(&alice.ok("limit --up 0")), both(Value::Null, Value::Null));
    bob.ok(&get("slow.bin"));
    owner.ok(&get("fast.bin"));
    owner.ok("wait --timeout 100");
    assert_eq!(bob.row("slow.bin")["state"], "downloading");
    assert_eq!(of(&alice.ok("limit lab slow.bin")), both(16_384.into(), Value::Null));
    alice.ok("limit --up none lab slow.bin");
    bob.ok("wait --timeout 100");

    assert_eq!(alice.err("limit --up 1MiB lab nothing.bin"), "not-here");
    assert_eq!(alice.err("limit --up soon"), "usage");
    assert_eq!(alice.err("limit lab"), "usage");
    alice.quit();
    bob.quit();
    owner.quit();
}
