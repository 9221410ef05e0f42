//! Who may talk to a service, how much, and what floods do to those who talk.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::{Frame, Tcp};
use lb_tests::programs::{self, Spray};
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::test_run::LiveFrames;
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a denied network gets nothing, the others everything, and explain says why", || {
            denied("nat", Family::V4)
        }),
        claim("a denied network gets nothing in full-nat and IPv6, either", || {
            denied("full-nat", Family::V6)
        }),
        claim("an allow list is for those in it, and its end is for everybody", allowed),
        claim(
            "a source has its rate of new connections, which hurts neither its old ones nor others",
            limited,
        ),
        claim("a flood of made-up SYNs at full rate leaves connections alone, and new ones get in", || {
            flooded("nat")
        }),
        claim("so does a flood in full-nat, where every flow has a session", || flooded("full-nat")),
    ]
}

/// Members of the crowd that a network has: `10.64.4.0/24` and `fd64::400/120`.
const INSIDE: Sources = Sources::Crowd { first: 1023, count: 200 };
/// Some that it has not.
const OUTSIDE: Sources = Sources::Crowd { first: 10_000, count: 200 };

const fn network(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.64.4.0/24",
        Family::V6 => "fd64::400/120",
    }
}

/// Applies the scene's configuration with other lines of `[service.protection]`; without any, without the table.
fn protect(scene: &Scene, lines: &str) -> Result<Value> {
    let table = if lines.is_empty() { String::new() } else { format!("[service.protection]\n{lines}\n") };
    let plan = Plan { health: format!("{}{table}", scene.plan.health), ..scene.plan.clone() };
    let file = lb_tests::private_dir("protection")?.join("lb.toml");
    std::fs::write(&file, plan.config(&scene.lab))?;
    scene.json(&["apply", "-f", &file.to_string_lossy()])
}

fn load(scene: &Scene, sources: Sources) -> Result<Tally> {
    let spec = LoadSpec::lines(scene.target()).from(sources).flows(200).timeout(Duration::from_millis(700));
    Load::run(scene.lab.client(0), spec.concurrency(200))
}

/// How often packets were dropped for this reason.
fn drops(scene: &Scene, reason: &str) -> Result<u64> {
    let status = scene.json(&["status"])?;
    status["dataplane"]["drops"][reason].as_u64().with_context(|| format!("{reason} in {status:#}"))
}

/// What `explain` says of a client: the reason, and the step that keeps it away or lets it through.
fn explain(scene: &Scene, member: u32) -> Result<(String, String)> {
    let client = scene.lab.client(0).crowd().member(member, scene.plan.family);
    let from = std::net::SocketAddr::new(client, 40_000).to_string();
    let explanation = scene.json(&["explain", "--from", &from, "--to", &scene.target().to_string()])?;
    let steps = explanation["steps"].as_array().context("steps")?;
    let text = |title: &str| {
        steps
            .iter()
            .find(|step| step["title"] == title)
            .and_then(|step| step["text"].as_str())
            .unwrap_or_default()
    };
    let program = text("program");
    ensure!(!program.contains("DIFFERS"), "{explanation:#}");
    Ok((explanation["reason"].as_str().unwrap_or_default().to_owned(), text("guard").to_owned()))
}

fn denied(mode: &'static str, family: Family) -> Result<()> {
    let plan = Plan { mode, family, inner: family, lines: true, canary: 0, ..Plan::default() };
    let scene = Scene::start(plan)?;
    let pool = |sources| Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 20).from(sources));
    let (inside, outside) = (pool(INSIDE)?, pool(OUTSIDE)?);
    ensure!(inside.check()?.alive() == 20 && outside.check()?.alive() == 20, "nobody is denied yet");
    let (reason, guard) = explain(&scene, 1023)?;
    ensure!(reason == "forwarded" && guard.is_empty(), "{reason}: {guard}");

    protect(&scene, &format!("deny = [\"{}\"]", network(family)))?;
    let tally = load(&scene, INSIDE)?;
    ensure!(tally.answered() == 0, "denied, and still: {tally:?}");
    let tally = load(&scene, OUTSIDE)?;
    ensure!(tally.failed() == 0, "not denied, and still: {tally:?}");
    ensure!(outside.check()?.broken.is_empty(), "who was there and is not denied stays");
    ensure!(drops(&scene, "denied")? >= 200, "{}", drops(&scene, "denied")?);
    let (reason, guard) = explain(&scene, 1023)?;
    ensure!(reason == "denied" && guard.contains(network(family)), "{reason}: {guard}");
    let (reason, guard) = explain(&scene, 10_000)?;
    ensure!(reason == "forwarded" && guard.contains("may talk to it"), "{reason}: {guard}");
    let services = scene.json(&["get", "services", SERVICE])?;
    ensure!(services["services"][0]["protection"]["denied_networks"] == 1, "{services:#}");

    // A new agent finds the rules as they are, and a configuration without them takes them off.
    let mut scene = scene;
    scene.agent.kill9();
    let tally = load(&scene, INSIDE)?;
    ensure!(tally.answered() == 0, "without an agent: {tally:?}");
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    protect(&scene, "")?;
    let tally = load(&scene, INSIDE)?;
    ensure!(tally.failed() == 0, "nobody is denied any more: {tally:?}");
    Ok(())
}

fn allowed() -> Result<()> {
    let scene = Scene::start(Plan { lines: true, canary: 0, ..Plan::default() })?;
    // The smallest network counts, in whichever list it is.
    protect(&scene, "allow = [\"10.64.0.0/16\", \"10.64.4.128/25\"]\ndeny = [\"10.64.4.0/24\"]")?;
    let of = |first: u32| load(&scene, Sources::Crowd { first, count: 50 });
    let (denied, again, wide, out) = (of(1023)?, of(1023 + 128)?, of(10_000)?, of(70_000)?);
    ensure!(denied.answered() == 0 && again.failed() == 0, "{denied:?} {again:?}");
    ensure!(wide.failed() == 0 && out.answered() == 0, "{wide:?} {out:?}");
    let (reason, guard) = explain(&scene, 70_000)?;
    ensure!(reason == "denied" && guard.contains("no network of `allow`"), "{reason}: {guard}");
    protect(&scene, "")?;
    ensure!(of(70_000)?.failed() == 0 && of(1023)?.failed() == 0, "there is no list any more");
    Ok(())
}

fn limited() -> Result<()> {
    let protection = "[service.protection]\nsource_max_new_per_second = 20\n";
    let health = format!("{}{protection}", Plan::default().health);
    let scene = Scene::start(Plan { lines: true, canary: 0, health, ..Plan::default() })?;
    let one = Sources::Crowd { first: 7, count: 1 };
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 10).from(one))?;
    ensure!(pool.check()?.alive() == 10, "{:?}", pool.report()?);
    let began = Instant::now();
    let tally = load(&scene, one)?;
    // Its burst, what came meanwhile, and what a repeated SYN may add.
    let most = 20.0 + 20.0 * began.elapsed().as_secs_f64() + 1.0;
    ensure!(tally.failed() > 100 && (tally.answered() as f64) <= most, "{most} at most: {tally:?}");
    ensure!(pool.check()?.broken.is_empty(), "its own connections go on: {:?}", pool.report()?);
    let others = load(&scene, OUTSIDE)?;
    ensure!(others.failed() == 0, "others have rates of their own: {others:?}");
    ensure!(drops(&scene, "rate_limited_source_connections")? > 100);
    let (_, guard) = explain(&scene, 7)?;
    ensure!(guard.contains("new connections of its source"), "{guard}");
    Ok(())
}

/// Made-up SYNs as fast as this machine makes them, for some seconds, beside real clients.
fn flooded(mode: &'static str) -> Result<()> {
    const FLOOD: Duration = Duration::from_secs(6);
    let scene = Scene::start(Plan { mode, lines: true, canary: 0, ..Plan::default() })?;
    let (client, balancer) = (scene.lab.client(0), scene.lab.balancer());
    let spec = PoolSpec::new(scene.target(), 300).from(Sources::crowd(300));
    let pool = Pool::open(client, spec.interval(Duration::from_millis(200)))?;
    let before = pool.check()?;
    ensure!(before.alive() == 300, "{before:?}");

    // 65 536 addresses that nobody has, and as many ports.
    let source = std::net::Ipv4Addr::new(198, 18, 0, 0).into();
    let frame = Frame::ethernet(client.mac(), balancer.mac()).ip(source, scene.target().ip());
    let mut frame = frame.tcp(Tcp::new(0, PORT).syn()).build();
    programs::spray_template(Spray::Tcp, &mut frame);
    let program = programs::spraying(Spray::Tcp, client.port().index)?;
    let over = AtomicBool::new(false);
    let (began, arrived) = (Instant::now(), balancer.received_frames("eth0")?);
    let tally = std::thread::scope(|scope| -> Result<Tally> {
        scope.spawn(|| {
            client.run(|| {
                while !over.load(Ordering::Relaxed) {
                    if LiveFrames::new(program.as_fd(), &frame, 4096).send().is_err() {
                        return;
                    }
                }
            });
        });
        let load = Load::start(client, LoadSpec::lines(scene.target()).from(OUTSIDE).rate(50.0))?;
        while began.elapsed() < FLOOD {
            let report = pool.check()?;
            ensure!(report.broken.is_empty(), "under the flood: {report:?}");
        }
        over.store(true, Ordering::Relaxed);
        load.stop()
    })?;
    let rate = (balancer.received_frames("eth0")? - arrived) as f64 / began.elapsed().as_secs_f64();
    let after = pool.check()?;
    println!(
        "{mode}: {rate:.0} packets a second arrived; {} lines on 300 connections, none broken; {} new connections, {} failed",
        after.answers - before.answers,
        tally.flows,
        tally.failed()
    );
    ensure!(rate >= 20_000.0, "only {rate:.0} packets a second arrived");
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    ensure!(after.answers > before.answers + 300, "they went on talking: {after:?}");
    // What a link as full as this loses is sent again.
    ensure!(tally.answered() > 50 && tally.failed() * 50 <= tally.flows, "new ones get in: {tally:?}");
    // A settled slot needs no table, and a session is no session before its client has proven itself.
    let status = scene.json(&["status"])?;
    let sessions = status["dataplane"]["sessions"]["used"].as_u64().context("sessions")?;
    let flows = status["dataplane"]["flows"]["used"].as_u64().context("flows")?;
    ensure!(flows < 1000 && sessions < 10_000, "the flood is in a table: {:#}", status["dataplane"]);
    Ok(())
}
