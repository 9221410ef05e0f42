//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! # What a checksum is here
//!
//! The wire carries `!sum`, where `sum` is the one's complement sum of the covered 16-bit words. When a word `m` becomes
//! `m'`, RFC 1624 gives the new field as `!( !old + !m + m' )`. Adding `!m + m'` for each changed word first, and folding
//! once at the end, is the same sum in another order; so a change of addresses and ports is one [`Delta`], computed once and
//! applied to each checksum that covers it (the IPv4 header's, and TCP's or UDP's through the pseudo header).
//!
//! One's complement addition does not care about byte order (RFC 1071, section 2B) as long as it is the same one throughout:
//! all words here are read in the host's order and written back the same way, and no byte is ever swapped.
//!
//! UDP has a special case: zero means "no checksum". It stays zero, and a sum that comes out as zero is sent as `0xffff`
//! (RFC 768).

use crate::abi::Address;
use crate::pipeline::Packet;
use crate::wire::{Chunk, Ipv4, Tcp, Wire, Word};

/// The change of a one's complement sum, not folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// A 16-bit word of the covered bytes changes.
    #[must_use]
    #[inline(always)]
    pub const fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        let old = !u16::from_ne_bytes(old) as u64;
        let new = u16::from_ne_bytes(new) as u64;
        Self(self.0.wrapping_add(old).wrapping_add(new))
    }

    /// Two adjacent 16-bit words change.
    #[must_use]
    #[inline(always)]
    pub const fn long(self, old: u32, new: u32) -> Self {
        Self(self.0.wrapping_add(!old as u64).wrapping_add(new as u64))
    }

    /// Eight adjacent 16-bit words change, as with an IPv6 address.
    #[must_use]
    #[inline(always)]
    pub const fn address(self, old: [u32; 4], new: [u32; 4]) -> Self {
        self.long(old[0], new[0]).long(old[1], new[1]).long(old[2], new[2]).long(old[3], new[3])
    }

    /// Another change as well.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The checksum field after the change.
    #[must_use]
    #[inline(always)]
    pub const fn apply(self, field: [u8; 2]) -> [u8; 2] {
        let sum = (!u16::from_ne_bytes(field)) as u64;
        (!fold(self.0.wrapping_add(sum))).to_ne_bytes()
    }

    /// The checksum field of a UDP datagram after the change: "none" stays none, and never becomes it.
    #[must_use]
    #[inline(always)]
    pub const fn apply_udp(self, field: [u8; 2]) -> [u8; 2] {
        if u16::from_ne_bytes(field) == 0 {
            return field;
        }
        let new = self.apply(field);
        if u16::from_ne_bytes(new) == 0 { [0xff, 0xff] } else { new }
    }
}

/// Folds a sum of 16- and 32-bit words into 16 bits (end-around carry).
#[must_use]
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of an address's words: its part of a pseudo header. (Of IPv4 the words beside the address are in it as well.)
#[must_use]
#[inline(always)]
pub const fn of_address(address: Address) -> u64 {
    let [a, b, c, d] = address.wire_words();
    a as u64 + b as u64 + c as u64 + d as u64
}

/// The checksum of an IPv4 header of 20 bytes whose checksum field is zero.
#[must_use]
#[inline(always)]
pub fn ipv4_header(header: &Ipv4) -> [u8; 2] {
    of_words::<5>(bytemuck::cast_ref(header), 0)
}

/// The checksum over words of 4 bytes, starting from `sum` (a pseudo header, or 0): for headers that are built anew.
#[must_use]
#[inline(always)]
pub fn of_words<const N: usize>(words: &[[u8; 4]; N], mut sum: u64) -> [u8; 2] {
    for word in words {
        sum = sum.wrapping_add(u32::from_ne_bytes(*word) as u64);
    }
    (!fold(sum)).to_ne_bytes()
}

/// The longest segment that is summed: what fits into a packet of 1500 bytes.
const LONGEST: usize = 1480;

/// Whether the sum of a segment from `start` to `end` is right, as far as it can be told: one that is longer than [`LONGEST`], or not
/// all in reach, counts as right. `sum` is its pseudo header's.
#[must_use]
#[inline(always)]
pub fn is_right<P: Packet>(packet: &P, start: usize, end: usize, mut sum: u64) -> bool {
    let length = end.wrapping_sub(start);
    if !(Tcp::SIZE..=LONGEST).contains(&length) {
        return true;
    }
    // What is left beside whole chunks comes first: the verifier takes the end of each round of a loop for another road.
    let chunks = length & !(Chunk::SIZE - 1);
    for round in 0..Chunk::SIZE / Word::SIZE - 1 {
        let at = chunks + round * Word::SIZE;
        if at + Word::SIZE > length {
            break;
        }
        let Some(Word(word)) = packet.view(start + at) else { return true };
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if length & 1 != 0 {
        let Some(Word([_, last])) = packet.view(packet.bounded(start + length - Word::SIZE)) else {
            return true;
        };
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    let mut at = 0;
    while at < chunks {
        let Some(Chunk(words)) = packet.view(start + at) else { return true };
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        at += Chunk::SIZE;
    }
    fold(sum) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cases;
    use proptest::prelude::*;

    fn long_way(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn an_update_equals_the_sum_taken_anew(
            mut bytes in prop::collection::vec(any::<u8>(), 20..64),
            at in 0usize..4,
            new in any::<[u32; 4]>(),
        ) {
            bytes.truncate(bytes.len() & !1);
            // A header is never all zeros: the one input for which one's complement is ambiguous.
            bytes[0] |= 0x40;
            let before = long_way(&bytes);
            let at = 2 + at * 4;
            let old = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new[0].to_ne_bytes());
            let after = Delta::NONE.long(old, new[0]).apply(before);
            prop_assert_eq!(after, long_way(&bytes));
        }

        #[test]
        fn folding_is_the_sum_modulo_ffff(sum in any::<u64>()) {
            prop_assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff);
            prop_assert_eq!(fold(sum) == 0, sum == 0);
        }
    }

    #[test]
    fn the_example_of_rfc_1624() {
        let delta = Delta::NONE.word([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn no_checksum_stays_none_and_a_zero_sum_is_sent_as_ones() {
        let delta = Delta::NONE.word([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply_udp([0, 0]), [0, 0]);
        assert_eq!(delta.apply_udp([0xdd, 0x2f]), [0xff, 0xff]);
    }

    #[test]
    fn a_header_of_a_known_packet() {
        let mut header: Ipv4 = bytemuck::cast([
            0x45u8, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ]);
        header.checksum = ipv4_header(&header);
        assert_eq!(header.checksum, [0xb8, 0x61]);
        assert_eq!(long_way(bytemuck::bytes_of(&header)), [0, 0]);
    }
}
