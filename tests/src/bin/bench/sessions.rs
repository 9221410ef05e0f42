//! Sessions of `full-nat` as clients would have left them, for as many flows as a row has.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::abi::{Address, Port, Service};
use lb_common::session::{Session, SessionKey, Way};
use lb_tests::Family;
use lb_userspace::clock;

use crate::bed::{Bed, CLIENTS_V4, CLIENTS_V6, PORT, Spec};
use crate::driver::Template;

/// More than any row has.
pub const FLOWS: u32 = 100_000;

/// Gives every flow of a row a session on some backend of the service.
///
/// # Errors
/// If there is no room for them.
pub fn fill(bed: &Bed, spec: &Spec) -> Result<()> {
    let service = bed.service(spec)?;
    let backends: Vec<(u16, lb_common::abi::Backend)> = (1..bed.maps.backends.len() as u16)
        .map(|id| (id, bed.maps.backends.read(id.into())))
        .filter(|(_, backend)| backend.life().is_usable() && backend.pool == service.stable_pool)
        .collect();
    let (_, first) = backends.first().context("no backend")?;
    let source = first.source;
    for flow in 0..FLOWS {
        let (client, port) = client(spec.family, flow);
        let (id, backend) = &backends[flow as usize % backends.len()];
        let request = key((client, port), (service.vip, service.port), &service);
        let there = entry(backend.service, *id, backend.life().generation(), 0);
        let there = Session {
            source,
            source_port: port,
            destination: backend.address,
            destination_port: Port::new(PORT),
            ..there
        };
        // The rows of replies come from as many addresses as there are flows, since that is what the driver changes.
        let reply = key((client, Port::new(PORT)), (source, port), &service);
        let back = entry(backend.service, *id, backend.life().generation(), Session::REPLY);
        let back = Session {
            source: service.vip,
            source_port: service.port,
            destination: client,
            destination_port: port,
            ..back
        };
        bed.maps.sessions.insert(&request, &there)?;
        bed.maps.sessions.insert(&reply, &back)?;
    }
    Ok(())
}

/// Address and port of a flow, as the driver makes them.
fn client(family: Family, flow: u32) -> (Address, Port) {
    let port = Port::new(((flow >> 3).wrapping_add(flow >> 17)) as u16 | Template::FIRST_PORT);
    let low = flow & 0x1_ffff;
    let address: IpAddr = match family {
        Family::V4 => std::net::Ipv4Addr::from_bits(CLIENTS_V4.network().to_bits() | low).into(),
        Family::V6 => std::net::Ipv6Addr::from_bits(CLIENTS_V6.network().to_bits() | u128::from(low)).into(),
    };
    (address.into(), port)
}

fn key(from: (Address, Port), to: (Address, Port), service: &Service) -> SessionKey {
    SessionKey {
        source: from.0,
        source_port: from.1,
        destination: to.0,
        destination_port: to.1,
        protocol: service.protocol.into(),
    }
}

fn entry(index: u32, backend: u16, generation: u32, flags: u16) -> Session {
    Session {
        backend,
        flags,
        generation,
        service: index,
        seen: clock::ticks(),
        sequence: 0,
        way: Way::default(),
        ..Session::default()
    }
}
