//! Why a probe did not pass. The names are part of metrics and events, and stay.

use std::{fmt, io};

/// A probe that did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The target's doing: it counts against it.
    Failed(Failure),
    /// This host's doing: it says nothing about the target.
    NotRun(Trouble),
}

impl From<Failure> for Miss {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Trouble> for Miss {
    fn from(trouble: Trouble) -> Self {
        Self::NotRun(trouble)
    }
}

/// What a target did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Nothing listens there.
    ConnectRefused,
    /// The handshake was not answered in time.
    ConnectTimeout,
    /// There is no way there: no route, no neighbour, or an ICMP error.
    Unreachable,
    /// The connection stood, the answer did not come in time.
    Timeout,
    /// The connection was reset before the answer.
    Reset,
    /// The connection was closed before the answer was complete.
    Closed,
    /// A status that is not expected.
    BadStatus(u16),
    /// What came is not the protocol.
    Protocol,
    /// The answer lacks what is expected in it.
    BadAnswer,
    /// There is no TLS with it: its certificate is not trusted or for another name, or it speaks something else.
    Tls(Box<str>),
    /// gRPC: a status that is not SERVING.
    NotServing(ServingStatus),
    /// gRPC: the call itself failed, with this code.
    GrpcStatus(u32),
    /// The command exited with this code.
    Exit(i32),
    /// This signal ended the command.
    Signal(i32),
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingStatus(pub u64);

impl ServingStatus {
    /// The one that is healthy.
    pub const SERVING: Self = Self(1);
}

impl fmt::Display for ServingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("UNKNOWN"),
            1 => f.write_str("SERVING"),
            2 => f.write_str("NOT_SERVING"),
            3 => f.write_str("SERVICE_UNKNOWN"),
            other => write!(f, "status {other}"),
        }
    }
}

impl Failure {
    /// The failure without its particulars, for counting.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::ConnectRefused => FailureKind::ConnectRefused,
            Self::ConnectTimeout => FailureKind::ConnectTimeout,
            Self::Unreachable => FailureKind::Unreachable,
            Self::Timeout => FailureKind::Timeout,
            Self::Reset => FailureKind::Reset,
            Self::Closed => FailureKind::Closed,
            Self::BadStatus(_) => FailureKind::BadStatus,
            Self::Protocol => FailureKind::Protocol,
            Self::BadAnswer => FailureKind::BadAnswer,
            Self::Tls(_) => FailureKind::Tls,
            Self::NotServing(_) => FailureKind::NotServing,
            Self::GrpcStatus(_) => FailureKind::GrpcStatus,
            Self::Exit(_) => FailureKind::Exit,
            Self::Signal(_) => FailureKind::Signal,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectRefused => f.write_str("connection refused"),
            Self::ConnectTimeout => f.write_str("no answer to the handshake in time"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Reset => f.write_str("connection reset before the answer"),
            Self::Closed => f.write_str("connection closed before the answer"),
            Self::BadStatus(status) => write!(f, "status {status}"),
            Self::Protocol => f.write_str("the answer is not of the protocol of the check"),
            Self::BadAnswer => f.write_str("the answer lacks what is expected in it"),
            Self::Tls(why) => write!(f, "no TLS: {why}"),
            Self::NotServing(status) => write!(f, "gRPC health {status}"),
            Self::GrpcStatus(code) => write!(f, "gRPC status {code}{}", grpc_name(*code)),
            Self::Exit(code) => write!(f, "the command exited with {code}"),
            Self::Signal(number) => write!(f, "the command was ended by signal {number}"),
        }
    }
}

/// The codes that a health service answers with (gRPC, `doc/statuscodes.md`).
fn grpc_name(code: u32) -> &'static str {
    match code {
        5 => " (the service is not known there)",
        7 => " (permission denied)",
        12 => " (there is no health service)",
        14 => " (unavailable)",
        16 => " (unauthenticated)",
        _ => "",
    }
}

/// [`Failure`] without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// [`Failure::ConnectRefused`]
    ConnectRefused,
    /// [`Failure::ConnectTimeout`]
    ConnectTimeout,
    /// [`Failure::Unreachable`]
    Unreachable,
    /// [`Failure::Timeout`]
    Timeout,
    /// [`Failure::Reset`]
    Reset,
    /// [`Failure::Closed`]
    Closed,
    /// [`Failure::BadStatus`]
    BadStatus,
    /// [`Failure::Protocol`]
    Protocol,
    /// [`Failure::BadAnswer`]
    BadAnswer,
    /// [`Failure::Tls`]
    Tls,
    /// [`Failure::NotServing`]
    NotServing,
    /// [`Failure::GrpcStatus`]
    GrpcStatus,
    /// [`Failure::Exit`]
    Exit,
    /// [`Failure::Signal`]
    Signal,
}

impl FailureKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 14] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::Unreachable,
        Self::Timeout,
        Self::Reset,
        Self::Closed,
        Self::BadStatus,
        Self::Protocol,
        Self::BadAnswer,
        Self::Tls,
        Self::NotServing,
        Self::GrpcStatus,
        Self::Exit,
        Self::Signal,
    ];

    /// The value of the label `reason` in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::BadStatus => "bad_status",
            Self::Protocol => "protocol",
            Self::BadAnswer => "bad_answer",
            Self::Tls => "tls",
            Self::NotServing => "not_serving",
            Self::GrpcStatus => "grpc_status",
            Self::Exit => "exit",
            Self::Signal => "signal",
        }
    }
}

/// Why this host could not run a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No socket to be had (EMFILE, ENFILE, ENOBUFS, ENOMEM …).
    Socket(io::ErrorKind),
    /// The mark could not be set: it needs CAP_NET_ADMIN.
    Mark,
    /// No free port, or no memory, to connect from.
    Connect(io::ErrorKind),
    /// No packet socket, for a probe along the data path: it needs CAP_NET_RAW.
    PacketSocket(io::ErrorKind),
    /// This host has no address of the VIP's family that a backend could answer to.
    NoSource,
    /// There is no data path here that a probe could go along.
    NoDataPath,
    /// The check's TLS cannot be set up, such as for a file with certificates that is not there.
    Tls(Box<str>),
    /// The check's command cannot be started.
    Command(io::ErrorKind),
    /// The probe itself broke: a bug.
    Crashed,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(kind) => write!(f, "no socket for the probe: {kind}"),
            Self::Mark => f.write_str("the probe's mark could not be set (CAP_NET_ADMIN)"),
            Self::Connect(kind) => write!(f, "the probe could not connect from here: {kind}"),
            Self::PacketSocket(kind) => {
                write!(f, "no packet socket for a probe to the VIP (it needs CAP_NET_RAW): {kind}")
            }
            Self::NoSource => f.write_str(
                "this host has no address of the VIP's family, beside VIPs, that a backend could answer a probe at",
            ),
            Self::NoDataPath => f.write_str("there is no data path that the probe could go along"),
            Self::Tls(why) => f.write_str(why),
            Self::Command(kind) => write!(f, "the check's command cannot be started: {kind}"),
            Self::Crashed => f.write_str("the probe crashed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kinds_can_index_an_array_and_have_names_of_their_own() {
        for (n, kind) in FailureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, n);
        }
        let names: BTreeSet<_> = FailureKind::ALL.map(FailureKind::name).into();
        assert_eq!(names.len(), FailureKind::ALL.len());
    }
}
