//! Which figures there are. `docs/metrics.md` is made of this.

use lb_common::abi::{LAYOUT, Traffic};
use lb_common::measure::BUCKETS;
use lb_common::verdict::{Action, Event, Reason};

use super::handshakes::{Handshakes, WRITTEN, histogram};
use super::text::{Family, Kind, Series, label};
use super::{Analysed, Backend, Cause, Pool, Scrape, Service};
use crate::api::{BackendPath, HealthState, PoolRole, Severity};
use crate::config::AdminState;
use crate::health::FailureKind;
use crate::outlier::Detector;
use crate::rollout::engine::Phase;

/// What a backend is, in one word: what the operator wants of it where that is not `ready`, else its health.
const STATES: [&str; 6] = ["up", "down", "unknown", "unchecked", "drain", "maint"];

const fn state_of(backend: &Backend) -> &'static str {
    match (backend.state, backend.health) {
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

pub(super) fn of<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> impl Iterator<Item = Family<'a>> {
    [
        agent(scrape),
        traffic(all),
        handshakes(scrape, all),
        backends(all),
        checks(all),
        pools(scrape, all),
        rollouts(scrape, all),
        kernel(scrape, all),
        tables(scrape),
    ]
    .into_iter()
    .flatten()
}

/// Services, pools and backends with their labels, and what is found by their names.
pub(super) struct Subjects<'a> {
    interfaces: Vec<String>,
    services: Vec<OfService<'a>>,
    pools: Vec<OfPool<'a>>,
    backends: Vec<OfBackend<'a>>,
}

struct OfService<'a> {
    it: &'a Service,
    labels: String,
}

struct OfPool<'a> {
    service: &'a Service,
    it: &'a Pool,
    labels: String,
    handshakes: &'a Handshakes,
}

struct OfBackend<'a> {
    it: &'a Backend,
    labels: String,
    /// How often it came up, and how often it went down.
    transitions: [u64; 2],
}

/// What many series are about.
trait Subject {
    fn labels(&self) -> &str;
}

impl Subject for OfService<'_> {
    fn labels(&self) -> &str {
        &self.labels
    }
}

impl Subject for OfPool<'_> {
    fn labels(&self) -> &str {
        &self.labels
    }
}

impl Subject for OfBackend<'_> {
    fn labels(&self) -> &str {
        &self.labels
    }
}

impl<'a> Subjects<'a> {
    pub(super) fn of(scrape: &'a Scrape) -> Self {
        static NONE: Handshakes = Handshakes::NONE;
        let pools = || scrape.services.iter().flat_map(|service| &service.pools);
        let mut all = Self {
            interfaces: scrape.interfaces.iter().map(|(name, _)| label("", "interface", name)).collect(),
            services: Vec::with_capacity(scrape.services.len()),
            pools: Vec::with_capacity(pools().count()),
            backends: Vec::with_capacity(pools().map(|pool| pool.backends.len()).sum()),
        };
        for service in &scrape.services {
            let labels = label("", "frontend", &service.name);
            let handshakes = scrape.handshakes.get(&service.name);
            let transitions = scrape.tally.of_service(&service.name);
            for pool in &service.pools {
                let labels = label(&labels, "group", &pool.name);
                all.backends.extend(pool.backends.iter().map(|backend| OfBackend {
                    it: backend,
                    labels: label(&labels, "backend", &BackendPath::name_of(backend.address)),
                    transitions:
                        transitions.and_then(|of| of.get(&backend.address)).copied().unwrap_or_default(),
                }));
                let handshakes = handshakes.and_then(|of| of.get(&pool.name)).unwrap_or(&NONE);
                all.pools.push(OfPool { service, it: pool, labels, handshakes });
            }
            all.services.push(OfService { it: service, labels });
        }
        all
    }
}

/// A series of each subject; `own` is one more label, or empty.
fn each<'a, S: Subject>(
    subjects: &'a [S],
    own: impl Into<String>,
    figure: impl Fn(&'a S) -> f64 + 'a,
) -> Series<'a> {
    Series::Each(own.into(), Box::new(subjects.iter().map(move |of| (of.labels(), figure(of)))))
}

/// Series that are about nothing but the value of one label.
fn only_by<'a, 'n>(name: &str, figures: impl IntoIterator<Item = (&'n str, f64)>) -> Vec<Series<'a>> {
    figures.into_iter().map(|(value, figure)| Series::One(label("", name, value), figure)).collect()
}

fn family<'a>(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    series: impl Into<Vec<Series<'a>>>,
) -> Family<'a> {
    Family { name, kind, help, series: series.into() }
}

fn single<'a>(name: &'static str, kind: Kind, help: &'static str, value: f64) -> Family<'a> {
    family(name, kind, help, [Series::One(String::new(), value)])
}

fn agent<'a>(scrape: &Scrape) -> Vec<Family<'a>> {
    let build = label(&label("", "version", env!("CARGO_PKG_VERSION")), "layout", &LAYOUT.to_string());
    let findings = [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        let of_it = scrape.findings.iter().filter(|finding| finding.severity == severity);
        (severity.as_str(), of_it.count() as f64)
    });
    vec![
        family(
            "lb_build_info",
            Kind::Gauge,
            "The agent's version, and the layout of its pinned maps.",
            [Series::One(build, 1.0)],
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
    let ways = |requests: fn(&Traffic) -> u64, replies: fn(&Traffic) -> u64| {
        [("request", requests), ("reply", replies)].map(|(way, figure)| {
            each(&all.backends, label("", "direction", way), move |of| figure(&of.it.traffic) as f64)
        })
    };
    vec![
        family(
            "lb_packets_total",
            Kind::Counter,
            "Packets to the backend, and replies that came back through the balancer (none do in the dsr modes).",
            ways(|it| it.packets, |it| it.reply_packets),
        ),
        family(
            "lb_bytes_total",
            Kind::Counter,
            "The same in bytes of whole frames.",
            ways(|it| it.bytes, |it| it.reply_bytes),
        ),
        family(
            "lb_connections_total",
            Kind::Counter,
            "TCP flows that began; UDP's in full-nat only.",
            [each(&all.backends, "", |of| of.it.traffic.connections as f64)],
        ),
        family(
            "lb_connections_active",
            Kind::Gauge,
            "Flows of the backend that are tracked, as of the last sweep. Flows of settled slots are in no table, and not counted.",
            [each(&all.backends, "", |of| of.it.tracked_flows as f64)],
        ),
    ]
}

/// What becomes of connections, where that is looked at.
fn handshakes<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let failures = [
        each(&all.backends, label("", "reason", "refused"), |of| of.it.watch.refused as f64),
        each(&all.backends, label("", "reason", "timeout"), |of| of.it.watch.unanswered as f64),
    ];
    let ours = RESETS.into_iter().map(|reason| count_of(scrape, reason)).sum();
    let resets = [
        each(&all.backends, label("", "origin", "backend"), |of| of.it.watch.reset_early as f64),
        Series::One(label("", "origin", "balancer"), ours),
    ];
    let times = |which: fn(&Handshakes) -> &[u64; BUCKETS]| {
        let each = all.pools.iter();
        let each = each.map(move |of| (of.labels.as_str(), histogram(which(of.handshakes))));
        [Series::Histograms(&WRITTEN, Box::new(each))]
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
            "Packets that were refused, by reason: no backend may take them, there is no port or session (full-nat), a limit, an \
             injected fault, or protection.",
            only_by("reason", REJECTIONS.map(|reason| (reason.name(), count_of(scrape, reason)))),
        ),
        family(
            "lb_handshake_duration_seconds",
            Kind::Histogram,
            "From a client's first SYN to the backend's answer, since the agent started: one for each client and step of a rollout. \
             The sum takes each for the middle of its bucket.",
            times(|counts| &counts.answered),
        ),
        family(
            "lb_first_byte_duration_seconds",
            Kind::Histogram,
            "From a client's first SYN to the backend's first byte, likewise since the agent started.",
            times(|counts| &counts.first_byte),
        ),
    ]
}

fn backends<'a>(all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let states = STATES.map(|state| {
        each(&all.backends, label("", "state", state), move |of| truth(state_of(of.it) == state))
    });
    let transitions = [
        each(&all.backends, label("", "to", "up"), |of| of.transitions[0] as f64),
        each(&all.backends, label("", "to", "down"), |of| of.transitions[1] as f64),
    ];
    vec![
        family(
            "lb_backend_weight",
            Kind::Gauge,
            "The backend's weight, as it holds.",
            [each(&all.backends, "", |of| f64::from(of.it.weight))],
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
            [each(&all.backends, "", |of| f64::from(of.it.slots))],
        ),
        family(
            "lb_breaker_open",
            Kind::Gauge,
            "What the backend's breaker keeps away, from 0 (closed) to 1 (open).",
            [each(&all.backends, "", |of| of.it.kept_away)],
        ),
        family(
            "lb_health_transitions_total",
            Kind::Counter,
            "How often the backend's health changed, since the agent started.",
            transitions,
        ),
    ]
}

fn checks<'a>(all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let failures = FailureKind::ALL.map(|kind| {
        each(&all.pools, label("", "reason", kind.name()), move |of| of.it.failures[kind as usize] as f64)
    });
    vec![
        family(
            "lb_health_checks_total",
            Kind::Counter,
            "Health checks of the backend that have ended, since the agent started.",
            [each(&all.backends, "", |of| of.it.checks as f64)],
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
            [each(&all.backends, "", |of| of.it.last_check)],
        ),
    ]
}

fn pools<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let ejections = Detector::ALL.map(|detector| {
        each(&all.pools, label("", "detector", detector.name()), move |of| {
            scrape.tally.ejections(&of.service.name, &of.it.name, detector) as f64
        })
    });
    vec![
        family(
            "lb_split_ratio",
            Kind::Gauge,
            "The pool's part of the clients, from 0 to 1, as the kernel has it.",
            [each(&all.pools, "", |of| match of.it.role {
                PoolRole::Stable => 1.0 - of.service.split,
                PoolRole::Canary => of.service.split,
                PoolRole::Idle => 0.0,
            })],
        ),
        family(
            "lb_backends",
            Kind::Gauge,
            "Backends of the pool.",
            [each(&all.pools, "", |of| of.it.backends.iter().filter(|it| !it.terminating).count() as f64)],
        ),
        family(
            "lb_backends_healthy",
            Kind::Gauge,
            "Backends of the pool that are up or never checked.",
            [each(&all.pools, "", |of| {
                let healthy = |it: &&Backend| {
                    !it.terminating && matches!(it.health, HealthState::Up | HealthState::Unchecked)
                };
                of.it.backends.iter().filter(healthy).count() as f64
            })],
        ),
        family(
            "lb_panic_active",
            Kind::Gauge,
            "1 while so few backends of the pool are healthy that health is ignored.",
            [each(&all.pools, "", |of| truth(of.it.panic))],
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
    let phases = Phase::ALL.map(|phase| {
        each(&all.services, label("", "phase", phase.name()), move |of| {
            truth(of.it.rollout.is_some_and(|(now, _)| now == phase))
        })
    });
    let rollbacks = Cause::ALL.map(|cause| {
        each(&all.services, label("", "cause", cause.name()), move |of| {
            scrape.tally.rollbacks(&of.it.name, cause) as f64
        })
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
            [each(&all.services, "", |of| of.it.rollout.map_or(0.0, |(_, step)| step as f64))],
        ),
        family(
            "lb_rollbacks_total",
            Kind::Counter,
            "Canaries that were rolled back, by hand (from more than 0 %) or by their rollout, since the agent started.",
            rollbacks,
        ),
        family(
            "lb_rollback_apply_seconds",
            Kind::Gauge,
            "How long the service's last rollback took, from the request (or a rollout's verdict) to the store in the kernel; 0 \
             where there was none since the agent started.",
            [each(&all.services, "", |of| scrape.tally.rollback_seconds(&of.it.name))],
        ),
        family(
            "lb_analysis_value",
            Kind::Gauge,
            "What the analysis of a rollout under way looks at: a part of the pool's clients, from 0 to 1 (0 where none is under \
             way), or a figure of Prometheus.",
            analysis(scrape, all),
        ),
    ]
}

fn analysis<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Series<'a>> {
    let known = ANALYSES.map(|metric| {
        each(&all.pools, label("", "metric", metric), move |of| {
            let is_it = |it: &&Analysed| {
                it.metric == metric && it.service == of.service.name && it.pool == of.it.name
            };
            scrape.analyses.iter().find(is_it).map_or(0.0, |it| it.value)
        })
    });
    let others = scrape.analyses.iter().filter(|it| !ANALYSES.contains(&it.metric.as_str()));
    let others = others.map(|it| {
        let pool = label(&label("", "frontend", &it.service), "group", &it.pool);
        Series::One(label(&pool, "metric", &it.metric), it.value)
    });
    known.into_iter().chain(others).collect()
}

fn count_of(scrape: &Scrape, reason: Reason) -> f64 {
    scrape.counters.reasons[reason as usize] as f64
}

fn kernel<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Family<'a>> {
    let ending = |action| Reason::ALL.iter().filter(move |reason| reason.action() == action);
    let counted = |action| ending(action).map(|reason| (reason.name(), count_of(scrape, *reason)));
    let events =
        Event::ALL.iter().map(|event| (event.name(), scrape.counters.events[*event as usize] as f64));
    let actions = [Action::Transmit, Action::Pass, Action::Drop].map(|action| {
        let each = all.interfaces.iter().zip(&scrape.interfaces).map(move |(labels, (_, counters))| {
            let counts = ending(action).map(|reason| counters.reasons[*reason as usize] as f64);
            (labels.as_str(), counts.sum())
        });
        Series::Each(label("", "action", action.name()), Box::new(each))
    });
    vec![
        family(
            "lb_xdp_actions_total",
            Kind::Counter,
            "What became of packets that came in by the interface. Those of interfaces whose numbers are the same modulo 64 are counted \
             together, which the label lists.",
            actions,
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

fn tables<'a>(scrape: &Scrape) -> Vec<Family<'a>> {
    let dataplane = &scrape.dataplane;
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
