//! Who may talk to a service, and how much; and what is never answered.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, PacketBuilder};
use lb_common::abi::{Address, GuestKey, Mode, Service, VipKey};
use lb_common::guard::{Guard, HOST, Rate, Rule};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::verdict::Reason;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};
use prefix::network;

use crate::lab::{self, KINDS, Lab, Packet, backend, client, fragment, reason, vip};

const SECOND: u64 = 1_000_000_000;
/// Every mode there is.
const MODES: [Mode; 5] = [Mode::Nat, Mode::FullNat, Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue];

mod prefix {
    use lb_common::abi::{Address, GuestKey};

    /// The key of a network of an owner, from text such as `10.0.0.0/8`.
    pub fn network(owner: u32, text: &str) -> GuestKey {
        let (address, bits) = text.split_once('/').expect("a prefix");
        let address: std::net::IpAddr = address.parse().expect("an address");
        let bits: u32 = bits.parse().expect("a length");
        GuestKey::network(owner, Address::from(address), bits + if address.is_ipv4() { 96 } else { 0 })
    }
}

/// A service that is guarded, of any mode.
fn guarded(mode: Mode, udp: bool, v6: bool) -> Lab {
    let port = if matches!(mode, Mode::Nat | Mode::FullNat) { 8443 } else { 443 };
    let mut lab = Lab::new(mode, udp, v6, backend(v6, port));
    lab.tables.services[0].flags |= Service::GUARDED;
    lab.tables.guards.insert(0, Guard { source_mask: bits(128), ..Guard::default() });
    lab
}

fn bits(count: u32) -> Address {
    Address::v6(&u128::MAX.checked_shl(128 - count).unwrap_or(0).to_be_bytes())
}

impl Lab {
    fn rule(&mut self, owner: u32, prefix: &str, rule: Rule) {
        self.tables.rules.insert(network(owner, prefix), rule);
        self.tables.guards.get_mut(&0).expect("it is guarded").rules = 1;
    }

    /// Everybody who is not allowed is denied.
    fn others(&mut self, owner: u32) {
        self.tables.rules.insert(GuestKey::network(owner, Address::default(), 0), Rule::NotAllowed);
    }

    fn rates(&mut self) -> &mut Guard {
        self.tables.guards.get_mut(&0).expect("it is guarded")
    }
}

fn vip_of(v6: bool) -> SocketAddr {
    (vip(v6), 443).into()
}

fn from(text: &str, port: u16) -> SocketAddr {
    (text.parse::<IpAddr>().expect("an address"), port).into()
}

/// Of a TCP connection; `begins` with a SYN.
fn segment(from: SocketAddr, begins: bool) -> Packet {
    let mut packet = Packet::tcp(from, vip_of(from.is_ipv6()));
    let header = packet.tcp.as_mut().expect("TCP");
    (header.syn, header.ack) = (begins, !begins);
    header.sequence_number = 1_000 + u32::from(!begins);
    packet.payload.clear();
    packet
}

/// The first packet of a flow.
fn first(udp: bool, from: SocketAddr) -> Packet {
    if udp { Packet::udp(from, vip_of(from.is_ipv6())) } else { segment(from, true) }
}

fn pass(tables: &Tables, packet: &Packet) -> Reason {
    packet.through(tables).0.reason
}

#[test]
fn the_smallest_network_says_who_may_talk_to_a_service_in_every_mode() {
    for mode in MODES {
        for (v6, udp) in KINDS {
            let mut lab = guarded(mode, udp, v6);
            let [wide, narrow, denied, allowed, out] = if v6 {
                [
                    "2001:db8:c::/48",
                    "2001:db8:c:66::/64",
                    "2001:db8:c:66::1",
                    "2001:db8:c:67::1",
                    "2001:db8:d::1",
                ]
            } else {
                ["198.51.0.0/16", "198.51.66.0/24", "198.51.66.255", "198.51.67.0", "198.52.0.1"]
            };
            lab.rule(0, wide, Rule::Allowed);
            lab.rule(0, narrow, Rule::Denied);
            let case = format!("{mode:?} udp {udp} v6 {v6}");
            assert_eq!(pass(&lab.tables, &first(udp, from(denied, 4000))), Reason::Denied, "{case}");
            assert_eq!(pass(&lab.tables, &first(udp, from(allowed, 4000))), Reason::Forwarded, "{case}");
            assert_eq!(pass(&lab.tables, &first(udp, from(out, 4000))), Reason::Forwarded, "{case}");
            // An allow list means that everybody else is denied.
            lab.others(0);
            assert_eq!(pass(&lab.tables, &first(udp, from(allowed, 4001))), Reason::Forwarded, "{case}");
            assert_eq!(pass(&lab.tables, &first(udp, from(out, 4001))), Reason::Denied, "{case}");
            // The rules of another service are its own.
            lab.tables.rules.clear();
            lab.rule(1, narrow, Rule::Denied);
            assert_eq!(pass(&lab.tables, &first(udp, from(denied, 4002))), Reason::Forwarded, "{case}");
        }
    }
}

#[test]
fn who_is_denied_later_is_cut_off_and_what_goes_on_comes_out_as_without_a_guard() {
    for v6 in [false, true] {
        let mut lab = guarded(Mode::Nat, false, v6);
        let bare = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        lab.others(1);
        for packet in [segment(client(v6), true), segment(client(v6), false)] {
            assert_eq!(packet.through(&lab.tables), packet.through(&bare.tables), "byte for byte");
        }
        let prefix = format!("{}/{}", client(v6).ip(), if v6 { 128 } else { 32 });
        lab.rule(0, &prefix, Rule::Denied);
        assert_eq!(pass(&lab.tables, &segment(client(v6), false)), Reason::Denied);
    }
}

#[test]
fn fragments_do_not_walk_around_a_list() {
    for udp in [false, true] {
        for mode in MODES {
            let mut lab = guarded(mode, udp, false);
            lab.rule(0, "198.51.100.0/24", Rule::Denied);
            lab.rule(HOST, "198.51.100.0/24", Rule::Denied);
            lab.tables.vip_rules.insert(vip(false).into(), HOST);
            let mut frame = first(udp, client(false)).frame();
            fragment(&mut frame, 0, true);
            assert_eq!(reason(&lab.tables, &frame), Reason::Denied, "{mode:?}: the first");
            fragment(&mut frame, 8, false);
            assert_eq!(reason(&lab.tables, &frame), Reason::Denied, "{mode:?}: one that follows no first");
            // Denied after the first was let through.
            let other = from("192.0.2.1", 4000);
            let whole = if udp { first(udp, other) } else { segment(other, false) };
            if mode == Mode::FullNat {
                // Its first fragment needs a session.
                assert_eq!(pass(&lab.tables, &first(udp, other)), Reason::Forwarded);
            }
            let mut frame = whole.frame();
            fragment(&mut frame, 0, true);
            assert_eq!(reason(&lab.tables, &frame), Reason::FragmentForwarded);
            fragment(&mut frame, 8, true);
            assert_eq!(reason(&lab.tables, &frame), Reason::FragmentForwarded);
            lab.rule(0, "192.0.2.0/24", Rule::Denied);
            assert_eq!(reason(&lab.tables, &frame), Reason::Denied, "{mode:?}: one that follows");
        }
    }
}

#[test]
fn fragments_count_as_packets() {
    let mut lab = guarded(Mode::DsrL2, true, false);
    lab.rates().source_packets = Rate::per_second(1, 3);
    let mut frame = first(true, client(false)).frame();
    let mut send = |offset, more| {
        fragment(&mut frame, offset, more);
        reason(&lab.tables, &frame)
    };
    assert_eq!(send(0, true), Reason::FragmentForwarded);
    assert_eq!(send(8, true), Reason::FragmentForwarded);
    assert_eq!(send(16, true), Reason::FragmentForwarded);
    assert_eq!(send(24, false), Reason::SourcePackets);
}

/// An echo request to the VIP.
fn echo(from: IpAddr) -> Vec<u8> {
    let mut packet = Packet::udp((from, 0).into(), vip_of(from.is_ipv6())).link(if from.is_ipv4() {
        0x0800
    } else {
        0x86dd
    });
    let mut ip = Vec::new();
    match (from, vip(from.is_ipv6())) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4(Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 1 }))
            .write(&mut ip, b"how are you")
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6(Icmpv6Type::EchoRequest(etherparse::IcmpEchoHeader { id: 7, seq: 1 }))
            .write(&mut ip, b"how are you")
            .unwrap(),
        mixed => panic!("{mixed:?}"),
    }
    packet.extend(ip);
    packet
}

#[test]
fn the_host_behind_a_vip_is_asked_by_those_only_who_may_talk_to_a_service() {
    for v6 in [false, true] {
        let mut lab = guarded(Mode::Nat, false, v6);
        let prefix = if v6 { "2001:db8:c::/48" } else { "198.51.100.0/24" };
        assert_eq!(reason(&lab.tables, &echo(client(v6).ip())), Reason::OtherProtocol);
        lab.rule(HOST, prefix, Rule::Denied);
        assert_eq!(
            reason(&lab.tables, &echo(client(v6).ip())),
            Reason::OtherProtocol,
            "nobody says that they are the VIP's"
        );
        lab.tables.vip_rules.insert(vip(v6).into(), HOST);
        assert_eq!(reason(&lab.tables, &echo(client(v6).ip())), Reason::Denied);
        if !v6 {
            let mut frame = echo(client(v6).ip());
            fragment(&mut frame, 0, true);
            assert_eq!(reason(&lab.tables, &frame), Reason::Denied, "in fragments");
        }
    }
}

#[test]
fn echo_requests_come_at_a_rate_in_pieces_or_whole_and_neighbours_are_found_all_the_same() {
    for v6 in [false, true] {
        let mut lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        lab.tables.settings.message_interval = 1 << 20;
        let through =
            |frame: &[u8]| (0..1000).filter(|_| reason(&lab.tables, frame) != Reason::EchoSuppressed).count();
        assert_eq!(through(&echo(client(v6).ip())), 50);
        lab.tables.clock.set(lab.tables.clock.get() + (10 << 20));
        if v6 {
            assert_eq!(through(&echo(client(v6).ip())), 10);
        } else {
            let mut piece = echo(client(v6).ip());
            fragment(&mut piece, 8, true);
            assert_eq!(through(&piece), 10);
        }
        if v6 {
            // Behind an extension header it is one all the same.
            lab.tables.clock.set(lab.tables.clock.get() + (10 << 20));
            let mut behind = echo(client(v6).ip());
            behind[19] += 8;
            behind[20] = 60;
            behind.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
            assert_eq!(through(&behind), 10);
        }
        if v6 {
            let mut solicitation = echo(client(v6).ip());
            solicitation[54] = 135;
            assert_eq!(through(&solicitation), 1000, "without neighbour discovery there is no VIP");
        }
    }
}

#[test]
fn errors_about_a_denied_clients_flow_reach_no_backend_and_routers_need_not_be_allowed() {
    let mut lab = guarded(Mode::Nat, false, false);
    lab.rule(0, "198.51.100.0/24", Rule::Allowed);
    lab.rule(0, "192.0.2.0/24", Rule::Denied);
    lab.others(0);
    let error = |router: &str, about: &str| {
        let quoted = Packet::tcp(vip_of(false), from(about, 40_000)).ip();
        let IpAddr::V4(to) = vip(false) else { panic!() };
        let IpAddr::V4(router) = router.parse::<IpAddr>().unwrap() else { panic!() };
        let mut frame = Packet::udp(client(false), vip_of(false)).link(0x0800);
        let header = Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
        );
        let mut ip = Vec::new();
        PacketBuilder::ipv4(router.octets(), to.octets(), 64)
            .icmpv4(header)
            .write(&mut ip, &quoted[..28])
            .unwrap();
        frame.extend(ip);
        reason(&lab.tables, &frame)
    };
    assert_eq!(error("203.0.113.200", "198.51.100.1"), Reason::ErrorForwarded, "from a router on the way");
    assert_eq!(error("203.0.113.200", "192.0.2.1"), Reason::Denied, "it has no flow");
    assert_eq!(error("192.0.2.9", "198.51.100.1"), Reason::Denied, "whoever is denied is not believed");
    assert_eq!(error("127.0.0.1", "198.51.100.1"), Reason::Martian);
}

#[test]
fn new_connections_of_a_source_keep_to_their_rate_and_others_have_their_own() {
    for mode in MODES {
        let mut lab = guarded(mode, false, false);
        lab.rates().source_connections = Rate::per_second(10, 5);
        let syns = |address: &str, count: u16| {
            (0..count)
                .filter(|port| match pass(&lab.tables, &segment(from(address, 20_000 + port), true)) {
                    Reason::Forwarded => true,
                    Reason::SourceConnections => false,
                    other => panic!("{mode:?}: {other:?}"),
                })
                .count()
        };
        assert_eq!(syns("198.51.100.1", 100), 5, "{mode:?}");
        assert_eq!(syns("198.51.100.2", 100), 5, "{mode:?}: another source");
        lab.tables.clock.set(lab.tables.clock.get() + SECOND / 10);
        assert_eq!(syns("198.51.100.1", 100), 1, "{mode:?}: a tenth of a second later");
    }
}

#[test]
fn what_a_source_may_not_begin_takes_nothing_from_what_it_has_begun() {
    for mode in [Mode::Nat, Mode::DsrIpip] {
        let mut lab = guarded(mode, false, false);
        lab.rates().source_connections = Rate::per_second(1, 1);
        lab.rates().source_packets = Rate::per_second(10, 10);
        assert_eq!(pass(&lab.tables, &segment(client(false), true)), Reason::Forwarded);
        for _ in 0..1000 {
            assert_eq!(pass(&lab.tables, &segment(client(false), true)), Reason::SourceConnections);
        }
        for _ in 0..9 {
            assert_eq!(pass(&lab.tables, &segment(client(false), false)), Reason::Forwarded, "{mode:?}");
        }
    }
}

#[test]
fn a_source_is_as_large_as_the_service_says() {
    for (v6, prefix, [a, b, c]) in [
        (false, 96 + 24, ["198.51.100.1", "198.51.100.255", "198.51.101.1"]),
        (true, 64, ["2001:db8:c::1", "2001:db8:c:0:ffff::", "2001:db8:c:1::1"]),
    ] {
        let mut lab = guarded(Mode::DsrL2, false, v6);
        lab.rates().source_connections = Rate::per_second(1, 1);
        lab.rates().source_mask = bits(prefix);
        assert_eq!(pass(&lab.tables, &segment(from(a, 1000), true)), Reason::Forwarded);
        assert_eq!(pass(&lab.tables, &segment(from(b, 1000), true)), Reason::SourceConnections);
        assert_eq!(pass(&lab.tables, &segment(from(c, 1000), true)), Reason::Forwarded);
        assert_eq!(lab.tables.sources.borrow().len(), 2);
    }
}

#[test]
fn a_flood_of_new_connections_takes_nothing_from_those_that_are_there() {
    for mode in [Mode::Nat, Mode::DsrIpip] {
        let mut lab = guarded(mode, false, false);
        lab.rates().source_connections = Rate::per_second(1, 1);
        lab.rates().connections = Rate::per_second(100, 100);
        assert_eq!(pass(&lab.tables, &segment(client(false), true)), Reason::Forwarded);
        for n in 0..10_000_u32 {
            let flood = segment((std::net::Ipv4Addr::from_bits(0x0a00_0000 + n), 9).into(), true);
            let flooded = pass(&lab.tables, &flood);
            let expected = if n < 99 { Reason::Forwarded } else { Reason::ServiceConnections };
            assert_eq!(flooded, expected, "{mode:?} {n}");
            assert_eq!(pass(&lab.tables, &segment(client(false), false)), Reason::Forwarded, "{mode:?} {n}");
        }
        assert_eq!(
            lab.tables.sources.borrow().len(),
            100,
            "nobody is remembered whom the service has no room for"
        );
    }
}

#[test]
fn packets_keep_to_their_rates_of_a_source_and_of_the_service() {
    for (v6, udp) in KINDS {
        for mode in [Mode::Nat, Mode::DsrL2] {
            let mut lab = guarded(mode, udp, v6);
            lab.rates().source_packets = Rate::per_second(1000, 10);
            lab.rates().packets = Rate::per_second(1000, 25);
            let mut others = client(v6);
            let mut send = |of: u16| {
                others.set_ip(if v6 {
                    format!("2001:db8:c::{of}").parse().unwrap()
                } else {
                    format!("198.51.100.{of}").parse().unwrap()
                });
                let packet = Packet::of(udp, others, vip_of(v6));
                (0..50).map(|_| pass(&lab.tables, &packet)).collect::<Vec<_>>()
            };
            let count = |reasons: &[Reason], reason| reasons.iter().filter(|r| **r == reason).count();
            for source in 1..=2 {
                let reasons = send(source);
                assert_eq!(count(&reasons, Reason::Forwarded), 10, "{mode:?} {v6} {udp}");
                assert_eq!(count(&reasons, Reason::SourcePackets), 40, "{mode:?} {v6} {udp}");
            }
            let reasons = send(3);
            assert_eq!(
                count(&reasons, Reason::Forwarded),
                5,
                "who is beyond his own rate took nothing of theirs"
            );
            assert_eq!(count(&reasons, Reason::ServicePackets), 45);
        }
    }
}

#[test]
fn nobody_is_let_in() {
    for (v6, sources) in [
        (false, ["0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"].as_slice()),
        (true, ["::", "::1", "ff02::1", "ff05::2"].as_slice()),
    ] {
        for mode in MODES {
            for udp in [false, true] {
                let port = if matches!(mode, Mode::Nat | Mode::FullNat) { 8443 } else { 443 };
                let lab = Lab::new(mode, udp, v6, backend(v6, port));
                for source in sources {
                    let case = format!("{mode:?} {udp} {source}");
                    assert_eq!(pass(&lab.tables, &first(udp, from(source, 5000))), Reason::Martian, "{case}");
                    let mut packet = Packet::of(udp, from(source, 5000), vip_of(v6));
                    if let Some(header) = &mut packet.tcp {
                        (header.rst, header.ack) = (true, false);
                    }
                    assert_eq!(pass(&lab.tables, &packet), Reason::Martian, "{case}: a RST");
                    if !v6 {
                        let mut frame = first(udp, from(source, 5000)).frame();
                        fragment(&mut frame, 0, true);
                        assert_eq!(reason(&lab.tables, &frame), Reason::Martian, "{case}: a first fragment");
                    }
                    assert_eq!(
                        reason(&lab.tables, &echo(from(source, 0).ip())),
                        Reason::Martian,
                        "{case}: ICMP"
                    );
                }
                assert_eq!(pass(&lab.tables, &first(udp, vip_of(v6))), Reason::Land, "{mode:?} {udp}");
                let mut elsewhere = vip_of(v6);
                elsewhere.set_port(9);
                assert_eq!(pass(&lab.tables, &first(udp, elsewhere)), Reason::Land, "{mode:?} {udp}");
            }
        }
    }
}

#[test]
fn segments_are_asked_too_who_sent_them() {
    for lab in [Lab::new(Mode::DsrL2, false, false, backend(false, 443)), guarded(Mode::Nat, false, false)] {
        assert_eq!(pass(&lab.tables, &segment(from("127.0.0.1", 5000), false)), Reason::Martian);
        assert_eq!(pass(&lab.tables, &segment(vip_of(false), false)), Reason::Land);
    }
}

/// A service that answers what it cannot take with RSTs, and takes nothing.
fn refusing(v6: bool) -> Tables {
    let mut tables = Tables::new();
    tables.add_service(&ServiceSpec::tcp(vip(v6), 443, Mode::Nat));
    tables
}

#[test]
fn resets_come_at_a_rate() {
    for v6 in [false, true] {
        let mut tables = refusing(v6);
        tables.settings.message_interval = 1 << 20;
        let resets = |count: u16| {
            (0..count)
                .filter(|n| {
                    let mut from = client(v6);
                    from.set_port(10_000 + n);
                    match pass(&tables, &segment(from, n % 2 == 0)) {
                        Reason::Reset => true,
                        Reason::ResetSuppressed => false,
                        other => panic!("{other:?}"),
                    }
                })
                .count()
        };
        assert_eq!(resets(1000), 50);
        tables.clock.set(tables.clock.get() + (7 << 20));
        assert_eq!(resets(1000), 7);
    }
}

#[test]
fn nobody_and_many_are_never_answered() {
    for v6 in [false, true] {
        let tables = refusing(v6);
        for source in if v6 { ["ff02::1", "::1"] } else { ["224.0.0.1", "255.255.255.255"] } {
            let (verdict, _) = segment(from(source, 5000), false).through(&tables);
            assert_eq!(verdict.reason, Reason::Martian, "a RST to {source}");
        }
        let (verdict, _) = segment(vip_of(v6), false).through(&tables);
        assert_eq!(verdict.reason, Reason::Land);
        let everybody = [0xff; 6];
        let group = [0x01, 0, 0x5e, 0, 0, 1];
        for (source_mac, destination_mac) in
            [(lab::CLIENT_MAC, everybody), (lab::CLIENT_MAC, group), (group, Tables::MAC)]
        {
            let packet = Packet { source_mac, destination_mac, ..segment(client(v6), true) };
            assert_eq!(pass(&tables, &packet), Reason::Martian, "in a frame to or from many");
        }
        assert_eq!(pass(&tables, &segment(client(v6), true)), Reason::Reset);
    }
}

#[test]
fn the_host_gets_what_is_for_no_vip_whoever_sent_it() {
    let lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let mut packet = segment(from("224.0.0.1", 5000), true);
    packet.to = from("203.0.113.99", 443);
    assert_eq!(pass(&lab.tables, &packet), Reason::NotOurs);
    assert!(!lab.tables.vips.contains_key(&VipKey::new(packet.to.ip(), 443, IPPROTO_TCP)));
    assert!(!lab.tables.vips.contains_key(&VipKey::new(vip(false), 443, IPPROTO_UDP)));
}

#[test]
fn an_icmp_header_is_where_the_tests_think() {
    let (four, six) = (echo(client(false).ip()), echo(client(true).ip()));
    assert_eq!((four[34], six[54]), (8, 128));
    assert!(Icmpv4Header::from_slice(&four[34..]).is_ok() && Icmpv6Header::from_slice(&six[54..]).is_ok());
}
