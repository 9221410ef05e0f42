//! What is done to a packet that leaves: three edits, composed from the link, network and transport headers.
//!
//! # Hops
//!
//! `nat` is routing, so a packet that leaves has one hop less, and one that has none left is not forwarded (RFC 1812, section
//! 5.3.1): it goes up as it came. Of a backend's reply the host then tells the backend that its time is exceeded. A client's
//! request is addressed to the VIP, which the host has: the host answers as the end of the road, as far as that client's
//! packets get.
//!
//! `dsr-l2` hands the packet to another host of the same link that has the VIP, and `dsr-ipip` and `dsr-gue` carry it in a packet
//! with hops of its own: they leave it as it came, as Katran does. (IPVS takes a hop off in every mode, against loops of balancers.)

use crate::abi::{Address, Backend, Port, Service, Settings};
use crate::checksum::{self, Delta};
use crate::parse::{Family, Kind, Network, Transport};
use crate::pipeline::Packet;
use crate::verdict::Reason;
use crate::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, Ipv4,
    Ipv6, Mac, Mss, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp, VlanTag, Wire, Word,
};

/// Time to live of packets that begin here.
const TTL: u8 = 64;

/// Which end of a flow an address rewrite replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A client's packet gets its backend's address.
    Destination,
    /// A backend's packet gets the VIP's.
    Source,
}

/// Sets both hardware addresses.
#[inline(always)]
pub fn link<P: Packet>(packet: &mut P, source: Mac, destination: Mac) -> Result<(), Reason> {
    let ethernet: &mut Ethernet = packet.view_mut(0).ok_or(Reason::Malformed)?;
    ethernet.source = source;
    ethernet.destination = destination;
    Ok(())
}

/// Replaces address and port of one end, and counts a hop, as a router does. Port 0 keeps the port.
#[inline(always)]
pub fn translate<P: Packet>(
    packet: &mut P,
    network: &Network,
    transport: &Transport,
    end: End,
    address: Address,
    port: Port,
) -> Result<(), Reason> {
    let (old_address, old_port) = match end {
        End::Destination => (network.destination, transport.destination),
        End::Source => (network.source, transport.source),
    };
    let port = if port.is_any() { old_port } else { port };
    readdress(packet, network, end, address)?;
    // The pseudo header has the addresses in it. For IPv4 the other three words are the same on both sides.
    let delta = Delta::NONE
        .address(old_address.wire_words(), address.wire_words())
        .word(old_port.wire(), port.wire());
    if transport.protocol == IPPROTO_TCP {
        let header: &mut Tcp = packet.view_mut(transport.l4).ok_or(Reason::Malformed)?;
        header.checksum = delta.apply(header.checksum);
        match end {
            End::Destination => header.destination = port.wire(),
            End::Source => header.source = port.wire(),
        }
    } else {
        let header: &mut Udp = packet.view_mut(transport.l4).ok_or(Reason::Malformed)?;
        header.checksum = delta.apply_udp(header.checksum);
        match end {
            End::Destination => header.destination = port.wire(),
            End::Source => header.source = port.wire(),
        }
    }
    Ok(())
}

/// Replaces addresses and ports of both ends, and counts a hop.
#[inline(always)]
pub fn translate_both<P: Packet>(
    packet: &mut P,
    network: &Network,
    transport: &Transport,
    source: (Address, Port),
    destination: (Address, Port),
) -> Result<(), Reason> {
    let delta = readdress_both(packet, network, source.0, destination.0)?
        .word(transport.source.wire(), source.1.wire())
        .word(transport.destination.wire(), destination.1.wire());
    if transport.protocol == IPPROTO_TCP {
        let header: &mut Tcp = packet.view_mut(transport.l4).ok_or(Reason::Malformed)?;
        header.checksum = delta.apply(header.checksum);
        header.source = source.1.wire();
        header.destination = destination.1.wire();
    } else {
        let header: &mut Udp = packet.view_mut(transport.l4).ok_or(Reason::Malformed)?;
        header.checksum = delta.apply_udp(header.checksum);
        header.source = source.1.wire();
        header.destination = destination.1.wire();
    }
    Ok(())
}

/// Replaces both addresses in the IP header, and counts a hop: all there is to do for a fragment without ports. Returns the change of a
/// pseudo header.
#[inline(always)]
pub fn readdress_both<P: Packet>(
    packet: &mut P,
    network: &Network,
    source: Address,
    destination: Address,
) -> Result<Delta, Reason> {
    match network.family {
        Family::V4 => {
            let addresses = Delta::NONE
                .long(network.source.wire_words()[3], source.wire_words()[3])
                .long(network.destination.wire_words()[3], destination.wire_words()[3]);
            let header: &mut Ipv4 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            if header.ttl <= 1 {
                return Err(Reason::TtlExpired);
            }
            let ttl = header.ttl - 1;
            header.checksum =
                addresses.word([header.ttl, header.protocol], [ttl, header.protocol]).apply(header.checksum);
            header.ttl = ttl;
            header.source = source.v4_octets();
            header.destination = destination.v4_octets();
            Ok(addresses)
        }
        Family::V6 => {
            let header: &mut Ipv6 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            if header.hop_limit <= 1 {
                return Err(Reason::TtlExpired);
            }
            header.hop_limit -= 1;
            header.source = source.v6_octets();
            header.destination = destination.v6_octets();
            Ok(Delta::NONE
                .address(network.source.wire_words(), source.wire_words())
                .address(network.destination.wire_words(), destination.wire_words()))
        }
    }
}

/// Replaces the address of one end in the IP header, and counts a hop: all there is to do for a fragment without ports.
#[inline(always)]
pub fn readdress<P: Packet>(
    packet: &mut P,
    network: &Network,
    end: End,
    address: Address,
) -> Result<(), Reason> {
    match network.family {
        Family::V4 => {
            let old = match end {
                End::Destination => network.destination,
                End::Source => network.source,
            };
            let header: &mut Ipv4 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            if header.ttl <= 1 {
                return Err(Reason::TtlExpired);
            }
            let ttl = header.ttl - 1;
            header.checksum = Delta::NONE
                .long(old.wire_words()[3], address.wire_words()[3])
                .word([header.ttl, header.protocol], [ttl, header.protocol])
                .apply(header.checksum);
            header.ttl = ttl;
            match end {
                End::Destination => header.destination = address.v4_octets(),
                End::Source => header.source = address.v4_octets(),
            }
        }
        Family::V6 => {
            let header: &mut Ipv6 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            if header.hop_limit <= 1 {
                return Err(Reason::TtlExpired);
            }
            header.hop_limit -= 1;
            match end {
                End::Destination => header.destination = address.v6_octets(),
                End::Source => header.source = address.v6_octets(),
            }
        }
    }
    Ok(())
}

/// Bytes that [`encapsulate`] adds for this backend.
#[must_use]
#[inline(always)]
pub const fn overhead(backend: &Backend) -> usize {
    let outer = if backend.address.is_v4() { Ipv4::SIZE } else { Ipv6::SIZE };
    if backend.gue_port.is_any() { outer } else { outer + Udp::SIZE }
}

/// Puts the packet into another one, to `backend`, and sets the hardware addresses.
///
/// Directly (RFC 2003, RFC 2473, RFC 4213), or in a UDP datagram where the backend has a port for that: variant 1 of GUE,
/// which has no header of its own (draft-ietf-intarea-gue, section 3.2; Linux's `ip fou add port … gue` takes it).
///
/// The outer source is made from the flow's hash, so that the receiver spreads flows over its queues although all come from
/// one balancer; whoever receives them checks the prefix. UDP's source port says the same to routers that look at ports
/// (RFC 8085, section 5.1.1). DSCP and ECN are copied (RFC 2983, RFC 6040). UDP has no checksum, over IPv6 neither: what is
/// inside has its own, and a tunnel may leave it out (RFC 6935; Linux's receiver does not insist).
///
/// # Errors
///
/// [`Reason::NoHeadroom`] if the driver left no room.
#[inline(always)]
pub fn encapsulate<P: Packet>(
    packet: &mut P,
    network: &Network,
    settings: &Settings,
    spread: u32,
    backend: &Backend,
    source: Mac,
    destination: Mac,
) -> Result<(), Reason> {
    let traffic_class = match network.family {
        Family::V4 => packet.view::<Ipv4>(network.l3).ok_or(Reason::Malformed)?.tos,
        Family::V6 => {
            let [a, b, ..] = packet.view::<Ipv6>(network.l3).ok_or(Reason::Malformed)?.version_class_label;
            a << 4 | b >> 4
        }
    };
    let gue = !backend.gue_port.is_any();
    let udp_length = ((network.end - network.l3) as u16).wrapping_add(Udp::SIZE as u16);
    let (length, inner, udp) = if gue {
        (udp_length, IPPROTO_UDP, Udp::SIZE)
    } else {
        let inner = match network.family {
            Family::V4 => IPPROTO_IPIP,
            Family::V6 => IPPROTO_IPV6,
        };
        ((network.end - network.l3) as u16, inner, 0)
    };
    let [s0, s1, s2, s3] = spread.to_be_bytes();
    let l4 = if backend.address.is_v4() {
        packet.grow_head(Ipv4::SIZE + udp).ok_or(Reason::NoHeadroom)?;
        move_link(packet, Ipv4::SIZE + udp, network.l3, ETHERTYPE_IPV4, source, destination)?;
        let outer: &mut Ipv4 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
        let [t0, t1, ..] = settings.tunnel_v4;
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: traffic_class,
            total_length: length.wrapping_add(Ipv4::SIZE as u16).to_be_bytes(),
            id: [0; 2],
            fragment: [Ipv4::DONT_FRAGMENT, 0],
            ttl: TTL,
            protocol: inner,
            checksum: [0; 2],
            source: [t0, t1, s2, s3],
            destination: backend.address.v4_octets(),
        };
        header.checksum = checksum::ipv4_header(&header);
        *outer = header;
        network.l3 + Ipv4::SIZE
    } else {
        packet.grow_head(Ipv6::SIZE + udp).ok_or(Reason::NoHeadroom)?;
        move_link(packet, Ipv6::SIZE + udp, network.l3, ETHERTYPE_IPV6, source, destination)?;
        let outer: &mut Ipv6 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
        outer.version_class_label = [0x60 | traffic_class >> 4, traffic_class << 4, 0, 0];
        outer.payload_length = length.to_be_bytes();
        outer.next_header = inner;
        outer.hop_limit = TTL;
        outer.source = settings.tunnel_v6;
        let [.., o12, o13, o14, o15] = &mut outer.source;
        (*o12, *o13, *o14, *o15) = (s0, s1, s2, s3);
        outer.destination = backend.address.v6_octets();
        network.l3 + Ipv6::SIZE
    };
    if gue {
        *packet.view_mut(l4).ok_or(Reason::Malformed)? = Udp {
            // Of the dynamic ports (RFC 6335, section 6).
            source: [0xc0 | s0, s1],
            destination: backend.gue_port.wire(),
            length: udp_length.to_be_bytes(),
            checksum: [0; 2],
        };
    }
    Ok(())
}

/// Writes the link header anew after the front has moved by `moved` bytes: tags stay, the innermost EtherType changes.
///
/// The old one still stands `moved` bytes further back, and an outer IP header is longer than what is written here before
/// it is read there.
#[inline(always)]
pub fn move_link<P: Packet>(
    packet: &mut P,
    moved: usize,
    l3: usize,
    payload: u16,
    source: Mac,
    destination: Mac,
) -> Result<(), Reason> {
    const FIRST: usize = Ethernet::SIZE;
    const SECOND: usize = Ethernet::SIZE + VlanTag::SIZE;
    let mut ether_type = payload;
    if l3 > FIRST {
        ether_type = u16::from_be_bytes(packet.view::<Ethernet>(moved).ok_or(Reason::Malformed)?.ether_type);
        let mut inner = payload;
        if l3 > SECOND {
            inner = u16::from_be_bytes(
                packet.view::<VlanTag>(moved + FIRST).ok_or(Reason::Malformed)?.ether_type,
            );
            let control = packet.view::<VlanTag>(moved + SECOND).ok_or(Reason::Malformed)?.control;
            let tag: &mut VlanTag = packet.view_mut(SECOND).ok_or(Reason::Malformed)?;
            tag.control = control;
            tag.ether_type = payload.to_be_bytes();
        }
        let control = packet.view::<VlanTag>(moved + FIRST).ok_or(Reason::Malformed)?.control;
        let tag: &mut VlanTag = packet.view_mut(FIRST).ok_or(Reason::Malformed)?;
        tag.control = control;
        tag.ether_type = inner.to_be_bytes();
    }
    let ethernet: &mut Ethernet = packet.view_mut(0).ok_or(Reason::Malformed)?;
    ethernet.destination = destination;
    ethernet.source = source;
    ethernet.ether_type = ether_type.to_be_bytes();
    Ok(())
}

/// Turns a TCP segment into the RST that answers it (RFC 9293, section 3.10.7.1), back to where it came from.
#[inline(always)]
pub fn reset<P: Packet>(packet: &mut P, network: &Network, transport: &Transport) -> Result<(), Reason> {
    let segment: Tcp = *packet.view(transport.l4).ok_or(Reason::Malformed)?;
    let header_length = usize::from(segment.data_offset >> 4) * 4;
    let data = network.end.wrapping_sub(transport.l4).wrapping_sub(header_length) as u32;
    let occupied = data
        .wrapping_add(u32::from(segment.flags & TCP_SYN != 0))
        .wrapping_add(u32::from(segment.flags & TCP_FIN != 0));
    let (sequence, acknowledgement, flags) = if segment.flags & TCP_ACK != 0 {
        (segment.acknowledgement, [0; 4], TCP_RST)
    } else {
        let next = u32::from_be_bytes(segment.sequence).wrapping_add(occupied);
        ([0; 4], next.to_be_bytes(), TCP_RST | TCP_ACK)
    };
    let mut rst = Tcp {
        source: transport.destination.wire(),
        destination: transport.source.wire(),
        sequence,
        acknowledgement,
        data_offset: 5 << 4,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    // The pseudo header: both addresses, the protocol and the length; for IPv4 the words beside the address cancel out.
    let pseudo = checksum::of_address(network.source) + checksum::of_address(network.destination);
    let v4_mapping = u64::from(0xffff_u32.to_be()) * 2;
    let tail = u64::from((IPPROTO_TCP as u16).to_be()) + u64::from((Tcp::SIZE as u16).to_be());
    let pseudo = if network.family == Family::V4 { pseudo - v4_mapping } else { pseudo } + tail;
    rst.checksum = checksum::of_words::<5>(bytemuck::cast_ref(&rst), pseudo);

    let ethernet: &mut Ethernet = packet.view_mut(0).ok_or(Reason::Malformed)?;
    (ethernet.source, ethernet.destination) = (ethernet.destination, ethernet.source);
    let l4 = match network.family {
        Family::V4 => {
            // Options are not sent back.
            let header: &mut Ipv4 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            let mut answer = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_length: ((Ipv4::SIZE + Tcp::SIZE) as u16).to_be_bytes(),
                id: [0; 2],
                fragment: [Ipv4::DONT_FRAGMENT, 0],
                ttl: TTL,
                protocol: IPPROTO_TCP,
                checksum: [0; 2],
                source: network.destination.v4_octets(),
                destination: network.source.v4_octets(),
            };
            answer.checksum = checksum::ipv4_header(&answer);
            *header = answer;
            network.l3 + Ipv4::SIZE
        }
        Family::V6 => {
            let header: &mut Ipv6 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            header.version_class_label = [0x60, 0, 0, 0];
            header.payload_length = (Tcp::SIZE as u16).to_be_bytes();
            header.next_header = IPPROTO_TCP;
            header.hop_limit = TTL;
            header.source = network.destination.v6_octets();
            header.destination = network.source.v6_octets();
            network.l3 + Ipv6::SIZE
        }
    };
    *packet.view_mut(l4).ok_or(Reason::Malformed)? = rst;
    packet.truncate(l4 + Tcp::SIZE).ok_or(Reason::Malformed)
}

/// TCP option: end of the list.
pub(crate) const OPTION_END: u8 = 0;
/// TCP option: nothing.
pub(crate) const OPTION_NOTHING: u8 = 1;
/// TCP option: the largest segment that the sender takes.
const OPTION_MSS: u8 = 2;
/// How many options are looked at. Every stack puts this one first or second.
const MAX_OPTIONS: usize = 8;

/// Lowers the largest segment that the sender of a SYN says that it takes (RFC 9293, section 3.7.1), if it is above `limit`.
/// Where it says nothing it takes 536 bytes, and that is left so.
#[inline(always)]
pub fn clamp_mss<P: Packet>(packet: &mut P, network: &Network, transport: &Transport, limit: u16) {
    packet.clamp(network.hops(), transport.l4, limit);
}

/// The same for the TCP header at `l4`, which is whole, in a packet that has its hops at `hops`.
#[inline(always)]
pub fn clamp<P: Packet>(packet: &mut P, hops: usize, l4: usize, limit: u16) {
    // What has no hop left may go up, and then as it came.
    if packet.view::<Word>(hops).is_none_or(|word| word.0[0] <= 1) {
        return;
    }
    let Some(header) = packet.view::<Tcp>(l4) else { return };
    let end = l4 + usize::from(header.data_offset >> 4) * 4;
    let mut at = l4 + Tcp::SIZE;
    for _ in 0..MAX_OPTIONS {
        if at + Mss::SIZE > end {
            return;
        }
        let Some(option) = packet.view_mut::<Mss>(at) else { return };
        match option.kind {
            OPTION_END => return,
            OPTION_NOTHING => at += 1,
            OPTION_MSS if usize::from(option.length) == Mss::SIZE => {
                let (old, new) = (option.value, limit.to_be_bytes());
                if u16::from_be_bytes(old) <= limit {
                    return;
                }
                option.value = new;
                // At an odd offset its bytes are halves of two words: the same sum with the bytes swapped (RFC 1071, 2B).
                let delta = if (at - l4).is_multiple_of(2) {
                    Delta::NONE.word(old, new)
                } else {
                    Delta::NONE.word([old[1], old[0]], [new[1], new[0]])
                };
                if let Some(header) = packet.view_mut::<Tcp>(l4) {
                    header.checksum = delta.apply(header.checksum);
                }
                return;
            }
            _ if option.length < 2 => return,
            _ => at += usize::from(option.length),
        }
    }
}

/// Whether a RST is what `service` gives to a packet of this kind. A RST is never answered by another one.
#[must_use]
#[inline(always)]
pub const fn answers_with_reset(service: &Service, kind: Kind) -> bool {
    service.on_empty == crate::abi::OnEmpty::Reset as u8 && matches!(kind, Kind::Syn(_) | Kind::Tcp(_))
}
