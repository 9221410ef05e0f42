//! `lbctl undo`

use clap::Args;

use super::{Outcome, whole};
use crate::api;
use crate::cli::failure::Exit;
use crate::cli::{Context, changes};

/// Makes a service what it was at an earlier revision: configuration, split, pools and overrides.
///
/// That is a new revision, so that an undo can be undone. A split that becomes smaller is lowered first, at once.
#[derive(Debug, Args)]
pub(in crate::cli) struct Undo {
    /// The service; also one that is gone.
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The revision that is wanted back, as `lbctl history` numbers them; the one before the newest if none is named.
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    to: Option<u64>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Undo {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Self { service, to, reason } = self;
        let undone = context.client.undo(&service, &api::Undo { to, reason }).await?;
        changes::show(&undone, &service, &mut context.screen)?;
        Ok(Exit::Done)
    }
}
