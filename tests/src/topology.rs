//! Hosts and how they are wired.

use std::{net::IpAddr, ops::Deref};

use anyhow::{Result, bail, ensure};

use crate::{
    host::{Host, Port, Switch},
    plan::{Family, Lan, MAX_BACKENDS, MAX_CLIENTS, Place, everywhere},
    roles::{Backend, Balancer, Client},
};

/// How the balancer stands between clients and backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// All on one segment; the balancer has one interface, `eth0`.
    #[default]
    OneLan,
    /// Clients on `eth0` of the balancer, backends on its `eth1`.
    Routed,
}

/// A client side, a balancer and backends, wired and reachable by the kernel's own routing.
///
/// Backends send what is for clients through the balancer, as `nat` needs it. See
/// [`Lab::reply_directly`] and [`Backend::hold_vip`] for the DSR modes.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    balancer: Balancer,
    clients: Vec<Client>,
    backends: Vec<Backend>,
}

impl Lab {
    /// One client and one backend on one LAN, unless told otherwise.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder { topology: Topology::default(), clients: 1, backends: 1, mtu: 1500, xdp: true }
    }

    /// The host between.
    #[must_use]
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// A client, counted from 0.
    #[must_use]
    pub fn client(&self, number: usize) -> &Client {
        &self.clients[number]
    }

    /// All clients.
    #[must_use]
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// A backend, counted from 0.
    #[must_use]
    pub fn backend(&self, number: usize) -> &Backend {
        &self.backends[number]
    }

    /// All backends.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// An address on the clients' LAN that no host has, counted from 0.
    ///
    /// # Panics
    /// Above 254.
    #[must_use]
    pub fn vip(&self, number: u8, family: Family) -> IpAddr {
        assert!(number < u8::MAX, "VIPs are numbered from 0 to 254");
        match family {
            Family::V4 => Lan::FRONT.v4(Place::Vip(number)).into(),
            Family::V6 => Lan::FRONT.v6(Place::Vip(number)).into(),
        }
    }

    /// Every host there is.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        let clients = self.clients.iter().map(Deref::deref);
        let backends = self.backends.iter().map(Deref::deref);
        clients.chain(backends).chain([&*self.balancer])
    }

    /// Leaves the backends without a way to clients.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forget_clients(&self) -> Result<()> {
        let mut ways = everywhere().to_vec();
        if self.topology == Topology::OneLan {
            ways.extend(Lan::FRONT.clients());
        }
        for backend in &self.backends {
            ways.iter().try_for_each(|prefix| backend.unroute(*prefix))?;
        }
        Ok(())
    }

    /// Makes the backends send to clients without passing the balancer: on the LAN, or, in [`Topology::Routed`], by a cable
    /// from each backend to the client.
    ///
    /// # Errors
    /// In [`Topology::Routed`] with more than one client.
    pub fn reply_directly(&self) -> Result<()> {
        if self.topology == Topology::Routed {
            let [client] = self.clients.as_slice() else {
                bail!("backends have cables to one client, not to {}", self.clients.len());
            };
            let numbers = 0..self.backends.len() as u8;
            return numbers
                .zip(&self.backends)
                .try_for_each(|(number, backend)| client.cable(backend, number));
        }
        for backend in &self.backends {
            for prefix in Lan::FRONT.clients() {
                backend.unroute(prefix)?;
            }
            for client in &self.clients {
                client.route_crowd_to(backend)?;
            }
        }
        Ok(())
    }
}

/// What to build. See [`Lab::builder`].
#[derive(Clone, Copy, Debug)]
pub struct LabBuilder {
    topology: Topology,
    clients: u8,
    backends: u8,
    mtu: u32,
    xdp: bool,
}

impl LabBuilder {
    /// How the hosts are wired.
    #[must_use]
    pub fn topology(self, topology: Topology) -> Self {
        Self { topology, ..self }
    }

    /// How many client hosts, at most 48. Each has a [`Crowd`](crate::Crowd) of addresses.
    #[must_use]
    pub fn clients(self, clients: u8) -> Self {
        Self { clients, ..self }
    }

    /// How many backends, at most 250.
    #[must_use]
    pub fn backends(self, backends: u8) -> Self {
        Self { backends, ..self }
    }

    /// The MTU of every link, in bytes.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// Leaves out what only a balancer with XDP needs, which costs others a copy of each packet:
    /// for measuring the kernel's own forwarding.
    #[must_use]
    pub fn without_xdp(self) -> Self {
        Self { xdp: false, ..self }
    }

    /// Makes the namespaces and wires them.
    ///
    /// # Errors
    /// Before [`enter`](crate::enter), beyond the limits above, or where the kernel refuses.
    pub fn build(self) -> Result<Lab> {
        ensure!(self.clients <= MAX_CLIENTS, "a lab has at most {MAX_CLIENTS} clients");
        ensure!(self.backends <= MAX_BACKENDS, "a lab has at most {MAX_BACKENDS} backends");
        let front = Switch::new(Lan::FRONT, self.mtu)?;
        let back = match self.topology {
            Topology::OneLan => None,
            Topology::Routed => Some(Switch::new(Lan::BACK, self.mtu)?),
        };
        let mut balancer = Balancer::new(&front, back.as_ref())?;
        if self.xdp {
            balancer.expect_transmitted()?;
        }
        let clients = (0..self.clients)
            .map(|number| Client::new(number, &front, &balancer))
            .collect::<Result<Vec<_>>>()?;
        let backends = (0..self.backends)
            .map(|number| Backend::new(number, back.as_ref().unwrap_or(&front), &balancer))
            .collect::<Result<Vec<_>>>()?;
        let lab = Lab { topology: self.topology, balancer, clients, backends };
        lab.hosts().flat_map(Host::ports).try_for_each(Port::until_usable)?;
        Ok(lab)
    }
}
