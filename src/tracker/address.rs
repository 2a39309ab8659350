//! Which addresses of a device a tracker hands to whom.
//!
//! The address the tracker observes is the one to use. What a device says of itself is believed
//! only when it is private or link-local, and told only to devices behind the same address.

use std::net::{IpAddr, SocketAddr};

use crate::limits::MAX_ADDRESSES;

/// The addresses of a device seen at `observed`, saying `declared` of itself, for a device seen
/// at `viewer`.
pub fn for_viewer(
    observed: SocketAddr,
    declared: &[SocketAddr],
    viewer: SocketAddr,
) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    // Loopback means another machine to anybody else.
    if !observed.ip().is_loopback() || viewer.ip().is_loopback() {
        addresses.push(observed);
    }
    if observed.ip() == viewer.ip() {
        for address in declared {
            if is_local(address.ip()) && address.port() != 0 && !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// Whether a device may truthfully have this address where nobody else can see it.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[test]
    fn observed_to_all_declared_only_behind_the_same_address() {
        let observed = a("203.0.113.7:4000");
        let declared = [a("192.168.1.5:4000"), a("198.51.100.1:53"), a("10.0.0.2:0")];
        let outside = for_viewer(observed, &declared, a("198.51.100.9:1"));
        assert_eq!(outside, [observed]);
        let same_house = for_viewer(observed, &declared, a("203.0.113.7:9"));
        assert_eq!(same_house, [observed, declared[0]]);
    }

    #[test]
    fn loopback_only_to_loopback() {
        let observed = a("127.0.0.1:4000");
        assert_eq!(for_viewer(observed, &[], a("127.0.0.1:9")), [observed]);
        assert!(for_viewer(observed, &[], a("203.0.113.7:9")).is_empty());
        assert!(for_viewer(observed, &[a("127.0.0.1:53")], a("127.0.0.1:9")) == [observed]);
    }

    #[test]
    fn never_more_than_the_limit() {
        let declared: Vec<_> = (1..=20).map(|i| a(&format!("10.0.0.{i}:1"))).collect();
        let viewer = a("203.0.113.7:9");
        assert_eq!(for_viewer(a("203.0.113.7:1"), &declared, viewer).len(), MAX_ADDRESSES);
    }
}
