//! `full-nat`: ICMP errors, fragments, and what does not fit.

use lb_common::abi::{FRAGMENT_TICKS, Life, Mode};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::pipeline::Route;
use lb_common::too_big::BURST;
use lb_common::verdict::{Event, Reason};

use crate::errors::{Error, answer, router};
use crate::fragments::{follow_the_route, pieces};
use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, reason, send, vip};
use crate::session::{DRAWN, ISN, connect, held, lab, port_of, segment, service, source, telling};
use crate::too_big::{full, message};

/// A session of the client, and the port that stands for it. It has proven itself, or has yet to.
fn session(udp: bool, v6: bool, proven: bool) -> (Lab, u16) {
    let lab = lab(udp, v6);
    let port = match (udp, proven) {
        (false, true) => connect(&lab, client(v6)),
        (false, false) => port_of(&lab, &segment(client(v6), service(v6), "S", ISN, 0)).1,
        (true, _) => {
            let request = Packet::udp(client(v6), service(v6));
            let port = port_of(&lab, &request).1;
            if proven {
                Packet::udp(backend(v6, 8443), source(v6, port)).ends(&lab.tables, Reason::Replied);
                request.ends(&lab.tables, Reason::Forwarded);
            }
            port
        }
    };
    assert_eq!(held(&lab), if proven { (0, 2) } else { (2, 0) });
    (lab, port)
}

/// A request as the backend's side knows it.
fn asked(udp: bool, v6: bool, port: u16) -> Packet {
    Packet { hops: 50, ..Packet::of(udp, source(v6, port), backend(v6, 8443)) }
}

#[test]
fn an_error_about_an_answer_finds_the_sessions_backend() {
    for (v6, udp) in KINDS {
        for (tags, proven) in TAGS.into_iter().flat_map(|tags| [(tags, false), (tags, true)]) {
            // All that may be quoted: eight bytes; checksum and options, too; everything.
            for quoted in [8, 18, 32, 500] {
                let (lab, port) = session(udp, v6, proven);
                let error = Error { tags, quoted, ..Error::about(answer(udp, v6), router(v6)) };
                let about = Packet { from: backend(v6, 8443), to: source(v6, port), ..error.about.clone() };
                let (from, to) = (source(v6, 0).ip(), backend(v6, 0).ip());
                let expected = Error { from, to, hops: 59, about, ..error.clone() }.sent(lab.mac);
                error.becomes(&lab.tables, Reason::ErrorForwarded, &expected);
            }
        }
    }
}

#[test]
fn an_error_about_a_request_finds_the_sessions_client() {
    for (v6, udp) in KINDS {
        for (tags, proven) in TAGS.into_iter().flat_map(|tags| [(tags, false), (tags, true)]) {
            // From the backend itself, or from a router before it: the client knows neither.
            for from in [backend(v6, 0).ip(), router(v6)] {
                for quoted in [8, 18, 32, 500] {
                    let (lab, port) = session(udp, v6, proven);
                    let error = Error { tags, quoted, ..Error::about(asked(udp, v6, port), from) };
                    let about = Packet { from: client(v6), to: service(v6), ..error.about.clone() };
                    let (from, to) = (vip(v6), client(v6).ip());
                    let expected = Error { from, to, hops: 59, about, ..error.clone() }.sent(Tables::ROUTER);
                    error.becomes(&lab.tables, Reason::ErrorReplied, &expected);
                }
            }
        }
    }
}

#[test]
fn a_quoted_datagram_without_checksum_stays_without() {
    let (lab, port) = session(true, false, true);
    let about = Packet { no_checksum: true, ..answer(true, false) };
    let error = Error::about(about, router(false));
    let about = Packet { from: backend(false, 8443), to: source(false, port), ..error.about.clone() };
    let (from, to) = (source(false, 0).ip(), backend(false, 0).ip());
    let expected = Error { from, to, hops: 59, about, ..error.clone() }.sent(lab.mac);
    error.becomes(&lab.tables, Reason::ErrorForwarded, &expected);
}

#[test]
fn an_error_goes_back_to_the_client_where_the_route_says() {
    for (v6, udp) in KINDS {
        let (mut lab, port) = session(udp, v6, true);
        let error = Error::about(asked(udp, v6, port), router(v6));
        // What was known of the way holds for a tick.
        lab.tables.advance(1);
        for (route, expected) in [
            (Route::Local, Reason::Local),
            (Route::TooBig, Reason::TooBig),
            (Route::ForwardingOff, Reason::NoRoute),
            (Route::None, Reason::NoRoute),
        ] {
            lab.tables.routes.insert(client(v6).ip().into(), route);
            assert_eq!(reason(&lab.tables, &error.frame()), expected);
        }
        lab.tables.routes.insert(client(v6).ip().into(), Route::Unresolved);
        let (verdict, frame) = send(&lab.tables, &error.frame());
        assert_eq!(verdict.reason, Reason::ErrorRepliedByHost);
        let about = Packet { from: client(v6), to: service(v6), ..error.about.clone() };
        assert_eq!(frame, Error { from: vip(v6), to: client(v6).ip(), hops: 59, about, ..error }.frame());
    }
}

#[test]
fn errors_about_no_session_are_the_hosts() {
    for (v6, udp) in KINDS {
        let (mut lab, port) = session(udp, v6, true);
        let at = |lab: &Lab, error: &Error| reason(&lab.tables, &error.frame());
        let error = Error::about(answer(udp, v6), router(v6));
        let mut other = answer(udp, v6);
        other.to.set_port(1);
        assert_eq!(at(&lab, &Error { about: other, ..error.clone() }), Reason::OtherProtocol);
        assert_eq!(at(&lab, &Error { quoted: 7, ..error.clone() }), Reason::OtherProtocol);
        // The host talks to backends from its own ports; a server of its own may have one of those that stand for clients.
        let own = Error::about(asked(udp, v6, 40_000), router(v6));
        assert_eq!(at(&lab, &own), Reason::NotOurs);
        let server = Error::about(asked(udp, v6, port ^ 1), router(v6));
        assert_eq!(at(&lab, &server), Reason::OtherProtocol);
        // The last hop is not taken, and what does not fit is not told of.
        assert_eq!(at(&lab, &Error { hops: 1, ..error.clone() }), Reason::TtlExpired);
        let asked = Error::about(asked(udp, v6, port), router(v6));
        assert_eq!(at(&lab, &Error { hops: 1, ..asked.clone() }), Reason::TtlExpired);
        lab.tables.devices[0].mtu = error.ip().len() as u16 - 1;
        assert_eq!(at(&lab, &error), Reason::TooBig);
        // Without its backend a session is void; its client may hear of it all the same.
        lab.tables.backends[usize::from(lab.id)].life = Life::of(2, true).0;
        assert_eq!(at(&lab, &error), Reason::NoSession);
        assert_eq!(at(&lab, &asked), Reason::ErrorReplied);
    }
}

#[test]
fn a_client_leaves_room_for_its_address() {
    let lab = telling(false);
    let port = connect(&lab, client(false));
    // Of "fragmentation needed" only, and not of an MTU that is none.
    for (kind, mtu, told) in
        [((3, 4), 1234, 1226), ((3, 4), 76, 68), ((3, 4), 75, 75), ((3, 4), 0, 0), ((3, 1), 1234, 1234)]
    {
        let [high, low] = u16::to_be_bytes(mtu);
        let error = Error::about(asked(false, false, port), router(false));
        let error = Error { kind, rest: [1, 2, high, low], ..error };
        let about = Packet { from: client(false), to: service(false), ..error.about.clone() };
        let [high, low] = u16::to_be_bytes(told);
        let (from, to) = (vip(false), client(false).ip());
        let expected = Error { from, to, hops: 59, about, rest: [1, 2, high, low], ..error.clone() };
        error.becomes(&lab.tables, Reason::ErrorReplied, &expected.sent(Tables::ROUTER));
    }
    let lab = telling(true);
    let port = connect(&lab, client(true));
    for (kind, mtu, told) in [
        ((2, 0), 1400, 1380),
        ((2, 0), 1290, 1280),
        ((2, 0), 1280, 1280),
        ((2, 0), 1000, 1000),
        ((1, 4), 1400, 1400),
    ] {
        let error = Error::about(asked(false, true, port), router(true));
        let error = Error { kind, rest: u32::to_be_bytes(mtu), ..error };
        let about = Packet { from: client(true), to: service(true), ..error.about.clone() };
        let (from, to, rest) = (vip(true), client(true).ip(), u32::to_be_bytes(told));
        let expected = Error { from, to, hops: 59, about, rest, ..error.clone() };
        error.becomes(&lab.tables, Reason::ErrorReplied, &expected.sent(Tables::ROUTER));
    }
}

/// The frames of a packet of several fragments, and what they must become.
fn all_become(lab: &Lab, given: &[Vec<u8>], reason: Reason, expected: &[Vec<u8>]) {
    assert!(given.len() > 3 && given.len() == expected.len());
    for (i, (given, expected)) in given.iter().zip(expected).enumerate() {
        let (verdict, frame) = send(&lab.tables, given);
        assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX), "fragment {i}");
        assert_eq!(&frame, expected, "fragment {i}");
        assert_eq!((verdict.account.backend, verdict.account.bytes as usize), (lab.id, given.len()));
    }
}

fn large(packet: Packet) -> Packet {
    Packet { payload: (0..200).collect(), ..packet }
}

fn request(udp: bool, v6: bool) -> Packet {
    if udp {
        large(Packet::udp(client(v6), service(v6)))
    } else {
        large(segment(client(v6), service(v6), "A", ISN + 9, DRAWN.wrapping_add(1)))
    }
}

fn reply(udp: bool, v6: bool, port: u16) -> Packet {
    if udp {
        large(Packet::udp(backend(v6, 8443), source(v6, port)))
    } else {
        large(segment(backend(v6, 8443), source(v6, port), "A", DRAWN.wrapping_add(1), ISN + 9))
    }
}

#[test]
fn a_session_may_begin_with_a_datagram_in_fragments() {
    for v6 in [false, true] {
        for tags in TAGS {
            let lab = lab(true, v6);
            let request = Packet { tags, ..request(true, v6) };
            let given = pieces(&request, 7);
            let (verdict, frame) = send(&lab.tables, &given[0]);
            assert_eq!((verdict.reason, verdict.account.begins), (Reason::FragmentForwarded, 1));
            let l4 = 14 + 4 * tags.len() + if v6 { 48 } else { 20 };
            let port = u16::from_be_bytes([frame[l4], frame[l4 + 1]]);
            let (from, to) = (source(v6, port), backend(v6, 8443));
            let expected = Packet { from, to, hops: 63, ..request.clone() }.sent(lab.mac);
            all_become(&lab, &given, Reason::FragmentForwarded, &pieces(&expected, 7));
            assert_eq!(held(&lab), (2, 0));
            // The answer comes in fragments, too, and is one: the next request proves that its client has seen it.
            let reply = Packet { tags, ..reply(true, v6, port) };
            let (from, to) = (service(v6), client(v6));
            let expected = Packet { from, to, hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
            all_become(&lab, &pieces(&reply, 9), Reason::FragmentReplied, &pieces(&expected, 9));
            assert_eq!(held(&lab), (2, 0));
            assert_eq!(send(&lab.tables, &given[0]).0.account.begins, 0);
            assert_eq!(held(&lab), (0, 2));
            assert_eq!(lab.tables.count(Event::FragmentsNoted), 4);
        }
    }
}

#[test]
fn all_fragments_of_a_session_get_both_ends_anew() {
    for (v6, udp) in KINDS {
        let (lab, port) = session(udp, v6, true);
        let request = request(udp, v6);
        let (from, to) = (source(v6, port), backend(v6, 8443));
        let expected = Packet { from, to, hops: 63, ..request.clone() }.sent(lab.mac);
        all_become(&lab, &pieces(&request, 7), Reason::FragmentForwarded, &pieces(&expected, 7));
        let reply = reply(udp, v6, port);
        let expected =
            Packet { from: service(v6), to: client(v6), hops: 63, ..reply.clone() }.sent(Tables::ROUTER);
        all_become(&lab, &pieces(&reply, 7), Reason::FragmentReplied, &pieces(&expected, 7));
        assert_eq!(held(&lab), (0, 2));
    }
}

#[test]
fn fragments_before_their_first_and_long_after_it_are_counted_and_passed_up() {
    for (v6, udp) in KINDS {
        let (mut lab, port) = session(udp, v6, true);
        for (given, goes) in [
            (pieces(&request(udp, v6), 7), Reason::FragmentForwarded),
            (pieces(&reply(udp, v6, port), 8), Reason::FragmentReplied),
        ] {
            for piece in &given[1..] {
                assert_eq!(reason(&lab.tables, piece), Reason::FragmentUnknown);
            }
            assert_eq!(reason(&lab.tables, &given[0]), goes);
            // From now on in any order, and as often as they come.
            for piece in given.iter().rev().chain(&given) {
                assert_eq!(reason(&lab.tables, piece), goes);
            }
            lab.tables.advance(FRAGMENT_TICKS);
            assert_eq!(reason(&lab.tables, &given[1]), goes);
            lab.tables.advance(1);
            assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentUnknown);
            assert_eq!(reason(&lab.tables, &given[0]), goes);
        }
        let given = pieces(&request(udp, v6), 7);
        assert_eq!(reason(&lab.tables, &given[0]), Reason::FragmentForwarded);
        assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentForwarded);
        lab.tables.backends[usize::from(lab.id)].life = Life::of(2, true).0;
        assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentUnknown);
        // A first one ends the void session; a datagram begins another.
        let expected = if udp { Reason::FragmentForwarded } else { Reason::NoSession };
        assert_eq!(reason(&lab.tables, &given[0]), expected);
    }
}

#[test]
fn a_first_fragment_is_refused_in_silence() {
    for v6 in [false, true] {
        // The host would put it together, and end the connection with a RST of its own.
        let lab = lab(false, v6);
        let given = pieces(&request(false, v6), 7);
        assert_eq!(reason(&lab.tables, &given[0]), Reason::NoSession);
        assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentUnknown);
        let (mut lab, _) = session(true, v6, true);
        lab.tables.settings.source_ports = [1, 1];
        let mut other = request(true, v6);
        other.from.set_port(1);
        assert_eq!(reason(&lab.tables, &pieces(&other, 8)[0]), Reason::FragmentForwarded);
        other.from.set_port(2);
        assert_eq!(reason(&lab.tables, &pieces(&other, 9)[0]), Reason::NoPort);
        for slot in &lab.tables.slots {
            slot.set(lb_common::abi::Slot::of(0, 0, 0));
        }
        other.from.set_port(3);
        assert_eq!(reason(&lab.tables, &pieces(&other, 9)[0]), Reason::NoBackend);
    }
}

#[test]
fn fragments_to_the_hosts_own_ports_are_the_hosts() {
    for (v6, udp) in KINDS {
        let (lab, port) = session(udp, v6, true);
        for own in [80, 40_000, port ^ 1] {
            let given = pieces(&Packet { to: source(v6, own), ..reply(udp, v6, port) }, 7);
            assert_eq!(reason(&lab.tables, &given[0]), Reason::NotOurs, "port {own}");
            assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentUnknown, "port {own}");
        }
    }
}

#[test]
fn fragments_of_a_reply_go_where_the_route_says() {
    for (v6, udp) in KINDS {
        let (mut lab, port) = session(udp, v6, true);
        let reply = reply(udp, v6, port);
        let given = pieces(&reply, 7);
        let expected = pieces(&Packet { from: service(v6), to: client(v6), hops: 63, ..reply }, 7);
        lab.tables.advance(1);
        follow_the_route(&mut lab, client(v6).ip(), Reason::NoRoute, &given, &expected);
    }
}

#[test]
fn the_last_hop_is_not_taken_of_fragments() {
    for (v6, udp) in KINDS {
        let (lab, port) = session(udp, v6, true);
        for packet in [request(udp, v6), reply(udp, v6, port)] {
            // They follow one that had a hop left.
            let first = pieces(&packet, 7).swap_remove(0);
            assert_ne!(reason(&lab.tables, &first), Reason::TtlExpired);
            for piece in pieces(&Packet { hops: 1, ..packet }, 7) {
                assert_eq!(reason(&lab.tables, &piece), Reason::TtlExpired);
            }
        }
    }
}

#[test]
fn nobody_is_accepted_by_fragments_without_being_told_of() {
    for v6 in [false, true] {
        let lab = telling(v6);
        let (_, port) = port_of(&lab, &segment(client(v6), service(v6), "S", ISN, 0));
        segment(backend(v6, 8443), source(v6, port), "SA", DRAWN, ISN + 1).through(&lab.tables);
        let data = |ahead: u32| {
            let segment = segment(client(v6), service(v6), "A", ISN + ahead, DRAWN.wrapping_add(1));
            pieces(&large(segment), ahead).swap_remove(0)
        };
        for ahead in [1, 300] {
            assert_eq!(reason(&lab.tables, &data(ahead)), Reason::TooBig);
        }
        assert_eq!(held(&lab), (2, 0));
        segment(client(v6), service(v6), "A", ISN + 1, DRAWN.wrapping_add(1))
            .ends(&lab.tables, Reason::Forwarded);
        // The first data may still be what the backend hears first.
        assert_eq!(reason(&lab.tables, &data(1)), Reason::TooBig);
        assert_eq!(reason(&lab.tables, &data(300)), Reason::FragmentForwarded);
    }
}

#[test]
fn both_sides_are_told_what_fits() {
    for (v6, udp) in KINDS {
        for (tags, proven) in TAGS.into_iter().flat_map(|tags| [(tags, false), (tags, true)]) {
            let (mut lab, port) = session(udp, v6, proven);
            let packet = full(udp, v6, tags);
            // One byte too many.
            let mtu = packet.ip().len() as u16 - 1;
            lab.tables.devices[0].mtu = mtu;
            let (verdict, frame) = send(&lab.tables, &packet.frame());
            assert_eq!((verdict.reason, verdict.ifindex), (Reason::TooBigTold, Tables::IFINDEX));
            assert_eq!(frame, message(&packet, mtu));
            lab.tables.devices[0].mtu += 1;
            packet.ends(&lab.tables, Reason::Forwarded);

            let reply = Packet { from: backend(v6, 8443), to: source(v6, port), ..full(udp, v6, tags) };
            lab.tables.routes.insert(client(v6).ip().into(), Route::TooBig);
            lab.tables.path_mtu = 1400;
            // From whom it talks to: the backend knows neither client nor VIP.
            let (verdict, frame) = send(&lab.tables, &reply.frame());
            assert_eq!((verdict.reason, frame), (Reason::TooBigTold, message(&reply, 1400)));
        }
    }
}

#[test]
fn the_first_fragment_of_a_session_is_told_of_and_the_others_are_not() {
    let (mut lab, port) = session(true, false, true);
    lab.tables.devices[0].mtu = 1400;
    lab.tables.routes.insert(client(false).ip().into(), Route::TooBig);
    let reply = Packet { from: backend(false, 8443), to: source(false, port), ..full(true, false, &[]) };
    for packet in [full(true, false, &[]), reply] {
        let small = pieces(&Packet { payload: vec![0; 100], ..packet.clone() }, 0x1234).swap_remove(0);
        // A small one is known, as far as the route takes any.
        lab.tables.routes.remove(&client(false).ip().into());
        reason(&lab.tables, &small);
        lab.tables.routes.insert(client(false).ip().into(), Route::TooBig);
        let mut first = packet.frame();
        crate::lab::fragment(&mut first, 0, true);
        assert_eq!(reason(&lab.tables, &first), Reason::TooBigTold);
        let mut other = packet.frame();
        crate::lab::fragment(&mut other, 185, false);
        assert_eq!(reason(&lab.tables, &other), Reason::TooBig);
    }
}

#[test]
fn messages_about_sessions_keep_to_the_rate() {
    let (mut lab, _) = session(false, false, true);
    lab.tables.devices[0].mtu = 1000;
    lab.tables.settings.message_interval = 1 << 20;
    let packet = full(false, false, &[]);
    let reasons: Vec<Reason> = (0..2 * BURST).map(|_| packet.through(&lab.tables).0.reason).collect();
    let told = reasons.iter().filter(|reason| **reason == Reason::TooBigTold).count() as u64;
    assert_eq!(told, BURST);
    assert!(reasons[BURST as usize..].iter().all(|reason| *reason == Reason::TooBig));
}

#[test]
fn one_host_may_serve_by_nat_and_by_full_nat() {
    for (v6, udp) in KINDS {
        let (mut lab, port) = session(udp, v6, true);
        let protocol = if udp { 17 } else { 6 };
        let spec = ServiceSpec { protocol, ..ServiceSpec::tcp(vip(v6), 80, Mode::Nat) };
        let other = lab.tables.add_service(&spec);
        lab.tables.add_pool(other, false, &[(backend(v6, 80), 1)]);
        reply(udp, v6, port).ends(&lab.tables, Reason::Replied);
        let given = pieces(&reply(udp, v6, port), 7);
        assert_eq!(reason(&lab.tables, &given[0]), Reason::FragmentReplied);
        assert_eq!(reason(&lab.tables, &given[1]), Reason::FragmentReplied);
        let error = Error::about(asked(udp, v6, port), router(v6));
        assert_eq!(reason(&lab.tables, &error.frame()), Reason::ErrorReplied);
    }
}
