//! The road of a packet, start to end.

use crate::abi::{
    Address, Backend, Device, FILTER_BITS, Filter, FlowEntry, FlowKey, HalfOpen, Mode, OnEmpty, Port,
    Replier, Service, Settings, Slot, TCP_IDLE_TICKS, VipKey, ticks,
};
use crate::measure::{self, Handshake, Reply};
use crate::parse::{self, Kind, Network, Transport};
use crate::rewrite::{self, End};
use crate::select::{Place, select};
use crate::verdict::{Account, Event, Reason, Verdict};
use crate::wire::{IPPROTO_TCP, Mac, TCP_RST, TCP_SYN, Tcp, Wire};

/// A frame: in the kernel, or in memory.
pub trait Packet {
    /// A header at `offset`, if the frame has all of it there.
    fn view<T: Wire>(&self, offset: usize) -> Option<&T>;
    /// The same, to be changed.
    fn view_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;
    /// Whether the frame has at least `length` bytes.
    fn reaches(&self, length: usize) -> bool;
    /// [`parse::extensions`]; the kernel has it verified apart from everything that follows.
    fn past_extensions(&self, protocol: u8, offset: usize) -> Result<(u8, usize), Reason>
    where
        Self: Sized,
    {
        parse::extensions(self, protocol, offset)
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
    /// Adds 1 to the exceptions of a slot.
    fn mark(&self, index: u32);
    /// A backend.
    fn backend(&self, id: u16) -> Option<&Backend>;
    /// An interface.
    fn device(&self, index: u16) -> Option<&Device>;

    /// A tracked flow, as it was; being asked for keeps it young.
    fn flow(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry>;
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
    /// Where a packet for `network.destination` leaves.
    fn route(&self, packet: &Self::Packet, network: &Network) -> Route;

    /// [`select`]; the kernel has most of it verified apart from everything else.
    fn place(&self, service: &Service, key: &FlowKey, kind: Kind) -> Result<Place, Reason>
    where
        Self: Sized,
    {
        select(self, service, key, kind).map(Place::from)
    }
    /// [`measure::begins`], likewise.
    fn begins(&self, service: &Service, key: &FlowKey, sequence: u32, canary: bool)
    where
        Self: Sized,
    {
        measure::begins(self, service, key, sequence, canary);
    }
    /// [`measure::replies`], likewise.
    fn replies(&self, service: &Service, key: &FlowKey, reply: Reply)
    where
        Self: Sized,
    {
        measure::replies(self, service, key, reply);
    }
    /// A handshake of a measured service.
    fn handshake(&self, key: &FlowKey) -> Option<Handshake>;
    /// Remembers a handshake.
    fn keep_handshake(&self, key: &FlowKey, handshake: &Handshake);
    /// Forgets a handshake.
    fn forget_handshake(&self, key: &FlowKey);
    /// Adds 1 to a word of a measure; `offset` is in bytes.
    fn count(&self, measure: u32, offset: usize);
    /// Sets bits of a word of a measure. Returns whether they were set before.
    fn set(&self, measure: u32, offset: usize, bits: u64) -> bool;
    /// A word of a measure.
    fn word(&self, measure: u32, offset: usize) -> u64;
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
    /// This host does not forward what comes in by that interface.
    ForwardingOff,
    /// Nowhere.
    None,
}

/// What becomes of a packet. What is passed up is as it came, but for [`Reason::RepliedByHost`].
#[inline(always)]
pub fn process<T: Tables>(packet: &mut T::Packet, tables: &T) -> Verdict {
    match road(packet, tables) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::of(reason),
    }
}

#[inline(always)]
fn road<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let to_vip = contains(&settings.vips, network.destination);
    let from_backend = contains(&settings.repliers, network.source);
    let to_backend = contains(&settings.repliers, network.destination);
    if !(to_vip || from_backend || to_backend) {
        return Err(Reason::NotOurs);
    }
    let transport = parse::transport(packet, &network)?;

    if to_vip
        && let Some(index) = find(network.destination, &transport, End::Destination, |key| tables.vip(key))
    {
        return request(packet, tables, settings, &network, &transport, index);
    }
    if from_backend
        && let Some(replier) = find(network.source, &transport, End::Source, |key| tables.replier(key))
    {
        return reply(packet, tables, settings, &network, &transport, replier);
    }
    if to_backend {
        return Err(past_vip(tables, &network, &transport));
    }
    Err(Reason::NotOurs)
}

/// From a client to a service.
#[inline(always)]
fn request<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
    index: u32,
) -> Result<Verdict, Reason> {
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    let key = FlowKey {
        client: network.source,
        client_port: transport.source,
        port: transport.destination,
        owner: index,
    };
    let place = tables.place(service, &key, transport.kind)?;
    if place.backend == 0 {
        return empty(packet, service, network, transport);
    }
    let backend = tables.backend(place.backend).ok_or(Reason::NoTable)?;
    if !backend.life().is_usable() {
        return Err(Reason::BackendGone);
    }
    let hop = backend.next_hop();
    let mac = hop.mac().ok_or(Reason::NoNeighbour)?;
    let device = tables.device(hop.device()).ok_or(Reason::NoTable)?;
    let length = network.end - network.l3;
    let account = account(network, &place, backend);
    if service.has(Service::MEASURED)
        && let Kind::Syn(sequence) = transport.kind
    {
        tables.begins(service, &key, sequence, backend.pool == service.canary_pool);
    }

    if service.mode == Mode::DsrIpip as u8 {
        if !rewrite::fits(device, length + rewrite::overhead(backend.address)) {
            return Err(Reason::TooBig);
        }
        rewrite::encapsulate(packet, network, settings, place.spread, backend.address, device.mac, mac)?;
    } else {
        if !rewrite::fits(device, length) {
            return Err(Reason::TooBig);
        }
        if service.mode == Mode::Nat as u8 {
            rewrite::translate(packet, network, transport, End::Destination, backend.address, backend.port)?;
            if place.begins {
                // The client had the same ports in use past the VIP before: this flow's replies are ours again.
                let port = if backend.port.is_any() { transport.destination } else { backend.port };
                tables.forget_direct(&FlowKey { port, owner: u32::from(place.backend), ..key });
            }
        }
        rewrite::link(packet, device.mac, mac)?;
    }
    Ok(Verdict { reason: Reason::Forwarded, ifindex: device.ifindex, account })
}

#[inline(always)]
fn account(network: &Network, place: &Place, backend: &Backend) -> Account {
    Account { backend: place.backend, pool: backend.pool, bytes: network.end as u32, begins: place.begins }
}

/// No backend may take it.
#[inline(always)]
fn empty<P: Packet>(
    packet: &mut P,
    service: &Service,
    network: &Network,
    transport: &Transport,
) -> Result<Verdict, Reason> {
    if rewrite::answers_with_reset(service, transport.kind) {
        let ifindex = packet.ifindex();
        rewrite::reset(packet, network, transport)?;
        return Ok(Verdict { reason: Reason::Reset, ifindex, account: Account::NONE });
    }
    Err(if service.on_empty == OnEmpty::Pass as u8 { Reason::EmptyPass } else { Reason::NoBackend })
}

/// From a backend, perhaps back to a client.
#[inline(always)]
fn reply<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
    replier: Replier,
) -> Result<Verdict, Reason> {
    if replier.direct != 0 {
        let key = FlowKey {
            client: network.destination,
            client_port: transport.destination,
            port: transport.source,
            owner: u32::from(replier.backend),
        };
        if is_direct(tables, settings, &key, transport.kind, replier.direct) {
            return Err(Reason::Direct);
        }
    }
    let out = match tables.route(packet, network) {
        Route::Out { ifindex, source, destination } => Some((ifindex, source, destination)),
        Route::Unresolved => None,
        Route::Local => return Err(Reason::Local),
        Route::TooBig => return Err(Reason::TooBig),
        Route::ForwardingOff => return Err(Reason::ForwardingOff),
        Route::None => return Err(Reason::NoRoute),
    };
    let service = tables.service(replier.service).ok_or(Reason::NoTable)?;
    let backend = tables.backend(replier.backend).ok_or(Reason::NoTable)?;
    if service.has(Service::MEASURED) && transport.protocol == IPPROTO_TCP {
        measured(packet, tables, service, network, transport, replier)?;
    }
    rewrite::translate(packet, network, transport, End::Source, service.vip, service.port)?;
    let account =
        Account { backend: replier.backend, pool: backend.pool, bytes: network.end as u32, begins: false };
    let Some((ifindex, source, destination)) = out else {
        // The host knows how to find a neighbour, and keeps the packet meanwhile.
        return Ok(Verdict { reason: Reason::RepliedByHost, ifindex: 0, account });
    };
    rewrite::link(packet, source, destination)?;
    Ok(Verdict { reason: Reason::Replied, ifindex, account })
}

/// What a reply says about its handshake.
#[inline(always)]
fn measured<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    service: &Service,
    network: &Network,
    transport: &Transport,
    replier: Replier,
) -> Result<(), Reason> {
    let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
    let reply = Reply {
        answers: header.flags & TCP_SYN != 0,
        resets: header.flags & TCP_RST != 0,
        data: transport.l4 + usize::from(header.data_offset >> 4) * 4 < network.end,
        acknowledged: u32::from_be_bytes(header.acknowledgement),
    };
    let port = if service.port == Port::ANY { transport.source } else { service.port };
    let key = FlowKey {
        client: network.destination,
        client_port: transport.destination,
        port,
        owner: replier.service,
    };
    tables.replies(service, &key, reply);
    Ok(())
}

/// Whether a flow goes on past the VIP, to a backend that was `marked` last.
///
/// Mark and entry hold the time of the newest packet, and are void once that is older than a flow may be silent: nobody
/// has to take them away.
#[inline(always)]
fn is_direct<T: Tables>(tables: &T, settings: &Settings, key: &FlowKey, kind: Kind, marked: u32) -> bool {
    let idle = if matches!(kind, Kind::Udp) { settings.udp_idle } else { TCP_IDLE_TICKS };
    let now = tables.ticks();
    // Signed: another CPU may have seen the next tick.
    let recent = |then| now.wrapping_sub(then) as i32 <= idle as i32;
    recent(marked) && tables.direct(key).is_some_and(recent)
}

/// From a client to a backend's own address: its replies are none of ours.
#[inline(always)]
fn past_vip<T: Tables>(tables: &T, network: &Network, transport: &Transport) -> Reason {
    let Some((key, replier)) = find(network.destination, transport, End::Destination, |key| {
        tables.replier(key).map(|replier| (*key, replier))
    }) else {
        return Reason::NotOurs;
    };
    let flow = FlowKey {
        client: network.source,
        client_port: transport.source,
        port: transport.destination,
        owner: u32::from(replier.backend),
    };
    if tables.direct(&flow) != Some(tables.ticks()) {
        tables.note_direct(&flow, &key);
    }
    Reason::Direct
}

/// Looks up an address with its port, then with port 0: every port of it.
#[inline(always)]
fn find<R>(
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

#[inline(always)]
fn contains(filter: &Filter, address: Address) -> bool {
    let bit = address.filter_bit() & (FILTER_BITS - 1);
    match filter.get((bit / 64) as usize) {
        Some(word) => word >> (bit % 64) & 1 != 0,
        None => false,
    }
}
