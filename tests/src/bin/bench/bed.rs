//! A lab with a running agent whose backends exist only in the neighbour table: as many as a measurement wants.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi;
use lb_common::quic::Codec;
use lb_tests::packets::hex;
use lb_tests::{Agent, AgentSpec, Family, Lab, Mac};
use lb_userspace::dataplane::maps::{Maps, directory};
use rtnetlink::packet_route::neighbour::NeighbourState;

use crate::driver::Stand;

/// Where clients are: RFC 2544 and RFC 5180 keep these prefixes for benchmarks.
pub const CLIENTS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// See [`CLIENTS_V4`].
pub const CLIENTS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);

/// The port of all services and backends.
pub const PORT: u16 = 80;

/// A service to be measured.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// The number of its VIP.
    pub vip: u8,
    /// The VIP's family, and the backends'.
    pub family: Family,
    /// As in the configuration.
    pub protocol: &'static str,
    /// As in the configuration.
    pub mode: &'static str,
    /// Slots in a table.
    pub slots: u32,
    /// The pools `stable` and `canary`: the numbers of their backends, with their weights.
    pub pools: Vec<Vec<(u16, u16)>>,
    /// Lines of `[service.protection]`, if there are any.
    pub protection: String,
    /// How its connection ids are read, if they are.
    pub quic: Option<Codec>,
}

impl Spec {
    /// TCP over IPv4 in IPIP, ten backends of equal weight.
    pub fn new(name: &'static str, vip: u8) -> Self {
        Self {
            name,
            vip,
            family: Family::V4,
            protocol: "tcp",
            mode: "dsr-ipip",
            slots: 16_381,
            pools: vec![equal(0..10)],
            protection: String::new(),
            quic: None,
        }
    }
}

/// Backends of equal weight.
pub fn equal(numbers: Range<u16>) -> Vec<(u16, u16)> {
    numbers.map(|number| (number, 100)).collect()
}

/// The lab, the agent, and its maps.
pub struct Bed {
    /// The hosts.
    pub lab: Lab,
    /// The agent.
    pub agent: Agent,
    /// What the agent has pinned.
    pub maps: Maps,
    specs: Vec<Spec>,
}

impl Bed {
    /// Starts an agent with these services, and more lines of `[dataplane]`; returns when all tables are published.
    ///
    /// # Errors
    /// If anything of it does not come up.
    pub fn start(specs: Vec<Spec>, dataplane: &str) -> Result<Self> {
        let lab = Lab::builder().backends(0).build()?;
        let balancer = lab.balancer();
        let client = lab.client(0);
        balancer.route(IpNet::V4(CLIENTS_V4), client.v4().into())?;
        balancer.route(IpNet::V6(CLIENTS_V6), client.v6().into())?;
        let backends = specs.iter().flat_map(|spec| &spec.pools).flatten().map(|(number, _)| *number);
        let count = backends.max().map_or(0, |last| last + 1);
        let mut neighbours = vec![(client.v4().into(), client.mac()), (client.v6().into(), client.mac())];
        for family in Family::ALL {
            neighbours.extend((0..count).map(|number| (backend(number, family), mac(number))));
        }
        introduce(&lab, neighbours)?;

        let mut agent = Agent::start(balancer, AgentSpec::new(config(&lab, &specs, dataplane)))?;
        agent.wait_ready(Duration::from_secs(60))?;
        let maps = Maps::open(&directory(&agent.places().pins))?;
        let bed = Self { lab, agent, maps, specs };
        for spec in &bed.specs {
            bed.wait_published(spec, Duration::from_secs(60))?;
        }
        Ok(bed)
    }

    /// The program that the agent has pinned.
    ///
    /// # Errors
    /// If it has not.
    pub fn program(&self) -> Result<ProgramFd> {
        let path = directory(&self.agent.places().pins).join("lb");
        let open = || ProgramInfo::from_pin(&path)?.fd();
        open().with_context(|| format!("cannot open {}", path.display()))
    }

    /// Where its packets are measured.
    pub fn stand(&self, cpu: usize) -> Stand {
        let balancer = self.lab.balancer();
        Stand { namespace: balancer.namespace().clone(), interface: balancer.port().index, cpu }
    }

    /// What `lbctl` prints for these arguments.
    ///
    /// # Errors
    /// If it fails.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.agent.lbctl(arguments)?.done()?.stdout)
    }

    /// Applies the same services with other lines of `[dataplane]`.
    ///
    /// # Errors
    /// If the agent refuses.
    pub fn reconfigure(&mut self, dataplane: &str) -> Result<()> {
        let text = config(&self.lab, &self.specs, dataplane);
        self.agent.write_config(&text)?;
        let path = self.agent.places().config.clone();
        self.lbctl(&["apply", "-f", &path.to_string_lossy()])?;
        Ok(())
    }

    /// Where clients find a service.
    pub fn vip(&self, spec: &Spec) -> IpAddr {
        self.lab.vip(spec.vip, spec.family)
    }

    /// The name that `lbctl` knows a backend by.
    pub fn path(spec: &Spec, pool: &str, number: u16) -> String {
        format!("{}/{pool}/{}", spec.name, SocketAddr::new(backend(number, spec.family), PORT))
    }

    /// A service as it is in the maps.
    ///
    /// # Errors
    /// If it is not there.
    pub fn service(&self, spec: &Spec) -> Result<abi::Service> {
        let protocol = if spec.protocol == "udp" { 17 } else { 6 };
        let key = abi::VipKey::new(self.vip(spec), PORT, protocol);
        let index = self.maps.vips.get(&key)?.with_context(|| format!("{} is not in VIPS", spec.name))?;
        Ok(self.maps.services.read(index))
    }

    /// Whether the hash says the backend of every flow of every service.
    ///
    /// # Errors
    /// If a service is not there.
    pub fn is_settled(&self) -> Result<bool> {
        for spec in &self.specs {
            let service = self.service(spec)?;
            if service.split().tracked() != 0 || service.home() != service.split().new() {
                return Ok(false);
            }
            for first in [service.stable_slots, service.canary_slots].into_iter().take(spec.pools.len()) {
                let mut slots = first..first + service.table_size;
                if !slots.all(|slot| abi::Slot(self.maps.slots.read(slot)).is_settled()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn wait_published(&self, spec: &Spec, timeout: Duration) -> Result<()> {
        let wanted = spec.pools.iter().flatten().filter(|(_, weight)| *weight > 0).count();
        let deadline = Instant::now() + timeout;
        loop {
            let text = self.lbctl(&["-o", "json", "get", "backends", spec.name])?;
            let backends: serde_json::Value = serde_json::from_str(&text)?;
            let rows = backends["backends"].as_array().map_or(&[][..], Vec::as_slice);
            let taking = rows.iter().filter(|row| row["takes_new"] == true).count();
            if taking == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {taking} of {wanted} backends take flows\n{}",
                spec.name,
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The address of a backend, on the balancer's LAN and nobody's.
pub fn backend(number: u16, family: Family) -> IpAddr {
    let (group, host) = ((100 + number / 250) as u8, (1 + number % 250) as u8);
    match family {
        Family::V4 => Ipv4Addr::new(10, 1, group, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, group.into(), host.into()).into(),
    }
}

/// What it calls itself in connection ids.
pub fn server_id(codec: &Codec, number: u16) -> Vec<u8> {
    let mut id = vec![0; codec.server_id_length.into()];
    let [high, low] = number.to_be_bytes();
    id[..2].copy_from_slice(&[high, low]);
    id
}

/// Its hardware address.
pub fn mac(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([0x02, 0, 0, 0x64, high, low])
}

/// Tells the balancer's kernel where they are, once and for all.
///
/// # Errors
/// If it does not take them.
pub fn introduce(lab: &Lab, neighbours: Vec<(IpAddr, Mac)>) -> Result<()> {
    let interface = lab.balancer().port().index;
    lab.balancer()
        .netlink(async |handle| {
            for (address, mac) in neighbours {
                let entry = handle.neighbours().add(interface, address).link_layer_address(&mac.0);
                entry.state(NeighbourState::Permanent).replace().execute().await?;
            }
            Ok(())
        })
        .context("cannot add neighbours")
}

fn config(lab: &Lab, specs: &[Spec], dataplane: &str) -> String {
    let interface = &lab.balancer().port().name;
    let mut text = format!("schema = 1\n[dataplane]\ninterfaces = [\"{interface}\"]\n{dataplane}\n");
    for spec in specs {
        let Spec { name, protocol, mode, slots, .. } = spec;
        let vip = lab.vip(spec.vip, spec.family);
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {PORT}\nprotocol = \"{protocol}\"\n\
             mode = \"{mode}\"\ntable_size = {slots}\n"
        );
        if !spec.protection.is_empty() {
            let _ = writeln!(text, "[service.protection]\n{}", spec.protection);
        }
        if let Some(codec) = &spec.quic {
            let Codec { config, server_id_length, nonce_length, key } = codec;
            let key = key.map_or(String::new(), |key| format!("key = \"{}\"\n", hex(&key)));
            let _ = write!(
                text,
                "[service.quic]\n[[service.quic.config]]\nid = {config}\nserver_id_length = {server_id_length}\n\
                 nonce_length = {nonce_length}\n{key}"
            );
        }
        for (pool, backends) in ["stable", "canary"].into_iter().zip(&spec.pools) {
            let _ = writeln!(text, "[[service.pool]]\nname = \"{pool}\"");
            for &(number, weight) in backends {
                let address = SocketAddr::new(backend(number, spec.family), PORT);
                let _ =
                    writeln!(text, "[[service.pool.backend]]\naddress = \"{address}\"\nweight = {weight}");
                if let Some(codec) = &spec.quic {
                    let _ = writeln!(text, "server_ids = [\"{}\"]", hex(&server_id(codec, number)));
                }
            }
        }
    }
    text
}
