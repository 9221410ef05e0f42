//! The hosts of the show, the servers and the agent on them, and a prompt to type at.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    Agent, AgentSpec, Family, Lab, Topology,
    traffic::{Behaviour, Server, ServerSpec},
};
use serde_json::Value;

use crate::{clients::Clients, outside, screen::Screen, text::Line, wire::Wire};

/// The service's name.
pub const SERVICE: &str = "checkout";
/// The servers' names; the first ones are stable.
pub const SERVERS: [&str; 3] = ["v41-a", "v41-b", "v42-a"];
/// The servers of the stable version.
pub const STABLE: Range<usize> = 0..2;
/// The canary's server.
pub const CANARY: usize = 2;
/// The time between health checks.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the answer to a health check may take.
pub const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// How many failed checks in a row take a backend out.
pub const UNHEALTHY: u32 = 2;

/// Of what a command prints.
const INDENT: &str = "    ";
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// Where a server's health is asked for: a listener of its own, as management ports are. It stays
/// cheerful when the application goes bad.
const HEALTH_PORT: u16 = 8081;

/// Everything that plays a part.
pub struct Stage {
    screen: Screen,
    servers: Vec<Machine>,
    agent: Agent,
    wires: Vec<Wire>,
    lab: Lab,
}

/// What listens on a backend.
struct Machine {
    application: Server,
    management: Server,
}

impl Machine {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let serve = |port| Server::start(lab.backend(number), ServerSpec::http(SERVERS[number], port));
        Ok(Self { application: serve(BACKEND_PORT)?, management: serve(HEALTH_PORT)? })
    }
}

/// What came of a command.
pub struct Done {
    /// What it printed.
    pub output: String,
    /// Before its process was started.
    pub typed: Instant,
    /// When it had ended.
    pub returned: Instant,
}

impl Done {
    /// How long it took, with the start and the end of its process.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.returned - self.typed
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    /// If it is not.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.output).with_context(|| format!("no JSON: {}", self.output))
    }
}

impl Stage {
    /// Builds the hosts, and starts what is to run on them.
    ///
    /// # Errors
    /// If anything of it does not come up.
    pub fn build(screen: Screen) -> Result<Self> {
        let lab = Lab::builder().topology(Topology::Routed).backends(SERVERS.len() as u8).build()?;
        let servers = (0..SERVERS.len()).map(|i| Machine::start(&lab, i)).collect::<Result<_>>()?;
        let clients = lab.client(0).crowd().v4;
        let wires = lab.backends().iter().map(|host| Wire::tap(host, clients)).collect::<Result<_>>()?;
        let mut spec = AgentSpec::new(configuration(&lab));
        if let Some(width) = screen.width() {
            spec = spec.env("COLUMNS", &(width - INDENT.len()).to_string());
        }
        let mut agent = Agent::start(lab.balancer(), spec)?;
        agent.wait_ready(READY)?;
        let stage = Self { screen, servers, agent, wires, lab };
        stage.wait_taking(SERVERS.len(), READY)?;
        outside::tell_program(stage.program()?)?;
        Ok(stage)
    }

    /// Lets the clients begin.
    ///
    /// # Errors
    /// If they cannot.
    pub fn clients(&self) -> Result<Clients> {
        Clients::start(self.lab.client(0), self.target())
    }

    /// Where clients find the service.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        (self.lab.vip(0, Family::V4), PORT).into()
    }

    /// Where a server is.
    #[must_use]
    pub fn address(&self, server: usize) -> SocketAddr {
        address(&self.lab, server)
    }

    /// A client's address.
    #[must_use]
    pub fn client(&self, number: u32) -> IpAddr {
        self.lab.client(0).crowd().member(number, Family::V4)
    }

    /// What arrives at a server.
    #[must_use]
    pub fn wire(&self, server: usize) -> &Wire {
        &self.wires[server]
    }

    /// The agent's XDP mode, as it says itself.
    ///
    /// # Errors
    /// If it does not say.
    pub fn xdp_mode(&self) -> Result<String> {
        let status = self.ask(&["status"])?;
        let mode = status["dataplane"]["interfaces"][0]["mode"].as_str();
        Ok(mode.context("the status has no interface")?.to_owned())
    }

    /// The canary's share, as the agent says itself.
    ///
    /// # Errors
    /// If it does not say.
    pub fn split_percent(&self) -> Result<f64> {
        let services = self.ask(&["get", "services", SERVICE])?;
        services["services"][0]["split"]["percent"].as_f64().context("the service has no split")
    }

    /// Types an `lbctl` command, which must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<Done> {
        self.screen.command(&format!("lbctl {}", arguments.join(" ")));
        let typed = Instant::now();
        let reply = self.agent.lbctl(arguments)?;
        let returned = Instant::now();
        Ok(Done { output: reply.done()?.stdout, typed, returned })
    }

    /// The same with what it prints on the screen.
    ///
    /// # Errors
    /// If it does not succeed.
    pub fn show(&self, arguments: &[&str]) -> Result<()> {
        let done = self.lbctl(arguments)?;
        for line in done.output.lines() {
            self.screen.say(Line::new().dim(format!("{INDENT}{line}")));
        }
        Ok(())
    }

    /// Kills a server as a crash would: its kernel refuses connections from now on.
    pub fn kill_server(&self, server: usize) {
        self.servers[server].management.kill9();
        self.servers[server].application.kill9();
    }

    /// Starts a server that was killed.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn revive_server(&mut self, server: usize) -> Result<()> {
        self.servers[server] = Machine::start(&self.lab, server)?;
        Ok(())
    }

    /// Changes what a server does with new connections. Its health is shown as before.
    ///
    /// # Errors
    /// If it has died.
    pub fn behave(&self, server: usize, behaviour: Behaviour) -> Result<()> {
        self.servers[server].application.behave(behaviour)
    }

    /// Kills the agent as a crash would.
    pub fn kill_agent(&mut self) {
        self.screen.command(&format!("kill -9 {}   (lbd)", self.agent.process().id()));
        self.agent.kill9();
    }

    /// Starts the agent again, and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn restart_agent(&mut self) -> Result<Duration> {
        self.screen.command("lbd &");
        let began = Instant::now();
        self.agent.restart()?;
        self.agent.wait_ready(READY)?;
        let took = began.elapsed();
        outside::tell_program(self.program()?)?;
        Ok(took)
    }

    /// Waits until so many backends take new connections.
    ///
    /// # Errors
    /// If they do not before `patience` is over.
    pub fn wait_taking(&self, count: usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let backends = self.ask(&["get", "backends", SERVICE])?;
            let rows = backends["backends"].as_array().context("the answer has no backends")?;
            if rows.iter().filter(|row| row["takes_new"] == true).count() == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not {count} backends take new connections after {patience:?}: {backends:#}\n{}",
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the rollout is in a phase, and says why it is.
    ///
    /// # Errors
    /// If it is not before `patience` is over.
    pub fn wait_rollout(&self, phase: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.ask(&["rollout", "status", SERVICE])?;
            if status["phase"] == phase {
                return Ok(status["reason"].as_str().unwrap_or_default().to_owned());
            }
            ensure!(
                Instant::now() < deadline,
                "the rollout is not {phase} after {patience:?}: {status:#}\n{}",
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn program(&self) -> Result<u32> {
        let status = self.ask(&["status"])?;
        let id = status["dataplane"]["program"]["id"].as_u64().context("the status has no program")?;
        Ok(id.try_into()?)
    }

    /// Behind the scenes; a degraded state is an answer too.
    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        self.agent.lbctl(&all)?.json()
    }
}

const READY: Duration = Duration::from_secs(30);

fn address(lab: &Lab, server: usize) -> SocketAddr {
    (lab.backend(server).v4(), BACKEND_PORT).into()
}

fn configuration(lab: &Lab) -> String {
    let interfaces: Vec<_> = lab.balancer().ports().iter().map(|port| format!("\"{}\"", port.name)).collect();
    let pool = |name: &str, servers: Range<usize>| {
        let backends: String = servers
            .map(|i| format!("\n[[service.pool.backend]]\naddress = \"{}\"\n", address(lab, i)))
            .collect();
        format!("\n[[service.pool]]\nname = \"{name}\"\n{backends}")
    };
    format!(
        r#"schema = 1
[dataplane]
interfaces = [{interfaces}]

[[service]]
name = "{SERVICE}"
vip = "{vip}"
port = {PORT}
protocol = "tcp"
mode = "nat"

[service.health]
type = "http"
path = "/healthz"
port = {HEALTH_PORT}
interval = "{interval}ms"
timeout = "{timeout}ms"
healthy = 2
unhealthy = {UNHEALTHY}
{v41}{v42}"#,
        interfaces = interfaces.join(", "),
        vip = lab.vip(0, Family::V4),
        interval = CHECK_INTERVAL.as_millis(),
        timeout = CHECK_TIMEOUT.as_millis(),
        v41 = pool("v41", STABLE),
        v42 = pool("v42", STABLE.end..SERVERS.len()),
    )
}
