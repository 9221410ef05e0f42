//! Against the kernel, in namespaces.

use std::{net::IpAddr, time::Duration};

use tokio::sync::mpsc;

use super::*;
use crate::netlink::{
    release_neighbours,
    testing::{Pair, Peer, eventually, in_namespace, in_namespace_with, ip, ip_output},
};

const B: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];

fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| address(text)).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

struct Watch {
    next_hops: NextHops,
    events: mpsc::Receiver<NextHopEvent>,
}

impl Watch {
    fn new<const N: usize>(targets: [&str; N]) -> Self {
        let (sender, events) = mpsc::channel(64);
        let next_hops = NextHops::follow(sender).expect("CAP_NET_ADMIN is enough");
        next_hops.set_targets(addresses(targets));
        Self { next_hops, events }
    }

    /// Waits until the last event about that destination says this.
    async fn until(
        &mut self,
        destination: &str,
        wanted: impl Fn(Result<NextHop, Unreachable>) -> bool,
    ) -> NextHopEvent {
        let destination = address(destination);
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("it goes on");
                if event.destination == destination && wanted(event.next_hop) {
                    return event;
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), wait).await {
            Ok(event) => event,
            Err(_) => panic!("{:?}\n{}", self.next_hops.snapshot(), ip_output("neigh")),
        }
    }

    async fn until_mac(&mut self, destination: &str, mac: [u8; 6]) -> NextHop {
        let has_mac = |hop: Result<NextHop, Unreachable>| hop.is_ok_and(|hop| hop.mac == Some(mac));
        self.until(destination, has_mac).await.next_hop.expect("it has a MAC")
    }
}

/// Another router on the link: the peer's second interface, bridged by nobody, so that it needs a link of its own.
fn second_link(peer: &Peer) {
    ip(&format!("link add name c type veth peer name d address 02:00:00:00:00:0d netns {}", peer.id()));
    peer.ip("addr add 10.1.0.2/24 dev d");
    peer.ip("link set dev d up");
    ip("addr add 10.1.0.1/24 dev c");
    ip("link set dev c up");
}

#[test]
fn neighbours_on_the_link_are_resolved_and_kept() {
    in_namespace_with(&[crate::netlink::testing::Capability::NetAdmin], async |peer| {
        let pair = Pair::new(peer);
        let mut watch =
            Watch::new(["10.0.0.2", "fd00::2", "10.0.0.1", "10.0.0.255", "192.0.2.1", "10.0.0.77"]);
        let v4 = watch.until_mac("10.0.0.2", B).await;
        let expected = NextHop {
            ifindex: pair.ifindex,
            gateway: None,
            mac: Some(B),
            mtu: 1500,
            source: address("10.0.0.1"),
        };
        assert_eq!(v4, expected);
        let v6 = watch.until_mac("fd00::2", B).await;
        assert_eq!(v6, NextHop { source: address("fd00::1"), ..expected });
        watch.until("10.0.0.77", |hop| hop == Err(Unreachable::NoAnswer)).await;

        let snapshot = watch.next_hops.snapshot();
        assert_eq!(snapshot[&address("10.0.0.1")], Err(Unreachable::Local));
        assert_eq!(snapshot[&address("10.0.0.255")], Err(Unreachable::NotUnicast));
        assert_eq!(snapshot[&address("192.0.2.1")], Err(Unreachable::NoRoute));
        assert_eq!(ip_output("neigh show 10.0.0.2 dev a").matches("managed").count(), 1);

        ip("route add prohibit 192.0.2.0/24");
        watch.until("192.0.2.1", |hop| hop == Err(Unreachable::Prohibited)).await;
    });
}

#[test]
fn a_mac_that_changes_is_followed() {
    in_namespace(async |peer| {
        Pair::new(peer);
        let mut watch = Watch::new(["10.0.0.2"]);
        watch.until_mac("10.0.0.2", B).await;
        peer.ip("link set dev b address 02:00:00:00:00:99");
        // The kernel believes what it hears from the neighbour itself.
        peer.ip("neigh replace 10.0.0.1 lladdr 02:00:00:00:00:0a dev b");
        ip("neigh change 10.0.0.2 dev a nud probe");
        watch.until_mac("10.0.0.2", [2, 0, 0, 0, 0, 0x99]).await;
    });
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_followed() {
    in_namespace(async |peer| {
        Pair::new(peer);
        let mut watch = Watch::new(["10.0.0.2", "fd00::2"]);
        watch.until_mac("10.0.0.2", B).await;
        watch.until_mac("fd00::2", B).await;

        peer.ip("link set dev b down");
        watch.until("10.0.0.2", |hop| hop == Err(Unreachable::LinkDown)).await;
        peer.ip("link set dev b up");
        watch.until_mac("10.0.0.2", B).await;

        ip("link set dev a down");
        watch.until("10.0.0.2", |hop| hop == Err(Unreachable::NoRoute)).await;
        ip("link set dev a up");
        watch.until_mac("10.0.0.2", B).await;

        ip("link del dev a");
        watch.until("10.0.0.2", |hop| hop == Err(Unreachable::NoRoute)).await;
        Pair::new(peer);
        watch.until_mac("10.0.0.2", B).await;
    });
}

#[test]
fn a_neighbour_that_is_deleted_is_resolved_again_without_an_event() {
    in_namespace(async |peer| {
        Pair::new(peer);
        let mut watch = Watch::new(["10.0.0.2"]);
        watch.until_mac("10.0.0.2", B).await;
        for _ in 0..3 {
            ip("neigh del 10.0.0.2 dev a");
            let resolved = || {
                let entry = ip_output("neigh show 10.0.0.2 dev a");
                entry.contains("lladdr 02:00:00:00:00:0b") && entry.contains("managed")
            };
            tokio::time::timeout(Duration::from_secs(5), eventually(resolved)).await.expect("in seconds");
        }
        assert!(watch.events.try_recv().is_err());
    });
}

#[test]
fn an_entry_that_was_set_by_hand_is_left_alone() {
    in_namespace(async |peer| {
        Pair::new(peer);
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:42 dev a nud permanent");
        let mut watch = Watch::new(["10.0.0.2"]);
        watch.until_mac("10.0.0.2", [2, 0, 0, 0, 0, 0x42]).await;
        assert!(ip_output("neigh show 10.0.0.2 dev a").contains("PERMANENT"));
    });
}

#[test]
fn a_route_is_followed_from_gateway_to_gateway() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        second_link(peer);
        ip("route add 198.51.100.0/24 via 10.0.0.2");
        let mut watch = Watch::new(["198.51.100.7", "203.0.113.9"]);
        let first = watch.until_mac("198.51.100.7", B).await;
        assert_eq!((first.ifindex, first.gateway), (pair.ifindex, Some(address("10.0.0.2"))));

        ip("route replace 198.51.100.0/24 via 10.1.0.2 mtu 1300");
        let second = watch.until_mac("198.51.100.7", [2, 0, 0, 0, 0, 0x0d]).await;
        assert_eq!((second.gateway, second.source), (Some(address("10.1.0.2")), address("10.1.0.1")));
        assert_eq!(second.mtu, 1300);

        // A more specific one, one by a rule, and one to a gateway of the other family.
        ip("route add 198.51.100.7/32 via 10.0.0.2");
        watch.until_mac("198.51.100.7", B).await;
        ip("route add 198.51.100.0/24 via 10.1.0.2 table 77");
        ip("rule add to 198.51.100.0/24 lookup 77");
        watch.until_mac("198.51.100.7", [2, 0, 0, 0, 0, 0x0d]).await;
        ip("route add 203.0.113.0/24 via inet6 fd00::2 dev a");
        let mixed = watch.until_mac("203.0.113.9", B).await;
        assert_eq!(mixed.gateway, Some(address("fd00::2")));

        // With its address goes the route, and the kernel says nothing about the route.
        ip("rule del to 198.51.100.0/24 lookup 77");
        ip("route del 198.51.100.7/32");
        ip("addr del 10.1.0.1/24 dev c");
        watch.until("198.51.100.7", |hop| hop == Err(Unreachable::NoRoute)).await;
    });
}

#[test]
fn a_tunnel_needs_no_mac() {
    in_namespace(async |_| {
        ip("tuntap add t mode tun");
        ip("addr add 10.9.0.1/24 dev t");
        ip("link set dev t up");
        let mut watch = Watch::new(["10.9.0.2"]);
        // Nobody has opened the device: it is up without a carrier.
        watch.until("10.9.0.2", |hop| hop == Err(Unreachable::LinkDown)).await;
        assert_eq!(ip_output("neigh show dev t"), "");
    });
}

#[test]
fn neighbours_are_released_when_nobody_needs_them() {
    in_namespace(async |peer| {
        Pair::new(peer);
        let managed = || ip_output("neigh").matches("managed").count();
        let mut watch = Watch::new(["10.0.0.2", "fd00::2"]);
        watch.until_mac("10.0.0.2", B).await;
        watch.until_mac("fd00::2", B).await;
        eventually(|| managed() == 2).await;
        watch.next_hops.set_targets(addresses(["fd00::2"]));
        eventually(|| managed() == 1).await;
        watch.next_hops.release().await.expect("the kernel takes it");
        assert_eq!(managed(), 0);

        // An agent that dies leaves them; the next one takes what it needs and releases the others.
        let mut died = Watch::new(["10.0.0.2", "fd00::2"]);
        died.until_mac("10.0.0.2", B).await;
        died.until_mac("fd00::2", B).await;
        eventually(|| managed() == 2).await;
        drop(died);
        let mut next = Watch::new(["10.0.0.2"]);
        next.until_mac("10.0.0.2", B).await;
        eventually(|| managed() == 1).await;
        drop(next);
        assert_eq!(release_neighbours().expect("the kernel takes it"), 1);
        assert_eq!(managed(), 0);
    });
}

#[test]
fn without_the_privilege_it_says_so() {
    in_namespace_with(&[], async |_| {
        let error = crate::netlink::resolve(1, address("10.0.0.2")).expect_err("it needs CAP_NET_ADMIN");
        assert!(error.is_permission() && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn ten_thousand_destinations_behind_a_gateway_are_cheap() {
    in_namespace(async |peer| {
        Pair::new(peer);
        second_link(peer);
        ip("route add 172.16.0.0/12 via 10.0.0.2");
        let targets =
            (0..10_000_u32).map(|n| std::net::Ipv4Addr::from_bits(0xac10_0000 + n).into()).collect();
        let (sender, mut events) = mpsc::channel(64);
        let next_hops = NextHops::follow(sender).expect("CAP_NET_ADMIN is enough");
        let start = std::time::Instant::now();
        next_hops.set_targets(targets);
        let mut resolved = 0;
        while resolved < 10_000 {
            resolved += u32::from(events.recv().await.expect("it goes on").next_hop.is_ok());
        }
        println!("10 000 destinations looked up in {:?}", start.elapsed());

        let start = std::time::Instant::now();
        ip("route replace 172.16.0.0/12 via 10.1.0.2");
        let mut moved = 0;
        while moved < 10_000 {
            let hop = events.recv().await.expect("it goes on").next_hop;
            moved += u32::from(hop.is_ok_and(|hop| hop.mac == Some([2, 0, 0, 0, 0, 0x0d])));
        }
        println!("… and moved in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}
