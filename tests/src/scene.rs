//! A lab with a running service: what most end-to-end tests begin with.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::decapsulator::Decapsulator;
use crate::traffic::{Server, ServerSpec};
use crate::{
    Family, Host, Lab, LabBuilder, Process,
    agent::{Agent, AgentSpec, built},
};

/// The service's name in the configuration.
pub const SERVICE: &str = "web";
/// The port that clients talk to.
pub const PORT: u16 = 80;

/// What to build.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The forwarding mode.
    pub mode: &'static str,
    /// TCP or UDP.
    pub protocol: &'static str,
    /// The VIP's family.
    pub family: Family,
    /// The backends' family.
    pub inner: Family,
    /// Backends of the stable pool.
    pub stable: usize,
    /// Backends of the canary pool.
    pub canary: usize,
    /// Servers of lines, for long-lived connections, instead of HTTP.
    pub lines: bool,
    /// Port of the backends, where the mode can change it.
    pub port: u16,
    /// More lines of `[dataplane]`.
    pub dataplane: String,
    /// More lines of the service.
    pub service: String,
    /// The whole table `[service.health]`, or nothing.
    pub health: String,
    /// Room for tracked TCP flows.
    pub flows: u32,
    /// Arguments of the `lbd decap` that takes tunnels apart on each backend; `None`: the lab's own end of tunnels.
    pub decap: Option<&'static [&'static str]>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            mode: "nat",
            protocol: "tcp",
            family: Family::V4,
            inner: Family::V4,
            stable: 2,
            canary: 1,
            lines: false,
            port: 8080,
            dataplane: String::new(),
            service: String::new(),
            health: "[service.health]\ntype = \"none\"\n".to_owned(),
            flows: 65_536,
            decap: None,
        }
    }
}

/// A lab, its servers and its agent.
pub struct Scene {
    /// The hosts.
    pub lab: Lab,
    /// One server for each backend, the canary's last; their names are `stable0`, `stable1`, …, `canary0`, ….
    pub servers: Vec<Server>,
    /// Their ends of tunnels, where the mode has them.
    pub decapsulators: Vec<Decapsulator>,
    /// The same where it is `lbd decap`.
    pub decaps: Vec<Process>,
    /// The agent.
    pub agent: Agent,
    /// What was built.
    pub plan: Plan,
}

impl Scene {
    /// Builds the lab, and starts servers and agent; returns when the agent has all backends in its tables.
    ///
    /// # Errors
    /// If anything of it does not come up.
    pub fn start(plan: Plan) -> Result<Self> {
        Self::start_in(Lab::builder(), plan)
    }

    /// The same in a lab of another shape.
    ///
    /// # Errors
    /// As [`Scene::start`].
    pub fn start_in(builder: LabBuilder, plan: Plan) -> Result<Self> {
        let lab = builder.backends((plan.stable + plan.canary) as u8).build()?;
        for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            lab.balancer().sysctl(name, "1")?;
        }
        if plan.mode.starts_with("dsr") {
            lab.reply_directly()?;
            for backend in lab.backends() {
                backend.hold_vip(lab.vip(0, plan.family))?;
            }
        }
        if plan.mode == "full-nat" {
            lab.forget_clients()?;
        }
        let (mut decapsulators, mut decaps) = (Vec::new(), Vec::new());
        if matches!(plan.mode, "dsr-ipip" | "dsr-gue") {
            for backend in lab.backends() {
                match plan.decap {
                    // The lab's own end knows no UDP around.
                    None if plan.mode == "dsr-gue" => decaps.push(lbd_decap(backend, &[])?),
                    Some(arguments) => decaps.push(lbd_decap(backend, arguments)?),
                    None => decapsulators.push(Decapsulator::start(backend)?),
                }
            }
        }
        let mut servers = Vec::new();
        for i in 0..plan.stable + plan.canary {
            let name = plan.name_of(i);
            let spec = match plan.protocol {
                "udp" => ServerSpec::udp(&name, plan.server_port()),
                _ if plan.lines => ServerSpec::lines(&name, plan.server_port()),
                _ => ServerSpec::http(&name, plan.server_port()),
            };
            servers.push(Server::start(lab.backend(i), spec)?);
        }
        let config = plan.config(&lab);
        let mut agent = Agent::start(lab.balancer(), AgentSpec::new(config))?;
        agent.wait_ready(Duration::from_secs(30))?;
        let scene = Self { lab, servers, decapsulators, decaps, agent, plan };
        scene.wait_taking(scene.plan.stable + scene.plan.canary, Duration::from_secs(20))?;
        Ok(scene)
    }

    /// Where clients find the service.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        (self.lab.vip(0, self.plan.family), PORT).into()
    }

    /// A backend's address, as `lbctl` wants it.
    #[must_use]
    pub fn backend(&self, i: usize) -> String {
        let pool = if i < self.plan.stable { "stable" } else { "canary" };
        format!("{SERVICE}/{pool}/{}", self.plan.address(&self.lab, i))
    }

    /// `lbctl` with these arguments, which must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.agent.lbctl(arguments)?.done()?.stdout)
    }

    /// `lbctl -o json` with these arguments, which must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        self.agent.lbctl(&all)?.json()
    }

    /// Waits until so many backends take new flows.
    ///
    /// # Errors
    /// If they do not before `timeout` is over.
    pub fn wait_taking(&self, count: usize, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let backends = self.json(&["get", "backends", SERVICE])?;
            let rows = backends["backends"].as_array().cloned().unwrap_or_default();
            let taking = rows.iter().filter(|row| row["takes_new"] == true).count();
            if taking == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{taking} of {count} backends take new flows after {timeout:?}: {backends:#}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts `lbd decap` on a backend's interface; returns when it is attached.
///
/// # Errors
/// If it does not start, or is not attached within 20 s.
pub fn lbd_decap(backend: &Host, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(built("lbd")?);
    command.args(["decap", "--interface", &backend.port().name]).args(arguments);
    let mut process = backend.spawn(command)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !process.log().contains("takes outer headers off") {
        let ended = process.finished()?;
        ensure!(
            ended.is_none() && Instant::now() < deadline,
            "lbd decap is not attached ({ended:?})\n{}",
            process.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

impl Plan {
    /// Name of the server on backend `i`.
    #[must_use]
    pub fn name_of(&self, i: usize) -> String {
        if i < self.stable { format!("stable{i}") } else { format!("canary{}", i - self.stable) }
    }

    fn address(&self, lab: &Lab, i: usize) -> SocketAddr {
        let ip: IpAddr = lab.backend(i).ip(self.inner);
        (ip, self.server_port()).into()
    }

    /// Direct server return never changes the port.
    fn server_port(&self) -> u16 {
        if self.mode.starts_with("dsr") { PORT } else { self.port }
    }

    /// The configuration for this plan in `lab`.
    #[must_use]
    pub fn config(&self, lab: &Lab) -> String {
        let interfaces: Vec<String> =
            lab.balancer().ports().iter().map(|port| format!("\"{}\"", port.name)).collect();
        let pool = |name: &str, range: std::ops::Range<usize>| {
            let backends: String = range
                .map(|i| format!("[[service.pool.backend]]\naddress = \"{}\"\n", self.address(lab, i)))
                .collect();
            format!("[[service.pool]]\nname = \"{name}\"\n{backends}")
        };
        let canary = if self.canary == 0 {
            String::new()
        } else {
            pool("canary", self.stable..self.stable + self.canary)
        };
        format!(
            "schema = 1\n[dataplane]\ninterfaces = [{}]\nflows = {}\nhalf_open = 16384\nudp_flows = 65536\nslots = 262144\n{}\n\
             [[service]]\nname = \"{SERVICE}\"\nvip = \"{}\"\nport = {PORT}\nprotocol = \"{}\"\nmode = \"{}\"\n{}\n{}\n{}{canary}",
            interfaces.join(", "),
            self.flows,
            self.dataplane,
            lab.vip(0, self.family),
            self.protocol,
            self.mode,
            self.service,
            self.health,
            pool("stable", 0..self.stable),
        )
    }
}
