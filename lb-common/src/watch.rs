//! What becomes of connections, by backend: for services whose backends are judged by it, or limited.
//!
//! Like [`measure`](crate::measure), which is about the pools of a rollout, this looks at packets that begin or end a handshake,
//! and shares its entries of `HANDSHAKES`. What is counted here is *connections*, each of which fails at most once: it is
//! refused, or not answered before its client asks again, or reset before a byte of the backend came back. In the `dsr` modes
//! answers go past the balancer: what is left is connections that began, and clients that asked again.
//!
//! The words are shared by all CPUs: they change once or twice in the life of a connection, and a row of failures has to be
//! *one* row.

use bytemuck::{Pod, Zeroable};

use crate::measure::Handshake;
use crate::pipeline::Tables;

/// One element of `WATCHES`, by backend id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Watch {
    /// Connections that began.
    pub tried: u64,
    /// SYNs that were answered before their clients asked again.
    pub answered: u64,
    /// SYNs that were answered with a RST.
    pub refused: u64,
    /// SYNs that were repeated, since nobody had answered.
    pub unanswered: u64,
    /// Connections that the backend reset before it had sent a byte.
    pub reset_early: u64,
    /// Connections whose first byte the backend has sent.
    pub served: u64,
    /// Refused and unanswered connections since one was answered.
    pub unaccepted_in_a_row: u64,
    /// Connections reset early since a first byte was sent.
    pub reset_in_a_row: u64,
    /// Nanoseconds from SYN to answer, of all that `answered` counts.
    pub handshake_ns: u64,
    /// Nanoseconds from SYN to first byte, of all that `served` counts.
    pub first_byte_ns: u64,
    /// Until when the agent has ejected it, in monotonic nanoseconds; 0: it has not. The next agent goes on from here.
    pub ejected_until: u64,
    /// How often it was ejected lately.
    pub ejections: u64,
    /// Zero; fills two cache lines.
    pub reserved: [u64; 4],
}

const _: () = assert!(size_of::<Watch>() == 128, "two cache lines");

/// A word of a [`Watch`] that the kernel changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// [`Watch::tried`].
    Tried = 0,
    /// [`Watch::answered`].
    Answered = 1,
    /// [`Watch::refused`].
    Refused = 2,
    /// [`Watch::unanswered`].
    Unanswered = 3,
    /// [`Watch::reset_early`].
    ResetEarly = 4,
    /// [`Watch::served`].
    Served = 5,
    /// [`Watch::unaccepted_in_a_row`].
    UnacceptedInARow = 6,
    /// [`Watch::reset_in_a_row`].
    ResetInARow = 7,
    /// [`Watch::handshake_ns`].
    HandshakeNs = 8,
    /// [`Watch::first_byte_ns`].
    FirstByteNs = 9,
}

impl Word {
    /// Where it lies, in bytes.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> usize {
        self as usize * 8
    }
}

/// A connection begins.
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, backend: u16) {
    tables.tally(backend, Word::Tried, 1);
}

/// Its client asks again, and nobody has answered.
#[inline(always)]
pub fn repeats<T: Tables>(tables: &T, known: &Handshake) {
    tables.tally(known.backend, Word::Unanswered, 1);
    tables.tally(known.backend, Word::UnacceptedInARow, 1);
}

/// Its backend answers.
#[inline(always)]
pub fn answers<T: Tables>(tables: &T, known: &Handshake) {
    if known.state == Handshake::WAITING {
        tables.tally(known.backend, Word::Answered, 1);
        tables.tally(known.backend, Word::HandshakeNs, tables.clock().wrapping_sub(known.at));
    }
    tables.end_row(known.backend, Word::UnacceptedInARow);
}

/// Its backend sends the first byte.
#[inline(always)]
pub fn serves<T: Tables>(tables: &T, known: &Handshake) {
    tables.tally(known.backend, Word::Served, 1);
    tables.tally(known.backend, Word::FirstByteNs, tables.clock().wrapping_sub(known.at));
    tables.end_row(known.backend, Word::ResetInARow);
}

/// Its backend resets it before it has sent a byte. A connection that was answered late has failed already.
#[inline(always)]
pub fn resets<T: Tables>(tables: &T, known: &Handshake) {
    let (count, row) = match known.state {
        Handshake::WAITING => (Word::Refused, Word::UnacceptedInARow),
        Handshake::ANSWERED => (Word::ResetEarly, Word::ResetInARow),
        _ => return,
    };
    tables.tally(known.backend, count, 1);
    tables.tally(known.backend, row, 1);
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn words_lie_where_they_are_named() {
        for (word, offset) in [
            (Word::Tried, offset_of!(Watch, tried)),
            (Word::Answered, offset_of!(Watch, answered)),
            (Word::Refused, offset_of!(Watch, refused)),
            (Word::Unanswered, offset_of!(Watch, unanswered)),
            (Word::ResetEarly, offset_of!(Watch, reset_early)),
            (Word::Served, offset_of!(Watch, served)),
            (Word::UnacceptedInARow, offset_of!(Watch, unaccepted_in_a_row)),
            (Word::ResetInARow, offset_of!(Watch, reset_in_a_row)),
            (Word::HandshakeNs, offset_of!(Watch, handshake_ns)),
            (Word::FirstByteNs, offset_of!(Watch, first_byte_ns)),
        ] {
            assert_eq!(word.offset(), offset, "{word:?}");
        }
    }
}
