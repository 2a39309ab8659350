//! How often anybody may ask: by connection, by account, by address; and how long a failed login
//! is held back.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, NotUntil, Quota, RateLimiter};

use super::counters::{Counters, Limit};
use super::refusal::Refusal;
use crate::clock;
use crate::id::UserId;
use crate::limits;
use crate::name::UserName;

/// Whom connections from an address count against: an IPv4 address, or an IPv6 network of 64
/// bits, of which one site has as many addresses as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbourhood(IpAddr);

impl From<IpAddr> for Neighbourhood {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }
}

/// The limits of a tracker on how often.
#[derive(Debug)]
pub struct Throttle {
    counters: Arc<Counters>,
    changes: DefaultKeyedRateLimiter<UserId>,
    acts: DefaultKeyedRateLimiter<UserId>,
    logins: DefaultKeyedRateLimiter<Neighbourhood>,
    connections: DashMap<Neighbourhood, usize>,
    connections_per_address: usize,
    failures: DashMap<UserName, (u32, Instant)>,
}

/// The limit of one connection.
#[derive(Debug)]
pub struct ConnectionThrottle(DefaultDirectRateLimiter);

impl Throttle {
    /// Nobody has asked yet.
    pub fn new(counters: Arc<Counters>, connections_per_address: usize) -> Self {
        Self {
            counters,
            changes: RateLimiter::keyed(quota(limits::ACCOUNT_CHANGES)),
            acts: RateLimiter::keyed(quota(limits::ACCOUNT_ACTS)),
            logins: RateLimiter::keyed(quota(limits::ADDRESS_LOGINS)),
            connections: DashMap::new(),
            connections_per_address,
            failures: DashMap::new(),
        }
    }

    /// The limit of a new connection.
    pub fn connection(&self) -> ConnectionThrottle {
        ConnectionThrottle(RateLimiter::direct(quota(limits::CONNECTION_REQUESTS)))
    }

    /// A place for a connection from an address; given back when dropped. Nothing when there are
    /// too many from there.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Admitted> {
        let from = Neighbourhood::from(ip);
        let mut count = self.connections.entry(from).or_insert(0);
        if *count >= self.connections_per_address {
            drop(count);
            self.counters.hit(Limit::ConnectionsPerAddress);
            return None;
        }
        *count += 1;
        Some(Admitted { throttle: self.clone(), from })
    }

    /// Whether a connection may ask one thing more.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`].
    pub fn request(&self, connection: &ConnectionThrottle) -> Result<(), Refusal> {
        connection.0.check().map_err(|until| self.refuse(Limit::RequestRate, &until))
    }

    /// Whether an account may change one thing more: a listing, or something else (`act`).
    ///
    /// # Errors
    /// [`Refusal::RateLimited`].
    pub fn change(&self, user: UserId, act: bool) -> Result<(), Refusal> {
        let limiter = if act { &self.acts } else { &self.changes };
        limiter.check_key(&user).map_err(|until| self.refuse(Limit::RequestRate, &until))
    }

    /// Whether a password may be tried, or set, from an address.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`].
    pub fn login(&self, ip: IpAddr) -> Result<(), Refusal> {
        let checked = self.logins.check_key(&ip.into());
        checked.map_err(|until| self.refuse(Limit::LoginRate, &until))
    }

    /// A login failed: how long to hold its answer back. Longer with every failure of late for
    /// that name, from wherever.
    pub fn login_failed(&self, user: &UserName) -> Duration {
        let now = clock::monotonic();
        let recent = |at: Instant| now.duration_since(at) < limits::FAILURES_FORGOTTEN;
        if self.failures.len() >= limits::MAX_FAILURES_KNOWN {
            self.failures.retain(|_, (_, at)| recent(*at));
        }
        if self.failures.len() >= limits::MAX_FAILURES_KNOWN {
            return limits::LOGIN_DELAY_MAX;
        }
        let mut known = self.failures.entry(user.clone()).or_insert((0, now));
        let (count, at) = &mut *known;
        *count = if recent(*at) { count.saturating_add(1) } else { 1 };
        *at = now;
        limits::LOGIN_DELAY_STEP.saturating_mul(*count).min(limits::LOGIN_DELAY_MAX)
    }

    /// Forgets those who have not asked for long.
    pub fn tidy(&self) {
        self.changes.retain_recent();
        self.acts.retain_recent();
        self.logins.retain_recent();
    }

    fn refuse(&self, limit: Limit, until: &NotUntil<governor::clock::QuantaInstant>) -> Refusal {
        self.counters.hit(limit);
        let wait = until.wait_time_from(DefaultClock::default().now());
        Refusal::RateLimited { retry_after_ms: wait.as_millis() as u64 + 1 }
    }
}

/// A connection's place among those from its address.
#[derive(Debug)]
pub struct Admitted {
    throttle: Arc<Throttle>,
    from: Neighbourhood,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(mut count) = self.throttle.connections.get_mut(&self.from) {
            *count -= 1;
        }
        self.throttle.connections.remove_if(&self.from, |_, count| *count == 0);
    }
}

fn quota((per_second, burst): (u32, u32)) -> Quota {
    let nonzero = |n| NonZeroU32::new(n).expect("invariant: no rate in limits is zero");
    Quota::per_second(nonzero(per_second)).allow_burst(nonzero(burst))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(most: usize) -> (Arc<Throttle>, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (Arc::new(Throttle::new(counters.clone(), most)), counters)
    }

    #[test]
    fn a_neighbourhood_is_an_address_or_a_network() {
        let of = |text: &str| Neighbourhood::from(text.parse::<IpAddr>().expect(text));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn connections_from_one_address_are_limited_and_places_come_back() {
        let (throttle, counters) = throttle(2);
        let here: IpAddr = [10, 0, 0, 1].into();
        let first = throttle.admit(here).expect("room");
        let _second = throttle.admit(here).expect("room");
        assert!(throttle.admit(here).is_none());
        assert!(throttle.admit([10, 0, 0, 2].into()).is_some(), "others are served");
        drop(first);
        assert!(throttle.admit(here).is_some());
        assert_eq!(counters.hits(), [("connections-per-address", 1)]);
    }

    #[test]
    fn a_flood_is_told_when_to_come_back() {
        let (throttle, counters) = throttle(1);
        let connection = throttle.connection();
        let (_, burst) = limits::CONNECTION_REQUESTS;
        let flood = || (0..10 * burst).find_map(|_| throttle.request(&connection).err());
        let Some(Refusal::RateLimited { retry_after_ms }) = flood() else { panic!("no limit") };
        assert!(retry_after_ms < 1000);
        assert_eq!(counters.hits(), [("request-rate", 1)]);
        assert!(throttle.request(&throttle.connection()).is_ok(), "others are served");
    }

    #[test]
    fn failed_logins_wait_longer_each_time_and_are_not_remembered_without_bound() {
        let (throttle, _) = throttle(1);
        let bob: UserName = "bob".parse().expect("name");
        assert_eq!(throttle.login_failed(&bob), limits::LOGIN_DELAY_STEP);
        assert_eq!(throttle.login_failed(&bob), 2 * limits::LOGIN_DELAY_STEP);
        for i in 0..2 * limits::MAX_FAILURES_KNOWN {
            throttle.login_failed(&format!("u{i}").parse().expect("name"));
        }
        assert!(throttle.failures.len() <= limits::MAX_FAILURES_KNOWN);
        assert_eq!(throttle.login_failed(&bob), limits::LOGIN_DELAY_MAX);
    }
}
