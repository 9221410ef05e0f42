use lb_common::abi::{Life, Mode, NextHop, TCP_IDLE_TICKS};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::pipeline::Route;
use lb_common::verdict::{Action, Reason};

use crate::lab::{CLIENT_MAC, KINDS, Lab, Packet, TAGS, backend, client, vip};

fn service(v6: bool) -> std::net::SocketAddr {
    (vip(v6), 443).into()
}

#[test]
fn a_request_gets_its_backends_address_and_one_hop_less() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
            let request = Packet { tags, tos: 0xb9, ..Packet::of(udp, client(v6), service(v6)) };
            let expected = Packet { to: backend(v6, 8443), hops: 63, ..request.clone() }.sent(lab.mac);
            request.becomes(&lab.tables, Reason::Forwarded, &expected);
        }
    }
}

#[test]
fn a_reply_gets_the_vips_address_and_one_hop_less() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
            let reply = Packet { tags, ..Packet::of(udp, backend(v6, 8443), client(v6)) };
            let expected = Packet { from: service(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
            reply.becomes(&lab.tables, Reason::Replied, &expected);
        }
    }
}

#[test]
fn options_of_ipv4_travel_along() {
    let lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let request = Packet { options: &[7, 7, 4, 0, 0, 0, 0, 0], ..Packet::tcp(client(false), service(false)) };
    let expected = Packet { to: backend(false, 8443), hops: 63, ..request.clone() }.sent(lab.mac);
    request.becomes(&lab.tables, Reason::Forwarded, &expected);
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let lab = Lab::new(Mode::Nat, true, false, backend(false, 8443));
    let request = Packet { no_checksum: true, ..Packet::udp(client(false), service(false)) };
    let expected = Packet { to: backend(false, 8443), hops: 63, ..request.clone() }.sent(lab.mac);
    request.becomes(&lab.tables, Reason::Forwarded, &expected);
    let reply = Packet { no_checksum: true, ..Packet::udp(backend(false, 8443), client(false)) };
    let expected = Packet { from: service(false), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
    reply.becomes(&lab.tables, Reason::Replied, &expected);
}

#[test]
fn no_payload_makes_a_datagrams_checksum_vanish() {
    // Some of these sums are zero, which UDP must write as ones.
    let lab = Lab::new(Mode::Nat, true, false, backend(false, 8443));
    for word in 0..=u16::MAX {
        let request =
            Packet { payload: word.to_be_bytes().to_vec(), ..Packet::udp(client(false), service(false)) };
        let (verdict, frame) = request.through(&lab.tables);
        assert_eq!(verdict.reason, Reason::Forwarded);
        assert_ne!(frame[40..42], [0, 0], "{word:04x}");
        if word % 256 == 0 || frame[40..42] == [0xff, 0xff] {
            let expected = Packet { to: backend(false, 8443), hops: 63, ..request }.sent(lab.mac);
            assert_eq!(frame, expected.frame());
        }
    }
}

#[test]
fn a_service_of_all_ports_keeps_them() {
    for v6 in [false, true] {
        let lab = Lab::of(&ServiceSpec::tcp(vip(v6), 0, Mode::Nat), backend(v6, 0));
        for port in [1, 443, 65_535] {
            let request = Packet::tcp(client(v6), (vip(v6), port).into());
            let expected = Packet { to: backend(v6, port), hops: 63, ..request.clone() }.sent(lab.mac);
            request.becomes(&lab.tables, Reason::Forwarded, &expected);
            let reply = Packet::tcp(backend(v6, port), client(v6));
            let expected =
                Packet { from: (vip(v6), port).into(), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
            reply.becomes(&lab.tables, Reason::Replied, &expected);
        }
    }
}

#[test]
fn a_service_of_one_port_goes_before_that_of_all() {
    let mut lab = Lab::of(&ServiceSpec::tcp(vip(false), 0, Mode::DsrL2), backend(false, 0));
    let exact = lab.tables.add_service(&ServiceSpec::tcp(vip(false), 443, Mode::Nat));
    let other = lab.tables.add_pool(exact, false, &[("10.0.2.1:80".parse().unwrap(), 1)])[0];
    let to =
        |port| Packet::tcp(client(false), (vip(false), port).into()).through(&lab.tables).0.account.backend;
    assert_eq!((to(443), to(444)), (other, lab.id));
}

#[test]
fn what_is_not_a_services_is_not_ours() {
    let lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    for (from, to) in [
        (client(false), (vip(false), 80).into()),
        (client(false), "192.0.2.7:443".parse().unwrap()),
        (backend(false, 22), client(false)),
        (client(false), backend(false, 22)),
    ] {
        Packet::tcp(from, to).ends(&lab.tables, Reason::NotOurs);
    }
    Packet::udp(client(false), service(false)).ends(&lab.tables, Reason::NotOurs);
    Packet::tcp(client(true), service(true)).ends(&lab.tables, Reason::NotOurs);
}

#[test]
fn the_last_hop_is_not_taken() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        for hops in [0, 1] {
            Packet { hops, ..Packet::of(udp, client(v6), service(v6)) }.ends(&lab.tables, Reason::TtlExpired);
            Packet { hops, ..Packet::of(udp, backend(v6, 8443), client(v6)) }
                .ends(&lab.tables, Reason::TtlExpired);
        }
    }
}

#[test]
fn a_packet_leaves_if_it_fits_and_not_otherwise() {
    let mut lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let request = Packet::tcp(client(false), service(false));
    lab.tables.devices[0].mtu = request.ip().len() as u16;
    assert_eq!(request.through(&lab.tables).0.reason, Reason::Forwarded);
    lab.tables.devices[0].mtu -= 1;
    request.ends(&lab.tables, Reason::TooBigTold);
}

#[test]
fn a_backend_without_hardware_address_or_life_gets_nothing() {
    let mut lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let request = Packet::tcp(client(false), service(false));
    let entry = &mut lab.tables.backends[usize::from(lab.id)];
    entry.next_hop = NextHop::default().0;
    request.ends(&lab.tables, Reason::NoNeighbour);
    lab.tables.backends[usize::from(lab.id)].life = Life::of(1, false).0;
    request.ends(&lab.tables, Reason::BackendGone);
}

#[test]
fn a_reply_goes_where_the_route_says() {
    let mut lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let reply = Packet::tcp(backend(false, 8443), client(false));
    for (route, reason) in [
        (Route::Local, Reason::Local),
        // It allows more than this.
        (Route::TooBig, Reason::TooBig),
        (Route::ForwardingOff, Reason::ForwardingOff),
        (Route::None, Reason::NoRoute),
    ] {
        lab.tables.routes.insert(client(false).ip().into(), route);
        reply.ends(&lab.tables, reason);
    }
    let out = Route::Out { ifindex: 9, source: [2, 9, 9, 9, 9, 9], destination: CLIENT_MAC };
    lab.tables.routes.insert(client(false).ip().into(), out);
    let (verdict, frame) = reply.through(&lab.tables);
    assert_eq!((verdict.reason, verdict.ifindex), (Reason::Replied, 9));
    let expected = Packet {
        from: service(false),
        hops: 63,
        source_mac: [2, 9, 9, 9, 9, 9],
        destination_mac: CLIENT_MAC,
        ..reply.clone()
    };
    assert_eq!(frame, expected.frame());

    // The host finds the neighbour: it gets the reply as the client will, but for the hardware addresses.
    lab.tables.routes.insert(client(false).ip().into(), Route::Unresolved);
    let (verdict, frame) = reply.through(&lab.tables);
    assert_eq!(verdict.reason, Reason::RepliedByHost);
    assert_eq!(frame, Packet { from: service(false), hops: 63, ..reply }.frame());
}

#[test]
fn a_host_that_does_not_forward_keeps_what_is_its_own() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        lab.tables.routes.insert(client(v6).ip().into(), Route::ForwardingOff);
        // Nobody knows that the client is this host, whose own packets no program sees.
        let reply = Packet::of(udp, backend(v6, 8443), client(v6));
        let (verdict, frame) = reply.through(&lab.tables);
        assert_eq!(verdict.reason, Reason::ForwardingOff);
        assert_eq!((verdict.reason.action(), frame), (Action::Pass, reply.frame()));
    }
}

#[test]
fn who_talks_to_a_backend_itself_gets_its_replies_as_they_are() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let reply = Packet::of(udp, backend(v6, 8443), client(v6));
        assert_eq!(reply.through(&lab.tables).0.reason, Reason::Replied);
        Packet::of(udp, client(v6), backend(v6, 8443)).ends(&lab.tables, Reason::Direct);
        reply.ends(&lab.tables, Reason::Direct);
        // Another flow of the same client goes through the balancer as before.
        let mut other = client(v6);
        other.set_port(40_001);
        assert_eq!(Packet::of(udp, backend(v6, 8443), other).through(&lab.tables).0.reason, Reason::Replied);
    }
}

#[test]
fn what_a_backend_begins_itself_is_no_reply() {
    for v6 in [false, true] {
        // A service of one port, and of all.
        for (port, from) in [(443, 8443), (0, 50_000)] {
            let spec = ServiceSpec::tcp(vip(v6), port, Mode::Nat);
            let lab = Lab::of(&spec, backend(v6, if port == 0 { 0 } else { from }));
            let ahead = Packet::tcp(backend(v6, from), client(v6));
            assert_eq!(ahead.through(&lab.tables).0.reason, Reason::Replied);
            let mut syn = ahead.clone();
            let header = syn.tcp.as_mut().unwrap();
            (header.syn, header.ack) = (true, false);
            syn.ends(&lab.tables, Reason::Direct);
            // What follows is of that connection, both ways.
            Packet::tcp(client(v6), backend(v6, from)).ends(&lab.tables, Reason::Direct);
            ahead.ends(&lab.tables, Reason::Direct);
        }
    }
}

#[test]
fn who_talked_to_a_backend_itself_long_ago_is_forgotten() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let idle = if udp { lab.tables.settings.udp_idle } else { TCP_IDLE_TICKS };
        let reply = Packet::of(udp, backend(v6, 8443), client(v6));
        let past = Packet::of(udp, client(v6), backend(v6, 8443));
        past.ends(&lab.tables, Reason::Direct);
        lab.tables.advance(idle);
        reply.ends(&lab.tables, Reason::Direct);
        // Whoever talks stays known.
        past.ends(&lab.tables, Reason::Direct);
        lab.tables.advance(idle);
        reply.ends(&lab.tables, Reason::Direct);
        lab.tables.advance(1);
        assert_eq!(reply.through(&lab.tables).0.reason, Reason::Replied);
        // Another client keeps the backend marked, and nobody else known.
        let mut other = client(v6);
        other.set_port(40_001);
        Packet::of(udp, other, backend(v6, 8443)).ends(&lab.tables, Reason::Direct);
        assert_eq!(reply.through(&lab.tables).0.reason, Reason::Replied);
    }
}

#[test]
fn ports_that_were_in_use_past_the_vip_may_be_used_through_it() {
    for v6 in [false, true] {
        for (port, at) in [(443, 8443), (0, 0)] {
            let spec = ServiceSpec::tcp(vip(v6), port, Mode::Nat);
            let lab = Lab::of(&spec, backend(v6, at));
            let at = if at == 0 { 443 } else { at };
            let reply = Packet::tcp(backend(v6, at), client(v6));
            Packet::tcp(client(v6), backend(v6, at)).ends(&lab.tables, Reason::Direct);
            reply.ends(&lab.tables, Reason::Direct);
            let mut syn = Packet::tcp(client(v6), service(v6));
            let header = syn.tcp.as_mut().unwrap();
            (header.syn, header.ack) = (true, false);
            assert_eq!(syn.through(&lab.tables).0.reason, Reason::Forwarded);
            assert_eq!(reply.through(&lab.tables).0.reason, Reason::Replied);
        }
    }
}

#[test]
fn packets_are_charged_to_their_backend_and_pool() {
    let lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let pool = lab.tables.services[lab.service as usize].stable_pool;
    let mut syn = Packet::tcp(client(false), service(false));
    let header = syn.tcp.as_mut().unwrap();
    (header.syn, header.ack) = (true, false);
    for (packet, begins) in [
        (syn, true),
        (Packet::tcp(client(false), service(false)), false),
        (Packet::tcp(backend(false, 8443), client(false)), false),
    ] {
        let account = packet.through(&lab.tables).0.account;
        assert_eq!((account.backend, account.pool, account.begins), (lab.id, pool, begins.into()));
        assert_eq!(account.bytes as usize, packet.frame().len());
    }
}
