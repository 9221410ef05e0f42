//! A second opinion on a frame: byte by byte, as a receiver would read it, with nothing from the data path.

/// A frame that is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Inspected {
    pub v6: bool,
    pub l3: usize,
    pub l4: usize,
    pub end: usize,
    pub protocol: u8,
    pub hops: u8,
    pub traffic_class: u8,
    /// Address and port.
    pub source: (Vec<u8>, [u8; 2]),
    /// Address and port.
    pub destination: (Vec<u8>, [u8; 2]),
    /// Whether IPv4's checksum is right; IPv6 has none.
    pub header_ok: bool,
    pub checksum: Checksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Right,
    Wrong,
    /// UDP's zero.
    None,
}

/// Reads a frame with TCP or UDP over unfragmented IP in it; `None` if it is something else, or not whole.
pub fn inspect(frame: &[u8]) -> Option<Inspected> {
    let at = |i: usize| frame.get(i).copied();
    let word = |i: usize| Some(u16::from_be_bytes([at(i)?, at(i + 1)?]));
    let mut l3 = 14;
    for _ in 0..2 {
        if matches!(word(l3 - 2)?, 0x8100 | 0x88a8) {
            l3 += 4;
        }
    }
    let v6 = match word(l3 - 2)? {
        0x0800 => false,
        0x86dd => true,
        _ => return None,
    };
    if at(l3)? >> 4 != if v6 { 6 } else { 4 } {
        return None;
    }
    let (mut l4, end, mut protocol, hops, addresses, width) = if v6 {
        let end = l3 + 40 + usize::from(word(l3 + 4)?);
        (l3 + 40, end, at(l3 + 6)?, at(l3 + 7)?, l3 + 8, 16)
    } else {
        let fragment = word(l3 + 6)? & 0x3fff;
        let header = usize::from(at(l3)? & 15) * 4;
        let length = usize::from(word(l3 + 2)?);
        if fragment != 0 || header < 20 || header > length {
            return None;
        }
        (l3 + header, l3 + length, at(l3 + 9)?, at(l3 + 8)?, l3 + 12, 4)
    };
    while v6 && !matches!(protocol, 6 | 17) {
        let unit = match protocol {
            0 | 43 | 60 => 8,
            51 => 4,
            _ => return None,
        };
        protocol = at(l4)?;
        l4 += 8 + usize::from(at(l4 + 1)?) * unit;
    }
    let header = match protocol {
        6 => (usize::from(at(l4 + 12)? >> 4) * 4).max(20),
        17 => 8,
        _ => return None,
    };
    let segment = frame.get(l4..end).filter(|segment| segment.len() >= header)?;
    if protocol == 6 && segment[12] >> 4 < 5 {
        return None;
    }
    let pair = &frame[addresses..addresses + 2 * width];
    // A datagram may end before the packet does.
    let said =
        if protocol == 17 { u16::from_be_bytes([segment[4], segment[5]]).into() } else { segment.len() };
    let summed = segment.get(..said).filter(|summed| summed.len() >= header)?;
    let pseudo = sum(u32::from(protocol) + said as u32, pair);
    let checksum = if protocol == 17 && segment[6..8] == [0, 0] {
        Checksum::None
    } else if sum(u32::from(pseudo), summed) == 0xffff {
        Checksum::Right
    } else {
        Checksum::Wrong
    };
    let traffic_class = if v6 { at(l3)? << 4 | at(l3 + 1)? >> 4 } else { at(l3 + 1)? };
    Some(Inspected {
        v6,
        l3,
        l4,
        end,
        protocol,
        hops,
        traffic_class,
        source: (pair[..width].to_vec(), [segment[0], segment[1]]),
        destination: (pair[width..].to_vec(), [segment[2], segment[3]]),
        header_ok: v6 || sum(0, &frame[l3..l3 + usize::from(at(l3)? & 15) * 4]) == 0xffff,
        checksum,
    })
}

/// The one's complement sum of big-endian words.
pub fn sum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ((sum & 0xffff) + (sum >> 16)) as u16
}
