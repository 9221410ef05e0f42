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
    let kind = choices.below(8);
    let (source, destination, protocol) = ends(&mut choices, tables);
    let v6 = matches!(destination.0, IpAddr::V6(_));

    let mut bytes = choices.fill(12).collect::<Vec<u8>>();
    // From one host to one, but for one in eight.
    for first in [0, 6] {
        if bytes[first] & 0x0e != 0 {
            bytes[first] &= !1;
        }
    }
    for _ in 0..choices.below(3) {
        bytes.extend([[0x81, 0], [0x88, 0xa8]][choices.below(2)]);
        bytes.extend(choices.word());
    }
    bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    match kind {
        0 => error(&mut bytes, &mut choices, source, destination, protocol),
        1 => fragment(&mut bytes, &mut choices, source, destination, protocol),
        _ => ip(&mut bytes, &mut choices, source, destination, protocol),
    }
    if choices.below(4) == 0 {
        let padding = choices.below(20);
        bytes.extend(choices.fill(padding));
    }
    damage(&mut bytes, &mut choices);
    let headroom = if choices.below(16) == 1 { choices.below(40) } else { Frame::HEADROOM };
    (bytes, headroom)
}

/// A packet.
fn ip(bytes: &mut Vec<u8>, choices: &mut Choices<'_>, source: End, destination: End, protocol: u8) {
    let segment = segment(choices, protocol, source.1, destination.1);
    let packet = if source.0.is_ipv6() { ipv6 } else { ipv4 };
    packet(bytes, choices, source.0, destination.0, protocol, segment);
}

/// An ICMP error about a packet that would come back: what a backend answered, or what it was asked.
fn error(bytes: &mut Vec<u8>, choices: &mut Choices<'_>, source: End, destination: End, protocol: u8) {
    let v6 = source.0.is_ipv6();
    let (of, to) = if choices.below(8) > 0 { (destination, source) } else { (source, destination) };
    // More often than by chance a client behind a neighbour that nobody knows.
    let n = choices.byte();
    let hidden = |end: End| if n < 64 && is_client(end.0) { (client(n % 32, v6), end.1) } else { end };
    let (of, to) = (hidden(of), hidden(to));
    let mut quoted = Vec::new();
    ip(&mut quoted, choices, of, to, protocol);
    let header = if v6 { 40 } else { usize::from(quoted[0] & 15) * 4 };
    quoted.truncate(header + [8, 8, 18, 20, 28, 64, 7, 0][choices.below(8)]);
    let from = if choices.below(2) == 0 { to.0 } else { client(choices.byte(), v6) };
    let kind = if v6 { [1, 2, 3, 4, 128, 135] } else { [3, 3, 11, 12, 8, 5] }[choices.below(6)];
    let mut message = vec![kind, choices.below(5) as u8, 0, 0];
    message.extend([0, 0, 5, 0]);
    message.extend(quoted);
    let addresses = [octets(from), octets(of.0)].concat();
    let pseudo = if v6 { sum(58 + message.len() as u32, &addresses) } else { 0 };
    let checksum = (!sum(pseudo.into(), &message)).to_be_bytes();
    message[2..4].copy_from_slice(&checksum);
    let hops = if choices.below(16) == 1 { 1 } else { 60 };
    if v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((message.len() as u16).to_be_bytes());
        bytes.extend([58, hops]);
        bytes.extend(addresses);
    } else {
        let mut header = vec![0x45, 0xc0];
        header.extend((20 + message.len() as u16).to_be_bytes());
        header.extend([0, 0, 0, 0, hops, 1, 0, 0]);
        header.extend(addresses);
        let checksum = (!sum(0, &header)).to_be_bytes();
        header[10..12].copy_from_slice(&checksum);
        bytes.extend(header);
    }
    bytes.extend(message);
}

/// A first fragment, or another one: of few packets, so that they meet.
fn fragment(bytes: &mut Vec<u8>, choices: &mut Choices<'_>, source: End, destination: End, protocol: u8) {
    let (v6, l3) = (source.0.is_ipv6(), bytes.len());
    // Four clients, one of them behind a neighbour that nobody knows.
    let client = client([1, 40, 100, 200][choices.below(4)], v6);
    let few = |end: End| if is_client(end.0) { (client, end.1) } else { end };
    let (source, destination) = (few(source), few(destination));
    let segment = segment(choices, protocol, source.1, destination.1);
    let first = choices.below(2) == 0;
    let word =
        if first { 0 } else { (1 + choices.below(4)) as u16 * 8 } | u16::from(first || choices.below(2) == 0);
    let id = choices.below(2) as u8;
    if v6 {
        ipv6(bytes, choices, source.0, destination.0, protocol, segment);
        // Without other extension headers it is right behind the fixed one.
        let next = std::mem::replace(&mut bytes[l3 + 6], 44);
        let length = u16::from_be_bytes([bytes[l3 + 4], bytes[l3 + 5]]) + 8;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
        let [high, low] = word.to_be_bytes();
        bytes.splice(l3 + 40..l3 + 40, [next, 0, high, low, 0, 0, 0, id]);
    } else {
        ipv4(bytes, choices, source.0, destination.0, protocol, segment);
        let header = l3..l3 + usize::from(bytes[l3] & 15) * 4;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&[0, id]);
        bytes[l3 + 6..l3 + 8].copy_from_slice(&(word >> 3 | (word & 1) << 13).to_be_bytes());
        bytes[l3 + 10..l3 + 12].fill(0);
        let checksum = (!sum(0, &bytes[header])).to_be_bytes();
        bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum);
    }
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

fn is_client(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [198, 51, 100],
        IpAddr::V6(v6) => v6.segments()[2] == 0xffff,
    }
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
    let options_at = segment.len();
    segment.extend(choices.fill(options * 4 + data));
    if options > 0 && choices.below(2) == 0 {
        // The largest segment, at an even or an odd offset.
        let at = options_at + if options > 1 { choices.below(2) } else { 0 };
        segment[options_at] = 1;
        segment[at..at + 4].copy_from_slice(&[2, 4, 5, 0xb4]);
    }
    if options > 1 && choices.below(4) == 0 {
        // The one that would tell a backend of its client, behind others without a meaning.
        let at = options_at + choices.below(options * 4 - 7);
        segment[options_at..at].fill(1);
        segment[at..at + 2].copy_from_slice(&[254, 8]);
    }
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
