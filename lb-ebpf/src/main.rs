//! The XDP programs of `lb`: glue around `lb-common`. They fetch, call, count and return; every decision is made there.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod global;
mod maps;
mod packet;
mod routes;
mod stages;
mod tables;
mod trace;
mod verifier;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::attend::attend;
use lb_common::decap::{Decapsulated, decapsulate};
use lb_common::fragment::{fragment, fragment_reply};
use lb_common::guard::{guard, host};
use lb_common::icmp::icmp;
use lb_common::pipeline::{Packet, Step, enter};
use lb_common::quic::quic;
use lb_common::reply::reply;
use lb_common::session::{begin, carry, opening, session, session_fragment, session_icmp, witness};
use lb_common::too_big::too_big;
use lb_common::verdict::{Action, Reason, Verdict};
use lb_common::vlan::{depart, hand_up};

use crate::packet::Frame;
use crate::stages::jump;
use crate::tables::{Kernel, bump};

/// The balancer: every packet begins here.
#[xdp(frags)]
pub fn lb(ctx: XdpContext) -> u32 {
    trace::arrives(&ctx);
    let mut frame = Frame::new(&ctx);
    let step = enter(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Reply`](lb_common::stage::Stage::Reply).
#[xdp(frags)]
pub fn lb_reply(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = reply(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Attend`](lb_common::stage::Stage::Attend).
#[xdp(frags)]
pub fn lb_attend(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = attend(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Session`](lb_common::stage::Stage::Session).
#[xdp(frags)]
pub fn lb_session(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = session(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Opening`](lb_common::stage::Stage::Opening).
#[xdp(frags)]
pub fn lb_opening(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = opening(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Begin`](lb_common::stage::Stage::Begin).
#[xdp(frags)]
pub fn lb_begin(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = begin(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Witness`](lb_common::stage::Stage::Witness).
#[xdp(frags)]
pub fn lb_witness(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = witness(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Carry`](lb_common::stage::Stage::Carry).
#[xdp(frags)]
pub fn lb_carry(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = carry(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Icmp`](lb_common::stage::Stage::Icmp).
#[xdp(frags)]
pub fn lb_icmp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = icmp(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Fragment`](lb_common::stage::Stage::Fragment).
#[xdp(frags)]
pub fn lb_fragment(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = fragment(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::FragmentReply`](lb_common::stage::Stage::FragmentReply).
#[xdp(frags)]
pub fn lb_fragment_reply(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = fragment_reply(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::TooBig`](lb_common::stage::Stage::TooBig).
#[xdp(frags)]
pub fn lb_too_big(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = too_big(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::SessionIcmp`](lb_common::stage::Stage::SessionIcmp).
#[xdp(frags)]
pub fn lb_session_icmp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = session_icmp(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::SessionFragment`](lb_common::stage::Stage::SessionFragment).
#[xdp(frags)]
pub fn lb_session_fragment(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = session_fragment(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Guard`](lb_common::stage::Stage::Guard).
#[xdp(frags)]
pub fn lb_guard(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = guard(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Host`](lb_common::stage::Stage::Host).
#[xdp(frags)]
pub fn lb_host(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let step = host(&frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// [`Stage::Quic`](lb_common::stage::Stage::Quic).
#[xdp(frags)]
pub fn lb_quic(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let step = quic(&mut frame, &Kernel);
    leave(&ctx, &frame, step)
}

/// The end of a program: of the road, or of a part of it.
#[inline(always)]
fn leave(ctx: &XdpContext, frame: &Frame, step: Result<Step, Reason>) -> u32 {
    let verdict = match step {
        Ok(Step::End(verdict)) => verdict,
        Ok(Step::Next(stage)) => {
            trace::goes_on(ctx, stage);
            jump(ctx, stage);
            // Still here: there is no such program in the array.
            Verdict::of(Reason::NoTable)
        }
        Err(reason) => Verdict::of(reason),
    };
    Kernel.count(frame.ifindex(), &verdict);
    trace::ends(ctx, &verdict);
    debug!(ctx, "reason {} ifindex {} -> {}", verdict.reason as u8, frame.ifindex(), verdict.ifindex);
    act(ctx, frame, &verdict)
}

#[inline(always)]
fn act(ctx: &XdpContext, frame: &Frame, verdict: &Verdict) -> u32 {
    match verdict.reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Transmit if verdict.ifindex == frame.ifindex() => XDP_TX,
        Action::Transmit => match maps::EGRESS.redirect(verdict.ifindex, XDP_DROP.into()) {
            Ok(action) => action,
            Err(_) => lb_depart(ctx.ctx, verdict.ifindex, verdict.reason as u64),
        },
    }
}

/// The end of the road of frames that are not listed to leave by their interface as they are: it is a VLAN device, or they have
/// tags. As a function of its own in the kernel's eyes ("global"): all programs pay no more than its call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_depart(ctx: *mut xdp_md, ifindex: u32, reason: u64) -> u32 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    let departed = depart(&mut frame, &Kernel, ifindex).and_then(|below| {
        if below == frame.ifindex() {
            return Ok(XDP_TX);
        }
        match maps::EGRESS.redirect(below, XDP_DROP.into()) {
            Ok(action) => Ok(action),
            Err(_) => hand_up(&mut frame, &Kernel, Reason::of(reason)).map(|()| XDP_PASS),
        }
    });
    match departed {
        Ok(action) => action,
        Err(reason) => {
            // Beside what it was counted as before: it was on its way.
            Kernel.count(frame.ifindex(), &Verdict::of(reason));
            XDP_DROP
        }
    }
}

/// The other end of `dsr-ipip` and `dsr-gue`, for backends whose kernel has no tunnel device.
#[xdp(frags)]
pub fn lb_decap(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let outcome = match maps::DECAP.get(0) {
        Some(allowed) => decapsulate(&mut frame, allowed),
        None => Decapsulated::NotOurs,
    };
    if let Some(counters) = maps::DECAP_COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU element, and a program is not preempted by itself.
        bump(unsafe { &mut *counters }.get_mut(outcome as usize));
    }
    match outcome {
        Decapsulated::NotOurs | Decapsulated::Inner => XDP_PASS,
        Decapsulated::Refused | Decapsulated::Malformed | Decapsulated::Congested => XDP_DROP,
    }
}

// "Dual" is what the kernel calls it; the helpers for GPL programs accept it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: a call of this function is a loop that the verifier refuses.
    loop {}
}
