//! What is told to Prometheus, and to the status page.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use lb_common::verdict::Counters;

use super::Agent;
use crate::api::{BackendPath, ClientCount, Event, RolloutStatus, Status};
use crate::metrics::{Analysed, Scrape};
use crate::netlink;
use crate::rollout::engine::Phase;

impl Agent {
    /// All figures, as they are now.
    pub(crate) fn scrape(&mut self) -> Scrape {
        self.note_checks();
        let status = self.brief_status();
        self.forget_uncounted(&status);
        let rollouts = self.desired.intents.iter().filter_map(|(name, intent)| {
            let rollout = intent.rollout.as_ref()?;
            let step = if rollout.phase == Phase::Preparing { 0 } else { rollout.step + 1 };
            Some((name.as_str().to_owned(), (rollout.phase, step)))
        });
        let places = self.publisher.maps.counters_by_place().unwrap_or_default();
        Scrape {
            status,
            interfaces: self.by_interface(&places),
            // As for the status: what cannot be read shows nothing.
            counters: places.iter().fold(Counters::default(), |mut sum, counters| {
                sum += *counters;
                sum
            }),
            rollouts: rollouts.collect(),
            handshakes: self.all_handshakes(),
            watches: self
                .publisher
                .registry
                .backend_ids()
                .map(|id| (id, self.publisher.maps.watches.read(id.into())))
                .collect(),
            analyses: self.analyses(),
            checks: Arc::clone(&self.checks),
            forgotten: self.books.forgotten(),
            tally: self.log.counted(),
            heartbeat: jiff::Timestamp::now().as_microsecond() as f64 / 1e6,
        }
    }

    /// What came in by each configured interface (by its ports, if it is a bond). Those whose numbers end alike are counted
    /// together, which their label lists.
    fn by_interface(&self, places: &[Counters]) -> Vec<(String, Counters)> {
        let links = self.links.snapshot();
        let mut groups: Vec<(BTreeSet<u32>, String)> = Vec::new();
        for name in self.configured_interfaces() {
            let attached = self.kernel.attached.iter().find(|attached| attached.name == name);
            let arrivals = attached.map(|attached| netlink::arrivals(&links, attached.ifindex));
            let mut own: BTreeSet<u32> = arrivals.iter().flatten().copied().map(Counters::place).collect();
            let mut names = String::new();
            groups.retain_mut(|(known, others)| {
                let apart = known.is_disjoint(&own);
                if !apart {
                    own.append(known);
                    names += &format!("{others},");
                }
                apart
            });
            groups.push((own, names + &name));
        }
        let sum = |group: BTreeSet<u32>| {
            let counters = group.iter().filter_map(|place| places.get(*place as usize));
            counters.fold(Counters::default(), |mut sum, counters| {
                sum += *counters;
                sum
            })
        };
        groups.into_iter().map(|(group, names)| (names, sum(group))).collect()
    }

    /// Backends that are gone are not counted any more.
    fn forget_uncounted(&mut self, status: &Status) {
        let pools = || status.services.iter().flat_map(|it| it.pools.iter().map(move |pool| (it, pool)));
        let backends: usize = pools().map(|(_, pool)| pool.backends.len()).sum();
        if self.log.counted().backends().max(self.checks.backends()) <= backends {
            return;
        }
        let each = pools().flat_map(|(service, pool)| pool.backends.iter().map(move |it| (service, it)));
        let known: HashSet<_> = each.map(|(service, it)| (service.name.as_str(), it.name.as_str())).collect();
        let is_known = |service: &str, backend: &str| known.contains(&(service, backend));
        self.log.tally(|tally| tally.forget_others(is_known));
        Arc::make_mut(&mut self.checks).forget_backends(is_known);
    }

    /// Takes in what has come of health checks so far.
    fn note_checks(&mut self) {
        let checks = Arc::make_mut(&mut self.checks);
        let pools = self.desired.services();
        let pools = pools.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        for (service, pool) in pools {
            for backend in &pool.backends {
                let id = self.targets.ids.get(&(service.name.clone(), backend.address)).copied();
                let name = || BackendPath::name_of(backend.address);
                let (of_service, of_pool) = (service.name.as_str(), pool.name.as_str());
                id.and_then(|id| {
                    self.scheduler
                        .look(id, |counters, _| checks.note(of_service, of_pool, name, id, counters))
                });
            }
        }
        if checks.targets() > self.targets.ids.len() {
            let known: HashSet<_> = self.targets.ids.values().copied().collect();
            checks.forget_others(&known);
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
