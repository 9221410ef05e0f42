//! The agent's side of just-enough tracking: how a change opens slots and splits, and how a sweep closes them again.
//!
//! [`select`](crate::select) says what a packet does where something is not settled. Here is the other half. The agent runs it
//! over memory-mapped slots, the model over slots in memory.
//!
//! # Why a sweep loses nothing
//!
//! 1. *Settling.* A slot's `home` follows its `new` when the drain time is over since its last change. Every flow that has
//!    talked since then is in a table, unless it goes to `new` anyway. The same holds for the split.
//! 2. *Marks.* After that, `FLOWS` is read from end to end. An entry that says what the hash says, with slot and split
//!    settled, can go. Every other entry's slot stays marked: the slot where its hash leads *now*, in whichever pool.
//! 3. *Exceptions go to 0* by compare-and-swap with what was seen before the reading, so that an insertion meanwhile keeps its
//!    mark. A mark adds 2; they go to 1 first, and to 0 with the next sweep: a packet that marked before the reading began, and inserts after
//!    the reading has passed its place, would have to be under way for a whole interval between sweeps.
//! 4. *The split's `tracked` goes down* last, when the marks can carry what is left.
//!
//! Nothing goes down before [`HANDSHAKE_TICKS`] have passed since a change: a SYN that went by the old choice may be answered
//! until then.
//!
//! UDP has no handshakes, so that the idle time is all there is to wait for. But every flow of its canary must stay known
//! ([`select`](crate::select) says why): `tracked` never goes below the split, and what is in `UDP_FLOWS` stays there.

use std::collections::{HashMap, HashSet};

use crate::abi::{
    FlowEntry, FlowKey, GuestKey, HANDSHAKE_TICKS, HalfOpen, Life, Service, Slot, Split, ticks,
};
use crate::wire::IPPROTO_UDP;

/// The slot after its new flows were sent to `backend`; `None` if that changes nothing.
///
/// `gone` says whether the home has no flow to keep: it is 0, or packets must not go there any more.
#[must_use]
pub const fn pointed(old: Slot, backend: u16, gone: bool) -> Option<Slot> {
    let home = if gone { backend } else { old.home() };
    if old.new() == backend && old.home() == home {
        return None;
    }
    // The mark: this change and its reversal within one handshake would be missed otherwise.
    Some(Slot::of(backend, home, old.exceptions().saturating_add(1)))
}

/// The split after the canary's share of new flows was set; everything stays tracked that may have flows from before.
///
/// `home` is the service's: 0 must be stored there first if `old` is all zeros, since nobody has looked at it until now.
#[must_use]
pub fn divided(old: Split, home: u32, share: u32) -> Split {
    if old.new() == share {
        return old;
    }
    Split::of(share, old.tracked().max(old.new()).max(home).max(share))
}

/// Whether the hash says the pool of every flow, but for those that marked slots and UDP's table know; as far as the
/// service's words say. (Where UDP is tracked they do not say *since when*: [`SplitClock::closed`] knows.)
#[must_use]
pub fn is_closed(service: &Service) -> bool {
    service.home() == service.split().new() && service.split().tracked() <= lowest_tracked(service)
}

/// Whether the kernel program looks up no flow of a service as long as its slots are settled: then none of them gets a mark.
fn is_still(split: &SplitClock, service: &Service) -> bool {
    split.closed
        && is_closed(service)
        && service.split().tracked() == 0
        && service.lease() == 0
        && !service.has(Service::DIVERTS | Service::CAPPED)
}

/// Below this share, flows are looked for in the table whether slots are marked or not: UDP's canary.
fn lowest_tracked(service: &Service) -> u32 {
    let known = service.protocol == IPPROTO_UDP && service.has(Service::TRACK_UDP);
    if known { service.split().new() } else { 0 }
}

/// How the maps are reached.
pub trait Access {
    /// Why reading or deleting flows failed.
    type Error;

    /// A service, as it is now.
    fn service(&self, index: u32) -> Service;
    /// Generation and state of a backend; `Life::default()` for an id that does not exist.
    fn life(&self, backend: u16) -> Life;
    /// A slot, in one read.
    fn slot(&self, index: u32) -> Slot;
    /// Whether a client is a guest of its service's canary.
    fn guest(&self, client: &GuestKey) -> bool;
    /// Changes a slot if it still is `old`.
    fn cas_slot(&self, index: u32, old: Slot, new: Slot) -> bool;
    /// Changes a service's split if it still is `old`.
    fn cas_split(&self, service: u32, old: Split, new: Split) -> bool;
    /// Sets the canary's share among flows that are in no table.
    fn store_home(&self, service: u32, share: u32);

    /// Shows every entry of `FLOWS` or `UDP_FLOWS` that is there from begin to end of the call, at least once.
    ///
    /// # Errors
    ///
    /// If it cannot be read to its end: then the sweep takes no mark away.
    fn flows(&self, udp: bool, each: &mut dyn FnMut(FlowKey, FlowEntry)) -> Result<(), Self::Error>;
    /// Shows every entry of `HALF_OPEN`, likewise.
    ///
    /// # Errors
    ///
    /// As [`Access::flows`].
    fn half_open(&self, each: &mut dyn FnMut(FlowKey, HalfOpen)) -> Result<(), Self::Error>;
    /// Deletes an entry, unless it has changed. Returns whether it is gone.
    ///
    /// # Errors
    ///
    /// As [`Access::flows`].
    fn delete_flow(&self, udp: bool, key: &FlowKey, expected: &FlowEntry) -> Result<bool, Self::Error>;
}

/// How long flows may be silent, in [`ticks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A TCP flow that talks at least this often survives every change. Less than [`HANDSHAKE_TICKS`] counts as that.
    pub drain: u32,
    /// After this a tracked TCP flow is forgotten (RFC 5382 asks for two hours and four minutes at least).
    pub tcp_idle: u32,
    /// After this a UDP flow is forgotten.
    pub udp_idle: u32,
}

/// When the slots of one table were last changed. Nobody keeps that: an agent that starts takes them for changed just then.
#[derive(Clone, Copy, Debug)]
pub struct TableClock<'a> {
    /// The first slot.
    pub first: u32,
    /// For each slot, in [`ticks`].
    pub changed: &'a [u32],
    /// How many slots send new flows to each backend.
    pub takers: &'a Takers,
}

/// Slots by the backend that gets their new flows; 0: nobody does. Whoever changes slots keeps the count.
pub type Takers = HashMap<u16, u32>;

/// When a split was last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitClock {
    /// What it was changed to. If it is something else, somebody changed it past the agent.
    pub share: u32,
    /// When, in [`ticks`].
    pub changed: u32,
    /// A sweep since then has found that the hash says the pool of every flow, but for those that marked slots and UDP's
    /// table know. Only then may a canary that has everything become the stable pool.
    pub closed: bool,
}

impl SplitClock {
    /// A split that was changed to `share` just now.
    #[must_use]
    pub const fn new(share: u32, now: u32) -> Self {
        Self { share, changed: now, closed: false }
    }
}

/// When a service was last changed, and where.
#[derive(Debug)]
pub struct ServiceClock<'a> {
    /// Its index.
    pub service: u32,
    /// The stable pool's table.
    pub stable: Option<TableClock<'a>>,
    /// The canary pool's.
    pub canary: Option<TableClock<'a>>,
    /// The split; a sweep notes what others have done to it.
    pub split: &'a mut SplitClock,
    /// A sweep has found every slot settled, and nobody has changed one since: they need not be read again. Whoever changes
    /// slots, or which tables a service has, clears it.
    pub at_rest: &'a mut bool,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// By backend id; ids that were not seen at all are missing at the end.
    pub loads: Vec<Load>,
    /// Entries of `FLOWS` and `UDP_FLOWS` that were deleted.
    pub deleted: u64,
    /// Entries that are still needed.
    pub kept: u64,
    /// Slots that the hash alone does not explain yet.
    pub unsettled: u64,
    /// Services whose split the hash alone does not explain yet.
    pub undecided: Vec<u32>,
    /// Services whose canary lost its lease: their split is 0 now.
    pub lapsed: Vec<u32>,
}

/// What names a backend. When a sweep after its removal finds nothing that does, its id may be given to another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Slots whose new flows go there.
    pub slots: u32,
    /// Slots whose old flows go there.
    pub homes: u32,
    /// Tracked flows.
    pub flows: u64,
}

impl SweepReport {
    /// What names this backend.
    #[must_use]
    pub fn load(&self, backend: u16) -> Load {
        self.loads.get(usize::from(backend)).copied().unwrap_or_default()
    }

    /// Adds flows that are in a table of their own.
    pub fn add_flows(&mut self, backend: u16, flows: u64) {
        self.load_mut(backend).flows += flows;
    }

    fn load_mut(&mut self, backend: u16) -> &mut Load {
        let index = usize::from(backend);
        if self.loads.len() <= index {
            self.loads.resize(index + 1, Load::default());
        }
        &mut self.loads[index]
    }
}

/// Settles what may be settled at `now` (monotonic nanoseconds), and forgets the flows that nobody has to remember.
///
/// To be called every few seconds, with all services that there are: flows of others are deleted. Nobody else may change slots
/// meanwhile, but for the kernel's marks; the split may be rolled back at any time.
///
/// # Errors
///
/// If the flows cannot be read or deleted. Nothing is lost by that; the next sweep does what this one could not.
pub fn sweep<A: Access>(
    access: &A,
    services: &mut [ServiceClock<'_>],
    patience: &Patience,
    now: u64,
) -> Result<SweepReport, A::Error> {
    let report = SweepReport::default();
    let mut sweep = Sweep { access, patience, now, report, marked: HashSet::new() };
    let mut marked = Vec::new();
    let mut swept = HashMap::new();
    for clock in &mut *services {
        let service = sweep.settle_split(clock);
        let still = is_still(clock.split, &service);
        *clock.at_rest &= still;
        let wait = sweep.wait(&service);
        let before = (sweep.report.unsettled, marked.len());
        for table in clock.stable.iter().chain(&clock.canary) {
            if *clock.at_rest {
                sweep.count(table.takers);
            } else {
                sweep.settle_slots(table, wait, &mut marked);
            }
        }
        *clock.at_rest = still && (sweep.report.unsettled, marked.len()) == before;
        swept.insert(clock.service, service);
    }
    let mut marks = sweep.forget(&swept)?;
    if sweep.report.unsettled > 0 || !marked.is_empty() {
        sweep.spare_handshakes(&swept, &mut marks)?;
    }
    sweep.mark(&marks);
    sweep.lower(&marked, &marks);
    for clock in services {
        sweep.close_split(clock, &swept[&clock.service]);
        *clock.at_rest &= !sweep.marked.contains(&clock.service);
    }
    Ok(sweep.report)
}

struct Sweep<'a, A> {
    access: &'a A,
    patience: &'a Patience,
    now: u64,
    report: SweepReport,
    /// Services some of whose slots were marked.
    marked: HashSet<u32>,
}

/// How long to wait after a change, in [`ticks`].
#[derive(Clone, Copy)]
struct Wait {
    /// Until every flow has talked.
    drain: u32,
    /// Until every handshake is over.
    handshake: u32,
}

/// A slot that is unsettled by its marks alone, as it was before the flows were read. (An agent that starts finds millions: a word
/// has to do for each.)
struct Marked {
    index: u32,
    exceptions: u32,
}

/// An entry that nobody has to remember.
struct Victim {
    udp: bool,
    key: FlowKey,
    entry: FlowEntry,
    /// The slot where its hash leads, if its service is still there.
    slot: Option<u32>,
}

impl<A: Access> Sweep<'_, A> {
    /// UDP has no handshakes, and a flow that is silent for longer than the idle time is none.
    fn wait(&self, service: &Service) -> Wait {
        let Patience { drain, udp_idle, .. } = *self.patience;
        if service.protocol == IPPROTO_UDP {
            Wait { drain: udp_idle, handshake: udp_idle }
        } else {
            Wait { drain: drain.max(HANDSHAKE_TICKS), handshake: HANDSHAKE_TICKS }
        }
    }

    /// Notes what others have done to the split, and lets its home follow. Returns the service as it was left.
    fn settle_split(&mut self, clock: &mut ServiceClock<'_>) -> Service {
        let (access, index) = (self.access, clock.service);
        let service = access.service(index);
        let (split, lease) = (service.split(), service.lease());
        if split.new() != clock.split.share {
            *clock.split = SplitClock::new(split.new(), ticks(self.now));
        }
        if lease != 0 && self.now >= lease && split.new() != 0 {
            // The kernel takes a lapsed lease for a split of 0. It must be one before anybody renews the lease: nobody would
            // know the flows that began meanwhile.
            if access.cas_split(index, split, divided(split, service.home(), 0)) {
                *clock.split = SplitClock::new(0, ticks(self.now));
            }
            self.report.lapsed.push(index);
        } else if split.0 == 0 {
            // After a reset nobody looks at the home, but somebody will after the next change.
            if service.home() != 0 {
                access.store_home(index, 0);
            }
        } else if split.new() != service.home() && self.age(clock.split.changed) > self.wait(&service).drain {
            access.store_home(index, split.new());
        }
        access.service(index)
    }

    fn settle_slots(&mut self, table: &TableClock<'_>, wait: Wait, marked: &mut Vec<Marked>) {
        for (index, &changed) in (table.first..).zip(table.changed) {
            let age = self.age(changed);
            let mut slot = self.access.slot(index);
            while slot.new() != slot.home() && (age > wait.drain || self.is_gone(slot.home())) {
                // Marked in any case: there may be flows in the table that went home until now.
                let settled = Slot::of(slot.new(), slot.new(), slot.exceptions().max(1));
                slot = if self.access.cas_slot(index, slot, settled) {
                    settled
                } else {
                    self.access.slot(index)
                };
            }
            self.report.load_mut(slot.new()).slots += 1;
            self.report.load_mut(slot.home()).homes += 1;
            if slot.is_settled() {
                continue;
            }
            // While a handshake may be under way that began before its last change, its marks stay.
            if slot.new() != slot.home() || age <= wait.handshake {
                self.report.unsettled += 1;
            } else {
                marked.push(Marked { index, exceptions: slot.exceptions() });
            }
        }
    }

    /// Notes slots that are settled.
    fn count(&mut self, takers: &Takers) {
        for (&backend, &slots) in takers {
            let load = self.report.load_mut(backend);
            load.slots += slots;
            load.homes += slots;
        }
    }

    /// Reads all flows, and deletes those that nobody has to remember. Returns the slots where the hashes of the others
    /// lead.
    fn forget(&mut self, services: &HashMap<u32, Service>) -> Result<HashSet<u32>, A::Error> {
        let mut marks = HashSet::new();
        let mut victims = Vec::new();
        let mut needed = Vec::new();
        let mut marked = HashSet::new();
        for udp in [false, true] {
            self.access.flows(udp, &mut |key, entry| {
                let slot = match services.get(&key.owner).map(|service| self.judge(service, &key, &entry)) {
                    Some(Judgement::Needed { mark }) => {
                        needed.push(entry.backend);
                        marked.extend(mark.map(|_| key.owner));
                        return marks.extend(mark);
                    }
                    Some(Judgement::Done { slot }) => Some(slot),
                    None => None,
                };
                victims.push(Victim { udp, key, entry, slot });
            })?;
        }
        for Victim { udp, key, entry, slot } in victims {
            if self.access.delete_flow(udp, &key, &entry)? {
                self.report.deleted += 1;
            } else {
                // It talks again, or it is another flow by now.
                needed.push(entry.backend);
                marked.insert(key.owner);
                marks.extend(slot);
            }
        }
        self.marked = marked;
        self.report.kept = needed.len() as u64;
        for backend in needed {
            self.report.load_mut(backend).flows += 1;
        }
        Ok(marks)
    }

    /// Slots of handshakes that were sent elsewhere (tried again, spilled by a limit, kept from the canary by its cap), and may still
    /// end: nobody has changed these slots, so that nobody waits for handshakes there. Also of services that send nobody
    /// elsewhere any more.
    fn spare_handshakes(
        &self,
        services: &HashMap<u32, Service>,
        marks: &mut HashSet<u32>,
    ) -> Result<(), A::Error> {
        self.access.half_open(&mut |key, note| {
            let Some(service) = services.get(&key.owner) else { return };
            if self.age(note.at) > HANDSHAKE_TICKS
                || self.access.life(note.backend) != Life::of(note.generation, true)
            {
                return;
            }
            let hash = self.hash(service, &key);
            let slot = service.slot(hash < service.split().new(), service.backend_hash(&key));
            let word = self.access.slot(slot);
            if word.new() != note.backend || word.home() != note.backend {
                marks.insert(slot);
            }
        })
    }

    /// What is compared with the split, as [`Service::attended_membership`] does.
    fn hash(&self, service: &Service, key: &FlowKey) -> u32 {
        let client = || GuestKey::client(key.owner, key.client);
        let guest = service.has(Service::GUESTS) && self.access.guest(&client());
        if guest { 0 } else { service.split_hash(key) }
    }

    fn judge(&self, service: &Service, key: &FlowKey, entry: &FlowEntry) -> Judgement {
        let udp = service.protocol == IPPROTO_UDP;
        let hash = self.hash(service, key);
        let (new, home) = (hash < service.split().new(), hash < service.home());
        let slot = service.slot(new, service.backend_hash(key));
        let word = self.access.slot(slot);
        let agrees = new == home && word.new() == entry.backend && word.home() == entry.backend;
        let idle = if udp { self.patience.udp_idle } else { self.patience.tcp_idle };
        if self.age(entry.seen) > idle || self.access.life(entry.backend) != Life::of(entry.generation, true)
        {
            Judgement::Done { slot }
        } else if !agrees {
            Judgement::Needed { mark: Some(slot) }
        } else if udp && new {
            // Known because it is a canary's, and looked for because it is below `tracked`.
            Judgement::Needed { mark: None }
        } else {
            Judgement::Done { slot }
        }
    }

    fn mark(&self, marks: &HashSet<u32>) {
        for &index in marks {
            loop {
                let slot = self.access.slot(index);
                if slot.exceptions() != 0
                    || self.access.cas_slot(index, slot, Slot::of(slot.new(), slot.home(), 1))
                {
                    break;
                }
            }
        }
    }

    fn lower(&mut self, marked: &[Marked], marks: &HashSet<u32>) {
        for &Marked { index, exceptions } in marked {
            let slot = self.access.slot(index);
            let needed = slot.exceptions() != exceptions || marks.contains(&index);
            let lower = Slot::of(slot.new(), slot.home(), u32::from(exceptions > 1));
            if needed || !self.access.cas_slot(index, slot, lower) || !lower.is_settled() {
                self.report.unsettled += 1;
            }
        }
    }

    fn close_split(&mut self, clock: &mut ServiceClock<'_>, service: &Service) {
        let (split, wait) = (service.split(), self.wait(service));
        let closed = Split::of(split.new(), lowest_tracked(service));
        let over = self.age(clock.split.changed) > wait.drain.max(wait.handshake);
        // A split that tracks nothing was closed before, by another agent perhaps.
        let ready = service.home() == split.new() && (over || split.tracked() == 0);
        clock.split.closed = ready && self.access.cas_split(clock.service, split, closed);
        if !clock.split.closed {
            self.report.undecided.push(clock.service);
        }
    }

    fn is_gone(&self, backend: u16) -> bool {
        backend == 0 || !self.access.life(backend).is_usable()
    }

    /// Ticks since `then`; none if a clock that runs a little ahead of ours has set it.
    fn age(&self, then: u32) -> u32 {
        let age = ticks(self.now).wrapping_sub(then);
        if age > i32::MAX as u32 { 0 } else { age }
    }
}

/// What becomes of an entry.
enum Judgement {
    /// It stays; the slot has to be marked that would send it elsewhere.
    Needed { mark: Option<u32> },
    /// The hash says the same, or nobody asks any more.
    Done { slot: u32 },
}

#[cfg(test)]
mod tests;
