//! The host's network as the kernel tells it (rtnetlink(7)): links, the way to a backend, and addresses for VIPs.
//!
//! Everything here is level-triggered. A notification only says where to look again; what counts is what the kernel
//! answers then. So a lost notification costs time, not truth, and the socket's overrun is nothing but a reason to
//! read everything again.
//!
//! | part | follows or changes |
//! |---|---|
//! | [`Links`] | the interfaces |
//! | [`NextHops`] | route, source address and MAC for a set of destinations; keeps their neighbours resolved |
//! | [`Resolver`] | asks for single neighbours, for the kernel program |
//! | [`Survey`] | reads addresses, routes and neighbours once, for `lbctl doctor` |
//! | [`Vips`] | addresses of this host that are VIPs, and their announcements |
//!
//! CAP_NET_ADMIN is enough, with one exception that is said at [`Vips`]. All sockets belong to the network namespace
//! of the thread that makes them.
//!
//! Requests are synchronous: the kernel handles a request within `sendmsg`, so that there is nothing to wait for; an
//! answer to an asynchronous request that the socket's buffer lost would be waited for until the end of time.

mod link;
mod links;
mod monitor;
mod neighbour;
mod next_hops;
mod request;
mod resolver;
mod route;
mod survey;
#[cfg(test)]
mod testing;
mod vips;

use std::{fmt, io};

pub(crate) use link::arrivals;
pub use link::{Link, VlanOn};
pub use links::{Links, list_links};
pub use neighbour::release_neighbours;
pub use next_hops::{NextHop, NextHopEvent, NextHops, Unreachable};
pub use resolver::{Asked, Resolver, resolve};
pub use survey::{AttachedXdp, Hop, HostAddress, Survey};
pub use vips::{Vip, VipError, VipState, Vips, remove_vips};

/// The mark of neighbours and addresses that are ours, in NDA_PROTOCOL and IFA_PROTO (shown as `proto 108` by
/// iproute2). The kernel passes it on and gives it no meaning.
const OUR_PROTOCOL: u8 = 108;

/// A conversation with the kernel failed.
#[derive(Debug)]
pub struct NetlinkError {
    doing: &'static str,
    source: io::Error,
}

impl NetlinkError {
    fn new(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, source }
    }

    /// If a privilege is missing.
    pub fn is_permission(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} by netlink: {}", self.doing, self.source)?;
        if self.is_permission() {
            f.write_str(" (it needs CAP_NET_ADMIN in this network namespace)")?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
