//! Rollouts.

use lb_common::measure::{BUCKETS, bucket_start};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Api, Share};
use crate::rollout::engine::Phase;
use crate::rollout::plan::{Bounds, Plan};

/// Body of `POST /v1/services/{s}/rollout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRollout {
    /// The pool that is rolled out.
    pub to: String,
    /// The canary's shares, one step each, instead of the configured ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<Share>>,
    /// How long each step lasts at least, in seconds, instead of what is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<f64>,
    /// Takes back the rollout that is under way, if one is, and begins this one.
    #[serde(default)]
    pub supersede: bool,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /v1/services/{s}/rollout/{order}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRollout {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to `GET /v1/services/{s}/rollout`, and to every order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutStatus {
    /// Version of the API.
    pub api: Api,
    /// The service.
    pub service: String,
    /// The pool that clients come from.
    pub from: String,
    /// The pool that is rolled out.
    pub to: String,
    /// Where it stands.
    pub phase: Phase,
    /// Where it stood when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_in: Option<Phase>,
    /// Whether it is paused.
    pub paused: bool,
    /// The step it is at, from 1; 0 before the first.
    pub step: usize,
    /// All of it, as it was when the rollout began.
    pub plan: Plan,
    /// Why it is where it is.
    pub reason: String,
    /// When it began (RFC 3339).
    pub began: String,
    /// How long the phase, or the step, has lasted; pauses do not count.
    pub elapsed_seconds: f64,
    /// How long it still lasts at least; absent where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<f64>,
    /// The canary's share that the rollout asks for, in percent.
    pub desired_percent: f64,
    /// How long it took this agent to roll it back: from the look at the figures that were too bad, or the arrival of an
    /// order, to the store after which no new flow enters the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_back_seconds: Option<f64>,
    /// What the clients did since the step began.
    pub observed: Observed,
    /// What became of their connections since then: of the canary's, then of the stable pool's; empty where nothing is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub telemetry: Vec<PoolTelemetry>,
    /// What analysis says.
    pub verdict: VerdictWord,
    /// The same in a sentence.
    pub verdict_reason: String,
    /// What it says that from.
    pub metrics: Vec<MetricStatus>,
    /// And what Prometheus says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryStatus>,
    /// Where the new pool alone is reached, while that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<PreviewStatus>,
}

/// How it stands with a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewStatus {
    /// Its address and port.
    pub address: String,
    /// Whether it reaches a backend of the pool.
    pub open: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// What the clients did since the step began: the canary's part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Observed {
    /// Of new connections, in percent; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Observation>,
    /// Of bytes to the backends, in percent; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_percent: Option<f64>,
}

/// What became of a pool's connections, as the kernel program saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolTelemetry {
    /// The pool.
    pub pool: String,
    /// Connections that began.
    pub tried: u64,
    /// Of these, connections that a backend has answered.
    pub answered: u64,
    /// Connections that a backend has refused.
    pub refused: u64,
    /// Connections whose client has asked again, since nobody had answered.
    pub repeated: u64,
    /// Connections that a backend has reset before it had sent a byte.
    pub reset_early: u64,
    /// Connections whose backend has sent its first byte.
    pub served: u64,
    /// Bytes to the backends.
    pub bytes: u64,
    /// Bytes from the backends.
    pub reply_bytes: u64,
    /// Connections of its backends that tables know: those that the hash alone does not explain.
    pub tracked: u64,
    /// From a client's SYN to its answer; absent where none was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake: Option<Quantiles>,
    /// From a client's SYN to the first byte of its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<Quantiles>,
    /// Only what clients send is seen (`dsr`): who was answered, refused or served is not, nor when.
    pub inferred: bool,
}

/// How long something took, in seconds: the upper end of the bucket in which each quantile lies (two buckets for each
/// doubling).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quantiles {
    /// Half of them took no longer.
    pub p50: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// Of how many clients; each counts once a step.
    pub of: u64,
}

impl Quantiles {
    /// Of a histogram; none of nothing.
    #[must_use]
    pub fn of(histogram: &[u64; BUCKETS]) -> Option<Self> {
        let of: u64 = histogram.iter().sum();
        if of == 0 {
            return None;
        }
        let quantile = |part: f64| {
            let rank = (of as f64 * part).ceil() as u64;
            let mut sum = 0;
            let bucket = histogram.iter().position(|count| {
                sum += count;
                sum >= rank
            });
            bucket_start(bucket.map_or(BUCKETS, |bucket| bucket + 1)) as f64 / 1e9
        };
        Some(Self { p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99), of })
    }
}

/// A share that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Observation {
    /// In percent.
    pub percent: f64,
    /// Where the true one lies in 95 of 100 cases (Wilson 1927): the lower end, in percent.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Of how many.
    pub of: u64,
}

impl Observation {
    /// Of `part` among `whole`; nothing of nothing.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Option<Self> {
        const Z: f64 = 1.959_964;
        if whole == 0 {
            return None;
        }
        let (n, p) = (whole as f64, part as f64 / whole as f64);
        let scale = 1.0 + Z * Z / n;
        let middle = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let percent = |part: f64| 100.0 * part.clamp(0.0, 1.0);
        Some(Self {
            percent: 100.0 * p,
            low: percent(middle - half),
            high: percent(middle + half),
            of: whole,
        })
    }
}

/// What analysis says, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictWord {
    /// Not worse, as far as enough clients can tell.
    Fine,
    /// Worse.
    Worse,
    /// Something, and not enough to be sure.
    Unsure,
    /// Too little to say anything.
    NoData,
}

impl VerdictWord {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Worse => "worse",
            Self::Unsure => "unsure",
            Self::NoData => "no data",
        }
    }
}

/// A figure of both pools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricStatus {
    /// Which, in words.
    pub name: String,
    /// The canary's clients that were seen, and of these, those that fared badly.
    pub canary: ClientCount,
    /// Likewise of the stable pool.
    pub stable: ClientCount,
    /// What a bet of 1 on "the canary is worse" has become; it is rolled back at [`limit`](Self::limit).
    pub evidence: f64,
    /// How much evidence it takes.
    pub limit: f64,
    /// What it says of the canary by itself.
    pub verdict: VerdictWord,
    /// The figure comes from what clients send only (`dsr`), and leaves out what backends answer.
    pub inferred: bool,
}

/// A figure of Prometheus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueryStatus {
    /// Its name in the configuration.
    pub name: String,
    /// The canary's figure when it was asked for last; absent where there was none, or no finite one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<f64>,
    /// The stable pool's, where it is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<f64>,
    /// What is a good one.
    pub bounds: Bounds,
    /// What it says of the canary.
    pub verdict: VerdictWord,
    /// The same in a sentence; empty where it is fine.
    pub verdict_reason: String,
    /// It is only talked about.
    pub shadow: bool,
}

/// Clients, and those of them that fared badly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientCount {
    /// Clients that tried.
    pub tried: u64,
    /// Of these, clients that fared badly.
    pub bad: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_ends_of_buckets() {
        let mut histogram = [0; BUCKETS];
        assert_eq!(Quantiles::of(&histogram), None);
        // 98 below 2 µs, one of 1 ms, one of a second.
        for (nanoseconds, count) in [(1_500, 98), (1_000_000, 1), (1_000_000_000, 1)] {
            histogram[lb_common::measure::bucket(nanoseconds)] += count;
        }
        let seen = Quantiles::of(&histogram).expect("some");
        assert_eq!((seen.of, seen.p50), (100, seen.p95));
        assert!((1.5e-6..3.1e-6).contains(&seen.p50), "{seen:?}");
        assert!((1e-3..2.1e-3).contains(&seen.p99), "{seen:?}");
    }

    #[test]
    fn an_observed_share_has_an_interval_around_it() {
        let seen = Observation::of(10, 100).expect("some");
        assert_eq!((seen.percent, seen.of), (10.0, 100));
        // As in Brown, Cai & DasGupta (2001).
        assert!((seen.low - 5.523).abs() < 1e-3 && (seen.high - 17.437).abs() < 1e-3, "{seen:?}");
        assert_eq!(Observation::of(0, 0), None);
        let none = Observation::of(0, 50).expect("some");
        assert_eq!(none.low, 0.0);
        assert!(none.high > 0.0);
    }
}
