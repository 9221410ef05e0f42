//! What is seen from outside: metrics, alert rules and the dashboard, by the tools that read them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::claim;
use lb_tests::prometheus::Prometheus;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Sources};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("the alert rules do what their tests say", alerts),
        claim(
            "the dashboard is laid out as Grafana wants it, and knows every metric that it asks for",
            layout,
        ),
        claim("a real Prometheus finds data for every query of the dashboard", dashboard),
    ]
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn alerts() -> Result<()> {
    let output = Command::new("promtool")
        .args(["test", "rules", "lb.rules.test.yml"])
        .current_dir(deploy("prometheus"))
        .output()
        .context("promtool is of Debian's package prometheus: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("SUCCESS"), "{said}");
    let rules = std::fs::read_to_string(deploy("prometheus/lb.rules.yml"))?;
    let tests = std::fs::read_to_string(deploy("prometheus/lb.rules.test.yml"))?;
    let names: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(names.len() > 10, "{names:?}");
    for name in names {
        let fires = format!("alertname: {name}\n        exp_alerts:\n");
        let quiet = format!("alertname: {name}, exp_alerts: []");
        ensure!(tests.contains(&fires) && tests.contains(&quiet), "{name} is not seen both firing and quiet");
    }
    Ok(())
}

fn read_dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(deploy("grafana/lb.json"))?)?)
}

fn list<'a>(value: &'a Value, what: &str) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{what} is no list"))
}

/// Every query, with the title of its panel.
fn queries(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut queries = Vec::new();
    for panel in list(&dashboard["panels"], "panels")?.iter().filter(|panel| panel["type"] != "row") {
        for target in list(&panel["targets"], "targets")? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    Ok(queries)
}

fn layout() -> Result<()> {
    let dashboard = read_dashboard()?;
    ensure!(dashboard["uid"] == "lb-overview" && dashboard["schemaVersion"].as_u64() >= Some(38));
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"], "panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        ensure!(ids.insert(panel["id"].as_u64().context("no id")?), "{title}: its id is another's");
        let place = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{title}: no {key}"));
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        ensure!(w > 0 && h > 0 && x + w <= 24, "{title} is beyond the 24 columns");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(cells.insert(cell), "{title} lies over another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        ensure!(
            panel["description"].as_str().is_some_and(|it| it.ends_with('.')),
            "{title} says not what it is"
        );
        ensure!(panel["datasource"]["uid"] == "${datasource}", "{title} has a data source of its own");
        ensure!(panel["fieldConfig"]["defaults"].is_object() && panel["options"].is_object(), "{title}");
        let mut references = BTreeSet::new();
        for target in list(&panel["targets"], title)? {
            ensure!(references.insert(target["refId"].as_str()), "{title}: a refId twice");
            ensure!(target["datasource"]["uid"] == "${datasource}" && target["expr"].is_string(), "{title}");
        }
    }
    let variables: Vec<_> =
        list(&dashboard["templating"]["list"], "variables")?.iter().map(|it| it["name"].as_str()).collect();
    ensure!(variables == [Some("datasource"), Some("frontend"), Some("group")], "{variables:?}");
    let document = std::fs::read_to_string(deploy("../docs/metrics.md"))?;
    let rules = std::fs::read_to_string(deploy("prometheus/lb.rules.yml"))?;
    let queries: Vec<_> = queries(&dashboard)?.into_iter().map(|(_, query)| query).chain([rules]).collect();
    for text in &queries {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for metric in words.filter(|word| word.starts_with("lb_") && !word.starts_with("lb_connections:")) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
            let known = |name: &str| document.contains(&format!("| `{name}` |"));
            ensure!(
                known(metric) || family.is_some_and(known) || metric == "lb_connections",
                "no metric {metric}"
            );
        }
    }
    Ok(())
}

/// Queries that need not have data here, and why.
const MAY_BE_EMPTY: &[(&str, &str)] = &[("Drops", "nothing is dropped in a lab that works")];

fn dashboard() -> Result<()> {
    let mut scene = Scene::start(Plan {
        stable: 3,
        dataplane: "sweep = \"200ms\"".to_owned(),
        health: "[service.health]\ntype = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"100ms\"\n\
                 [service.rollout]\nshares = [30]\nhold = \"600s\"\ntripwire = 0\nanalysis = \"shadow\"\n"
            .to_owned(),
        ..Plan::default()
    })?;
    let balancer = scene.lab.balancer().namespace().clone();
    let prometheus = Prometheus::start_with(
        &balancer,
        &scene.agent.places().metrics,
        Some(&deploy("prometheus/lb.rules.yml")),
    )?;
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(20_000)).rate(300.0).concurrency(32);
    let load = Load::start(scene.lab.client(0), load)?;
    scene.lbctl(&["rollout", "start", SERVICE, "--to", "canary"])?;
    std::thread::sleep(Duration::from_secs(3));
    // What fails has figures, too.
    drop(scene.servers.remove(1));

    let dashboard = read_dashboard()?;
    let queries = queries(&dashboard)?;
    ensure!(queries.len() > 40, "{} queries", queries.len());
    let concrete = |query: &str| {
        let query = query.replace("$frontend", ".*").replace("$group", ".*");
        query.replace("$__rate_interval", "10s").replace("$__range", "60s").replace("$__interval", "10s")
    };
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let mut empty = Vec::new();
        for (title, query) in &queries {
            let excused = MAY_BE_EMPTY.iter().any(|(known, _)| known == title);
            // Asked even where no data is needed: it has to be a query.
            if prometheus.query(&concrete(query))?.iter().all(is_nothing) && !excused {
                empty.push(format!("{title}: {query}"));
            }
        }
        if empty.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "no data:\n{}\n{}", empty.join("\n"), scrape(&scene)?);
        std::thread::sleep(Duration::from_secs(1));
    }
    for annotation in list(&dashboard["annotations"]["list"], "annotations")? {
        prometheus.query(&concrete(annotation["expr"].as_str().context("no expr")?))?;
    }

    let handshakes = prometheus.query("sum by (group) (lb_handshake_duration_seconds_count)")?;
    ensure!(handshakes.len() == 2 && !handshakes.iter().any(is_zero), "{handshakes:?}");
    let shares = prometheus.query(
        "sum(rate(lb_connections_total{group=\"canary\"}[10s])) / sum(rate(lb_connections_total[10s]))",
    )?;
    let share: f64 = shares[0]["value"][1].as_str().context("no value")?.parse()?;
    ensure!((0.2..0.4).contains(&share), "the canary's part of the connections: {share}");

    let rules = prometheus.rules()?;
    ensure!(rules.len() > 12, "{rules:?}");
    ensure!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    let down = rules.iter().find(|rule| rule["name"] == "LbBackendsDown").context("no such rule")?;
    ensure!(down["state"] != "inactive", "one of three stable backends is down: {down:#}");

    let text = scrape(&scene)?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let said = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    ensure!(said.trim().is_empty(), "promtool check metrics: {said}");
    let tally = load.stop()?;
    ensure!(tally.answered_by("canary0") > 0, "{tally:?}");
    Ok(())
}

fn is_zero(sample: &Value) -> bool {
    sample["value"][1] == "0"
}

/// A figure that is none.
fn is_nothing(sample: &Value) -> bool {
    sample["value"][1] == "NaN"
}

fn scrape(scene: &Scene) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", &format!("http://{}/metrics", scene.agent.places().metrics)]);
    let output = scene.lab.balancer().namespace().output(curl)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
