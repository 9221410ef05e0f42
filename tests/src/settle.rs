//! When what was asked for is there.
//!
//! The kernel notices carriers, and finishes IPv6 addresses, in work queues that wait for the lock
//! of all network changes. So on a busy machine a bridge port may be up for a second before it
//! forwards, a host may be as long without the link-local address that neighbour discovery sends
//! from, and packets for an address that is listed may find no route.

use std::{
    fs,
    net::Ipv6Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};

use crate::Namespace;

/// Waits until a port of a bridge forwards.
pub(crate) fn until_forwarding(switch: &Namespace, port: &str) -> Result<()> {
    let index = switch.index(port)?;
    until(
        || format!("{port} in {} does not forward", switch.name()),
        || {
            let link = switch
                .netlink(async |handle| handle.link().get().match_index(index).execute().try_next().await)?;
            Ok(link.is_some_and(|link| is_forwarding(&link)))
        },
    )
}

/// Waits until a host can discover neighbours on a link, in both families.
pub(crate) fn until_ready(host: &Namespace, link: &str) -> Result<()> {
    until(
        || format!("{link} in {} has no link-local address", host.name()),
        || {
            let addresses = host.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))?;
            Ok(addresses.lines().any(|line| is_usable_link_local(line, link)))
        },
    )
}

/// Waits until packets for an address of its own are the host's.
pub(crate) fn until_local(host: &Namespace, address: Ipv6Addr) -> Result<()> {
    until(
        || format!("{address} in {} has no route", host.name()),
        || {
            let routes = host.run(|| fs::read_to_string("/proc/thread-self/net/ipv6_route"))?;
            Ok(routes.lines().any(|line| is_local_route(line, address)))
        },
    )
}

fn until(what: impl Fn() -> String, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{} after {PATIENCE:?}", what());
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn is_forwarding(link: &LinkMessage) -> bool {
    let information = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(information) => Some(information),
        _ => None,
    });
    information.flatten().any(|part| match part {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
            port.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
        }
        _ => false,
    })
}

/// A line has address, index, prefix length, scope, flags and name.
fn is_usable_link_local(line: &str, link: &str) -> bool {
    const TENTATIVE: u32 = 0x40;
    let fields: Vec<_> = line.split_whitespace().collect();
    let [address, _, _, _, flags, name] = fields[..] else {
        return false;
    };
    let flags = u32::from_str_radix(flags, 16).unwrap_or(TENTATIVE);
    name == link && address.starts_with("fe80") && flags & TENTATIVE == 0
}

/// A line has destination, prefix length, source, prefix length, gateway, metric, references, uses,
/// flags and name, numbers in hexadecimal.
fn is_local_route(line: &str, address: Ipv6Addr) -> bool {
    const LOCAL: u32 = 1 << 31;
    let fields: Vec<_> = line.split_whitespace().collect();
    let [to, "80", _, _, _, _, _, _, flags, _] = fields[..] else {
        return false;
    };
    let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
    to == format!("{:032x}", address.to_bits()) && flags & LOCAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_ready_once_its_link_local_address_is_its_own() {
        let own = "fe80000000000000000000fffe010201 02 40 20 80     eth0";
        assert!(is_usable_link_local(own, "eth0"));
        assert!(!is_usable_link_local(own, "eth1"));
        let tentative = "fe80000000000000000000fffe010201 02 40 20 c0     eth0";
        assert!(!is_usable_link_local(tentative, "eth0"));
        let global = "fd000001000000000000000000020001 02 40 00 80     eth0";
        assert!(!is_usable_link_local(global, "eth0"));
    }

    #[test]
    fn an_address_is_there_once_it_has_a_local_route() {
        let address = "fd00:1::9:1".parse().unwrap();
        let route = |flags: &str| {
            let (to, none) = ("fd000001000000000000000000090001", "0".repeat(32));
            format!("{to} 80 {none} 00 {none} 00000000 00000002 00000000 {flags}       lo")
        };
        assert!(is_local_route(&route("80200001"), address));
        assert!(!is_local_route(&route("00000001"), address));
        assert!(!is_local_route(&route("80200001"), "fd00:1::9:2".parse().unwrap()));
    }
}
