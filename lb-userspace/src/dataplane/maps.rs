//! All maps of one layout, by their pins.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use lb_common::abi::{
    Address, Backend, Device, FAULTS, Fault, FlowEntry, FlowKey, FragmentEntry, FragmentKey, GuestKey,
    HalfOpen, LAYOUT, Replier, Service, Settings, Traffic, VipKey,
};
use lb_common::guard::{Guard, Source, SourceKey};
use lb_common::limit::{Limit, Open};
use lb_common::measure::{Handshake, Measure};
use lb_common::quic;
use lb_common::retry::Budget;
use lb_common::session::{Session, SessionKey};
use lb_common::verdict::Counters;
use lb_common::vlan::Vlan;
use lb_common::watch::Watch;
use thiserror::Error;

use super::bpf::{Hash, Mapped, PerCpu, open_pin};

/// The name of the pin directory of this layout.
#[must_use]
pub fn directory(base: &Path) -> PathBuf {
    base.join(format!("v{LAYOUT}"))
}

/// The maps.
pub struct Maps {
    /// One element.
    pub settings: Mapped<Settings>,
    /// VIP, port, protocol -> service.
    pub vips: Hash<VipKey, u32>,
    /// By service index.
    pub services: Mapped<Service>,
    /// By slot index.
    pub slots: Mapped<u64>,
    /// By backend id.
    pub backends: Mapped<Backend>,
    /// By device index.
    pub devices: Mapped<Device>,
    /// Interface -> (interface, program).
    pub egress: Hash<u32, [u32; 2]>,
    /// Interface -> what its frames leave by, with which tags.
    pub vlans: Hash<u32, Vlan>,
    /// Backend, port, protocol -> whose reply.
    pub replies: Hash<VipKey, Replier>,
    /// Flows past the VIP -> when noted.
    pub direct: Hash<FlowKey, u32>,
    /// Packets in fragments -> where the first one went.
    pub fragments: Hash<FragmentKey, FragmentEntry>,
    /// TCP flows.
    pub flows: Hash<FlowKey, FlowEntry>,
    /// UDP flows.
    pub udp_flows: Hash<FlowKey, FlowEntry>,
    /// Handshakes under way.
    pub half_open: Hash<FlowKey, HalfOpen>,
    /// Sessions that have yet to prove themselves.
    pub opening: Hash<SessionKey, Session>,
    /// Sessions.
    pub sessions: Hash<SessionKey, Session>,
    /// Handshakes that are looked at.
    pub handshakes: Hash<FlowKey, Handshake>,
    /// Whether any of them is about a flow ([`lb_common::awaited`]).
    pub awaited: Mapped<u64>,
    /// By the measure's index.
    pub measures: Mapped<Measure>,
    /// By backend id.
    pub watches: Mapped<Watch>,
    /// By service index.
    pub budgets: Mapped<Budget>,
    /// By backend id.
    pub limits: Mapped<Limit>,
    /// By pool index.
    pub pool_limits: Mapped<Limit>,
    /// Connections that are counted.
    pub open: Hash<FlowKey, Open>,
    /// Networks of guests -> 1. A trie: a look-up finds the longest prefix, and it cannot be read in batches.
    pub guests: Hash<GuestKey, u32>,
    /// Service and configuration -> how connection ids are read.
    pub quic_configs: Hash<quic::ConfigKey, quic::Config>,
    /// Service, configuration and server id -> backend.
    pub quic_servers: Hash<quic::ServerKey, quic::Server>,
    /// One element.
    pub faults: Mapped<[Fault; FAULTS]>,
    /// By service index.
    pub guards: Mapped<Guard>,
    /// Networks that are allowed or denied -> [`Rule`](lb_common::guard::Rule). A trie, as `guests`.
    pub rules: Hash<GuestKey, u32>,
    /// Every VIP -> whose rules hold for what is its host's; 0: nobody's.
    pub vip_rules: Hash<Address, u32>,
    /// Sources -> when their next packets are due.
    pub sources: Hash<SourceKey, Source>,
    /// By [`Counters::place`].
    pub counters: PerCpu<Counters>,
    /// By pool index.
    pub pool_traffic: PerCpu<Traffic>,
    /// By backend id.
    pub backend_traffic: PerCpu<Traffic>,
    /// The ring of wanted neighbours.
    pub wanted: OwnedFd,
}

/// Why the maps cannot be used.
#[derive(Debug, Error)]
#[error("map {name} ({path}): {source}")]
pub struct OpenError {
    name: &'static str,
    path: PathBuf,
    /// What the kernel says.
    pub source: io::Error,
}

/// The names of all maps, as they are pinned.
pub const NAMES: &[&str] = &[
    "SETTINGS",
    "VIPS",
    "SERVICES",
    "SLOTS",
    "BACKENDS",
    "DEVICES",
    "EGRESS",
    "VLANS",
    "REPLIES",
    "DIRECT",
    "FRAGMENTS",
    "MESSAGES",
    "FLOWS",
    "UDP_FLOWS",
    "HALF_OPEN",
    "HANDSHAKES",
    "OPENING",
    "SESSIONS",
    "MEASURES",
    "WATCHES",
    "BUDGETS",
    "LIMITS",
    "POOL_LIMITS",
    "OPEN",
    "GUESTS",
    "QUIC_CONFIGS",
    "QUIC_SERVERS",
    "FAULTS",
    "WANTED",
    "COUNTERS",
    "POOL_TRAFFIC",
    "BACKEND_TRAFFIC",
    "GUARDS",
    "RULES",
    "VIP_RULES",
    "SOURCES",
    "AWAITED",
];

impl Maps {
    /// Opens all maps that are pinned in `directory` ([`directory`]).
    ///
    /// # Errors
    ///
    /// Names the first map that is missing or different.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        fn at<M>(
            directory: &Path,
            name: &'static str,
            open: impl FnOnce(&Path) -> io::Result<M>,
        ) -> Result<M, OpenError> {
            let path = directory.join(name);
            open(&path).map_err(|source| OpenError { name, path, source })
        }
        Ok(Self {
            settings: at(directory, "SETTINGS", Mapped::open)?,
            vips: at(directory, "VIPS", Hash::open)?,
            services: at(directory, "SERVICES", Mapped::open)?,
            slots: at(directory, "SLOTS", Mapped::open)?,
            backends: at(directory, "BACKENDS", Mapped::open)?,
            devices: at(directory, "DEVICES", Mapped::open)?,
            egress: at(directory, "EGRESS", Hash::open)?,
            vlans: at(directory, "VLANS", Hash::open)?,
            replies: at(directory, "REPLIES", Hash::open)?,
            direct: at(directory, "DIRECT", Hash::open)?,
            fragments: at(directory, "FRAGMENTS", Hash::open)?,
            flows: at(directory, "FLOWS", Hash::open)?,
            udp_flows: at(directory, "UDP_FLOWS", Hash::open)?,
            half_open: at(directory, "HALF_OPEN", Hash::open)?,
            opening: at(directory, "OPENING", Hash::open)?,
            sessions: at(directory, "SESSIONS", Hash::open)?,
            handshakes: at(directory, "HANDSHAKES", Hash::open)?,
            awaited: at(directory, "AWAITED", Mapped::open)?,
            measures: at(directory, "MEASURES", Mapped::open)?,
            watches: at(directory, "WATCHES", Mapped::open)?,
            budgets: at(directory, "BUDGETS", Mapped::open)?,
            limits: at(directory, "LIMITS", Mapped::open)?,
            pool_limits: at(directory, "POOL_LIMITS", Mapped::open)?,
            open: at(directory, "OPEN", Hash::open)?,
            guests: at(directory, "GUESTS", Hash::open)?,
            quic_configs: at(directory, "QUIC_CONFIGS", Hash::open)?,
            quic_servers: at(directory, "QUIC_SERVERS", Hash::open)?,
            faults: at(directory, "FAULTS", Mapped::open)?,
            guards: at(directory, "GUARDS", Mapped::open)?,
            rules: at(directory, "RULES", Hash::open)?,
            vip_rules: at(directory, "VIP_RULES", Hash::open)?,
            sources: at(directory, "SOURCES", Hash::open)?,
            counters: at(directory, "COUNTERS", PerCpu::open)?,
            pool_traffic: at(directory, "POOL_TRAFFIC", PerCpu::open)?,
            backend_traffic: at(directory, "BACKEND_TRAFFIC", PerCpu::open)?,
            wanted: at(directory, "WANTED", open_pin)?,
        })
    }

    /// How many backends there is room for: id 0 is nobody's.
    #[must_use]
    pub const fn backend_room(&self) -> u32 {
        self.backends.len().saturating_sub(1)
    }

    /// The counters, summed over CPUs and interfaces.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn counters(&self) -> io::Result<Counters> {
        let mut sum = Counters::default();
        self.counters_by_place()?.into_iter().for_each(|counters| sum += counters);
        Ok(sum)
    }

    /// The counters by the places of interfaces ([`Counters::place`]), summed over CPUs.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn counters_by_place(&self) -> io::Result<Vec<Counters>> {
        self.counters.sums(0..self.counters.len())
    }
}

/// The traffic of an element, summed over CPUs.
///
/// # Errors
///
/// If there is no such element.
pub fn traffic(map: &PerCpu<Traffic>, index: u32) -> io::Result<Traffic> {
    let mut sum = Traffic::default();
    map.read(index)?.into_iter().for_each(|traffic| sum += traffic);
    Ok(sum)
}
