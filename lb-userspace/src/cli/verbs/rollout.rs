//! `lbctl rollout`: begins one, follows it, and has a say in it.

use std::io;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::Outcome;
use crate::api::{ClientError, OrderRollout, RolloutStatus, Share, StartRollout};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{Format, Screen};
use crate::cli::watch::PERIOD;
use crate::rollout::engine::{Order, Phase};

mod picture;

/// Rolls a pool out step by step, watches it, and takes it back if it is bad.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Rollout {
    Start(Start),
    Status(Status),
    /// Stays at this share; analysis goes on.
    Pause(Told),
    /// Goes on after a pause.
    Resume(Told),
    Promote(Promote),
    /// Takes every new connection back to the stable pool, now.
    Abort(Told),
    /// Begins once more, from the first step.
    Retry(Told),
    /// Lets the rollout pass its gate; also ahead of time.
    Approve(Told),
}

/// Starts a rollout of a pool, from its first step.
#[derive(Debug, Args)]
pub(in crate::cli) struct Start {
    /// The service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The pool that is rolled out.
    #[arg(long, value_name = "POOL")]
    to: String,
    /// The canary's shares in percent, one step each, instead of the configured ones.
    #[arg(long, value_name = "1,5,25,50", value_delimiter = ',')]
    steps: Option<Vec<Share>>,
    /// How long each step lasts at least (`5m`), instead of what is configured.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    hold: Option<Duration>,
    /// Rolls the rollout back that is under way, if one is.
    #[arg(long)]
    supersede: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Says where it stands. Exit code 0 if it was promoted or goes on, 3 if it was rolled back, 4 if time is up.
#[derive(Debug, Args)]
pub(in crate::cli) struct Status {
    /// The service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Follows it to its end.
    #[arg(short, long)]
    watch: bool,
    /// Follows it for so long at most; without --watch, how long the agent may take to answer.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// An order.
#[derive(Debug, Args)]
pub(in crate::cli) struct Told {
    /// The service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Goes on to the next step now.
#[derive(Debug, Args)]
pub(in crate::cli) struct Promote {
    #[command(flatten)]
    told: Told,
    /// To 100 % at once.
    #[arg(long)]
    full: bool,
    /// With --full: also if it is paused, its pool is not ready, or analysis is against it. Only an operator takes it back then.
    #[arg(long, requires = "full")]
    force: bool,
}

impl Rollout {
    pub fn doing(&self) -> String {
        match self {
            Self::Start(start) => format!("roll out {}/{}", start.service, start.to),
            Self::Status(status) => format!("show the rollout of {}", status.service),
            Self::Promote(promote) => format!("promote the rollout of {}", promote.told.service),
            Self::Pause(told) => format!("pause the rollout of {}", told.service),
            Self::Resume(told) => format!("resume the rollout of {}", told.service),
            Self::Abort(told) => format!("abort the rollout of {}", told.service),
            Self::Retry(told) => format!("retry the rollout of {}", told.service),
            Self::Approve(told) => format!("approve the rollout of {}", told.service),
        }
    }

    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        match self {
            Self::Start(start) => start.run(context).await,
            Self::Status(status) => status.run(context).await,
            Self::Pause(told) => told.run(Order::Pause, context).await,
            Self::Resume(told) => told.run(Order::Resume, context).await,
            Self::Promote(Promote { told, full, force }) => {
                let order = match (full, force) {
                    (false, _) => Order::Promote,
                    (true, false) => Order::PromoteFull,
                    (true, true) => Order::Force,
                };
                told.run(order, context).await
            }
            Self::Abort(told) => told.run(Order::Abort, context).await,
            Self::Retry(told) => told.run(Order::Retry, context).await,
            Self::Approve(told) => told.run(Order::Approve, context).await,
        }
    }
}

impl Start {
    async fn run(self, context: &mut Context<'_>) -> Outcome {
        let request = StartRollout {
            to: self.to,
            shares: self.steps,
            hold_seconds: self.hold.map(|hold| hold.as_secs_f64()),
            supersede: self.supersede,
            reason: self.reason,
        };
        let status = context.client.start_rollout(&self.service, &request).await?;
        show(&status, &mut context.screen)?;
        Ok(Exit::Done)
    }
}

impl Told {
    async fn run(self, order: Order, context: &mut Context<'_>) -> Outcome {
        let request = OrderRollout { reason: self.reason };
        let status = context.client.order_rollout(&self.service, order, &request).await?;
        show(&status, &mut context.screen)?;
        Ok(Exit::Done)
    }
}

impl Status {
    async fn run(self, context: &mut Context<'_>) -> Outcome {
        if !self.watch {
            let asked = self.timeout.map(|timeout| context.client.with_patience(timeout));
            let status = asked.as_ref().unwrap_or(&context.client).rollout(&self.service).await?;
            show(&status, &mut context.screen)?;
            return Ok(if status.phase == Phase::RolledBack || status.phase == Phase::Failed {
                Exit::Degraded
            } else {
                Exit::Done
            });
        }
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut lines = 0;
        let mut last: Option<RolloutStatus> = None;
        let mut away = false;
        loop {
            match context.client.rollout(&self.service).await {
                Ok(status) => {
                    away = false;
                    lines = picture::follow(&status, last.as_ref(), lines, &mut context.screen)?;
                    match status.phase {
                        Phase::Promoted => return Ok(Exit::Done),
                        Phase::RolledBack | Phase::Failed => return Ok(Exit::Degraded),
                        _ => last = Some(status),
                    }
                }
                Err(ClientError::Refused(error)) => return Err(Failure::from(error)),
                // The data path goes on, and so does the rollout once the agent is back.
                Err(error) if !away => {
                    away = true;
                    lines = 0;
                    context.screen.remark(&format!("{error}; waiting for it to come back"))?;
                }
                Err(_) => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Failure::of(
                    "LB0611",
                    format!("the rollout of {} was still under way", self.service),
                )
                .remedy("it goes on; watch longer with --timeout, or end it with `lbctl rollout abort`")
                .exit(Exit::TimedOut));
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

fn show(status: &RolloutStatus, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(status);
    }
    screen.say(&picture::draw(status))
}
