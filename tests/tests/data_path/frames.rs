//! Frames of every kind: right ones, and what bad cables, bad stacks and bad people make of them.

use std::net::IpAddr;

use lb_common::host::{Tables, fuzz};
use lb_tests::Family;

use crate::network::Network;
use crate::rng::Rng;
use crate::tables::{CODECS, NAMES, server_id};

/// What a test run takes.
const SHORTEST: usize = 14;
/// What fits in one buffer of the kernel's, with its head- and tailroom.
const LONGEST: usize = 3000;

/// Makes frames; remembers some, so that flows go on.
pub struct Frames {
    recent: Vec<Vec<u8>>,
    odd: [Vec<IpAddr>; 2],
}

impl Frames {
    pub fn new(network: &Network) -> Self {
        Self { recent: Vec::new(), odd: Family::ALL.map(|family| network.odd_addresses(family)) }
    }

    /// The next frame: of any service in `tables`, to it or back.
    pub fn next(&mut self, tables: &Tables, rng: &mut Rng) -> Vec<u8> {
        const MEMORY: usize = 64;
        if rng.once_in(64) {
            let length = SHORTEST + rng.below(128);
            return rng.bytes(length);
        }
        if self.recent.len() < MEMORY || rng.once_in(3) {
            let choices = rng.bytes(256);
            let (mut frame, _) = fuzz::frame(&choices, tables);
            if rng.once_in(4) {
                name(&mut frame, rng);
            }
            if self.recent.len() == MEMORY {
                self.recent.swap_remove(rng.below(MEMORY));
            }
            self.recent.push(frame);
        }
        let mut frame = self.recent[rng.below(self.recent.len())].clone();
        let damages = [0, 0, 1, 1, 2, 3][rng.below(6)];
        for _ in 0..damages {
            self.damage(&mut frame, rng);
        }
        frame.truncate(LONGEST);
        if frame.len() < SHORTEST {
            frame.resize(SHORTEST, 0);
        }
        frame
    }

    fn damage(&self, frame: &mut Vec<u8>, rng: &mut Rng) {
        let at = Layout::of(frame);
        match rng.below(19) {
            0..4 => go_on(frame, &at, rng),
            17 | 18 => claim(frame, &at, rng),
            16 => Self::disown(frame, &at, rng),
            4 => flip(frame, rng),
            5 => frame.truncate(rng.below(frame.len() + 1)),
            6 => stretch(frame, &at, rng),
            7 => swap(frame, &at, rng),
            8 | 9 => lie(frame, &at, rng),
            10 => self.move_house(frame, &at, rng),
            11 => retag(frame, &at, rng),
            12 => put(frame, at.hops(), &[rng.pick(&[0, 1, 2, 255])]),
            13 => put(frame, at.protocol(), &[rng.pick(&[0, 1, 4, 6, 17, 41, 43, 44, 50, 51, 58, 60, 255])]),
            14 => put(frame, at.l3 + if at.v6 { 40 } else { 6 }, &rng.next().to_ne_bytes()[..2]),
            _ => {
                put(frame, at.l4 + rng.below(2) * 2, &rng.pick(&[0, 80, 443, 8443, 65_535_u16]).to_be_bytes())
            }
        }
    }

    /// Another address, at either end: of those that the kernel has its own mind of.
    fn move_house(&self, frame: &mut [u8], at: &Layout, rng: &mut Rng) {
        let odd = &self.odd[usize::from(at.v6)];
        let octets = match rng.pick(odd) {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        put(frame, at.addresses() + rng.below(2) * octets.len(), &octets);
    }

    /// From nobody: an address that no host has, or the very one that the frame is for.
    fn disown(frame: &mut [u8], at: &Layout, rng: &mut Rng) {
        let source = at.addresses();
        let length = if at.v6 { 16 } else { 4 };
        if rng.once_in(2) && frame.len() >= source + 2 * length {
            return frame.copy_within(source + length..source + 2 * length, source);
        }
        if at.v6 {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = rng.pick(&[(0, 0), (0, 1), (0, 2), (0xff, 1), (0xfe, 1)]);
            (octets[10], octets[11]) = rng.pick(&[(0, 0), (0, 0), (0xff, 0xff)]);
            return put(frame, source, &octets);
        }
        put(frame, source, &[rng.pick(&[0, 1, 126, 127, 128, 223, 224, 240, 255])]);
    }
}

/// Puts an option into a segment that says whose it is, as `toa` does: of either family, or another one with that number.
fn claim(frame: &mut Vec<u8>, at: &Layout, rng: &mut Rng) {
    const OPTIONS: usize = 20;
    let length = rng.pick(&[8_u8, 8, 20, 4]);
    let Some(&offset) = frame.get(at.l4 + 12) else { return };
    let words = (offset >> 4) + length / 4;
    if frame.get(at.protocol()) != Some(&6) || frame.len() < at.l4 + OPTIONS || words > 15 {
        return;
    }
    let mut option = rng.bytes(length.into());
    option[..2].copy_from_slice(&[254, length]);
    frame.splice(at.l4 + OPTIONS..at.l4 + OPTIONS, option);
    put(frame, at.l4 + 12, &[words << 4 | offset & 15]);
    if let Some(whole) = frame.get(at.length()..).and_then(<[u8]>::first_chunk::<2>) {
        let longer = u16::from_be_bytes(*whole).wrapping_add(length.into());
        put(frame, at.length(), &longer.to_be_bytes());
    }
}

/// Puts a header of QUIC into a datagram, with a connection id that may name somebody.
fn name(frame: &mut Vec<u8>, rng: &mut Rng) {
    let at = Layout::of(frame);
    let codec = rng.pick(&CODECS);
    let nonce = rng.bytes(codec.nonce_length.into());
    let server = server_id(&codec, rng.below(usize::from(NAMES) + 1) as u8);
    let Some(mut id) = codec.encode(&server, &nonce) else { return };
    if rng.once_in(8) {
        id[0] ^= 1 << rng.below(8);
    }
    let mut header = vec![rng.next() as u8];
    if header[0] & 0x80 != 0 {
        header.extend(rng.pick(&[1_u32, 1, 0x6b33_43cf, 0x0a1a_2a3a, 0]).to_be_bytes());
        header.push(id.len() as u8);
    }
    header.extend(id);
    if rng.once_in(2) {
        // As long as such datagrams are.
        let (start, more) = (at.l4 + 8 + header.len(), rng.below(40));
        if frame.get(at.protocol()) == Some(&17) && start >= frame.len() {
            let length = (start + more - at.l4) as u16;
            frame.resize(start + more, 0xa5);
            put(frame, at.l4 + 4, &length.to_be_bytes());
            let whole = if at.v6 { length } else { length + (at.l4 - at.l3) as u16 };
            put(frame, at.length(), &whole.to_be_bytes());
        }
    }
    put(frame, at.l4 + 8, &header);
}

/// Where things are in a frame, if it is what it says.
struct Layout {
    l3: usize,
    v6: bool,
    /// Behind the fixed header of IPv6, and IPv4's options.
    l4: usize,
}

impl Layout {
    fn of(frame: &[u8]) -> Self {
        let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
        let mut l3 = 14;
        while l3 < 22 && matches!([byte(l3 - 2), byte(l3 - 1)], [0x81, 0] | [0x88, 0xa8]) {
            l3 += 4;
        }
        let v6 = byte(l3) >> 4 == 6;
        let header = if v6 { 40 } else { usize::from(byte(l3) & 15) * 4 };
        Self { l3, v6, l4: l3 + header }
    }

    fn hops(&self) -> usize {
        self.l3 + if self.v6 { 7 } else { 8 }
    }

    fn protocol(&self) -> usize {
        self.l3 + if self.v6 { 6 } else { 9 }
    }

    fn addresses(&self) -> usize {
        self.l3 + if self.v6 { 8 } else { 12 }
    }

    /// Of the whole packet, or of what follows the header.
    fn length(&self) -> usize {
        self.l3 + if self.v6 { 4 } else { 2 }
    }
}

/// Overwrites, as far as the frame reaches.
fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The same flow's next segment, or another one with the same ports.
fn go_on(frame: &mut [u8], at: &Layout, rng: &mut Rng) {
    let Some(sequence) = frame.get(at.l4 + 4..).and_then(<[u8]>::first_chunk::<4>) else { return };
    let ahead = rng.pick(&[0, 0, 1, 1, 2, 1 << 13, (1 << 14) + 1, 1 << 20, u32::MAX]);
    let sequence = u32::from_be_bytes(*sequence).wrapping_add(ahead);
    put(frame, at.l4 + 4, &sequence.to_be_bytes());
    put(frame, at.l4 + 13, &[rng.pick(&[0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x04, 0x12, 0, 0xff])]);
}

fn flip(frame: &mut [u8], rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        if !frame.is_empty() {
            let bit = rng.below(frame.len().min(128) * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// Longer: padding, or a packet that says that it is longer.
fn stretch(frame: &mut Vec<u8>, at: &Layout, rng: &mut Rng) {
    let more = rng.pick(&[1, 6, 46, 150, 1200, 1460]);
    frame.extend(rng.bytes(more));
    if rng.once_in(2)
        && let Some(length) = frame.get(at.length()..).and_then(<[u8]>::first_chunk::<2>)
    {
        let longer = u16::from_be_bytes(*length).wrapping_add(more as u16);
        put(frame, at.length(), &longer.to_be_bytes());
    }
}

/// Two words of the headers change places; or both addresses with both ports, as in an answer.
fn swap(frame: &mut [u8], at: &Layout, rng: &mut Rng) {
    let width = if at.v6 { 16 } else { 4 };
    let mut exchange = |a: usize, b: usize, length: usize| {
        if a + length <= b && b + length <= frame.len() {
            let (front, back) = frame.split_at_mut(b);
            front[a..a + length].swap_with_slice(&mut back[..length]);
        }
    };
    if rng.once_in(2) {
        exchange(at.addresses(), at.addresses() + width, width);
        exchange(at.l4, at.l4 + 2, 2);
    } else {
        let (a, b) = (rng.below(40) * 2, rng.below(40) * 2);
        exchange(a.min(b), a.max(b), 2);
    }
}

/// A length that is not the length: of the packet, of IPv4's or TCP's header, of a datagram, of an extension header.
fn lie(frame: &mut [u8], at: &Layout, rng: &mut Rng) {
    let field = match rng.below(4) {
        0 => at.length(),
        1 => at.l4 + 4,
        2 if at.v6 => return put(frame, at.l4 + 1, &[rng.pick(&[0, 1, 2, 31, 255])]),
        2 => return put(frame, at.l3, &[0x40 | rng.below(16) as u8]),
        _ => return put(frame, at.l4 + 12, &[(rng.below(16) as u8) << 4]),
    };
    let Some(length) = frame.get(field..).and_then(<[u8]>::first_chunk::<2>) else { return };
    let length = u16::from_be_bytes(*length);
    let lies =
        [0, 1, 7, 8, 19, 20, 21, 39, 40, length.wrapping_sub(1), length.wrapping_add(1), 0x7fff, 0xffff];
    put(frame, field, &rng.pick(&lies).to_be_bytes());
}

/// A tag more, one less, or another EtherType.
fn retag(frame: &mut Vec<u8>, at: &Layout, rng: &mut Rng) {
    match rng.below(3) {
        0 if frame.len() >= 14 => {
            let tag = rng.pick(&[[0x81, 0, 0, 7], [0x88, 0xa8, 0x20, 1]]);
            frame.splice(12..12, tag);
        }
        1 if at.l3 > 14 && frame.len() >= 18 => drop(frame.drain(12..16)),
        _ => put(frame, at.l3 - 2, &rng.pick(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0, 0]])),
    }
}
