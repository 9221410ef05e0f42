//! The data path in stages: each is a program of its own in the kernel, reached by a tail call.
//!
//! Every packet meets the first program ([`enter`](crate::pipeline::enter)), which finds its service and forwards it by the
//! bare rule. Whatever needs more than that goes on to a [`Stage`], so that it costs those nothing that need it not: neither
//! the instructions, nor the registers that they would keep busy, nor the verifier's patience with their product.
//!
//! A stage starts from the packet as it came, and parses it again. Nothing is handed over: a stage can be verified, tested
//! and replaced by itself, and parsing costs less than the memory that the results would go through.
//!
//! The way through the stages has no loop, so that it ends (the kernel allows 33 tail calls).

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $stage:ident = $program:literal,)+) => {
        /// What follows the first program, by its index in `STAGES`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Stage { $($(#[doc = $doc])+ $stage,)+ }

        impl Stage {
            /// All of them, in the order of their indexes.
            pub const ALL: &[Self] = &[$(Self::$stage,)+];

            /// The name of its program.
            #[must_use]
            pub const fn program(self) -> &'static str {
                match self { $(Self::$stage => $program,)+ }
            }
        }
    };
}

stages! {
    /// From or to a backend's own address: replies to clients, and what goes past the VIP. ([`reply`](crate::reply))
    Reply = "lb_reply",
    /// To a service that has more than the bare rule. ([`attend`](crate::attend))
    Attend = "lb_attend",
    /// To a service of mode `full-nat`, or to an address that stands for its clients. ([`session`](crate::session))
    Session = "lb_session",
    /// Whatever of that no established session takes. ([`session::opening`](crate::session::opening))
    Opening = "lb_opening",
    /// A client without a session. ([`session::begin`](crate::session::begin))
    Begin = "lb_begin",
    /// A packet of a session whose service is measured. ([`session::witness`](crate::session::witness))
    Witness = "lb_witness",
    /// What these have found or made a session for. ([`session::carry`](crate::session::carry))
    Carry = "lb_carry",
    /// ICMP: errors about flows follow them. ([`icmp`](crate::icmp))
    Icmp = "lb_icmp",
    /// A fragment, from or to an address that may be a service's or a backend's. ([`fragment`](crate::fragment))
    Fragment = "lb_fragment",
    /// A fragment that is for no service. ([`fragment`](crate::fragment))
    FragmentReply = "lb_fragment_reply",
    /// A packet that does not fit where it would leave: its sender is told. ([`too_big`](crate::too_big))
    TooBig = "lb_too_big",
    /// An ICMP error about a session. ([`session::session_icmp`](crate::session::session_icmp))
    SessionIcmp = "lb_session_icmp",
    /// A fragment of a session's packet. ([`session::session_fragment`](crate::session::session_fragment))
    SessionFragment = "lb_session_fragment",
    /// To a service that has lists or rates. ([`guard`](crate::guard))
    Guard = "lb_guard",
    /// To a VIP, from nobody; or for the host behind it, if it may have it. ([`guard::host`](crate::guard::host))
    Host = "lb_host",
    /// To a service whose backends are named by connection ids. ([`quic`](crate::quic))
    Quic = "lb_quic",
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_found_by_its_index() {
        for (index, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, index);
            assert!(stage.program().starts_with("lb_"));
        }
    }
}
