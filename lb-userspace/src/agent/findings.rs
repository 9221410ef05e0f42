//! What is amiss, or worth knowing: the findings of `lbctl status` (`lbctl help LB1001` explains each).

use std::collections::HashMap;
use std::net::IpAddr;

use super::Agent;
use super::overrides::{by_hand, pool_of};
use super::view::{role, spills_to};
use crate::api::{BackendPath, DataplaneStatus, Finding, InterfaceStatus, PoolRole, Severity, XdpMode};
use crate::compile::{Compiled, Health, PoolView};
use crate::config::{self, Service};
use crate::netlink::VipState;
use crate::outlier::Gate;
use crate::plural::{counted, either};
use crate::state::Intent;

/// What to do where a table of the kernel is too small.
const MAKE_ROOM: &str = "in [dataplane]; then `lbctl detach` and a restart, which interrupt traffic";

/// Findings of the host that explain those of backends.
const CAUSES: [&str; 3] = ["LB1006", "LB1020", "LB1021"];

impl Agent {
    /// All findings, the most severe first.
    pub(super) fn findings(&self, dataplane: &DataplaneStatus) -> Vec<Finding> {
        let mut findings = Findings::default();
        // Each asked once, however many services there are.
        let mut forwards = Forwarding::default();
        for service in self.desired.services() {
            let Some(intent) = self.desired.intents.get(&service.name) else { continue };
            if let Some(compiled) = self.compiled.get(&service.name) {
                for pool in &compiled.pools {
                    findings.of_takers(&service, intent, compiled, pool);
                    findings.of_passive_health(&service, intent, pool);
                }
            }
            findings.of_overrides(&service, intent);
            if !service.mode.is_dsr() {
                findings.of_forwarding(&service, &dataplane.interfaces, &mut forwards);
            }
        }
        self.find_what_is_not_in_force(&mut findings);
        self.find_what_is_slow(&mut findings, dataplane);
        self.find_what_is_full(&mut findings, dataplane);
        self.find_what_is_cut_off(&mut findings, dataplane);
        findings.0.extend(self.discovery_findings());
        findings.sorted()
    }

    /// Tables that do not follow their service, and faults that were injected on purpose.
    fn find_what_is_not_in_force(&self, findings: &mut Findings) {
        for (name, unpublished) in &self.unpublished {
            findings.add(
                Severity::Error,
                "LB1015",
                name.as_str(),
                format!("its tables are not as they should be: {}", unpublished.why),
                "it is tried again with each sweep; `lbctl help LB1015` says what may be in the way",
            );
        }
        for fault in self.fault_list().faults {
            findings.add(
                Severity::Warning,
                "LB1040",
                &fault.service,
                format!("A FAULT IS INJECTED ON PURPOSE: {}", super::fault::in_words(&fault)),
                "it ends by itself; `lbctl fault clear` ends it now",
            );
        }
    }

    fn find_what_is_slow(&self, findings: &mut Findings, dataplane: &DataplaneStatus) {
        if !self.kernel.jited {
            findings.add(
                Severity::Warning,
                "LB1012",
                "kernel",
                "the kernel interprets BPF programs, which is several times slower".to_owned(),
                "sysctl -w net.core.bpf_jit_enable=1, and start lbd again",
            );
        }
        let remedy = if self.desired.config.dataplane.xdp_mode == config::XdpMode::Generic {
            "`xdp_mode = \"generic\"` asks for it; with \"auto\" lbd takes native where the driver has it"
        } else {
            "its driver has no native XDP: use another interface, or a newer kernel"
        };
        for interface in dataplane.interfaces.iter().filter(|interface| interface.mode == XdpMode::Generic) {
            findings.add(
                Severity::Warning,
                "LB1007",
                &interface.name,
                "the program runs in generic mode, which is several times slower".to_owned(),
                remedy,
            );
        }
    }

    /// Tables without room, and those of another size than is configured.
    fn find_what_is_full(&self, findings: &mut Findings, dataplane: &DataplaneStatus) {
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
            findings.add(
                Severity::Error,
                "LB1008",
                name,
                format!("{} of {} entries are taken: {why}", room.used, room.capacity),
                &format!("raise it {MAKE_ROOM}"),
            );
        }
        if self.books.forgotten() > 0 {
            findings.add(
                if self.books.lately() > 0 { Severity::Error } else { Severity::Warning },
                "LB1011",
                "flows",
                format!(
                    "at least {} {} forgotten for want of room since lbd started: packets of such a flow go where old flows of its \
                     slot go",
                    counted(self.books.forgotten(), "tracked flow"),
                    either(self.books.forgotten(), "was", "were")
                ),
                &format!("raise flows and udp_flows {MAKE_ROOM}"),
            );
        }
        let wanted = self.kernel.capacities;
        let made = [
            ("flows", wanted.flows, dataplane.flows.capacity),
            ("udp_flows", wanted.udp_flows, dataplane.udp_flows.capacity),
            ("half_open", wanted.half_open, dataplane.half_open.capacity),
            ("sessions", wanted.sessions, dataplane.sessions.capacity),
            ("slots", wanted.slots, dataplane.slots.capacity),
        ];
        for (name, wanted, made) in made.into_iter().filter(|(_, wanted, made)| u64::from(*wanted) != *made) {
            findings.add(
                Severity::Warning,
                "LB1009",
                name,
                format!("the pinned table has room for {made}, not for {wanted} as configured"),
                "maps keep the size they were made with: `lbctl detach` and a restart, which interrupt traffic, make it anew",
            );
        }
    }

    /// Interfaces without the program or a carrier, and VIPs that this host should have.
    fn find_what_is_cut_off(&self, findings: &mut Findings, dataplane: &DataplaneStatus) {
        for (name, why) in self.troubles.missing() {
            findings.add(
                Severity::Error,
                "LB1020",
                name,
                format!("the program is not on it: {why}"),
                "it is attached as soon as an interface of that name is there and free",
            );
        }
        for interface in dataplane.interfaces.iter().filter(|it| self.troubles.is_down(it.ifindex)) {
            findings.add(
                Severity::Error,
                "LB1021",
                &interface.name,
                "it is down, or has no carrier".to_owned(),
                &format!("ip link set {} up, or look at the cable and its other end", interface.name),
            );
        }
        for (vip, state) in self.vips.snapshot() {
            if let VipState::Failed(error) = state {
                findings.add(
                    Severity::Error,
                    "LB1010",
                    &vip.address.to_string(),
                    format!("this host does not have the VIP: {error}"),
                    "lbd tries again; with `hold_vips = false` the address is yours to set (`ip address add`)",
                );
            }
        }
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, code: &str, subject: &str, message: String, remedy: &str) {
        self.0.push(Finding {
            severity,
            code: code.to_owned(),
            subject: subject.to_owned(),
            message,
            remedy: Some(remedy.to_owned()),
        });
    }

    /// The most severe first; what has backends fail their checks comes before what comes of it.
    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| match finding.severity {
            Severity::Error if CAUSES.contains(&finding.code.as_str()) => 0,
            Severity::Error => 1,
            Severity::Warning => 2,
            Severity::Info => 3,
        });
        self.0
    }

    /// Whether a pool has anybody who takes new flows.
    fn of_takers(&mut self, service: &Service, intent: &Intent, compiled: &Compiled, pool: &PoolView) {
        let role = role(intent, &pool.name);
        let subject = format!("{}/{}", service.name, pool.name);
        let nobody = pool.backends.iter().all(|backend| backend.why_not.is_some());
        let down = pool.backends.iter().filter(|backend| backend.health == Health::Down).count() as u64;
        let few = if pool.failed { " (fewer are healthy than min_healthy says)" } else { "" };
        if let (PoolRole::Stable, Some(other)) = (role, spills_to(compiled, role)) {
            self.add(
                Severity::Error,
                "LB1013",
                &subject,
                format!("no stable backend takes new flows{few}: the canary {other} gets them"),
                "`lbctl get backends` says why not; spill_to_canary = false ends it",
            );
        } else if nobody && role == PoolRole::Stable {
            self.add(
                Severity::Error,
                "LB1001",
                &subject,
                format!("no backend takes new flows{few}"),
                "`lbctl get backends` says why not",
            );
        } else if nobody && role == PoolRole::Canary && intent.split > 0.0 {
            self.add(
                Severity::Error,
                "LB1002",
                &subject,
                format!("no canary backend takes new flows{few}: the stable pool gets them"),
                "`lbctl get backends` says why not; `lbctl rollback` ends the canary",
            );
        } else if down > 0 && role != PoolRole::Idle {
            self.add(
                Severity::Error,
                "LB1003",
                &subject,
                format!("{down} of {} {} down", of_all(pool), either(down, "is", "are")),
                "`lbctl get backends` shows the last check's result",
            );
        }
    }

    /// What real connections say of a pool, and where health is ignored.
    fn of_passive_health(&mut self, service: &Service, intent: &Intent, pool: &PoolView) {
        let is_used = role(intent, &pool.name) != PoolRole::Idle;
        let subject = format!("{}/{}", service.name, pool.name);
        let ejected = pool.backends.iter().filter(|backend| backend.ejected).count() as u64;
        if ejected > 0 && is_used {
            let are = either(ejected, "is an outlier", "are outliers");
            self.add(
                Severity::Warning,
                "LB1030",
                &subject,
                format!("{ejected} of {} {are}, and ejected", of_all(pool)),
                "`lbctl get events` says why; they are let in again by themselves",
            );
        }
        let gates = pool.backends.iter().map(|backend| backend.gate).chain([pool.gate]);
        let tripped = gates.filter_map(Gate::eighths).filter(|&eighths| eighths < 8).count() as u64;
        if tripped > 0 && is_used {
            let keep = either(tripped, "keeps", "keep");
            self.add(
                Severity::Warning,
                "LB1031",
                &subject,
                format!("{} {keep} new connections away", counted(tripped, "breaker")),
                "`lbctl get backends` shows which; they are closed again when trials end well",
            );
        }
        if pool.panic {
            self.add(
                Severity::Error,
                "LB1004",
                &subject,
                "so few backends are healthy that health is ignored".to_owned(),
                "bring backends back, or set panic_threshold = 0",
            );
        }
    }

    /// What was set by hand.
    fn of_overrides(&mut self, service: &Service, intent: &Intent) {
        for (address, held) in &intent.backends {
            let pool = pool_of(service, *address);
            let path = format!("{}/{pool}/{}", service.name, BackendPath::name_of(*address));
            for (words, since, author, back) in by_hand(held) {
                let since =
                    since.parse().map_or_else(|_| since.clone(), |at: jiff::Timestamp| format!("{at:.0}"));
                self.add(
                    Severity::Info,
                    "LB1005",
                    &path,
                    format!("{words}, by {} since {since}", author.name),
                    &format!("`lbctl set {}` takes it back", back.replace("{}", &path)),
                );
            }
        }
    }

    /// Interfaces that a service's replies come in by, and leave no more.
    fn of_forwarding(
        &mut self,
        service: &Service,
        interfaces: &[InterfaceStatus],
        forwards: &mut Forwarding,
    ) {
        for interface in interfaces.iter().filter(|it| !forwards.ask(&it.name, service.vip)) {
            self.add(
                Severity::Error,
                "LB1006",
                &interface.name,
                format!("forwarding is off there, but {} sends its replies through it", service.name),
                &format!("sysctl -w {}=1", forwarding(&interface.name, service.vip)),
            );
        }
    }
}

/// "3 backends".
fn of_all(pool: &PoolView) -> String {
    counted(pool.backends.len() as u64, "backend")
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
