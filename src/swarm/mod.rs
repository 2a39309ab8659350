//! Pieces: what peers say to each other, who is asked for what, and where bytes are kept.

pub mod message;
pub mod picker;
pub mod scheduler;
pub mod stamp;
pub mod record;
pub mod disk;
pub mod hashing;
pub mod running_sha1;
pub mod storage_error;
pub mod part;
pub mod claims;
pub mod filling;
pub mod storage;
pub mod trust;
pub mod session;
pub mod registry;
pub mod control;
pub mod upload;
pub mod download;
pub mod hub;

#[cfg(test)]
mod memory_disk;
#[cfg(test)]
mod storage_tests;
#[cfg(test)]
mod storage_faults;
#[cfg(test)]
mod recovery_tests;
