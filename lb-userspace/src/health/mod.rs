//! Active health checks.
//!
//! The caller names its targets ([`Scheduler::update`]), and gets a [`HealthEvent`] each time that one of them
//! changes between up and down. What that means for a table is policy, and is decided elsewhere.
//!
//! ```text
//! Target ── schedule (when) ── probe (one attempt) ── judge (what it means) ── HealthEvent
//! ```
//!
//! `schedule.rs` and `judge.rs` are pure: they get the time as an argument. `scheduler.rs` gives them a clock and
//! sockets. A further type of check is a variant of [`CheckKind`], a file under `probe/`, and its names in
//! [`FailureKind`].
//!
//! # What is promised
//! A target that stops answering is reported down no later than `unhealthy * interval + timeout` after it stopped
//! ([`Timing::detection_bound`]), as long as the agent gets the CPU and the sockets that its checks need;
//! [`Load::late`] counts the checks that it could not start in time.

mod check;
mod judge;
mod probe;
mod schedule;
mod scheduler;

pub use check::{
    Check, CheckKind, HttpCheck, HttpCheckError, MIN_INTERVAL, StatusRanges, StatusRangesError, Target,
    TargetId, Timing, TimingError,
};
pub use judge::{Health, Judge, Thresholds, Transition};
pub use probe::{Failure, FailureKind, Miss, ProbeResult, Trouble, probe};
pub use schedule::{Counters, Report};
pub use scheduler::{HealthEvent, Load, Scheduler};
