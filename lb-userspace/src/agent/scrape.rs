//! What is told to Prometheus.

use super::Agent;
use crate::metrics::Scrape;
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
            tally,
            heartbeat: jiff::Timestamp::now().as_microsecond() as f64 / 1e6,
        }
    }
}
