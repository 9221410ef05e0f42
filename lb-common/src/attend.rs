//! Requests to services that have more than the bare rule: a flag of [`Service::ATTENDED`].
//!
//! The way is that of every request ([`enter`](crate::pipeline::enter)); between its steps stands what such services ask for.

use crate::abi::{FlowKey, OnEmpty, Service};
use crate::fault;
use crate::handshake;
use crate::limit::Segment;
use crate::parse::{self, Kind, Network};
use crate::pipeline::{Packet, Step, Tables, Target, empty, ended, find_service};
use crate::rewrite;
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::wire::Tcp;

/// [`Stage::Attend`](crate::stage::Stage::Attend): from a client to a service with a flag of [`Service::ATTENDED`].
///
/// # Errors
///
/// Why it does not get to a backend.
#[inline(always)]
pub fn attend<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let transport = parse::transport(packet, &network)?;
    // It was there a moment ago.
    let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    // First, when little else has to be kept. Whoever gets this SYN, the host included, gets it with what the service says.
    if service.has(Service::CLAMPED)
        && let Kind::Syn(_) = transport.kind
    {
        rewrite::clamp_mss(packet, &network, &transport, service.clamp_mss);
    }
    if service.has(Service::SESSIONS) {
        return Ok(Step::Next(Stage::Session));
    }
    let key = FlowKey::of_request(&network, &transport, index);
    let mut place = tables.place_attended(service, &key, transport.kind)?;
    if place.backend == 0 {
        return empty(packet, tables, service, &network, &transport).map(Step::End);
    }
    if service.has(Service::HANDSHAKES)
        && let Kind::Syn(sequence) = transport.kind
        && handshake::is_sound(packet, service, &network, &transport)
    {
        place = handshake::begins(tables, service, &key, sequence, place);
        if place.backend == 0 {
            return kept_away(packet, tables, service, &network).map(Step::End);
        }
    }
    let target = Target::of(tables, &place)?;
    if service.has(Service::COUNTED) && !matches!(transport.kind, Kind::Syn(_)) {
        let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
        tables.passes(service, &key, place.backend, Segment::of(header));
    }
    if service.has(Service::FAULTS)
        && matches!(transport.kind, Kind::Syn(_))
        && let Some(action) = tables.injected(service, &key, target.backend.pool, place.backend)
    {
        return fault::strike(packet, tables, service, &network, &key, place.backend, action).map(Step::End);
    }
    let account = Account::of(place.backend, target.backend, &network, place.begins);
    let sent = tables.send(packet, index, place);
    ended(sent.map(|ifindex| Verdict { reason: Reason::Forwarded, ifindex, account }))
}

/// A limit keeps it away.
#[inline(always)]
fn kept_away<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    service: &Service,
    network: &Network,
) -> Result<Verdict, Reason> {
    let says = if service.on_limit == Service::SPILL { service.on_empty } else { service.on_limit };
    if says == OnEmpty::Reset as u8 {
        let ifindex = packet.ifindex();
        tables.reset(packet, network)?;
        return Ok(Verdict { reason: Reason::LimitReset, ifindex, account: Account::NONE });
    }
    Err(Reason::LimitDrop)
}
