//! The kernel's side of the agent: load, attach, pin, adopt, replace.

pub mod bpf;
mod kernel;
mod layouts;
mod load;
pub mod maps;
mod migrate;
mod raw;
mod trace;

pub(crate) use kernel::OLDEST as OLDEST_KERNEL;
pub use kernel::check as check_kernel;
pub(crate) use kernel::has_btf;
pub(crate) use load::is_bpffs;
pub use load::{
    Attached, Capacities, LoadError, Loaded, Native, OBJECT, Options, PROGRAM, attach_again, detach,
    forget_other_links, load,
};
pub use maps::{Maps, OpenError};
pub(crate) use migrate::{Place, live, roll_back};
pub use trace::{Traced, Tracer, prepare as tracer};
