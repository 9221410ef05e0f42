//! `trace` and `capture`: what the balancer does with packets, told by the program itself.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::private_dir;
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![claim("trace and capture tell of packets, cost no connection, and leave nothing behind", whole)]
}

const SOON: Duration = Duration::from_secs(30);

/// The programs on the balancer's interfaces.
fn programs(scene: &Scene) -> Result<Vec<u64>> {
    let mut ip = Command::new("ip");
    ip.args(["-json", "-details", "link"]);
    let output = scene.lab.balancer().namespace().output(ip)?;
    let links: Value = serde_json::from_slice(&output.stdout)?;
    let links = links.as_array().context("no links")?;
    Ok(links.iter().filter_map(|link| link["xdp"]["prog"]["id"].as_u64()).collect())
}

fn wait_until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !is()? {
        ensure!(Instant::now() < deadline, "not {what} after {SOON:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn request(scene: &Scene) -> Result<()> {
    let tally = Load::run(scene.lab.client(0), LoadSpec::lines(scene.target()).flows(1).timeout(SOON))?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(())
}

fn whole() -> Result<()> {
    let scene = Scene::start(Plan { lines: true, ..Plan::default() })?;
    let before = programs(&scene)?;
    ensure!(!before.is_empty(), "the program is on no interface");
    let pool = Pool::open(
        scene.lab.client(0),
        PoolSpec::new(scene.target(), 100).from(Sources::Crowd { first: 30_000, count: 100 }),
    )?;

    // What is decided, of packets that match.
    let client = scene.lab.client(0).v4().to_string();
    let mut tracer = scene.agent.begin_lbctl(&[
        "trace",
        "--host",
        &client,
        "--protocol",
        "tcp",
        "--for",
        "60s",
        "-c",
        "8",
    ])?;
    wait_until("traced", || Ok(programs(&scene)? != before))?;
    request(&scene)?;
    tracer.wait(SOON)?;
    let told = tracer.log();
    let vip = scene.target().to_string();
    let syn = told.lines().find(|line| line.contains("tcp syn")).with_context(|| told.clone())?;
    ensure!(syn.contains(&format!("> {vip} tcp syn")) && syn.contains("transmit by "), "{syn}");
    ensure!(syn.contains(&format!("(forwarded, new flow of {SERVICE}/stable/")), "{syn}");
    ensure!(
        told.lines().any(|line| line.contains("(replied, ") && line.contains(&format!("> {client}:"))),
        "{told}"
    );
    wait_until("without a tracer again", || Ok(programs(&scene)? == before))?;

    // A second one is refused; one that is killed leaves nothing.
    let mut tracer = scene.agent.begin_lbctl(&["trace", "--for", "60s", "--port", "1"])?;
    wait_until("traced", || Ok(programs(&scene)? != before))?;
    let second = scene.agent.lbctl(&["trace"])?.exits(1)?;
    ensure!(second.stderr.contains("LB0529"), "{}", second.stderr);
    tracer.kill9();
    wait_until("without a tracer again", || Ok(programs(&scene)? == before))?;

    // Time is over, whoever listens.
    let begin = Instant::now();
    let none = scene.agent.lbctl(&["trace", "--for", "1s", "--host", "192.0.2.1"])?.done()?;
    ensure!(none.stderr.contains("no packet matched in ") && begin.elapsed() < SOON, "{}", none.stderr);
    wait_until("without a tracer again", || Ok(programs(&scene)? == before))?;

    // The time begins once the program is there, however long it takes to load.
    let mut tracer = scene.agent.begin_lbctl(&["trace", "--for", "1s", "--host", &client])?;
    while tracer.finished()?.is_none() {
        request(&scene)?;
    }
    ensure!(tracer.log().contains("tcp syn"), "{}", tracer.log());
    wait_until("without a tracer again", || Ok(programs(&scene)? == before))?;

    // In and out of the balancer, in a file that others read.
    let file = private_dir("capture")?.join("client.pcapng");
    let path = file.to_string_lossy().into_owned();
    let mut capture = scene.agent.begin_lbctl(&[
        "capture",
        "--host",
        &client,
        "--port",
        &PORT.to_string(),
        "--for",
        "60s",
        "-c",
        "3",
        "-w",
        &path,
    ])?;
    wait_until("traced", || Ok(programs(&scene)? != before))?;
    request(&scene)?;
    capture.wait(SOON)?;
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-nr", &path]);
    let output = tcpdump.output()?;
    let packets = String::from_utf8_lossy(&output.stdout).into_owned();
    let backends: Vec<String> =
        (0..2).map(|i| format!("{}.{}", scene.lab.backend(i).v4(), scene.plan.port)).collect();
    let dotted = format!("{}.{PORT}", scene.target().ip());
    let syns = |to: &str| packets.lines().filter(|it| it.contains(&format!("> {to}: Flags [S]"))).count();
    ensure!(syns(&dotted) == 1, "as it came in: {packets}");
    ensure!(backends.iter().map(|to| syns(to)).sum::<usize>() == 1, "as it went out: {packets}");
    let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
    ensure!(text.contains(&format!("transmit forwarded {SERVICE}/stable/")), "the decision is a comment");

    wait_until("without a tracer again", || Ok(programs(&scene)? == before))?;
    let report = pool.check()?;
    ensure!(report.broken.is_empty(), "{report:?}");
    let pins: Vec<_> =
        fs::read_dir(scene.agent.places().pins.join("v1"))?.flatten().map(|it| it.file_name()).collect();
    let stages = pins.iter().filter(|name| name.to_string_lossy().starts_with("STAGES-")).count();
    ensure!(stages == 1, "{pins:?}");
    let lines = scene.agent.lbctl(&["get", "events"])?.done()?.stdout;
    ensure!(lines.contains("trace_started") && lines.contains("trace_ended"), "{lines}");
    Ok(())
}
