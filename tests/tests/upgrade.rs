//! Another version of the programs, whose maps have another layout, takes over from the one that runs.
//!
//! The other version is the same sources with the feature `next-layout`, built here: `target/next-layout`, or what
//! `LB_NEXT_BIN_DIR` names.

use std::env;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::built;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Family, claim};
use serde_json::Value;

fn main() -> ExitCode {
    lb_tests::run(vec![
        claim("connections of mode nat live through a new layout of the maps", || moves("nat")),
        claim("sessions of mode full-nat live through a new layout of the maps", || moves("full-nat")),
        claim("connections of mode dsr-l2 live through a new layout of the maps", || moves("dsr-l2")),
        claim("connections of mode dsr-ipip live through a new layout of the maps", || moves("dsr-ipip")),
        claim("datagrams of mode nat find their backend through a new layout of the maps", || {
            datagrams("nat")
        }),
        claim("datagrams of mode full-nat find their backend through a new layout of the maps", || {
            datagrams("full-nat")
        }),
        claim("an agent that dies before packets meet the new maps leaves the old ones whole", || {
            ["shared", "loaded", "copied"].into_iter().try_for_each(|step| dies(step, true))
        }),
        claim("an agent that dies later leaves the new ones whole, and the next one goes on", || {
            ["swapped", "moved", "late", "clearing"].into_iter().try_for_each(|step| dies(step, false))
        }),
        claim("a version that does not know the layout of the maps leaves them alone", refused),
    ])
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Where the programs of the other version are.
fn next() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut known = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = &*known {
        return Ok(known.clone());
    }
    let directory = match env::var_os("LB_NEXT_BIN_DIR") {
        Some(directory) => directory.into(),
        None => build()?,
    };
    Ok(known.insert(directory).clone())
}

/// In a directory of its own: the programs of this version stay where tests look for them.
fn build() -> Result<PathBuf> {
    let ours = built("lbd")?.parent().context("lbd lies somewhere")?.to_owned();
    let profile = ours.file_name().context("the profile's name")?.to_owned();
    let target = ours.parent().context("the target directory")?.join("next-layout");
    share(&ours, &target.join(&profile))?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--workspace", "--bin", "lbd", "--bin", "lbctl"])
        .args(["--features", "lb-userspace/next-layout", "--target-dir"])
        .arg(&target);
    if profile == "release" {
        cargo.arg("--release");
    }
    // Build scripts (ring's) look at which package is at work, and would run anew.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{cargo:?}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(target.join(profile))
}

/// Lets a directory of builds begin with what another one has, which cargo only reads where it is the same: all dependencies.
fn share(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    let parts = ["deps", "build", ".fingerprint"].map(|part| from.join(part));
    let copied = Command::new("cp").arg("-al").args(parts).arg(to).status().context("cannot start cp")?;
    ensure!(copied.success(), "cp -al {} {}", from.display(), to.display());
    Ok(())
}

/// Directories of layouts, and how many links are pinned in each.
fn layouts(scene: &Scene) -> Result<Vec<(String, usize)>> {
    let mut layouts = Vec::new();
    for entry in fs::read_dir(&scene.agent.places().pins)? {
        let entry = entry?;
        let pins = fs::read_dir(entry.path())?.flatten();
        let links = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("link-")).count();
        layouts.push((entry.file_name().to_string_lossy().into_owned(), links));
    }
    layouts.sort();
    Ok(layouts)
}

fn only(layout: &str) -> Vec<(String, usize)> {
    vec![(layout.to_owned(), 1)]
}

fn backends(scene: &Scene) -> Result<Vec<Value>> {
    let rows = scene.json(&["get", "backends", SERVICE])?;
    Ok(rows["backends"].as_array().context("rows")?.clone())
}

/// With changes that have not settled, so that hashes alone find not every backend.
fn unsettled(mode: &'static str, connections: u32) -> Result<(Scene, Pool)> {
    let scene = Scene::start(Plan { mode, stable: 3, canary: 2, lines: true, ..Plan::default() })?;
    let clients = PoolSpec::new(scene.target(), connections).from(Sources::crowd(connections));
    let clients = clients.interval(Duration::from_millis(500));
    let pool = unsettle(&scene, || Pool::open(scene.lab.client(0), clients))?;
    Ok((scene, pool))
}

/// Opens flows, and then has others take the new ones.
fn unsettle<T>(scene: &Scene, open: impl FnOnce() -> Result<T>) -> Result<T> {
    scene.lbctl(&["set", "split", SERVICE, "20"])?;
    let opened = open()?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "0"])?;
    scene.lbctl(&["set", "split", SERVICE, "60"])?;
    scene.lbctl(&["set", "weight", &scene.backend(3), "7"])?;
    Ok(opened)
}

fn moves(mode: &'static str) -> Result<()> {
    const CONNECTIONS: u32 = 1_500;
    let next = next()?;
    let (mut scene, pool) = unsettled(mode, CONNECTIONS)?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS) && before.broken.is_empty(), "{before:?}");
    let rows = backends(&scene)?;
    ensure!(layouts(&scene)? == only("v1"), "{:?}", layouts(&scene)?);

    // Others come and go all the while.
    let crowd = Sources::Crowd { first: CONNECTIONS, count: 2_000 };
    let load = LoadSpec::lines(scene.target()).from(crowd).rate(300.0).timeout(Duration::from_secs(5));
    let load = Load::start(scene.lab.client(0), load)?;
    scene.agent.stop(PATIENCE)?;
    scene.agent.restart_with(&next)?;
    scene.agent.wait_ready(PATIENCE)?;
    let after = pool.check()?;
    let tally = load.stop()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}\n{}", scene.agent.log());
    // A handshake that is under way in the very exchange counts as an old flow for milliseconds, since the map that it is noted
    // in has changed (ARCHITECTURE.md): some three hundred begin in a second, and each takes a fraction of one.
    let lost = tally.failed.get("reset").copied().unwrap_or(0);
    ensure!(tally.failed() == lost && lost <= 3 && tally.answered() > 0, "{tally:?}\n{}", scene.agent.log());

    // Nothing is left of the old layout, and nothing is lost that was in it.
    ensure!(layouts(&scene)? == only("v2"), "{:?}", layouts(&scene)?);
    ensure!(scene.json(&["status"])?["layout"] == 2);
    for (was, is) in rows.iter().zip(backends(&scene)?) {
        for what in ["name", "id", "weight"] {
            ensure!(was[what] == is[what], "{what}: {was:#} {is:#}");
        }
        let packets = |row: &Value| row["traffic"]["packets"].as_u64().unwrap_or_default();
        ensure!(packets(&is) >= packets(was), "counters go on: {was:#} {is:#}");
    }
    // A drained slot's connections are where they were by their entries alone: when all settles, they still are.
    scene.lbctl(&["rollback", SERVICE])?;
    let load = LoadSpec::lines(scene.target()).from(crowd).flows(300);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(
        tally.failed() == 0 && tally.answered_by("canary0") + tally.answered_by("canary1") == 0,
        "{tally:?}"
    );
    let last = pool.check()?;
    ensure!(last.broken.is_empty() && last.alive == before.alive, "{last:?}");
    Ok(())
}

/// A socket that asks one server again and again.
struct Asker {
    socket: UdpSocket,
    asked: u32,
    server: String,
}

impl Asker {
    /// So many of them, each of which has asked once.
    fn crowd(scene: &Scene, count: u32) -> Result<Vec<Self>> {
        let client = scene.lab.client(0);
        let members = (0..count).map(|number| client.crowd().member(number, Family::V4));
        let sockets: Vec<UdpSocket> =
            client.run(|| members.map(|ip| UdpSocket::bind((ip, 0))).collect::<std::io::Result<_>>())?;
        let ask = |socket: UdpSocket| {
            socket.connect(scene.target())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut asker = Self { socket, asked: 0, server: String::new() };
            asker.server = asker.ask()?;
            Ok(asker)
        };
        sockets.into_iter().map(ask).collect()
    }

    /// Who answers. No question is asked twice, and no answer may be missing.
    fn ask(&mut self) -> Result<String> {
        self.asked += 1;
        let question = self.asked.to_string();
        self.socket.send(question.as_bytes())?;
        let mut answer = [0; 64];
        let length = self.socket.recv(&mut answer).context("no answer")?;
        let answer = std::str::from_utf8(&answer[..length])?;
        let (server, echo) = answer.split_once(' ').context("a name and the question")?;
        ensure!(echo == question, "{answer} to {question}");
        Ok(server.to_owned())
    }

    /// Whether the server of before answers.
    fn ask_again(&mut self) -> Result<()> {
        let server = self.ask()?;
        ensure!(server == self.server, "{server} answers what {} did", self.server);
        Ok(())
    }
}

fn datagrams(mode: &'static str) -> Result<()> {
    const FLOWS: u32 = 400;
    let next = next()?;
    let service = "tracking = \"flow\"".to_owned();
    let dataplane = "udp_idle = \"10s\"\nsweep = \"200ms\"".to_owned();
    let plan = Plan { mode, protocol: "udp", stable: 3, canary: 2, service, dataplane, ..Plan::default() };
    let mut scene = Scene::start(plan)?;
    if mode == "nat" {
        // Until then whoever is not known is the stable pool's: it may have been there before.
        scene.lbctl(&["set", "split", SERVICE, "20"])?;
        scene.lbctl(&["status", "--wait=settled", "--timeout", "60s"])?;
    }
    let mut askers = unsettle(&scene, || Asker::crowd(&scene, FLOWS))?;
    askers.iter_mut().try_for_each(Asker::ask_again)?;
    // A canary's datagrams are known by their entries alone.
    let on = |name: &str| askers.iter().filter(|asker| asker.server.starts_with(name)).count();
    ensure!(on("canary") > 30 && on("stable0") > 50, "{} and {} flows", on("canary"), on("stable0"));

    // They go on asking all the while.
    let over = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                askers.iter_mut().try_for_each(Asker::ask_again)?;
            }
            Ok(())
        });
        let moved = scene.agent.stop(PATIENCE).and_then(|_| scene.agent.restart_with(&next));
        let moved = moved.and_then(|()| scene.agent.wait_ready(PATIENCE));
        over.store(true, Ordering::Relaxed);
        let asked = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        moved.and(asked)
    });
    asked.with_context(|| scene.agent.log())?;
    ensure!(layouts(&scene)? == only("v2"), "{:?}", layouts(&scene)?);

    // New ones go where they should, and the others stay.
    scene.lbctl(&["rollback", SERVICE])?;
    let crowd = Sources::Crowd { first: FLOWS, count: 300 };
    let tally = Load::run(scene.lab.client(0), LoadSpec::udp(scene.target()).from(crowd).flows(300))?;
    let canary = tally.answered_by("canary0") + tally.answered_by("canary1");
    ensure!(tally.failed() == 0 && canary == 0, "{tally:?}");
    askers.iter_mut().try_for_each(Asker::ask_again)
}

/// `before`: packets do not meet the new maps yet.
fn dies(step: &str, before: bool) -> Result<()> {
    const CONNECTIONS: u32 = 400;
    let next = next()?;
    let ours = built("lbd")?.parent().context("a directory")?.to_owned();
    let (mut scene, pool) = unsettled("nat", CONNECTIONS)?;
    let alive = pool.check()?.alive;
    let unbroken = |scene: &Scene, when: &str| -> Result<()> {
        let report = pool.check()?;
        let (log, layouts) = (scene.agent.log(), layouts(scene)?);
        ensure!(
            report.broken.is_empty() && report.alive == alive,
            "{step}, {when}: {report:?} {layouts:?}\n{log}"
        );
        Ok(())
    };
    scene.agent.stop(PATIENCE)?;
    scene.agent.restart_with_env(&next, &[("LB_DIE_AT", step)])?;
    let end = scene.agent.process().wait(PATIENCE)?;
    ensure!(scene.agent.log().contains("dies at"), "{step}: {end:?}\n{}", scene.agent.log());
    unbroken(&scene, "without an agent")?;

    // Whichever maps packets meet, a rollback by either version is in those.
    let clients =
        |first| LoadSpec::lines(scene.target()).from(Sources::Crowd { first, count: 300 }).flows(300);
    let tally = Load::run(scene.lab.client(0), clients(1_000))?;
    let canary = tally.answered_by("canary0") + tally.answered_by("canary1");
    ensure!(tally.failed() == 0 && canary > 0, "{step}: {tally:?}");
    let rolled_back = scene.agent.lbctl(&["-o", "json", "rollback", SERVICE])?.done()?.json()?;
    ensure!(rolled_back["split_before_percent"] == 60.0, "{step}: {rolled_back:#}");
    let tally = Load::run(scene.lab.client(0), clients(2_000))?;
    let canary = tally.answered_by("canary0") + tally.answered_by("canary1");
    ensure!(tally.failed() == 0 && canary == 0, "{step}: after the rollback {tally:?}");
    unbroken(&scene, "after a rollback")?;

    if before {
        // The version before goes on as if nothing had been.
        scene.agent.restart_with(&ours)?;
        scene.agent.wait_ready(PATIENCE)?;
        scene.wait_taking(4, PATIENCE)?;
        unbroken(&scene, "with the old version again")?;
        ensure!(layouts(&scene)? == only("v1"), "{step}: {:?}", layouts(&scene)?);
        scene.agent.stop(PATIENCE)?;
    }
    scene.agent.restart_with(&next)?;
    scene.agent.wait_ready(PATIENCE)?;
    scene.wait_taking(4, PATIENCE)?;
    unbroken(&scene, "with the new version")?;
    ensure!(layouts(&scene)? == only("v2"), "{step}: {:?}", layouts(&scene)?);
    let status = scene.json(&["status"])?;
    ensure!(status["services"][0]["split"]["percent"] == 0.0, "{step}: {status:#}");
    Ok(())
}

fn refused() -> Result<()> {
    let next = next()?;
    let ours = built("lbd")?.parent().context("a directory")?.to_owned();
    let (mut scene, pool) = unsettled("nat", 200)?;
    let alive = pool.check()?.alive;
    scene.agent.stop(PATIENCE)?;
    scene.agent.restart_with(&next)?;
    scene.agent.wait_ready(PATIENCE)?;
    scene.agent.stop(PATIENCE)?;

    scene.agent.restart_with(&ours)?;
    let end = scene.agent.process().wait(PATIENCE)?;
    let log = scene.agent.log();
    ensure!(log.contains("layout 2 of the maps") && log.contains("lbctl detach"), "{end:?}\n{log}");
    let report = pool.check()?;
    ensure!(report.broken.is_empty() && report.alive == alive, "{report:?}");
    // An older lbctl still rolls back.
    let rolled_back =
        scene.agent.lbctl(&["-o", "json", "rollback", SERVICE, "--flows", "reset"])?.done()?.json()?;
    ensure!(rolled_back["warnings"].to_string().contains("layout 2"), "{rolled_back:#}");
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1_000, count: 300 }).flows(300);
    let tally = Load::run(scene.lab.client(0), load)?;
    let canary = tally.answered_by("canary0") + tally.answered_by("canary1");
    ensure!(tally.failed() == 0 && canary == 0, "{tally:?}");
    // `lbctl detach` takes off whatever layout there is.
    scene.lbctl(&["detach"])?;
    ensure!(!scene.agent.places().pins.exists(), "{:?}", layouts(&scene)?);
    Ok(())
}
