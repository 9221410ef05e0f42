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

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use failure::{Failure, FailureKind, Miss, ServingStatus, Trouble};

use super::{
    advice::Words,
    check::{Check, CheckKind},
    vip::{Along, Via},
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

/// Where a probe goes, and which way.
#[derive(Clone, Debug)]
pub(super) struct To {
    /// The backend, or the VIP.
    pub address: SocketAddr,
    pub way: Way,
}

/// Which way.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// By the kernel's own sockets, with this mark.
    Host(Option<u32>),
    /// As clients' packets go to that backend.
    Along(Arc<Along>, Via),
}

/// Checks that address once. It takes no longer than the check's timeout.
pub async fn probe(address: SocketAddr, check: &Check, mark: Option<u32>) -> ProbeResult {
    probe_to(&To { address, way: Way::Host(mark) }, check).await
}

/// The same, whichever way.
pub(super) async fn probe_to(to: &To, check: &Check) -> ProbeResult {
    let start = Instant::now();
    let deadline = start + check.timing.timeout();
    let mut words = Words::default();
    let outcome = match &check.kind {
        CheckKind::Tcp => tcp::probe(to, deadline).await,
        CheckKind::Http(check) => http::probe(to, check, deadline).await,
        CheckKind::Grpc(check) => grpc::probe(to, check, deadline).await,
        CheckKind::Udp(check) => udp::probe(to, check, deadline).await,
        CheckKind::Exec(command) => exec::probe(command, deadline).await,
        CheckKind::Agent => agent::probe(to, deadline).await.map(|said| words = said),
    };
    ProbeResult { outcome, duration: start.elapsed(), words }
}
