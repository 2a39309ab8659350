//! The rate limits of an agent, as a user sets and changes them: of all it does, and of single
//! shares and downloads, up and down.
//!
//! Bytes go through when both the limit of all and that of their swarm let them. A change acts at
//! once, and whoever waits is woken ([`Rates::changed`]).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::rate::Bucket;
use super::session::SwarmKey;
use crate::clock;
use crate::limits::LIMITED_CHUNK;

/// Bytes a second each way; nothing where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// To others.
    pub up: Option<u64>,
    /// From others.
    pub down: Option<u64>,
}

/// The limits of an agent and what they let through now.
#[derive(Debug)]
pub struct Rates {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    started: Instant,
}

#[derive(Debug)]
struct Inner {
    all: Pair,
    /// Of those that have limits of their own.
    swarms: HashMap<SwarmKey, Pair>,
}

#[derive(Debug)]
struct Pair {
    up: Bucket,
    down: Bucket,
}

impl Pair {
    fn new(limits: RateLimits) -> Self {
        Self { up: Bucket::new(limits.up), down: Bucket::new(limits.down) }
    }

    fn limits(&self) -> RateLimits {
        RateLimits { up: self.up.rate(), down: self.down.rate() }
    }
}

impl Rates {
    /// These limits for all together.
    pub fn new(limits: RateLimits) -> Self {
        let inner = Inner { all: Pair::new(limits), swarms: HashMap::new() };
        let (changed, _) = watch::channel(());
        Self { inner: Mutex::new(inner), changed, started: clock::monotonic() }
    }

    /// The limits of all together, or those of one swarm.
    pub fn limits(&self, of: Option<SwarmKey>) -> RateLimits {
        let inner = self.lock();
        match of {
            None => inner.all.limits(),
            Some(key) => inner.swarms.get(&key).map(Pair::limits).unwrap_or_default(),
        }
    }

    /// Other limits from now on, for all together or for one swarm.
    pub fn set(&self, of: Option<SwarmKey>, limits: RateLimits, now: Instant) {
        let now = self.since_start(now);
        let mut inner = self.lock();
        let pair = match of {
            None => &mut inner.all,
            Some(key) => {
                inner.swarms.entry(key).or_insert_with(|| Pair::new(RateLimits::default()))
            }
        };
        if pair.up.rate() != limits.up {
            pair.up.set_rate(now, limits.up);
        }
        if pair.down.rate() != limits.down {
            pair.down.set_rate(now, limits.down);
        }
        if let Some(key) = of.filter(|_| limits == RateLimits::default()) {
            inner.swarms.remove(&key);
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// A swarm has no limits of its own any more.
    pub fn forget(&self, key: SwarmKey) {
        if self.lock().swarms.remove(&key).is_some() {
            self.changed.send_replace(());
        }
    }

    /// Tells of every change from now on.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How many bytes of a swarm may be sent at once now.
    ///
    /// # Errors
    /// How long to wait, when none may; a change of limits may make it shorter.
    pub fn up_credit(&self, key: SwarmKey, now: Instant) -> Result<usize, Duration> {
        let limited = self.credit(key, now, |pair| &pair.up)?;
        Ok(if limited { LIMITED_CHUNK } else { usize::MAX })
    }

    /// Bytes of a swarm are sent.
    pub fn take_up(&self, key: SwarmKey, bytes: u64, now: Instant) {
        self.take(key, bytes, now, |pair| &mut pair.up);
    }

    /// Whether more of a swarm may be asked for now.
    ///
    /// # Errors
    /// How long to wait, when it may not; a change of limits may make it shorter.
    pub fn down_credit(&self, key: SwarmKey, now: Instant) -> Result<(), Duration> {
        self.credit(key, now, |pair| &pair.down).map(|_limited| ())
    }

    /// Bytes of a swarm are asked for.
    pub fn take_down(&self, key: SwarmKey, bytes: u64, now: Instant) {
        self.take(key, bytes, now, |pair| &mut pair.down);
    }

    /// Whether there is a limit, if something may go through now.
    fn credit(
        &self,
        key: SwarmKey,
        now: Instant,
        side: impl Fn(&Pair) -> &Bucket,
    ) -> Result<bool, Duration> {
        let now = self.since_start(now);
        let inner = self.lock();
        let buckets = [Some(&inner.all), inner.swarms.get(&key)].into_iter().flatten().map(side);
        let (mut wait, mut limited) = (Duration::ZERO, false);
        for bucket in buckets {
            wait = wait.max(bucket.wait(now));
            limited |= bucket.rate().is_some();
        }
        if wait.is_zero() { Ok(limited) } else { Err(wait) }
    }

    fn take(
        &self,
        key: SwarmKey,
        bytes: u64,
        now: Instant,
        side: impl Fn(&mut Pair) -> &mut Bucket,
    ) {
        let now = self.since_start(now);
        let mut inner = self.lock();
        side(&mut inner.all).take(now, bytes);
        if let Some(pair) = inner.swarms.get_mut(&key) {
            side(pair).take(now, bytes);
        }
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::manifest::ContentId;

    const MIB: u64 = 1024 * 1024;

    fn key(number: u8) -> SwarmKey {
        SwarmKey { group: GroupId([1; 16]), content: ContentId([number; 32]) }
    }

    #[test]
    fn both_the_limit_of_all_and_that_of_the_swarm_must_let_through() {
        let rates = Rates::new(RateLimits { up: Some(4 * MIB), down: None });
        let start = rates.started;
        rates.set(Some(key(1)), RateLimits { up: Some(MIB), down: Some(MIB) }, start);
        assert_eq!(rates.limits(Some(key(1))).up, Some(MIB));
        assert_eq!(rates.limits(Some(key(2))), RateLimits::default());
        // A limit that is new has saved up nothing.
        let start = start + Duration::from_secs(2);
        assert_eq!(rates.up_credit(key(1), start), Ok(LIMITED_CHUNK));
        rates.take_up(key(1), 2 * MIB, start);
        assert!(rates.up_credit(key(1), start).is_err_and(|wait| wait.as_millis() >= 1_000));
        assert_eq!(rates.up_credit(key(2), start), Ok(LIMITED_CHUNK));
        rates.take_up(key(2), 2 * MIB, start);
        assert!(rates.up_credit(key(2), start).is_err_and(|wait| wait.as_millis() < 10));
        // The other way is another matter.
        assert_eq!(rates.down_credit(key(1), start), Ok(()));
        rates.take_down(key(1), MIB, start);
        assert!(rates.down_credit(key(1), start).is_err());
        assert_eq!(rates.down_credit(key(2), start), Ok(()));
    }

    #[test]
    fn a_change_acts_at_once_and_wakes() {
        let rates = Rates::new(RateLimits { up: Some(MIB), down: None });
        let (start, changed) = (rates.started, rates.changed());
        rates.take_up(key(1), 100 * MIB, start);
        assert!(rates.up_credit(key(1), start).is_err());
        assert!(!changed.has_changed().expect("open"));
        rates.set(None, RateLimits::default(), start);
        assert!(changed.has_changed().expect("open"));
        assert_eq!(rates.up_credit(key(1), start), Ok(usize::MAX));
        rates.set(Some(key(1)), RateLimits { up: Some(MIB), down: None }, start);
        assert_eq!(rates.up_credit(key(1), start + Duration::from_secs(1)), Ok(LIMITED_CHUNK));
        rates.forget(key(1));
        assert_eq!(rates.up_credit(key(1), start), Ok(usize::MAX));
    }
}
