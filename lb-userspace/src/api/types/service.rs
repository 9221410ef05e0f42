//! Services, their pools and backends.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::words;
use super::{Api, KeepOrReset, Quantiles};
use crate::config::{AdminState, Mode, Protocol};

/// Answer to `GET /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    /// Version of the API.
    pub api: Api,
    /// In the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// The last one of these, if there are more: the page `after` it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A VIP, port and protocol that clients talk to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub vip: IpAddr,
    /// Its port; 0 is every port.
    pub port: u16,
    /// What its clients speak.
    pub protocol: Protocol,
    /// How packets reach its backends.
    pub mode: Mode,
    /// The service's revision: how often it has changed.
    pub revision: u64,
    /// Name of the stable pool.
    pub stable: String,
    /// Name of the canary pool, if there is one.
    pub canary: Option<String>,
    /// How clients are divided between the two.
    pub split: SplitStatus,
    /// Every pool, the stable one first, then the canary.
    pub pools: Vec<PoolStatus>,
    /// What was changed at run time and differs from the file.
    pub overrides: Vec<Override>,
    /// Who may talk to it, and how much, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<ProtectionStatus>,
}

/// Who may talk to a service, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProtectionStatus {
    /// How many networks are allowed; 0: everybody who is not denied.
    pub allowed_networks: u32,
    /// How many networks are denied.
    pub denied_networks: u32,
    /// New connections a second of all clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_per_second: Option<u32>,
    /// Packets a second of all clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_packets_per_second: Option<u32>,
    /// New connections a second of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_max_new_per_second: Option<u32>,
    /// Packets a second of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_max_packets_per_second: Option<u32>,
}

/// How clients are divided between stable and canary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SplitStatus {
    /// The canary's share that is wanted, in percent.
    pub percent: f64,
    /// Fraction (0 to 1) of the clients whose new flows go to the canary.
    pub new_ratio: f64,
    /// Fraction whose untracked flows belong to the canary.
    pub home_ratio: f64,
    /// Fraction whose flows are looked up, because the split has changed above them.
    pub tracked_ratio: f64,
    /// Whether every flow is where the split says.
    pub settled: bool,
}

/// A value that was set at run time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Override {
    /// What was set, such as `pool.v41.backend.10.0.1.11:8443.weight`.
    pub path: String,
    /// What the file says.
    pub configured: String,
    /// What holds.
    pub now: String,
    /// Since when (RFC 3339).
    pub since: String,
    /// Who set it.
    pub actor: String,
}

/// The backends of one version of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// What it is used for.
    pub role: PoolRole,
    /// Percent of the clients whose new flows it gets.
    pub share_percent: f64,
    /// Whether so few of its backends are healthy that health is ignored.
    pub panic: bool,
    /// Whether fewer of its backends are healthy than `min_healthy` says, so that none of them takes new flows.
    #[serde(default)]
    pub failed: bool,
    /// Its breaker, if it has one and that is not closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerStatus>,
    /// Its connections, if they are limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionCount>,
    /// The pool that gets its new flows, because it has no backend that takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spills_to: Option<String>,
    /// What each priority of its backends takes, the first one first.
    #[serde(default)]
    pub priorities: Vec<PriorityStatus>,
    /// Every backend.
    pub backends: Vec<BackendStatus>,
    /// What went through it.
    pub traffic: Traffic,
    /// From a client's first SYN to its answer, where that is measured: since the step of the rollout under way began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake: Option<Quantiles>,
}

/// The backends of one priority of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PriorityStatus {
    /// Which one; 0 is the first.
    pub priority: u32,
    /// Backends that can take new flows.
    pub healthy: u32,
    /// Backends that should.
    pub backends: u32,
    /// Percent of the pool's new flows that it takes.
    pub share_percent: f64,
}

words! {
    /// What a pool is used for.
    PoolRole {
        /// It gets the clients that the canary does not.
        Stable = "stable",
        /// It gets the share of the clients that the split says.
        Canary = "canary",
        /// It gets none.
        Idle = "idle",
    }

    /// What is known of a backend's health.
    HealthState {
        /// It answers.
        Up = "up",
        /// It does not.
        Down = "down",
        /// It was not asked often enough yet.
        Unknown = "unknown",
        /// It is never asked.
        Unchecked = "unchecked",
    }

    /// What an operator says of a backend's health.
    HealthWord {
        /// It is healthy, whatever the checks say.
        Up = "up",
        /// It is not, whatever the checks say.
        Down = "down",
        /// What the checks say.
        Auto = "auto",
    }
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStatus {
    /// Address and port as in the file, IPv6 in brackets: `10.0.1.11:8443`. In a service of every port the address alone.
    pub name: String,
    /// Its number in the kernel's tables.
    pub id: u16,
    /// Its weight, as it holds.
    pub weight: u16,
    /// Its weight, as the file says, or the source that has discovered it.
    pub configured_weight: u16,
    /// Who has discovered it, such as `dns:web.example`; absent: it is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whose turn it is: 0 first.
    #[serde(default)]
    pub priority: u32,
    /// What the operator wants of it.
    pub state: AdminState,
    /// How long it may drain, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// What is known of its health.
    pub health: HealthStatus,
    /// Percent of its weight that it has so far, while it starts slowly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<f64>,
    /// How long it is ejected, if it is an outlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<EjectionStatus>,
    /// Its breaker, if it has one and that is not closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerStatus>,
    /// How fast it answers, if it is steered by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering: Option<SteeringStatus>,
    /// Its connections, if they are limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionCount>,
    /// What became of its connections, if somebody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<Outcomes>,
    /// What it calls itself in connection ids of QUIC, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server_ids: Vec<String>,
    /// Whether new flows go to it.
    pub takes_new: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Whether it only waits for those of better priorities to fail.
    #[serde(default)]
    pub standby: bool,
    /// How many slots of its pool's table lead to it.
    pub slots: u32,
    /// How many tracked flows it has. Flows of settled slots are not counted, because nothing tracks them.
    pub tracked_flows: u64,
    /// Where its packets are sent.
    pub next_hop: NextHop,
    /// Whether it is gone from the file and only finishes the flows that it has.
    pub terminating: bool,
    /// What went through it.
    pub traffic: Traffic,
    /// How fast it went lately, between the last two sweeps.
    #[serde(default)]
    pub rate: Rate,
}

/// An outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EjectionStatus {
    /// How long it still is one.
    pub left_seconds: u64,
    /// How often it was ejected lately, this time included.
    pub times: u32,
}

/// A breaker that keeps something away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerStatus {
    /// `shedding`, `open` or `half_open`.
    pub state: String,
    /// Percent of the new connections that it lets through.
    pub passes_percent: f64,
}

/// How fast a backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SteeringStatus {
    /// Milliseconds from a client's SYN, on average; absent while too few connections are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_seconds: Option<f64>,
    /// Percent of its weight that it has for that.
    pub weight_percent: u16,
}

/// Connections that are limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionCount {
    /// Those that are open, as far as was seen; absent: nobody counts, since only new ones are limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// New ones that were kept away, or taken by another backend.
    pub kept_away: u64,
}

/// What became of connections, since the backend was added. In the dsr modes answers are not seen: `unanswered` is inferred from
/// SYNs that clients repeat, and all others are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    /// Those that began.
    pub tried: u64,
    /// Whose SYN was answered in time.
    pub answered: u64,
    /// Whose SYN was answered with a RST.
    pub refused: u64,
    /// Whose client had to ask again.
    pub unanswered: u64,
    /// Reset by the backend before it had sent a byte.
    pub reset_early: u64,
    /// Whose first byte the backend has sent.
    pub served: u64,
    /// Whether they are inferred.
    pub inferred: bool,
}

/// How long a backend may drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainStatus {
    /// Until when (RFC 3339).
    pub deadline: String,
    /// What happens then to the flows that it still has.
    pub then: KeepOrReset,
    /// Whether that time is over.
    pub over: bool,
}

/// What goes through a backend in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// Flows that begin.
    pub connections_per_second: f64,
    /// Packets from clients.
    pub packets_per_second: f64,
}

/// What is known of a backend's health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealthStatus {
    /// In a word.
    pub status: HealthState,
    /// Why, such as what the last check ran into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it has been so.
    pub since_seconds: u64,
    /// How long the last check took; absent before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_duration_seconds: Option<f64>,
}

/// Where a backend's packets are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NextHop {
    /// To a neighbour.
    Known {
        /// The interface they leave by.
        interface: String,
        /// Its hardware address.
        mac: String,
    },
    /// Nowhere.
    Unreachable {
        /// Why.
        unreachable: String,
    },
}

/// What went through since the program was first loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// From clients.
    pub packets: u64,
    /// From clients, whole frames.
    pub bytes: u64,
    /// Flows that began.
    pub connections: u64,
    /// To clients, in the modes in which they come through the balancer.
    pub reply_packets: u64,
    /// To clients, whole frames.
    pub reply_bytes: u64,
}

/// Answer to `GET /v1/backends`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backends {
    /// Version of the API.
    pub api: Api,
    /// By service and pool.
    pub backends: Vec<BackendRow>,
    /// The service of the last one of these, if there are more: the page `after` it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A backend and where it belongs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendRow {
    /// Its service.
    pub service: String,
    /// Its pool.
    pub pool: String,
    /// What the pool is used for.
    pub role: PoolRole,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendStatus,
}

impl Backends {
    /// Every backend of these services.
    pub fn of(page: Services) -> Self {
        let mut backends = Vec::new();
        for service in page.services {
            for pool in service.pools {
                let row = |backend| BackendRow {
                    service: service.name.clone(),
                    pool: pool.name.clone(),
                    role: pool.role,
                    backend,
                };
                backends.extend(pool.backends.into_iter().map(row));
            }
        }
        Self { api: Api::V1, backends, next: page.next }
    }
}
