//! Against the kernel, in namespaces.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::*;
use crate::netlink::testing::{
    Capability, Pair, Peer, eventually, in_namespace, in_namespace_with, ip, ip_output,
};

const V4: &str = "203.0.113.10";
const V6: &str = "2001:db8::10";

fn vip(ifindex: u32, address: &str) -> Vip {
    Vip { ifindex, address: address.parse().expect("an address") }
}

fn both(ifindex: u32) -> BTreeSet<Vip> {
    [vip(ifindex, V4), vip(ifindex, V6)].into()
}

async fn until(vips: &Vips, wanted: impl Fn(&BTreeMap<Vip, VipState>) -> bool) {
    let mut states = vips.subscribe();
    let seen = tokio::time::timeout(Duration::from_secs(5), states.wait_for(|states| wanted(states))).await;
    assert!(seen.is_ok(), "{:?}\n{}", vips.snapshot(), ip_output("addr"));
}

async fn until_ours(vips: &Vips) {
    until(vips, |states| states.len() == 2 && states.values().all(|state| *state == VipState::Ours)).await;
}

/// The peer reaches the VIP on the link by ARP or ND, and the host's TCP refuses the connection: it was answered.
fn is_answered(peer: &Peer, address: &str) -> bool {
    let to = SocketAddr::new(address.parse().expect("an address"), 80);
    peer.run(move || TcpStream::connect_timeout(&to, Duration::from_millis(500)))
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The peer thinks that the VIPs are on its link; it knows another MAC for them if that is given.
fn peer_routes(peer: &Peer) {
    peer.ip("route add 203.0.113.0/24 dev b");
    peer.ip("-6 route add 2001:db8::/64 dev b");
}

#[test]
fn vips_are_answered_for_and_removed() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        peer_routes(peer);
        assert!(!is_answered(peer, V4) && !is_answered(peer, V6));

        let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
        vips.set(both(pair.ifindex));
        until_ours(&vips).await;
        // The peer repeats a question a second after nobody answered it.
        eventually(|| is_answered(peer, V4) && is_answered(peer, V6)).await;

        // Nothing of this host is sent from a VIP by itself.
        assert!(ip_output("route get 10.0.0.2").contains("src 10.0.0.1"));
        assert!(ip_output("-6 route get fd00::2").contains("src fd00::1"));
        let shown = ip_output("addr show dev a");
        assert!(
            shown.contains("inet 203.0.113.10/32 scope host") && shown.contains("inet6 2001:db8::10/128"),
            "{shown}"
        );
        let mut requests = Requests::new().expect("a socket");
        let present = address::dump(&mut requests).expect("the kernel answers");
        assert_eq!(present.iter().filter(|present| present.ours).count(), 2, "{present:?}");

        vips.set([vip(pair.ifindex, V6)].into());
        until(&vips, |states| states.len() == 1).await;
        eventually(|| !ip_output("addr show dev a").contains(V4)).await;
        assert!(is_answered(peer, V6));
        assert_eq!(vips.remove_all().await.expect("the kernel takes it"), 1);
        assert!(!ip_output("addr show dev a").contains(V6));
    });
}

#[test]
fn what_somebody_else_added_is_left_alone() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        ip("addr add 203.0.113.10/24 dev a");
        let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
        vips.set(both(pair.ifindex));
        until(&vips, |states| states.get(&vip(pair.ifindex, V4)) == Some(&VipState::Foreign)).await;
        until(&vips, |states| states.get(&vip(pair.ifindex, V6)) == Some(&VipState::Ours)).await;
        vips.set(BTreeSet::new());
        eventually(|| !ip_output("addr show dev a").contains(V6)).await;
        assert_eq!(vips.remove_all().await.expect("the kernel takes it"), 0);
        assert!(ip_output("addr show dev a").contains(V4));
    });
}

#[test]
fn a_vip_that_is_taken_away_comes_back() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
        vips.set(both(pair.ifindex));
        until_ours(&vips).await;
        for _ in 0..3 {
            ip("addr del 203.0.113.10/32 dev a");
            eventually(|| ip_output("addr show dev a").contains(V4)).await;
        }
        // An interface that goes down loses its IPv6 addresses.
        ip("link set dev a down");
        ip("link set dev a up");
        eventually(|| {
            let shown = ip_output("addr show dev a");
            shown.contains(V4) && shown.contains(V6)
        })
        .await;
    });
}

#[test]
fn an_interface_that_is_missing_is_waited_for() {
    in_namespace(async |peer| {
        let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
        vips.set(both(77));
        let missing = VipState::Failed(VipError::NoInterface);
        until(&vips, |states| states.len() == 2 && states.values().all(|state| *state == missing)).await;
        ip(&format!("link add name a index 77 type veth peer name b netns {}", peer.id()));
        ip("link set dev a up");
        until_ours(&vips).await;
        ip("link del dev a");
        until(&vips, |states| states.values().all(|state| *state == missing)).await;
    });
}

#[test]
fn without_ipv6_the_reason_is_told() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        // The files of /proc/sys/net that a thread sees are those of its own namespace.
        let disable = std::process::Command::new("sh")
            .args(["-c", "echo 1 > /proc/sys/net/ipv6/conf/a/disable_ipv6"])
            .status();
        assert!(disable.expect("there is a shell").success());
        let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
        vips.set(both(pair.ifindex));
        until(&vips, |states| {
            states.get(&vip(pair.ifindex, V6)) == Some(&VipState::Failed(VipError::Ipv6Disabled))
                && states.get(&vip(pair.ifindex, V4)) == Some(&VipState::Ours)
        })
        .await;
    });
}

#[test]
fn addresses_stay_when_the_agent_dies_and_the_next_one_knows_them() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        let died = Vips::follow().expect("CAP_NET_ADMIN is enough");
        died.set(both(pair.ifindex));
        until_ours(&died).await;
        drop(died);
        let next = Vips::follow().expect("CAP_NET_ADMIN is enough");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let shown = ip_output("addr show dev a");
        assert!(shown.contains(V4) && shown.contains(V6), "nothing is removed before it says what it wants");
        next.set([vip(pair.ifindex, V4)].into());
        eventually(|| !ip_output("addr show dev a").contains(V6)).await;
        drop(next);
        assert_eq!(remove_vips().expect("the kernel takes it"), 1);
        assert!(!ip_output("addr show dev a").contains(V4));
    });
}

const ELSEWHERE: &str = "lladdr 02:00:00:00:00:42";
const HERE: &str = "lladdr 02:00:00:00:00:0a";

fn peer_knows(peer: &Peer, address: &'static str, mac: &'static str) -> bool {
    peer.run(move || ip_output(&format!("neigh show {address} dev b"))).contains(mac)
}

/// The VIPs were with another balancer before.
async fn take_over(peer: &Peer, pair: &Pair) -> Vips {
    peer_routes(peer);
    for address in [V4, V6] {
        peer.ip(&format!("neigh add {address} {ELSEWHERE} dev b nud stale"));
    }
    let vips = Vips::follow().expect("CAP_NET_ADMIN is enough");
    vips.set(both(pair.ifindex));
    until_ours(&vips).await;
    vips
}

#[test]
fn neighbours_learn_of_a_vip_that_moved_here() {
    in_namespace(async |peer| {
        let pair = Pair::new(peer);
        let _vips = take_over(peer, &pair).await;
        eventually(|| peer_knows(peer, V4, HERE) && peer_knows(peer, V6, HERE)).await;

        // The link was elsewhere for a while.
        for address in [V4, V6] {
            peer.ip(&format!("neigh replace {address} {ELSEWHERE} dev b nud permanent"));
        }
        tokio::time::sleep(Duration::from_millis(2500)).await;
        peer.ip("link set dev b down");
        peer.ip("link set dev b up");
        peer.ip("-6 addr replace fd00::2/64 dev b nodad");
        for route in ["route replace 203.0.113.0/24 dev b", "-6 route replace 2001:db8::/64 dev b"] {
            peer.ip(route);
        }
        for address in [V4, V6] {
            peer.ip(&format!("neigh replace {address} {ELSEWHERE} dev b nud stale"));
        }
        eventually(|| peer_knows(peer, V4, HERE) && peer_knows(peer, V6, HERE)).await;
    });
}

#[test]
fn without_the_privilege_to_announce_the_rest_works() {
    in_namespace_with(&[Capability::NetAdmin], async |peer| {
        let pair = Pair::new(peer);
        let _vips = take_over(peer, &pair).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(peer_knows(peer, V4, ELSEWHERE) && peer_knows(peer, V6, ELSEWHERE));
        peer.ip(&format!("neigh del {V4} dev b"));
        peer.ip(&format!("neigh del {V6} dev b"));
        eventually(|| is_answered(peer, V4) && is_answered(peer, V6)).await;
    });
}
