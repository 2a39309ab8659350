//! The command line: what is typed, what is printed, and the exit status.

pub mod text;
pub mod exit;
pub mod rate;
pub mod time;
pub mod client_args;
pub mod operator_args;
pub mod args;
pub mod logging;
pub mod output;
pub mod progress;
pub mod transfers;
pub mod command;
pub mod script;
pub mod certs;
pub mod inspect;
pub mod verify;
pub mod manual;
pub mod tracker;
pub mod operate;
pub mod client;
pub mod demo_stage;
pub mod demo_failover;
pub mod demo;
pub mod entry;

pub use entry::main;
