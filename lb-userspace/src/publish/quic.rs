//! Which backends the connection ids of QUIC name.
//!
//! An entry of `QUIC_SERVERS` holds the generation that its backend had when it was made, so that `rollback --flows reset`, with
//! an agent or without one, makes all entries of the canary void by what it does anyhow. They stay void until the canary is open
//! again: to make them anew as the tables are compared would lead clients back that were to be reset.
//!
//! A backend that is no member any more keeps its entries for as long as it has its id, as its tracked flows do.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use lb_common::quic::{Codec, ConfigKey, Server, ServerKey};
use tracing::warn;

use super::registry::{Full, Registry};
use super::{Member, PublishError, Publisher, ServicePlan, map_error};
use crate::dataplane::Maps;

/// How connection ids of a service are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuicPlan {
    /// In which ways; none: they are not.
    pub codecs: Vec<Codec>,
    /// Whether the last five bits of an id's first octet say how long it is.
    pub tells_length: bool,
}

/// What the maps hold of a service, and what they should.
#[derive(Debug, Default)]
pub struct QuicRecord {
    configs: BTreeSet<ConfigKey>,
    servers: BTreeMap<ServerKey, Server>,
    names: Vec<Name>,
}

/// A backend's name.
#[derive(Clone, Copy, Debug)]
struct Name {
    key: ServerKey,
    backend: u16,
    canary: bool,
}

/// What the maps hold, by service.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn adopt(maps: &Maps) -> io::Result<HashMap<u32, QuicRecord>> {
    let mut records = HashMap::<u32, QuicRecord>::new();
    for (key, _) in maps.quic_configs.entries()? {
        records.entry(key.service).or_default().configs.insert(key);
    }
    for (key, server) in maps.quic_servers.entries()? {
        records.entry(key.service).or_default().servers.insert(key, server);
    }
    Ok(records)
}

impl Publisher {
    /// Makes the maps hold how connection ids are read, and whom they name. Returns whether anything changed.
    pub(super) fn quic(&mut self, index: u32, plan: &ServicePlan) -> Result<bool, PublishError> {
        if plan.quic.codecs.is_empty() && !self.registry.quic.contains_key(&index) {
            return Ok(false);
        }
        let members: HashSet<u16> = members(plan)
            .filter_map(|(member, _)| self.registry.backend_id(index, member.address, member.port))
            .collect();
        let names = names(&self.registry, index, plan);
        let record = self.registry.quic.entry(index).or_default();
        record.names = names;
        let mut changed = false;
        let mut configs = BTreeSet::new();
        for codec in &plan.quic.codecs {
            let key = ConfigKey { service: index, config: codec.config.into() };
            configs.insert(key);
            // What cannot be read at all, the configuration has refused.
            let Ok(reader) = codec.reader(plan.quic.tells_length) else { continue };
            if self.maps.quic_configs.get(&key).map_err(map_error("QUIC_CONFIGS"))? != Some(reader) {
                let full = || Full::of("QUIC configurations", "services", self.maps.quic_configs.capacity());
                self.maps
                    .quic_configs
                    .insert(&key, &reader)
                    .map_err(|error| room("QUIC_CONFIGS", error, full))?;
                record.configs.insert(key);
                changed = true;
            }
        }
        let wanted: HashSet<ServerKey> = record.names.iter().map(|name| name.key).collect();
        let gone = |key: &ServerKey, server: &Server| {
            let read = configs.contains(&ConfigKey { service: key.service, config: key.config });
            !read || (members.contains(&server.backend) && !wanted.contains(key))
        };
        let gone: Vec<ServerKey> =
            record.servers.iter().filter(|(key, server)| gone(key, server)).map(|(key, _)| *key).collect();
        for key in gone {
            self.maps.quic_servers.remove(&key).map_err(map_error("QUIC_SERVERS"))?;
            record.servers.remove(&key);
            changed = true;
        }
        let unread: Vec<ConfigKey> = record.configs.difference(&configs).copied().collect();
        for key in unread {
            self.maps.quic_configs.remove(&key).map_err(map_error("QUIC_CONFIGS"))?;
            record.configs.remove(&key);
            changed = true;
        }
        if record.configs.is_empty() && record.servers.is_empty() && record.names.is_empty() {
            self.registry.quic.remove(&index);
        }
        Ok(self.name_backends(index)? | changed)
    }

    /// Makes connection ids name whom they should. Those of a canary that is closed stay as they are.
    fn name_backends(&mut self, index: u32) -> Result<bool, PublishError> {
        let Some(record) = self.registry.quic.get_mut(&index) else { return Ok(false) };
        let mut changed = false;
        for name in &record.names {
            // The generation first: if a rollback comes in between, what is written is void.
            let generation = self.maps.backends.read(name.backend.into()).life().generation();
            if name.canary && self.maps.services.read(index).split().new() == 0 {
                continue;
            }
            let server = Server { backend: name.backend, pad: 0, generation };
            if record.servers.get(&name.key) != Some(&server) {
                let full = || Full::of("QUIC server ids", "backends", self.maps.quic_servers.capacity());
                let inserted = self.maps.quic_servers.insert(&name.key, &server);
                inserted.map_err(|error| room("QUIC_SERVERS", error, full))?;
                record.servers.insert(name.key, server);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// A canary has been opened, perhaps after its flows were reset.
    pub(super) fn name_canary(&mut self, index: u32) {
        if let Err(error) = self.name_backends(index) {
            // The next comparison of the tables tries again; until then clients of the canary are found by their addresses.
            warn!("connection ids of QUIC do not name the canary's backends yet: {error}");
        }
    }

    /// No connection id names these backends any more.
    pub(super) fn forget_names(&mut self, ids: &[u16]) -> Result<(), PublishError> {
        for record in self.registry.quic.values_mut() {
            let theirs = |(key, server): (&ServerKey, &Server)| ids.contains(&server.backend).then_some(*key);
            let theirs: Vec<ServerKey> = record.servers.iter().filter_map(theirs).collect();
            for key in theirs {
                self.maps.quic_servers.remove(&key).map_err(map_error("QUIC_SERVERS"))?;
                record.servers.remove(&key);
            }
            record.names.retain(|name| !ids.contains(&name.backend));
        }
        Ok(())
    }

    /// Connection ids of a service are not read any more.
    pub(super) fn forget_quic(&mut self, index: u32) -> Result<(), PublishError> {
        let Some(record) = self.registry.quic.get_mut(&index) else { return Ok(()) };
        record.names.clear();
        while let Some(key) = record.configs.first().copied() {
            self.maps.quic_configs.remove(&key).map_err(map_error("QUIC_CONFIGS"))?;
            record.configs.remove(&key);
        }
        while let Some((&key, _)) = record.servers.first_key_value() {
            self.maps.quic_servers.remove(&key).map_err(map_error("QUIC_SERVERS"))?;
            record.servers.remove(&key);
        }
        self.registry.quic.remove(&index);
        Ok(())
    }
}

/// Backends of both pools, and whether they are the canary's.
fn members(plan: &ServicePlan) -> impl Iterator<Item = (&Member, bool)> {
    let stable = plan.stable.members.iter().map(|member| (member, false));
    let canary = plan.canary.iter().flat_map(|pool| &pool.members).map(|member| (member, true));
    stable.chain(canary)
}

/// What each of them is called, in each way in which ids are read.
fn names(registry: &Registry, index: u32, plan: &ServicePlan) -> Vec<Name> {
    let mut names = Vec::new();
    for (member, canary) in members(plan) {
        let Some(backend) = registry.backend_id(index, member.address, member.port) else { continue };
        for codec in &plan.quic.codecs {
            let config = u32::from(codec.config);
            let length = usize::from(codec.server_id_length);
            let ids = member.server_ids.iter().map(|id| &id[..]).filter(|id| id.len() == length);
            names.extend(ids.filter_map(Codec::server_id).map(|server| Name {
                key: ServerKey { service: index, config, server },
                backend,
                canary,
            }));
        }
    }
    names
}

/// A map that is full says what to do about it.
fn room(map: &'static str, error: io::Error, full: impl FnOnce() -> Full) -> PublishError {
    if error.raw_os_error() == Some(libc::E2BIG) { full().into() } else { map_error(map)(error) }
}
