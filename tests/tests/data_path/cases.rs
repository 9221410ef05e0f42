//! A table of packets: what comes in, what becomes of it, and the frame that comes out, byte by byte. The kernel's program
//! and the host's rule have to agree with the table, and so with each other.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{FlowKey, Mode, NextHop, Port};
use lb_common::host::{self, ServiceSpec, Tables};
use lb_common::pipeline::process;
use lb_common::select::peek;
use lb_common::verdict::Reason;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};
use lb_tests::packets::{Extension, Frame, Ipv4, Ipv6, Tcp, Udp, checksum, flags, hex};
use lb_tests::{Mac, claim};
use lb_userspace::dataplane::Capacities;
use libtest_mimic::Trial;

use crate::kernel::{Kernel, ROOM};
use crate::network::Network;

pub fn claims() -> Vec<Trial> {
    vec![claim("every packet of the table comes out as it says, byte by byte, of kernel and host", table)]
}

/// Each packet finds other tables, and to empty a large one takes longer than all else.
const FEW: Capacities = Capacities {
    flows: 256,
    udp_flows: 256,
    half_open: 256,
    sessions: 256,
    prefixes: 256,
    sources: 256,
    ..ROOM
};

/// As many as are promised, at least.
const PROMISED: usize = 150;
/// What fits the lab's link.
const MTU: usize = 1280;

const STATION: Mac = Mac([2, 0xc1, 0, 0, 0, 1]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);
const HOP: Mac = Mac([2, 0xbb, 0, 0, 0, 1]);

/// First fragments: names, identifications, tags.
const FRAGMENTS: [(&str, u16, &[u16]); 2] = [("first", 7, &[]), ("first, in a VLAN", 8, &[7])];
/// What does not fit.
const LONG: [(&str, &[u16]); 2] = [("one byte too long", &[]), ("one byte too long, in a VLAN", &[7])];

/// No tag, one, another one, two.
const TAGS: [&[u16]; 4] = [&[], &[7], &[8], &[300, 4000]];

/// A packet and what becomes of it.
struct Case {
    name: String,
    /// Sent first.
    before: Vec<Vec<u8>>,
    frame: Vec<u8>,
    reason: Reason,
    /// `None`: as it came.
    becomes: Option<Vec<u8>>,
}

fn table() -> Result<()> {
    let network = Network::new()?;
    network.namespace().run(|| {
        let kernel = Kernel::load(FEW)?;
        let mut count = 0;
        for (mode, outer_v6) in [
            (Mode::Nat, None),
            (Mode::DsrL2, None),
            (Mode::DsrIpip, Some(false)),
            (Mode::DsrIpip, Some(true)),
            (Mode::DsrGue, Some(false)),
            (Mode::DsrGue, Some(true)),
        ] {
            for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
                let outer_v6 = outer_v6.unwrap_or(v6);
                let mut check = |bed: &Bed, cases: Vec<Case>| {
                    count += cases.len();
                    cases.iter().try_for_each(|case| {
                        let checked = bed.check(&kernel, &network, case);
                        checked.with_context(|| format!("{bed}: {}", case.name))
                    })
                };
                let bed = Bed::new(&network, mode, v6, udp, outer_v6, None);
                check(&bed, bed.cases())?;
                for tags in TAGS {
                    let bed = Bed::new(&network, mode, v6, udp, outer_v6, Some(tags));
                    check(&bed, bed.between_vlans(tags))?;
                }
            }
        }
        println!("{count} packets");
        ensure!(count >= PROMISED, "only {count} packets");
        Ok(())
    })
}

/// One service with one backend.
struct Bed {
    tables: Tables,
    mode: Mode,
    v6: bool,
    udp: bool,
    outer_v6: bool,
    /// The tags of the device that leads to the backend, if there are VLAN devices.
    vlan: Option<&'static [u16]>,
    /// Of the balancer, where that leads to the backend.
    own: Mac,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
}

impl std::fmt::Display for Bed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = |v6| if v6 { "IPv6" } else { "IPv4" };
        let protocol = if self.udp { "UDP" } else { "TCP" };
        write!(out, "{protocol} over {} by {:?} over {}", family(self.v6), self.mode, family(self.outer_v6))
    }
}

impl Bed {
    fn new(
        network: &Network,
        mode: Mode,
        v6: bool,
        udp: bool,
        outer_v6: bool,
        vlan: Option<&'static [u16]>,
    ) -> Self {
        let address = |v6: bool, v4_text: &str, v6_text: &str| -> IpAddr {
            if v6 { v6_text } else { v4_text }.parse().expect("an address")
        };
        let port = if mode == Mode::Nat { 8443 } else { 443 };
        let vip = SocketAddr::new(address(v6, "203.0.113.10", "2001:db8::10"), 443);
        let backend = SocketAddr::new(address(outer_v6, "10.7.0.11", "fd07::11"), port);
        let mut tables = Tables::new();
        tables.devices = network.devices().to_vec();
        let routes = network.routes();
        tables.router = Some(Box::new(move |arrival, header| routes.route(arrival, header)));
        let protocol = if udp { IPPROTO_UDP } else { IPPROTO_TCP };
        let service = tables.add_service(&ServiceSpec { protocol, ..ServiceSpec::tcp(vip.ip(), 443, mode) });
        let id = tables.add_pool(service, false, &[(backend, 1)])[0];
        let device = if vlan.is_some_and(|tags| !tags.is_empty()) { 2 } else { 0 };
        tables.backends[usize::from(id)].next_hop = NextHop::of(HOP.0, device).0;
        if let Some(tags) = vlan {
            tables.vlans = network.vlans(tags);
        }
        Self {
            own: Mac(tables.devices[usize::from(device)].mac),
            vlan,
            client: SocketAddr::new(address(v6, "198.51.100.200", "2001:db8:ffff::200"), 40_000),
            tables,
            mode,
            v6,
            udp,
            outer_v6,
            vip,
            backend,
        }
    }

    /// Sends the packets of a case through both.
    fn check(&self, kernel: &Kernel, network: &Network, case: &Case) -> Result<()> {
        let tables = Self::new(network, self.mode, self.v6, self.udp, self.outer_v6, self.vlan).tables;
        kernel.fill(&tables, &network.egress())?;
        let send = |bytes: &[u8]| -> Result<(Reason, Vec<u8>)> {
            let mut frame = host::Frame::new(bytes, network.port());
            let verdict = process(&mut frame, &tables);
            let outcome = kernel.run(bytes, network.port())?;
            ensure!(outcome.frame == frame.bytes(), "kernel and host make different frames");
            Ok((verdict.reason, outcome.frame))
        };
        for frame in &case.before {
            send(frame)?;
        }
        let count =
            || -> Result<u64> { Ok(kernel.counters(&[network.port()])?.reasons[case.reason as usize]) };
        let counted = count()?;
        let (reason, frame) = send(&case.frame)?;
        ensure!(reason == case.reason, "{reason:?} instead of {:?}", case.reason);
        ensure!(count()? == counted + 1, "the kernel does not count it as {reason:?}");
        let expected = case.becomes.as_ref().unwrap_or(&case.frame);
        ensure!(frame == *expected, "\n{}\ninstead of\n{}", hex(&frame), hex(expected));
        Ok(())
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |name: &str, packet: Packet| {
            cases.push(self.request(name, packet, Reason::Forwarded));
        };
        add("plain", Packet::default());
        add("in a VLAN", Packet { tags: &[7], ..Packet::default() });
        add("in a provider's VLAN", Packet { tags: &[300, 4000], ..Packet::default() });
        add("with ECN and a class", Packet { tos: 0xbb, ..Packet::default() });
        add("with options", Packet { options: true, ..Packet::default() });
        add("with options in a VLAN", Packet { options: true, tags: &[7], ..Packet::default() });
        add("without data", Packet { data: Vec::new(), ..Packet::default() });
        add("padded", Packet { padding: 7, ..Packet::default() });
        add("as long as may be", Packet { data: vec![1; self.room()], ..Packet::default() });
        for (name, id, tags) in FRAGMENTS {
            let first = Packet { piece: Some((0, true, id)), tags, data: vec![3; 64], ..Packet::default() };
            cases.push(self.request(&format!("{name} fragment"), first.clone(), Reason::FragmentForwarded));
            let later = Packet { piece: Some((9, false, id)), ..first.clone() };
            let mut followed =
                self.request(&format!("fragment after the {name}"), later.clone(), Reason::FragmentForwarded);
            followed.before = vec![first.frame(self.client, self.vip, self.udp, STATION, self.own, 64)];
            cases.push(followed);
            cases.push(self.stays(&format!("fragment before the {name}"), &later, Reason::FragmentUnknown));
        }
        self.nobody(&mut cases);
        self.too_big(&mut cases);
        self.errors(&mut cases);
        if self.mode == Mode::Nat {
            self.replies(&mut cases);
        }
        cases
    }

    /// From addresses that no host has, and from the VIP itself.
    fn nobody(&self, cases: &mut Vec<Case>) {
        let martians: &[&str] = if self.v6 {
            &["::", "::1", "ff02::1"]
        } else {
            &["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
        };
        let mut add = |from: IpAddr, packet: &Packet, reason| {
            let source = SocketAddr::new(from, 40_000);
            let frame = packet.frame(source, self.vip, self.udp, STATION, self.own, 64);
            cases.push(Case {
                name: format!("from {from}"),
                before: Vec::new(),
                frame,
                reason,
                becomes: None,
            });
        };
        for source in martians {
            add(source.parse().expect("an address"), &Packet::default(), Reason::Martian);
        }
        add(
            martians[1].parse().expect("an address"),
            &Packet { tags: &[7], ..Packet::default() },
            Reason::Martian,
        );
        let piece = Packet { piece: Some((0, true, 9)), data: vec![3; 64], ..Packet::default() };
        add(martians[2].parse().expect("an address"), &piece, Reason::Martian);
        add(self.vip.ip(), &Packet::default(), Reason::Land);
        add(self.vip.ip(), &piece, Reason::Land);
    }

    /// From one VLAN to another: the frame leaves with the tags of the device that leads on, whatever it came with.
    fn between_vlans(&self, out: &'static [u16]) -> Vec<Case> {
        let mut cases = Vec::new();
        for came in TAGS {
            let name = format!("{came:?} -> {out:?}");
            let packet = Packet { tos: 0xbb, ..Packet::default() };
            let piece = Packet { piece: Some((0, true, 7)), data: vec![3; 64], ..Packet::default() };
            for (packet, reason) in [(packet, Reason::Forwarded), (piece, Reason::FragmentForwarded)] {
                let frame = Packet { tags: came, ..packet.clone() };
                let frame = frame.frame(self.client, self.vip, self.udp, STATION, self.own, 64);
                let sent = self.request(&name, Packet { tags: out, ..packet }, reason);
                cases.push(Case { frame, ..sent });
            }
            if self.mode == Mode::Nat {
                // The way back is by the port itself.
                let own = Mac(self.tables.devices[0].mac);
                let reply = Packet { tags: came, ..Packet::default() };
                let frame = reply.frame(self.backend, self.client, self.udp, STATION, own, 64);
                let becomes = Packet::default().frame(self.vip, self.client, self.udp, own, ROUTER, 63);
                let name = format!("a reply, {came:?} -> []");
                cases.push(Case {
                    name,
                    before: Vec::new(),
                    frame,
                    reason: Reason::Replied,
                    becomes: Some(becomes),
                });
            }
        }
        // What its sender is told goes back to where it came from: in its own VLAN.
        self.too_big(&mut cases);
        cases
    }

    /// Bytes of data in the longest packet that fits.
    fn room(&self) -> usize {
        let tunnel = match self.mode {
            Mode::DsrIpip | Mode::DsrGue => {
                (if self.outer_v6 { 40 } else { 20 }) + (if self.mode == Mode::DsrGue { 8 } else { 0 })
            }
            _ => 0,
        };
        MTU - tunnel - (if self.v6 { 40 } else { 20 }) - (if self.udp { 8 } else { 20 })
    }

    /// From the client to the VIP, as it has to come out.
    fn request(&self, name: &str, packet: Packet, reason: Reason) -> Case {
        let frame = packet.frame(self.client, self.vip, self.udp, STATION, self.own, 64);
        let becomes = if self.mode == Mode::Nat {
            packet.frame(self.client, self.backend, self.udp, self.own, HOP, 63)
        } else {
            self.carried(&packet.frame(self.client, self.vip, self.udp, self.own, HOP, 64), &packet)
        };
        Case { name: name.to_owned(), before: Vec::new(), frame, reason, becomes: Some(becomes) }
    }

    fn stays(&self, name: &str, packet: &Packet, reason: Reason) -> Case {
        let frame = packet.frame(self.client, self.vip, self.udp, STATION, self.own, 64);
        Case { name: name.to_owned(), before: Vec::new(), frame, reason, becomes: None }
    }

    /// What `dsr-…` makes of a frame with the right hardware addresses.
    fn carried(&self, frame: &[u8], packet: &Packet) -> Vec<u8> {
        if self.mode == Mode::DsrL2 {
            return frame.to_vec();
        }
        let l3 = 14 + 4 * packet.tags.len();
        let key = FlowKey {
            client: self.client.ip().into(),
            client_port: Port::new(self.client.port()),
            port: Port::new(443),
            owner: 0,
        };
        let spread =
            peek(&self.tables, &self.tables.services[0], &key).expect("a table").spread.to_be_bytes();
        let (inner, padding) = frame[l3..].split_at(frame.len() - l3 - packet.padding);
        let mut outer = Frame::ethernet(self.own, HOP);
        outer = tagged(outer, packet.tags);
        outer = match self.backend.ip() {
            IpAddr::V4(to) => {
                let from = [172, 16, spread[2], spread[3]].into();
                outer.ipv4(Ipv4 { tos: packet.tos, ..Ipv4::new(from, to) })
            }
            IpAddr::V6(to) => {
                let mut from = [0; 16];
                from[0] = 1;
                from[12..].copy_from_slice(&spread);
                outer.ipv6(Ipv6 { traffic_class: packet.tos, ..Ipv6::new(from.into(), to) })
            }
        };
        let outer = if self.mode == Mode::DsrGue {
            let [high, low] = (inner.len() as u16 + 8).to_be_bytes();
            let header = [0xc0 | spread[0], spread[1], 0x17, 0xc0, high, low, 0, 0];
            outer.other(17, &[&header, inner].concat())
        } else {
            outer.other(if self.v6 { 41 } else { 4 }, inner)
        };
        [outer.build(), padding.to_vec()].concat()
    }

    fn too_big(&self, cases: &mut Vec<Case>) {
        for (name, tags) in LONG {
            let packet = Packet { data: vec![5; self.room() + 1], tags, ..Packet::default() };
            let frame = packet.frame(self.client, self.vip, self.udp, STATION, self.own, 64);
            let l3 = 14 + 4 * tags.len();
            let fits = (frame.len() - l3 - 1) as u16;
            // Nobody is told of less than IPv6 guarantees.
            if self.v6 && fits < 1280 {
                cases.push(Case {
                    name: name.to_owned(),
                    before: Vec::new(),
                    becomes: None,
                    frame,
                    reason: Reason::TooBig,
                });
                continue;
            }
            let [high, low] = fits.to_be_bytes();
            let quoted = &frame[l3..][..if self.v6 { 1232 } else { 544 }];
            let kind = if self.v6 { [2, 0] } else { [3, 4] };
            let becomes = self.icmp(
                tagged(Frame::ethernet(self.own, STATION), tags),
                (self.vip.ip(), self.client.ip()),
                (64, 0xc0),
                kind,
                [0, 0, high, low],
                quoted,
            );
            cases.push(Case {
                name: name.to_owned(),
                before: Vec::new(),
                frame,
                reason: Reason::TooBigTold,
                becomes: Some(becomes),
            });
        }
    }

    /// An ICMP message in a packet with these ends, hops and class.
    fn icmp(
        &self,
        link: Frame,
        (from, to): (IpAddr, IpAddr),
        (hops, tos): (u8, u8),
        kind: [u8; 2],
        rest: [u8; 4],
        quoted: &[u8],
    ) -> Vec<u8> {
        let mut message = [&kind[..], &[0, 0], &rest, quoted].concat();
        let pseudo = match (from, to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let length = (message.len() as u32).to_be_bytes();
                [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, 58]].concat()
            }
            _ => Vec::new(),
        };
        let sum = checksum(&[&pseudo, &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let frame = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(Ipv4 { tos, ttl: hops, ..Ipv4::new(from, to) }),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                link.ipv6(Ipv6 { traffic_class: tos, hop_limit: hops, ..Ipv6::new(from, to) })
            }
            mixed => panic!("{mixed:?}"),
        };
        frame.other(if self.v6 { 58 } else { 1 }, &message).build()
    }

    fn errors(&self, cases: &mut Vec<Case>) {
        let router: IpAddr = if self.v6 { "2001:db8:f::1" } else { "192.0.2.1" }.parse().expect("an address");
        for (name, kind, rest, quoted) in [
            ("an error with eight bytes", if self.v6 { [2, 0] } else { [3, 4] }, [0, 0, 5, 0], 8),
            ("an error with all of it", if self.v6 { [1, 4] } else { [3, 3] }, [0; 4], 200),
            ("a hop limit", if self.v6 { [3, 0] } else { [11, 0] }, [0; 4], 28),
        ] {
            let answer = |from: SocketAddr| {
                let packet = Packet::default();
                let frame = packet.frame(from, self.client, self.udp, STATION, self.own, 50);
                let end = (14 + if self.v6 { 40 } else { 20 } + quoted).min(frame.len());
                frame[14..end].to_vec()
            };
            let error = |macs: (Mac, Mac), to: IpAddr, hops: u8, quoted: &[u8]| {
                self.icmp(Frame::ethernet(macs.0, macs.1), (router, to), (hops, 0), kind, rest, quoted)
            };
            let frame = error((STATION, self.own), self.vip.ip(), 60, &answer(self.vip));
            let becomes = if self.mode == Mode::Nat {
                error((self.own, HOP), self.backend.ip(), 59, &answer(self.backend))
            } else {
                let sent = error((self.own, HOP), self.vip.ip(), 60, &answer(self.vip));
                self.carried(&sent, &Packet { tos: 0, ..Packet::default() })
            };
            cases.push(Case {
                name: format!("{name} about an answer"),
                before: Vec::new(),
                frame,
                reason: Reason::ErrorForwarded,
                becomes: Some(becomes),
            });
        }
        let kind = if self.v6 { [128, 0] } else { [8, 0] };
        let ends = (self.client.ip(), self.vip.ip());
        let link = Frame::ethernet(STATION, self.own);
        cases.push(Case {
            name: "an echo request".to_owned(),
            before: Vec::new(),
            frame: self.icmp(link, ends, (60, 0), kind, [1, 2, 0, 1], b"as ping sends it"),
            reason: Reason::OtherProtocol,
            becomes: None,
        });
    }

    fn replies(&self, cases: &mut Vec<Case>) {
        let mut reply = |name: &str, packet: &Packet, before: Vec<Vec<u8>>, reason: Reason| {
            let frame = packet.frame(self.backend, self.client, self.udp, STATION, self.own, 64);
            let becomes = packet.frame(self.vip, self.client, self.udp, self.own, ROUTER, 63);
            cases.push(Case { name: name.to_owned(), before, frame, reason, becomes: Some(becomes) });
        };
        reply("a reply", &Packet::default(), Vec::new(), Reason::Replied);
        reply("a reply in a VLAN", &Packet { tags: &[7], ..Packet::default() }, Vec::new(), Reason::Replied);
        let first = Packet { piece: Some((0, true, 9)), data: vec![3; 64], ..Packet::default() };
        reply("a reply's first fragment", &first, Vec::new(), Reason::FragmentReplied);
        let sent = first.frame(self.backend, self.client, self.udp, STATION, self.own, 64);
        let later = Packet { piece: Some((9, false, 9)), ..first };
        reply("a reply's next fragment", &later, vec![sent], Reason::FragmentReplied);

        let request = |to: SocketAddr| {
            let frame = Packet::default().frame(self.client, to, self.udp, STATION, self.own, 60);
            frame[14..][..if self.v6 { 48 } else { 28 }].to_vec()
        };
        let kind = if self.v6 { [1, 4] } else { [3, 3] };
        let error = |macs: (Mac, Mac), from: IpAddr, hops: u8, quoted: &[u8]| {
            let link = Frame::ethernet(macs.0, macs.1);
            self.icmp(link, (from, self.client.ip()), (hops, 0), kind, [0; 4], quoted)
        };
        cases.push(Case {
            name: "an error about a request".to_owned(),
            before: Vec::new(),
            frame: error((STATION, self.own), self.backend.ip(), 64, &request(self.backend)),
            reason: Reason::ErrorReplied,
            becomes: Some(error((self.own, ROUTER), self.vip.ip(), 63, &request(self.vip))),
        });
        for hops in [0, 1] {
            let frame = Packet::default().frame(self.client, self.vip, self.udp, STATION, self.own, hops);
            cases.push(Case {
                name: format!("{hops} hops left"),
                before: Vec::new(),
                frame,
                reason: Reason::TtlExpired,
                becomes: None,
            });
        }
    }
}

/// What a packet has beside its ends.
#[derive(Clone)]
struct Packet {
    tags: &'static [u16],
    tos: u8,
    options: bool,
    data: Vec<u8>,
    padding: usize,
    /// Offset in units of 8 bytes, whether more follow, identification.
    piece: Option<(u16, bool, u16)>,
}

impl Default for Packet {
    fn default() -> Self {
        let data = b"an odd number of bytes, so that sums are padded".to_vec();
        Self { tags: &[], tos: 0, options: false, data, padding: 0, piece: None }
    }
}

impl Packet {
    fn frame(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        udp: bool,
        source: Mac,
        destination: Mac,
        hops: u8,
    ) -> Vec<u8> {
        let link = tagged(Frame::ethernet(source, destination), self.tags);
        let (offset, more, id) = self.piece.unwrap_or((0, false, 0x1234));
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(Ipv4 {
                tos: self.tos,
                ttl: hops,
                id,
                dont_fragment: self.piece.is_none(),
                more_fragments: more,
                fragment_offset: offset,
                // Record route, not yet used.
                options: if self.options { vec![7, 7, 4, 0, 0, 0, 0, 0] } else { Vec::new() },
                ..Ipv4::new(from, to)
            }),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut extensions = Vec::new();
                if self.options {
                    extensions = vec![Extension::HopByHop(vec![]), Extension::Destination(vec![1, 12, 0])];
                }
                if self.piece.is_some() {
                    extensions.push(Extension::Fragment { offset, more, id: id.into() });
                }
                link.ipv6(Ipv6 {
                    traffic_class: self.tos,
                    hop_limit: hops,
                    extensions,
                    ..Ipv6::new(from, to)
                })
            }
            mixed => panic!("{mixed:?}"),
        };
        let packet = if offset > 0 {
            // Not the first: whatever is in it is no header.
            ip.other(if udp { 17 } else { 6 }, &self.data)
        } else if udp {
            ip.udp(Udp::new(from.port(), to.port())).payload(&self.data)
        } else {
            let header = Tcp::new(from.port(), to.port()).flags(flags::ACK).sequence(1_000_000);
            ip.tcp(header).payload(&self.data)
        };
        [packet.build(), vec![0; self.padding]].concat()
    }
}

fn tagged(frame: Frame, tags: &[u16]) -> Frame {
    match tags {
        [] => frame,
        [one] => frame.vlan(*one),
        [outer, inner, ..] => frame.service_vlan(*outer).vlan(*inner),
    }
}
