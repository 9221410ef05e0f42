//! What Prometheus says has a part in it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::claim;
use lb_tests::prometheus::Prometheus;
use lb_tests::scene::{SERVICE, Scene};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{SOON, plan, reason, rollout, traffic, wait_for};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a figure of a real Prometheus takes a canary back", beyond),
        claim("a figure within its bounds lets a rollout go on, which waits once Prometheus is gone", within),
        claim("without Prometheus a rollout does as configured", away),
    ]
}

/// The agent's own figures are as good as anybody's.
const RATE: &str = r#"sum(rate(lb_connections_total{frontend="{{service}}",group="{{pool}}"}[{{window}}]))"#;

fn metric(bounds: &str) -> String {
    format!(
        "[[service.rollout.metric]]\nname = \"rate\"\nquery = '{RATE}'\nwindow = \"2s\"\n\
         interval = \"500ms\"\ntimeout = \"1s\"\nfailure_limit = 2\n{bounds}\n"
    )
}

fn prometheus(scene: &Scene) -> Result<Prometheus> {
    Prometheus::start(scene.lab.balancer(), &scene.agent.places().metrics)
}

fn beyond() -> Result<()> {
    let rules = format!("shares = [20]\nhold = \"60s\"\n{}", metric("max = 50"));
    let scene = Scene::start(plan(&rules))?;
    let _prometheus = prometheus(&scene)?;
    let _load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "rolled-back")?;
    let why = reason(&status);
    ensure!(why.starts_with("rate: ") && why.ends_with("is more than 50"), "{status:#}");
    Ok(())
}

fn within() -> Result<()> {
    // A fifth of the clients is a quarter of the others, two fifths are two thirds.
    let shadow = metric("max = 0.001\nshadow = true").replace("name = \"rate\"", "name = \"never\"");
    let rules = format!(
        "shares = [20, 40]\nhold = \"3s\"\npatience = \"60s\"\nmin_clients = 50\n{}{shadow}",
        metric("min = 1\nmin_ratio = 0.05\nmax_ratio = 1.2")
    );
    let scene = Scene::start(plan(&rules))?;
    let mut prometheus = prometheus(&scene)?;
    let _load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let told = |status: &Value| status["queries"][1]["verdict"] == "worse";
    let status = until(&scene, |status| status["step"] == 2 && figure(status).is_some() && told(status))?;
    let measured = figure(&status).unwrap_or_default();
    ensure!((10.0..900.0).contains(&measured), "of 1500 a second: {status:#}");
    ensure!(status["queries"][1]["shadow"] == true, "it is only talked about: {status:#}");

    prometheus.kill9();
    let status = until(&scene, |status| status["verdict"] == "no-data")?;
    let why = status["verdict_reason"].as_str().unwrap_or_default();
    ensure!(why.contains("cannot connect"), "{status:#}");
    std::thread::sleep(Duration::from_secs(4));
    let status = rollout(&scene)?;
    ensure!(status["phase"] == "holding" && status["step"] == 2, "it waits: {status:#}");
    Ok(())
}

fn figure(status: &Value) -> Option<f64> {
    status["queries"][0]["canary"].as_f64()
}

fn until(scene: &Scene, what: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + SOON;
    loop {
        let status = rollout(scene)?;
        if what(&status) {
            return Ok(status);
        }
        ensure!(
            Instant::now() < deadline && status["phase"] != "rolled-back",
            "{status:#}\n{}",
            scene.agent.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn away() -> Result<()> {
    let rules = |on_no_data: &str| {
        format!(
            "shares = [20]\nhold = \"1s\"\npatience = \"1s\"\nmin_clients = 10\n{}on_no_data = \"{on_no_data}\"",
            metric("max = 1e9")
        )
    };
    let mut scene = Scene::start(plan(&rules("fail")))?;
    let _load = traffic(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    let status = wait_for(&scene, "rolled-back")?;
    ensure!(
        reason(&status).starts_with("no data: rate: http://127.0.0.1:9090: cannot connect"),
        "{status:#}"
    );

    let config = plan(&rules("pass")).config(&scene.lab);
    scene.agent.write_config(&config)?;
    let path = scene.agent.places().config.display().to_string();
    scene.lbctl(&["apply", "-f", &path])?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    wait_for(&scene, "soaking")?;
    Ok(())
}
