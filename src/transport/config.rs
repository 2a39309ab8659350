//! The QUIC limits of every role, set on purpose. Reasons stand with the numbers in `limits`.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::tls::Alpn;
use super::tuning::{Congestion, Tuning};
use crate::limits;

/// What this end of a connection of protocol `alpn` allows the other, which dialled us if it was
/// `accepted`.
pub(super) fn transport(alpn: Alpn, accepted: bool, tuning: Tuning) -> Arc<TransportConfig> {
    // A peer may send more once it is asked for more; a stranger at a tracker never needs to.
    let (streams, send, receive) = match alpn {
        Alpn::Peer => (limits::PEER_STREAMS, limits::PEER_WINDOW, limits::CONTROL_WINDOW),
        Alpn::Tracker | Alpn::Sync => {
            let window = limits::TRACKER_WINDOW;
            let receive = if accepted { limits::CONTROL_WINDOW } else { window };
            (limits::TRACKER_STREAMS, window, receive)
        }
    };
    let (keep_alive, idle) = match alpn {
        Alpn::Peer => (limits::KEEP_ALIVE, limits::IDLE_TIMEOUT),
        Alpn::Tracker => (limits::TRACKER_KEEP_ALIVE, limits::TRACKER_IDLE_TIMEOUT),
        // The side that dialled is enough: what it sends is acknowledged.
        Alpn::Sync => (limits::SYNC_PULSE, limits::TRACKER_IDLE_TIMEOUT),
    };
    // Every connection begins with datagrams that any path carries, and finds out within a few round
    // trips what this one does.
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(tuning.max_mtu.get());
    let mut config = TransportConfig::default();
    config
        .initial_mtu(limits::MIN_MTU)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(controller(tuning))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        // Control is one unidirectional stream a direction.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(varint(limits::STREAM_WINDOW.max(limits::MAX_FRAME_LEN as u64)))
        // quinn's default is unbounded: a peer could make us buffer for ever.
        .receive_window(varint(receive))
        .send_window(send)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout(Some(idle_timeout(idle)));
    Arc::new(config)
}

fn controller(tuning: Tuning) -> Arc<dyn ControllerFactory + Send + Sync> {
    match tuning.congestion {
        Congestion::Cubic => {
            let datagrams = limits::INITIAL_DATAGRAMS * u64::from(tuning.max_mtu.get());
            let mut cubic = CubicConfig::default();
            cubic.initial_window(datagrams.max(limits::INITIAL_WINDOW));
            Arc::new(cubic)
        }
        // It begins with 240,000 bytes.
        Congestion::Bbr => Arc::new(BbrConfig::default()),
    }
}

/// A window of so many bytes.
pub(super) fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).expect("invariant: every window is far below 2^62")
}

fn idle_timeout(span: Duration) -> IdleTimeout {
    IdleTimeout::try_from(span).expect("invariant: the idle timeout is far below 2^62 ms")
}
