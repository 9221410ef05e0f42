//! The agent `lbd`, the CLI `lbctl`, and what both need.
//!
//! A change's road: `cli` or a file -> `api` -> `agent` -> `state` -> `compile` -> `publish` -> maps.

pub mod agent;
pub mod api;
mod chain;
pub mod cli;
pub mod clock;
pub mod codes;
pub mod compile;
pub mod config;
mod craft;
pub mod dataplane;
pub mod decap;
pub mod discovery;
pub mod doctor;
pub mod events;
pub mod health;
pub mod lifecycle;
pub mod metrics;
pub mod netlink;
pub mod offline;
pub mod outlier;
mod packet_socket;
mod plural;
pub mod publish;
pub mod rollout;
pub mod sessions;
pub mod state;
pub mod sweep;
mod sysctl;
pub mod sysdump;
pub mod version;
mod wanted;
mod web;

pub use chain::chain;
