//! Why a flow goes where it goes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;

/// Answer to `POST /v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Version of the API.
    pub api: Api,
    /// The road of the flow's first packet, in order.
    pub steps: Vec<Step>,
    /// What becomes of it: `transmit`, `drop` or `pass`.
    pub verdict: String,
    /// Why, as its counter is named.
    pub reason: String,
    /// The service it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The pool it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The backend it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// A step of the road.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Its name: `service`, `split`, `slot` and so on.
    pub title: String,
    /// What was decided, in a sentence.
    pub text: String,
    /// What it was decided from, such as a hash and what it was compared with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
}
