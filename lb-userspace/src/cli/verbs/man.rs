//! `lbctl man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Outcome;
use crate::cli::failure::{Exit, Failure};
use crate::cli::{Cli, Context};

/// Writes the manual page, or a page for each verb.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lbctl man | man -l -\n  lbctl man --to /usr/local/share/man/man1")]
pub(in crate::cli) struct Man {
    /// Writes a page for each verb into this directory.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl Man {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let command = Cli::command();
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
