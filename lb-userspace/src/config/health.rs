//! How the health of a service's backends is asked for.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::keys::HealthDraft;
use super::read::{Findings, Kind, Node, Table};
use super::value::{
    Check, CommandLine, FilePath, HttpHost, HttpPath, Payload, Phrase, StatusRanges, TlsName, Verify, Via,
};

/// How the health of a service's backends is asked for, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The health check; `None`: every backend counts as healthy.
    pub check: Option<HealthCheck>,
    /// What backends may say of themselves.
    pub agent: AgentCheck,
    /// What is run when health has taken a backend out.
    pub on_down_command: Option<CommandLine>,
}

/// A health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub question: Question,
    /// When and where.
    pub probe: Probe,
}

/// What is asked of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A connection is healthy.
    Tcp,
    /// The right answer to a GET is healthy.
    Http(HttpRequest),
    /// The same within TLS.
    Https(HttpRequest, Tls),
    /// SERVING is healthy.
    Grpc(GrpcRequest),
    /// The same within TLS.
    Grpcs(GrpcRequest, Tls),
    /// The right answer to a datagram is healthy.
    Udp(Exchange),
    /// A command that exits with 0 is healthy.
    Exec(CommandLine),
}

/// When and where a check goes, and what it takes to change one's mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// When a check without an answer has failed; at most the shortest interval.
    pub timeout: Duration,
    /// Consecutive successes that bring a backend back; at least 1.
    pub healthy: u32,
    /// Consecutive failures that take a backend out; at least 1.
    pub unhealthy: u32,
    /// Port to ask, if not the backend's own.
    pub port: Option<u16>,
    /// What is asked, and which way the question goes.
    pub via: Via,
    /// Interval while a change of state is pending, if another one; at most the interval.
    pub fast_interval: Option<Duration>,
    /// Interval while a backend is down, if another one.
    pub down_interval: Option<Duration>,
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
    /// What the body has to contain, if anything.
    pub expect_body: Option<Phrase>,
}

/// Whose certificates are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whether they are verified at all.
    pub verify: Verify,
    /// The authorities that are trusted, if not those of this host.
    pub ca_file: Option<FilePath>,
    /// The name that they have to be for, if neither `host` nor the backend's address.
    pub sni: Option<TlsName>,
}

/// What a gRPC check asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcRequest {
    /// The service, if not the server as a whole.
    pub service: Option<Phrase>,
    /// The authority, if not the backend's address.
    pub host: Option<HttpHost>,
}

/// What a UDP check sends, and what it expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The datagram.
    pub send: Payload,
    /// What the answer has to contain, if anything.
    pub expect: Option<Payload>,
}

/// Where backends say how they want to be treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCheck {
    /// Port of all backends that have none of their own; `None`: those say nothing.
    pub port: Option<u16>,
    /// From the start of one check to the start of the next, if not [`AgentCheck::INTERVAL`].
    pub interval: Option<Duration>,
}

impl AgentCheck {
    /// How often an agent is asked unless another interval is set.
    pub const INTERVAL: Duration = Duration::from_secs(5);
    /// How long an answer may take.
    pub const TIMEOUT: Duration = Duration::from_secs(1);
}

impl Health {
    /// The word for the check in the file.
    pub fn kind(&self) -> Check {
        match self.check.as_ref().map(|check| &check.question) {
            None => Check::None,
            Some(Question::Tcp) => Check::Tcp,
            Some(Question::Http(_)) => Check::Http,
            Some(Question::Https(..)) => Check::Https,
            Some(Question::Grpc(_)) => Check::Grpc,
            Some(Question::Grpcs(..)) => Check::Grpcs,
            Some(Question::Udp(_)) => Check::Udp,
            Some(Question::Exec(_)) => Check::Exec,
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
        let agent = AgentCheck { port: draft.agent_port.value?, interval: draft.agent_interval.value? };
        let on_down_command = draft.on_down_command.value?;
        let kind = draft.kind.value?;
        if kind == Check::None {
            return Some(Self { check: None, agent, on_down_command });
        }
        let probe = Probe {
            interval: draft.interval.value?,
            timeout: draft.timeout.value?,
            healthy: draft.healthy.value?,
            unhealthy: draft.unhealthy.value?,
            port: draft.port.value?,
            via: draft.via.value?,
            fast_interval: draft.fast_interval.value?,
            down_interval: draft.down_interval.value?,
        };
        let (path, host, expect_status) = (draft.path.value?, draft.host.value?, draft.expect_status.value?);
        let (expect_body, service) = (draft.expect_body.value?, draft.grpc_service.value?);
        let tls = Tls { verify: draft.verify.value?, ca_file: draft.ca_file.value?, sni: draft.sni.value? };
        let (send, expect, command) = (draft.send.value?, draft.expect.value?, draft.command.value?);
        let question = match kind {
            Check::None => return None,
            Check::Tcp => Question::Tcp,
            Check::Http => Question::Http(HttpRequest { path: path?, host, expect_status, expect_body }),
            Check::Https => {
                Question::Https(HttpRequest { path: path?, host, expect_status, expect_body }, tls)
            }
            Check::Grpc => Question::Grpc(GrpcRequest { service, host }),
            Check::Grpcs => Question::Grpcs(GrpcRequest { service, host }, tls),
            Check::Udp => Question::Udp(Exchange { send: send?, expect }),
            Check::Exec => Question::Exec(command?),
        };
        Some(Self { check: Some(HealthCheck { question, probe }), agent, on_down_command })
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
        let mut out = to.serialize_map(None)?;
        out.serialize_entry("type", &self.kind())?;
        if let Some(HealthCheck { question, probe }) = &self.check {
            probe.write(&mut out)?;
            question.write(&mut out)?;
        }
        maybe(&mut out, "agent_port", self.agent.port.as_ref())?;
        maybe(&mut out, "agent_interval", self.agent.interval.map(time).as_ref())?;
        maybe(&mut out, "on_down_command", self.on_down_command.as_ref())?;
        out.end()
    }
}

impl Probe {
    fn write<M: SerializeMap>(&self, out: &mut M) -> Result<(), M::Error> {
        out.serialize_entry("interval", &time(self.interval))?;
        out.serialize_entry("timeout", &time(self.timeout))?;
        out.serialize_entry("healthy", &self.healthy)?;
        out.serialize_entry("unhealthy", &self.unhealthy)?;
        maybe(out, "port", self.port.as_ref())?;
        maybe(out, "via", Some(&self.via).filter(|&&via| via == Via::Vip))?;
        maybe(out, "fast_interval", self.fast_interval.map(time).as_ref())?;
        maybe(out, "down_interval", self.down_interval.map(time).as_ref())
    }
}

impl Question {
    fn write<M: SerializeMap>(&self, out: &mut M) -> Result<(), M::Error> {
        match self {
            Self::Tcp => Ok(()),
            Self::Http(request) => request.write(out),
            Self::Https(request, tls) => request.write(out).and_then(|()| tls.write(out)),
            Self::Grpc(request) => request.write(out),
            Self::Grpcs(request, tls) => request.write(out).and_then(|()| tls.write(out)),
            Self::Udp(exchange) => {
                out.serialize_entry("send", &exchange.send)?;
                maybe(out, "expect", exchange.expect.as_ref())
            }
            Self::Exec(command) => out.serialize_entry("command", command),
        }
    }
}

impl HttpRequest {
    fn write<M: SerializeMap>(&self, out: &mut M) -> Result<(), M::Error> {
        out.serialize_entry("path", &self.path)?;
        maybe(out, "host", self.host.as_ref())?;
        out.serialize_entry("expect_status", &self.expect_status)?;
        maybe(out, "expect_body", self.expect_body.as_ref())
    }
}

impl GrpcRequest {
    fn write<M: SerializeMap>(&self, out: &mut M) -> Result<(), M::Error> {
        maybe(out, "grpc_service", self.service.as_ref())?;
        maybe(out, "host", self.host.as_ref())
    }
}

impl Tls {
    fn write<M: SerializeMap>(&self, out: &mut M) -> Result<(), M::Error> {
        out.serialize_entry("verify", &self.verify)?;
        maybe(out, "ca_file", self.ca_file.as_ref())?;
        maybe(out, "sni", self.sni.as_ref())
    }
}

fn maybe<M: SerializeMap>(out: &mut M, key: &str, value: Option<&impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| out.serialize_entry(key, value))
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
