//! Frames that go far, from any bytes: each byte is a choice.

use std::net::IpAddr;

use super::super::{Frame, Tables};
use super::inspect::sum;
use crate::abi::{Mode, Port};
use crate::session::Session;

/// The bytes that are left to choose by; zeros when there are none.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn word(&mut self) -> [u8; 2] {
        [self.byte(), self.byte()]
    }

    fn fill(&mut self, n: usize) -> impl Iterator<Item = u8> {
        (0..n).map(|_| self.byte())
    }
}

/// A frame of one of the services in `tables`, to it or back, and its headroom.
#[must_use]
pub fn frame(data: &[u8], tables: &Tables) -> (Vec<u8>, usize) {
    let mut choices = Choices(data);
    let (source, destination, protocol) = ends(&mut choices, tables);
    let v6 = matches!(destination.0, IpAddr::V6(_));
    let segment = segment(&mut choices, protocol, source.1, destination.1);

    let mut bytes = choices.fill(12).collect::<Vec<u8>>();
    for _ in 0..choices.below(3) {
        bytes.extend([[0x81, 0], [0x88, 0xa8]][choices.below(2)]);
        bytes.extend(choices.word());
    }
    bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    if v6 {
        ipv6(&mut bytes, &mut choices, source.0, destination.0, protocol, segment);
    } else {
        ipv4(&mut bytes, &mut choices, source.0, destination.0, protocol, segment);
    }
    if choices.below(4) == 0 {
        let padding = choices.below(20);
        bytes.extend(choices.fill(padding));
    }
    damage(&mut bytes, &mut choices);
    let headroom = if choices.below(16) == 1 { choices.below(40) } else { Frame::HEADROOM };
    (bytes, headroom)
}

type End = (IpAddr, [u8; 2]);

/// Who talks to whom: a client to a service, a backend to a client, or a client to a backend.
fn ends(choices: &mut Choices<'_>, tables: &Tables) -> (End, End, u8) {
    let service = &tables.services[choices.below(tables.services.len())];
    let vip = IpAddr::from(service.vip);
    let port = if service.port.is_any() { choices.word() } else { service.port.wire() };
    let last = choices.byte();
    let client = client(last, vip.is_ipv6());
    // Few enough for flows that go on, where every flow is in a table.
    let full_nat = service.mode == Mode::FullNat as u8;
    let client = (client, if full_nat { [0x40, choices.byte() & 3] } else { choices.word() });
    let backends: Vec<_> = (tables.backends.iter())
        .filter(|backend| {
            backend.life().is_usable() && tables.services[backend.service as usize].vip == service.vip
        })
        .collect();
    let backend = (!backends.is_empty()).then(|| backends[choices.below(backends.len())]);
    if full_nat && choices.below(2) == 0 {
        let opening = tables.opening.borrow();
        let sessions = tables.sessions.borrow();
        let replies = opening.iter().chain(sessions.iter()).filter(|(_, session)| {
            session.has(Session::REPLY) && tables.services[session.service as usize].vip == service.vip
        });
        let replies: Vec<_> = replies.map(|(key, _)| *key).take(64).collect();
        if !replies.is_empty() {
            let key = replies[choices.below(replies.len())];
            let end = |address, port: Port| (IpAddr::from(address), port.wire());
            let (from, to) = (end(key.source, key.source_port), end(key.destination, key.destination_port));
            return (from, to, key.protocol as u8);
        }
    }
    match (choices.below(4), backend) {
        (way @ (0 | 1), Some(backend)) if service.mode == Mode::Nat as u8 => {
            let port = if backend.port.is_any() { port } else { backend.port.wire() };
            let backend = (IpAddr::from(backend.address), port);
            if way == 0 || choices.below(8) > 0 {
                (backend, client, service.protocol)
            } else {
                (client, backend, service.protocol)
            }
        }
        _ => (client, (vip, port), service.protocol),
    }
}

/// The address of client `n`.
#[must_use]
pub fn client(n: u8, v6: bool) -> IpAddr {
    if v6 { [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, u16::from(n)].into() } else { [198, 51, 100, n].into() }
}

/// A TCP segment or UDP datagram without its checksum.
fn segment(choices: &mut Choices<'_>, protocol: u8, source: [u8; 2], destination: [u8; 2]) -> Vec<u8> {
    let mut segment = [source, destination].concat();
    let options = if protocol == 6 { choices.below(11) } else { 0 };
    let data = choices.below(64);
    if protocol == 6 {
        segment.extend(choices.fill(8));
        segment.push((5 + options as u8) << 4);
        segment.push([0x02, 0x10, 0x18, 0x04, 0x12, 0x11, choices.byte()][choices.below(7)]);
        segment.extend(choices.word());
        segment.extend([0; 4]);
    } else {
        segment.extend(((8 + data) as u16).to_be_bytes());
        segment.extend([0; 2]);
    }
    segment.extend(choices.fill(options * 4 + data));
    segment
}

fn finish(choices: &mut Choices<'_>, segment: &mut [u8], protocol: u8, addresses: &[u8]) {
    let at = if protocol == 6 { 16 } else { 6 };
    let pseudo = sum(u32::from(protocol) + segment.len() as u32, addresses);
    let checksum = match !sum(pseudo.into(), segment) {
        0 if protocol == 17 => 0xffff,
        checksum => checksum,
    };
    if protocol == 6 || choices.below(4) > 0 {
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ipv4(
    bytes: &mut Vec<u8>,
    choices: &mut Choices<'_>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut segment: Vec<u8>,
) {
    let addresses = [octets(source), octets(destination)].concat();
    finish(choices, &mut segment, protocol, &addresses);
    let options = if choices.below(3) == 0 { choices.below(11) } else { 0 };
    let length = 20 + options * 4 + segment.len();
    let mut header = vec![0x45 + options as u8, choices.byte()];
    header.extend((length as u16).to_be_bytes());
    header.extend(choices.word());
    header.extend(if choices.below(16) == 1 { choices.word() } else { [0x40, 0] });
    header.extend([if choices.below(16) == 1 { 1 } else { 64 }, protocol, 0, 0]);
    header.extend(addresses);
    header.extend(choices.fill(options * 4));
    let checksum = (!sum(0, &header)).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    bytes.extend(header);
    bytes.extend(segment);
}

fn ipv6(
    bytes: &mut Vec<u8>,
    choices: &mut Choices<'_>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut segment: Vec<u8>,
) {
    let addresses = [octets(source), octets(destination)].concat();
    finish(choices, &mut segment, protocol, &addresses);
    let kinds: Vec<u8> = match choices.below(3) {
        0 => (0..choices.below(8)).map(|_| [0, 43, 60, 51, 60, 44, 50][choices.below(7)]).collect(),
        _ => Vec::new(),
    };
    let mut chain = Vec::new();
    for (i, &kind) in kinds.iter().enumerate() {
        let units = choices.below(3);
        chain.extend([*kinds.get(i + 1).unwrap_or(&protocol), units as u8]);
        let length = 8 + units * if kind == 51 { 4 } else { 8 };
        chain.extend(choices.fill(length - 2));
    }
    let class = choices.byte();
    bytes.extend([0x60 | class >> 4, class << 4]);
    bytes.extend(choices.word());
    bytes.extend(((chain.len() + segment.len()) as u16).to_be_bytes());
    bytes.extend([*kinds.first().unwrap_or(&protocol), if choices.below(16) == 1 { 1 } else { 64 }]);
    bytes.extend(addresses);
    bytes.extend(chain);
    bytes.extend(segment);
}

/// Breaks something, more often than not nothing.
fn damage(bytes: &mut Vec<u8>, choices: &mut Choices<'_>) {
    for _ in 0..choices.below(8).saturating_sub(5) {
        let at = choices.below(bytes.len().min(256));
        bytes[at] ^= choices.byte();
    }
    if choices.below(8) == 1 {
        bytes.truncate(choices.below(bytes.len().min(256)));
    }
}
