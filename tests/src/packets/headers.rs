//! Headers as they lie on the wire.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::verify::checksum;

/// An IPv4 header (RFC 791). Fields that follow from the rest are not here.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// The sender.
    pub source: Ipv4Addr,
    /// The receiver.
    pub destination: Ipv4Addr,
    /// The former type of service: DSCP and ECN.
    pub tos: u8,
    /// Time to live, in hops.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// The don't-fragment bit.
    pub dont_fragment: bool,
    /// The more-fragments bit.
    pub more_fragments: bool,
    /// Fragment offset, in units of 8 bytes.
    pub fragment_offset: u16,
    /// Options, padded to 4 bytes with end-of-list.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// Unfragmented, TTL 64, no options.
    #[must_use]
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            tos: 0,
            ttl: 64,
            id: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
        }
    }

    pub(super) fn around(&self, inside: &[u8], protocol: u8) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let length = 20 + options.len();
        assert!(length <= 60, "IPv4 has room for 40 bytes of options");
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
        let mut header = vec![0x40 | (length / 4) as u8, self.tos];
        header.extend(be16(length + inside.len()));
        header.extend(self.id.to_be_bytes());
        header.extend((flags | self.fragment_offset).to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(inside);
        header
    }
}

/// An IPv6 header (RFC 8200) and its extension headers.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// The sender.
    pub source: Ipv6Addr,
    /// The receiver.
    pub destination: Ipv6Addr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Extension headers, outermost first.
    pub extensions: Vec<Extension>,
}

impl Ipv6 {
    /// Hop limit 64, no extension headers.
    #[must_use]
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, traffic_class: 0, flow_label: 0, hop_limit: 64, extensions: Vec::new() }
    }

    pub(super) fn around(&self, inside: &[u8], protocol: u8) -> Vec<u8> {
        let (mut inside, mut next) = (inside.to_vec(), protocol);
        for extension in self.extensions.iter().rev() {
            inside = extension.around(&inside, next);
            next = extension.protocol();
        }
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | (self.flow_label & 0xf_ffff);
        let mut header = first.to_be_bytes().to_vec();
        header.extend(be16(inside.len()));
        header.extend([next, self.hop_limit]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(inside);
        header
    }
}

/// An IPv6 extension header. Options are padded to a multiple of 8 bytes.
#[derive(Clone, Debug)]
pub enum Extension {
    /// Hop-by-hop options (0).
    HopByHop(Vec<u8>),
    /// A routing header (43): type, segments left, and the type's data.
    Routing(u8, u8, Vec<u8>),
    /// A fragment header (44).
    Fragment {
        /// In units of 8 bytes.
        offset: u16,
        /// Whether more fragments follow.
        more: bool,
        /// Identification.
        id: u32,
    },
    /// Destination options (60).
    Destination(Vec<u8>),
}

impl Extension {
    const fn protocol(&self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(..) => 43,
            Self::Fragment { .. } => 44,
            Self::Destination(_) => 60,
        }
    }

    fn around(&self, inside: &[u8], next: u8) -> Vec<u8> {
        let mut header = vec![next, 0];
        match self {
            Self::HopByHop(options) | Self::Destination(options) => {
                header.extend(options);
                pad_options(&mut header);
            }
            Self::Routing(kind, segments_left, data) => {
                header.extend([*kind, *segments_left]);
                header.extend(data);
                header.resize(header.len().next_multiple_of(8), 0);
            }
            Self::Fragment { offset, more, id } => {
                header.extend((offset << 3 | u16::from(*more)).to_be_bytes());
                header.extend(id.to_be_bytes());
            }
        }
        // A fragment header has no length of its own: 8 bytes give 0 here as well.
        header[1] = u8::try_from(header.len() / 8 - 1).expect("an extension header of 2 KiB");
        header.extend(inside);
        header
    }
}

/// Pad1 and PadN, RFC 8200, 4.2.
fn pad_options(header: &mut Vec<u8>) {
    match header.len().next_multiple_of(8) - header.len() {
        0 => {}
        1 => header.push(0),
        room => {
            header.extend([1, (room - 2) as u8]);
            header.resize(header.len() + room - 2, 0);
        }
    }
}

/// TCP flags (RFC 9293), for [`Tcp::flags`].
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// First segment of a connection.
    pub const SYN: u8 = 0x02;
    /// The connection is no more.
    pub const RST: u8 = 0x04;
    /// Hand the data on at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A TCP header (RFC 9293).
#[derive(Clone, Debug)]
pub struct Tcp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// See [`flags`].
    pub flags: u8,
    /// Receive window, unscaled.
    pub window: u16,
    /// Options, padded to 4 bytes with end-of-list.
    pub options: Vec<u8>,
}

impl Tcp {
    /// A segment of an established connection (only ACK set).
    #[must_use]
    pub fn new(source: u16, destination: u16) -> Self {
        Self {
            source,
            destination,
            sequence: 1,
            acknowledgement: 1,
            flags: flags::ACK,
            window: 64_240,
            options: Vec::new(),
        }
    }

    /// The first segment of a connection.
    #[must_use]
    pub fn syn(self) -> Self {
        Self { flags: flags::SYN, acknowledgement: 0, ..self }
    }

    /// With these flags only.
    #[must_use]
    pub fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// With this sequence number.
    #[must_use]
    pub fn sequence(self, sequence: u32) -> Self {
        Self { sequence, ..self }
    }

    pub(super) fn around(&self, inside: &[u8], pseudo_header: impl Fn(u8, usize) -> Vec<u8>) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let length = 20 + options.len();
        assert!(length <= 60, "TCP has room for 40 bytes of options");
        let mut segment = self.source.to_be_bytes().to_vec();
        segment.extend(self.destination.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledgement.to_be_bytes());
        segment.extend([(length as u8 / 4) << 4, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(inside);
        let sum = checksum(&[&pseudo_header(6, segment.len()), &segment]);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// A UDP header (RFC 768).
#[derive(Clone, Debug)]
pub struct Udp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Whether it has a checksum: IPv4 may do without.
    pub has_checksum: bool,
}

impl Udp {
    /// With a checksum.
    #[must_use]
    pub fn new(source: u16, destination: u16) -> Self {
        Self { source, destination, has_checksum: true }
    }

    pub(super) fn around(&self, inside: &[u8], pseudo_header: impl Fn(u8, usize) -> Vec<u8>) -> Vec<u8> {
        let mut datagram = self.source.to_be_bytes().to_vec();
        datagram.extend(self.destination.to_be_bytes());
        datagram.extend(be16(8 + inside.len()));
        datagram.extend([0, 0]);
        datagram.extend(inside);
        if self.has_checksum {
            let sum = checksum(&[&pseudo_header(17, datagram.len()), &datagram]);
            // Zero would say that there is none.
            let sum = if sum == 0 { 0xffff } else { sum };
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        datagram
    }
}

pub(super) fn be16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("IP packets have less than 64 KiB").to_be_bytes()
}
