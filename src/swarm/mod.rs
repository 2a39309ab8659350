//! Pieces: what peers say to each other, who is asked for what, and where bytes are kept.

pub mod message;
pub mod picker;
pub mod scheduler;
pub mod hashing;
pub mod storage;
pub mod trust;
pub mod session;
pub mod rate;
pub mod serving_queue;
pub mod registry;
pub mod control;
pub mod upload;
pub mod download;
pub mod hub;
