//! What is written down of every change, what can be had back of it, and what a crash or a full disk leaves.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::Reply;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Finished, claim};
use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("an undo brings back weights, states and split, and lowers a split at once", undo),
        claim("an undo brings back a configuration, and a service that was removed", undo_of_an_apply),
        claim("what changes nothing makes no revision, and an undo finds what came before it", nothing_new),
        claim("a service that gets another name keeps its split, its overrides and its flows", another_name),
        claim("keys by which living flows are found cannot change", living_keys),
        claim("an agent starts whatever was written into its file meanwhile, and says what waits", waits),
        claim("an undo leaves the clients of a canary where they are", same_clients),
        claim(
            "a rollout whose service is removed is over, also if the service comes back",
            removed_in_rollout,
        ),
        claim("a rollback without an agent outlives the maps", rolled_back_for_good),
        claim("a rollout that is aborted with a full disk is written down later", aborted_on_a_full_disk),
        claim("what cannot be undone while it runs is refused with its reason", undo_refused),
        claim("an override survives reloads and restarts until the file changes its value", overrides),
        claim("a configuration file with mistakes is rejected by SIGHUP and changes nothing", rejected),
        claim("a corrupt journal is refused with its place, and lbd --recover goes on before it", recover),
        claim("with a full disk changes are refused, rollback works and is written down later", full_disk),
        claim("an agent killed at any moment of a change has the old state or the new one", killed),
        claim("a rollback answers while the agent is busy", busy),
    ]
}

fn revision(scene: &Scene) -> Result<u64> {
    scene.json(&["get", "services", SERVICE])?["services"][0]["revision"].as_u64().context("a revision")
}

fn percent(scene: &Scene) -> Result<f64> {
    let services = scene.json(&["get", "services", SERVICE])?;
    let split = &services["services"][0]["split"];
    let (wanted, new) =
        (split["percent"].as_f64().context("percent")?, split["new_ratio"].as_f64().context("new_ratio")?);
    ensure!((wanted - new * 100.0).abs() < 1e-4, "agent and kernel do not agree: {split:#}");
    Ok(wanted)
}

/// The values that differ between two revisions, as `PATH OLD NEW`.
fn differences(scene: &Scene, from: u64, to: u64) -> Result<Vec<String>> {
    let diff = scene.json(&["diff", SERVICE, &from.to_string(), &to.to_string()])?;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let line = |one: &Value| format!("{} {} {}", text(&one["path"]), text(&one["from"]), text(&one["to"]));
    Ok(diff["changes"].as_array().context("changes")?.iter().map(line).collect())
}

fn row(scene: &Scene, i: usize) -> Result<Value> {
    let rows = scene.json(&["get", "backends", SERVICE])?;
    let name = scene.backend(i);
    let found = rows["backends"]
        .as_array()
        .context("rows")?
        .iter()
        .find(|row| name.ends_with(row["name"].as_str().unwrap_or("?")) && row["terminating"] == false);
    found.cloned().with_context(|| format!("no {name} in {rows:#}"))
}

fn canary_gets(scene: &Scene, first: u32) -> Result<u64> {
    let load = LoadSpec::http(scene.target(), "/").from(Sources::Crowd { first, count: 500 }).flows(500);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(tally.answered_by("canary0"))
}

fn undo() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let begin = revision(&scene)?;
    let hash = |scene: &Scene, n: u64| -> Result<String> {
        let history = scene.json(&["history", SERVICE])?;
        let all = history["revisions"].as_array().context("revisions")?;
        let found = all.iter().find(|one| one["revision"] == n).context("that revision")?;
        Ok(found["hash"].as_str().context("a hash")?.to_owned())
    };
    scene.lbctl(&["set", "weight", &scene.backend(0), "30", "--reason", "slow disk"])?;
    scene.lbctl(&["set", "state", &scene.backend(1), "drain"])?;
    let set = scene.json(&["set", "split", SERVICE, "40"])?;
    ensure!(set["service_revision"] == begin + 3, "{set:#}");
    ensure!(set["revision"] == scene.json(&["status"])?["revision"], "the agent's: {set:#}");
    let name = scene.backend(0).rsplit('/').next().context("a name")?.to_owned();
    let other = scene.backend(1).rsplit('/').next().context("a name")?.to_owned();
    ensure!(
        differences(&scene, begin, begin + 3)?
            == [
                format!("pool.stable.backend.{name}.weight.override - 30"),
                format!("pool.stable.backend.{other}.state.override - drain"),
                "split 0 % 40 %".to_owned(),
            ]
    );
    ensure!(canary_gets(&scene, 0)? > 100);

    let undone = scene.json(&["undo", SERVICE, "--to", &begin.to_string(), "--reason", "all of it"])?;
    ensure!(undone["service_revision"] == begin + 4, "{undone:#}");
    ensure!(canary_gets(&scene, 1000)? == 0, "after an undo returns no new flow enters the canary");
    ensure!(percent(&scene)? == 0.0);
    ensure!(row(&scene, 0)?["weight"] == 100 && row(&scene, 1)?["state"] == "ready");
    ensure!(differences(&scene, begin, begin + 4)?.is_empty());
    ensure!(
        hash(&scene, begin)? == hash(&scene, begin + 4)? && hash(&scene, begin)? != hash(&scene, begin + 3)?
    );

    // An undo can be undone: that raises the split again.
    scene.lbctl(&["undo", SERVICE])?;
    ensure!(percent(&scene)? == 40.0 && row(&scene, 0)?["weight"] == 30);
    ensure!(canary_gets(&scene, 2000)? > 100);
    let again = scene.json(&["undo", SERVICE, "--to", &(begin + 3).to_string()])?;
    ensure!(again["changed"] == false && again["service_revision"] == begin + 5, "{again:#}");
    let history = scene.lbctl(&["history", SERVICE])?;
    ensure!(history.contains("slow disk") && history.contains("all of it"), "{history}");
    ensure!(history.contains(&format!("undo of {SERVICE}: as at its revision {begin}")), "{history}");

    let mut scene = scene;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(percent(&scene)? == 40.0 && row(&scene, 0)?["weight"] == 30, "it outlives the agent");
    ensure!(revision(&scene)? == begin + 5);
    Ok(())
}

fn apply(scene: &Scene, text: &str) -> Result<Reply> {
    let path = lb_tests::private_dir("applied")?.join("lb.toml");
    fs::write(&path, text)?;
    scene.agent.lbctl(&["-o", "json", "apply", "-f", &path.to_string_lossy()])
}

fn undo_of_an_apply() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    let begin = revision(&scene)?;
    let whole = scene.plan.config(&scene.lab);
    let smaller = Plan { stable: 1, canary: 0, ..scene.plan.clone() }.config(&scene.lab);
    apply(&scene, &smaller)?.done()?;
    ensure!(row(&scene, 1).is_err());
    scene.lbctl(&["undo", SERVICE])?;
    ensure!(row(&scene, 1)?["takes_new"] == true, "the backend is back");
    ensure!(scene.json(&["get", "services", SERVICE])?["services"][0]["canary"] == "canary");

    let without = whole.split("[[service]]").next().context("a head")?.to_owned();
    apply(&scene, &without)?.done()?;
    scene.agent.lbctl(&["set", "split", SERVICE, "5"])?.exits(1)?;
    let gone = begin + 3;
    let lost = differences(&scene, gone - 1, gone)?;
    ensure!(lost.iter().any(|line| line.starts_with("vip ") && line.ends_with(" -")), "{lost:?}");
    scene.lbctl(&["undo", SERVICE])?;
    ensure!(revision(&scene)? == gone + 1);
    scene.wait_taking(3, Duration::from_secs(10))?;
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(200)).flows(200);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");

    // The file has not changed, so what was undone stands after a restart.
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(revision(&scene)? == gone + 1);
    Ok(())
}

fn nothing_new() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let agents = || Ok::<_, anyhow::Error>(scene.json(&["status"])?["revision"].clone());
    let weight = scene.backend(0);
    for change in [
        &["set", "split", SERVICE, "40"][..],
        &["set", "weight", &weight, "30"],
        &["set", "health", &weight, "up"],
        &["set", "state", &weight, "drain"],
        &["rollback", SERVICE],
    ] {
        scene.lbctl(change)?;
        let (begin, before) = (revision(&scene)?, agents()?);
        scene.lbctl(change)?;
        ensure!(revision(&scene)? == begin && agents()? == before, "{change:?} made a revision");
    }
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    ensure!(events.matches("rollback of").count() == 1, "{events}");
    scene.lbctl(&["undo", SERVICE])?;
    ensure!(percent(&scene)? == 40.0, "the rollback is undone");
    Ok(())
}

fn another_name() -> Result<()> {
    let mut scene = Scene::start(Plan { lines: true, ..Plan::default() })?;
    scene.lbctl(&["set", "split", SERVICE, "40"])?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "30"])?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 300).from(Sources::crowd(300)))?;
    let config = scene.plan.config(&scene.lab).replace(&format!("\"{SERVICE}\""), "\"shop\"");
    reload(&mut scene, &config)?;
    wait_for("the reload", || Ok(scene.lbctl(&["get", "services", "shop"]).is_ok()))?;
    let services = scene.json(&["get", "services", "shop"])?;
    ensure!(services["services"][0]["split"]["percent"] == 40.0, "{services:#}");
    let backends = scene.json(&["get", "backends", "shop"])?;
    ensure!(backends["backends"][0]["weight"] == 30, "{backends:#}");
    let report = pool.check()?;
    ensure!(report.broken.is_empty(), "{report:?}");
    let canary = |count: u64| -> Result<u64> {
        let load =
            LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 500 }).flows(count);
        Ok(Load::run(scene.lab.client(0), load)?.answered_by("canary0"))
    };
    ensure!(canary(500)? > 100);
    scene.lbctl(&["rollback", "shop"])?;
    ensure!(canary(500)? == 0);
    // At another address it is another entry of the kernel's, with the same share.
    scene.lbctl(&["set", "split", "shop", "30"])?;
    let elsewhere = config.replace("port = 80\n", "port = 81\n");
    reload(&mut scene, &elsewhere)?;
    wait_for("the reload", || Ok(scene.json(&["get", "services", "shop"])?["services"][0]["port"] == 81))?;
    let services = scene.json(&["get", "services", "shop"])?;
    let split = &services["services"][0]["split"];
    ensure!(
        split["percent"] == 30.0 && split["new_ratio"].as_f64().is_some_and(|new| (new - 0.3).abs() < 1e-6),
        "{split:#}"
    );
    Ok(())
}

fn living_keys() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "split", SERVICE, "30"])?;
    let before = revision(&scene)?;
    for (line, what) in [
        ("backend_key = \"source-ip\"", "backend_key"),
        ("split_key = \"5-tuple\"", "split_key"),
        ("mode = \"full-nat\"", "full-nat"),
    ] {
        let config = match what {
            "full-nat" => Plan { mode: "full-nat", ..scene.plan.clone() },
            _ => Plan { service: line.to_owned(), ..scene.plan.clone() },
        };
        let refused = apply(&scene, &config.config(&scene.lab))?.exits(1)?;
        ensure!(refused.stderr.contains("LB0512") && refused.stderr.contains(what), "{}", refused.stderr);
    }
    ensure!(revision(&scene)? == before);
    Ok(())
}

fn waits() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "split", SERVICE, "30"])?;
    scene.agent.kill9();
    // A running agent would refuse both.
    let without = Plan { canary: 0, ..scene.plan.clone() }.config(&scene.lab);
    let larger = Plan { service: "table_size = 32771".to_owned(), ..scene.plan.clone() }.config(&scene.lab);
    for config in [without, larger] {
        scene.agent.write_config(&config)?;
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
        ensure!(canary_gets(&scene, 0)? == 0, "the pool that went gets new flows");
        scene.agent.kill9();
    }
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    let findings = scene.json(&["status"])?["findings"].clone();
    let findings = findings.as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["code"] == "LB1015").context("a finding")?;
    ensure!(found["message"].as_str().unwrap_or_default().contains("table_size"), "{found:#}");
    let refused = scene.agent.lbctl(&["set", "split", SERVICE, "10"])?.exits(1)?;
    ensure!(refused.stderr.contains("tables are not as they should be"), "{}", refused.stderr);
    Ok(())
}

fn same_clients() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let begin = revision(&scene)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    scene.lbctl(&["set", "split", SERVICE, "20"])?;
    let before = revision(&scene)?;
    ensure!(differences(&scene, begin, before)?.iter().any(|line| line.starts_with("salt ")));
    scene.lbctl(&["undo", SERVICE, "--to", &begin.to_string()])?;
    ensure!(differences(&scene, before, before + 1)? == ["split 20 % 0 %"]);
    Ok(())
}

fn phase(scene: &Scene) -> Result<String> {
    let status = scene.json(&["rollout", "status", SERVICE])?;
    Ok(status["phase"].as_str().context("a phase")?.to_owned())
}

/// A rollout, at its first step.
fn in_rollout(scene: &Scene) -> Result<()> {
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary", "--steps", "10,50"])?;
    ensure!(phase(scene)? == "holding" && percent(scene)? == 10.0);
    Ok(())
}

fn removed_in_rollout() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    in_rollout(&scene)?;
    let whole = scene.plan.config(&scene.lab);
    apply(&scene, whole.split("[[service]]").next().context("a head")?)?.done()?;
    let events = scene.lbctl(&["get", "events", "-o", "json"])?;
    ensure!(events.contains("there is no service of that name any more"), "{events}");
    scene.lbctl(&["undo", SERVICE])?;
    ensure!(phase(&scene)? == "rolled-back" && percent(&scene)? == 0.0);
    // So it is where the pool alone goes, before anybody is there.
    scene.lbctl(&["set", "state", &scene.backend(2), "maint"])?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    ensure!(phase(&scene)? == "preparing");
    apply(&scene, &Plan { canary: 0, ..scene.plan.clone() }.config(&scene.lab))?.done()?;
    let events = scene.lbctl(&["get", "events", "-o", "json"])?;
    ensure!(
        phase(&scene)? == "failed" && events.contains("its pool was taken out of the configuration"),
        "{events}"
    );
    Ok(())
}

fn rolled_back_for_good() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    in_rollout(&scene)?;
    scene.agent.kill9();
    scene.lbctl(&["rollback", SERVICE])?;
    // As after a reboot: the journal is all that is left.
    scene.lbctl(&["detach"])?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(phase(&scene)? == "rolled-back" && percent(&scene)? == 0.0);
    Ok(())
}

fn aborted_on_a_full_disk() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.agent.kill9();
    small_disk(&scene.agent.places().state)?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    in_rollout(&scene)?;
    fill_last_page(&scene)?;
    let filler = scene.agent.places().state.join("filler");
    fill(&filler)?;
    let begin = revision(&scene)?;
    scene.lbctl(&["rollout", "abort", SERVICE])?;
    ensure!(phase(&scene)? == "rolled-back" && percent(&scene)? == 0.0);
    fs::remove_file(&filler)?;
    wait_for("the record", || {
        let newest = scene.json(&["history", SERVICE])?["revisions"][0].clone();
        Ok(newest["revision"].as_u64() > Some(begin) && newest["summary"].to_string().contains("rolled-back"))
    })
}

fn undo_refused() -> Result<()> {
    let scene = Scene::start(Plan::default())?;
    let begin = revision(&scene)?;
    let first = scene.agent.lbctl(&["undo", SERVICE, "--to", "99"])?.exits(1)?;
    ensure!(
        first.stderr.contains("LB0519") && first.stderr.contains("has no revision 99"),
        "{}",
        first.stderr
    );
    let none = scene.agent.lbctl(&["undo", SERVICE])?.exits(1)?;
    ensure!(begin == 1 && none.stderr.contains("is its first one"), "{}", none.stderr);
    // The service goes, and comes back with a larger table: the old size cannot be had while it has flows.
    let whole = scene.plan.config(&scene.lab);
    let without = whole.split("[[service]]").next().context("a head")?.to_owned();
    apply(&scene, &without)?.done()?;
    let larger = Plan { service: "table_size = 32771".to_owned(), ..scene.plan.clone() }.config(&scene.lab);
    apply(&scene, &larger)?.done()?;
    scene.lbctl(&["set", "split", SERVICE, "30"])?;
    let before = revision(&scene)?;
    let refused = scene.agent.lbctl(&["undo", SERVICE, "--to", &begin.to_string()])?.exits(1)?;
    ensure!(refused.stderr.contains("LB0512") && refused.stderr.contains("table_size"), "{}", refused.stderr);
    ensure!(revision(&scene)? == before && percent(&scene)? == 30.0, "a refused undo changes nothing");
    Ok(())
}

fn reload(scene: &mut Scene, config: &str) -> Result<()> {
    scene.agent.write_config(config)?;
    scene.agent.process().signal(Signal::SIGHUP)
}

fn wait_for(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so()? {
        ensure!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn overrides() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "weight", &scene.backend(0), "30"])?;
    scene.lbctl(&["set", "state", &scene.backend(1), "drain"])?;
    let held = |scene: &Scene| -> Result<Vec<(String, String, String)>> {
        let status = scene.json(&["status"])?;
        let all = status["services"][0]["overrides"].as_array().context("overrides")?.clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for one in &all {
            ensure!(text(&one["actor"]) == "root" && text(&one["since"]).contains('T'), "{one:#}");
        }
        Ok(all.iter().map(|one| (text(&one["path"]), text(&one["configured"]), text(&one["now"]))).collect())
    };
    let both = held(&scene)?;
    ensure!(
        both.len() == 2 && both.iter().any(|one| (one.1.as_str(), one.2.as_str()) == ("100", "30")),
        "{both:?}"
    );

    // As an operator sees it: in 80 columns, under the name that takes it back.
    let status = scene.agent.run("lbctl", &["status"], &[("COLUMNS", "80")])?.stdout;
    ensure!(status.lines().all(|line| line.chars().count() <= 80), "{status}");
    let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
    for back in [format!("weight {} 100", scene.backend(0)), format!("state {} ready", scene.backend(1))] {
        ensure!(words.contains(&format!("`lbctl set {back}` takes it back")), "no {back} in {status}");
    }

    // Another value of the file, and a restart: both overrides stay.
    let begin = revision(&scene)?;
    let config = scene.plan.config(&scene.lab);
    let loud = Plan { service: "on_down = \"reset\"".to_owned(), ..scene.plan.clone() }.config(&scene.lab);
    reload(&mut scene, &loud)?;
    wait_for("the reload", || Ok(revision(&scene)? == begin + 1))?;
    ensure!(held(&scene)? == both);
    let newest = scene.json(&["history", SERVICE])?["revisions"][0].clone();
    ensure!(
        newest["actor"] == "file" && newest["summary"] == "the configuration file was read",
        "{newest:#}"
    );
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(held(&scene)? == both && revision(&scene)? == begin + 1);

    // What was applied by hand stands when the same file is read again.
    apply(&scene, &config)?.done()?;
    scene.agent.process().signal(Signal::SIGHUP)?;
    wait_for("the reading", || Ok(scene.agent.log().contains("what was applied since stands")))?;
    ensure!(held(&scene)? == both && revision(&scene)? == begin + 2);

    // The value itself, by either way: the file wins.
    let at = |i: usize| scene.backend(i).rsplit('/').next().map(str::to_owned).context("a name");
    let line = format!("address = \"{}\"\n", at(0)?);
    let heavier = config.replace(&line, &format!("{line}weight = 50\n"));
    reload(&mut scene, &heavier)?;
    wait_for("the reload", || Ok(row(&scene, 0)?["weight"] == 50))?;
    let left = held(&scene)?;
    ensure!(left.len() == 1 && left[0].2 == "drain", "{left:?}");
    let line = format!("address = \"{}\"\n", scene.backend(1).rsplit('/').next().context("a name")?);
    apply(&scene, &heavier.replace(&line, &format!("{line}state = \"maint\"\n")))?.done()?;
    ensure!(held(&scene)?.is_empty() && row(&scene, 1)?["state"] == "maint");
    Ok(())
}

fn rejected() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    let begin = revision(&scene)?;
    let good = scene.plan.config(&scene.lab);
    let events = |scene: &Scene| -> Result<usize> {
        let lines = scene.lbctl(&["-o", "json", "get", "events"])?;
        Ok(lines.lines().filter(|line| line.contains("\"config_rejected\"")).count())
    };
    reload(&mut scene, &good.replace("mode = \"nat\"", "mode = \"natt\""))?;
    wait_for("the event", || Ok(events(&scene)? == 1))?;
    ensure!(scene.agent.log().contains("natt"), "the log shows the mistake");
    // What a running agent cannot change is rejected as well.
    reload(&mut scene, &good.replace("[dataplane]\n", "[dataplane]\nxdp_mode = \"generic\"\n"))?;
    wait_for("the event", || Ok(events(&scene)? == 2))?;
    ensure!(scene.agent.log().contains("LB0512"), "the log says why");
    ensure!(revision(&scene)? == begin && canary_gets(&scene, 0)? == 0);
    Ok(())
}

fn recover() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    for split in ["10", "20", "30"] {
        scene.lbctl(&["set", "split", SERVICE, split])?;
    }
    scene.agent.kill9();
    let journal = scene.agent.places().state.join("journal.jsonl");
    let good = fs::read(&journal)?;
    let mut broken = good.clone();
    let line = good.split(|&byte| byte == b'\n').count() - 2;
    let at = good.windows(12).position(|window| window == b"10 % -> 20 %").context("that change")?;
    broken[at] ^= 0x10;
    fs::write(&journal, &broken)?;

    scene.agent.restart()?;
    scene.agent.process().wait(Duration::from_secs(20))?;
    let log = scene.agent.log();
    ensure!(log.contains(&format!("corrupt in line {line} ")) && log.contains("lbd --recover"), "{log}");
    ensure!(fs::read(&journal)? == broken, "nothing was changed");
    ensure!(canary_gets(&scene, 0)? > 0, "packets go on");
    // The worst moment for it, and it works.
    let done = scene.json(&["rollback", SERVICE])?;
    ensure!(done["split_before_percent"] == 30.0 && done["revision"].is_null(), "{done:#}");
    ensure!(done["warnings"][0].as_str().unwrap_or_default().contains("corrupt"), "{done:#}");
    ensure!(canary_gets(&scene, 1000)? == 0);

    scene.agent.restart_saying(&["--recover"])?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    let log = scene.agent.log();
    ensure!(log.contains("lost: revision") && log.contains("20 % -> 30 %"), "it says what is lost: {log}");
    let kept: Vec<_> = fs::read_dir(&scene.agent.places().state)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("journal.jsonl.corrupt-"))
        .collect();
    ensure!(kept.len() == 1 && fs::read(kept[0].path())? == broken, "{kept:?}");
    ensure!(percent(&scene)? == 0.0, "the rollback holds");
    let history = scene.lbctl(&["history", SERVICE])?;
    ensure!(history.contains("0 % -> 10 %") && !history.contains("20 % -> 30 %"), "{history}");
    scene.lbctl(&["set", "split", SERVICE, "5"])?;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(percent(&scene)? == 5.0);
    Ok(())
}

fn full_disk() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    scene.lbctl(&["set", "split", SERVICE, "30"])?;
    scene.agent.kill9();
    small_disk(&scene.agent.places().state)?;
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;

    fill_last_page(&scene)?;
    let filler = scene.agent.places().state.join("filler");
    fill(&filler)?;
    let begin = revision(&scene)?;
    let weight = row(&scene, 0)?["weight"].clone();
    for refused in [
        &["set", "weight", &scene.backend(0), "7"][..],
        &["set", "split", SERVICE, "60"],
        &["set", "state", &scene.backend(1), "drain"],
    ] {
        let reply = scene.agent.lbctl(refused)?.exits(1)?;
        let words = reply.stderr;
        ensure!(
            words.contains("LB0518")
                && words.contains("nothing was changed")
                && words.contains("No space left"),
            "{words}"
        );
        ensure!(words.contains("free some space"), "{words}");
    }
    ensure!(revision(&scene)? == begin && percent(&scene)? == 30.0 && row(&scene, 0)?["weight"] == weight);
    ensure!(canary_gets(&scene, 0)? > 50, "forwarding goes on");

    let done = scene.json(&["rollback", SERVICE, "--reason", "in the dark"])?;
    ensure!(done["by_agent"] == true && done["revision"].is_null(), "{done:#}");
    ensure!(done["warnings"][0].as_str().unwrap_or_default().contains("No space left"), "{done:#}");
    ensure!(canary_gets(&scene, 1000)? == 0 && percent(&scene)? == 0.0);
    ensure!(revision(&scene)? == begin);

    fs::remove_file(&filler)?;
    wait_for("the record", || Ok(revision(&scene)? == begin + 1))?;
    let newest = scene.json(&["history", SERVICE])?["revisions"][0].clone();
    ensure!(
        newest["reason"] == "in the dark"
            && newest["summary"].as_str().unwrap_or_default().contains("30 % -> 0 %"),
        "{newest:#}"
    );
    scene.lbctl(&["set", "weight", &scene.backend(0), "7"])?;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    ensure!(percent(&scene)? == 0.0 && row(&scene, 0)?["weight"] == 7);
    Ok(())
}

/// Puts a disk of 256 KiB in the place of a directory, with what was in there.
fn small_disk(directory: &Path) -> Result<()> {
    let files: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    let files: Result<Vec<_>, std::io::Error> =
        files.into_iter().map(|path| fs::read(&path).map(|bytes| (path, bytes))).collect();
    let files = files?;
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=256k"))?;
    for (path, bytes) in files {
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Writes until nothing more goes in.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

/// Makes changes until the last page of the journal has no room for another one: a file system gives whole pages.
fn fill_last_page(scene: &Scene) -> Result<()> {
    const PAGE: usize = 4096;
    // Times are not all of the same length, and no record is as short as this.
    const SLACK: usize = 24;
    let journal = scene.agent.places().state.join("journal.jsonl");
    let length = || Ok::<_, std::io::Error>(fs::metadata(&journal)?.len() as usize);
    let change = |weight: &str, reason: &str| {
        scene.lbctl(&["set", "weight", &scene.backend(0), weight, "--reason", reason]).map(drop)
    };
    change("31", "x")?;
    let before = length()?;
    change("32", "x")?;
    let record = length()? - before;
    let room = PAGE - length()? % PAGE;
    let wanted = if room > record + SLACK { room } else { room + PAGE };
    change("33", &"x".repeat(wanted - record - SLACK / 2))?;
    let left = PAGE - length()? % PAGE;
    ensure!(left <= SLACK, "{left} bytes are left in the last page");
    Ok(())
}

/// What holds of the service, as the agent says and as the kernel's tables have it.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    weight: u64,
    percent: f64,
    drained: bool,
}

/// Reads it, and makes sure that agent and tables agree.
fn held(scene: &Scene) -> Result<Held> {
    let (first, second) = (row(scene, 0)?, row(scene, 1)?);
    let weight = first["weight"].as_u64().context("a weight")?;
    let drained = second["state"] == "drain";
    let slots = |row: &Value| row["slots"].as_f64().context("slots");
    let (of_first, of_second) = (slots(&first)?, slots(&second)?);
    let share = if drained { 1.0 } else { weight as f64 / (weight as f64 + 100.0) };
    let whole = of_first + of_second;
    ensure!(whole > 1000.0, "{first:#} {second:#}");
    ensure!(
        (of_first - share * whole).abs() <= 1.0,
        "weight {weight}, drained {drained}, but {of_first} of {whole} slots"
    );
    Ok(Held { weight, percent: percent(scene)?, drained })
}

fn killed() -> Result<()> {
    let mut scene = Scene::start(Plan::default())?;
    let mut old = held(&scene)?;
    let mut outcomes = [0; 2];
    for round in 0..16u64 {
        let (change, new): (Vec<String>, Held) = match round % 4 {
            0 => {
                let weight = 10 + round;
                (
                    vec!["set".into(), "weight".into(), scene.backend(0), weight.to_string()],
                    Held { weight, ..old.clone() },
                )
            }
            1 | 3 => {
                let percent = if old.percent > 50.0 { 5.0 } else { old.percent + 20.0 + round as f64 };
                (
                    vec!["set".into(), "split".into(), SERVICE.into(), percent.to_string()],
                    Held { percent, ..old.clone() },
                )
            }
            _ => {
                let state = if old.drained { "ready" } else { "drain" };
                let new = Held { drained: !old.drained, ..old.clone() };
                (vec!["set".into(), "state".into(), scene.backend(1), state.into()], new)
            }
        };
        let arguments: Vec<&str> = change.iter().map(String::as_str).collect();
        let mut lbctl = scene.agent.begin_lbctl(&arguments)?;
        // From before the request arrives to after its answer.
        std::thread::sleep(Duration::from_micros(round * 1_500));
        scene.agent.kill9();
        let acknowledged = lbctl.wait(Duration::from_secs(20))? == Finished::Exited(0);
        scene.agent.restart()?;
        scene.agent.wait_ready(Duration::from_secs(30))?;
        let found = held(&scene)?;
        ensure!(found == old || found == new, "round {round}: {found:?} is neither {old:?} nor {new:?}");
        ensure!(
            !acknowledged || found == new,
            "round {round}: {change:?} was acknowledged, and is lost: {found:?}"
        );
        outcomes[usize::from(found == new)] += 1;
        old = found;
    }
    if outcomes[1] == 0 {
        bail!("no change survived: the moments are too early to say anything");
    }
    Ok(())
}

fn busy() -> Result<()> {
    // A table that takes a while to build, over and over.
    let scene = Scene::start(Plan { service: "table_size = 131071".to_owned(), ..Plan::default() })?;
    scene.lbctl(&["set", "split", SERVICE, "50"])?;
    let mut others = Vec::new();
    for weight in 1..=8 {
        others.push(scene.agent.begin_lbctl(&["set", "weight", &scene.backend(0), &weight.to_string()])?);
    }
    std::thread::sleep(Duration::from_millis(100));
    let asked = Instant::now();
    let done = scene.json(&["rollback", SERVICE, "--reason", "at once"])?;
    let took = asked.elapsed();
    // Before the others on a machine that has other things to do, too.
    let mut busy = false;
    for other in &mut others {
        busy |= other.finished()?.is_none();
    }
    ensure!(busy || took < Duration::from_millis(500), "{took:?}: {done:#}");
    ensure!(done["by_agent"] == true, "{done:#}");
    if done["revision"].is_null() {
        let warning = done["warnings"][0].as_str().unwrap_or_default();
        ensure!(warning.contains("in force") && warning.contains("it follows"), "{done:#}");
    }
    for mut other in others {
        other.wait(Duration::from_secs(60))?;
    }
    let history = scene.lbctl(&["history", SERVICE])?;
    ensure!(history.contains("at once"), "the record follows: {history}");
    ensure!(percent(&scene)? == 0.0);
    Ok(())
}
