//! Passive health: what real connections say of a backend takes it out, and lets it in again.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Behaviour, Load, LoadSpec, Pool, PoolSpec, Sources, Tally};
use lb_tests::{Host, claim};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim(
            "a backend that refuses 30 % is ejected, also for the next agent, and comes back later",
            ejected,
        ),
        claim("no more backends are ejected than may be, and a dry run ejects nobody", limits),
        claim("in dsr a backend that swallows SYNs is ejected by what is inferred", inferred),
        claim("a breaker opens, resets what is its share, lets a few try, and closes again", breaker),
        claim(
            "a backend that answers late gets fewer connections until it is as fast as the others",
            steered,
        ),
        claim("backends get no more connections than they may have, and others take them", limited),
        claim(
            "a connection that is refused or not answered is served by another backend with retry on",
            retry,
        ),
        claim("what became of connections is counted on by the next agent", counted_on),
    ]
}

/// What a busy machine may take to do something.
const SOON: Duration = Duration::from_secs(30);

fn plan(stable: usize, tables: &str) -> Plan {
    // Tables of a service stand after its keys: with those of health.
    let health = format!("[service.health]\ntype = \"none\"\n{tables}\n");
    Plan { stable, canary: 0, health, ..Plan::default() }
}

/// The next packets to a backend that begin a connection meet this rule.
fn rule(backend: &Host, rule: &str) -> Result<()> {
    let rules = format!(
        "table ip faults {{\n chain arriving {{\n type filter hook input priority 0\n \
         tcp flags & (syn | ack) == syn {rule}\n }}\n}}\n"
    );
    nft(backend, &rules)
}

fn no_rule(backend: &Host) -> Result<()> {
    nft(backend, "delete table ip faults")
}

fn nft(backend: &Host, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.arg(rules);
    let output = backend.output(command).context("nft (Debian's package `nftables`)")?;
    ensure!(output.status.success(), "nft failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Connections from many clients, a few hundred a second.
fn load(scene: &Scene) -> Result<Load> {
    let spec = LoadSpec::http(scene.target(), "/").from(Sources::crowd(500)).rate(300.0).concurrency(500);
    Load::start(scene.lab.client(0), spec)
}

/// At a pace at which the balancer may reset all of them: fifty at once on each CPU, and then a thousand a second.
fn some(scene: &Scene, flows: u32) -> Result<Tally> {
    let spec =
        LoadSpec::http(scene.target(), "/").from(Sources::crowd(flows)).flows(flows.into()).rate(400.0);
    Load::run(scene.lab.client(0), spec)
}

fn row(scene: &Scene, i: usize) -> Result<Value> {
    row_of(scene, SERVICE, i)
}

fn row_of(scene: &Scene, service: &str, i: usize) -> Result<Value> {
    let answer = scene.json(&["get", "backends", service])?;
    let (path, rows) = (scene.backend(i), answer["backends"].as_array().cloned().context("rows")?);
    let row = rows.into_iter().find(|row| row["name"].as_str().is_some_and(|name| path.ends_with(name)));
    row.context("a row")
}

fn wait_for(what: &str, scene: &Scene, i: usize, holds: impl Fn(&Value) -> bool) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let row = row(scene, i)?;
        if holds(&row) {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < SOON, "{what}: not after {SOON:?}: {row:#}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_out(row: &Value) -> bool {
    row["takes_new"] == false && row["why_not"] == "it is an outlier, and ejected" && row["slots"] == 0
}

fn events(scene: &Scene, code: &str) -> Result<Vec<String>> {
    let lines = scene.lbctl(&["-o", "json", "get", "events", SERVICE])?;
    let events = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let of_code = events.iter().filter(|event| event["code"] == code);
    Ok(of_code.filter_map(|event| Some(event["message"].as_str()?.to_owned())).collect())
}

fn ejected() -> Result<()> {
    let rules = "[service.outlier]\nconsecutive_failures = 0\ninterval = \"1s\"\nmin_volume = 20\n\
                 failure_percent = 20\nbase_ejection = \"12s\"\n";
    let mut scene = Scene::start(plan(3, rules))?;
    let load = load(&scene)?;
    rule(scene.lab.backend(0), "numgen inc mod 10 < 3 reject with tcp reset")?;
    let took = wait_for("it is ejected", &scene, 0, is_out)?;
    ensure!(took < Duration::from_secs(8), "two intervals of a second are enough: {took:?}");
    let seen = row(&scene, 0)?["outcomes"].clone();
    let (tried, refused) = (seen["tried"].as_f64(), seen["refused"].as_f64());
    let ratio = refused.zip(tried).map(|(refused, tried)| refused / tried).context("figures")?;
    ensure!((0.1..0.4).contains(&ratio) && seen["inferred"] == false, "{seen}");
    scene.agent.lbctl(&["status"])?.exits(0)?;
    ensure!(scene.lbctl(&["status"])?.contains("LB1030"), "status says so");

    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(SOON)?;
    ensure!(is_out(&row(&scene, 0)?), "an agent that starts lets nobody in: {:#}", row(&scene, 0)?);
    // Whoever is at the same address is the same service, whatever it is called.
    let file = lb_tests::private_dir("passive")?.join("lb.toml");
    for name in ["shop", SERVICE] {
        let config = scene.plan.config(&scene.lab);
        let renamed = config.replace(&format!("name = \"{SERVICE}\""), &format!("name = \"{name}\""));
        std::fs::write(&file, renamed)?;
        scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
        ensure!(is_out(&row_of(&scene, name, 0)?), "as {name}: {:#}", row_of(&scene, name, 0)?);
        // Longer than from one look at backends to the next.
        thread::sleep(Duration::from_millis(500));
        ensure!(is_out(&row_of(&scene, name, 0)?), "as {name}, later: {:#}", row_of(&scene, name, 0)?);
    }
    let clean = some(&scene, 300)?;
    ensure!(clean.failed() == 0 && clean.answered_by("stable0") == 0, "{clean:?}");

    no_rule(scene.lab.backend(0))?;
    wait_for("it comes back", &scene, 0, |row| row["takes_new"] == true && row["slots"] != 0)?;
    ensure!(events(&scene, "backend_returned")?.len() == 1);
    let tally = some(&scene, 300)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") > 0, "{tally:?}");
    load.stop()?;
    Ok(())
}

fn limits() -> Result<()> {
    let rules =
        "[service.outlier]\nconsecutive_failures = 5\nbase_ejection = \"60s\"\nmax_ejected_percent = 50\n";
    let scene = Scene::start(plan(4, &format!("{rules}enforce = 0\n")))?;
    let load = load(&scene)?;
    for server in &scene.servers[..3] {
        server.behave(Behaviour::Refuse)?;
    }
    let began = Instant::now();
    while events(&scene, "ejection_spared")?.len() < 3 {
        ensure!(began.elapsed() < SOON, "{:?}", events(&scene, "ejection_spared")?);
        thread::sleep(Duration::from_millis(50));
    }
    scene.wait_taking(4, Duration::ZERO)?;

    let file = lb_tests::private_dir("passive")?.join("lb.toml");
    std::fs::write(&file, Plan { health: plan(4, rules).health, ..scene.plan.clone() }.config(&scene.lab))?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    // Who was spared is not looked at for as long as an ejection would last. Another agent has no memory of that.
    let mut scene = scene;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(SOON)?;
    scene.wait_taking(2, SOON)?;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        scene.wait_taking(2, Duration::ZERO)?;
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(!events(&scene, "ejection_withheld")?.is_empty(), "the third one is talked about");
    load.stop()?;
    Ok(())
}

fn inferred() -> Result<()> {
    let rules = "[service.outlier]\ninterval = \"1s\"\nmin_volume = 8\nfailure_percent = 30\nbase_ejection = \"60s\"\n";
    let scene = Scene::start(Plan { mode: "dsr-l2", ..plan(3, rules) })?;
    let load = load(&scene)?;
    rule(scene.lab.backend(1), "drop")?;
    wait_for("it is ejected", &scene, 1, is_out)?;
    let events = events(&scene, "backend_ejected")?;
    ensure!(events.len() == 1 && events[0].contains("inferred"), "{events:?}");
    let seen = row(&scene, 1)?["outcomes"].clone();
    ensure!(seen["inferred"] == true && seen["answered"] == 0 && seen["unanswered"] != 0, "{seen}");
    no_rule(scene.lab.backend(1))?;
    load.stop()?;
    Ok(())
}

fn breaker() -> Result<()> {
    let rules = "[service.breaker]\nopen = \"6s\"\nhalf_life = \"2s\"\ntrials = 3\non_trip = \"reset\"\n";
    let scene = Scene::start(plan(2, rules))?;
    let load = load(&scene)?;
    scene.servers[0].behave(Behaviour::Refuse)?;
    wait_for("it opens", &scene, 0, |row| row["breaker"]["state"] == "open" && row["slots"] == 0)?;
    ensure!(row(&scene, 0)?["why_not"] == "its breaker is open");
    ensure!(row(&scene, 1)?["breaker"].is_null(), "the other one's is closed");
    let before = row(&scene, 0)?["outcomes"]["tried"].clone();
    let tally = some(&scene, 400)?;
    let share = tally.failed.get("refused").copied().unwrap_or(0) as f64 / 400.0;
    ensure!((0.4..0.6).contains(&share), "its half is reset by the balancer: {tally:?}");
    ensure!(row(&scene, 0)?["outcomes"]["tried"] == before, "and it hears nothing of it");
    // Trials fail as long as it does not answer, which takes their clients a second to find out.
    rule(scene.lab.backend(0), "drop")?;
    wait_for("it is half open", &scene, 0, |row| row["breaker"]["state"] == "half_open")?;
    wait_for("it opens again", &scene, 0, |row| row["breaker"]["state"] == "open")?;
    let tried = |value: &Value| value.as_u64().context("a count");
    let trials = tried(&row(&scene, 0)?["outcomes"]["tried"])? - tried(&before)?;
    ensure!(trials == 3, "so many are let through, and no more: {trials}");
    no_rule(scene.lab.backend(0))?;
    scene.servers[0].behave(Behaviour::Serve)?;
    wait_for("it closes", &scene, 0, |row| row["breaker"].is_null() && row["takes_new"] == true)?;
    let tally = some(&scene, 400)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") > 100, "{tally:?}");
    load.stop()?;
    Ok(())
}

fn steered() -> Result<()> {
    let rules = "[service.steering]\ninterval = \"1s\"\nhalf_life = \"1s\"\nmin_volume = 10\n";
    let scene = Scene::start(plan(2, rules))?;
    scene.servers[1].behave(Behaviour::Delay(Duration::from_millis(60)))?;
    let load = load(&scene)?;
    let percent = |row: &Value| row["steering"]["weight_percent"].as_u64().unwrap_or(100);
    wait_for("it has less", &scene, 1, |row| percent(row) < 60)?;
    wait_for("it has more", &scene, 0, |row| percent(row) > 170 && percent(row) <= 200)?;
    let late = row(&scene, 1)?;
    ensure!(late["steering"]["latency_seconds"].as_f64().is_some_and(|it| it > 0.05), "{late:#}");
    let slots = late["slots"].as_f64().context("slots")? / 16_381.0;
    ensure!((0.19..0.27).contains(&slots), "50 to 200, about: {slots}");
    scene.servers[1].behave(Behaviour::Serve)?;
    wait_for("it has its share again", &scene, 1, |row| percent(row) > 80)?;
    load.stop()?;
    Ok(())
}

fn limited() -> Result<()> {
    let scene = Scene::start(Plan { lines: true, ..plan(2, "[service.limits]\nmax_connections = 40\n") })?;
    let spec = PoolSpec::new(scene.target(), 60).from(Sources::crowd(60));
    let pool = Pool::open(scene.lab.client(0), spec)?;
    ensure!(pool.check()?.alive() == 60, "nobody has too many yet");
    // Handshakes under way do not count: one after the other they come to exactly the limit.
    let mut more = Vec::new();
    for first in 1000..1200 {
        let spec = PoolSpec::new(scene.target(), 1).from(Sources::Crowd { first, count: 1 });
        more.extend(Pool::open(scene.lab.client(0), spec));
        if more.len() == 20 {
            break;
        }
    }
    let open = |i| row(&scene, i)?["connections"]["open"].as_u64().context("a count");
    ensure!((open(0)?, open(1)?) == (40, 40), "{} and {}", open(0)?, open(1)?);
    let tally = lines(&scene, 50)?;
    ensure!(tally.failed.get("refused") == Some(&50), "both are full: {tally:?}");
    ensure!(pool.check()?.alive() == 60, "who is there stays");
    drop((pool, more));
    for i in 0..2 {
        wait_for("they are over", &scene, i, |row| row["connections"]["open"] == 0)?;
    }

    let limits = "[service.limits]\npool_max_new_per_second = 200\non_limit = \"drop\"\n";
    let file = lb_tests::private_dir("passive")?.join("lb.toml");
    std::fs::write(&file, Plan { health: plan(2, limits).health, ..scene.plan.clone() }.config(&scene.lab))?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    let sources = Sources::Crowd { first: 2000, count: 1000 };
    let spec = LoadSpec::lines(scene.target()).from(sources).flows(1000).timeout(Duration::from_millis(500));
    let began = Instant::now();
    let tally = Load::run(scene.lab.client(0), spec.concurrency(1000))?;
    let most = 20.0 + 200.0 * began.elapsed().as_secs_f64();
    ensure!(tally.failed() > 100 && (tally.answered() as f64) < most * 1.1, "{most} at most: {tally:?}");
    Ok(())
}

fn lines(scene: &Scene, flows: u32) -> Result<Tally> {
    let sources = Sources::Crowd { first: 2000, count: flows };
    Load::run(scene.lab.client(0), LoadSpec::lines(scene.target()).from(sources).flows(flows.into()))
}

fn retry() -> Result<()> {
    let scene = Scene::start(plan(3, "[service.retry]\nbudget = 100\nburst = 1000\n"))?;
    scene.servers[0].behave(Behaviour::Refuse)?;
    let tally = some(&scene, 300)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 0, "{tally:?}");
    scene.servers[0].behave(Behaviour::Serve)?;
    rule(scene.lab.backend(1), "drop")?;
    let tally = some(&scene, 300)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") == 0, "{tally:?}");
    no_rule(scene.lab.backend(1))?;

    // The connections that were sent elsewhere live on, whatever their slots say.
    rule(scene.lab.backend(2), "reject with tcp reset")?;
    let spec = LoadSpec::http(scene.target(), "/").from(Sources::crowd(200)).flows(200);
    let long = LoadSpec::requests_per_connection(spec, 20);
    let tally = Load::run(scene.lab.client(0), long)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable2") == 0, "{tally:?}");
    no_rule(scene.lab.backend(2))?;

    // Without a budget a refusal is what it was.
    let none = scene.plan.config(&scene.lab).replace("budget = 100\nburst = 1000", "budget = 0\nburst = 1");
    let file = lb_tests::private_dir("passive")?.join("lb.toml");
    std::fs::write(&file, none)?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    scene.servers[0].behave(Behaviour::Refuse)?;
    let tally = some(&scene, 300)?;
    ensure!(tally.failed.get("refused").is_some_and(|refused| *refused > 50), "{tally:?}");
    Ok(())
}

/// A figure of the metrics of a backend.
fn metric(scene: &Scene, name: &str, backend: usize, more: &str) -> Result<u64> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", &format!("http://{}/metrics", scene.agent.places().metrics)]);
    let output = scene.lab.balancer().output(curl)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let path = scene.backend(backend);
    let address = path.rsplit('/').next().context("an address")?;
    let start = format!("{name}{{frontend=\"{SERVICE}\",group=\"stable\",backend=\"{address}\",{more}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.with_context(|| format!("no {start}in\n{text}"))?.parse()?)
}

fn counted_on() -> Result<()> {
    let mut scene = Scene::start(plan(2, "[service.outlier]\nenforce = 0\n"))?;
    scene.servers[0].behave(Behaviour::Refuse)?;
    let refused = |scene: &Scene| metric(scene, "lb_connect_failures_total", 0, "reason=\"refused\"");
    ensure!(refused(&scene)? == 0, "every series is there from the start");
    let hurt = some(&scene, 300)?.failed();
    let before = refused(&scene)?;
    ensure!(before == hurt && hurt > 50, "{before} of {hurt} are counted");
    scene.agent.kill9();
    let hurt = hurt + some(&scene, 300)?.failed();
    scene.agent.restart()?;
    scene.agent.wait_ready(SOON)?;
    ensure!(refused(&scene)? == hurt, "the kernel program went on counting: {} of {hurt}", refused(&scene)?);
    ensure!(metric(&scene, "lb_connection_resets_total", 1, "origin=\"backend\"")? == 0);
    Ok(())
}
