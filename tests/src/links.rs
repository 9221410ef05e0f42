//! Links, addresses and routes of a namespace, by netlink.

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use nix::net::if_::{if_nameindex, if_nametoindex};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::{
        address::{AddressFlags, AddressHeaderFlags},
        link::{InfoData, InfoVeth, LinkMessage},
        route::{RouteScope, RouteType},
    },
};
use tokio::runtime;

use crate::{Namespace, ethtool, plan::Mac, settle};

/// One end of a veth pair: where it is, and what it is called there.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// The namespace that has this end.
    pub namespace: &'a Namespace,
    /// The interface's name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
}

/// Connects two namespaces by a veth pair that is up and fit for XDP: the stack fills in checksums
/// before a frame leaves, and frames that the peer's XDP program transmits are taken.
///
/// # Errors
/// If a name is taken, or the kernel refuses.
pub(crate) fn connect(one: VethEnd<'_>, other: VethEnd<'_>, mtu: u32) -> Result<()> {
    let peer = LinkMessageBuilder::<LinkUnspec>::default()
        .name(other.name)
        .address(other.mac.0.to_vec())
        .mtu(mtu)
        .setns_by_fd(other.namespace.as_fd().as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(one.name, other.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(one.mac.0.to_vec())
        .mtu(mtu)
        .build();
    one.namespace.netlink(async |handle| handle.link().add(pair).execute().await).with_context(|| {
        format!(
            "cannot connect {} in {} to {} in {}",
            one.name,
            one.namespace.name(),
            other.name,
            other.namespace.name()
        )
    })?;
    for end in [one, other] {
        ethtool::prepare_for_xdp(end.namespace, end.name)?;
    }
    // An end learns that its peer takes redirected frames when it goes up, so GRO comes first.
    for end in [one, other] {
        end.namespace.set_up(end.name)?;
    }
    Ok(())
}

impl Namespace {
    /// Connects this namespace to `other` by a veth pair with both ends up, transmit checksum
    /// offload off and GRO on.
    ///
    /// # Errors
    /// If a name is taken, or the kernel refuses.
    pub fn connect(&self, name: &str, mac: Mac, other: VethEnd<'_>, mtu: u32) -> Result<()> {
        connect(VethEnd { namespace: self, name, mac }, other, mtu)
    }

    /// Makes a bridge that forwards at once and to all (no spanning tree, no multicast snooping).
    ///
    /// # Errors
    /// If the name is taken, or the kernel refuses.
    pub fn add_bridge(&self, name: &str, mtu: u32) -> Result<()> {
        let bridge = LinkBridge::new(name).mtu(mtu).mcast_snooping(false).build();
        self.netlink(async |handle| handle.link().add(bridge).execute().await)
            .with_context(|| format!("cannot make the bridge {name} in {}", self.name()))
    }

    /// Makes `port` a port of `bridge`.
    ///
    /// # Errors
    /// If one of them is missing.
    pub fn plug(&self, port: &str, bridge: &str) -> Result<()> {
        let bridge = self.index(bridge)?;
        self.set_link(port, |link| link.controller(bridge))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn set_up(&self, link: &str) -> Result<()> {
        self.set_link(link, LinkMessageBuilder::up)
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn set_down(&self, link: &str) -> Result<()> {
        self.set_link(link, LinkMessageBuilder::down)
    }

    /// Deletes a link, and its peer if it has one.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn delete_link(&self, link: &str) -> Result<()> {
        let index = self.index(link)?;
        self.netlink(async |handle| handle.link().del(index).execute().await)
            .with_context(|| format!("cannot delete {link} in {}", self.name()))
    }

    /// The index of a link.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn index(&self, link: &str) -> Result<u32> {
        self.run(|| if_nametoindex(link)).with_context(|| format!("no interface {link} in {}", self.name()))
    }

    /// The names of all links.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub fn links(&self) -> Result<Vec<String>> {
        self.run(|| {
            let links = if_nameindex()?;
            Ok(links.iter().map(|link| link.name().to_string_lossy().into_owned()).collect())
        })
    }

    /// How many frames a link has received, those that XDP drops included.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn received_frames(&self, link: &str) -> Result<u64> {
        let counters = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        counters
            .lines()
            .filter_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))
            .find_map(|counters| counters.split_whitespace().nth(1)?.parse().ok())
            .with_context(|| format!("no interface {link} in {}", self.name()))
    }

    /// Adds an address, usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// If it is there already, or the link is missing.
    pub fn add_address(&self, link: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.index(link)?;
        self.netlink(async |handle| {
            let mut request = handle.address().add(index, address, prefix);
            if address.is_ipv6() {
                let message = request.message_mut();
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
                    .attributes
                    .push(rtnetlink::packet_route::address::AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        })
        .with_context(|| format!("cannot add {address}/{prefix} to {link} in {}", self.name()))?;
        match address {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(address) => settle::until_local(self, address),
        }
    }

    /// Takes an address off.
    ///
    /// # Errors
    /// If it is not there.
    pub fn remove_address(&self, link: &str, address: IpAddr, prefix: u8) -> Result<()> {
        use rtnetlink::AddressMessageBuilder;
        let index = self.index(link)?;
        let message = match address {
            IpAddr::V4(v4) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().address(v4, prefix).index(index).build()
            }
            IpAddr::V6(v6) => {
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().address(v6, prefix).index(index).build()
            }
        };
        self.netlink(async |handle| handle.address().del(message).execute().await)
            .with_context(|| format!("cannot take {address}/{prefix} off {link} in {}", self.name()))
    }

    /// Adds a route by a gateway, or changes it to that gateway.
    ///
    /// # Errors
    /// If the gateway cannot be reached.
    pub fn route(&self, to: IpNet, gateway: IpAddr) -> Result<()> {
        let message = route_to(to)
            .gateway(gateway)
            .with_context(|| format!("{to} and {gateway} are of different families"))?
            .build();
        self.netlink(async |handle| handle.route().add(message).replace().execute().await)
            .with_context(|| format!("cannot route {to} via {gateway} in {}", self.name()))
    }

    /// Removes the routes to exactly this prefix.
    ///
    /// # Errors
    /// If there is none.
    pub fn unroute(&self, to: IpNet) -> Result<()> {
        let message = route_to(to).build();
        self.netlink(async |handle| handle.route().del(message).execute().await)
            .with_context(|| format!("cannot remove the route to {to} in {}", self.name()))
    }

    /// Makes every address of a prefix the namespace's own.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn own(&self, prefix: IpNet) -> Result<()> {
        const LOCAL_TABLE: u32 = 255;
        let loopback = self.index("lo")?;
        let message = route_to(prefix)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(LOCAL_TABLE)
            .output_interface(loopback)
            .build();
        self.netlink(async |handle| handle.route().add(message).execute().await)
            .with_context(|| format!("cannot own {prefix} in {}", self.name()))
    }

    fn set_link(
        &self,
        link: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message: LinkMessage = change(LinkUnspec::new_with_index(self.index(link)?)).build();
        self.netlink(async |handle| handle.link().set(message).execute().await)
            .with_context(|| format!("cannot change {link} in {}", self.name()))
    }

    /// Runs `body` with a netlink connection inside the namespace.
    ///
    /// # Errors
    /// What `body` returns, and failures to connect.
    pub fn netlink<T: Send>(
        &self,
        body: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
    ) -> Result<T> {
        self.run(|| {
            let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection()?;
                let connection = tokio::spawn(connection);
                let result = body(handle).await;
                connection.abort();
                Ok(result?)
            })
        })
    }
}

fn route_to(prefix: IpNet) -> RouteMessageBuilder<IpAddr> {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .expect("a prefix of an IpNet fits its family")
}
