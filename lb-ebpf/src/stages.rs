//! From one program to the next.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::XdpContext;
use lb_common::stage::Stage;

use crate::maps;

/// Goes on with the program of `stage`, and does not return; unless there is none.
#[inline(always)]
pub fn jump(ctx: &XdpContext, stage: Stage) {
    match stage {
        Stage::Reply => jump_to::<{ Stage::Reply as u32 }>(ctx),
        Stage::Attend => jump_to::<{ Stage::Attend as u32 }>(ctx),
        Stage::Session => jump_to::<{ Stage::Session as u32 }>(ctx),
        Stage::Opening => jump_to::<{ Stage::Opening as u32 }>(ctx),
        Stage::Begin => jump_to::<{ Stage::Begin as u32 }>(ctx),
        Stage::Witness => jump_to::<{ Stage::Witness as u32 }>(ctx),
        Stage::Carry => jump_to::<{ Stage::Carry as u32 }>(ctx),
        Stage::Icmp => jump_to::<{ Stage::Icmp as u32 }>(ctx),
        Stage::Fragment => jump_to::<{ Stage::Fragment as u32 }>(ctx),
        Stage::FragmentReply => jump_to::<{ Stage::FragmentReply as u32 }>(ctx),
        Stage::TooBig => jump_to::<{ Stage::TooBig as u32 }>(ctx),
        Stage::SessionIcmp => jump_to::<{ Stage::SessionIcmp as u32 }>(ctx),
        Stage::SessionFragment => jump_to::<{ Stage::SessionFragment as u32 }>(ctx),
        Stage::Guard => jump_to::<{ Stage::Guard as u32 }>(ctx),
        Stage::Host => jump_to::<{ Stage::Host as u32 }>(ctx),
        Stage::Quic => jump_to::<{ Stage::Quic as u32 }>(ctx),
    }
}

/// `bpf_tail_call` with an index that the verifier sees: the kernel makes a plain jump of it. (LLVM would make one call of
/// all, with the index in a register: an indirect jump, which costs several times as much.)
#[inline(always)]
fn jump_to<const INDEX: u32>(ctx: &XdpContext) {
    // SAFETY: the helper's three arguments; it takes registers r0 to r5, and no memory of ours.
    unsafe {
        asm!(
            "r3 = {index}",
            "call 12",
            index = const INDEX,
            in("r1") ctx.as_ptr(),
            in("r2") &raw const maps::STAGES,
            lateout("r0") _,
            lateout("r1") _,
            lateout("r2") _,
            out("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        );
    }
}
