//! What the kernel program does for a canary beside the split: guests, a cap, faults.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use libtest_mimic::Trial;

use super::{canaries, is_back, is_unmeasured, plan, reason, rollout, traffic, wait_for};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("guests are in the canary before anybody else, and out of it with a rollback", guests),
        claim("a canary with a cap takes no more, and the rest stays on the stable pool", cap),
        claim("a fault hurts its share of new flows, is shown, and ends by itself without the agent", fault),
        claim("a rollout is rehearsed with a fault: it goes back by itself", rehearsal),
    ]
}

fn run(scene: &Scene, first: u32, count: u32) -> Result<Tally> {
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first, count }).flows(count.into());
    Load::run(scene.lab.client(0), load.concurrency(64).timeout(Duration::from_secs(3)))
}

fn guests() -> Result<()> {
    // The first 254 of the crowd.
    let rules = "canary_clients = [\"10.64.0.0/24\"]\nanalysis = \"off\"\n\
                 [[service.rollout.step]]\nshare = 0\nhold = \"100ms\"\ngate = \"approve\"\n\
                 [[service.rollout.step]]\nshare = 10\nhold = \"1h\"";
    let mut scene = Scene::start(plan(rules))?;
    let everybody = |scene: &Scene| -> Result<(u64, u64)> {
        let (guests, others) = (run(scene, 0, 200)?, run(scene, 10_000, 400)?);
        ensure!(guests.failed() == 0 && others.failed() == 0, "{guests:?} {others:?}");
        Ok((canaries(&guests), canaries(&others)))
    };
    ensure!(everybody(&scene)? == (0, 0), "there is no rollout");
    let before = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 50).from(Sources::Crowd { first: 200, count: 50 }),
    )?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "gate")?;
    ensure!(status["desired_percent"] == 0.0, "{status:#}");
    ensure!(everybody(&scene)? == (200, 0), "guests only: {:?}", everybody(&scene)?);
    let told = scene.lbctl(&["explain", "--from", "10.64.0.7:4000", "--to", &scene.target().to_string()])?;
    ensure!(told.contains("the client is a guest of the canary canary"), "{told}");
    let told = scene.lbctl(&["explain", "--from", "10.65.0.7:4000", "--to", &scene.target().to_string()])?;
    ensure!(told.contains("the client joins the canary canary at "), "{told}");

    // The agent's end is not theirs.
    scene.agent.kill9();
    ensure!(everybody(&scene)? == (200, 0));
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    wait_for(&scene, "gate")?;
    ensure!(everybody(&scene)? == (200, 0), "an agent that starts takes nobody out");
    scene.lbctl(&["rollout", "approve", SERVICE])?;
    wait_for(&scene, "holding")?;
    let (guests, others) = everybody(&scene)?;
    ensure!(guests == 200 && (10..=80).contains(&others), "10 % of the others: {others} of 400");

    scene.lbctl(&["rollback", SERVICE])?;
    is_unmeasured(&scene)?;
    ensure!(everybody(&scene)? == (0, 0), "a rollback is for guests, too");
    let report = before.check()?;
    ensure!(report.broken.is_empty(), "who was there before stays where it is: {report:?}");
    Ok(())
}

fn cap() -> Result<()> {
    let rules = "shares = [50]\nhold = \"1h\"\nsoak = \"1h\"\nmax_new_connections = 20\nanalysis = \"off\"";
    let scene = Scene::start(plan(rules))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    let begin = Instant::now();
    let load = traffic(&scene)?;
    let pool = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 200).from(Sources::Crowd { first: 30_000, count: 200 }),
    )?;
    std::thread::sleep(Duration::from_secs(3));
    let tally = load.stop()?;
    let lasted = begin.elapsed().as_secs_f64();
    ensure!(tally.failed() == 0, "{tally:?}");
    let taken = canaries(&tally);
    ensure!(taken <= (20.0 * (lasted + 1.0)) as u64 + 1, "{taken} in {lasted} s of at most 20 a second");
    ensure!(taken >= 20, "it takes some: {taken}");

    // At 100 % there is no cap any more. Whoever went to the stable pool meanwhile stays there.
    scene.lbctl(&["rollout", "promote", SERVICE, "--full"])?;
    wait_for(&scene, "soaking")?;
    let tally = run(&scene, 50_000, 500)?;
    ensure!(tally.failed() == 0 && canaries(&tally) == 500, "{tally:?}");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(1));
        let report = pool.check()?;
        ensure!(report.broken.is_empty(), "{report:?}");
    }
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    is_back(&scene)?;
    let report = pool.check()?;
    ensure!(report.broken.is_empty(), "{report:?}");
    Ok(())
}

fn fault() -> Result<()> {
    let mut scene = Scene::start(plan(""))?;
    let established = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 50).from(Sources::Crowd { first: 30_000, count: 50 }),
    )?;
    let add = |scene: &Scene, more: &[&str]| scene.lbctl(&[&["fault", "add", SERVICE], more].concat());
    add(&scene, &["--reset", "25", "--for", "1m"])?;
    let tally = run(&scene, 0, 1_000)?;
    ensure!((180..=320).contains(&tally.failed()), "a quarter of 1000: {}", tally.failed());
    let status = scene.json(&["status"])?;
    let told = status["findings"].to_string();
    ensure!(told.contains("LB1040") && told.contains("A FAULT IS INJECTED ON PURPOSE"), "{status:#}");
    scene.lbctl(&["fault", "clear"])?;
    ensure!(run(&scene, 0, 300)?.failed() == 0, "it was taken away");

    // Of one network, to one backend: everybody else is left alone.
    add(&scene, &["--reset", "100", "--from", "10.64.0.0/24", "--for", "1m"])?;
    let (inside, outside) = (run(&scene, 0, 200)?, run(&scene, 10_000, 200)?);
    ensure!(inside.failed() == 200 && outside.failed() == 0, "{inside:?} {outside:?}");
    scene.lbctl(&["fault", "clear", "1"])?;
    let name = scene.backend(0);
    let backend = name.rsplit('/').next().context("a backend")?;
    add(&scene, &["--reset", "100", "--backend", backend, "--for", "1m"])?;
    let tally = run(&scene, 0, 400)?;
    ensure!(tally.answered_by("stable0") == 0 && tally.answered_by("stable1") > 100, "{tally:?}");
    scene.lbctl(&["fault", "clear"])?;

    // The kernel ends it.
    add(&scene, &["--reset", "100", "--pool", "stable", "--for", "3s"])?;
    let added = Instant::now();
    scene.agent.kill9();
    ensure!(run(&scene, 0, 100)?.failed() == 100, "everybody is hurt");
    std::thread::sleep(Duration::from_millis(3_200).saturating_sub(added.elapsed()));
    ensure!(run(&scene, 0, 300)?.failed() == 0, "it is over, and there is no agent");
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    let list = scene.json(&["fault", "list"])?;
    ensure!(list["faults"].as_array().is_some_and(Vec::is_empty), "{list:#}");
    let report = established.check()?;
    ensure!(report.broken.is_empty(), "whoever is connected stays so: {report:?}");

    let delay = scene.agent.lbctl(&["fault", "add", SERVICE, "--delay", "1s", "--for", "1s"])?;
    ensure!(delay.code == Some(2) && delay.stderr.contains("XDP cannot delay"), "{delay:?}");
    Ok(())
}

fn rehearsal() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"60s\"\ntripwire = 0"))?;
    let _load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    scene.lbctl(&["fault", "add", SERVICE, "--reset", "10", "--pool", "canary", "--for", "30s"])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status).starts_with("clients that fared badly"), "{status:#}");
    ensure!(rollout(&scene)?["phase"] == "rolled-back");
    is_back(&scene)
}
