//! The tables of `lb-common` over maps.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
use aya_ebpf::maps::lpm_trie::Key;
use lb_common::abi::{
    Address, Backend, Device, FAULTS, Fault, FlowEntry, FlowKey, FragmentEntry, FragmentKey, GuestKey,
    HalfOpen, Replier, Service, Settings, Slot, Traffic, VipKey,
};
use lb_common::awaited::SHARED;
use lb_common::guard::{self, Asked, Guard, Message, Rule, Source, SourceKey};
use lb_common::limit::{Admission, Limit, Open, Segment, Whose};
use lb_common::measure::{Handshake, Measure, Reply};
use lb_common::parse::{Family, Kind, Network};
use lb_common::pipeline::{Route, Tables};
use lb_common::quic;
use lb_common::retry::Budget;
use lb_common::select::{Place, settled};
use lb_common::session::{Draft, Held, Session, SessionKey};
use lb_common::too_big::admit;
use lb_common::verdict::{Account, Counters, Event, Reason, Verdict};
use lb_common::vlan::Vlan;
use lb_common::watch::Word;

use crate::global::{
    NO_TABLE, lb_admits, lb_another, lb_first, lb_injected, lb_judge, lb_known, lb_listed, lb_moves,
    lb_passes, lb_peek, lb_repeats, lb_replies, lb_reserve, lb_select, lb_select_attended, lb_send,
    lb_server, lb_spill, lb_way, words_of,
};
use crate::maps;
use crate::packet::Frame;
use crate::routes;
use crate::verifier::bounded;

/// No reason's number has other bits.
const REASONS_MASK: u32 = 63;
const _: () = assert!(Reason::COUNT <= REASONS_MASK as usize + 1);

/// The maps.
pub struct Kernel;

impl Kernel {
    /// Counts the end of the road of a packet that came in by that interface.
    #[inline(always)]
    pub fn count(&self, ifindex: u32, verdict: &Verdict) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(Counters::place(ifindex)) {
            // SAFETY: a per-CPU element, and a program is not preempted by itself.
            let reasons = unsafe { &mut (*counters).reasons };
            // What a global function returned is any number to the verifier, and LLVM would leave the check out.
            bump(reasons.get_mut(bounded::<REASONS_MASK>(verdict.reason as usize)));
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

/// Sets a word to `new` if it is `old`. Returns whether it was. (rustc knows no compare-and-swap for BPF.)
///
/// # Safety
///
/// An aligned word of a map's living element.
#[inline(always)]
unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's; the instruction takes what is expected in r0, and leaves what it found there.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => found,
        );
    }
    found == old
}

/// A word of a measure.
#[inline(always)]
fn measure_word(measure: u32, offset: usize) -> Option<*mut u64> {
    let measure = maps::MEASURES.get_ptr_mut(measure)?;
    // SAFETY: every offset is one of a word of `Measure`; the verifier checks it.
    Some(unsafe { measure.byte_add(offset) }.cast())
}

/// The element of whoever is limited.
#[inline(always)]
fn limit_of(whose: Whose) -> Option<*mut Limit> {
    match whose {
        Whose::Backend(id) => maps::LIMITS.get_ptr_mut(id.into()),
        Whose::Pool(index) => maps::POOL_LIMITS.get_ptr_mut(index.into()),
    }
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
    fn flow_as_it_is(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry> {
        // SAFETY: as above.
        unsafe { flows!(udp).get(key) }.copied()
    }

    #[inline(always)]
    fn keep_flow(&self, key: &FlowKey, udp: bool, backend: u16, generation: u32) -> bool {
        let entry = FlowEntry::of(backend, generation, self.ticks());
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
    fn quic_config(&self, key: &quic::ConfigKey) -> Option<&quic::Config> {
        // SAFETY: an element lives until the program ends. One that changes meanwhile names nobody, or whom it named before.
        unsafe { maps::QUIC_CONFIGS.get(key) }
    }

    #[inline(always)]
    fn quic_server(&self, key: &quic::ServerKey) -> Option<quic::Server> {
        // SAFETY: as for flows: it is judged by its generation.
        unsafe { maps::QUIC_SERVERS.get(key) }.copied()
    }

    #[inline(always)]
    fn find_server(&self, query: &quic::Query) -> u32 {
        lb_server(query)
    }

    #[inline(always)]
    fn fragments(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        // SAFETY: as for flows; fragments that meet a note in the making are judged by its time and generation.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn note_fragments(&self, key: &FragmentKey, entry: &FragmentEntry) {
        let event = if maps::FRAGMENTS.insert(key, entry, 0).is_ok() {
            Event::FragmentsNoted
        } else {
            Event::TrackFailed
        };
        self.event(event);
    }

    #[inline(always)]
    fn admits_message(&self, message: Message, interval: u32) -> bool {
        let Some(bucket) = maps::MESSAGES.get_ptr_mut(message as u32) else { return false };
        // SAFETY: a per-CPU element, and a program is not preempted by itself.
        let bucket = unsafe { &mut *bucket };
        let Some(next) = admit(*bucket, self.clock(), interval) else { return false };
        *bucket = next;
        true
    }

    #[inline(always)]
    fn reset(&self, frame: &mut Frame, _: &Network) -> Result<(), Reason> {
        frame.reset()
    }

    #[inline(always)]
    fn admits(&self, key: &FlowKey, asked: Asked) -> Result<(), Reason> {
        match Reason::of(lb_admits(key, asked.0)) {
            Reason::Forwarded => Ok(()),
            reason => Err(reason),
        }
    }

    #[inline(always)]
    fn listed(&self, key: &FlowKey, asked: Asked) -> Result<(), Reason> {
        match Reason::of(lb_listed(key, asked.0)) {
            Reason::Forwarded => Ok(()),
            reason => Err(reason),
        }
    }

    #[inline(always)]
    fn guard(&self, service: u32) -> Option<&Guard> {
        maps::GUARDS.get(service)
    }

    #[inline(always)]
    fn rule(&self, client: &GuestKey) -> Option<Rule> {
        // SAFETY: as for guests.
        let key = unsafe { &*(&raw const *client).cast::<Key<[u32; 5]>>() };
        maps::RULES.get(key).map(|value| Rule::of(*value))
    }

    #[inline(always)]
    fn vip_rules(&self, vip: &Address) -> Option<u32> {
        // SAFETY: the value is one word.
        unsafe { maps::VIP_RULES.get(vip) }.copied()
    }

    /// New connections, then packets.
    type Dues<'a> = *mut u64;

    #[inline(always)]
    fn dues(&self, service: u32) -> Option<*mut u64> {
        let guard = maps::GUARDS.get_ptr_mut(service)?;
        // SAFETY: within the element, as the verifier checks.
        Some(unsafe { &raw mut (*guard).connections_due })
    }

    #[inline(always)]
    fn source(&self, key: &SourceKey) -> Option<*mut u64> {
        let known = maps::SOURCES.get_ptr_mut(key);
        let source = match known {
            Some(source) => source,
            None => {
                // Not on the stack: LLVM would have it zeroed by a call of `memset`, and one frame more is too much for whoever asks
                // with a full stack (Linux 6.1 counts 32 bytes for it).
                static NEW: Source = Source { connections_due: 0, packets_due: 0 };
                let new: &Source = &NEW;
                // If another CPU was faster, it is there all the same.
                let _ = maps::SOURCES.insert(key, new, BPF_NOEXIST.into());
                maps::SOURCES.get_ptr_mut(key)?
            }
        };
        // SAFETY: as above.
        Some(unsafe { &raw mut (*source).connections_due })
    }

    #[inline(always)]
    fn due(&self, dues: *mut u64, word: guard::Word) -> u64 {
        // SAFETY: an aligned word of an element, which lives until the program ends.
        unsafe { dues.add(word as usize).read_volatile() }
    }

    #[inline(always)]
    fn swap_due(&self, dues: *mut u64, word: guard::Word, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_and_swap(dues.add(word as usize), old, new) }
    }

    #[inline(always)]
    fn replier(&self, key: &VipKey) -> Option<Replier> {
        // SAFETY: as for VIPs.
        unsafe { maps::REPLIES.get(key) }.copied()
    }

    #[inline(always)]
    fn direct(&self, key: &FlowKey) -> Option<u32> {
        // SAFETY: the value is one word.
        unsafe { maps::DIRECT.get(key) }.copied()
    }

    #[inline(always)]
    fn note_direct(&self, key: &FlowKey, backend: &VipKey) {
        let now = self.ticks();
        if maps::DIRECT.insert(key, now, 0).is_err() {
            return self.event(Event::TrackFailed);
        }
        if let Some(replier) = maps::REPLIES.get_ptr_mut(backend) {
            // SAFETY: an aligned word of a living element. Whichever CPU is the last writes the same tick, or the next.
            unsafe { (&raw mut (*replier).direct).write_volatile(now.max(1)) };
        }
    }

    #[inline(always)]
    fn forget_direct(&self, key: &FlowKey) {
        // A look-up takes no lock, and hardly any flow is there.
        if maps::DIRECT.get_ptr(key).is_some() {
            let _ = maps::DIRECT.remove(key);
        }
    }

    type Entry<'a> = &'a Session;

    #[inline(always)]
    fn session(&self, held: Held, key: &SessionKey) -> Option<&Session> {
        // SAFETY: an element lives until the program ends, even if it is deleted meanwhile. If it is given to another session
        // in that time, it does not lead back to the key that it was found by.
        unsafe {
            match held {
                Held::Opening => maps::OPENING.get(key),
                Held::Established => maps::SESSIONS.get(key),
            }
        }
    }

    type EntryMut<'a> = &'a mut Session;

    #[inline(always)]
    fn session_mut(&self, held: Held, key: &SessionKey) -> Option<&mut Session> {
        let session = match held {
            Held::Opening => maps::OPENING.get_ptr_mut(key),
            Held::Established => maps::SESSIONS.get_ptr_mut(key),
        }?;
        // SAFETY: as above. A flow's packets of one direction come one after the other; where they do not, the words that
        // change hold the same for all of them.
        Some(unsafe { &mut *session })
    }

    #[inline(always)]
    fn keep_session(&self, held: Held, key: &SessionKey, session: &Session, only_new: bool) -> bool {
        let flags = if only_new { BPF_NOEXIST } else { BPF_ANY }.into();
        match held {
            Held::Opening => maps::OPENING.insert(key, session, flags).is_ok(),
            Held::Established => maps::SESSIONS.insert(key, session, flags).is_ok(),
        }
    }

    #[inline(always)]
    fn drop_session(&self, held: Held, key: &SessionKey) {
        // Gone already is as good.
        let _ = match held {
            Held::Opening => maps::OPENING.remove(key),
            Held::Established => maps::SESSIONS.remove(key),
        };
    }

    #[inline(always)]
    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R> {
        // SAFETY: a per-CPU element, and a program is not preempted by itself.
        maps::DRAFTS.get_ptr_mut(0).map(|draft| act(unsafe { &mut *draft }))
    }

    #[inline(always)]
    fn reserve(&self, _: &Settings, draft: &mut Draft, hash: u64) -> bool {
        let draft = &raw mut *draft;
        // SAFETY: nothing at all. The function reaches the draft by itself; it has to be all there before, and is another one after.
        unsafe { asm!("{draft} = {draft}", draft = in(reg) draft) };
        let found = lb_reserve(hash) != 0;
        // SAFETY: as above.
        unsafe { asm!("{draft} = {draft}", draft = in(reg) draft) };
        found
    }

    #[inline(always)]
    fn cpu(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_smp_processor_id() }
    }

    #[inline(always)]
    fn find_way(&self, frame: &Frame, network: &Network, session: &mut Session) -> Result<bool, Reason> {
        let length = (network.end - network.l3) as u32 & 0xffff;
        let v6 = u32::from(matches!(network.family, Family::V6));
        let what = length | u32::from(network.protocol) << 16 | v6 << 24;
        match Reason::of(lb_way(frame.context(), session, what)) {
            Reason::Forwarded => Ok(true),
            Reason::RepliedByHost => Ok(false),
            reason => Err(reason),
        }
    }

    #[inline(always)]
    fn route(&self, frame: &Frame, network: &Network) -> Route {
        routes::route(frame, network)
    }

    #[inline(always)]
    fn vlan(&self, ifindex: u32) -> Option<Vlan> {
        // SAFETY: two words that the agent replaces as one element; one that is replaced meanwhile stays as it was.
        unsafe { maps::VLANS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn path_mtu(&self, frame: &Frame, network: &Network) -> u16 {
        routes::path_mtu(frame, network)
    }

    #[inline(always)]
    fn place(&self, service: &Service, key: &FlowKey, kind: Kind) -> Result<Place, Reason> {
        if let Some(choice) = settled(self, service, key, kind)? {
            return Ok(choice.into());
        }
        let (kind, sequence) = words_of(kind);
        match lb_select(key, kind, sequence) {
            NO_TABLE => Err(Reason::NoTable),
            packed => Ok(Place::unpack(packed)),
        }
    }

    #[inline(always)]
    fn send(&self, frame: &mut Frame, service: u32, place: Place) -> Result<u32, Reason> {
        let packed = lb_send(frame.context(), service, place.pack());
        match Reason::of(packed & u64::from(u32::MAX)) {
            Reason::Forwarded => Ok((packed >> 32) as u32),
            reason => Err(reason),
        }
    }

    #[inline(always)]
    fn peek(&self, _: &Service, key: &FlowKey) -> Result<Place, Reason> {
        match lb_peek(key) {
            NO_TABLE => Err(Reason::NoTable),
            packed => Ok(Place::unpack(packed)),
        }
    }

    #[inline(always)]
    fn place_attended(&self, _: &Service, key: &FlowKey, kind: Kind) -> Result<Place, Reason> {
        let (kind, sequence) = words_of(kind);
        match lb_select_attended(key, kind, sequence) {
            NO_TABLE => Err(Reason::NoTable),
            packed => Ok(Place::unpack(packed)),
        }
    }

    #[inline(always)]
    fn guest(&self, client: &GuestKey) -> bool {
        // SAFETY: both are a length in bits and five words; the trie's own type is packed, which LLVM would fill byte by byte.
        let key = unsafe { &*(&raw const *client).cast::<Key<[u32; 5]>>() };
        maps::GUESTS.get(key).is_some()
    }

    #[inline(always)]
    fn faults(&self) -> Option<&[Fault; FAULTS]> {
        maps::FAULTS.get(0)
    }

    #[inline(always)]
    fn injected(&self, _: &Service, key: &FlowKey, pool: u16, backend: u16) -> Option<u32> {
        match lb_injected(key, pool.into(), backend.into()) {
            0 => None,
            action => Some(action),
        }
    }

    #[inline(always)]
    fn is_known(&self, key: &FlowKey, sequence: u32, backend: u16) -> bool {
        lb_known(key, sequence, backend.into()) != 0
    }

    #[inline(always)]
    fn first(&self, _: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
        Place::unpack(lb_first(key, sequence, place.pack()))
    }

    #[inline(always)]
    fn repeats(&self, _: &Service, key: &FlowKey, sequence: u32, backend: u16) -> bool {
        lb_repeats(key, sequence, backend.into()) != 0
    }

    #[inline(always)]
    fn moves(&self, _: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
        Place::unpack(lb_moves(key, sequence, place.pack()))
    }

    #[inline(always)]
    fn another(&self, _: &Service, key: &FlowKey, not: u16, tries: u8) -> u16 {
        lb_another(key, not.into(), tries.into()) as u16
    }

    #[inline(always)]
    fn judge(&self, _: &Service, key: &FlowKey, backend: u16) -> Admission {
        Admission::of(lb_judge(key, backend.into()))
    }

    #[inline(always)]
    fn spill(&self, _: &Service, key: &FlowKey, sequence: u32, backend: u16) -> u16 {
        lb_spill(key, sequence, backend.into()) as u16
    }

    #[inline(always)]
    fn replies(&self, _: &Service, key: &FlowKey, reply: Reply) -> Result<(), Reason> {
        let flags = u32::from(reply.answers) | u32::from(reply.resets) << 1 | u32::from(reply.data) << 2;
        match lb_replies(key, flags << 16 | u32::from(reply.backend), reply.sequence, reply.acknowledged) {
            0 => Ok(()),
            1 => Err(Reason::RefusalKept),
            _ => Err(Reason::Superseded),
        }
    }

    #[inline(always)]
    fn handshake(&self, key: &FlowKey) -> Option<Handshake> {
        // SAFETY: as for flows; the sequence number tells a handshake from another one.
        unsafe { maps::HANDSHAKES.get(key) }.copied()
    }

    #[inline(always)]
    fn keep_handshake(&self, key: &FlowKey, handshake: &Handshake) {
        if maps::HANDSHAKES.insert(key, handshake, 0).is_err() {
            self.event(Event::TrackFailed);
        }
    }

    #[inline(always)]
    fn note_state(&self, key: &FlowKey, state: u8) {
        let Some(handshake) = maps::HANDSHAKES.get_ptr_mut(key) else { return };
        // SAFETY: a byte of a living element.
        unsafe { (&raw mut (*handshake).state).write_volatile(state) };
    }

    #[inline(always)]
    fn note_drawn(&self, key: &FlowKey, drawn: u32) {
        let Some(handshake) = maps::HANDSHAKES.get_ptr_mut(key) else { return };
        // SAFETY: a word of a living element.
        unsafe { (&raw mut (*handshake).drawn).write_volatile(drawn) };
    }

    #[inline(always)]
    fn forget_handshake(&self, key: &FlowKey) {
        // Gone already is as good.
        let _ = maps::HANDSHAKES.remove(key);
    }

    #[inline(always)]
    fn awaited(&self, place: u32) -> u64 {
        // SAFETY: an aligned word of the map; others change it while we run.
        maps::AWAITED.get_ptr(place).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn swap_awaited(&self, place: u32, old: u64, new: u64) -> bool {
        // SAFETY: an aligned word of the map.
        maps::AWAITED.get_ptr_mut(place).is_some_and(|word| unsafe { compare_and_swap(word, old, new) })
    }

    #[inline(always)]
    fn share_awaited(&self, place: u32) {
        let Some(word) = maps::AWAITED.get_ptr_mut(place) else { return };
        // The bit first, for whoever else is awaited here; and last, as a sweep may have emptied the place before the 1 came.
        // SAFETY: as above; atomic, as other CPUs write, too.
        unsafe {
            asm!("lock *(u64 *)({word} + 0) |= {bit}", word = in(reg) word, bit = in(reg) SHARED);
            asm!("lock *(u64 *)({word} + 0) += {one}", word = in(reg) word, one = in(reg) 1u64);
            asm!("lock *(u64 *)({word} + 0) |= {bit}", word = in(reg) word, bit = in(reg) SHARED);
        }
    }

    #[inline(always)]
    fn count(&self, measure: u32, offset: usize) {
        let Some(word) = measure_word(measure, offset) else { return };
        // SAFETY: an aligned word of the map; atomic, as other CPUs count, too.
        unsafe { asm!("lock *(u64 *)({word} + 0) += {one}", word = in(reg) word, one = in(reg) 1u64) };
    }

    #[inline(always)]
    fn set(&self, measure: u32, offset: usize, bits: u64) -> bool {
        let Some(word) = measure_word(measure, offset) else { return true };
        // SAFETY: as above.
        unsafe {
            let before = word.read_volatile();
            if before & bits == bits {
                return true;
            }
            asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits);
        }
        false
    }

    #[inline(always)]
    fn swap(&self, measure: u32, offset: usize, old: u64, new: u64) -> bool {
        let Some(word) = measure_word(measure, offset) else { return false };
        // SAFETY: an aligned word of the map.
        unsafe { compare_and_swap(word, old, new) }
    }

    #[inline(always)]
    fn word(&self, measure: u32, offset: usize) -> u64 {
        // SAFETY: as above.
        measure_word(measure, offset).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn tally(&self, backend: u16, word: Word, by: u64) {
        let Some(watch) = maps::WATCHES.get_ptr_mut(backend.into()) else { return };
        // SAFETY: as above.
        unsafe {
            let word = watch.byte_add(word.offset()).cast::<u64>();
            asm!("lock *(u64 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by);
        }
    }

    #[inline(always)]
    fn end_row(&self, backend: u16, word: Word) {
        let Some(watch) = maps::WATCHES.get_ptr_mut(backend.into()) else { return };
        // SAFETY: as above. It is zero nearly always, and a line that nobody writes is shared by all CPUs.
        unsafe {
            let word = watch.byte_add(word.offset()).cast::<u64>();
            if word.read_volatile() != 0 {
                word.write_volatile(0);
            }
        }
    }

    #[inline(always)]
    fn budget(&self, service: u32) -> Option<Budget> {
        let budget = maps::BUDGETS.get_ptr(service)?;
        // SAFETY: an element of the map; each word is read in one piece.
        unsafe {
            let left = (&raw const (*budget).left).read_volatile();
            Some(Budget { earned: (*budget).earned, most: (*budget).most, left, reserved: 0 })
        }
    }

    #[inline(always)]
    fn pay(&self, service: u32, amount: u64) {
        let Some(budget) = maps::BUDGETS.get_ptr_mut(service) else { return };
        // SAFETY: as above.
        unsafe {
            let left = &raw mut (*budget).left;
            asm!("lock *(u64 *)({left} + 0) += {amount}", left = in(reg) left, amount = in(reg) amount);
        }
    }

    #[inline(always)]
    fn passes(&self, _: &Service, key: &FlowKey, backend: u16, segment: Segment) {
        let what = u32::from(backend) | u32::from(segment.flags) << 16;
        lb_passes(key, what, segment.sequence, segment.acknowledged);
    }

    #[inline(always)]
    fn limit(&self, whose: Whose) -> Option<Limit> {
        let limit = limit_of(whose)?;
        // SAFETY: an element of a map; each word is read in one piece, and those that others change only once.
        unsafe {
            Some(Limit {
                interval: (*limit).interval,
                burst: (*limit).burst,
                due: (&raw const (*limit).due).read_volatile(),
                most: (*limit).most,
                open: (&raw const (*limit).open).read_volatile(),
                trials: (&raw const (*limit).trials).read_volatile(),
                ..Limit::default()
            })
        }
    }

    #[inline(always)]
    fn swap_trials(&self, whose: Whose, old: u64, new: u64) -> bool {
        // SAFETY: an aligned word of the map.
        limit_of(whose).is_some_and(|limit| unsafe { compare_and_swap(&raw mut (*limit).trials, old, new) })
    }

    #[inline(always)]
    fn set_due(&self, whose: Whose, due: u64) {
        let Some(limit) = limit_of(whose) else { return };
        // SAFETY: an aligned word of the map.
        unsafe { (&raw mut (*limit).due).write_volatile(due) };
    }

    #[inline(always)]
    fn count_open(&self, whose: Whose, by: u64) {
        let Some(limit) = limit_of(whose) else { return };
        // SAFETY: an aligned word of the map; atomic, as other CPUs count, too.
        unsafe {
            let open = &raw mut (*limit).open;
            asm!("lock *(u64 *)({open} + 0) += {by}", open = in(reg) open, by = in(reg) by);
        }
    }

    #[inline(always)]
    fn keep_away(&self, whose: Whose) {
        let Some(limit) = limit_of(whose) else { return };
        // SAFETY: as above.
        unsafe {
            let count = &raw mut (*limit).kept_away;
            asm!("lock *(u64 *)({count} + 0) += {one}", count = in(reg) count, one = in(reg) 1u64);
        }
    }

    #[inline(always)]
    fn open(&self, key: &FlowKey) -> Option<Open> {
        let open = maps::OPEN.get_ptr_mut(key)?;
        let now = self.ticks();
        // SAFETY: as for flows.
        unsafe {
            let found = *open;
            if found.seen != now && found.is_counted() {
                (*open).seen = now;
            }
            Some(found)
        }
    }

    #[inline(always)]
    fn keep_open(&self, key: &FlowKey, open: &Open) {
        if maps::OPEN.insert(key, open, 0).is_err() {
            self.event(Event::TrackFailed);
        }
    }

    #[inline(always)]
    fn forget_open(&self, key: &FlowKey) {
        if maps::OPEN.get_ptr(key).is_some() {
            let _ = maps::OPEN.remove(key);
        }
    }

    #[inline(always)]
    fn trip(&self, service: u32, measure: u32) {
        let Some(service) = maps::SERVICES.get_ptr_mut(service) else { return };
        // SAFETY: the split is the first word of an aligned element. `new` is its lower half. Whoever may be in the canary is
        // tracked from now on, as after a rollback that keeps flows: first that (an OR is at least the larger one), then the end.
        unsafe {
            let keep = u64::from((*service).split().new() | (*service).home()) << 32;
            let split = (&raw mut (*service).split).cast::<u64>();
            asm!("lock *(u64 *)({split} + 0) |= {keep}", split = in(reg) split, keep = in(reg) keep);
            asm!("lock *(u64 *)({split} + 0) &= {mask}", split = in(reg) split, mask = in(reg) !0u64 << 32);
        }
        self.event(Event::Tripped);
        if let Some(word) = measure_word(measure, offset_of!(Measure, tripped)) {
            // SAFETY: as above.
            unsafe { word.write_volatile(self.clock()) };
        }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
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
