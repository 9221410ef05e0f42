//! How many connections backends and pools may have.

use std::cell::Cell;

use lb_common::abi::{OnEmpty, Service};
use lb_common::host::Tables;
use lb_common::limit::{Limit, Whose};
use lb_common::verdict::{Event, Reason};

use crate::lab::{Packet, Three, client, vip};

/// One `nat` service with three backends.
struct Bench {
    tables: Tables,
    ids: Vec<u16>,
    pool: u16,
    /// Initial sequence number of connections.
    sequence: Cell<u32>,
}

impl Bench {
    fn new(flags: u16) -> Self {
        let Three { mut tables, service, ids } = Three::new(flags | Service::LIMITED);
        let service = &mut tables.services[service as usize];
        service.on_limit = OnEmpty::Drop as u8;
        let pool = service.stable_pool;
        Self { tables, ids, pool, sequence: Cell::new(1000) }
    }

    fn limit(&mut self, whose: Whose, limit: Limit) {
        self.tables.limits.get_mut().insert(whose, limit);
    }

    fn each(&mut self, limit: Limit) {
        for id in self.ids.clone() {
            self.limit(Whose::Backend(id), limit);
        }
    }

    /// A packet of the `n`th connection; which backend gets it, or why nobody does.
    fn send(&self, n: u16, flags: &str) -> Result<u16, Reason> {
        let mut from = client(false);
        from.set_port(20_000 + n);
        let mut packet = Packet::tcp(from, (vip(false), 443).into());
        let header = packet.tcp.as_mut().expect("TCP");
        header.sequence_number = self.sequence.get() + u32::from(!flags.contains('S'));
        (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
        (header.fin, header.rst) = (flags.contains('F'), flags.contains('R'));
        packet.payload.clear();
        let (verdict, _) = packet.through(&self.tables);
        if verdict.reason == Reason::Forwarded { Ok(verdict.account.backend) } else { Err(verdict.reason) }
    }

    /// Connections that get through, of so many.
    fn through(&self, connections: std::ops::Range<u16>) -> usize {
        connections.filter(|&n| self.send(n, "S").is_ok()).count()
    }

    fn open(&self, whose: Whose) -> u64 {
        self.tables.limits.borrow().get(&whose).map_or(0, |limit| limit.open)
    }

    fn pass(&self, nanoseconds: u64) {
        self.tables.clock.set(self.tables.clock.get() + nanoseconds);
    }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn new_connections_come_at_the_rate_that_is_allowed_and_a_tenth_of_it_at_once() {
    let mut bench = Bench::new(0);
    let pool = Whose::Pool(bench.pool);
    bench.limit(pool, Limit { interval: SECOND / 100, burst: SECOND / 10, ..Limit::default() });
    assert_eq!(bench.through(0..50), 11);
    bench.pass(SECOND / 2);
    assert_eq!(bench.through(100..200), 11, "what was not used is not saved up for long");
    let evenly = (200..400).filter(|&n| {
        bench.pass(SECOND / 200);
        bench.send(n, "S").is_ok()
    });
    assert!((95..=105).contains(&evenly.count()), "a hundred a second");
    let kept_away = bench.tables.limits.borrow()[&pool].kept_away;
    assert!((220..250).contains(&kept_away), "{kept_away}");
}

#[test]
fn a_syn_that_comes_again_is_no_new_connection() {
    let mut bench = Bench::new(0);
    bench.limit(Whose::Pool(bench.pool), Limit { interval: SECOND, burst: 0, ..Limit::default() });
    let first = bench.send(1, "S");
    assert!(first.is_ok());
    assert_eq!(bench.send(1, "S"), first);
    assert_eq!(bench.send(2, "S"), Err(Reason::LimitDrop));
}

#[test]
fn connections_are_counted_from_their_first_segment_to_their_first_fin_or_rst() {
    let mut bench = Bench::new(Service::COUNTED);
    bench.limit(Whose::Pool(bench.pool), Limit { most: 3, ..Limit::default() });
    let pool = Whose::Pool(bench.pool);
    for n in 0..10 {
        assert!(bench.send(n, "S").is_ok(), "handshakes do not count");
    }
    for n in 0..3 {
        bench.send(n, "A").expect("established");
        bench.send(n, "A").expect("established");
    }
    assert_eq!(bench.open(pool), 3);
    assert_eq!(bench.send(20, "S"), Err(Reason::LimitDrop));
    assert!(bench.send(1, "A").is_ok(), "who has a connection keeps it");
    bench.send(0, "FA").expect("it goes to its backend");
    bench.send(0, "A").expect("the last acknowledgement");
    bench.send(1, "RA").expect("it goes to its backend");
    assert_eq!(bench.open(pool), 1, "what is over does not begin again");
    assert!(bench.send(21, "S").is_ok());
    // The same ports again.
    bench.sequence.set(90_000);
    assert!(bench.send(0, "S").is_ok());
    bench.send(0, "A").expect("established");
    assert_eq!(bench.open(pool), 2);
    let of_backends: u64 = bench.ids.iter().map(|id| bench.open(Whose::Backend(*id))).sum();
    assert_eq!(of_backends, 2);
}

#[test]
fn what_one_backend_may_not_have_another_takes_and_keeps() {
    let mut bench = Bench::new(Service::COUNTED);
    bench.tables.services[0].on_limit = Service::SPILL;
    bench.each(Limit { most: 20, ..Limit::default() });
    let mut places = Vec::new();
    for n in 0..60 {
        let Ok(place) = bench.send(n, "S") else { continue };
        assert_eq!(bench.send(n, "A"), Ok(place), "the handshake ends where it began");
        places.push((n, place));
    }
    for id in &bench.ids {
        assert!(bench.open(Whose::Backend(*id)) <= 20);
    }
    assert!(places.len() >= 55, "hardly anybody finds no other backend: {places:?}");
    assert!(bench.tables.count(Event::FlowTracked) > 0, "some were sent elsewhere");
    for (n, place) in places {
        assert_eq!(bench.send(n, "A"), Ok(place));
    }

    let mut strict = Bench::new(Service::COUNTED);
    strict.each(Limit { most: 1, ..Limit::default() });
    let taken = (0..30).filter(|&n| strict.send(n, "S").is_ok() && strict.send(n, "A").is_ok()).count();
    assert_eq!(taken, 3);
}

#[test]
fn a_limit_may_answer_with_a_reset() {
    let mut bench = Bench::new(0);
    bench.limit(Whose::Pool(bench.pool), Limit { interval: SECOND, burst: 0, ..Limit::default() });
    bench.tables.services[0].on_limit = OnEmpty::Reset as u8;
    assert!(bench.send(1, "S").is_ok());
    assert_eq!(bench.send(2, "S"), Err(Reason::LimitReset));
    // Where another backend should take it and none may, it fares as if there were none.
    bench.tables.services[0].on_limit = Service::SPILL;
    for (on_empty, reason) in [(OnEmpty::Reset, Reason::LimitReset), (OnEmpty::Drop, Reason::LimitDrop)] {
        bench.tables.services[0].on_empty = on_empty as u8;
        assert_eq!(bench.send(3, "S"), Err(reason));
    }
}

#[test]
fn on_trial_a_backend_gets_so_many_connections_and_not_one_more() {
    for (spills, elsewhere) in [(true, true), (false, false)] {
        let mut bench = Bench::new(Service::COUNTED);
        let tried = bench.ids[0];
        bench.limit(Whose::Backend(tried), Limit { trials: Limit::on_trial(5, spills), ..Limit::default() });
        let places: Vec<_> = (0..300).map(|n| bench.send(n, "S")).collect();
        assert_eq!(places.iter().filter(|place| **place == Ok(tried)).count(), 5);
        let refused = places.iter().filter(|place| place.is_err()).count();
        if elsewhere {
            assert!(refused < 5, "hardly anybody finds no other backend: {refused}");
        } else {
            assert!(refused > 50, "a third of the connections, but for five: {refused}");
        }
        for (n, place) in (0..).zip(&places) {
            if let Ok(place) = place {
                assert_eq!(bench.send(n, "A"), Ok(*place), "a connection stays where it began");
            }
        }
        let trials = bench.tables.limits.borrow()[&Whose::Backend(tried)].trials;
        assert_eq!(Limit::trials_left(trials), Some(0));
    }
}

#[test]
fn a_pool_on_trial_gets_so_many_connections_and_not_one_more() {
    let mut bench = Bench::new(0);
    let pool = Whose::Pool(bench.pool);
    bench.limit(pool, Limit { trials: Limit::on_trial(7, false), ..Limit::default() });
    assert_eq!(bench.through(0..100), 7);
    bench.limit(pool, Limit { trials: 0, ..Limit::default() });
    assert_eq!(bench.through(100..200), 100);

    // Whoever is sent elsewhere within it is one of them.
    let mut bench = Bench::new(0);
    bench.tables.services[0].on_limit = Service::SPILL;
    bench.limit(pool, Limit { trials: Limit::on_trial(7, false), ..Limit::default() });
    let full = Limit { most: 1, open: 1, ..Limit::default() };
    bench.limit(Whose::Backend(bench.ids[0]), full);
    bench.limit(Whose::Backend(bench.ids[1]), full);
    assert_eq!(bench.through(0..100), 7);
}

#[test]
fn a_flood_marks_no_more_slots_than_others_have_room_for() {
    let mut bench = Bench::new(0);
    bench.tables.services[0].on_limit = Service::SPILL;
    bench.each(Limit { interval: SECOND / 100, burst: SECOND / 10, ..Limit::default() });
    let through = bench.through(0..40_000);
    let marked = bench.tables.slots.iter().filter(|slot| slot.get().exceptions() > 0).count();
    assert!(through <= 33 && marked <= 33, "{marked} slots for {through} connections");
}
