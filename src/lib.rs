//! mtq: move large files inside a group, over encrypted QUIC, with every member a source.
//!
//! The modules stand in order, from the ground up: each may use what is declared above it and
//! nothing below. ARCHITECTURE.md is the map.

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
