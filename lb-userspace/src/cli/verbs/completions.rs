//! `lbctl completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Outcome;
use crate::cli::failure::Exit;
use crate::cli::{Cli, Context};

/// Writes completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lbctl completions bash > /etc/bash_completion.d/lbctl\n  source <(lbctl completions zsh)"
)]
pub(in crate::cli) struct Completions {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "lbctl", &mut script);
        context.screen.say(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
