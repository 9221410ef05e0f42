//! Which figures there are. `docs/metrics.md` is made of this.

use lb_common::verdict::{Action, Event, Reason};
use lb_common::watch::Watch;

use super::handshakes::{Handshakes, histogram};
use super::text::{Family, Kind, Labels, Sample, Value};
use super::{Cause, Scrape};
use crate::api::{BackendStatus, HealthState, PoolRole, PoolStatus, ServiceStatus, Severity};
use crate::config::AdminState;
use crate::health::FailureKind;
use crate::outlier::Detector;
use crate::rollout::engine::Phase;

/// What a backend is, in one word: what the operator wants of it where that is not `ready`, else its health.
const STATES: [&str; 6] = ["up", "down", "unknown", "unchecked", "drain", "maint"];

const fn state_of(backend: &BackendStatus) -> &'static str {
    match (backend.state, backend.health.status) {
        (AdminState::Maint, _) => "maint",
        (AdminState::Drain, _) => "drain",
        (AdminState::Ready, HealthState::Up) => "up",
        (AdminState::Ready, HealthState::Down) => "down",
        (AdminState::Ready, HealthState::Unknown) => "unknown",
        (AdminState::Ready, HealthState::Unchecked) => "unchecked",
    }
}

/// What analysis compares, whether a rollout is under way or not.
const ANALYSES: [&str; 2] = ["clients_that_fared_badly", "clients_that_waited_long"];

/// Ends of roads at which a flow that wants to begin is turned away.
const REJECTIONS: [Reason; 15] = [
    Reason::Reset,
    Reason::NoBackend,
    Reason::EmptyPass,
    Reason::NoPortReset,
    Reason::NoPort,
    Reason::NoSessionReset,
    Reason::NoSession,
    Reason::LimitReset,
    Reason::LimitDrop,
    Reason::FaultReset,
    Reason::FaultDrop,
    Reason::Denied,
    Reason::SourceConnections,
    Reason::ServiceConnections,
    Reason::ResetSuppressed,
];

/// Ends of roads at which a client gets a RST of the balancer's own.
const RESETS: [Reason; 5] =
    [Reason::Reset, Reason::NoPortReset, Reason::NoSessionReset, Reason::LimitReset, Reason::FaultReset];

pub(super) fn of(scrape: &Scrape) -> Vec<Family> {
    let all = Subjects::of(scrape);
    [
        agent(scrape),
        traffic(&all),
        handshakes(scrape, &all),
        backends(scrape, &all),
        checks(scrape, &all),
        pools(scrape, &all),
        rollouts(scrape, &all),
        kernel(scrape),
        tables(scrape),
    ]
    .concat()
}

/// Services, pools and backends with their labels. Removed backends that still finish flows are among them.
struct Subjects<'a> {
    services: Vec<(&'a ServiceStatus, Labels)>,
    pools: Vec<(&'a ServiceStatus, &'a PoolStatus, Labels)>,
    backends: Vec<(&'a ServiceStatus, &'a BackendStatus, Labels)>,
}

impl<'a> Subjects<'a> {
    fn of(scrape: &'a Scrape) -> Self {
        let mut all = Self { services: Vec::new(), pools: Vec::new(), backends: Vec::new() };
        for service in &scrape.status.services {
            let frontend = ("frontend", service.name.as_str());
            all.services.push((service, Labels::of(&[frontend])));
            for pool in &service.pools {
                let group = ("group", pool.name.as_str());
                all.pools.push((service, pool, Labels::of(&[frontend, group])));
                for backend in &pool.backends {
                    let labels = Labels::of(&[frontend, group, ("backend", backend.name.as_str())]);
                    all.backends.push((service, backend, labels));
                }
            }
        }
        all
    }

    fn each_backend(&self, figure: impl Fn(&ServiceStatus, &BackendStatus) -> f64) -> Vec<Sample> {
        let each = self.backends.iter();
        each.map(|(service, backend, labels)| sample(labels.clone(), figure(service, backend))).collect()
    }

    fn each_pool(&self, figure: impl Fn(&ServiceStatus, &PoolStatus) -> f64) -> Vec<Sample> {
        let each = self.pools.iter();
        each.map(|(service, pool, labels)| sample(labels.clone(), figure(service, pool))).collect()
    }

    fn each_service(&self, figure: impl Fn(&ServiceStatus) -> f64) -> Vec<Sample> {
        self.services.iter().map(|(service, labels)| sample(labels.clone(), figure(service))).collect()
    }
}

/// The same labels with each of some values of one more.
fn by(
    labels: &Labels,
    name: &'static str,
    figures: impl IntoIterator<Item = (&'static str, f64)>,
) -> Vec<Sample> {
    figures.into_iter().map(|(word, value)| sample(labels.and(name, word), value)).collect()
}

fn sample(labels: Labels, value: f64) -> Sample {
    Sample { labels, value: Value::Number(value) }
}

fn family(name: &'static str, kind: Kind, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, kind, help, samples }
}

fn single(name: &'static str, kind: Kind, help: &'static str, value: f64) -> Family {
    family(name, kind, help, vec![sample(Labels::default(), value)])
}

fn agent(scrape: &Scrape) -> Vec<Family> {
    let layout = scrape.status.layout.to_string();
    let build = Labels::of(&[("version", &scrape.status.version), ("layout", &layout)]);
    let findings = [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        let of_it = scrape.status.findings.iter().filter(|finding| finding.severity == severity);
        (severity.as_str(), of_it.count() as f64)
    });
    vec![
        family(
            "lb_build_info",
            Kind::Gauge,
            "The agent's version, and the layout of its pinned maps.",
            vec![sample(build, 1.0)],
        ),
        family(
            "lb_findings",
            Kind::Gauge,
            "What is not as it should be (error, warning) or is worth knowing (info): `lbctl status` says what.",
            by(&Labels::default(), "severity", findings),
        ),
        single(
            "lb_config_last_success_timestamp_seconds",
            Kind::Gauge,
            "When a configuration was last taken.",
            scrape.tally.configured,
        ),
        single(
            "lb_agent_heartbeat_timestamp_seconds",
            Kind::Gauge,
            "When the agent last answered.",
            scrape.heartbeat,
        ),
        single(
            "lb_map_update_errors_total",
            Kind::Counter,
            "Services that could not be brought into the kernel's tables as they should be, since the agent started.",
            scrape.tally.refused as f64,
        ),
    ]
}

fn traffic(all: &Subjects<'_>) -> Vec<Family> {
    let ways = |figures: fn(&BackendStatus) -> [u64; 2]| {
        let each = all.backends.iter().flat_map(|(_, backend, labels)| {
            let [requests, replies] = figures(backend);
            by(labels, "direction", [("request", requests as f64), ("reply", replies as f64)])
        });
        each.collect()
    };
    vec![
        family(
            "lb_packets_total",
            Kind::Counter,
            "Packets to the backend, and replies that came back through the balancer (none do in the dsr modes).",
            ways(|it| [it.traffic.packets, it.traffic.reply_packets]),
        ),
        family(
            "lb_bytes_total",
            Kind::Counter,
            "The same in bytes of whole frames.",
            ways(|it| [it.traffic.bytes, it.traffic.reply_bytes]),
        ),
        family(
            "lb_connections_total",
            Kind::Counter,
            "Flows that began.",
            all.each_backend(|_, it| it.traffic.connections as f64),
        ),
        family(
            "lb_connections_active",
            Kind::Gauge,
            "Flows of the backend that are tracked, as of the last sweep. Flows of settled slots are in no table, and not counted.",
            all.each_backend(|_, it| it.tracked_flows as f64),
        ),
    ]
}

/// What becomes of connections, where that is looked at.
fn handshakes(scrape: &Scrape, all: &Subjects<'_>) -> Vec<Family> {
    let none = Handshakes::default();
    let of = |service: &ServiceStatus, pool: &PoolStatus| {
        scrape.handshakes.get(&(service.name.clone(), pool.name.clone())).unwrap_or(&none)
    };
    let watch = |backend: &BackendStatus| scrape.watches.get(&backend.id).copied().unwrap_or_default();
    let failures = all.backends.iter().flat_map(|(_, backend, labels)| {
        let Watch { refused, unanswered, .. } = watch(backend);
        by(labels, "reason", [("refused", refused as f64), ("timeout", unanswered as f64)])
    });
    let mut resets: Vec<Sample> = all
        .backends
        .iter()
        .map(|(_, backend, labels)| {
            sample(labels.and("origin", "backend"), watch(backend).reset_early as f64)
        })
        .collect();
    let ours: f64 = RESETS.into_iter().map(|reason| count_of(scrape, reason)).sum();
    resets.push(sample(Labels::of(&[("origin", "balancer")]), ours));
    let times = |which: fn(&Handshakes) -> Value| -> Vec<Sample> {
        let each = all.pools.iter();
        each.map(|(service, pool, labels)| Sample { labels: labels.clone(), value: which(of(service, pool)) })
            .collect()
    };
    vec![
        family(
            "lb_connect_failures_total",
            Kind::Counter,
            "Connections that the backend refused, or had not answered when the client asked again, since it was added: an agent's \
             restart goes on with the count. Counted while a rollout is under way, and always with passive health; in the dsr modes \
             only the latter is seen.",
            failures.collect(),
        ),
        family(
            "lb_connection_resets_total",
            Kind::Counter,
            "Connections that a backend reset before its first byte, counted like `lb_connect_failures_total`; and RSTs that the \
             balancer sent, since its tables were made: for want of a backend, a port or a session, beyond a limit, or for a fault \
             that is injected.",
            resets,
        ),
        family(
            "lb_connections_rejected_total",
            Kind::Counter,
            "Packets of flows that no backend may take, for want of one, beyond a limit, for a fault that is injected or for \
             their sender (`[service.protection]`), by what they got (`on_empty`).",
            by(
                &Labels::default(),
                "reason",
                REJECTIONS.map(|reason| (reason.name(), count_of(scrape, reason))),
            ),
        ),
        family(
            "lb_handshake_duration_seconds",
            Kind::Histogram,
            "From a client's first SYN to the backend's answer, since the agent started: one for each client and step of a rollout. \
             The sum takes each for the middle of its bucket.",
            times(|counts| Value::Histogram(histogram(&counts.answered))),
        ),
        family(
            "lb_first_byte_duration_seconds",
            Kind::Histogram,
            "From a client's first SYN to the backend's first byte, likewise since the agent started.",
            times(|counts| Value::Histogram(histogram(&counts.first_byte))),
        ),
    ]
}

fn backends(scrape: &Scrape, all: &Subjects<'_>) -> Vec<Family> {
    let states = all.backends.iter().flat_map(|(_, backend, labels)| {
        let is = state_of(backend);
        by(labels, "state", STATES.map(|state| (state, truth(state == is))))
    });
    let transitions = all.backends.iter().flat_map(|(service, backend, labels)| {
        let [up, down] = scrape.tally.transitions(&service.name, &backend.name);
        by(labels, "to", [("up", up as f64), ("down", down as f64)])
    });
    vec![
        family(
            "lb_backend_weight",
            Kind::Gauge,
            "The backend's weight, as it holds.",
            all.each_backend(|_, it| f64::from(it.weight)),
        ),
        family(
            "lb_backend_state",
            Kind::Gauge,
            "1 for the state that the backend is in: drain or maint where the operator says so, else its health.",
            states.collect(),
        ),
        family(
            "lb_backend_slots",
            Kind::Gauge,
            "Slots of its pool's table that lead to the backend.",
            all.each_backend(|_, it| f64::from(it.slots)),
        ),
        family(
            "lb_breaker_open",
            Kind::Gauge,
            "What the backend's breaker keeps away, from 0 (closed) to 1 (open).",
            all.each_backend(|_, it| {
                it.breaker.as_ref().map_or(0.0, |breaker| 1.0 - breaker.passes_percent / 100.0)
            }),
        ),
        family(
            "lb_health_transitions_total",
            Kind::Counter,
            "How often the backend's health changed, since the agent started.",
            transitions.collect(),
        ),
    ]
}

fn checks(scrape: &Scrape, all: &Subjects<'_>) -> Vec<Family> {
    let failures = all.pools.iter().flat_map(|(service, pool, labels)| {
        let counts = scrape.checks.of_pool(&service.name, &pool.name);
        let kinds = FailureKind::ALL.into_iter().zip(counts);
        by(labels, "reason", kinds.map(|(kind, count)| (kind.name(), count as f64)))
    });
    vec![
        family(
            "lb_health_checks_total",
            Kind::Counter,
            "Health checks of the backend that have ended, since the agent started.",
            all.each_backend(|service, it| scrape.checks.of_backend(&service.name, &it.name) as f64),
        ),
        family(
            "lb_health_check_failures_total",
            Kind::Counter,
            "Those of them that failed, of all backends of the pool.",
            failures.collect(),
        ),
        family(
            "lb_health_check_duration_seconds",
            Kind::Gauge,
            "How long the backend's last check took; 0 before the first one.",
            all.each_backend(|_, it| it.health.last_duration_ms.unwrap_or(0.0) / 1e3),
        ),
    ]
}

fn pools(scrape: &Scrape, all: &Subjects<'_>) -> Vec<Family> {
    let ejections = all.pools.iter().flat_map(|(service, pool, labels)| {
        let count = |detector| scrape.tally.ejections(&service.name, &pool.name, detector) as f64;
        by(labels, "detector", Detector::ALL.map(|detector| (detector.name(), count(detector))))
    });
    vec![
        family(
            "lb_split_ratio",
            Kind::Gauge,
            "The pool's part of the clients, from 0 to 1, as the kernel has it.",
            all.each_pool(|service, pool| match pool.role {
                PoolRole::Stable => 1.0 - service.split.new,
                PoolRole::Canary => service.split.new,
                PoolRole::Idle => 0.0,
            }),
        ),
        family(
            "lb_backends",
            Kind::Gauge,
            "Backends of the pool.",
            all.each_pool(|_, pool| pool.backends.iter().filter(|it| !it.terminating).count() as f64),
        ),
        family(
            "lb_backends_healthy",
            Kind::Gauge,
            "Backends of the pool that are up or never checked.",
            all.each_pool(|_, pool| {
                let healthy = |it: &&BackendStatus| {
                    !it.terminating && matches!(it.health.status, HealthState::Up | HealthState::Unchecked)
                };
                pool.backends.iter().filter(healthy).count() as f64
            }),
        ),
        family(
            "lb_panic_active",
            Kind::Gauge,
            "1 while so few backends of the pool are healthy that health is ignored.",
            all.each_pool(|_, pool| truth(pool.panic)),
        ),
        family(
            "lb_ejections_total",
            Kind::Counter,
            "Backends of the pool that were taken out as outliers, by what found them, since the agent started.",
            ejections.collect(),
        ),
    ]
}

fn rollouts(scrape: &Scrape, all: &Subjects<'_>) -> Vec<Family> {
    let rollout = |service: &ServiceStatus| scrape.rollouts.iter().find(|(name, ..)| *name == service.name);
    let phases = all.services.iter().flat_map(|(service, labels)| {
        let now = rollout(service).map(|(_, phase, _)| *phase);
        by(labels, "phase", Phase::ALL.map(|phase| (phase.name(), truth(now == Some(phase)))))
    });
    let rollbacks = all.services.iter().flat_map(|(service, labels)| {
        let count = |cause| scrape.tally.rollbacks(&service.name, cause) as f64;
        by(labels, "cause", Cause::ALL.map(|cause| (cause.name(), count(cause))))
    });
    vec![
        family(
            "lb_rollout_phase",
            Kind::Gauge,
            "1 for the phase that the service's newest rollout is in; 0 in all where there was none.",
            phases.collect(),
        ),
        family(
            "lb_rollout_step",
            Kind::Gauge,
            "The step that the rollout is at, from 1; 0 before the first.",
            all.each_service(|service| rollout(service).map_or(0.0, |(_, _, step)| *step as f64)),
        ),
        family(
            "lb_rollbacks_total",
            Kind::Counter,
            "Canaries that were taken back, by hand or by their rollout, since the agent started.",
            rollbacks.collect(),
        ),
        family(
            "lb_rollback_apply_seconds",
            Kind::Gauge,
            "How long the service's last rollback took, from the request (or a rollout's verdict) to the store in the kernel; 0 \
             where there was none since the agent started.",
            all.each_service(|service| scrape.tally.rollback_seconds(&service.name)),
        ),
        family(
            "lb_analysis_value",
            Kind::Gauge,
            "What the analysis of a rollout under way looks at: a part of the pool's clients, from 0 to 1 (0 where none is under \
             way), or a figure of Prometheus.",
            all.pools
                .iter()
                .flat_map(|(service, pool, labels)| analysis(scrape, service, pool, labels))
                .collect(),
        ),
    ]
}

fn analysis(scrape: &Scrape, service: &ServiceStatus, pool: &PoolStatus, labels: &Labels) -> Vec<Sample> {
    let here = scrape.analyses.iter().filter(|it| it.service == service.name && it.pool == pool.name);
    let here: Vec<_> = here.map(|it| (it.metric.clone(), it.value)).collect();
    let always = ANALYSES.iter().filter(|known| here.iter().all(|(metric, _)| metric != *known));
    let always: Vec<_> = always.map(|known| ((*known).to_owned(), 0.0)).collect();
    always
        .into_iter()
        .chain(here)
        .map(|(metric, value)| sample(labels.and("metric", metric), value))
        .collect()
}

fn count_of(scrape: &Scrape, reason: Reason) -> f64 {
    scrape.counters.reasons[reason as usize] as f64
}

fn kernel(scrape: &Scrape) -> Vec<Family> {
    let drops = Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop);
    let drops = drops.map(|reason| (reason.name(), count_of(scrape, *reason)));
    let passed = Reason::ALL.iter().filter(|reason| reason.action() == Action::Pass);
    let passed = passed.map(|reason| (reason.name(), count_of(scrape, *reason)));
    let events =
        Event::ALL.iter().map(|event| (event.name(), scrape.counters.events[*event as usize] as f64));
    let interfaces = Labels::of(&[("interface", &scrape.interfaces.join(","))]);
    let actions = [Action::Transmit, Action::Pass, Action::Drop].map(|action| {
        let of_it = Reason::ALL.iter().filter(|reason| reason.action() == action);
        (action.name(), of_it.map(|reason| count_of(scrape, *reason)).sum())
    });
    vec![
        family(
            "lb_xdp_actions_total",
            Kind::Counter,
            "What became of packets; counted for all interfaces together, which the label lists.",
            by(&interfaces, "action", actions),
        ),
        family(
            "lb_drops_total",
            Kind::Counter,
            "Packets that went nowhere.",
            by(&Labels::default(), "reason", drops),
        ),
        family(
            "lb_passed_total",
            Kind::Counter,
            "Packets that went up to the host.",
            by(&Labels::default(), "reason", passed),
        ),
        family(
            "lb_data_path_events_total",
            Kind::Counter,
            "What else happened on packets' roads.",
            by(&Labels::default(), "event", events),
        ),
    ]
}

fn tables(scrape: &Scrape) -> Vec<Family> {
    let dataplane = &scrape.status.dataplane;
    let rooms = [
        ("tcp", dataplane.flows),
        ("udp", dataplane.udp_flows),
        ("half_open", dataplane.half_open),
        ("sessions", dataplane.sessions),
    ];
    vec![
        family(
            "lb_flows",
            Kind::Gauge,
            "Flows that are tracked: those that their slot does not explain.",
            by(&Labels::default(), "table", rooms.map(|(name, room)| (name, room.used as f64))),
        ),
        family(
            "lb_flow_capacity",
            Kind::Gauge,
            "Room for tracked flows.",
            by(&Labels::default(), "table", rooms.map(|(name, room)| (name, room.capacity as f64))),
        ),
        single(
            "lb_flows_forgotten_total",
            Kind::Counter,
            "Tracked flows that were forgotten for want of room, at least, since the agent started.",
            scrape.forgotten as f64,
        ),
        single(
            "lb_slots_unsettled",
            Kind::Gauge,
            "Slots whose flows are looked up, because a change of theirs has not settled.",
            dataplane.slots.unsettled as f64,
        ),
    ]
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests;
