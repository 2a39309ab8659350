//! A socket for tests that takes as many sends as there is room for, and keeps them.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The socket.
#[derive(Debug)]
pub(super) struct Narrow {
    segments: usize,
    room: Mutex<usize>,
    sends: Mutex<Vec<Send>>,
}

/// What was handed down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Send {
    pub(super) destination: SocketAddr,
    pub(super) contents: Vec<u8>,
    pub(super) segment_size: Option<usize>,
    pub(super) ecn: Option<EcnCodepoint>,
}

impl Send {
    pub(super) fn datagrams(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let size = self.segment_size.unwrap_or(self.contents.len());
        self.contents.chunks(size).map(<[u8]>::to_vec)
    }
}

impl Narrow {
    /// Datagrams that it takes in one send.
    pub(super) const MAX_SEGMENTS: usize = 64;

    pub(super) fn with_room(sends: usize) -> Arc<Self> {
        let segments = Self::MAX_SEGMENTS;
        Arc::new(Self { segments, room: Mutex::new(sends), sends: Mutex::default() })
    }

    /// With room for all, and one datagram in a send.
    pub(super) fn without_gso() -> Arc<Self> {
        let room = Mutex::new(usize::MAX);
        Arc::new(Self { segments: 1, room, sends: Mutex::default() })
    }

    pub(super) fn make_room(&self, sends: usize) {
        *self.room.lock().expect("a lock") = sends;
    }

    pub(super) fn sends(&self) -> Vec<Send> {
        self.sends.lock().expect("a lock").clone()
    }

    /// All datagrams that went to `port`, each as long as the system takes.
    pub(super) fn datagrams(&self, port: u16) -> Vec<Vec<u8>> {
        let sends = self.sends().into_iter().filter(|send| send.destination == address(port));
        sends
            .flat_map(|send| {
                assert!(send.contents.len() <= 65_507, "{}", send.contents.len());
                send.datagrams().collect::<Vec<_>>()
            })
            .collect()
    }
}

impl AsyncUdpSocket for Narrow {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut room = self.room.lock().expect("a lock");
        *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.sends.lock().expect("a lock").push(Send {
            destination: transmit.destination,
            contents: transmit.contents.to_vec(),
            segment_size: transmit.segment_size,
            ecn: transmit.ecn,
        });
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(1))
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments
    }
}

/// Says whether there is room; who waits for it is not told.
#[derive(Debug)]
struct Room(Arc<Narrow>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self.0.room.lock().expect("a lock") {
            0 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }
}

pub(super) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Bytes that differ everywhere, and from those of other seeds.
pub(super) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

pub(super) fn transmit(contents: &[u8], size: usize, port: u16) -> Transmit<'_> {
    Transmit {
        destination: address(port),
        ecn: Some(EcnCodepoint::Ect0),
        contents,
        segment_size: (contents.len() > size).then_some(size),
        src_ip: None,
    }
}

pub(super) fn chunks(contents: &[u8], size: usize) -> Vec<Vec<u8>> {
    contents.chunks(size).map(<[u8]>::to_vec).collect()
}

pub(super) fn is_blocked(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
