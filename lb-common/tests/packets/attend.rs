//! Services with more than the bare rule: guests of a canary, its cap, and faults.

use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::abi::{Address, Fault, GuestKey, Mode, Service, Slot, Split};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::measure::{Measure, Outcome, cap_interval, counter};
use lb_common::pipeline::Tables as _;
use lb_common::verdict::{Event, Reason, Verdict};

use crate::lab::{Packet, vip};

const MEASURE: u32 = 1;
const SECOND: u64 = 1_000_000_000;

/// One service with a stable backend (the id 1) and one of the canary (2).
fn tables(share: u32, flags: u16) -> Tables {
    let mut tables = Tables::new();
    let index = tables.add_service(&ServiceSpec::tcp(vip(false), 443, Mode::Nat));
    tables.add_pool(index, false, &[("10.0.1.11:443".parse().unwrap(), 1)]);
    tables.add_pool(index, true, &[("10.0.2.11:443".parse().unwrap(), 1)]);
    tables.set_split(index, share);
    let service = &mut tables.services[index as usize];
    service.flags |= flags;
    service.measure = MEASURE as u16;
    tables
}

fn client(n: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a01_0000 + n), 40_000).into()
}

fn packet(from: SocketAddr, syn: bool) -> Packet {
    let mut packet = Packet::tcp(from, (vip(false), 443).into());
    packet.payload.clear();
    let header = packet.tcp.as_mut().expect("TCP");
    (header.syn, header.ack) = (syn, !syn);
    header.sequence_number = 1_000 + u32::from(!syn);
    packet
}

fn send(tables: &Tables, from: SocketAddr, syn: bool) -> Verdict {
    packet(from, syn).through(tables).0
}

/// The backend that a client's SYN goes to.
fn syn(tables: &Tables, n: u32) -> u16 {
    let verdict = send(tables, client(n), true);
    assert_eq!(verdict.reason, Reason::Forwarded);
    verdict.account.backend
}

fn set_word(tables: &Tables, offset: usize, value: u64) {
    tables.measures.borrow_mut()[(MEASURE as usize * size_of::<Measure>() + offset) / 8] = value;
}

#[test]
fn a_guest_is_in_the_canary_as_soon_as_it_is_open_and_in_no_other_case() {
    let guest = GuestKey::network(0, Address::v4([10, 1, 0, 0]), 96 + 24);
    for (share, expected) in [(0, 1), (1, 2), (1 << 31, 2), (Split::ALL, 2)] {
        let mut tables = tables(share, Service::GUESTS);
        tables.guests = vec![guest];
        for n in [0, 7, 255] {
            assert_eq!(syn(&tables, n), expected, "client {n} at {share}");
        }
        // Whoever is not asks his hash.
        let key = |n: u32| lb_common::abi::FlowKey {
            client: client(n).ip().into(),
            client_port: lb_common::abi::Port::new(40_000),
            port: lb_common::abi::Port::new(443),
            owner: 0,
        };
        for n in 256..300 {
            let hash = tables.services[0].split_hash(&key(n));
            assert_eq!(syn(&tables, n), if hash < share { 2 } else { 1 }, "client {n} at {share}");
        }
        tables.guests[0].service = 1;
        let hash = tables.services[0].split_hash(&key(7));
        assert_eq!(syn(&tables, 7), if hash < share { 2 } else { 1 }, "a guest of another service");
    }
}

#[test]
fn a_capped_canary_takes_what_it_may_and_the_rest_stays_where_it_went() {
    let tables = tables(Split::ALL, Service::CAPPED);
    set_word(&tables, offset_of!(Measure, cap_interval), cap_interval(100));
    // All at once: a burst of a twentieth of a second, and the first one.
    let taken: Vec<u32> = (0..1_000).filter(|&n| syn(&tables, n) == 2).collect();
    assert!((4..=6).contains(&taken.len()), "{taken:?}");
    assert_eq!(tables.count(Event::Capped), 1_000 - taken.len() as u64);
    // A SYN that is sent again is no other connection, even if there is room now.
    tables.clock.set(tables.clock.get() + SECOND);
    for n in 900..1_000 {
        assert_eq!(syn(&tables, n), 1, "client {n}");
    }
    // Both kinds go on where they began.
    for n in 0..1_000 {
        let expected = if taken.contains(&n) { 2 } else { 1 };
        for _ in 0..2 {
            assert_eq!(send(&tables, client(n), false).account.backend, expected, "client {n}");
        }
    }
}

#[test]
fn in_no_second_a_capped_canary_takes_more_than_it_may() {
    for a_second in [1, 7, 100, 5_000] {
        let tables = tables(Split::ALL, Service::CAPPED);
        set_word(&tables, offset_of!(Measure, cap_interval), cap_interval(a_second));
        let mut taken = Vec::new();
        // Lulls and bursts: 3 s of a client a millisecond, but for every other 300 ms.
        for ms in (0..3_000u64).filter(|ms| ms / 300 % 2 == 0) {
            for burst in 0..10 {
                tables.clock.set((1_000 + ms) * 1_000_000 + SECOND);
                if syn(&tables, (ms * 10 + burst) as u32) == 2 {
                    taken.push(ms);
                }
            }
        }
        assert!(!taken.is_empty());
        for (i, &from) in taken.iter().enumerate() {
            let within = taken[i..].iter().take_while(|&&ms| ms < from + 1_000).count();
            assert!(within <= a_second as usize + 1, "{within} in a second of at most {a_second}");
        }
    }
    let tables = tables(Split::ALL, Service::CAPPED);
    assert!((0..100).all(|n| syn(&tables, n) == 2), "no interval is no cap");
}

fn fault(tables: &Tables) -> Fault {
    Fault { until: tables.clock.get() + SECOND, share: Split::ALL, action: Fault::RESET, ..Fault::default() }
}

#[test]
fn a_fault_hurts_new_flows_of_its_share_until_it_is_over() {
    let mut tables = tables(0, Service::FAULTS | Service::MEASURED);
    tables.faults[3] = Fault { share: 1 << 30, ..fault(&tables) };
    let reasons: Vec<Reason> = (0..4_000).map(|n| send(&tables, client(n), true).reason).collect();
    let hurt = reasons.iter().filter(|reason| **reason == Reason::FaultReset).count();
    assert!((900..1_100).contains(&hurt), "{hurt} of 4000 are a quarter");
    assert_eq!(tables.word(MEASURE, counter(false, Outcome::Refused)), hurt as u64, "analysis sees them");
    for (n, reason) in reasons.iter().enumerate() {
        let again = send(&tables, client(n as u32), true).reason;
        assert_eq!(again, *reason, "a SYN that is sent again fares as the first one: client {n}");
        assert_eq!(
            send(&tables, client(n as u32), false).reason,
            Reason::Forwarded,
            "who is there stays there"
        );
    }
    tables.clock.set(tables.faults[3].until);
    assert!((0..4_000).all(|n| send(&tables, client(n), true).reason == Reason::Forwarded), "it is over");
}

#[test]
fn a_fault_hurts_whom_it_is_about() {
    let mut tables = tables(1 << 31, Service::FAULTS);
    let everywhere = fault(&tables);
    let pools: Vec<u16> = (0..200).map(|n| syn(&self::tables(1 << 31, 0), n)).collect();
    let mut check = |fault: Fault, hurt: &dyn Fn(u32, u16) -> bool| {
        tables.faults[0] = fault;
        for (n, &backend) in (0..).zip(&pools) {
            let expected = if hurt(n, backend) { Reason::FaultDrop } else { Reason::Forwarded };
            assert_eq!(send(&tables, client(n), true).reason, expected, "client {n} to {backend}: {fault:?}");
        }
    };
    let drop = Fault { action: Fault::DROP, ..everywhere };
    check(drop, &|_, _| true);
    check(Fault { pool: 2, ..drop }, &|_, backend| backend == 2);
    check(Fault { backend: 1, ..drop }, &|_, backend| backend == 1);
    let mask = Address::from(std::net::Ipv6Addr::from_bits(u128::MAX << 6));
    let network = Address::v4([10, 1, 0, 64]);
    check(Fault { network, mask, ..drop }, &|n, _| (64..128).contains(&n));
    check(Fault { service: 1, ..drop }, &|_, _| false);
}

#[test]
fn a_fault_answers_with_a_reset_of_its_own() {
    let mut tables = tables(0, Service::FAULTS);
    tables.faults[0] = fault(&tables);
    let asked = packet(client(1), true);
    let (verdict, frame) = asked.through(&tables);
    assert_eq!((verdict.reason, verdict.account.backend), (Reason::FaultReset, 0));
    // Ethernet, IPv4 without options, TCP: ports exchanged, RST and ACK, the SYN acknowledged.
    assert_eq!(frame[34..38], [443u16.to_be_bytes(), 40_000u16.to_be_bytes()].concat());
    assert_eq!((frame[47], &frame[42..46]), (0x14, &1_001u32.to_be_bytes()[..]));
}

#[test]
fn what_takes_two_programs_to_refuse_is_counted_once() {
    for flags in [0, Service::GUESTS] {
        let tables = tables(0, flags);
        for slot in &tables.slots {
            slot.set(Slot::of(0, 1, 1));
        }
        assert_eq!(send(&tables, client(1), true).reason, Reason::Reset);
        assert_eq!(tables.count(Event::SlowPath), 1);
    }
}
