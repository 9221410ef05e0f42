//! What a load client has seen.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Counts of flows (connections, or datagram exchanges) by who answered them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Flows that have ended, well or not.
    pub flows: u64,
    /// Answers of all flows: more than flows where one asks several times.
    pub answers: u64,
    /// Flows by the name of the server that answered first.
    pub answered: BTreeMap<String, u64>,
    /// Flows that failed, by one word why: `refused`, `reset`, `timeout`, `closed`, `unreachable`,
    /// `status 503`, `changed server`, or what the system says.
    pub failed: BTreeMap<String, u64>,
    /// Since the start.
    pub elapsed: Duration,
    /// From before connecting to the first answer.
    pub latency: Latency,
    pub(super) names: Vec<String>,
    /// By flow number, an index into `names`.
    pub(super) homes: Vec<Option<u16>>,
}

impl Tally {
    /// Flows that `server` answered first.
    #[must_use]
    pub fn answered_by(&self, server: &str) -> u64 {
        self.answered.get(server).copied().unwrap_or(0)
    }

    /// Flows that somebody answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Flows that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The share of answered flows that these servers have, from 0 to 1.
    #[must_use]
    pub fn share(&self, servers: &[&str]) -> f64 {
        let theirs: u64 = servers.iter().map(|server| self.answered_by(server)).sum();
        theirs as f64 / self.answered().max(1) as f64
    }

    /// Who answered flow `number`, counted from 0: the flow of source `number` where there are as
    /// many sources as flows. `None` if it failed. Only known after [`Load::run`](super::Load::run).
    #[must_use]
    pub fn home_of(&self, number: usize) -> Option<&str> {
        let index = (*self.homes.get(number)?)?;
        self.names.get(usize::from(index)).map(String::as_str)
    }

    /// What came after an earlier look at the same load. The latency stays that of all.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            now.iter()
                .map(|(key, count)| (key.clone(), count - then.get(key).unwrap_or(&0)))
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Self {
            flows: self.flows - earlier.flows,
            answers: self.answers - earlier.answers,
            answered: less(&self.answered, &earlier.answered),
            failed: less(&self.failed, &earlier.failed),
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
            ..self.clone()
        }
    }

    /// Flows a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.flows as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// How long answers took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half were faster.
    pub median: Duration,
    /// 99 of 100 were faster.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Latency {
    pub(super) fn of(samples: &mut [Duration]) -> Self {
        if samples.is_empty() {
            return Self::default();
        }
        samples.sort_unstable();
        let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
        Self { median: at(50), p99: at(99), max: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_only_what_is_new() {
        let count =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let earlier = Tally { flows: 3, answered: count(&[("a", 3)]), ..Tally::default() };
        let later = Tally {
            flows: 6,
            answered: count(&[("a", 3), ("b", 2)]),
            failed: count(&[("reset", 1)]),
            ..Tally::default()
        };
        let new = later.since(&earlier);
        assert_eq!((new.flows, new.answered_by("a"), new.answered_by("b")), (3, 0, 2));
        assert_eq!((new.failed(), new.share(&["b"])), (1, 1.0));
    }

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        let latency = Latency::of(&mut samples);
        let milliseconds = [latency.median, latency.p99, latency.max].map(|d| d.as_millis());
        assert_eq!(milliseconds, [50, 99, 100]);
    }
}
