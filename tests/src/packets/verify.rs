//! Every checksum of a frame, in tunnels too.

use std::fmt;

/// How many checksums were there, all of them right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// IPv4 headers.
    pub ipv4: usize,
    /// TCP segments.
    pub tcp: usize,
    /// UDP datagrams that have a checksum.
    pub udp: usize,
    /// ICMP and ICMPv6 messages.
    pub icmp: usize,
}

/// Where a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the protocols say it")]
pub enum Layer {
    Ethernet,
    Vlan,
    Ipv4,
    Ipv6,
    Tcp,
    Udp,
    Icmp,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ends, or a length says that it ends, before this layer does.
    Truncated(Layer),
    /// The checksum of this layer.
    Checksum {
        /// Whose.
        layer: Layer,
        /// What the frame says.
        found: u16,
    },
    /// UDP over IPv6 without a checksum (RFC 8200, 8.1), outside of tunnels that may.
    Missing(Layer),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(layer) => write!(f, "{layer:?} is cut off"),
            Self::Checksum { layer, found } => {
                write!(f, "the checksum of {layer:?}, {found:#06x}, is wrong")
            }
            Self::Missing(layer) => write!(f, "{layer:?} needs a checksum and has none"),
        }
    }
}

impl std::error::Error for Fault {}

/// Checks every checksum in an Ethernet frame: IPv4 headers, TCP, UDP, ICMP and ICMPv6, behind VLAN
/// tags and in IPIP of any mix. Fragments are checked as to their headers only; what is neither
/// IPv4 nor IPv6 has none.
///
/// # Errors
/// The first fault, from outside in.
pub fn verify(frame: &[u8]) -> Result<Verified, Fault> {
    let mut verified = Verified::default();
    let (_, mut rest) = frame.split_at_checked(12).ok_or(Fault::Truncated(Layer::Ethernet))?;
    loop {
        let (ethertype, inside) = rest.split_first_chunk::<2>().ok_or(Fault::Truncated(Layer::Ethernet))?;
        match u16::from_be_bytes(*ethertype) {
            0x8100 | 0x88a8 => {
                rest = inside.get(2..).ok_or(Fault::Truncated(Layer::Vlan))?;
            }
            0x0800 => break ipv4(inside, &mut verified)?,
            0x86dd => break ipv6(inside, &mut verified)?,
            _ => break,
        }
    }
    Ok(verified)
}

/// The Internet checksum (RFC 1071) of these bytes, one part after the other. All parts but the
/// last have an even length. Zero over data that has its checksum in it means that it is right.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (words, odd) = part.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += odd.first().map_or(0, |byte| u64::from(*byte) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ipv4(packet: &[u8], verified: &mut Verified) -> Result<(), Fault> {
    const CUT: Fault = Fault::Truncated(Layer::Ipv4);
    let fixed = packet.first_chunk::<20>().ok_or(CUT)?;
    let header_length = usize::from(fixed[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let header = packet.get(..header_length.max(20)).ok_or(CUT)?;
    if checksum(&[header]) != 0 {
        let found = u16::from_be_bytes([fixed[10], fixed[11]]);
        return Err(Fault::Checksum { layer: Layer::Ipv4, found });
    }
    verified.ipv4 += 1;
    let inside = packet.get(header_length..total).ok_or(CUT)?;
    let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0;
    if fragment {
        return Ok(());
    }
    carried(fixed[9], &fixed[12..20], inside, verified)
}

fn ipv6(packet: &[u8], verified: &mut Verified) -> Result<(), Fault> {
    const CUT: Fault = Fault::Truncated(Layer::Ipv6);
    let fixed = packet.first_chunk::<40>().ok_or(CUT)?;
    let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let mut inside = packet.get(40..40 + length).ok_or(CUT)?;
    let mut next = fixed[6];
    loop {
        let length = match next {
            // Fragment header.
            44 => return Ok(()),
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => 8 + usize::from(*inside.get(1).ok_or(CUT)?) * 8,
            _ => return carried(next, &fixed[8..40], inside, verified),
        };
        next = *inside.first().ok_or(CUT)?;
        inside = inside.get(length..).ok_or(CUT)?;
    }
}

/// What an IP packet carries, given the addresses of that packet.
fn carried(protocol: u8, addresses: &[u8], inside: &[u8], verified: &mut Verified) -> Result<(), Fault> {
    let over_ipv6 = addresses.len() == 32;
    let pseudo = |protocol| {
        let length = (inside.len() as u32).to_be_bytes();
        [addresses, &length, &[0, 0, 0, protocol]].concat()
    };
    match protocol {
        4 => ipv4(inside, verified),
        41 => ipv6(inside, verified),
        6 => {
            check(Layer::Tcp, &pseudo(6), inside, 20, 16)?;
            verified.tcp += 1;
            Ok(())
        }
        17 => {
            let header = inside.first_chunk::<8>().ok_or(Fault::Truncated(Layer::Udp))?;
            if usize::from(u16::from_be_bytes([header[4], header[5]])) != inside.len() {
                return Err(Fault::Truncated(Layer::Udp));
            }
            if header[6..8] == [0, 0] {
                return if over_ipv6 { Err(Fault::Missing(Layer::Udp)) } else { Ok(()) };
            }
            check(Layer::Udp, &pseudo(17), inside, 8, 6)?;
            verified.udp += 1;
            Ok(())
        }
        1 | 58 => {
            let pseudo = if protocol == 58 { pseudo(58) } else { Vec::new() };
            check(Layer::Icmp, &pseudo, inside, 8, 2)?;
            verified.icmp += 1;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check(
    layer: Layer,
    pseudo: &[u8],
    inside: &[u8],
    header_length: usize,
    field: usize,
) -> Result<(), Fault> {
    if inside.len() < header_length {
        return Err(Fault::Truncated(layer));
    }
    if checksum(&[pseudo, inside]) != 0 {
        let found = u16::from_be_bytes([inside[field], inside[field + 1]]);
        return Err(Fault::Checksum { layer, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mac,
        packets::{Extension, Frame, Ipv4, Ipv6, Tcp, Udp},
    };

    fn ethernet() -> Frame {
        Frame::ethernet(Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]))
    }

    fn four() -> Ipv4 {
        Ipv4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
    }

    fn six() -> Ipv6 {
        Ipv6::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
    }

    #[test]
    fn every_built_frame_is_right_in_every_mix_of_tunnels() {
        let outsides = [ethernet(), ethernet().vlan(1), ethernet().service_vlan(1).vlan(2)];
        let mut options = four();
        options.options = vec![1; 7];
        let mut extensions = six();
        extensions.extensions = vec![Extension::HopByHop(vec![1, 1, 0]), Extension::Destination(vec![])];
        for outside in outsides {
            let ips = [
                (outside.clone().ipv4(four()), 1),
                (outside.clone().ipv4(options.clone()), 1),
                (outside.clone().ipv6(six()), 0),
                (outside.clone().ipv6(extensions.clone()), 0),
                (outside.clone().ipv4(four()).ipv4(options.clone()), 2),
                (outside.clone().ipv4(four()).ipv6(extensions.clone()), 1),
                (outside.clone().ipv6(six()).ipv4(four()), 1),
                (outside.clone().ipv6(six()).ipv6(six()), 0),
            ];
            for (ip, ipv4) in ips {
                for payload in [b"".as_slice(), b"odd", b"even"] {
                    let tcp = ip.clone().tcp(Tcp::new(1, 2).syn()).payload(payload).build();
                    assert_eq!(verify(&tcp), Ok(Verified { ipv4, tcp: 1, ..Verified::default() }));
                    let udp = ip.clone().udp(Udp::new(1, 2)).payload(payload).build();
                    assert_eq!(verify(&udp), Ok(Verified { ipv4, udp: 1, ..Verified::default() }));
                }
            }
        }
    }

    #[test]
    fn no_flipped_bit_behind_the_ethernet_header_is_missed() {
        for frame in [
            ethernet().ipv4(four()).tcp(Tcp::new(1, 2)).payload(b"data").build(),
            ethernet().ipv4(four()).ipv4(four()).udp(Udp::new(1, 2)).payload(b"data").build(),
        ] {
            let right = verify(&frame).unwrap();
            for bit in 14 * 8..frame.len() * 8 {
                let mut wrong = frame.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(verify(&wrong), Ok(right), "bit {bit}");
            }
        }
    }

    #[test]
    fn no_truncation_is_missed() {
        let frame = ethernet().vlan(3).ipv6(six()).ipv4(four()).udp(Udp::new(1, 2)).build();
        for length in 0..frame.len() {
            assert!(matches!(verify(&frame[..length]), Err(Fault::Truncated(_))), "{length}");
        }
    }

    #[test]
    fn udp_may_lack_a_checksum_over_ipv4_only() {
        let mut udp = Udp::new(1, 2);
        udp.has_checksum = false;
        let over_ipv4 = ethernet().ipv4(four()).udp(udp.clone()).build();
        assert_eq!(verify(&over_ipv4), Ok(Verified { ipv4: 1, ..Verified::default() }));
        let over_ipv6 = ethernet().ipv6(six()).udp(udp).build();
        assert_eq!(verify(&over_ipv6), Err(Fault::Missing(Layer::Udp)));
    }
}
