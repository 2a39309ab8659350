//! The agent: one data directory, one identity, one UDP socket, and what they do for a user.

pub mod record;
pub mod shelf;
pub mod error;
pub mod data_dir;
pub mod failover;
pub mod warm;
pub mod line;
pub mod destination;
pub mod transfer;
pub mod looking;
pub mod library;
pub mod groups;
pub mod echo;
pub mod metafile;
pub mod report;
pub mod keeper;
mod core;
mod running;
mod watch;
mod hear;
mod restore;
pub mod agent;
mod account;
mod share;
mod get;
mod pausing;
pub mod status;
