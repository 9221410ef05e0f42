//! What is asked for.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::words;
use super::{HealthWord, Share};
use crate::api::{ApiError, ErrorCode};
use crate::config::{AdminState, Protocol, Weight};

/// Body of `POST /v1/validate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// A configuration in TOML.
    pub text: String,
    /// What messages call it, such as its path.
    #[serde(default = "default_name")]
    pub name: String,
}

/// Body of `POST /v1/apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// A configuration in TOML.
    pub text: String,
    /// What messages call it, such as its path.
    #[serde(default = "default_name")]
    pub name: String,
    /// Only says what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Changes nothing unless the agent is at this revision ([`Status::revision`](super::Status::revision)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_revision: Option<u64>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn default_name() -> String {
    "lb.toml".to_owned()
}

/// Body of `PUT …/backends/{b}/weight`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// 0 to 65535; 0 takes no new flows.
    pub weight: Weight,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `PUT /v1/services/{s}/split`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSplit {
    /// The canary's share, a number or text.
    pub percent: Share,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `PUT …/backends/{b}/state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetState {
    /// What is wanted of the backend.
    pub state: AdminState,
    /// How long it may drain; without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
    /// What happens then to the flows that it still has.
    #[serde(default)]
    pub then: KeepOrReset,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `PUT …/backends/{b}/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetHealth {
    /// What the backend's health is taken for.
    pub health: HealthWord,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /v1/services/{s}/rollback`; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// What happens to the canary's established flows.
    #[serde(default)]
    pub flows: KeepOrReset,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /v1/services/{s}/undo`; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    /// The revision of the service that is wanted back; the one before the newest if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

words! {
    /// What happens to flows whose pool goes.
    KeepOrReset {
        /// They finish where they are.
        Keep = "keep",
        /// They are reset, so that their clients connect anew.
        Reset = "reset",
    }
}

#[expect(clippy::derivable_impls, reason = "the macro gives no variant an attribute")]
impl Default for KeepOrReset {
    fn default() -> Self {
        Self::Keep
    }
}

/// Body of `POST /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// The client.
    pub from: SocketAddr,
    /// The VIP.
    pub to: SocketAddr,
    /// What they speak.
    #[serde(default = "default_protocol")]
    pub protocol: Protocol,
    /// The connection id in a datagram of QUIC, as its server has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_id: Option<super::ConnectionId>,
}

fn default_protocol() -> Protocol {
    Protocol::Tcp
}

/// Query of `GET /v1/status`, `GET /v1/services` and `GET /v1/backends`.
///
/// Answers come in pages, so that none of them takes long, however many services there are. Without `service` and `after` it is
/// the first one; an answer whose `next` is there goes on with the page `after` that service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceQuery {
    /// This service only, however many backends it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The services behind this one, in the order of the configuration: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Whole services with at most so many backends between them, but one service at least: 1 to 1000, which it is unless another
    /// number is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl ServiceQuery {
    /// How many backends a page has at most.
    pub const LIMIT: usize = 1_000;

    /// How many backends this page has at most.
    ///
    /// # Errors
    /// If it asks for none, or for too many.
    pub fn limit(&self) -> Result<usize, ApiError> {
        let limit = self.limit.unwrap_or(Self::LIMIT);
        if (1..=Self::LIMIT).contains(&limit) {
            return Ok(limit);
        }
        let message = format!("a page has 1 to {} backends, not {limit}", Self::LIMIT);
        Err(ApiError::new(ErrorCode::InvalidValue, message)
            .about("limit")
            .remedy("leave it out, and go on with `after` where the answer has a `next`"))
    }
}

/// Query of `GET /v1/services/{s}/diff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// One revision of the service.
    pub from: u64,
    /// The other one.
    pub to: u64,
}

/// Query of `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Flows of this service only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// At most so many.
    #[serde(default = "FlowQuery::default_limit")]
    pub limit: usize,
}

impl FlowQuery {
    /// How many flows are listed unless a number is asked for.
    pub const LIMIT: usize = 1_000;

    fn default_limit() -> usize {
        Self::LIMIT
    }
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events with a greater number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Events about this service only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Goes on with events as they happen.
    #[serde(default)]
    pub follow: bool,
}

/// A backend's place: `SERVICE/POOL/BACKEND`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct BackendPath {
    /// The service.
    pub service: String,
    /// The pool.
    pub pool: String,
    /// Address and port, as [`BackendStatus::name`](super::BackendStatus::name) has them.
    pub backend: String,
}

impl BackendPath {
    /// How a backend is called. Port 0 is every port: the address says it all.
    pub fn name_of(backend: SocketAddr) -> String {
        // As long as most of them: one that grows would be copied.
        let mut name = String::with_capacity(24);
        // Writing to a string does not fail.
        _ = match backend.port() {
            0 => write!(name, "{}", backend.ip()),
            _ => write!(name, "{backend}"),
        };
        name
    }

    /// The backend's address, with port 0 where it is called by its address alone.
    pub fn address(&self) -> Option<SocketAddr> {
        let alone = |text: &str| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
        self.backend.parse().or_else(|_| alone(&self.backend)).ok()
    }
}

impl fmt::Display for BackendPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.service, self.pool, self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_called_by_its_address_and_its_port_if_it_has_one() {
        for (address, name) in [
            ("10.0.1.11:8443", "10.0.1.11:8443"),
            ("[2001:db8::11]:8443", "[2001:db8::11]:8443"),
            ("10.0.1.11:0", "10.0.1.11"),
            ("[2001:db8::11]:0", "2001:db8::11"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let backend = BackendPath::name_of(address);
            assert_eq!(backend, name);
            let path = BackendPath { service: "s".to_owned(), pool: "p".to_owned(), backend };
            assert_eq!(path.address(), Some(address));
        }
    }

    #[test]
    fn requests_with_members_that_nobody_knows_are_refused() {
        let error = serde_json::from_str::<SetSplit>(r#"{"percent": 10, "persent": 5}"#).unwrap_err();
        assert!(error.to_string().starts_with("unknown field `persent`"), "{error}");
        let rollback = serde_json::from_str::<Rollback>("{}").unwrap();
        assert_eq!(rollback, Rollback { flows: KeepOrReset::Keep, reason: None });
    }
}
