//! What an agent with many services costs: how long its answers take, and how much memory it has.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{Agent, AgentSpec, Family, Lab};
use serde::Serialize;

use crate::Effort;
use crate::bed::{self, PORT};
use crate::report::{Section, Table, as_nanoseconds, median, time};

/// How many services, and backends of each: as many as the issue of this asks for.
const SERVICES: u16 = 1_000;
const BACKENDS: u16 = 10;
/// Slots of each: 400 a backend, and all of them fit into the tables as they are unless configured.
const SLOTS: u32 = 4_093;

/// What agents cost.
#[derive(Debug, Serialize)]
pub struct Control {
    agents: Vec<Cost>,
}

/// What one agent costs.
#[derive(Debug, Serialize)]
struct Cost {
    services: u16,
    backends: u32,
    /// From its start to the answer that every backend takes flows.
    #[serde(rename = "start_nanoseconds", serialize_with = "as_nanoseconds")]
    start: Duration,
    answers: Vec<Answer>,
    /// Before anybody has asked much.
    memory_at_start: Memory,
    memory: Memory,
    /// CPU time by wall-clock time before anybody asks anything.
    idle_core_share: f64,
}

/// How long the answers to one kind of request take, from the request's first byte to the answer's last.
#[derive(Debug, Serialize)]
struct Answer {
    request: &'static str,
    times: usize,
    bytes: usize,
    #[serde(rename = "median_nanoseconds", serialize_with = "as_nanoseconds")]
    median: Duration,
    /// 99 of 100 took no longer.
    #[serde(rename = "p99_nanoseconds", serialize_with = "as_nanoseconds")]
    p99: Duration,
    #[serde(rename = "longest_nanoseconds", serialize_with = "as_nanoseconds")]
    longest: Duration,
    /// CPU time of the agent for each, whatever else the machine does.
    #[serde(rename = "cpu_nanoseconds", serialize_with = "as_nanoseconds")]
    cpu: Duration,
}

/// Memory of the process in bytes, as `/proc/PID/status` says.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// All that is resident: the kernel's maps count as far as they are mapped.
    resident: u64,
    /// The most that it ever was.
    peak: u64,
    /// Of its own.
    anonymous: u64,
}

/// Measures an agent with one service, and one with a thousand.
///
/// # Errors
/// If anything of it fails.
pub fn measure(effort: Effort) -> Result<Control> {
    let agents = [1, SERVICES]
        .map(|services| cost(effort, services).with_context(|| format!("with {services} services")));
    Ok(Control { agents: agents.into_iter().collect::<Result<_>>()? })
}

fn cost(effort: Effort, services: u16) -> Result<Cost> {
    let lab = Lab::builder().backends(0).build()?;
    let all = services * BACKENDS;
    bed::introduce(
        &lab,
        (0..all).map(|number| (bed::backend(number, Family::V4), bed::mac(number))).collect(),
    )?;
    let config = config(&lab, services);
    let begin = Instant::now();
    let mut agent = Agent::start(lab.balancer(), AgentSpec::new(&config))?;
    agent.wait_ready(Duration::from_secs(120))?;
    let id = agent.process().id();
    let asker = Asker { agent: &agent, lab: &lab, id };
    while asker.takers()? < usize::from(all) {
        ensure!(begin.elapsed() < Duration::from_secs(120), "not every backend takes flows\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let start = begin.elapsed();
    std::thread::sleep(Duration::from_secs(5));
    let memory_at_start = memory(id)?;
    // Until every handshake is over that may have begun before it, a sweep reads the slots of whoever has changed; and what is set
    // below is read for the drain time.
    if !effort.hasty {
        std::thread::sleep(Duration::from_secs(75));
    }
    let (before, wall) = (cpu(id)?, Instant::now());
    std::thread::sleep(Duration::from_secs(if effort.hasty { 5 } else { 20 }));
    let idle_core_share = (cpu(id)? - before).as_secs_f64() / wall.elapsed().as_secs_f64();

    let rounds = effort.rounds as usize;
    let last = services - 1;
    let path = |service: u16, of: &str| format!("/v1/services/s{service}{of}");
    let backend = |service: u16| SocketAddr::new(bed::backend(service * BACKENDS, Family::V4), PORT);
    let weight = |round: usize| {
        let service = (round % usize::from(services)) as u16;
        let to = path(service, &format!("/pools/stable/backends/{}/weight", backend(service)));
        // Each service's turn comes with another weight than it has.
        ("PUT", to, format!("{{\"weight\":{}}}", 50 + (round / usize::from(services)) % 50))
    };
    let get = |path: String| ("GET", path, String::new());
    let from = SocketAddr::new(Ipv4Addr::new(198, 18, 0, 1).into(), 40_000);
    let to = SocketAddr::new(vip(last).into(), PORT);
    let explain = format!("{{\"from\":\"{from}\",\"to\":\"{to}\"}}");
    let many = rounds * 50;
    let answers = vec![
        asker.ask("set weight", many, weight)?,
        asker.ask("rollback", many, |_| ("POST", path(last, "/rollback"), String::new()))?,
        asker.ask("explain", many, |_| ("POST", "/v1/explain".to_owned(), explain.clone()))?,
        asker.ask("services, one", many, |_| get(format!("/v1/services?service=s{last}")))?,
        asker.ask("backends of one", many, |_| get(format!("/v1/backends?service=s{last}")))?,
        asker.ask("flows", many, |_| get("/v1/flows".to_owned()))?,
        asker.ask("history of one", many, |_| get(path(last, "/history")))?,
        asker.ask("status, a page", rounds * 5, |_| get("/v1/status".to_owned()))?,
        asker.pages("status, all pages", rounds * 5, "/v1/status")?,
        asker.ask("backends, a page", rounds * 5, |_| get("/v1/backends".to_owned()))?,
        asker.pages("backends, all pages", rounds * 5, "/v1/backends")?,
        // Each time a weight is another one: what was asked before is of no help.
        asker.ask("apply, dry run", rounds, |round| {
            let line = format!("address = \"{}\"\n", backend(last));
            let other = config.replace(&line, &format!("{line}weight = {}\n", 200 + round));
            ("POST", "/v1/apply".to_owned(), apply(&other))
        })?,
        asker.scrape(rounds * 5)?,
    ];
    Ok(Cost {
        services,
        backends: all.into(),
        start,
        answers,
        memory_at_start,
        memory: memory(id)?,
        idle_core_share,
    })
}

fn vip(service: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

fn config(lab: &Lab, services: u16) -> String {
    let interface = &lab.balancer().port().name;
    let mut text = format!("schema = 1\n[dataplane]\ninterfaces = [\"{interface}\"]\n");
    for service in 0..services {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"s{service}\"\nvip = \"{}\"\nport = {PORT}\nmode = \"dsr-ipip\"\ntable_size = {SLOTS}\n\
             [[service.pool]]\nname = \"stable\"\n",
            vip(service)
        );
        for number in service * BACKENDS..(service + 1) * BACKENDS {
            let address = SocketAddr::new(bed::backend(number, Family::V4), PORT);
            let _ = writeln!(text, "[[service.pool.backend]]\naddress = \"{address}\"");
        }
    }
    text
}

fn apply(config: &str) -> String {
    serde_json::json!({ "text": config, "name": "bench.toml", "dry_run": true }).to_string()
}

/// Asks as `curl` would.
struct Asker<'a> {
    agent: &'a Agent,
    lab: &'a Lab,
    /// The agent's process.
    id: u32,
}

impl Asker<'_> {
    /// Backends that take new flows.
    fn takers(&self) -> Result<usize> {
        let answer = self.all_pages("/v1/backends")?;
        Ok(String::from_utf8_lossy(&answer).matches("\"takes_new\":true").count())
    }

    fn pages(&self, request: &'static str, times: usize, path: &str) -> Result<Answer> {
        answer(request, times, self.id, |_| self.all_pages(path))
    }

    /// The answers one behind the other.
    fn all_pages(&self, path: &str) -> Result<Vec<u8>> {
        let mut all = self.request("GET", path, "")?;
        let mut page = all.clone();
        // The last of its members.
        while let Some(next) = String::from_utf8_lossy(&page)
            .rsplit_once("\"next\":\"")
            .map(|(_, next)| next.split('"').next().unwrap_or_default().to_owned())
        {
            page = self.request("GET", &format!("{path}?after={next}"), "")?;
            all.extend_from_slice(&page);
        }
        Ok(all)
    }

    fn ask(
        &self,
        request: &'static str,
        times: usize,
        each: impl Fn(usize) -> (&'static str, String, String),
    ) -> Result<Answer> {
        answer(request, times, self.id, |round| {
            let (method, path, body) = each(round);
            self.request(method, &path, &body)
        })
    }

    fn scrape(&self, times: usize) -> Result<Answer> {
        let address = &self.agent.places().metrics;
        self.lab.balancer().namespace().run(|| {
            answer("scrape of /metrics", times, self.id, |_| {
                exchange(TcpStream::connect(address)?, "GET", "/metrics", "")
            })
        })
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        exchange(UnixStream::connect(&self.agent.places().socket)?, method, path, body)
    }
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    let mut answer = Vec::with_capacity(1 << 20);
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{method} {path}: {}", String::from_utf8_lossy(&answer));
    Ok(answer)
}

fn answer(
    request: &'static str,
    times: usize,
    id: u32,
    mut ask: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<Answer> {
    let mut took = Vec::with_capacity(times);
    let (mut bytes, before) = (0, cpu(id)?);
    for round in 0..times {
        let begin = Instant::now();
        bytes = ask(round).context(request)?.len();
        took.push(begin.elapsed());
    }
    let cpu = (cpu(id)? - before) / times as u32;
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part).ceil() as usize];
    let median = median(&took).context("nothing was asked")?;
    Ok(Answer { request, times, bytes, median, p99: at(0.99), longest: at(1.0), cpu })
}

/// CPU time of a process so far.
fn cpu(id: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Its second field is a name in parentheses.
    let (_, rest) = stat.rsplit_once(") ").context("not a process's stat")?;
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    // 100 a second, whatever the kernel's own clock does (proc(5), USER_HZ).
    Ok(Duration::from_millis(ticks * 10))
}

fn memory(id: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let of = |name: &str| -> Result<u64> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kilobytes: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    };
    Ok(Memory { resident: of("VmRSS")?, peak: of("VmHWM")?, anonymous: of("RssAnon")? })
}

impl Section for Control {
    const TITLE: &'static str = "An agent with many services";

    fn text(&self) -> String {
        let mut table = Table::new(["request", "times", "answer", "median", "p99", "longest", "CPU each"]);
        for cost in &self.agents {
            table.heading(&format!("{} services, {} backends", cost.services, cost.backends));
            for answer in &cost.answers {
                table.row(vec![
                    answer.request.to_owned(),
                    answer.times.to_string(),
                    bytes(answer.bytes as u64),
                    time(answer.median),
                    time(answer.p99),
                    time(answer.longest),
                    time(answer.cpu),
                ]);
            }
        }
        let mut memories = Table::new([
            "services, backends",
            "resident",
            "of its own",
            "later",
            "at most",
            "start",
            "idle, of a core",
        ]);
        for Cost { services, backends, start, memory_at_start, memory, idle_core_share, .. } in &self.agents {
            memories.row(vec![
                format!("{services}, {backends}"),
                bytes(memory_at_start.resident),
                bytes(memory_at_start.anonymous),
                bytes(memory.resident),
                bytes(memory.peak),
                time(*start),
                format!("{:.1} %", idle_core_share * 100.0),
            ]);
        }
        format!(
            "{table}\nFrom the request's first byte to the answer's last, one connection each; a weight is set in another service each \
             time, and its\nanswer comes after the last store (journal on tmpfs).\n\n{memories}\n\"Resident\" counts the kernel's maps as far \
             as they are mapped; \"start\" is until every backend takes flows.\n"
        )
    }
}

fn bytes(count: u64) -> String {
    match count as f64 {
        count if count < 1e3 => format!("{count} B"),
        count if count < 1e6 => format!("{:.1} kB", count / 1e3),
        count => format!("{:.1} MB", count / 1e6),
    }
}
