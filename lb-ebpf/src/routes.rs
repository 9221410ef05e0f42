//! The kernel's routes, as `bpf_fib_lookup` tells them.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT,
    bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use lb_common::abi::{Address, Wanted};
use lb_common::parse::{Family, Network};
use lb_common::pipeline::{Packet as _, Route};
use lb_common::wire::Mac;

use crate::maps;
use crate::packet::Frame;

/// Address families as `bpf_fib_lookup` wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where a packet leaves. The agent is told of a next hop without a hardware address.
#[inline(always)]
pub fn route(frame: &Frame, network: &Network) -> Route {
    let Some((result, query)) = look_up(frame, network) else { return Route::None };
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            Route::Out { ifindex: query.ifindex, source: mac(&query.smac), destination: mac(&query.dmac) }
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => Route::Local,
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            want(query, network.family);
            Route::Unresolved
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Route::TooBig,
        // The kernel puts a header of its own around it.
        BPF_FIB_LKUP_RET_UNSUPP_LWT => Route::Unresolved,
        BPF_FIB_LKUP_RET_FWD_DISABLED => Route::ForwardingOff,
        _ => Route::None,
    }
}

/// How long a packet may be that goes where this one goes, in bytes; 0: as long as this one, at least.
#[inline(always)]
pub fn path_mtu(frame: &Frame, network: &Network) -> u16 {
    let Some((result, query)) = look_up(frame, network) else { return 0 };
    if result != BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return 0;
    }
    // The kernel has put it where the packet's length was.
    // SAFETY: a union of two integers of the same size.
    unsafe { query.__bindgen_anon_1.mtu_result }
}

/// Asks the kernel's routes where a packet leaves.
#[inline(always)]
fn look_up<'a>(frame: &Frame, network: &Network) -> Option<(u32, &'a FibLookup)> {
    let query = maps::QUERIES.get_ptr_mut(0)?;
    // SAFETY: a per-CPU element, and a program is not preempted by itself; a C structure of integers, for which zeros will do.
    let query = unsafe {
        query.write(core::mem::zeroed());
        &mut *query
    };
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
    let result =
        unsafe { bpf_fib_lookup(frame.context().cast(), &raw mut *query, size_of::<FibLookup>() as i32, 0) }
            as u32;
    Some((result, query))
}

/// A hardware address of a query, in pieces that are aligned: the compiler would take four bytes at once, and of the stack the
/// verifier gives no unaligned ones.
#[inline(always)]
fn mac(field: &Mac) -> Mac {
    let words = field.as_ptr().cast::<u16>();
    // SAFETY: six bytes, at an even offset of an aligned structure.
    let [[a, b], [c, d], [e, f]] = unsafe {
        [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()]
            .map(u16::to_ne_bytes)
    };
    [a, b, c, d, e, f]
}

/// Tells the agent of a next hop without a hardware address. A full ring is no harm: the next packet asks again.
#[inline(always)]
fn want(query: &FibLookup, family: Family) {
    let Some(mut entry) = maps::WANTED.reserve::<Wanted>(0) else { return };
    // Word by word into the ring: on the stack there is no room for another one.
    let wanted = entry.as_mut_ptr();
    // SAFETY: the entry is as large as the type, and all of it is written. The next hop has taken the destination's place; the
    // member was set when the query was made.
    unsafe {
        match family {
            Family::V4 => {
                let address = Address::v4(query.__bindgen_anon_4.ipv4_dst.to_ne_bytes());
                (&raw mut (*wanted).address).write(address);
            }
            Family::V6 => {
                let words = &query.__bindgen_anon_4.ipv6_dst;
                let to = (&raw mut (*wanted).address).cast::<u32>();
                to.write(words[0]);
                to.add(1).write(words[1]);
                to.add(2).write(words[2]);
                to.add(3).write(words[3]);
            }
        }
        (&raw mut (*wanted).ifindex).write(query.ifindex);
        (&raw mut (*wanted).pad).write(0);
    }
    entry.submit(0);
}
