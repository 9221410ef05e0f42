//! Frames and tables in memory: what the kernel has in packets and maps, for tests, fuzzing and dry runs.

mod frame;
pub mod fuzz;
mod lru;
mod tables;

pub use frame::Frame;
pub use lru::Lru;
pub use tables::{Dues, ServiceSpec, Tables};
