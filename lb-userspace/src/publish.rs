//! Publish: writes what should be ([`ServicePlan`]) into the maps, and alone decides who has which index there.
//!
//! It is compared with what the maps hold, and the difference is written, in an order in which every intermediate state is a
//! valid one:
//!
//! 1. a backend's entry before the first slot that names it;
//! 2. slots one by one, each by compare-and-swap: slots are independent of each other, so there is no second copy of a table;
//! 3. a backend that packets must not reach any more loses its slots first, and is switched off after;
//! 4. a service's entry before its VIP, and the VIP goes first when a service goes.
//!
//! Whoever dies in the middle leaves a table that works, and the next agent finds the rest of the difference.

mod protection;
mod quic;
mod registry;
pub mod split;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use lb_common::abi::{
    Address, Backend, Device, FILTER_BITS, Fault, FlowKey, GuestKey, LAYOUT, Life, MAX_SOURCES, NextHop,
    Port, Replier, Service, Settings, Slot, Split, VipKey,
};
use lb_common::abi::{Mode, OnEmpty};
use lb_common::hash::{Keys, Purpose, Seed};
use lb_common::limit::{Limit, Open};
use lb_common::retry::Budget;
use lb_common::session::Session;
use lb_common::settle::{self, SplitClock};
use lb_common::vlan::Vlan;
use thiserror::Error;

use crate::dataplane::Maps;
use crate::dataplane::bpf::{Hash, Mapped};
use protection::network_key;

pub use protection::Protection;
pub use quic::{QuicPlan, QuicRecord};
pub use registry::{Full, Registry, ServiceRecord, Table};

/// What the maps should hold of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePlan {
    /// Where clients find it.
    pub key: VipKey,
    /// How packets get to backends.
    pub mode: Mode,
    /// What a flow gets when no backend may take it.
    pub on_empty: OnEmpty,
    /// Flags of [`Service`].
    pub flags: u16,
    /// UDP port that takes tunnels; "any": they come without UDP.
    pub gue_port: Port,
    /// The largest segment that a SYN may speak of, if it is limited.
    pub clamp_mss: u16,
    /// Networks of clients that belong to the canary as soon as it is open at all.
    pub guests: Vec<IpNet>,
    /// Bits of the client's address that the split sees.
    pub split_mask: [u32; 4],
    /// Makes another set of clients the first of the canary.
    pub salt: u64,
    /// Slots in a table.
    pub table_size: u32,
    /// How many connections there may be.
    pub limits: Limits,
    /// How often connections may be tried again, if they may at all.
    pub budget: Option<Budget>,
    /// Who may talk to it, and how much.
    pub protection: Protection,
    /// How connection ids are read, if they are.
    pub quic: QuicPlan,
    /// The pool of most clients.
    pub stable: PoolPlan,
    /// The pool of some.
    pub canary: Option<PoolPlan>,
    /// Pools that get no new flow, and may have old ones.
    pub idle: Vec<IdlePool>,
}

/// What the maps should hold of a pool without a role.
#[derive(Clone, Debug, PartialEq)]
pub struct IdlePool {
    /// Its name.
    pub name: String,
    /// Its backends. Those that have no id need none.
    pub members: Vec<Member>,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Flags of [`Service`].
    pub flags: u16,
    /// Of each backend.
    pub backend: Limit,
    /// Of each pool.
    pub pool: Limit,
    /// What a flow beyond gets, as [`Service::on_limit`] has it.
    pub on_limit: u8,
}

/// What the maps should hold of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPlan {
    /// Its name.
    pub name: String,
    /// All its backends.
    pub members: Vec<Member>,
    /// For each slot who takes new flows, as an index of `takers`; empty: nobody does.
    pub table: Arc<[u16]>,
    /// Those that the table names. (They may be another pool's, where an empty canary spills over to the stable pool.)
    pub takers: Vec<(Address, Port)>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Address.
    pub address: Address,
    /// Port; "any" keeps the client's.
    pub port: Port,
    /// Whether packets may go there at all.
    pub usable: bool,
    /// Where its frames leave.
    pub next_hop: NextHop,
    /// What stands for its clients (`full-nat`); `None`: nothing, or it is not known yet.
    pub source: Option<Address>,
    /// What it calls itself in connection ids.
    pub server_ids: Vec<Box<[u8]>>,
}

/// What stands for clients (`full-nat`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Addresses of this host.
    pub addresses: Vec<Address>,
    /// The first and the last port.
    pub ports: [u16; 2],
    /// How many CPUs may process packets.
    pub cpus: u32,
    /// How long an established TCP session may be silent, in ticks.
    pub tcp_idle: u32,
}

/// What publishing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Slots that changed.
    pub slots: u32,
    /// Whether anything did.
    pub changed: bool,
}

/// Why something could not be published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// No room.
    #[error(transparent)]
    Full(#[from] Full),
    /// No room for another interface.
    #[error("frames leave by {0} interfaces already, and by no more")]
    Devices(u32),
    /// The kernel refused.
    #[error("the kernel refused an update of {map}: {source}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The tables of a living service cannot change their size.
    #[error(
        "table_size of a service cannot change while it has flows ({now} slots, {wanted} wanted): every flow would be looked \
         for in another slot; remove the service, apply, and add it again"
    )]
    TableSize {
        /// Slots now.
        now: u32,
        /// Slots wanted.
        wanted: u32,
    },
    /// The canary pool still has flows of its own.
    #[error(
        "another pool is still the canary, and its split has not settled at 0 %; roll back, and wait for the drain time"
    )]
    CanaryBusy,
    /// The canary does not have all flows yet.
    #[error(
        "{pool} cannot become the stable pool before its split has settled at 100 %; wait for the drain time"
    )]
    NotSettled {
        /// The canary.
        pool: String,
    },
}

/// The maps, and what is where in them.
pub struct Publisher {
    /// The maps.
    pub maps: Arc<Maps>,
    /// What is where.
    pub registry: Registry,
}

/// Nanoseconds between "packet too big" messages per CPU, beyond a burst: about a thousand a second, as Linux's own
/// (`icmp_msgs_per_sec`).
const MESSAGE_INTERVAL: u32 = 1 << 20;

impl Publisher {
    /// Takes the maps over, with whatever is in them.
    ///
    /// `now` is in ticks: whatever is unsettled counts as changed now.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn adopt(maps: Arc<Maps>, now: u32) -> io::Result<Self> {
        let registry = Registry::adopt(&maps, now)?;
        Ok(Self { maps, registry })
    }

    /// Writes what holds for all services, but for the filters.
    pub fn settings(&self, udp_idle: u32, tunnel_v4: [u8; 4], tunnel_v6: [u8; 16]) {
        let mut settings = self.maps.settings.read(0);
        settings.layout = LAYOUT;
        settings.udp_idle = udp_idle;
        settings.tunnel_v4 = tunnel_v4;
        settings.tunnel_v6 = tunnel_v6;
        settings.message_interval = MESSAGE_INTERVAL;
        self.maps.settings.write(0, &settings);
    }

    /// Writes what stands for clients (`full-nat`): addresses, or each backend's own where there is none of its family, and
    /// ports.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn sources(&self, sources: &Sources) -> Result<(), PublishError> {
        let mut settings = self.maps.settings.read(0);
        settings.source_ports = sources.ports;
        settings.cpus = sources.cpus;
        settings.tcp_idle = sources.tcp_idle;
        let (v4, v6): (Vec<Address>, Vec<Address>) = sources.addresses.iter().partition(|it| it.is_v4());
        settings.sources = [Address::default(); 2 * MAX_SOURCES];
        for (first, of_family) in [(0, &v4), (MAX_SOURCES, &v6)] {
            for (place, address) in settings.sources[first..].iter_mut().zip(of_family).take(MAX_SOURCES) {
                *place = *address;
            }
        }
        settings.sources_v4 = v4.len().min(MAX_SOURCES) as u32;
        settings.sources_v6 = v6.len().min(MAX_SOURCES) as u32;
        self.maps.settings.write_from(0, offset_of!(Settings, source_ports), &settings);
        self.rebuild_filters()
    }

    /// Makes an interface known as one that frames leave by, by `itself` or (a VLAN device) by another one; returns its index
    /// of `DEVICES`.
    ///
    /// # Errors
    ///
    /// If there are too many, or the kernel refuses.
    pub fn device(
        &mut self,
        ifindex: u32,
        mac: [u8; 6],
        mtu: u32,
        itself: bool,
    ) -> Result<u16, PublishError> {
        let index = self
            .registry
            .device(&self.maps, ifindex)
            .ok_or(PublishError::Devices(self.maps.devices.len()))?;
        let mtu = mtu.min(u32::from(u16::MAX)) as u16;
        self.maps.devices.write(index.into(), &Device { ifindex, mtu, mac, pad: 0 });
        // Asked of the kernel, which takes out what leaves this network namespace, also if it comes back as what it was.
        let egress = &self.maps.egress;
        if itself && egress.get(&ifindex).map_err(map_error("EGRESS"))?.is_none() {
            egress.insert(&ifindex, &[ifindex, 0]).map_err(map_error("EGRESS"))?;
        }
        Ok(index)
    }

    /// Makes room for other interfaces where one is gone, and no backend is behind it any more.
    pub fn forget_devices(&mut self, is_there: impl Fn(u32) -> bool) {
        self.registry.forget_devices(&self.maps, is_there);
    }

    /// Says with which tags frames leave by which interfaces.
    ///
    /// # Errors
    ///
    /// If there are too many, or the kernel refuses.
    pub fn vlans(&self, wanted: &BTreeMap<u32, Vlan>) -> Result<(), PublishError> {
        let vlans = &self.maps.vlans;
        let known: BTreeMap<u32, Vlan> = vlans.entries().map_err(map_error("VLANS"))?.into_iter().collect();
        for (ifindex, vlan) in wanted.iter().filter(|(ifindex, vlan)| known.get(ifindex) != Some(vlan)) {
            vlans.insert(ifindex, vlan).map_err(map_error("VLANS"))?;
            if vlan.ifindex != *ifindex {
                // An agent that knew nothing of VLANs may have left it there.
                self.maps.egress.remove(ifindex).map_err(map_error("EGRESS"))?;
            }
        }
        for ifindex in known.keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            vlans.remove(ifindex).map_err(map_error("VLANS"))?;
        }
        Ok(())
    }

    /// Makes the maps hold `plan`. `now` is in ticks.
    ///
    /// # Errors
    ///
    /// If there is no room; what was there before still works.
    pub fn publish(&mut self, plan: &ServicePlan, seed: &Seed, now: u32) -> Result<Published, PublishError> {
        let index = self.registry.service(&self.maps, &plan.key)?;
        self.check(index, plan)?;
        self.exchange_roles(index, plan, now)?;
        self.registry.forget_pools(&self.maps, index, plan);
        let mut published = Published::default();

        let mut pools = vec![(&plan.stable, false)];
        pools.extend(plan.canary.iter().map(|pool| (pool, true)));
        let canary_stays = self.canary_stays(index, plan).then(|| self.maps.services.read(index).canary_pool);
        let mut indexes = [0u16; 2];
        for &(pool, canary) in &pools {
            let known = canary_stays.filter(|_| canary);
            let pool_index = self.registry.pool(&self.maps, index, pool, known)?;
            indexes[usize::from(canary)] = pool_index;
            published.changed |= limit(&self.maps.pool_limits, pool_index, &plan.limits.pool);
            for member in &pool.members {
                published.changed |= self.member(plan, index, pool_index, member)?;
            }
        }
        let id = |member: &Member| self.registry.backend_id(index, member.address, member.port);
        let idle: Vec<(u16, &Member)> =
            plan.idle.iter().flat_map(|pool| &pool.members).filter_map(|it| Some((id(it)?, it))).collect();
        for (id, member) in &idle {
            published.changed |= self.lead(*id, member.next_hop);
        }
        let members = pools.iter().flat_map(|(pool, _)| &pool.members).filter_map(|it| Some((id(it)?, it)));
        let dead: HashSet<u16> =
            members.chain(idle).filter(|(_, member)| !member.usable).map(|(id, _)| id).collect();
        for &(pool, canary) in &pools {
            published.slots += self.table(index, canary, plan.table_size, pool, &dead, now)?;
        }
        for id in dead {
            published.changed |= self.switch_off(id);
        }
        published.changed |= self.quic(index, plan)?;
        published.changed |= self.budget(index, plan.budget);
        published.changed |= self.protect(index, &plan.protection)?;
        let guests = self.guests(index, plan)?;
        published.changed |= self.service(index, plan, indexes, guests, seed);
        if plan.canary.is_none() {
            self.registry.drop_canary(index);
        }
        published.changed |= self.vip(&plan.key, index)?;
        published.changed |= published.slots > 0;
        Ok(published)
    }

    /// Whether a plan can be published while the service's flows go on.
    ///
    /// # Errors
    ///
    /// Says what is in the way.
    pub fn check(&self, index: u32, plan: &ServicePlan) -> Result<(), PublishError> {
        let Some(record) = self.registry.services.get(&index) else { return Ok(()) };
        if let Some(table) = &record.stable
            && table.size() != plan.table_size
        {
            return Err(PublishError::TableSize { now: table.size(), wanted: plan.table_size });
        }
        let service = self.maps.services.read(index);
        let known = |pool: &PoolPlan| self.registry.known_pool(&self.maps, index, pool);
        if service.stable_pool != 0 && known(&plan.stable).is_some_and(|pool| pool == service.canary_pool) {
            let settled = split::is_settled_at_all(&service) && self.registry.is_closed(index);
            return if settled {
                Ok(())
            } else {
                Err(PublishError::NotSettled { pool: plan.stable.name.clone() })
            };
        }
        let stays = self.canary_stays(index, plan);
        if service.canary_pool != 0 && !stays && !split::is_settled_at_zero(&service) {
            return Err(PublishError::CanaryBusy);
        }
        Ok(())
    }

    /// Whether a plan's canary is the pool that is the canary now. One that an earlier agent made, and of whose backends none
    /// is configured any more, has no name: it is nobody else's.
    fn canary_stays(&self, index: u32, plan: &ServicePlan) -> bool {
        let now = self.maps.services.read(index).canary_pool;
        let Some(pool) = plan.canary.as_ref().filter(|_| now != 0) else { return false };
        match self.registry.known_pool(&self.maps, index, pool) {
            Some(known) => known == now,
            None => self.registry.pool_name(now).is_none(),
        }
    }

    /// The canary becomes the stable pool, or another pool the canary.
    ///
    /// With everything settled in the canary no packet looks at the stable pool's table. It becomes the canary's, and then the
    /// split goes to zero, unless somebody has rolled back: then the roles stay as they were.
    fn exchange_roles(&mut self, index: u32, plan: &ServicePlan, now: u32) -> Result<(), PublishError> {
        let service = self.maps.services.read(index);
        if service.canary_pool == 0 {
            return Ok(());
        }
        if self.registry.known_pool(&self.maps, index, &plan.stable) == Some(service.canary_pool) {
            let promoted =
                Service { stable_slots: service.canary_slots, stable_pool: service.canary_pool, ..service };
            let write = |service: &Service| {
                self.maps.services.write_from(index, offset_of!(Service, stable_slots), service)
            };
            write(&promoted);
            if !split::promote(&self.maps.services, index) {
                write(&service);
                return Err(PublishError::NotSettled { pool: plan.stable.name.clone() });
            }
            write(&Service { canary_pool: 0, ..promoted });
            self.registry.promote_canary(index);
            self.split_changed(index, now);
        } else if !self.canary_stays(index, plan) {
            self.registry.drop_canary(index);
        }
        Ok(())
    }

    /// Writes a backend's entry, and what finds its replies.
    fn member(
        &mut self,
        plan: &ServicePlan,
        service: u32,
        pool: u16,
        member: &Member,
    ) -> Result<bool, PublishError> {
        let id = self.registry.backend(&self.maps, service, member.address, member.port)?;
        let backend = Backend {
            next_hop: member.next_hop.0,
            address: member.address,
            port: member.port,
            pool,
            service,
            // An agent that has just started learns it later; until then what stood for clients goes on.
            source: member.source.unwrap_or_else(|| self.maps.backends.read(id.into()).source),
            gue_port: plan.gue_port,
            ..Backend::default()
        };
        let limited = limit(&self.maps.limits, id, &plan.limits.backend);
        let mut changed =
            limited | self.maps.backends.write_from(id.into(), offset_of!(Backend, next_hop), &backend);
        // Switching off is the last step of all, see `switch_off`.
        changed |= member.usable
            && self.live(id, |life| (!life.is_usable()).then(|| Life::of(life.generation(), true)));
        if plan.mode == Mode::FullNat && !backend.source.is_unspecified() {
            set_filter(&self.maps, offset_of!(Settings, stand_ins), backend.source);
        }
        if plan.mode == Mode::Nat {
            let key =
                VipKey { address: member.address, port: member.port, protocol: plan.key.protocol, pad: 0 };
            let replier = Replier { service, backend: id, pad: 0, direct: 0 };
            let known = self.maps.replies.get(&key).map_err(map_error("REPLIES"))?;
            if known.is_none_or(|known| (known.service, known.backend) != (service, id)) {
                set_filter(&self.maps, offset_of!(Settings, repliers), member.address);
                self.maps.replies.insert(&key, &replier).map_err(map_error("REPLIES"))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Brings a pool's table to what it should be. Returns how many slots changed.
    fn table(
        &mut self,
        service: u32,
        canary: bool,
        size: u32,
        pool: &PoolPlan,
        dead: &HashSet<u16>,
        now: u32,
    ) -> Result<u32, PublishError> {
        let takers: Vec<u16> = pool
            .takers
            .iter()
            .map(|&(address, port)| self.registry.backend_id(service, address, port).unwrap_or(0))
            .collect();
        let wanted = |slot: u32| {
            pool.table
                .get(slot as usize)
                .and_then(|&taker| takers.get(usize::from(taker)))
                .copied()
                .unwrap_or(0)
        };
        let (table, fresh) = self.registry.table(&self.maps, service, canary, size)?;
        let mut changed = 0;
        for slot in 0..size {
            let new = wanted(slot);
            let word = self.maps.slots.word(table.first + slot, 0);
            if fresh {
                word.store(Slot::of(new, new, 0).0, Ordering::Release);
                *table.takers.entry(new).or_default() += 1;
                continue;
            }
            let step = word.try_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let old = Slot(word);
                settle::pointed(old, new, old.home() == 0 || dead.contains(&old.home())).map(|slot| slot.0)
            });
            if let Ok(old) = step {
                changed += 1;
                table.note(slot, Slot(old).new(), new, now);
            }
        }
        if fresh || changed > 0 {
            self.registry.disturb(service);
        }
        Ok(if fresh { size } else { changed })
    }

    /// Frames to a backend go this way from now on.
    pub fn lead(&self, id: u16, next_hop: NextHop) -> bool {
        let word = self.maps.backends.word(id.into(), offset_of!(Backend, next_hop));
        word.swap(next_hop.0, Ordering::AcqRel) != next_hop.0
    }

    /// No packet goes there from now on, and whatever is tracked as going there is void.
    fn switch_off(&self, id: u16) -> bool {
        self.live(id, |life| life.is_usable().then(|| Life::of(life.generation().wrapping_add(1), false)))
    }

    /// Changes a backend's life, if `next` says so. Others may void its flows meanwhile.
    fn live(&self, id: u16, next: impl Fn(Life) -> Option<Life>) -> bool {
        let word = self.maps.backends.word(id.into(), offset_of!(Backend, life));
        let next = |word| next(Life(word)).map(|life| life.0);
        word.try_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }

    /// Writes the networks of guests, and returns whether there are any. While some flow may be in the canary they stay as
    /// they are: its clients would change sides.
    fn guests(&mut self, index: u32, plan: &ServicePlan) -> Result<bool, PublishError> {
        let wanted: BTreeSet<GuestKey> =
            plan.guests.iter().map(|network| network_key(index, *network)).collect();
        let service = self.maps.services.read(index);
        let known = self.registry.guests.entry(index).or_default();
        if service.split().0 == 0 && service.home() == 0 && *known != wanted {
            // Each is noted as it is made: whatever comes of the next one, this one is known.
            let gone: Vec<GuestKey> = known.difference(&wanted).copied().collect();
            for network in gone {
                self.maps.guests.remove(&network).map_err(map_error("GUESTS"))?;
                known.remove(&network);
            }
            let new: Vec<GuestKey> = wanted.difference(known).copied().collect();
            for network in new {
                self.maps.guests.insert(&network, &1).map_err(map_error("GUESTS"))?;
                known.insert(network);
            }
        }
        Ok(!known.is_empty())
    }

    fn service(
        &mut self,
        index: u32,
        plan: &ServicePlan,
        pools: [u16; 2],
        guests: bool,
        seed: &Seed,
    ) -> bool {
        let wanted = plan.flags & Service::MEASURED != 0;
        let measure = self.registry.measure(index, wanted.then(|| self.maps.measures.len()));
        let mut flags = plan.flags;
        if measure == 0 {
            flags &= !(Service::MEASURED | Service::CAPPED);
        }
        if guests {
            flags |= Service::GUESTS;
        }
        if plan.protection.guards() {
            flags |= Service::GUARDED;
        }
        let Some(record) = self.registry.services.get(&index) else { return false };
        let stable_slots = record.stable.as_ref().map_or(0, |table| table.first);
        // Without a canary nobody looks there. If somebody did, it should not be at another service's slots.
        let canary = plan.canary.as_ref().and(record.canary.as_ref());
        let service = Service {
            stable_slots,
            canary_slots: canary.map_or(stable_slots, |table| table.first),
            table_size: plan.table_size,
            mode: plan.mode as u8,
            on_empty: plan.on_empty as u8,
            flags,
            protocol: plan.key.protocol,
            backend_keys: Keys::derive(seed, &plan.key, Purpose::Backend),
            split_keys: Keys::derive(seed, &plan.key, Purpose::Split { salt: plan.salt }),
            split_mask: plan.split_mask,
            vip: plan.key.address,
            port: plan.key.port,
            stable_pool: pools[0],
            canary_pool: pools[1],
            measure,
            on_limit: plan.limits.on_limit,
            clamp_mss: plan.clamp_mss,
            ..Service::default()
        };
        // What stands before the tables changes by its own rules (`split`).
        self.maps.services.write_from(index, offset_of!(Service, stable_slots), &service)
    }

    /// What may be tried again: all that can be in store, to begin with.
    fn budget(&self, index: u32, wanted: Option<Budget>) -> bool {
        let (now, wanted) = (self.maps.budgets.read(index), wanted.unwrap_or_default());
        if (now.earned, now.most) == (wanted.earned, wanted.most) {
            return false;
        }
        let left = if now.most == 0 { wanted.most } else { now.left.min(wanted.most) };
        self.maps.budgets.write(index, &Budget { left, ..wanted });
        true
    }

    fn vip(&self, key: &VipKey, index: u32) -> Result<bool, PublishError> {
        if self.maps.vips.get(key).map_err(map_error("VIPS"))? == Some(index) {
            return Ok(false);
        }
        set_filter(&self.maps, offset_of!(Settings, vips), key.address);
        self.maps.vips.insert(key, &index).map_err(map_error("VIPS"))?;
        Ok(true)
    }

    /// Which shares of the stable and of the canary pool's slots `plan` would send elsewhere.
    #[must_use]
    pub fn slots_that_differ(&self, index: u32, plan: &ServicePlan) -> (f64, f64) {
        let Some(record) = self.registry.services.get(&index) else { return (0.0, 0.0) };
        let differ = |table: &Option<Table>, pool: Option<&PoolPlan>| {
            let (Some(table), Some(pool)) = (table, pool) else { return 0.0 };
            let takers: Vec<u16> = pool
                .takers
                .iter()
                .map(|&(address, port)| self.registry.backend_id(index, address, port).unwrap_or(0))
                .collect();
            let moved = table.slots().enumerate().filter(|&(i, slot)| {
                let taker =
                    pool.table.get(i).and_then(|&taker| takers.get(usize::from(taker))).copied().unwrap_or(0);
                Slot(self.maps.slots.read(slot)).new() != taker
            });
            moved.count() as f64 / f64::from(table.size().max(1))
        };
        (differ(&record.stable, Some(&plan.stable)), differ(&record.canary, plan.canary.as_ref()))
    }

    /// Moves a split from what it was `expected` to be. `false`: somebody else was faster, and nothing was changed.
    pub fn set_split(&mut self, index: u32, expected: Split, share: u32, now: u32) -> bool {
        let done = split::change(&self.maps.services, index, expected, share);
        if done {
            self.split_changed(index, now);
            self.name_canary(index);
        }
        done
    }

    /// Remembers that a split has changed just now.
    pub fn split_changed(&mut self, index: u32, now: u32) {
        if let Some(record) = self.registry.services.get_mut(&index) {
            let share = self.maps.services.read(index).split().new();
            record.split = SplitClock::new(share, now);
        }
    }

    /// Takes a service off: its packets are the host's again. Returns whether it was there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove(&mut self, key: &VipKey) -> Result<bool, PublishError> {
        let Some(index) = self.registry.service_index(key) else { return Ok(false) };
        self.maps.vips.remove(key).map_err(map_error("VIPS"))?;
        // None of it is for whoever has the index next.
        self.forget_faults(|fault| fault.service == index);
        self.forget_guests(index)?;
        self.protect(index, &Protection::default())?;
        self.forget_quic(index)?;
        self.maps.budgets.write(index, &Budget::default());
        let ids: Vec<u16> = self.registry.backends_of(index).collect();
        for &id in &ids {
            self.forget_replies(id, key.protocol)?;
            self.switch_off(id);
        }
        self.free_ids(&ids)?;
        self.registry.free_service(index);
        self.registry.hosted.remove(&index);
        self.protect_host(key.address)?;
        self.rebuild_filters()?;
        Ok(true)
    }

    /// Gives ids back that nothing refers to any more.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn free_backends(&mut self, ids: &[u16]) -> Result<(), PublishError> {
        if ids.is_empty() {
            return Ok(());
        }
        for &id in ids {
            let service = self.maps.services.read(self.maps.backends.read(id.into()).service);
            self.forget_replies(id, service.protocol)?;
            self.switch_off(id);
        }
        self.free_ids(ids)?;
        self.rebuild_filters()
    }

    /// Frees ids of backends that are switched off, and what names them: it is not for whoever has them next.
    fn free_ids(&mut self, ids: &[u16]) -> Result<(), PublishError> {
        self.forget_faults(|fault| ids.contains(&fault.backend));
        self.forget_flows(ids)?;
        self.forget_names(ids)?;
        for &id in ids {
            self.registry.free_backend(&self.maps, id);
        }
        Ok(())
    }

    /// Ends faults that are injected.
    fn forget_faults(&self, theirs: impl Fn(&Fault) -> bool) {
        let faults = self.maps.faults.read(0);
        for (slot, _) in faults.iter().enumerate().filter(|(_, fault)| theirs(fault)) {
            let end = slot * size_of::<Fault>() + offset_of!(Fault, until);
            self.maps.faults.word(0, end).store(0, Ordering::Release);
        }
    }

    fn forget_guests(&mut self, index: u32) -> Result<(), PublishError> {
        let Some(known) = self.registry.guests.get_mut(&index) else { return Ok(()) };
        while let Some(network) = known.first().copied() {
            self.maps.guests.remove(&network).map_err(map_error("GUESTS"))?;
            known.remove(&network);
        }
        self.registry.guests.remove(&index);
        Ok(())
    }

    /// Forgets connections that are counted as those of backends, and flows that go past the VIP to them. (Their pool is counted anew
    /// with the next sweep.)
    fn forget_flows(&self, ids: &[u16]) -> Result<(), PublishError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids: HashSet<u16> = ids.iter().copied().collect();
        remove_from(&self.maps.open, "OPEN", |_, open: &Open| ids.contains(&open.backend))?;
        remove_from(&self.maps.direct, "DIRECT", |flow, _: &u32| {
            u16::try_from(flow.owner).is_ok_and(|id| ids.contains(&id))
        })
    }

    fn forget_replies(&self, id: u16, protocol: u8) -> Result<(), PublishError> {
        let backend = self.maps.backends.read(id.into());
        let key = VipKey { address: backend.address, port: backend.port, protocol, pad: 0 };
        if self.maps.replies.get(&key).map_err(map_error("REPLIES"))?.is_some_and(|known| known.backend == id)
        {
            self.maps.replies.remove(&key).map_err(map_error("REPLIES"))?;
        }
        Ok(())
    }

    /// Takes bits out of the filters that no address needs any more.
    fn rebuild_filters(&self) -> Result<(), PublishError> {
        let vips = self.maps.vips.entries().map_err(map_error("VIPS"))?;
        let repliers = self.maps.replies.entries().map_err(map_error("REPLIES"))?;
        let settings = self.maps.settings.read(0);
        let mut stand_ins: Vec<Address> = settings.sources.to_vec();
        stand_ins.extend((0..self.maps.backends.len()).map(|id| self.maps.backends.read(id).source));
        // Whoever has a session keeps its address, whatever is configured now.
        self.maps
            .sessions
            .for_each(|key, session| {
                if session.has(Session::REPLY) && !stand_ins.contains(&key.destination) {
                    stand_ins.push(key.destination);
                }
            })
            .map_err(map_error("SESSIONS"))?;
        stand_ins.retain(|address| !address.is_unspecified());
        let words = |addresses: Vec<Address>| {
            let mut filter = vec![0u64; FILTER_BITS as usize / 64];
            for address in addresses {
                let bit = address.filter_bit();
                filter[bit as usize / 64] |= 1 << (bit % 64);
            }
            filter
        };
        for (offset, filter) in [
            (offset_of!(Settings, vips), words(vips.iter().map(|(key, _)| key.address).collect())),
            (offset_of!(Settings, repliers), words(repliers.iter().map(|(key, _)| key.address).collect())),
            (offset_of!(Settings, stand_ins), words(stand_ins)),
        ] {
            for (i, word) in filter.into_iter().enumerate() {
                self.maps.settings.word(0, offset + i * 8).store(word, Ordering::Release);
            }
        }
        Ok(())
    }
}

/// Sets what somebody may have; what he has is the kernel's to know.
fn limit(map: &Mapped<Limit>, index: u16, wanted: &Limit) -> bool {
    let mut changed = false;
    for (offset, value) in [
        (offset_of!(Limit, interval), wanted.interval),
        (offset_of!(Limit, burst), wanted.burst),
        (offset_of!(Limit, most), wanted.most),
    ] {
        let word = map.word(index.into(), offset);
        changed |= word.swap(value, Ordering::AcqRel) != value;
    }
    changed
}

fn set_filter(maps: &Maps, filter: usize, address: Address) {
    let bit = address.filter_bit() as usize;
    maps.settings.word(0, filter + bit / 64 * 8).fetch_or(1 << (bit % 64), Ordering::AcqRel);
}

/// Removes the entries of flows that are of `theirs`.
fn remove_from<V: bytemuck::Pod>(
    map: &Hash<FlowKey, V>,
    name: &'static str,
    theirs: impl Fn(&FlowKey, &V) -> bool,
) -> Result<(), PublishError> {
    let mut flows = Vec::new();
    let note = |flow: &FlowKey, value: &V| {
        if theirs(flow, value) {
            flows.push(*flow);
        }
    };
    map.for_each(note).map_err(map_error(name))?;
    for flow in flows {
        map.remove(&flow).map_err(map_error(name))?;
    }
    Ok(())
}

fn map_error(map: &'static str) -> impl Fn(io::Error) -> PublishError {
    move |source| PublishError::Map { map, source }
}
