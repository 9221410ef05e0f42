//! Frames, layer by layer.

use std::net::IpAddr;

use super::headers::{Ipv4, Ipv6, Tcp, Udp, be16};
use crate::Mac;

/// A frame in the making: each call adds a layer inside of the ones before.
///
/// Lengths, checksums and the numbers that say what follows are filled in by [`build`](Self::build);
/// a second `ip` inside the first makes a tunnel.
///
/// ```
/// # use lb_tests::{Mac, packets::{Frame, Tcp, verify}};
/// let frame = Frame::ethernet(Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]))
///     .vlan(7)
///     .ip([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
///     .tcp(Tcp::new(40_000, 80).syn())
///     .build();
/// verify(&frame).unwrap();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Frame {
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
enum Layer {
    Ethernet { source: Mac, destination: Mac },
    Vlan { tag_protocol: u16, id: u16 },
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Tcp(Tcp),
    Udp(Udp),
    Other { protocol: u8, bytes: Vec<u8> },
    Payload(Vec<u8>),
}

impl Frame {
    /// A frame from one station to another.
    #[must_use]
    pub fn ethernet(source: Mac, destination: Mac) -> Self {
        Self::default().with(Layer::Ethernet { source, destination })
    }

    /// An IEEE 802.1Q tag (0x8100).
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.with(Layer::Vlan { tag_protocol: 0x8100, id })
    }

    /// An IEEE 802.1ad service tag (0x88a8).
    #[must_use]
    pub fn service_vlan(self, id: u16) -> Self {
        self.with(Layer::Vlan { tag_protocol: 0x88a8, id })
    }

    /// An IP header without oddities.
    ///
    /// # Panics
    /// If the addresses are of different families.
    #[must_use]
    pub fn ip(self, source: IpAddr, destination: IpAddr) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(Ipv4::new(source, destination)),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(Ipv6::new(source, destination)),
            _ => panic!("{source} and {destination} are of different families"),
        }
    }

    /// An IPv4 header.
    #[must_use]
    pub fn ipv4(self, header: Ipv4) -> Self {
        self.with(Layer::Ipv4(header))
    }

    /// An IPv6 header with its extensions.
    #[must_use]
    pub fn ipv6(self, header: Ipv6) -> Self {
        self.with(Layer::Ipv6(header))
    }

    /// A TCP header.
    #[must_use]
    pub fn tcp(self, header: Tcp) -> Self {
        self.with(Layer::Tcp(header))
    }

    /// A UDP header.
    #[must_use]
    pub fn udp(self, header: Udp) -> Self {
        self.with(Layer::Udp(header))
    }

    /// Anything else that IP carries, as it is: header, checksum and all.
    #[must_use]
    pub fn other(self, protocol: u8, bytes: &[u8]) -> Self {
        self.with(Layer::Other { protocol, bytes: bytes.to_vec() })
    }

    /// The innermost bytes.
    #[must_use]
    pub fn payload(self, bytes: &[u8]) -> Self {
        self.with(Layer::Payload(bytes.to_vec()))
    }

    /// The bytes on the wire, without a frame check sequence.
    ///
    /// # Panics
    /// If it cannot be: a layer that does not fit in the one around, or too long.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, layer) in self.layers.iter().enumerate().rev() {
            let (outer, inner) = (&self.layers[..number], self.layers.get(number + 1));
            bytes = layer.around(&bytes, inner, outer);
        }
        bytes
    }

    fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }
}

impl Layer {
    fn around(&self, inside: &[u8], inner: Option<&Self>, outer: &[Self]) -> Vec<u8> {
        match self {
            Self::Ethernet { source, destination } => {
                let ethertype = inner.map_or(0, Self::ethertype).to_be_bytes();
                [&destination.0, &source.0, ethertype.as_slice(), inside].concat()
            }
            Self::Vlan { id, .. } => {
                let ethertype = inner.map_or(0, Self::ethertype).to_be_bytes();
                [&id.to_be_bytes(), ethertype.as_slice(), inside].concat()
            }
            Self::Ipv4(header) => header.around(inside, protocol(inner)),
            Self::Ipv6(header) => header.around(inside, protocol(inner)),
            Self::Tcp(header) => {
                header.around(inside, |protocol, length| pseudo_header(outer, protocol, length))
            }
            Self::Udp(header) => {
                header.around(inside, |protocol, length| pseudo_header(outer, protocol, length))
            }
            Self::Other { bytes, .. } | Self::Payload(bytes) => [bytes, inside].concat(),
        }
    }

    fn ethertype(&self) -> u16 {
        match self {
            Self::Vlan { tag_protocol, .. } => *tag_protocol,
            Self::Ipv4(_) => 0x0800,
            Self::Ipv6(_) => 0x86dd,
            // IEEE 802, local experimental.
            _ => 0x88b5,
        }
    }
}

/// What IP says about the layer that it carries.
fn protocol(inner: Option<&Layer>) -> u8 {
    match inner {
        Some(Layer::Ipv4(_)) => 4,
        Some(Layer::Ipv6(_)) => 41,
        Some(Layer::Tcp(_)) => 6,
        Some(Layer::Udp(_)) => 17,
        Some(Layer::Other { protocol, .. }) => *protocol,
        // RFC 3692: for experiments.
        _ => 253,
    }
}

/// Of the nearest IP header around.
fn pseudo_header(outer: &[Layer], protocol: u8, length: usize) -> Vec<u8> {
    let header = outer.iter().rev().find_map(|layer| match layer {
        Layer::Ipv4(ip) => Some([ip.source.octets(), ip.destination.octets()].concat()),
        Layer::Ipv6(ip) => Some([ip.source.octets(), ip.destination.octets()].concat()),
        _ => None,
    });
    let mut header = header.expect("TCP and UDP lie inside of IP");
    header.extend([0, protocol]);
    header.extend(be16(length));
    header
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;
    use crate::packets::Extension;

    const ONE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const TWO: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn another_parser_reads_what_was_built() {
        let mut ip = Ipv4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        ip.options = vec![1, 1, 1];
        let frame = Frame::ethernet(ONE, TWO)
            .service_vlan(5)
            .vlan(7)
            .ipv4(ip)
            .tcp(Tcp::new(1234, 80).syn().sequence(77))
            .payload(b"hello")
            .build();
        let seen = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        assert_eq!(seen.link.clone().unwrap().ethernet2().unwrap().destination, TWO.0);
        assert_eq!(seen.vlan_ids().iter().map(|id| id.value()).collect::<Vec<_>>(), [5, 7]);
        let Some(NetHeaders::Ipv4(ip, _)) = &seen.net else { panic!("{:?}", seen.net) };
        assert_eq!((ip.destination, ip.options.len()), ([10, 0, 0, 2], 4));
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(TransportHeader::Tcp(tcp)) = &seen.transport else { panic!("{:?}", seen.transport) };
        assert_eq!((tcp.source_port, tcp.syn, tcp.sequence_number), (1234, true, 77));
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, b"hello").unwrap());
        assert_eq!(seen.payload.slice(), b"hello");
    }

    #[test]
    fn another_parser_reads_extension_headers() {
        let mut ip = Ipv6::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        ip.extensions =
            vec![Extension::HopByHop(vec![]), Extension::Destination(vec![1, 7, 0, 0, 0, 0, 0, 0, 0])];
        let frame = Frame::ethernet(ONE, TWO).ipv6(ip).udp(Udp::new(5, 53)).payload(b"query").build();
        let seen = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(NetHeaders::Ipv6(ip, extensions)) = &seen.net else { panic!("{:?}", seen.net) };
        assert!(extensions.hop_by_hop_options.is_some());
        assert!(extensions.destination_options.is_some());
        let Some(TransportHeader::Udp(udp)) = &seen.transport else { panic!("{:?}", seen.transport) };
        assert_eq!(udp.checksum, udp.calc_checksum_ipv6(ip, b"query").unwrap());
    }
}
