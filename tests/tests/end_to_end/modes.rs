//! Every forwarding mode, with every mix of families that it can do.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::scene::{Plan, Scene};
use lb_tests::traffic::{Load, LoadSpec, Sources};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;

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
        ("dsr-ipip", V6, V4),
        ("dsr-ipip", V6, V6),
        ("dsr-gue", V4, V4),
        ("dsr-gue", V4, V6),
        ("dsr-gue", V6, V4),
        ("dsr-gue", V6, V6),
    ] {
        for protocol in ["tcp", "udp"] {
            let name = format!("{mode} forwards {protocol} to a {family:?} VIP with {inner:?} backends");
            let plan = Plan { mode, protocol, family, inner, ..Plan::default() };
            claims.push(claim(&name, move || forwards(Scene::start(plan.clone())?)));
        }
    }
    for (family, inner) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
        let name = format!("lbd decap opens tunnels of {inner:?} with {family:?} inside");
        let plan = Plan { mode: "dsr-ipip", family, inner, decap: Some(&[]), ..Plan::default() };
        claims.push(claim(&name, move || forwards(Scene::start(plan.clone())?)));
    }
    claims.push(claim("lbd decap takes GUE at the port that it is told", || {
        let service = "gue_port = 6635".to_owned();
        forwards(Scene::start(Plan {
            mode: "dsr-gue",
            service,
            decap: Some(&["--gue-port", "6635"]),
            ..Plan::default()
        })?)
    }));
    claims.push(claim("lbd decap opens no tunnel that is not a balancer's", strangers_tunnel));
    claims.push(claim("what is not ours goes up to the host", not_ours));
    claims
}

/// Every flow of a thousand clients is answered, and every stable backend gets its share.
pub fn forwards(scene: Scene) -> Result<()> {
    let load = match scene.plan.protocol {
        "udp" => LoadSpec::udp(scene.target()),
        _ => LoadSpec::http(scene.target(), "/"),
    };
    let tally = Load::run(scene.lab.client(0), load.from(Sources::crowd(1000)).flows(1000))?;
    ensure!(tally.failed() == 0, "{tally:?}\n{}", scene.lbctl(&["status"])?);
    ensure!(tally.answered_by("canary0") == 0, "the split is 0 %: {tally:?}");
    for name in ["stable0", "stable1"] {
        let share = tally.share(&[name]);
        // 4.4 sigma of a thousand coins.
        ensure!((0.43..0.57).contains(&share), "{name} has {share} of the clients: {tally:?}");
    }
    Ok(())
}

/// Where another prefix than the balancer's is allowed, nothing comes out of the tunnel.
fn strangers_tunnel() -> Result<()> {
    let elsewhere = &["--allow", "192.0.2.0/24", "--allow", "2001:db8::/64"];
    let scene = Scene::start(Plan { mode: "dsr-ipip", decap: Some(elsewhere), ..Plan::default() })?;
    let load = LoadSpec::http(scene.target(), "/").flows(20).timeout(Duration::from_secs(2));
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.answered() == 0 && tally.failed() == 20, "{tally:?}");
    Ok(())
}

/// Clients reach the balancer's own address, and its other ports, as if there were no program.
fn not_ours() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let balancer = scene.lab.balancer();
    let host = lb_tests::traffic::Server::start(
        balancer,
        lb_tests::traffic::ServerSpec::http("the host itself", 9000),
    )?;
    for target in [balancer.v4().into(), balancer.v6().into(), scene.target().ip()] {
        let load = LoadSpec::http((target, 9000).into(), "/").flows(100).timeout(Duration::from_secs(5));
        let tally = Load::run(scene.lab.client(0), load)?;
        ensure!(tally.answered_by("the host itself") == 100, "{target}: {tally:?}");
    }
    ensure!(host.counts()?.accepted >= 300);
    Ok(())
}
