//! In by one interface, out by another; and neighbours that are not known yet.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_common::verdict::Reason;
use lb_tests::scene::{Plan, Scene};
use lb_tests::traffic::{Load, LoadSpec};
use lb_tests::{Family, Lab, Topology, claim};
use lb_userspace::dataplane::maps::{Maps, directory};
use libtest_mimic::Trial;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};

use crate::modes::forwards;

pub fn claims() -> Vec<Trial> {
    use Family::{V4, V6};
    let mut claims = Vec::new();
    for (mode, family, inner) in [
        ("nat", V4, V4),
        ("nat", V6, V6),
        ("full-nat", V4, V4),
        ("full-nat", V6, V6),
        ("dsr-l2", V4, V4),
        ("dsr-l2", V6, V6),
        ("dsr-ipip", V4, V4),
        ("dsr-ipip", V4, V6),
        ("dsr-gue", V6, V4),
        ("dsr-gue", V6, V6),
    ] {
        let name =
            format!("{mode} forwards between two interfaces, to a {family:?} VIP with {inner:?} backends");
        claims.push(claim(&name, move || {
            let plan = Plan { mode, family, inner, ..Plan::default() };
            forwards(Scene::start_in(Lab::builder().topology(Topology::Routed), plan)?)
        }));
    }
    for (mode, family) in [("nat", V4), ("nat", V6), ("full-nat", V4), ("full-nat", V6)] {
        let name = format!("the first {mode} reply to a {family:?} neighbour that is not known is not lost");
        claims.push(claim(&name, move || unknown(mode, family)));
    }
    for family in [V4, V6] {
        let name = format!("a {family:?} VIP that somebody else moves is served wherever it is");
        claims.push(claim(&name, move || moved_by_others(family)));
    }
    claims
}

/// As keepalived does it.
fn moved_by_others(family: Family) -> Result<()> {
    let dataplane = "hold_vips = false".to_owned();
    let plan = Plan { family, inner: family, stable: 1, canary: 0, dataplane, ..Plan::default() };
    let mut scene = Scene::start(plan)?;
    let (balancer, client, vip) = (scene.lab.balancer(), scene.lab.client(0), scene.target().ip());
    let load = || LoadSpec::http(scene.target(), "/").flows(1).timeout(Duration::from_millis(500));
    ensure!(Load::run(client, load())?.failed() == 1, "nobody answers for it yet");
    scene.agent.lbctl(&["status"])?.exits(0)?;
    let prefix = if vip.is_ipv4() { 32 } else { 128 };
    balancer.add_address("eth0", vip, prefix)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Load::run(client, load())?.failed() > 0 {
        ensure!(Instant::now() < deadline, "it is here, and not served");
    }
    // To remove what is not there would fail.
    balancer.remove_address("eth0", vip, prefix)?;
    scene.agent.stop(Duration::from_secs(10))?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(10))?;
    ensure!(balancer.remove_address("eth0", vip, prefix).is_err(), "lbd has put it back");
    scene.agent.lbctl(&["status"])?.exits(0)?;
    Ok(())
}

/// A client that the balancer has never heard of gets its SYN-ACK before it asks again.
fn unknown(mode: &'static str, family: Family) -> Result<()> {
    let plan = Plan { mode, family, inner: family, stable: 1, canary: 0, ..Plan::default() };
    let scene = Scene::start_in(Lab::builder().topology(Topology::Routed), plan)?;
    let (balancer, client) = (scene.lab.balancer(), scene.lab.client(0));
    let maps = Maps::open(&directory(&scene.agent.places().pins))?;
    let by_host = || -> Result<u64> { Ok(maps.counters()?.reasons[Reason::RepliedByHost as usize]) };
    let load = || LoadSpec::http(scene.target(), "/").flows(1).timeout(Duration::from_secs(5));
    // Whoever asks for a hardware address tells his own, and asks again after a while: the client is told once and for all.
    for address in [scene.target().ip(), balancer.ip(family)] {
        client.netlink(async |handle| {
            let entry = handle.neighbours().add(client.port().index, address);
            let entry = entry.link_layer_address(&balancer.mac().0).state(NeighbourState::Permanent);
            entry.replace().execute().await
        })?;
    }
    for round in 0..5 {
        forget(&scene, client.ip(family))?;
        let before = by_host()?;
        let tally = Load::run(client, load())?;
        ensure!(tally.failed() == 0, "{tally:?}");
        // Linux sends a SYN again after a second.
        ensure!(tally.latency.max < Duration::from_millis(950), "round {round}: {tally:?}");
        ensure!(by_host()? > before, "the host had nothing to do: {} knew the client", balancer.name());
    }
    Ok(())
}

/// Has the balancer forget a neighbour.
fn forget(scene: &Scene, neighbour: std::net::IpAddr) -> Result<()> {
    let balancer = scene.lab.balancer();
    let mut message = NeighbourMessage::default();
    message.header.ifindex = balancer.port().index;
    message.header.family = match neighbour {
        std::net::IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        std::net::IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    let address = rtnetlink::packet_route::neighbour::NeighbourAttribute::Destination(neighbour.into());
    message.attributes.push(address);
    balancer.netlink(async |handle| match handle.neighbours().del(message).execute().await {
        // ENOENT: it knows of none.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => Ok(()),
        done => done,
    })
}
