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
use crate::parse::{Network, Transport};
use crate::pipeline::{Packet, Tables};
use crate::retry;
use crate::select::Place;
use crate::verdict::Reason;
use crate::watch;
use crate::wire::{TCP_FIN, Tcp, Word};

/// Nanoseconds before which no client repeats a SYN: its timer begins with a second (RFC 6298, 2.1). What comes sooner was
/// duplicated on its way, or wants somebody to look bad.
const SOONEST: u64 = 1 << 28;

/// Whether a SYN may begin anything. Where answers come back by here, one that is not answered says something of its backend. So
/// nothing is noted of what the backend never gets, or drops without a word: anybody can send that in any name.
#[must_use]
#[inline(always)]
pub fn is_sound<P: Packet>(packet: &P, service: &Service, network: &Network, transport: &Transport) -> bool {
    if service.mode != Mode::Nat as u8 && !service.has(Service::SESSIONS) {
        return true;
    }
    let flags = packet.view::<Tcp>(transport.l4).map_or(TCP_FIN, |header| header.flags);
    // Linux takes no SYN that is a FIN as well.
    flags & TCP_FIN == 0 && is_taken(packet, network, transport)
}

/// Whether a backend gets this segment, and does not drop it for its sum.
#[must_use]
#[inline(always)]
pub(crate) fn is_taken<P: Packet>(packet: &P, network: &Network, transport: &Transport) -> bool {
    let hops = packet.view::<Word>(network.hops()).map_or(0, |word| word.0[0]);
    // As rewriting does it.
    hops > 1 && packet.is_summed(transport.l4, network.end, network.pseudo(transport))
}

/// A SYN that would go to `place`. Returns where it goes.
///
/// A handshake is one with one backend: where the rule has moved the flow meanwhile, another one begins.
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, place: Place) -> Place {
    if tables.is_known(key, sequence, place.backend) {
        return match tables.repeats(service, key, sequence, place.backend) {
            true => tables.moves(service, key, sequence, place),
            false => place,
        };
    }
    let mut place = place;
    if service.has(Service::LIMITED) {
        place = limit::admit(tables, service, key, sequence, place);
        if place.backend == 0 {
            // Where its slot is changing it was noted already. It has no backend: when it comes again, its slot says who.
            tables.forget_half_open(key);
            return place;
        }
    }
    tables.first(service, key, sequence, place)
}

/// Whether a handshake with this backend began with this SYN before.
#[inline(always)]
pub fn is_known<T: Tables>(tables: &T, key: &FlowKey, sequence: u32, backend: u16) -> bool {
    known(tables, key, sequence, backend).is_some()
}

/// The handshake with this backend that began with this SYN before.
#[inline(always)]
fn known<T: Tables>(tables: &T, key: &FlowKey, sequence: u32, backend: u16) -> Option<Handshake> {
    let known = tables.handshake(key)?;
    let same = known.sequence == sequence && known.backend == backend && known.state != Handshake::UNSURE;
    same.then_some(known)
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
        generation: backend.life().generation() as u16,
        drawn: 0,
    };
    tables.keep_handshake(key, &handshake);
    awaited::begins(tables, service, key);
    place
}

/// Its client asks again. Returns whether it may go elsewhere.
#[inline(always)]
pub fn repeats<T: Tables>(tables: &T, service: &Service, key: &FlowKey, sequence: u32, backend: u16) -> bool {
    let Some(known) = known(tables, key, sequence, backend) else { return false };
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
    let Some(known) = known(tables, key, sequence, place.backend) else { return place };
    if let Some(backend) = retry::elsewhere(tables, service, key, &known) {
        if service.has(Service::WATCHED) {
            watch::begins(tables, backend);
        }
        let handshake = Handshake {
            at: tables.clock(),
            backend,
            state: Handshake::WAITING,
            retries: known.retries.wrapping_add(1),
            generation: generation(tables, backend).unwrap_or_default(),
            ..known
        };
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

/// What a handshake remembers of the generation of a backend that packets may go to.
#[inline(always)]
fn generation<T: Tables>(tables: &T, backend: u16) -> Option<u16> {
    let life = tables.backend(backend)?.life();
    life.is_usable().then_some(life.generation() as u16)
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
        // Its client was sent elsewhere meanwhile, and would take an answer for that of the other one; unless that one has lost all
        // of its flows, and it is this one that speaks for what has become of them.
        let speaks = reply.answers || reply.resets;
        let supersedes = generation(tables, known.backend) == Some(known.generation);
        let kept = service.has(Service::RETRIED) && speaks && supersedes;
        return if kept { Err(Reason::Superseded) } else { Ok(()) };
    }
    if known.state == Handshake::UNSURE {
        if !reply.answers {
            forget(tables, service, key);
        }
        if !reply.answers && !reply.resets {
            limit::is_found(tables, key, reply.backend);
        }
        return Ok(());
    }
    if reply.resets {
        return ends(tables, service, key, &known);
    }
    if reply.answers {
        // What came with the SYN may be accepted with it (RFC 7413).
        if !known.continues(reply.acknowledged) {
            return Ok(());
        }
        // First: whoever finds it answered asks for it.
        tables.note_drawn(key, reply.sequence);
        if !known.is_answered() {
            if service.has(Service::COUNTED) {
                limit::renew(tables, key);
            }
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
