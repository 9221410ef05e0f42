//! Protection of services: who may talk to them at all, how much, and which senders are nobody.
//!
//! **Nobody** is who cannot have sent a packet: an address that no host has (RFC 1122, section 3.2.1.3; RFC 6890), or the
//! very address that the packet is for ("land"). Every packet to a VIP is asked for it ([`is_nobody`]): on the fast road that is
//! a dozen instructions on words that are in registers, and one branch that is never taken.
//!
//! **Lists** say whose packets a service takes: networks that are allowed or denied, in a trie (`RULES`) by service and prefix. The
//! longest prefix wins. They hold for every packet, also of a connection that is there.
//!
//! **Rates** let new connections (SYNs) and packets through, of the service as a whole and of each source: a network of a length
//! that the service says. As in [`limit`](crate::limit) each is the generic cell rate algorithm (ITU-T I.371): one word says
//! when the next one would be due if they came evenly, and one that comes too early by more than is tolerated is dropped. The
//! word is changed by compare-and-swap, and only by what is let through: what is beyond the rate only reads it, so a flood
//! leaves it in the caches of all CPUs. Segments of a connection do not count as new ones, however many SYNs there are.
//!
//! Sources are in an LRU table (`SOURCES`): a flood of made-up addresses can push others out, who then begin with their whole
//! burst again. It costs memory for so many sources, and no more. A source is not put there while the service has no room.
//!
//! What is beyond a rate is dropped, not answered: the sender of a SYN may be made up, and somebody else would get the RST.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, FlowKey, GuestKey, Service};
use crate::fragment::for_host;
use crate::parse::{self, Family, Kind, Network};
use crate::pipeline::{Packet, Step, Tables, find_service};
use crate::stage::Stage;
use crate::verdict::Reason;
use crate::wire::{Ethernet, ICMP_ECHO_REPLY, ICMPV6_ECHO_REQUEST, IPPROTO_ICMP, Icmp};

/// Value of `RULES`: what a network may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rule {
    /// It may talk to the service.
    Allowed = 1,
    /// It may not.
    Denied = 2,
    /// There is a list of those who may, and it is not in it.
    NotAllowed = 3,
}

impl Rule {
    /// Of a map's value. Nobody writes others.
    #[must_use]
    #[inline(always)]
    pub const fn of(value: u32) -> Self {
        match value {
            2 => Self::Denied,
            3 => Self::NotAllowed,
            _ => Self::Allowed,
        }
    }
}

/// Part of the owner of rules in `RULES` that are a VIP's, for what is the host's behind it (ICMP). The rest is the index of
/// one of its services.
pub const HOST: u32 = 1 << 31;

/// Nanoseconds that the clocks of two CPUs are never apart.
const CLOCKS_APART: u64 = 1 << 30;

/// How often something may happen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Rate {
    /// Nanoseconds from one to the next; 0: as often as it does.
    pub interval: u64,
    /// How many nanoseconds one may come too early.
    pub tolerance: u64,
}

impl Rate {
    /// So many a second, and `burst` of them at once after a silence; both at least 1.
    #[must_use]
    pub const fn per_second(count: u32, burst: u32) -> Self {
        let interval = 1_000_000_000_u64.div_ceil(count as u64);
        Self { interval, tolerance: interval.saturating_mul(burst as u64 - 1) }
    }

    /// When the next one is due after one `now`, if there may be one. All in monotonic nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn after(&self, due: u64, now: u64) -> Option<u64> {
        let ahead = due.saturating_sub(now);
        if ahead <= self.tolerance {
            return Some(now.wrapping_add(ahead).wrapping_add(self.interval));
        }
        // By this rate nothing is due that far ahead: it was another one, and this one begins now.
        let most = self.tolerance.saturating_add(self.interval).saturating_add(CLOCKS_APART);
        if ahead > most { Some(now.wrapping_add(self.interval)) } else { None }
    }
}

/// One element of `GUARDS`, by service: what is written in the first cache line, what is read in the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Guard {
    /// When the next new connection is due, in monotonic nanoseconds.
    pub connections_due: u64,
    /// When the next packet is.
    pub packets_due: u64,
    /// Zero; fills the cache line.
    pub pad: [u64; 6],
    /// New connections of all clients.
    pub connections: Rate,
    /// Packets of all clients.
    pub packets: Rate,
    /// New connections of a source.
    pub source_connections: Rate,
    /// Packets of a source.
    pub source_packets: Rate,
    /// The bits of a client's address that say which source it is of.
    pub source_mask: Address,
    /// 1 if there are rules, else 0.
    pub rules: u32,
    /// Zero.
    pub pad2: u32,
    /// Zero; fills the cache line.
    pub reserved: [u64; 5],
}

const _: () = {
    assert!(size_of::<Guard>() == 192, "three cache lines");
    // The kernel program finds one word by the other.
    assert!(offset_of!(Guard, packets_due) == offset_of!(Guard, connections_due) + 8);
    assert!(offset_of!(Source, packets_due) == offset_of!(Source, connections_due) + 8);
    assert!(Word::Connections as usize == 0 && Word::Packets as usize == 1);
};

impl Guard {
    /// Whether each source has a rate.
    #[must_use]
    #[inline(always)]
    pub const fn has_sources(&self) -> bool {
        self.source_connections.interval | self.source_packets.interval != 0
    }

    /// Whether anything has a rate.
    #[must_use]
    #[inline(always)]
    pub const fn has_rates(&self) -> bool {
        self.has_sources() || self.connections.interval | self.packets.interval != 0
    }

    /// The source of a client of service `index`.
    #[must_use]
    #[inline(always)]
    pub const fn source(&self, index: u32, client: Address) -> SourceKey {
        let ([a, b, c, d], [w, x, y, z]) = (client.wire_words(), self.source_mask.wire_words());
        SourceKey { network: Address::of_wire_words([a & w, b & x, c & y, d & z]), service: index }
    }
}

/// Key of `SOURCES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SourceKey {
    /// The network that clients are in.
    pub network: Address,
    /// Index of the service.
    pub service: u32,
}

/// Value of `SOURCES`: when its next are due, in monotonic nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Source {
    /// A new connection.
    pub connections_due: u64,
    /// A packet.
    pub packets_due: u64,
}

impl Source {
    /// One of the words.
    #[must_use]
    pub const fn word(&self, word: Word) -> u64 {
        match word {
            Word::Connections => self.connections_due,
            Word::Packets => self.packets_due,
        }
    }

    /// The same, to be changed.
    pub const fn word_mut(&mut self, word: Word) -> &mut u64 {
        match word {
            Word::Connections => &mut self.connections_due,
            Word::Packets => &mut self.packets_due,
        }
    }
}

/// What of a packet is asked for; bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(pub u32);

impl Asked {
    /// Whether the lists let it through.
    pub const LISTS: u32 = 1;
    /// Whether its sender is denied by name: routers on the way need not be allowed.
    pub const DENIED: u32 = 2;
    /// It counts as a packet.
    pub const PACKET: u32 = 4;
    /// It counts as a new connection.
    pub const BEGINS: u32 = 8;

    /// Of a fragment that has no ports.
    pub const PIECE: Self = Self(Self::LISTS | Self::PACKET);

    /// Of a client's own packet.
    #[must_use]
    #[inline(always)]
    pub const fn of(kind: Kind) -> Self {
        Self(Self::LISTS | Self::PACKET | if matches!(kind, Kind::Syn(_)) { Self::BEGINS } else { 0 })
    }

    #[inline(always)]
    const fn has(self, what: u32) -> bool {
        self.0 & what != 0
    }
}

/// [`Stage::Guard`]: from a client to a service that has [`Service::GUARDED`].
///
/// # Errors
///
/// Why it may not go on.
#[inline(always)]
pub fn guard<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let transport = parse::transport(packet, &network)?;
    // It was there a moment ago.
    let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    tables.admits(&FlowKey::of_request(&network, &transport, index), Asked::of(transport.kind))?;
    Ok(Step::Next(service.attended_by()))
}

impl Service {
    /// Where packets to an attended service go on, once its guard has let them through.
    #[must_use]
    #[inline(always)]
    pub const fn attended_by(&self) -> Stage {
        // Sessions look after the rest themselves.
        if self.flags & (Self::SESSIONS | Self::CLAMPED) == Self::SESSIONS {
            Stage::Session
        } else if self.has(Self::QUIC) {
            Stage::Quic
        } else {
            Stage::Attend
        }
    }
}

/// Whether a packet of `key.client` to the service `key.owner`, which is guarded, may go on.
///
/// # Errors
///
/// Why not.
#[inline(always)]
pub fn admits<T: Tables>(tables: &T, key: &FlowKey, asked: Asked) -> Result<(), Reason> {
    listed(tables, key, asked)?;
    let index = key.owner;
    let guard = tables.guard(index).ok_or(Reason::NoTable)?;
    if !guard.has_rates() || !asked.has(Asked::PACKET) {
        return Ok(());
    }
    let now = tables.clock();
    let begins = asked.has(Asked::BEGINS);
    // What the service as a whole has no room for makes no source any poorer, and takes nobody's place among them.
    let all = tables.dues(index).ok_or(Reason::NoTable)?;
    if !has_room(tables, all, Word::Packets, &guard.packets, now) {
        return Err(Reason::ServicePackets);
    }
    if begins && !has_room(tables, all, Word::Connections, &guard.connections, now) {
        return Err(Reason::ServiceConnections);
    }
    // Its own rate first: who is beyond it takes nothing from the others, and what is not let through as a beginning takes
    // nothing from what has begun.
    if guard.has_sources()
        && let Some(own) = tables.source(&guard.source(index, key.client))
    {
        if begins && !has_room(tables, own, Word::Connections, &guard.source_connections, now) {
            return Err(Reason::SourceConnections);
        }
        if !take(tables, own, Word::Packets, &guard.source_packets, now) {
            return Err(Reason::SourcePackets);
        }
        if begins && !take(tables, own, Word::Connections, &guard.source_connections, now) {
            return Err(Reason::SourceConnections);
        }
    }
    if !take(tables, all, Word::Packets, &guard.packets, now) {
        return Err(Reason::ServicePackets);
    }
    if begins && !take(tables, all, Word::Connections, &guard.connections, now) {
        return Err(Reason::ServiceConnections);
    }
    Ok(())
}

/// The lists' part of [`admits`].
///
/// # Errors
///
/// [`Reason::Denied`].
#[inline(always)]
pub fn listed<T: Tables>(tables: &T, key: &FlowKey, asked: Asked) -> Result<(), Reason> {
    if tables.guard(key.owner).ok_or(Reason::NoTable)?.rules == 0 {
        return Ok(());
    }
    let strict = asked.has(Asked::LISTS);
    match tables.rule(&GuestKey::client(key.owner, key.client)) {
        Some(Rule::NotAllowed) if strict => Err(Reason::Denied),
        Some(Rule::Denied) if strict || asked.has(Asked::DENIED) => Err(Reason::Denied),
        _ => Ok(()),
    }
}

/// Which of two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// New connections.
    Connections,
    /// Packets.
    Packets,
}

/// How often a word is tried to be changed that others change, too.
const TRIES: u32 = 4;

#[inline(always)]
fn has_room<T: Tables>(tables: &T, dues: T::Dues<'_>, word: Word, rate: &Rate, now: u64) -> bool {
    rate.interval == 0 || rate.after(tables.due(dues, word), now).is_some()
}

/// Takes one, if there is one.
#[inline(always)]
fn take<T: Tables>(tables: &T, dues: T::Dues<'_>, word: Word, rate: &Rate, now: u64) -> bool {
    if rate.interval == 0 {
        return true;
    }
    for _ in 0..TRIES {
        let due = tables.due(dues, word);
        let Some(next) = rate.after(due, now) else { return false };
        if tables.swap_due(dues, word, due, next) {
            return true;
        }
    }
    // So many others were let through in this very moment that one more makes no difference.
    true
}

/// Whether a packet's sender is somebody.
///
/// # Errors
///
/// [`Reason::Martian`], [`Reason::Land`].
#[inline(always)]
pub const fn sender(network: &Network) -> Result<(), Reason> {
    if !is_nobody(network) {
        return Ok(());
    }
    Err(if martian_bits(network) >> 63 == 0 { Reason::Land } else { Reason::Martian })
}

/// Whether a packet's sender is nobody.
///
/// One comparison for all of it: what is looked for are differences below zero, which have their upper bit set. Each
/// comparison one more would double what the verifier has to go through after it.
#[inline(always)]
#[must_use]
pub const fn is_nobody(network: &Network) -> bool {
    let ([a, b, c, d], [w, x, y, z]) = (network.source.wire_words(), network.destination.wire_words());
    let differ = (a ^ w | b ^ x | c ^ y | d ^ z) as u64;
    (martian_bits(network) | differ.wrapping_sub(1)) >> 63 != 0
}

/// The upper bit is set if no host has the address that a packet comes from.
#[inline(always)]
const fn martian_bits(network: &Network) -> u64 {
    let [a, b, c, d] = network.source.words();
    match network.family {
        // "This network" (0/8), the loopback (127/8), multicast (224/4), and what is beyond (240/4, broadcast): the first
        // octet is 0, 127, or more than 223.
        Family::V4 => {
            let first = (d >> 24) as u64;
            first.wrapping_sub(1) | (first ^ 127).wrapping_sub(1) | 223_u64.wrapping_sub(first)
        }
        // Unspecified (::), the loopback (::1), multicast (ff00::/8). (v4-mapped ones do not get past the parser.)
        Family::V6 => {
            let upper = (a | b | c | d >> 1) as u64;
            upper.wrapping_sub(1) | 0xfe_u64.wrapping_sub((a >> 24) as u64)
        }
    }
}

/// Whether an answer to a packet would reach one host, and nobody else: not a sender who is nobody, and not a frame that
/// came for many or claims to come from many (RFC 1122, sections 3.2.2 and 4.2.3.10; RFC 4443, section 2.4).
///
/// # Errors
///
/// [`Reason::Martian`], [`Reason::Land`].
#[inline(always)]
pub fn can_be_answered<P: Packet>(packet: &P, network: &Network) -> Result<(), Reason> {
    sender(network)?;
    let ethernet: &Ethernet = packet.view(0).ok_or(Reason::Malformed)?;
    if (ethernet.destination[0] | ethernet.source[0]) & 1 != 0 {
        return Err(Reason::Martian);
    }
    Ok(())
}

/// What may be said by this host itself; each has a bucket per CPU in `MESSAGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Message {
    /// [`too_big`](crate::too_big).
    TooBig = 0,
    /// A RST.
    Reset = 1,
    /// What the host answers that has the VIP.
    Echo = 2,
}

impl Message {
    /// How many there are.
    pub const COUNT: usize = 3;
}

/// Whether a client may get a RST now.
///
/// # Errors
///
/// Why not.
#[inline(always)]
pub fn may_reset<T: Tables>(packet: &T::Packet, tables: &T, network: &Network) -> Result<(), Reason> {
    can_be_answered(packet, network)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    if tables.admits_message(Message::Reset, settings.message_interval) {
        Ok(())
    } else {
        Err(Reason::ResetSuppressed)
    }
}

/// [`Stage::Host`]: what no service takes, and what comes from nobody. If it is for a VIP, nobody's is dropped, and so is that of
/// whom all services of the VIP deny; and what the host may answer (echo requests, whole or in fragments) it gets at a rate.
///
/// # Errors
///
/// Why the host does not get it; or else what it is.
#[inline(always)]
pub fn host<T: Tables>(packet: &T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let reason = for_host(packet, &network)?;
    // The filter of addresses has let it come here, which errs on one side.
    let Some(owner) = tables.vip_rules(&network.destination) else { return Err(reason) };
    sender(&network)?;
    if matches!(reason, Reason::Malformed) {
        return Err(Reason::TinyFragment);
    }
    if owner != 0
        && let Some(Rule::Denied | Rule::NotAllowed) = tables.rule(&GuestKey::client(owner, network.source))
    {
        return Err(Reason::Denied);
    }
    if !matches!(reason, Reason::FragmentUnknown) {
        can_be_answered(packet, &network)?;
        let settings = tables.settings().ok_or(Reason::NoTable)?;
        if !tables.admits_message(Message::Echo, settings.message_interval) {
            return Err(Reason::EchoSuppressed);
        }
    }
    Err(reason)
}

/// Whether an ICMP message is one that the host may answer. Neighbour discovery is not: it comes to the VIP, too, and without
/// it nothing does.
#[inline(always)]
pub fn asks_host<P: Packet>(packet: &P, network: &Network) -> bool {
    let Some(header) = packet.view::<Icmp>(network.next) else { return false };
    if network.protocol == IPPROTO_ICMP {
        // All but what answers: errors, redirects and the like are for the host to judge.
        !matches!(header.kind, ICMP_ECHO_REPLY | 3..=5 | 11 | 12)
    } else {
        header.kind == ICMPV6_ECHO_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn from(address: &str) -> Network {
        let address: IpAddr = address.parse().unwrap();
        let to: IpAddr = if address.is_ipv4() { "203.0.113.10" } else { "2001:db8::10" }.parse().unwrap();
        Network {
            family: if address.is_ipv4() { Family::V4 } else { Family::V6 },
            l3: 14,
            next: 34,
            end: 54,
            protocol: 6,
            fragment: false,
            source: address.into(),
            destination: to.into(),
        }
    }

    #[test]
    fn nobody_has_these_addresses() {
        for address in [
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff00::",
            "ff02::1",
            "ffff::1",
        ] {
            assert_eq!(sender(&from(address)), Err(Reason::Martian), "{address}");
        }
        for address in ["203.0.113.10", "2001:db8::10"] {
            assert_eq!(sender(&from(address)), Err(Reason::Land), "{address}");
        }
    }

    #[test]
    fn everybody_else_may_have_sent_a_packet() {
        // By octet, and against the plain words for it.
        for first in 0..=255_u8 {
            let network = from(&format!("{first}.2.3.4"));
            assert_eq!(sender(&network).is_err(), matches!(first, 0 | 127 | 224..), "{first}");
        }
        for address in [
            "1.0.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "223.255.255.255",
            "10.0.0.1",
            "169.254.1.1",
            "::2",
            "::1:0",
            "0:0:0:1::",
            "1::",
            "fe80::1",
            "fe00::",
            "64:ff9b::a00:1",
            "2001:db8::1",
        ] {
            assert_eq!(sender(&from(address)), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_rate_lets_its_burst_through_at_once_and_then_one_at_a_time() {
        for (count, burst) in [(1, 1), (10, 1), (10, 5), (1000, 200), (3, 7), (u32::MAX, u32::MAX)] {
            let rate = Rate::per_second(count, burst);
            let start = 1_000_000_000_000;
            let mut due = 0;
            let mut let_through = 0;
            while let Some(next) = rate.after(due, start)
                && let_through < 1000
            {
                (due, let_through) = (next, let_through + 1);
            }
            assert_eq!(let_through, burst.min(1000), "{count} {burst}");
            if burst > 1000 {
                continue;
            }
            assert!(rate.after(due, start + rate.interval - 1).is_none(), "{count} {burst}");
            assert!(rate.after(due, start + rate.interval).is_some(), "{count} {burst}");
        }
    }

    #[test]
    fn what_another_rate_has_put_off_for_long_is_forgotten() {
        let (slow, fast) = (Rate::per_second(1, 600), Rate::per_second(1000, 1));
        let now = 1_000_000_000_000;
        let mut due = 0;
        while let Some(next) = slow.after(due, now) {
            due = next;
        }
        assert_eq!(due, now + 600_000_000_000);
        let due = fast.after(due, now).expect("ten minutes of silence are none of its doing");
        assert_eq!(fast.after(due, now), None, "and it holds from then on");
    }

    #[test]
    fn in_no_second_more_than_the_rate_and_the_burst_is_let_through() {
        let (count, burst) = (100_u64, 20_u64);
        let rate = Rate::per_second(count as u32, burst as u32);
        let (mut due, mut passed) = (0, Vec::new());
        // Lulls and bursts, for five seconds.
        for step in 0..50_000_u64 {
            let now = 1_000_000_000 + step * 100_000;
            if step / 3_000 % 2 == 1 {
                continue;
            }
            if let Some(next) = rate.after(due, now) {
                due = next;
                passed.push(now);
            }
        }
        for (i, start) in passed.iter().enumerate() {
            let within = passed[i..].iter().take_while(|at| **at < start + 1_000_000_000).count() as u64;
            assert!(within <= count + burst, "{within} within a second");
        }
    }
}
