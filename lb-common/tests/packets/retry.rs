//! What becomes of connections by backend, and which are tried again elsewhere.

use lb_common::abi::{Life, Mode, Service, Slot};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::limit::{Limit, Whose};
use lb_common::retry::{Budget, ONE};
use lb_common::verdict::{Event, Reason};
use lb_common::watch::Word;

use crate::lab::{Packet, Three, client, send, vip};

const SEQUENCE: u32 = 4_000_000_000;

/// One `nat` service with three backends.
struct Bench {
    tables: Tables,
    ids: Vec<u16>,
}

impl Bench {
    fn new(flags: u16) -> Self {
        let Three { mut tables, service, ids } = Three::new(flags);
        let budget = Budget { earned: ONE.div_ceil(5), most: 3 * ONE, left: 2 * ONE, reserved: 0 };
        tables.budgets.get_mut().insert(service, budget);
        Self { tables, ids }
    }

    fn packet(flags: &str, sequence: u32, bytes: usize, mut packet: Packet) -> Packet {
        packet.payload = vec![7; bytes];
        let header = packet.tcp.as_mut().expect("TCP");
        (header.syn, header.ack, header.rst) =
            (flags.contains('S'), flags.contains('A'), flags.contains('R'));
        header.sequence_number = sequence;
        header.acknowledgment_number = SEQUENCE.wrapping_add(1);
        packet
    }

    /// A packet of the client; returns which backend gets it.
    fn request(&self, flags: &str, sequence: u32) -> usize {
        let packet = Self::packet(flags, sequence, 0, Packet::tcp(client(false), (vip(false), 443).into()));
        let (verdict, _) = packet.through(&self.tables);
        assert_eq!(verdict.reason, Reason::Forwarded);
        self.ids.iter().position(|id| *id == verdict.account.backend).expect("one of the three")
    }

    /// The client's SYN, a second after whatever was before.
    fn syn(&self) -> usize {
        self.tables.clock.set(self.tables.clock.get() + 1_000_000_000);
        self.request("S", SEQUENCE)
    }

    /// A reply of a backend to the client.
    fn reply(&self, from: usize, flags: &str, bytes: usize) -> Reason {
        let packet = Self::packet(flags, 1, bytes, Packet::tcp(Three::at(from as u8), client(false)));
        packet.through(&self.tables).0.reason
    }

    /// The client's segment that ends the handshake.
    fn acknowledge(&self, expected: usize) {
        let packet = Packet::tcp(client(false), (vip(false), 443).into());
        let mut packet = Self::packet("A", SEQUENCE.wrapping_add(1), 0, packet);
        packet.tcp.as_mut().expect("TCP").acknowledgment_number = 2;
        assert_eq!(packet.through(&self.tables).0.account.backend, self.ids[expected]);
    }

    /// New flows that went to one backend go to another one.
    fn shift(&self, from: usize, to: usize) {
        let (from, to) = (self.ids[from], self.ids[to]);
        for slot in &self.tables.slots {
            let word = slot.get();
            if word.new() == from {
                slot.set(Slot::of(to, word.home(), word.exceptions() + 1));
            }
        }
    }

    fn word(&self, backend: usize, word: Word) -> u64 {
        self.tables.watched(self.ids[backend], word)
    }
}

#[test]
fn each_connection_fails_at_most_once_and_a_success_ends_the_row() {
    let bench = Bench::new(Service::WATCHED);
    let first = bench.syn();
    assert_eq!(bench.syn(), first, "nobody asked for retries");
    bench.syn();
    assert_eq!(bench.reply(first, "RA", 0), Reason::Replied);
    let of = |word| bench.word(first, word);
    assert_eq!([of(Word::Tried), of(Word::Unanswered), of(Word::Refused)], [1, 1, 0]);
    assert_eq!(of(Word::UnacceptedInARow), 1);

    bench.syn();
    bench.reply(first, "RA", 0);
    assert_eq!([of(Word::Tried), of(Word::Refused), of(Word::UnacceptedInARow)], [2, 1, 2]);

    bench.syn();
    bench.tables.clock.set(bench.tables.clock.get() + 5_000_000);
    bench.reply(first, "SA", 0);
    assert_eq!([of(Word::Answered), of(Word::HandshakeNs), of(Word::UnacceptedInARow)], [1, 5_000_000, 0]);
    bench.reply(first, "RA", 0);
    assert_eq!([of(Word::ResetEarly), of(Word::ResetInARow), of(Word::Refused)], [1, 1, 1]);

    bench.syn();
    bench.reply(first, "SA", 0);
    bench.reply(first, "A", 10);
    assert_eq!([of(Word::Served), of(Word::ResetInARow), of(Word::Answered)], [1, 0, 2]);
    bench.reply(first, "RA", 0);
    assert_eq!(of(Word::ResetEarly), 1, "after its first byte a connection is the application's business");
}

#[test]
fn an_answer_that_comes_late_is_no_answer_in_time() {
    let bench = Bench::new(Service::WATCHED);
    let first = bench.syn();
    bench.syn();
    bench.reply(first, "SA", 0);
    bench.reply(first, "RA", 0);
    let of = |word| bench.word(first, word);
    assert_eq!([of(Word::Unanswered), of(Word::Answered), of(Word::ResetEarly)], [1, 0, 0]);
    assert_eq!(of(Word::UnacceptedInARow), 0, "but it is one");
}

#[test]
fn an_unanswered_syn_goes_elsewhere_when_it_comes_again_and_the_flow_stays_there() {
    let bench = Bench::new(Service::WATCHED | Service::RETRIED);
    let first = bench.syn();
    assert_eq!(bench.request("S", SEQUENCE), first, "nobody asks again so soon");
    let second = bench.syn();
    assert_ne!(second, first);
    assert_eq!(bench.reply(first, "SA", 0), Reason::Superseded, "the client must not see two answers");
    assert_eq!(bench.reply(second, "SA", 0), Reason::Replied);
    assert_eq!(bench.syn(), second, "it was answered: a SYN that comes still is late");
    assert_eq!(bench.request("A", SEQUENCE.wrapping_add(1)), second);
    assert_eq!(bench.request("A", SEQUENCE.wrapping_add(1000)), second);
    assert_eq!(bench.tables.count(Event::FlowTracked), 1);
    assert_eq!([bench.word(first, Word::Unanswered), bench.word(second, Word::Unanswered)], [1, 0]);
    assert_eq!([bench.word(first, Word::Answered), bench.word(second, Word::Answered)], [0, 1]);
}

#[test]
fn a_refusal_is_kept_from_the_client_who_finds_another_backend() {
    let bench = Bench::new(Service::RETRIED);
    let first = bench.syn();
    assert_eq!(bench.reply(first, "RA", 0), Reason::RefusalKept);
    assert_eq!(bench.reply(first, "RA", 0), Reason::RefusalKept);
    let second = bench.syn();
    assert_ne!(second, first);
    assert_eq!(bench.tables.count(Event::Retried), 1, "a refusal and its retry are one");
    assert_eq!(bench.reply(second, "SA", 0), Reason::Replied);
    assert_eq!(bench.request("A", SEQUENCE.wrapping_add(1)), second);
}

#[test]
fn a_budget_that_two_cpus_have_overdrawn_is_empty() {
    let bench = Bench::new(Service::RETRIED);
    for budget in bench.tables.budgets.borrow_mut().values_mut() {
        // One was left, and both have spent it.
        (budget.left, budget.earned) = (ONE.wrapping_neg(), ONE / 2);
    }
    let first = bench.syn();
    assert_eq!(bench.reply(first, "RA", 0), Reason::Replied, "no refusal is kept");
    let left = bench.tables.budgets.borrow().values().next().expect("a budget").left;
    assert_eq!(left, (ONE / 2).wrapping_neg(), "and it earns");
}

#[test]
fn what_the_budget_does_not_allow_is_refused_as_ever() {
    let bench = Bench::new(Service::RETRIED);
    let mut sequence = SEQUENCE;
    let mut kept = |connections: usize| {
        let kept = (0..connections).filter(|_| {
            sequence = sequence.wrapping_add(77);
            let first = bench.request("S", sequence);
            bench.reply(first, "RA", 0) == Reason::RefusalKept
        });
        kept.count()
    };
    // Two in store, and a fifth of a retry for each connection.
    let of_100 = kept(100);
    assert_eq!(of_100, 22);
    assert_eq!(bench.tables.count(Event::RetryDenied), 78);
}

#[test]
fn the_only_backend_is_not_tried_twice() {
    let mut tables = Tables::new();
    let index = tables.add_service(&ServiceSpec::tcp(vip(false), 443, Mode::Nat));
    let ids = tables.add_pool(index, false, &[(Three::at(0), 1)]);
    tables.services[index as usize].flags |= Service::RETRIED;
    tables.budgets.get_mut().insert(index, Budget { earned: ONE, most: ONE, left: ONE, reserved: 0 });
    let bench = Bench { tables, ids };
    assert_eq!((bench.syn(), bench.syn()), (0, 0));
    assert_eq!(bench.reply(0, "RA", 0), Reason::Replied);
}

#[test]
fn a_retry_goes_to_whoever_has_room_and_takes_it() {
    let full = Limit { most: 1, open: 1, ..Limit::default() };
    let rate = Limit { interval: 60_000_000_000, ..Limit::default() };
    for with_room in 1..3 {
        let mut bench = Bench::new(Service::RETRIED | Service::LIMITED);
        let first = bench.syn();
        let others: Vec<usize> = (1..3).map(|n| (first + n) % 3).collect();
        let (free, taken) = (others[with_room - 1], others[2 - with_room]);
        bench.tables.limits.get_mut().insert(Whose::Backend(bench.ids[taken]), full);
        bench.tables.limits.get_mut().insert(Whose::Backend(bench.ids[free]), rate);
        assert_eq!(bench.syn(), free, "the other one has as many as it may have");
        let limits = bench.tables.limits.borrow();
        assert!(
            limits[&Whose::Backend(bench.ids[free])].due > bench.tables.clock.get(),
            "it is one of its own"
        );
    }
}

#[test]
fn nobody_has_room_for_what_is_tried_again() {
    let mut bench = Bench::new(Service::RETRIED | Service::LIMITED);
    let first = bench.syn();
    for n in 1..3 {
        let id = bench.ids[(first + n) % 3];
        bench
            .tables
            .limits
            .get_mut()
            .insert(Whose::Backend(id), Limit { most: 1, open: 1, ..Limit::default() });
    }
    assert_eq!(
        bench.reply(first, "RA", 0),
        Reason::Replied,
        "a refusal is kept for whoever has somewhere to go"
    );
    assert_eq!(bench.syn(), first);
    assert_eq!(bench.tables.count(Event::Retried), 0);
}

#[test]
fn a_connection_that_moves_is_not_taken_for_one_past_the_vip() {
    let bench = Bench::new(Service::RETRIED);
    for n in 0..3 {
        // The same ports, a moment ago.
        let packet = Bench::packet("A", 1, 0, Packet::tcp(client(false), Three::at(n)));
        packet.ends(&bench.tables, Reason::Direct);
    }
    let first = bench.syn();
    let second = bench.syn();
    assert_ne!(second, first);
    assert_eq!(bench.reply(second, "SA", 0), Reason::Replied);
}

#[test]
fn a_late_reset_of_the_first_backend_ends_nothing() {
    let bench = Bench::new(Service::RETRIED | Service::LIMITED | Service::COUNTED);
    let first = bench.syn();
    let second = bench.syn();
    assert_eq!(bench.reply(second, "SA", 0), Reason::Replied);
    bench.acknowledge(second);
    let open = |n: usize| bench.tables.limits.borrow()[&Whose::Backend(bench.ids[n])].open;
    assert_eq!(open(second), 1);
    assert_eq!(bench.reply(first, "RA", 0), Reason::Superseded);
    assert_eq!(open(second), 1, "it is the other one's connection");
    bench.reply(second, "RA", 0);
    assert_eq!(open(second), 0);
}

#[test]
fn what_no_backend_takes_for_a_syn_says_nothing_of_it() {
    let bench = Bench::new(Service::WATCHED | Service::RETRIED | Service::MEASURED);
    let syn = || Bench::packet("S", SEQUENCE, 0, Packet::tcp(client(false), (vip(false), 443).into()));
    let mut last_hop = syn();
    last_hop.hops = 1;
    let mut fin = syn();
    fin.tcp.as_mut().expect("TCP").fin = true;
    let mut frames: Vec<Vec<u8>> = vec![last_hop.frame(), fin.frame()];
    // With data, too: an odd number of bytes, more than a chunk, as much as fits.
    for bytes in [0, 1, 2, 15, 17, 1000, 1448] {
        let mut wrong = syn();
        wrong.payload = vec![7; bytes];
        let mut frame = wrong.frame();
        *frame.last_mut().expect("a byte") ^= 1;
        frames.push(frame);
    }
    for frame in &frames {
        for _ in 0..3 {
            send(&bench.tables, frame);
            bench.tables.clock.set(bench.tables.clock.get() + 1_000_000_000);
        }
    }
    let of = |word| (0..3).map(|n| bench.word(n, word)).sum::<u64>();
    assert_eq!([of(Word::Tried), of(Word::Unanswered)], [0, 0]);
    assert!(bench.tables.handshakes.borrow().is_empty());
    assert_eq!(bench.tables.count(Event::Retried), 0);
    // What is right is noted.
    for (tried, bytes) in (1..).zip([0, 1, 2, 15, 17, 1000, 1448]) {
        let mut right = syn();
        right.payload = vec![7; bytes];
        right.tcp.as_mut().expect("TCP").sequence_number = tried as u32;
        send(&bench.tables, &right.frame());
        assert_eq!(of(Word::Tried), tried, "{bytes} bytes");
    }
}

#[test]
fn a_syn_that_the_rule_has_moved_is_answered_by_whoever_has_it_now() {
    for flags in [Service::RETRIED | Service::WATCHED, Service::WATCHED] {
        let bench = Bench::new(flags);
        // Nothing is left for a retry.
        bench.tables.budgets.borrow_mut().clear();
        let first = bench.syn();
        assert_eq!(bench.syn(), first, "it cannot be tried elsewhere");
        let second = (first + 1) % 3;
        bench.shift(first, second);
        assert_eq!(bench.syn(), second);
        assert_eq!(bench.reply(second, "SA", 0), Reason::Replied);
        assert_eq!([bench.word(first, Word::Unanswered), bench.word(second, Word::Unanswered)], [1, 0]);
        assert_eq!([bench.word(second, Word::Tried), bench.word(second, Word::Answered)], [1, 1]);
        let late = bench.reply(first, "SA", 0);
        let kept = flags & Service::RETRIED != 0;
        assert_eq!(late, if kept { Reason::Superseded } else { Reason::Replied });
    }
}

#[test]
fn after_a_reset_of_flows_the_client_hears_of_it_from_whoever_gets_them() {
    let bench = Bench::new(Service::RETRIED);
    let first = bench.syn();
    assert_eq!(bench.reply(first, "SA", 0), Reason::Replied);
    let second = (first + 1) % 3;
    assert_eq!(bench.reply(second, "RA", 0), Reason::Superseded, "nobody has asked it");
    for life in [Life::of(2, true), Life::of(1, false)] {
        let mut bench = Bench::new(Service::RETRIED);
        let first = bench.syn();
        bench.reply(first, "SA", 0);
        let id = usize::from(bench.ids[first]);
        assert_eq!(bench.tables.backends[id].life().generation(), 1);
        bench.tables.backends[id].life = life.0;
        assert_eq!(bench.reply(second, "RA", 0), Reason::Replied);
    }
}

#[test]
fn data_that_is_accepted_with_the_syn_is_acknowledged_with_it() {
    let bench = Bench::new(Service::WATCHED);
    let first = bench.syn();
    let answer = Packet::tcp(Three::at(first as u8), client(false));
    let mut answer = Bench::packet("SA", 1, 0, answer);
    answer.tcp.as_mut().expect("TCP").acknowledgment_number = SEQUENCE.wrapping_add(1 + 1400);
    assert_eq!(answer.through(&bench.tables).0.reason, Reason::Replied);
    assert_eq!(bench.word(first, Word::Answered), 1);
}
