//! `lbctl apply`

use clap::Args;

use super::{Outcome, read, whole};
use crate::api::{self, ClientError, ErrorCode};
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{Format, Screen};
use crate::cli::{Context, changes};
use crate::config::{self, Style};

/// Makes the agent converge on a configuration.
///
/// A file with mistakes changes nothing. Applying the same file again changes nothing either.
#[derive(Debug, Args)]
pub(in crate::cli) struct Apply {
    /// The configuration, or `-` for standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub file: String,
    /// Only shows what would change, and how much of the traffic would move.
    #[arg(long)]
    dry_run: bool,
    /// Changes nothing, and exits with 5, unless the agent is at this revision.
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    expect_revision: Option<u64>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Apply {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Self { file, dry_run, expect_revision, reason } = self;
        let (text, name) = read(&file)?;
        let request = api::Apply { text, name, dry_run, expect_revision, reason };
        match context.client.apply(&request).await {
            Ok(applied) => {
                if !applied.diagnostics.is_empty() {
                    show_text(&request, &mut context.screen)?;
                }
                changes::show(&applied, "", &mut context.screen)?;
                Ok(Exit::Done)
            }
            Err(ClientError::Refused(error)) if error.kind() == Some(ErrorCode::InvalidConfig) => {
                if context.screen.format != Format::Json && show_text(&request, &mut context.screen)? {
                    context.screen.remark("nothing was changed")?;
                    return Err(Failure::told(Exit::Failed));
                }
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Shows what is wrong with the text in its lines, which the agent's answer does not have. Whether it is invalid for this
/// program as well: the agent may be of another version.
fn show_text(request: &api::Apply, screen: &mut Screen) -> Result<bool, Failure> {
    let (found, invalid) = match config::parse(&request.text, &request.name) {
        Ok(loaded) => (loaded.warnings, false),
        Err(found) => (found, true),
    };
    if screen.format != Format::Json && !found.is_empty() {
        screen.complain(&found.render(Style::Coloured))?;
    }
    Ok(invalid)
}
