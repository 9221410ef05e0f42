//! What a measured service's handshakes leave in its measure.

use std::mem::offset_of;
use std::net::SocketAddr;

use lb_common::abi::{FlowKey, Mode, Port, Service};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::measure::{Measure, Outcome, PoolMeasure, bucket, counter};
use lb_common::pipeline::Tables as _;
use lb_common::verdict::Reason;

use crate::lab::{Packet, backend, client, vip};

const SEQUENCE: u32 = 4_000_000_000;
const MEASURE: u16 = 1;

/// One service with one backend, which is the canary's if so wanted; everybody goes there.
struct Bench {
    tables: Tables,
    canary: bool,
}

impl Bench {
    fn new(mode: Mode, canary: bool) -> Self {
        let mut tables = Tables::new();
        let index = tables.add_service(&ServiceSpec::tcp(vip(false), 443, mode));
        tables.add_pool(index, canary, &[(backend(false, 443), 1)]);
        let service = &mut tables.services[index as usize];
        service.flags |= Service::MEASURED;
        service.measure = MEASURE;
        if canary {
            // All of it, and settled.
            (service.split, service.split_home) = (u64::from(u32::MAX), u64::from(u32::MAX));
        }
        Self { tables, canary }
    }

    /// Client `n`, the `m`th of its connections.
    fn client(n: u8, m: u16) -> SocketAddr {
        let mut address = client(false);
        address.set_ip(std::net::Ipv4Addr::new(198, 51, 100, n).into());
        address.set_port(40_000 + m);
        address
    }

    fn syn(&self, from: SocketAddr) {
        let mut packet = Packet::tcp(from, (vip(false), 443).into());
        packet.payload.clear();
        let header = packet.tcp.as_mut().expect("TCP");
        (header.syn, header.ack, header.sequence_number) = (true, false, SEQUENCE);
        packet.ends(&self.tables, Reason::Forwarded);
    }

    /// A reply with these flags (S, A, R) and so many bytes.
    fn reply(&self, to: SocketAddr, flags: &str, bytes: usize) {
        let mut packet = Packet::tcp(backend(false, 443), to);
        packet.payload = vec![7; bytes];
        let header = packet.tcp.as_mut().expect("TCP");
        (header.syn, header.ack, header.rst) =
            (flags.contains('S'), flags.contains('A'), flags.contains('R'));
        header.acknowledgment_number = SEQUENCE.wrapping_add(1);
        packet.ends(&self.tables, Reason::Replied);
    }

    fn pass(&self, nanoseconds: u64) {
        self.tables.clock.set(self.tables.clock.get() + nanoseconds);
    }

    fn word(&self, offset: usize) -> u64 {
        self.tables.word(MEASURE.into(), offset)
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        let (here, there) =
            (self.word(counter(self.canary, outcome)), self.word(counter(!self.canary, outcome)));
        assert_eq!(there, 0, "nobody is in the other pool");
        here
    }

    fn waits(&self, histogram: usize, nanoseconds: u64) -> u64 {
        let first = counter(self.canary, Outcome::ClientTried);
        self.word(first + histogram + bucket(nanoseconds) * 8)
    }
}

#[test]
fn a_connection_that_is_served_is_counted_and_timed() {
    for canary in [false, true] {
        let bench = Bench::new(Mode::Nat, canary);
        let client = Bench::client(1, 0);
        bench.syn(client);
        bench.pass(3_000_000);
        bench.reply(client, "SA", 0);
        bench.pass(20_000_000);
        bench.reply(client, "A", 0);
        assert_eq!(bench.outcome(Outcome::Served), 0, "an empty segment serves nobody");
        bench.reply(client, "A", 100);
        bench.reply(client, "A", 100);
        for outcome in [Outcome::ClientTried, Outcome::Tried, Outcome::Answered, Outcome::Served] {
            assert_eq!(bench.outcome(outcome), 1, "{outcome:?}");
        }
        assert_eq!(bench.outcome(Outcome::ClientBad), 0);
        assert_eq!(bench.waits(offset_of!(PoolMeasure, handshake), 3_000_000), 1);
        assert_eq!(bench.waits(offset_of!(PoolMeasure, first_byte), 23_000_000), 1);
        assert!(bench.tables.handshakes.borrow().is_empty(), "nothing is left to look up");
    }
}

#[test]
fn a_client_is_one_sample_however_often_it_comes() {
    let bench = Bench::new(Mode::Nat, false);
    for connection in 0..100 {
        let client = Bench::client(1, connection);
        bench.syn(client);
        bench.reply(client, "SA", 0);
        bench.reply(client, "A", 1);
    }
    assert_eq!((bench.outcome(Outcome::ClientTried), bench.outcome(Outcome::Tried)), (1, 100));
    assert_eq!(bench.waits(offset_of!(PoolMeasure, first_byte), 0), 1);
}

#[test]
fn refused_unanswered_and_reset_clients_fared_badly() {
    let bench = Bench::new(Mode::Nat, false);
    let (refused, waiting, reset, late) =
        (Bench::client(1, 0), Bench::client(2, 0), Bench::client(3, 0), Bench::client(4, 0));
    for client in [refused, waiting, reset, late] {
        bench.syn(client);
    }
    bench.reply(refused, "RA", 0);
    assert_eq!((bench.outcome(Outcome::Refused), bench.outcome(Outcome::ClientBad)), (1, 1));

    bench.syn(waiting);
    assert_eq!(bench.outcome(Outcome::Repeated), 0, "no client is so fast");
    bench.pass(1_000_000_000);
    bench.syn(waiting);
    bench.pass(2_000_000_000);
    bench.syn(waiting);
    assert_eq!((bench.outcome(Outcome::Repeated), bench.outcome(Outcome::ClientBad)), (1, 2));
    assert_eq!(bench.outcome(Outcome::Tried), 4, "a SYN sent again begins nothing");
    bench.reply(waiting, "SA", 0);
    assert_eq!(bench.outcome(Outcome::Answered), 1);

    bench.reply(reset, "SA", 0);
    bench.reply(reset, "RA", 0);
    assert_eq!((bench.outcome(Outcome::ResetEarly), bench.outcome(Outcome::ClientBad)), (1, 3));

    // After its first byte a connection is the application's business.
    bench.reply(late, "SA", 0);
    bench.reply(late, "A", 1);
    bench.reply(late, "RA", 0);
    assert_eq!(bench.outcome(Outcome::ClientBad), 3);
}

#[test]
fn an_answer_to_another_syn_is_none() {
    let bench = Bench::new(Mode::Nat, false);
    let client = Bench::client(1, 0);
    bench.syn(client);
    let mut packet = Packet::tcp(backend(false, 443), client);
    let header = packet.tcp.as_mut().expect("TCP");
    (header.syn, header.acknowledgment_number) = (true, SEQUENCE);
    packet.ends(&bench.tables, Reason::Replied);
    assert_eq!(bench.outcome(Outcome::Answered), 0);
}

#[test]
fn without_replies_only_repeated_syns_are_seen() {
    let bench = Bench::new(Mode::DsrL2, false);
    let client = Bench::client(1, 0);
    bench.syn(client);
    bench.pass(1_000_000_000);
    bench.syn(client);
    let seen = [Outcome::Tried, Outcome::Repeated, Outcome::ClientBad].map(|outcome| bench.outcome(outcome));
    assert_eq!(seen, [1, 1, 1]);
}

#[test]
fn the_tripwire_is_crossed_by_clients_not_by_connections_and_only_in_the_canary() {
    for (canary, tripped) in [(false, false), (true, true)] {
        let bench = Bench::new(Mode::Nat, canary);
        // Three clients who fared badly, and another one for every four that tried.
        let line = |offset: usize, value: u64| {
            bench.tables.measures.borrow_mut()[(MEASURE as usize * size_of::<Measure>() + offset) / 8] =
                value;
        };
        line(offset_of!(Measure, trip_start), 3 << 16);
        line(offset_of!(Measure, trip_slope), 1 << 14);
        let refuse = |n: u8, m: u16| {
            bench.syn(Bench::client(n, m));
            bench.reply(Bench::client(n, m), "RA", 0);
        };
        for connection in 0..50 {
            refuse(1, connection);
        }
        assert!(bench.tables.tripped.borrow().is_empty(), "one client is one client");
        refuse(2, 0);
        refuse(3, 0);
        assert!(bench.tables.tripped.borrow().is_empty(), "3 bad of 3: the line is at 3.75");
        refuse(4, 0);
        assert_eq!(!bench.tables.tripped.borrow().is_empty(), tripped, "4 bad of 4: the line is at 4");
        assert_eq!(bench.word(offset_of!(Measure, tripped)) != 0, tripped);
    }
}

#[test]
fn replies_after_the_first_byte_need_no_look_up() {
    let bench = Bench::new(Mode::Nat, false);
    let from = Bench::client(1, 0);
    let service = bench.tables.services[0];
    let key = FlowKey {
        client: from.ip().into(),
        client_port: Port::new(from.port()),
        port: Port::new(443),
        owner: 0,
    };
    let awaited = || lb_common::awaited::is(&bench.tables, &service, &key);
    assert!(!awaited());
    bench.syn(from);
    assert!(awaited());
    bench.reply(from, "SA", 0);
    assert!(awaited());
    bench.reply(from, "A", 0);
    assert!(awaited(), "an acknowledgement is no byte");
    bench.reply(from, "A", 10);
    assert!(!awaited());
    assert_eq!(bench.outcome(Outcome::Served), 1);
    bench.reply(from, "A", 10);
    bench.reply(from, "RA", 0);
    assert_eq!((bench.outcome(Outcome::Served), bench.outcome(Outcome::ResetEarly)), (1, 0));
}
