//! What an operator does by `lbctl`, and what is left of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Sources};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a weight moves its share of clients, and survives a reload", weight),
        claim("a configuration with mistakes changes nothing", mistakes),
        claim("a dry run shows what would move, and moves nothing", dry_run),
        claim("detach takes everything off", || detach(false)),
        claim("detach works with the agent dead", || detach(true)),
        claim("stopping the agent stops no traffic", stop),
        claim("history names every change of a service", history),
    ]
}

fn share_of(scene: &Scene, name: &str) -> Result<f64> {
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(2000)).flows(2000);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(tally.share(&[name]))
}

fn file(scene: &Scene, plan: &Plan) -> Result<String> {
    let path = lb_tests::private_dir("applied")?.join("lb.toml");
    std::fs::write(&path, plan.config(&scene.lab))?;
    Ok(path.to_string_lossy().into_owned())
}

fn weight() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "300"])?;
    let share = share_of(&scene, "stable0")?;
    ensure!((0.70..0.80).contains(&share), "three quarters expected, {share} seen");
    let path = file(&scene, &scene.plan)?;
    scene.lbctl(&["apply", "-f", &path])?;
    let status = scene.json(&["status"])?;
    ensure!(status["services"][0]["overrides"][0]["now"] == "300", "{status:#}");
    scene.lbctl(&["set", "weight", &scene.backend(0), "0"])?;
    ensure!(share_of(&scene, "stable0")? == 0.0, "weight 0 takes no new flows");
    Ok(())
}

fn mistakes() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let revision = scene.json(&["status"])?["revision"].clone();
    let path = lb_tests::private_dir("broken")?.join("lb.toml");
    let broken = scene.plan.config(&scene.lab).replace("mode = \"nat\"", "mode = \"natt\"\nprot = 7");
    std::fs::write(&path, broken)?;
    let path = path.to_string_lossy().into_owned();
    for verb in [&["validate", &path][..], &["apply", "-f", &path]] {
        let reply = scene.agent.lbctl(verb)?.exits(1)?;
        let words = reply.stdout + &reply.stderr;
        ensure!(words.contains("natt") && words.contains("prot") && words.contains("lb.toml:"), "{words}");
    }
    ensure!(scene.json(&["status"])?["revision"] == revision);
    ensure!(share_of(&scene, "stable0")? > 0.4);
    Ok(())
}

fn dry_run() -> Result<()> {
    let scene = Scene::start(Plan { stable: 3, canary: 0, ..Plan::default() })?;
    let path = file(&scene, &Plan { stable: 2, ..scene.plan.clone() })?;
    let shown = scene.json(&["apply", "-f", &path, "--dry-run"])?;
    let moved = shown["moved"][0]["slots_moved_percent"].as_f64().context("a share")?;
    ensure!((33.0..45.0).contains(&moved), "a third at least moves: {shown:#}");
    ensure!(shown["dry_run"] == true && shown["changed"] == true, "{shown:#}");
    ensure!(share_of(&scene, "stable2")? > 0.25, "nothing was moved");
    let applied = scene.json(&["apply", "-f", &path])?;
    ensure!(applied["moved"] == shown["moved"], "the dry run told the truth");
    ensure!(share_of(&scene, "stable2")? == 0.0);
    let again = scene.json(&["apply", "-f", &path])?;
    ensure!(again["changed"] == false, "the same file twice changes nothing: {again:#}");
    Ok(())
}

fn detach(agent_dead: bool) -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    if agent_dead {
        scene.agent.kill9();
    }
    let setting = || -> Result<String> {
        let mut show = std::process::Command::new("sysctl");
        show.args(["-n", "net.ipv4.conf.eth0.accept_local"]);
        Ok(String::from_utf8(scene.lab.balancer().output(show)?.stdout)?.trim().to_owned())
    };
    ensure!(setting()? == "1");
    let pins = scene.agent.places().pins.clone();
    ensure!(pins.join("v1").join("lb").exists(), "the program is pinned for everybody to measure");
    scene.lbctl(&["detach"])?;
    ensure!(!pins.join("v1").exists(), "pins are left in {}", pins.display());
    ensure!(setting()? == "0", "a setting of the host stays changed");
    let mut show = std::process::Command::new("ip");
    show.args(["-d", "addr"]);
    let shown = String::from_utf8(scene.lab.balancer().output(show)?.stdout)?;
    let vip = scene.target().ip().to_string();
    ensure!(!shown.contains(&vip) && !shown.contains("prog/xdp"), "{shown}");
    Ok(())
}

fn stop() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.agent.stop(Duration::from_secs(5))?;
    ensure!(share_of(&scene, "stable0")? > 0.4);
    scene.agent.lbctl(&["status"])?.exits(6)?;
    Ok(())
}

fn history() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "split", SERVICE, "10"])?;
    scene.lbctl(&["rollback", SERVICE])?;
    let history = scene.lbctl(&["history", SERVICE])?;
    ensure!(history.contains("0 % -> 10 %") && history.contains("10 % -> 0 %"), "{history}");
    Ok(())
}
