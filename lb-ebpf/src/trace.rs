//! What is told to those who trace, by a program of its own: the same object with [`LB_TRACE`] set.

use core::arch::asm;

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_xdp_load_bytes};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use lb_common::stage::Stage;
use lb_common::trace::{Head, LONG, Record, SHORT};
use lb_common::verdict::{Action, Verdict};
use lb_common::vlan::TAGGED;

use crate::maps;
use crate::packet::Frame;

/// Set by the agent before the program is loaded: a constant by the time that the verifier sees it. At 0 everything here
/// is dead code, and is removed.
#[unsafe(no_mangle)]
static LB_TRACE: u8 = 0;

#[inline(always)]
fn is_on() -> bool {
    // SAFETY: a static; volatile, as its value is another one in the kernel.
    unsafe { ptr::read_volatile(&raw const LB_TRACE) != 0 }
}

/// Before the road begins.
#[inline(always)]
pub fn arrives(ctx: &XdpContext) {
    if is_on() {
        lb_trace_arrives(ctx.ctx);
    }
}

/// On to another stage.
#[inline(always)]
pub fn goes_on(ctx: &XdpContext, stage: Stage) {
    if is_on() {
        lb_trace_ends(ctx.ctx, Head::GOES_ON + stage as u32, 0, 0, 0);
    }
}

/// Where the road ends; the frame is as it leaves.
#[inline(always)]
pub fn ends(ctx: &XdpContext, verdict: &Verdict) {
    if is_on() {
        let out = if verdict.reason.action() as u32 == Action::Transmit as u32 {
            verdict.ifindex & !TAGGED
        } else {
            0
        };
        let account = &verdict.account;
        let whom = u32::from(account.backend) << 16 | u32::from(account.pool);
        lb_trace_ends(ctx.ctx, verdict.reason as u32, out, whom, account.begins);
    }
}

/// Functions of their own in the kernel's eyes ("global"): verified once, and only where they are called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_trace_arrives(ctx: *mut xdp_md) -> u32 {
    let Some(state) = maps::TRACE_STATE.get_ptr_mut(0) else { return 0 };
    let Some(filter) = maps::TRACE_FILTER.get(0) else { return 0 };
    // SAFETY: a per-CPU element, and a program is not preempted by itself.
    let state = unsafe { &mut *state };
    state.count += 1;
    state.matched = 0;
    // SAFETY: no arguments.
    if unsafe { bpf_ktime_get_ns() } > filter.until {
        return 0;
    }
    let frame = Frame::new(&XdpContext::new(ctx));
    if filter.matches(&frame) {
        state.matched = 1;
        // SAFETY: the context is the kernel's.
        let ifindex = unsafe { (*ctx).ingress_ifindex };
        tell(ctx, Head { ifindex, what: Head::ARRIVES, ..NOTHING });
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_trace_ends(ctx: *mut xdp_md, what: u32, ifindex: u32, whom: u32, begins: u32) -> u32 {
    let Some(state) = maps::TRACE_STATE.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    if unsafe { (*state).matched } != 0 {
        tell(ctx, Head { ifindex, what, backend: (whom >> 16) as u16, pool: whom as u16, begins, ..NOTHING });
    }
    0
}

const NOTHING: Head =
    Head { at: 0, number: 0, ifindex: 0, length: 0, what: 0, backend: 0, pool: 0, begins: 0, lost: 0 };

#[inline(always)]
fn tell(ctx: *mut xdp_md, head: Head) {
    let Some(state) = maps::TRACE_STATE.get_ptr_mut(0) else { return };
    let Some(filter) = maps::TRACE_FILTER.get(0) else { return };
    // SAFETY: a per-CPU element, and a program is not preempted by itself.
    let state = unsafe { &mut *state };
    // SAFETY: no arguments; the context is the kernel's.
    let (at, cpu, length) =
        unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id(), bpf_xdp_get_buff_len(ctx)) };
    let number = u64::from(cpu) << 48 | state.count;
    let head = Head { at, number, length: length as u32, lost: state.lost, ..head };
    let told = if filter.long != 0 { write::<LONG>(ctx, head) } else { write::<SHORT>(ctx, head) };
    if !told {
        state.lost += 1;
    }
}

/// Whether there was room.
#[inline(always)]
fn write<const N: usize>(ctx: *mut xdp_md, head: Head) -> bool {
    let Some(mut entry) = maps::TRACED.reserve::<Record<N>>(0) else { return false };
    let record: *mut Record<N> = entry.as_mut_ptr();
    let mut more = u64::from(head.length).wrapping_sub(1);
    // Verifiers before 6.8 know of the helper's size what 64 bits of its register tell, and that it is not 0 only from a sum. LLVM
    // would compare 32 bits, and with 0. (An empty template would be a line without an instruction, which the kernel refuses.)
    // SAFETY: no frame is that long.
    unsafe { asm!("{more} &= 0xfffff", more = inout(reg) more) };
    if more >= N as u64 {
        more = N as u64 - 1;
    }
    // SAFETY: the ring's room is a whole record, and nobody reads it before it is submitted. What a shorter frame leaves is
    // what was there before: the reader looks at as much as the frame is long.
    unsafe {
        (&raw mut (*record).head).write(head);
        bpf_xdp_load_bytes(ctx, 0, (&raw mut (*record).bytes).cast(), more as u32 + 1);
    }
    entry.submit(0);
    true
}
