//! Compile: policy becomes tables. Weights, states, health and reachability go in; who takes new flows comes out.
//!
//! The kernel knows no policy: everything here is decided before a packet comes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::abi::{self, Address, NextHop, Port, VipKey};
use lb_common::hash::{Keys, Purpose, Seed};
use lb_common::maglev::{self, Candidate};
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};

use crate::config::{
    AdminState, Backend, BackendKey, Mode, OnDown, OnEmpty, Pool, Protocol, Service, SplitKey, Tracking,
};
use crate::publish::{Member, PoolPlan, ServicePlan};
use crate::state::{Intent, Overrides};

/// What is known about backends beside what is configured.
pub trait World {
    /// Whether the checks of a backend succeed.
    fn health(&self, service: &Service, backend: SocketAddr) -> Health;
    /// Where frames to it leave; all zeros while that is not known.
    fn next_hop(&self, backend: SocketAddr) -> NextHop;
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
    /// The weight that holds.
    pub weight: u16,
    /// The state that holds.
    pub state: AdminState,
    /// What the checks say, or what was said instead of them.
    pub health: Health,
    /// Whether that was said by hand.
    pub health_is_forced: bool,
    /// Why it takes no new flows; `None`: it does.
    pub why_not: Option<WhyNot>,
    /// Whether packets may go there at all.
    pub usable: bool,
    /// Where they leave.
    pub next_hop: NextHop,
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
    /// So few are healthy that health is ignored.
    pub panic: bool,
}

impl PoolView {
    /// Whether anybody takes new flows.
    #[must_use]
    pub fn takes_new(&self) -> bool {
        self.backends.iter().any(|backend| backend.why_not.is_none())
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
}

/// Builds tables, and remembers those that it built: most changes leave most tables as they are.
#[derive(Default)]
pub struct Compiler {
    tables: HashMap<(VipKey, String), Built>,
}

/// A table, and what it was built from.
struct Built {
    weights: Vec<(SocketAddr, u16)>,
    size: u32,
    table: Arc<[u16]>,
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
        let key = key_of(service);
        let pools: Vec<PoolView> =
            service.pools.iter().map(|pool| view(service, pool, intent, world)).collect();
        let role = |name: &str| pools.iter().find(|pool| pool.name == name);
        let stable_view = role(intent.stable.as_str());
        let canary_view = intent.canary.as_ref().and_then(|name| role(name.as_str()));
        let canary_spills = canary_view.is_some_and(|pool| !pool.takes_new());

        let mut plan_of = |pool: &PoolView, takers: &PoolView| {
            let table = self.table(service, &key, seed, takers);
            PoolPlan {
                name: pool.name.clone(),
                members: pool.backends.iter().map(|backend| member(service, backend)).collect(),
                takers: takers.backends.iter().map(|backend| place(service, backend.address)).collect(),
                table,
            }
        };
        let empty = PoolView { name: intent.stable.as_str().to_owned(), backends: Vec::new(), panic: false };
        let stable_view = stable_view.unwrap_or(&empty);
        let stable = plan_of(stable_view, stable_view);
        let canary = canary_view.map(|pool| plan_of(pool, if canary_spills { stable_view } else { pool }));
        let (split_mask, by_ports) = split_mask(service);
        let mut flags = 0;
        if service.protocol == Protocol::Udp && service.tracking == Tracking::Flow {
            flags |= abi::Service::TRACK_UDP;
        }
        if service.backend_key == BackendKey::SourceIp {
            flags |= abi::Service::AFFINITY;
        }
        if by_ports {
            flags |= abi::Service::SPLIT_BY_PORTS;
        }
        let plan = ServicePlan {
            key,
            mode: match service.mode {
                Mode::DsrL2 => abi::Mode::DsrL2,
                Mode::DsrIpip => abi::Mode::DsrIpip,
                _ => abi::Mode::Nat,
            },
            on_empty: match service.on_empty {
                OnEmpty::Reset => abi::OnEmpty::Reset,
                OnEmpty::Drop => abi::OnEmpty::Drop,
                OnEmpty::Pass => abi::OnEmpty::Pass,
            },
            flags,
            split_mask,
            salt: intent.salt,
            table_size: service.table_size.get(),
            stable,
            canary,
        };
        Compiled { plan, pools, canary_spills }
    }

    fn table(&mut self, service: &Service, key: &VipKey, seed: &Seed, pool: &PoolView) -> Arc<[u16]> {
        let weights: Vec<(SocketAddr, u16)> = pool
            .backends
            .iter()
            .map(|backend| (backend.address, if backend.why_not.is_none() { backend.weight } else { 0 }))
            .collect();
        let size = service.table_size.get();
        let name = (*key, pool.name.clone());
        if let Some(built) = self.tables.get(&name)
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
        self.tables.insert(name, Built { weights, size, table: Arc::clone(&table) });
        table
    }
}

/// Where clients find a service.
#[must_use]
pub fn key_of(service: &Service) -> VipKey {
    let protocol = match service.protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    VipKey::new(service.vip, service.port, protocol)
}

fn view(service: &Service, pool: &Pool, intent: &Intent, world: &impl World) -> PoolView {
    let mut backends: Vec<BackendView> = pool
        .backends
        .iter()
        .map(|backend| judge(service, backend, intent.backends.get(&backend.address), world))
        .collect();
    // Of those that an operator wants to have: how many are fit?
    let wanted = |b: &&BackendView| b.state == AdminState::Ready && b.weight > 0;
    let checked = backends.iter().filter(wanted).filter(|b| b.health != Health::Unknown).count();
    let fit =
        backends.iter().filter(wanted).filter(|b| matches!(b.health, Health::Up | Health::Unchecked)).count();
    // The canary never panics: it has the stable pool to spill over to.
    let may_panic = intent.canary.as_ref().is_none_or(|canary| *canary != pool.name);
    let panic = may_panic && checked > 0 && fit * 100 < checked * usize::from(service.panic_threshold.get());
    if panic {
        for backend in &mut backends {
            if backend.why_not == Some(WhyNot::Down) {
                (backend.why_not, backend.usable) = (None, true);
            }
        }
    }
    PoolView { name: pool.name.as_str().to_owned(), backends, panic }
}

fn judge(
    service: &Service,
    backend: &Backend,
    overrides: Option<&Overrides>,
    world: &impl World,
) -> BackendView {
    let weight =
        overrides.and_then(|o| o.weight.as_ref()).map_or(backend.weight.get(), |weight| weight.value);
    let state = overrides.and_then(|o| o.state.as_ref()).map_or(backend.state, |state| state.value);
    let forced = overrides.and_then(|o| o.health.as_ref()).map(|health| health.value);
    let health = match forced {
        Some(true) => Health::Up,
        Some(false) => Health::Down,
        None => world.health(service, backend.address),
    };
    let next_hop = world.next_hop(backend.address);
    let why_not = match (state, health) {
        (AdminState::Maint, _) => Some(WhyNot::Maint),
        (AdminState::Drain, _) => Some(WhyNot::Drain),
        (AdminState::Ready, Health::Down) => Some(WhyNot::Down),
        (AdminState::Ready, Health::Unknown) => Some(WhyNot::Unchecked),
        (AdminState::Ready, Health::Up | Health::Unchecked) if weight == 0 => Some(WhyNot::Weight),
        (AdminState::Ready, Health::Up | Health::Unchecked) if next_hop.mac().is_none() => {
            Some(WhyNot::Unreachable)
        }
        (AdminState::Ready, Health::Up | Health::Unchecked) => None,
    };
    // A UDP flow has nothing to keep on a backend that is dead, and nothing that would tell its client.
    let evicts = service.on_down == OnDown::Reset || service.protocol == Protocol::Udp;
    let usable = state != AdminState::Maint && !(health == Health::Down && evicts);
    BackendView {
        address: backend.address,
        weight,
        state,
        health,
        health_is_forced: forced.is_some(),
        why_not,
        usable,
        next_hop,
    }
}

fn member(service: &Service, backend: &BackendView) -> Member {
    let (address, port) = place(service, backend.address);
    Member { address, port, usable: backend.usable, next_hop: backend.next_hop }
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
