//! Functions of their own in the kernel's eyes ("global"): each is verified once, for whatever its arguments may be, so that its
//! ways are not multiplied with those of its callers; and each has a stack of its own, of the 512 bytes that a chain of calls may have.
//!
//! They take and return what fits into registers, or a key. Behind the trait [`Tables`](lb_common::pipeline::Tables) nobody sees that
//! a call leads here.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::FlowKey;
use lb_common::fault;
use lb_common::guard::{self, Asked};
use lb_common::handshake;
use lb_common::limit::{self, Segment};
use lb_common::measure::Reply;
use lb_common::parse::{Family, Kind, Network};
use lb_common::pipeline::send;
use lb_common::quic;
use lb_common::retry;
use lb_common::select::{Place, peek, select, select_bare};
use lb_common::session::{Session, find_way, ports};
use lb_common::verdict::Reason;

use crate::maps;
use crate::packet::Frame;
use crate::tables::Kernel;

/// A global function's argument, on its own stack: before Linux 6.2 no helper takes a key from where the verifier lets such
/// an argument point.
#[inline(always)]
fn copied(key: *const FlowKey) -> Option<FlowKey> {
    // SAFETY: the verifier takes it for null or valid; its alignment is the caller's.
    unsafe { key.as_ref() }.copied()
}

/// No [`Place`] looks like this.
pub const NO_TABLE: u64 = u64::MAX;

/// The selection rule for flows whose hash alone does not say it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_select(key: *const FlowKey, kind: u32, sequence: u32) -> u64 {
    let Some(key) = copied(key) else { return NO_TABLE };
    let Some(service) = maps::SERVICES.get(key.owner) else { return NO_TABLE };
    let choice = select_bare(&Kernel, service, &key, kind_of(kind, sequence));
    choice.map_or(NO_TABLE, |choice| Place::from(choice).pack())
}

/// The whole rule.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_select_attended(key: *const FlowKey, kind: u32, sequence: u32) -> u64 {
    let Some(key) = copied(key) else { return NO_TABLE };
    let Some(service) = maps::SERVICES.get(key.owner) else { return NO_TABLE };
    let choice = select(&Kernel, service, &key, kind_of(kind, sequence));
    choice.map_or(NO_TABLE, |choice| Place::from(choice).pack())
}

/// A kind as two words.
#[inline(always)]
pub const fn words_of(kind: Kind) -> (u32, u32) {
    match kind {
        Kind::Syn(sequence) => (0, sequence),
        Kind::Tcp(sequence) => (1, sequence),
        Kind::Rst => (2, 0),
        Kind::Udp => (3, 0),
    }
}

/// What [`words_of`] made.
#[inline(always)]
const fn kind_of(kind: u32, sequence: u32) -> Kind {
    match kind {
        0 => Kind::Syn(sequence),
        1 => Kind::Tcp(sequence),
        2 => Kind::Rst,
        _ => Kind::Udp,
    }
}

/// What faults do to a SYN; 0: nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_injected(key: *const FlowKey, pool: u32, backend: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    fault::injected(&Kernel, service, &key, pool as u16, backend as u16).unwrap_or(0)
}

/// [`send`], with a stack that whoever finds places need not share. Returns `interface << 32 | reason`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_send(ctx: *mut xdp_md, service: u32, place: u64) -> u64 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    match send(&mut frame, &Kernel, service, &Place::unpack(place)) {
        Ok(verdict) => u64::from(verdict.ifindex) << 32 | verdict.reason as u64,
        Err(reason) => reason as u64,
    }
}

/// Whom a connection id names: a word of [`quic::find`], whose loops decrypt.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_server(query: *const quic::Query) -> u32 {
    // SAFETY: the verifier takes it for null or valid; its alignment is the caller's.
    let Some(query) = (unsafe { query.as_ref() }) else { return quic::found::NOBODY };
    quic::find(&Kernel, query)
}

/// The rule for what is about a flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_peek(key: *const FlowKey) -> u64 {
    let Some(key) = copied(key) else { return NO_TABLE };
    let Some(service) = maps::SERVICES.get(key.owner) else { return NO_TABLE };
    peek(&Kernel, service, &key).map_or(NO_TABLE, Place::pack)
}

/// Whether a SYN was there before. What this and those below are together is [`handshake::begins`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_known(key: *const FlowKey, sequence: u32, backend: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    handshake::is_known(&Kernel, &key, sequence, backend as u16).into()
}

/// [`handshake::first`]; it takes and returns a packed [`Place`], and so do those below.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_first(key: *const FlowKey, sequence: u32, place: u64) -> u64 {
    let Some(key) = copied(key) else { return place };
    let Some(service) = maps::SERVICES.get(key.owner) else { return place };
    handshake::first(&Kernel, service, &key, sequence, Place::unpack(place)).pack()
}

/// [`handshake::repeats`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_repeats(key: *const FlowKey, sequence: u32, backend: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    handshake::repeats(&Kernel, service, &key, sequence, backend as u16).into()
}

/// [`handshake::moves`], of a packed [`Place`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_moves(key: *const FlowKey, sequence: u32, place: u64) -> u64 {
    let Some(key) = copied(key) else { return place };
    let Some(service) = maps::SERVICES.get(key.owner) else { return place };
    handshake::moves(&Kernel, service, &key, sequence, Place::unpack(place)).pack()
}

/// [`retry::another`]: its probes, for whoever needs another backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_another(key: *const FlowKey, not: u32, tries: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    retry::another(&Kernel, service, &key, not as u16, tries as u8).into()
}

/// [`limit::judge`], of a backend's id.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_judge(key: *const FlowKey, backend: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    limit::judge(&Kernel, service, &key, backend as u16) as u32
}

/// [`limit::spill`]. Returns the other backend; 0: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_spill(key: *const FlowKey, sequence: u32, backend: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    limit::spill(&Kernel, service, &key, sequence, backend as u16).map_or(0, u32::from)
}

/// [`handshake::replies`]. `reply`: the backend's id in the lower half; above it 1 answers a SYN, 2 resets, 4 has data. Returns 0, or why
/// the client must not see it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_replies(key: *const FlowKey, reply: u32, sequence: u32, acknowledged: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    let (backend, flags) = (reply as u16, reply >> 16);
    let reply = Reply {
        backend,
        answers: flags & 1 != 0,
        resets: flags & 2 != 0,
        data: flags & 4 != 0,
        sequence,
        acknowledged,
    };
    match handshake::replies(&Kernel, service, &key, reply) {
        Ok(()) => 0,
        Err(Reason::RefusalKept) => 1,
        Err(_) => 2,
    }
}

/// [`limit::passes`]. `what`: the backend's id in the lower half; above it the segment's flags.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_passes(key: *const FlowKey, what: u32, sequence: u32, acknowledged: u32) -> u32 {
    let Some(key) = copied(key) else { return 0 };
    let Some(service) = maps::SERVICES.get(key.owner) else { return 0 };
    let segment = Segment { sequence, acknowledged, flags: (what >> 16) as u8 };
    limit::passes(&Kernel, service, &key, what as u16, segment);
    0
}

/// [`guard::listed`], for those whose stack has no room for the rates.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_listed(key: *const FlowKey, asked: u32) -> u64 {
    let Some(key) = copied(key) else { return Reason::NoTable as u64 };
    match guard::listed(&Kernel, &key, Asked(asked)) {
        Ok(()) => Reason::Forwarded as u64,
        Err(reason) => reason as u64,
    }
}

/// [`guard::admits`]. Returns the reason: forwarded, if it may go on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_admits(key: *const FlowKey, asked: u32) -> u64 {
    let Some(key) = copied(key) else { return Reason::NoTable as u64 };
    match guard::admits(&Kernel, &key, Asked(asked)) {
        Ok(()) => Reason::Forwarded as u64,
        Err(reason) => reason as u64,
    }
}

/// A port for the draft of this CPU.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_reserve(hash: u64) -> u32 {
    let Some(settings) = maps::SETTINGS.get(0) else { return 0 };
    let Some(draft) = maps::DRAFTS.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU element, whose other user waits for us.
    ports::reserve(&Kernel, settings, unsafe { &mut *draft }, hash).into()
}

/// [`find_way`]: what the routes are asked with lies on its stack, not on that of the whole road. `what`: the packet's length, above it its protocol, above that whether it is IPv6. Returns the
/// reason: forwarded, or to be replied by the host, which finds the next hop.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_way(ctx: *mut xdp_md, session: *mut Session, what: u32) -> u64 {
    // SAFETY: the verifier takes it for null or valid; an element of the map is aligned, and lives until the program ends.
    let Some(session) = (unsafe { session.as_mut() }) else { return Reason::NoTable as u64 };
    let frame = Frame::new(&XdpContext::new(ctx));
    let network = Network {
        family: if what >> 24 != 0 { Family::V6 } else { Family::V4 },
        l3: 0,
        next: 0,
        end: (what & 0xffff) as usize,
        protocol: (what >> 16) as u8,
        fragment: false,
        source: session.source,
        destination: session.destination,
    };
    match find_way(&frame, &Kernel, &network, session) {
        Ok(true) => Reason::Forwarded as u64,
        Ok(false) => Reason::RepliedByHost as u64,
        Err(reason) => reason as u64,
    }
}
