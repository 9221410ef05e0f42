//! QUIC: a client that changes its address keeps its backend.

mod peer;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_common::quic::Codec;
use lb_tests::packets::hex;
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::{Family, claim, private_dir};
use libtest_mimic::Trial;

use peer::{Client, Peers};

const PLAIN: Codec = Codec { config: 0, server_id_length: 2, nonce_length: 6, key: None };
const BLOCK: Codec = Codec { config: 1, server_id_length: 4, nonce_length: 12, key: Some([0x1b; 16]) };
const PASSES: Codec = Codec { config: 5, server_id_length: 3, nonce_length: 8, key: Some([0x2c; 16]) };

pub fn claims() -> Vec<Trial> {
    use Family::{V4, V6};
    let mut claims = Vec::new();
    for (mode, family, inner, codec, how) in [
        ("nat", V4, V4, PLAIN, "plain"),
        ("nat", V6, V6, BLOCK, "one encrypted block"),
        ("dsr-l2", V4, V4, PASSES, "encrypted in four passes"),
        ("dsr-ipip", V4, V4, BLOCK, "one encrypted block"),
        ("dsr-gue", V6, V4, PASSES, "encrypted in four passes"),
    ] {
        let name = format!("{mode}, {family:?}: a QUIC client that moves keeps its backend, ids {how}");
        let plan = Plan { mode, family, inner, ..plan() };
        claims.push(claim(&name, move || migrates(&plan, codec)));
    }
    claims.push(claim("without connection ids a QUIC client that moves loses its connection", is_lost));
    claims.push(claim(
        "QUIC connections survive a drain, a kill -9 and another configuration of ids",
        survives,
    ));
    claims.push(claim(
        "a rollback keeps QUIC connections of the canary or resets them, and opens none",
        rolls_back,
    ));
    claims
}

fn plan() -> Plan {
    // What begins follows a change at once: so it is told from what goes on.
    let service = "tracking = \"none\"".to_owned();
    Plan { protocol: "udp", stable: 3, canary: 0, service, ..Plan::default() }
}

/// A scene whose servers speak QUIC.
struct Stage {
    scene: Scene,
    peers: Peers,
    codec: Codec,
}

impl Stage {
    fn new(plan: &Plan, codec: Codec) -> Result<Self> {
        let mut scene = Scene::start(plan.clone())?;
        // Their ports are ours.
        scene.servers.clear();
        let mut peers = Peers::new()?;
        for i in 0..plan.stable + plan.canary {
            // Whatever is around it, what arrives is of the VIP's family.
            let any: IpAddr = match plan.family {
                Family::V4 => [0_u8; 4].into(),
                Family::V6 => [0_u16; 8].into(),
            };
            let port = if plan.mode == "nat" { plan.port } else { PORT };
            let ids = server_id(&codec, i);
            peers.serve(scene.lab.backend(i), (any, port).into(), &plan.name_of(i), Some((codec, &ids)))?;
        }
        Ok(Self { scene, peers, codec })
    }

    /// Has the agent read connection ids.
    fn read_ids(&self, codecs: &[Codec]) -> Result<()> {
        let quic: String = codecs.iter().map(table).collect();
        let service =
            format!("{}\n[service.quic]\nlength_in_first_octet = true\n{quic}", self.scene.plan.service);
        let mut config = Plan { service, ..self.scene.plan.clone() }.config(&self.scene.lab);
        for i in 0..self.scene.plan.stable + self.scene.plan.canary {
            let path = self.scene.backend(i);
            let address = path.rsplit('/').next().unwrap_or_default();
            let mut ids: Vec<String> = codecs.iter().map(|codec| quoted(&server_id(codec, i))).collect();
            ids.sort();
            ids.dedup();
            let line = format!("address = \"{address}\"\n");
            config = config.replace(&line, &format!("{line}server_ids = [{}]\n", ids.join(", ")));
        }
        let path = private_dir("quic")?.join("lb.toml");
        std::fs::write(&path, config)?;
        self.scene.lbctl(&["apply", "-f", &path.to_string_lossy()]).map(drop)
    }

    /// A socket of the client's `n`th address.
    fn socket(&self, n: u32) -> Result<UdpSocket> {
        let client = self.scene.lab.client(0);
        let ip = client.crowd().member(n, self.scene.plan.family);
        client.run(|| UdpSocket::bind((ip, 0))).with_context(|| format!("no socket at {ip}"))
    }

    fn connect(&self, n: u32) -> Result<Client<'_>> {
        self.peers.connect(self.socket(n)?, self.scene.target(), None)
    }

    /// How often an event was counted.
    fn counted(&self, event: &str) -> Result<f64> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", &format!("http://{}/metrics", self.scene.agent.places().metrics)]);
        let output = self.scene.lab.balancer().namespace().output(curl)?;
        let text = String::from_utf8(output.stdout)?;
        let sample = format!("lb_data_path_events_total{{event=\"{event}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&sample));
        Ok(value.with_context(|| format!("no {sample}in {text}"))?.parse()?)
    }
}

fn server_id(codec: &Codec, i: usize) -> Vec<u8> {
    let mut id = vec![0xc0; codec.server_id_length.into()];
    id[0] = i as u8;
    id
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", hex(bytes))
}

fn table(codec: &Codec) -> String {
    let key = codec.key.map_or(String::new(), |key| format!("key = \"{}\"\n", hex(&key)));
    format!(
        "[[service.quic.config]]\nid = {}\nserver_id_length = {}\nnonce_length = {}\n{key}",
        codec.config, codec.server_id_length, codec.nonce_length
    )
}

/// Moves a client many times, to other ports and other addresses, and says where it is each time.
fn moves(stage: &Stage, client: &Client<'_>, addresses: std::ops::Range<u32>) -> Result<Vec<String>> {
    addresses
        .map(|n| {
            // Every other time the address stays.
            client.move_to(stage.socket(n / 2)?)?;
            client.ask().with_context(|| format!("after a move, to {n}"))
        })
        .collect()
}

fn migrates(plan: &Plan, codec: Codec) -> Result<()> {
    let stage = Stage::new(plan, codec)?;
    stage.read_ids(&[codec])?;
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..6 {
        let client = stage.connect(n)?;
        let first = client.ask()?;
        let rest = moves(&stage, &client, 100 * (n + 1)..100 * (n + 1) + 8)?;
        ensure!(rest.iter().all(|name| *name == first), "it began with {first}, and was with {rest:?}");
        seen.insert(first);
    }
    ensure!(seen.len() > 1, "all six began with the same backend, {seen:?}");

    // The CLI reads ids as the program does.
    let id =
        stage.codec.encode(&server_id(&codec, 2), &vec![9; codec.nonce_length.into()]).context("an id")?;
    let from = SocketAddr::new(stage.scene.lab.client(0).crowd().member(7, plan.family), 4433);
    let to = stage.scene.target().to_string();
    let said =
        stage.scene.json(&["explain", "--from", &from.to_string(), "--to", &to, "--quic-id", &hex(&id)])?;
    ensure!(said["backend"].as_str().is_some_and(|name| stage.scene.backend(2).ends_with(name)), "{said:#}");
    let steps = said["steps"].as_array().context("steps")?;
    ensure!(steps.iter().any(|step| step["values"]["agrees"] == "true"), "{said:#}");
    ensure!(stage.counted("quic_by_id")? > 6.0 * 8.0 && stage.counted("quic_opening")? >= 6.0);
    Ok(())
}

fn is_lost() -> Result<()> {
    let stage = Stage::new(&plan(), PLAIN)?;
    let client = stage.connect(0)?;
    client.ask()?;
    // One of three each time, by the hash of an address: twelve times the same has a chance of 1 in half a million.
    let outcome = moves(&stage, &client, 100..112);
    ensure!(outcome.is_err(), "it was with {outcome:?} all the time");
    Ok(())
}

fn survives() -> Result<()> {
    let mut stage = Stage::new(&plan(), PASSES)?;
    stage.read_ids(&[PASSES])?;
    let first = {
        let client = stage.connect(0)?;
        let first = client.ask()?;
        let number: usize = first.trim_start_matches("stable").parse()?;
        let backend = stage.scene.backend(number);
        let stays = |addresses: std::ops::Range<u32>, when: &str| -> Result<()> {
            let names = moves(&stage, &client, addresses).with_context(|| when.to_owned())?;
            ensure!(
                names.iter().all(|name| *name == first),
                "{when} it was with {names:?} instead of {first}"
            );
            Ok(())
        };
        stage.scene.lbctl(&["set", "state", &backend, "drain"])?;
        stays(100..104, "while its backend drains")?;
        for n in 1..8 {
            let name = stage.connect(n)?.ask()?;
            ensure!(name != first, "{first} drains, and took a new connection");
        }
        // Servers that have another key are coming; those of before still have theirs.
        let key = Some([0x77; 16]);
        stage.read_ids(&[PASSES, Codec { config: 2, key, ..BLOCK }])?;
        stays(104..108, "with one configuration more")?;
        stage.scene.lbctl(&["set", "state", &backend, "maint"])?;
        ensure!(client.ask().is_err(), "{first} is in maintenance");
        let name = stage.connect(20)?.ask()?;
        ensure!(name != first, "{first} is in maintenance, and took a new connection");
        stage.scene.lbctl(&["set", "state", &backend, "ready"])?;
        backend
    };
    stage.scene.wait_taking(3, Duration::from_secs(10))?;
    stage.scene.agent.kill9();
    {
        // Whatever it began with; nobody is there to help it.
        let client = stage.connect(30)?;
        let name = client.ask()?;
        let names = moves(&stage, &client, 200..204)?;
        ensure!(names.iter().all(|other| *other == name), "without an agent {name} became {names:?}");
    }
    stage.scene.agent.restart()?;
    stage.scene.agent.wait_ready(Duration::from_secs(30))?;
    let client = stage.connect(40)?;
    let name = client.ask()?;
    let names = moves(&stage, &client, 300..304)?;
    ensure!(names.iter().all(|other| *other == name), "after a restart {name} became {names:?}; {first}");
    Ok(())
}

fn rolls_back() -> Result<()> {
    let stage = Stage::new(&Plan { stable: 2, canary: 1, ..plan() }, BLOCK)?;
    stage.read_ids(&[BLOCK])?;
    stage.scene.lbctl(&["set", "split", SERVICE, "100"])?;
    let client = stage.connect(0)?;
    ensure!(client.ask()? == "canary0");
    stage.scene.lbctl(&["rollback", SERVICE])?;
    let names = moves(&stage, &client, 100..104)?;
    ensure!(names.iter().all(|name| name == "canary0"), "a rollback that keeps flows moved it: {names:?}");
    // By bad luck, or on purpose, clients call the server what the canary calls itself.
    let canarys = |n: u8| BLOCK.encode(&server_id(&BLOCK, 2), &[n; 12]);
    for n in 1..10 {
        let new = stage.peers.connect(stage.socket(n)?, stage.scene.target(), canarys(n as u8))?;
        let name = new.ask()?;
        ensure!(name != "canary0", "a new connection entered the canary after the rollback");
    }
    stage.scene.lbctl(&["rollback", SERVICE, "--flows", "reset"])?;
    ensure!(client.ask().is_err(), "the canary still has the connection");
    // The agent compares its tables with the kernel's, and finds nothing to mend.
    stage.read_ids(&[BLOCK])?;
    stage.scene.lbctl(&["set", "weight", &stage.scene.backend(0), "50"])?;
    let id = canarys(77).context("an id")?;
    let (from, to) = ("198.51.100.7:4433", stage.scene.target().to_string());
    let said = stage.scene.json(&["explain", "--from", from, "--to", &to, "--quic-id", &hex(&id)])?;
    ensure!(said["pool"] == "stable", "ids of the canary are void: {said:#}");
    // Once it is open again they are not.
    stage.scene.lbctl(&["set", "split", SERVICE, "100"])?;
    let client = stage.connect(50)?;
    ensure!(client.ask()? == "canary0");
    let names = moves(&stage, &client, 200..204)?;
    ensure!(names.iter().all(|name| name == "canary0"), "{names:?}");
    Ok(())
}
