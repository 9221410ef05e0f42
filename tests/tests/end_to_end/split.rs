//! The split: shares, monotone membership, rollback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a canary at 1 % takes 1.0 % of 100 000 clients", one_percent),
        claim("a client that joined the canary stays while it grows", monotone),
        claim("after a rollback returns not one new flow enters the canary", || rollback(false)),
        claim("a rollback works with the agent dead, and the next agent keeps it", || rollback(true)),
        claim("rollback --flows reset moves established flows at once", reset),
        claim("explain names the backend that the flow really goes to", explain),
    ]
}

fn clients(scene: &Scene, count: u32) -> Result<lb_tests::traffic::Tally> {
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(count)).flows(count.into());
    Load::run(scene.lab.client(0), load.concurrency(256).timeout(Duration::from_secs(10)))
}

fn lines() -> Plan {
    Plan { lines: true, ..Plan::default() }
}

fn one_percent() -> Result<()> {
    let scene = Scene::start(lines())?;
    scene.lbctl(&["set", "split", SERVICE, "1"])?;
    let count = 100_000;
    let tally = clients(&scene, count)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let canary = tally.answered_by("canary0") as f64;
    let (mean, sigma) = (f64::from(count) * 0.01, (f64::from(count) * 0.01 * 0.99).sqrt());
    ensure!((canary - mean).abs() <= 4.0 * sigma, "{canary} of {count} clients in the canary");
    Ok(())
}

fn monotone() -> Result<()> {
    const CLIENTS: u32 = 2000;
    let scene = Scene::start(lines())?;
    let mut members = vec![false; CLIENTS as usize];
    for percent in ["1", "5", "25", "50", "100"] {
        scene.lbctl(&["set", "split", SERVICE, percent])?;
        let tally = clients(&scene, CLIENTS)?;
        ensure!(tally.failed() == 0, "at {percent} %: {tally:?}");
        for (i, member) in members.iter_mut().enumerate() {
            let now = tally.home_of(i).context("every client was answered")? == "canary0";
            ensure!(now || !*member, "client {i} left the canary as it grew to {percent} %");
            *member = now;
        }
    }
    ensure!(members.iter().all(|member| *member), "at 100 % everybody is in the canary");
    Ok(())
}

fn rollback(agent_dead: bool) -> Result<()> {
    let mut scene = Scene::start(lines())?;
    scene.lbctl(&["set", "split", SERVICE, "50"])?;
    let before = clients(&scene, 2000)?;
    ensure!(before.failed() == 0 && before.answered_by("canary0") > 800, "{before:?}");
    let pool = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 200).from(Sources::Crowd { first: 5000, count: 200 }),
    )?;
    let in_canary = pool.check()?.alive_on("canary0");
    ensure!(in_canary > 50, "{in_canary} of 200 long-lived connections in the canary");

    if agent_dead {
        scene.agent.kill9();
    }
    let done = scene.json(&["rollback", SERVICE])?;
    ensure!(done["by_agent"] == !agent_dead, "{done:#}");
    ensure!(done["split_before_percent"] == 50.0, "{done:#}");
    // In seconds, whatever else the machine does. (`cargo xtask bench --only rollback` says how many.)
    ensure!(done["store_seconds"].as_f64().context("a time")? < 0.1, "{done:#}");
    let accepted = scene.servers[2].counts()?.accepted;
    let after = clients(&scene, 2000)?;
    ensure!(after.failed() == 0 && after.answered_by("canary0") == 0, "{after:?}");
    ensure!(
        scene.servers[2].counts()?.accepted == accepted,
        "the canary accepted a connection after the rollback"
    );

    let report = pool.check()?;
    ensure!(report.broken.is_empty() && report.alive_on("canary0") == in_canary, "{report:?}");
    if agent_dead {
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
        let services = scene.json(&["get", "services", SERVICE])?;
        ensure!(services["services"][0]["split"]["percent"] == 0.0, "{services:#}");
        let report = pool.check()?;
        ensure!(report.broken.is_empty() && report.alive_on("canary0") == in_canary, "{report:?}");
    }
    Ok(())
}

fn reset() -> Result<()> {
    let scene = Scene::start(lines())?;
    scene.lbctl(&["set", "split", SERVICE, "50"])?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 200).from(Sources::crowd(200)))?;
    let before = pool.check()?;
    ensure!(before.alive_on("canary0") > 50, "{before:?}");
    scene.lbctl(&["rollback", SERVICE, "--flows", "reset"])?;
    let after = pool.check()?;
    ensure!(after.alive_on("canary0") == 0, "{after:?}");
    ensure!(
        after.broken.len() as u64 == before.alive_on("canary0"),
        "only the canary's flows are reset: {after:?}"
    );
    ensure!(after.broken.iter().all(|broken| broken.server.as_deref() == Some("canary0")), "{after:?}");
    Ok(())
}

fn explain() -> Result<()> {
    const CLIENTS: u32 = 60;
    // Affinity by address: the client's port, which the system chooses, does not matter.
    let scene =
        Scene::start(Plan { service: "backend_key = \"source-ip\"".to_owned(), stable: 3, ..lines() })?;
    scene.lbctl(&["set", "split", SERVICE, "30"])?;
    let tally = clients(&scene, CLIENTS)?;
    let crowd = scene.lab.client(0).crowd();
    for i in 0..CLIENTS {
        let from = format!("{}:40000", crowd.member(i, scene.plan.family));
        let to = scene.target().to_string();
        let answer = scene.json(&["explain", "--from", &from, "--to", &to])?;
        let named = answer["backend"].as_str().context("a backend")?;
        let really = tally.home_of(i as usize).context("every client was answered")?;
        let expected = (0..4).find(|&b| scene.backend(b).ends_with(named)).map(|b| scene.plan.name_of(b));
        ensure!(expected.as_deref() == Some(really), "client {i}: {answer:#}, but {really} answered");
        let steps = answer["steps"].as_array().context("steps")?;
        let program = steps.iter().find(|step| step["title"] == "program").context("the program was run")?;
        ensure!(program["values"]["agrees"] == "true", "{program:#}");
    }
    Ok(())
}
