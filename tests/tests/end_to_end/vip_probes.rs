//! Health checks along the data path: a backend that does not take the VIP's packets is found, whatever its own address says.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::scene::{Plan, Scene};
use lb_tests::traffic::{Load, LoadSpec, Sources};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    use Family::{V4, V6};
    let mut claims = Vec::new();
    for (mode, family, inner, kind) in [
        ("dsr-l2", V4, V4, "http"),
        ("dsr-l2", V6, V6, "tcp"),
        ("dsr-l2", V4, V4, "udp"),
        ("dsr-l2", V4, V6, "tcp"),
        ("dsr-ipip", V4, V4, "tcp"),
        ("dsr-ipip", V6, V4, "http"),
        ("dsr-ipip", V4, V6, "udp"),
        ("dsr-gue", V4, V4, "http"),
        ("dsr-gue", V6, V6, "udp"),
    ] {
        let name = format!(
            "a {mode} backend of {inner:?} without its {family:?} VIP is found by a {kind} check of the VIP"
        );
        claims.push(claim(&name, move || without_vip(mode, family, inner, kind)));
    }
    claims.push(claim("a check of a backend's own address does not see that its VIP is gone", direct));
    claims.push(claim("a check of the VIP finds a backend whose tunnel is not opened", no_tunnel));
    claims.push(claim(
        "checks of the VIP go on after a kill -9 and a restart, and see what pages say",
        restarted,
    ));
    claims
}

/// Three backends, each asked every 200 ms.
fn plan(mode: &'static str, family: Family, inner: Family, kind: &str, via: &str) -> Plan {
    let question = match kind {
        "http" => "path = \"/healthz\"\n",
        "udp" => "send = \"well?\"\n",
        _ => "",
    };
    Plan {
        mode,
        family,
        inner,
        protocol: if kind == "udp" { "udp" } else { "tcp" },
        stable: 3,
        canary: 0,
        health: format!(
            "panic_threshold = 0\n[service.health]\ntype = \"{kind}\"\n{question}{via}interval = \"200ms\"\ntimeout = \"150ms\"\n\
             healthy = 2\nunhealthy = 3\n"
        ),
        ..Plan::default()
    }
}

const VIP: &str = "via = \"vip\"\n";
/// 3 * 200 ms + 150 ms, and what a busy machine takes to notice.
const FOUND: Duration = Duration::from_millis(750 + 1000);

fn without_vip(mode: &'static str, family: Family, inner: Family, kind: &str) -> Result<()> {
    let scene = Scene::start(plan(mode, family, inner, kind, VIP))?;
    let backend = scene.lab.backend(1);
    backend.release_vip(scene.target().ip())?;
    let gone = Instant::now();
    scene.wait_taking(2, Duration::from_secs(5))?;
    ensure!(gone.elapsed() < FOUND, "found after {:?}", gone.elapsed());
    // UDP flows find their slot's new backend an idle time later.
    if kind != "udp" {
        let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(200)).flows(200);
        let tally = Load::run(scene.lab.client(0), load)?;
        ensure!(tally.failed() == 0 && tally.answered_by("stable1") == 0, "{tally:?}");
    }
    backend.hold_vip(scene.target().ip())?;
    scene.wait_taking(3, Duration::from_secs(5))
}

fn direct() -> Result<()> {
    let scene = Scene::start(plan("dsr-l2", Family::V4, Family::V4, "tcp", ""))?;
    scene.lab.backend(1).release_vip(scene.target().ip())?;
    // As long as the other check may take, twice.
    let end = Instant::now() + 2 * FOUND;
    while Instant::now() < end {
        scene.wait_taking(3, Duration::ZERO)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn no_tunnel() -> Result<()> {
    let mut scene = Scene::start(plan("dsr-ipip", Family::V4, Family::V4, "tcp", VIP))?;
    drop(scene.decapsulators.remove(2));
    scene.wait_taking(2, Duration::from_secs(5))?;
    let rows = scene.json(&["get", "backends", lb_tests::scene::SERVICE])?;
    let reasons: Vec<&str> = rows["backends"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["health"]["reason"].as_str())
        .collect();
    ensure!(reasons == ["no answer to the handshake in time"], "{rows:#}");
    Ok(())
}

fn restarted() -> Result<()> {
    let mut scene = Scene::start(plan("dsr-l2", Family::V4, Family::V4, "http", VIP))?;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    scene.wait_taking(3, Duration::from_secs(10))?;
    scene.servers[0].set_health(503)?;
    scene.wait_taking(2, Duration::from_secs(5))?;
    scene.servers[0].set_health(200)?;
    scene.wait_taking(3, Duration::from_secs(5))
}
