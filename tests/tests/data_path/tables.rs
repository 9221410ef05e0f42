//! Tables of every kind of service, in every state that a change or a crash may leave them in.

use std::mem::offset_of;

use lb_common::abi::{Address, Fault, GuestKey, Life, Mode, NextHop, OnEmpty, Port, Service, Slot, Split};
use lb_common::guard::{Guard, HOST, Rate, Rule};
use lb_common::host::{Tables, fuzz};
use lb_common::limit::{Limit, Whose};
use lb_common::measure::Measure;
use lb_common::quic::Codec;
use lb_common::session::{Session, SessionKey};
use lb_common::wire::IPPROTO_TCP;
use lb_userspace::clock;

use crate::network::Network;
use crate::rng::Rng;

/// The measure of all services here.
pub const CAPPED: u8 = 1;

/// Tables that are settled, or (two times of three) in the midst of changes.
pub fn make(network: &Network, rng: &mut Rng) -> Tables {
    let mut tables = fuzz::tables();
    tables.devices = network.devices().to_vec();
    let routes = network.routes();
    tables.router = Some(Box::new(move |arrival, header| routes.route(arrival, header)));
    if rng.once_in(2) {
        tables.vlans = network.vlans(rng.pick(&[&[100][..], &[300, 4000]]));
    }
    let settled = rng.once_in(3);
    if rng.once_in(2) {
        // Few enough to run out.
        tables.settings.source_ports = [5000, rng.pick(&[5000, 5000, 5003])];
    }
    for backend in tables.backends.iter_mut().skip(1) {
        let device = [0, 0, 0, 1, 2][rng.below(5)];
        let [a, b, c, d, e, f, ..] = rng.next().to_ne_bytes();
        backend.next_hop = NextHop::of([a, b, c, d, e, f], device).0;
        if rng.once_in(16) {
            backend.next_hop = 0;
        }
        if rng.once_in(16) {
            backend.life = Life::of(rng.next() as u32, false).0;
        }
    }
    for index in 0..tables.services.len() {
        sessions(&mut tables, index, rng);
        flags(&mut tables.services[index], rng);
        if tables.services[index].protocol == IPPROTO_TCP && rng.once_in(3) {
            limit(&mut tables, index, rng);
        }
        if !settled {
            unsettle(&mut tables, index, rng);
        }
    }
    attend(&mut tables, rng);
    guard(&mut tables, rng);
    quic(&mut tables, rng);
    tables
}

/// Established TCP sessions of some clients, as [`fuzz::frame`] makes clients: for frames without numbers that would prove
/// anything.
fn sessions(tables: &mut Tables, index: usize, rng: &mut Rng) {
    let service = tables.services[index];
    if service.mode != Mode::FullNat as u8 || service.protocol != 6 {
        return;
    }
    let backends: Vec<u16> = (1..tables.backends.len() as u16)
        .filter(|id| tables.backends[usize::from(*id)].service as usize == index)
        .collect();
    for n in 0..128_u8 {
        let id = rng.pick(&backends);
        let backend = tables.backends[usize::from(id)];
        let client = (fuzz::client(n, !service.vip.is_v4()).into(), Port::new(0x4000));
        let source = (backend.source, Port::new(20_000 + u16::from(n)));
        let vip = (service.vip, service.port);
        let port = if backend.port.is_any() { service.port } else { backend.port };
        let to = (backend.address, port);
        let session = |from: (Address, Port), to: (Address, Port), flags| Session {
            source: from.0,
            source_port: from.1,
            destination: to.0,
            destination_port: to.1,
            backend: id,
            flags,
            generation: backend.life().generation(),
            service: index as u32,
            seen: clock::ticks(),
            ..Session::default()
        };
        let key = |from: (Address, Port), to: (Address, Port)| SessionKey {
            source: from.0,
            source_port: from.1,
            destination: to.0,
            destination_port: to.1,
            protocol: service.protocol.into(),
        };
        let told = rng.pick(&[0, Session::TOA]);
        let sessions = tables.sessions.get_mut();
        sessions.insert(key(client, vip), session(source, to, told));
        sessions.insert(key(to, source), session(vip, client, Session::REPLY));
    }
}

/// Every way in which connection ids are written.
pub const CODECS: [Codec; 4] = [
    Codec { config: 1, server_id_length: 2, nonce_length: 6, key: None },
    Codec { config: 2, server_id_length: 4, nonce_length: 12, key: Some([0x1d; 16]) },
    Codec { config: 3, server_id_length: 3, nonce_length: 8, key: Some([0x2e; 16]) },
    // Longer than half of it.
    Codec { config: 6, server_id_length: 11, nonce_length: 7, key: Some([0x3f; 16]) },
];

/// Names that each service gives its backends, by their last byte.
pub const NAMES: u8 = 8;

/// A server id.
pub fn server_id(codec: &Codec, name: u8) -> Vec<u8> {
    let mut id = vec![0x5a; codec.server_id_length.into()];
    if let Some(last) = id.last_mut() {
        *last = name;
    }
    id
}

/// Backends that connection ids name, in some of the services; some of them have another life by now.
fn quic(tables: &mut Tables, rng: &mut Rng) {
    for index in 0..tables.services.len() {
        let service = tables.services[index];
        if !service.has(Service::QUIC) {
            continue;
        }
        if rng.once_in(4) {
            tables.services[index].flags &= !Service::QUIC;
            continue;
        }
        let ids = 1..tables.backends.len() as u16;
        let own: Vec<u16> =
            ids.filter(|id| tables.backends[usize::from(*id)].service as usize == index).collect();
        for codec in &CODECS {
            let names = (0..NAMES).map(|name| (server_id(codec, name), rng.pick(&own))).collect::<Vec<_>>();
            let names: Vec<(&[u8], u16)> = names.iter().map(|(name, id)| (&name[..], *id)).collect();
            tables.add_quic(index as u32, codec, rng.once_in(2), &names);
        }
    }
    for server in tables.quic_servers.values_mut() {
        if rng.once_in(8) {
            server.generation = server.generation.wrapping_add(1);
        }
    }
}

/// Guests, a cap and faults, in some of the services.
fn attend(tables: &mut Tables, rng: &mut Rng) {
    let clients: Vec<Address> = tables.backends.iter().skip(1).map(|backend| backend.address).collect();
    let near = |rng: &mut Rng| match rng.below(3) {
        0 => rng.pick(&clients),
        1 => Address::v4([198, 51, 100, rng.next() as u8]),
        _ => Address::v4((rng.next() as u32).to_be_bytes()),
    };
    let masked = |address: Address, bits: u32| {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let address = u128::from_be_bytes(bytemuck::cast(address)) & mask;
        let bytes = |n: u128| bytemuck::cast::<[u8; 16], Address>(n.to_be_bytes());
        (bytes(address), bytes(mask))
    };
    let services = tables.services.len() as u32;
    for service in &mut tables.services {
        for flag in [Service::GUESTS, Service::CAPPED, Service::FAULTS] {
            if rng.once_in(2) && (flag != Service::CAPPED || service.protocol == IPPROTO_TCP) {
                service.flags |= flag;
            }
        }
        service.measure = CAPPED.into();
    }
    // One connection for ever: whatever the clocks say, kernel and host agree on it.
    let word = (usize::from(CAPPED) * size_of::<Measure>() + offset_of!(Measure, cap_interval)) / 8;
    tables.measures.get_mut()[word] = 1 << 62;
    for _ in 0..32 {
        let bits = rng.pick(&[0, 96, 97, 120, 128]);
        let network = masked(near(rng), bits).0;
        tables.guests.push(GuestKey::network(rng.below(services as usize) as u32, network, bits));
    }
    tables.guests.sort_unstable();
    tables.guests.dedup();
    // Only a SYN meets a fault.
    let by_index = (0_u32..).zip(&tables.services);
    let tcp: Vec<u32> =
        by_index.filter(|(_, it)| it.protocol == IPPROTO_TCP).map(|(index, _)| index).collect();
    for fault in &mut tables.faults {
        let (network, mask) = masked(near(rng), rng.pick(&[0, 0, 0, 0, 0, 0, 96, 97, 120]));
        *fault = Fault {
            until: rng.pick(&[0, 1, u64::MAX, u64::MAX, u64::MAX]),
            salt: rng.next(),
            network,
            mask,
            service: rng.pick(&tcp),
            share: rng.pick(&[1 << 31, Split::ALL]),
            pool: rng.pick(&[0, 0, 0, 0, 0, 1, 2]),
            backend: rng.pick(&[0, 0, 0, 0, 0, 0, 0, 1]),
            action: rng.pick(&[Fault::RESET, Fault::DROP]),
        };
    }
}

/// Lists and rates of some of the services, which do not depend on when a packet comes; and of some VIPs' hosts.
fn guard(tables: &mut Tables, rng: &mut Rng) {
    let near = |rng: &mut Rng, v4: bool| -> Address {
        if rng.once_in(8) {
            Address::v4((rng.next() as u32).to_be_bytes())
        } else {
            fuzz::client(rng.next() as u8, !v4).into()
        }
    };
    for index in 0..tables.services.len() as u32 {
        if !rng.once_in(3) {
            continue;
        }
        let service = &mut tables.services[index as usize];
        service.flags |= Service::GUARDED;
        let (vip, v4) = (service.vip, service.vip.is_v4());
        let bits: &[u32] = if v4 { &[96, 120, 126, 127, 128] } else { &[32, 64, 120, 126, 128] };
        // One for ever, or as many as come.
        let one = Rate { interval: 1 << 62, tolerance: 0 };
        let rate = |rng: &mut Rng, often: usize| if rng.once_in(often) { one } else { Rate::default() };
        let mut guard = Guard {
            source_connections: rate(rng, 4),
            source_packets: rate(rng, 8),
            connections: rate(rng, 16),
            packets: rate(rng, 32),
            source_mask: mask(rng.pick(bits)),
            ..Guard::default()
        };
        let owners = [index, HOST | index];
        if rng.once_in(2) {
            guard.rules = 1;
            for _ in 0..16 {
                let owner = rng.pick(&owners);
                let length = rng.pick(bits);
                let network = and(near(rng, v4), mask(length));
                let rule = rng.pick(&[Rule::Allowed, Rule::Denied]);
                tables.rules.insert(GuestKey::network(owner, network, length), rule);
            }
            for owner in owners {
                if rng.once_in(3) {
                    tables.rules.insert(GuestKey::network(owner, Address::default(), 0), Rule::NotAllowed);
                }
            }
            tables.vip_rules.insert(vip, HOST | index);
        }
        tables.guards.insert(index, guard);
    }
}

fn mask(bits: u32) -> Address {
    bytemuck::cast(u128::MAX.checked_shl(128 - bits).unwrap_or(0).to_be_bytes())
}

fn and(address: Address, mask: Address) -> Address {
    let [a, b, c, d] = address.wire_words();
    let [w, x, y, z] = mask.wire_words();
    Address::of_wire_words([a & w, b & x, c & y, d & z])
}

fn flags(service: &mut Service, rng: &mut Rng) {
    for flag in [Service::AFFINITY, Service::SPLIT_BY_PORTS, Service::TRACK_UDP] {
        if rng.once_in(4) {
            service.flags ^= flag;
        }
    }
    if service.mode == Mode::FullNat as u8 && rng.once_in(2) {
        service.flags |= Service::TOA;
    }
    if rng.once_in(4) {
        service.flags |= Service::CLAMPED;
        service.clamp_mss = rng.pick(&[536, 1000, 1360]);
    }
    if rng.once_in(4) {
        service.split_mask = [u32::MAX, u32::MAX, u32::MAX, 0xffff_ff00];
    }
    if rng.once_in(4) {
        service.on_empty = rng.pick(&[OnEmpty::Reset, OnEmpty::Drop, OnEmpty::Pass]) as u8;
    }
}

/// Limits that do not depend on when a packet comes.
fn limit(tables: &mut Tables, index: usize, rng: &mut Rng) {
    let service = &mut tables.services[index];
    service.flags |= Service::LIMITED;
    if rng.once_in(2) {
        service.flags |= Service::COUNTED;
    }
    service.on_limit = rng.pick(&[OnEmpty::Reset as u8, OnEmpty::Drop as u8, Service::SPILL]);
    let pools = [service.stable_pool, service.canary_pool].map(Whose::Pool);
    let ids = 1..tables.backends.len() as u16;
    let own = ids.filter(|id| tables.backends[usize::from(*id)].service as usize == index);
    for whose in own.map(Whose::Backend).chain(pools).collect::<Vec<_>>() {
        let one = Limit { interval: 1 << 62, ..Limit::default() };
        let some = Limit { most: 1 + rng.below(4) as u64, ..Limit::default() };
        let trials = Limit::on_trial(rng.below(4) as u32, rng.below(2) == 0);
        let tried = Limit { trials, ..Limit::default() };
        tables.limits.get_mut().insert(whose, rng.pick(&[Limit::default(), one, some, tried]));
    }
}

fn unsettle(tables: &mut Tables, index: usize, rng: &mut Rng) {
    let ids: Vec<u16> = (1..tables.backends.len() as u16)
        .filter(|id| tables.backends[usize::from(*id)].service as usize == index)
        .chain([0])
        .collect();
    let service = &mut tables.services[index];
    let share = |rng: &mut Rng| rng.pick(&[0, 1 << 30, 1 << 31, Split::ALL]);
    service.split = Split::of(share(rng), share(rng)).0;
    service.split_home = share(rng).into();
    service.lease_until = rng.pick(&[0, 0, 1, u64::MAX]);
    for first in [service.stable_slots, service.canary_slots] {
        for slot in &tables.slots[first as usize..(first + service.table_size) as usize] {
            let old = slot.get();
            slot.set(match rng.below(4) {
                0 => Slot::of(rng.pick(&ids), old.home(), rng.below(3) as u32),
                1 => Slot::of(old.new(), rng.pick(&ids), 1),
                _ => old,
            });
        }
    }
}
