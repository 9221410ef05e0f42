//! Health: who fails is taken out in time, and the others notice nothing.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::verdict::Reason;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Behaviour, Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Host, Process, claim, private_dir};
use lb_userspace::dataplane::maps::{Maps, directory};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a backend that stops answering gets no new flow after unhealthy * interval + timeout", silent),
        claim("a backend whose page says 503 is taken out and comes back", bad_status),
        claim("a check that a running service gets takes nobody out before it is over", new_check),
        claim("with every stable backend down new flows are refused at once", all_down),
        claim("a backend whose certificate is for another name is taken out by an https check", certificate),
        claim(
            "a nat balancer that does not forward still reaches its backends itself, and says what is off",
            unforwarding,
        ),
        claim("a backend's own words scale its weight and take it out, and a command is told of it", words),
    ]
}

fn checked(kind: &str) -> Plan {
    let path = if kind == "http" { "path = \"/healthz\"\n" } else { "" };
    Plan {
        health: format!(
            "panic_threshold = 0\n[service.health]\ntype = \"{kind}\"\n{path}interval = \"200ms\"\ntimeout = \"100ms\"\nhealthy = 2\nunhealthy = 3\n"
        ),
        stable: 3,
        canary: 0,
        ..Plan::default()
    }
}

fn silent() -> Result<()> {
    let scene = Scene::start(Plan { lines: true, ..checked("tcp") })?;
    let pool = Pool::open(scene.lab.client(0), PoolSpec::new(scene.target(), 150).from(Sources::crowd(150)))?;
    let before = pool.check()?;
    scene.lab.backend(0).pull_cable()?;
    let cut = Instant::now();
    scene.wait_taking(2, Duration::from_secs(5))?;
    // 3 * 200 ms + 100 ms, and what a busy machine takes to notice.
    ensure!(cut.elapsed() < Duration::from_millis(700 + 1000), "taken out after {:?}", cut.elapsed());
    let load = LoadSpec::lines(scene.target()).from(Sources::Crowd { first: 1000, count: 500 }).flows(500);
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    scene.lab.backend(0).replug_cable()?;
    scene.wait_taking(3, Duration::from_secs(10))?;
    let after = pool.check()?;
    let others = after.broken.iter().filter(|broken| broken.server.as_deref() != Some("stable0")).count();
    ensure!(others == 0, "connections elsewhere noticed: {after:?}");
    ensure!(after.alive_on("stable1") == before.alive_on("stable1"), "{after:?}");
    Ok(())
}

fn unforwarding() -> Result<()> {
    let scene = Scene::start(checked("http"))?;
    let balancer = scene.lab.balancer();
    balancer.sysctl("net/ipv4/ip_forward", 0)?;
    let backend: SocketAddr = (scene.lab.backend(0).v4(), scene.plan.port).into();
    balancer.run(|| TcpStream::connect_timeout(&backend, Duration::from_secs(5)))?;
    // Checks see what becomes of a backend as before.
    scene.servers[1].set_health(503)?;
    scene.wait_taking(2, Duration::from_secs(5))?;
    let status = scene.agent.lbctl(&["status", "-o", "json"])?.exits(3)?.json()?;
    let findings = status["findings"].as_array().context("findings")?;
    let codes: Vec<&str> = findings.iter().filter_map(|finding| finding["code"].as_str()).collect();
    ensure!(codes.first() == Some(&"LB1006") && codes.contains(&"LB1003"), "{codes:?}");
    scene.servers[1].set_health(200)?;
    scene.wait_taking(3, Duration::from_secs(5))?;
    let maps = Maps::open(&directory(&scene.agent.places().pins))?;
    ensure!(maps.counters()?.reasons[Reason::ForwardingOff as usize] > 0, "the program saw their replies");
    Ok(())
}

fn bad_status() -> Result<()> {
    let scene = Scene::start(checked("http"))?;
    scene.servers[1].set_health(503)?;
    scene.wait_taking(2, Duration::from_secs(5))?;
    scene.agent.lbctl(&["status"])?.exits(3)?;
    let load = || LoadSpec::http(scene.target(), "/").from(Sources::crowd(500)).flows(500);
    let tally = Load::run(scene.lab.client(0), load())?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") == 0, "{tally:?}");
    scene.servers[1].set_health(200)?;
    scene.wait_taking(3, Duration::from_secs(5))?;
    scene.agent.lbctl(&["status"])?.exits(0)?;
    let tally = Load::run(scene.lab.client(0), load())?;
    ensure!(tally.failed() == 0 && tally.answered_by("stable1") > 0, "{tally:?}");
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    ensure!(events.contains("is down") && events.contains("is healthy"), "{events}");
    Ok(())
}

fn new_check() -> Result<()> {
    let scene = Scene::start(Plan { stable: 3, canary: 0, ..Plan::default() })?;
    let load = LoadSpec::http(scene.target(), "/").from(Sources::crowd(5000));
    let load = Load::start(scene.lab.client(0), load.rate(500.0).timeout(Duration::from_secs(5)))?;
    // One that is new, and then another one.
    for seconds in ["0.5", "0.6"] {
        apply(
            &scene,
            &format!(
                "type = \"exec\"\ncommand = [\"/bin/sleep\", \"{seconds}\"]\ninterval = \"5s\"\ntimeout = \"4s\"\n"
            ),
        )?;
        thread::sleep(Duration::from_millis(1500));
    }
    let tally = load.stop()?;
    ensure!(tally.failed() == 0, "{tally:?}");
    scene.wait_taking(3, Duration::from_secs(10))
}

fn all_down() -> Result<()> {
    let scene = Scene::start(checked("http"))?;
    for server in &scene.servers {
        server.set_health(500)?;
    }
    scene.wait_taking(0, Duration::from_secs(5))?;
    let load = LoadSpec::http(scene.target(), "/")
        .from(Sources::crowd(100))
        .flows(100)
        .timeout(Duration::from_secs(2));
    let tally = Load::run(scene.lab.client(0), load)?;
    ensure!(tally.failed.get("refused") == Some(&100), "the balancer resets them: {tally:?}");
    scene.servers[0].behave(Behaviour::Serve)?;
    Ok(())
}

fn certificate() -> Result<()> {
    let mut scene = Scene::start(Plan { stable: 2, canary: 0, ..Plan::default() })?;
    let file = private_dir("certificates")?.join("ca.pem");
    let (pem, issuer) = authority()?;
    fs::write(&file, pem)?;

    let mut first = nginx(scene.lab.backend(0), "shop.example", &issuer)?;
    let mut second = nginx(scene.lab.backend(1), "shop.example", &issuer)?;
    let check = format!(
        "type = \"https\"\npath = \"/\"\nport = 8443\nhost = \"shop.example\"\nca_file = \"{}\"\nexpect_body = \"well\"\n\
         interval = \"200ms\"\ntimeout = \"200ms\"\n",
        file.display()
    );
    apply(&scene, &check)?;
    scene.wait_taking(2, Duration::from_secs(10))?;

    second.kill9();
    let mut other = nginx(scene.lab.backend(1), "mail.example", &issuer)?;
    scene.wait_taking(1, Duration::from_secs(10))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !reason(&scene, 1)?.contains("mail.example") {
        ensure!(Instant::now() < deadline, "{}", reason(&scene, 1)?);
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(reason(&scene, 0)?.is_empty(), "{}", reason(&scene, 0)?);

    // The file of the authority is read again with the configuration, also where that says what it said before.
    for by_signal in [true, false] {
        let (pem, issuer) = authority()?;
        for (i, server) in [&mut first, &mut other].into_iter().enumerate() {
            server.kill9();
            *server = nginx(scene.lab.backend(i), "shop.example", &issuer)?;
        }
        scene.wait_taking(0, Duration::from_secs(10))?;
        fs::write(&file, pem)?;
        if by_signal {
            scene.agent.process().signal(Signal::SIGHUP)?;
        } else {
            apply(&scene, &check)?;
        }
        scene.wait_taking(2, Duration::from_secs(10))?;
    }
    Ok(())
}

/// Somebody who signs certificates, and the one that says so.
fn authority() -> Result<(String, rcgen::Issuer<'static, rcgen::KeyPair>)> {
    let key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(vec![])?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&key)?.pem();
    Ok((pem, rcgen::Issuer::new(authority, key)))
}

/// What the second column of a table would say: why a backend's health is what it is.
fn reason(scene: &Scene, backend: usize) -> Result<String> {
    let answer = scene.json(&["get", "backends", SERVICE])?;
    let name = scene.backend(backend);
    let rows = answer["backends"].as_array().context("a list")?;
    let row = rows.iter().find(|row| row["name"].as_str().is_some_and(|it| name.ends_with(it)));
    Ok(row.context("it is listed")?["health"]["reason"].as_str().unwrap_or_default().to_owned())
}

/// Another `[service.health]`.
fn apply(scene: &Scene, health: &str) -> Result<()> {
    let plan =
        Plan { health: format!("panic_threshold = 0\n[service.health]\n{health}"), ..scene.plan.clone() };
    let path = private_dir("health")?.join("lb.toml");
    fs::write(&path, plan.config(&scene.lab))?;
    scene.lbctl(&["apply", "-f", &path.to_string_lossy()]).map(drop)
}

/// nginx with a certificate for that name, at port 8443.
fn nginx(host: &Host, name: &str, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>) -> Result<Process> {
    let home = private_dir("nginx")?;
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, issuer)?;
    fs::write(home.join("cert.pem"), certificate.pem())?;
    fs::write(home.join("key.pem"), key.serialize_pem())?;
    let config = format!(
        "user root; worker_processes 1; daemon off; pid {0}/pid; error_log stderr error;\nevents {{ }}\n\
         http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0};\n\
         fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};\n\
         server {{ listen 8443 ssl; ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem;\n\
         location / {{ return 200 \"all is well\\n\"; }} }} }}\n",
        home.display()
    );
    let path = home.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path);
    host.spawn(command).context("nginx (Debian's package `nginx`)")
}

fn words() -> Result<()> {
    const AGENT: u16 = 9999;
    let scene = Scene::start(Plan { stable: 2, canary: 0, ..Plan::default() })?;
    let says = [Says::start(scene.lab.backend(0), AGENT)?, Says::start(scene.lab.backend(1), AGENT)?];
    let home = private_dir("hook")?;
    let told = home.join("told");
    let hook = format!("echo $LB_SERVICE $LB_POOL $LB_BACKEND >> {}; echo told", told.display());
    apply(
        &scene,
        &format!(
            "type = \"tcp\"\nagent_port = {AGENT}\nagent_interval = \"1s\"\n\
             on_down_command = [\"/bin/sh\", \"-c\", \"{hook}\"]\n"
        ),
    )?;
    scene.wait_taking(2, Duration::from_secs(10))?;

    says[0].say("up 50%\n");
    wait(&scene, |row| {
        row["weight"] == 50 && row["slots"].as_u64().is_some_and(|slots| slots.abs_diff(5460) < 20)
    })?;
    says[0].say("drain\n");
    wait(&scene, |row| row["takes_new"] == false && row["why_not"] == "its agent check says drain")?;
    ensure!(!told.exists(), "nobody is down");
    says[0].say("ready down # the disk is full\n");
    wait(&scene, |row| row["health"]["status"] == "down" && row["takes_new"] == false)?;
    says[0].say("up 100%\n");
    wait(&scene, |row| row["takes_new"] == true && row["weight"] == 100)?;
    // It was drained when it went down: health took nothing away.
    ensure!(!told.exists(), "{:?}", fs::read_to_string(&told));

    says[1].say("fail\n");
    scene.wait_taking(1, Duration::from_secs(10))?;
    let backend = scene.backend(1).replace('/', " ");
    wait_for(&told, &format!("{backend}\n"))?;
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    ensure!(events.contains("says down ready 100%"), "{events}");
    Ok(())
}

/// Until the first backend is like that.
fn wait(scene: &Scene, is: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = scene.json(&["get", "backends", SERVICE])?;
        let row = &answer["backends"][0];
        if is(row) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{row:#}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn wait_for(path: &Path, text: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::read_to_string(path).unwrap_or_default() != text {
        ensure!(Instant::now() < deadline, "{:?}, not {text:?}", fs::read_to_string(path));
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A port that says a line to whoever connects.
struct Says(Arc<Mutex<String>>);

impl Says {
    fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        let line = Arc::new(Mutex::new("up ready 100%\n".to_owned()));
        let said = Arc::clone(&line);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let line = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Whoever asked may be gone.
                let _ = stream.write_all(line.as_bytes());
            }
        });
        Ok(Self(line))
    }

    fn say(&self, line: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = line.to_owned();
    }
}
