//! Flows that stand in the kernel's tables.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::ControlFlow;

use lb_common::abi;
use lb_common::session::{Session, SessionKey};

use super::Agent;
use crate::api::{BackendPath, FlowInfo, FlowKind};
use crate::clock;
use crate::compile::key_of;
use crate::dataplane::Maps;

impl Agent {
    /// Puts names to flows that were found.
    pub(super) fn named(&self, found: Vec<Found>) -> Vec<FlowInfo> {
        let names: HashMap<u32, &str> = self
            .desired
            .config
            .services
            .iter()
            .filter_map(|s| Some((self.publisher.registry.service_index(&key_of(s))?, s.name.as_str())))
            .collect();
        let now = clock::ticks();
        let name = |found: Found| {
            let backend = self.publisher.maps.backends.read(found.backend.into());
            let ip: IpAddr = backend.address.into();
            FlowInfo {
                service: names.get(&found.key.owner).copied().unwrap_or("?").to_owned(),
                client: found.key.client.into(),
                port: found.key.client_port.number(),
                pool: self.publisher.registry.pool_name(backend.pool).unwrap_or("?").to_owned(),
                backend: BackendPath::name_of((ip, backend.port.number()).into()),
                kind: found.kind,
                // A tick is 2^30 ns.
                idle_seconds: u64::from(now.saturating_sub(found.seen)) * 1_073 / 1_000,
                age_seconds: None,
            }
        };
        found.into_iter().map(name).collect()
    }

    /// Whether nothing can be in the tables of tracked flows.
    pub(super) fn has_no_tracked_flows(&self) -> bool {
        self.books.say_empty(&self.publisher.maps)
    }

    /// Tracked flows of a service's canary.
    pub(super) fn tracked_in_canary(&self, service: &str) -> Option<u64> {
        let index = self.index(service).ok()?;
        let canary = self.publisher.maps.services.read(index).canary_pool;
        let ids = self.publisher.registry.backends_of(index);
        let in_canary = ids.filter(|&id| self.publisher.maps.backends.read(id.into()).pool == canary);
        Some(in_canary.map(|id| self.swept.load(id).flows).sum())
    }
}

/// A flow that stands in a table.
pub(super) struct Found {
    key: abi::FlowKey,
    backend: u16,
    kind: FlowKind,
    /// In ticks.
    seen: u32,
}

/// Flows as they stand in the tables: `limit` at most, of one service or of all; and whether there are more. `tracked`: the
/// tables of tracked flows are read, too. Takes milliseconds where tables are large.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn find_flows(
    maps: &Maps,
    only: Option<u32>,
    limit: usize,
    tracked: bool,
) -> std::io::Result<(Vec<Found>, bool)> {
    let mut flows = Vec::new();
    let mut truncated = false;
    let mut add = |key: &abi::FlowKey, backend: u16, kind: FlowKind, seen: u32| {
        if only.is_some_and(|index| index != key.owner) {
            return ControlFlow::Continue(());
        }
        if flows.len() >= limit {
            truncated = true;
            return ControlFlow::Break(());
        }
        flows.push(Found { key: *key, backend, kind, seen });
        ControlFlow::Continue(())
    };
    if tracked {
        maps.flows.try_for_each(|key, entry| add(key, entry.backend, FlowKind::Tracked, entry.seen))?;
        maps.udp_flows.try_for_each(|key, entry| add(key, entry.backend, FlowKind::Udp, entry.seen))?;
    }
    let mut add_session = |key: &SessionKey, session: &Session, kind| {
        if session.has(Session::REPLY) {
            return ControlFlow::Continue(());
        }
        let flow = abi::FlowKey {
            client: key.source,
            client_port: key.source_port,
            port: key.destination_port,
            owner: session.service,
        };
        add(&flow, session.backend, kind, session.seen)
    };
    maps.sessions.try_for_each(|key, session| add_session(key, session, FlowKind::Session))?;
    maps.opening.try_for_each(|key, session| add_session(key, session, FlowKind::Opening))?;
    maps.half_open.try_for_each(|key, note| add(key, note.backend, FlowKind::HalfOpen, note.at))?;
    Ok((flows, truncated))
}
