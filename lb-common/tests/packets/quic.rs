//! QUIC: a connection id says where a datagram goes, wherever it comes from.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Life, Mode, Port, Service, Split};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::quic::Codec;
use lb_common::verdict::{Event, Reason};

use crate::lab::{Packet, TAGS, vip};

const PLAIN: Codec = Codec { config: 0, server_id_length: 2, nonce_length: 6, key: None };
const BLOCK: Codec = Codec { config: 1, server_id_length: 4, nonce_length: 12, key: Some([0x11; 16]) };
const PASSES: Codec = Codec { config: 2, server_id_length: 9, nonce_length: 8, key: Some([0x22; 16]) };
const CODECS: [Codec; 3] = [PLAIN, BLOCK, PASSES];
const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;

/// The `n`th backend's name.
fn name(codec: &Codec, n: u8) -> Vec<u8> {
    let mut name = vec![0x5e; codec.server_id_length.into()];
    name[usize::from(codec.server_id_length) - 1] = n;
    name
}

fn id(codec: &Codec, n: u8) -> Vec<u8> {
    codec.encode(&name(codec, n), &vec![0x77 ^ n; codec.nonce_length.into()]).unwrap()
}

/// A service with three backends (1 to 3) and one of a canary (4), each named in every way.
struct Bed {
    tables: Tables,
    v6: bool,
}

impl Bed {
    fn new(mode: Mode, v6: bool) -> Self {
        let mut tables = Tables::new();
        let service = tables.add_service(&ServiceSpec::udp(vip(v6), 443, mode));
        let port = if mode == Mode::Nat { 8443 } else { 443 };
        let at = |n: u16| -> SocketAddr {
            let ip: IpAddr = if v6 { format!("fd00::{n}") } else { format!("10.0.1.{n}") }.parse().unwrap();
            (ip, port).into()
        };
        let stable: Vec<_> = (1..=3).map(|n| (at(n), 1)).collect();
        assert_eq!(tables.add_pool(service, false, &stable), [1, 2, 3]);
        assert_eq!(tables.add_pool(service, true, &[(at(4), 1)]), [4]);
        let mut bed = Self { tables, v6 };
        bed.name_all();
        bed
    }

    /// Names every backend, as its life is now.
    fn name_all(&mut self) {
        for codec in &CODECS {
            let names: Vec<_> = (1..=4).map(|n| (name(codec, n as u8), n)).collect();
            let servers: Vec<_> = names.iter().map(|(name, n)| (name.as_slice(), *n)).collect();
            self.tables.add_quic(0, codec, true, &servers);
        }
    }

    fn client(&self, n: u16) -> SocketAddr {
        let ip = if self.v6 { format!("2001:db8:c::{n}") } else { format!("198.51.100.{}", n % 250) };
        (ip.parse::<IpAddr>().unwrap(), 40_000 + n).into()
    }

    fn datagram(&self, from: u16, payload: &[u8]) -> Packet {
        Packet { payload: payload.to_vec(), ..Packet::udp(self.client(from), (vip(self.v6), 443).into()) }
    }

    /// Where a datagram goes; 0: nowhere.
    fn goes(&self, from: u16, payload: &[u8]) -> u16 {
        self.datagram(from, payload).through(&self.tables).0.account.backend
    }

    /// Where it would go if connection ids said nothing.
    fn ordinarily(&self, from: u16) -> u16 {
        self.goes(from, b"no QUIC")
    }

    fn counts(&self) -> [u64; 4] {
        [Event::QuicById, Event::QuicOpening, Event::QuicUnknown, Event::QuicVoid]
            .map(|event| self.tables.count(event))
    }
}

fn short(id: &[u8]) -> Vec<u8> {
    [&[0x41], id, &[0xee; 24]].concat()
}

fn long(kind: u8, version: u32, id: &[u8]) -> Vec<u8> {
    let head = [0xc0 | kind << 4];
    [&head[..], &version.to_be_bytes(), &[id.len() as u8], id, &[8], &[0xcc; 40]].concat()
}

#[test]
fn a_short_header_goes_where_its_id_says_from_wherever_it_comes() {
    for (mode, v6) in [
        (Mode::Nat, false),
        (Mode::Nat, true),
        (Mode::DsrL2, false),
        (Mode::DsrIpip, false),
        (Mode::DsrIpip, true),
        (Mode::DsrGue, true),
    ] {
        let bed = Bed::new(mode, v6);
        for codec in &CODECS {
            for n in 1..=4 {
                for from in 0..20 {
                    let payload = short(&id(codec, n));
                    assert_eq!(bed.goes(from, &payload), n.into(), "{mode:?} {codec:?} from {from}");
                }
            }
        }
        assert_eq!(bed.counts(), [3 * 4 * 20, 0, 0, 0]);
        assert_eq!(bed.tables.count(Event::SlowPath), 0, "no table of flows is asked");
        assert_eq!(bed.tables.udp_flows.borrow().iter().count(), 0, "nothing is left behind");
    }
}

#[test]
fn it_comes_out_as_any_other_datagram_does() {
    for v6 in [false, true] {
        for tags in TAGS {
            let bed = Bed::new(Mode::Nat, v6);
            for options in [&[][..], &[0x94, 4, 0, 0]] {
                let options = if v6 { &[] } else { options };
                let packet = Packet { tags, options, ..bed.datagram(7, &short(&id(&PASSES, 3))) };
                let backend = &bed.tables.backends[3];
                let to = SocketAddr::new(backend.address.into(), 8443);
                let mac = backend.next_hop().mac().unwrap();
                let expected = Packet { to, hops: packet.hops - 1, ..packet.clone() }.sent(mac);
                packet.becomes(&bed.tables, Reason::Forwarded, &expected);
                // The answer goes to where the client is now, from the VIP.
                let answer = Packet::udp(to, packet.from);
                let router = Tables::ROUTER;
                let sent = Packet { from: packet.to, hops: answer.hops - 1, ..answer.clone() }.sent(router);
                answer.becomes(&bed.tables, Reason::Replied, &sent);
            }
        }
    }
}

#[test]
fn who_opens_a_connection_goes_by_the_ordinary_rule_whatever_id_was_drawn() {
    let bed = Bed::new(Mode::Nat, false);
    for from in 0..20 {
        let place = bed.ordinarily(from);
        for n in 1..=4 {
            for (version, kinds) in [(V1, [0, 1]), (V2, [1, 2])] {
                for kind in kinds {
                    assert_eq!(bed.goes(from, &long(kind, version, &id(&PLAIN, n))), place);
                }
            }
        }
    }
    assert_eq!(bed.counts(), [0, 20 * 4 * 4, 20, 0]);
}

#[test]
fn the_rest_of_a_handshake_and_unknown_versions_go_by_their_id() {
    let bed = Bed::new(Mode::Nat, false);
    for codec in &CODECS {
        for n in 1..=4 {
            for (version, kind) in [(V1, 2), (V2, 3), (0x1a2a_3a4a, 0), (0, 0)] {
                assert_eq!(bed.goes(1, &long(kind, version, &id(codec, n))), n.into(), "{version:#x}");
            }
        }
    }
    assert_eq!(bed.counts(), [3 * 4 * 4, 0, 0, 0]);
}

#[test]
fn whatever_names_nobody_goes_by_the_ordinary_rule() {
    let bed = Bed::new(Mode::Nat, false);
    let right = id(&PLAIN, 2);
    let mut cases: Vec<Vec<u8>> = Vec::new();
    // No such server; no such configuration; the one of servers without any; a length that is none.
    cases.push(short(&id(&PLAIN, 9)));
    for (first, rest) in [(3 << 5 | 8, &right[1..]), (7 << 5 | 8, &right[1..]), (6, &right[1..])] {
        cases.push(short(&[&[first], rest].concat()));
    }
    // Too short for any connection (RFC 9000, section 10.3), or for what the header says.
    cases.push(short(&right)[..20].to_vec());
    cases.push(long(2, V1, &right[..8]));
    cases.push(long(2, V1, &[]));
    cases.push(long(2, V1, &right)[..10].to_vec());
    cases.push(long(2, V1, &right)[..6].to_vec());
    cases.push(vec![0xc0; 3]);
    cases.push(Vec::new());
    for from in 0..20 {
        let place = bed.ordinarily(from);
        for case in &cases {
            assert_eq!(bed.goes(from, case), place, "{case:02x?}");
        }
    }
    assert_eq!(bed.counts(), [0, 0, 20 * (1 + cases.len() as u64), 0]);
    assert_eq!(bed.goes(0, &short(&right)[..21]), 2, "as short as may be");
}

#[test]
fn padding_of_a_frame_is_no_part_of_an_id() {
    let bed = Bed::new(Mode::Nat, false);
    for payload in [&short(&id(&PLAIN, 2))[..9], &long(2, V1, &id(&PLAIN, 2))[..14]] {
        for from in 0..20 {
            let mut frame = bed.datagram(from, payload).frame();
            frame.extend([0; 40]);
            let (verdict, _) = crate::lab::send(&bed.tables, &frame);
            assert_eq!(verdict.account.backend, bed.ordinarily(from));
        }
    }
}

#[test]
fn an_id_of_a_backend_that_drains_still_leads_there_and_one_of_a_backend_that_is_out_does_not() {
    let mut bed = Bed::new(Mode::Nat, false);
    let payload = short(&id(&BLOCK, 2));
    // No slot leads there any more.
    for slot in &bed.tables.slots {
        let old = slot.get();
        if old.new() == 2 {
            slot.set(lb_common::abi::Slot::of(1, 1, 0));
        }
    }
    assert!((0..20).all(|from| bed.goes(from, &payload) == 2));
    bed.tables.backends[2].life = Life::of(2, false).0;
    for from in 0..20 {
        assert_eq!(bed.goes(from, &payload), bed.ordinarily(from));
    }
    assert_eq!(bed.counts()[3], 20);
    // It is back, or its id is another one's: until the agent says so, it is not meant.
    bed.tables.backends[2].life = Life::of(2, true).0;
    assert!((0..20).all(|from| bed.goes(from, &payload) != 2));
    bed.name_all();
    assert!((0..20).all(|from| bed.goes(from, &payload) == 2));
}

#[test]
fn a_rollback_keeps_established_connections_or_resets_them_and_opens_none() {
    let mut bed = Bed::new(Mode::Nat, false);
    bed.tables.set_split(0, Split::ALL);
    let (opening, established) = (long(0, V1, &id(&PLAIN, 4)), short(&id(&PLAIN, 4)));
    assert_eq!((bed.goes(1, &opening), bed.goes(1, &established)), (4, 4));
    // `--flows keep`: a client that has moved since is still in the canary, one that begins is not.
    bed.tables.services[0].split = Split::of(0, Split::ALL).0;
    bed.tables.services[0].split_home = 0;
    for from in 2..20 {
        assert_ne!(bed.goes(from, &opening), 4);
        assert_eq!(bed.goes(from, &established), 4);
    }
    // `--flows reset`: nobody is, wherever it is.
    bed.tables.services[0].split = 0;
    bed.tables.backends[4].life = Life::of(2, true).0;
    for from in 0..20 {
        assert_ne!(bed.goes(from, &established), 4);
    }
}

#[test]
fn the_ordinary_rule_tracks_what_names_nobody() {
    let bed = Bed::new(Mode::Nat, false);
    let before = bed.ordinarily(5);
    let other = before % 3 + 1;
    for slot in bed.tables.slots.iter().take(101) {
        slot.set(lb_common::abi::Slot::of(other, slot.get().home(), 1));
    }
    assert_eq!(bed.goes(5, &long(0, V1, &[9; 8])), before, "it may have been there before the change");
    assert_eq!(bed.tables.count(Event::UdpFlowTracked), 1);
    assert_eq!(bed.goes(5, &short(&id(&PLAIN, 4))), 4, "an id counts more than what is tracked");
    assert_eq!(bed.goes(5, &short(&id(&PLAIN, 9))), before, "and changes nothing of it");
}

#[test]
fn ids_are_those_of_their_service_alone() {
    let mut bed = Bed::new(Mode::Nat, false);
    let spec = ServiceSpec::udp("203.0.113.11".parse().unwrap(), 443, Mode::Nat);
    let other = bed.tables.add_service(&spec);
    let backend = bed.tables.add_pool(other, false, &[("10.0.9.9:443".parse().unwrap(), 1)])[0];
    bed.tables.add_quic(other, &PLAIN, true, &[(&name(&PLAIN, 2), backend)]);
    let payload = short(&id(&PLAIN, 2));
    let to_other = Packet { to: (spec.vip, 443).into(), ..bed.datagram(1, &payload) };
    assert_eq!(to_other.through(&bed.tables).0.account.backend, backend);
    assert_eq!(bed.goes(1, &payload), 2);
    bed.tables.services[0].flags &= !Service::QUIC;
    assert_eq!(bed.goes(1, &payload), bed.ordinarily(1), "a service that does not say so reads no ids");
}

#[test]
fn what_does_not_fit_is_told_to_its_sender() {
    let bed = Bed::new(Mode::DsrIpip, false);
    let mut payload = short(&id(&PLAIN, 2));
    payload.resize(1472, 0);
    bed.datagram(1, &payload).ends(&bed.tables, Reason::TooBigTold);
    payload.truncate(1452);
    bed.datagram(1, &payload).ends(&bed.tables, Reason::Forwarded);
}

#[test]
fn a_service_of_every_port_has_ids_too() {
    let mut tables = Tables::new();
    let service = tables.add_service(&ServiceSpec::udp(vip(false), 0, Mode::DsrL2));
    let pool = [("10.0.1.1:0".parse().unwrap(), 1), ("10.0.1.2:0".parse().unwrap(), 1)];
    tables.add_pool(service, false, &pool);
    tables.add_quic(service, &PLAIN, false, &[(&name(&PLAIN, 2), 2)]);
    assert!(tables.services[0].port == Port::ANY);
    for port in [443, 4433, 9] {
        let packet = Packet {
            payload: short(&id(&PLAIN, 2)),
            ..Packet::udp(crate::lab::client(false), (vip(false), port).into())
        };
        assert_eq!(packet.through(&tables).0.account.backend, 2);
    }
}
