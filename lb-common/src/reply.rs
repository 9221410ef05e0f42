//! The way back: from a `nat` backend to its client, with the VIP as its source; and what goes past the VIP.

use crate::abi::{Address, FlowKey, Port, Replier, Service, Settings, TCP_IDLE_TICKS, VipKey};
use crate::awaited;
use crate::measure::Reply;
use crate::parse::{self, Kind, Network, Transport};
use crate::pipeline::{Packet, Step, Tables, contains, elsewhere, ended, find};
use crate::rewrite::{self, End};
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{IPPROTO_TCP, TCP_RST, TCP_SYN, Tcp};

/// [`Stage::Reply`](crate::stage::Stage::Reply): from or to an address that is a backend's.
///
/// # Errors
///
/// Why it is not sent to a client.
#[inline(always)]
pub fn reply<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = match parse::transport(packet, &network) {
        Ok(transport) => transport,
        Err(reason) => return elsewhere(&network, reason),
    };
    if contains(&settings.repliers, network.source)
        && let Some(found) = replier(tables, network.source, &transport, End::Source)
    {
        if is_no_reply(tables, settings, &network, &transport, &found) {
            return Err(Reason::Direct);
        }
        let (_, replier) = found;
        return ended(back(packet, tables, &network, &transport, replier));
    }
    if contains(&settings.repliers, network.destination) {
        past_vip(tables, &network, &transport)?;
    }
    Err(Reason::NotOurs)
}

/// From a backend, perhaps back to a client.
#[inline(always)]
fn back<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    transport: &Transport,
    replier: Replier,
) -> Result<Verdict, Reason> {
    let exit = tables.route(packet, network).exit()?;
    let service = tables.service(replier.service).ok_or(Reason::NoTable)?;
    let backend = tables.backend(replier.backend).ok_or(Reason::NoTable)?;
    if service.has(Service::HANDSHAKES | Service::COUNTED) && transport.protocol == IPPROTO_TCP {
        measured(packet, tables, service, network, transport, replier)?;
    }
    if service.has(Service::CLAMPED) && transport.protocol == IPPROTO_TCP {
        let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
        if header.flags & TCP_SYN != 0 {
            rewrite::clamp_mss(packet, network, transport, service.clamp_mss);
        }
    }
    rewrite::translate(packet, network, transport, End::Source, service.vip, service.port)?;
    let account = Account::of(replier.backend, backend, network, false);
    let Some(exit) = exit else {
        return Ok(Verdict { reason: Reason::RepliedByHost, ifindex: 0, account });
    };
    rewrite::link(packet, exit.source, exit.destination)?;
    Ok(Verdict { reason: Reason::Replied, ifindex: leaving(packet, exit.ifindex), account })
}

/// What a reply says about its handshake; an error if its client must not see it.
#[inline(always)]
fn measured<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    service: &Service,
    network: &Network,
    transport: &Transport,
    replier: Replier,
) -> Result<(), Reason> {
    let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
    let reply = Reply {
        backend: replier.backend,
        answers: header.flags & TCP_SYN != 0,
        resets: header.flags & TCP_RST != 0,
        data: transport.l4 + usize::from(header.data_offset >> 4) * 4 < network.end,
        sequence: u32::from_be_bytes(header.sequence),
        acknowledged: u32::from_be_bytes(header.acknowledgement),
    };
    let port = if service.port == Port::ANY { transport.source } else { service.port };
    let key = FlowKey {
        client: network.destination,
        client_port: transport.destination,
        port,
        owner: replier.service,
    };
    // Most replies are of flows that are long past their first byte. A RST may also end a connection that is counted.
    if awaited::is(tables, service, &key) || reply.resets && service.has(Service::COUNTED) {
        return tables.replies(service, &key, reply);
    }
    Ok(())
}

/// The `nat` backend at this end of a packet, and its key.
#[inline(always)]
pub(crate) fn replier<T: Tables>(
    tables: &T,
    address: Address,
    transport: &Transport,
    end: End,
) -> Option<(VipKey, Replier)> {
    find(address, transport, end, |key| tables.replier(key).map(|replier| (*key, replier)))
}

/// Whether what a backend sends answers nothing that came by the VIP: it begins a connection of its own, or its flow goes past
/// the VIP.
#[inline(always)]
pub(crate) fn is_no_reply<T: Tables>(
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
    (key, replier): &(VipKey, Replier),
) -> bool {
    let client = (network.destination, transport.destination);
    if matches!(transport.kind, Kind::Syn(_)) {
        goes_past(tables, key, replier, client, transport.source);
        return true;
    }
    is_direct(tables, settings, replier, client, transport.source, transport.kind)
}

/// Whether a flow of this client goes on past the VIP, to this port of a backend.
///
/// Mark and entry hold the time of the newest packet, and are void once that is older than a flow may be silent: nobody
/// has to take them away.
#[inline(always)]
pub(crate) fn is_direct<T: Tables>(
    tables: &T,
    settings: &Settings,
    replier: &Replier,
    (client, client_port): (Address, Port),
    port: Port,
    kind: Kind,
) -> bool {
    if replier.direct == 0 {
        return false;
    }
    let idle = if matches!(kind, Kind::Udp) { settings.udp_idle } else { TCP_IDLE_TICKS };
    let now = tables.ticks();
    // Signed: another CPU may have seen the next tick.
    let recent = |then| now.wrapping_sub(then) as i32 <= idle as i32;
    let key = FlowKey { client, client_port, port, owner: u32::from(replier.backend) };
    recent(replier.direct) && tables.direct(&key).is_some_and(recent)
}

/// From a client to a backend's own address: its replies are none of ours.
///
/// # Errors
///
/// [`Reason::Direct`], if it is one.
#[inline(always)]
pub(crate) fn past_vip<T: Tables>(
    tables: &T,
    network: &Network,
    transport: &Transport,
) -> Result<(), Reason> {
    let Some((key, replier)) = replier(tables, network.destination, transport, End::Destination) else {
        return Ok(());
    };
    let client = (network.source, transport.source);
    goes_past(tables, &key, &replier, client, transport.destination);
    Err(Reason::Direct)
}

/// Notes that a flow goes past the VIP, between this client and this port of a backend.
#[inline(always)]
fn goes_past<T: Tables>(
    tables: &T,
    key: &VipKey,
    replier: &Replier,
    (client, client_port): (Address, Port),
    port: Port,
) {
    let flow = FlowKey { client, client_port, port, owner: u32::from(replier.backend) };
    if tables.direct(&flow) != Some(tables.ticks()) {
        tables.note_direct(&flow, key);
    }
}
