//! What is told of packets while somebody traces: of each that the filter matches how it came, and what became of it.
//!
//! The kernel program has this only in a build of its own, which takes the place of the other one for as long as
//! somebody asks. It looks at a packet before the road begins, and again where the road ends; a number connects the two.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, Port};
use crate::parse::{Network, network, transport};
use crate::pipeline::Packet;

/// Bytes of a packet that are told: headers.
pub const SHORT: usize = 216;
/// Bytes of a packet that are told, if somebody captures: all of one of an Ethernet's length.
pub const LONG: usize = 1_984;

/// Which packets, and for how long: the element of `TRACE_FILTER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Filter {
    /// Monotonic nanoseconds after which nothing is told.
    pub until: u64,
    /// One end of the packet, as far as `mask` has bits.
    pub address: Address,
    /// In the same form: no bit is any address.
    pub mask: Address,
    /// One end's port; 0: any.
    pub port: Port,
    /// TCP's or UDP's number, or another one's; 0: any.
    pub protocol: u8,
    /// Not 0: [`LONG`] instead of [`SHORT`].
    pub long: u8,
    /// Zero.
    pub pad: u32,
}

impl Filter {
    /// Whether it matches every packet, even those that are not IP.
    #[must_use]
    #[inline(always)]
    pub fn is_any(&self) -> bool {
        let [a, b, c, d] = self.mask.wire_words();
        a | b | c | d == 0 && self.port.is_any() && self.protocol == 0
    }

    /// Whether a packet is one of those.
    #[inline(always)]
    pub fn matches<P: Packet>(&self, packet: &P) -> bool {
        if self.is_any() {
            return true;
        }
        let Ok(network) = network(packet) else { return false };
        if !self.names(network.source) && !self.names(network.destination) {
            return false;
        }
        if self.protocol != 0 && self.protocol != network.protocol {
            return false;
        }
        self.port.is_any() || self.has_port(packet, &network)
    }

    #[inline(always)]
    fn has_port<P: Packet>(&self, packet: &P, network: &Network) -> bool {
        match transport(packet, network) {
            Ok(transport) => transport.source == self.port || transport.destination == self.port,
            Err(_) => false,
        }
    }

    #[inline(always)]
    fn names(&self, address: Address) -> bool {
        let (ours, mask, theirs) = (self.address.wire_words(), self.mask.wire_words(), address.wire_words());
        (ours[0] ^ theirs[0]) & mask[0] == 0
            && (ours[1] ^ theirs[1]) & mask[1] == 0
            && (ours[2] ^ theirs[2]) & mask[2] == 0
            && (ours[3] ^ theirs[3]) & mask[3] == 0
    }
}

/// What a record of `TRACED` begins with. The packet's bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// Monotonic nanoseconds.
    pub at: u64,
    /// The same for all that is told of a packet: its CPU and a count.
    pub number: u64,
    /// The interface it came in by, or leaves by; 0: it leaves by none of the program's doing.
    pub ifindex: u32,
    /// Length of the frame.
    pub length: u32,
    /// [`Head::ARRIVES`], [`Head::GOES_ON`] plus the number of a stage, or the number of the reason for which its road ends.
    pub what: u32,
    /// Backend id; 0: none.
    pub backend: u16,
    /// Index of its pool.
    pub pool: u16,
    /// Whether a flow begins with it.
    pub begins: u32,
    /// How many points this CPU could not tell so far, for want of room in the ring.
    pub lost: u32,
}

impl Head {
    /// The packet has arrived.
    pub const ARRIVES: u32 = u32::MAX;
    /// The packet goes on to a stage.
    pub const GOES_ON: u32 = 1 << 16;
}

/// A whole record: `N` is [`SHORT`] or [`LONG`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record<const N: usize> {
    /// What it is.
    pub head: Head,
    /// The first bytes of the frame.
    pub bytes: [u8; N],
}

const _: () = {
    // The ring gives room in multiples of 8 bytes.
    assert!(size_of::<Record<SHORT>>() == 256);
    assert!(size_of::<Record<LONG>>() == 2_024);
    assert!(size_of::<Head>() == 40);
};

/// What the kernel program remembers of the packet that a CPU has in hand: an element of `TRACE_STATE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct State {
    /// How many packets this CPU has seen.
    pub count: u64,
    /// Whether this one is told of.
    pub matched: u32,
    /// How many points found no room.
    pub lost: u32,
}
