//! What health probes along the data path go by: the tables of the kernel program, as they are when a packet is sent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::host::Frame;
use lb_common::probe::probe;
use lb_common::verdict::Reason;
use tracing::warn;

use super::Agent;
use crate::config::{PortRange, Via as Target};
use crate::dataplane::Maps;
use crate::health::{Roads, Via};
use crate::netlink::{HostAddress, Survey};

/// Where each backend is in the tables, and what stands for its client.
pub(super) struct Probed {
    maps: Arc<Maps>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    places: HashMap<Via, Place>,
    /// Not for probes: they stand for clients.
    taken: Option<PortRange>,
}

struct Place {
    service: u32,
    backend: u16,
    source_v4: Option<IpAddr>,
    source_v6: Option<IpAddr>,
}

impl std::fmt::Debug for Probed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probed").field("places", &self.lock().places.len()).finish_non_exhaustive()
    }
}

impl Probed {
    pub(super) fn new(maps: Arc<Maps>) -> Self {
        Self { maps, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roads for Probed {
    fn source(&self, via: &Via, v6: bool) -> Option<IpAddr> {
        let known = self.lock();
        let place = known.places.get(via)?;
        if v6 { place.source_v6 } else { place.source_v4 }
    }

    fn is_open(&self, via: &Via) -> bool {
        let backend = self.lock().places.get(via).map(|place| place.backend);
        backend.is_some_and(|id| self.maps.backends.read(id.into()).next_hop().mac().is_some())
    }

    fn carry(&self, via: &Via, frame: &mut Frame) -> Result<u32, Reason> {
        let (index, id) = match self.lock().places.get(via) {
            Some(place) => (place.service, place.backend),
            None => return Err(Reason::NoTable),
        };
        let (settings, service) = (self.maps.settings.read(0), self.maps.services.read(index));
        let backend = self.maps.backends.read(id.into());
        let device = self.maps.devices.read(backend.next_hop().device().into());
        probe(frame, &settings, &service, index, &backend, &device)
    }

    fn ports(&self) -> RangeInclusive<u16> {
        ports_beside(self.lock().taken)
    }
}

/// So many probes of one VIP may be under way.
const PORTS: u16 = 2048;

/// The highest range without a port that stands for clients. By default it is above what Linux gives to its own connections
/// (`net.ipv4.ip_local_port_range`).
fn ports_beside(taken: Option<PortRange>) -> RangeInclusive<u16> {
    let highest = u16::MAX - PORTS + 1..=u16::MAX;
    match taken {
        Some(taken) if taken.last() >= *highest.start() => {
            // Right below them. Where nothing is left, the highest all the same: a backend that is a VIP is refused, so that no
            // session takes an answer that comes from one.
            let last = taken.first().saturating_sub(1);
            if last >= 1024 + PORTS { last - PORTS + 1..=last } else { highest }
        }
        _ => highest,
    }
}

impl Agent {
    /// Tells probes along the data path where backends are, and where their answers come to.
    pub(super) fn place_probed(&self) {
        let wanted = |service: &crate::config::Service| {
            service.health.check.as_ref().is_some_and(|check| check.probe.via == Target::Vip)
        };
        let mut known = Known { taken: Some(self.desired.config.dataplane.snat_ports), ..Known::default() };
        let mut addresses = None;
        for service in self.desired.services().filter(|service| wanted(service)) {
            let Some(index) = self.publisher.registry.service_index(&crate::compile::key_of(&service)) else {
                continue;
            };
            for backend in service.pools.iter().flat_map(|pool| &pool.backends) {
                let at = backend.address;
                let Some(id) = crate::compile::id_of(&service, at, index, &self.publisher.registry) else {
                    continue;
                };
                let hop = self.hops.get(&at.ip()).and_then(|hop| hop.ok());
                let mut source = |v6: bool| {
                    let hop = hop?;
                    if hop.source.is_ipv6() == v6 && !self.is_vip(hop.source) {
                        return Some(hop.source);
                    }
                    let addresses: &Vec<HostAddress> = addresses.get_or_insert_with(all_addresses);
                    self.own_address(addresses, hop.ifindex, v6)
                };
                let (source_v4, source_v6) = (source(false), source(true));
                let via = Via { service: service.name.as_str().into(), backend: at };
                known.places.insert(via, Place { service: index, backend: id, source_v4, source_v6 });
            }
        }
        *self.probed.lock() = known;
    }

    fn is_vip(&self, ip: IpAddr) -> bool {
        self.desired.config.services.iter().any(|service| service.vip == ip)
    }

    /// An address of that family, of that interface if it has one.
    fn own_address(&self, addresses: &[HostAddress], ifindex: u32, v6: bool) -> Option<IpAddr> {
        let global = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let fit = |address: &&HostAddress| {
            address.ip.is_ipv6() == v6 && global(&address.ip) && !self.is_vip(address.ip)
        };
        let there = addresses.iter().filter(|address| address.ifindex == ifindex).find(fit);
        there.or_else(|| addresses.iter().find(fit)).map(|address| address.ip)
    }
}

fn all_addresses() -> Vec<HostAddress> {
    match Survey::new().and_then(|mut survey| survey.addresses()) {
        Ok(addresses) => addresses,
        Err(error) => {
            warn!(
                "probes to VIPs of another family than their backends' have no address to come from: {error}"
            );
            Vec::new()
        }
    }
}

/// What a service's probes go by, if they go along the data path.
pub(super) fn via(service: &crate::config::Service, backend: SocketAddr) -> Option<Via> {
    let check = service.health.check.as_ref()?;
    let along = check.probe.via == Target::Vip && service.mode.is_dsr();
    along.then(|| Via { service: service.name.as_str().into(), backend })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_have_ports_that_stand_for_nobody() {
        let taken = |text: &str| Some(text.parse::<PortRange>().unwrap());
        assert_eq!(ports_beside(None), 63_488..=65_535);
        assert_eq!(ports_beside(Some(PortRange::DEFAULT)), 63_488..=65_535);
        assert_eq!(ports_beside(taken("1024-63487")), 63_488..=65_535);
        assert_eq!(ports_beside(taken("40000-65535")), 37_952..=39_999);
        assert_eq!(ports_beside(taken("1024-65535")), 63_488..=65_535);
    }
}
