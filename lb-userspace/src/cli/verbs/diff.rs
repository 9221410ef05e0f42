//! `lbctl diff`

use clap::Args;

use super::{Outcome, whole};
use crate::api::DiffQuery;
use crate::cli::failure::Exit;
use crate::cli::human::counted;
use crate::cli::screen::Format;
use crate::cli::{Context, changes};

/// Shows what differs between two of a service's revisions: configuration, split, pools and overrides.
#[derive(Debug, Args)]
pub(in crate::cli) struct Diff {
    /// The service; also one that is gone.
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// One revision of the service, as `lbctl history` numbers them.
    #[arg(value_name = "A", value_parser = whole::<u64>)]
    from: u64,
    /// The other one.
    #[arg(value_name = "B", value_parser = whole::<u64>)]
    to: u64,
}

impl Diff {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Self { service, from, to } = self;
        let diff = context.client.diff(&service, &DiffQuery { from, to }).await?;
        let screen = &mut context.screen;
        if screen.format == Format::Json {
            screen.json(&diff)?;
            return Ok(Exit::Done);
        }
        if diff.changes.is_empty() {
            screen.say(&format!("nothing differs between revisions {from} and {to} of {service}\n"))?;
            return Ok(Exit::Done);
        }
        let differ = counted(changes::list(&diff.changes, &service, screen)?, "difference");
        screen.say(&format!("{differ} between revisions {from} and {to} of {service}\n"))?;
        Ok(Exit::Done)
    }
}
