use std::net::IpAddr;

use lb_common::abi::Mode;
use lb_common::verdict::{Action, Reason};

use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, reason, send, vip};

fn lab(udp: bool, v6: bool) -> (Lab, Packet) {
    (Lab::new(Mode::Nat, udp, v6, backend(v6, 8443)), Packet::of(udp, client(v6), (vip(v6), 443).into()))
}

/// Puts extension headers (kind, bytes) before the transport header of an IPv6 frame without tags.
fn extended(packet: &Packet, chain: &[(u8, &[u8])]) -> Vec<u8> {
    let mut frame = packet.frame();
    let transport = frame[20];
    let mut bytes = Vec::new();
    for (i, (_, header)) in chain.iter().enumerate() {
        bytes.push(chain.get(i + 1).map_or(transport, |(kind, _)| *kind));
        bytes.extend_from_slice(&header[1..]);
    }
    frame[20] = chain.first().map_or(transport, |(kind, _)| *kind);
    let length = u16::from_be_bytes([frame[18], frame[19]]) + bytes.len() as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame.splice(54..54, bytes);
    frame
}

const OPTIONS: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
const LONG: &[u8] = &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A routing header of type 2 (RFC 6275), at its last node.
const ROUTING: &[u8] = &[0, 0, 2, 0, 0, 0, 0, 0];
const LONG_ROUTING: &[u8] = &[0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An authentication header counts in words of 4 bytes.
const AUTHENTICATION: &[u8] = &[0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn a_frame_cut_off_anywhere_is_passed_up() {
    for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrIpip] {
        for (v6, udp) in KINDS {
            for tags in TAGS {
                let lab = Lab::new(mode, udp, v6, backend(v6, 8443));
                let frame = Packet { tags, ..Packet::of(udp, client(v6), (vip(v6), 443).into()) }.frame();
                for length in 0..frame.len() {
                    assert_eq!(
                        send(&lab.tables, &frame[..length]).0.reason.action(),
                        Action::Pass,
                        "{length} bytes"
                    );
                }
                assert_eq!(reason(&lab.tables, &frame), Reason::Forwarded);
            }
        }
    }
}

#[test]
fn extension_headers_are_followed() {
    let (lab, packet) = lab(false, true);
    for chain in [
        &[(0, OPTIONS)][..],
        &[(60, LONG), (43, ROUTING)],
        &[(51, AUTHENTICATION)],
        &[(0, LONG), (60, OPTIONS), (43, LONG_ROUTING), (51, AUTHENTICATION), (60, OPTIONS), (60, OPTIONS)],
    ] {
        let frame = extended(&packet, chain);
        let (verdict, after) = send(&lab.tables, &frame);
        assert_eq!(verdict.reason, Reason::Forwarded, "{chain:?}");
        let expected = Packet { to: backend(true, 8443), hops: 63, ..packet.clone() }.sent(lab.mac);
        assert_eq!(after, extended(&expected, chain));
        for length in 0..frame.len() {
            assert_eq!(send(&lab.tables, &frame[..length]).0.reason.action(), Action::Pass, "{length} bytes");
        }
    }
}

#[test]
fn a_chain_that_leads_elsewhere_is_passed_up() {
    let (lab, packet) = lab(false, true);
    let seven = [(60, OPTIONS); 7];
    assert_eq!(reason(&lab.tables, &extended(&packet, &seven)), Reason::OtherProtocol);
    assert_eq!(reason(&lab.tables, &extended(&packet, &[(50, OPTIONS)])), Reason::OtherProtocol);
    assert_eq!(
        reason(&lab.tables, &extended(&packet, &[(0, OPTIONS), (44, OPTIONS)])),
        Reason::FragmentUnknown
    );
    // A routing header that has a node to visit yet.
    let mut frame = extended(&packet, &[(43, ROUTING)]);
    frame[57] = 1;
    assert_eq!(reason(&lab.tables, &frame), Reason::OtherProtocol);
    // A header that is longer than the packet.
    let mut frame = extended(&packet, &[(60, OPTIONS)]);
    frame[55] = 255;
    assert_eq!(reason(&lab.tables, &frame), Reason::Malformed);
}

#[test]
fn what_is_neither_tcp_nor_udp_is_passed_up() {
    let (lab, packet) = lab(false, false);
    for (protocol, expected) in
        [(1, Reason::OtherProtocol), (47, Reason::OtherProtocol), (17, Reason::NotOurs)]
    {
        let mut frame = packet.frame();
        frame[23] = protocol;
        assert_eq!(reason(&lab.tables, &frame), expected);
    }
    let mut arp = packet.frame();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(reason(&lab.tables, &arp), Reason::NotIp);
    // A third tag is nobody's.
    let tagged = Packet { tags: &[1, 2, 3], ..packet };
    assert_eq!(reason(&lab.tables, &tagged.frame()), Reason::NotIp);
}

#[test]
fn headers_that_contradict_themselves_are_passed_up() {
    type Break = (&'static str, fn(&mut [u8]));
    let v4: [Break; 7] = [
        ("version", |f| f[14] = 0x65),
        ("header length below the least", |f| f[14] = 0x44),
        ("header longer than the packet", |f| f[16..18].copy_from_slice(&[0, 19])),
        ("packet longer than the frame", |f| f[16..18].copy_from_slice(&[0xff, 0xff])),
        ("TCP header below the least", |f| f[46] = 0x40),
        ("TCP header longer than the packet", |f| f[16..18].copy_from_slice(&[0, 45])),
        ("options that leave no room for TCP", |f| f[14] = 0x4f),
    ];
    let (lab4, packet) = lab(false, false);
    for (what, broken) in v4 {
        let mut frame = Packet { payload: Vec::new(), ..packet.clone() }.frame();
        broken(&mut frame);
        assert_eq!(reason(&lab4.tables, &frame), Reason::Malformed, "{what}");
    }
    let v6: [Break; 3] = [
        ("version", |f| f[14] = 0x40),
        ("packet longer than the frame", |f| f[18..20].copy_from_slice(&[0xff, 0xff])),
        ("no room for TCP", |f| f[18..20].copy_from_slice(&[0, 19])),
    ];
    let (lab6, packet) = lab(false, true);
    for (what, broken) in v6 {
        let mut frame = packet.frame();
        broken(&mut frame);
        assert_eq!(reason(&lab6.tables, &frame), Reason::Malformed, "{what}");
    }
}

#[test]
fn a_datagram_may_be_shorter_than_its_packet_and_not_longer() {
    for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrIpip] {
        for v6 in [false, true] {
            let lab = Lab::new(mode, true, v6, backend(v6, 8443));
            let packet = Packet::udp(client(v6), (vip(v6), 443).into());
            let at = if v6 { 54 } else { 34 } + 4;
            let whole = 8 + packet.payload.len() as u16;
            // Zero is for jumbograms.
            for (length, expected) in [
                (whole, Reason::Forwarded),
                (whole - 1, Reason::Forwarded),
                (8, Reason::Forwarded),
                (7, Reason::Malformed),
                (0, Reason::Malformed),
                (whole + 1, Reason::Malformed),
                (u16::MAX, Reason::Malformed),
            ] {
                let mut frame = packet.frame();
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                assert_eq!(reason(&lab.tables, &frame), expected, "{length} of {whole}");
                // What pads the frame belongs to nobody.
                frame.extend([0; 4]);
                assert_eq!(reason(&lab.tables, &frame), expected, "{length} of {whole}, padded");
            }
        }
    }
}

#[test]
fn a_v4_mapped_address_in_ipv6_is_nobodys() {
    let (lab, packet) = lab(false, false);
    let IpAddr::V4(vip) = vip(false) else { unreachable!() };
    let (client, vip) = (client(true), (IpAddr::V6(vip.to_ipv6_mapped()), 443).into());
    for (from, to, expected) in [(client, vip, Reason::Malformed), (vip, client, Reason::Martian)] {
        let frame = Packet { from, to, ..packet.clone() }.frame();
        assert_eq!(reason(&lab.tables, &frame), expected, "{from} {to}");
    }
}

#[test]
fn padding_belongs_to_nobody() {
    for (v6, udp) in KINDS {
        let (lab, packet) = lab(udp, v6);
        let packet = Packet { payload: b"x".to_vec(), ..packet };
        let padded = [packet.frame(), vec![0xee; 11]].concat();
        let (verdict, frame) = send(&lab.tables, &padded);
        let expected = Packet { to: backend(v6, 8443), hops: 63, ..packet.clone() }.sent(lab.mac).frame();
        assert_eq!(
            (verdict.account.bytes as usize, frame),
            (expected.len(), [expected, vec![0xee; 11]].concat())
        );
        // Not even a transport header may reach into it.
        let mut short = padded.clone();
        let total = if v6 { 18..20 } else { 16..18 };
        short[total].copy_from_slice(&if v6 { [0, 7] } else { [0, 27] });
        assert_eq!(reason(&lab.tables, &short), Reason::Malformed);
    }
}
