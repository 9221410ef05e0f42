//! Whether all of it fits.

use std::collections::HashMap;

use lb_common::abi::MAX_SOURCES;

use crate::config::keys::{DataplaneDraft, ServiceDraft};
use crate::config::read::{Field, Findings, Place};
use crate::config::report::{Code, Diagnostic};
use crate::config::rules::protection::networks;
use crate::config::slots_of;

pub(super) fn interfaces(dataplane: &DataplaneDraft, findings: &mut Findings) {
    let Some((interfaces, at)) = dataplane.interfaces.get() else {
        return;
    };
    if interfaces.is_empty() && dataplane.interfaces.written {
        let found = Diagnostic::new(Code::NoInterface, "there is no interface to work on");
        findings.add(found.at(at, "expected at least one").help("for example interfaces = [\"eth0\"]"));
    }
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (at, name) in interfaces {
        if let Some(first) = seen.insert(name.as_str(), at) {
            let found =
                Diagnostic::new(Code::DuplicateInterface, format!("the interface `{name}` is listed twice"));
            findings.add(found.at(at, "again here").at(first, "first here"));
        }
    }
}

/// Addresses that stand for clients.
pub(super) fn sources(dataplane: &DataplaneDraft, services: &[ServiceDraft], findings: &mut Findings) {
    let Some((addresses, at)) = dataplane.snat_addresses.get() else { return };
    for v4 in [true, false] {
        let count = addresses.iter().filter(|(_, address)| address.is_ipv4() == v4).count();
        if count > MAX_SOURCES {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let found = Diagnostic::new(
                Code::SourcesExhausted,
                format!("{count} {family} addresses stand for clients, there is room for {MAX_SOURCES}"),
            );
            findings.add(found.at(at, "here").help("more ports (`snat_ports`) make room, too"));
        }
    }
    for (at, address) in addresses {
        let vip = services.iter().find(|service| service.vip.value == Some(*address));
        if let Some(service) = vip {
            let found =
                Diagnostic::new(Code::SourceIsVip, format!("{address} stands for clients, and is a VIP"))
                    .at(at, "replies of backends go here")
                    .at(&service.vip.at, format!("the VIP of {}", service.title()));
            findings.add(found.help("give `snat_addresses` addresses of their own"));
        }
        let previews = services.iter().filter_map(|service| Some((service, service.preview()?)));
        for (service, (_, preview)) in previews.filter(|(_, (preview, _))| preview.ip() == *address) {
            let found =
                Diagnostic::new(Code::SourceIsVip, format!("{address} stands for clients, and is a preview"))
                    .at(at, "replies of backends go here")
                    .at(preview, format!("the preview of {}", service.title()));
            findings.add(found.help("give `snat_addresses` addresses of their own"));
        }
    }
}

pub(super) fn check(dataplane: &DataplaneDraft, services: &[ServiceDraft], findings: &mut Findings) {
    // A preview is a service of its own while there is one: with one table, and the backends of one pool.
    let slots = services.iter().filter_map(|service| {
        let size = service.table_size.value?;
        let preview = if service.preview().is_some() { size.get() } else { 0 };
        Some(u64::from(slots_of(size, service.pools.value.as_ref()?.len()) + preview))
    });
    let previewed = |service: &ServiceDraft| match service.preview() {
        Some(_) => service.pools().iter().map(|pool| pool.backends().len()).max().unwrap_or(0),
        None => 0,
    };
    let backends: usize =
        services.iter().map(|service| service.backends().count() + previewed(service)).sum();
    let needed = services.len() + services.iter().filter(|service| service.preview().is_some()).count();

    let prefixes = services.iter().filter_map(|service| service.protection.value.as_ref()?.as_ref());
    // Two more of each service: what holds for all others, for the service and for its VIP.
    let prefixes = prefixes.map(|protection| 2 * (networks(protection).count() as u64 + 1)).sum();

    let mut fits = |code, key, what, needed: u64, most, room: &Field<u32>| {
        let Some((&room_for, at)) = room.get() else {
            return;
        };
        if needed <= u64::from(room_for) {
            return;
        }
        let label = match room.written {
            true => format!("room for {room_for}"),
            false => format!("`{key}` is {room_for} unless it is set"),
        };
        let found = Diagnostic::new(
            code,
            format!("room for {needed} {what} is needed, there is room for {room_for}"),
        )
        .at(at, label);
        findings.add(if needed <= most {
            found.help(format!("set `{key}` in `[dataplane]` to {needed} or more"))
        } else {
            found.help(format!("`{key}` can be at most {most}: share the services out among balancers"))
        });
    };
    fits(Code::SlotsExhausted, "slots", "slots", slots.sum(), 1 << 27, &dataplane.slots);
    fits(Code::BackendsExhausted, "backends", "backends", backends as u64, 65_535, &dataplane.backends);
    fits(Code::PrefixesExhausted, "prefixes", "networks", prefixes, 1 << 27, &dataplane.prefixes);
    fits(Code::ServicesExhausted, "services", "services", needed as u64, 65_535, &dataplane.services);
}
