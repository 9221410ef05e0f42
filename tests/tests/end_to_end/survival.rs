//! What established connections live through.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("10 000 connections live through ten changes, a kill -9 and a new program", ten_changes),
        claim("a kill -9 and a restart lose no packet and no backend id", kill9),
        claim("a full table of flows breaks no connection by itself, and shows in the status", full_table),
        claim("a drained backend keeps its connections and gets no new ones", drain),
        claim("a backend in maintenance gets no packet at all", maint),
        claim("a removed backend finishes its connections", removal),
    ]
}

fn lines() -> Plan {
    Plan { lines: true, ..Plan::default() }
}

fn ten_changes() -> Result<()> {
    const CONNECTIONS: u32 = 10_000;
    let mut scene = Scene::start(Plan { stable: 3, canary: 2, ..lines() })?;
    scene.lbctl(&["set", "split", SERVICE, "20"])?;
    let pool = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), CONNECTIONS)
            .from(Sources::crowd(CONNECTIONS))
            .interval(Duration::from_secs(2)),
    )?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS), "{before:?}");

    let weights = |scene: &Scene, i: usize, weight: &str| {
        scene.lbctl(&["set", "weight", &scene.backend(i), weight]).map(drop)
    };
    weights(&scene, 0, "1")?;
    scene.lbctl(&["set", "split", SERVICE, "60"])?;
    weights(&scene, 3, "7")?;
    weights(&scene, 1, "0")?;
    ensure!(pool.check()?.broken.is_empty());

    scene.agent.kill9();
    ensure!(pool.check()?.broken.is_empty());
    // The agent that starts loads the program anew and replaces the one that runs.
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    scene.lbctl(&["set", "split", SERVICE, "5"])?;
    weights(&scene, 1, "250")?;
    weights(&scene, 4, "0")?;
    scene.lbctl(&["set", "state", &scene.backend(2), "drain"])?;
    scene.lbctl(&["set", "split", SERVICE, "35.5"])?;
    scene.lbctl(&["rollback", SERVICE])?;

    let after = pool.check()?;
    ensure!(after.broken.is_empty(), "{} broken, the first: {:?}", after.broken.len(), after.broken.first());
    ensure!(after.alive == before.alive, "{:?} before, {:?} after", before.alive, after.alive);
    Ok(())
}

fn ids(scene: &Scene) -> Result<Vec<(String, Value)>> {
    let rows = scene.json(&["get", "backends", SERVICE])?;
    let rows = rows["backends"].as_array().context("rows")?;
    Ok(rows.iter().map(|row| (row["name"].to_string(), row["id"].clone())).collect())
}

/// The pins of arrays of programs.
fn stages(scene: &Scene) -> Result<Vec<String>> {
    let pins = std::fs::read_dir(scene.agent.places().pins.join("v1"))?.flatten();
    let names = pins.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("STAGES-")).collect())
}

fn kill9() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "30"])?;
    let (before, first) = (ids(&scene)?, stages(&scene)?);
    let load = Load::start(
        scene.lab.client(0),
        LoadSpec::http(scene.target(), "/")
            .from(Sources::crowd(5000))
            .rate(1000.0)
            .timeout(Duration::from_secs(3)),
    )?;
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..3 {
        scene.agent.kill9();
        std::thread::sleep(Duration::from_millis(300));
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let tally = load.stop()?;
    ensure!(tally.failed() == 0 && tally.answered() > 1000, "{tally:?}");
    ensure!(ids(&scene)? == before);
    let last = stages(&scene)?;
    ensure!(
        first.len() == 1 && last.len() == 1 && first != last,
        "one array of programs, another: {first:?} {last:?}"
    );
    let rows = scene.json(&["get", "backends", SERVICE])?;
    ensure!(rows["backends"][0]["weight"] == 30, "the override outlives the agent: {rows:#}");
    Ok(())
}

/// Connections of slots that changed are tracked; those for which there is no room are where they were, until the slots settle.
fn full_table() -> Result<()> {
    const CONNECTIONS: u32 = 600;
    let scene =
        Scene::start(Plan { flows: 64, canary: 0, dataplane: "sweep = \"200ms\"".to_owned(), ..lines() })?;
    let finding = |code: &str| -> Result<Option<Value>> {
        let status = scene.json(&["status"])?;
        let findings = status["findings"].as_array().context("findings")?;
        Ok(findings.iter().find(|finding| finding["code"] == code).cloned())
    };
    let clients = PoolSpec::new(scene.target(), CONNECTIONS).from(Sources::crowd(CONNECTIONS));
    let pool = Pool::open(scene.lab.client(0), clients)?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS) && finding("LB1011")?.is_none(), "{before:?}");

    // All of its slots go to the other backend, and all of its connections want an entry.
    scene.lbctl(&["set", "weight", &scene.backend(0), "0"])?;
    for _ in 0..3 {
        let after = pool.check()?;
        ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let found = loop {
        if let Some(found) = finding("LB1011")? {
            break found;
        }
        ensure!(Instant::now() < deadline, "no finding: {}", scene.lbctl(&["status"])?);
        std::thread::sleep(Duration::from_millis(100));
    };
    let message = found["message"].as_str().context("a message")?;
    ensure!(message.contains("were forgotten for want of room"), "{message}");
    Ok(())
}

fn drain() -> Result<()> {
    let scene = Scene::start(lines())?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 200).from(Sources::crowd(200)))?;
    let before = pool.check()?;
    scene.lbctl(&["set", "state", &scene.backend(0), "drain"])?;
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 1000 }).flows(1000);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 0, "{tally:?}");
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    Ok(())
}

fn maint() -> Result<()> {
    let scene = Scene::start(lines())?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 200).from(Sources::crowd(200)))?;
    let before = pool.check()?;
    let there = before.alive_on("stable0");
    ensure!(there > 50, "{before:?}");
    scene.lbctl(&["set", "state", &scene.backend(0), "maint"])?;
    let after = pool.check()?;
    ensure!(after.alive_on("stable0") == 0 && after.broken.len() as u64 == there, "{after:?}");
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(1000)).flows(1000);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 0, "{tally:?}");
    Ok(())
}

fn removal() -> Result<()> {
    let scene = Scene::start(Plan { stable: 3, canary: 0, ..lines() })?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 300).from(Sources::crowd(300)))?;
    let before = pool.check()?;
    let smaller = Plan { stable: 2, ..scene.plan.clone() }.config(&scene.lab);
    let file = lb_tests::private_dir("smaller")?.join("lb.toml");
    std::fs::write(&file, smaller)?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    let rows = scene.json(&["get", "backends", SERVICE])?;
    let leaving =
        rows["backends"].as_array().context("rows")?.iter().filter(|row| row["terminating"] == true).count();
    ensure!(leaving == 1, "{rows:#}");
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 500 }).flows(500);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable2") == 0, "{tally:?}");

    // Its host gets another card, and says so.
    let (backend, name) = (scene.lab.backend(2), &scene.lab.backend(2).port().name);
    let mut command = Command::new("sh");
    command.args(["-c", &format!(
        "echo 1 > /proc/sys/net/ipv4/conf/{name}/arp_notify && ip link set dev {name} address 02:00:00:00:77:02"
    )]);
    let output = backend.output(command)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "it finishes them there: {after:?}");
    Ok(())
}
