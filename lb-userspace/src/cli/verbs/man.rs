//! `lbctl man`

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::cli::failure::{Exit, Failure};
use crate::cli::{self, Context};

/// Writes the manual page, or a page for each verb.
#[derive(Debug, Args)]
pub(in crate::cli) struct Man {
    /// Writes a page for each verb into this directory.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl Man {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let command = cli::command();
        match self.to {
            Some(directory) => {
                let name = directory.display().to_string();
                clap_mangen::generate_to(command, directory)
                    .map_err(|error| Failure::file("write the manual to", &name, &error))?;
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                context.screen.say(&String::from_utf8_lossy(&page))?;
            }
        }
        Ok(Exit::Done)
    }
}
