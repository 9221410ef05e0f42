//! What must hold for lists and rates.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::config::keys::ServiceDraft;
use crate::config::protection::ProtectionDraft;
use crate::config::read::{Findings, Place};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::Protocol;

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    let Some((Some(protection), _)) = service.protection.get() else { return };
    twice(protection, findings);
    other_family(service, protection, findings);
    new_of_udp(service, protection, findings);
    bursts(protection, findings);
}

/// All networks that are listed: in which list, and where.
pub(super) fn networks(protection: &ProtectionDraft) -> impl Iterator<Item = (&'static str, &Place, IpNet)> {
    let lists = [("allow", &protection.allow), ("deny", &protection.deny)];
    lists
        .into_iter()
        .flat_map(|(name, list)| list.value.iter().flatten().map(move |(at, network)| (name, at, *network)))
}

fn twice(protection: &ProtectionDraft, findings: &mut Findings) {
    let mut seen: HashMap<IpNet, (&str, &Place)> = HashMap::new();
    for (list, at, network) in networks(protection) {
        if let Some((before, first)) = seen.insert(network, (list, at)) {
            let what = if before == list {
                format!("`{network}` is listed twice")
            } else {
                format!("`{network}` is allowed and denied")
            };
            let found = Diagnostic::new(Code::NetworkTwice, what)
                .at(at, format!("in `{list}`"))
                .at(first, format!("in `{before}`"));
            findings.add(found.help("leave one of them out; a part of it may be in the other list"));
        }
    }
}

/// Nobody who talks to an IPv4 VIP has an IPv6 address.
fn other_family(service: &ServiceDraft, protection: &ProtectionDraft, findings: &mut Findings) {
    let Some((vip, vip_at)) = service.vip.get() else { return };
    for (list, at, network) in networks(protection) {
        if network.addr().is_ipv4() == vip.is_ipv4() {
            continue;
        }
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        let found = Diagnostic::new(Code::NoEffect, format!("`{network}` in `{list}` has no effect"))
            .at(at, "no client comes from there")
            .at(vip_at, format!("the VIP is {family}, and so are its clients"));
        findings.add(found.help("leave it out"));
    }
}

/// Which of its datagrams begins something, UDP does not say.
fn new_of_udp(service: &ServiceDraft, protection: &ProtectionDraft, findings: &mut Findings) {
    let Some((Protocol::Udp, protocol)) = service.protocol.get() else { return };
    for (rate, name, instead) in [
        (&protection.max_new_per_second, "max_new_per_second", "max_packets_per_second"),
        (&protection.source_max_new_per_second, "source_max_new_per_second", "source_max_packets_per_second"),
    ] {
        if let Some((Some(_), at)) = rate.get() {
            let found = Diagnostic::new(Code::NewOfUdp, format!("`{name}` in a UDP service"))
                .at(at, "no datagram says that it is the first")
                .at(protocol, "the service is UDP");
            findings.add(found.help(format!("use `{instead}`")));
        }
    }
}

fn bursts(protection: &ProtectionDraft, findings: &mut Findings) {
    let ProtectionDraft {
        max_new_per_second: new,
        new_burst,
        max_packets_per_second: packets,
        packet_burst,
        source_max_new_per_second: source_new,
        source_new_burst,
        source_max_packets_per_second: source_packets,
        source_packet_burst,
        ..
    } = protection;
    for (burst, name, rate, of) in [
        (new_burst, "new_burst", new, "max_new_per_second"),
        (packet_burst, "packet_burst", packets, "max_packets_per_second"),
        (source_new_burst, "source_new_burst", source_new, "source_max_new_per_second"),
        (source_packet_burst, "source_packet_burst", source_packets, "source_max_packets_per_second"),
    ] {
        if burst.written && !rate.written {
            let found = Diagnostic::new(Code::NoEffect, format!("`{name}` has no effect without `{of}`"))
                .at(&burst.at, "a burst of what has no rate");
            findings.add(found.help(format!("set `{of}`, or leave it out")));
        }
    }
}
