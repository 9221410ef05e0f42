//! The kernel's tables, read once: for `lbctl doctor`.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
};

use super::{
    NetlinkError, Unreachable,
    neighbour::{self, Key, Resolution, resolve_once},
    request::Requests,
    route,
};

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The interface that has it.
    pub ifindex: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network.
    pub prefix: u8,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// Its number in the kernel.
    pub program: u32,
    /// Whether it is in the kernel's part of the receive path, instead of the driver's.
    pub generic: bool,
}

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface.
    pub ifindex: u32,
    /// The router; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The address that this host would send from.
    pub source: IpAddr,
    /// A limit of the route, below that of the link.
    pub mtu: Option<u32>,
}

/// Reads the kernel's tables.
#[derive(Debug)]
pub struct Survey {
    requests: Requests,
}

impl Survey {
    /// Opens a socket.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Self, NetlinkError> {
        Ok(Self { requests: Requests::new().map_err(NetlinkError::new("ask"))? })
    }

    /// All addresses.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub fn addresses(&mut self) -> Result<Vec<HostAddress>, NetlinkError> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.requests.dump(&question).map_err(NetlinkError::new("list addresses"))?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(&message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// The XDP program of each interface that has one.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub fn xdp(&mut self) -> Result<BTreeMap<u32, AttachedXdp>, NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.requests.dump(&question).map_err(NetlinkError::new("list interfaces"))?;
        let programs = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some((message.header.index, xdp(&message)?)),
            _ => None,
        });
        Ok(programs.collect())
    }

    /// The way to a destination.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub fn way(&mut self, destination: IpAddr) -> Result<Result<Hop, Unreachable>, NetlinkError> {
        let found =
            route::look_up(&mut self.requests, destination).map_err(NetlinkError::new("look up a route"))?;
        Ok(found.map(|route| Hop {
            ifindex: route.ifindex,
            gateway: route.gateway,
            source: route.source,
            mtu: route.mtu,
        }))
    }

    /// The MACs of neighbours, which the kernel is made to ask for where it may be; those that do not answer in time are not
    /// among them.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub fn neighbours(
        &mut self,
        wanted: &[(u32, IpAddr)],
        patience: Duration,
    ) -> Result<BTreeMap<(u32, IpAddr), [u8; 6]>, NetlinkError> {
        self.resolve(wanted, patience).map_err(NetlinkError::new("list neighbours"))
    }

    fn resolve(
        &mut self,
        wanted: &[(u32, IpAddr)],
        patience: Duration,
    ) -> io::Result<BTreeMap<(u32, IpAddr), [u8; 6]>> {
        const PERIOD: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + patience;
        let mut known = BTreeMap::new();
        let mut asked = false;
        loop {
            for &(ifindex, address) in wanted {
                if known.contains_key(&(ifindex, address)) {
                    continue;
                }
                let key = Key { ifindex, address };
                if let Some(found) = neighbour::get(&mut self.requests, key)?
                    && let Resolution::Resolved { mac, .. } = found.resolution
                {
                    known.insert((ifindex, address), mac);
                } else if !asked {
                    // Without the privilege, what the kernel knows by itself has to do.
                    _ = resolve_once(&mut self.requests, key);
                }
            }
            asked = true;
            if known.len() >= wanted.len() || Instant::now() >= deadline {
                return Ok(known);
            }
            sleep(PERIOD);
        }
    }
}

fn address(message: &AddressMessage) -> Option<HostAddress> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let ip = local.or(address)?;
    Some(HostAddress { ifindex: message.header.index, ip, prefix: message.header.prefix_len })
}

fn xdp(message: &LinkMessage) -> Option<AttachedXdp> {
    let parts = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => Some(parts),
        _ => None,
    })?;
    let (mut program, mut native, mut generic) = (None, None, None);
    for part in parts {
        match part {
            LinkXdp::ProgId(id) => program = Some(*id),
            LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => native = Some(*id),
            LinkXdp::SkbProgId(id) => generic = Some(*id),
            LinkXdp::Attached(XdpAttached::None) => return None,
            _ => {}
        }
    }
    Some(AttachedXdp {
        program: native.or(generic).or(program)?,
        generic: native.is_none() && generic.is_some(),
    })
}
