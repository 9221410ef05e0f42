//! What the sender of a packet gets that does not fit; and segments that are kept small enough beforehand.

use std::net::SocketAddr;

use etherparse::TcpOptionElement;
use lb_common::abi::{Mode, Service};
use lb_common::host::{self, Tables};
use lb_common::pipeline::{Route, process};
use lb_common::too_big::BURST;
use lb_common::verdict::Reason;

use crate::errors::Error;
use crate::lab::{CLIENT_MAC, KINDS, Lab, Packet, TAGS, backend, client, send, vip};

fn service(v6: bool) -> SocketAddr {
    (vip(v6), 443).into()
}

pub fn full(udp: bool, v6: bool, tags: &'static [u16]) -> Packet {
    Packet { tags, payload: vec![0x5a; 1420], ..Packet::of(udp, client(v6), service(v6)) }
}

/// The message that tells `mtu` to the sender, about the packet as it came.
pub fn message(packet: &Packet, mtu: u16) -> Vec<u8> {
    quoting(packet, mtu, if packet.from.is_ipv6() { 1232 } else { 544 })
}

/// The same, with so many bytes of the packet in it.
fn quoting(packet: &Packet, mtu: u16, length: usize) -> Vec<u8> {
    let v6 = packet.from.is_ipv6();
    let [high, low] = mtu.to_be_bytes();
    let error = Error {
        source_mac: Tables::MAC,
        destination_mac: CLIENT_MAC,
        tags: packet.tags,
        hops: 64,
        rest: [0, 0, high, low],
        ..Error::about(packet.clone(), packet.to.ip())
    };
    let mut quoted = packet.ip();
    quoted.truncate(length);
    let mut ip = error.around(&quoted);
    if v6 {
        (ip[0], ip[1]) = (0x6c, 0);
    } else {
        // Precedence 6; no identification with "don't fragment" (RFC 6864).
        (ip[1], ip[4], ip[5], ip[6]) = (0xc0, 0, 0, 0x40);
        ip[10..12].fill(0);
        let mut sum: u32 =
            ip[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        ip[10..12].copy_from_slice(&(!(sum as u16 + (sum >> 16) as u16)).to_be_bytes());
    }
    let link = Packet { source_mac: Tables::MAC, destination_mac: CLIENT_MAC, ..packet.clone() };
    [link.link(if v6 { 0x86dd } else { 0x0800 }), ip].concat()
}

#[test]
fn a_sender_is_told_what_fits_the_tunnel() {
    for (v6, udp) in KINDS {
        for (mode, gue) in [(Mode::DsrIpip, 0), (Mode::DsrGue, 8)] {
            for (outer_v6, outer) in [(false, 20), (true, 40)] {
                for tags in TAGS {
                    let mut lab = Lab::new(mode, udp, v6, backend(outer_v6, 443));
                    let packet = full(udp, v6, tags);
                    // One byte too many.
                    let mtu = packet.ip().len() as u16 - 1;
                    lab.tables.devices[0].mtu = mtu + outer + gue;
                    let (verdict, frame) = send(&lab.tables, &packet.frame());
                    assert_eq!((verdict.reason, verdict.ifindex), (Reason::TooBigTold, Tables::IFINDEX));
                    assert_eq!(frame, message(&packet, mtu));
                    lab.tables.devices[0].mtu += 1;
                    assert_eq!(send(&lab.tables, &packet.frame()).0.reason, Reason::Forwarded);
                }
            }
        }
    }
}

#[test]
fn of_a_frame_in_several_buffers_the_message_quotes_what_can_be_read() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::DsrIpip, udp, v6, backend(v6, 443));
        let packet = full(udp, v6, &[]);
        let mtu = packet.ip().len() as u16 - 1;
        lab.tables.devices[0].mtu = mtu + if v6 { 40 } else { 20 };
        let longest = if v6 { 1232 } else { 544 };
        for (linear, quoted) in [(1400, longest), (256, 128), (100, 64)] {
            let mut frame = host::Frame::in_buffers(&packet.frame(), Tables::IFINDEX, linear);
            // IPv6's headers are longer than what is left in the last case.
            let told = 14 + quoted >= if v6 { 62 } else { 42 };
            let verdict = process(&mut frame, &lab.tables);
            assert_eq!(verdict.reason, if told { Reason::TooBigTold } else { Reason::TooBig });
            if told {
                assert_eq!(frame.bytes(), quoting(&packet, mtu, quoted));
            }
        }
    }
}

#[test]
fn without_a_tunnel_a_smaller_link_is_told_of() {
    for (v6, udp) in KINDS {
        for mode in [Mode::Nat, Mode::DsrL2] {
            let mut lab = Lab::new(mode, udp, v6, backend(v6, 443));
            lab.tables.devices[0].mtu = 1300;
            let packet = full(udp, v6, &[]);
            let (verdict, frame) = send(&lab.tables, &packet.frame());
            assert_eq!((verdict.reason, frame), (Reason::TooBigTold, message(&packet, 1300)));
        }
    }
}

#[test]
fn a_nat_backend_is_told_what_fits_the_way_to_its_client() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        lab.tables.routes.insert(client(v6).ip().into(), Route::TooBig);
        lab.tables.path_mtu = 1400;
        let reply = Packet { from: backend(v6, 8443), to: client(v6), ..full(udp, v6, &[]) };
        let (verdict, frame) = send(&lab.tables, &reply.frame());
        // As it sent it: the backend does not know the VIP.
        assert_eq!((verdict.reason, frame), (Reason::TooBigTold, message(&reply, 1400)));
    }
}

#[test]
fn the_first_fragment_is_told_of_and_the_others_are_not() {
    let mut lab = Lab::new(Mode::DsrIpip, true, false, backend(false, 443));
    let packet = full(true, false, &[]);
    lab.tables.devices[0].mtu = 1400;
    let mut first = packet.frame();
    crate::lab::fragment(&mut first, 0, true);
    assert_eq!(send(&lab.tables, &first).0.reason, Reason::TooBigTold);
    let mut other = packet.frame();
    crate::lab::fragment(&mut other, 185, false);
    assert_eq!(send(&lab.tables, &other).0.reason, Reason::TooBig);
}

#[test]
fn nobody_is_told_less_than_ipv6_guarantees() {
    let mut lab = Lab::new(Mode::DsrIpip, false, true, backend(true, 443));
    let packet = full(false, true, &[]);
    lab.tables.devices[0].mtu = 1300;
    let (verdict, frame) = send(&lab.tables, &packet.frame());
    assert_eq!((verdict.reason, frame), (Reason::TooBigTold, message(&packet, 1280)));
    // What may be sent and does not fit all the same is a matter of the link's MTU.
    let packet = Packet { payload: vec![0x5a; 1208], ..packet };
    assert_eq!(packet.ip().len(), 1280);
    packet.ends(&lab.tables, Reason::TooBig);
}

#[test]
fn messages_keep_to_a_rate_and_the_rest_is_dropped() {
    let mut lab = Lab::new(Mode::DsrIpip, false, false, backend(false, 443));
    lab.tables.devices[0].mtu = 1000;
    lab.tables.settings.message_interval = 1 << 20;
    let packet = full(false, false, &[]);
    let reasons: Vec<Reason> = (0..2 * BURST).map(|_| packet.through(&lab.tables).0.reason).collect();
    let told = reasons.iter().filter(|reason| **reason == Reason::TooBigTold).count() as u64;
    assert_eq!(told, BURST);
    assert!(reasons[BURST as usize..].iter().all(|reason| *reason == Reason::TooBig));
    lab.tables.clock.set(lab.tables.clock.get() + (1 << 20));
    assert_eq!(packet.through(&lab.tables).0.reason, Reason::TooBigTold);
    packet.ends(&lab.tables, Reason::TooBig);
}

#[test]
fn who_has_no_address_to_be_told_at_and_many_at_once_are_not_told() {
    for from in ["127.0.0.1:9", "0.0.0.0:9", "224.0.0.1:9", "[::1]:9", "[ff02::1]:9"] {
        let from: SocketAddr = from.parse().unwrap();
        let v6 = from.is_ipv6();
        let mut lab = Lab::new(Mode::DsrL2, false, v6, backend(v6, 443));
        lab.tables.devices[0].mtu = 1300;
        Packet { from, ..full(false, v6, &[]) }.ends(&lab.tables, Reason::Martian);
        let group = [1, 0, 0x5e, 0, 0, 1];
        Packet { destination_mac: group, ..full(false, v6, &[]) }.ends(&lab.tables, Reason::TooBig);
        Packet { source_mac: group, ..full(false, v6, &[]) }.ends(&lab.tables, Reason::TooBig);
    }
}

fn syn(from: SocketAddr, to: SocketAddr, answer: bool, options: &[TcpOptionElement]) -> Packet {
    let mut packet = Packet { payload: Vec::new(), ..Packet::tcp(from, to) };
    let header = packet.tcp.as_mut().unwrap();
    (header.syn, header.ack) = (true, answer);
    header.set_options(options).unwrap();
    packet
}

fn clamped(mode: Mode, v6: bool, backend: SocketAddr) -> Lab {
    let mut lab = Lab::new(mode, false, v6, backend);
    let service = &mut lab.tables.services[0];
    service.flags |= Service::CLAMPED;
    service.clamp_mss = 1360;
    lab
}

const MSS: fn(u16) -> TcpOptionElement = TcpOptionElement::MaximumSegmentSize;

#[test]
fn the_largest_segment_is_clamped_both_ways() {
    use TcpOptionElement::{Noop, SelectiveAcknowledgementPermitted, Timestamp, WindowScale};
    for v6 in [false, true] {
        // First, at an odd offset, last.
        for (before, after) in [
            (
                &[MSS(1460), SelectiveAcknowledgementPermitted, WindowScale(7)][..],
                &[MSS(1360), SelectiveAcknowledgementPermitted, WindowScale(7)][..],
            ),
            (&[Noop, MSS(9000)], &[Noop, MSS(1360)]),
            (
                &[Timestamp(1, 2), Noop, WindowScale(7), MSS(65_535)],
                &[Timestamp(1, 2), Noop, WindowScale(7), MSS(1360)],
            ),
            (&[MSS(1360)], &[MSS(1360)]),
            (&[MSS(536)], &[MSS(536)]),
            (&[WindowScale(7)], &[WindowScale(7)]),
            (&[], &[]),
        ] {
            let lab = clamped(Mode::Nat, v6, backend(v6, 8443));
            let request = syn(client(v6), service(v6), false, before);
            let expected =
                Packet { to: backend(v6, 8443), hops: 63, ..syn(client(v6), service(v6), false, after) };
            request.becomes(&lab.tables, Reason::Forwarded, &expected.sent(lab.mac));
            let answer = syn(backend(v6, 8443), client(v6), true, before);
            let expected =
                Packet { from: service(v6), hops: 63, ..syn(backend(v6, 8443), client(v6), true, after) };
            answer.becomes(&lab.tables, Reason::Replied, &expected.sent(Tables::ROUTER));

            let lab = clamped(Mode::DsrIpip, v6, backend(false, 443));
            let (_, frame) = request.through(&lab.tables);
            assert_eq!(frame[34..], syn(client(v6), service(v6), false, after).ip());
        }
    }
}

#[test]
fn what_is_no_syn_or_goes_up_keeps_its_options() {
    let lab = clamped(Mode::Nat, false, backend(false, 8443));
    let mut segment = Packet::tcp(client(false), service(false));
    segment.tcp.as_mut().unwrap().set_options(&[MSS(9000)]).unwrap();
    let expected = Packet { to: backend(false, 8443), hops: 63, ..segment.clone() }.sent(lab.mac);
    segment.becomes(&lab.tables, Reason::Forwarded, &expected);
    // `send` compares what is passed up.
    let last = Packet { hops: 1, ..syn(client(false), service(false), false, &[MSS(9000)]) };
    last.ends(&lab.tables, Reason::TtlExpired);
    let last = Packet { hops: 1, ..syn(backend(false, 8443), client(false), true, &[MSS(9000)]) };
    last.ends(&lab.tables, Reason::TtlExpired);
}

#[test]
fn options_that_lie_are_left_alone() {
    let lab = clamped(Mode::DsrL2, false, backend(false, 443));
    for options in [
        [2, 3, 5, 0xb4, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 0, 0, 0],
        [0, 2, 4, 5, 0xb4, 0, 0, 0],
        [1, 1, 1, 1, 1, 2, 4, 5],
        [3, 255, 2, 4, 5, 0xb4, 1, 1],
    ] {
        let mut request = syn(client(false), service(false), false, &[]);
        request.tcp.as_mut().unwrap().set_options_raw(&options).unwrap();
        request.becomes(&lab.tables, Reason::Forwarded, &request.clone().sent(lab.mac));
    }
}
