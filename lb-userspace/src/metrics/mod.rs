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
use std::sync::Arc;

use lb_common::verdict::Counters;
use lb_common::watch::Watch;

use crate::api::Status;
use crate::rollout::engine::Phase;

pub use checks::Checks;
pub use handshakes::Handshakes;
pub use listener::{ListenError, Listener, Where};
pub use tally::{Cause, Tally};

/// All that there is to tell, at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The agent's view.
    pub status: Status,
    /// The configured interfaces, each with what the kernel counted of packets that came in there.
    pub interfaces: Vec<(String, Counters)>,
    /// The kernel's counters, of all interfaces.
    pub counters: Counters,
    /// The rollout of each service that has or had one, by the service's name: its phase, and its step from 1.
    pub rollouts: HashMap<String, (Phase, usize)>,
    /// What the analysis of rollouts under way looks at.
    pub analyses: Vec<Analysed>,
    /// Handshakes of pools that are or were measured, by the names of service and pool.
    pub handshakes: HashMap<String, HashMap<String, Handshakes>>,
    /// What became of the connections of each backend, by its id.
    pub watches: HashMap<u16, Watch>,
    /// Health checks.
    pub checks: Arc<Checks>,
    /// Tracked flows that were forgotten for want of room.
    pub forgotten: u64,
    /// What the agent counted.
    pub tally: Arc<Tally>,
    /// When the agent answered, in seconds since 1970.
    pub heartbeat: f64,
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
    /// In the text format, by pieces; ends early when `hand_over` says that nobody takes them any more.
    pub fn write(&self, hand_over: impl FnMut(String) -> bool) {
        let all = families::Subjects::of(self);
        text::write(families::of(self, &all), hand_over);
    }
}
