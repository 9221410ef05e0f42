//! Requests to services that have more than the bare rule: a flag of [`Service::ATTENDED`].
//!
//! The way is that of every request ([`enter`](crate::pipeline::enter)); between its steps stands what such services ask for.

use crate::abi::{FlowKey, Service};
use crate::parse::{self, Kind};
use crate::pipeline::{Step, Tables, Target, empty, find_service, forward};
use crate::verdict::Reason;

/// [`Stage::Attend`](crate::stage::Stage::Attend): from a client to a service with a flag of [`Service::ATTENDED`].
///
/// # Errors
///
/// Why it does not get to a backend.
#[inline(always)]
pub fn attend<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = parse::transport(packet, &network)?;
    // It was there a moment ago.
    let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    let key = FlowKey::of_request(&network, &transport, index);
    let place = tables.place(service, &key, transport.kind)?;
    if place.backend == 0 {
        return empty(packet, service, &network, &transport).map(Step::End);
    }
    let target = Target::of(tables, &place)?;
    if service.has(Service::MEASURED)
        && let Kind::Syn(sequence) = transport.kind
    {
        tables.begins(service, &key, sequence, target.backend.pool == service.canary_pool);
    }
    forward(packet, tables, settings, service, &network, &transport, &key, &place, &target).map(Step::End)
}
