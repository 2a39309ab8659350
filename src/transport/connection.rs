//! An authenticated QUIC connection: who is at the other end is known.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use quinn::{ConnectionError, RecvStream, SendStream};
use serde::Serialize;

use super::code::quic_code;
use super::config;
use super::frame::{FrameError, write_frame};
use super::tls::{Alpn, public_key_of};
use crate::error_code::ErrorCode;
use crate::peer_id::{PeerId, PublicKey};

/// Priority of control streams: above every piece.
pub const CONTROL_PRIORITY: i32 = i32::MAX;

/// A connection whose other end proved its key.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    remote_key: PublicKey,
    remote: PeerId,
    alpn: Alpn,
    dialled: bool,
}

/// What the path of a connection carries, from here to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Bytes of the largest datagrams sent now.
    pub mtu: u16,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost, less those that only tried a larger size.
    pub lost: u64,
    /// How often all large datagrams seemed lost, so that it began anew with small ones.
    pub black_holes: u64,
    /// Bytes that may be under way.
    pub window: u64,
    /// How often it was made smaller because packets were lost.
    pub congestions: u64,
    /// The smoothed round-trip time, and the shortest one seen.
    pub rtt: (Duration, Duration),
}

impl Connection {
    /// Wraps a finished handshake; nothing when it carries no Ed25519 certificate or protocol.
    pub(super) fn new(quic: quinn::Connection, dialled: bool) -> Option<Self> {
        let certificates = quic
            .peer_identity()?
            .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .ok()?;
        let remote_key = public_key_of(certificates.first()?)?;
        let handshake = quic.handshake_data()?;
        let handshake = handshake.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
        let alpn = Alpn::named(&handshake.protocol?)?;
        Some(Self { quic, remote: remote_key.peer_id(), remote_key, alpn, dialled })
    }

    /// The device at the other end.
    pub fn remote(&self) -> PeerId {
        self.remote
    }

    /// Its key.
    pub fn remote_key(&self) -> PublicKey {
        self.remote_key
    }

    /// Where it is seen from here; IPv4 even on a dual-stack socket.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// Our own address on this connection's path, where the system tells.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.quic.local_ip().map(|ip| ip.to_canonical())
    }

    /// The protocol spoken on it.
    pub fn alpn(&self) -> Alpn {
        self.alpn
    }

    /// Whether this side began the connection.
    pub fn dialled(&self) -> bool {
        self.dialled
    }

    /// A number no other living connection of this process has.
    pub fn stable_id(&self) -> usize {
        self.quic.stable_id()
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// What its path carries.
    pub fn path(&self) -> Path {
        let path = self.quic.stats().path;
        Path {
            mtu: path.current_mtu,
            sent: path.sent_packets,
            lost: path.lost_packets,
            black_holes: path.black_holes_detected,
            window: path.cwnd,
            congestions: path.congestion_events,
            rtt: (path.rtt, path.min_rtt),
        }
    }

    /// UDP datagrams that came on this connection.
    pub fn received(&self) -> u64 {
        self.quic.stats().udp_rx.datagrams
    }

    /// From now on the other side may have `window` bytes on their way to us that we have not read; what it
    /// may have already is not taken back when that was more.
    pub fn allow(&self, window: u64) {
        self.quic.set_receive_window(config::varint(window));
    }

    /// Opens a bidirectional stream; waits while the other side's stream limit is reached.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.quic.open_bi().await
    }

    /// Asks something on a stream of its own; returns where the answer comes.
    ///
    /// # Errors
    /// [`FrameError`] when the connection is gone.
    pub async fn ask<T: Serialize>(&self, question: &T) -> Result<RecvStream, FrameError> {
        let (mut send, recv) = self.open_bi().await?;
        write_frame(&mut send, question).await?;
        // A stream the other side stopped already says why when it is read.
        let _ = send.finish();
        Ok(recv)
    }

    /// Accepts the next bidirectional stream.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.quic.accept_bi().await
    }

    /// Opens the control stream of this direction, above all other streams.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn open_control(&self) -> Result<SendStream, ConnectionError> {
        let stream = self.quic.open_uni().await?;
        // Fails only on a stream already closed, which this one is not.
        let _ = stream.set_priority(CONTROL_PRIORITY);
        Ok(stream)
    }

    /// Accepts the other side's control stream.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn accept_control(&self) -> Result<RecvStream, ConnectionError> {
        self.quic.accept_uni().await
    }

    /// Closes the connection at once, with a code and its sentence.
    pub fn close(&self, code: ErrorCode) {
        self.quic.close(quic_code(code), code.sentence().as_bytes());
    }

    /// Resolves when the connection is gone, with the reason.
    pub async fn closed(&self) -> ConnectionError {
        self.quic.closed().await
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }
}

/// IPv4-mapped IPv6 addresses as the IPv4 addresses they are.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
