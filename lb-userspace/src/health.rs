//! Active health checks.
//!
//! The caller names its targets ([`Scheduler::update`]), and gets a [`HealthEvent`] each time that one of them
//! changes between up and down. What that means for a table is policy, and is decided elsewhere.
//!
//! ```text
//! Target ── schedule (when) ── probe (one attempt) ┬─ judge (what it means) ──── HealthEvent
//!                                                  └─ advice (an agent's words) ─┘
//! ```
//!
//! `schedule.rs`, `judge.rs` and `advice.rs` are pure: they get the time as an argument. `scheduler.rs` gives them a clock
//! and sockets. Probes of the `dsr` modes may go as clients' packets go (`vip/`). A further type of check is a variant of [`CheckKind`], a file under `probe/`, and its names in
//! [`FailureKind`]. [`Hooks`] run what an operator wants to be run when a backend goes down.
//!
//! # What is promised
//! A target that stops answering is reported down no later than `unhealthy * interval + timeout` after it stopped, or
//! sooner with a fast interval ([`Timing::detection_bound`]), as long as the agent gets the CPU and the sockets that its checks need;
//! [`Load::late`] counts the checks that it could not start in time.

mod advice;
mod check;
mod command;
mod hook;
mod judge;
mod probe;
mod schedule;
mod scheduler;
mod vip;

pub use advice::{Advice, NoWords, Wish, Words};
pub use check::{
    Alpn, Check, CheckKind, GrpcCheck, HttpCheck, HttpCheckError, MIN_INTERVAL, StatusRanges,
    StatusRangesError, Target, TargetId, Timing, TimingError, Tls, Trust, UdpCheck,
};
pub use command::{Command, Output, Running};
pub use hook::Hooks;
pub use judge::{Health, Judge, Thresholds, Transition};
pub use probe::{Failure, FailureKind, Miss, ProbeResult, ServingStatus, Trouble, probe};
pub use schedule::{Counters, Report};
pub use scheduler::{HealthEvent, Load, Scheduler};
pub use vip::{Roads, Via};
