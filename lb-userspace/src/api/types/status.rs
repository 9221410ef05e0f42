//! The whole at a glance.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::words;
use super::{Api, ServiceStatus};

/// Answer to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the API.
    pub api: Api,
    /// The agent's version.
    pub version: String,
    /// Layout of the pinned maps.
    pub layout: u32,
    /// When the agent started (RFC 3339). Packets may have been forwarded for longer.
    pub started_at: String,
    /// How long ago that was.
    pub uptime_seconds: u64,
    /// Number of the latest change of anything: what `expect_revision` is compared with.
    pub revision: u64,
    /// Whether something does not work as it should; [`findings`](Self::findings) say what.
    pub degraded: bool,
    /// What is not as it should be, or is worth knowing; the gravest first.
    pub findings: Vec<Finding>,
    /// What happens in the kernel.
    pub dataplane: DataplaneStatus,
    /// The services, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// The last one of these, if there are more: the page `after` it has them. (The findings are those of all.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// Stable code, such as `LB1003`.
    pub code: String,
    /// What it is about: an interface, a service, `SERVICE/POOL/BACKEND`, a map.
    pub subject: String,
    /// What is the matter.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

words! {
    /// How grave something is.
    Severity {
        /// Worth knowing.
        Info = "info",
        /// It works, though not as it should.
        Warning = "warning",
        /// It does not work.
        Error = "error",
    }

    /// Where in the receive path the program sits.
    XdpMode {
        /// In the driver.
        Native = "native",
        /// In the kernel, after the driver: slower.
        Generic = "generic",
    }
}

/// What happens in the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DataplaneStatus {
    /// The program; absent if none is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramStatus>,
    /// Where it is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// Tracked TCP flows.
    pub flows: Room,
    /// Tracked UDP flows.
    pub udp_flows: Room,
    /// Handshakes under way in slots that are changing.
    pub half_open: Room,
    /// Established sessions (`full-nat`).
    pub sessions: Room,
    /// Slots of all tables.
    pub slots: SlotRoom,
    /// Backends.
    pub backends: Room,
    /// Packets that went nowhere since the program was first loaded, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// The XDP program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramStatus {
    /// Its number in the kernel.
    pub id: u32,
    /// Instructions that the verifier walked through when it was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_instructions: Option<u32>,
}

/// An interface whose packets are balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its number in its network namespace.
    pub ifindex: u32,
    /// Where in the receive path the program sits.
    pub mode: XdpMode,
    /// Its hardware address, `02:00:00:00:00:01`.
    pub mac: String,
    /// Longest packet without its Ethernet header, in bytes.
    pub mtu: u32,
}

/// How much of a table is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Room {
    /// Entries in it.
    pub used: u64,
    /// Entries it has room for.
    pub capacity: u64,
}

/// How much of the slots is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlotRoom {
    /// Slots that belong to a service.
    pub used: u64,
    /// Slots there are.
    pub capacity: u64,
    /// Slots whose flows are looked up, because a change of theirs has not settled.
    pub unsettled: u64,
}
