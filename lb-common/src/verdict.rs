//! Why a packet's road ended where it did, and the only table from reasons to actions.

use crate::abi::Backend;
use crate::parse::Network;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Up to the host's own stack, as it came.
    Pass,
    /// Nowhere.
    Drop,
    /// Out, rewritten.
    Transmit,
}

impl Action {
    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Transmit => "transmit",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $reason:ident = $action:ident $name:literal,)+) => {
        /// Why a packet's road ended. Each reason has a counter, a name and one action.
        ///
        /// As wide as a register: in a `Result` a narrower one would lie over part of a payload's first word, which LLVM
        /// then takes apart and spills in unaligned pieces; the verifier refuses those.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u64)]
        pub enum Reason { $($(#[doc = $doc])+ $reason,)+ }

        impl Reason {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// That of a number; [`NoTable`](Self::NoTable) for one that is none's.
            #[must_use]
            #[inline(always)]
            pub const fn of(number: u64) -> Self {
                match number {
                    $(number if number == Self::$reason as u64 => Self::$reason,)+
                    _ => Self::NoTable,
                }
            }

            /// The only reason-to-action table.
            #[must_use]
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$reason => Action::$action,)+ }
            }

            /// Its name in metrics and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $name,)+ }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$reason => concat!($($doc,)+),)+ }
            }
        }
    };
}

reasons! {
    /// To a backend.
    Forwarded = Transmit "forwarded",
    /// From a backend back to its client, with the VIP as its source.
    Replied = Transmit "replied",
    /// From a backend back to its client, with the VIP as its source, by the host: it finds the next hop's hardware address.
    RepliedByHost = Pass "replied_by_host",
    /// A RST to the client: no backend may take its flow.
    Reset = Transmit "reset",
    /// A RST to the client: its segment belongs to no session (`full-nat`).
    NoSessionReset = Transmit "no_session_reset",
    /// A RST to the client: no port is left that could stand for it (`full-nat`).
    NoPortReset = Transmit "no_port_reset",
    /// A RST to the client: a fault that was injected (`lbctl fault`).
    FaultReset = Transmit "fault_reset",
    /// An ICMP error about a backend's packet, to that backend.
    ErrorForwarded = Transmit "error_forwarded",
    /// An ICMP error about a client's packet to a backend, to that client, from the VIP.
    ErrorReplied = Transmit "error_replied",
    /// The same, by the host: it finds the next hop's hardware address.
    ErrorRepliedByHost = Pass "error_replied_by_host",
    /// A fragment, to its packet's backend.
    FragmentForwarded = Transmit "fragment_forwarded",
    /// A fragment of a backend's reply, to the client, with the VIP as its source.
    FragmentReplied = Transmit "fragment_replied",
    /// The same, by the host: it finds the next hop's hardware address.
    FragmentRepliedByHost = Pass "fragment_replied_by_host",
    /// "Fragmentation needed" or "packet too big" to the sender of a packet that does not fit where it would leave.
    TooBigTold = Transmit "too_big_told",
    /// Neither IPv4 nor IPv6.
    NotIp = Pass "not_ip",
    /// A header that contradicts itself or the frame's length; the host's stack judges and counts it.
    Malformed = Pass "malformed",
    /// Neither to a service nor from a backend.
    NotOurs = Pass "not_ours",
    /// To or from an address of ours, but neither TCP nor UDP.
    OtherProtocol = Pass "other_protocol",
    /// A fragment of something other than TCP or UDP.
    Fragment = Pass "fragment",
    /// A fragment that came before the first of its packet, or long after it: nobody knows whose it is.
    FragmentUnknown = Pass "fragment_unknown",
    /// Between a client and a backend past the VIP.
    Direct = Pass "direct",
    /// From a backend to this host itself.
    Local = Pass "local",
    /// Its time to live is over.
    TtlExpired = Pass "ttl_expired",
    /// No backend may take it, and the service passes such flows to the host.
    EmptyPass = Pass "empty_pass",
    /// No backend may take it.
    NoBackend = Drop "no_backend",
    /// It belongs to no session (`full-nat`).
    NoSession = Drop "no_session",
    /// No port is left that could stand for its client (`full-nat`).
    NoPort = Drop "no_port",
    /// Its backend was taken out in this very moment.
    BackendGone = Drop "backend_gone",
    /// The next hop's hardware address is not known yet.
    NoNeighbour = Drop "no_neighbour",
    /// No route to the client; in `full-nat` also if this host's `forwarding` sysctl is off on that interface.
    NoRoute = Drop "no_route",
    /// From a backend, where this host's `forwarding` sysctl is off: the host takes what is for itself, and drops the rest.
    ForwardingOff = Pass "forwarding_off",
    /// Longer than the interface that it would leave by allows, and the sender was not told: it had no address to be told at, or
    /// too many were told already.
    TooBig = Drop "too_big",
    /// The driver left no room for another header.
    NoHeadroom = Drop "no_headroom",
    /// A backend's refusal: its client is not told, asks again, and gets another backend.
    RefusalKept = Drop "refusal_kept",
    /// What a backend says to a client that was sent elsewhere, since it had said nothing for so long.
    Superseded = Drop "superseded",
    /// A RST to the client: its backend or pool has as many connections as it may have.
    LimitReset = Transmit "limit_reset",
    /// Its backend or pool has as many connections as it may have.
    LimitDrop = Drop "limit_drop",
    /// A table that must be there is not: the agent has not finished its work.
    NoTable = Drop "no_table",
    /// A fault that was injected (`lbctl fault`).
    FaultDrop = Drop "fault_drop",
    /// Its sender's network is denied by the service, or not among those that it allows.
    Denied = Drop "denied",
    /// A new connection beyond what its source may begin.
    SourceConnections = Drop "rate_limited_source_connections",
    /// A packet beyond what its source may send.
    SourcePackets = Drop "rate_limited_source_packets",
    /// A new connection beyond what the service takes.
    ServiceConnections = Drop "rate_limited_service_connections",
    /// A packet beyond what the service takes.
    ServicePackets = Drop "rate_limited_service_packets",
    /// To a VIP, from an address that no host has, or in a frame from or to many where it would be answered; to anybody, from a
    /// v4-mapped address in IPv6.
    Martian = Drop "martian",
    /// To a VIP, from the VIP itself.
    Land = Drop "land",
    /// A RST would answer it, but too many were sent already.
    ResetSuppressed = Drop "reset_suppressed",
    /// The host would answer it in the name of a VIP, but it was asked too often already.
    EchoSuppressed = Drop "echo_suppressed",
    /// A SYN in fragments, to a service that looks at how connections begin: no client of today sends one.
    FragmentedSyn = Drop "fragmented_syn",
    /// To a VIP, the first of several fragments, but without a whole TCP or UDP header (RFC 1858): whoever puts it together would see what
    /// nobody has looked at.
    TinyFragment = Drop "tiny_fragment",
    /// A client's segment with the option that tells its backend whose it is (`full-nat` with `toa`): who would believe it?
    ForgedAddress = Drop "forged_address",
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $event:ident = $name:literal,)+) => {
        /// What happened on the way; counted beside the reasons.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Event { $($(#[doc = $doc])+ $event,)+ }

        impl Event {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$event,)+];

            /// Its name in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$event => $name,)+ }
            }
        }
    };
}

events! {
    /// A decision that needed more than the flow's hash.
    SlowPath = "slow_path",
    /// A flow was put into `FLOWS` that was not there.
    FlowTracked = "flow_tracked",
    /// A flow was put into `UDP_FLOWS` that was not there.
    UdpFlowTracked = "udp_flow_tracked",
    /// A flow could not be put into its table.
    TrackFailed = "track_failed",
    /// A handshake under way was noted in `HALF_OPEN`.
    HandshakeNoted = "handshake_noted",
    /// A canary's lease had run out when a new flow asked for it.
    LeaseExpired = "lease_expired",
    /// A session has proven itself (`full-nat`).
    SessionEstablished = "session_established",
    /// A session has proven itself, and there was no room for it (`full-nat`).
    SessionsFull = "sessions_full",
    /// A first fragment left a note for those that follow it.
    FragmentsNoted = "fragments_noted",
    /// The tripwire of a canary was crossed.
    Tripped = "tripped",
    /// A connection that nobody had accepted was sent elsewhere.
    Retried = "retried",
    /// It would have been, but for the budget of retries.
    RetryDenied = "retry_denied",
    /// A new flow of the canary went to the stable pool, since the canary had as many as it may.
    Capped = "capped",
    /// A datagram went to the backend that its connection id names.
    QuicById = "quic_by_id",
    /// A datagram that opens a QUIC connection went by the ordinary rule: its id is the client's own.
    QuicOpening = "quic_opening",
    /// A connection id named nobody: its datagram went by the ordinary rule.
    QuicUnknown = "quic_unknown",
    /// A connection id named a backend that takes no datagram by it any more: it went by the ordinary rule.
    QuicVoid = "quic_void",
}

impl Event {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// Value of `COUNTERS`, per CPU and interface ([`Counters::place`]): how often each road ended, and what happened on the way (of all
/// interfaces together, in the first element).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Counters {
    /// By [`Reason`].
    pub reasons: [u64; Reason::COUNT],
    /// By [`Event`].
    pub events: [u64; Event::COUNT],
}

impl Counters {
    /// How many interfaces are counted apart.
    pub const PLACES: u32 = 64;

    /// Where packets that came in by an interface are counted. Interfaces whose numbers end alike share a place: what is exact would cost each
    /// packet a look-up.
    #[must_use]
    #[inline(always)]
    pub const fn place(ifindex: u32) -> u32 {
        ifindex % Self::PLACES
    }
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.reasons.iter_mut().zip(other.reasons).for_each(|(sum, count)| *sum += count);
        self.events.iter_mut().zip(other.events).for_each(|(sum, count)| *sum += count);
    }
}

impl Default for Counters {
    fn default() -> Self {
        bytemuck::Zeroable::zeroed()
    }
}

/// The end of a packet's road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// The interface to leave by, for what is transmitted.
    pub ifindex: u32,
    /// What to count beside the reason. (No `Option`: LLVM moves the payload of a `None` around, and the verifier refuses
    /// to read what was never written.)
    pub account: Account,
}

impl Verdict {
    /// A verdict that needs no more than its reason.
    #[must_use]
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self { reason, ifindex: 0, account: Account::NONE }
    }

    /// Whether it goes from a backend to a client.
    #[must_use]
    #[inline(always)]
    pub const fn is_reply(&self) -> bool {
        matches!(
            self.reason,
            Reason::Replied | Reason::RepliedByHost | Reason::FragmentReplied | Reason::FragmentRepliedByHost
        )
    }
}

/// On whose account a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Backend id; 0: nobody's.
    pub backend: u16,
    /// Index of its pool.
    pub pool: u16,
    /// Length of the frame as it came, in bytes.
    pub bytes: u32,
    /// 1 if a flow begins with it, else 0.
    ///
    /// As wide as its neighbours: LLVM would fill the gap behind a `bool` in pieces that the verifier refuses.
    pub begins: u32,
}

impl Account {
    /// Nobody's.
    pub const NONE: Self = Self { backend: 0, pool: 0, bytes: 0, begins: 0 };

    /// That of a backend with this id.
    #[must_use]
    #[inline(always)]
    pub const fn of(id: u16, backend: &Backend, network: &Network, begins: bool) -> Self {
        Self { backend: id, pool: backend.pool, bytes: network.end as u32, begins: begins as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_its_counter_and_a_name_of_its_own() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::of(i as u64), *reason);
            assert!(!reason.meaning().is_empty());
        }
        for (i, event) in Event::ALL.iter().enumerate() {
            assert_eq!(*event as usize, i);
        }
        let names: HashSet<_> =
            Reason::ALL.iter().map(|r| r.name()).chain(Event::ALL.iter().map(|e| e.name())).collect();
        assert_eq!(names.len(), Reason::COUNT + Event::COUNT);
    }
}
