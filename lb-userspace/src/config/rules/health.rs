//! What must hold for a health check.

use std::time::Duration;

use crate::config::keys::{HealthDraft, ServiceDraft};
use crate::config::read::{Field, Findings, Place, Table};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::{Check, Verify, Via};

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
    without_agent(kind, service, health, findings);
    without_port(kind, service, health, findings);
    if kind == Check::None {
        return;
    }
    times(health, findings);
    port(kind, service, health, findings);
    via(service, health, findings);
    incomplete(kind, health, findings);
    unverified(kind, health, findings);
}

/// What a check cannot be made without.
fn incomplete(kind: Check, health: &HealthDraft, findings: &mut Findings) {
    let mut lacks = |code, what: &str, key: &str, example: &str| {
        let found = Diagnostic::new(code, what).at(health.at(), format!("`{key}` is missing"));
        findings.add(found.help(format!("for example {key} = {example}")));
    };
    if kind.is_http() && !health.path.written {
        lacks(Code::HttpPathMissing, "an HTTP check needs a path", "path", "\"/healthz\"");
    }
    if kind == Check::Udp && !health.send.written {
        lacks(Code::CheckIncomplete, "a UDP check needs something to send", "send", "\"ping\"");
    }
    if kind == Check::Exec && !health.command.written {
        let example = "[\"/usr/local/bin/check\"]";
        lacks(Code::CheckIncomplete, "a check of type `exec` needs a command", "command", example);
    }
}

/// A check of one backend ends before its next one begins.
fn times(health: &HealthDraft, findings: &mut Findings) {
    let usual =
        health.interval.get().map(|(&interval, at)| ("interval", interval, at, health.interval.written));
    let other = |key, field: &'_ Field<Option<Duration>>| {
        field.value.flatten().map(|interval| (key, interval, field.at.clone(), true))
    };
    let fast = other("fast_interval", &health.fast_interval);
    let down = other("down_interval", &health.down_interval);
    if let (Some((_, interval, interval_at, _)), Some((_, fast, at, _))) = (&usual, &fast)
        && fast > interval
    {
        let format = humantime::format_duration;
        let mut found = Diagnostic::new(Code::FastTooSlow, "the fast interval is longer than the usual one")
            .at(at, format!("expected at most {}", format(*interval)));
        found = match health.interval.written {
            true => found.at(interval_at, "the usual one"),
            false => found.help(format!("`interval` is {} unless it is set", format(*interval))),
        };
        findings.add(found);
    }
    let usual = usual.map(|(key, interval, at, written)| (key, interval, at.clone(), written));
    for (key, interval, at, written) in usual.into_iter().chain(fast).chain(down) {
        timeout(health, key, interval, &at, written, findings);
    }
}

fn timeout(
    health: &HealthDraft,
    key: &str,
    interval: Duration,
    interval_at: &Place,
    interval_written: bool,
    findings: &mut Findings,
) {
    let Some((&timeout, at)) = health.timeout.get() else { return };
    if timeout <= interval {
        return;
    }
    let format = humantime::format_duration;
    let mut found = Diagnostic::new(Code::TimeoutTooLong, "a check would last longer than its interval");
    if health.timeout.written {
        found = found.at(at, format!("expected at most {}", format(interval)));
    }
    if interval_written {
        found = found.at(interval_at, format!("expected at least {}", format(timeout)));
    }
    if !(health.timeout.written && interval_written) {
        let (key, value) = if health.timeout.written { (key, interval) } else { ("timeout", timeout) };
        found = found.help(format!("`{key}` is {} unless it is set", format(value)));
    }
    findings.add(found);
}

fn port(kind: Check, service: &ServiceDraft, health: &HealthDraft, findings: &mut Findings) {
    if kind == Check::Exec {
        return;
    }
    let lacking = || service.backends().find(|backend| !backend.health_port.written);
    if service.is_of_all_ports()
        && !health.port.written
        && (service.backends().next().is_none() || lacking().is_some())
    {
        let mut found = Diagnostic::new(Code::HealthPortMissing, "the check does not know which port to ask")
            .at(health.at(), "`port` is missing")
            .at(&service.port.at, "the backends have no port of their own");
        if service.backends().any(|backend| backend.health_port.written)
            && let Some(backend) = lacking()
        {
            found = found.at(backend.at(), "nor has this one a `health_port`");
        }
        findings.add(found);
    }
}

/// Where the VIP is not what backends are sent packets for, nobody can be asked for it.
fn via(service: &ServiceDraft, health: &HealthDraft, findings: &mut Findings) {
    let (Some((Via::Vip, at)), Some((mode, mode_at))) = (health.via.get(), service.mode.get()) else {
        return;
    };
    if mode.is_dsr() {
        return;
    }
    let found = Diagnostic::new(
        Code::ViaWithoutDsr,
        format!("in mode `{mode}` backends get no packets for the VIP: a probe for it would find nobody"),
    )
    .at(at, "works in the `dsr` modes");
    let found = if service.mode.written { found.at(mode_at, "the mode") } else { found };
    findings.add(
        found.help("leave `via` out: a check of the backend's own address goes the way of clients' packets"),
    );
}

/// Certificates that nobody looks at need no authority.
fn unverified(kind: Check, health: &HealthDraft, findings: &mut Findings) {
    if kind.is_tls() && health.verify.value == Some(Verify::None) && health.ca_file.written {
        let found =
            Diagnostic::new(Code::NoEffect, "`ca_file` has no effect on a check that verifies nothing");
        findings.add(found.at(&health.ca_file.at, "not looked at").at(&health.verify.at, "not verified"));
    }
}

fn without_effect(kind: Check, health: &HealthDraft, findings: &mut Findings) {
    fn place<T>(field: &Field<T>) -> Option<&Place> {
        field.written.then_some(&field.at)
    }
    let (any, asks) = (kind != Check::None, kind != Check::None && kind != Check::Exec);
    let (http, grpc, tls) = (kind.is_http(), kind.is_grpc(), kind.is_tls());
    let (udp, exec) = (kind == Check::Udp, kind == Check::Exec);
    let keys = [
        ("interval", any, place(&health.interval)),
        ("timeout", any, place(&health.timeout)),
        ("healthy", any, place(&health.healthy)),
        ("unhealthy", any, place(&health.unhealthy)),
        ("port", asks, place(&health.port)),
        ("via", asks, place(&health.via)),
        ("fast_interval", any, place(&health.fast_interval)),
        ("down_interval", any, place(&health.down_interval)),
        ("path", http, place(&health.path)),
        ("host", http || grpc, place(&health.host)),
        ("expect_status", http, place(&health.expect_status)),
        ("expect_body", http, place(&health.expect_body)),
        ("verify", tls, place(&health.verify)),
        ("ca_file", tls, place(&health.ca_file)),
        ("sni", tls, place(&health.sni)),
        ("grpc_service", grpc, place(&health.grpc_service)),
        ("send", udp, place(&health.send)),
        ("expect", udp, place(&health.expect)),
        ("command", exec, place(&health.command)),
    ];
    for (key, at) in keys.into_iter().filter_map(|(key, works, at)| Some((key, at.filter(|_| !works)?))) {
        findings.add(idle(key, at, kind, health));
    }
}

fn idle(key: &str, at: &Place, kind: Check, health: &HealthDraft) -> Diagnostic {
    Diagnostic::new(Code::NoEffect, format!("`{key}` has no effect on a check of type `{kind}`"))
        .at(at, "not looked at")
        .at(&health.kind.at, "the type of the check")
}

/// Keys that need an agent, or anything at all that can take a backend out.
fn without_agent(kind: Check, service: &ServiceDraft, health: &HealthDraft, findings: &mut Findings) {
    if health.agent_port.written || service.backends().any(|backend| backend.agent_port.written) {
        return;
    }
    let mut idle = |key: &str, at: &Place, why: &str| {
        let found = Diagnostic::new(Code::NoEffect, format!("`{key}` has no effect: {why}"));
        findings.add(found.at(at, "not looked at"));
    };
    if health.agent_interval.written {
        idle("agent_interval", &health.agent_interval.at, "no backend has an `agent_port`");
    }
    if health.on_down_command.written && kind == Check::None {
        idle("on_down_command", &health.on_down_command.at, "nothing is asked of the backends");
    }
}

/// A port of one backend, where no port is asked.
fn without_port(kind: Check, service: &ServiceDraft, health: &HealthDraft, findings: &mut Findings) {
    if !matches!(kind, Check::None | Check::Exec) {
        return;
    }
    for backend in service.backends().filter(|backend| backend.health_port.written) {
        findings.add(idle("health_port", &backend.health_port.at, kind, health));
    }
}
