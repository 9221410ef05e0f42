//! `full-nat`: both ends of a packet are rewritten, so that a backend needs nothing but a route to the balancer.
//!
//! The client's address is replaced by one of the balancer's and by a port that no other flow to that backend has. Which
//! port that is cannot be computed from the reply, so here, and only here, every flow is in a table.
//!
//! # A session is two entries
//!
//! One for each direction, in one table, each found by the addresses and ports of its packets as they come, and each saying what
//! they become: one look-up a packet. Either entry leads to the other ([`SessionKey::back`]), which only packets that begin
//! or end something ask for.
//!
//! # Two tables
//!
//! - `OPENING` has what has yet to prove itself, and forgets what was used least lately: handshakes, and UDP flows before
//!   their second request. A flood of spoofed SYNs churns this table, and nothing else.
//! - `SESSIONS` has what has: the client acknowledged the number that its backend drew, which nobody can who does not get the
//!   backend's packets; or, in UDP, it talks again after an answer. Nothing is ever pushed out of it. When it is full,
//!   sessions go on in `OPENING`, less safe than they should be, and counted.
//!
//! # Ends
//!
//! A FIN or RST is noted in the entry of its direction. A session with both FINs or a RST is *closed*: it stays for as long as a
//! backend keeps the port in TIME_WAIT, so that no other client's SYN meets that, and a SYN of the same client with another
//! sequence number replaces it at once. In a session that is not closed a SYN goes to the backend, whose answer tells the
//! client whose idea of the connection is wrong (RFC 9293, section 3.10.7.4): a spoofed SYN ends nothing. A segment after a RST takes
//! the RST back, for whoever is established ignores a spoofed one.
//!
//! Silent sessions are swept by the agent. Without an agent they go when somebody needs their port.
//!
//! # What has no ports, or only quotes them
//!
//! A first fragment finds its session, or begins one, as a whole packet does; [`session_fragment`] carries it and those that
//! follow it. An ICMP error quotes a packet of one direction, and is for whoever sends in that direction: [`session_icmp`].

mod errors;
mod opening;
mod pieces;
pub mod ports;
pub mod toa;
mod witness;

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, HANDSHAKE_TICKS, Port, Service, Settings};
use crate::parse::{self, Kind, Network, Transport};
use crate::pipeline::{Exit, Packet, Route, Step, Tables, Target, contains, elsewhere, ended, is_nats};
use crate::rewrite;
use crate::stage::Stage;
use crate::verdict::{Account, Reason, Verdict};
use crate::vlan::leaving;
use crate::wire::{IPPROTO_TCP, IPPROTO_UDP, Mac, TCP_FIN, TCP_RST, Tcp};

pub use errors::session_icmp;
pub use opening::{begin, opening};
pub use pieces::session_fragment;
pub(crate) use pieces::takes;
pub use witness::witness;

/// [`ticks`](crate::abi::ticks) that a closed session stays: as long as Linux keeps a port in TIME_WAIT (60 s).
pub const CLOSED_TICKS: u32 = 57;

/// Key of `OPENING` and `SESSIONS`: a packet of one direction, as it comes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SessionKey {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// Sender's port.
    pub source_port: Port,
    /// Receiver's port.
    pub destination_port: Port,
    /// IP protocol number.
    pub protocol: u32,
}

impl SessionKey {
    /// Of a packet.
    #[must_use]
    #[inline(always)]
    pub const fn of(network: &Network, transport: &Transport) -> Self {
        Self {
            source: network.source,
            destination: network.destination,
            source_port: transport.source,
            destination_port: transport.destination,
            protocol: transport.protocol as u32,
        }
    }

    /// The key of the other direction, if packets of this one become what `session` says.
    #[must_use]
    #[inline(always)]
    pub const fn back(&self, session: &Session) -> Self {
        Self {
            source: session.destination,
            destination: session.source,
            source_port: session.destination_port,
            destination_port: session.source_port,
            protocol: self.protocol,
        }
    }
}

/// Value of `OPENING` and `SESSIONS`: one direction of a session.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Session {
    /// The sender that its packets get.
    pub source: Address,
    /// The receiver that its packets get.
    pub destination: Address,
    /// The sender's port that they get.
    pub source_port: Port,
    /// The receiver's port that they get.
    pub destination_port: Port,
    /// Where the flow goes, or comes from.
    pub backend: u16,
    /// [`Session::REPLY`] and the following.
    pub flags: u16,
    /// The backend's generation when the session began.
    pub generation: u32,
    /// Index of the service.
    pub service: u32,
    /// When its last packet passed, in [`ticks`](crate::abi::ticks).
    pub seen: u32,
    /// The initial sequence number of whoever sends in this direction.
    pub sequence: u32,
    /// Replies: where they left last. Asked for anew every tick.
    pub way: Way,
}

/// Where packets leave, and until when that may be believed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Way {
    /// By this interface,
    pub ifindex: u32,
    /// with these hardware addresses,
    pub source: Mac,
    /// of the interface and the next hop,
    pub destination: Mac,
    /// in this tick,
    pub at: u32,
    /// if they have at most so many bytes.
    pub longest: u32,
}

impl Session {
    /// From a backend to a client; else the other way.
    pub const REPLY: u16 = 1;
    /// Whoever sends in this direction has sent all of it.
    pub const FIN: u16 = 2;
    /// The last segment was a RST.
    pub const RESET: u16 = 4;
    /// The backend has answered. (Of the entry for replies.)
    pub const ANSWERED: u16 = 8;
    /// The backend is to be told the client's address.
    pub const TOA: u16 = 16;
    /// No packet has gone through it yet.
    pub const FRESH: u16 = 32;

    /// Whether a flag is set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether what its packets become is answered by packets of this key: the way back from [`SessionKey::back`].
    #[must_use]
    #[inline(always)]
    pub fn answers(&self, key: &SessionKey) -> bool {
        self.source == key.destination
            && self.destination == key.source
            && self.source_port == key.destination_port
            && self.destination_port == key.source_port
    }

    /// Notes a packet that goes on. Words that stay as they are are not written: other CPUs may have them in their caches.
    #[inline(always)]
    fn note(&mut self, now: u32, segment: u8) {
        if self.seen != now {
            self.seen = now;
        }
        let mut flags = self.flags & !Self::FRESH;
        if segment & TCP_RST != 0 {
            flags |= Self::RESET;
        } else {
            flags &= !Self::RESET;
            if segment & TCP_FIN != 0 {
                flags |= Self::FIN;
            }
        }
        if flags != self.flags {
            self.flags = flags;
        }
    }
}

/// Whether a session of these two directions is closed.
#[must_use]
#[inline(always)]
pub const fn is_closed(one: &Session, other: &Session) -> bool {
    (one.flags | other.flags) & Session::RESET != 0 || one.flags & other.flags & Session::FIN != 0
}

/// Where a session is made: 512 bytes of stack are too few for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Draft {
    /// The key of its requests.
    pub request: SessionKey,
    /// The key of its replies.
    pub key: SessionKey,
    /// The key of somebody else's requests, whose port may be free.
    pub other: SessionKey,
    /// One direction, then the other.
    pub session: Session,
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// `OPENING`.
    Opening,
    /// `SESSIONS`.
    Established,
}

/// How many ticks a session may be silent. Without its other direction nobody can use it.
#[must_use]
#[inline(always)]
pub const fn patience(
    settings: &Settings,
    protocol: u32,
    held: Held,
    one: &Session,
    other: Option<&Session>,
) -> u32 {
    let Some(other) = other else { return 0 };
    if protocol == IPPROTO_UDP as u32 {
        settings.udp_idle
    } else if matches!(held, Held::Opening) {
        // Refused: neither side has anything left of it.
        if is_closed(one, other) { 0 } else { HANDSHAKE_TICKS }
    } else if is_closed(one, other) {
        CLOSED_TICKS
    } else {
        settings.tcp_idle
    }
}

/// Whether a session was silent in both directions for longer than it may, by at least `slack` ticks.
#[must_use]
#[inline(always)]
pub fn is_over(
    settings: &Settings,
    protocol: u32,
    held: Held,
    (one, other): (&Session, Option<&Session>),
    now: u32,
    slack: u32,
) -> bool {
    let patience = patience(settings, protocol, held, one, other).saturating_add(slack);
    silent(one, now, patience) && other.is_none_or(|other| silent(other, now, patience))
}

/// Whether nothing has passed in this direction for longer than that.
#[inline(always)]
const fn silent(session: &Session, now: u32, patience: u32) -> bool {
    // Signed: another CPU may have seen the next tick.
    now.wrapping_sub(session.seen) as i32 > patience as i32
}

/// [`Stage::Session`]: to a service of mode `full-nat`, or to one of the ports that stand for its clients.
///
/// What goes on in an established session ends here, unless it is measured; the rest is for [`Stage::Opening`].
///
/// # Errors
///
/// Why it is not sent on.
#[inline(always)]
pub fn session<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = match parse::transport(packet, &network) {
        Ok(transport) => transport,
        Err(reason) => return elsewhere(&network, reason),
    };
    if !settings.is_source_port(transport.destination) && !contains(&settings.vips, network.destination) {
        // One of the host's own ports.
        return if is_nats(settings, &network) { Ok(Step::Next(Stage::Reply)) } else { Err(Reason::NotOurs) };
    }
    if matches!(transport.kind, Kind::Syn(_)) {
        return Ok(Step::Next(Stage::Opening));
    }
    let key = SessionKey::of(&network, &transport);
    let Some(mut entry) = tables.session_mut(Held::Established, &key) else {
        return Ok(Step::Next(Stage::Opening));
    };
    // Who has been silent for so long is not known any more, whether the agent has swept or not.
    if !entry.has(Session::REPLY)
        && transport.protocol == IPPROTO_UDP
        && silent(&entry, tables.ticks(), settings.udp_idle)
    {
        return Ok(Step::Next(Stage::Opening));
    }
    if entry.has(Session::REPLY) && onward(tables, &entry)? == Stage::Witness {
        return Ok(Step::Next(Stage::Witness));
    }
    match through(packet, tables, &network, &transport, &mut entry, Held::Established) {
        // Void: its packet is as it came.
        Err(Reason::NoSession) => Ok(Step::Next(Stage::Opening)),
        result => ended(result),
    }
}

/// Where a packet goes on from [`Stage::Opening`] and [`Stage::Begin`].
#[inline(always)]
fn onward<T: Tables>(tables: &T, session: &Session) -> Result<Stage, Reason> {
    tables.service(session.service).map(after).ok_or(Reason::NoTable)
}

/// The same for a service.
#[inline(always)]
const fn after(service: &Service) -> Stage {
    if service.has(Service::HANDSHAKES | Service::FAULTS) { Stage::Witness } else { Stage::Carry }
}

/// [`Stage::Carry`]: what [`Stage::Opening`] has found or made a session for.
///
/// # Errors
///
/// Why it is not sent on.
#[inline(always)]
pub fn carry<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let transport = match parse::transport(packet, &network) {
        Err(Reason::Fragment) => return Ok(Step::Next(Stage::SessionFragment)),
        transport => transport?,
    };
    let key = SessionKey::of(&network, &transport);
    let (mut entry, held) = held_mut(tables, &key).ok_or(Reason::NoSession)?;
    ended(through(packet, tables, &network, &transport, &mut entry, held))
}

/// The session of these packets, wherever it is. This order: in `OPENING` an established session's port may stand for whoever
/// is trying it.
#[inline(always)]
pub(crate) fn held<'a, T: Tables>(tables: &'a T, key: &SessionKey) -> Option<T::Entry<'a>> {
    match tables.session(Held::Established, key) {
        Some(entry) => Some(entry),
        None => tables.session(Held::Opening, key),
    }
}

/// The same, to be changed.
#[inline(always)]
fn held_mut<'a, T: Tables>(tables: &'a T, key: &SessionKey) -> Option<(T::EntryMut<'a>, Held)> {
    match tables.session_mut(Held::Established, key) {
        Some(entry) => Some((entry, Held::Established)),
        None => tables.session_mut(Held::Opening, key).map(|entry| (entry, Held::Opening)),
    }
}

/// Sends a packet on as its entry says. [`Reason::NoSession`]: that is void, and the packet is as it came.
#[inline(always)]
fn through<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    transport: &Transport,
    session: &mut Session,
    held: Held,
) -> Result<Verdict, Reason> {
    let segment = flags(packet, transport)?;
    if session.has(Session::REPLY) {
        return back(packet, tables, network, transport, segment, session);
    }
    let target = target(tables, session)?;
    let mut verdict = forth(packet, network, transport, session, &target, held)?;
    verdict.account.begins = session.has(Session::FRESH).into();
    session.note(tables.ticks(), segment);
    Ok(verdict)
}

/// The flags of a TCP segment; 0 for a datagram.
#[inline(always)]
fn flags<P: Packet>(packet: &P, transport: &Transport) -> Result<u8, Reason> {
    if transport.protocol != IPPROTO_TCP {
        return Ok(0);
    }
    Ok(packet.view::<Tcp>(transport.l4).ok_or(Reason::Malformed)?.flags)
}

/// Whether a session's backend is still the one that the session began with.
#[inline(always)]
fn is_alive<T: Tables>(tables: &T, session: &Session) -> bool {
    let Some(backend) = tables.backend(session.backend) else { return false };
    let life = backend.life();
    life.is_usable() && life.generation() == session.generation
}

/// The backend of a session, if it is still the one that the session began with.
#[inline(always)]
pub(crate) fn target<'a, T: Tables>(tables: &'a T, session: &Session) -> Result<Target<'a>, Reason> {
    let backend = tables.backend(session.backend).ok_or(Reason::NoTable)?;
    let life = backend.life();
    if !life.is_usable() || life.generation() != session.generation {
        return Err(Reason::NoSession);
    }
    Target::reach(tables, backend)
}

/// From the client to its backend.
#[inline(always)]
fn forth<P: Packet>(
    packet: &mut P,
    network: &Network,
    transport: &Transport,
    session: &Session,
    target: &Target<'_>,
    held: Held,
) -> Result<Verdict, Reason> {
    let length = network.end - network.l3;
    if length > target.device.mtu as usize {
        return Err(Reason::TooBig);
    }
    let mut told = false;
    if session.has(Session::TOA) && transport.protocol == IPPROTO_TCP {
        if packet.is_claimed(transport.l4, network.end) {
            return Err(Reason::ForgedAddress);
        }
        told = toa::belongs(transport.kind, session.sequence, held)
            && toa::fits(packet, network, transport, target.device)?;
    }
    let account = Account::of(session.backend, target.backend, network, false);
    rewrite::translate_both(
        packet,
        network,
        transport,
        (session.source, session.source_port),
        (session.destination, session.destination_port),
    )?;
    if told {
        toa::insert(packet, network, transport, target.device.mac, target.mac)?;
    } else {
        rewrite::link(packet, target.device.mac, target.mac)?;
    }
    Ok(Verdict { reason: Reason::Forwarded, ifindex: leaving(packet, target.device.ifindex), account })
}

/// Asks where a session's replies leave, and notes it. Returns whether the next hop's hardware address is known.
///
/// # Errors
///
/// Why they leave nowhere.
#[inline(always)]
pub fn find_way<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    network: &Network,
    session: &mut Session,
) -> Result<bool, Reason> {
    let towards = Network { source: session.source, destination: session.destination, ..*network };
    let exit = match tables.route(packet, &towards) {
        // Whatever is of a session is not the host's own, which would answer it with a RST.
        Route::ForwardingOff => return Err(Reason::NoRoute),
        route => route.exit()?,
    };
    let Some(Exit { ifindex, source, destination }) = exit else {
        return Ok(false);
    };
    let longest = (network.end - network.l3) as u32;
    session.way = Way { ifindex, source, destination, at: tables.ticks(), longest };
    Ok(true)
}

/// Whether the way of a session's replies is known; if it was not asked for in this tick, it is now.
#[inline(always)]
fn has_way<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    network: &Network,
    session: &mut Session,
    now: u32,
) -> Result<bool, Reason> {
    let length = (network.end - network.l3) as u32;
    Ok(session.way.at == now && length <= session.way.longest || tables.find_way(packet, network, session)?)
}

/// From a backend to its client.
#[inline(always)]
fn back<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    transport: &Transport,
    segment: u8,
    session: &mut Session,
) -> Result<Verdict, Reason> {
    let now = tables.ticks();
    let resolved = has_way(packet, tables, network, session, now)?;
    let backend = tables.backend(session.backend).ok_or(Reason::NoTable)?;
    rewrite::translate_both(
        packet,
        network,
        transport,
        (session.source, session.source_port),
        (session.destination, session.destination_port),
    )?;
    session.note(now, segment);
    let account = Account::of(session.backend, backend, network, false);
    if !resolved {
        return Ok(Verdict { reason: Reason::RepliedByHost, ifindex: 0, account });
    }
    rewrite::link(packet, session.way.source, session.way.destination)?;
    Ok(Verdict { reason: Reason::Replied, ifindex: leaving(packet, session.way.ifindex), account })
}

const _: () = {
    assert!(size_of::<SessionKey>() == 40 && size_of::<Session>() == 80);
};
