//! `lbctl top`

use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::cli::failure::Failure;
use crate::cli::screen::Format;
use crate::cli::{Context, top};

/// Shows services, pools and backends live: rates, shares, states, events.
#[derive(Debug, Args)]
pub(in crate::cli) struct Top {
    /// Begins with the pools of this service.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// How often it asks.
    #[arg(short = 'd', long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    delay: Duration,
}

/// The agent reads its counters anew for each answer.
const SHORTEST: Duration = Duration::from_millis(100);

impl Top {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        if !context.screen.is_terminal() || context.screen.format == Format::Json {
            return Err(Failure::of("LB0612", "it draws on a terminal, and this is none")
                .remedy("`lbctl get backends -w` follows the same in a pipe, with `-o json` for programs"));
        }
        top::run(&context.client, self.delay.max(SHORTEST), self.service).await
    }
}
