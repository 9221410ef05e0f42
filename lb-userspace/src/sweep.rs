//! The sweep over the maps: the rule is [`lb_common::settle`], which the model tests run as well.

use std::io;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lb_common::abi::{FlowEntry, FlowKey, Life, Service, Slot, Split};
use lb_common::settle::{self, Access, Patience, ServiceClock, SweepReport, TableClock};

use crate::clock;
use crate::config::Dataplane;
use crate::dataplane::Maps;
use crate::dataplane::bpf::Hash;
use crate::publish::{Publisher, Table};

/// A tracked TCP flow that is silent for this long is forgotten (RFC 5382, REQ-5).
const TCP_IDLE: Duration = Duration::from_secs(2 * 60 * 60 + 4 * 60);

/// How long flows may be silent.
#[must_use]
pub fn patience(dataplane: &Dataplane) -> Patience {
    Patience {
        drain: clock::in_ticks(dataplane.drain),
        tcp_idle: clock::in_ticks(dataplane.drain.max(TCP_IDLE)),
        udp_idle: clock::in_ticks(dataplane.udp_idle),
    }
}

/// Settles what may be settled now.
///
/// # Errors
///
/// If flows cannot be read or deleted. Nothing is lost by that.
pub fn sweep(publisher: &mut Publisher, patience: &Patience) -> io::Result<SweepReport> {
    let mut clocks: Vec<ServiceClock<'_>> = publisher
        .registry
        .services
        .iter_mut()
        .map(|(&service, record)| ServiceClock {
            service,
            stable: record.stable.as_ref().map(clock_of),
            canary: record.canary.as_ref().map(clock_of),
            split: &mut record.split,
        })
        .collect();
    settle::sweep(&Kernel(&publisher.maps), &mut clocks, patience, clock::nanoseconds())
}

fn clock_of(table: &Table) -> TableClock<'_> {
    TableClock { first: table.first, changed: &table.changed }
}

/// The maps, as the sweep wants to reach them.
struct Kernel<'a>(&'a Maps);

impl Kernel<'_> {
    fn table(&self, udp: bool) -> &Hash<FlowKey, FlowEntry> {
        if udp { &self.0.udp_flows } else { &self.0.flows }
    }
}

impl Access for Kernel<'_> {
    type Error = io::Error;

    fn service(&self, index: u32) -> Service {
        self.0.services.read(index)
    }

    fn life(&self, backend: u16) -> Life {
        if u32::from(backend) < self.0.backends.len() {
            self.0.backends.read(backend.into()).life()
        } else {
            Life::default()
        }
    }

    fn slot(&self, index: u32) -> Slot {
        Slot(self.0.slots.word(index, 0).load(Ordering::Acquire))
    }

    fn cas_slot(&self, index: u32, old: Slot, new: Slot) -> bool {
        self.0
            .slots
            .word(index, 0)
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn cas_split(&self, service: u32, old: Split, new: Split) -> bool {
        let word = self.0.services.word(service, offset_of!(Service, split));
        word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn store_home(&self, service: u32, share: u32) {
        self.0.services.word(service, offset_of!(Service, split_home)).store(share.into(), Ordering::Release);
    }

    fn flows(&self, udp: bool, each: &mut dyn FnMut(FlowKey, FlowEntry)) -> io::Result<()> {
        self.table(udp).for_each(|key, entry| each(*key, *entry))
    }

    fn delete_flow(&self, udp: bool, key: &FlowKey, expected: &FlowEntry) -> io::Result<bool> {
        let table = self.table(udp);
        match table.take(key)? {
            // The flow has talked since it was read, or is another one with the same ports: it goes back at once.
            Some(found) if found != *expected => table.insert(key, &found).map(|()| false),
            _ => Ok(true),
        }
    }
}
