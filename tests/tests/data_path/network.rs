//! A namespace whose routes are known, and what `bpf_fib_lookup` must say of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::Device;
use lb_common::parse::Network as Header;
use lb_common::pipeline::Route;
use lb_common::vlan::{Tags, Vlan};
use lb_common::wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};
use lb_tests::programs::returning;
use lb_tests::{Family, Lab, Mac, Namespace, bpf};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteType;

/// Bytes that an IP packet may have on the port: the least that IPv6 allows.
const MTU: u16 = 1280;
/// The same for the loopback, as far as the program is told.
const NARROW: u16 = 200;

/// The loopback.
pub const LOOPBACK: u32 = 1;
/// An interface that nobody has.
const NOWHERE: u32 = 4000;

/// Clients behind a router that does not answer: `client` with a number below 32 in `lb_common::host::fuzz`.
const UNRESOLVED_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 27);
const UNRESOLVED_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0), 123);

/// Clients that nobody may send to: those with the next eight numbers.
const FORBIDDEN_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 32), 29);
const FORBIDDEN_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 32), 125);

const ROUTER: Mac = Mac([0x02, 0, 0, 0, 0, 0xfe]);

/// The namespace.
pub struct Network {
    lab: Lab,
    /// A frame can arrive only where a program is attached.
    _attached: OwnedFd,
}

impl Network {
    /// Makes it: a default route to a router that is known, and routes to one that is not.
    pub fn new() -> Result<Self> {
        let lab = Lab::builder().clients(0).backends(0).mtu(MTU.into()).build()?;
        let balancer = lab.balancer();
        let interface = balancer.port().index;
        let (known, unknown) = ((200, ROUTER), 201);
        balancer
            .netlink(async |handle| {
                for family in Family::ALL {
                    let entry = handle.neighbours().add(interface, lab.vip(known.0, family));
                    let entry = entry.link_layer_address(&known.1.0).state(NeighbourState::Permanent);
                    entry.replace().execute().await?;
                }
                Ok(())
            })
            .context("cannot add the router")?;
        for (prefix, number) in [
            (IpNet::V4(Ipv4Net::default()), known.0),
            (IpNet::V6(Ipv6Net::default()), known.0),
            (UNRESOLVED_V4.into(), unknown),
            (UNRESOLVED_V6.into(), unknown),
        ] {
            balancer.route(prefix, lab.vip(number, family_of(prefix)))?;
        }
        for (prefix, kind) in
            [(FORBIDDEN_V4.into(), RouteType::BlackHole), (IpNet::V6(FORBIDDEN_V6), RouteType::Prohibit)]
        {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?
                .kind(kind)
                .build();
            balancer.netlink(async |handle| handle.route().add(message).execute().await)?;
        }
        balancer.sysctl("net/ipv4/conf/lo/forwarding", 0)?;
        let attached = bpf::attach_xdp(balancer.namespace(), interface, returning(2)?, bpf::XdpMode::Native)?;
        Ok(Self { lab, _attached: attached })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        self.lab.balancer().namespace()
    }

    /// The interface that is neither the loopback nor missing.
    pub fn port(&self) -> u32 {
        self.lab.balancer().port().index
    }

    /// What the program may send by: the port, a narrow loopback, and an interface that it is not told how to send by, unless it is
    /// one of [`vlans`](Self::vlans).
    pub fn devices(&self) -> [Device; 3] {
        let mac = self.lab.balancer().mac().0;
        [
            Device { ifindex: self.port(), mtu: MTU, mac, pad: 0 },
            Device { ifindex: LOOPBACK, mtu: NARROW, mac: [0; 6], pad: 0 },
            Device { ifindex: NOWHERE, mtu: MTU, mac: [2; 6], pad: 0 },
        ]
    }

    /// As if the interface that is not there were a VLAN device on the port, with these tags.
    pub fn vlans(&self, tags: &[u16]) -> HashMap<u32, Vlan> {
        let tags = match tags {
            [outer, inner] => {
                Tags::NONE.with(ETHERTYPE_QINQ, *outer).and_then(|tags| tags.with(ETHERTYPE_VLAN, *inner))
            }
            tags => tags.iter().try_fold(Tags::NONE, |tags, id| tags.with(ETHERTYPE_VLAN, *id)),
        };
        let tags = tags.expect("two tags at most").0;
        let own = |ifindex| (ifindex, Vlan { ifindex, tags: 0 });
        [own(self.port()), own(LOOPBACK), (NOWHERE, Vlan { ifindex: self.port(), tags })].into()
    }

    /// The interfaces of `EGRESS`.
    pub fn egress(&self) -> [u32; 2] {
        [self.port(), LOOPBACK]
    }

    /// Addresses of which the kernel has its own mind.
    pub fn odd_addresses(&self, family: Family) -> Vec<IpAddr> {
        let own = self.lab.balancer().ip(family);
        let stranger = self.lab.vip(202, family);
        let router = self.lab.vip(200, family);
        let odd: &[&str] = match family {
            Family::V4 => {
                &["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "10.1.255.255"]
            }
            Family::V6 => {
                &["::", "::1", "ff02::1", "fe80::1", "fe80:0:0:1::1", "::ffff:198.51.100.77", "fd00:1::"]
            }
        };
        odd.iter().filter_map(|text| text.parse().ok()).chain([own, stranger, router]).collect()
    }

    /// What the kernel says of where packets leave.
    pub fn routes(&self) -> Routes {
        let balancer = self.lab.balancer();
        Routes {
            port: self.port(),
            mac: balancer.mac(),
            v4: balancer.v4(),
            v6: balancer.v6(),
            known: Family::ALL.map(|family| self.lab.vip(200, family)),
        }
    }
}

/// What the kernel knows of the namespace's routes.
#[derive(Clone, Copy)]
pub struct Routes {
    port: u32,
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// The router that answers, by family.
    known: [IpAddr; 2],
}

impl Routes {
    /// Where a packet leaves that came in by `arrival`.
    pub fn route(&self, arrival: u32, header: &Header) -> Route {
        let out = Route::Out { ifindex: self.port, source: self.mac.0, destination: ROUTER.0 };
        let onward = if header.end - header.l3 > MTU.into() { Route::TooBig } else { out };
        match IpAddr::from(header.destination) {
            IpAddr::V4(_) if arrival == LOOPBACK => Route::ForwardingOff,
            IpAddr::V4(to) => {
                let lan = Ipv4Net::new_assert(self.v4, 16);
                if to == self.v4 || to.is_loopback() || to == lan.broadcast() {
                    Route::Local
                } else if FORBIDDEN_V4.contains(&to) {
                    Route::None
                } else if !self.known.contains(&to.into())
                    && (lan.contains(&to) || UNRESOLVED_V4.contains(&to))
                {
                    unresolved(onward)
                } else {
                    onward
                }
            }
            IpAddr::V6(to) => {
                let lan = Ipv6Net::new_assert(self.v6, 64);
                // What is for a link does not leave it.
                let link = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
                // The first address of a prefix is anycast for its routers (RFC 4291, 2.6.1).
                let ours = [self.v6, lan.network(), Ipv6Addr::LOCALHOST];
                let stays = |address: Ipv6Addr| {
                    address.is_multicast() || address.is_loopback() || link.contains(&address)
                };
                let from_link = matches!(header.source.into(), IpAddr::V6(from) if stays(from));
                if ours.contains(&to) || stays(to) || from_link {
                    Route::Local
                } else if FORBIDDEN_V6.contains(&to) {
                    Route::None
                } else if !self.known.contains(&to.into())
                    && [lan, UNRESOLVED_V6].iter().any(|net| net.contains(&to))
                {
                    unresolved(onward)
                } else {
                    onward
                }
            }
        }
    }
}

/// The MTU is looked at before the neighbour.
fn unresolved(onward: Route) -> Route {
    if onward == Route::TooBig { onward } else { Route::Unresolved }
}

fn family_of(prefix: IpNet) -> Family {
    prefix.addr().into()
}
