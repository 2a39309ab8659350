//! The links of a simulated swarm: uplinks that bodies share, downlinks as queues at their rate.
//!
//! An uplink is never faster than its rate, whatever is on it. Bodies to one peer go one after the
//! other, as on one connection; those to different peers share, and what one peer's downlink cannot
//! take the others get. How many are sent at once is what [`Uplink::has_room`] says.

use std::time::Duration;

use crate::limits::{PIECE_LEN, UPLOAD_SLOTS, UPLOADS_AT_ONCE_MIN, UPLOADS_SPAN};

/// Bytes that are no whole byte more: rounding of rates and times.
const ROUNDING: f64 = 1e-3;

/// One body on its way.
#[derive(Clone, Debug)]
struct Body {
    id: u64,
    /// The peer it goes to.
    to: usize,
    len: u32,
    left: f64,
    /// Bytes a second now, and what its peer would take at most.
    rate: f64,
    cap: f64,
}

/// What a peer sends.
#[derive(Clone, Debug)]
pub struct Uplink {
    bytes_per_sec: f64,
    bodies: Vec<Body>,
    /// How far everything was sent by this time.
    at: Duration,
    sent: f64,
}

impl Uplink {
    /// An idle link.
    pub fn new(bytes_per_sec: f64) -> Self {
        Self { bytes_per_sec, bodies: Vec::new(), at: Duration::ZERO, sent: 0.0 }
    }

    /// Whether a body may begin at all, or one to `to`: as many as are sent within [`UPLOADS_SPAN`], of
    /// which one peer has half at most; those that do not fill the link are beside these.
    pub fn has_room(&self, to: Option<usize>) -> bool {
        let bodies = self.bytes_per_sec * UPLOADS_SPAN.as_secs_f64() / f64::from(PIECE_LEN);
        let at_once = (bodies as usize).clamp(UPLOADS_AT_ONCE_MIN, UPLOAD_SLOTS);
        let fills = |body: &&Body| body.cap * at_once as f64 >= self.bytes_per_sec;
        let theirs = || self.bodies.iter().filter(|body| Some(body.to) == to);
        let contended = self.bodies.iter().any(|body| Some(body.to) != to);
        let least = if contended { 1 } else { UPLOADS_AT_ONCE_MIN - 1 };
        let most = match theirs().all(|body| fills(&body)) {
            true => least.max(at_once / 2),
            false => least,
        };
        self.bodies.len() < UPLOAD_SLOTS
            && self.bodies.iter().filter(fills).count() < at_once
            && theirs().count() < most
    }

    /// A body begins.
    pub fn add(&mut self, now: Duration, id: u64, to: usize, len: u32, downlinks: &mut [Downlink]) {
        self.advance(now);
        let cap = f64::INFINITY;
        self.bodies.push(Body { id, to, len, left: f64::from(len), rate: 0.0, cap });
        self.share(downlinks);
    }

    /// A body stops; how many of its bytes were sent.
    pub fn remove(&mut self, now: Duration, id: u64, downlinks: &mut [Downlink]) -> Option<u64> {
        self.advance(now);
        let place = self.bodies.iter().position(|body| body.id == id)?;
        let body = self.bodies.remove(place);
        downlinks[body.to].hold(-body.rate);
        self.share(downlinks);
        Some((f64::from(body.len) - body.left).round() as u64)
    }

    /// Everything stops; the bodies, and how many bytes of each were sent.
    pub fn clear(&mut self, now: Duration, downlinks: &mut [Downlink]) -> Vec<(u64, u64)> {
        self.advance(now);
        let bodies = self.bodies.drain(..).map(|body| {
            downlinks[body.to].hold(-body.rate);
            (body.id, (f64::from(body.len) - body.left).round() as u64)
        });
        bodies.collect()
    }

    /// When the next body is sent whole, if nothing changes.
    pub fn next_end(&self) -> Option<Duration> {
        let going = self.bodies.iter().filter(|body| body.rate > 0.0);
        let ends = going.map(|body| (body.left / body.rate).max(0.0));
        let first = ends.min_by(f64::total_cmp)?;
        // Not before: a nanosecond later is none.
        Some(self.at + Duration::from_secs_f64(first.min(1e9)) + Duration::from_nanos(1))
    }

    /// Takes out the bodies that are sent whole by now.
    pub fn take_ended(&mut self, now: Duration, downlinks: &mut [Downlink]) -> Vec<u64> {
        self.advance(now);
        let ended = self.bodies.iter().filter(|body| body.left < ROUNDING);
        let ended: Vec<_> = ended.map(|body| body.id).collect();
        self.bodies.retain(|body| {
            let goes_on = body.left >= ROUNDING;
            if !goes_on {
                downlinks[body.to].hold(-body.rate);
            }
            goes_on
        });
        self.share(downlinks);
        ended
    }

    /// How many bytes of a body are sent.
    pub fn progress(&mut self, now: Duration, id: u64) -> Option<f64> {
        self.advance(now);
        let body = self.bodies.iter().find(|body| body.id == id)?;
        Some(f64::from(body.len) - body.left)
    }

    /// Shares the rate: equally, but what a peer cannot take goes to the others.
    pub fn share(&mut self, downlinks: &mut [Downlink]) {
        let mut order: Vec<usize> = Vec::with_capacity(self.bodies.len());
        for at in 0..self.bodies.len() {
            let to = self.bodies[at].to;
            let first = self.bodies[..at].iter().all(|before| before.to != to);
            let body = &mut self.bodies[at];
            let before = std::mem::take(&mut body.rate);
            body.cap = downlinks[to].room(before);
            if before > 0.0 {
                downlinks[to].hold(-before);
            }
            if first {
                order.push(at);
            }
        }
        order.sort_by(|a, b| self.bodies[*a].cap.total_cmp(&self.bodies[*b].cap));
        let mut left = self.bytes_per_sec;
        for (done, at) in order.iter().enumerate() {
            let body = &mut self.bodies[*at];
            body.rate = body.cap.min(left / (order.len() - done) as f64);
            downlinks[body.to].hold(body.rate);
            left -= body.rate;
        }
    }

    /// Bytes sent since the beginning.
    pub fn sent(&self) -> u64 {
        self.sent.round() as u64
    }

    fn advance(&mut self, now: Duration) {
        let span = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        for body in &mut self.bodies {
            let bytes = (body.rate * span).min(body.left);
            body.left -= bytes;
            self.sent += bytes;
        }
    }
}

/// What a peer receives: one body after the other in the order they were sent, at its rate; and how
/// fast they are sent to it, so that they come no faster, but for a while.
#[derive(Clone, Copy, Debug)]
pub struct Downlink {
    bytes_per_sec: f64,
    free: Duration,
    /// Bytes a second that are sent to it now, and how many send.
    incoming: f64,
    senders: u32,
}

impl Downlink {
    /// An idle link.
    pub fn new(bytes_per_sec: f64) -> Self {
        Self { bytes_per_sec, free: Duration::ZERO, incoming: 0.0, senders: 0 }
    }

    /// How fast one may send that sends at `rate` now, or not yet: what others leave, but never less
    /// than an equal share.
    fn room(&self, rate: f64) -> f64 {
        let senders = self.senders + u32::from(rate == 0.0);
        let rest = self.bytes_per_sec - (self.incoming - rate);
        rest.max(self.bytes_per_sec / f64::from(senders.max(1)))
    }

    /// Somebody sends to it at `rate` now, or not any more when that is below zero.
    fn hold(&mut self, rate: f64) {
        self.incoming = (self.incoming + rate).max(0.0);
        self.senders =
            if rate < 0.0 { self.senders - 1 } else { self.senders + u32::from(rate > 0.0) };
        if self.senders == 0 {
            // Rounding does not add up.
            self.incoming = 0.0;
        }
    }

    /// The last of `len` bytes comes to the link at `at`; when it is through.
    pub fn take(&mut self, at: Duration, len: u64) -> Duration {
        let span = Duration::from_secs_f64((len as f64 / self.bytes_per_sec).min(1e9));
        self.free = at.max(self.free + span);
        self.free
    }

    /// How long what comes now waits for what came before.
    pub fn backlog(&self, now: Duration) -> Duration {
        self.free.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn near(time: Duration, seconds: f64) -> bool {
        (time.as_secs_f64() - seconds).abs() < 1e-6
    }

    #[test]
    fn an_uplink_is_shared_and_never_faster_than_it_is() {
        let mut downlinks = [1e12, 1e12, 100.0].map(Downlink::new);
        let mut link = Uplink::new(1000.0);
        link.add(Duration::ZERO, 1, 1, 1000, &mut downlinks);
        link.add(Duration::ZERO, 2, 2, 1000, &mut downlinks);
        link.add(Duration::ZERO, 3, 1, 1000, &mut downlinks);
        // Peer 2 takes 100, so peer 1 gets 900, one body after the other.
        let end = link.next_end().expect("busy");
        assert!(near(end, 1.0 / 0.9), "{end:?}");
        assert_eq!(link.take_ended(end, &mut downlinks), [1]);
        assert!(near(link.next_end().expect("busy"), 2.0 / 0.9));
        assert_eq!(link.remove(2 * SECOND, 2, &mut downlinks), Some(200));
        let sent = link.progress(2 * SECOND, 3).expect("under way");
        assert!((sent - 800.0).abs() < 0.01, "{sent}");
        assert_eq!(link.sent(), 2000);
        assert_eq!(link.clear(2 * SECOND, &mut downlinks).len(), 1);
        assert_eq!(link.next_end(), None);
        assert!(downlinks.iter().all(|link| link.senders == 0));
    }

    #[test]
    fn a_downlink_lets_through_no_more_than_its_rate() {
        let mut link = Downlink::new(1000.0);
        assert!(near(link.take(SECOND, 500), 1.0));
        assert!(near(link.take(SECOND, 500), 1.5));
        assert!(near(link.take(SECOND, 500), 2.0));
        assert!(near(link.take(9 * SECOND, 500), 9.0));
    }

    #[test]
    fn what_a_slow_sender_leaves_of_a_downlink_others_take() {
        let mut downlinks = [Downlink::new(1000.0)];
        let (mut slow, mut fast) = (Uplink::new(100.0), Uplink::new(5000.0));
        slow.add(Duration::ZERO, 1, 0, PIECE_LEN, &mut downlinks);
        fast.add(Duration::ZERO, 2, 0, PIECE_LEN, &mut downlinks);
        assert_eq!(fast.progress(SECOND, 2), Some(900.0));
        assert_eq!(slow.progress(SECOND, 1), Some(100.0));
    }

    #[test]
    fn only_bodies_that_fill_the_link_count() {
        let mut downlinks = [1000.0, 1000.0, 1e12, 1e12, 1e12].map(Downlink::new);
        let mut link = Uplink::new(2.0 * f64::from(PIECE_LEN));
        for to in 0..downlinks.len() {
            assert!(link.has_room(Some(to)));
            link.add(Duration::ZERO, to as u64, to, PIECE_LEN, &mut downlinks);
        }
        assert!(!link.has_room(None));
    }
}
