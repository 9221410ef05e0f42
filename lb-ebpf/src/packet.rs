//! A frame in the driver's memory: the one bounds check.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Address;
use lb_common::checksum::is_right;
use lb_common::fragment::leads;
use lb_common::guard::may_reset;
use lb_common::parse::{self, Family, Network, extensions};
use lb_common::pipeline::Packet;
use lb_common::rewrite::{self, clamp};
use lb_common::session::toa::is_claimed;
use lb_common::too_big::sum;
use lb_common::verdict::Reason;
use lb_common::wire::Wire;

use crate::tables::Kernel;
use crate::verifier::bounded;

/// No header starts beyond this: any chain of extension headers is shorter. (The verifier follows no offset beyond 64 KiB.)
const MAX_OFFSET: u32 = 0x3fff;

/// The linear part of a frame. (Headers are in it; the rest of a jumbo frame may lie in further buffers.)
pub struct Frame {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, start: ctx.data(), end: ctx.data_end() }
    }

    pub fn context(&self) -> *mut xdp_md {
        self.ctx
    }

    /// The one bounds check. The verifier follows it as long as start and end are compared as they come.
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let first = self.start + offset;
        // SAFETY: it is an address. (LLVM would ask `None` or `Some` by comparing it with null, after arithmetic, which the
        // verifier allows only to those with CAP_PERFMON.)
        unsafe { core::hint::assert_unchecked(first != 0) };
        (first + T::SIZE <= self.end).then_some(first as *mut T)
    }

    /// [`rewrite::reset`], of a segment that may be answered.
    #[inline(always)]
    pub fn reset(&mut self) -> Result<(), Reason> {
        let reason = Reason::of(lb_reset(self.ctx));
        self.refresh();
        if reason == Reason::Forwarded { Ok(()) } else { Err(reason) }
    }

    /// Every helper that moves an end invalidates what is known of both.
    #[inline(always)]
    fn refresh(&mut self) {
        let ctx = XdpContext::new(self.ctx);
        (self.start, self.end) = (ctx.data(), ctx.data_end());
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn view<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: in bounds; `Wire` types have alignment 1 and no invalid bit patterns; nobody else has the frame.
        self.at(offset).map(|header| unsafe { &*header })
    }

    #[inline(always)]
    fn view_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above, and `&mut self` keeps other views away.
        self.at(offset).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn bounded(&self, offset: usize) -> usize {
        bounded::<MAX_OFFSET>(offset)
    }

    #[inline(always)]
    fn reaches(&self, length: usize) -> bool {
        // Headers, and a length of 16 bits.
        let length = bounded::<0x1_ffff>(length);
        // SAFETY: the context is the kernel's.
        self.start + length <= self.end || length as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }

    #[inline(always)]
    fn past_extensions(&self, protocol: u8, offset: usize) -> Result<(u8, usize), Reason> {
        let packed = lb_extensions(self.ctx, protocol, offset as u32);
        let (kind, protocol, offset) =
            (packed >> 32, packed as u8, (packed >> 8) as usize & MAX_OFFSET as usize);
        match kind {
            0 => Ok((protocol, offset)),
            1 => Err(Reason::Fragment),
            2 => Err(Reason::OtherProtocol),
            _ => Err(Reason::Malformed),
        }
    }

    #[inline(always)]
    fn leads(&self, network: &Network) -> Result<(u8, usize), Reason> {
        let family = u32::from(matches!(network.family, Family::V6));
        let what = u32::from(network.protocol) | family << 8 | u32::from(network.fragment) << 9;
        let packed = lb_leads(self.ctx, what, network.l3 as u32, network.next as u32, network.end as u32);
        let (protocol, offset) = (packed as u8, (packed >> 8) as usize & MAX_OFFSET as usize);
        match packed >> 32 {
            0 => Ok((protocol, offset)),
            1 => Err(Reason::TooBig),
            2 => Err(Reason::OtherProtocol),
            3 => Err(Reason::Fragment),
            _ => Err(Reason::Malformed),
        }
    }

    #[inline(always)]
    fn sum(&self, start: usize, length: usize) -> Result<u64, Reason> {
        match lb_sum(self.ctx, start as u32, length as u32) {
            NO_SUM => Err(Reason::TooBig),
            sum => Ok(sum),
        }
    }

    #[inline(always)]
    fn clamp(&mut self, hops: usize, l4: usize, limit: u16) {
        lb_clamp(self.ctx, hops as u32, l4 as u32, limit.into());
    }

    #[inline(always)]
    fn is_summed(&self, start: usize, end: usize, pseudo: u64) -> bool {
        lb_is_summed(self.ctx, start as u32, end as u32, pseudo) != 0
    }

    #[inline(always)]
    fn is_claimed(&self, l4: usize, end: usize) -> bool {
        lb_is_claimed(self.ctx, l4 as u32, end as u32) != 0
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: the context is the kernel's; what was known of the frame is refreshed below.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, -(bytes as i32)) };
        self.refresh();
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, bytes as i32) };
        self.refresh();
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Option<()> {
        // SAFETY: as above.
        let result = unsafe {
            let now = bpf_xdp_get_buff_len(self.ctx);
            bpf_xdp_adjust_tail(self.ctx, length as i32 - now as i32)
        };
        self.refresh();
        (result == 0).then_some(())
    }
}

/// A RST as the answer, as a function of its own in the kernel's eyes ("global"): it parses the packet again, and shares
/// its stack with nobody. Returns the reason: forwarded, if that is what the packet is now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_reset(ctx: *mut xdp_md) -> u64 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    let Ok(network) = parse::network(&frame) else { return Reason::Malformed as u64 };
    let Ok(transport) = parse::transport(&frame, &network) else { return Reason::Malformed as u64 };
    if let Err(reason) = may_reset(&frame, &Kernel, &network) {
        return reason as u64;
    }
    match rewrite::reset(&mut frame, &network, &transport) {
        Ok(()) => Reason::Forwarded as u64,
        Err(reason) => reason as u64,
    }
}

/// No sum of a packet's words is that large.
const NO_SUM: u64 = u64::MAX;

/// The sum of what a message quotes, as a function of its own in the kernel's eyes: each round of its loop may be the last,
/// and none of that is multiplied with what follows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_sum(ctx: *mut xdp_md, start: u32, length: u32) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if start > 128 {
        return NO_SUM;
    }
    sum(&frame, start as usize, length as usize).unwrap_or(NO_SUM)
}

/// Whether the sum of a segment is right, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_summed(ctx: *mut xdp_md, start: u32, end: u32, pseudo: u64) -> u32 {
    let frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if start > 0x3fff {
        return 1;
    }
    is_right(&frame, start as usize, end as usize, pseudo).into()
}

/// TCP's options, likewise: each may be as long as it likes. (A function that returns nothing would not be global.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_clamp(ctx: *mut xdp_md, hops: u32, l4: u32, limit: u32) -> u32 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if hops > 128 || l4 > 0x3fff {
        return 0;
    }
    clamp(&mut frame, hops as usize, l4 as usize, limit as u16);
    0
}

/// Whether options of TCP claim whose a segment is, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_claimed(ctx: *mut xdp_md, l4: u32, end: u32) -> u32 {
    let frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if l4 > 0x3fff {
        return 1;
    }
    is_claimed(&frame, l4 as usize, end as usize).into()
}

/// IPv6's extension headers, as a function of its own in the kernel's eyes ("global"): verified once, for any start, so
/// that the thousands of ways through the chain are not multiplied with all that follows.
///
/// Returns `outcome << 32 | offset << 8 | protocol`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_extensions(ctx: *mut xdp_md, protocol: u8, offset: u32) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if offset > 128 {
        return 3 << 32;
    }
    match extensions(&frame, protocol, offset as usize) {
        Ok((protocol, offset)) => (offset as u64 & u64::from(MAX_OFFSET)) << 8 | u64::from(protocol),
        Err(Reason::Fragment) => 1 << 32,
        Err(Reason::OtherProtocol) => 2 << 32,
        Err(_) => 3 << 32,
    }
}

/// Where a packet's transport header is if it may be a fragment, likewise. `what`: the protocol; above it whether it is IPv6, and
/// whether IPv4 says that it is a fragment.
///
/// Returns `outcome << 32 | offset << 8 | protocol`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_leads(ctx: *mut xdp_md, what: u32, l3: u32, next: u32, end: u32) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    // For the verifier, which knows nothing of the caller.
    if l3 > 128 || next > 128 {
        return 4 << 32;
    }
    let network = Network {
        family: if what & 1 << 8 != 0 { Family::V6 } else { Family::V4 },
        l3: l3 as usize,
        next: next as usize,
        end: end as usize,
        protocol: what as u8,
        fragment: what & 1 << 9 != 0,
        source: Address::default(),
        destination: Address::default(),
    };
    match leads(&frame, &network) {
        Ok((protocol, offset)) => (offset as u64 & u64::from(MAX_OFFSET)) << 8 | u64::from(protocol),
        Err(Reason::TooBig) => 1 << 32,
        Err(Reason::OtherProtocol) => 2 << 32,
        Err(Reason::Fragment) => 3 << 32,
        Err(_) => 4 << 32,
    }
}
