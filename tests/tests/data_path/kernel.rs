//! The program as the agent loads it, with tables as they are on the host.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::ops::AddAssign;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, Xdp};
use bytemuck::Pod;
use lb_common::abi::{FlowEntry, FlowKey, FragmentEntry, FragmentKey, HalfOpen, Slot, Traffic};
use lb_common::guard::{Guard, Source, SourceKey};
use lb_common::host::Tables;
use lb_common::limit::{Limit, Whose};
use lb_common::measure;
use lb_common::measure::Measure;
use lb_common::session::{Session, SessionKey, Way};
use lb_common::verdict::{Account, Counters, Event, Reason, Verdict};
use lb_tests::private_dir;
use lb_tests::test_run::{Outcome, TestRun};
use lb_userspace::dataplane::bpf::{Hash, Mapped, PerCpu};
use lb_userspace::dataplane::maps::{self, Maps};
use lb_userspace::dataplane::{Capacities, Options, load};

use crate::tables::CAPPED;

/// Room for what the host's tables of the tests hold.
pub const ROOM: Capacities = Capacities {
    flows: 1 << 16,
    udp_flows: 1 << 16,
    half_open: 1 << 16,
    sessions: 1 << 15,
    slots: 1 << 13,
    backends: 128,
    services: 64,
    prefixes: 1 << 10,
    sources: 1 << 16,
};

/// A loaded program and its maps.
pub struct Kernel {
    pub maps: Arc<Maps>,
    handshakes: Hash<FlowKey, measure::Handshake>,
    program: ProgramFd,
}

impl Kernel {
    /// Loads the program into maps of its own, attached nowhere.
    pub fn load(capacities: Capacities) -> Result<Self> {
        let name = private_dir("pins")?;
        let options = Options {
            pin_dir: std::path::Path::new("/sys/fs/bpf").join(name.file_name().context("a name")?),
            interfaces: Vec::new(),
            mode: None,
            capacities,
            log_level: 0,
        };
        let loaded = load(&options)?;
        let program: &Xdp = loaded.object.program("lb").context("no program lb")?.try_into()?;
        let handshakes = Hash::open(&maps::directory(&options.pin_dir).join("HANDSHAKES"))?;
        Ok(Self { maps: Arc::new(loaded.maps), handshakes, program: program.fd()?.try_clone()? })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// One run on a frame that came in by `arrival`.
    pub fn run(&self, frame: &[u8], arrival: u32) -> Result<Outcome> {
        TestRun::new(self.program(), frame).arriving_on(arrival, 0).run()
    }

    /// What was counted of frames that came in by these interfaces, and what else happened. (To read all places takes longer than a
    /// frame's road.)
    pub fn counters(&self, arrivals: &[u32]) -> Result<Counters> {
        /// Where events are counted, wherever frames come in.
        const EVENTS: u32 = 0;
        let mut places: Vec<u32> = arrivals.iter().map(|arrival| Counters::place(*arrival)).collect();
        places.push(EVENTS);
        places.sort_unstable();
        places.dedup();
        let mut sum = Counters::default();
        for place in places {
            self.maps.counters.read(place)?.into_iter().for_each(|counters| sum += counters);
        }
        Ok(sum)
    }

    /// Makes the maps hold what `tables` holds, and nothing else; `egress` grows only. In the namespace of its interfaces.
    pub fn fill(&self, tables: &Tables, egress: &[u32]) -> Result<()> {
        let maps = &self.maps;
        maps.settings.write(0, &tables.settings);
        replace(&maps.vips, tables.vips.iter().map(|(key, index)| (*key, *index)))?;
        replace(&maps.replies, tables.repliers.borrow().iter().map(|(key, replier)| (*key, *replier)))?;
        write_all(&maps.services, &tables.services)?;
        write_all(&maps.backends, &tables.backends)?;
        write_all(&maps.devices, &tables.devices)?;
        ensure!(tables.slots.len() <= maps.slots.len() as usize, "no room for {} slots", tables.slots.len());
        for (index, slot) in (0..).zip(&tables.slots) {
            maps.slots.word(index, 0).store(slot.get().0, Ordering::Release);
        }
        for ifindex in egress {
            maps.egress.insert(ifindex, &[*ifindex, 0])?;
        }
        replace(&maps.vlans, tables.vlans.iter().map(|(ifindex, vlan)| (*ifindex, *vlan)))?;
        replace(&maps.flows, tables.flows.borrow().iter().map(|(key, entry)| (*key, *entry)))?;
        replace(&maps.udp_flows, tables.udp_flows.borrow().iter().map(|(key, entry)| (*key, *entry)))?;
        replace(&maps.half_open, tables.half_open.borrow().iter().map(|(key, note)| (*key, *note)))?;
        replace(&maps.opening, tables.opening.borrow().iter().map(|(key, session)| (*key, *session)))?;
        replace(&maps.sessions, tables.sessions.borrow().iter().map(|(key, session)| (*key, *session)))?;
        replace(&maps.direct, tables.direct.borrow().iter().map(|(key, seen)| (*key, *seen)))?;
        replace(&self.handshakes, std::iter::empty())?;
        replace(&maps.open, tables.open.borrow().iter().map(|(key, open)| (*key, *open)))?;
        let limits = tables.limits.borrow();
        let of = |whose| limits.get(&whose).copied().unwrap_or_default();
        for id in 0..maps.limits.len() {
            maps.limits.write(id, &of(Whose::Backend(id as u16)));
        }
        for index in 0..maps.pool_limits.len() {
            maps.pool_limits.write(index, &of(Whose::Pool(index as u16)));
        }
        replace(&maps.fragments, tables.fragments.borrow().iter().map(|(key, entry)| (*key, *entry)))?;
        for key in maps.guests.keys()? {
            maps.guests.remove(&key)?;
        }
        for key in &tables.guests {
            maps.guests.insert(key, &1)?;
        }
        for key in maps.rules.keys()? {
            maps.rules.remove(&key)?;
        }
        for (key, rule) in &tables.rules {
            maps.rules.insert(key, &(*rule as u32))?;
        }
        replace(&maps.vip_rules, tables.vip_rules.iter().map(|(vip, owner)| (*vip, *owner)))?;
        let dues = tables.dues.borrow();
        for index in 0..maps.guards.len() {
            let due = dues.get(&index).copied().unwrap_or_default();
            let guard = tables.guards.get(&index).copied().unwrap_or_default();
            let Source { connections_due, packets_due } = due;
            maps.guards.write(index, &Guard { connections_due, packets_due, ..guard });
        }
        replace(&maps.sources, tables.sources.borrow().iter().map(|(key, source)| (*key, *source)))?;
        replace(&maps.quic_configs, tables.quic_configs.iter().map(|(key, config)| (*key, *config)))?;
        replace(&maps.quic_servers, tables.quic_servers.iter().map(|(key, server)| (*key, *server)))?;
        maps.faults.write(0, &tables.faults);
        for offset in [offset_of!(Measure, cap_interval), offset_of!(Measure, cap_next)] {
            let word = lb_common::pipeline::Tables::word(tables, CAPPED.into(), offset);
            maps.measures.word(CAPPED.into(), offset).store(word, Ordering::Release);
        }
        clear_all(&maps.counters)?;
        clear_all(&maps.pool_traffic)?;
        clear_all(&maps.backend_traffic)
    }

    /// As if every handshake had begun so much earlier.
    pub fn age_handshakes(&self, by: Duration) -> Result<()> {
        for (key, handshake) in self.handshakes.entries()? {
            let at = handshake.at.saturating_sub(by.as_nanos() as u64);
            self.handshakes.insert(&key, &measure::Handshake { at, ..handshake })?;
        }
        Ok(())
    }

    /// What the maps hold that packets change.
    pub fn state(&self) -> Result<State> {
        let maps = &self.maps;
        let slots = (0..maps.slots.len()).map(|index| Slot(maps.slots.read(index)));
        Ok(State {
            slots: slots.collect(),
            flows: maps.flows.entries()?.into_iter().map(|(key, entry)| (key, flow(&entry))).collect(),
            udp_flows: maps
                .udp_flows
                .entries()?
                .into_iter()
                .map(|(key, entry)| (key, flow(&entry)))
                .collect(),
            half_open: maps
                .half_open
                .entries()?
                .into_iter()
                .map(|(key, note)| (key, handshake(&note)))
                .collect(),
            opening: maps.opening.entries()?.into_iter().map(|(key, found)| (key, session(&found))).collect(),
            sessions: maps
                .sessions
                .entries()?
                .into_iter()
                .map(|(key, found)| (key, session(&found)))
                .collect(),
            fragments: maps
                .fragments
                .entries()?
                .into_iter()
                .map(|(key, entry)| (key, followed(&entry)))
                .collect(),
            direct: maps.direct.entries()?.into_iter().map(|(key, _)| key).collect(),
            marked: maps.replies.entries()?.iter().filter(|(_, replier)| replier.direct != 0).count(),
            limits: (0..maps.limits.len())
                .map(|id| (0, id, maps.limits.read(id)))
                .chain((0..maps.pool_limits.len()).map(|index| (1, index, maps.pool_limits.read(index))))
                .filter_map(|(kind, index, limit)| counted(kind, index, &limit))
                .collect(),
            open: maps
                .open
                .entries()?
                .into_iter()
                .map(|(key, open)| (key, (open.backend, open.state)))
                .collect(),
            dues: (0..maps.guards.len())
                .map(|index| (index, maps.guards.read(index)))
                .filter(|(_, guard)| guard.connections_due | guard.packets_due != 0)
                .map(|(index, guard)| (index, (guard.connections_due != 0, guard.packets_due != 0)))
                .collect(),
            sources: maps.sources.entries()?.into_iter().map(|(key, due)| (key, taken(&due))).collect(),
            pools: traffic(&maps.pool_traffic)?,
            backends: traffic(&maps.backend_traffic)?,
        })
    }
}

fn replace<K: Pod, V: Pod>(map: &Hash<K, V>, with: impl Iterator<Item = (K, V)>) -> Result<()> {
    // Hardly any has entries, and to hear so costs less by keys than by a batch of entries.
    for key in map.keys()? {
        map.remove(&key)?;
    }
    for (key, value) in with {
        map.insert(&key, &value)?;
    }
    Ok(())
}

fn write_all<T: Pod>(map: &Mapped<T>, values: &[T]) -> Result<()> {
    ensure!(values.len() <= map.len() as usize, "no room for {} of {}", values.len(), map.len());
    for (index, value) in (0..).zip(values) {
        map.write(index, value);
    }
    Ok(())
}

/// (Hardly any element is anything but zero, and reading them is one call.)
fn clear_all<T: Pod + AddAssign>(map: &PerCpu<T>) -> Result<()> {
    for (index, sum) in (0..).zip(map.sums(0..map.len())?) {
        if bytemuck::bytes_of(&sum) != bytemuck::bytes_of(&T::zeroed()) {
            map.clear(index)?;
        }
    }
    Ok(())
}

fn traffic(map: &PerCpu<Traffic>) -> Result<BTreeMap<u32, Traffic>> {
    let mut seen = BTreeMap::new();
    for index in 0..map.len() {
        let sum = maps::traffic(map, index)?;
        if sum != Traffic::default() {
            seen.insert(index, sum);
        }
    }
    Ok(seen)
}

/// Backend and generation: the time is the kernel's own.
type Flow = (u16, u32);
/// Backend, generation and sequence number.
type Handshake = (u16, u32, u32);

fn flow(entry: &FlowEntry) -> Flow {
    (entry.backend, entry.generation)
}

fn handshake(note: &HalfOpen) -> Handshake {
    (note.backend, note.generation, note.sequence)
}

/// What was counted for a backend (0) or a pool (1), if anything: open connections, those that were kept away, trials.
fn counted(kind: u8, index: u32, limit: &Limit) -> Option<((u8, u32), [u64; 3])> {
    let counts = [limit.open, limit.kept_away, limit.trials];
    (counts != [0; 3]).then_some(((kind, index), counts))
}

fn session(found: &Session) -> Session {
    Session { seen: 0, way: Way::default(), ..*found }
}

/// Backend, way, generation and spread.
type Followed = (u16, u16, u32, u32);

fn followed(entry: &FragmentEntry) -> Followed {
    (entry.backend, entry.way, entry.generation, entry.spread)
}

/// What was taken of two rates, new connections and packets.
const fn taken(due: &Source) -> (bool, bool) {
    (due.connections_due != 0, due.packets_due != 0)
}

/// What packets leave behind, but for the times.
#[derive(Debug, PartialEq)]
pub struct State {
    pub slots: Vec<Slot>,
    pub flows: BTreeMap<FlowKey, Flow>,
    pub udp_flows: BTreeMap<FlowKey, Flow>,
    pub half_open: BTreeMap<FlowKey, Handshake>,
    pub opening: BTreeMap<SessionKey, Session>,
    pub sessions: BTreeMap<SessionKey, Session>,
    pub fragments: BTreeMap<FragmentKey, Followed>,
    pub direct: std::collections::BTreeSet<FlowKey>,
    pub marked: usize,
    pub limits: BTreeMap<(u8, u32), [u64; 3]>,
    pub open: BTreeMap<FlowKey, (u16, u16)>,
    pub dues: BTreeMap<u32, (bool, bool)>,
    pub sources: BTreeMap<SourceKey, (bool, bool)>,
    pub pools: BTreeMap<u32, Traffic>,
    pub backends: BTreeMap<u32, Traffic>,
}

impl State {
    /// Of the host's tables, with what was charged.
    pub fn of(tables: &Tables, charged: &Charged, slots: usize) -> Self {
        let mut words: Vec<Slot> = tables.slots.iter().map(std::cell::Cell::get).collect();
        words.resize(slots, Slot::default());
        Self {
            slots: words,
            flows: tables.flows.borrow().iter().map(|(key, entry)| (*key, flow(entry))).collect(),
            udp_flows: tables.udp_flows.borrow().iter().map(|(key, entry)| (*key, flow(entry))).collect(),
            half_open: tables.half_open.borrow().iter().map(|(key, note)| (*key, handshake(note))).collect(),
            opening: tables.opening.borrow().iter().map(|(key, found)| (*key, session(found))).collect(),
            sessions: tables.sessions.borrow().iter().map(|(key, found)| (*key, session(found))).collect(),
            fragments: tables.fragments.borrow().iter().map(|(key, entry)| (*key, followed(entry))).collect(),
            direct: tables.direct.borrow().iter().map(|(key, _)| *key).collect(),
            marked: tables.repliers.borrow().values().filter(|replier| replier.direct != 0).count(),
            limits: tables
                .limits
                .borrow()
                .iter()
                .filter_map(|(whose, limit)| match whose {
                    Whose::Backend(id) => counted(0, (*id).into(), limit),
                    Whose::Pool(index) => counted(1, (*index).into(), limit),
                })
                .collect(),
            open: tables.open.borrow().iter().map(|(key, open)| (*key, (open.backend, open.state))).collect(),
            dues: tables
                .dues
                .borrow()
                .iter()
                .map(|(index, due)| (*index, taken(due)))
                .filter(|(_, taken)| *taken != (false, false))
                .collect(),
            sources: tables.sources.borrow().iter().map(|(key, due)| (*key, taken(due))).collect(),
            pools: charged.pools.clone(),
            backends: charged.backends.clone(),
        }
    }

    /// The name of a part that differs, with both.
    pub fn difference(&self, other: &Self) -> Option<String> {
        macro_rules! compare {
            ($($part:ident)*) => { $(
                if self.$part != other.$part {
                    return Some(format!("{}:\n{:?}\n{:?}", stringify!($part), self.$part, other.$part));
                }
            )* };
        }
        compare!(flows udp_flows half_open fragments opening sessions direct marked limits open dues sources pools backends);
        let slot = self.slots.iter().zip(&other.slots).position(|(a, b)| a != b)?;
        Some(format!("slot {slot}: {:?} {:?}", self.slots[slot], other.slots[slot]))
    }
}

/// What the host would have counted.
pub struct Charged {
    reasons: [u64; Reason::COUNT],
    pools: BTreeMap<u32, Traffic>,
    backends: BTreeMap<u32, Traffic>,
}

impl Default for Charged {
    fn default() -> Self {
        Self { reasons: [0; Reason::COUNT], pools: BTreeMap::new(), backends: BTreeMap::new() }
    }
}

impl Charged {
    pub fn add(&mut self, verdict: &Verdict) {
        self.reasons[verdict.reason as usize] += 1;
        let Account { backend, pool, bytes, begins } = verdict.account;
        if backend == 0 {
            return;
        }
        let packet = if verdict.is_reply() {
            Traffic { reply_packets: 1, reply_bytes: bytes.into(), ..Traffic::default() }
        } else {
            Traffic { packets: 1, bytes: bytes.into(), connections: begins.into(), ..Traffic::default() }
        };
        *self.pools.entry(pool.into()).or_default() += packet;
        *self.backends.entry(backend.into()).or_default() += packet;
    }

    /// With the events of the host's tables.
    pub fn counters(&self, tables: &Tables) -> Counters {
        let mut events = [0; Event::COUNT];
        for (count, event) in events.iter_mut().zip(Event::ALL) {
            *count = tables.count(*event);
        }
        Counters { reasons: self.reasons, events }
    }

    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.reasons[*reason as usize]))
    }
}
