//! Accounts, groups, listings and presence. A program that runs a tracker needs [`Tracker`].

pub mod refusal;
pub mod greeting;
pub mod message;
pub mod push;
pub mod address;
pub mod vector;
pub mod lattice;
pub mod op;
pub mod facts;
pub mod index;
pub mod state;
mod derived;
pub mod pages;
pub mod view;
pub mod census;
pub mod command;
pub mod decide;
pub mod ledger;
pub mod remembered;
pub mod disk;
pub mod feed;
pub mod time;
mod writer;
pub mod store;
pub mod siblings;
pub mod reservations;
pub mod seats;
pub mod gossip;
pub mod outlet;
pub mod sync_message;
pub mod links;
pub mod presence;
mod remote;
pub mod herald;
pub mod counters;
pub mod throttle;
pub mod password;
pub mod rosters;
pub mod session;
mod finding;
mod login;
pub mod sync_session;
pub mod sync;
pub mod status;
pub mod control;
pub mod operator;
pub mod metrics;
pub mod server;
pub mod stub;

#[doc(inline)]
pub use server::{StartError, Tracker, TrackerConfig};
#[doc(inline)]
pub use state::{Registration, Rules};

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod sim_world;
#[cfg(test)]
mod sim_script;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod presence_tests;
