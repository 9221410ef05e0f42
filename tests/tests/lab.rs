//! The lab does what the other tests take for granted.

#[path = "lab/agent.rs"]
mod agent;
#[path = "lab/frames.rs"]
mod frames;
#[path = "lab/leftovers.rs"]
mod leftovers;
#[path = "lab/network.rs"]
mod network;
#[path = "lab/traffic.rs"]
mod traffic;

use std::process::ExitCode;

fn main() -> ExitCode {
    leftovers::play_a_role_if_asked();
    let claims =
        [network::claims(), traffic::claims(), frames::claims(), agent::claims(), leftovers::claims()];
    lb_tests::run(claims.into_iter().flatten().collect())
}
