//! Every table and key of the configuration: names, types, defaults and documentation.
//!
//! This list is the only one. The types below, the reader, the canonical form, the JSON Schema and the suggestions for
//! mistyped names are made from it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::discovery::{Discovery, DiscoveryDraft};
use super::health::Health;
use super::passive::{
    Breaker, BreakerDraft, Limits, LimitsDraft, Outlier, OutlierDraft, Retry, RetryDraft, Steering,
    SteeringDraft,
};
use super::protection::{Protection, ProtectionDraft};
use super::quic::{Quic, QuicConfigDraft, QuicDraft};
use super::read::{Field, List, Maybe, Place, Table, Tables, draft, table};
use super::rollout::Rollout;
use super::value::*;

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
/// More than the memory of any machine has room for, and far below what overflows.
const ROOM: u32 = 1 << 27;

table! {
    /// The configuration of a balancer.
    Config from ConfigDraft "" {
        /// Version of the configuration language.
        schema: Schema as Schema,
        /// Where packets arrive, and for how much there is room.
        dataplane: Dataplane as Dataplane,
        /// What clients talk to.
        services @ "service": Vec<Service> as Tables<Service> = Vec::new(),
    }
}

table! {
    /// Where packets arrive, and for how much there is room.
    Dataplane from DataplaneDraft "[dataplane]" {
        /// Interfaces whose packets are balanced.
        interfaces: Vec<InterfaceName> as List<InterfaceName>,
        /// Where in the receive path the program sits.
        xdp_mode: XdpMode as XdpMode = XdpMode::Auto,
        /// Room for tracked TCP flows. The least recently used one goes when it is full.
        flows: u32 as Count<1, ROOM> = 1_048_576,
        /// Room for handshakes under way in slots that are changing.
        half_open: u32 as Count<1, ROOM> = 131_072,
        /// Room for tracked UDP flows.
        udp_flows: u32 as Count<1, ROOM> = 262_144,
        /// Room for established sessions of mode `full-nat`.
        sessions: u32 as Count<1, ROOM> = 131_072,
        /// Room for the slots of all tables, 8 bytes each.
        slots: u32 as Count<1, ROOM> = 4_194_304,
        /// Room for backends.
        backends: u32 as Count<1, 65_535> = 16_384,
        /// Room for services.
        services: u32 as Count<1, 65_535> = 4_096,
        /// Room for the networks that services allow and deny: each once for the service, and once for its VIP.
        prefixes: u32 as Count<1, ROOM> = 16_384,
        /// Room for sources of clients whose services have rates for each. The least recently used one goes when it is full,
        /// and begins anew.
        rate_limited_sources: u32 as Count<1, ROOM> = 65_536,
        /// Secret of the hashes, 32 hexadecimal digits; the same on every balancer of a fleet. Drawn at random and kept
        /// if there is none.
        hash_seed: Option<Seed> as Maybe<Seed> = None,
        /// Outer IPv4 source addresses of tunnels; which one follows from the flow, so that backends spread the load over
        /// their receive queues.
        tunnel_source_v4: Ipv4Net as Prefix4 = Ipv4Net::new_assert([172, 16, 0, 0].into(), 16),
        /// Outer IPv6 source addresses of tunnels, likewise.
        tunnel_source_v6: Ipv6Net as Prefix6 = Ipv6Net::new_assert([0x100, 0, 0, 0, 0, 0, 0, 0].into(), 64),
        /// How long an established TCP flow may be silent while its slot changes and still keep its backend.
        drain: Duration as Time<100, { 7 * 24 * HOUR }> = Duration::from_secs(15 * 60),
        /// How long a tracked UDP flow may be silent and still keep its backend.
        udp_idle: Duration as Time<SECOND, HOUR> = Duration::from_secs(30),
        /// Addresses that stand for clients in mode `full-nat`, up to 8 of each family. The host gets those that it does not have,
        /// on the first interface. Without any of a family, it is the address that the host itself would send from.
        snat_addresses: Vec<IpAddr> as List<Unicast> = Vec::new(),
        /// Ports that stand for clients in mode `full-nat`: so many sessions at a time with each backend, for each address. The
        /// host's own connections must not use them.
        snat_ports: PortRange as PortRange = PortRange::DEFAULT,
        /// How long an established TCP session of mode `full-nat` may be silent before it is forgotten.
        tcp_idle: Duration as Time<{ 60 * SECOND }, { 7 * 24 * HOUR }> = Duration::from_secs((2 * 60 + 4) * 60),
        /// Whether the host gets the VIPs, on the first interface. Without that somebody else moves them here and away (keepalived,
        /// a routing daemon), and packets are balanced wherever they come.
        hold_vips: bool as Truth = true,
        /// How often the tables are swept for what has settled.
        sweep: Duration as Time<100, { 60 * SECOND }> = Duration::from_secs(2),
    }
}

table! {
    /// A VIP, port and protocol that clients talk to.
    Service from ServiceDraft "[[service]]" then ServiceDraft::completed {
        /// Name, unique in the file.
        name: ServiceName as ServiceName,
        /// Address that clients talk to, IPv4 or IPv6.
        vip: IpAddr as Unicast,
        /// Port that clients talk to; 0 is every port.
        port: u16 as Port<0>,
        /// What the clients speak.
        protocol: Protocol as Protocol = Protocol::Tcp,
        /// How packets reach the backends.
        mode: Mode as Mode = Mode::Nat,
        /// UDP port at which backends of mode `dsr-gue` take tunnels, if not 6080.
        gue_port: Option<u16> as Maybe<Port<1>> = None,
        /// The largest TCP segment that clients and, in mode `nat`, backends may say that they take: the MSS option of SYNs is
        /// lowered to it. In the `dsr-…` modes a backend's answer does not come by here; its route has to say `advmss`.
        clamp_mss: Option<u32> as Maybe<Count<536, 65_495>> = None,
        /// What decides whether a flow belongs to the canary.
        split_key: SplitKey as SplitKey = SplitKey::SourceIp,
        /// What decides which backend of a pool a flow goes to.
        backend_key: BackendKey as BackendKey = BackendKey::FiveTuple,
        /// Whether backends are told the client's address in a TCP option (kind 254) in mode `full-nat`.
        toa: bool as Truth = false,
        /// Whether UDP flows keep their backend when the tables change. TCP flows always do.
        tracking: Tracking as Tracking = Tracking::Flow,
        /// Slots of a pool's table, a prime; at least 100 for each backend.
        table_size: TableSize as TableSize = TableSize::DEFAULT,
        /// What happens to established flows of a backend that health took out.
        on_down: OnDown as OnDown = OnDown::Keep,
        /// What a new flow gets when no backend may take it.
        on_empty: OnEmpty as OnEmpty = OnEmpty::Reset,
        /// Percent of a pool's backends that are healthy below which health is ignored; 0 is never.
        panic_threshold: Percent as Percent = Percent::HALF,
        /// Whether new flows of the stable pool go to the canary when no stable backend takes any, and the canary has a share
        /// of the clients.
        spill_to_canary: bool as Truth = false,
        /// How a backend that comes up or is added is given its share. Without it, all at once.
        slow_start: Option<SlowStart> as Maybe<SlowStart> = None,
        /// How the backends' health is asked for. Without it they are never asked.
        health: Health as Health = HealthDraft::unchecked(),
        /// When a backend is ejected for what becomes of its connections. Without it, never.
        outlier: Option<Outlier> as Maybe<Outlier> = None,
        /// When backends get fewer new connections for what becomes of them, or none. Without it, never.
        breaker: Option<Breaker> as Maybe<Breaker> = None,
        /// Whether connections that nobody accepts are tried again elsewhere. Without it, never.
        retry: Option<Retry> as Maybe<Retry> = None,
        /// How many connections backends and pools may have. Without it, as many as come.
        limits: Option<Limits> as Maybe<Limits> = None,
        /// Whether backends that answer sooner get more new connections. Without it, weights alone count.
        steering: Option<Steering> as Maybe<Steering> = None,
        /// How connection ids name backends, if the clients speak QUIC. Without it, addresses and ports alone count.
        quic: Option<Quic> as Maybe<Quic> = None,
        /// How a new version takes over.
        rollout: Option<Rollout> as Maybe<Rollout> = None,
        /// Who may talk to it, and how much. Without it, everybody, and as much as comes.
        protection: Option<Protection> as Maybe<Protection> = None,
        /// The backends of one version each; the first one is the stable pool at first start.
        pools @ "pool": Vec<Pool> as Tables<Pool>,
    }
}

table! {
    /// The backends of one version of a service.
    Pool from PoolDraft "[[service.pool]]" {
        /// Name, unique in the service.
        name: PoolName as PoolName,
        /// Backends that must be healthy, a number or a percentage such as "50%"; with fewer the pool counts as failed and takes
        /// no new flow. Without it, one is enough.
        min_healthy: Option<Least> as Maybe<Least> = None,
        /// Backends that must be healthy before a pool that failed takes new flows again; `min_healthy` if it is left out.
        min_healthy_recover: Option<Least> as Maybe<Least> = None,
        /// Where backends are looked for, beside those that stand here.
        discovery: Option<Discovery> as Maybe<Discovery> = None,
        /// Who serves.
        backends @ "backend": Vec<Backend> as Tables<Backend> = Vec::new(),
    }
}

table! {
    /// An address and port that serves.
    Backend from BackendDraft "[[service.pool.backend]]" {
        /// Address and port; without a port, the service's. Port 0 in a service of every port.
        address: SocketAddr as Target,
        /// Share of new flows, relative to the other backends of the pool; 0 takes none.
        weight: Weight as Weight = Weight::DEFAULT,
        /// What the operator wants of it.
        state: AdminState as AdminState = AdminState::Ready,
        /// Whose turn it is: 0 first. Those of the next priority take what the healthy ones of this one cannot.
        priority: u32 as Count<0, 127> = 0,
        /// Port that its health check asks, if not the one that the others are asked at.
        health_port: Option<u16> as Maybe<Port<1>> = None,
        /// Port of its agent check, if not the one of the others.
        agent_port: Option<u16> as Maybe<Port<1>> = None,
        /// What it calls itself in the connection ids of QUIC, in hexadecimal digits: one for each `server_id_length`, or several.
        server_ids: Option<Vec<ServerId>> as Maybe<List<ServerId>> = None,
    }
}

table! {
    /// How a backend that comes up or is added is given its share: its weight times max(floor, (time / window)^(1 / aggression)).
    SlowStart from SlowStartDraft "[service.slow_start]" {
        /// How long it takes until it has its whole weight.
        window: Duration as Time<SECOND, HOUR>,
        /// How steeply it begins: 1 is a straight line, more is faster at first.
        aggression: Aggression as Aggression = Aggression::LINEAR,
        /// Percent of its weight that it has from the first moment on.
        floor: u32 as Count<1, 99> = 10,
    }
}

draft! {
    /// How the health of a service's backends is asked for.
    HealthDraft "[service.health]" {
        /// How it is asked for.
        kind @ "type": Check,
        /// Time from the start of one check to the start of the next.
        interval: Time<100, HOUR> = Duration::from_secs(5),
        /// When a check without an answer has failed; at most the interval.
        timeout: Time<10, HOUR> = Duration::from_secs(1),
        /// Consecutive successes that bring a backend back.
        healthy: Count<1, 1_000> = 2,
        /// Consecutive failures that take a backend out.
        unhealthy: Count<1, 1_000> = 3,
        /// Port to ask, if not the backend's own.
        port: Maybe<Port<1>> = None,
        /// What is probed, in the `dsr` modes: the backend's own address, or the VIP on that backend, by the very way of clients'
        /// packets (which needs CAP_NET_RAW).
        via: Via = Via::Address,
        /// Interval instead, while the last results contradict the backend's state but are too few to change it.
        fast_interval: Maybe<Time<100, HOUR>> = None,
        /// Interval instead, while the backend is down.
        down_interval: Maybe<Time<100, HOUR>> = None,
        /// What an HTTP check asks for.
        path: Maybe<HttpPath> = None,
        /// The Host header of an HTTP check, the authority of a gRPC check, if not the backend's address.
        host: Maybe<HttpHost> = None,
        /// The status codes of an HTTP check that mean health.
        expect_status: StatusRanges = StatusRanges::success(),
        /// What the first 64 KiB of the body of an HTTP check's answer have to contain.
        expect_body: Maybe<Phrase> = None,
        /// Whether a check within TLS verifies the backend's certificate.
        verify: Verify = Verify::Required,
        /// PEM file with the authorities that a check within TLS trusts, if not those of this host.
        ca_file: Maybe<FilePath> = None,
        /// The name that a certificate has to be for, and that is asked for; if not `host`, nor the backend's address.
        sni: Maybe<TlsName> = None,
        /// The service that a gRPC check asks about, if not the server as a whole.
        grpc_service: Maybe<Phrase> = None,
        /// The datagram of a UDP check; any byte can be written as `\xNN`.
        send: Maybe<Payload> = None,
        /// What the first 4 KiB of the answer to a UDP check have to contain, if anything.
        expect: Maybe<Payload> = None,
        /// The program that a check of type `exec` runs, by its absolute path, and its arguments. It gets LB_SERVICE,
        /// LB_POOL and LB_BACKEND, and is killed at the timeout with its process group.
        command: Maybe<CommandLine> = None,
        /// Port at which backends say by a line of words how they want to be treated: up, down, ready, drain, maint, 75%.
        agent_port: Maybe<Port<1>> = None,
        /// Time from the start of one agent check to the start of the next, if not 5s.
        agent_interval: Maybe<Time<1_000, HOUR>> = None,
        /// A program, by its absolute path, and its arguments, that is run when health has taken a backend out, with the
        /// environment of `command`.
        on_down_command: Maybe<CommandLine> = None,
    }
}

impl ServiceDraft {
    /// With the service's port for backends that have none of their own.
    fn completed(mut self) -> Self {
        let pools = self.pools.value.iter_mut().flatten();
        let backends = pools.filter_map(|pool| pool.backends.value.as_mut()).flatten();
        for target in backends.filter_map(|backend| backend.address.value.as_mut()) {
            target.port = target.port.or(self.port.value);
        }
        self
    }

    /// For messages.
    pub(super) fn title(&self) -> String {
        match &self.name.value {
            Some(name) => format!("service `{name}`"),
            None => "a service".to_owned(),
        }
    }

    pub(super) fn pools(&self) -> &[PoolDraft] {
        self.pools.value.as_deref().unwrap_or_default()
    }

    /// Every backend of every pool.
    pub(super) fn backends(&self) -> impl Iterator<Item = &BackendDraft> {
        self.pools().iter().flat_map(PoolDraft::backends)
    }

    /// The VIP's port, unless it is lost or every port is meant.
    pub(super) fn one_port(&self) -> Option<u16> {
        self.port.value.filter(|&port| port != 0)
    }

    /// The preview of its rollouts, and where that stands.
    pub(super) fn preview(&self) -> Option<(SocketAddr, &Place)> {
        let (preview, at) = self.rollout.value.as_ref()?.as_ref()?.preview.get()?;
        Some(((*preview)?, at))
    }

    pub(super) fn is_of_all_ports(&self) -> bool {
        self.port.value == Some(0)
    }
}

impl PoolDraft {
    pub(super) fn backends(&self) -> &[BackendDraft] {
        self.backends.value.as_deref().unwrap_or_default()
    }

    pub(super) fn discovery(&self) -> Option<&DiscoveryDraft> {
        self.discovery.value.as_ref()?.as_ref()
    }
}

impl HealthDraft {
    /// What a service has that says nothing of health.
    fn unchecked() -> Self {
        fn absent<T>(value: Option<T>) -> Field<T> {
            Field { value, at: Place::default(), written: false }
        }
        Self {
            at: Place::default(),
            kind: absent(Some(Check::None)),
            interval: absent(None),
            timeout: absent(None),
            healthy: absent(None),
            unhealthy: absent(None),
            port: absent(None),
            via: absent(None),
            fast_interval: absent(None),
            down_interval: absent(None),
            path: absent(None),
            host: absent(None),
            expect_status: absent(None),
            expect_body: absent(None),
            verify: absent(None),
            ca_file: absent(None),
            sni: absent(None),
            grpc_service: absent(None),
            send: absent(None),
            expect: absent(None),
            command: absent(None),
            agent_port: absent(Some(None)),
            agent_interval: absent(Some(None)),
            on_down_command: absent(Some(None)),
        }
    }
}

impl<T> Field<T> {
    /// The value and where it stands.
    pub(super) fn get(&self) -> Option<(&T, &Place)> {
        self.value.as_ref().map(|value| (value, &self.at))
    }
}

/// The header of the table that has a key of this name, for those who put it into another one.
pub(super) fn table_with(key: &str) -> Option<&'static str> {
    fn has<T: Table>(key: &str) -> Option<&'static str> {
        T::KEYS.iter().any(|known| known.name == key).then_some(T::NAME)
    }
    has::<BackendDraft>(key)
        .or_else(|| has::<ServiceDraft>(key))
        .or_else(|| has::<HealthDraft>(key))
        .or_else(|| has::<DataplaneDraft>(key))
        .or_else(|| has::<SlowStartDraft>(key))
        .or_else(|| has::<PoolDraft>(key))
        .or_else(|| has::<DiscoveryDraft>(key))
        .or_else(|| has::<OutlierDraft>(key))
        .or_else(|| has::<BreakerDraft>(key))
        .or_else(|| has::<RetryDraft>(key))
        .or_else(|| has::<SteeringDraft>(key))
        .or_else(|| has::<LimitsDraft>(key))
        .or_else(|| has::<ProtectionDraft>(key))
        .or_else(|| has::<QuicDraft>(key))
        .or_else(|| has::<QuicConfigDraft>(key))
}
