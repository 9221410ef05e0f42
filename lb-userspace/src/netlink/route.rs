//! The kernel's answer to "which way?".

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{next_hops::Unreachable, request::Requests};

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
    pub source: IpAddr,
    /// A limit of the route, below that of the link: set by hand, or learnt by path MTU discovery.
    pub mtu: Option<u32>,
}

/// The route that a packet of this host to that destination would take now.
pub(super) fn look_up(
    requests: &mut Requests,
    destination: IpAddr,
) -> io::Result<Result<Route, Unreachable>> {
    let (family, length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    question.header.destination_prefix_length = length;
    question.attributes = vec![RouteAttribute::Destination(destination.into())];
    match requests.ask(RouteNetlinkMessage::GetRoute(question)) {
        Ok(RouteNetlinkMessage::NewRoute(answer)) => Ok(parse(&answer)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not a route")),
        Err(error) => unreachable_by(&error).map(Err).ok_or(error),
    }
}

/// What an error says of a destination; `None`: nothing, it is about the socket or us.
fn unreachable_by(error: &io::Error) -> Option<Unreachable> {
    match error.raw_os_error()? {
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV => Some(Unreachable::NoRoute),
        // A host whose kernel has none of that family (`ipv6.disable=1`).
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => Some(Unreachable::NoRoute),
        // Routes of the types `prohibit` and `blackhole`.
        libc::EACCES | libc::EINVAL => Some(Unreachable::Prohibited),
        _ => None,
    }
}

fn parse(answer: &RouteMessage) -> Result<Route, Unreachable> {
    match answer.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Anycast => return Err(Unreachable::Local),
        RouteType::Broadcast | RouteType::Multicast => return Err(Unreachable::NotUnicast),
        RouteType::BlackHole | RouteType::Prohibit => return Err(Unreachable::Prohibited),
        _ => return Err(Unreachable::NoRoute),
    }
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(bytes) if *bytes > 0 => Some(*bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Ok(Route {
        ifindex: ifindex.ok_or(Unreachable::NoRoute)?,
        gateway,
        source: source.ok_or(Unreachable::NoSource)?,
        mtu,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A range of addresses: what a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub first: IpAddr,
    pub last: IpAddr,
}

impl Prefix {
    /// The destinations whose way may have changed with that route. `None` if the message is none of our concern.
    pub(super) fn of(message: &RouteMessage) -> Option<Self> {
        let length = u32::from(message.header.destination_prefix_length);
        let destination = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
        match (message.header.address_family, destination) {
            (AddressFamily::Inet, None) => Some(Self::v4(Ipv4Addr::UNSPECIFIED, length)),
            (AddressFamily::Inet6, None) => Some(Self::v6(Ipv6Addr::UNSPECIFIED, length)),
            (AddressFamily::Inet, Some(IpAddr::V4(ip))) => Some(Self::v4(ip, length)),
            (AddressFamily::Inet6, Some(IpAddr::V6(ip))) => Some(Self::v6(ip, length)),
            _ => None,
        }
    }

    fn v4(ip: Ipv4Addr, length: u32) -> Self {
        let host = u32::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (ip.to_bits() & !host, ip.to_bits() | host);
        Self { first: Ipv4Addr::from_bits(first).into(), last: Ipv4Addr::from_bits(last).into() }
    }

    fn v6(ip: Ipv6Addr, length: u32) -> Self {
        let host = u128::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (ip.to_bits() & !host, ip.to_bits() | host);
        Self { first: Ipv6Addr::from_bits(first).into(), last: Ipv6Addr::from_bits(last).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_prefix_spans_from_its_first_to_its_last_address() {
        let cases = [
            (Prefix::v4([10, 1, 2, 3].into(), 0), "0.0.0.0", "255.255.255.255"),
            (Prefix::v4([10, 1, 2, 3].into(), 20), "10.1.0.0", "10.1.15.255"),
            (Prefix::v4([10, 1, 2, 3].into(), 32), "10.1.2.3", "10.1.2.3"),
            (Prefix::v6(Ipv6Addr::LOCALHOST, 0), "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            (Prefix::v6(Ipv6Addr::LOCALHOST, 64), "::", "::ffff:ffff:ffff:ffff"),
            (Prefix::v6(Ipv6Addr::LOCALHOST, 128), "::1", "::1"),
        ];
        for (prefix, first, last) in cases {
            assert_eq!((prefix.first, prefix.last), (ip(first), ip(last)));
        }
    }

    #[test]
    fn a_host_without_a_family_has_no_route_of_it() {
        let of = |code| unreachable_by(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::EOPNOTSUPP), Some(Unreachable::NoRoute));
        assert_eq!(of(libc::EACCES), Some(Unreachable::Prohibited));
        assert_eq!(of(libc::EPERM), None);
    }
}
