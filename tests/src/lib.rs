//! The lab: client, balancer and backends in network namespaces of one host, and what is needed to
//! watch them.
//!
//! A run starts with [`enter`], which moves the process into namespaces of its own. Nothing in the
//! lab has a name outside of the process: network namespaces are held by file descriptors, pins and
//! state lie in private mounts, processes in a PID namespace. Whatever ends the run (a return, a
//! panic, Ctrl-C, `kill -9`) the kernel takes all of it away.
//!
//! ```no_run
//! use lb_tests::{Lab, Sources, claim, traffic::{Load, LoadSpec, Server, ServerSpec}};
//!
//! fn every_flow_is_answered() -> anyhow::Result<()> {
//!     let lab = Lab::builder().clients(1).backends(1).build()?;
//!     let backend = lab.backend(0);
//!     let _server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
//!     let target = (backend.v4(), 7000).into();
//!     let tally = Load::run(
//!         lab.client(0),
//!         LoadSpec::lines(target).from(Sources::crowd(1_000)).flows(1_000),
//!     )?;
//!     assert_eq!(tally.answered_by("b0"), 1_000);
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     lb_tests::run(vec![claim("every flow is answered", every_flow_is_answered)])
//! }
//! ```

pub mod agent;
pub mod bpf;
pub mod browser;
mod case;
pub mod decapsulator;
pub mod dns;
mod enter;
pub mod ethtool;
mod host;
mod links;
mod namespace;
pub mod packets;
mod plan;
mod process;
pub mod programs;
pub mod prometheus;
mod roles;
pub mod scene;
mod settle;
pub mod test_run;
mod topology;
pub mod traffic;

pub use agent::{Agent, AgentSpec};
pub use case::{claim, claim_unless, run};
pub use enter::{enter, private_dir};
pub use host::{Host, Port};
pub use links::VethEnd;
pub use namespace::Namespace;
pub use plan::{Crowd, Family, Mac};
pub use process::{Finished, Process};
pub use roles::{Backend, Balancer, Client};
pub use topology::{Lab, LabBuilder, Topology};
pub use traffic::Sources;
