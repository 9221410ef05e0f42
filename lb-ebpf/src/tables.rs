//! The tables of `lb-common` over maps.

use core::arch::asm;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_common::abi::{
    Address, Backend, Device, FlowEntry, FlowKey, HalfOpen, Replier, Service, Settings, Slot, Traffic,
    VipKey, Wanted,
};
use lb_common::parse::{Family, Network};
use lb_common::pipeline::{Packet, Route, Tables};
use lb_common::verdict::{Account, Event, Verdict};

use crate::maps;
use crate::packet::Frame;

/// Address families as `bpf_fib_lookup` wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The maps.
pub struct Kernel;

impl Kernel {
    /// Counts the end of a packet's road.
    #[inline(always)]
    pub fn count(&self, verdict: &Verdict) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
            // SAFETY: a per-CPU element, and a program is not preempted by itself.
            bump(unsafe { &mut *counters }.reasons.get_mut(verdict.reason as usize));
        }
        let account = verdict.account;
        if account.backend == 0 {
            return;
        }
        // One after the other: LLVM would test both pointers at once with an `or`, which the verifier refuses.
        if let Some(traffic) = maps::POOL_TRAFFIC.get_ptr_mut(account.pool.into()) {
            // SAFETY: as above.
            charge(unsafe { &mut *traffic }, verdict, &account);
        }
        if let Some(traffic) = maps::BACKEND_TRAFFIC.get_ptr_mut(account.backend.into()) {
            // SAFETY: as above.
            charge(unsafe { &mut *traffic }, verdict, &account);
        }
    }
}

#[inline(always)]
fn charge(traffic: &mut Traffic, verdict: &Verdict, account: &Account) {
    if verdict.is_reply() {
        traffic.reply_packets += 1;
        traffic.reply_bytes += u64::from(account.bytes);
    } else {
        traffic.packets += 1;
        traffic.bytes += u64::from(account.bytes);
        traffic.connections += u64::from(account.begins);
    }
}

#[inline(always)]
pub fn bump(counter: Option<&mut u64>) {
    if let Some(counter) = counter {
        *counter += 1;
    }
}

/// `FLOWS` or `UDP_FLOWS`.
macro_rules! flows {
    ($udp:expr) => {
        if $udp { &maps::UDP_FLOWS } else { &maps::FLOWS }
    };
}

impl Tables for Kernel {
    type Packet = Frame;

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::SETTINGS.get(0)
    }

    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<u32> {
        // SAFETY: the value is one word; the agent reuses an index only after the services that had it are gone.
        unsafe { maps::VIPS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<&Service> {
        maps::SERVICES.get(index)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let slot = maps::SLOTS.get_ptr(index)?;
        // SAFETY: an aligned element of the map; volatile, as the agent changes it while we run.
        Some(Slot(unsafe { slot.read_volatile() }))
    }

    #[inline(always)]
    fn mark(&self, index: u32) {
        let Some(slot) = maps::SLOTS.get_ptr_mut(index) else { return };
        // rustc knows no atomic addition without a result for BPF; the agent changes the other half of the word by
        // compare-and-swap, so this one must be atomic, too.
        // SAFETY: `slot` is an aligned element of the map.
        unsafe {
            asm!("lock *(u64 *)({slot} + 0) += {one}", slot = in(reg) slot, one = in(reg) Slot::EXCEPTION)
        };
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<&Backend> {
        maps::BACKENDS.get(id.into())
    }

    #[inline(always)]
    fn device(&self, index: u16) -> Option<&Device> {
        maps::DEVICES.get(index.into())
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry> {
        let entry = flows!(udp).get_ptr_mut(key)?;
        let now = self.ticks();
        // SAFETY: an element lives until the program ends, even if it is deleted meanwhile; its words are read one by one,
        // and an entry that changes under us is judged by its generation.
        unsafe {
            let found = *entry;
            if found.seen != now {
                (*entry).seen = now;
            }
            Some(found)
        }
    }

    #[inline(always)]
    fn keep_flow(&self, key: &FlowKey, udp: bool, backend: u16, generation: u32) -> bool {
        let entry = FlowEntry { backend, pad: 0, generation, seen: self.ticks() };
        flows!(udp).insert(key, entry, 0).is_ok()
    }

    #[inline(always)]
    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen> {
        // SAFETY: as for flows; the sequence number tells a note from another one.
        unsafe { maps::HALF_OPEN.get(key) }.copied()
    }

    #[inline(always)]
    fn note_half_open(&self, key: &FlowKey, note: &HalfOpen) {
        let event = if maps::HALF_OPEN.insert(key, note, 0).is_ok() {
            Event::HandshakeNoted
        } else {
            Event::TrackFailed
        };
        self.event(event);
    }

    #[inline(always)]
    fn forget_half_open(&self, key: &FlowKey) {
        // Gone already is as good.
        let _ = maps::HALF_OPEN.remove(key);
    }

    #[inline(always)]
    fn replier(&self, key: &VipKey) -> Option<Replier> {
        // SAFETY: as for VIPs.
        unsafe { maps::REPLIES.get(key) }.copied()
    }

    #[inline(always)]
    fn is_direct(&self, key: &FlowKey) -> bool {
        maps::DIRECT.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn note_direct(&self, key: &FlowKey, backend: &VipKey) {
        if maps::DIRECT.insert(key, self.ticks(), 0).is_err() {
            return self.event(Event::TrackFailed);
        }
        if let Some(replier) = maps::REPLIES.get_ptr_mut(backend) {
            // SAFETY: an aligned word of a living element. Two CPUs may write the same value.
            unsafe { (&raw mut (*replier).direct).write_volatile(1) };
        }
    }

    #[inline(always)]
    fn route(&self, frame: &Frame, network: &Network) -> Route {
        // SAFETY: a C structure of integers.
        let mut query: FibLookup = unsafe { core::mem::zeroed() };
        query.ifindex = frame.ifindex();
        query.l4_protocol = network.protocol;
        query.__bindgen_anon_1.tot_len = (network.end - network.l3) as u16;
        match network.family {
            Family::V4 => {
                query.family = AF_INET;
                query.__bindgen_anon_3.ipv4_src = network.source.wire_words()[3];
                query.__bindgen_anon_4.ipv4_dst = network.destination.wire_words()[3];
            }
            Family::V6 => {
                query.family = AF_INET6;
                query.__bindgen_anon_3.ipv6_src = network.source.wire_words();
                query.__bindgen_anon_4.ipv6_dst = network.destination.wire_words();
            }
        }
        // SAFETY: the context is the kernel's, the query is as long as we say.
        let result = unsafe {
            bpf_fib_lookup(frame.context().cast(), &raw mut query, size_of::<FibLookup>() as i32, 0)
        } as u32;
        match result {
            BPF_FIB_LKUP_RET_SUCCESS => {
                Route::Out { ifindex: query.ifindex, source: query.smac, destination: query.dmac }
            }
            BPF_FIB_LKUP_RET_NOT_FWDED => Route::Local,
            BPF_FIB_LKUP_RET_NO_NEIGH => {
                // The next hop has taken the destination's place.
                // SAFETY: the member that was set above.
                let address = unsafe {
                    match network.family {
                        Family::V4 => Address::v4(query.__bindgen_anon_4.ipv4_dst.to_ne_bytes()),
                        Family::V6 => Address::of_wire_words(query.__bindgen_anon_4.ipv6_dst),
                    }
                };
                // A full ring is no harm: the next packet asks again.
                let _ = maps::WANTED.output::<Wanted>(&Wanted { address, ifindex: query.ifindex, pad: 0 }, 0);
                Route::Unresolved
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Route::TooBig,
            BPF_FIB_LKUP_RET_FWD_DISABLED => Route::ForwardingOff,
            _ => Route::None,
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments. As precise as a tick, and much cheaper than reading the clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn event(&self, event: Event) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
            // SAFETY: a per-CPU element, and a program is not preempted by itself.
            bump(unsafe { &mut *counters }.events.get_mut(event as usize));
        }
    }
}
