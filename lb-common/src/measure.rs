//! What handshakes tell of a pool: for services that are measured, because a rollout is under way.
//!
//! Only packets that begin or end a handshake are looked at ([`handshake`](crate::handshake)). In the `dsr` modes answers go past
//! the balancer: what is left is SYNs that clients repeat.
//!
//! What is counted is *clients*: the first connection of each client since the agent last cleared the measure is its sample.
//! Ten thousand connections from three addresses are three samples. (Two clients in 65 536 may share a bit, and count as
//! one.)
//!
//! The **tripwire** is Wald's sequential probability ratio test (1945): a straight line that the number of clients that
//! fared badly must stay below. The canary's split is taken back by whoever processes the packet that crosses it.

use bytemuck::{Pod, Zeroable};
use core::mem::offset_of;

use crate::abi::{FlowKey, HANDSHAKE_WINDOW, Service};
use crate::pipeline::Tables;

/// Bits of a set of clients.
pub const CLIENT_BITS: usize = 1 << 16;
/// Buckets of a histogram: two for each doubling, from 1 µs (1024 ns) on.
pub const BUCKETS: usize = 48;

/// One element of `MEASURES`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Measure {
    /// Where the tripwire's line starts, in clients times 2^16; 0: there is none.
    pub trip_start: u64,
    /// How much it rises with each client that tried, times 2^16.
    pub trip_slope: u64,
    /// Monotonic nanoseconds when it was crossed; 0: it was not.
    pub tripped: u64,
    /// Nanoseconds from one new connection of the canary to the next one; 0: as many as come.
    pub cap_interval: u64,
    /// Monotonic nanoseconds at which the canary has had its share of new connections.
    pub cap_next: u64,
    /// The stable pool, the canary.
    pub pools: [PoolMeasure; 2],
}

/// What is known of one pool's handshakes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PoolMeasure {
    /// By [`Outcome`].
    pub outcomes: [u64; Outcome::COUNT],
    /// From a client's first SYN to its answer.
    pub handshake: [u64; BUCKETS],
    /// From a client's first SYN to the first byte of its backend.
    pub first_byte: [u64; BUCKETS],
    /// Clients that tried.
    pub tried: [u64; CLIENT_BITS / 64],
    /// Clients that fared badly.
    pub bad: [u64; CLIENT_BITS / 64],
}

/// What becomes of a connection, or of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// Clients that tried.
    ClientTried = 0,
    /// Clients that fared badly: one of their connections was refused, not answered in time, or reset before a byte came.
    ClientBad = 1,
    /// Connections that began.
    Tried = 2,
    /// A SYN was answered.
    Answered = 3,
    /// A SYN was answered with a RST.
    Refused = 4,
    /// A SYN was repeated, since nobody had answered.
    Repeated = 5,
    /// Reset by the backend before it had sent a byte.
    ResetEarly = 6,
    /// The backend has sent its first byte.
    Served = 7,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 8;
}

/// A handshake under way, or over and waiting for the backend's first byte: a value of `HANDSHAKES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Handshake {
    /// Monotonic nanoseconds of its SYN.
    pub at: u64,
    /// Initial sequence number of the client.
    pub sequence: u32,
    /// Who has the SYN.
    pub backend: u16,
    /// [`Handshake::WAITING`], [`Handshake::REPEATED`], [`Handshake::ANSWERED`], [`Handshake::LATE`],
    /// [`Handshake::REFUSED`] or [`Handshake::UNSURE`].
    pub state: u8,
    /// Whether the canary has it.
    pub canary: u8,
    /// Whether it is its client's sample.
    pub sample: u8,
    /// How often it was sent elsewhere.
    pub retries: u8,
    /// The backend's generation when it got the SYN: the lower half, which is enough to tell it from the next one.
    pub generation: u16,
    /// Initial sequence number of the backend, once it has answered.
    pub drawn: u32,
}

impl Handshake {
    /// Nobody has answered.
    pub const WAITING: u8 = 1;
    /// Nobody had answered when the client asked again.
    pub const REPEATED: u8 = 2;
    /// The backend has answered.
    pub const ANSWERED: u8 = 3;
    /// The backend has answered, but not before the client asked again.
    pub const LATE: u8 = 4;
    /// The backend has refused it, and the client was not told.
    pub const REFUSED: u8 = 5;
    /// There was none: the first segment that was seen of the flow may be of a connection, or made up ([`limit`](crate::limit)).
    pub const UNSURE: u8 = 6;

    /// Whether the backend has answered.
    #[must_use]
    #[inline(always)]
    pub const fn is_answered(&self) -> bool {
        self.state == Self::ANSWERED || self.state == Self::LATE
    }

    /// Whether a client's segment with this sequence number is one of the first after its SYN.
    #[must_use]
    #[inline(always)]
    pub const fn continues(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.sequence).wrapping_sub(1) < HANDSHAKE_WINDOW
    }

    /// Whether a client that acknowledges this has got what its backend sent.
    #[must_use]
    #[inline(always)]
    pub const fn is_proven(&self, acknowledged: u32) -> bool {
        self.is_answered() && acknowledged.wrapping_sub(self.drawn).wrapping_sub(1) < HANDSHAKE_WINDOW
    }
}

/// What a reply says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who sends it.
    pub backend: u16,
    /// It answers a SYN.
    pub answers: bool,
    /// It ends the connection at once.
    pub resets: bool,
    /// It carries data.
    pub data: bool,
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
}

/// The bucket of a time in nanoseconds.
#[must_use]
#[inline(always)]
pub const fn bucket(nanoseconds: u64) -> usize {
    let us = nanoseconds >> 10;
    if us == 0 {
        return 0;
    }
    let log = 63 - us.leading_zeros() as usize;
    let half = if log == 0 { 1 } else { (us >> (log - 1)) as usize & 1 };
    let bucket = 2 * log + half;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The shortest time of a bucket, in nanoseconds.
#[must_use]
pub const fn bucket_start(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let log = bucket / 2;
    let us = (1u64 << log) + if log > 0 { (bucket as u64 & 1) << (log - 1) } else { 0 };
    us << 10
}

const fn pool(canary: bool) -> usize {
    offset_of!(Measure, pools) + if canary { size_of::<PoolMeasure>() } else { 0 }
}

/// Where a counter lies: an offset in bytes of [`Measure`].
#[must_use]
#[inline(always)]
pub const fn counter(canary: bool, outcome: Outcome) -> usize {
    pool(canary) + offset_of!(PoolMeasure, outcomes) + outcome as usize * 8
}

/// A client's first SYN goes to a backend. Returns whether it is the client's sample.
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, service: &Service, key: &FlowKey, canary: bool) -> bool {
    let index = service.measure.into();
    let sample = !note_client(tables, service, key, canary, offset_of!(PoolMeasure, tried));
    if sample {
        tables.count(index, counter(canary, Outcome::ClientTried));
    }
    tables.count(index, counter(canary, Outcome::Tried));
    sample
}

/// How far a capped canary may be ahead of its rate: so much of a burst is taken.
pub const CAP_BURST: u64 = 50_000_000;

/// [`Measure::cap_interval`] for at most so many new connections in any second (and one: the first): the virtual
/// scheduling of the generic cell rate algorithm (ITU-T I.371). 0: as many as come.
#[must_use]
pub const fn cap_interval(a_second: u32) -> u64 {
    if a_second == 0 { 0 } else { (1_000_000_000 + CAP_BURST) / a_second as u64 }
}

/// Whether the canary may have another new connection; it is taken for one if it may.
///
/// Of two CPUs that come at the same moment one is refused: there are never more than there may be.
#[inline(always)]
pub fn has_room<T: Tables>(tables: &T, service: &Service) -> bool {
    let index = service.measure.into();
    let interval = tables.word(index, offset_of!(Measure, cap_interval));
    if interval == 0 {
        return true;
    }
    let next = tables.word(index, offset_of!(Measure, cap_next));
    let now = tables.clock();
    let from = if next > now { next } else { now };
    from - now <= CAP_BURST
        && tables.swap(index, offset_of!(Measure, cap_next), next, from.wrapping_add(interval))
}

/// A client sends its SYN again, since nobody has answered.
#[inline(always)]
pub fn repeats<T: Tables>(tables: &T, service: &Service, key: &FlowKey, known: &Handshake) {
    fails(tables, service, key, known.canary != 0, Outcome::Repeated);
}

/// A backend answers a SYN.
#[inline(always)]
pub fn answers<T: Tables>(tables: &T, service: &Service, known: &Handshake) {
    took(tables, service, known, Outcome::Answered, offset_of!(PoolMeasure, handshake));
}

/// A backend sends the first byte of a connection.
#[inline(always)]
pub fn serves<T: Tables>(tables: &T, service: &Service, known: &Handshake) {
    took(tables, service, known, Outcome::Served, offset_of!(PoolMeasure, first_byte));
}

/// A backend resets a connection of which it has not sent a byte.
#[inline(always)]
pub fn resets<T: Tables>(tables: &T, service: &Service, key: &FlowKey, known: &Handshake) {
    let outcome = if known.is_answered() { Outcome::ResetEarly } else { Outcome::Refused };
    fails(tables, service, key, known.canary != 0, outcome);
}

#[inline(always)]
fn took<T: Tables>(tables: &T, service: &Service, known: &Handshake, outcome: Outcome, histogram: usize) {
    let (index, canary) = (service.measure.into(), known.canary != 0);
    tables.count(index, counter(canary, outcome));
    if known.sample != 0 {
        let bucket = bucket(tables.clock().wrapping_sub(known.at));
        tables.count(index, pool(canary) + histogram + bucket * 8);
    }
}

#[inline(always)]
fn fails<T: Tables>(tables: &T, service: &Service, key: &FlowKey, canary: bool, outcome: Outcome) {
    let index = service.measure.into();
    tables.count(index, counter(canary, outcome));
    if note_client(tables, service, key, canary, offset_of!(PoolMeasure, bad)) {
        return;
    }
    tables.count(index, counter(canary, Outcome::ClientBad));
    if !canary {
        return;
    }
    let start = tables.word(index, offset_of!(Measure, trip_start));
    if start == 0 {
        return;
    }
    let bad = tables.word(index, counter(true, Outcome::ClientBad));
    let tried = tables.word(index, counter(true, Outcome::ClientTried));
    let slope = tables.word(index, offset_of!(Measure, trip_slope));
    if bad << 16 >= start.wrapping_add(slope.wrapping_mul(tried)) {
        tables.trip(key.owner, index);
    }
}

/// Puts a client into a set; whether it was there already.
#[inline(always)]
fn note_client<T: Tables>(tables: &T, service: &Service, key: &FlowKey, canary: bool, set: usize) -> bool {
    let bit = service.backend_keys.hash(key.client.words(), 0) as usize % CLIENT_BITS;
    tables.set(service.measure.into(), pool(canary) + set + bit / 64 * 8, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_the_bucket_that_starts_before_it() {
        for ns in (0..2_000_000u64).step_by(97).chain((0..40).map(|log| 1 << log)) {
            let bucket = bucket(ns);
            assert!(bucket_start(bucket) <= ns, "{ns} in {bucket}");
            assert!(bucket == BUCKETS - 1 || ns < bucket_start(bucket + 1), "{ns} in {bucket}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_measure_is_a_whole_number_of_words() {
        assert_eq!(size_of::<Measure>() % 8, 0);
        assert_eq!(counter(false, Outcome::ClientTried), 40);
        assert_eq!(counter(true, Outcome::ClientTried), 40 + size_of::<PoolMeasure>());
    }
}
