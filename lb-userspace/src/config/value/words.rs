//! The words of the configuration.

use crate::config::read::words;

words! {
    /// Where in the receive path the program sits.
    XdpMode, "an XDP mode" {
        /// The driver's, if it has one; else generic, with a warning.
        Auto = "auto",
        /// In the driver, before the kernel has made a packet buffer.
        Native = "native",
        /// In the kernel, after the driver: works everywhere, slower.
        Generic = "generic",
    }
}

words! {
    /// What a service's clients speak.
    Protocol, "a protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

words! {
    /// How a packet reaches the backend.
    Mode, "a forwarding mode" {
        /// Rewrites the destination, and the source of replies, which are routed through the balancer.
        Nat = "nat",
        /// Rewrites the destination MAC only: same segment, VIP on the backend's loopback.
        DsrL2 = "dsr-l2",
        /// Wraps it into IPv4 or IPv6; the backend unwraps it and answers the client itself.
        DsrIpip = "dsr-ipip",
        /// The same in UDP (GUE), to the port `gue_port`.
        DsrGue = "dsr-gue",
        /// Rewrites both ends: the client's becomes an address and a port of the balancer.
        FullNat = "full-nat",
    }
}

impl Mode {
    /// Whether the backend sees the packet as the client sent it and answers past the balancer.
    pub const fn is_dsr(self) -> bool {
        match self {
            Self::Nat | Self::FullNat => false,
            Self::DsrL2 | Self::DsrIpip | Self::DsrGue => true,
        }
    }
}

words! {
    /// What decides whether a flow belongs to the canary.
    SplitKey, "a split key" {
        /// The client's address: a client stays in its version.
        SourceIp = "source-ip",
        /// The client's network: /24 of IPv4, /56 of IPv6.
        SourceNet = "source-net",
        /// Both addresses and ports: each connection anew.
        FiveTuple = "5-tuple",
    }
}

words! {
    /// What decides which backend of a pool a flow goes to.
    BackendKey, "a backend key" {
        /// Both addresses and ports: each connection anew.
        FiveTuple = "5-tuple",
        /// The client's address: a client stays on its backend.
        SourceIp = "source-ip",
    }
}

words! {
    /// Whether flows stay where they are when the tables change.
    Tracking, "a kind of tracking" {
        /// A flow keeps its backend as long as it talks.
        Flow = "flow",
        /// Every datagram follows the table as it is now. UDP only.
        None = "none",
    }
}

words! {
    /// What happens to the established flows of a backend that health took out.
    OnDown, "a policy for backends that went down" {
        /// They stay on it.
        Keep = "keep",
        /// They move, and the new backend resets them.
        Reset = "reset",
    }
}

words! {
    /// What a new flow gets when no backend may take it.
    OnEmpty, "a policy for pools without a usable backend" {
        /// A TCP reset, or ICMP port unreachable.
        Reset = "reset",
        /// Nothing.
        Drop = "drop",
        /// The host's own network stack.
        Pass = "pass",
    }
}

words! {
    /// What the operator wants of a backend.
    AdminState, "a state" {
        /// It takes flows.
        Ready = "ready",
        /// It keeps its flows and takes no new ones.
        Drain = "drain",
        /// It gets nothing at all.
        Maint = "maint",
    }
}

words! {
    /// How a backend's health is asked for.
    Check, "a type of health check" {
        /// It connects.
        Tcp = "tcp",
        /// It asks for a resource and looks at the status.
        Http = "http",
        /// The same within TLS.
        Https = "https",
        /// It asks `grpc.health.v1`, which says SERVING.
        Grpc = "grpc",
        /// The same within TLS.
        Grpcs = "grpcs",
        /// It sends a datagram and waits for another one.
        Udp = "udp",
        /// It runs a command, which exits with 0.
        Exec = "exec",
        /// It doesn't: every backend counts as healthy.
        None = "none",
    }
}

impl Check {
    /// Whether it asks over HTTP and looks at the answer.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// Whether it asks for the health of a gRPC service.
    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }

    /// Whether it speaks TLS.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }
}

words! {
    /// What a health check's packets are addressed to, and which way they go.
    Via, "a way for health checks" {
        /// The backend's own address, as this host routes it.
        Address = "address",
        /// The VIP, on that backend: as the packets of clients go there. In the `dsr` modes.
        Vip = "vip",
    }
}

words! {
    /// Whether a check within TLS verifies the certificate.
    Verify, "a way to verify certificates" {
        /// It has to be for the name, and by an authority that is trusted.
        Required = "required",
        /// Any certificate will do.
        None = "none",
    }
}
