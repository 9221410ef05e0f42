//! Packets that the agent makes itself: a bare segment, an empty datagram or the beginning of one of QUIC in a frame.

use std::net::{IpAddr, SocketAddr};

use lb_common::checksum::fold;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP, Mac};

/// What is in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment without data or options.
    Segment {
        /// SYN, ACK and so on.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
    },
    /// A UDP datagram without data.
    Datagram,
    /// A short header of QUIC with a connection id, and zeros.
    Quic([u8; SHORT_HEADER_ID]),
}

/// Bytes in a short header that may be an id's.
pub const SHORT_HEADER_ID: usize = lb_common::quic::MAX_ID;

/// A frame with a packet between these ends, which are of one family.
#[must_use]
pub fn frame(destination: Mac, from: SocketAddr, to: SocketAddr, content: Content) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let (protocol, field) = match content {
        Content::Segment { flags, sequence, acknowledgement } => {
            segment.extend(sequence.to_be_bytes());
            segment.extend(acknowledgement.to_be_bytes());
            segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            (IPPROTO_TCP, 16)
        }
        Content::Datagram => {
            segment.extend([0, 8, 0, 0]);
            (IPPROTO_UDP, 6)
        }
        Content::Quic(id) => {
            // A packet of as many bytes as a sample of its protection needs (RFC 9001, section 5.4.2), and an even number of them.
            let rest = [0; 21];
            segment.extend([0, (8 + 1 + id.len() + rest.len()) as u8, 0, 0, 0x40]);
            segment.extend(id);
            segment.extend(rest);
            (IPPROTO_UDP, 6)
        }
    };
    let (ether_type, mut header, addresses): ([u8; 2], Vec<u8>, Vec<u8>) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + segment.len() as u16).to_be_bytes();
            let header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
            ([8, 0], header, [from.octets(), to.octets()].concat())
        }
        (from, to) => {
            let length = (segment.len() as u16).to_be_bytes();
            let header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            ([0x86, 0xdd], header, [octets(from), octets(to)].concat())
        }
    };
    header.extend(&addresses);
    if ether_type == [8, 0] {
        let checksum = checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum);
    }
    let pseudo = [&addresses[..], &[0, protocol], &(segment.len() as u16).to_be_bytes()].concat();
    let checksum = checksum(&[&pseudo, &segment]);
    segment[field..field + 2].copy_from_slice(&checksum);
    [&destination[..], &[2, 0, 0, 0, 0, 0], &ether_type, &header, &segment].concat()
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The checksum of parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum = words.map(|word| u64::from(u16::from_ne_bytes([word[0], word[1]]))).sum();
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        for (from, to) in
            [("198.51.100.1:4000", "203.0.113.10:443"), ("[2001:db8::1]:4000", "[2001:db8::10]:443")]
        {
            let segment = Content::Segment { flags: 2, sequence: 0x1234_5678, acknowledgement: 9 };
            for content in [segment, Content::Datagram, Content::Quic([7; SHORT_HEADER_ID])] {
                let frame = frame([2; 6], from.parse().unwrap(), to.parse().unwrap(), content);
                let (addresses, segment, protocol) = if frame[12] == 0x86 {
                    (&frame[22..54], &frame[54..], frame[20])
                } else {
                    assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
                    (&frame[26..34], &frame[34..], frame[23])
                };
                let pseudo = [addresses, &[0, protocol], &(segment.len() as u16).to_be_bytes()].concat();
                assert_eq!(checksum(&[&pseudo, segment]), [0, 0]);
            }
        }
    }
}
