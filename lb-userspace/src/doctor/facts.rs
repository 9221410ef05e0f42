//! What was found on the host. Plain data: whatever judges it needs neither a kernel nor root.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use crate::api::{Status, XdpMode};
use crate::config::{Config, Mode};

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Where the configuration is.
    pub config_path: PathBuf,
    /// The configuration, or why there is none. Not shown as it stands: it may have secrets.
    #[serde(skip)]
    pub config: Result<Config, String>,
    /// The kernel.
    pub kernel: Kernel,
    /// Capabilities that lbd needs and that are missing.
    pub missing_capabilities: Vec<&'static str>,
    /// `net.core.bpf_jit_enable`; it is shown in the first network namespace only.
    pub jit: Option<u32>,
    /// Where programs and maps are pinned.
    pub pins: Pins,
    /// The agent.
    pub agent: Agent,
    /// Processors that are online.
    pub cpus: u32,
    /// Interfaces, by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses of this host.
    pub addresses: Vec<Address>,
    /// The way to each backend.
    pub ways: BTreeMap<IpAddr, Way>,
    /// Settings of this network namespace, by their names below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    /// What was asked on the wire.
    pub wire: Wire,
    /// Whether the clock is synchronised, if the kernel says so.
    pub clock_synchronised: Option<bool>,
    /// How many files lbd may have open.
    pub open_files: Option<u64>,
}

/// The kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// Why it is too old.
    pub too_old: Option<String>,
    /// Whether it shows its own types.
    pub btf: bool,
}

/// Where programs and maps are pinned.
#[derive(Clone, Debug, Serialize)]
pub struct Pins {
    /// `LB_PIN_DIR`
    pub directory: PathBuf,
    /// Whether that is on a BPF file system.
    pub on_bpffs: bool,
    /// Number of the program that is pinned there; 0 if it is there and its number cannot be read.
    pub program: Option<u32>,
}

/// The agent.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    /// `LB_SOCKET`
    pub socket: PathBuf,
    /// Its status, or why there is none.
    pub status: Result<Status, String>,
    /// Its process.
    pub pid: Option<i32>,
}

/// An interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and there is a carrier.
    pub running: bool,
    /// The longest packet that it takes, in bytes.
    pub mtu: u32,
    /// Its address, if it is Ethernet.
    pub mac: Option<[u8; 6]>,
    /// `veth`, `vlan`, `bond` …
    pub kind: Option<String>,
    /// What a VLAN device is on.
    pub vlan_of: Option<String>,
    /// The bond that it is a port of.
    pub bond: Option<String>,
    /// Whether the card takes VLAN tags off (`rxvlan`).
    pub takes_tags_off: Option<bool>,
    /// The driver, as ethtool names it.
    pub driver: Option<String>,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
    /// Whether its driver has XDP, if the kernel says so (6.3 and newer).
    pub native: Option<bool>,
    /// Whether large receive offload is on.
    pub lro: Option<bool>,
    /// Receive queues in use, and how many there could be.
    pub queues: Option<(u32, u32)>,
    /// The processors that each of its interrupts may reach.
    pub interrupts: BTreeMap<u32, String>,
}

/// An XDP program that is attached.
#[derive(Clone, Debug, Serialize)]
pub struct Xdp {
    /// Its number in the kernel.
    pub program: u32,
    /// Its name, if that may be known.
    pub name: Option<String>,
    /// Where in the receive path.
    pub mode: XdpMode,
}

/// An address of this host.
#[derive(Clone, Debug, Serialize)]
pub struct Address {
    /// The interface that has it.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network.
    pub prefix: u8,
}

/// The way to a backend.
#[derive(Clone, Debug, Serialize)]
pub enum Way {
    /// Frames get there.
    Known {
        /// By this interface.
        interface: String,
        /// To this router; `None` if it is on the link.
        gateway: Option<IpAddr>,
        /// With this MAC; `None` on links that have no use for one.
        mac: Option<[u8; 6]>,
        /// The longest packet.
        mtu: u32,
    },
    /// The neighbour does not answer.
    Silent {
        /// On this interface.
        interface: String,
        /// The router, or the backend itself.
        neighbour: IpAddr,
    },
    /// There is none.
    None {
        /// Why.
        why: String,
    },
}

/// What was asked on the wire.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Wire {
    /// Why nothing could be asked.
    pub unasked: Option<String>,
    /// Hosts that answer for a VIP, beside this one.
    pub claims: Vec<Claim>,
    /// What became of a connection to each backend.
    pub probes: Vec<Probe>,
}

/// Another host that answers for a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// The VIP.
    pub vip: IpAddr,
    /// Where it was heard.
    pub interface: String,
    /// Who answers.
    pub mac: [u8; 6],
}

/// A connection to a backend, begun the way that the data path would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Its service.
    pub service: String,
    /// How packets of that service reach it.
    pub mode: Mode,
    /// The VIP.
    pub vip: IpAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// What came back.
    pub answer: Answer,
}

/// What came back of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Answer {
    /// It was taken.
    Taken,
    /// It was refused: the host is there, and nothing listens.
    Refused,
    /// Nothing.
    Silence,
}
