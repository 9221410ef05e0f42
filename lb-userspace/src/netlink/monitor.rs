//! Notifications from the kernel.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use tokio::io::{Interest, unix::AsyncFd};

use super::request::{messages, type_of};

/// A multicast group of rtnetlink.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group(u32);

impl Group {
    pub(super) const LINK: Self = Self(libc::RTNLGRP_LINK);
    pub(super) const NEIGHBOUR: Self = Self(libc::RTNLGRP_NEIGH);
    pub(super) const ADDRESS: [Self; 2] = [Self(libc::RTNLGRP_IPV4_IFADDR), Self(libc::RTNLGRP_IPV6_IFADDR)];
    pub(super) const ROUTE: [Self; 2] = [Self(libc::RTNLGRP_IPV4_ROUTE), Self(libc::RTNLGRP_IPV6_ROUTE)];
    /// Rules and next hop objects: they change routes without a word about routes.
    pub(super) const ROUTE_PARTS: [Self; 3] =
        [Self(libc::RTNLGRP_IPV4_RULE), Self(libc::RTNLGRP_IPV6_RULE), Self(libc::RTNLGRP_NEXTHOP)];
}

/// What a notification says.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something changed, and this is how it is now.
    Changed(RouteNetlinkMessage),
    /// Something changed.
    Unspecified,
    /// Notifications were lost: anything may have changed.
    Lost,
}

/// Enough for a few thousand notifications; what the kernel grants of it depends on `net.core.rmem_max`.
const RECEIVE_BUFFER: i32 = 4 << 20;
const DATAGRAM: usize = 64 * 1024;
/// Datagrams that are read in one go, before other tasks get their turn.
const BATCH: usize = 256;

/// A subscription.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Monitor {
    pub(super) fn new(groups: impl IntoIterator<Item = Group>) -> io::Result<Self> {
        Self::with_buffer(groups, RECEIVE_BUFFER)
    }

    fn with_buffer(groups: impl IntoIterator<Item = Group>, bytes: i32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(bytes)?;
        socket.bind_auto()?;
        for Group(group) in groups {
            socket.add_membership(group)?;
        }
        // SAFETY: the socket gives one descriptor, its own, and closes it when it is dropped and not before.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Waits for notifications. Cancelling it loses none.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Notice>> {
        let Self { socket, buffer } = self;
        loop {
            let mut ready = socket.readable().await?;
            let mut notices = vec![];
            for _ in 0..BATCH {
                buffer.clear();
                match ready.try_io(|socket| socket.get_ref().recv(buffer, libc::MSG_DONTWAIT)) {
                    Ok(Ok(_)) => notices.extend(messages(buffer).map(notice)),
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        notices.push(Notice::Lost);
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }
}

fn notice(message: &[u8]) -> Notice {
    // The library has no next hop objects, and we need no more than to know that there was something.
    const RTM_NEWNEXTHOP: u16 = 104;
    const RTM_DELNEXTHOP: u16 = 105;
    if let Some(RTM_NEWNEXTHOP | RTM_DELNEXTHOP) = type_of(message) {
        return Notice::Unspecified;
    }
    match NetlinkMessage::deserialize(message).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(message)) => Notice::Changed(message),
        Ok(NetlinkPayload::Overrun(_)) => Notice::Lost,
        Ok(_) => Notice::Unspecified,
        Err(error) => {
            tracing::debug!(%error, "a netlink notification is not understood");
            Notice::Unspecified
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::testing::{in_namespace, ip};

    #[test]
    fn an_overrun_is_told_and_the_subscription_goes_on() {
        in_namespace(async |_| {
            let mut monitor = Monitor::with_buffer([Group::LINK], 0).expect("a subscription");
            for _ in 0..50 {
                ip("link set lo up");
                ip("link set lo down");
            }
            let mut lost = false;
            while !lost {
                let notices = monitor.next().await.expect("the subscription goes on");
                lost = notices.iter().any(|notice| matches!(notice, Notice::Lost));
            }
            ip("link set lo up");
            let notices = monitor.next().await.expect("the subscription goes on");
            assert!(notices.iter().any(|notice| matches!(notice, Notice::Changed(_))), "{notices:?}");
        });
    }
}
