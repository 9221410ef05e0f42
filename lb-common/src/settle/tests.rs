use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;

use bytemuck::Zeroable;

use super::*;
use crate::abi::{Address, Port};
use crate::wire::IPPROTO_TCP;

const PATIENCE: Patience = Patience { drain: 100, tcp_idle: 1000, udp_idle: 30 };

/// One service with one slot in each pool, and packets that come while the flows are read.
struct Maps {
    service: RefCell<Service>,
    slots: [Cell<Slot>; 2],
    flows: RefCell<BTreeMap<FlowKey, FlowEntry>>,
    half_open: RefCell<BTreeMap<FlowKey, HalfOpen>>,
    while_reading: fn(&Self),
}

impl Maps {
    fn new(stable: Slot, canary: Slot) -> Self {
        let service = Service {
            protocol: IPPROTO_TCP,
            table_size: 1,
            stable_slots: 0,
            canary_slots: 1,
            ..Service::zeroed()
        };
        Self {
            service: RefCell::new(service),
            slots: [Cell::new(stable), Cell::new(canary)],
            flows: RefCell::default(),
            half_open: RefCell::default(),
            while_reading: |_| {},
        }
    }

    fn track(&self, port: u16, owner: u32, backend: u16) {
        let client = Address::v4([192, 0, 2, 1]);
        let key = FlowKey { client, client_port: Port::new(port), port: Port::new(443), owner };
        self.flows.borrow_mut().insert(key, FlowEntry::of(backend, 1, 5000));
    }

    /// Sweeps at tick 5000; everything was last changed at `changed`.
    fn sweep(&self, changed: u32) -> (SweepReport, SplitClock) {
        let changed = &[changed];
        let share = self.service.borrow().split().new();
        let mut split = SplitClock { share, changed: changed[0], closed: false };
        let clock = ServiceClock {
            service: 0,
            stable: Some(TableClock { first: 0, changed, takers: &Takers::new() }),
            canary: Some(TableClock { first: 1, changed, takers: &Takers::new() }),
            split: &mut split,
            at_rest: &mut false,
        };
        let Ok(report) = sweep(self, &mut [clock], &PATIENCE, 5000 << 30);
        (report, split)
    }

    fn slot_words(&self) -> [Slot; 2] {
        [self.slots[0].get(), self.slots[1].get()]
    }
}

impl Access for Maps {
    type Error = Infallible;

    fn service(&self, _index: u32) -> Service {
        *self.service.borrow()
    }

    fn life(&self, backend: u16) -> Life {
        Life::of(1, backend != 9)
    }

    fn slot(&self, index: u32) -> Slot {
        self.slots[index as usize].get()
    }

    fn guest(&self, _client: &GuestKey) -> bool {
        false
    }

    fn cas_slot(&self, index: u32, old: Slot, new: Slot) -> bool {
        let same = self.slot(index) == old;
        if same {
            self.slots[index as usize].set(new);
        }
        same
    }

    fn cas_split(&self, _service: u32, old: Split, new: Split) -> bool {
        let same = self.service.borrow().split() == old;
        if same {
            self.service.borrow_mut().split = new.0;
        }
        same
    }

    fn store_home(&self, _service: u32, share: u32) {
        self.service.borrow_mut().split_home = share.into();
    }

    fn half_open(&self, each: &mut dyn FnMut(FlowKey, HalfOpen)) -> Result<(), Infallible> {
        self.half_open.borrow().iter().for_each(|(key, note)| each(*key, *note));
        Ok(())
    }

    fn flows(&self, udp: bool, each: &mut dyn FnMut(FlowKey, FlowEntry)) -> Result<(), Infallible> {
        if !udp {
            self.flows.borrow().iter().for_each(|(key, entry)| each(*key, *entry));
            (self.while_reading)(self);
        }
        Ok(())
    }

    fn delete_flow(&self, _udp: bool, key: &FlowKey, expected: &FlowEntry) -> Result<bool, Infallible> {
        let mut flows = self.flows.borrow_mut();
        let changed = flows.get(key).is_some_and(|entry| entry != expected);
        if !changed {
            flows.remove(key);
        }
        Ok(!changed)
    }
}

#[test]
fn a_slot_settles_after_its_drain_time_and_not_before() {
    let maps = Maps::new(Slot::of(2, 1, 3), Slot::default());
    let (report, _) = maps.sweep(4900);
    assert_eq!((maps.slot_words()[0], report.unsettled), (Slot::of(2, 1, 3), 1));
    maps.sweep(4899);
    assert_eq!(maps.slot_words()[0], Slot::of(2, 2, 1));
    let (report, _) = maps.sweep(4899);
    assert_eq!((maps.slot_words()[0], report.unsettled), (Slot::of(2, 2, 0), 0));
}

#[test]
fn a_home_without_flows_is_left_at_once_but_not_without_a_mark() {
    for home in [0, 9] {
        let maps = Maps::new(Slot::of(2, home, 0), Slot::default());
        maps.sweep(5000);
        assert_eq!(maps.slot_words()[0], Slot::of(2, 2, 1));
    }
}

#[test]
fn exceptions_stay_for_as_long_as_a_handshake_may_last() {
    let maps = Maps::new(Slot::of(1, 1, 2), Slot::default());
    maps.sweep(5000 - HANDSHAKE_TICKS);
    assert_eq!(maps.slot_words()[0], Slot::of(1, 1, 2));
    maps.sweep(4999 - HANDSHAKE_TICKS);
    assert_eq!(maps.slot_words()[0], Slot::of(1, 1, 1));
}

#[test]
fn a_mark_that_comes_while_the_flows_are_read_survives() {
    for exceptions in [1, 2] {
        let mut maps = Maps::new(Slot::of(1, 1, exceptions), Slot::default());
        maps.while_reading = |maps| maps.slots[0].set(Slot(maps.slots[0].get().0 + Slot::EXCEPTION));
        maps.sweep(0);
        assert_eq!(maps.slot_words()[0], Slot::of(1, 1, exceptions + 2));
    }
}

#[test]
fn a_mark_stays_for_a_whole_interval_though_it_is_the_first() {
    let marked = Slot(Slot::of(1, 1, 0).0 + Slot::EXCEPTION);
    // The packet that has set it is yet to note its flow when the tables are read.
    let maps = Maps::new(marked, Slot::default());
    maps.sweep(0);
    assert!(!maps.slot_words()[0].is_settled());
    maps.sweep(0);
    assert!(maps.slot_words()[0].is_settled());
}

#[test]
fn the_slot_is_marked_where_a_flow_is_looked_for_now() {
    let maps = Maps::new(Slot::of(1, 1, 4), Slot::of(2, 2, 0));
    maps.track(1, 0, 1);
    // Everything has gone to the canary, and its split has settled: the stable slot's mark is of no use any more.
    let service = *maps.service.borrow();
    let all = Split::of(Split::ALL, 0).0;
    maps.service.replace(Service { split: all, split_home: Split::ALL.into(), ..service });
    let (report, _) = maps.sweep(0);
    assert_eq!(maps.slot_words(), [Slot::of(1, 1, 1), Slot::of(2, 2, 1)]);
    assert_eq!(
        (report.load(1).flows, report.load(2), report.kept),
        (1, Load { slots: 1, homes: 1, flows: 0 }, 1)
    );
}

#[test]
fn entries_go_when_the_hash_says_the_same_or_nobody_asks() {
    let maps = Maps::new(Slot::of(1, 1, 1), Slot::default());
    maps.track(1, 0, 1);
    maps.track(2, 0, 9);
    maps.track(3, 7, 1);
    let (report, _) = maps.sweep(0);
    assert_eq!((report.deleted, report.kept, maps.flows.borrow().len()), (3, 0, 0));
}

#[test]
fn an_entry_that_changes_while_it_is_judged_stays_and_keeps_its_mark() {
    let mut maps = Maps::new(Slot::of(1, 1, 1), Slot::default());
    maps.track(1, 0, 1);
    maps.while_reading = |maps| maps.track(1, 0, 2);
    let (report, _) = maps.sweep(0);
    assert_eq!((report.deleted, report.kept, maps.slot_words()[0]), (0, 1, Slot::of(1, 1, 1)));
}

#[test]
fn a_split_closes_after_its_drain_time() {
    let maps = Maps::new(Slot::of(1, 1, 0), Slot::of(2, 2, 0));
    let service = *maps.service.borrow();
    maps.service.replace(Service { split: divided(Split::default(), 0, 7).0, ..service });
    let (report, clock) = maps.sweep(4900);
    assert_eq!((report.undecided, clock.closed, maps.service.borrow().home()), (vec![0], false, 0));
    let (report, clock) = maps.sweep(4899);
    assert_eq!((report.undecided, clock.closed), (vec![], true));
    assert_eq!((maps.service.borrow().split(), maps.service.borrow().home()), (Split::of(7, 0), 7));
}

#[test]
fn a_lapsed_lease_becomes_a_rollback_that_keeps_flows() {
    let maps = Maps::new(Slot::of(1, 1, 0), Slot::of(2, 2, 0));
    let service = *maps.service.borrow();
    maps.service.replace(Service {
        split: Split::of(7, 0).0,
        split_home: 7,
        lease_until: 5000 << 30,
        ..service
    });
    let (report, clock) = maps.sweep(0);
    assert_eq!((report.lapsed, maps.service.borrow().split()), (vec![0], Split::of(0, 7)));
    assert_eq!(clock, SplitClock::new(0, 5000));
}

#[test]
fn a_split_that_somebody_else_has_changed_counts_as_changed_now() {
    let maps = Maps::new(Slot::of(1, 1, 0), Slot::of(2, 2, 0));
    let service = *maps.service.borrow();
    maps.service.replace(Service { split: Split::of(0, 7).0, split_home: 7, ..service });
    let mut split = SplitClock { share: 7, changed: 0, closed: true };
    let clock =
        ServiceClock { service: 0, stable: None, canary: None, split: &mut split, at_rest: &mut false };
    assert!(sweep(&maps, &mut [clock], &PATIENCE, 5000 << 30).is_ok());
    assert_eq!((split, maps.service.borrow().home()), (SplitClock::new(0, 5000), 7));
}

#[test]
fn a_change_keeps_the_home_and_leaves_a_mark() {
    let old = Slot::of(1, 1, 0);
    assert_eq!(pointed(old, 1, false), None);
    assert_eq!(pointed(old, 2, false), Some(Slot::of(2, 1, 1)));
    assert_eq!(pointed(Slot::of(2, 1, 1), 1, false), Some(Slot::of(1, 1, 2)));
    assert_eq!(pointed(old, 2, true), Some(Slot::of(2, 2, 1)));
    // Nothing new, but the home is gone.
    assert_eq!(pointed(Slot::of(2, 1, 7), 2, true), Some(Slot::of(2, 2, 8)));
    assert_eq!(pointed(Slot::of(1, 1, u32::MAX), 2, false), Some(Slot::of(2, 1, u32::MAX)));
}

#[test]
fn a_split_keeps_tracked_what_may_have_flows_from_before() {
    let grown = divided(Split::default(), 0, 10);
    assert_eq!(grown, Split::of(10, 10));
    assert_eq!(divided(grown, 0, 10), grown);
    assert_eq!(divided(grown, 0, 0), Split::of(0, 10));
    assert_eq!(divided(Split::of(20, 0), 20, 5), Split::of(5, 20));
    assert_eq!(divided(Split::of(20, 30), 40, 5), Split::of(5, 40));
}

#[test]
fn a_handshake_that_was_sent_elsewhere_keeps_its_slot_marked_until_it_is_over() {
    let client = Address::v4([192, 0, 2, 1]);
    let key = FlowKey { client, client_port: Port::new(1), port: Port::new(443), owner: 0 };
    let sweep = |flags: u16, backend: u16, at: u32| {
        let maps = Maps::new(Slot::of(1, 1, 1), Slot::default());
        maps.service.borrow_mut().flags = flags;
        maps.half_open.borrow_mut().insert(key, HalfOpen { backend, pad: 0, generation: 1, sequence: 0, at });
        maps.sweep(100);
        maps.slot_words()[0].exceptions()
    };
    // Also where nobody is sent elsewhere any more.
    for flags in [Service::RETRIED, Service::LIMITED, Service::CAPPED, 0] {
        assert_eq!(sweep(flags, 2, 4990), 1);
    }
    assert_eq!(sweep(Service::RETRIED, 1, 4990), 0, "the slot says the same");
    assert_eq!(sweep(Service::RETRIED, 2, 5000 - HANDSHAKE_TICKS - 1), 0, "it is over");
    assert_eq!(sweep(Service::RETRIED, 9, 4990), 0, "its backend is gone");
}

#[test]
fn a_service_at_rest_is_not_read_until_a_slot_changes() {
    let maps = Maps::new(Slot::of(1, 1, 0), Slot::of(1, 1, 0));
    let mut split = SplitClock { share: 0, changed: 0, closed: true };
    let mut at_rest = false;
    let mut sweep = |at_rest: &mut bool| {
        let (changed, takers) = (&[0], &Takers::from([(1, 1)]));
        let table = |first| Some(TableClock { first, changed, takers });
        let clock =
            ServiceClock { service: 0, stable: table(0), canary: table(1), split: &mut split, at_rest };
        let Ok(report) = sweep(&maps, &mut [clock], &PATIENCE, 5000 << 30);
        (report.load(1), report.load(2))
    };
    let all = Load { slots: 2, homes: 2, flows: 0 };
    assert_eq!((sweep(&mut at_rest), at_rest), ((all, Load::default()), true));
    // Nobody has said so: it is not seen.
    maps.slots[1].set(Slot::of(2, 2, 0));
    assert_eq!((sweep(&mut at_rest), at_rest), ((all, Load::default()), true));
    at_rest = false;
    let half = Load { slots: 1, homes: 1, flows: 0 };
    assert_eq!((sweep(&mut at_rest), at_rest), ((half, half), true));
    // A split that is not closed may have flows marked at any time.
    let service = *maps.service.borrow();
    maps.service.replace(Service { split: Split::of(0, 7).0, ..service });
    sweep(&mut at_rest);
    assert!(!at_rest);
}
