//! `lbctl detach`

use clap::Args;

use super::Outcome;
use crate::api::ClientError;
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::Format;

/// Takes programs, maps and addresses off the host: nothing is balanced any more.
#[derive(Debug, Args)]
pub(in crate::cli) struct Detach {}

impl Detach {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let done = match context.client.detach().await {
            Ok(done) => done,
            Err(agent @ ClientError::Unreachable { .. }) => {
                let done = context.offline.detach(&context.places).map_err(|error| {
                    Failure::of("LB0606", format!("{agent}; and without it: {error:#}")).remedy(format!(
                        "without the agent it takes root, and the maps under {} (--pin-dir or LB_PIN_DIR)",
                        context.places.pin_dir.display()
                    ))
                    .exit(Exit::Unreachable)
                })?;
                context.screen.remark(&format!("{agent}; detached without it"))?;
                done
            }
            Err(error @ ClientError::Silent { .. }) => {
                let failure = Failure::from(error);
                return Err(failure.remedy(
                    "it would come back with all of it: stop the agent first (`systemctl stop lbd`)",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        let screen = &mut context.screen;
        if screen.format == Format::Json {
            screen.json(&done)?;
        } else {
            for removed in &done.removed {
                screen.say(&format!("removed {removed}\n"))?;
            }
            if done.removed.is_empty() {
                screen.say("there was nothing to remove\n")?;
            }
            for left in &done.left {
                screen.remark(&format!("left behind: {left}"))?;
            }
        }
        Ok(if done.left.is_empty() { Exit::Done } else { Exit::Failed })
    }
}
