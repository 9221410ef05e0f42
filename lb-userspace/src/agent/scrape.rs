//! What is told to Prometheus, and to the status page.

use std::collections::HashSet;

use super::Agent;
use crate::api::{BackendPath, ClientCount, Event, RolloutStatus, Status};
use crate::metrics::{Analysed, Checks, Scrape};
use crate::rollout::engine::Phase;

impl Agent {
    /// All figures, as they are now.
    pub(crate) fn scrape(&mut self) -> Scrape {
        let checks = self.checks();
        let status = self.status();
        let mut known: HashSet<(&str, &str)> = HashSet::new();
        for service in &status.services {
            let backends = service.pools.iter().flat_map(|pool| &pool.backends);
            known.extend(backends.map(|backend| (service.name.as_str(), backend.name.as_str())));
        }
        let tally = self.log.tally(move |tally| {
            tally.forget_others(|service, backend| known.contains(&(service, backend)));
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
            handshakes: self.all_handshakes(),
            watches: self
                .publisher
                .registry
                .backend_ids()
                .map(|id| (id, self.publisher.maps.watches.read(id.into())))
                .collect(),
            analyses: self.analyses(),
            checks,
            forgotten: self.books.forgotten(),
            tally,
            heartbeat: jiff::Timestamp::now().as_microsecond() as f64 / 1e6,
        }
    }
    /// What has come of health checks so far.
    fn checks(&mut self) -> Checks {
        let pools = self.desired.services();
        let pools = pools.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        for (service, pool) in pools {
            for backend in &pool.backends {
                let id = self.targets.ids.get(&(service.name.clone(), backend.address)).copied();
                let Some((id, report)) = id.and_then(|id| Some((id, self.scheduler.report(id)?))) else {
                    continue;
                };
                let name = BackendPath::name_of(backend.address);
                self.checks.note(service.name.as_str(), pool.name.as_str(), &name, id, &report.counters);
            }
        }
        let known: HashSet<_> = self.targets.ids.values().copied().collect();
        self.checks.forget_others(&known);
        self.checks.clone()
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
    /// The whole at a glance.
    pub(crate) fn whole(&self) -> Status {
        self.status()
    }

    /// Every rollout that is under way, or was the last one of its service.
    pub(crate) fn all_rollouts(&self) -> Vec<RolloutStatus> {
        let names = self.desired.intents.iter().filter(|(_, intent)| intent.rollout.is_some());
        names.filter_map(|(name, _)| self.rollout_status(name.as_str()).ok()).collect()
    }

    /// The newest events, the oldest first.
    pub(crate) fn newest_events(&self, count: usize) -> Vec<Event> {
        self.log.newest(count)
    }
}
