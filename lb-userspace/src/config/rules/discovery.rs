//! What must hold for the discovery of a pool's backends.

use crate::config::discovery::{DiscoveryDraft, Record, SourceKind};
use crate::config::keys::{PoolDraft, ServiceDraft};
use crate::config::read::{Findings, Place, Table};
use crate::config::report::{Code, Diagnostic};

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    for discovery in service.pools().iter().filter_map(PoolDraft::discovery) {
        if let Some(&kind) = discovery.kind.value.as_ref() {
            incomplete(kind, discovery, findings);
            without_effect(kind, discovery, findings);
        }
        times(discovery, findings);
        port(service, discovery, findings);
        family(service, discovery, findings);
    }
}

fn incomplete(kind: SourceKind, discovery: &DiscoveryDraft, findings: &mut Findings) {
    let name = ("name", discovery.name.written);
    let path = ("path", discovery.path.written);
    let url = ("url", discovery.url.written);
    let needed = match kind {
        SourceKind::Dns => vec![(name, "\"web.example\"")],
        SourceKind::File => vec![(path, "\"/etc/lb/backends.json\"")],
        SourceKind::Http => vec![(url, "\"http://10.0.0.5:8500/backends\"")],
        SourceKind::Kubernetes => vec![(url, "\"https://10.0.0.5:6443\""), (name, "\"web\"")],
    };
    for ((key, _), example) in needed.into_iter().filter(|((_, written), _)| !written) {
        let found = Diagnostic::new(
            Code::DiscoveryIncomplete,
            format!("a discovery of type `{kind}` needs a `{key}`"),
        )
        .at(discovery.at(), format!("`{key}` is missing"));
        findings.add(found.help(format!("for example {key} = {example}")));
    }
}

fn without_effect(kind: SourceKind, discovery: &DiscoveryDraft, findings: &mut Findings) {
    use SourceKind::{Dns, File, Http, Kubernetes};
    let is_https = discovery.url.value.iter().flatten().all(|url| url.is_https());
    let is_srv = discovery.record.value == Some(Record::Srv);
    let keys: [(&str, bool, &Place, &[SourceKind]); 13] = [
        ("name", discovery.name.written, &discovery.name.at, &[Dns, Kubernetes]),
        ("record", discovery.record.written, &discovery.record.at, &[Dns]),
        ("servers", discovery.servers.written, &discovery.servers.at, &[Dns]),
        ("min_ttl", discovery.min_ttl.written, &discovery.min_ttl.at, &[Dns]),
        ("max_ttl", discovery.max_ttl.written, &discovery.max_ttl.at, &[Dns]),
        ("path", discovery.path.written, &discovery.path.at, &[File]),
        ("url", discovery.url.written, &discovery.url.at, &[Http, Kubernetes]),
        ("namespace", discovery.namespace.written, &discovery.namespace.at, &[Kubernetes]),
        ("port_name", discovery.port_name.written, &discovery.port_name.at, &[Kubernetes]),
        ("token_file", discovery.token_file.written, &discovery.token_file.at, &[Kubernetes]),
        ("ca_file", discovery.ca_file.written, &discovery.ca_file.at, &[Http, Kubernetes]),
        ("interval", discovery.interval.written, &discovery.interval.at, &[Http]),
        ("timeout", discovery.timeout.written, &discovery.timeout.at, &[Dns, Http, Kubernetes]),
    ];
    for (key, _, at, kinds) in keys.into_iter().filter(|(_, written, ..)| *written) {
        let why = match kind {
            _ if !kinds.contains(&kind) => format!("it is not for a discovery of type `{kind}`"),
            Http | Kubernetes if key == "ca_file" && !is_https => {
                "no certificate is asked for at an `http://` address".to_owned()
            }
            Kubernetes if key == "token_file" && !is_https => {
                "everybody on the way could read a token that is sent to an `http://` address".to_owned()
            }
            Dns | File | Http | Kubernetes => continue,
        };
        let found = Diagnostic::new(Code::NoEffect, format!("`{key}` has no effect: {why}"));
        findings.add(found.at(at, "not looked at"));
    }
    if kind == Dns && is_srv && discovery.port.written {
        let found = Diagnostic::new(Code::NoEffect, "`port` has no effect: SRV records say the port");
        findings.add(found.at(&discovery.port.at, "not looked at"));
    }
}

fn times(discovery: &DiscoveryDraft, findings: &mut Findings) {
    let (Some((least, at)), Some((most, most_at))) = (discovery.min_ttl.get(), discovery.max_ttl.get())
    else {
        return;
    };
    if least > most {
        let format = |time| humantime::format_duration(time);
        let found =
            Diagnostic::new(Code::DiscoveryTimes, "an answer would be believed at least longer than at most");
        let found = match discovery.min_ttl.written {
            true => found.at(at, format!("expected at most {}", format(*most))),
            false => found.at(
                most_at,
                format!("expected at least {}, which is `min_ttl` unless it is set", format(*least)),
            ),
        };
        findings.add(found);
    }
}

/// The port of those that come without one, where the mode or the service has a say in it.
fn port(service: &ServiceDraft, discovery: &DiscoveryDraft, findings: &mut Findings) {
    let Some((Some(port), at)) = discovery.port.get() else { return };
    if service.is_of_all_ports() {
        let found = Diagnostic::new(
            Code::PortOfAll,
            format!("{} is for every port, its backends for one", service.title()),
        )
        .at(at, "the client's port is kept, whatever it is")
        .at(&service.port.at, "every port");
        findings.add(found.help("leave it out"));
    } else if let (Some(wanted), Some(mode)) = (service.one_port(), service.mode.value)
        && mode.is_dsr()
        && *port != wanted
    {
        let found = Diagnostic::new(Code::PortChanged, format!("mode `{mode}` cannot change the port"))
            .at(at, format!("expected port {wanted}, as clients send it"))
            .at(&service.port.at, "the port of the service");
        findings.add(found.help("leave it out, or use mode `nat`"));
    }
}

fn family(service: &ServiceDraft, discovery: &DiscoveryDraft, findings: &mut Findings) {
    let (Some((record, at)), Some((vip, vip_at)), Some((mode, _))) =
        (discovery.record.get(), service.vip.get(), service.mode.get())
    else {
        return;
    };
    if mode.is_dsr() {
        return;
    }
    let (asks, has) = match (record, vip.is_ipv4()) {
        (Record::A, false) => ("IPv4", "IPv6"),
        (Record::Aaaa, true) => ("IPv6", "IPv4"),
        _ => return,
    };
    let found =
        Diagnostic::new(Code::FamilyMismatch, format!("mode `{mode}` cannot change the address family"))
            .at(at, format!("asks for {asks} addresses"))
            .at(vip_at, format!("the VIP is {has}"));
    findings.add(found.help("record = \"address\" asks for those of the VIP's family"));
}
