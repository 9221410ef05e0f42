//! `lbctl rollback`: the verb for the worst moment. Nothing is done before the request is on its way, and an agent that does
//! not answer at once is not waited for.

use std::io;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use super::set::one_of;
use crate::api::{self, ApiError, ClientError, KeepOrReset, RolledBack};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{counted, percent, short_time};
use crate::cli::screen::{Format, Screen};
use crate::offline::NoNames;

/// How long the agent may take, before its maps are changed without it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Takes every client off the canary, now; works without the agent.
#[derive(Debug, Args)]
pub(in crate::cli) struct Rollback {
    /// The service.
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// What happens to the canary's established flows: keep lets them finish, reset makes their clients connect anew.
    #[arg(long, value_name = "keep|reset", default_value = "keep", value_parser = one_of(KeepOrReset::ALL, KeepOrReset::as_str))]
    flows: KeepOrReset,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Rollback {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Self { service, flows, reason } = self;
        let request = api::Rollback { flows, reason: reason.clone() };
        let asked = context.client.with_patience(PATIENCE).rollback(&service, &request).await;
        let done = match asked {
            Ok(done) => done,
            Err(ClientError::Refused(error)) if is_final(&error) => return Err(error.into()),
            Err(error) => past_the_agent(&service, flows, reason, error, context)?,
        };
        show(&done, &mut context.screen)?;
        Ok(Exit::Done)
    }
}

/// Whether there is nothing to roll back, as opposed to an agent that cannot do it.
fn is_final(error: &ApiError) -> bool {
    error.kind().is_some_and(|kind| kind.status() < 500)
}

fn past_the_agent(
    service: &str,
    flows: KeepOrReset,
    reason: Option<String>,
    agent: ClientError,
    context: &mut Context<'_>,
) -> Result<RolledBack, Failure> {
    match context.offline.rollback(&context.places, service, flows, reason) {
        Ok(done) => {
            let pins = context.places.pin_dir.display();
            context
                .screen
                .remark(&format!("{agent}; rolled back without it, through the maps under {pins}"))?;
            Ok(done)
        }
        Err(error) => {
            let exit = match agent {
                ClientError::Unreachable { .. } | ClientError::Silent { .. } => Exit::Unreachable,
                ClientError::Broken { .. } | ClientError::Refused(_) => Exit::Failed,
            };
            let error = match error.downcast::<ApiError>() {
                Ok(refused) => return Err(refused.into()),
                Err(error) => error,
            };
            let remedy = match error.is::<NoNames>() {
                true => format!(
                    "without the agent, the journal in {} tells services by name: name its place with --state-dir or LB_STATE_DIR",
                    context.places.state_dir.display()
                ),
                false => format!(
                    "without the agent it takes root, and the maps under {} (--pin-dir or LB_PIN_DIR)",
                    context.places.pin_dir.display()
                ),
            };
            Err(Failure::of("LB0606", format!("{agent}; and without it: {}", crate::chain(&error)))
                .remedy(remedy)
                .exit(exit))
        }
    }
}

fn show(done: &RolledBack, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(done);
    }
    let RolledBack { service, flows, established, .. } = done;
    let store = short_time(Duration::from_secs_f64(done.store_seconds));
    let total = short_time(Duration::from_secs_f64(done.total_seconds));
    let before = percent(done.split_before_percent);
    let (one, many) = match flows {
        KeepOrReset::Keep => ("finishes where it is", "finish where they are"),
        KeepOrReset::Reset => ("is reset", "are reset"),
    };
    let connections = match established {
        None => format!("tracked flows {many}"),
        Some(1) => format!("1 tracked flow {one}"),
        Some(n) => format!("{} {many}", counted(*n, "tracked flow")),
    };
    let split = match done.split_before_percent {
        0.0 => format!("canary of {service}: at 0 % already"),
        _ => {
            format!("canary of {service}: {before} -> 0 % in {store} (store), {total} from request to store")
        }
    };
    screen.say(&match (done.split_before_percent, flows) {
        (0.0, KeepOrReset::Keep) => format!("{split}\n"),
        _ => format!("{split}; {connections}\n"),
    })?;
    done.warnings.iter().try_for_each(|warning| screen.remark(&format!("warning: {warning}")))
}
