//! Where a tracker is and who it must be: `mtq://HOST:PORT#PEERID`, and the file of such links.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_TRACKERS;
use crate::peer_id::PeerId;

/// Text that is not a tracker link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It does not begin with `mtq://`.
    #[error("a tracker link begins with mtq://")]
    Scheme,
    /// There is no `#` and peer id.
    #[error("a tracker link ends with # and 64 hex digits of peer id")]
    PeerId,
    /// The host or port is missing or malformed.
    #[error("a tracker link has HOST:PORT before the #")]
    Address,
}

/// One tracker's address and peer id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrackerLink {
    host: String,
    port: u16,
    peer_id: PeerId,
}

impl TrackerLink {
    /// A link to a socket address.
    pub fn new(address: SocketAddr, peer_id: PeerId) -> Self {
        Self { host: address.ip().to_string(), port: address.port(), peer_id }
    }

    /// The host: a name, an IPv4 address, or an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whom TLS must find there.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// `HOST:PORT`, with brackets around IPv6.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for TrackerLink {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let rest = text.strip_prefix("mtq://").ok_or(LinkError::Scheme)?;
        let (address, id) = rest.rsplit_once('#').ok_or(LinkError::PeerId)?;
        let peer_id = id.parse().map_err(|_| LinkError::PeerId)?;
        let (host, port) = address.rsplit_once(':').ok_or(LinkError::Address)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) => match v6.parse() {
                Ok(IpAddr::V6(v6)) => v6.to_string(),
                _ => return Err(LinkError::Address),
            },
            None if is_host(host) => host.to_ascii_lowercase(),
            None => return Err(LinkError::Address),
        };
        let digits = port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
        match port.parse() {
            Ok(port) if digits => Ok(Self { host, port, peer_id }),
            _ => Err(LinkError::Address),
        }
    }
}

impl TryFrom<String> for TrackerLink {
    type Error = LinkError;

    fn try_from(text: String) -> Result<Self, LinkError> {
        text.parse()
    }
}

impl From<TrackerLink> for String {
    fn from(link: TrackerLink) -> Self {
        link.to_string()
    }
}

impl fmt::Display for TrackerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mtq://{}#{}", self.authority(), self.peer_id)
    }
}

fn is_host(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// A line of `tracker_info.txt` that is not a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerInfoError {
    /// A bad line, counted from 1.
    #[error("line {line}: {error}")]
    Line {
        /// Which line.
        line: usize,
        /// What is wrong with it.
        error: LinkError,
    },
    /// The same peer id twice.
    #[error("line {0}: this peer id stands on an earlier line")]
    Duplicate(usize),
    /// No link at all.
    #[error("there is no tracker link in it")]
    Empty,
    /// Too many links.
    #[error("more than {MAX_TRACKERS} trackers")]
    TooMany,
}

/// The trackers a program starts from: the content of `tracker_info.txt`, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerInfo(Vec<TrackerLink>);

impl TrackerInfo {
    /// These links.
    ///
    /// # Errors
    /// [`TrackerInfoError`] when there are none, too many, or one peer id twice.
    pub fn new(links: Vec<TrackerLink>) -> Result<Self, TrackerInfoError> {
        if links.is_empty() {
            return Err(TrackerInfoError::Empty);
        }
        if links.len() > MAX_TRACKERS {
            return Err(TrackerInfoError::TooMany);
        }
        for (index, link) in links.iter().enumerate() {
            if links[..index].iter().any(|earlier| earlier.peer_id == link.peer_id) {
                return Err(TrackerInfoError::Duplicate(index + 1));
            }
        }
        Ok(Self(links))
    }

    /// The links, in order.
    pub fn links(&self) -> &[TrackerLink] {
        &self.0
    }

    /// The link of the tracker with this peer id.
    pub fn find(&self, peer_id: PeerId) -> Option<&TrackerLink> {
        self.0.iter().find(|link| link.peer_id == peer_id)
    }
}

impl FromStr for TrackerInfo {
    type Err = TrackerInfoError;

    /// One link a line; blank lines and lines beginning with `#` are skipped.
    fn from_str(text: &str) -> Result<Self, TrackerInfoError> {
        let mut links: Vec<TrackerLink> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let link: TrackerLink =
                line.parse().map_err(|error| TrackerInfoError::Line { line: index + 1, error })?;
            if links.iter().any(|earlier| earlier.peer_id == link.peer_id) {
                return Err(TrackerInfoError::Duplicate(index + 1));
            }
            links.push(link);
        }
        Self::new(links)
    }
}

impl fmt::Display for TrackerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|link| writeln!(f, "{link}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(id: u8) -> String {
        format!("mtq://example.org:4000#{}", PeerId([id; 32]))
    }

    #[test]
    fn links_round_trip() {
        let id = PeerId([3; 32]);
        for address in ["127.0.0.1:9000", "tracker-1.example.org:1", "[::1]:65535"] {
            let text = format!("mtq://{address}#{id}");
            let parsed: TrackerLink = text.parse().expect(&text);
            assert_eq!(parsed.to_string(), text);
            assert_eq!(parsed.authority(), address);
        }
    }

    #[test]
    fn bad_links_say_what_is_missing() {
        let id = PeerId([3; 32]);
        for (text, error) in [
            ("http://a:1#".to_owned() + &id.to_string(), LinkError::Scheme),
            ("mtq://a:1".to_owned(), LinkError::PeerId),
            ("mtq://a:1#abcd".to_owned(), LinkError::PeerId),
            (format!("mtq://a#{id}"), LinkError::Address),
            (format!("mtq://a:0#{id}"), LinkError::Address),
            (format!("mtq://a:99999#{id}"), LinkError::Address),
            (format!("mtq://:5#{id}"), LinkError::Address),
            (format!("mtq://a:+5#{id}"), LinkError::Address),
            (format!("mtq://a:08#{id}"), LinkError::Address),
            (format!("mtq://[1.2.3.4]:5#{id}"), LinkError::Address),
            (format!("mtq://a b:5#{id}"), LinkError::Address),
        ] {
            assert_eq!(text.parse::<TrackerLink>(), Err(error), "{text}");
        }
    }

    #[test]
    fn tracker_info_skips_comments_and_names_the_bad_line() {
        let text = format!("# trackers\n\n{}\r\n  {}\n", link(1), link(2));
        let info: TrackerInfo = text.parse().expect("valid");
        assert_eq!(info.links().len(), 2);
        assert_eq!(info.to_string().parse(), Ok(info.clone()));
        assert!(info.find(PeerId([2; 32])).is_some());
        assert!(info.find(PeerId([9; 32])).is_none());
        assert_eq!("# none\n".parse::<TrackerInfo>(), Err(TrackerInfoError::Empty));
        let twice = format!("{}\n#\n{}\n", link(1), link(1));
        assert_eq!(twice.parse::<TrackerInfo>(), Err(TrackerInfoError::Duplicate(3)));
        let bad = format!("{}\nnonsense\n", link(1));
        assert!(matches!(
            bad.parse::<TrackerInfo>(),
            Err(TrackerInfoError::Line { line: 2, error: LinkError::Scheme })
        ));
        let many: String = (0..=MAX_TRACKERS as u8).map(|i| link(i) + "\n").collect();
        assert_eq!(many.parse::<TrackerInfo>(), Err(TrackerInfoError::TooMany));
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in "(mtq://)?\\PC{0,40}(#[0-9a-f]{0,64})?") {
            if let Ok(link) = text.parse::<TrackerLink>() {
                prop_assert_eq!(link.to_string().parse::<TrackerLink>(), Ok(link));
            }
        }
    }
}
