//! Whole frames through the whole data path: what goes in is built by etherparse, and so is what must come out.

mod attend;
mod dsr;
mod errors;
mod fragments;
mod guard;
mod lab;
mod limit;
mod measure;
mod nat;
mod parsing;
mod probe;
mod quic;
mod reset;
mod retry;
mod session;
mod session_odd;
mod too_big;
mod trace;
mod vlan;
