//! What checking ten thousand backends costs the agent's host.
//!
//! The scheduler runs on a thread of its own, whose CPU time is read; the servers run on another one, because backends are
//! not what is measured. Every backend is an address of the loopback.

use std::future;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::Namespace;
use lb_userspace::health::{Check, CheckKind, Health, HttpCheck, Scheduler, Target, TargetId, Timing};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::Effort;
use crate::report::{Section, Table};

/// How many backends, and how often each is checked.
const TARGETS: u32 = 10_000;
const INTERVAL: Duration = Duration::from_secs(5);

/// What checks cost.
#[derive(Debug, Serialize)]
pub struct Checks {
    targets: u32,
    interval_seconds: u64,
    kinds: Vec<Cost>,
}

/// What checks of one type cost.
#[derive(Debug, Serialize)]
struct Cost {
    kind: &'static str,
    /// CPU time by wall-clock time.
    core_share: f64,
    checks_per_second: f64,
    /// Of all checks, those that began more than 100 ms after their time.
    late_share: f64,
    microseconds_per_check: f64,
}

/// Measures each type.
///
/// # Errors
/// If the checks do not pass.
pub fn measure(effort: Effort) -> Result<Checks> {
    // With a loopback of its own, which is up.
    Namespace::new("health")?.run(|| measure_here(effort))
}

fn measure_here(effort: Effort) -> Result<Checks> {
    let port = serve()?;
    let http = HttpCheck::new("/healthz", None, "200".parse()?)?;
    let kinds = [("tcp", CheckKind::Tcp), ("http", CheckKind::Http(Arc::new(http)))];
    let time = Duration::from_secs(if effort.hasty { 5 } else { 30 });
    let kinds = kinds.into_iter().map(|(name, kind)| cost(name, kind, port, time)).collect::<Result<_>>()?;
    Ok(Checks { targets: TARGETS, interval_seconds: INTERVAL.as_secs(), kinds })
}

fn cost(name: &'static str, kind: CheckKind, port: u16, time: Duration) -> Result<Cost> {
    let timing = Timing::new(INTERVAL, Duration::from_secs(1), 2, 3)?;
    let targets = (0..TARGETS).map(|n| Target {
        id: TargetId(n.into()),
        address: (Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + n), port).into(),
        check: Check { kind: kind.clone(), timing },
        mark: None,
        via: None,
    });
    runtime()?.block_on(async {
        let (events, _received) = mpsc::channel(1);
        let scheduler = Scheduler::new(events);
        scheduler.update(targets.collect());
        // A busy machine may fail its own first checks, all in one second; later ones bring every backend up.
        let deadline = Instant::now() + 6 * INTERVAL;
        while !scheduler.reports().iter().all(|(_, report)| report.health == Health::Up) {
            ensure!(Instant::now() < deadline, "not every backend is up after six intervals");
            sleep(Duration::from_millis(100)).await;
        }
        // After an interval they are spread.
        sleep(INTERVAL).await;
        let (cpu, wall, before) = (thread_cpu()?, Instant::now(), scheduler.load());
        sleep(time).await;
        let (cpu, wall, after) = (thread_cpu()? - cpu, wall.elapsed(), scheduler.load());
        let checks = (after.started - before.started) as f64;
        ensure!(checks > 0.0, "nothing was checked");
        Ok(Cost {
            kind: name,
            core_share: cpu.as_secs_f64() / wall.as_secs_f64(),
            checks_per_second: checks / wall.as_secs_f64(),
            late_share: (after.late - before.late) as f64 / checks,
            microseconds_per_check: cpu.as_secs_f64() * 1e6 / checks,
        })
    })
}

/// A port that answers on every address of this host, by a thread that ends with the process.
fn serve() -> Result<u16> {
    let runtime = runtime()?;
    let listener = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::UNSPECIFIED, 0).into())?;
        socket.listen(4096)
    })?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::spawn(answer(listener));
            future::pending::<()>().await;
        });
    });
    Ok(port)
}

async fn answer(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            if stream.read(&mut [0; 1024]).await? > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            }
            io::Result::Ok(())
        });
    }
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("no runtime")
}

fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

impl Section for Checks {
    const TITLE: &'static str = "Health checks";

    fn text(&self) -> String {
        let mut table = Table::new(["check", "of a core", "a check", "checks/s", "late"]);
        for cost in &self.kinds {
            table.row(vec![
                cost.kind.to_owned(),
                format!("{:.1} %", cost.core_share * 100.0),
                format!("{:.0} µs", cost.microseconds_per_check),
                format!("{:.0}", cost.checks_per_second),
                format!("{:.2} %", cost.late_share * 100.0),
            ]);
        }
        format!(
            "{} backends on the loopback, each checked every {} s, by one thread; its CPU time, system calls included.\n\n{table}",
            self.targets, self.interval_seconds
        )
    }
}
