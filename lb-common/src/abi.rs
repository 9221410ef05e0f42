//! What kernel and agent share: the values in the maps.
//!
//! Addresses and ports are in network byte order, everything else in the host's. No type has padding, so that each can be
//! viewed as bytes; a change of any of them is a new [`LAYOUT`].

use core::mem::offset_of;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use crate::hash::Keys;

/// Version of the maps' layout: part of the pin directory's name. The agent adopts only its own, and moves the maps of those
/// before it over if it knows how.
///
/// Whoever changes one of these types counts it up, keeps a reader of the type as it was, and lists the map that it is in with
/// the agent's `dataplane::layouts`. In every layout the keys of `VIPS` and the first two words of a [`Service`] stay what they are,
/// so that any `lbctl` can roll back with any data path.
///
/// The feature `next-layout` makes up a layout that no release has: its types are wider and in another order, so that tests can
/// change from one to the other.
pub const LAYOUT: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };

/// Monotonic time in the tables, in ticks of 2^30 ns (1.07 s): a shift of nanoseconds, where a division would cost more than
/// all of the hashing.
#[must_use]
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// [`ticks`] after which a silent TCP flow may be forgotten: two hours and four minutes (RFC 5382, REQ-5).
pub const TCP_IDLE_TICKS: u32 = ticks((2 * 60 + 4) * 60 * 1_000_000_000);

/// Longest time in [`ticks`] between a SYN and the acknowledgement that ends its handshake, 70 s: a client repeats its SYN for
/// 67 s by default (`tcp_syn_retries = 6`, `tcp_syn_linear_timeouts = 4`), a server its SYN-ACK for 63 s.
pub const HANDSHAKE_TICKS: u32 = 65;

/// Longest time in [`ticks`] that fragments of one packet may be apart: as long as Linux waits for the rest
/// (`ipfrag_time`), about.
pub const FRAGMENT_TICKS: u32 = 30;

/// How far in bytes the first segments after a handshake may run ahead of its initial sequence number, when the one that
/// ends it is lost or late: an initial window of 10 segments (RFC 6928).
///
/// It is also the chance of a spoofed SYN to catch a living flow: 2^14 of 2^32, less than that of a spoofed RST.
pub const HANDSHAKE_WINDOW: u32 = 1 << 14;

/// An address in 16 bytes; IPv4 is v4-mapped (RFC 4291, section 2.5.5.2). The words are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Address([u32; 4]);

impl Address {
    /// From IPv4, as it lies on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)])
    }

    /// From IPv6, as it lies on the wire.
    #[must_use]
    #[inline(always)]
    pub fn v6(octets: &[u8; 16]) -> Self {
        let words: &[[u8; 4]; 4] = bytemuck::cast_ref(octets);
        Self([
            u32::from_ne_bytes(words[0]),
            u32::from_ne_bytes(words[1]),
            u32::from_ne_bytes(words[2]),
            u32::from_ne_bytes(words[3]),
        ])
    }

    /// From words as they lie on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn of_wire_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words as numbers.
    #[must_use]
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let [a, b, c, d] = self.0;
        [u32::from_be(a), u32::from_be(b), u32::from_be(c), u32::from_be(d)]
    }

    /// The four words as they lie on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn wire_words(self) -> [u32; 4] {
        self.0
    }

    /// Whether this is no address at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    /// Whether this is IPv4.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// The bytes of an IPv4 address on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn v4_octets(self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    /// The bytes of an IPv6 address on the wire.
    #[must_use]
    #[inline(always)]
    pub fn v6_octets(self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }

    /// Where this address stands in a [`Filter`].
    #[must_use]
    #[inline(always)]
    pub const fn filter_bit(self) -> u32 {
        let [a, b, c, d] = self.0;
        (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1) >> (32 - FILTER_BITS.trailing_zeros())
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self::v6(&address.octets())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::V4(address.v4_octets().into())
        } else {
            Self::V6(address.v6_octets().into())
        }
    }
}

/// A port, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Port(u16);

impl Port {
    /// Every port; or, where a port would be set, the one that is there.
    pub const ANY: Self = Self(0);

    /// The port of this number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// From a header.
    #[must_use]
    #[inline(always)]
    pub const fn of_wire(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// For a header.
    #[must_use]
    #[inline(always)]
    pub const fn wire(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// Its number.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// Whether it stands for every port.
    #[must_use]
    #[inline(always)]
    pub const fn is_any(self) -> bool {
        self.0 == 0
    }
}

/// Key of `VIPS` (a service's address) and of `REPLIES` (a backend's).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VipKey {
    /// Address.
    pub address: Address,
    /// Port; 0: all of them.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl VipKey {
    /// The key of an address, a port and an IP protocol.
    #[must_use]
    pub fn new(address: IpAddr, port: u16, protocol: u8) -> Self {
        Self { address: address.into(), port: Port::new(port), protocol, pad: 0 }
    }
}

/// Key of `GUESTS` and `RULES`, tries of longest prefixes (the kernel takes `bits` for how much of what follows counts).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct GuestKey {
    /// Bits of service and address that count.
    pub bits: u32,
    /// Index of the service; in `RULES` perhaps a VIP's ([`HOST`](crate::guard::HOST)).
    pub service: u32,
    /// The network; the bits that do not count are zero.
    pub network: Address,
}

impl GuestKey {
    /// The key of a client, to be looked up.
    #[must_use]
    #[inline(always)]
    pub const fn client(service: u32, client: Address) -> Self {
        Self { bits: 32 + 128, service, network: client }
    }

    /// The key of a network of a service; `bits` are those of the address as 16 bytes.
    #[must_use]
    pub const fn network(service: u32, network: Address, bits: u32) -> Self {
        Self { bits: 32 + bits, service, network }
    }
}

/// How many faults there can be at a time.
pub const FAULTS: usize = 8;

/// One element of the one element of `FAULTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fault {
    /// Monotonic nanoseconds after which it is none any more; 0: there is none.
    pub until: u64,
    /// Picks the flows: another number, other flows.
    pub salt: u64,
    /// The network of the clients.
    pub network: Address,
    /// The bits of it that count.
    pub mask: Address,
    /// Index of the service.
    pub service: u32,
    /// The part of new flows, in units of 2^-32; [`Split::ALL`]: all of them.
    pub share: u32,
    /// The pool that they were to go to; 0: any.
    pub pool: u16,
    /// The backend; 0: any.
    pub backend: u16,
    /// [`Fault::RESET`] or [`Fault::DROP`].
    pub action: u32,
}

impl Fault {
    /// The client gets a RST.
    pub const RESET: u32 = 1;
    /// The client gets nothing.
    pub const DROP: u32 = 2;
}

/// Bits of a [`Filter`].
pub const FILTER_BITS: u32 = 1 << 15;

/// A set of addresses that errs on one side: a packet whose address is not in it needs no look-up.
pub type Filter = [u64; (FILTER_BITS / 64) as usize];

/// The one element of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// [`LAYOUT`] of the agent that made the maps.
    pub layout: u32,
    /// [`ticks`] after which a silent UDP flow is forgotten.
    pub udp_idle: u32,
    /// Outer source of IPv4 tunnels: the upper 16 bits; the flow gives the rest.
    pub tunnel_v4: [u8; 4],
    /// Nanoseconds between messages of each kind ([`Message`](crate::guard::Message)) per CPU, beyond a burst; 0: as many as there are.
    pub message_interval: u32,
    /// Outer source of IPv6 tunnels: the upper 96 bits; the flow gives the rest.
    pub tunnel_v6: [u8; 16],
    /// Addresses of services.
    pub vips: Filter,
    /// Addresses of backends whose replies are rewritten (`nat`).
    pub repliers: Filter,
    /// Addresses of this host that stand for clients (`full-nat`).
    pub stand_ins: Filter,
    /// The first and the last port that stands for clients, as numbers.
    pub source_ports: [u16; 2],
    /// CPUs that packets may be processed by: each begins to look for a port in a part of its own.
    pub cpus: u32,
    /// [`ticks`] after which a silent TCP session is forgotten (`full-nat`).
    pub tcp_idle: u32,
    /// How many of `sources` are IPv4.
    pub sources_v4: u32,
    /// How many of `sources` are IPv6.
    pub sources_v6: u32,
    /// Zero.
    pub pad2: u32,
    /// Addresses that stand for clients: IPv4 from index 0 on, IPv6 from [`MAX_SOURCES`] on. Where there is none of a family, each
    /// backend has its own.
    pub sources: [Address; 2 * MAX_SOURCES],
}

/// How many addresses of one family can stand for clients.
pub const MAX_SOURCES: usize = 8;

impl Settings {
    /// An address that stands for a client of `backend`; which one, `hash` says. Unspecified: there is none.
    #[must_use]
    #[inline(always)]
    pub fn source(&self, backend: &Backend, hash: u32) -> Address {
        let (first, count) =
            if backend.address.is_v4() { (0, self.sources_v4) } else { (MAX_SOURCES, self.sources_v6) };
        if count == 0 {
            return backend.source;
        }
        let index = first + ((u64::from(hash) * u64::from(count)) >> 32) as usize;
        self.sources.get(index & (2 * MAX_SOURCES - 1)).copied().unwrap_or_default()
    }

    /// Whether a port may stand for a client.
    #[must_use]
    #[inline(always)]
    pub const fn is_source_port(&self, port: Port) -> bool {
        let [first, last] = self.source_ports;
        first <= port.number() && port.number() <= last
    }
}

/// How a packet gets to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// The destination becomes the backend; its replies come back through here.
    Nat = 1,
    /// The destination MAC becomes the backend's.
    DsrL2 = 2,
    /// The packet is put into another IP packet (RFC 2003, RFC 2473, RFC 4213).
    DsrIpip = 3,
    /// Both ends are rewritten ([`session`](crate::session)).
    FullNat = 4,
    /// The same in a UDP datagram (GUE), to a port that the backend names.
    DsrGue = 5,
}

/// What a new flow gets when no backend may take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnEmpty {
    /// TCP: a RST. UDP: nothing.
    Reset = 1,
    /// Nothing.
    Drop = 2,
    /// The host's own stack.
    Pass = 3,
}

/// One element of `SERVICES`: what every packet needs in the first cache line, what a canary needs in the second, and the
/// rest in the third.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// [`Split`], one word: changed by one store.
    pub split: u64,
    /// The canary's share among flows that are in no table, in units of 2^-32.
    pub split_home: u64,
    /// Monotonic nanoseconds after which the canary takes no new flow; 0: no lease.
    pub lease_until: u64,
    /// First slot of the stable pool's table.
    pub stable_slots: u32,
    /// First slot of the canary pool's table.
    pub canary_slots: u32,
    /// Slots in a table.
    pub table_size: u32,
    /// [`Mode`].
    pub mode: u8,
    /// [`OnEmpty`].
    pub on_empty: u8,
    /// [`Service::TRACK_UDP`], [`Service::AFFINITY`], [`Service::SPLIT_BY_PORTS`], and those of [`Service::ATTENDED`].
    pub flags: u16,
    /// Zero.
    #[cfg(feature = "next-layout")]
    pub wider: [u64; 2],
    /// Keys of the backend hash.
    pub backend_keys: Keys,
    /// Keys of the split hash.
    pub split_keys: Keys,
    /// Bits of the client's address that the split hash sees.
    pub split_mask: [u32; 4],
    /// The address that clients talk to.
    pub vip: Address,
    /// The port that clients talk to; 0: all.
    pub port: Port,
    /// Index of the stable pool.
    pub stable_pool: u16,
    /// Index of the canary pool; 0: there is none.
    pub canary_pool: u16,
    /// Index of its [`Measure`](crate::measure::Measure), if it is measured.
    pub measure: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`OnEmpty`] or [`Service::SPILL`]: what a new flow gets that a limit keeps away.
    pub on_limit: u8,
    /// The largest segment that a SYN may say its sender takes ([`Service::CLAMPED`]).
    pub clamp_mss: u16,
    /// Zero.
    pub pad: u32,
    /// Zero; room for what attended services need.
    pub reserved: [u64; 7],
}

impl Service {
    /// A UDP flow is tracked for as long as it talks.
    pub const TRACK_UDP: u16 = 1;
    /// The backend hash sees the client's address only.
    pub const AFFINITY: u16 = 2;
    /// The split hash sees the ports, too.
    pub const SPLIT_BY_PORTS: u16 = 4;
    /// Handshakes are measured.
    pub const MEASURED: u16 = 8;
    /// What becomes of connections is counted, by backend.
    pub const WATCHED: u16 = 1 << 4;
    /// A SYN that nobody accepts goes elsewhere when its client repeats it.
    pub const RETRIED: u16 = 1 << 5;
    /// Backends or pools have limits ([`limit`](crate::limit)).
    pub const LIMITED: u16 = 1 << 12;
    /// Connections are counted.
    pub const COUNTED: u16 = 1 << 13;
    /// Connection ids name backends ([`quic`](crate::quic)).
    pub const QUIC: u16 = 1 << 14;
    /// SYNs say that their sender takes segments of [`Service::clamp_mss`] at most.
    pub const CLAMPED: u16 = 1 << 9;
    /// Flags that need entries of `HANDSHAKES`.
    pub const HANDSHAKES: u16 = Self::MEASURED | Self::WATCHED | Self::RETRIED | Self::LIMITED;
    /// Flags that may send a flow elsewhere than its slot says.
    pub const DIVERTS: u16 = Self::RETRIED | Self::LIMITED;
    /// Every flow has a session (`full-nat`).
    pub const SESSIONS: u16 = 1 << 15;
    /// Backends are told the client's address in a TCP option (`full-nat`).
    pub const TOA: u16 = 1 << 11;

    /// Some clients belong to the canary as soon as it is open at all: `GUESTS` says who.
    pub const GUESTS: u16 = 1 << 6;
    /// The canary takes so many new connections a second at most; its [`Measure`](crate::measure::Measure) says how many.
    pub const CAPPED: u16 = 1 << 7;
    /// Faults are injected: `FAULTS` says which.
    pub const FAULTS: u16 = 1 << 8;
    /// It has lists or rates ([`guard`](crate::guard)).
    pub const GUARDED: u16 = 1 << 10;

    /// Flags that need more than the bare rule: packets to such a service go through
    /// [`Stage::Attend`](crate::stage::Stage::Attend), and those to all others pay nothing for it.
    pub const ATTENDED: u16 = Self::HANDSHAKES
        | Self::COUNTED
        | Self::GUESTS
        | Self::CAPPED
        | Self::FAULTS
        | Self::CLAMPED
        | Self::SESSIONS
        | Self::GUARDED
        | Self::QUIC;

    /// A value of [`on_limit`](Self::on_limit), beside those of [`OnEmpty`]: another backend takes what one may not have. Where
    /// none may, the flow gets what [`on_empty`](Self::on_empty) says.
    pub const SPILL: u8 = 4;

    /// Whether a flag is set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The split, in one read.
    #[must_use]
    #[inline(always)]
    pub fn split(&self) -> Split {
        Split(volatile(&self.split))
    }

    /// The canary's share among flows that are in no table, in one read.
    #[must_use]
    #[inline(always)]
    pub fn home(&self) -> u32 {
        volatile(&self.split_home) as u32
    }

    /// When the canary's lease ends, in monotonic nanoseconds, in one read; 0: there is none.
    #[must_use]
    #[inline(always)]
    pub fn lease(&self) -> u64 {
        volatile(&self.lease_until)
    }
}

/// `new: u32 | tracked: u32`: shares of the hash space in units of 2^-32.
///
/// Both in one word: a rollback is one store, and no reader sees a `new` without the `tracked` that belongs to it.
/// `u32::MAX` is everything: [`Membership`](crate::select::Membership) never lets a hash be that number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split(pub u64);

impl Split {
    /// Everything.
    pub const ALL: u32 = u32::MAX;

    /// A split whose new flows are divided at `new`, and whose flows below `tracked` may be in `FLOWS`.
    #[must_use]
    #[inline(always)]
    pub const fn of(new: u32, tracked: u32) -> Self {
        Self(new as u64 | (tracked as u64) << 32)
    }

    /// Flows that start now and whose hash is below this go to the canary.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::new_ret_no_self, reason = "new flows, not a new split")]
    pub const fn new(self) -> u32 {
        self.0 as u32
    }

    /// The highest split since everything below it settled.
    #[must_use]
    #[inline(always)]
    pub const fn tracked(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One element of `SLOTS`: `new: u16 | home: u16 | exceptions: u32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(pub u64);

impl Slot {
    /// What the kernel adds to the word to mark a slot: 2, so that a first mark, too, needs two sweeps to go.
    pub const EXCEPTION: u64 = 2 << 32;

    /// A slot of these parts.
    #[must_use]
    #[inline(always)]
    pub const fn of(new: u16, home: u16, exceptions: u32) -> Self {
        Self(new as u64 | (home as u64) << 16 | (exceptions as u64) << 32)
    }

    /// Where flows that start now go; 0: nowhere.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::new_ret_no_self, reason = "new flows, not a new slot")]
    pub const fn new(self) -> u16 {
        self.0 as u16
    }

    /// The backend of flows that are in no table; 0: none.
    #[must_use]
    #[inline(always)]
    pub const fn home(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Twice the flows that were put into a table since the last sweep, plus the changes of this slot; 0: none.
    #[must_use]
    #[inline(always)]
    pub const fn exceptions(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether the flow's hash alone finds its backend.
    #[must_use]
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.exceptions() == 0 && self.new() == self.home()
    }
}

/// Where a frame leaves: `mac: [u8; 6] | device: u16`, one word, changed by one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop(pub u64);

impl NextHop {
    /// Through `device` (an index of `DEVICES`), to `mac`.
    #[must_use]
    pub const fn of(mac: [u8; 6], device: u16) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h] = device.to_ne_bytes();
        Self(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The receiver's hardware address; `None` where it is not known (yet).
    #[must_use]
    #[inline(always)]
    pub const fn mac(self) -> Option<[u8; 6]> {
        if self.0 == 0 {
            return None;
        }
        let [a, b, c, d, e, f, _, _] = self.0.to_ne_bytes();
        Some([a, b, c, d, e, f])
    }

    /// Index of `DEVICES`.
    #[must_use]
    #[inline(always)]
    pub const fn device(self) -> u16 {
        let [_, _, _, _, _, _, g, h] = self.0.to_ne_bytes();
        u16::from_ne_bytes([g, h])
    }
}

/// One element of `BACKENDS`. Id 0 is never used: a slot that names it has no backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// [`Life`], one word.
    pub life: u64,
    /// [`NextHop`], one word.
    pub next_hop: u64,
    /// Its address.
    pub address: Address,
    /// Its port; 0: the client's stays.
    pub port: Port,
    /// Index of its pool in `POOL_TRAFFIC`.
    pub pool: u16,
    /// Index of its service.
    pub service: u32,
    /// The address of this host that stands for its clients (`full-nat`), if none is configured.
    pub source: Address,
    /// UDP port that takes tunnels (`dsr-gue`); 0: they come without UDP.
    pub gue_port: Port,
    /// Zero; fills the cache line.
    pub pad: [u16; 3],
    /// Zero.
    #[cfg(feature = "next-layout")]
    pub wider: [u64; 8],
}

impl Backend {
    /// Generation and state, in one read.
    #[must_use]
    #[inline(always)]
    pub fn life(&self) -> Life {
        Life(volatile(&self.life))
    }

    /// The next hop, in one read.
    #[must_use]
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        NextHop(volatile(&self.next_hop))
    }
}

/// `generation: u32 | usable: u32` of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life(pub u64);

impl Life {
    /// A life of these parts.
    #[must_use]
    pub const fn of(generation: u32, usable: bool) -> Self {
        Self(generation as u64 | (usable as u64) << 32)
    }

    /// Changes whenever the id is reused or the backend's flows are evicted: older entries in `FLOWS` are void.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    /// Whether packets may go there at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_usable(self) -> bool {
        self.0 >> 32 != 0
    }
}

/// How many elements `DEVICES` has.
pub const DEVICES: u32 = 256;

/// One element of `DEVICES`: an interface through which frames leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Device {
    /// Interface index; 0: unused.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: u32,
}

/// Key of `FLOWS`, `UDP_FLOWS`, `HALF_OPEN` (with the service's index) and `DIRECT` (with the backend's id).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FlowKey {
    /// The client.
    pub client: Address,
    /// The client's port.
    pub client_port: Port,
    /// The port that the client talks to.
    pub port: Port,
    /// Service or backend.
    pub owner: u32,
}

impl FlowKey {
    /// Both ports as the hashes see them.
    #[must_use]
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        (self.client_port.number() as u32) << 16 | self.port.number() as u32
    }
}

/// Value of `FLOWS` and `UDP_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// Where the flow goes.
    pub backend: u16,
    /// Zero.
    pub pad: u16,
    /// The backend's generation when the flow was put here.
    pub generation: u32,
    /// When it last talked, in [`ticks`].
    pub seen: u32,
    /// Zero.
    #[cfg(feature = "next-layout")]
    pub wider: u32,
}

impl FlowEntry {
    /// A flow to a backend of this generation, that talked at `seen`.
    #[must_use]
    #[inline(always)]
    pub const fn of(backend: u16, generation: u32, seen: u32) -> Self {
        Self {
            #[cfg(feature = "next-layout")]
            wider: 0,
            backend,
            pad: 0,
            generation,
            seen,
        }
    }
}

/// Value of `HALF_OPEN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HalfOpen {
    /// The choice made for the SYN.
    pub backend: u16,
    /// Zero.
    pub pad: u16,
    /// The backend's generation then.
    pub generation: u32,
    /// The SYN's sequence number.
    pub sequence: u32,
    /// When, in [`ticks`].
    pub at: u32,
}

/// Value of `REPLIES`: whose replies a `nat` backend's packets are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Replier {
    /// Index of the service.
    pub service: u32,
    /// The backend.
    pub backend: u16,
    /// Zero.
    pub pad: u16,
    /// When a client last talked to the backend past the VIP, in [`ticks`]; 0: never, which needs no look-up.
    pub direct: u32,
}

/// Key of `FRAGMENTS`: what all fragments of a packet share (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FragmentKey {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// Identification, in network byte order.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `FRAGMENTS`: where a packet's first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentEntry {
    /// To or from this backend.
    pub backend: u16,
    /// [`FragmentEntry::TO_BACKEND`] and the following.
    pub way: u16,
    /// The backend's generation then.
    pub generation: u32,
    /// When, in [`ticks`].
    pub at: u32,
    /// Part of the flow's hash, which the tunnel's outer source is made from.
    pub spread: u32,
}

impl FragmentEntry {
    /// A request.
    pub const TO_BACKEND: u16 = 0;
    /// A `nat` backend's reply.
    pub const TO_CLIENT: u16 = 1;
    /// Either way in a session (`full-nat`): `spread` has the sender's port above the receiver's, as numbers.
    pub const SESSION: u16 = 2;
}

/// Value of `POOL_TRAFFIC` and `BACKEND_TRAFFIC`, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets from clients.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// TCP flows begun; UDP's in `full-nat` only, as elsewhere nothing tells which datagram is the first.
    pub connections: u64,
    /// Packets from backends (`nat`).
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

impl core::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.connections += other.connections;
        self.reply_packets += other.reply_packets;
        self.reply_bytes += other.reply_bytes;
    }
}

/// What the kernel tells the agent through `WANTED`: a neighbour it had no hardware address for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Wanted {
    /// The neighbour.
    pub address: Address,
    /// The interface it is on.
    pub ifindex: u32,
    /// Zero.
    pub pad: u32,
}

/// Reads a word that the agent changes while the program runs.
///
/// (BPF below v4 has no atomic loads; an aligned 8-byte load is one instruction and cannot tear.)
#[inline(always)]
fn volatile(word: &u64) -> u64 {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(word) }
}

const _: () = {
    // (One that is made up for tests may be slower.)
    let made_up = cfg!(feature = "next-layout");
    assert!(size_of::<Service>() == 192 || made_up, "three cache lines");
    assert!(offset_of!(Service, split_keys) == 64 || made_up, "what every packet needs is in the first");
    assert!(offset_of!(Service, protocol) == 128 || made_up, "what a canary needs is in the second");
    assert!(size_of::<Backend>() == 64 || made_up, "one cache line");
    assert!(offset_of!(Service, split) == 0 && offset_of!(Service, split_home) == 8, "in every layout");
    assert!(size_of::<VipKey>() == 20 && size_of::<FlowKey>() == 24);
    assert!(size_of::<Device>() == 16);
    assert!(size_of::<Fault>() == 64, "one cache line");
    assert!(size_of::<GuestKey>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["203.0.113.10", "2001:db8::1", "::", "0.0.0.0", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
        assert_eq!(Address::v4([1, 2, 3, 4]).words(), [0, 0, 0xffff, 0x0102_0304]);
    }

    #[test]
    fn words_keep_their_parts_apart() {
        let slot = Slot::of(0x1122, 0x3344, 0x5566_7788);
        assert_eq!((slot.new(), slot.home(), slot.exceptions()), (0x1122, 0x3344, 0x5566_7788));
        assert_eq!(Slot(slot.0 + Slot::EXCEPTION).exceptions(), 0x5566_778a);
        assert!(
            Slot::of(3, 3, 0).is_settled()
                && !Slot::of(3, 4, 0).is_settled()
                && !Slot::of(3, 3, 1).is_settled()
        );
        let split = Split::of(7, 9);
        assert_eq!((split.new(), split.tracked()), (7, 9));
        let hop = NextHop::of([1, 2, 3, 4, 5, 6], 0x0807);
        assert_eq!((hop.mac(), hop.device()), (Some([1, 2, 3, 4, 5, 6]), 0x0807));
        assert_eq!(NextHop::default().mac(), None);
        let life = Life::of(u32::MAX, false);
        assert_eq!((life.generation(), life.is_usable()), (u32::MAX, false));
        assert!(Life::of(0, true).is_usable());
    }
}
