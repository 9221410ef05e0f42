//! The client's address as a TCP option, for backends that would otherwise see the balancer's.
//!
//! Kind 254 (RFC 4727, for experiments), as the `toa` modules for Linux read it: port and address as they lie in a header. The option
//! goes into every segment that may be the one which ends the handshake on the backend.
//!
//! Which one does, nobody but the backend knows: what ended it here may be lost on the way, or was sent so that it would be. So no segment
//! of a client's has such an option ([`is_claimed`]), early or late; nor has a SYN, which may be all that it takes (RFC 7413).

use bytemuck::{Pod, Zeroable};

use super::Held;
use crate::abi::{Address, Device};
use crate::checksum::Delta;
use crate::parse::{Family, Kind, Network, Transport};
use crate::pipeline::Packet;
use crate::rewrite::{OPTION_END, OPTION_NOTHING, move_link};
use crate::verdict::Reason;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, Ipv6, Mac, Tcp, Wire};

/// Kind of the option.
const KIND: u8 = 254;
/// Most words of 4 bytes in a TCP header.
const LONGEST_HEADER: usize = 15;

/// With an IPv4 address.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Toa4 {
    kind: u8,
    length: u8,
    port: [u8; 2],
    address: [u8; 4],
}

/// With an IPv6 address.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Toa6 {
    kind: u8,
    length: u8,
    port: [u8; 2],
    address: [u8; 16],
}

/// One byte of a header.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Octet(u8);

impl Wire for Octet {}
impl Wire for Toa4 {}
impl Wire for Toa6 {}

/// Whether a client's segment may be the one that ends its handshake, which began with `initial`.
#[inline(always)]
pub(super) const fn belongs(kind: Kind, initial: u32, held: Held) -> bool {
    match kind {
        Kind::Tcp(sequence) => matches!(held, Held::Opening) || sequence == initial.wrapping_add(1),
        _ => false,
    }
}

/// Bytes that the option takes.
#[inline(always)]
pub(super) const fn size(network: &Network) -> usize {
    match network.family {
        Family::V4 => Toa4::SIZE,
        Family::V6 => Toa6::SIZE,
    }
}

/// Whether the TCP header can hold the option, and stands where nothing else has to be moved with it: neither other headers, nor what
/// further fragments have.
#[inline(always)]
fn has_room<P: Packet>(packet: &P, network: &Network, transport: &Transport) -> Result<bool, Reason> {
    let fixed = match network.family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
    let words = usize::from(header.data_offset >> 4) + size(network) / 4;
    Ok(words <= LONGEST_HEADER && transport.l4 == network.l3 + fixed && !network.fragment)
}

/// Whether the option fits into the header, and the packet then through `device`.
#[inline(always)]
pub(super) fn fits<P: Packet>(
    packet: &P,
    network: &Network,
    transport: &Transport,
    device: &Device,
) -> Result<bool, Reason> {
    Ok(has_room(packet, network, transport)?
        && network.end - network.l3 + size(network) <= device.mtu as usize)
}

/// Most bytes of options in a TCP header.
const MOST_OPTIONS: usize = LONGEST_HEADER * 4 - Tcp::SIZE;

/// Whether the TCP header at `l4` has such an option already, or does not show all that it has: a fragment may have the rest, and
/// what lies behind `end` is nobody's.
///
/// Octet by octet, each at its own place: for the verifier, to which options of any length are as many places as octets.
#[inline(always)]
pub fn is_claimed<P: Packet>(packet: &P, l4: usize, end: usize) -> bool {
    let Some(header) = packet.view::<Tcp>(l4) else { return true };
    let length = usize::from(header.data_offset >> 4) * 4;
    if l4 + length > end {
        return true;
    }
    let mut within = Within::Nothing;
    for at in Tcp::SIZE..Tcp::SIZE + MOST_OPTIONS {
        if at >= length {
            return false;
        }
        let Some(&Octet(octet)) = packet.view(l4 + at) else { return true };
        within = match (within, octet) {
            (Within::Nothing, OPTION_END) => return false,
            (Within::Nothing, OPTION_NOTHING) => Within::Nothing,
            (Within::Nothing, KIND) => Within::Ours,
            (Within::Nothing, _) => Within::Other,
            // Others try things with this number, too (RFC 6994): they are longer or shorter.
            (Within::Ours, V4 | V6) => return true,
            // A receiver makes nothing of what follows.
            (Within::Ours | Within::Other, 0 | 1) => return false,
            (Within::Ours | Within::Other, 2) | (Within::Rest(1), _) => Within::Nothing,
            (Within::Ours | Within::Other, length) => Within::Rest(length - 2),
            (Within::Rest(left), _) => Within::Rest(left - 1),
        };
    }
    false
}

/// The option's length.
const V4: u8 = Toa4::SIZE as u8;
const V6: u8 = Toa6::SIZE as u8;

/// What an octet of the options is part of.
#[derive(Clone, Copy)]
enum Within {
    /// It begins one.
    Nothing,
    /// It is the length of one whose kind is [`KIND`].
    Ours,
    /// It is the length of another one.
    Other,
    /// It is one of so many that are left.
    Rest(u8),
}

/// Puts the option in, and sets the hardware addresses. `network` and `transport` are of the packet as it came.
#[inline(always)]
pub(super) fn insert<P: Packet>(
    packet: &mut P,
    network: &Network,
    transport: &Transport,
    source: Mac,
    destination: Mac,
) -> Result<(), Reason> {
    let l3 = network.l3;
    match network.family {
        Family::V4 => {
            packet.grow_head(Toa4::SIZE).ok_or(Reason::NoHeadroom)?;
            move_link(packet, Toa4::SIZE, l3, ETHERTYPE_IPV4, source, destination)?;
            let mut header: Ipv4 = *packet.view(l3 + Toa4::SIZE).ok_or(Reason::Malformed)?;
            let length = longer(header.total_length, Toa4::SIZE);
            header.checksum = Delta::NONE.word(header.total_length, length).apply(header.checksum);
            header.total_length = length;
            *packet.view_mut(l3).ok_or(Reason::Malformed)? = header;
            let option = Toa4 {
                kind: KIND,
                length: Toa4::SIZE as u8,
                port: transport.source.wire(),
                address: network.source.v4_octets(),
            };
            move_tcp(packet, network, l3 + Ipv4::SIZE, Toa4::SIZE)?;
            *packet.view_mut(l3 + Ipv4::SIZE + Tcp::SIZE).ok_or(Reason::Malformed)? = option;
        }
        Family::V6 => {
            packet.grow_head(Toa6::SIZE).ok_or(Reason::NoHeadroom)?;
            move_link(packet, Toa6::SIZE, l3, ETHERTYPE_IPV6, source, destination)?;
            let mut header: Ipv6 = *packet.view(l3 + Toa6::SIZE).ok_or(Reason::Malformed)?;
            header.payload_length = longer(header.payload_length, Toa6::SIZE);
            *packet.view_mut(l3).ok_or(Reason::Malformed)? = header;
            let option = Toa6 {
                kind: KIND,
                length: Toa6::SIZE as u8,
                port: transport.source.wire(),
                address: network.source.v6_octets(),
            };
            move_tcp(packet, network, l3 + Ipv6::SIZE, Toa6::SIZE)?;
            *packet.view_mut(l3 + Ipv6::SIZE + Tcp::SIZE).ok_or(Reason::Malformed)? = option;
        }
    }
    checksum(packet, network, transport)
}

/// Moves the fixed part of the TCP header to `l4`, `bytes` to the front, with its new length.
#[inline(always)]
fn move_tcp<P: Packet>(packet: &mut P, network: &Network, l4: usize, bytes: usize) -> Result<(), Reason> {
    let mut header: Tcp = *packet.view(l4 + bytes).ok_or(Reason::Malformed)?;
    let old = [header.data_offset, header.flags];
    header.data_offset = header.data_offset.wrapping_add((bytes as u8 / 4) << 4);
    // Its length in the pseudo header grows as well.
    let before = (network.end - l4) as u16;
    header.checksum = Delta::NONE
        .word(old, [header.data_offset, header.flags])
        .word(before.to_be_bytes(), before.wrapping_add(bytes as u16).to_be_bytes())
        .apply(header.checksum);
    *packet.view_mut(l4).ok_or(Reason::Malformed)? = header;
    Ok(())
}

/// Adds the option's bytes to the checksum.
#[inline(always)]
fn checksum<P: Packet>(packet: &mut P, network: &Network, transport: &Transport) -> Result<(), Reason> {
    let header: &mut Tcp = packet.view_mut(transport.l4).ok_or(Reason::Malformed)?;
    let delta = Delta::NONE.word([0; 2], [KIND, size(network) as u8]).word([0; 2], transport.source.wire());
    let delta = match network.family {
        Family::V4 => delta.long(0, network.source.wire_words()[3]),
        Family::V6 => delta.address(Address::default().wire_words(), network.source.wire_words()),
    };
    header.checksum = delta.apply(header.checksum);
    Ok(())
}

#[inline(always)]
const fn longer(length: [u8; 2], bytes: usize) -> [u8; 2] {
    u16::from_be_bytes(length).wrapping_add(bytes as u16).to_be_bytes()
}
