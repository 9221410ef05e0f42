//! A host, its interfaces, and the switch at the other end of their cables.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::Result;

use crate::{
    Namespace,
    bpf::{XdpMode, attach_xdp},
    links::VethEnd,
    plan::{Family, Lan, Mac, Place},
    programs, settle,
};

/// A namespace that plays a machine.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    pub(crate) ports: Vec<Port>,
}

/// An interface of a host, with its addresses and the switch port at the other end of its cable.
#[derive(Debug)]
pub struct Port {
    /// The interface's name, for example `eth0`.
    pub name: String,
    /// Its index in the host's namespace.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
    /// Its IPv4 address, in a /16.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, in a /64.
    pub v6: Ipv6Addr,
    host: Namespace,
    switch: Namespace,
    switch_port: String,
    switch_mac: Mac,
    mtu: u32,
    passing: Option<OwnedFd>,
}

impl Host {
    /// The first interface (for the balancer: towards the clients).
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.ports[0]
    }

    /// All interfaces.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The namespace that plays this host.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The IPv4 address of the first interface.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.port().v4
    }

    /// The IPv6 address of the first interface.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.port().v6
    }

    /// The address of the first interface in a family.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4().into(),
            Family::V6 => self.v6().into(),
        }
    }

    /// The hardware address of the first interface.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.port().mac
    }

    /// Pulls the cable of the first interface: the host goes on, unseen.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn pull_cable(&self) -> Result<()> {
        let port = self.port();
        port.switch.set_down(&port.switch_port)
    }

    /// Puts the cable in again, and waits until frames cross it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn replug_cable(&self) -> Result<()> {
        let port = self.port();
        port.switch.set_up(&port.switch_port)?;
        port.until_usable()
    }

    /// Takes the first interface out of the host, as unloading its driver would: addresses and routes go with it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_card(&self) -> Result<()> {
        self.delete_link(&self.port().name)
    }

    /// Puts in another interface with the name, the addresses and the cable of the one that was taken out. Routes by gateways
    /// are not put back. While the returned value lives, the other end takes what is transmitted by XDP.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn insert_card(&self) -> Result<OwnedFd> {
        let port = self.port();
        let cable_end = VethEnd { namespace: &port.switch, name: &port.switch_port, mac: port.switch_mac };
        self.namespace.connect(&port.name, port.mac, cable_end, port.mtu)?;
        port.switch.plug(&port.switch_port, BRIDGE)?;
        let passing = port.pass_transmitted()?;
        self.namespace.add_address(&port.name, port.v4.into(), Lan::V4_PREFIX)?;
        self.namespace.add_address(&port.name, port.v6.into(), Lan::V6_PREFIX)?;
        port.until_usable()?;
        Ok(passing)
    }

    pub(crate) fn new(name: &str) -> Result<Self> {
        let namespace = Namespace::new(name)?;
        quiet(&namespace)?;
        Ok(Self { namespace, ports: Vec::new() })
    }

    pub(crate) fn attach(&mut self, switch: &Switch, place: Place) -> Result<()> {
        let lan = switch.lan;
        let name = format!("eth{}", self.ports.len());
        let switch_port = self.namespace.name().to_owned();
        let (v4, v6, mac) = (lan.v4(place), lan.v6(place), lan.mac(place));
        let cable_end =
            VethEnd { namespace: &switch.namespace, name: &switch_port, mac: lan.port_mac(place) };
        self.namespace.connect(&name, mac, cable_end, switch.mtu)?;
        switch.namespace.plug(&switch_port, BRIDGE)?;
        self.namespace.add_address(&name, v4.into(), Lan::V4_PREFIX)?;
        self.namespace.add_address(&name, v6.into(), Lan::V6_PREFIX)?;
        let index = self.namespace.index(&name)?;
        let (switch, mtu) = (switch.namespace.clone(), switch.mtu);
        self.ports.push(Port {
            name,
            index,
            mac,
            v4,
            v6,
            host: self.namespace.clone(),
            switch,
            switch_port,
            switch_mac: lan.port_mac(place),
            mtu,
            passing: None,
        });
        Ok(())
    }
}

/// A host is used like its namespace.
impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Port {
    /// Attaches a program that passes everything to the switch's end.
    ///
    /// For frames that the host redirects, GRO at the other end is enough. Those that it transmits
    /// (`XDP_TX`) also get there, but veth wakes the other end up only if that has a program: they
    /// would wait for the next frame that comes another way.
    pub(crate) fn expect_transmitted(&mut self) -> Result<()> {
        self.passing = Some(self.pass_transmitted()?);
        Ok(())
    }

    fn pass_transmitted(&self) -> Result<OwnedFd> {
        let program = programs::passing()?;
        let index = self.switch.index(&self.switch_port)?;
        attach_xdp(&self.switch, index, &program, XdpMode::Native)
    }

    pub(crate) fn until_usable(&self) -> Result<()> {
        settle::until_forwarding(&self.switch, &self.switch_port)?;
        settle::until_ready(&self.host, &self.name)
    }
}

/// A LAN: a bridge in a namespace of its own.
pub(crate) struct Switch {
    namespace: Namespace,
    pub lan: Lan,
    mtu: u32,
}

const BRIDGE: &str = "bridge";

impl Switch {
    pub fn new(lan: Lan, mtu: u32) -> Result<Self> {
        let namespace = Namespace::new("switch")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), 1)?;
        }
        namespace.add_bridge(BRIDGE, mtu)?;
        // Otherwise the bridge judges IP headers, and drops frames that a test means to get across.
        for table in ["iptables", "ip6tables", "arptables"] {
            let key = format!("net/bridge/bridge-nf-call-{table}");
            if namespace.run(|| Path::new("/proc/sys").join(&key).exists()) {
                namespace.sysctl(&key, 0)?;
            }
        }
        Ok(Self { namespace, lan, mtu })
    }
}

/// Settings that every host has: no address games of its own, no surprises on the wire.
fn quiet(namespace: &Namespace) -> Result<()> {
    for scope in ["all", "default"] {
        for (key, value) in [
            ("ipv4", [("rp_filter", 0), ("arp_ignore", 1), ("arp_announce", 2)].as_slice()),
            ("ipv4", &[("send_redirects", 0), ("accept_redirects", 0)]),
            ("ipv6", &[("accept_dad", 0), ("accept_ra", 0), ("autoconf", 0)]),
            ("ipv6", &[("accept_redirects", 0), ("router_solicitations", 0)]),
        ]
        .into_iter()
        .flat_map(|(family, pairs)| {
            pairs.iter().map(move |(key, value)| (format!("net/{family}/conf/{scope}/{key}"), value))
        }) {
            namespace.sysctl(&key, value)?;
        }
    }
    Ok(())
}
