//! One UDP socket: dials trackers and peers, and accepts connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::Runtime as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use socket2::{Domain, Protocol, Socket, Type};

use super::code::{self, quic_code};
use super::config;
use super::connection::{self, Connection};
use super::gather::Gatherer;
use super::identity::Identity;
use super::tls::{self, Alpn};
use super::tuning::Tuning;
use crate::error_code::ErrorCode;
use crate::limits;
use crate::peer_id::PeerId;

/// An endpoint that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket.
    #[error("cannot listen on UDP {address}: {error}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The TLS library refused our own key.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Two peer ids, short where that tells them apart.
fn differ(expected: &PeerId, found: &PeerId) -> String {
    match expected.short() == found.short() {
        true => format!("{expected}: it answers as {found}"),
        false => format!("{}: it answers as {}", expected.short(), found.short()),
    }
}

/// A connection that did not come to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Somebody else answered.
    #[error("{address} is not {}", differ(expected, found))]
    WrongPeer {
        /// Where.
        address: SocketAddr,
        /// Whom we wanted.
        expected: PeerId,
        /// Who it is.
        found: PeerId,
    },
    /// Nobody answered in time.
    #[error("{0} does not answer")]
    Silent(SocketAddr),
    /// The connection failed.
    #[error("{address}: {reason}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// One UDP socket and the identity behind it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    identity: Arc<Identity>,
    tuning: Tuning,
    /// For the first that dial us from this machine.
    within: Arc<quinn::ServerConfig>,
    /// Handshakes of others that are not finished.
    handshakes: Arc<AtomicUsize>,
}

impl Endpoint {
    /// Binds `address` and accepts the protocols `alpns` there, which are all of peers or all of
    /// trackers. Must be called inside the runtime that shall carry the traffic.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        identity: Arc<Identity>,
        address: SocketAddr,
        alpns: &[Alpn],
    ) -> Result<Self, BindError> {
        Self::bind_tuned(identity, address, alpns, Tuning::default())
    }

    /// The same, and sends as `tuning` says.
    ///
    /// # Errors
    /// [`BindError`].
    ///
    /// # Panics
    /// Never: the largest datagram is one that QUIC allows.
    pub fn bind_tuned(
        identity: Arc<Identity>,
        address: SocketAddr,
        alpns: &[Alpn],
        tuning: Tuning,
    ) -> Result<Self, BindError> {
        let socket_error = |error| BindError::Socket { address, error };
        let socket = open_socket(address).map_err(socket_error)?;

        // Both keys follow from the identity: after a restart, peers of the old process get a
        // stateless reset at once instead of waiting for their idle timeout.
        let reset = identity.derived_secret("stateless reset");
        let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &reset);
        let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(reset));
        // Whatever this side sends, the other may send as much.
        endpoint_config
            .max_udp_payload_size(limits::MAX_MTU)
            .expect("invariant: it is between 1200 and 65527");
        let [c0, c1, c2, c3, c4, c5, c6, c7, ..] = identity.derived_secret("connection ids");
        let cid_key = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        endpoint_config.cid_generator(move || {
            Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(cid_key))
        });

        let crypto = QuicServerConfig::try_from(tls::server_config(&identity, alpns)?)
            .expect("invariant: the provider has the initial cipher suite");
        let mut server_config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server_config
            .max_incoming(limits::MAX_INCOMING)
            .incoming_buffer_size(limits::INCOMING_BUFFER)
            .incoming_buffer_size_total(limits::INCOMING_BUFFER_TOTAL);
        let mut tuned = |tuning| {
            server_config.transport_config(config::transport(alpns[0], true, tuning)).clone()
        };
        let (within, between) = (tuned(tuning), tuned(tuning.between_machines()));

        let runtime = quinn::TokioRuntime;
        let socket = runtime.wrap_udp_socket(socket).map_err(socket_error)?;
        let quic = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config,
            Some(between),
            Arc::new(Gatherer::new(socket)),
            Arc::new(runtime),
        )
        .map_err(socket_error)?;
        Ok(Self { quic, identity, tuning, within: Arc::new(within), handshakes: Arc::default() })
    }

    /// The identity others see.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.quic.local_addr().map(connection::canonical)
    }

    /// Connections now alive.
    pub fn connection_count(&self) -> usize {
        self.quic.open_connections()
    }

    /// Dials `address` and insists on finding `expected` there.
    ///
    /// # Errors
    /// [`DialError`].
    ///
    /// # Panics
    /// Never: our own key makes a valid TLS configuration, as it did when the endpoint was bound.
    pub async fn dial(
        &self,
        address: SocketAddr,
        alpn: Alpn,
        expected: PeerId,
    ) -> Result<Connection, DialError> {
        let (tls, verifier) = tls::client_config(&self.identity, alpn, expected)
            .expect("invariant: this identity made a TLS configuration before");
        let crypto = QuicClientConfig::try_from(tls)
            .expect("invariant: the provider has the initial cipher suite");
        let mut client_config = quinn::ClientConfig::new(Arc::new(crypto));
        let tuning = match alpn {
            Alpn::Peer => self.tuning.towards(address.ip(), self.quic.open_connections()),
            Alpn::Tracker | Alpn::Sync => self.tuning.between_machines(),
        };
        client_config.transport_config(config::transport(alpn, false, tuning));
        let failed = |reason: String| DialError::Failed { address, reason };

        // The name is never sent (SNI is off) and never checked: the peer id is.
        let connecting = self
            .quic
            .connect_with(client_config, address, "mtq")
            .map_err(|error| failed(error.to_string()))?;
        match tokio::time::timeout(limits::DIAL_DEADLINE, connecting).await {
            Err(_elapsed) => Err(DialError::Silent(address)),
            Ok(Ok(quic)) => Connection::new(quic, true)
                .ok_or_else(|| failed("it has no Ed25519 certificate".to_owned())),
            Ok(Err(error)) => Err(match verifier.stranger() {
                Some(found) => DialError::WrongPeer { address, expected, found },
                None if error == quinn::ConnectionError::TimedOut => DialError::Silent(address),
                None => failed(code::describe_end(&error)),
            }),
        }
    }

    /// The next handshake somebody begins, while there are fewer than `most` connections; further
    /// ones are refused, and `refused` is told of each. From half of them on, and while many
    /// handshakes are under way, strangers first prove that they are where they say (QUIC Retry).
    /// Nothing once the endpoint is closed.
    pub async fn accept(&self, most: usize, refused: impl Fn()) -> Option<Incoming> {
        let no_room = || {
            refused();
            false
        };
        self.accept_where(most, no_room).await
    }

    /// The same, but one that is one too many is refused only if `make_room` says that there will be
    /// no room for it.
    pub async fn accept_where(
        &self,
        most: usize,
        make_room: impl Fn() -> bool,
    ) -> Option<Incoming> {
        loop {
            let incoming = self.quic.accept().await?;
            let count = self.quic.open_connections();
            if (count >= most / 2 || self.handshakes.load(Ordering::Relaxed) >= limits::RETRY_ABOVE)
                && incoming.may_retry()
            {
                // It comes back, proven, as another handshake.
                let _ = incoming.retry();
            } else if count >= most && !make_room() {
                tracing::warn!(from = %incoming.remote_address(), most, "too many connections");
                incoming.refuse();
            } else {
                self.handshakes.fetch_add(1, Ordering::Relaxed);
                return Some(Incoming {
                    within: self.config_for(incoming.remote_address().ip()),
                    quic: Some(incoming),
                    handshakes: self.handshakes.clone(),
                });
            }
        }
    }

    /// What is allowed whoever dials us from `address`, where it is not what everybody is.
    fn config_for(&self, address: IpAddr) -> Option<Arc<quinn::ServerConfig>> {
        let tuning = self.tuning.towards(address, self.quic.open_connections());
        (tuning != self.tuning.between_machines()).then(|| self.within.clone())
    }

    /// Closes all connections with `code` and waits until the other sides were told.
    pub async fn close(&self, code: ErrorCode) {
        self.quic.close(quic_code(code), code.sentence().as_bytes());
        // Bounded: a peer that is gone never acknowledges.
        let _ = tokio::time::timeout(limits::CLOSE_WAIT, self.quic.wait_idle()).await;
    }
}

/// A handshake begun by somebody else.
pub struct Incoming {
    /// Taken when it is finished or refused.
    quic: Option<quinn::Incoming>,
    /// Instead of the endpoint's own.
    within: Option<Arc<quinn::ServerConfig>>,
    handshakes: Arc<AtomicUsize>,
}

impl Incoming {
    /// Where it comes from.
    pub fn remote_address(&self) -> SocketAddr {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.quic.as_ref().map_or(nowhere, |quic| connection::canonical(quic.remote_address()))
    }

    /// Whether it has proven to be there.
    pub fn is_validated(&self) -> bool {
        self.quic.as_ref().is_some_and(quinn::Incoming::remote_address_validated)
    }

    /// Has it prove to be there (QUIC Retry): it comes back, proven, as another handshake. Returned
    /// if it has already.
    pub fn proven(mut self) -> Option<Self> {
        match self.quic.take()?.retry() {
            Ok(()) => None,
            Err(proven) => {
                self.quic = Some(proven.into_incoming());
                Some(self)
            }
        }
    }

    /// Refuses it.
    pub fn refuse(mut self) {
        if let Some(quic) = self.quic.take() {
            quic.refuse();
        }
    }

    /// Finishes the handshake within its deadline; nothing when it fails.
    pub async fn finish(mut self) -> Option<Connection> {
        let quic = self.quic.take()?;
        let connecting = match self.within.take() {
            Some(config) => quic.accept_with(config),
            None => quic.accept(),
        };
        let connecting = connecting.ok()?;
        let quic = tokio::time::timeout(limits::HANDSHAKE_DEADLINE, connecting).await.ok()?.ok()?;
        Connection::new(quic, false)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All addresses of this machine, both families where the system has IPv6.
pub fn any_address(port: u16) -> SocketAddr {
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)) {
        Ok(_) => v6,
        Err(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
    }
}

fn open_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // IPv4 reaches a socket on all addresses too; a system that insists on one family may.
        let _ = socket.set_only_v6(!address.ip().is_unspecified());
    }
    for result in [
        socket.set_recv_buffer_size(limits::SOCKET_BUFFER),
        socket.set_send_buffer_size(limits::SOCKET_BUFFER),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, "the system keeps its own socket buffer size");
        }
    }
    // Linux cuts what is over its bounds without a word.
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive.min(send) < limits::SOCKET_BUFFER {
        let wanted = limits::SOCKET_BUFFER;
        tracing::debug!(receive, send, wanted, "the system allows smaller socket buffers");
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::tuning::Congestion;
    use std::time::Duration;

    fn bound(tuning: Tuning) -> Endpoint {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Endpoint::bind_tuned(Arc::new(Identity::generate()), loopback, &[Alpn::Peer], tuning)
            .expect("bound")
    }

    /// Connects two endpoints; the first one dials.
    async fn connected(here: &Endpoint, there: &Endpoint) -> (Connection, Connection) {
        let address = there.local_address().expect("an address");
        let dialled = here.dial(address, Alpn::Peer, there.identity().peer_id());
        let accepted = async { there.accept(1_000, || ()).await?.finish().await };
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        (dialled.expect("dialled"), accepted.expect("accepted"))
    }

    /// Sends so many bytes from one to the other, on a stream of their own, and has them compared.
    async fn carry(from: &Connection, to: &Connection, bytes: &[u8]) {
        let send = async {
            let (mut send, _recv) = from.open_bi().await.expect("a stream");
            send.write_all(bytes).await.expect("written");
            send.finish().expect("ended");
            send.stopped().await.expect("taken");
        };
        let receive = async {
            let (_send, mut recv) = to.accept_bi().await.expect("a stream");
            recv.read_to_end(bytes.len()).await.expect("read")
        };
        let (received, ()) = tokio::join!(receive, send);
        assert!(received == bytes, "not what was sent");
    }

    /// The largest datagrams of each direction once both have found out.
    async fn found_out(tunings: [Tuning; 2], mtus: [u16; 2]) {
        let [here, there] = tunings.map(bound);
        let (dialled, accepted) = connected(&here, &there).await;
        let mut rng = fastrand::Rng::with_seed(1);
        let bytes: Vec<u8> = (0..4 * 1024 * 1024).map(|_| rng.u8(..)).collect();
        // Each turn is some round trips more.
        for _ in 0..64 {
            carry(&dialled, &accepted, &bytes).await;
            carry(&accepted, &dialled, &bytes).await;
            if [dialled.path().mtu, accepted.path().mtu] == mtus {
                break;
            }
        }
        for (connection, mtu) in [&dialled, &accepted].into_iter().zip(mtus) {
            let path = connection.path();
            assert_eq!((path.mtu, path.black_holes), (mtu, 0), "{path:?}");
        }
    }

    #[tokio::test]
    async fn datagrams_grow_to_the_largest_both_allow() {
        found_out([Tuning::default(); 2], [16_250; 2]).await;
    }

    #[tokio::test]
    async fn each_side_bounds_what_it_sends() {
        let small = Tuning { max_mtu: "1452".parse().expect("an MTU"), ..Tuning::default() };
        found_out([small, Tuning::default()], [1452, 16_250]).await;
    }

    #[tokio::test]
    async fn an_end_is_heard_while_larger_datagrams_are_tried() {
        let [here, there] = [Tuning::default(); 2].map(bound);
        for round in 0..24 {
            let (dialled, accepted) = connected(&here, &there).await;
            for _ in 0..round {
                carry(&dialled, &accepted, &[1; 100]).await;
            }
            // More waits to be sent than anything has room for.
            let (mut send, _recv) = accepted.open_bi().await.expect("a stream");
            let _ = tokio::time::timeout(Duration::ZERO, send.write_all(&[2; 100_000])).await;
            accepted.close(ErrorCode::LimitReached);
            let end = dialled.closed().await;
            assert!(matches!(end, quinn::ConnectionError::ApplicationClosed(_)), "{round}: {end}");
        }
    }

    #[tokio::test]
    async fn bbr_carries_as_well() {
        let bbr = Tuning { congestion: Congestion::Bbr, ..Tuning::default() };
        found_out([bbr; 2], [16_250; 2]).await;
    }
}
