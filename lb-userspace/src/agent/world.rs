//! What the agent knows of the world beside what is configured: health, next hops, interfaces.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::abi;
use tracing::{info, warn};

use super::{Agent, Targets};
use crate::compile::{Health, World};
use crate::config::{self, Service, ServiceName};
use crate::events::Occurrence;
use crate::health::{self, Check, CheckKind, HealthEvent, HttpCheck, Scheduler, Target, TargetId, Timing};
use crate::netlink::{NextHop, NextHopEvent, Unreachable, Vip};

/// The agent's view, for the compiler.
pub(super) struct View<'a> {
    pub hops: &'a HashMap<IpAddr, Result<NextHop, Unreachable>>,
    pub adopted_hops: &'a HashMap<IpAddr, abi::NextHop>,
    pub devices: &'a HashMap<u32, u16>,
    pub targets: &'a Targets,
    pub scheduler: &'a Scheduler,
}

impl World for View<'_> {
    fn health(&self, service: &Service, backend: SocketAddr) -> Health {
        if matches!(service.health, config::Health::None) {
            return Health::Unchecked;
        }
        let key = (service.name.clone(), backend);
        let state =
            self.targets.ids.get(&key).and_then(|&id| self.scheduler.report(id)).map(|report| report.health);
        match state {
            Some(health::Health::Up) => Health::Up,
            Some(health::Health::Down) => Health::Down,
            Some(health::Health::Unknown) | None if self.targets.presumed_up.contains(&key) => Health::Up,
            Some(health::Health::Unknown) | None => Health::Unknown,
        }
    }

    fn next_hop(&self, backend: SocketAddr) -> abi::NextHop {
        let Some(found) = self.hops.get(&backend.ip()) else {
            return self.adopted_hops.get(&backend.ip()).copied().unwrap_or_default();
        };
        let Ok(hop) = found else { return abi::NextHop::default() };
        match (hop.mac, self.devices.get(&hop.ifindex)) {
            (Some(mac), Some(&device)) => abi::NextHop::of(mac, device),
            _ => abi::NextHop::default(),
        }
    }
}

impl Targets {
    /// Gives every backend that is checked an id of its own, and forgets those that are gone.
    pub(super) fn update(&mut self, services: &[Service]) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut living = HashSet::new();
        for service in services {
            let Some(check) = check_of(service) else { continue };
            let port = service.health.probe().and_then(|probe| probe.port);
            for backend in service.pools.iter().flat_map(|pool| &pool.backends) {
                let key = (service.name.clone(), backend.address);
                let id = *self.ids.entry(key.clone()).or_insert_with(|| {
                    self.next += 1;
                    TargetId(self.next)
                });
                self.backends.insert(id, key.clone());
                living.insert(key);
                let mut address = backend.address;
                address.set_port(port.unwrap_or(address.port()));
                targets.push(Target { id, address, check: check.clone(), mark: None });
            }
        }
        self.ids.retain(|key, _| living.contains(key));
        self.backends.retain(|_, key| living.contains(key));
        self.presumed_up.retain(|key| living.contains(key));
        targets
    }
}

fn check_of(service: &Service) -> Option<Check> {
    let probe = service.health.probe()?;
    let timing = Timing::new(probe.interval, probe.timeout, probe.healthy, probe.unhealthy).ok()?;
    let kind = match &service.health {
        config::Health::None => return None,
        config::Health::Tcp(_) => CheckKind::Tcp,
        config::Health::Http(_, request) => CheckKind::Http(Arc::new(http_check(request)?)),
    };
    Some(Check { kind, timing })
}

fn http_check(request: &config::HttpRequest) -> Option<HttpCheck> {
    let host = request.host.as_ref().map(config::HttpHost::as_str);
    let expect = request.expect_status.to_string().parse().ok()?;
    match HttpCheck::new(request.path.as_str(), host, expect) {
        Ok(check) => Some(check),
        Err(error) => {
            warn!("a check cannot be made as configured: {error}");
            None
        }
    }
}

impl Agent {
    /// A check's verdict on a backend has changed.
    pub(super) fn health_changed(&mut self, event: HealthEvent) {
        let Some((name, backend)) = self.targets.backends.get(&event.id).cloned() else { return };
        self.targets.presumed_up.remove(&(name.clone(), backend));
        let why = event.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let (code, words, severe) = match event.state {
            health::Health::Up => ("backend_up", "is healthy", false),
            health::Health::Down => ("backend_down", "is down", true),
            health::Health::Unknown => return,
        };
        self.log.push(Occurrence {
            code,
            severe,
            service: Some(name.as_str().to_owned()),
            pool: self.pool_of(&name, backend),
            backend: Some(backend.to_string()),
            message: format!("{backend} {words}{why}"),
            ..Occurrence::default()
        });
        self.converge([name]);
    }

    /// The way to some backends has changed.
    pub(super) fn hops_changed(&mut self, events: Vec<NextHopEvent>) {
        let mut moved = HashSet::new();
        for event in events {
            if self.hops.insert(event.destination, event.next_hop) != Some(event.next_hop) {
                moved.insert(event.destination);
                match event.next_hop {
                    Ok(hop) => info!(backend = %event.destination, ?hop, "next hop"),
                    Err(reason) => info!(backend = %event.destination, "no next hop: {}", reason.name()),
                }
            }
        }
        self.register_devices();
        let touched: Vec<ServiceName> = self
            .desired
            .config
            .services
            .iter()
            .filter(|s| {
                s.pools.iter().flat_map(|pool| &pool.backends).any(|b| moved.contains(&b.address.ip()))
            })
            .map(|service| service.name.clone())
            .collect();
        self.converge(touched);
    }

    /// Interfaces came, went or changed.
    pub(super) fn links_changed(&mut self) {
        self.register_devices();
        self.converge(self.names());
    }

    /// Tells the kernel program about every interface that frames leave by: backends' and those of clients.
    pub(super) fn register_devices(&mut self) {
        let links = self.links.snapshot();
        let mut needed: BTreeSet<u32> =
            self.kernel.attached.iter().map(|attached| attached.ifindex).collect();
        needed.extend(self.hops.values().flatten().map(|hop| hop.ifindex));
        for ifindex in needed {
            let Some(link) = links.get(&ifindex) else { continue };
            match self.publisher.device(ifindex, link.mac.unwrap_or_default(), link.mtu) {
                Ok(index) => {
                    self.devices.insert(ifindex, index);
                }
                Err(error) => warn!(interface = %link.name, "frames cannot leave by it: {error}"),
            }
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

    /// Has checks, neighbours and VIPs follow the configuration.
    pub(super) fn follow_config(&mut self) {
        let targets = self.targets.update(&self.desired.config.services);
        self.scheduler.update(targets);
        let backends = self
            .desired
            .config
            .services
            .iter()
            .flat_map(|service| &service.pools)
            .flat_map(|pool| &pool.backends);
        self.next_hops.set_targets(backends.map(|backend| backend.address.ip()).collect());
        self.place_vips();
    }

    /// The host answers ARP and ND for every VIP, on the first interface.
    fn place_vips(&self) {
        let Some(first) = self.kernel.attached.first() else { return };
        let vips = self
            .desired
            .config
            .services
            .iter()
            .map(|service| Vip { ifindex: first.ifindex, address: service.vip });
        self.vips.set(vips.collect());
        if self.desired.config.services.iter().any(|service| service.mode == config::Mode::Nat) {
            self.accept_own_replies();
        }
    }

    /// Has the host forward replies whose next hop it has to find first: their source is a VIP, an address of its own, and
    /// IPv4 takes such packets for forged unless it is told otherwise (IPv6 does not).
    fn accept_own_replies(&self) {
        for attached in &self.kernel.attached {
            let path = format!("/proc/sys/net/ipv4/conf/{}/accept_local", attached.name);
            if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == "1") {
                continue;
            }
            match std::fs::write(&path, "1") {
                Ok(()) => {
                    info!(interface = attached.name, "set net.ipv4.conf.{}.accept_local = 1", attached.name)
                }
                Err(error) => warn!(
                    interface = attached.name,
                    "cannot set accept_local ({error}): the first reply to a client whose neighbour is unknown is lost"
                ),
            }
        }
    }

    pub(super) fn pool_of(&self, service: &ServiceName, backend: SocketAddr) -> Option<String> {
        let service = self.desired.service(service.as_str())?;
        let pool = service.pools.iter().find(|pool| pool.backends.iter().any(|b| b.address == backend))?;
        Some(pool.name.as_str().to_owned())
    }
}
