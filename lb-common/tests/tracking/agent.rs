//! The operator and the agent: whatever may be done to a service while it has flows.

use lb_common::abi::{Backend, Life, Slot, Split};
use lb_common::host::Tables;
use lb_common::pipeline::Tables as _;
use lb_common::settle::{Load, SplitClock, SweepReport, divided, pointed};

use crate::rng::Rng;
use crate::world::{Fault, SERVICE, SIZE, World, address};

/// What the agent remembers.
pub struct Agent {
    pub stable: Table,
    pub canary: Option<Table>,
    pub split: SplitClock,
    /// Whether the last sweep found every slot settled, and none has changed since.
    pub at_rest: bool,
    /// Backends that are in use, and their pools.
    members: Vec<(u16, u16)>,
    /// Backends that were removed, and whose ids may still be named somewhere.
    retired: Vec<u16>,
    /// Tables that nobody looks at.
    spare: Vec<u32>,
    next_pool: u16,
    addresses: usize,
    /// What the last sweep found, unless a backend was removed since.
    pub report: Option<SweepReport>,
}

/// A table, and when its slots changed.
#[derive(Clone)]
pub struct Table {
    pub first: u32,
    pub changed: Vec<u32>,
}

impl Agent {
    pub fn new(tables: &mut Tables) -> Self {
        let service = tables.services[SERVICE as usize];
        let stable = tables.add_pool(SERVICE, false, &[1, 2, 3].map(|n| (address(n), 100)));
        let canary = tables.add_pool(SERVICE, true, &[4, 5].map(|n| (address(n), 100)));
        let member = |id: &u16| (*id, tables.backends[usize::from(*id)].pool);
        let members = stable.iter().chain(&canary).map(member).collect();
        let table = |first| Table { first, changed: vec![0; SIZE as usize] };
        Self {
            stable: table(service.stable_slots),
            canary: Some(table(service.canary_slots)),
            split: SplitClock::new(0, 0),
            at_rest: false,
            members,
            retired: Vec::new(),
            spare: Vec::new(),
            next_pool: service.canary_pool + 1,
            addresses: 5,
            report: None,
        }
    }

    /// Backends of a pool that packets may go to.
    fn takers(&self, tables: &Tables, pool: u16) -> Vec<u16> {
        let usable = |id: u16| tables.backends[usize::from(id)].life().is_usable();
        self.members.iter().filter(|&&(id, of)| of == pool && usable(id)).map(|&(id, _)| id).collect()
    }

    fn any(&self, rng: &Rng) -> Option<u16> {
        rng.pick(&self.members).map(|(id, _)| id)
    }
}

impl World {
    /// The operator does something, or leaves it.
    pub fn operate(&self) {
        if self.rng.below(self.calm) > 0 {
            // Time for things to settle.
            if self.rng.once_in(4) {
                self.sweep();
            }
            return self.renew_lease();
        }
        match self.rng.below(1000) {
            0..110 => self.change_weights(),
            110..180 => self.change_split(),
            180..205 => self.roll_back(),
            205..212 => self.reset(),
            212..235 => self.switch_off(),
            235..265 => self.switch_on(),
            265..275 => self.remove(),
            275..300 => self.add(),
            300..305 => self.evict(),
            305..325 => self.replace_canary(),
            325..365 => self.go_all_the_way(),
            365..385 => self.set_lease(),
            385..392 => self.restart(),
            392..500 => self.promote(),
            500..750 => self.sweep(),
            _ => {}
        }
        self.renew_lease();
    }

    fn pool(&self, canary: bool) -> u16 {
        let service = self.service();
        if canary { service.canary_pool } else { service.stable_pool }
    }

    /// New flows of some slots go to somebody else of their pool.
    fn change_weights(&self) {
        let canary = self.rng.once_in(2);
        let takers = self.agent.borrow().takers(&self.tables.borrow(), self.pool(canary));
        let one_in = 1 + self.rng.below(4);
        for position in 0..SIZE {
            if self.rng.once_in(one_in) {
                // Rarely nobody: then new flows are refused, and old ones stay.
                let taker = if self.rng.once_in(30) { 0 } else { self.rng.pick(&takers).unwrap_or(0) };
                self.point(canary, position, taker, None);
            }
        }
    }

    fn point(&self, canary: bool, position: u32, to: u16, dead: Option<u16>) {
        let now = self.now();
        let mut agent = self.agent.borrow_mut();
        let table = if canary { agent.canary.as_mut() } else { Some(&mut agent.stable) };
        let Some(table) = table else { return };
        let tables = self.tables.borrow();
        let word = &tables.slots[(table.first + position) as usize];
        let old = word.get();
        let gone = old.home() == 0 || Some(old.home()) == dead;
        let Some(new) = pointed(old, to, gone) else { return };
        let unmarked = self.has(Fault::UnmarkedChanges);
        word.set(if unmarked { Slot::of(new.new(), new.home(), old.exceptions()) } else { new });
        table.changed[position as usize] = now;
        agent.at_rest = false;
    }

    fn change_split(&self) {
        let service = self.service();
        // Whoever has gone all the way mostly waits to see the end of it.
        if service.canary_pool == 0 || service.split().new() == Split::ALL && !self.rng.once_in(4) {
            return;
        }
        let percent = self.rng.pick(&[0, 0, 1, 10, 25, 50, 75]).unwrap_or(0);
        self.divide((u64::from(u32::MAX) * percent / 100) as u32);
    }

    /// On the way to a promotion.
    fn go_all_the_way(&self) {
        if self.service().canary_pool != 0 {
            self.divide(Split::ALL);
        }
    }

    fn divide(&self, share: u32) {
        self.divide_unseen(share);
        self.agent.borrow_mut().split = SplitClock::new(share, self.now());
        if share != 0 {
            self.emptied.set(false);
        }
    }

    fn divide_unseen(&self, share: u32) {
        let service = self.service();
        let mut split = divided(service.split(), service.home(), share);
        if self.has(Fault::ForgetTracked) {
            split = Split::of(share, 0);
        }
        self.tables.borrow_mut().services[SERVICE as usize].split = split.0;
    }

    fn roll_back(&self) {
        if self.service().split().new() == Split::ALL && !self.rng.once_in(3) {
            return;
        }
        if self.rng.once_in(2) { self.divide(0) } else { self.roll_back_unseen() }
    }

    /// `lbctl rollback` while the agent is dead, or slow.
    pub fn roll_back_unseen(&self) {
        self.divide_unseen(0);
    }

    /// A rollback that takes established flows along.
    fn reset(&self) {
        let service = self.service();
        if service.canary_pool == 0 {
            return;
        }
        self.divide(0);
        {
            let mut tables = self.tables.borrow_mut();
            let entry = &mut tables.services[SERVICE as usize];
            entry.split_home = 0;
            if self.has(Fault::ResetTracked) {
                entry.split = Split::of(0, 0).0;
            }
            for backend in tables.backends.iter_mut().filter(|backend| backend.pool == service.canary_pool) {
                let life = backend.life();
                backend.life = Life::of(life.generation() + 1, life.is_usable()).0;
            }
        }
        for flow in self.live.borrow_mut().iter_mut() {
            flow.excused |= self.pool_of(flow.backend.id) == service.canary_pool;
        }
        self.emptied.set(true);
    }

    /// A backend goes into maintenance.
    fn switch_off(&self) {
        let member = self.agent.borrow().any(&self.rng);
        if let Some(id) = member {
            self.take_off(id);
        }
    }

    /// Its slots first, itself after; homes now, or with the next sweep.
    fn take_off(&self, id: u16) {
        let lazy = self.rng.once_in(2);
        for canary in [false, true] {
            let mut takers = self.agent.borrow().takers(&self.tables.borrow(), self.pool(canary));
            takers.retain(|&other| other != id);
            let table = if canary {
                self.agent.borrow().canary.clone()
            } else {
                Some(self.agent.borrow().stable.clone())
            };
            for position in table.iter().flat_map(|_| 0..SIZE) {
                let first = table.as_ref().map_or(0, |table| table.first);
                let slot = self.tables.borrow().slots[(first + position) as usize].get();
                if slot.new() == id {
                    self.point(canary, position, self.rng.pick(&takers).unwrap_or(0), (!lazy).then_some(id));
                } else if slot.home() == id && !lazy {
                    self.point(canary, position, slot.new(), Some(id));
                }
            }
        }
        {
            let mut tables = self.tables.borrow_mut();
            let backend = &mut tables.backends[usize::from(id)];
            let bump = u32::from(!self.has(Fault::SameGeneration));
            backend.life = Life::of(backend.life().generation() + bump, false).0;
        }
        self.excuse(id);
    }

    fn excuse(&self, id: u16) {
        for flow in self.live.borrow_mut().iter_mut() {
            flow.excused |= flow.backend.id == id;
        }
    }

    fn switch_on(&self) {
        let Some(id) = self.agent.borrow().any(&self.rng) else { return };
        let mut tables = self.tables.borrow_mut();
        let backend = &mut tables.backends[usize::from(id)];
        backend.life = Life::of(backend.life().generation(), true).0;
    }

    /// All flows of a backend are evicted; it stays.
    fn evict(&self) {
        let Some(id) = self.agent.borrow().any(&self.rng) else { return };
        {
            let mut tables = self.tables.borrow_mut();
            let backend = &mut tables.backends[usize::from(id)];
            let life = backend.life();
            backend.life = Life::of(life.generation() + 1, life.is_usable()).0;
        }
        self.excuse(id);
    }

    fn remove(&self) {
        let Some(id) = self.agent.borrow().any(&self.rng) else { return };
        self.take_off(id);
        let mut agent = self.agent.borrow_mut();
        agent.members.retain(|&(member, _)| member != id);
        agent.retired.push(id);
        agent.report = None;
    }

    /// A new backend, with the id of an old one if one is free.
    fn add(&self) {
        let pool = self.pool(self.rng.once_in(2));
        let mut agent = self.agent.borrow_mut();
        if pool == 0 || agent.members.len() > 8 {
            return;
        }
        agent.addresses += 1;
        let mut tables = self.tables.borrow_mut();
        let at_once = self.has(Fault::SameGeneration) || self.has(Fault::ReuseAtOnce);
        let is_free = |id| agent.report.as_ref().is_some_and(|report| report.load(id) == Load::default());
        let free = agent.retired.iter().position(|&id| at_once || is_free(id));
        let id = match free {
            Some(free) => {
                let id = agent.retired.swap_remove(free);
                let old = tables.backends[usize::from(id)];
                let address = address(agent.addresses).ip().into();
                let life = Life::of(old.life().generation(), true).0;
                tables.backends[usize::from(id)] = Backend { life, address, pool, ..old };
                self.incarnations.borrow_mut()[usize::from(id)] += 1;
                self.counts.borrow_mut().reused += 1;
                id
            }
            None => {
                self.incarnations.borrow_mut().push(0);
                tables.add_backend(SERVICE, pool, address(agent.addresses))
            }
        };
        agent.members.push((id, pool));
    }

    /// With the split settled at zero, another pool becomes the canary.
    fn replace_canary(&self) {
        let service = self.service();
        if service.split().new() != 0 || service.home() != 0 || self.agent.borrow().members.len() > 7 {
            return;
        }
        let pool = {
            let mut agent = self.agent.borrow_mut();
            let old = agent.canary.take();
            agent.spare.extend(old.map(|table| table.first));
            agent.next_pool += 1;
            agent.next_pool
        };
        // The old pool's backends keep their flows until they are removed.
        let mut fresh = Vec::new();
        for _ in 0..2 {
            let mut agent = self.agent.borrow_mut();
            agent.addresses += 1;
            self.incarnations.borrow_mut().push(0);
            let id = self.tables.borrow_mut().add_backend(SERVICE, pool, address(agent.addresses));
            agent.members.push((id, pool));
            fresh.push(id);
        }
        let now = self.now();
        let mut agent = self.agent.borrow_mut();
        let mut tables = self.tables.borrow_mut();
        let first = agent.spare.pop().unwrap_or_else(|| tables.add_table(SIZE));
        for slot in &tables.slots[first as usize..(first + SIZE) as usize] {
            let id = self.rng.pick(&fresh).unwrap_or(0);
            slot.set(Slot::of(id, id, 0));
        }
        let entry = &mut tables.services[SERVICE as usize];
        (entry.canary_slots, entry.canary_pool) = (first, pool);
        agent.canary = Some(Table { first, changed: vec![now; SIZE as usize] });
        agent.at_rest = false;
    }

    /// With the split settled at 100 %, the canary becomes the stable pool.
    fn promote(&self) {
        let service = self.service();
        let all = service.split().new() == Split::ALL && service.home() == Split::ALL;
        let mut agent = self.agent.borrow_mut();
        if !all || !(agent.split.closed || self.has(Fault::PromoteEarly)) {
            return;
        }
        let Some(canary) = agent.canary.take() else { return };
        let old = std::mem::replace(&mut agent.stable, canary);
        agent.spare.push(old.first);
        agent.at_rest = false;
        agent.split = SplitClock::new(0, self.now());
        let mut tables = self.tables.borrow_mut();
        let entry = &mut tables.services[SERVICE as usize];
        (entry.stable_slots, entry.stable_pool) = (entry.canary_slots, entry.canary_pool);
        (entry.split, entry.split_home, entry.lease_until, entry.canary_pool) = (0, 0, 0, 0);
        self.counts.borrow_mut().promotions += 1;
    }

    fn set_lease(&self) {
        let mut tables = self.tables.borrow_mut();
        let until = tables.now() + ((1 + self.rng.below(60) as u64) << 30);
        let entry = &mut tables.services[SERVICE as usize];
        if entry.split().new() == 0 {
            entry.lease_until = if self.rng.once_in(2) { 0 } else { until };
        }
    }

    /// A lease is renewed in time, or not at all.
    fn renew_lease(&self) {
        let mut tables = self.tables.borrow_mut();
        let now = tables.now();
        let careless = self.has(Fault::RenewLapsed);
        let entry = &mut tables.services[SERVICE as usize];
        let lapsed = entry.split().new() != 0 && now >= entry.lease_until;
        if entry.lease_until == 0 || lapsed && !careless {
            return;
        }
        if self.rng.once_in(if lapsed { 30 } else { 20 }) {
            entry.lease_until = now + (40 << 30);
        }
    }

    /// Another agent starts, and knows nothing of when what changed.
    fn restart(&self) {
        let now = self.now();
        let share = self.service().split().new();
        let mut agent = self.agent.borrow_mut();
        agent.split = SplitClock::new(share, now);
        agent.at_rest = false;
        let agent = &mut *agent;
        for table in core::iter::once(&mut agent.stable).chain(&mut agent.canary) {
            table.changed.fill(now);
        }
    }
}
