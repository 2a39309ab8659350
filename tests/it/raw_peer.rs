//! A peer at the level of frames, which says what it likes.

use std::net::SocketAddr;
use std::sync::Arc;

use mtq::bitfield::Bitfield;
use mtq::error_code::ErrorCode;
use mtq::id::GroupId;
use mtq::manifest::{ContentId, Manifest};
use mtq::peer_id::PeerId;
use mtq::swarm::message::{Control, PeerHello, PieceHeader, PieceRequest};
use mtq::tracker::message::{Reply, Request};
use mtq::tracker::stub::TrackerConnection;
use mtq::transport::connection::{Connection, ConnectionError, RecvStream, SendStream};
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{FrameError, read_frame, write_frame};
use mtq::transport::tls::Alpn;

use crate::net::{group, soon};
use crate::swarm::P;

pub async fn ticket(line: &TrackerConnection) -> (GroupId, Vec<u8>) {
    match line.call(&Request::Ticket { group: group() }).await.expect("a ticket") {
        Reply::Ticket { group, ticket } => (group, ticket),
        other => panic!("{other:?}"),
    }
}

/// The address and peer id of the one peer that holds a content.
pub async fn peer_of(line: &TrackerConnection, content: ContentId) -> (PeerId, SocketAddr) {
    match line
        .call(&Request::Peers { group: group(), contents: vec![content] })
        .await
        .expect("peers")
    {
        Reply::Peers { holders } => (holders[0][0].peer_id, holders[0][0].addresses[0]),
        other => panic!("{other:?}"),
    }
}

pub fn hello() -> PeerHello {
    PeerHello { features: 0, agent: "evil".to_owned(), extensions: Vec::new() }
}

/// A raw peer connection past the hellos.
pub struct RawPeer {
    pub connection: Connection,
    pub writer: SendStream,
    pub reader: RecvStream,
}

impl RawPeer {
    pub async fn greet(connection: Connection) -> Self {
        let mut writer = connection.open_control().await.expect("a stream");
        write_frame(&mut writer, &hello()).await.expect("written");
        let mut reader = connection.accept_control().await.expect("a stream");
        let _: PeerHello = read_frame(&mut reader, 4096).await.expect("a hello");
        Self { connection, writer, reader }
    }

    pub async fn dial(endpoint: &Endpoint, (peer, address): (PeerId, SocketAddr)) -> Self {
        let dialled = endpoint.dial(address, Alpn::Peer, peer).await;
        Self::greet(dialled.expect("dialled")).await
    }

    pub async fn say(&mut self, message: &Control) {
        write_frame(&mut self.writer, message).await.expect("written");
    }

    pub async fn hear(&mut self) -> Control {
        soon("a control frame", read_frame(&mut self.reader, 1 << 20)).await.expect("a frame")
    }

    pub async fn request(&self, swarm: u32, piece: u32) -> Result<PieceHeader, FrameError> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        write_frame(&mut send, &PieceRequest { swarm, piece }).await?;
        let _ = send.finish();
        soon("a header", read_frame(&mut recv, 1 << 20)).await
    }

    /// The code the other side closed the connection with.
    pub async fn close_code(&self) -> Option<ErrorCode> {
        match soon("the end", self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                ErrorCode::from_number(close.error_code.into_inner())
            }
            other => panic!("{other}"),
        }
    }
}

/// Takes one connection and serves the pieces of a file of whole pieces, each after what `header` says.
pub async fn serve_pieces(
    endpoint: Endpoint,
    (group, ticket): (GroupId, Vec<u8>),
    manifest: Arc<Manifest>,
    bytes: Vec<u8>,
    header: impl Fn(usize) -> PieceHeader,
) {
    let Some(incoming) = endpoint.accept(10, || {}).await else { return };
    let Some(connection) = incoming.finish().await else { return };
    let mut peer = RawPeer::greet(connection).await;
    peer.say(&Control::Ticket { ticket }).await;
    peer.say(&Control::Open { swarm: 0, group, content: manifest.content_id() }).await;
    let all = Bitfield::all(manifest.layout());
    peer.say(&Control::Bitfield { swarm: 0, bits: all.as_bytes().to_vec() }).await;
    while let Ok((mut send, mut recv)) = peer.connection.accept_bi().await {
        let Ok(request) = read_frame::<PieceRequest>(&mut recv, 64).await else { continue };
        let place = request.piece as usize;
        let _ = write_frame(&mut send, &header(place)).await;
        let _ = send.write_all(&bytes[place * P..(place + 1) * P]).await;
        let _ = send.finish();
    }
}
