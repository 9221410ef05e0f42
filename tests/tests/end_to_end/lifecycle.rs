//! The agent as a service of its host: privileges, interfaces that come and go, and what others read from it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::{Agent, AgentSpec, built};
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Server, ServerSpec, Sources};
use lb_tests::{Lab, Namespace, Topology, claim, private_dir};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};
use serde_json::Value;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("lbd works as a user without rights, with three capabilities", || hardened(Some(NOBODY))),
        claim("lbd works as root with three capabilities only, as its unit file has it", || hardened(None)),
        claim("an interface that is deleted and made anew gets the program again", recreated),
        claim("an interface that is renamed or down keeps the program, and events say so", renamed),
        claim("two agents in two namespaces of one host do not meet", two_agents),
        claim("metrics count what was sent, and outlive the agent", metrics),
        claim("metrics count packets by the interface that they came in by", by_interface),
        claim("the second socket reads and changes nothing", read_only),
        claim("services come in pages, whole ones, in the order of the file", pages),
        claim("whoever follows events across a restart is told of the gap", events_across_a_restart),
        claim("the service manager is told of start, reload, life and end", notified),
        claim("lbd --check says what is in the way, and changes nothing", check),
        claim("a log in JSON is JSON in every line", json_log),
    ]
}

const NOBODY: u32 = 65_534;
/// CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, as proc_pid_status(5) shows them.
const THREE: &str = "000000c000001000";
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds.
fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// From the one address of each client that needs no route.
fn ask(lab: &Lab, scene_target: std::net::SocketAddr, flows: u64) -> Result<lb_tests::traffic::Tally> {
    Load::run(lab.client(0), LoadSpec::http(scene_target, "/").from(Sources::Own).flows(flows))
}

fn hardened(user: Option<u32>) -> Result<()> {
    let plan = Plan { stable: 2, canary: 0, ..Plan::default() };
    let lab = Lab::builder().backends(2).build()?;
    let _servers: Vec<Server> = (0..2)
        .map(|i| Server::start(lab.backend(i), ServerSpec::http(&format!("stable{i}"), plan.port)))
        .collect::<Result<_>>()?;

    let places = private_dir("hardened")?;
    let pins = Path::new("/sys/fs/bpf").join(places.file_name().context("a name")?);
    let state = places.join("state");
    fs::create_dir(&pins)?;
    fs::create_dir(&state)?;
    fs::write(places.join("lb.toml"), plan.config(&lab))?;
    // Wherever it was built may be closed to others.
    let lbd = places.join("lbd");
    fs::copy(built("lbd")?, &lbd)?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all,+bpf,+perfmon,+net_admin", "--no-new-privs"]);
    match user {
        Some(user) => {
            fs::set_permissions("/sys/fs/bpf", fs::Permissions::from_mode(0o711))?;
            for place in [&places, &pins, &state] {
                chown(place, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
            }
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
            command.args([
                "--inh-caps=-all,+bpf,+perfmon,+net_admin",
                "--ambient-caps=-all,+bpf,+perfmon,+net_admin",
            ]);
        }
        None => {
            command.arg("--inh-caps=-all");
        }
    }
    let socket = places.join("lbd.sock");
    command.arg(&lbd).env("LB_CONFIG", places.join("lb.toml")).env("LB_SOCKET", &socket);
    command.env("LB_STATE_DIR", &state).env("LB_PIN_DIR", &pins);
    let mut process = lab.balancer().spawn(command)?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()));
    wait_for("lbd takes connections", || {
        ensure!(process.finished()?.is_none(), "lbd ended\n{}", process.log());
        Ok(UnixStream::connect(&socket).is_ok())
    })?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).or(status)?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    ensure!(line("CapEff:").ends_with(THREE), "{status}");
    ensure!(line("Uid:").split_whitespace().nth(1) == Some(&user.unwrap_or(0).to_string()), "{status}");

    let lbctl = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(built("lbctl")?);
        command.arg("--socket").arg(&socket).args(arguments);
        let output = lab.balancer().output(command)?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stderr));
        Ok(words)
    };
    let target = (lab.vip(0, plan.family), lb_tests::scene::PORT).into();
    wait_for("both backends take flows", || {
        let rows: Value = serde_json::from_str(&lbctl(&["-o", "json", "get", "backends", SERVICE])?)?;
        let rows = rows["backends"].as_array().context("rows")?;
        Ok(rows.iter().filter(|row| row["takes_new"] == true).count() == 2)
    })?;
    let load = LoadSpec::http(target, "/").from(Sources::crowd(500)).flows(500);
    let tally = Load::run(lab.client(0), load.clone())?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") > 100, "{tally:?}\n{}", process.log());
    lbctl(&["set", "weight", &format!("{SERVICE}/stable/{}:{}", lab.backend(0).v4(), plan.port), "0"])?;
    let tally = Load::run(lab.client(0), load)?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable0") == 0, "{tally:?}\n{}", process.log());
    process.signal(Signal::SIGTERM)?;
    ensure!(format!("{:?}", process.wait(PATIENCE)?) == "Exited(0)", "{}", process.log());
    Ok(())
}

/// Whether there was an event of this code.
fn told(scene: &Scene, code: &str) -> Result<bool> {
    let events = scene.lbctl(&["-o", "json", "get", "events"])?;
    Ok(events.lines().any(|line| line.contains(&format!("\"code\":\"{code}\""))))
}

fn recreated() -> Result<()> {
    let scene =
        Scene::start(Plan { canary: 0, dataplane: "sweep = \"200ms\"".to_owned(), ..Plan::default() })?;
    let (lab, balancer) = (&scene.lab, scene.lab.balancer());
    ensure!(ask(lab, scene.target(), 100)?.failed() == 0);
    let before = scene.json(&["status"])?["dataplane"]["interfaces"][0]["ifindex"].clone();

    balancer.remove_card()?;
    wait_for("the loss is told", || told(&scene, "interface_lost"))?;
    let status = scene.agent.lbctl(&["-o", "json", "status"])?.exits(3)?.json()?;
    let findings = status["findings"].as_array().context("findings")?;
    ensure!(findings.iter().any(|finding| finding["code"] == "LB1020"), "{status:#}");
    let (code, words) = http(balancer, "/readyz")?;
    ensure!(code == 503 && words.contains(&balancer.port().name), "{code} {words}");

    let _transmitted = balancer.insert_card()?;
    wait_for("the program is on it again", || told(&scene, "interface_attached"))?;
    let after = scene.json(&["status"])?["dataplane"]["interfaces"][0]["ifindex"].clone();
    ensure!(after.is_number() && after != before, "{before} before, {after} after");
    ensure!(http(balancer, "/readyz")?.0 == 200);
    scene.wait_taking(2, PATIENCE)?;
    wait_for("clients are answered again", || Ok(ask(lab, scene.target(), 1)?.failed() == 0))?;
    let tally = ask(lab, scene.target(), 200)?;
    ensure!(tally.failed() == 0 && tally.answered() == 200, "{tally:?}");
    let links = fs::read_dir(scene.agent.places().pins.join("v1"))?.flatten();
    let links = links.filter(|entry| entry.file_name().to_string_lossy().starts_with("link-"));
    ensure!(links.count() == 1, "the link of the interface that was lost is still pinned");
    Ok(())
}

fn renamed() -> Result<()> {
    let scene = Scene::start(Plan { canary: 0, ..Plan::default() })?;
    let (lab, balancer) = (&scene.lab, scene.lab.balancer());
    let name = balancer.port().name.clone();
    let ip = |words: &str| -> Result<()> {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        let output = balancer.output(command)?;
        ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    ip(&format!("link set dev {name} name other0"))?;
    wait_for("the new name is told", || told(&scene, "interface_renamed"))?;
    ensure!(ask(lab, scene.target(), 100)?.failed() == 0, "the program stays on it");
    ip(&format!("link set dev other0 name {name}"))?;

    balancer.pull_cable()?;
    wait_for("it is told that there is no carrier", || told(&scene, "interface_down"))?;
    let status = scene.agent.lbctl(&["-o", "json", "status"])?.exits(3)?.json()?;
    let findings = status["findings"].as_array().context("findings")?;
    ensure!(findings.iter().any(|finding| finding["code"] == "LB1021"), "{status:#}");
    balancer.replug_cable()?;
    wait_for("it is told that it is up", || told(&scene, "interface_up"))?;
    scene.wait_taking(2, PATIENCE)?;
    wait_for("clients are answered again", || Ok(ask(lab, scene.target(), 1)?.failed() == 0))?;
    let tally = ask(lab, scene.target(), 100)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    Ok(())
}

fn two_agents() -> Result<()> {
    let plan = Plan { canary: 0, ..Plan::default() };
    let (one, other) = (Scene::start(plan.clone())?, Scene::start(plan)?);
    ensure!(one.target() == other.target(), "the same VIP in both");
    let share = |scene: &Scene| -> Result<f64> {
        let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(400)).flows(400);
        let tally = Load::run(scene.lab.client(0), load)?;
        ensure!(tally.failed() == 0, "{tally:?}");
        Ok(tally.share(&["stable0"]))
    };
    one.lbctl(&["set", "weight", &one.backend(0), "0"])?;
    other.lbctl(&["set", "weight", &other.backend(1), "0"])?;
    ensure!((share(&one)?, share(&other)?) == (0.0, 1.0), "each has its own weights");
    one.lbctl(&["detach"])?;
    ensure!(!one.agent.places().pins.join("v1").exists());
    ensure!(share(&other)? == 1.0, "the other one goes on");
    Ok(())
}

/// Status and body of a GET at the place for metrics.
fn http(namespace: &Namespace, path: &str) -> Result<(u16, String)> {
    namespace.run(|| {
        let stream = TcpStream::connect("127.0.0.1:9650")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        request(stream, "GET", path)
    })
}

fn request(mut stream: impl Read + Write, method: &str, path: &str) -> Result<(u16, String)> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}

/// The sum of a metric's series whose labels contain all of these.
fn sum(text: &str, metric: &str, labels: &[&str]) -> f64 {
    let of_it = text.lines().filter(|line| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    of_it.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn metrics() -> Result<()> {
    const FLOWS: u64 = 500;
    let mut scene = Scene::start(Plan::default())?;
    let balancer = scene.lab.balancer().namespace().clone();
    let scrape = || -> Result<String> {
        let (code, text) = http(&balancer, "/metrics")?;
        ensure!(code == 200, "{code} {text}");
        Ok(text)
    };
    let none = scrape()?;
    ensure!(
        sum(&none, "lb_connections_total", &[]) == 0.0 && none.contains("lb_connections_total{"),
        "{none}"
    );
    ensure!(sum(&none, "lb_split_ratio", &["group=\"stable\""]) == 1.0, "{none}");
    ensure!(sum(&none, "lb_backends", &[]) == 3.0 && sum(&none, "lb_backends_healthy", &[]) == 3.0, "{none}");

    scene.lbctl(&["set", "split", SERVICE, "25"])?;
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(FLOWS as u32)).flows(FLOWS);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let some = scrape()?;
    ensure!(sum(&some, "lb_connections_total", &[]) == FLOWS as f64, "{some}");
    for name in ["stable0", "stable1", "canary0"] {
        let (pool, i) = name.split_at(name.len() - 1);
        let number = i.parse::<usize>()? + if pool == "canary" { 2 } else { 0 };
        let backend = scene.backend(number);
        let label = format!("backend=\"{}\"", backend.rsplit('/').next().context("a name")?);
        let counted = sum(&some, "lb_connections_total", &[&label]);
        ensure!(counted == tally.answered_by(name) as f64, "{name}: {counted}\n{tally:?}");
        ensure!(sum(&some, "lb_packets_total", &[&label, "\"reply\""]) >= 3.0 * counted, "{some}");
    }
    ensure!(sum(&some, "lb_split_ratio", &["group=\"canary\""]) == 0.25, "{some}");
    ensure!(sum(&some, "lb_xdp_actions_total", &["\"transmit\""]) > 6.0 * FLOWS as f64, "{some}");

    // The second one takes nothing back.
    for _ in 0..2 {
        scene.lbctl(&["rollback", SERVICE])?;
    }
    ensure!(sum(&scrape()?, "lb_rollbacks_total", &["cause=\"manual\""]) == 1.0);
    scene.agent.kill9();
    scene.agent.restart()?;
    scene.agent.wait_ready(PATIENCE)?;
    let after = scrape()?;
    ensure!(sum(&after, "lb_connections_total", &[]) == FLOWS as f64, "the kernel's counters go on: {after}");
    ensure!(http(&balancer, "/healthz")? == (200, "ok\n".to_owned()));
    ensure!(http(&balancer, "/readyz")? == (200, "ready\n".to_owned()));
    ensure!(http(&balancer, "/v1/status")?.0 == 404, "the API is not served there");
    Ok(())
}

fn by_interface() -> Result<()> {
    const FLOWS: u64 = 50;
    let plan = Plan { stable: 1, canary: 0, ..Plan::default() };
    let scene = Scene::start_in(Lab::builder().topology(Topology::Routed), plan)?;
    let balancer = scene.lab.balancer();
    let sent = |name: &str| -> Result<f64> {
        let (_, text) = http(balancer.namespace(), "/metrics")?;
        let label = format!("interface=\"{name}\"");
        ensure!(text.contains(&format!("lb_xdp_actions_total{{{label},action=\"drop\"}}")), "{text}");
        Ok(sum(&text, "lb_xdp_actions_total", &[&label, "\"transmit\""]))
    };
    let names: Vec<&str> = balancer.ports().iter().map(|port| port.name.as_str()).collect();
    let [clients, backends] = names.as_slice() else { bail!("not two interfaces: {names:?}") };
    let before = [sent(clients)?, sent(backends)?];
    let tally = Load::run(scene.lab.client(0), LoadSpec::http(scene.target(), "/").flows(FLOWS))?;
    ensure!(tally.failed() == 0, "{tally:?}");
    // Each connection has four packets each way at least; the balancer's own checks are none of them.
    let grown = [sent(clients)? - before[0], sent(backends)? - before[1]];
    ensure!(grown.iter().all(|grown| *grown >= 4.0 * FLOWS as f64), "{names:?} {grown:?}");
    Ok(())
}

/// An agent with nothing but a balancer around it.
fn lonely(spec: impl FnOnce(AgentSpec) -> AgentSpec) -> Result<(Lab, Agent)> {
    let lab = Lab::builder().backends(1).build()?;
    let config = Plan { stable: 1, canary: 0, ..Plan::default() }.config(&lab);
    let mut agent = Agent::start(lab.balancer(), spec(AgentSpec::new(config)))?;
    agent.wait_ready(PATIENCE)?;
    Ok((lab, agent))
}

fn read_only() -> Result<()> {
    let socket = private_dir("readers")?.join("read.sock");
    let path = socket.to_string_lossy().into_owned();
    let (_lab, mut agent) = lonely(|spec| spec.arg("--read-only-socket").arg(&path))?;
    ensure!(fs::metadata(&socket)?.permissions().mode() & 0o777 == 0o666);
    let ask = |method: &str, path: &str| request(UnixStream::connect(&socket)?, method, path);
    let revision =
        || -> Result<Value> { Ok(agent.lbctl(&["-o", "json", "status"])?.json()?["revision"].clone()) };
    let before = revision()?;
    for path in ["/v1/status", "/v1/services", "/v1/events", "/v1/openapi.json"] {
        let (code, body) = ask("GET", path)?;
        ensure!(code == 200, "{path}: {code} {body}");
    }
    for (method, path) in [
        ("POST", "/v1/detach"),
        ("PUT", "/v1/services/web/split"),
        ("POST", "/v1/services/web/rollback"),
        ("DELETE", "/v1/status"),
        ("HEAD", "/v1/status"),
    ] {
        let (code, body) = ask(method, path)?;
        ensure!(code == 403, "{method} {path}: {code} {body}");
        ensure!(
            method == "HEAD" || body.contains("LB0523") && body.contains("--socket"),
            "{method} {path}: {body}"
        );
    }
    ensure!(revision()? == before);
    agent.stop(PATIENCE)?;
    ensure!(!socket.exists(), "it goes with the agent");
    Ok(())
}

/// Five services with 1, 2, 3, 4 and no backends.
fn pages() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let interface = &lab.balancer().port().name;
    let mut config = format!("schema = 1\n[dataplane]\ninterfaces = [\"{interface}\"]\nslots = 262144\n");
    for (i, backends) in [1, 2, 3, 4, 0].into_iter().enumerate() {
        config += &format!("[[service]]\nname = \"s{}\"\nvip = \"10.77.0.{i}\"\nport = 80\n", 9 - i);
        config += "table_size = 4093\nmode = \"dsr-l2\"\n[[service.pool]]\nname = \"a\"\n";
        for n in 0..backends {
            config += &format!("[[service.pool.backend]]\naddress = \"10.88.{i}.{n}:80\"\n");
        }
    }
    let mut agent = Agent::start(lab.balancer(), AgentSpec::new(config))?;
    agent.wait_ready(PATIENCE)?;
    let ask = |path: &str| -> Result<(u16, Value)> {
        let (code, body) = request(UnixStream::connect(&agent.places().socket)?, "GET", path)?;
        Ok((code, serde_json::from_str(&body).with_context(|| body.clone())?))
    };
    for kind in ["status", "services"] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let (code, page) = ask(&format!("/v1/{kind}?limit=4{after}"))?;
            ensure!(code == 200, "{page:#}");
            let services = page["services"].as_array().context("services")?.iter();
            seen.push(
                services.map(|it| it["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>(),
            );
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let expected: [&[&str]; 4] = [&["s9", "s8"], &["s7"], &["s6"], &["s5"]];
        ensure!(seen == expected, "{kind}: {seen:?}");
    }
    // The findings are those of all services, whatever is on the page.
    let finding = |status: &Value| status["findings"].as_array().map_or(0, Vec::len);
    let (first, last) = (ask("/v1/status?limit=1")?.1, ask("/v1/status?after=s6")?.1);
    ensure!(finding(&first) > 0 && finding(&first) == finding(&last), "{first:#} {last:#}");
    let (code, page) = ask("/v1/backends?service=s6&limit=1")?;
    ensure!(code == 200 && page["backends"].as_array().map(Vec::len) == Some(4), "{page:#}");
    ensure!(page.get("next").is_none(), "{page:#}");
    let (code, refused) = ask("/v1/services?after=s0")?;
    ensure!(code == 409 && refused["remedy"].to_string().contains("first page"), "{code} {refused:#}");
    let all = agent.lbctl(&["-o", "json", "get", "backends"])?.done()?.json()?;
    ensure!(all["backends"].as_array().map(Vec::len) == Some(10), "{all:#}");
    Ok(())
}

fn events_across_a_restart() -> Result<()> {
    let (_lab, mut agent) = lonely(|spec| spec)?;
    let lines = |agent: &Agent, after: u64| -> Result<Vec<Value>> {
        let reply = agent.lbctl(&["-o", "json", "get", "events", "--after", &after.to_string()])?.done()?;
        reply.stdout.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    let seen = lines(&agent, 0)?;
    let last = seen.last().and_then(|event| event["seq"].as_u64()).context("a number")?;
    ensure!(lines(&agent, last)?.is_empty(), "nothing has happened since");
    agent.kill9();
    agent.restart()?;
    agent.wait_ready(PATIENCE)?;
    let after = lines(&agent, last)?;
    ensure!(after[0]["code"] == "events_missed" && after[1]["code"] == "agent_started", "{after:#?}");
    let numbers: Vec<u64> = after.iter().filter_map(|event| event["seq"].as_u64()).collect();
    ensure!(numbers[0] > last && numbers.is_sorted_by(|a, b| a + 1 == *b), "{last}, then {numbers:?}");
    let next = lines(&agent, numbers[0])?;
    ensure!(next == after[1..], "whoever was told is not told again: {next:#?}");
    Ok(())
}

fn notified() -> Result<()> {
    let place: PathBuf = private_dir("manager")?.join("notify");
    let manager = UnixDatagram::bind(&place)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let next = |wanted: &str| -> Result<String> {
        let mut buffer = [0; 1024];
        for _ in 0..1_000 {
            let length = manager.recv(&mut buffer).with_context(|| format!("no {wanted}"))?;
            let words = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if words.lines().any(|line| line == wanted) {
                return Ok(words);
            }
        }
        bail!("no {wanted} among the first thousand")
    };
    let (_lab, mut agent) =
        lonely(|spec| spec.env("NOTIFY_SOCKET", &place.to_string_lossy()).env("WATCHDOG_USEC", "300000"))?;
    next("READY=1")?;
    for _ in 0..3 {
        next("WATCHDOG=1")?;
    }
    agent.process().signal(Signal::SIGHUP)?;
    ensure!(next("RELOADING=1")?.contains("MONOTONIC_USEC="));
    next("READY=1")?;
    agent.process().signal(Signal::SIGTERM)?;
    next("STOPPING=1")?;
    ensure!(format!("{:?}", agent.process().wait(PATIENCE)?) == "Exited(0)", "{}", agent.log());
    Ok(())
}

fn check() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let places = private_dir("checked")?;
    let config = Plan { stable: 1, canary: 0, ..Plan::default() }.config(&lab);
    let pins = Path::new("/sys/fs/bpf/checked");
    let run = |config: &str, prefix: &[&str]| -> Result<(bool, String)> {
        fs::write(places.join("lb.toml"), config)?;
        let lbd = built("lbd")?.to_string_lossy().into_owned();
        let at = pins.to_string_lossy();
        let words = [prefix, &[lbd.as_str(), "--check", "--pin-dir", at.as_ref()]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        for (option, name) in
            [("--config", "lb.toml"), ("--socket", "run/lbd.sock"), ("--state-dir", "state")]
        {
            command.arg(option).arg(places.join(name));
        }
        let output = lab.balancer().output(command)?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (good, words) = run(&config, &[])?;
    ensure!(
        good && words.lines().count() == 8 && words.lines().all(|line| line.starts_with("ok ")),
        "{words}"
    );
    let (good, words) = run(&config.replace("[\"eth0\"]", "[\"eth77\"]"), &[])?;
    ensure!(!good && words.contains("failed  interfaces: there is no interface eth77; there are"), "{words}");
    let (good, words) = run(&config.replace("mode = \"nat\"", "mode = \"natt\""), &[])?;
    ensure!(!good && words.contains("failed  configuration") && words.contains("natt"), "{words}");
    let (good, words) = run(&config, &["setpriv", "--bounding-set=-bpf", "--inh-caps=-all"])?;
    ensure!(!good && words.contains("failed  privileges: CAP_BPF missing"), "{words}");
    let left: Vec<String> = fs::read_dir(&places)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(left == ["lb.toml"] && !pins.exists(), "nothing is made: {left:?}");
    Ok(())
}

fn json_log() -> Result<()> {
    let (_lab, mut agent) = lonely(|spec| spec.env("LB_LOG_FORMAT", "json"))?;
    agent.stop(PATIENCE)?;
    let log = agent.log();
    let lines: Vec<Value> =
        log.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| log.clone())?;
    let started = lines.iter().find(|line| line["code"] == "agent_started").with_context(|| log.clone())?;
    ensure!(started["level"] == "INFO" && started["message"].is_string(), "{started:#}");
    ensure!(started["timestamp"].is_string() && started["target"].is_string(), "{started:#}");
    Ok(())
}
