//! The whole text of an agent that is made up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lb_common::measure::bucket;
use lb_common::verdict::Counters;

use super::*;
use crate::api::{
    Api, DataplaneStatus, HealthStatus, NextHop, Rate, Room, SlotRoom, SplitStatus, Status, Traffic,
};
use crate::config::{Mode, Protocol};
use crate::events::Occurrence;
use crate::health::TargetId;
use crate::metrics::{Checks, Tally};

fn backend(name: &str, health: HealthState) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        source: None,
        id: 1,
        weight: 100,
        configured_weight: 100,
        priority: 0,
        state: AdminState::Ready,
        drain: None,
        health: HealthStatus { status: health, reason: None, since_seconds: 0, last_duration_ms: Some(3.0) },
        slow_start_percent: None,
        ejection: None,
        breaker: None,
        outcomes: None,
        server_ids: Vec::new(),
        steering: None,
        connections: None,
        takes_new: true,
        why_not: None,
        standby: false,
        slots: 101,
        tracked_flows: 0,
        next_hop: NextHop::Unreachable { unreachable: String::new() },
        terminating: false,
        traffic: Traffic { packets: 7, bytes: 700, connections: 3, reply_packets: 5, reply_bytes: 500 },
        rate: Rate::default(),
    }
}

fn pool(name: &str, role: PoolRole, backends: Vec<BackendStatus>) -> PoolStatus {
    PoolStatus {
        name: name.to_owned(),
        role,
        share_percent: 0.0,
        panic: false,
        failed: false,
        connections: None,
        breaker: None,
        spills_to: None,
        priorities: Vec::new(),
        backends,
        traffic: Traffic::default(),
        handshake: None,
    }
}

fn scrape() -> Scrape {
    let up_and_down =
        vec![backend("10.0.0.1:80", HealthState::Up), backend("10.0.0.2:80", HealthState::Down)];
    let draining = BackendStatus {
        id: 2,
        state: AdminState::Drain,
        ..backend("[2001:db8::3]:80", HealthState::Unchecked)
    };
    let service = ServiceStatus {
        name: "web".to_owned(),
        vip: "203.0.113.10".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        revision: 1,
        split: SplitStatus { percent: 12.5, new: 0.125, ..SplitStatus::default() },
        stable: "v1".to_owned(),
        canary: Some("v2".to_owned()),
        pools: vec![pool("v1", PoolRole::Stable, up_and_down), pool("v2", PoolRole::Canary, vec![draining])],
        overrides: Vec::new(),
        protection: None,
    };
    let dataplane = DataplaneStatus {
        program: None,
        interfaces: Vec::new(),
        flows: Room { used: 4, capacity: 1_048_576 },
        udp_flows: Room { used: 0, capacity: 65_536 },
        half_open: Room { used: 0, capacity: 131_072 },
        sessions: Room { used: 0, capacity: 131_072 },
        slots: SlotRoom { used: 202, capacity: 262_144, unsettled: 9 },
        backends: Room::default(),
        drops: BTreeMap::new(),
    };
    let (mut of_eth0, mut of_eth1) = (Counters::default(), Counters::default());
    of_eth0.reasons[Reason::Forwarded as usize] = 20;
    of_eth0.reasons[Reason::NoBackend as usize] = 2;
    of_eth1.reasons[Reason::Replied as usize] = 1;
    let mut counters = of_eth0;
    counters += of_eth1;
    counters.reasons[Reason::NotIp as usize] = 8;
    counters.events[Event::FlowTracked as usize] = 12;
    let mut tally = Tally::default();
    for code in ["backend_up", "backend_down"] {
        tally.note(&Occurrence {
            code,
            service: Some("web".to_owned()),
            backend: Some("10.0.0.2:80".to_owned()),
            ..Occurrence::default()
        });
    }
    tally.configured = 1_790_000_000.5;
    tally.rolled_back("web");
    tally.rollback_took("web", 0.000_025);
    tally.ejected("web", "v1", Detector::FailureRatio);
    let mut handshakes = Handshakes::default();
    handshakes.answered[bucket(1_500_000)] = 5;
    let mut checks = Checks::default();
    let counted = crate::health::Counters { checks: 11, ..Default::default() };
    checks.note("web", "v1", || "10.0.0.1:80".to_owned(), TargetId(1), &counted);
    Scrape {
        status: Status {
            api: Api::V1,
            version: "1.2.3".to_owned(),
            layout: 1,
            started_at: String::new(),
            uptime_seconds: 0,
            revision: 1,
            degraded: false,
            findings: Vec::new(),
            dataplane,
            services: vec![service],
            next: None,
        },
        interfaces: vec![("eth0".to_owned(), of_eth0), ("eth1".to_owned(), of_eth1)],
        counters,
        rollouts: HashMap::from([("web".to_owned(), (Phase::Holding, 2))]),
        handshakes: HashMap::from([("web".to_owned(), HashMap::from([("v2".to_owned(), handshakes)]))]),
        watches: HashMap::from([(
            2,
            Watch { refused: 6, unanswered: 1, reset_early: 4, ..Watch::default() },
        )]),
        analyses: vec![Analysed {
            service: "web".to_owned(),
            pool: "v2".to_owned(),
            metric: "clients_that_fared_badly".to_owned(),
            value: 0.25,
        }],
        checks: Arc::new(checks),
        forgotten: 3,
        tally: Arc::new(tally),
        heartbeat: 1_790_000_001.0,
    }
}

/// A family with all of its series.
struct Listed<'a> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: Vec<Sample<'a>>,
}

fn listed<'a>(scrape: &'a Scrape, all: &'a Subjects<'a>) -> Vec<Listed<'a>> {
    let list = |Family { name, kind, help, samples }| Listed { name, kind, help, samples: samples.collect() };
    of(scrape, all).map(list).collect()
}

#[test]
fn every_series_is_there_with_its_labels() {
    let mut text = String::new();
    scrape().write(|piece| {
        text += &piece;
        true
    });
    for line in [
        "lb_build_info{version=\"1.2.3\",layout=\"1\"} 1",
        "lb_config_last_success_timestamp_seconds 1790000000.5",
        "lb_agent_heartbeat_timestamp_seconds 1790000001",
        "lb_map_update_errors_total 0",
        "lb_packets_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\",direction=\"request\"} 7",
        "lb_packets_total{frontend=\"web\",group=\"v2\",backend=\"[2001:db8::3]:80\",direction=\"reply\"} 5",
        "lb_bytes_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\",direction=\"request\"} 700",
        "lb_connections_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 3",
        "lb_backend_weight{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 100",
        "lb_backend_state{frontend=\"web\",group=\"v1\",backend=\"10.0.0.2:80\",state=\"down\"} 1",
        "lb_backend_state{frontend=\"web\",group=\"v1\",backend=\"10.0.0.2:80\",state=\"up\"} 0",
        "lb_backend_state{frontend=\"web\",group=\"v2\",backend=\"[2001:db8::3]:80\",state=\"drain\"} 1",
        "lb_backend_slots{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 101",
        "lb_health_transitions_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.2:80\",to=\"down\"} 1",
        "lb_health_transitions_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\",to=\"down\"} 0",
        "lb_split_ratio{frontend=\"web\",group=\"v1\"} 0.875",
        "lb_split_ratio{frontend=\"web\",group=\"v2\"} 0.125",
        "lb_backends{frontend=\"web\",group=\"v1\"} 2",
        "lb_backends_healthy{frontend=\"web\",group=\"v1\"} 1",
        "lb_backends_healthy{frontend=\"web\",group=\"v2\"} 1",
        "lb_panic_active{frontend=\"web\",group=\"v1\"} 0",
        "lb_rollout_phase{frontend=\"web\",phase=\"holding\"} 1",
        "lb_rollout_phase{frontend=\"web\",phase=\"promoted\"} 0",
        "lb_rollout_step{frontend=\"web\"} 2",
        "lb_rollbacks_total{frontend=\"web\",cause=\"manual\"} 1",
        "lb_rollbacks_total{frontend=\"web\",cause=\"rollout\"} 0",
        "lb_xdp_actions_total{interface=\"eth0\",action=\"transmit\"} 20",
        "lb_xdp_actions_total{interface=\"eth0\",action=\"drop\"} 2",
        "lb_xdp_actions_total{interface=\"eth1\",action=\"transmit\"} 1",
        "lb_xdp_actions_total{interface=\"eth1\",action=\"drop\"} 0",
        "lb_drops_total{reason=\"no_backend\"} 2",
        "lb_drops_total{reason=\"too_big\"} 0",
        "lb_flows{table=\"tcp\"} 4",
        "lb_flow_capacity{table=\"tcp\"} 1048576",
        "lb_slots_unsettled 9",
        "lb_findings{severity=\"error\"} 0",
        "lb_connections_active{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 0",
        "lb_connect_failures_total{frontend=\"web\",group=\"v2\",backend=\"[2001:db8::3]:80\",reason=\"refused\"} 6",
        "lb_connect_failures_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\",reason=\"timeout\"} 0",
        "lb_connection_resets_total{frontend=\"web\",group=\"v2\",backend=\"[2001:db8::3]:80\",origin=\"backend\"} 4",
        "lb_connection_resets_total{origin=\"balancer\"} 0",
        "lb_connections_rejected_total{reason=\"no_backend\"} 2",
        "lb_handshake_duration_seconds_bucket{frontend=\"web\",group=\"v2\",le=\"0.001048576\"} 0",
        "lb_handshake_duration_seconds_bucket{frontend=\"web\",group=\"v2\",le=\"0.002097152\"} 5",
        "lb_handshake_duration_seconds_bucket{frontend=\"web\",group=\"v1\",le=\"+Inf\"} 0",
        "lb_handshake_duration_seconds_count{frontend=\"web\",group=\"v2\"} 5",
        "lb_health_checks_total{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 11",
        "lb_health_check_failures_total{frontend=\"web\",group=\"v1\",reason=\"connect_refused\"} 0",
        "lb_health_check_duration_seconds{frontend=\"web\",group=\"v1\",backend=\"10.0.0.1:80\"} 0.003",
        "lb_ejections_total{frontend=\"web\",group=\"v1\",detector=\"failure_ratio\"} 1",
        "lb_rollback_apply_seconds{frontend=\"web\"} 0.000025",
        "lb_analysis_value{frontend=\"web\",group=\"v2\",metric=\"clients_that_fared_badly\"} 0.25",
        "lb_analysis_value{frontend=\"web\",group=\"v2\",metric=\"clients_that_waited_long\"} 0",
        "lb_passed_total{reason=\"not_ip\"} 8",
        "lb_data_path_events_total{event=\"flow_tracked\"} 12",
        "lb_flows_forgotten_total 3",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

/// What `promtool check metrics` would say, and the rules of the format.
#[test]
fn names_and_types_are_as_prometheus_wants_them() {
    let scrape = scrape();
    let all = Subjects::of(&scrape);
    let families = listed(&scrape, &all);
    for (i, family) in families.iter().enumerate() {
        assert!(families[..i].iter().all(|other| other.name != family.name), "{} twice", family.name);
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert!(family.name.starts_with("lb_") && family.help.ends_with('.'), "{}", family.name);
        assert!(!family.samples.is_empty(), "{} has no series", family.name);
        for (j, Sample { labels, value }) in family.samples.iter().enumerate() {
            assert!(family.samples[..j].iter().all(|other| other.labels != *labels), "{labels:?} twice");
            assert!(labels.names().iter().all(|name| !["le", "quantile", "job", "instance"].contains(name)));
            let fits = match value {
                Value::Number(number) => number.is_finite() && family.kind != Kind::Histogram,
                Value::Histogram(_) => family.kind == Kind::Histogram,
            };
            assert!(fits, "{} {labels:?} {value:?}", family.name);
        }
    }
}

/// Everything that CONTRACT names is there: dashboards and alerts depend on it.
#[test]
fn what_others_depend_on_is_there() {
    let scrape = scrape();
    let all = Subjects::of(&scrape);
    let families = listed(&scrape, &all);
    for name in [
        "lb_build_info",
        "lb_packets_total",
        "lb_bytes_total",
        "lb_connections_total",
        "lb_connections_active",
        "lb_connect_failures_total",
        "lb_connections_rejected_total",
        "lb_connection_resets_total",
        "lb_handshake_duration_seconds",
        "lb_split_ratio",
        "lb_backend_weight",
        "lb_backend_state",
        "lb_backends",
        "lb_backends_healthy",
        "lb_backend_slots",
        "lb_health_checks_total",
        "lb_health_check_failures_total",
        "lb_health_check_duration_seconds",
        "lb_health_transitions_total",
        "lb_ejections_total",
        "lb_panic_active",
        "lb_rollout_phase",
        "lb_rollout_step",
        "lb_rollbacks_total",
        "lb_rollback_apply_seconds",
        "lb_analysis_value",
        "lb_xdp_actions_total",
        "lb_drops_total",
        "lb_flows",
        "lb_flow_capacity",
        "lb_slots_unsettled",
        "lb_map_update_errors_total",
        "lb_config_last_success_timestamp_seconds",
        "lb_agent_heartbeat_timestamp_seconds",
    ] {
        assert!(families.iter().any(|family| family.name == name), "{name}");
    }
}

/// `UPDATE_EXPECT=1 cargo test -p lb-userspace --lib the_document` writes it.
#[test]
fn the_document_lists_every_metric_and_its_cardinality() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let scrape = scrape();
    let made = document(&scrape);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), made, "UPDATE_EXPECT=1 writes it anew");
}

fn document(scrape: &Scrape) -> String {
    const HEAD: &str = include_str!("head.md");
    let all = Subjects::of(scrape);
    let mut text = HEAD.to_owned();
    for family in listed(scrape, &all) {
        let of = |name: &str| family.samples.iter().filter(|it| it.labels.names().contains(&name)).count();
        let lines = match family.kind {
            Kind::Histogram => histogram(&Handshakes::default().answered).buckets.len() + 3,
            Kind::Counter | Kind::Gauge => 1,
        };
        let (backend, group, frontend) = (of("backend"), of("group"), of("frontend"));
        let interface = of("interface");
        let each = [
            (backend, all.backends.len(), "a backend"),
            (group - backend, all.pools.len(), "a pool"),
            (frontend - group, all.services.len(), "a service"),
            (interface, all.interfaces.len(), "an interface"),
            (family.samples.len() - frontend - interface, 1, ""),
        ];
        let each = each.into_iter().filter(|(series, ..)| *series > 0).map(|(series, subjects, subject)| {
            assert_eq!(series % subjects, 0, "{}: as many for {subject}", family.name);
            let count = series / subjects * lines;
            if subject.is_empty() { count.to_string() } else { format!("{count} {subject}") }
        });
        let each: Vec<_> = each.collect();
        let mut labels: Vec<_> = family.samples.iter().flat_map(|it| it.labels.names()).collect();
        let mut seen = std::collections::HashSet::new();
        labels.retain(|label| seen.insert(*label));
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        text += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            family.name,
            family.kind.name(),
            labels.join(", "),
            each.join(" + "),
            family.help
        );
    }
    text
}
