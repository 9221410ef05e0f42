//! The selection rule: which backend does this packet go to?
//!
//! Two questions, two hashes. *Which pool?* The flow belongs to the canary if its split hash is below the split.
//! *Which backend of the pool?* The slot of the pool's Maglev table that its backend hash points to.
//!
//! # Just enough tracking
//!
//! A slot says where new flows go (`new`), and where flows go that are in no table (`home`). While both are the same and no
//! exception is marked, the slot is *settled*: the hash alone finds the backend of every flow, old or new, and no table is
//! looked up. The same holds for the split (`new`, `home`, and `tracked` for the exceptions).
//!
//! A change sets `new` only. From then on, and until the agent's sweep settles the slot, each flow must be told apart:
//!
//! - A **SYN** begins a flow: it goes by `new`, and is noted in `HALF_OPEN`. A flood of SYNs can churn that table only.
//! - The segment that **continues a noted SYN** (its sequence number says so) proves that somebody is there: the flow moves
//!   to `FLOWS`, with the choice made for its SYN. The sequence number also tells a reused port from the old flow, so a
//!   spoofed SYN moves nobody.
//! - A flow **in `FLOWS`** goes where the entry says.
//! - Whatever else comes is an **old flow**: it was there before the change, so `home` is its backend. If `new` is
//!   another one, the flow would be lost when the slot settles: it is captured into `FLOWS`.
//!
//! UDP has no SYN, so that a datagram of an unknown flow may be its first or not. Where UDP flows are tracked, an unknown one
//! counts as old in its slot: it goes `home`, and is captured. Whoever was there before a change shows himself within the idle
//! time; after that the slot settles, and new flows go by `new`. (So a change takes hold of new UDP flows an idle time later.)
//! Between pools the stable one gets whoever is unknown: a flow belongs to the canary only if `new` *and* `home` say so. And
//! as long as there is a canary, the sweep keeps all that is below the split tracked. So every flow of the canary is known, and
//! after a rollback whoever is unknown is new, and goes to the stable pool at once.
//!
//! Every insertion marks the slot that the flow's hash leads to *now*, and every change of a slot marks it too (a change
//! and its reversal within one handshake would be missed otherwise). The sweep takes marks away when nothing is left.

use crate::abi::{
    FlowEntry, FlowKey, GuestKey, HANDSHAKE_TICKS, HANDSHAKE_WINDOW, HalfOpen, Service, Slot, Split,
};
use crate::measure::has_room;
use crate::parse::Kind;
use crate::pipeline::Tables;
use crate::verdict::{Event, Reason};
use crate::wire::IPPROTO_UDP;

/// A backend and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Backend id; 0: none.
    pub backend: u16,
    /// Why this one.
    pub why: Why,
    /// The flow's hash, for whatever else wants to spread by it.
    pub hash: u64,
}

/// What the rest of a packet's road needs to know of a [`Choice`]: in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Backend id; 0: none.
    pub backend: u16,
    /// Whether a flow begins with this packet.
    pub begins: bool,
    /// Half of the flow's hash, for whatever else wants to spread by it.
    pub spread: u32,
}

impl Place {
    /// `spread << 32 | begins << 16 | backend`.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.spread as u64) << 32 | (self.begins as u64) << 16 | self.backend as u64
    }

    /// What [`pack`](Self::pack) made.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { backend: packed as u16, begins: packed >> 16 & 1 != 0, spread: (packed >> 32) as u32 }
    }
}

impl From<Choice> for Place {
    #[inline(always)]
    fn from(choice: Choice) -> Self {
        Self { backend: choice.backend, begins: choice.why.begins(), spread: choice.hash as u32 }
    }
}

/// Why a backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Slot and split are settled: the hash says it all.
    Settled,
    /// A flow that begins now, by `new`.
    New,
    /// A SYN sent again: the choice made for the first one.
    SynAgain,
    /// The handshake's end: the choice made for its SYN.
    Handshake,
    /// Found in the table of flows.
    Tracked,
    /// An old flow whose home is still where new ones go.
    Home,
    /// An old flow whose home is about to change: now in the table of flows.
    Captured,
    /// A flow of the canary that begins now, in the stable pool: the canary has as many as it may.
    Capped,
}

impl Why {
    /// Whether a flow begins with this packet.
    #[must_use]
    pub const fn begins(self) -> bool {
        matches!(self, Self::New | Self::Capped)
    }
}

/// Which pool: now, and for flows that are in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// A flow that starts now belongs to the canary.
    pub new: bool,
    /// A flow that is in no table belongs to the canary.
    pub home: bool,
    /// The flow's hash alone says its pool.
    pub settled: bool,
    /// It would belong to the canary, but for a lease that has run out.
    pub lapsed: bool,
}

impl Membership {
    const STABLE: Self = Self { new: false, home: false, settled: true, lapsed: false };

    /// The pool of the flow with the split hash `hash`.
    #[inline(always)]
    fn of<T: Tables>(tables: &T, service: &Service, split: Split, hash: u32) -> Self {
        let home = hash < service.home();
        if hash >= split.new() {
            return Self { new: false, home, settled: hash >= split.tracked(), lapsed: false };
        }
        let lease = service.lease();
        if lease != 0 && tables.now() >= lease {
            // As if the split were zero: whoever is established in the canary stays there.
            return Self { new: false, home, settled: false, lapsed: true };
        }
        Self { new: true, home, settled: hash >= split.tracked(), lapsed: false }
    }
}

impl Service {
    /// The pool of a flow. Without a canary no hash is computed.
    #[inline(always)]
    pub fn membership<T: Tables>(&self, tables: &T, key: &FlowKey) -> Membership {
        let split = self.split();
        if split.0 == 0 {
            return Membership::STABLE;
        }
        Membership::of(tables, self, split, self.split_hash(key))
    }

    /// The same for services with a flag of [`Service::ATTENDED`]: a guest belongs to the canary as soon as anybody does, as
    /// if its hash were 0. So membership grows and shrinks for guests as it does for all others, and a rollback ends it.
    #[inline(always)]
    pub fn attended_membership<T: Tables>(&self, tables: &T, key: &FlowKey) -> Membership {
        let split = self.split();
        if split.0 == 0 {
            return Membership::STABLE;
        }
        let guest = self.has(Self::GUESTS) && tables.guest(&GuestKey::client(key.owner, key.client));
        let membership = Membership::of(tables, self, split, if guest { 0 } else { self.split_hash(key) });
        // Where a cap sends some of its flows elsewhere, the hash alone never says where a flow of the canary is.
        let elsewhere = membership.new && self.has(Self::CAPPED);
        Membership { settled: membership.settled && !elsewhere, ..membership }
    }

    /// The hash that is compared with the split; never [`Split::ALL`], which is everything.
    #[must_use]
    #[inline(always)]
    pub fn split_hash(&self, key: &FlowKey) -> u32 {
        let [a, b, c, d] = key.client.words();
        let [w, x, y, z] = self.split_mask;
        let ports = if self.has(Self::SPLIT_BY_PORTS) { key.ports() } else { 0 };
        let hash = (self.split_keys.hash([a & w, b & x, c & y, d & z], ports) >> 32) as u32;
        if hash == Split::ALL { hash - 1 } else { hash }
    }

    /// The hash that picks the slot, in its upper half.
    #[must_use]
    #[inline(always)]
    pub fn backend_hash(&self, key: &FlowKey) -> u64 {
        let ports = if self.has(Self::AFFINITY) { 0 } else { key.ports() };
        self.backend_keys.hash(key.client.words(), ports)
    }

    /// The slot of a flow in the canary's or the stable pool's table: an index of `SLOTS`.
    #[must_use]
    #[inline(always)]
    pub fn slot(&self, canary: bool, hash: u64) -> u32 {
        let first = if canary { self.canary_slots } else { self.stable_slots };
        // A multiplication instead of a division: the upper half of 32 bits times M is as even as the remainder.
        first.wrapping_add((((hash >> 32) * u64::from(self.table_size)) >> 32) as u32)
    }
}

/// Chooses the backend of a packet of the flow `key`.
///
/// # Errors
///
/// [`Reason::NoTable`] if the service points beyond the slots.
#[inline(always)]
pub fn select<T: Tables>(tables: &T, service: &Service, key: &FlowKey, kind: Kind) -> Result<Choice, Reason> {
    let fork = Fork::new(tables, service, key, service.attended_membership(tables, key))?;
    match fork.settled(kind) {
        Some(choice) => Ok(choice),
        None => fork.choose::<T, true>(tables, kind),
    }
}

/// The same for services without a flag of [`Service::ATTENDED`], of which the kernel need not verify what they cannot do.
///
/// # Errors
///
/// As [`select`].
#[inline(always)]
pub fn select_bare<T: Tables>(
    tables: &T,
    service: &Service,
    key: &FlowKey,
    kind: Kind,
) -> Result<Choice, Reason> {
    let fork = Fork::new(tables, service, key, service.membership(tables, key))?;
    match fork.settled(kind) {
        Some(choice) => Ok(choice),
        None => fork.choose::<T, false>(tables, kind),
    }
}

/// The choice if the hash alone says it, which it does for most packets of most services at most times. Not for services with
/// a flag of [`Service::ATTENDED`].
///
/// # Errors
///
/// As [`select`].
#[inline(always)]
pub fn settled<T: Tables>(
    tables: &T,
    service: &Service,
    key: &FlowKey,
    kind: Kind,
) -> Result<Option<Choice>, Reason> {
    Ok(Fork::new(tables, service, key, service.membership(tables, key))?.settled(kind))
}

/// Where packets of a flow go that is there already: the rule of [`select`] for something that is *about* the flow, such as an
/// ICMP error. Nothing is noted, tracked or marked.
///
/// # Errors
///
/// As [`select`].
#[inline(always)]
pub fn peek<T: Tables>(tables: &T, service: &Service, key: &FlowKey) -> Result<Place, Reason> {
    let fork = Fork::new(tables, service, key, service.attended_membership(tables, key))?;
    let kind = if fork.is_udp() { Kind::Udp } else { Kind::Rst };
    let backend = match fork.settled(kind) {
        Some(choice) => choice.backend,
        None => fork.peek(tables)?,
    };
    Ok(Place { backend, begins: false, spread: fork.hash as u32 })
}

/// Where a flow that began now would go, for services whose flows are all in a table of their own: nothing is noted here.
///
/// # Errors
///
/// As [`select`].
#[inline(always)]
pub fn fresh<T: Tables>(tables: &T, service: &Service, key: &FlowKey) -> Result<Choice, Reason> {
    let fork = Fork::new(tables, service, key, service.attended_membership(tables, key))?;
    Ok(Choice { backend: fork.slot.new(), why: Why::New, hash: fork.hash })
}

/// The same for a flow that does begin now: a canary with a cap counts it, and takes no more than that.
///
/// # Errors
///
/// As [`select`].
#[inline(always)]
pub fn admitted<T: Tables>(tables: &T, service: &Service, key: &FlowKey) -> Result<Choice, Reason> {
    let fork = Fork::new(tables, service, key, service.attended_membership(tables, key))?;
    if fork.membership.lapsed {
        tables.event(Event::LeaseExpired);
    }
    Ok(match fork.overflow(tables)? {
        Some(backend) => Choice { backend, why: Why::Capped, hash: fork.hash },
        None => Choice { backend: fork.slot.new(), why: Why::New, hash: fork.hash },
    })
}

/// A flow, and where its hash leads.
struct Fork<'a> {
    service: &'a Service,
    key: &'a FlowKey,
    membership: Membership,
    hash: u64,
    /// Of the slot that the hash leads to now.
    index: u32,
    slot: Slot,
}

impl<'a> Fork<'a> {
    #[inline(always)]
    fn new<T: Tables>(
        tables: &T,
        service: &'a Service,
        key: &'a FlowKey,
        membership: Membership,
    ) -> Result<Self, Reason> {
        let hash = service.backend_hash(key);
        let index = service.slot(membership.new, hash);
        let slot = tables.slot(index).ok_or(Reason::NoTable)?;
        Ok(Self { service, key, membership, hash, index, slot })
    }

    /// What the hash alone says, if that is enough.
    #[inline(always)]
    fn settled(&self, kind: Kind) -> Option<Choice> {
        let choice = |why| Choice { backend: self.slot.new(), why, hash: self.hash };
        if self.membership.settled && self.slot.is_settled() {
            return Some(choice(if matches!(kind, Kind::Syn(_)) { Why::New } else { Why::Settled }));
        }
        let untracked = matches!(kind, Kind::Udp) && !self.service.has(Service::TRACK_UDP);
        untracked.then(|| choice(Why::Settled))
    }

    /// What else must be looked at.
    #[inline(always)]
    fn choose<T: Tables, const ATTENDED: bool>(&self, tables: &T, kind: Kind) -> Result<Choice, Reason> {
        // What the bare rule finds nobody for comes again where it is refused: it is counted. (First fragments come there only,
        // and are not.)
        if !ATTENDED || self.service.has(Service::ATTENDED) {
            tables.event(Event::SlowPath);
            if self.membership.lapsed {
                tables.event(Event::LeaseExpired);
            }
        }
        let (backend, why) = match kind {
            Kind::Syn(sequence) => self.begin::<T, ATTENDED>(tables, sequence)?,
            Kind::Tcp(sequence) => self.go_on(tables, Some(sequence))?,
            Kind::Rst => self.go_on(tables, None)?,
            Kind::Udp => self.datagram(tables)?,
        };
        Ok(Choice { backend, why, hash: self.hash })
    }

    /// A SYN.
    #[inline(always)]
    fn begin<T: Tables, const ATTENDED: bool>(
        &self,
        tables: &T,
        sequence: u32,
    ) -> Result<(u16, Why), Reason> {
        let mut backend = self.slot.new();
        let capped = ATTENDED && self.membership.new && self.service.has(Service::CAPPED);
        if let Some(noted) = tables.half_open(self.key)
            && noted.sequence == sequence
            && alive(tables, noted.backend, noted.generation)
            && (same_pool(tables, noted.backend, backend)
                || (capped && !self.in_canary(tables, noted.backend)))
        {
            // Its answer may be under way already. Across pools the split decides: after a rollback nothing enters the canary.
            return Ok((noted.backend, Why::SynAgain));
        }
        let mut why = Why::New;
        if ATTENDED && let Some(stable) = self.overflow(tables)? {
            // It goes elsewhere than its hash says, also when nobody is capped any more.
            tables.mark(self.index);
            backend = stable;
            why = Why::Capped;
        }
        if let Some(generation) = generation(tables, backend) {
            let note = HalfOpen { backend, pad: 0, generation, sequence, at: tables.ticks() };
            tables.note_half_open(self.key, &note);
        }
        Ok((backend, why))
    }

    #[inline(always)]
    fn in_canary<T: Tables>(&self, tables: &T, backend: u16) -> bool {
        tables.backend(backend).is_some_and(|backend| backend.pool == self.service.canary_pool)
    }

    /// The stable pool's backend, where the canary's cap keeps a new flow of it away; whoever is not kept away is counted.
    #[inline(always)]
    fn overflow<T: Tables>(&self, tables: &T) -> Result<Option<u16>, Reason> {
        let capped = self.membership.new && self.service.has(Service::CAPPED);
        if !capped || has_room(tables, self.service) {
            return Ok(None);
        }
        tables.event(Event::Capped);
        let index = self.service.slot(false, self.hash);
        Ok(Some(tables.slot(index).ok_or(Reason::NoTable)?.new()))
    }

    /// TCP without SYN; `sequence` is `None` for a RST, which proves nothing and is worth no entry.
    #[inline(always)]
    fn go_on<T: Tables>(&self, tables: &T, sequence: Option<u32>) -> Result<(u16, Why), Reason> {
        let known = tables.flow(self.key, false);
        if let Some(sequence) = sequence
            && let Some(noted) = tables.half_open(self.key)
            && continues(&noted, sequence, tables.ticks())
            && alive(tables, noted.backend, noted.generation)
        {
            tables.forget_half_open(self.key);
            let stands =
                known.is_some_and(|e| e.backend == noted.backend && e.generation == noted.generation);
            if !stands && (known.is_some() || !self.leads_to(noted.backend)) {
                self.track(tables, noted.backend, known.is_none());
            }
            return Ok((noted.backend, Why::Handshake));
        }
        if let Some(entry) = known
            && alive(tables, entry.backend, entry.generation)
        {
            return Ok((entry.backend, Why::Tracked));
        }
        // It was there before whatever unsettled its slot or split.
        let home = self.home(tables)?;
        if sequence.is_none() || self.leads_to(home) {
            return Ok((home, Why::Home));
        }
        self.track(tables, home, known.is_none());
        Ok((home, Why::Captured))
    }

    /// A datagram of a service that tracks UDP.
    #[inline(always)]
    fn datagram<T: Tables>(&self, tables: &T) -> Result<(u16, Why), Reason> {
        let known = tables.flow(self.key, true);
        if let Some(entry) = known
            && talks(tables, &entry)
        {
            return Ok((entry.backend, Why::Tracked));
        }
        let backend = self.unknown_datagram(tables)?;
        // An old entry has just become young by being asked for: it must not be found again.
        if known.is_none() && self.membership.settled && self.leads_to(backend) {
            return Ok((backend, Why::Home));
        }
        self.track(tables, backend, known.is_none());
        Ok((backend, Why::Captured))
    }

    /// The backend of a flow that is there, without a trace.
    #[inline(always)]
    fn peek<T: Tables>(&self, tables: &T) -> Result<u16, Reason> {
        let known = tables.flow_as_it_is(self.key, self.is_udp());
        if self.is_udp() {
            return match known {
                Some(entry) if talks(tables, &entry) => Ok(entry.backend),
                _ => self.unknown_datagram(tables),
            };
        }
        if let Some(entry) = known
            && alive(tables, entry.backend, entry.generation)
        {
            return Ok(entry.backend);
        }
        if let Some(noted) = tables.half_open(self.key)
            && alive(tables, noted.backend, noted.generation)
        {
            return Ok(noted.backend);
        }
        self.home(tables)
    }

    /// The backend of an old TCP flow that is in no table.
    #[inline(always)]
    fn home<T: Tables>(&self, tables: &T) -> Result<u16, Reason> {
        if self.membership.home == self.membership.new {
            return Ok(self.slot.home());
        }
        let index = self.service.slot(self.membership.home, self.hash);
        Ok(tables.slot(index).ok_or(Reason::NoTable)?.home())
    }

    /// The backend of a UDP flow that is in no table.
    #[inline(always)]
    fn unknown_datagram<T: Tables>(&self, tables: &T) -> Result<u16, Reason> {
        let canary = self.membership.new && self.membership.home;
        let slot = if canary == self.membership.new {
            self.slot
        } else {
            let index = self.service.slot(canary, self.hash);
            tables.slot(index).ok_or(Reason::NoTable)?
        };
        Ok(if slot.home() == 0 { slot.new() } else { slot.home() })
    }

    /// Whether the hash leads to `backend`, and will when everything is settled: then no entry is needed.
    #[inline(always)]
    fn leads_to(&self, backend: u16) -> bool {
        self.membership.new == self.membership.home
            && self.slot.new() == backend
            && self.slot.home() == backend
    }

    #[inline(always)]
    fn is_udp(&self) -> bool {
        self.service.protocol == IPPROTO_UDP
    }

    /// Puts the flow into its table, and marks the slot that its hash leads to now.
    #[inline(always)]
    fn track<T: Tables>(&self, tables: &T, backend: u16, fresh: bool) {
        let Some(generation) = generation(tables, backend) else { return };
        // The mark first: an entry that nobody looks for would be worse than a look-up in vain.
        tables.mark(self.index);
        let event = if !tables.keep_flow(self.key, self.is_udp(), backend, generation) {
            Event::TrackFailed
        } else if !fresh {
            return;
        } else if self.is_udp() {
            Event::UdpFlowTracked
        } else {
            Event::FlowTracked
        };
        tables.event(event);
    }
}

/// Whether a segment with this sequence number ends the handshake that `noted` began.
#[inline(always)]
fn continues(noted: &HalfOpen, sequence: u32, now: u32) -> bool {
    let ahead = sequence.wrapping_sub(noted.sequence).wrapping_sub(1);
    ahead < HANDSHAKE_WINDOW && now.wrapping_sub(noted.at) <= HANDSHAKE_TICKS
}

/// The generation of a backend that packets may go to.
#[inline(always)]
fn generation<T: Tables>(tables: &T, backend: u16) -> Option<u32> {
    let life = tables.backend(backend)?.life();
    (backend != 0 && life.is_usable()).then_some(life.generation())
}

#[inline(always)]
fn alive<T: Tables>(tables: &T, backend: u16, since: u32) -> bool {
    generation(tables, backend) == Some(since)
}

/// Whether a UDP flow's entry stands: its backend is the same, and it was not silent for too long.
#[inline(always)]
fn talks<T: Tables>(tables: &T, entry: &FlowEntry) -> bool {
    alive(tables, entry.backend, entry.generation)
        && tables.settings().is_some_and(|s| tables.ticks().wrapping_sub(entry.seen) <= s.udp_idle)
}

#[inline(always)]
fn same_pool<T: Tables>(tables: &T, a: u16, b: u16) -> bool {
    let Some(a) = tables.backend(a) else { return false };
    tables.backend(b).is_some_and(|b| a.pool == b.pool)
}
