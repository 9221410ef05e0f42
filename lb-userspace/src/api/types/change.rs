//! What was done.

use serde::{Deserialize, Serialize};

use super::{Api, KeepOrReset};
use crate::config::Report;

/// Answer to `POST /v1/validate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validated {
    /// Version of the API.
    pub api: Api,
    /// Whether it can be used.
    pub valid: bool,
    /// Mistakes and warnings, in the order of the text.
    pub diagnostics: Vec<Report>,
}

/// Answer to `POST /v1/apply` and to every change of a split, weight, state or health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Version of the API.
    pub api: Api,
    /// Number of the latest change of anything, this one included; see [`Status::revision`](super::Status::revision).
    pub revision: u64,
    /// Whether anything changed, or in a dry run would.
    pub changed: bool,
    /// Whether nothing was done, because only that was asked for.
    #[serde(default)]
    pub dry_run: bool,
    /// What changed.
    pub changes: Vec<Change>,
    /// How much of the traffic moves, for each service that changed.
    pub moved: Vec<Moved>,
    /// What is doubtful about the outcome, such as capacity that runs short.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What is doubtful about the text. (The server fills this in.)
    #[serde(default)]
    pub diagnostics: Vec<Report>,
}

/// A value that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which, such as `checkout/v41/10.0.1.11:8443 weight`.
    pub path: String,
    /// What it was; absent if it was not there.
    pub from: Option<String>,
    /// What it is; absent if it is gone.
    pub to: Option<String>,
}

/// How much of a service's traffic moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The service.
    pub service: String,
    /// Percent of its slots that lead elsewhere for new flows.
    pub slots_moved_percent: f64,
    /// Percent of its clients whose new flows go to another pool.
    pub clients_moved_percent: f64,
}

/// Answer to `POST /v1/services/{s}/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Version of the API.
    pub api: Api,
    /// The service.
    pub service: String,
    /// The canary's share before, in percent.
    pub split_before_percent: f64,
    /// What happens to its established flows.
    pub flows: KeepOrReset,
    /// How many established flows the canary has; absent where nothing counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established: Option<u64>,
    /// How long the store took: when it ends, the next packet obeys.
    pub store_nanoseconds: u64,
    /// From the arrival of the request to the end of everything, journal included.
    pub total_microseconds: u64,
    /// The service's revision that it made.
    pub revision: u64,
    /// Whether the agent did it, and not `lbctl` by itself.
    pub by_agent: bool,
}

/// Answer to `POST /v1/detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Version of the API.
    pub api: Api,
    /// What was taken off the host: programs, maps, addresses.
    pub removed: Vec<String>,
    /// What is still there, and why.
    #[serde(default)]
    pub left: Vec<String>,
}

/// Answer to `GET /v1/services/{s}/history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Version of the API.
    pub api: Api,
    /// The service.
    pub service: String,
    /// The newest first.
    pub revisions: Vec<Revision>,
}

/// A service as it was at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number.
    pub revision: u64,
    /// When it was made (RFC 3339).
    pub time: String,
    /// By whom.
    pub actor: String,
    /// Why, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// SHA-256 of the service's configuration.
    pub hash: String,
    /// What it changed, against the one before.
    pub changes: Vec<Change>,
}
