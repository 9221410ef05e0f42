//! VLAN devices, bonds and tunnels of Linux' own, where the kernel has them. Those that tests run under often have not:
//! `cargo xtask vm` runs this under one that has.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_common::verdict::Reason;
use lb_common::vlan::{Tags, Vlan};
use lb_common::wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};
use lb_tests::Family::{self, V4, V6};
use lb_tests::agent::{Agent, AgentSpec};
use lb_tests::traffic::{Load, LoadSpec, Server, ServerSpec};
use lb_tests::{Backend, Lab, Mac, Namespace, Sources, VethEnd, claim_unless};
use lb_userspace::dataplane::maps::{Maps, directory};

fn main() -> ExitCode {
    lb_tests::run(vec![
        claim_unless(
            lacking,
            "from no VLAN to a VLAN, and from one VLAN into two: packets have the tags of the devices that routes name",
            vlans,
        ),
        claim_unless(lacking, "a bond has the program in native mode, and goes on when a port fails", bond),
        claim_unless(lacking, "Linux' own fou and tunnel devices open dsr-gue, each family in each", gue),
    ])
}

/// What the kernel does not have of what the site is made of.
fn lacking() -> Result<Option<String>> {
    let host = Namespace::new("try")?;
    for command in [
        "link add one type veth peer name other",
        "link add link one name one.1 type vlan id 1",
        "link add bond0 type bond",
        "link add tunnel type ipip external",
        "link add tunnel6 type ip6tnl mode any external",
        "link add mixed type sit remote 192.0.2.1",
        "fou add port 6080 gue",
    ] {
        let output = host.output(words("ip", command))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            return Ok(Some(format!("this kernel has none of these: ip {command}: {why}")));
        }
    }
    Ok(None)
}

/// Flows of each load.
const FLOWS: u64 = 20;
/// The processor may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(60);

/// One agent and what all claims are about:
///
/// ```text
/// client ──── eth0 (LAN) ──────── eth0 ┐          ┌ eth0 ──── tunnelled (fou, ipip, ip6tnl, sit)
///        ──── side.300 ───── side.300 ─┤ balancer ├ trunk.100, trunk.7.200 ──── tagged
///                                      └──────────┴ bond0, bond0.20 ════ bonded (a bridge of two ports)
/// ```
struct Site {
    lab: Lab,
    agent: Agent,
    _servers: [Server; 3],
}

/// A service, and the only backend that it has.
struct Service {
    name: &'static str,
    vip: u8,
    family: Family,
    backend: &'static str,
}

const fn nat(name: &'static str, vip: u8, family: Family, backend: &'static str) -> Service {
    Service { name, vip, family, backend }
}

const NAT: [Service; 6] = [
    nat("vlan", 0, V4, "10.100.0.2:8080"),
    nat("vlan6", 0, V6, "[fd00:100::2]:8080"),
    nat("vlans", 1, V4, "10.200.0.2:8080"),
    nat("bond", 2, V4, "10.50.0.2:8080"),
    nat("bond6", 2, V6, "[fd00:50::2]:8080"),
    nat("bond-vlan", 3, V4, "10.60.0.2:8080"),
];

/// Number and family of a VIP, and the family of the tunnel.
const GUE: [(u8, Family, Family); 4] = [(4, V4, V4), (4, V6, V4), (5, V4, V6), (5, V6, V6)];

impl Site {
    fn get() -> Result<&'static Self> {
        static SITE: OnceLock<Result<Site, String>> = OnceLock::new();
        let site = SITE.get_or_init(|| Self::build().map_err(|error| format!("{error:#}")));
        site.as_ref().map_err(|why| anyhow!("there is no site: {why}"))
    }

    fn build() -> Result<Self> {
        let lab = Lab::builder().clients(1).backends(3).build()?;
        lab.reply_directly()?;
        let [tunnelled, tagged, bonded] = [0, 1, 2].map(|number| lab.backend(number));
        lay_vlans(&lab, tagged)?;
        lay_bond(&lab, bonded)?;
        open_tunnels(&lab, tunnelled)?;
        // VIPs are on the first interface, which is not the LAN's.
        for (vip, family) in
            NAT.iter().map(|it| (it.vip, it.family)).chain(GUE.map(|(vip, vips, _)| (vip, vips)))
        {
            if vip != IN_A_VLAN {
                let gateway = lab.balancer().ip(family);
                lab.client(0).route(lab.vip(vip, family).into(), gateway)?;
            }
        }
        let servers = [
            Server::start(tunnelled, ServerSpec::http("tunnelled", 80))?,
            Server::start(tagged, ServerSpec::http("tagged", 8080))?,
            Server::start(bonded, ServerSpec::http("bonded", 8080))?,
        ];
        let mut agent = Agent::start(lab.balancer(), AgentSpec::new(config(&lab)))?;
        agent.wait_ready(PATIENCE)?;
        agent.lbctl(&["status", "--wait=healthy", "--timeout", "60s"])?.done()?;
        Ok(Self { lab, agent, _servers: servers })
    }

    /// Every flow to a VIP is answered, by that server.
    fn answers(&self, server: &str, vip: u8, family: Family, from: Sources) -> Result<()> {
        let target = SocketAddr::new(self.lab.vip(vip, family), 80);
        let load = LoadSpec::http(target, "/").from(from).flows(FLOWS).concurrency(4);
        let tally = Load::run(self.lab.client(0), load)?;
        ensure!(tally.answered_by(server) == FLOWS, "{target}: {tally:?}\n{}", self.agent.log());
        Ok(())
    }

    fn maps(&self) -> Result<Maps> {
        Ok(Maps::open(&directory(&self.agent.places().pins))?)
    }

    /// A figure of the metrics, by the whole name of its series.
    fn metric(&self, series: &str) -> Result<f64> {
        let address = &self.agent.places().metrics;
        let text = self.lab.balancer().run(|| -> Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let figure = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(figure.with_context(|| format!("no {series} in\n{text}"))?.parse()?)
    }
}

fn config(lab: &Lab) -> String {
    let mut text = "schema = 1\n[dataplane]\ninterfaces = [\"bond0\", \"eth0\", \"trunk\", \"side\"]\nxdp_mode = \"native\"\n\
                    flows = 4096\nudp_flows = 4096\nhalf_open = 4096\nslots = 65536\n"
        .to_owned();
    let mut add = |name: &str, vip: IpAddr, mode: &str, backend: &str| {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = 80\nmode = \"{mode}\"\ntable_size = 101\n\
             health = {{ type = \"none\" }}\n\
             [[service.pool]]\nname = \"v1\"\n[[service.pool.backend]]\naddress = \"{backend}\"\n"
        );
    };
    for service in &NAT {
        add(service.name, lab.vip(service.vip, service.family), "nat", service.backend);
    }
    for (vip, family, outer) in GUE {
        let backend = SocketAddr::new(lab.backend(0).ip(outer), 80);
        add(
            &format!("gue-{family:?}-in-{outer:?}").to_lowercase(),
            lab.vip(vip, family),
            "dsr-gue",
            &backend.to_string(),
        );
    }
    text
}

/// The VIP that the client's crowd reaches by a VLAN.
const IN_A_VLAN: u8 = 1;

/// A cable from the balancer.
fn cable(lab: &Lab, name: &str, to: &Namespace, far: &str, number: u8) -> Result<()> {
    let end = VethEnd { namespace: to, name: far, mac: Mac([2, 0xde, 0, 0, 1, number]) };
    lab.balancer().connect(name, Mac([2, 0xde, 0, 0, 0, number]), end, 1500)?;
    // A veth hands tags over beside the frame, unless its sender puts them in.
    tool(to, "ethtool", &format!("-K {far} txvlan off tx-vlan-stag-hw-insert off"))?;
    tool(lab.balancer(), "ethtool", &format!("-K {name} rxvlan off"))
}

/// A VLAN device at both ends of a cable, with addresses `….1` (the balancer's) and `….2`.
fn vlan(lab: &Lab, parents: [&str; 2], to: &Namespace, id: u16, proto: &str, net: &str) -> Result<()> {
    for ((host, parent), number) in
        [(lab.balancer().namespace(), parents[0]), (to, parents[1])].into_iter().zip(1..)
    {
        let name = format!("{parent}.{id}");
        tool(host, "ip", &format!("link add link {parent} name {name} type vlan proto {proto} id {id}"))?;
        host.set_up(&name)?;
        if !net.is_empty() {
            host.add_address(&name, format!("{net}.{number}").parse()?, 24)?;
        }
    }
    Ok(())
}

fn lay_vlans(lab: &Lab, tagged: &Backend) -> Result<()> {
    let (balancer, client) = (lab.balancer(), lab.client(0));
    cable(lab, "trunk", tagged, "trunk", 1)?;
    vlan(lab, ["trunk"; 2], tagged, 100, "802.1Q", "10.100.0")?;
    vlan(lab, ["trunk"; 2], tagged, 7, "802.1ad", "")?;
    vlan(lab, ["trunk.7"; 2], tagged, 200, "802.1Q", "10.200.0")?;
    balancer.add_address("trunk.100", "fd00:100::1".parse()?, 64)?;
    tagged.add_address("trunk.100", "fd00:100::2".parse()?, 64)?;
    tagged.route(IpAddr::from(client.v4()).into(), "10.100.0.1".parse()?)?;
    tagged.route(IpAddr::from(client.v6()).into(), "fd00:100::1".parse()?)?;

    // The client's crowd is in a VLAN, on its way to one VIP, and from there on in two.
    cable(lab, "side", client, "side", 2)?;
    vlan(lab, ["side"; 2], client, 300, "802.1Q", "10.30.0")?;
    client.route(lab.vip(IN_A_VLAN, V4).into(), "10.30.0.1".parse()?)?;
    balancer.route(client.crowd().v4.into(), "10.30.0.2".parse()?)?;
    tagged.route(client.crowd().v4.into(), "10.200.0.1".parse()?)
}

fn lay_bond(lab: &Lab, bonded: &Backend) -> Result<()> {
    let (balancer, client) = (lab.balancer(), lab.client(0));
    bonded.add_bridge("ports", 1500)?;
    tool(balancer, "ip", "link add bond0 type bond mode active-backup miimon 20")?;
    for (number, (port, far)) in [("p0", "q0"), ("p1", "q1")].into_iter().enumerate() {
        cable(lab, port, bonded, far, 3 + number as u8)?;
        bonded.plug(far, "ports")?;
        // A bond takes no port that is up.
        balancer.set_down(port)?;
        balancer.plug(port, "bond0")?;
    }
    bonded.set_up("ports")?;
    balancer.set_up("bond0")?;
    for (host, link, number) in [(balancer.namespace(), "bond0", 1), (bonded.namespace(), "ports", 2)] {
        host.add_address(link, format!("10.50.0.{number}").parse()?, 24)?;
        host.add_address(link, format!("fd00:50::{number}").parse()?, 64)?;
    }
    vlan(lab, ["bond0", "ports"], bonded, 20, "802.1Q", "10.60.0")?;
    bonded.route(IpAddr::from(client.v4()).into(), "10.50.0.1".parse()?)?;
    bonded.route(IpAddr::from(client.v6()).into(), "fd00:50::1".parse()?)
}

/// As the documents have it.
fn open_tunnels(lab: &Lab, tunnelled: &Backend) -> Result<()> {
    for command in [
        "fou add port 6080 gue",
        "-6 fou add port 6080 gue",
        "link add lb0 type ipip external",
        "link set lb0 up",
        "link set sit0 up",
        "link add lb1 type ip6tnl mode any external",
        "link set lb1 up",
    ] {
        tool(tunnelled, "ip", command)?;
    }
    GUE.iter().try_for_each(|(vip, family, _)| tunnelled.hold_vip(lab.vip(*vip, *family)))
}

fn vlans() -> Result<()> {
    let site = Site::get()?;
    let (balancer, maps) = (site.lab.balancer(), site.maps()?);
    let known: BTreeMap<u32, Vlan> = maps.vlans.entries()?.into_iter().collect();
    for (device, card, tags) in [
        ("trunk.100", "trunk", [(ETHERTYPE_VLAN, 100)].as_slice()),
        ("trunk.7.200", "trunk", &[(ETHERTYPE_QINQ, 7), (ETHERTYPE_VLAN, 200)]),
        ("side.300", "side", &[(ETHERTYPE_VLAN, 300)]),
        ("bond0.20", "bond0", &[(ETHERTYPE_VLAN, 20)]),
        ("eth0", "eth0", &[]),
    ] {
        let tags =
            tags.iter().try_fold(Tags::NONE, |tags, (kind, id)| tags.with(*kind, *id)).context("two tags")?;
        let wanted = Vlan { ifindex: balancer.index(card)?, tags: tags.0 };
        let found = known.get(&balancer.index(device)?);
        ensure!(found == Some(&wanted), "{device}: {found:?} instead of {wanted:?}");
    }
    let tagged = site.lab.backend(1);
    for (device, vip, family, from) in [
        ("trunk.100", 0, V4, Sources::Own),
        ("trunk.100", 0, V6, Sources::Own),
        ("trunk.7.200", IN_A_VLAN, V4, Sources::crowd(FLOWS as u32)),
    ] {
        let replied = || -> Result<u64> { Ok(maps.counters()?.reasons[Reason::Replied as usize]) };
        let (frames, replies) = (tagged.received_frames(device)?, replied()?);
        site.answers("tagged", vip, family, from)?;
        let (frames, replies) = (tagged.received_frames(device)? - frames, replied()? - replies);
        // SYN, request and FIN at least; of replies the host may have had the first.
        ensure!(frames >= 3 * FLOWS && replies >= 2 * FLOWS, "{device}: {frames} frames, {replies} replies");
    }
    Ok(())
}

fn bond() -> Result<()> {
    let site = Site::get()?;
    let balancer = site.lab.balancer();
    let status = site.agent.lbctl(&["-o", "json", "status"])?.json()?;
    let interfaces = status["dataplane"]["interfaces"].as_array().context("interfaces")?;
    let bond = interfaces.iter().find(|it| it["name"] == "bond0").context("bond0 is one of them")?;
    ensure!(bond["mode"] == "native", "{bond}");

    let all = || -> Result<()> {
        site.answers("bonded", 2, V4, Sources::Own)?;
        site.answers("bonded", 2, V6, Sources::Own)?;
        site.answers("bonded", 3, V4, Sources::Own)
    };
    all()?;
    let to = SocketAddr::new(site.lab.vip(2, V4), 80).to_string();
    let from = SocketAddr::new(site.lab.client(0).ip(V4), 40_000).to_string();
    let explained = site.agent.lbctl(&["explain", "--from", &from, "--to", &to])?.done()?.stdout;
    ensure!(explained.contains("what the rule says"), "{explained}");
    let series = "lb_xdp_actions_total{interface=\"bond0\",action=\"transmit\"}";
    // SYN-ACK and answer of each flow at least.
    let least = (3 * 2 * FLOWS) as f64;
    let replies = site.metric(series)?;
    ensure!(replies >= least, "{replies} frames came in by the bond");

    let active = || -> Result<String> {
        let text = balancer.run(|| fs::read_to_string("/proc/thread-self/net/bonding/bond0"))?;
        let port = text.lines().find_map(|line| line.strip_prefix("Currently Active Slave: "));
        Ok(port.with_context(|| text.clone())?.to_owned())
    };
    let before = active()?;
    site.lab.backend(2).set_down(&before.replace('p', "q"))?;
    let deadline = Instant::now() + PATIENCE;
    while [&before, "None"].contains(&active()?.as_str()) {
        ensure!(Instant::now() < deadline, "{before} is the active port still");
        thread::sleep(Duration::from_millis(5));
    }
    all()?;
    ensure!(site.metric(series)? >= replies + least, "the other port's are counted, too");
    Ok(())
}

fn gue() -> Result<()> {
    let site = Site::get()?;
    let tunnelled = site.lab.backend(0);
    for ((vip, family, outer), device) in GUE.into_iter().zip(["lb0", "sit0", "lb1", "lb1"]) {
        let before = tunnelled.received_frames(device)?;
        site.answers("tunnelled", vip, family, Sources::Own)?;
        let frames = tunnelled.received_frames(device)? - before;
        ensure!(frames >= 3 * FLOWS, "{family:?} in {outer:?}: {frames} packets by {device}");
    }
    Ok(())
}

/// Runs a tool in a host, which must succeed.
fn tool(host: &Namespace, name: &str, arguments: &str) -> Result<()> {
    let output = host.output(words(name, arguments))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments} in {}: {stderr}", host.name());
    Ok(())
}

fn words(name: &str, arguments: &str) -> Command {
    let mut command = Command::new(name);
    command.args(arguments.split_whitespace());
    command
}
