//! The handshakes of services that are looked at: measured, watched, or tried again elsewhere.
//!
//! Only packets that begin or end a handshake count: a SYN, the answer to it, the first byte that the backend sends, a RST. An
//! entry of `HANDSHAKES` connects them; whatever else passes costs nothing on the way to the backend, and on the way back a glance
//! at whether anything is [awaited](crate::awaited) of its flow. What they mean is another's business: [`measure`] knows pools
//! and clients, [`watch`] backends and connections, and [`retry`] finds another backend.

use crate::abi::{FlowKey, Mode, Service};
use crate::awaited;
use crate::limit;
use crate::measure::{self, Handshake, Reply};
use crate::pipeline::Tables;
use crate::retry;
use crate::select::Place;
use crate::verdict::Reason;
use crate::watch;

/// Nanoseconds before which no client repeats a SYN: its timer begins with a second (RFC 6298, 2.1). What comes sooner was
/// duplicated on its way, or wants somebody to look bad.
const SOONEST: u64 = 1 << 28;

/// A SYN that would go to `place`. Returns where it goes.
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
    if tables.is_known(key, sequence) {
        return match tables.repeats(service, key, sequence) {
            true => tables.moves(service, key, sequence, place),
            false => place,
        };
    }
    let mut place = place;
    if service.has(Service::LIMITED) {
        place = limit::admit(tables, service, key, sequence, place);
        if place.backend == 0 {
            return place;
        }
    }
    tables.first(service, key, sequence, place)
}

/// Whether a handshake began with this SYN before.
#[inline(always)]
pub fn is_known<T: Tables>(tables: &T, key: &FlowKey, sequence: u32) -> bool {
    known(tables, key, sequence).is_some()
}

/// The handshake that began with this SYN before.
#[inline(always)]
fn known<T: Tables>(tables: &T, key: &FlowKey, sequence: u32) -> Option<Handshake> {
    tables.handshake(key).filter(|known| known.sequence == sequence)
}

/// A connection begins.
#[inline(always)]
pub fn first<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
    let Some(backend) = tables.backend(place.backend) else { return place };
    let canary = backend.pool == service.canary_pool;
    let sample = service.has(Service::MEASURED) && measure::begins(tables, service, key, canary);
    if service.has(Service::WATCHED) {
        watch::begins(tables, place.backend);
    }
    if service.has(Service::RETRIED) {
        retry::earn(tables, key.owner);
    }
    let handshake = Handshake {
        at: tables.clock(),
        sequence,
        backend: place.backend,
        state: Handshake::WAITING,
        canary: canary.into(),
        sample: sample.into(),
        retries: 0,
        pad: [0; 6],
    };
    tables.keep_handshake(key, &handshake);
    awaited::begins(tables, service, key);
    place
}

/// Its client asks again. Returns whether it may go elsewhere.
#[inline(always)]
pub fn repeats<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32) -> bool {
    let Some(known) = known(tables, key, sequence) else { return false };
    let refused = known.state == Handshake::REFUSED;
    let soon = tables.clock().wrapping_sub(known.at) < SOONEST;
    if known.is_answered() || soon && !refused {
        // The answer was lost on its way, or comes now.
        return false;
    }
    if known.state == Handshake::WAITING {
        if service.has(Service::MEASURED) {
            measure::repeats(tables, service, key, &known);
        }
        if service.has(Service::WATCHED) {
            watch::repeats(tables, &known);
        }
        if !service.has(Service::RETRIED) {
            tables.note_state(key, Handshake::REPEATED);
        }
    }
    service.has(Service::RETRIED)
}

/// It goes elsewhere, if there is somebody and the budget allows it.
#[inline(always)]
pub fn moves<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
    let Some(known) = known(tables, key, sequence) else { return place };
    if let Some(backend) = retry::elsewhere(tables, service, key, &known, place.backend) {
        if service.has(Service::WATCHED) {
            watch::begins(tables, backend);
        }
        let retries = known.retries.wrapping_add(1);
        let handshake =
            Handshake { at: tables.clock(), backend, state: Handshake::WAITING, retries, ..known };
        tables.keep_handshake(key, &handshake);
        // It was counted as a connection when it began; but for this backend it begins now.
        forget_direct(tables, service, key, backend);
        return Place { backend, begins: false, ..place };
    }
    // Of a refusal that was kept, too: the next one is the client's.
    if matches!(known.state, Handshake::WAITING | Handshake::REFUSED) {
        tables.note_state(key, Handshake::REPEATED);
    }
    place
}

/// The client had the same ports in use with a `nat` backend past the VIP before: replies of that backend to them are ours
/// again.
#[inline(always)]
fn forget_direct<T: Tables>(tables: &T, service: &Service, key: &FlowKey, id: u16) {
    if service.mode != Mode::Nat as u8 {
        return;
    }
    let Some(backend) = tables.backend(id) else { return };
    let port = if backend.port.is_any() { key.port } else { backend.port };
    tables.forget_direct(&FlowKey { port, owner: id.into(), ..*key });
}

/// Nothing is awaited of a flow any more.
#[inline(always)]
fn forget<T: Tables>(tables: &T, service: &Service, key: &FlowKey) {
    awaited::ends(tables, service, key);
    tables.forget_handshake(key);
}

/// A reply of a backend.
///
/// # Errors
///
/// Why its client must not see it.
#[inline(always)]
pub fn replies<T: Tables>(tables: &T, service: &Service, key: &FlowKey, reply: Reply) -> Result<(), Reason> {
    if reply.resets && service.has(Service::COUNTED) {
        limit::end_of(tables, key, reply.backend);
    }
    let Some(known) = tables.handshake(key) else { return Ok(()) };
    if known.backend != reply.backend {
        // Its client was sent elsewhere meanwhile, and would take an answer for that of the other one.
        let speaks = reply.answers || reply.resets;
        return if service.has(Service::RETRIED) && speaks { Err(Reason::Superseded) } else { Ok(()) };
    }
    if reply.resets {
        return ends(tables, service, key, &known);
    }
    if reply.answers {
        if !known.is_answered() && reply.acknowledged == known.sequence.wrapping_add(1) {
            if service.has(Service::MEASURED) {
                measure::answers(tables, service, &known);
            }
            if service.has(Service::WATCHED) {
                watch::answers(tables, &known);
            }
            let late = known.state != Handshake::WAITING;
            let state = if late { Handshake::LATE } else { Handshake::ANSWERED };
            tables.note_state(key, state);
        }
    } else if reply.data && known.is_answered() {
        forget(tables, service, key);
        if service.has(Service::MEASURED) {
            measure::serves(tables, service, &known);
        }
        if service.has(Service::WATCHED) {
            watch::serves(tables, &known);
        }
    } else if !known.is_answered() {
        // The backend speaks within a connection (RFC 5961, 4.2): that SYN was not the beginning of one.
        forget(tables, service, key);
    }
    Ok(())
}

/// A RST.
#[inline(always)]
fn ends<T: Tables>(tables: &T, service: &Service, key: &FlowKey, known: &Handshake) -> Result<(), Reason> {
    if known.state == Handshake::REFUSED && service.has(Service::RETRIED) {
        // Twice the same.
        return Err(Reason::RefusalKept);
    }
    if service.has(Service::MEASURED) {
        measure::resets(tables, service, key, known);
    }
    if service.has(Service::WATCHED) {
        watch::resets(tables, known);
    }
    if service.has(Service::RETRIED)
        && !known.is_answered()
        && retry::keeps_refusal(tables, service, key, known)
    {
        tables.note_state(key, Handshake::REFUSED);
        return Err(Reason::RefusalKept);
    }
    forget(tables, service, key);
    Ok(())
}
