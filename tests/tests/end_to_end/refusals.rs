//! What lbd cannot do it says, with the way out.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::agent::{Agent, AgentSpec};
use lb_tests::scene::{Plan, Scene};
use lb_tests::{Lab, claim};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("an interface that is not there is named, with those that are", no_interface),
        claim("an interface with another XDP program is left alone", occupied),
        claim("without privileges lbd says which it needs", no_permission),
        claim("a second agent at the same places is told of the first one", second),
        claim("pins outside of a BPF file system are refused", no_bpffs),
    ]
}

fn log_of(lab: &Lab, spec: AgentSpec) -> Result<String> {
    let mut agent = Agent::start(lab.balancer(), spec)?;
    let ended = agent.process().wait(Duration::from_secs(20))?;
    let log = agent.log();
    ensure!(!format!("{ended:?}").contains("Exited(0)"), "lbd should have failed: {log}");
    ensure!(!agent.places().pins.join("v1").exists(), "it left pins behind");
    Ok(log)
}

fn plan() -> Plan {
    Plan { stable: 1, canary: 0, ..Plan::default() }
}

fn no_interface() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let name = lab.balancer().port().name.clone();
    let config = plan().config(&lab).replace(&format!("[\"{name}\"]"), "[\"eth77\"]");
    let log = log_of(&lab, AgentSpec::new(config))?;
    ensure!(log.contains("there is no interface eth77") && log.contains(&name), "{log}");
    Ok(())
}

/// As the kernel numbers it.
const XDP_PASS: i32 = 2;

fn occupied() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let balancer = lab.balancer();
    let port = balancer.port();
    let program = lb_tests::programs::returning(XDP_PASS)?;
    let _link = lb_tests::bpf::attach_xdp(balancer, port.index, &program, lb_tests::bpf::XdpMode::Native)?;
    let log = log_of(&lab, AgentSpec::new(plan().config(&lab)))?;
    ensure!(log.contains("has another XDP program") && log.contains("ip link"), "{log}");
    Ok(())
}

fn no_permission() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let places = lb_tests::private_dir("unprivileged")?;
    let config = places.join("lb.toml");
    std::fs::write(&config, plan().config(&lab))?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(lb_tests::agent::built("lbd")?);
    for (option, name) in [("--config", "lb.toml"), ("--socket", "lbd.sock"), ("--state-dir", "state")] {
        command.arg(option).arg(places.join(name));
    }
    command.args(["--pin-dir", "/sys/fs/bpf/unprivileged"]);
    let output = lab.balancer().output(command)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && words.contains("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"), "{words}");
    Ok(())
}

fn second() -> Result<()> {
    let scene = Scene::start(plan())?;
    let places = scene.agent.places();
    let begin = |check: bool| {
        let mut command = Command::new(lb_tests::agent::built("lbd")?);
        command.arg("--config").arg(&places.config).arg("--socket").arg(&places.socket);
        command.arg("--state-dir").arg(&places.state).arg("--pin-dir").arg(&places.pins);
        command.args(check.then_some("--check"));
        scene.lab.balancer().output(command)
    };
    let words = String::from_utf8_lossy(&begin(false)?.stderr).into_owned();
    ensure!(words.contains("in use by another lbd") && !words.contains("metrics"), "{words}");
    let checked = begin(true)?;
    let words = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(checked.status.success() && words.contains("another lbd is at work here"), "{words}");
    Ok(())
}

fn no_bpffs() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let places = lb_tests::private_dir("elsewhere")?;
    // The option goes before the variable that the lab sets.
    let spec =
        AgentSpec::new(plan().config(&lab)).arg("--pin-dir").arg(&places.join("pins").to_string_lossy());
    let log = log_of(&lab, spec)?;
    ensure!(log.contains("not on a BPF file system") && log.contains("mount -t bpf"), "{log}");
    Ok(())
}
