//! Measures other XDP programs: restores a frame, then tail-calls the program under test.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` feeds a program the packet that it has changed itself, so that tunnels would pile up.
//! The driver makes each packet new from a template, as one of many flows. What it costs itself is measured with the empty
//! program `floor`, and subtracted.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// Bytes in a frame of the measurement.
const LENGTH: usize = 142;

/// An outer IPv4 header.
const TUNNEL: i32 = 20;

/// What to make packets from.
#[repr(C)]
pub struct Template {
    /// The frame.
    frame: [u8; LENGTH],
    /// Where the last 4 bytes of the client's address lie.
    address: u16,
    /// Where the client's port lies.
    port: u16,
    /// Explicit, for the host's side.
    pad: u16,
    /// How many flows.
    flows: u32,
}

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

/// Which flow is next, per CPU.
#[map]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What everything is measured against.
#[xdp(frags)]
pub fn floor(_: XdpContext) -> u32 {
    XDP_TX
}

/// What no tunnel can do without: room for an outer header.
#[xdp(frags)]
pub fn grow(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the kernel's; nothing is known of the frame yet.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -TUNNEL) } == 0 { XDP_TX } else { XDP_ABORTED }
}

/// Restores the frame and goes on to the program under test.
#[xdp(frags)]
pub fn driver(ctx: XdpContext) -> u32 {
    drive(&ctx)
}

/// [`floor`] for programs that were not made for frames in several buffers: a program array takes one kind only.
#[xdp]
pub fn floor_linear(_: XdpContext) -> u32 {
    XDP_TX
}

/// [`driver`] for those.
#[xdp]
pub fn driver_linear(ctx: XdpContext) -> u32 {
    drive(&ctx)
}

#[inline(always)]
fn drive(ctx: &XdpContext) -> u32 {
    if restore(ctx).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: the program array and the context are the kernel's. On success it does not return.
    unsafe { TARGET.tail_call(ctx, 0) };
    XDP_ABORTED
}

#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: a per-CPU element, and a program is not preempted by itself.
    let flow = unsafe {
        let flow = *next;
        *next = if flow + 1 >= template.flows { 0 } else { flow + 1 };
        flow
    };
    // SAFETY: the context is the kernel's; nothing is known of the frame yet.
    unsafe {
        let length = bpf_xdp_get_buff_len(ctx.ctx) as i32;
        let longer = length - LENGTH as i32;
        // A program that answers cuts the tail; one that tunnels moves the head.
        if longer < 0 && bpf_xdp_adjust_tail(ctx.ctx, -longer) != 0 {
            return None;
        }
        if longer > 0 && bpf_xdp_adjust_head(ctx.ctx, longer) != 0 {
            return None;
        }
    }
    let start = ctx.data();
    if start + LENGTH > ctx.data_end() {
        return None;
    }
    // In pieces: beyond 128 bytes LLVM calls its own `memcpy`, byte by byte.
    let (to, from) = (start as *mut [u8; 64], (&raw const template.frame).cast::<[u8; 64]>());
    // SAFETY: LENGTH bytes on both sides, as checked above and by the type.
    unsafe {
        *to = *from;
        *to.add(1) = *from.add(1);
        *to.add(2).cast::<[u8; LENGTH - 128]>() = *from.add(2).cast();
    }
    // Distinct pairs of address and port for the first 2^22 flows. Of the address 17 bits differ: a /15.
    let [_, high, low @ ..] = (flow & 0x1_ffff).to_be_bytes();
    let port = ((flow >> 3) + (flow >> 17)) as u16 | 0x8000;
    let end = ctx.data_end();
    let address: *mut [u8; 4] = within(start, end, template.address)?;
    let ports: *mut [u8; 2] = within(start, end, template.port)?;
    // SAFETY: in bounds, as `within` has checked.
    unsafe {
        (*address)[1] |= high;
        [(*address)[2], (*address)[3]] = low;
        *ports = port.to_be_bytes();
    }
    Some(())
}

#[inline(always)]
fn within<const N: usize>(start: usize, end: usize, offset: u16) -> Option<*mut [u8; N]> {
    // The mask is for the verifier, which wants to know how far an offset may go.
    let at = start + (usize::from(offset) & 0x7f);
    (at + N <= end).then_some(at as *mut [u8; N])
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
