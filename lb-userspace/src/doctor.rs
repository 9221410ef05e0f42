//! `lbctl doctor`: what is wrong with a host, why it matters, and the command that mends it.
//!
//! [`collect`](collect::collect) looks, and changes nothing; [`judge`](judge::judge) is a pure function of what was found.
//! It needs no agent, and as much privilege as there is: what could not be looked at is said to be so.

mod collect;
mod facts;
mod judge;
mod nic;
mod wire;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use collect::{Places, collect};
pub use facts::*;
pub use judge::{RULES, Rule, judge};

use crate::api::{Api, Severity};

/// What a doctor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Version of the API.
    pub api: Api,
    /// Whether anything does not work.
    pub wrong: bool,
    /// Everything that was looked at, in order.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Its place in the list, from 1.
    pub number: usize,
    /// Its code, such as `LB1113`: `lbctl help LB1113` tells more.
    pub code: String,
    /// What was looked at.
    pub title: String,
    /// Why it matters.
    pub why: String,
    /// How it is.
    pub outcome: Outcome,
    /// What was found: a summary, or each thing that is amiss.
    pub found: Vec<Found>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It could not be looked at, or does not apply.
    Skipped,
    /// It works, though not as it should.
    Warning,
    /// It does not work.
    Error,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// How grave it is.
    pub severity: Severity,
    /// What it is about; empty: the host.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// The command that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
