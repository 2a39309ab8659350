//! The rate limits of an agent, as a user sets and changes them: of all it does, and of single
//! shares and downloads, up and down.
//!
//! Bytes go through when both the limit of all and that of their swarm let them. A change acts at
//! once, and whoever waits is woken ([`Rates::changed`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Held by whoever is next to send.
    turns: Arc<tokio::sync::Mutex<()>>,
}

impl Pair {
    fn new(limits: RateLimits) -> Self {
        let (up, down) = (Bucket::new(limits.up), Bucket::new(limits.down));
        Self { up, down, turns: Arc::default() }
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

    /// Waits until some of `bytes` bytes of a swarm may be sent, and takes as many; all of them
    /// where there is no limit. Those who wait have their turns in the order in which they came.
    pub async fn up_turn(&self, key: SwarmKey, bytes: usize) -> usize {
        // The swarm's own limit first: who waits for that holds up nobody else.
        let mut most = bytes;
        let own = self.lock().swarms.get(&key).map(|pair| pair.turns.clone());
        if let Some(turns) = own {
            most = self.wait_turn(&turns, Some(key), most).await;
        }
        let turns = self.lock().all.turns.clone();
        self.wait_turn(&turns, None, most).await
    }

    async fn wait_turn(
        &self,
        turns: &tokio::sync::Mutex<()>,
        of: Option<SwarmKey>,
        bytes: usize,
    ) -> usize {
        if self.limits(of).up.is_none() {
            return bytes;
        }
        let _turn = turns.lock().await;
        let mut changed = self.changed();
        loop {
            let wait = {
                let now = self.since_start(clock::monotonic());
                let mut inner = self.lock();
                let pair = match of {
                    None => Some(&mut inner.all),
                    Some(key) => inner.swarms.get_mut(&key),
                };
                let limited = pair.filter(|pair| pair.up.rate().is_some());
                let Some(Pair { up, .. }) = limited else { return bytes };
                let wait = up.wait(now);
                if wait.is_zero() {
                    let bytes = bytes.min(LIMITED_CHUNK);
                    up.take(now, bytes as u64);
                    return bytes;
                }
                wait
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // We hold the other end.
                _ = changed.changed() => {}
            }
        }
    }

    /// Whether more of any of these swarms may be asked for now; whether anything limits that.
    ///
    /// # Errors
    /// How long to wait until all of them may, when one may not; a change of limits may make it
    /// shorter.
    pub fn down_credit(&self, keys: &[SwarmKey], now: Instant) -> Result<bool, Duration> {
        let now = self.since_start(now);
        let inner = self.lock();
        let own = keys.iter().filter_map(|key| inner.swarms.get(key));
        let limited = std::iter::once(&inner.all).chain(own).map(|pair| &pair.down);
        let mut waits = limited.filter(|down| down.rate().is_some()).map(|down| down.wait(now));
        let Some(first) = waits.next() else { return Ok(false) };
        match waits.fold(first, Duration::max) {
            Duration::ZERO => Ok(true),
            wait => Err(wait),
        }
    }

    /// Bytes of a swarm are asked for.
    pub fn take_down(&self, key: SwarmKey, bytes: u64, now: Instant) {
        self.change_down(key, now, |down, now| down.take(now, bytes));
    }

    /// Bytes of a swarm that were asked for do not come.
    pub fn give_back_down(&self, key: SwarmKey, bytes: u64, now: Instant) {
        self.change_down(key, now, |down, now| down.give_back(now, bytes));
    }

    /// The swarms that have a limit of their own on what is sent.
    pub fn limited_up(&self) -> HashSet<SwarmKey> {
        let inner = self.lock();
        let limited = inner.swarms.iter().filter(|(_, pair)| pair.up.rate().is_some());
        limited.map(|(key, _)| *key).collect()
    }

    fn change_down(&self, key: SwarmKey, now: Instant, change: impl Fn(&mut Bucket, Duration)) {
        let now = self.since_start(now);
        let mut inner = self.lock();
        change(&mut inner.all.down, now);
        if let Some(pair) = inner.swarms.get_mut(&key) {
            change(&mut pair.down, now);
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
        let rates = Rates::new(RateLimits { up: None, down: Some(4 * MIB) });
        let start = rates.started;
        rates.set(Some(key(1)), RateLimits { up: Some(MIB), down: Some(MIB) }, start);
        assert_eq!(rates.limits(Some(key(1))).up, Some(MIB));
        assert_eq!(rates.limits(Some(key(2))), RateLimits::default());
        // A limit that is new has saved up nothing.
        let start = start + Duration::from_secs(2);
        assert_eq!(rates.down_credit(&[key(1)], start).map(|_| ()), Ok(()));
        rates.take_down(key(1), 2 * MIB, start);
        assert!(rates.down_credit(&[key(1)], start).is_err_and(|wait| wait.as_millis() >= 1_000));
        assert_eq!(rates.down_credit(&[key(2)], start).map(|_| ()), Ok(()));
        rates.take_down(key(2), 2 * MIB, start);
        assert!(rates.down_credit(&[key(2)], start).is_err_and(|wait| wait.as_millis() < 10));
    }

    #[test]
    fn what_does_not_come_is_given_back_and_no_more() {
        let rates = Rates::new(RateLimits { up: None, down: Some(4 * MIB) });
        let start = rates.started;
        rates.set(Some(key(1)), RateLimits { up: None, down: Some(MIB) }, start);
        let start = start + Duration::from_secs(2);
        for _ in 0..100 {
            rates.take_down(key(1), MIB, start);
            rates.give_back_down(key(1), MIB, start);
        }
        rates.give_back_down(key(1), 100 * MIB, start);
        // A second's worth of both limits, as before.
        rates.take_down(key(1), MIB - 1, start);
        assert_eq!(rates.down_credit(&[key(1)], start).map(|_| ()), Ok(()));
        rates.take_down(key(1), 1, start);
        assert!(rates.down_credit(&[key(1)], start).is_err());
        rates.take_down(key(2), 3 * MIB - 1, start);
        assert_eq!(rates.down_credit(&[key(2)], start).map(|_| ()), Ok(()));
        rates.take_down(key(2), 1, start);
        assert!(rates.down_credit(&[key(2)], start).is_err());
    }

    #[test]
    fn of_several_swarms_the_longest_wait_counts() {
        let rates = Rates::new(RateLimits::default());
        let start = rates.started;
        assert_eq!(rates.down_credit(&[key(1), key(2)], start), Ok(false));
        let limits = RateLimits { up: None, down: Some(MIB) };
        rates.set(Some(key(1)), limits, start);
        rates.set(Some(key(2)), limits, start);
        let start = start + Duration::from_secs(2);
        assert_eq!(rates.down_credit(&[key(1), key(2)], start), Ok(true));
        assert_eq!(rates.down_credit(&[key(3)], start), Ok(false));
        rates.take_down(key(1), 2 * MIB, start);
        rates.take_down(key(2), 4 * MIB, start);
        let wait = rates.down_credit(&[key(1), key(2), key(3)], start);
        assert!(wait.is_err_and(|wait| wait.as_millis() >= 3_000));
        assert_eq!(rates.down_credit(&[key(2)], start), wait);
    }

    #[test]
    fn a_change_acts_at_once_and_wakes() {
        let rates = Rates::new(RateLimits { up: None, down: Some(MIB) });
        let (start, changed) = (rates.started, rates.changed());
        rates.take_down(key(1), 100 * MIB, start);
        assert!(rates.down_credit(&[key(1)], start).is_err());
        assert!(!changed.has_changed().expect("open"));
        rates.set(None, RateLimits::default(), start);
        assert!(changed.has_changed().expect("open"));
        assert_eq!(rates.down_credit(&[key(1)], start).map(|_| ()), Ok(()));
        rates.set(Some(key(1)), RateLimits { up: None, down: Some(MIB) }, start);
        assert!(rates.down_credit(&[key(1)], start).is_err());
        rates.forget(key(1));
        assert_eq!(rates.down_credit(&[key(1)], start).map(|_| ()), Ok(()));
    }

    #[tokio::test]
    async fn who_waits_to_send_has_a_turn_in_order_and_hears_of_a_change() {
        let rates = Rates::new(RateLimits::default());
        assert_eq!(rates.up_turn(key(1), 1 << 20).await, 1 << 20);
        // Days of debt, until the limit is lifted.
        rates.set(None, RateLimits { up: Some(MIB), down: None }, clock::monotonic());
        let all = rates.lock().all.turns.clone();
        let held = all.lock().await;
        let mut turns = tokio::task::JoinSet::new();
        let rates = Arc::new(rates);
        for number in 0..4 {
            let rates = rates.clone();
            turns.spawn(async move { (number, rates.up_turn(key(number), 1 << 20).await) });
            tokio::task::yield_now().await;
        }
        drop(held);
        rates.lock().all.up.take(Duration::ZERO, 1 << 50);
        tokio::task::yield_now().await;
        rates.set(None, RateLimits::default(), clock::monotonic());
        let mut order = Vec::new();
        while let Some(turn) = turns.join_next().await {
            order.push(turn.expect("no panic"));
        }
        assert_eq!(order, [0, 1, 2, 3].map(|number| (number, 1 << 20)));
    }
}
