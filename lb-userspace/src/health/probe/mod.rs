//! One attempt at one target.

mod failure;
mod http;
mod socket;
mod tcp;

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

pub use failure::{Failure, FailureKind, Miss, Trouble};

use super::check::{Check, CheckKind};

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Passed, or why not.
    pub outcome: Result<(), Miss>,
    /// From the first packet to the verdict.
    pub duration: Duration,
}

/// Checks that address once. It takes no longer than the check's timeout.
pub async fn probe(address: SocketAddr, check: &Check, mark: Option<u32>) -> ProbeResult {
    let start = Instant::now();
    let deadline = start + check.timing.timeout();
    let outcome = match &check.kind {
        CheckKind::Tcp => tcp::probe(address, mark, deadline).await,
        CheckKind::Http(check) => http::probe(address, check, mark, deadline).await,
    };
    ProbeResult { outcome, duration: start.elapsed() }
}
