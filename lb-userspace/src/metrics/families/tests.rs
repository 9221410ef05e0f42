//! The whole text of an agent that is made up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use lb_common::measure::bucket;
use lb_common::verdict::Counters;
use lb_common::watch::Watch;

use super::*;
use crate::api::{DataplaneStatus, Room, SlotRoom};
use crate::events::Occurrence;
use crate::metrics::Tally;

fn backend(address: &str, health: HealthState) -> Backend {
    Backend {
        address: address.parse().unwrap(),
        terminating: false,
        state: AdminState::Ready,
        health,
        weight: 100,
        slots: 101,
        tracked_flows: 0,
        kept_away: 0.0,
        checks: 11,
        last_check: 0.003,
        traffic: Traffic { packets: 7, bytes: 700, connections: 3, reply_packets: 5, reply_bytes: 500 },
        watch: Watch::default(),
    }
}

fn pool(name: &str, role: PoolRole, backends: Vec<Backend>) -> Pool {
    Pool { name: name.to_owned(), role, panic: false, failures: Default::default(), backends }
}

fn analysed(metric: &str, value: f64) -> Analysed {
    Analysed { service: "web".to_owned(), pool: "v2".to_owned(), metric: metric.to_owned(), value }
}

fn scrape() -> Scrape {
    let up_and_down =
        vec![backend("10.0.0.1:80", HealthState::Up), backend("10.0.0.2:80", HealthState::Down)];
    let draining = Backend {
        state: AdminState::Drain,
        kept_away: 0.25,
        watch: Watch { refused: 6, unanswered: 1, reset_early: 4, ..Watch::default() },
        ..backend("[2001:db8::3]:80", HealthState::Unchecked)
    };
    let gone = Backend { terminating: true, ..backend("10.0.0.4:0", HealthState::Unchecked) };
    let service = Service {
        name: "web".to_owned(),
        split: 0.125,
        rollout: Some((Phase::Holding, 2)),
        pools: vec![
            pool("v1", PoolRole::Stable, up_and_down),
            pool("v2", PoolRole::Canary, vec![draining, gone]),
        ],
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
    Scrape {
        findings: Vec::new(),
        dataplane,
        services: vec![service],
        interfaces: vec![("eth0".to_owned(), of_eth0), ("eth1".to_owned(), of_eth1)],
        counters,
        handshakes: HashMap::from([("web".to_owned(), HashMap::from([("v2".to_owned(), handshakes)]))]),
        analyses: vec![analysed("clients_that_fared_badly", 0.25)],
        forgotten: 3,
        tally: Arc::new(tally),
        heartbeat: 1_790_000_001.0,
    }
}

/// The whole text.
fn text(scrape: &Scrape) -> String {
    let mut text = String::new();
    scrape.write(|piece| {
        text += &piece;
        Some(String::new())
    });
    text
}

/// A family as it is read.
struct Listed<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    lines: Vec<Line<'a>>,
}

/// A line of it.
struct Line<'a> {
    /// The family's name, with what stands behind it in histograms.
    name: &'a str,
    /// As they are written.
    labels: &'a str,
    value: f64,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.strip_suffix('}').map_or((series, ""), |it| it.split_once('{').unwrap());
        Self { name, labels, value: value.parse().unwrap() }
    }

    /// The labels' names, in order, but for a histogram's bounds.
    fn names(&self) -> impl Iterator<Item = &'a str> {
        let names = self.labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0));
        names.filter(|name| *name != "le")
    }
}

fn listed(text: &str) -> Vec<Listed<'_>> {
    let mut families: Vec<Listed<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# HELP ") {
            let (name, help) = head.split_once(' ').unwrap();
            families.push(Listed { name, kind: "", help, lines: Vec::new() });
            continue;
        }
        let family = families.last_mut().unwrap();
        match line.strip_prefix("# TYPE ") {
            Some(head) => family.kind = head.strip_prefix(family.name).unwrap().trim_start(),
            None => family.lines.push(Line::of(line)),
        }
    }
    families
}

#[test]
fn every_series_is_there_with_its_labels() {
    let mut scrape = scrape();
    scrape.analyses.push(analysed("errors", 3.0));
    let text = text(&scrape);
    let build = format!("lb_build_info{{version=\"{}\",layout=\"{LAYOUT}\"}} 1", env!("CARGO_PKG_VERSION"));
    for line in [
        build.as_str(),
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
        "lb_backends{frontend=\"web\",group=\"v2\"} 1",
        "lb_packets_total{frontend=\"web\",group=\"v2\",backend=\"10.0.0.4\",direction=\"request\"} 7",
        "lb_breaker_open{frontend=\"web\",group=\"v2\",backend=\"[2001:db8::3]:80\"} 0.25",
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
        "lb_analysis_value{frontend=\"web\",group=\"v2\",metric=\"errors\"} 3",
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
    let text = text(&scrape());
    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    for family in listed(&text) {
        assert!(families.insert(family.name), "{} twice", family.name);
        assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
        assert!(family.name.starts_with("lb_") && family.help.ends_with('.'), "{}", family.name);
        assert!(!family.lines.is_empty(), "{} has no series", family.name);
        for line in &family.lines {
            assert!(series.insert((line.name, line.labels)), "{}{{{}}} twice", line.name, line.labels);
            assert!(line.names().all(|name| !["quantile", "job", "instance"].contains(&name)));
            assert!(line.value.is_finite(), "{}{{{}}}", line.name, line.labels);
            let more = line.name.strip_prefix(family.name).unwrap();
            let fits = match family.kind {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&more),
                _ => more.is_empty(),
            };
            let bounded = line.labels.split("\",").any(|label| label.starts_with("le="));
            assert!(fits && bounded == (more == "_bucket"), "{}", line.name);
        }
    }
}

/// Everything that CONTRACT names is there: dashboards and alerts depend on it.
#[test]
fn what_others_depend_on_is_there() {
    let text = text(&scrape());
    let families = listed(&text);
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
    let text = text(scrape);
    let mut document = HEAD.to_owned();
    for family in listed(&text) {
        let of = |name: &str| family.lines.iter().filter(|it| it.names().any(|other| other == name)).count();
        let (backend, group, frontend) = (of("backend"), of("group"), of("frontend"));
        let interface = of("interface");
        let each = [
            (backend, all.backends.len(), "a backend"),
            (group - backend, all.pools.len(), "a pool"),
            (frontend - group, all.services.len(), "a service"),
            (interface, all.interfaces.len(), "an interface"),
            (family.lines.len() - frontend - interface, 1, ""),
        ];
        let each = each.into_iter().filter(|(series, ..)| *series > 0).map(|(series, subjects, subject)| {
            assert_eq!(series % subjects, 0, "{}: as many for {subject}", family.name);
            let count = series / subjects;
            if subject.is_empty() { count.to_string() } else { format!("{count} {subject}") }
        });
        let each: Vec<_> = each.collect();
        let mut labels: Vec<_> = family.lines.iter().flat_map(Line::names).collect();
        let mut seen = HashSet::new();
        labels.retain(|label| seen.insert(*label));
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        document += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            family.name,
            family.kind,
            labels.join(", "),
            each.join(" + "),
            family.help
        );
    }
    document
}
