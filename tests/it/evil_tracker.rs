//! Trackers that are none, and one of the roster that does not keep to the rules: turned away, cut
//! off or not believed, and nothing changes.

use std::sync::Arc;

use mtq::clock;
use mtq::error_code::ErrorCode;
use mtq::hash::{Blake3Hash, blake3};
use mtq::id::{OriginId, RequestId, UserId};
use mtq::limits::{MAX_FRAME_LEN, MAX_ORIGINS, SYNC_BATCH_OPS};
use mtq::peer_id::PeerId;
use mtq::roster::{Roster, RosterEntry};
use mtq::tracker::feed::OpBatch;
use mtq::tracker::gossip::News;
use mtq::tracker::op::{Change, Op};
use mtq::tracker::sync_message::{SyncHello, SyncMessage};
use mtq::tracker::vector::{Knowledge, Vector};
use mtq::tracker_link::TrackerLink;
use mtq::transport::connection::{Connection, ConnectionError, RecvStream, SendStream};
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{frame_bytes, read_frame, write_frame};
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;

use crate::cluster::{Cluster, Device, named};
use crate::net::{loopback, soon};

/// Presence in one message, as trackers take it.
const GOSSIP_BATCH: usize = 1_000;

/// A tracker at the level of frames.
struct Rogue {
    endpoint: Endpoint,
    link: TrackerLink,
}

/// One of its connections.
struct Wire {
    connection: Connection,
    writer: SendStream,
    reader: RecvStream,
}

impl Rogue {
    fn new(identity: Identity, link: TrackerLink) -> Self {
        let endpoint =
            Endpoint::bind(Arc::new(identity), loopback(), &[Alpn::Sync]).expect("bound");
        Self { endpoint, link }
    }

    async fn dial(&self) -> Connection {
        let at = (std::net::Ipv4Addr::LOCALHOST, self.link.port()).into();
        let dialled = self.endpoint.dial(at, Alpn::Sync, self.link.peer_id()).await;
        dialled.expect("dialled")
    }

    /// Says hello with this knowledge.
    async fn greet(&self, knowledge: Knowledge) -> Wire {
        let connection = self.dial().await;
        let mut writer = connection.open_control().await.expect("a stream");
        let (agent, time) = ("rogue".to_owned(), clock::now());
        let hello = SyncHello { features: 0, agent, time, knowledge, extensions: Vec::new() };
        write_frame(&mut writer, &hello).await.expect("written");
        let reader = soon("a stream", connection.accept_control()).await.expect("a stream");
        Wire { connection, writer, reader }
    }

    /// Past the hellos.
    async fn meet(&self) -> Wire {
        let mut wire = self.greet(Knowledge::default()).await;
        let hello = soon("a hello", read_frame::<SyncHello>(&mut wire.reader, MAX_FRAME_LEN)).await;
        hello.expect("a hello");
        wire
    }
}

impl Wire {
    async fn say(&mut self, message: &SyncMessage) {
        write_frame(&mut self.writer, message).await.expect("written");
    }

    /// Sends ops and waits until the tracker says that it has dealt with them.
    async fn tell(&mut self, number: u64, ops: &[Op]) -> Vector {
        let ops = ops.iter().map(Op::encode).collect();
        self.say(&SyncMessage::Ops(OpBatch { number, ops })).await;
        soon("word of the batch", async {
            loop {
                let message = read_frame(&mut self.reader, MAX_FRAME_LEN).await.expect("goes on");
                if let SyncMessage::Have { heard, vector, .. } = message
                    && heard == number
                {
                    return vector;
                }
            }
        })
        .await
    }

    async fn end(&self) -> Option<ErrorCode> {
        end_of(&self.connection).await
    }
}

/// The code the other side closed the connection with.
async fn end_of(connection: &Connection) -> Option<ErrorCode> {
    match soon("the end", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            ErrorCode::from_number(close.error_code.into_inner())
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_in_the_roster_is_turned_away() {
    let cluster = Cluster::new(2);
    let before = cluster.wait_level();
    let stranger = Rogue::new(Identity::generate(), cluster.link(0));
    let connection = stranger.dial().await;
    assert_eq!(end_of(&connection).await, Some(ErrorCode::NotATracker));
    // However fast it speaks.
    let connection = stranger.dial().await;
    if let Ok(mut writer) = connection.open_control().await {
        let said = SyncMessage::Presence(vec![News::Begin]);
        let _ = writer.write_all(&frame_bytes(&said)).await;
    }
    assert_eq!(end_of(&connection).await, Some(ErrorCode::NotATracker));
    assert_eq!(cluster.wait_level(), before);
}

/// The first op of an origin that a tracker begins, and another one after whatever op it is told.
fn began(origin: OriginId, tracker: PeerId) -> Op {
    op(origin, 1, Blake3Hash([0; 32]), &Change::OriginBegan { tracker, vector: Vec::new() })
}

fn op(origin: OriginId, seq: u64, previous: Blake3Hash, change: &Change) -> Op {
    let (kind, body) = change.encode();
    let (clock, actor) = (clock::now(), PeerId([9; 32]));
    let request = RequestId([seq as u8; 16]);
    Op { origin, seq, previous, clock, actor, request, kind, body }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracker_that_breaks_the_rules_is_cut_off_and_changes_nothing() {
    let mut cluster = Cluster::new(2);
    let (_device, alice) = Device::of("alice", &cluster.link(0)).await;
    alice.create(&named("lab")).await;
    cluster.wait_level();
    // Somebody has the second one's key.
    cluster.stop(1);
    let rogue = Rogue::new(cluster.identity(1), cluster.link(0));
    let digest = || cluster.status(0).expect("up")["digest"].clone();
    let alarms = || cluster.status(0).expect("up")["sync_alarms"].as_u64().expect("a count");
    let before = digest();

    // What ends the connection.
    let mut unknown = frame_bytes(&SyncMessage::Presence(Vec::new()));
    unknown[4] = 99;
    let mut trailing = frame_bytes(&SyncMessage::Presence(Vec::new()));
    trailing[0] += 1;
    trailing.push(0);
    let batch = |ops| frame_bytes(&SyncMessage::Ops(OpBatch { number: 1, ops }));
    let crowd = SyncMessage::Presence(vec![News::Begin; GOSSIP_BATCH + 1]);
    for (what, bytes, code) in [
        ("an endless frame", u32::MAX.to_le_bytes().to_vec(), ErrorCode::FrameTooLarge),
        ("an unknown message", unknown, ErrorCode::Protocol),
        ("bytes after a message", trailing, ErrorCode::Protocol),
        ("an op that is none", batch(vec![vec![7; 40]]), ErrorCode::Protocol),
        ("too many ops", batch(vec![Vec::new(); SYNC_BATCH_OPS + 1]), ErrorCode::LimitReached),
        ("too much presence", frame_bytes(&crowd), ErrorCode::LimitReached),
    ] {
        let mut wire = rogue.meet().await;
        let _ = wire.writer.write_all(&bytes).await;
        assert_eq!(wire.end().await, Some(code), "{what}");
    }
    // A hello that claims more than there can be.
    let origins = (0..=MAX_ORIGINS as u32).map(|n| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        (OriginId(id), 1)
    });
    let crowd = Knowledge { vector: origins.collect(), sealed: Vector::default() };
    let wire = rogue.greet(crowd).await;
    assert_eq!(wire.end().await, Some(ErrorCode::Protocol), "a hello without bounds");

    // What is not believed. An op of a chain whose beginning nobody has is left alone.
    let mut wire = rogue.meet().await;
    let tracker = cluster.peer_id(1);
    let enable = Change::UserEnabled { user: UserId([3; 16]) };
    let early = op(OriginId([0xe1; 16]), 2, Blake3Hash([1; 32]), &enable);
    let vector = wire.tell(1, &[early]).await;
    assert_eq!((vector.get(OriginId([0xe1; 16])), alarms()), (0, 0));
    assert_eq!(digest(), before);
    // One that follows another op than the one that is known is a forgery.
    let origin = OriginId([0xf1; 16]);
    let first = began(origin, tracker);
    assert_eq!(wire.tell(2, std::slice::from_ref(&first)).await.get(origin), 1);
    let before = digest();
    let forged = op(origin, 2, Blake3Hash([2; 32]), &enable);
    assert_eq!(wire.tell(3, std::slice::from_ref(&forged)).await.get(origin), 1);
    assert_eq!((alarms(), digest()), (1, before.clone()));
    assert!(cluster.log(0).contains("ALARM: ops contradict those that are known"));
    // Whatever comes after it is nothing either; and the tracker's own chain cannot be forged.
    let after = op(origin, 3, blake3(&forged.encode()), &enable);
    let own = vector.iter().find(|(id, seq)| *seq > 1 && *id != origin).expect("alice's");
    let other = op(own.0, own.1 + 1, Blake3Hash([2; 32]), &enable);
    let vector = wire.tell(4, &[after, other]).await;
    assert_eq!((vector.get(origin), vector.get(own.0)), (1, own.1));
    assert_eq!((alarms(), digest()), (2, before.clone()));
    // An op that is known is known, whatever it says now.
    let again = began(origin, PeerId([7; 32]));
    wire.tell(5, &[again]).await;
    assert_eq!((alarms(), digest()), (2, before.clone()));
    // A roster that no tracker signed.
    let stranger = Identity::generate();
    let entries = vec![RosterEntry::new(cluster.link(1))];
    let sign = |message: &[u8]| stranger.sign(message);
    let roster = Roster::sign(99, entries, stranger.public_key(), &sign);
    wire.say(&SyncMessage::Roster(roster)).await;
    wire.tell(6, &[]).await;
    assert_eq!(cluster.operated(0, "roster")["number"], 1);
    assert!(cluster.log(0).contains("its roster is refused"));
    // Questions that make no sense get no answer and cost nobody anything.
    for junk in [u32::MAX.to_le_bytes().to_vec(), vec![1, 0, 0, 0, 99], vec![]] {
        let (mut send, mut recv) = wire.connection.open_bi().await.expect("a stream");
        let _ = send.write_all(&junk).await;
        let _ = send.finish();
        assert!(soon("an end", read_frame::<Vec<u8>>(&mut recv, MAX_FRAME_LEN)).await.is_err());
    }
    wire.tell(7, &[]).await;
    wire.connection.close(ErrorCode::Done);

    // The tracker goes on, and the real one comes back and has all that is.
    alice.create(&named("after")).await;
    rogue.endpoint.close(ErrorCode::Done).await;
    cluster.start(1);
    cluster.wait_level();
    assert_eq!(cluster.status(0).expect("up")["sync_alarms"], 2);
}
