//! Connect retry: a SYN that nobody accepts goes elsewhere when its client repeats it.
//!
//! XDP can send nothing later, and need not: the client's own timer repeats a SYN that is not answered (after 1 s, 3 s, 7 s,
//! … in Linux). An *unanswered* SYN goes to another backend of the same pool when it comes again. A *refused* one would end there:
//! the client gives up on a RST. So the RST is kept from the client, which then asks again.
//!
//! # No flow loses its backend by it
//!
//! The flow now goes elsewhere than its slot says. That is what `HALF_OPEN` and marks are for: the slot is marked, and the choice
//! noted, as if the slot had changed and changed back in between ([`select`](crate::select)). The handshake's end moves the flow to
//! `FLOWS`; until then the sweep keeps the slot marked ([`settle`](crate::settle)). What the first backend may still say is kept from
//! the client, so that it never sees two answers. For that, replies have to come back through the balancer: there is no retry
//! in the `dsr` modes.
//!
//! # It has a budget
//!
//! When everything fails, trying everything twice helps nobody. Each new connection of a service earns a part of a retry
//! (`budget` in the configuration), up to a few in store; each retry spends a whole one. A flood of SYNs can therefore churn
//! `HALF_OPEN` only, as ever, and mark no more slots than its budget.

use bytemuck::{Pod, Zeroable};

use crate::abi::{FlowKey, HalfOpen, Service};
use crate::hash::mix;
use crate::limit::{self, Whose};
use crate::measure::Handshake;
use crate::pipeline::Tables;
use crate::verdict::Event;

/// One retry, in the budget's units.
pub const ONE: u64 = 1 << 16;

/// One element of `BUDGETS`, by service index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// What a new connection earns, in 65536ths of a retry.
    pub earned: u64,
    /// What can be in store.
    pub most: u64,
    /// What is: below zero when two CPUs have spent the last one.
    pub left: u64,
    /// Zero.
    pub reserved: u64,
}

impl Budget {
    #[inline(always)]
    const fn has_less_than(&self, amount: u64) -> bool {
        (self.left as i64) < amount as i64
    }
}

/// Slots that are looked at for another backend. Who has half of the slots keeps one flow in 65 536, who has three quarters one
/// in a hundred.
const PROBES: u64 = 16;

/// A new connection earns its part.
#[inline(always)]
pub fn earn<T: Tables>(tables: &T, service: u32) {
    let Some(budget) = tables.budget(service) else { return };
    if budget.has_less_than(budget.most) {
        tables.pay(service, budget.earned);
    }
}

/// Spends a retry, if there is one. (Two CPUs may share the last one.)
#[inline(always)]
fn spend<T: Tables>(tables: &T, service: u32) -> bool {
    let enough = tables.budget(service).is_some_and(|budget| !budget.has_less_than(ONE));
    if enough {
        tables.pay(service, ONE.wrapping_neg());
    }
    tables.event(if enough { Event::Retried } else { Event::RetryDenied });
    enough
}

/// Sends a flow elsewhere whose SYN comes again, if that is affordable.
#[inline(always)]
pub fn elsewhere<T: Tables>(tables: &T, service: &Service, key: &FlowKey, known: &Handshake) -> Option<u16> {
    let other = tables.another(service, key, known.backend, known.retries);
    if other == 0 {
        return None;
    }
    // That of a refusal was spent when it was kept.
    if known.state != Handshake::REFUSED && !spend(tables, key.owner) {
        return None;
    }
    if !divert(tables, service, key, known.sequence, other) {
        return None;
    }
    if service.has(Service::LIMITED) {
        // Of its pool it is one connection, wherever it goes; and that was let through.
        limit::take(tables, Whose::Backend(other), tables.clock());
    }
    Some(other)
}

/// Whether a backend may have another's connection.
#[inline(always)]
fn may_have<T: Tables>(tables: &T, service: &Service, id: u16) -> bool {
    !service.has(Service::LIMITED) || limit::fits(tables, id)
}

/// Has the flow that this SYN begins go to another backend than its slot says. `false`: that one is gone.
#[inline(always)]
pub fn divert<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, to: u16) -> bool {
    let Some(backend) = tables.backend(to) else { return false };
    let canary = service.attended_membership(tables, key).new;
    let index = service.slot(canary, service.backend_hash(key));
    // The mark first: an entry that nobody looks for would be worse than a look-up in vain.
    tables.mark(index);
    let generation = backend.life().generation();
    tables.note_half_open(key, &HalfOpen { backend: to, pad: 0, generation, sequence, at: tables.ticks() });
    true
}

/// Whether a refusal is kept from its client: there is somebody else, and the budget allows it.
#[inline(always)]
pub fn keeps_refusal<T: Tables>(tables: &T, service: &Service, key: &FlowKey, known: &Handshake) -> bool {
    // In place, where the stack has no room for a call.
    another(tables, service, key, known.backend, known.retries) != 0 && spend(tables, key.owner)
}

/// Another backend of the pool that `not` is in, which may have a connection; 0: none is found. It is looked for in the pool's
/// table, so that each gets its share of those, and at other places of it with each of a flow's `tries`.
#[inline(always)]
pub fn another<T: Tables>(tables: &T, service: &Service, key: &FlowKey, not: u16, tries: u8) -> u16 {
    let Some(backend) = tables.backend(not) else { return 0 };
    let canary = backend.pool == service.canary_pool;
    let hash = service.backend_hash(key);
    let first = u64::from(tries) * PROBES;
    for probe in 1..=PROBES {
        // Mixed, and not in even steps: so are the slots of a backend in a table of few, and steps may go from one to the next.
        let place = mix(hash.wrapping_add(first + probe));
        let Some(slot) = tables.slot(service.slot(canary, place)) else { return 0 };
        let other = slot.new();
        if other != 0
            && other != not
            && tables.backend(other).is_some_and(|backend| backend.life().is_usable())
            && may_have(tables, service, other)
        {
            return other;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Mode, Port};
    use crate::host::{self, ServiceSpec};
    use std::net::Ipv4Addr;

    /// Of the flows that go to the first of so many backends: how many there are, and how many find nobody else.
    fn missed(backends: u8, size: u32, vip: u8) -> [u32; 2] {
        let mut tables = host::Tables::new();
        let at = |host| (Ipv4Addr::new(10, 0, vip, host), 80).into();
        let pool: Vec<_> = (0..backends).map(|n| (at(n + 1), 100)).collect();
        let spec = ServiceSpec::tcp(Ipv4Addr::new(203, 0, 113, vip).into(), 80, Mode::Nat);
        let service = tables.add_service(&ServiceSpec { table_size: size, ..spec });
        let first = tables.add_pool(service, false, &pool)[0];
        let spec = &tables.services[service as usize];
        let mut counts = [0; 2];
        for client in 0..1000u32 {
            let client = Ipv4Addr::from_bits(0x0a40_0000 + client).into();
            let key = FlowKey { client, client_port: Port::new(40_000), port: Port::new(80), owner: service };
            let slot = spec.slot(false, spec.backend_hash(&key));
            if tables.slots[slot as usize].get().new() == first {
                counts[0] += 1;
                counts[1] += u32::from(another(&tables, spec, &key, first, 0) == 0);
            }
        }
        counts
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics")]
    fn somebody_else_is_found_in_every_table() {
        for (backends, size) in [(2, 4093), (3, 4093), (3, 16381), (10, 65537)] {
            for vip in 0..if size > 20_000 { 10 } else { 50 } {
                let [flows, missed] = missed(backends, size, vip);
                assert_eq!(missed, 0, "of {flows} flows to one of {backends} in the table of {vip}");
            }
        }
    }
}
