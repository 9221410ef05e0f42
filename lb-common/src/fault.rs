//! Faults that are injected on purpose: a share of a service's new connections is reset or dropped, to see what its clients, its
//! rollout and its operators do then.
//!
//! Which ones follows from the flow's hash, so that a SYN that is sent again fares as the first one. Each fault ends by itself
//! at its time, which the program looks at: an agent that has died injects nothing for ever. Whoever is established is left
//! alone. A delay would need a queue, which XDP has not.

use crate::abi::{FAULTS, Fault, FlowKey, Service, Split};
use crate::hash::mix;
use crate::measure::Reply;
use crate::parse::Network;
use crate::pipeline::{Packet, Tables};
use crate::verdict::{Account, Reason, Verdict};

/// What is to be done to a SYN on its way to `backend` of `pool`, if anything.
#[inline(always)]
pub fn injected<T: Tables>(
    tables: &T,
    service: &Service,
    key: &FlowKey,
    pool: u16,
    backend: u16,
) -> Option<u32> {
    let faults = tables.faults()?;
    let now = tables.now();
    let hash = service.split_keys.hash(key.client.words(), key.ports());
    let client = key.client.words();
    let mut action = None;
    for fault in &faults[..FAULTS] {
        let hits = fault.until > now
            && fault.service == key.owner
            && (fault.pool == 0 || fault.pool == pool)
            && (fault.backend == 0 || fault.backend == backend)
            && is_in(client, fault);
        if hits && action.is_none() && is_picked(hash, fault) {
            action = Some(fault.action);
        }
    }
    action
}

#[inline(always)]
fn is_in(client: [u32; 4], fault: &Fault) -> bool {
    let (network, mask) = (fault.network.words(), fault.mask.words());
    let [a, b, c, d] = client;
    let differ = (a & mask[0]) ^ network[0]
        | (b & mask[1]) ^ network[1]
        | (c & mask[2]) ^ network[2]
        | (d & mask[3]) ^ network[3];
    differ == 0
}

#[inline(always)]
const fn is_picked(hash: u64, fault: &Fault) -> bool {
    let picked = (mix(hash ^ fault.salt) >> 32) as u32;
    fault.share == Split::ALL || picked < fault.share
}

/// Does it.
///
/// # Errors
///
/// The reason, where nothing is sent.
#[inline(always)]
pub fn strike<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    service: &Service,
    network: &Network,
    key: &FlowKey,
    backend: u16,
    action: u32,
) -> Result<Verdict, Reason> {
    if action != Fault::RESET {
        return Err(Reason::FaultDrop);
    }
    if service.has(Service::HANDSHAKES) {
        // As if the backend had said so: where refusals are kept from clients, so is this one.
        let reply =
            Reply { backend, answers: false, resets: true, data: false, sequence: 0, acknowledged: 0 };
        tables.replies(service, key, reply)?;
    }
    let ifindex = packet.ifindex();
    tables.reset(packet, network)?;
    Ok(Verdict { reason: Reason::FaultReset, ifindex, account: Account::NONE })
}
