//! `lbctl status`

use std::io;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::Outcome;
use crate::api::{self, ClientError, DataplaneStatus, PoolStatus, PriorityStatus, ServiceStatus, Severity};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{age, count, either, percent, ratio, vip};
use crate::cli::screen::{Format, Screen};
use crate::cli::table::{Cell, Table, Tone, cells, column};

/// Shows the whole at a glance; exits with 3 if something does not work as it should.
#[derive(Debug, Args)]
pub(in crate::cli) struct Status {
    /// Waits until the agent is there and nothing is degraded; =settled also waits until every flow is where the tables say, up
    /// to `drain` (15 min) after a change.
    #[arg(long, value_enum, value_name = "FOR", num_args = 0..=1, require_equals = true, default_missing_value = "healthy")]
    wait: Option<For>,
    /// How long to wait (60s), and exits with 4 when it is over; without --wait, how long the agent may take to answer.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// How long is waited if nothing is said.
const WAIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    /// Nothing is degraded.
    Healthy,
    /// Nothing is degraded, and every flow is where the tables say.
    Settled,
}

impl Status {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let timeout = self.timeout.unwrap_or(WAIT);
        let (status, in_time) = match self.wait {
            None => {
                let asked = self.timeout.map(|timeout| context.client.with_patience(timeout));
                (asked.as_ref().unwrap_or(&context.client).status().await?, true)
            }
            Some(what) => wait_for(what, timeout, context).await?,
        };
        show(&status, &mut context.screen)?;
        if !in_time {
            let message = match status.degraded {
                true => "it was still degraded",
                false => "changes were still settling",
            };
            return Err(Failure::of("LB0607", format!("{message} after {timeout:?}"))
                .remedy("see the findings above, or wait longer with --timeout")
                .exit(Exit::TimedOut));
        }
        Ok(if status.degraded { Exit::Degraded } else { Exit::Done })
    }
}

/// The last status, and whether it is as it was wanted.
async fn wait_for(
    what: For,
    timeout: Duration,
    context: &Context<'_>,
) -> Result<(api::Status, bool), Failure> {
    const PERIOD: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Whatever little is left, an agent that is there can answer once.
        let client = context.client.with_patience(left.max(PERIOD));
        let late = left <= PERIOD;
        match client.status().await {
            Ok(status) if is_so(&status, what) => return Ok((status, true)),
            Ok(status) if late => return Ok((status, false)),
            Err(ClientError::Refused(error)) if !is_passing(&error) => return Err(error.into()),
            Err(error) if late => return Err(error.into()),
            Ok(_) | Err(_) => tokio::time::sleep(PERIOD).await,
        }
    }
}

fn is_so(status: &api::Status, what: For) -> bool {
    let settled = || {
        status.dataplane.slots.unsettled == 0 && status.services.iter().all(|service| service.split.settled)
    };
    !status.degraded && (what == For::Healthy || settled())
}

/// An agent that is starting says so.
fn is_passing(error: &api::ApiError) -> bool {
    error.kind().is_some_and(|kind| kind.status() == 503)
}

fn show(status: &api::Status, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(status);
    }
    let state = match status.degraded {
        true => "DEGRADED",
        false => "working",
    };
    screen.say(&format!(
        "lbd {} (layout {}), up {}, at revision {}: {state}\n",
        status.version,
        status.layout,
        age(status.uptime_seconds),
        status.revision,
    ))?;
    findings(status, screen)?;
    for service in &status.services {
        self::service(service, screen)?;
    }
    dataplane(&status.dataplane, screen)
}

fn findings(status: &api::Status, screen: &mut Screen) -> io::Result<()> {
    if status.findings.is_empty() {
        return Ok(());
    }
    let mut table =
        Table::new([column("FINDING"), column("CODE"), column("SUBJECT"), column("MESSAGE").text()]);
    for found in &status.findings {
        let tone = match found.severity {
            Severity::Info => Tone::Plain,
            Severity::Warning => Tone::Doubtful,
            Severity::Error => Tone::Bad,
        };
        let mut message = found.message.clone();
        if let Some(remedy) = &found.remedy {
            message += &format!("\n-> {remedy}");
        }
        let severity = tone.cell(found.severity.as_str());
        table.row("", cells![severity, &found.code, &found.subject, message]);
    }
    screen.say("\n")?;
    screen.table(&table, "")
}

fn dataplane(dataplane: &DataplaneStatus, screen: &mut Screen) -> io::Result<()> {
    let mut interfaces = Table::new([
        column("INTERFACE"),
        column("MODE"),
        column("MAC"),
        column("MTU").right(),
        column("IFINDEX").right().wide(),
    ]);
    for at in &dataplane.interfaces {
        let mode = match at.mode {
            api::XdpMode::Native => Tone::Good,
            api::XdpMode::Generic => Tone::Doubtful,
        };
        let mode = mode.cell(at.mode.as_str());
        interfaces.row("", cells![&at.name, mode, &at.mac, at.mtu, at.ifindex]);
    }
    screen.say("\n")?;
    screen.table(&interfaces, "no interface is attached: no packet is balanced")?;

    let DataplaneStatus { flows, udp_flows, half_open, sessions, slots, backends, .. } = dataplane;
    let mut room =
        Table::new([column("TABLE"), column("USED").right(), column("ROOM").right(), column("FULL").right()]);
    for (name, used, capacity) in [
        ("flows", flows.used, flows.capacity),
        ("udp flows", udp_flows.used, udp_flows.capacity),
        ("half open", half_open.used, half_open.capacity),
        ("sessions", sessions.used, sessions.capacity),
        ("slots", slots.used, slots.capacity),
        ("backends", backends.used, backends.capacity),
    ] {
        let tone = match used.saturating_mul(10) >= capacity.saturating_mul(9) {
            true => Tone::Doubtful,
            false => Tone::Plain,
        };
        room.row("", cells![name, count(used), count(capacity), tone.cell(ratio(used, capacity))]);
    }
    screen.say("\n")?;
    screen.table(&room, "")?;
    if slots.unsettled > 0 {
        screen.say(&format!(
            "{} {} settling\n",
            count(slots.unsettled),
            either(slots.unsettled, "slot is", "slots are")
        ))?;
    }
    let drops = dataplane.drops.iter().filter(|(_, packets)| **packets > 0);
    let drops: Vec<String> = drops.map(|(why, packets)| format!("{why} {}", count(*packets))).collect();
    if !drops.is_empty() {
        screen.say(&format!("dropped packets: {}\n", drops.join(", ")))?;
    }
    Ok(())
}

fn service(service: &ServiceStatus, screen: &mut Screen) -> io::Result<()> {
    let split = match (&service.canary, service.split.settled) {
        (None, _) => String::new(),
        (Some(canary), true) => format!(", {} to {canary}", percent(service.split.percent)),
        (Some(canary), false) => {
            format!(", {} to {canary} (settling)", percent(service.split.percent))
        }
    };
    screen.say(&format!(
        "\n{} {} {}, revision {}{split}\n",
        service.name,
        vip(service),
        service.mode,
        service.revision,
    ))?;
    let mut pools = Table::new([
        column("POOL"),
        column("ROLE"),
        column("SHARE").right(),
        column("READY").right(),
        column("FLOWS").right(),
        column("CONNECTIONS").right(),
        column("PACKETS").right().if_room(1),
        column("NOTE").text(),
    ]);
    for pool in &service.pools {
        let flows: u64 = pool.backends.iter().map(|backend| backend.tracked_flows).sum();
        let note = note(pool);
        let (connections, packets) = (count(pool.traffic.connections), count(pool.traffic.packets));
        pools.row(
            "",
            cells![
                &pool.name,
                pool.role,
                percent(pool.share_percent),
                ready(std::slice::from_ref(pool)),
                count(flows),
                connections,
                packets,
                note,
            ],
        );
    }
    screen.table(&pools, "")?;
    Ok(())
}

/// What is odd about a pool, the gravest first.
fn note(pool: &PoolStatus) -> Cell {
    let mut notes = Vec::new();
    if pool.panic {
        notes.push("panic: health is ignored".to_owned());
    }
    if pool.failed {
        notes.push("failed: fewer are healthy than min_healthy says".to_owned());
    }
    if let Some(other) = &pool.spills_to {
        notes.push(format!("its new flows go to {other}"));
    }
    let tone = if notes.is_empty() { Tone::Plain } else { Tone::Bad };
    if pool.priorities.len() > 1 && !pool.failed {
        let share = |level: &PriorityStatus| {
            format!("{} of priority {}", percent(level.share_percent), level.priority)
        };
        let shares = pool.priorities.iter().filter(|level| level.share_percent > 0.0).map(share);
        notes.push(shares.collect::<Vec<_>>().join(", "));
    }
    tone.cell(notes.join("; "))
}

/// How many backends take new flows or stand by, of those that are to stay.
pub(super) fn ready(pools: &[PoolStatus]) -> Cell {
    let backends = pools.iter().flat_map(|pool| &pool.backends);
    let (ready, all) =
        backends.filter(|backend| !backend.terminating).fold((0, 0), |(ready, all), backend| {
            (ready + u32::from(backend.takes_new || backend.standby), all + 1)
        });
    let tone = match ready {
        _ if ready == all => Tone::Good,
        0 => Tone::Bad,
        _ => Tone::Doubtful,
    };
    tone.cell(format!("{ready}/{all}"))
}
