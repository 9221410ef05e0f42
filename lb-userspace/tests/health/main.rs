//! Health checks against real sockets, on loopback and without privileges.

mod cost;
mod probes;
mod scheduler;
mod support;
