//! mtq: move large files inside a group, over encrypted QUIC, with every member a source.
//!
//! The modules stand in order, from the ground up: each may use what is declared above it and
//! nothing below. ARCHITECTURE.md is the map.
//!
//! # As a library
//!
//! Two things can be embedded, in any tokio runtime: an agent, [`client::Agent`], which is all that
//! `mtq client` does, and a tracker, [`tracker::Tracker`]. Both start without waiting for anybody, work
//! in the background, and end in order with `shutdown`.
//!
//! This program logs in as `bob`, who is a member of `lab`, and fetches a file:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use mtq::client::{Agent, AgentConfig, Password};
//! use mtq::tracker_link::TrackerInfo;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let trackers: TrackerInfo = std::fs::read_to_string("tracker_info.txt")?.parse()?;
//!     let agent = Agent::start(AgentConfig::new("bob.data".into(), trackers))?;
//!     agent.login("bob".parse()?, Password("a secret".to_owned())).await?;
//!
//!     let (group, file) = ("lab".parse()?, "big image.iso".parse()?);
//!     agent.get(group, file, Path::new(".")).await?;
//!     for row in agent.wait(None).await? {
//!         println!("{} is at {}", row.name, row.path.display());
//!     }
//!     agent.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! * One agent uses a data directory at a time, which has its key: a login lasts over restarts, as in the
//!   program.
//! * Names, groups and ways to name a file are types that are made by `parse` ([`name`]); trackers are
//!   given as links ([`tracker_link`]).
//! * What fails is a [`client::AgentError`], whose `code` is stable and whose `hint` may know a next
//!   step. What happens unasked, such as the end of a download, comes through
//!   [`client::Agent::notices`].
//! * An agent is cheap to clone, and every clone is the same agent. It goes on when all are dropped: only
//!   `shutdown`, or the end of the runtime, ends it.
//!
//! `examples/share_and_fetch.rs` has a tracker and two agents in one process,
//! `examples/embedded_tracker.rs` a tracker alone. Until 1.0 any version may change what is here; what
//! this page names is meant to stay.

// Ground: nouns, pure but for the last.
pub mod limits;
pub mod clock;
pub mod wire;
pub mod hash;
pub mod piece;
pub mod bitfield;
pub mod manifest;
pub mod peer_id;
pub mod signed;
pub mod name;
pub mod id;
pub mod tracker_link;
pub mod roster;
pub mod ticket;
pub mod metainfo;
pub mod torrent;
pub mod error_code;
pub mod control_socket;
#[cfg(test)]
mod seeds;

pub mod transport;
pub mod tracker;
pub mod swarm;
pub mod client;
pub mod cli;

/// Program and version, as said in hellos.
pub const AGENT: &str = concat!("mtq/", env!("CARGO_PKG_VERSION"));
