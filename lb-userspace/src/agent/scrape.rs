//! What is told to Prometheus.

use super::Agent;
use crate::api::ClientCount;
use crate::metrics::{Analysed, Scrape};
use crate::rollout::engine::Phase;

impl Agent {
    /// All figures, as they are now.
    pub(crate) fn scrape(&self) -> Scrape {
        let status = self.status();
        let known = |name: &str, backend: &str| {
            let service = status.services.iter().find(|service| service.name == name);
            let mut backends =
                service.into_iter().flat_map(|service| &service.pools).flat_map(|pool| &pool.backends);
            backends.any(|known| known.name == backend)
        };
        let tally = self.log.tally(|tally| {
            tally.forget_others(known);
            tally.clone()
        });
        let rollouts = self.desired.intents.iter().filter_map(|(name, intent)| {
            let rollout = intent.rollout.as_ref()?;
            let step = if rollout.phase == Phase::Preparing { 0 } else { rollout.step + 1 };
            Some((name.as_str().to_owned(), rollout.phase, step))
        });
        Scrape {
            status,
            interfaces: self.configured_interfaces(),
            // As for the status: what cannot be read shows nothing.
            counters: self.publisher.maps.counters().unwrap_or_default(),
            rollouts: rollouts.collect(),
            analyses: self.analyses(),
            tally,
            heartbeat: jiff::Timestamp::now().as_microsecond() as f64 / 1e6,
        }
    }

    /// What the analysis of each rollout under way looks at.
    fn analyses(&self) -> Vec<Analysed> {
        let names = self.desired.intents.keys().filter(|name| self.follows.contains_key(*name));
        let mut analyses = Vec::new();
        for status in names.filter_map(|name| self.rollout_status(name.as_str()).ok()) {
            let mut note = |pool: &String, metric: &str, value: f64| {
                let (service, pool) = (status.service.clone(), pool.clone());
                analyses.push(Analysed { service, pool, metric: metric.to_owned(), value });
            };
            let ratio = |seen: ClientCount| seen.bad as f64 / seen.tried as f64;
            for metric in &status.metrics {
                for (pool, seen) in [(&status.to, metric.canary), (&status.from, metric.stable)] {
                    if seen.tried > 0 {
                        note(pool, &metric.name.replace(' ', "_"), ratio(seen));
                    }
                }
            }
            for query in &status.queries {
                for (pool, figure) in [(&status.to, query.canary), (&status.from, query.stable)] {
                    if let Some(figure) = figure {
                        note(pool, &query.name, figure);
                    }
                }
            }
        }
        analyses
    }
}
