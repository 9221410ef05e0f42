//! The other end of a tunnel: takes the outer header off packets that a balancer sent.

use bytemuck::{Pod, Zeroable};

use crate::abi::Port;
use crate::checksum::Delta;
use crate::pipeline::Packet;
use crate::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, GueHeader, IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_UDP, Ipv4, Ipv6,
    Udp, Wire,
};

/// Which outer sources are balancers: everything else could be a spoofed way around the network's filters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Allowed {
    /// IPv4 prefix.
    pub v4: [u8; 4],
    /// Its mask.
    pub v4_mask: [u8; 4],
    /// IPv6 prefix.
    pub v6: [u8; 16],
    /// Its mask.
    pub v6_mask: [u8; 16],
    /// UDP port of GUE; 0: none.
    pub gue_port: Port,
    /// Zero.
    pub pad: u16,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Decapsulated {
    /// Not a tunnel's: untouched.
    NotOurs,
    /// The inner packet stands alone now.
    Inner,
    /// A tunnel's, from a source that is no balancer.
    Refused,
    /// A tunnel's, without room for what it says is in it.
    Malformed,
    /// A router on the way has marked it as one that met congestion, and what is inside has no way to say so.
    Congested,
}

impl Decapsulated {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// What the two bits of ECN say (RFC 3168, section 5).
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
const ECN: u8 = 3;

/// Takes the outer headers off a packet in an untagged frame: IPv4's or IPv6's, and UDP's with GUE's where a port for that is
/// set.
///
/// Of GUE (draft-ietf-intarea-gue) both variants are understood, as far as balancers use them: 1, which is an IP packet right
/// behind the UDP header, and 0 with a header of four bytes that says no more than which IP version follows. UDP's checksum
/// is not looked at: what is inside has its own.
///
/// What routers on the way have said of congestion goes on inside (RFC 6040, section 4.2).
#[inline(always)]
pub fn decapsulate<P: Packet>(packet: &mut P, allowed: &Allowed) -> Decapsulated {
    let Some(&ethernet) = packet.view::<Ethernet>(0) else { return Decapsulated::NotOurs };
    let (outer, inner, ecn, from_balancer) = match u16::from_be_bytes(ethernet.ether_type) {
        ETHERTYPE_IPV4 => match packet.view::<Ipv4>(Ethernet::SIZE) {
            // Our tunnels have no options and are never fragmented.
            Some(header)
                if header.version_ihl == 0x45
                    && u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED == 0 =>
            {
                let allowed = matches(header.source, allowed.v4, allowed.v4_mask);
                (Ipv4::SIZE, header.protocol, header.tos & ECN, allowed)
            }
            _ => return Decapsulated::NotOurs,
        },
        ETHERTYPE_IPV6 => match packet.view::<Ipv6>(Ethernet::SIZE) {
            Some(header) => {
                let allowed = matches(header.source, allowed.v6, allowed.v6_mask);
                (Ipv6::SIZE, header.next_header, header.version_class_label[1] >> 4 & ECN, allowed)
            }
            None => return Decapsulated::NotOurs,
        },
        _ => return Decapsulated::NotOurs,
    };
    let (outer, ether_type, length) = match inner {
        IPPROTO_IPIP => (outer, ETHERTYPE_IPV4, Ipv4::SIZE),
        IPPROTO_IPV6 => (outer, ETHERTYPE_IPV6, Ipv6::SIZE),
        IPPROTO_UDP => match gue(packet, Ethernet::SIZE + outer, allowed.gue_port) {
            Gue::No => return Decapsulated::NotOurs,
            // Not before it is known who says so.
            Gue::Other if from_balancer => return Decapsulated::Malformed,
            Gue::Other => return Decapsulated::Refused,
            Gue::V4(headers) => (outer + headers, ETHERTYPE_IPV4, Ipv4::SIZE),
            Gue::V6(headers) => (outer + headers, ETHERTYPE_IPV6, Ipv6::SIZE),
        },
        _ => return Decapsulated::NotOurs,
    };
    if !from_balancer {
        return Decapsulated::Refused;
    }
    if !packet.reaches(Ethernet::SIZE + outer + length) {
        return Decapsulated::Malformed;
    }
    let marked = match ecn {
        CE | ECT_1 => mark(packet, Ethernet::SIZE + outer, ether_type, ecn),
        _ => Ok(()),
    };
    if let Err(outcome) = marked {
        return outcome;
    }
    if packet.shrink_head(outer).is_none() {
        return Decapsulated::Malformed;
    }
    match packet.view_mut::<Ethernet>(0) {
        Some(header) => *header = Ethernet { ether_type: ether_type.to_be_bytes(), ..ethernet },
        None => return Decapsulated::Malformed,
    }
    Decapsulated::Inner
}

/// Hands on to the inner packet what the `outer` bits say.
#[inline(always)]
fn mark<P: Packet>(packet: &mut P, l3: usize, ether_type: u16, outer: u8) -> Result<(), Decapsulated> {
    if ether_type == ETHERTYPE_IPV4 {
        let header: &mut Ipv4 = packet.view_mut(l3).ok_or(Decapsulated::Malformed)?;
        let tos = header.tos & !ECN | combined(outer, header.tos & ECN)?;
        let (old, new) = ([header.version_ihl, header.tos], [header.version_ihl, tos]);
        header.checksum = Delta::NONE.word(old, new).apply(header.checksum);
        header.tos = tos;
    } else {
        let header: &mut Ipv6 = packet.view_mut(l3).ok_or(Decapsulated::Malformed)?;
        let [_, byte, ..] = &mut header.version_class_label;
        *byte = *byte & !(ECN << 4) | combined(outer, *byte >> 4 & ECN)? << 4;
    }
    Ok(())
}

/// RFC 6040, figure 4.
#[inline(always)]
const fn combined(outer: u8, inner: u8) -> Result<u8, Decapsulated> {
    match (outer, inner) {
        (CE, 0) => Err(Decapsulated::Congested),
        (CE, _) => Ok(CE),
        (ECT_1, ECT_0) => Ok(ECT_1),
        _ => Ok(inner),
    }
}

/// What a UDP datagram is to us, and how long the headers before the inner packet are.
enum Gue {
    /// To another port.
    No,
    /// Something that no balancer sends.
    Other,
    V4(usize),
    V6(usize),
}

#[inline(always)]
fn gue<P: Packet>(packet: &P, l4: usize, port: Port) -> Gue {
    let Some(header) = packet.view::<Udp>(l4) else { return Gue::No };
    if port.is_any() || Port::of_wire(header.destination) != port {
        return Gue::No;
    }
    let Some(&[first, next, flags @ ..]) = packet.view::<GueHeader>(l4 + Udp::SIZE).map(|header| &header.0)
    else {
        return Gue::Other;
    };
    match (first, next) {
        // Variant 1: the first bits of an IP version are those of the variant.
        (0x40..=0x4f, _) => Gue::V4(Udp::SIZE),
        (0x60..=0x6f, _) => Gue::V6(Udp::SIZE),
        // Variant 0: no control message, no extensions, no flags that announce any.
        (0, IPPROTO_IPIP) if flags == [0, 0] => Gue::V4(Udp::SIZE + GueHeader::SIZE),
        (0, IPPROTO_IPV6) if flags == [0, 0] => Gue::V6(Udp::SIZE + GueHeader::SIZE),
        _ => Gue::Other,
    }
}

#[inline(always)]
fn matches<const N: usize>(address: [u8; N], prefix: [u8; N], mask: [u8; N]) -> bool {
    let mut difference = 0;
    let mut i = 0;
    while i < N {
        difference |= (address[i] ^ prefix[i]) & mask[i];
        i += 1;
    }
    difference == 0
}
