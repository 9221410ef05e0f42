//! What must hold within a service.

use std::collections::HashMap;

use crate::config::keys::{BackendDraft, PoolDraft, ServiceDraft};
use crate::config::read::{Field, Findings, Place, Table};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::{Least, Mode, Protocol, Tracking};

/// Below it, a weight is kept to no better than a percent.
const SLOTS_PER_BACKEND: u32 = 100;

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    tracking(service, findings);
    tunnel(service, findings);
    clamp(service, findings);
    pools(service, findings);
    twice(service, findings);
    toa(service, findings);
    for backend in service.backends() {
        port(service, backend, findings);
        family(service, backend, findings);
    }
    for pool in service.pools() {
        weights(service, pool, findings);
        min_healthy(service, pool, findings);
    }
}

fn tracking(service: &ServiceDraft, findings: &mut Findings) {
    let (Some((Tracking::None, at)), Some((Protocol::Tcp, protocol))) =
        (service.tracking.get(), service.protocol.get())
    else {
        return;
    };
    let mut found = Diagnostic::new(Code::TrackingTcp, "only UDP can go without tracking")
        .at(at, "TCP flows are always tracked");
    if service.protocol.written {
        found = found.at(protocol, "the service is TCP");
    }
    findings.add(found.help("leave `tracking` out, or say protocol = \"udp\""));
}

fn toa(service: &ServiceDraft, findings: &mut Findings) {
    let (Some((true, at)), Some((mode, mode_at)), Some((protocol, protocol_at))) =
        (service.toa.get(), service.mode.get(), service.protocol.get())
    else {
        return;
    };
    if *mode != Mode::FullNat {
        let found = Diagnostic::new(
            Code::ToaWithoutNeed,
            format!("in mode `{mode}` backends see the client's address"),
        )
        .at(at, "there is nothing to tell");
        let found = if service.mode.written { found.at(mode_at, "the mode") } else { found };
        findings.add(found.help("leave `toa` out, or say mode = \"full-nat\""));
    } else if *protocol == Protocol::Udp {
        let found =
            Diagnostic::new(Code::ToaWithoutNeed, "a datagram has no options that could tell of the client")
                .at(at, "works for TCP only")
                .at(protocol_at, "the service is UDP");
        findings
            .add(found.help("leave `toa` out; in mode `nat` or `dsr-…` backends see the client's address"));
    }
}

fn tunnel(service: &ServiceDraft, findings: &mut Findings) {
    let (Some((Some(_), at)), Some((mode, _))) = (service.gue_port.get(), service.mode.get()) else {
        return;
    };
    if *mode != Mode::DsrGue {
        let found = Diagnostic::new(Code::NoEffect, format!("`gue_port` has no effect in mode `{mode}`"));
        findings.add(found.at(at, "only `dsr-gue` puts packets into UDP"));
    }
}

fn clamp(service: &ServiceDraft, findings: &mut Findings) {
    let (Some((Some(_), at)), Some((Protocol::Udp, protocol))) =
        (service.clamp_mss.get(), service.protocol.get())
    else {
        return;
    };
    let found = Diagnostic::new(Code::NoEffect, "`clamp_mss` has no effect on UDP");
    findings.add(found.at(at, "only TCP has segments").at(protocol, "the service is UDP"));
}

fn pools(service: &ServiceDraft, findings: &mut Findings) {
    if let Some((pools, at)) = service.pools.get()
        && pools.is_empty()
        && service.pools.written
    {
        let found = Diagnostic::new(Code::NoPool, format!("{} has no pool", service.title()));
        findings.add(
            found.at(at, "expected at least one").help("the first `[[service.pool]]` is the stable one"),
        );
    }
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (name, at) in service.pools().iter().filter_map(|pool| pool.name.get()) {
        if let Some(first) = seen.insert(name.as_str(), at) {
            let found = Diagnostic::new(
                Code::DuplicatePool,
                format!("two pools of {} are named `{name}`", service.title()),
            );
            findings.add(found.at(at, "again here").at(first, "first here"));
        }
    }
}

fn twice(service: &ServiceDraft, findings: &mut Findings) {
    let mut seen = HashMap::new();
    for pool in service.pools() {
        for (target, at) in pool.backends().iter().filter_map(|backend| backend.address.get()) {
            let Some((first, first_pool)) = seen.insert((target.ip, target.port), (at, pool)) else {
                continue;
            };
            let elsewhere = !std::ptr::eq(first_pool, pool);
            let found = Diagnostic::new(
                Code::DuplicateBackend,
                format!("the backend {target} is twice in {}", service.title()),
            )
            .at(at, "again here")
            .at(first, if elsewhere { "first here, in another pool" } else { "first here" });
            findings.add(found.help(if elsewhere {
                "a backend serves one version: give the other one a port of its own"
            } else {
                "for a larger share, raise its weight"
            }));
        }
    }
}

fn port(service: &ServiceDraft, backend: &BackendDraft, findings: &mut Findings) {
    let Some((target, at)) = backend.address.get() else {
        return;
    };
    let Some(port) = target.port else { return };
    let found = match (service.one_port(), service.mode.value) {
        (None, _) if service.is_of_all_ports() && port != 0 => Diagnostic::new(
            Code::PortOfAll,
            format!("{} is for every port, its backend for one", service.title()),
        )
        .at(at, "the client's port is kept, whatever it is")
        .at(&service.port.at, "every port")
        .help(format!("write \"{}\"", target.ip)),
        (Some(_), _) if port == 0 => Diagnostic::new(Code::PortZero, "a backend cannot listen on port 0")
            .at(at, "expected a port from 1 to 65535")
            .help(format!("\"{}\" without a port takes the service's", target.ip)),
        (Some(wanted), Some(mode)) if mode.is_dsr() && port != wanted => {
            Diagnostic::new(Code::PortChanged, format!("mode `{mode}` cannot change the port"))
                .at(at, format!("expected port {wanted}, as clients send it"))
                .at(&service.port.at, "the port of the service")
                .help(format!("let the backend listen on port {wanted}, or use mode `nat`"))
        }
        _ => return,
    };
    findings.add(found);
}

fn family(service: &ServiceDraft, backend: &BackendDraft, findings: &mut Findings) {
    let (Some((target, at)), Some((vip, vip_at)), Some((mode, _))) =
        (backend.address.get(), service.vip.get(), service.mode.get())
    else {
        return;
    };
    if mode.is_dsr() {
        return;
    }
    if target.ip.is_ipv4() == vip.is_ipv4() {
        return;
    }
    let family = |v4| if v4 { "IPv4" } else { "IPv6" };
    findings.add(
        Diagnostic::new(Code::FamilyMismatch, format!("mode `{mode}` cannot change the address family"))
            .at(at, format!("expected an {} address", family(vip.is_ipv4())))
            .at(vip_at, format!("the VIP is {}", family(vip.is_ipv4())))
            .help("modes `dsr-l2`, `dsr-ipip` and `dsr-gue` can mix the families"),
    );
}

fn weights(service: &ServiceDraft, pool: &PoolDraft, findings: &mut Findings) {
    // Backends that were lost would make the count wrong, and so would those that are yet to be discovered.
    if pool.backends.value.is_none() || pool.discovery.written {
        return;
    }
    let title = title(service, pool);
    if pool.backends().is_empty() {
        let found = Diagnostic::new(Code::EmptyPool, format!("{title} has no backends"));
        findings.add(found.at(pool.at(), "no client of this pool can be served"));
        return;
    }
    let weighed = weighed(pool);
    if weighed == 0 {
        let found = Diagnostic::new(Code::AllZero, format!("every backend of {title} has weight 0"));
        findings.add(found.at(pool.at(), "no backend of this pool takes a new flow"));
        return;
    }
    let Some((size, at)) = service.table_size.get() else {
        return;
    };
    let needed = weighed.saturating_mul(SLOTS_PER_BACKEND);
    if size.get() < needed {
        let mut found = Diagnostic::new(
            Code::FewSlots,
            format!("the table is small for the {weighed} backends of {title}"),
        );
        let label = format!("{size} slots, expected {needed} or more");
        found = if service.table_size.written {
            found.at(at, label).at(pool.at(), "this pool")
        } else {
            found.at(pool.at(), label)
        };
        findings.add(found.help("with fewer than 100 slots a backend, weights are coarse and changes move more flows than they need to"));
    }
}

fn min_healthy(service: &ServiceDraft, pool: &PoolDraft, findings: &mut Findings) {
    // Of an empty pool, one whose backends were lost, or one that discovers them, there is nothing to ask.
    let all = weighed(pool);
    if pool.backends.value.is_none() || pool.discovery.written || all == 0 {
        return;
    }
    let written = |field: &Field<Option<Least>>| field.value.flatten();
    let (least, recover) = (written(&pool.min_healthy), written(&pool.min_healthy_recover));
    for (name, value, at) in [
        ("min_healthy", least, &pool.min_healthy.at),
        ("min_healthy_recover", recover, &pool.min_healthy_recover.at),
    ] {
        if let Some(value) = value
            && value.of(all) > all
        {
            let found = Diagnostic::new(
                Code::MinHealthy,
                format!("{} can never have {value} healthy backends", title(service, pool)),
            );
            findings.add(
                found
                    .at(at, format!("expected at most {all}, as many as take flows"))
                    .help(format!("a percentage such as {name} = \"50%\" follows the number of backends")),
            );
            return;
        }
    }
    let Some(recover) = recover else { return };
    let found = match least {
        None => Diagnostic::new(
            Code::MinHealthyOrder,
            format!("{} cannot come back from what it never falls below", title(service, pool)),
        )
        .at(&pool.min_healthy_recover.at, "`min_healthy` is missing"),
        Some(least) if recover.of(all) < least.of(all) => Diagnostic::new(
            Code::MinHealthyOrder,
            format!("{} would come back with fewer backends than it fails with", title(service, pool)),
        )
        .at(&pool.min_healthy_recover.at, format!("expected {least} or more"))
        .at(&pool.min_healthy.at, "below this it fails"),
        Some(_) => return,
    };
    findings.add(found);
}

/// For messages.
fn title(service: &ServiceDraft, pool: &PoolDraft) -> String {
    match &pool.name.value {
        Some(name) => format!("pool `{name}` of {}", service.title()),
        None => format!("a pool of {}", service.title()),
    }
}

/// Backends of a pool that are meant to take flows.
fn weighed(pool: &PoolDraft) -> u32 {
    let weighs = |backend: &&BackendDraft| backend.weight.value.is_none_or(|weight| !weight.is_zero());
    u32::try_from(pool.backends().iter().filter(weighs).count()).unwrap_or(u32::MAX)
}
