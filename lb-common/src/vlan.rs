//! VLANs: with which tags a frame leaves.
//!
//! The kernel's routes speak of VLAN devices (`eth0.100`), which XDP cannot send by: a frame leaves by the card below, with the
//! device's tags in it. So what a stage has rewritten, with the tags that it came with, gets others at the very end of its
//! road: none, one or two (IEEE 802.1Q, 802.1ad), whatever the device that it leaves by has.
//!
//! Hardly any frame has to do with it, and those that do not pay nothing. A frame leaves as it is if it goes back by the
//! interface that it came in by, or by one that `EGRESS` knows; a VLAN device is neither. And a frame that came in with a tag
//! has [`TAGGED`] in the number of the interface that it leaves by, so that this is none that anybody knows.
//!
//! What is sent *back* to where it came from (a RST, "packet too big") has no such mark, and keeps its tags.
//!
//! On a host without VLAN devices the table is empty. Then tags stay as they are: whoever sends tagged frames through such a
//! host keeps them in their VLAN.

use bytemuck::{Pod, Zeroable};

use crate::abi::DEVICES;
use crate::parse::is_tag;
use crate::pipeline::{Packet, Tables};
use crate::verdict::Reason;
use crate::wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet, VlanTag, Wire};

/// In the number of an interface: the frame that leaves by it came in with a tag. (Linux numbers them from 1 up to 2^31 - 1.)
pub const TAGGED: u32 = 1 << 31;

/// Value of `VLANS`, by the index of an interface: a VLAN device, or one that others are on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Vlan {
    /// The interface that frames leave by: the card, the bond.
    pub ifindex: u32,
    /// [`Tags`], one word.
    pub tags: u32,
}

/// The tags of a device, outermost first; at most two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags(pub u32);

impl Tags {
    /// No tag.
    pub const NONE: Self = Self(0);
    /// A tag that is there.
    const THERE: u32 = 1 << 15;
    /// A tag of 802.1ad; else of 802.1Q.
    const SERVICE: u32 = 1 << 12;
    /// VLAN id.
    const ID: u32 = 0xfff;

    /// With one tag more, within those that there are; `None` if there are two, or if no tag has that EtherType.
    #[must_use]
    pub const fn with(self, ether_type: u16, id: u16) -> Option<Self> {
        let service = match ether_type {
            ETHERTYPE_VLAN => 0,
            ETHERTYPE_QINQ => Self::SERVICE,
            _ => return None,
        };
        let tag = Self::THERE | service | id as u32 & Self::ID;
        match self.count() {
            0 => Some(Self(tag)),
            1 => Some(Self(self.0 | tag << 16)),
            _ => None,
        }
    }

    /// How many there are.
    #[must_use]
    #[inline(always)]
    pub const fn count(self) -> usize {
        (self.0 >> 15 & 1) as usize + (self.0 >> 31) as usize
    }

    /// EtherType and VLAN id of the outer tag (0) or the inner one (1).
    #[inline(always)]
    const fn tag(self, index: usize) -> (u16, u16) {
        let tag = if index == 0 { self.0 } else { self.0 >> 16 };
        let ether_type = if tag & Self::SERVICE != 0 { ETHERTYPE_QINQ } else { ETHERTYPE_VLAN };
        (ether_type, (tag & Self::ID) as u16)
    }
}

/// The interface that a frame leaves by, with [`TAGGED`] if it has tags. (It is asked, not where its IP header was: that would
/// have to be remembered until now.)
#[must_use]
#[inline(always)]
pub fn leaving<P: Packet>(packet: &P, ifindex: u32) -> u32 {
    match packet.view::<Ethernet>(0) {
        Some(ethernet) if is_tag(u16::from_be_bytes(ethernet.ether_type)) => ifindex | TAGGED,
        _ => ifindex,
    }
}

/// Gives a frame the tags of the device that it leaves by; the interface that it does leave by.
///
/// # Errors
///
/// [`Reason::NoHeadroom`] if the driver left no room for them.
#[inline(always)]
pub fn depart<T: Tables>(packet: &mut T::Packet, tables: &T, ifindex: u32) -> Result<u32, Reason> {
    let ifindex = ifindex & !TAGGED;
    let Some(vlan) = tables.vlan(ifindex) else { return Ok(ifindex) };
    retag(packet, Tags(vlan.tags))?;
    Ok(vlan.ifindex)
}

/// The places of `DEVICES` that an interface may have, from that of its number on: the agent takes the first that is free.
#[must_use]
#[inline(always)]
pub const fn place(ifindex: u32, step: u32) -> u16 {
    (ifindex.wrapping_add(step) % DEVICES) as u16
}

/// How many of them are looked at.
const PLACES: u32 = 4;

/// A frame whose interface is none that `EGRESS` knows. A reply is the host's to send then: its route is the host's, too, and it
/// takes what is for its own hardware address.
///
/// # Errors
///
/// [`Reason::NoRoute`] for what is no reply, and where nobody knows that address.
#[inline(always)]
pub fn hand_up<T: Tables>(packet: &mut T::Packet, tables: &T, reason: Reason) -> Result<(), Reason> {
    if !matches!(reason, Reason::Replied | Reason::ErrorReplied | Reason::FragmentReplied) {
        return Err(Reason::NoRoute);
    }
    let ifindex = packet.ifindex();
    for step in 0..PLACES {
        if let Some(device) = tables.device(place(ifindex, step))
            && device.ifindex == ifindex
        {
            packet.view_mut::<Ethernet>(0).ok_or(Reason::NoRoute)?.destination = device.mac;
            return Ok(());
        }
    }
    Err(Reason::NoRoute)
}

/// Upper bits of a tag: priority and "drop eligible".
const PRIORITY: u8 = 0xf0;

/// Replaces a frame's tags. Those in the place of others keep their priority (IEEE 802.1Q, 6.9.4: a bridge does not change
/// it); new ones have the lowest.
#[inline(always)]
fn retag<P: Packet>(packet: &mut P, tags: Tags) -> Result<(), Reason> {
    const FIRST: usize = Ethernet::SIZE;
    const SECOND: usize = FIRST + VlanTag::SIZE;
    let Ethernet { destination, source, ether_type } = *packet.view(0).ok_or(Reason::Malformed)?;
    let (mut there, mut payload) = (0, ether_type);
    let (mut outer, mut inner) = (0, 0);
    if is_tag(u16::from_be_bytes(payload)) {
        let tag: &VlanTag = packet.view(FIRST).ok_or(Reason::Malformed)?;
        (there, outer, payload) = (1, tag.control[0] & PRIORITY, tag.ether_type);
        if is_tag(u16::from_be_bytes(payload)) {
            let tag: &VlanTag = packet.view(SECOND).ok_or(Reason::Malformed)?;
            (there, inner, payload) = (2, tag.control[0] & PRIORITY, tag.ether_type);
        }
    }
    let wanted = tags.count();
    if wanted > there {
        packet.grow_head((wanted - there) * VlanTag::SIZE).ok_or(Reason::NoHeadroom)?;
    } else if wanted < there {
        packet.shrink_head((there - wanted) * VlanTag::SIZE).ok_or(Reason::Malformed)?;
    }
    let (outer_type, outer_id) = tags.tag(0);
    let (inner_type, inner_id) = tags.tag(1);
    let control = |priority: u8, id: u16| {
        let [high, low] = id.to_be_bytes();
        [priority | high, low]
    };
    if wanted == 2 {
        let tag: &mut VlanTag = packet.view_mut(SECOND).ok_or(Reason::Malformed)?;
        tag.control = control(inner, inner_id);
        tag.ether_type = payload;
        payload = inner_type.to_be_bytes();
    }
    if wanted > 0 {
        let tag: &mut VlanTag = packet.view_mut(FIRST).ok_or(Reason::Malformed)?;
        tag.control = control(outer, outer_id);
        tag.ether_type = payload;
        payload = outer_type.to_be_bytes();
    }
    let ethernet: &mut Ethernet = packet.view_mut(0).ok_or(Reason::Malformed)?;
    ethernet.destination = destination;
    ethernet.source = source;
    ethernet.ether_type = payload;
    Ok(())
}

const _: () = assert!(size_of::<Vlan>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Frame;

    const MACS: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    /// A frame with these tags: EtherType, priority bits, id.
    fn frame(tags: &[(u16, u8, u16)]) -> Vec<u8> {
        let mut frame = MACS.to_vec();
        for (ether_type, priority, id) in tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend((u16::from(*priority) << 12 | id).to_be_bytes());
        }
        frame.extend([0x08, 0x00, 0x45, 0x00, 0x00, 0x14]);
        frame
    }

    fn tags(of: &[(u16, u16)]) -> Tags {
        of.iter().fold(Tags::NONE, |tags, (ether_type, id)| tags.with(*ether_type, *id).unwrap())
    }

    fn becomes(from: &[(u16, u8, u16)], to: &[(u16, u16)], expected: &[(u16, u8, u16)]) {
        let mut packet = Frame::with_headroom(&frame(from), 1, 8);
        retag(&mut packet, tags(to)).unwrap();
        assert_eq!(packet.bytes(), frame(expected), "{from:?} -> {to:?}");
    }

    const Q: u16 = ETHERTYPE_VLAN;
    const AD: u16 = ETHERTYPE_QINQ;

    #[test]
    fn tags_are_pushed_popped_and_replaced() {
        becomes(&[], &[], &[]);
        becomes(&[], &[(Q, 100)], &[(Q, 0, 100)]);
        becomes(&[], &[(AD, 4094), (Q, 1)], &[(AD, 0, 4094), (Q, 0, 1)]);
        becomes(&[(Q, 0xb, 100)], &[], &[]);
        becomes(&[(Q, 0xb, 100)], &[(Q, 200)], &[(Q, 0xb, 200)]);
        becomes(&[(Q, 0xb, 100)], &[(AD, 100)], &[(AD, 0xb, 100)]);
        becomes(&[(Q, 0xb, 100)], &[(AD, 7), (Q, 200)], &[(AD, 0xb, 7), (Q, 0, 200)]);
        becomes(&[(AD, 0xa, 7), (Q, 0xc, 100)], &[], &[]);
        becomes(&[(AD, 0xa, 7), (Q, 0xc, 100)], &[(Q, 200)], &[(Q, 0xa, 200)]);
        becomes(&[(AD, 0xa, 7), (Q, 0xc, 100)], &[(AD, 8), (Q, 100)], &[(AD, 0xa, 8), (Q, 0xc, 100)]);
    }

    #[test]
    fn a_device_has_two_tags_at_most_of_two_kinds() {
        assert_eq!(tags(&[(AD, 7), (Q, 100)]).with(Q, 1), None);
        assert_eq!(Tags::NONE.with(0x9100, 1), None);
        assert_eq!([Tags::NONE, tags(&[(Q, 0)]), tags(&[(Q, 0), (Q, 0)])].map(Tags::count), [0, 1, 2]);
    }

    #[test]
    fn without_headroom_nothing_is_pushed() {
        let mut packet = Frame::with_headroom(&frame(&[]), 1, 7);
        assert_eq!(retag(&mut packet, tags(&[(AD, 7), (Q, 100)])), Err(Reason::NoHeadroom));
        assert_eq!(packet.bytes(), frame(&[]));
    }

    #[test]
    fn what_is_cut_off_within_its_tags_is_malformed() {
        let whole = frame(&[(AD, 0, 7), (Q, 0, 100)]);
        for length in [0, 13, 16, 17, 21] {
            let mut packet = Frame::new(&whole[..length], 1);
            assert_eq!(retag(&mut packet, Tags::NONE), Err(Reason::Malformed), "{length}");
        }
    }
}
