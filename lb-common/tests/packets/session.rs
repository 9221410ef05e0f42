//! `full-nat`, packet by packet.

use etherparse::TcpHeader;
use lb_common::abi::{Fault, FlowKey, HANDSHAKE_TICKS, Life, Mode, OnEmpty, Service, Split, TCP_IDLE_TICKS};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::measure::Measure;
use lb_common::pipeline::Route;
use lb_common::session::CLOSED_TICKS;
use lb_common::verdict::{Event, Reason, Verdict};
use lb_common::wire::Mac;
use std::mem::offset_of;
use std::net::SocketAddr;

use crate::fragments::pieces;
use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, reason, send, vip};

pub const ISN: u32 = 1_000;
pub const DRAWN: u32 = 0xffff_fff0;

pub fn service(v6: bool) -> SocketAddr {
    (vip(v6), 443).into()
}

pub fn source(v6: bool, port: u16) -> SocketAddr {
    (if v6 { Tables::SOURCE_V6 } else { Tables::SOURCE_V4 }, port).into()
}

pub fn lab(udp: bool, v6: bool) -> Lab {
    Lab::new(Mode::FullNat, udp, v6, backend(v6, 8443))
}

/// A segment with these flags and numbers.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: &str, sequence: u32, acknowledged: u32) -> Packet {
    let mut packet = Packet::tcp(from, to);
    let header = packet.tcp.as_mut().unwrap();
    let has = |flag| flags.contains(flag);
    (header.syn, header.ack, header.fin, header.rst) = (has('S'), has('A'), has('F'), has('R'));
    (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledged);
    packet
}

/// Sends it; the port that stands for the client.
pub fn port_of(lab: &Lab, packet: &Packet) -> (Verdict, u16) {
    let (verdict, frame) = packet.through(&lab.tables);
    let l4 = 14 + packet.tags.len() * 4 + if packet.from.is_ipv6() { 40 } else { 20 + packet.options.len() };
    (verdict, u16::from_be_bytes([frame[l4], frame[l4 + 1]]))
}

/// A connection of `client` whose handshake is over: the port that stands for it.
pub fn connect(lab: &Lab, client: SocketAddr) -> u16 {
    let v6 = client.is_ipv6();
    let (verdict, port) = port_of(lab, &segment(client, service(v6), "S", ISN, 0));
    assert_eq!(verdict.reason, Reason::Forwarded);
    let answer = segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1);
    assert_eq!(answer.through(&lab.tables).0.reason, Reason::Replied);
    let last = segment(client, service(v6), "A", ISN + 1, DRAWN.wrapping_add(1));
    assert_eq!(last.through(&lab.tables).0.reason, Reason::Forwarded);
    port
}

/// The backend's next segment reaches the client that `port` stands for.
fn answers(lab: &Lab, v6: bool, port: u16) {
    let reply = segment(backend(v6, 8443), source(v6, port), "A", DRAWN.wrapping_add(1), ISN + 9);
    let expected =
        Packet { from: service(v6), to: client(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
    reply.becomes(&lab.tables, Reason::Replied, &expected);
}

pub fn held(lab: &Lab) -> (usize, usize) {
    (lab.tables.opening.borrow().len(), lab.tables.sessions.borrow().len())
}

#[test]
fn a_request_gets_both_ends_anew_and_its_reply_gets_them_back() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            let lab = lab(udp, v6);
            let first = if udp {
                Packet::udp(client(v6), service(v6))
            } else {
                segment(client(v6), service(v6), "S", ISN, 0)
            };
            let first = Packet { tags, tos: 0xb9, ..first };
            let (verdict, port) = port_of(&lab, &first);
            assert!((1024..=32_767).contains(&port), "{port}");
            assert_eq!(verdict.account.begins, 1);
            let expected =
                Packet { from: source(v6, port), to: backend(v6, 8443), hops: 63, ..first.clone() }
                    .sent(lab.mac);
            // The same packet again is the same flow, and no new one.
            first.becomes(&lab.tables, Reason::Forwarded, &expected);
            assert_eq!(first.through(&lab.tables).0.account.begins, 0);

            let reply = Packet {
                tags,
                ..if udp {
                    Packet::udp(backend(v6, 8443), source(v6, port))
                } else {
                    segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1)
                }
            };
            let expected =
                Packet { from: service(v6), to: client(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
            reply.becomes(&lab.tables, Reason::Replied, &expected);
            assert_eq!(held(&lab), (2, 0));
        }
    }
}

#[test]
fn a_session_is_established_by_whoever_gets_the_backends_packets() {
    for v6 in [false, true] {
        let lab = lab(false, v6);
        let (_, port) = port_of(&lab, &segment(client(v6), service(v6), "S", ISN, 0));
        // Not before the backend has answered, and not by a guess.
        let guess = segment(client(v6), service(v6), "A", ISN + 1, 7_000_000);
        assert_eq!(guess.through(&lab.tables).0.reason, Reason::Forwarded);
        segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
        assert_eq!(guess.through(&lab.tables).0.reason, Reason::Forwarded);
        assert_eq!(held(&lab), (2, 0));
        segment(client(v6), service(v6), "A", ISN + 1, DRAWN.wrapping_add(1)).through(&lab.tables);
        assert_eq!(held(&lab), (0, 2));
        assert_eq!(lab.tables.count(Event::SessionEstablished), 1);
        // And goes on both ways.
        let data = segment(client(v6), service(v6), "A", ISN + 9, DRAWN.wrapping_add(1));
        let expected =
            Packet { from: source(v6, port), to: backend(v6, 8443), hops: 63, ..data.clone() }.sent(lab.mac);
        data.becomes(&lab.tables, Reason::Forwarded, &expected);
        answers(&lab, v6, port);
    }
}

#[test]
fn a_backend_of_a_nat_service_too_answers_sessions() {
    for v6 in [false, true] {
        let mut lab = lab(false, v6);
        let nat = lab.tables.add_service(&ServiceSpec::tcp(vip(v6), 80, Mode::Nat));
        lab.tables.add_pool(nat, false, &[(backend(v6, 8080), 1)]);
        let port = connect(&lab, client(v6));
        answers(&lab, v6, port);
    }
}

#[test]
fn a_reply_of_nat_to_an_address_like_a_stand_ins_reaches_its_client() {
    for v6 in [false, true] {
        let mut lab = lab(false, v6);
        let nat = lab.tables.add_service(&ServiceSpec::tcp(vip(v6), 80, Mode::Nat));
        lab.tables.add_pool(nat, false, &[(backend(v6, 8080), 1)]);
        // The filter takes other addresses for this one, now and then.
        let reply = segment(backend(v6, 8080), source(v6, 2000), "A", 1, 1);
        let expected = Packet { from: (vip(v6), 80).into(), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
        reply.becomes(&lab.tables, Reason::Replied, &expected);
    }
}

#[test]
fn a_udp_flow_is_established_when_it_talks_again_after_an_answer() {
    for v6 in [false, true] {
        let lab = lab(true, v6);
        let request = Packet::udp(client(v6), service(v6));
        let (_, port) = port_of(&lab, &request);
        request.through(&lab.tables);
        assert_eq!(held(&lab), (2, 0));
        Packet::udp(backend(v6, 8443), source(v6, port)).through(&lab.tables);
        assert_eq!(held(&lab), (2, 0));
        assert_eq!(port_of(&lab, &request).1, port);
        assert_eq!(held(&lab), (0, 2));
        assert_eq!(port_of(&lab, &request).1, port);
    }
}

#[test]
fn a_udp_flow_that_was_silent_for_long_begins_anew_whether_the_agent_lives_or_not() {
    for v6 in [false, true] {
        let mut lab = lab(true, v6);
        let request = Packet::udp(client(v6), service(v6));
        let (_, port) = port_of(&lab, &request);
        let reply = Packet::udp(backend(v6, 8443), source(v6, port));
        reply.through(&lab.tables);
        request.through(&lab.tables);
        assert_eq!(held(&lab), (0, 2));
        let pool = lab.tables.services[0].stable_pool;
        let address = (backend(v6, 0).ip(), 9443).into();
        let other = lab.tables.add_backend(lab.service, pool, address);
        for slot in &lab.tables.slots {
            slot.set(lb_common::abi::Slot::of(other, other, 0));
        }
        // Who hears something is not silent.
        let idle = lab.tables.settings.udp_idle;
        for _ in 0..3 {
            lab.tables.advance(idle);
            reply.ends(&lab.tables, Reason::Replied);
        }
        assert_eq!(port_of(&lab, &request).0.account.backend, lab.id);
        lab.tables.advance(idle + 1);
        assert_eq!(port_of(&lab, &request).0.account.backend, other);
        assert_eq!(held(&lab), (2, 0));
    }
}

#[test]
fn an_established_session_keeps_its_backend_whatever_the_tables_say() {
    let mut lab = lab(false, false);
    let port = connect(&lab, client(false));
    let pool = lab.tables.services[0].stable_pool;
    let other = lab.tables.add_backend(lab.service, pool, "10.0.1.12:8443".parse().unwrap());
    for slot in &lab.tables.slots {
        slot.set(lb_common::abi::Slot::of(other, other, 0));
    }
    let data = segment(client(false), service(false), "A", ISN + 1, 1);
    let (verdict, now) = port_of(&lab, &data);
    assert_eq!((verdict.account.backend, now), (lab.id, port));
    // A flow that begins goes by the new table.
    let mut second = client(false);
    second.set_port(40_001);
    assert_eq!(port_of(&lab, &segment(second, service(false), "S", 5, 0)).0.account.backend, other);
    // Without its backend the session is void: its client learns it at once.
    lab.tables.backends[usize::from(lab.id)].life = Life::of(2, true).0;
    data.ends(&lab.tables, Reason::NoSessionReset);
    assert_eq!(held(&lab), (2, 0), "what is left is the second flow");
}

#[test]
fn a_flood_of_spoofed_syns_pushes_out_no_established_session() {
    let mut lab = lab(false, false);
    lab.tables.opening = std::cell::RefCell::new(lb_common::host::Lru::new(64));
    connect(&lab, client(false));
    for n in 0..5_000u32 {
        let from = SocketAddr::from(([100, 64, (n >> 8) as u8, n as u8], 1_000));
        let (verdict, _) = segment(from, service(false), "S", n, 0).through(&lab.tables);
        assert_eq!(verdict.reason, Reason::Forwarded);
        // Nor does a spoofed acknowledgement get in.
        segment(from, service(false), "A", n + 1, n).through(&lab.tables);
    }
    assert_eq!(held(&lab), (64, 2));
    segment(client(false), service(false), "A", ISN + 1, 1).ends(&lab.tables, Reason::Forwarded);
}

#[test]
fn a_full_table_lets_sessions_go_on_less_safely() {
    let mut lab = lab(false, false);
    lab.tables.session_room = 3;
    connect(&lab, client(false));
    let mut second = client(false);
    second.set_port(40_001);
    let port = connect(&lab, second);
    assert_eq!((held(&lab), lab.tables.count(Event::SessionsFull)), ((2, 2), 1));
    let reply = segment(backend(false, 8443), source(false, port), "A", DRAWN.wrapping_add(1), ISN + 1);
    reply.ends(&lab.tables, Reason::Replied);
    lab.tables.session_room = 4;
    segment(second, service(false), "A", ISN + 1, DRAWN.wrapping_add(1)).ends(&lab.tables, Reason::Forwarded);
    assert_eq!(held(&lab), (0, 4));
}

#[test]
fn a_syn_ends_nothing_that_lives_and_replaces_what_is_closed() {
    let lab = lab(false, false);
    let port = connect(&lab, client(false));
    let again = segment(client(false), service(false), "S", ISN + 5_000, 0);
    // To the backend, which answers by what it expects.
    let (verdict, same) = port_of(&lab, &again);
    assert_eq!((verdict.reason, same, verdict.account.begins), (Reason::Forwarded, port, 0));
    // One FIN does not close, both do.
    segment(client(false), service(false), "FA", ISN + 1, 1).ends(&lab.tables, Reason::Forwarded);
    assert_eq!(port_of(&lab, &again).1, port);
    segment(backend(false, 8443), source(false, port), "FA", DRAWN, 1).ends(&lab.tables, Reason::Replied);
    // The last acknowledgement still finds its way, and so does the first SYN if it comes twice.
    assert_eq!(port_of(&lab, &segment(client(false), service(false), "A", ISN + 2, 2)).1, port);
    assert_eq!(port_of(&lab, &segment(client(false), service(false), "S", ISN, 0)).0.account.begins, 0);
    let (verdict, other) = port_of(&lab, &again);
    assert!(verdict.account.begins == 1 && other != port, "{other}");
    assert_eq!(held(&lab), (2, 0));
    // What is left of the old one goes nowhere.
    segment(backend(false, 8443), source(false, port), "A", DRAWN, 1).ends(&lab.tables, Reason::NotOurs);
}

#[test]
fn a_reset_closes_until_somebody_goes_on() {
    let lab = lab(false, false);
    let port = connect(&lab, client(false));
    let again = segment(client(false), service(false), "S", ISN + 5_000, 0);
    // A spoofed one: the client knows nothing of it.
    segment(client(false), service(false), "R", 1, 0).ends(&lab.tables, Reason::Forwarded);
    segment(client(false), service(false), "A", ISN + 1, 1).ends(&lab.tables, Reason::Forwarded);
    assert_eq!(port_of(&lab, &again).1, port);
    segment(backend(false, 8443), source(false, port), "R", 1, 0).ends(&lab.tables, Reason::Replied);
    assert_ne!(port_of(&lab, &again).1, port);
}

#[test]
fn a_refused_connection_gives_its_port_back() {
    for v6 in [false, true] {
        let mut lab = lab(false, v6);
        lab.tables.settings.source_ports = [5000, 5000];
        let (_, port) = port_of(&lab, &segment(client(v6), service(v6), "S", ISN, 0));
        let rst = segment(backend(v6, 8443), source(v6, port), "RA", 0, ISN + 1);
        rst.ends(&lab.tables, Reason::Replied);
        let mut other = client(v6);
        other.set_port(40_001);
        let syn = segment(other, service(v6), "S", 1, 0);
        syn.ends(&lab.tables, Reason::NoPortReset);
        lab.tables.advance(3);
        syn.ends(&lab.tables, Reason::Forwarded);
        assert_eq!(held(&lab), (2, 0));
    }
}

#[test]
fn a_repeated_syn_keeps_port_and_backend_and_another_one_begins_anew() {
    let lab = lab(false, false);
    let syn = segment(client(false), service(false), "S", ISN, 0);
    let (_, port) = port_of(&lab, &syn);
    assert_eq!(port_of(&lab, &syn).1, port);
    let (verdict, other) = port_of(&lab, &segment(client(false), service(false), "S", ISN + 1, 0));
    assert!(verdict.account.begins == 1 && other != port);
    assert_eq!(held(&lab), (2, 0));
}

#[test]
fn a_cap_sends_sessions_past_the_canary_and_counts_each_once() {
    let mut lab = lab(false, false);
    let canary = lab.tables.add_pool(lab.service, true, &[("10.0.2.1:8443".parse().unwrap(), 1)])[0];
    let capped = &mut lab.tables.services[lab.service as usize];
    capped.flags |= Service::CAPPED;
    capped.split = Split::of(Split::ALL, 0).0;
    // One in a year: the first one.
    let word = (usize::from(capped.measure) * size_of::<Measure>() + offset_of!(Measure, cap_interval)) / 8;
    lab.tables.measures.borrow_mut()[word] = 1 << 55;
    let syn = |port: u16| segment((client(false).ip(), port).into(), service(false), "S", ISN, 0);
    assert_eq!(port_of(&lab, &syn(1)).0.account.backend, canary);
    let (elsewhere, port) = port_of(&lab, &syn(2));
    assert_eq!((elsewhere.reason, elsewhere.account.backend), (Reason::Forwarded, lab.id));
    // A SYN that comes again is the same session.
    assert_eq!(port_of(&lab, &syn(2)).1, port);
    assert_eq!(lab.tables.count(Event::Capped), 1);
}

#[test]
fn a_fault_strikes_before_a_backend_hears_of_it() {
    let mut lab = lab(false, false);
    lab.tables.services[lab.service as usize].flags |= Service::FAULTS;
    let until = lab.tables.clock.get() + (1 << 30);
    let fault =
        Fault { until, share: Split::ALL, service: lab.service, action: Fault::RESET, ..Fault::default() };
    lab.tables.faults[0] = fault;
    let syn = segment(client(false), service(false), "S", ISN, 0);
    assert_eq!(syn.through(&lab.tables).0.reason, Reason::FaultReset);
    lab.tables.faults[0] = Fault { action: Fault::DROP, ..fault };
    assert_eq!(syn.through(&lab.tables).0.reason, Reason::FaultDrop);
    assert_eq!(held(&lab).1, 0);
    // Who is established stays so.
    lab.tables.faults[0] = Fault::default();
    connect(&lab, client(false));
    lab.tables.faults[0] = fault;
    let data = segment(client(false), service(false), "A", ISN + 1, DRAWN.wrapping_add(1));
    assert_eq!(data.through(&lab.tables).0.reason, Reason::Forwarded);
}

#[test]
fn a_repeated_syn_does_not_enter_a_canary_that_was_rolled_back() {
    let mut lab = lab(false, false);
    let canary = lab.tables.add_pool(lab.service, true, &[("10.0.2.1:8443".parse().unwrap(), 1)])[0];
    lab.tables.set_split(lab.service, u32::MAX);
    let syn = segment(client(false), service(false), "S", ISN, 0);
    assert_eq!(port_of(&lab, &syn).0.account.backend, canary);
    lab.tables.services[0].split = 0;
    assert_eq!(port_of(&lab, &syn).0.account.backend, lab.id);
}

#[test]
fn whoever_has_no_session_is_told_as_the_service_says() {
    for (on_empty, reason) in [
        (OnEmpty::Reset, Reason::NoSessionReset),
        (OnEmpty::Drop, Reason::NoSession),
        (OnEmpty::Pass, Reason::NoSession),
    ] {
        let spec = ServiceSpec { on_empty, ..ServiceSpec::tcp(vip(false), 443, Mode::FullNat) };
        let lab = Lab::of(&spec, backend(false, 8443));
        segment(client(false), service(false), "A", 1, 1).ends(&lab.tables, reason);
        // A RST is never answered.
        segment(client(false), service(false), "R", 1, 1).ends(&lab.tables, Reason::NoSession);
    }
}

#[test]
fn what_comes_to_the_hosts_own_ports_is_the_hosts() {
    let lab = lab(false, false);
    for port in [22, 443, 1023, 1024, 30_000, 32_767, 32_768, 65_535] {
        segment(backend(false, 8443), source(false, port), "SA", 1, 1).ends(&lab.tables, Reason::NotOurs);
    }
}

#[test]
fn ports_run_out_are_counted_and_come_back_when_sessions_are_over() {
    for (on_empty, reason) in [(OnEmpty::Reset, Reason::NoPortReset), (OnEmpty::Drop, Reason::NoPort)] {
        let spec = ServiceSpec { on_empty, ..ServiceSpec::tcp(vip(false), 443, Mode::FullNat) };
        let mut lab = Lab::of(&spec, backend(false, 8443));
        lab.tables.settings.source_ports = [5000, 5007];
        let from = |n: u16| {
            let mut from = client(false);
            from.set_port(50_000 + n);
            from
        };
        let mut ports: Vec<u16> = (0..8).map(|n| connect(&lab, from(n))).collect();
        ports.sort_unstable();
        assert_eq!(ports, (5000..5008).collect::<Vec<_>>());
        let ninth = segment(from(8), service(false), "S", 1, 0);
        ninth.ends(&lab.tables, reason);
        // Another backend has ports of its own.
        let pool = lab.tables.services[0].stable_pool;
        let other = lab.tables.add_backend(lab.service, pool, "10.0.1.12:8443".parse().unwrap());
        for slot in &lab.tables.slots {
            slot.set(lb_common::abi::Slot::of(other, other, 0));
        }
        ninth.ends(&lab.tables, Reason::Forwarded);
        for slot in &lab.tables.slots {
            slot.set(lb_common::abi::Slot::of(lab.id, lab.id, 0));
        }
        let tenth = segment(from(9), service(false), "S", 1, 0);
        tenth.ends(&lab.tables, reason);
        // A closed session gives its port away, without an agent, when a backend has forgotten it.
        segment(from(0), service(false), "R", 1, 0).ends(&lab.tables, Reason::Forwarded);
        lab.tables.advance(CLOSED_TICKS + 2);
        tenth.ends(&lab.tables, reason);
        lab.tables.advance(1);
        tenth.ends(&lab.tables, Reason::Forwarded);
        segment(from(0), service(false), "A", ISN + 1, 1).through(&lab.tables);
        // Silent ones do so after hours.
        lab.tables.advance(TCP_IDLE_TICKS + 2);
        segment(from(10), service(false), "S", 1, 0).ends(&lab.tables, Reason::Forwarded);
    }
}

#[test]
fn a_handshake_that_nobody_ends_gives_its_port_back() {
    let mut lab = lab(false, false);
    lab.tables.settings.source_ports = [5000, 5000];
    segment(client(false), service(false), "S", ISN, 0).ends(&lab.tables, Reason::Forwarded);
    let mut second = client(false);
    second.set_port(40_001);
    let syn = segment(second, service(false), "S", 7, 0);
    syn.ends(&lab.tables, Reason::NoPortReset);
    lab.tables.advance(HANDSHAKE_TICKS + 3);
    syn.ends(&lab.tables, Reason::Forwarded);
    assert_eq!(held(&lab), (2, 0));
}

#[test]
fn a_configured_address_stands_for_clients_instead_of_the_interfaces() {
    let mut lab = lab(false, false);
    lab.tables.settings.sources[0] = "192.0.2.1".parse::<std::net::Ipv4Addr>().unwrap().into();
    lab.tables.settings.sources[1] = "192.0.2.2".parse::<std::net::Ipv4Addr>().unwrap().into();
    lab.tables.settings.sources_v4 = 2;
    let mut seen = [0; 2];
    for n in 0..200 {
        let mut from = client(false);
        from.set_port(1_000 + n);
        let (_, frame) = segment(from, service(false), "S", 1, 0).through(&lab.tables);
        assert_eq!(frame[26..29], [192, 0, 2]);
        seen[usize::from(frame[29]) - 1] += 1;
    }
    assert!(seen.iter().all(|n| *n > 60), "{seen:?}");
    // Without any, nobody can stand for it.
    lab.tables.settings.sources_v4 = 0;
    lab.tables.backends[usize::from(lab.id)].source = Default::default();
    segment(client(false), service(false), "S", 1, 0).ends(&lab.tables, Reason::NoPortReset);
}

#[test]
fn the_route_of_a_reply_is_asked_for_once_a_tick() {
    let mut lab = lab(false, false);
    let port = connect(&lab, client(false));
    let reply = segment(backend(false, 8443), source(false, port), "A", 1, 1);
    let out = Route::Out { ifindex: 9, source: [2, 9, 9, 9, 9, 9], destination: [2, 8, 8, 8, 8, 8] };
    lab.tables.advance(1);
    reply.ends(&lab.tables, Reason::Replied);
    lab.tables.routes.insert(client(false).ip().into(), out);
    assert_eq!(reply.through(&lab.tables).0.ifindex, Tables::IFINDEX);
    lab.tables.advance(1);
    let (verdict, frame) = reply.through(&lab.tables);
    assert_eq!((verdict.reason, verdict.ifindex), (Reason::Replied, 9));
    let expected = Packet {
        source_mac: [2, 9, 9, 9, 9, 9],
        destination_mac: [2, 8, 8, 8, 8, 8],
        from: service(false),
        to: client(false),
        hops: 63,
        ..reply.clone()
    };
    assert_eq!(frame, expected.frame());
    // A longer packet asks for itself: the route may not take it.
    lab.tables.routes.insert(client(false).ip().into(), Route::TooBig);
    reply.ends(&lab.tables, Reason::Replied);
    Packet { payload: vec![0; 100], ..reply.clone() }.ends(&lab.tables, Reason::TooBig);
    for (route, reason) in [
        (Route::Local, Reason::Local),
        (Route::ForwardingOff, Reason::NoRoute),
        (Route::None, Reason::NoRoute),
    ] {
        lab.tables.advance(1);
        lab.tables.routes.insert(client(false).ip().into(), route);
        reply.ends(&lab.tables, reason);
    }
    // The host finds the neighbour.
    lab.tables.routes.insert(client(false).ip().into(), Route::Unresolved);
    let (verdict, frame) = reply.through(&lab.tables);
    assert_eq!(verdict.reason, Reason::RepliedByHost);
    assert_eq!(frame, Packet { from: service(false), to: client(false), hops: 63, ..reply }.frame());
}

#[test]
fn a_service_of_all_ports_keeps_them() {
    for v6 in [false, true] {
        let lab = Lab::of(&ServiceSpec::tcp(vip(v6), 0, Mode::FullNat), backend(v6, 0));
        for number in [1, 443, 65_535] {
            let to: SocketAddr = (vip(v6), number).into();
            let syn = segment(client(v6), to, "S", ISN, 0);
            let (_, port) = port_of(&lab, &syn);
            let expected =
                Packet { from: source(v6, port), to: backend(v6, number), hops: 63, ..syn.clone() }
                    .sent(lab.mac);
            syn.becomes(&lab.tables, Reason::Forwarded, &expected);
            let reply = segment(backend(v6, number), source(v6, port), "SA", DRAWN, ISN + 1);
            let expected =
                Packet { from: to, to: client(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
            reply.becomes(&lab.tables, Reason::Replied, &expected);
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let lab = lab(true, false);
    let request = Packet { no_checksum: true, ..Packet::udp(client(false), service(false)) };
    let (_, port) = port_of(&lab, &request);
    let expected =
        Packet { from: source(false, port), to: backend(false, 8443), hops: 63, ..request.clone() };
    request.becomes(&lab.tables, Reason::Forwarded, &expected.sent(lab.mac));
}

#[test]
fn the_last_hop_is_not_taken() {
    for (v6, udp) in KINDS {
        let lab = lab(udp, v6);
        let first = if udp {
            Packet::udp(client(v6), service(v6))
        } else {
            segment(client(v6), service(v6), "S", 1, 0)
        };
        for hops in [0, 1] {
            Packet { hops, ..first.clone() }.ends(&lab.tables, Reason::TtlExpired);
        }
    }
}

/// The option as it should be, and what it does to a packet.
fn told(packet: &Packet, mac: Mac, port: u16) -> Packet {
    let v6 = packet.from.is_ipv6();
    let mut option = vec![254, if v6 { 20 } else { 8 }];
    option.extend(packet.from.port().to_be_bytes());
    match packet.from.ip() {
        std::net::IpAddr::V4(v4) => option.extend(v4.octets()),
        std::net::IpAddr::V6(v6) => option.extend(v6.octets()),
    }
    let mut header: TcpHeader = packet.tcp.clone().unwrap();
    option.extend(header.options.as_slice());
    header.set_options_raw(&option).unwrap();
    Packet { tcp: Some(header), from: source(v6, port), to: backend(v6, 8443), hops: 63, ..packet.clone() }
        .sent(mac)
}

pub fn telling(v6: bool) -> Lab {
    let spec = ServiceSpec { flags: Service::TOA, ..ServiceSpec::tcp(vip(v6), 443, Mode::FullNat) };
    Lab::of(&spec, backend(v6, 8443))
}

#[test]
fn the_client_is_told_of_in_the_segments_that_may_end_the_handshake() {
    for v6 in [false, true] {
        for tags in TAGS {
            let lab = telling(v6);
            let syn = Packet { tags, ..segment(client(v6), service(v6), "S", ISN, 0) };
            let (_, port) = port_of(&lab, &syn);
            let plain = Packet { from: source(v6, port), to: backend(v6, 8443), hops: 63, ..syn.clone() };
            syn.becomes(&lab.tables, Reason::Forwarded, &plain.sent(lab.mac));
            segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
            // The handshake's end, with options of its own; then the first data, twice.
            let mut last =
                Packet { tags, ..segment(client(v6), service(v6), "A", ISN + 1, DRAWN.wrapping_add(1)) };
            last.tcp.as_mut().unwrap().set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
            last.becomes(&lab.tables, Reason::Forwarded, &told(&last, lab.mac, port));
            assert_eq!(held(&lab), (0, 2));
            let data = Packet { payload: vec![7; 33], ..last.clone() };
            for _ in 0..2 {
                data.becomes(&lab.tables, Reason::Forwarded, &told(&data, lab.mac, port));
            }
            // What follows needs it no more.
            let next = Packet { tags, ..segment(client(v6), service(v6), "A", ISN + 34, 1) };
            let plain = Packet { from: source(v6, port), to: backend(v6, 8443), hops: 63, ..next.clone() };
            next.becomes(&lab.tables, Reason::Forwarded, &plain.sent(lab.mac));
        }
    }
}

#[test]
fn nobody_is_accepted_without_being_told_of() {
    let mut lab = telling(false);
    let (_, port) = port_of(&lab, &segment(client(false), service(false), "S", ISN, 0));
    segment(backend(false, 8443), source(false, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
    // There is no room in the header, or in the packet: an option of the client's own would be believed.
    let mut last = segment(client(false), service(false), "A", ISN + 1, DRAWN.wrapping_add(1));
    last.tcp.as_mut().unwrap().set_options_raw(&[1; 36]).unwrap();
    last.ends(&lab.tables, Reason::TooBig);
    let mut last = segment(client(false), service(false), "A", ISN + 1, DRAWN.wrapping_add(1));
    lab.tables.devices[0].mtu = last.ip().len() as u16 + 7;
    last.ends(&lab.tables, Reason::TooBig);
    assert_eq!(held(&lab), (2, 0));
    lab.tables.devices[0].mtu += 1;
    last.ends(&lab.tables, Reason::Forwarded);
    assert_eq!(held(&lab), (0, 2));
    // Once it is accepted, a segment that has no room goes without.
    last.payload.push(0);
    let plain = Packet { from: source(false, port), to: backend(false, 8443), hops: 63, ..last.clone() };
    last.becomes(&lab.tables, Reason::Forwarded, &plain.sent(lab.mac));
}

#[test]
fn a_client_cannot_tell_its_backend_of_anybody() {
    // The handshake's end proves the client to the balancer, and is then lost: any later segment may end it at the backend.
    for v6 in [false, true] {
        let lab = telling(v6);
        let (_, port) = port_of(&lab, &segment(client(v6), service(v6), "S", ISN, 0));
        segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
        let acknowledged = DRAWN.wrapping_add(1);
        let last = segment(client(v6), service(v6), "A", ISN + 1, acknowledged);
        claim_nothing(&lab, &last);
        assert_eq!(held(&lab), (2, 0));
        last.ends(&lab.tables, Reason::Forwarded);
        assert_eq!(held(&lab), (0, 2));
        claim_nothing(&lab, &last);
        let later = segment(client(v6), service(v6), "A", ISN + 2, acknowledged);
        claim_nothing(&lab, &later);
        // Bytes that only look like it: within another option, behind the last one, or another experiment with the number.
        for options in
            [[30, 6, 254, 8, 1, 2, 1, 1], [1, 1, 1, 0, 254, 8, 1, 1], [254, 4, 0xf9, 0x89, 1, 1, 1, 1]]
        {
            with(&later, &options).ends(&lab.tables, Reason::Forwarded);
        }
        // A SYN may be all that it takes (RFC 7413).
        let mut another = client(v6);
        another.set_port(9);
        claim_nothing(&lab, &segment(another, service(v6), "S", ISN, 0));
        // A first fragment that does not show all of its header may have one in the next.
        let mut fragments = pieces(&with(&later, &[1; 40]), 7);
        assert_eq!(reason(&lab.tables, &fragments[0]), Reason::ForgedAddress);
        fragments = pieces(&Packet { payload: vec![7; 60], ..with(&later, &[1; 28]) }, 8);
        assert_eq!(reason(&lab.tables, &fragments[0]), Reason::FragmentForwarded);
        // What pads a short frame is none of its options.
        if !v6 {
            let mut short = fragments.swap_remove(0);
            short[16..18].copy_from_slice(&44_u16.to_be_bytes());
            short.truncate(58);
            short.extend([0, 0]);
            assert_eq!(reason(&lab.tables, &short), Reason::ForgedAddress);
        }
    }
}

fn with(segment: &Packet, options: &[u8]) -> Packet {
    let mut segment = segment.clone();
    segment.tcp.as_mut().unwrap().set_options_raw(options).unwrap();
    segment
}

/// Neither in front, nor behind options of one byte or a longer one.
fn claim_nothing(lab: &Lab, honest: &Packet) {
    let claim = [254, 8, 0, 80, 10, 9, 9, 9];
    with(honest, &claim).ends(&lab.tables, Reason::ForgedAddress);
    for before in (4..=32).step_by(4) {
        let nothing = vec![1; usize::from(before)];
        let mut other = vec![30; usize::from(before)];
        other[1] = before;
        for options in [nothing, other] {
            with(honest, &[&options[..], &claim].concat()).ends(&lab.tables, Reason::ForgedAddress);
        }
    }
}

#[test]
fn a_frame_without_room_for_the_option_is_dropped() {
    let lab = telling(false);
    let (_, port) = port_of(&lab, &segment(client(false), service(false), "S", ISN, 0));
    segment(backend(false, 8443), source(false, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
    let last = segment(client(false), service(false), "A", ISN + 1, DRAWN.wrapping_add(1));
    let mut frame = lb_common::host::Frame::with_headroom(&last.frame(), Tables::IFINDEX, 7);
    assert_eq!(lb_common::pipeline::process(&mut frame, &lab.tables).reason, Reason::NoHeadroom);
}

#[test]
fn nothing_of_a_session_is_noted_beside_it() {
    let lab = lab(false, false);
    connect(&lab, client(false));
    let key = FlowKey {
        client: client(false).ip().into(),
        client_port: lb_common::abi::Port::new(client(false).port()),
        port: lb_common::abi::Port::new(443),
        owner: lab.service,
    };
    assert!(lab.tables.flows.borrow().peek(&key).is_none() && lab.tables.half_open.borrow().is_empty());
    let frame = segment(client(false), service(false), "A", 1, 1).frame();
    assert_eq!(send(&lab.tables, &frame).0.reason, Reason::Forwarded);
}

#[test]
fn a_backend_of_a_nat_service_can_have_sessions_of_a_preview_too() {
    for (v6, udp) in KINDS {
        let mut lab = lab(udp, v6);
        let protocol = if udp { lb_common::wire::IPPROTO_UDP } else { lb_common::wire::IPPROTO_TCP };
        let main: SocketAddr = (vip(v6), 80).into();
        let nat =
            lab.tables.add_service(&ServiceSpec { protocol, ..ServiceSpec::tcp(vip(v6), 80, Mode::Nat) });
        lab.tables.add_pool(nat, false, &[(backend(v6, 8443), 1)]);
        lab.tables.routes.insert(source(v6, 0).ip().into(), Route::Local);

        let first = if udp {
            Packet::udp(client(v6), service(v6))
        } else {
            segment(client(v6), service(v6), "S", ISN, 0)
        };
        let (verdict, port) = port_of(&lab, &first);
        assert_eq!(verdict.reason, Reason::Forwarded);
        let reply = if udp {
            Packet::udp(backend(v6, 8443), source(v6, port))
        } else {
            segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1)
        };
        let expected =
            Packet { from: service(v6), to: client(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
        reply.becomes(&lab.tables, Reason::Replied, &expected);

        // Its other replies are the service's, and the host's own connections the host's.
        let reply = Packet::of(udp, backend(v6, 8443), client(v6));
        let expected = Packet { from: main, hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
        reply.becomes(&lab.tables, Reason::Replied, &expected);
        Packet::of(udp, backend(v6, 8443), source(v6, 50_000)).ends(&lab.tables, Reason::Local);
    }
}

/// A session whose backend has answered, and the port that stands for its client.
fn answered(lab: &Lab) -> u16 {
    let (_, port) = port_of(lab, &segment(client(false), service(false), "S", ISN, 0));
    segment(backend(false, 8443), source(false, port), "SA", DRAWN, ISN + 1)
        .ends(&lab.tables, Reason::Replied);
    port
}

#[test]
fn no_client_ends_its_handshake_without_the_option() {
    // A backend takes any segment in its window for the end of a handshake.
    let lab = telling(false);
    let port = answered(&lab);
    let ahead = segment(client(false), service(false), "A", ISN + 2, DRAWN.wrapping_add(1));
    for _ in 0..2 {
        ahead.becomes(&lab.tables, Reason::Forwarded, &told(&ahead, lab.mac, port));
    }
    let last = segment(client(false), service(false), "A", ISN + 1, DRAWN.wrapping_add(1));
    last.becomes(&lab.tables, Reason::Forwarded, &told(&last, lab.mac, port));
    assert_eq!(held(&lab), (0, 2));

    // And none that no backend gets.
    let lab = telling(false);
    answered(&lab);
    Packet { hops: 1, ..last }.ends(&lab.tables, Reason::TtlExpired);
    assert_eq!(held(&lab), (2, 0));
}

#[test]
fn a_connection_that_begins_anew_in_its_session_is_told_of_again() {
    let lab = telling(false);
    let port = connect(&lab, client(false));
    // The backend has lost the old one, and says so to nobody.
    let again = segment(client(false), service(false), "S", 9_000_000, 0);
    assert_eq!(port_of(&lab, &again).1, port);
    segment(backend(false, 8443), source(false, port), "SA", 77, 9_000_001)
        .ends(&lab.tables, Reason::Replied);
    let last = segment(client(false), service(false), "A", 9_000_001, 78);
    last.becomes(&lab.tables, Reason::Forwarded, &told(&last, lab.mac, port));
}
