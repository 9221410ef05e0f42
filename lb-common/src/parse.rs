//! From a frame to a flow: addresses first, since most packets that are not ours are told by them alone; ports after.

use core::mem::offset_of;

use crate::abi::{Address, Port};
use crate::checksum;
use crate::pipeline::Packet;
use crate::verdict::Reason;
use crate::wire::{
    self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet, IPPROTO_TCP, IPPROTO_UDP,
    Ipv4, Ipv6, Ipv6Extension, TCP_ACK, TCP_RST, TCP_SYN, Tcp, Udp, VlanTag, Wire,
};

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// What the link and network headers say. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Version.
    pub family: Family,
    /// Where the IP header starts: 14, 18 or 22, depending on the VLAN tags.
    pub l3: usize,
    /// Where what follows the fixed header and IPv4's options starts.
    pub next: usize,
    /// Where the packet ends (the frame may be padded beyond).
    pub end: usize,
    /// Protocol of what starts at `next`.
    pub protocol: u8,
    /// Whether IPv4 says that this is a fragment.
    pub fragment: bool,
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
}

impl Network {
    /// Where the hops that it has left stand.
    #[must_use]
    #[inline(always)]
    pub const fn hops(&self) -> usize {
        self.l3
            + match self.family {
                Family::V4 => offset_of!(Ipv4, ttl),
                Family::V6 => offset_of!(Ipv6, hop_limit),
            }
    }

    /// The sum of the pseudo header that stands for it before its transport header (RFC 9293, section 3.1; RFC 8200, section 8.1).
    /// (Beside an IPv4 address there are ones in it, which are nothing in this arithmetic.)
    #[must_use]
    #[inline(always)]
    pub const fn pseudo(&self, transport: &Transport) -> u64 {
        let length = self.end.wrapping_sub(transport.l4) as u16;
        checksum::of_address(self.source)
            + checksum::of_address(self.destination)
            + (transport.protocol as u16).to_be() as u64
            + length.to_be() as u64
    }
}

/// What the transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Where it starts.
    pub l4: usize,
    /// TCP or UDP.
    pub protocol: u8,
    /// Sender's port.
    pub source: Port,
    /// Receiver's port.
    pub destination: Port,
    /// What tracking needs to know.
    pub kind: Kind,
}

/// A packet's part in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flow begins, with this initial sequence number.
    Syn(u32),
    /// A flow goes on, with this sequence number.
    Tcp(u32),
    /// A flow ends.
    Rst,
    /// UDP knows no beginning.
    Udp,
}

/// How many IPv6 extension headers are followed.
pub const MAX_EXTENSIONS: usize = 6;

/// Reads the link and network headers of the most common shape: IPv4 without tags, options and fragments. `None`: any other
/// shape, or malformed.
///
/// [`network`] says the same of it. But here every offset is a constant, and so are three words of each address: what is
/// compiled for this shape alone needs half of the instructions, and hardly any memory for its variables.
#[inline(always)]
pub fn plain<P: Packet>(packet: &P) -> Option<Network> {
    const L3: usize = Ethernet::SIZE;
    const L4: usize = L3 + Ipv4::SIZE;
    let header: &Ipv4 = packet.view(L3)?;
    let ethernet: &Ethernet = packet.view(0)?;
    let end = L3 + usize::from(u16::from_be_bytes(header.total_length));
    if ethernet.ether_type != ETHERTYPE_IPV4.to_be_bytes()
        || header.version_ihl != 0x45
        || u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0
        || end < L4
        || !packet.reaches(end)
    {
        return None;
    }
    Some(Network {
        family: Family::V4,
        l3: L3,
        next: L4,
        end,
        protocol: header.protocol,
        fragment: false,
        source: Address::v4(header.source),
        destination: Address::v4(header.destination),
    })
}

/// Reads the link and network headers.
#[inline(always)]
pub fn network<P: Packet>(packet: &P) -> Result<Network, Reason> {
    let ethernet: &Ethernet = packet.view(0).ok_or(Reason::Malformed)?;
    let mut l3 = Ethernet::SIZE;
    let mut ether_type = u16::from_be_bytes(ethernet.ether_type);
    // Two tags at most: one of the provider, one of the customer.
    if is_tag(ether_type) {
        let tag: &VlanTag = packet.view(l3).ok_or(Reason::Malformed)?;
        ether_type = u16::from_be_bytes(tag.ether_type);
        l3 += VlanTag::SIZE;
        if is_tag(ether_type) {
            let tag: &VlanTag = packet.view(l3).ok_or(Reason::Malformed)?;
            ether_type = u16::from_be_bytes(tag.ether_type);
            l3 += VlanTag::SIZE;
        }
    }
    match ether_type {
        ETHERTYPE_IPV4 => ipv4(packet, l3),
        ETHERTYPE_IPV6 => ipv6(packet, l3),
        _ => Err(Reason::NotIp),
    }
}

pub(crate) const fn is_tag(ether_type: u16) -> bool {
    ether_type == ETHERTYPE_VLAN || ether_type == ETHERTYPE_QINQ
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, l3: usize) -> Result<Network, Reason> {
    let header: &Ipv4 = packet.view(l3).ok_or(Reason::Malformed)?;
    let header_length = usize::from(header.version_ihl & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes(header.total_length));
    let end = l3 + total_length;
    if header.version_ihl >> 4 != 4
        || header_length < Ipv4::SIZE
        || total_length < header_length
        || !packet.reaches(end)
    {
        return Err(Reason::Malformed);
    }
    Ok(Network {
        family: Family::V4,
        l3,
        next: l3 + header_length,
        end,
        protocol: header.protocol,
        fragment: u16::from_be_bytes(header.fragment) & Ipv4::FRAGMENTED != 0,
        source: Address::v4(header.source),
        destination: Address::v4(header.destination),
    })
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3: usize) -> Result<Network, Reason> {
    let header: &Ipv6 = packet.view(l3).ok_or(Reason::Malformed)?;
    let next = l3 + Ipv6::SIZE;
    let end = next + usize::from(u16::from_be_bytes(header.payload_length));
    let (source, destination) = (Address::v6(&header.source), Address::v6(&header.destination));
    // A v4-mapped address is IPv4's in the tables, and nobody's on the wire (RFC 5156, section 2.2).
    if header.version_class_label[0] >> 4 != 6 || !packet.reaches(end) || destination.is_v4() {
        return Err(Reason::Malformed);
    }
    // Whoever it is for: the host's stack does the same with it (since Linux 5.4).
    if source.is_v4() {
        return Err(Reason::Martian);
    }
    Ok(Network {
        family: Family::V6,
        l3,
        next,
        end,
        protocol: header.next_header,
        fragment: false,
        source,
        destination,
    })
}

/// Reads the transport header, past IPv6's extension headers.
#[inline(always)]
pub fn transport<P: Packet>(packet: &P, network: &Network) -> Result<Transport, Reason> {
    if network.fragment {
        return Err(Reason::Fragment);
    }
    let (mut protocol, mut l4) = (network.protocol, network.next);
    if network.family == Family::V6 && protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        (protocol, l4) = packet.past_extensions(protocol, l4)?;
    }
    header(packet, network, protocol, l4, true)
}

/// The transport header at `l4`. Of a packet that is not `whole`, a first fragment, the lengths say nothing about the frame: all
/// that has to be there is the fixed part of the header (whoever cuts within it hides something: RFC 1858).
///
/// # Errors
///
/// [`Reason::Malformed`] for a header that is not all there; what the protocol is, where it has no ports.
#[inline(always)]
pub(crate) fn header<P: Packet>(
    packet: &P,
    network: &Network,
    protocol: u8,
    l4: usize,
    whole: bool,
) -> Result<Transport, Reason> {
    match protocol {
        IPPROTO_TCP => {
            let header: &Tcp = packet.view(l4).ok_or(Reason::Malformed)?;
            let (source, destination) = (Port::of_wire(header.source), Port::of_wire(header.destination));
            let length = if whole { usize::from(header.data_offset >> 4) * 4 } else { Tcp::SIZE };
            if length < Tcp::SIZE || l4 + length > network.end {
                return Err(Reason::Malformed);
            }
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
            // A datagram may be shorter than the packet around it (RFC 768 has a length of its own), but not longer. Zero
            // is for jumbograms (RFC 2675, section 4), whose option nobody here sends.
            let length = if whole { usize::from(u16::from_be_bytes(header.length)) } else { Udp::SIZE };
            if length < Udp::SIZE || l4 + length > network.end {
                return Err(Reason::Malformed);
            }
            let (source, destination) = (Port::of_wire(header.source), Port::of_wire(header.destination));
            Ok(Transport { l4, protocol, source, destination, kind: Kind::Udp })
        }
        _ => Err(if whole { Reason::OtherProtocol } else { Reason::Fragment }),
    }
}

/// Follows the chain of extension headers (RFC 8200, section 4) to a transport header: its protocol and offset.
///
/// # Errors
///
/// [`Reason::Fragment`], [`Reason::OtherProtocol`] for a chain that ends elsewhere, is longer than [`MAX_EXTENSIONS`] or leads on
/// to other nodes, [`Reason::Malformed`] for one that leaves the frame.
#[inline(always)]
pub fn extensions<P: Packet>(packet: &P, mut protocol: u8, mut offset: usize) -> Result<(u8, usize), Reason> {
    for _ in 0..MAX_EXTENSIONS {
        let unit = match protocol {
            IPPROTO_TCP | IPPROTO_UDP => return Ok((protocol, offset)),
            wire::IPPROTO_FRAGMENT => return Err(Reason::Fragment),
            wire::IPPROTO_HOPOPTS | wire::IPPROTO_ROUTING | wire::IPPROTO_DSTOPTS => 8,
            wire::IPPROTO_AH => 4,
            _ => return Err(Reason::OtherProtocol),
        };
        let header: &Ipv6Extension = packet.view(packet.bounded(offset)).ok_or(Reason::Malformed)?;
        if protocol == wire::IPPROTO_ROUTING && header.segments_left != 0 {
            // Its destination is not the last one.
            return Err(Reason::OtherProtocol);
        }
        protocol = header.next_header;
        // "Not including the first 8 octets": one unit of 8, two of 4.
        offset += 8 + usize::from(header.length) * unit;
    }
    match protocol {
        IPPROTO_TCP | IPPROTO_UDP => Ok((protocol, offset)),
        _ => Err(Reason::OtherProtocol),
    }
}
