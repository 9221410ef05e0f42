//! How long a rollback takes: to the store, and to the first packet that obeys it.
//!
//! A thread gives new connections of one canary client to the pinned program, one after the other by test runs, and reads
//! from each frame which pool it was sent to: no ring and no scheduler lies between the store and the answer.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::FlowKey;
use lb_tests::packets::{Frame, Tcp};
use lb_tests::test_run::TestRun;
use lb_userspace::api::{self, Client, KeepOrReset};
use serde::Serialize;

use crate::Effort;
use crate::bed::{self, Bed, CLIENTS_V4, PORT, Spec, equal};
use crate::driver::pin;
use crate::report::{Section, Table, as_nanoseconds, least, median, time};

/// Rollbacks, by three ways.
#[derive(Debug, Serialize)]
pub struct Rollbacks {
    runs: u32,
    ways: Vec<Way>,
}

/// The same rollback, several times.
#[derive(Debug, Serialize)]
struct Way {
    way: &'static str,
    /// As the answer says: the store itself.
    store: Summary,
    /// As the answer says: from the arrival of the request to the end of the store.
    agent: Option<Summary>,
    /// From before the request (or the start of `lbctl`) to the first new connection that goes to the stable pool.
    obeyed: Summary,
    /// From there to the answer (or the end of `lbctl`).
    whole: Summary,
    /// Between two probes: how exactly "obeyed" is known.
    resolution: Summary,
    /// New connections that entered the canary after the rollback had returned.
    late: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    #[serde(rename = "least_nanoseconds", serialize_with = "as_nanoseconds")]
    least: Duration,
    #[serde(rename = "median_nanoseconds", serialize_with = "as_nanoseconds")]
    median: Duration,
}

impl Summary {
    fn of(times: &[Duration]) -> Result<Self> {
        let (Some(least), Some(median)) = (least(times), median(times)) else {
            bail!("nothing was measured")
        };
        Ok(Self { least, median })
    }

    fn text(self) -> String {
        format!("{} ({})", time(self.least), time(self.median))
    }
}

/// How long the probes go on after a rollback has returned.
const AFTERWARDS: Duration = Duration::from_millis(20);

/// Measures by the socket, by `lbctl`, and by `lbctl` without an agent.
///
/// # Errors
/// If anything of it fails, or the program does not obey.
pub fn measure(effort: Effort, cpu: usize) -> Result<Rollbacks> {
    let runs = effort.rounds * 3;
    let spec = Spec { pools: vec![equal(0..10), equal(10..20)], ..Spec::new("web", 0) };
    let mut bed = Bed::start(vec![spec.clone()], "")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(&bed.agent.places().socket);

    let by_socket = way("the agent's socket", runs, &bed, &spec, cpu, || {
        let request = api::Rollback { flows: KeepOrReset::Keep, reason: None };
        Ok(runtime.block_on(client.rollback(spec.name, &request))?)
    })?;
    let command = || -> Result<api::RolledBack> {
        Ok(serde_json::from_str(&bed.lbctl(&["-o", "json", "rollback", spec.name])?)?)
    };
    let by_lbctl = way("lbctl", runs, &bed, &spec, cpu, command)?;

    let mut alone = Vec::new();
    for _ in 0..runs {
        bed.lbctl(&["set", "split", spec.name, "50"])?;
        bed.agent.kill9();
        let command = || -> Result<api::RolledBack> {
            Ok(serde_json::from_str(&bed.lbctl(&["-o", "json", "rollback", spec.name])?)?)
        };
        alone.push(once(&bed, &spec, cpu, command)?);
        bed.agent.restart()?;
        bed.agent.wait_ready(Duration::from_secs(60))?;
    }
    let without = summary("lbctl, agent dead", &alone)?;
    Ok(Rollbacks { runs, ways: vec![by_socket, by_lbctl, without] })
}

fn way(
    name: &'static str,
    runs: u32,
    bed: &Bed,
    spec: &Spec,
    cpu: usize,
    mut roll_back: impl FnMut() -> Result<api::RolledBack>,
) -> Result<Way> {
    let mut seen = Vec::new();
    for _ in 0..runs {
        bed.lbctl(&["set", "split", spec.name, "50"])?;
        seen.push(once(bed, spec, cpu, &mut roll_back)?);
    }
    summary(name, &seen)
}

/// One rollback.
struct Once {
    answer: api::RolledBack,
    obeyed: Duration,
    whole: Duration,
    resolution: Duration,
    late: u64,
}

fn summary(name: &'static str, seen: &[Once]) -> Result<Way> {
    let all = |of: &dyn Fn(&Once) -> Duration| Summary::of(&seen.iter().map(of).collect::<Vec<_>>());
    let by_agent = seen.iter().all(|once| once.answer.by_agent);
    Ok(Way {
        way: name,
        store: all(&|once| Duration::from_secs_f64(once.answer.store_seconds))?,
        agent: if by_agent {
            Some(all(&|once| Duration::from_secs_f64(once.answer.total_seconds))?)
        } else {
            None
        },
        obeyed: all(&|once| once.obeyed)?,
        whole: all(&|once| once.whole)?,
        resolution: all(&|once| once.resolution)?,
        late: seen.iter().map(|once| once.late).sum(),
    })
}

fn once(
    bed: &Bed,
    spec: &Spec,
    cpu: usize,
    roll_back: impl FnOnce() -> Result<api::RolledBack>,
) -> Result<Once> {
    let prober = Prober::new(bed, spec)?;
    let (running, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let probes = scope.spawn(|| prober.run(cpu, &running, &stop));
        while !running.load(Ordering::Acquire) && !probes.is_finished() {
            std::thread::yield_now();
        }
        let start = Instant::now();
        let answer = roll_back();
        let end = Instant::now();
        std::thread::sleep(AFTERWARDS);
        stop.store(true, Ordering::Release);
        let probing = begin.elapsed();
        let Ok(probes) = probes.join() else { bail!("the probes died") };
        let Probes { sent, first_stable, canary } = probes?;
        let first = first_stable.context("no new connection went to the stable pool")?;
        ensure!(first > start, "a new connection went to the stable pool before the rollback");
        let late = canary.iter().filter(|sent| **sent > end).count() as u64;
        Ok(Once {
            answer: answer?,
            obeyed: first - start,
            whole: end - start,
            resolution: probing / sent.max(1),
            late,
        })
    })
}

/// Gives new connections to the program.
struct Prober {
    namespace: lb_tests::Namespace,
    interface: u32,
    program: aya::programs::ProgramFd,
    frame: Vec<u8>,
    canary: Vec<IpAddr>,
}

/// What became of them.
struct Probes {
    sent: u32,
    first_stable: Option<Instant>,
    /// When each one went to the canary, before the program was called.
    canary: Vec<Instant>,
}

impl Prober {
    /// With a client that belongs to the canary at 50 %.
    fn new(bed: &Bed, spec: &Spec) -> Result<Self> {
        let service = bed.service(spec)?;
        let key = |client: IpAddr| FlowKey {
            client: client.into(),
            client_port: lb_common::abi::Port::new(0x8000),
            port: lb_common::abi::Port::new(PORT),
            owner: 0,
        };
        let client = CLIENTS_V4
            .hosts()
            .map(IpAddr::V4)
            .find(|client| service.split_hash(&key(*client)) < service.split().new())
            .context("no client belongs to the canary")?;
        let frame = Frame::ethernet(bed.lab.client(0).mac(), bed.lab.balancer().mac())
            .ip(client, bed.vip(spec))
            .tcp(Tcp::new(0x8000, PORT).syn())
            .payload(&[])
            .build();
        Ok(Self {
            namespace: bed.lab.balancer().namespace().clone(),
            interface: bed.lab.balancer().port().index,
            program: bed.program()?,
            frame,
            canary: spec.pools[1].iter().map(|(number, _)| bed::backend(*number, spec.family)).collect(),
        })
    }

    fn run(&self, cpu: usize, running: &AtomicBool, stop: &AtomicBool) -> Result<Probes> {
        const SOURCE_PORT: usize = 34;
        const OUTER_DESTINATION: std::ops::Range<usize> = 30..34;
        let mut frame = self.frame.clone();
        let mut probes = Probes { sent: 0, first_stable: None, canary: Vec::new() };
        self.namespace.run(|| {
            pin(cpu)?;
            for port in (0..=u16::MAX).cycle() {
                frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
                let before = Instant::now();
                let made =
                    TestRun::new(self.program.as_fd(), &frame).arriving_on(self.interface, 0).run()?.frame;
                let octets: [u8; 4] =
                    made.get(OUTER_DESTINATION).context("no tunnel came out")?.try_into()?;
                if self.canary.contains(&IpAddr::from(octets)) {
                    probes.canary.push(before);
                    running.store(true, Ordering::Release);
                } else if !probes.canary.is_empty() {
                    probes.first_stable.get_or_insert_with(Instant::now);
                } else {
                    bail!("a client of the canary went to {octets:?}");
                }
                probes.sent += 1;
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(probes)
    }
}

impl Section for Rollbacks {
    const TITLE: &'static str = "Time to roll back a canary at 50 %";

    fn text(&self) -> String {
        let mut table =
            Table::new(["by", "store", "request to store", "first packet that obeys", "returned", "late"]);
        for way in &self.ways {
            table.row(vec![
                way.way.to_owned(),
                way.store.text(),
                way.agent.map_or_else(String::new, Summary::text),
                way.obeyed.text(),
                way.whole.text(),
                way.late.to_string(),
            ]);
        }
        let resolution = self.ways.iter().map(|way| way.resolution.median).max().unwrap_or_default();
        format!(
            "{table}\nThe least (and the median) of {} rollbacks. \"First packet\" and \"returned\" count from before the request or\n\
             the start of lbctl; new connections of a canary client were given to the program every {} all the while.\n\
             \"Late\" are those that entered the canary after the rollback had returned.\n",
            self.runs,
            time(resolution)
        )
    }
}
