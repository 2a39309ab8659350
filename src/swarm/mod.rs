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
pub mod slots;
pub mod strangers;
pub mod upload_counts;
pub mod rates;
pub mod serving;
pub mod registry;
pub mod control;
pub mod upload;
pub mod download;
pub mod hub;
