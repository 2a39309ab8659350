//! Seeders that cheat: none stops a download that has one honest source, however slow that is, and
//! those that can be known to cheat are banned.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use mtq::bitfield::Bitfield;
use mtq::error_code::ErrorCode;
use mtq::id::GroupId;
use mtq::manifest::Manifest;
use mtq::piece::PieceIndex;
use mtq::swarm::message::{Control, Encoding, Nack, PieceHeader, PieceRequest};
use mtq::tracker::message::Request;
use mtq::transport::code::quic_code;
use mtq::transport::connection::{Connection, SendStream};
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{read_frame, write_frame};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::net::{Net, group, password, soon, user};
use crate::raw_peer::{RawPeer, ticket};
use crate::swarm::{MIB, P, complete, limit_up, progress};
use crate::world::content;

const PIECES: usize = 16;

/// What an evil seeder does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    // What can be known to be evil.
    WrongBytes,
    OtherPiece,
    Zeros,
    Short,
    Long,
    WrongLength,
    /// Claims all, denies each, claims it again.
    Denies,
    /// A header and nothing after it.
    Silence,
    /// A header and a byte a second.
    Trickle,
    // What may befall the honest.
    Busy,
    Changed,
    GoingAway,
    Reset,
    /// No answer at all.
    Mute,
}

const KNOWABLE: [Trick; 9] = [
    Trick::WrongBytes,
    Trick::OtherPiece,
    Trick::Zeros,
    Trick::Short,
    Trick::Long,
    Trick::WrongLength,
    Trick::Denies,
    Trick::Silence,
    Trick::Trickle,
];

const OTHERS: [Trick; 5] =
    [Trick::Busy, Trick::Changed, Trick::GoingAway, Trick::Reset, Trick::Mute];

/// A seeder that cheats on everybody.
struct Evil {
    manifest: Arc<Manifest>,
    bytes: Vec<u8>,
    trick: Trick,
    shown: (GroupId, Vec<u8>),
    /// Told how each swarm was closed.
    verdicts: mpsc::Sender<u32>,
}

impl Evil {
    async fn run(self, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept(10, || {}).await {
            let Some(connection) = incoming.finish().await else { continue };
            self.meet(RawPeer::greet(connection).await).await;
        }
    }

    async fn meet(&self, mut peer: RawPeer) {
        let (group, ticket) = self.shown.clone();
        let content = self.manifest.content_id();
        peer.say(&Control::Ticket { ticket }).await;
        peer.say(&Control::Open { swarm: 3, group, content }).await;
        let all = Bitfield::all(self.manifest.layout());
        peer.say(&Control::Bitfield { swarm: 3, bits: all.as_bytes().to_vec() }).await;
        let RawPeer { connection, mut writer, mut reader } = peer;
        let listen = async {
            while let Ok(message) = read_frame::<Control>(&mut reader, 1 << 20).await {
                if let Control::Close { code, .. } = message {
                    let _ = self.verdicts.send(code).await;
                }
            }
        };
        tokio::select! {
            () = listen => {}
            () = self.serve(&connection, &mut writer) => {}
        }
    }

    async fn serve(&self, connection: &Connection, control: &mut SendStream) {
        let mut answers = JoinSet::new();
        while let Ok((send, mut recv)) = connection.accept_bi().await {
            let Ok(request) = read_frame::<PieceRequest>(&mut recv, 64).await else { continue };
            let piece = self.manifest.layout().piece(request.piece).expect("an honest request");
            answers.spawn(answer(send, self.trick, self.piece(piece), self.other(piece)));
            if self.trick == Trick::Denies {
                let again = Control::Have { swarm: 3, pieces: vec![request.piece] };
                let _ = write_frame(control, &again).await;
            }
        }
    }

    fn piece(&self, piece: PieceIndex) -> Vec<u8> {
        let layout = self.manifest.layout();
        let start = layout.offset(piece) as usize;
        self.bytes[start..start + layout.len(piece) as usize].to_vec()
    }

    fn other(&self, piece: PieceIndex) -> Vec<u8> {
        let layout = self.manifest.layout();
        let other = layout.piece((piece.get() + 1) % layout.piece_count()).expect("exists");
        self.piece(other)
    }
}

/// Answers one request.
async fn answer(mut send: SendStream, trick: Trick, mut body: Vec<u8>, other: Vec<u8>) {
    let len = body.len() as u32;
    let mut header = PieceHeader::Data { encoding: Encoding::Identity, len };
    match trick {
        Trick::WrongBytes => body[len as usize / 2] ^= 1,
        Trick::OtherPiece => body = other,
        Trick::Zeros => body.fill(0),
        Trick::Short => body.truncate(len as usize - 1),
        Trick::Long => body.push(0),
        Trick::WrongLength => {
            header = PieceHeader::Data { encoding: Encoding::Identity, len: len - 1 };
        }
        Trick::Denies => header = PieceHeader::Nack(Nack::NotHave { bits: None }),
        Trick::Busy => header = PieceHeader::Nack(Nack::Busy),
        Trick::Changed => header = PieceHeader::Nack(Nack::Changed),
        Trick::GoingAway => header = PieceHeader::Nack(Nack::GoingAway),
        Trick::Reset => {
            let _ = send.reset(quic_code(ErrorCode::Internal));
            return;
        }
        Trick::Mute => std::future::pending().await,
        Trick::Silence | Trick::Trickle => {}
    }
    let _ = write_frame(&mut send, &header).await;
    match trick {
        Trick::Silence => std::future::pending().await,
        Trick::Trickle => {
            for byte in &body {
                let _ = send.write_all(&[*byte]).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        _ if matches!(header, PieceHeader::Nack(_)) => {}
        _ => {
            let _ = send.write_all(&body).await;
        }
    }
    let _ = send.finish();
}

/// Bob downloads where mallory cheats. Without `honest`, nobody else is there before she is banned.
async fn download_among(trick: Trick, honest: bool) {
    let net = Net::new();
    let bytes = content(PIECES * P, 3);
    let (alice, manifest) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let shown = ticket(&line).await;
    let contents = vec![(manifest.content_id(), true)];
    line.call(&Request::Announce { group: group(), contents }).await.expect("announced");
    let (verdicts, mut closed) = mpsc::channel(100);
    let evil = Evil { manifest, bytes: bytes.clone(), trick, shown, verdicts };
    let evil = JoinSet::from_iter([evil.run(endpoint)]);
    let bob = net.member("bob", &alice).await;
    if !honest {
        alice.logout().await.expect("logged out");
    }
    net.begin("bob", &bob).await;
    if !honest {
        soon(&format!("the ban of {trick:?}"), async {
            while closed.recv().await.expect("a verdict") != ErrorCode::Banned.number() {}
        })
        .await;
        assert_eq!(progress(&bob).stored_bytes, 0, "{trick:?}");
        alice.login(user("alice"), password()).await.expect("back");
        net.share_too("alice", &alice).await;
    }
    let row = soon(&format!("{trick:?}"), complete(&bob)).await;
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes, "{trick:?}");
    let by = |name: &str| row.progress.sources.values().find(|source| source.user == user(name));
    let good = |name| by(name).map_or(0, |source| source.pieces);
    assert_eq!((good("alice"), good("mallory")), (PIECES as u32, 0), "{trick:?}");
    println!("{trick:?}: {:.1?}, {:?}", row.progress.elapsed, by("mallory"));
    drop(evil);
    net.end([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_trick_stops_a_download_that_has_an_honest_source_however_slow() {
    let all = KNOWABLE.into_iter().chain(OTHERS);
    let mut downloads: JoinSet<_> = all.map(|trick| download_among(trick, true)).collect();
    while let Some(done) = downloads.join_next().await {
        done.expect("complete");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_be_known_to_cheat_is_banned() {
    let mut downloads: JoinSet<_> =
        KNOWABLE.into_iter().map(|trick| download_among(trick, false)).collect();
    while let Some(done) = downloads.join_next().await {
        done.expect("banned, and complete without");
    }
}
