//! Limits: how many connections a backend or a pool may have, and how many it may get in a second.
//!
//! **New connections** are let through at a rate, by the generic cell rate algorithm (ITU-T I.371): `due` is when the next one
//! would be due if they came evenly, and one that comes too early by more than `burst` is kept away. One word, and no timer;
//! two CPUs that read it at once may let one more through.
//!
//! **Connections** are counted in `OPEN`, which is asked for every packet of such a service, and of no other. A connection is
//! there from the first segment after its SYN on (so that a flood of SYNs fills nothing), and is over with the first FIN or RST
//! that passes, or when it was silent for longer than a TCP flow may be. So the count is exact, but for
//!
//! - handshakes under way: a limit may be overshot by so many;
//! - in the `dsr` modes, connections that the *backend* resets: nobody tells, and they count until they were silent for long;
//! - what a full table has forgotten.
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

use crate::abi::{FlowKey, Service};
use crate::pipeline::Tables;
use crate::retry;
use crate::select::Place;

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
    /// Whose it is; 0: it is over.
    pub backend: u16,
    /// Its pool.
    pub pool: u16,
    /// When it last talked, in [`ticks`](crate::abi::ticks).
    pub seen: u32,
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
    if service.has(Service::COUNTED) {
        // Its ports had another connection before.
        end(tables, key);
        tables.forget_open(key);
    }
    let Some(backend) = tables.backend(id) else { return Admission::KeptAway };
    let now = tables.clock();
    let (own, pool) = (Whose::Backend(id), Whose::Pool(backend.pool));
    if !has_room(tables, pool, now) {
        tables.keep_away(pool);
        return Admission::KeptAway;
    }
    let spills = if !has_room(tables, own, now) {
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

/// Whether a backend may have one that another one may not: one on trial gets its own only.
#[inline(always)]
pub fn fits<T: Tables>(tables: &T, id: u16) -> bool {
    let whose = Whose::Backend(id);
    has_room(tables, whose, tables.clock()) && tables.limit(whose).is_none_or(|limit| limit.trials == 0)
}

/// Another backend that may have what `id` may not.
#[inline(always)]
pub fn spill<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, id: u16) -> Option<u16> {
    let now = tables.clock();
    let other = retry::another(tables, service, key, id, id, 0, |other| fits(tables, other))?;
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

/// Whether somebody may have one more connection now.
#[inline(always)]
fn has_room<T: Tables>(tables: &T, whose: Whose, now: u64) -> bool {
    let Some(limit) = tables.limit(whose) else { return true };
    let in_time = limit.interval == 0 || limit.due <= now.wrapping_add(limit.burst);
    // Signed: the agent may have counted a connection as over a moment before its end was seen.
    in_time && (limit.most == 0 || (limit.open as i64) < limit.most as i64)
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

/// A segment after the SYN goes to `backend` of `pool`; `ends` if it is a FIN or a RST.
#[inline(always)]
pub fn passes<T: Tables>(tables: &T, key: &FlowKey, backend: u16, pool: u16, ends: bool) {
    match tables.open(key) {
        _ if ends => end(tables, key),
        // It is over, or counted.
        Some(_) => {}
        None => {
            tables.keep_open(key, &Open { backend, pool, seen: tables.ticks() });
            tables.count_open(Whose::Backend(backend), 1);
            tables.count_open(Whose::Pool(pool), 1);
        }
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

/// A connection is over, whoever says so.
#[inline(always)]
pub fn end<T: Tables>(tables: &T, key: &FlowKey) {
    let Some(open) = tables.open(key) else { return };
    if open.backend == 0 {
        return;
    }
    // It is remembered: what is still under way does not begin it again.
    tables.keep_open(key, &Open { backend: 0, pool: 0, seen: tables.ticks() });
    tables.count_open(Whose::Backend(open.backend), 1u64.wrapping_neg());
    tables.count_open(Whose::Pool(open.pool), 1u64.wrapping_neg());
}
