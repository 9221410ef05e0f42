//! Rollouts: a good canary goes on by itself, a bad one goes back by itself.

mod kernel;
mod preview;
mod prometheus;

use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::abi::{Service, Split, VipKey};
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};
use lb_tests::agent::Reply;
use lb_tests::claim;
use lb_tests::packets::{Frame, Tcp};
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::test_run::LiveFrames;
use lb_tests::traffic::{Behaviour, Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use lb_tests::{Family, programs};
use lb_userspace::dataplane::maps::{Maps, directory};
use lb_userspace::publish::split;
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    let mut claims = vec![
        claim("a good canary is promoted by itself, and no connection is lost", good),
        claim("a canary that refuses 5 % of connections goes back by itself", refusing),
        claim("a canary that resets every connection trips the wire in the kernel", tripwire),
        claim("a slow canary goes back by itself", slow),
        claim("a rollout without traffic waits", no_traffic),
        claim("a rollout goes on after the agent was killed", agent_killed),
        claim("handshakes of a step outlive the agent that asked for them", handshakes_kept),
        claim("an agent that was killed finds every state of a rollout again", killed_everywhere),
        claim("a rollout whose agent died before it had raised the split goes on", raised_again),
        claim("an agent that was killed between a promotion's record and its roles ends it", half_promoted),
        claim("a canary whose lease runs out gets no new flow", lease),
        claim("a lease ends with its rollout: the next canary is not killed by it", lease_is_over),
        claim("a rollout to another pool waits until the flows of the last canary are over", other_pool),
        claim("a rollout of UDP asks its gates", udp),
        claim("a step waits whose clients' connections the canary's limits have no room for", room),
        claim("a pipeline knows by its exit code how a rollout ended", pipelines),
        claim("where the stable pool is dead, an operator forces the canary", forced),
        claim("under 50 000 packets a second a rollback costs no connection to the stable pool", under_load),
        claim("an operator pauses, approves, promotes and aborts a rollout", orders),
        claim("a rollback by hand ends a rollout", rollback),
    ];
    claims.extend(prometheus::claims());
    claims.extend(kernel::claims());
    claims.extend(preview::claims());
    claims
}

const SOON: Duration = Duration::from_secs(40);
/// A pool becomes the stable one when every handshake that began before is over: 64 s.
const PROMOTED: Duration = Duration::from_secs(110);

/// Settles quickly, so that a promotion does not take the quarter of an hour that it takes elsewhere.
fn plan(rollout: &str) -> Plan {
    Plan {
        lines: true,
        dataplane: "drain = \"1s\"\nsweep = \"200ms\"".to_owned(),
        health: format!("[service.health]\ntype = \"none\"\n[service.rollout]\n{rollout}"),
        ..Plan::default()
    }
}

/// New connections of many clients, all the time.
fn traffic(scene: &Scene) -> Result<Load> {
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(20_000));
    Load::start(scene.lab.client(0), load.rate(1500.0).concurrency(128).timeout(Duration::from_secs(5)))
}

fn rollout(scene: &Scene) -> Result<Value> {
    scene.json(&["rollout", "status", SERVICE])
}

fn wait_for(scene: &Scene, phase: &str) -> Result<Value> {
    let patience = if phase == "promoted" { PROMOTED } else { SOON };
    let deadline = Instant::now() + patience;
    loop {
        let status = rollout(scene)?;
        if status["phase"] == phase {
            return Ok(status);
        }
        ensure!(
            Instant::now() < deadline,
            "not {phase} after {patience:?}: {status:#}\n{}",
            scene.agent.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn reason(status: &Value) -> &str {
    status["reason"].as_str().unwrap_or_default()
}

/// How many were counted of all pools.
fn handshakes(scene: &Scene) -> Result<f64> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", &format!("http://{}/metrics", scene.agent.places().metrics)]);
    let output = scene.lab.balancer().namespace().output(curl)?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().filter(|line| line.starts_with("lb_handshake_duration_seconds_count"));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// Nothing goes to the canary any more.
fn is_back(scene: &Scene) -> Result<()> {
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(500)).flows(500);
    let tally = Load::run(scene.lab.client(0), load.concurrency(64).timeout(Duration::from_secs(5)))?;
    ensure!(tally.failed() == 0 && canaries(&tally) == 0, "{tally:?}");
    Ok(())
}

/// Nothing is measured or capped any more: a rollout that is over costs nothing.
fn is_unmeasured(scene: &Scene) -> Result<()> {
    let (maps, index) = in_kernel(scene)?;
    let deadline = Instant::now() + SOON;
    loop {
        let service = maps.services.read(index);
        if !service.has(Service::HANDSHAKES | Service::CAPPED) && service.measure == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still measured: {service:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn canaries(tally: &Tally) -> u64 {
    (0..3).map(|i| tally.answered_by(&format!("canary{i}"))).sum()
}

/// What pipelines run (`deploy/ci`).
fn pipeline(scene: &Scene, timeout: &str, environment: &[(&str, &str)]) -> Result<Reply> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ci/rollout.sh");
    scene.agent.run(script, &[SERVICE, "canary", timeout, "release 42"], environment)
}

fn good() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [5, 50]\nhold = \"2s\"\nsoak = \"1s\"\nmin_clients = 50"))?;
    let pool = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 200).from(Sources::Crowd { first: 30_000, count: 200 }),
    )?;
    let load = traffic(&scene)?;
    let watched = pipeline(&scene, "110s", &[])?;
    ensure!(watched.code == Some(0), "{watched:?}\n{}", scene.agent.log());
    ensure!(watched.stdout.contains("web: canary is promoted"), "{watched:?}");
    let tally = load.stop()?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let report = pool.check()?;
    ensure!(report.broken.is_empty(), "{report:?}");

    let services = scene.json(&["get", "services", SERVICE])?;
    ensure!(services["services"][0]["stable"] == "canary", "{services:#}");
    is_unmeasured(&scene)?;
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(500)).flows(500);
    let tally = Load::run(scene.lab.client(0), load.concurrency(64).timeout(Duration::from_secs(5)))?;
    ensure!(tally.failed() == 0 && canaries(&tally) == 500, "everybody is on the new pool: {tally:?}");

    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    let events = scene.lbctl(&["-o", "json", "get", "events"])?;
    ensure!(!events.contains("split_adopted"), "a promoted rollout has no split: {events}");
    ensure!(rollout(&scene)?["phase"] == "promoted");
    Ok(())
}

fn refusing() -> Result<()> {
    let scene = Scene::start(Plan { canary: 2, ..plan("shares = [20]\nhold = \"60s\"\ntripwire = 0") })?;
    // One of twenty connections to the canary goes to the server that refuses them.
    scene.lbctl(&["set", "weight", &scene.backend(2), "95"])?;
    scene.lbctl(&["set", "weight", &scene.backend(3), "5"])?;
    scene.servers[3].behave(Behaviour::Refuse)?;
    let load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status).starts_with("clients that fared badly"), "{status:#}");
    let hurt = load.tally()?.failed();
    ensure!((2..=60).contains(&hurt), "{hurt} clients were hurt: {status:#}");
    let took = status["took_back_seconds"].as_f64().context("how long it took")? * 1e6;
    println!("{hurt} clients were hurt; {took:.0} us from the verdict to the store");
    // What it takes a machine that does nothing else is printed. Here others run: it is no matter of sweeps or ticks.
    ensure!(took < 100_000.0, "from the verdict to the store: {took} us");
    is_back(&scene)?;
    let watched = scene.agent.lbctl(&["rollout", "status", SERVICE, "--watch"])?;
    ensure!(watched.code == Some(3), "{watched:?}");
    Ok(())
}

fn tripwire() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"60s\""))?;
    scene.servers[2].behave(Behaviour::Reset)?;
    let load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status).starts_with("the tripwire:"), "{status:#}");
    let hurt = load.tally()?.failed();
    ensure!((2..=20).contains(&hurt), "{hurt} clients were hurt: {status:#}");
    is_back(&scene)?;
    is_unmeasured(&scene)?;

    scene.servers[2].behave(Behaviour::Serve)?;
    scene.lbctl(&["rollout", "retry", SERVICE])?;
    let deadline = Instant::now() + SOON;
    while rollout(&scene)?["verdict"] != "fine" {
        ensure!(Instant::now() < deadline, "a repaired canary is fine: {:#}", rollout(&scene)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn slow() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"60s\""))?;
    scene.servers[2].behave(Behaviour::Delay(Duration::from_millis(100)))?;
    let _load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status).starts_with("clients that waited long"), "{status:#}");
    Ok(())
}

fn no_traffic() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"100ms\""))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    std::thread::sleep(Duration::from_secs(2));
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "holding" && status["verdict"] == "no-data", "{status:#}");
    let late = scene.agent.lbctl(&["rollout", "status", SERVICE, "--watch", "--timeout", "1s"])?;
    ensure!(late.code == Some(4), "{late:?}");
    Ok(())
}

fn agent_killed() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [5, 50]\nhold = \"2s\"\nsoak = \"1s\"\nmin_clients = 50"))?;
    let load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    for phase in ["holding", "soaking"] {
        wait_for(&scene, phase)?;
        scene.agent.kill9();
        std::thread::sleep(Duration::from_millis(500));
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
    }
    wait_for(&scene, "promoted")?;
    let tally = load.stop()?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(())
}

fn handshakes_kept() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [50]\nhold = \"1h\""))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    let some = LoadSpec::lines(scene.target()).from(Sources::crowd(300)).flows(300).concurrency(64);
    Load::run(scene.lab.client(0), some)?;
    let before = handshakes(&scene)?;
    ensure!(before >= 250.0, "one of each client: {before}");
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    // It has looked at the rollout.
    std::thread::sleep(Duration::from_millis(600));
    let after = handshakes(&scene)?;
    ensure!(after >= before, "{before} and then {after}");
    Ok(())
}

fn killed_everywhere() -> Result<()> {
    let steps = "hold = \"100ms\"\nsoak = \"1h\"\nanalysis = \"off\"\n\
                 [[service.rollout.step]]\nshare = 10\ngate = \"approve\"\n\
                 [[service.rollout.step]]\nshare = 50\nhold = \"1h\"\n";
    let mut scene = Scene::start(plan(steps))?;
    let again = |scene: &mut Scene, phase: &str, percent: f64| -> Result<()> {
        let before = wait_for(scene, phase)?;
        scene.agent.kill9();
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
        std::thread::sleep(Duration::from_millis(300));
        let after = rollout(scene)?;
        for part in ["phase", "step", "paused", "reason", "began"] {
            ensure!(after[part] == before[part], "{part}: {before:#} and then {after:#}");
        }
        ensure!(after["desired_percent"] == percent, "{after:#}");
        ensure!(self::percent(scene)? == percent, "{after:#}");
        Ok(())
    };
    let canary = scene.backend(2);
    scene.lbctl(&["set", "state", &canary, "maint"])?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    again(&mut scene, "preparing", 0.0)?;
    scene.lbctl(&["set", "state", &canary, "ready"])?;
    again(&mut scene, "gate", 10.0)?;
    scene.lbctl(&["rollout", "approve", SERVICE])?;
    again(&mut scene, "holding", 50.0)?;
    scene.lbctl(&["rollout", "pause", SERVICE])?;
    again(&mut scene, "holding", 50.0)?;
    scene.lbctl(&["rollout", "resume", SERVICE])?;
    scene.lbctl(&["rollout", "promote", SERVICE])?;
    again(&mut scene, "soaking", 100.0)?;
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    again(&mut scene, "rolled-back", 0.0)?;
    is_back(&scene)
}

fn raised_again() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [50]\nhold = \"1h\"\nanalysis = \"off\""))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    // As an agent leaves it that dies between the journal and the store.
    let restart_at = |scene: &mut Scene, share: f64| {
        between_agents(scene, |maps, index| {
            split::set(&maps.services, index, split::share(share));
        })
    };
    restart_at(&mut scene, 1.0)?;
    let deadline = Instant::now() + SOON;
    while percent(&scene)? != 50.0 {
        ensure!(Instant::now() < deadline, "{:#}", rollout(&scene)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    let path = scene.agent.places().config.display().to_string();
    let config = scene.plan.config(&scene.lab).replace("hold = \"1h\"", "hold = \"2h\"");
    scene.agent.write_config(&config)?;
    scene.lbctl(&["apply", "-f", &path])?;
    ensure!(percent(&scene)? == 50.0, "no change of something else lowers it");
    let events = scene.lbctl(&["-o", "json", "get", "events"])?;
    ensure!(!events.contains("split_adopted"), "{events}");
    restart_at(&mut scene, 0.0)?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status).starts_with("it was rolled back while there was no agent"), "{status:#}");
    Ok(())
}

/// The maps, and the service's index in them.
fn in_kernel(scene: &Scene) -> Result<(Maps, u32)> {
    let maps = Maps::open(&directory(&scene.agent.places().pins))?;
    let protocol = if scene.plan.protocol == "udp" { IPPROTO_UDP } else { IPPROTO_TCP };
    let key = VipKey::new(scene.target().ip(), scene.target().port(), protocol);
    let index = maps.vips.get(&key)?.context("it is in the kernel")?;
    Ok((maps, index))
}

/// Changes what the kernel has of the service while there is no agent.
fn between_agents(scene: &mut Scene, change: impl FnOnce(&Maps, u32)) -> Result<()> {
    scene.agent.kill9();
    let (maps, index) = in_kernel(scene)?;
    change(&maps, index);
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))
}

/// The share that the canary should have.
fn percent(scene: &Scene) -> Result<f64> {
    let services = scene.json(&["get", "services", SERVICE])?;
    services["services"][0]["split"]["percent"].as_f64().context("a split")
}

fn half_promoted() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [50]\nhold = \"100ms\"\nsoak = \"1s\"\nanalysis = \"off\""))?;
    let again = |scene: &mut Scene, change: &dyn Fn(&mut Service)| {
        between_agents(scene, |maps, index| {
            let mut service = maps.services.read(index);
            change(&mut service);
            maps.services.write(index, &service);
        })
    };
    // As sweeps leave it after a while, with everything in the canary.
    let settled = |service: &mut Service| {
        (service.split, service.split_home) = (Split::of(Split::ALL, 0).0, Split::ALL.into());
    };
    let exchanged = |service: &mut Service| {
        std::mem::swap(&mut service.stable_pool, &mut service.canary_pool);
        std::mem::swap(&mut service.stable_slots, &mut service.canary_slots);
    };
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "soaking")?;
    again(&mut scene, &settled)?;
    wait_for(&scene, "promoted")?;

    again(&mut scene, &|service| {
        exchanged(service);
        settled(service);
    })?;
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "promoted" && status["from"] == "stable", "{status:#}");
    let load = LoadSpec::lines(scene.target()).from(Sources::crowd(200)).flows(200).concurrency(64);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(canaries(&tally) == 200, "{tally:?}");
    let services = scene.json(&["get", "services", SERVICE])?;
    let service = &services["services"][0];
    ensure!(service["stable"] == "canary" && service["split"]["new_ratio"] == 0.0, "{service:#}");

    // Somebody has rolled back in that very moment: then the pools have their old roles.
    again(&mut scene, &|service| {
        exchanged(service);
        (service.split, service.split_home) = (0, 0);
    })?;
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "rolled-back" && status["from"] == "stable", "{status:#}");
    is_back(&scene)
}

fn lease() -> Result<()> {
    let mut scene = Scene::start(plan("shares = [50]\nhold = \"60s\"\nlease = \"5s\""))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    let some = LoadSpec::lines(scene.target()).from(Sources::crowd(200)).flows(200).concurrency(64);
    ensure!(canaries(&Load::run(scene.lab.client(0), some)?) > 50, "half of the clients are in the canary");
    scene.agent.kill9();
    std::thread::sleep(Duration::from_millis(5_500));
    is_back(&scene)?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    wait_for(&scene, "rolled-back")?;
    is_back(&scene)
}

fn lease_is_over() -> Result<()> {
    let rules = "shares = [50]\nhold = \"1h\"\nanalysis = \"off\"\nlease = \"5s\"";
    let scene = Scene::start(plan(rules))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    std::thread::sleep(Duration::from_millis(5_500));

    scene.lbctl(&["set", "split", SERVICE, "50"])?;
    let some = LoadSpec::lines(scene.target()).from(Sources::crowd(200)).flows(200).concurrency(64);
    ensure!(canaries(&Load::run(scene.lab.client(0), some)?) > 50, "half of the clients are in the canary");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(percent(&scene)? == 50.0, "nobody takes it back: {}", percent(&scene)?);

    scene.lbctl(&["rollback", SERVICE])?;
    scene.lbctl(&["rollout", "retry", SERVICE])?;
    wait_for(&scene, "holding")?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(rollout(&scene)?["phase"] == "holding" && percent(&scene)? == 50.0, "{:#}", rollout(&scene)?);
    Ok(())
}

fn other_pool() -> Result<()> {
    let rules = "shares = [20]\nhold = \"1h\"\nanalysis = \"off\"";
    let more = Plan { protocol: "udp", lines: false, canary: 2, ..plan(rules) };
    let dataplane = format!("{}\nudp_idle = \"2s\"", more.dataplane);
    let mut scene = Scene::start(Plan { dataplane, ..more })?;
    // The last backend of all gets a pool of its own.
    let config = scene.plan.config(&scene.lab);
    let (all, last) = config.rsplit_once("[[service.pool.backend]]").context("a backend")?;
    let config = format!("{all}[[service.pool]]\nname = \"other\"\n[[service.pool.backend]]{last}");
    scene.agent.write_config(&config)?;
    let path = scene.agent.places().config.display().to_string();
    scene.lbctl(&["apply", "-f", &path])?;
    let (maps, index) = in_kernel(&scene)?;
    let settles = |new: bool| {
        let deadline = Instant::now() + SOON;
        while (maps.services.read(index).home() != 0) != new {
            ensure!(Instant::now() < deadline, "never settled: {:?}", maps.services.read(index));
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };

    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    let before = maps.services.read(index).canary_pool;
    settles(true)?;
    let start = ["rollout", "start", SERVICE, "--to", "other"];
    let superseding = [&start[..], &["--supersede"]].concat();
    let refused = scene.agent.lbctl(&superseding)?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("canary is, and may have flows"),
        "{refused:?}"
    );
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "holding" && status["to"] == "canary", "it goes on: {status:#}");
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    let refused = scene.agent.lbctl(&start)?;
    ensure!(refused.code == Some(1), "clients may still be in the canary: {refused:?}");

    settles(false)?;
    scene.lbctl(&start)?;
    wait_for(&scene, "holding")?;
    ensure!(maps.services.read(index).canary_pool != before, "the new pool, and not the one before");
    // What has just begun has nothing that is to be waited for.
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary", "--supersede"])?;
    wait_for(&scene, "holding")?;
    ensure!(maps.services.read(index).canary_pool == before, "and back");
    Ok(())
}

fn udp() -> Result<()> {
    let go = std::env::temp_dir().join(format!("lb-gate-{}", std::process::id()));
    let rules = format!(
        "hold = \"100ms\"\nsoak = \"1h\"\nanalysis = \"off\"\n\
         [[service.rollout.step]]\nshare = 10\ngate = \"file\"\nfile = \"{}\"\n",
        go.display()
    );
    let scene = Scene::start(Plan { protocol: "udp", lines: false, ..plan(&rules) })?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "gate")?;
    std::fs::write(&go, "")?;
    let status = wait_for(&scene, "soaking");
    std::fs::remove_file(&go)?;
    let status = status?;
    ensure!(reason(&status) == "the gate said yes", "{status:#}");
    ensure!(status["metrics"] == serde_json::json!([]), "nothing is counted of UDP: {status:#}");
    Ok(())
}

fn room() -> Result<()> {
    let rules = "shares = [50]\nhold = \"100ms\"";
    let limits = "[service.limits]\nmax_connections = 40".to_owned();
    let scene = Scene::start(Plan { service: limits, ..plan(rules) })?;
    let crowd = Sources::Crowd { first: 30_000, count: 60 };
    let _pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 60).from(crowd))?;
    // They are counted anew with each sweep.
    std::thread::sleep(Duration::from_secs(1));
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "holding")?;
    ensure!(status["verdict"] == "unsure", "half of 60 are fewer than 40: {status:#}");
    let why = "its limits have room for 40 connections, and 100 % of the 60 that are open are 60";
    ensure!(status["verdict_reason"] == why, "{status:#}");
    Ok(())
}

/// Packets a second, beside those of connections that come and go. Each is answered with a RST, which comes back this way.
const FLOOD: u32 = 40_000;

fn under_load() -> Result<()> {
    let scene = Scene::start(plan("shares = [50]\nhold = \"1h\""))?;
    let (client, balancer) = (scene.lab.client(0), scene.lab.balancer());
    let pool = Pool::open(
        client,
        PoolSpec::new(scene.target(), 200).from(Sources::Crowd { first: 30_000, count: 200 }),
    )?;
    let load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;

    let ip = client.crowd().member(250_000, Family::V4);
    let frame = Frame::ethernet(client.mac(), balancer.mac()).ip(ip, scene.target().ip());
    let frame = frame.tcp(Tcp::new(4_000, scene.target().port())).payload(b"live load").build();
    let program = programs::redirecting(client.port().index)?;
    let over = AtomicBool::new(false);
    let (begin, before) = (Instant::now(), balancer.received_frames("eth0")?);
    let status = std::thread::scope(|scope| -> Result<Value> {
        scope.spawn(|| {
            client.run(|| {
                const BURST: u32 = 1_600;
                let (begin, mut sent) = (Instant::now(), 0.0);
                while !over.load(Ordering::Relaxed) {
                    // What the machine was too busy for is made up for.
                    while sent < begin.elapsed().as_secs_f64() * f64::from(FLOOD)
                        && !over.load(Ordering::Relaxed)
                    {
                        sent += f64::from(BURST);
                        if LiveFrames::new(program.as_fd(), &frame, BURST).send().is_err() {
                            return;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        });
        std::thread::sleep(Duration::from_secs(2));
        scene.servers[2].behave(Behaviour::Refuse)?;
        let status = wait_for(&scene, "rolled-back");
        std::thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        status
    })?;
    let rate = (balancer.received_frames("eth0")? - before) as f64 / begin.elapsed().as_secs_f64();
    let tally = load.stop()?;
    println!("{rate:.0} packets a second arrived; {:?}: {}", tally.failed, reason(&status));
    ensure!(rate >= 50_000.0, "{rate:.0} packets a second arrived");
    // Those of the canary were refused. Nobody was reset, left waiting, or sent elsewhere.
    ensure!(tally.failed.keys().all(|why| why == "refused"), "{tally:?}");
    // The agent looks every 200 ms: even on a busy machine the fault meets no more than the canary's half of a second's clients.
    let of_a_second = tally.flows as f64 / tally.elapsed.as_secs_f64() / 2.0;
    ensure!((1.0..=of_a_second).contains(&(tally.failed() as f64)), "{tally:?}");
    let report = pool.check()?;
    ensure!(report.broken.is_empty(), "{report:?}");
    is_back(&scene)
}

fn pipelines() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"1h\"\nanalysis = \"off\""))?;
    let late = pipeline(&scene, "1s", &[])?;
    ensure!(late.code == Some(4) && rollout(&scene)?["phase"] == "holding", "it goes on: {late:?}");
    let second = pipeline(&scene, "1s", &[])?;
    ensure!(second.code == Some(5), "somebody else's is under way: {second:?}");
    // The newest revision wins, and is taken back when its time is over.
    let began = rollout(&scene)?["began"].clone();
    let aborted = pipeline(&scene, "1s", &[("SUPERSEDE", "yes"), ("ON_TIMEOUT", "abort")])?;
    let status = rollout(&scene)?;
    ensure!(aborted.code == Some(3) && status["phase"] == "rolled-back", "{aborted:?} {status:#}");
    ensure!(status["began"] != began, "another one: {status:#}");
    is_back(&scene)
}

fn forced() -> Result<()> {
    let scene = Scene::start(plan("shares = [20]\nhold = \"1h\"\nsoak = \"1h\""))?;
    for server in &scene.servers[..2] {
        server.behave(Behaviour::Refuse)?;
    }
    let load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    scene.lbctl(&["rollout", "pause", SERVICE])?;
    let refused = scene.agent.lbctl(&["rollout", "promote", SERVICE, "--full"])?;
    ensure!(refused.code == Some(1), "it is paused: {refused:?}");
    // What is at 100 % already is forced likewise: the wire in the kernel is cut.
    scene.lbctl(&["rollout", "resume", SERVICE])?;
    scene.lbctl(&["rollout", "promote", SERVICE, "--full"])?;
    wait_for(&scene, "soaking")?;
    scene.lbctl(&["rollout", "promote", SERVICE, "--full", "--force"])?;
    drop(load);
    let all = LoadSpec::lines(scene.target()).from(Sources::crowd(500)).flows(500).concurrency(64);
    let tally = Load::run(scene.lab.client(0), all)?;
    ensure!(tally.failed() == 0 && canaries(&tally) == 500, "nobody is sent to the dead: {tally:?}");
    // It was forced: that it does worse now takes it back no more, but an operator does.
    scene.servers[2].behave(Behaviour::Refuse)?;
    let all = LoadSpec::lines(scene.target()).from(Sources::crowd(300)).flows(300).concurrency(64);
    Load::run(scene.lab.client(0), all)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(rollout(&scene)?["phase"] == "soaking", "{:#}", rollout(&scene)?);
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    wait_for(&scene, "rolled-back")?;
    Ok(())
}

fn orders() -> Result<()> {
    let gate = "hold = \"100ms\"\nsoak = \"60s\"\nanalysis = \"off\"\n\
                [[service.rollout.step]]\nshare = 10\ngate = \"approve\"\n\
                [[service.rollout.step]]\nshare = 50\nhold = \"1h\"\n";
    let scene = Scene::start(plan(gate))?;
    let order = |order: &str| scene.lbctl(&["rollout", order, SERVICE]);
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "gate")?;
    ensure!(status["desired_percent"] == 10.0, "{status:#}");
    let refused = scene.agent.lbctl(&["set", "split", SERVICE, "70"])?;
    ensure!(refused.code == Some(5), "a rollout has the split: {refused:?}");
    order("pause")?;
    order("approve")?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(rollout(&scene)?["phase"] == "gate", "it is paused");
    order("resume")?;
    let status = wait_for(&scene, "holding")?;
    ensure!(status["desired_percent"] == 50.0, "{status:#}");
    order("promote")?;
    let status = wait_for(&scene, "soaking")?;
    ensure!(status["desired_percent"] == 100.0, "{status:#}");
    order("abort")?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status) == "aborted", "{status:#}");
    is_back(&scene)?;
    order("retry")?;
    wait_for(&scene, "gate")?;
    order("abort")?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary", "--steps", "100"])?;
    let status = wait_for(&scene, "soaking")?;
    ensure!(status["desired_percent"] == 100.0, "to everybody at once: {status:#}");
    order("abort")?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(status["ended_in"] == "soaking", "{status:#}");
    let events = scene.lbctl(&["-o", "json", "get", "events"])?;
    for told in ["paused at 10 %", "approved at 10 %", "resumed at 10 %"] {
        ensure!(events.matches(told).count() == 1, "{told}: {events}");
    }
    Ok(())
}

fn rollback() -> Result<()> {
    let scene = Scene::start(plan("shares = [30]\nhold = \"1h\""))?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "holding")?;
    scene.lbctl(&["rollback", SERVICE])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(reason(&status) == "rolled back by hand", "{status:#}");
    is_back(&scene)?;
    ensure!(percent(&scene)? == 0.0);
    Ok(())
}
