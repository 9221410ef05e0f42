//! The sweep, with packets between any two of its steps.

use std::cell::Cell;

use lb_common::abi::{FlowEntry, FlowKey, GuestKey, HANDSHAKE_TICKS, HalfOpen, Life, Service, Slot, Split};
use lb_common::pipeline::Tables as _;
use lb_common::settle::{self, Access, Patience, ServiceClock, TableClock, Takers};
use lb_common::wire::IPPROTO_TCP;

use crate::agent::Table;
use crate::world::{Fault, PATIENCE, SERVICE, SIZE, World};

impl World {
    pub fn sweep(&self) {
        let (now, ticks) = (self.tables.borrow().now(), self.now());
        let (stable, canary, mut split, mut at_rest) = {
            let agent = self.agent.borrow();
            (agent.stable.clone(), agent.canary.clone(), agent.split, agent.at_rest)
        };
        let age = |table: Table| -> Table {
            if !self.has(Fault::ClearInHandshake) {
                return table;
            }
            // Too old for a handshake, and too young to settle.
            let changed =
                table.changed.iter().map(|changed| (*changed).min(ticks - HANDSHAKE_TICKS - 1)).collect();
            Table { changed, ..table }
        };
        let (stable, canary) = (age(stable), canary.map(age));
        let count = |table: &Table| self.takers(table.first);
        let takers = (count(&stable), canary.as_ref().map(count).unwrap_or_default());
        fn clock<'a>(table: &'a Table, takers: &'a Takers) -> TableClock<'a> {
            TableClock { first: table.first, changed: &table.changed, takers }
        }
        let drain = if self.has(Fault::NoDrain) { 0 } else { PATIENCE.drain };
        let services = &mut [ServiceClock {
            service: SERVICE,
            stable: Some(clock(&stable, &takers.0)),
            canary: canary.as_ref().map(|table| clock(table, &takers.1)),
            split: &mut split,
            at_rest: &mut at_rest,
        }];
        let access = Between { world: self, reads: Cell::new(0) };
        let before = self.service().split().tracked();
        self.sweeping.set(true);
        self.traffic(2);
        let report = settle::sweep(&access, services, &Patience { drain, ..PATIENCE }, now);
        self.sweeping.set(false);
        self.flush_stalled();

        let mut agent = self.agent.borrow_mut();
        agent.split = split;
        agent.at_rest = at_rest;
        let mut counts = self.counts.borrow_mut();
        counts.sweeps += 1;
        counts.rests += u64::from(at_rest);
        counts.closed += u64::from(before != 0 && self.service().split().tracked() == 0);
        if let Ok(report) = report {
            counts.lapses += report.lapsed.len() as u64;
            agent.report = Some(report);
        }
    }

    fn takers(&self, first: u32) -> Takers {
        let mut takers = Takers::new();
        for slot in &self.tables.borrow().slots[first as usize..(first + SIZE) as usize] {
            *takers.entry(slot.get().new()).or_default() += 1;
        }
        takers
    }
}

/// The maps, while packets come.
struct Between<'a> {
    world: &'a World,
    reads: Cell<u32>,
}

impl Between<'_> {
    fn packets(&self) {
        let world = self.world;
        match world.rng.below(9) {
            0 | 1 => world.traffic(1),
            2 => world.flush_stalled(),
            // `lbctl rollback`, past the agent.
            3 if world.rng.once_in(60) => world.roll_back_unseen(),
            _ => {}
        }
    }
}

impl Access for Between<'_> {
    type Error = ();

    fn service(&self, index: u32) -> Service {
        self.packets();
        let mut service = self.world.tables.borrow().services[index as usize];
        self.reads.set(self.reads.get() + 1);
        // The second read is what entries are judged by.
        let judging = self.reads.get() == 2;
        if judging && self.world.has(Fault::ForgetUnsettled) {
            service.split_home = service.split().new().into();
        }
        if judging && self.world.has(Fault::UdpLikeTcp) {
            service.protocol = IPPROTO_TCP;
        }
        if self.world.has(Fault::RenewLapsed) {
            service.lease_until = 0;
        }
        service
    }

    fn life(&self, backend: u16) -> Life {
        self.world.life(backend)
    }

    fn slot(&self, index: u32) -> Slot {
        self.packets();
        self.world.tables.borrow().slots[index as usize].get()
    }

    fn guest(&self, client: &GuestKey) -> bool {
        self.world.tables.borrow().guest(client)
    }

    fn cas_slot(&self, index: u32, old: Slot, new: Slot) -> bool {
        self.packets();
        let tables = self.world.tables.borrow();
        let word = &tables.slots[index as usize];
        if self.world.has(Fault::UnmarkedSlots) && new.exceptions() > old.exceptions() {
            return true;
        }
        let same = word.get() == old;
        if same {
            word.set(new);
        }
        same
    }

    fn cas_split(&self, service: u32, old: Split, new: Split) -> bool {
        self.packets();
        let mut tables = self.world.tables.borrow_mut();
        let word = &mut tables.services[service as usize].split;
        let same = *word == old.0;
        if same {
            *word = new.0;
        }
        same
    }

    fn store_home(&self, service: u32, share: u32) {
        self.packets();
        self.world.tables.borrow_mut().services[service as usize].split_home = share.into();
    }

    fn flows(&self, udp: bool, each: &mut dyn FnMut(FlowKey, FlowEntry)) -> Result<(), ()> {
        let entry = |key: &FlowKey| {
            let tables = self.world.tables.borrow();
            let table = if udp { &tables.udp_flows } else { &tables.flows };
            table.borrow().peek(key).copied()
        };
        let keys: Vec<FlowKey> = {
            let tables = self.world.tables.borrow();
            let table = if udp { &tables.udp_flows } else { &tables.flows };
            table.borrow().iter().map(|(key, _)| *key).collect()
        };
        let fails = self.world.rng.once_in(15);
        for key in &keys {
            self.packets();
            if let Some(entry) = entry(key) {
                each(*key, entry);
            }
            if fails && self.world.rng.once_in(4) {
                return Err(());
            }
        }
        Ok(())
    }

    fn half_open(&self, each: &mut dyn FnMut(FlowKey, HalfOpen)) -> Result<(), ()> {
        let keys: Vec<FlowKey> = {
            let tables = self.world.tables.borrow();
            tables.half_open.borrow().iter().map(|(key, _)| *key).collect()
        };
        let hidden = self.world.setup.fault.is_some_and(Fault::hides_handshakes);
        for key in keys.iter().filter(|_| !hidden) {
            self.packets();
            let note = self.world.tables.borrow().half_open.borrow().peek(key).copied();
            note.into_iter().for_each(|note| each(*key, note));
        }
        Ok(())
    }

    fn delete_flow(&self, udp: bool, key: &FlowKey, expected: &FlowEntry) -> Result<bool, ()> {
        self.packets();
        let tables = self.world.tables.borrow();
        let mut table = if udp { &tables.udp_flows } else { &tables.flows }.borrow_mut();
        let changed = table.peek(key).is_some_and(|entry| entry != expected);
        if changed && !self.world.has(Fault::DeleteChanged) {
            return Ok(false);
        }
        table.remove(key);
        Ok(true)
    }
}
