//! Fragments follow their first.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{FRAGMENT_TICKS, Life, Mode, Service};
use lb_common::host::Tables;
use lb_common::pipeline::Route;
use lb_common::verdict::{Event, Reason};
use lb_common::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, reason, send, vip};

fn service(v6: bool) -> SocketAddr {
    (vip(v6), 443).into()
}

/// The frames of a packet that is cut up: 48 bytes of what it carries in each but the last.
pub fn pieces(packet: &Packet, id: u32) -> Vec<Vec<u8>> {
    const PIECE: usize = 48;
    let whole = packet.ip();
    let v6 = packet.from.is_ipv6();
    let link = packet.link(if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 });
    let (header, load) = whole.split_at(if v6 { 40 } else { 20 + packet.options.len() });
    let count = load.len().div_ceil(PIECE);
    (load.chunks(PIECE).enumerate())
        .map(|(i, chunk)| {
            let (at, more) = ((i * PIECE) as u16, i + 1 < count);
            let mut header = header.to_vec();
            if v6 {
                header[4..6].copy_from_slice(&(chunk.len() as u16 + 8).to_be_bytes());
                let next = std::mem::replace(&mut header[6], 44);
                header.extend([next, 0]);
                header.extend((at | u16::from(more)).to_be_bytes());
                header.extend(id.to_be_bytes());
            } else {
                let length = (header.len() + chunk.len()) as u16;
                header[2..4].copy_from_slice(&length.to_be_bytes());
                header[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                header[6..8].copy_from_slice(&((at / 8) | (u16::from(more) << 13)).to_be_bytes());
                header[10..12].fill(0);
                let sum = lb_sum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            [&link[..], &header, chunk].concat()
        })
        .collect()
}

fn lb_sum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A request of several fragments.
fn request(udp: bool, v6: bool) -> Packet {
    Packet { payload: (0..200).collect(), ..Packet::of(udp, client(v6), service(v6)) }
}

fn all_become(lab: &Lab, given: &[Vec<u8>], reason: Reason, expected: &[Vec<u8>]) {
    assert!(given.len() > 3 && given.len() == expected.len());
    for (i, (given, expected)) in given.iter().zip(expected).enumerate() {
        let (verdict, frame) = send(&lab.tables, given);
        assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX), "fragment {i}");
        assert_eq!(&frame, expected, "fragment {i}");
        assert_eq!((verdict.account.backend, verdict.account.bytes as usize), (lab.id, given.len()));
    }
}

#[test]
fn all_fragments_of_a_request_get_their_backends_address() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
            let request = Packet { tags, ..request(udp, v6) };
            let expected = Packet { to: backend(v6, 8443), hops: 63, ..request.clone() }.sent(lab.mac);
            all_become(&lab, &pieces(&request, 7), Reason::FragmentForwarded, &pieces(&expected, 7));
            assert_eq!(lab.tables.count(Event::FragmentsNoted), 1);
        }
    }
}

#[test]
fn all_fragments_of_a_reply_get_the_vips_address() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let reply = Packet { from: backend(v6, 8443), to: client(v6), ..request(udp, v6) };
        let expected = Packet { from: service(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
        all_become(&lab, &pieces(&reply, 7), Reason::FragmentReplied, &pieces(&expected, 7));
    }
}

#[test]
fn all_fragments_go_to_one_backend_of_the_same_link() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::DsrL2, udp, v6, backend(v6, 443));
        let request = request(udp, v6);
        let expected = pieces(&request.clone().sent(lab.mac), 7);
        all_become(&lab, &pieces(&request, 7), Reason::FragmentForwarded, &expected);
    }
}

#[test]
fn all_fragments_go_through_one_tunnel() {
    for (v6, udp) in KINDS {
        for mode in [Mode::DsrIpip, Mode::DsrGue] {
            for outer_v6 in [false, true] {
                let lab = Lab::new(mode, udp, v6, backend(outer_v6, 443));
                let request = request(udp, v6);
                let whole = request.through(&lab.tables).1;
                let outer = whole.len() - request.ip().len();
                let addresses = if outer_v6 { 22..54 } else { 26..34 };
                for piece in pieces(&request, 7) {
                    let (verdict, frame) = send(&lab.tables, &piece);
                    assert_eq!(verdict.reason, Reason::FragmentForwarded);
                    assert_eq!(frame[outer..], piece[14..]);
                    assert_eq!(frame[addresses.clone()], whole[addresses.clone()]);
                }
            }
        }
    }
}

#[test]
fn a_fragment_before_its_first_is_counted_and_passed_up() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let pieces = pieces(&request(udp, v6), 7);
        for piece in &pieces[1..] {
            assert_eq!(reason(&lab.tables, piece), Reason::FragmentUnknown);
        }
        assert_eq!(reason(&lab.tables, &pieces[0]), Reason::FragmentForwarded);
        // From now on in any order, and as often as they come.
        for piece in pieces.iter().rev().chain(&pieces) {
            assert_eq!(reason(&lab.tables, piece), Reason::FragmentForwarded);
        }
    }
}

#[test]
fn fragments_of_other_packets_are_other_fragments() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let known = pieces(&request(udp, v6), 7);
        assert_eq!(reason(&lab.tables, &known[0]), Reason::FragmentForwarded);
        assert_eq!(reason(&lab.tables, &pieces(&request(udp, v6), 8)[1]), Reason::FragmentUnknown);
        assert_eq!(reason(&lab.tables, &pieces(&request(!udp, v6), 7)[1]), Reason::FragmentUnknown);
        let mut other = request(udp, v6);
        other.from = if v6 { "[2001:db8::99]:4" } else { "192.0.2.99:4" }.parse().unwrap();
        assert_eq!(reason(&lab.tables, &pieces(&other, 7)[1]), Reason::FragmentUnknown);
        assert_eq!(reason(&lab.tables, &known[1]), Reason::FragmentForwarded);
    }
}

#[test]
fn a_first_fragment_is_forgotten_in_time_and_with_its_backend() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let pieces = pieces(&request(udp, v6), 7);
        assert_eq!(reason(&lab.tables, &pieces[0]), Reason::FragmentForwarded);
        lab.tables.advance(FRAGMENT_TICKS);
        assert_eq!(reason(&lab.tables, &pieces[1]), Reason::FragmentForwarded);
        lab.tables.advance(1);
        assert_eq!(reason(&lab.tables, &pieces[1]), Reason::FragmentUnknown);
        assert_eq!(reason(&lab.tables, &pieces[0]), Reason::FragmentForwarded);
        lab.tables.backends[usize::from(lab.id)].life = Life::of(2, true).0;
        assert_eq!(reason(&lab.tables, &pieces[1]), Reason::FragmentUnknown);
        lab.tables.backends[usize::from(lab.id)].life = Life::of(1, false).0;
        assert_eq!(reason(&lab.tables, &pieces[1]), Reason::BackendGone);
    }
}

#[test]
fn whose_first_fragment_is_not_ours_is_not_ours() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let mut other = request(udp, v6);
        other.to.set_port(80);
        let pieces = pieces(&other, 7);
        assert_eq!(reason(&lab.tables, &pieces[0]), Reason::NotOurs);
        assert_eq!(reason(&lab.tables, &pieces[1]), Reason::FragmentUnknown);
    }
}

#[test]
fn a_fragment_with_half_a_transport_header_reaches_no_vip() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let mut piece = pieces(&request(udp, v6), 7).swap_remove(0);
        let kept = if udp { 7 } else { 19 };
        // RFC 1858's tiny fragment: the ports are there, the flags are not.
        if v6 {
            piece[18..20].copy_from_slice(&(8 + kept as u16).to_be_bytes());
            piece.truncate(14 + 48 + kept);
        } else {
            piece[16..18].copy_from_slice(&(20 + kept as u16).to_be_bytes());
            piece.truncate(34 + kept);
        }
        assert_eq!(reason(&lab.tables, &piece), Reason::TinyFragment);
        // To another address of the host, which only the filter takes for a VIP.
        lab.tables.vip_rules.clear();
        assert_eq!(reason(&lab.tables, &piece), Reason::Malformed);
    }
}

#[test]
fn a_packet_of_one_fragment_needs_no_note() {
    // RFC 6946.
    let lab = Lab::new(Mode::DsrL2, false, true, backend(true, 443));
    let packet = Packet::tcp(client(true), service(true));
    let whole = packet.ip();
    let mut frame = packet.link(ETHERTYPE_IPV6);
    frame.extend(&whole[..40]);
    frame[18..20].copy_from_slice(&((whole.len() - 40 + 8) as u16).to_be_bytes());
    frame[20] = 44;
    frame.extend([6, 0, 0, 0, 1, 2, 3, 4]);
    frame.extend(&whole[40..]);
    assert_eq!(reason(&lab.tables, &frame), Reason::FragmentForwarded);
    assert_eq!(lab.tables.count(Event::FragmentsNoted), 0);
}

#[test]
fn a_ping_in_fragments_is_the_hosts() {
    for v6 in [false, true] {
        let lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        for mut piece in pieces(&request(false, v6), 7) {
            if v6 {
                piece[54] = 58;
            } else {
                piece[23] = 1;
            }
            assert_eq!(reason(&lab.tables, &piece), Reason::Fragment);
        }
    }
}

/// The pieces of a reply to `client` end as the route there says, or as `off` if the host does not forward; one without a
/// neighbour goes by the host, as `expected`.
pub fn follow_the_route(lab: &mut Lab, client: IpAddr, off: Reason, given: &[Vec<u8>], expected: &[Vec<u8>]) {
    lab.tables.routes.insert(client.into(), Route::Unresolved);
    for (given, expected) in given.iter().zip(expected) {
        let (verdict, frame) = send(&lab.tables, given);
        assert_eq!((verdict.reason, &frame), (Reason::FragmentRepliedByHost, expected));
    }
    for (route, expected) in
        [(Route::Local, Reason::Local), (Route::ForwardingOff, off), (Route::None, Reason::NoRoute)]
    {
        lab.tables.routes.insert(client.into(), route);
        assert_eq!(reason(&lab.tables, &given[0]), expected);
        assert_eq!(reason(&lab.tables, &given[1]), expected);
    }
}

#[test]
fn fragments_of_a_reply_go_where_the_route_says() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let reply = Packet { from: backend(v6, 8443), to: client(v6), ..request(udp, v6) };
        let given = pieces(&reply, 7);
        let expected = pieces(&Packet { from: service(v6), hops: 63, ..reply }, 7);
        follow_the_route(&mut lab, client(v6).ip(), Reason::ForwardingOff, &given, &expected);
    }
}

#[test]
fn fragments_past_the_vip_stay_as_they_are() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let past = pieces(&Packet { to: backend(v6, 8443), ..request(udp, v6) }, 7);
        let reply = pieces(&Packet { from: backend(v6, 8443), to: client(v6), ..request(udp, v6) }, 9);
        assert_eq!(reason(&lab.tables, &past[0]), Reason::Direct);
        assert_eq!(reason(&lab.tables, &past[1]), Reason::FragmentUnknown);
        assert_eq!(reason(&lab.tables, &reply[0]), Reason::Direct);
        assert_eq!(reason(&lab.tables, &reply[1]), Reason::FragmentUnknown);
    }
}

#[test]
fn the_last_hop_is_not_taken() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        for piece in pieces(&Packet { hops: 1, ..request(udp, v6) }, 7) {
            assert_eq!(reason(&lab.tables, &piece), Reason::TtlExpired);
        }
    }
}

#[test]
fn a_syn_in_fragments_begins_nothing_where_beginnings_are_looked_at() {
    for v6 in [false, true] {
        let mut lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        let mut syn = request(false, v6);
        let header = syn.tcp.as_mut().unwrap();
        (header.syn, header.ack) = (true, false);
        let first = &pieces(&syn, 9)[0];
        assert_eq!(reason(&lab.tables, first), Reason::FragmentForwarded, "a service that does not look");
        for flag in [Service::LIMITED, Service::MEASURED, Service::WATCHED, Service::RETRIED, Service::FAULTS]
        {
            lab.tables.services[0].flags = flag;
            assert_eq!(reason(&lab.tables, first), Reason::FragmentedSyn, "{flag:#x}");
            assert_eq!(reason(&lab.tables, &pieces(&request(false, v6), 9)[0]), Reason::FragmentForwarded);
        }
    }
}
