//! Protection: who may talk to a service, and how much.

use ipnet::IpNet;

use super::read::{List, Maybe, table};
use super::value::{Count, Prefix};

/// More than any link carries.
const PACKETS: u32 = 1_000_000_000;

table! {
    /// Who may talk to a service, and how much. What is beyond is dropped and never answered: the sender of a flood is made up.
    Protection from ProtectionDraft "[service.protection]" {
        /// Networks whose clients may talk to it, and no others. Without any, everybody may who is not denied. Where networks of
        /// `allow` and `deny` lie in each other, the smallest one counts.
        allow: Vec<IpNet> as List<Prefix> = Vec::new(),
        /// Networks whose clients may not talk to it; that goes for connections that are there, too.
        deny: Vec<IpNet> as List<Prefix> = Vec::new(),
        /// New TCP connections that all clients may begin in a second. Connections that are there do not count.
        max_new_per_second: Option<u32> as Maybe<Count<1, 10_000_000>> = None,
        /// How many of them at once after a silence; as many as in a second if it is left out.
        new_burst: Option<u32> as Maybe<Count<1, 100_000_000>> = None,
        /// Packets that all clients may send in a second.
        max_packets_per_second: Option<u32> as Maybe<Count<1, PACKETS>> = None,
        /// How many of them at once after a silence; as many as in a second if it is left out.
        packet_burst: Option<u32> as Maybe<Count<1, PACKETS>> = None,
        /// New TCP connections that each source may begin in a second.
        source_max_new_per_second: Option<u32> as Maybe<Count<1, 10_000_000>> = None,
        /// How many of them at once after a silence; as many as in a second if it is left out.
        source_new_burst: Option<u32> as Maybe<Count<1, 100_000_000>> = None,
        /// Packets that each source may send in a second.
        source_max_packets_per_second: Option<u32> as Maybe<Count<1, PACKETS>> = None,
        /// How many of them at once after a silence; as many as in a second if it is left out.
        source_packet_burst: Option<u32> as Maybe<Count<1, PACKETS>> = None,
        /// Bits of an IPv4 client's address that say which source it is of.
        source_prefix_v4: u32 as Count<1, 32> = 32,
        /// Bits of an IPv6 client's address that say which source it is of: one site has all of a /64 at least.
        source_prefix_v6: u32 as Count<1, 128> = 64,
    }
}
