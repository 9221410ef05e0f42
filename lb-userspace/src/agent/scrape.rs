//! What is told to Prometheus, and to the status page.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

use lb_common::verdict::Counters;
use lb_common::watch::Watch;

use super::Agent;
use super::meters::Meters;
use super::view::{Placed, address_of, health_state};
use crate::api::{ClientCount, Event, HealthState, RolloutStatus, Status};
use crate::compile::{BackendView, id_of, key_of};
use crate::config::{self, AdminState};
use crate::metrics::{Analysed, Backend, Checks, Pool, Scrape, Service};
use crate::netlink;
use crate::publish::split;
use crate::rollout::engine::Phase;

impl Agent {
    /// All figures, as they are now.
    pub(crate) fn scrape(&mut self) -> Scrape {
        let services = self.figures();
        self.forget_uncounted(&services);
        let dataplane = self.dataplane_status();
        let places = self.publisher.maps.counters_by_place().unwrap_or_default();
        Scrape {
            findings: self.findings(&dataplane),
            dataplane,
            services,
            interfaces: self.by_interface(&places),
            // As for the status: what cannot be read shows nothing.
            counters: places.iter().fold(Counters::default(), |mut sum, counters| {
                sum += *counters;
                sum
            }),
            handshakes: self.all_handshakes(),
            analyses: self.analyses(),
            forgotten: self.books.forgotten(),
            tally: self.log.counted(),
            heartbeat: jiff::Timestamp::now().as_microsecond() as f64 / 1e6,
        }
    }

    /// What there is to tell of every service. Takes in what has come of health checks so far.
    fn figures(&mut self) -> Vec<Service> {
        let mut checks = std::mem::take(&mut self.checks);
        let meters = Meters::of_all(&self.publisher);
        let services = self.desired.services();
        let services = services.map(|service| self.service_figures(&service, &meters, &mut checks)).collect();
        if checks.targets() > self.targets.ids.len() {
            let known: HashSet<_> = self.targets.ids.values().copied().collect();
            checks.forget_others(&known);
        }
        self.checks = checks;
        services
    }

    fn service_figures(
        &self,
        service: &config::Service,
        meters: &Meters<'_>,
        checks: &mut Checks,
    ) -> Service {
        let index = self.publisher.registry.service_index(&key_of(service));
        let now = index.map(|index| self.publisher.maps.services.read(index).split()).unwrap_or_default();
        let rollout = self.desired.intents.get(&service.name).and_then(|intent| intent.rollout.as_ref());
        let pools = self.placed_pools(service, index).map(|placed| Pool {
            name: placed.it.name.clone(),
            role: placed.role,
            panic: placed.it.panic,
            backends: self.pool_figures(service, index, &placed, meters, checks),
            failures: checks.of_pool(service.name.as_str(), &placed.it.name),
        });
        Service {
            name: service.name.as_str().to_owned(),
            split: split::percent(now.new()) / 100.0,
            rollout: rollout.map(|rollout| {
                (rollout.phase, if rollout.phase == Phase::Preparing { 0 } else { rollout.step + 1 })
            }),
            pools: pools.collect(),
        }
    }

    fn pool_figures(
        &self,
        service: &config::Service,
        index: Option<u32>,
        placed: &Placed<'_>,
        meters: &Meters<'_>,
        checks: &mut Checks,
    ) -> Vec<Backend> {
        let name = service.name.as_str();
        let mut key = (service.name.clone(), SocketAddr::from(([0; 4], 0)));
        let configured = placed.it.backends.iter().map(|view| {
            let id = index.and_then(|index| id_of(service, view.address, index, &self.publisher.registry));
            key.1 = view.address;
            let target = self.targets.ids.get(&key).copied();
            let last = target.and_then(|target| {
                self.scheduler.look(target, |counters, last| {
                    checks.note(name, &placed.it.name, view.address, target, counters);
                    last.map(|result| result.duration)
                })
            });
            let last_check = last.flatten().unwrap_or_default().as_secs_f64();
            let counted = self.counted(id.unwrap_or(0), view.address, placed, meters);
            figures_of(view, Backend { checks: checks.of_backend(name, view.address), last_check, ..counted })
        });
        let mut backends: Vec<Backend> = configured.collect();
        backends.extend(placed.gone.iter().map(|&(id, backend)| {
            let counted = self.counted(id, address_of(backend), placed, meters);
            Backend { checks: checks.of_backend(name, counted.address), ..counted }
        }));
        backends
    }

    /// What the kernel's tables say of an id, and of a backend that nothing else is known of.
    fn counted(&self, id: u16, address: SocketAddr, placed: &Placed<'_>, meters: &Meters<'_>) -> Backend {
        Backend {
            address,
            terminating: true,
            state: AdminState::Drain,
            health: HealthState::Unchecked,
            weight: 0,
            slots: placed.slots(id),
            tracked_flows: self.swept.load(id).flows,
            kept_away: 0.0,
            checks: 0,
            last_check: 0.0,
            traffic: meters.backend(id),
            watch: if id == 0 { Watch::default() } else { self.publisher.maps.watches.read(id.into()) },
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
    fn forget_uncounted(&mut self, services: &[Service]) {
        let pools = || services.iter().flat_map(|service| service.pools.iter().map(move |it| (service, it)));
        let backends: usize = pools().map(|(_, pool)| pool.backends.len()).sum();
        if self.log.counted().backends().max(self.checks.backends()) <= backends {
            return;
        }
        let each = pools().flat_map(|(service, pool)| pool.backends.iter().map(move |it| (service, it)));
        let known: HashSet<_> = each.map(|(service, it)| (service.name.as_str(), it.address)).collect();
        let is_known = |service: &str, backend: SocketAddr| known.contains(&(service, backend));
        self.log.tally(|tally| tally.forget_others(is_known));
        self.checks.forget_backends(is_known);
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

/// With what holds of a backend that is configured.
fn figures_of(view: &BackendView, counted: Backend) -> Backend {
    Backend {
        terminating: false,
        state: view.state,
        health: health_state(view.health),
        weight: view.weight,
        kept_away: view.gate.eighths().map_or(0.0, |passes| 1.0 - f64::from(passes) / 8.0),
        ..counted
    }
}
