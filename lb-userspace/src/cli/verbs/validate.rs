//! `lbctl validate`

use clap::Args;

use super::{Outcome, read};
use crate::api::{Api, Validated};
use crate::cli::Context;
use crate::cli::failure::Exit;
use crate::cli::human::counted;
use crate::cli::screen::Format;
use crate::config::{self, Config, Style};

/// Checks a configuration; needs no agent and no privilege.
///
/// Every mistake is shown with its place and what was expected there. Exits with 1 if there is any.
#[derive(Debug, Args)]
pub(in crate::cli) struct Validate {
    /// A configuration, or `-` for standard input.
    #[arg(value_name = "FILE")]
    pub file: String,
}

impl Validate {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let screen = &mut context.screen;
        let (text, name) = read(&self.file)?;
        let (config, found) = match config::parse(&text, &name) {
            Ok(loaded) => (Some(loaded.config), loaded.warnings),
            Err(found) => (None, found),
        };
        let exit = if config.is_some() { Exit::Done } else { Exit::Failed };
        if screen.format == Format::Json {
            let valid = config.is_some();
            screen.json(&Validated { api: Api::V1, valid, diagnostics: found.reports() })?;
            return Ok(exit);
        }
        if !found.is_empty() {
            screen.complain(&found.render(Style::Coloured))?;
        }
        if let Some(config) = config {
            screen.say(&format!("{name} is valid: {}\n", size(&config)))?;
        }
        Ok(exit)
    }
}

fn size(config: &Config) -> String {
    let pools = || config.services.iter().flat_map(|service| &service.pools);
    let backends: usize = pools().map(|pool| pool.backends.len()).sum();
    format!(
        "{}, {}, {}",
        counted(config.services.len() as u64, "service"),
        counted(pools().count() as u64, "pool"),
        counted(backends as u64, "backend"),
    )
}
