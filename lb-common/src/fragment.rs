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
use crate::guard::Asked;
use crate::parse::{self, Family, Kind, Network, Transport};
use crate::pipeline::{Packet, Step, Tables, Target, contains, find_service, stands_in};
use crate::reply::{is_no_reply, past_vip, replier};
use crate::rewrite::{self, End};
use crate::select::Place;
use crate::session;
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{
    IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_TCP, IPPROTO_UDP, Ipv4,
    Ipv6Extension, Ipv6Fragment, Ports, Wire,
};

/// How many extension headers may stand before a fragment header: hop-by-hop options, options for those that a routing header
/// names, and that header (RFC 8200, section 4.1).
const MAX_BEFORE: usize = 3;

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
        Err(Reason::TooBig) => Ok(Step::Next(Stage::TooBig)),
        Err(Reason::Fragment | Reason::FragmentUnknown) => Ok(Step::Next(Stage::Host)),
        result => result,
    }
}

/// [`Stage::FragmentReply`](crate::stage::Stage::FragmentReply): a fragment that is for no service, perhaps from a backend to its
/// client.
///
/// # Errors
///
/// As [`fragment`].
#[inline(always)]
pub fn fragment_reply<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    match to_client(packet, tables) {
        Err(Reason::TooBig) => Ok(Step::Next(Stage::TooBig)),
        result => result,
    }
}

#[inline(always)]
fn to_backend<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let piece = Piece::of_flow(packet, &network)?;
    let place = if piece.first {
        if !contains(&settings.vips, network.destination) {
            return Err(Reason::NotOurs);
        }
        let Ok(transport) = piece.transport(packet, &network) else {
            return Ok(Step::Next(Stage::Host));
        };
        let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
        let service = tables.service(index).ok_or(Reason::NoTable)?;
        if matches!(transport.kind, Kind::Syn(_)) && service.has(Service::HANDSHAKES | Service::FAULTS) {
            // It would begin a connection past limits, faults and whoever measures.
            return Err(Reason::FragmentedSyn);
        }
        let key = FlowKey::of_request(&network, &transport, index);
        if service.has(Service::GUARDED) {
            // Who is not let through leaves no note for the others, either.
            tables.admits(&key, Asked::of(transport.kind))?;
        }
        if service.has(Service::SESSIONS) {
            return Ok(Step::Next(Stage::Opening));
        }
        let place = tables.place_attended(service, &key, transport.kind)?;
        if place.backend == 0 {
            return Err(Reason::NoBackend);
        }
        note(tables, &network, &piece, place.backend, FragmentEntry::TO_BACKEND, place.spread)?;
        place
    } else {
        let entry = follow(tables, &network, &piece)?;
        match entry.way {
            FragmentEntry::TO_BACKEND => {}
            FragmentEntry::SESSION => return Ok(Step::Next(Stage::SessionFragment)),
            _ => return Err(Reason::NotOurs),
        }
        Place { backend: entry.backend, begins: false, spread: entry.spread }
    };
    let target = Target::of(tables, &place)?;
    let index = target.backend.service;
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    if !piece.first && service.has(Service::GUARDED) {
        tables.admits(&FlowKey::of_piece(&network, index), Asked::PIECE)?;
    }
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
    let account = Account::of(place.backend, target.backend, &network, place.begins);
    let ifindex = leaving(packet, target.device.ifindex);
    Ok(Step::End(Verdict { reason: Reason::FragmentForwarded, ifindex, account }))
}

#[inline(always)]
fn to_client<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let piece = Piece::of_flow(packet, &network)?;
    let id = if piece.first {
        let transport = piece.transport(packet, &network)?;
        let Some(id) = lead_back(tables, settings, &network, &transport)? else {
            return Ok(Step::Next(session::takes(tables, &network, &transport)));
        };
        note(tables, &network, &piece, id, FragmentEntry::TO_CLIENT, 0)?;
        id
    } else {
        follow(tables, &network, &piece)?.backend
    };
    let backend = tables.backend(id).ok_or(Reason::NoTable)?;
    let service = tables.service(backend.service).ok_or(Reason::NoTable)?;
    let account = Account::of(id, backend, &network, false);
    let exit = tables.route(packet, &network).exit()?;
    translate(packet, &network, &piece, End::Source, service.vip, service.port)?;
    let Some(exit) = exit else {
        return Ok(Step::End(Verdict { reason: Reason::FragmentRepliedByHost, ifindex: 0, account }));
    };
    rewrite::link(packet, exit.source, exit.destination)?;
    Ok(Step::End(Verdict {
        reason: Reason::FragmentReplied,
        ifindex: leaving(packet, exit.ifindex),
        account,
    }))
}

/// The `nat` backend whose reply begins with this fragment; `None`: it may be of a session.
#[inline(always)]
fn lead_back<T: Tables>(
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
) -> Result<Option<u16>, Reason> {
    if contains(&settings.repliers, network.source)
        && let Some(found) = replier(tables, network.source, transport, End::Source)
    {
        if is_no_reply(tables, settings, network, transport, &found) {
            return Err(Reason::Direct);
        }
        return Ok(Some(found.1.backend));
    }
    if contains(&settings.repliers, network.destination) {
        past_vip(tables, network, transport)?;
    }
    if stands_in(settings, network.destination, transport.destination) {
        return Ok(None);
    }
    Err(Reason::NotOurs)
}

/// A first fragment leaves a note for the others.
#[inline(always)]
pub(crate) fn note<T: Tables>(
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
pub(crate) fn follow<T: Tables>(
    tables: &T,
    network: &Network,
    piece: &Piece,
) -> Result<FragmentEntry, Reason> {
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

/// The transport header of a whole packet or of a first fragment.
///
/// # Errors
///
/// As [`parse::transport`], and [`Reason::TooBig`] for another fragment: its sender is told of the first, and listens to that
/// only.
#[inline(always)]
pub fn leading<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    if network.family == Family::V4 && !network.fragment {
        return parse::transport(packet, network);
    }
    located(packet, network)
}

/// The same for what begins something: one way for all of them, which the kernel verifies by itself.
///
/// # Errors
///
/// As [`leading`].
#[inline(always)]
pub fn located<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    let (protocol, l4) = packet.leads(network)?;
    parse::header(packet, network, protocol, l4, false)
}

/// Where that header is: its protocol and its offset. All of it is there.
///
/// # Errors
///
/// As [`leading`].
#[inline(always)]
pub fn leads<P: Packet>(packet: &P, network: &Network) -> Result<(u8, usize), Reason> {
    let (protocol, l4, whole) = match Piece::of(packet, network)? {
        Some(piece) if piece.first => (piece.protocol, piece.l4, false),
        Some(_) => return Err(Reason::TooBig),
        None if network.family == Family::V6 => {
            let (protocol, l4) = parse::extensions(packet, network.protocol, network.next)?;
            (protocol, l4, true)
        }
        None => (network.protocol, network.next, true),
    };
    parse::header(packet, network, protocol, packet.bounded(l4), whole)?;
    Ok((protocol, l4))
}

/// A piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// It begins the packet.
    pub first: bool,
    /// Others come after it.
    pub more: bool,
    /// What all pieces of a packet share.
    pub id: u32,
    /// What the packet's first piece begins with.
    pub protocol: u8,
    /// Where that starts, in the first piece.
    pub l4: usize,
}

/// What a packet is to the host that may have it: [`Reason::NotOurs`] or [`Reason::OtherProtocol`] if it is whole, else
/// [`Reason::Fragment`] or, where a first one would have led it, [`Reason::FragmentUnknown`]; [`Reason::Malformed`] if it is the
/// first one, and hides its header.
#[inline(always)]
pub(crate) fn for_host<P: Packet>(packet: &P, network: &Network) -> Result<Reason, Reason> {
    Ok(match Piece::of(packet, network)? {
        None if matches!(network.protocol, IPPROTO_TCP | IPPROTO_UDP) => Reason::NotOurs,
        None => Reason::OtherProtocol,
        Some(piece) if piece.has_ports() => {
            if piece.first && piece.transport(packet, network).is_err() {
                Reason::Malformed
            } else {
                Reason::FragmentUnknown
            }
        }
        Some(_) => Reason::Fragment,
    })
}

impl Piece {
    /// A piece of a packet whose first one has ports. (The protocol is in every piece.)
    #[inline(always)]
    pub fn of_flow<P: Packet>(packet: &P, network: &Network) -> Result<Self, Reason> {
        let piece = Self::of(packet, network)?.ok_or(Reason::Fragment)?;
        if piece.has_ports() { Ok(piece) } else { Err(Reason::Fragment) }
    }

    #[inline(always)]
    const fn has_ports(&self) -> bool {
        self.protocol == IPPROTO_TCP || self.protocol == IPPROTO_UDP
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

    /// The transport header of a first piece.
    #[inline(always)]
    pub fn transport<P: Packet>(&self, packet: &P, network: &Network) -> Result<Transport, Reason> {
        parse::header(packet, network, self.protocol, self.l4, false)
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
