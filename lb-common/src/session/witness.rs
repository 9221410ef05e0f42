//! What a session tells of its handshake, where the service is measured, and the faults that its SYN meets. By itself, since both this and the rewriting take
//! most of the stack.

use super::{Held, Session, SessionKey, held};
use crate::abi::{Fault, FlowKey, Service};
use crate::fault::strike;
use crate::handshake;
use crate::measure::Reply;
use crate::parse::{self, Kind};
use crate::pipeline::{Packet, Step, Tables};
use crate::select::Place;
use crate::stage::Stage;
use crate::verdict::Reason;
use crate::wire::{IPPROTO_TCP, TCP_RST, TCP_SYN, Tcp};

/// [`Stage::Witness`]: a packet of a session, before it is carried on.
///
/// # Errors
///
/// If it is none.
#[inline(always)]
pub fn witness<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let transport = match parse::transport(packet, &network) {
        // Nobody cuts up a SYN.
        Err(Reason::Fragment) => return Ok(Step::Next(Stage::SessionFragment)),
        transport => transport?,
    };
    if transport.protocol != IPPROTO_TCP {
        return Ok(Step::Next(Stage::Carry));
    }
    let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
    let sequence = u32::from_be_bytes(header.sequence);
    let reply = |backend| Reply {
        backend,
        answers: header.flags & TCP_SYN != 0,
        resets: header.flags & TCP_RST != 0,
        data: transport.l4 + usize::from(header.data_offset >> 4) * 4 < network.end,
        sequence,
        acknowledged: u32::from_be_bytes(header.acknowledgement),
    };
    let key = SessionKey::of(&network, &transport);
    let entry = held(tables, &key).ok_or(Reason::NoSession)?;
    let service = tables.service(entry.service).ok_or(Reason::NoTable)?;
    if entry.has(Session::REPLY) {
        if !service.has(Service::HANDSHAKES) {
            return Ok(Step::Next(Stage::Carry));
        }
        let flow = FlowKey {
            client: entry.destination,
            client_port: entry.destination_port,
            port: entry.source_port,
            owner: entry.service,
        };
        tables.replies(service, &flow, reply(entry.backend))?;
    } else if matches!(transport.kind, Kind::Syn(_)) {
        let flow = FlowKey::of_request(&network, &transport, entry.service);
        if service.has(Service::HANDSHAKES) && handshake::is_sound(packet, service, &network, &transport) {
            // The session stands: nobody is sent elsewhere here.
            let place = Place { backend: entry.backend, begins: true, spread: 0 };
            let _ = handshake::begins(tables, service, &flow, sequence, place);
        }
        let backend = entry.backend;
        let pool = tables.backend(backend).ok_or(Reason::NoTable)?.pool;
        // Whoever is established is left alone.
        if service.has(Service::FAULTS)
            && entry.has(Session::FRESH)
            && let Some(action) = tables.injected(service, &flow, pool, backend)
        {
            if action == Fault::RESET {
                // Its port is free again at once.
                let behind = key.back(&entry);
                tables.drop_session(Held::Opening, &behind);
                tables.drop_session(Held::Opening, &key);
            }
            return strike(packet, tables, service, &network, &flow, backend, action).map(Step::End);
        }
    }
    Ok(Step::Next(Stage::Carry))
}
