//! Health checks against real sockets, on loopback and without privileges.

mod agents;
mod commands;
mod cost;
mod datagrams;
mod grpc;
mod probes;
mod scheduler;
mod support;
mod tls;
