//! Looks at the host, and changes nothing. Everything is of the network namespace that it is called in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::judge::{forwarding_key, rp_filter_key};
use super::wire::{self, Question, Syn, Tunnel};
use super::{Address, Agent, Answer, Claim, Facts, Kernel, Link, Pins, Probe, Way, Wire, Xdp, nic::Nics};
use crate::api::{Client, XdpMode};
use crate::compile::GUE_PORT;
use crate::config::{self, Config, Mode, Protocol, Service};
use crate::dataplane::{self, maps};
use crate::lifecycle::check::{missing_capabilities, probes_vips};
use crate::netlink::{self, Hop, Survey};

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The configuration.
    pub config: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Where programs and maps are pinned.
    pub pins: PathBuf,
}

/// Looks at everything. Takes a second or two: neighbours and backends are asked.
pub async fn collect(places: &Places) -> Facts {
    let config = config::load(&places.config).map(|loaded| loaded.config).map_err(|error| error.to_string());
    let agent = agent(&places.socket).await;
    let status = agent.pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let status = status.or_else(|| fs::read_to_string("/proc/self/status").ok()).unwrap_or_default();
    let probes = config.as_ref().is_ok_and(|config| config.services.iter().any(probes_vips));
    let links = links().unwrap_or_default();
    let addresses = addresses(&links);
    let (mut ways, mut hops) = (BTreeMap::new(), BTreeMap::new());
    if let Ok(config) = &config {
        (ways, hops) = self::ways(config, &links);
    }
    let wire = match &config {
        Ok(config) => {
            let mut asked = ask_wire(config, &links, &ways, &hops);
            asked.probes.extend(connect(config).await);
            asked
        }
        Err(_) => Wire::default(),
    };
    Facts {
        kernel: Kernel {
            too_old: dataplane::check_kernel().err().map(|error| error.to_string()),
            btf: dataplane::has_btf(),
        },
        missing_capabilities: missing_capabilities(&status, probes).unwrap_or_default(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        pins: pins(&places.pins),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        sysctl: config.as_ref().map(sysctl).unwrap_or_default(),
        clock_synchronised: clock_synchronised(),
        open_files: open_files(agent.pid),
        config_path: places.config.clone(),
        config,
        agent,
        links,
        addresses,
        ways,
        wire,
    }
}

fn number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

async fn agent(socket: &Path) -> Agent {
    const PATIENCE: Duration = Duration::from_secs(2);
    let client = Client::new(socket).with_patience(PATIENCE);
    Agent {
        socket: socket.to_owned(),
        status: client.status().await.map_err(|error| error.to_string()),
        pid: peer(socket),
    }
}

/// The process that listens on a socket.
fn peer(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the structure is ours, has the length that is passed, and is filled in.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}

fn pins(base: &Path) -> Pins {
    let existing = base.ancestors().find(|path| path.exists());
    let program = maps::directory(base).join("lb");
    Pins {
        directory: base.to_owned(),
        on_bpffs: existing.is_some_and(dataplane::is_bpffs),
        program: program
            .exists()
            .then(|| aya::programs::ProgramInfo::from_pin(&program).map(|info| info.id()).unwrap_or(0)),
    }
}

fn links() -> Option<BTreeMap<String, Link>> {
    let mut nics = Nics::new().ok();
    let programs = Survey::new().and_then(|mut survey| survey.xdp()).unwrap_or_default();
    let all = netlink::list_links().ok()?;
    let called = |index: u32| all.get(&index).map(|link| link.name.clone());
    let bond = |index: u32| called(index).filter(|_| all[&index].kind.as_deref() == Some("bond"));
    let links = all.values().cloned().map(|link| {
        let name = link.name.as_str();
        let here = Link {
            index: link.index,
            up: link.up,
            running: link.running,
            mtu: link.mtu,
            mac: link.mac,
            driver: nics.as_ref().and_then(|nics| nics.driver(name)),
            vlan_of: link.vlan.and_then(|on| called(on.parent)),
            bond: link.controller.and_then(bond),
            takes_tags_off: nics.as_ref().and_then(|nics| nics.takes_tags_off(name)),
            lro: nics.as_ref().and_then(|nics| nics.lro(name)),
            queues: nics.as_ref().and_then(|nics| nics.queues(name)),
            native: nics.as_mut().and_then(|nics| nics.native_xdp(link.index)),
            interrupts: interrupts(name, link.index),
            xdp: programs.get(&link.index).map(|attached| Xdp {
                program: attached.program,
                name: program_name(attached.program),
                mode: if attached.generic { XdpMode::Generic } else { XdpMode::Native },
            }),
            kind: link.kind,
        };
        (link.name, here)
    });
    Some(links.collect())
}

/// Walking all programs needs CAP_SYS_ADMIN, which nothing else here does.
fn program_name(id: u32) -> Option<String> {
    let mut programs = aya::programs::loaded_programs().map_while(Result::ok);
    programs.find(|program| program.id() == id)?.name_as_str().map(str::to_owned)
}

/// What /sys says of an interface, if it shows this network namespace at all.
fn interrupts(name: &str, index: u32) -> BTreeMap<u32, String> {
    let device = format!("/sys/class/net/{name}");
    if number(&format!("{device}/ifindex")) != Some(index) {
        return BTreeMap::new();
    }
    let Ok(entries) = fs::read_dir(format!("{device}/device/msi_irqs")) else { return BTreeMap::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let places = numbers.filter_map(|irq: u32| {
        let read = |what: &str| fs::read_to_string(format!("/proc/irq/{irq}/{what}")).ok();
        let place = read("effective_affinity_list").or_else(|| read("smp_affinity_list"))?;
        Some((irq, place.trim().to_owned()))
    });
    places.collect()
}

fn addresses(links: &BTreeMap<String, Link>) -> Vec<Address> {
    let all = Survey::new().and_then(|mut survey| survey.addresses()).unwrap_or_default();
    let name = |index| links.iter().find(|(_, link)| link.index == index).map(|(name, _)| name.clone());
    let named = all.into_iter().filter_map(|address| {
        Some(Address { interface: name(address.ifindex)?, ip: address.ip, prefix: address.prefix })
    });
    named.collect()
}

type Hops = BTreeMap<IpAddr, Hop>;

fn ways(config: &Config, links: &BTreeMap<String, Link>) -> (BTreeMap<IpAddr, Way>, Hops) {
    /// The kernel asks three times, a second apart; a neighbour that is there answers the first time.
    const PATIENCE: Duration = Duration::from_millis(1_300);
    let (mut ways, mut hops) = (BTreeMap::new(), BTreeMap::new());
    let Ok(mut survey) = Survey::new() else { return (ways, hops) };
    let destinations: BTreeSet<IpAddr> =
        super::judge::backends(config).map(|(_, backend)| backend.ip()).collect();
    for destination in destinations {
        match survey.way(destination) {
            Ok(Ok(hop)) => _ = hops.insert(destination, hop),
            Ok(Err(why)) => _ = ways.insert(destination, Way::None { why: why.to_string() }),
            Err(error) => _ = ways.insert(destination, Way::None { why: error.to_string() }),
        }
    }
    let link = |index: u32| links.iter().find(|(_, link)| link.index == index);
    let neighbour = |(destination, hop): (&IpAddr, &Hop)| (hop.ifindex, hop.gateway.unwrap_or(*destination));
    let ethernet = |hop: &Hop| link(hop.ifindex).is_some_and(|(_, link)| link.mac.is_some());
    let wanted: BTreeSet<_> = hops.iter().filter(|(_, hop)| ethernet(hop)).map(neighbour).collect();
    let wanted: Vec<_> = wanted.into_iter().collect();
    let macs = survey.neighbours(&wanted, PATIENCE).unwrap_or_default();
    for (destination, hop) in &hops {
        let Some((name, link)) = link(hop.ifindex) else { continue };
        let key = neighbour((destination, hop));
        let way = match (link.mac, macs.get(&key)) {
            (Some(_), None) => Way::Silent { interface: name.clone(), neighbour: key.1 },
            (_, mac) => Way::Known {
                interface: name.clone(),
                gateway: hop.gateway,
                mac: mac.copied(),
                mtu: hop.mtu.unwrap_or(link.mtu).min(link.mtu),
            },
        };
        ways.insert(*destination, way);
    }
    (ways, hops)
}

fn sysctl(config: &Config) -> BTreeMap<String, String> {
    let names = config.dataplane.interfaces.iter().map(config::InterfaceName::as_str);
    let mut keys = vec![rp_filter_key("all")];
    for name in names {
        keys.push(rp_filter_key(name));
        keys.extend(config.services.iter().map(|service| forwarding_key(name, service.vip)));
    }
    let read = |key: String| {
        let value = fs::read_to_string(format!("/proc/sys/{key}")).ok()?;
        Some((key, value.trim().to_owned()))
    };
    keys.into_iter().filter_map(read).collect()
}

/// VIPs and backends of the dsr modes.
fn ask_wire(
    config: &Config,
    links: &BTreeMap<String, Link>,
    ways: &BTreeMap<IpAddr, Way>,
    hops: &Hops,
) -> Wire {
    enum About {
        Vip(IpAddr, String),
        Backend(Probe),
    }
    let mut questions = Vec::new();
    let vips: BTreeSet<IpAddr> = config.services.iter().map(|service| service.vip).collect();
    for name in config.dataplane.interfaces.iter().map(config::InterfaceName::as_str) {
        let Some((link, mac)) = links.get(name).and_then(|link| Some((link, link.mac?))) else { continue };
        for vip in &vips {
            let question = Question::WhoHas { vip: *vip, ifindex: link.index, mac };
            questions.push((About::Vip(*vip, name.to_owned()), question));
        }
    }
    for (service, backend) in super::judge::backends(config).filter(|(service, _)| service.mode.is_dsr()) {
        let port = 32_768 + (questions.len() % 16_384) as u16;
        if let Some(syn) = syn(config, service, backend, port, links, ways, hops) {
            questions.push((About::Backend(probe(service, backend, Answer::Silence)), Question::Syn(syn)));
        }
    }
    let (about, questions): (Vec<_>, Vec<_>) = questions.into_iter().unzip();
    let heard = match wire::ask(&questions) {
        Ok(heard) => heard,
        Err(error) => {
            let why = format!(
                "nothing can be asked on the wire (it needs CAP_NET_RAW: sudo lbctl doctor): {error}"
            );
            return Wire { unasked: Some(why), ..Wire::default() };
        }
    };
    let ours: BTreeSet<[u8; 6]> = links.values().filter_map(|link| link.mac).collect();
    let mut wire = Wire::default();
    for (about, heard) in about.into_iter().zip(heard) {
        match about {
            About::Vip(vip, interface) => {
                let others = heard.macs.difference(&ours);
                wire.claims.extend(others.map(|mac| Claim { vip, interface: interface.clone(), mac: *mac }));
            }
            About::Backend(probe) => {
                wire.probes.push(Probe { answer: heard.answer.unwrap_or(Answer::Silence), ..probe });
            }
        }
    }
    // On interfaces of one segment the same host answers twice.
    wire.claims.sort_by_key(|claim| (claim.vip, claim.mac));
    wire.claims.dedup_by_key(|claim| (claim.vip, claim.mac));
    wire
}

fn probe(service: &Service, backend: SocketAddr, answer: Answer) -> Probe {
    Probe { service: service.name.as_str().to_owned(), mode: service.mode, vip: service.vip, backend, answer }
}

/// A SYN for the VIP as the data path would send it; `None` where the way is not known, which is a finding of its own.
fn syn(
    config: &Config,
    service: &Service,
    backend: SocketAddr,
    port: u16,
    links: &BTreeMap<String, Link>,
    ways: &BTreeMap<IpAddr, Way>,
    hops: &Hops,
) -> Option<Syn> {
    /// Discard (RFC 863), where a service has no port of its own.
    const ANY: u16 = 9;
    let Some(Way::Known { interface, mac: Some(to), .. }) = ways.get(&backend.ip()) else { return None };
    let (link, hop) = (links.get(interface)?, hops.get(&backend.ip())?);
    // Decapsulators take packets from the balancers' own prefixes only.
    let outer: IpAddr = match backend.ip() {
        IpAddr::V4(_) => config.dataplane.tunnel_source_v4.hosts().next()?.into(),
        IpAddr::V6(_) => config.dataplane.tunnel_source_v6.hosts().nth(1)?.into(),
    };
    let gue_port = (service.mode == Mode::DsrGue).then(|| service.gue_port.unwrap_or(GUE_PORT));
    let is_tunnel = matches!(service.mode, Mode::DsrIpip | Mode::DsrGue);
    let tunnel = is_tunnel.then_some(Tunnel { from: outer, to: backend.ip(), gue_port });
    let target = if service.port == 0 { ANY } else { service.port };
    Some(Syn {
        ifindex: link.index,
        macs: (link.mac?, *to),
        from: (own_address(service.vip, backend.ip(), hop.source)?, port).into(),
        to: (service.vip, target).into(),
        tunnel,
    })
}

/// An address of this host, of the VIP's family, that a backend can answer to.
fn own_address(vip: IpAddr, backend: IpAddr, source: IpAddr) -> Option<IpAddr> {
    if vip.is_ipv4() == backend.is_ipv4() {
        return Some(source);
    }
    let mut survey = Survey::new().ok()?;
    let all = survey.addresses().ok()?;
    let global = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let fits = |ip: &IpAddr| ip.is_ipv4() == vip.is_ipv4() && *ip != vip && global(ip);
    all.into_iter().map(|address| address.ip).find(fits)
}

/// Connects to the backends of the other modes, as the data path's packets would arrive there.
async fn connect(config: &Config) -> Vec<Probe> {
    const PATIENCE: Duration = Duration::from_secs(1);
    /// More would want for descriptors.
    const AT_A_TIME: usize = 200;
    let asked: Vec<(&Service, SocketAddr)> = super::judge::backends(config)
        .filter(|(service, backend)| {
            !service.mode.is_dsr() && service.protocol == Protocol::Tcp && backend.port() != 0
        })
        .collect();
    let mut probes = Vec::new();
    for some in asked.chunks(AT_A_TIME) {
        let connections = some.iter().map(|&(service, backend)| async move {
            let outcome = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(backend)).await;
            let answer = match outcome {
                Ok(Ok(_)) => Answer::Taken,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Answer::Refused,
                Ok(Err(_)) | Err(_) => Answer::Silence,
            };
            probe(service, backend, answer)
        });
        probes.extend(futures_util::future::join_all(connections).await);
    }
    probes
}

/// adjtimex(2) asked for nothing: `TIME_ERROR` is what it returns of a clock that nobody keeps.
fn clock_synchronised() -> Option<bool> {
    // SAFETY: an all-zero structure of integers is valid; with no mode set it is only filled in.
    let state = unsafe {
        let mut time: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut time)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

/// The hard limit of open files: lbd raises the soft one to it.
fn open_files(pid: Option<i32>) -> Option<u64> {
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/limits")).ok();
    let limits = pid.and_then(|pid| of(&pid.to_string())).or_else(|| of("self"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
