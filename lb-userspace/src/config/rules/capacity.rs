//! Whether all of it fits.

use std::collections::HashMap;

use crate::config::keys::{DataplaneDraft, ServiceDraft};
use crate::config::read::{Field, Findings, Place};
use crate::config::report::{Code, Diagnostic};
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

pub(super) fn check(dataplane: &DataplaneDraft, services: &[ServiceDraft], findings: &mut Findings) {
    let slots = services.iter().filter_map(|service| {
        let size = service.table_size.value?;
        Some(u64::from(slots_of(size, service.pools.value.as_ref()?.len())))
    });
    let backends = services.iter().map(|service| service.backends().count()).sum::<usize>();

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
    fits(Code::ServicesExhausted, "services", "services", services.len() as u64, 65_535, &dataplane.services);
}
