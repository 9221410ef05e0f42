//! The agent as a service of its host: what it says to the service manager, what it checks before it starts, how it logs.

pub mod check;
mod limits;
mod log;
mod manager;

pub use limits::raise_open_files;
pub use log::{LogFormat, start as start_log};
pub use manager::Manager;
