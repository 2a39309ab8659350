//! The integration tests: the house's own rules, the real program, and peers that cheat.

mod architecture;
mod world;
mod net;
mod raw_peer;
mod transfer;
mod errors;
mod crash;
mod durable;
mod evil;
mod revoked;
mod rot;
mod serving;
mod roster;
mod flood;
mod listings;
mod demo;
mod operator;
mod fake_tracker;
mod failover;
mod cluster;
mod sync;
mod split;
mod storm;
mod evil_tracker;
mod steady;
