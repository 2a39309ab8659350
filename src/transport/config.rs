//! The QUIC limits of every role, set on purpose. Reasons stand with the numbers in `limits`.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use super::tls::Alpn;
use crate::limits;

/// What both ends of a connection of protocol `alpn` allow each other.
pub(super) fn transport(alpn: Alpn) -> Arc<TransportConfig> {
    let (streams, window) = match alpn {
        Alpn::Peer => (limits::PEER_STREAMS, limits::PEER_WINDOW),
        Alpn::Tracker | Alpn::Sync => (limits::TRACKER_STREAMS, limits::TRACKER_WINDOW),
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        // Control is one unidirectional stream a direction.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(varint(limits::STREAM_WINDOW.max(limits::MAX_FRAME_LEN as u64)))
        // quinn's default is unbounded: a peer could make us buffer for ever.
        .receive_window(varint(window))
        .send_window(window)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(limits::KEEP_ALIVE))
        .max_idle_timeout(Some(idle_timeout(limits::IDLE_TIMEOUT)));
    Arc::new(config)
}

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).expect("invariant: every window is far below 2^62")
}

fn idle_timeout(span: Duration) -> IdleTimeout {
    IdleTimeout::try_from(span).expect("invariant: the idle timeout is far below 2^62 ms")
}
