//! `lbctl get`

mod backends;
mod events;
mod flows;
mod services;

use clap::{Args, Subcommand};

use super::Outcome;
use crate::api::ServiceQuery;
use crate::cli::Context;

/// Lists services, backends, flows or events.
#[derive(Debug, Subcommand)]
#[command(subcommand_value_name = "WHAT", subcommand_help_heading = "What")]
pub(in crate::cli) enum Get {
    /// Services and their split.
    #[command(alias = "service")]
    Services(services::Services),
    /// Backends with weight, state, health and flows.
    #[command(alias = "backend")]
    Backends(backends::Backends),
    /// Tracked flows; those of settled slots are in no table.
    #[command(alias = "flow")]
    Flows(flows::Flows),
    /// What the agent noticed and did.
    #[command(alias = "event")]
    Events(events::Events),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Which {
    /// Of this service only.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Follows the list as it changes.
    #[arg(short, long)]
    watch: bool,
}

impl Which {
    fn query(&self) -> ServiceQuery {
        ServiceQuery { service: self.service.clone(), ..ServiceQuery::default() }
    }

    fn doing(&self, what: &str) -> String {
        match &self.service {
            Some(service) => format!("list the {what} of {service}"),
            None => format!("list the {what}"),
        }
    }
}

impl Get {
    pub fn doing(&self) -> String {
        match self {
            Self::Services(verb) => verb.which.doing("services"),
            Self::Backends(verb) => verb.which.doing("backends"),
            Self::Flows(verb) => verb.which.doing("flows"),
            Self::Events(verb) => verb.which.doing("events"),
        }
    }

    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        match self {
            Self::Services(verb) => verb.run(context).await,
            Self::Backends(verb) => verb.run(context).await,
            Self::Flows(verb) => verb.run(context).await,
            Self::Events(verb) => verb.run(context).await,
        }
    }
}
