//! The log: on standard error, or in the journal of systemd.

use std::io::IsTerminal as _;

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, on standard error.
    #[default]
    Text,
    /// A JSON object a line, on standard error.
    Json,
    /// Entries of systemd's journal, with their fields.
    Journald,
}

/// Starts logging. What is logged is said by `LB_LOG` (as in tracing's `EnvFilter`); `info` without it.
///
/// # Errors
/// If there is no journal where one is asked for.
pub fn start(format: LogFormat) -> anyhow::Result<()> {
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => {
            // On a terminal only, as lbctl does it.
            let colour = std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
            fmt::layer().with_ansi(colour).with_target(false).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer();
            journal
                .context("there is no systemd journal here (another --log-format or LB_LOG_FORMAT)")?
                .boxed()
        }
    };
    let filter = EnvFilter::try_from_env("LB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .context("logging has started already")
}
