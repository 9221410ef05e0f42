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
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectRefused => f.write_str("connection refused"),
            Self::ConnectTimeout => f.write_str("no answer to the handshake in time"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Timeout => f.write_str("connected, but no answer in time"),
            Self::Reset => f.write_str("connection reset before the answer"),
            Self::Closed => f.write_str("connection closed before the answer"),
            Self::BadStatus(status) => write!(f, "status {status}"),
            Self::Protocol => f.write_str("the answer is not HTTP"),
        }
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
}

impl FailureKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::Unreachable,
        Self::Timeout,
        Self::Reset,
        Self::Closed,
        Self::BadStatus,
        Self::Protocol,
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
        }
    }
}

/// Why this host could not run a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No socket to be had (EMFILE, ENFILE, ENOBUFS, ENOMEM …).
    Socket(io::ErrorKind),
    /// The mark could not be set: it needs CAP_NET_ADMIN.
    Mark,
    /// No free port, or no memory, to connect from.
    Connect(io::ErrorKind),
    /// The probe itself broke: a bug.
    Crashed,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(kind) => write!(f, "no socket for the probe: {kind}"),
            Self::Mark => f.write_str("the probe's mark could not be set (CAP_NET_ADMIN)"),
            Self::Connect(kind) => write!(f, "the probe could not connect from here: {kind}"),
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
