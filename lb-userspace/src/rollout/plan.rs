//! The plan of a rollout: its steps, and what is asked before each goes on.

use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::web;

/// How a pool is rolled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RolloutPlan")]
pub struct Plan {
    /// One after the other. The last one is followed by 100 %.
    pub steps: Vec<Step>,
    /// How long the pool may take until it can serve.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub ready_within: Duration,
    /// How long 100 % is watched before the pool becomes the stable one.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub soak: Duration,
    /// What makes a canary a bad one.
    pub analysis: Analysis,
    /// Figures that Prometheus is asked for, beside what the kernel counts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub metrics: Vec<Metric>,
    /// The part of the canary's clients that fare badly at which the kernel program takes the canary back by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tripwire: Option<f64>,
    /// How long the kernel believes an agent that has fallen silent; then it sends no new flow to the canary.
    #[serde(with = "maybe_seconds", skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<f64>")]
    pub lease: Option<Duration>,
    /// Some clients are guests of the canary: a step of 0 % is open to them.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub guests: bool,
    /// New connections a second that the canary takes at most, below 100 %.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cap: Option<u32>,
    /// Where the pool alone is reached while the rollout is under way.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub preview: Option<SocketAddr>,
}

impl Plan {
    /// As others may see it: addresses of gates without what may be a secret in them. The journal keeps them whole, since the next
    /// agent goes on with the plan.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut plan = self.clone();
        for question in plan.steps.iter_mut().filter_map(|step| step.gate.as_mut()) {
            if let Gate::Http(url) = &mut question.what {
                *url = web::shown(url);
            }
        }
        for metric in &mut plan.metrics {
            metric.server = web::shown(&metric.server);
        }
        plan
    }
}

/// A share, and what has to hold before the next one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RolloutStep")]
pub struct Step {
    /// The canary's share in percent.
    pub weight: f64,
    /// At least so long.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub hold: Duration,
    /// Whether analysis has to agree.
    pub analyze: bool,
    /// Who else has to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gate: Option<Question>,
}

/// A gate, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Who is asked.
    pub what: Gate,
    /// How long the answer may take; `None`: for ever.
    #[serde(with = "maybe_seconds", skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<f64>")]
    pub timeout: Option<Duration>,
    /// What no answer means.
    #[serde(default)]
    pub on_timeout: OnGateTimeout,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// An operator (`lbctl rollout approve`).
    Approve,
    /// A command: exit code 0 is yes, 75 (EX_TEMPFAIL) is not yet, anything else is no.
    Command(Vec<String>),
    /// A GET of this address: 200 is yes, 202, 429 and 503 are not yet, anything else is no.
    Http(String),
    /// A file: yes once it is there.
    File(String),
}

/// What no answer at a gate means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnGateTimeout {
    /// No.
    #[default]
    Fail,
    /// Yes.
    Pass,
}

/// What makes a canary a bad one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// Whether a bad one is rolled back; otherwise it is only said (`shadow`).
    pub enforce: bool,
    /// Clients of the canary that must have been seen in a step before it can be fine.
    pub min_clients: u64,
    /// How many times as often as the stable pool's clients the canary's may fare badly.
    pub tolerance: f64,
    /// The part of the canary's clients that may fare badly whatever the stable pool does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_failure_ratio: Option<f64>,
    /// The probability that a canary which is not worse is rolled back all the same.
    pub alpha: f64,
    /// How long a step may go on beyond its time for want of data or of certainty.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub patience: Duration,
    /// What too little data means.
    pub on_no_data: OnNoData,
}

/// A figure that Prometheus is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RolloutMetric")]
pub struct Metric {
    /// Its name, for people and for labels.
    pub name: String,
    /// Where Prometheus is.
    pub server: String,
    /// In PromQL; [`Metric::PLACEHOLDERS`] are filled in.
    pub query: String,
    /// What `{{window}}` stands for.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub window: Duration,
    /// From one question to the next; the first one comes so long after a step has begun.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub timeout: Duration,
    /// What is a good one.
    pub bounds: Bounds,
    /// So many bad ones in a row make a bad canary.
    pub failure_limit: u32,
    /// What a figure that is not there means.
    pub on_no_data: OnNoData,
    /// It is only talked about.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub shadow: bool,
}

impl Metric {
    /// What may stand in a query: the service, the pool that is asked about, the window.
    pub const PLACEHOLDERS: [&'static str; 3] = ["{{service}}", "{{pool}}", "{{window}}"];

    /// The query about one pool.
    #[must_use]
    pub fn about(&self, service: &str, pool: &str) -> String {
        let window = match self.window.as_millis() {
            ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
            ms => format!("{ms}ms"),
        };
        // Names are made of letters, digits, `.`, `_` and `-`: they need no escape in PromQL's strings.
        let [a, b, c] = Self::PLACEHOLDERS;
        self.query.replace(a, service).replace(b, pool).replace(c, &window)
    }
}

/// Between what a figure has to lie. Each bound that is there has to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// At most this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max: Option<f64>,
    /// At least this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min: Option<f64>,
    /// At most so many times the stable pool's figure at the same time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_ratio: Option<f64>,
    /// At least so many times the stable pool's figure at the same time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_ratio: Option<f64>,
}

impl Bounds {
    /// Whether the stable pool has to be asked about, too.
    #[must_use]
    pub const fn are_relative(&self) -> bool {
        self.max_ratio.is_some() || self.min_ratio.is_some()
    }
}

/// What too little data means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnNoData {
    /// Wait.
    Hold,
    /// Go on.
    Pass,
    /// Go back, when patience is over.
    Fail,
}

/// Durations in the journal: seconds, with a fraction.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(duration.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}

mod maybe_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.serialize_f64(duration.as_secs_f64()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        seconds.map(|seconds| Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rollout;

    #[test]
    fn what_others_see_of_a_plan_has_no_secrets() {
        let mut plan = Rollout::default().plan(None, None);
        plan.steps[0].gate = Some(Question {
            what: Gate::Http("https://ops:hunter2@gate.example/go?token=hunter2".to_owned()),
            timeout: None,
            on_timeout: OnGateTimeout::Fail,
        });
        let text = serde_json::to_string(&plan.shown()).expect("JSON");
        assert!(text.contains("https://gate.example/go") && !text.contains("hunter2"), "{text}");
        let kept = serde_json::to_string(&plan).expect("JSON");
        assert!(kept.contains("token=hunter2"), "the next agent asks the same");
    }
}
