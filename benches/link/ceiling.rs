//! What the relay itself can carry: one socket that sends as fast as it can, one that counts, and a relay
//! without delay and rate between them.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mtq::clock;
use mtq::limits::SOCKET_BUFFER;
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::direction::{HEADERS, Shape};
use super::relay::Relay;

/// Datagrams of a train, as quinn makes them.
const SEGMENTS: usize = 10;

/// How long each size is sent.
const SPAN: Duration = Duration::from_secs(3);

/// Measures with datagrams of Ethernet and of loopback.
pub fn run() {
    println!(
        "\na relay without delay and rate; sender, relay and receiver on this machine's cores"
    );
    for len in [1_452, 6_500] {
        measure(len);
    }
}

fn socket() -> (UdpSocket, UdpSocketState) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).expect("a socket");
    let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER);
    (socket, state)
}

fn measure(len: usize) {
    let tracker = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let at = tracker.local_addr().expect("an address");
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let relay = Relay::start(anywhere, at, Shape::default()).expect("a relay");
    let ((from, from_state), (to, to_state)) = (socket(), socket());
    // Both make themselves known; the tracker sees where they are to be found.
    let outside = [&from, &to].map(|client| {
        client.send_to(b"hello", relay.front()).expect("sent");
        tracker.recv_from(&mut [0; 16]).expect("heard").1
    });
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, counted) = (stop.clone(), count.clone());
    let receiver = thread::spawn(move || {
        let mut buffers = vec![vec![0; 65_535]; BATCH_SIZE];
        while !stopped.load(Ordering::Relaxed) {
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let mut slices: Vec<_> = buffers.iter_mut().map(|one| IoSliceMut::new(one)).collect();
            match to_state.recv(UdpSockRef::from(&to), &mut slices, &mut meta) {
                Ok(trains) => {
                    let bytes: usize = meta[..trains].iter().map(|meta| meta.len).sum();
                    counted.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Err(_) => thread::sleep(Duration::from_micros(100)),
            }
        }
    });
    let contents = vec![7; SEGMENTS * len];
    let transmit = Transmit {
        destination: outside[1],
        ecn: None,
        contents: &contents,
        segment_size: Some(len),
        src_ip: None,
    };
    let cpu = || relay.told().last().map_or(0.0, |told| told.cpu);
    let begun = clock::monotonic();
    let mut sent = 0;
    while begun.elapsed() < SPAN {
        if from_state.send(UdpSockRef::from(&from), &transmit).is_ok() {
            sent += contents.len();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let received = count.load(Ordering::Relaxed) as f64;
    thread::sleep(Duration::from_millis(1_100));
    let cpu = cpu();
    stop.store(true, Ordering::Relaxed);
    receiver.join().expect("it ends");
    let datagrams = received / len as f64 / seconds;
    let mbit = (received + datagrams * seconds * HEADERS as f64) * 8.0 / seconds / 1e6;
    println!(
        "  datagrams of {len:>5} bytes: {mbit:>7.0} Mbit/s through it ({:.0},000 a second) of {:>7.0} \
         sent; {:.0} % of a core, {:.2} CPU seconds a GB",
        datagrams / 1e3,
        sent as f64 * 8.0 / seconds / 1e6,
        100.0 * cpu / seconds,
        cpu / (received / 1e9),
    );
}
