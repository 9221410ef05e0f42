//! The new version, at an address of its own, before anybody else gets it; and more rollouts than can be measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{SOON, canaries, plan, rollout, wait_for};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("the preview of a blue-green rollout reaches the new pool before the switch, in nat", || {
            preview("nat", Family::V4)
        }),
        claim(
            "the preview of a blue-green rollout reaches the new pool before the switch, in nat, IPv6",
            || preview("nat", Family::V6),
        ),
        claim(
            "the preview of a blue-green rollout reaches the new pool before the switch, in dsr-l2",
            || preview("dsr-l2", Family::V4),
        ),
        claim("more rollouts than can be measured wait for those before them, or fail", too_many),
    ]
}

fn some(scene: &Scene, at: SocketAddr, flows: u32) -> Result<Tally> {
    let load = LoadSpec::lines(at).from(Sources::crowd(flows)).flows(flows.into());
    Load::run(scene.lab.client(0), load.concurrency(32).timeout(Duration::from_secs(3)))
}

/// Everybody at the preview gets the new pool, and so many of a hundred others.
fn are_apart(scene: &Scene, at: SocketAddr, others: u64) -> Result<()> {
    let (previewed, served) = (some(scene, at, 100)?, some(scene, scene.target(), 100)?);
    ensure!(previewed.failed() == 0 && canaries(&previewed) == 100, "the preview: {previewed:?}");
    ensure!(served.failed() == 0 && canaries(&served) == others, "everybody else: {served:?}");
    Ok(())
}

/// Nobody is at an address.
fn is_free(scene: &Scene, at: SocketAddr) -> Result<()> {
    let load = LoadSpec::lines(at).from(Sources::crowd(5)).flows(5).timeout(Duration::from_secs(1));
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 5, "somebody answers at {at}: {tally:?}");
    let addresses = scene.lab.balancer().output({
        let mut ip = std::process::Command::new("ip");
        ip.args(["-oneline", "addr", "show"]);
        ip
    })?;
    let shown = String::from_utf8_lossy(&addresses.stdout).into_owned();
    ensure!(!shown.contains(&format!("{}/", at.ip())), "the host still has it:\n{shown}");
    Ok(())
}

fn events(scene: &Scene, code: &str) -> Result<Vec<Value>> {
    let lines = scene.lbctl(&["-o", "json", "get", "events"])?;
    let events = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(events.into_iter().filter(|event| event["code"] == code).collect())
}

fn preview(mode: &'static str, family: Family) -> Result<()> {
    let rules = "preset = \"blue-green\"\nanalysis = \"off\"\nsoak = \"1h\"";
    let mut scene = Scene::start(Plan { mode, family, inner: family, ..plan(rules) })?;
    let at = SocketAddr::new(scene.lab.vip(1, family), 8081);
    scene.plan.health += &format!("\npreview = \"{at}\"\n");
    let config = scene.plan.config(&scene.lab);
    scene.agent.write_config(&config)?;
    let file = scene.agent.places().config.display().to_string();
    scene.lbctl(&["apply", "-f", &file])?;
    is_free(&scene, at)?;

    // Its health is the pool's.
    let canary = scene.backend(2);
    scene.lbctl(&["set", "health", &canary, "down"])?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "preparing")?;
    ensure!(status["preview"]["why_not"] == "its health checks fail", "{status:#}");
    ensure!(some(&scene, at, 10)?.failed() == 10, "nobody is there to be seen");
    scene.lbctl(&["set", "health", &canary, "up"])?;

    let status = wait_for(&scene, "gate")?;
    ensure!(
        status["preview"]["address"] == at.to_string() && status["preview"]["open"] == true,
        "{status:#}"
    );
    let told = scene.lbctl(&["rollout", "status", SERVICE])?;
    ensure!(told.contains(&format!("preview   {at} reaches canary")), "{told}");
    ensure!(events(&scene, "preview_open")?.len() == 1, "{:?}", events(&scene, "preview_open")?);
    let told = scene.lbctl(&["explain", "--from", &from(family), "--to", &at.to_string()])?;
    ensure!(told.contains("the preview of web"), "{told}");
    are_apart(&scene, at, 0)?;

    let open = Pool::open(scene.lab.client(0), PoolSpec::new(at, 20).from(Sources::crowd(20)))?;
    scene.agent.kill9();
    are_apart(&scene, at, 0)?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    scene.wait_taking(3, SOON)?;
    are_apart(&scene, at, 0)?;
    ensure!(open.check()?.broken.is_empty(), "an agent that starts ends nothing: {:?}", open.check()?);
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "gate" && status["preview"]["open"] == true, "{status:#}");

    scene.lbctl(&["rollout", "approve", SERVICE])?;
    wait_for(&scene, "soaking")?;
    are_apart(&scene, at, 100)?;
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(status["preview"].is_null(), "{status:#}");
    let deadline = Instant::now() + SOON;
    while let Err(error) = is_free(&scene, at) {
        ensure!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(events(&scene, "preview_closed")?.len() == 1);
    let served = some(&scene, scene.target(), 100)?;
    ensure!(served.failed() == 0 && canaries(&served) == 0, "{served:?}");
    Ok(())
}

fn from(family: Family) -> String {
    match family {
        Family::V4 => "10.64.0.7:4000".to_owned(),
        Family::V6 => "[2001:db8:64::7]:4000".to_owned(),
    }
}

fn too_many() -> Result<()> {
    let mut scene = Scene::start(Plan { mode: "dsr-l2", ..plan("") })?;
    let backends = [0, 1].map(|i| scene.lab.backend(i).ip(Family::V4));
    let mut config = scene.plan.config(&scene.lab);
    for n in 0..65u16 {
        let ready_within = if n == 64 { "1s" } else { "300s" };
        config += &format!(
            "[[service]]\nname = \"s{n}\"\nvip = \"{}\"\nport = {}\nmode = \"dsr-l2\"\ntable_size = 211\n\
             [service.health]\ntype = \"none\"\n\
             [service.rollout]\nshares = [1]\nhold = \"1h\"\nanalysis = \"off\"\nready_within = \"{ready_within}\"\n\
             [[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"{}\"\n\
             [[service.pool]]\nname = \"b\"\n[[service.pool.backend]]\naddress = \"{}\"\n",
            scene.lab.vip(1, Family::V4),
            1000 + n,
            backends[0],
            backends[1],
        );
    }
    scene.agent.write_config(&config)?;
    let file = scene.agent.places().config.display().to_string();
    scene.lbctl(&["apply", "-f", &file])?;
    let status = |scene: &Scene, n: u16| scene.json(&["rollout", "status", &format!("s{n}")]);
    let reaches = |scene: &Scene, n: u16, phase: &str| -> Result<Value> {
        let deadline = Instant::now() + SOON;
        loop {
            let status = status(scene, n)?;
            if status["phase"] == phase {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "s{n} is not {phase}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for n in 0..65 {
        scene.lbctl(&["rollout", "start", &format!("s{n}"), "--to", "b"])?;
    }
    for n in 0..63 {
        reaches(&scene, n, "holding")?;
    }
    // They begin with nothing that would stop them if they were bad: so they do not.
    let failed = reaches(&scene, 64, "failed")?;
    let reason = failed["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("63 services are measured already"), "{reason}");
    ensure!(status(&scene, 63)?["phase"] == "preparing", "{:#}", status(&scene, 63)?);
    let waits = events(&scene, "rollout_waits")?;
    ensure!(waits.len() == 2 && waits.iter().any(|event| event["service"] == "s63"), "once each: {waits:#?}");
    scene.lbctl(&["rollout", "abort", "s7"])?;
    reaches(&scene, 63, "holding")?;
    Ok(())
}
