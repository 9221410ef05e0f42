//! One attempt at one target.

mod agent;
mod exec;
mod failure;
mod grpc;
mod http;
mod socket;
mod tcp;
mod tls;
mod udp;

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

pub use failure::{Failure, FailureKind, Miss, ServingStatus, Trouble};

use super::{
    advice::Words,
    check::{Check, CheckKind},
};

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Passed, or why not.
    pub outcome: Result<(), Miss>,
    /// From the first packet to the verdict.
    pub duration: Duration,
    /// What an agent said; nothing in all other checks.
    pub words: Words,
}

/// Checks that address once. It takes no longer than the check's timeout.
pub async fn probe(address: SocketAddr, check: &Check, mark: Option<u32>) -> ProbeResult {
    let start = Instant::now();
    let deadline = start + check.timing.timeout();
    let mut words = Words::default();
    let outcome = match &check.kind {
        CheckKind::Tcp => tcp::probe(address, mark, deadline).await,
        CheckKind::Http(check) => http::probe(address, check, mark, deadline).await,
        CheckKind::Grpc(check) => grpc::probe(address, check, mark, deadline).await,
        CheckKind::Udp(check) => udp::probe(address, check, mark, deadline).await,
        CheckKind::Exec(command) => exec::probe(command, deadline).await,
        CheckKind::Agent => agent::probe(address, mark, deadline).await.map(|said| words = said),
    };
    ProbeResult { outcome, duration: start.elapsed(), words }
}
