//! The integration tests: the house's own rules, the real program, and peers that cheat.

mod architecture;
mod world;
mod net;
mod transfer;
mod errors;
mod crash;
mod evil;
mod demo;
