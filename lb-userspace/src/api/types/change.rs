//! What was done.
//!
//! There are two counts. `revision` is the agent's: the number of the latest change of anything
//! ([`Status::revision`](super::Status::revision)). `service_revision` is a service's: how often that service has changed, which is
//! what its history, `diff` and `undo` count. Inside of a service's own description
//! ([`ServiceStatus`](super::ServiceStatus), [`Revision`]) `revision` is the service's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Api, KeepOrReset};
use crate::config::Report;

/// Answer to `POST /v1/validate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validated {
    /// Version of the API.
    pub api: Api,
    /// Whether it can be used.
    pub valid: bool,
    /// Mistakes and warnings, in the order of the text.
    pub diagnostics: Vec<Report>,
}

/// Answer to `POST /v1/apply`, to every change of a split, weight, state or health, and to an undo.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// Version of the API.
    pub api: Api,
    /// The agent's revision: number of the latest change of anything, this one included.
    pub revision: u64,
    /// The service's revision, this change included; absent where the change is not one of a single service (`apply`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_revision: Option<u64>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Which, such as `pool.v41.backend.10.0.1.11:8443.weight`; where more than one service may be meant, with `service.` and
    /// its name before it.
    pub path: String,
    /// What it was; absent if it was not there.
    pub from: Option<String>,
    /// What it is; absent if it is gone.
    pub to: Option<String>,
}

/// How much of a service's traffic moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// The service.
    pub service: String,
    /// Percent of its slots that lead elsewhere for new flows.
    pub slots_moved_percent: f64,
    /// Percent of its clients whose new flows go to another pool.
    pub clients_moved_percent: f64,
}

/// Answer to `POST /v1/services/{s}/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    pub store_seconds: f64,
    /// From the arrival of the request (for `lbctl` by itself: from its first step) to the end of the store, and with `reset` of
    /// voiding the canary's flows. Neither the journal nor the answer's way back is part of it.
    pub total_seconds: f64,
    /// The agent's revision that it made; `null` if it is not in the journal: [`warnings`](Self::warnings) say why. The
    /// rollback is in force all the same.
    pub revision: Option<u64>,
    /// The service's revision that it made; `null` likewise.
    #[serde(default)]
    pub service_revision: Option<u64>,
    /// Whether the agent did it, and not `lbctl` by itself.
    pub by_agent: bool,
    /// What is doubtful about the outcome, such as a journal that does not have it.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Answer to `POST /v1/detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// Version of the API.
    pub api: Api,
    /// The service.
    pub service: String,
    /// The newest first.
    pub revisions: Vec<Revision>,
}

/// A service as it was from a change on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// The service's revision: what `diff` and `undo` take.
    pub revision: u64,
    /// The agent's revision that the same change made.
    pub agent_revision: u64,
    /// When it was made (RFC 3339).
    pub time: String,
    /// By whom.
    pub actor: String,
    /// Why, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was done, in a sentence.
    pub summary: String,
    /// SHA-256 of all that held of the service from then on: configuration, split, pools, overrides. Two revisions have the
    /// same one if and only if nothing differs between them.
    pub hash: String,
    /// What it changed, against the one before. Nothing for the oldest one that the journal has, unless the service began
    /// there.
    pub changes: Vec<Change>,
}

/// Answer to `GET /v1/services/{s}/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diff {
    /// Version of the API.
    pub api: Api,
    /// The service.
    pub service: String,
    /// One revision of the service.
    pub from: u64,
    /// The other one.
    pub to: u64,
    /// Every value that differs between them, by its path. A service that was not there at one of them has no values there.
    pub changes: Vec<Change>,
}
