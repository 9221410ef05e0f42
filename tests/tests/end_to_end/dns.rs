//! DNS over UDP: many short flows, each a question and its answer, and none that waits for a server that is gone.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, RecordType};
use lb_tests::dns::{NameServer, Reply};
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::{Family, claim};
use libtest_mimic::Trial;

/// How long a UDP flow may be silent here and keep its backend.
const IDLE: Duration = Duration::from_secs(2);

pub fn claims() -> Vec<Trial> {
    let mut claims = Vec::new();
    for (mode, family) in [
        ("nat", Family::V4),
        ("nat", Family::V6),
        ("full-nat", Family::V4),
        ("dsr-l2", Family::V4),
        ("dsr-ipip", Family::V4),
    ] {
        let name = format!("{mode} carries DNS questions and their answers, {family:?}");
        let plan = Plan { mode, family, inner: family, ..plan("flow") };
        claims.push(claim(&name, move || carries(&plan)));
    }
    claims.push(claim(
        "a resolver that goes on asking keeps its name server, one that was silent gets another",
        idles,
    ));
    claims.push(claim("no tracked UDP flow waits for a name server that was taken out", evicted));
    claims.push(claim("without tracking each question follows the tables of its moment", untracked));
    claims
}

fn plan(tracking: &str) -> Plan {
    Plan {
        protocol: "udp",
        canary: 0,
        dataplane: format!("udp_idle = \"{}s\"\nsweep = \"200ms\"", IDLE.as_secs()),
        service: format!("tracking = \"{tracking}\""),
        ..Plan::default()
    }
}

const NAME: &str = "lb.example.";

/// A scene whose servers are name servers: of `lb.example` each says another address, which tells who it is.
struct Stage {
    scene: Scene,
    servers: Vec<Option<NameServer>>,
}

impl Stage {
    fn new(plan: &Plan) -> Result<Self> {
        let mut scene = Scene::start(plan.clone())?;
        // Their ports are ours.
        scene.servers.clear();
        let port = if plan.mode.starts_with("dsr") { PORT } else { plan.port };
        let mut servers = Vec::new();
        for i in 0..plan.stable {
            let backend = scene.lab.backend(i);
            // It answers from the address that was asked: the VIP itself, where that is on its loopback.
            let own =
                if plan.mode.starts_with("dsr") { scene.target().ip() } else { backend.ip(plan.family) };
            let server = NameServer::start(backend, (own, port).into())?;
            let address = RData::A(A::new(192, 0, 2, i as u8));
            server.say(NAME, RecordType::A, Reply::Records(vec![address], 60))?;
            servers.push(Some(server));
        }
        Ok(Self { scene, servers })
    }

    fn resolver(&self, n: u32) -> Result<Resolver> {
        let client = self.scene.lab.client(0);
        let ip = client.crowd().member(n, self.scene.plan.family);
        let socket = client.run(|| UdpSocket::bind((ip, 0))).with_context(|| format!("no socket at {ip}"))?;
        socket.connect(self.scene.target())?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Resolver { socket, asked: 0 })
    }
}

/// One that asks from the same port again and again.
struct Resolver {
    socket: UdpSocket,
    asked: u16,
}

impl Resolver {
    /// Asks once; which server answered.
    fn ask(&mut self) -> Result<usize> {
        self.asked += 1;
        let mut question = Message::new(self.asked, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(NAME.parse::<Name>()?, RecordType::A));
        self.socket.send(&question.to_vec()?)?;
        let mut packet = [0; 1500];
        loop {
            let length = self.socket.recv(&mut packet).context("no answer")?;
            let answer = Message::from_vec(&packet[..length])?;
            // Of a question of before.
            if answer.metadata.id != self.asked {
                continue;
            }
            let records = answer.answers.iter().map(|record| &record.data);
            let mut said = records
                .filter_map(|data| if let RData::A(address) = data { Some(address.octets()) } else { None });
            let [.., server] = said.next_back().context("an answer without an address")?;
            return Ok(server.into());
        }
    }

    /// Goes on asking for so long, and says who answered.
    fn talk(&mut self, during: Duration) -> Result<Vec<usize>> {
        let end = Instant::now() + during;
        let mut seen = Vec::new();
        while Instant::now() < end {
            seen.push(self.ask()?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(seen)
    }
}

fn carries(plan: &Plan) -> Result<()> {
    let stage = Stage::new(plan)?;
    let mut counts = [0; 2];
    for n in 0..200 {
        let mut resolver = stage.resolver(n)?;
        let first = resolver.ask().with_context(|| format!("resolver {n}"))?;
        for _ in 0..3 {
            ensure!(resolver.ask()? == first, "resolver {n} met another name server");
        }
        counts[first] += 1;
    }
    // Four sigma of 200 coins.
    ensure!(counts.iter().all(|count| (72..=128).contains(count)), "{counts:?}");
    Ok(())
}

fn idles() -> Result<()> {
    let stage = Stage::new(&plan("flow"))?;
    let mut resolver = stage.resolver(1)?;
    let first = resolver.ask()?;
    stage.scene.lbctl(&["set", "state", &stage.scene.backend(first), "drain"])?;
    let seen = resolver.talk(2 * IDLE + Duration::from_secs(2))?;
    ensure!(seen.iter().all(|server| *server == first), "it went on asking {first}, and met {seen:?}");
    let flows = stage.scene.json(&["get", "flows", SERVICE])?;
    ensure!(flows["flows"].as_array().is_some_and(|flows| !flows.is_empty()), "it is tracked: {flows:#}");
    // Silence is what this is about: as long as a flow may be silent, and two ticks of the kernel's.
    std::thread::sleep(IDLE + Duration::from_millis(2500));
    ensure!(resolver.ask()? != first, "it was silent, and still meets the one that drains");
    Ok(())
}

fn evicted() -> Result<()> {
    let mut stage = Stage::new(&plan("flow"))?;
    let mut resolvers = (0..60).map(|n| stage.resolver(n)).collect::<Result<Vec<_>>>()?;
    let first = resolvers.iter_mut().map(Resolver::ask).collect::<Result<Vec<_>>>()?;
    // Now they are all in the table: whoever was there before a change is.
    stage.scene.lbctl(&["set", "weight", &stage.scene.backend(0), "1"])?;
    for (resolver, first) in resolvers.iter_mut().zip(&first) {
        ensure!(resolver.ask()? == *first, "a change of weights moved a flow");
    }
    ensure!(first.contains(&0), "nobody is with the first one");
    stage.scene.lbctl(&["set", "state", &stage.scene.backend(0), "maint"])?;
    stage.servers[0] = None;
    for resolver in &mut resolvers {
        ensure!(resolver.ask().context("a flow whose backend is gone")? == 1);
    }
    Ok(())
}

fn untracked() -> Result<()> {
    let stage = Stage::new(&plan("none"))?;
    let mut resolvers = (0..60).map(|n| stage.resolver(n)).collect::<Result<Vec<_>>>()?;
    let first = resolvers.iter_mut().map(Resolver::ask).collect::<Result<Vec<_>>>()?;
    ensure!(first.contains(&0) && first.contains(&1), "{first:?}");
    stage.scene.lbctl(&["set", "state", &stage.scene.backend(0), "drain"])?;
    for resolver in &mut resolvers {
        ensure!(resolver.ask()? == 1, "the next question follows the change");
    }
    stage.scene.lbctl(&["set", "state", &stage.scene.backend(0), "ready"])?;
    for (resolver, first) in resolvers.iter_mut().zip(&first) {
        ensure!(resolver.ask()? == *first, "and so does the one after it is taken back");
    }
    let flows = stage.scene.json(&["get", "flows", SERVICE])?;
    ensure!(flows["flows"].as_array().is_some_and(Vec::is_empty), "nothing is tracked: {flows:#}");
    Ok(())
}
