//! The agent: one data directory, one identity, one UDP socket, and what they do for a user.

pub mod error;
pub mod data_dir;
pub mod line;
pub mod destination;
pub mod library;
pub mod metafile;
pub mod report;
mod core;
pub mod agent;
mod get;
