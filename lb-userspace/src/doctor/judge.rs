//! From facts to findings.

mod host;
mod links;
mod network;
#[cfg(test)]
mod tests;

pub(super) use network::{forwarding_key, rp_filter_key};

use super::{Check, Facts, Found, Outcome, Report};
use std::net::SocketAddr;

use crate::api::{Api, Severity};
use crate::config::{Config, Service};

/// Something to look at.
pub struct Rule {
    /// Its code.
    pub code: &'static str,
    /// What is looked at.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    judge: fn(&Facts) -> Verdict,
}

/// What a rule says.
enum Verdict {
    /// As it should be.
    Fine(String),
    /// It could not be looked at, or does not apply.
    Skipped(String),
    /// These are amiss; at least one.
    Amiss(Vec<Found>),
}

/// Everything that is looked at, in the order in which one thing rests on the other.
pub const RULES: &[Rule] = &[
    Rule {
        code: "LB1101",
        title: "configuration",
        why: "an invalid file changes nothing, and lbd does not start with one",
        judge: host::configuration,
    },
    Rule {
        code: "LB1102",
        title: "kernel",
        why: "the programs use what Linux 6.1 has, and its verifier needs the kernel's own types (BTF)",
        judge: host::kernel,
    },
    Rule {
        code: "LB1103",
        title: "privileges",
        why: "lbd loads programs (CAP_BPF, CAP_PERFMON) and attaches them (CAP_NET_ADMIN)",
        judge: host::privileges,
    },
    Rule {
        code: "LB1104",
        title: "BPF file system",
        why: "what is pinned there outlives lbd; without it a restart would stop traffic",
        judge: host::bpffs,
    },
    Rule {
        code: "LB1105",
        title: "JIT compiler",
        why: "an interpreted program is several times slower",
        judge: host::jit,
    },
    Rule {
        code: "LB1106",
        title: "agent",
        why: "it checks health, follows neighbours and renews leases; where the program is in place, packets go on without it; what \
              it reports itself is shown here",
        judge: host::agent,
    },
    Rule {
        code: "LB1107",
        title: "interfaces",
        why: "packets are balanced where they arrive: on the interfaces that are configured",
        judge: links::interfaces,
    },
    Rule {
        code: "LB1108",
        title: "other XDP programs",
        why: "an interface has room for one program, and lb does not push another one aside",
        judge: links::others,
    },
    Rule {
        code: "LB1109",
        title: "native or generic",
        why: "in generic mode the kernel makes a packet buffer first, which is several times slower",
        judge: links::native,
    },
    Rule {
        code: "LB1110",
        title: "large receive offload",
        why: "LRO glues packets together before XDP sees them: drivers refuse XDP, or frames are too long to forward",
        judge: links::lro,
    },
    Rule {
        code: "LB1111",
        title: "queues and interrupts",
        why: "a queue is served by one processor: with one queue, or all interrupts on one processor, the others idle",
        judge: links::queues,
    },
    Rule {
        code: "LB1112",
        title: "MTU of tunnels",
        why: "an outer header makes packets longer: full-size ones of clients would not fit any more",
        judge: network::tunnel_mtu,
    },
    Rule {
        code: "LB1113",
        title: "forwarding",
        why: "in mode nat, replies of backends and what XDP passes up are routed by this host",
        judge: network::forwarding,
    },
    Rule {
        code: "LB1114",
        title: "reverse path filter",
        why: "a strict filter drops what the program passes up if replies leave another way",
        judge: network::rp_filter,
    },
    Rule {
        code: "LB1115",
        title: "routes and neighbours",
        why: "a backend whose MAC (or whose router's) is not known gets no frames",
        judge: network::ways,
    },
    Rule {
        code: "LB1116",
        title: "VIPs on this host",
        why: "clients and routers find a VIP by asking for it: the host that balances it has to answer",
        judge: network::vips,
    },
    Rule {
        code: "LB1117",
        title: "VIP conflicts",
        why: "if another host answers for a VIP, some clients go there and past the balancer",
        judge: network::conflicts,
    },
    Rule {
        code: "LB1118",
        title: "VIPs on the backends",
        why: "in the dsr modes a backend gets packets for the VIP, and drops them unless it has it on its loopback",
        judge: network::loopback,
    },
    Rule {
        code: "LB1119",
        title: "tunnels",
        why: "a backend of dsr-ipip or dsr-gue has to take the outer headers off",
        judge: network::tunnels,
    },
    Rule {
        code: "LB1120",
        title: "backends",
        why: "a backend that takes no connections is of no use, whatever its weight",
        judge: network::backends_answer,
    },
    Rule {
        code: "LB1121",
        title: "clock",
        why: "the journal, drains with a deadline and comparisons between hosts go by the wall clock",
        judge: host::clock,
    },
    Rule {
        code: "LB1122",
        title: "open files",
        why: "each probe and each client of the socket takes a descriptor; without one, backends look dead",
        judge: host::files,
    },
    Rule {
        code: "LB1123",
        title: "VLANs and bonds",
        why: "XDP sits below VLAN devices and bonds: it has to see tags, and be where frames come together",
        judge: links::stacked,
    },
];

/// Judges what was found.
pub fn judge(facts: &Facts) -> Report {
    let checks: Vec<Check> =
        RULES.iter().enumerate().map(|(index, rule)| check(index + 1, rule, facts)).collect();
    Report { api: Api::V1, wrong: checks.iter().any(|check| check.outcome == Outcome::Error), checks }
}

fn check(number: usize, rule: &Rule, facts: &Facts) -> Check {
    let remark = |message| Found { severity: Severity::Info, subject: String::new(), message, remedy: None };
    let (outcome, found) = match (rule.judge)(facts) {
        Verdict::Fine(summary) => (Outcome::Ok, vec![remark(summary)]),
        Verdict::Skipped(why) => (Outcome::Skipped, vec![remark(why)]),
        Verdict::Amiss(found) => {
            let worst = found.iter().map(|found| match found.severity {
                Severity::Info => Outcome::Ok,
                Severity::Warning => Outcome::Warning,
                Severity::Error => Outcome::Error,
            });
            (worst.max_by_key(|outcome| *outcome as u8).unwrap_or(Outcome::Ok), found)
        }
    };
    Check {
        number,
        code: rule.code.to_owned(),
        title: rule.title.to_owned(),
        why: rule.why.to_owned(),
        outcome,
        found,
    }
}

/// What is amiss, or else a summary.
fn amiss_or(found: Vec<Found>, fine: impl FnOnce() -> String) -> Verdict {
    if found.is_empty() { Verdict::Fine(fine()) } else { Verdict::Amiss(found) }
}

fn error(subject: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found {
        severity: Severity::Error,
        subject: subject.into(),
        message: message.into(),
        remedy: Some(remedy.into()),
    }
}

fn warning(subject: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found { severity: Severity::Warning, ..error(subject, message, remedy) }
}

/// The configuration, for rules that have nothing to say without one.
fn configured(facts: &Facts) -> Result<&Config, Verdict> {
    facts.config.as_ref().map_err(|_| Verdict::Skipped("no configuration (LB1101)".to_owned()))
}

/// The links that are configured and there.
fn configured_links<'a>(
    facts: &'a Facts,
    config: &'a Config,
) -> impl Iterator<Item = (&'a str, &'a super::Link)> + 'a {
    config
        .dataplane
        .interfaces
        .iter()
        .filter_map(|name| facts.links.get(name.as_str()).map(|link| (name.as_str(), link)))
}

/// Every backend with its service.
pub(super) fn backends(config: &Config) -> impl Iterator<Item = (&Service, SocketAddr)> {
    config.services.iter().flat_map(|service| {
        let backends = service.pools.iter().flat_map(|pool| &pool.backends);
        backends.map(move |backend| (service, backend.address))
    })
}

/// `1 backend`, `2 backends`.
fn counted(n: usize, what: &str) -> String {
    crate::plural::counted(n as u64, what)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
