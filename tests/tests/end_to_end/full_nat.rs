//! `full-nat`: backends that have no way back to clients but through the balancer's address.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::{Frame, RawSocket, Tcp};
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("3 000 full-nat sessions live through changes, a kill -9 and a new program", survives),
        claim("full-nat refuses whom it has no port for, and says so", exhausted),
        claim("a flood of SYNs leaves full-nat sessions alone", flooded),
        claim("a full-nat backend is told its client in a TCP option", told),
        claim("a full-nat service explains the session of a flow", explained),
    ]
}

fn lines() -> Plan {
    Plan { mode: "full-nat", lines: true, ..Plan::default() }
}

fn crowd(scene: &Scene, count: u32) -> PoolSpec {
    PoolSpec::new(scene.target(), count).from(Sources::crowd(count)).interval(Duration::from_secs(2))
}

fn survives() -> Result<()> {
    const CONNECTIONS: u32 = 3_000;
    let mut scene = Scene::start(Plan { stable: 3, ..lines() })?;
    scene.lbctl(&["set", "split", SERVICE, "20"])?;
    let pool = Pool::open(scene.lab.client(0), crowd(&scene, CONNECTIONS))?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS), "{before:?}\n{}", scene.lbctl(&["status"])?);

    let flows = scene.json(&["get", "flows", SERVICE])?;
    let flows = flows["flows"].as_array().context("flows")?;
    ensure!(flows.iter().any(|flow| flow["kind"] == "session"), "{flows:?}");

    scene.lbctl(&["set", "weight", &scene.backend(0), "0"])?;
    scene.lbctl(&["set", "split", SERVICE, "70"])?;
    scene.agent.kill9();
    ensure!(pool.check()?.broken.is_empty(), "without an agent");
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    scene.lbctl(&["rollback", SERVICE])?;
    scene.lbctl(&["set", "state", &scene.backend(1), "drain"])?;
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");

    // What the agent counts is what there is.
    std::thread::sleep(Duration::from_secs(3));
    let status = scene.json(&["status"])?;
    ensure!(status["dataplane"]["sessions"]["used"] == CONNECTIONS, "{:#}", status["dataplane"]);
    let rows = scene.json(&["get", "backends", SERVICE])?;
    for row in rows["backends"].as_array().context("rows")? {
        let name = row["server"].as_str().unwrap_or_default();
        ensure!(row["tracked_flows"].as_u64().is_some_and(|flows| flows > 100), "{name}: {rows:#}");
    }
    // A removed one finishes what it has.
    Ok(())
}

fn exhausted() -> Result<()> {
    let dataplane = "snat_ports = \"5000-5007\"".to_owned();
    let scene = Scene::start(Plan { canary: 0, dataplane, ..lines() })?;
    // Eight for each of two backends, and they stay taken while the backends may have them in TIME_WAIT.
    let load =
        LoadSpec::lines(scene.target()).from(Sources::crowd(200)).flows(200).rate(400.0).concurrency(4);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.answered() == 16, "{tally:?}");
    ensure!(tally.failed.get("refused") == Some(&184), "they are told at once: {tally:?}");
    Ok(())
}

fn flooded() -> Result<()> {
    let dataplane = String::new();
    let scene = Scene::start(Plan { canary: 0, dataplane, ..lines() })?;
    let pool = Pool::open(scene.lab.client(0), crowd(&scene, 500))?;
    let before = pool.check()?;
    ensure!(before.alive() == 500, "{before:?}");

    // More handshakes than there is room for, several times over, from addresses that never answer.
    let client = scene.lab.client(0);
    let socket = RawSocket::open(client, &client.port().name)?;
    for n in 0..60_000_u32 {
        let from = std::net::Ipv4Addr::from_bits(0xc612_0000 + n % 50_000);
        let frame = Frame::ethernet(client.mac(), scene.lab.balancer().mac())
            .ip(from.into(), scene.target().ip())
            .tcp(Tcp::new((n % 60_000) as u16 + 1024, PORT).syn().sequence(n))
            .build();
        socket.send(&frame)?;
        if n % 20_000 == 10_000 {
            let report = pool.check()?;
            ensure!(report.broken.is_empty(), "under the flood: {report:?}");
        }
    }
    let after = pool.check()?;
    ensure!(after.broken.is_empty() && after.alive == before.alive, "{after:?}");
    // Whoever is real still gets in.
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 200 }).flows(200);
    let tally = Load::run(client, load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(())
}

/// Looks at what arrives at the backend.
fn told() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let service = "toa = true".to_owned();
        let scene = Scene::start(Plan { stable: 1, canary: 0, service, family, inner: family, ..lines() })?;
        let backend = scene.lab.backend(0);
        let socket = RawSocket::open(backend, &backend.port().name)?;
        let load = LoadSpec::lines(scene.target()).from(Sources::crowd(1)).flows(1);
        let tally = Load::run(scene.lab.client(0), load)?;
        ensure!(tally.failed() == 0, "{tally:?}");
        let client = scene.lab.client(0).crowd().member(0, family);
        let mut address = vec![254, if family == Family::V4 { 8 } else { 20 }];
        let octets = match client {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let found = socket.receive(Duration::from_secs(5), |frame| {
            let tcp = if family == Family::V4 { 34 } else { 54 };
            let option = frame.frame.get(tcp + 20..).unwrap_or_default();
            !frame.outgoing
                && option.starts_with(&address)
                && option.get(4..).is_some_and(|at| at.starts_with(&octets))
        })?;
        ensure!(found.is_some(), "no segment told the backend of {client}");
        address.clear();
    }
    Ok(())
}

fn explained() -> Result<()> {
    let scene = Scene::start(Plan { stable: 1, canary: 0, ..lines() })?;
    let pool = Pool::open(scene.lab.client(0), crowd(&scene, 1))?;
    ensure!(pool.check()?.alive() == 1);
    let flows = scene.json(&["get", "flows", SERVICE])?;
    let flow = &flows["flows"][0];
    let from = format!("{}:{}", flow["client"].as_str().context("a client")?, flow["port"]);
    let to = scene.target().to_string();
    let explanation = scene.json(&["explain", "--from", &from, "--to", &to])?;
    let steps = explanation["steps"].as_array().context("steps")?;
    let text = steps.iter().find(|step| step["title"] == "session").context("a step about the session")?;
    let text = text["text"].as_str().context("a text")?;
    let source = scene.lab.balancer().v4().to_string();
    ensure!(text.contains("established session") && text.contains(&source), "{text}");
    Ok(())
}
