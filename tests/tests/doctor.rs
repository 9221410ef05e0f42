//! Broken set-ups, each of which `lbctl doctor` finds alone, with the remedy for it.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::built;
use lb_tests::bpf::{XdpMode, attach_xdp};
use lb_tests::decapsulator::Decapsulator;
use lb_tests::scene::{PORT, Plan, Scene};
use lb_tests::traffic::{Server, ServerSpec};
use lb_tests::{Family, Lab, Topology, claim, private_dir};
use serde_json::Value;

fn main() -> ExitCode {
    let broken = BROKEN
        .iter()
        .map(|broken| claim(&format!("doctor finds {}", broken.what), move || found_alone(broken)));
    let others = [
        claim("doctor finds nothing wrong with sound hosts of each mode", sound),
        claim("doctor is content with an agent at work, and says so when it is dead", agent),
        claim("doctor says why the program is in generic mode", generic),
        claim("doctor finds missing privileges without having them", unprivileged),
    ];
    lb_tests::run(broken.chain(others).collect())
}

/// A set-up that does not work.
struct Broken {
    what: &'static str,
    plan: Setup,
    breaks: fn(&mut Sick) -> Result<()>,
    /// The first error has this code.
    code: &'static str,
    /// And this is in its remedy.
    remedy: &'static str,
}

/// What is built before something is broken.
#[derive(Clone, Copy)]
enum Setup {
    Nat,
    L2,
    Ipip,
    Gue,
}

/// The ten kinds that the issue asks for, and some more.
const BROKEN: &[Broken] = &[
    Broken {
        what: "a mistake in the configuration",
        plan: Setup::Nat,
        breaks: |sick| sick.replace("mode = \"nat\"", "mode = \"natt\""),
        code: "LB1101",
        remedy: "lbctl validate",
    },
    Broken {
        what: "pins outside of a BPF file system",
        plan: Setup::Nat,
        breaks: |sick| {
            sick.pins = private_dir("no-bpffs")?.to_string_lossy().into_owned();
            Ok(())
        },
        code: "LB1104",
        remedy: "mount -t bpf bpf /sys/fs/bpf",
    },
    Broken {
        what: "an interface that is misspelt",
        plan: Setup::Nat,
        breaks: |sick| sick.replace("\"eth0\"", "\"eht0\""),
        code: "LB1107",
        remedy: "lb.toml",
    },
    Broken {
        what: "an interface that is down",
        plan: Setup::Nat,
        breaks: |sick| sick.lab.balancer().set_down("eth1"),
        code: "LB1107",
        remedy: "ip link set dev eth1 up",
    },
    Broken {
        what: "an interface without a carrier",
        plan: Setup::Nat,
        breaks: |sick| sick.lab.balancer().pull_cable(),
        code: "LB1107",
        remedy: "ethtool eth0",
    },
    Broken {
        what: "another XDP program on the interface",
        plan: Setup::Nat,
        breaks: |sick| {
            const XDP_PASS: i32 = 2;
            let (balancer, program) = (sick.lab.balancer(), lb_tests::programs::returning(XDP_PASS)?);
            let link = attach_xdp(balancer, balancer.port().index, &program, XdpMode::Native)?;
            sick.kept.push(Box::new((program, link)));
            Ok(())
        },
        code: "LB1108",
        remedy: "ip link set dev eth0 xdpdrv off",
    },
    Broken {
        what: "a tunnel whose packets do not fit",
        plan: Setup::Ipip,
        breaks: |sick| sick.ip(&["link", "set", "dev", "eth0", "mtu", "1500"]),
        code: "LB1112",
        remedy: "ip link set dev eth0 mtu 1520",
    },
    Broken {
        what: "forwarding that is off",
        plan: Setup::Nat,
        breaks: |sick| sick.lab.balancer().sysctl("net/ipv4/ip_forward", 0),
        code: "LB1113",
        remedy: "sysctl -w net.ipv4.ip_forward=1",
    },
    Broken {
        what: "a backend that no route leads to",
        plan: Setup::Nat,
        breaks: |sick| sick.replace(&sick.backend(), "192.0.2.77:8080"),
        code: "LB1115",
        remedy: "ip route add 192.0.2.77",
    },
    Broken {
        what: "a backend that is gone from its segment",
        plan: Setup::Nat,
        breaks: |sick| sick.lab.backend(0).pull_cable(),
        code: "LB1115",
        remedy: "ip neigh show",
    },
    Broken {
        what: "a VIP that another host answers for",
        plan: Setup::Nat,
        breaks: |sick| sick.lab.client(0).add_address("eth0", sick.lab.vip(0, Family::V4), 32),
        code: "LB1117",
        remedy: "ip addr del",
    },
    Broken {
        what: "an IPv6 VIP that another host answers for",
        plan: Setup::Nat,
        breaks: |sick| {
            let vip = sick.lab.vip(0, Family::V6);
            sick.replace(&format!("vip = \"{}\"", sick.lab.vip(0, Family::V4)), &format!("vip = \"{vip}\""))?;
            let backend = sick.backend();
            sick.replace(&backend, &format!("[{}]:8080", sick.lab.backend(0).v6()))?;
            sick.lab.client(0).add_address("eth0", vip, 128)
        },
        code: "LB1117",
        remedy: "ip addr del",
    },
    Broken {
        what: "a backend that answers ARP for the VIP",
        plan: Setup::L2,
        breaks: |sick| {
            let backend = sick.lab.backend(0);
            backend.sysctl("net/ipv4/conf/all/arp_ignore", 0)?;
            backend.sysctl("net/ipv4/conf/eth0/arp_ignore", 0)
        },
        code: "LB1117",
        remedy: "sysctl -w net.ipv4.conf.all.arp_ignore=1",
    },
    Broken {
        what: "a backend without the VIP on its loopback",
        plan: Setup::L2,
        breaks: |sick| sick.lab.backend(0).release_vip(sick.lab.vip(0, Family::V4)),
        code: "LB1118",
        remedy: "dev lo",
    },
    Broken {
        what: "a backend that takes no tunnel apart",
        plan: Setup::Ipip,
        breaks: |sick| {
            sick.kept.clear();
            Ok(())
        },
        code: "LB1119",
        remedy: "ip link add lb0 type ipip external",
    },
    Broken {
        what: "a backend that takes no GUE apart",
        plan: Setup::Gue,
        breaks: |sick| {
            sick.kept.clear();
            Ok(())
        },
        code: "LB1119",
        remedy: "ip fou add port 6080 gue",
    },
    Broken {
        what: "a backend on which nothing listens",
        plan: Setup::Nat,
        breaks: |sick| {
            sick.servers.clear();
            Ok(())
        },
        code: "LB1120",
        remedy: "ss -ltn 'sport = :8080'",
    },
    Broken {
        what: "too few files that may be open",
        plan: Setup::Nat,
        breaks: |sick| {
            sick.wrapper = &["prlimit", "--nofile=256:256"];
            Ok(())
        },
        code: "LB1122",
        remedy: "LimitNOFILE",
    },
];

/// A lab, and what `doctor` is called with in it. No agent runs: none is needed.
struct Sick {
    lab: Lab,
    config: String,
    pins: String,
    wrapper: &'static [&'static str],
    servers: Vec<Server>,
    /// What lives as long as the lab does.
    kept: Vec<Box<dyn std::any::Any>>,
    plan: Plan,
}

impl Sick {
    /// Sound so far.
    fn new(setup: Setup) -> Result<Self> {
        let mode = match setup {
            Setup::Nat => "nat",
            Setup::L2 => "dsr-l2",
            Setup::Ipip => "dsr-ipip",
            Setup::Gue => "dsr-gue",
        };
        let plan = Plan { mode, stable: 1, canary: 0, ..Plan::default() };
        let builder = Lab::builder().without_xdp();
        let lab = match setup {
            Setup::Nat => builder.topology(Topology::Routed),
            Setup::L2 => builder,
            // Room for the outer headers.
            Setup::Ipip => builder.mtu(1520),
            Setup::Gue => builder.mtu(1528),
        }
        .build()?;
        let (backend, mut kept) = (lab.backend(0), Vec::<Box<dyn std::any::Any>>::new());
        if mode != "nat" {
            lab.reply_directly()?;
            backend.hold_vip(lab.vip(0, Family::V4))?;
        }
        match setup {
            Setup::Nat | Setup::L2 => {}
            Setup::Ipip => kept.push(Box::new(Decapsulator::start(backend)?)),
            Setup::Gue => kept.push(Box::new(lb_tests::scene::lbd_decap(backend, &[])?)),
        }
        let port = if mode == "nat" { plan.port } else { PORT };
        let servers = vec![Server::start(backend, ServerSpec::http("b0", port))?];
        let config = plan.config(&lab);
        let pins = "/sys/fs/bpf/doctor".to_owned();
        Ok(Self { lab, config, pins, wrapper: &[], servers, kept, plan })
    }

    fn backend(&self) -> String {
        format!("{}:{}", self.lab.backend(0).v4(), self.plan.port)
    }

    fn replace(&mut self, from: &str, to: &str) -> Result<()> {
        ensure!(self.config.contains(from), "{from} is not in\n{}", self.config);
        self.config = self.config.replace(from, to);
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(arguments);
        let output = self.lab.balancer().output(command)?;
        ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The report, and the exit code.
    fn examine(&self) -> Result<(Value, Option<i32>)> {
        let home = private_dir("doctor")?;
        let config = home.join("lb.toml");
        std::fs::write(&config, &self.config)?;
        let lbctl = built("lbctl")?;
        let mut command = match self.wrapper {
            [] => Command::new(&lbctl),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&lbctl);
                command
            }
        };
        command
            .args(["-o", "json", "doctor"])
            .env("LB_CONFIG", config)
            .env("LB_SOCKET", home.join("lbd.sock"))
            .env("LB_PIN_DIR", &self.pins);
        let output = self.lab.balancer().output(command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((report, output.status.code()))
    }
}

fn errors(report: &Value) -> Vec<&Value> {
    let checks = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    checks.iter().filter(|check| check["outcome"] == "error").collect()
}

fn found_alone(broken: &Broken) -> Result<()> {
    let mut sick = Sick::new(broken.plan)?;
    (broken.breaks)(&mut sick)?;
    let (report, code) = sick.examine()?;
    let errors = errors(&report);
    let first = errors.first().with_context(|| format!("nothing was found: {report:#}"))?;
    ensure!(first["code"] == broken.code, "{} was found instead: {first:#}", first["code"]);
    let remedy = first["found"][0]["remedy"].as_str().unwrap_or_default();
    ensure!(remedy.contains(broken.remedy), "{:?} is not in the remedy: {first:#}", broken.remedy);
    ensure!(code == Some(3), "it exited with {code:?}");
    // What is broken below may break what rests upon it, but a cause is told by itself.
    let rests = ["LB1101", "LB1107", "LB1115", "LB1117"].contains(&broken.code);
    ensure!(errors.len() == 1 || rests, "{} is not the only one: {errors:#?}", broken.code);
    Ok(())
}

fn sound() -> Result<()> {
    for setup in [Setup::Nat, Setup::L2, Setup::Ipip, Setup::Gue] {
        let sick = Sick::new(setup)?;
        let (report, code) = sick.examine()?;
        ensure!(errors(&report).is_empty(), "{}: {:#?}", sick.plan.mode, errors(&report));
        ensure!(code == Some(0) && report["wrong"] == false);
        let asked = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of = |code: &str| asked.iter().find(|check| check["code"] == code).unwrap_or(&Value::Null);
        let wire = match setup {
            Setup::Nat => "LB1113",
            Setup::L2 => "LB1118",
            Setup::Ipip | Setup::Gue => "LB1119",
        };
        for looked in ["LB1117", "LB1120", wire] {
            ensure!(of(looked)["outcome"] == "ok", "{looked} was not looked at: {report:#}");
        }
    }
    Ok(())
}

fn agent() -> Result<()> {
    let mut scene = Scene::start(Plan { stable: 1, canary: 0, ..Plan::default() })?;
    let reply = scene.agent.lbctl(&["-o", "json", "doctor"])?;
    let report = reply.json()?;
    ensure!(errors(&report).is_empty() && reply.code == Some(0), "{:#?}", errors(&report));
    let words = scene.agent.lbctl(&["doctor"])?.stdout;
    ensure!(words.contains("native") && words.contains("LB1106"), "{words}");
    scene.agent.kill9();
    let report = scene.agent.lbctl(&["-o", "json", "doctor"])?.exits(3)?.json()?;
    let found = errors(&report);
    ensure!(found.len() == 1 && found[0]["code"] == "LB1106", "{found:#?}");
    ensure!(found[0]["found"][0]["remedy"] == "systemctl start lbd", "{found:#?}");
    Ok(())
}

fn generic() -> Result<()> {
    let plan =
        Plan { stable: 1, canary: 0, dataplane: "xdp_mode = \"generic\"".to_owned(), ..Plan::default() };
    let scene = Scene::start(plan)?;
    let report = scene.agent.lbctl(&["-o", "json", "doctor"])?.json()?;
    let checks = report["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["code"] == "LB1109").context("LB1109")?;
    let message = check["found"][0]["message"].as_str().unwrap_or_default();
    ensure!(check["outcome"] == "warning" && message.contains("the configuration says so"), "{check:#}");
    Ok(())
}

fn unprivileged() -> Result<()> {
    let mut sick = Sick::new(Setup::Nat)?;
    sick.wrapper = &["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let (report, code) = sick.examine()?;
    let found = errors(&report);
    ensure!(found[0]["code"] == "LB1103" && code == Some(3), "{found:#?}");
    ensure!(found[0]["found"][0]["remedy"].as_str().is_some_and(|it| it.contains("sudo lbctl doctor")));
    Ok(())
}
