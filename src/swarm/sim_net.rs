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
    /// What the peer's downlink takes at most, in bytes a second.
    cap: f64,
    /// Bytes a second now.
    rate: f64,
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

    /// Whether a body to `to`, whose downlink takes `cap` bytes a second, may begin now: as many as
    /// are sent within [`UPLOADS_SPAN`], of which one peer has half at most; those that do not fill
    /// the link are beside these.
    pub fn has_room(&self, to: usize, cap: f64) -> bool {
        let bodies = self.bytes_per_sec * UPLOADS_SPAN.as_secs_f64() / f64::from(PIECE_LEN);
        let at_once = (bodies as usize).clamp(UPLOADS_AT_ONCE_MIN, UPLOAD_SLOTS);
        let is_slow = |cap: f64| cap * 2.0 * (at_once as f64) < self.bytes_per_sec;
        let theirs = self.bodies.iter().filter(|body| body.to == to).count();
        let filling = self.bodies.iter().filter(|body| !is_slow(body.cap)).count();
        let most = if is_slow(cap) { UPLOADS_AT_ONCE_MIN } else { at_once / 2 };
        self.bodies.len() < UPLOAD_SLOTS
            && filling < at_once
            && theirs < most.max(UPLOADS_AT_ONCE_MIN)
    }

    /// A body begins.
    pub fn add(&mut self, now: Duration, id: u64, to: usize, len: u32, cap: f64) {
        self.advance(now);
        self.bodies.push(Body { id, to, len, left: f64::from(len), cap, rate: 0.0 });
        self.share();
    }

    /// A body stops; how many of its bytes were sent.
    pub fn remove(&mut self, now: Duration, id: u64) -> Option<u64> {
        self.advance(now);
        let place = self.bodies.iter().position(|body| body.id == id)?;
        let body = self.bodies.remove(place);
        self.share();
        Some((f64::from(body.len) - body.left) as u64)
    }

    /// Everything stops; the bodies, and how many bytes of each were sent.
    pub fn clear(&mut self, now: Duration) -> Vec<(u64, u64)> {
        self.advance(now);
        let bodies = self.bodies.drain(..);
        bodies.map(|body| (body.id, (f64::from(body.len) - body.left) as u64)).collect()
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
    pub fn take_ended(&mut self, now: Duration) -> Vec<u64> {
        self.advance(now);
        let ended = self.bodies.iter().filter(|body| body.left < ROUNDING);
        let ended: Vec<_> = ended.map(|body| body.id).collect();
        if !ended.is_empty() {
            self.bodies.retain(|body| body.left >= ROUNDING);
            self.share();
        }
        ended
    }

    /// How many bytes of a body are sent, and how many a second now.
    pub fn progress(&mut self, now: Duration, id: u64) -> Option<(f64, f64)> {
        self.advance(now);
        let body = self.bodies.iter().find(|body| body.id == id)?;
        Some((f64::from(body.len) - body.left, body.rate))
    }

    /// Bytes sent since the beginning.
    pub fn sent(&self) -> u64 {
        self.sent as u64
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

    /// Shares the rate: equally, but what a body cannot take goes to the others.
    fn share(&mut self) {
        let mut order: Vec<usize> = Vec::with_capacity(self.bodies.len());
        for at in 0..self.bodies.len() {
            let to = self.bodies[at].to;
            self.bodies[at].rate = 0.0;
            if self.bodies[..at].iter().all(|before| before.to != to) {
                order.push(at);
            }
        }
        order.sort_by(|a, b| self.bodies[*a].cap.total_cmp(&self.bodies[*b].cap));
        let mut left = self.bytes_per_sec;
        for (done, at) in order.iter().enumerate() {
            let fair = left / (order.len() - done) as f64;
            let rate = self.bodies[*at].cap.min(fair);
            self.bodies[*at].rate = rate;
            left -= rate;
        }
    }
}

/// What a peer receives: one body after the other in the order they were sent, at its rate.
#[derive(Clone, Copy, Debug)]
pub struct Downlink {
    bytes_per_sec: f64,
    free: Duration,
}

impl Downlink {
    /// An idle link.
    pub fn new(bytes_per_sec: f64) -> Self {
        Self { bytes_per_sec, free: Duration::ZERO }
    }

    /// Bytes a second.
    pub fn bytes_per_sec(&self) -> f64 {
        self.bytes_per_sec
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
        let mut link = Uplink::new(1000.0);
        link.add(Duration::ZERO, 1, 1, 1000, f64::INFINITY);
        link.add(Duration::ZERO, 2, 2, 1000, 100.0);
        link.add(Duration::ZERO, 3, 1, 1000, f64::INFINITY);
        // Peer 2 takes 100, so peer 1 gets 900, one body after the other.
        assert!(near(link.next_end().expect("busy"), 1.0 / 0.9));
        let end = link.next_end().expect("busy");
        assert_eq!(link.take_ended(end), [1]);
        assert!(near(link.next_end().expect("busy"), 2.0 / 0.9));
        assert_eq!(link.remove(2 * SECOND, 2), Some(200));
        let (sent, rate) = link.progress(2 * SECOND, 3).expect("under way");
        assert!((sent - 800.0).abs() < 0.01 && rate == 1000.0, "{sent} {rate}");
        assert_eq!(link.sent(), 2000);
        assert_eq!(link.clear(2 * SECOND).len(), 1);
        assert_eq!(link.next_end(), None);
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
    fn only_bodies_that_fill_the_link_count() {
        let mut link = Uplink::new(2.0 * f64::from(PIECE_LEN));
        let fast = f64::INFINITY;
        assert!(link.has_room(1, fast));
        link.add(Duration::ZERO, 1, 1, PIECE_LEN, 1000.0);
        link.add(Duration::ZERO, 2, 2, PIECE_LEN, fast);
        assert!(link.has_room(3, fast));
        link.add(Duration::ZERO, 3, 3, PIECE_LEN, fast);
        assert!(!link.has_room(4, fast));
    }
}
