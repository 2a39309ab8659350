//! A client's end of a tracker connection: dials, says hello, asks, and hears pushes.

use std::net::SocketAddr;
use std::time::Duration;

use super::address;
use super::greeting::{Hello, Welcome};
use super::message::{Answer, Reply, Request};
use super::push::Push;
use super::refusal::Refusal;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits;
use crate::tracker_link::TrackerLink;
use crate::transport::connection::{self, Connection, RecvStream, SendStream};
use crate::transport::endpoint::{DialError, Endpoint};
use crate::transport::frame::{FrameError, read_frame, read_frame_within, write_frame};
use crate::transport::tls::Alpn;

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Understood and not granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The tracker is gone, or became silent.
    #[error("the connection to the tracker is gone: {0}")]
    Lost(String),
    /// The tracker answered something else than was asked.
    #[error("the tracker answered out of turn")]
    Unexpected,
}

/// A tracker that could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host name has no address.
    #[error("{host}: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
    /// Nobody, or somebody else, answered.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The handshake was good and the greeting was not.
    #[error("tracker {address} sent no proper welcome: {reason}")]
    Greeting {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// A living connection to one tracker.
#[derive(Debug)]
pub struct TrackerConnection {
    connection: Connection,
    link: TrackerLink,
    /// Tracker time less our own, in milliseconds.
    clock_offset: i64,
    observed: SocketAddr,
    /// Kept open: its end would mean ours.
    _control: SendStream,
}

impl TrackerConnection {
    /// Dials every address of `link` until one answers as the right tracker, and says `hello`
    /// with our own address as it is seen from here; returns the connection and the queue of its pushes, which ends with the connection.
    ///
    /// # Errors
    /// [`ConnectError`] of the last address tried.
    pub async fn open(
        endpoint: &Endpoint,
        link: &TrackerLink,
        hello: &Hello,
    ) -> Result<(Self, PushQueue), ConnectError> {
        let resolve_error =
            |reason: String| ConnectError::Resolve { host: link.host().into(), reason };
        let addresses = tokio::net::lookup_host((link.host(), link.port()))
            .await
            .map_err(|error| resolve_error(error.to_string()))?;
        let mut last = resolve_error("the name has no address".to_owned());
        for address in addresses.take(limits::MAX_ADDRESSES) {
            match Self::open_at(endpoint, link, address, hello).await {
                Ok(opened) => return Ok(opened),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn open_at(
        endpoint: &Endpoint,
        link: &TrackerLink,
        at: SocketAddr,
        hello: &Hello,
    ) -> Result<(Self, PushQueue), ConnectError> {
        let connection = endpoint.dial(at, Alpn::Tracker, link.peer_id()).await?;
        // What we say of our own address: of use to devices behind the same router.
        let port = endpoint.local_address().map_or(0, |address| address.port());
        let local = connection.local_ip().filter(|ip| address::is_local(*ip));
        let addresses = local.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let hello = Hello { addresses, ..hello.clone() };
        let greeting = async {
            let mut control = connection.open_control().await?;
            write_frame(&mut control, &hello).await?;
            let asked = clock::now();
            let mut pushes = connection.accept_control().await?;
            let welcome: Welcome = read_frame(&mut pushes, limits::MAX_HELLO_LEN).await?;
            // The answer is half a round trip old; for tickets of ten minutes that is exact.
            let offset = welcome.time.0 as i64 - asked.0 as i64;
            Ok::<_, FrameError>((control, pushes, welcome, offset))
        };
        let (control, pushes, welcome, clock_offset) =
            tokio::time::timeout(limits::FIRST_FRAME_DEADLINE, greeting)
                .await
                .unwrap_or(Err(FrameError::TimedOut))
                .map_err(|error| {
                    connection.close(error.code());
                    ConnectError::Greeting { address: at, reason: error.to_string() }
                })?;
        let queue = PushQueue { stream: pushes, connection: connection.clone() };
        let tracker = Self {
            connection,
            link: link.clone(),
            clock_offset,
            observed: connection::canonical(welcome.observed),
            _control: control,
        };
        Ok((tracker, queue))
    }

    /// Asks, and waits for what was asked for.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, request: &Request) -> Result<Reply, CallError> {
        self.ask(request).await.map(|answer| answer.reply)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask(&self, request: &Request) -> Result<Answer, CallError> {
        let lost = |error: FrameError| CallError::Lost(error.to_string());
        let exchange = async {
            let mut recv = self.connection.ask(request).await?;
            read_frame_within::<Result<Answer, Refusal>>(
                &mut recv,
                limits::MAX_FRAME_LEN,
                limits::TRACKER_REQUEST_DEADLINE,
            )
            .await
        };
        Ok(exchange.await.map_err(lost)??)
    }

    /// The tracker's link.
    pub fn link(&self) -> &TrackerLink {
        &self.link
    }

    /// Tracker time less our own, in milliseconds.
    pub fn clock_offset(&self) -> i64 {
        self.clock_offset
    }

    /// Where the tracker sees us.
    pub fn observed(&self) -> SocketAddr {
        self.observed
    }

    /// Packets that came from the tracker so far: who acknowledges is alive, answer or not.
    pub fn received(&self) -> u64 {
        self.connection.received()
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Closes the connection in order.
    pub fn close(&self, code: ErrorCode) {
        self.connection.close(code);
    }
}

/// What a tracker says unasked.
#[derive(Debug)]
pub struct PushQueue {
    stream: RecvStream,
    connection: Connection,
}

impl PushQueue {
    /// The next push; nothing once the connection is gone. Pushes of later versions end it.
    pub async fn next(&mut self) -> Option<Push> {
        match read_frame(&mut self.stream, limits::MAX_FRAME_LEN).await {
            Ok(push) => Some(push),
            Err(error) => {
                tracing::debug!(%error, "tracker connection ended");
                self.connection.close(error.code());
                None
            }
        }
    }
}
