//! How many connections backends and pools may have.

use std::cell::Cell;
use std::net::SocketAddr;

use lb_common::abi::{HANDSHAKE_TICKS, Mode, OnEmpty, Service, Slot, TCP_IDLE_TICKS};
use lb_common::host::Tables;
use lb_common::limit::{Limit, Open, Whose};
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

    /// A packet of the `n`th connection.
    fn packet(&self, n: u16, flags: &str) -> Packet {
        let packet = Packet::tcp(peer(n), (vip(false), 443).into());
        flagged(packet, flags, self.sequence.get() + u32::from(!flags.contains('S')), DRAWN + 1)
    }

    /// Sends a packet of the `n`th connection; which backend gets it, or why nobody does.
    fn send(&self, n: u16, flags: &str) -> Result<u16, Reason> {
        let (verdict, _) = self.packet(n, flags).through(&self.tables);
        if verdict.reason == Reason::Forwarded { Ok(verdict.account.backend) } else { Err(verdict.reason) }
    }

    /// What a backend says to the `n`th client.
    fn reply(&self, n: u16, backend: u16, flags: &str) {
        let at = self.ids.iter().position(|id| *id == backend).expect("one of the three");
        let packet = Packet::tcp(Three::at(at as u8), peer(n));
        let drawn = DRAWN + u32::from(!flags.contains('S'));
        let (verdict, _) = flagged(packet, flags, drawn, self.sequence.get() + 1).through(&self.tables);
        assert_eq!(verdict.reason, Reason::Replied);
    }

    /// The `n`th connection, as far as the segment that ends its handshake; its backend, or why it has none.
    fn connect(&self, n: u16) -> Result<u16, Reason> {
        let backend = self.send(n, "S")?;
        if self.tables.services[0].mode == Mode::Nat as u8 {
            self.reply(n, backend, "SA");
        }
        assert_eq!(self.send(n, "A"), Ok(backend), "the handshake ends where it began");
        Ok(backend)
    }

    /// Of the only one that there is: [`Open::STANDS`] and the like.
    fn state(&self) -> u16 {
        let open = self.tables.open.borrow();
        assert_eq!(open.len(), 1);
        open.values().next().map_or(0, |open| open.state)
    }

    /// Open connections of the pool, which are those of its backends.
    fn count(&self) -> u64 {
        let pool = self.open(Whose::Pool(self.pool));
        assert_eq!(pool, self.ids.iter().map(|id| self.open(Whose::Backend(*id))).sum::<u64>());
        pool
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
/// Initial sequence number of every backend.
const DRAWN: u32 = 7_000_000;

/// The `n`th client.
fn peer(n: u16) -> SocketAddr {
    let mut peer = client(false);
    peer.set_port(20_000 + n);
    peer
}

fn flagged(mut packet: Packet, flags: &str, sequence: u32, acknowledged: u32) -> Packet {
    let header = packet.tcp.as_mut().expect("TCP");
    (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledged);
    (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
    (header.fin, header.rst) = (flags.contains('F'), flags.contains('R'));
    packet.payload.clear();
    packet
}

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
        bench.connect(n).expect("established");
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
    bench.connect(0).expect("established");
    assert_eq!(bench.count(), 2);
}

#[test]
fn what_proves_nothing_holds_no_place() {
    let bench = Bench::new(Service::COUNTED);
    // Nobody has said a word before; the backend drops it, or says that it knows nothing of it.
    for n in 0..3 {
        let backend = bench.send(n, "A").expect("it goes to its backend");
        bench.tables.advance(1);
        bench.send(n, "A").expect("it goes to its backend");
        if n > 0 {
            bench.reply(n, backend, "R");
        }
    }
    let handshakes = |bench: &Bench| bench.tables.handshakes.borrow().len();
    assert_eq!((bench.count(), handshakes(&bench)), (0, 1), "a RST is the last that is heard of it");
    // A handshake in a made-up name: who does not get the answer cannot acknowledge it.
    let backend = bench.send(5, "S").expect("it goes to its backend");
    bench.send(5, "A").expect("it goes to its backend");
    assert_eq!(bench.count(), 0, "nobody has answered");
    bench.reply(5, backend, "SA");
    for acknowledged in [0, DRAWN, DRAWN + (1 << 20)] {
        let guess = flagged(bench.packet(5, "A"), "A", 1001, acknowledged);
        assert_eq!(guess.through(&bench.tables).0.reason, Reason::Forwarded);
    }
    assert_eq!(bench.count(), 0);
    bench.send(5, "A").expect("it goes to its backend");
    assert_eq!((bench.count(), bench.state()), (1, Open::STANDS));
}

#[test]
fn a_connection_that_is_older_than_the_limit_is_found_when_its_backend_speaks() {
    let bench = Bench::new(Service::COUNTED);
    let backend = bench.send(1, "A").expect("established");
    assert_eq!(bench.count(), 0);
    bench.reply(1, backend, "A");
    assert_eq!((bench.count(), bench.state()), (1, Open::FOUND));
    bench.send(1, "FA").expect("it goes to its backend");
    assert_eq!(bench.count(), 0);
    bench.send(1, "A").expect("the last acknowledgement");
    bench.reply(1, backend, "A");
    assert_eq!((bench.count(), bench.state()), (0, Open::OVER));
}

#[test]
fn where_nothing_is_proven_who_has_talked_for_a_moment_only_does_not_count_for_long() {
    let mut bench = Bench::new(Service::COUNTED);
    bench.tables.services[0].mode = Mode::DsrL2 as u8;
    bench.connect(1).expect("established");
    bench.send(1, "A").expect("established");
    assert_eq!((bench.count(), bench.state()), (1, Open::YOUNG));
    bench.tables.advance(1);
    bench.send(1, "A").expect("established");
    assert_eq!((bench.count(), bench.state()), (1, Open::STANDS));

    // One that nobody has seen begin.
    bench.send(2, "A").expect("it goes to its backend");
    bench.send(2, "A").expect("it goes to its backend");
    assert_eq!(bench.count(), 1);
    bench.tables.advance(1);
    bench.send(2, "A").expect("established");
    assert_eq!(bench.count(), 2);

    for (state, patience) in [
        (Open::STANDS, TCP_IDLE_TICKS),
        (Open::YOUNG, HANDSHAKE_TICKS),
        (Open::FOUND, HANDSHAKE_TICKS),
        (Open::OVER, HANDSHAKE_TICKS),
    ] {
        assert_eq!(Open { backend: 1, state, seen: 0 }.patience(TCP_IDLE_TICKS), patience);
    }
}

#[test]
fn nobody_leaves_the_count_by_a_reset_that_his_backend_does_not_believe() {
    let bench = Bench::new(Service::COUNTED);
    let backend = bench.connect(1).expect("established");
    bench.reply(1, backend, "A");
    bench.send(1, "RA").expect("it goes to its backend");
    assert_eq!(bench.count(), 0);
    bench.send(1, "A").expect("established");
    assert_eq!(bench.count(), 1, "no byte of the backend has come: the client proves it again");

    let packet =
        Packet::tcp(Three::at(bench.ids.iter().position(|id| *id == backend).unwrap() as u8), peer(1));
    assert_eq!(packet.through(&bench.tables).0.reason, Reason::Replied, "the first byte");
    bench.send(1, "RA").expect("it goes to its backend");
    bench.send(1, "A").expect("established");
    assert_eq!(bench.count(), 0);
    bench.reply(1, backend, "A");
    assert_eq!((bench.count(), bench.state()), (1, Open::FOUND), "the backend goes on");
    // It did believe this one.
    bench.send(1, "RA").expect("it goes to its backend");
    bench.send(1, "A").expect("it goes to its backend");
    bench.reply(1, backend, "R");
    assert_eq!(bench.count(), 0);
}

#[test]
fn nobody_leaves_the_count_by_a_syn_that_his_backend_does_not_believe() {
    let mut bench = Bench::new(Service::COUNTED);
    bench.limit(Whose::Pool(bench.pool), Limit { most: 1, ..Limit::default() });
    let backend = bench.connect(1).expect("there is room");
    // From anybody who knows its ports: it is answered by what RFC 5961 calls a challenge.
    bench.sequence.set(90_000);
    assert_eq!(bench.send(1, "S"), Ok(backend), "the place that it takes is its own");
    bench.reply(1, backend, "A");
    assert_eq!((bench.count(), bench.state()), (1, Open::STANDS));
    assert_eq!(bench.send(2, "S"), Err(Reason::LimitDrop));

    // A client that has forgotten the old connection begins another one.
    bench.sequence.set(200_000);
    assert_eq!(bench.connect(1), Ok(backend));
    assert_eq!((bench.count(), bench.state()), (1, Open::STANDS));
    assert_eq!(bench.send(2, "S"), Err(Reason::LimitDrop));
}

#[test]
fn what_passes_after_a_fin_does_not_keep_its_mark() {
    let bench = Bench::new(Service::COUNTED);
    bench.connect(1).expect("established");
    bench.send(1, "FA").expect("it goes to its backend");
    let seen = || bench.tables.open.borrow().values().next().expect("a mark").seen;
    let then = seen();
    bench.tables.advance(HANDSHAKE_TICKS);
    bench.send(1, "A").expect("it goes to its backend");
    assert_eq!((bench.count(), seen()), (0, then));
}

#[test]
fn a_connection_whose_handshake_ends_with_a_fin_is_over() {
    let bench = Bench::new(Service::COUNTED);
    let backend = bench.send(1, "S").expect("it goes to its backend");
    bench.reply(1, backend, "SA");
    bench.send(1, "FA").expect("it goes to its backend");
    bench.send(1, "A").expect("the last acknowledgement");
    assert_eq!((bench.count(), bench.state()), (0, Open::OVER));
}

#[test]
fn what_one_backend_may_not_have_another_takes_and_keeps() {
    let mut bench = Bench::new(Service::COUNTED);
    bench.tables.services[0].on_limit = Service::SPILL;
    bench.each(Limit { most: 20, ..Limit::default() });
    let mut places = Vec::new();
    for n in 0..60 {
        let Ok(place) = bench.connect(n) else { continue };
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
    let taken = (0..30).filter(|&n| strict.connect(n).is_ok()).count();
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
            assert_eq!(refused, 0, "everybody finds another backend");
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
fn who_was_kept_away_from_a_backend_does_not_come_back_to_it_when_its_breaker_opens() {
    let mut bench = Bench::new(0);
    let tried = bench.ids[0];
    let on_trial = Limit { trials: Limit::on_trial(0, false), ..Limit::default() };
    bench.limit(Whose::Backend(tried), on_trial);
    // Its slots have just come back to it.
    for slot in &bench.tables.slots {
        slot.set(Slot::of(slot.get().new(), slot.get().home(), 1));
    }
    let kept_away: Vec<u16> = (0..100).filter(|&n| bench.send(n, "S").is_err()).collect();
    assert!(kept_away.len() > 15, "a third of them");
    for slot in &bench.tables.slots {
        let word = slot.get();
        if word.new() == tried {
            slot.set(Slot::of(bench.ids[1], word.home(), 2));
        }
    }
    bench.limit(Whose::Backend(tried), Limit::default());
    bench.pass(SECOND);
    for n in kept_away {
        assert_eq!(bench.send(n, "S"), Ok(bench.ids[1]), "its SYN comes again");
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
fn what_its_pool_may_not_have_takes_no_trial_of_a_backend() {
    let mut bench = Bench::new(0);
    let tried = Whose::Backend(bench.ids[0]);
    bench.limit(Whose::Pool(bench.pool), Limit { trials: Limit::on_trial(0, false), ..Limit::default() });
    bench.limit(tried, Limit { trials: Limit::on_trial(3, false), ..Limit::default() });
    assert_eq!(bench.through(0..100), 0);
    let trials = bench.tables.limits.borrow()[&tried].trials;
    assert_eq!(Limit::trials_left(trials), Some(3));
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
