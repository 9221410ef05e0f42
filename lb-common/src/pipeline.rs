//! The road of a packet, start to end.

use core::ops::{Deref, DerefMut};

use crate::abi::{
    Address, Backend, Device, FAULTS, FILTER_BITS, Fault, Filter, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, GuestKey, HalfOpen, Mode, OnEmpty, Port, Replier, Service, Settings, Slot, VipKey, ticks,
};
use crate::attend::attend;
use crate::fault;
use crate::fragment::{fragment, fragment_reply};
use crate::guard::{self, Asked, Guard, Message, Rule, SourceKey, guard};
use crate::handshake;
use crate::icmp::icmp;
use crate::limit::{self, Admission, Limit, Open, Segment, Whose};
use crate::measure::{Handshake, Reply};
use crate::parse::{self, Family, Kind, Network, Transport};
use crate::quic::{self, quic};
use crate::reply::reply;
use crate::retry::{self, Budget};
use crate::rewrite::{self, End};
use crate::select::{Place, peek, select, select_bare};
use crate::session::{
    Draft, Held, Session, SessionKey, begin, carry, opening, ports, session, session_fragment, session_icmp,
    witness,
};
use crate::stage::Stage;
use crate::too_big::too_big;
use crate::verdict::{Account, Action, Event, Reason, Verdict};
use crate::vlan::{self, Vlan, leaving};
use crate::watch::Word;
use crate::wire::{
    IPPROTO_AH, IPPROTO_DSTOPTS, IPPROTO_HOPOPTS, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_ROUTING, Mac, Wire,
};

/// A frame: in the kernel, or in memory.
pub trait Packet {
    /// A header at `offset`, if the frame has all of it there.
    fn view<T: Wire>(&self, offset: usize) -> Option<&T>;
    /// The same, to be changed.
    fn view_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;
    /// The offset itself. (In the kernel, where its verifier is shown that it stays within bounds.)
    fn bounded(&self, offset: usize) -> usize {
        offset
    }
    /// Whether the frame has at least `length` bytes.
    fn reaches(&self, length: usize) -> bool;
    /// [`parse::extensions`]; the kernel has it verified apart from everything that follows.
    fn past_extensions(&self, protocol: u8, offset: usize) -> Result<(u8, usize), Reason>
    where
        Self: Sized,
    {
        parse::extensions(self, protocol, offset)
    }
    /// [`fragment::leads`](crate::fragment::leads), likewise.
    ///
    /// # Errors
    ///
    /// As [`fragment::leads`](crate::fragment::leads).
    fn leads(&self, network: &Network) -> Result<(u8, usize), Reason>
    where
        Self: Sized,
    {
        crate::fragment::leads(self, network)
    }
    /// [`too_big::sum`](crate::too_big::sum), likewise.
    fn sum(&self, start: usize, length: usize) -> Result<u64, Reason>
    where
        Self: Sized,
    {
        crate::too_big::sum(self, start, length)
    }
    /// [`rewrite::clamp`], likewise.
    fn clamp(&mut self, hops: usize, l4: usize, limit: u16)
    where
        Self: Sized,
    {
        rewrite::clamp(self, hops, l4, limit);
    }
    /// [`checksum::is_right`](crate::checksum::is_right), likewise.
    fn is_summed(&self, start: usize, end: usize, pseudo: u64) -> bool
    where
        Self: Sized,
    {
        crate::checksum::is_right(self, start, end, pseudo)
    }
    /// [`toa::is_claimed`](crate::session::toa::is_claimed), likewise.
    fn is_claimed(&self, l4: usize, end: usize) -> bool
    where
        Self: Sized,
    {
        crate::session::toa::is_claimed(self, l4, end)
    }
    /// The interface it came in by.
    fn ifindex(&self) -> u32;
    /// Moves the start of the frame forward by `bytes`; what is there is undefined.
    fn grow_head(&mut self, bytes: usize) -> Option<()>;
    /// Cuts `bytes` off the start of the frame.
    fn shrink_head(&mut self, bytes: usize) -> Option<()>;
    /// Cuts the frame off after `length` bytes.
    fn truncate(&mut self, length: usize) -> Option<()>;
}

/// The tables that decide: maps in the kernel, or in memory.
pub trait Tables {
    /// The packets that routes are asked for.
    type Packet: Packet;

    /// What holds for all services.
    fn settings(&self) -> Option<&Settings>;
    /// The index of the service at exactly this address and port.
    fn vip(&self, key: &VipKey) -> Option<u32>;
    /// A service.
    fn service(&self, index: u32) -> Option<&Service>;
    /// A slot, in one read.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// Adds [`Slot::EXCEPTION`] to a slot.
    fn mark(&self, index: u32);
    /// A backend.
    fn backend(&self, id: u16) -> Option<&Backend>;
    /// An interface.
    fn device(&self, index: u16) -> Option<&Device>;

    /// A tracked flow, as it was; being asked for keeps it young.
    fn flow(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry>;
    /// The same for a packet that is not the flow's own: it keeps nothing young.
    fn flow_as_it_is(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry>;
    /// Tracks a flow. `false`: there is no room.
    fn keep_flow(&self, key: &FlowKey, udp: bool, backend: u16, generation: u32) -> bool;
    /// A handshake under way.
    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen>;
    /// Notes a handshake.
    fn note_half_open(&self, key: &FlowKey, note: &HalfOpen);
    /// Forgets a handshake.
    fn forget_half_open(&self, key: &FlowKey);
    /// Whose reply a packet from exactly this address and port may be.
    fn replier(&self, key: &VipKey) -> Option<Replier>;
    /// When the client of a flow last talked to a backend past the VIP, in [`ticks`].
    fn direct(&self, key: &FlowKey) -> Option<u32>;
    /// Notes that a flow talks to a backend past the VIP now, and marks the backend.
    fn note_direct(&self, key: &FlowKey, backend: &VipKey);
    /// Forgets that a flow talked to a backend past the VIP.
    fn forget_direct(&self, key: &FlowKey);
    /// An entry of a session: a reference, or a copy.
    type Entry<'a>: Deref<Target = Session>
    where
        Self: 'a;
    /// One direction of a session.
    fn session(&self, held: Held, key: &SessionKey) -> Option<Self::Entry<'_>>;
    /// An entry of a session, to be changed.
    type EntryMut<'a>: DerefMut<Target = Session>
    where
        Self: 'a;
    /// One direction of a session, to be changed.
    fn session_mut(&self, held: Held, key: &SessionKey) -> Option<Self::EntryMut<'_>>;
    /// Keeps one direction of a session; if asked for, only where there is none. `false`: there is one, or no room.
    fn keep_session(&self, held: Held, key: &SessionKey, session: &Session, only_new: bool) -> bool;
    /// Forgets one direction of a session.
    fn drop_session(&self, held: Held, key: &SessionKey);
    /// Room of this CPU's own to make a session in; what it holds at first is anything.
    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R>;
    /// [`ports::reserve`]; the kernel has it verified apart from everything else.
    fn reserve(&self, settings: &Settings, draft: &mut Draft, hash: u64) -> bool
    where
        Self: Sized,
    {
        ports::reserve(self, settings, draft, hash)
    }
    /// The number of the CPU.
    fn cpu(&self) -> u32;
    /// Where a packet for `network.destination` leaves.
    fn route(&self, packet: &Self::Packet, network: &Network) -> Route;
    /// [`session::find_way`](crate::session::find_way); the kernel has it verified apart from everything else.
    ///
    /// # Errors
    ///
    /// As [`session::find_way`](crate::session::find_way).
    fn find_way(
        &self,
        packet: &Self::Packet,
        network: &Network,
        session: &mut Session,
    ) -> Result<bool, Reason>
    where
        Self: Sized,
    {
        crate::session::find_way(packet, self, network, session)
    }

    /// The tags of what leaves by an interface, if there are VLAN devices.
    fn vlan(&self, ifindex: u32) -> Option<Vlan>;
    /// How long a packet for `network.destination` may be, in bytes; 0: as long as this one, at least.
    fn path_mtu(&self, packet: &Self::Packet, network: &Network) -> u16;

    /// [`select_bare`]; the kernel has most of it verified apart from everything else.
    fn place(&self, service: &Service, key: &FlowKey, kind: Kind) -> Result<Place, Reason>
    where
        Self: Sized,
    {
        select_bare(self, service, key, kind).map(Place::from)
    }
    /// [`select`], likewise.
    fn place_attended(&self, service: &Service, key: &FlowKey, kind: Kind) -> Result<Place, Reason>
    where
        Self: Sized,
    {
        select(self, service, key, kind).map(Place::from)
    }
    /// [`send`], likewise; the interface that the packet leaves by.
    ///
    /// # Errors
    ///
    /// As [`send`].
    fn send(&self, packet: &mut Self::Packet, service: u32, place: Place) -> Result<u32, Reason>
    where
        Self: Sized,
    {
        send(packet, self, service, &place).map(|verdict| verdict.ifindex)
    }
    /// [`peek`].
    fn peek(&self, service: &Service, key: &FlowKey) -> Result<Place, Reason>
    where
        Self: Sized,
    {
        peek(self, service, key)
    }
    /// How connection ids are read.
    fn quic_config(&self, key: &quic::ConfigKey) -> Option<&quic::Config>;
    /// The server that a connection id names.
    fn quic_server(&self, key: &quic::ServerKey) -> Option<quic::Server>;
    /// [`quic::find`]; the kernel has it verified apart from everything else.
    fn find_server(&self, query: &quic::Query) -> u32
    where
        Self: Sized,
    {
        quic::find(self, query)
    }
    /// Where the first fragment of a packet went.
    fn fragments(&self, key: &FragmentKey) -> Option<FragmentEntry>;
    /// Notes where the first fragment of a packet went.
    fn note_fragments(&self, key: &FragmentKey, entry: &FragmentEntry);
    /// Whether one more message of its kind may go out ([`too_big::admit`](crate::too_big::admit)).
    fn admits_message(&self, message: Message, interval: u32) -> bool;
    /// Makes a segment the RST that answers it ([`rewrite::reset`]), if it may be answered; the kernel has it verified apart from
    /// everything else.
    ///
    /// # Errors
    ///
    /// As [`guard::may_reset`]; [`Reason::Malformed`] for what is no segment, and a fragment is none.
    fn reset(&self, packet: &mut Self::Packet, network: &Network) -> Result<(), Reason>
    where
        Self: Sized,
    {
        let transport = parse::transport(packet, network).map_err(|_| Reason::Malformed)?;
        guard::may_reset(packet, self, network)?;
        rewrite::reset(packet, network, &transport)
    }
    /// [`guard::admits`], likewise.
    ///
    /// # Errors
    ///
    /// As it says.
    fn admits(&self, key: &FlowKey, asked: Asked) -> Result<(), Reason>
    where
        Self: Sized,
    {
        guard::admits(self, key, asked)
    }
    /// [`guard::listed`], likewise.
    ///
    /// # Errors
    ///
    /// As it says.
    fn listed(&self, key: &FlowKey, asked: Asked) -> Result<(), Reason>
    where
        Self: Sized,
    {
        guard::listed(self, key, asked)
    }
    /// The lists and rates of a service.
    fn guard(&self, service: u32) -> Option<&Guard>;
    /// What the longest prefix says of a client, if any does.
    fn rule(&self, client: &GuestKey) -> Option<Rule>;
    /// Whose rules hold for what is the host's behind a VIP; 0: nobody's. `None`: it is no VIP.
    fn vip_rules(&self, vip: &Address) -> Option<u32>;
    /// When somebody's next are due.
    type Dues<'a>: Copy
    where
        Self: 'a;
    /// Of all clients of a service.
    fn dues(&self, service: u32) -> Option<Self::Dues<'_>>;
    /// Of a source, which is remembered from now on; being asked for keeps it young. `None`: there is no room.
    fn source(&self, key: &SourceKey) -> Option<Self::Dues<'_>>;
    /// One of them, in monotonic nanoseconds.
    fn due(&self, dues: Self::Dues<'_>, word: guard::Word) -> u64;
    /// Sets one of them to `new` if it still is `old`. Returns whether it was.
    fn swap_due(&self, dues: Self::Dues<'_>, word: guard::Word, old: u64, new: u64) -> bool;
    /// Whether a client is a guest of its service's canary.
    fn guest(&self, client: &GuestKey) -> bool;
    /// The faults that are injected.
    fn faults(&self) -> Option<&[Fault; FAULTS]>;
    /// [`fault::injected`], likewise.
    fn injected(&self, service: &Service, key: &FlowKey, pool: u16, backend: u16) -> Option<u32>
    where
        Self: Sized,
    {
        fault::injected(self, service, key, pool, backend)
    }
    /// [`handshake::is_known`], likewise; so are the following, which are a part of [`handshake::begins`] each.
    fn is_known(&self, key: &FlowKey, sequence: u32, backend: u16) -> bool
    where
        Self: Sized,
    {
        handshake::is_known(self, key, sequence, backend)
    }
    /// [`handshake::first`].
    fn first(&self, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place
    where
        Self: Sized,
    {
        handshake::first(self, service, key, sequence, place)
    }
    /// [`handshake::repeats`].
    fn repeats(&self, service: &Service, key: &FlowKey, sequence: u32, backend: u16) -> bool
    where
        Self: Sized,
    {
        handshake::repeats(self, service, key, sequence, backend)
    }
    /// [`handshake::moves`].
    fn moves(&self, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place
    where
        Self: Sized,
    {
        handshake::moves(self, service, key, sequence, place)
    }
    /// [`retry::another`].
    fn another(&self, service: &Service, key: &FlowKey, not: u16, tries: u8) -> u16
    where
        Self: Sized,
    {
        retry::another(self, service, key, not, tries)
    }
    /// [`limit::judge`].
    fn judge(&self, service: &Service, key: &FlowKey, backend: u16) -> Admission
    where
        Self: Sized,
    {
        limit::judge(self, service, key, backend)
    }
    /// [`limit::spill`].
    fn spill(&self, service: &Service, key: &FlowKey, sequence: u32, backend: u16) -> u16
    where
        Self: Sized,
    {
        limit::spill(self, service, key, sequence, backend).unwrap_or(0)
    }
    /// [`handshake::replies`], likewise.
    ///
    /// # Errors
    ///
    /// As it says.
    fn replies(&self, service: &Service, key: &FlowKey, reply: Reply) -> Result<(), Reason>
    where
        Self: Sized,
    {
        handshake::replies(self, service, key, reply)
    }
    /// A handshake that is looked at.
    fn handshake(&self, key: &FlowKey) -> Option<Handshake>;
    /// Remembers a handshake.
    fn keep_handshake(&self, key: &FlowKey, handshake: &Handshake);
    /// Sets the state of a handshake, if it is remembered.
    fn note_state(&self, key: &FlowKey, state: u8);
    /// Sets the number that the backend of a handshake has drawn, if it is remembered.
    fn note_drawn(&self, key: &FlowKey, drawn: u32);
    /// Forgets a handshake.
    fn forget_handshake(&self, key: &FlowKey);
    /// A place of `AWAITED` ([`awaited`](crate::awaited)).
    fn awaited(&self, place: u32) -> u64;
    /// Sets a place of `AWAITED` to `new` if it still is `old`. Returns whether it was.
    fn swap_awaited(&self, place: u32, old: u64, new: u64) -> bool;
    /// Makes a place of `AWAITED` a shared one, and adds 1 to it.
    fn share_awaited(&self, place: u32);
    /// Adds 1 to a word of a measure; `offset` is in bytes.
    fn count(&self, measure: u32, offset: usize);
    /// Sets bits of a word of a measure. Returns whether they were set before.
    fn set(&self, measure: u32, offset: usize, bits: u64) -> bool;
    /// Sets a word of a measure to `new` if it still is `old`. Returns whether it was.
    fn swap(&self, measure: u32, offset: usize, old: u64, new: u64) -> bool;
    /// A word of a measure.
    fn word(&self, measure: u32, offset: usize) -> u64;
    /// Adds to a word of a backend's [`Watch`](crate::watch::Watch).
    fn tally(&self, backend: u16, word: Word, by: u64);
    /// Sets a word of a backend's [`Watch`](crate::watch::Watch) to zero, if it is not.
    fn end_row(&self, backend: u16, word: Word);
    /// A service's budget of retries.
    fn budget(&self, service: u32) -> Option<Budget>;
    /// Adds to what is left of a service's budget.
    fn pay(&self, service: u32, amount: u64);
    /// [`limit::passes`], likewise.
    fn passes(&self, service: &Service, key: &FlowKey, backend: u16, segment: Segment)
    where
        Self: Sized,
    {
        limit::passes(self, service, key, backend, segment);
    }
    /// A limit.
    fn limit(&self, whose: Whose) -> Option<Limit>;
    /// Sets somebody's [`trials`](Limit::trials) to `new` if they still are `old`. Returns whether they were.
    fn swap_trials(&self, whose: Whose, old: u64, new: u64) -> bool;
    /// Sets when somebody's next new connection is due.
    fn set_due(&self, whose: Whose, due: u64);
    /// Adds to somebody's open connections.
    fn count_open(&self, whose: Whose, by: u64);
    /// Counts a new connection that was kept away.
    fn keep_away(&self, whose: Whose);
    /// A counted connection, as it was; being asked for keeps it young, unless it is over.
    fn open(&self, key: &FlowKey) -> Option<Open>;
    /// Remembers a counted connection.
    fn keep_open(&self, key: &FlowKey, open: &Open);
    /// Forgets a counted connection.
    fn forget_open(&self, key: &FlowKey);
    /// Sends no new flow to the canary of a service, and notes when in its measure.
    fn trip(&self, service: u32, measure: u32);

    /// Monotonic nanoseconds, as precise as the clock is.
    fn clock(&self) -> u64;
    /// Monotonic nanoseconds, some milliseconds late.
    fn now(&self) -> u64;
    /// Monotonic time in [`ticks`].
    fn ticks(&self) -> u32 {
        ticks(self.now())
    }
    /// Counts.
    fn event(&self, event: Event);
}

/// Where a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this interface, with these hardware addresses.
    Out {
        /// The interface.
        ifindex: u32,
        /// Its hardware address.
        source: Mac,
        /// The next hop's.
        destination: Mac,
    },
    /// It is for this host.
    Local,
    /// The next hop's hardware address is not known.
    Unresolved,
    /// It is longer than the route allows.
    TooBig,
    /// This host does not forward what comes in by that interface; what is for itself looks the same.
    ForwardingOff,
    /// Nowhere.
    None,
}

/// An interface, and the hardware addresses of a packet that leaves by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The interface.
    pub ifindex: u32,
    /// Its hardware address.
    pub source: Mac,
    /// The next hop's.
    pub destination: Mac,
}

impl Route {
    /// How a packet leaves; `None`: by the host, which knows how to find a neighbour, and keeps the packet meanwhile.
    ///
    /// # Errors
    ///
    /// Why it does not leave.
    #[inline(always)]
    pub const fn exit(self) -> Result<Option<Exit>, Reason> {
        match self {
            Self::Out { ifindex, source, destination } => Ok(Some(Exit { ifindex, source, destination })),
            Self::Unresolved => Ok(None),
            Self::Local => Err(Reason::Local),
            Self::TooBig => Err(Reason::TooBig),
            Self::ForwardingOff => Err(Reason::ForwardingOff),
            Self::None => Err(Reason::NoRoute),
        }
    }
}

/// Where a packet's road leads from a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It ends here.
    End(Verdict),
    /// On to another stage, which starts from the packet as it came.
    Next(Stage),
}

/// What becomes of a packet. What is passed up is as it came, but for what the host sends on
/// for us ([`Reason::RepliedByHost`] and the like).
///
/// In the kernel each stage is a program, and tail calls take the place of this loop.
pub fn process<T: Tables>(packet: &mut T::Packet, tables: &T) -> Verdict {
    let mut step = enter(packet, tables);
    loop {
        step = match step {
            Ok(Step::Next(Stage::Reply)) => reply(packet, tables),
            Ok(Step::Next(Stage::Attend)) => attend(packet, tables),
            Ok(Step::Next(Stage::Session)) => session(packet, tables),
            Ok(Step::Next(Stage::Opening)) => opening(packet, tables),
            Ok(Step::Next(Stage::Begin)) => begin(packet, tables),
            Ok(Step::Next(Stage::Witness)) => witness(packet, tables),
            Ok(Step::Next(Stage::Carry)) => carry(packet, tables),
            Ok(Step::Next(Stage::Icmp)) => icmp(packet, tables),
            Ok(Step::Next(Stage::Fragment)) => fragment(packet, tables),
            Ok(Step::Next(Stage::FragmentReply)) => fragment_reply(packet, tables),
            Ok(Step::Next(Stage::TooBig)) => too_big(packet, tables),
            Ok(Step::Next(Stage::SessionIcmp)) => session_icmp(packet, tables),
            Ok(Step::Next(Stage::SessionFragment)) => session_fragment(packet, tables),
            Ok(Step::Next(Stage::Guard)) => guard(packet, tables),
            Ok(Step::Next(Stage::Host)) => guard::host(packet, tables),
            Ok(Step::Next(Stage::Quic)) => quic(packet, tables),
            Ok(Step::End(verdict)) => return depart(packet, tables, verdict),
            Err(reason) => return Verdict::of(reason),
        }
    }
}

/// The end of a packet's road: what leaves by another interface than it came in by, or came in with tags, may need other ones.
/// (In the kernel only what leaves by none that `EGRESS` knows.)
fn depart<T: Tables>(packet: &mut T::Packet, tables: &T, verdict: Verdict) -> Verdict {
    if verdict.reason.action() != Action::Transmit || verdict.ifindex == packet.ifindex() {
        return verdict;
    }
    match vlan::depart(packet, tables, verdict.ifindex) {
        Ok(ifindex) => Verdict { ifindex, ..verdict },
        Err(reason) => Verdict::of(reason),
    }
}

/// Where every packet begins: the program whose cost counts. So it is compiled twice, for the [plain](parse::plain) shape of
/// packets and for all others.
///
/// # Errors
///
/// Why the road ends here, if it does not end in a verdict that is more than a reason.
#[inline(always)]
pub fn enter<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    match parse::plain(packet) {
        Some(network) => road(packet, tables, &network),
        None => {
            let network = parse::network(packet)?;
            road(packet, tables, &network).map(|step| match step {
                Step::End(verdict) if matches!(verdict.reason, Reason::Forwarded) => {
                    Step::End(Verdict { ifindex: leaving(packet, verdict.ifindex), ..verdict })
                }
                step => step,
            })
        }
    }
}

#[inline(always)]
fn road<T: Tables>(packet: &mut T::Packet, tables: &T, network: &Network) -> Result<Step, Reason> {
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    if contains(&settings.vips, network.destination) {
        // So early for the verifier, which comes by here least often.
        if guard::is_nobody(network) {
            return Ok(Step::Next(Stage::Host));
        }
        let transport = match parse::transport(packet, network) {
            Ok(transport) => transport,
            Err(reason) => return elsewhere(network, reason),
        };
        if let Some(index) = find_service(tables, network, &transport) {
            let service = tables.service(index).ok_or(Reason::NoTable)?;
            if service.has(Service::ATTENDED) {
                return Ok(Step::Next(service.stage()));
            }
            let key = FlowKey::of_request(network, &transport, index);
            let place = tables.place(service, &key, transport.kind)?;
            if place.backend == 0 {
                // Nobody may have it: what is said of it takes more than the fast road has room for.
                return Ok(Step::Next(Stage::Attend));
            }
            let target = Target::of(tables, &place)?;
            return ended(forward(
                packet, tables, settings, service, network, &transport, &key, &place, &target,
            ));
        }
    }
    // Before replies of `nat`: a backend may serve both modes, and `Stage::Opening` hands on what is in no session.
    if contains(&settings.stand_ins, network.destination) {
        return Ok(Step::Next(Stage::Session));
    }
    if is_nats(settings, network) {
        return Ok(Step::Next(Stage::Reply));
    }
    // Any router may have something to say about a flow of ours.
    elsewhere(network, Reason::NotOurs)
}

/// The end of the road, but for a packet that does not fit: its sender is to be told.
#[inline(always)]
pub(crate) fn ended(result: Result<Verdict, Reason>) -> Result<Step, Reason> {
    match result {
        Err(Reason::TooBig) => Ok(Step::Next(Stage::TooBig)),
        result => result.map(Step::End),
    }
}

/// Where a packet goes on whose transport header says nothing of its flow.
#[inline(always)]
pub(crate) const fn elsewhere(network: &Network, reason: Reason) -> Result<Step, Reason> {
    if matches!(reason, Reason::Fragment) {
        return Ok(Step::Next(Stage::Fragment));
    }
    match (network.family, network.protocol) {
        (Family::V4, IPPROTO_ICMP) | (Family::V6, IPPROTO_ICMPV6) if !matches!(reason, Reason::Malformed) => {
            Ok(Step::Next(Stage::Icmp))
        }
        // What ends elsewhere than in TCP or UDP: it may be an echo request, for which the host has a rate.
        (Family::V6, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_AH)
            if matches!(reason, Reason::OtherProtocol) =>
        {
            Ok(Step::Next(Stage::Host))
        }
        _ => Err(reason),
    }
}

impl Service {
    /// Where packets to an attended service go on.
    #[inline(always)]
    const fn stage(&self) -> Stage {
        if self.has(Self::GUARDED) { Stage::Guard } else { self.attended_by() }
    }
}

/// The index of the service that a packet is for.
#[inline(always)]
pub(crate) fn find_service<T: Tables>(tables: &T, network: &Network, transport: &Transport) -> Option<u32> {
    find(network.destination, transport, End::Destination, |key| tables.vip(key))
}

impl FlowKey {
    /// The flow of a client's packet to a service.
    #[must_use]
    #[inline(always)]
    pub const fn of_request(network: &Network, transport: &Transport, service: u32) -> Self {
        Self {
            client: network.source,
            client_port: transport.source,
            port: transport.destination,
            owner: service,
        }
    }

    /// The same of a fragment that has no ports.
    #[must_use]
    #[inline(always)]
    pub const fn of_piece(network: &Network, service: u32) -> Self {
        Self { client: network.source, client_port: Port::ANY, port: Port::ANY, owner: service }
    }
}

/// A backend that can be reached, and how.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub backend: &'a Backend,
    pub device: &'a Device,
    pub mac: Mac,
}

impl<'a> Target<'a> {
    #[inline(always)]
    pub fn of<T: Tables>(tables: &'a T, place: &Place) -> Result<Self, Reason> {
        let backend = tables.backend(place.backend).ok_or(Reason::NoTable)?;
        if !backend.life().is_usable() {
            return Err(Reason::BackendGone);
        }
        Self::reach(tables, backend)
    }

    /// Of a backend that packets may go to.
    #[inline(always)]
    pub fn reach<T: Tables>(tables: &'a T, backend: &'a Backend) -> Result<Self, Reason> {
        let hop = backend.next_hop();
        let mac = hop.mac().ok_or(Reason::NoNeighbour)?;
        let device = tables.device(hop.device()).ok_or(Reason::NoTable)?;
        Ok(Self { backend, device, mac })
    }

    /// Bytes that the way to it adds.
    #[inline(always)]
    pub const fn overhead(&self, service: &Service) -> usize {
        if is_tunnel(service) { rewrite::overhead(self.backend) } else { 0 }
    }

    /// Whether a packet may leave by its interface.
    #[inline(always)]
    pub const fn fits(&self, service: &Service, network: &Network) -> bool {
        network.end - network.l3 + self.overhead(service) <= self.device.mtu as usize
    }

    /// To a backend that has the VIP: as it is, or in a tunnel.
    #[inline(always)]
    pub fn carry<P: Packet>(
        &self,
        packet: &mut P,
        settings: &Settings,
        service: &Service,
        network: &Network,
        spread: u32,
    ) -> Result<(), Reason> {
        if is_tunnel(service) {
            return rewrite::encapsulate(
                packet,
                network,
                settings,
                spread,
                self.backend,
                self.device.mac,
                self.mac,
            );
        }
        rewrite::link(packet, self.device.mac, self.mac)
    }
}

#[inline(always)]
const fn is_tunnel(service: &Service) -> bool {
    service.mode == Mode::DsrIpip as u8 || service.mode == Mode::DsrGue as u8
}

/// To its backend. (Whether the frame has tags, the caller says: [`leaving`].)
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined; a structure of them would live on the kernel program's stack"
)]
pub(crate) fn forward<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    settings: &Settings,
    service: &Service,
    network: &Network,
    transport: &Transport,
    key: &FlowKey,
    place: &Place,
    target: &Target<'_>,
) -> Result<Verdict, Reason> {
    let account = Account::of(place.backend, target.backend, network, place.begins);
    if !target.fits(service, network) {
        return Err(Reason::TooBig);
    }
    if service.mode == Mode::Nat as u8 {
        let Backend { address, port, .. } = *target.backend;
        rewrite::translate(packet, network, transport, End::Destination, address, port)?;
        if place.begins {
            // The client had the same ports in use past the VIP before: this flow's replies are ours again.
            let port = if port.is_any() { transport.destination } else { port };
            tables.forget_direct(&FlowKey { port, owner: u32::from(place.backend), ..*key });
        }
        rewrite::link(packet, target.device.mac, target.mac)?;
    } else {
        target.carry(packet, settings, service, network, place.spread)?;
    }
    Ok(Verdict { reason: Reason::Forwarded, ifindex: target.device.ifindex, account })
}

/// [`forward`] for whoever has found a place. It parses the packet again, so that nothing has to be kept until then.
///
/// # Errors
///
/// Why it does not get to its backend.
#[inline(always)]
pub fn send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    service: u32,
    place: &Place,
) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = parse::transport(packet, &network)?;
    let key = FlowKey::of_request(&network, &transport, service);
    let service = tables.service(service).ok_or(Reason::NoTable)?;
    let target = Target::of(tables, place)?;
    let verdict = forward(packet, tables, settings, service, &network, &transport, &key, place, &target)?;
    Ok(Verdict { ifindex: leaving(packet, verdict.ifindex), ..verdict })
}

/// No backend may take it.
#[inline(always)]
pub(crate) fn empty<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    service: &Service,
    network: &Network,
    transport: &Transport,
) -> Result<Verdict, Reason> {
    if rewrite::answers_with_reset(service, transport.kind) {
        let ifindex = packet.ifindex();
        tables.reset(packet, network).map_err(|reason| match reason {
            // A fragment is not answered, nor left to the host, which would answer all of them.
            Reason::Malformed => Reason::NoBackend,
            reason => reason,
        })?;
        return Ok(Verdict { reason: Reason::Reset, ifindex, account: Account::NONE });
    }
    Err(if service.on_empty == OnEmpty::Pass as u8 { Reason::EmptyPass } else { Reason::NoBackend })
}

/// Looks up an address with its port, then with port 0: every port of it.
#[inline(always)]
pub(crate) fn find<R>(
    address: Address,
    transport: &Transport,
    end: End,
    look_up: impl Fn(&VipKey) -> Option<R>,
) -> Option<R> {
    let port = match end {
        End::Destination => transport.destination,
        End::Source => transport.source,
    };
    let mut key = VipKey { address, port, protocol: transport.protocol, pad: 0 };
    look_up(&key).or_else(|| {
        key.port = Port::ANY;
        look_up(&key)
    })
}

/// Whether a packet may be from or to a backend of mode `nat`.
#[inline(always)]
pub(crate) fn is_nats(settings: &Settings, network: &Network) -> bool {
    contains(&settings.repliers, network.source) || contains(&settings.repliers, network.destination)
}

/// Whether a port of one of this host's addresses may stand for a client (`full-nat`).
#[inline(always)]
pub(crate) fn stands_in(settings: &Settings, address: Address, port: Port) -> bool {
    contains(&settings.stand_ins, address) && settings.is_source_port(port)
}

#[inline(always)]
pub(crate) fn contains(filter: &Filter, address: Address) -> bool {
    let bit = address.filter_bit() & (FILTER_BITS - 1);
    match filter.get((bit / 64) as usize) {
        Some(word) => word >> (bit % 64) & 1 != 0,
        None => false,
    }
}
