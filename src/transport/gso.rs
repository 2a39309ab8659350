//! A UDP socket that hands down no more datagrams at once than the system takes in one send.
//!
//! quinn puts up to ten datagrams of one size into one transmit, and Linux cuts it up (GSO). But what
//! is cut up is one UDP datagram, which has room for 65,507 bytes: ten of more than 6,550 bytes are
//! refused with EMSGSIZE, which quinn-udp takes for the answer to a probe of the MTU and reports as
//! sent. Everything would seem lost. Here such a transmit goes out in several sends, each of whole
//! datagrams and at most `MAX_SEND_LEN` bytes. To let quinn make fewer is no way out: it asks once for
//! all connections of a socket, and those with small datagrams want all ten.
//!
//! A later one of these sends may find the socket full. quinn then keeps the whole transmit and, before
//! anything else of that connection, offers it again as it was; other connections come in between. So
//! it is noted how much of it went, and only the rest is sent. A transmit is known by its last bytes:
//! a datagram of QUIC that is long enough to be cut up ends with the tag of its encryption, and no two
//! have the same. A note without its transmit, of a connection that ended, goes when there are too many.
//! A transmit without its note would be sent from its beginning: whoever receives a datagram twice
//! ignores it.
//!
//! Smaller transmits, and what is received, pass as they are.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::limits::{MAX_PARTLY_SENT, MAX_SEND_LEN};

/// Bytes at the end of a transmit by which it is known: an AEAD tag of TLS 1.3.
const TAG_LEN: usize = 16;

/// The socket.
#[derive(Debug)]
pub(super) struct Splitter {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The oldest first.
    partly: Mutex<VecDeque<Partly>>,
}

/// A transmit of which a part went out.
#[derive(Debug)]
struct Partly {
    destination: SocketAddr,
    tag: [u8; TAG_LEN],
    /// Bytes that need not be sent again.
    sent: usize,
}

impl Splitter {
    /// Hands everything to `inner`.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { inner, partly: Mutex::default() }
    }

    fn partly(&self) -> MutexGuard<'_, VecDeque<Partly>> {
        self.partly.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the note of how much of a transmit went out.
    fn take_sent(&self, destination: SocketAddr, tag: [u8; TAG_LEN]) -> usize {
        let mut partly = self.partly();
        let at = partly.iter().position(|note| (note.destination, note.tag) == (destination, tag));
        at.and_then(|at| partly.remove(at)).map_or(0, |note| note.sent)
    }

    fn note_sent(&self, note: Partly) {
        let mut partly = self.partly();
        if partly.len() == MAX_PARTLY_SENT {
            partly.pop_front();
        }
        partly.push_back(note);
    }
}

impl AsyncUdpSocket for Splitter {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Transmit { destination, contents, .. } = *transmit;
        let (size, tag) = match (transmit.segment_size, contents.last_chunk()) {
            (Some(size), Some(tag)) if size > 0 && contents.len() > MAX_SEND_LEN => (size, *tag),
            _ => return self.inner.try_send(transmit),
        };
        let most = (MAX_SEND_LEN / size).max(1) * size;
        let mut sent = self.take_sent(destination, tag);
        while sent < contents.len() {
            let part = &contents[sent..contents.len().min(sent + most)];
            let segment_size = (part.len() > size).then_some(size);
            let part = Transmit { contents: part, segment_size, ..*transmit };
            if let Err(error) = self.inner.try_send(&part) {
                if sent > 0 && error.kind() == io::ErrorKind::WouldBlock {
                    self.note_sent(Partly { destination, tag, sent });
                }
                return Err(error);
            }
            sent += part.contents.len();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::narrow::{Narrow, address, bytes, chunks, is_blocked, transmit};
    use proptest::prelude::*;

    /// A socket with room for so many sends, and what is below it.
    fn socket(room: usize) -> (Splitter, Arc<Narrow>) {
        let narrow = Narrow::with_room(room);
        (Splitter::new(narrow.clone()), narrow)
    }

    #[test]
    fn datagrams_of_every_size_and_number_arrive_whole_and_in_order() {
        let bytes = bytes(64 * 65_000, 1);
        for size in [1, 100, 1200, 1452, 6500, 6501, 6550, 6551, 8952, 32_500, 32_501, 65_000] {
            for count in 1..=64 {
                for last in [1, size / 2 + 1, size] {
                    let contents = &bytes[..(count - 1) * size + last];
                    let (splitter, below) = socket(usize::MAX);
                    splitter.try_send(&transmit(contents, size, 2)).expect("sent");
                    assert!(below.datagrams(2) == chunks(contents, size), "{count} of {size}");
                    let sends = below.sends();
                    let least = count.div_ceil(MAX_SEND_LEN / size);
                    assert!(sends.len() <= least, "{count} of {size}: {}", sends.len());
                    assert!(sends.iter().all(|send| send.ecn.is_some()));
                }
            }
        }
    }

    #[test]
    fn what_one_send_can_carry_passes_as_it_is() {
        for (len, size) in [(0, 1200), (10, 1200), (14_520, 1452), (MAX_SEND_LEN, 6500)] {
            let contents = bytes(len, 1);
            let (splitter, below) = socket(1);
            splitter.try_send(&transmit(&contents, size, 2)).expect("sent");
            let [send] = &below.sends()[..] else { panic!("one send") };
            assert_eq!(send.contents, contents);
            assert_eq!(send.segment_size, (len > size).then_some(size));
            assert!(splitter.partly().is_empty());
        }
        assert_eq!(socket(0).0.max_transmit_segments(), Narrow::MAX_SEGMENTS);
    }

    #[test]
    fn a_probe_of_any_size_is_one_send() {
        let contents = bytes(65_527, 1);
        let (splitter, below) = socket(1);
        let probe = Transmit { segment_size: None, ..transmit(&contents, 1, 2) };
        splitter.try_send(&probe).expect("sent");
        assert_eq!(below.sends()[0].contents, contents);
    }

    #[test]
    fn a_socket_that_is_full_in_the_middle_gets_the_rest_later_and_nothing_twice() {
        let (size, count) = (8952, 20);
        let contents = bytes(size * count, 1);
        let transmit = transmit(&contents, size, 2);
        for room in 0..=3 {
            let (splitter, below) = socket(0);
            let sends = [room, 0, 0, 1, usize::MAX].into_iter().take_while(|room| {
                below.make_room(*room);
                let result = splitter.try_send(&transmit);
                assert!(result.is_ok() || is_blocked(&result));
                result.is_err()
            });
            assert_eq!(sends.count(), [4, 4, 3, 0][room]);
            assert!(below.datagrams(2) == chunks(&contents, size), "room for {room}");
            assert!(splitter.partly().is_empty(), "nothing is noted of what went");
        }
    }

    #[test]
    fn full_before_the_first_part_nothing_is_noted() {
        let contents = bytes(89_520, 1);
        let (splitter, _below) = socket(0);
        assert!(is_blocked(&splitter.try_send(&transmit(&contents, 8952, 2))));
        assert!(splitter.partly().is_empty());
    }

    #[test]
    fn connections_that_take_turns_do_not_get_each_others_rest() {
        // The same bytes to two, and other bytes to one of them: a path that has two connections.
        let (one, other) = (bytes(89_520, 1), bytes(89_520, 2));
        let all = [transmit(&one, 8952, 2), transmit(&one, 8952, 3), transmit(&other, 8952, 2)];
        let (splitter, below) = socket(0);
        for transmit in &all {
            below.make_room(1);
            assert!(is_blocked(&splitter.try_send(transmit)));
        }
        below.make_room(usize::MAX);
        for transmit in all.iter().rev() {
            splitter.try_send(transmit).expect("sent");
        }
        assert!(below.datagrams(3) == chunks(&one, 8952));
        let mut to_two = below.datagrams(2);
        let mut expected = [chunks(&one, 8952), chunks(&other, 8952)].concat();
        to_two.sort();
        expected.sort();
        assert!(to_two == expected, "each once");
    }

    #[test]
    fn notes_of_connections_that_ended_do_not_pile_up() {
        let (splitter, below) = socket(0);
        let oldest = bytes(89_520, 0);
        for seed in 0..=MAX_PARTLY_SENT as u64 {
            below.make_room(1);
            let contents = bytes(89_520, seed);
            assert!(is_blocked(&splitter.try_send(&transmit(&contents, 8952, 2))));
        }
        assert_eq!(splitter.partly().len(), MAX_PARTLY_SENT);
        // Without its note it goes out from its beginning: twice, but whole.
        below.make_room(usize::MAX);
        below.forget();
        splitter.try_send(&transmit(&oldest, 8952, 2)).expect("sent");
        assert!(below.datagrams(2) == chunks(&oldest, 8952));
    }

    #[test]
    fn an_error_is_passed_on_and_forgets_nothing_that_matters() {
        #[derive(Debug)]
        struct Broken;
        impl AsyncUdpSocket for Broken {
            fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
                unreachable!("nobody waits here")
            }
            fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
                Err(io::ErrorKind::PermissionDenied.into())
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
        }
        let splitter = Splitter::new(Arc::new(Broken));
        let contents = bytes(89_520, 1);
        let error = splitter.try_send(&transmit(&contents, 8952, 2)).expect_err("broken");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(splitter.partly().is_empty());
    }

    proptest! {
        #[test]
        fn whatever_room_there_is_everything_arrives_once(
            size in 1usize..9000,
            count in 1usize..64,
            last in 1usize..9000,
            rooms in proptest::collection::vec(0usize..4, 0..12),
        ) {
            let contents = bytes((count - 1) * size + last.min(size), 1);
            let transmit = transmit(&contents, size, 2);
            let (splitter, below) = socket(0);
            let rooms = rooms.into_iter().chain([usize::MAX]);
            let mut result = Err(io::ErrorKind::WouldBlock.into());
            for room in rooms {
                below.make_room(room);
                result = splitter.try_send(&transmit);
                if result.is_ok() {
                    break;
                }
                prop_assert!(is_blocked(&result));
            }
            prop_assert!(result.is_ok());
            prop_assert!(below.datagrams(2) == chunks(&contents, size));
            prop_assert!(splitter.partly().is_empty());
        }
    }
}
