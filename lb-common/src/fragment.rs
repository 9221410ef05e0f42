//! Fragments follow their first: only it has the ports that say whose the packet is.
//!
//! The first fragment is placed as a whole packet is, and leaves a note in `FRAGMENTS`; the others have the same addresses,
//! protocol and identification (RFC 791, RFC 8200), and go where the note says. Nothing is put together here: whoever receives
//! the fragments does that, and judges whether they overlap, lack one, or come too late.
//!
//! Fragments that come before their first, or long after it, are unknown. They go up and are counted: the host throws away
//! what it cannot complete, and what it can was its own. On one way the order rarely changes, so that is rare.
//!
//! A note is worth something for as long as a receiver waits for the rest, and a flood of first fragments churns this table
//! only.

use crate::abi::{
    Address, FRAGMENT_TICKS, FlowKey, FragmentEntry, FragmentKey, Mode, Port, Service, Settings,
};
use crate::parse::{self, Family, Kind, Network, Transport};
use crate::pipeline::{Packet, Route, Step, Tables, Target, contains, ended, find, find_service};
use crate::reply::{is_direct, past_vip};
use crate::rewrite::{self, End};
use crate::select::Place;
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{
    IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_TCP, IPPROTO_UDP, Ipv4,
    Ipv6Extension, Ipv6Fragment, Ports, TCP_ACK, TCP_RST, TCP_SYN, Tcp, Udp, Wire,
};

/// How many extension headers may stand before a fragment header: hop-by-hop options and a routing header.
const MAX_BEFORE: usize = 2;

/// [`Stage::Fragment`](crate::stage::Stage::Fragment): a fragment from or to an address that may be a service's or a
/// backend's.
///
/// # Errors
///
/// Why it follows no first fragment, or leads no others.
#[inline(always)]
pub fn fragment<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    match to_backend(packet, tables) {
        // Neither to a service, nor after one that was.
        Err(Reason::NotOurs) => Ok(Step::Next(Stage::FragmentReply)),
        result => ended(result),
    }
}

/// [`Stage::FragmentReply`](crate::stage::Stage::FragmentReply): a fragment that is for no service, perhaps from a `nat`
/// backend to its client.
///
/// # Errors
///
/// As [`fragment`].
#[inline(always)]
pub fn fragment_reply<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    ended(to_client(packet, tables))
}

#[inline(always)]
fn to_backend<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let piece = Piece::of_flow(packet, &network)?;
    let place = if piece.first {
        if !contains(&settings.vips, network.destination) {
            return Err(Reason::NotOurs);
        }
        let transport = transport(packet, &network, piece.protocol, piece.l4)?;
        let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
        let service = tables.service(index).ok_or(Reason::NoTable)?;
        if service.has(Service::SESSIONS) {
            // The host would put it together, know of no connection, and end it with a RST.
            return Err(Reason::NoSession);
        }
        let key = FlowKey::of_request(&network, &transport, index);
        let place = tables.place_attended(service, &key, transport.kind)?;
        if place.backend == 0 {
            return Err(Reason::NoBackend);
        }
        note(tables, &network, &piece, place.backend, FragmentEntry::TO_BACKEND, place.spread)?;
        place
    } else {
        let entry = follow(tables, &network, &piece)?;
        if entry.way != FragmentEntry::TO_BACKEND {
            return Err(Reason::NotOurs);
        }
        Place { backend: entry.backend, begins: false, spread: entry.spread }
    };
    let target = Target::of(tables, &place)?;
    let service = tables.service(target.backend.service).ok_or(Reason::NoTable)?;
    if !target.fits(service, &network) {
        return Err(Reason::TooBig);
    }
    if service.mode == Mode::Nat as u8 {
        let (address, port) = (target.backend.address, target.backend.port);
        translate(packet, &network, &piece, End::Destination, address, port)?;
        rewrite::link(packet, target.device.mac, target.mac)?;
    } else {
        target.carry(packet, settings, service, &network, place.spread)?;
    }
    let account = Account {
        backend: place.backend,
        pool: target.backend.pool,
        bytes: network.end as u32,
        begins: place.begins.into(),
    };
    let ifindex = leaving(packet, target.device.ifindex);
    Ok(Verdict { reason: Reason::FragmentForwarded, ifindex, account })
}

#[inline(always)]
fn to_client<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let piece = Piece::of_flow(packet, &network)?;
    let id = if piece.first {
        let transport = transport(packet, &network, piece.protocol, piece.l4)?;
        let id = lead_back(tables, settings, &network, &transport)?;
        note(tables, &network, &piece, id, FragmentEntry::TO_CLIENT, 0)?;
        id
    } else {
        follow(tables, &network, &piece)?.backend
    };
    let backend = tables.backend(id).ok_or(Reason::NoTable)?;
    let service = tables.service(backend.service).ok_or(Reason::NoTable)?;
    let account = Account { backend: id, pool: backend.pool, bytes: network.end as u32, begins: 0 };
    // (A number for both: LLVM would keep what is none in a register that a helper has cleared.)
    let (ifindex, out) = match tables.route(packet, &network) {
        Route::Out { ifindex, source, destination } => {
            (leaving(packet, ifindex), Some((source, destination)))
        }
        Route::Unresolved => (0, None),
        Route::Local => return Err(Reason::Local),
        Route::TooBig => return Err(Reason::TooBig),
        Route::ForwardingOff => return Err(Reason::ForwardingOff),
        Route::None => return Err(Reason::NoRoute),
    };
    translate(packet, &network, &piece, End::Source, service.vip, service.port)?;
    let Some((source, destination)) = out else {
        return Ok(Verdict { reason: Reason::FragmentRepliedByHost, ifindex: 0, account });
    };
    rewrite::link(packet, source, destination)?;
    Ok(Verdict { reason: Reason::FragmentReplied, ifindex, account })
}

/// The backend whose reply begins with this fragment.
#[inline(always)]
fn lead_back<T: Tables>(
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
) -> Result<u16, Reason> {
    if contains(&settings.repliers, network.source)
        && let Some(replier) = find(network.source, transport, End::Source, |key| tables.replier(key))
    {
        let key = FlowKey {
            client: network.destination,
            client_port: transport.destination,
            port: transport.source,
            owner: u32::from(replier.backend),
        };
        if replier.direct != 0 && is_direct(tables, settings, &key, transport.kind, replier.direct) {
            return Err(Reason::Direct);
        }
        return Ok(replier.backend);
    }
    if contains(&settings.repliers, network.destination) {
        return Err(past_vip(tables, network, transport));
    }
    Err(Reason::NotOurs)
}

/// A first fragment leaves a note for the others.
#[inline(always)]
fn note<T: Tables>(
    tables: &T,
    network: &Network,
    piece: &Piece,
    backend: u16,
    way: u16,
    spread: u32,
) -> Result<(), Reason> {
    if piece.more {
        let generation = tables.backend(backend).ok_or(Reason::NoTable)?.life().generation();
        let entry = FragmentEntry { backend, way, generation, at: tables.ticks(), spread };
        tables.note_fragments(&piece.key(network), &entry);
    }
    Ok(())
}

/// Another fragment: where the first one went.
#[inline(always)]
fn follow<T: Tables>(tables: &T, network: &Network, piece: &Piece) -> Result<FragmentEntry, Reason> {
    let entry = tables.fragments(&piece.key(network)).ok_or(Reason::FragmentUnknown)?;
    let backend = tables.backend(entry.backend).ok_or(Reason::NoTable)?;
    if tables.ticks().wrapping_sub(entry.at) > FRAGMENT_TICKS
        || backend.life().generation() != entry.generation
    {
        return Err(Reason::FragmentUnknown);
    }
    Ok(entry)
}

/// Addresses in every fragment; ports and checksum in the first.
#[inline(always)]
fn translate<P: Packet>(
    packet: &mut P,
    network: &Network,
    piece: &Piece,
    end: End,
    address: Address,
    port: Port,
) -> Result<(), Reason> {
    if !piece.first {
        return rewrite::readdress(packet, network, end, address);
    }
    let ports: &Ports = packet.view(piece.l4).ok_or(Reason::Malformed)?;
    let (source, destination) = (Port::of_wire(ports.source), Port::of_wire(ports.destination));
    let Piece { l4, protocol, .. } = *piece;
    // What kind it is makes no difference any more.
    let transport = Transport { l4, protocol, source, destination, kind: Kind::Udp };
    rewrite::translate(packet, network, &transport, end, address, port)
}

/// The transport header of a whole packet or of a first fragment, for what needs no more than its ports.
///
/// # Errors
///
/// As [`parse::transport`], and [`Reason::TooBig`] for another fragment: its sender is told of the first, and listens to that
/// only.
#[inline(always)]
pub fn first_transport<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    match Piece::of(packet, network)? {
        None => parse::transport(packet, network),
        Some(piece) if piece.first => transport(packet, network, piece.protocol, piece.l4),
        Some(_) => Err(Reason::TooBig),
    }
}

/// A piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// It begins the packet.
    first: bool,
    /// Others come after it.
    more: bool,
    /// What all pieces of a packet share.
    id: u32,
    /// What the packet's first piece begins with.
    protocol: u8,
    /// Where that starts, in the first piece.
    l4: usize,
}

impl Piece {
    /// A piece of a packet whose first one has ports. (The protocol is in every piece.)
    #[inline(always)]
    fn of_flow<P: Packet>(packet: &P, network: &Network) -> Result<Self, Reason> {
        let piece = Self::of(packet, network)?.ok_or(Reason::Fragment)?;
        let has_ports = piece.protocol == IPPROTO_TCP || piece.protocol == IPPROTO_UDP;
        if has_ports { Ok(piece) } else { Err(Reason::Fragment) }
    }

    /// `None` if the packet is whole.
    #[inline(always)]
    fn of<P: Packet>(packet: &P, network: &Network) -> Result<Option<Self>, Reason> {
        match network.family {
            Family::V4 if network.fragment => {
                let header: &Ipv4 = packet.view(network.l3).ok_or(Reason::Malformed)?;
                let fragment = u16::from_be_bytes(header.fragment);
                Ok(Some(Self {
                    first: fragment & Ipv4::FRAGMENT_OFFSET == 0,
                    more: fragment & Ipv4::MORE_FRAGMENTS != 0,
                    id: u16::from_ne_bytes(header.id).into(),
                    protocol: network.protocol,
                    l4: network.next,
                }))
            }
            Family::V4 => Ok(None),
            Family::V6 => Self::v6(packet, network),
        }
    }

    #[inline(always)]
    fn v6<P: Packet>(packet: &P, network: &Network) -> Result<Option<Self>, Reason> {
        let (mut protocol, mut offset) = (network.protocol, network.next);
        for _ in 0..MAX_BEFORE {
            if !matches!(protocol, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS) {
                break;
            }
            let header: &Ipv6Extension = packet.view(offset).ok_or(Reason::Malformed)?;
            protocol = header.next_header;
            offset += 8 + usize::from(header.length) * 8;
        }
        if protocol != IPPROTO_FRAGMENT {
            return Ok(None);
        }
        let header: &Ipv6Fragment = packet.view(offset).ok_or(Reason::Malformed)?;
        let fragment = u16::from_be_bytes(header.offset);
        Ok(Some(Self {
            first: fragment & Ipv6Fragment::FRAGMENT_OFFSET == 0,
            more: fragment & Ipv6Fragment::MORE_FRAGMENTS != 0,
            id: u32::from_ne_bytes(header.id),
            protocol: header.next_header,
            l4: offset + Ipv6Fragment::SIZE,
        }))
    }

    #[inline(always)]
    const fn key(&self, network: &Network) -> FragmentKey {
        FragmentKey {
            source: network.source,
            destination: network.destination,
            id: self.id,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

/// The transport header of a first fragment: what lengths say of the whole packet does not hold here.
#[inline(always)]
fn transport<P: Packet>(packet: &P, network: &Network, protocol: u8, l4: usize) -> Result<Transport, Reason> {
    // Cut within the transport header: nobody honest does that (RFC 1858).
    match protocol {
        IPPROTO_TCP => {
            let header: &Tcp = packet.view(l4).ok_or(Reason::Malformed)?;
            if l4 + Tcp::SIZE > network.end {
                return Err(Reason::Malformed);
            }
            let (source, destination) = (Port::of_wire(header.source), Port::of_wire(header.destination));
            let sequence = u32::from_be_bytes(header.sequence);
            let kind = match header.flags & (TCP_SYN | TCP_ACK | TCP_RST) {
                TCP_SYN => Kind::Syn(sequence),
                flags if flags & TCP_RST != 0 => Kind::Rst,
                _ => Kind::Tcp(sequence),
            };
            Ok(Transport { l4, protocol, source, destination, kind })
        }
        IPPROTO_UDP => {
            let header: &Udp = packet.view(l4).ok_or(Reason::Malformed)?;
            if l4 + Udp::SIZE > network.end {
                return Err(Reason::Malformed);
            }
            let (source, destination) = (Port::of_wire(header.source), Port::of_wire(header.destination));
            Ok(Transport { l4, protocol, source, destination, kind: Kind::Udp })
        }
        _ => Err(Reason::Fragment),
    }
}
