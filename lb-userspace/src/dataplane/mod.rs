//! The kernel's side of the agent: load, attach, pin, adopt, replace.

pub mod bpf;
mod kernel;
mod load;
pub mod maps;

pub use kernel::check as check_kernel;
pub use load::{Attached, Capacities, LoadError, Loaded, Native, OBJECT, Options, detach, load};
pub use maps::{Maps, OpenError};
