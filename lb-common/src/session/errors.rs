//! ICMP errors about a session's packets, either way: whoever sent the packet that is quoted gets the error, as about the packet
//! that it has sent, and from whom it has sent it to.
//!
//! The quoted packet turned round is one of the other direction, so that direction's entry says what it was before. Like everything
//! else that leaves, the error has both ends replaced: a backend needs no more than a route to the balancer, and takes no packet
//! from a router that it has none to (`rp_filter`); and a client never hears of what is behind it (RFC 5508, REQ-5).

use super::{Session, SessionKey, has_way, held_mut, target, toa};
use crate::abi::Service;
use crate::checksum::Delta;
use crate::icmp::{FRAGMENTATION_NEEDED, PACKET_TOO_BIG, UNREACHABLE, quote, translate};
use crate::parse::{self, Family, Network};
use crate::pipeline::{Packet, Step, Tables, Target};
use crate::rewrite;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{IPPROTO_TCP, Icmp};

/// [`Stage::SessionIcmp`](crate::stage::Stage::SessionIcmp): an ICMP error about a packet from a VIP or a stand-in.
///
/// # Errors
///
/// Why nobody gets it. What is about no session may be about the host's own: it goes up.
#[inline(always)]
pub fn session_icmp<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    road(packet, tables).map(Step::End)
}

#[inline(always)]
fn road<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let quote = quote(packet, &network).ok_or(Reason::OtherProtocol)?;
    let key = SessionKey {
        source: quote.destination,
        destination: quote.source,
        source_port: quote.destination_port,
        destination_port: quote.source_port,
        protocol: quote.protocol.into(),
    };
    let (mut session, _) = held_mut(tables, &key).ok_or(Reason::OtherProtocol)?;
    let replies = session.has(Session::REPLY);
    let resolved = if replies {
        has_way(packet, tables, &network, &mut session, tables.ticks())?
    } else {
        // Nobody is told of an error about an error.
        if network.end - network.l3 > target(tables, &session)?.device.mtu as usize {
            return Err(Reason::TooBig);
        }
        true
    };
    let source = (session.destination, session.destination_port);
    let destination = (session.source, session.source_port);
    translate(packet, &network, &quote, session.source, source, destination)?;
    if !replies {
        let Target { device, mac, .. } = target(tables, &session)?;
        rewrite::link(packet, device.mac, mac)?;
        let ifindex = leaving(packet, device.ifindex);
        return Ok(Verdict { reason: Reason::ErrorForwarded, ifindex, account: Account::NONE });
    }
    if quote.protocol == IPPROTO_TCP {
        let service = tables.service(session.service).ok_or(Reason::NoTable)?;
        if service.has(Service::TOA) {
            leave_room(packet, &network)?;
        }
    }
    if !resolved {
        return Ok(Verdict::of(Reason::ErrorRepliedByHost));
    }
    rewrite::link(packet, session.way.source, session.way.destination)?;
    let ifindex = leaving(packet, session.way.ifindex);
    Ok(Verdict { reason: Reason::ErrorReplied, ifindex, account: Account::NONE })
}

/// The least that an IPv4 link takes (RFC 791, section 3.2).
const LEAST_V4: u16 = 68;
/// The least that an IPv6 link takes (RFC 8200, section 5).
const LEAST_V6: u32 = 1280;

/// What a path takes has to have room for the client's address as well, which is put into the first segment until somebody
/// acknowledges it.
#[inline(always)]
fn leave_room<P: Packet>(packet: &mut P, network: &Network) -> Result<(), Reason> {
    let option = toa::size(network);
    let header: &mut Icmp = packet.view_mut(network.next).ok_or(Reason::Malformed)?;
    let [a, b, c, d] = header.rest;
    match network.family {
        Family::V4 => {
            let mtu = u16::from_be_bytes([c, d]);
            let less = mtu.wrapping_sub(option as u16);
            if header.kind != UNREACHABLE
                || header.code != FRAGMENTATION_NEEDED
                || mtu < LEAST_V4 + option as u16
            {
                return Ok(());
            }
            let [e, f] = less.to_be_bytes();
            header.checksum = Delta::NONE.word([c, d], [e, f]).apply(header.checksum);
            header.rest = [a, b, e, f];
        }
        Family::V6 => {
            let mtu = u32::from_be_bytes([a, b, c, d]);
            if header.kind != PACKET_TOO_BIG || mtu <= LEAST_V6 {
                return Ok(());
            }
            let less = mtu - option as u32;
            let less = if less < LEAST_V6 { LEAST_V6 } else { less };
            let old = u32::from_ne_bytes([a, b, c, d]);
            header.checksum = Delta::NONE.long(old, less.to_be()).apply(header.checksum);
            header.rest = less.to_be_bytes();
        }
    }
    Ok(())
}
