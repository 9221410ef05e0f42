//! The sweep over the maps: the rule is [`lb_common::settle`], which the model tests run as well.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use lb_common::abi::{
    FlowEntry, FlowKey, GuestKey, HANDSHAKE_TICKS, HalfOpen, Life, Service, Slot, Split, TCP_IDLE_TICKS,
};
use lb_common::awaited;
use lb_common::limit::Limit;
use lb_common::settle::{self, Access, Patience, ServiceClock, SweepReport, TableClock};
use lb_common::verdict::Event;

use crate::clock;
use crate::config::Dataplane;
use crate::dataplane::Maps;
use crate::dataplane::bpf::{Hash, Mapped};
use crate::publish::{Publisher, Table};

/// How long flows may be silent.
#[must_use]
pub fn patience(dataplane: &Dataplane) -> Patience {
    Patience {
        drain: clock::in_ticks(dataplane.drain),
        tcp_idle: clock::in_ticks(dataplane.drain).max(TCP_IDLE_TICKS),
        udp_idle: clock::in_ticks(dataplane.udp_idle),
    }
}

/// The books of `FLOWS` and `UDP_FLOWS`.
///
/// A full table makes room by forgetting a flow that was silent for long, and tells nobody. But what was put in, was not
/// deleted and is not there any more must have been forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Entries that were not there any more when these books were opened.
    opening: Option<u64>,
    /// Entries that sweeps have deleted since.
    deleted: u64,
    forgotten: u64,
    lately: u64,
    /// Entries that the last sweep has left, in `FLOWS` and in `UDP_FLOWS`.
    kept: [u64; 2],
    /// How many were put in when the tables were last found empty, and how many times in a row. (The kernel may count an
    /// entry before it puts it in: the second time is the one that counts.)
    empty: (u64, u8),
}

/// Entries of the tables that come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    /// Of `FLOWS`.
    pub flows: u64,
    /// Of `UDP_FLOWS`.
    pub udp_flows: u64,
    /// Handshakes that may still end. (Nobody deletes the others; they are the first to go when room is wanted.)
    pub half_open: u64,
}

/// How full the tables are, as the last sweep has left them.
#[must_use]
pub fn rooms(maps: &Maps, books: &Books) -> Rooms {
    let (now, mut half_open) = (clock::ticks(), 0);
    // As for the other tables: what cannot be read shows nothing.
    let _ = maps.half_open.for_each(|_, note| {
        half_open += u64::from(now.saturating_sub(note.at) <= HANDSHAKE_TICKS);
    });
    let [flows, udp_flows] = books.kept;
    Rooms { flows, udp_flows, half_open }
}

impl Books {
    /// Flows that were forgotten for want of room since these books were opened: so many at least.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Those among them that the last sweep has found.
    #[must_use]
    pub const fn lately(&self) -> u64 {
        self.lately
    }

    /// Whether nothing can be in the tables, of which so many entries were ever put in.
    const fn are_empty(&self, inserted: u64) -> bool {
        self.empty.0 == inserted && self.empty.1 > 1
    }

    /// Whether nothing can be in `FLOWS` and `UDP_FLOWS` now. `false` where that is not known.
    #[must_use]
    pub fn say_empty(&self, maps: &Maps) -> bool {
        inserted(maps).is_ok_and(|inserted| self.are_empty(inserted))
    }

    /// Notes what a sweep has left.
    fn note(&mut self, inserted: &RangeInclusive<u64>, kept: [u64; 2]) {
        self.kept = kept;
        let times = if self.empty.0 == *inserted.end() { self.empty.1.saturating_add(1) } else { 1 };
        let still = kept == [0, 0] && inserted.start() == inserted.end();
        self.empty = if still { (*inserted.end(), times) } else { (0, 0) };
    }

    /// Balances the books. `inserted` is how many entries were ever put in, as counted before a sweep and after it: those in
    /// between may be among its entries or not, and are never taken for forgotten.
    fn balance(&mut self, inserted: RangeInclusive<u64>, swept: &SweepReport) {
        let Some(opening) = self.opening else {
            self.opening = Some(inserted.end().saturating_sub(swept.kept));
            return;
        };
        self.deleted += swept.deleted;
        let missing = inserted.start().saturating_sub(opening + self.deleted + swept.kept);
        self.lately = missing.saturating_sub(self.forgotten);
        self.forgotten += self.lately;
    }
}

/// Settles what may be settled now, and balances the books.
///
/// # Errors
///
/// If flows or counters cannot be read, or flows not be deleted. Nothing is lost by that.
pub fn sweep(publisher: &mut Publisher, patience: &Patience, books: &mut Books) -> io::Result<SweepReport> {
    let before = inserted(&publisher.maps)?;
    let (report, kept) = settle_all(publisher, patience, books.are_empty(before))?;
    let inserted = before..=inserted(&publisher.maps)?;
    books.note(&inserted, kept);
    books.balance(inserted, &report);
    Ok(report)
}

/// Counts the connections of services that have limits anew, and forgets those that are over or were silent for too long.
///
/// # Errors
///
/// If they cannot be read or deleted.
pub fn recount(maps: &Maps, services: impl Iterator<Item = u32>, patience: &Patience) -> io::Result<()> {
    let mut counted = false;
    for index in services {
        counted |= maps.services.read(index).has(Service::COUNTED);
    }
    if !counted {
        return Ok(());
    }
    let words = |map: &Mapped<Limit>| -> Vec<u64> { (0..map.len()).map(|i| map.read(i).open).collect() };
    let before = [words(&maps.limits), words(&maps.pool_limits)];
    let (now, mut old) = (clock::ticks(), Vec::new());
    let mut counts = [vec![0u64; before[0].len()], vec![0u64; before[1].len()]];
    maps.open.for_each(|key, open| {
        if now.saturating_sub(open.seen) > open.patience(patience.tcp_idle) {
            return old.push(*key);
        }
        let Some(own) = counts[0].get_mut(usize::from(open.backend)).filter(|_| open.is_counted()) else {
            return;
        };
        *own += 1;
        let pool = maps.backends.read(open.backend.into()).pool;
        if let Some(pool) = counts[1].get_mut(usize::from(pool)) {
            *pool += 1;
        }
    })?;
    for key in old {
        // It may have begun to talk again: then its next packet counts it.
        maps.open.take(&key)?;
    }
    for (map, (before, counts)) in
        [&maps.limits, &maps.pool_limits].into_iter().zip(before.iter().zip(&counts))
    {
        for (index, (before, count)) in (0..).zip(before.iter().zip(counts)) {
            let word = map.word(index, offset_of!(Limit, open));
            let amiss = amiss(*count, [*before, word.load(Ordering::Acquire)]);
            if amiss != 0 {
                word.fetch_add(amiss, Ordering::AcqRel);
            }
        }
    }
    Ok(())
}

/// What a word lacks that was so much before and after connections were counted. (Less than none: modulo 2^64, as the kernel
/// program has it.)
///
/// What began or ended meanwhile was counted or not: so a count between the two says that nothing is amiss.
fn amiss(count: u64, [before, after]: [u64; 2]) -> u64 {
    let (count, before, after) = (count as i64, before as i64, after as i64);
    count.wrapping_sub(count.clamp(before.min(after), before.max(after))) as u64
}

/// Finds out which places of `AWAITED` are shared no more: replies of flows of which nothing is awaited then need no look-up.
///
/// # Errors
///
/// If the handshakes cannot be read. Nothing is lost by that.
pub fn clear_awaited(maps: &Maps, services: impl Iterator<Item = u32>) -> io::Result<()> {
    let looked_at: HashMap<u32, Service> = services
        .map(|index| (index, maps.services.read(index)))
        .filter(|(_, service)| service.has(Service::HANDSHAKES))
        .collect();
    if looked_at.is_empty() {
        return Ok(());
    }
    let word = |place: u32| maps.awaited.word(place, 0);
    // Before the handshakes: whoever comes meanwhile changes the word.
    let shared: HashMap<u32, u64> = (0..awaited::PLACES)
        .map(|place| (place, word(place).load(Ordering::Acquire)))
        .filter(|(_, seen)| seen & awaited::SHARED != 0)
        .collect();
    if shared.is_empty() {
        return Ok(());
    }
    let mut tags: HashMap<u32, Vec<u64>> = HashMap::new();
    maps.handshakes.for_each(|key, _| {
        let Some(service) = looked_at.get(&key.owner) else { return };
        let (place, tag) = awaited::place(service, key);
        if shared.contains_key(&place) {
            tags.entry(place).or_default().push(tag);
        }
    })?;
    for (place, seen) in shared {
        if let Some(next) = awaited::cleared(seen, tags.get(&place).map_or(&[], Vec::as_slice)) {
            // Another flow has come meanwhile: the next sweep finds it.
            let _ = word(place).compare_exchange(seen, next, Ordering::AcqRel, Ordering::Acquire);
        }
    }
    Ok(())
}

/// How many entries were ever put into the tables of flows.
fn inserted(maps: &Maps) -> io::Result<u64> {
    let events = maps.counters()?.events;
    Ok(events[Event::FlowTracked as usize] + events[Event::UdpFlowTracked as usize])
}

/// Settles all services; `empty`: there are no flows to be read. Returns what entries each table has left, too.
fn settle_all(
    publisher: &mut Publisher,
    patience: &Patience,
    empty: bool,
) -> io::Result<(SweepReport, [u64; 2])> {
    let mut clocks: Vec<ServiceClock<'_>> = publisher
        .registry
        .services
        .iter_mut()
        .map(|(&service, record)| ServiceClock {
            service,
            stable: record.stable.as_ref().map(clock_of),
            canary: record.canary.as_ref().map(clock_of),
            split: &mut record.split,
            at_rest: &mut record.at_rest,
        })
        .collect();
    let kernel = Kernel { maps: &publisher.maps, empty, entries: Cell::default() };
    let report = settle::sweep(&kernel, &mut clocks, patience, clock::nanoseconds())?;
    Ok((report, kernel.entries.get()))
}

fn clock_of(table: &Table) -> TableClock<'_> {
    TableClock { first: table.first, changed: &table.changed, takers: &table.takers }
}

/// The maps, as the sweep wants to reach them.
struct Kernel<'a> {
    maps: &'a Maps,
    /// Nothing is in the tables of flows: they need not be read.
    empty: bool,
    /// What was seen in `FLOWS` and in `UDP_FLOWS`, and not deleted.
    entries: Cell<[u64; 2]>,
}

impl Kernel<'_> {
    fn table(&self, udp: bool) -> &Hash<FlowKey, FlowEntry> {
        if udp { &self.maps.udp_flows } else { &self.maps.flows }
    }

    fn count(&self, udp: bool, change: impl FnOnce(u64) -> u64) {
        let mut entries = self.entries.get();
        entries[usize::from(udp)] = change(entries[usize::from(udp)]);
        self.entries.set(entries);
    }
}

impl Access for Kernel<'_> {
    type Error = io::Error;

    fn service(&self, index: u32) -> Service {
        self.maps.services.read(index)
    }

    fn life(&self, backend: u16) -> Life {
        if u32::from(backend) < self.maps.backends.len() {
            self.maps.backends.read(backend.into()).life()
        } else {
            Life::default()
        }
    }

    fn slot(&self, index: u32) -> Slot {
        Slot(self.maps.slots.word(index, 0).load(Ordering::Acquire))
    }

    fn guest(&self, client: &GuestKey) -> bool {
        // A look-up that fails is one of a client that is no guest: the slot of his hash is marked in vain.
        self.maps.guests.get(client).ok().flatten().is_some()
    }

    fn cas_slot(&self, index: u32, old: Slot, new: Slot) -> bool {
        self.maps
            .slots
            .word(index, 0)
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn cas_split(&self, service: u32, old: Split, new: Split) -> bool {
        let word = self.maps.services.word(service, offset_of!(Service, split));
        word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn store_home(&self, service: u32, share: u32) {
        self.maps
            .services
            .word(service, offset_of!(Service, split_home))
            .store(share.into(), Ordering::Release);
    }

    fn flows(&self, udp: bool, each: &mut dyn FnMut(FlowKey, FlowEntry)) -> io::Result<()> {
        if self.empty {
            return Ok(());
        }
        let mut seen = 0;
        self.table(udp).for_each(|key, entry| {
            seen += 1;
            each(*key, *entry);
        })?;
        self.count(udp, |entries| entries + seen);
        Ok(())
    }

    fn half_open(&self, each: &mut dyn FnMut(FlowKey, HalfOpen)) -> io::Result<()> {
        self.maps.half_open.for_each(|key, note| each(*key, *note))
    }

    fn delete_flow(&self, udp: bool, key: &FlowKey, expected: &FlowEntry) -> io::Result<bool> {
        let table = self.table(udp);
        // The time without an entry that has changed is as short as can be.
        if table.get(key)?.is_some_and(|found| found != *expected) {
            return Ok(false);
        }
        match table.take(key)? {
            // The flow has talked since it was read, or is another one with the same ports: it goes back at once.
            Some(found) if found != *expected => table.insert(key, &found).map(|()| false),
            _ => {
                self.count(udp, |entries| entries.saturating_sub(1));
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(deleted: u64, kept: u64) -> SweepReport {
        SweepReport { deleted, kept, ..SweepReport::default() }
    }

    #[test]
    fn connections_that_begin_while_they_are_counted_are_not_counted_twice() {
        // Sixty came meanwhile, and the count has met all of them, some, or none.
        for met in [60, 30, 0] {
            assert_eq!(amiss(met, [0, 60]), 0);
        }
        // Sixty went.
        assert_eq!(amiss(30, [60, 0]), 0);
        // Ten that nobody has a record of any more; and seven that had not been counted.
        assert_eq!(amiss(50, [60, 60]), 10u64.wrapping_neg());
        assert_eq!(amiss(67, [50, 60]), 7);
        // One that was taken for over a moment too soon.
        assert_eq!(amiss(0, [u64::MAX, u64::MAX]), 1);
    }

    #[test]
    fn what_is_missing_was_forgotten() {
        let mut books = Books::default();
        // What earlier agents did is theirs.
        books.balance(1000..=1000, &swept(5, 100));
        assert_eq!((books.forgotten(), books.lately()), (0, 0));
        books.balance(1050..=1050, &swept(30, 120));
        assert_eq!((books.forgotten(), books.lately()), (0, 0));
        books.balance(1100..=1100, &swept(0, 128));
        assert_eq!((books.forgotten(), books.lately()), (42, 42));
        books.balance(1100..=1100, &swept(8, 120));
        assert_eq!((books.forgotten(), books.lately()), (42, 0));
    }

    #[test]
    fn tables_are_empty_when_they_were_found_so_twice_and_nothing_came_since() {
        let mut books = Books::default();
        assert!(!books.are_empty(0), "nobody has looked");
        books.note(&(7..=7), [0, 0]);
        assert!(!books.are_empty(7));
        books.note(&(7..=7), [0, 0]);
        assert!(books.are_empty(7) && !books.are_empty(8));
        books.note(&(8..=8), [0, 1]);
        books.note(&(8..=8), [0, 0]);
        assert!(!books.are_empty(8));
        books.note(&(8..=9), [0, 0]);
        assert!(!books.are_empty(9), "something came while they were read");
        assert_eq!(books.kept, [0, 0]);
    }

    #[test]
    fn what_comes_in_during_a_sweep_is_not_missing() {
        // Whether the reading has seen them or not.
        for (first, second) in [(100, 107), (107, 107)] {
            let mut books = Books::default();
            books.balance(100..=107, &swept(0, first));
            books.balance(107..=120, &swept(0, second));
            books.balance(120..=120, &swept(0, 120));
            assert_eq!(books.forgotten(), 0);
        }
    }
}
