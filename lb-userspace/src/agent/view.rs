//! What the agent shows.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use lb_common::abi::{self, LAYOUT};
use lb_common::limit::Limit;
use lb_common::session::{Session, SessionKey};
use lb_common::settle::Takers;
use lb_common::verdict::{Action, Reason};

use super::Agent;
use crate::api::{
    Answer, Api, ApiError, BackendPath, BackendStatus, BreakerStatus, ConnectionCount, DataplaneStatus,
    DrainStatus, EjectionStatus, ErrorCode, Finding, FlowInfo, FlowKind, HealthState, HealthStatus,
    InterfaceStatus, KeepOrReset, NextHop, Outcomes, Override, PoolRole, PoolStatus, PriorityStatus,
    ProgramStatus, ProtectionStatus, Quantiles, Room, ServiceQuery, ServiceStatus, Services, Severity,
    SlotRoom, SplitStatus, Status, SteeringStatus, Traffic, XdpMode,
};
use crate::clock;
use crate::compile::{BackendView, Compiled, Health, PoolView, WhyNot, id_of, key_of};
use crate::config::{self, Protection, Service};
use crate::dataplane::bpf::{Mapped, PerCpu};
use crate::dataplane::{Maps, Native, maps};
use crate::health::{Advice, Miss};
use crate::outlier::Gate;
use crate::plural::{counted, either};
use crate::publish::{Publisher, split};
use crate::state::{Author, Intent, Overrides};

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

    pub(super) fn findings(&self, dataplane: &DataplaneStatus) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |severity, code: &str, subject: &str, message: String, remedy: &str| {
            findings.push(Finding {
                severity,
                code: code.to_owned(),
                subject: subject.to_owned(),
                message,
                remedy: Some(remedy.to_owned()),
            });
        };
        let of_all = |pool: &PoolView| counted(pool.backends.len() as u64, "backend");
        // Each asked once, however many services there are.
        let mut forwards = Forwarding::default();
        for service in self.desired.services() {
            let Some(intent) = self.desired.intents.get(&service.name) else { continue };
            let compiled = self.compiled.get(&service.name);
            let pools = compiled.into_iter().flat_map(|it| it.pools.iter().map(move |pool| (pool, it)));
            for (pool, compiled) in pools {
                let role = role(intent, &pool.name);
                let subject = format!("{}/{}", service.name, pool.name);
                let takers = pool.backends.iter().filter(|backend| backend.why_not.is_none()).count();
                let down =
                    pool.backends.iter().filter(|backend| backend.health == Health::Down).count() as u64;
                let few = if pool.failed { " (fewer are healthy than min_healthy says)" } else { "" };
                if let (PoolRole::Stable, Some(other)) = (role, spills_to(compiled, role)) {
                    find(
                        Severity::Error,
                        "LB1013",
                        &subject,
                        format!("no stable backend takes new flows{few}: the canary {other} gets them"),
                        "`lbctl get backends` says why not; spill_to_canary = false ends it",
                    );
                } else if takers == 0 && role == PoolRole::Stable {
                    find(
                        Severity::Error,
                        "LB1001",
                        &subject,
                        format!("no backend takes new flows{few}"),
                        "`lbctl get backends` says why not",
                    );
                } else if takers == 0 && role == PoolRole::Canary && intent.split > 0.0 {
                    find(
                        Severity::Error,
                        "LB1002",
                        &subject,
                        format!("no canary backend takes new flows{few}: the stable pool gets them"),
                        "`lbctl get backends` says why not; `lbctl rollback` ends the canary",
                    );
                } else if down > 0 && role != PoolRole::Idle {
                    find(
                        Severity::Error,
                        "LB1003",
                        &subject,
                        format!("{down} of {} {} down", of_all(pool), either(down, "is", "are")),
                        "`lbctl get backends` shows the last check's result",
                    );
                }
                let ejected = pool.backends.iter().filter(|backend| backend.ejected).count() as u64;
                if ejected > 0 && role != PoolRole::Idle {
                    find(
                        Severity::Warning,
                        "LB1030",
                        &subject,
                        format!(
                            "{ejected} of {} {}, and ejected",
                            of_all(pool),
                            either(ejected, "is an outlier", "are outliers")
                        ),
                        "`lbctl get events` says why; they are let in again by themselves",
                    );
                }
                let gates = pool.backends.iter().map(|backend| backend.gate).chain([pool.gate]);
                let tripped = gates.filter_map(Gate::eighths).filter(|&eighths| eighths < 8).count() as u64;
                if tripped > 0 && role != PoolRole::Idle {
                    find(
                        Severity::Warning,
                        "LB1031",
                        &subject,
                        format!(
                            "{} {} new connections away",
                            counted(tripped, "breaker"),
                            either(tripped, "keeps", "keep")
                        ),
                        "`lbctl get backends` shows which; they are closed again when trials end well",
                    );
                }
                if pool.panic {
                    find(
                        Severity::Error,
                        "LB1004",
                        &subject,
                        "so few backends are healthy that health is ignored".to_owned(),
                        "bring backends back, or set panic_threshold = 0",
                    );
                }
            }
            for (address, held) in &intent.backends {
                let path = format!(
                    "{}/{}/{}",
                    service.name,
                    pool_of(&service, *address),
                    BackendPath::name_of(*address)
                );
                for (words, since, author, back) in by_hand(held) {
                    let since = since
                        .parse()
                        .map_or_else(|_| since.clone(), |at: jiff::Timestamp| format!("{at:.0}"));
                    find(
                        Severity::Info,
                        "LB1005",
                        &path,
                        format!("{words}, by {} since {since}", author.name),
                        &format!("`lbctl set {}` takes it back", back.replace("{}", &path)),
                    );
                }
            }
            if !service.mode.is_dsr() {
                for interface in dataplane.interfaces.iter().filter(|it| !forwards.ask(&it.name, service.vip))
                {
                    find(
                        Severity::Error,
                        "LB1006",
                        &interface.name,
                        format!("forwarding is off there, but {} sends its replies through it", service.name),
                        &format!("sysctl -w {}=1", forwarding(&interface.name, service.vip)),
                    );
                }
            }
        }
        for (name, unpublished) in &self.unpublished {
            find(
                Severity::Error,
                "LB1015",
                name.as_str(),
                format!("its tables are not as they should be: {}", unpublished.why),
                "it is tried again with each sweep; `lbctl help LB1015` says what may be in the way",
            );
        }
        for fault in self.fault_list().faults {
            find(
                Severity::Warning,
                "LB1040",
                &fault.service,
                format!("A FAULT IS INJECTED ON PURPOSE: {}", super::fault::in_words(&fault)),
                "it ends by itself; `lbctl fault clear` ends it now",
            );
        }
        if !self.kernel.jited {
            find(
                Severity::Warning,
                "LB1012",
                "kernel",
                "the kernel interprets BPF programs, which is several times slower".to_owned(),
                "sysctl -w net.core.bpf_jit_enable=1, and start lbd again",
            );
        }
        let asked_for = self.desired.config.dataplane.xdp_mode == config::XdpMode::Generic;
        for interface in dataplane.interfaces.iter().filter(|interface| interface.mode == XdpMode::Generic) {
            find(
                Severity::Warning,
                "LB1007",
                &interface.name,
                "the program runs in generic mode, which is several times slower".to_owned(),
                match asked_for {
                    true => {
                        "`xdp_mode = \"generic\"` asks for it; with \"auto\" lbd takes native where the driver has it"
                    }
                    false => "its driver has no native XDP: use another interface, or a newer kernel",
                },
            );
        }
        let tables = [
            ("flows", dataplane.flows),
            ("udp_flows", dataplane.udp_flows),
            ("half_open", dataplane.half_open),
            ("sessions", dataplane.sessions),
        ];
        for (name, room) in tables.into_iter().filter(|(_, room)| room.used * 10 > room.capacity * 9) {
            let why = match name {
                "sessions" => "newer connections may push out what finds no room",
                _ => "flows may be forgotten while tables change",
            };
            find(
                Severity::Error,
                "LB1008",
                name,
                format!("{} of {} entries are taken: {why}", room.used, room.capacity),
                "raise it in [dataplane]; then `lbctl detach` and a restart, which interrupt traffic",
            );
        }
        if self.books.forgotten() > 0 {
            find(
                if self.books.lately() > 0 { Severity::Error } else { Severity::Warning },
                "LB1011",
                "flows",
                format!(
                    "at least {} {} forgotten for want of room since lbd started: packets of such a flow go where old flows of its \
                     slot go",
                    counted(self.books.forgotten(), "tracked flow"),
                    either(self.books.forgotten(), "was", "were")
                ),
                "raise flows and udp_flows in [dataplane]; then `lbctl detach` and a restart, which interrupt traffic",
            );
        }
        let made = [
            ("flows", self.kernel.capacities.flows, dataplane.flows.capacity),
            ("udp_flows", self.kernel.capacities.udp_flows, dataplane.udp_flows.capacity),
            ("half_open", self.kernel.capacities.half_open, dataplane.half_open.capacity),
            ("sessions", self.kernel.capacities.sessions, dataplane.sessions.capacity),
            ("slots", self.kernel.capacities.slots, dataplane.slots.capacity),
        ];
        for (name, wanted, made) in made.into_iter().filter(|(_, wanted, made)| u64::from(*wanted) != *made) {
            find(
                Severity::Warning,
                "LB1009",
                name,
                format!("the pinned table has room for {made}, not for {wanted} as configured"),
                "maps keep the size they were made with: `lbctl detach` and a restart, which interrupt traffic, make it anew",
            );
        }
        for (name, why) in self.troubles.missing() {
            find(
                Severity::Error,
                "LB1020",
                name,
                format!("the program is not on it: {why}"),
                "it is attached as soon as an interface of that name is there and free",
            );
        }
        for interface in dataplane.interfaces.iter().filter(|it| self.troubles.is_down(it.ifindex)) {
            find(
                Severity::Error,
                "LB1021",
                &interface.name,
                "it is down, or has no carrier".to_owned(),
                &format!("ip link set {} up, or look at the cable and its other end", interface.name),
            );
        }
        for (vip, state) in self.vips.snapshot() {
            if let crate::netlink::VipState::Failed(error) = state {
                find(
                    Severity::Error,
                    "LB1010",
                    &vip.address.to_string(),
                    format!("this host does not have the VIP: {error}"),
                    "lbd tries again; with `hold_vips = false` the address is yours to set (`ip address add`)",
                );
            }
        }
        findings.extend(self.discovery_findings());
        findings.sort_by_key(|finding| match finding.severity {
            // What has backends fail their checks comes before what comes of it.
            Severity::Error if CAUSES.contains(&finding.code.as_str()) => 0,
            Severity::Error => 1,
            Severity::Warning => 2,
            Severity::Info => 3,
        });
        findings
    }

    /// Puts names to flows that were found.
    pub(super) fn named(&self, found: Vec<Found>) -> Vec<FlowInfo> {
        let names: HashMap<u32, &str> = self
            .desired
            .config
            .services
            .iter()
            .filter_map(|s| Some((self.publisher.registry.service_index(&key_of(s))?, s.name.as_str())))
            .collect();
        let now = clock::ticks();
        let name = |found: Found| {
            let backend = self.publisher.maps.backends.read(found.backend.into());
            let ip: IpAddr = backend.address.into();
            FlowInfo {
                service: names.get(&found.key.owner).copied().unwrap_or("?").to_owned(),
                client: found.key.client.into(),
                port: found.key.client_port.number(),
                pool: self.publisher.registry.pool_name(backend.pool).unwrap_or("?").to_owned(),
                backend: BackendPath::name_of((ip, backend.port.number()).into()),
                kind: found.kind,
                // A tick is 2^30 ns.
                idle_seconds: u64::from(now.saturating_sub(found.seen)) * 1_073 / 1_000,
                age_seconds: None,
            }
        };
        found.into_iter().map(name).collect()
    }

    /// Whether nothing can be in the tables of tracked flows.
    pub(super) fn has_no_tracked_flows(&self) -> bool {
        self.books.say_empty(&self.publisher.maps)
    }

    /// Tracked flows of a service's canary.
    pub(super) fn tracked_in_canary(&self, service: &str) -> Option<u64> {
        let index = self.index(service).ok()?;
        let canary = self.publisher.maps.services.read(index).canary_pool;
        let ids = self.publisher.registry.backends_of(index);
        let in_canary = ids.filter(|&id| self.publisher.maps.backends.read(id.into()).pool == canary);
        Some(in_canary.map(|id| self.swept.load(id).flows).sum())
    }
}

/// Findings of the host that explain those of backends.
const CAUSES: [&str; 3] = ["LB1006", "LB1020", "LB1021"];

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
fn role(intent: &Intent, pool: &str) -> PoolRole {
    match () {
        () if pool == intent.stable.as_str() => PoolRole::Stable,
        () if intent.canary.as_ref().is_some_and(|canary| pool == canary.as_str()) => PoolRole::Canary,
        () => PoolRole::Idle,
    }
}

/// The pool that gets the new flows of the pool of this role, because that one has nobody to take them.
fn spills_to(compiled: &Compiled, role: PoolRole) -> Option<&str> {
    match role {
        PoolRole::Canary if compiled.canary_spills => Some(&compiled.plan.stable.name),
        PoolRole::Stable if compiled.stable_spills => {
            compiled.plan.canary.as_ref().map(|canary| canary.name.as_str())
        }
        PoolRole::Stable | PoolRole::Canary | PoolRole::Idle => None,
    }
}

fn pool_of(service: &Service, address: SocketAddr) -> &str {
    let pool = service.pools.iter().find(|pool| pool.backends.iter().any(|b| b.address == address));
    pool.map_or("?", |pool| pool.name.as_str())
}

/// What was set of a backend, in words, with since when and by whom; and what `lbctl set` takes it back, `{}` being the
/// backend.
fn by_hand(held: &Overrides) -> Vec<(String, &String, &Author, String)> {
    let mut list = Vec::new();
    if let Some(weight) = &held.weight {
        let configured = weight.configured.unwrap_or_default();
        let words = format!("its weight is {}, not {configured} as configured", weight.value);
        list.push((words, &weight.since, &weight.author, format!("weight {{}} {configured}")));
    }
    if let Some(state) = &held.state {
        let words = match (&held.deadline, state.value) {
            (Some(deadline), _) => {
                let then = if deadline.reset { KeepOrReset::Reset } else { KeepOrReset::Keep };
                format!("it drains until {:.0}, then {then}", deadline.at)
            }
            (None, config::AdminState::Drain) => "it drains".to_owned(),
            (None, value) => format!("its state is {value}"),
        };
        let configured = state.configured.unwrap_or(config::AdminState::Ready);
        list.push((words, &state.since, &state.author, format!("state {{}} {configured}")));
    }
    if let Some(health) = &held.health {
        let words = format!("its health is forced {}", if health.value { "up" } else { "down" });
        list.push((words, &health.since, &health.author, "health {} auto".to_owned()));
    }
    list
}

fn overrides(service: &Service, backends: &BTreeMap<SocketAddr, Overrides>) -> Vec<Override> {
    let mut list = Vec::new();
    for (address, held) in backends {
        let pool = pool_of(service, *address);
        let mut add = |what: &str, configured: String, now: String, since: &str, by: &Author| {
            list.push(Override {
                path: format!("pool.{pool}.backend.{}.{what}", BackendPath::name_of(*address)),
                configured,
                now,
                since: since.to_owned(),
                actor: by.name.clone(),
            });
        };
        if let Some(weight) = &held.weight {
            add(
                "weight",
                weight.configured.map(|w| w.to_string()).unwrap_or_default(),
                weight.value.to_string(),
                &weight.since,
                &weight.author,
            );
        }
        if let Some(state) = &held.state {
            add(
                "state",
                state.configured.map(|s| s.to_string()).unwrap_or_default(),
                state.value.to_string(),
                &state.since,
                &state.author,
            );
        }
        if let (Some(deadline), Some(state)) = (&held.deadline, &held.state) {
            let then = if deadline.reset { "reset" } else { "keep" };
            let words = format!("{:.0}, then {then}", deadline.at);
            add("drain_deadline", "none".to_owned(), words, &state.since, &state.author);
        }
        if let Some(health) = &held.health {
            let now = if health.value { "up" } else { "down" };
            add("health", "as checked".to_owned(), now.to_owned(), &health.since, &health.author);
        }
    }
    list
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

/// A flow that stands in a table.
pub(super) struct Found {
    key: abi::FlowKey,
    backend: u16,
    kind: FlowKind,
    /// In ticks.
    seen: u32,
}

/// Flows as they stand in the tables: `limit` at most, of one service or of all; and whether there are more. `tracked`: the
/// tables of tracked flows are read, too. Takes milliseconds where tables are large.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn find_flows(
    maps: &Maps,
    only: Option<u32>,
    limit: usize,
    tracked: bool,
) -> std::io::Result<(Vec<Found>, bool)> {
    let mut flows = Vec::new();
    let mut truncated = false;
    let mut add = |key: &abi::FlowKey, backend: u16, kind: FlowKind, seen: u32| {
        if only.is_some_and(|index| index != key.owner) {
            return ControlFlow::Continue(());
        }
        if flows.len() >= limit {
            truncated = true;
            return ControlFlow::Break(());
        }
        flows.push(Found { key: *key, backend, kind, seen });
        ControlFlow::Continue(())
    };
    if tracked {
        maps.flows.try_for_each(|key, entry| add(key, entry.backend, FlowKind::Tracked, entry.seen))?;
        maps.udp_flows.try_for_each(|key, entry| add(key, entry.backend, FlowKind::Udp, entry.seen))?;
    }
    let mut add_session = |key: &SessionKey, session: &Session, kind| {
        if session.has(Session::REPLY) {
            return ControlFlow::Continue(());
        }
        let flow = abi::FlowKey {
            client: key.source,
            client_port: key.source_port,
            port: key.destination_port,
            owner: session.service,
        };
        add(&flow, session.backend, kind, session.seen)
    };
    maps.sessions.try_for_each(|key, session| add_session(key, session, FlowKind::Session))?;
    maps.opening.try_for_each(|key, session| add_session(key, session, FlowKind::Opening))?;
    maps.half_open.try_for_each(|key, note| add(key, note.backend, FlowKind::HalfOpen, note.at))?;
    Ok((flows, truncated))
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

fn forwarding(interface: &str, vip: IpAddr) -> String {
    let family = if vip.is_ipv4() { "ipv4" } else { "ipv6" };
    format!("net/{family}/conf/{interface}/forwarding")
}

/// Which interfaces the host forwards from.
#[derive(Default)]
struct Forwarding {
    known: HashMap<String, bool>,
}

impl Forwarding {
    /// Whether the host forwards what comes in there; a sysctl that cannot be read counts as on, so that nobody is misled.
    fn ask(&mut self, interface: &str, vip: IpAddr) -> bool {
        let path = format!("/proc/sys/{}", forwarding(interface, vip));
        *self.known.entry(path).or_insert_with_key(|path| {
            std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
                || !std::path::Path::new("/proc/sys/net").exists()
        })
    }
}

/// Counters of pools and backends, read in large pieces where that is cheaper than one by one.
pub(super) struct Meters<'a> {
    maps: &'a Maps,
    pools: Piece,
    backends: Piece,
}

/// The counters from an index on.
#[derive(Default)]
struct Piece {
    first: u32,
    sums: Vec<abi::Traffic>,
}

impl Piece {
    /// Of some indexes; nothing if they lie far apart, or cannot be read.
    fn of(map: &PerCpu<abi::Traffic>, indexes: impl Iterator<Item = u16>) -> Self {
        let mut count = 0;
        let ends = indexes.inspect(|_| count += 1).fold(None, |ends: Option<(u16, u16)>, index| {
            Some(ends.map_or((index, index), |(first, last)| (first.min(index), last.max(index))))
        });
        let Some((first, last)) = ends.map(|(first, last)| (u32::from(first), u32::from(last))) else {
            return Self::default();
        };
        // One of a piece costs a small part of what one costs by itself.
        if last - first > 16 * count {
            return Self::default();
        }
        Self { first, sums: map.sums(first..last + 1).unwrap_or_default() }
    }

    fn get(&self, index: u16) -> Option<abi::Traffic> {
        self.sums.get(u32::from(index).checked_sub(self.first)? as usize).copied()
    }
}

impl<'a> Meters<'a> {
    pub fn of_all(publisher: &'a Publisher) -> Self {
        let (maps, registry) = (&*publisher.maps, &publisher.registry);
        Self {
            maps,
            pools: Piece::of(&maps.pool_traffic, registry.pools()),
            backends: Piece::of(&maps.backend_traffic, registry.backend_ids()),
        }
    }

    /// Of some services, by their addresses.
    pub fn of_some(publisher: &'a Publisher, keys: impl Iterator<Item = abi::VipKey>) -> Self {
        let (maps, registry) = (&*publisher.maps, &publisher.registry);
        let indexes: Vec<u32> = keys.filter_map(|key| registry.service_index(&key)).collect();
        let pools = indexes.iter().flat_map(|&index| registry.pools_of(index));
        let backends = indexes.iter().flat_map(|&index| registry.backends_of(index));
        Self {
            maps,
            pools: Piece::of(&maps.pool_traffic, pools),
            backends: Piece::of(&maps.backend_traffic, backends),
        }
    }

    /// Of a pool; nothing if it cannot be read.
    pub fn pool(&self, index: u16) -> abi::Traffic {
        let read = || maps::traffic(&self.maps.pool_traffic, index.into()).unwrap_or_default();
        self.pools.get(index).unwrap_or_else(read)
    }

    /// Of a backend; nothing if it cannot be read.
    pub fn backend(&self, id: u16) -> abi::Traffic {
        let read = || maps::traffic(&self.maps.backend_traffic, id.into()).unwrap_or_default();
        self.backends.get(id).unwrap_or_else(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Override as Set;

    /// What the tests of `lbctl` show.
    const SHOWN: &str = include_str!("../../tests/cli/expected/status_json.txt");

    #[test]
    fn what_is_set_by_hand_is_told_as_the_tests_of_the_command_line_show_it() {
        let file = "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"checkout\"\nvip = \"203.0.113.10\"\n\
                    port = 443\n[[service.pool]]\nname = \"v41\"\n[[service.pool.backend]]\naddress = \"10.0.1.12:8443\"\n";
        let config = config::parse(file, "test").expect("a good configuration").config;
        let author = Author { name: "alice".to_owned(), pid: None };
        let since = "2026-11-21T03:58:00.5Z".to_owned();
        let weight = Set { value: 50, configured: Some(100), since: since.clone(), author: author.clone() };
        let mut held = Overrides { weight: Some(weight), ..Overrides::default() };
        let address = "10.0.1.12:8443".parse().expect("an address");
        let list = overrides(&config.services[0], &BTreeMap::from([(address, held.clone())]));
        let [weight] = &list[..] else { panic!("{list:?}") };
        assert!(SHOWN.contains(&format!("\"path\": \"{}\"", weight.path)), "{}", weight.path);
        let (words, _, _, back) = &by_hand(&held)[0];
        assert!(SHOWN.contains(&format!("{words}, by alice since 2026-11-21T03:58:00Z")), "{words}");
        let back = back.replace("{}", "checkout/v41/10.0.1.12:8443");
        assert!(SHOWN.contains(&format!("`lbctl set {back}` takes it back")), "{back}");

        // A drain with its deadline is one thing.
        let state = Set {
            value: config::AdminState::Drain,
            configured: None,
            since: since.clone(),
            author: author.clone(),
        };
        let at = "2026-11-30T02:16:09.5Z".parse().expect("a time");
        let deadline = Some(crate::state::Deadline { at, reset: true });
        held = Overrides { state: Some(state), deadline, ..Overrides::default() };
        held.health = Some(Set { value: false, configured: None, since, author });
        let words: Vec<String> = by_hand(&held).into_iter().map(|(words, ..)| words).collect();
        assert_eq!(words, ["it drains until 2026-11-30T02:16:09Z, then reset", "its health is forced down"]);
    }
}
