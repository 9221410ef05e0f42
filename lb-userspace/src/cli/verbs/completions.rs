//! `lbctl completions`

use clap::Args;
use clap_complete::Shell;

use super::Outcome;
use crate::cli::failure::Exit;
use crate::cli::{self, Context};

/// Writes completions for a shell.
#[derive(Debug, Args)]
pub(in crate::cli) struct Completions {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli::command(), "lbctl", &mut script);
        context.screen.say(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
