//! A link as a process: a full-cone NAT on loopback, with a delay, a rate and a queue on the way out of
//! every client.
//!
//! Clients are told that the tracker is at the relay's front. Whoever sends there first is a client, and
//! gets an address outside, which the tracker sees and tells others. What comes to that address from another
//! client is handed on from an address inside that stands for the other one. So every datagram between two
//! clients passes through here: out of its sender at the rate of the link, and to its receiver after the
//! delay. The tracker is as far away, and sends at any rate.
//!
//! One thread, which looks at all sockets, hands on what is due, and sleeps for [`TICK`] at most: datagrams
//! are that much late at worst, and their rate is kept by when they came. Datagrams are read and sent in
//! trains (GRO, GSO), as their senders made them.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use mtq::clock;
use mtq::limits::SOCKET_BUFFER;
use quinn::udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::direction::{Counts, Direction, Shape, Train};

/// How long it sleeps at most while anything is on its way, and while nothing is.
const TICK: (Duration, Duration) = (Duration::from_micros(250), Duration::from_millis(2));

/// Bytes of one train.
const TRAIN: usize = 65_535;

/// Reads of one socket in a row before the others have their turn.
const TURN: usize = 8;

/// Datagrams of no client and no tracker are not handed on, and of clients there are few.
const MAX_CLIENTS: usize = 64;

/// How often it tells of itself.
const TELL: Duration = Duration::from_secs(1);

/// A relay at work on a thread of its own.
pub struct Relay {
    front: SocketAddr,
    told: Receiver<Told>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a relay tells of itself, about every second.
#[derive(Clone, Debug)]
pub struct Told {
    /// CPU seconds of its thread.
    pub cpu: f64,
    /// What each client sent, in the order in which they came.
    pub sent: Vec<Counts>,
}

impl Relay {
    /// Begins to stand between clients and the tracker at `tracker`.
    ///
    /// # Errors
    /// What the system says of the sockets.
    pub fn start(front: SocketAddr, tracker: SocketAddr, shape: Shape) -> io::Result<Self> {
        let (teller, told) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work::new(front, tracker, shape, teller)?;
        let front = work.ports[0].socket.local_addr()?;
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                work.turn();
            }
        });
        Ok(Self { front, told, stop, thread: Some(thread) })
    }

    /// Where the tracker is for clients.
    pub fn front(&self) -> SocketAddr {
        self.front
    }

    /// What it told since this was asked last, the newest last.
    pub fn told(&self) -> impl Iterator<Item = Told> + '_ {
        self.told.try_iter()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A socket, and for whom it stands.
struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    stands: Stands,
}

/// For whom a socket stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// For the tracker, towards clients.
    Front,
    /// For a client, towards everybody else.
    Outside(usize),
    /// For the second client, towards the first.
    Inside(usize, usize),
}

/// From which port a train leaves, and where it goes.
#[derive(Clone, Copy)]
struct Way {
    port: usize,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
}

struct Client {
    /// Where it really is.
    at: SocketAddr,
    /// Its port outside.
    outside: usize,
    sends: Direction<Way>,
}

struct Work {
    tracker: SocketAddr,
    shape: Shape,
    /// The front is the first.
    ports: Vec<Port>,
    clients: Vec<Client>,
    /// What the tracker sends.
    tracker_sends: Direction<Way>,
    buffers: Vec<Vec<u8>>,
    begun: Instant,
    teller: Sender<Told>,
    told_at: Duration,
}

impl Work {
    fn new(
        front: SocketAddr,
        tracker: SocketAddr,
        shape: Shape,
        teller: Sender<Told>,
    ) -> io::Result<Self> {
        let far = Shape { rate: None, loss: 0, ..shape };
        Ok(Self {
            tracker,
            shape,
            ports: vec![Port::open(front, Stands::Front)?],
            clients: Vec::new(),
            tracker_sends: Direction::new(far),
            buffers: vec![vec![0; TRAIN]; BATCH_SIZE],
            begun: clock::monotonic(),
            teller,
            told_at: TELL,
        })
    }

    /// Reads what there is, sends what is due, and sleeps until there may be more.
    fn turn(&mut self) {
        for port in 0..self.ports.len() {
            self.read(port);
        }
        let now = self.begun.elapsed();
        let Self { ports, clients, tracker_sends, .. } = self;
        let directions = clients.iter_mut().map(|client| &mut client.sends);
        let mut next = now + TICK.1;
        for direction in directions.chain([tracker_sends]) {
            while let Some(train) = direction.through(now) {
                if !ports[train.to.port].send(train) {
                    break;
                }
                direction.take();
            }
            if direction.due().is_some() {
                next = next.min(now + TICK.0);
            }
        }
        if self.told_at <= now {
            self.told_at += TELL;
            let sent = self.clients.iter().map(|client| client.sends.counts()).collect();
            // Nobody may be listening any more.
            let _ = self.teller.send(Told { cpu: thread_cpu(), sent });
        }
        thread::sleep(next.saturating_sub(self.begun.elapsed()));
    }

    fn read(&mut self, port: usize) {
        let mut buffers = std::mem::take(&mut self.buffers);
        for _ in 0..TURN {
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let mut slices: Vec<_> = buffers.iter_mut().map(|one| IoSliceMut::new(one)).collect();
            let from = &self.ports[port];
            let read = from.state.recv(UdpSockRef::from(&from.socket), &mut slices, &mut meta);
            // Nothing is there, or the other side of some earlier datagram was not: both pass.
            let Ok(count) = read else { break };
            for (buffer, meta) in buffers.iter().zip(&meta[..count]) {
                if meta.len > 0 {
                    self.hand_on(port, meta, &buffer[..meta.len]);
                }
            }
            if count < BATCH_SIZE {
                break;
            }
        }
        self.buffers = buffers;
    }

    /// A train came to a port.
    fn hand_on(&mut self, port: usize, meta: &RecvMeta, datagrams: &[u8]) {
        let now = self.begun.elapsed();
        let way = |port, to| Way { port, to, ecn: meta.ecn };
        let from = self.clients.iter().position(|client| client.at == meta.addr);
        let (sender, way) = match (self.ports[port].stands, from) {
            (Stands::Front, known) => {
                let Some(client) = known.or_else(|| self.add_client(meta.addr)) else { return };
                (Some(client), way(self.clients[client].outside, self.tracker))
            }
            (Stands::Outside(client), _) if meta.addr == self.tracker => {
                (None, way(0, self.clients[client].at))
            }
            (Stands::Outside(client), Some(other)) => {
                let Some(inside) = self.inside(client, other) else { return };
                (Some(other), way(inside, self.clients[client].at))
            }
            (Stands::Inside(client, other), Some(from)) if from == client => {
                (Some(client), way(self.clients[client].outside, self.clients[other].at))
            }
            (Stands::Outside(_) | Stands::Inside(..), _) => return,
        };
        let sends = match sender {
            Some(client) => &mut self.clients[client].sends,
            None => &mut self.tracker_sends,
        };
        sends.enter(now, way, meta.stride, datagrams);
    }

    fn add_client(&mut self, at: SocketAddr) -> Option<usize> {
        let number = self.clients.len();
        if number >= MAX_CLIENTS {
            return None;
        }
        let outside = self.add_port(Stands::Outside(number))?;
        let shape = Shape { seed: self.shape.seed.wrapping_add(number as u64), ..self.shape };
        self.clients.push(Client { at, outside, sends: Direction::new(shape) });
        Some(number)
    }

    /// The port that stands for `other` towards a client.
    fn inside(&mut self, client: usize, other: usize) -> Option<usize> {
        let stands = Stands::Inside(client, other);
        let there = self.ports.iter().position(|port| port.stands == stands);
        there.or_else(|| self.add_port(stands))
    }

    fn add_port(&mut self, stands: Stands) -> Option<usize> {
        let port = Port::open(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), stands).ok()?;
        self.ports.push(port);
        Some(self.ports.len() - 1)
    }
}

impl Port {
    fn open(address: SocketAddr, stands: Stands) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The system may keep its own size.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), 2 * SOCKET_BUFFER);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), 2 * SOCKET_BUFFER);
        Ok(Self { socket, state, stands })
    }

    /// Sends a train; whether it went, or never will.
    fn send(&self, Train { to: Way { to, ecn, .. }, stride, bytes, .. }: &Train<Way>) -> bool {
        let most = stride * self.state.max_gso_segments().max(1);
        for part in bytes.chunks(most) {
            let segment_size = (part.len() > *stride).then_some(*stride);
            let (destination, ecn) = (*to, *ecn);
            let transmit =
                Transmit { destination, ecn, contents: part, segment_size, src_ip: None };
            // A part that was sent before is sent again then: the receiver ignores it.
            if self.state.send(UdpSockRef::from(&self.socket), &transmit).is_err() {
                return false;
            }
        }
        true
    }
}

/// CPU seconds of this thread; `/proc` knows on every Linux.
fn thread_cpu() -> f64 {
    super::cpu_of("/proc/thread-self/stat")
}
