//! How the health of a service's backends is asked for.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::keys::HealthDraft;
use super::read::{Findings, Kind, Node, Table};
use super::value::{Check, HttpHost, HttpPath, StatusRanges};

/// How the health of a service's backends is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not at all: every backend counts as healthy.
    None,
    /// A connection is healthy.
    Tcp(Probe),
    /// The right status in answer to a GET is healthy.
    Http(Probe, HttpRequest),
}

/// When and where a check goes, and what it takes to change one's mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// When a check without an answer has failed; at most the interval.
    pub timeout: Duration,
    /// Consecutive successes that bring a backend back; at least 1.
    pub healthy: u32,
    /// Consecutive failures that take a backend out; at least 1.
    pub unhealthy: u32,
    /// Port to ask, if not the backend's own.
    pub port: Option<u16>,
}

/// What an HTTP check asks for, and what it expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// The target of the request.
    pub path: HttpPath,
    /// The Host header, if not the backend's address.
    pub host: Option<HttpHost>,
    /// The status codes that mean health.
    pub expect_status: StatusRanges,
}

impl Health {
    /// The word for it in the file.
    pub fn check(&self) -> Check {
        match self {
            Self::None => Check::None,
            Self::Tcp(_) => Check::Tcp,
            Self::Http(..) => Check::Http,
        }
    }

    /// The timing of the check, if there is one.
    pub fn probe(&self) -> Option<&Probe> {
        match self {
            Self::None => None,
            Self::Tcp(probe) | Self::Http(probe, _) => Some(probe),
        }
    }
}

impl Kind for Health {
    type Draft = HealthDraft;
    type Value = Self;

    fn read(node: &Node, findings: &mut Findings) -> Option<HealthDraft> {
        HealthDraft::read(node, findings)
    }

    fn finish(draft: HealthDraft) -> Option<Self> {
        let kind = draft.kind.value?;
        if kind == Check::None {
            return Some(Self::None);
        }
        let probe = Probe {
            interval: draft.interval.value?,
            timeout: draft.timeout.value?,
            healthy: draft.healthy.value?,
            unhealthy: draft.unhealthy.value?,
            port: draft.port.value?,
        };
        if kind == Check::Tcp {
            return Some(Self::Tcp(probe));
        }
        let request = HttpRequest {
            path: draft.path.value??,
            host: draft.host.value?,
            expect_status: draft.expect_status.value?,
        };
        Some(Self::Http(probe, request))
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    fn schema() -> Json {
        HealthDraft::schema()
    }
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let request = if let Self::Http(_, request) = self { Some(request) } else { None };
        let mut out = to.serialize_map(None)?;
        out.serialize_entry("type", &self.check())?;
        if let Some(probe) = self.probe() {
            out.serialize_entry("interval", &humantime::format_duration(probe.interval).to_string())?;
            out.serialize_entry("timeout", &humantime::format_duration(probe.timeout).to_string())?;
            out.serialize_entry("healthy", &probe.healthy)?;
            out.serialize_entry("unhealthy", &probe.unhealthy)?;
            if let Some(port) = probe.port {
                out.serialize_entry("port", &port)?;
            }
        }
        if let Some(request) = request {
            out.serialize_entry("path", &request.path)?;
            if let Some(host) = &request.host {
                out.serialize_entry("host", host)?;
            }
            out.serialize_entry("expect_status", &request.expect_status)?;
        }
        out.end()
    }
}
