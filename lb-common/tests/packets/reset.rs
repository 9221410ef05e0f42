use etherparse::TcpHeader;
use lb_common::abi::{Mode, OnEmpty};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::verdict::Reason;

use crate::lab::{Packet, TAGS, client, vip};

fn empty(v6: bool, on_empty: OnEmpty) -> Tables {
    let mut tables = Tables::new();
    tables.add_service(&ServiceSpec { on_empty, ..ServiceSpec::tcp(vip(v6), 443, Mode::Nat) });
    tables
}

fn segment(v6: bool, data: &[u8], flags: fn(&mut TcpHeader)) -> Packet {
    let mut packet = Packet::tcp(client(v6), (vip(v6), 443).into());
    packet.payload = data.to_vec();
    flags(packet.tcp.as_mut().unwrap());
    packet
}

/// The RST for a packet: back where it came from, with these numbers.
fn rst(packet: &Packet, sequence: u32, acknowledgement: Option<u32>) -> Vec<u8> {
    let mut header = TcpHeader::new(443, 40_000, sequence, 0);
    header.rst = true;
    header.ack = acknowledgement.is_some();
    header.acknowledgment_number = acknowledgement.unwrap_or(0);
    let rst = Packet {
        from: packet.to,
        to: packet.from,
        source_mac: packet.destination_mac,
        destination_mac: packet.source_mac,
        hops: 64,
        options: &[],
        payload: Vec::new(),
        tcp: Some(header),
        ..packet.clone()
    };
    let mut frame = rst.frame();
    // Identification and flow label are none: there is nothing to tell apart.
    let l3 = 14 + 4 * packet.tags.len();
    if packet.from.is_ipv6() {
        frame[l3 + 1..l3 + 4].fill(0);
    } else {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 6] = 0x40;
        frame[l3 + 10..l3 + 12].fill(0);
        let sum: u32 =
            frame[l3..l3 + 20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[test]
fn a_segment_for_nobody_is_reset_as_rfc_9293_says() {
    type Case = (&'static [u8], fn(&mut TcpHeader), u32, Option<u32>);
    let cases: [Case; 6] = [
        // What acknowledges is answered with the number it acknowledges.
        (b"", |_| {}, 7_000_000, None),
        (b"data", |h| h.psh = true, 7_000_000, None),
        (b"", |h| h.syn = true, 7_000_000, None),
        // What does not, with an acknowledgement of all that it occupies.
        (b"", |h| (h.syn, h.ack) = (true, false), 0, Some(1_000_001)),
        (b"fast open", |h| (h.syn, h.ack) = (true, false), 0, Some(1_000_010)),
        (b"odd", |h| (h.fin, h.ack) = (true, false), 0, Some(1_000_004)),
    ];
    for v6 in [false, true] {
        for tags in TAGS {
            for (data, flags, sequence, acknowledgement) in cases {
                let packet = Packet { tags, ..segment(v6, data, flags) };
                let (verdict, frame) = packet.through(&empty(v6, OnEmpty::Reset));
                assert_eq!((verdict.reason, verdict.ifindex), (Reason::Reset, Tables::IFINDEX));
                assert_eq!(frame, rst(&packet, sequence, acknowledgement));
            }
        }
    }
}

#[test]
fn sequence_numbers_wrap() {
    let packet =
        segment(false, b"0123456789", |h| (h.syn, h.ack, h.sequence_number) = (true, false, u32::MAX - 3));
    let (_, frame) = packet.through(&empty(false, OnEmpty::Reset));
    assert_eq!(frame, rst(&packet, 0, Some(7)));
}

#[test]
fn options_are_not_sent_back() {
    let packet = Packet { options: &[7, 7, 4, 0, 0, 0, 0, 0], ..segment(false, b"", |_| {}) };
    let (_, frame) = packet.through(&empty(false, OnEmpty::Reset));
    assert_eq!(frame, rst(&packet, 7_000_000, None));
}

#[test]
fn extension_headers_are_not_sent_back() {
    let packet = segment(true, b"", |_| {});
    let mut frame = packet.frame();
    frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    frame[20] = 0;
    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    let (verdict, frame) = crate::lab::send(&empty(true, OnEmpty::Reset), &frame);
    assert_eq!((verdict.reason, frame), (Reason::Reset, rst(&packet, 7_000_000, None)));
}

#[test]
fn a_reset_is_not_answered() {
    for flags in [|h: &mut TcpHeader| h.rst = true, |h: &mut TcpHeader| (h.rst, h.ack) = (true, false)] {
        segment(false, b"", flags).ends(&empty(false, OnEmpty::Reset), Reason::NoBackend);
    }
}

#[test]
fn an_empty_service_does_as_it_is_told() {
    let packet = segment(false, b"", |_| {});
    packet.ends(&empty(false, OnEmpty::Drop), Reason::NoBackend);
    packet.ends(&empty(false, OnEmpty::Pass), Reason::EmptyPass);
    let mut tables = Tables::new();
    tables.add_service(&ServiceSpec::udp(vip(false), 443, Mode::Nat));
    Packet::udp(client(false), (vip(false), 443).into()).ends(&tables, Reason::NoBackend);
}
