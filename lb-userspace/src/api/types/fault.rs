//! Faults that are injected.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::words;
use super::{Api, Share};

words! {
    /// What becomes of a new connection.
    FaultAction {
        /// Its client gets a RST.
        Reset = "reset",
        /// Its client gets nothing.
        Drop = "drop",
    }
}

/// Body of `POST /v1/services/{s}/faults`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddFault {
    /// What becomes of the connections.
    pub action: FaultAction,
    /// Of which part of the new connections, in percent.
    pub share: Share,
    /// For how long, in seconds: every fault ends.
    pub seconds: f64,
    /// Only of those to this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only of those to this backend, by its address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only of those from this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub clients: Option<IpNet>,
    /// Why, for the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to `GET /v1/faults`, and to every change of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Faults {
    /// Version of the API.
    pub api: Api,
    /// All that there are.
    pub faults: Vec<FaultStatus>,
}

/// A fault that is being injected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultStatus {
    /// Its number, for `clear`.
    pub id: u32,
    /// The service.
    pub service: String,
    /// What becomes of the connections.
    pub action: FaultAction,
    /// Of which part of the new connections, in percent.
    pub percent: f64,
    /// Only of those to this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only of those to this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only of those from this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<String>,
    /// How long it still lasts, in seconds.
    pub left_seconds: f64,
}

/// Body of `POST /v1/faults/clear`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClearFaults {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Why, for the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
