//! Tracked flows.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::words::words;

/// Answer to `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Flows {
    /// Version of the API.
    pub api: Api,
    /// Some tracked flows. Flows of settled slots are in no table, and not here.
    pub flows: Vec<FlowInfo>,
    /// Whether there are more than were asked for.
    pub truncated: bool,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowInfo {
    /// Its service.
    pub service: String,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub port: u16,
    /// Its pool.
    pub pool: String,
    /// Its backend.
    pub backend: String,
    /// Why it is in a table.
    pub kind: FlowKind,
    /// How long it has been silent, as well as the table remembers.
    pub idle_seconds: u64,
    /// How long ago it began, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
}

words! {
    /// Which table a flow is in.
    FlowKind {
        /// An established TCP flow.
        Tracked = "tracked",
        /// A UDP flow.
        Udp = "udp",
        /// A TCP handshake under way.
        HalfOpen = "half_open",
        /// An established session of mode `full-nat`.
        Session = "session",
        /// A session of mode `full-nat` that has yet to prove itself.
        Opening = "opening",
    }
}
