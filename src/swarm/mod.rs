//! Pieces: what peers say to each other, who is asked for what, and where bytes are kept.

pub mod midstates;
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
mod overdue;
pub mod budget;
pub mod hold;
pub mod meter;
pub mod stamp;
pub mod record;
pub mod buffers;
pub mod chunks;
pub mod disk;
pub mod sidecars;
pub mod hashing;
pub mod verified;
pub mod running_sha1;
pub mod storage_error;
pub mod part;
pub mod claims;
pub mod filling;
pub mod pace;
pub mod storage;
mod reading;
mod finishing;
pub mod trust;
pub mod allowance;
pub mod session;
pub mod rate;
pub mod serving_queue;
pub mod slots;
pub mod strangers;
pub mod upload_counts;
pub mod rates;
pub mod serving;
pub mod sim_net;
pub mod sim_report;
pub mod sim_swarm;
mod sim_world;
mod sim_transfer;
pub mod sim;
pub mod registry;
pub mod control;
pub mod upload;
pub mod fetch;
pub mod ahead;
pub mod intake;
pub mod depot;
pub mod link;
pub mod untold;
pub mod download;
pub mod hub;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod scheduler_random_tests;
#[cfg(test)]
mod memory_disk;
#[cfg(test)]
mod storage_faults;
#[cfg(test)]
mod storage_tests;
#[cfg(test)]
mod midstates_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod sim_tests;
