//! Health: who fails is taken out in time, and the others notice nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Behaviour, Load, LoadSpec, Pool, PoolSpec, Sources};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a backend that stops answering gets no new flow after unhealthy * interval + timeout", silent),
        claim("a backend whose page says 503 is taken out and comes back", bad_status),
        claim("with every stable backend down new flows are refused at once", all_down),
    ]
}

fn checked(kind: &str) -> Plan {
    let path = if kind == "http" { "path = \"/healthz\"\n" } else { "" };
    Plan {
        health: format!(
            "panic_threshold = 0\n[service.health]\ntype = \"{kind}\"\n{path}interval = \"200ms\"\ntimeout = \"100ms\"\nhealthy = 2\nunhealthy = 3\n"
        ),
        stable: 3,
        canary: 0,
        ..Plan::default()
    }
}

fn silent() -> Result<()> {
    let scene = Scene::start(Plan { lines: true, ..checked("tcp") })?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 150).from(Sources::crowd(150)))?;
    let before = pool.check()?;
    scene.lab.backend(0).pull_cable()?;
    let cut = Instant::now();
    scene.wait_taking(2, Duration::from_secs(5))?;
    // 3 * 200 ms + 100 ms, and what a busy machine takes to notice.
    ensure!(cut.elapsed() < Duration::from_millis(700 + 1000), "taken out after {:?}", cut.elapsed());
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 500 }).flows(500);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    scene.lab.backend(0).replug_cable()?;
    scene.wait_taking(3, Duration::from_secs(10))?;
    let after = pool.check()?;
    let others = after.broken.iter().filter(|broken| broken.server.as_deref() != Some("stable0")).count();
    ensure!(others == 0, "connections elsewhere noticed: {after:?}");
    ensure!(after.alive_on("stable1") == before.alive_on("stable1"), "{after:?}");
    Ok(())
}

fn bad_status() -> Result<()> {
    let scene = Scene::start(checked("http"))?;
    scene.servers[1].set_health(503)?;
    scene.wait_taking(2, Duration::from_secs(5))?;
    scene.agent.lbctl(&["status"])?.exits(3)?;
    let load = || LoadSpec::http(scene.target(), "/").from(Sources::crowd(500)).flows(500);
    let tally = Load::run(scene.lab.client(0), load())?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") == 0, "{tally:?}");
    scene.servers[1].set_health(200)?;
    scene.wait_taking(3, Duration::from_secs(5))?;
    scene.agent.lbctl(&["status"])?.exits(0)?;
    let tally = Load::run(scene.lab.client(0), load())?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") > 0, "{tally:?}");
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    ensure!(events.contains("is down") && events.contains("is healthy"), "{events}");
    Ok(())
}

fn all_down() -> Result<()> {
    let scene = Scene::start(checked("http"))?;
    for server in &scene.servers {
        server.set_health(500)?;
    }
    scene.wait_taking(0, Duration::from_secs(5))?;
    let load = LoadSpec::http(scene.target(), "/")
        .from(Sources::crowd(100))
        .flows(100)
        .timeout(Duration::from_secs(2));
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed.get("refused") == Some(&100), "the balancer resets them: {tally:?}");
    scene.servers[0].behave(Behaviour::Serve)?;
    Ok(())
}
