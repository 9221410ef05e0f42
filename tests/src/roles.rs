//! What hosts are in a lab.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

use anyhow::Result;
use ipnet::IpNet;

use crate::{
    Namespace,
    host::{Host, Port, Switch},
    links::VethEnd,
    plan::{Crowd, Lan, Mac, Place, everywhere},
};

/// The host that the balancer runs on. It forwards, so what the balancer lets pass is routed.
#[derive(Debug)]
pub struct Balancer(Host);

impl Balancer {
    /// The interface towards the backends: the first one in [`Topology::OneLan`](crate::Topology::OneLan).
    #[must_use]
    pub fn back_port(&self) -> &Port {
        &self.0.ports[self.0.ports.len() - 1]
    }

    pub(crate) fn new(front: &Switch, back: Option<&Switch>) -> Result<Self> {
        let mut host = Host::new("balancer")?;
        for switch in [Some(front), back].into_iter().flatten() {
            host.attach(switch, Place::Balancer)?;
        }
        host.sysctl("net/ipv4/ip_forward", 1)?;
        host.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        Ok(Self(host))
    }

    /// Makes the other ends take what the balancer transmits by XDP.
    pub(crate) fn expect_transmitted(&mut self) -> Result<()> {
        self.0.ports.iter_mut().try_for_each(Port::expect_transmitted)
    }
}

impl Deref for Balancer {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

/// A host with clients: one address on the LAN, and a [`Crowd`] behind it.
#[derive(Debug)]
pub struct Client {
    host: Host,
    crowd: Crowd,
}

impl Client {
    /// The many addresses of this host.
    #[must_use]
    pub fn crowd(&self) -> Crowd {
        self.crowd
    }

    pub(crate) fn new(number: u8, front: &Switch, balancer: &Balancer) -> Result<Self> {
        let mut host = Host::new(&format!("client{number}"))?;
        host.attach(front, Place::Client(number))?;
        let client = Self { host, crowd: Crowd::of(number) };
        route_all(&client, everywhere(), balancer.port())?;
        for prefix in client.crowd_prefixes() {
            client.own(prefix)?;
        }
        // Local routes make IPv4 addresses one's own; IPv6 sockets bind to assigned ones only.
        client.sysctl("net/ipv6/ip_nonlocal_bind", 1)?;
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        client.sysctl("net/ipv4/tcp_tw_reuse", 1)?;
        client.route_crowd_to(balancer)?;
        Ok(client)
    }

    /// Tells `host`, on the same LAN, that the crowd is behind this client.
    pub(crate) fn route_crowd_to(&self, host: &Host) -> Result<()> {
        route_all(host, self.crowd_prefixes(), self.port())
    }

    /// Connects a backend by a cable of its own, which it reaches this client and its crowd by.
    pub(crate) fn cable(&self, backend: &Backend, number: u8) -> Result<()> {
        let end = VethEnd {
            namespace: self.namespace(),
            name: &format!("cable{number}"),
            mac: Mac([2, 0xca, 0, 0, 1, number]),
        };
        backend.connect("cable", Mac([2, 0xca, 0, 0, 0, number]), end, 1500)?;
        let v4 = |host| Ipv4Addr::new(10, 77, number, host);
        let v6 = |host| Ipv6Addr::new(0xfd77, 0, 0, number.into(), 0, 0, 0, host);
        for (near, far, length) in
            [(IpAddr::from(v4(1)), IpAddr::from(v4(2)), 24), (v6(1).into(), v6(2).into(), 64)]
        {
            backend.add_address("cable", near, length)?;
            self.add_address(end.name, far, length)?;
            let prefixes = Lan::FRONT.clients().into_iter().chain(self.crowd_prefixes());
            for prefix in prefixes.filter(|prefix| prefix.addr().is_ipv4() == far.is_ipv4()) {
                backend.route(prefix, far)?;
            }
        }
        Ok(())
    }

    fn crowd_prefixes(&self) -> [IpNet; 2] {
        [self.crowd.v4.into(), self.crowd.v6.into()]
    }
}

impl Deref for Client {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A host with a server.
#[derive(Debug)]
pub struct Backend(Host);

impl Backend {
    /// Puts a VIP on the loopback, as DSR needs it: taken when it arrives, not answered for.
    ///
    /// # Errors
    /// If it is there already.
    pub fn hold_vip(&self, vip: IpAddr) -> Result<()> {
        self.add_address("lo", vip, host_prefix(vip))
    }

    /// Takes a VIP off the loopback.
    ///
    /// # Errors
    /// If it is not there.
    pub fn release_vip(&self, vip: IpAddr) -> Result<()> {
        self.remove_address("lo", vip, host_prefix(vip))
    }

    pub(crate) fn new(number: u8, switch: &Switch, balancer: &Balancer) -> Result<Self> {
        let mut host = Host::new(&format!("backend{number}"))?;
        host.attach(switch, Place::Backend(number))?;
        route_all(&host, everywhere(), balancer.back_port())?;
        if switch.lan == Lan::FRONT {
            // Narrower than the LAN itself, so that replies pass the balancer.
            route_all(&host, Lan::FRONT.clients(), balancer.port())?;
        }
        Ok(Self(host))
    }
}

impl Deref for Backend {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

fn route_all(host: &Namespace, prefixes: [IpNet; 2], gateway: &Port) -> Result<()> {
    for prefix in prefixes {
        let gateway = match prefix {
            IpNet::V4(_) => gateway.v4.into(),
            IpNet::V6(_) => gateway.v6.into(),
        };
        host.route(prefix, gateway)?;
    }
    Ok(())
}

const fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
