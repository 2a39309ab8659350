//! Pieces: what peers say to each other, who is asked for what, and where bytes are kept.

pub mod message;
pub mod event;
pub mod picker;
pub mod pipe;
pub mod blame;
pub mod peer;
pub mod flights;
pub mod rescue;
pub mod room;
pub mod scheduler;
mod asking;
pub mod hashing;
pub mod storage;
pub mod trust;
pub mod session;
pub mod rate;
pub mod serving_queue;
pub mod sim_net;
pub mod sim_report;
pub mod sim_swarm;
mod sim_world;
mod sim_transfer;
pub mod sim;
pub mod registry;
pub mod control;
pub mod upload;
pub mod download;
pub mod hub;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod scheduler_random_tests;
#[cfg(test)]
mod sim_tests;
