//! Compile: policy becomes tables. Weights, states, health and reachability go in; who takes new flows comes out.
//!
//! The kernel knows no policy: everything here is decided before a packet comes.
//!
//! | question | where |
//! |---|---|
//! | may this backend take new flows? has its pool enough of them? | `health` |
//! | which priority takes how much? | `priority` |
//! | which part of its weight has a backend that has just come up? | `slow_start` |
//! | which part of it does a breaker leave? | `shed` |
//! | what does a rollout's preview reach? | `preview` |
//! | where do flows go whose pool has nobody? | [`Compiler::compile`] |

mod health;
mod preview;
mod priority;
mod shed;
mod slow_start;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use lb_common::abi::{self, Address, NextHop, Port, VipKey};
use lb_common::guard::{Guard, Rate};
use lb_common::hash::{Keys, Purpose, Seed};
use lb_common::limit::Limit;
use lb_common::maglev::{self, Candidate};
use lb_common::quic::Codec;
use lb_common::retry::{Budget, ONE};
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};

use crate::config::{
    self, AdminState, BackendKey, Mode, OnEmpty, OnTrip, Pool, PoolName, Protocol, ServerId, Service,
    SplitKey, Tracking,
};
use crate::health::Advice;
use crate::outlier::{Gate, NEUTRAL};
use crate::plural::{counted, either};
use crate::publish::{IdlePool, Limits, Member, PoolPlan, Protection, QuicPlan, Registry, ServicePlan};
use crate::state::Intent;
use health::Standing;
pub use preview::preview;
use priority::{Level, Taker};
use slow_start::{Presence, Seen, WHOLE, Warmth};

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// What is known about backends beside what is configured.
pub trait World {
    /// Whether the checks of a backend succeed.
    fn health(&self, service: &Service, backend: SocketAddr) -> Health;
    /// Where frames to it leave; all zeros while that is not known.
    fn next_hop(&self, backend: SocketAddr) -> NextHop;
    /// The address that this host would send from to it, while that is known.
    fn source(&self, _backend: SocketAddr) -> Option<IpAddr> {
        None
    }
    /// What a backend says of itself; whether it is down is in its health already.
    fn advice(&self, _service: &Service, _backend: SocketAddr) -> Advice {
        Advice::NONE
    }
    /// Whether a backend is an outlier that is kept out.
    fn is_ejected(&self, _service: &Service, _backend: SocketAddr) -> bool {
        false
    }
    /// What a backend's breaker lets through.
    fn gate(&self, _service: &Service, _backend: SocketAddr) -> Gate {
        Gate::Closed
    }
    /// What a pool's breaker lets through.
    fn pool_gate(&self, _service: &Service, _pool: &PoolName) -> Gate {
        Gate::Closed
    }
    /// Percent of its weight that a backend has for the time that it takes to answer.
    fn steer(&self, _service: &Service, _backend: SocketAddr) -> u16 {
        NEUTRAL
    }
    /// Whether faults are injected into a service.
    fn has_faults(&self, _service: &Service) -> bool {
        false
    }
    /// What time it is.
    fn now(&self) -> Now {
        Now { instant: Instant::now(), wall: Timestamp::now() }
    }
}

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// On the clock that only goes forward.
    pub instant: Instant,
    /// On the clock that people read.
    pub wall: Timestamp,
}

impl Now {
    /// When the other clock shows `wall`; soon, if it already does.
    fn until(self, wall: Timestamp) -> Instant {
        let left = Duration::try_from(wall.duration_since(self.wall)).unwrap_or_default();
        self.instant + left.max(Duration::from_millis(1))
    }
}

/// What the checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// There are none.
    Unchecked,
    /// The first one is not over.
    Unknown,
    /// They succeed.
    Up,
    /// They fail.
    Down,
}

/// What holds of one backend, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendView {
    /// The backend.
    pub address: SocketAddr,
    /// Whose turn it is: 0 first.
    pub priority: u32,
    /// The weight that holds, scaled by what the backend says.
    pub weight: u16,
    /// The state that holds.
    pub state: AdminState,
    /// How long it may drain, if somebody said so.
    pub drain: Option<Drain>,
    /// What the checks say, or what was said instead of them.
    pub health: Health,
    /// Whether that was said by hand.
    pub health_is_forced: bool,
    /// What it says of itself.
    pub advice: Advice,
    /// The part of its weight that it has, from 0 to 1, while it starts slowly.
    pub slow_start: Option<f64>,
    /// Whether it is an outlier that is kept out.
    pub ejected: bool,
    /// What its breaker lets through.
    pub gate: Gate,
    /// Percent of its weight that it has for the time that it takes to answer.
    pub steer: u16,
    /// Why it takes no new flows; `None`: it does.
    pub why_not: Option<WhyNot>,
    /// Whether packets may go there at all.
    pub usable: bool,
    /// Where they leave.
    pub next_hop: NextHop,
    /// The address that this host would send from to it, while that is known.
    pub source: Option<IpAddr>,
    /// What it calls itself in connection ids.
    pub server_ids: Vec<ServerId>,
}

impl BackendView {
    /// Whether somebody has said that it is down. Checks may be wrong, and then panic overrules them; people are not.
    #[must_use]
    pub fn is_said_to_be_down(&self) -> bool {
        self.health_is_forced && self.health == Health::Down
    }
}

/// How long a backend may drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Until when.
    pub deadline: Timestamp,
    /// Whether the flows that are left then are reset.
    pub reset: bool,
    /// Whether it is over.
    pub over: bool,
}

/// Why a backend takes no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// Its weight is 0.
    Weight,
    /// An operator lets it drain.
    Drain,
    /// An operator has taken it out.
    Maint,
    /// Its checks fail.
    Down,
    /// It has not been checked yet.
    Unchecked,
    /// Its hardware address is not known.
    Unreachable,
    /// Its agent check says that it drains.
    AgentDrain,
    /// Its agent check says that it is being worked on.
    AgentMaint,
    /// Its agent check says that it wants none of its weight.
    AgentWeight,
    /// It is an outlier: its connections fare worse than they should.
    Ejected,
    /// Its breaker is open.
    BreakerOpen,
    /// The breaker of its pool is open.
    PoolBreakerOpen,
    /// Backends of a better priority take everything.
    Standby,
    /// Its pool has fewer healthy backends than it must have.
    PoolFailed,
}

impl WhyNot {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Weight => "its weight is 0",
            Self::Drain => "it drains",
            Self::Maint => "it is in maintenance",
            Self::Down => "its health checks fail",
            Self::Unchecked => "its first health check is not over",
            Self::Unreachable => "its next hop has no hardware address yet",
            Self::AgentDrain => "its agent check says drain",
            Self::AgentMaint => "its agent check says maint",
            Self::AgentWeight => "its agent check says 0%",
            Self::Ejected => "it is an outlier, and ejected",
            Self::BreakerOpen => "its breaker is open",
            Self::PoolBreakerOpen => "the breaker of its pool is open",
            Self::Standby => "it stands by: backends of a better priority take everything",
            Self::PoolFailed => "its pool has too few healthy backends (min_healthy)",
        }
    }
}

/// A pool, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its backends.
    pub backends: Vec<BackendView>,
    /// What each priority takes, the first one first.
    pub priorities: Vec<Priority>,
    /// So few are healthy that health is ignored.
    pub panic: bool,
    /// Fewer are healthy than `min_healthy` says.
    pub failed: bool,
    /// What the pool's breaker lets through.
    pub gate: Gate,
    /// For each backend its weight in the table; 0: it takes no new flows.
    weights: Vec<u32>,
    /// The weight of new flows that breakers keep away from everybody.
    nobody: u32,
}

/// The backends of one priority of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priority {
    /// Which one; 0 is the first.
    pub priority: u32,
    /// Backends that can take new flows.
    pub fit: u32,
    /// Backends that should: ready, of some weight, checked, and not said to be down.
    pub of: u32,
    /// What it takes of the pool's new flows, from 0 to 1.
    pub share: f64,
}

impl PoolView {
    /// A pool without backends.
    fn nobody(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            backends: Vec::new(),
            priorities: Vec::new(),
            panic: false,
            failed: false,
            gate: Gate::Closed,
            weights: Vec::new(),
            nobody: 0,
        }
    }

    /// Whether anybody takes new flows.
    #[must_use]
    pub fn takes_new(&self) -> bool {
        self.backends.iter().any(|backend| backend.why_not.is_none())
    }

    /// How many do.
    #[must_use]
    pub fn takers(&self) -> u64 {
        self.backends.iter().filter(|backend| backend.why_not.is_none()).count() as u64
    }

    /// What keeps the pool from taking clients; of `all`, as long as one is missing that should take some, or has yet to become warm.
    #[must_use]
    pub fn not_ready(&self, all: bool) -> Option<String> {
        use WhyNot::{AgentDrain, AgentMaint, AgentWeight, Standby};
        // Whoever is not meant to take any, or says so himself, is not missed.
        let is_wanted = |backend: &&BackendView| {
            backend.state == AdminState::Ready
                && backend.weight > 0
                && !matches!(backend.why_not, Some(AgentDrain | AgentMaint | AgentWeight | Standby))
        };
        let wanted: Vec<&BackendView> = self.backends.iter().filter(is_wanted).collect();
        let takers = wanted.iter().filter(|backend| backend.why_not.is_none()).count();
        let backends = counted(wanted.len() as u64, "backend");
        if takers < if all { wanted.len().max(1) } else { 1 } {
            let mut either_way = wanted.iter().copied().chain(&self.backends);
            let why = either_way.find_map(|backend| backend.why_not);
            let why = why.map(|why| format!(": {}", why.words())).unwrap_or_default();
            return Some(format!(
                "{takers} of {backends} {} new connections{why}",
                either(takers as u64, "takes", "take")
            ));
        }
        let cold = wanted.iter().filter(|backend| backend.slow_start.is_some()).count();
        (all && cold > 0).then(|| {
            format!("{cold} of {backends} {} still starting slowly", either(cold as u64, "is", "are"))
        })
    }
}

/// A service, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// For the maps.
    pub plan: ServicePlan,
    /// For people: every configured pool.
    pub pools: Vec<PoolView>,
    /// The canary has nobody who takes new flows: its share goes to the stable pool.
    pub canary_spills: bool,
    /// The stable pool has nobody who takes new flows: its share goes to the canary, as configured.
    pub stable_spills: bool,
    /// When time alone changes something: a slow start's next step, a drain's deadline.
    pub next: Option<Instant>,
}

impl Compiled {
    /// Backends that served in `before`, and that their checks have taken out since, each with its pool. Who was down already
    /// is not among them, nor is anybody whose health was or is set by hand: each outage is seen once.
    #[must_use]
    pub fn gone_down_since(&self, before: &Self) -> Vec<(&str, SocketAddr)> {
        // Neighbours of a host that is dead may be missed before its checks fail.
        let served = |view: &BackendView| {
            matches!(view.why_not, None | Some(WhyNot::Unreachable))
                // In panic, who is down serves.
                && view.health != Health::Down
                && !view.health_is_forced
        };
        let all = before.pools.iter().flat_map(|pool| &pool.backends);
        let served: HashSet<SocketAddr> = all.filter(|view| served(view)).map(|view| view.address).collect();
        let now = self.pools.iter().flat_map(|pool| pool.backends.iter().map(move |view| (pool, view)));
        let is_out = |view: &BackendView| view.why_not == Some(WhyNot::Down) && !view.health_is_forced;
        now.filter(|(_, view)| is_out(view) && served.contains(&view.address))
            .map(|(pool, view)| (pool.name.as_str(), view.address))
            .collect()
    }
}

/// Builds tables, and remembers those that it built (most changes leave most tables as they are), and what policy needs to
/// know of the past. A clone of it can try things out.
#[derive(Clone, Default)]
pub struct Compiler {
    services: HashMap<VipKey, HashMap<String, Memory>>,
}

/// What is remembered of a pool.
#[derive(Clone, Default)]
struct Memory {
    standing: Standing,
    warmth: Warmth,
    built: Option<Built>,
}

/// A table, and what it was built from.
#[derive(Clone)]
struct Built {
    weights: Vec<(SocketAddr, u32)>,
    size: u32,
    table: Arc<[u16]>,
}

/// When a pool may ignore health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panic {
    /// Never: another pool takes what it cannot.
    Never,
    /// While somebody is healthy; then another pool takes over.
    WhileServed,
    /// As `panic_threshold` says.
    Always,
}

impl Compiler {
    /// What the maps should hold of a service.
    pub fn compile(
        &mut self,
        service: &Service,
        intent: &Intent,
        seed: &Seed,
        world: &impl World,
    ) -> Compiled {
        let (key, now) = (key_of(service), world.now());
        let memories = self.services.entry(key).or_default();
        memories.retain(|name, _| service.pools.iter().any(|pool| pool.name.as_str() == name));
        let mut next = None;
        let mut views: HashMap<&PoolName, PoolView> = HashMap::new();
        // The canary first: what the stable pool does depends on whether the canary can take over.
        let canary = service.pools.iter().filter(|pool| intent.canary.as_ref() == Some(&pool.name));
        let others = service.pools.iter().filter(|pool| intent.canary.as_ref() != Some(&pool.name));
        let mut may_spill = false;
        for pool in canary.chain(others) {
            let is_canary = intent.canary.as_ref() == Some(&pool.name);
            let panic = match () {
                () if is_canary => Panic::Never,
                () if may_spill && pool.name == intent.stable => Panic::WhileServed,
                () => Panic::Always,
            };
            let memory = memories.entry(pool.name.as_str().to_owned()).or_default();
            let (view, step) = view(service, pool, intent, panic, memory, world, now);
            if is_canary {
                // Not at 0 %: whoever has rolled back does not want it back by another way.
                may_spill = service.spill_to_canary && intent.split > 0.0 && view.takes_new();
            }
            let deadlines = view.backends.iter().filter_map(|backend| backend.drain);
            let deadlines = deadlines.filter(|drain| !drain.over).map(|drain| now.until(drain.deadline));
            next = deadlines.chain(step).chain(next).min();
            views.insert(&pool.name, view);
        }
        let pools: Vec<PoolView> = service.pools.iter().filter_map(|pool| views.remove(&pool.name)).collect();
        let role = |name: &PoolName| pools.iter().find(|pool| pool.name == name.as_str());
        let empty = PoolView::nobody(intent.stable.as_str());
        let stable_view = role(&intent.stable).unwrap_or(&empty);
        let canary_view = intent.canary.as_ref().and_then(role);
        // What a breaker keeps away from everybody is nobody's.
        let spills = |pool: &PoolView| !pool.takes_new() && pool.nobody == 0;
        let stable_spills = may_spill && spills(stable_view);
        let canary_spills = canary_view.is_some_and(spills);

        let mut plan_of = |pool: &PoolView, takers: &PoolView| PoolPlan {
            name: pool.name.clone(),
            members: pool.backends.iter().map(|backend| member(service, backend)).collect(),
            takers: takers
                .backends
                .iter()
                .map(|backend| place(service, backend.address))
                .chain((takers.nobody > 0).then_some((NOBODY.ip().into(), Port::ANY)))
                .collect(),
            table: table(service, &key, seed, takers, memories),
        };
        let stable_takers = canary_view.filter(|_| stable_spills).unwrap_or(stable_view);
        let stable = plan_of(stable_view, stable_takers);
        let canary = canary_view.map(|pool| plan_of(pool, if canary_spills { stable_view } else { pool }));
        let (split_mask, _) = split_mask(service);
        let retry = service.retry.as_ref().filter(|_| is_retried(service));
        let limits = service.limits.as_ref().filter(|_| service.protocol == Protocol::Tcp).map(limits);
        let limits = limits.unwrap_or_default();
        let quic = service.quic.as_ref().filter(|_| service.protocol == Protocol::Udp).map(quic);
        let gue_port = if service.mode == Mode::DsrGue {
            Port::new(service.gue_port.unwrap_or(GUE_PORT))
        } else {
            Port::ANY
        };
        let guests = service.rollout.as_ref().map_or(Vec::new(), |rollout| rollout.canary_clients.clone());
        let plan = ServicePlan {
            key,
            mode: match service.mode {
                Mode::DsrL2 => abi::Mode::DsrL2,
                Mode::DsrIpip => abi::Mode::DsrIpip,
                Mode::DsrGue => abi::Mode::DsrGue,
                Mode::FullNat => abi::Mode::FullNat,
                Mode::Nat => abi::Mode::Nat,
            },
            on_empty: on_empty(service, &pools, intent),
            flags: flags(service, intent, world.has_faults(service)) | limits.flags,
            gue_port,
            clamp_mss: service.clamp_mss.map_or(0, |limit| limit as u16),
            guests,
            split_mask,
            salt: intent.salt,
            table_size: service.table_size.get(),
            limits,
            budget: retry.map(|retry| Budget {
                earned: (ONE * u64::from(retry.budget.get())).div_ceil(100),
                most: ONE * u64::from(retry.burst),
                ..Budget::default()
            }),
            protection: service
                .protection
                .as_ref()
                .map_or_else(Protection::default, |it| protection(it, service)),
            quic: quic.unwrap_or_default(),
            stable,
            canary,
            idle: pools.iter().filter(|pool| is_idle(intent, pool)).map(|pool| idle(service, pool)).collect(),
        };
        Compiled { plan, pools, canary_spills, stable_spills, next }
    }

    /// Forgets services that are not at one of these addresses any more.
    pub fn keep(&mut self, keys: &HashSet<VipKey>) {
        self.services.retain(|key, _| keys.contains(key));
    }

    /// Another one that knows what this one knows of the services at these addresses.
    #[must_use]
    pub fn knowing(&self, keys: impl IntoIterator<Item = VipKey>) -> Self {
        let known = keys.into_iter().filter_map(|key| Some((key, self.services.get(&key)?.clone())));
        Self { services: known.collect() }
    }
}

/// Whether a connection that nobody accepts is tried elsewhere: where its answers come back this way.
fn is_retried(service: &Service) -> bool {
    service.retry.is_some() && service.protocol == Protocol::Tcp && !service.mode.is_dsr()
}

/// What the kernel program has to do for a service beside the bare rule, but for its limits.
fn flags(service: &Service, intent: &Intent, has_faults: bool) -> u16 {
    let tcp = service.protocol == Protocol::Tcp;
    let full_nat = service.mode == Mode::FullNat;
    let (_, splits_by_ports) = split_mask(service);
    let rollout = intent.under_way().filter(|_| tcp);
    let wanted = [
        (!tcp && service.tracking == Tracking::Flow, abi::Service::TRACK_UDP),
        (service.backend_key == BackendKey::SourceIp, abi::Service::AFFINITY),
        (full_nat, abi::Service::SESSIONS),
        (full_nat && service.toa, abi::Service::TOA),
        (splits_by_ports, abi::Service::SPLIT_BY_PORTS),
        (service.is_watched(), abi::Service::WATCHED),
        (is_retried(service), abi::Service::RETRIED),
        // Whoever is half open gets so many connections and no more.
        (tcp && service.breaker.is_some() && !full_nat, abi::Service::LIMITED),
        // Of each backend, too: those counts outlive rollout and agent.
        (rollout.is_some(), abi::Service::MEASURED | abi::Service::WATCHED),
        (rollout.is_some_and(|rollout| rollout.plan.cap.is_some()), abi::Service::CAPPED),
        (tcp && service.clamp_mss.is_some(), abi::Service::CLAMPED),
        (!tcp && service.quic.is_some(), abi::Service::QUIC),
        (has_faults, abi::Service::FAULTS),
    ];
    wanted.iter().filter(|(is_wanted, _)| *is_wanted).fold(0, |flags, (_, flag)| flags | flag)
}

/// Who takes the flows of a table's slots that breakers keep away from everybody: there is no such backend.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// What a flow gets that nobody may take: while a breaker keeps some away, what that says.
fn on_empty(service: &Service, pools: &[PoolView], intent: &Intent) -> abi::OnEmpty {
    let used = |pool: &&PoolView| {
        pool.name == intent.stable.as_str()
            || intent.canary.as_ref().is_some_and(|canary| pool.name == canary.as_str())
    };
    let tripped = pools.iter().filter(used).any(|pool| pool.nobody > 0 || matches!(pool.gate, Gate::Open(_)));
    match (service.breaker.as_ref().map(|breaker| breaker.on_trip), service.on_empty) {
        (Some(OnTrip::Reset), _) if tripped => abi::OnEmpty::Reset,
        (Some(OnTrip::Drop), _) if tripped => abi::OnEmpty::Drop,
        (_, OnEmpty::Reset) => abi::OnEmpty::Reset,
        (_, OnEmpty::Drop) => abi::OnEmpty::Drop,
        (_, OnEmpty::Pass) => abi::OnEmpty::Pass,
    }
}

/// Of a service, for the kernel.
fn limits(limits: &config::Limits) -> Limits {
    let limit = |connections: Option<u32>, per_second: Option<u32>| Limit {
        interval: per_second.map_or(0, |per_second| SECOND.div_ceil(u64::from(per_second))),
        // A tenth of a second's.
        burst: SECOND / 10,
        most: connections.map_or(0, u64::from),
        ..Limit::default()
    };
    let counted = limits.max_connections.is_some() || limits.pool_max_connections.is_some();
    let mut flags = abi::Service::LIMITED;
    if counted {
        flags |= abi::Service::COUNTED;
    }
    Limits {
        flags,
        backend: limit(limits.max_connections, limits.max_new_per_second),
        pool: limit(limits.pool_max_connections, limits.pool_max_new_per_second),
        on_limit: match limits.on_limit {
            OnTrip::Spill => abi::Service::SPILL,
            OnTrip::Reset => abi::OnEmpty::Reset as u8,
            OnTrip::Drop => abi::OnEmpty::Drop as u8,
        },
    }
}

/// Of a service, for the kernel.
fn protection(protection: &config::Protection, service: &Service) -> Protection {
    let rate = |per_second: Option<u32>, burst: Option<u32>| match per_second {
        Some(per_second) => Rate::per_second(per_second, burst.unwrap_or(per_second)),
        None => Rate::default(),
    };
    // Addresses are 16 bytes, IPv4's at the end.
    let bits =
        if service.vip.is_ipv4() { 96 + protection.source_prefix_v4 } else { protection.source_prefix_v6 };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let tcp = service.protocol == Protocol::Tcp;
    Protection {
        allow: protection.allow.clone(),
        deny: protection.deny.clone(),
        rates: Guard {
            connections: rate(protection.max_new_per_second.filter(|_| tcp), protection.new_burst),
            packets: rate(protection.max_packets_per_second, protection.packet_burst),
            source_connections: rate(
                protection.source_max_new_per_second.filter(|_| tcp),
                protection.source_new_burst,
            ),
            source_packets: rate(protection.source_max_packets_per_second, protection.source_packet_burst),
            source_mask: Address::v6(&mask.to_be_bytes()),
            ..Guard::default()
        },
    }
}

fn quic(quic: &config::Quic) -> QuicPlan {
    let codec = |config: &config::QuicConfig| Codec {
        config: config.id as u8,
        server_id_length: config.server_id_length as u8,
        nonce_length: config.nonce_length as u8,
        key: config.key.map(|key| key.0),
    };
    QuicPlan { codecs: quic.configs.iter().map(codec).collect(), tells_length: quic.length_in_first_octet }
}

/// The table of those who take a pool's flows; the one that there is, if nothing has changed.
fn table(
    service: &Service,
    key: &VipKey,
    seed: &Seed,
    pool: &PoolView,
    memories: &mut HashMap<String, Memory>,
) -> Arc<[u16]> {
    let addresses = pool.backends.iter().map(|backend| backend.address);
    let mut weights: Vec<(SocketAddr, u32)> = addresses.zip(pool.weights.iter().copied()).collect();
    if pool.nobody > 0 {
        weights.push((NOBODY, pool.nobody));
    }
    let size = service.table_size.get();
    let memory = memories.entry(pool.name.clone()).or_default();
    if let Some(built) = &memory.built
        && built.weights == weights
        && built.size == size
    {
        return Arc::clone(&built.table);
    }
    let keys = Keys::derive(seed, key, Purpose::Table);
    let candidates: Vec<Candidate> = weights
        .iter()
        .map(|&(address, weight)| Candidate {
            hash: keys.backend(address.ip().into(), address.port()),
            weight,
        })
        .collect();
    let table: Arc<[u16]> = maglev::table(&candidates, size).into();
    memory.built = Some(Built { weights, size, table: Arc::clone(&table) });
    table
}

/// Where Linux's own documents have GUE.
pub(crate) const GUE_PORT: u16 = 6080;

/// Where clients find a service.
#[must_use]
pub fn key_of(service: &Service) -> VipKey {
    let protocol = match service.protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    VipKey::new(service.vip, service.port, protocol)
}

/// Judges a pool, and says when time alone changes something.
fn view(
    service: &Service,
    pool: &Pool,
    intent: &Intent,
    may_panic: Panic,
    memory: &mut Memory,
    world: &impl World,
    now: Now,
) -> (PoolView, Option<Instant>) {
    let mut backends: Vec<BackendView> = pool
        .backends
        .iter()
        .map(|backend| health::judge(service, backend, intent.backends.get(&backend.address), world, now))
        .collect();
    let has_breaker = service.breaker.as_ref().is_some_and(|breaker| breaker.scope.has_pools());
    let gate = if has_breaker { world.pool_gate(service, &pool.name) } else { Gate::Closed };
    let levels = levels(&backends);
    let at = |backend: &BackendView| levels.iter().position(|level| level.priority == backend.priority);
    let places: Vec<usize> = backends.iter().map(|backend| at(backend).unwrap_or(levels.len())).collect();
    let (fit, of) = levels.iter().fold((0, 0), |(fit, of), level| (fit + level.fit, of + level.of));
    let wanted = backends.iter().filter(|backend| health::is_wanted(backend)).count() as u32;
    memory.standing = memory.standing.after(pool, fit, of, wanted);
    let failed = memory.standing != Standing::Stands;
    let shares = priority::shares(&levels);
    let fractions: Vec<f64> = shares.iter().map(|&share| share as f64 / priority::ALL as f64).collect();
    let seen: Vec<Seen> =
        backends.iter().zip(&places).map(|(backend, &at)| seen(backend, at, failed)).collect();
    let warmth = memory.warmth.observe(service.slow_start.as_ref(), &seen, &fractions, now.instant);

    let panic = !failed
        && (may_panic == Panic::Always || may_panic == Panic::WhileServed && fit > 0)
        && !(levels.len() > 1 && priority::suffice(&levels))
        && health::panics(service, &backends);
    for (backend, &place) in backends.iter_mut().zip(&places) {
        let ill = matches!(backend.why_not, Some(WhyNot::Down | WhyNot::Ejected));
        if panic && ill && backend.weight > 0 && !backend.is_said_to_be_down() {
            backend.usable = true;
            backend.why_not = backend.next_hop.mac().is_none().then_some(WhyNot::Unreachable);
        }
        if backend.why_not.is_none() && failed {
            backend.why_not = Some(WhyNot::PoolFailed);
        } else if backend.why_not.is_none() && matches!(gate, Gate::Open(_)) {
            backend.why_not = Some(WhyNot::PoolBreakerOpen);
        } else if backend.why_not.is_none() && shares.get(place).is_none_or(|&share| share == 0) {
            backend.why_not = Some(WhyNot::Standby);
        }
    }
    for (backend, &factor) in backends.iter_mut().zip(&warmth.factors) {
        backend.slow_start = (factor < WHOLE).then(|| f64::from(factor) / f64::from(WHOLE));
    }
    let refuses = service.breaker.as_ref().is_some_and(|breaker| breaker.on_trip != OnTrip::Spill);
    let (takers, shed): (Vec<Taker>, Vec<Taker>) = backends
        .iter()
        .zip(places.iter().zip(&warmth.factors))
        .map(|(backend, (&level, &factor))| {
            let whole =
                shed::steered(u32::from(backend.weight) * factor, service.steering.is_some(), backend.steer);
            // What is not kept, somebody else takes, or nobody if that is wanted.
            let kept = match backend.why_not {
                None => shed::kept(whole, backend.gate, if refuses { gate } else { Gate::Closed }),
                Some(_) => 0,
            };
            let lost = match backend.why_not {
                None | Some(WhyNot::BreakerOpen | WhyNot::PoolBreakerOpen) if refuses => whole - kept,
                _ => 0,
            };
            (Taker { level, weight: kept }, Taker { level, weight: lost })
        })
        .unzip();
    let mut weights = priority::weigh(&[takers, shed].concat(), &shares);
    let lost = weights.split_off(backends.len());
    let nobody = shed::together(&mut weights, &lost);
    let priorities = levels
        .iter()
        .zip(&fractions)
        .map(|(level, &share)| Priority {
            priority: level.priority,
            fit: level.fit,
            of: level.of,
            share: if failed { 0.0 } else { share },
        })
        .collect();
    let name = pool.name.as_str().to_owned();
    (PoolView { name, backends, priorities, panic, failed, gate, weights, nobody }, warmth.next)
}

/// The priorities of a pool, the first one first, and how many backends of each can take new flows.
fn levels(backends: &[BackendView]) -> Vec<Level> {
    let mut levels: Vec<Level> = Vec::new();
    for backend in backends {
        let priority = backend.priority;
        let at = levels.binary_search_by_key(&priority, |level| level.priority).unwrap_or_else(|at| {
            levels.insert(at, Level { priority, fit: 0, of: 0 });
            at
        });
        if health::counts(backend) {
            levels[at].of += 1;
            levels[at].fit += u32::from(backend.why_not.is_none());
        }
    }
    levels
}

/// A backend as slow start sees it. One whose pool failed serves nobody, and stays as warm as it is.
fn seen(backend: &BackendView, level: usize, failed: bool) -> Seen {
    let presence = match backend.why_not {
        None if !failed => Presence::Serves,
        None
        | Some(
            WhyNot::Weight
            | WhyNot::AgentWeight
            | WhyNot::Unreachable
            | WhyNot::BreakerOpen
            | WhyNot::PoolBreakerOpen
            | WhyNot::Standby
            | WhyNot::PoolFailed,
        ) => Presence::Idle,
        Some(
            WhyNot::Drain
            | WhyNot::AgentDrain
            | WhyNot::Maint
            | WhyNot::AgentMaint
            | WhyNot::Down
            | WhyNot::Ejected
            | WhyNot::Unchecked,
        ) => Presence::Out,
    };
    Seen { address: backend.address, level, weight: backend.weight, presence }
}

/// The id of a backend in the kernel's tables, if it has one.
#[must_use]
pub fn id_of(service: &Service, backend: SocketAddr, index: u32, registry: &Registry) -> Option<u16> {
    let (address, port) = place(service, backend);
    registry.backend_id(index, address, port)
}

/// Whether a pool gets no new flows of its own.
fn is_idle(intent: &Intent, pool: &PoolView) -> bool {
    pool.name != intent.stable.as_str() && intent.canary.as_ref().is_none_or(|it| pool.name != it.as_str())
}

fn idle(service: &Service, pool: &PoolView) -> IdlePool {
    let members = pool.backends.iter().map(|backend| member(service, backend)).collect();
    IdlePool { name: pool.name.clone(), members }
}

fn member(service: &Service, backend: &BackendView) -> Member {
    let (address, port) = place(service, backend.address);
    let source = backend.source.filter(|_| service.mode == Mode::FullNat).map(Address::from);
    let server_ids = backend.server_ids.iter().map(|id| id.bytes().into()).collect();
    Member { address, port, usable: backend.usable, next_hop: backend.next_hop, source, server_ids }
}

/// Address and port as the kernel has them: a service of every port keeps the client's.
fn place(service: &Service, backend: SocketAddr) -> (Address, Port) {
    let port = if service.port == 0 { Port::ANY } else { Port::new(backend.port()) };
    (backend.ip().into(), port)
}

/// Bits of the client's address that the split sees, and whether it sees the ports.
fn split_mask(service: &Service) -> ([u32; 4], bool) {
    match service.split_key {
        SplitKey::SourceIp => ([u32::MAX; 4], false),
        SplitKey::FiveTuple => ([u32::MAX; 4], true),
        // A /24 and a /56: what one customer or one site usually has.
        SplitKey::SourceNet if service.vip.is_ipv4() => ([u32::MAX, u32::MAX, u32::MAX, 0xffff_ff00], false),
        SplitKey::SourceNet => ([u32::MAX, 0xffff_ff00, 0, 0], false),
    }
}

#[cfg(test)]
mod tests;
