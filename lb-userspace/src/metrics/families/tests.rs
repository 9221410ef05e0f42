//! The whole text of an agent that is made up.

use std::collections::BTreeMap;

use lb_common::verdict::Counters;

use super::*;
use crate::api::{
    Api, DataplaneStatus, HealthStatus, NextHop, Rate, Room, SlotRoom, SplitStatus, Status, Traffic,
};
use crate::config::{Mode, Protocol};
use crate::events::Occurrence;
use crate::metrics::Tally;

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
        health: HealthStatus { status: health, reason: None, since_seconds: 0, last_duration_ms: None },
        slow_start_percent: None,
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
        spills_to: None,
        priorities: Vec::new(),
        backends,
        traffic: Traffic::default(),
    }
}

fn scrape() -> Scrape {
    let up_and_down =
        vec![backend("10.0.0.1:80", HealthState::Up), backend("10.0.0.2:80", HealthState::Down)];
    let draining =
        BackendStatus { state: AdminState::Drain, ..backend("[2001:db8::3]:80", HealthState::Unchecked) };
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
    };
    let dataplane = DataplaneStatus {
        program: None,
        interfaces: Vec::new(),
        flows: Room { used: 4, capacity: 1_048_576 },
        udp_flows: Room { used: 0, capacity: 65_536 },
        half_open: Room { used: 0, capacity: 131_072 },
        slots: SlotRoom { used: 202, capacity: 262_144, unsettled: 9 },
        backends: Room::default(),
        drops: BTreeMap::new(),
    };
    let mut counters = Counters::default();
    counters.reasons[Reason::Forwarded as usize] = 20;
    counters.reasons[Reason::Replied as usize] = 1;
    counters.reasons[Reason::NoBackend as usize] = 2;
    let mut tally = Tally::default();
    for code in ["backend_up", "backend_down", "rolled_back"] {
        tally.note(&Occurrence {
            code,
            service: Some("web".to_owned()),
            backend: Some("10.0.0.2:80".to_owned()),
            ..Occurrence::default()
        });
    }
    tally.configured = 1_790_000_000.5;
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
        },
        interfaces: vec!["eth0".to_owned(), "eth1".to_owned()],
        counters,
        rollouts: vec![("web".to_owned(), Phase::Holding, 2)],
        analyses: vec![crate::metrics::Analysed {
            service: "web".to_owned(),
            pool: "blue".to_owned(),
            metric: "errors".to_owned(),
            value: 0.25,
        }],
        tally,
        heartbeat: 1_790_000_001.0,
    }
}

#[test]
fn every_series_is_there_with_its_labels() {
    let text = scrape().text();
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
        "lb_xdp_actions_total{interface=\"eth0,eth1\",action=\"transmit\"} 21",
        "lb_xdp_actions_total{interface=\"eth0,eth1\",action=\"drop\"} 2",
        "lb_drops_total{reason=\"no_backend\"} 2",
        "lb_drops_total{reason=\"too_big\"} 0",
        "lb_flows{table=\"tcp\"} 4",
        "lb_flow_capacity{table=\"tcp\"} 1048576",
        "lb_slots_unsettled 9",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

/// What `promtool check metrics` would say, and the rules of the format.
#[test]
fn names_and_types_are_as_prometheus_wants_them() {
    let families = of(&scrape());
    for (i, family) in families.iter().enumerate() {
        assert!(families[..i].iter().all(|other| other.name != family.name), "{} twice", family.name);
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert!(family.name.starts_with("lb_") && family.help.ends_with('.'), "{}", family.name);
        assert!(!family.samples.is_empty(), "{} has no series", family.name);
        for (j, (labels, value)) in family.samples.iter().enumerate() {
            let other = family.samples[..j].iter().find(|(other, _)| other == labels);
            assert!(other.is_none() && value.is_finite(), "{} {labels:?}", family.name);
            assert!(labels.iter().all(|(name, _)| !["le", "quantile", "job", "instance"].contains(name)));
        }
    }
}
