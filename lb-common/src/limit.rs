//! Limits: how many connections a backend or a pool may have, and how many it may get in a second.
//!
//! **New connections** are let through at a rate, by the generic cell rate algorithm (ITU-T I.371): `due` is when the next one
//! would be due if they came evenly, and one that comes too early by more than `burst` is kept away. One word, and no timer;
//! two CPUs that read it at once may let one more through.
//!
//! **Connections** are counted in `OPEN`, which is asked for every packet of such a service, and of no other. A connection is
//! there from the segment on that ends its handshake, and is over with the first FIN or RST that passes, or when it was silent
//! for longer than a TCP flow may be.
//!
//! Anybody can send segments in any name, and backends drop some of them without a word. So a segment counts if it *proves*
//! something:
//!
//! - it continues a handshake that is known, and in `nat` acknowledges the number that the backend has drawn, which nobody can who
//!   does not get the backend's packets;
//! - any other is noted in `HANDSHAKES` as [unsure](Handshake::UNSURE): of a connection that is older than the limit, that was
//!   forgotten, or that nobody has. In `nat` the backend decides, which answers what belongs to no connection with a RST or not
//!   at all: as soon as it says anything else, the connection is *found*. In the `dsr` modes it is once it has talked in two ticks.
//!
//! In the `dsr` modes nothing is proven by that, since only one direction is seen: whoever sends a SYN, and what follows it, in
//! a made-up name is counted. But not for long, unless he goes on: until a connection has talked in a second tick it is *young*,
//! and forgotten after the time of a handshake. So are those that were found: if they talk, they are found again.
//!
//! A SYN on the ports of a connection takes no place but its own, and in `nat` ends that one when the backend has answered: anybody
//! can send one. A RST that passes may be one that the backend does not believe; then what follows finds the connection again. A
//! FIN likewise, after the time of a handshake: until then what passes may be the end of what the FIN has ended.
//!
//! So the count is exact, but for
//!
//! - handshakes under way: a limit may be overshot by so many;
//! - connections that are older than the limit, or were forgotten by a full table, while they are silent;
//! - in the `dsr` modes, connections that the *backend* resets: nobody tells, and they count until they were silent for long.
//!
//! The agent counts the table anew with each sweep, so that no error lasts.
//!
//! Where a backend has enough, another one of its pool takes the connection, if that is wanted: noted and marked like one that
//! is [tried again](crate::retry). Where a pool has, nobody does. That needs no budget of its own: what is sent elsewhere is what
//! others have room for, and it marks slots of backends that have enough only, which look their flows up from the first one
//! on. (A second mark of a slot costs nothing.)
//!
//! **Trials.** Whoever a breaker holds half open gets so many connections, and not one more, until the agent has judged them: a count
//! that is taken from by compare-and-swap. Of two CPUs that come at the same moment one is sent away.

use bytemuck::{Pod, Zeroable};

use crate::abi::{FlowKey, HANDSHAKE_TICKS, Mode, Service, ticks};
use crate::awaited;
use crate::measure::Handshake;
use crate::pipeline::Tables;
use crate::retry;
use crate::select::Place;
use crate::wire::{TCP_FIN, TCP_RST, Tcp};

/// One element of `LIMITS` (by backend id) and of `POOL_LIMITS` (by pool index).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// Nanoseconds from one new connection to the next; 0: as many as come.
    pub interval: u64,
    /// How many nanoseconds one may come too early.
    pub burst: u64,
    /// When the next one is due, in monotonic nanoseconds.
    pub due: u64,
    /// Connections that may be open; 0: as many as there are.
    pub most: u64,
    /// Connections that are.
    pub open: u64,
    /// New connections that were kept away.
    pub kept_away: u64,
    /// One more than the connections that are let through on trial, and perhaps [`Limit::SPILLS`]; 0: it is not on trial.
    pub trials: u64,
    /// Zero; fills the cache line.
    pub reserved: u64,
}

impl Limit {
    /// In `trials`: what is more than may be tried goes to another backend.
    pub const SPILLS: u64 = 1 << 63;

    /// [`Limit::trials`] for so many.
    #[must_use]
    pub const fn on_trial(connections: u32, spills: bool) -> u64 {
        (connections as u64 + 1) | if spills { Self::SPILLS } else { 0 }
    }

    /// How many are left; `None`: it is not on trial.
    #[must_use]
    #[inline(always)]
    pub const fn trials_left(trials: u64) -> Option<u64> {
        (trials & !Self::SPILLS).checked_sub(1)
    }
}

const _: () = assert!(size_of::<Limit>() == 64, "one cache line");

/// Value of `OPEN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Open {
    /// Whose it is.
    pub backend: u16,
    /// [`Open::STANDS`] and the following.
    pub state: u16,
    /// When it last talked, or has ended, in [`ticks`](crate::abi::ticks).
    pub seen: u32,
}

impl Open {
    /// It has proven itself.
    pub const STANDS: u16 = 1;
    /// It follows a handshake, but has talked in one tick only, and nobody knows what its backend says.
    pub const YOUNG: u16 = 2;
    /// It was there before anybody has counted it.
    pub const FOUND: u16 = 3;
    /// It has ended.
    pub const OVER: u16 = 4;

    /// Whether it is one of its backend's.
    #[must_use]
    #[inline(always)]
    pub const fn is_counted(&self) -> bool {
        self.state != Self::OVER
    }

    /// [`ticks`](crate::abi::ticks) that it may be silent, if that is `idle` for a connection.
    #[must_use]
    pub const fn patience(&self, idle: u32) -> u32 {
        if self.state == Self::STANDS { idle } else { HANDSHAKE_TICKS }
    }
}

/// A segment that a client sends after its SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
    /// Its flags.
    pub flags: u8,
}

impl Segment {
    /// That of a header.
    #[must_use]
    #[inline(always)]
    pub const fn of(header: &Tcp) -> Self {
        Self {
            sequence: u32::from_be_bytes(header.sequence),
            acknowledged: u32::from_be_bytes(header.acknowledgement),
            flags: header.flags,
        }
    }

    #[inline(always)]
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Who is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A backend, by its id.
    Backend(u16),
    /// A pool, by its index.
    Pool(u16),
}

/// What comes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Admission {
    /// It goes where it would go.
    Goes = 0,
    /// Nobody may have it.
    KeptAway = 1,
    /// Its backend may not have it.
    Spills = 2,
}

impl Admission {
    /// That of a number.
    #[must_use]
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            0 => Self::Goes,
            2 => Self::Spills,
            _ => Self::KeptAway,
        }
    }
}

/// Where a new connection goes that would go to `place`: there, or to another backend of the pool, or (backend 0) nowhere.
#[inline(always)]
pub fn admit<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
    match tables.judge(service, key, place.backend) {
        Admission::Goes => place,
        Admission::KeptAway => Place { backend: 0, ..place },
        Admission::Spills => Place { backend: tables.spill(service, key, sequence, place.backend), ..place },
    }
}

/// Whether a backend and its pool may have a new connection; if so, they do.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, service: &Service, key: &FlowKey, id: u16) -> Admission {
    let mut taken = 0;
    if service.has(Service::COUNTED) {
        // Its ports had another connection before. In `nat` that one is over when the backend answers, and not before.
        if service.mode == Mode::Nat as u8 {
            let counted = |open: &Open| open.is_counted() && open.backend == id;
            taken = i64::from(tables.open(key).as_ref().is_some_and(counted));
        } else {
            renew(tables, key);
        }
    }
    let Some(backend) = tables.backend(id) else { return Admission::KeptAway };
    let now = tables.clock();
    let (own, pool) = (Whose::Backend(id), Whose::Pool(backend.pool));
    // Before a trial of its own is taken, which would be one that nobody makes.
    if !has_room(tables, pool, now, taken) || !has_trials(tables, pool) {
        tables.keep_away(pool);
        return Admission::KeptAway;
    }
    let spills = if !has_room(tables, own, now, taken) {
        service.on_limit == Service::SPILL
    } else if let Err(spills) = tried(tables, own) {
        spills
    } else if tried(tables, pool).is_err() {
        tables.keep_away(pool);
        return Admission::KeptAway;
    } else {
        take(tables, own, now);
        take(tables, pool, now);
        return Admission::Goes;
    };
    tables.keep_away(own);
    if spills { Admission::Spills } else { Admission::KeptAway }
}

/// Takes one of somebody's trials. `Err`: none is left; and whether others may have what is more.
#[inline(always)]
fn tried<T: Tables>(tables: &T, whose: Whose) -> Result<(), bool> {
    let Some(limit) = tables.limit(whose) else { return Ok(()) };
    match Limit::trials_left(limit.trials) {
        None => Ok(()),
        Some(1..) if tables.swap_trials(whose, limit.trials, limit.trials - 1) => Ok(()),
        Some(_) => Err(limit.trials & Limit::SPILLS != 0),
    }
}

/// Whether somebody has a trial left, or is not on trial.
#[inline(always)]
fn has_trials<T: Tables>(tables: &T, whose: Whose) -> bool {
    tables.limit(whose).is_none_or(|limit| Limit::trials_left(limit.trials) != Some(0))
}

/// Whether a backend may have one that another one may not: one on trial gets its own only.
#[inline(always)]
pub fn fits<T: Tables>(tables: &T, id: u16) -> bool {
    let whose = Whose::Backend(id);
    has_room(tables, whose, tables.clock(), 0) && tables.limit(whose).is_none_or(|limit| limit.trials == 0)
}

/// Another backend that may have what `id` may not.
#[inline(always)]
pub fn spill<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, id: u16) -> Option<u16> {
    let now = tables.clock();
    let other = tables.another(service, key, id, 0);
    if other == 0 {
        return None;
    }
    let pool = Whose::Pool(tables.backend(other)?.pool);
    if tried(tables, pool).is_err() {
        tables.keep_away(pool);
        return None;
    }
    if !retry::divert(tables, service, key, sequence, other) {
        return None;
    }
    take(tables, Whose::Backend(other), now);
    take(tables, pool, now);
    Some(other)
}

/// Whether somebody may have one more connection now, beside those that are open but for `taken`: the place that it has already.
#[inline(always)]
fn has_room<T: Tables>(tables: &T, whose: Whose, now: u64, taken: i64) -> bool {
    let Some(limit) = tables.limit(whose) else { return true };
    let in_time = limit.interval == 0 || limit.due <= now.wrapping_add(limit.burst);
    // Signed: the agent may have counted a connection as over a moment before its end was seen.
    in_time && (limit.most == 0 || (limit.open as i64) - taken < limit.most as i64)
}

/// Somebody gets a connection.
#[inline(always)]
pub fn take<T: Tables>(tables: &T, whose: Whose, now: u64) {
    let Some(limit) = tables.limit(whose) else { return };
    if limit.interval != 0 {
        let due = if limit.due > now { limit.due } else { now };
        tables.set_due(whose, due.wrapping_add(limit.interval));
    }
}

/// A segment after the SYN goes to `backend`.
#[inline(always)]
pub fn passes<T: Tables>(tables: &T, service: &Service, key: &FlowKey, backend: u16, segment: Segment) {
    match tables.open(key) {
        Some(_) if segment.has(TCP_RST) => {
            end(tables, key);
            tables.forget_open(key);
        }
        Some(_) if segment.has(TCP_FIN) => end(tables, key),
        Some(open) if open.state == Open::YOUNG && open.seen != tables.ticks() => {
            tables.keep_open(key, &Open { state: Open::STANDS, seen: tables.ticks(), ..open });
        }
        None if !segment.has(TCP_RST) => appears(tables, service, key, backend, segment),
        _ => {}
    }
}

/// A segment of a flow that is not counted.
#[inline(always)]
fn appears<T: Tables>(tables: &T, service: &Service, key: &FlowKey, backend: u16, segment: Segment) {
    let now = tables.ticks();
    let nat = service.mode == Mode::Nat as u8;
    // Signed: the clock of handshakes is a little ahead.
    let age = |known: &Handshake| now.wrapping_sub(ticks(known.at)) as i32;
    let recent = |known: &Handshake| age(known) <= HANDSHAKE_TICKS as i32;
    let Some(known) = tables.handshake(key).filter(recent) else {
        return suspect(tables, service, key, backend);
    };
    let state = if known.backend != backend {
        return;
    } else if known.state == Handshake::UNSURE {
        if nat || age(&known) <= 0 {
            return;
        }
        awaited::ends(tables, service, key);
        tables.forget_handshake(key);
        Open::FOUND
    } else if !known.continues(segment.sequence) || nat && !known.is_proven(segment.acknowledged) {
        return;
    } else if nat {
        Open::STANDS
    } else {
        Open::YOUNG
    };
    if segment.has(TCP_FIN) {
        return tables.keep_open(key, &Open { backend, state: Open::OVER, seen: now });
    }
    begin(tables, key, backend, state);
}

/// A segment of a flow of which nothing is known.
#[inline(always)]
fn suspect<T: Tables>(tables: &T, service: &Service, key: &FlowKey, backend: u16) {
    let handshake =
        Handshake { at: tables.clock(), backend, state: Handshake::UNSURE, ..Handshake::zeroed() };
    tables.keep_handshake(key, &handshake);
    awaited::begins(tables, service, key);
}

/// A backend speaks within a connection that nobody was sure of.
#[inline(always)]
pub fn is_found<T: Tables>(tables: &T, key: &FlowKey, backend: u16) {
    if tables.open(key).is_none() {
        begin(tables, key, backend, Open::FOUND);
    }
}

/// A backend says that a connection is over. Another one than that which has it has nothing to say: its client was sent elsewhere
/// meanwhile.
#[inline(always)]
pub fn end_of<T: Tables>(tables: &T, key: &FlowKey, backend: u16) {
    if tables.open(key).is_some_and(|open| open.backend == backend) {
        end(tables, key);
    }
}

/// A connection is counted.
#[inline(always)]
fn begin<T: Tables>(tables: &T, key: &FlowKey, backend: u16, state: u16) {
    tables.keep_open(key, &Open { backend, state, seen: tables.ticks() });
    count(tables, backend, 1);
}

/// A connection is over, whoever says so.
#[inline(always)]
pub fn end<T: Tables>(tables: &T, key: &FlowKey) {
    let Some(open) = tables.open(key).filter(Open::is_counted) else { return };
    // It is remembered: what is still under way does not begin it again.
    tables.keep_open(key, &Open { state: Open::OVER, seen: tables.ticks(), ..open });
    count(tables, open.backend, 1u64.wrapping_neg());
}

/// Another connection takes the ports of one that is counted.
#[inline(always)]
pub fn renew<T: Tables>(tables: &T, key: &FlowKey) {
    end(tables, key);
    tables.forget_open(key);
}

/// Adds to the open connections of a backend and of its pool.
#[inline(always)]
fn count<T: Tables>(tables: &T, id: u16, by: u64) {
    tables.count_open(Whose::Backend(id), by);
    if let Some(backend) = tables.backend(id) {
        tables.count_open(Whose::Pool(backend.pool), by);
    }
}
