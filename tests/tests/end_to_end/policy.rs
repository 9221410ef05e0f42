//! Policy: who takes over for whom, how fast, and how a backend goes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("what a priority cannot take goes to the next, and comes back", spill_over),
        claim(
            "a pool below min_healthy takes no new flow, keeps those it has, and comes back later",
            min_healthy,
        ),
        claim("a stable pool without backends spills into the canary only if asked", spill_to_canary),
        claim("an added backend starts slowly, and a restarted agent makes nobody slow", slow_start),
        claim("a drain with a deadline resets what is left, also after a kill -9", || deadline("reset")),
        claim("a drain with a deadline can keep what is left", || deadline("keep")),
        claim(
            "a backend that is removed and added again at once keeps its flows, and gets nobody else's",
            again,
        ),
        claim("flows that maintenance took from a backend never come back to it", evicted),
        claim("status --wait=settled waits for what has to settle, and says when it has not", wait),
    ]
}

const HTTP: &str = "[service.health]\ntype = \"http\"\npath = \"/healthz\"\ninterval = \"200ms\"\ntimeout = \"150ms\"\nhealthy = 2\nunhealthy = 2\n";
const SOON: Duration = Duration::from_secs(10);
const SLOTS: f64 = 16_381.0;

fn checked(stable: usize, canary: usize) -> Plan {
    Plan { health: HTTP.to_owned(), stable, canary, ..Plan::default() }
}

fn lines(stable: usize) -> Plan {
    Plan { lines: true, stable, canary: 0, ..Plan::default() }
}

/// Applies the scene's configuration after `edit`.
fn apply(scene: &Scene, edit: impl Fn(String) -> String) -> Result<Value> {
    let file = lb_tests::private_dir("policy")?.join("lb.toml");
    std::fs::write(&file, edit(scene.plan.config(&scene.lab)))?;
    scene.json(&["apply", "-f", &file.to_string_lossy()])
}

/// More keys for backend `i`.
fn with(scene: &Scene, config: String, i: usize, keys: &str) -> String {
    let path = scene.backend(i);
    let address = path.rsplit('/').next().unwrap_or_default();
    config.replace(&format!("address = \"{address}\"\n"), &format!("address = \"{address}\"\n{keys}\n"))
}

fn rows(scene: &Scene) -> Result<Vec<Value>> {
    let rows = scene.json(&["get", "backends", SERVICE])?;
    rows["backends"].as_array().cloned().context("rows")
}

/// Percent of its pool's slots that lead to backend `i`.
fn share(scene: &Scene, i: usize) -> Result<f64> {
    let path = scene.backend(i);
    let rows = rows(scene)?;
    let row = rows.iter().find(|row| row["name"].as_str().is_some_and(|name| path.ends_with(name)));
    Ok(row.and_then(|row| row["slots"].as_f64()).context("a row")? / SLOTS * 100.0)
}

fn wait_for(what: &str, scene: &Scene, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not after {SOON:?}: {:#?}", rows(scene)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// At a pace at which the balancer may reset all of them: fifty at once on each CPU, and then a thousand a second.
fn clients(scene: &Scene, count: u32) -> Result<Tally> {
    let load = match scene.plan.lines {
        true => LoadSpec::lines(scene.target()),
        false => LoadSpec::http(scene.target(), "/"),
    };
    let sources = Sources::Crowd { first: 10_000, count };
    let load = load.from(sources).flows(count.into()).rate(400.0).timeout(Duration::from_secs(5));
    Load::run(scene.lab.client(0), load)
}

fn spill_over() -> Result<()> {
    let scene = Scene::start(checked(4, 0))?;
    apply(&scene, |config| (2..4).fold(config, |config, i| with(&scene, config, i, "priority = 1")))?;
    scene.wait_taking(2, SOON)?;
    ensure!(share(&scene, 0)? + share(&scene, 1)? == 100.0, "{:#?}", rows(&scene)?);
    scene.agent.lbctl(&["status"])?.exits(0)?;

    scene.servers[0].set_health(503)?;
    scene.wait_taking(3, SOON)?;
    // Half of priority 0 is left: 50 % * 1.4.
    for (i, expected) in [(0, 0.0), (1, 70.0), (2, 15.0), (3, 15.0)] {
        let share = share(&scene, i)?;
        ensure!((share - expected).abs() < 0.02, "backend {i} has {share} %, not {expected} %");
    }
    let tally = clients(&scene, 2000)?;
    let seen = tally.share(&["stable1"]);
    // 4.9 sigma of two thousand coins.
    ensure!(tally.failed() == 0 && (0.65..0.75).contains(&seen), "{tally:?}");

    scene.servers[1].set_health(503)?;
    wait_for("everything with priority 1", &scene, || Ok(share(&scene, 1)? == 0.0))?;
    let tally = clients(&scene, 500)?;
    ensure!(tally.failed() == 0 && tally.share(&["stable2", "stable3"]) == 1.0, "{tally:?}");

    scene.servers[0].set_health(200)?;
    scene.servers[1].set_health(200)?;
    wait_for("back on priority 0", &scene, || Ok(share(&scene, 0)? + share(&scene, 1)? == 100.0))?;
    let tally = clients(&scene, 500)?;
    ensure!(tally.failed() == 0 && tally.share(&["stable0", "stable1"]) == 1.0, "{tally:?}");
    Ok(())
}

fn min_healthy() -> Result<()> {
    // Slots settle while the pool is empty.
    let dataplane = "drain = \"1s\"\nsweep = \"200ms\"".to_owned();
    let scene = Scene::start(Plan { dataplane, ..lines(3) })?;
    apply(&scene, |config| {
        config.replace("name = \"stable\"\n", "name = \"stable\"\nmin_healthy = 2\nmin_healthy_recover = 3\n")
    })?;
    let spec =
        PoolSpec::new(scene.target(), 150).from(Sources::crowd(150)).interval(Duration::from_millis(200));
    let pool = Pool::open(scene.lab.client(0), spec)?;
    let before = pool.check()?;
    scene.lbctl(&["set", "health", &scene.backend(0), "down"])?;
    let tally = clients(&scene, 200)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 0, "two are enough: {tally:?}");

    scene.lbctl(&["set", "health", &scene.backend(1), "down"])?;
    let tally = clients(&scene, 100)?;
    ensure!(tally.failed.get("refused") == Some(&100), "one is too few: {tally:?}");
    scene.agent.lbctl(&["status"])?.exits(3)?;
    // As long as a handshake may last nothing settles; after that every slot leads to nobody.
    std::thread::sleep(Duration::from_secs(75));
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "established flows stay: {after:?}");

    scene.lbctl(&["set", "health", &scene.backend(0), "auto"])?;
    let tally = clients(&scene, 100)?;
    ensure!(tally.failed.get("refused") == Some(&100), "two are too few to come back: {tally:?}");
    scene.lbctl(&["set", "health", &scene.backend(1), "auto"])?;
    let tally = clients(&scene, 200)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    Ok(())
}

fn spill_to_canary() -> Result<()> {
    let service = "panic_threshold = 0".to_owned();
    let scene = Scene::start(Plan { service, stable: 1, ..Plan::default() })?;
    scene.lbctl(&["set", "split", SERVICE, "10"])?;
    scene.lbctl(&["set", "health", &scene.backend(0), "down"])?;
    let tally = clients(&scene, 500)?;
    let canary = tally.answered_by("canary0");
    ensure!(tally.failed.get("refused") == Some(&(500 - canary)) && canary < 100, "not asked: {tally:?}");

    apply(&scene, |config| {
        config.replace("panic_threshold = 0", "panic_threshold = 0\nspill_to_canary = true")
    })?;
    let tally = clients(&scene, 500)?;
    ensure!(tally.failed() == 0 && tally.answered_by("canary0") == 500, "asked: {tally:?}");
    scene.agent.lbctl(&["status"])?.exits(3)?;

    scene.lbctl(&["rollback", SERVICE])?;
    let tally = clients(&scene, 200)?;
    ensure!(
        tally.failed.get("refused") == Some(&200),
        "after a rollback nobody enters the canary: {tally:?}"
    );
    scene.lbctl(&["set", "health", &scene.backend(0), "auto"])?;
    let tally = clients(&scene, 200)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 200, "{tally:?}");
    Ok(())
}

fn slow_start() -> Result<()> {
    let service = "[service.slow_start]\nwindow = \"6s\"\nfloor = 10\n".to_owned();
    let mut scene = Scene::start(Plan { service, ..lines(3) })?;
    ensure!(
        (share(&scene, 2)? - 100.0 / 3.0).abs() < 0.02,
        "nobody is slow at the start: {:#?}",
        rows(&scene)?
    );
    let path = scene.backend(2);
    let address = path.rsplit('/').next().context("an address")?.to_owned();
    let entry = format!("[[service.pool.backend]]\naddress = \"{address}\"\n");
    apply(&scene, |config| config.replace(&entry, ""))?;
    ensure!((share(&scene, 0)? - 50.0).abs() < 0.02);

    apply(&scene, |config| config)?;
    let begun = Instant::now();
    let (mut last, mut seen) = (0.0, Vec::new());
    while last < 33.3 && begun.elapsed() < SOON {
        let now = share(&scene, 2)?;
        ensure!(now >= last, "it grows only: {now} % after {last} %");
        seen.push((begun.elapsed(), now));
        last = now;
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, first) = seen.first().context("a share")?;
    // A tenth of a weight beside two whole ones, and what grew before the first look.
    ensure!((4.7..10.0).contains(first), "{seen:?}");
    ensure!(begun.elapsed() > Duration::from_secs(5) && (last - 100.0 / 3.0).abs() < 0.02, "{seen:?}");

    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    scene.wait_taking(3, SOON)?;
    ensure!(
        (share(&scene, 2)? - 100.0 / 3.0).abs() < 0.02,
        "a restart makes nobody slow: {:#?}",
        rows(&scene)?
    );
    Ok(())
}

fn deadline(then: &str) -> Result<()> {
    let mut scene = Scene::start(lines(2))?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 200).from(Sources::crowd(200)))?;
    let before = pool.check()?;
    let there = before.alive_on("stable0");
    ensure!(there > 50, "{before:?}");
    let drained = scene.backend(0);
    scene.agent.lbctl(&["set", "state", &drained, "ready", "--deadline", "4s"])?.exits(1)?;
    scene.lbctl(&["set", "state", &drained, "drain", "--deadline", "4s", "--then", then])?;
    let begun = Instant::now();
    let during = pool.check()?;
    ensure!(during.broken.is_empty() && during.alive == before.alive, "{during:?}");
    let row = rows(&scene)?.remove(0);
    ensure!(row["drain"]["then"] == then && row["drain"]["over"] == false, "{row:#}");
    // The journal remembers it.
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;

    wait_for("the deadline", &scene, || Ok(rows(&scene)?.remove(0)["drain"]["over"] == true))?;
    ensure!(begun.elapsed() > Duration::from_secs(3), "too early: {:?}", begun.elapsed());
    let after = pool.check()?;
    let (left, broken) = if then == "reset" { (0, there) } else { (there, 0) };
    ensure!(after.alive_on("stable0") == left && after.broken.len() as u64 == broken, "{after:?}");
    ensure!(after.broken.iter().all(|broken| broken.server.as_deref() == Some("stable0")), "{after:?}");
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    ensure!(events.contains("the time that") && events.contains("is over"), "{events}");

    scene.lbctl(&["set", "state", &drained, "ready"])?;
    let tally = clients(&scene, 500)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") > 100, "{tally:?}");
    Ok(())
}

fn again() -> Result<()> {
    let scene = Scene::start(lines(3))?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 300).from(Sources::crowd(300)))?;
    let before = pool.check()?;
    ensure!(before.alive_on("stable2") > 50, "{before:?}");
    let path = scene.backend(2);
    let address = path.rsplit('/').next().context("an address")?.to_owned();
    let entry = format!("[[service.pool.backend]]\naddress = \"{address}\"\n");
    // The sweep that counts what would be left behind.
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..3 {
        let gone = apply(&scene, |config| config.replace(&entry, ""))?;
        let warnings = gone["warnings"].to_string();
        ensure!(warnings.contains(&address) && warnings.contains("may have flows"), "{gone:#}");
        apply(&scene, |config| config)?;
    }
    let tally = clients(&scene, 600)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable2") > 100, "{tally:?}");
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    Ok(())
}

fn evicted() -> Result<()> {
    let scene = Scene::start(lines(3))?;
    // Silent until they are asked.
    let spec =
        PoolSpec::new(scene.target(), 300).from(Sources::crowd(300)).interval(Duration::from_secs(600));
    let pool = Pool::open(scene.lab.client(0), spec)?;
    let before = pool.check()?;
    let there = before.alive_on("stable2");
    ensure!(there > 50, "{before:?}");
    scene.lbctl(&["set", "state", &scene.backend(2), "maint"])?;
    scene.lbctl(&["set", "state", &scene.backend(2), "ready"])?;
    let after = pool.check()?;
    ensure!(after.alive_on("stable2") == 0 && after.broken.len() as u64 == there, "{after:?}");
    let others =
        |report: &lb_tests::traffic::PoolReport| [report.alive_on("stable0"), report.alive_on("stable1")];
    ensure!(others(&after) == others(&before), "{after:?}");
    let tally = clients(&scene, 600)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable2") > 100, "{tally:?}");
    Ok(())
}

fn wait() -> Result<()> {
    let dataplane = "drain = \"3s\"\nsweep = \"200ms\"".to_owned();
    let scene = Scene::start(Plan { dataplane, ..lines(2) })?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "10"])?;
    // A slot settles no sooner than a handshake may last.
    scene.agent.lbctl(&["status", "--wait=settled", "--timeout", "500ms"])?.exits(4)?;
    scene.agent.lbctl(&["status", "--wait", "--timeout", "5s"])?.exits(0)?;
    Ok(())
}
