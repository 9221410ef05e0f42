//! Addresses and prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serializer;
use serde_json::{Value as Json, json};

use crate::config::read::{Findings, Kind, Node, Scalar, escaped};
use crate::config::{Code, Invalid};

/// An address that other hosts can reach.
pub(in crate::config) struct Unicast;

impl Scalar for Unicast {
    type Value = IpAddr;

    fn parse(node: &Node) -> Result<IpAddr, Invalid> {
        let text = node.text("an address")?;
        let address = text.parse().map_err(|_| {
            let found = not_an_address(text, "expected an address such as `203.0.113.10` or `2001:db8::1`");
            match text.parse::<SocketAddr>() {
                Ok(both) => found.help(format!(
                    "the port has a key of its own: vip = \"{}\", port = {}",
                    both.ip(),
                    both.port()
                )),
                Err(_) => found,
            }
        })?;
        reachable(address)
    }

    fn write<S: Serializer>(value: &IpAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    fn schema() -> Json {
        json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
    }
}

/// An address and a port that clients can talk to.
pub(in crate::config) struct Endpoint;

impl Scalar for Endpoint {
    type Value = SocketAddr;

    fn parse(node: &Node) -> Result<SocketAddr, Invalid> {
        const EXPECTED: &str =
            "expected an address and a port such as `203.0.113.11:443` or `[2001:db8::11]:443`";
        let target = Target::parse(node)?;
        match target.port {
            Some(port) if port != 0 => Ok((target.ip, port).into()),
            _ => Err(Invalid::new(Code::NotAnAddress, format!("`{}` has no port", target.ip), EXPECTED)),
        }
    }

    fn write<S: Serializer>(value: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+\]):\d{1,5}$" })
    }
}

/// A backend's address as it was written: the port may be left to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Target {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl Kind for Target {
    type Draft = Self;
    type Value = SocketAddr;

    fn read(node: &Node, findings: &mut Findings) -> Option<Self> {
        node.noted(Self::parse(node), findings)
    }

    fn finish(draft: Self) -> Option<SocketAddr> {
        Some(SocketAddr::new(draft.ip, draft.port.unwrap_or(0)))
    }

    fn write<S: Serializer>(value: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Self { ip: value.ip(), port: Some(value.port()) })
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^(\d{1,3}(\.\d{1,3}){3}(:\d{1,5})?|\[[0-9A-Fa-f:.]+\]:\d{1,5}|[0-9A-Fa-f:.]+)$" })
    }
}

/// As it is written canonically: port 0 is every port, and the address says it all.
impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None | Some(0) => self.ip.fmt(out),
            Some(port) => SocketAddr::new(self.ip, port).fmt(out),
        }
    }
}

impl Target {
    fn parse(node: &Node) -> Result<Self, Invalid> {
        let text = node.text("an address with a port")?;
        let target = match text.parse::<SocketAddr>() {
            // A zone (`%eth0`) would be lost; it belongs to link-local addresses only.
            Ok(SocketAddr::V6(both)) if both.scope_id() != 0 => {
                return Err(unusable(IpAddr::V6(*both.ip()), "link-local"));
            }
            Ok(both) => Self { ip: both.ip(), port: Some(both.port()) },
            Err(_) => Self { ip: bare(text)?, port: None },
        };
        reachable(target.ip).map(|_| target)
    }
}

fn bare(text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| {
        let found = not_an_address(
            text,
            "expected an address and a port such as `10.0.1.11:8443` or `[2001:db8::11]:8443`",
        );
        match text.rsplit_once(':') {
            Some((ip, port)) if ip.parse::<Ipv6Addr>().is_ok() => {
                found.help(format!("did you mean `[{ip}]:{port}`?"))
            }
            Some((ip, _)) if ip.parse::<Ipv4Addr>().is_ok() => {
                found.help("a port is a number from 0 to 65535")
            }
            _ if text.matches(':').count() < 2 && text.contains(|c: char| c.is_ascii_alphabetic()) => {
                found.help("names are not resolved: write the address")
            }
            _ => found,
        }
    })
}

/// Whether clients and backends can have it.
fn reachable(address: IpAddr) -> Result<IpAddr, Invalid> {
    let class = match address {
        IpAddr::V4(v4) => match v4 {
            _ if v4.octets()[0] == 0 => Some("unspecified"),
            _ if v4.is_loopback() => Some("loopback"),
            _ if v4.is_link_local() => Some("link-local"),
            _ if v4.is_multicast() => Some("multicast"),
            _ if v4.is_broadcast() => Some("broadcast"),
            _ => None,
        },
        IpAddr::V6(v6) => match v6 {
            _ if v6.is_unspecified() => Some("unspecified"),
            _ if v6.is_loopback() => Some("loopback"),
            _ if v6.is_unicast_link_local() => Some("link-local"),
            _ if v6.is_multicast() => Some("multicast"),
            _ if v6.to_ipv4_mapped().is_some() => {
                return Err(unusable(address, "IPv4-mapped").help(format!("write `{}`", v6.to_canonical())));
            }
            _ => None,
        },
    };
    class.map_or(Ok(address), |class| Err(unusable(address, class)))
}

fn unusable(address: IpAddr, class: &str) -> Invalid {
    let what = format!("`{address}` is {class}");
    Invalid::new(Code::UnusableAddress, what, "expected a unicast address that other hosts can reach")
}

fn not_an_address(text: &str, expected: &str) -> Invalid {
    Invalid::new(Code::NotAnAddress, format!("{} is not an address", escaped(text)), expected)
}

macro_rules! prefix {
    ($(#[doc = $doc:literal])+ $name:ident, $net:ty, $expected:literal, $schema:tt) => {
        $(#[doc = $doc])+
        pub(in crate::config) struct $name;

        impl Scalar for $name {
            type Value = $net;

            fn parse(node: &Node) -> Result<$net, Invalid> {
                let text = node.text($expected)?;
                let refused = |what: String| Invalid::new(Code::BadPrefix, what, concat!("expected ", $expected));
                let net: $net = text.parse().map_err(|_| refused(format!("{} is not a prefix", escaped(text))))?;
                if net.addr() != net.network() {
                    let what = format!("{} has bits set beyond its length", escaped(text));
                    return Err(refused(what).help(format!("did you mean `{}`?", net.trunc())));
                }
                Ok(net)
            }

            fn write<S: Serializer>(value: &$net, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(value)
            }

            fn schema() -> Json {
                json!($schema)
            }
        }
    };
}

prefix! {
    /// An IPv4 network.
    Prefix4, Ipv4Net, "an IPv4 prefix such as `172.16.0.0/16`",
    { "type": "string", "pattern": r"^\d{1,3}(\.\d{1,3}){3}/\d{1,2}$" }
}

prefix! {
    /// A network of either family.
    Prefix, IpNet, "a prefix such as `10.1.0.0/16` or `2001:db8::/32`",
    { "type": "string", "pattern": r"^[0-9A-Fa-f:.]+/\d{1,3}$" }
}

prefix! {
    /// An IPv6 network.
    Prefix6, Ipv6Net, "an IPv6 prefix such as `100::/64`",
    { "type": "string", "pattern": r"^[0-9A-Fa-f:.]+/\d{1,3}$" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::{Place, Shape};

    fn node(text: &str) -> Node<'_> {
        Node { at: Place::default(), shape: Shape::Text(text.into()) }
    }

    #[test]
    fn targets_are_written_with_or_without_a_port() {
        for (text, port) in [
            ("10.0.0.1:80", Some(80)),
            ("10.0.0.1", None),
            ("10.0.0.1:0", Some(0)),
            ("[2001:db8::1]:80", Some(80)),
            ("2001:db8::1", None),
        ] {
            let target = Target::parse(&node(text)).unwrap();
            assert_eq!((target.port, target.ip.is_ipv4()), (port, text.contains('.')));
        }
    }

    #[test]
    fn addresses_that_nobody_can_reach_are_refused() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(Unicast::parse(&node(text)).unwrap_err().code, Code::UnusableAddress, "{text}");
            assert_eq!(Target::parse(&node(text)).unwrap_err().code, Code::UnusableAddress, "{text}");
        }
        assert_eq!(Target::parse(&node("[fe80::1%2]:80")).unwrap_err().code, Code::UnusableAddress);
        assert!(Unicast::parse(&node("100.64.0.1")).is_ok());
    }

    #[test]
    fn prefixes_have_no_host_bits() {
        assert!(Prefix4::parse(&node("172.16.0.0/16")).is_ok());
        assert!(Prefix6::parse(&node("100::/64")).is_ok());
        for text in ["172.16.0.1/16", "172.16.0.0", "172.16.0.0/33", "100::/64"] {
            assert_eq!(Prefix4::parse(&node(text)).unwrap_err().code, Code::BadPrefix, "{text}");
        }
    }
}
