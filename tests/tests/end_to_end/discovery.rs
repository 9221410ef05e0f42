//! Backends that name servers, files, web servers and Kubernetes know.

mod api_server;
mod kubernetes;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, RecordType};
use lb_tests::dns::{NameServer, Reply};
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    let mut claims = vec![
        claim(
            "backends come and go with what a name server says, and those that go finish their connections",
            come_and_go,
        ),
        claim("a name server that fails, is silent or says nothing takes nobody away", failures),
        claim("an empty answer takes all discovered backends away where it is believed", cleared),
        claim(
            "what was discovered is there at once after a restart, and the journal says who knew it",
            restart,
        ),
        claim("SRV records say ports, weights and priorities", services),
        claim("a file is followed, and one with a mistake is refused with its place", file),
        claim("what a file says and cannot be now is taken once the configuration lets it", refused_at_first),
        claim("a web server is asked again and again", web),
        claim("an override of a discovered backend goes with it, and an undo undoes no discovery", overrides),
    ];
    claims.extend(kubernetes::claims());
    claims
}

const NAME: &str = "web.lab.";
/// Longer than from one question to the next of any source.
const PATIENCE: Duration = Duration::from_secs(45);

/// A scene with three servers, of which the configuration has the first; who knows the others is said in `discovery`.
fn scene(plan: Plan, discovery: &str) -> Result<Scene> {
    let mut scene = Scene::start(Plan { stable: 3, canary: 0, ..plan })?;
    let config = config(&scene, discovery)?;
    scene.agent.write_config(&config)?;
    let path = scene.agent.places().config.to_string_lossy().into_owned();
    scene.lbctl(&["apply", "-f", &path])?;
    Ok(scene)
}

fn config(scene: &Scene, discovery: &str) -> Result<String> {
    let config = scene.plan.config(&scene.lab);
    let (head, _) = config.split_once("[[service.pool]]").context("a pool")?;
    let first = address(scene, 0);
    Ok(format!(
        "{head}[[service.pool]]\nname = \"stable\"\n[service.pool.discovery]\n{discovery}\n\
         [[service.pool.backend]]\naddress = \"{first}\"\n"
    ))
}

fn by_dns(more: &str) -> String {
    format!(
        "type = \"dns\"\nname = \"{NAME}\"\nport = 8080\nservers = [\"127.0.0.1:5353\"]\nmin_ttl = \"1s\"\ntimeout = \"300ms\"\n{more}"
    )
}

fn name_server(scene: &Scene) -> Result<NameServer> {
    NameServer::start(scene.lab.balancer(), ([127, 0, 0, 1], 5353).into())
}

fn address(scene: &Scene, i: usize) -> SocketAddr {
    address_in(scene, i, Family::V4)
}

fn address_in(scene: &Scene, i: usize, family: Family) -> SocketAddr {
    (scene.lab.backend(i).ip(family), 8080).into()
}

/// Tells the name server that these backends serve.
fn say(server: &NameServer, scene: &Scene, backends: &[usize]) -> Result<()> {
    let a = |&i: &usize| match address(scene, i).ip() {
        IpAddr::V4(v4) => Some(RData::A(A(v4))),
        IpAddr::V6(_) => None,
    };
    server.say(NAME, RecordType::A, Reply::Records(backends.iter().filter_map(a).collect(), 1))
}

/// Waits until exactly these backends are there and take new flows, those that only finish their flows left out.
fn wait_for(scene: &Scene, backends: &[usize]) -> Result<Vec<Value>> {
    let expected: Vec<_> = backends.iter().map(|&i| (address(scene, i), true)).collect();
    wait_for_rows(scene, SERVICE, &expected)
}

/// Waits until a service has exactly these backends, each of which takes new flows or does not.
fn wait_for_rows(scene: &Scene, service: &str, expected: &[(SocketAddr, bool)]) -> Result<Vec<Value>> {
    let mut expected: Vec<_> =
        expected.iter().map(|(address, takes_new)| (address.to_string(), *takes_new)).collect();
    expected.sort();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = scene.json(&["get", "backends", service])?;
        let rows = rows["backends"].as_array().context("rows")?;
        let rows: Vec<Value> = rows.iter().filter(|row| row["terminating"] != true).cloned().collect();
        let state = |row: &Value| Some((row["name"].as_str()?.to_owned(), row["takes_new"] == true));
        let mut states: Vec<_> = rows.iter().filter_map(state).collect();
        states.sort();
        if states == expected {
            return Ok(rows);
        }
        ensure!(
            Instant::now() < deadline,
            "expected {expected:?}, there are {rows:#?}\n{}",
            scene.agent.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn finding(scene: &Scene) -> Result<Option<Value>> {
    let status = scene.json(&["status"])?;
    let findings = status["findings"].as_array().context("findings")?;
    Ok(findings.iter().find(|finding| finding["code"] == "LB1014").cloned())
}

/// Waits until a finding says these words, or until there is none.
fn wait_for_finding(scene: &Scene, words: Option<&str>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = finding(scene)?;
        let message = found.as_ref().and_then(|finding| finding["message"].as_str());
        if match (message, words) {
            (Some(message), Some(words)) => message.contains(words),
            (None, None) => true,
            _ => false,
        } {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "expected {words:?}, found {found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// New clients are answered by these servers, as their weights say, and by nobody else.
fn serve(scene: &Scene, servers: &[(&str, f64)]) -> Result<()> {
    serve_at(scene, scene.target(), servers)
}

/// The same for clients of another service of these servers.
fn serve_at(scene: &Scene, target: SocketAddr, servers: &[(&str, f64)]) -> Result<()> {
    let load = if scene.plan.lines { LoadSpec::lines(target) } else { LoadSpec::http(target, "/") };
    let tally = Load::run(scene.lab.client(0), load.from(Sources::crowd(600)).flows(600))?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let sum: f64 = servers.iter().map(|(_, weight)| weight).sum();
    for (server, weight) in servers {
        // Five standard deviations of 600 clients.
        let (expected, share) = (weight / sum, tally.share(&[server]));
        ensure!((share - expected).abs() < 0.1, "{server} gets {share}, not {expected}: {tally:?}");
    }
    let names: Vec<&str> = servers.iter().map(|(server, _)| *server).collect();
    ensure!(tally.share(&names) == 1.0, "others answer, too: {tally:?}");
    Ok(())
}

fn come_and_go() -> Result<()> {
    const CONNECTIONS: u32 = 300;
    let scene = scene(Plan { lines: true, ..Plan::default() }, &by_dns(""))?;
    let server = name_server(&scene)?;
    wait_for(&scene, &[0])?;
    // Who is configured stays configured.
    say(&server, &scene, &[0, 1, 2])?;
    let rows = wait_for(&scene, &[0, 1, 2])?;
    let source = |i: usize| {
        let name = address(&scene, i).to_string();
        rows.iter().find(|row| row["name"] == *name).map(|row| row["source"].clone()).unwrap_or_default()
    };
    ensure!(
        source(0) == Value::Null && source(1) == "dns:web.lab." && source(2) == "dns:web.lab.",
        "{rows:#?}"
    );
    ensure!(scene.lbctl(&["get", "backends"])?.contains("discovered by dns:web.lab."));

    let clients = PoolSpec::new(scene.target(), CONNECTIONS).from(Sources::crowd(CONNECTIONS));
    let pool = Pool::open(scene.lab.client(0), clients)?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS) && before.alive_on("stable2") > 50, "{before:?}");
    say(&server, &scene, &[1])?;
    wait_for(&scene, &[0, 1])?;
    for _ in 0..3 {
        let after = pool.check()?;
        ensure!(after.broken.is_empty() && after.alive == before.alive, "{before:?}, then {after:?}");
    }
    let more = PoolSpec::new(scene.target(), CONNECTIONS).from(Sources::crowd(CONNECTIONS));
    let newer = Pool::open(scene.lab.client(0), more)?.check()?;
    ensure!(newer.alive() == u64::from(CONNECTIONS) && newer.alive_on("stable2") == 0, "{newer:?}");
    Ok(())
}

fn failures() -> Result<()> {
    let scene = scene(Plan::default(), &by_dns("max = 3"))?;
    wait_for_finding(&scene, Some("it has named no backend so far"))?;
    scene.agent.lbctl(&["status"])?.exits(3)?;
    let server = name_server(&scene)?;
    say(&server, &scene, &[1, 2])?;
    wait_for(&scene, &[0, 1, 2])?;
    wait_for_finding(&scene, None)?;
    scene.agent.lbctl(&["status"])?.exits(0)?;
    let revision = scene.json(&["status"])?["revision"].clone();
    for (reply, words) in [
        (Reply::Failure, "Server Failure"),
        (Reply::Silence, "timed out"),
        (Reply::NoSuchName, "its answer is empty"),
        (Reply::Records(Vec::new(), 1), "its answer is empty"),
        (Reply::Records(vec![RData::A(A::new(127, 0, 0, 1))], 1), "loopback"),
        (
            Reply::Records((1..5).map(|i| RData::A(A::new(10, 9, 9, i))).collect(), 1),
            "4 backends, at most 3 are allowed",
        ),
    ] {
        server.say(NAME, RecordType::A, reply)?;
        wait_for_finding(&scene, Some(words)).with_context(|| format!("instead of {words}"))?;
        wait_for_finding(&scene, Some("the 2 backends that it named last stay"))?;
        wait_for(&scene, &[0, 1, 2])?;
    }
    ensure!(scene.json(&["status"])?["revision"] == revision, "nothing was written");
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0), ("stable2", 1.0)])?;
    say(&server, &scene, &[1, 2])?;
    wait_for_finding(&scene, None)
}

fn cleared() -> Result<()> {
    let scene = scene(Plan::default(), &by_dns("on_empty = \"clear\""))?;
    let server = name_server(&scene)?;
    say(&server, &scene, &[1, 2])?;
    wait_for(&scene, &[0, 1, 2])?;
    server.say(NAME, RecordType::A, Reply::Failure)?;
    wait_for_finding(&scene, Some("Server Failure"))?;
    wait_for(&scene, &[0, 1, 2]).context("a failure is not an empty answer")?;
    server.say(NAME, RecordType::A, Reply::NoSuchName)?;
    wait_for(&scene, &[0])?;
    ensure!(finding(&scene)?.is_none());
    serve(&scene, &[("stable0", 1.0)])
}

fn restart() -> Result<()> {
    let mut scene = scene(Plan::default(), &by_dns(""))?;
    let server = name_server(&scene)?;
    say(&server, &scene, &[1])?;
    wait_for(&scene, &[0, 1])?;
    server.say(NAME, RecordType::A, Reply::Silence)?;
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(Duration::from_secs(30))?;
    let rows = scene.json(&["get", "backends", SERVICE])?;
    let found = |row: &&Value| row["source"] == "dns:web.lab.";
    let found: Vec<&Value> = rows["backends"].as_array().context("rows")?.iter().filter(found).collect();
    ensure!(found.len() == 1 && found[0]["name"] == *address(&scene, 1).to_string(), "{rows:#}");
    ensure!(found[0]["takes_new"] == true, "{rows:#}");
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0)])?;

    let journal = std::fs::read_to_string(scene.agent.places().state.join("journal.jsonl"))?;
    let found = journal.lines().filter(|line| line.contains("\"discovered\":{\"name\"")).count();
    ensure!(found == 1 && journal.contains("{\"name\":\"discovery/dns:web.lab.\"}"), "{journal}");

    // Without its discovery a pool has what is configured, and no more.
    let plain = config(&scene, "DISCOVERY")?.replace("[service.pool.discovery]\nDISCOVERY\n", "");
    scene.agent.write_config(&plain)?;
    let path = scene.agent.places().config.to_string_lossy().into_owned();
    scene.lbctl(&["apply", "-f", &path])?;
    wait_for(&scene, &[0]).map(drop)
}

fn services() -> Result<()> {
    const SRV_NAME: &str = "_http._tcp.web.lab.";
    let discovery = format!(
        "type = \"dns\"\nname = \"{SRV_NAME}\"\nrecord = \"srv\"\nservers = [\"127.0.0.1:5353\"]\nmin_ttl = \"1s\""
    );
    let scene = scene(Plan::default(), &discovery)?;
    let server = name_server(&scene)?;
    let target = |i: usize| format!("b{i}.lab.");
    for i in [1, 2] {
        let IpAddr::V4(v4) = address(&scene, i).ip() else { continue };
        server.say(&target(i), RecordType::A, Reply::Records(vec![RData::A(A(v4))], 1))?;
    }
    let srv = |priority: u16, weight: u16, i: usize| -> Result<RData> {
        Ok(RData::SRV(SRV::new(priority, weight, 8080, target(i).parse::<Name>()?)))
    };
    let records = vec![srv(5, 300, 1)?, srv(5, 200, 2)?];
    server.say(SRV_NAME, RecordType::SRV, Reply::Records(records, 1))?;
    let rows = wait_for(&scene, &[0, 1, 2])?;
    let of = |rows: &[Value], i: usize, key: &str| {
        let name = address(&scene, i).to_string();
        rows.iter().find(|row| row["name"] == *name).map(|row| row[key].clone()).unwrap_or_default()
    };
    ensure!(of(&rows, 1, "weight") == 300 && of(&rows, 2, "weight") == 200, "{rows:#?}");
    // The second one stands by from now on.
    server.say(SRV_NAME, RecordType::SRV, Reply::Records(vec![srv(5, 0, 1)?, srv(7, 0, 2)?], 1))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = scene.json(&["get", "backends", SERVICE])?;
        let rows = answer["backends"].as_array().context("rows")?;
        if of(rows, 2, "standby") == true && of(rows, 1, "weight") == 100 && of(rows, 1, "takes_new") == true
        {
            return serve(&scene, &[("stable0", 1.0), ("stable1", 1.0)]);
        }
        ensure!(Instant::now() < deadline, "{rows:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn list(scene: &Scene, backends: &[usize]) -> String {
    let entries = backends.iter().map(|&i| format!("{{\"address\": \"{}\"}}", address(scene, i)));
    format!("{{\"backends\": [{}]}}", entries.collect::<Vec<_>>().join(", "))
}

/// As careful programs write a file.
fn replace(path: &Path, text: &str) -> Result<()> {
    let aside: PathBuf = path.with_extension("next");
    std::fs::write(&aside, text)?;
    Ok(std::fs::rename(aside, path)?)
}

fn file() -> Result<()> {
    let path = lb_tests::private_dir("backends")?.join("backends.list");
    let scene = scene(Plan::default(), &format!("type = \"file\"\npath = \"{}\"", path.display()))?;
    wait_for_finding(&scene, Some("No such file"))?;
    replace(&path, &list(&scene, &[1, 2]))?;
    wait_for(&scene, &[0, 1, 2])?;
    wait_for_finding(&scene, None)?;
    replace(&path, "[[backends]]\naddress = \"10.0.0.300\"\n")?;
    wait_for_finding(&scene, Some("backends.list:2:11: `10.0.0.300` is not an address"))?;
    wait_for(&scene, &[0, 1, 2])?;
    replace(&path, &format!("[[backends]]\naddress = \"{}\"\nweight = 200\n", address(&scene, 2)))?;
    let rows = wait_for(&scene, &[0, 2])?;
    ensure!(rows.iter().any(|row| row["weight"] == 200), "{rows:#?}");
    wait_for_finding(&scene, None)?;
    serve(&scene, &[("stable0", 1.0), ("stable2", 2.0)])?;

    // Faster than anybody wants to follow: what is written down is a change a second.
    let revision = |scene: &Scene| scene.json(&["status"])?["revision"].as_u64().context("a revision");
    let (before, began) = (revision(&scene)?, Instant::now());
    while began.elapsed() < Duration::from_secs(3) {
        for backends in [&[1][..], &[1, 2]] {
            replace(&path, &list(&scene, backends))?;
            std::thread::sleep(Duration::from_millis(7));
        }
    }
    wait_for(&scene, &[0, 1, 2])?;
    let changes = revision(&scene)? - before;
    ensure!((1..=6).contains(&changes), "{changes} changes in 3 s");
    Ok(())
}

fn refused_at_first() -> Result<()> {
    let path = lb_tests::private_dir("backends")?.join("backends.list");
    let discovery = format!("type = \"file\"\npath = \"{}\"", path.display());
    let scene = scene(Plan::default(), &discovery)?;
    // Whose replies are whose could not be told.
    let other = format!(
        "[[service]]\nname = \"other\"\nvip = \"{}\"\nport = 81\nmode = \"nat\"\n\
         [service.health]\ntype = \"none\"\n[[service.pool]]\nname = \"only\"\n\
         [[service.pool.backend]]\naddress = \"{}\"\n",
        scene.target().ip(),
        address(&scene, 1)
    );
    let file = lb_tests::private_dir("discovery")?.join("lb.toml");
    std::fs::write(&file, config(&scene, &discovery)? + &other)?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    replace(&path, &list(&scene, &[1]))?;
    wait_for_finding(&scene, Some("LB0403"))?;
    wait_for(&scene, &[0])?;
    // The file stays as it is.
    std::fs::write(&file, config(&scene, &discovery)?)?;
    scene.lbctl(&["apply", "-f", &file.to_string_lossy()])?;
    wait_for(&scene, &[0, 1])?;
    wait_for_finding(&scene, None)
}

fn web() -> Result<()> {
    let scene_ready: Arc<Mutex<String>> = Arc::default();
    let discovery =
        "type = \"http\"\nurl = \"http://127.0.0.1:8500/v1/web\"\ninterval = \"1s\"\ntimeout = \"500ms\"";
    let scene = scene(Plan::default(), discovery)?;
    wait_for_finding(&scene, Some("cannot connect"))?;
    let listener = scene.lab.balancer().run(|| TcpListener::bind(("127.0.0.1", 8500)))?;
    let said = Arc::clone(&scene_ready);
    // It ends with the test's process, at the latest.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut lines =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let _ = lines.by_ref().count();
            let answer = said.lock().map(|answer| answer.clone()).unwrap_or_default();
            // A client that has gone wants no answer.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let answer = |text: String| {
        if let Ok(mut said) = scene_ready.lock() {
            *said = text;
        }
    };
    let good = |backends: &[usize]| {
        let list = list(&scene, backends);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len())
    };
    answer(good(&[1, 2]));
    wait_for(&scene, &[0, 1, 2])?;
    answer("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned());
    wait_for_finding(&scene, Some("500 Internal Server Error"))?;
    wait_for(&scene, &[0, 1, 2])?;
    answer(good(&[2]));
    wait_for(&scene, &[0, 2])?;
    wait_for_finding(&scene, None)
}

fn overrides() -> Result<()> {
    let scene = scene(Plan::default(), &by_dns(""))?;
    let server = name_server(&scene)?;
    say(&server, &scene, &[1, 2])?;
    wait_for(&scene, &[0, 1, 2])?;
    let before = scene.json(&["history", SERVICE])?;
    scene.lbctl(&["set", "weight", &scene.backend(1), "300"])?;
    scene.lbctl(&["set", "weight", &scene.backend(2), "0"])?;
    serve(&scene, &[("stable0", 1.0), ("stable1", 3.0)])?;
    say(&server, &scene, &[1])?;
    wait_for(&scene, &[0, 1])?;
    say(&server, &scene, &[1, 2])?;
    let rows = wait_for(&scene, &[0, 1, 2])?;
    let mut weights: Vec<u64> = rows.iter().filter_map(|row| row["weight"].as_u64()).collect();
    weights.sort_unstable();
    ensure!(weights == [100, 100, 300], "the override is gone with its backend: {rows:#?}");

    let after = scene.json(&["history", SERVICE])?;
    let count = |history: &Value| history["revisions"].as_array().map_or(0, Vec::len);
    ensure!(count(&after) == count(&before) + 2, "a discovery is no revision of the service: {after:#}");
    let first = before["revisions"][0]["revision"].to_string();
    scene.lbctl(&["undo", SERVICE, "--to", &first])?;
    let rows = wait_for(&scene, &[0, 1, 2])?;
    ensure!(rows.iter().all(|row| row["weight"] == 100), "{rows:#?}");

    // What was seen before a discovery is still what an operator has decided.
    let seen = scene.json(&["status"])?["revision"].to_string();
    say(&server, &scene, &[2])?;
    wait_for(&scene, &[0, 2])?;
    let path = scene.agent.places().config.to_string_lossy().into_owned();
    scene.lbctl(&["apply", "-f", &path, "--expect-revision", &seen]).map(drop)
}
