//! `lbctl fault`

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use ipnet::IpNet;

use super::{Outcome, whole};
use crate::api::{AddFault, ClearFaults, FaultAction, Faults, Share};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{age, counted, percent};
use crate::cli::screen::{Format, Screen};
use crate::cli::table::{Table, cells, column};

/// Injects faults into new connections, to rehearse what comes of them. Each one ends by itself, also without the agent.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Fault {
    Add(Add),
    /// Lists the faults that are injected.
    List,
    Clear(Clear),
}

/// Resets or drops a share of a service's new connections. Established ones stay as they are.
#[derive(Debug, Args)]
#[command(
    override_usage = "lbctl fault add [OPTIONS] --for <DURATION> <--reset <PERCENT>|--drop <PERCENT>> <SERVICE>",
    group(ArgGroup::new("what").required(true).args(["reset", "drop", "delay"]))
)]
pub(in crate::cli) struct Add {
    /// The service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Resets so many percent of the new connections.
    #[arg(long, value_name = "PERCENT")]
    reset: Option<Share>,
    /// Drops so many percent of the new connections.
    #[arg(long, value_name = "PERCENT")]
    drop: Option<Share>,
    /// Is refused: XDP has no queue in which packets could wait.
    #[arg(long, value_name = "DURATION", hide = true)]
    delay: Option<String>,
    /// How long it lasts (`30s`, at most a day).
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Only connections to this pool: the stable one, or the canary.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only connections to this backend, by its address and port.
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only connections from this network (`10.1.0.0/16`).
    #[arg(long, value_name = "PREFIX")]
    from: Option<IpNet>,
    /// Why, for the events.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Ends one fault, or all.
#[derive(Debug, Args)]
pub(in crate::cli) struct Clear {
    /// Its number in the list; all of them without it.
    #[arg(value_name = "ID", value_parser = whole::<u32>)]
    id: Option<u32>,
    /// Why, for the events.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Fault {
    pub fn doing(&self) -> String {
        match self {
            Self::Add(add) => format!("inject a fault into {}", add.service),
            Self::List => "list the faults".to_owned(),
            Self::Clear(_) => "clear faults".to_owned(),
        }
    }

    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let faults = match self {
            Self::List => context.client.faults().await?,
            Self::Clear(Clear { id, reason }) => {
                let before = context.client.faults().await?.faults.len();
                let left = context.client.clear_faults(&ClearFaults { id, reason }).await?;
                let cleared = before.saturating_sub(left.faults.len()) as u64;
                context.screen.remark(&format!("{} cleared", counted(cleared, "fault")))?;
                left
            }
            Self::Add(add) => {
                let (service, request) = add.request()?;
                context.client.add_fault(&service, &request).await?
            }
        };
        show(&faults, &mut context.screen)
    }
}

impl Add {
    fn request(self) -> Result<(String, AddFault), Failure> {
        let (action, share) = match (self.reset, self.drop) {
            (Some(share), _) => (FaultAction::Reset, share),
            (None, Some(share)) => (FaultAction::Drop, share),
            (None, None) => {
                return Err(Failure::of(
                    "LB0614",
                    "XDP cannot delay a packet: it has no queue to keep it in",
                )
                .remedy("delay it on the backend: tc qdisc add dev eth0 root netem delay 100ms")
                .exit(Exit::Usage));
            }
        };
        let request = AddFault {
            action,
            share,
            seconds: self.time.as_secs_f64(),
            pool: self.pool,
            backend: self.backend,
            clients: self.from.map(|network| network.trunc()),
            reason: self.reason,
        };
        Ok((self.service, request))
    }
}

fn show(faults: &Faults, screen: &mut Screen) -> Outcome {
    if screen.format == Format::Json {
        screen.json(faults)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new([
        column("ID").right(),
        column("SERVICE"),
        column("FAULT"),
        column("SHARE").right(),
        column("POOL"),
        column("BACKEND"),
        column("CLIENTS"),
        column("LEFT").right(),
    ]);
    for fault in &faults.faults {
        let any = |what: &Option<String>| what.clone().unwrap_or_else(|| "any".to_owned());
        table.row(
            "",
            cells![
                fault.id,
                &fault.service,
                fault.action,
                percent(fault.percent),
                any(&fault.pool),
                any(&fault.backend),
                any(&fault.clients),
                age(fault.left_seconds.ceil() as u64),
            ],
        );
    }
    screen.table(&table, "no faults are injected")?;
    Ok(Exit::Done)
}
