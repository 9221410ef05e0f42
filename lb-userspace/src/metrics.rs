//! What Prometheus scrapes: the agent's view and the kernel's counters, as they are when they are asked for.
//!
//! [`families`] makes figures of a [`Scrape`]; [`text`] writes them in the text format, version 0.0.4, which every scraper reads
//! (an OpenMetrics encoder names counters otherwise in its `# TYPE` lines, which tools for the older format take for another
//! metric). Every series is there from the start, at zero. Counters of the data path outlive the agent; what the agent counts
//! itself ([`Tally`]) begins with it, and so do the times of handshakes ([`Handshakes`]).

mod checks;
mod families;
mod handshakes;
mod listener;
mod page;
mod tally;
mod text;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::abi::Traffic;
use lb_common::verdict::Counters;
use lb_common::watch::Watch;

use crate::api::{DataplaneStatus, Finding, HealthState, PoolRole};
use crate::config::AdminState;
use crate::rollout::engine::Phase;

use checks::Failures;

pub use checks::Checks;
pub use handshakes::Handshakes;
pub use listener::{ListenError, Listener, Where};
pub use tally::{Cause, Tally};

/// All that there is to tell, at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// The data path at a glance.
    pub dataplane: DataplaneStatus,
    /// Every service.
    pub services: Vec<Service>,
    /// The configured interfaces, each with what the kernel counted of packets that came in there.
    pub interfaces: Vec<(String, Counters)>,
    /// The kernel's counters, of all interfaces.
    pub counters: Counters,
    /// What the analysis of rollouts under way looks at.
    pub analyses: Vec<Analysed>,
    /// Handshakes of pools that are or were measured, by the names of service and pool.
    pub handshakes: HashMap<String, HashMap<String, Handshakes>>,
    /// Tracked flows that were forgotten for want of room.
    pub forgotten: u64,
    /// What the agent counted.
    pub tally: Arc<Tally>,
    /// When the agent answered, in seconds since 1970.
    pub heartbeat: f64,
}

/// A service, as far as there are figures of it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The canary's part of the clients, from 0 to 1, as the kernel has it.
    pub split: f64,
    /// The rollout that it has or had: its phase, and its step from 1.
    pub rollout: Option<(Phase, usize)>,
    /// Its pools.
    pub pools: Vec<Pool>,
}

/// A pool, likewise.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it is used for.
    pub role: PoolRole,
    /// Whether so few backends are healthy that health is ignored.
    pub panic: bool,
    /// Health checks that failed.
    pub failures: Failures,
    /// Its backends; removed ones that still finish flows are among them.
    pub backends: Vec<Backend>,
}

/// A backend, likewise. (There are thousands, which the agent puts together while others wait: it owns nothing.)
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is gone from the configuration.
    pub terminating: bool,
    /// What the operator wants of it.
    pub state: AdminState,
    /// What its checks say.
    pub health: HealthState,
    /// Its weight, as it holds.
    pub weight: u16,
    /// Slots that lead to it.
    pub slots: u32,
    /// Flows of it that are tracked.
    pub tracked_flows: u64,
    /// What its breaker keeps away, from 0 to 1.
    pub kept_away: f64,
    /// Health checks that have ended.
    pub checks: u64,
    /// How long the last one took, in seconds.
    pub last_check: f64,
    /// What has gone through it.
    pub traffic: Traffic,
    /// What became of its connections.
    pub watch: Watch,
}

/// A figure of one pool that an analysis looks at.
#[derive(Clone, Debug)]
pub struct Analysed {
    /// The service's name.
    pub service: String,
    /// The pool's.
    pub pool: String,
    /// The figure's.
    pub metric: String,
    /// The figure.
    pub value: f64,
}

impl Scrape {
    /// In the text format, by pieces, each for an empty one; ends early when `hand_over` says that nobody takes them any more.
    pub fn write(&self, hand_over: impl FnMut(String) -> Option<String>) {
        let all = families::Subjects::of(self);
        text::write(families::of(self, &all), hand_over);
    }
}
