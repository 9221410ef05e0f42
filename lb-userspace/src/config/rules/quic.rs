//! What must hold for connection ids that name backends.

use std::collections::HashMap;

use crate::config::keys::ServiceDraft;
use crate::config::quic::QuicDraft;
use crate::config::read::{Findings, Place, Table};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::{Mode, Protocol, ServerId};

/// What an id has room for, beside its first octet.
const ROOM: u32 = 19;

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    let Some((Some(quic), at)) = service.quic.get() else {
        return without(service, findings);
    };
    reachable(service, at, findings);
    configs(quic, at, findings);
    names(service, quic, findings);
}

/// Each server id with its place.
fn server_ids(service: &ServiceDraft) -> impl Iterator<Item = (&ServerId, &Place)> {
    let written = service.backends().filter_map(|backend| backend.server_ids.value.as_ref()?.as_ref());
    written.flatten().map(|(at, id)| (id, at))
}

fn without(service: &ServiceDraft, findings: &mut Findings) {
    // A table that was lost is no table that is missing.
    if service.quic.value.is_none() {
        return;
    }
    if let Some((_, at)) = server_ids(service).next() {
        let found = Diagnostic::new(Code::NoEffect, format!("{} reads no connection ids", service.title()));
        findings.add(found.at(at, "nobody looks for it").help("say how ids are read in `[service.quic]`"));
    }
}

fn reachable(service: &ServiceDraft, at: &Place, findings: &mut Findings) {
    if let Some((Protocol::Tcp, protocol)) = service.protocol.get() {
        let found = Diagnostic::new(Code::QuicNowhere, "QUIC is spoken over UDP");
        let found = found.at(at, "no TCP segment has a connection id");
        let found = if service.protocol.written { found.at(protocol, "the service is TCP") } else { found };
        findings.add(found.help("say protocol = \"udp\""));
    }
    if let Some((mode @ Mode::FullNat, mode_at)) = service.mode.get() {
        let found = Diagnostic::new(
            Code::QuicNowhere,
            format!("mode `{mode}` cannot follow a client that changes its address"),
        );
        let found =
            found.at(at, "has no effect on sessions").at(mode_at, "a session is one of two addresses");
        findings.add(found.help("use mode `nat` or `dsr-…`"));
    }
}

fn configs(quic: &QuicDraft, at: &Place, findings: &mut Findings) {
    if quic.configs.value.as_ref().is_some_and(Vec::is_empty) {
        let found = Diagnostic::new(Code::QuicIncomplete, "no connection id can be read");
        findings.add(found.at(at, "expected at least one `[[service.quic.config]]`"));
    }
    let mut seen: HashMap<u32, &Place> = HashMap::new();
    for config in quic.configs() {
        if let Some((&id, at)) = config.id.get()
            && let Some(first) = seen.insert(id, at)
        {
            let found = Diagnostic::new(Code::QuicIncomplete, format!("two configurations have the id {id}"));
            let found = found.at(at, "again here").at(first, "first here");
            findings
                .add(found.help("the id is what tells them apart: the first three bits of a connection id"));
        }
        if let Some(length) = config.length()
            && length > ROOM
        {
            let found = Diagnostic::new(
                Code::QuicIncomplete,
                format!("server id and nonce have {length} bytes, and a connection id has room for {ROOM}"),
            );
            let found = found.at(&config.nonce_length.at, "together with this");
            findings.add(found.at(&config.server_id_length.at, "this is too long"));
        }
    }
}

fn names(service: &ServiceDraft, quic: &QuicDraft, findings: &mut Findings) {
    let lengths: Vec<u32> =
        quic.configs().iter().filter_map(|config| config.server_id_length.value).collect();
    let all_known = quic.configs.value.is_some() && lengths.len() == quic.configs().len();
    let mut seen: HashMap<&ServerId, &Place> = HashMap::new();
    for (id, at) in server_ids(service) {
        if let Some(first) = seen.insert(id, at) {
            let found = Diagnostic::new(
                Code::ServerIdTwice,
                format!("the server id {id} is twice in {}", service.title()),
            );
            findings.add(found.at(at, "again here").at(first, "first here"));
        }
        let length = id.bytes().len() as u32;
        if all_known && !lengths.is_empty() && !lengths.contains(&length) {
            let expected: Vec<String> = lengths.iter().map(ToString::to_string).collect();
            let found = Diagnostic::new(
                Code::ServerIdLength,
                format!("no connection id has a server id of {length} bytes"),
            );
            let found = found.at(at, format!("expected {} bytes", expected.join(" or ")));
            findings.add(
                found.help("a server has one id for each `server_id_length` of `[[service.quic.config]]`"),
            );
        }
    }
    for backend in service.backends() {
        let Some(named) = backend.server_ids.value.as_ref() else { continue };
        if named.as_ref().is_none_or(Vec::is_empty) {
            let title = match &backend.address.value {
                Some(address) => format!("the backend {address}"),
                None => "a backend".to_owned(),
            };
            let found = Diagnostic::new(Code::Unnamed, format!("no connection id names {title}"));
            let found =
                found.at(backend.at(), "its clients lose their connections when their address changes");
            findings.add(found.help("give it `server_ids`, as its QUIC server has them"));
        }
    }
}
