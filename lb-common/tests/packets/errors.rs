//! ICMP errors about flows.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
};
use lb_common::abi::{FlowKey, Mode, NextHop, Port, Slot};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::pipeline::{Route, Tables as _};
use lb_common::verdict::{Event, Reason};
use lb_common::wire::Mac;

use crate::lab::{CLIENT_MAC, KINDS, Lab, Packet, TAGS, backend, client, fragment, reason, send, vip};

/// An error in a frame; what comes in unless something else is said.
#[derive(Clone)]
pub struct Error {
    pub from: IpAddr,
    pub to: IpAddr,
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub tags: &'static [u16],
    pub hops: u8,
    /// Type and code.
    pub kind: (u8, u8),
    pub rest: [u8; 4],
    /// The packet that it is about, and how much of it is quoted behind the IP header.
    pub about: Packet,
    pub quoted: usize,
}

impl Error {
    /// "Fragmentation needed" or "packet too big", to whoever sent the packet.
    pub fn about(about: Packet, from: IpAddr) -> Self {
        let (kind, rest) =
            if from.is_ipv4() { ((3, 4), [0, 0, 0x04, 0xd2]) } else { ((2, 0), [0, 0, 0x05, 0x14]) };
        Self {
            from,
            to: about.from.ip(),
            source_mac: CLIENT_MAC,
            destination_mac: Tables::MAC,
            tags: &[],
            hops: 60,
            kind,
            rest,
            about,
            quoted: 8,
        }
    }

    pub fn sent(self, to: Mac) -> Self {
        Self { source_mac: Tables::MAC, destination_mac: to, ..self }
    }

    pub fn ip(&self) -> Vec<u8> {
        let mut quoted = self.about.ip();
        let header = if self.from.is_ipv4() { 20 + self.about.options.len() } else { 40 };
        quoted.truncate(header + self.quoted);
        self.around(&quoted)
    }

    /// The error that quotes these bytes.
    pub fn around(&self, quoted: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header =
                    Ipv4Header::new(0, self.hops, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
                header.identification = 0x4321;
                PacketBuilder::ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
                    .icmpv4_raw(self.kind.0, self.kind.1, self.rest)
                    .write(&mut packet, quoted)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = Ipv6Header {
                    hop_limit: self.hops,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Default::default()
                };
                PacketBuilder::ip(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
                    .icmpv6_raw(self.kind.0, self.kind.1, self.rest)
                    .write(&mut packet, quoted)
            }
            mixed => panic!("{mixed:?}"),
        }
        .unwrap();
        packet
    }

    fn link(&self) -> Vec<u8> {
        let link = Packet { tags: self.tags, ..self.about.clone() };
        let link = Packet { source_mac: self.source_mac, destination_mac: self.destination_mac, ..link };
        link.link(if self.from.is_ipv4() { 0x0800 } else { 0x86dd })
    }

    pub fn frame(&self) -> Vec<u8> {
        [self.link(), self.ip()].concat()
    }

    pub fn becomes(&self, tables: &Tables, reason: Reason, expected: &Self) {
        let (verdict, frame) = send(tables, &self.frame());
        assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX));
        assert_eq!(frame, expected.frame());
    }
}

pub fn router(v6: bool) -> IpAddr {
    if v6 { "2001:db8:f::1".parse().unwrap() } else { "192.0.2.1".parse().unwrap() }
}

fn service(v6: bool) -> SocketAddr {
    (vip(v6), 443).into()
}

/// A backend's packet as the client's side knows it, some hops on.
pub fn answer(udp: bool, v6: bool) -> Packet {
    Packet { hops: 50, ..Packet::of(udp, service(v6), client(v6)) }
}

#[test]
fn an_error_about_an_answer_finds_the_nat_backend_and_quotes_its_address() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            // All that may be quoted: eight bytes; checksum and options, too; everything.
            for quoted in [8, 18, 32, 500] {
                let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
                let error = Error { tags, quoted, ..Error::about(answer(udp, v6), router(v6)) };
                let about = Packet { from: backend(v6, 8443), ..error.about.clone() };
                let expected =
                    Error { to: backend(v6, 0).ip(), hops: 59, about, ..error.clone() }.sent(lab.mac);
                error.becomes(&lab.tables, Reason::ErrorForwarded, &expected);
            }
        }
    }
}

#[test]
fn an_error_about_a_request_finds_its_client_and_quotes_the_vip() {
    for (v6, udp) in KINDS {
        for tags in TAGS {
            // From the backend itself, or from a router before it: the client knows neither.
            for from in [backend(v6, 0).ip(), router(v6)] {
                for quoted in [8, 18, 500] {
                    let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
                    let request = Packet::of(udp, client(v6), backend(v6, 8443));
                    let error = Error { tags, quoted, kind: (3, 3), ..Error::about(request, from) };
                    let about = Packet { to: service(v6), ..error.about.clone() };
                    let expected =
                        Error { from: vip(v6), hops: 59, about, ..error.clone() }.sent(Tables::ROUTER);
                    error.becomes(&lab.tables, Reason::ErrorReplied, &expected);
                }
            }
        }
    }
}

#[test]
fn without_nat_the_backend_gets_the_error_as_it_came() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::DsrL2, udp, v6, backend(v6, 443));
        let error = Error { hops: 1, ..Error::about(answer(udp, v6), router(v6)) };
        error.becomes(&lab.tables, Reason::ErrorForwarded, &error.clone().sent(lab.mac));
        for mode in [Mode::DsrIpip, Mode::DsrGue] {
            for outer_v6 in [false, true] {
                let lab = Lab::new(mode, udp, v6, backend(outer_v6, 443));
                let (verdict, frame) = send(&lab.tables, &error.frame());
                assert_eq!((verdict.reason, verdict.ifindex), (Reason::ErrorForwarded, Tables::IFINDEX));
                // The tunnel is that of the flow's requests: one queue gets both.
                let (_, request) = Packet::of(udp, client(v6), service(v6)).through(&lab.tables);
                let outer = frame.len() - error.ip().len();
                let addresses = if outer_v6 { 22..54 } else { 26..34 };
                assert_eq!(frame[addresses.clone()], request[addresses]);
                assert_eq!(frame[outer..], error.ip());
            }
        }
    }
}

#[test]
fn an_error_finds_the_backend_that_its_flow_is_tracked_on_and_leaves_no_trace() {
    for (v6, udp) in KINDS {
        let mut lab = Lab::of(
            &if udp {
                ServiceSpec::udp(vip(v6), 443, Mode::DsrL2)
            } else {
                ServiceSpec::tcp(vip(v6), 443, Mode::DsrL2)
            },
            backend(v6, 443),
        );
        let pool = lab.tables.services[0].stable_pool;
        let mut at = backend(v6, 443);
        at.set_port(444);
        let other = lab.tables.add_backend(0, pool, at);
        // Every slot is on its way from one backend to the other.
        for slot in &lab.tables.slots {
            slot.set(Slot::of(other, lab.id, 1));
        }
        let mac_of = |id: u16| NextHop(lab.tables.backends[usize::from(id)].next_hop).mac().unwrap();
        let error = Error::about(answer(udp, v6), router(v6));
        // In no table: it was there before.
        error.becomes(&lab.tables, Reason::ErrorForwarded, &error.clone().sent(mac_of(lab.id)));
        assert!(
            lab.tables.flows.borrow().iter().chain(lab.tables.udp_flows.borrow().iter()).next().is_none()
        );
        assert!(lab.tables.slots.iter().all(|slot| slot.get().exceptions() == 1));
        assert_eq!(lab.tables.count(Event::SlowPath), 0);

        let key = FlowKey {
            client: client(v6).ip().into(),
            client_port: Port::new(client(v6).port()),
            port: Port::new(443),
            owner: 0,
        };
        lab.tables.keep_flow(&key, udp, other, 1);
        error.becomes(&lab.tables, Reason::ErrorForwarded, &error.clone().sent(mac_of(other)));
    }
}

#[test]
fn options_and_extension_headers_in_the_quote_are_passed_by() {
    let lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let options = &[7, 7, 4, 0, 0, 0, 0, 0];
    let error = Error::about(Packet { options, ..answer(false, false) }, router(false));
    let about = Packet { from: backend(false, 8443), ..error.about.clone() };
    let expected = Error { to: backend(false, 0).ip(), hops: 59, about, ..error.clone() }.sent(lab.mac);
    error.becomes(&lab.tables, Reason::ErrorForwarded, &expected);

    let lab = Lab::new(Mode::Nat, false, true, backend(true, 8443));
    let error = Error::about(answer(false, true), router(true));
    let with_options = |packet: &Packet| {
        let mut quoted = packet.ip();
        // Destination options of eight bytes, with one that pads.
        quoted[5] += 8;
        quoted.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        quoted[6] = 60;
        quoted
    };
    let frame = [error.link(), error.around(&with_options(&error.about))].concat();
    let expected = Error { to: backend(true, 0).ip(), hops: 59, ..error.clone() }.sent(lab.mac);
    let about = Packet { from: backend(true, 8443), ..error.about.clone() };
    let expected = [expected.link(), expected.around(&with_options(&about))].concat();
    let (verdict, frame) = send(&lab.tables, &frame);
    assert_eq!((verdict.reason, frame), (Reason::ErrorForwarded, expected));
}

#[test]
fn every_error_counts_and_nothing_else_does() {
    for v6 in [false, true] {
        let lab = Lab::new(Mode::DsrL2, false, v6, backend(v6, 443));
        for kind in 0..=255_u8 {
            let error = Error { kind: (kind, 0), ..Error::about(answer(false, v6), router(v6)) };
            let is_error = if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) };
            let expected = if is_error { Reason::ErrorForwarded } else { Reason::OtherProtocol };
            assert_eq!(reason(&lab.tables, &error.frame()), expected, "type {kind}");
        }
    }
}

#[test]
fn an_echo_request_to_a_vip_is_the_hosts() {
    for v6 in [false, true] {
        let lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        let echo = Error::about(answer(false, v6), client(v6).ip());
        let echo = Error { kind: (if v6 { 128 } else { 8 }, 0), rest: [1, 2, 0, 1], ..echo };
        let frame = [echo.link(), echo.around(b"as ping sends it")].concat();
        assert_eq!(reason(&lab.tables, &frame), Reason::OtherProtocol);
        // Neighbours and routers are none of ours either.
        let solicitation = Error { kind: (135, 0), to: router(v6), ..echo };
        let frame = [solicitation.link(), solicitation.around(&[0; 24])].concat();
        assert_eq!(reason(&lab.tables, &frame), Reason::NotOurs);
    }
}

#[test]
fn errors_that_nobody_can_place_go_up() {
    for v6 in [false, true] {
        let lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
        let error = Error::about(answer(false, v6), router(v6));
        let at = |error: &Error, reason: Reason| {
            assert_eq!(crate::lab::reason(&lab.tables, &error.frame()), reason)
        };
        // Less than eight bytes of the transport header.
        at(&Error { quoted: 7, ..error.clone() }, Reason::OtherProtocol);
        // No service's port; no service's protocol.
        let about = Packet { from: (vip(v6), 80).into(), ..error.about.clone() };
        at(&Error { about, ..error.clone() }, Reason::OtherProtocol);
        at(&Error { about: answer(true, v6), ..error.clone() }, Reason::OtherProtocol);
        // Not about a packet that the receiver sent.
        let about = Packet::tcp(client(v6), service(v6));
        at(&Error { about, ..error.clone() }, Reason::OtherProtocol);
        let about = Packet::tcp(client(v6), backend(v6, 8443));
        at(&Error { about, to: router(v6), ..error.clone() }, Reason::NotOurs);
        // No hop left.
        at(&Error { hops: 1, ..error.clone() }, Reason::TtlExpired);
        // To a client, about somebody else's packets.
        let about = Packet::tcp(client(v6), (router(v6), 8443).into());
        at(&Error::about(about, router(v6)), Reason::NotOurs);
        for length in 0..error.ip().len() {
            let frame = [error.link(), error.ip()[..length].to_vec()].concat();
            assert!(matches!(reason(&lab.tables, &frame), Reason::Malformed | Reason::OtherProtocol));
        }
    }
}

#[test]
fn a_fragment_is_known_by_its_ports_if_it_is_the_first() {
    let lab = Lab::new(Mode::DsrL2, false, false, backend(false, 443));
    let error = Error::about(answer(false, false), router(false));
    for (offset, expected) in [(0, Reason::ErrorForwarded), (1, Reason::OtherProtocol)] {
        let mut quoted = [vec![0; 14], error.about.ip()].concat();
        fragment(&mut quoted, offset, true);
        let frame = [error.link(), error.around(&quoted[14..42])].concat();
        assert_eq!(reason(&lab.tables, &frame), expected);
    }
}

#[test]
fn an_error_of_a_flow_past_the_vip_stays_as_it_is() {
    for (v6, udp) in KINDS {
        let lab = Lab::new(Mode::Nat, udp, v6, backend(v6, 8443));
        let request = Packet::of(udp, client(v6), backend(v6, 8443));
        let error = Error::about(request.clone(), backend(v6, 0).ip());
        assert_eq!(reason(&lab.tables, &error.frame()), Reason::ErrorReplied);
        request.ends(&lab.tables, Reason::Direct);
        assert_eq!(reason(&lab.tables, &error.frame()), Reason::Direct);
    }
}

#[test]
fn an_error_goes_back_where_the_route_says() {
    let mut lab = Lab::new(Mode::Nat, false, false, backend(false, 8443));
    let request = Packet::tcp(client(false), backend(false, 8443));
    let error = Error::about(request, router(false));
    for (route, expected) in [
        (Route::Local, Reason::Local),
        (Route::TooBig, Reason::TooBig),
        (Route::ForwardingOff, Reason::ForwardingOff),
        (Route::None, Reason::NoRoute),
    ] {
        lab.tables.routes.insert(client(false).ip().into(), route);
        assert_eq!(reason(&lab.tables, &error.frame()), expected);
    }
    lab.tables.routes.insert(client(false).ip().into(), Route::Unresolved);
    let (verdict, frame) = send(&lab.tables, &error.frame());
    assert_eq!(verdict.reason, Reason::ErrorRepliedByHost);
    let about = Packet { to: service(false), ..error.about.clone() };
    assert_eq!(frame, Error { from: vip(false), hops: 59, about, ..error }.frame());
}

#[test]
fn a_udp_quote_without_checksum_stays_without() {
    let lab = Lab::new(Mode::Nat, true, false, backend(false, 8443));
    let error = Error::about(Packet { no_checksum: true, ..answer(true, false) }, router(false));
    let about = Packet { from: backend(false, 8443), ..error.about.clone() };
    let expected = Error { to: backend(false, 0).ip(), hops: 59, about, ..error.clone() }.sent(lab.mac);
    error.becomes(&lab.tables, Reason::ErrorForwarded, &expected);
}
