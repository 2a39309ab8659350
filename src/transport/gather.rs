//! A UDP socket that hands down as many datagrams in one send as the system takes, and no more.
//!
//! quinn puts up to ten datagrams of one size into one transmit, and Linux cuts it up (GSO). But what
//! is cut up is one UDP datagram, which has room for 65,507 bytes: ten of more than 6,550 bytes are
//! refused with EMSGSIZE, which quinn-udp takes for the answer to a probe of the MTU and reports as
//! sent. Everything would seem lost. So quinn is told that the socket takes as many as fit of the largest
//! datagram that it has seen, and no more than seven, as many as fit of the largest between machines. quinn makes
//! none of a size that it has not tried with a single one before, here.
//!
//! Most of what a small datagram costs is the system call it goes out with, and of 1,452 bytes the system
//! takes 44. So a transmit of as many, behind which there is mostly another one, waits until as many
//! have come as fit in a send, or a smaller one, which is the last there was to say. If none
//! comes, it goes once everything has run that was ready to run: the task that receives is woken,
//! lets the others go first, and sends what it then finds. So nothing waits for a timer, and no task is
//! needed that somebody would have to end.
//!
//! What waits was accepted, as bytes in the socket's own buffer are. Datagrams to one address keep their
//! order; those that cannot be joined pass as they are, and first what waits before them.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::limits::{JUMBO_MTU, MAX_SEND_LEN};

/// Datagrams that quinn shall make at once at most. Fewer are all there was to send.
const AT_ONCE: usize = MAX_SEND_LEN / JUMBO_MTU as usize;

/// Addresses that something may wait for at once, each with a buffer of `MAX_SEND_LEN`.
const MAX_WAITING: usize = 4;

/// The socket.
#[derive(Debug)]
pub(super) struct Gatherer {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Bytes of the largest datagram so far.
    largest: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The oldest first, one an address.
    waiting: Vec<Waiting>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    /// Of the task that receives, which sends what waits.
    sender: Option<Waker>,
    writable: Pin<Box<dyn UdpPoller>>,
}

/// Datagrams of one size.
#[derive(Debug)]
struct Waiting {
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    size: usize,
    contents: Vec<u8>,
    /// The task that sends it has let the others go first.
    is_seen: bool,
}

impl Waiting {
    fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.contents,
            segment_size: Some(self.size),
            src_ip: self.src_ip,
        }
    }

    /// Whether `transmit` can go behind it in the same send.
    fn joins(&self, transmit: &Transmit<'_>, max_segments: usize) -> bool {
        let is_of_size = match transmit.segment_size {
            Some(size) => size == self.size,
            None => transmit.contents.len() <= self.size,
        };
        is_of_size
            && self.contents.len().is_multiple_of(self.size)
            && (self.src_ip, self.ecn) == (transmit.src_ip, transmit.ecn)
            && fits(self.contents.len() + transmit.contents.len(), self.size, max_segments)
    }
}

/// Whether so many bytes are no more than one send takes.
fn fits(len: usize, size: usize, max_segments: usize) -> bool {
    len <= MAX_SEND_LEN && len.div_ceil(size) <= max_segments
}

/// The size of its datagrams, if it is as many as quinn makes, `at_once`: mostly more follow.
fn size_of_full(transmit: &Transmit<'_>, at_once: usize) -> Option<usize> {
    let size = transmit.segment_size.filter(|size| *size > 0)?;
    let len = transmit.contents.len();
    (len.is_multiple_of(size) && len / size >= at_once).then_some(size)
}

impl Gatherer {
    /// Hands everything to `inner`.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        let state = State {
            waiting: Vec::with_capacity(MAX_WAITING),
            spare: Vec::new(),
            sender: None,
            writable: inner.clone().create_io_poller(),
        };
        Self { inner, largest: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    /// Datagrams that quinn shall make at once.
    fn at_once(&self) -> usize {
        (MAX_SEND_LEN / self.largest.load(Ordering::Relaxed).max(1)).clamp(1, AT_ONCE)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits at `at`.
    fn send(&self, state: &mut State, at: usize) -> io::Result<()> {
        match self.inner.try_send(&state.waiting[at].transmit()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // As if it was lost on the way.
            Err(error) => tracing::debug!(%error, "datagrams that waited were not sent"),
            Ok(()) => {}
        }
        let mut contents = state.waiting.remove(at).contents;
        contents.clear();
        state.spare.push(contents);
        Ok(())
    }

    /// Takes a transmit if it joins what waits, or is to wait; whether it did. Else it is to be sent as it is,
    /// and nothing waits before it.
    ///
    /// # Errors
    /// `WouldBlock` when it has to stay behind what waits and cannot go.
    fn takes(&self, transmit: &Transmit<'_>) -> io::Result<bool> {
        let max_segments = self.inner.max_transmit_segments();
        let full = size_of_full(transmit, self.at_once());
        let state = &mut *self.state();
        let to_it = |waiting: &Waiting| waiting.destination == transmit.destination;
        if let Some(at) = state.waiting.iter().position(to_it) {
            let waiting = &mut state.waiting[at];
            if waiting.joins(transmit, max_segments) {
                waiting.contents.extend_from_slice(transmit.contents);
                let next = waiting.contents.len() + transmit.contents.len();
                if full.is_none() || !fits(next, waiting.size, max_segments) {
                    // If it cannot go now, it goes on waiting.
                    let _ = self.send(state, at);
                }
                return Ok(true);
            }
            self.send(state, at)?;
        }
        let two_fit = |size: &usize| fits(2 * transmit.contents.len(), *size, max_segments);
        let (Some(size), Some(sender)) = (full.filter(two_fit), &state.sender) else {
            return Ok(false);
        };
        sender.wake_by_ref();
        if state.waiting.len() == MAX_WAITING {
            self.send(state, 0)?;
        }
        let mut contents = state.spare.pop().unwrap_or_default();
        contents.extend_from_slice(transmit.contents);
        let Transmit { destination, src_ip, ecn, .. } = *transmit;
        state.waiting.push(Waiting { destination, src_ip, ecn, size, contents, is_seen: false });
        Ok(true)
    }

    /// Sends what waits, each once the others had their turn since it was first seen here.
    fn poll_waiting(&self, context: &mut Context<'_>) {
        let state = &mut *self.state();
        if !state.sender.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.sender = Some(context.waker().clone());
        }
        let mut at = 0;
        while let Some(waiting) = state.waiting.get_mut(at) {
            if !waiting.is_seen {
                waiting.is_seen = true;
                at += 1;
            } else if self.send(state, at).is_err() {
                let is_writable = state.writable.as_mut().poll_writable(context);
                if !matches!(is_writable, Poll::Ready(Ok(()))) {
                    return;
                }
            }
        }
        if at > 0 {
            context.waker().wake_by_ref();
        }
    }
}

impl AsyncUdpSocket for Gatherer {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.largest.fetch_max(size, Ordering::Relaxed);
        if self.takes(transmit)? {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.poll_waiting(context);
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.at_once())
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
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;
    use crate::limits::MAX_MTU;
    use crate::transport::narrow::{Narrow, address, bytes, chunks, is_blocked, transmit};

    const SIZE: usize = 1452;

    /// Counts how often the task was woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The socket, what is below it, and the task that receives.
    struct Under {
        gatherer: Gatherer,
        below: Arc<Narrow>,
        task: Arc<Task>,
    }

    impl Under {
        /// With room for so many sends; the task has run once.
        fn test(room: usize) -> Self {
            Self::above(Narrow::with_room(room))
        }

        fn above(below: Arc<Narrow>) -> Self {
            let gatherer = Gatherer::new(below.clone());
            let under = Self { gatherer, below, task: Arc::default() };
            under.run();
            under
        }

        /// Runs the task once, whether or not it was woken.
        fn run(&self) {
            let waker = self.task.clone().into();
            let is_pending =
                self.gatherer.poll_recv(&mut Context::from_waker(&waker), &mut [], &mut []);
            assert!(is_pending.is_pending());
        }

        /// Runs the task as often as it asks for.
        fn run_while_woken(&self) {
            while self.task.0.swap(0, Ordering::Relaxed) > 0 {
                self.run();
            }
        }

        fn send(&self, contents: &[u8], port: u16) {
            self.gatherer.try_send(&transmit(contents, SIZE, port)).expect("taken");
        }

        /// Datagrams of each send.
        fn sends(&self) -> Vec<usize> {
            self.below.sends().iter().map(|send| send.datagrams().count()).collect()
        }
    }

    #[test]
    fn quinn_makes_no_more_than_one_send_carries() {
        let under = Under::test(usize::MAX);
        let contents = bytes(usize::from(MAX_MTU), 1);
        // The largest so far, be it only tried, decides for all.
        for (size, at_once) in
            [(0, 7), (SIZE, 7), (JUMBO_MTU.into(), 7), (MAX_MTU.into(), 4), (SIZE, 4)]
        {
            let alone = Transmit { segment_size: None, ..transmit(&contents[..size], SIZE, 2) };
            under.gatherer.try_send(&alone).expect("sent");
            assert_eq!(under.gatherer.max_transmit_segments(), at_once);
            assert!(at_once * size <= MAX_SEND_LEN);
        }
        let without = Gatherer::new(Narrow::without_gso());
        assert_eq!(without.max_transmit_segments(), 1);
    }

    #[test]
    fn a_system_that_cuts_nothing_up_is_asked_for_nothing() {
        // quinn-udp finds that out by a send that failed; another may be on its way.
        let contents = bytes(AT_ONCE * SIZE, 1);
        let below = Narrow::without_gso();
        let under = Under::above(below);
        under.send(&contents, 2);
        under.send(&contents, 2);
        assert_eq!(under.sends(), [AT_ONCE; 2]);
    }

    #[test]
    fn what_follows_closely_goes_out_in_one_send() {
        let bytes = bytes(84 * SIZE, 1);
        let under = Under::test(usize::MAX);
        for some in bytes.chunks(AT_ONCE * SIZE) {
            under.send(some, 2);
        }
        // Another seven do not fit in 65,000 bytes.
        assert_eq!(under.sends(), [42, 42]);
        assert!(under.below.datagrams(2) == chunks(&bytes, SIZE));
        assert!(under.below.sends().iter().all(|send| send.ecn.is_some()));
        under.run_while_woken();
        assert_eq!(under.sends(), [42, 42], "nothing is left");
    }

    #[test]
    fn the_last_there_is_to_say_goes_at_once_with_what_waits() {
        // Fewer than seven, seven of which one is short, one alone.
        for len in [3 * SIZE, 6 * SIZE + 1, SIZE, 40] {
            let contents = bytes(AT_ONCE * SIZE + len, 1);
            let under = Under::test(usize::MAX);
            under.send(&contents[..AT_ONCE * SIZE], 2);
            assert!(under.sends().is_empty());
            under.send(&contents[AT_ONCE * SIZE..], 2);
            assert_eq!(under.sends(), [AT_ONCE + len.div_ceil(SIZE)]);
            assert!(under.below.datagrams(2) == chunks(&contents, SIZE));
        }
    }

    #[test]
    fn what_nothing_follows_goes_once_the_others_had_their_turn() {
        let contents = bytes(AT_ONCE * SIZE, 1);
        let under = Under::test(usize::MAX);
        under.send(&contents, 2);
        assert_eq!(under.task.0.swap(0, Ordering::Relaxed), 1, "woken");
        under.run();
        assert!(under.sends().is_empty(), "others go first");
        assert_eq!(under.task.0.swap(0, Ordering::Relaxed), 1, "it comes back");
        under.run();
        assert_eq!(under.sends(), [AT_ONCE]);
        assert_eq!(under.task.0.swap(0, Ordering::Relaxed), 0, "and sleeps");
    }

    #[test]
    fn what_waits_is_not_held_up_by_what_comes_later() {
        let contents = bytes(AT_ONCE * SIZE, 1);
        let under = Under::test(usize::MAX);
        under.send(&contents, 2);
        under.run();
        under.send(&contents, 3);
        under.run();
        assert_eq!(under.below.datagrams(2).len(), AT_ONCE);
        assert_eq!(under.below.datagrams(3).len(), 0);
        under.run_while_woken();
        assert_eq!(under.below.datagrams(3).len(), AT_ONCE);
    }

    #[test]
    fn what_does_not_join_passes_behind_what_waits() {
        let contents = bytes(20 * 9000, 1);
        let (first, rest) = contents.split_at(AT_ONCE * SIZE);
        let other = [
            Transmit { ecn: None, ..transmit(&rest[..40], SIZE, 2) },
            Transmit { src_ip: Some(address(9).ip()), ..transmit(&rest[..40], SIZE, 2) },
            // A probe of the MTU.
            Transmit { segment_size: None, ..transmit(&rest[..SIZE + 1], SIZE, 2) },
            transmit(&rest[..AT_ONCE * 8952], 8952, 2),
            transmit(&rest[..1300 * 3], 1300, 2),
        ];
        for other in &other {
            let under = Under::test(usize::MAX);
            under.send(first, 2);
            under.gatherer.try_send(other).expect("taken");
            let [one, two] = &under.below.sends()[..] else { panic!("two sends") };
            assert!(one.contents == first);
            assert!(two.contents == other.contents);
            assert_eq!(two.segment_size, other.segment_size);
            assert_eq!(two.ecn, other.ecn);
        }
    }

    #[test]
    fn what_is_not_followed_or_too_large_passes_as_it_is() {
        let contents = bytes(AT_ONCE * 8952, 1);
        let pass = [
            transmit(&contents[..40], SIZE, 2),
            transmit(&contents[..6 * SIZE], SIZE, 2),
            transmit(&contents[..6 * SIZE + 1], SIZE, 2),
            transmit(&contents, 8952, 2),
            // Twice as many are more than one send takes.
            transmit(&contents[..AT_ONCE * 4643], 4643, 2),
            transmit(&contents[..33 * 1000], 1000, 2),
            // Never made, and no reason to fail.
            Transmit { segment_size: Some(0), ..transmit(&contents[..40], SIZE, 2) },
            Transmit { segment_size: Some(1), ..transmit(&[], SIZE, 2) },
        ];
        for transmit in &pass {
            let under = Under::test(1);
            under.gatherer.try_send(transmit).expect("sent");
            let [send] = &under.below.sends()[..] else { panic!("one send") };
            assert!(send.contents == transmit.contents);
            assert_eq!(send.segment_size, transmit.segment_size);
        }
    }

    #[test]
    fn nothing_waits_when_nobody_would_send_it() {
        let contents = bytes(AT_ONCE * SIZE, 1);
        let below = Narrow::with_room(1);
        let gatherer = Gatherer::new(below.clone());
        gatherer.try_send(&transmit(&contents, SIZE, 2)).expect("sent");
        assert_eq!(below.datagrams(2).len(), AT_ONCE);
    }

    #[test]
    fn many_addresses_make_the_oldest_go() {
        let contents = bytes(AT_ONCE * SIZE, 1);
        let under = Under::test(usize::MAX);
        let ports = 2..u16::try_from(MAX_WAITING).expect("few") + 3;
        for port in ports.clone() {
            under.send(&contents, port);
        }
        assert_eq!(under.below.datagrams(2).len(), AT_ONCE);
        assert_eq!(under.sends(), [AT_ONCE], "the others wait");
        under.run_while_woken();
        assert_eq!(under.sends(), [AT_ONCE; MAX_WAITING + 1]);
        assert!(ports.clone().all(|port| under.below.datagrams(port).len() == AT_ONCE));
        let state = under.gatherer.state();
        assert_eq!(state.spare.len(), MAX_WAITING, "buffers are used again");
    }

    #[test]
    fn a_full_socket_takes_what_waits_once_it_has_room() {
        let contents = bytes(42 * SIZE, 1);
        let under = Under::test(0);
        for some in contents.chunks(AT_ONCE * SIZE) {
            under.send(some, 2);
        }
        // It waits, being accepted; what would come behind it is not.
        assert!(is_blocked(&under.gatherer.try_send(&transmit(&contents, SIZE, 2))));
        under.run_while_woken();
        assert!(under.sends().is_empty());
        under.below.make_room(1);
        under.run();
        assert_eq!(under.sends(), [42]);
        assert!(under.below.datagrams(2) == chunks(&contents, SIZE));
    }

    proptest! {
        #[test]
        fn whatever_comes_what_is_taken_arrives_once_and_in_order(
            steps in proptest::collection::vec(
                (2u16..9, 1usize..13, 1usize..=SIZE, 0usize..6, any::<bool>()),
                1..60,
            ),
        ) {
            let under = Under::test(0);
            let mut taken = vec![Vec::new(); 9];
            for (step, (port, count, last, room, is_run)) in steps.into_iter().enumerate() {
                under.below.make_room(room);
                // Most are of datagrams that are all as long.
                let last = if last % 3 == 0 { last } else { SIZE };
                let contents = bytes((count - 1) * SIZE + last, step as u64);
                match under.gatherer.try_send(&transmit(&contents, SIZE, port)) {
                    Ok(()) => taken[usize::from(port)].extend(chunks(&contents, SIZE)),
                    Err(error) => prop_assert!(is_blocked(&Err(error))),
                }
                if is_run {
                    under.run();
                }
            }
            under.below.make_room(usize::MAX);
            // The system would wake it for the room.
            under.run();
            under.run_while_woken();
            for port in 2..9 {
                prop_assert!(under.below.datagrams(port) == taken[usize::from(port)]);
            }
            prop_assert!(under.sends().into_iter().all(|count| count <= Narrow::MAX_SEGMENTS));
            prop_assert!(under.gatherer.state().waiting.is_empty());
        }
    }
}
