//! The other end of a tunnel: takes the outer header off packets that a balancer sent.

use bytemuck::{Pod, Zeroable};

use crate::pipeline::Packet;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPPROTO_IPIP, IPPROTO_IPV6, Ipv4, Ipv6, Wire};

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
}

impl Decapsulated {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// Their names, in the order of their counters.
    pub const NAMES: [&'static str; Self::COUNT] = ["not_ours", "decapsulated", "refused", "malformed"];
}

/// Takes the outer IPv4 or IPv6 header off a packet in an untagged frame.
#[inline(always)]
pub fn decapsulate<P: Packet>(packet: &mut P, allowed: &Allowed) -> Decapsulated {
    let Some(&ethernet) = packet.view::<Ethernet>(0) else { return Decapsulated::NotOurs };
    let (outer, inner, from_balancer) = match u16::from_be_bytes(ethernet.ether_type) {
        ETHERTYPE_IPV4 => match packet.view::<Ipv4>(Ethernet::SIZE) {
            // Our tunnels have no options and are never fragmented.
            Some(header)
                if header.version_ihl == 0x45
                    && u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED == 0 =>
            {
                (Ipv4::SIZE, header.protocol, matches(header.source, allowed.v4, allowed.v4_mask))
            }
            _ => return Decapsulated::NotOurs,
        },
        ETHERTYPE_IPV6 => match packet.view::<Ipv6>(Ethernet::SIZE) {
            Some(header) => {
                (Ipv6::SIZE, header.next_header, matches(header.source, allowed.v6, allowed.v6_mask))
            }
            None => return Decapsulated::NotOurs,
        },
        _ => return Decapsulated::NotOurs,
    };
    let (ether_type, length) = match inner {
        IPPROTO_IPIP => (ETHERTYPE_IPV4, Ipv4::SIZE),
        IPPROTO_IPV6 => (ETHERTYPE_IPV6, Ipv6::SIZE),
        _ => return Decapsulated::NotOurs,
    };
    if !from_balancer {
        return Decapsulated::Refused;
    }
    if !packet.reaches(Ethernet::SIZE + outer + length) || packet.shrink_head(outer).is_none() {
        return Decapsulated::Malformed;
    }
    match packet.view_mut::<Ethernet>(0) {
        Some(header) => *header = Ethernet { ether_type: ether_type.to_be_bytes(), ..ethernet },
        None => return Decapsulated::Malformed,
    }
    Decapsulated::Inner
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
