//! Fuzzing: any bytes in, and what must hold for whatever comes out.
//!
//! [`parse`] takes its input for a frame. [`rewrite`] builds from it a frame that is likely to go far, with checksums that are
//! right, and then perhaps breaks something. Both send it through the whole of [`process`] and compare with a second opinion
//! ([`inspect`]) that shares no code with the data path.
//!
//! The same functions run under `cargo fuzz` and in a plain test with random input.

mod build;
mod inspect;
mod odd;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Frame, ServiceSpec, Tables};
use crate::abi::{Backend, Mode, OnEmpty, Service};
use crate::parse;
use crate::pipeline::{Route, process};
use crate::quic::Codec;
use crate::verdict::{Action, Reason, Verdict};
use crate::wire::{IPPROTO_TCP, IPPROTO_UDP};
use inspect::{Checksum, Inspected, inspect};
use odd::Odd;

pub use build::{client, frame};

/// Sends `data` through the data path as it is.
///
/// # Panics
///
/// If something comes out that must not.
pub fn parse(tables: &Tables, data: &[u8]) {
    let frame = Frame::new(data, Tables::IFINDEX);
    if let Ok(network) = parse::network(&frame) {
        assert!(
            network.l3 < network.next && network.next <= network.end && network.end <= data.len(),
            "{network:?}"
        );
        if let Ok(transport) = parse::transport(&frame, &network) {
            assert!(
                network.next <= transport.l4 && transport.l4 + 8 <= network.end,
                "{network:?} {transport:?}"
            );
        }
    }
    send(tables, data, Frame::HEADROOM);
}

/// Sends a frame through the data path that is made from `data`.
///
/// # Panics
///
/// If something comes out that must not.
pub fn rewrite(tables: &Tables, data: &[u8]) -> Reason {
    let (bytes, headroom) = frame(data, tables);
    send(tables, &bytes, headroom)
}

/// Tables with services of every mode, family and protocol; one of them in the middle of a change.
#[must_use]
pub fn tables() -> Tables {
    let mut tables = Tables::new();
    let backend = |n: u8, v6: bool, port: u16| -> SocketAddr {
        let address: IpAddr = if v6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into()
        } else {
            Ipv4Addr::new(10, 0, 0, n).into()
        };
        (address, port).into()
    };
    let mut n = 0;
    for (mode, v6_backends) in [
        (Mode::Nat, None),
        (Mode::FullNat, None),
        (Mode::DsrL2, None),
        (Mode::DsrIpip, Some(false)),
        (Mode::DsrIpip, Some(true)),
        (Mode::DsrGue, Some(false)),
        (Mode::DsrGue, Some(true)),
    ] {
        for v6 in [false, true] {
            for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
                n += 1;
                let port = if mode == Mode::DsrL2 { 0 } else { 443 };
                let flags = if protocol == IPPROTO_UDP { Service::TRACK_UDP } else { 0 };
                let spec = ServiceSpec { protocol, flags, ..ServiceSpec::tcp(vip(n, v6), port, mode) };
                let service = tables.add_service(&spec);
                let family = v6_backends.unwrap_or(v6);
                tables.add_pool(
                    service,
                    false,
                    &[(backend(n, family, 8443), 1), (backend(n + 100, family, port), 2)],
                );
                tables.add_pool(service, true, &[(backend(n + 50, family, 8443), 1)]);
                if n % 2 == 0 {
                    tables.set_split(service, u32::MAX / 2);
                    tables.services[service as usize].split |= u64::from(u32::MAX) << 32;
                }
            }
        }
    }
    // Ids so short that noise names somebody now and then.
    let codec = Codec { config: 0, server_id_length: 1, nonce_length: 4, key: None };
    for service in 0..tables.services.len() as u32 {
        let of = tables.services[service as usize];
        if of.protocol == IPPROTO_UDP && of.mode != Mode::FullNat as u8 {
            let ids = (1..tables.backends.len() as u16)
                .filter(|id| tables.backends[usize::from(*id)].service == service);
            let names: Vec<([u8; 1], u16)> = (0..32)
                .zip(ids.collect::<Vec<_>>().into_iter().cycle())
                .map(|(name, id)| ([name], id))
                .collect();
            let names: Vec<(&[u8], u16)> = names.iter().map(|(name, id)| (&name[..], *id)).collect();
            tables.add_quic(service, &codec, false, &names);
        }
    }
    for (on_empty, v6) in
        [(OnEmpty::Reset, false), (OnEmpty::Reset, true), (OnEmpty::Pass, false), (OnEmpty::Drop, false)]
    {
        n += 1;
        tables.add_service(&ServiceSpec { on_empty, ..ServiceSpec::tcp(vip(n, v6), 443, Mode::Nat) });
    }
    // Some clients are behind a neighbour that nobody knows yet.
    for n in 0..32 {
        tables.routes.insert(client(n, false).into(), Route::Unresolved);
        tables.routes.insert(client(n, true).into(), Route::Unresolved);
    }
    tables
}

fn vip(n: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(203, 0, 113, n).into()
    }
}

fn send(tables: &Tables, bytes: &[u8], headroom: usize) -> Reason {
    let mut frame = Frame::with_headroom(bytes, Tables::IFINDEX, headroom);
    if let Some(plain) = parse::plain(&frame) {
        assert_eq!(parse::network(&frame), Ok(plain), "the short cut leads elsewhere");
    }
    let verdict = process(&mut frame, tables);
    judge(tables, bytes, frame.bytes(), &verdict);
    verdict.reason
}

/// What must hold for a frame after the data path has had it.
fn judge(tables: &Tables, before: &[u8], after: &[u8], verdict: &Verdict) {
    match verdict.reason.action() {
        Action::Pass if verdict.reason == Reason::RepliedByHost => {
            let Some(seen) = inspect(before) else {
                panic!("{verdict:?} of a malformed frame {before:02x?}")
            };
            assert_eq!(before[..12], after[..12], "the hardware addresses");
            translated(before, after, &seen, ends_changed(tables, verdict));
        }
        Action::Pass
            if matches!(verdict.reason, Reason::ErrorRepliedByHost | Reason::FragmentRepliedByHost) =>
        {
            assert_eq!(before[..12], after[..12], "the hardware addresses");
            odd(before, verdict).translated(before, after);
        }
        Action::Pass => assert_eq!(before, after, "passed up, but changed: {verdict:?}"),
        Action::Drop => {}
        Action::Transmit if matches!(verdict.reason, Reason::ErrorForwarded | Reason::FragmentForwarded) => {
            let odd = odd(before, verdict);
            let outline = Outline { v6: odd.v6, l3: odd.l3, end: odd.end, traffic_class: odd.traffic_class };
            forwarded(tables, before, after, &outline, verdict, || odd.translated(before, after));
        }
        Action::Transmit if matches!(verdict.reason, Reason::ErrorReplied | Reason::FragmentReplied) => {
            assert_eq!(verdict.ifindex, Tables::IFINDEX);
            addressed(after, &Tables::ROUTER);
            odd(before, verdict).translated(before, after);
        }
        Action::Transmit => {
            let Some(seen) = inspect(before) else {
                panic!("{verdict:?} of a malformed frame {before:02x?}")
            };
            assert_eq!(verdict.ifindex, Tables::IFINDEX);
            match verdict.reason {
                Reason::Reset | Reason::NoSessionReset | Reason::NoPortReset => reset(before, after, &seen),
                Reason::Replied => {
                    addressed(after, &Tables::ROUTER);
                    translated(before, after, &seen, ends_changed(tables, verdict));
                }
                _ => {
                    let Inspected { v6, l3, end, traffic_class, .. } = seen;
                    let outline = Outline { v6, l3, end, traffic_class };
                    forwarded(tables, before, after, &outline, verdict, || {
                        translated(before, after, &seen, ends_changed(tables, verdict));
                    });
                }
            }
        }
    }
}

fn odd(frame: &[u8], verdict: &Verdict) -> Odd {
    Odd::read(frame).unwrap_or_else(|| panic!("{verdict:?} of a malformed frame {frame:02x?}"))
}

/// What forwarding needs to know of a packet.
struct Outline {
    v6: bool,
    l3: usize,
    end: usize,
    traffic_class: u8,
}

fn forwarded(
    tables: &Tables,
    before: &[u8],
    after: &[u8],
    seen: &Outline,
    verdict: &Verdict,
    translated: impl FnOnce(),
) {
    let backend = if verdict.reason == Reason::ErrorForwarded {
        // On nobody's account.
        let at = |backend: &&Backend| backend.next_hop().mac().is_some_and(|mac| mac == after[..6]);
        tables.backends.iter().find(at).expect("the next hop of a backend")
    } else {
        &tables.backends[usize::from(verdict.account.backend)]
    };
    if verdict.reason != Reason::ErrorForwarded {
        assert_eq!((verdict.account.pool, verdict.account.bytes as usize), (backend.pool, seen.end));
    }
    let mac = backend.next_hop().mac().expect("a backend that packets go to has a next hop");
    addressed(after, &mac);
    let mode = tables.services[backend.service as usize].mode;
    if mode == Mode::Nat as u8 || mode == Mode::FullNat as u8 {
        return translated();
    }
    if mode == Mode::DsrL2 as u8 {
        assert_eq!(&before[12..], &after[12..], "more than the hardware addresses has changed");
        return;
    }
    let overhead = after.len() - before.len();
    assert_eq!(&after[seen.l3 + overhead..], &before[seen.l3..], "what is in the tunnel has changed");
    assert_eq!(&after[12..seen.l3 - 2], &before[12..seen.l3 - 2], "the tags have changed");
    let outer = &after[seen.l3..];
    let mut length = seen.end - seen.l3;
    let mut protocol = if seen.v6 { 41 } else { 4 };
    let mut overhead = overhead;
    if mode == Mode::DsrGue as u8 {
        (protocol, length, overhead) = (17, length + 8, overhead - 8);
        let udp = &outer[overhead..overhead + 8];
        assert!(udp[0] >= 0xc0, "a dynamic port");
        assert_eq!((&udp[2..4], &udp[6..8]), (&6080_u16.to_be_bytes()[..], &[0, 0][..]));
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), length);
    }
    if backend.address.is_v4() {
        assert_eq!((overhead, &after[seen.l3 - 2..seen.l3]), (20, &[8, 0][..]));
        assert_eq!(inspect::sum(0, &outer[..20]), 0xffff, "the outer header's checksum");
        assert_eq!((outer[0], outer[1]), (0x45, seen.traffic_class));
        assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), length + 20);
        assert_eq!((outer[6..9].to_vec(), outer[9]), (vec![0x40, 0, 64], protocol));
        assert_eq!((&outer[12..14], &outer[16..20]), (&[172, 16][..], &backend.address.v4_octets()[..]));
    } else {
        assert_eq!((overhead, &after[seen.l3 - 2..seen.l3]), (40, &[0x86, 0xdd][..]));
        assert_eq!(outer[..4], [0x60 | seen.traffic_class >> 4, seen.traffic_class << 4, 0, 0]);
        assert_eq!(usize::from(u16::from_be_bytes([outer[4], outer[5]])), length);
        assert_eq!((outer[6], outer[7]), (protocol, 64));
        assert_eq!(
            (&outer[8..20], &outer[24..40]),
            (&tables.settings.tunnel_v6[..12], &backend.address.v6_octets()[..])
        );
    }
}

/// How many ends of a packet a backend's mode replaces.
fn ends_changed(tables: &Tables, verdict: &Verdict) -> usize {
    let backend = &tables.backends[usize::from(verdict.account.backend)];
    1 + usize::from(tables.services[backend.service as usize].mode == Mode::FullNat as u8)
}

fn translated(before: &[u8], after: &[u8], seen: &Inspected, ends: usize) {
    assert_eq!(before.len(), after.len());
    let Some(now) = inspect(after) else { panic!("translated into a malformed frame: {after:02x?}") };
    assert_eq!(
        (now.l3, now.l4, now.end, now.v6, now.protocol),
        (seen.l3, seen.l4, seen.end, seen.v6, seen.protocol)
    );
    assert_eq!(now.hops, seen.hops - 1);
    assert_eq!(now.header_ok, seen.header_ok, "the IPv4 header's checksum");
    assert_eq!(now.checksum, seen.checksum, "the checksum of {seen:?}");
    let changed = usize::from(now.source != seen.source) + usize::from(now.destination != seen.destination);
    assert!(changed <= ends, "{changed} ends have changed");
    // Addresses, ports, hops and checksums; nothing else.
    let mut masked = [before.to_vec(), after.to_vec()];
    for frame in &mut masked {
        frame[..12].fill(0);
        let (hops, addresses) = if seen.v6 { (7, 8..40) } else { (8, 12..20) };
        frame[seen.l3 + hops] = 0;
        frame[seen.l3 + addresses.start..seen.l3 + addresses.end].fill(0);
        if !seen.v6 {
            frame[seen.l3 + 10..seen.l3 + 12].fill(0);
        }
        frame[seen.l4..seen.l4 + 4].fill(0);
        let checksum = seen.l4 + if seen.protocol == IPPROTO_TCP { 16 } else { 6 };
        frame[checksum..checksum + 2].fill(0);
    }
    assert_eq!(masked[0], masked[1], "more than addresses, ports, hops and checksums has changed");
}

fn reset(before: &[u8], after: &[u8], seen: &Inspected) {
    assert_eq!((&after[..6], &after[6..12]), (&before[6..12], &before[..6]));
    assert_eq!(&after[12..seen.l3], &before[12..seen.l3], "the tags have changed");
    let Some(rst) = inspect(after) else { panic!("a malformed RST: {after:02x?}") };
    assert_eq!((rst.end, rst.l4 + 20, rst.protocol), (after.len(), after.len(), IPPROTO_TCP));
    assert_eq!((&rst.source, &rst.destination), (&seen.destination, &seen.source));
    assert_eq!((rst.header_ok, rst.checksum), (true, Checksum::Right));
    let (old, new) = (&before[seen.l4..], &after[rst.l4..]);
    assert!(old[13] & 0x04 == 0, "a RST was answered");
    let number = |at: &[u8]| u32::from_be_bytes([at[0], at[1], at[2], at[3]]);
    if old[13] & 0x10 != 0 {
        assert_eq!((new[13], number(&new[4..])), (0x04, number(&old[8..])));
    } else {
        let data = seen.end - seen.l4 - usize::from(old[12] >> 4) * 4;
        let occupied = data as u32 + u32::from(old[13] & 0x02 != 0) + u32::from(old[13] & 0x01 != 0);
        assert_eq!((new[13], number(&new[4..])), (0x14, 0));
        assert_eq!(number(&new[8..]), number(&old[4..]).wrapping_add(occupied));
    }
}

fn addressed(frame: &[u8], mac: &[u8]) {
    assert_eq!((&frame[..6], &frame[6..12]), (mac, &Tables::MAC[..]), "the hardware addresses");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::mix;
    use std::collections::BTreeMap;

    fn random(seed: u64, longest: u64) -> Vec<u8> {
        let length = mix(seed ^ 0x55) % longest;
        (0..length.div_ceil(8)).flat_map(|i| mix(mix(seed) ^ i).to_le_bytes()).take(length as usize).collect()
    }

    const FRAMES: u64 = if cfg!(miri) {
        40
    } else if cfg!(debug_assertions) {
        100_000
    } else {
        1_000_000
    };

    #[test]
    fn a_million_random_frames_are_passed_dropped_or_rewritten_rightly() {
        let tables = tables();
        let mut reasons = BTreeMap::<&str, u64>::new();
        for seed in 0..FRAMES {
            *reasons.entry(rewrite(&tables, &random(seed, 200)).name()).or_default() += 1;
            if seed % 1000 == 0 {
                tables.advance(1);
            }
        }
        println!("{reasons:?}");
        let reached = [
            "forwarded",
            "replied",
            "replied_by_host",
            "reset",
            "malformed",
            "fragment",
            "other_protocol",
            "ttl_expired",
            "no_headroom",
            "no_session_reset",
            "error_forwarded",
            "error_replied",
            "error_replied_by_host",
            "fragment_forwarded",
            "fragment_replied",
            "fragment_replied_by_host",
            "fragment_unknown",
        ];
        for reason in reached.into_iter().filter(|_| !cfg!(miri)) {
            assert!(
                reasons.get(reason).is_some_and(|n| *n > FRAMES / 10_000),
                "hardly any {reason}: {reasons:?}"
            );
        }
    }

    #[test]
    fn noise_is_passed_up() {
        let tables = tables();
        for seed in 0..FRAMES {
            parse(&tables, &random(seed, 120));
        }
    }
}
