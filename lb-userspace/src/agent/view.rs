//! What the agent shows.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{self, LAYOUT};
use lb_common::limit::Limit;
use lb_common::settle::Takers;
use lb_common::verdict::{Action, Reason};

use super::Agent;
use super::meters::Meters;
use super::overrides::overrides;
use crate::api::{
    Answer, Api, ApiError, BackendPath, BackendStatus, BreakerStatus, ConnectionCount, DataplaneStatus,
    DrainStatus, EjectionStatus, ErrorCode, HealthState, HealthStatus, InterfaceStatus, KeepOrReset, NextHop,
    Outcomes, PoolRole, PoolStatus, PriorityStatus, ProgramStatus, ProtectionStatus, Quantiles, Room,
    ServiceQuery, ServiceStatus, Services, Severity, SlotRoom, SplitStatus, Status, SteeringStatus, Traffic,
    XdpMode,
};
use crate::clock;
use crate::compile::{BackendView, Compiled, Health, PoolView, WhyNot, id_of, key_of};
use crate::config::{self, Protection, Service};
use crate::dataplane::Native;
use crate::dataplane::bpf::Mapped;
use crate::health::{Advice, Miss};
use crate::outlier::Gate;
use crate::publish::split;
use crate::state::Intent;

impl Agent {
    /// The whole at a glance, with every service.
    pub(super) fn status(&self) -> Status {
        self.status_with(Services { services: self.all_services(), ..Services::default() })
    }

    /// The whole at a glance, with some of the services.
    pub(super) fn status_page(&self, query: &ServiceQuery) -> Answer<Status> {
        self.services(query).map(|page| self.status_with(page))
    }

    fn status_with(&self, page: Services) -> Status {
        let dataplane = self.dataplane_status();
        let findings = self.findings(&dataplane);
        let uptime = jiff::Timestamp::now().duration_since(self.kernel.started);
        Status {
            api: Api::V1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            started_at: self.kernel.started.to_string(),
            uptime_seconds: uptime.as_secs().max(0) as u64,
            revision: self.newest_revision(),
            degraded: findings.iter().any(|finding| finding.severity == Severity::Error),
            findings,
            dataplane,
            services: page.services,
            next: page.next,
        }
    }

    /// Number of the newest change.
    pub(super) fn newest_revision(&self) -> u64 {
        self.journal.last()
    }

    /// Every service.
    pub(super) fn all_services(&self) -> Vec<ServiceStatus> {
        let meters = Meters::of_all(&self.publisher);
        self.desired.services().map(|service| self.service_status(&service, &meters)).collect()
    }

    /// One service, or a page of them.
    pub(super) fn services(&self, query: &ServiceQuery) -> Answer<Services> {
        let all = &self.desired.config.services;
        let (first, limit) = match &query.service {
            Some(name) => {
                let known = self.known(name)?;
                (all.iter().position(|service| service.name == known.name).unwrap_or_default(), 0)
            }
            None => (self.first_after(query)?, query.limit()?),
        };
        let mut page = Vec::new();
        let mut room = limit;
        for service in &all[first.min(all.len())..] {
            let service = self.desired.completed(service);
            // A service without backends takes a line, too.
            let size = service.pools.iter().map(|pool| pool.backends.len()).sum::<usize>().max(1);
            if !page.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            page.push(service);
        }
        let rest = query.service.is_none() && first + page.len() < all.len();
        let next = page.last().filter(|_| rest).map(|service| service.name.as_str().to_owned());
        let meters = Meters::of_some(&self.publisher, page.iter().map(|service| key_of(service)));
        let services = page.iter().map(|service| self.service_status(service, &meters)).collect();
        Ok(Services { api: Api::V1, services, next })
    }

    /// Where the page begins that is asked for.
    fn first_after(&self, query: &ServiceQuery) -> Answer<usize> {
        let Some(after) = &query.after else { return Ok(0) };
        let mut names = self.desired.config.services.iter().map(|service| service.name.as_str());
        match names.position(|name| name == after) {
            Some(last) => Ok(last + 1),
            None => {
                let message = format!("the service `{after}`, which the page before ended with, is gone");
                Err(ApiError::new(ErrorCode::RevisionConflict, message)
                    .about("after")
                    .remedy("begin again with the first page, which has no `after`"))
            }
        }
    }

    pub(super) fn known(&self, name: &str) -> Answer<&Service> {
        let names = self.desired.config.services.iter().map(|service| service.name.as_str());
        self.desired.service(name).ok_or_else(|| ApiError::no_service(name, names))
    }

    fn service_status(&self, service: &Service, meters: &Meters<'_>) -> ServiceStatus {
        let intent = self.desired.intents.get(&service.name);
        let index = self.publisher.registry.service_index(&key_of(service));
        let in_kernel = index.map(|index| self.publisher.maps.services.read(index)).unwrap_or_default();
        let stable = intent.map(|intent| intent.stable.as_str().to_owned()).unwrap_or_default();
        let canary = intent.and_then(|intent| intent.canary.as_ref()).map(|name| name.as_str().to_owned());
        let percent = intent.map_or(0.0, |intent| intent.split);
        let now = in_kernel.split();
        let mut pools = self.pools(service, index, percent, meters);
        pools.sort_by_key(|pool| pool.role != PoolRole::Stable);
        ServiceStatus {
            name: service.name.as_str().to_owned(),
            vip: service.vip,
            port: service.port,
            protocol: service.protocol,
            mode: service.mode,
            revision: self.desired.revisions.get(&service.name).copied().unwrap_or_default(),
            split: SplitStatus {
                percent,
                new_ratio: split::percent(now.new()) / 100.0,
                home_ratio: split::percent(in_kernel.home()) / 100.0,
                tracked_ratio: split::percent(now.tracked()) / 100.0,
                settled: index.is_some_and(|index| self.publisher.registry.is_closed(index)),
            },
            stable,
            canary,
            pools,
            overrides: intent.map(|intent| overrides(service, &intent.backends)).unwrap_or_default(),
            protection: service.protection.as_ref().map(protection),
        }
    }

    /// A service's pools as they were compiled, each with what the kernel's tables have of it.
    pub(super) fn placed_pools<'a>(
        &'a self,
        service: &'a Service,
        index: Option<u32>,
    ) -> impl Iterator<Item = Placed<'a>> + 'a {
        let registry = &self.publisher.registry;
        let record = index.and_then(|index| registry.services.get(&index));
        let intent = self.desired.intents.get(&service.name);
        let compiled = self.compiled.get(&service.name);
        let gone = compiled.zip(index).map_or_else(Vec::new, |(_, index)| self.gone(service, index));
        let each =
            compiled.into_iter().flat_map(|compiled| compiled.pools.iter().map(move |it| (compiled, it)));
        each.map(move |(compiled, it)| {
            let role = intent.map_or(PoolRole::Idle, |intent| role(intent, &it.name));
            let table = record.and_then(|record| match role {
                PoolRole::Stable => record.stable.as_ref(),
                PoolRole::Canary => record.canary.as_ref(),
                PoolRole::Idle => None,
            });
            let plans = [Some(&compiled.plan.stable), compiled.plan.canary.as_ref()];
            let plan = plans.into_iter().flatten().find(|plan| plan.name == it.name);
            let index = plan
                .zip(index)
                .and_then(|(plan, index)| registry.known_pool(&self.publisher.maps, index, plan));
            Placed {
                it,
                compiled,
                role,
                index,
                takers: table.map(|table| &table.takers),
                gone: gone.iter().filter(|(_, it)| Some(it.pool) == index).copied().collect(),
            }
        })
    }

    /// Backends of a service that are gone from the configuration, and finish the flows that they have, by their ids.
    fn gone(&self, service: &Service, index: u32) -> Vec<(u16, abi::Backend)> {
        let registry = &self.publisher.registry;
        let configured = service.pools.iter().flat_map(|pool| &pool.backends);
        let known = configured.filter_map(|backend| id_of(service, backend.address, index, registry));
        let mut known: Vec<u16> = known.collect();
        known.sort_unstable();
        let ids = registry.backends_of(index).filter(|id| known.binary_search(id).is_err());
        ids.map(|id| (id, self.publisher.maps.backends.read(id.into()))).collect()
    }

    fn pools(
        &self,
        service: &Service,
        index: Option<u32>,
        percent: f64,
        meters: &Meters<'_>,
    ) -> Vec<PoolStatus> {
        // Of few services: to look for every one by its name would take longer than all the rest.
        let is_measured = !service.mode.is_dsr() && self.follows.contains_key(&service.name);
        let measured = is_measured.then(|| self.pools_of(&service.name)).flatten();
        self.placed_pools(service, index)
            .map(|placed| {
                let Placed { it: pool, compiled, role, index: pool_index, .. } = placed;
                let backends =
                    pool.backends.iter().map(|view| self.backend(service, view, index, &placed, meters));
                let gone = placed.gone.iter().map(|&(id, backend)| {
                    let gone = "it is gone from the configuration, and finishes the flows that it has";
                    let why_not = Some(gone.to_owned());
                    BackendStatus { why_not, ..self.of_id(id, address_of(backend), &placed, meters) }
                });
                PoolStatus {
                    name: pool.name.clone(),
                    role,
                    share_percent: match role {
                        PoolRole::Stable => 100.0 - percent,
                        PoolRole::Canary => percent,
                        PoolRole::Idle => 0.0,
                    },
                    panic: pool.panic,
                    failed: pool.failed,
                    breaker: breaker_status(pool.gate),
                    connections: pool_index
                        .and_then(|pool| connections(service, &self.publisher.maps.pool_limits, pool)),
                    spills_to: spills_to(compiled, role).map(str::to_owned),
                    priorities: pool
                        .priorities
                        .iter()
                        .map(|level| PriorityStatus {
                            priority: level.priority,
                            healthy: level.fit,
                            backends: level.of,
                            share_percent: level.share * 100.0,
                        })
                        .collect(),
                    backends: backends.chain(gone).collect(),
                    traffic: pool_index.map(|pool| traffic(meters.pool(pool))).unwrap_or_default(),
                    handshake: measured.filter(|_| role != PoolRole::Idle).and_then(|pools| {
                        let (_, answered, _) = self.measured(pools, role == PoolRole::Canary);
                        Quantiles::of(&answered)
                    }),
                }
            })
            .collect()
    }

    fn backend(
        &self,
        service: &Service,
        view: &BackendView,
        index: Option<u32>,
        placed: &Placed<'_>,
        meters: &Meters<'_>,
    ) -> BackendStatus {
        let id = index.and_then(|index| id_of(service, view.address, index, &self.publisher.registry));
        let id = id.unwrap_or(0);
        let configured =
            service.pools.iter().flat_map(|pool| &pool.backends).find(|b| b.address == view.address);
        BackendStatus {
            weight: view.weight,
            configured_weight: configured.map_or(view.weight, |backend| backend.weight.get()),
            source: self.source_of(service, view.address),
            priority: view.priority,
            state: view.state,
            drain: view.drain.map(|drain| DrainStatus {
                deadline: drain.deadline.to_string(),
                then: if drain.reset { KeepOrReset::Reset } else { KeepOrReset::Keep },
                over: drain.over,
            }),
            slow_start_percent: view.slow_start.map(|part| part * 100.0),
            ejection: self.ejection_status(service, view),
            breaker: breaker_status(view.gate),
            outcomes: self.outcomes(service, id),
            server_ids: view.server_ids.iter().map(ToString::to_string).collect(),
            steering: service.steering.as_ref().map(|_| SteeringStatus {
                latency_seconds: self.passive.takes(service, view.address).map(|time| time.as_secs_f64()),
                weight_percent: view.steer,
            }),
            connections: connections(service, &self.publisher.maps.limits, id),
            health: self.health_status(service, view),
            takes_new: view.why_not.is_none(),
            why_not: view.why_not.map(|why| why.words().to_owned()),
            standby: view.why_not == Some(WhyNot::Standby),
            terminating: false,
            ..self.of_id(id, view.address, placed, meters)
        }
    }

    fn ejection_status(&self, service: &Service, view: &BackendView) -> Option<EjectionStatus> {
        service.outlier.as_ref()?;
        let ejection = self.passive.ejection(&service.name, view.address)?;
        let now = std::time::Duration::from_nanos(clock::nanoseconds());
        let left = ejection.until.saturating_sub(now);
        Some(EjectionStatus { left_seconds: left.as_secs_f64().ceil() as u64, times: ejection.times })
    }

    fn outcomes(&self, service: &Service, id: u16) -> Option<Outcomes> {
        if id == 0 || !service.is_watched() {
            return None;
        }
        let watch = self.publisher.maps.watches.read(id.into());
        Some(Outcomes {
            tried: watch.tried,
            answered: watch.answered,
            refused: watch.refused,
            unanswered: watch.unanswered,
            reset_early: watch.reset_early,
            served: watch.served,
            inferred: service.mode.is_dsr(),
        })
    }

    /// What the kernel's tables say of an id, and of one that nothing else is known of.
    fn of_id(&self, id: u16, address: SocketAddr, placed: &Placed<'_>, meters: &Meters<'_>) -> BackendStatus {
        BackendStatus {
            name: BackendPath::name_of(address),
            id,
            weight: 0,
            configured_weight: 0,
            source: None,
            priority: 0,
            state: config::AdminState::Drain,
            drain: None,
            slow_start_percent: None,
            ejection: None,
            breaker: None,
            outcomes: None,
            server_ids: Vec::new(),
            steering: None,
            connections: None,
            health: HealthStatus {
                status: HealthState::Unchecked,
                reason: None,
                since_seconds: 0,
                last_duration_seconds: None,
            },
            takes_new: false,
            why_not: None,
            standby: false,
            slots: placed.slots(id),
            tracked_flows: self.swept.load(id).flows,
            next_hop: self.next_hop(address.ip()),
            terminating: true,
            traffic: traffic(meters.backend(id)),
            rate: self.rates.of(id),
        }
    }

    fn health_status(&self, service: &Service, view: &BackendView) -> HealthStatus {
        let id = self.targets.ids.get(&(service.name.clone(), view.address));
        let report = id.and_then(|&id| self.scheduler.report(id));
        let last = report.as_ref().and_then(|report| report.last.as_ref());
        let reason = last.and_then(|result| result.outcome.as_ref().err()).map(|miss| match miss {
            Miss::Failed(failure) => failure.to_string(),
            Miss::NotRun(trouble) => trouble.to_string(),
        });
        HealthStatus {
            status: health_state(view.health),
            reason: match view.advice {
                _ if view.health_is_forced => Some("set by hand".to_owned()),
                Advice::NONE if view.health == Health::Down && view.why_not.is_none() => {
                    Some(reason.map_or("takes flows: panic".to_owned(), |reason| {
                        format!("{reason}; takes flows: panic")
                    }))
                }
                Advice::NONE => reason,
                advice => {
                    let said = format!("its agent check says {advice}");
                    Some(reason.map_or(said.clone(), |reason| format!("{reason}; {said}")))
                }
            },
            since_seconds: report
                .as_ref()
                .and_then(|report| report.since)
                .map_or(0, |since| since.elapsed().as_secs()),
            last_duration_seconds: last.map(|result| result.duration.as_secs_f64()),
        }
    }

    pub(super) fn next_hop(&self, ip: IpAddr) -> NextHop {
        let unreachable = |why: &str| NextHop::Unreachable { unreachable: why.to_owned() };
        match self.hops.get(&ip) {
            None => unreachable("not looked for yet"),
            Some(Err(reason)) => unreachable(reason.name()),
            Some(Ok(hop)) => match hop.mac {
                None => unreachable("no hardware address"),
                Some(mac) => NextHop::Known {
                    interface: self
                        .links
                        .snapshot()
                        .get(&hop.ifindex)
                        .map_or_else(|| hop.ifindex.to_string(), |link| link.name.clone()),
                    mac: mac_text(mac),
                },
            },
        }
    }

    pub(super) fn dataplane_status(&self) -> DataplaneStatus {
        let maps = &self.publisher.maps;
        let links = self.links.snapshot();
        let counters = maps.counters().unwrap_or_default();
        let drops = Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop);
        let count = |used: u64, capacity: u32| Room { used, capacity: capacity.into() };
        DataplaneStatus {
            program: Some(ProgramStatus {
                id: self.kernel.program_id,
                verified_instructions: self.kernel.verified_instructions,
            }),
            interfaces: self
                .kernel
                .attached
                .iter()
                .map(|attached| {
                    let link = links.get(&attached.ifindex);
                    InterfaceStatus {
                        name: attached.name.clone(),
                        ifindex: attached.ifindex,
                        mode: match attached.mode {
                            Native::Native => XdpMode::Native,
                            Native::Generic => XdpMode::Generic,
                        },
                        mac: mac_text(link.and_then(|link| link.mac).unwrap_or_default()),
                        mtu: link.map_or(0, |link| link.mtu),
                    }
                })
                .collect(),
            flows: count(self.rooms.flows, maps.flows.capacity()),
            udp_flows: count(self.rooms.udp_flows, maps.udp_flows.capacity()),
            half_open: count(self.rooms.half_open, maps.half_open.capacity()),
            sessions: count(self.sessions.established, maps.sessions.capacity() / 2),
            slots: SlotRoom {
                used: self.publisher.registry.slot_count().into(),
                capacity: maps.slots.len().into(),
                unsettled: self.swept.unsettled,
            },
            backends: count(self.publisher.registry.backend_count() as u64, maps.backend_room()),
            drops: drops
                .map(|&reason| (reason.name().to_owned(), counters.reasons[reason as usize]))
                .collect(),
        }
    }
}

/// A pool as it was compiled, and what the kernel's tables have of it.
pub(super) struct Placed<'a> {
    pub it: &'a PoolView,
    compiled: &'a Compiled,
    pub role: PoolRole,
    index: Option<u16>,
    takers: Option<&'a Takers>,
    /// Its backends that are gone from the configuration, and finish the flows that they have, by their ids.
    pub gone: Vec<(u16, abi::Backend)>,
}

impl Placed<'_> {
    /// Slots that lead to an id; 0 is nobody's.
    pub fn slots(&self, id: u16) -> u32 {
        if id == 0 { 0 } else { self.takers.and_then(|takers| takers.get(&id)).copied().unwrap_or(0) }
    }
}

/// Where a backend is, as the kernel has it.
pub(super) fn address_of(backend: abi::Backend) -> SocketAddr {
    (IpAddr::from(backend.address), backend.port.number()).into()
}

/// What a pool of a service is used for.
pub(super) fn role(intent: &Intent, pool: &str) -> PoolRole {
    match () {
        () if pool == intent.stable.as_str() => PoolRole::Stable,
        () if intent.canary.as_ref().is_some_and(|canary| pool == canary.as_str()) => PoolRole::Canary,
        () => PoolRole::Idle,
    }
}

/// The pool that gets the new flows of the pool of this role, because that one has nobody to take them.
pub(super) fn spills_to(compiled: &Compiled, role: PoolRole) -> Option<&str> {
    match role {
        PoolRole::Canary if compiled.canary_spills => Some(&compiled.plan.stable.name),
        PoolRole::Stable if compiled.stable_spills => {
            compiled.plan.canary.as_ref().map(|canary| canary.name.as_str())
        }
        PoolRole::Stable | PoolRole::Canary | PoolRole::Idle => None,
    }
}

fn protection(of: &Protection) -> ProtectionStatus {
    ProtectionStatus {
        allowed_networks: of.allow.len() as u32,
        denied_networks: of.deny.len() as u32,
        max_new_per_second: of.max_new_per_second,
        max_packets_per_second: of.max_packets_per_second,
        source_max_new_per_second: of.source_max_new_per_second,
        source_max_packets_per_second: of.source_max_packets_per_second,
    }
}

/// What the checks say, as it is told.
pub(super) const fn health_state(health: Health) -> HealthState {
    match health {
        Health::Unchecked => HealthState::Unchecked,
        Health::Unknown => HealthState::Unknown,
        Health::Up => HealthState::Up,
        Health::Down => HealthState::Down,
    }
}

fn connections(service: &Service, map: &Mapped<Limit>, index: u16) -> Option<ConnectionCount> {
    let limits = service.limits.as_ref().filter(|_| index != 0)?;
    let counted = limits.max_connections.or(limits.pool_max_connections);
    let limit = map.read(index.into());
    // Signed: a connection may be seen to end twice, until the next sweep counts anew.
    let open = counted.map(|_| (limit.open as i64).max(0).unsigned_abs());
    Some(ConnectionCount { open, kept_away: limit.kept_away })
}

fn breaker_status(gate: Gate) -> Option<BreakerStatus> {
    let eighths = gate.eighths()?;
    Some(BreakerStatus { state: gate.name().to_owned(), passes_percent: f64::from(eighths) * 12.5 })
}

fn traffic(of: abi::Traffic) -> Traffic {
    Traffic {
        packets: of.packets,
        bytes: of.bytes,
        connections: of.connections,
        reply_packets: of.reply_packets,
        reply_bytes: of.reply_bytes,
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(17);
    for byte in mac {
        if !text.is_empty() {
            text.push(':');
        }
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}
