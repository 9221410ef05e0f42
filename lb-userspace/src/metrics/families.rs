//! Which figures there are.

use lb_common::verdict::{Action, Reason};

use super::text::{Family, Kind, Sample};
use super::{Cause, Scrape};
use crate::api::{BackendStatus, HealthState, PoolRole, PoolStatus, ServiceStatus};
use crate::config::AdminState;
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

pub(super) fn of(scrape: &Scrape) -> Vec<Family> {
    [agent(scrape), traffic(scrape), backends(scrape), pools(scrape), rollouts(scrape), kernel(scrape)]
        .concat()
}

fn family(name: &'static str, kind: Kind, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, kind, help, samples }
}

fn single(name: &'static str, kind: Kind, help: &'static str, value: f64) -> Family {
    family(name, kind, help, vec![(Vec::new(), value)])
}

fn agent(scrape: &Scrape) -> Vec<Family> {
    let build =
        vec![("version", scrape.status.version.clone()), ("layout", scrape.status.layout.to_string())];
    vec![
        family(
            "lb_build_info",
            Kind::Gauge,
            "The agent's version, and the layout of its pinned maps.",
            vec![(build, 1.0)],
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

/// Samples of every backend, removed ones that still finish flows included.
fn each_backend(
    scrape: &Scrape,
    figures: impl Fn(&ServiceStatus, &BackendStatus) -> Vec<(Option<(&'static str, &'static str)>, f64)>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (service, pool) in each_pool(scrape) {
        for backend in &pool.backends {
            for (label, value) in figures(service, backend) {
                let mut labels = pool_labels(service, pool);
                labels.push(("backend", backend.name.clone()));
                labels.extend(label.map(|(name, value)| (name, value.to_owned())));
                samples.push((labels, value));
            }
        }
    }
    samples
}

fn each_pool(scrape: &Scrape) -> impl Iterator<Item = (&ServiceStatus, &PoolStatus)> {
    scrape.status.services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)))
}

fn pool_labels(service: &ServiceStatus, pool: &PoolStatus) -> Vec<(&'static str, String)> {
    vec![("frontend", service.name.clone()), ("group", pool.name.clone())]
}

fn traffic(scrape: &Scrape) -> Vec<Family> {
    let ways = |requests: u64, replies: u64| {
        vec![
            (Some(("direction", "request")), requests as f64),
            (Some(("direction", "reply")), replies as f64),
        ]
    };
    vec![
        family(
            "lb_packets_total",
            Kind::Counter,
            "Packets to the backend, and replies that came back through the balancer (none do in the dsr modes).",
            each_backend(scrape, |_, it| ways(it.traffic.packets, it.traffic.reply_packets)),
        ),
        family(
            "lb_bytes_total",
            Kind::Counter,
            "The same in bytes of whole frames.",
            each_backend(scrape, |_, it| ways(it.traffic.bytes, it.traffic.reply_bytes)),
        ),
        family(
            "lb_connections_total",
            Kind::Counter,
            "Flows that began.",
            each_backend(scrape, |_, it| vec![(None, it.traffic.connections as f64)]),
        ),
    ]
}

fn backends(scrape: &Scrape) -> Vec<Family> {
    vec![
        family(
            "lb_backend_weight",
            Kind::Gauge,
            "The backend's weight, as it holds.",
            each_backend(scrape, |_, it| vec![(None, f64::from(it.weight))]),
        ),
        family(
            "lb_backend_state",
            Kind::Gauge,
            "1 for the state that the backend is in: drain or maint where the operator says so, else its health.",
            each_backend(scrape, |_, it| {
                let is = |state: &'static str| (Some(("state", state)), truth(state == state_of(it)));
                STATES.into_iter().map(is).collect()
            }),
        ),
        family(
            "lb_backend_slots",
            Kind::Gauge,
            "Slots of its pool's table that lead to the backend.",
            each_backend(scrape, |_, it| vec![(None, f64::from(it.slots))]),
        ),
        family(
            "lb_health_transitions_total",
            Kind::Counter,
            "How often the backend's health changed, since the agent started.",
            each_backend(scrape, |service, it| {
                let [up, down] = scrape.tally.transitions(&service.name, &it.name);
                vec![(Some(("to", "up")), up as f64), (Some(("to", "down")), down as f64)]
            }),
        ),
    ]
}

fn pools(scrape: &Scrape) -> Vec<Family> {
    let each = |figure: fn(&ServiceStatus, &PoolStatus) -> f64| -> Vec<Sample> {
        each_pool(scrape).map(|(service, pool)| (pool_labels(service, pool), figure(service, pool))).collect()
    };
    vec![
        family(
            "lb_split_ratio",
            Kind::Gauge,
            "The pool's part of the clients, from 0 to 1, as the kernel has it.",
            each(|service, pool| match pool.role {
                PoolRole::Stable => 1.0 - service.split.new,
                PoolRole::Canary => service.split.new,
                PoolRole::Idle => 0.0,
            }),
        ),
        family(
            "lb_backends",
            Kind::Gauge,
            "Backends of the pool.",
            each(|_, pool| pool.backends.iter().filter(|it| !it.terminating).count() as f64),
        ),
        family(
            "lb_backends_healthy",
            Kind::Gauge,
            "Backends of the pool that are up or never checked.",
            each(|_, pool| {
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
            each(|_, pool| truth(pool.panic)),
        ),
    ]
}

fn rollouts(scrape: &Scrape) -> Vec<Family> {
    let mut phases = Vec::new();
    let mut steps = Vec::new();
    let mut rollbacks = Vec::new();
    for service in &scrape.status.services {
        let label = || vec![("frontend", service.name.clone())];
        let now = scrape.rollouts.iter().find(|(name, ..)| *name == service.name);
        for phase in Phase::ALL {
            let labels = [label(), vec![("phase", phase.name().to_owned())]].concat();
            phases.push((labels, truth(now.is_some_and(|(_, now, _)| *now == phase))));
        }
        steps.push((label(), now.map_or(0.0, |(_, _, step)| *step as f64)));
        for cause in Cause::ALL {
            let labels = [label(), vec![("cause", cause.name().to_owned())]].concat();
            rollbacks.push((labels, scrape.tally.rollbacks(&service.name, cause) as f64));
        }
    }
    let analyses = scrape.analyses.iter().map(|analysed| {
        let labels = vec![
            ("frontend", analysed.service.clone()),
            ("group", analysed.pool.clone()),
            ("metric", analysed.metric.clone()),
        ];
        (labels, analysed.value)
    });
    vec![
        family(
            "lb_analysis_value",
            Kind::Gauge,
            "What the analysis of a rollout under way looks at: a part of clients, or a figure of Prometheus.",
            analyses.collect(),
        ),
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
            steps,
        ),
        family(
            "lb_rollbacks_total",
            Kind::Counter,
            "Canaries that were taken back, by hand or by their rollout, since the agent started.",
            rollbacks,
        ),
    ]
}

fn kernel(scrape: &Scrape) -> Vec<Family> {
    let reasons = &scrape.counters.reasons;
    let count = |reason: &Reason| reasons.get(*reason as usize).copied().unwrap_or_default() as f64;
    let drops = Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop);
    let drops = drops.map(|reason| (vec![("reason", reason.name().to_owned())], count(reason)));
    let dataplane = &scrape.status.dataplane;
    let actions = [Action::Transmit, Action::Pass, Action::Drop].map(|action| {
        let of_it = Reason::ALL.iter().filter(|reason| reason.action() == action);
        let labels = vec![("interface", scrape.interfaces.join(",")), ("action", action.name().to_owned())];
        (labels, of_it.map(count).sum::<f64>())
    });
    let rooms = [("tcp", dataplane.flows), ("udp", dataplane.udp_flows), ("half_open", dataplane.half_open)];
    let table = |name: &str| vec![("table", name.to_owned())];
    vec![
        family(
            "lb_xdp_actions_total",
            Kind::Counter,
            "What became of packets; counted for all interfaces together, which the label lists.",
            actions.into(),
        ),
        family("lb_drops_total", Kind::Counter, "Packets that went nowhere.", drops.collect()),
        family(
            "lb_flows",
            Kind::Gauge,
            "Flows that are tracked: those that their slot does not explain.",
            rooms.iter().map(|(name, room)| (table(name), room.used as f64)).collect(),
        ),
        family(
            "lb_flow_capacity",
            Kind::Gauge,
            "Room for tracked flows.",
            rooms.iter().map(|(name, room)| (table(name), room.capacity as f64)).collect(),
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
