//! Ports that stand for clients: found without a lock and without a list of free ones.
//!
//! A port is taken if the entry for replies to it exists: it is reserved by putting that entry into `OPENING`, which the kernel
//! refuses if there is one. Whoever has it looks into `SESSIONS` only then: a session enters `SESSIONS` before it leaves
//! `OPENING`, so that it is seen in one of them.
//!
//! Each CPU begins in a range of its own, at a place that the flow's hash says (RFC 6056, section 3.3.3): CPUs do not run
//! after each other's ports, and nobody can guess the next one. In its own range a CPU also takes the port of a session that is
//! over. Nobody else does, so that no two of them take the same. When its range is full it looks for free ones everywhere.

use super::{Draft, Held, SessionKey, is_over};
use crate::abi::{Port, Settings};
use crate::pipeline::Tables;

/// How many ports are tried in a CPU's own range, and then as many among all. With eight of ten ports taken, one flow in 45 000 finds
/// none of 48 free.
const TRIES: u32 = 24;
/// Ticks that a session must be over before its port is taken: its own packets find it void before that.
const SLACK: u32 = 2;

/// Reserves a port of `draft.key.destination` for the session whose replies become what `draft.session` says; the key gets the
/// port. `false`: none was found.
#[must_use]
#[inline(always)]
pub fn reserve<T: Tables>(tables: &T, settings: &Settings, draft: &mut Draft, hash: u64) -> bool {
    let Draft { key, other, session: reply, .. } = draft;
    let first = u32::from(settings.source_ports[0]);
    let all = u32::from(settings.source_ports[1]).wrapping_sub(first).wrapping_add(1) & 0xffff;
    let cpus = settings.cpus.max(1);
    let share = all / cpus;
    // Fewer ports than CPUs: one range for all of them.
    let (own, share) = if share == 0 { (0, all) } else { (tables.cpu() % cpus * share, share) };
    // Odd steps, so that neighbours do not run into each other.
    let step = (hash >> 24) as u32 & 0xff | 1;
    let mut place = (hash >> 32) as u32;
    for attempt in 0..2 * TRIES {
        let mine = attempt < TRIES;
        let offset = if mine { own + place % share.max(1) } else { place % all.max(1) };
        place = place.wrapping_add(step);
        key.destination_port = Port::new(first.wrapping_add(offset) as u16);
        let kept = tables.keep_session(Held::Opening, key, reply, true);
        if kept && tables.session(Held::Established, key).is_none() {
            return true;
        }
        let held = if kept {
            tables.drop_session(Held::Opening, key);
            Held::Established
        } else {
            Held::Opening
        };
        if mine && gone(tables, settings, held, key, other) {
            return tables.keep_session(Held::Opening, key, reply, true);
        }
    }
    false
}

/// Takes the session of these replies away if it is over. Leaves the key of its requests in `forth`.
#[inline(always)]
fn gone<T: Tables>(
    tables: &T,
    settings: &Settings,
    held: Held,
    key: &SessionKey,
    forth: &mut SessionKey,
) -> bool {
    let Some(found) = tables.session(held, key) else { return true };
    *forth = key.back(&found);
    let other = tables.session(held, forth).filter(|other| other.answers(key));
    let with_other = (&*found, other.as_deref());
    if !is_over(settings, key.protocol, held, with_other, tables.ticks(), SLACK) {
        return false;
    }
    if other.is_some() {
        tables.drop_session(held, forth);
    }
    tables.drop_session(held, key);
    true
}
