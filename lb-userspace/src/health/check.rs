//! What is to be checked, and how: parsed once, trusted after.

mod grpc;
mod http;
mod timing;
mod tls;
mod udp;

use std::{net::SocketAddr, sync::Arc};

pub use grpc::GrpcCheck;
pub use http::{HttpCheck, HttpCheckError, StatusRanges, StatusRangesError};
pub use timing::{MIN_INTERVAL, Timing, TimingError};
pub use tls::{Alpn, Tls, Trust};
pub use udp::UdpCheck;

use super::{command::Command, vip::Via};

/// The caller's name for a target. An id stands for one address: another address gets another id, so that an event
/// that is under way is never taken for one of the newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

/// Something to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The caller's name for it.
    pub id: TargetId,
    /// Where probes go.
    pub address: SocketAddr,
    /// What is asked, and how often.
    pub check: Check,
    /// `SO_MARK` of the probes' sockets (needs CAP_NET_ADMIN).
    pub mark: Option<u32>,
    /// Probes go as clients' packets go to that backend, and `address` is the VIP's; `None`: as the kernel routes them.
    pub via: Option<Via>,
}

impl Target {
    /// Whether two targets of one id are the same thing. One that is asked another way is; one at another address is not.
    pub(super) fn is_still(&self, other: &Self) -> bool {
        self.mark == other.mark && (self.via != other.via || self.address == other.address)
    }
}

/// What is asked of a target, and how often. Cheap to clone: ten thousand targets share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// How often, how long, how many times.
    pub timing: Timing,
}

/// The types of checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A connection is accepted.
    Tcp,
    /// A GET is answered as expected, within TLS or not.
    Http(Arc<HttpCheck>),
    /// `grpc.health.v1` says SERVING, within TLS or not.
    Grpc(Arc<GrpcCheck>),
    /// A datagram is answered as expected.
    Udp(Arc<UdpCheck>),
    /// A command exits with 0. It is told of the target by its environment; the target's address is not used.
    Exec(Arc<Command>),
    /// A line of words tells how the target is to be treated: see [`Words`](super::Words).
    Agent,
}
