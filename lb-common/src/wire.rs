//! Headers as they lie on the wire: byte arrays in network order, alignment 1, every bit pattern valid.
//!
//! A view is checked once, when it is taken from a frame ([`Packet::view`](crate::pipeline::Packet::view)); after that
//! no accessor can fail.

use bytemuck::{Pod, Zeroable};

/// A header that may be viewed anywhere in a frame.
pub trait Wire: Pod {
    /// Size in bytes; using it proves at compile time that the type needs no alignment.
    const SIZE: usize = {
        assert!(align_of::<Self>() == 1, "a header lies at any address");
        size_of::<Self>()
    };
}

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a customer tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service tag (IEEE 802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// ICMP (RFC 792).
pub const IPPROTO_ICMP: u8 = 1;
/// IPv4 in IP (RFC 2003).
pub const IPPROTO_IPIP: u8 = 4;
/// TCP (RFC 9293).
pub const IPPROTO_TCP: u8 = 6;
/// UDP (RFC 768).
pub const IPPROTO_UDP: u8 = 17;
/// IPv6 in IP (RFC 2473).
pub const IPPROTO_IPV6: u8 = 41;
/// IPv6 hop-by-hop options (RFC 8200).
pub const IPPROTO_HOPOPTS: u8 = 0;
/// IPv6 routing header (RFC 8200).
pub const IPPROTO_ROUTING: u8 = 43;
/// IPv6 fragment header (RFC 8200).
pub const IPPROTO_FRAGMENT: u8 = 44;
/// ICMPv6 (RFC 4443).
pub const IPPROTO_ICMPV6: u8 = 58;
/// ICMP's echo reply.
pub const ICMP_ECHO_REPLY: u8 = 0;
/// ICMPv6's echo request.
pub const ICMPV6_ECHO_REQUEST: u8 = 128;
/// Authentication header (RFC 4302).
pub const IPPROTO_AH: u8 = 51;
/// IPv6 destination options (RFC 8200).
pub const IPPROTO_DSTOPTS: u8 = 60;

/// TCP FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP RST.
pub const TCP_RST: u8 = 0x04;
/// TCP ACK.
pub const TCP_ACK: u8 = 0x10;

/// A hardware address.
pub type Mac = [u8; 6];

/// Ethernet II.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ethernet {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
    /// What follows.
    pub ether_type: [u8; 2],
}

/// One VLAN tag, as it follows the tag's own EtherType.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct VlanTag {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub control: [u8; 2],
    /// What follows.
    pub ether_type: [u8; 2],
}

/// IPv4 without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version (4 bits), header length in words of 4 bytes (4 bits).
    pub version_ihl: u8,
    /// DSCP (6 bits), ECN (2 bits).
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_length: [u8; 2],
    /// Identification of a fragmented packet.
    pub id: [u8; 2],
    /// Flags (3 bits), fragment offset in words of 8 bytes (13 bits).
    pub fragment: [u8; 2],
    /// Time to live in hops.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    /// Sender.
    pub source: [u8; 4],
    /// Receiver.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// "Don't fragment", in the upper byte of [`Ipv4::fragment`].
    pub const DONT_FRAGMENT: u8 = 0x40;
    /// "More fragments" and the offset, in [`Ipv4::fragment`]: zero in a packet that is whole.
    pub const FRAGMENTED: u16 = 0x3fff;
    /// "More fragments", in [`Ipv4::fragment`].
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The offset, in [`Ipv4::fragment`]: zero in a first fragment.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
}

/// IPv6 (RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_label: [u8; 4],
    /// Length of what follows this header in bytes.
    pub payload_length: [u8; 2],
    /// What follows.
    pub next_header: u8,
    /// Time to live in hops.
    pub hop_limit: u8,
    /// Sender.
    pub source: [u8; 16],
    /// Receiver.
    pub destination: [u8; 16],
}

/// TCP without options (RFC 9293).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Tcp {
    /// Sender's port.
    pub source: [u8; 2],
    /// Receiver's port.
    pub destination: [u8; 2],
    /// Number of the first byte of data (of the SYN, if that flag is set).
    pub sequence: [u8; 4],
    /// Number of the next byte that the sender expects.
    pub acknowledgement: [u8; 4],
    /// Header length in words of 4 bytes (upper 4 bits).
    pub data_offset: u8,
    /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN.
    pub flags: u8,
    /// Receive window.
    pub window: [u8; 2],
    /// Checksum over pseudo header, header and data.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

/// UDP (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Udp {
    /// Sender's port.
    pub source: [u8; 2],
    /// Receiver's port.
    pub destination: [u8; 2],
    /// Length of header and data in bytes.
    pub length: [u8; 2],
    /// Checksum over pseudo header, header and data; zero over IPv4: none.
    pub checksum: [u8; 2],
}

/// The first bytes of an IPv6 extension header (RFC 8200, section 4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6Extension {
    /// What follows.
    pub next_header: u8,
    /// Length beyond the first 8 bytes, in words of 8 bytes (of 4 bytes in AH).
    pub length: u8,
    /// Of a routing header: its type.
    pub kind: u8,
    /// Of a routing header: how many nodes are to be visited yet.
    pub segments_left: u8,
}

/// IPv6 fragment header (RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6Fragment {
    /// What follows, in the first fragment.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in words of 8 bytes (13 bits), reserved (2), "more fragments" (1).
    pub offset: [u8; 2],
    /// Identification of the packet.
    pub id: [u8; 4],
}

impl Ipv6Fragment {
    /// "More fragments", in [`Ipv6Fragment::offset`].
    pub const MORE_FRAGMENTS: u16 = 1;
    /// The offset itself, in [`Ipv6Fragment::offset`]: zero in a first fragment.
    pub const FRAGMENT_OFFSET: u16 = 0xfff8;
}

/// ICMP and ICMPv6, up to what an error quotes (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum over all of the message; ICMPv6's over a pseudo header, too.
    pub checksum: [u8; 2],
    /// Unused, but for some types: the MTU (the lower 16 bits in ICMP, all 32 in ICMPv6).
    pub rest: [u8; 4],
}

/// What TCP and UDP begin with, and what an error quotes of either at least.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ports {
    /// Sender's port.
    pub source: [u8; 2],
    /// Receiver's port.
    pub destination: [u8; 2],
    /// TCP's sequence number, or UDP's length and checksum.
    pub rest: [u8; 4],
}

/// A TCP option as long as the one for the maximum segment size; kinds 0 and 1 are one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Mss {
    /// Kind.
    pub kind: u8,
    /// Length in bytes, with both of these.
    pub length: u8,
    /// The size in bytes.
    pub value: [u8; 2],
}

/// GUE's first four bytes (draft-ietf-intarea-gue): variant, control bit and length; what follows; flags. In variant 1 it is
/// the beginning of an IP packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct GueHeader(pub [u8; 4]);

/// A field of 16 bits that may or may not be there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Word(pub [u8; 2]);

/// Sixteen bytes, to be summed.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Chunk(pub [[u8; 4]; 4]);

/// The beginning of a QUIC long header, in every version (RFC 8999, section 5.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LongHeader {
    /// The first bit is set; the others depend on the version.
    pub first: u8,
    /// Version.
    pub version: [u8; 4],
    /// Length of the destination connection id, which follows, in bytes.
    pub id_length: u8,
}

/// A QUIC connection id of the greatest length that version 1 knows, or a shorter one with what stands behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct QuicId {
    /// The first octet.
    pub first: u8,
    /// What follows.
    pub words: [[u8; 4]; 4],
    /// The end.
    pub rest: [u8; 3],
}

impl Wire for Ethernet {}
impl Wire for VlanTag {}
impl Wire for Ipv4 {}
impl Wire for Ipv6 {}
impl Wire for Tcp {}
impl Wire for Udp {}
impl Wire for Ipv6Extension {}
impl Wire for Ipv6Fragment {}
impl Wire for Icmp {}
impl Wire for Ports {}
impl Wire for Mss {}
impl Wire for GueHeader {}
impl Wire for Word {}
impl Wire for Chunk {}
impl Wire for LongHeader {}
impl Wire for QuicId {}

const _: () = {
    assert!(Ethernet::SIZE == 14 && VlanTag::SIZE == 4);
    assert!(Ipv4::SIZE == 20 && Ipv6::SIZE == 40);
    assert!(Tcp::SIZE == 20 && Udp::SIZE == 8);
    assert!(Ipv6Fragment::SIZE == 8 && Icmp::SIZE == 8 && Ports::SIZE == 8);
};
