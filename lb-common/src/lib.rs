//! The data path of `lb`, as pure functions.
//!
//! `receive -> parse -> service -> split -> slot -> track -> admit -> rewrite -> transmit`
//!
//! [`pipeline::process`] is the whole story, in [stages](stage). It is generic over how bytes ([`Packet`](pipeline::Packet)) and tables
//! ([`Tables`](pipeline::Tables)) are reached, so that the kernel program, `lbctl explain` and the tests run the very same
//! decision. Nothing here allocates, blocks, reads a clock or panics; what only hosts need stands behind the feature `std`.
#![cfg_attr(not(any(test, feature = "std")), no_std)]

pub mod abi;
pub mod aes;
pub mod attend;
pub mod awaited;
pub mod checksum;
pub mod decap;
pub mod fault;
pub mod fragment;
pub mod guard;
pub mod handshake;
pub mod hash;
pub mod icmp;
pub mod limit;
pub mod measure;
pub mod parse;
pub mod pipeline;
pub mod probe;
pub mod quic;
pub mod reply;
pub mod retry;
pub mod rewrite;
pub mod select;
pub mod session;
pub mod stage;
pub mod too_big;
pub mod trace;
pub mod verdict;
pub mod vlan;
pub mod watch;
pub mod wire;

#[cfg(any(test, feature = "std"))]
pub mod host;
#[cfg(any(test, feature = "std"))]
pub mod maglev;
#[cfg(any(test, feature = "std"))]
pub mod settle;
#[cfg(test)]
mod testing;
