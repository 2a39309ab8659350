//! Accounts, groups, listings and presence.

pub mod message;
pub mod address;
pub mod op;
pub mod state;
pub mod pages;
pub mod view;
pub mod decide;
pub mod presence;
pub mod store;
pub mod password;
pub mod server;
pub mod stub;
