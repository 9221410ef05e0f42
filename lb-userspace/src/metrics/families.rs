//! Which figures there are. `docs/metrics.md` is made of this.

use lb_common::verdict::{Action, Event, Reason};
use lb_common::watch::Watch;

use super::handshakes::{Handshakes, histogram};
use super::text::{Family, Kind, Labels, Sample, Value, labels};
use super::{Analysed, Cause, Scrape};
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

/// The series are made as they are written down: there may be hundreds of thousands.
pub(super) fn of<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> impl Iterator<Item = Family<'a>> {
    [
        agent(scrape, all),
        traffic(all),
        handshakes(scrape, all),
        backends(all),
        checks(scrape, all),
        pools(scrape, all),
        rollouts(scrape, all),
        kernel(scrape, all),
        tables(scrape),
    ]
    .into_iter()
    .flatten()
}

/// Services, pools and backends with their labels, and what is found by their names. Removed backends that still finish flows are among
/// them.
pub(super) struct Subjects<'a> {
    build: String,
    interfaces: Vec<String>,
    services: Vec<OfService<'a>>,
    pools: Vec<OfPool<'a>>,
    backends: Vec<OfBackend<'a>>,
}

struct OfService<'a> {
    it: &'a ServiceStatus,
    labels: String,
    rollout: Option<(Phase, usize)>,
}

struct OfPool<'a> {
    service: &'a ServiceStatus,
    it: &'a PoolStatus,
    labels: String,
    handshakes: &'a Handshakes,
}

struct OfBackend<'a> {
    it: &'a BackendStatus,
    labels: String,
    /// How often it came up, and how often it went down.
    transitions: [u64; 2],
    checks: u64,
    /// What became of its connections.
    watch: Watch,
}

type Samples<'a> = Box<dyn Iterator<Item = Sample<'a>> + 'a>;

impl<'a> Subjects<'a> {
    pub(super) fn of(scrape: &'a Scrape) -> Self {
        static NONE: Handshakes = Handshakes::NONE;
        let layout = scrape.status.layout.to_string();
        let mut all = Self {
            build: labels(&[("version", &scrape.status.version), ("layout", &layout)]),
            interfaces: scrape.interfaces.iter().map(|(name, _)| labels(&[("interface", name)])).collect(),
            services: Vec::new(),
            pools: Vec::new(),
            backends: Vec::new(),
        };
        for service in &scrape.status.services {
            let name = service.name.as_str();
            let frontend = ("frontend", name);
            all.services.push(OfService {
                it: service,
                labels: labels(&[frontend]),
                rollout: scrape.rollouts.get(name).copied(),
            });
            let (transitions, checks) = (scrape.tally.of_service(name), scrape.checks.of_service(name));
            for pool in &service.pools {
                let group = ("group", pool.name.as_str());
                all.pools.push(OfPool {
                    service,
                    it: pool,
                    labels: labels(&[frontend, group]),
                    handshakes: scrape
                        .handshakes
                        .get(name)
                        .and_then(|of| of.get(&pool.name))
                        .unwrap_or(&NONE),
                });
                for backend in &pool.backends {
                    all.backends.push(OfBackend {
                        it: backend,
                        labels: labels(&[frontend, group, ("backend", backend.name.as_str())]),
                        transitions: transitions
                            .and_then(|of| of.get(&backend.name))
                            .copied()
                            .unwrap_or_default(),
                        checks: checks.and_then(|of| of.get(&backend.name)).copied().unwrap_or_default(),
                        watch: scrape.watches.get(&backend.id).copied().unwrap_or_default(),
                    });
                }
            }
        }
        all
    }

    fn each_backend(&'a self, figure: impl Fn(&OfBackend<'a>) -> f64 + 'a) -> Samples<'a> {
        let each = self.backends.iter();
        Box::new(each.map(move |of| sample(shared(&of.labels), figure(of))))
    }

    /// With each of some values of one more label.
    fn each_backend_by<const N: usize>(
        &'a self,
        name: &'static str,
        figures: impl Fn(&OfBackend<'a>) -> [(&'static str, f64); N] + 'a,
    ) -> Samples<'a> {
        Box::new(self.backends.iter().flat_map(move |of| by(shared(&of.labels), name, figures(of))))
    }

    fn each_pool(&'a self, figure: impl Fn(&OfPool<'a>) -> f64 + 'a) -> Samples<'a> {
        Box::new(self.pools.iter().map(move |of| sample(shared(&of.labels), figure(of))))
    }

    fn each_pool_by<const N: usize>(
        &'a self,
        name: &'static str,
        figures: impl Fn(&OfPool<'a>) -> [(&'static str, f64); N] + 'a,
    ) -> Samples<'a> {
        Box::new(self.pools.iter().flat_map(move |of| by(shared(&of.labels), name, figures(of))))
    }

    fn each_service(&'a self, figure: impl Fn(&OfService<'a>) -> f64 + 'a) -> Samples<'a> {
        Box::new(self.services.iter().map(move |of| sample(shared(&of.labels), figure(of))))
    }

    fn each_service_by<const N: usize>(
        &'a self,
        name: &'static str,
        figures: impl Fn(&OfService<'a>) -> [(&'static str, f64); N] + 'a,
    ) -> Samples<'a> {
        Box::new(self.services.iter().flat_map(move |of| by(shared(&of.labels), name, figures(of))))
    }
}

const fn shared(shared: &str) -> Labels<'_> {
    Labels { shared, own: None }
}

/// The same labels with each of some values of one more.
fn by<'a>(
    labels: Labels<'a>,
    name: &'static str,
    figures: impl IntoIterator<Item = (&'static str, f64)>,
) -> impl Iterator<Item = Sample<'a>> {
    figures.into_iter().map(move |(word, value)| sample(labels.and(name, word), value))
}

/// Series that have no other label.
fn only_by<'a>(
    name: &'static str,
    figures: impl IntoIterator<Item = (&'static str, f64)> + 'a,
) -> Samples<'a> {
    Box::new(by(Labels::default(), name, figures))
}

const fn sample(labels: Labels<'_>, value: f64) -> Sample<'_> {
    Sample { labels, value: Value::Number(value) }
}

const fn family<'a>(name: &'static str, kind: Kind, help: &'static str, samples: Samples<'a>) -> Family<'a> {
    Family { name, kind, help, samples }
}

fn single<'a>(name: &'static str, kind: Kind, help: &'static str, value: f64) -> Family<'a> {
    family(name, kind, help, Box::new(std::iter::once(sample(Labels::default(), value))))
}

fn agent<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let findings = [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        let of_it = scrape.status.findings.iter().filter(|finding| finding.severity == severity);
        (severity.as_str(), of_it.count() as f64)
    });
    vec![
        family(
            "lb_build_info",
            Kind::Gauge,
            "The agent's version, and the layout of its pinned maps.",
            Box::new(std::iter::once(sample(shared(&all.build), 1.0))),
        ),
        family(
            "lb_findings",
            Kind::Gauge,
            "What is not as it should be (error, warning) or is worth knowing (info): `lbctl status` says what.",
            only_by("severity", findings),
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

fn traffic<'a>(all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let ways = |figures: fn(&BackendStatus) -> [u64; 2]| {
        all.each_backend_by("direction", move |of| {
            let [requests, replies] = figures(of.it);
            [("request", requests as f64), ("reply", replies as f64)]
        })
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
            all.each_backend(|of| of.it.traffic.connections as f64),
        ),
        family(
            "lb_connections_active",
            Kind::Gauge,
            "Flows of the backend that are tracked, as of the last sweep. Flows of settled slots are in no table, and not counted.",
            all.each_backend(|of| of.it.tracked_flows as f64),
        ),
    ]
}

/// What becomes of connections, where that is looked at.
fn handshakes<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let failures = all.each_backend_by("reason", |of| {
        [("refused", of.watch.refused as f64), ("timeout", of.watch.unanswered as f64)]
    });
    let resets = all.each_backend_by("origin", |of| [("backend", of.watch.reset_early as f64)]);
    let ours: f64 = RESETS.into_iter().map(|reason| count_of(scrape, reason)).sum();
    let resets = Box::new(resets.chain(only_by("origin", [("balancer", ours)])));
    let times = |which: fn(&Handshakes) -> Value| -> Samples<'a> {
        let each = all.pools.iter();
        Box::new(each.map(move |of| Sample { labels: shared(&of.labels), value: which(of.handshakes) }))
    };
    vec![
        family(
            "lb_connect_failures_total",
            Kind::Counter,
            "Connections that the backend refused, or had not answered when the client asked again, since it was added: an agent's \
             restart goes on with the count. Counted while a rollout is under way, and always with passive health; in the dsr modes \
             only the latter is seen.",
            failures,
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
            only_by("reason", REJECTIONS.map(|reason| (reason.name(), count_of(scrape, reason)))),
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

fn backends<'a>(all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let states = all.each_backend_by("state", |of| {
        let is = state_of(of.it);
        STATES.map(|state| (state, truth(state == is)))
    });
    let transitions = all.each_backend_by("to", |of| {
        let [up, down] = of.transitions;
        [("up", up as f64), ("down", down as f64)]
    });
    vec![
        family(
            "lb_backend_weight",
            Kind::Gauge,
            "The backend's weight, as it holds.",
            all.each_backend(|of| f64::from(of.it.weight)),
        ),
        family(
            "lb_backend_state",
            Kind::Gauge,
            "1 for the state that the backend is in: drain or maint where the operator says so, else its health.",
            states,
        ),
        family(
            "lb_backend_slots",
            Kind::Gauge,
            "Slots of its pool's table that lead to the backend.",
            all.each_backend(|of| f64::from(of.it.slots)),
        ),
        family(
            "lb_breaker_open",
            Kind::Gauge,
            "What the backend's breaker keeps away, from 0 (closed) to 1 (open).",
            all.each_backend(|of| {
                of.it.breaker.as_ref().map_or(0.0, |breaker| 1.0 - breaker.passes_percent / 100.0)
            }),
        ),
        family(
            "lb_health_transitions_total",
            Kind::Counter,
            "How often the backend's health changed, since the agent started.",
            transitions,
        ),
    ]
}

fn checks<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let failures = all.each_pool_by("reason", |of| {
        let counts = scrape.checks.of_pool(&of.service.name, &of.it.name);
        FailureKind::ALL.map(|kind| (kind.name(), counts[kind as usize] as f64))
    });
    vec![
        family(
            "lb_health_checks_total",
            Kind::Counter,
            "Health checks of the backend that have ended, since the agent started.",
            all.each_backend(|of| of.checks as f64),
        ),
        family(
            "lb_health_check_failures_total",
            Kind::Counter,
            "Those of them that failed, of all backends of the pool.",
            failures,
        ),
        family(
            "lb_health_check_duration_seconds",
            Kind::Gauge,
            "How long the backend's last check took; 0 before the first one.",
            all.each_backend(|of| of.it.health.last_duration_ms.unwrap_or(0.0) / 1e3),
        ),
    ]
}

fn pools<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let ejections = all.each_pool_by("detector", |of| {
        let count = |detector| scrape.tally.ejections(&of.service.name, &of.it.name, detector) as f64;
        Detector::ALL.map(|detector| (detector.name(), count(detector)))
    });
    vec![
        family(
            "lb_split_ratio",
            Kind::Gauge,
            "The pool's part of the clients, from 0 to 1, as the kernel has it.",
            all.each_pool(|of| match of.it.role {
                PoolRole::Stable => 1.0 - of.service.split.new,
                PoolRole::Canary => of.service.split.new,
                PoolRole::Idle => 0.0,
            }),
        ),
        family(
            "lb_backends",
            Kind::Gauge,
            "Backends of the pool.",
            all.each_pool(|of| of.it.backends.iter().filter(|it| !it.terminating).count() as f64),
        ),
        family(
            "lb_backends_healthy",
            Kind::Gauge,
            "Backends of the pool that are up or never checked.",
            all.each_pool(|of| {
                let healthy = |it: &&BackendStatus| {
                    !it.terminating && matches!(it.health.status, HealthState::Up | HealthState::Unchecked)
                };
                of.it.backends.iter().filter(healthy).count() as f64
            }),
        ),
        family(
            "lb_panic_active",
            Kind::Gauge,
            "1 while so few backends of the pool are healthy that health is ignored.",
            all.each_pool(|of| truth(of.it.panic)),
        ),
        family(
            "lb_ejections_total",
            Kind::Counter,
            "Backends of the pool that were taken out as outliers, by what found them, since the agent started.",
            ejections,
        ),
    ]
}

fn rollouts<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let phases = all.each_service_by("phase", |of| {
        let now = of.rollout.map(|(phase, _)| phase);
        Phase::ALL.map(|phase| (phase.name(), truth(now == Some(phase))))
    });
    let rollbacks = all.each_service_by("cause", |of| {
        Cause::ALL.map(|cause| (cause.name(), scrape.tally.rollbacks(&of.it.name, cause) as f64))
    });
    vec![
        family(
            "lb_rollout_phase",
            Kind::Gauge,
            "1 for the phase that the service's newest rollout is in; 0 in all where there was none.",
            phases,
        ),
        family(
            "lb_rollout_step",
            Kind::Gauge,
            "The step that the rollout is at, from 1; 0 before the first.",
            all.each_service(|of| of.rollout.map_or(0.0, |(_, step)| step as f64)),
        ),
        family(
            "lb_rollbacks_total",
            Kind::Counter,
            "Canaries that were taken back, by hand (from more than 0 %) or by their rollout, since the agent started.",
            rollbacks,
        ),
        family(
            "lb_rollback_apply_seconds",
            Kind::Gauge,
            "How long the service's last rollback took, from the request (or a rollout's verdict) to the store in the kernel; 0 \
             where there was none since the agent started.",
            all.each_service(|of| scrape.tally.rollback_seconds(&of.it.name)),
        ),
        family(
            "lb_analysis_value",
            Kind::Gauge,
            "What the analysis of a rollout under way looks at: a part of the pool's clients, from 0 to 1 (0 where none is under \
             way), or a figure of Prometheus.",
            Box::new(all.pools.iter().flat_map(|of| analysis(scrape, of))),
        ),
    ]
}

fn analysis<'a>(scrape: &'a Scrape, of: &'a OfPool<'a>) -> impl Iterator<Item = Sample<'a>> {
    let is_here = |it: &&Analysed| it.service == of.service.name && it.pool == of.it.name;
    let here = move || scrape.analyses.iter().filter(is_here);
    let always = ANALYSES.iter().filter(move |known| here().all(|it| it.metric != **known));
    let always = always.map(|known| (*known, 0.0));
    always
        .chain(here().map(|it| (it.metric.as_str(), it.value)))
        .map(|(metric, value)| sample(shared(&of.labels).and("metric", metric), value))
}

fn count_of(scrape: &Scrape, reason: Reason) -> f64 {
    scrape.counters.reasons[reason as usize] as f64
}

fn kernel<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let ending = |action| Reason::ALL.iter().filter(move |reason| reason.action() == action);
    let counted = |action| ending(action).map(|reason| (reason.name(), count_of(scrape, *reason)));
    let events =
        Event::ALL.iter().map(|event| (event.name(), scrape.counters.events[*event as usize] as f64));
    let actions = all.interfaces.iter().zip(&scrape.interfaces).flat_map(move |(labels, (_, counters))| {
        let figures = [Action::Transmit, Action::Pass, Action::Drop].map(|action| {
            let counts = ending(action).map(|reason| counters.reasons[*reason as usize] as f64);
            (action.name(), counts.sum())
        });
        by(shared(labels), "action", figures)
    });
    vec![
        family(
            "lb_xdp_actions_total",
            Kind::Counter,
            "What became of packets that came in by the interface. Those of interfaces whose numbers are the same modulo 64 are counted \
             together, which the label lists.",
            Box::new(actions),
        ),
        family(
            "lb_drops_total",
            Kind::Counter,
            "Packets that went nowhere.",
            only_by("reason", counted(Action::Drop)),
        ),
        family(
            "lb_passed_total",
            Kind::Counter,
            "Packets that went up to the host.",
            only_by("reason", counted(Action::Pass)),
        ),
        family(
            "lb_data_path_events_total",
            Kind::Counter,
            "What else happened on packets' roads.",
            only_by("event", events),
        ),
    ]
}

fn tables<'a>(scrape: &'a Scrape) -> Vec<Family<'a>> {
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
            only_by("table", rooms.map(|(name, room)| (name, room.used as f64))),
        ),
        family(
            "lb_flow_capacity",
            Kind::Gauge,
            "Room for tracked flows.",
            only_by("table", rooms.map(|(name, room)| (name, room.capacity as f64))),
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
