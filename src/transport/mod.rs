//! How bytes move: identities, TLS, frames and connections. Knows no pieces and no accounts.

pub mod identity;
pub mod tls;
pub mod tuning;
pub mod config;
pub mod code;
pub mod frame;
pub mod hello;
pub mod connection;
mod gather;
#[cfg(test)]
mod narrow;
pub mod endpoint;
