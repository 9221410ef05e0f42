//! Five labs of the same shape: a client, two nginx, and something else between them in each.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::bpf::{XdpMode, attach_xdp};
use lb_tests::{Agent, AgentSpec, Family, Lab, Namespace, Port, Process, Topology, private_dir, programs};

/// The port of services and servers: the same, as a router does not change it.
pub const PORT: u16 = 8080;

/// Of all clients together.
pub const CONNECTIONS: u32 = 64;

/// One way from the client to the servers.
pub struct Way {
    /// What is between.
    pub name: &'static str,
    /// The hosts.
    pub lab: Lab,
    /// What the two halves of the clients talk to.
    pub targets: [IpAddr; 2],
    _running: Vec<Process>,
    _agent: Option<Agent>,
    _links: Vec<OwnedFd>,
}

/// All of them.
pub struct Ways([Way; 5]);

impl Ways {
    /// Builds the labs and starts everything; returns when each way has carried a connection.
    ///
    /// # Errors
    /// If something does not come up.
    pub fn build() -> Result<Self> {
        Ok(Self([
            Way::routed("routed by the kernel").context("routed")?,
            Way::routed_past_xdp().context("routed, with XDP")?,
            Way::nftables().context("nftables")?,
            Way::haproxy().context("HAProxy")?,
            Way::lb().context("lb")?,
        ]))
    }

    /// The router first.
    pub const fn all(&self) -> &[Way; 5] {
        &self.0
    }
}

impl Way {
    fn routed(name: &'static str) -> Result<Self> {
        let way = Self::new(name)?;
        let targets = [0, 1].map(|number| way.lab.backend(number).ip(Family::V4));
        Self { targets, ..way }.carrying()
    }

    /// What XDP on virtual interfaces costs by itself: they copy frames for it, and take segments one by one.
    fn routed_past_xdp() -> Result<Self> {
        let mut way = Self::routed("routed, an empty XDP program")?;
        let balancer = way.lab.balancer();
        let program = programs::passing()?;
        let attach = |port: &Port| attach_xdp(balancer, port.index, &program, XdpMode::Native);
        way._links = balancer.ports().iter().map(attach).collect::<Result<_>>()?;
        way.carrying()
    }

    fn nftables() -> Result<Self> {
        let way = Self::new("nftables DNAT")?;
        let vip = way.hold_vip()?;
        let [first, second] = [0, 1].map(|number| way.lab.backend(number).v4());
        let rules = format!(
            "table ip balance {{\n\
             chain arriving {{\n\
             type nat hook prerouting priority dstnat\n\
             ip daddr {vip} tcp dport {PORT} dnat to numgen inc mod 2 map {{ 0 : {first}, 1 : {second} }}\n\
             }}\n\
             }}\n"
        );
        let mut command = Command::new("nft");
        command.arg(rules);
        let output = way.lab.balancer().output(command).context("nft (Debian's package `nftables`)")?;
        ensure!(output.status.success(), "nft failed: {}", String::from_utf8_lossy(&output.stderr));
        way.carrying()
    }

    fn haproxy() -> Result<Self> {
        let mut way = Self::new("HAProxy, TCP mode")?;
        let vip = way.hold_vip()?;
        let mut config = format!(
            "global\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen web\n bind {vip}:{PORT}\n balance roundrobin\n"
        );
        for number in 0..2 {
            let _ = writeln!(config, " server web{number} {}:{PORT}", way.lab.backend(number).v4());
        }
        let path = private_dir("haproxy")?.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path);
        way._running.push(way.lab.balancer().spawn(command).context("Debian's package `haproxy`")?);
        way.carrying()
    }

    fn lb() -> Result<Self> {
        let mut way = Self::new("lb, nat")?;
        let mut config = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\", \"eth1\"]\n[[service]]\nname = \"web\"\nvip = \"{}\"\n\
             port = {PORT}\nmode = \"nat\"\n[[service.pool]]\nname = \"stable\"\n",
            way.lab.vip(0, Family::V4)
        );
        for number in 0..2 {
            let address = SocketAddr::new(way.lab.backend(number).ip(Family::V4), PORT);
            let _ = writeln!(config, "[[service.pool.backend]]\naddress = \"{address}\"");
        }
        let mut agent = Agent::start(way.lab.balancer(), AgentSpec::new(config))?;
        agent.wait_ready(Duration::from_secs(30))?;
        way._agent = Some(agent);
        way.carrying()
    }

    fn new(name: &'static str) -> Result<Self> {
        // No frame leaves by the interface it came in by, so the switches need no program that wakes them up for one.
        let lab = Lab::builder().topology(Topology::Routed).backends(2).without_xdp().build()?;
        let running = lab.backends().iter().map(|host| nginx(host)).collect::<Result<_>>()?;
        let vip = lab.vip(0, Family::V4);
        Ok(Self { name, lab, targets: [vip; 2], _running: running, _agent: None, _links: Vec::new() })
    }

    /// The balancer answers for the VIP.
    fn hold_vip(&self) -> Result<IpAddr> {
        let vip = self.lab.vip(0, Family::V4);
        self.lab.balancer().add_address("eth0", vip, 32)?;
        Ok(vip)
    }

    /// The way itself, once each of its targets takes connections.
    fn carrying(self) -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let deadline = Instant::now() + PATIENCE;
        for target in self.targets {
            let address = SocketAddr::new(target, PORT);
            let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
            while self.lab.client(0).run(connect).is_err() {
                if Instant::now() >= deadline {
                    bail!("{address} takes no connection after {PATIENCE:?}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(self)
    }
}

/// One worker: two servers share the CPUs with everybody else.
fn nginx(host: &Namespace) -> Result<Process> {
    let home: PathBuf = private_dir("nginx")?;
    let config = format!(
        "user root; worker_processes 1; daemon off; pid {0}/pid; error_log stderr error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {0}; proxy_temp_path {0};\n\
         fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};\n\
         server {{ listen {PORT} backlog=4096; location / {{ return 200 \"ok\\n\"; }} }} }}\n",
        home.display()
    );
    let path = home.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path);
    host.spawn(command).context("nginx (Debian's package `nginx`)")
}
