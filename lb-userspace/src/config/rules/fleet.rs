//! What must hold between services.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::config::keys::ServiceDraft;
use crate::config::read::{Findings, Place};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::{Mode, Protocol};

pub(super) fn check(services: &[ServiceDraft], findings: &mut Findings) {
    names(services, findings);
    vips(services, findings);
    loops(services, findings);
    replies(services, findings);
    previews(services, findings);
}

fn names(services: &[ServiceDraft], findings: &mut Findings) {
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (name, at) in services.iter().filter_map(|service| service.name.get()) {
        if let Some(first) = seen.insert(name.as_str(), at) {
            let found = Diagnostic::new(Code::DuplicateService, format!("two services are named `{name}`"));
            findings.add(found.at(at, "again here").at(first, "first here"));
        }
    }
}

fn vips(services: &[ServiceDraft], findings: &mut Findings) {
    let mut seen: HashMap<(IpAddr, u16, Protocol), &ServiceDraft> = HashMap::new();
    for service in services {
        let (Some(&vip), Some(port), Some(protocol)) =
            (service.vip.value.as_ref(), service.port.value, service.protocol.value)
        else {
            continue;
        };
        if let Some(first) = seen.insert((vip, port, protocol), service) {
            let port = if port == 0 { "every port".to_owned() } else { format!("port {port}") };
            let found =
                Diagnostic::new(Code::DuplicateVip, format!("two services at {vip}, {port}, {protocol}"));
            findings.add(found.at(&service.vip.at, service.title()).at(&first.vip.at, first.title()));
        }
    }
}

fn loops(services: &[ServiceDraft], findings: &mut Findings) {
    let vips: HashMap<IpAddr, &ServiceDraft> =
        services.iter().filter_map(|service| Some((service.vip.value?, service))).collect();
    for service in services {
        for (target, at) in service.backends().filter_map(|backend| backend.address.get()) {
            let Some(other) = vips.get(&target.ip) else {
                continue;
            };
            let found = Diagnostic::new(
                Code::BackendIsVip,
                format!("the backend {} is a VIP of this balancer", target.ip),
            )
            .at(at, "its packets would come back for ever")
            .at(&other.vip.at, format!("the VIP of {}", other.title()));
            findings.add(found.help("write the address of the host that serves"));
        }
    }
}

/// Nobody else has what a rollout's preview takes for itself.
fn previews(services: &[ServiceDraft], findings: &mut Findings) {
    let mut seen: HashMap<(SocketAddr, Protocol), (&ServiceDraft, &Place)> = HashMap::new();
    for service in services {
        let (Some((preview, at)), Some(protocol)) = (service.preview(), service.protocol.value) else {
            continue;
        };
        let taken = |whose: String| {
            Diagnostic::new(Code::PreviewTaken, format!("the preview {preview}, {protocol}, is {whose}"))
                .at(at, format!("the preview of {}", service.title()))
        };
        let mut others = services.iter().filter(|other| {
            other.vip.value == Some(preview.ip())
                && other.protocol.value == Some(protocol)
                && other.port.value.is_some_and(|port| port == 0 || port == preview.port())
        });
        if let Some(other) = others.next() {
            let found = taken(format!("where {} is", other.title()));
            findings.add(found.at(&other.vip.at, format!("the VIP of {}", other.title())));
        }
        if let Some((other, first)) = seen.insert((preview, protocol), (service, at)) {
            let found = taken("another preview, too".to_owned());
            findings.add(found.at(first, format!("the preview of {}", other.title())));
        }
        let mut backends = services.iter().flat_map(ServiceDraft::backends);
        if let Some((_, backend)) =
            backends.find_map(|backend| backend.address.get().filter(|(target, _)| target.ip == preview.ip()))
        {
            let found = taken("at a backend's address".to_owned());
            findings.add(found.at(backend, "its packets would come back for ever"));
        }
    }
}

/// A backend's address and port, as a `nat` service claims the replies that come from there.
struct Claim<'a> {
    service: usize,
    vip: IpAddr,
    /// 0 is every port.
    vip_port: u16,
    port: u16,
    at: &'a Place,
}

/// Two services, and the backends that both claim.
struct Dispute<'a> {
    first: &'a Place,
    second: &'a Place,
    backends: usize,
}

/// In mode `nat`, a reply's source alone says to which VIP it is rewritten.
fn replies(services: &[ServiceDraft], findings: &mut Findings) {
    let mut hosts: BTreeMap<(IpAddr, &str), Vec<Claim<'_>>> = BTreeMap::new();
    for (index, service) in services.iter().enumerate() {
        let (Some(Mode::Nat), Some(vip), Some(vip_port), Some(protocol)) =
            (service.mode.value, service.vip.value, service.port.value, service.protocol.value)
        else {
            continue;
        };
        for (target, at) in service.backends().filter_map(|backend| backend.address.get()) {
            // A service of every port claims every port, whatever was written.
            let port = if vip_port == 0 { 0 } else { target.port.unwrap_or(vip_port) };
            let claim = Claim { service: index, vip, vip_port, port, at };
            hosts.entry((target.ip, protocol.as_str())).or_default().push(claim);
        }
    }

    let mut disputes: BTreeMap<(usize, usize), Dispute<'_>> = BTreeMap::new();
    for claims in hosts.values() {
        for (first, second) in disputed(claims) {
            let dispute = Dispute { first: first.at, second: second.at, backends: 0 };
            disputes.entry((first.service, second.service)).or_insert(dispute).backends += 1;
        }
    }
    for ((first, second), dispute) in disputes {
        findings.add(ambiguous(&services[first], &services[second], &dispute));
    }
}

/// The pairs of claims to one host, in order, that can't both be right.
fn disputed<'c, 'a>(claims: &'c [Claim<'a>]) -> Vec<(&'c Claim<'a>, &'c Claim<'a>)> {
    let mut by_port: HashMap<u16, &Claim<'_>> = HashMap::new();
    let mut out = Vec::new();
    for claim in claims {
        let first = *by_port.entry(claim.port).or_insert(claim);
        if first.service != claim.service {
            out.push((first, claim));
        }
    }
    let Some(&whole) = by_port.get(&0) else {
        return out;
    };
    for claim in claims.iter().filter(|claim| claim.port != 0 && !coexist(whole, claim)) {
        out.push(if whole.service < claim.service { (whole, claim) } else { (claim, whole) });
    }
    out
}

/// Whether the replies of a service of one port can be told from those of a service of every port: both rewrite to the
/// same VIP, and the port is nowhere changed.
fn coexist(whole: &Claim<'_>, one: &Claim<'_>) -> bool {
    whole.vip == one.vip && one.port == one.vip_port
}

fn ambiguous(first: &ServiceDraft, second: &ServiceDraft, dispute: &Dispute<'_>) -> Diagnostic {
    let (one, other) = (first.title(), second.title());
    let more = match dispute.backends - 1 {
        0 => String::new(),
        1 => ", and so is one more".to_owned(),
        n => format!(", and so are {n} more"),
    };
    Diagnostic::new(Code::RepliesAmbiguous, format!("replies to {one} and {other} cannot be told apart"))
        .at(dispute.second, format!("a backend of {other}"))
        .at(dispute.first, format!("also a backend of {one}{more}"))
        .help("in mode `nat`, the address and port of the backend alone say which VIP a reply belongs to")
        .help("use mode `dsr-l2` or `dsr-ipip` for one of the services, or give the backend a second address or port")
}
