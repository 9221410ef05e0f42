//! `lbctl set`

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::Outcome;
use crate::api::{HealthWord, KeepOrReset, SetHealth, SetSplit, SetState, SetWeight, Share};
use crate::cli::failure::Exit;
use crate::cli::target::Target;
use crate::cli::{Context, changes};
use crate::config::{AdminState, Weight};

/// Sets a weight, a split, a state or a health, now.
#[derive(Debug, Subcommand)]
#[command(subcommand_value_name = "WHAT", subcommand_help_heading = "What")]
pub(in crate::cli) enum Set {
    /// A backend's weight; 0 takes no new flows.
    Weight {
        /// The backend, such as checkout/v41/10.0.1.11:8443; what is not needed to tell it from others can be left out.
        #[arg(value_name = "SERVICE/POOL/BACKEND")]
        backend: Target,
        /// From 0 to 65535.
        #[arg(value_name = "N", value_parser = weight, allow_negative_numbers = true)]
        weight: Weight,
        #[command(flatten)]
        why: Why,
    },
    /// The canary's share of the clients.
    Split {
        /// The service.
        #[arg(value_name = "SERVICE")]
        service: String,
        /// From 0 to 100, with at most six decimals.
        #[arg(value_name = "PERCENT", allow_negative_numbers = true)]
        percent: Share,
        #[command(flatten)]
        why: Why,
    },
    /// What is wanted of a backend: ready takes flows, drain keeps those it has, maint gets nothing.
    State {
        /// The backend, such as checkout/v41/10.0.1.11:8443; what is not needed to tell it from others can be left out.
        #[arg(value_name = "SERVICE/POOL/BACKEND")]
        backend: Target,
        /// ready, drain or maint.
        #[arg(value_name = "STATE", value_parser = state_parser())]
        state: AdminState,
        /// How long it may drain, such as 10m; what happens then, --then says. Without it, for ever.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        deadline: Option<Duration>,
        /// What happens at the deadline to the flows that are left: they stay, or are reset so that their clients connect anew.
        #[arg(long, value_name = "WHAT", value_parser = then_parser(), requires = "deadline", default_value = "keep")]
        then: KeepOrReset,
        #[command(flatten)]
        why: Why,
    },
    /// A backend's health, whatever its checks say; auto believes them again.
    Health {
        /// The backend, such as checkout/v41/10.0.1.11:8443; what is not needed to tell it from others can be left out.
        #[arg(value_name = "SERVICE/POOL/BACKEND")]
        backend: Target,
        /// up, down or auto.
        #[arg(value_name = "HEALTH", value_parser = health_parser())]
        health: HealthWord,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Why {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Set {
    pub fn doing(&self) -> String {
        match self {
            Self::Weight { backend, .. } => format!("set the weight of {backend}"),
            Self::Split { service, .. } => format!("set the split of {service}"),
            Self::State { backend, .. } => format!("set the state of {backend}"),
            Self::Health { backend, .. } => format!("set the health of {backend}"),
        }
    }

    fn service(&self) -> &str {
        match self {
            Self::Weight { backend, .. } | Self::State { backend, .. } | Self::Health { backend, .. } => {
                backend.service()
            }
            Self::Split { service, .. } => service,
        }
    }

    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let client = &context.client;
        let service = self.service().to_owned();
        let applied = match self {
            Self::Weight { backend, weight, why: Why { reason } } => {
                let backend = backend.resolve(client).await?;
                client.set_weight(&backend, &SetWeight { weight, reason }).await?
            }
            Self::Split { service, percent, why: Why { reason } } => {
                client.set_split(&service, &SetSplit { percent, reason }).await?
            }
            Self::State { backend, state, deadline, then, why: Why { reason } } => {
                let backend = backend.resolve(client).await?;
                // A part of a second is a second: the flows have the time that was said.
                let deadline_seconds = deadline.map(|time| time.as_millis().div_ceil(1_000) as u64);
                client.set_state(&backend, &SetState { state, deadline_seconds, then, reason }).await?
            }
            Self::Health { backend, health, why: Why { reason } } => {
                let backend = backend.resolve(client).await?;
                client.set_health(&backend, &SetHealth { health, reason }).await?
            }
        };
        changes::show(&applied, &service, &mut context.screen)?;
        Ok(Exit::Done)
    }
}

fn weight(text: &str) -> Result<Weight, String> {
    if let Some(step) = text.strip_prefix(['+', '-']) {
        return Err(format!("a weight is absolute: `{step}`, not `{text}`"));
    }
    text.parse().map(Weight).map_err(|_| "a weight is a whole number from 0 to 65535".to_owned())
}

fn state_parser() -> impl TypedValueParser<Value = AdminState> {
    one_of(AdminState::ALL, AdminState::as_str)
}

fn then_parser() -> impl TypedValueParser<Value = KeepOrReset> {
    one_of(KeepOrReset::ALL, KeepOrReset::as_str)
}

fn health_parser() -> impl TypedValueParser<Value = HealthWord> {
    one_of(HealthWord::ALL, HealthWord::as_str)
}

/// One of a few words, which completions and messages know.
pub(super) fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|&value| word(value))).try_map(move |text| {
        let found = all.iter().copied().find(|&value| word(value) == text);
        found.ok_or("not one of the words")
    })
}
