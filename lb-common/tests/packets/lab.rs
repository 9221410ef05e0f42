//! Frames as claims, and tables to send them through.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
    TcpHeader,
};
use lb_common::abi::{Mode, NextHop};
use lb_common::host::{self, ServiceSpec, Tables};
use lb_common::pipeline::process;
use lb_common::verdict::{Action, Reason, Verdict};
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP, Mac};

pub const CLIENT_MAC: Mac = [0x02, 0xc1, 0, 0, 0, 1];

/// A packet in a frame; what comes in unless something else is said.
#[derive(Clone)]
pub struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// VLAN ids, outermost first.
    pub tags: &'static [u16],
    pub tos: u8,
    pub hops: u8,
    /// Options of IPv4.
    pub options: &'static [u8],
    pub payload: Vec<u8>,
    /// `None`: UDP.
    pub tcp: Option<TcpHeader>,
    /// UDP's checksum is left out.
    pub no_checksum: bool,
}

impl Packet {
    /// A segment in the middle of a flow.
    pub fn tcp(from: SocketAddr, to: SocketAddr) -> Self {
        let mut header = TcpHeader::new(from.port(), to.port(), 1_000_000, 4096);
        header.ack = true;
        header.acknowledgment_number = 7_000_000;
        header.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        Self {
            from,
            to,
            source_mac: CLIENT_MAC,
            destination_mac: Tables::MAC,
            tags: &[],
            tos: 0,
            hops: 64,
            options: &[],
            payload: b"an odd number of bytes, so that sums are padded".to_vec(),
            tcp: Some(header),
            no_checksum: false,
        }
    }

    pub fn udp(from: SocketAddr, to: SocketAddr) -> Self {
        Self { tcp: None, ..Self::tcp(from, to) }
    }

    /// Of either protocol.
    pub fn of(udp: bool, from: SocketAddr, to: SocketAddr) -> Self {
        if udp { Self::udp(from, to) } else { Self::tcp(from, to) }
    }

    /// The same, one hop on: sent by the balancer.
    pub fn sent(self, to: Mac) -> Self {
        Self { source_mac: Tables::MAC, destination_mac: to, ..self }
    }

    pub fn link(&self, ether_type: u16) -> Vec<u8> {
        let mut link = [self.destination_mac, self.source_mac].concat();
        for (i, tag) in self.tags.iter().enumerate() {
            // A provider's tag goes around a customer's.
            let kind: u16 = if i + 1 < self.tags.len() { 0x88a8 } else { 0x8100 };
            link.extend(kind.to_be_bytes());
            // Priority 5, so that all of the tag is seen to stay.
            link.extend((tag | 5 << 13).to_be_bytes());
        }
        link.extend(ether_type.to_be_bytes());
        link
    }

    /// The packet alone.
    pub fn ip(&self) -> Vec<u8> {
        let headers = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header =
                    Ipv4Header::new(0, self.hops, IpNumber::TCP, source.octets(), destination.octets())
                        .unwrap();
                header.dscp = (self.tos >> 2).try_into().unwrap();
                header.ecn = (self.tos & 3).try_into().unwrap();
                header.identification = 0x1234;
                header.options = self.options.try_into().unwrap();
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: 0xabcde.try_into().unwrap(),
                    hop_limit: self.hops,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Default::default()
                },
                Ipv6Extensions::default(),
            ),
            mixed => panic!("{mixed:?}"),
        };
        let l4 = match &headers {
            IpHeaders::Ipv4(header, _) => header.header_len(),
            IpHeaders::Ipv6(..) => 40,
        };
        let mut packet = Vec::new();
        let ip = PacketBuilder::ip(headers);
        match &self.tcp {
            Some(header) => {
                let mut header = header.clone();
                (header.source_port, header.destination_port) = (self.from.port(), self.to.port());
                ip.tcp_header(header).write(&mut packet, &self.payload).unwrap();
            }
            None => ip.udp(self.from.port(), self.to.port()).write(&mut packet, &self.payload).unwrap(),
        }
        if self.no_checksum {
            packet[l4 + 6..l4 + 8].fill(0);
        }
        packet
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.link(if self.from.is_ipv4() { 0x0800 } else { 0x86dd });
        frame.extend(self.ip());
        frame
    }

    /// Sends it, and says what became of it.
    pub fn through(&self, tables: &Tables) -> (Verdict, Vec<u8>) {
        send(tables, &self.frame())
    }

    /// Sends it, and expects another one to come out.
    pub fn becomes(&self, tables: &Tables, reason: Reason, expected: &Self) {
        let (verdict, frame) = self.through(tables);
        assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX));
        assert_eq!(frame, expected.frame());
    }

    /// Sends it, and expects it not to go on.
    pub fn ends(&self, tables: &Tables, reason: Reason) {
        let (verdict, _) = self.through(tables);
        assert_eq!(verdict.reason, reason);
    }
}

/// Sends a frame. What is passed up must be as it came.
pub fn send(tables: &Tables, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = host::Frame::new(bytes, Tables::IFINDEX);
    let verdict = process(&mut frame, tables);
    let by_host = [Reason::RepliedByHost, Reason::ErrorRepliedByHost, Reason::FragmentRepliedByHost]
        .contains(&verdict.reason);
    if verdict.reason.action() == Action::Pass && !by_host {
        assert_eq!(frame.bytes(), bytes, "{:?}", verdict.reason);
    }
    (verdict, frame.bytes().to_vec())
}

/// Sends a frame, and says why its road ended.
pub fn reason(tables: &Tables, bytes: &[u8]) -> Reason {
    send(tables, bytes).0.reason
}

pub fn vip(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 10).into()
    }
}

pub fn client(v6: bool) -> SocketAddr {
    let address: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 1).into()
    };
    (address, 40_000).into()
}

pub fn backend(v6: bool, port: u16) -> SocketAddr {
    let address: IpAddr = if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11).into()
    } else {
        Ipv4Addr::new(10, 0, 1, 11).into()
    };
    (address, port).into()
}

/// One service at port 443 with one backend at port 8443; the backend's id and hardware address.
pub struct Lab {
    pub tables: Tables,
    pub service: u32,
    pub id: u16,
    pub mac: Mac,
}

impl Lab {
    pub fn new(mode: Mode, udp: bool, v6: bool, backend: SocketAddr) -> Self {
        let protocol = if udp { IPPROTO_UDP } else { IPPROTO_TCP };
        Self::of(&ServiceSpec { protocol, ..ServiceSpec::tcp(vip(v6), 443, mode) }, backend)
    }

    pub fn of(spec: &ServiceSpec, backend: SocketAddr) -> Self {
        let mut tables = Tables::new();
        let service = tables.add_service(spec);
        let id = tables.add_pool(service, false, &[(backend, 1)])[0];
        let mac = NextHop(tables.backends[usize::from(id)].next_hop).mac().unwrap();
        Self { tables, service, id, mac }
    }
}

/// One `nat` service at port 443 with three backends, each with a third of the flows.
pub struct Three {
    pub tables: Tables,
    pub service: u32,
    pub ids: Vec<u16>,
}

impl Three {
    /// With these flags of its service.
    pub fn new(flags: u16) -> Self {
        let mut tables = Tables::new();
        let service = tables.add_service(&ServiceSpec::tcp(vip(false), 443, Mode::Nat));
        let backends: Vec<(SocketAddr, u16)> = (0..3).map(|n| (Self::at(n), 100)).collect();
        let ids = tables.add_pool(service, false, &backends);
        tables.services[service as usize].flags |= flags;
        Self { tables, service, ids }
    }

    /// Where the `n`th backend is.
    pub fn at(n: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 0, 7, n + 1), 443).into()
    }
}

/// Every family and protocol: `(v6, udp)`.
pub const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
/// No tag, one, two.
pub const TAGS: [&[u16]; 3] = [&[], &[7], &[300, 4000]];

/// Makes a fragment of an IPv4 frame without tags.
pub fn fragment(frame: &mut [u8], offset: u16, more: bool) {
    let offset = IpFragOffset::try_new(offset).unwrap().value() | u16::from(more) << 13;
    frame[20..22].copy_from_slice(&offset.to_be_bytes());
}
