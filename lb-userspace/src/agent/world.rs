//! What the agent knows of the world beside what is configured: health, next hops, interfaces.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::abi;
use tokio_rustls::rustls::pki_types::InvalidDnsNameError;
use tracing::{info, warn};

use super::outlier::Passive;
use super::{Agent, Targets, vlans};
use crate::api::{self, BackendPath};
use crate::compile::{Compiled, Health, World, id_of, key_of};
use crate::config::{
    self, AgentCheck, Backend, CommandLine, HealthCheck, HttpHost, Pool, Probe, Question, Service,
    ServiceName, TlsName, Verify,
};
use crate::events::Occurrence;
use crate::health::{
    self, Advice, Alpn, Check, CheckKind, Command, GrpcCheck, HealthEvent, HttpCheck, Report, Scheduler,
    StatusRangesError, Target, TargetId, Timing, TimingError, Tls, Trust, UdpCheck,
};
use crate::netlink::{Link, NextHop, NextHopEvent, Unreachable, Vip};
use crate::outlier::Gate;
use crate::packet_socket::PacketSocket;
use crate::publish::{Publisher, Sources};
use crate::sysctl;

/// The agent's view, for the compiler.
pub(super) struct View<'a> {
    pub hops: &'a HashMap<IpAddr, Result<NextHop, Unreachable>>,
    pub adopted_hops: &'a HashMap<IpAddr, abi::NextHop>,
    pub devices: &'a HashMap<u32, u16>,
    pub targets: &'a Targets,
    pub scheduler: &'a Scheduler,
    pub passive: &'a Passive,
    pub faulted: &'a BTreeSet<ServiceName>,
}

impl World for View<'_> {
    fn health(&self, service: &Service, backend: SocketAddr) -> Health {
        let key = (service.name.clone(), backend);
        let was_up = self.targets.presumed_up.contains(&key);
        match self.agent(&key) {
            Some(report) if report.advice.down => return Health::Down,
            // Whether it wants any flows is not known before it was asked.
            Some(report) if report.last.is_none() && !was_up => return Health::Unknown,
            _ => {}
        }
        if service.health.check.is_none() {
            return Health::Unchecked;
        }
        let state =
            self.targets.ids.get(&key).and_then(|&id| self.scheduler.report(id)).map(|report| report.health);
        match state {
            Some(health::Health::Up) => Health::Up,
            Some(health::Health::Down) => Health::Down,
            Some(health::Health::Unknown) | None if was_up => Health::Up,
            Some(health::Health::Unknown) | None => Health::Unknown,
        }
    }

    fn source(&self, backend: SocketAddr) -> Option<IpAddr> {
        self.hops.get(&backend.ip())?.ok().map(|hop| hop.source)
    }

    fn has_faults(&self, service: &Service) -> bool {
        self.faulted.contains(&service.name)
    }

    fn advice(&self, service: &Service, backend: SocketAddr) -> Advice {
        self.agent(&(service.name.clone(), backend)).map_or(Advice::NONE, |report| report.advice)
    }

    fn is_ejected(&self, service: &Service, backend: SocketAddr) -> bool {
        self.passive.ejection(&service.name, backend).is_some()
    }

    fn gate(&self, service: &Service, backend: SocketAddr) -> Gate {
        self.passive.gate(&service.name, backend)
    }

    fn steer(&self, service: &Service, backend: SocketAddr) -> u16 {
        self.passive.steer(&service.name, backend)
    }

    fn pool_gate(&self, service: &Service, pool: &config::PoolName) -> Gate {
        self.passive.pool_gate(&service.name, pool)
    }

    fn next_hop(&self, backend: SocketAddr) -> abi::NextHop {
        self.way_to(backend.ip())
    }
}

impl View<'_> {
    fn way_to(&self, address: IpAddr) -> abi::NextHop {
        let Some(found) = self.hops.get(&address) else {
            return self.adopted_hops.get(&address).copied().unwrap_or_default();
        };
        let Ok(hop) = found else { return abi::NextHop::default() };
        match (hop.mac, self.devices.get(&hop.ifindex)) {
            (Some(mac), Some(&device)) => abi::NextHop::of(mac, device),
            _ => abi::NextHop::default(),
        }
    }

    fn agent(&self, key: &(ServiceName, SocketAddr)) -> Option<Report> {
        self.scheduler.report(*self.targets.agents.get(key)?)
    }
}

impl Targets {
    /// Gives every check of a backend an id of its own, and forgets those that are gone. `takers` take flows now: a check that
    /// is new, or another one, moves nobody before it is over.
    pub(super) fn update(
        &mut self,
        services: &[Cow<'_, Service>],
        takers: HashSet<(ServiceName, SocketAddr)>,
    ) -> Vec<Target> {
        let mut targets = Vec::new();
        let (ids, agents) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.agents));
        let mut next = self.next;
        let mut id_of = |known: &HashMap<_, TargetId>, key: &(ServiceName, SocketAddr)| {
            known.get(key).copied().unwrap_or_else(|| {
                next += 1;
                TargetId(next)
            })
        };
        for service in services {
            let check = check_of(service);
            let agent = agent_check_of(service);
            for (pool, backend) in
                service.pools.iter().flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
            {
                let key = (service.name.clone(), backend.address);
                if let Some((check, port)) = &check {
                    let id = id_of(&ids, &key);
                    self.ids.insert(key.clone(), id);
                    let port = backend.health_port.or(*port).unwrap_or(backend.address.port());
                    let check = check.of(service, pool, backend);
                    let via = super::roads::via(service, backend.address);
                    let ip = if via.is_some() { service.vip } else { backend.address.ip() };
                    targets.push(Target { id, address: (ip, port).into(), check, mark: None, via });
                }
                if let Some((agent, port)) = &agent
                    && let Some(port) = backend.agent_port.or(*port)
                {
                    let id = id_of(&agents, &key);
                    self.agents.insert(key, id);
                    let address = (backend.address.ip(), port).into();
                    targets.push(Target { id, address, check: agent.clone(), mark: None, via: None });
                }
            }
        }
        self.next = next;
        self.backends = self.ids.iter().chain(&self.agents).map(|(key, &id)| (id, key.clone())).collect();
        let (ids, agents) = (&self.ids, &self.agents);
        self.presumed_up.extend(takers);
        self.presumed_up.retain(|key| ids.contains_key(key) || agents.contains_key(key));
        self.hooks.retain(|name| services.iter().any(|service| service.name.as_str() == name));
        targets
    }
}

/// Backends that slots send new flows to.
fn takers(services: &[Cow<'_, Service>], publisher: &Publisher) -> HashSet<(ServiceName, SocketAddr)> {
    let mut takers = HashSet::new();
    for service in services {
        let Some(index) = publisher.registry.service_index(&key_of(service)) else { continue };
        let Some(record) = publisher.registry.services.get(&index) else { continue };
        let takes =
            |id: u16| record.stable.iter().chain(&record.canary).any(|table| table.takers.contains_key(&id));
        for backend in service.pools.iter().flat_map(|pool| &pool.backends) {
            if id_of(service, backend.address, index, &publisher.registry).is_some_and(takes) {
                takers.insert((service.name.clone(), backend.address));
            }
        }
    }
    takers
}

/// What is asked of the backends of a service.
enum Asked {
    /// The same of all.
    Same(Check),
    /// A command, which is told which one it is about.
    Each(CommandLine, Timing),
}

impl Asked {
    fn of(&self, service: &Service, pool: &Pool, backend: &Backend) -> Check {
        match self {
            Self::Same(check) => check.clone(),
            Self::Each(command, timing) => {
                let command = command_about(command, &service.name, pool.name.as_str(), backend.address);
                Check { kind: CheckKind::Exec(Arc::new(command)), timing: *timing }
            }
        }
    }
}

/// With the environment that commands of the operator get.
fn command_about(line: &CommandLine, service: &ServiceName, pool: &str, backend: SocketAddr) -> Command {
    Command {
        program: line.program().to_owned(),
        arguments: line.arguments().to_owned(),
        environment: vec![
            ("LB_SERVICE", service.as_str().to_owned()),
            ("LB_POOL", pool.to_owned()),
            ("LB_BACKEND", BackendPath::name_of(backend)),
        ],
    }
}

/// The check, and the port of backends that have none of their own for it.
fn check_of(service: &Service) -> Option<(Asked, Option<u16>)> {
    let HealthCheck { question, probe } = service.health.check.as_ref()?;
    let check = timing(probe).map_err(|error| error.to_string()).and_then(|timing| {
        let same = |kind| Asked::Same(Check { kind, timing });
        Ok(match question {
            Question::Tcp => same(CheckKind::Tcp),
            Question::Http(request) => same(CheckKind::Http(Arc::new(http_check(request)?))),
            Question::Https(request, tls) => {
                let tls = tls_of(service, tls, request.host.as_ref(), Alpn::Http1)?;
                same(CheckKind::Http(Arc::new(http_check(request)?.within(tls))))
            }
            Question::Grpc(request) => same(CheckKind::Grpc(Arc::new(grpc_check(request)?))),
            Question::Grpcs(request, tls) => {
                let tls = tls_of(service, tls, request.host.as_ref(), Alpn::Http2)?;
                same(CheckKind::Grpc(Arc::new(grpc_check(request)?.within(tls))))
            }
            Question::Udp(exchange) => {
                let expect = exchange.expect.as_ref().map(|expect| expect.bytes().into());
                same(CheckKind::Udp(Arc::new(UdpCheck { send: exchange.send.bytes().into(), expect })))
            }
            Question::Exec(command) => Asked::Each(command.clone(), timing),
        })
    });
    match check {
        Ok(check) => Some((check, probe.port)),
        Err(error) => {
            warn!(service = %service.name, "the health check cannot be made as configured: {error}");
            None
        }
    }
}

fn timing(probe: &Probe) -> Result<Timing, TimingError> {
    Timing::new(probe.interval, probe.timeout, probe.healthy, probe.unhealthy)?
        .with_intervals(probe.fast_interval, probe.down_interval)
}

fn http_check(request: &config::HttpRequest) -> Result<HttpCheck, String> {
    let host = request.host.as_ref().map(HttpHost::as_str);
    let expect =
        request.expect_status.to_string().parse().map_err(|error: StatusRangesError| error.to_string())?;
    let check = HttpCheck::new(request.path.as_str(), host, expect).map_err(|error| error.to_string())?;
    Ok(match &request.expect_body {
        Some(text) => check.expecting_body(text.as_str()),
        None => check,
    })
}

fn grpc_check(request: &config::GrpcRequest) -> Result<GrpcCheck, String> {
    let service = request.service.as_ref().map_or("", config::Phrase::as_str);
    GrpcCheck::new(service, request.host.as_ref().map(HttpHost::as_str)).map_err(|error| error.to_string())
}

fn tls_of(service: &Service, tls: &config::Tls, host: Option<&HttpHost>, alpn: Alpn) -> Result<Tls, String> {
    let trust = match (&tls.verify, &tls.ca_file) {
        (Verify::None, _) => Trust::Anyone,
        (Verify::Required, Some(file)) => Trust::File(file.as_path().to_owned()),
        (Verify::Required, None) => Trust::Host,
    };
    // Without its port, if it is a name that a certificate can be for.
    let of_host = || {
        let host = host?.as_str();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        Some(name).filter(|name| TlsName::is_name(name))
    };
    let name = tls.sni.as_ref().map(TlsName::as_str).or_else(of_host);
    let name = name.map(|name| name.to_owned().try_into()).transpose();
    let tls = Tls::new(trust, name.map_err(|error: InvalidDnsNameError| error.to_string())?, alpn);
    if let Some(trouble) = tls.trouble() {
        warn!(service = %service.name, "no health check can be run: {trouble}");
    }
    Ok(tls)
}

/// The agent check, and the port of backends that have none of their own for it.
fn agent_check_of(service: &Service) -> Option<(Check, Option<u16>)> {
    let agent = &service.health.agent;
    let interval = agent.interval.unwrap_or(AgentCheck::INTERVAL);
    match Timing::new(interval, AgentCheck::TIMEOUT, 1, 3) {
        Ok(timing) => Some((Check { kind: CheckKind::Agent, timing }, agent.port)),
        Err(error) => {
            warn!(service = %service.name, "the agent check cannot be made as configured: {error}");
            None
        }
    }
}

impl Agent {
    /// A check's verdict on a backend, or what a backend says of itself, has changed.
    pub(super) fn health_changed(&mut self, event: HealthEvent) {
        let Some(key) = self.targets.backends.get(&event.id).cloned() else { return };
        let (name, backend) = key.clone();
        let why = event.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let (code, message, severe) = if self.targets.agents.get(&key) == Some(&event.id) {
            match event.state {
                health::Health::Down => {
                    let stands = event.advice;
                    (
                        "agent_check_failed",
                        format!("the agent check of {backend} fails{why}; {stands} stands"),
                        true,
                    )
                }
                _ => ("agent_check", format!("{backend} says {}", event.advice), !event.advice.takes_new()),
            }
        } else {
            self.targets.presumed_up.remove(&key);
            match event.state {
                health::Health::Up => ("backend_up", format!("{backend} is healthy{why}"), false),
                health::Health::Down => ("backend_down", format!("{backend} is down{why}"), true),
                health::Health::Unknown => return,
            }
        };
        let pool = self.pool_of(&name, backend);
        self.log.push(Occurrence {
            code,
            severe,
            service: Some(name.as_str().to_owned()),
            pool,
            backend: Some(backend.to_string()),
            message,
            ..Occurrence::default()
        });
        self.converge([name]);
    }

    /// Runs what an operator wants to be run for each backend that has gone down since `before`. One look at verdicts may find
    /// several of them.
    pub(super) fn run_down_commands(&mut self, name: &ServiceName, before: Option<&Compiled>) {
        let (Some(before), Some(now)) = (before, self.compiled.get(name)) else { return };
        let Some(service) = self.desired.service(name.as_str()) else { return };
        let Some(line) = &service.health.on_down_command else { return };
        for (pool, backend) in now.gone_down_since(before) {
            self.targets.hooks.run(name.as_str(), command_about(line, name, pool, backend));
        }
    }

    /// The way to some backends has changed.
    pub(super) fn hops_changed(&mut self, events: Vec<NextHopEvent>) {
        let mut moved = HashSet::new();
        for event in events {
            if self.hops.insert(event.destination, event.next_hop) != Some(event.next_hop) {
                moved.insert(event.destination);
                match event.next_hop {
                    Ok(_) => {
                        let way = match self.next_hop(event.destination) {
                            api::NextHop::Known { interface, mac } => format!("{mac} on {interface}"),
                            api::NextHop::Unreachable { unreachable } => unreachable,
                        };
                        info!(backend = %event.destination, "next hop: {way}");
                    }
                    Err(reason) => info!(backend = %event.destination, "no next hop: {}", reason.name()),
                }
            }
        }
        self.register_devices();
        let touched: Vec<ServiceName> = self
            .desired
            .services()
            .filter(|s| {
                s.pools.iter().flat_map(|pool| &pool.backends).any(|b| moved.contains(&b.address.ip()))
            })
            .map(|service| service.name.clone())
            .collect();
        self.converge(touched);
        self.lead_those_that_leave(&moved);
    }

    /// Backends that are configured no more finish their flows where they are by now.
    fn lead_those_that_leave(&self, moved: &HashSet<IpAddr>) {
        let world = self.world();
        let ids = self.publisher.registry.ids_with_addresses();
        for (id, address) in ids.filter(|(_, address)| moved.contains(address)) {
            let hop = world.way_to(address);
            if hop.mac().is_some() {
                self.publisher.lead(id, hop);
            }
        }
    }

    /// Has the kernel know the way to whoever is configured, or may still have flows.
    pub(super) fn follow_ways(&self) {
        let services = self.desired.services();
        let configured: Vec<IpAddr> = services
            .flat_map(|service| {
                let backends = service.pools.iter().flat_map(|pool| &pool.backends);
                backends.map(|backend| backend.address.ip()).collect::<Vec<_>>()
            })
            .collect();
        let known = self.publisher.registry.ids_with_addresses().map(|(_, address)| address);
        self.next_hops.set_targets(configured.into_iter().chain(known).collect());
    }

    /// Lets go of the ways to backends that have no id any more.
    pub(super) fn forget_hops(&mut self) {
        let used = self.publisher.registry.ids_with_addresses().map(|(_, address)| address).collect();
        forget_hops(&mut self.hops, &self.next_hops.snapshot(), &used);
    }

    /// Tells the kernel program about every interface that frames leave by: backends' and those of clients.
    pub(super) fn register_devices(&mut self) {
        let links = self.links.snapshot();
        self.devices.retain(|ifindex, _| links.contains_key(ifindex));
        self.publisher.forget_devices(|ifindex| links.contains_key(&ifindex));
        let mut needed: BTreeSet<u32> =
            self.kernel.attached.iter().map(|attached| attached.ifindex).collect();
        needed.extend(self.hops.values().flatten().map(|hop| hop.ifindex));
        let lowest: BTreeSet<u32> =
            needed.iter().filter_map(|&ifindex| Some(vlans::below(&links, ifindex)?.ifindex)).collect();
        for &ifindex in needed.union(&lowest) {
            let Some(link) = links.get(&ifindex) else { continue };
            // A frame for a VLAN device leaves by what is below.
            let itself = lowest.contains(&ifindex);
            match self.publisher.device(ifindex, link.mac.unwrap_or_default(), link.mtu, itself) {
                Ok(index) => {
                    self.devices.insert(ifindex, index);
                }
                Err(error) => warn!(interface = %link.name, "frames cannot leave by it: {error}"),
            }
        }
        if let Err(error) = self.publisher.vlans(&vlans::table(&links, &lowest)) {
            warn!("frames cannot leave by VLAN devices: {error}");
        }
    }

    /// The kernel program dropped packets for want of a neighbour's hardware address.
    pub(super) fn neighbours_wanted(&mut self, wanted: BTreeSet<(u32, IpAddr)>) {
        for (ifindex, address) in wanted {
            if let Err(error) = self.resolver.resolve(ifindex, address) {
                warn!(%address, ifindex, "cannot ask for a neighbour: {error}");
            }
        }
    }

    /// Has checks, neighbours, sources of backends and VIPs follow what is desired.
    pub(super) fn follow_config(&mut self) {
        let services: Vec<_> = self.desired.services().collect();
        let targets = self.targets.update(&services, takers(&services, &self.publisher));
        if targets.iter().any(|target| target.via.is_some())
            && let Err(error) = PacketSocket::sending()
        {
            warn!(
                "no VIP can be probed on its backends (`via = \"vip\"` needs CAP_NET_RAW, and AF_PACKET in the unit file): {error}"
            );
        }
        self.scheduler.update(targets);
        self.follow_ways();
        self.discoveries.follow(&self.desired.config.services);
        self.place_vips();
        self.place_sources();
    }

    /// Tells the kernel program what stands for clients (`full-nat`).
    fn place_sources(&self) {
        let dataplane = &self.desired.config.dataplane;
        let sources = Sources {
            addresses: dataplane.snat_addresses.iter().map(|&address| address.into()).collect(),
            ports: [dataplane.snat_ports.first(), dataplane.snat_ports.last()],
            cpus: aya::util::nr_cpus().map_or(1, |cpus| cpus as u32),
            tcp_idle: crate::clock::in_ticks(dataplane.tcp_idle),
        };
        if let Err(error) = self.publisher.sources(&sources) {
            warn!("cannot tell the kernel program what stands for clients: {error}");
        }
    }

    /// The host answers ARP and ND for every VIP, on the first interface, unless somebody else has it do so.
    pub(super) fn place_vips(&self) {
        let Some(first) = self.kernel.attached.first() else { return };
        let dataplane = &self.desired.config.dataplane;
        let services = &self.desired.config.services;
        let previews = self.preview_addresses();
        let dsr_only = previews.is_empty() && services.iter().all(|it| it.mode.is_dsr());
        let vips = services.iter().map(|service| service.vip).chain(previews);
        let vips = vips.filter(|_| dataplane.hold_vips);
        let addresses = vips.chain(dataplane.snat_addresses.iter().copied());
        self.vips.set(addresses.map(|address| Vip { ifindex: first.ifindex, address }).collect());
        if !dsr_only {
            self.accept_own_replies();
        }
    }

    /// Has the host forward replies whose next hop it has to find first: their source is a VIP, an address of its own, and
    /// IPv4 takes such packets for forged unless it is told otherwise (IPv6 does not).
    fn accept_own_replies(&self) {
        let links = self.links.snapshot();
        let attached = |ifindex: u32| self.kernel.attached.iter().any(|it| it.ifindex == ifindex);
        // What came in with a tag goes up by a VLAN device.
        let arrivals = links.values().filter(|link| {
            attached(link.index)
                || vlans::below(&links, link.index).is_some_and(|vlan| attached(vlan.ifindex))
        });
        for Link { name, .. } in arrivals {
            match sysctl::accept_local(&self.places.state_dir, name) {
                Ok(None) => {}
                Ok(Some(setting)) => info!(interface = %name, "set {setting} = 1"),
                Err(error) => warn!(
                    interface = %name,
                    "cannot set accept_local ({error}): the first reply to a client whose neighbour is unknown is lost"
                ),
            }
        }
    }

    pub(super) fn pool_of(&self, service: &ServiceName, backend: SocketAddr) -> Option<String> {
        let service = self.desired.effective(service.as_str())?;
        let pool = service.pools.iter().find(|pool| pool.backends.iter().any(|b| b.address == backend))?;
        Some(pool.name.as_str().to_owned())
    }
}

/// Lets go of the ways to those that are neither followed nor used. What is followed is not told again.
fn forget_hops<Way>(
    hops: &mut HashMap<IpAddr, Way>,
    followed: &BTreeMap<IpAddr, Way>,
    used: &HashSet<IpAddr>,
) {
    hops.retain(|address, _| followed.contains_key(address) || used.contains(address));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_backends_that_come_and_go_do_not_pile_up() {
        let at = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut hops = HashMap::new();
        for last in 1..=100 {
            hops.insert(at(last), last);
            // The one before finishes its flows; of the next one is known already.
            let followed = [(at(last), last), (at(last + 1), last)].into();
            forget_hops(&mut hops, &followed, &[at(last), at(last - 1)].into());
        }
        assert_eq!(hops, [(at(99), 99), (at(100), 100)].into());
    }
}
