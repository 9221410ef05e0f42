//! What goes over the wire.
//!
//! Members are only ever added. Requests with members that are not known are refused; answers may grow, so that their
//! readers skip what they do not know.

mod actor;
mod change;
mod event;
mod explain;
mod fault;
mod flow;
mod quic;
mod request;
mod rollout;
mod service;
mod share;
mod status;
mod trace;
mod words;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use actor::Actor;
pub use change::{Applied, Change, Detached, Diff, History, Moved, Revision, RolledBack, Validated};
pub use event::Event;
pub use explain::{Explanation, Step};
pub use fault::{AddFault, ClearFaults, FaultAction, FaultStatus, Faults};
pub use flow::{FlowInfo, FlowKind, Flows};
pub use quic::{ConnectionId, NoConnectionId};
pub use request::{
    Apply, BackendPath, DiffQuery, EventQuery, Explain, FlowQuery, KeepOrReset, Rollback, ServiceQuery,
    SetHealth, SetSplit, SetState, SetWeight, Undo, Validate,
};
pub use rollout::{
    ClientCount, MetricStatus, Observation, Observed, OrderRollout, PoolTelemetry, PreviewStatus, Quantiles,
    QueryStatus, RolloutStatus, StartRollout, VerdictWord,
};
pub use service::{
    BackendRow, BackendStatus, Backends, BreakerStatus, ConnectionCount, DrainStatus, EjectionStatus,
    HealthState, HealthStatus, HealthWord, NextHop, Outcomes, Override, PoolRole, PoolStatus, PriorityStatus,
    ProtectionStatus, Rate, ServiceStatus, Services, SplitStatus, SteeringStatus, Traffic,
};
pub use share::{Share, ShareError};
pub use status::{
    DataplaneStatus, Finding, InterfaceStatus, ProgramStatus, Room, Severity, SlotRoom, Status, XdpMode,
};
pub use trace::{Trace, TracePoint, Traced};

/// The version of the API: the first member of every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Api {
    /// The only one there is.
    #[default]
    #[serde(rename = "v1")]
    V1,
}
