use bytemuck::Zeroable as _;
use lb_common::abi::Mode;
use lb_common::decap::{Allowed, Decapsulated, decapsulate};
use lb_common::host::{self, Tables};
use lb_common::pipeline::process;
use lb_common::verdict::Reason;

use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, vip};

fn request(udp: bool, v6: bool) -> Packet {
    Packet::of(udp, client(v6), (vip(v6), 443).into())
}

#[test]
fn over_one_link_only_the_hardware_addresses_change() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            let lab = Lab::new(Mode::DsrL2, udp, v6, backend(v6, 443));
            // Not routed, so that the last hop is good enough.
            let request = Packet { tags, hops: 1, ..request(udp, v6) };
            request.becomes(&lab.tables, Reason::Forwarded, &request.clone().sent(lab.mac));
        }
    }
}

/// The tunnel's header as RFC 2003, 2473 and 4213 have it, after a link header with the same tags; UDP's behind it, from
/// `gue` if it is given.
fn tunnelled(packet: &Packet, lab: &Lab, outer_v6: bool, source: &[u8], gue: Option<[u8; 2]>) -> Vec<u8> {
    let sent = packet.clone().sent(lab.mac);
    let mut inner = packet.ip();
    let mut protocol =
        if packet.from.is_ipv6() { etherparse::IpNumber::IPV6 } else { etherparse::IpNumber::IPV4 };
    if let Some(port) = gue {
        let [high, low] = (inner.len() as u16 + 8).to_be_bytes();
        // To port 6080, without a checksum.
        inner.splice(0..0, [port[0], port[1], 0x17, 0xc0, high, low, 0, 0]);
        protocol = etherparse::IpNumber::UDP;
    }
    let mut frame = sent.link(if outer_v6 { 0x86dd } else { 0x0800 });
    if outer_v6 {
        let std::net::IpAddr::V6(to) = backend(true, 0).ip() else { unreachable!() };
        let header = etherparse::Ipv6Header {
            traffic_class: packet.tos,
            payload_length: inner.len() as u16,
            next_header: protocol,
            hop_limit: 64,
            source: source.try_into().unwrap(),
            destination: to.octets(),
            ..Default::default()
        };
        header.write(&mut frame).unwrap();
    } else {
        let std::net::IpAddr::V4(to) = backend(false, 0).ip() else { unreachable!() };
        let mut header = etherparse::Ipv4Header::new(
            inner.len() as u16,
            64,
            protocol,
            source.try_into().unwrap(),
            to.octets(),
        )
        .unwrap();
        header.dscp = (packet.tos >> 2).try_into().unwrap();
        header.ecn = (packet.tos & 3).try_into().unwrap();
        header.dont_fragment = true;
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut frame).unwrap();
    }
    frame.extend(inner);
    frame
}

#[test]
fn a_tunnel_takes_either_family_over_either() {
    for (v6, udp) in KINDS {
        for outer_v6 in [false, true] {
            for tags in TAGS {
                // DSCP 46 with ECN "congestion experienced"; both are copied.
                for tos in [0, 0xbb] {
                    let lab = Lab::new(Mode::DsrIpip, udp, v6, backend(outer_v6, 443));
                    let request = Packet { tags, tos, ..request(udp, v6) };
                    let (verdict, frame) = request.through(&lab.tables);
                    assert_eq!((verdict.reason, verdict.ifindex), (Reason::Forwarded, Tables::IFINDEX));
                    let l3 = 14 + 4 * tags.len();
                    let source = if outer_v6 { &frame[l3 + 8..l3 + 24] } else { &frame[l3 + 12..l3 + 16] };
                    assert_eq!(frame, tunnelled(&request, &lab, outer_v6, source, None));
                    let prefix = if outer_v6 {
                        &lab.tables.settings.tunnel_v6[..12]
                    } else {
                        &lab.tables.settings.tunnel_v4[..2]
                    };
                    assert_eq!(&source[..prefix.len()], prefix);
                }
            }
        }
    }
}

#[test]
fn gue_takes_either_family_over_either() {
    for (v6, udp) in KINDS {
        for outer_v6 in [false, true] {
            for tags in TAGS {
                for tos in [0, 0xbb] {
                    let lab = Lab::new(Mode::DsrGue, udp, v6, backend(outer_v6, 443));
                    let request = Packet { tags, tos, ..request(udp, v6) };
                    let (verdict, frame) = request.through(&lab.tables);
                    assert_eq!((verdict.reason, verdict.ifindex), (Reason::Forwarded, Tables::IFINDEX));
                    let l3 = 14 + 4 * tags.len();
                    let (source, l4) = if outer_v6 {
                        (&frame[l3 + 8..l3 + 24], l3 + 40)
                    } else {
                        (&frame[l3 + 12..l3 + 16], l3 + 20)
                    };
                    let port = [frame[l4], frame[l4 + 1]];
                    assert_eq!(frame, tunnelled(&request, &lab, outer_v6, source, Some(port)));
                    assert!(port[0] >= 0xc0, "a dynamic port");
                }
            }
        }
    }
}

#[test]
fn flows_differ_in_the_source_port_and_packets_of_one_do_not() {
    let lab = Lab::new(Mode::DsrGue, false, false, backend(false, 443));
    let source = |port: u16| {
        let mut request = request(false, false);
        request.from.set_port(port);
        request.through(&lab.tables).1[34..36].to_vec()
    };
    let sources: std::collections::HashSet<_> = (0..500).map(source).collect();
    assert!(sources.len() > 470, "{} ports", sources.len());
    assert_eq!(source(1), source(1));
}

#[test]
fn flows_differ_in_the_outer_source_and_packets_of_one_do_not() {
    for (outer_v6, at) in [(false, 26..30), (true, 22..38)] {
        let lab = Lab::new(Mode::DsrIpip, false, false, backend(outer_v6, 443));
        let source = |port: u16| {
            let mut request = request(false, false);
            request.from.set_port(port);
            request.through(&lab.tables).1[at.clone()].to_vec()
        };
        let sources: std::collections::HashSet<_> = (0..500).map(source).collect();
        assert!(sources.len() > 490, "{} sources", sources.len());
        assert_eq!(source(1), source(1));
    }
}

#[test]
fn options_and_padding_stay_inside_the_tunnel() {
    let lab = Lab::new(Mode::DsrIpip, false, false, backend(false, 443));
    let request = Packet { options: &[7, 7, 4, 0, 0, 0, 0, 0], ..request(false, false) };
    let (_, frame) = request.through(&lab.tables);
    let source = frame[26..30].to_vec();
    let expected = tunnelled(&request, &lab, false, &source, None);
    assert_eq!(frame, expected);
    let padded = [request.frame(), vec![0; 9]].concat();
    let (verdict, frame) = crate::lab::send(&lab.tables, &padded);
    assert_eq!((verdict.reason, frame), (Reason::Forwarded, [expected, vec![0; 9]].concat()));
}

/// Every tunnel: its mode, whether it is IPv6, and what its headers take.
const TUNNELS: [(Mode, bool, usize); 4] = [
    (Mode::DsrIpip, false, 20),
    (Mode::DsrIpip, true, 40),
    (Mode::DsrGue, false, 28),
    (Mode::DsrGue, true, 48),
];

#[test]
fn a_packet_must_fit_with_the_tunnels_header() {
    for (mode, outer_v6, overhead) in TUNNELS {
        let mut lab = Lab::new(mode, false, false, backend(outer_v6, 443));
        let request = request(false, false);
        lab.tables.devices[0].mtu = (request.ip().len() + overhead) as u16;
        assert_eq!(request.through(&lab.tables).0.reason, Reason::Forwarded);
        lab.tables.devices[0].mtu -= 1;
        request.ends(&lab.tables, Reason::TooBigTold);
    }
}

#[test]
fn a_frame_without_headroom_is_counted() {
    for (mode, outer_v6, overhead) in TUNNELS {
        let lab = Lab::new(mode, false, false, backend(outer_v6, 443));
        for (headroom, reason) in [(overhead - 1, Reason::NoHeadroom), (overhead, Reason::Forwarded)] {
            let mut frame =
                host::Frame::with_headroom(&request(false, false).frame(), Tables::IFINDEX, headroom);
            assert_eq!(process(&mut frame, &lab.tables).reason, reason);
        }
    }
}

#[test]
fn a_decapsulator_undoes_the_tunnel_for_balancers_only() {
    for (v6, udp) in KINDS {
        for (mode, outer_v6, _) in TUNNELS {
            let lab = Lab::new(mode, udp, v6, backend(outer_v6, 443));
            let request = request(udp, v6);
            let (_, tunnelled) = request.through(&lab.tables);
            let mut allowed = Allowed {
                v4: lab.tables.settings.tunnel_v4,
                v4_mask: [255, 255, 0, 0],
                v6: lab.tables.settings.tunnel_v6,
                v6_mask: [255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0],
                gue_port: Tables::GUE_PORT,
                pad: 0,
            };
            let mut frame = host::Frame::new(&tunnelled, Tables::IFINDEX);
            assert_eq!(decapsulate(&mut frame, &allowed), Decapsulated::Inner);
            assert_eq!(frame.bytes(), request.clone().sent(lab.mac).frame());
            // What was inside is no tunnel, and is left alone.
            assert_eq!(decapsulate(&mut frame, &allowed), Decapsulated::NotOurs);

            (allowed.v4[0], allowed.v6[0]) = (9, 9);
            let mut frame = host::Frame::new(&tunnelled, Tables::IFINDEX);
            assert_eq!(decapsulate(&mut frame, &allowed), Decapsulated::Refused);
            for length in 0..tunnelled.len() {
                let mut frame = host::Frame::new(&tunnelled[..length], Tables::IFINDEX);
                assert_ne!(decapsulate(&mut frame, &allowed), Decapsulated::Inner);
                assert_eq!(frame.bytes(), &tunnelled[..length]);
            }
        }
    }
}

#[test]
fn what_routers_say_of_congestion_reaches_the_inner_packet() {
    // RFC 6040, figure 4: rows are what the outer header says, columns what the inner one does.
    const DROPPED: u8 = u8::MAX;
    let figure = [[0, 1, 2, 3], [0, 1, 1, 3], [0, 1, 2, 3], [DROPPED, 3, 3, 3]];
    for v6 in [false, true] {
        for (mode, outer_v6, _) in TUNNELS {
            let lab = Lab::new(mode, false, v6, backend(outer_v6, 443));
            let allowed = Allowed { gue_port: Tables::GUE_PORT, ..Allowed::zeroed() };
            for (outer, row) in (0..).zip(figure) {
                for (inner, expected) in (0..).zip(row) {
                    let request = |ecn| Packet { tos: 0xb8 | ecn, ..request(false, v6) };
                    let (_, mut tunnelled) = request(inner).through(&lab.tables);
                    // (The decapsulator does not look at the outer header's checksum.)
                    if outer_v6 {
                        tunnelled[15] = tunnelled[15] & !0x30 | outer << 4;
                    } else {
                        tunnelled[15] = tunnelled[15] & !3 | outer;
                    }
                    let mut frame = host::Frame::new(&tunnelled, Tables::IFINDEX);
                    let outcome = decapsulate(&mut frame, &allowed);
                    if expected == DROPPED {
                        assert_eq!(outcome, Decapsulated::Congested);
                        continue;
                    }
                    assert_eq!(outcome, Decapsulated::Inner);
                    assert_eq!(frame.bytes(), request(expected).sent(lab.mac).frame(), "{outer} {inner}");
                }
            }
        }
    }
}

#[test]
fn a_decapsulator_knows_both_variants_of_gue_and_nothing_else_at_that_port() {
    for v6 in [false, true] {
        let lab = Lab::new(Mode::DsrGue, false, v6, backend(false, 443));
        let request = request(false, v6);
        let (_, tunnelled) = request.through(&lab.tables);
        let allowed = Allowed {
            v4: lab.tables.settings.tunnel_v4,
            v4_mask: [255, 255, 0, 0],
            v6: [0; 16],
            v6_mask: [255; 16],
            gue_port: Tables::GUE_PORT,
            pad: 0,
        };
        let outcome = |bytes: &[u8], allowed: &Allowed| {
            let mut frame = host::Frame::new(bytes, Tables::IFINDEX);
            (decapsulate(&mut frame, allowed), frame.bytes().to_vec())
        };
        let with_header = |header: [u8; 4]| {
            let mut frame = tunnelled.clone();
            frame.splice(42..42, header);
            frame
        };
        let inner = (Decapsulated::Inner, request.clone().sent(lab.mac).frame());
        let protocol = if v6 { 41 } else { 4 };
        assert_eq!(outcome(&with_header([0, protocol, 0, 0]), &allowed), inner);
        for header in [
            [0, 6, 0, 0],           // not IP
            [1, protocol, 0, 0],    // four bytes of extensions
            [0x20, protocol, 0, 0], // a control message
            [0, protocol, 0x80, 0], // a flag
            [0x80, 0, 0, 0],        // variant 2
            [0x50, 0, 0, 0],        // IP version 5
        ] {
            assert_eq!(outcome(&with_header(header), &allowed).0, Decapsulated::Malformed, "{header:?}");
        }
        // Another port, or none.
        for gue_port in [lb_common::abi::Port::new(6081), lb_common::abi::Port::ANY] {
            let elsewhere = Allowed { gue_port, ..allowed };
            assert_eq!(outcome(&tunnelled, &elsewhere), (Decapsulated::NotOurs, tunnelled.clone()));
        }
    }
}
