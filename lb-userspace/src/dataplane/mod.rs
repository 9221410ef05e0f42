//! The kernel's side of the agent: load, attach, pin, adopt, replace.

pub mod bpf;
mod load;
pub mod maps;

pub use load::{Attached, Capacities, LoadError, Loaded, Native, OBJECT, Options, detach, load};
pub use maps::{Maps, OpenError};
