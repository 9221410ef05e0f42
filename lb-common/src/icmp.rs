//! ICMP errors about a service's flows: they go to whoever sent the packet that they quote.
//!
//! An error is not part of a flow: it comes from any router on the way, and names the flow by the packet that it quotes, of
//! which eight bytes behind the IP header are enough (RFC 792; RFC 4443 has more). Three kinds concern us:
//!
//! - **To a VIP**, quoting a packet *from* the VIP: a backend sent that packet. The quoted packet turned round is a request
//!   of the flow, so the rule that places requests finds the backend ([`peek`](crate::select::peek): nothing is noted for
//!   it). In `nat` the backend must recognise its packet: the VIP becomes its own address again, outside and in the quote. In
//!   the other modes the backend has the VIP, and gets the error as it gets requests. Path MTU discovery of everything that
//!   backends send depends on this (RFC 1191, RFC 8201).
//! - **Of a session** (`full-nat`), either way: a [stage of their own](crate::session::session_icmp) knows whose they are.
//! - **To a client**, quoting a packet to a `nat` backend: the backend itself or a router before it says so. The client knows
//!   the VIP only, so the backend's address in the quote becomes the VIP. So does the sender (RFC 5508, REQ-5: a router behind
//!   the translator has no address that means anything before it).
//!
//! Everything else is the host's. That goes for echo requests to a VIP as well: the host has the VIP, and answers, in pieces
//! if need be, under the sysctls that it has for that; but it gets them at a rate, and from nobody whom the VIP's services
//! deny ([`guard`](crate::guard)).
//!
//! What routers say about the packets *around* a tunnelled one goes to the tunnel's made-up source, and is lost. The tunnel's
//! MTU is known beforehand instead: [`too_big`](crate::too_big).

use crate::abi::{Address, Backend, FlowKey, Mode, Port, Replier, Service, Settings};
use crate::checksum::Delta;
use crate::guard::{Asked, asks_host};
use crate::parse::{self, Family, Kind, Network, Transport};
use crate::pipeline::{Packet, Step, Tables, Target, contains, find, stands_in};
use crate::reply::{is_direct, replier};
use crate::rewrite::{self, End};
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Icmp, Ipv4, Ipv6, Ports, Wire, Word,
};

/// ICMP's "destination unreachable".
pub const UNREACHABLE: u8 = 3;
/// Its code for "fragmentation needed and don't fragment was set".
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP's "time exceeded".
const TIME_EXCEEDED: u8 = 11;
/// ICMP's "parameter problem".
const PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6's "packet too big".
pub const PACKET_TOO_BIG: u8 = 2;
/// ICMPv6's errors: unreachable, too big, time exceeded, parameter problem.
const ERRORS_V6: core::ops::RangeInclusive<u8> = 1..=4;

/// [`Stage::Icmp`](crate::stage::Stage::Icmp): ICMP, from anybody to anybody.
///
/// # Errors
///
/// Why it goes to no backend and no client.
#[inline(always)]
pub fn icmp<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let to_vip = contains(&settings.vips, network.destination);
    if to_vip && asks_host(packet, &network) {
        return Ok(Step::Next(Stage::Host));
    }
    // Of whom no table speaks.
    let nobodys = if to_vip { Reason::OtherProtocol } else { Reason::NotOurs };
    let quote = quote(packet, &network).ok_or(nobodys)?;
    // Whoever sent a packet is told of it: anything else is made up.
    if quote.source != network.destination {
        return Err(nobodys);
    }
    let transport = quote.transport();
    if to_vip && let Some(index) = find(quote.source, &transport, End::Source, |key| tables.vip(key)) {
        return to_backend(packet, tables, settings, &network, &quote, index);
    }
    if contains(&settings.repliers, quote.destination)
        && let Some((_, replier)) = replier(tables, quote.destination, &transport, End::Destination)
    {
        return to_client(packet, tables, settings, &network, &quote, replier).map(Step::End);
    }
    if stands_in(settings, quote.source, quote.source_port) {
        return Ok(Step::Next(Stage::SessionIcmp));
    }
    Err(nobodys)
}

/// The packet that an error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quote {
    /// Where its IP header starts.
    pub l3: usize,
    /// Where its transport header starts.
    pub l4: usize,
    /// TCP or UDP.
    pub protocol: u8,
    /// Who sent it.
    pub source: Address,
    /// From this port.
    pub source_port: Port,
    /// Whom it was for.
    pub destination: Address,
    /// At this port.
    pub destination_port: Port,
}

impl Quote {
    #[inline(always)]
    const fn transport(&self) -> Transport {
        Transport {
            l4: self.l4,
            protocol: self.protocol,
            source: self.source_port,
            destination: self.destination_port,
            kind: if self.protocol == IPPROTO_UDP { Kind::Udp } else { Kind::Rst },
        }
    }
}

/// Reads what an error quotes; `None` if it is no error, or not about a packet of TCP or UDP whose ports are quoted.
#[inline(always)]
pub(crate) fn quote<P: Packet>(packet: &P, network: &Network) -> Option<Quote> {
    if network.fragment {
        return None;
    }
    let header: &Icmp = packet.view(network.next)?;
    let l3 = network.next + Icmp::SIZE;
    let (l4, protocol, source, destination) = match (network.family, network.protocol) {
        (Family::V4, IPPROTO_ICMP) => {
            // Not "source quench" (RFC 6633) nor "redirect", which is between a host and its router.
            if !matches!(header.kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) {
                return None;
            }
            let quoted: &Ipv4 = packet.view(l3)?;
            let header_length = usize::from(quoted.version_ihl & 0x0f) * 4;
            // A later fragment has no ports.
            if quoted.version_ihl >> 4 != 4
                || header_length < Ipv4::SIZE
                || u16::from_be_bytes(quoted.fragment) & Ipv4::FRAGMENT_OFFSET != 0
            {
                return None;
            }
            let (source, destination) = (Address::v4(quoted.source), Address::v4(quoted.destination));
            (l3 + header_length, quoted.protocol, source, destination)
        }
        (Family::V6, IPPROTO_ICMPV6) => {
            if !ERRORS_V6.contains(&header.kind) {
                return None;
            }
            let quoted: &Ipv6 = packet.view(l3)?;
            let (source, destination) = (Address::v6(&quoted.source), Address::v6(&quoted.destination));
            if quoted.version_class_label[0] >> 4 != 6 || source.is_v4() || destination.is_v4() {
                return None;
            }
            let (mut protocol, mut l4) = (quoted.next_header, l3 + Ipv6::SIZE);
            if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
                (protocol, l4) = packet.past_extensions(protocol, l4).ok()?;
            }
            (l4, protocol, source, destination)
        }
        _ => return None,
    };
    if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) || l4 + Ports::SIZE > network.end {
        return None;
    }
    let ports: &Ports = packet.view(l4)?;
    let (source_port, destination_port) = (Port::of_wire(ports.source), Port::of_wire(ports.destination));
    Some(Quote { l3, l4, protocol, source, source_port, destination, destination_port })
}

/// About a packet that a backend sent.
#[inline(always)]
fn to_backend<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    settings: &Settings,
    network: &Network,
    quote: &Quote,
    index: u32,
) -> Result<Step, Reason> {
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    // One key after the other in one place: there is no room for two on the stack.
    let mut key = FlowKey {
        client: network.source,
        client_port: quote.destination_port,
        port: quote.source_port,
        owner: index,
    };
    let guarded = service.has(Service::GUARDED);
    if guarded {
        // Whoever speaks of a flow may be any router on the way, but for those that are denied.
        tables.listed(&key, Asked(Asked::DENIED))?;
    }
    // A request of the same flow is the quoted packet turned round.
    key.client = quote.destination;
    if guarded {
        tables.listed(&key, Asked(Asked::LISTS))?;
    }
    if service.has(Service::SESSIONS) {
        return Ok(Step::Next(Stage::SessionIcmp));
    }
    let place = tables.peek(service, &key)?;
    if place.backend == 0 {
        return Err(Reason::OtherProtocol);
    }
    let target = Target::of(tables, &place)?;
    // Nobody is told of an error about an error.
    if !target.fits(service, network) {
        return Err(Reason::TooBig);
    }
    if service.mode == Mode::Nat as u8 {
        let Backend { address, port, .. } = *target.backend;
        let port = if port.is_any() { quote.source_port } else { port };
        let client = (quote.destination, quote.destination_port);
        translate(packet, network, quote, network.source, (address, port), client)?;
        rewrite::link(packet, target.device.mac, target.mac)?;
    } else {
        target.carry(packet, settings, service, network, place.spread)?;
    }
    let ifindex = leaving(packet, target.device.ifindex);
    Ok(Step::End(Verdict { reason: Reason::ErrorForwarded, ifindex, account: Account::NONE }))
}

/// About a packet that a client sent, as a `nat` backend got it.
#[inline(always)]
fn to_client<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    settings: &Settings,
    network: &Network,
    quote: &Quote,
    replier: Replier,
) -> Result<Verdict, Reason> {
    let client = (quote.source, quote.source_port);
    if is_direct(tables, settings, &replier, client, quote.destination_port, quote.transport().kind) {
        return Err(Reason::Direct);
    }
    let exit = tables.route(packet, network).exit()?;
    let service: &Service = tables.service(replier.service).ok_or(Reason::NoTable)?;
    let port = if service.port.is_any() { quote.destination_port } else { service.port };
    translate(packet, network, quote, service.vip, client, (service.vip, port))?;
    let Some(exit) = exit else {
        return Ok(Verdict::of(Reason::ErrorRepliedByHost));
    };
    rewrite::link(packet, exit.source, exit.destination)?;
    let ifindex = leaving(packet, exit.ifindex);
    Ok(Verdict { reason: Reason::ErrorReplied, ifindex, account: Account::NONE })
}

/// Where TCP's checksum is.
const TCP_CHECKSUM: usize = 16;

/// Makes it an error from `from` about the packet from `source` to `destination`, which it goes to. Counts a hop.
///
/// The quoted packet comes out as it was before it was translated, its checksums included (as far as they are quoted), and
/// the error's own checksum follows from what has changed.
#[inline(always)]
pub(crate) fn translate<P: Packet>(
    packet: &mut P,
    network: &Network,
    quote: &Quote,
    from: Address,
    source: (Address, Port),
    destination: (Address, Port),
) -> Result<(), Reason> {
    // First, since it is what may send the packet up: as it came.
    let around = rewrite::readdress_both(packet, network, from, source.0)?;

    let moved = Delta::NONE
        .address(quote.source.wire_words(), source.0.wire_words())
        .address(quote.destination.wire_words(), destination.0.wire_words());
    let transport = moved
        .word(quote.source_port.wire(), source.1.wire())
        .word(quote.destination_port.wire(), destination.1.wire());
    // Of the message: the quoted addresses and all that depends on them.
    let mut delta = transport;
    match network.family {
        Family::V4 => {
            let quoted: &mut Ipv4 = packet.view_mut(quote.l3).ok_or(Reason::Malformed)?;
            let before = quoted.checksum;
            quoted.checksum = moved.apply(before);
            delta = delta.word(before, quoted.checksum);
            quoted.source = source.0.v4_octets();
            quoted.destination = destination.0.v4_octets();
        }
        Family::V6 => {
            let quoted: &mut Ipv6 = packet.view_mut(quote.l3).ok_or(Reason::Malformed)?;
            quoted.source = source.0.v6_octets();
            quoted.destination = destination.0.v6_octets();
            // The pseudo header around the message.
            delta = delta.and(around);
        }
    }
    let ports: &mut Ports = packet.view_mut(quote.l4).ok_or(Reason::Malformed)?;
    ports.source = source.1.wire();
    ports.destination = destination.1.wire();
    if quote.protocol == IPPROTO_UDP {
        // UDP's checksum is in the eight bytes that are there.
        let [a, b, c, d] = ports.rest;
        let [e, f] = transport.apply_udp([c, d]);
        ports.rest = [a, b, e, f];
        delta = delta.word([c, d], [e, f]);
    } else if quote.l4 + TCP_CHECKSUM + Word::SIZE <= network.end
        && let Some(Word(checksum)) = packet.view_mut(quote.l4 + TCP_CHECKSUM)
    {
        let before = *checksum;
        *checksum = transport.apply(before);
        delta = delta.word(before, *checksum);
    }
    let header: &mut Icmp = packet.view_mut(network.next).ok_or(Reason::Malformed)?;
    header.checksum = delta.apply(header.checksum);
    Ok(())
}
