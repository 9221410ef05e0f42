//! What must hold for a health check.

use crate::config::keys::HealthDraft;
use crate::config::keys::ServiceDraft;
use crate::config::read::{Field, Findings, Table};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::Check;

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    if !service.health.written {
        let found = Diagnostic::new(
            Code::Unchecked,
            format!("the backends of {} are never checked", service.title()),
        )
        .at(service.at(), "without a health check, a dead backend keeps its share of the clients")
        .help("add `[service.health]`; type = \"none\" says that this is meant");
        findings.add(found);
        return;
    }
    let Some((health, _)) = service.health.get() else {
        return;
    };
    let Some(&kind) = health.kind.value.as_ref() else {
        return;
    };
    without_effect(kind, health, findings);
    if kind == Check::None {
        return;
    }
    timeout(health, findings);
    port(service, health, findings);
    if kind == Check::Http && !health.path.written {
        let found = Diagnostic::new(Code::HttpPathMissing, "an HTTP check needs a path")
            .at(health.at(), "`path` is missing");
        findings.add(found.help("for example path = \"/healthz\""));
    }
}

fn timeout(health: &HealthDraft, findings: &mut Findings) {
    let (Some((timeout, at)), Some((interval, interval_at))) = (health.timeout.get(), health.interval.get())
    else {
        return;
    };
    if timeout <= interval {
        return;
    }
    let format = humantime::format_duration;
    let mut found = Diagnostic::new(Code::TimeoutTooLong, "a check would last longer than its interval");
    if health.timeout.written {
        found = found.at(at, format!("expected at most {}", format(*interval)));
    }
    if health.interval.written {
        found = found.at(interval_at, format!("expected at least {}", format(*timeout)));
    }
    if !(health.timeout.written && health.interval.written) {
        let (key, value) = if health.timeout.written { ("interval", interval) } else { ("timeout", timeout) };
        found = found.help(format!("`{key}` is {} unless it is set", format(*value)));
    }
    findings.add(found);
}

fn port(service: &ServiceDraft, health: &HealthDraft, findings: &mut Findings) {
    if service.is_of_all_ports() && !health.port.written {
        let found = Diagnostic::new(Code::HealthPortMissing, "the check does not know which port to ask")
            .at(health.at(), "`port` is missing")
            .at(&service.port.at, "the backends have no port of their own");
        findings.add(found);
    }
}

fn without_effect(kind: Check, health: &HealthDraft, findings: &mut Findings) {
    fn place<T>(field: &Field<T>) -> Option<&crate::config::read::Place> {
        field.written.then_some(&field.at)
    }
    let http = [
        ("path", place(&health.path)),
        ("host", place(&health.host)),
        ("expect_status", place(&health.expect_status)),
    ];
    let every = [
        ("interval", place(&health.interval)),
        ("timeout", place(&health.timeout)),
        ("healthy", place(&health.healthy)),
        ("unhealthy", place(&health.unhealthy)),
        ("port", place(&health.port)),
    ];
    let idle = match kind {
        Check::Http => &[][..],
        Check::Tcp => &http[..],
        Check::None => &[every.as_slice(), http.as_slice()].concat()[..],
    };
    for (key, at) in idle.iter().filter_map(|&(key, at)| Some((key, at?))) {
        let found =
            Diagnostic::new(Code::NoEffect, format!("`{key}` has no effect on a check of type `{kind}`"));
        findings.add(found.at(at, "not looked at").at(&health.kind.at, "the type of the check"));
    }
}
