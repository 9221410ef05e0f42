//! Fragments of a session's packets: the first has the ports that find the session, and leaves them to those that follow.
//!
//! The identification stays as the sender chose it, as with Linux' own translation. Clients whose packets come from one stand-in share
//! its numbers; where two of them collide within a reassembly, the checksum finds it, and both are lost.

use super::{Held, Session, SessionKey, has_way, held_mut, target, toa};
use crate::abi::{FlowKey, FragmentEntry, Port, Service};
use crate::fragment::{Piece, follow, note};
use crate::guard::Asked;
use crate::parse::{self, Kind, Network, Transport};
use crate::pipeline::{Packet as _, Step, Tables, ended};
use crate::rewrite;
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::IPPROTO_TCP;

/// Which stage takes a first fragment for a stand-in: what answers an established session has no more to say.
#[inline(always)]
pub(crate) fn takes<T: Tables>(tables: &T, network: &Network, transport: &Transport) -> Stage {
    let key = SessionKey::of(network, transport);
    if tables.session(Held::Established, &key).is_some() { Stage::SessionFragment } else { Stage::Opening }
}

/// [`Stage::SessionFragment`]: a fragment whose session stands, and those that follow it.
///
/// # Errors
///
/// Why it is not sent on.
#[inline(always)]
pub fn session_fragment<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    ended(carry(packet, tables))
}

#[inline(always)]
fn carry<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let piece = Piece::of_flow(packet, &network)?;
    let transport = if piece.first {
        piece.transport(packet, &network)?
    } else {
        let ports = follow(tables, &network, &piece)?.spread;
        Transport {
            l4: piece.l4,
            protocol: piece.protocol,
            source: Port::new((ports >> 16) as u16),
            destination: Port::new(ports as u16),
            // Of no account.
            kind: Kind::Udp,
        }
    };
    let key = SessionKey::of(&network, &transport);
    let (mut session, held) = held_mut(tables, &key).ok_or(Reason::NoSession)?;
    if session.has(Session::REPLY) {
        return back(packet, tables, &network, &piece, &transport, &mut session);
    }
    let target = target(tables, &session)?;
    if network.end - network.l3 > target.device.mtu as usize {
        return Err(Reason::TooBig);
    }
    if !piece.first {
        let service = tables.service(session.service).ok_or(Reason::NoTable)?;
        if service.has(Service::GUARDED) {
            tables.admits(&FlowKey::of_piece(&network, session.service), Asked::PIECE)?;
        }
    } else if session.has(Session::TOA) && transport.protocol == IPPROTO_TCP {
        // What has to have the option cannot get it: those that follow have their places already.
        if toa::belongs(transport.kind, session.sequence, held) {
            return Err(Reason::TooBig);
        }
        if packet.is_claimed(transport.l4, network.end) {
            return Err(Reason::ForgedAddress);
        }
    }
    let begins = session.has(Session::FRESH);
    let account = Account::of(session.backend, target.backend, &network, begins);
    rewritten(packet, tables, &network, &piece, &transport, &mut session)?;
    rewrite::link(packet, target.device.mac, target.mac)?;
    Ok(Verdict {
        reason: Reason::FragmentForwarded,
        ifindex: leaving(packet, target.device.ifindex),
        account,
    })
}

/// From a backend to its client.
#[inline(always)]
fn back<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    piece: &Piece,
    transport: &Transport,
    session: &mut Session,
) -> Result<Verdict, Reason> {
    let resolved = has_way(packet, tables, network, session, tables.ticks())?;
    let backend = tables.backend(session.backend).ok_or(Reason::NoTable)?;
    let account = Account::of(session.backend, backend, network, false);
    rewritten(packet, tables, network, piece, transport, session)?;
    if !resolved {
        return Ok(Verdict { reason: Reason::FragmentRepliedByHost, ifindex: 0, account });
    }
    rewrite::link(packet, session.way.source, session.way.destination)?;
    Ok(Verdict { reason: Reason::FragmentReplied, ifindex: leaving(packet, session.way.ifindex), account })
}

/// Addresses in every fragment; ports and checksum in the first, which is the one that is noted.
#[inline(always)]
fn rewritten<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    piece: &Piece,
    transport: &Transport,
    session: &mut Session,
) -> Result<(), Reason> {
    if !piece.first {
        return rewrite::readdress_both(packet, network, session.source, session.destination).map(drop);
    }
    let segment = super::flags(packet, transport)?;
    rewrite::translate_both(
        packet,
        network,
        transport,
        (session.source, session.source_port),
        (session.destination, session.destination_port),
    )?;
    session.note(tables.ticks(), segment);
    let ports = u32::from(transport.source.number()) << 16 | u32::from(transport.destination.number());
    note(tables, network, piece, session.backend, FragmentEntry::SESSION, ports)
}
