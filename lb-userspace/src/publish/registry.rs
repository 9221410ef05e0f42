//! What is where in the maps. The maps are the truth: everything here is read back from them when an agent starts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable;
use lb_common::abi::{Address, Backend, Device, GuestKey, Life, Port, Service, Slot, VipKey};
use lb_common::guard::Rule;
use lb_common::limit::Limit;
use lb_common::settle::{self, SplitClock, Takers};
use lb_common::vlan;
use lb_common::watch::Watch;
use thiserror::Error;

use super::protection::Rules;
use super::quic::{self, QuicRecord};
use super::{PoolPlan, ServicePlan};
use crate::dataplane::Maps;

/// No room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no room for more {what}: `{setting}` in [dataplane] is {capacity}; raise it, and `lbctl detach` before lbd starts again, since maps keep the size they were made with"
)]
pub struct Full {
    what: &'static str,
    setting: &'static str,
    capacity: u32,
}

impl Full {
    pub(super) const fn of(what: &'static str, setting: &'static str, capacity: u32) -> Self {
        Self { what, setting, capacity }
    }
}

/// Who has which index.
pub struct Registry {
    /// By service index.
    pub services: HashMap<u32, ServiceRecord>,
    keys: HashMap<VipKey, u32>,
    /// By backend id.
    backends: HashMap<u16, (u32, Address, Port)>,
    ids: HashMap<(u32, Address, Port), u16>,
    /// By service index.
    members: HashMap<u32, BTreeSet<u16>>,
    /// No smaller id is free.
    first_free: u16,
    /// Service and name by pool index; a name is unknown until a plan has members that are in the pool.
    pools: BTreeMap<u16, (u32, Option<String>)>,
    /// By service index.
    pools_of: HashMap<u32, BTreeSet<u16>>,
    devices: HashMap<u32, u16>,
    /// First slot and size of the tables.
    regions: BTreeMap<u32, u32>,
    /// Service -> index of its measure.
    measures: HashMap<u32, u16>,
    /// Service -> the networks of its guests, as they are in the kernel.
    pub(super) guests: HashMap<u32, BTreeSet<GuestKey>>,
    /// Owner (a service, or the host of a VIP) -> what networks may, as it is in the kernel.
    pub(super) rules: HashMap<u32, Rules>,
    /// Services whose rules are in those of their VIP's host.
    pub(super) hosted: HashSet<u32>,
    /// By service index.
    pub(super) quic: HashMap<u32, QuicRecord>,
}

/// What a service has.
#[derive(Debug)]
pub struct ServiceRecord {
    /// Its address.
    pub key: VipKey,
    /// The stable pool's table.
    pub stable: Option<Table>,
    /// The canary pool's.
    pub canary: Option<Table>,
    /// When the split last changed.
    pub split: SplitClock,
    /// A sweep has found every slot settled, and none has changed since.
    pub at_rest: bool,
}

/// A pool's table.
#[derive(Debug)]
pub struct Table {
    /// Its first slot: an index of `SLOTS`.
    pub first: u32,
    /// When each slot last changed, in ticks.
    pub changed: Vec<u32>,
    /// How many slots send new flows to each backend id.
    pub takers: Takers,
}

impl Table {
    /// As it is in the maps; whatever is unsettled counts as changed `now`.
    fn adopt(maps: &Maps, first: u32, size: u32, now: u32) -> Self {
        let mut takers = Takers::new();
        for index in first..first + size {
            let slot = Slot(maps.slots.word(index, 0).load(Ordering::Relaxed));
            *takers.entry(slot.new()).or_default() += 1;
        }
        Self { first, changed: vec![now; size as usize], takers }
    }

    /// Notes that a slot sends new flows to another backend, at `now`.
    pub(super) fn note(&mut self, slot: u32, before: u16, after: u16, now: u32) {
        self.changed[slot as usize] = now;
        if let Some(count) = self.takers.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.takers.remove(&before);
            }
        }
        *self.takers.entry(after).or_default() += 1;
    }

    /// In slots.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.changed.len() as u32
    }

    /// The indexes of its slots.
    pub fn slots(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.size()
    }
}

/// Ends what an agent that died has begun: the stable pool has the canary's table already, so the split may go to zero.
fn end_promotion(maps: &Maps, index: u32) {
    let service = maps.services.read(index);
    if service.canary_pool == 0 || service.canary_pool != service.stable_pool {
        return;
    }
    for field in [offset_of!(Service, split), offset_of!(Service, split_home)] {
        maps.services.word(index, field).store(0, Ordering::Release);
    }
    let alone = Service { canary_pool: 0, ..service };
    maps.services.write_from(index, offset_of!(Service, stable_slots), &alone);
}

/// Whether an agent before this one has found that the hash says the pool of every flow, but for those that tables know.
fn is_closed(service: &Service) -> bool {
    settle::is_closed(service) && service.split().tracked() == 0
}

/// The ids of an array's elements that somebody may have: 0 is nobody's, and an id has 16 bits.
fn ids(length: u32) -> impl Iterator<Item = u16> {
    (1..length).map_while(|id| u16::try_from(id).ok())
}

impl Registry {
    /// Reads the maps.
    pub(super) fn adopt(maps: &Maps, now: u32) -> io::Result<Self> {
        let mut registry = Self {
            services: HashMap::new(),
            keys: HashMap::new(),
            backends: HashMap::new(),
            ids: HashMap::new(),
            members: HashMap::new(),
            first_free: 1,
            pools: BTreeMap::new(),
            pools_of: HashMap::new(),
            devices: HashMap::new(),
            regions: BTreeMap::new(),
            measures: HashMap::new(),
            guests: HashMap::new(),
            rules: HashMap::new(),
            hosted: HashSet::new(),
            quic: quic::adopt(maps)?,
        };
        for (key, index) in maps.vips.entries()? {
            if index < maps.services.len() {
                registry.adopt_service(maps, key, index, now);
            }
        }
        for id in ids(maps.backends.len()) {
            let backend = maps.backends.read(id.into());
            if backend.address != Address::zeroed() && registry.services.contains_key(&backend.service) {
                let key = (backend.service, backend.address, backend.port);
                registry.backends.insert(id, key);
                registry.ids.insert(key, id);
                registry.members.entry(backend.service).or_default().insert(id);
                if !registry.pools.contains_key(&backend.pool) {
                    registry.note_pool(backend.pool, backend.service, None);
                }
            }
        }
        for key in maps.guests.keys()? {
            registry.guests.entry(key.service).or_default().insert(key);
        }
        for key in maps.rules.keys()? {
            if let Some(rule) = maps.rules.get(&key)? {
                registry.rules.entry(key.service).or_default().insert(key, Rule::of(rule));
            }
        }
        for index in 0..maps.devices.len() as u16 {
            let device = maps.devices.read(index.into());
            if device.ifindex != 0 {
                registry.devices.insert(device.ifindex, index);
            }
        }
        Ok(registry)
    }

    fn adopt_service(&mut self, maps: &Maps, key: VipKey, index: u32, now: u32) {
        end_promotion(maps, index);
        let service = maps.services.read(index);
        if service.has(Service::MEASURED) {
            self.measures.insert(index, service.measure);
        }
        let mut table = |pool: u16, first: u32| {
            let fits = first.checked_add(service.table_size).is_some_and(|end| end <= maps.slots.len());
            (pool != 0 && service.table_size != 0 && fits).then(|| {
                self.regions.insert(first, service.table_size);
                Table::adopt(maps, first, service.table_size, now)
            })
        };
        let record = ServiceRecord {
            key,
            stable: table(service.stable_pool, service.stable_slots),
            canary: table(service.canary_pool, service.canary_slots),
            split: SplitClock { closed: is_closed(&service), ..SplitClock::new(service.split().new(), now) },
            at_rest: false,
        };
        for pool in [service.stable_pool, service.canary_pool] {
            if pool != 0 {
                self.note_pool(pool, index, None);
            }
        }
        self.keys.insert(key, index);
        self.services.insert(index, record);
    }

    fn note_pool(&mut self, pool: u16, service: u32, name: Option<String>) {
        self.pools.insert(pool, (service, name));
        self.pools_of.entry(service).or_default().insert(pool);
    }

    /// The canary's table is the stable pool's from now on.
    pub(super) fn promote_canary(&mut self, service: u32) {
        let Some(record) = self.services.get_mut(&service) else { return };
        record.at_rest = false;
        if let Some(table) = record.canary.take()
            && let Some(old) = record.stable.replace(table)
        {
            self.regions.remove(&old.first);
        }
    }

    /// The canary's table is nobody's from now on.
    pub(super) fn drop_canary(&mut self, service: u32) {
        let Some(record) = self.services.get_mut(&service) else { return };
        if let Some(table) = record.canary.take() {
            record.at_rest = false;
            self.regions.remove(&table.first);
        }
    }

    /// Some slots of a service have changed.
    pub(super) fn disturb(&mut self, service: u32) {
        if let Some(record) = self.services.get_mut(&service) {
            record.at_rest = false;
        }
    }

    /// The index of the service at `key`, if it has one.
    #[must_use]
    pub fn service_index(&self, key: &VipKey) -> Option<u32> {
        self.keys.get(key).copied()
    }

    pub(super) fn service(&mut self, maps: &Maps, key: &VipKey) -> Result<u32, Full> {
        if let Some(index) = self.service_index(key) {
            return Ok(index);
        }
        let capacity = maps.services.len();
        let index = (0..capacity).find(|index| !self.services.contains_key(index)).ok_or(Full {
            what: "services",
            setting: "services",
            capacity,
        })?;
        // Its split starts at zero, whatever an earlier service left here.
        maps.services.write(index, &Service::zeroed());
        self.keys.insert(*key, index);
        let split = SplitClock { closed: true, ..SplitClock::new(0, 0) };
        let record = ServiceRecord { key: *key, stable: None, canary: None, split, at_rest: false };
        self.services.insert(index, record);
        Ok(index)
    }

    pub(super) fn free_service(&mut self, index: u32) {
        let Some(record) = self.services.remove(&index) else { return };
        self.keys.remove(&record.key);
        for table in [record.stable, record.canary].into_iter().flatten() {
            self.regions.remove(&table.first);
        }
        for pool in self.pools_of.remove(&index).unwrap_or_default() {
            self.pools.remove(&pool);
        }
        self.measures.remove(&index);
    }

    /// The index of a pool that is known: by its name, or, if an earlier agent made it, by its members.
    #[must_use]
    pub fn known_pool(&self, maps: &Maps, service: u32, pool: &PoolPlan) -> Option<u16> {
        let is = |index: u16, name: Option<&str>| {
            self.pools.get(&index).is_some_and(|(owner, known)| *owner == service && known.as_deref() == name)
        };
        let pools = self.pools_of.get(&service).into_iter().flatten();
        let named = pools.copied().find(|&index| is(index, Some(&pool.name)));
        named.or_else(|| {
            pool.members
                .iter()
                .filter_map(|member| self.backend_id(service, member.address, member.port))
                .map(|id| maps.backends.read(id.into()).pool)
                .find(|&index| is(index, None))
        })
    }

    /// The index of a pool: the one that it is `known` by, or its own.
    pub(super) fn pool(
        &mut self,
        maps: &Maps,
        service: u32,
        pool: &PoolPlan,
        known: Option<u16>,
    ) -> Result<u16, Full> {
        let index = match known.or_else(|| self.known_pool(maps, service, pool)) {
            Some(index) => index,
            None => {
                let index = ids(maps.pool_traffic.len())
                    .find(|index| !self.pools.contains_key(index))
                    .ok_or(Full {
                        what: "pools (two for each service)",
                        setting: "services",
                        capacity: maps.services.len(),
                    })?;
                // Counters of an earlier pool are not this one's. (An error here means an index out of range, which it is not.)
                let _ = maps.pool_traffic.clear(index.into());
                maps.pool_limits.write(index.into(), &Limit::zeroed());
                index
            }
        };
        self.note_pool(index, service, Some(pool.name.clone()));
        Ok(index)
    }

    /// Forgets pools of a service that are not configured any more, and have no role and no backend that finishes its flows.
    pub(super) fn forget_pools(&mut self, maps: &Maps, index: u32, plan: &ServicePlan) {
        let service = maps.services.read(index);
        let mut used: HashSet<u16> =
            self.backends_of(index).map(|id| maps.backends.read(id.into()).pool).collect();
        used.extend([service.stable_pool, service.canary_pool]);
        let names: HashSet<&str> = (plan.idle.iter().map(|pool| pool.name.as_str()))
            .chain(plan.canary.iter().chain([&plan.stable]).map(|pool| pool.name.as_str()))
            .collect();
        let Self { pools, pools_of, .. } = self;
        pools_of.entry(index).or_default().retain(|pool| {
            let name = pools.get(pool).and_then(|(_, name)| name.as_deref());
            let stays = used.contains(pool) || name.is_some_and(|name| names.contains(name));
            if !stays {
                pools.remove(pool);
            }
            stays
        });
    }

    /// Whether the hash says the pool of every flow of a service, but for those that tables know.
    #[must_use]
    pub fn is_closed(&self, service: u32) -> bool {
        self.services.get(&service).is_some_and(|record| record.split.closed)
    }

    /// The measure of a service that is measured, given `room` for so many; 0 if there is no room left, or none is wanted.
    pub(super) fn measure(&mut self, service: u32, room: Option<u32>) -> u16 {
        let Some(room) = room else {
            self.measures.remove(&service);
            return 0;
        };
        if let Some(&known) = self.measures.get(&service) {
            return known;
        }
        let free = ids(room).find(|index| !self.measures.values().any(|taken| taken == index));
        if let Some(index) = free {
            self.measures.insert(service, index);
        }
        free.unwrap_or(0)
    }

    /// The index of a pool whose name is known.
    #[must_use]
    pub fn pool_index(&self, service: u32, name: &str) -> Option<u16> {
        self.pools_of(service).find(|&index| self.pool_name(index) == Some(name))
    }

    /// The indexes of a service's pools.
    pub fn pools_of(&self, service: u32) -> impl Iterator<Item = u16> + '_ {
        self.pools_of.get(&service).into_iter().flatten().copied()
    }

    /// Whether another service could be measured, given `room` for so many.
    #[must_use]
    pub fn can_measure(&self, room: u32) -> bool {
        self.measures.len() < ids(room).count()
    }

    /// The name of a pool, where it is known.
    #[must_use]
    pub fn pool_name(&self, index: u16) -> Option<&str> {
        self.pools.get(&index).and_then(|(_, name)| name.as_deref())
    }

    /// The id of a backend, if it has one.
    #[must_use]
    pub fn backend_id(&self, service: u32, address: Address, port: Port) -> Option<u16> {
        self.ids.get(&(service, address, port)).copied()
    }

    /// All ids of a service, also of backends that are on their way out.
    pub fn backends_of(&self, service: u32) -> impl Iterator<Item = u16> + '_ {
        self.members.get(&service).into_iter().flatten().copied()
    }

    /// Every id that somebody has.
    pub fn backend_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.backends.keys().copied()
    }

    /// Those who have an id, and where they are.
    pub fn ids_with_addresses(&self) -> impl Iterator<Item = (u16, IpAddr)> + '_ {
        self.backends.iter().map(|(&id, &(_, address, _))| (id, address.into()))
    }

    /// Every index of a pool.
    pub fn pools(&self) -> impl Iterator<Item = u16> + '_ {
        self.pools.keys().copied()
    }

    /// How many backends there are.
    #[must_use]
    pub fn backend_count(&self) -> usize {
        self.backends.len()
    }

    /// How many slots are in use.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.regions.values().sum()
    }

    pub(super) fn backend(
        &mut self,
        maps: &Maps,
        service: u32,
        address: Address,
        port: Port,
    ) -> Result<u16, Full> {
        let key = (service, address, port);
        if let Some(&id) = self.ids.get(&key) {
            return Ok(id);
        }
        let capacity = maps.backend_room();
        let mut free = ids(maps.backends.len()).skip_while(|&id| id < self.first_free);
        let id = free.find(|id| !self.backends.contains_key(id)).ok_or(Full {
            what: "backends",
            setting: "backends",
            capacity,
        })?;
        self.first_free = id;
        let before = maps.backends.read(id.into()).life();
        let fresh =
            Backend { life: Life::of(before.generation().wrapping_add(1), false).0, ..Backend::zeroed() };
        maps.backends.write(id.into(), &fresh);
        let _ = maps.backend_traffic.clear(id.into());
        // What became of another one's connections says nothing of this one.
        maps.watches.write(id.into(), &Watch::zeroed());
        maps.limits.write(id.into(), &Limit::zeroed());
        self.backends.insert(id, key);
        self.ids.insert(key, id);
        self.members.entry(service).or_default().insert(id);
        Ok(id)
    }

    pub(super) fn free_backend(&mut self, maps: &Maps, id: u16) {
        if let Some(key) = self.backends.remove(&id) {
            self.ids.remove(&key);
            if let Some(members) = self.members.get_mut(&key.0) {
                members.remove(&id);
            }
            self.first_free = self.first_free.min(id);
        }
        // The generation stays, so that the id's next owner is another one.
        let life = maps.backends.read(id.into()).life;
        maps.backends.write(id.into(), &Backend { life, ..Backend::zeroed() });
    }

    /// The table of a service's stable or canary pool, and whether it is new.
    pub(super) fn table(
        &mut self,
        maps: &Maps,
        service: u32,
        canary: bool,
        size: u32,
    ) -> Result<(&mut Table, bool), Full> {
        let full = Full { what: "slots", setting: "slots", capacity: maps.slots.len() };
        let room = self.gap(size, maps.slots.len());
        let record = self.services.get_mut(&service).ok_or(full)?;
        let place = if canary { &mut record.canary } else { &mut record.stable };
        if let Some(table) = place {
            return Ok((table, false));
        }
        let first = room.ok_or(full)?;
        self.regions.insert(first, size);
        // Long ago: a table that nobody has used yet has nothing to wait for.
        let table = Table { first, changed: vec![0; size as usize], takers: Takers::new() };
        Ok((place.insert(table), true))
    }

    /// The first gap between tables that has room for `size` slots.
    fn gap(&self, size: u32, capacity: u32) -> Option<u32> {
        let mut free = 0;
        for (&first, &taken) in &self.regions {
            if first.saturating_sub(free) >= size {
                return Some(free);
            }
            free = free.max(first + taken);
        }
        (capacity.saturating_sub(free) >= size).then_some(free)
    }

    /// The index of `DEVICES` for an interface: the first of its places that is free. `None`: there is no room.
    pub(super) fn device(&mut self, maps: &Maps, ifindex: u32) -> Option<u16> {
        if let Some(&index) = self.devices.get(&ifindex) {
            return Some(index);
        }
        let mut indices = (0..maps.devices.len()).map(|step| vlan::place(ifindex, step));
        let index = indices.find(|index| !self.devices.values().any(|taken| taken == index))?;
        self.devices.insert(ifindex, index);
        Some(index)
    }

    /// Frees the elements of `DEVICES` that are of no interface any more, and that no backend names.
    pub(super) fn forget_devices(&mut self, maps: &Maps, is_there: impl Fn(u32) -> bool) {
        if self.devices.keys().all(|&ifindex| is_there(ifindex)) {
            return;
        }
        let hops = self.backends.keys().map(|&id| maps.backends.read(id.into()).next_hop());
        let named: HashSet<u16> = hops.filter(|hop| hop.mac().is_some()).map(|hop| hop.device()).collect();
        self.devices.retain(|&ifindex, index| {
            let stays = is_there(ifindex) || named.contains(index);
            if !stays {
                maps.devices.write(u32::from(*index), &Device::zeroed());
            }
            stays
        });
    }
}
