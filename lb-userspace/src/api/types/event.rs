//! What happened.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Api, Severity};

/// A line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Version of the API.
    #[serde(default)]
    pub api: Api,
    /// Its number; each is one more than the one before.
    pub seq: u64,
    /// When (RFC 3339).
    pub time: String,
    /// What: a stable name.
    pub code: String,
    /// How grave it is.
    pub severity: Severity,
    /// The service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The pool it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The backend it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// In words.
    pub message: String,
    /// Who did it: a user, or a part of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The agent's revision that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The service's revision that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_revision: Option<u64>,
}

impl Event {
    /// What it is about, as `SERVICE/POOL/BACKEND`; empty if nothing in particular.
    pub fn subject(&self) -> String {
        let parts = [&self.service, &self.pool, &self.backend];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        parts.join("/")
    }
}
